//! Judges every minute, and makes IP sets agree.
//!
//! A process stays warm between invocations and remembers the tallies it has read. Nothing depends on that: see
//! [`crate::engine`].

use ::analyzer::athena::{Layout, Table};
use ::analyzer::policy::Mode;
use ::analyzer::{Minute, Verdict};
use chrono::DateTime;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use super::emf::{Metric, Unit, embed};
use super::notice::{Notice, notice};
use super::{Function, Setup, Time, say};
use crate::athena::{Athena, dollars};
use crate::enforce::{Enforcer, Wanted, keep};
use crate::engine::{Engine, Outcome, Run, TickError, Ticked, chain};
use crate::place::{Aws, LogPlace, State};
use crate::replay::Event;
use crate::report::Line;

/// A line in CloudWatch Logs has a largest size, and whoever has that many problems has one.
const PROBLEMS_MAX: usize = 20;

/// The function that judges.
pub struct Updater {
    warm: Mutex<(Engine<State, LogPlace>, Enforcer)>,
    topic: Option<Topic>,
    /// Whom to ask for counts over long windows, and about which table.
    athena: Option<(Athena, Table)>,
    function: String,
}

/// Who hears of new bans.
struct Topic {
    client: aws_sdk_sns::Client,
    arn: String,
    addresses: bool,
}

impl Function for Updater {
    async fn new(setup: Setup) -> Result<Updater, String> {
        let aws = Aws::default();
        let (state, logs) = (
            State::at(&setup.state, &aws).await,
            LogPlace::at(&setup.logs, &aws).await,
        );
        // Here and not every minute: whoever changes the environment gets new processes.
        if let Some(deployment) = &setup.deployment {
            keep(&state, deployment).await.map_err(|error| chain(&error))?;
        }
        let topic = match setup.topic {
            None => None,
            Some((arn, addresses)) => Some(Topic {
                client: aws_sdk_sns::Client::new(aws.config().await),
                arn,
                addresses,
            }),
        };
        let athena = match setup.athena {
            None => None,
            Some((workgroup, (database, name))) => {
                let location = setup.logs.to_string();
                let layout = Layout::of_prefix(&location);
                let table = Table {
                    database,
                    name,
                    location,
                    layout,
                };
                Some((Athena::new(aws.config().await, workgroup, None), table))
            }
        };
        Ok(Updater {
            athena,
            warm: Mutex::new((Engine::new(state, logs), Enforcer::new(aws))),
            topic,
            function: setup.function,
        })
    }

    async fn invoke(&self, event: Value, time: Time) -> Result<Value, String> {
        let order = Order::of(&event, time);
        let updated = match &order {
            Ok(order) if order.count => self.count(order.now, time).await.map_err(|why| (why, false)),
            Ok(order) => self.update(order, time).await,
            Err(why) => Err((why.clone(), false)),
        };
        updated.map_err(|(why, policy_rejected)| {
            let line = Map::from_iter([("type".to_owned(), json!("error")), ("why".to_owned(), json!(why))]);
            let metrics = [
                Metric::count("failures", 1),
                Metric::count("policy_errors", policy_rejected),
            ];
            say(&embed(line, &metrics, &self.function, time.began_ms()));
            why
        })
    }
}

impl Updater {
    /// Does as ordered, or says why not and whether that is because there is no policy.
    async fn update(&self, order: &Order, time: Time) -> Result<Value, (String, bool)> {
        let mut warm = self.warm.lock().await;
        let (engine, enforcer) = &mut *warm;
        let ticked = engine.tick(order.now, order.dry_run, || time.is_left()).await;
        let ticked = ticked.map_err(|error| (chain(&error), matches!(error, TickError::Policy(_))))?;
        let verdicts: Vec<Value> = ticked
            .judgment
            .verdicts
            .iter()
            .map(|verdict| line_of(order.now, verdict))
            .collect();
        verdicts.iter().for_each(say);

        let wanted = Wanted {
            mode: ticked.policy.mode,
            bans: &ticked.judgment.ledger.wanted(&ticked.policy, order.now),
            ours: &ticked.ours,
        };
        let unread = |error| (chain(&error), false);
        if order.dry_run {
            let shown = enforcer.show(&engine.store, &wanted).await.map_err(unread)?;
            let plan: Vec<Value> = shown
                .iter()
                .map(|(outcome, writes)| {
                    let writes = writes
                        .iter()
                        .map(|write| json!({"set": write.set.name, "added": write.added, "removed": write.removed}));
                    json!({"outcome": outcome, "writes": writes.collect::<Vec<_>>()})
                })
                .collect();
            let summary = summary_of(&ticked, order);
            say(&Value::Object(summary.clone()));
            return Ok(json!({"summary": summary, "verdicts": verdicts, "plan": plan}));
        }
        let judged_ms = time.elapsed_ms();
        let outcomes = enforcer.enforce(&engine.store, &wanted).await.map_err(unread)?;
        let enforced_ms = time.elapsed_ms() - judged_ms;
        let untold = match &self.topic {
            Some(topic) => topic.tell(&ticked, order.now, &self.function).await,
            None => Ok(()),
        };
        let metrics = metrics(&ticked, &outcomes, untold.is_err(), time, enforced_ms);
        let mut summary = summary_of(&ticked, order);
        let failures: Vec<&str> = outcomes
            .iter()
            .flat_map(|outcome| &outcome.failures)
            .chain(untold.as_ref().err())
            .map(String::as_str)
            .collect();
        summary.insert("failed".into(), json!(failures));
        say(&embed(summary.clone(), &metrics, &self.function, time.began_ms()));
        let run = Run {
            finished_ms: time.began_ms(),
            summary: ticked.summary.clone(),
            outcomes: outcomes.clone(),
        };
        // For people to look at: a run that is done does not fail because nobody wrote it down.
        if let Err(error) = engine.note_run(run).await {
            say(&json!({"type": "warning", "why": chain(&error)}));
        }
        if failures.is_empty() {
            let left = engine.left(&ticked.judgment.ledger.leaving).await;
            left.map_err(|error| (chain(&error), false))?;
            Ok(json!({"summary": summary, "outcomes": outcomes}))
        } else {
            // The ledger is saved; what is left is to be done again, by Lambda's retry or in the next minute.
            Err((failures.join("; "), false))
        }
    }
}

impl Updater {
    /// Has Athena count what the rules with long windows look at. The judging goes on meanwhile, in another process, and
    /// takes the counts when they are there.
    async fn count(&self, now: Minute, time: Time) -> Result<Value, String> {
        let (athena, table) = self
            .athena
            .as_ref()
            .ok_or("`PALISADE_WORKGROUP` and `PALISADE_TABLE` are not set, so there is no Athena to ask")?;
        let warm = self.warm.lock().await;
        let (policy, _) = warm.0.policy_in_use().await.map_err(|error| chain(&error))?;
        let stop = async {
            tokio::time::sleep(time.patience()).await;
            "the function's time is over"
        };
        let counted = athena.count_long(&warm.0.store, &policy, table, now, stop).await;
        let counted = counted.map_err(|error| match error.hint() {
            Some(hint) => format!("{}: {hint}", chain(&error)),
            None => chain(&error),
        })?;
        let mut line = Map::from_iter([("type".to_owned(), json!("counted"))]);
        let mut metrics = Vec::new();
        if let Some(long) = counted {
            line.insert("requests".into(), json!(long.requests));
            line.insert("suspects".into(), json!(long.suspects));
            line.insert("query".into(), json!(long.id));
            line.insert("dollars".into(), json!(dollars(long.scanned_bytes)));
            metrics.push(Metric::count("athena_scanned_bytes", long.scanned_bytes));
        }
        say(&embed(line.clone(), &metrics, &self.function, time.began_ms()));
        Ok(Value::Object(line))
    }
}

impl Topic {
    /// Tells people what is new, once: a verdict is new in one minute only. Why they do not know is a failure like others.
    async fn tell(&self, ticked: &Ticked, now: Minute, function: &str) -> Result<(), String> {
        let verdicts = &ticked.judgment.verdicts;
        let Some(Notice { subject, text }) = notice(verdicts, ticked.policy.mode, now, self.addresses, function) else {
            return Ok(());
        };
        let publish = self
            .client
            .publish()
            .topic_arn(&self.arn)
            .subject(subject)
            .message(text);
        let published = publish.send().await;
        published
            .map(|_| ())
            .map_err(|error| format!("failed to tell `{}` (sns:Publish): {}", self.arn, chain(&error)))
    }
}

/// What an invocation asks for.
#[derive(Debug, PartialEq, Eq)]
struct Order {
    now: Minute,
    dry_run: bool,
    /// Have Athena count, and judge nothing.
    count: bool,
}

/// What a person writes. Anything else is refused, for a misspelt `dry_run` must not turn into a run.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByHand {
    #[serde(default)]
    dry_run: bool,
    now: Option<String>,
    /// What the hourly schedule says too.
    count: Option<CountBy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum CountBy {
    Athena,
}

impl Order {
    fn of(event: &Value, time: Time) -> Result<Order, String> {
        let scheduled = event.is_null() || event.get("detail-type").is_some();
        let by_hand = if scheduled { &json!({}) } else { event };
        let by_hand = ByHand::deserialize(by_hand)
            .map_err(|error| format!("the event is neither a schedule's nor like {{\"dry_run\": true}}: {error}"))?;
        let now_ms = match &by_hand.now {
            None => time.began_ms(),
            Some(text) => DateTime::parse_from_rfc3339(text)
                .map_err(|error| format!("`now` is `{text}`, which is no time like `2026-11-01T12:00:00Z`: {error}"))?
                .timestamp_millis(),
        };
        Ok(Order {
            now: Minute::of_ms(now_ms),
            dry_run: by_hand.dry_run,
            count: by_hand.count.is_some(),
        })
    }
}

/// A verdict as it is logged: as in the state, without the text that tells a crowd from others. That may be a header.
fn line_of(now: Minute, verdict: &Verdict) -> Value {
    let event = Event {
        time: now,
        verdict: verdict.clone(),
        stopped: 0,
    };
    let mut line = serde_json::to_value(Line::of(&event)).unwrap_or_default();
    // Only the end of a ban can tell how much it stopped.
    line.as_object_mut().map(|line| line.remove("stopped"));
    line.get_mut("separator")
        .and_then(Value::as_object_mut)
        .map(|separator| separator.remove("value"));
    line
}

fn summary_of(ticked: &Ticked, order: &Order) -> Map<String, Value> {
    let mut summary = ticked.summary.clone();
    summary.problems.truncate(PROBLEMS_MAX);
    let mut line = match serde_json::to_value(&summary) {
        Ok(Value::Object(line)) => line,
        _ => Map::new(),
    };
    line.remove("milliseconds"); // as metrics
    line.insert("type".into(), "summary".into());
    line.insert("dry_run".into(), order.dry_run.into());
    line.insert(
        "enforced".into(),
        (ticked.policy.mode == Mode::Enforce && !order.dry_run).into(),
    );
    line
}

fn metrics(ticked: &Ticked, outcomes: &[Outcome], untold: bool, time: Time, enforced_ms: i64) -> Vec<Metric> {
    let summary = &ticked.summary;
    let phases = &summary.milliseconds;
    let milliseconds = |name, value: i64| Metric {
        name,
        unit: Unit::Milliseconds,
        value,
    };
    let phase = |name, value: u64| milliseconds(name, i64::try_from(value).unwrap_or(i64::MAX));
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
    let mut metrics = vec![
        Metric::count("requests", summary.requests),
        Metric::count("skipped", summary.skipped),
        Metric::count("tallies", summary.tallies),
        Metric::count("tallied", summary.tallied),
        Metric::count("left", summary.left),
        Metric::count("bans", summary.bans),
        Metric::count("new_bans", summary.new_bans),
        Metric::count("held", summary.held),
        Metric::count("spared", summary.spared),
        Metric::count("alerts", summary.alerts),
        Metric::count("policy_errors", summary.policy_rejected.is_some()),
        Metric::count("failures", sum(|outcome| outcome.failures.len()) + usize::from(untold)),
        milliseconds("milliseconds", time.elapsed_ms()),
        phase("policy_milliseconds", phases.policy),
        phase("list_milliseconds", phases.list),
        phase("tallies_milliseconds", phases.tallies),
        phase("judge_milliseconds", phases.judge),
        phase("ledger_milliseconds", phases.ledger),
        milliseconds("enforce_milliseconds", enforced_ms),
    ];
    // Before the first request nobody can say how late they are.
    metrics.extend(summary.lag_seconds.map(|value| Metric {
        name: "lag_seconds",
        unit: Unit::Seconds,
        value,
    }));
    // Without a deployment there are no sets to look into.
    if !outcomes.is_empty() {
        metrics.extend([
            Metric::count("writes", sum(|outcome| outcome.writes)),
            Metric::count("overflow", sum(|outcome| outcome.overflow)),
            Metric::count("foreign", sum(|outcome| outcome.foreign)),
            Metric::count("room", sum(|outcome| outcome.room)),
        ]);
    }
    metrics
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn order(event: Value) -> Result<Order, String> {
        let began = UNIX_EPOCH + Duration::from_secs(120);
        Order::of(&event, Time { began, deadline: began })
    }

    #[test]
    fn a_schedule_judges_this_minute_whatever_else_it_says() {
        let this_minute = Ok(Order {
            now: Minute(2),
            dry_run: false,
            count: false,
        });
        assert_eq!(order(json!({})), this_minute);
        assert_eq!(order(json!(null)), this_minute);
        assert_eq!(
            order(json!({"detail-type": "Scheduled Event", "source": "aws.scheduler"})),
            this_minute
        );
    }

    #[test]
    fn a_person_may_ask_for_a_dry_run_and_another_time_and_nothing_else() {
        assert_eq!(
            order(json!({"dry_run": true, "now": "1970-01-01T01:07:30+01:00"})),
            Ok(Order {
                now: Minute(7),
                dry_run: true,
                count: false,
            })
        );
        assert!(order(json!({"count": "athena"})).unwrap().count);
        for wrong in [
            json!({"dryrun": true}),
            json!({"count": "redshift"}),
            json!({"dry_run": "yes"}),
            json!({"now": "noon"}),
            json!("dry_run"),
        ] {
            assert!(order(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
