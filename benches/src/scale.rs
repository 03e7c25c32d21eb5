//! How cost grows with records, clients and rules, and how long a judgment of a million clients takes.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Instant;

use analyzer::stored::ObjectTally;
use analyzer::{Counter, Ledger, Minute, Policy, judge};
use flate2::Compression;
use flate2::write::GzEncoder;
use ingest::Request;

use crate::records::{self, BEGINS_MS, Plan};

/// Records of a piece of data that is read again and again for more of them: the text is not what grows here.
const PIECE: u64 = 100_000;

pub(crate) fn run() -> io::Result<()> {
    let mut out = io::stdout().lock();
    let default = Policy::default_policy();
    let text = |clients| -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        records::write(
            Plan {
                records: PIECE,
                clients,
                minutes: 60,
            },
            &mut text,
        )?;
        Ok(text)
    };
    let count = |policy: &Policy, text: &[u8], times: u64| {
        let began = Instant::now();
        let (mut counter, wants) = (Counter::new(policy), policy.wants());
        for _ in 0..times {
            ingest::scan_for(text, &wants, |request| counter.count(request));
        }
        (
            counter.take(),
            began.elapsed().as_nanos() as f64 / (times * PIECE) as f64,
        )
    };
    writeln!(out, "| what | nanoseconds a record, default policy |\n|---|---|")?;
    let usual = text(10_000)?;
    for times in [1, 10, 100] {
        writeln!(
            out,
            "| {} records | {:.0} |",
            times * PIECE,
            count(&default, &usual, times).1
        )?;
    }
    for clients in [10, 1_000, 100_000, 1_000_000] {
        writeln!(
            out,
            "| {clients} clients | {:.0} |",
            count(&default, &text(clients)?, 3).1
        )?;
    }
    for rules in [1, 10, 100] {
        let rule = |n| {
            format!(
                "[[rule]]\nname = \"r{n}\"\nwhy = \"x\"\nmatch = {{ uri = [\"*/secret-{n}/*\", \"*.x{n}\"] }}\nlimit = 20\nwindow = \"5m\"\n"
            )
        };
        let text: String = (0..rules).map(rule).collect();
        let policy = Policy::parse(&text).map_err(io::Error::other)?;
        writeln!(out, "| {rules} rules | {:.0} |", count(&policy, &usual, 3).1)?;
    }

    memory(&mut out)?;
    object(&mut out, &default)?;

    // A million clients over an hour, five requests each.
    let mut counter = Counter::new(&default);
    for n in 0..5_000_000u32 {
        let request = Request {
            timestamp_ms: BEGINS_MS as i64 + i64::from(n / 1_389) * 1_000,
            client_ip: IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + n.wrapping_mul(7_919) % 1_000_000)),
            action: "ALLOW".into(),
            method: "GET".into(),
            uri: "/api/v1/items".into(),
            ..Request::default()
        };
        counter.count(&request);
    }
    let tally = counter.take();
    let now = Minute::of_ms(BEGINS_MS as i64 + 3_601_000);
    let began = Instant::now();
    let judgment = judge(&default, &tally, &Ledger::default(), now);
    let judged = began.elapsed();
    writeln!(
        out,
        "\n{} clients judged in {:.2} s, {} verdicts",
        tally.clients(),
        judged.as_secs_f64(),
        judgment.verdicts.len()
    )?;
    let object = ObjectTally {
        tally,
        ..ObjectTally::default()
    };
    let began = Instant::now();
    let bytes = object.to_bytes();
    let written = began.elapsed();
    let began = Instant::now();
    let read = ObjectTally::from_bytes(&bytes).map_err(io::Error::other)?;
    writeln!(
        out,
        "their tally: {:.1} MB, written in {:.2} s, read in {:.2} s, {} clients",
        bytes.len() as f64 / 1e6,
        written.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        read.tally.clients()
    )
}

/// The same clients and minutes again and again, in processes of their own: what grows is the log alone.
fn memory(out: &mut impl Write) -> io::Result<()> {
    let (one, _) = crate::data(&crate::target())?;
    let own = std::env::current_exe()?;
    writeln!(
        out,
        "\n| records read by one process | peak MB, bare | default policy |\n|---|---|---|"
    )?;
    for times in [1, 4, 34] {
        let peak = |work: &str| -> io::Result<f64> {
            let files = one.iter().cycle().take(times * one.len());
            let output = Command::new(&own).arg(work).arg("1").args(files).output()?;
            let peak = String::from_utf8_lossy(&output.stderr).trim().parse::<f64>();
            Ok(peak.map_err(io::Error::other)? / 1e6)
        };
        writeln!(
            out,
            "| {} | {:.0} | {:.0} |",
            times as u64 * crate::PLAN.records,
            peak("bare")?,
            peak("full")?
        )?;
    }
    Ok(())
}

/// What the analyzer's function does with the largest object that Firehose delivers: 128 MB, before they are compressed.
fn object(out: &mut impl Write, policy: &Policy) -> io::Result<()> {
    let mut text = Vec::new();
    let plan = Plan {
        records: 52_000,
        clients: 10_000,
        minutes: 5,
    };
    records::write(plan, &mut text)?;
    let mut packed = GzEncoder::new(Vec::new(), Compression::new(6));
    packed.write_all(&text)?;
    let packed = packed.finish()?;
    let mut seconds: Vec<f64> = Vec::new();
    let mut tally_bytes = 0;
    for _ in 0..5 {
        let began = Instant::now();
        let (mut counter, wants) = (Counter::new(policy), policy.wants());
        ingest::scan_for(&packed[..], &wants, |request| counter.count(request));
        let tally = counter.take();
        let object = ObjectTally {
            tally,
            ..ObjectTally::default()
        };
        tally_bytes = object.to_bytes().len();
        seconds.push(began.elapsed().as_secs_f64());
    }
    writeln!(
        out,
        "\nan object of {:.0} MB ({:.1} MB gzip, {} records, {} clients): a tally of {:.0} kB in {:.2} s",
        text.len() as f64 / 1e6,
        packed.len() as f64 / 1e6,
        plan.records,
        plan.clients,
        tally_bytes as f64 / 1e3,
        crate::median(&mut seconds)
    )
}
