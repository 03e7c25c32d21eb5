//! The whole loop, with AWS's parts played by the stand-in: Firehose delivers, S3 announces through SQS, Lambda runs our two
//! functions, EventBridge Scheduler fires each minute, and whoever attacks ends in the IP sets.
//!
//! [`prove_the_loop`] is the story; it takes a deployment, whoever made it. Real minutes pass where the scheduler has to
//! fire; where only the judge's clock matters, the functions are invoked with another `now`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use analyzer::{Ledger, Minute};
use chrono::DateTime;
use flate2::Compression;
use flate2::write::GzEncoder;
use ipnet::IpNet;
use palisade::traffic::Sent;
use serde_json::{Value, json};

use crate::aws::{Api, StandIn};

/// Longer than anything here takes on a machine that is busy, also than a minute of the scheduler.
const PATIENCE: Duration = Duration::from_secs(240);

/// What no log line of ours may hold: the value of a header.
const SECRET: &str = "session=tell-nobody";

/// A deployment as its operator sees it.
pub(crate) struct Deployed<'a> {
    pub(crate) aws: &'a StandIn,
    /// As an administrator.
    pub(crate) api: Api,
    pub(crate) region: &'static str,
    /// Where the state is, as `s3://bucket/prefix`.
    pub(crate) state: String,
    pub(crate) log_bucket: String,
    /// Up to the year.
    pub(crate) log_prefix: &'static str,
    pub(crate) analyzer: Function,
    pub(crate) updater: Function,
    pub(crate) schedule: String,
    pub(crate) queue_url: String,
    /// As which Firehose delivers, where that is somebody.
    pub(crate) delivers_as: Option<String>,
    pub(crate) dead_letters_url: String,
    /// The names and ids of the sets of the ban rule, for IPv4 and for IPv6.
    pub(crate) block: [(String, String); 2],
}

/// A Lambda function.
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) log_group: String,
}

/// The loop, with nothing but calls to AWS: what `infra/template.yaml` has to make, in small.
#[test]
fn attackers_end_in_the_ip_sets_and_nobody_else() {
    let Some(aws) = StandIn::shared() else { return };
    prove_the_loop(&deploy_by_hand(aws, "eu-central-1", "loop"));
}

/// Attack traffic in; within two ticks the attackers and nobody else are in the IP sets; what people do meanwhile survives;
/// bans expire on time with no more traffic.
pub(crate) fn prove_the_loop(deployed: &Deployed) {
    let folder = tempfile::tempdir().unwrap();
    let mut firehose = Firehose::new(deployed, folder.path());
    let mut machine = OneMachine::new(deployed, folder.path());
    let nobody = BTreeSet::new();

    // Somebody observes. The analyzer counts what S3 announces, so that the updater finds everything counted.
    deployed.set_schedule("DISABLED");
    machine.push_policy("observe");
    let missing = firehose.poison();
    let start_ms = now_ms();
    firehose.deliver(&first_wave(start_ms));
    wait_for("the analyzer to count every object", || {
        (deployed.tallies() == firehose.delivered).then_some(())
    });
    let summary = deployed.tick(None);
    let [tallied, new_bans, spared] = ["tallied", "new_bans", "spared"].map(|name| summary[name].as_u64().unwrap());
    assert_eq!((tallied, new_bans), (0, 3), "{summary}");
    assert!(
        spared >= 2,
        "the office and the operator's own scanner are spared: {summary}"
    );
    assert_eq!(
        (deployed.banned(), &summary["enforced"]),
        (nobody.clone(), &json!(false))
    );
    machine.catch_up();

    // Convinced, they enforce. The next minute, and not before, the sets hold the attackers and nobody else.
    machine.push_policy("enforce");
    assert_eq!(deployed.banned(), nobody);
    deployed.set_schedule("ENABLED");
    let enforced = |after: usize| {
        wait_for("the scheduler's next tick", || {
            let ticks = deployed.ticks();
            let enforced = ticks.iter().filter(|tick| tick["enforced"] == true).count();
            (enforced > after).then_some(enforced)
        })
    };
    let ticks = enforced(0);
    let mut attackers = networks("192.0.2.44/32 192.0.2.61/32 2001:db8:bad::/64");
    assert_eq!(deployed.banned(), attackers);
    machine.catch_up();

    // Between two ticks somebody blocks an address at the console, and another attack begins.
    let foreign: IpNet = "198.51.100.250/32".parse().unwrap();
    deployed.add_at_the_console(foreign);
    firehose.deliver(&second_wave(now_ms()));
    let ticks = enforced(ticks);
    attackers.extend(networks("192.0.2.105/32"));
    let with_foreign: BTreeSet<IpNet> = attackers.iter().copied().chain([foreign]).collect();
    assert_eq!(deployed.banned(), with_foreign);
    machine.catch_up();

    // The scheduler rests. The same again is no work.
    deployed.set_schedule("DISABLED");
    let before = (deployed.ledger(), deployed.lock_tokens());
    let repeated = deployed.tick(None);
    assert_eq!(repeated["enforced"], true);
    assert_eq!(
        (deployed.ledger(), deployed.lock_tokens()),
        before,
        "nothing changed: nothing is written"
    );
    machine.catch_up();
    assert!(ticks >= 2);

    // Somebody doubts, observes again, and is convinced again: our addresses leave and return, the foreign one stays.
    for (mode, held) in [("observe", BTreeSet::from([foreign])), ("enforce", with_foreign)] {
        machine.push_policy(mode);
        deployed.tick(None);
        assert_eq!(deployed.banned(), held, "{mode}");
        machine.catch_up();
    }

    // No traffic comes any more, and each ban ends at its minute.
    let ledger = Ledger::from_json(deployed.ledger().as_bytes()).unwrap();
    let bans = ledger
        .offenders
        .iter()
        .map(|(client, offender)| (client.net(), offender.ban.until));
    let bans: Vec<(IpNet, Minute)> = bans.collect();
    assert_eq!(bans.iter().map(|(net, _)| *net).collect::<BTreeSet<_>>(), attackers);
    let ends: BTreeSet<Minute> = bans.iter().map(|(_, until)| *until).collect();
    assert!(ends.len() > 1, "ladders differ: {bans:?}");
    for end in ends {
        for now in [Minute(end.0 - 1), end] {
            deployed.tick(Some(now));
            machine.catch_up();
            let still = bans.iter().filter(|(_, until)| *until > now).map(|(net, _)| *net);
            assert_eq!(deployed.banned(), still.chain([foreign]).collect(), "at {now}");
        }
    }
    assert_eq!(deployed.banned(), BTreeSet::from([foreign]));

    // `palisade run` did the same minutes with a folder for its logs and one for its state, and knows the same.
    assert_eq!(deployed.ledger(), machine.ledger());
    assert_eq!(machine.banned(), nobody);

    // What could not be read waits in the dead-letter queue, with the reason.
    let mut reasons = deployed.dead_letters(2);
    reasons.sort_by_key(|(body, _)| body.contains(&missing));
    assert!(
        reasons[0].0.contains("aws-waf-logs-api") && reasons[1].0.contains(&missing),
        "{reasons:?}"
    );
    assert!(reasons[0].1.contains("ends in the middle"), "{reasons:?}");
    assert!(reasons[1].1.contains("NoSuchKey"), "{reasons:?}");

    // Each line that the functions said is JSON, none is an error, and none tells what was in a header.
    for function in [&deployed.analyzer, &deployed.updater] {
        let said = deployed.said(function);
        assert!(!said.is_empty());
        for line in said {
            assert!(line["type"] != "error" && !line.to_string().contains(SECRET), "{line}");
        }
    }
}

/// Three attackers, an office, the operator's own scanner, and a hundred clients who do nothing of interest, until the last
/// whole minute: one that is not over is not judged.
fn first_wave(now_ms: i64) -> Vec<Sent> {
    let now_ms = now_ms - now_ms.rem_euclid(60_000);
    let mut sent = Vec::new();
    let ago = |seconds: i64| now_ms - 1_000 * seconds;
    let login = |at_ms, client: &str| Sent {
        method: "POST",
        uri: "/api/v1/login".into(),
        headers: vec![("cookie", SECRET.into())],
        ..Sent::new(at_ms, client.parse().unwrap())
    };
    let get = |at_ms, client: &str, uri: String| Sent {
        uri,
        ..Sent::new(at_ms, client.parse().unwrap())
    };
    for n in 0..40 {
        sent.push(login(ago(200 - 4 * n), "192.0.2.44"));
        sent.push(login(ago(200 - 4 * n), "203.0.113.7")); // the office, among much else
    }
    for n in 0..300 {
        sent.push(get(
            ago(210 - n / 2),
            "203.0.113.7",
            format!("/api/v1/orders/{}", n % 50),
        ));
    }
    for n in 0..320 {
        let client = format!("2001:db8:bad:0:{:x}::{:x}", n * 7 % 256, n + 1);
        sent.push(get(ago(170 - n / 2), &client, format!("/api/v1/items/{n}")));
    }
    for (n, uri) in (0..).zip(["/.env", "/.git/config", "/backup.zip", "/.aws/credentials"]) {
        sent.push(get(ago(100 - 3 * n), "192.0.2.61", uri.into()));
        sent.push(get(ago(100 - 3 * n), "203.0.113.200", uri.into())); // whom the policy allows
    }
    for client in 1..=100 {
        let client = format!("198.51.100.{client}");
        sent.push(login(ago(190), &client));
        sent.extend((0..15).map(|n| get(ago(180 - 9 * n), &client, format!("/api/v1/profile/{n}"))));
    }
    sent.sort_by_key(|sent| sent.timestamp_ms);
    sent
}

/// One more attacker, and an ordinary client.
fn second_wave(now_ms: i64) -> Vec<Sent> {
    let now_ms = now_ms - now_ms.rem_euclid(60_000);
    let sent = |n: i64| {
        let attacks = n % 2 == 0;
        let client: IpAddr = if attacks { "192.0.2.105" } else { "198.51.100.7" }.parse().unwrap();
        let mut sent = Sent::new(now_ms - 20_000 + 1_000 * n, client);
        if attacks {
            sent.user_agent = "sqlmap/1.8.2#stable (https://sqlmap.org)".into();
        }
        sent
    };
    (0..20).map(sent).collect()
}

/// Firehose, as far as WAF's logs are concerned: joins records by newlines, compresses, and names objects as Firehose does
/// ([Configure Amazon S3 object name format][names]). The stand-in's own writes an object a record and compresses none.
///
/// [names]: https://docs.aws.amazon.com/firehose/latest/dev/s3-object-name.html
struct Firehose<'a> {
    to: &'a Deployed<'a>,
    /// Gets a copy of everything.
    folder: PathBuf,
    delivered: usize,
}

/// Small enough for several objects a wave.
const RECORDS_AN_OBJECT: usize = 150;

impl<'a> Firehose<'a> {
    fn new(to: &'a Deployed<'a>, folder: &Path) -> Firehose<'a> {
        Firehose {
            to,
            folder: folder.join("logs"),
            delivered: 0,
        }
    }

    fn deliver(&mut self, sent: &[Sent]) {
        for records in sent.chunks(RECORDS_AN_OBJECT) {
            let bytes = self.compressed(records);
            self.put(&bytes);
        }
    }

    /// An object that was cut off, and an announcement of one that is not there, whose key is returned as it is announced.
    fn poison(&mut self) -> String {
        let sent = Sent::new(now_ms() - 30_000, "198.51.100.3".parse().unwrap());
        let whole = self.compressed(&vec![sent; 90]);
        self.put(&whole[..whole.len() / 2]);
        let missing = format!("{}2026/01/01/00/missing.gz", self.to.log_prefix);
        let encoded = missing.replace('+', "%2B").replace(' ', "+");
        let s3 = json!({"bucket": {"name": self.to.log_bucket}, "object": {"key": encoded}});
        let record = json!({"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": s3});
        let body = json!({"Records": [record]}).to_string();
        let message = json!({"QueueUrl": self.to.queue_url, "MessageBody": body});
        self.to.api.ok("sqs", "send_message", &message);
        encoded
    }

    /// Every other object has several gzip members, cut where it happens to be.
    fn compressed(&self, records: &[Sent]) -> Vec<u8> {
        let mut text = Vec::new();
        for (number, sent) in (0..).zip(records) {
            sent.write(&mut text, number).unwrap();
            text.push(b'\n');
        }
        let members = if self.delivered.is_multiple_of(2) { 1 } else { 3 };
        let mut bytes = Vec::new();
        for member in text.chunks(text.len().div_ceil(members)) {
            let mut gzip = GzEncoder::new(&mut bytes, Compression::fast());
            gzip.write_all(member).unwrap();
            gzip.finish().unwrap();
        }
        bytes
    }

    fn put(&mut self, bytes: &[u8]) {
        self.delivered += 1;
        let time = DateTime::from_timestamp_millis(now_ms()).unwrap();
        let object = format!(
            "{}/aws-waf-logs-api-1-{}-00000000-0000-4000-8000-{:012}.gz",
            time.format("%Y/%m/%d/%H"),
            time.format("%Y-%m-%d-%H-%M-%S"),
            self.delivered
        );
        let copy = self.folder.join(&object);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::write(&copy, bytes).unwrap();
        let key = format!("{}{object}", self.to.log_prefix);
        if let Some(role) = &self.to.delivers_as {
            let object = format!("arn:aws:s3:::{}/{key}", self.to.log_bucket);
            assert!(
                self.to.api.may(role, "s3:PutObject", &object),
                "Firehose may not deliver"
            );
        }
        let put = json!({"Bucket": self.to.log_bucket, "Key": key, "Body": {"file": copy}});
        self.to.api.ok("s3", "put_object", &put);
    }
}

/// `palisade run` beside it: the same minutes on copies of the same objects, with state and IP sets of its own.
struct OneMachine<'a> {
    beside: &'a Deployed<'a>,
    folder: PathBuf,
    block: [(String, String); 2],
    minutes: usize,
}

impl<'a> OneMachine<'a> {
    fn new(beside: &'a Deployed<'a>, folder: &Path) -> OneMachine<'a> {
        let block = create_sets(&beside.api, &format!("{}-beside", beside.block[0].0));
        fs::create_dir(folder.join("state")).unwrap();
        let deployment = deployment(beside.region, &block).to_string();
        fs::write(folder.join("state/deployment.json"), deployment).unwrap();
        OneMachine {
            beside,
            folder: folder.to_owned(),
            block,
            minutes: 0,
        }
    }

    /// The default policy with a shorter ladder, for both.
    fn push_policy(&self, mode: &str) {
        let policy = replaced(
            analyzer::DEFAULT_POLICY,
            "mode = \"observe\"",
            &format!("mode = \"{mode}\""),
        );
        let policy = replaced(&policy, r#"ladder = ["15m", "1h", "#, r#"ladder = ["12m", "1h", "#);
        let allow = "[[allow]]\ncidr = \"203.0.113.200/32\"\nnote = \"our own scanner\"\n";
        fs::write(self.folder.join("policy.toml"), format!("{policy}\n{allow}")).unwrap();
        for state in ["state", &self.beside.state] {
            self.palisade(&["policy", "push", "policy.toml", "--state", state]);
        }
    }

    /// Does the minutes that the updater did since.
    fn catch_up(&mut self) {
        let ticks = self.beside.ticks();
        for tick in &ticks[self.minutes..] {
            let now = tick["now"].as_str().unwrap();
            self.palisade(&["run", "--once", "--now", now, "--state", "state", "--logs", "logs"]);
        }
        self.minutes = ticks.len();
    }

    fn ledger(&self) -> String {
        fs::read_to_string(self.folder.join("state/ledger.json")).unwrap()
    }

    fn banned(&self) -> BTreeSet<IpNet> {
        content(&self.beside.api, &self.block)
    }

    fn palisade(&self, args: &[&str]) {
        let output = Command::new(env!("CARGO_BIN_EXE_palisade"))
            .args(args)
            .current_dir(&self.folder)
            .envs(self.beside.aws.environment(self.beside.region))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{args:?}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Deployed<'_> {
    /// One minute, as if it were `now`: the updater's summary.
    pub(crate) fn tick(&self, now: Option<Minute>) -> Value {
        let order = now.map_or(json!({}), |now| json!({"now": now.to_string()}));
        let invoke = json!({"FunctionName": self.updater.name, "Payload": order.to_string()});
        let answer = self.api.ok("lambda", "invoke", &invoke);
        assert!(answer.get("FunctionError").is_none(), "{answer}");
        let payload: Value = serde_json::from_str(answer["Payload"].as_str().unwrap()).unwrap();
        payload["summary"].clone()
    }

    /// The summaries of all minutes so far, in order.
    fn ticks(&self) -> Vec<Value> {
        let mut ticks = self.said(&self.updater);
        ticks.retain(|line| line["type"] == "summary");
        ticks
    }

    /// The lines in a function's log that are its own.
    pub(crate) fn said(&self, function: &Function) -> Vec<Value> {
        let group = json!({"logGroupName": function.log_group});
        let Ok(found) = self.api.call("logs", "filter_log_events", &group) else {
            return Vec::new(); // there is no group before the first line
        };
        let mut lines = Vec::new();
        for event in found["events"].as_array().unwrap() {
            let message = event["message"].as_str().unwrap();
            if !["START ", "END ", "REPORT ", "XRAY "]
                .iter()
                .any(|own| message.starts_with(own))
            {
                lines.push(serde_json::from_str(message).unwrap_or_else(|_| panic!("not JSON: {message}")));
            }
        }
        lines
    }

    /// How many objects are counted.
    fn tallies(&self) -> usize {
        let (bucket, prefix) = self.state_place();
        let list = json!({"Bucket": bucket, "Prefix": format!("{prefix}tallies/")});
        self.api.ok("s3", "list_objects_v2", &list)["KeyCount"]
            .as_u64()
            .unwrap() as usize
    }

    pub(crate) fn ledger(&self) -> String {
        let (bucket, prefix) = self.state_place();
        let get = json!({"Bucket": bucket, "Key": format!("{prefix}ledger.json")});
        self.api.ok("s3", "get_object", &get)["Body"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// The state's bucket, and its prefix with a slash unless it is empty.
    fn state_place(&self) -> (&str, String) {
        let place = self.state.strip_prefix("s3://").unwrap();
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let slash = if prefix.is_empty() || prefix.ends_with('/') {
            ""
        } else {
            "/"
        };
        (bucket, format!("{prefix}{slash}"))
    }

    pub(crate) fn banned(&self) -> BTreeSet<IpNet> {
        content(&self.api, &self.block)
    }

    fn lock_tokens(&self) -> Vec<Value> {
        let token = |set| get_set(&self.api, set)["LockToken"].clone();
        self.block.iter().map(token).collect()
    }

    fn add_at_the_console(&self, network: IpNet) {
        let mut found = get_set(&self.api, &self.block[0]);
        let mut addresses = found["IPSet"]["Addresses"].take();
        addresses.as_array_mut().unwrap().push(network.to_string().into());
        let mut update = named(&self.block[0]);
        update["Addresses"] = addresses;
        update["LockToken"] = found["LockToken"].take();
        self.api.ok("wafv2", "update_ip_set", &update);
    }

    pub(crate) fn set_schedule(&self, state: &str) {
        set_schedule(&self.api, &self.schedule, state);
    }

    /// The bodies of so many dead letters, and the reasons that they have with them.
    fn dead_letters(&self, count: usize) -> Vec<(String, String)> {
        let mut letters = Vec::new();
        wait_for("the dead letters", || {
            let receive = json!({"QueueUrl": self.dead_letters_url, "MaxNumberOfMessages": 10,
                                 "MessageAttributeNames": ["reason"]});
            let found = self.api.ok("sqs", "receive_message", &receive);
            for message in found["Messages"].as_array().into_iter().flatten() {
                let reason = message["MessageAttributes"]["reason"]["StringValue"].as_str();
                let body = message["Body"].as_str().unwrap();
                letters.push((body.to_owned(), reason.unwrap_or("no reason").to_owned()));
                let delete = json!({"QueueUrl": self.dead_letters_url, "ReceiptHandle": message["ReceiptHandle"]});
                self.api.ok("sqs", "delete_message", &delete);
            }
            (letters.len() >= count).then_some(())
        });
        assert_eq!(letters.len(), count, "{letters:?}");
        letters
    }
}

pub(crate) fn set_schedule(api: &Api, name: &str, state: &str) {
    let mut schedule = api.ok("scheduler", "get_schedule", &json!({"Name": name}));
    let mut update = json!({"Name": name, "State": state});
    for member in ["ScheduleExpression", "FlexibleTimeWindow", "Target"] {
        update[member] = schedule[member].take();
    }
    api.ok("scheduler", "update_schedule", &update);
}

fn deploy_by_hand<'a>(aws: &'a StandIn, region: &'static str, name: &str) -> Deployed<'a> {
    let api = Api::new(aws, region);
    let [state, logs, code] = ["state", "logs", "code"].map(|what| format!("{name}-{what}"));
    for bucket in [&state, &logs, &code] {
        let place = json!({"LocationConstraint": region});
        let create = json!({"Bucket": bucket, "CreateBucketConfiguration": place});
        api.ok("s3", "create_bucket", &create);
    }
    let queue = |name: String, attributes: Value| {
        let create = json!({"QueueName": name, "Attributes": attributes});
        let url = api.ok("sqs", "create_queue", &create)["QueueUrl"].clone();
        let get = json!({"QueueUrl": url, "AttributeNames": ["QueueArn"]});
        let arn = api.ok("sqs", "get_queue_attributes", &get)["Attributes"]["QueueArn"].clone();
        (url.as_str().unwrap().to_owned(), arn)
    };
    let (dead_letters_url, dead_letters) = queue(format!("{name}-dead-letters"), json!({}));
    let redrive = json!({"deadLetterTargetArn": dead_letters, "maxReceiveCount": 3}).to_string();
    let attributes = json!({"VisibilityTimeout": "10", "RedrivePolicy": redrive});
    let (queue_url, queue) = queue(format!("{name}-announced"), attributes);
    let announce = json!([{"QueueArn": queue, "Events": ["s3:ObjectCreated:*"]}]);
    let announce = json!({"Bucket": logs, "NotificationConfiguration": {"QueueConfigurations": announce}});
    api.ok("s3", "put_bucket_notification_configuration", &announce);

    let log_prefix = "waf logs+api/";
    let variables = json!({
        "PALISADE_STATE": format!("s3://{state}/api"), "PALISADE_LOGS": format!("s3://{logs}/{log_prefix}"),
        "PALISADE_DEAD_LETTERS": dead_letters_url, "PALISADE_ATTEMPTS_MAX": "3",
    });
    let function = |what: &str| {
        let (function, key) = (format!("{name}-{what}"), format!("{what}.zip"));
        let put = json!({"Bucket": code, "Key": key, "Body": {"file": packed(aws, what)}});
        api.ok("s3", "put_object", &put);
        let create = json!({
            "FunctionName": function, "Runtime": "provided.al2023", "Handler": "bootstrap", "Timeout": 60,
            "Role": "arn:aws:iam::111122223333:role/anybody", "Code": {"S3Bucket": code, "S3Key": key},
            "Environment": {"Variables": variables},
        });
        let arn = api.ok("lambda", "create_function", &create)["FunctionArn"].clone();
        let log_group = format!("/aws/lambda/{function}");
        (
            Function {
                name: function,
                log_group,
            },
            arn,
        )
    };
    let (analyzer, _) = function("analyzer");
    let (updater, updater_arn) = function("updater");
    let one = json!({"FunctionName": updater.name, "ReservedConcurrentExecutions": 1});
    api.ok("lambda", "put_function_concurrency", &one);

    let block = create_sets(&api, name);
    let file = aws.temporary().join(format!("{name}-deployment.json"));
    fs::write(&file, deployment(region, &block).to_string()).unwrap();
    let put = json!({"Bucket": state, "Key": "api/deployment.json", "Body": {"file": file}});
    api.ok("s3", "put_object", &put);

    let source = json!({"FunctionName": analyzer.name, "EventSourceArn": queue, "BatchSize": 10,
                        "FunctionResponseTypes": ["ReportBatchItemFailures"]});
    api.ok("lambda", "create_event_source_mapping", &source);
    let schedule = format!("{name}-every-minute");
    let target = json!({"Arn": updater_arn, "RoleArn": "arn:aws:iam::111122223333:role/anybody"});
    let create = json!({"Name": schedule, "ScheduleExpression": "rate(1 minute)", "Target": target,
                        "FlexibleTimeWindow": {"Mode": "OFF"}});
    api.ok("scheduler", "create_schedule", &create);
    Deployed {
        aws,
        api,
        region,
        state: format!("s3://{state}/api"),
        log_bucket: logs,
        log_prefix,
        analyzer,
        updater,
        schedule,
        queue_url,
        delivers_as: None,
        dead_letters_url,
        block,
    }
}

/// The zip of one of our functions.
pub(crate) fn packed(aws: &StandIn, function: &str) -> PathBuf {
    static PACKED: OnceLock<[PathBuf; 2]> = OnceLock::new();
    let [analyzer, updater] = PACKED.get_or_init(|| {
        [
            env!("CARGO_BIN_EXE_analyzer-lambda"),
            env!("CARGO_BIN_EXE_updater-lambda"),
        ]
        .map(|program| pack(aws, Path::new(program)))
    });
    match function {
        "analyzer" => analyzer.clone(),
        _ => updater.clone(),
    }
}

/// A program as a function's zip. Without its debug information it is a quarter as large, and quicker to pack and to unpack.
pub(crate) fn pack(aws: &StandIn, program: &Path) -> PathBuf {
    let folder = aws.temporary().join(program.file_name().unwrap());
    fs::create_dir_all(&folder).unwrap();
    let (bootstrap, zip) = (folder.join("bootstrap"), folder.join("function.zip"));
    let stripped = Command::new("strip").arg("-o").arg(&bootstrap).arg(program).status();
    if !stripped.is_ok_and(|status| status.success()) {
        fs::copy(program, &bootstrap).unwrap();
    }
    let zipped = Command::new(aws.python())
        .args(["-m", "zipfile", "-c"])
        .arg(&zip)
        .arg(&bootstrap)
        .status();
    assert!(zipped.unwrap().success());
    fs::remove_file(bootstrap).unwrap();
    zip
}

fn create_sets(api: &Api, name: &str) -> [(String, String); 2] {
    ["IPV4", "IPV6"].map(|version| {
        let name = format!("{name}-{}", version.to_lowercase());
        let create = json!({"Name": name, "Scope": "REGIONAL", "IPAddressVersion": version, "Addresses": []});
        let id = api.ok("wafv2", "create_ip_set", &create)["Summary"]["Id"].clone();
        (name, id.as_str().unwrap().to_owned())
    })
}

fn deployment(region: &str, block: &[(String, String); 2]) -> Value {
    let [v4, v6] = block.each_ref().map(|(name, id)| json!([{"name": name, "id": id}]));
    json!({"version": 1, "targets": [{"scope": "REGIONAL", "region": region, "block": {"v4": v4, "v6": v6}}]})
}

fn named((name, id): &(String, String)) -> Value {
    json!({"Name": name, "Id": id, "Scope": "REGIONAL"})
}

fn get_set(api: &Api, set: &(String, String)) -> Value {
    api.ok("wafv2", "get_ip_set", &named(set))
}

fn content(api: &Api, sets: &[(String, String); 2]) -> BTreeSet<IpNet> {
    let mut networks = BTreeSet::new();
    for set in sets {
        let found = get_set(api, set);
        let addresses = found["IPSet"]["Addresses"].as_array().unwrap();
        networks.extend(
            addresses
                .iter()
                .map(|address| address.as_str().unwrap().parse::<IpNet>().unwrap()),
        );
    }
    networks
}

fn networks(text: &str) -> BTreeSet<IpNet> {
    text.split_whitespace()
        .map(|network| network.parse().unwrap())
        .collect()
}

pub(crate) fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

pub(crate) fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        sleep(Duration::from_millis(250));
    }
}
