//! Replays history: log objects become one tally, and the live judge runs over it once per minute of log time.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

use analyzer::{Client, Counter, Ledger, Minute, Policy, Tally, Verdict, judge_history};
use ingest::{Request, Scan, Skipped, Wants};
use xxhash_rust::xxh3::Xxh3;

use crate::inputs::{Begun, Inputs, LogObject, Problem, describe};

/// A part of history, in milliseconds since the epoch: `from` included, `to` not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Period {
    /// Nothing earlier.
    pub from_ms: Option<i64>,
    /// Nothing from here on.
    pub to_ms: Option<i64>,
}

impl Period {
    /// The same in whole seconds, for the times in keys.
    pub fn seconds(&self) -> (Option<i64>, Option<i64>) {
        let floor = |ms: i64| ms.div_euclid(1000);
        (self.from_ms.map(floor), self.to_ms.map(floor))
    }

    /// Whether a request of this time belongs to it.
    pub fn holds(&self, timestamp_ms: i64) -> bool {
        self.from_ms.is_none_or(|from| timestamp_ms >= from) && self.to_ms.is_none_or(|to| timestamp_ms < to)
    }
}

/// Receives every request of the period: one collector an object, joined as the objects are read.
pub trait Collect: Send {
    /// What it looks at in a request.
    fn wants(&self) -> Wants {
        Wants::everything()
    }
    /// Takes note of one request.
    fn request(&mut self, request: &Request<'_>);
    /// Does beforehand what joining would do while other threads wait. Changes nothing that is collected.
    fn settle(&mut self) {}
    /// Takes over what another collector noted. The order of calls must not show.
    fn join(&mut self, other: Self)
    where
        Self: Sized;
}

/// What reading all objects gave.
#[derive(Debug, Default)]
pub struct Reading<C> {
    /// What was collected.
    pub collected: C,
    /// Objects read, each delivery once.
    pub objects: u64,
    /// Objects with the very bytes of another one: a second delivery, not counted again.
    pub duplicates: u64,
    /// Objects left out because of their key's time.
    pub pruned: u64,
    /// Requests in the period.
    pub requests: u64,
    /// Requests in the period and outside.
    pub all_requests: u64,
    /// Records that could not be read.
    pub skipped: Skipped,
    /// Bytes after decompression.
    pub bytes: u64,
    /// Objects that could not be read, or not to their end.
    pub problems: Vec<Problem>,
    /// The first and the last request's time, in milliseconds since the epoch.
    pub times_ms: Option<(i64, i64)>,
}

/// Who is told how far the reading is.
pub trait Progress: Sync {
    /// An object was read: its size as stored, and the requests in it.
    fn object(&self, bytes: u64, requests: u64);
}

/// Tells nobody.
impl Progress for () {
    fn object(&self, _bytes: u64, _requests: u64) {}
}

/// So many objects are fetched for each thread while it reads another: a connection to S3 brings some 80 MB/s, and a thread
/// reads about as much.
const FETCHES_PER_THREAD: usize = 2;

/// Reads all objects on `threads` threads. `fresh` makes an empty collector.
pub fn read<C: Collect>(
    inputs: &Inputs,
    period: Period,
    threads: usize,
    progress: &impl Progress,
    fresh: impl Fn() -> C + Sync,
) -> Reading<C> {
    // Objects that are far away are fetched before a thread is free for them.
    let waiting = Mutex::new((inputs.objects.iter(), VecDeque::new()));
    let next = || {
        let mut guard = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (rest, begun) = &mut *guard;
        let missing = (1 + threads * FETCHES_PER_THREAD).saturating_sub(begun.len());
        begun.extend(rest.take(missing).map(|object| (object, object.begin())));
        begun.pop_front()
    };
    let spare_threads = threads >= 2 * inputs.objects.len();
    // One collection for all threads: each would see most of the clients, and memory would grow with the threads.
    let all = Mutex::new((Reading::empty(fresh()), HashSet::new()));
    let work = || {
        while let Some((object, begun)) = next() {
            let (mut here, identity) = read_object(object, begun, period, spare_threads, fresh());
            here.collected.settle();
            progress.object(object.size(), here.requests);
            let mut guard = all.lock().unwrap_or_else(PoisonError::into_inner);
            let (all, known) = &mut *guard;
            // An object that is delivered twice has the same bytes, whatever it is called.
            let anything = here.all_requests > 0 || here.skipped.total() > 0;
            if anything && identity.is_some_and(|identity| !known.insert(identity)) {
                all.duplicates += 1;
            } else {
                all.join(here);
            }
        }
    };
    let threads = threads.clamp(1, inputs.objects.len().max(1));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let (mut all, _) = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.pruned = inputs.pruned;
    all.problems.extend(inputs.problems.iter().cloned());
    all.problems.sort();
    all
}

impl<C> Reading<C> {
    /// The same with something else made of what was collected.
    pub fn map<D>(self, make: impl FnOnce(C) -> D) -> Reading<D> {
        Reading {
            collected: make(self.collected),
            objects: self.objects,
            duplicates: self.duplicates,
            pruned: self.pruned,
            requests: self.requests,
            all_requests: self.all_requests,
            skipped: self.skipped,
            bytes: self.bytes,
            problems: self.problems,
            times_ms: self.times_ms,
        }
    }
}

/// What tells one object's bytes from another's: their number and hash.
pub(crate) type Identity = (u64, u128);

fn read_object<C: Collect>(
    object: &LogObject,
    begun: Begun<'_>,
    period: Period,
    spare_thread: bool,
    collected: C,
) -> (Reading<C>, Option<Identity>) {
    let mut here = Reading::empty(collected);
    let wants = here.collected.wants();
    let each = |request: &Request<'_>| {
        if period.holds(request.timestamp_ms) {
            here.requests += 1;
            let (first, last) = here.times_ms.unwrap_or((request.timestamp_ms, request.timestamp_ms));
            here.times_ms = Some((first.min(request.timestamp_ms), last.max(request.timestamp_ms)));
            here.collected.request(request);
        }
    };
    let (scan, identity) = match begun {
        Begun::Stdin => scan_identified(io::stdin(), &wants, spare_thread, each),
        Begun::Remote(fetch) => match fetch.open() {
            Ok(log) => scan_identified(log, &wants, spare_thread, each),
            Err(error) => {
                let what = error.to_string();
                here.problems.push(Problem {
                    object: object.name(),
                    what,
                });
                return (here, None);
            }
        },
        Begun::File(path) => match File::open(path) {
            Ok(file) => scan_identified(file, &wants, spare_thread, each),
            Err(error) => {
                here.problems.push(Problem {
                    object: object.name(),
                    what: describe(&error),
                });
                return (here, None);
            }
        },
    };
    here.objects = 1;
    here.all_requests = scan.requests;
    here.skipped = scan.skipped;
    here.bytes = scan.bytes;
    if let Some(stop) = scan.stopped {
        here.problems.push(Problem {
            object: object.name(),
            what: stop.to_string(),
        });
    }
    (here, Some(identity))
}

impl<C: Collect> Reading<C> {
    fn empty(collected: C) -> Reading<C> {
        Reading {
            collected,
            objects: 0,
            duplicates: 0,
            pruned: 0,
            requests: 0,
            all_requests: 0,
            skipped: Skipped::default(),
            bytes: 0,
            problems: Vec::new(),
            times_ms: None,
        }
    }

    fn join(&mut self, other: Reading<C>) {
        self.collected.join(other.collected);
        self.objects += other.objects;
        self.duplicates += other.duplicates;
        self.requests += other.requests;
        self.all_requests += other.all_requests;
        self.skipped += other.skipped;
        self.bytes += other.bytes;
        self.problems.extend(other.problems);
        self.times_ms = match (self.times_ms, other.times_ms) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
    }
}

/// Scans an object and says which it is, on two threads if one is to spare.
pub(crate) fn scan_identified(
    log: impl Read + Send,
    wants: &Wants,
    spare_thread: bool,
    each: impl FnMut(&Request<'_>),
) -> (Scan, Identity) {
    struct Identified<R> {
        inner: R,
        bytes: u64,
        hash: Xxh3,
    }
    impl<R: Read> Read for Identified<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.inner.read(buffer)?;
            self.bytes += read as u64;
            self.hash.update(&buffer[..read]);
            Ok(read)
        }
    }
    let mut identified = Identified {
        inner: log,
        bytes: 0,
        hash: Xxh3::new(),
    };
    let scan = if spare_thread {
        ingest::scan_ahead(&mut identified, wants, each)
    } else {
        ingest::scan_for(&mut identified, wants, each)
    };
    (scan, (identified.bytes, identified.hash.digest128()))
}

/// Counts what a policy counts.
pub struct Count<'p> {
    counter: Counter<'p>,
    /// What others counted.
    joined: Tally,
}

impl<'p> Count<'p> {
    /// Nothing counted yet.
    pub fn new(policy: &'p Policy) -> Count<'p> {
        Count::by(Counter::new(policy))
    }

    /// Nothing counted yet, for who counts many objects and made the policy ready before.
    pub fn by(counter: Counter<'p>) -> Count<'p> {
        Count {
            counter,
            joined: Tally::default(),
        }
    }

    /// The counts.
    pub fn into_tally(mut self) -> Tally {
        self.joined.merge(self.counter.take());
        self.joined
    }
}

impl Collect for Count<'_> {
    fn wants(&self) -> Wants {
        self.counter.policy().wants()
    }

    fn request(&mut self, request: &Request<'_>) {
        self.counter.count(request);
    }

    fn settle(&mut self) {
        self.joined.merge(self.counter.take());
    }

    fn join(&mut self, other: Self) {
        self.joined.merge(other.into_tally());
    }
}

/// One verdict of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The minute of the judgment.
    pub time: Minute,
    /// What was decided.
    pub verdict: Verdict,
    /// The requests that the ban would have stopped, also those that our own rules did stop; zero for other verdicts.
    pub stopped: u64,
}

/// What the live judge would have decided, minute by minute.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Replay {
    /// In the order of time.
    pub events: Vec<Event>,
    /// What would be known at the end.
    pub ledger: Ledger,
}

impl Replay {
    /// Judges everything in `tally`, beginning with nobody banned.
    pub fn of(policy: &Policy, tally: &Tally) -> Replay {
        let mut events = Vec::new();
        let ledger = judge_history(policy, tally, Ledger::default(), |time, judgment| {
            for verdict in &judgment.verdicts {
                let stopped = match verdict {
                    Verdict::Ban(charge, sentence) => tally.requests_of(charge.client, time, sentence.until),
                    _ => 0,
                };
                events.push(Event {
                    time,
                    verdict: verdict.clone(),
                    stopped,
                });
            }
        });
        Replay { events, ledger }
    }

    /// How many bans, clients banned at least once, and requests stopped.
    pub fn totals(&self) -> Totals {
        totals(&self.events)
    }
}

/// The sums over some verdicts.
pub fn totals(events: &[Event]) -> Totals {
    let mut totals = Totals::default();
    let mut clients: BTreeSet<Client> = BTreeSet::new();
    for event in events {
        match &event.verdict {
            Verdict::Ban(charge, _) => {
                totals.bans += 1;
                totals.stopped += event.stopped;
                clients.insert(charge.client);
            }
            Verdict::Held(..) => totals.held += 1,
            Verdict::Spared(..) => totals.spared += 1,
            Verdict::Alert(..) | Verdict::Crowd(..) => totals.alerts += 1,
        }
    }
    totals.banned_clients = clients.len() as u64;
    totals
}

/// Sums over a replay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bans imposed.
    pub bans: u64,
    /// Clients banned at least once.
    pub banned_clients: u64,
    /// Requests that the bans would have stopped.
    pub stopped: u64,
    /// Offenses spared.
    pub spared: u64,
    /// Offenses held by the brake.
    pub held: u64,
    /// Alerts raised.
    pub alerts: u64,
}
