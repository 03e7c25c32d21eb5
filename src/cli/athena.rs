//! `palisade athena` and `palisade replay --engine athena`: the table, the query, and what they cost.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use analyzer::athena::{self, Dialect, Layout, Period, Rules, Table};
use analyzer::{Minute, Policy, Span};
use clap::{Args, Subcommand, ValueEnum};

use super::deployment::{StateArgs, minute, policy_in_force, runtime};
use super::exit::{Exit, Failure};
use super::html::{Judged, Page};
use super::output::{Printer, several, stdout};
use super::{PolicyArgs, time};
use crate::athena::{Answer, Athena, AthenaError, Counted, dollars};
use crate::page::Unread;
use crate::place::{Aws, Place, State};
use crate::replay::Replay;
use crate::report::{Line, Summary, write_line};

#[derive(Args)]
pub(super) struct AthenaCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// The statement that defines WAF's logs as a table; `--run` has Athena do it
    Ddl(DdlArgs),
    /// The query that counts what a policy counts; `--run` has Athena answer it
    Sql(SqlArgs),
    /// Count what the rules with `engine = "athena"` look at, for the next minute's judgment; once an hour
    Count(CountArgs),
}

/// Whom to ask.
#[derive(Args)]
pub(super) struct AskArgs {
    /// The table of the logs
    #[arg(long, value_name = "DATABASE.TABLE", default_value = "palisade.waf_logs")]
    table: TableName,
    /// Athena's workgroup, whose limits apply
    #[arg(long, value_name = "NAME", default_value = "primary", env = "PALISADE_WORKGROUP")]
    workgroup: String,
    /// Where Athena puts its results, like `s3://bucket/prefix/`, if the workgroup does not say
    #[arg(long, value_name = "PLACE")]
    results: Option<String>,
    /// Cancel the query after so long
    #[arg(long, value_name = "SPAN", value_parser = Span::parse, default_value = "30m")]
    deadline: Span,
}

#[derive(Args)]
struct DdlArgs {
    /// The logs: `s3://bucket/prefix` up to the year
    #[arg(long, value_name = "PLACE")]
    logs: Location,
    /// The first day that has logs, like `2026-01-01`
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    since: i64,
    /// For whom: Athena, or Trino with its Hive connector
    #[arg(long, value_name = "NAME", default_value = "athena")]
    dialect: DialectName,
    /// Have Athena do it
    #[arg(long)]
    run: bool,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Args)]
struct SqlArgs {
    /// The logs: `s3://bucket/prefix` up to the year
    #[arg(long, value_name = "PLACE")]
    logs: Location,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Nothing before this time: every hour of the period is read, and paid for
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    from: i64,
    /// Nothing from this time on; now if left out
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    to: Option<i64>,
    /// For whom; the query is plain Trino and the same for both
    #[arg(long, value_name = "NAME", default_value = "athena")]
    dialect: DialectName,
    /// Have Athena answer it, as tab-separated lines
    #[arg(long)]
    run: bool,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Args)]
struct CountArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The logs: `s3://bucket/prefix` up to the year
    #[arg(long, value_name = "PLACE")]
    logs: Location,
    /// Count as if it were this time
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    now: Option<i64>,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DialectName {
    Athena,
    Trino,
}

#[derive(Debug, Clone)]
struct TableName {
    database: String,
    name: String,
}

impl FromStr for TableName {
    type Err = String;

    fn from_str(text: &str) -> Result<TableName, String> {
        // `catalog.schema.table` is what a Trino of one's own needs.
        match text.rsplit_once('.') {
            Some((database, name)) if !database.is_empty() && !name.is_empty() => Ok(TableName {
                database: database.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("write `database.table`".to_owned()),
        }
    }
}

/// Where a table's files are; only a bucket for Athena, anything with a scheme for a Trino of one's own.
#[derive(Debug, Clone)]
pub(super) struct Location(String);

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Location, String> {
        if !text.contains("://") {
            return Err("write the bucket as `s3://bucket/prefix`; Athena reads no folders of this machine".to_owned());
        }
        Ok(Location(if text.ends_with('/') {
            text.to_owned()
        } else {
            format!("{text}/")
        }))
    }
}

impl AskArgs {
    fn table(&self, logs: &Location) -> Table {
        Table {
            database: self.table.database.clone(),
            name: self.table.name.clone(),
            location: logs.0.clone(),
            layout: Layout::of_prefix(&logs.0),
        }
    }

    async fn athena(&self) -> Athena {
        Athena::new(Aws::default().config().await, &self.workgroup, self.results.clone())
    }

    /// Resolves when nobody wants to wait any more.
    async fn stop(&self) -> &'static str {
        let _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
        let (began, limit) = (Instant::now(), Duration::from_secs(u64::from(self.deadline.0) * 60));
        loop {
            if STOP.load(Ordering::SeqCst) {
                return "Ctrl-C";
            }
            if began.elapsed() >= limit {
                return "the time of `--deadline` is over";
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Set by Ctrl-C: the query is cancelled; twice leaves at once.
static STOP: AtomicBool = AtomicBool::new(false);

impl From<AthenaError> for Failure {
    fn from(error: AthenaError) -> Failure {
        let failure = Failure::new(error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<athena::Unsayable> for Failure {
    fn from(error: athena::Unsayable) -> Failure {
        Failure::new(error.to_string())
    }
}

pub(super) fn run(command: &AthenaCommand, printer: &Printer) -> Result<Exit, Failure> {
    match &command.action {
        Action::Ddl(args) => ddl(args, printer),
        Action::Sql(args) => sql(args, printer),
        Action::Count(args) => count(args, printer),
    }
}

fn ddl(args: &DdlArgs, printer: &Printer) -> Result<Exit, Failure> {
    let dialect = match args.dialect {
        DialectName::Athena => Dialect::Athena,
        DialectName::Trino => Dialect::Trino,
    };
    let table = args.ask.table(&args.logs);
    let statement = athena::ddl(&table, Minute::of_ms(args.since), dialect)?;
    if !args.run {
        return super::print(&statement);
    }
    only_athena(args.dialect)?;
    runtime()?.block_on(async {
        let athena = args.ask.athena().await;
        let database = format!("CREATE DATABASE IF NOT EXISTS `{}`", table.database);
        athena.run("default", &database, args.ask.stop()).await?;
        athena.run(&table.database, &statement, args.ask.stop()).await?;
        printer.note(&format!(
            "Table `{}.{}` describes the logs in {}",
            table.database, table.name, table.location
        ));
        Ok(Exit::Done)
    })
}

fn sql(args: &SqlArgs, printer: &Printer) -> Result<Exit, Failure> {
    let policy = args.policy.load()?;
    let table = args.ask.table(&args.logs);
    let period = period(args.from, args.to)?;
    let statement = athena::sql(&policy, Rules::All, &table, period)?;
    if !args.run {
        return super::print(&statement);
    }
    only_athena(args.dialect)?;
    runtime()?.block_on(async {
        let athena = args.ask.athena().await;
        athena.check(&table).await?;
        let Answer {
            rows,
            scanned_bytes,
            id,
        } = athena.run(&table.database, &statement, args.ask.stop()).await?;
        let mut out = stdout();
        writeln!(out, "client\trule\tminute\thits\tdetail")?;
        for row in rows {
            let cells: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
            writeln!(out, "{}", cells.join("\t"))?;
        }
        out.flush()?;
        printer.note(&cost(scanned_bytes, &id));
        Ok(Exit::Done)
    })
}

fn count(args: &CountArgs, printer: &Printer) -> Result<Exit, Failure> {
    let now = minute(args.now);
    runtime()?.block_on(async {
        let store = State::at(&args.state.state, &Aws::default()).await;
        let athena = args.ask.athena().await;
        let table = args.ask.table(&args.logs);
        let policy = policy_in_force(&store).await?;
        match athena.count_long(&store, &policy, &table, now, args.ask.stop()).await? {
            None => printer.note("No rule says `engine = \"athena\"`, so there is nothing to count"),
            Some(long) => {
                writeln!(
                    stdout(),
                    "{} counted; {} can still matter",
                    several(long.requests, "request"),
                    several(long.suspects, "client")
                )?;
                printer.note(&cost(long.scanned_bytes, &long.id));
            }
        }
        Ok(Exit::Done)
    })
}

fn only_athena(dialect: DialectName) -> Result<(), Failure> {
    match dialect {
        DialectName::Athena => Ok(()),
        DialectName::Trino => Err(Failure::usage(
            "`--run` asks Athena; give what is printed to your Trino with a client of its own",
        )),
    }
}

fn period(from_ms: i64, to_ms: Option<i64>) -> Result<Period, Failure> {
    let to_ms = to_ms.unwrap_or_else(|| (minute(None) + Span::MINUTE).epoch_seconds() * 1000);
    if from_ms >= to_ms {
        return Err(Failure::usage(
            "`--from` is not before `--to`, so there is nothing between them",
        ));
    }
    Ok(Period { from_ms, to_ms })
}

/// `Athena scanned 12.3 MB (query …), for about $0.00006`.
fn cost(scanned_bytes: u64, id: &str) -> String {
    let (number, unit) = match scanned_bytes {
        0..1_000_000 => (scanned_bytes as f64 / 1e3, "kB"),
        1_000_000..1_000_000_000 => (scanned_bytes as f64 / 1e6, "MB"),
        1_000_000_000..1_000_000_000_000 => (scanned_bytes as f64 / 1e9, "GB"),
        _ => (scanned_bytes as f64 / 1e12, "TB"),
    };
    let dollars = dollars(scanned_bytes);
    let digits = if dollars < 0.01 { 5 } else { 2 };
    format!("Athena scanned {number:.1} {unit} (query {id}), for about ${dollars:.digits$} at $5 a terabyte")
}

/// A replay whose counting is Athena's.
pub(super) struct ByAthena<'a> {
    pub(super) policy: &'a Policy,
    pub(super) policy_name: String,
    /// What to add to a command that reads the same logs.
    pub(super) arguments: String,
    pub(super) ask: &'a AskArgs,
    pub(super) paths: &'a [std::path::PathBuf],
    pub(super) from_ms: Option<i64>,
    pub(super) to_ms: Option<i64>,
    pub(super) json: bool,
}

impl ByAthena<'_> {
    pub(super) fn run(self, page: Option<Page<'_>>, printer: &Printer) -> Result<Exit, Failure> {
        let began = Instant::now();
        let place = match self.paths {
            [one] => one.to_str().map(str::parse::<Place>),
            _ => None,
        };
        let Some(Ok(place @ Place::Bucket { .. })) = place else {
            return Err(Failure::usage(
                "`--engine athena` takes one place like `s3://bucket/prefix`, up to the year",
            ));
        };
        let from_ms = self.from_ms.ok_or_else(|| {
            Failure::usage("`--engine athena` needs `--from`: every hour from then on is read, and paid for")
        })?;
        let table = self.ask.table(&Location(place.to_string()));
        let period = period(from_ms, self.to_ms)?;
        let counted = runtime()?.block_on(async {
            let athena = self.ask.athena().await;
            athena.check(&table).await?;
            athena
                .count(self.policy, Rules::All, &table, period, self.ask.stop())
                .await
        })?;
        let replay = Replay::of(self.policy, &counted.counts.tally);
        let summary = summary(&counted, &replay, began);
        let mut out = stdout();
        if self.json {
            for event in &replay.events {
                write_line(&mut out, &Line::of(event))?;
            }
            write_line(&mut out, &Line::Summary(summary.clone()))?;
        } else {
            super::replay::write_verdicts(&mut out, self.policy, &replay.events)?;
            write_totals(&mut out, &counted, &replay)?;
        }
        out.flush()?;
        drop(out);
        if let Some(page) = page {
            let judged = Judged {
                policy: self.policy,
                policy_name: self.policy_name,
                source: place.to_string(),
                arguments: self.arguments,
                tally: &counted.counts.tally,
                events: &replay.events,
                summary: &summary,
            };
            page.write(judged, |_| Err(Unread::ByAthena), printer)?;
        }
        printer.note(&cost(counted.scanned_bytes, &counted.id));
        if counted.counts.requests == 0 {
            printer.note(
                "Athena found no request between `--from` and `--to`. No data is not the same as no offenders: does `--table` describe these logs?",
            );
        }
        if counted.counts.unreadable > 0 {
            printer.warn(&format!(
                "{} had no time or no client address, or could not be read",
                several(counted.counts.unreadable, "record")
            ));
            return Ok(Exit::Incomplete);
        }
        Ok(Exit::Done)
    }
}

fn summary(counted: &Counted, replay: &Replay, began: Instant) -> Summary {
    let (counts, totals) = (&counted.counts, replay.totals());
    let time = |ms: i64| super::time::rfc3339(ms);
    Summary {
        requests: counts.requests,
        skipped: counts.unreadable,
        skipped_by: if counts.unreadable > 0 {
            BTreeMap::from([("unreadable", counts.unreadable)])
        } else {
            BTreeMap::new()
        },
        unattributed: counts.tally.unattributed,
        clients: counts.clients,
        bans: totals.bans,
        banned_clients: totals.banned_clients,
        stopped: totals.stopped,
        spared: totals.spared,
        held: totals.held,
        alerts: totals.alerts,
        from: counts.times_ms.map(|(first, _)| time(first)),
        to: counts.times_ms.map(|(_, last)| time(last)),
        seconds: (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
        ..Summary::default()
    }
}

fn write_totals(out: &mut impl Write, counted: &Counted, replay: &Replay) -> io::Result<()> {
    let (counts, totals) = (&counted.counts, replay.totals());
    let mut read = format!(
        "Athena counted {} from {}",
        several(counts.requests, "request"),
        several(counts.clients, "client")
    );
    if let Some((first, last)) = counts.times_ms {
        read += &format!(", {} to {}", super::time::rfc3339(first), super::time::rfc3339(last));
    }
    writeln!(out, "{read}")?;
    writeln!(
        out,
        "{} of {} would have stopped {}; {} spared, {} held, {}",
        several(totals.bans, "ban"),
        several(totals.banned_clients, "client"),
        several(totals.stopped, "request"),
        totals.spared,
        totals.held,
        several(totals.alerts, "alert")
    )
}
