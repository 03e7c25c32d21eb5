//! Everything we know: per offender its strikes and last ban, and who is being spared or held at the moment.
//!
//! A ban is in force while `now < until`. The ledger is a value: [`crate::judge`] takes one and returns the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;

use crate::client::Client;
use crate::policy::Severity;
use crate::time::{Minute, Span};

/// Who offended, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// By client, until forgotten.
    pub offenders: BTreeMap<Client, Offender>,
    /// What was said last time and need not be said again: the episodes that go on.
    pub going_on: BTreeSet<Episode>,
}

impl Ledger {
    /// The bans in force at `now`, by client.
    pub fn bans_in_force(&self, now: Minute) -> impl Iterator<Item = (Client, &Ban)> {
        self.offenders
            .iter()
            .map(|(client, offender)| (*client, &offender.ban))
            .filter(move |(_, ban)| ban.in_force(now))
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
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
