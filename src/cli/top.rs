//! `palisade top`: what there was most of.

use std::collections::HashMap;
use std::io::Write;

use analyzer::Policy;
use clap::{Args, ValueEnum};
use ingest::Request;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output::{Printer, count, short, stdout, table, write_table};
use super::progress::Bar;
use super::{LogArgs, PolicyArgs, ending};
use crate::replay::{Collect, read};

#[derive(Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    logs: LogArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// What to count
    #[arg(long, value_enum, default_value = "client")]
    by: By,
    /// How many lines
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    limit: usize,
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Client,
    Uri,
    Host,
    Country,
    UserAgent,
    WafRule,
    Label,
    Ja4,
    Method,
}

/// The most distinct values that are counted exactly; a log with more has no top worth looking at beyond them.
const VALUES_MAX: usize = 2_000_000;

struct Counts<'p> {
    by: By,
    policy: &'p Policy,
    values: HashMap<String, Count>,
    /// Requests whose value came after `VALUES_MAX` others.
    beyond: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    requests: u64,
    allowed: u64,
}

impl Counts<'_> {
    fn add(&mut self, value: &str, requests: u64, allowed: u64) {
        if let Some(count) = self.values.get_mut(value) {
            count.requests += requests;
            count.allowed += allowed;
        } else if self.values.len() < VALUES_MAX {
            self.values.insert(value.to_owned(), Count { requests, allowed });
        } else {
            self.beyond += requests;
        }
    }
}

impl Collect for Counts<'_> {
    fn request(&mut self, request: &Request<'_>) {
        let allowed = u64::from(request.allowed());
        match self.by {
            By::Client => match self.policy.client.client_of(request) {
                Some(client) => self.add(&client.to_string(), 1, allowed),
                None => self.add("-", 1, allowed),
            },
            By::Uri => self.add(&request.uri, 1, allowed),
            By::Host => self.add(request.host.as_deref().unwrap_or("-"), 1, allowed),
            By::Country => self.add(request.country.as_deref().unwrap_or("-"), 1, allowed),
            By::UserAgent => self.add(request.user_agent().unwrap_or("-"), 1, allowed),
            By::WafRule => self.add(&request.waf_rule, 1, allowed),
            By::Label => request.labels.iter().for_each(|label| self.add(label, 1, allowed)),
            By::Ja4 => self.add(request.ja4.as_deref().unwrap_or("-"), 1, allowed),
            By::Method => self.add(&request.method, 1, allowed),
        }
    }

    fn join(&mut self, other: Self) {
        for (value, count) in other.values {
            self.add(&value, count.requests, count.allowed);
        }
        self.beyond += other.beyond;
    }
}

#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    by: &'a str,
    value: &'a str,
    requests: u64,
    allowed: u64,
    share: f64,
}

pub(super) fn run(args: &TopArgs, printer: &Printer) -> Result<Exit, Failure> {
    let policy = args.policy.load()?;
    let period = args.logs.period()?;
    let inputs = args.logs.inputs(&period, printer)?;
    let bar = Bar::start(printer, &inputs);
    let fresh = || Counts {
        by: args.by,
        policy: &policy,
        values: HashMap::new(),
        beyond: 0,
    };
    let reading = read(&inputs, period, args.logs.threads(), &bar, fresh);
    bar.finish();

    let mut lines: Vec<(&String, &Count)> = reading.collected.values.iter().collect();
    lines.sort_by(|a, b| (b.1.requests, a.0).cmp(&(a.1.requests, b.0)));
    let by = args
        .by
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    let share = |count: &Count| count.requests as f64 / reading.requests.max(1) as f64;
    let mut out = stdout();
    if args.json {
        for (value, count) in lines.iter().take(args.limit) {
            let line = Line {
                r#type: "top",
                by: &by,
                value,
                requests: count.requests,
                allowed: count.allowed,
                share: (share(count) * 1e6).round() / 1e6,
            };
            writeln!(out, "{}", serde_json::to_string(&line).map_err(std::io::Error::from)?)?;
        }
    } else {
        let mut shown = table(&["requests", "share", "allowed", &by], &[0, 1, 2]);
        for (value, number) in lines.iter().take(args.limit) {
            let percent = format!("{:.1} %", share(number) * 100.0);
            shown.add_row([
                count(number.requests),
                percent,
                count(number.allowed),
                short(value, 100),
            ]);
        }
        write_table(&mut out, &shown)?;
    }
    drop(out);
    let lines_left = lines.len().saturating_sub(args.limit);
    if lines_left > 0 {
        printer.note(&format!(
            "{} more; `-n {}` shows all",
            count(lines_left as u64),
            lines.len()
        ));
    }
    if reading.collected.beyond > 0 {
        printer.warn(&format!(
            "{} requests had values beyond the first {}, which were not counted",
            count(reading.collected.beyond),
            count(VALUES_MAX as u64)
        ));
    }
    ending(printer, &reading)
}
