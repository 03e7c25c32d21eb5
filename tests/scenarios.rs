//! Stories: what clients send, and what the operator is told. A file each in `tests/scenarios`, named after its situation.
//!
//! Every story is written as log objects and replayed. However it is cut into objects, in whatever order they come and how
//! often, it must end the same. `UPDATE_SCENARIOS=1 cargo test --test tests scenarios` rewrites what is expected: read it
//! before you believe it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use analyzer::judge::Charge;
use analyzer::{DEFAULT_POLICY, Minute, Policy, Verdict};
use flate2::Compression;
use flate2::write::GzEncoder;
use palisade::inputs;
use palisade::replay::{Count, Event, Period, Replay, read};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::reference::Request;

/// A story as a file tells it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// One sentence.
    story: String,
    /// The default policy if left out.
    policy: Option<String>,
    #[serde(default)]
    send: Vec<Send>,
    /// A line for each verdict, see [`line`].
    expect: String,
}

/// Requests that differ only in time and number. What is left out is that of an ordinary allowed request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Send {
    /// An address. In any text `{n}` becomes the number of a client's request, and `{c}` that of the client.
    client: String,
    /// How many clients.
    #[serde(default = "one")]
    clients: u64,
    /// How many requests each of them makes.
    #[serde(default = "one")]
    times: u64,
    /// `12:01`, `12:01:30`, or on a later day `12:01+2d`.
    at: String,
    /// `4m`, `90s` or `2h`, over which all requests are spread evenly; all at once if left out.
    over: Option<String>,
    method: Option<String>,
    uri: Option<String>,
    args: Option<String>,
    /// `""` sends none.
    user_agent: Option<String>,
    #[serde(default)]
    header: BTreeMap<String, String>,
    #[serde(default)]
    label: Vec<String>,
    action: Option<String>,
    waf_rule: Option<String>,
    country: Option<String>,
    ja4: Option<String>,
}

fn one() -> u64 {
    1
}

#[test]
fn every_scenario_tells_its_story() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let failures: Vec<String> = files.iter().filter_map(|file| check(file).err()).collect();
    assert!(
        failures.is_empty(),
        "{} of {} scenarios:\n\n{}",
        failures.len(),
        files.len(),
        failures.join("\n")
    );
}

/// Replays the story of a file in several deliveries, and compares what is decided with what the file expects.
fn check(file: &Path) -> Result<(), String> {
    let name = file.file_stem().unwrap().to_string_lossy();
    let text = fs::read_to_string(file).unwrap();
    let scenario: Scenario = toml::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
    let policy = Policy::parse(scenario.policy.as_deref().unwrap_or(DEFAULT_POLICY))
        .map_err(|error| format!("{name}: {error}"))?;
    let mut requests: Vec<Request> = scenario.send.iter().flat_map(Send::requests).collect();
    requests.sort_by_key(|request| request.ms);
    let records: Vec<String> = requests
        .iter()
        .enumerate()
        .map(|(number, request)| request.record(number as u64))
        .collect();

    let decided = replay(&policy, records.clone(), 1, 1);
    for (objects, deliveries) in [(7, 1), (100, 2)] {
        let again = replay(&policy, records.clone(), objects, deliveries);
        if again != decided {
            return Err(format!(
                "{name}: in {objects} objects, {deliveries} times each:\n{again}\nbut in one:\n{decided}"
            ));
        }
    }
    if decided == scenario.expect.trim_start() {
        return Ok(());
    }
    if std::env::var("UPDATE_SCENARIOS").is_ok() {
        let (before, _) = text.split_once("expect = ").unwrap();
        fs::write(file, format!("{before}expect = \"\"\"\n{decided}\"\"\"\n")).unwrap();
        return Ok(());
    }
    Err(format!(
        "{name}: {}\nexpected:\n{}\ndecided:\n{decided}",
        scenario.story,
        scenario.expect.trim_start()
    ))
}

/// Writes the records into so many objects, as often as they are delivered, replays them and returns a line each.
fn replay(policy: &Policy, mut records: Vec<String>, objects: usize, deliveries: u32) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(objects as u64);
    if objects > 1 {
        records.shuffle(&mut random);
    }
    for object in records.chunks(records.len().div_ceil(objects).max(1)) {
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        object.iter().for_each(|record| writeln!(gz, "{record}").unwrap());
        let bytes = gz.finish().unwrap();
        for _ in 0..deliveries {
            fs::write(
                folder.path().join(format!("{:016x}.gz", random.random::<u64>())),
                &bytes,
            )
            .unwrap();
        }
    }
    let inputs = inputs::find(&[folder.path().to_owned()], &Period::default());
    let reading = read(&inputs, Period::default(), 2, &(), || Count::new(policy));
    assert_eq!((reading.problems.len(), reading.skipped.total()), (0, 0));
    assert_eq!(reading.requests, records.len() as u64);
    let tally = &reading.collected.into_tally();
    let mut lines: String = Replay::of(policy, tally)
        .events
        .iter()
        .map(|event| line(event) + "\n")
        .collect();
    if tally.unattributed > 0 {
        lines += &format!("{} requests of nobody\n", tally.unattributed);
    }
    if lines.is_empty() {
        lines += "nothing\n";
    }
    lines
}

/// A verdict in short: `12:05 ban 192.0.2.44/32 login-brute-force hits=20 strike=1 until=12:20 stopped=5 block`.
fn line(event: &Event) -> String {
    let who = |what: &str, charge: &Charge| {
        format!(
            "{} {what} {} {} hits={}",
            clock(event.time),
            charge.client,
            charge.rule,
            charge.offense.hits
        )
    };
    match &event.verdict {
        Verdict::Ban(charge, sentence) => {
            let also = match charge.also.as_slice() {
                [] => String::new(),
                also => format!(", also {}", also.join(", ")),
            };
            format!(
                "{} strike={} until={} stopped={} {}{also}",
                who("ban", charge),
                sentence.strike,
                clock(sentence.until),
                event.stopped,
                sentence.action
            )
        }
        Verdict::Held(charge, because) => format!("{} because {because}", who("held", charge)),
        Verdict::Spared(charge, because) => format!("{} because {because}", who("spared", charge)),
        Verdict::Alert(charge) => who("alert", charge),
        Verdict::Crowd(crowd) => {
            let common = match &crowd.separator {
                Some((which, text, share, usual)) => {
                    format!("{:.0} % {which}={text} (usually {:.0} %)", share * 100.0, usual * 100.0)
                }
                None => "nothing in common".to_owned(),
            };
            format!(
                "{} crowd clients={} usual={} {common}",
                clock(event.time),
                crowd.clients,
                crowd.usual
            )
        }
    }
}

impl Send {
    fn requests(&self) -> Vec<Request> {
        let at = ms_of_clock(&self.at);
        let over = self.over.as_deref().map_or(0, ms_of_span);
        let all = self.times * self.clients;
        (0..all)
            .map(|k| self.request(at + over * k as i64 / all as i64, k / self.clients, k % self.clients))
            .collect()
    }

    fn request(&self, ms: i64, n: u64, c: u64) -> Request {
        let text = |text: &String| text.replace("{n}", &n.to_string()).replace("{c}", &c.to_string());
        let or = |given: &Option<String>, ordinary: std::borrow::Cow<'static, str>| {
            given.as_ref().map_or(ordinary, |given| text(given).into())
        };
        let ordinary = Request::ordinary(ms, text(&self.client).parse().expect("an address"));
        let user_agent = or(
            &self.user_agent,
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0".into(),
        );
        let agent = (!user_agent.is_empty()).then(|| ("User-Agent".into(), user_agent));
        let header = self
            .header
            .iter()
            .map(|(name, value)| (name.clone().into(), text(value).into()));
        Request {
            method: or(&self.method, ordinary.method),
            uri: or(&self.uri, ordinary.uri),
            args: or(&self.args, ordinary.args),
            headers: agent.into_iter().chain(header).collect(),
            labels: self.label.iter().map(|label| label.clone().into()).collect(),
            action: or(&self.action, ordinary.action),
            waf_rule: or(&self.waf_rule, ordinary.waf_rule),
            country: or(&self.country, ordinary.country),
            ja4: or(&self.ja4, ordinary.ja4),
            ..ordinary
        }
    }
}

/// The day of all stories, 2026-11-01, in minutes since the epoch.
const DAY: i64 = 29_891_520;

const DAY_MINUTES: i64 = 24 * 60;

/// `12:05`, and on the second day `12:05+1d`.
fn clock(minute: Minute) -> String {
    let minute = i64::from(minute.0) - DAY;
    let (day, minute) = (minute.div_euclid(DAY_MINUTES), minute.rem_euclid(DAY_MINUTES));
    let later = if day == 0 { String::new() } else { format!("+{day}d") };
    format!("{:02}:{:02}{later}", minute / 60, minute % 60)
}

/// Reads what [`clock`] writes, with seconds if wanted.
fn ms_of_clock(text: &str) -> i64 {
    let (time, day) = text.split_once('+').unwrap_or((text, "0d"));
    let day: i64 = day
        .strip_suffix('d')
        .and_then(|day| day.parse().ok())
        .expect("a day like `+1d`");
    let parts: Vec<i64> = time
        .split(':')
        .map(|part| part.parse().expect("a time like `12:01:30`"))
        .collect();
    let [hours, minutes, ref seconds @ ..] = parts[..] else {
        panic!("`{text}` is not a time like `12:01`")
    };
    let seconds = seconds.first().copied().unwrap_or_default();
    (((DAY + day * DAY_MINUTES) + hours * 60 + minutes) * 60 + seconds) * 1_000
}

fn ms_of_span(text: &str) -> i64 {
    let (number, unit) = text.split_at(text.len() - 1);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => panic!("`{text}` is not a time span like `4m`"),
    };
    number.parse::<i64>().expect("a number") * seconds * 1_000
}
