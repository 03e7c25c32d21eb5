//! Decides what to write into which IP set.
//!
//! [`plan`] is the only place where anything is decided about the content of a set. It is pure and total: the same
//! wanted addresses and the same observed content, in whatever order WAF listed it, give the same plan. Planned again
//! on its own result it has nothing left to write.

use std::collections::BTreeSet;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use ipnet::IpNet;

use crate::network::{Coverage, aggregate, canonical, longest_start_that_fits, span};
use crate::{ADDRESSES_MAX, Family, IpSet, LockToken, SetId};

/// Compares what is wanted with what was observed.
///
/// - `wanted` comes most deserving first. At the cap, those at the end go first.
/// - `ours` is everything we ever put into the sets and still remember, in force or not. It is how we tell our own
///   expired entries, which go, from foreign ones, which stay.
/// - `observed` are the sets of one family in the order in which to fill them.
///
/// Of `wanted` and `ours` each plan takes its own family and ignores the other, so that the caller can hand the same
/// lists to both. A set of the other family, and the repetition of a set, are ignored too.
///
/// **Foreign** is an observed network with at least one address that neither `ours` nor `wanted` covers. A foreign
/// network stays as it is, in its set, and counts against the quota; a wanted address inside of it gets its own entry
/// all the same, so that our ban does not end with somebody else's edit.
///
/// **At the cap**, when the list does not fit into the first set, it is aggregated: fewer networks, exactly the same
/// addresses, never one more. What still does not fit spills into the next sets, and what fits nowhere is
/// [`Plan::overflow`].
///
/// **Stability**: an entry never moves from one set to another, so one more ban rewrites one set. It follows that a
/// later set is not emptied into an earlier one that got room again.
pub fn plan(wanted: &[IpNet], ours: &[IpNet], observed: &[(SetId, IpSet)], options: &Options) -> Plan {
    plan_within(ADDRESSES_MAX, wanted, ours, observed, options)
}

/// How to plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Which addresses this plan is about.
    pub family: Family,
    /// The sets are ours alone: foreign networks are removed instead of kept.
    pub exclusive: bool,
}

/// What to write, and what to tell people. `held + room` is the quota of all sets together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Only the sets whose content differs, in the order in which to write them.
    pub writes: Vec<Write>,
    /// Networks somebody else put there, sorted. They were kept, or, with [`Options::exclusive`], removed.
    pub foreign: Vec<IpNet>,
    /// Wanted, but in no set: most deserving first. Also `0.0.0.0/0` and `::/0`, which no set can hold.
    pub overflow: Vec<IpNet>,
    /// How many more entries fit.
    pub room: usize,
    /// How many entries the sets hold once the plan is applied, foreign ones included.
    pub held: usize,
}

/// The new content of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Where to.
    pub set: SetId,
    /// All of it, sorted, without host bits and duplicates.
    pub addresses: Vec<IpNet>,
    /// Proves that nobody changed the set since it was observed.
    pub lock_token: LockToken,
    /// What is new in this set, sorted.
    pub added: Vec<IpNet>,
    /// What is gone from this set, sorted.
    pub removed: Vec<IpNet>,
}

/// [`plan`] with a quota small enough to be looked at in a test.
pub(crate) fn plan_within(
    addresses_max: usize,
    wanted: &[IpNet],
    ours: &[IpNet],
    observed: &[(SetId, IpSet)],
    options: &Options,
) -> Plan {
    let (mut wanted, mut overflow) = holdable(wanted, options.family);
    let ours: Vec<IpNet> = ours
        .iter()
        .map(canonical)
        .filter(|network| fits(network, options.family))
        .collect();
    let known = Coverage::of(wanted.iter().chain(&ours));
    let mut shards = shards(addresses_max, observed, &known, options);

    let foreign: BTreeSet<IpNet> = shards.iter().flat_map(|shard| &shard.foreign).copied().collect();
    let quota = addresses_max * shards.len();
    let room_for_ours: usize = shards.iter().map(|shard| shard.room).sum();
    let room_in_the_first = shards.first().map_or(0, |shard| shard.room);

    if wanted.len() > room_in_the_first {
        let (entries, left_over) = aggregate_what_fits(&wanted, room_for_ours);
        wanted = entries;
        overflow.extend(left_over);
    }
    let room = room_for_ours - wanted.len();
    distribute(wanted, &mut shards);

    Plan {
        writes: in_safe_order(shards.into_iter().filter_map(Shard::write)),
        foreign: foreign.into_iter().collect(),
        overflow,
        room,
        held: quota.saturating_sub(room),
    }
}

/// Whether a set of this family can hold the network.
fn fits(network: &IpNet, family: Family) -> bool {
    Family::of(network) == family && network.prefix_len() > 0
}

/// The canonical networks of one family in their given order, each once; and those of them that no set can hold.
fn holdable(networks: &[IpNet], family: Family) -> (Vec<IpNet>, Vec<IpNet>) {
    let mut seen = HashSet::with_capacity(networks.len());
    networks
        .iter()
        .map(canonical)
        .filter(|network| Family::of(network) == family && seen.insert(*network))
        .partition(|network| fits(network, family))
}

/// The aggregate of the longest start of `wanted` that fits, and what it does not cover.
fn aggregate_what_fits(wanted: &[IpNet], room: usize) -> (Vec<IpNet>, Vec<IpNet>) {
    let all = aggregate(wanted);
    if all.len() <= room {
        return (all, Vec::new());
    }
    let (start, rest) = wanted.split_at(longest_start_that_fits(wanted, &all, room));
    let entries = aggregate(start);
    let covered = Coverage::of(&entries);
    let left_over = rest
        .iter()
        .copied()
        .filter(|network| !covered.contains(network))
        .collect();
    (entries, left_over)
}

/// One set on its way from what it holds to what it shall hold.
struct Shard {
    set: SetId,
    lock_token: LockToken,
    /// Observed, sorted.
    before: Vec<IpNet>,
    foreign: Vec<IpNet>,
    /// To be written: the foreign networks that stay, then ours.
    after: Vec<IpNet>,
    /// How many more entries fit into `after`.
    room: usize,
}

fn shards(addresses_max: usize, observed: &[(SetId, IpSet)], known: &Coverage, options: &Options) -> Vec<Shard> {
    let mut seen = HashSet::new();
    observed
        .iter()
        .filter(|(set, ip_set)| ip_set.family == options.family && seen.insert(set))
        .map(|(set, ip_set)| {
            // Not `canonical`: a v4-mapped network in an IPv6 set is foreign and must stay what it is, because WAF
            // would refuse its IPv4 form there. What no set can hold was not really observed.
            let addresses = ip_set.addresses.iter().map(IpNet::trunc);
            let before = sorted(addresses.filter(|network| fits(network, options.family)));
            let foreign: Vec<IpNet> = known.missing(&before).copied().collect();
            let after = if options.exclusive { Vec::new() } else { foreign.clone() };
            Shard {
                set: set.clone(),
                lock_token: ip_set.lock_token.clone(),
                room: addresses_max.saturating_sub(after.len()),
                before,
                foreign,
                after,
            }
        })
        .collect()
}

/// Gives every entry a shard. The entries fit: their number is at most the room of all shards together.
fn distribute(entries: Vec<IpNet>, shards: &mut [Shard]) {
    let mut homes: HashMap<IpNet, usize> = HashMap::new();
    for (index, shard) in shards.iter().enumerate() {
        for network in &shard.before {
            // So far `after` is the foreign networks that stay, in order.
            if shard.after.binary_search(network).is_err() {
                homes.entry(*network).or_insert(index);
            }
        }
    }

    // First those that are there already, so that no newcomer takes their place.
    let mut newcomers = Vec::new();
    for entry in entries {
        match homes.get(&entry) {
            Some(&index) if shards[index].room > 0 => {
                homes.remove(&entry);
                shards[index].take(entry);
            }
            _ => newcomers.push(entry),
        }
    }

    // What is left in `homes` goes. Where an entry replaces parts of itself, or a part replaces its whole, it should
    // do so in the same set and thus in the same write: between two writes somebody could be let through whose ban
    // has not ended.
    let mut leaving: Vec<_> = homes.iter().map(|(network, &index)| (span(network), index)).collect();
    leaving.sort_unstable();
    newcomers.retain(|entry| match home_of(entry, &leaving) {
        Some(index) if shards[index].room > 0 => {
            shards[index].take(*entry);
            false
        }
        _ => true,
    });

    let mut newcomers = newcomers.into_iter();
    for shard in shards {
        let room = shard.room;
        newcomers.by_ref().take(room).for_each(|entry| shard.take(entry));
    }
}

/// The first shard that loses a part of `entry`, or else the one that loses a network around it.
fn home_of(entry: &IpNet, leaving: &[((u128, u128), usize)]) -> Option<usize> {
    let (first, last) = span(entry);
    let from = leaving.partition_point(|((start, _), _)| *start < first);
    let inside = leaving[from..]
        .iter()
        .take_while(|((start, _), _)| *start <= last)
        .map(|(_, index)| *index)
        .min();
    let around = || {
        leaving[..from]
            .last()
            .filter(|((_, end), _)| *end >= last)
            .map(|(_, index)| *index)
    };
    inside.or_else(around)
}

/// Sorts the writes so that addresses which change sets, as an entry is split or united, are added before they are
/// removed. Sets that wait for each other, which takes nested entries in different sets, keep their own order.
fn in_safe_order(writes: impl Iterator<Item = Write>) -> Vec<Write> {
    let mut pending: Vec<(Coverage, Write)> = writes.map(|write| (Coverage::of(&write.added), write)).collect();
    let mut ordered = Vec::with_capacity(pending.len());
    while !pending.is_empty() {
        let waits = |index: usize| {
            let others = pending.iter().enumerate().filter(|(other, _)| *other != index);
            let removed = &pending[index].1.removed;
            others
                .into_iter()
                .any(|(_, (added, _))| removed.iter().any(|network| added.overlaps(network)))
        };
        let next = (0..pending.len()).find(|&index| !waits(index)).unwrap_or(0);
        ordered.push(pending.remove(next).1);
    }
    ordered
}

impl Shard {
    fn take(&mut self, entry: IpNet) {
        self.after.push(entry);
        self.room -= 1;
    }

    /// Nothing, if the set holds what it shall hold.
    fn write(self) -> Option<Write> {
        let addresses = sorted(self.after.into_iter());
        if addresses == self.before {
            return None;
        }
        Some(Write {
            added: missing_from(&self.before, &addresses),
            removed: missing_from(&addresses, &self.before),
            set: self.set,
            addresses,
            lock_token: self.lock_token,
        })
    }
}

fn sorted(networks: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = networks.collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}

/// The networks of `these` that are not among `others`; both are sorted.
fn missing_from(others: &[IpNet], these: &[IpNet]) -> Vec<IpNet> {
    let mut others = others.iter().peekable();
    let is_missing = |network: &&IpNet| {
        while others.next_if(|other| *other < *network).is_some() {}
        others.peek() != Some(network)
    };
    these.iter().filter(is_missing).copied().collect()
}

#[cfg(test)]
mod tests;
