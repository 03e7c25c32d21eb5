"""Athena for the stand-in: Trino's SQL over what is in the buckets, as strict as Athena where it matters to us.

ministack hands queries to DuckDB as they are. Here sqlglot reads them as Athena's, checks every column against the Glue
table, and says them again as DuckDB's; functions that DuckDB lacks are Python. Lines are read as the OpenX JSON SerDe reads
them with `ignore.malformed.json`; partitions are projected, and only projected folders are read and counted as scanned.
A workgroup's limits are kept. `tests/aws/strict.rs` checks all of it.
"""

import datetime
import functools
import gzip
import ipaddress
import json
import os
import re
import tempfile
import time
import zlib

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.optimizer.annotate_types import annotate_types
from sqlglot.optimizer.qualify import qualify
from ministack.core.responses import error_response_json, json_response
from ministack.services import athena, glue
from ministack.services import s3

QUERY_BYTES_MAX = 262_144
ROWS_MAX = 1_000

M = 0xFFFFFFFFFFFFFFFF
P1, P2, P3, P4, P5 = (
    0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def rotated(x, by):
    return ((x << by) | (x >> (64 - by))) & M


def mixed(acc, lane):
    return rotated((acc + lane * P2) & M, 31) * P1 & M


@functools.lru_cache(maxsize=100_000)
def xxh64(data):
    """XXH64 with seed 0, from its specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), big-endian as Trino's."""
    at, n = 0, len(data)
    word = lambda at, size: int.from_bytes(data[at:at + size], "little")
    if n >= 32:
        accs = [(P1 + P2) & M, P2, 0, -P1 & M]
        while at + 32 <= n:
            accs = [mixed(acc, word(at + 8 * i, 8)) for i, acc in enumerate(accs)]
            at += 32
        h = sum(rotated(acc, by) for acc, by in zip(accs, (1, 7, 12, 18))) & M
        for acc in accs:
            h = ((h ^ mixed(0, acc)) * P1 + P4) & M
    else:
        h = P5
    h = (h + n) & M
    while at + 8 <= n:
        h = (rotated(h ^ mixed(0, word(at, 8)), 27) * P1 + P4) & M
        at += 8
    if at + 4 <= n:
        h = (rotated(h ^ (word(at, 4) * P1 & M), 23) * P2 + P3) & M
        at += 4
    while at < n:
        h = rotated(h ^ (data[at] * P5 & M), 11) * P1 & M
        at += 1
    for shift, prime in ((33, P2), (29, P3), (32, 1)):
        h = (h ^ (h >> shift)) * prime & M
    return h.to_bytes(8, "big")


@functools.lru_cache(maxsize=100_000)
def address(text):
    """The sixteen octets that Trino's IPADDRESS has, or NULL."""
    if text is None:
        return None
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return found.packed if found.version == 6 else bytes(10) + b"\xff\xff" + found.packed


@functools.lru_cache(maxsize=100_000)
def address_text(octets):
    found = ipaddress.IPv6Address(octets)
    return str(found.ipv4_mapped or found)


FUNCTIONS = {
    "xxhash64": (xxh64, ["BLOB"], "BLOB"),
    "to_utf8": (lambda text: text.encode("utf-8", "surrogatepass"), ["VARCHAR"], "BLOB"),
    "hex_of": (lambda data: data.hex().upper(), ["BLOB"], "VARCHAR"),
    "octets_of": (bytes.fromhex, ["VARCHAR"], "BLOB"),
    "address": (address, ["VARCHAR"], "BLOB"),
    "address_text": (address_text, ["BLOB"], "VARCHAR"),
    # NULL where nothing is found, which DuckDB's own does not do.
    "found": (lambda text, pattern, group: text is not None and (m := re_of(pattern).search(text)) and m.group(group) or None,
              ["VARCHAR", "VARCHAR", "INTEGER"], "VARCHAR"),
}


@functools.lru_cache(maxsize=1_000)
def re_of(pattern):
    return re.compile(pattern, re.ASCII)


def named(name, *arguments):
    return exp.Anonymous(this=name, expressions=list(arguments))


def is_address(node):
    return isinstance(node, exp.Cast) and node.to.this == exp.DataType.Type.IPADDRESS


def said_for_duckdb(node):
    """What DuckDB lacks, by the names of FUNCTIONS."""
    if isinstance(node, exp.Cast) and is_address(node.this) and node.to.this != exp.DataType.Type.IPADDRESS:
        inner = node.this.this
        if node.to.this == exp.DataType.Type.VARCHAR:
            return named("address_text", inner.transform(said_for_duckdb))
    if is_address(node):
        return named("address", node.this.transform(said_for_duckdb))
    if isinstance(node, exp.Cast) and node.to.this == exp.DataType.Type.VARBINARY:
        return node.this.transform(said_for_duckdb)
    if isinstance(node, (exp.Hex, exp.LowerHex)):
        return named("hex_of", node.this.transform(said_for_duckdb))
    if isinstance(node, exp.Unhex):
        return named("octets_of", node.this.transform(said_for_duckdb))
    if isinstance(node, exp.RegexpExtract):
        group = node.args.get("group") or exp.Literal.number(0)
        return named("found", node.this.transform(said_for_duckdb), node.expression, group)
    return node


class Refused(Exception):
    """The query fails, for this reason."""


class Limit(Exception):
    """The query is cancelled, for this reason."""


def duck_type(hive):
    """One of Hive's types as DuckDB calls it."""
    if hive.startswith("array<"):
        return duck_type(hive[6:-1]) + "[]"
    if hive.startswith("struct<"):
        return "STRUCT(" + ", ".join(f'"{n}" {duck_type(t)}' for n, t in fields(hive)) + ")"
    return {"string": "VARCHAR", "bigint": "BIGINT", "int": "INTEGER"}[hive]


def fields(hive):
    """The fields of a struct."""
    depth, start, parts, inside = 0, 0, [], hive[7:-1]
    for at, char in enumerate(inside + ","):
        depth += (char == "<") - (char == ">")
        if char == "," and depth == 0:
            parts.append(inside[start:at])
            start = at + 1
    return [tuple(part.split(":", 1)) for part in parts]


def openx(value, hive):
    """A JSON value as the SerDe gives it for a column of this type: names in any case, text of whatever is no text."""
    if value is None:
        return None
    if hive == "string":
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if hive in ("bigint", "int"):
        try:
            return int(value)
        except (TypeError, ValueError):
            return None
    if hive.startswith("array<"):
        return [openx(item, hive[6:-1]) for item in value] if isinstance(value, list) else None
    if not isinstance(value, dict):
        return None
    lowered = {name.lower(): item for name, item in value.items()}
    return {name: openx(lowered.get(name), of) for name, of in fields(hive)}


def lines_of(key, data):
    if key.endswith(".gz"):
        data = gzip.decompress(data)
    return data.decode("utf-8", "replace").split("\n")


def row_of(line, columns):
    try:
        value = json.loads(line, strict=False)
    except ValueError:
        value = {}
    value = value if isinstance(value, dict) else {}
    return openx(value, "struct<" + ",".join(f"{c['Name']}:{c['Type']}" for c in columns) + ">")


JAVA = {"yyyy": "%Y", "MM": "%m", "dd": "%d", "HH": "%H", "mm": "%M"}


def java_format(text):
    for java, python in JAVA.items():
        text = text.replace(java, python)
    return text


class Partitions:
    """The projected partitions of a table: `projection.<column>.…` and `storage.location.template`."""

    def __init__(self, table):
        p = table["Parameters"]
        (self.column,) = [key["Name"] for key in table["PartitionKeys"]]
        get = lambda key: p[f"projection.{self.column}.{key}"]
        if p.get("projection.enabled") != "true" or get("type") != "date":
            raise Refused("HIVE_METASTORE_ERROR: no projection")
        self.format = java_format(get("format"))
        first, last = get("range").split(",")
        if last != "NOW":
            raise Refused(f"INVALID_TABLE_PROPERTY: range {last}")
        self.first = datetime.datetime.strptime(first, self.format)
        unit = {"MINUTES": 60, "HOURS": 3600}[get("interval.unit")]
        self.step = datetime.timedelta(seconds=int(get("interval")) * unit)
        self.prefix, self.suffix = p["storage.location.template"].split("${%s}" % self.column)

    def of(self, location):
        """The partition that an object lies in: directly in the folder of a projected time."""
        if not location.startswith(self.prefix):
            return None
        folder, _, name = location[len(self.prefix):].rpartition("/")
        try:
            time_of = datetime.datetime.strptime(folder, self.format)
        except ValueError:
            return None
        projected = time_of >= self.first and (time_of - self.first) % self.step == datetime.timedelta()
        exact = time_of.strftime(self.format) == folder
        return folder if projected and exact and name and name[0] not in "_." else None


def bounds(tree, column):
    """What the query says about a partition column, as a test of one value."""
    tests = []
    for node in tree.find_all(exp.GTE, exp.LTE, exp.GT, exp.LT, exp.EQ):
        if isinstance(node.this, exp.Column) and node.this.name == column and isinstance(node.expression, exp.Literal):
            op = {exp.GTE: "__ge__", exp.LTE: "__le__", exp.GT: "__gt__", exp.LT: "__lt__", exp.EQ: "__eq__"}[type(node)]
            tests.append((op, node.expression.this))
    return lambda value: all(getattr(value, op)(bound) for op, bound in tests)


async def run(query, database, catalog=None):
    import asyncio

    limit = 0
    for execution in athena._executions.values():
        if execution["Query"] == query and execution["Status"]["State"] == "RUNNING":
            group = athena._workgroups.get(execution["WorkGroup"], {})
            # A template may say it as text, which CloudFormation makes a number of.
            limit = int(group.get("Configuration", {}).get("BytesScannedCutoffPerQuery") or 0)
            current = execution
    tables = {key: table for key, table in glue._tables.items()}
    buckets = {}

    def objects(location):
        bucket, _, prefix = location.partition("://")[2].partition("/")
        if bucket not in s3._buckets:
            return []
        keys = sorted(k for k in list(s3._buckets[bucket]["objects"]) if k.startswith(prefix))
        return [(f"s3://{bucket}/{k}", s3._get_object_data(bucket, k)) for k in keys]

    try:
        tree = sqlglot.parse_one(query, read="athena")
    except sqlglot.errors.ParseError as error:
        raise Refused(f"SYNTAX_ERROR: {error}")
    schema, used = {}, []
    ctes = {cte.alias for cte in tree.find_all(exp.CTE)}
    for node in tree.find_all(exp.Table):
        if not node.db and node.name in ctes:
            continue
        db = node.db or database
        table = tables.get(f"{db}/{node.name}")
        if table is None:
            raise Refused(f"TABLE_NOT_FOUND: line 1:1: Table 'awsdatacatalog.{db}.{node.name}' does not exist")
        columns = [*table["StorageDescriptor"]["Columns"], *table.get("PartitionKeys", [])]
        schema.setdefault(db, {})[node.name] = {
            c["Name"].lower(): exp.DataType.build(c["Type"], dialect="hive") for c in columns}
        used.append((node, db, table))
    try:
        # Types let sqlglot say Trino's division of integers; an unknown column fails here, as on Athena.
        tree = annotate_types(
            qualify(tree, schema=schema, db=database, dialect="athena", quote_identifiers=True), schema=schema, dialect="athena")
    except sqlglot.errors.OptimizeError as error:
        raise Refused(f"COLUMN_NOT_FOUND: {error}")
    scanned, folder = 0, tempfile.mkdtemp(prefix="athena-")
    for node in [node for node in tree.find_all(exp.Table) if not (node.name in ctes and (not node.db or node.db not in schema or node.name not in schema[node.db]))]:
        table = tables[f"{node.db or database}/{node.name}"]
        partitions = Partitions(table)
        wanted = bounds(tree, partitions.column)
        columns = table["StorageDescriptor"]["Columns"]
        path = os.path.join(folder, f"{node.name}.json")
        with open(path, "w") as out:
            for location, data in objects(table["StorageDescriptor"]["Location"].rstrip("/") + "/"):
                value = partitions.of(location)
                if value is None or not wanted(value):
                    continue
                scanned += len(data)
                for line in lines_of(location, data):
                    if line:
                        out.write(json.dumps({**row_of(line, columns), partitions.column: value}) + "\n")
        types = {**{c["Name"]: duck_type(c["Type"]) for c in columns}, partitions.column: "VARCHAR"}
        listed = ", ".join(f"'{name}': '{of}'" for name, of in types.items())
        read = f"SELECT * FROM read_json('{path}', format = 'newline_delimited', columns = {{{listed}}}, maximum_object_size = 100000000)"
        alias = node.alias or node.name
        node.replace(exp.alias_(sqlglot.parse_one(read, read="duckdb").subquery(), alias, table=True))
    current["_scanned"] = current["Statistics"]["DataScannedInBytes"] = scanned
    if limit and scanned > limit:
        raise Limit("Query cancelled! : Bytes scanned limit was exceeded")
    said = tree.transform(said_for_duckdb).sql("duckdb")

    def execute():
        conn = duckdb.connect(":memory:")
        try:
            conn.execute("SET TimeZone = 'UTC'")
            for name, (function, takes, gives) in FUNCTIONS.items():
                # These two see NULL, and may give it; the others are given none.
                nulls = "special" if name in ("address", "found") else "default"
                conn.create_function(name, function, takes, gives, null_handling=nulls)
            conn.execute("CREATE MACRO slice(l, a, n) AS list_slice(l, a, a + n - 1)")
            result = conn.execute(said)
            columns = [column[0] for column in result.description]
            return {"columns": columns, "column_types": ["varchar"] * len(columns), "rows": [list(r) for r in result.fetchall()]}
        except duckdb.Error as error:
            raise Refused(f"GENERIC_INTERNAL_ERROR: {error}")
        finally:
            conn.close()

    return await asyncio.to_thread(execute)


_execute_query, _start, _results, _get = (
    athena._execute_query, athena._start_query_execution, athena._get_query_results, athena._get_query_execution)
# How often a call is refused because there were too many, by its name and the workgroup.
throttled = {}


def too_many():
    return error_response_json("TooManyRequestsException", "Rate exceeded", 400)


async def execute(query_id, query, database, ddl, catalog=None):
    execution = athena._executions.get(query_id)
    if "-- sleeps" in query:
        # Stands for a long query, also where a policy's pattern says so: it ends only when it is cancelled.
        execution["Status"]["State"] = "RUNNING"
        execution["Statistics"]["DataScannedInBytes"] = 12_345_678
        return
    database_of = re.fullmatch(r"CREATE DATABASE IF NOT EXISTS `([^`]+)`", query.strip())
    if database_of:
        if database_of[1] not in glue._databases:
            glue._create_database({"DatabaseInput": {"Name": database_of[1]}})
        execution["_results"], execution["_column_types"] = {"columns": [], "rows": []}, []
        execution["Status"]["State"] = "SUCCEEDED"
        return
    try:
        await _execute_query(query_id, query, database, ddl, catalog)
    finally:
        # ministack has just put the size of the answer there.
        execution["Statistics"]["DataScannedInBytes"] = execution.get("_scanned", 0)
        status = execution["Status"]
        if status["StateChangeReason"].startswith("Query cancelled!"):
            status["State"] = "CANCELLED"


def start(request):
    if len(request.get("QueryString", "").encode()) > QUERY_BYTES_MAX:
        return error_response_json("InvalidRequestException", "1 validation error detected: Value at 'queryString' failed to satisfy constraint: Member must have length less than or equal to 262144", 400)
    group = request.get("WorkGroup", "primary")
    if group not in athena._workgroups:
        return error_response_json("InvalidRequestException", f"WorkGroup {group} is not found.", 400)
    left = re.fullmatch(r"throttles-(\d+)", group)
    if left and throttled.setdefault(group, int(left[1])) > 0:
        throttled[group] -= 1
        return too_many()
    return _start(request)


def results(request):
    """As Athena counts: the names of the columns are the first of a thousand rows."""
    most = request.get("MaxResults", ROWS_MAX)
    if not 1 <= most <= ROWS_MAX:
        return error_response_json("InvalidRequestException", "MaxResults is more than maximum allowed length 1000", 400)
    token = request.get("NextToken")
    if token is None and most > 1:
        request = {**request, "MaxResults": most - 1}
    return _results(request)


def table_metadata(request):
    """ministack makes tables up."""
    key = f"{request.get('DatabaseName')}/{request.get('TableName')}"
    if key not in glue._tables:
        return error_response_json("MetadataException", f"EntityNotFoundException: Table {request.get('TableName')} not found", 400)
    return json_response({"TableMetadata": athena._glue_table_to_metadata(glue._tables[key])})


def install():
    athena._run_duckdb, athena._execute_query = run, execute
    athena._start_query_execution, athena._get_query_results = start, results
    athena._get_table_metadata = table_metadata
