//! Finds the windows that reached their limit.
//!
//! A window is as many whole minutes as the rule says, and every position of it is looked at: logs arrive late, so the
//! minute that completes a burst may be one that was judged before.

use foldhash::{HashSet, HashSetExt};

use crate::client::Client;
use crate::policy::{Policy, Rule};
use crate::tally::{Cell, Cells, Slot, Tally};
use crate::time::{Minute, Span};

/// A window that reached its limit, with its evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offense {
    /// Which rule, by its place in the policy.
    pub rule: usize,
    /// Matching requests, or distinct values, in the window.
    pub hits: u64,
    /// Matching requests in the window, also where distinct values are counted.
    pub matched: u64,
    /// All requests of the client in the window.
    pub requests: u64,
    /// The first minute of the window that had a hit.
    pub first_hit: Minute,
    /// The last one.
    pub last_hit: Minute,
}

/// What one rule makes of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The limit was reached.
    Offense(Offense),
    /// The limit was reached, but too small a share of the client's requests matched: probably several people.
    Shared(Offense),
}

/// What the rules of `policy` make of the requests that `client` made from `from` on and before `to`, in the rules' order.
/// Each rule gives the window with the most hits, the latest of equals.
pub fn findings(policy: &Policy, tally: &Tally, client: Client, from: Minute, to: Minute) -> Vec<Finding> {
    let Some(cells) = tally.cells(client) else {
        return Vec::new();
    };
    if cells.of(Slot::REQUESTS, from, to).is_empty() {
        return Vec::new();
    }
    policy
        .rules
        .iter()
        .enumerate()
        .filter_map(|(index, rule)| finding(rule, index, cells, from, to))
        .collect()
}

fn finding(rule: &Rule, index: usize, cells: &Cells, from: Minute, to: Minute) -> Option<Finding> {
    let slot = Slot::of_rule(index, rule);
    let hits = cells.of(slot, from, to);
    let limit = u64::from(rule.limit);
    if hits.iter().map(|cell| u64::from(cell.hits)).sum::<u64>() < limit {
        return None;
    }
    let mut best: Option<Finding> = None;
    windows(
        hits,
        rule.window,
        cells.of(Slot::REQUESTS, from, to),
        |within, requests| {
            let matched: u64 = within.iter().map(|cell| u64::from(cell.hits)).sum();
            if matched < limit {
                return;
            }
            let hits = if rule.distinct.is_some() {
                distinct(cells, within)
            } else {
                matched
            };
            if hits < limit {
                return;
            }
            let requests: u64 = requests.iter().map(|cell| u64::from(cell.hits)).sum();
            let (first_hit, last_hit) = (within[0].minute, within[within.len() - 1].minute);
            let offense = Offense {
                rule: index,
                hits,
                matched,
                requests,
                first_hit,
                last_hit,
            };
            let shared = rule
                .share
                .is_some_and(|share| (matched as f64) < share * (requests as f64));
            let better = match best {
                None => true,
                Some(Finding::Shared(known)) => !shared || hits >= known.hits,
                Some(Finding::Offense(known)) => !shared && hits >= known.hits,
            };
            if better {
                best = Some(if shared {
                    Finding::Shared(offense)
                } else {
                    Finding::Offense(offense)
                });
            }
        },
    );
    best
}

/// Calls `each` with the hits and the requests in every window position that ends with a hit. Any other position holds
/// the hits of one of these or fewer; all that changes is that older requests leave it, and a client that stops making
/// good requests must not become guilty by that.
fn windows(hits: &[Cell], window: Span, requests: &[Cell], mut each: impl FnMut(&[Cell], &[Cell])) {
    for (at, cell) in hits.iter().enumerate() {
        let start = Minute(cell.minute.0.saturating_sub(window.0.saturating_sub(1)));
        each(
            between(&hits[..=at], start, cell.minute),
            between(requests, start, cell.minute),
        );
    }
}

/// The cells from `start` to `end`, both included.
fn between(cells: &[Cell], start: Minute, end: Minute) -> &[Cell] {
    let first = cells.partition_point(|cell| cell.minute < start);
    let len = cells[first..].partition_point(|cell| cell.minute <= end);
    &cells[first..first + len]
}

/// How many distinct values the given cells of one rule hold together.
fn distinct(cells: &Cells, within: &[Cell]) -> u64 {
    let mut seen: HashSet<u64> = HashSet::new();
    for cell in within {
        seen.extend(cells.distinct(cell.slot, cell.minute));
    }
    seen.len() as u64
}

/// Whether any rule of `policy` could ever accuse this client, whatever its slate: some window reaches its limit.
/// Everybody else can be left out of a judgment without changing it.
pub(crate) fn suspect(policy: &Policy, cells: &Cells) -> bool {
    let end = Minute(u32::MAX);
    policy.rules.iter().enumerate().any(|(index, rule)| {
        let hits = cells.of(Slot::of_rule(index, rule), Minute(0), end);
        let total: u64 = hits.iter().map(|cell| u64::from(cell.hits)).sum();
        total >= u64::from(rule.limit) && finding(rule, index, cells, Minute(0), end).is_some()
    })
}
