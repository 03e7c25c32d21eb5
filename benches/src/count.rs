//! The work that is measured: Palisade's own side of it.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use analyzer::{Counter, Ledger, Minute, Policy, Tally, judge_history};
use foldhash::HashMap;
use ingest::{Request, Wants};

/// What all programs must agree on: it depends on every count, and not on their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Answer {
    /// How many triples of client, minute and action there are.
    pub(crate) groups: u64,
    /// The sum of their counts.
    pub(crate) requests: u64,
    /// The sum of the squares of their counts.
    pub(crate) squares: u64,
}

/// Requests by client, minute and action. Logs are nearly in the order of time, so there is a table for each minute and
/// action: those in use are small.
#[derive(Default)]
pub(crate) struct Bare {
    tables: Vec<Table>,
    /// The table of the last request.
    last: usize,
}

#[derive(Default)]
struct Table {
    minute: u32,
    action: String,
    counts: HashMap<IpAddr, u64>,
}

impl Bare {
    fn table(&mut self, minute: u32, action: &str) -> &mut Table {
        let is_it = |table: &Table| table.minute == minute && table.action == action;
        if !self.tables.get(self.last).is_some_and(is_it) {
            self.last = self.tables.iter().rposition(is_it).unwrap_or_else(|| {
                self.tables.push(Table {
                    minute,
                    action: action.to_owned(),
                    counts: HashMap::default(),
                });
                self.tables.len() - 1
            });
        }
        &mut self.tables[self.last]
    }

    fn count(&mut self, request: &Request<'_>) {
        let table = self.table(Minute::of_ms(request.timestamp_ms).0, &request.action);
        *table.counts.entry(request.client_ip).or_default() += 1;
    }

    fn join(&mut self, other: Bare) {
        for Table { minute, action, counts } in other.tables {
            let table = self.table(minute, &action);
            counts
                .into_iter()
                .for_each(|(client, count)| *table.counts.entry(client).or_default() += count);
        }
    }

    fn answer(&self) -> Answer {
        let counts = || self.tables.iter().flat_map(|table| table.counts.values());
        Answer {
            groups: counts().count() as u64,
            requests: counts().sum(),
            squares: counts().map(|count| count * count).sum(),
        }
    }
}

/// Counts by client, minute and action, the default policy loaded but nothing else asked of it.
///
/// # Errors
/// When a file cannot be opened.
pub(crate) fn bare(paths: &[PathBuf], threads: usize) -> io::Result<Answer> {
    let policy = Policy::default_policy();
    let wants = Wants::nothing();
    let parts = each_object(paths, threads, Bare::default, |bare, log, ahead| {
        scan(log, &wants, ahead, |request| bare.count(request));
    })?;
    drop(policy);
    let all = parts.into_iter().reduce(|mut all, part| {
        all.join(part);
        all
    });
    Ok(all.unwrap_or_default().answer())
}

/// Counts what the policy counts, and judges every minute of it. The answer holds clients, requests and bans.
///
/// # Errors
/// When a file cannot be opened.
pub(crate) fn full(policy: &Policy, paths: &[PathBuf], threads: usize) -> io::Result<Answer> {
    let tally = tally(policy, paths, threads)?;
    let mut verdicts = 0;
    judge_history(policy, &tally, Ledger::default(), |_, judgment| {
        verdicts += judgment.verdicts.len()
    });
    Ok(Answer {
        groups: tally.clients() as u64,
        requests: tally.requests(Minute(0), Minute(u32::MAX)),
        squares: verdicts as u64,
    })
}

/// Counts what the policy counts.
///
/// # Errors
/// When a file cannot be opened.
pub(crate) fn tally(policy: &Policy, paths: &[PathBuf], threads: usize) -> io::Result<Tally> {
    let (counter, wants) = (Counter::new(policy), policy.wants());
    let parts = each_object(
        paths,
        threads,
        || counter.clone(),
        |counter, log, ahead| {
            scan(log, &wants, ahead, |request| counter.count(request));
        },
    )?;
    Ok(parts
        .into_iter()
        .map(|mut counter| counter.take())
        .reduce(|mut all, part| {
            all.merge(part);
            all
        })
        .unwrap_or_default())
}

/// As a replay does: unpacked ahead where a core is to spare.
fn scan(log: File, wants: &Wants, ahead: bool, each: impl FnMut(&Request<'_>)) {
    if ahead {
        ingest::scan_ahead(log, wants, each);
    } else {
        ingest::scan_for(log, wants, each);
    }
}

/// Reads all objects on so many threads, each of which has something of its own to count with.
fn each_object<T: Send>(
    paths: &[PathBuf],
    threads: usize,
    fresh: impl Fn() -> T + Sync,
    read: impl Fn(&mut T, File, bool) + Sync,
) -> io::Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        let mut mine = fresh();
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            match File::open(path) {
                Ok(file) => read(&mut mine, file, threads >= 2 * paths.len()),
                Err(error) => *failed.lock().unwrap_or_else(|error| error.into_inner()) = Some(error),
            }
        }
        mine
    };
    let parts = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut parts = vec![work()];
        parts.extend(others.into_iter().filter_map(|other| other.join().ok()));
        parts
    });
    match failed.into_inner().unwrap_or_else(|error| error.into_inner()) {
        Some(error) => Err(error),
        None => Ok(parts),
    }
}
