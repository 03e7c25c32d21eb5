//! The stack itself: `infra/template.yaml` is deployed, used, updated and deleted, in a stand-in where whoever calls needs
//! the permission to.
//!
//! `further` is about what only some deployments have: Athena's counts and a key. `example_api` deploys the reference API.

mod example_api;
mod further;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use palisade::traffic::{Sent, deliver};
use serde_json::{Value, json};
use walkdir::WalkDir;

use crate::aws::{Api, StandIn};
use crate::e2e::{Deployed, Function, now_ms, packed, prove_the_loop, replaced, set_schedule, wait_for};

const REGION: &str = "eu-central-1";

/// A deployed template.
struct Stack<'a> {
    name: &'static str,
    deployed: Deployed<'a>,
    /// What CloudFormation made, by its name in the template.
    resources: Named,
    outputs: Named,
}

#[test]
fn the_loop_passes_under_the_stacks_own_roles() {
    let Some(aws) = StandIn::with_permissions() else { return };
    let stack = Stack::create(aws, REGION, "loop", &[]).unwrap();
    stack.hurry();
    prove_the_loop(&stack.deployed);
}

#[test]
fn an_update_keeps_bans_ledger_and_policy_and_a_removal_keeps_state_and_logs() {
    let Some(aws) = StandIn::with_permissions() else { return };
    let mut stack = Stack::create(aws, REGION, "update", &[]).unwrap();
    stack.deployed.set_schedule("DISABLED");
    stack.push_policy(0);
    let bans: BTreeSet<IpNet> = ["198.51.100.0/24", "2001:db8:7::/48"]
        .map(|net| net.parse().unwrap())
        .into();
    for ban in &bans {
        stack.palisade(&[
            "ban",
            &ban.to_string(),
            "--why",
            "by hand",
            "--state",
            &stack.deployed.state,
        ]);
    }
    stack.deployed.tick(None);
    assert_eq!(stack.deployed.banned(), bans);
    let known = (stack.deployed.ledger(), stack.stored("policy.toml"));

    // Other parameters and other code: nothing that is known is lost, not for a minute.
    let parameters = [
        ("BanSets", "2"),
        ("AllowV4", "203.0.113.0/24"),
        ("LogDays", "7"),
        ("UpdaterMemory", "256"),
    ];
    stack.update(&parameters, "second").unwrap();
    assert_eq!(stack.deployed.banned(), bans);
    assert_eq!((stack.deployed.ledger(), stack.stored("policy.toml")), known);
    assert_eq!(stack.set("AllowSetV4")["Addresses"], json!(["203.0.113.0/24"]));
    stack.deployed.tick(None);
    assert_eq!(stack.deployed.banned(), bans);
    assert!(
        stack.stored("deployment.json").contains("update-ban-v4-2"),
        "the new sets are in use"
    );
    let found = json!({"FunctionName": stack.deployed.updater.name});
    let found = stack.deployed.api.ok("lambda", "get_function_configuration", &found);
    assert_eq!(found["MemorySize"], 256);

    // A web ACL refers to the sets, and still everything goes in order; what was learnt stays.
    let ledger = stack.deployed.ledger();
    stack.delete().unwrap();
    let named = |what: &str| format!("update-{what}");
    let sets = stack
        .deployed
        .api
        .ok("wafv2", "list_ip_sets", &json!({"Scope": "REGIONAL"}))
        .to_string();
    assert!(!sets.contains(&named("ban")), "{sets}");
    let roles = stack.deployed.api.ok("iam", "list_roles", &json!({})).to_string();
    assert!(!roles.contains(&named("UpdaterRole")), "{roles}");
    assert_eq!(stack.deployed.ledger(), ledger);
}

/// Each way to deploy it can be made and goes again.
#[test]
fn every_choice_of_parameters_can_be_deployed_and_removed() {
    let Some(aws) = StandIn::shared() else { return };
    let create = json!({"Bucket": "aws-waf-logs-theirs", "CreateBucketConfiguration": {"LocationConstraint": REGION}});
    Api::new(aws, REGION).ok("s3", "create_bucket", &create);
    let acl = "arn:aws:wafv2:eu-central-1:111122223333:regional/webacl/theirs/1";
    let check = |region, name, parameters: &[(&str, &str)], made: &[&str], not_made: &[&str]| {
        let stack = Stack::create(aws, region, name, parameters).unwrap_or_else(|why| panic!("{parameters:?}: {why}"));
        for resource in made {
            assert!(
                stack.resources.contains_key(*resource),
                "{parameters:?} makes {resource}"
            );
        }
        for resource in not_made {
            assert!(
                !stack.resources.contains_key(*resource),
                "{parameters:?} makes no {resource}"
            );
        }
        stack.delete().unwrap_or_else(|why| panic!("{parameters:?}: {why}"));
    };
    let group = [
        ("WebAcl", "rule-group"),
        ("ExistingWebAclArn", acl),
        ("LogFilter", "drop-banned"),
    ];
    check(REGION, "group", &group, &["Group", "Logging"], &["NewAcl"]);
    let alone = [("WebAcl", "ip-sets"), ("BanSets", "5")];
    check(
        REGION,
        "alone",
        &alone,
        &["BanSetV6N5"],
        &["NewAcl", "Group", "Logging", "BlockSetV4"],
    );
    check(
        "us-east-1",
        "edge",
        &[("Scope", "CLOUDFRONT")],
        &["NewAcl", "Logging"],
        &[],
    );
    check(
        REGION,
        "direct",
        &[("LogDelivery", "direct")],
        &["Logging", "LogBucket"],
        &["LogStream", "LogStreamRole"],
    );
    let theirs = [("LogDelivery", "none"), ("ExistingLogBucket", "aws-waf-logs-theirs")];
    check(
        REGION,
        "theirs",
        &theirs,
        &["NewLogs"],
        &["LogBucket", "LogBucketPolicy", "Logging", "LogStream"],
    );
    let people = [
        ("KmsKey", "create"),
        ("Email", "somebody@example.com"),
        ("ReserveConcurrency", "no"),
    ];
    check(REGION, "people", &people, &["Key", "Subscription"], &[]);
    let rules = [
        ("RateAction", "block"),
        ("RegexAction", "block"),
        ("ForwardedHeader", "x-forwarded-for"),
        ("ManagedCommon", "block"),
        ("ManagedBotControl", "count"),
        ("Redact", "credentials-and-query"),
    ];
    check(REGION, "rules", &rules, &["NewAcl"], &[]);
    check(
        REGION,
        "few",
        &[("RateLimit", "0"), ("RegexPattern", ""), ("Redact", "nothing")],
        &["NewAcl"],
        &[],
    );

    let abroad = Stack::create(aws, REGION, "abroad", &[("Scope", "CLOUDFRONT")]);
    assert!(
        abroad.err().unwrap().contains("us-east-1"),
        "CloudFront's web ACLs live in one Region"
    );
    let nowhere = Stack::create(aws, REGION, "nowhere", &[("LogDelivery", "none")]);
    assert!(nowhere.err().unwrap().contains("ExistingLogBucket"));
}

/// One by one each grant is taken away, and something fails; with all of them nothing does.
#[test]
fn every_grant_is_needed_and_nothing_else_is_granted() {
    let Some(aws) = StandIn::with_permissions() else { return };
    let stack = Stack::create(aws, REGION, "grants", &[]).unwrap();
    stack.hurry();
    stack.deployed.set_schedule("DISABLED");
    let probe = Probe::new(&stack);
    let works_of = |role: &str, action: &str| -> Option<Works<'_>> {
        let works: Works = match (role, action) {
            ("AnalyzerRole", "sqs:ReceiveMessage" | "sqs:DeleteMessage" | "sqs:GetQueueAttributes") => {
                Box::new(|| probe.queue_drains(Duration::from_secs(6)))
            }
            ("AnalyzerRole", _) => Box::new(|| probe.analyzer_counts()),
            ("UpdaterRole", _) => Box::new(|| probe.updater_judges()),
            ("EveryMinuteRole", _) => {
                let (schedule, updater) = (&stack.deployed.schedule, &stack.deployed.updater);
                Box::new(|| probe.schedule_fires(schedule, updater, Duration::from_secs(8)))
            }
            ("LogStreamRole", "s3:PutObject") => Box::new(|| probe.firehose_delivers(Duration::from_secs(2))),
            _ => return None,
        };
        Some(works)
    };

    probe.queue_drains(Duration::from_secs(60)).unwrap();
    probe.firehose_delivers(Duration::from_secs(30)).unwrap();
    probe.updater_judges().unwrap(); // it leaves a policy in use behind, which the analyzer falls back to
    probe.analyzer_counts().unwrap();
    probe
        .schedule_fires(
            &stack.deployed.schedule,
            &stack.deployed.updater,
            Duration::from_secs(60),
        )
        .unwrap();

    let tried: usize = ["AnalyzerRole", "EveryMinuteRole", "LogStreamRole", "UpdaterRole"]
        .iter()
        .map(|role| without_each_grant(&stack.deployed.api, &stack.resources, "", role, works_of))
        .sum();
    assert!(tried > 30, "{tried}");

    // The queue takes announcements because its policy says so.
    let url = json!({"QueueUrl": stack.deployed.queue_url});
    let set = |policy: &str| {
        let mut set = url.clone();
        set["Attributes"] = json!({"Policy": policy});
        stack.deployed.api.ok("sqs", "set_queue_attributes", &set);
    };
    let mut get = url.clone();
    get["AttributeNames"] = json!(["Policy"]);
    let policy = stack.deployed.api.ok("sqs", "get_queue_attributes", &get)["Attributes"]["Policy"].clone();
    let policy = policy.as_str().unwrap();
    let mut refusing: Value = serde_json::from_str(policy).unwrap();
    refusing["Statement"]
        .as_array_mut()
        .unwrap()
        .retain(|statement| statement["Effect"] == "Deny");
    assert!(probe.is_announced(Duration::from_secs(30)));
    set(&refusing.to_string());
    assert!(!probe.is_announced(Duration::from_secs(4)));
    set(policy);

    probe.refuses_what_nobody_granted();
}

/// The code calls what the template grants, and the template grants what the code calls.
#[test]
fn every_call_is_granted_and_every_grant_is_called() {
    let mut called = calls("src");
    called.extend(calls("updater/src"));
    for (call, _) in NO_FUNCTION_CALLS {
        assert!(called.remove(call), "{call} is not in the code any more");
    }
    let template = template();
    let mut granted = BTreeSet::new();
    for role in ["AnalyzerRole", "CounterRole", "UpdaterRole"] {
        let actions = resource(&template, role)
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Action: "));
        let actions = actions.flat_map(|actions| actions.trim_matches(['[', ']']).split(", "));
        granted.extend(
            actions
                .map(str::to_owned)
                .filter(|action| action != "'sts:AssumeRole'}"),
        );
    }
    for action in WHAT_LAMBDA_DOES_IN_THE_FUNCTIONS_NAME
        .iter()
        .chain(&WHAT_ATHENA_DOES_IN_THE_FUNCTIONS_NAME)
    {
        assert!(granted.remove(*action), "{action} is not granted any more");
    }
    assert_eq!(called, granted);
}

/// Calls that are in the code, but in none of the functions: why they are not granted.
const NO_FUNCTION_CALLS: [(&str, &str); 2] = [
    ("s3:DeleteObject", "a store can forget, which the functions never do"),
    ("wafv2:ListIPSets", "the template says which sets are ours"),
];

/// Reading the queue, writing logs and traces, and using a key, all of which the stand-in does in their name.
const WHAT_LAMBDA_DOES_IN_THE_FUNCTIONS_NAME: [&str; 9] = [
    "kms:Decrypt",
    "kms:GenerateDataKey",
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
    "sqs:ReceiveMessage",
    "xray:PutTelemetryRecords",
    "xray:PutTraceSegments",
];

/// Knowing the table, finding the logs, and keeping results.
const WHAT_ATHENA_DOES_IN_THE_FUNCTIONS_NAME: [&str; 7] = [
    "glue:CreateDatabase",
    "glue:GetDatabase",
    "glue:GetTable",
    "s3:AbortMultipartUpload",
    "s3:GetBucketLocation",
    "s3:ListBucketMultipartUploads",
    "s3:ListMultipartUploadParts",
];

/// The calls to AWS in a folder's code, as IAM names them: `.put_object()` without arguments, in a file that knows an SDK.
fn calls(folder: &str) -> BTreeSet<String> {
    const VERBS: [&str; 16] = [
        "abort_",
        "batch_",
        "copy_",
        "create_",
        "delete_",
        "describe_",
        "get_",
        "head_",
        "list_",
        "publish",
        "put_",
        "receive_",
        "send_",
        "start_",
        "stop_",
        "update_",
    ];
    let mut calls = BTreeSet::new();
    for entry in WalkDir::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)) {
        let path = entry.unwrap().into_path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let services = ["athena", "s3", "sns", "sqs", "wafv2"]
            .into_iter()
            .filter(|sdk| code.contains(&format!("aws_sdk_{sdk}")));
        let services: Vec<&str> = services.collect();
        for call in code
            .split('.')
            .filter_map(|part| part.split_once("()").map(|(call, _)| call))
        {
            let is_name = call
                .chars()
                .all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_');
            if services.is_empty() || !is_name || !VERBS.iter().any(|verb| call.starts_with(verb)) {
                continue;
            }
            assert_eq!(
                services.len(),
                1,
                "{} calls `{call}` of one of {services:?}",
                path.display()
            );
            let action = match call {
                "list_objects_v2" => "ListBucket".to_owned(),
                call => {
                    let words = call.split('_').map(|word| word[..1].to_uppercase() + &word[1..]);
                    words.collect::<String>().replace("IpSet", "IPSet")
                }
            };
            calls.insert(format!("{}:{action}", services[0]));
        }
    }
    calls
}

/// The text of one resource of the template.
fn resource<'a>(template: &'a str, name: &str) -> &'a str {
    let (_, from) = template.split_once(&format!("\n  {name}:\n")).unwrap();
    let end = from
        .match_indices("\n  ")
        .find(|(at, _)| !from[at + 3..].starts_with([' ', '#']));
    &from[..end.map_or(from.len(), |(at, _)| at)]
}

/// Alarms and dashboard look at numbers that the function they name says.
#[test]
fn the_metrics_that_people_look_at_are_those_that_the_code_emits() {
    let template = template();
    let mut looked_at = BTreeSet::new();
    let mut alarms = 0;
    for alarm in template.split("Namespace: Palisade\n").skip(1) {
        let value = |name: &str| alarm.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
        let function = value("Dimensions: [{Name: function, Value: !Ref ").trim_end_matches("}]");
        looked_at.insert((function.to_owned(), value("MetricName: ").to_owned()));
        alarms += 1;
    }
    let mut shown = 0;
    for metric in template.split("[\"Palisade\", ").skip(1) {
        let parts: Vec<&str> = metric.splitn(6, '"').collect();
        assert_eq!(parts[3], "function", "{metric}");
        let function = metric.split("${").nth(1).unwrap().split('}').next().unwrap();
        looked_at.insert((function.to_owned(), parts[1].to_owned()));
        shown += 1;
    }
    assert!(
        alarms >= 8 && shown >= 15,
        "{alarms} alarms and {shown} lines are found"
    );
    for (function, metric) in looked_at {
        let file = format!("src/lambda/{}.rs", function.to_lowercase());
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file)).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let emitted = ["Metric::count(", "milliseconds(", "name: "].map(|before| format!("{before}\"{metric}\""));
        assert!(
            emitted.iter().any(|emitted| code.contains(emitted)),
            "{file} emits no `{metric}`"
        );
    }
}

/// Something that a role's owner does, and why it could not.
type Works<'a> = Box<dyn Fn() -> Result<(), String> + 'a>;

/// What nothing here can tell about, because only AWS knows what it does with it, and who asks for it: these grants are
/// compared with its documentation, word for word, instead of being taken away. By role, in alphabetical order.
const ASKED_FOR_BY_DOCUMENTATION: [(&str, &[&str]); 2] = [
    // The managed policy AmazonAthenaFullAccess, "BaseQueryResultsPermissions": results that are large come in parts.
    (
        "CounterRole",
        &[
            "s3:AbortMultipartUpload",
            "s3:ListBucketMultipartUploads",
            "s3:ListMultipartUploadParts",
        ],
    ),
    // Firehose developer guide, "Grant Firehose access to an Amazon S3 destination", without what is for reading objects,
    // for a stream that another stream feeds, and for one that a function transforms.
    (
        "LogStreamRole",
        &[
            "kms:Decrypt",
            "logs:PutLogEvents",
            "s3:AbortMultipartUpload",
            "s3:GetBucketLocation",
            "s3:ListBucket",
            "s3:ListBucketMultipartUploads",
        ],
    ),
];

/// Takes each grant of a role away once, and what its owner does must fail: how many were tried. Where nothing `works` that
/// could tell, the grant is one that documentation asks for. `service` is `""` for all, or the beginning of actions.
fn without_each_grant<'w>(
    api: &Api,
    resources: &Named,
    service: &str,
    role: &str,
    works: impl Fn(&str, &str) -> Option<Works<'w>>,
) -> usize {
    let named = json!({"RoleName": resources[role]});
    let policies = api.ok("iam", "list_role_policies", &named)["PolicyNames"].clone();
    let attached = api.ok("iam", "list_attached_role_policies", &named);
    assert_eq!(attached["AttachedPolicies"], json!([]), "{role}");
    assert_eq!(policies.as_array().unwrap().len(), 1, "{role}");
    let named = json!({"RoleName": resources[role], "PolicyName": policies[0]});
    let policy = api.ok("iam", "get_role_policy", &named)["PolicyDocument"].clone();
    let put = |policy: &Value| {
        let mut put = named.clone();
        put["PolicyDocument"] = policy.to_string().into();
        api.ok("iam", "put_role_policy", &put);
    };
    let (mut tried, mut asked, mut in_vain) = (Vec::new(), BTreeSet::new(), Vec::new());
    for (action, resource, rest) in each_without(&policy) {
        if !action.starts_with(service) {
            continue;
        }
        let Some(works) = works(role, &action) else {
            asked.insert(action);
            continue;
        };
        put(&rest);
        let began = Instant::now();
        match works() {
            Ok(()) => in_vain.push(format!("{role}: {action} on {resource}")),
            Err(why) => println!("{role} without {action} on {resource}: {why} ({:.1?})", began.elapsed()),
        }
        put(&policy);
        tried.push(works);
    }
    assert_eq!(in_vain, Vec::<String>::new(), "granted in vain");
    // With everything back all is well, so that nothing failed for another reason.
    for works in [tried.first(), tried.last()].into_iter().flatten() {
        works().unwrap();
    }
    let documented = ASKED_FOR_BY_DOCUMENTATION.iter().find(|(of, _)| *of == role);
    let documented = documented.map_or(&[][..], |(_, actions)| actions);
    let has_key = policy.to_string().contains("kms:");
    let documented = documented
        .iter()
        .filter(|action| action.starts_with(service) && (has_key || !action.starts_with("kms:")))
        .map(|action| (*action).to_owned());
    assert_eq!(asked, documented.collect(), "{role}");
    tried.len()
}

/// A policy's grants one by one, an action on a resource each: the action, the resource, and the policy without it.
fn each_without(policy: &Value) -> Vec<(String, String, Value)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let mut all = Vec::new();
    for (at, statement) in policy["Statement"].as_array().unwrap().iter().enumerate() {
        let (actions, resources) = (list(&statement["Action"]), list(&statement["Resource"]));
        for action in &actions {
            for resource in &resources {
                let without = |list: &[Value], one: &Value| list.iter().filter(|item| *item != one).cloned().collect();
                let mut rest = policy.clone();
                let statements = rest["Statement"].as_array_mut().unwrap();
                let removed = statements.remove(at);
                let (others, elsewhere): (Vec<Value>, Vec<Value>) =
                    (without(&actions, action), without(&resources, resource));
                for (actions, resources, sid) in [
                    (others, resources.clone(), "Others"),
                    (vec![action.clone()], elsewhere, "Elsewhere"),
                ] {
                    if !actions.is_empty() && !resources.is_empty() {
                        let mut statement = removed.clone();
                        statement["Sid"] = sid.into();
                        statement["Action"] = actions.into();
                        statement["Resource"] = resources.into();
                        statements.push(statement);
                    }
                }
                if statements.is_empty() {
                    // IAM takes no policy that says nothing; this everybody may anyway.
                    statements.push(json!({"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Resource": "*"}));
                }
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                all.push((text(action), text(resource), rest));
            }
        }
    }
    all
}

/// How many invocations are in a function's log, and how many of them were traced.
fn invocations(api: &Api, function: &Function) -> (usize, usize) {
    let group = json!({"logGroupName": function.log_group});
    let found = api.ok("logs", "filter_log_events", &group);
    let events = found["events"].as_array().unwrap();
    let begins = |start: &str| {
        events
            .iter()
            .filter(|event| event["message"].as_str().unwrap().starts_with(start))
            .count()
    };
    (begins("START "), begins("XRAY "))
}

/// What a deployment does, in pieces that are quick to try.
struct Probe<'a> {
    stack: &'a Stack<'a>,
    /// Each try has clients, objects and a policy of its own.
    number: Cell<u32>,
    folder: tempfile::TempDir,
    notices_url: String,
}

impl<'a> Probe<'a> {
    fn new(stack: &'a Stack<'a>) -> Probe<'a> {
        let api = &stack.deployed.api;
        let create = json!({"QueueName": format!("{}-notices", stack.name)});
        let notices_url = api.ok("sqs", "create_queue", &create)["QueueUrl"]
            .as_str()
            .unwrap()
            .to_owned();
        let get = json!({"QueueUrl": notices_url, "AttributeNames": ["QueueArn"]});
        let arn = api.ok("sqs", "get_queue_attributes", &get)["Attributes"]["QueueArn"].clone();
        let statement = json!({"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"},
                               "Action": "sqs:SendMessage", "Resource": arn});
        let policy = json!({"Version": "2012-10-17", "Statement": [statement]}).to_string();
        let set = json!({"QueueUrl": notices_url, "Attributes": {"Policy": policy}});
        api.ok("sqs", "set_queue_attributes", &set);
        let subscribe = json!({"TopicArn": stack.resources["Topic"], "Protocol": "sqs", "Endpoint": arn});
        api.ok("sns", "subscribe", &subscribe);
        let probe = Probe {
            stack,
            number: Cell::new(0),
            folder: tempfile::tempdir().unwrap(),
            notices_url,
        };
        probe.map_queue(false);
        probe
    }

    /// An object is announced, counted, and its message gone.
    fn queue_drains(&self, within: Duration) -> Result<(), String> {
        self.put_object(&[]);
        self.map_queue(true);
        let drained = self.until(within, || self.messages() == 0);
        self.map_queue(false);
        drained.then_some(()).ok_or("the queue does not drain".into())
    }

    fn is_announced(&self, within: Duration) -> bool {
        let before = self.messages();
        self.put_object(&[]);
        self.until(within, || self.messages() > before)
    }

    /// What the template schedules, once and now: the function that is to hear of it does.
    fn schedule_fires(&self, schedule: &str, function: &Function, within: Duration) -> Result<(), String> {
        let api = &self.stack.deployed.api;
        let target = api.ok("scheduler", "get_schedule", &json!({"Name": schedule}))["Target"].clone();
        let before = self.said(function);
        let create = json!({"Name": format!("once-{}", self.next()), "ScheduleExpression": "at(2026-01-01T00:00:00)",
                            "FlexibleTimeWindow": {"Mode": "OFF"}, "Target": target});
        api.ok("scheduler", "create_schedule", &create);
        let fired = self.until(within, || self.said(function) > before);
        fired.then_some(()).ok_or("the schedule does not fire".into())
    }

    /// A record that WAF hands to the stream becomes an object of the log bucket.
    fn firehose_delivers(&self, within: Duration) -> Result<(), String> {
        let deployed = &self.stack.deployed;
        let objects = || {
            let list = json!({"Bucket": deployed.log_bucket, "Prefix": deployed.log_prefix});
            let listed = deployed.api.ok("s3", "list_objects_v2", &list);
            listed["KeyCount"].as_u64().unwrap()
        };
        let before = objects();
        let mut record = Vec::new();
        let client = format!("203.0.113.{}", self.next());
        let sent = Sent::new(now_ms() - 60_000, client.parse().unwrap());
        sent.write(&mut record, u64::from(self.number.get())).unwrap();
        let put = json!({"DeliveryStreamName": self.stack.resources["LogStream"],
                         "Record": {"Data": String::from_utf8(record).unwrap()}});
        deployed.api.ok("firehose", "put_record", &put);
        let delivered = self.until(within, || objects() > before);
        delivered.then_some(()).ok_or("Firehose does not deliver".into())
    }

    /// An object is counted, one that is not there ends in the dead-letter queue with the reason, the same with a policy
    /// that is wrong, and all of it is in the log and in a trace.
    fn analyzer_counts(&self) -> Result<(), String> {
        let deployed = &self.stack.deployed;
        let before = self.said(&deployed.analyzer);
        self.receive(&deployed.dead_letters_url);
        let object = self.put_object(&["/trap/a"]);
        let batch = json!({"Records": [self.message(&object, 1), self.message("waf/2026/01/01/00/missing.gz", 1_000)]});
        let counted = self.invoke(&deployed.analyzer, &batch)?;
        if counted != json!({"batchItemFailures": []}) {
            return Err(format!("it can't count or can't give up: {counted}"));
        }
        let letters = self.receive(&deployed.dead_letters_url);
        if !letters.to_string().contains("NoSuchKey") {
            return Err(format!("a dead letter without the true reason: {letters}"));
        }
        if self.said(&deployed.analyzer) < (before.0 + 1, before.1 + 1) {
            return Err("it is silent or not traced".into());
        }
        let policy = self.stack.stored("policy.toml");
        self.stack.store("policy.toml", "mode = 7");
        let object = self.put_object(&["/trap/b"]);
        let counted = self.invoke(&deployed.analyzer, &json!({"Records": [self.message(&object, 1)]}));
        self.stack.store("policy.toml", &policy);
        match counted? {
            counted if counted == json!({"batchItemFailures": []}) => Ok(()),
            counted => Err(format!("it can't count by the policy in use: {counted}")),
        }
    }

    /// A new process under a new policy finds what was counted, counts what was not, bans and challenges in both families,
    /// writes the audit, tells people, and says so in its log and in a trace; and does not lose heart when the policy is wrong.
    fn updater_judges(&self) -> Result<(), String> {
        let deployed = &self.stack.deployed;
        let number = self.next();
        let (audit, said) = (self.stack.count("verdicts/"), self.said(&deployed.updater));
        self.stack.push_policy(number);
        self.stack.forget("deployment.json");
        self.new_process();
        self.receive(&self.notices_url);
        let counted = self.put_object(&["/trap/x"]);
        let batch = json!({"Records": [self.message(&counted, 1)]});
        self.invoke(&deployed.analyzer, &batch)?;
        let found = self.put_object(&["/challenge/x"]);
        let (bans, challenges) = (self.clients(&counted), self.clients(&found));

        let summary = self.invoke(&deployed.updater, &json!({}))?["summary"].clone();
        if summary["left"] != 0 || summary["problems"] != json!([]) {
            return Err(format!("it leaves something: {}", summary["problems"]));
        }
        let held = |sets: [&str; 2]| -> BTreeSet<IpNet> {
            let addresses = sets.map(|set| self.stack.set(set)["Addresses"].clone());
            let all = addresses.iter().flat_map(|addresses| addresses.as_array().unwrap());
            all.map(|address| address.as_str().unwrap().parse().unwrap()).collect()
        };
        if !held(["BanSetV4", "BanSetV6"]).is_superset(&bans)
            || !held(["ChallengeSetV4", "ChallengeSetV6"]).is_superset(&challenges)
        {
            return Err(format!("{bans:?} or {challenges:?} is in no set: {summary}"));
        }
        if self.stack.count("verdicts/") <= audit || self.stack.count("deployment.json") == 0 {
            return Err("no audit or no deployment is written".into());
        }
        if !self.receive(&self.notices_url).to_string().contains("new ban") {
            return Err("nobody is told".into());
        }
        if self.said(&deployed.updater) < (said.0 + 1, said.1 + 1) {
            return Err("it is silent or not traced".into());
        }
        let policy = self.stack.stored("policy.toml");
        self.stack.store("policy.toml", "mode = 7");
        let judged = self.invoke(&deployed.updater, &json!({}));
        self.stack.store("policy.toml", &policy);
        let rejected = judged?["summary"]["policy_rejected"].is_string();
        rejected.then_some(()).ok_or("a wrong policy is not told".into())
    }

    fn refuses_what_nobody_granted(&self) {
        let deployed = &self.stack.deployed;
        let (state, logs) = (&self.stack.resources["StateBucket"], &deployed.log_bucket);
        let role = |name: &str| format!("arn:aws:iam::111122223333:role/{}", self.stack.resources[name]);
        let refused = |role_name: &str, service: &str, operation: &str, parameters: &Value| {
            let api = deployed.api.assuming(deployed.aws, deployed.region, &role(role_name));
            let (code, _) = api.call(service, operation, parameters).unwrap_err();
            // SNS has its own word for it.
            let denied = code.starts_with("AccessDenied") || code.starts_with("AuthorizationError");
            assert!(denied, "{role_name} {operation}: {code}");
        };
        let name_of = |set: &str| {
            let parts: Vec<&str> = self.stack.resources[set].split('|').collect();
            json!({"Name": parts[0], "Id": parts[1], "Scope": parts[2]})
        };
        let update = |set: &str| {
            let mut update = name_of(set);
            update["Addresses"] = json!([]);
            update["LockToken"] = "any".into();
            update
        };
        let policy = json!({"Bucket": state, "Key": "policy.toml", "Body": "mode = \"enforce\""});
        let ledger = json!({"Bucket": state, "Key": "ledger.json"});
        let log = json!({"Bucket": logs, "Key": "waf/2026/11/24/20/forged.gz", "Body": "x"});
        let audit = json!({"Bucket": state, "Key": "verdicts/2026-11-24/20-00-00000000.jsonl"});
        for set in ["AllowSetV4", "AllowSetV6", "BlockSetV4", "BlockSetV6"] {
            refused("UpdaterRole", "wafv2", "update_ip_set", &update(set));
        }
        refused(
            "UpdaterRole",
            "wafv2",
            "delete_ip_set",
            &json!({"Name": name_of("BanSetV4")["Name"],
            "Id": name_of("BanSetV4")["Id"], "Scope": "REGIONAL", "LockToken": "any"}),
        );
        refused("UpdaterRole", "s3", "put_object", &policy);
        refused("UpdaterRole", "s3", "put_object", &log);
        refused("UpdaterRole", "s3", "delete_object", &ledger);
        refused("UpdaterRole", "s3", "get_object", &audit);
        refused("AnalyzerRole", "wafv2", "update_ip_set", &update("BanSetV4"));
        refused("AnalyzerRole", "s3", "get_object", &ledger);
        refused("AnalyzerRole", "s3", "put_object", &policy);
        refused("AnalyzerRole", "s3", "put_object", &log);
        refused(
            "AnalyzerRole",
            "sns",
            "publish",
            &json!({"TopicArn": self.stack.resources["Topic"], "Message": "x"}),
        );
        let letters = json!({"QueueUrl": deployed.dead_letters_url});
        refused("AnalyzerRole", "sqs", "receive_message", &letters);
        let analyzer = format!(
            "arn:aws:lambda:{REGION}:111122223333:function:{}",
            deployed.analyzer.name
        );
        assert!(
            !deployed
                .api
                .may(&role("EveryMinuteRole"), "lambda:InvokeFunction", &analyzer)
        );
        let elsewhere = format!("arn:aws:s3:::{state}/ledger.json");
        assert!(!deployed.api.may(&role("LogStreamRole"), "s3:PutObject", &elsewhere));
    }

    fn next(&self) -> u32 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }

    /// An object with requests for these paths by two clients that nobody else has, one a family: its key.
    fn put_object(&self, uris: &[&str]) -> String {
        let number = self.next();
        let minute_ms = now_ms() - now_ms().rem_euclid(60_000);
        let clients = [format!("198.51.100.{number}"), format!("2001:db8:0:{number:x}::1")];
        let sent = clients.iter().flat_map(|client| {
            let sent = move |uri: &&str| Sent {
                uri: (*uri).into(),
                ..Sent::new(minute_ms - 30_000, client.parse().unwrap())
            };
            uris.iter().map(sent)
        });
        let mut sent: Vec<Sent> = sent.collect();
        if sent.is_empty() {
            sent.push(Sent::new(minute_ms - 30_000, clients[0].parse().unwrap()));
        }
        let folder = self.folder.path().join(number.to_string());
        deliver(&sent, &folder, u64::from(number)).unwrap();
        let files = WalkDir::new(&folder).into_iter().map(Result::unwrap);
        let file = files
            .filter(|entry| entry.file_type().is_file())
            .last()
            .unwrap()
            .into_path();
        let key = format!("waf/{}", file.strip_prefix(&folder).unwrap().display());
        let put = json!({"Bucket": self.stack.deployed.log_bucket, "Key": key, "Body": {"file": file}});
        self.stack.deployed.api.ok("s3", "put_object", &put);
        format!("{key}#{number}")
    }

    /// The networks of the clients in an object.
    fn clients(&self, object: &str) -> BTreeSet<IpNet> {
        let number: u32 = object.split_once('#').unwrap().1.parse().unwrap();
        let networks = [format!("198.51.100.{number}/32"), format!("2001:db8:0:{number:x}::/64")];
        networks.iter().map(|network| network.parse().unwrap()).collect()
    }

    /// What SQS gives the analyzer about an object.
    fn message(&self, object: &str, attempt: u32) -> Value {
        let key = object.split('#').next().unwrap();
        let detail = json!({"bucket": {"name": self.stack.deployed.log_bucket}, "object": {"key": key}});
        let body = json!({"source": "aws.s3", "detail-type": "Object Created", "detail": detail}).to_string();
        json!({"messageId": key, "body": body, "eventSource": "aws:sqs",
               "attributes": {"ApproximateReceiveCount": attempt.to_string()}})
    }

    fn invoke(&self, function: &Function, event: &Value) -> Result<Value, String> {
        let invoke = json!({"FunctionName": function.name, "Payload": event.to_string()});
        let answer = self.stack.deployed.api.ok("lambda", "invoke", &invoke);
        let payload = answer["Payload"].as_str().unwrap();
        match answer.get("FunctionError") {
            None => Ok(serde_json::from_str(payload).unwrap()),
            Some(_) => Err(payload.to_owned()),
        }
    }

    /// Lambda starts a new process when the configuration changes.
    fn new_process(&self) {
        let api = &self.stack.deployed.api;
        let name = json!({"FunctionName": self.stack.deployed.updater.name});
        let mut environment = api.ok("lambda", "get_function_configuration", &name)["Environment"].clone();
        environment["Variables"]["PROBE"] = self.number.get().to_string().into();
        let update = json!({"FunctionName": self.stack.deployed.updater.name, "Environment": {"Variables": environment["Variables"]}});
        api.ok("lambda", "update_function_configuration", &update);
        wait_for("the new configuration", || {
            let found = api.ok("lambda", "get_function_configuration", &name);
            (found["LastUpdateStatus"] == "Successful").then_some(())
        });
    }

    fn map_queue(&self, enabled: bool) {
        let list = json!({"FunctionName": self.stack.deployed.analyzer.name});
        let found = self
            .stack
            .deployed
            .api
            .ok("lambda", "list_event_source_mappings", &list);
        let uuid = found["EventSourceMappings"][0]["UUID"].clone();
        let update = json!({"UUID": uuid, "Enabled": enabled});
        self.stack
            .deployed
            .api
            .ok("lambda", "update_event_source_mapping", &update);
    }

    /// How many messages wait to be counted, or are being.
    fn messages(&self) -> u32 {
        let names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
        let get = json!({"QueueUrl": self.stack.deployed.queue_url, "AttributeNames": names});
        let found = self.stack.deployed.api.ok("sqs", "get_queue_attributes", &get)["Attributes"].clone();
        names
            .iter()
            .map(|name| found[*name].as_str().unwrap().parse::<u32>().unwrap())
            .sum()
    }

    /// Takes what is in a queue.
    fn receive(&self, url: &str) -> Value {
        let api = &self.stack.deployed.api;
        let receive = json!({"QueueUrl": url, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"]});
        let found = api.ok("sqs", "receive_message", &receive)["Messages"].clone();
        for message in found.as_array().into_iter().flatten() {
            api.ok(
                "sqs",
                "delete_message",
                &json!({"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]}),
            );
        }
        found
    }

    fn said(&self, function: &Function) -> (usize, usize) {
        invocations(&self.stack.deployed.api, function)
    }

    fn until(&self, within: Duration, check: impl Fn() -> bool) -> bool {
        let began = Instant::now();
        while began.elapsed() < within {
            if check() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    }
}

impl<'a> Stack<'a> {
    /// Deploys the template, as `sam package` and `sam deploy` do; the reason if it can't be.
    fn create(
        aws: &'a StandIn,
        region: &'static str,
        name: &'static str,
        parameters: &[(&str, &str)],
    ) -> Result<Stack<'a>, String> {
        let api = Api::new(aws, region);
        send(aws, &api, region, name, parameters, "first")?;
        let (outputs, resources) = described(&api, name)?;
        let of = |names: &BTreeMap<String, String>, name: &str| names.get(name).cloned().unwrap_or_default();
        let function = |name: &str| function_of(&resources, name);
        let set = |name: &str| {
            let parts: Vec<&str> = resources[name].split('|').collect();
            (parts[0].to_owned(), parts[1].to_owned())
        };
        let logs = outputs["Logs"].strip_prefix("s3://").unwrap();
        let deployed = Deployed {
            aws,
            region,
            state: outputs["State"].clone(),
            log_bucket: logs.split('/').next().unwrap().to_owned(),
            log_prefix: "waf/",
            analyzer: function("Analyzer"),
            updater: function("Updater"),
            schedule: resources["EveryMinute"].clone(),
            queue_url: resources["Announcements"].clone(),
            delivers_as: resources
                .get("LogStreamRole")
                .map(|role| format!("arn:aws:iam::111122223333:role/{role}")),
            dead_letters_url: of(&outputs, "DeadLettersUrl"),
            block: [set("BanSetV4"), set("BanSetV6")],
            api,
        };
        Ok(Stack {
            name,
            deployed,
            resources,
            outputs,
        })
    }

    fn function(&self, name: &str) -> Function {
        function_of(&self.resources, name)
    }

    fn set_schedule(&self, name: &str, state: &str) {
        set_schedule(&self.deployed.api, &self.resources[name], state);
    }

    fn update(&mut self, parameters: &[(&str, &str)], version: &str) -> Result<(), String> {
        let deployed = &self.deployed;
        send(
            deployed.aws,
            &deployed.api,
            deployed.region,
            self.name,
            parameters,
            version,
        )?;
        (self.outputs, self.resources) = described(&deployed.api, self.name)?;
        Ok(())
    }

    fn delete(&self) -> Result<(), String> {
        delete(&self.deployed.api, self.name)
    }

    /// Failed messages come back sooner than in six times a function's timeout, and nobody waits an hour for this test.
    fn hurry(&self) {
        let set = json!({"QueueUrl": self.deployed.queue_url, "Attributes": {"VisibilityTimeout": "10"}});
        self.deployed.api.ok("sqs", "set_queue_attributes", &set);
    }

    fn set(&self, set: &str) -> Value {
        let parts: Vec<&str> = self.resources[set].split('|').collect();
        let get = json!({"Name": parts[0], "Id": parts[1], "Scope": parts[2]});
        self.deployed.api.ok("wafv2", "get_ip_set", &get)["IPSet"].clone()
    }

    /// A policy that enforces, with a rule for each action; it is another one for each `number`.
    fn push_policy(&self, number: u32) {
        let policy = format!(
            "# {number}\nmode = \"enforce\"\n[ban]\nladder = [\"30m\"]\n[brake]\nallowed_share = 1.0\n\
             [[rule]]\nname = \"trap\"\nwhy = \"A trap.\"\nmatch = {{ uri = \"/trap/*\" }}\nlimit = 1\nwindow = \"1m\"\n\
             [[rule]]\nname = \"challenge\"\nwhy = \"A question.\"\nmatch = {{ uri = \"/challenge/*\" }}\nlimit = 1\n\
             window = \"1m\"\nban = [{{ for = \"30m\", action = \"challenge\" }}]\n"
        );
        self.store("policy.toml", &policy);
    }

    fn stored(&self, key: &str) -> String {
        let get = json!({"Bucket": self.resources["StateBucket"], "Key": key});
        self.deployed.api.ok("s3", "get_object", &get)["Body"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn store(&self, key: &str, text: &str) {
        let put = json!({"Bucket": self.resources["StateBucket"], "Key": key, "Body": text});
        self.deployed.api.ok("s3", "put_object", &put);
    }

    fn forget(&self, key: &str) {
        let delete = json!({"Bucket": self.resources["StateBucket"], "Key": key});
        self.deployed.api.ok("s3", "delete_object", &delete);
    }

    fn count(&self, prefix: &str) -> u64 {
        let list = json!({"Bucket": self.resources["StateBucket"], "Prefix": prefix});
        self.deployed.api.ok("s3", "list_objects_v2", &list)["KeyCount"]
            .as_u64()
            .unwrap()
    }

    fn palisade(&self, args: &[&str]) {
        let output = Command::new(env!("CARGO_BIN_EXE_palisade"))
            .args(args)
            .envs(self.deployed.aws.environment(self.deployed.region))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{args:?}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Deploys Palisade's template, or a new version of it.
fn send(
    aws: &StandIn,
    api: &Api,
    region: &str,
    name: &str,
    parameters: &[(&str, &str)],
    version: &str,
) -> Result<(), String> {
    let functions = ["analyzer", "updater"].map(|function| {
        let before = format!("BuildProperties: {{Binary: {function}-lambda}}\n    Properties:\n");
        (packed(aws, function), before)
    });
    let template = replaced(&template(), "    CodeUri: ..\n", "");
    send_template(aws, api, region, name, &template, &functions, parameters, version)
}

/// Does what `sam package` and `sam deploy` do: each function's code goes into a bucket, and into the template where it is,
/// after the text that comes before it; then the stack is created, or updated where it is there. The reason if it can't be.
#[allow(clippy::too_many_arguments)]
fn send_template(
    aws: &StandIn,
    api: &Api,
    region: &str,
    name: &str,
    template: &str,
    functions: &[(PathBuf, String)],
    parameters: &[(&str, &str)],
    version: &str,
) -> Result<(), String> {
    let bucket = format!("{name}-packages");
    let exists = api.call("s3", "head_bucket", &json!({"Bucket": bucket})).is_ok();
    if !exists {
        let mut create = json!({"Bucket": bucket});
        if region != "us-east-1" {
            create["CreateBucketConfiguration"] = json!({"LocationConstraint": region});
        }
        api.ok("s3", "create_bucket", &create);
    }
    let put = |key: &str, file: &Path| {
        let put = json!({"Bucket": bucket, "Key": key, "Body": {"file": file}});
        api.ok("s3", "put_object", &put);
    };
    let mut template = template.to_owned();
    for (number, (zip, before)) in functions.iter().enumerate() {
        let key = format!("{version}/{number}.zip");
        put(&key, zip);
        // More than one function may be made of a binary.
        assert!(template.contains(before), "{before}");
        template = template.replace(before, &format!("{before}      CodeUri: s3://{bucket}/{key}\n"));
    }
    let file: PathBuf = aws.temporary().join(format!("{name}-{version}.yaml"));
    fs::write(&file, template).unwrap();
    put(&format!("{version}.yaml"), &file);
    let architecture = (
        "Architecture",
        if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "x86_64"
        },
    );
    let parameters: Vec<Value> = parameters
        .iter()
        .chain([&architecture])
        .map(|(name, value)| json!({"ParameterKey": name, "ParameterValue": value}))
        .collect();
    let request = json!({
        "StackName": name, "TemplateURL": format!("{}/{bucket}/{version}.yaml", aws.endpoint()),
        "Parameters": parameters, "Capabilities": ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    });
    let operation = if exists { "update_stack" } else { "create_stack" };
    api.call("cloudformation", operation, &request)
        .map_err(|(code, message)| format!("{code}: {message}"))?;
    settled(api, name).map(|_| ())
}

fn delete(api: &Api, name: &str) -> Result<(), String> {
    let named = json!({"StackName": name});
    let found = api.ok("cloudformation", "describe_stacks", &named);
    let id = found["Stacks"][0]["StackId"].as_str().unwrap();
    api.ok("cloudformation", "delete_stack", &named);
    settled(api, id).map(|_| ())
}

/// The stack, when CloudFormation has done what it was asked to; else the first reason why not.
fn settled(api: &Api, name: &str) -> Result<Value, String> {
    let named = json!({"StackName": name});
    let stack = wait_for("CloudFormation", || {
        let stack = api.ok("cloudformation", "describe_stacks", &named)["Stacks"][0].clone();
        (!stack["StackStatus"].as_str().unwrap().ends_with("IN_PROGRESS")).then_some(stack)
    });
    let status = stack["StackStatus"].as_str().unwrap();
    if !status.contains("ROLLBACK") && status.ends_with("_COMPLETE") {
        return Ok(stack);
    }
    let events = api.ok("cloudformation", "describe_stack_events", &named)["StackEvents"].clone();
    let failed = |event: &&Value| event["ResourceStatus"].as_str().unwrap().ends_with("FAILED");
    let first = events.as_array().unwrap().iter().rfind(failed);
    Err(first.map_or(status.to_owned(), |event| {
        format!("{}: {}", event["LogicalResourceId"], event["ResourceStatusReason"])
    }))
}

fn function_of(resources: &Named, name: &str) -> Function {
    Function {
        name: resources[name].clone(),
        log_group: resources[&format!("{name}Logs")].clone(),
    }
}

/// What a stack has under which name.
type Named = BTreeMap<String, String>;

/// A stack's outputs and resources.
fn described(api: &Api, name: &str) -> Result<(Named, Named), String> {
    let by = |list: &Value, key: &str, value: &str| -> Named {
        let items = list.as_array().into_iter().flatten();
        let text = |item: &Value, member: &str| item[member].as_str().unwrap_or_default().to_owned();
        items.map(|item| (text(item, key), text(item, value))).collect()
    };
    let stack = settled(api, name)?;
    let named = json!({"StackName": name});
    let resources = api.ok("cloudformation", "describe_stack_resources", &named)["StackResources"].clone();
    Ok((
        by(&stack["Outputs"], "OutputKey", "OutputValue"),
        by(&resources, "LogicalResourceId", "PhysicalResourceId"),
    ))
}

fn template() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("infra/template.yaml")).unwrap()
}
