//! The two Lambda functions: [`Analyzer`] counts what is delivered, [`Updater`] judges every minute.
//!
//! Neither decides anything of its own; both are a way into [`crate::engine`]. Here is what they share: where state and
//! logs are, the loop around an invocation, and the one way to say something. Everything said is one line of JSON, which
//! CloudWatch can search, and no line holds what a client sent in a header.

mod analyzer;
mod emf;
mod notice;
mod updater;

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde_json::{Value, json};

pub use analyzer::{Analyzer, Message, Object, messages};
pub use emf::{Metric, Unit, embed};
pub use updater::Updater;

use crate::enforce;
use crate::engine::{DEPLOYMENT_KEY, Deployment};
use crate::place::Place;

/// What Lambda can invoke.
pub trait Function: Sized {
    /// Built once for all invocations of a process.
    ///
    /// # Errors
    /// When it can't work with that setup; the reason, for people.
    fn new(setup: Setup) -> impl Future<Output = Result<Self, String>>;

    /// Answers one invocation. What fails was said already; the error is for whoever invoked.
    fn invoke(&self, event: Value, time: Time) -> impl Future<Output = Result<Value, String>>;
}

/// Serves invocations until Lambda ends the process.
pub fn serve<F: Function>() -> ExitCode {
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(serve_with::<F>()));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&json!({"type": "error", "why": why}));
            ExitCode::FAILURE
        }
    }
}

async fn serve_with<F: Function>() -> Result<(), String> {
    let setup = Setup::of(|name| std::env::var(name).ok())?;
    let function = F::new(setup).await?;
    let function = &function;
    let handler = service_fn(move |event: LambdaEvent<Value>| async move {
        let time = Time {
            began: SystemTime::now(),
            deadline: event.context.deadline(),
        };
        // Without the box the future of everything below the runtime is one type, too deep for the compiler.
        let answer: Pin<Box<dyn Future<Output = _> + '_>> = Box::pin(function.invoke(event.payload, time));
        let answer = answer.await;
        answer.map_err(|why| Diagnostic {
            error_type: "Failed".into(),
            error_message: why,
        })
    });
    lambda_runtime::run(handler).await.map_err(|error| error.to_string())
}

/// What a function is told by its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The deployment's state: `PALISADE_STATE`.
    pub state: Place,
    /// The logs, up to the year: `PALISADE_LOGS`.
    pub logs: Place,
    /// The dead-letter queue's URL and the attempt at which a message goes there, which is the redrive policy's
    /// `maxReceiveCount`: `PALISADE_DEAD_LETTERS` and `PALISADE_ATTEMPTS_MAX`. Only the analyzer needs it.
    pub dead_letters: Option<(String, u32)>,
    /// What the stack says about its IP sets: `PALISADE_DEPLOYMENT`, in the format of `deployment.json`. Only the updater
    /// needs it; without it, `deployment.json` is as somebody wrote it.
    pub deployment: Option<Deployment>,
    /// The SNS topic that hears of new bans, and whether it hears addresses: `PALISADE_TOPIC`, and `show` or `hide` in
    /// `PALISADE_NOTICE_ADDRESSES`. Only the updater needs it.
    pub topic: Option<(String, bool)>,
    /// Athena's workgroup and the table of the logs: `PALISADE_WORKGROUP` and `PALISADE_TABLE`, like `database.table`. Only
    /// the updater needs it, when it is asked to count by Athena.
    pub athena: Option<(String, (String, String))>,
    /// The function's name, by which its metrics are told from those of other deployments.
    pub function: String,
}

impl Setup {
    /// Reads the variables.
    ///
    /// # Errors
    /// When one is missing or names no place.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Setup, String> {
        let place = |name: &str| {
            let text = variable(name)
                .ok_or_else(|| format!("`{name}` is not set; it is a place like `s3://bucket/prefix`"))?;
            text.parse::<Place>().map_err(|why| format!("`{name}`: {why}"))
        };
        let dead_letters = match (variable("PALISADE_DEAD_LETTERS"), variable("PALISADE_ATTEMPTS_MAX")) {
            (None, None) => None,
            (Some(queue_url), Some(attempts)) => {
                let attempts_max = attempts
                    .parse::<u32>()
                    .map_err(|_| format!("`PALISADE_ATTEMPTS_MAX` is `{attempts}`; it is a number like `3`"))?;
                Some((queue_url, attempts_max))
            }
            _ => return Err("set both `PALISADE_DEAD_LETTERS` and `PALISADE_ATTEMPTS_MAX`, or neither".into()),
        };
        let deployment = variable("PALISADE_DEPLOYMENT").map(|text| {
            enforce::parse(text.as_bytes())
                .map_err(|why| format!("`PALISADE_DEPLOYMENT` is not like `{DEPLOYMENT_KEY}`: {why}"))
        });
        let addresses = match variable("PALISADE_NOTICE_ADDRESSES").as_deref() {
            None | Some("hide") => false,
            Some("show") => true,
            Some(other) => {
                return Err(format!(
                    "`PALISADE_NOTICE_ADDRESSES` is `{other}`; it is `show` or `hide`"
                ));
            }
        };
        let athena = match (variable("PALISADE_WORKGROUP"), variable("PALISADE_TABLE")) {
            (None, None) => None,
            (Some(workgroup), Some(table)) => {
                let (database, name) = table
                    .split_once('.')
                    .ok_or_else(|| format!("`PALISADE_TABLE` is `{table}`; it is a table like `database.table`"))?;
                Some((workgroup, (database.to_owned(), name.to_owned())))
            }
            _ => return Err("set both `PALISADE_WORKGROUP` and `PALISADE_TABLE`, or neither".into()),
        };
        Ok(Setup {
            state: place("PALISADE_STATE")?,
            logs: place("PALISADE_LOGS")?,
            dead_letters,
            deployment: deployment.transpose()?,
            topic: variable("PALISADE_TOPIC").map(|topic| (topic, addresses)),
            athena,
            function: variable("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_else(|| "palisade".into()),
        })
    }
}

/// How long it may take to cancel what was waited for, and to say so.
const GIVING_UP: Duration = Duration::from_secs(10);

/// When an invocation began and when Lambda will end it.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// Also what counts as now.
    pub began: SystemTime,
    /// The process is stopped here, wherever it is.
    pub deadline: SystemTime,
}

impl Time {
    /// Whether to begin with one more object. The last third is left for the one under way and for what comes after.
    fn is_left(&self) -> bool {
        let all = self.deadline.duration_since(self.began).unwrap_or_default();
        self.elapsed() < all * 2 / 3
    }

    /// How long until what waits for others must give up: what is left, but for the time to say so.
    fn patience(&self) -> Duration {
        let all = self.deadline.duration_since(self.began).unwrap_or_default();
        all.saturating_sub(self.elapsed()).saturating_sub(GIVING_UP)
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed().unwrap_or_default()
    }

    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    fn began_ms(&self) -> i64 {
        let since = self.began.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}

/// Says one thing: a line of JSON on stdout, with the invocation's X-Ray trace so that a line leads to its trace and back.
/// The runtime keeps the trace in the environment, where the SDK finds it too and hands it to the services it calls. There
/// is nobody to tell if writing fails.
fn say(line: &Value) {
    let trace = std::env::var("_X_AMZN_TRACE_ID").ok();
    let line = match (line, trace) {
        (Value::Object(members), Some(trace)) => {
            let mut members = members.clone();
            members.insert("trace".into(), trace.into());
            &Value::Object(members)
        }
        _ => line,
    };
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_says_which_variable_is_missing_or_wrong() {
        let setup = |state: Option<&'static str>| {
            Setup::of(move |name| match name {
                "PALISADE_STATE" => state.map(str::to_owned),
                "PALISADE_LOGS" => Some("s3://logs/waf".into()),
                _ => None,
            })
        };
        assert_eq!(setup(Some("s3://state")).unwrap().logs.to_string(), "s3://logs/waf/");
        assert!(setup(None).unwrap_err().contains("`PALISADE_STATE` is not set"));
        assert!(setup(Some("s3:///x")).unwrap_err().contains("names no bucket"));
    }

    #[test]
    fn dead_letters_need_a_queue_and_a_number() {
        let setup = |queue: Option<&'static str>, attempts: Option<&'static str>| {
            let setup = Setup::of(move |name| match name {
                "PALISADE_DEAD_LETTERS" => queue.map(str::to_owned),
                "PALISADE_ATTEMPTS_MAX" => attempts.map(str::to_owned),
                "PALISADE_STATE" | "PALISADE_LOGS" => Some("s3://bucket".into()),
                _ => None,
            });
            setup.map(|setup| setup.dead_letters)
        };
        assert_eq!(setup(None, None), Ok(None));
        assert_eq!(setup(Some("queue"), Some("3")), Ok(Some(("queue".into(), 3))));
        assert!(setup(Some("queue"), None).unwrap_err().contains("or neither"));
        assert!(setup(Some("queue"), Some("many")).unwrap_err().contains("`many`"));
    }

    #[test]
    fn what_the_stack_says_is_understood_or_refused() {
        let setup = |name: &'static str, value: &'static str| {
            Setup::of(move |asked| match asked {
                "PALISADE_STATE" | "PALISADE_LOGS" => Some("s3://bucket".into()),
                "PALISADE_TOPIC" => Some("topic".into()),
                asked => (asked == name).then(|| value.to_owned()),
            })
        };
        let json = r#"{"version":1,"targets":[{"scope":"REGIONAL","block":{"v4":[{"name":"v4","id":"1"}]}}]}"#;
        let deployment = setup("PALISADE_DEPLOYMENT", json).unwrap().deployment.unwrap();
        assert_eq!(deployment.targets[0].block.v4[0].name, "v4");
        let newer = setup("PALISADE_DEPLOYMENT", r#"{"version":2,"targets":[]}"#);
        assert!(newer.unwrap_err().contains("version 2"));

        let topic = |show: bool| Some(("topic".to_owned(), show));
        assert_eq!(
            setup("x", "").unwrap().topic,
            topic(false),
            "nobody is shown by accident"
        );
        assert_eq!(setup("PALISADE_NOTICE_ADDRESSES", "show").unwrap().topic, topic(true));
        assert!(
            setup("PALISADE_NOTICE_ADDRESSES", "yes")
                .unwrap_err()
                .contains("`show` or `hide`")
        );
    }

    #[test]
    fn the_last_third_of_the_time_is_left_alone() {
        let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
        let time = |began| Time {
            began,
            deadline: began + Duration::from_secs(60),
        };
        assert!(time(ago(30)).is_left());
        assert!(!time(ago(41)).is_left());
    }
}
