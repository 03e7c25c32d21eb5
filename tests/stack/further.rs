//! What only some deployments have: Athena's counts for rules with long windows, and a key.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Function, Probe, REGION, Stack, Works, each_without, template, without_each_grant};
use crate::aws::StandIn;
use crate::e2e::now_ms;

/// A rule that only Athena can answer.
const LONG: &str = r#"
mode = "enforce"
[ban]
ladder = ["30m"]
forget_after = "31d"
[brake]
allowed_share = 1.0
[[rule]]
name = "slow"
why = "So slow that no short window sees it."
match = { uri = "/slow/*" }
limit = 1
window = "30d"
engine = "athena"
"#;

/// Further grants of a deployment with Athena and a key of its own, over those of
/// [`super::every_grant_is_needed_and_nothing_else_is_granted`].
#[test]
fn with_athena_and_a_key_the_loop_passes_and_each_further_grant_is_needed() {
    let Some(aws) = StandIn::with_permissions() else { return };
    let parameters = [("LongWindows", "on"), ("KmsKey", "create")];
    let stack = Stack::create(aws, REGION, "further", &parameters).unwrap();
    stack.hurry();
    for schedule in ["EveryMinute", "EveryHour"] {
        stack.set_schedule(schedule, "DISABLED");
    }
    let (api, counter) = (&stack.deployed.api, Counter::new(&stack));
    let probe = &counter.probe;

    probe.firehose_delivers(Duration::from_secs(30)).unwrap();
    counter.bans_the_slow();
    let (schedule, before) = (&stack.resources["EveryHour"], counter.counted());
    probe
        .schedule_fires(schedule, &counter.function, Duration::from_secs(60))
        .unwrap();
    assert_eq!(counter.counted(), before + 1, "the schedule's own event has it count");
    counter.gives_up().unwrap();

    let tried = without_each_grant(api, &stack.resources, "", "CounterRole", |_, action| {
        let works: Works = match action {
            "athena:StopQueryExecution" => Box::new(|| counter.gives_up()),
            "s3:AbortMultipartUpload" | "s3:ListBucketMultipartUploads" | "s3:ListMultipartUploadParts" => return None,
            _ => Box::new(|| counter.counts()),
        };
        Some(works)
    });
    assert!(tried > 25, "{tried}");
    counter.failures_ring();
    without_each_grant(api, &stack.resources, "", "EveryHourRole", |_, _| {
        Some(Box::new(|| {
            probe.schedule_fires(schedule, &counter.function, Duration::from_secs(8))
        }))
    });

    // Of the others only what the key adds.
    probe.updater_judges().unwrap(); // it leaves a policy in use behind, which the analyzer falls back to
    for (role, works) in [
        (
            "AnalyzerRole",
            &(|| probe.analyzer_counts()) as &dyn Fn() -> Result<(), String>,
        ),
        ("LogStreamRole", &|| probe.firehose_delivers(Duration::from_secs(2))),
        ("UpdaterRole", &|| probe.updater_judges()),
    ] {
        without_each_grant(api, &stack.resources, "kms:", role, |role, action| {
            ((role, action) != ("LogStreamRole", "kms:Decrypt")).then(|| Box::new(works) as Works<'_>)
        });
    }
    announcements_need_the_key(&stack, probe);
}

/// EventBridge sends to the queue, which is encrypted, because the key's policy lets it.
fn announcements_need_the_key(stack: &Stack, probe: &Probe) {
    let api = &stack.deployed.api;
    let key = json!({"KeyId": stack.resources["Key"], "PolicyName": "default"});
    let policy = api.ok("kms", "get_key_policy", &key)["Policy"].clone();
    let policy: Value = serde_json::from_str(policy.as_str().unwrap()).unwrap();
    let put = |policy: &Value| {
        let mut put = key.clone();
        put["Policy"] = policy.to_string().into();
        api.ok("kms", "put_key_policy", &put);
    };
    assert!(probe.is_announced(Duration::from_secs(30)));
    let mut tried = 0;
    for (action, _, rest) in each_without(&policy) {
        let was = |policy: &Value| policy.to_string().matches("events.amazonaws.com").count();
        let is_about_events = |statement: &Value| statement["Principal"].to_string().contains("events.amazonaws.com");
        let theirs = |policy: &Value| -> Vec<Value> {
            let statements = policy["Statement"].as_array().unwrap().iter();
            statements
                .filter(|statement| is_about_events(statement))
                .cloned()
                .collect()
        };
        if was(&policy) == 0 || theirs(&rest) == theirs(&policy) {
            continue;
        }
        put(&rest);
        assert!(
            !probe.is_announced(Duration::from_secs(4)),
            "{action} is granted in vain"
        );
        tried += 1;
    }
    assert_eq!(tried, 2);
    put(&policy);
    assert!(probe.is_announced(Duration::from_secs(30)));
}

/// What the key's policy grants to services that the stand-in has no part of is what AWS says they need.
#[test]
fn the_keys_policy_lets_in_whom_documentation_asks_for() {
    let key = super::resource(&template(), "Key").to_owned();
    let statement = |sid: &str| -> String {
        let (_, text) = key.split_once(&format!("- Sid: {sid}\n")).unwrap();
        text.split("- Sid: ").next().unwrap().to_owned()
    };
    for (sid, principal, actions) in [
        // SQS developer guide, "Configure KMS permissions for AWS services"; CloudWatch Logs user guide, "Enable
        // server-side encryption with SSE-KMS" of a bucket that logs are delivered to.
        (
            "AnnouncementsAndDelivery",
            "[events.amazonaws.com, delivery.logs.amazonaws.com]",
            "kms:Decrypt, kms:GenerateDataKey",
        ),
        // CloudWatch user guide, "Amazon SNS encryption permissions" of alarms.
        ("Alarms", "cloudwatch.amazonaws.com", "kms:Decrypt, kms:GenerateDataKey"),
        // CloudWatch Logs user guide, "Encrypt log data in CloudWatch Logs using AWS KMS", its wildcards written out.
        (
            "FunctionLogs",
            "!Sub 'logs.${AWS::Region}.${AWS::URLSuffix}'",
            "kms:Encrypt, kms:Decrypt, kms:ReEncryptFrom, kms:ReEncryptTo, kms:GenerateDataKey, kms:DescribeKey",
        ),
    ] {
        let text = statement(sid);
        assert!(
            text.contains(&format!("Principal: {{Service: {principal}}}\n")),
            "{text}"
        );
        assert!(text.contains(&format!("Action: [{actions}]\n")), "{text}");
    }
}

/// The third function.
struct Counter<'a> {
    stack: &'a Stack<'a>,
    probe: Probe<'a>,
    function: Function,
}

impl<'a> Counter<'a> {
    fn new(stack: &'a Stack<'a>) -> Counter<'a> {
        Counter {
            stack,
            probe: Probe::new(stack),
            function: stack.function("Counter"),
        }
    }

    fn count(&self) -> Result<Value, String> {
        self.probe.invoke(&self.function, &json!({"count": "athena"}))
    }

    /// How often it says that it has asked Athena.
    fn counted(&self) -> usize {
        let said = self.stack.deployed.said(&self.function);
        said.iter()
            .filter(|line| line["type"] == "counted" && line["query"].is_string())
            .count()
    }

    /// Athena counts through the function, its counts are kept in the state, and the next tick bans by them.
    fn bans_the_slow(&self) {
        let (stack, probe) = (self.stack, &self.probe);
        stack.store("policy.toml", LONG);
        let object = probe.put_object(&["/slow/a", "/slow/b"]);
        let before = stack.deployed.tick(None);
        assert!(
            before["problems"].to_string().contains("Athena counted not yet"),
            "{before}"
        );
        assert_eq!(
            (before["new_bans"].as_u64(), stack.count("tallies/athena/")),
            (Some(0), 0)
        );

        let counted = self.count().unwrap();
        // Two requests of each of the two, and the one that Firehose delivered.
        assert_eq!(
            (&counted["type"], &counted["requests"], &counted["suspects"]),
            (&json!("counted"), &json!(5), &json!(2)),
            "{counted}"
        );
        assert_eq!(stack.count("tallies/athena/"), 1);

        let after = stack.deployed.tick(None);
        assert_eq!(
            (&after["new_bans"], &after["problems"]),
            (&json!(2), &json!([])),
            "{after}"
        );
        assert_eq!(stack.deployed.banned(), probe.clients(&object));
        assert!(stack.deployed.ledger().contains("\"slow\""));
    }

    /// What goes wrong is in the metric that the alarm looks at.
    fn failures_ring(&self) {
        let api = &self.stack.deployed.api;
        let alarm = json!({"AlarmNames": [self.stack.resources["CounterAlarm"]]});
        let alarm = api.ok("cloudwatch", "describe_alarms", &alarm)["MetricAlarms"][0].clone();
        assert_eq!(alarm["AlarmActions"], json!([self.stack.resources["Topic"]]), "{alarm}");
        // The stand-in's own alarms mix up all functions, so that we ask for what this one is about.
        let now = now_ms() / 1_000;
        let ask = json!({
            "Namespace": alarm["Namespace"], "MetricName": alarm["MetricName"], "Dimensions": alarm["Dimensions"],
            "Statistics": [alarm["Statistic"]], "Period": alarm["Period"], "StartTime": now - 3_600, "EndTime": now + 60,
        });
        let found = api.ok("cloudwatch", "get_metric_statistics", &ask)["Datapoints"].clone();
        let failures = found
            .as_array()
            .unwrap()
            .iter()
            .map(|point| point["Sum"].as_f64().unwrap());
        assert!(
            failures.sum::<f64>() > alarm["Threshold"].as_f64().unwrap(),
            "{found} {alarm}"
        );
        assert_eq!(alarm["ComparisonOperator"], "GreaterThanThreshold");
    }

    /// It counts by the policy, by the one in use where that is wrong, and by none where there is none; it says so in its
    /// log and in a trace.
    fn counts(&self) -> Result<(), String> {
        let before = self.probe.said(&self.function);
        self.stack.store("policy.toml", LONG);
        for policy in [Some(LONG), Some("mode = 7"), None] {
            match policy {
                Some(policy) => self.stack.store("policy.toml", policy),
                None => self.stack.forget("policy.toml"),
            }
            let counted = self.count()?;
            if counted["query"].is_string() != policy.is_some() {
                return Err(format!("with the policy {policy:?} it counts {counted}"));
            }
        }
        if self.probe.said(&self.function) < (before.0 + 3, before.1 + 3) {
            return Err("it is silent or not traced".into());
        }
        Ok(())
    }

    /// A query that takes too long is cancelled, so that it costs no more.
    fn gives_up(&self) -> Result<(), String> {
        let may_run = |seconds: u32| {
            let update = json!({"FunctionName": self.function.name, "Timeout": seconds});
            self.stack
                .deployed
                .api
                .ok("lambda", "update_function_configuration", &update);
        };
        self.stack.store("policy.toml", &LONG.replace("/slow/*", "-- sleeps"));
        may_run(12); // ten of them are for giving up
        let counted = self.count();
        may_run(900);
        self.stack.store("policy.toml", LONG);
        let why = counted.expect_err("nobody can count that in time");
        if !why.contains("was cancelled by us after 12345678 bytes: the function's time is over") {
            return Err(why);
        }
        let list = json!({"WorkGroup": self.stack.resources["Workgroup"]});
        let api = &self.stack.deployed.api;
        let newest = api.ok("athena", "list_query_executions", &list)["QueryExecutionIds"].clone();
        let running = newest.as_array().unwrap().iter().any(|id| {
            let found = api.ok("athena", "get_query_execution", &json!({"QueryExecutionId": id}));
            found["QueryExecution"]["Status"]["State"] == "RUNNING"
        });
        if running { Err("it goes on".into()) } else { Ok(()) }
    }
}
