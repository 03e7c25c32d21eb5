//! Runs the live loop through bad days: late logs, failing stores, killed processes, two updaters at once, people in the
//! console.
//!
//! A seed makes a world (two hours of requests, cut into log objects) and a storm over it. The real engine ticks through
//! both, over a store, logs and IP sets in memory that fail as the storm says. One call of the store, the logs or WAF is one
//! step; between any two steps another process may run, or this one may die. What must hold is in [`Run::check`] and
//! [`Run::check_calm`]; the faultless truth is a [`Replay`] of the same records.
//!
//! Who tests the simulator? [`Lie`]: wrappers that are wrong on purpose, each of which must be caught.
//!
//! A failure prints the seed; `PALISADE_SEED=… cargo test --test tests simulation` runs it alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::{pending, poll_fn, ready};
use std::io::{self, Read};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use analyzer::stored::ObjectTally;
use analyzer::{Action, Client, Ledger, Minute, Policy, Span, Verdict};
use chrono::DateTime;
use ingest::object_key;
use ipnet::IpNet;
use palisade::engine::{self, Engine, LEDGER_KEY, Set, SetsOfAction, Target, TickError, Ticked};
use palisade::logs::Logs;
use palisade::replay::{Collect, Count, Replay};
use palisade::store::{Condition, Listed, Store, StoreError, StoreErrorKind, Version};
use palisade::traffic::{HOUR_BEGINS_MS, Sent};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use updater::{Family, Fault, Faulty, IpSet, IpSetError, IpSets, LockToken, Memory, SetId};

/// How many worlds go through a storm. `PALISADE_SEEDS` says otherwise.
const STORMS: u64 = 1_000;

/// How many worlds stay calm and are compared with a replay, ban by ban.
const CALMS: u64 = 60;

/// In how many worlds every lie must have been caught.
const LIE_WORLDS: u64 = 300;

/// Minutes of traffic.
const MINUTES: u32 = 110;

/// Minutes without traffic after it: the latest object comes, the last ban ends, and everybody is forgotten.
const QUIET: u32 = 110;

/// An object comes at most so many minutes after its last request, unless it is lost.
const LATE_MAX: u32 = 10;

/// At least every so many minutes nothing fails, so that a delay has a bound.
const CALM_EVERY: u32 = 5;

const POLICY: &str = r#"
mode = "enforce"
lateness = "20m"

[ban]
ladder = LADDER
forget_after = "25m"

[crowd]
alert = false

[[allow]]
cidr = "198.51.100.0/24"
note = "office"

[[rule]]
name = "login"
why = "Tried passwords."
match = { method = "POST", uri = "/login" }
limit = 10
window = "3m"
"#;

#[test]
fn whatever_fails_nobody_is_forgotten_and_the_sets_agree_in_the_end() {
    each_seed(STORMS, |seed| Run::of(seed, true, Lie::None).go());
}

#[test]
fn a_calm_live_run_bans_as_a_replay_does() {
    each_seed(CALMS, |seed| Run::of(seed, false, Lie::None).go());
}

#[test]
fn wrappers_that_lie_are_caught() {
    for lie in Lie::ALL {
        let caught = (0..LIE_WORLDS).find_map(|seed| Run::of(seed, true, lie).go().err().map(|how| (seed, how)));
        let (seed, how) = caught.unwrap_or_else(|| panic!("{lie:?} was not caught in {LIE_WORLDS} worlds"));
        println!("seed {seed:>3}: caught {lie:?}: {how}");
    }
}

/// What a wrapper does wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    /// A ledger that can't be read is an empty one, and is saved over whatever there is.
    FailedReadIsEmpty,
    /// The ledger is saved over whatever somebody else saved.
    NoConditions,
    /// An object that breaks off ends there.
    HalfObjects,
    /// Objects that come more than five minutes late are not listed.
    LateObjectsAreLost,
    /// We do not remember which addresses are ours.
    NothingIsOurs,
    /// Only the addresses of present bans are ours.
    OnlyWantedIsOurs,
    /// An IP set that can't be read is an empty one.
    FailedSetIsEmpty,
    /// An IP set is written over whatever somebody else wrote.
    NoLocks,
    /// The sets are emptied when the tick fails.
    FailureEmpties,
}

impl Lie {
    const ALL: [Lie; 9] = [
        Lie::FailedReadIsEmpty,
        Lie::NoConditions,
        Lie::HalfObjects,
        Lie::LateObjectsAreLost,
        Lie::NothingIsOurs,
        Lie::OnlyWantedIsOurs,
        Lie::FailedSetIsEmpty,
        Lie::NoLocks,
        Lie::FailureEmpties,
    ];
}

fn each_seed(count: u64, check: impl Fn(u64) -> Result<(), String> + Sync) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let check = |seed| check(seed).unwrap_or_else(|how| panic!("{how}\nseed: PALISADE_SEED={seed}"));
    if let Some(seed) = number("PALISADE_SEED") {
        return check(seed);
    }
    let (next, count) = (AtomicU64::new(0), number("PALISADE_SEEDS").unwrap_or(count));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, SeqCst)).filter(|seed| *seed < count) {
                    check(seed);
                }
            });
        }
    });
}

// ---- The world: who sends what, and when it can be read ----

struct World {
    text: String,
    policy: Policy,
    objects: Arc<Vec<Object>>,
    attackers: BTreeSet<Client>,
    begins: Minute,
    /// Some objects come too late to be judged, so that an offense may be missed.
    lossy: bool,
}

struct Object {
    key: String,
    bytes: Arc<[u8]>,
    complete: Minute,
    arrives: Minute,
}

impl World {
    fn of(random: &mut ChaCha8Rng, stormy: bool) -> World {
        let ladder = if random.random_bool(0.5) {
            r#"["10m", "20m"]"#
        } else {
            r#"[{ for = "10m", action = "challenge" }, "15m"]"#
        };
        let text = POLICY.replace("LADDER", ladder);
        let policy = Policy::parse(&text).unwrap();
        let begins = Minute::of_ms(HOUR_BEGINS_MS);
        let mut minutes: Vec<Vec<Sent>> = vec![Vec::new(); MINUTES as usize];
        let mut attackers = BTreeSet::new();
        let mut login = |client: IpAddr, minute: u32, times: u32| {
            let Some(requests) = minutes.get_mut(minute as usize) else {
                return;
            };
            for nth in 0..times {
                let time_ms =
                    (begins.epoch_seconds() + i64::from(minute) * 60) * 1000 + i64::from(nth * 59_000 / times);
                requests.push(Sent {
                    method: "POST",
                    uri: "/login".into(),
                    ..Sent::new(time_ms, client)
                });
            }
        };
        for attacker in 0..random.random_range(1..=4) {
            let client: IpAddr = match attacker {
                3 => "2001:db8:1::1".parse().unwrap(),
                last => [192, 0, 2, 40 + last].into(),
            };
            attackers.insert(Client::of(client, 64));
            for _ in 0..random.random_range(1..=3) {
                let start = random.random_range(0..MINUTES - 6);
                for minute in start..start + random.random_range(1..=6) {
                    login(client, minute, 15);
                }
            }
        }
        // The office tries passwords all the time, and may; innocents stay far below the limit.
        for minute in 0..MINUTES {
            if minute % 20 < 3 {
                login([198, 51, 100, 7].into(), minute, 15);
            }
            for innocent in 0..4 {
                if random.random_bool(0.5) {
                    login([192, 0, 2, 200 + innocent].into(), minute, 1);
                }
            }
        }
        let lossy = stormy && random.random_bool(0.25);
        let mut objects = Vec::new();
        let mut minute = 0;
        while minute < MINUTES {
            let next = (minute + if stormy { random.random_range(1..=3) } else { 1 }).min(MINUTES);
            let mut requests: Vec<Sent> = minutes[minute as usize..next as usize].concat();
            requests.sort_by_key(|sent| sent.timestamp_ms);
            // A Firehose stream may have several shards: each minute's requests in one object, or in two.
            let parts = if stormy && random.random_bool(0.3) { 2 } else { 1 };
            for part in 0..parts {
                let mut bytes = Vec::new();
                for (number, sent) in requests.iter().enumerate().filter(|(number, _)| number % parts == part) {
                    sent.write(&mut bytes, number as u64).unwrap();
                    bytes.push(b'\n');
                }
                let time = DateTime::from_timestamp((begins + Span(minute)).epoch_seconds(), 0).unwrap();
                let key = time.format("%Y/%m/%d/%H/aws-waf-logs-api-1-%Y-%m-%d-%H-%M-%S");
                let late = match () {
                    () if !stormy => 0,
                    () if lossy && random.random_bool(0.1) => random.random_range(30..90),
                    () => random.random_range(0..=LATE_MAX),
                };
                let complete = begins + Span(next);
                objects.push(Object {
                    key: format!("{key}-{part:08}"),
                    bytes: bytes.into(),
                    complete,
                    arrives: complete + Span(late),
                });
            }
            minute = next;
        }
        World {
            text,
            policy,
            objects: Arc::new(objects),
            attackers,
            begins,
            lossy,
        }
    }

    /// Every ban of a live run in which nothing fails and nothing is late.
    fn truth(&self) -> Vec<(Minute, Client, u32, Minute)> {
        let mut count = Count::new(&self.policy);
        for object in self.objects.iter() {
            ingest::scan(&object.bytes[..], |request| count.request(request));
        }
        let replay = Replay::of(&self.policy, &count.into_tally());
        replay
            .events
            .iter()
            .filter_map(|event| ban(event.time, &event.verdict))
            .collect()
    }
}

fn ban(now: Minute, verdict: &Verdict) -> Option<(Minute, Client, u32, Minute)> {
    match verdict {
        Verdict::Ban(charge, sentence) => Some((now, charge.client, sentence.strike, sentence.until)),
        _ => None,
    }
}

// ---- A process: where its steps are, and what happens at them ----

/// What every call of a process passes through.
struct Gate {
    random: Mutex<ChaCha8Rng>,
    /// Nothing fails.
    calm: AtomicBool,
    /// It waits for another process, and would go on at once.
    stepped: AtomicBool,
    /// It was killed: its future is never polled again.
    dead: AtomicBool,
    lie: Lie,
}

/// What happens to one call.
enum Fate {
    Pass,
    Fail,
    /// It is carried out, and its answer gets lost.
    Lost,
}

impl Gate {
    fn new(seed: u64, lie: Lie) -> Arc<Gate> {
        let random = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        let (calm, stepped, dead) = Default::default();
        Arc::new(Gate {
            random,
            calm,
            stepped,
            dead,
            lie,
        })
    }

    fn chance(&self, probability: f64) -> bool {
        !self.calm.load(SeqCst) && self.random.lock().unwrap().random_bool(probability)
    }

    /// One step: lets others go first, and perhaps never returns.
    async fn step(&self) {
        let mut asked = false;
        poll_fn(|_| {
            if std::mem::replace(&mut asked, true) {
                return Poll::Ready(());
            }
            self.stepped.store(true, SeqCst);
            Poll::Pending
        })
        .await;
        if self.chance(0.01) {
            self.dead.store(true, SeqCst);
            pending::<()>().await;
        }
    }

    async fn fate(&self) -> Fate {
        self.step().await;
        match () {
            () if self.chance(0.03) => Fate::Fail,
            () if self.chance(0.03) => Fate::Lost,
            () => Fate::Pass,
        }
    }

    fn failure(&self, doing: &str) -> StoreError {
        StoreError {
            doing: doing.into(),
            kind: StoreErrorKind::Failed("the storm".into()),
        }
    }

    fn fault(&self) -> Fault {
        let error = || match self.random.lock().unwrap().random_range(0..4) {
            0 => IpSetError::OptimisticLock,
            1 => IpSetError::Throttled,
            2 => IpSetError::Denied {
                action: "wafv2:UpdateIPSet".into(),
            },
            _ => IpSetError::Internal,
        };
        match () {
            () if self.chance(0.1) => Fault::Before(error()),
            () if self.chance(0.1) => Fault::After(error()),
            () => Fault::None,
        }
    }
}

/// A bucket that survives every process.
#[derive(Default)]
struct Disk {
    values: BTreeMap<String, (Vec<u8>, Version)>,
    writes: u64,
    /// Every ledger that was ever saved.
    ledgers: Vec<Ledger>,
}

impl Disk {
    fn put(&mut self, key: &str, value: Vec<u8>, condition: &Condition) -> Result<Version, StoreError> {
        let known = self.values.get(key).map(|(_, version)| version);
        let holds = match condition {
            Condition::Always => true,
            Condition::IfAbsent => known.is_none(),
            Condition::IfUnchanged(version) => known == Some(version),
        };
        if !holds {
            return Err(StoreError {
                doing: format!("write `{key}`"),
                kind: StoreErrorKind::Conflict,
            });
        }
        self.writes += 1;
        if key == LEDGER_KEY {
            self.ledgers.push(Ledger::from_json(&value).unwrap());
        }
        let version = Version(self.writes.to_string());
        self.values.insert(key.to_owned(), (value, version.clone()));
        Ok(version)
    }
}

#[derive(Clone)]
struct FaultyStore {
    disk: Arc<Mutex<Disk>>,
    gate: Arc<Gate>,
}

impl FaultyStore {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }
}

impl Store for FaultyStore {
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        match self.gate.fate().await {
            Fate::Pass => Ok(self.disk().values.get(key).cloned()),
            _ if self.gate.lie == Lie::FailedReadIsEmpty && key == LEDGER_KEY => Ok(None),
            _ => Err(self.gate.failure("read")),
        }
    }

    async fn put(&self, key: &str, value: Vec<u8>, condition: Condition) -> Result<Version, StoreError> {
        let lie = matches!(self.gate.lie, Lie::FailedReadIsEmpty | Lie::NoConditions) && key == LEDGER_KEY;
        let condition = if lie { Condition::Always } else { condition };
        let fate = self.gate.fate().await;
        // A client that repeats a write whose answer got lost meets its own value: that is a conflict, too.
        let conflict = condition != Condition::Always && self.gate.chance(0.5);
        let kind = if conflict {
            StoreErrorKind::Conflict
        } else {
            StoreErrorKind::Failed("the storm".into())
        };
        let failure = StoreError {
            doing: format!("write `{key}`"),
            kind,
        };
        match fate {
            Fate::Pass => {}
            Fate::Fail => return Err(failure),
            Fate::Lost => return self.disk().put(key, value, &condition).and(Err(failure)),
        }
        let written = self.disk().put(key, value, &condition);
        // Once more a step: a process may die between a write and whatever comes next.
        self.gate.step().await;
        written
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let Fate::Pass = self.gate.fate().await else {
            return Err(self.gate.failure("list"));
        };
        let disk = self.disk();
        let values = disk
            .values
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix));
        Ok(values
            .map(|(key, (value, _))| Listed {
                key: key.clone(),
                size: value.len() as u64,
            })
            .collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let Fate::Pass = self.gate.fate().await else {
            return Err(self.gate.failure("delete"));
        };
        self.disk().values.remove(key);
        Ok(())
    }
}

#[derive(Clone)]
struct FaultyLogs {
    objects: Arc<Vec<Object>>,
    now: Arc<AtomicU32>,
    gate: Arc<Gate>,
}

impl Logs for FaultyLogs {
    async fn list(&self, from: Minute, to: Minute) -> Result<Vec<Listed>, StoreError> {
        let Fate::Pass = self.gate.fate().await else {
            return Err(self.gate.failure("list"));
        };
        let now = Minute(self.now.load(SeqCst));
        let lost =
            |object: &Object| self.gate.lie == Lie::LateObjectsAreLost && object.complete + Span(5) < object.arrives;
        let there = self
            .objects
            .iter()
            .filter(|object| object.arrives <= now && !lost(object));
        let held = there.filter(|object| {
            object_key::parse(&object.key).may_hold(Some(from.epoch_seconds()), Some(to.epoch_seconds()))
        });
        Ok(held
            .map(|object| Listed {
                key: object.key.clone(),
                size: object.bytes.len() as u64,
            })
            .collect())
    }

    async fn open(&self, key: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        let fate = self.gate.fate().await;
        let object = self.objects.iter().find(|object| object.key == key).unwrap();
        let bytes = io::Cursor::new(Arc::clone(&object.bytes));
        match fate {
            Fate::Pass => Ok(Box::new(bytes)),
            Fate::Fail => Err(self.gate.failure("open")),
            Fate::Lost => {
                let until = self
                    .gate
                    .random
                    .lock()
                    .unwrap()
                    .random_range(0..=object.bytes.len() as u64);
                let rest: Box<dyn Read + Send> = if self.gate.lie == Lie::HalfObjects {
                    Box::new(io::empty())
                } else {
                    Box::new(Broken)
                };
                Ok(Box::new(bytes.take(until).chain(rest)))
            }
        }
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::ConnectionReset, "the storm"))
    }
}

/// WAF, and people who edit the sets in its console.
struct Waf {
    memory: Memory,
    foreign: Mutex<BTreeSet<IpNet>>,
}

impl Waf {
    /// Somebody adds a network of their own, or takes one back.
    fn edit(&self, net: IpNet) {
        let mut foreign = self.foreign.lock().unwrap();
        let set = id(Action::Block, Family::V4);
        if foreign.remove(&net) {
            self.memory
                .edit(&set, |addresses| addresses.retain(|address| *address != net))
                .unwrap();
        } else {
            foreign.insert(net);
            self.memory.edit(&set, |addresses| addresses.push(net)).unwrap();
        }
    }

    fn addresses(&self) -> BTreeSet<(SetId, IpNet)> {
        let held = |set: SetId| {
            self.memory
                .addresses(&set)
                .unwrap()
                .into_iter()
                .map(move |net| (set.clone(), net))
        };
        SETS.into_iter()
            .flat_map(|(action, family)| held(id(action, family)))
            .collect()
    }
}

const SETS: [(Action, Family); 4] = [
    (Action::Block, Family::V4),
    (Action::Block, Family::V6),
    (Action::Challenge, Family::V4),
    (Action::Challenge, Family::V6),
];

fn id(action: Action, family: Family) -> SetId {
    SetId::new(format!("{action}-{family}"), "id")
}

fn target() -> Target {
    let set = |action, family| {
        vec![Set {
            name: id(action, family).name,
            id: "id".into(),
        }]
    };
    let sets = |action| SetsOfAction {
        v4: set(action, Family::V4),
        v6: set(action, Family::V6),
    };
    Target {
        scope: "REGIONAL".into(),
        region: None,
        block: sets(Action::Block),
        challenge: sets(Action::Challenge),
        exclusive: false,
    }
}

/// One of these a person may add: addresses nobody attacks from, one that is allowed, and a network around the attackers.
fn foreign(random: &mut ChaCha8Rng) -> IpNet {
    let nets = [
        "203.0.113.1/32",
        "203.0.113.8/29",
        "203.0.113.77/32",
        "198.51.100.7/32",
        "192.0.2.0/24",
    ];
    nets[random.random_range(0..nets.len())].parse().unwrap()
}

struct FaultySets {
    waf: Arc<Waf>,
    gate: Arc<Gate>,
}

impl FaultySets {
    /// The sets with whatever happens to the next call.
    fn next(&self) -> Faulty<&Memory> {
        let fault = self.gate.fault();
        Faulty::new(&self.waf.memory).on_get([fault.clone()]).on_update([fault])
    }
}

impl IpSets for FaultySets {
    async fn get(&self, set: &SetId) -> Result<IpSet, IpSetError> {
        self.gate.step().await;
        match self.next().get(set).await {
            Err(_) if self.gate.lie == Lie::FailedSetIsEmpty => Ok(IpSet {
                addresses: Vec::new(),
                ..self.waf.memory.get(set).await?
            }),
            got => got,
        }
    }

    async fn update(&self, set: &SetId, addresses: &[IpNet], lock: &LockToken) -> Result<(), IpSetError> {
        self.gate.step().await;
        if self.gate.chance(0.1) {
            let net = foreign(&mut self.gate.random.lock().unwrap());
            self.waf.edit(net);
        }
        let lock = match self.gate.lie {
            Lie::NoLocks => self.waf.memory.lock_token(set).unwrap(),
            _ => lock.clone(),
        };
        let updated = self.next().update(set, addresses, &lock).await;
        self.gate.step().await;
        updated
    }
}

/// A Lambda that lives for some minutes.
struct Process {
    engine: Engine<FaultyStore, FaultyLogs>,
    gate: Arc<Gate>,
}

impl Process {
    /// What the updater does every minute.
    async fn tick(&mut self, waf: Arc<Waf>, now: Minute, tallies_max: usize) -> Done {
        let tallies = AtomicUsize::new(0);
        let has_time = || tallies.fetch_add(1, SeqCst) < tallies_max;
        let ticked = self.engine.tick(now, false, has_time).await;
        let mut failures = Vec::new();
        if let Ok(ticked) = &ticked {
            let wanted = ticked.judgment.ledger.wanted(&ticked.policy, now);
            let ours = match self.gate.lie {
                Lie::NothingIsOurs => Vec::new(),
                Lie::OnlyWantedIsOurs => wanted.iter().map(|(net, _)| *net).collect(),
                _ => ticked.ours.clone(),
            };
            let sets = FaultySets {
                waf,
                gate: Arc::clone(&self.gate),
            };
            failures = target().reconcile(&sets, &wanted, &ours, |_| ready(())).await.failures;
        } else if self.gate.lie == Lie::FailureEmpties {
            let _ = waf.memory.edit(&id(Action::Block, Family::V4), Vec::clear);
        }
        Done {
            ticked: Some(ticked),
            failures,
        }
    }
}

#[derive(Default)]
struct Done {
    ticked: Option<Result<Ticked, TickError>>,
    failures: Vec<String>,
}

type Task<'a, T> = (Arc<Gate>, Pin<Box<dyn Future<Output = T> + 'a>>);

/// Runs all tasks, switching between them at their steps and nowhere else, so that a seed is a schedule. A task that was
/// killed leaves `None`.
async fn interleave<T>(random: &mut ChaCha8Rng, tasks: Vec<Task<'_, T>>) -> Vec<Option<T>> {
    let mut results: Vec<Option<T>> = tasks.iter().map(|_| None).collect();
    let mut tasks: Vec<Option<Task<'_, T>>> = tasks.into_iter().map(Some).collect();
    let mut current = 0;
    poll_fn(|context| {
        while tasks.iter().any(Option::is_some) {
            let Some((gate, task)) = &mut tasks[current] else {
                current = random.random_range(0..tasks.len());
                continue;
            };
            match task.as_mut().poll(context) {
                Poll::Ready(result) => {
                    results[current] = Some(result);
                    tasks[current] = None;
                }
                Poll::Pending if gate.dead.load(SeqCst) => tasks[current] = None,
                Poll::Pending if gate.stepped.swap(false, SeqCst) => current = random.random_range(0..tasks.len()),
                // It waits for a thread that reads a log; nobody else may go on, or the schedule would depend on it.
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    })
    .await;
    results
}

// ---- A run: the world, minute by minute ----

struct Run {
    world: World,
    random: ChaCha8Rng,
    stormy: bool,
    lie: Lie,
    disk: Arc<Mutex<Disk>>,
    waf: Arc<Waf>,
    now: Arc<AtomicU32>,
    processes: Vec<Option<Process>>,
    /// Every ban that any ledger ever had: its minute, client, strike and end.
    bans: BTreeSet<(Minute, Client, u32, Minute)>,
    ledgers_checked: usize,
}

macro_rules! ensure {
    ($holds:expr, $($why:tt)*) => {
        if !$holds {
            return Err(format!($($why)*));
        }
    };
}

impl Run {
    fn of(seed: u64, stormy: bool, lie: Lie) -> Run {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let world = World::of(&mut random, stormy);
        let waf = Waf {
            memory: Memory::new(),
            foreign: Mutex::default(),
        };
        for (action, family) in SETS {
            waf.memory.create(&id(action, family), family, &[]).unwrap();
        }
        let mut disk = Disk::default();
        disk.put(engine::POLICY_KEY, world.text.clone().into_bytes(), &Condition::Always)
            .unwrap();
        disk.ledgers.push(Ledger::default());
        Run {
            world,
            random,
            stormy,
            lie,
            disk: Arc::new(Mutex::new(disk)),
            waf: Arc::new(waf),
            now: Arc::default(),
            processes: vec![None, None],
            bans: BTreeSet::new(),
            ledgers_checked: 0,
        }
    }

    fn go(mut self) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut calm_due = CALM_EVERY;
        for minute in 1..=MINUTES + QUIET {
            calm_due -= 1;
            let calm = !self.stormy || calm_due == 0 || minute > MINUTES + QUIET / 2;
            if calm {
                calm_due = CALM_EVERY;
            }
            let now = self.world.begins + Span(minute);
            runtime
                .block_on(self.minute(now, calm))
                .map_err(|how| format!("minute {minute} ({now}): {how}"))?;
        }
        self.check_end()
    }

    fn process(&mut self) -> Process {
        let gate = Gate::new(self.random.random(), self.lie);
        let store = FaultyStore {
            disk: Arc::clone(&self.disk),
            gate: Arc::clone(&gate),
        };
        let logs = FaultyLogs {
            objects: Arc::clone(&self.world.objects),
            now: Arc::clone(&self.now),
            gate: Arc::clone(&gate),
        };
        Process {
            engine: Engine::new(store, logs),
            gate,
        }
    }

    async fn minute(&mut self, now: Minute, calm: bool) -> Result<(), String> {
        self.now.store(now.0, SeqCst);
        if self.stormy && self.random.random_bool(0.1) {
            let net = foreign(&mut self.random);
            self.waf.edit(net);
        }
        if !calm && self.random.random_bool(0.03) {
            // Somebody clears what they did not put there; the next tick that can, repairs it.
            let foreign = self.waf.foreign.lock().unwrap();
            let set = id(Action::Block, Family::V4);
            self.waf
                .memory
                .edit(&set, |addresses| addresses.retain(|net| foreign.contains(net)))
                .unwrap();
        }
        let before = (self.ledger(), self.waf.addresses());
        let dones = self.tick(now, calm).await;
        self.check(now, &before, &dones)?;
        if calm {
            let gets = self.disk.lock().unwrap().writes;
            self.check_calm(now, &dones)?;
            if now.0.is_multiple_of(4) {
                let updates = self.waf.memory.updates();
                self.tick(now, true).await;
                ensure!(
                    self.disk.lock().unwrap().writes == gets,
                    "a second tick wrote into the state"
                );
                ensure!(self.waf.memory.updates() == updates, "a second tick updated an IP set");
            }
        }
        Ok(())
    }

    /// One or two updaters tick, and objects that just came are announced, once or twice, while they do.
    async fn tick(&mut self, now: Minute, calm: bool) -> Vec<Option<Done>> {
        let both = !calm && self.random.random_bool(0.3);
        let first = self.random.random_range(0..2);
        let indexes = if both { vec![0, 1] } else { vec![first] };
        let mut ticking = Vec::new();
        for index in &indexes {
            let old = self.processes[*index]
                .take()
                .filter(|_| !self.stormy || self.random.random_bool(0.9));
            ticking.push(match old {
                Some(process) => process,
                None => self.process(),
            });
        }
        let mut announcing = Vec::new();
        for object in 0..self.world.objects.len() {
            while !calm && self.world.objects[object].arrives == now && self.random.random_bool(0.4) {
                announcing.push((self.process(), object));
            }
        }
        let mut tasks: Vec<Task<'_, Done>> = Vec::new();
        for process in &mut ticking {
            process.gate.calm.store(calm, SeqCst);
            // Of two updaters one may have begun a minute ago.
            let now = if both && self.random.random_bool(0.2) {
                now - Span::MINUTE
            } else {
                now
            };
            let tallies_max = if !calm && self.random.random_bool(0.2) {
                self.random.random_range(0..3)
            } else {
                usize::MAX
            };
            tasks.push((
                Arc::clone(&process.gate),
                Box::pin(process.tick(Arc::clone(&self.waf), now, tallies_max)),
            ));
        }
        let (policy, objects) = (&self.world.policy, &self.world.objects);
        for (process, object) in &announcing {
            let announce = async {
                let key = &objects[*object].key;
                if let Ok(tally) = engine::tally_object(&process.engine.logs, policy, key).await {
                    let key = engine::tally_key(&policy.fingerprint(), key);
                    let _ = process
                        .engine
                        .store
                        .put(&key, tally.to_bytes(), Condition::Always)
                        .await;
                }
                Done::default()
            };
            tasks.push((Arc::clone(&process.gate), Box::pin(announce)));
        }
        let mut dones = interleave(&mut self.random, tasks).await;
        dones.truncate(indexes.len());
        for (index, process) in indexes.into_iter().zip(ticking) {
            if !process.gate.dead.load(SeqCst) {
                self.processes[index] = Some(process);
            }
        }
        dones
    }

    /// The ledger in the state.
    fn ledger(&self) -> Ledger {
        self.disk.lock().unwrap().ledgers.last().cloned().unwrap_or_default()
    }

    fn wanted(&self, ledger: &Ledger, now: Minute) -> BTreeSet<(SetId, IpNet)> {
        let wanted = ledger.wanted(&self.world.policy, now);
        wanted
            .into_iter()
            .map(|(net, action)| (id(action, Family::of(&net)), net))
            .collect()
    }

    fn foreign(&self) -> BTreeSet<(SetId, IpNet)> {
        let foreign = self.waf.foreign.lock().unwrap();
        foreign
            .iter()
            .map(|net| (id(Action::Block, Family::V4), *net))
            .collect()
    }

    /// What holds after every minute, whatever failed in it.
    fn check(
        &mut self,
        now: Minute,
        before: &(Ledger, BTreeSet<(SetId, IpNet)>),
        dones: &[Option<Done>],
    ) -> Result<(), String> {
        let disk = self.disk.lock().unwrap();
        for pair in disk.ledgers[self.ledgers_checked..].windows(2) {
            check_successor(&pair[0], &pair[1], now, self.world.policy.forget_after)?;
        }
        for ledger in &disk.ledgers[self.ledgers_checked..] {
            for (client, offender) in &ledger.offenders {
                ensure!(self.world.attackers.contains(client), "{client} is banned and innocent");
                self.bans
                    .insert((offender.ban.from, *client, offender.strikes, offender.ban.until));
            }
        }
        self.ledgers_checked = disk.ledgers.len() - 1;
        drop(disk);

        let (held, foreign) = (self.waf.addresses(), self.foreign());
        missing("a foreign network was removed", &foreign, &held)?;
        let office: IpNet = "198.51.100.0/24".parse().unwrap();
        let spared = held.difference(&foreign).find(|(_, net)| office.contains(net));
        ensure!(spared.is_none(), "an allowed address is in a set: {spared:?}");

        // Who stays banned stays in the set, also when an update failed halfway.
        let mut stays = self.wanted(&before.0, now);
        let after = self.wanted(&self.ledger(), now);
        stays.retain(|entry| after.contains(entry) && before.1.contains(entry));
        missing("a set lost a ban in force", &stays, &held)?;
        if dones.iter().all(|done| {
            matches!(
                done,
                Some(Done {
                    ticked: Some(Err(_)),
                    ..
                })
            )
        }) {
            missing("a failed tick shrank a set", &before.1, &held)?;
        }
        Ok(())
    }

    /// What holds after a minute in which nothing failed.
    fn check_calm(&self, now: Minute, dones: &[Option<Done>]) -> Result<(), String> {
        for done in dones {
            let Some(Done {
                ticked: Some(Ok(ticked)),
                failures,
            }) = done
            else {
                return Err("a calm tick failed".into());
            };
            ensure!(failures.is_empty(), "calm, and yet {failures:?}");
            ensure!(ticked.summary.left == 0, "{} objects are left", ticked.summary.left);
        }
        let mut expected = self.wanted(&self.ledger(), now);
        expected.extend(self.foreign());
        let held = self.waf.addresses();
        missing("a set lacks", &expected, &held)?;
        missing("a set holds too much", &held, &expected)
    }

    /// What holds when everything is over: nobody is left, and those were banned who would have been without a storm.
    fn check_end(&self) -> Result<(), String> {
        ensure!(self.ledger().offenders.is_empty(), "somebody was never forgotten");
        self.check_tallies()?;
        let truth: BTreeSet<(Minute, Client, u32, Minute)> = self.world.truth().into_iter().collect();
        if !self.stormy {
            ensure!(truth == self.bans, "live bans {:?}\nreplayed bans {truth:?}", self.bans);
            return Ok(());
        }
        let first = |bans: &BTreeSet<(Minute, Client, u32, Minute)>| {
            let mut first = BTreeMap::new();
            for (from, client, ..) in bans {
                first.entry(*client).or_insert(*from);
            }
            first
        };
        let (truth, bans) = (first(&truth), first(&self.bans));
        ensure!(
            truth.len() == self.world.attackers.len(),
            "the world is too kind: {truth:?}"
        );
        for (client, then) in truth.iter().filter(|_| !self.world.lossy) {
            // The longest object and its delay, then the next minute in which nothing fails.
            let latest = *then + Span(3 + LATE_MAX + CALM_EVERY);
            let Some(from) = bans.get(client) else {
                return Err(format!("{client} escaped"));
            };
            ensure!(
                then <= from && *from <= latest,
                "{client} should be banned at {then}, and was at {from}"
            );
        }
        Ok(())
    }
}

impl Run {
    /// Every tally in the state is that of a whole object.
    fn check_tallies(&self) -> Result<(), String> {
        let disk = self.disk.lock().unwrap();
        for (key, (bytes, _)) in disk.values.iter().filter(|(key, _)| key.starts_with("tallies/")) {
            let tally = ObjectTally::from_bytes(bytes).unwrap();
            let object = self
                .world
                .objects
                .iter()
                .find(|object| object.key == tally.object)
                .unwrap();
            let requests = object.bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            ensure!(
                tally.requests == requests,
                "`{key}` counts {} of {requests} requests",
                tally.requests
            );
        }
        Ok(())
    }
}

/// Whether `next` may follow `ledger`: no ban in force changes, and no strike is forgotten early.
fn check_successor(ledger: &Ledger, next: &Ledger, now: Minute, forget_after: Span) -> Result<(), String> {
    for (client, old) in &ledger.offenders {
        if now >= old.ban.until + forget_after {
            continue;
        }
        let Some(new) = next.offenders.get(client) else {
            return Err(format!("{client}, banned until {}, was forgotten", old.ban.until));
        };
        let again = new.strikes == old.strikes + 1 && new.ban.from >= old.ban.until;
        ensure!(
            old == new || again,
            "the ban of {client} changed from {old:?} to {new:?}"
        );
    }
    Ok(())
}

fn missing<T: Ord + Debug>(what: &str, expected: &BTreeSet<T>, held: &BTreeSet<T>) -> Result<(), String> {
    let missing: Vec<&T> = expected.difference(held).collect();
    ensure!(missing.is_empty(), "{what}: {missing:?}");
    Ok(())
}
