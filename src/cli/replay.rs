//! `palisade replay`: who would have been banned, when, why, for how long, and what that would have stopped.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use analyzer::judge::{Charge, Sentence};
use analyzer::{Counter, Crowd, Policy, Tally, Verdict};
use clap::{Args, ValueEnum};

use super::athena::{AskArgs, ByAthena};
use super::exit::{Exit, Failure};
use super::html::{Judged, Page, arguments, search};
use super::output::{HEADING, Printer, count, several, short, stdout, table, write_table};
use super::progress::Bar;
use super::time::{clock, rfc3339, shown};
use super::{LogArgs, PolicyArgs, ending};
use crate::replay::{Count, Event, Reading, Replay, read, totals};
use crate::report::{Line, Summary, write_line};
use crate::survey::Survey;

#[derive(Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    logs: LogArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
    /// Also write a page to look at: one file that needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Who counts: palisade reads every object, Athena answers a query over one bucket
    #[arg(long, value_name = "NAME")]
    engine: Option<Engine>,
    #[command(flatten, next_help_heading = "With --engine athena")]
    ask: AskArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Scan,
    Athena,
}

pub(super) fn run(args: &ReplayArgs, printer: &Printer) -> Result<Exit, Failure> {
    let began = Instant::now();
    let policy = args.policy.load()?;
    let period = args.logs.period()?;
    let page = args.html.as_deref().map(Page::open).transpose()?;
    let arguments = arguments(
        args.policy.policy.as_deref(),
        period,
        args.logs.paths.iter().map(PathBuf::as_path),
    );
    if args.engine == Some(Engine::Athena) {
        let by_athena = ByAthena {
            policy: &policy,
            policy_name: name_of(args.policy.policy.as_deref()),
            arguments,
            ask: &args.ask,
            paths: &args.logs.paths,
            from_ms: period.from_ms,
            to_ms: period.to_ms,
            json: args.json,
        };
        return by_athena.run(page, printer);
    }
    let mut inputs = args.logs.inputs(&period, printer)?;
    let mut page = page;
    if let Some(page) = &mut page {
        page.spool(&mut inputs)?;
    }
    let bar = Bar::start(printer, &inputs);
    let threads = args.logs.threads();
    let counter = Counter::new(&policy);
    let (mut reading, frequent) = match &page {
        None => (
            read(&inputs, period, threads, &bar, || Count::by(counter.clone())).map(Count::into_tally),
            None,
        ),
        Some(_) => {
            let reading = read(&inputs, period, threads, &bar, || Survey::new(&policy));
            let frequent = reading.collected.frequent();
            (reading.map(|survey| survey.count.into_tally()), Some(frequent))
        }
    };
    bar.finish();
    if let Some(page) = &page {
        for problem in &mut reading.problems {
            problem.object = page.name(std::mem::take(&mut problem.object));
        }
    }
    let tally = &reading.collected;
    let replay = Replay::of(&policy, tally);
    let summary = summary_of(&reading, tally, &replay.events, began.elapsed().as_secs_f64());

    let mut out = stdout();
    if args.json {
        for event in &replay.events {
            write_line(&mut out, &Line::of(event))?;
        }
        write_line(&mut out, &Line::Summary(summary.clone()))?;
    } else {
        write_tables(&mut out, &policy, &reading, &replay)?;
    }
    out.flush()?;
    drop(out);
    if let (Some(page), Some(frequent)) = (page, frequent) {
        let judged = Judged {
            policy: &policy,
            policy_name: name_of(args.policy.policy.as_deref()),
            source: joined(args.logs.paths.iter().map(PathBuf::as_path)),
            arguments,
            tally,
            events: &replay.events,
            summary: &summary,
        };
        let requests = search(&policy, frequent, (&inputs, period, threads), printer);
        page.write(judged, requests, printer)?;
    }
    if replay.events.is_empty() && reading.requests > 0 {
        printer.note("Nobody would have been banned. `palisade top` shows who asked for most, `palisade explain <client>` how near a client came to each limit");
    }
    ending(printer, &reading)
}

/// How people call the policy in this file.
pub(super) fn name_of(policy: Option<&Path>) -> String {
    policy.map_or_else(|| "the default policy".to_owned(), |path| path.display().to_string())
}

fn joined<'a>(paths: impl Iterator<Item = &'a Path>) -> String {
    paths
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// The last line of `--json`.
pub(super) fn summary_of<C>(reading: &Reading<C>, tally: &Tally, events: &[Event], seconds: f64) -> Summary {
    let totals = totals(events);
    Summary {
        objects: reading.objects,
        duplicates: reading.duplicates,
        pruned: reading.pruned,
        requests: reading.requests,
        skipped: reading.skipped.total(),
        skipped_by: reading
            .skipped
            .iter()
            .map(|(skip, count)| (skip.name(), count))
            .collect(),
        unreadable: reading
            .problems
            .iter()
            .map(|problem| (problem.object.clone(), problem.what.clone()))
            .collect(),
        unattributed: tally.unattributed,
        clients: tally.clients() as u64,
        bans: totals.bans,
        banned_clients: totals.banned_clients,
        stopped: totals.stopped,
        spared: totals.spared,
        held: totals.held,
        alerts: totals.alerts,
        from: reading.times_ms.map(|(first, _)| rfc3339(first)),
        to: reading.times_ms.map(|(_, last)| rfc3339(last)),
        seconds: (seconds * 1000.0).round() / 1000.0,
    }
}

/// More rows than this are for programs.
pub(super) const ROWS_MAX: usize = 100;

fn write_tables(out: &mut impl Write, policy: &Policy, reading: &Reading<Tally>, replay: &Replay) -> io::Result<()> {
    write_verdicts(out, policy, &replay.events)?;
    let totals = replay.totals();
    let tally = &reading.collected;
    let mut read = format!(
        "Read {} from {} in {}",
        several(reading.requests, "request"),
        several(tally.clients() as u64, "client"),
        several(reading.objects, "object")
    );
    if let Some((first, last)) = reading.times_ms {
        read += &format!(", {} to {}", rfc3339(first), rfc3339(last));
    }
    writeln!(out, "{read}")?;
    for (number, what) in [
        (
            reading.duplicates,
            "object had the very bytes of another and was not counted again",
        ),
        (
            reading.pruned,
            "object was left out because its name says that it holds other times",
        ),
        (
            tally.unattributed,
            "request had no address at the trusted hop of the forwarded header, so nobody is blamed for it",
        ),
    ] {
        if number > 0 {
            let (noun, rest) = what.split_once(' ').unwrap_or((what, ""));
            let rest = if number == 1 {
                rest.to_owned()
            } else {
                rest.replacen("was ", "were ", 2)
                    .replace("its name says that it holds", "their names say that they hold")
                    .replace("blamed for it", "blamed for them")
            };
            writeln!(out, "{} {rest}", several(number, noun))?;
        }
    }
    writeln!(
        out,
        "{} of {} would have stopped {} ({}); {} spared, {} held, {}",
        several(totals.bans, "ban"),
        several(totals.banned_clients, "client"),
        several(totals.stopped, "request"),
        share(totals.stopped, reading.requests),
        totals.spared,
        totals.held,
        several(totals.alerts, "alert")
    )
}

fn share(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole.max(1) as f64)
}

/// The verdicts in tables: bans, then everybody who was not banned and why, then alerts.
pub(super) fn write_verdicts(out: &mut impl Write, policy: &Policy, events: &[Event]) -> io::Result<()> {
    let bans: Vec<(&Event, &Charge, &Sentence)> = events
        .iter()
        .filter_map(|event| match &event.verdict {
            Verdict::Ban(charge, sentence) => Some((event, charge, sentence)),
            _ => None,
        })
        .collect();
    if !bans.is_empty() {
        writeln!(out, "{HEADING}Banned{HEADING:#}")?;
        let mut rows = table(&["time (UTC)", "client", "for", "strike", "stopped", "why"], &[3, 4]);
        for (event, charge, sentence) in bans.iter().take(ROWS_MAX) {
            let action = if sentence.action == analyzer::Action::Block {
                String::new()
            } else {
                format!(" ({})", sentence.action)
            };
            rows.add_row([
                shown(event.time),
                charge.client.to_string(),
                format!("{}{action}", sentence.until.since(event.time)),
                sentence.strike.to_string(),
                count(event.stopped),
                why(charge, policy),
            ]);
        }
        write_table(out, &rows)?;
        more(out, bans.len())?;
    }
    for heading in ["Spared", "Held"] {
        let rows_of = |event: &Event| match (&event.verdict, heading) {
            (Verdict::Spared(charge, because), "Spared") | (Verdict::Held(charge, because), "Held") => Some([
                shown(event.time),
                charge.client.to_string(),
                why(charge, policy),
                short(because, 120),
            ]),
            _ => None,
        };
        let all: Vec<[String; 4]> = events.iter().filter_map(rows_of).collect();
        if all.is_empty() {
            continue;
        }
        writeln!(out, "{HEADING}{heading}{HEADING:#}")?;
        let mut rows = table(&["time (UTC)", "client", "offense", "because"], &[]);
        let length = all.len();
        rows.add_rows(all.into_iter().take(ROWS_MAX));
        write_table(out, &rows)?;
        more(out, length)?;
    }
    let alerts: Vec<&Event> = events
        .iter()
        .filter(|event| matches!(event.verdict, Verdict::Alert(_) | Verdict::Crowd(_)))
        .collect();
    if !alerts.is_empty() {
        writeln!(out, "{HEADING}Alerts{HEADING:#}")?;
        for event in alerts.iter().take(ROWS_MAX) {
            match &event.verdict {
                Verdict::Alert(charge) => writeln!(
                    out,
                    " {}  {}  {}",
                    shown(event.time),
                    charge.client,
                    why(charge, policy)
                )?,
                Verdict::Crowd(crowd) => writeln!(out, " {}  {}", shown(event.time), crowd_sentence(crowd))?,
                _ => {}
            }
        }
        more(out, alerts.len())?;
    }
    Ok(())
}

/// Says how many rows a table leaves out.
pub(super) fn more(out: &mut impl Write, length: usize) -> io::Result<()> {
    if length > ROWS_MAX {
        writeln!(
            out,
            " … and {} more, all of which `--json` shows",
            count((length - ROWS_MAX) as u64)
        )?;
    }
    writeln!(out)
}

/// `login-brute-force: 20 hits 12:06–12:10 (limit 20 in 5m)`.
fn why(charge: &Charge, policy: &Policy) -> String {
    let offense = &charge.offense;
    let distinct = policy
        .rules
        .iter()
        .find(|rule| rule.name == charge.rule)
        .and_then(|rule| rule.distinct.as_ref());
    let hits = match distinct {
        Some(field) => format!("{} distinct {field}", count(offense.hits)),
        None => several(offense.hits, "hit"),
    };
    let when = if offense.first_hit == offense.last_hit {
        clock(offense.first_hit)
    } else {
        format!("{}–{}", clock(offense.first_hit), clock(offense.last_hit))
    };
    let also = if charge.also.is_empty() {
        String::new()
    } else {
        format!(", also {}", charge.also.join(", "))
    };
    format!(
        "{}: {hits} {when} (limit {} in {}){also}",
        charge.rule, charge.limit, charge.window
    )
}

fn crowd_sentence(crowd: &Crowd) -> String {
    let who = format!(
        "crowd: about {} clients with few requests each in {}, usually {}; no ban stops this shape",
        count(crowd.clients),
        crowd.window,
        count(crowd.usual)
    );
    match &crowd.separator {
        Some((which, value, share, usual)) => format!(
            "{who}; {which} \"{}\" would separate {:.0} % of them (usually {:.0} %): match it in a Challenge or rate-based rule",
            short(value, 80),
            share * 100.0,
            usual * 100.0
        ),
        None => format!("{who}; no uri, JA4, country or user agent separates them: consider Challenge for all"),
    }
}
