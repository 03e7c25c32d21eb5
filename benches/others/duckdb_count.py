# Counts requests by client, minute and action with DuckDB, reading only the columns that are needed.
import os
import sys

import duckdb

db = duckdb.connect(config={"threads": int(os.environ["BENCH_THREADS"])})
files = ", ".join("'" + name + "'" for name in sys.argv[1:])
groups, requests, squares = db.execute(
    f"""
    SELECT count(*), sum(n), sum(n * n) FROM (
      SELECT count(*) AS n
      FROM read_json([{files}], format = 'newline_delimited', maximum_object_size = 8388608, columns = {{
        timestamp: 'BIGINT', action: 'VARCHAR', httpRequest: 'STRUCT("clientIp" VARCHAR)' }})
      GROUP BY httpRequest."clientIp", timestamp // 60000, action)
    """
).fetchone()
print(groups, int(requests), int(squares))
