//! `palisade tune`: limits that history suggests, with what each would have done.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use analyzer::tune::{AT_MOST, Effect, Grounds, Tuning, stopped_by_us, tune};
use analyzer::{DEFAULT_POLICY, Policy, Tally, Verdict, rehearse};
use clap::Args;
use serde::Serialize;
use toml_edit::{DocumentMut, Item, RawString, Value};

use super::exit::{Exit, Failure};
use super::output::{HEADING, Printer, count, several, stdout, table, write_table};
use super::progress::Bar;
use super::time::rfc3339;
use super::{LogArgs, PolicyArgs, ending};
use crate::inputs;
use crate::replay::{Count, Reading, Replay, read};

#[derive(Args)]
pub(super) struct TuneArgs {
    #[command(flatten)]
    logs: LogArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Write the policy with the suggested limits, and a comment at each, to this new file; all else stays as it is
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
}

/// How many clients that stand out are named.
const NAMED_MAX: usize = 5;

/// Less history than this does not know what an ordinary week is like.
const HISTORY_MS_MIN: i64 = 7 * 24 * 3_600_000;

pub(super) fn run(args: &TuneArgs, printer: &Printer) -> Result<Exit, Failure> {
    let policy = args.policy.load()?;
    if let Some(path) = &args.write
        && path.exists()
    {
        return Err(Failure::new(format!("`{}` is there already", path.display())).hint(
            "name a new file after `--write`, compare the two, and put it in force with `palisade policy push`",
        ));
    }
    let period = args.logs.period()?;
    let inputs = args.logs.inputs(&period, printer)?;
    let bar = Bar::start(printer, &inputs);
    let reading = read(&inputs, period, args.logs.threads(), &bar, || Count::new(&policy)).map(Count::into_tally);
    bar.finish();
    let tally = &reading.collected;
    let tunings = tune(&policy, tally);
    let mut suggested = policy.clone();
    for (rule, tuning) in suggested.rules.iter_mut().zip(&tunings) {
        rule.limit = tuning.suggestion.limit;
    }
    let outcomes = [Outcome::of(&policy, tally), Outcome::of(&suggested, tally)];

    let mut out = stdout();
    if args.json {
        for tuning in &tunings {
            write_json(&mut out, &Line::of(tuning))?;
        }
        write_json(&mut out, &Line::summary(&reading, outcomes))?;
    } else {
        write_tables(&mut out, &tunings, &reading, outcomes)?;
    }
    out.flush()?;
    drop(out);
    if let (Some((first, last)), false) = (reading.times_ms, args.json)
        && last - first < HISTORY_MS_MIN
    {
        printer.note("These logs are shorter than a week; a limit that suits them may not suit a busier day");
    }
    if stopped_by_us(tally) > 0 {
        printer.note(&format!(
            "{} were stopped by our own rules and count for nothing; what those clients would have done, no history tells",
            several(stopped_by_us(tally), "request")
        ));
    }
    if let Some(path) = &args.write {
        write_policy(path, args.policy.policy.as_deref(), &tunings, &reading, printer)?;
    }
    ending(printer, &reading)
}

/// What a whole policy would have done, judged as it would be: with all rules and the brake.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Outcome {
    bans: u64,
    banned_clients: u64,
    stopped: u64,
    allowed: u64,
    held: u64,
}

impl Outcome {
    fn of(policy: &Policy, tally: &Tally) -> Outcome {
        let replay = Replay::of(policy, tally);
        let totals = replay.totals();
        let allowed = replay.events.iter().map(|event| match &event.verdict {
            Verdict::Ban(charge, sentence) => tally.allowed_of(charge.client, event.time, sentence.until),
            _ => 0,
        });
        Outcome {
            bans: totals.bans,
            banned_clients: totals.banned_clients,
            stopped: totals.stopped,
            allowed: allowed.sum(),
            held: totals.held,
        }
    }
}

/// The share below which so many of the ordinary clients stay.
const QUANTILES: [(f64, &str); 4] = [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];

fn write_tables(
    out: &mut impl Write,
    tunings: &[Tuning],
    reading: &Reading<Tally>,
    [now, then]: [Outcome; 2],
) -> io::Result<()> {
    for tuning in tunings.iter().filter(|tuning| tuning.matched() > 0) {
        write_rule(out, tuning)?;
    }
    let silent: Vec<&str> = tunings
        .iter()
        .filter(|tuning| tuning.matched() == 0)
        .map(|tuning| tuning.rule.as_str())
        .collect();
    if !silent.is_empty() {
        writeln!(
            out,
            "{HEADING}Nothing matched{HEADING:#} {}: these logs say nothing about their limits, so they stay\n",
            silent.join(", ")
        )?;
    }
    let changed: Vec<String> = tunings
        .iter()
        .filter(|tuning| tuning.suggestion.limit != tuning.limit)
        .map(|tuning| {
            format!(
                "{} {} → {}",
                tuning.rule,
                count(tuning.limit.into()),
                count(tuning.suggestion.limit.into())
            )
        })
        .collect();
    let clients = reading.collected.clients() as u64;
    let mut read = format!(
        "Read {} from {}",
        several(reading.requests, "request"),
        several(clients, "client")
    );
    if let Some((first, last)) = reading.times_ms {
        read += &format!(", {} to {}", rfc3339(first), rfc3339(last));
    }
    writeln!(out, "{read}")?;
    let told = |outcome: Outcome| {
        format!(
            "{} of {} would have stopped {}, {} of them allowed; {} held",
            several(outcome.bans, "ban"),
            several(outcome.banned_clients, "client"),
            several(outcome.stopped, "request"),
            count(outcome.allowed),
            outcome.held
        )
    };
    writeln!(out, "All rules and the brake together: {}", told(now))?;
    if changed.is_empty() {
        return writeln!(out, "Every limit stays");
    }
    writeln!(out, "With {}: {}", changed.join(", "), told(then))
}

fn write_rule(out: &mut impl Write, tuning: &Tuning) -> io::Result<()> {
    let what = match &tuning.distinct {
        Some(field) => format!("distinct {field}"),
        None => "hits".to_owned(),
    };
    let share = tuning.share.map_or(String::new(), |share| {
        format!(", at least {:.0} % of the client's requests", share * 100.0)
    });
    writeln!(
        out,
        "{HEADING}{}{HEADING:#}: limit {} {what} in {}{share}",
        tuning.rule,
        count(tuning.limit.into()),
        tuning.window
    )?;
    let mut clients = format!(
        " {} of {} clients matched",
        count(tuning.matched()),
        count(tuning.clients + tuning.allowed)
    );
    if !tuning.ordinary.is_empty() {
        let quantiles = QUANTILES.map(|(share, name)| format!("{name} {}", count(tuning.quantile(share))));
        clients += &format!(
            "; worst windows of {} that do not stand out: {}, most {}",
            several(tuning.ordinary.len() as u64, "client"),
            quantiles.join(", "),
            count(tuning.quantile(1.0))
        );
    }
    writeln!(out, "{clients}")?;
    if !tuning.standing_out.is_empty() {
        let named = tuning.standing_out.iter().take(NAMED_MAX);
        let mut named: Vec<String> = named
            .map(|(client, hits)| format!("{client} {}", count(*hits)))
            .collect();
        if tuning.standing_out.len() > NAMED_MAX {
            named.push(format!(
                "… and {} more",
                count((tuning.standing_out.len() - NAMED_MAX) as u64)
            ));
        }
        writeln!(out, " standing out: {}", named.join(", "))?;
    }
    if tuning.shared.0 > 0 {
        writeln!(
            out,
            " spared by the share whatever the limit: {}, up to {}",
            several(tuning.shared.0, "client"),
            count(tuning.shared.1)
        )?;
    }
    if tuning.allowed > 0 {
        writeln!(out, " never banned, so left out: {}", several(tuning.allowed, "client"))?;
    }
    let mut rows = table(
        &["limit", "clients", "bans", "stopped", "allowed of these", ""],
        &[0, 1, 2, 3, 4],
    );
    for effect in &tuning.limits {
        let here = match (effect.limit == tuning.limit, effect.limit == tuning.suggestion.limit) {
            (true, true) => "now, and suggested",
            (true, false) => "now",
            (false, true) => "suggested",
            (false, false) => "",
        };
        rows.add_row([
            count(effect.limit.into()),
            count(effect.clients),
            count(effect.bans),
            count(effect.stopped),
            count(effect.allowed),
            here.to_owned(),
        ]);
    }
    write_table(out, &rows)?;
    writeln!(
        out,
        " {} {}: {}\n",
        advice(tuning),
        count(tuning.suggestion.limit.into()),
        tuning.suggestion.because
    )
}

fn advice(tuning: &Tuning) -> &'static str {
    match tuning.suggestion.limit.cmp(&tuning.limit) {
        std::cmp::Ordering::Less => "lower to",
        std::cmp::Ordering::Equal => "keep",
        std::cmp::Ordering::Greater => "raise to",
    }
}

/// One line of `--json`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Rule {
        rule: &'a str,
        limit: u32,
        window: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        share: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        distinct: Option<String>,
        /// Clients that may be banned, matched or not.
        clients: u64,
        matched: u64,
        never_banned: u64,
        spared_by_share: u64,
        spared_most: u64,
        ordinary: Ordinary,
        standing_out: Vec<StandingOut>,
        limits: Vec<Limit>,
        suggested: u32,
        grounds: String,
        because: &'a str,
    },
    Summary {
        objects: u64,
        requests: u64,
        skipped: u64,
        clients: u64,
        from: Option<String>,
        to: Option<String>,
        now: Outcome,
        suggested: Outcome,
    },
}

#[derive(Serialize)]
struct Ordinary {
    clients: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    most: u64,
}

#[derive(Serialize)]
struct StandingOut {
    client: String,
    hits: u64,
}

#[derive(Serialize)]
struct Limit {
    limit: u32,
    /// For which of the four questions this is the lowest limit: at most so many clients banned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    at_most: Vec<u64>,
    clients: u64,
    bans: u64,
    stopped: u64,
    allowed: u64,
}

impl<'a> Line<'a> {
    fn of(tuning: &'a Tuning) -> Line<'a> {
        let limit = |effect: &Effect| Limit {
            limit: effect.limit,
            at_most: AT_MOST
                .into_iter()
                .filter(|most| lowest_for(tuning, *most) == Some(effect.limit))
                .collect(),
            clients: effect.clients,
            bans: effect.bans,
            stopped: effect.stopped,
            allowed: effect.allowed,
        };
        let standing_out = |(client, hits): &(analyzer::Client, u64)| StandingOut {
            client: client.to_string(),
            hits: *hits,
        };
        Line::Rule {
            rule: &tuning.rule,
            limit: tuning.limit,
            window: tuning.window.to_string(),
            share: tuning.share,
            distinct: tuning.distinct.as_ref().map(ToString::to_string),
            clients: tuning.clients,
            matched: tuning.matched(),
            never_banned: tuning.allowed,
            spared_by_share: tuning.shared.0,
            spared_most: tuning.shared.1,
            ordinary: Ordinary {
                clients: tuning.ordinary.len() as u64,
                p50: tuning.quantile(0.5),
                p90: tuning.quantile(0.9),
                p99: tuning.quantile(0.99),
                p999: tuning.quantile(0.999),
                most: tuning.quantile(1.0),
            },
            standing_out: tuning.standing_out.iter().map(standing_out).collect(),
            limits: tuning.limits.iter().map(limit).collect(),
            suggested: tuning.suggestion.limit,
            grounds: tuning.suggestion.grounds.to_string(),
            because: &tuning.suggestion.because,
        }
    }

    fn summary(reading: &Reading<Tally>, [now, suggested]: [Outcome; 2]) -> Line<'a> {
        Line::Summary {
            objects: reading.objects,
            requests: reading.requests,
            skipped: reading.skipped.total(),
            clients: reading.collected.clients() as u64,
            from: reading.times_ms.map(|(first, _)| rfc3339(first)),
            to: reading.times_ms.map(|(_, last)| rfc3339(last)),
            now,
            suggested,
        }
    }
}

/// The lowest of the shown limits at which no more than `most` clients are banned.
fn lowest_for(tuning: &Tuning, most: u64) -> Option<u32> {
    let few = tuning.limits.iter().filter(|effect| effect.clients <= most);
    few.map(|effect| effect.limit).min()
}

fn write_json(out: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// What a comment of ours begins with, so that the next one can take its place.
const COMMENT: &str = "# tune ";

fn write_policy(
    path: &Path,
    policy: Option<&Path>,
    tunings: &[Tuning],
    reading: &Reading<Tally>,
    printer: &Printer,
) -> Result<(), Failure> {
    let name = path.display();
    let text = match policy {
        None => DEFAULT_POLICY.to_owned(),
        Some(policy) => std::fs::read_to_string(policy).map_err(|error| {
            Failure::new(format!(
                "failed to read policy `{}`: {}",
                policy.display(),
                inputs::describe(&error)
            ))
        })?,
    };
    let when = reading.times_ms.map_or_else(String::new, |(first, last)| {
        format!("{} to {}", rfc3339(first), rfc3339(last))
    });
    let text = tuned(&text, tunings, &when)?;
    let written = Policy::parse(&text)
        .map_err(|error| Failure::new(format!("the tuned policy would be wrong: {}", error.message)))?;
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Failure::new(format!("failed to write `{name}`: {}", inputs::describe(&error))))?;
    printer.note(&format!(
        "Wrote `{name}`; `palisade diff` shows on any logs whom it bans and the old one does not"
    ));
    for rehearsal in rehearse(&written) {
        if !rehearsal.failures.is_empty() {
            printer.warn(&format!(
                "rule `{}`, test \"{}\" tells another story now; change the test or the limit, for a policy whose own tests fail can't be pushed",
                rehearsal.rule, rehearsal.test
            ));
        }
    }
    Ok(())
}

/// The policy's text with the suggested limits, and a comment above each; everything else is left as it was.
fn tuned(text: &str, tunings: &[Tuning], when: &str) -> Result<String, Failure> {
    let odd = || Failure::new("failed to change the policy: its rules are not written as `[[rule]]`");
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error| Failure::new(format!("failed to change the policy: {error}")))?;
    let Some(rules) = document.get_mut("rule") else {
        return Ok(text.to_owned());
    };
    let rules = rules.as_array_of_tables_mut().ok_or_else(odd)?;
    for (rule, tuning) in rules.iter_mut().zip(tunings) {
        let (mut key, item) = rule.get_key_value_mut("limit").ok_or_else(odd)?;
        let Item::Value(value) = item else { return Err(odd()) };
        let mut limit = Value::from(i64::from(tuning.suggestion.limit));
        *limit.decor_mut() = value.decor().clone();
        if tuning.suggestion.limit != tuning.limit {
            *value = limit;
        }
        let decor = key.leaf_decor_mut();
        let before = decor.prefix().and_then(RawString::as_str).unwrap_or_default();
        let indent = before.rsplit('\n').next().unwrap_or_default().to_owned();
        let mut prefix: String = before
            .split_inclusive('\n')
            .filter(|line| !line.trim_start().starts_with(COMMENT) && line.ends_with('\n'))
            .collect();
        if tuning.suggestion.grounds != Grounds::NoMatch {
            let was = if tuning.suggestion.limit == tuning.limit {
                "kept".to_owned()
            } else {
                format!("was {}", tuning.limit)
            };
            prefix += &format!("{indent}{COMMENT}({when}): {was}; {}.\n", tuning.suggestion.because);
        }
        decor.set_prefix(prefix + &indent);
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use analyzer::Span;
    use analyzer::policy::Then;
    use analyzer::tune::Suggestion;

    use super::*;

    fn tuning(limit: u32, suggested: u32, grounds: Grounds) -> Tuning {
        Tuning {
            rule: "a".into(),
            limit,
            window: Span(5),
            share: None,
            distinct: None,
            then: Then::Ban,
            clients: 1,
            ordinary: vec![],
            standing_out: vec![],
            shared: (0, 0),
            allowed: 0,
            limits: vec![],
            suggestion: Suggestion {
                limit: suggested,
                grounds,
                because: "because".into(),
            },
        }
    }

    #[test]
    fn only_limits_change_and_a_second_tuning_replaces_the_comments_of_the_first() {
        let text = "# mine\n[[rule]]\nname   = \"a\" # the first\nwhy = 'x'\n# twenty, says Eva\nlimit  = 20   # hits...\nwindow = \"5m\"\n\n  [[rule.test]] # and a test\n  name = \"t\"\n  sends = []\n\n[[rule]]\nname = \"b\"\nwhy = \"y\"\n  limit = 3\nwindow = \"1m\"\n";
        let tunings = [tuning(20, 1_700, Grounds::Gap), tuning(3, 3, Grounds::NoMatch)];
        let once = tuned(text, &tunings, "then").unwrap();
        assert_eq!(
            once,
            text.replace("limit  = 20   #", "# tune (then): was 20; because.\nlimit  = 1700   #")
        );
        let again = [tuning(1_700, 1_700, Grounds::NoGap), tuning(3, 4, Grounds::TooMany)];
        assert_eq!(
            tuned(&once, &again, "now").unwrap(),
            text.replace("limit  = 20   #", "# tune (now): kept; because.\nlimit  = 1700   #")
                .replace("  limit = 3\n", "  # tune (now): was 3; because.\n  limit = 4\n")
        );
        assert_eq!(tuned("mode = \"observe\"\n", &[], "").unwrap(), "mode = \"observe\"\n");
        assert!(tuned("rule = [{ limit = 1 }]", &tunings, "").is_err());
    }
}
