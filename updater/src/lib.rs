//! Makes IP sets agree with a list of addresses.
//!
//! Three steps, each with its own file. [`plan()`] compares what is wanted with what was observed and decides
//! everything; it is pure. [`apply()`] writes what the plan says and decides nothing. [`reconcile`] reads, plans and
//! applies, and starts again when somebody else was faster.
//!
//! The crate knows addresses, sets and nothing else: why an address is wanted, and for how long, is the caller's
//! business. Planning reads no clock and draws no random number; waiting is an argument of [`reconcile`].
//!
//! The port to the world is the trait [`IpSets`]. [`Wafv2`] is AWS WAF and the only file that knows AWS. [`Memory`] is
//! a fake with WAF's own rules, and [`Faulty`] wraps any implementation and lets calls fail as a script says.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod apply;
mod faulty;
mod ip_sets;
mod memory;
mod network;
mod plan;
mod wafv2;

pub use apply::{ATTEMPTS_MAX, Applied, ApplyError, Attempt, ReconcileError, Reconciled, apply, reconcile};
pub use faulty::{Fault, Faulty};
pub use ip_sets::{ADDRESSES_MAX, Family, IpSet, IpSetError, IpSets, LockToken, SetId};
pub use memory::Memory;
pub use plan::{Options, Plan, Write, plan};
pub use wafv2::{Scope, Wafv2, region_of};
