//! Says in SQL what [`Tally::count`] does, so that Athena or any other Trino counts where the logs are, and makes a tally of
//! the answer. The judge does not know who counted.
//!
//! [`ddl`] describes WAF's logs as a table, [`sql`] asks for the cells, [`Counts::of`] takes them. One query reads the logs
//! once: what a CTE is used for twice, Trino reads twice, and Athena's price is by what is read. So requests become one row
//! for each client and minute, and everything else is looked up in the neighbouring rows by window functions: whether a
//! client can still matter, the sums of the minute, and which clients are in its sample.
//!
//! Nothing of a policy but [`literal`]s gets into a query: names, patterns and header names are quoted there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use chrono::{DateTime, Utc};
use ingest::object_key::{DELIVERY_LATE_SECONDS, GATHERING_SECONDS};

use crate::client::{Client, IpSource};
use crate::crowd::{SAMPLE_MAX, Trait};
use crate::pattern::Pattern;
use crate::policy::{Engine, Field, Match, Policy, Rule};
use crate::tally::{DISTINCT_MAX, MinuteTotals, Slot, Tally, Value};
use crate::time::Minute;

/// The longest query that Athena takes, in bytes
/// ([Service Quotas](https://docs.aws.amazon.com/athena/latest/ug/service-limits.html)).
pub const QUERY_BYTES_MAX: usize = 262_144;

/// The most rows of a policy's query for one client and minute grow with its rules; names in parentheses are no rule's, for
/// those have only letters, digits and hyphens.
mod row {
    pub(super) const REQUESTS: &str = "(requests)";
    pub(super) const REFUSED: &str = "(refused)";
    pub(super) const OURS: &str = "(ours)";
    pub(super) const SAMPLE: &str = "(sample)";
    pub(super) const ALLOWED: &str = "(allowed)";
    pub(super) const READ: &str = "(read)";
    pub(super) const CLIENTS: &str = "(clients)";
    pub(super) const UNATTRIBUTED: &str = "(unattributed)";
    pub(super) const UNREADABLE: &str = "(unreadable)";
    pub(super) const FIRST_MS: &str = "(first)";
    pub(super) const LAST_MS: &str = "(last)";
}

/// Who is to understand a table's definition. The query is the same for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Athena, whose definitions are Hive's.
    Athena,
    /// Trino with its Hive connector: one's own, EMR's.
    Trino,
}

/// How the folders of a log bucket are called, and so what a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `YYYY/MM/dd/HH/`, as Firehose makes them.
    Firehose,
    /// `YYYY/MM/dd/HH/mm/` every five minutes, as AWS WAF makes them.
    Direct,
}

impl Layout {
    /// The layout behind a prefix: WAF's own has `AWSLogs/<account>/WAFLogs/` in it
    /// ([Sending logs to S3](https://docs.aws.amazon.com/waf/latest/developerguide/logging-s3.html)).
    pub fn of_prefix(prefix: &str) -> Layout {
        if prefix.split('/').any(|folder| folder == "WAFLogs") {
            Layout::Direct
        } else {
            Layout::Firehose
        }
    }

    /// The seconds from one folder to the next.
    fn step_s(self) -> i64 {
        match self {
            Layout::Firehose => 60 * 60,
            Layout::Direct => 5 * 60,
        }
    }

    /// The folder's name, as `chrono` writes it.
    fn format(self) -> &'static str {
        match self {
            Layout::Firehose => "%Y/%m/%d/%H",
            Layout::Direct => "%Y/%m/%d/%H/%M",
        }
    }

    fn folder(self, at_s: i64) -> String {
        let time = DateTime::<Utc>::from_timestamp(at_s, 0).unwrap_or_default();
        time.format(self.format()).to_string()
    }

    /// The first and the last partition that may hold requests of a period, and how many there are from one to the other.
    ///
    /// An object is named for when it was begun or when it was due, which is up to [`GATHERING_SECONDS`] before its last
    /// request or [`DELIVERY_LATE_SECONDS`] after its first; see [`ingest::object_key::ObjectKey::may_hold`].
    pub fn partitions(self, period: Period) -> (String, String, u64) {
        let step_s = self.step_s();
        // WAF's folder names the five minutes that its objects are of, Firehose's the hour in which its objects begin.
        let named_s = match self {
            Layout::Firehose => step_s - 1,
            Layout::Direct => step_s,
        };
        let earliest_s = period.from_ms.div_euclid(1000) - GATHERING_SECONDS - named_s;
        let first = (earliest_s + step_s - 1).div_euclid(step_s);
        let last = (period.to_ms.div_euclid(1000) + DELIVERY_LATE_SECONDS - 1)
            .div_euclid(step_s)
            .max(first);
        let count = u64::try_from(last - first + 1).unwrap_or(1);
        (self.folder(first * step_s), self.folder(last * step_s), count)
    }
}

/// Where WAF's logs are, as a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The Glue database, or `catalog.schema` of a Trino.
    pub database: String,
    /// The table's name.
    pub name: String,
    /// What comes before the year in its objects' keys: `s3://bucket/prefix/`.
    pub location: String,
    /// How the folders are called.
    pub layout: Layout,
}

impl Table {
    /// As a query names it: quoted, part by part.
    fn quoted(&self) -> String {
        let parts = self.database.split('.').chain([self.name.as_str()]);
        let quoted: Vec<String> = parts.map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect();
        quoted.join(".")
    }
}

/// A part of history, in milliseconds since 1970: `from_ms` included, `to_ms` not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// Nothing earlier.
    pub from_ms: i64,
    /// Nothing from here on.
    pub to_ms: i64,
}

/// Which rules are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// All of them, and everything else that a replay needs.
    All,
    /// Those that name Athena as their engine, for the live loop.
    Athena,
}

impl Rules {
    fn holds(self, rule: &Rule) -> bool {
        self == Rules::All || rule.engine == Engine::Athena
    }
}

/// Why something can't be asked of Athena.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsayable {
    /// The query would be too long.
    #[error(
        "the query for this policy has {0} bytes, and Athena takes {QUERY_BYTES_MAX}: use fewer patterns, or scan the logs"
    )]
    TooLong(usize),
    /// A location that a table can't have.
    #[error(
        "`{0}` is no place that a table can have; write `s3://bucket/prefix/` without `$`, quotes, backslashes or control characters"
    )]
    Location(String),
    /// A name that a table or database can't have.
    #[error("`{0}` is no name that Athena takes; use lower-case letters, digits and underscores")]
    Name(String),
}

/// Every column of the table: its name and type in Hive's words. They are the fields of WAF's log records
/// ([Log fields](https://docs.aws.amazon.com/waf/latest/developerguide/logging-fields.html)) in lower case. What AWS writes
/// now as a number and now as text, or now as a list and now as null, is `string`, which takes the JSON as it is.
pub const COLUMNS: &[(&str, &str)] = &[
    ("timestamp", "bigint"),
    ("formatversion", "int"),
    ("webaclid", "string"),
    ("terminatingruleid", "string"),
    ("terminatingruletype", "string"),
    ("action", "string"),
    (
        "terminatingrulematchdetails",
        "array<struct<conditiontype:string,sensitivitylevel:string,location:string,matcheddata:array<string>,matchedfieldname:string>>",
    ),
    ("httpsourcename", "string"),
    ("httpsourceid", "string"),
    (
        "rulegrouplist",
        "array<struct<rulegroupid:string,terminatingrule:struct<ruleid:string,action:string,overriddenaction:string,rulematchdetails:string>,nonterminatingmatchingrules:array<struct<ruleid:string,action:string,overriddenaction:string,rulematchdetails:string>>,excludedrules:string,customerconfig:string>>",
    ),
    (
        "ratebasedrulelist",
        "array<struct<ratebasedruleid:string,ratebasedrulename:string,limitkey:string,limitvalue:string,maxrateallowed:string,evaluationwindowsec:string,customvalues:string>>",
    ),
    (
        "nonterminatingmatchingrules",
        "array<struct<ruleid:string,action:string,overriddenaction:string,rulematchdetails:string,captcharesponse:struct<responsecode:string,solvetimestamp:string,failurereason:string>,challengeresponse:struct<responsecode:string,solvetimestamp:string,failurereason:string>>>",
    ),
    ("requestheadersinserted", "array<struct<name:string,value:string>>"),
    ("responsecodesent", "string"),
    (
        "httprequest",
        "struct<clientip:string,country:string,headers:array<struct<name:string,value:string>>,uri:string,args:string,httpversion:string,httpmethod:string,requestid:string,fragment:string,scheme:string,host:string>",
    ),
    ("labels", "array<struct<name:string>>"),
    (
        "captcharesponse",
        "struct<responsecode:string,solvetimestamp:string,failurereason:string>",
    ),
    (
        "challengeresponse",
        "struct<responsecode:string,solvetimestamp:string,failurereason:string>",
    ),
    ("ja3fingerprint", "string"),
    ("ja4fingerprint", "string"),
    ("oversizefields", "string"),
    ("requestbodysize", "string"),
    ("requestbodysizeinspectedbywaf", "string"),
    ("clientasn", "string"),
    ("forwardedasn", "string"),
    ("cfdistributiontenantid", "string"),
];

/// The partition column: the folder's name.
pub const PARTITION: &str = "log_time";

/// What the table must know besides its columns: partitions are computed from these, never listed or loaded
/// ([Partition projection](https://docs.aws.amazon.com/athena/latest/ug/partition-projection-supported-types.html)).
/// The beginning must be a time at which a folder begins, because the steps are counted from there, so it is no `NOW-…`.
pub fn table_properties(table: &Table, since: Minute) -> Vec<(String, String)> {
    let (format, interval, unit) = match table.layout {
        Layout::Firehose => ("yyyy/MM/dd/HH", "1", "HOURS"),
        Layout::Direct => ("yyyy/MM/dd/HH/mm", "5", "MINUTES"),
    };
    let step_s = table.layout.step_s();
    let since = table.layout.folder(since.epoch_seconds().div_euclid(step_s) * step_s);
    let projection = |key: &str, value: &str| (format!("projection.{PARTITION}.{key}"), value.to_owned());
    vec![
        ("projection.enabled".to_owned(), "true".to_owned()),
        projection("type", "date"),
        projection("format", format),
        projection("range", &format!("{since},NOW")),
        projection("interval", interval),
        projection("interval.unit", unit),
        (
            "storage.location.template".to_owned(),
            format!("{}${{{PARTITION}}}/", table.location),
        ),
    ]
}

/// What the reader of lines must know: a line that is no JSON is passed over, for one would otherwise fail the query
/// ([OpenX JSON SerDe](https://docs.aws.amazon.com/athena/latest/ug/openx-json-serde.html)).
pub const SERDE_PROPERTIES: &[(&str, &str)] = &[("ignore.malformed.json", "true"), ("case.insensitive", "true")];

/// The reader of lines.
pub const SERDE: &str = "org.openx.data.jsonserde.JsonSerDe";

/// The statement that defines `table`, with partitions from `since` on.
///
/// # Errors
/// When the location or a name can't be that of a table.
pub fn ddl(table: &Table, since: Minute, dialect: Dialect) -> Result<String, Unsayable> {
    let bad = |c: char| c.is_control() || matches!(c, '$' | '\'' | '"' | '\\' | '`');
    if table.location.contains(bad) || !table.location.contains("://") || !table.location.ends_with('/') {
        return Err(Unsayable::Location(table.location.clone()));
    }
    for name in table.database.split('.').chain([table.name.as_str()]) {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(fits) {
            return Err(Unsayable::Name(name.to_owned()));
        }
    }
    let properties = table_properties(table, since);
    Ok(match dialect {
        Dialect::Athena => hive_ddl(table, &properties),
        Dialect::Trino => trino_ddl(table, &properties),
    })
}

fn hive_ddl(table: &Table, properties: &[(String, String)]) -> String {
    let columns: Vec<String> = COLUMNS.iter().map(|(name, of)| format!("  `{name}` {of}")).collect();
    let pairs = |pairs: Vec<(&str, &str)>| -> String {
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("  '{key}' = '{value}'"))
            .collect();
        pairs.join(",\n")
    };
    format!(
        "CREATE EXTERNAL TABLE IF NOT EXISTS `{}`.`{}` (\n{}\n)\nPARTITIONED BY (`{PARTITION}` string)\nROW FORMAT SERDE '{SERDE}'\n\
         WITH SERDEPROPERTIES (\n{}\n)\nSTORED AS INPUTFORMAT 'org.apache.hadoop.mapred.TextInputFormat'\n\
         OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'\nLOCATION '{}'\nTBLPROPERTIES (\n{}\n)\n",
        table.database,
        table.name,
        columns.join(",\n"),
        pairs(SERDE_PROPERTIES.to_vec()),
        table.location,
        pairs(
            properties
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect()
        ),
    )
}

fn trino_ddl(table: &Table, properties: &[(String, String)]) -> String {
    let mut columns: Vec<String> = COLUMNS
        .iter()
        .map(|(name, of)| format!("  \"{name}\" {}", trino_type(of)))
        .collect();
    let value = |key: &str| {
        properties
            .iter()
            .find(|(known, _)| known.ends_with(key))
            .map_or("", |(_, value)| value)
    };
    let range: Vec<String> = value(".range").split(',').map(literal).collect();
    columns.push(format!(
        "  {PARTITION} varchar WITH (\n    partition_projection_type = 'DATE',\n    partition_projection_format = {},\n    \
         partition_projection_range = ARRAY[{}],\n    partition_projection_interval = {},\n    \
         partition_projection_interval_unit = {}\n  )",
        literal(value(".format")),
        range.join(", "),
        value(".interval"),
        literal(value(".unit")),
    ));
    let (keys, values): (Vec<String>, Vec<String>) = SERDE_PROPERTIES
        .iter()
        .map(|(key, value)| (literal(key), literal(value)))
        .unzip();
    format!(
        "CREATE TABLE IF NOT EXISTS {} (\n{}\n)\nWITH (\n  format = 'OPENX_JSON',\n  external_location = {},\n  \
         partitioned_by = ARRAY['{PARTITION}'],\n  partition_projection_enabled = true,\n  \
         partition_projection_location_template = {},\n  extra_properties = MAP(ARRAY[{}], ARRAY[{}])\n)\n",
        table.quoted(),
        columns.join(",\n"),
        literal(&table.location),
        literal(value("template")),
        keys.join(", "),
        values.join(", "),
    )
}

/// One of Hive's types as Trino calls it.
fn trino_type(hive: &str) -> String {
    if let Some(of) = hive.strip_prefix("array<").and_then(|rest| rest.strip_suffix('>')) {
        return format!("array({})", trino_type(of));
    }
    let Some(fields) = hive.strip_prefix("struct<").and_then(|rest| rest.strip_suffix('>')) else {
        return match hive {
            "string" => "varchar",
            "int" => "integer",
            other => other,
        }
        .to_owned();
    };
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in fields.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&fields[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&fields[start..]);
    let parts: Vec<String> = parts
        .iter()
        .filter_map(|part| part.split_once(':'))
        .map(|(name, of)| format!("\"{name}\" {}", trino_type(of)))
        .collect();
    format!("row({})", parts.join(", "))
}

/// The query whose rows are the cells of a tally: `client`, `rule`, `minute` (since 1970), `hits` and `detail`.
///
/// # Errors
/// When the policy is too long for Athena.
pub fn sql(policy: &Policy, rules: Rules, table: &Table, period: Period) -> Result<String, Unsayable> {
    let query = Query::new(policy, rules).write(table, period);
    if query.len() > QUERY_BYTES_MAX {
        return Err(Unsayable::TooLong(query.len()));
    }
    Ok(query)
}

/// A text as SQL says it, whatever is in it.
pub fn literal(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    // Some clients end a query at a NUL, and a line break in a pattern should not look like one in the query.
    let mut quoted = String::from("U&'");
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// ASCII letters in lower case, and no others: `lower` would find a Kelvin sign in `k`.
fn lower(text: &str) -> String {
    format!("translate({text}, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz')")
}

/// What `str::trim` trims (Unicode's White_Space) inside a character class.
const SPACE: &str = "\\s\\x0B\u{85}\u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}";
/// A port: up to 65535, with any number of zeros before it.
const PORT: &str =
    "0*(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9][0-9]|6[0-4][0-9][0-9][0-9]|[1-5]?[0-9]?[0-9]?[0-9]?[0-9])";
/// What an IPv6 address is made of; whether it is one, the cast says.
const V6: &str = "[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*";

/// 2015 to 2100: what passes for a time in milliseconds, as [`ingest`] has it.
const TIMES_MS: (i64, i64) = (1_420_070_400_000, 4_102_444_800_000);

/// An IPv4 address among hexadecimal digits begins so (RFC 4291, section 2.5.5.2).
const V4_DIGITS: &str = "00000000000000000000FFFF";

/// What is asked, and the columns it takes.
struct Query<'p> {
    policy: &'p Policy,
    rules: Vec<(usize, &'p Rule)>,
    everything: bool,
    /// The headers that are looked at, by their place in the columns' names.
    headers: BTreeMap<String, usize>,
    /// Fields as they were logged.
    raw: BTreeSet<Field>,
    /// Fields with their letters in lower case.
    lowered: BTreeSet<Field>,
}

/// The traits of [`Trait`] as fields, in its order.
const TRAITS: [Field; Trait::ALL.len()] = [Field::Uri, Field::Ja4, Field::Country, Field::UserAgent];

impl<'p> Query<'p> {
    fn new(policy: &'p Policy, rules: Rules) -> Query<'p> {
        let asked = policy.rules.iter().enumerate().filter(|(_, rule)| rules.holds(rule));
        let mut query = Query {
            policy,
            rules: asked.collect(),
            everything: rules == Rules::All,
            headers: BTreeMap::new(),
            raw: BTreeSet::new(),
            lowered: BTreeSet::new(),
        };
        let mut lowered = BTreeSet::from([Field::Action, Field::WafRule]);
        if !policy.ours.label.is_empty() {
            lowered.insert(Field::Label);
        }
        for (_, rule) in &query.rules {
            let conditions = rule.matches.conditions.iter();
            let unless = rule.unless.iter().flat_map(|unless| &unless.conditions);
            lowered.extend(conditions.chain(unless).map(|(field, _)| field.clone()));
            query.raw.extend(rule.distinct.clone());
        }
        if query.sampled() {
            query.raw.extend(TRAITS);
        }
        for field in lowered.iter().chain(&query.raw) {
            if let Field::Header(name) = field {
                let next = query.headers.len();
                query.headers.entry(name.clone()).or_insert(next);
            }
        }
        query.lowered = lowered;
        query
    }

    /// Whether the alert about crowds needs a sample of each minute.
    fn sampled(&self) -> bool {
        self.everything && self.policy.crowd.is_some()
    }

    fn write(&self, table: &Table, period: Period) -> String {
        let (first, last, _) = table.layout.partitions(period);
        let Period { from_ms, to_ms } = period;
        let (low_ms, high_ms) = TIMES_MS;
        let mut sql = String::new();
        let _ = write!(
            sql,
            "-- Counts what a policy of Palisade counts: a row for each client, rule and minute with hits.\n\
             -- Clients that cannot reach any limit stay where they are.\n\
             WITH records AS (\n  SELECT\n    \"timestamp\" AS ms,\n    {} AS peer",
            self.peer(),
        );
        let mut address = "peer";
        if let IpSource::Header { name, trusted_hops } = &self.policy.client.ip {
            let _ = write!(sql, ",\n    {} AS hop", hop(name, *trusted_hops));
            address = "hop";
        }
        for field in self.raw.union(&self.lowered) {
            let _ = write!(sql, ",\n    {} AS {}", self.value(field), self.column(field));
        }
        let _ = write!(
            sql,
            "\n  FROM {}\n  WHERE {PARTITION} >= {} AND {PARTITION} <= {}\n),\n\
             requests AS (\n  SELECT\n    \
             CASE WHEN readable THEN ms / 60000 END AS minute,\n    \
             CASE WHEN readable THEN {} END AS client,\n    ms, readable, action_lower = 'allow' AS allowed,\n    \
             coalesce(action_lower <> 'allow' AND ({}), false) AS ours",
            table.quoted(),
            literal(&first),
            literal(&last),
            network(address, self.policy.client.ipv6_prefix),
            self.ours(),
        );
        for (index, rule) in self.counting() {
            let _ = write!(sql, ",\n    coalesce({}, false) AS rule_{index}", self.counts(rule));
            if let Some(field) = &rule.distinct {
                let column = self.column(field);
                let hashes = match many(field) {
                    true => format!("transform({column}, v -> {})", hashed("v")),
                    false => format!("filter(ARRAY[{}], v -> v IS NOT NULL)", hashed(column.as_str())),
                };
                let _ = write!(sql, ",\n    {hashes} AS values_{index}");
            }
        }
        if self.sampled() {
            let looks = TRAITS.map(|field| format!("coalesce({}, '')", self.column(&field)));
            let hashes = looks.clone().map(|look| hashed(&look));
            let _ = write!(
                sql,
                ",\n    ARRAY[{}] AS looks,\n    concat({}) AS look",
                looks.join(", "),
                hashes.join(", ")
            );
        }
        let _ = write!(
            sql,
            "\n  FROM (\n    SELECT *,\n      coalesce(ms >= {low_ms} AND ms < {high_ms} AND peer IS NOT NULL, false) AS readable"
        );
        for field in &self.lowered {
            let column = self.column(field);
            let value = match many(field) {
                true => format!("transform({column}, v -> {})", lower("v")),
                false => lower(&column),
            };
            let _ = write!(sql, ",\n      {value} AS {}", self.lower_column(field));
        }
        let _ = write!(
            sql,
            "\n    FROM records\n  ) AS r\n  WHERE NOT readable OR (ms >= {from_ms} AND ms < {to_ms})\n),\n\
             cells AS (\n  SELECT\n    client, minute, count(*) AS everything, min(ms) AS first_ms, max(ms) AS last_ms,\n    \
             count_if(ours) AS ours, count_if(NOT ours) AS requests, count_if(NOT ours AND NOT allowed) AS refused",
        );
        for (index, rule) in self.counting() {
            let _ = write!(sql, ",\n    count_if(NOT ours AND rule_{index}) AS rule_{index}");
            if rule.distinct.is_some() {
                let _ = write!(
                    sql,
                    ",\n    slice(array_sort(array_distinct(flatten(array_agg(values_{index}) FILTER (WHERE NOT ours AND rule_{index})))), 1, {DISTINCT_MAX}) AS values_{index}"
                );
            }
        }
        if self.sampled() {
            sql.push_str(",\n    min_by(looks, look) FILTER (WHERE NOT ours) AS looks");
        }
        let _ = write!(
            sql,
            "\n  FROM requests\n  GROUP BY client, minute\n),\n\
             windows AS (\n  SELECT *,\n    {} AS reached,\n    \
             row_number() OVER (PARTITION BY client ORDER BY minute) = 1 AS is_first\n  FROM cells\n),\n\
             seen AS (\n  SELECT *,\n    client IS NOT NULL AND bool_or(reached) OVER (PARTITION BY client) AS matters,\n    \
             row_number() OVER (PARTITION BY minute ORDER BY client IS NULL OR requests = 0, {}, client) AS nth",
            self.reached(),
            client_hash("client"),
        );
        let sums: Vec<(&str, &str, &str)> = self.sums();
        for (name, of, _) in &sums {
            let _ = write!(sql, ",\n    {of} OVER (PARTITION BY minute) AS {name}");
        }
        sql.push_str("\n  FROM windows\n)\nSELECT\n  CASE WHEN n < 0 THEN NULL ELSE ");
        sql.push_str("CAST(CAST(from_hex(rpad(client, 32, '0')) AS ipaddress) AS varchar) END AS client,\n  rule, minute, hits, detail\nFROM (\n  SELECT client, minute, n, rule,\n    CASE n");
        let mut names: Vec<(i64, String)> = Vec::new();
        let mut details: Vec<(i64, String)> = Vec::new();
        for (at, (name, _, row)) in sums.iter().enumerate() {
            let n = -1 - at as i64;
            let _ = write!(sql, "\n      WHEN {n} THEN CASE WHEN nth = 1 THEN {name} END");
            names.push((n, (*row).to_owned()));
        }
        let mut of_client = vec![(0, row::REQUESTS.to_owned(), "requests".to_owned())];
        if self.everything {
            of_client.push((1, row::REFUSED.to_owned(), "refused".to_owned()));
            of_client.push((2, row::OURS.to_owned(), "ours".to_owned()));
        }
        for (index, rule) in self.counting() {
            let n = 3 + index as i64;
            of_client.push((n, rule.name.clone(), format!("rule_{index}")));
            if rule.distinct.is_some() {
                details.push((n, format!("array_join(values_{index}, '')")));
            }
        }
        for (n, name, column) in of_client {
            let _ = write!(sql, "\n      WHEN {n} THEN CASE WHEN matters THEN {column} END");
            names.push((n, name));
        }
        if self.sampled() {
            // Behind the slots of rules, of which there are fewer than this.
            let n = 100_000;
            let _ = write!(
                sql,
                "\n      WHEN {n} THEN CASE WHEN nth <= {SAMPLE_MAX} AND client IS NOT NULL THEN requests END"
            );
            names.push((n, row::SAMPLE.to_owned()));
            details.push((
                n,
                "array_join(transform(looks, v -> to_hex(to_utf8(v))), ',')".to_owned(),
            ));
        }
        sql.push_str("\n    END AS hits,\n    CASE n");
        for (n, detail) in &details {
            let _ = write!(sql, "\n      WHEN {n} THEN {detail}");
        }
        let names: Vec<String> = names
            .iter()
            .map(|(n, name)| format!("({n}, {})", literal(name)))
            .collect();
        let _ = write!(
            sql,
            "\n      WHEN 1000000 THEN ''\n    END AS detail\n  FROM seen\n  CROSS JOIN (VALUES {}) AS slots (n, rule)\n  WHERE matters OR nth <= {}\n) AS counted\nWHERE hits > 0\n",
            names.join(", "),
            if self.sampled() { SAMPLE_MAX } else { 1 },
        );
        sql
    }

    /// The sums of each minute: the column, what it sums, and the row that it becomes.
    fn sums(&self) -> Vec<(&'static str, &'static str, &'static str)> {
        let mut sums = vec![
            (
                "sum_read",
                "sum(CASE WHEN minute IS NOT NULL THEN everything ELSE 0 END)",
                row::READ,
            ),
            (
                "sum_unreadable",
                "sum(CASE WHEN minute IS NULL THEN everything ELSE 0 END)",
                row::UNREADABLE,
            ),
            (
                "sum_unattributed",
                "sum(CASE WHEN minute IS NOT NULL AND client IS NULL THEN everything ELSE 0 END)",
                row::UNATTRIBUTED,
            ),
            (
                "first_of_all",
                "min(CASE WHEN minute IS NOT NULL THEN first_ms END)",
                row::FIRST_MS,
            ),
            (
                "last_of_all",
                "max(CASE WHEN minute IS NOT NULL THEN last_ms END)",
                row::LAST_MS,
            ),
        ];
        if self.everything {
            sums.extend([
                (
                    "sum_requests",
                    "sum(CASE WHEN client IS NOT NULL THEN requests ELSE 0 END)",
                    row::REQUESTS,
                ),
                (
                    "sum_allowed",
                    "sum(CASE WHEN client IS NOT NULL THEN requests - refused ELSE 0 END)",
                    row::ALLOWED,
                ),
                (
                    "sum_clients",
                    "sum(CASE WHEN client IS NOT NULL AND is_first THEN 1 ELSE 0 END)",
                    row::CLIENTS,
                ),
            ]);
        }
        sums
    }

    /// The rules that have cells of their own.
    fn counting(&self) -> impl Iterator<Item = (usize, &'p Rule)> {
        self.rules.iter().copied().filter(|(_, rule)| !rule.counts_everything())
    }

    /// Whether the window that ends here reaches a limit. Where distinct values are counted, one that is seen in several
    /// minutes counts several times, so that more clients travel back than matter, and never one too few.
    fn reached(&self) -> String {
        let windows: Vec<String> = self
            .rules
            .iter()
            .map(|(index, rule)| {
                let count = match (rule.counts_everything(), rule.distinct.is_some()) {
                    (true, _) => "requests".to_owned(),
                    (_, false) => format!("rule_{index}"),
                    (_, true) => format!("coalesce(cardinality(values_{index}), 0)"),
                };
                format!(
                    "sum({count}) OVER (PARTITION BY client ORDER BY minute RANGE BETWEEN {} PRECEDING AND CURRENT ROW) >= {}",
                    rule.window.0.saturating_sub(1),
                    rule.limit
                )
            })
            .collect();
        if windows.is_empty() {
            "false".to_owned()
        } else {
            windows.join("\n      OR ")
        }
    }

    /// The address that connected, as 32 hexadecimal digits, if it is one.
    fn peer(&self) -> String {
        let text = "httprequest.clientip";
        address_digits(&[
            format!("regexp_extract({text}, '^[{SPACE}]*([0-9A-Fa-f:.]+)[{SPACE}]*$', 1)"),
            format!("regexp_extract({text}, '^[{SPACE}]*({V6})%.*$', 1)"),
        ])
    }

    /// Whether our own rules stopped a request that was not allowed.
    fn ours(&self) -> String {
        let ours = &self.policy.ours;
        let mut either = Vec::new();
        if !ours.waf_rule.is_empty() {
            either.push(any("waf_rule_lower", &ours.waf_rule));
        }
        if !ours.label.is_empty() {
            either.push(format!(
                "coalesce(cardinality(filter(label_lower, v -> {})), 0) > 0",
                any("v", &ours.label)
            ));
        }
        if either.is_empty() {
            "false".to_owned()
        } else {
            either.join(" OR ")
        }
    }

    fn counts(&self, rule: &Rule) -> String {
        let matches = self.matches(&rule.matches);
        match &rule.unless {
            None => matches,
            Some(unless) => format!("{matches} AND NOT coalesce({}, false)", self.matches(unless)),
        }
    }

    fn matches(&self, wanted: &Match) -> String {
        let conditions: Vec<String> = wanted
            .conditions
            .iter()
            .map(|(field, patterns)| {
                let column = self.lower_column(field);
                match many(field) {
                    true => format!("cardinality(filter({column}, v -> {})) > 0", any("v", patterns)),
                    false => any(&column, patterns),
                }
            })
            .collect();
        if conditions.is_empty() {
            "true".to_owned()
        } else {
            format!("({})", conditions.join(" AND "))
        }
    }

    /// What a record says in this field, NULL where it says nothing: as `ingest` reads it.
    fn value(&self, field: &Field) -> String {
        let named = |text: &str| format!("nullif(nullif({text}, ''), '-')");
        match field {
            Field::Action => "coalesce(action, '')".to_owned(),
            Field::WafRule => "coalesce(terminatingruleid, '')".to_owned(),
            Field::Label => "transform(filter(labels, v -> v.name IS NOT NULL), v -> v.name)".to_owned(),
            Field::Method => "coalesce(httprequest.httpmethod, '')".to_owned(),
            Field::Host => format!(
                "coalesce(nullif(httprequest.host, ''), nullif(element_at({}, 1), ''))",
                header_values("host")
            ),
            Field::Uri => "coalesce(httprequest.uri, '')".to_owned(),
            Field::Args => "coalesce(httprequest.args, '')".to_owned(),
            Field::UserAgent => format!("element_at({}, 1)", header_values("user-agent")),
            Field::Header(name) => header_values(name),
            Field::Country => named("httprequest.country"),
            Field::Ja3 => named("ja3fingerprint"),
            Field::Ja4 => named("ja4fingerprint"),
            Field::ResponseCode => "CASE WHEN try_cast(responsecodesent AS integer) BETWEEN 0 AND 65535 \
                THEN CAST(try_cast(responsecodesent AS integer) AS varchar) END"
                .to_owned(),
        }
    }

    fn column(&self, field: &Field) -> String {
        match field {
            Field::Header(name) => format!("header_{}", self.headers.get(name).copied().unwrap_or_default()),
            // Their names alone are those of the table's own columns.
            field => format!("{field}_raw"),
        }
    }

    fn lower_column(&self, field: &Field) -> String {
        match field {
            Field::Header(_) => format!("{}_lower", self.column(field)),
            field => format!("{field}_lower"),
        }
    }
}

/// Whether a record may have several values of a field.
fn many(field: &Field) -> bool {
    matches!(field, Field::Label | Field::Header(_))
}

/// Every value of a header, in order.
fn header_values(name: &str) -> String {
    format!(
        "transform(filter(httprequest.headers, h -> {} = {} AND h.value IS NOT NULL), h -> h.value)",
        lower("h.name"),
        literal(name)
    )
}

/// Whether a text in lower case, or NULL, is matched by any of the patterns.
fn any(text: &str, patterns: &[Pattern]) -> String {
    let mut tests: Vec<String> = Vec::new();
    let equal: BTreeSet<String> = patterns.iter().filter_map(Pattern::literal).map(literal).collect();
    match equal.len() {
        0 => {}
        1 => tests.extend(equal.iter().map(|one| format!("{text} = {one}"))),
        _ => tests.push(format!(
            "{text} IN ({})",
            equal.into_iter().collect::<Vec<_>>().join(", ")
        )),
    }
    let like: BTreeSet<String> = patterns
        .iter()
        .filter(|pattern| pattern.literal().is_none())
        .map(|pattern| {
            let mut like = String::new();
            for c in pattern.as_str().to_ascii_lowercase().chars() {
                match c {
                    '*' => like.push('%'),
                    '%' | '_' | '!' => like.extend(['!', c]),
                    c => like.push(c),
                }
            }
            format!("{text} LIKE {} ESCAPE '!'", literal(&like))
        })
        .collect();
    tests.extend(like);
    match tests.as_slice() {
        [] => "false".to_owned(),
        [one] => one.clone(),
        _ => format!("({})", tests.join(" OR ")),
    }
}

/// The first of these texts that is an address, as 32 hexadecimal digits.
fn address_digits(texts: &[String]) -> String {
    let casts: Vec<String> = texts
        .iter()
        .map(|text| format!("try_cast({text} AS ipaddress)"))
        .collect();
    let address = match casts.as_slice() {
        [one] => one.clone(),
        _ => format!("coalesce({})", casts.join(", ")),
    };
    format!("to_hex(CAST({address} AS varbinary))")
}

/// The address at a trusted hop: see `client::parse_hop`, which this repeats form by form.
fn hop(header: &str, trusted_hops: usize) -> String {
    let hop = format!(
        "element_at(split(array_join({}, ','), ','), -{trusted_hops})",
        header_values(header)
    );
    let (open, close) = (format!("^[{SPACE}]*\"*"), format!("\"*[{SPACE}]*$"));
    address_digits(&[
        format!("regexp_extract({hop}, '{open}([0-9A-Fa-f:.]+){close}', 1)"),
        format!("regexp_extract({hop}, '{open}([0-9.]+):{PORT}{close}', 1)"),
        format!("regexp_extract({hop}, '{open}\\[({V6})(?:%[^\\]]*)?\\].*$', 1)"),
        format!("regexp_extract({hop}, '{open}({V6})%.*$', 1)"),
        format!("regexp_extract({hop}, '{open}({V6}):\\+?{PORT}{close}', 1)"),
    ])
}

/// The network of an address, both in hexadecimal digits: all 32 of an IPv4 address, of an IPv6 address those of its prefix.
fn network(address: &str, prefix: u8) -> String {
    let (whole, bits) = (prefix / 4, prefix % 4);
    let mut digits = format!("substr({address}, 1, {whole})");
    if bits > 0 {
        let masked: String = (0..16u8)
            .map(|digit| format!("{:X}", digit & (0xf0u8 >> bits)))
            .collect();
        digits = format!(
            "concat({digits}, translate(substr({address}, {}, 1), '0123456789ABCDEF', '{masked}'))",
            whole + 1
        );
    }
    if prefix == 128 {
        return address.to_owned();
    }
    format!("CASE WHEN substr({address}, 1, 24) = '{V4_DIGITS}' THEN {address} ELSE {digits} END")
}

/// By which the clients of a minute are sampled: the hash of the octets of the network, four or sixteen.
fn client_hash(client: &str) -> String {
    format!(
        "to_hex(xxhash64(from_hex(CASE WHEN substr({client}, 1, 24) = '{V4_DIGITS}' AND length({client}) = 32 \
         THEN substr({client}, 25) ELSE rpad({client}, 32, '0') END)))"
    )
}

/// The hash of a text, as 16 hexadecimal digits, whose order is that of the numbers.
fn hashed(text: &str) -> String {
    format!("to_hex(xxhash64(to_utf8({text})))")
}

/// A row of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// The address of the client's network, or nobody: a sum over everybody.
    pub client: Option<String>,
    /// A rule's name, or what else was counted, in parentheses.
    pub rule: String,
    /// Minutes since 1970.
    pub minute: Option<i64>,
    /// How many.
    pub hits: i64,
    /// The hashes of distinct values, or what a sampled client's requests looked like.
    pub detail: Option<String>,
}

/// What the rows of an answer say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// The cells of all clients that can still matter, and the sums of every minute.
    pub tally: Tally,
    /// Requests in the period.
    pub requests: u64,
    /// Clients in the period, also those that stayed behind.
    pub clients: u64,
    /// Records without a time or a client, and perhaps lines that are no JSON: not every engine hands those on.
    pub unreadable: u64,
    /// The first and the last request's time, in milliseconds since 1970.
    pub times_ms: Option<(i64, i64)>,
}

/// A row that is none of ours: the answer to another query, or to one of another policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row `{0}` of the answer is not one that this policy's query gives")]
pub struct StrangeRow(pub String);

impl Counts {
    /// Takes in the answer to [`sql`] for the same policy and rules. The order of rows does not matter.
    ///
    /// # Errors
    /// When a row is none that the query gives.
    pub fn of(policy: &Policy, rules: Rules, rows: impl IntoIterator<Item = Row>) -> Result<Counts, StrangeRow> {
        let mut counts = Counts::default();
        let by_name: BTreeMap<&str, usize> = policy
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| (rule.name.as_str(), index))
            .collect();
        let engine = match rules {
            Rules::All => Engine::Scan,
            Rules::Athena => Engine::Athena,
        };
        let mut attributed: Option<(Minute, Minute)> = None;
        let mut read: BTreeMap<Minute, i64> = BTreeMap::new();
        for row in rows {
            let strange = || StrangeRow(format!("{row:?}"));
            let hits = u64::try_from(row.hits).map_err(|_| strange())?;
            let minute = match row.minute {
                None if row.rule == row::UNREADABLE && row.client.is_none() => {
                    counts.unreadable += hits;
                    continue;
                }
                minute => minute
                    .and_then(|minute| u32::try_from(minute).ok())
                    .map(Minute)
                    .ok_or_else(strange)?,
            };
            let Some(client) = &row.client else {
                match row.rule.as_str() {
                    row::READ => {
                        counts.requests += hits;
                        *read.entry(minute).or_default() += row.hits;
                    }
                    row::UNATTRIBUTED => {
                        counts.tally.unattributed += hits;
                        *read.entry(minute).or_default() -= row.hits;
                    }
                    row::CLIENTS => counts.clients += hits,
                    row::REQUESTS => counts.totals(minute).requests += hits,
                    row::ALLOWED => counts.totals(minute).allowed += hits,
                    row::FIRST_MS | row::LAST_MS => {
                        let (first, last) = counts.times_ms.unwrap_or((row.hits, row.hits));
                        counts.times_ms = Some((first.min(row.hits), last.max(row.hits)));
                    }
                    _ => return Err(strange()),
                }
                continue;
            };
            let client = read_client(client, policy.client.ipv6_prefix).ok_or_else(strange)?;
            let slot = match row.rule.as_str() {
                row::SAMPLE => {
                    let looks = read_looks(row.detail.as_deref().unwrap_or_default()).ok_or_else(strange)?;
                    let Counts { tally, .. } = &mut counts;
                    let totals = tally.minutes.entry(minute).or_default();
                    totals
                        .sample
                        .sight(client, hits, looks.each_ref().map(String::as_str), &mut tally.texts);
                    continue;
                }
                row::REQUESTS => Slot::REQUESTS,
                row::REFUSED => Slot::REFUSED,
                row::OURS => Slot::OURS,
                name => {
                    let index = *by_name.get(name).ok_or_else(strange)?;
                    Slot::of_rule(index, &policy.rules[index])
                }
            };
            let slot = slot.counted_by(engine);
            let cells = counts.tally.clients.entry(client).or_default();
            cells.add(slot, minute, u32::try_from(hits).unwrap_or(u32::MAX));
            let hashes = row.detail.as_deref().unwrap_or_default();
            for at in (0..hashes.len()).step_by(16) {
                let digits = hashes.get(at..at + 16).ok_or_else(strange)?;
                let hash = u64::from_str_radix(digits, 16).map_err(|_| strange())?;
                cells.add_value(Value { slot, minute, hash });
            }
        }
        for (minute, left) in read {
            if left > 0 {
                let (first, last) = attributed.unwrap_or((minute, minute));
                attributed = Some((first.min(minute), last.max(minute)));
            }
        }
        // The query lets a few too many clients through, and a tally of all clients would lose them before it is judged.
        let left_out = attributed;
        let policy = match rules {
            Rules::All => &policy.counted_by_one_engine(),
            Rules::Athena => policy,
        };
        counts.tally = counts.tally.suspects(policy);
        counts.tally.left_out = left_out;
        Ok(counts)
    }

    fn totals(&mut self, minute: Minute) -> &mut MinuteTotals {
        self.tally.minutes.entry(minute).or_default()
    }
}

fn read_client(address: &str, ipv6_prefix: u8) -> Option<Client> {
    address
        .parse::<IpAddr>()
        .ok()
        .map(|address| Client::of(address, ipv6_prefix))
}

fn read_looks(detail: &str) -> Option<[String; Trait::ALL.len()]> {
    let mut looks: Vec<String> = Vec::new();
    for digits in detail.split(',') {
        let octets: Option<Vec<u8>> = (0..digits.len())
            .step_by(2)
            .map(|at| {
                digits
                    .get(at..at + 2)
                    .and_then(|octet| u8::from_str_radix(octet, 16).ok())
            })
            .collect();
        looks.push(String::from_utf8_lossy(&octets?).into_owned());
    }
    looks.try_into().ok()
}

#[cfg(test)]
mod tests {
    use ingest::object_key;
    use proptest::prelude::*;

    use super::*;

    const NOON_MS: i64 = 1_793_534_400_000; // 2026-11-01 12:00:00

    fn table(layout: Layout) -> Table {
        Table {
            database: "palisade".into(),
            name: "waf_logs".into(),
            location: "s3://aws-waf-logs-x/waf/".into(),
            layout,
        }
    }

    #[test]
    fn no_more_partitions_are_named_than_may_hold_the_period() {
        let minutes = |from: i64, to: i64| Period {
            from_ms: NOON_MS + from * 60_000,
            to_ms: NOON_MS + to * 60_000,
        };
        for (layout, period, first, last, count) in [
            (Layout::Firehose, minutes(0, 60), "2026/11/01/11", "2026/11/01/13", 3),
            (Layout::Firehose, minutes(15, 30), "2026/11/01/12", "2026/11/01/13", 2),
            (
                Layout::Direct,
                minutes(0, 60),
                "2026/11/01/11/40",
                "2026/11/01/13/55",
                28,
            ),
            (
                Layout::Direct,
                minutes(1, 2),
                "2026/11/01/11/45",
                "2026/11/01/13/00",
                16,
            ),
            (
                Layout::Firehose,
                minutes(-30 * 1440, 0),
                "2026/10/02/11",
                "2026/11/01/12",
                722,
            ),
        ] {
            assert_eq!(layout.partitions(period), (first.to_owned(), last.to_owned(), count));
            // The folders on either side are those whose objects the scan would leave out.
            let holds = |folder: &str, name: &str| {
                let key = format!("AWSLogs/1/WAFLogs/us-east-1/api/{folder}/{name}");
                let to_s = period.to_ms.div_euclid(1000);
                object_key::parse(&key).may_hold(Some(period.from_ms.div_euclid(1000)), Some(to_s))
            };
            if layout == Layout::Direct {
                assert!(holds(first, "x") && holds(last, "x"), "{first} {last}");
                let parse = |text: &str| {
                    chrono::NaiveDateTime::parse_from_str(text, layout.format())
                        .unwrap()
                        .and_utc()
                };
                let before = layout.folder(parse(first).timestamp() - 300);
                let after = layout.folder(parse(last).timestamp() + 300);
                assert!(!holds(&before, "x") && !holds(&after, "x"), "{before} {after}");
            }
        }
    }

    #[test]
    fn a_definition_takes_no_place_or_name_that_could_say_more() {
        let since = Minute::of_ms(NOON_MS + 7 * 60_000);
        for dialect in [Dialect::Athena, Dialect::Trino] {
            for location in [
                "s3://b/'x/",
                "s3://b/${y}/",
                "s3://b/x",
                "b/x/",
                "s3://b/\n/",
                "s3://b\"/",
            ] {
                let table = Table {
                    location: location.into(),
                    ..table(Layout::Firehose)
                };
                assert!(ddl(&table, since, dialect).is_err(), "{location}");
            }
            for name in ["", "x`y", "x y", "X", "x'"] {
                let table = Table {
                    name: name.into(),
                    ..table(Layout::Firehose)
                };
                assert!(ddl(&table, since, dialect).is_err(), "{name}");
            }
        }
        // Steps are counted from the beginning, so it is one at which a folder begins.
        assert!(
            ddl(&table(Layout::Direct), since, Dialect::Athena)
                .unwrap()
                .contains("'2026/11/01/12/05,NOW'")
        );
        assert!(
            ddl(&table(Layout::Firehose), since, Dialect::Athena)
                .unwrap()
                .contains("'2026/11/01/12,NOW'")
        );
    }

    #[test]
    fn a_row_that_no_query_of_ours_gives_is_refused() {
        let policy = Policy::default_policy();
        let good = Row {
            client: Some("192.0.2.1".into()),
            rule: "(requests)".into(),
            minute: Some(29_892_240),
            hits: 3,
            detail: None,
        };
        assert!(Counts::of(&policy, Rules::All, [good.clone()]).is_ok());
        for strange in [
            Row {
                client: Some("somebody".into()),
                ..good.clone()
            },
            Row {
                rule: "no-such-rule".into(),
                ..good.clone()
            },
            Row {
                minute: None,
                ..good.clone()
            },
            Row {
                minute: Some(-1),
                ..good.clone()
            },
            Row {
                hits: -3,
                ..good.clone()
            },
            Row {
                client: None,
                rule: "login-brute-force".into(),
                ..good.clone()
            },
            Row {
                detail: Some("0123".into()),
                ..good.clone()
            },
            Row {
                detail: Some("zzzzzzzzzzzzzzzz".into()),
                ..good.clone()
            },
            Row {
                rule: "(sample)".into(),
                detail: Some("00,00".into()),
                ..good.clone()
            },
        ] {
            assert!(
                Counts::of(&policy, Rules::All, [strange.clone()]).is_err(),
                "{strange:?}"
            );
        }
    }

    /// The query without its strings. Fails where a string does not end.
    fn skeleton(sql: &str) -> String {
        let mut rest = sql;
        let mut bare = String::new();
        while let Some((before, string)) = rest.split_once('\'') {
            bare.push_str(before);
            let mut at = 0;
            loop {
                at += string[at..].find('\'').expect("every string ends") + 1;
                if !string[at..].starts_with('\'') {
                    break;
                }
                at += 1;
            }
            bare.push('?');
            rest = &string[at..];
        }
        bare + rest
    }

    proptest! {
        #[test]
        fn hostile_text_stays_text(texts in proptest::collection::vec("(INJECTED|[\\x00-\\x1f'\"`;\\\\%_!*-]|--|/\\*|\\$\\{|é|🦀|U&){0,8}", 4)) {
            // TOML's strings are JSON's, but for DEL.
            let toml = |text: &str| serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f");
            let policy = format!(
                "[client]\nip = {{ header = {}, trusted_hops = 1 }}\n[ours]\nwaf_rule = [{}]\n[[rule]]\nname = \"x\"\nwhy = {}\nlimit = 1\nwindow = \"5m\"\n\
                 match = {{ uri = [{}, \"a\"], {} = \"*\" }}\nunless = {{ label = {} }}\ndistinct = {}\n",
                toml(&texts[0]), toml(&texts[1]), toml(&format!("why {}", texts[2])), toml(&texts[2]),
                toml(&format!("header.x{}", texts[3])), toml(&texts[3]), toml(&format!("header.y{}", texts[1])),
            );
            let policy = Policy::parse(&policy).unwrap();
            let period = Period { from_ms: NOON_MS, to_ms: NOON_MS + 60_000 };
            let sql = sql(&policy, Rules::All, &table(Layout::Firehose), period).unwrap();
            let bare = skeleton(&sql);
            prop_assert!(!bare.contains("INJECTED") && !bare.contains("injected"), "{}", sql);
            prop_assert!(bare.chars().all(|c| c == '\n' || !c.is_control()), "{}", sql);
        }
    }
}
