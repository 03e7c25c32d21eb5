//! `palisade diff`: who would be banned by one policy and not by another, and who otherwise.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use analyzer::{Action, Client, Minute, Policy, Span, Tally, Verdict};
use clap::Args;
use ingest::Request;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output::{HEADING, Printer, count, several, short, stdout, table, write_table};
use super::progress::Bar;
use super::replay::{ROWS_MAX, more};
use super::time::shown;
use super::{LogArgs, ending, load_policy};
use crate::replay::{Collect, Count, Replay, read};

#[derive(Args)]
pub(super) struct DiffArgs {
    /// The policy that is in force
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The policy that may follow it
    #[arg(value_name = "NEW")]
    new: PathBuf,
    #[command(flatten)]
    logs: LogArgs,
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
}

/// What two policies count, in one reading; once where they count the same.
struct Both<'p> {
    old: Count<'p>,
    new: Option<Count<'p>>,
}

impl Collect for Both<'_> {
    fn request(&mut self, request: &Request<'_>) {
        self.old.request(request);
        if let Some(new) = &mut self.new {
            new.request(request);
        }
    }

    fn settle(&mut self) {
        self.old.settle();
        self.new.iter_mut().for_each(Collect::settle);
    }

    fn join(&mut self, other: Self) {
        self.old.join(other.old);
        if let (Some(new), Some(other)) = (&mut self.new, other.new) {
            new.join(other);
        }
    }
}

pub(super) fn run(args: &DiffArgs, printer: &Printer) -> Result<Exit, Failure> {
    let (old, new) = (load_policy(&args.old)?, load_policy(&args.new)?);
    let period = args.logs.period()?;
    let inputs = args.logs.inputs(&period, printer)?;
    let bar = Bar::start(printer, &inputs);
    let count_alike = old.fingerprint() == new.fingerprint();
    let reading = read(&inputs, period, args.logs.threads(), &bar, || Both {
        old: Count::new(&old),
        new: (!count_alike).then(|| Count::new(&new)),
    })
    .map(|both| (both.old.into_tally(), both.new.map(Count::into_tally)));
    bar.finish();
    let (old_tally, new_tally) = &reading.collected;
    let new_tally = new_tally.as_ref().unwrap_or(old_tally);
    let diff = Diff::of(Side::of(&old, old_tally), Side::of(&new, new_tally));

    let mut out = stdout();
    if args.json {
        diff.write_json(&mut out, reading.requests)?;
    } else {
        let names = [&args.old, &args.new].map(|path| path.display().to_string());
        diff.write_tables(&mut out, &names, reading.requests)?;
    }
    out.flush()?;
    drop(out);
    if old.client != new.client {
        printer.note("The policies take the client from different places, so that one policy's client may be several of the other's");
    }
    ending(printer, &reading)
}

/// What one policy does to one client.
#[derive(Debug, Clone, PartialEq)]
struct Fate {
    /// When each ban begins and ends, which strike it is, what WAF does, and by which rule.
    bans: Vec<(Minute, Minute, u32, Action, String)>,
    stopped: u64,
    allowed: u64,
}

impl Fate {
    fn first(&self) -> Minute {
        self.bans.first().map_or(Minute(0), |ban| ban.0)
    }

    fn banned_for(&self) -> Span {
        Span(self.bans.iter().map(|(from, until, ..)| until.since(*from).0).sum())
    }

    fn strike(&self) -> u32 {
        self.bans.last().map_or(0, |ban| ban.2)
    }

    fn rules(&self) -> Vec<&str> {
        let mut rules: Vec<&str> = self.bans.iter().map(|ban| ban.4.as_str()).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    fn challenged(&self) -> bool {
        self.bans.iter().any(|ban| ban.3 == Action::Challenge)
    }
}

/// What one policy does to everybody.
struct Side {
    fates: BTreeMap<Client, Fate>,
    /// Why clients that reached a limit were not banned.
    unpunished: BTreeMap<Client, String>,
    totals: Totals,
}

#[derive(Serialize, Clone, Copy)]
struct Totals {
    bans: u64,
    banned_clients: u64,
    stopped: u64,
    allowed: u64,
    spared: u64,
    held: u64,
}

impl Side {
    fn of(policy: &Policy, tally: &Tally) -> Side {
        let replay = Replay::of(policy, tally);
        let (mut fates, mut unpunished) = (BTreeMap::<Client, Fate>::new(), BTreeMap::new());
        for event in &replay.events {
            match &event.verdict {
                Verdict::Ban(charge, sentence) => {
                    let fate = fates.entry(charge.client).or_insert(Fate {
                        bans: Vec::new(),
                        stopped: 0,
                        allowed: 0,
                    });
                    let rule = charge.rule.clone();
                    fate.bans
                        .push((event.time, sentence.until, sentence.strike, sentence.action, rule));
                    fate.stopped += event.stopped;
                    fate.allowed += tally.allowed_of(charge.client, event.time, sentence.until);
                }
                Verdict::Spared(charge, because) => {
                    unpunished
                        .entry(charge.client)
                        .or_insert_with(|| format!("spared, {because}"));
                }
                Verdict::Held(charge, because) => {
                    unpunished
                        .entry(charge.client)
                        .or_insert_with(|| format!("held, {because}"));
                }
                Verdict::Alert(_) | Verdict::Crowd(_) => {}
            }
        }
        let totals = replay.totals();
        Side {
            totals: Totals {
                bans: totals.bans,
                banned_clients: totals.banned_clients,
                stopped: totals.stopped,
                allowed: fates.values().map(|fate| fate.allowed).sum(),
                spared: totals.spared,
                held: totals.held,
            },
            fates,
            unpunished,
        }
    }
}

/// Two policies compared, client by client.
struct Diff {
    totals: [Totals; 2],
    /// Banned by the old and not by the new policy, and the other way round; with what the other does instead.
    only: [Vec<(Client, Fate, Option<String>)>; 2],
    differ: Vec<(Client, [Fate; 2])>,
    same: u64,
}

impl Diff {
    fn of(old: Side, new: Side) -> Diff {
        let totals = [old.totals, new.totals];
        let only = |one: &Side, other: &Side| {
            let fates = one.fates.iter().filter(|(client, _)| !other.fates.contains_key(client));
            fates
                .map(|(client, fate)| (*client, fate.clone(), other.unpunished.get(client).cloned()))
                .collect()
        };
        let only = [only(&old, &new), only(&new, &old)];
        let (mut differ, mut same) = (Vec::new(), 0);
        for (client, fate) in old.fates {
            match new.fates.get(&client) {
                Some(other) if other.bans == fate.bans => same += 1,
                Some(other) => differ.push((client, [fate, other.clone()])),
                None => {}
            }
        }
        Diff {
            totals,
            only,
            differ,
            same,
        }
    }

    fn write_tables(&self, out: &mut impl Write, names: &[String; 2], requests: u64) -> io::Result<()> {
        for (at, only) in self.only.iter().enumerate() {
            if only.is_empty() {
                continue;
            }
            writeln!(out, "{HEADING}Banned by {} only{HEADING:#}", names[at])?;
            let mut rows = table(
                &[
                    "first (UTC)",
                    "client",
                    "bans",
                    "for",
                    "stopped",
                    "allowed of these",
                    "rule",
                    "the other policy",
                ],
                &[2, 3, 4, 5],
            );
            for (client, fate, instead) in only.iter().take(ROWS_MAX) {
                let [bans, span, stopped, allowed, rules] = cells(fate);
                let instead = instead.as_deref().unwrap_or("no limit reached");
                rows.add_row([
                    shown(fate.first()),
                    client.to_string(),
                    bans,
                    span,
                    stopped,
                    allowed,
                    rules,
                    short(instead, 120),
                ]);
            }
            write_table(out, &rows)?;
            more(out, only.len())?;
        }
        if !self.differ.is_empty() {
            writeln!(out, "{HEADING}Banned by both, but otherwise{HEADING:#}")?;
            let mut rows = table(
                &[
                    "client",
                    "policy",
                    "first (UTC)",
                    "bans",
                    "for",
                    "stopped",
                    "allowed of these",
                    "rule",
                ],
                &[3, 4, 5, 6],
            );
            for (client, fates) in self.differ.iter().take(ROWS_MAX) {
                for (at, fate) in fates.iter().enumerate() {
                    let [bans, span, stopped, allowed, rules] = cells(fate);
                    let client = if at == 0 { client.to_string() } else { String::new() };
                    let first = shown(fate.first());
                    rows.add_row([client, names[at].clone(), first, bans, span, stopped, allowed, rules]);
                }
            }
            write_table(out, &rows)?;
            more(out, self.differ.len())?;
        }
        for (name, totals) in names.iter().zip(&self.totals) {
            writeln!(
                out,
                "{name}: {} of {} would have stopped {} of {}, {} of them allowed; {} spared, {} held",
                several(totals.bans, "ban"),
                several(totals.banned_clients, "client"),
                count(totals.stopped),
                several(requests, "request"),
                count(totals.allowed),
                totals.spared,
                totals.held
            )?;
        }
        let [old, new] = [&self.only[0], &self.only[1]].map(|only| only.len() as u64);
        writeln!(
            out,
            "{} by both and alike, {} otherwise, {} no longer, {} newly",
            several(self.same, "client"),
            count(self.differ.len() as u64),
            count(old),
            count(new)
        )
    }

    fn write_json(&self, out: &mut impl Write, requests: u64) -> io::Result<()> {
        for (only, policy) in self.only.iter().zip(["old", "new"]) {
            for (client, fate, instead) in only {
                line(
                    out,
                    &Line::Only {
                        policy,
                        client: client.to_string(),
                        fate: Banned::of(fate),
                        instead: instead.as_deref(),
                    },
                )?;
            }
        }
        for (client, [old, new]) in &self.differ {
            line(
                out,
                &Line::Both {
                    client: client.to_string(),
                    old: Banned::of(old),
                    new: Banned::of(new),
                },
            )?;
        }
        line(
            out,
            &Line::Summary {
                requests,
                old: self.totals[0],
                new: self.totals[1],
                only_old: self.only[0].len(),
                only_new: self.only[1].len(),
                differ: self.differ.len(),
                same: self.same,
            },
        )
    }
}

fn cells(fate: &Fate) -> [String; 5] {
    let challenged = if fate.challenged() { " (challenge)" } else { "" };
    [
        format!("{}", fate.bans.len()),
        format!("{}{challenged}", fate.banned_for()),
        count(fate.stopped),
        count(fate.allowed),
        fate.rules().join(", "),
    ]
}

/// One line of `--json`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Only {
        policy: &'a str,
        client: String,
        #[serde(flatten)]
        fate: Banned<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        instead: Option<&'a str>,
    },
    Both {
        client: String,
        old: Banned<'a>,
        new: Banned<'a>,
    },
    Summary {
        requests: u64,
        old: Totals,
        new: Totals,
        only_old: usize,
        only_new: usize,
        differ: usize,
        same: u64,
    },
}

#[derive(Serialize)]
struct Banned<'a> {
    first: String,
    until: String,
    bans: usize,
    strike: u32,
    banned_for: String,
    stopped: u64,
    allowed: u64,
    rules: Vec<&'a str>,
    challenged: bool,
}

impl<'a> Banned<'a> {
    fn of(fate: &'a Fate) -> Banned<'a> {
        Banned {
            first: fate.first().to_string(),
            until: fate.bans.last().map_or(Minute(0), |ban| ban.1).to_string(),
            bans: fate.bans.len(),
            strike: fate.strike(),
            banned_for: fate.banned_for().to_string(),
            stopped: fate.stopped,
            allowed: fate.allowed,
            rules: fate.rules(),
            challenged: fate.challenged(),
        }
    }
}

fn line(out: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}
