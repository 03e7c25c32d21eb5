//! The one test binary of the workspace: everything that needs more than one crate, or the program itself.
//!
//! `aws` talks to a stand-in for AWS. `cli` runs whole commands and looks at everything they say; `deployment` does so with
//! state, logs and IP sets, `lambda` runs the functions as Lambda does, and `e2e` is the whole loop. `scenarios` are stories, a
//! file each. `reference` compares the judge with a model that counts by brute force, over thousands of seeds. `simulation`
//! runs the live loop in a hostile world. `store` is what a store promises.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod aws;
mod cli;
mod deployment;
mod e2e;
mod lambda;
mod reference;
mod scenarios;
mod simulation;
mod store;
