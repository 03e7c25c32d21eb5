//! Counts log objects as S3 announces them.
//!
//! Announcements come in many wrappings and sometimes twice; [`messages`] unwraps them. An object is counted under the
//! policy in use and its tally put where the updater looks for it. A tally that is there already is left alone, so a second
//! delivery costs one small read. What can't be counted fails alone: of a batch from SQS only its message is delivered
//! again. SQS moves what failed too often into the dead-letter queue without a word why; at the last attempt we send it
//! there ourselves, with the reason. An object that is never announced is found by the updater.

use ::analyzer::Policy;
use ::analyzer::stored::ObjectTally;
use serde_json::{Map, Value, json};

use aws_sdk_sqs::types::MessageAttributeValue;

use super::emf::{Metric, Unit, embed};
use super::{Function, Setup, Time, say};
use crate::engine::{Engine, TickError, chain, tally_key, tally_object};
use crate::logs::LogBucket;
use crate::place::{Aws, Place, State, s3_client};
use crate::store::{Condition, Store};

/// Notifications inside of an EventBridge event inside of SNS inside of SQS are three deep; more is nonsense.
const WRAPPINGS_MAX: u32 = 4;

/// A reason is for people, and SQS counts it to the message's size.
const REASON_CHARS_MAX: usize = 1_000;

/// The function that counts.
pub struct Analyzer {
    engine: Engine<State, LogBucket>,
    dead_letters: Option<DeadLetters>,
    function: String,
}

/// Where messages end that failed too often.
struct DeadLetters {
    client: aws_sdk_sqs::Client,
    queue_url: String,
    attempts_max: u32,
}

impl Function for Analyzer {
    async fn new(setup: Setup) -> Result<Analyzer, String> {
        let Place::Bucket { bucket, prefix } = setup.logs else {
            return Err("`PALISADE_LOGS` is a folder; only a bucket announces its objects".into());
        };
        let aws = Aws::default();
        let logs = LogBucket::new(s3_client(aws.config().await), bucket, prefix);
        let config = aws.config().await;
        let dead_letters = setup.dead_letters.map(|(queue_url, attempts_max)| DeadLetters {
            client: aws_sdk_sqs::Client::new(config),
            queue_url,
            attempts_max,
        });
        Ok(Analyzer {
            engine: Engine::new(State::at(&setup.state, &aws).await, logs),
            dead_letters,
            function: setup.function,
        })
    }

    async fn invoke(&self, event: Value, time: Time) -> Result<Value, String> {
        let (policy, rejected) = self.engine.policy_in_use().await.map_err(|error| {
            let why = chain(&error);
            say(&json!({"type": "error", "why": why}));
            why
        })?;
        let mut count = Count::default();
        let (mut items, mut failures) = (Vec::new(), Vec::new());
        for message in messages(&event) {
            let failed = self.count_message(&policy, &message, time, &mut count).await;
            match &message.delivery {
                _ if failed.is_empty() => {}
                Some(delivery) if self.buried(delivery, &failed.join("; ")).await => count.buried += 1,
                Some(delivery) => items.push(json!({"itemIdentifier": delivery.id})),
                None => failures.extend(failed),
            }
        }
        let mut line = Map::from_iter([("type".to_owned(), json!("summary"))]);
        if let Some(why) = &rejected {
            line.insert("policy_rejected".into(), json!(why));
        }
        say(&embed(
            line,
            &count.metrics(rejected.is_some(), time),
            &self.function,
            time.began_ms(),
        ));
        if failures.is_empty() {
            Ok(json!({"batchItemFailures": items}))
        } else {
            // Whoever does not understand single failures delivers everything again; what is counted stays so.
            Err(failures.join("; "))
        }
    }
}

impl Analyzer {
    /// Counts the objects of one message, each on its own, and returns why some could not be.
    async fn count_message(&self, policy: &Policy, message: &Message, time: Time, count: &mut Count) -> Vec<String> {
        let mut failed = Vec::new();
        for object in &message.objects {
            let why = match object {
                Err(why) => why.clone(),
                Ok(Object { bucket, key }) if !self.engine.logs.holds(bucket, key) => {
                    say(
                        &json!({"type": "ignored", "object": format!("s3://{bucket}/{key}"), "why": "not one of our logs"}),
                    );
                    count.ignored += 1;
                    continue;
                }
                Ok(_) if !time.is_left() => "no time was left for it".to_owned(),
                Ok(Object { key, .. }) => match self.count_object(policy, key, count).await {
                    Ok(None) => continue,
                    Ok(Some(stopped)) => stopped,
                    Err(error) => chain(&error),
                },
            };
            let object = object
                .as_ref()
                .ok()
                .map(|object| format!("s3://{}/{}", object.bucket, object.key));
            let id = message.delivery.as_ref().map(|delivery| &delivery.id);
            say(&json!({"type": "failed", "object": object, "message": id, "why": why}));
            count.failed += 1;
            failed.push(why);
        }
        failed
    }

    /// Whether a message that failed is in the dead-letter queue now. If it can't be sent there, SQS will move it.
    async fn buried(&self, delivery: &Delivery, why: &str) -> bool {
        let Some(dead_letters) = &self.dead_letters else {
            return false;
        };
        if delivery.attempt < dead_letters.attempts_max {
            return false;
        }
        let allowed = |char: char| if char.is_control() { ' ' } else { char };
        let reason = MessageAttributeValue::builder()
            .data_type("String")
            .string_value(why.chars().take(REASON_CHARS_MAX).map(allowed).collect::<String>())
            .build();
        let send = dead_letters
            .client
            .send_message()
            .queue_url(&dead_letters.queue_url)
            .message_body(&delivery.body)
            .set_message_attributes(reason.ok().map(|reason| [("reason".to_owned(), reason)].into()));
        match send.send().await {
            Ok(_) => true,
            Err(error) => {
                let why = format!(
                    "failed to send it to the dead-letter queue with its reason: {}",
                    chain(&error)
                );
                say(&json!({"type": "failed", "message": delivery.id, "why": why}));
                false
            }
        }
    }

    /// Counts one object, unless it is. What could be read of it counts; why that is not everything is returned, each
    /// time, so that somebody finds it in the dead-letter queue.
    async fn count_object(
        &self,
        policy: &Policy,
        object: &str,
        count: &mut Count,
    ) -> Result<Option<String>, TickError> {
        let Engine { store, logs, .. } = &self.engine;
        let key = tally_key(&policy.fingerprint(), object);
        // A tally that does not read is made again: nobody else would.
        if let Some((bytes, _)) = store.get(&key).await?
            && let Ok(tally) = ObjectTally::from_bytes(&bytes)
        {
            count.already += 1;
            return Ok(tally.stopped);
        }
        let tally = tally_object(logs, policy, object).await?;
        store.put(&key, tally.to_bytes(), Condition::Always).await?;
        count.objects += 1;
        count.requests += tally.requests;
        count.skipped += tally.skipped.values().sum::<u64>();
        Ok(tally.stopped)
    }
}

/// What an invocation did.
#[derive(Default)]
struct Count {
    objects: u64,
    already: u64,
    ignored: u64,
    failed: u64,
    buried: u64,
    requests: u64,
    skipped: u64,
}

impl Count {
    fn metrics(&self, policy_rejected: bool, time: Time) -> [Metric; 9] {
        [
            Metric::count("objects", self.objects),
            Metric::count("already", self.already),
            Metric::count("ignored", self.ignored),
            Metric::count("failed", self.failed),
            Metric::count("buried", self.buried),
            Metric::count("requests", self.requests),
            Metric::count("skipped", self.skipped),
            Metric::count("policy_errors", policy_rejected),
            Metric {
                name: "milliseconds",
                unit: Unit::Milliseconds,
                value: time.elapsed_ms(),
            },
        ]
    }
}

/// An object that was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its bucket.
    pub bucket: String,
    /// Its key, as [`crate::logs::Logs::list`] has it.
    pub key: String,
}

/// What succeeds or fails together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// How SQS delivered it, if it came through SQS.
    pub delivery: Option<Delivery>,
    /// What it announces, and why we do not understand the rest of it.
    pub objects: Vec<Result<Object, String>>,
}

/// A message's delivery by SQS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// SQS's name for the message.
    pub id: String,
    /// The message as it was sent.
    pub body: String,
    /// How often it has been delivered, this time included.
    pub attempt: u32,
}

/// Unwraps an event: of S3 or of EventBridge, as it is, from SNS, from SQS, or from SNS through SQS.
pub fn messages(event: &Value) -> Vec<Message> {
    let records = event["Records"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !records.iter().any(|record| record["eventSource"] == "aws:sqs") {
        return vec![Message {
            delivery: None,
            objects: objects(event, WRAPPINGS_MAX),
        }];
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let message = |record: &Value| Message {
        delivery: Some(Delivery {
            id: text(&record["messageId"]),
            body: text(&record["body"]),
            attempt: text(&record["attributes"]["ApproximateReceiveCount"])
                .parse()
                .unwrap_or(1),
        }),
        objects: unwrap(&record["body"], WRAPPINGS_MAX),
    };
    records.iter().map(message).collect()
}

fn objects(event: &Value, wrappings: u32) -> Vec<Result<Object, String>> {
    if event["Event"] == "s3:TestEvent" {
        return Vec::new(); // S3 tries out whether it may send
    }
    if event["Type"] == "Notification" {
        return unwrap(&event["Message"], wrappings);
    }
    if event["source"] == "aws.s3" {
        // Other than S3 itself, EventBridge leaves keys as they are.
        let created = event["detail-type"] == "Object Created";
        return created
            .then(|| object(&event["detail"], |key| Ok(key.to_owned())))
            .into_iter()
            .collect();
    }
    let Some(records) = event["Records"].as_array() else {
        return vec![Err("the event is none of S3, EventBridge, SNS or SQS".into())];
    };
    let of_record = |record: &Value| {
        if record["EventSource"] == "aws:sns" {
            return unwrap(&record["Sns"]["Message"], wrappings);
        }
        match record["eventName"].as_str() {
            Some(name) if record["eventSource"] == "aws:s3" => {
                let created = name.trim_start_matches("s3:").starts_with("ObjectCreated:");
                created.then(|| object(&record["s3"], decode)).into_iter().collect()
            }
            _ => vec![Err("the record is none of S3 or SNS".into())],
        }
    };
    records.iter().flat_map(of_record).collect()
}

fn unwrap(text: &Value, wrappings: u32) -> Vec<Result<Object, String>> {
    let Some(wrappings) = wrappings.checked_sub(1) else {
        return vec![Err("the event is wrapped too often".into())];
    };
    match serde_json::from_str::<Value>(text.as_str().unwrap_or_default()) {
        Ok(event) => objects(&event, wrappings),
        Err(error) => vec![Err(format!("the message is not JSON: {error}"))],
    }
}

fn object(s3: &Value, decode: impl Fn(&str) -> Result<String, String>) -> Result<Object, String> {
    match (s3["bucket"]["name"].as_str(), s3["object"]["key"].as_str()) {
        (Some(bucket), Some(key)) => Ok(Object {
            bucket: bucket.to_owned(),
            key: decode(key)?,
        }),
        _ => Err("the record names no bucket and key".into()),
    }
}

/// A key as S3 encodes it in notifications: like a form, so that a space is a plus.
fn decode(encoded: &str) -> Result<String, String> {
    let wrong = || format!("the key `{encoded}` is not URL-encoded");
    let mut key = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        key.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (digits, tail) = rest.split_first_chunk::<2>().ok_or_else(wrong)?;
                let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(wrong);
                rest = tail;
                u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).map_err(|_| wrong())?
            }
            byte => *byte,
        });
    }
    String::from_utf8(key).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(key: &str) -> Value {
        json!({"Records": [s3_record("ObjectCreated:Put", key)]})
    }

    fn s3_record(name: &str, key: &str) -> Value {
        json!({"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": name,
               "s3": {"s3SchemaVersion": "1.0", "bucket": {"name": "logs"}, "object": {"key": key, "size": 9}}})
    }

    fn event_bridge(kind: &str, key: &str) -> Value {
        json!({"version": "0", "source": "aws.s3", "detail-type": kind,
               "detail": {"bucket": {"name": "logs"}, "object": {"key": key, "size": 9}, "reason": "PutObject"}})
    }

    fn sns(event: &Value) -> Value {
        json!({"Records": [{"EventSource": "aws:sns", "EventVersion": "1.0",
               "Sns": {"Type": "Notification", "TopicArn": "arn", "Message": event.to_string()}}]})
    }

    fn envelope(event: &Value) -> Value {
        json!({"Type": "Notification", "MessageId": "x", "TopicArn": "arn", "Message": event.to_string()})
    }

    fn sqs(bodies: &[Value]) -> Value {
        let record = |(at, body): (usize, &Value)| json!({"messageId": format!("m{at}"), "receiptHandle": "r", "body": body.to_string(), "eventSource": "aws:sqs"});
        json!({"Records": bodies.iter().enumerate().map(record).collect::<Vec<_>>()})
    }

    /// `id: bucket/key bucket/key`, a message a line, errors as `!`.
    fn check(event: &Value, expected: &[&str]) {
        let shown = |object: &Result<Object, String>| match object {
            Ok(Object { bucket, key }) => format!("{bucket}/{key}"),
            Err(why) => format!("!{why}"),
        };
        let told: Vec<String> = messages(event)
            .iter()
            .map(|message| {
                let objects: Vec<String> = message.objects.iter().map(shown).collect();
                let id = message.delivery.as_ref().map_or("-", |delivery| &delivery.id);
                format!("{id}: {}", objects.join(" "))
            })
            .collect();
        assert_eq!(told, expected, "{event}");
    }

    #[test]
    fn every_wrapping_comes_off() {
        let bare = s3("2026/a.gz");
        check(&bare, &["-: logs/2026/a.gz"]);
        check(&sns(&bare), &["-: logs/2026/a.gz"]);
        check(&sqs(std::slice::from_ref(&bare)), &["m0: logs/2026/a.gz"]);
        check(&sqs(&[envelope(&bare)]), &["m0: logs/2026/a.gz"]);
        let bridge = event_bridge("Object Created", "2026/a.gz");
        check(&bridge, &["-: logs/2026/a.gz"]);
        check(&sns(&bridge), &["-: logs/2026/a.gz"]);
        check(&sqs(std::slice::from_ref(&bridge)), &["m0: logs/2026/a.gz"]);
        check(&sqs(&[envelope(&bridge)]), &["m0: logs/2026/a.gz"]);
    }

    #[test]
    fn several_messages_hold_several_records() {
        let two = json!({"Records": [s3_record("ObjectCreated:Put", "a"), s3_record("ObjectCreated:Copy", "b")]});
        check(&two, &["-: logs/a logs/b"]);
        check(
            &sqs(&[two, s3("c"), event_bridge("Object Created", "d")]),
            &["m0: logs/a logs/b", "m1: logs/c", "m2: logs/d"],
        );
    }

    #[test]
    fn keys_are_decoded_exactly_where_s3_encodes_them() {
        check(&s3("a+b%2Bc%2f%C3%A9"), &["-: logs/a b+c/é"]);
        check(&event_bridge("Object Created", "a+b%2Bc"), &["-: logs/a+b%2Bc"]);
        for key in ["a%", "a%2", "a%zz", "%ff", "%+1"] {
            check(&s3(key), &[&format!("-: !the key `{key}` is not URL-encoded")]);
        }
    }

    #[test]
    fn what_creates_nothing_announces_nothing() {
        let test =
            json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2026-11-01T12:00:00Z", "Bucket": "logs"});
        check(&test, &["-: "]);
        check(&sns(&test), &["-: "]);
        check(&sqs(&[test.clone(), envelope(&test)]), &["m0: ", "m1: "]);
        check(&event_bridge("Object Deleted", "a"), &["-: "]);
        check(&json!({"Records": [s3_record("ObjectRemoved:Delete", "a")]}), &["-: "]);
        check(&json!({"Records": []}), &["-: "]);
    }

    #[test]
    fn what_is_not_understood_fails_alone() {
        check(&json!(null), &["-: !the event is none of S3, EventBridge, SNS or SQS"]);
        check(
            &json!({"Records": [{"eventSource": "aws:kinesis"}]}),
            &["-: !the record is none of S3 or SNS"],
        );
        let mut batch = sqs(&[s3("a"), json!({"hello": 1}), s3("b")]);
        batch["Records"][2]["body"] = json!({"Records": [s3_record("ObjectCreated:Put", "b"), {"eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put", "s3": {}}]})
        .to_string()
        .into();
        check(
            &batch,
            &[
                "m0: logs/a",
                "m1: !the event is none of S3, EventBridge, SNS or SQS",
                "m2: logs/b !the record names no bucket and key",
            ],
        );
        batch["Records"][0]["body"] = "hello".into();
        assert!(
            messages(&batch)[0].objects[0]
                .as_ref()
                .unwrap_err()
                .contains("not JSON")
        );
        let mut deep = s3("a");
        for _ in 0..=WRAPPINGS_MAX {
            deep = envelope(&deep);
        }
        check(&deep, &["-: !the event is wrapped too often"]);
    }
}
