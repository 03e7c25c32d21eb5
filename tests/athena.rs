//! The same policy counted by two engines: what Palisade's own scan counts, and what its SQL counts on a real Trino server
//! and on the AWS stand-in's Athena, cell by cell.

mod corpus;
mod trino;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use analyzer::athena::{self, Counts, Dialect, Layout, Period, Row, Rules, Table};
use analyzer::{Minute, Policy, Tally};
use flate2::{Compression, write::GzEncoder};

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
fn compare(policy: &Policy, objects: &[(String, Vec<u8>)], period: Period, rows: Vec<Row>, who: &str) {
    let (tally, requests, _) = scanned(policy, objects, period);
    let clients = tally.clients() as u64;
    let suspects = tally.suspects(policy);
    let travelled = rows
        .iter()
        .filter_map(|row| row.client.as_deref().filter(|_| row.rule == "(requests)"));
    let travelled = travelled.collect::<std::collections::BTreeSet<_>>().len();
    let counts = Counts::of(policy, Rules::All, rows).unwrap();
    if let Err(difference) = suspects.differs(&counts.tally) {
        panic!("{who}: {difference}");
    }
    assert_eq!((counts.requests, counts.clients), (requests, clients), "{who}");
    assert!(
        suspects.clients() > 0,
        "{who}: nobody is suspect, so nothing was compared"
    );
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
            Layout::Direct => &[("[crowd]\nalert = false\n[client]\nipv6_prefix = 56", part)],
        };
        for (head, period) in checks {
            let policy = policy(head, EVERYTHING);
            let sql = athena::sql(&policy, Rules::All, &table, *period).unwrap();
            compare(&policy, &objects, *period, trino.rows(&sql), &format!("{name} {head}"));
        }
    }
}

fn put(folder: &Path, objects: &[(String, Vec<u8>)]) {
    for (key, bytes) in objects {
        let path = folder.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
