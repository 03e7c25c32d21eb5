//! Decides who is banned, until when, and why.
//!
//! Requests become a [`Tally`] ([`tally`]), a tally and what we already know become a [`Judgment`] ([`judge()`]). Nothing in
//! this crate reads a clock, a file or a network: the policy and the minute are arguments, so that live runs, replays,
//! policy tests and simulations are the same code. The words are those of the glossary in ARCHITECTURE.md.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod athena;
pub mod client;
mod counter;
mod crowd;
mod detect;
pub mod judge;
pub mod ledger;
mod lint;
pub mod pattern;
pub mod policy;
mod rehearse;
pub mod stored;
pub mod tally;
pub mod time;
pub mod tune;

pub use client::Client;
pub use counter::Counter;
pub use crowd::{Crowd, Trait};
pub use detect::{Finding, Offense, View, eager, findings};
pub use judge::{Judgment, Verdict, judge, judge_history};
pub use ledger::{Action, Ban, Ledger, Manual, ManualKind, Offender};
pub use lint::{Lint, lint};
pub use policy::{DEFAULT_POLICY, Policy, PolicyError, Rule};
pub use rehearse::{Rehearsal, rehearse};
pub use tally::Tally;
pub use time::{Minute, Span};
