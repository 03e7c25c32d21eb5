//! The one test binary of the workspace: everything that needs more than one crate, or the program itself.
//!
//! - `athena`: the engines that count, compared.
//! - `aws`: what talks to AWS, against a stand-in.
//! - `book`: every command of the documentation, run.
//! - `browser`: pages in a real browser.
//! - `cli`: whole commands and everything they say.
//! - `deployment`: the same with state, logs and IP sets.
//! - `e2e`: the whole loop, functions run by the stand-in.
//! - `lambda`: the functions as Lambda runs them.
//! - `migration`: from the solution that retires.
//! - `page`: what the HTML report says, and hostile text in it.
//! - `reference`: the judge against a model that counts by brute force, over thousands of seeds.
//! - `scenarios`: stories, a file each.
//! - `serve`: the live page of a deployment.
//! - `simulation`: the live loop in a hostile world.
//! - `stack`: the template, deployed where IAM is enforced, and the example API behind it.
//! - `store`: what a store promises.
//! - `tuning`: limits from history, and policies compared.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod athena;
mod aws;
mod book;
mod browser;
mod cli;
mod deployment;
mod e2e;
mod lambda;
mod migration;
mod page;
mod reference;
mod scenarios;
mod serve;
mod simulation;
mod stack;
mod store;
mod tuning;
