//! Whole command runs, as an operator sees them: exit code, standard output, standard error.
//!
//! Every run happens in a fresh folder. `INSTA_UPDATE=always cargo test` rewrites the snapshots; read what it wrote.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use palisade::traffic::{self, HOUR_BEGINS_MS, Sent};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A folder to run commands in.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A place with an hour of the demo's traffic in `logs`.
    pub(crate) fn with_logs() -> Place {
        let place = Place::new();
        traffic::deliver(&traffic::hour(1).requests, &place.path("logs"), 1).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command
            .args(args.split_whitespace())
            .current_dir(self.folder.path())
            .env_remove("NO_COLOR");
        command
    }

    pub(crate) fn run(&self, args: &str) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Everything a run says, in one text.
    pub(crate) fn told(&self, args: &str) -> String {
        let output = self.run(args);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        format!(
            "$ palisade {args}\nexit {}\n---- stdout\n{}---- stderr\n{}",
            output.status.code().unwrap(),
            text(&output.stdout),
            text(&output.stderr)
        )
    }
}

/// Compares with the snapshot of this name, without what differs from run to run.
pub(crate) fn check(name: &str, told: &str) {
    insta::with_settings!({
        snapshot_path => "snapshots",
        prepend_module_to_snapshot => false,
        omit_expression => true,
        filters => vec![(r#""seconds":[0-9.e-]+"#, r#""seconds":"…""#), (r"It took [0-9.]+ seconds", "It took … seconds")],
    }, { insta::assert_snapshot!(name, told) });
}

fn ban_lines(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines()
        .filter(|line| !line.starts_with(r#"{"type":"summary""#))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn record(sent: &Sent, number: u64) -> Vec<u8> {
    let mut line = Vec::new();
    sent.write(&mut line, number).unwrap();
    line.push(b'\n');
    line
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

#[test]
fn demo_bans_every_attacker_and_nobody_else() {
    let told = Place::new().told("demo");
    assert!(
        told.contains("10 of 10 judged rightly; 0 of 1,200 ordinary clients banned"),
        "{told}"
    );
    check("demo", &told);
}

#[test]
fn demo_judges_rightly_whatever_the_seed() {
    let place = Place::new();
    for seed in 2..12 {
        let told = place.told(&format!("demo --seed {seed}"));
        assert!(
            told.contains("10 of 10 judged rightly; 0 of 1,200 ordinary clients banned"),
            "seed {seed}: {told}"
        );
    }
}

#[test]
fn demo_keeps_its_logs_on_request_and_overwrites_nothing() {
    let place = Place::new();
    assert_eq!(place.run("demo --keep demo").status.code(), Some(0));
    check(
        "demo-keep-replayed",
        &place.told("replay --policy demo/policy.toml demo/logs"),
    );
    check("demo-keep-twice", &place.told("demo --keep demo"));
}

#[test]
fn replay_shows_bans_and_what_they_stopped() {
    let place = Place::with_logs();
    check("replay", &place.told("replay logs"));
    check("replay-json", &place.told("replay --json logs"));
}

#[test]
fn explain_tells_one_client_rule_by_rule() {
    let place = Place::with_logs();
    check("explain-attacker", &place.told("explain 192.0.2.105 logs"));
    check("explain-spared", &place.told("explain 203.0.113.7 logs"));
    check("explain-network", &place.told("explain 2001:db8:bad::77 logs"));
    check("explain-nobody", &place.told("explain 192.0.2.1 logs"));
    check("explain-nonsense", &place.told("explain office logs"));
}

#[test]
fn top_counts_by_every_field() {
    let place = Place::with_logs();
    for by in [
        "client",
        "uri",
        "host",
        "country",
        "user-agent",
        "waf-rule",
        "label",
        "ja4",
        "method",
    ] {
        check(&format!("top-{by}"), &place.told(&format!("top logs -n 3 --by {by}")));
    }
    check("top-json", &place.told("top logs -n 2 --by country --json"));
}

#[test]
fn help_and_generated_files_are_there() {
    let place = Place::new();
    check("help", &place.told("--help"));
    for shell in ["bash", "zsh", "fish"] {
        let output = place.run(&format!("completions {shell}"));
        assert!(String::from_utf8_lossy(&output.stdout).contains("explain"), "{shell}");
    }
    let man = String::from_utf8(place.run("man").stdout).unwrap();
    assert!(
        man.starts_with(".ie")
            && man.contains("PALISADE REPLAY")
            && man.contains("trusted") | man.contains("Exit codes")
    );
    check("nonsense", &place.told("replya logs"));
}

#[test]
fn the_printed_policy_is_the_policy_that_judges() {
    let place = Place::with_logs();
    place.write("policy.toml", place.run("policy").stdout);
    check("check-default", &place.told("check policy.toml"));
    let by_default = ban_lines(&place.run("replay --json logs"));
    assert!(by_default.contains("192.0.2.44/32"));
    assert_eq!(
        by_default,
        ban_lines(&place.run("replay --json logs --policy policy.toml"))
    );
}

/// A rule that is right, to be spoiled by replacing a part of it.
const RULE: &str = r#"
[[rule]]
name = "login"
why = "Many logins."
match = { method = "POST", uri = "/login" }
limit = 20
window = "5m"

  [[rule.test]]
  name = "twenty"
  sends = [{ client = "192.0.2.44", method = "POST", uri = "/login", times = 20, over = "4m" }]
  banned = ["192.0.2.44"]
"#;

#[test]
fn a_policy_with_a_mistake_is_rejected_with_its_place_and_a_hint() {
    let place = Place::new();
    let mut told = String::new();
    for (right, wrong) in [
        ("limit = 20", "limt = 20"),
        ("limit = 20", "limit = 0"),
        ("limit = 20", "limit = \"20\""),
        ("window = \"5m\"", "window = \"300s\""),
        ("window = \"5m\"", "window = \"5m\"\nshare = 20"),
        ("window = \"5m\"", "window = \"5m\"\nseverity = \"hgih\""),
        ("window = \"5m\"", "window = \"5m\"\ndistinct = \"url\""),
        ("window = \"5m\"", "window = \"5m\"\nban = []"),
        (
            "window = \"5m\"",
            "window = \"5m\"\nban = [{ for = \"15m\", action = \"chalenge\" }]",
        ),
        ("method = \"POST\"", "methd = \"POST\""),
        ("\"/login\" }\nlimit", "[] }\nlimit"),
        ("name = \"login\"", "name = \"Login!\""),
        ("client = \"192.0.2.44\"", "client = \"office\""),
        ("[[rule]]", "[brake]\nallowed_share = 20\n[[rule]]"),
        ("[[rule]]", "[client]\nip = \"sauce\"\n[[rule]]"),
        (
            "[[rule]]",
            "[client]\nip = { header = \"x-forwarded-for\", trusted_hops = 0 }\n[[rule]]",
        ),
        ("[[rule]]", "[[allow]]\ncidr = \"192.0.2.7/24\"\nnote = \"x\"\n[[rule]]"),
        ("[[rule]]", "[ban]\nforget_after = \"5m\"\n[[rule]]"),
        ("[[rule]]", "[[rule]"),
    ] {
        let spoiled = RULE.replacen(right, wrong, 1);
        assert_ne!(spoiled, RULE, "`{right}` is not in the rule");
        place.write("policy.toml", spoiled);
        let output = place.run("check policy.toml");
        assert_eq!(output.status.code(), Some(3), "{wrong}");
        told += &format!("==== {wrong}\n{}", String::from_utf8(output.stderr).unwrap());
    }
    check("policy-mistakes", &told);
}

#[test]
fn check_runs_the_tests_in_the_policy_and_says_what_a_colleague_would() {
    let place = Place::new();
    place.write("right.toml", RULE);
    check("check-right", &place.told("check right.toml"));
    place.write("wrong.toml", RULE.replacen("times = 20", "times = 19", 1));
    check("check-failing-test", &place.told("check wrong.toml"));
    place.write(
        "odd.toml",
        RULE.replacen("limit = 20", "limit = 20\nban = [\"5m\"]", 1).replacen(
            "uri = \"/login\"",
            "uri = [\"/login\", \"login\"]",
            1,
        ),
    );
    check("check-warnings", &place.told("check odd.toml"));
    check("check-missing", &place.told("check missing.toml"));
}

#[test]
fn input_that_is_not_there_gets_one_sentence_and_the_rest_is_counted() {
    let place = Place::new();
    let one = record(&Sent::new(HOUR_BEGINS_MS, "192.0.2.1".parse().unwrap()), 1);
    place.write("good/one.log", &one);
    fs::create_dir(place.path("empty")).unwrap();
    check("missing", &place.told("replay missing"));
    check("missing-beside-good", &place.told("replay missing good"));
    check("empty-folder", &place.told("replay empty"));
    fs::create_dir(place.path("loop")).unwrap();
    symlink(place.path("loop"), place.path("loop/again")).unwrap();
    check("folder-in-itself", &place.told("replay loop good"));
}

#[test]
fn a_folder_without_permission_gets_one_sentence_and_the_rest_is_counted() {
    let place = Place::new();
    place.write(
        "good/one.log",
        record(&Sent::new(HOUR_BEGINS_MS, "192.0.2.1".parse().unwrap()), 1),
    );
    fs::create_dir(place.path("closed")).unwrap();
    fs::set_permissions(place.path("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(place.path("closed")).is_ok() {
        eprintln!("skipped: this user may read every folder, so none can be closed to it");
        return;
    }
    check("closed-folder", &place.told("replay closed good"));
}

#[test]
fn input_that_is_broken_is_named_and_the_rest_is_counted() {
    let place = Place::new();
    let client = "192.0.2.1".parse().unwrap();
    let good: Vec<u8> = (0..300)
        .flat_map(|n| record(&Sent::new(HOUR_BEGINS_MS + n, client), n as u64))
        .collect();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let noise: Vec<u8> = (0..50_000).map(|_| random.random()).collect();
    place.write("binary/noise.bin", &noise);
    check("binary", &place.told("replay binary"));
    place.write("mixed/0-noise.bin", &noise);
    place.write("mixed/1-good.log", &good);
    let packed = gzip(&good);
    place.write("mixed/2-half.gz", &packed[..packed.len() / 2]);
    place.write("mixed/3-empty.log", b"");
    place.write(
        "mixed/4-lines.log",
        [
            b"not json\n".as_slice(),
            &record(&Sent::new(HOUR_BEGINS_MS, client), 9_999),
            b"{\"a\":1}\n{\"timestamp\":",
        ]
        .concat(),
    );
    place.write("mixed/5-archive.zip", b"PK\x03\x04\x14\x00\x00\x00\x08\x00");
    check("mixed", &place.told("replay mixed"));
    check("mixed-json", &place.told("replay mixed --json"));
}

#[test]
fn only_the_asked_for_time_counts_and_other_objects_are_not_read() {
    let place = Place::with_logs();
    check(
        "from-to",
        &place.told("replay logs --from 2026-11-01T12:20 --to 2026-11-01T12:30"),
    );
    check("from-to-elsewhere", &place.told("replay logs --from 2026-11-03"));
    check(
        "from-after-to",
        &place.told("replay logs --from 2026-11-03 --to 2026-11-01"),
    );
    let plain = Place::new();
    plain.write(
        "logs/day.log",
        record(&Sent::new(HOUR_BEGINS_MS, "192.0.2.1".parse().unwrap()), 1),
    );
    check("from-to-nothing-left", &plain.told("replay logs --from 2026-11-03"));
}

#[test]
fn keys_in_another_time_zone_leave_nothing_unread() {
    // Firehose can be told to name objects by local time, and the key does not say so.
    let place = Place::new();
    for hour in 0..6 {
        let time = HOUR_BEGINS_MS + hour * 3_600_000;
        let client = "192.0.2.44".parse().unwrap();
        let lines: Vec<u8> = (0..2)
            .flat_map(|n| record(&Sent::new(time + n, client), (hour * 2 + n) as u64))
            .collect();
        place.write(
            &format!(
                "tokyo/2026/11/01/{:02}/waf-1-2026-11-01-{:02}-00-30-x.log",
                hour + 9,
                hour + 9
            ),
            lines,
        );
    }
    check(
        "time-zone",
        &place.told("replay tokyo --from 2026-11-01T14:00 --to 2026-11-01T15:00"),
    );
}

#[test]
fn standard_input_is_a_log_too_and_a_reader_who_leaves_is_no_failure() {
    let place = Place::with_logs();
    let mut lines = Vec::new();
    for (number, sent) in traffic::hour(1).requests.iter().enumerate() {
        lines.extend(record(sent, number as u64));
    }
    let mut child = place
        .command("replay --json -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&gzip(&lines)).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(ban_lines(&output), ban_lines(&place.run("replay --json logs")));

    let mut child = place
        .command("replay --json logs")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn cutting_shuffling_and_delivering_twice_change_no_verdict() {
    let mut requests: Vec<Vec<u8>> = traffic::hour(3)
        .requests
        .iter()
        .enumerate()
        .map(|(number, sent)| record(sent, number as u64))
        .collect();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut verdicts: Option<String> = None;
    for objects in [1, 7, 100, 5_000] {
        let place = Place::new();
        requests.shuffle(&mut random);
        let mut names: Vec<usize> = (0..objects).collect();
        names.shuffle(&mut random);
        for (name, cut) in names.iter().zip(requests.chunks(requests.len().div_ceil(objects))) {
            let object = cut.concat();
            let object = if name % 2 == 0 { gzip(&object) } else { object };
            place.write(&format!("first/{name}.log"), &object);
            place.write(&format!("second/{}.again", objects - name), &object);
        }
        let output = place.run("replay --json --threads 2 first second first");
        assert_eq!(output.status.code(), Some(0));
        let lines = ban_lines(&output);
        assert!(
            lines.contains(r#""type":"ban""#) && lines.contains(r#""type":"spared""#),
            "{lines}"
        );
        match &verdicts {
            None => verdicts = Some(lines),
            Some(known) => assert_eq!(*known, lines, "{objects} objects"),
        }
    }
}

#[test]
fn a_million_records_of_two_hundred_thousand_clients_fit_in_300_mb() {
    const RECORDS: u64 = 1_000_000;
    const CLIENTS: u64 = 200_000;
    let place = Place::new();
    fs::create_dir(place.path("logs")).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for object in 0..10 {
        let file = fs::File::create(place.path(&format!("logs/{object}.gz"))).unwrap();
        let mut gz = GzEncoder::new(std::io::BufWriter::new(file), Compression::fast());
        for number in 0..RECORDS / 10 {
            let time = HOUR_BEGINS_MS + (random.random_range(0..3_600_000i64));
            // Every client appears; half of all requests come from a tenth of them.
            let number = object * (RECORDS / 10) + number;
            let client = if number.is_multiple_of(5) {
                number / 5
            } else if number.is_multiple_of(2) {
                random.random_range(0..CLIENTS / 10)
            } else {
                random.random_range(0..CLIENTS)
            };
            writeln!(
                gz,
                "{{\"timestamp\":{time},\"webaclId\":\"a\",\"terminatingRuleId\":\"Default_Action\",\"action\":\"ALLOW\",\"httpRequest\":{{\"clientIp\":\"100.{}.{}.{}\",\"country\":\"DE\",\"headers\":[],\"uri\":\"/{}\",\"args\":\"\",\"httpMethod\":\"GET\",\"requestId\":\"{number}\"}}}}",
                128 + (client >> 16),
                client >> 8 & 255,
                client & 255,
                number % 50,
            )
            .unwrap();
        }
        gz.finish().unwrap().flush().unwrap();
    }
    let mut child = place
        .command("replay --json logs")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kb = 0;
    while child.try_wait().unwrap().is_none() {
        peak_kb = peak_kb.max(peak_memory_kb(Path::new(&status)));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains(r#""requests":1000000,"#) && text.contains(r#""clients":200000,"#),
        "{text}"
    );
    println!("peak memory: {} MB", peak_kb / 1024);
    assert!(
        peak_kb > 0 && peak_kb < 300 * 1024,
        "peak memory was {} MB",
        peak_kb / 1024
    );
}

/// What the kernel says was the most memory a process had, or zero once it is gone.
fn peak_memory_kb(status: &Path) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}
