//! The shell around the pure crates: finds and reads log objects, judges them, and talks to people.
//!
//! `ingest` says what was requested, `analyzer` decides who is banned, `updater` makes IP sets agree. What is left for
//! this crate is to connect them to files, terminals and AWS; it holds no `if` about clients, bans or windows.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod athena;
pub mod cli;
pub mod decide;
pub mod enforce;
pub mod engine;
pub mod inputs;
pub mod lambda;
pub mod logs;
pub mod migrate;
pub mod page;
pub mod place;
pub mod replay;
pub mod report;
pub mod serve;
pub mod store;
pub mod survey;
pub mod traffic;
