//! Looks for limits in history: what clients do in their worst windows, and where a limit stands among them.
//!
//! [`tune`] does not know who attacked, and says so where history can't tell. It proposes to change a limit in two cases
//! only: a few clients stand far out and the limit is not between them and everybody else, or the limit would ban so many
//! that they can't all be attackers. In every other case it keeps what the operator wrote.

use std::collections::BTreeSet;

use crate::client::Client;
use crate::detect::{Finding, View, eager, findings};
use crate::judge::{Verdict, judge_history};
use crate::ledger::Ledger;
use crate::policy::{Brake, Field, Policy, Rule, Then};
use crate::tally::{Cell, Cells, DISTINCT_MAX, Slot, Tally, Value};
use crate::time::{Minute, Span};

/// What history says about every rule, in the policy's order. Every rule is looked at as if it were alone: with the
/// rule's ladder and share, without the other rules and without the brake.
pub fn tune(policy: &Policy, tally: &Tally) -> Vec<Tuning> {
    let worst = WorstWindows::of(policy, tally);
    let rules = policy.rules.iter().enumerate().zip(worst.rules);
    rules
        .map(|((index, rule), seen)| tuning(policy, tally, (index, rule), seen, worst.clients))
        .collect()
}

/// How many clients a limit is to ban at most, for the limits that are always shown.
pub const AT_MOST: [u64; 4] = [0, 1, 10, 100];

/// Those who stand out are few: at most this share of all clients, but three at least, for a small API has few clients
/// and one attacker all the same.
const FEW_SHARE: f64 = 0.05;
const FEW_MIN: u64 = 3;

/// Whoever stands out does at least so many times what everybody else does. Twice is what a busy morning does.
const FAR: f64 = 3.0;

/// What history says about one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuning {
    /// The rule's name.
    pub rule: String,
    /// Its limit.
    pub limit: u32,
    /// Its window.
    pub window: Span,
    /// Its share.
    pub share: Option<f64>,
    /// What distinct values it counts, if it does.
    pub distinct: Option<Field>,
    /// Ban or alert.
    pub then: Then,
    /// Clients that were counted and may be banned.
    pub clients: u64,
    /// Worst windows of the ordinary clients that matched at all, ascending: the most hits in any window of which at least
    /// the rule's share matched.
    pub ordinary: Vec<u64>,
    /// Those who stand out from everybody else, worst first.
    pub standing_out: Vec<(Client, u64)>,
    /// Clients that matched, but whose every window is spared by the rule's share, and the most hits of any.
    pub shared: (u64, u64),
    /// Clients that matched and are never banned, by the policy's allows or by their address.
    pub allowed: u64,
    /// What the rule does at the limits for [`AT_MOST`], the present and the suggested one; highest limit first.
    pub limits: Vec<Effect>,
    /// The limit that history suggests.
    pub suggestion: Suggestion,
}

impl Tuning {
    /// The hits that this share of the ordinary clients that matched stay at or below in their worst windows; zero if none
    /// matched. By the nearest rank, so that it is always what somebody did.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = (share * self.ordinary.len() as f64).ceil() as usize;
        let at = rank.clamp(1, self.ordinary.len().max(1)) - 1;
        self.ordinary.get(at).copied().unwrap_or(0)
    }

    /// Clients that matched at all.
    pub fn matched(&self) -> u64 {
        self.ordinary.len() as u64 + self.standing_out.len() as u64 + self.shared.0 + self.allowed
    }
}

/// What one rule alone would have done in these logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// With this limit.
    pub limit: u32,
    /// Clients banned at least once; those that an alert is raised for, if the rule bans nobody.
    pub clients: u64,
    /// Bans.
    pub bans: u64,
    /// Requests that the bans would have stopped.
    pub stopped: u64,
    /// Those of them that WAF allowed: what the bans cost if these clients are innocent.
    pub allowed: u64,
}

/// A limit and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// The limit; the present one where history gives no reason for another.
    pub limit: u32,
    /// Whether history could tell.
    pub grounds: Grounds,
    /// One sentence for the operator, without a full stop.
    pub because: String,
}

/// What a suggestion rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grounds {
    /// A few clients stand far out from all others.
    Gap,
    /// The present limit would ban too many for all of them to be attackers.
    TooMany,
    /// Clients matched, and nobody stands far out: history can't tell whether any of them attacks.
    NoGap,
    /// Nobody matched: history says nothing about the limit.
    NoMatch,
}

/// As programs read it: `gap`, `too-many`, `no-gap`, `no-match`.
impl std::fmt::Display for Grounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Grounds::Gap => "gap",
            Grounds::TooMany => "too-many",
            Grounds::NoGap => "no-gap",
            Grounds::NoMatch => "no-match",
        })
    }
}

fn tuning(policy: &Policy, tally: &Tally, (index, rule): (usize, &Rule), seen: Seen, clients: u64) -> Tuning {
    let mut worst = seen.worst;
    worst.sort_by(|a, b| (b.1, a.0).cmp(&(a.1, b.0)));
    let hits: Vec<u64> = worst.iter().map(|(_, hits)| *hits).collect();
    let gap = gap(&hits, clients);
    let suggestion = suggest(rule, &worst, gap, (clients, seen.shared.0 > 0));
    let mut limits: BTreeSet<u32> = AT_MOST.iter().map(|most| lowest_limit(rule, &hits, *most)).collect();
    limits.extend([rule.limit, suggestion.limit]);
    let effect = |limit| {
        let reach = hits.partition_point(|hits| *hits >= u64::from(limit));
        effect(policy, tally, (index, rule), limit, &worst[..reach])
    };
    let effects = limits.into_iter().rev().map(effect).collect();
    let (standing_out, ordinary) = worst.split_at(gap.map_or(0, |gap| gap.clients));
    Tuning {
        rule: rule.name.clone(),
        limit: rule.limit,
        window: rule.window,
        share: rule.share,
        distinct: rule.distinct.clone(),
        then: rule.then,
        clients,
        ordinary: ordinary.iter().rev().map(|(_, hits)| *hits).collect(),
        standing_out: standing_out.to_vec(),
        shared: seen.shared,
        allowed: seen.allowed,
        limits: effects,
        suggestion,
    }
}

/// Between those who stand out and everybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    /// How many stand out.
    clients: usize,
    /// The least that any of them does.
    above: u64,
    /// The most that anybody else does, zero if nobody else matched.
    below: u64,
}

fn few(clients: u64) -> u64 {
    ((clients as f64 * FEW_SHARE) as u64).max(FEW_MIN)
}

/// The widest gap below the few worst of `hits`, which descend; clients that are not among them have none.
fn gap(hits: &[u64], clients: u64) -> Option<Gap> {
    let few = usize::try_from(few(clients)).unwrap_or(usize::MAX).min(hits.len());
    let gaps = (1..=few).map(|clients| Gap {
        clients,
        above: hits[clients - 1],
        below: hits.get(clients).copied().unwrap_or(0),
    });
    let width = |gap: &Gap| gap.above as f64 / (gap.below + 1) as f64;
    gaps.filter(|gap| width(gap) >= FAR)
        .max_by(|a, b| width(a).total_cmp(&width(b)))
}

/// The lowest limit at which no more than `most` clients are banned.
fn lowest_limit(rule: &Rule, hits: &[u64], most: u64) -> u32 {
    let next = usize::try_from(most).ok().and_then(|most| hits.get(most));
    writable(rule, next.map_or(1, |hits| hits + 1))
}

/// The nearest limit that a policy may hold.
fn writable(rule: &Rule, limit: u64) -> u32 {
    let max = if rule.distinct.is_some() {
        DISTINCT_MAX as u64
    } else {
        u64::from(u32::MAX)
    };
    u32::try_from(limit.clamp(1, max)).unwrap_or(u32::MAX)
}

/// `shared`: whether the rule's share spares somebody, so that what is said of hits is not true of all windows.
fn suggest(rule: &Rule, worst: &[(Client, u64)], gap: Option<Gap>, (clients, shared): (u64, bool)) -> Suggestion {
    let present = u64::from(rule.limit);
    let verb = if rule.then == Then::Alert {
        "alerts about"
    } else {
        "bans"
    };
    let reach = worst.partition_point(|(_, hits)| *hits >= present) as u64;
    let keep = |grounds, because| Suggestion {
        limit: rule.limit,
        grounds,
        because,
    };
    let Some(((first, most), rest)) = worst.split_first() else {
        return keep(
            Grounds::NoMatch,
            "nobody matched who may be banned, so these logs say nothing about the limit".to_owned(),
        );
    };
    if let Some(Gap {
        clients: out,
        above,
        below,
    }) = gap
    {
        let others = clients.saturating_sub(out as u64);
        let they = format!(
            "{others} of {clients} clients stay at {below} or below{}, {out} {} {above} or more, and nobody is in between",
            if shared {
                " where the share does not spare them"
            } else {
                ""
            },
            if out == 1 { "reaches" } else { "reach" }
        );
        if below < present && present <= above {
            return keep(Grounds::Gap, format!("{they}: {present} stands in this gap"));
        }
        let limit = writable(rule, middle(below, above));
        if u64::from(limit) <= below {
            return keep(
                Grounds::Gap,
                format!("{they}, where no limit can stand: distinct values are counted up to {limit}"),
            );
        }
        let present = if present > above {
            format!(
                "{present} {verb} {}",
                if reach == 0 {
                    "none of them".to_owned()
                } else {
                    format!("{reach} of them")
                }
            )
        } else {
            format!("{present} {verb} {} others too", reach - out as u64)
        };
        return Suggestion {
            limit,
            grounds: Grounds::Gap,
            because: format!(
                "{they}: {limit} stands in this gap, {present}. Whether who stands out attacks is yours to judge: `palisade explain {first}`"
            ),
        };
    }
    if reach > few(clients) {
        let limit = writable(rule, most + 1);
        if u64::from(limit) <= *most {
            return keep(
                Grounds::NoGap,
                format!("the most is {most} ({first}), more than any limit: distinct values are counted up to {limit}"),
            );
        }
        return Suggestion {
            limit,
            grounds: Grounds::TooMany,
            because: format!(
                "a limit of {present} {verb} {reach} of {clients} clients, too many for all to be attackers, and no gap parts any from the rest: {limit} {verb} nobody in these logs"
            ),
        };
    }
    let second = rest.first().map_or(0, |(_, hits)| *hits);
    let most = format!("the most is {most} ({first}), then {second}");
    keep(
        Grounds::NoGap,
        if reach == 0 {
            format!(
                "a limit of {present} {verb} nobody here, and nobody stands far out ({most}): these logs can't tell whether it is right"
            )
        } else {
            format!(
                "a limit of {present} {verb} {reach} of {clients} clients, but nobody stands far out ({most}): these logs can't tell an attacker from a busy client; `palisade explain {first}` shows the worst"
            )
        },
    )
}

/// A limit between the two, as many times more than the one as less than the other, with two digits if that fits.
fn middle(below: u64, above: u64) -> u64 {
    let exact = (((below + 1) as f64) * above as f64).sqrt();
    let unit = 10f64.powf((exact.log10().floor() - 1.0).max(0.0));
    let rounded = ((exact / unit).round() * unit) as u64;
    rounded.clamp(below + 1, above)
}

/// What `rule` alone does at `limit` to the clients that can reach it.
fn effect(
    policy: &Policy,
    tally: &Tally,
    (index, rule): (usize, &Rule),
    limit: u32,
    reach: &[(Client, u64)],
) -> Effect {
    let mut effect = Effect {
        limit,
        clients: 0,
        bans: 0,
        stopped: 0,
        allowed: 0,
    };
    if reach.is_empty() {
        return effect;
    }
    let alone = Policy {
        rules: vec![Rule { limit, ..rule.clone() }],
        brake: Brake {
            new_bans: usize::MAX,
            allowed_share: f64::INFINITY,
        },
        crowd: None,
        ..policy.clone()
    };
    let part = extract(tally, (index, rule), reach.iter().map(|(client, _)| *client));
    let mut banned: BTreeSet<Client> = BTreeSet::new();
    judge_history(&alone, &part, Ledger::default(), |now, judgment| {
        for verdict in &judgment.verdicts {
            match verdict {
                Verdict::Ban(charge, sentence) => {
                    banned.insert(charge.client);
                    effect.bans += 1;
                    effect.stopped += tally.requests_of(charge.client, now, sentence.until);
                    effect.allowed += tally.allowed_of(charge.client, now, sentence.until);
                }
                Verdict::Alert(charge) => {
                    banned.insert(charge.client);
                }
                Verdict::Held(..) | Verdict::Spared(..) | Verdict::Crowd(_) => {}
            }
        }
    });
    effect.clients = banned.len() as u64;
    effect
}

/// What one rule needs to know of some clients, as if it were the only rule.
fn extract(tally: &Tally, (index, rule): (usize, &Rule), clients: impl Iterator<Item = Client>) -> Tally {
    let (slot, alone) = (Slot::of_rule(index, rule), Slot::of_rule(0, rule));
    let moved = |from: Slot| match from {
        Slot::REQUESTS | Slot::REFUSED | Slot::OURS => Some(from),
        from => (from == slot).then_some(alone),
    };
    let mut part = Tally::default();
    for client in clients {
        let Some(cells) = tally.cells(client) else { continue };
        let counts = cells.all().iter();
        let counts: Vec<Cell> = counts
            .filter_map(|cell| moved(cell.slot).map(|slot| Cell { slot, ..*cell }))
            .collect();
        let values = cells.values().iter().filter(|value| value.slot == slot);
        let values: Vec<Value> = values.map(|value| Value { slot: alone, ..*value }).collect();
        for cell in counts.iter().filter(|cell| cell.slot == Slot::REQUESTS) {
            part.minutes.entry(cell.minute).or_default().requests += u64::from(cell.hits);
        }
        part.clients.insert(client, Cells::stored(counts, values));
    }
    part
}

/// What every client did to every rule.
struct WorstWindows {
    clients: u64,
    rules: Vec<Seen>,
}

/// What clients did to one rule.
#[derive(Clone, Default)]
struct Seen {
    worst: Vec<(Client, u64)>,
    shared: (u64, u64),
    allowed: u64,
}

impl WorstWindows {
    fn of(policy: &Policy, tally: &Tally) -> WorstWindows {
        // What a share spares at every limit is no reason for any limit.
        let mut eager = eager(policy);
        for (eager, rule) in eager.rules.iter_mut().zip(&policy.rules) {
            eager.share = rule.share;
        }
        let mut all = WorstWindows {
            clients: 0,
            rules: vec![Seen::default(); policy.rules.len()],
        };
        for client in tally.clients.keys() {
            let allowed = policy.spares(*client).is_some();
            all.clients += u64::from(!allowed);
            for finding in findings(&eager, tally, *client, View::ALL) {
                let (Finding::Offense(offense) | Finding::Shared(offense)) = finding;
                let seen = &mut all.rules[offense.rule];
                match finding {
                    _ if allowed => seen.allowed += 1,
                    Finding::Offense(offense) => seen.worst.push((*client, offense.hits)),
                    Finding::Shared(offense) => seen.shared = (seen.shared.0 + 1, seen.shared.1.max(offense.hits)),
                }
            }
        }
        all
    }
}

/// The requests that our own rules stopped: what their clients would have done without, no history tells.
pub fn stopped_by_us(tally: &Tally) -> u64 {
    let clients = tally.clients.values();
    clients
        .map(|cells| cells.sum(Slot::OURS, Minute(0), Minute(u32::MAX)))
        .sum()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use ingest::Request;

    use super::*;

    const POLICY: &str = "[[rule]]\nname = \"other\"\nwhy = \"a\"\nmatch = { uri = \"/other\" }\nlimit = 1\nwindow = \"1m\"\n\
        [[rule]]\nname = \"hits\"\nwhy = \"b\"\nmatch = { uri = \"/x\" }\nlimit = LIMIT\nwindow = \"5m\"\n";

    /// Tunes a rule with the given limit on clients that hit it so many times, once a minute at most ten, among 100 clients.
    fn tuned(limit: u32, hits: &[u64]) -> Tuning {
        let policy = Policy::parse(&POLICY.replace("LIMIT", &limit.to_string())).unwrap();
        let mut tally = Tally::default();
        for client in 0..100u8 {
            let client_ip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, client));
            let hits = hits.get(usize::from(client)).copied().unwrap_or(0);
            for n in 0..=hits {
                let request = Request {
                    client_ip,
                    uri: if n == hits { "/other" } else { "/x" }.into(),
                    action: "ALLOW".into(),
                    timestamp_ms: i64::try_from(n / 10).unwrap() * 60_000,
                    ..Request::default()
                };
                tally.count(&policy, &request);
            }
        }
        let mut tunings = tune(&policy, &tally);
        assert_eq!(tunings.len(), 2);
        tunings.remove(1)
    }

    fn check(limit: u32, hits: &[u64], suggested: u32, grounds: Grounds, part: &str) {
        let Suggestion {
            limit: got,
            grounds: on,
            because,
        } = tuned(limit, hits).suggestion;
        assert_eq!((got, on), (suggested, grounds), "{because}");
        assert!(because.contains(part), "`{because}` does not say `{part}`");
    }

    #[test]
    fn a_limit_moves_only_into_a_gap_or_away_from_many_clients() {
        check(
            20,
            &[50, 40, 2, 1],
            20,
            Grounds::Gap,
            "98 of 100 clients stay at 2 or below, 2 reach 40 or more",
        );
        check(2, &[50, 40, 2, 1], 11, Grounds::Gap, "2 bans 1 others too");
        check(45, &[50, 40, 2, 1], 11, Grounds::Gap, "45 bans 1 of them");
        check(60, &[50, 40, 2, 1], 11, Grounds::Gap, "none of them");
        check(60, &[50], 7, Grounds::Gap, "`palisade explain 192.0.2.0/32`");
        // Nobody stands far out: a continuum, or so little that it may be chance.
        check(
            20,
            &[12, 9, 7, 6, 5, 4, 3, 2, 1],
            20,
            Grounds::NoGap,
            "the most is 12 (192.0.2.0/32), then 9",
        );
        check(
            8,
            &[12, 9, 7, 6, 5, 4, 3, 2, 1],
            8,
            Grounds::NoGap,
            "bans 2 of 100 clients",
        );
        check(1, &[2], 1, Grounds::NoGap, "can't tell");
        // Six of a hundred are no longer few.
        check(
            5,
            &[9, 8, 7, 6, 5, 5],
            10,
            Grounds::TooMany,
            "a limit of 5 bans 6 of 100 clients",
        );
        check(5, &[30, 30, 30, 30, 30, 30], 31, Grounds::TooMany, "31 bans nobody");
        check(5, &[], 5, Grounds::NoMatch, "nobody matched");
    }

    #[test]
    fn the_lowest_limit_for_so_many_clients_is_shown_with_what_it_costs() {
        let tuning = tuned(20, &[45, 40, 3, 3, 1]);
        let effects: Vec<(u32, u64, u64, u64)> = tuning
            .limits
            .iter()
            .map(|effect| (effect.limit, effect.clients, effect.bans, effect.allowed))
            .collect();
        // At 41 the ban begins in minute 5, when all is over; at 20 in minute 2; at 1 in minute 1.
        assert_eq!(effects, [(46, 0, 0, 0), (41, 1, 1, 0), (20, 2, 2, 47), (1, 5, 5, 67)]);
        assert_eq!(tuning.standing_out.len(), 2);
        assert_eq!(tuning.ordinary, [1, 3, 3]);
        let quantiles = [0.0, 0.3, 0.5, 0.9, 1.0].map(|share| tuning.quantile(share));
        assert_eq!(quantiles, [1, 1, 3, 3, 3]);
        assert_eq!(tuned(20, &[]).quantile(0.5), 0);
    }

    #[test]
    fn no_limit_is_suggested_that_a_policy_may_not_hold() {
        let policy =
            Policy::parse("[[rule]]\nname = \"a\"\nwhy = \"b\"\nlimit = 900\nwindow = \"10m\"\ndistinct = \"uri\"")
                .unwrap();
        let rule = &policy.rules[0];
        let client = |last: u8| Client::of(IpAddr::from([192, 0, 2, last]), 64);
        let check = |worst: &[(Client, u64)], part: &str| {
            let hits: Vec<u64> = worst.iter().map(|(_, hits)| *hits).collect();
            let suggestion = suggest(rule, worst, gap(&hits, 20), (20, false));
            assert_eq!(suggestion.limit, 900);
            assert!(suggestion.because.contains(part), "{}", suggestion.because);
        };
        let mut busy: Vec<(Client, u64)> = (1..10).map(|last| (client(last), 2_000)).collect();
        check(&busy, "more than any limit");
        busy[0].1 = 9_000;
        check(&busy, "no limit can stand");
    }

    #[test]
    fn no_brake_hides_what_a_limit_would_do_to_many_at_once() {
        let tuning = tuned(5, &[9; 30]);
        let effects: Vec<(u32, u64)> = tuning
            .limits
            .iter()
            .map(|effect| (effect.limit, effect.clients))
            .collect();
        assert_eq!(effects, [(10, 0), (5, 30), (1, 30)]);
    }

    #[test]
    fn a_middle_is_as_far_from_both_and_never_beyond_either() {
        for (below, above, expected) in [
            (0, 1, 1),
            (0, 7, 3),
            (0, 60, 8),
            (2, 80, 15),
            (428, 6_666, 1_700),
            (90, 428, 200),
        ] {
            assert_eq!(middle(below, above), expected, "{below} {above}");
        }
        for (below, above) in [(99, 101), (9, 10), (0, u64::from(u32::MAX))] {
            let middle = middle(below, above);
            assert!(below < middle && middle <= above, "{below} < {middle} <= {above}");
        }
    }
}
