//! Makes a deployment's IP sets agree with the ledger: which sets those are, and the way to them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use analyzer::Action;
use aws_config::Region;
use ipnet::IpNet;
use updater::{Family, IpSets, Options, Scope, SetId, Wafv2, Write, plan};

use crate::engine::{DEPLOYMENT_KEY, Deployment, Outcome, SetsOfAction, Target, chain};
use crate::place::aws_config;
use crate::store::{Store, StoreError, StoreErrorKind};

/// The deployment's format that we read.
const DEPLOYMENT_VERSION: u32 = 1;

/// What an operator must hear who thinks that bans are enforced.
const NO_TARGETS: &str =
    "`deployment.json` in the state names no IP sets, so nothing is blocked; name those of the ban rule in it";

/// Updates every target's sets. A deployment without any is a failure: somebody believes to be protected.
///
/// # Errors
/// When the deployment can't be read; what fails in a target is in its [`Outcome`].
pub async fn enforce(
    store: &impl Store,
    wanted: &[(IpNet, Action)],
    ours: &[IpNet],
) -> Result<Vec<Outcome>, StoreError> {
    let mut outcomes = Vec::new();
    for target in deployment(store).await?.targets {
        outcomes.push(match ip_sets_of(&target).await {
            Ok(ip_sets) => target.reconcile(&ip_sets, wanted, ours, wait).await,
            Err(why) => failed(why),
        });
    }
    if outcomes.is_empty() {
        outcomes.push(failed(NO_TARGETS.to_owned()));
    }
    Ok(outcomes)
}

fn failed(why: String) -> Outcome {
    Outcome {
        failures: vec![why],
        ..Outcome::default()
    }
}

/// What [`enforce`] would do now, without doing it: a target's outcome and the writes that would lead to it.
///
/// # Errors
/// When the deployment can't be read.
pub async fn show(
    store: &impl Store,
    wanted: &[(IpNet, Action)],
    ours: &[IpNet],
) -> Result<Vec<(Outcome, Vec<Write>)>, StoreError> {
    let mut shown = Vec::new();
    for target in deployment(store).await?.targets {
        let (mut outcome, mut writes) = (Outcome::default(), Vec::new());
        match ip_sets_of(&target).await {
            Err(why) => outcome.failures.push(why),
            Ok(ip_sets) => {
                for (action, sets) in [(Action::Block, &target.block), (Action::Challenge, &target.challenge)] {
                    writes.extend(show_sets(&ip_sets, &target, (action, sets), wanted, ours, &mut outcome).await);
                }
            }
        }
        shown.push((outcome, writes));
    }
    if shown.is_empty() {
        shown.push((failed(NO_TARGETS.to_owned()), Vec::new()));
    }
    Ok(shown)
}

async fn show_sets(
    ip_sets: &impl IpSets,
    target: &Target,
    (action, sets): (Action, &SetsOfAction),
    wanted: &[(IpNet, Action)],
    ours: &[IpNet],
    outcome: &mut Outcome,
) -> Vec<Write> {
    let mut writes = Vec::new();
    let nets: Vec<IpNet> = wanted
        .iter()
        .filter(|(_, wanted)| *wanted == action)
        .map(|(net, _)| *net)
        .collect();
    for (family, sets) in [(Family::V4, &sets.v4), (Family::V6, &sets.v6)] {
        let mut observed = Vec::new();
        for set in sets {
            let id = SetId::new(&set.name, &set.id);
            match ip_sets.get(&id).await {
                Ok(set) => observed.push((id, set)),
                Err(error) => {
                    outcome
                        .failures
                        .push(format!("read IP set `{}`: {}", set.name, chain(&error)));
                    return writes;
                }
            }
        }
        let planned = plan(
            &nets,
            ours,
            &observed,
            &Options {
                family,
                exclusive: target.exclusive,
            },
        );
        outcome.writes += planned.writes.len();
        outcome.added += planned.writes.iter().map(|write| write.added.len()).sum::<usize>();
        outcome.removed += planned.writes.iter().map(|write| write.removed.len()).sum::<usize>();
        outcome.foreign += planned.foreign.len();
        outcome.overflow += planned.overflow.len();
        outcome.room += planned.room;
        writes.extend(planned.writes);
    }
    writes
}

/// The deployment in the state; one without targets if there is none.
async fn deployment(store: &impl Store) -> Result<Deployment, StoreError> {
    let damaged = |why: String| StoreError::new(format!("read `{DEPLOYMENT_KEY}`"), StoreErrorKind::Failed(why));
    let Some((bytes, _)) = store.get(DEPLOYMENT_KEY).await? else {
        return Ok(Deployment::default());
    };
    let deployment: Deployment = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if deployment.version != DEPLOYMENT_VERSION {
        return Err(damaged(format!(
            "it is of version {}, and this Palisade reads version {DEPLOYMENT_VERSION}: update Palisade",
            deployment.version
        )));
    }
    Ok(deployment)
}

async fn ip_sets_of(target: &Target) -> Result<Wafv2, String> {
    let scope = match target.scope.as_str() {
        "REGIONAL" => Scope::Regional,
        "CLOUDFRONT" => Scope::Cloudfront,
        other => {
            return Err(format!(
                "`{DEPLOYMENT_KEY}` names the scope `{other}`; there are REGIONAL and CLOUDFRONT"
            ));
        }
    };
    let mut config = aws_config().await.to_builder();
    if let Some(region) = &target.region {
        config.set_region(Some(Region::new(region.clone())));
    }
    Ok(Wafv2::new(&config.build(), scope))
}

/// Waits before the next attempt: longer each time, and never two processes equally long.
async fn wait(attempt: u32) {
    let longest_ms = 200 * 2u64.pow(attempt.min(5));
    // Randomness enough to part two processes; std seeds every hasher differently.
    let jitter_ms = RandomState::new().build_hasher().finish() % longest_ms;
    tokio::time::sleep(Duration::from_millis(longest_ms / 2 + jitter_ms)).await;
}
