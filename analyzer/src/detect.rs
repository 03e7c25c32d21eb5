//! Finds the windows that reached their limit.
//!
//! A window is as many whole minutes as the rule says, and every position of it is looked at: logs arrive late, so the
//! minute that completes a burst may be one that was judged before.

use foldhash::{HashSet, HashSetExt};

use crate::client::Client;
use crate::policy::{Engine, Policy, Rule};
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

impl Finding {
    /// Which rule, by its place in the policy.
    fn rule(&self) -> usize {
        match self {
            Finding::Offense(offense) | Finding::Shared(offense) => offense.rule,
        }
    }
}

/// The part of time in which windows are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// No window begins earlier. One that is only half in view is left alone: what it has lost may be the innocent half,
    /// and a client must not become guilty by its good requests getting old.
    pub horizon: Minute,
    /// The same for the rules that Athena counts for.
    pub long_horizon: Minute,
    /// Nothing earlier counts. A window may begin before, for what it loses is what a ban has paid for.
    pub slate: Minute,
    /// Nothing from here on counts.
    pub now: Minute,
}

impl View {
    /// All of time.
    pub const ALL: View = View {
        horizon: Minute(0),
        long_horizon: Minute(0),
        slate: Minute(0),
        now: Minute(u32::MAX),
    };

    /// As the rules see it that this engine counts for.
    fn of(self, engine: Engine) -> View {
        let horizon = match engine {
            Engine::Scan => self.horizon,
            Engine::Athena => self.long_horizon,
        };
        View { horizon, ..self }
    }

    fn from(self) -> Minute {
        self.horizon.max(self.slate)
    }
}

/// The same policy with every limit at one and no share: its [`findings`] are the worst windows of every client that
/// matched, and show how near each came to each limit.
pub fn eager(policy: &Policy) -> Policy {
    let mut eager = policy.clone();
    for rule in &mut eager.rules {
        rule.limit = 1;
        rule.share = None;
    }
    eager
}

/// What the rules of `policy` make of the requests of `client`, in the rules' order. Each rule gives the window with the
/// most hits, the latest of equals.
pub fn findings(policy: &Policy, tally: &Tally, client: Client, view: View) -> Vec<Finding> {
    let Some(cells) = tally.cells(client) else {
        return Vec::new();
    };
    let silent = |engine| {
        let (slot, view) = (Slot::REQUESTS.counted_by(engine), view.of(engine));
        cells.of(slot, view.from(), view.now).is_empty()
    };
    if silent(Engine::Scan) && silent(Engine::Athena) {
        return Vec::new();
    }
    let mut found: Vec<Finding> = rules_hit(policy, cells)
        .filter_map(|(index, rule)| finding(rule, index, cells, view))
        .collect();
    found.sort_by_key(Finding::rule);
    found
}

/// The rules that this client hit, at any time and in no order: few of many, also for a client that sends much.
fn rules_hit<'a>(policy: &'a Policy, cells: &'a Cells) -> impl Iterator<Item = (usize, &'a Rule)> {
    let of_everything = policy
        .rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| rule.counts_everything());
    let of_slots = cells.all().chunk_by(|a, b| a.slot == b.slot).filter_map(|cells| {
        let index = cells[0].slot.rule()?;
        let rule = policy.rules.get(index)?;
        // What the other engine counted for it is not asked for.
        (cells[0].slot == Slot::of_rule(index, rule).counted_by(rule.engine)).then_some((index, rule))
    });
    of_everything.chain(of_slots)
}

fn finding(rule: &Rule, index: usize, cells: &Cells, view: View) -> Option<Finding> {
    let view = view.of(rule.engine);
    let slot = Slot::of_rule(index, rule).counted_by(rule.engine);
    let hits = cells.of(slot, view.from(), view.now);
    let limit = u64::from(rule.limit);
    // No window has more distinct values than the client.
    if rule.distinct.is_some() && (cells.values().len() as u64) < limit {
        return None;
    }
    // One request may show several distinct values, in labels or repeated headers, and is one hit all the same.
    let too_few = |matched: u64| rule.distinct.is_none() && matched < limit;
    if hits.is_empty() || too_few(hits.iter().map(|cell| u64::from(cell.hits)).sum()) {
        return None;
    }
    let requests = cells.of(Slot::REQUESTS.counted_by(rule.engine), view.from(), view.now);
    let mut best: Option<Finding> = None;
    windows(hits, requests, rule.window, view.horizon, |within, requests| {
        let matched: u64 = within.iter().map(|cell| u64::from(cell.hits)).sum();
        if too_few(matched) {
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
        let shared = rule.share.is_some_and(|share| below(share, matched, requests));
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
    });
    best
}

/// Whether `part` is less than this share of `whole`; equal shares are not, also where `f64` has no exact number for them.
fn below(share: f64, part: u64, whole: u64) -> bool {
    part as f64 + 1e-6 < share * whole as f64
}

/// Calls `each` with the hits and the requests in every window position that ends with a hit and does not begin before
/// `horizon`. Any other position holds the hits of one of these or fewer; all that changes is that older requests leave
/// it, and a client that stops making good requests must not become guilty by that.
fn windows(hits: &[Cell], requests: &[Cell], window: Span, horizon: Minute, mut each: impl FnMut(&[Cell], &[Cell])) {
    for (at, cell) in hits.iter().enumerate() {
        let start = Minute(cell.minute.0.saturating_sub(window.0.saturating_sub(1)));
        if start >= horizon {
            each(
                between(&hits[..=at], start, cell.minute),
                between(requests, start, cell.minute),
            );
        }
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
    rules_hit(policy, cells).any(|(index, rule)| finding(rule, index, cells, View::ALL).is_some())
}
