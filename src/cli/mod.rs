//! The command line: what was typed, which command it means, and how it ends.

mod athena;
mod check;
mod demo;
mod deployment;
mod diff;
mod drill;
mod exit;
mod explain;
mod generate;
mod html;
mod migrate;
pub(crate) mod output;
mod progress;
mod replay;
mod serve;
pub(crate) mod time;
mod top;
mod tune;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use analyzer::{DEFAULT_POLICY, Policy};
use clap::{Args, CommandFactory, Parser, Subcommand};

pub use exit::{Exit, Failure};
use output::Printer;

use crate::inputs::{self, Inputs};
use crate::replay::{Period, Reading};

/// Turns AWS WAF logs into a wall against the clients that abuse an API.
#[derive(Parser)]
#[command(name = "palisade", version, max_term_width = 110, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say nothing but the results: no progress, no notes
    #[arg(long, short, global = true)]
    quiet: bool,
}

const EXIT_CODES: &str = "Exit codes:\n  \
    0  done\n  \
    1  could not be done\n  \
    2  the command line made no sense\n  \
    3  the policy was rejected\n  \
    4  done, but some input could not be read; the summary says what\n\n\
    Every path is a file, a folder (searched recursively) or `-` for standard input. What a file holds is found\n\
    from its bytes: plain text, gzip or zstd; records on lines, in arrays, or one after another.";

#[derive(Subcommand)]
enum Command {
    /// The whole loop on this machine, no AWS account: traffic, bans, IP sets, report
    Demo(demo::DemoArgs),
    /// Who would have been banned, when, why, for how long, and what that would have stopped
    Replay(replay::ReplayArgs),
    /// One client: rule by rule, window by window
    Explain(explain::ExplainArgs),
    /// What there was most of
    Top(top::TopArgs),
    /// Limits that history suggests, with what each would have done
    Tune(tune::TuneArgs),
    /// Who would be banned by one policy and not by another, and who for another time
    Diff(diff::DiffArgs),
    /// From the AWS solution "Security Automations for AWS WAF": its settings as a policy, its bans as a ledger
    Migrate(migrate::MigrateArgs),
    /// Read a policy as a colleague would, and run the tests in it
    Check(check::CheckArgs),
    /// Print the default policy, to start one's own from; or put one in force
    Policy(PolicyCommand),
    /// The live loop on this machine: every minute judge, save, and update the IP sets
    Run(deployment::RunArgs),
    /// The bans in force
    Status(deployment::StatusArgs),
    /// What one reconciliation of the IP sets would change
    Plan(deployment::StatusArgs),
    /// One reconciliation of the IP sets, now
    Apply(deployment::StatusArgs),
    /// Count what is not yet counted, for example after a change of what rules match
    Ingest(deployment::IngestArgs),
    /// Ban a network by hand
    Ban(deployment::BanArgs),
    /// End a network's bans
    Unban(deployment::UnbanArgs),
    /// Never ban a network
    Allow(deployment::BanArgs),
    /// An incident exercise: a marked attack that harms nobody, and how long it takes until it is banned
    Drill(drill::DrillArgs),
    /// A page of the deployment on this machine: bans in force, IP sets, runs, brake, and what clients did
    Serve(serve::ServeArgs),
    /// The table and the query that count the same thing in Athena, or in a Trino of your own
    Athena(athena::AthenaCommand),
    /// Print a completion script for a shell
    Completions(generate::CompletionsArgs),
    /// Print the manual page
    Man,
}

#[derive(Args)]
struct PolicyCommand {
    #[command(subcommand)]
    action: Option<PolicyAction>,
}

#[derive(Subcommand)]
enum PolicyAction {
    /// Check a policy, run its tests, and put it in force on a deployment
    Push(deployment::PushArgs),
}

/// Which logs, and by which policy.
#[derive(Args)]
struct LogArgs {
    /// Files, folders, or `-`
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Nothing before this time, like `2026-11-01`, `2026-11-01T12:00` (UTC) or `2026-11-01T12:00:00+01:00`
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    from: Option<i64>,
    /// Nothing from this time on
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    to: Option<i64>,
    /// How many threads read; all cores if left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl LogArgs {
    fn period(&self) -> Result<Period, Failure> {
        let period = Period {
            from_ms: self.from,
            to_ms: self.to,
        };
        match (self.from, self.to) {
            (Some(from), Some(to)) if from >= to => Err(Failure::usage(
                "`--from` is not before `--to`, so there is nothing between them",
            )),
            _ => Ok(period),
        }
    }

    fn threads(&self) -> usize {
        self.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            usize::from,
        )
    }

    /// The objects behind the paths.
    ///
    /// # Errors
    /// When there is nothing at all to read.
    fn inputs(&self, period: &Period, printer: &Printer) -> Result<Inputs, Failure> {
        let inputs = inputs::find(&self.paths, period);
        if inputs.foreign_time_zone {
            printer.warn(
                "object names do not tell the time in UTC, so every object is read and only its records' times count",
            );
        }
        if !inputs.objects.is_empty() {
            return Ok(inputs);
        }
        let given: Vec<String> = self.paths.iter().map(|path| format!("`{}`", path.display())).collect();
        Err(match inputs.problems.first() {
            Some(problem) => Failure::new(format!("failed to read `{}`: {}", problem.object, problem.what))
                .hint(if problem.object.starts_with("s3://") {
                    "check the bucket's name, `AWS_PROFILE` and `AWS_REGION`; reading needs `s3:ListBucket` and `s3:GetObject`"
                } else {
                    "give a file or folder with WAF logs, or `-` for standard input"
                }),
            None if inputs.pruned > 0 => Failure::new(format!(
                "none of the {} objects in {} was delivered between `--from` and `--to`",
                inputs.pruned,
                given.join(", ")
            ))
            .hint("times are UTC unless they say otherwise"),
            None => Failure::new(format!(
                "no log objects in {}: there is no file in it",
                given.join(", ")
            ))
            .hint("no data is not the same as no offenders; give the folder to which Firehose or AWS WAF delivered"),
        })
    }
}

/// Which policy.
#[derive(Args)]
struct PolicyArgs {
    /// The policy to judge by; the default policy if left out
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl PolicyArgs {
    fn load(&self) -> Result<Policy, Failure> {
        match &self.policy {
            Some(path) => load_policy(path),
            None => Ok(Policy::default_policy()),
        }
    }
}

fn load_policy(path: &std::path::Path) -> Result<Policy, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(format!("failed to read policy `{name}`: {}", inputs::describe(&error)))
            .hint("run `palisade policy > policy.toml` to start from the default")
    })?;
    Policy::parse(&text).map_err(|error| {
        let failure =
            Failure::new(format!("policy `{name}` was rejected\n\n{}", error.message)).exit(Exit::PolicyRejected);
        match error.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

/// How a command that read logs ends: what could not be read is said on stderr, and in the exit code.
fn ending<C>(printer: &Printer, reading: &Reading<C>) -> Result<Exit, Failure> {
    const SHOWN_MAX: usize = 20;
    for problem in reading.problems.iter().take(SHOWN_MAX) {
        printer.warn(&format!("`{}`: {}", problem.object, problem.what));
    }
    if reading.problems.len() > SHOWN_MAX {
        printer.warn(&format!(
            "{} more objects could not be read",
            reading.problems.len() - SHOWN_MAX
        ));
    }
    let unreadable = !reading.problems.is_empty() || reading.skipped.total() > 0;
    if reading.skipped.total() > 0 {
        let reasons: Vec<String> = reading
            .skipped
            .iter()
            .map(|(skip, count)| format!("{count} {}", skip.name()))
            .collect();
        printer.warn(&format!(
            "skipped {} that could not be read: {}",
            output::several(reading.skipped.total(), "record"),
            reasons.join(", ")
        ));
    }
    if reading.requests == 0 && reading.all_requests > 0 {
        printer.note(&format!(
            "None of the {} in these objects is from between `--from` and `--to`",
            output::several(reading.all_requests, "request")
        ));
    } else if reading.all_requests == 0 && !unreadable {
        printer.note(
            "The objects are empty. No data is not the same as no offenders: is this the folder that WAF's logs go to?",
        );
    }
    if reading.all_requests == 0 && unreadable {
        return Err(
            Failure::new("nothing could be read, so nothing can be said about these logs").hint(
                "Palisade reads AWS WAF full logs: plain, gzip or zstd; `head -c 300` on an object shows what it holds",
            ),
        );
    }
    Ok(if unreadable { Exit::Incomplete } else { Exit::Done })
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                Exit::Done.into()
            };
        }
    };
    let printer = Printer::new(cli.quiet);
    let result = match &cli.command {
        Command::Demo(args) => demo::run(args, &printer),
        Command::Replay(args) => replay::run(args, &printer),
        Command::Explain(args) => explain::run(args, &printer),
        Command::Top(args) => top::run(args, &printer),
        Command::Tune(args) => tune::run(args, &printer),
        Command::Diff(args) => diff::run(args, &printer),
        Command::Migrate(args) => migrate::run(args, &printer),
        Command::Check(args) => check::run(args, &printer),
        Command::Policy(PolicyCommand { action: None }) => print(DEFAULT_POLICY),
        Command::Policy(PolicyCommand {
            action: Some(PolicyAction::Push(args)),
        }) => deployment::push(args, &printer),
        Command::Run(args) => deployment::run(args, &printer),
        Command::Status(args) => deployment::status(args),
        Command::Plan(args) => deployment::plan(args, false, &printer),
        Command::Apply(args) => deployment::plan(args, true, &printer),
        Command::Ingest(args) => deployment::ingest(args, &printer),
        Command::Ban(args) => deployment::ban(args),
        Command::Unban(args) => deployment::unban(args),
        Command::Allow(args) => deployment::allow(args),
        Command::Drill(args) => drill::run(args, &printer),
        Command::Serve(args) => serve::run(args, &printer),
        Command::Athena(command) => athena::run(command, &printer),
        Command::Completions(args) => generate::completions(args, Cli::command()),
        Command::Man => generate::man(&Cli::command()),
    };
    match result {
        Ok(exit) => exit.into(),
        // Whoever reads our output has read enough: `palisade replay … | head`.
        Err(failure) if failure.is_broken_pipe() => Exit::Done.into(),
        Err(failure) => {
            printer.error(&failure);
            failure.code().into()
        }
    }
}

fn print(text: &str) -> Result<Exit, Failure> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}
