//! The same policy counted by two engines: what Palisade's own scan counts, and what its SQL counts on a real Trino server
//! and on the AWS stand-in's Athena, cell by cell.

mod corpus;
mod trino;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use analyzer::athena::{self, Counts, Dialect, Layout, Period, Row, Rules, Table};
use analyzer::{Minute, Policy, Tally};
use aws_config::SdkConfig;
use flate2::{Compression, write::GzEncoder};
use palisade::athena::{Athena, AthenaError};
use palisade::place::s3_client;
use palisade::traffic;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::aws::{Api, StandIn, unique};
use crate::browser::Browser;
use crate::page::data_of;
use corpus::{EVERYTHING, NOON_MS, policy, records};
use trino::Trino;

/// All of the corpus.
const ALL: Period = Period {
    from_ms: NOON_MS - 60_000,
    to_ms: NOON_MS + 3 * 3_600_000,
};

fn table(trino_or_s3: &str, name: &str, layout: Layout) -> Table {
    Table {
        database: "default".into(),
        name: name.into(),
        location: format!("{trino_or_s3}{name}/"),
        layout,
    }
}

/// The corpus as objects: a key below the prefix, and the bytes. Several members in one gzip file, as Firehose writes them.
fn objects(lines: &[String], layout: Layout) -> Vec<(String, Vec<u8>)> {
    let folders: &[&str] = match layout {
        Layout::Firehose => &["2026/11/01/12", "2026/11/01/13"],
        Layout::Direct => &["2026/11/01/12/05", "2026/11/01/12/55", "2026/11/01/13/40"],
    };
    let share = lines.len().div_ceil(folders.len());
    let gzip = |lines: &[String]| {
        let mut bytes = Vec::new();
        for part in lines.chunks(lines.len().div_ceil(2).max(1)) {
            let mut member = GzEncoder::new(&mut bytes, Compression::fast());
            part.iter().for_each(|line| writeln!(member, "{line}").unwrap());
            member.finish().unwrap();
        }
        bytes
    };
    let parts = lines.chunks(share).zip(folders);
    parts
        .map(|(lines, folder)| (format!("{folder}/waf-{}.gz", folder.len()), gzip(lines)))
        .collect()
}

/// What the scan makes of them.
fn scanned(policy: &Policy, objects: &[(String, Vec<u8>)], period: Period) -> (Tally, u64, u64) {
    let (mut tally, mut requests, mut skipped) = (Tally::default(), 0, 0);
    for (_, bytes) in objects {
        let scan = ingest::scan(bytes.as_slice(), |request| {
            if (period.from_ms..period.to_ms).contains(&request.timestamp_ms) {
                requests += 1;
                tally.count(policy, request);
            }
        });
        skipped += scan.skipped.total();
    }
    (tally, requests, skipped)
}

/// The counts of the SQL are those of the scan, as far as they can still matter.
fn compare(policy: &Policy, objects: &[(String, Vec<u8>)], period: Period, counts: &Counts, who: &str) {
    let (tally, requests, _) = scanned(policy, objects, period);
    let suspects = tally.suspects(policy);
    if let Err(difference) = suspects.differs(&counts.tally) {
        panic!("{who}: {difference}");
    }
    assert_eq!(
        (counts.requests, counts.clients),
        (requests, tally.clients() as u64),
        "{who}"
    );
    assert!(
        suspects.clients() > 0,
        "{who}: nobody is suspect, so nothing was compared"
    );
}

/// Only clients that can still matter travel back: all suspects, and hardly anybody else.
fn frugal(policy: &Policy, objects: &[(String, Vec<u8>)], period: Period, rows: &[Row], who: &str) {
    let (tally, ..) = scanned(policy, objects, period);
    let suspects = tally.suspects(policy);
    let travelled = rows
        .iter()
        .filter_map(|row| row.client.as_deref().filter(|_| row.rule == "(requests)"));
    let travelled = travelled.collect::<std::collections::BTreeSet<_>>().len();
    assert!(
        travelled < tally.clients() && travelled >= suspects.clients(),
        "{who}: {travelled} of {} clients travelled back for {} suspects",
        tally.clients(),
        suspects.clients()
    );
}

#[test]
fn trino_counts_what_the_scan_counts_cell_by_cell() {
    let Some(trino) = Trino::shared() else { return };
    let lines = records(7, 4_000);
    for (layout, name) in [(Layout::Firehose, "firehose"), (Layout::Direct, "direct")] {
        let objects = objects(&lines, layout);
        put(&trino.files().join(name), &objects);
        let table = table("local:///", name, layout);
        trino
            .run(&athena::ddl(&table, Minute::of_ms(NOON_MS - 86_400_000), Dialect::Trino).unwrap())
            .unwrap();
        let part = Period {
            from_ms: NOON_MS + 15 * 60_000 + 123,
            to_ms: NOON_MS + 65 * 60_000,
        };
        let checks: &[(&str, Period)] = match layout {
            Layout::Firehose => &[
                ("", ALL),
                (
                    "[client]\nip = { header = \"x-forwarded-for\", trusted_hops = 1 }\nipv6_prefix = 61",
                    ALL,
                ),
                (
                    "[client]\nip = { header = \"X-FORWARDED-FOR\", trusted_hops = 2 }\nipv6_prefix = 128",
                    ALL,
                ),
            ],
            Layout::Direct => &[("[client]\nipv6_prefix = 56", part)],
        };
        for (head, period) in checks {
            let policy = policy(head, EVERYTHING);
            let sql = athena::sql(&policy, Rules::All, &table, *period).unwrap();
            let (rows, who) = (trino.rows(&sql), format!("{name} {head}"));
            frugal(&policy, &objects, *period, &rows, &who);
            let counts = Counts::of(&policy, Rules::All, rows).unwrap();
            compare(&policy, &objects, *period, &counts, &who);
        }
    }
}

/// A bucket of the stand-in with these objects below `waf/`, and a table of them.
async fn bucket_of(aws: &StandIn, objects: &[(String, Vec<u8>)], layout: Layout) -> (SdkConfig, Table) {
    let config = aws.config("us-east-1");
    let s3 = s3_client(&config);
    let name = unique("aws-waf-logs-corpus");
    s3.create_bucket().bucket(&name).send().await.unwrap();
    // Another test may have made it.
    let _ = s3.create_bucket().bucket("results").send().await;
    let folders = match layout {
        Layout::Firehose => "waf/",
        Layout::Direct => "AWSLogs/111122223333/WAFLogs/us-east-1/api/",
    };
    for (key, bytes) in objects {
        let put = s3
            .put_object()
            .bucket(&name)
            .key(format!("{folders}{key}"))
            .body(bytes.clone().into());
        put.send().await.unwrap();
    }
    let table = Table {
        database: name.replace('-', "_"),
        name: "waf_logs".into(),
        location: format!("s3://{name}/{folders}"),
        layout,
    };
    (config, table)
}

fn never() -> impl Future<Output = &'static str> {
    std::future::pending()
}

fn asked(config: &SdkConfig) -> Athena {
    Athena::new(config, "primary", Some("s3://results/".into()))
}

#[tokio::test]
async fn athena_counts_what_the_scan_counts_through_its_api() {
    let Some(aws) = StandIn::shared() else { return };
    let lines = records(11, 2_500);
    for (layout, head) in [
        (Layout::Firehose, ""),
        (
            Layout::Direct,
            "[client]\nip = { header = \"x-forwarded-for\", trusted_hops = 1 }\nipv6_prefix = 61",
        ),
    ] {
        let objects = objects(&lines, layout);
        let (config, table) = bucket_of(aws, &objects, layout).await;
        let athena = asked(&config);
        let policy = policy(head, EVERYTHING);
        let missing = athena.count(&policy, Rules::All, &table, ALL, never()).await;
        assert!(matches!(missing, Err(AthenaError::NoTable(_))), "{missing:?}");
        define(&athena, &table).await;
        athena.check(&table).await.unwrap();
        let counted = athena.count(&policy, Rules::All, &table, ALL, never()).await.unwrap();
        let sql = athena::sql(&policy, Rules::All, &table, ALL).unwrap();
        let rows = athena.run(&table.database, &sql, never()).await.unwrap().rows.len();
        assert!(rows > 2_000, "{rows} rows are no three pages");
        let stored: usize = objects.iter().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(counted.scanned_bytes, stored as u64);
        compare(&policy, &objects, ALL, &counted.counts, "athena");
    }
}

async fn define(athena: &Athena, table: &Table) {
    let statement = athena::ddl(table, Minute::of_ms(NOON_MS - 86_400_000), Dialect::Athena).unwrap();
    let database = format!("CREATE DATABASE IF NOT EXISTS `{}`", table.database);
    athena.run("default", &database, never()).await.unwrap();
    assert!(
        athena
            .run(&table.database, &statement, never())
            .await
            .unwrap()
            .rows
            .is_empty()
    );
}

#[tokio::test]
async fn a_query_that_nobody_waits_for_is_cancelled() {
    let Some(aws) = StandIn::shared() else { return };
    let config = aws.config("us-east-1");
    let athena = asked(&config);
    let stop = async {
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        "Ctrl-C"
    };
    let given_up = athena.run("default", "-- sleeps\nSELECT 1", stop).await;
    let Err(AthenaError::GivenUp {
        id,
        reason: "Ctrl-C",
        scanned_bytes: 12_345_678,
    }) = given_up
    else {
        panic!("{given_up:?}")
    };
    let api = Api::new(aws, "us-east-1");
    let status = api.ok("athena", "get_query_execution", &json!({"QueryExecutionId": id}));
    assert_eq!(status["QueryExecution"]["Status"]["State"], "CANCELLED");
}

#[tokio::test]
async fn what_athena_refuses_is_said_in_words_that_help() {
    let Some(aws) = StandIn::shared() else { return };
    let api = Api::new(aws, "us-east-1");
    let objects = objects(&records(3, 200), Layout::Firehose);
    let (config, table) = bucket_of(aws, &objects, Layout::Firehose).await;
    let athena = asked(&config);
    define(&athena, &table).await;
    let run = async |workgroup: &str, results: Option<&str>, sql: &str| {
        let athena = Athena::new(&config, workgroup, results.map(str::to_owned));
        let error = athena.run(&table.database, sql, never()).await.unwrap_err();
        format!("{error}; {}", error.hint().unwrap_or_default())
    };
    let here = Some("s3://results/");
    for workgroup in ["throttles-2", "throttles-99"] {
        api.ok("athena", "create_work_group", &json!({"Name": workgroup}));
    }
    let patient = Athena::new(&config, "throttles-2", here.map(str::to_owned));
    assert_eq!(
        patient
            .run(&table.database, "SELECT 1 AS n", never())
            .await
            .unwrap()
            .rows,
        [[Some("1".to_owned())]]
    );
    let checks = [
        (run("primary", None, "SELECT 1").await, "--results"),
        (
            run("throttles-99", here, "SELECT 1").await,
            "Athena was asked too often",
        ),
        (run("nobody", here, "SELECT 1").await, "WorkGroup nobody is not found"),
        (
            run("primary", here, "SELECT 1 FROM elsewhere").await,
            "there is no table `awsdatacatalog.",
        ),
        (
            run("primary", here, "SELECT 1 FROM elsewhere").await,
            "palisade athena ddl --run",
        ),
        (
            run("primary", here, "SELECT nonsense FROM waf_logs").await,
            "failed: COLUMN_NOT_FOUND",
        ),
    ];
    for (said, expected) in checks {
        assert!(said.contains(expected), "{said}");
    }

    api.ok(
        "athena",
        "create_work_group",
        &json!({"Name": "small", "Configuration": {"BytesScannedCutoffPerQuery": 10_000_000}}),
    );
    let policy = Policy::default_policy();
    let small = Athena::new(&config, "small", here.map(str::to_owned));
    small.count(&policy, Rules::All, &table, ALL, never()).await.unwrap();
    // The least limit that Athena takes is ten megabytes.
    let s3 = s3_client(&config);
    let bucket = table.location.split('/').nth(2).unwrap();
    let large = s3
        .put_object()
        .bucket(bucket)
        .key("waf/2026/11/01/12/large")
        .body(vec![b' '; 10_100_000].into());
    large.send().await.unwrap();
    let too_much = small.count(&policy, Rules::All, &table, ALL, never()).await;
    assert!(
        matches!(&too_much, Err(AthenaError::TooMuch { workgroup, .. }) if workgroup == "small"),
        "{too_much:?}"
    );

    let other = Table {
        location: "s3://other/".into(),
        ..table
    };
    assert!(matches!(athena.check(&other).await, Err(AthenaError::OtherLogs { .. })));
    let nowhere = Table {
        name: "nowhere".into(),
        ..other
    };
    assert!(matches!(athena.check(&nowhere).await, Err(AthenaError::NoTable(_))));
}

/// Texts that mean something to SQL, and a little of everything else.
fn hostile(random: &mut ChaCha8Rng) -> String {
    const PARTS: &[&str] = &[
        "'", "''", "\"", "`", ";", "--", "/*", "*/", "\\", "\\'", "%", "_", "!", "!%", "*", "${x}", "U&'", "\n", "\t",
        "\0", "\u{7f}", "é", "🦀", "\u{2028}", " OR 1=1 ", "SELECT", "a", "Z", "0", "{{", "\\0041", "?",
    ];
    (0..random.random_range(0..7))
        .map(|_| PARTS[random.random_range(0..PARTS.len())])
        .collect()
}

/// A policy with every field, clause and kind of pattern by chance, whose texts are hostile.
fn random_policy(random: &mut ChaCha8Rng) -> Policy {
    // TOML's strings are JSON's, but for DEL.
    let quoted = |text: &str| json!(text).to_string().replace('\u{7f}', "\\u007f");
    const FIELDS: &[&str] = &[
        "action",
        "waf_rule",
        "label",
        "method",
        "host",
        "uri",
        "args",
        "user_agent",
        "country",
        "ja3",
        "ja4",
        "response_code",
    ];
    let field = |random: &mut ChaCha8Rng| match random.random_range(0..3) {
        0 => format!("header.h{}", hostile(random)),
        _ => FIELDS[random.random_range(0..FIELDS.len())].to_owned(),
    };
    let matches = |random: &mut ChaCha8Rng| {
        let conditions: std::collections::BTreeMap<String, String> = (0..random.random_range(0..4))
            .map(|_| {
                let patterns: Vec<String> = (0..random.random_range(1..4))
                    .map(|_| quoted(&hostile(random)))
                    .collect();
                (quoted(&field(random)), format!("[{}]", patterns.join(", ")))
            })
            .collect();
        let conditions: Vec<String> = conditions
            .iter()
            .map(|(field, patterns)| format!("{field} = {patterns}"))
            .collect();
        format!("{{ {} }}", conditions.join(", "))
    };
    let mut text = String::new();
    if random.random_range(0..2) == 0 {
        let header = quoted(&format!("x{}", hostile(random)));
        text += &format!(
            "[client]\nip = {{ header = {header}, trusted_hops = {} }}\n",
            random.random_range(1..=10)
        );
        text += &format!("ipv6_prefix = {}\n", random.random_range(1..=128));
    }
    text += &format!("[ours]\nwaf_rule = [{}]\nlabel = []\n", quoted(&hostile(random)));
    text += &format!("[crowd]\nalert = {}\n", random.random_range(0..2) == 0);
    for n in 0..random.random_range(0..6) {
        text += &format!(
            "[[rule]]\nname = \"r{n}\"\nwhy = {}\n",
            quoted(&format!("x{}", hostile(random)))
        );
        text += &format!(
            "limit = {}\nwindow = \"{}m\"\nmatch = {}\n",
            random.random_range(1..1_000),
            random.random_range(1..1_000),
            matches(random)
        );
        if random.random_range(0..3) == 0 {
            text += &format!("unless = {}\n", matches(random));
        }
        if random.random_range(0..3) == 0 {
            text += &format!("distinct = {}\n", quoted(&field(random)));
        }
    }
    Policy::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn every_query_parses_in_trino_and_hostile_text_stays_text() {
    let Some(trino) = Trino::shared() else { return };
    let name = "hostile";
    let table = table("local:///", name, Layout::Firehose);
    put(&trino.files().join(name), &objects(&records(1, 10), Layout::Firehose));
    trino
        .run(&athena::ddl(&table, Minute::of_ms(NOON_MS), Dialect::Trino).unwrap())
        .unwrap();
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let period = Period {
        from_ms: NOON_MS,
        to_ms: NOON_MS + 60_000,
    };
    for _ in 0..40 {
        let policy = random_policy(&mut random);
        for rules in [Rules::All, Rules::Athena] {
            let sql = athena::sql(&policy, rules, &table, period).unwrap();
            let valid = trino.run(&format!("EXPLAIN (TYPE VALIDATE)\n{sql}"));
            assert!(valid.is_ok(), "{valid:?}\n{sql}");
        }
    }
    let texts: Vec<String> = (0..100).map(|_| hostile(&mut random)).collect();
    let literals: Vec<String> = texts.iter().map(|text| athena::literal(text)).collect();
    let rows = trino.run(&format!("SELECT ARRAY[{}]", literals.join(", "))).unwrap();
    assert_eq!(rows, [[json!(texts)]]);
}

/// The template's table is the code's.
#[test]
fn the_stacks_table_is_the_one_that_the_code_defines() {
    let template = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("infra/template.yaml")).unwrap();
    let columns: Vec<String> = athena::COLUMNS
        .iter()
        .map(|(name, of)| format!("            - {{Name: {name}, Type: '{of}'}}\n"))
        .collect();
    assert!(
        template.contains(&format!("          Columns:\n{}\n", columns.concat())),
        "{}",
        columns.concat()
    );
    assert!(template.contains(&format!(
        "PartitionKeys: [{{Name: {}, Type: string}}]",
        athena::PARTITION
    )));
    assert!(template.contains(athena::SERDE));
    for (key, value) in athena::SERDE_PROPERTIES {
        assert!(template.contains(&format!("{key}: '{value}'")), "{key}");
    }
    let since = Minute::of_ms(1_767_225_600_000); // 2026-01-01
    let properties = |layout| athena::table_properties(&table("s3://", "x", layout), since);
    for ((key, hourly), (_, direct)) in properties(Layout::Firehose).into_iter().zip(properties(Layout::Direct)) {
        let line = template
            .lines()
            .find(|line| line.trim_start().starts_with(&format!("{key}: ")));
        let line = line.unwrap_or_else(|| panic!("{key}"));
        let plain = |value: &str| value.replace("2026/01/01/00", "${LogsSince}");
        if key == "storage.location.template" {
            assert!(template.contains("s3://${Bucket}/${Prefix}${!log_time}/"));
        } else {
            assert!(
                line.contains(&plain(&hourly)) && line.contains(&plain(&direct)),
                "{line}: {hourly} {direct}"
            );
        }
    }
}

/// A deployment whose logs are in the stand-in's bucket, as its operator sees it.
struct Deployment {
    folder: tempfile::TempDir,
    aws: &'static StandIn,
    logs: String,
    table: String,
}

impl Deployment {
    async fn new(aws: &'static StandIn, policy: &str) -> Deployment {
        let folder = tempfile::tempdir().unwrap();
        traffic::deliver(&traffic::hour(1).requests, &folder.path().join("logs"), 1).unwrap();
        fs::write(folder.path().join("policy.toml"), policy).unwrap();
        let root = folder.path().join("logs");
        let files = walkdir::WalkDir::new(&root)
            .into_iter()
            .flatten()
            .filter(|entry| entry.file_type().is_file());
        let objects: Vec<(String, Vec<u8>)> = files
            .map(|entry| {
                let key = entry.path().strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                (key, fs::read(entry.path()).unwrap())
            })
            .collect();
        let (_, table) = bucket_of(aws, &objects, Layout::Firehose).await;
        let deployment = Deployment {
            folder,
            aws,
            logs: table.location,
            table: format!("{}.waf_logs", table.database),
        };
        let ddl = format!(
            "athena ddl --logs {} --since 2026-11-01 --run {}",
            deployment.logs,
            deployment.ask()
        );
        deployment.told(0, &ddl);
        deployment
    }

    fn ask(&self) -> String {
        format!("--table {} --results s3://results/", self.table)
    }

    /// What a command says on stdout; it must end with this exit code.
    fn told(&self, exit: i32, args: &str) -> String {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_palisade"))
            .args(args.split_whitespace())
            .current_dir(self.folder.path())
            .envs(self.aws.environment("us-east-1"))
            .env_remove("PALISADE_STATE")
            .output()
            .unwrap();
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert_eq!(output.status.code(), Some(exit), "palisade {args}\n{out}\n{err}");
        format!("{out}{err}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_what_athena_counted_shows_the_same_bans_and_says_where_the_requests_are() {
    let Some(aws) = StandIn::shared() else { return };
    let here = Deployment::new(aws, analyzer::DEFAULT_POLICY).await;
    let (logs, ask) = (&here.logs, here.ask());
    let period = "--from 2026-11-01 --to 2026-11-02";
    here.told(0, &format!("replay {logs} {period} --html scanned.html"));
    here.told(
        0,
        &format!("replay {logs} {period} --html counted.html --engine athena {ask}"),
    );
    let page = |name: &str| fs::read_to_string(here.folder.path().join(name)).unwrap();
    let (scanned, counted) = (page("scanned.html"), page("counted.html"));
    let [of_scan, of_athena] = [&scanned, &counted].map(|page| data_of(page));
    assert!(of_scan["lines"].as_array().unwrap().len() > 8);
    for part in ["lines", "bans_cut", "timeline"] {
        assert_eq!(of_scan[part], of_athena[part], "{part}");
    }
    // Who could reach a limit is drawn as the scan draws it, where it stands among all; the others are not there.
    for (scan, athena) in of_scan["rates"]
        .as_array()
        .unwrap()
        .iter()
        .zip(of_athena["rates"].as_array().unwrap())
    {
        for part in ["rule", "limit", "window", "reached"] {
            assert_eq!(scan[part], athena[part], "{part}");
        }
        assert!(athena["clients"].as_u64() <= scan["clients"].as_u64());
    }
    for line in of_athena["lines"].as_array().unwrap() {
        let client = line["client"].as_str().unwrap();
        assert_eq!(of_scan["activity"][client], of_athena["activity"][client], "{client}");
        assert!(
            counted.contains(&format!("id=\"client-{client}\"")),
            "{client} is explained"
        );
    }
    let numbers = |page: &str| -> Vec<String> {
        let table = page
            .split("id=\"ban-rows\"")
            .nth(1)
            .unwrap()
            .split("</table>")
            .next()
            .unwrap();
        let values = table.split("data-value=\"").skip(1);
        values
            .map(|value| value.split('"').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(numbers(&scanned), numbers(&counted));

    let reads = format!(
        "<code>palisade replay --html report.html <bdi class=\"data\">--from 2026-11-01T00:00:00Z --to 2026-11-02T00:00:00Z {logs}"
    );
    for part in [
        ", counted by Athena, judged by ",
        "Requests, countries and user agents are in the logs, and Athena counted without showing them: ",
        "The most frequent paths, WAF rules, countries and user agents are in the logs, ",
        "and what a wrongly banned user misses, are in the logs, ",
        "Athena counted ",
        " clients, those that could reach a limit: the others are in the sums of all, and not here.",
        "collateral, at most",
        "requests counted",
        &reads,
    ] {
        assert!(counted.contains(part), "{part}");
        assert!(!scanned.contains(part), "{part}");
    }
    for part in [
        "Requests that matched",
        "Its first requests",
        "Not matching",
        "<h3>Paths</h3>",
        "<select name=\"country\"",
    ] {
        assert!(scanned.contains(part), "{part}");
        assert!(!counted.contains(part), "{part}");
    }
    let Some(browser) = Browser::shared() else { return };
    let bans = of_athena["summary"]["bans"].as_u64().unwrap();
    let file = here.folder.path().join("counted.html");
    let seen = tokio::task::block_in_place(|| {
        browser.look(&json!([{"name": "athena", "kind": "report", "file": file, "search": "192.0.2.44", "found": 2}]))
    });
    assert!(seen.iter().all(|one| one["bans"].as_u64() == Some(bans)), "{seen:?}");
}

fn verdicts(said: &str) -> Vec<&str> {
    let verdict = |line: &&str| line.starts_with("{\"type\"") && !line.contains("\"type\":\"summary\"");
    said.lines().filter(verdict).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_by_either_engine_bans_the_same_to_the_byte() {
    let Some(aws) = StandIn::shared() else { return };
    let here = Deployment::new(aws, analyzer::DEFAULT_POLICY).await;
    let (logs, ask) = (&here.logs, here.ask());
    let scanned = here.told(0, &format!("replay {logs} --json"));
    let asked = here.told(
        0,
        &format!("replay {logs} --json --engine athena --from 2026-11-01 --to 2026-11-02 {ask}"),
    );
    assert!(
        verdicts(&scanned)
            .iter()
            .filter(|line| line.contains("\"type\":\"ban\""))
            .count()
            > 5,
        "{scanned}"
    );
    assert_eq!(verdicts(&scanned), verdicts(&asked));
    assert!(asked.contains("Athena scanned "), "{asked}");
    let last = |said: &str| -> serde_json::Value {
        let line = said.lines().find(|line| line.contains("\"type\":\"summary\"")).unwrap();
        serde_json::from_str(line).unwrap()
    };
    for key in [
        "requests",
        "clients",
        "bans",
        "banned_clients",
        "stopped",
        "spared",
        "held",
        "alerts",
        "from",
        "to",
        "skipped",
    ] {
        assert_eq!(last(&scanned)[key], last(&asked)[key], "{key}");
    }
    let refused = here.told(2, &format!("replay {logs} --engine athena {ask}"));
    assert!(refused.contains("needs `--from`"), "{refused}");
    let nothing = here.told(
        0,
        &format!("replay {logs} --engine athena --from 2026-11-03 --to 2026-11-04 {ask}"),
    );
    assert!(nothing.contains("No data is not the same as no offenders"), "{nothing}");
}

const LONG: &str = r##"
[ban]
forget_after = "31d"

[[rule]]
name = "slow-login"
why = "Passwords tried so slowly that no short window sees it."
match = { method = "POST", uri = ["*/login", "*/signin"] }
limit = 200
window = "30d"
engine = "athena"
"##;

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_with_a_long_window_is_judged_by_what_athena_counted() {
    let Some(aws) = StandIn::shared() else { return };
    let here = Deployment::new(aws, LONG).await;
    let (logs, ask) = (&here.logs, here.ask());
    here.told(0, "policy push policy.toml --state state");
    let run = format!("run --once --now 2026-11-01T13:20 --state state --logs {logs}");
    let before = here.told(0, &run);
    assert!(
        before.contains("Athena counted not yet") && verdicts(&before).is_empty(),
        "{before}"
    );

    let count = format!("athena count --now 2026-11-01T13:10 --state state --logs {logs} {ask}");
    let counted = here.told(0, &count);
    assert!(counted.contains("can still matter"), "{counted}");
    let after = here.told(0, &run);
    let bans = verdicts(&after);
    assert!(
        !bans.is_empty() && bans.iter().all(|line| line.contains("\"rule\":\"slow-login\"")),
        "{after}"
    );
    assert!(!after.contains("Athena counted"), "{after}");
    // The same requests in the same window, had one engine counted everything.
    let replayed = here.told(0, &format!("replay {logs} --json --policy policy.toml"));
    for ban in &bans {
        let client = ban.split('"').skip_while(|part| *part != "client").nth(2).unwrap();
        assert!(verdicts(&replayed).iter().any(|line| line.contains(client)), "{client}");
    }

    // Nobody is punished twice for one burst, and a count that nobody renews is complained about.
    let later = here.told(0, &run.replace("11-01T13:20", "11-01T16:11"));
    assert!(
        verdicts(&later).is_empty() && later.contains("Athena counted last for 2026-11-01T13:10:00Z"),
        "{later}"
    );
}

fn put(folder: &Path, objects: &[(String, Vec<u8>)]) {
    for (key, bytes) in objects {
        let path = folder.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
