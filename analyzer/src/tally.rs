//! Counts requests: per client, rule and minute.
//!
//! A tally says nothing about limits, windows or bans, so it outlives changes of those. Merging is addition, and the order
//! of requests, objects and merges never shows: that is why per-minute sets are kept as their smallest hashes.
//! A log object that is delivered twice must be merged once; whoever merges knows the objects' identities.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;

use foldhash::{HashMap, HashSet};
use ingest::Request;
use xxhash_rust::xxh64::xxh64;

use crate::client::Client;
use crate::crowd::{SAMPLE_MAX, Sample, Trait};
use crate::detect::suspect;
use crate::policy::{Engine, Policy, Rule};
use crate::time::Minute;

/// The most distinct values kept per client, rule and minute, and so the highest limit of a `distinct` rule.
pub const DISTINCT_MAX: usize = 1_024;

/// What is counted in a cell: two things about every client, then one per rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub(crate) u16);

impl Slot {
    /// Requests that our own rules did not stop.
    pub const REQUESTS: Slot = Slot(0);
    /// Those of them that WAF did not allow.
    pub const REFUSED: Slot = Slot(1);
    /// Requests that our own rules stopped; they count for nothing else.
    pub const OURS: Slot = Slot(2);

    /// The hits of the `index`-th rule; a rule that counts everything shares the slot of all requests.
    pub fn of_rule(index: usize, rule: &Rule) -> Slot {
        // `RULES_MAX` keeps the sum far below the type's end.
        if rule.counts_everything() {
            Slot::REQUESTS
        } else {
            Slot(3 + index as u16)
        }
    }

    /// The same as `engine` counted it for the live loop. What Athena counted has slots of its own, because the requests of
    /// the last minutes are also in the tallies of their objects.
    pub(crate) fn counted_by(self, engine: Engine) -> Slot {
        match engine {
            Engine::Scan => self,
            Engine::Athena => Slot(ATHENA_SLOTS | self.0),
        }
    }

    /// The place of the rule whose hits these are, if they are those of one rule.
    pub(crate) fn rule(self) -> Option<usize> {
        usize::from(self.0 & !ATHENA_SLOTS).checked_sub(3)
    }
}

/// From here on slots are Athena's; far behind the last rule's.
const ATHENA_SLOTS: u16 = 0x8000;

/// What is kept of a text. XXH64 because its values never change, and because Athena and Trino have it too (`xxhash64`), so
/// that either engine keeps the same smallest hashes.
pub(crate) fn hash(text: &[u8]) -> u64 {
    xxh64(text, 0)
}

/// How many hits a client had in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// What was counted.
    pub slot: Slot,
    /// When.
    pub minute: Minute,
    /// How many; saturates.
    pub hits: u32,
}

/// One distinct value that a client showed a rule in one minute, as its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Value {
    pub(crate) slot: Slot,
    pub(crate) minute: Minute,
    pub(crate) hash: u64,
}

/// What one request is to one client.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hit {
    /// One more in a cell.
    Request { slot: Slot, minute: Minute },
    /// A distinct value.
    Value(Value),
}

/// The cells of one client, ordered by slot and minute, and the distinct values in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cells {
    cells: Vec<Cell>,
    /// Ascending. Of each cell the smallest hashes, [`DISTINCT_MAX`] at most, so that what is kept depends on the set alone.
    values: Vec<Value>,
}

impl Cells {
    pub(crate) fn add(&mut self, slot: Slot, minute: Minute, hits: u32) {
        match self
            .cells
            .binary_search_by_key(&(slot, minute), |cell| (cell.slot, cell.minute))
        {
            Ok(at) => self.cells[at].hits = self.cells[at].hits.saturating_add(hits),
            Err(at) => self.cells.insert(at, Cell { slot, minute, hits }),
        }
    }

    pub(crate) fn add_value(&mut self, value: Value) {
        let Err(at) = self.values.binary_search(&value) else {
            return;
        };
        // Where all values together are few, those of one cell are.
        if self.values.len() < DISTINCT_MAX {
            return self.values.insert(at, value);
        }
        let cell = (value.slot, value.minute);
        let start = self.values[..at].partition_point(|known| (known.slot, known.minute) < cell);
        if at - start >= DISTINCT_MAX {
            return;
        }
        self.values.insert(at, value);
        let len = self.values[start..].partition_point(|known| (known.slot, known.minute) <= cell);
        if len > DISTINCT_MAX {
            self.values.remove(start + len - 1);
        }
    }

    fn merge(&mut self, other: Cells) {
        if other.cells.len() < self.cells.len() / 8 {
            other
                .cells
                .iter()
                .for_each(|cell| self.add(cell.slot, cell.minute, cell.hits));
            other.values.into_iter().for_each(|value| self.add_value(value));
            return;
        }
        // Much comes in: one pass over both is cheaper than many insertions.
        let mut cells: Vec<Cell> = Vec::with_capacity(self.cells.len() + other.cells.len());
        merge_sorted(
            &self.cells,
            &other.cells,
            |cell| (cell.slot, cell.minute),
            |cell| match cells.last_mut() {
                Some(last) if (last.slot, last.minute) == (cell.slot, cell.minute) => {
                    last.hits = last.hits.saturating_add(cell.hits)
                }
                _ => cells.push(cell),
            },
        );
        cells.shrink_to_fit();
        self.cells = cells;
        if !other.values.is_empty() {
            let mut kept = Kept::default();
            kept.values.reserve(self.values.len() + other.values.len());
            merge_sorted(&self.values, &other.values, |value| *value, |value| kept.push(value));
            let mut values = kept.values;
            values.shrink_to_fit();
            self.values = values;
        }
    }

    /// The hashes of the distinct values in one cell, ascending.
    pub(crate) fn distinct(&self, slot: Slot, minute: Minute) -> impl Iterator<Item = u64> {
        let start = self
            .values
            .partition_point(|value| (value.slot, value.minute) < (slot, minute));
        self.values[start..]
            .iter()
            .take_while(move |value| (value.slot, value.minute) == (slot, minute))
            .map(|value| value.hash)
    }

    /// The cells of `slot` from `from` on and before `to`, by minute.
    pub fn of(&self, slot: Slot, from: Minute, to: Minute) -> &[Cell] {
        let start = self
            .cells
            .partition_point(|cell| (cell.slot, cell.minute) < (slot, from));
        let len = self.cells[start..].partition_point(|cell| (cell.slot, cell.minute) < (slot, to));
        &self.cells[start..start + len]
    }

    /// The hits of `slot` from `from` on and before `to`.
    pub fn sum(&self, slot: Slot, from: Minute, to: Minute) -> u64 {
        self.of(slot, from, to).iter().map(|cell| u64::from(cell.hits)).sum()
    }

    /// Every distinct value, ascending.
    pub(crate) fn values(&self) -> &[Value] {
        &self.values
    }

    /// What was counted, in order: one hit for each of these, and these values, of which a cell may have too many.
    pub(crate) fn counted(hits: impl Iterator<Item = (Slot, Minute)>, values: impl Iterator<Item = Value>) -> Cells {
        let mut cells = Cells::default();
        for (slot, minute) in hits {
            match cells.cells.last_mut() {
                Some(last) if (last.slot, last.minute) == (slot, minute) => last.hits = last.hits.saturating_add(1),
                _ => cells.cells.push(Cell { slot, minute, hits: 1 }),
            }
        }
        let mut kept = Kept::default();
        values.for_each(|value| kept.push(value));
        cells.values = kept.values;
        cells
    }

    /// What was stored, put back in order.
    pub(crate) fn stored(mut cells: Vec<Cell>, mut values: Vec<Value>) -> Cells {
        cells.sort_unstable_by_key(|cell| (cell.slot, cell.minute));
        values.sort_unstable();
        Cells { cells, values }
    }

    /// Every cell, ordered by slot and minute.
    pub fn all(&self) -> &[Cell] {
        &self.cells
    }
}

/// Values that come in order, without those that are too many for their cell.
#[derive(Default)]
struct Kept {
    values: Vec<Value>,
    /// Where the last cell's values begin.
    cell_begins: usize,
}

impl Kept {
    fn push(&mut self, value: Value) {
        if let Some(last) = self.values.last() {
            if *last == value {
                return;
            }
            if (last.slot, last.minute) != (value.slot, value.minute) {
                self.cell_begins = self.values.len();
            }
        }
        if self.values.len() - self.cell_begins < DISTINCT_MAX {
            self.values.push(value);
        }
    }
}

/// What everybody did in one minute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MinuteTotals {
    /// Requests that our own rules did not stop.
    pub requests: u64,
    /// Those of them that WAF allowed.
    pub allowed: u64,
    /// Some of the clients, chosen by their hash, with what their requests looked like.
    pub(crate) sample: Sample,
}

/// Hits per client, rule and minute.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    pub(crate) clients: HashMap<Client, Cells>,
    pub(crate) minutes: BTreeMap<Minute, MinuteTotals>,
    /// The texts behind the hashes in the samples.
    pub(crate) texts: HashMap<u64, Box<str>>,
    /// Requests without a client: the trusted hop of the forwarded header held no address.
    pub unattributed: u64,
    /// The first and the last minute of requests by clients that are left out.
    pub(crate) left_out: Option<(Minute, Minute)>,
}

impl Tally {
    /// Counts one request. For many requests, [`Counter`](crate::Counter) does the same faster.
    pub fn count(&mut self, policy: &Policy, request: &Request<'_>) {
        let all = || 0..policy.rules.len();
        self.count_asking(policy, request, all, |clients, client, hit| {
            let cells = clients.entry(client).or_default();
            match hit {
                Hit::Request { slot, minute } => cells.add(slot, minute, 1),
                Hit::Value(value) => cells.add_value(value),
            }
        });
    }

    /// Notes what one request is to the minutes, and hands what it is to its client to `put`, asking only some of the rules.
    #[inline]
    pub(crate) fn count_asking<I: Iterator<Item = usize>>(
        &mut self,
        policy: &Policy,
        request: &Request<'_>,
        rules: impl FnOnce() -> I,
        mut put: impl FnMut(&mut HashMap<Client, Cells>, Client, Hit),
    ) {
        let Some(client) = policy.client.client_of(request) else {
            self.unattributed += 1;
            return;
        };
        let minute = Minute::of_ms(request.timestamp_ms);
        let clients = &mut self.clients;
        if policy.ours.stopped(request) {
            let slot = Slot::OURS;
            return put(clients, client, Hit::Request { slot, minute });
        }
        let allowed = request.allowed();
        let slots = [Some(Slot::REQUESTS), (!allowed).then_some(Slot::REFUSED)];
        for slot in slots.into_iter().flatten() {
            put(clients, client, Hit::Request { slot, minute });
        }
        for index in rules() {
            let rule = &policy.rules[index];
            if rule.counts_everything() || !rule.counts(request) {
                continue;
            }
            let slot = Slot::of_rule(index, rule);
            put(clients, client, Hit::Request { slot, minute });
            if let Some(field) = &rule.distinct {
                field.any(request, |value| {
                    let hash = hash(value.as_bytes());
                    put(clients, client, Hit::Value(Value { slot, minute, hash }));
                    false
                });
            }
        }
        let totals = self.minutes.entry(minute).or_default();
        totals.requests += 1;
        totals.allowed += u64::from(allowed);
        totals.sample.count(client, request, &mut self.texts);
        self.forget_texts();
    }

    /// Adds the cells of one client, counted elsewhere.
    pub(crate) fn put(&mut self, client: Client, cells: Cells) {
        match self.clients.entry(client) {
            Entry::Vacant(entry) => {
                entry.insert(cells);
            }
            Entry::Occupied(mut entry) => entry.get_mut().merge(cells),
        }
    }

    /// Forgets the texts that no sample refers to any more, once they are many: clients leave samples, their texts stay.
    fn forget_texts(&mut self) {
        let referred_max = self.minutes.len() * SAMPLE_MAX * Trait::ALL.len();
        if self.texts.len() > 2 * referred_max {
            let referred: HashSet<u64> = self.minutes.values().flat_map(|totals| totals.sample.texts()).collect();
            self.texts.retain(|hash, _| referred.contains(hash));
        }
    }

    /// Adds what `other` counted under the same policy.
    pub fn merge(&mut self, other: Tally) {
        if self.clients.is_empty() && self.minutes.is_empty() {
            let (unattributed, left_out) = (self.unattributed, self.left_out);
            *self = other;
            self.unattributed += unattributed;
            self.left_out = both(self.left_out, left_out);
            return;
        }
        for (client, cells) in other.clients {
            self.put(client, cells);
        }
        for (minute, totals) in other.minutes {
            let sum = self.minutes.entry(minute).or_default();
            sum.requests += totals.requests;
            sum.allowed += totals.allowed;
            sum.sample.merge(totals.sample);
        }
        self.texts.extend(other.texts);
        self.forget_texts();
        self.unattributed += other.unattributed;
        self.left_out = both(self.left_out, other.left_out);
    }

    /// Compares two tallies of the same requests, cell by cell.
    ///
    /// # Errors
    /// The first difference. Texts of traits that no sample refers to make none.
    pub fn differs(&self, other: &Tally) -> Result<(), String> {
        let cells = |tally: &Tally| -> BTreeMap<Client, Cells> {
            tally
                .clients
                .iter()
                .map(|(client, cells)| (*client, cells.clone()))
                .collect()
        };
        let (ours, theirs) = (cells(self), cells(other));
        for client in ours.keys().chain(theirs.keys()) {
            let (ours, theirs) = (ours.get(client), theirs.get(client));
            if ours != theirs {
                return Err(format!("{client}: {ours:?} and {theirs:?}"));
            }
        }
        for minute in self.minutes.keys().chain(other.minutes.keys()) {
            let (ours, theirs) = (self.minutes.get(minute), other.minutes.get(minute));
            if ours != theirs {
                return Err(format!("{minute}: {ours:?} and {theirs:?}"));
            }
            for text in ours.iter().flat_map(|totals| totals.sample.texts()) {
                let (ours, theirs) = (self.texts.get(&text), other.texts.get(&text));
                if ours != theirs {
                    return Err(format!("{text:016x}: {ours:?} and {theirs:?}"));
                }
            }
        }
        if self.unattributed != other.unattributed || self.period() != other.period() {
            let of = |tally: &Tally| (tally.unattributed, tally.period());
            return Err(format!("{:?} and {:?}", of(self), of(other)));
        }
        Ok(())
    }

    /// How many clients were counted.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Every client with its cells, in no order.
    pub fn all_clients(&self) -> impl Iterator<Item = (Client, &Cells)> {
        self.clients.iter().map(|(client, cells)| (*client, cells))
    }

    /// Every minute in which a request counted, with what everybody did in it; ascending.
    pub fn all_minutes(&self) -> impl Iterator<Item = (Minute, &MinuteTotals)> {
        self.minutes.iter().map(|(minute, totals)| (*minute, totals))
    }

    /// The cells of one client.
    pub fn cells(&self, client: Client) -> Option<&Cells> {
        self.clients.get(&client)
    }

    /// The first and the last minute in which anybody's request was counted, ours or not.
    pub fn period(&self) -> Option<(Minute, Minute)> {
        let minutes = self
            .clients
            .values()
            .flat_map(|cells| cells.all())
            .map(|cell| cell.minute);
        let counted = minutes.fold(None, |period, minute| match period {
            None => Some((minute, minute)),
            Some((first, last)) => Some((minute.min(first), minute.max(last))),
        });
        both(counted, self.left_out)
    }

    /// The last minute in which anybody's request counted.
    pub fn newest(&self) -> Option<Minute> {
        self.minutes.last_key_value().map(|(minute, _)| *minute)
    }

    /// The requests of everybody from `from` on and before `to`, without those that our rules stopped.
    pub fn requests(&self, from: Minute, to: Minute) -> u64 {
        self.minutes
            .range(from..to.max(from))
            .map(|(_, totals)| totals.requests)
            .sum()
    }

    /// The allowed requests of everybody from `from` on and before `to`.
    pub fn allowed(&self, from: Minute, to: Minute) -> u64 {
        self.minutes
            .range(from..to.max(from))
            .map(|(_, totals)| totals.allowed)
            .sum()
    }

    /// The allowed requests of one client from `from` on and before `to`.
    pub fn allowed_of(&self, client: Client, from: Minute, to: Minute) -> u64 {
        self.clients.get(&client).map_or(0, |cells| {
            cells.sum(Slot::REQUESTS, from, to) - cells.sum(Slot::REFUSED, from, to)
        })
    }

    /// All requests of one client from `from` on and before `to`, those that our rules already stopped included.
    pub fn requests_of(&self, client: Client, from: Minute, to: Minute) -> u64 {
        self.clients.get(&client).map_or(0, |cells| {
            cells.sum(Slot::REQUESTS, from, to) + cells.sum(Slot::OURS, from, to)
        })
    }

    /// The same tally without the clients that no rule of `policy` could ever accuse. Leaving them out changes no judgment.
    pub fn suspects(&self, policy: &Policy) -> Tally {
        self.with_only(|_, cells| suspect(policy, cells))
    }

    /// The same tally without the clients that `keep` refuses; what everybody did stays.
    pub fn with_only(&self, keep: impl Fn(Client, &Cells) -> bool) -> Tally {
        let clients: HashMap<Client, Cells> = self
            .clients
            .iter()
            .filter(|(client, cells)| keep(**client, cells))
            .map(|(client, cells)| (*client, cells.clone()))
            .collect();
        Tally {
            clients,
            minutes: self.minutes.clone(),
            texts: self.texts.clone(),
            unattributed: self.unattributed,
            left_out: self.period(),
        }
    }
}

/// The period that spans two.
fn both(one: Option<(Minute, Minute)>, other: Option<(Minute, Minute)>) -> Option<(Minute, Minute)> {
    match (one, other) {
        (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
        _ => one.or(other),
    }
}

/// Hands the items of two ascending lists to `each`, in ascending order.
fn merge_sorted<T: Copy, K: Ord>(a: &[T], b: &[T], key: impl Fn(&T) -> K, mut each: impl FnMut(T)) {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let from_a = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) => key(x) <= key(y),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return,
        };
        if let Some(item) = if from_a { a.next() } else { b.next() } {
            each(*item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ever_new_paths_do_not_fill_the_memory() {
        let policy = Policy::parse("").unwrap();
        let mut tally = Tally::default();
        for n in 0..100_000 {
            let client_ip = std::net::IpAddr::from([192, 0, 2, (n % 256) as u8]);
            tally.count(
                &policy,
                &Request {
                    client_ip,
                    uri: format!("/{n}").into(),
                    ..Request::default()
                },
            );
        }
        assert!(
            tally.texts.len() <= 2 * SAMPLE_MAX * Trait::ALL.len(),
            "{}",
            tally.texts.len()
        );
        for sighting in tally.minutes.values().flat_map(|totals| totals.sample.texts()) {
            assert!(tally.texts.contains_key(&sighting));
        }
    }
}
