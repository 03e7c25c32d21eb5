//! Everything we know: per offender its strikes and last ban, and who is being spared or held at the moment.
//!
//! A ban is in force while `now < until`. The ledger is a value: [`crate::judge()`] takes one and returns the next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::policy::{Policy, Severity};
use crate::time::{Minute, Span};

/// Who offended, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// By client, until forgotten.
    pub offenders: BTreeMap<Client, Offender>,
    /// What operators decided by hand, in the order they did.
    pub manual: Vec<Manual>,
    /// Networks of bans that are forgotten, until the IP sets are known not to hold them any more: an address that nobody
    /// remembers would pass for somebody else's, and stay banned for ever.
    pub leaving: BTreeSet<IpNet>,
    /// What was said last time and need not be said again: the episodes that go on.
    pub going_on: BTreeSet<Episode>,
}

impl Ledger {
    /// The bans in force at `now`, in the order in which they deserve a place in an IP set: worst severity, most recent hit,
    /// most hits, and at last the client, so that the order depends on nothing else. A client that has come to be allowed
    /// since is left out.
    pub fn bans_in_force(&self, policy: &Policy, now: Minute) -> Vec<(Client, &Ban)> {
        let bans = self.offenders.iter().map(|(client, offender)| (*client, &offender.ban));
        let mut bans: Vec<(Client, &Ban)> = bans
            .filter(|(client, ban)| ban.in_force(now) && self.spares(policy, *client, now).is_none())
            .collect();
        bans.sort_by_key(|(client, ban)| (Reverse(ban.severity), Reverse(ban.last_hit), Reverse(ban.hits), *client));
        bans
    }

    /// The networks that the IP sets should hold at `now`, most deserving first: what operators banned, then
    /// [`Ledger::bans_in_force`].
    pub fn wanted(&self, policy: &Policy, now: Minute) -> Vec<(IpNet, Action)> {
        let by_hand = self
            .manual
            .iter()
            .filter(|manual| manual.in_force(now))
            .filter_map(|manual| match manual.kind {
                ManualKind::Ban if self.spares(policy, Client::of_net(manual.net), now).is_none() => {
                    Some((manual.net, Action::Block))
                }
                _ => None,
            });
        by_hand
            .chain(
                self.bans_in_force(policy, now)
                    .into_iter()
                    .map(|(client, ban)| (client.net(), ban.action)),
            )
            .collect()
    }

    /// Forgets who has been quiet for long enough after its last ban, and what was decided by hand as long ago.
    pub(crate) fn forget(&mut self, policy: &Policy, now: Minute) {
        let Ledger {
            offenders,
            manual,
            leaving,
            ..
        } = self;
        offenders.retain(|client, offender| {
            let known = now < offender.ban.until + policy.forget_after;
            if !known {
                leaving.insert(client.net());
            }
            known
        });
        manual.retain(|manual| {
            let known = manual.in_force(now - policy.forget_after);
            if !known && manual.kind == ManualKind::Ban {
                leaving.insert(manual.net);
            }
            known
        });
    }

    /// Every network that the IP sets may hold because of us, now or before.
    pub fn ours(&self) -> Vec<IpNet> {
        let by_hand = self
            .manual
            .iter()
            .filter(|manual| manual.kind == ManualKind::Ban)
            .map(|manual| manual.net);
        let leaving = self.leaving.iter().copied();
        self.offenders
            .keys()
            .map(|client| client.net())
            .chain(by_hand)
            .chain(leaving)
            .collect()
    }

    /// Why `client` may not be banned at `now`, by the policy or by hand, or `None`.
    pub fn spares(&self, policy: &Policy, client: Client, now: Minute) -> Option<String> {
        policy.spares(client).or_else(|| {
            let allows = |manual: &&Manual| {
                manual.kind == ManualKind::Allow && manual.in_force(now) && client.overlaps(&manual.net)
            };
            self.manual
                .iter()
                .find(allows)
                .map(|manual| format!("allow: {}", manual.why))
        })
    }
}

/// What an operator decided by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manual {
    /// Whom it is about.
    pub net: IpNet,
    /// Ban or allow.
    pub kind: ManualKind,
    /// Why.
    pub why: String,
    /// When it was decided.
    pub since: Minute,
    /// The first minute in which it no longer holds; `None`: until somebody takes it back.
    pub until: Option<Minute>,
}

impl Manual {
    /// Whether it holds at `now`.
    pub fn in_force(&self, now: Minute) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// Ban or allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ManualKind {
    /// Banned, whatever it did.
    Ban,
    /// Never banned, whatever it does.
    Allow,
}

/// A client that was banned and is not yet forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offender {
    /// How often, since it was last forgotten.
    pub strikes: u32,
    /// The last ban.
    pub ban: Ban,
}

/// What we did to a client, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// The name of the rule.
    pub rule: String,
    /// What WAF does to its requests.
    pub action: Action,
    /// The minute of the judgment.
    pub from: Minute,
    /// The first minute without the ban.
    pub until: Minute,
    /// How bad the rule takes it; ranks offenders at a cap.
    pub severity: Severity,
    /// The hits of the window that reached its limit.
    pub hits: u64,
    /// The last minute of that window that had a hit.
    pub last_hit: Minute,
}

impl Ban {
    /// Whether the ban holds at `now`.
    pub fn in_force(&self, now: Minute) -> bool {
        now < self.until
    }

    /// How long it was imposed for.
    pub fn span(&self) -> Span {
        self.until.since(self.from)
    }
}

/// What WAF does to the requests of a banned client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A silent browser check that scripts fail.
    Challenge,
    /// 403.
    Block,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Challenge => "challenge",
            Action::Block => "block",
        })
    }
}

/// Something that lasts longer than a minute and is reported when it begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Episode {
    /// An offense that is not punished, because of an allow entry, a share, or a range that is never banned.
    Spared(Client, String),
    /// An offense that the brake holds back.
    Held(Client),
    /// An offense against a rule that only alerts.
    Alert(Client, String),
    /// Very many clients with few requests each.
    Crowd,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(severity: Severity, last_hit: u32, hits: u64, until: u32) -> Offender {
        let (from, until, last_hit) = (Minute(10), Minute(until), Minute(last_hit));
        let ban = Ban {
            rule: "r".into(),
            action: Action::Block,
            from,
            until,
            severity,
            hits,
            last_hit,
        };
        Offender { strikes: 1, ban }
    }

    #[test]
    fn at_a_cap_severity_goes_before_recency_and_recency_before_volume() {
        let policy = Policy::parse("[[allow]]\ncidr = \"192.0.2.9\"\nnote = \"ours since today\"").unwrap();
        let offenders = [
            ("192.0.2.1", ban(Severity::Low, 9, 900, 20)),
            ("192.0.2.2", ban(Severity::High, 5, 10, 20)),
            ("192.0.2.3", ban(Severity::Low, 9, 901, 20)),
            ("192.0.2.4", ban(Severity::Low, 10, 1, 20)),
            ("192.0.2.5", ban(Severity::Critical, 1, 1, 15)),
            ("192.0.2.9", ban(Severity::Critical, 1, 1, 20)),
            ("10.0.0.1", ban(Severity::Critical, 1, 1, 20)),
        ];
        let offenders = offenders
            .into_iter()
            .map(|(client, offender)| (Client::of(client.parse().unwrap(), 64), offender));
        let ledger = Ledger {
            offenders: offenders.collect(),
            ..Ledger::default()
        };
        let ranked = |now| {
            ledger
                .bans_in_force(&policy, Minute(now))
                .iter()
                .map(|(client, _)| client.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            ranked(15),
            ["192.0.2.2/32", "192.0.2.4/32", "192.0.2.3/32", "192.0.2.1/32"]
        );
        assert_eq!(ranked(14)[0], "192.0.2.5/32");
        assert_eq!(ranked(20), [""; 0]);
    }

    #[test]
    fn a_forgotten_ban_is_remembered_as_ours_until_the_sets_are_known_to_be_without_it() {
        let policy = Policy::parse("").unwrap();
        let client = Client::of("192.0.2.1".parse().unwrap(), 64);
        let mut ledger = Ledger {
            offenders: [(client, ban(Severity::Low, 9, 900, 20))].into(),
            ..Ledger::default()
        };
        ledger.forget(&policy, Minute(19) + policy.forget_after);
        assert!(ledger.leaving.is_empty() && ledger.offenders.len() == 1);
        ledger.forget(&policy, Minute(20) + policy.forget_after);
        assert!(ledger.offenders.is_empty());
        assert_eq!(ledger.ours(), [client.net()]);
    }
}
