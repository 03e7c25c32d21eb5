//! Whole command runs on a deployment: its state in a folder or a bucket, its IP sets in the stand-in.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_wafv2::types::{IpAddressVersion, Scope};
use palisade::place::s3_client;
use palisade::traffic;
use serde_json::{Value, json};

use crate::aws::{Api, StandIn};

struct Place {
    folder: tempfile::TempDir,
    env: Vec<(&'static str, String)>,
}

impl Place {
    /// A folder with the demo's logs in `logs` and its policy in `policy.toml`.
    fn new() -> Place {
        let place = Place {
            folder: tempfile::tempdir().unwrap(),
            env: Vec::new(),
        };
        traffic::deliver(&traffic::hour(1).requests, &place.folder.path().join("logs"), 1).unwrap();
        let policy = format!(
            "{}\n[[allow]]\ncidr = \"203.0.113.200/32\"\nnote = \"our own scanner\"\n",
            analyzer::DEFAULT_POLICY
        );
        fs::write(place.folder.path().join("policy.toml"), policy).unwrap();
        place
    }

    fn on(mut self, aws: &StandIn) -> Place {
        self.env = aws.environment("us-east-1");
        self
    }

    fn run(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command
            .args(args.split_whitespace())
            .current_dir(self.folder.path())
            .envs(self.env.clone());
        command.env_remove("PALISADE_STATE").output().unwrap()
    }

    /// What a command says on stdout; it must end with this exit code.
    fn told(&self, exit: i32, args: &str) -> String {
        let output = self.run(args);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert_eq!(output.status.code(), Some(exit), "palisade {args}\n{out}\n{err}");
        out.into_owned()
    }

    fn refused(&self, exit: i32, args: &str) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(exit), "{args}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn minute(minute: u32) -> String {
    format!("2026-11-01T{:02}:{:02}", 12 + minute / 60, minute % 60)
}

fn verdicts(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("{\"type\""))
        .map(str::to_owned)
        .collect();
    lines.retain(|line| !line.contains("\"summary\""));
    lines
}

/// A verdict without what only the end of a ban can tell.
fn decided(line: &str) -> String {
    let (before, after) = line.split_once("\"stopped\":").unwrap_or((line, ""));
    format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[test]
fn the_live_loop_decides_what_the_replay_decides_and_repeats_without_harm() {
    let place = Place::new();
    place.told(0, "policy push policy.toml --state state");
    let mut live = Vec::new();
    for at in 0..=62 {
        let once = format!("-q run --state state --logs logs --once --now {}", minute(at));
        live.extend(verdicts(&place.told(0, &once)));
        if at % 20 == 0 {
            // The same minute again changes nothing and says nothing new.
            let ledger = fs::read(place.folder.path().join("state/ledger.json")).ok();
            assert_eq!(verdicts(&place.told(0, &once)), Vec::<String>::new());
            assert_eq!(fs::read(place.folder.path().join("state/ledger.json")).ok(), ledger);
        }
    }
    let replay = verdicts(&place.told(0, "-q replay --json --policy policy.toml logs"));
    let decided_all = |lines: &[String]| lines.iter().map(|line| decided(line)).collect::<Vec<_>>();
    assert!(replay.len() > 8);
    assert_eq!(decided_all(&live), decided_all(&replay));

    let status = place.told(0, "status --state state --now 2026-11-01T13:02");
    assert!(
        status.contains("5 bans in force") && status.contains("192.0.2.120/32"),
        "{status}"
    );
    // The audit holds every verdict.
    let audit: String = walk(&place.folder.path().join("state/verdicts/2026-11-01"))
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    assert_eq!(audit.lines().count(), live.len());
    assert!(audit.contains("192.0.2.44/32"), "{audit}");
}

#[test]
fn people_and_the_loop_write_the_same_ledger() {
    let place = Place::new();
    let told = place.told(0, "ban 198.51.100.0/24 --for 1h --why abuse-desk --state state");
    assert!(told.contains("198.51.100.0/24 is banned for 1h"), "{told}");
    assert!(place.told(0, "status --state state").contains("abuse-desk"));
    assert!(
        place
            .told(0, "unban 198.51.100.0/24 --state state")
            .contains("1 ban of 198.51.100.0/24 ended")
    );
    assert!(
        place
            .refused(1, "unban 198.51.100.0/24 --state state")
            .contains("no ban of `198.51.100.0/24` is in force")
    );
    assert!(
        place
            .refused(1, "ban 10.0.0.0/8 --why x --state state")
            .contains("private address")
    );
    place.told(0, "allow 192.0.2.0/24 --why partner --state state");
    assert!(
        place
            .refused(1, "ban 192.0.2.7 --why x --state state")
            .contains("allow: partner")
    );
    // The loop spares whom a person allowed.
    let ticked = place.told(0, "-q run --state state --logs logs --once --now 2026-11-01T12:07");
    assert!(
        ticked.contains("\"type\":\"spared\"") && ticked.contains("allow: partner"),
        "{ticked}"
    );
}

#[test]
fn state_that_cannot_be_understood_is_never_overwritten() {
    let place = Place::new();
    let state = place.folder.path().join("state");
    fs::create_dir(&state).unwrap();
    for (text, part) in [
        ("{\"version\": 7}", "version 7"),
        ("{\"version\": 1", "damaged"),
        ("", "damaged"),
    ] {
        fs::write(state.join("ledger.json"), text).unwrap();
        let told = place.refused(1, "-q run --state state --logs logs --once --now 2026-11-01T12:07");
        assert!(told.contains("ledger.json") && told.contains(part), "{told}");
        assert!(place.refused(1, "ban 192.0.2.7 --why x --state state").contains(part));
        assert_eq!(fs::read_to_string(state.join("ledger.json")).unwrap(), text);
    }
}

#[test]
fn a_policy_that_does_not_parse_keeps_the_one_before_in_force() {
    let place = Place::new();
    fs::write(place.folder.path().join("wrong.toml"), "[[rule]]\nlimt = 3\n").unwrap();
    assert!(
        place
            .refused(3, "policy push wrong.toml --state state")
            .contains("limt")
    );
    place.told(0, "policy push policy.toml --state state");
    place.told(0, "-q run --state state --logs logs --once --now 2026-11-01T12:05");
    // Somebody writes into the state by hand.
    fs::copy(
        place.folder.path().join("wrong.toml"),
        place.folder.path().join("state/policy.toml"),
    )
    .unwrap();
    let output = place.run("-q run --state state --logs logs --once --now 2026-11-01T12:07");
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the policy used before is in force"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("192.0.2.44/32"));
}

#[test]
fn whoever_enforces_without_ip_sets_is_told() {
    let place = Place::new();
    let policy = fs::read_to_string(place.folder.path().join("policy.toml")).unwrap();
    let enforcing = policy.replacen("mode = \"observe\"", "mode = \"enforce\"", 1);
    fs::write(place.folder.path().join("policy.toml"), enforcing).unwrap();
    place.told(0, "policy push policy.toml --state state");
    let told = place.refused(4, "-q run --state state --logs logs --once --now 2026-11-01T12:07");
    assert!(told.contains("names no IP sets, so nothing is blocked"), "{told}");
    let told = place.refused(1, "-q run --state state --logs nothere --once --now 2026-11-01T12:07");
    assert!(
        told.contains("failed to list `nothere`: there is no such file or folder"),
        "{told}"
    );
}

#[test]
fn a_recount_makes_what_the_next_minute_reads() {
    let place = Place::new();
    let told = place.told(0, "ingest --state state --logs logs --now 2026-11-01T12:30");
    assert!(told.contains("tallied, 0 were"), "{told}");
    let again = place.told(0, "ingest --state state --logs logs --now 2026-11-01T12:30");
    assert!(again.starts_with("0 objects tallied"), "{again}");
    let ticked = place.told(0, "-q run --state state --logs logs --once --now 2026-11-01T12:30");
    assert!(ticked.contains("\"tallied\":0,"), "{ticked}");
}

#[test]
fn a_copy_of_a_log_object_counts_once() {
    let ledger = |copies: bool| {
        let place = Place::new();
        let logs = place.folder.path().join("logs");
        for file in walk(&logs).iter().filter(|_| copies) {
            let name = file
                .file_name()
                .unwrap()
                .to_string_lossy()
                .replace("aws-waf-logs", "aws-waf-logs-copy");
            fs::copy(file, file.with_file_name(name)).unwrap();
        }
        // Warm and cold: one process that sees everything at once, and one that reads what the first has tallied.
        for minute in ["12:30", "12:42"] {
            place.told(
                0,
                &format!("-q run --state state --logs logs --once --now 2026-11-01T{minute}"),
            );
        }
        place.told(0, "status --json --state state")
    };
    assert_eq!(ledger(true), ledger(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn enforcing_fills_real_ip_sets_keeps_what_others_put_there_and_lets_bans_end() {
    let Some(aws) = StandIn::shared() else { return };
    let place = Place::new().on(aws);
    let config = aws.config("us-east-1");
    let s3 = s3_client(&config);
    let waf = aws_sdk_wafv2::Client::new(&config);

    // A deployment as the stack leaves it: state and logs in buckets, an IP set for each family.
    s3.create_bucket().bucket("deployment-state").send().await.unwrap();
    s3.create_bucket().bucket("deployment-logs").send().await.unwrap();
    let mut ids = Vec::new();
    for (name, version) in [
        ("palisade-v4", IpAddressVersion::Ipv4),
        ("palisade-v6", IpAddressVersion::Ipv6),
    ] {
        let create = waf
            .create_ip_set()
            .name(name)
            .scope(Scope::Regional)
            .ip_address_version(version);
        ids.push(
            create
                .set_addresses(Some(Vec::new()))
                .send()
                .await
                .unwrap()
                .summary
                .unwrap()
                .id
                .unwrap(),
        );
    }
    let deployment = format!(
        "{{\"version\":1,\"targets\":[{{\"scope\":\"REGIONAL\",\"region\":\"us-east-1\",\"block\":{{\"v4\":[{{\"name\":\"palisade-v4\",\"id\":\"{}\"}}],\"v6\":[{{\"name\":\"palisade-v6\",\"id\":\"{}\"}}]}}}}]}}",
        ids[0], ids[1]
    );
    let put = s3.put_object().bucket("deployment-state").key("api/deployment.json");
    put.body(deployment.into_bytes().into()).send().await.unwrap();
    for entry in walk(&place.folder.path().join("logs")) {
        let key = entry
            .strip_prefix(place.folder.path().join("logs"))
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let put = s3.put_object().bucket("deployment-logs").key(format!("waf/{key}"));
        put.body(fs::read(&entry).unwrap().into()).send().await.unwrap();
    }
    let addresses = async |set: usize| {
        let name = ["palisade-v4", "palisade-v6"][set];
        let got = waf
            .get_ip_set()
            .name(name)
            .id(&ids[set])
            .scope(Scope::Regional)
            .send()
            .await
            .unwrap();
        (got.ip_set.unwrap().addresses, got.lock_token.unwrap())
    };
    let run = "-q run --state s3://deployment-state/api --logs s3://deployment-logs/waf/ --once --now";

    // A replay of the bucket says what a replay of its files says; an hour of it is found without listing the rest.
    let replay = |logs: &str| verdicts(&place.told(0, &format!("-q replay --json --policy policy.toml {logs}")));
    assert_eq!(replay("s3://deployment-logs/waf/"), replay("logs"));
    let hour = "--from 2026-11-01T12:20 --to 2026-11-01T12:40";
    assert_eq!(
        replay(&format!("s3://deployment-logs/waf {hour}")),
        replay(&format!("logs {hour}"))
    );
    let elsewhere = place.refused(1, "replay s3://deployment-logs/waf/ --from 2026-10-01 --to 2026-10-02");
    assert!(elsewhere.contains("was delivered between"), "{elsewhere}");
    let nowhere = place.refused(1, "replay s3://no-such-bucket/waf/");
    assert!(nowhere.contains("there is no such bucket"), "{nowhere}");
    assert!(nowhere.contains("hint: check the bucket's name"), "{nowhere}");

    // Observing updates nothing.
    place.told(0, "policy push policy.toml --state s3://deployment-state/api");
    place.told(0, &format!("{run} 2026-11-01T12:40"));
    assert_eq!(addresses(0).await.0, Vec::<String>::new());

    // Enforcing does. A person adds an address at the console; it stays, and is said to be foreign.
    let policy = fs::read_to_string(place.folder.path().join("policy.toml")).unwrap();
    let policy = policy.replacen("mode = \"observe\"", "mode = \"enforce\"", 1);
    fs::write(place.folder.path().join("policy.toml"), policy).unwrap();
    place.told(0, "policy push policy.toml --state s3://deployment-state/api");
    let shown = place.told(0, "plan --state s3://deployment-state/api --now 2026-11-01T12:42");
    assert!(shown.contains("+ 192.0.2.90/32 palisade-v4"), "{shown}");
    assert_eq!(addresses(0).await.0, Vec::<String>::new(), "a plan changes nothing");
    let lock = addresses(0).await.1;
    let by_hand = waf
        .update_ip_set()
        .name("palisade-v4")
        .id(&ids[0])
        .scope(Scope::Regional)
        .lock_token(lock);
    by_hand.addresses("198.51.100.250/32").send().await.unwrap();

    let ticked = place.told(0, &format!("{run} 2026-11-01T12:42"));
    let (mut v4, _) = addresses(0).await;
    v4.sort();
    assert!(
        v4.contains(&"192.0.2.90/32".to_owned()) && v4.contains(&"198.51.100.250/32".to_owned()),
        "{v4:?}"
    );
    assert!(!v4.iter().any(|address| address.starts_with("203.0.113.")), "{v4:?}");
    assert_eq!(addresses(1).await.0.len(), 1);
    assert!(ticked.contains("\"foreign\":1,"), "{ticked}");

    // Nothing new: nothing is written.
    let again = place.told(0, &format!("{run} 2026-11-01T12:42"));
    assert!(again.contains("\"writes\":0,"), "{again}");

    // Two days later nobody has sent a request, and every ban is over; the stranger's address is still there.
    place.told(0, &format!("{run} 2026-11-03T14:00"));
    assert_eq!(addresses(0).await.0, ["198.51.100.250/32"]);
    assert_eq!(addresses(1).await.0, Vec::<String>::new());

    // Whoever goes back to observing blocks nobody any more, and whoever enforces again blocks those who are still banned.
    let put = |name: &str| place.told(0, &format!("policy push {name} --state s3://deployment-state/api"));
    let enforcing = fs::read_to_string(place.folder.path().join("policy.toml")).unwrap();
    let observing = enforcing.replace("\nmode = \"enforce\"", "\nmode = \"observe\""); // a comment says it too
    assert_ne!(observing, enforcing);
    fs::write(place.folder.path().join("observing.toml"), observing).unwrap();
    place.told(0, &format!("{run} 2026-11-01T12:43"));
    let enforced = addresses(0).await.0;
    assert!(enforced.len() > 1, "{enforced:?}");
    put("observing.toml");
    let shown = place.told(0, "plan --state s3://deployment-state/api --now 2026-11-01T12:44");
    assert!(shown.contains("- 192.0.2.90/32 palisade-v4"), "{shown}");
    place.told(0, &format!("{run} 2026-11-01T12:44"));
    assert_eq!(addresses(0).await.0, ["198.51.100.250/32"]);
    put("policy.toml");
    place.told(0, "apply --state s3://deployment-state/api --now 2026-11-01T12:44");
    assert_eq!(addresses(0).await.0.len(), enforced.len());

    // A ban that was forgotten while nobody looked leaves the set all the same.
    place.told(0, &format!("{run} 2026-11-20T14:00"));
    assert_eq!(addresses(0).await.0, ["198.51.100.250/32"]);
    let ledger = place.told(0, "status --json --state s3://deployment-state/api");
    assert!(ledger.contains("\"leaving\": []"), "{ledger}");

    // A set that is gone is said to be gone, and the ledger stays.
    let lock = addresses(1).await.1;
    waf.delete_ip_set()
        .name("palisade-v6")
        .id(&ids[1])
        .scope(Scope::Regional)
        .lock_token(lock)
        .send()
        .await
        .unwrap();
    let output = place.run(&format!("{run} 2026-11-20T14:02"));
    assert_eq!(output.status.code(), Some(4));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("palisade-v6") && told.contains("deleted, renamed"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_offenders_fill_one_set_after_the_other_and_what_does_not_fit_is_told() {
    const SET: usize = 10_000; // what WAF lets one hold
    let Some(aws) = StandIn::shared() else { return };
    let place = Place::new().on(aws);
    let folder = place.folder.path();
    let waf = aws_sdk_wafv2::Client::new(&aws.config("us-east-1"));
    let mut ids = Vec::new();
    for name in ["many-first", "many-second", "many-alone"] {
        let create = waf.create_ip_set().name(name).scope(Scope::Regional);
        let create = create
            .ip_address_version(IpAddressVersion::Ipv4)
            .set_addresses(Some(Vec::new()));
        ids.push((name, create.send().await.unwrap().summary.unwrap().id.unwrap()));
    }
    let addresses = async |set: usize| -> BTreeSet<String> {
        let (name, id) = &ids[set];
        let get = waf.get_ip_set().name(*name).id(id).scope(Scope::Regional);
        get.send()
            .await
            .unwrap()
            .ip_set
            .unwrap()
            .addresses
            .into_iter()
            .collect()
    };
    let deploy = |sets: &[usize]| {
        let sets: Vec<String> = sets
            .iter()
            .map(|&set| format!("{{\"name\":\"{}\",\"id\":\"{}\"}}", ids[set].0, ids[set].1))
            .collect();
        let text = format!(
            "{{\"version\":1,\"targets\":[{{\"scope\":\"REGIONAL\",\"region\":\"us-east-1\",\"block\":{{\"v4\":[{}],\"v6\":[]}}}}]}}",
            sets.join(",")
        );
        fs::write(folder.join("state/deployment.json"), text).unwrap();
    };

    // Every other address, so that no two are one network; the latter half was seen later, and deserves its place more.
    let client = |n: usize| IpAddr::from((0xc612_0000 + 2 * u32::try_from(n).unwrap()).to_be_bytes());
    let mut requests = Vec::new();
    for n in 0..2 * SET {
        for (uri, second) in [("/.env", 0), ("/.git/config", 1), ("/backup.zip", 2)] {
            let at_ms = traffic::HOUR_BEGINS_MS + if n < SET { 60_000 } else { 180_000 } + 10_000 * second;
            let sent = traffic::Sent::new(at_ms, client(n));
            requests.push(traffic::Sent {
                uri: uri.into(),
                ..sent
            });
        }
    }
    requests.sort_by_key(|sent| sent.timestamp_ms);
    traffic::deliver(&requests, &folder.join("flood"), 1).unwrap();
    let half = |from: usize| -> BTreeSet<String> { (from..from + SET).map(|n| format!("{}/32", client(n))).collect() };

    // The brake would hold nearly all of them; this operator has raised it.
    let mut policy = analyzer::DEFAULT_POLICY.to_owned();
    for (from, to) in [
        ("mode = \"observe\"", "mode = \"enforce\""),
        ("new_bans = 200 ", "new_bans = 50000 "),
        ("allowed_share = 0.2 ", "allowed_share = 1.0 "),
    ] {
        assert!(policy.contains(from), "{from}");
        policy = policy.replacen(from, to, 1);
    }
    fs::write(folder.join("policy.toml"), policy).unwrap();
    place.told(0, "policy push policy.toml --state state");

    deploy(&[0, 1]);
    let run = "-q run --state state --logs flood --once --now 2026-11-01T12:05";
    let told = place.told(0, run);
    assert!(
        told.contains("\"new_bans\":20000,") && told.contains("\"added\":20000,"),
        "it adds all"
    );
    assert!(
        told.contains("\"overflow\":0,") && told.contains("\"room\":0,"),
        "it is full"
    );
    let (first, second) = (addresses(0).await, addresses(1).await);
    assert_eq!((first.len(), second.len()), (SET, SET));
    assert!(&first | &second == &half(0) | &half(SET), "each is somewhere");

    assert!(place.told(0, run).contains("\"writes\":0,"), "and stays so");

    deploy(&[2]);
    let output = place.run(run);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(out.contains("\"overflow\":10000,"), "{out}");
    assert!(err.contains("10,000 bans did not fit into the IP sets"), "{err}");
    assert!(addresses(2).await == half(SET), "those who deserve it most");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// Runs a drill while the live loop runs minute by minute beside it, as it would elsewhere.
fn drill(place: &Place, args: &str, run: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command.args(args.split_whitespace()).current_dir(place.folder.path());
    command.envs(place.env.clone()).env_remove("PALISADE_STATE");
    let mut drill = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while drill.try_wait().unwrap().is_none() {
        place.run(run);
        sleep(Duration::from_millis(50));
    }
    drill.wait_with_output().unwrap()
}

#[test]
fn a_drill_becomes_a_ban_and_is_over_when_it_ends() {
    let place = Place::new();
    place.told(0, "policy push policy.toml --state state");
    let before = walk(&place.folder.path().join("logs"));
    let run = "-q run --state state --logs logs --once";
    for drills in 1..=2 {
        let output = drill(&place, "drill --state state --logs logs", run);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
        let at = |stage: &str| out.find(stage).unwrap_or_else(|| panic!("no `{stage}` in {out}"));
        assert!(
            at("log object written") < at("counted") && at("counted") < at("banned for 15m, login-brute-force"),
            "{out}"
        );
        assert!(
            at("ban ended") < at("left:") && err.contains("The policy observes"),
            "{out}\n{err}"
        );
        assert_eq!(walk(&place.folder.path().join("logs")), before, "no log object stays");
        let status = place.told(0, "status --state state");
        assert!(
            status.contains("0 bans in force") && status.contains(&format!("{drills} known")),
            "{status}"
        );
    }
    // Nothing of it is judged again.
    let ticked = place.told(0, run);
    assert!(ticked.contains("\"new_bans\":0,"), "{ticked}");
}

#[test]
fn a_drill_that_nobody_notices_says_what_to_look_at() {
    let place = Place::new();
    let before = walk(&place.folder.path().join("logs"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command
        .args(["drill", "--state", "state", "--logs", "logs"])
        .current_dir(place.folder.path());
    let drill = command
        .env_remove("PALISADE_STATE")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while walk(&place.folder.path().join("logs")) == before {
        sleep(Duration::from_millis(20));
    }
    Command::new("kill")
        .args(["-INT", &drill.id().to_string()])
        .status()
        .unwrap();
    let output = drill.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("nobody counted the log object when you stopped the drill"),
        "{told}"
    );
    assert_eq!(
        walk(&place.folder.path().join("logs")),
        before,
        "it takes back what it wrote"
    );
    fs::write(place.folder.path().join("calm.toml"), "mode = \"observe\"\n").unwrap();
    place.told(0, "policy push calm.toml --state state");
    let told = place.refused(1, "drill --state state --logs logs");
    assert!(told.contains("the policy bans nobody who tries passwords or"), "{told}");
}

/// An API and its WAF on this machine: what is asked for is logged, as if it had come from `client` and a minute ago, and
/// answered with a status. Its URL.
fn api(place: &Place, client: &'static str, status: impl Fn() -> u16 + Send + 'static) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let logs = place.folder.path().join("logs");
    thread::spawn(move || {
        for (number, stream) in (0..).zip(listener.incoming()) {
            let mut stream = stream.unwrap();
            let head = BufReader::new(&stream)
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty());
            let head: Vec<String> = head.collect();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
            let mut sent = traffic::Sent::new(now - 60_000, client.parse().unwrap());
            sent.method = if head[0].starts_with("POST ") { "POST" } else { "GET" };
            sent.uri = head[0].split(' ').nth(1).unwrap().to_owned();
            let agent = head
                .iter()
                .find_map(|line| line.to_lowercase().strip_prefix("user-agent: ").map(str::to_owned));
            sent.user_agent = agent.unwrap();
            // Nobody is there any more to deliver to when the test is over.
            let _ = traffic::deliver(&[sent], &logs, number);
            let answer = format!(
                "HTTP/1.1 {} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                status()
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

/// What a drill with `--json` says: each stage, with the seconds it took.
fn stages(out: &str) -> Vec<(String, f64)> {
    let lines = out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let stages = lines.filter(|line| line["type"] == "stage");
    stages
        .map(|line| {
            (
                line["stage"].as_str().unwrap().to_owned(),
                line["seconds"].as_f64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_drill_against_an_api_finds_itself_in_the_logs() {
    let place = Place::new();
    let url = api(&place, "198.51.100.77", || 401);
    let told = place.refused(2, &format!("drill --state state --logs logs --url {url} --requests 20"));
    assert!(told.contains("bans nobody for 20 requests; it takes 30"), "{told}");

    let output = drill(
        &place,
        &format!("drill --json --state state --logs logs --url {url}"),
        "-q run --state state --logs logs --once",
    );
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{out}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let stages = stages(&out);
    assert_eq!(
        [&stages[0].0, &stages[1].0],
        ["requests sent", "logs delivered"],
        "{out}"
    );
    assert!(
        out.contains("banned for 15m, login-brute-force") && out.contains("198.51.100.77/32 in the ledger"),
        "{out}"
    );
}

/// A place whose policy enforces on two IP sets of the stand-in, for bans and for challenges, and somebody who looks into them.
fn enforcing(aws: &StandIn, name: &str, action: &str) -> (Place, impl Fn() -> bool + Send + 'static) {
    let place = Place::new().on(aws);
    let api = Api::new(aws, "us-east-1");
    let set = |what: &str| {
        let name = format!("{name}-{what}");
        let create = json!({"Name": name, "Scope": "REGIONAL", "IPAddressVersion": "IPV4", "Addresses": []});
        let id = api.ok("wafv2", "create_ip_set", &create)["Summary"]["Id"].clone();
        json!({"name": name, "id": id})
    };
    let (block, challenge) = (set("block"), set("challenge"));
    let target =
        json!({"scope": "REGIONAL", "region": "us-east-1", "block": {"v4": [block]}, "challenge": {"v4": [challenge]}});
    let deployment = json!({"version": 1, "targets": [target]});
    fs::create_dir(place.folder.path().join("state")).unwrap();
    fs::write(
        place.folder.path().join("state/deployment.json"),
        deployment.to_string(),
    )
    .unwrap();
    let policy = analyzer::DEFAULT_POLICY.replacen("mode = \"observe\"", "mode = \"enforce\"", 1);
    let ladder = format!("ladder = [{{ for = \"15m\", action = \"{action}\" }}]");
    let line = policy.lines().find(|line| line.starts_with("ladder = ")).unwrap();
    fs::write(
        place.folder.path().join("policy.toml"),
        policy.replacen(line, &ladder, 1),
    )
    .unwrap();
    place.told(0, "policy push policy.toml --state state");
    let set = if action == "block" { block } else { challenge };
    let holds = move || {
        let get = json!({"Name": set["name"], "Id": set["id"], "Scope": "REGIONAL"});
        let found = api.ok("wafv2", "get_ip_set", &get);
        !found["IPSet"]["Addresses"].as_array().unwrap().is_empty()
    };
    (place, holds)
}

/// To the last stage: as soon as the ban stands in the IP sets, the API's WAF refuses whoever drills.
#[test]
fn a_drill_against_an_api_ends_when_the_api_refuses_it() {
    let Some(aws) = StandIn::shared() else { return };
    for (action, refuses_with) in [("block", 403), ("challenge", 202)] {
        let (place, holds) = enforcing(aws, &format!("drill-{action}"), action);
        let url = api(
            &place,
            "198.51.100.78",
            move || if holds() { refuses_with } else { 401 },
        );
        let output = drill(
            &place,
            &format!("drill --json --state state --logs logs --url {url}"),
            "-q run --state state --logs logs --once",
        );
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
        let mut stages = stages(&out);
        assert!(stages.is_sorted_by_key(|(_, seconds)| *seconds), "{out}");
        assert!(stages[0].1 >= 2.9, "thirty requests, a tenth of a second each: {out}");
        // An object may be counted and its client banned by the same run, so that the drill sees the ban first.
        stages.retain(|(stage, _)| stage != "counted");
        let expected = [
            "requests sent",
            "logs delivered",
            "banned for 15m, login-brute-force",
            "in the IP sets",
            &format!("refused with {refuses_with}"),
            "ban ended",
            "out of the IP sets",
        ];
        assert_eq!(
            stages.iter().map(|(stage, _)| stage).collect::<Vec<_>>(),
            expected,
            "{out}"
        );
    }
}

/// A web ACL that nobody associated: the ban stands, and nobody is refused.
#[test]
fn a_drill_says_when_the_api_goes_on_to_answer() {
    let Some(aws) = StandIn::shared() else { return };
    let (place, holds) = enforcing(aws, "drill-answered", "block");
    let url = api(&place, "198.51.100.79", || 401);
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    let command = command
        .args(["drill", "--state", "state", "--logs", "logs", "--url", &url])
        .current_dir(place.folder.path())
        .envs(place.env.clone())
        .env_remove("PALISADE_STATE");
    let drill = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let run = "-q run --state state --logs logs --once";
    while !holds() {
        place.run(run);
    }
    sleep(Duration::from_secs(2)); // it looks into the sets, and asks the URL, every second
    Command::new("kill")
        .args(["-INT", &drill.id().to_string()])
        .status()
        .unwrap();
    let output = drill.wait_with_output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(1), "{out}\n{err}");
    assert!(
        err.contains("the URL still answers us when you stopped the drill") && err.contains("associated with it"),
        "{err}"
    );
    // What it did is undone, as far as that is done without waiting.
    assert!(out.contains("in the IP sets") && out.contains("ban ended"), "{out}");
    assert!(
        out.contains("198.51.100.79/32 in an IP set; the next run takes it out"),
        "{out}"
    );
    place.told(0, run);
    assert!(!holds());
}

/// The address of a proxy that breaks off the first answers to requests for this key.
fn breaks_off(upstream: &str, key: &'static str, times: usize) -> String {
    let upstream = upstream.trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let met = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, upstream, met) = (client.unwrap(), upstream.clone(), met.clone());
            thread::spawn(move || {
                let mut head = String::new();
                let mut reader = BufReader::new(client.try_clone().unwrap());
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
                let is_meant = head.lines().next().is_some_and(|line| line.contains(key));
                let breaks_off = is_meant && met.fetch_add(1, Ordering::Relaxed) < times;
                let mut server = TcpStream::connect(upstream).unwrap();
                let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                server.write_all(head.as_bytes()).unwrap();
                let _ = io::copy(&mut server.take(if breaks_off { 2_000 } else { u64::MAX }), &mut client);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    endpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_or_costs_its_neighbours_nothing() {
    let Some(aws) = StandIn::shared() else { return };
    let mut place = Place::new().on(aws);
    let s3 = s3_client(&aws.config("us-east-1"));
    s3.create_bucket().bucket("broken-logs").send().await.unwrap();
    let mut files = walk(&place.folder.path().join("logs"));
    files.sort();
    for (number, file) in files.iter().enumerate() {
        let name = if number == 3 {
            "broken".to_owned()
        } else {
            format!("{number:03}")
        };
        let put = s3.put_object().bucket("broken-logs").key(format!("waf/{name}"));
        put.body(fs::read(file).unwrap().into()).send().await.unwrap();
    }
    let summary = |place: &Place, exit: i32| -> Value {
        let out = place.told(exit, "-q replay --json --policy policy.toml s3://broken-logs/waf/");
        let mut summary: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        summary.as_object_mut().unwrap().remove("seconds");
        summary
    };
    let whole = summary(&place, 0);
    place.env[0].1 = breaks_off(&aws.endpoint(), "waf/broken", 1);
    assert_eq!(summary(&place, 0), whole);

    place.env[0].1 = breaks_off(&aws.endpoint(), "waf/broken", usize::MAX);
    let part = summary(&place, 4);
    let (all, read) = (whole["requests"].as_u64().unwrap(), part["requests"].as_u64().unwrap());
    assert!(read < all && read > all - 1_000, "{part}");
    assert_eq!((&part["objects"], &part["bans"]), (&whole["objects"], &whole["bans"]));
    let why = part["unreadable"]["s3://broken-logs/waf/broken"].as_str().unwrap();
    assert!(
        why.contains("could not be read to its end") && why.contains("before message length"),
        "{why}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_on_aws_ends_with_ip_sets_as_they_were() {
    let Some(aws) = StandIn::shared() else { return };
    let place = Place::new().on(aws);
    let config = aws.config("us-east-1");
    let (s3, waf) = (s3_client(&config), aws_sdk_wafv2::Client::new(&config));
    for bucket in ["drill-state", "drill-logs"] {
        s3.create_bucket().bucket(bucket).send().await.unwrap();
    }
    let create = waf
        .create_ip_set()
        .name("drill-v4")
        .scope(Scope::Regional)
        .ip_address_version(IpAddressVersion::Ipv4);
    let created = create.addresses("198.51.100.250/32").send().await.unwrap();
    let id = created.summary.unwrap().id.unwrap();
    let deployment = format!(
        "{{\"version\":1,\"targets\":[{{\"scope\":\"REGIONAL\",\"region\":\"us-east-1\",\"block\":{{\"v4\":[{{\"name\":\"drill-v4\",\"id\":\"{id}\"}}]}}}}]}}"
    );
    let put = s3.put_object().bucket("drill-state").key("deployment.json");
    put.body(deployment.into_bytes().into()).send().await.unwrap();
    let policy = analyzer::DEFAULT_POLICY.replacen("mode = \"observe\"", "mode = \"enforce\"", 1);
    fs::write(place.folder.path().join("policy.toml"), policy).unwrap();
    place.told(0, "policy push policy.toml --state s3://drill-state");

    let logs = "s3://drill-logs/AWSLogs/111122223333/WAFLogs/us-east-1/api/";
    let output = drill(
        &place,
        &format!("drill --state s3://drill-state --logs {logs}"),
        &format!("-q run --state s3://drill-state --logs {logs} --once"),
    );
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    let at = |stage: &str| out.find(stage).unwrap_or_else(|| panic!("no `{stage}` in {out}"));
    assert!(
        at("banned for") < at("in the IP sets") && at("ban ended") < at("out of the IP sets"),
        "{out}"
    );
    let got = waf
        .get_ip_set()
        .name("drill-v4")
        .id(&id)
        .scope(Scope::Regional)
        .send()
        .await
        .unwrap();
    assert_eq!(got.ip_set.unwrap().addresses, ["198.51.100.250/32"]);
    let listed = s3.list_objects_v2().bucket("drill-logs").send().await.unwrap();
    assert_eq!(listed.contents().len(), 0, "{listed:?}");
}
