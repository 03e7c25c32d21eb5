//! Compares the judge with a model that counts by brute force.
//!
//! The model is written from the design's nine semantics and shares no code with the analyzer: it keeps every request in
//! a list and goes through all of it again for each minute, client, rule and window. Seeded worlds (a policy, and requests
//! in bursts around its limits) go through both; every verdict, its evidence and the final ledger must agree.
//!
//! Who tests the model? [`MUTANTS`]: judges that are broken on purpose, each of which the worlds must tell from the model.
//!
//! A failure shrinks its world and prints the seed; `PALISADE_SEED=… cargo test --test tests reference` runs it alone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use analyzer::client::IpSource;
use analyzer::policy::{Ours, Severity, Then};
use analyzer::{Action, Ledger, Minute, Policy, Span, Tally, Verdict, judge};
use flate2::Compression;
use flate2::write::GzEncoder;
use palisade::inputs;
use palisade::replay::{Count, Period, Replay, read};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// How many worlds are replayed. `PALISADE_SEEDS` replays more, or fewer, and changes the other numbers alike.
const REPLAYS: u64 = 5_000;

/// How many worlds are judged live, with log objects that arrive late.
const LIVES: u64 = 2_500;

/// How many worlds go through files, threads and compression.
const ON_DISK: u64 = 250;

/// In how many worlds every mutant must have been caught. The test ends with the last of them, as `--nocapture` shows.
const MUTANT_WORLDS: u64 = 300;

#[test]
fn a_replay_decides_what_the_model_decides() {
    let heard = Heard::default();
    each_seed(REPLAYS, |seed| {
        let world = World::of(seed, Mode::Replay);
        let expected = Model::run(&world);
        heard.note(&expected);
        compare(&world, expected, in_memory)
    });
    heard.show("replays");
}

#[test]
fn a_live_run_with_late_objects_decides_what_the_model_decides() {
    let heard = Heard::default();
    each_seed(LIVES, |seed| {
        let world = World::of(seed, Mode::Live);
        let expected = Model::run(&world);
        heard.note(&expected);
        compare(&world, expected, |world| HONEST.run(world))
    });
    heard.show("live runs");
}

#[test]
fn files_threads_and_second_deliveries_change_nothing() {
    each_seed(ON_DISK, |seed| {
        let world = World::of(seed, Mode::Replay);
        compare(&world, Model::run(&world), on_disk)
    });
}

#[test]
fn tallies_merge_in_any_order_to_the_same_replay() {
    each_seed(200, |seed| {
        let world = World::of(seed, Mode::Replay);
        let policy = world.policy();
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xa11);
        let mut replays: Vec<String> = Vec::new();
        for _ in 0..4 {
            let mut tallies = HONEST.tallies(&world, &policy);
            tallies.shuffle(&mut random);
            // Any two may be merged next, not only one more into all that came before.
            while tallies.len() > 1 {
                let one = tallies.swap_remove(random.random_range(0..tallies.len()));
                let into = random.random_range(0..tallies.len());
                tallies[into].merge(one);
            }
            replays.push(format!("{:?}", Replay::of(&policy, &tallies[0])));
        }
        replays.dedup();
        (replays.len() > 1).then(|| format!("{}\nand\n{}", replays[0], replays[1]))
    });
}

#[test]
fn judges_that_are_broken_on_purpose_are_caught() {
    // What is known at the end does not count: a mutant must show in what it decides.
    let verdicts =
        |lines: Vec<String>| -> Vec<String> { lines.into_iter().filter(|line| !line.starts_with("known ")).collect() };
    let mut at_large: Vec<&Mutant> = MUTANTS.iter().collect();
    for seed in 0..MUTANT_WORLDS {
        for mode in [Mode::Replay, Mode::Live] {
            let world = World::of(seed, mode);
            let expected = verdicts(Model::run(&world));
            assert_eq!(
                expected,
                verdicts(HONEST.run(&world)),
                "seed {seed}: the honest judge is caught"
            );
            at_large.retain(|mutant| {
                let caught = verdicts(mutant.run(&world)) != expected;
                if caught {
                    println!("seed {seed:>3}, {mode:?}: caught {}", mutant.name);
                }
                !caught
            });
        }
        if at_large.is_empty() {
            return;
        }
    }
    let names: Vec<&str> = at_large.iter().map(|mutant| mutant.name).collect();
    panic!("{MUTANT_WORLDS} worlds do not tell these from the model: {names:#?}");
}

/// Runs `disagreement` over the seeds, on two threads, and panics with the first one it has.
fn each_seed(seeds: u64, disagreement: impl Fn(u64) -> Option<String> + Sync) {
    if let Ok(seed) = std::env::var("PALISADE_SEED") {
        let seed = seed.parse().expect("PALISADE_SEED is a number");
        if let Some(what) = disagreement(seed) {
            panic!("seed {seed}: {what}");
        }
        return;
    }
    let more = std::env::var("PALISADE_SEEDS").map_or(REPLAYS, |seeds| seeds.parse().expect("a number"));
    let seeds = seeds * more / REPLAYS;
    let next = AtomicU64::new(0);
    let first: Mutex<Option<(u64, String)>> = Mutex::default();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            if let Some(what) = disagreement(seed) {
                next.store(seeds, Ordering::Relaxed);
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(known, _)| seed < *known) {
                    *first = Some((seed, what));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work();
        if let Err(panic) = other.join() {
            std::panic::resume_unwind(panic);
        }
    });
    if let Some((seed, what)) = first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        panic!("seed {seed}: {what}\nrun it alone with PALISADE_SEED={seed}");
    }
}

/// Which verdicts the model spoke, so that a run that tested nothing is seen.
#[derive(Default)]
struct Heard(Mutex<(u64, BTreeMap<&'static str, u64>)>);

impl Heard {
    const WHAT: [&'static str; 12] = [
        " ban ",
        " held ",
        " spared ",
        " alert ",
        " strike=2 ",
        " strike=3 ",
        " challenge ",
        " also=r",
        "because allow",
        "because never",
        "because share",
        "because brake: the",
    ];

    fn note(&self, lines: &[String]) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.0 += 1;
        for what in Self::WHAT {
            let count = lines.iter().filter(|line| line.contains(what)).count() as u64;
            *heard.1.entry(what).or_default() += count;
        }
    }

    fn show(self, of: &str) {
        let (worlds, heard) = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        println!("{worlds} {of}: {heard:?}");
        if std::env::var("PALISADE_SEED").is_err() {
            let rare: Vec<_> = heard.iter().filter(|(_, count)| **count < worlds / 10).collect();
            assert!(rare.is_empty(), "the worlds hardly ever show {rare:?}");
        }
    }
}

/// Why `system` disagrees about `world`, which is made as small as it can be, or `None`.
fn compare(world: &World, expected: Vec<String>, system: impl Fn(&World) -> Vec<String>) -> Option<String> {
    let decided = system(world);
    if decided == expected {
        return None;
    }
    let disagree = |world: &World| Model::run(world) != system(world);
    let mut small = world.clone();
    let mut chunk = small.sent.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        while at < small.sent.len() {
            let mut smaller = small.clone();
            smaller.sent.drain(at..(at + chunk).min(small.sent.len()));
            if !smaller.sent.is_empty() && disagree(&smaller) {
                small = smaller;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    for rule in (0..small.terms.rules.len()).rev() {
        let mut smaller = small.clone();
        smaller.terms.rules.remove(rule);
        if !smaller.terms.rules.is_empty() && disagree(&smaller) {
            small = smaller;
        }
    }
    let mut text = format!("\n{}\n", small.terms.toml());
    for sent in &small.sent {
        let known = match small.mode {
            Mode::Replay => String::new(),
            Mode::Live => format!(", known at {}", clock(small.arrivals[sent.object])),
        };
        let request = &sent.request;
        let _ = writeln!(
            text,
            "{}{known}: {} {} {} {} {:?} {:?} {} {}",
            clock(minute_of(request.ms)),
            request.from,
            request.method,
            request.uri,
            request.args,
            request.headers,
            request.labels,
            request.action,
            request.waf_rule,
        );
    }
    let (expected, decided) = (Model::run(&small), system(&small));
    let same = expected.iter().zip(&decided).take_while(|(a, b)| a == b).count();
    for line in &expected[..same] {
        let _ = writeln!(text, "  {line}");
    }
    for line in &expected[same..] {
        let _ = writeln!(text, "- {line}      (model)");
    }
    for line in &decided[same..] {
        let _ = writeln!(text, "+ {line}      (judge)");
    }
    Some(text)
}

// ---- The judge under test, honest and broken ----

/// A judge that is broken in one way: something is changed on the way in.
struct Mutant {
    name: &'static str,
    /// Changes the policy that counts and judges.
    policy: fn(&mut Policy),
    /// Changes a request before it is logged.
    request: fn(&mut Request),
    /// Changes what is known after the judgment of this minute.
    ledger: fn(&mut Ledger, Minute),
    /// Changes the minute that is judged, but not the one that is reported.
    minute: fn(Minute) -> Minute,
    /// Counts the first object twice.
    twice: bool,
}

const HONEST: Mutant = Mutant {
    name: "nothing",
    policy: |_| {},
    request: |_| {},
    ledger: |_, _| {},
    minute: |now| now,
    twice: false,
};

/// Further back than any world reaches.
const FAR_PAST: Span = Span(1_000);

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "windows are a minute too long",
        policy: |policy| policy.rules.iter_mut().for_each(|rule| rule.window.0 += 1),
        ..HONEST
    },
    Mutant {
        name: "windows are a minute too short",
        policy: |policy| {
            let longer = policy.rules.iter_mut().filter(|rule| rule.window.0 > 1);
            longer.for_each(|rule| rule.window.0 -= 1);
        },
        ..HONEST
    },
    Mutant {
        name: "the limit itself is still allowed",
        policy: |policy| policy.rules.iter_mut().for_each(|rule| rule.limit += 1),
        ..HONEST
    },
    Mutant {
        name: "one below the limit is an offense",
        policy: |policy| {
            let higher = policy.rules.iter_mut().filter(|rule| rule.limit > 1);
            higher.for_each(|rule| rule.limit -= 1);
        },
        ..HONEST
    },
    Mutant {
        name: "no slate: a burst is punished again when its ban ends",
        // An ended ban is put so far into the past that it cuts no window, and is remembered for so much longer.
        policy: |policy| policy.forget_after.0 += FAR_PAST.0,
        ledger: |ledger, now| {
            let ended = ledger
                .offenders
                .values_mut()
                .filter(|offender| offender.ban.until <= now + Span::MINUTE);
            for offender in ended.filter(|offender| offender.ban.until + Span(FAR_PAST.0 / 2) > now) {
                offender.ban.until = offender.ban.until - FAR_PAST;
            }
        },
        ..HONEST
    },
    Mutant {
        name: "a ban ends a minute late",
        ledger: |ledger, now| {
            for offender in ledger
                .offenders
                .values_mut()
                .filter(|offender| offender.ban.from == now)
            {
                offender.ban.until = offender.ban.until + Span::MINUTE;
            }
        },
        ..HONEST
    },
    Mutant {
        name: "strikes are forgotten with the ban",
        ledger: |ledger, _| ledger.offenders.values_mut().for_each(|offender| offender.strikes = 0),
        ..HONEST
    },
    Mutant {
        name: "strikes are forgotten a minute late",
        policy: |policy| policy.forget_after.0 += 1,
        ..HONEST
    },
    Mutant {
        name: "strikes are never forgotten",
        policy: |policy| policy.forget_after = Span(u32::MAX),
        ..HONEST
    },
    Mutant {
        name: "rules have no ladder of their own",
        policy: |policy| policy.rules.iter_mut().for_each(|rule| rule.ladder = None),
        ..HONEST
    },
    Mutant {
        name: "no allowlist",
        policy: |policy| policy.allows.clear(),
        ..HONEST
    },
    Mutant {
        name: "an object that comes twice counts twice",
        twice: true,
        ..HONEST
    },
    Mutant {
        name: "what our own rules blocked counts",
        policy: |policy| {
            policy.ours = Ours {
                waf_rule: Vec::new(),
                label: Vec::new(),
            }
        },
        ..HONEST
    },
    Mutant {
        name: "what our own rules blocked is known by the rule's name only",
        policy: |policy| policy.ours.label.clear(),
        ..HONEST
    },
    Mutant {
        name: "every IPv6 address is a client",
        policy: |policy| policy.client.ipv6_prefix = 128,
        ..HONEST
    },
    Mutant {
        name: "hops are counted from the left",
        request: |request| {
            for (_, value) in request
                .headers
                .iter_mut()
                .filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"))
            {
                let hops: Vec<&str> = value.rsplit(',').collect();
                *value = hops.join(",").into();
            }
            request.headers.reverse();
        },
        ..HONEST
    },
    Mutant {
        name: "the forwarded header is ignored",
        policy: |policy| policy.client.ip = IpSource::Source,
        ..HONEST
    },
    Mutant {
        name: "a hop too many is trusted",
        policy: |policy| {
            if let IpSource::Header { trusted_hops, .. } = &mut policy.client.ip {
                *trusted_hops += 1;
            }
        },
        ..HONEST
    },
    Mutant {
        name: "`unless` is ignored",
        policy: |policy| policy.rules.iter_mut().for_each(|rule| rule.unless = None),
        ..HONEST
    },
    Mutant {
        name: "one matching condition is enough",
        policy: |policy| {
            policy
                .rules
                .iter_mut()
                .for_each(|rule| rule.matches.conditions.truncate(1))
        },
        ..HONEST
    },
    Mutant {
        name: "`share` is ignored",
        policy: |policy| policy.rules.iter_mut().for_each(|rule| rule.share = None),
        ..HONEST
    },
    Mutant {
        name: "`distinct` is ignored",
        policy: |policy| policy.rules.iter_mut().for_each(|rule| rule.distinct = None),
        ..HONEST
    },
    Mutant {
        name: "alerts ban",
        policy: |policy| policy.rules.iter_mut().for_each(|rule| rule.then = Then::Ban),
        ..HONEST
    },
    Mutant {
        name: "every rule is as severe as another",
        policy: |policy| {
            policy
                .rules
                .iter_mut()
                .for_each(|rule| rule.severity = Severity::Medium)
        },
        ..HONEST
    },
    Mutant {
        name: "the brake allows one ban more",
        policy: |policy| policy.brake.new_bans += 1,
        ..HONEST
    },
    Mutant {
        name: "the brake does not look at shares",
        policy: |policy| policy.brake.allowed_share = 1.0,
        ..HONEST
    },
    Mutant {
        name: "logs may come a minute later than accepted",
        policy: |policy| policy.lateness.0 += 1,
        ..HONEST
    },
    Mutant {
        name: "logs must come a minute earlier than accepted",
        policy: |policy| policy.lateness.0 -= 1,
        ..HONEST
    },
    Mutant {
        name: "the crowd's window is no part of the horizon",
        policy: |policy| policy.crowd = None,
        ..HONEST
    },
    Mutant {
        name: "what goes on is said every minute",
        ledger: |ledger, _| ledger.going_on.clear(),
        ..HONEST
    },
    Mutant {
        name: "the minute that has just begun counts",
        minute: |now| now + Span::MINUTE,
        ..HONEST
    },
    Mutant {
        name: "minutes begin half a minute late",
        request: |request| request.ms += 30_000,
        ..HONEST
    },
];

impl Mutant {
    /// What is decided about the world, a line each, and then what is known.
    fn run(&self, world: &World) -> Vec<String> {
        let mut policy = world.policy();
        (self.policy)(&mut policy);
        let tallies = self.tallies(world, &policy);
        match world.mode {
            Mode::Replay => {
                let all = merged(tallies);
                let period = all.period().map(|(first, last)| (first.0 + 1, last.0 + 1));
                self.each_minute(&policy, &all, period, |_| Tally::default(), all.clone())
            }
            Mode::Live => {
                let all = merged(tallies.clone());
                let mut arriving: Vec<(u32, Tally)> = world.arrivals.iter().copied().zip(tallies).collect();
                let arrive = |now| {
                    merged(
                        arriving
                            .extract_if(.., |(at, _)| *at <= now)
                            .map(|(_, tally)| tally)
                            .collect(),
                    )
                };
                self.each_minute(&policy, &all, world.lifetime(), arrive, Tally::default())
            }
        }
    }

    /// Judges every minute of the period. `arrive` gives what has become known since the minute before.
    fn each_minute(
        &self,
        policy: &Policy,
        all: &Tally,
        period: Option<(u32, u32)>,
        mut arrive: impl FnMut(u32) -> Tally,
        mut known: Tally,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        let mut ledger = Ledger::default();
        let Some((first, last)) = period else { return lines };
        for now in first..=last {
            known.merge(arrive(now));
            let judgment = judge(policy, &known, &ledger, (self.minute)(Minute(now)));
            for verdict in &judgment.verdicts {
                let stopped = match verdict {
                    Verdict::Ban(charge, sentence) => all.requests_of(charge.client, Minute(now), sentence.until),
                    _ => 0,
                };
                lines.extend(line(Minute(now), verdict, stopped));
            }
            ledger = judgment.ledger;
            (self.ledger)(&mut ledger, Minute(now));
        }
        lines.extend(ledger_lines(&ledger, policy, last));
        lines
    }

    /// One tally for each object of the world.
    fn tallies(&self, world: &World, policy: &Policy) -> Vec<Tally> {
        let mut tallies: Vec<Tally> = world
            .objects(self.request)
            .iter()
            .map(|object| tally_of(policy, object))
            .collect();
        if self.twice {
            let again = tallies[0].clone();
            tallies[0].merge(again);
        }
        tallies
    }
}

fn tally_of(policy: &Policy, object: &[u8]) -> Tally {
    let mut tally = Tally::default();
    ingest::scan(object, |request| tally.count(policy, request));
    tally
}

fn merged(tallies: Vec<Tally>) -> Tally {
    let mut all = Tally::default();
    tallies.into_iter().for_each(|tally| all.merge(tally));
    all
}

fn replayed(policy: &Policy, tally: &Tally) -> Vec<String> {
    let replay = Replay::of(policy, tally);
    let mut lines: Vec<String> = replay
        .events
        .iter()
        .filter_map(|event| line(event.time, &event.verdict, event.stopped))
        .collect();
    if let Some((_, last)) = tally.period() {
        lines.extend(ledger_lines(&replay.ledger, policy, last.0 + 1));
    }
    lines
}

fn in_memory(world: &World) -> Vec<String> {
    let policy = world.policy();
    replayed(&policy, &merged(HONEST.tallies(world, &policy)))
}

/// The world as a user has it: log objects in folders, in any order and packing, some of them delivered twice.
fn on_disk(world: &World) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(world.seed ^ 0xd15c);
    for object in world.objects(|_| {}) {
        let bytes = match random.random_range(0..3) {
            0 => object,
            1 => zstd::encode_all(&object[..], 1).unwrap(),
            _ => {
                let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
                gz.write_all(&object).unwrap();
                gz.finish().unwrap()
            }
        };
        for _ in 0..random.random_range(1..=3) {
            let hour = folder
                .path()
                .join(format!("2026/11/01/{:02}", random.random_range(0..24)));
            std::fs::create_dir_all(&hour).unwrap();
            std::fs::write(hour.join(format!("{:016x}", random.random::<u64>())), &bytes).unwrap();
        }
    }
    let policy = world.policy();
    let inputs = inputs::find(&[folder.path().to_owned()], &Period::default());
    let reading = read(&inputs, Period::default(), 2, &(), || Count::new(&policy));
    assert_eq!(reading.problems, []);
    replayed(&policy, &reading.collected.into_tally())
}

/// A verdict as the model writes it.
fn line(now: Minute, verdict: &Verdict, stopped: u64) -> Option<String> {
    let (what, charge, rest) = match verdict {
        Verdict::Ban(charge, sentence) => {
            let rest = format!(
                "strike={} until={} stopped={stopped} {} also={}",
                sentence.strike,
                clock(sentence.until.0),
                sentence.action,
                charge.also.join(",")
            );
            ("ban", charge, rest)
        }
        Verdict::Held(charge, because) => ("held", charge, format!("because {}", gist(because))),
        Verdict::Spared(charge, because) => ("spared", charge, format!("because {}", gist(because))),
        Verdict::Alert(charge) => ("alert", charge, String::new()),
        // How crowds are found is an estimate, and not the model's business.
        Verdict::Crowd(_) => return None,
    };
    let offense = &charge.offense;
    Some(format!(
        "{} {what} {} {} hits={} matched={} of {} from={} to={} {rest}",
        clock(now.0),
        charge.client,
        charge.rule,
        offense.hits,
        offense.matched,
        offense.requests,
        clock(offense.first_hit.0),
        clock(offense.last_hit.0),
    ))
}

/// The part of a reason that the model predicts: which numbers, not how they are put.
fn gist(because: &str) -> String {
    let words = match because.split_once(':').unwrap_or_default().0 {
        "never banned" => 2,
        "brake" => 4,
        "share" => 5,
        _ => return because.to_owned(),
    };
    because.split(' ').take(words).collect::<Vec<&str>>().join(" ")
}

/// Who is known at `now`. A ledger is written after a judgment and read before the next one, which forgets first.
fn ledger_lines(ledger: &Ledger, policy: &Policy, now: u32) -> Vec<String> {
    let known = ledger
        .offenders
        .iter()
        .filter(|(_, offender)| Minute(now) < offender.ban.until + policy.forget_after);
    let lines = known.map(|(client, offender)| {
        let ban = &offender.ban;
        format!(
            "known {client} strikes={} {} {} from={} until={} {} hits={} to={}",
            offender.strikes,
            ban.rule,
            ban.action,
            clock(ban.from.0),
            clock(ban.until.0),
            ban.severity,
            ban.hits,
            clock(ban.last_hit.0)
        )
    });
    lines.collect()
}

// ---- The model ----

/// A policy as the model reads it.
#[derive(Debug, Clone)]
struct Terms {
    lateness: u32,
    ladder: Vec<Step>,
    forget_after: u32,
    new_bans: usize,
    allowed_percent: u64,
    /// The forwarded header's trusted hops, or nothing if the connection says who the client is.
    hops: Option<usize>,
    ipv6_prefix: u32,
    ours_waf_rule: &'static str,
    ours_label: &'static str,
    allows: Vec<(&'static str, &'static str)>,
    crowd_window: Option<u32>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    /// A challenge is milder than a block, whatever its time.
    blocks: bool,
    minutes: u32,
}

/// A field's name and the patterns of which one must match.
type Condition = (&'static str, &'static [&'static str]);

#[derive(Debug, Clone)]
struct Rule {
    name: String,
    matches: Vec<Condition>,
    unless: Vec<Condition>,
    limit: u64,
    window: u32,
    share_percent: Option<u64>,
    distinct: Option<&'static str>,
    severity: usize,
    ladder: Option<Vec<Step>>,
    alerts: bool,
}

const SEVERITIES: [&str; 4] = ["low", "medium", "high", "critical"];

impl Terms {
    fn horizon(&self) -> u32 {
        let rules = self.rules.iter().map(|rule| rule.window);
        rules.chain(self.crowd_window).max().unwrap_or(1) + self.lateness
    }

    fn step(&self, rule: &Rule, strike: u32) -> Step {
        let ladder = rule.ladder.as_ref().unwrap_or(&self.ladder);
        ladder[(strike as usize).min(ladder.len()) - 1]
    }

    /// Why a client may not be banned whatever it does.
    fn protects(&self, who: Who) -> Option<String> {
        const NOBODYS: [&str; 12] = [
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "224.0.0.0/4",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
            "ff00::/8",
        ];
        if NOBODYS.iter().any(|network| who.shares_an_address_with(network)) {
            return Some("never banned:".to_owned());
        }
        let allow = self
            .allows
            .iter()
            .find(|(network, _)| who.shares_an_address_with(network))?;
        Some(format!("allow: {}", allow.1))
    }

    fn is_ours(&self, request: &Request) -> bool {
        request.action != "ALLOW"
            && (matches(self.ours_waf_rule, &request.waf_rule)
                || request.labels.iter().any(|label| matches(self.ours_label, label)))
    }

    fn who(&self, request: &Request) -> Option<Who> {
        let Some(hops) = self.hops else {
            return Some(Who::of(request.from, self.ipv6_prefix));
        };
        let mut all = Vec::new();
        for (name, value) in &request.headers {
            if name.to_lowercase() == "x-forwarded-for" {
                all.extend(value.split(','));
            }
        }
        all.reverse();
        let hop = all.get(hops - 1)?.trim();
        let address = match hop.strip_prefix('[') {
            Some(bracketed) => bracketed.split(']').next()?.parse().ok()?,
            None if hop.matches(':').count() == 1 => hop.split(':').next()?.parse().ok()?,
            None => hop.parse().ok()?,
        };
        Some(Who::of(address, self.ipv6_prefix))
    }
}

/// Whom a ban hits. IPv4 comes first in every order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Who {
    is_v6: bool,
    bits: u128,
    prefix: u32,
}

impl Who {
    fn of(address: IpAddr, ipv6_prefix: u32) -> Who {
        match address {
            IpAddr::V4(v4) => Who {
                is_v6: false,
                bits: u128::from(u32::from(v4)),
                prefix: 32,
            },
            IpAddr::V6(v6) if u128::from(v6) >> 32 == 0xffff => Who {
                is_v6: false,
                bits: u128::from(v6) & 0xffff_ffff,
                prefix: 32,
            },
            IpAddr::V6(v6) => {
                let host = 128 - ipv6_prefix;
                let bits = (u128::from(v6).checked_shr(host).unwrap_or(0))
                    .checked_shl(host)
                    .unwrap_or(0);
                Who {
                    is_v6: true,
                    bits,
                    prefix: ipv6_prefix,
                }
            }
        }
    }

    fn shares_an_address_with(self, network: &str) -> bool {
        let (address, prefix) = network.split_once('/').unwrap();
        let prefix: u32 = prefix.parse().unwrap();
        let other = Who::of(address.parse().unwrap(), 128);
        let width = if self.is_v6 { 128 } else { 32 };
        let host = width - self.prefix.min(prefix);
        self.is_v6 == other.is_v6 && self.bits >> host == other.bits >> host
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_v6 {
            write!(f, "{}/{}", Ipv6Addr::from(self.bits), self.prefix)
        } else {
            write!(f, "{}/{}", Ipv4Addr::from(self.bits as u32), self.prefix)
        }
    }
}

/// Whether a pattern matches all of a text: `*` is any run of characters, and upper and lower case are the same.
fn matches(pattern: &str, text: &str) -> bool {
    fn from(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], _) => text.is_empty(),
            ([b'*', rest @ ..], _) => from(rest, text) || (!text.is_empty() && from(pattern, &text[1..])),
            ([letter, rest @ ..], [first, text @ ..]) => letter.eq_ignore_ascii_case(first) && from(rest, text),
            _ => false,
        }
    }
    from(pattern.as_bytes(), text.as_bytes())
}

/// Every value that a request has for a field.
fn values<'r>(request: &'r Request, field: &str) -> Vec<&'r str> {
    let headers = |wanted: &str| -> Vec<&'r str> {
        let wanted = request.headers.iter().filter(|(name, _)| name.to_lowercase() == wanted);
        wanted.map(|(_, value)| &**value).collect()
    };
    match field {
        "method" => vec![&*request.method],
        "uri" => vec![&*request.uri],
        "args" => vec![&*request.args],
        "action" => vec![&*request.action],
        "waf_rule" => vec![&*request.waf_rule],
        "label" => request.labels.iter().map(|label| &**label).collect(),
        "user_agent" => headers("user-agent").into_iter().take(1).collect(),
        header => headers(header.strip_prefix("header.").unwrap()),
    }
}

impl Rule {
    fn counts(&self, request: &Request) -> bool {
        let all = |conditions: &[Condition]| {
            conditions.iter().all(|(field, patterns)| {
                let values = values(request, field);
                patterns
                    .iter()
                    .any(|pattern| values.iter().any(|value| matches(pattern, value)))
            })
        };
        all(&self.matches) && (self.unless.is_empty() || !all(&self.unless))
    }
}

/// One request as the model remembers it.
struct Seen {
    minute: u32,
    known_at: u32,
    ours: bool,
    allowed: bool,
    /// For each rule that it counts for, the values that the rule counts if it counts distinct ones.
    hits: Vec<Option<Vec<String>>>,
}

/// A window that reached a limit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    // In this order: an offense before a shared one, then most hits, then the latest.
    offense: bool,
    hits: u64,
    last: u32,
    first: u32,
    matched: u64,
    requests: u64,
}

struct Offender {
    strikes: u32,
    from: u32,
    until: u32,
    step: Step,
    rule: usize,
    found: Found,
}

struct Model<'w> {
    terms: &'w Terms,
    clients: BTreeMap<Who, Vec<Seen>>,
    offenders: BTreeMap<Who, Offender>,
    going_on: BTreeSet<String>,
}

impl<'w> Model<'w> {
    /// What should be decided about the world, a line each, and then what should be known.
    fn run(world: &'w World) -> Vec<String> {
        let terms = &world.terms;
        let mut clients: BTreeMap<Who, Vec<Seen>> = BTreeMap::new();
        for Sent { request, object, .. } in &world.sent {
            let Some(who) = terms.who(request) else { continue };
            let hits = terms.rules.iter().map(|rule| {
                let counted = values(request, rule.distinct.unwrap_or("method"));
                rule.counts(request)
                    .then(|| counted.into_iter().map(str::to_owned).collect())
            });
            clients.entry(who).or_default().push(Seen {
                minute: minute_of(request.ms),
                known_at: if world.mode == Mode::Live {
                    world.arrivals[*object]
                } else {
                    0
                },
                ours: terms.is_ours(request),
                allowed: request.action == "ALLOW",
                hits: hits.collect(),
            });
        }
        let minutes = || clients.values().flatten().map(|seen| seen.minute);
        let period = match world.mode {
            Mode::Live => world.lifetime(),
            Mode::Replay => minutes()
                .min()
                .zip(minutes().max())
                .map(|(first, last)| (first + 1, last + 1)),
        };
        let mut model = Model {
            terms,
            clients,
            offenders: BTreeMap::new(),
            going_on: BTreeSet::new(),
        };
        let Some((first, last)) = period else { return Vec::new() };
        let mut lines: Vec<String> = (first..=last).flat_map(|now| model.judge(now)).collect();
        lines.extend(model.offenders.iter().map(|(who, offender)| {
            let rule = &terms.rules[offender.rule];
            format!(
                "known {who} strikes={} {} {} from={} until={} {} hits={} to={}",
                offender.strikes,
                rule.name,
                action(offender.step),
                clock(offender.from),
                clock(offender.until),
                SEVERITIES[rule.severity],
                offender.found.hits,
                clock(offender.found.last)
            )
        }));
        lines
    }

    fn judge(&mut self, now: u32) -> Vec<String> {
        let terms = self.terms;
        self.offenders
            .retain(|_, offender| now < offender.until + terms.forget_after);
        let horizon_begins = now - terms.horizon();

        let mut candidates: Vec<(Who, usize, Found, u32, Vec<&str>)> = Vec::new();
        let (mut spared, mut alerts) = (Vec::new(), Vec::new());
        for (who, seen) in &self.clients {
            let offender = self.offenders.get(who);
            let slate = offender.map_or(0, |offender| offender.until);
            let strike = offender.map_or(1, |offender| offender.strikes + 1);
            if now < slate {
                continue;
            }
            let in_view = |seen: &&Seen| {
                !seen.ours && seen.known_at <= now && (horizon_begins.max(slate)..now).contains(&seen.minute)
            };
            let view: Vec<&Seen> = seen.iter().filter(in_view).collect();
            let mut found: Vec<(usize, Found)> = Vec::new();
            for (index, rule) in terms.rules.iter().enumerate() {
                found.extend(worst_window(index, rule, &view, horizon_begins).map(|worst| (index, worst)));
            }
            let punishable = || {
                found
                    .iter()
                    .filter(|(rule, found)| found.offense && !terms.rules[*rule].alerts)
            };
            let worst = punishable().max_by_key(|(rule, _)| {
                let step = terms.step(&terms.rules[*rule], strike);
                (step, terms.rules[*rule].severity, usize::MAX - *rule)
            });
            for (rule, found) in &found {
                if found.offense && terms.rules[*rule].alerts {
                    alerts.push((*who, *rule, *found));
                }
            }
            let shared = || {
                found
                    .iter()
                    .filter(|(rule, found)| !found.offense && !terms.rules[*rule].alerts)
            };
            if let Some(because) = terms.protects(*who) {
                // Whatever it does it is not banned; the worst of it is said.
                spared.extend(
                    worst
                        .or(shared().next())
                        .map(|(rule, found)| (*who, *rule, *found, because)),
                );
                continue;
            }
            match worst {
                Some((rule, found)) => {
                    let also = punishable().filter(|other| other.0 != *rule);
                    let also = also.map(|(other, _)| terms.rules[*other].name.as_str()).collect();
                    candidates.push((*who, *rule, *found, strike, also));
                }
                None => {
                    spared.extend(shared().map(|(rule, found)| {
                        let because = format!("share: {} of {} requests", found.matched, found.requests);
                        (*who, *rule, *found, because)
                    }));
                }
            }
        }

        candidates.sort_by_key(|(who, rule, found, ..)| {
            let severity = terms.rules[*rule].severity;
            (
                usize::MAX - severity,
                u32::MAX - found.last,
                u64::MAX - found.hits,
                *who,
            )
        });
        let mut held: Vec<(Who, usize, Found, String)> = Vec::new();
        let mut lines = Vec::new();
        let allowed = |seen: &[Seen]| {
            let in_view = |seen: &&Seen| {
                !seen.ours && seen.allowed && seen.known_at <= now && (horizon_begins..now).contains(&seen.minute)
            };
            seen.iter().filter(in_view).count() as u64
        };
        let theirs: u64 = candidates
            .iter()
            .map(|candidate| allowed(&self.clients[&candidate.0]))
            .sum();
        let all: u64 = self.clients.values().map(|seen| allowed(seen)).sum();
        if candidates.len() >= 10 && theirs * 100 > terms.allowed_percent * all {
            let because = format!("brake: the {} clients", candidates.len());
            held.extend(
                candidates
                    .drain(..)
                    .map(|(who, rule, found, ..)| (who, rule, found, because.clone())),
            );
        }
        for (rank, (who, rule, found, strike, also)) in candidates.into_iter().enumerate() {
            if rank >= terms.new_bans {
                held.push((who, rule, found, format!("brake: more than {}", terms.new_bans)));
                continue;
            }
            let step = terms.step(&terms.rules[rule], strike);
            let until = now + step.minutes;
            let stopped = self.clients[&who]
                .iter()
                .filter(|seen| (now..until).contains(&seen.minute))
                .count();
            lines.push(format!(
                "{} strike={strike} until={} stopped={stopped} {} also={}",
                self.said(now, "ban", who, rule, found),
                clock(until),
                action(step),
                also.join(",")
            ));
            self.offenders.insert(
                who,
                Offender {
                    strikes: strike,
                    from: now,
                    until,
                    step,
                    rule,
                    found,
                },
            );
        }

        // What goes on is said when it begins, client by client; alerts of one client by the rule's name.
        held.sort_by_key(|held| held.0);
        alerts.sort_by_key(|(who, rule, _)| (*who, terms.rules[*rule].name.clone()));
        let before = std::mem::take(&mut self.going_on);
        let mut say = |episode: String, line: String| {
            if !before.contains(&episode) {
                lines.push(line);
            }
            self.going_on.insert(episode);
        };
        let said = |what, who, rule, found| Self::say(terms, now, what, who, rule, found);
        for (who, rule, found, because) in held {
            say(
                format!("held {who}"),
                format!("{} because {because}", said("held", who, rule, found)),
            );
        }
        for (who, rule, found, because) in spared {
            say(
                format!("spared {who} {rule}"),
                format!("{} because {because}", said("spared", who, rule, found)),
            );
        }
        for (who, rule, found) in alerts {
            say(
                format!("alert {who} {rule}"),
                format!("{} ", said("alert", who, rule, found)),
            );
        }
        lines
    }

    fn said(&self, now: u32, what: &str, who: Who, rule: usize, found: Found) -> String {
        Self::say(self.terms, now, what, who, rule, found)
    }

    fn say(terms: &Terms, now: u32, what: &str, who: Who, rule: usize, found: Found) -> String {
        format!(
            "{} {what} {who} {} hits={} matched={} of {} from={} to={}",
            clock(now),
            terms.rules[rule].name,
            found.hits,
            found.matched,
            found.requests,
            clock(found.first),
            clock(found.last)
        )
    }
}

/// The window to speak of: of all that end with a hit and lie within the horizon, as far as the slate does not cut them.
fn worst_window(index: usize, rule: &Rule, view: &[&Seen], horizon_begins: u32) -> Option<Found> {
    let ends = view
        .iter()
        .filter(|seen| seen.hits[index].is_some())
        .map(|seen| seen.minute);
    let windows = ends.map(|last| {
        let first = last + 1 - rule.window;
        let within: Vec<&&Seen> = view
            .iter()
            .filter(|seen| (first..=last).contains(&seen.minute))
            .collect();
        let hits: Vec<&&&Seen> = within.iter().filter(|seen| seen.hits[index].is_some()).collect();
        let matched = hits.len() as u64;
        let distinct: BTreeSet<&String> = hits.iter().flat_map(|seen| seen.hits[index].iter().flatten()).collect();
        let requests = within.len() as u64;
        let enough = rule
            .share_percent
            .is_none_or(|percent| matched * 100 >= percent * requests);
        let found = Found {
            offense: enough,
            hits: if rule.distinct.is_some() {
                distinct.len() as u64
            } else {
                matched
            },
            last,
            first: hits.iter().map(|seen| seen.minute).min().unwrap_or(last),
            matched,
            requests,
        };
        (first, found)
    });
    let reached = windows.filter(|(first, found)| *first >= horizon_begins && found.hits >= rule.limit);
    reached.map(|(_, found)| found).max()
}

fn action(step: Step) -> Action {
    if step.blocks { Action::Block } else { Action::Challenge }
}

// ---- The worlds ----

/// One request before it is a record.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) ms: i64,
    pub(crate) from: IpAddr,
    pub(crate) method: Cow<'static, str>,
    pub(crate) uri: Cow<'static, str>,
    pub(crate) args: Cow<'static, str>,
    pub(crate) headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    pub(crate) labels: Vec<Cow<'static, str>>,
    pub(crate) action: Cow<'static, str>,
    pub(crate) waf_rule: Cow<'static, str>,
    pub(crate) country: Cow<'static, str>,
    pub(crate) ja4: Cow<'static, str>,
}

impl Request {
    /// An ordinary allowed `GET /`.
    pub(crate) fn ordinary(ms: i64, from: IpAddr) -> Request {
        Request {
            ms,
            from,
            method: "GET".into(),
            uri: "/".into(),
            args: "".into(),
            headers: Vec::new(),
            labels: Vec::new(),
            action: "ALLOW".into(),
            waf_rule: "Default_Action".into(),
            country: "DE".into(),
            ja4: "".into(),
        }
    }

    /// The record that WAF writes; `number` makes it unlike any other.
    pub(crate) fn record(&self, number: u64) -> String {
        let text = |text: &str| Value::from(text).to_string();
        let named = |name: &str| format!(r#"{{"name":{}}}"#, text(name));
        let headers: Vec<String> = self
            .headers
            .iter()
            .map(|(name, value)| format!(r#"{{"name":{},"value":{}}}"#, text(name), text(value)))
            .collect();
        let labels: Vec<String> = self.labels.iter().map(|label| named(label)).collect();
        let ja4 = match &*self.ja4 {
            "" => String::new(),
            ja4 => format!(r#","ja4Fingerprint":{}"#, text(ja4)),
        };
        format!(
            r#"{{"timestamp":{},"formatVersion":1,"webaclId":"arn:aws:wafv2:eu-central-1:111122223333:regional/webacl/api/3a2f","terminatingRuleId":{},"terminatingRuleType":"REGULAR","action":{},"httpSourceName":"ALB","httpRequest":{{"clientIp":"{}","country":{},"headers":[{}],"uri":{},"args":{},"httpVersion":"HTTP/2.0","httpMethod":{},"requestId":"1-{number}"}},"labels":[{}]{ja4}}}"#,
            self.ms,
            text(&self.waf_rule),
            text(&self.action),
            self.from,
            text(&self.country),
            headers.join(","),
            text(&self.uri),
            text(&self.args),
            text(&self.method),
            labels.join(","),
        )
    }
}

/// 2026-11-01T12:00:00Z.
const BEGINS_MS: i64 = 1_793_534_400_000;

fn minute_of(ms: i64) -> u32 {
    (ms / 60_000) as u32
}

/// `3:07`, three hours and seven minutes after the world began.
fn clock(minute: u32) -> String {
    let since = i64::from(minute) - BEGINS_MS / 60_000;
    format!("{}:{:02}", since.div_euclid(60), since.rem_euclid(60))
}

/// How a world is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// All at once.
    Replay,
    /// Minute by minute, with what has arrived by then.
    Live,
}

#[derive(Debug, Clone)]
struct Sent {
    request: Request,
    number: u64,
    /// The log object that it is delivered in.
    object: usize,
}

#[derive(Debug, Clone)]
struct World {
    seed: u64,
    mode: Mode,
    terms: Terms,
    sent: Vec<Sent>,
    /// For each object the first minute whose judgment knows it.
    arrivals: Vec<u32>,
}

impl World {
    fn of(seed: u64, mode: Mode) -> World {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let terms = Terms::random(&mut random);
        let mut requests = traffic(&terms, &mut random);
        requests.sort_by_key(|request| request.ms);
        let (sent, arrivals) = match mode {
            Mode::Replay => {
                let objects = random.random_range(1..=10);
                (
                    requests.iter().map(|_| random.random_range(0..objects)).collect(),
                    vec![0; objects],
                )
            }
            Mode::Live => delivery(&terms, &requests, &mut random),
        };
        let sent: Vec<Sent> = (requests.into_iter().zip(sent).enumerate())
            .map(|(number, (request, object))| Sent {
                request,
                number: number as u64,
                object,
            })
            .collect();
        World {
            seed,
            mode,
            terms,
            sent,
            arrivals,
        }
    }

    fn policy(&self) -> Policy {
        let text = self.terms.toml();
        Policy::parse(&text).unwrap_or_else(|error| panic!("seed {}: {error}\n{text}", self.seed))
    }

    /// The minutes to judge live: until nothing is in view any more.
    fn lifetime(&self) -> Option<(u32, u32)> {
        let minutes = || {
            self.sent
                .iter()
                .map(|sent| minute_of(sent.request.ms).max(self.arrivals[sent.object]))
        };
        Some((minute_of(BEGINS_MS), minutes().max()? + self.terms.horizon() + 2))
    }

    /// The bytes of each object, with all that may stand between records.
    fn objects(&self, change: fn(&mut Request)) -> Vec<Vec<u8>> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ 0x0b);
        let mut records: Vec<Vec<String>> = vec![Vec::new(); self.arrivals.len()];
        for sent in &self.sent {
            let mut request = sent.request.clone();
            change(&mut request);
            records[sent.object].push(request.record(sent.number));
        }
        let frame = |mut records: Vec<String>| {
            records.shuffle(&mut random);
            match random.random_range(0..10) {
                0 => records.concat(),
                1 => format!("[{}]", records.join(",\n")),
                _ => {
                    let mut text = String::new();
                    for record in records {
                        if random.random_ratio(1, 12) {
                            text += junk(&record, &mut random);
                            text += "\n";
                        }
                        text += &record;
                        text += "\n";
                    }
                    text
                }
            }
        };
        records.into_iter().map(frame).map(String::into_bytes).collect()
    }
}

/// A line that is no record, or only a part of one.
fn junk<'r>(record: &'r str, random: &mut ChaCha8Rng) -> &'r str {
    match random.random_range(0..6) {
        0 => "",
        1 => "this is not a record {",
        2 => r#"{"messageType":"CONTROL_MESSAGE","message":"CWL CONTROL MESSAGE"}"#,
        3 => r#"{"timestamp":1793534400000,"action":"ALLOW","httpRequest":{"uri":"/nobody"}}"#,
        4 => r#"{"timestamp":12,"action":"ALLOW","httpRequest":{"clientIp":"192.0.2.1","uri":"/never"}}"#,
        _ => &record[..random.random_range(30..record.len() / 2)],
    }
}

/// Objects of a few minutes each, and when they arrive: usually soon, sometimes as late as is accepted, sometimes later.
fn delivery(terms: &Terms, requests: &[Request], random: &mut ChaCha8Rng) -> (Vec<usize>, Vec<u32>) {
    let mut arrivals: Vec<u32> = Vec::new();
    let mut objects = Vec::new();
    let mut open: Option<(u32, usize, usize)> = None;
    for request in requests {
        let minute = minute_of(request.ms);
        let (_, first, count) = match open {
            Some(open) if minute < open.0 => open,
            _ => {
                let closes = minute + random.random_range(1..=4);
                let first = arrivals.len();
                // Several partitions write at the same time.
                for _ in 0..random.random_range(1..=3) {
                    let delay = match random.random_range(0..10) {
                        0..=4 => random.random_range(0..=1),
                        5 => terms.lateness,
                        6 => terms.lateness + 1,
                        7..=8 => random.random_range(0..=terms.lateness),
                        _ => random.random_range(0..=terms.horizon() + 3),
                    };
                    // A clock that is fast makes requests arrive before they are made.
                    let skew = u32::from(random.random_ratio(1, 8));
                    arrivals.push(closes + delay - skew);
                }
                *open.insert((closes, first, arrivals.len() - first))
            }
        };
        objects.push(first + random.random_range(0..count));
    }
    if arrivals.is_empty() {
        arrivals.push(0);
    }
    (objects, arrivals)
}

/// What rules look for. Every pattern matches something that clients send.
const CONDITIONS: [Condition; 22] = [
    ("method", &["POST"]),
    ("method", &["get", "PUT"]),
    ("method", &["P*"]),
    ("uri", &["/login"]),
    ("uri", &["*/LOGIN"]),
    ("uri", &["/api/*/login", "/login"]),
    ("uri", &["/items/*"]),
    ("uri", &["*.php", "/items/1"]),
    ("uri", &["*i*e*s/*"]),
    ("uri", &["*I*i*"]),
    ("uri", &["*"]),
    ("user_agent", &["*bot*"]),
    ("user_agent", &["curl/*", "*SQLMAP*"]),
    ("user_agent", &["*"]),
    ("label", &["awswaf:bad:*"]),
    ("label", &["awswaf:bot:verified"]),
    ("action", &["BLOCK"]),
    ("action", &["allow"]),
    ("waf_rule", &["geo", "Default_*"]),
    ("args", &["*q=*"]),
    ("args", &[""]),
    ("header.x-app", &["mobile*"]),
];

const METHODS: [&str; 3] = ["GET", "POST", "PUT"];
const URIS: [&str; 10] = [
    "/",
    "/login",
    "/Login",
    "/api/v1/login",
    "/api//login/",
    "/items/1",
    "/items/2",
    "/items/3",
    "/items/4",
    "/a.PHP",
];
const ARGS: [&str; 4] = ["", "q=1", "page=2&Q=3", "REDACTED"];
const USER_AGENTS: [&str; 5] = ["", "curl/8", "Mozilla/5.0", "GoodBot/1", "x sqlmap"];
const LABELS: [&str; 4] = ["awswaf:bad:x", "awswaf:bad:y", "awswaf:bot:verified", "REDACTED"];
const WAF_RULES: [&str; 4] = ["Default_Action", "geo", "Default_Action", "rate"];
const APPS: [&str; 4] = ["mobile 1", "mobile 2", "web", ""];

/// Ordinary clients, neighbours in one /64 and one /56, and addresses that no client has.
const CLIENTS: [&str; 16] = [
    "192.0.2.44",
    "192.0.2.45",
    "198.51.100.7",
    "198.51.100.8",
    "2001:db8:1:1::1",
    "2001:db8:1:1:ffff::2",
    "2001:db8:1:2::1",
    "2001:db8:a::5",
    "2001:db8:a::6",
    "2001:db8:a:1::7",
    "203.0.113.7",
    "203.0.113.9",
    "10.1.2.3",
    "127.0.0.1",
    "fd00::1",
    "::ffff:192.0.2.44",
];

impl Terms {
    fn random(random: &mut ChaCha8Rng) -> Terms {
        let lateness = random.random_range(1..=8);
        let rules: Vec<Rule> = (0..random.random_range(1..=4))
            .map(|index| Rule::random(index, random))
            .collect();
        let crowd_window = random.random_ratio(1, 8).then(|| random.random_range(1..=16));
        let networks = [
            ("203.0.113.0/28", "office"),
            ("203.0.113.9/32", "one of ours"),
            ("2001:db8:a::5/128", "one address of a /64"),
            ("2001:db8:a::/48", "partner"),
            ("198.51.100.8/31", "pair"),
        ];
        let allows = networks.into_iter().filter(|_| random.random_ratio(1, 3)).collect();
        let (ours_waf_rule, ours_label) =
            [("*palisade*", "*:palisade:*"), ("our-*", ""), ("", "*:ours"), ("", "")][random.random_range(0..4)];
        let mut terms = Terms {
            lateness,
            ladder: ladder(random),
            forget_after: 0,
            new_bans: if random.random_ratio(1, 3) {
                random.random_range(1..=3)
            } else {
                200
            },
            allowed_percent: *[5, 20, 35, 60, 100].choose(random).unwrap(),
            hops: random.random_ratio(1, 3).then(|| random.random_range(1..=2)),
            ipv6_prefix: if random.random_ratio(1, 4) {
                *[56, 128, 48].choose(random).unwrap()
            } else {
                64
            },
            ours_waf_rule,
            ours_label,
            allows,
            crowd_window,
            rules,
        };
        terms.forget_after = terms.horizon() + random.random_range(0..=30);
        terms
    }

    /// The same as a policy file.
    fn toml(&self) -> String {
        let mut text = format!("lateness = \"{}m\"\n[ban]\n", self.lateness);
        let _ = writeln!(text, "ladder = {}", ladder_toml(&self.ladder));
        let _ = writeln!(text, "forget_after = \"{}m\"", self.forget_after);
        let share = self.allowed_percent as f64 / 100.0;
        let _ = writeln!(text, "[brake]\nnew_bans = {}\nallowed_share = {share:?}", self.new_bans);
        let _ = writeln!(text, "[client]\nipv6_prefix = {}", self.ipv6_prefix);
        if let Some(hops) = self.hops {
            let _ = writeln!(text, "ip = {{ header = \"X-Forwarded-For\", trusted_hops = {hops} }}");
        }
        let one = |pattern: &str| {
            if pattern.is_empty() {
                "[]".to_owned()
            } else {
                format!("{pattern:?}")
            }
        };
        let _ = writeln!(
            text,
            "[ours]\nwaf_rule = {}\nlabel = {}",
            one(self.ours_waf_rule),
            one(self.ours_label)
        );
        match self.crowd_window {
            // So many clients that it is never seen; only its window matters.
            Some(window) => text += &format!("[crowd]\nclients = 1000000\nwindow = \"{window}m\"\n"),
            None => text += "[crowd]\nalert = false\n",
        }
        for (cidr, note) in &self.allows {
            let _ = writeln!(text, "[[allow]]\ncidr = {cidr:?}\nnote = {note:?}");
        }
        for rule in &self.rules {
            let _ = writeln!(text, "[[rule]]\nname = {:?}\nwhy = \"Because.\"", rule.name);
            for (key, conditions) in [("match", &rule.matches), ("unless", &rule.unless)] {
                let conditions: Vec<String> = conditions
                    .iter()
                    .map(|(field, patterns)| format!("{field:?} = {patterns:?}"))
                    .collect();
                if !conditions.is_empty() {
                    let _ = writeln!(text, "{key} = {{ {} }}", conditions.join(", "));
                }
            }
            let _ = writeln!(text, "limit = {}\nwindow = \"{}m\"", rule.limit, rule.window);
            if let Some(percent) = rule.share_percent {
                let _ = writeln!(text, "share = {:?}", percent as f64 / 100.0);
            }
            if let Some(field) = rule.distinct {
                let _ = writeln!(text, "distinct = {field:?}");
            }
            let _ = writeln!(text, "severity = {:?}", SEVERITIES[rule.severity]);
            if let Some(steps) = &rule.ladder {
                let _ = writeln!(text, "ban = {}", ladder_toml(steps));
            }
            if rule.alerts {
                text += "then = \"alert\"\n";
            }
        }
        text
    }
}

fn ladder(random: &mut ChaCha8Rng) -> Vec<Step> {
    let step = |_| Step {
        blocks: random.random_ratio(3, 4),
        minutes: random.random_range(1..=15),
    };
    (0..3)
        .map(step)
        .take(3)
        .collect::<Vec<Step>>()
        .split_off(random.random_range(0..3))
}

fn ladder_toml(steps: &[Step]) -> String {
    let steps: Vec<String> = steps
        .iter()
        .map(|step| match step.blocks {
            true => format!("\"{}m\"", step.minutes),
            false => format!("{{ for = \"{}m\", action = \"challenge\" }}", step.minutes),
        })
        .collect();
    format!("[{}]", steps.join(", "))
}

impl Rule {
    fn random(index: usize, random: &mut ChaCha8Rng) -> Rule {
        let mut conditions = |counts: &[usize]| {
            let mut chosen: Vec<Condition> = Vec::new();
            for _ in 0..*counts.choose(random).unwrap() {
                let condition = CONDITIONS.choose(random).unwrap();
                if chosen.iter().all(|known| known.0 != condition.0) {
                    chosen.push(*condition);
                }
            }
            chosen
        };
        let (matches, unless) = (conditions(&[0, 1, 1, 2]), conditions(&[0, 0, 1, 2]));
        let distinct = ["uri", "user_agent", "args", "label", "header.x-app"];
        Rule {
            // Names whose order is not that of the rules.
            name: format!("r{}", (index * 7 + 3) % 10),
            matches,
            unless,
            limit: random.random_range(1..=6),
            window: random.random_range(1..=8),
            share_percent: random
                .random_ratio(1, 3)
                .then(|| *[20, 50, 55, 80, 100].choose(random).unwrap()),
            distinct: random.random_ratio(1, 4).then(|| *distinct.choose(random).unwrap()),
            severity: random.random_range(0..4),
            ladder: random.random_ratio(1, 3).then(|| ladder(random)),
            alerts: random.random_ratio(1, 6),
        }
    }
}

/// Any request of this client.
fn anything(terms: &Terms, ms: i64, from: IpAddr, random: &mut ChaCha8Rng) -> Request {
    let mut request = Request {
        method: (*METHODS.choose(random).unwrap()).into(),
        uri: (*URIS.choose(random).unwrap()).into(),
        args: (*ARGS.choose(random).unwrap()).into(),
        ..Request::ordinary(ms, from)
    };
    if random.random_ratio(3, 4) {
        let name = if random.random_bool(0.5) {
            "user-agent"
        } else {
            "User-Agent"
        };
        request
            .headers
            .push((name.into(), (*USER_AGENTS.choose(random).unwrap()).into()));
    }
    for _ in 0..random.random_range(0u32..=3).saturating_sub(1) {
        let name = if random.random_bool(0.5) { "x-app" } else { "X-App" };
        request
            .headers
            .push((name.into(), (*APPS.choose(random).unwrap()).into()));
    }
    for _ in 0..random.random_range(0u32..=4).saturating_sub(2) {
        request.labels.push((*LABELS.choose(random).unwrap()).into());
    }
    if random.random_ratio(1, 4) {
        request.action = (*["BLOCK", "CHALLENGE", "CAPTCHA"].choose(random).unwrap()).into();
        request.waf_rule = (*WAF_RULES.choose(random).unwrap()).into();
    }
    if terms.hops.is_some() || random.random_ratio(1, 6) {
        forward(terms.hops.unwrap_or(1), &mut request, random);
    }
    request
}

/// Sends the request through proxies: what the client claims, then the client, then the operator's own hops.
fn forward(hops: usize, request: &mut Request, random: &mut ChaCha8Rng) {
    let mut list: Vec<String> = Vec::new();
    for _ in 0..random.random_range(0..=2) {
        list.push(
            (*["127.0.0.1", "203.0.113.7", "unknown", "192.0.2.45", ""]
                .choose(random)
                .unwrap())
            .into(),
        );
    }
    let client = match (request.from, random.random_range(0..20)) {
        (_, 0) => "unknown".to_owned(),
        (_, 1) => "REDACTED".to_owned(),
        (IpAddr::V4(v4), 2..=5) => format!("{v4}:5123"),
        (IpAddr::V6(v6), 2..=5) => format!("[{v6}]:80"),
        (address, _) => address.to_string(),
    };
    list.push(client);
    let own: Vec<String> = (1..hops).map(|hop| format!("10.0.0.{hop}")).collect();
    list.extend(own);
    if random.random_ratio(1, 15) {
        // A request that did not come through all the proxies.
        list.pop();
    }
    let comma = if random.random_bool(0.5) { ", " } else { "," };
    if list.len() > 1 && random.random_ratio(1, 5) {
        let rest = list.split_off(1);
        request
            .headers
            .push(("X-Forwarded-For".into(), list.join(comma).into()));
        request
            .headers
            .push(("x-forwarded-for".into(), rest.join(comma).into()));
    } else if !list.is_empty() {
        request
            .headers
            .push(("X-Forwarded-For".into(), list.join(comma).into()));
    }
    request.from = IpAddr::V4(Ipv4Addr::new(10, 0, 0, hops as u8));
}

/// A request that counts for `rule`, if one is found.
fn hit(terms: &Terms, rule: &Rule, ms: i64, from: IpAddr, random: &mut ChaCha8Rng) -> Request {
    let mut request = anything(terms, ms, from, random);
    for _ in 0..30 {
        if rule.counts(&request) {
            break;
        }
        request = anything(terms, ms, from, random);
    }
    request
}

/// Requests of two to four hours, in bursts around the limits of the rules.
fn traffic(terms: &Terms, random: &mut ChaCha8Rng) -> Vec<Request> {
    let mut requests = Vec::new();
    let minutes: i64 = random.random_range(20..=150);
    let mut clients: Vec<IpAddr> = CLIENTS.map(|client| client.parse().unwrap()).to_vec();
    clients.shuffle(random);
    clients.truncate(random.random_range(2..=7));
    let mut burst = |client: IpAddr, rule: &Rule, begins: i64, random: &mut ChaCha8Rng| {
        let times = (rule.limit + random.random_range(0..=3)).saturating_sub(1).max(1);
        // As long as the window, a minute longer, or shorter; the first and the last hit at its very ends.
        let span = (i64::from(rule.window) + random.random_range(-2..=1)).max(1) * MINUTE_MS;
        for n in 0..times {
            let at = match n {
                0 => random.random_range(0..MINUTE_MS),
                1 => span - random.random_range(1..=MINUTE_MS),
                _ => random.random_range(0..span),
            };
            requests.push(hit(terms, rule, begins + at, client, random));
        }
        if rule.share_percent.is_some() {
            for _ in 0..random.random_range(0..=2 * times) {
                let at = begins + random.random_range(-MINUTE_MS..span);
                requests.push(anything(terms, at, client, random));
            }
        }
        if random.random_ratio(1, 4) {
            for _ in 0..times {
                let at = begins + random.random_range(0..span);
                let mut stopped = hit(terms, rule, at, client, random);
                (stopped.action, stopped.waf_rule) = ("BLOCK".into(), "our-palisade-ban".into());
                if random.random_bool(0.5) {
                    stopped.waf_rule = "a-rule-group".into();
                    stopped.labels.push("awswaf:1:palisade:ours".into());
                }
                if random.random_ratio(1, 6) {
                    stopped.action = "ALLOW".into();
                }
                requests.push(stopped);
            }
        }
    };
    let begins = |random: &mut ChaCha8Rng| BEGINS_MS + random.random_range(10..10 + minutes) * MINUTE_MS;
    for client in clients {
        for _ in 0..random.random_range(1..=5) {
            let rule = terms.rules.choose(random).unwrap();
            let at = begins(random);
            burst(client, rule, at, random);
            if random.random_ratio(1, 5) {
                // Does not stop when it is banned.
                for again in 1..random.random_range(3..12) {
                    burst(client, rule, at + again * i64::from(rule.window) * MINUTE_MS, random);
                }
            }
        }
    }
    if random.random_ratio(1, 6) {
        // More clients at once than the brake lets pass, among more or less ordinary traffic.
        let (rule, at) = (terms.rules.choose(random).unwrap(), begins(random));
        for client in 0..random.random_range(9..=13) {
            let client = IpAddr::V4(Ipv4Addr::new(198, 18, 0, client));
            burst(client, rule, at, random);
        }
        for _ in 0..random.random_range(0..=150) {
            let client = IpAddr::V4(Ipv4Addr::new(198, 19, random.random(), random.random()));
            let at = at + random.random_range(-3 * MINUTE_MS..5 * MINUTE_MS);
            requests.push(anything(terms, at, client, random));
        }
    }
    requests
}

const MINUTE_MS: i64 = 60_000;
