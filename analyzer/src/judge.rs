//! Decides who is banned.
//!
//! [`judge()`] is the only place where we ban anybody on our own. It reads no clock and talks to nobody: the same policy,
//! tally, ledger and minute give the same judgment, live, in replay and in the simulator.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::client::Client;
use crate::crowd::{Crowd, crowd};
use crate::detect::{Finding, Offense, View, findings};
use crate::ledger::{Action, Ban, Episode, Ledger, Offender};
use crate::policy::{Policy, Rule, Then};
use crate::tally::Tally;
use crate::time::{Minute, Span};

/// From how many new bans in one run on the brake looks at their share of the allowed requests. A flooder alone may well
/// be most of the traffic, and is exactly who must go; ten clients at once who are a fifth of it look like a wrong limit.
pub const BRAKE_CLIENTS_MIN: usize = 10;

/// What one minute's judgment decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgment {
    /// What we know from now on.
    pub ledger: Ledger,
    /// What is new this minute: bans by rank, then held, spared, alerts.
    pub verdicts: Vec<Verdict>,
}

/// One decision and its cause.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// A ban begins.
    Ban(Charge, Sentence),
    /// An offense goes unpunished until the brake is released; the reason.
    Held(Charge, String),
    /// An offense goes unpunished; the reason.
    Spared(Charge, String),
    /// An offense against a rule that only alerts.
    Alert(Charge),
    /// The shape that bans cannot stop.
    Crowd(Crowd),
}

/// Who offended against which rule, and the evidence.
#[derive(Debug, Clone, PartialEq)]
pub struct Charge {
    /// Who.
    pub client: Client,
    /// The rule's name.
    pub rule: String,
    /// The rule's limit.
    pub limit: u32,
    /// The rule's window.
    pub window: Span,
    /// The window that reached the limit.
    pub offense: Offense,
    /// Other rules that the client offended against at the same time, by name.
    pub also: Vec<String>,
}

/// What a ban consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sentence {
    /// Which strike it is, from one.
    pub strike: u32,
    /// The first minute without the ban.
    pub until: Minute,
    /// Block or challenge.
    pub action: Action,
}

/// Judges everything that is known before the minute `now`.
///
/// Looks at requests of the horizon, `policy.horizon()` back from `now`, that are older than `now` and not older than
/// the client's slate. Clients whose ban is in force are left alone.
pub fn judge(policy: &Policy, tally: &Tally, ledger: &Ledger, now: Minute) -> Judgment {
    let mut next = Ledger {
        going_on: BTreeSet::new(),
        ..ledger.clone()
    };
    next.forget(policy, now);

    let horizon_begins = now - policy.horizon();
    let long_horizon = now - policy.long_horizon().unwrap_or_default();
    let mut candidates: Vec<(Charge, Sentence, &Rule)> = Vec::new();
    let mut spared: Vec<(Charge, String)> = Vec::new();
    let mut alerts: Vec<Charge> = Vec::new();
    for client in tally.clients.keys() {
        // A client's slate begins when its last ban ends: nobody is punished twice for one burst.
        let slate = next
            .offenders
            .get(client)
            .map_or(Minute(0), |offender| offender.ban.until);
        if now < slate {
            continue;
        }
        let found = findings(
            policy,
            tally,
            *client,
            View {
                horizon: horizon_begins,
                long_horizon,
                slate,
                now,
            },
        );
        if found.is_empty() {
            continue;
        }
        let strike = next
            .offenders
            .get(client)
            .map_or(1, |offender| offender.strikes.saturating_add(1));
        let case = Case {
            policy,
            client: *client,
            strike,
            now,
            found,
        };
        // An alert harms nobody, so it is raised for an allowed client too: the operator's own test, say.
        alerts.extend(case.alerts());
        if let Some(because) = ledger.spares(policy, *client, now) {
            spared.extend(case.any_charge().map(|charge| (charge, because)));
            continue;
        }
        match case.worst() {
            Some(candidate) => candidates.push(candidate),
            None => spared.extend(case.spared_by_share()),
        }
    }

    // Worst first, so that what the brake holds back is the least. Nothing in the order depends on how the tally was made.
    candidates.sort_by_key(|(charge, _, rule)| {
        (
            Reverse(rule.severity),
            Reverse(charge.offense.last_hit),
            Reverse(charge.offense.hits),
            charge.client,
        )
    });
    let mut verdicts = Vec::new();
    let mut held: Vec<(Charge, String)> = Vec::new();
    match too_much_harm(policy, tally, &candidates, horizon_begins, now) {
        Some(because) => held.extend(candidates.into_iter().map(|(charge, _, _)| (charge, because.clone()))),
        None => {
            for (rank, (charge, sentence, rule)) in candidates.into_iter().enumerate() {
                if rank >= policy.brake.new_bans {
                    held.push((
                        charge,
                        format!("brake: more than {} new bans in one run", policy.brake.new_bans),
                    ));
                    continue;
                }
                let ban = Ban {
                    rule: charge.rule.clone(),
                    action: sentence.action,
                    from: now,
                    until: sentence.until,
                    severity: rule.severity,
                    hits: charge.offense.hits,
                    last_hit: charge.offense.last_hit,
                };
                next.offenders.insert(
                    charge.client,
                    Offender {
                        strikes: sentence.strike,
                        ban,
                    },
                );
                verdicts.push(Verdict::Ban(charge, sentence));
            }
        }
    }

    // What goes on from minute to minute is said when it begins.
    let mut begins = |episode: Episode| {
        let new = !ledger.going_on.contains(&episode);
        next.going_on.insert(episode);
        new
    };
    held.sort_by_key(|(charge, _)| charge.client);
    spared.sort_by_key(|(charge, _)| charge.client);
    alerts.sort_by(|a, b| (a.client, &a.rule).cmp(&(b.client, &b.rule)));
    for (charge, because) in held {
        if begins(Episode::Held(charge.client)) {
            verdicts.push(Verdict::Held(charge, because));
        }
    }
    for (charge, because) in spared {
        if begins(Episode::Spared(charge.client, charge.rule.clone())) {
            verdicts.push(Verdict::Spared(charge, because));
        }
    }
    for charge in alerts {
        if begins(Episode::Alert(charge.client, charge.rule.clone())) {
            verdicts.push(Verdict::Alert(charge));
        }
    }
    if let Some(crowd) = policy
        .crowd
        .as_ref()
        .and_then(|limit| crowd(limit, tally, policy.horizon(), now))
        && begins(Episode::Crowd)
    {
        verdicts.push(Verdict::Crowd(crowd));
    }
    Judgment { ledger: next, verdicts }
}

/// Why all new bans of this run must wait, or `None`.
fn too_much_harm(
    policy: &Policy,
    tally: &Tally,
    candidates: &[(Charge, Sentence, &Rule)],
    from: Minute,
    now: Minute,
) -> Option<String> {
    if candidates.len() < BRAKE_CLIENTS_MIN {
        return None;
    }
    let theirs: u64 = candidates
        .iter()
        .map(|(charge, _, _)| tally.allowed_of(charge.client, from, now))
        .sum();
    let all = tally.allowed(from, now);
    let share = theirs as f64 / all.max(1) as f64;
    (share > policy.brake.allowed_share).then(|| {
        format!(
            "brake: the {} clients that would be banned made {} of all allowed requests, more than {}",
            candidates.len(),
            percent(share),
            percent(policy.brake.allowed_share)
        )
    })
}

/// A share for people, `35 %`; small ones with a decimal.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 10.0 && percent.fract() > 0.05 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

/// One client before the judge.
struct Case<'a> {
    policy: &'a Policy,
    client: Client,
    strike: u32,
    now: Minute,
    found: Vec<Finding>,
}

impl<'a> Case<'a> {
    fn rule(&self, offense: &Offense) -> &'a Rule {
        &self.policy.rules[offense.rule]
    }

    fn offenses(&self, then: Then) -> impl Iterator<Item = &Offense> {
        self.found.iter().filter_map(move |finding| match finding {
            Finding::Offense(offense) if self.rule(offense).then == then => Some(offense),
            _ => None,
        })
    }

    fn charge(&self, offense: &Offense, also: Vec<String>) -> Charge {
        let rule = self.rule(offense);
        Charge {
            client: self.client,
            rule: rule.name.clone(),
            limit: rule.limit,
            window: rule.window,
            offense: *offense,
            also,
        }
    }

    /// The offense that is punished: a block before a challenge, the longest ban, the worst severity, the first rule.
    fn worst(&self) -> Option<(Charge, Sentence, &'a Rule)> {
        let step = |offense: &Offense| self.policy.ladder_of(self.rule(offense)).step(self.strike);
        let worst = self.offenses(Then::Ban).max_by_key(|offense| {
            let step = step(offense);
            (
                step.action,
                step.span,
                self.rule(offense).severity,
                Reverse(offense.rule),
            )
        })?;
        let also = self
            .offenses(Then::Ban)
            .filter(|other| other.rule != worst.rule)
            .map(|other| self.rule(other).name.clone())
            .collect();
        let step = step(worst);
        let sentence = Sentence {
            strike: self.strike,
            until: self.now + step.span,
            action: step.action,
        };
        Some((self.charge(worst, also), sentence, self.rule(worst)))
    }

    fn alerts(&self) -> Vec<Charge> {
        self.offenses(Then::Alert)
            .map(|offense| self.charge(offense, Vec::new()))
            .collect()
    }

    /// What is reported of a client that may not be banned whatever it does: its worst offense, else any that its share spares.
    fn any_charge(&self) -> Option<Charge> {
        let worst = self.worst().map(|(charge, _, _)| charge);
        worst.or_else(|| self.shared().next().map(|offense| self.charge(offense, Vec::new())))
    }

    /// Limits reached by too small a share, of rules that ban.
    fn shared(&self) -> impl Iterator<Item = &Offense> {
        self.found.iter().filter_map(|finding| match finding {
            Finding::Shared(offense) if self.rule(offense).then == Then::Ban => Some(offense),
            _ => None,
        })
    }

    fn spared_by_share(&self) -> Vec<(Charge, String)> {
        self.shared()
            .map(|offense| {
                let share = offense.matched as f64 / offense.requests.max(1) as f64;
                let because = format!(
                    "share: {} of {} requests ({}) matched, below {}",
                    offense.matched,
                    offense.requests,
                    percent(share),
                    percent(self.rule(offense).share.unwrap_or_default())
                );
                (self.charge(offense, Vec::new()), because)
            })
            .collect()
    }
}

/// Judges a whole history, once per minute of log time, and hands every judgment that had something to say to `each`.
/// Requests count from the minute after theirs on, as they would have at the earliest. All of the tally was counted by one
/// engine, whichever the rules name.
pub fn judge_history(
    policy: &Policy,
    tally: &Tally,
    ledger: Ledger,
    mut each: impl FnMut(Minute, &Judgment),
) -> Ledger {
    let Some((first, last)) = tally.period() else {
        return ledger;
    };
    let policy = &policy.counted_by_one_engine();
    // Nearly everybody is innocent whatever happens; leaving them out is what makes a replay fast.
    let suspects = tally.suspects(policy);
    let mut ledger = ledger;
    let mut now = first;
    while now <= last {
        now = now + Span::MINUTE;
        let judgment = judge(policy, &suspects, &ledger, now);
        if !judgment.verdicts.is_empty() {
            each(now, &judgment);
        }
        ledger = judgment.ledger;
        if tally.minutes.range(now - policy.horizon()..now).next().is_none() {
            // Nothing is in view: until somebody sends a request, every judgment would be this one.
            now = tally
                .minutes
                .range(now..)
                .next()
                .map_or(last + Span::MINUTE, |(active, _)| *active);
        }
    }
    ledger
}
