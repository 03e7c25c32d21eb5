# Counts requests by client, minute and action with ClickHouse, reading only the columns that are needed.
import os
import sys

import chdb

names = sys.argv[1:]
name = names[0] if len(names) == 1 else os.path.dirname(names[0]) + "/*.gz"
print(
    chdb.query(
        f"""
        SELECT count(), sum(n), sum(n * n) FROM (
          SELECT count() AS n
          FROM file('{name}', JSONEachRow, 'timestamp UInt64, action String, httpRequest Tuple(clientIp String)')
          GROUP BY httpRequest.clientIp, intDiv(timestamp, 60000), action)
        SETTINGS max_threads = {os.environ["BENCH_THREADS"]}, input_format_skip_unknown_fields = 1,
          input_format_json_ignore_unknown_keys_in_named_tuple = 1
        """,
        "TSV",
    )
    .bytes()
    .decode()
    .replace("\t", " ")
    .strip()
)
