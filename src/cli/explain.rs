//! `palisade explain`: one client, rule by rule, window by window.

use std::io::Write;

use analyzer::client::parse_cidr;
use analyzer::tally::Slot;
use analyzer::{Client, Finding, Minute, Policy, Span, Verdict, View, eager, findings};
use clap::Args;
use ingest::{Request, Wants};

use super::exit::{Exit, Failure};
use super::output::{HEADING, Printer, count, several, short, stdout, table, write_table};
use super::progress::Bar;
use super::replay::write_verdicts;
use super::time::{clock, rfc3339, shown};
use super::{LogArgs, PolicyArgs, ending};
use crate::replay::{Collect, Count, Event, Replay, read};
use crate::report::{Line, write_line};

#[derive(Args)]
pub(super) struct ExplainArgs {
    /// An address, or a network as `replay` shows it
    client: String,
    #[command(flatten)]
    logs: LogArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// The client's verdicts only, as `replay --json` writes them
    #[arg(long)]
    json: bool,
}

/// How many of the client's requests are shown.
const SHOWN_MAX: usize = 10;

/// A request as it is shown: never its query string, headers or cookies, which may hold credentials.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    timestamp_ms: i64,
    method: String,
    uri: String,
    action: String,
    waf_rule: String,
    rules: Vec<String>,
}

/// The tally of everybody, and the first requests of one client.
struct Watch<'p> {
    count: Count<'p>,
    policy: &'p Policy,
    client: Client,
    first: Vec<Shown>,
}

impl Collect for Watch<'_> {
    fn wants(&self) -> Wants {
        self.count.wants()
    }

    fn request(&mut self, request: &Request<'_>) {
        self.count.request(request);
        if self.policy.client.client_of(request) == Some(self.client) {
            let rules = self
                .policy
                .rules
                .iter()
                .filter(|rule| !rule.matches.conditions.is_empty() && rule.counts(request));
            self.first.push(Shown {
                timestamp_ms: request.timestamp_ms,
                method: request.method.to_string(),
                uri: short(&request.uri, 200),
                action: request.action.to_string(),
                waf_rule: request.waf_rule.to_string(),
                rules: if self.policy.ours.stopped(request) {
                    Vec::new()
                } else {
                    rules.map(|rule| rule.name.clone()).collect()
                },
            });
            self.keep_first();
        }
    }

    fn settle(&mut self) {
        self.count.settle();
    }

    fn join(&mut self, other: Self) {
        self.count.join(other.count);
        self.first.extend(other.first);
        self.keep_first();
    }
}

impl Watch<'_> {
    fn keep_first(&mut self) {
        self.first.sort();
        self.first.truncate(SHOWN_MAX);
    }
}

pub(super) fn run(args: &ExplainArgs, printer: &Printer) -> Result<Exit, Failure> {
    let policy = args.policy.load()?;
    let net = parse_cidr(&args.client).map_err(Failure::usage)?;
    let client = Client::of(net.addr(), policy.client.ipv6_prefix);
    let period = args.logs.period()?;
    let inputs = args.logs.inputs(&period, printer)?;
    let bar = Bar::start(printer, &inputs);
    let fresh = || Watch {
        count: Count::new(&policy),
        policy: &policy,
        client,
        first: Vec::new(),
    };
    let reading =
        read(&inputs, period, args.logs.threads(), &bar, fresh).map(|watch| (watch.count.into_tally(), watch.first));
    bar.finish();
    let (tally, first_requests) = &reading.collected;
    let replay = Replay::of(&policy, tally);
    let theirs: Vec<Event> = replay
        .events
        .into_iter()
        .filter(|event| match &event.verdict {
            Verdict::Ban(charge, _)
            | Verdict::Held(charge, _)
            | Verdict::Spared(charge, _)
            | Verdict::Alert(charge) => charge.client == client,
            Verdict::Crowd(_) => false,
        })
        .collect();
    let mut out = stdout();
    if args.json {
        for event in &theirs {
            write_line(&mut out, &Line::of(event))?;
        }
        drop(out);
        return ending(printer, &reading);
    }
    let Some(cells) = tally.cells(client) else {
        writeln!(
            out,
            "{client} made none of the {} in these logs",
            several(reading.requests, "request")
        )?;
        drop(out);
        return ending(printer, &reading);
    };
    let end = Minute(u32::MAX);
    let (requests, refused, ours) = (
        cells.sum(Slot::REQUESTS, Minute(0), end),
        cells.sum(Slot::REFUSED, Minute(0), end),
        cells.sum(Slot::OURS, Minute(0), end),
    );
    let minutes = || cells.all().iter().map(|cell| cell.minute);
    let (first, last) = (minutes().min().unwrap_or_default(), minutes().max().unwrap_or_default());
    writeln!(
        out,
        "{HEADING}{client}{HEADING:#} made {}, {} to {} (UTC): {} allowed, {} refused by WAF, {} stopped by our own rules",
        several(requests + ours, "request"),
        shown(first),
        shown(last + Span::MINUTE),
        count(requests - refused),
        count(refused),
        count(ours)
    )?;
    if let Some(because) = policy.spares(client) {
        writeln!(out, "It is never banned ({because})")?;
    }

    writeln!(out, "\n{HEADING}Its worst window, rule by rule{HEADING:#}")?;
    let mut rows = table(
        &[
            "rule",
            "hits",
            "limit",
            "window",
            "when (UTC)",
            "share of its requests",
            "",
        ],
        &[1, 2],
    );
    let mut matched = Vec::new();
    for finding in findings(&eager(&policy), tally, client, View::ALL) {
        let (Finding::Offense(offense) | Finding::Shared(offense)) = finding;
        matched.push(offense.rule);
        let rule = &policy.rules[offense.rule];
        let share = offense.matched as f64 / offense.requests.max(1) as f64;
        let needed = rule
            .share
            .map(|share| format!(", {:.0} % needed", share * 100.0))
            .unwrap_or_default();
        let reached = offense.hits >= u64::from(rule.limit);
        rows.add_row([
            rule.name.clone(),
            count(offense.hits),
            count(u64::from(rule.limit)),
            rule.window.to_string(),
            format!("{}–{}", shown(offense.first_hit), clock(offense.last_hit)),
            format!("{:.0} %{needed}", share * 100.0),
            if reached {
                "limit reached".to_owned()
            } else {
                String::new()
            },
        ]);
    }
    write_table(&mut out, &rows)?;
    let silent: Vec<&str> = policy
        .rules
        .iter()
        .enumerate()
        .filter(|(at, _)| !matched.contains(at))
        .map(|(_, rule)| rule.name.as_str())
        .collect();
    if !silent.is_empty() {
        writeln!(out, " none of its requests matched {}", silent.join(", "))?;
    }
    writeln!(out)?;

    if theirs.is_empty() {
        writeln!(
            out,
            "{HEADING}Decided{HEADING:#}\n nothing: no window reached its limit\n"
        )?;
    } else {
        write_verdicts(&mut out, &policy, &theirs)?;
        let mut reasons: Vec<&str> = Vec::new();
        for event in &theirs {
            if let Verdict::Ban(charge, _)
            | Verdict::Held(charge, _)
            | Verdict::Spared(charge, _)
            | Verdict::Alert(charge) = &event.verdict
            {
                reasons.extend(
                    policy
                        .rules
                        .iter()
                        .filter(|rule| rule.name == charge.rule)
                        .map(|rule| rule.why.as_str()),
                );
            }
        }
        reasons.sort_unstable();
        reasons.dedup();
        for reason in reasons {
            writeln!(out, " {reason}")?;
        }
        writeln!(out)?;
    }

    writeln!(
        out,
        "{HEADING}Its first requests{HEADING:#}, without query strings and headers, which may hold credentials"
    )?;
    let mut rows = table(&["time (UTC)", "action", "by", "request", "counts for"], &[]);
    for request in first_requests {
        rows.add_row([
            rfc3339(request.timestamp_ms),
            short(&request.action, 12),
            short(&request.waf_rule, 40),
            format!("{} {}", short(&request.method, 10), short(&request.uri, 60)),
            request.rules.join(", "),
        ]);
    }
    write_table(&mut out, &rows)?;
    drop(out);
    ending(printer, &reading)
}
