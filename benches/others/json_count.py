# Counts requests by client, minute and action as a script of one's own would.
import collections
import gzip
import json
import sys

counts = collections.Counter()
for name in sys.argv[1:]:
    with gzip.open(name, "rb") as lines:
        for line in lines:
            record = json.loads(line)
            counts[record["httpRequest"]["clientIp"], record["timestamp"] // 60000, record["action"]] += 1
print(len(counts), sum(counts.values()), sum(n * n for n in counts.values()))
