//! Makes a deployment's IP sets agree with the ledger: which sets those are, and the way to them.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use analyzer::Action;
use analyzer::policy::Mode;
use aws_config::Region;
use ipnet::IpNet;
use updater::{Family, IpSets, Options, Scope, SetId, Wafv2, Write, plan};

use crate::engine::{DEPLOYMENT_KEY, Deployment, Group, Outcome, Target, chain};
use crate::place::Aws;
use crate::store::{Condition, Store, StoreError, StoreErrorKind};

/// The deployment's format that we read.
const DEPLOYMENT_VERSION: u32 = 1;

/// What an operator must hear who thinks that bans are enforced.
const NO_TARGETS: &str =
    "`deployment.json` in the state names no IP sets, so nothing is blocked; name those of the ban rule in it";

/// What the IP sets should hold, and what in them is ours.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// With [`Mode::Observe`], nothing of ours: what an enforcing policy put in is taken out.
    pub mode: Mode,
    /// What an enforcing policy wants, most deserving first.
    pub bans: &'a [(IpNet, Action)],
    /// Every network that may be in the sets because of us.
    pub ours: &'a [IpNet],
}

/// The way to a deployment's IP sets. Kept from one minute to the next, it keeps WAF's pace and the connections.
#[derive(Debug, Default)]
pub struct Enforcer {
    aws: Aws,
    clients: HashMap<(Scope, Option<String>), Wafv2>,
}

impl Enforcer {
    /// By that way to AWS.
    pub fn new(aws: Aws) -> Enforcer {
        Enforcer {
            aws,
            clients: HashMap::new(),
        }
    }

    /// Updates every target's sets. Enforcing without any is a failure: somebody believes to be protected.
    ///
    /// # Errors
    /// When the deployment can't be read; what fails in a target is in its [`Outcome`].
    pub async fn enforce(&mut self, store: &impl Store, wanted: &Wanted<'_>) -> Result<Vec<Outcome>, StoreError> {
        let mut outcomes = Vec::new();
        for target in deployment(store).await?.targets {
            outcomes.push(match self.ip_sets_of(&target).await {
                Ok(ip_sets) => target.reconcile(&ip_sets, wanted.bans(), wanted.ours, wait).await,
                Err(why) => failed(why),
            });
        }
        if outcomes.is_empty() && wanted.mode == Mode::Enforce {
            outcomes.push(failed(NO_TARGETS.to_owned()));
        }
        Ok(outcomes)
    }

    /// Whether every target has `net` in one of the sets of `action`.
    ///
    /// # Errors
    /// When the deployment names no sets, or one of them can't be read; the reason, for people.
    pub async fn hold(&mut self, store: &impl Store, action: Action, net: IpNet) -> Result<bool, String> {
        let targets = deployment(store).await.map_err(|error| chain(&error))?.targets;
        if targets.is_empty() {
            return Err(NO_TARGETS.to_owned());
        }
        'targets: for target in targets {
            let ip_sets = self.ip_sets_of(&target).await?;
            let of_action = if action == Action::Block {
                &target.block
            } else {
                &target.challenge
            };
            let sets = if Family::of(&net) == Family::V4 {
                &of_action.v4
            } else {
                &of_action.v6
            };
            for set in sets {
                let held = ip_sets.get(&SetId::new(&set.name, &set.id)).await;
                let held = held.map_err(|error| format!("read IP set `{}`: {}", set.name, chain(&error)))?;
                // Neighbours are united where they can be.
                if held.addresses.iter().any(|held| held.contains(&net)) {
                    continue 'targets;
                }
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// What [`Enforcer::enforce`] would do now, without doing it: a target's outcome and the writes that would lead to it.
    ///
    /// # Errors
    /// When the deployment can't be read.
    pub async fn show(
        &mut self,
        store: &impl Store,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<(Outcome, Vec<Write>)>, StoreError> {
        let mut shown = Vec::new();
        for target in deployment(store).await?.targets {
            shown.push(match self.ip_sets_of(&target).await {
                Ok(ip_sets) => show_target(&ip_sets, &target, wanted).await,
                Err(why) => (failed(why), Vec::new()),
            });
        }
        if shown.is_empty() && wanted.mode == Mode::Enforce {
            shown.push((failed(NO_TARGETS.to_owned()), Vec::new()));
        }
        Ok(shown)
    }

    async fn ip_sets_of(&mut self, target: &Target) -> Result<Wafv2, String> {
        let scope = match target.scope.as_str() {
            "REGIONAL" => Scope::Regional,
            "CLOUDFRONT" => Scope::Cloudfront,
            other => {
                return Err(format!(
                    "`{DEPLOYMENT_KEY}` names the scope `{other}`; there are REGIONAL and CLOUDFRONT"
                ));
            }
        };
        let place = (scope, target.region.clone());
        if let Some(known) = self.clients.get(&place) {
            return Ok(known.clone());
        }
        let mut config = self.aws.config().await.to_builder();
        if let Some(region) = &target.region {
            config.set_region(Some(Region::new(region.clone())));
        }
        let wafv2 = Wafv2::new(&config.build(), scope);
        self.clients.insert(place, wafv2.clone());
        Ok(wafv2)
    }
}

impl Wanted<'_> {
    fn bans(&self) -> &[(IpNet, Action)] {
        match self.mode {
            Mode::Observe => &[],
            Mode::Enforce => self.bans,
        }
    }
}

fn failed(why: String) -> Outcome {
    Outcome {
        failures: vec![why],
        ..Outcome::default()
    }
}

async fn show_target(ip_sets: &impl IpSets, target: &Target, wanted: &Wanted<'_>) -> (Outcome, Vec<Write>) {
    let (mut outcome, mut writes) = (Outcome::default(), Vec::new());
    'groups: for Group {
        family,
        sets,
        wanted: nets,
    } in target.groups(wanted.bans())
    {
        let mut observed = Vec::new();
        for id in sets {
            match ip_sets.get(&id).await {
                Ok(set) => observed.push((id, set)),
                Err(error) => {
                    outcome
                        .failures
                        .push(format!("read IP set `{}`: {}", id.name, chain(&error)));
                    continue 'groups;
                }
            }
        }
        let options = Options {
            family,
            exclusive: target.exclusive,
        };
        let planned = plan(&nets, wanted.ours, &observed, &options);
        outcome.writes += planned.writes.len();
        outcome.added += planned.writes.iter().map(|write| write.added.len()).sum::<usize>();
        outcome.removed += planned.writes.iter().map(|write| write.removed.len()).sum::<usize>();
        outcome.foreign += planned.foreign.len();
        outcome.overflow += planned.overflow.len();
        outcome.room += planned.room;
        writes.extend(planned.writes);
    }
    (outcome, writes)
}

/// The deployment in the state; one without targets if there is none.
///
/// # Errors
/// When it can't be read, or is of another version.
pub async fn deployment(store: &impl Store) -> Result<Deployment, StoreError> {
    match store.get(DEPLOYMENT_KEY).await? {
        None => Ok(Deployment::default()),
        Some((bytes, _)) => parse(&bytes)
            .map_err(|why| StoreError::new(format!("read `{DEPLOYMENT_KEY}`"), StoreErrorKind::Failed(why))),
    }
}

/// Reads a deployment.
///
/// # Errors
/// When it is none, or one of a newer version; the reason, for people.
pub fn parse(json: &[u8]) -> Result<Deployment, String> {
    // The version first: in a newer one anything else may have changed.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if version != DEPLOYMENT_VERSION {
        return Err(format!(
            "it is of version {version}, and this Palisade reads version {DEPLOYMENT_VERSION}: update Palisade"
        ));
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

/// Writes what a stack says about itself into the state, unless it stands there, so that the command line finds the IP sets
/// too. Whatever else stands there is replaced: the stack knows its sets, and an update of it may have replaced some.
///
/// # Errors
/// When the state can't be read or written.
pub async fn keep(store: &impl Store, deployment: &Deployment) -> Result<(), StoreError> {
    let stored = store.get(DEPLOYMENT_KEY).await?;
    if stored.is_some_and(|(bytes, _)| parse(&bytes).as_ref() == Ok(deployment)) {
        return Ok(());
    }
    let mut json = serde_json::to_vec_pretty(deployment).map_err(|error| {
        StoreError::new(
            format!("write `{DEPLOYMENT_KEY}`"),
            StoreErrorKind::Failed(error.to_string()),
        )
    })?;
    json.push(b'\n');
    store.put(DEPLOYMENT_KEY, json, Condition::Always).await.map(|_| ())
}

/// Waits before the next attempt: longer each time, and never two processes equally long.
async fn wait(attempt: u32) {
    let longest_ms = 200 * 2u64.pow(attempt.min(5));
    // Randomness enough to part two processes; std seeds every hasher differently.
    let jitter_ms = RandomState::new().build_hasher().finish() % longest_ms;
    tokio::time::sleep(Duration::from_millis(longest_ms / 2 + jitter_ms)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Directory;

    const JSON: &str = r#"{"version":1,"targets":[{"scope":"REGIONAL","region":"eu-central-1",
        "block":{"v4":[{"name":"ban-v4","id":"1"}],"v6":[]},"challenge":{"v4":[],"v6":[]},"exclusive":false}]}"#;

    #[tokio::test]
    async fn what_the_stack_says_is_kept_and_written_only_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory::new(folder.path());
        let said = parse(JSON.as_bytes()).unwrap();
        keep(&store, &said).await.unwrap();
        assert_eq!(deployment(&store).await.unwrap(), said);

        // The same in other words stays as it is.
        store.put(DEPLOYMENT_KEY, JSON.into(), Condition::Always).await.unwrap();
        keep(&store, &said).await.unwrap();
        assert_eq!(store.get(DEPLOYMENT_KEY).await.unwrap().unwrap().0, JSON.as_bytes());

        // Anything else is replaced: another set, what a newer version wrote before a rollback, and what is no JSON.
        for other in [&JSON.replace("\"1\"", "\"2\""), &JSON.replace("1,\"t", "2,\"t"), "{"] {
            store
                .put(DEPLOYMENT_KEY, other.into(), Condition::Always)
                .await
                .unwrap();
            keep(&store, &said).await.unwrap();
            assert_eq!(deployment(&store).await.unwrap(), said, "{other}");
        }
    }

    #[test]
    fn a_newer_deployment_is_said_to_be_newer_whatever_else_has_changed() {
        assert!(parse(br#"{"version":9}"#).unwrap_err().contains("version 9"));
        assert!(parse(br#"{"version":1}"#).unwrap_err().contains("targets"));
    }
}
