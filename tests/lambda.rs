//! The Lambda functions as Lambda runs them: real processes that ask the Runtime API for work, on buckets and IP sets in
//! the stand-in.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_sdk_s3::Client;
use aws_sdk_wafv2::types::{IpAddressVersion, Scope};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use palisade::place::s3_client;
use palisade::traffic;
use serde_json::{Value, json};
use walkdir::WalkDir;

use crate::aws::StandIn;

/// Longer than any invocation here takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The X-Ray trace of every invocation here.
const TRACE: &str = "Root=1-65f1a2b3-0123456789abcdef01234567;Parent=53995c3f42cd8ad8;Sampled=1";

/// A function's process, and the Runtime API it talks to ([Using the Lambda runtime API][api]).
///
/// [api]: https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
struct Lambda {
    process: Child,
    api: TcpListener,
    said: Receiver<Value>,
}

impl Lambda {
    fn start(program: &str, aws: &StandIn, state: &str, logs: &str) -> Lambda {
        Lambda::start_with(program, aws, &[("PALISADE_STATE", state), ("PALISADE_LOGS", logs)])
    }

    fn start_with(program: &str, aws: &StandIn, environment: &[(&str, &str)]) -> Lambda {
        let api = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        api.set_nonblocking(true).unwrap();
        let mut process = Command::new(program)
            .env_clear()
            .env("AWS_LAMBDA_RUNTIME_API", api.local_addr().unwrap().to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", "palisade-test")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_ENDPOINT_URL", aws.endpoint())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, said) = channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Lambda { process, api, said }
    }

    /// What it answers, or its error, and what it said meanwhile; the summary last.
    fn invoke(&mut self, event: &Value) -> (Result<Value, String>, Vec<Value>) {
        let (mut next, line, _) = self.request();
        assert!(line.starts_with("GET /2018-06-01/runtime/invocation/next"), "{line}");
        let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + PATIENCE;
        let body = event.to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\nLambda-Runtime-Aws-Request-Id: one\r\n\
             Lambda-Runtime-Deadline-Ms: {}\r\nLambda-Runtime-Invoked-Function-Arn: arn\r\n\
             Lambda-Runtime-Trace-Id: {TRACE}\r\n\r\n{body}",
            body.len(),
            deadline.as_millis()
        );
        next.write_all(answer.as_bytes()).unwrap();
        drop(next);

        let (mut done, line, body) = self.request();
        done.write_all(b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let answer = if line.starts_with("POST /2018-06-01/runtime/invocation/one/response") {
            Ok(body)
        } else {
            assert!(
                line.starts_with("POST /2018-06-01/runtime/invocation/one/error"),
                "{line}"
            );
            Err(body["errorMessage"].as_str().unwrap().to_owned())
        };
        let mut said = Vec::new();
        while !said
            .last()
            .is_some_and(|line: &Value| ["summary", "error"].map(Value::from).contains(&line["type"]))
        {
            said.push(self.said.recv_timeout(PATIENCE).unwrap());
        }
        assert!(said.iter().all(|line| line["trace"] == TRACE), "{said:?}");
        (answer, said)
    }

    /// The next request that the function makes: its connection, its first line, its body.
    fn request(&mut self) -> (TcpStream, String, Vec<u8>) {
        let began = Instant::now();
        let stream = loop {
            match self.api.accept() {
                Ok((stream, _)) => break stream,
                Err(_) if began.elapsed() < PATIENCE && self.process.try_wait().unwrap().is_none() => {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(error) => panic!("the function asks for nothing: {error}"),
            }
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut first = String::new();
        reader.read_line(&mut first).unwrap();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let header = header.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        (stream, first, body)
    }
}

impl Drop for Lambda {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A message of SQS that announces objects as S3 does, with their keys encoded.
fn message<'a>(id: &str, bucket: &str, keys: impl IntoIterator<Item = &'a String>) -> Value {
    let record = |key: &String| {
        let key = key.replace('+', "%2B").replace(' ', "+");
        json!({"eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
               "s3": {"bucket": {"name": bucket}, "object": {"key": key}}})
    };
    let records: Vec<Value> = keys.into_iter().map(record).collect();
    json!({"messageId": id, "eventSource": "aws:sqs", "body": json!({"Records": records}).to_string()})
}

fn batch(messages: &[Value]) -> Value {
    json!({ "Records": messages })
}

/// Every tally in the state, byte for byte.
async fn tallies(s3: &Client, bucket: &str) -> BTreeMap<String, Vec<u8>> {
    let listed = s3.list_objects_v2().bucket(bucket).prefix("api/tallies/");
    let mut tallies = BTreeMap::new();
    for object in listed.send().await.unwrap().contents() {
        let key = object.key().unwrap();
        let got = s3.get_object().bucket(bucket).key(key).send().await.unwrap();
        tallies.insert(key.to_owned(), got.body.collect().await.unwrap().to_vec());
    }
    tallies
}

async fn put(s3: &Client, bucket: &str, key: &str, bytes: Vec<u8>) {
    let put = s3.put_object().bucket(bucket).key(key).body(bytes.into());
    put.send().await.unwrap();
}

/// The demo's hour in a bucket of its own, below a prefix that has to be encoded, and an empty state.
async fn buckets(s3: &Client, state: &str, logs: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    traffic::deliver(&traffic::hour(1).requests, folder.path(), 1).unwrap();
    for bucket in [state, logs] {
        s3.create_bucket().bucket(bucket).send().await.unwrap();
    }
    let mut keys = Vec::new();
    for entry in WalkDir::new(folder.path()).sort_by_file_name() {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let path = entry.path().strip_prefix(folder.path()).unwrap();
            let key = format!("waf logs+api/{}", path.display());
            put(s3, logs, &key, std::fs::read(entry.path()).unwrap()).await;
            keys.push(key);
        }
    }
    keys
}

fn enforcing() -> Vec<u8> {
    analyzer::DEFAULT_POLICY
        .replacen("mode = \"observe\"", "mode = \"enforce\"", 1)
        .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_counted_once_however_often_it_is_announced_and_a_bad_one_fails_alone() {
    let Some(aws) = StandIn::shared() else { return };
    let s3 = s3_client(&aws.config("us-east-1"));
    let keys = buckets(&s3, "analyzer-state", "analyzer-logs").await;
    let mut analyzer = Lambda::start(
        env!("CARGO_BIN_EXE_analyzer-lambda"),
        aws,
        "s3://analyzer-state/api",
        "s3://analyzer-logs/waf logs+api",
    );

    // S3 tries out whether it may send.
    let test = json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "analyzer-logs"});
    assert_eq!(analyzer.invoke(&test).0, Ok(json!({"batchItemFailures": []})));

    // Two messages of two objects each, twice.
    let event = batch(&[
        message("first", "analyzer-logs", &keys[..2]),
        message("second", "analyzer-logs", &keys[2..4]),
    ]);
    let (answer, said) = analyzer.invoke(&event);
    assert_eq!(answer, Ok(json!({"batchItemFailures": []})), "{said:?}");
    let summary = said.last().unwrap();
    assert_eq!((&summary["objects"], &summary["skipped"]), (&json!(4), &json!(0)));
    assert!(summary["requests"].as_u64().unwrap() > 0);
    let counted = tallies(&s3, "analyzer-state").await;
    assert_eq!(counted.len(), 4);
    let (_, said) = analyzer.invoke(&event);
    assert_eq!(said[0]["already"], 4, "{said:?}");
    assert_eq!(tallies(&s3, "analyzer-state").await, counted);

    // Counted anew, it is the same tally; one that is damaged is counted anew.
    let gone = counted.keys().next().unwrap();
    let damaged = counted.keys().next_back().unwrap();
    let delete = s3.delete_object().bucket("analyzer-state").key(gone);
    delete.send().await.unwrap();
    put(&s3, "analyzer-state", damaged, b"damaged".to_vec()).await;
    let (_, said) = analyzer.invoke(&event);
    assert_eq!(
        (&said[0]["objects"], &said[0]["already"]),
        (&json!(2), &json!(2)),
        "{said:?}"
    );
    assert_eq!(tallies(&s3, "analyzer-state").await, counted);

    // An object that is missing fails its message alone; those of others are ignored; the reason is told.
    let missing = "waf logs+api/2026/11/01/12/missing.gz".to_owned();
    let mixed = batch(&[
        message("bad", "analyzer-logs", [&missing, &keys[4]]),
        message("good", "analyzer-logs", [&keys[5]]),
        message("foreign", "somebody-elses", [&keys[6]]),
        message(
            "error-output",
            "analyzer-logs",
            [&"waf logs+api/failed/2026/x.gz".to_owned()],
        ),
        json!({"messageId": "poison", "eventSource": "aws:sqs", "body": "hello"}),
    ]);
    let (answer, said) = analyzer.invoke(&mixed);
    let items = json!([{"itemIdentifier": "bad"}, {"itemIdentifier": "poison"}]);
    assert_eq!(answer, Ok(json!({ "batchItemFailures": items })));
    assert_eq!(tallies(&s3, "analyzer-state").await.len(), 6);
    let failed: Vec<&Value> = said.iter().filter(|line| line["type"] == "failed").collect();
    assert_eq!(failed[0]["message"], "bad");
    assert_eq!(failed[0]["object"], format!("s3://analyzer-logs/{missing}"));
    assert!(failed[0]["why"].as_str().unwrap().contains("missing.gz"), "{said:?}");
    assert_eq!(failed[1]["message"], "poison");
    let summary = said.last().unwrap();
    assert_eq!(
        [&summary["objects"], &summary["ignored"], &summary["failed"]],
        [&json!(2), &json!(2), &json!(2)]
    );

    // Half an object counts as far as it can be read, once, and its message fails each time, until it ends in the
    // dead-letter queue.
    let whole = s3
        .get_object()
        .bucket("analyzer-logs")
        .key(&keys[7])
        .send()
        .await
        .unwrap();
    let whole = whole.body.collect().await.unwrap().to_vec();
    put(&s3, "analyzer-logs", &keys[7], whole[..whole.len() / 2].to_vec()).await;
    let event = batch(&[message("half", "analyzer-logs", &keys[7..8])]);
    for (objects, already) in [(1, 0), (0, 1)] {
        let (answer, said) = analyzer.invoke(&event);
        assert_eq!(answer, Ok(json!({"batchItemFailures": [{"itemIdentifier": "half"}]})));
        assert!(
            said[0]["why"].as_str().unwrap().contains("ends in the middle"),
            "{said:?}"
        );
        assert_eq!(
            (&said[1]["objects"], &said[1]["already"]),
            (&json!(objects), &json!(already))
        );
        assert_eq!(tallies(&s3, "analyzer-state").await.len(), 7);
    }

    // Who invokes directly knows no single failures and is told the reason.
    let event = json!({"source": "aws.s3", "detail-type": "Object Created",
        "detail": {"bucket": {"name": "analyzer-logs"}, "object": {"key": missing}}});
    assert!(analyzer.invoke(&event).0.unwrap_err().contains("missing.gz"));

    // A policy that does not parse is told; without one used before nothing is counted, with one it is.
    put(&s3, "analyzer-state", "api/policy.toml", b"mode = 7".to_vec()).await;
    let event = batch(&[message("first", "analyzer-logs", &keys[6..7])]);
    assert!(analyzer.invoke(&event).0.unwrap_err().contains("policy.toml"));
    put(&s3, "analyzer-state", "api/policy-in-use.toml", enforcing()).await;
    let (answer, said) = analyzer.invoke(&event);
    assert_eq!(answer, Ok(json!({"batchItemFailures": []})));
    assert_eq!((&said[0]["policy_errors"], &said[0]["objects"]), (&json!(1), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_fails_at_its_last_attempt_ends_in_the_dead_letter_queue_with_the_reason() {
    let Some(aws) = StandIn::shared() else { return };
    let config = aws.config("us-east-1");
    let (s3, sqs) = (s3_client(&config), aws_sdk_sqs::Client::new(&config));
    buckets(&s3, "buried-state", "buried-logs").await;
    let queue = sqs.create_queue().queue_name("dead-letters").send().await.unwrap();
    let queue_url = queue.queue_url.unwrap();
    let start = |queue_url: &str| {
        let environment = [
            ("PALISADE_STATE", "s3://buried-state/api"),
            ("PALISADE_LOGS", "s3://buried-logs/waf logs+api"),
            ("PALISADE_DEAD_LETTERS", queue_url),
            ("PALISADE_ATTEMPTS_MAX", "3"),
        ];
        Lambda::start_with(env!("CARGO_BIN_EXE_analyzer-lambda"), aws, &environment)
    };
    let missing = "waf logs+api/2026/11/01/12/missing.gz".to_owned();
    let attempt = |attempt: &str| {
        let mut message = message("poison", "buried-logs", [&missing]);
        message["attributes"] = json!({"ApproximateReceiveCount": attempt});
        batch(&[message])
    };
    let failed = json!({"batchItemFailures": [{"itemIdentifier": "poison"}]});

    // Before its last attempt it is delivered again.
    let mut analyzer = start(&queue_url);
    let (answer, said) = analyzer.invoke(&attempt("2"));
    assert_eq!((answer, &said[1]["buried"]), (Ok(failed.clone()), &json!(0)));

    // At its last it is taken off the queue, for we sent it to the other one.
    let (answer, said) = analyzer.invoke(&attempt("3"));
    assert_eq!(answer, Ok(json!({"batchItemFailures": []})), "{said:?}");
    assert_eq!((&said[1]["failed"], &said[1]["buried"]), (&json!(1), &json!(1)));
    let receive = sqs
        .receive_message()
        .queue_url(&queue_url)
        .message_attribute_names("All");
    let letters = receive.max_number_of_messages(10).send().await.unwrap();
    let [letter] = letters.messages() else {
        panic!("{letters:?}")
    };
    assert_eq!(
        letter.body(),
        attempt("3")["Records"][0]["body"].as_str(),
        "so that it can be sent once more"
    );
    let reason = letter.message_attributes().unwrap()["reason"].string_value().unwrap();
    assert!(
        reason.contains("missing.gz") && reason.contains("NoSuchKey"),
        "{reason}"
    );

    // Without a queue to send it to, SQS will move it, and the log says why we did not.
    let (answer, said) = start(&format!("{queue_url}-that-is-gone")).invoke(&attempt("3"));
    assert_eq!(answer, Ok(failed));
    assert!(
        said[1]["why"].as_str().unwrap().contains("dead-letter queue"),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_updater_bans_those_whom_the_analyzer_counted() {
    let Some(aws) = StandIn::shared() else { return };
    let config = aws.config("us-east-1");
    let s3 = s3_client(&config);
    let waf = aws_sdk_wafv2::Client::new(&config);
    let keys = buckets(&s3, "updater-state", "updater-logs").await;
    put(&s3, "updater-state", "api/policy.toml", enforcing()).await;
    let create = waf.create_ip_set().name("lambda-v4").scope(Scope::Regional);
    let created = create
        .ip_address_version(IpAddressVersion::Ipv4)
        .set_addresses(Some(Vec::new()))
        .send()
        .await
        .unwrap();
    let id = created.summary.unwrap().id.unwrap();
    let deployment = json!({"version": 1, "targets": [
        {"scope": "REGIONAL", "region": "us-east-1", "block": {"v4": [{"name": "lambda-v4", "id": id}], "v6": []}},
    ]});
    let deployment_json = deployment.to_string().into_bytes();
    put(&s3, "updater-state", "api/deployment.json", deployment_json).await;
    let addresses = async || {
        let get = waf.get_ip_set().name("lambda-v4").id(&id).scope(Scope::Regional);
        get.send().await.unwrap().ip_set.unwrap().addresses
    };

    let start = |program| Lambda::start(program, aws, "s3://updater-state/api", "s3://updater-logs/waf logs+api");
    let mut analyzer = start(env!("CARGO_BIN_EXE_analyzer-lambda"));
    let (answer, said) = analyzer.invoke(&batch(&[message("all", "updater-logs", &keys)]));
    assert_eq!(answer, Ok(json!({"batchItemFailures": []})), "{said:?}");

    // A dry run says whom it would ban, and changes nothing.
    let mut updater = start(env!("CARGO_BIN_EXE_updater-lambda"));
    let (answer, said) = updater.invoke(&json!({"dry_run": true, "now": "2026-11-01T12:42:00Z"}));
    let plan = &answer.unwrap()["plan"][0]["writes"][0];
    assert_eq!(plan["set"], "lambda-v4");
    assert!(
        plan["added"].as_array().unwrap().contains(&json!("192.0.2.90/32")),
        "{plan}"
    );
    assert!(said.last().unwrap().get("_aws").is_none(), "a dry run is no metric");
    assert_eq!(addresses().await, Vec::<String>::new());
    let ledger = s3.get_object().bucket("updater-state").key("api/ledger.json");
    assert!(ledger.send().await.is_err());
    assert!(
        updater
            .invoke(&json!({"dryrun": true}))
            .0
            .unwrap_err()
            .contains("dryrun")
    );

    // A run bans them. The analyzer had counted everything: there is nothing left to count.
    let order = json!({"now": "2026-11-01T12:42:00Z"});
    let (answer, said) = updater.invoke(&order);
    let outcome = &answer.unwrap()["outcomes"][0];
    assert!(outcome["added"].as_u64().unwrap() > 0, "{outcome}");
    let banned = addresses().await;
    assert!(banned.contains(&"192.0.2.90/32".to_owned()), "{banned:?}");
    let summary = said.last().unwrap();
    assert_eq!(
        (&summary["tallied"], &summary["left"]),
        (&json!(0), &json!(0)),
        "{summary}"
    );
    assert_eq!(summary["bans"], summary["new_bans"]);
    let bans = said.iter().filter(|line| line["type"] == "ban").count();
    assert_eq!(summary["new_bans"], bans, "an event for each verdict");

    let announced = &summary["_aws"]["CloudWatchMetrics"][0];
    assert_eq!(announced["Namespace"], "Palisade");
    assert_eq!(
        (&announced["Dimensions"], &summary["function"]),
        (&json!([["function"]]), &json!("palisade-test"))
    );
    let names: Vec<&str> = announced["Metrics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|metric| metric["Name"].as_str().unwrap())
        .collect();
    for name in "requests skipped tallies lag_seconds bans new_bans held spared overflow foreign room policy_errors \
                 failures milliseconds"
        .split_whitespace()
    {
        assert!(
            names.contains(&name) && summary[name].is_number(),
            "{name} in {summary}"
        );
    }

    // The same minute again: nothing new to say, nothing to write. Warm, and as well in a process that remembers nothing.
    for mut updater in [updater, start(env!("CARGO_BIN_EXE_updater-lambda"))] {
        let (answer, said) = updater.invoke(&order);
        assert_eq!(answer.unwrap()["outcomes"][0]["writes"], 0);
        assert_eq!((said.len(), &said[0]["new_bans"]), (1, &json!(0)), "{said:?}");
    }

    // A set that is gone: the invocation fails with the reason, so that the alarm on errors sees it.
    let delete = waf.delete_ip_set().name("lambda-v4").id(&id).scope(Scope::Regional);
    let lock = waf
        .get_ip_set()
        .name("lambda-v4")
        .id(&id)
        .scope(Scope::Regional)
        .send()
        .await
        .unwrap()
        .lock_token;
    delete.set_lock_token(lock).send().await.unwrap();
    let mut updater = start(env!("CARGO_BIN_EXE_updater-lambda"));
    let (answer, said) = updater.invoke(&json!({"now": "2026-11-01T12:43:00Z"}));
    assert!(answer.unwrap_err().contains("lambda-v4"));
    assert_eq!(said.last().unwrap()["failures"], 1, "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_updater_keeps_what_the_stack_says_and_tells_people_once() {
    let Some(aws) = StandIn::shared() else { return };
    let config = aws.config("us-east-1");
    let (s3, waf) = (s3_client(&config), aws_sdk_wafv2::Client::new(&config));
    let (sns, sqs) = (aws_sdk_sns::Client::new(&config), aws_sdk_sqs::Client::new(&config));
    buckets(&s3, "told-state", "told-logs").await;
    put(&s3, "told-state", "api/policy.toml", enforcing()).await;
    let create = waf.create_ip_set().name("told-v4").scope(Scope::Regional);
    let create = create.ip_address_version(IpAddressVersion::Ipv4);
    let created = create.set_addresses(Some(Vec::new())).send().await.unwrap();
    let id = created.summary.unwrap().id.unwrap();
    let deployment = json!({"version": 1, "targets": [
        {"scope": "REGIONAL", "region": "us-east-1", "block": {"v4": [{"name": "told-v4", "id": id}]}},
    ]});

    let topic = sns.create_topic().name("told").send().await.unwrap().topic_arn.unwrap();
    let queue_url = sqs
        .create_queue()
        .queue_name("told")
        .send()
        .await
        .unwrap()
        .queue_url
        .unwrap();
    let subscribe = sns.subscribe().topic_arn(&topic).protocol("sqs");
    let subscribe = subscribe.endpoint("arn:aws:sqs:us-east-1:111122223333:told");
    subscribe.send().await.unwrap();
    let received = async || {
        let receive = sqs.receive_message().queue_url(&queue_url).max_number_of_messages(10);
        let messages = receive.send().await.unwrap().messages.unwrap_or_default();
        let told = |message: &aws_sdk_sqs::types::Message| {
            let envelope: Value = serde_json::from_str(message.body().unwrap()).unwrap();
            let text = |name: &str| envelope[name].as_str().unwrap().to_owned();
            (text("Subject"), text("Message"))
        };
        messages.iter().map(told).collect::<Vec<_>>()
    };

    let start = |topic: &str| {
        let environment = [
            ("PALISADE_STATE", "s3://told-state/api"),
            ("PALISADE_LOGS", "s3://told-logs/waf logs+api"),
            ("PALISADE_DEPLOYMENT", &deployment.to_string()),
            ("PALISADE_TOPIC", topic),
            ("PALISADE_NOTICE_ADDRESSES", "show"),
        ];
        Lambda::start_with(env!("CARGO_BIN_EXE_updater-lambda"), aws, &environment)
    };
    let mut updater = start(&topic);
    let order = json!({"now": "2026-11-01T12:42:00Z"});
    let mut dry = order.clone();
    dry["dry_run"] = true.into();
    updater.invoke(&dry).0.unwrap();
    assert_eq!(received().await, [], "a dry run tells nobody");

    // The sets are found, although nobody wrote `deployment.json`; now it is there for the command line.
    let (answer, said) = updater.invoke(&order);
    assert!(answer.unwrap()["outcomes"][0]["added"].as_u64().unwrap() > 0);
    let kept = s3.get_object().bucket("told-state").key("api/deployment.json");
    let kept = kept.send().await.unwrap().body.collect().await.unwrap().to_vec();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    assert_eq!(kept["targets"][0]["block"]["v4"][0]["id"], id);

    // The dashboard and the alarms of the stack show what the functions emit.
    let event = batch(&[]);
    let mut analyzer = Lambda::start(
        env!("CARGO_BIN_EXE_analyzer-lambda"),
        aws,
        "s3://told-state/api",
        "s3://told-logs/waf logs+api",
    );
    let (_, analyzed) = analyzer.invoke(&event);
    let emitted = |summary: &Value| {
        let announced = summary["_aws"]["CloudWatchMetrics"][0]["Metrics"]
            .as_array()
            .unwrap()
            .clone();
        announced
            .iter()
            .map(|metric| metric["Name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let emitted = BTreeMap::from([
        ("Updater", emitted(said.last().unwrap())),
        ("Analyzer", emitted(analyzed.last().unwrap())),
    ]);
    let template = include_str!("../infra/template.yaml");
    let alarms = template
        .split("Namespace: Palisade\n      MetricName: ")
        .skip(1)
        .map(|rest| {
            let (metric, rest) = rest.split_once('\n').unwrap();
            let function = rest
                .trim_start()
                .strip_prefix("Dimensions: [{Name: function, Value: !Ref ")
                .unwrap();
            (function.split_once('}').unwrap().0, metric)
        });
    let widgets = template.split(r#"["Palisade", ""#).skip(1).map(|rest| {
        let (metric, rest) = rest.split_once(r#"", "function", "${"#).unwrap();
        (rest.split_once('}').unwrap().0, metric)
    });
    assert_eq!((alarms.clone().count(), widgets.clone().count()), (8, 18));
    for (function, metric) in alarms.chain(widgets) {
        assert!(
            emitted[function].iter().any(|emitted| emitted == metric),
            "{function} emits no `{metric}`: {emitted:?}"
        );
    }

    let told = received().await;
    let [(subject, text)] = &told[..] else {
        panic!("{told:?}")
    };
    let bans = said.last().unwrap()["new_bans"].as_u64().unwrap();
    assert!(subject.starts_with(&format!("Palisade: {bans} new bans")), "{subject}");
    assert!(text.contains("192.0.2.90/32, strike 1, "), "{text}");
    updater.invoke(&order).0.unwrap();
    assert_eq!(received().await, [], "nothing new, no message");

    // Whoever can't be told is missed, but the bans are in force by then.
    let forget = s3.delete_object().bucket("told-state").key("api/ledger.json");
    forget.send().await.unwrap();
    let (answer, said) = start(&format!("{topic}-that-is-gone")).invoke(&order);
    assert!(answer.unwrap_err().contains("sns:Publish"), "{said:?}");
    let summary = said.last().unwrap();
    assert_eq!(
        (&summary["failures"], &summary["writes"]),
        (&json!(1), &json!(0)),
        "{summary}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo build --release && cargo test --test tests the_largest_object -- --ignored --nocapture"]
async fn what_the_largest_object_takes() {
    let Some(aws) = StandIn::shared() else { return };
    let program = Path::new(env!("CARGO_BIN_EXE_analyzer-lambda")).with_file_name("../release/analyzer-lambda");
    assert!(program.exists(), "`cargo build --release` makes what is measured here");
    let program = program.to_str().unwrap();
    // Firehose delivers 128 MB at most, before it compresses them.
    let s3 = s3_client(&aws.config("us-east-1"));
    let keys = buckets(&s3, "measured-state", "measured-logs").await;
    let mut hour = Vec::new();
    for key in &keys {
        let got = s3.get_object().bucket("measured-logs").key(key).send().await.unwrap();
        let packed = got.body.collect().await.unwrap().to_vec();
        MultiGzDecoder::new(&packed[..]).read_to_end(&mut hour).unwrap();
    }
    let mut object = GzEncoder::new(Vec::new(), Compression::default());
    let mut left = 128 << 20;
    while left > 0 {
        let part = &hour[..left.min(hour.len())];
        object.write_all(part).unwrap();
        left -= part.len();
    }
    let object = object.finish().unwrap();
    let packed = object.len();
    let key = "waf logs+api/2026/11/01/12/largest.gz".to_owned();
    put(&s3, "measured-logs", &key, object).await;
    let (state, logs) = ("s3://measured-state/api", "s3://measured-logs/waf logs+api");
    let mut analyzer = Lambda::start(program, aws, state, logs);
    let began = Instant::now();
    let (answer, said) = analyzer.invoke(&batch(&[message("largest", "measured-logs", [&key])]));
    let took = began.elapsed().as_secs_f64();
    assert_eq!(answer, Ok(json!({"batchItemFailures": []})), "{said:?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", analyzer.process.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let requests = &said.last().unwrap()["requests"];
    #[expect(clippy::print_stdout, reason = "somebody asked for it")]
    {
        println!(
            "an object of 128 MiB, {packed} bytes packed, {requests} records, is counted in {took:.2} s from its announcement on, with {} at most",
            peak.trim()
        );
    }
}
