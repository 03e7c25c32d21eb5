//! `palisade check`: parse, lint, run the policy's own tests.

use std::io::Write;
use std::path::PathBuf;

use analyzer::{DEFAULT_POLICY, Policy, lint, rehearse};
use clap::Args;

use super::exit::{Exit, Failure};
use super::load_policy;
use super::output::{Printer, several, stdout};

#[derive(Args)]
pub(super) struct CheckArgs {
    /// The policy; the default policy if left out
    #[arg(value_name = "POLICY")]
    policy: Option<PathBuf>,
}

pub(super) fn run(args: &CheckArgs, printer: &Printer) -> Result<Exit, Failure> {
    let (name, policy) = match &args.policy {
        Some(path) => (path.display().to_string(), load_policy(path)?),
        None => (
            "the default policy".to_owned(),
            Policy::parse(DEFAULT_POLICY).map_err(|e| Failure::new(e.message))?,
        ),
    };
    let lints = lint(&policy);
    for lint in &lints {
        printer.warn(&lint.to_string());
    }
    let rehearsals = rehearse(&policy);
    let mut out = stdout();
    let mut failed = 0;
    for rehearsal in rehearsals.iter().filter(|rehearsal| !rehearsal.failures.is_empty()) {
        failed += 1;
        writeln!(out, "failed: rule `{}`, test \"{}\"", rehearsal.rule, rehearsal.test)?;
        for failure in &rehearsal.failures {
            writeln!(out, "  {failure}")?;
        }
    }
    let passed = rehearsals.len() as u64 - failed;
    writeln!(
        out,
        "{name}: {}, {} passed, {failed} failed, {}",
        several(policy.rules.len() as u64, "rule"),
        several(passed, "test"),
        several(lints.len() as u64, "warning")
    )?;
    drop(out);
    let untested: Vec<&str> = policy
        .rules
        .iter()
        .filter(|rule| rule.tests.is_empty())
        .map(|rule| rule.name.as_str())
        .collect();
    if !untested.is_empty() {
        printer.note(&format!(
            "note: {} without a test: {}",
            several(untested.len() as u64, "rule"),
            untested.join(", ")
        ));
    }
    if failed > 0 {
        return Err(Failure::new(format!("{} of the policy's own tests failed", failed))
            .exit(Exit::PolicyRejected)
            .hint(
                "either the rule or its test tells the story wrong; nothing may enforce this policy until they agree",
            ));
    }
    Ok(Exit::Done)
}
