//! Decisions by hand: ban, unban, allow, each with a reason.
//!
//! The command line and the live page decide through [`decide`], which writes the ledger only over the one it has read, so
//! that a person and an updater never undo each other's work, and keeps a line of who decided what in `decisions/`.

use analyzer::{Client, Ledger, Manual, ManualKind, Minute, Policy, Span};
use chrono::{DateTime, Utc};
use ipnet::IpNet;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_128;

use crate::engine::{Engine, TickError};
use crate::store::{Condition, Store, StoreError};

/// What a person wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whom it is about.
    pub net: IpNet,
    /// What is to be done.
    pub act: Act,
    /// Why; empty if nobody said.
    pub why: String,
}

/// What is to be done about a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Ban it, for so long or until it is taken back.
    Ban(Option<Span>),
    /// Never ban it, for so long or until it is taken back.
    Allow(Option<Span>),
    /// End its bans.
    Unban,
}

/// Why a decision was not carried out; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Undecided {
    /// It makes no sense as things are: what is wrong, and what to do about it.
    #[error("{0}")]
    Refused(String, &'static str),
    /// The state could not be read or written, or was written by others all the time.
    #[error(transparent)]
    Failed(#[from] TickError),
}

impl From<StoreError> for Undecided {
    fn from(error: StoreError) -> Undecided {
        Undecided::Failed(error.into())
    }
}

/// Changes the ledger in `store` and says what was done.
///
/// # Errors
/// When it makes no sense, or can't be written.
pub async fn decide<S: Store, L>(engine: &Engine<S, L>, decision: &Decision, now: Minute) -> Result<String, Undecided> {
    let (policy, _) = engine.policy_in_use().await?;
    let done = engine.change(|ledger| decision.carry_out(ledger, &policy, now)).await?;
    decision.keep(&engine.store, now).await?;
    Ok(done)
}

impl Decision {
    /// Changes `ledger` and says what was done.
    fn carry_out(&self, ledger: &mut Ledger, policy: &Policy, now: Minute) -> Result<String, Undecided> {
        let net = self.net;
        let until = |span: Option<Span>| {
            span.map_or_else(|| " until it is taken back".to_owned(), |span| format!(" for {span}"))
        };
        let what = match self.act {
            Act::Ban(span) => {
                if let Some(because) = ledger.spares(policy, Client::of_net(net), now) {
                    return Err(Undecided::Refused(
                        format!("`{net}` can't be banned ({because})"),
                        "take the allow entry away first",
                    ));
                }
                self.by_hand(ledger, ManualKind::Ban, span, now);
                format!("{net} is banned{}", until(span))
            }
            Act::Allow(span) => {
                self.by_hand(ledger, ManualKind::Allow, span, now);
                format!("{net} is never banned{}", until(span))
            }
            Act::Unban => match unban(ledger, net, now) {
                0 => {
                    return Err(Undecided::Refused(
                        format!("no ban of `{net}` is in force"),
                        "`palisade status` shows those that are",
                    ));
                }
                1 => format!("1 ban of {net} ended"),
                bans => format!("{bans} bans of {net} ended"),
            },
        };
        Ok(format!("{what}; the next run updates the IP sets"))
    }

    fn by_hand(&self, ledger: &mut Ledger, kind: ManualKind, span: Option<Span>, now: Minute) {
        ledger.manual.retain(|manual| manual.net != self.net);
        ledger.manual.push(Manual {
            net: self.net,
            kind,
            why: self.why.clone(),
            since: now,
            until: span.map(|span| now + span),
        });
    }

    /// Keeps a line for whoever asks later who did this and why: the ledger forgets.
    async fn keep(&self, store: &impl Store, now: Minute) -> Result<(), StoreError> {
        let (act, span) = match self.act {
            Act::Ban(span) => ("ban", span),
            Act::Allow(span) => ("allow", span),
            Act::Unban => ("unban", None),
        };
        let span = span.map(|span| span.to_string());
        let line = json!({"type": act, "time": now.to_string(), "network": self.net, "for": span, "why": self.why});
        let text = format!("{line}\n");
        let time = DateTime::<Utc>::from_timestamp(now.epoch_seconds(), 0).unwrap_or_default();
        let hash = xxh3_128(text.as_bytes()) >> 96;
        let key = format!("decisions/{}-{hash:08x}.jsonl", time.format("%Y-%m-%d/%H-%M"));
        store.put(&key, text.into_bytes(), Condition::Always).await.map(|_| ())
    }
}

/// Ends the bans of `net`, and says how many.
fn unban(ledger: &mut Ledger, net: IpNet, now: Minute) -> usize {
    let mut ended = 0;
    for (_, offender) in ledger.offenders.iter_mut().filter(|(client, _)| client.overlaps(&net)) {
        // The slate begins here: what the client did before is not held against it again.
        if offender.ban.in_force(now) {
            offender.ban.until = now;
            ended += 1;
        }
    }
    for manual in &mut ledger.manual {
        if manual.kind == ManualKind::Ban && manual.net == net && manual.in_force(now) {
            manual.until = Some(now);
            ended += 1;
        }
    }
    ended
}
