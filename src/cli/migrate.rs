//! `palisade migrate`: from the AWS solution "Security Automations for AWS WAF".

use std::io::Write;
use std::path::{Path, PathBuf};

use analyzer::Span;
use clap::Args;
use serde::Serialize;

use super::deployment::{StateArgs, minute, runtime};
use super::exit::{Exit, Failure};
use super::output::{HEADING, Printer, count, several, short, stdout};
use super::time;
use crate::engine::{LEDGER_KEY, POLICY_KEY};
use crate::inputs;
use crate::migrate::{self, Kind, Migration, migrate};
use crate::place::{Aws, Place, State};
use crate::store::{Condition, Store};

#[derive(Args)]
pub(super) struct MigrateArgs {
    /// The old solution's `<stack>-…_conf.json` and `<stack>-…_out.json`, and what `aws wafv2 get-ip-set` prints of its
    /// IP sets; or a folder of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    state: StateArgs,
    /// End the bans of its bad-bot set, which never end, after this time, like `7d`
    #[arg(long, value_name = "SPAN", value_parser = Span::parse)]
    bad_bots_for: Option<Span>,
    /// As of this time
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    now: Option<i64>,
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
}

/// One line of `--json`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    /// What became of one thing of the old solution.
    Line(&'a migrate::Line),
    Summary {
        stack: &'a str,
        bans: usize,
        by_hand: usize,
        problems: &'a [String],
    },
}

pub(super) fn run(args: &MigrateArgs, printer: &Printer) -> Result<Exit, Failure> {
    let now = minute(args.now);
    let mut files = Vec::new();
    for path in &args.paths {
        read(path, &mut files)?;
    }
    let migration = migrate(&files, now, args.bad_bots_for).map_err(|error| {
        Failure::new(error.to_string()).hint(
            "give `<stack>-waf_log_conf.json`, `<stack>-waf_log_out.json` and `<stack>-app_log_conf.json` of the old stack's buckets, and its IP sets",
        )
    })?;
    let place = &args.state.state;
    runtime()?.block_on(async {
        let store = State::at(place, &Aws::default()).await;
        // Both are looked at before either is written: half a migration is worse than none.
        for key in [POLICY_KEY, LEDGER_KEY] {
            if store.get(key).await?.is_some() {
                return Err(
                    Failure::new(format!("`{place}` has a `{key}` already, and nothing was written"))
                        .hint("name a new folder after `--state`; `palisade diff` compares two policies"),
                );
            }
        }
        let put = |key: &'static str, text: String| store.put(key, text.into_bytes(), Condition::IfAbsent);
        put(LEDGER_KEY, migration.ledger.to_json()).await?;
        put(POLICY_KEY, migration.policy.clone()).await?;
        Ok(())
    })?;

    let mut out = stdout();
    if args.json {
        let lines = migration.lines.iter().map(Line::Line);
        let summary = Line::Summary {
            stack: &migration.stack,
            bans: migration.ledger.offenders.len(),
            by_hand: migration.ledger.manual.len(),
            problems: &migration.problems,
        };
        for line in lines.chain([summary]) {
            serde_json::to_writer(&mut out, &line).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
    } else {
        write_lines(&mut out, &migration, place)?;
    }
    drop(out);
    for problem in &migration.problems {
        printer.warn(problem);
    }
    printer.note(&format!(
        "Next: `palisade status --state {place}` shows the bans, `palisade check {place}/{POLICY_KEY}` and `palisade replay --policy {place}/{POLICY_KEY} <logs>` the policy"
    ));
    Ok(if migration.problems.is_empty() {
        Exit::Done
    } else {
        Exit::Incomplete
    })
}

/// What became of what, kind by kind.
fn write_lines(out: &mut impl Write, migration: &Migration, place: &Place) -> std::io::Result<()> {
    for (kind, heading) in [
        (Kind::Maps, "The same"),
        (Kind::Better, "Better"),
        (Kind::NoEquivalent, "No equivalent"),
        (Kind::LeftOut, "Left out"),
    ] {
        let lines: Vec<_> = migration.lines.iter().filter(|line| line.kind == kind).collect();
        if lines.is_empty() {
            continue;
        }
        writeln!(out, "{HEADING}{heading}{HEADING:#}")?;
        for line in lines {
            writeln!(out, " {}\n   → {}", short(&line.old, 160), short(&line.now, 300))?;
        }
        writeln!(out)?;
    }
    writeln!(
        out,
        "{place}: `{LEDGER_KEY}` has {} until their minute and {} by hand; `{POLICY_KEY}` observes, so they are blocked only once it says `mode = \"enforce\"`",
        several(migration.ledger.offenders.len() as u64, "ban"),
        count(migration.ledger.manual.len() as u64)
    )
}

/// A file, or the files of a folder.
fn read(path: &Path, files: &mut Vec<(String, Vec<u8>)>) -> Result<(), Failure> {
    let failed = |path: &Path, error: &std::io::Error| {
        Failure::new(format!(
            "failed to read `{}`: {}",
            path.display(),
            inputs::describe(error)
        ))
    };
    if path.is_dir() {
        let entries = path.read_dir().map_err(|error| failed(path, &error))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.is_file());
        paths.sort();
        return paths.iter().try_for_each(|path| read(path, files));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(path, &error))?;
    files.push((path.display().to_string(), bytes));
    Ok(())
}
