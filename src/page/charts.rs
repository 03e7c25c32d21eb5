//! The numbers behind a page's pictures: the timeline, the rates of clients under each rule, and what one client did.
//!
//! Everything here is counted from the tally that was judged, so that a picture and a verdict never disagree. Every list
//! has a limit: a longer time or a wider range makes its steps longer, not the page.

use analyzer::tally::{Cell, Cells, Slot};
use analyzer::{Client, Finding, Minute, Policy, Span, Tally, Verdict, View, eager, findings};
use serde::Serialize;

use crate::replay::Event;

/// The most steps of a timeline: about as many as a wide screen can show.
const STEPS_MAX: u32 = 480;

/// The most steps of what one client did; many clients have one.
const CLIENT_STEPS_MAX: u32 = 60;

/// Requests over time, in steps of equal length. Every request is in exactly one of the three lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// When the first step begins, in seconds since the epoch.
    pub from_s: i64,
    /// How long a step is, in seconds.
    pub step_s: u32,
    /// Requests that WAF allowed and no ban would have stopped.
    pub allowed: Vec<u64>,
    /// Requests that WAF refused, or our own rules stopped, outside of the bans drawn here.
    pub blocked: Vec<u64>,
    /// Requests that a ban would have stopped, whatever WAF did with them.
    pub stopped: Vec<u64>,
    /// Bans in force: the most at once within the step.
    pub bans: Vec<u32>,
}

impl Timeline {
    /// Counts `tally` over time, with the bans among `events` drawn on it.
    pub fn of(tally: &Tally, events: &[Event]) -> Timeline {
        let Some(steps) = tally.period().map(|(first, last)| Steps::over(first, last, STEPS_MAX)) else {
            return Timeline::default();
        };
        let (mut allowed, mut blocked, mut stopped) = (steps.zeros(), steps.zeros(), steps.zeros());
        for (minute, totals) in tally.all_minutes() {
            let at = steps.index(minute);
            allowed[at] += totals.allowed;
            blocked[at] += totals.requests - totals.allowed;
        }
        let hits = |cell: &Cell| u64::from(cell.hits);
        for (_, cells) in tally.all_clients() {
            for cell in cells.of(Slot::OURS, Minute(0), Minute(u32::MAX)) {
                blocked[steps.index(cell.minute)] += hits(cell);
            }
        }
        let mut bans = Vec::new();
        for (client, from, until) in bans_of(events) {
            bans.push((from, until));
            let Some(cells) = tally.cells(client) else { continue };
            // A client's slate sees to it that its bans never overlap, so nothing is moved twice.
            for cell in cells.of(Slot::REQUESTS, from, until) {
                let at = steps.index(cell.minute);
                stopped[at] += hits(cell);
                allowed[at] = allowed[at].saturating_sub(hits(cell));
            }
            for cell in cells.of(Slot::REFUSED, from, until) {
                let at = steps.index(cell.minute);
                allowed[at] += hits(cell);
                blocked[at] = blocked[at].saturating_sub(hits(cell));
            }
            for cell in cells.of(Slot::OURS, from, until) {
                let at = steps.index(cell.minute);
                stopped[at] += hits(cell);
                blocked[at] = blocked[at].saturating_sub(hits(cell));
            }
        }
        Timeline {
            from_s: steps.first.epoch_seconds(),
            step_s: steps.step.0 * 60,
            allowed,
            blocked,
            stopped,
            bans: in_force(&steps, &bans),
        }
    }
}

/// The bans among `events`: who, from when, until when.
fn bans_of(events: &[Event]) -> impl Iterator<Item = (Client, Minute, Minute)> {
    events.iter().filter_map(|event| match &event.verdict {
        Verdict::Ban(charge, sentence) => Some((charge.client, event.time, sentence.until)),
        _ => None,
    })
}

/// For each step the most bans at once within it.
fn in_force(steps: &Steps, bans: &[(Minute, Minute)]) -> Vec<u32> {
    let mut changes: Vec<(Minute, i64)> = Vec::new();
    for (from, until) in bans {
        changes.push((*from, 1));
        changes.push((*until, -1));
    }
    // Ends before beginnings: a ban does not hold in the minute it ends.
    changes.sort_unstable();
    let mut most = vec![0u32; steps.count];
    let (mut now, mut at) = (0i64, 0);
    for (index, most) in most.iter_mut().enumerate() {
        let begin = steps.begin(index);
        let end = begin + steps.step;
        // What ends as the step begins does not hold in it.
        while at < changes.len() && changes[at].0 <= begin {
            now += changes[at].1;
            at += 1;
        }
        *most = u32::try_from(now).unwrap_or(0);
        while at < changes.len() && changes[at].0 < end {
            now += changes[at].1;
            at += 1;
            *most = (*most).max(u32::try_from(now).unwrap_or(0));
        }
    }
    most
}

/// Equal steps from one minute to another.
struct Steps {
    first: Minute,
    step: Span,
    count: usize,
}

impl Steps {
    fn over(first: Minute, last: Minute, most: u32) -> Steps {
        let minutes = last.since(first).0.saturating_add(1);
        // Steps that people count in; beyond a day, as many days as it takes.
        let nice = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440];
        let step = nice
            .into_iter()
            .find(|step| minutes.div_ceil(*step) < most)
            .unwrap_or_else(|| minutes.div_ceil(most).div_ceil(1440) * 1440);
        let first = Minute(first.0 - first.0 % step);
        let count = (last.since(first).0 / step + 1) as usize;
        Steps {
            first,
            step: Span(step),
            count,
        }
    }

    fn index(&self, minute: Minute) -> usize {
        ((minute.since(self.first).0 / self.step.0) as usize).min(self.count - 1)
    }

    fn begin(&self, index: usize) -> Minute {
        self.first + Span(self.step.0 * u32::try_from(index).unwrap_or(u32::MAX))
    }

    fn zeros(&self) -> Vec<u64> {
        vec![0; self.count]
    }
}

/// How high each client's rate was under one rule: the most hits it had in any window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rates {
    /// The rule's name.
    pub rule: String,
    /// The rule's limit, drawn into the picture.
    pub limit: u32,
    /// The rule's window.
    pub window: String,
    /// Requests that matched.
    pub matched: u64,
    /// Clients with at least one hit.
    pub clients: u64,
    /// Clients whose worst window reached the limit, whatever the judge made of it.
    pub reached: u64,
    /// The most hits of a client below the limit.
    pub highest_below: u64,
    /// The most hits of any client.
    pub highest: u64,
    /// How many clients had so many hits: from, up to and without, clients. The limit is always the beginning of one.
    pub bins: Vec<(u64, u64, u64)>,
}

impl Rates {
    /// The rates under every rule of `policy`, in its order.
    pub fn of(policy: &Policy, tally: &Tally) -> Vec<Rates> {
        let eager = eager(policy);
        let mut hits: Vec<Vec<u64>> = vec![Vec::new(); policy.rules.len()];
        let mut matched = vec![0u64; policy.rules.len()];
        for (client, cells) in tally.all_clients() {
            for ((at, rule), matched) in policy.rules.iter().enumerate().zip(&mut matched) {
                *matched += cells.sum(Slot::of_rule(at, rule), Minute(0), Minute(u32::MAX));
            }
            for finding in findings(&eager, tally, client, View::ALL) {
                let (Finding::Offense(offense) | Finding::Shared(offense)) = finding;
                hits[offense.rule].push(offense.hits);
            }
        }
        let rules = policy.rules.iter().zip(hits).zip(matched);
        rules
            .map(|((rule, hits), matched)| {
                let limit = u64::from(rule.limit);
                let below = hits.iter().filter(|hits| **hits < limit);
                Rates {
                    rule: rule.name.clone(),
                    limit: rule.limit,
                    window: rule.window.to_string(),
                    matched,
                    clients: hits.len() as u64,
                    reached: hits.iter().filter(|hits| **hits >= limit).count() as u64,
                    highest_below: below.copied().max().unwrap_or(0),
                    highest: hits.iter().copied().max().unwrap_or(0),
                    bins: bins(&hits, limit),
                }
            })
            .collect()
    }
}

/// Ten bins a decade (the preferred numbers R10 of ISO 3), single numbers at the beginning, and one that begins at the limit.
fn bins(hits: &[u64], limit: u64) -> Vec<(u64, u64, u64)> {
    let Some(highest) = hits.iter().max() else {
        return Vec::new();
    };
    let end = (*highest).max(limit) + 1;
    let mut edges = vec![limit];
    for decade in 0..18 {
        for r10 in [10, 12, 16, 20, 25, 31, 40, 50, 63, 80] {
            let edge = 10u64.pow(decade) * r10 / 10;
            if edge < end {
                edges.push(edge);
            }
        }
    }
    edges.sort_unstable();
    edges.dedup();
    let mut bins: Vec<(u64, u64, u64)> = edges
        .iter()
        .zip(edges.iter().skip(1).copied().chain([u64::MAX]))
        .map(|(from, to)| (*from, to, 0))
        .collect();
    if let Some(last) = bins.last_mut() {
        last.1 = end;
    }
    for hits in hits {
        let at = bins.partition_point(|(from, _, _)| from <= hits).saturating_sub(1);
        bins[at].2 += 1;
    }
    bins
}

/// What one client did over its own time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Activity {
    /// When the first step begins, in seconds since the epoch.
    pub from_s: i64,
    /// How long a step is, in seconds.
    pub step_s: u32,
    /// Requests that WAF allowed.
    pub allowed: Vec<u64>,
    /// Requests that WAF refused or our own rules stopped.
    pub blocked: Vec<u64>,
}

impl Activity {
    /// Counts one client's cells over time.
    pub fn of(cells: &Cells) -> Activity {
        let minutes = || cells.all().iter().map(|cell| cell.minute);
        let (Some(first), Some(last)) = (minutes().min(), minutes().max()) else {
            return Activity::default();
        };
        let steps = Steps::over(first, last, CLIENT_STEPS_MAX);
        let (mut allowed, mut blocked) = (steps.zeros(), steps.zeros());
        for cell in cells.all() {
            let (at, hits) = (steps.index(cell.minute), u64::from(cell.hits));
            match cell.slot {
                Slot::REQUESTS => allowed[at] += hits,
                Slot::REFUSED | Slot::OURS => blocked[at] += hits,
                _ => {}
            }
        }
        // Refused requests are requests too, and are taken out once all are counted: cells come slot by slot.
        for cell in cells.of(Slot::REFUSED, Minute(0), Minute(u32::MAX)) {
            let at = steps.index(cell.minute);
            allowed[at] = allowed[at].saturating_sub(u64::from(cell.hits));
        }
        Activity {
            from_s: steps.first.epoch_seconds(),
            step_s: steps.step.0 * 60,
            allowed,
            blocked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_the_beginning_of_a_bin_and_every_client_is_in_one() {
        let rates = bins(&[1, 1, 2, 19, 20, 21, 7_000], 20);
        assert!(rates.iter().any(|(from, _, _)| *from == 20));
        assert_eq!(rates.iter().map(|(_, _, clients)| clients).sum::<u64>(), 7);
        let below: u64 = rates.iter().filter(|(from, _, _)| *from < 20).map(|bin| bin.2).sum();
        assert_eq!(below, 4);
        assert!(rates.windows(2).all(|pair| pair[0].1 == pair[1].0), "{rates:?}");
        assert_eq!(bins(&[], 20), []);
        assert_eq!(bins(&[3], 20).last(), Some(&(20, 21, 0)));
    }

    #[test]
    fn a_year_of_minutes_is_still_one_screen() {
        for minutes in [1, 59, 481, 5_000, 1_000_000] {
            let steps = Steps::over(Minute(77), Minute(77 + minutes), STEPS_MAX);
            assert!(steps.count <= STEPS_MAX as usize, "{minutes}: {}", steps.count);
            assert_eq!(steps.index(Minute(77 + minutes)), steps.count - 1);
            assert!(steps.begin(steps.index(Minute(77))) <= Minute(77));
            assert!(steps.begin(steps.index(Minute(77))) + steps.step > Minute(77));
        }
    }

    #[test]
    fn a_ban_that_ends_when_another_begins_is_not_counted_beside_it() {
        let steps = Steps::over(Minute(0), Minute(59), STEPS_MAX);
        let most = in_force(
            &steps,
            &[
                (Minute(5), Minute(10)),
                (Minute(10), Minute(12)),
                (Minute(11), Minute(90)),
            ],
        );
        assert_eq!(
            (most[4], most[5], most[10], most[11], most[12], most[59]),
            (0, 1, 1, 2, 1, 1)
        );
    }
}
