//! The commands on a deployment: `run`, `status`, `plan`, `apply`, `ingest`, `ban`, `unban`, `allow`, `policy push`.
//!
//! All of them go through the same conditional writes as the Lambdas, so that a person and a function never undo each
//! other's work.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use analyzer::client::parse_cidr;
use analyzer::policy::Mode;
use analyzer::{Manual, ManualKind, Minute, Policy, Span, lint, rehearse};
use clap::Args;

use super::exit::{Exit, Failure};
use super::output::{HEADING, Printer, count, several, short, stdout, table, write_table};
use super::time::shown;
use super::{load_policy, time};
use crate::decide::{Act, Decision, Undecided, decide};
use crate::enforce::{Enforcer, Wanted};
use crate::engine::{Engine, Outcome, POLICY_KEY, Run, TickError, chain};
use crate::place::{Aws, LogPlace, Place, State};
use crate::replay::Event;
use crate::report::{Line, write_line};
use crate::store::{Condition, Store, StoreError};

/// Where the state of the deployment is.
#[derive(Args)]
pub(super) struct StateArgs {
    /// The deployment's state: a folder, or `s3://bucket/prefix`
    #[arg(long, value_name = "PLACE", env = "PALISADE_STATE")]
    pub(super) state: Place,
}

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The logs: a folder, or `s3://bucket/prefix` up to the year
    #[arg(long, value_name = "PLACE")]
    logs: Place,
    /// One minute only
    #[arg(long)]
    once: bool,
    /// The minute to judge, for `--once`; this minute if left out
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms, requires = "once")]
    now: Option<i64>,
    /// Judge and show, but save and update nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub(super) struct IngestArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The logs: a folder, or `s3://bucket/prefix` up to the year
    #[arg(long, value_name = "PLACE")]
    logs: Place,
    /// Count as if it were this time
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    now: Option<i64>,
}

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The ledger as it is kept
    #[arg(long)]
    json: bool,
    /// As of this time
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    now: Option<i64>,
}

#[derive(Args)]
pub(super) struct BanArgs {
    #[command(flatten)]
    state: StateArgs,
    /// An address or a network
    cidr: String,
    /// How long, like `1h`; until it is taken back if left out
    #[arg(long, value_name = "SPAN", value_parser = Span::parse)]
    r#for: Option<Span>,
    /// Why; whoever finds it in a year will be glad
    #[arg(long)]
    why: String,
}

#[derive(Args)]
pub(super) struct UnbanArgs {
    #[command(flatten)]
    state: StateArgs,
    /// An address or a network
    cidr: String,
    /// Why
    #[arg(long)]
    why: Option<String>,
}

#[derive(Args)]
pub(super) struct PushArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The policy to put in force
    policy: PathBuf,
}

pub(super) fn this_minute() -> Minute {
    Minute::of_ms(now_ms())
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn minute(now: Option<i64>) -> Minute {
    now.map_or_else(this_minute, Minute::of_ms)
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    built.map_err(|error| Failure::new(format!("failed to start: {error}")))
}

impl From<TickError> for Failure {
    fn from(error: TickError) -> Failure {
        let failure = Failure::new(chain(&error));
        match error {
            TickError::Policy(_) => failure
                .exit(Exit::PolicyRejected)
                .hint("`palisade policy push` checks a policy before it is written"),
            TickError::Contended => failure.hint("another updater runs at the same time; one is enough"),
            TickError::Store(_) | TickError::Format { .. } => failure,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::new(error.to_string())
    }
}

/// Set by Ctrl-C: the tick under way is finished, and no other begins.
static STOP: AtomicBool = AtomicBool::new(false);

pub(super) fn run(args: &RunArgs, printer: &Printer) -> Result<Exit, Failure> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let (mut engine, aws) = engine(&args.state.state, &args.logs).await;
        let mut enforcer = Enforcer::new(aws);
        if args.once {
            return tick(&mut engine, &mut enforcer, minute(args.now), args.dry_run, printer).await;
        }
        let _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
        printer.note("Judging every minute. Ctrl-C finishes the minute under way; twice leaves at once");
        let mut last = Minute(0);
        while !STOP.load(Ordering::SeqCst) {
            let now = this_minute();
            if now > last {
                last = now;
                // A minute that fails is reported and tried again in the next one: everything heals by itself.
                if let Err(failure) = tick(&mut engine, &mut enforcer, now, args.dry_run, printer).await {
                    printer.error(&failure);
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(Exit::Done)
    })
}

async fn engine(state: &Place, logs: &Place) -> (Engine<State, LogPlace>, Aws) {
    let aws = Aws::default();
    let engine = Engine::new(State::at(state, &aws).await, LogPlace::at(logs, &aws).await);
    (engine, aws)
}

/// How long a tick on one machine may take for objects that no tally exists of.
const TALLY_SECONDS_MAX: u64 = 3_600;

async fn tick(
    engine: &mut Engine<State, LogPlace>,
    enforcer: &mut Enforcer,
    now: Minute,
    dry: bool,
    printer: &Printer,
) -> Result<Exit, Failure> {
    let began = Instant::now();
    let ticked = engine
        .tick(now, dry, || began.elapsed().as_secs() < TALLY_SECONDS_MAX)
        .await?;
    {
        let mut out = stdout();
        for verdict in &ticked.judgment.verdicts {
            write_line(
                &mut out,
                &Line::of(&Event {
                    time: now,
                    verdict: verdict.clone(),
                    stopped: 0,
                }),
            )?;
        }
        writeln!(
            out,
            "{}",
            serde_json::to_string(&ticked.summary).map_err(std::io::Error::from)?
        )?;
    }
    for problem in &ticked.summary.problems {
        printer.warn(problem);
    }
    if let Some(why) = &ticked.summary.policy_rejected {
        printer.warn(&format!(
            "`{POLICY_KEY}` was rejected, the policy used before is in force:\n{why}"
        ));
    }
    let mut failed = ticked.summary.left > 0 || ticked.summary.policy_rejected.is_some();
    if !dry {
        let wanted = Wanted {
            mode: ticked.policy.mode,
            bans: &ticked.judgment.ledger.wanted(&ticked.policy, now),
            ours: &ticked.ours,
        };
        let mut reconciled = true;
        let outcomes = enforcer.enforce(&engine.store, &wanted).await?;
        for outcome in &outcomes {
            reconciled &= !say(outcome, printer)?;
        }
        failed |= !reconciled;
        if reconciled {
            engine.left(&ticked.judgment.ledger.leaving).await?;
        }
        let run = Run {
            finished_ms: now_ms(),
            summary: ticked.summary,
            outcomes,
        };
        if let Err(error) = engine.note_run(run).await {
            printer.warn(&format!("the run is not on record: {error}"));
        }
    }
    Ok(if failed { Exit::Incomplete } else { Exit::Done })
}

/// One line of outcome on stdout; failures on stderr. Whether something failed.
fn say(outcome: &Outcome, printer: &Printer) -> Result<bool, Failure> {
    writeln!(
        stdout(),
        "{}",
        serde_json::to_string(outcome).map_err(std::io::Error::from)?
    )?;
    for failure in &outcome.failures {
        printer.warn(failure);
    }
    if outcome.overflow > 0 {
        printer.warn(&format!(
            "{} did not fit into the IP sets, the least deserving ones; name further sets in `deployment.json`",
            several(outcome.overflow as u64, "ban")
        ));
    }
    Ok(!outcome.failures.is_empty())
}

pub(super) fn ingest(args: &IngestArgs, printer: &Printer) -> Result<Exit, Failure> {
    runtime()?.block_on(async {
        let (mut engine, _) = engine(&args.state.state, &args.logs).await;
        let summary = engine.ingest(minute(args.now)).await?;
        for problem in &summary.problems {
            printer.warn(problem);
        }
        writeln!(
            stdout(),
            "{} tallied, {} were; {} read",
            several(summary.tallied as u64, "object"),
            summary.tallies - summary.tallied,
            several(summary.requests, "request")
        )?;
        Ok(if summary.left > 0 { Exit::Incomplete } else { Exit::Done })
    })
}

pub(super) fn status(args: &StatusArgs) -> Result<Exit, Failure> {
    let now = minute(args.now);
    let (ledger, policy) = runtime()?.block_on(async {
        let store = State::at(&args.state.state, &Aws::default()).await;
        let policy = policy_in_force(&store).await?;
        let (ledger, _) = Engine::new(store, ()).ledger().await?;
        Ok::<_, Failure>((ledger, policy))
    })?;
    let mut out = stdout();
    if args.json {
        out.write_all(ledger.to_json().as_bytes())?;
        return Ok(Exit::Done);
    }
    let mode = match policy.mode {
        Mode::Observe => "observe: nothing is blocked",
        Mode::Enforce => "enforce",
    };
    let bans = ledger.bans_in_force(&policy, now);
    writeln!(
        out,
        "{HEADING}{} in force{HEADING:#} at {} UTC ({mode})",
        several(bans.len() as u64, "ban"),
        shown(now)
    )?;
    if !bans.is_empty() {
        let mut rows = table(&["client", "left", "until (UTC)", "strike", "action", "why"], &[1, 3]);
        for (client, ban) in bans {
            let strikes = ledger.offenders.get(&client).map_or(0, |offender| offender.strikes);
            rows.add_row([
                client.to_string(),
                ban.until.since(now).to_string(),
                shown(ban.until),
                strikes.to_string(),
                ban.action.to_string(),
                format!(
                    "{}: {}, last {}",
                    ban.rule,
                    several(ban.hits, "hit"),
                    shown(ban.last_hit)
                ),
            ]);
        }
        write_table(&mut out, &rows)?;
    }
    let by_hand: Vec<&Manual> = ledger.manual.iter().filter(|manual| manual.in_force(now)).collect();
    if !by_hand.is_empty() {
        writeln!(out, "\n{HEADING}By hand{HEADING:#}")?;
        let mut rows = table(&["network", "", "since (UTC)", "until (UTC)", "why"], &[]);
        for manual in by_hand {
            let kind = if manual.kind == ManualKind::Ban {
                "banned"
            } else {
                "allowed"
            };
            let until = manual.until.map_or_else(|| "taken back".to_owned(), shown);
            rows.add_row([
                manual.net.to_string(),
                kind.to_owned(),
                shown(manual.since),
                until,
                short(&manual.why, 80),
            ]);
        }
        write_table(&mut out, &rows)?;
    }
    let waiting = ledger
        .going_on
        .iter()
        .filter(|episode| matches!(episode, analyzer::ledger::Episode::Held(_)))
        .count();
    let known = count(ledger.offenders.len() as u64);
    writeln!(
        out,
        "\n{known} known, of whom some are only remembered; {waiting} held by the brake"
    )?;
    Ok(Exit::Done)
}

pub(super) fn plan(args: &StatusArgs, apply: bool, printer: &Printer) -> Result<Exit, Failure> {
    let now = minute(args.now);
    runtime()?.block_on(async {
        let aws = Aws::default();
        let store = State::at(&args.state.state, &aws).await;
        let policy = policy_in_force(&store).await?;
        let (ledger, _) = Engine::new(store.clone(), ()).ledger().await?;
        let wanted = Wanted {
            mode: policy.mode,
            bans: &ledger.wanted(&policy, now),
            ours: &ledger.ours(),
        };
        if policy.mode == Mode::Observe {
            printer.note(
                "The policy observes, so the IP sets should hold nothing of ours; `palisade status` shows the bans",
            );
        }
        let mut enforcer = Enforcer::new(aws);
        let mut failed = false;
        if apply {
            for outcome in enforcer.enforce(&store, &wanted).await? {
                failed |= say(&outcome, printer)?;
            }
        } else {
            for (outcome, writes) in enforcer.show(&store, &wanted).await? {
                for write in writes {
                    for (sign, nets) in [('+', &write.added), ('-', &write.removed)] {
                        for net in nets {
                            writeln!(stdout(), "{sign} {net} {}", write.set.name)?;
                        }
                    }
                }
                failed |= say(&outcome, printer)?;
            }
        }
        Ok(if failed { Exit::Failed } else { Exit::Done })
    })
}

pub(super) async fn policy_in_force(store: &State) -> Result<Policy, Failure> {
    match store.get(POLICY_KEY).await? {
        None => Ok(Policy::default_policy()),
        Some((bytes, _)) => Policy::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| {
            Failure::new(format!("policy `{POLICY_KEY}` was rejected\n\n{}", error.message)).exit(Exit::PolicyRejected)
        }),
    }
}

/// Carries out a decision by hand and says what was done.
fn by_hand(state: &Place, cidr: &str, act: Act, why: &str) -> Result<Exit, Failure> {
    let net = parse_cidr(cidr).map_err(Failure::usage)?;
    let decision = Decision {
        net,
        act,
        why: why.to_owned(),
    };
    let done = runtime()?.block_on(async {
        let engine = Engine::new(State::at(state, &Aws::default()).await, ());
        decide(&engine, &decision, this_minute()).await
    })?;
    writeln!(stdout(), "{done}")?;
    Ok(Exit::Done)
}

impl From<Undecided> for Failure {
    fn from(error: Undecided) -> Failure {
        match error {
            Undecided::Refused(why, hint) => Failure::new(why).hint(hint),
            Undecided::Failed(error) => error.into(),
        }
    }
}

pub(super) fn ban(args: &BanArgs) -> Result<Exit, Failure> {
    by_hand(&args.state.state, &args.cidr, Act::Ban(args.r#for), &args.why)
}

pub(super) fn allow(args: &BanArgs) -> Result<Exit, Failure> {
    by_hand(&args.state.state, &args.cidr, Act::Allow(args.r#for), &args.why)
}

pub(super) fn unban(args: &UnbanArgs) -> Result<Exit, Failure> {
    by_hand(
        &args.state.state,
        &args.cidr,
        Act::Unban,
        args.why.as_deref().unwrap_or(""),
    )
}

pub(super) fn push(args: &PushArgs, printer: &Printer) -> Result<Exit, Failure> {
    let policy = load_policy(&args.policy)?;
    for lint in lint(&policy) {
        printer.warn(&lint.to_string());
    }
    let failed = rehearse(&policy)
        .iter()
        .filter(|rehearsal| !rehearsal.failures.is_empty())
        .count();
    if failed > 0 {
        return Err(Failure::new(format!(
            "{} of the policy's own tests failed, so it was not pushed",
            failed
        ))
        .exit(Exit::PolicyRejected)
        .hint(format!("`palisade check {}` shows which", args.policy.display())));
    }
    let text = std::fs::read(&args.policy).map_err(|error| Failure::new(format!("failed to read policy: {error}")))?;
    runtime()?.block_on(async {
        State::at(&args.state.state, &Aws::default())
            .await
            .put(POLICY_KEY, text, Condition::Always)
            .await?;
        Ok::<_, Failure>(())
    })?;
    let mode = if policy.mode == Mode::Enforce {
        "enforces"
    } else {
        "observes"
    };
    writeln!(stdout(), "the policy is in force from the next run on; it {mode}")?;
    Ok(Exit::Done)
}
