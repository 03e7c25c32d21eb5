# Counts requests by client, minute and action with the tools that are on every machine.
gzip -dc "$@" | jq -r '"\(.httpRequest.clientIp) \(.timestamp / 60000 | floor) \(.action)"' | sort | uniq -c |
  awk '{ n += $1; s += $1 * $1 } END { print NR, n, s }'
