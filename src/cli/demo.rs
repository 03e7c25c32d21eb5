//! `palisade demo`: the whole loop on this machine, without an AWS account.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use analyzer::{Client, Ledger, Minute, Policy, Span, Tally, Verdict, judge};
use clap::Args;
use ipnet::IpNet;
use updater::{Family, Memory, Options, SetId, reconcile};

use super::exit::{Exit, Failure};
use super::html::{Judged, Page, search};
use super::output::{HEADING, Printer, count, several, stdout, table, write_table};
use super::replay::{summary_of, write_verdicts};
use super::time::shown;
use crate::inputs::{self, LogObject};
use crate::replay::{Count, Event, Period, read};
use crate::survey::Survey;
use crate::traffic::{self, Hour};

#[derive(Args)]
pub(super) struct DemoArgs {
    /// Another seed, other traffic
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep the logs and the policy in this new folder, to replay them
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Also write a page to look at: one file that needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// The operator of the demo has written one thing into the default policy: whose the scanner is that looks for secrets every day.
const DEMO_ALLOW: &str = "\n[[allow]]\ncidr = \"203.0.113.200/32\"\nnote = \"our own scanner\"\n";

pub(super) fn run(args: &DemoArgs, printer: &Printer) -> Result<Exit, Failure> {
    let began = Instant::now();
    let failed = |what: &str, error: std::io::Error| Failure::new(format!("failed to {what}: {error}"));
    let temporary = tempfile::tempdir().map_err(|error| failed("make a temporary folder", error))?;
    let folder: &Path = args.keep.as_deref().unwrap_or(temporary.path());
    if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::new(format!("`{}` is not empty", folder.display()))
            .hint("name a new folder after `--keep`; nothing is ever overwritten"));
    }
    let (logs, policy_file) = (folder.join("logs"), folder.join("policy.toml"));
    let hour = traffic::hour(args.seed);
    let objects = traffic::deliver(&hour.requests, &logs, args.seed)
        .map_err(|error| failed(&format!("write logs to `{}`", logs.display()), error))?;
    let text = format!("{}{DEMO_ALLOW}", analyzer::DEFAULT_POLICY);
    std::fs::write(&policy_file, &text)
        .map_err(|error| failed(&format!("write `{}`", policy_file.display()), error))?;
    let policy = Policy::parse(&text).map_err(|error| Failure::new(error.message))?;

    let mut out = stdout();
    writeln!(
        out,
        "An hour of an API: {} of {} ordinary clients, {} attackers and {} who only look like it,\nin {} as Firehose writes them (seed {}). Every minute: read, judge, update the IP sets.\n",
        several(hour.requests.len() as u64, "request"),
        count(hour.ordinary as u64),
        hour.known.iter().filter(|known| known.attacker).count(),
        hour.known.iter().filter(|known| !known.attacker).count(),
        several(objects as u64, "log object"),
        args.seed,
    )?;
    let run = live(&policy, &logs)?;
    write_verdicts(&mut out, &policy, &run.events)?;
    write_outcome(&mut out, &policy, &hour, &run)?;
    drop(out);
    if let Some(path) = &args.html {
        write_page(path, &policy, &logs, &run.events, began, printer)?;
    }
    printer.note(&format!(
        "It took {:.1} seconds. No AWS account was used, and nothing was blocked anywhere.",
        began.elapsed().as_secs_f64()
    ));
    printer.note(&match &args.keep {
        None => "Next: `palisade demo --keep demo` keeps the logs and the policy; then replay your own".to_owned(),
        Some(folder) => {
            let folder = folder.display();
            format!("Next: `palisade replay --policy {folder}/policy.toml {folder}/logs`, then replay your own logs")
        }
    });
    Ok(Exit::Done)
}

/// The same page as `palisade replay --html` writes.
fn write_page(
    path: &Path,
    policy: &Policy,
    logs: &Path,
    events: &[Event],
    began: Instant,
    printer: &Printer,
) -> Result<(), Failure> {
    let inputs = inputs::find(&[logs.to_owned()], &Period::default());
    let page = Page::open(path)?;
    let reading = read(&inputs, Period::default(), 1, &(), || Survey::new(policy));
    let frequent = reading.collected.frequent();
    let reading = reading.map(|survey| survey.count.into_tally());
    let tally = &reading.collected;
    let summary = summary_of(&reading, tally, events, began.elapsed().as_secs_f64());
    let judged = Judged {
        policy,
        policy_name: "the demo's policy".to_owned(),
        source: "an hour of the demo's traffic".to_owned(),
        arguments: "--policy demo/policy.toml demo/logs".to_owned(),
        tally,
        events,
        summary: &summary,
    };
    page.write(
        judged,
        search(policy, frequent, (&inputs, Period::default(), 1), printer),
        printer,
    )
}

/// What an hour of the loop left behind.
struct Run {
    events: Vec<Event>,
    ledger: Ledger,
    now: Minute,
    sets: Memory,
    set_ids: [(Family, SetId); 2],
    most_at_once: usize,
}

/// The loop: every minute take in what was delivered, judge, and reconcile the IP sets of an in-memory WAF.
fn live(policy: &Policy, folder: &Path) -> Result<Run, Failure> {
    let set_ids = [
        (Family::V4, SetId::new("palisade-v4", "4")),
        (Family::V6, SetId::new("palisade-v6", "6")),
    ];
    let sets = Memory::default();
    for (family, id) in &set_ids {
        sets.create(id, *family, &[])
            .map_err(|error| Failure::new(format!("failed to create `{}`: {error}", id.name)))?;
    }
    // What arrives when: an object can be read a minute after the one it is named for.
    let all = inputs::find(&[folder.to_owned()], &Period::default());
    let mut arrivals: BTreeMap<Minute, Vec<LogObject>> = BTreeMap::new();
    for object in all.objects {
        let times = ingest::object_key::parse(&object.name()).times;
        let minute = times.map_or(Minute(0), |times| Minute::of_ms(times.start_s * 1000) + Span(2));
        arrivals.entry(minute).or_default().push(object);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| Failure::new(format!("failed to start the runtime: {error}")))?;

    let (Some((first, _)), Some((last, _))) = (arrivals.first_key_value(), arrivals.last_key_value()) else {
        return Err(Failure::new("the demo made no traffic"));
    };
    let (first, last) = (*first, *last);
    let mut tally = Tally::default();
    let mut run = Run {
        events: Vec::new(),
        ledger: Ledger::default(),
        now: first,
        sets,
        set_ids,
        most_at_once: 0,
    };
    let mut now = first;
    while now <= last {
        let inputs = inputs::Inputs::from(arrivals.remove(&now).unwrap_or_default());
        tally.merge(
            read(&inputs, Period::default(), 1, &(), || Count::new(policy))
                .collected
                .into_tally(),
        );
        let judgment = judge(policy, &tally, &run.ledger, now);
        run.ledger = judgment.ledger;
        run.events.extend(judgment.verdicts.into_iter().map(|verdict| Event {
            time: now,
            verdict,
            stopped: 0,
        }));
        let wanted: Vec<IpNet> = run
            .ledger
            .bans_in_force(policy, now)
            .iter()
            .map(|(client, _)| client.net())
            .collect();
        let ours: Vec<IpNet> = run.ledger.offenders.keys().map(|client| client.net()).collect();
        run.most_at_once = run.most_at_once.max(wanted.len());
        for (family, id) in &run.set_ids {
            let options = Options {
                family: *family,
                exclusive: false,
            };
            let set = std::slice::from_ref(id);
            runtime
                .block_on(reconcile(&run.sets, set, &wanted, &ours, &options, |_| {
                    std::future::ready(())
                }))
                .map_err(|error| Failure::new(format!("failed to update `{}`: {error}", id.name)))?;
        }
        run.now = now;
        now = now + Span::MINUTE;
    }
    for event in &mut run.events {
        if let Verdict::Ban(charge, sentence) = &event.verdict {
            event.stopped = tally.requests_of(charge.client, event.time, sentence.until);
        }
    }
    Ok(run)
}

fn write_outcome(out: &mut impl Write, policy: &Policy, hour: &Hour, run: &Run) -> std::io::Result<()> {
    let banned: BTreeSet<Client> = run
        .events
        .iter()
        .filter_map(|event| match &event.verdict {
            Verdict::Ban(charge, _) => Some(charge.client),
            _ => None,
        })
        .collect();
    writeln!(out, "{HEADING}Who they were{HEADING:#}")?;
    let mut rows = table(&["client", "", "story"], &[]);
    let mut right = 0;
    for known in &hour.known {
        let client = Client::of(known.client, policy.client.ipv6_prefix);
        let was_banned = banned.contains(&client);
        right += usize::from(was_banned == known.attacker);
        rows.add_row([
            client.to_string(),
            (if was_banned { "banned" } else { "not banned" }).to_owned(),
            known.story.to_owned(),
        ]);
    }
    write_table(out, &rows)?;
    let strangers = banned
        .iter()
        .filter(|client| {
            !hour
                .known
                .iter()
                .any(|known| Client::of(known.client, policy.client.ipv6_prefix) == **client)
        })
        .count();
    let stopped: u64 = run.events.iter().map(|event| event.stopped).sum();
    let held: usize = run
        .set_ids
        .iter()
        .map(|(_, id)| run.sets.addresses(id).map_or(0, |addresses| addresses.len()))
        .sum();
    writeln!(
        out,
        "\n{right} of {} judged rightly; {strangers} of {} ordinary clients banned",
        hour.known.len(),
        count(hour.ordinary as u64)
    )?;
    writeln!(
        out,
        "The bans stopped {}. IP sets at {} UTC: {} in force, {} at most at once, written {} times in {} minutes",
        several(stopped, "request"),
        shown(run.now),
        several(held as u64, "ban"),
        run.most_at_once,
        run.sets.updates(),
        run.now.since(Minute::of_ms(traffic::HOUR_BEGINS_MS)).0
    )
}
