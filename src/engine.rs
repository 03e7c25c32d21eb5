//! The live loop: what the updater does every minute, on Lambda or on one machine.
//!
//! A tick reads what there is, judges, saves, and only then touches IP sets. Every step can be repeated without harm, and a
//! tick that dies anywhere is finished by the next one: tallies are keyed by their objects, the ledger is written only over
//! the one that was read, and IP sets are compared with what they should hold and never with what we remember doing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use analyzer::judge::judge;
use analyzer::policy::ATHENA_PAUSE_MAX;
use analyzer::stored::{FormatError, ObjectTally};
use analyzer::{Action, Judgment, Ledger, Minute, Policy, PolicyError, Tally};
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use ingest::object_key;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use updater::{Family, IpSets, Options, SetId, reconcile};
use xxhash_rust::xxh3::xxh3_128;

use crate::logs::Logs;
use crate::replay::{Collect, Count, Identity, scan_identified};
use crate::store::{Condition, Listed, Store, StoreError, Version};

/// The policy's key in the state.
pub const POLICY_KEY: &str = "policy.toml";
/// The last policy that was used, in case the next one does not parse.
pub const POLICY_IN_USE_KEY: &str = "policy-in-use.toml";
/// The ledger's key in the state.
pub const LEDGER_KEY: &str = "ledger.json";
/// The deployment's key in the state.
pub const DEPLOYMENT_KEY: &str = "deployment.json";
/// What the last runs did; only for people to look at.
pub const RUNS_KEY: &str = "runs.json";

/// How many runs are kept: an hour of them.
pub const RUNS_MAX: usize = 60;

/// How often a decision by hand is made again because somebody else saved the ledger meanwhile.
const CHANGE_ATTEMPTS_MAX: u32 = 10;

/// How often a tick judges again because somebody else saved the ledger meanwhile.
const LEDGER_ATTEMPTS_MAX: u32 = 5;

/// So many tallies are asked for at once: a bucket takes tens of milliseconds to answer, and a new updater reads all of the
/// horizon.
const TALLIES_AT_ONCE: usize = 16;

/// The state and the logs of a deployment, and what of them a warm process remembers.
pub struct Engine<S, L> {
    /// Where the state is.
    pub store: S,
    /// Where the logs are.
    pub logs: L,
    seen: Seen,
    /// What [`POLICY_IN_USE_KEY`] holds, as far as we know.
    in_use: Option<String>,
    /// What [`RUNS_KEY`] holds, as far as we know.
    runs: Option<Vec<Run>>,
}

/// The tallies that were read before, by the hour of their objects.
#[derive(Default)]
struct Seen {
    fingerprint: String,
    hours: BTreeMap<String, Hour>,
    /// What Athena counted for rules with long windows: its key and version, until when, and the counts.
    long: Option<Long>,
    all: Tally,
}

struct Long {
    place: (String, Version),
    until: Minute,
    tally: Tally,
}

#[derive(Default)]
struct Hour {
    keys: HashSet<String>,
    identities: HashSet<Identity>,
    tally: Tally,
}

/// Why a tick could not be done. The ledger is as it was, unless the error says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum TickError {
    /// The state or the logs could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something in the state is of a newer version, or damaged.
    #[error("failed to read `{key}`")]
    Format {
        /// Which key.
        key: String,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// There is no policy to judge by.
    #[error("policy `{POLICY_KEY}` was rejected, and there is none that was used before")]
    Policy(#[source] PolicyError),
    /// Somebody else kept saving the ledger.
    #[error("the ledger was saved by somebody else again and again")]
    Contended,
}

/// What a tick did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// The minute of the judgment.
    pub now: String,
    /// Tallies merged into the judgment.
    pub tallies: usize,
    /// Objects tallied by this tick because no event had announced them.
    pub tallied: usize,
    /// Objects that are still not tallied, because time ran out or because they could not be read.
    pub left: usize,
    /// Requests in the objects tallied by this tick.
    pub requests: u64,
    /// Records skipped in the objects tallied by this tick.
    pub skipped: u64,
    /// Seconds between the newest request known and the minute of the judgment.
    pub lag_seconds: Option<i64>,
    /// Bans in force.
    pub bans: usize,
    /// Bans imposed.
    pub new_bans: usize,
    /// Offenses held by the brake that were not held before.
    pub held: usize,
    /// Offenses spared that were not spared before.
    pub spared: usize,
    /// Alerts raised.
    pub alerts: usize,
    /// Whether `policy.toml` did not parse, so that the policy used before is in use.
    pub policy_rejected: Option<String>,
    /// What could not be read; it will be tried again.
    pub problems: Vec<String>,
    /// How long what took.
    pub milliseconds: Phases,
}

/// Milliseconds by phase of a tick.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Reading and parsing the policy.
    pub policy: u64,
    /// Listing the log objects.
    pub list: u64,
    /// Reading tallies, and making those that were missing.
    pub tallies: u64,
    /// Judging.
    pub judge: u64,
    /// Reading and saving the ledger, and writing the audit.
    pub ledger: u64,
}

/// Tells how long it is since it was last asked.
struct Stopwatch(Instant);

impl Stopwatch {
    fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    /// In milliseconds.
    fn lap(&mut self) -> u64 {
        let since = std::mem::replace(&mut self.0, Instant::now());
        u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A tick's outcome: what was judged, and what is known now.
#[derive(Debug)]
pub struct Ticked {
    /// What it did.
    pub summary: Summary,
    /// The policy it judged by.
    pub policy: Policy,
    /// What is known now; saved, unless the tick was dry.
    pub judgment: Judgment,
    /// Every network the IP sets may hold because of us: of this ledger and the one before.
    pub ours: Vec<IpNet>,
}

impl<S: Store, L> Engine<S, L> {
    /// A process that has seen nothing yet.
    pub fn new(store: S, logs: L) -> Engine<S, L> {
        Engine {
            store,
            logs,
            seen: Seen::default(),
            in_use: None,
            runs: None,
        }
    }

    /// What is known, and which version of the ledger says so.
    ///
    /// # Errors
    /// When it can't be read; never an empty ledger instead.
    pub async fn ledger(&self) -> Result<(Ledger, Option<Version>), TickError> {
        match self.store.get(LEDGER_KEY).await? {
            None => Ok((Ledger::default(), None)),
            Some((bytes, version)) => {
                let ledger = Ledger::from_json(&bytes);
                let ledger = ledger.map_err(|source| TickError::Format {
                    key: LEDGER_KEY.into(),
                    source,
                })?;
                Ok((ledger, Some(version)))
            }
        }
    }

    /// The policy to count by, and why it is not the one in `policy.toml`, if it is not.
    ///
    /// # Errors
    /// When it can't be read, or when neither parses.
    pub async fn policy_in_use(&self) -> Result<(Policy, Option<String>), TickError> {
        let (policy, _, rejected) = self.policy().await?;
        Ok((policy, rejected))
    }

    /// The policy in the state, or the one used before if that does not parse; its text, and why it is the latter.
    async fn policy(&self) -> Result<(Policy, String, Option<String>), TickError> {
        let text = match self.store.get(POLICY_KEY).await? {
            Some((bytes, _)) => String::from_utf8_lossy(&bytes).into_owned(),
            None => analyzer::DEFAULT_POLICY.to_owned(),
        };
        match Policy::parse(&text) {
            Ok(policy) => Ok((policy, text, None)),
            Err(error) => {
                let before = self.store.get(POLICY_IN_USE_KEY).await?;
                let before = before.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned());
                let parsed = before.and_then(|text| Some((Policy::parse(&text).ok()?, text)));
                let rejected = Some(error.to_string());
                let (policy, text) = parsed.ok_or(TickError::Policy(error))?;
                Ok((policy, text, rejected))
            }
        }
    }

    /// Keeps the text of the policy in use for the day when the next one does not parse.
    async fn remember(&mut self, text: String) -> Result<(), TickError> {
        if self.in_use.as_ref() == Some(&text) {
            return Ok(());
        }
        let before = self.store.get(POLICY_IN_USE_KEY).await?;
        if before.is_none_or(|(bytes, _)| bytes != text.as_bytes()) {
            let bytes = text.clone().into_bytes();
            self.store.put(POLICY_IN_USE_KEY, bytes, Condition::Always).await?;
        }
        self.in_use = Some(text);
        Ok(())
    }

    /// Saves the ledger over the version that was read.
    ///
    /// # Errors
    /// A conflict when somebody else saved it since.
    pub async fn save(&self, ledger: &Ledger, read: Option<Version>) -> Result<(), StoreError> {
        let condition = read.map_or(Condition::IfAbsent, Condition::IfUnchanged);
        self.store
            .put(LEDGER_KEY, ledger.to_json().into_bytes(), condition)
            .await
            .map(|_| ())
    }
}

/// One run as it is kept for people to look at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// When it was done, in milliseconds since the epoch.
    pub finished_ms: i64,
    /// What it judged.
    pub summary: Summary,
    /// What came of each target's IP sets; nothing when the policy observes.
    pub outcomes: Vec<Outcome>,
}

impl Run {
    /// Whether something was not done.
    pub fn failed(&self) -> bool {
        self.summary.left > 0 || self.failures().next().is_some()
    }

    /// What was not done, and why.
    pub fn failures(&self) -> impl Iterator<Item = &str> {
        let outcomes = self.outcomes.iter().flat_map(|outcome| &outcome.failures);
        self.summary.problems.iter().chain(outcomes).map(String::as_str)
    }
}

/// The last runs: `runs.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Runs {
    version: u32,
    /// The newest first.
    runs: Vec<Run>,
}

impl<S: Store, L> Engine<S, L> {
    /// The last runs, the newest first. Runs of a newer version's format are none: they are not worth a failure.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn runs(&self) -> Result<Vec<Run>, StoreError> {
        let stored = self.store.get(RUNS_KEY).await?;
        let runs = stored.and_then(|(bytes, _)| serde_json::from_slice::<Runs>(&bytes).ok());
        Ok(runs.map(|runs| runs.runs).unwrap_or_default())
    }

    /// Keeps what a run did, for `palisade serve`. Nothing depends on it.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub async fn note_run(&mut self, run: Run) -> Result<(), StoreError> {
        let mut runs = match std::mem::take(&mut self.runs) {
            Some(runs) => runs,
            None => self.runs().await?,
        };
        runs.insert(0, run);
        runs.truncate(RUNS_MAX);
        let text = serde_json::to_vec(&Runs {
            version: 1,
            runs: runs.clone(),
        });
        let text = text.unwrap_or_default();
        self.runs = Some(runs);
        self.store.put(RUNS_KEY, text, Condition::Always).await.map(|_| ())
    }

    /// Changes the ledger; made again when somebody else was faster, so that a person and an updater never undo each other's
    /// work.
    ///
    /// # Errors
    /// What `change` says, and nothing is saved then; or when the ledger can't be read or saved.
    pub async fn change<T, E>(&self, change: impl Fn(&mut Ledger) -> Result<T, E>) -> Result<T, E>
    where
        E: From<TickError>,
    {
        for _ in 0..CHANGE_ATTEMPTS_MAX {
            let (mut ledger, version) = self.ledger().await?;
            let done = change(&mut ledger)?;
            match self.save(&ledger, version).await {
                Err(error) if error.is_conflict() => continue,
                saved => saved.map_err(TickError::from)?,
            }
            return Ok(done);
        }
        Err(TickError::Contended.into())
    }

    /// Notes that every IP set has been seen without these networks, so that they need not be remembered as ours. Call it
    /// when all targets were reconciled without a failure. If somebody saves the ledger meanwhile, the next minute does it.
    ///
    /// # Errors
    /// When the ledger can't be read or saved.
    pub async fn left(&self, networks: &BTreeSet<IpNet>) -> Result<(), TickError> {
        if networks.is_empty() {
            return Ok(());
        }
        let (mut ledger, version) = self.ledger().await?;
        ledger.leaving.retain(|net| !networks.contains(net));
        match self.save(&ledger, version).await {
            Err(error) if error.is_conflict() => Ok(()),
            saved => Ok(saved?),
        }
    }
}

impl<S: Store, L> Engine<S, L> {
    /// Takes in every tally of the horizon that is stored, without looking at logs; for those who only look. Returns what
    /// could not be read.
    ///
    /// # Errors
    /// When the state can't be listed.
    pub async fn take_stored(&mut self, policy: &Policy, now: Minute) -> Result<Vec<String>, StoreError> {
        let fingerprint = policy.fingerprint();
        // An object's hour is that of its first request's delivery, which may be the one before the horizon's first.
        let first = (now - policy.horizon()).epoch_seconds().div_euclid(3_600) - 1;
        let last = now.epoch_seconds().div_euclid(3_600);
        let mut hours: BTreeSet<String> = (first..=last)
            .filter_map(|hour| DateTime::<Utc>::from_timestamp(hour * 3_600, 0))
            .map(|hour| format!("tallies/{fingerprint}/{}", hour.format("%Y-%m-%dT%H")))
            .collect();
        hours.insert(format!("tallies/{fingerprint}/undated"));
        self.seen.keep(&fingerprint, &hours);
        let mut problems = Vec::new();
        for hour in &hours {
            let listed = self.store.list(&format!("{hour}/")).await?;
            problems.extend(self.take_tallies(listed.iter().map(|listed| listed.key.as_str())).await);
        }
        Ok(problems)
    }

    /// Takes in those of these tallies that were not taken yet. Returns what could not be read.
    async fn take_tallies(&mut self, keys: impl Iterator<Item = &str>) -> Vec<String> {
        let missing: Vec<&str> = keys.filter(|key| !self.seen.has(key)).collect();
        let mut problems = Vec::new();
        for keys in missing.chunks(TALLIES_AT_ONCE) {
            let tallies = join_all(keys.iter().map(|key| self.read_tally(key))).await;
            for (key, tally) in keys.iter().zip(tallies) {
                match tally {
                    Ok(tally) => self.seen.add(key, tally),
                    Err(error) => problems.push(chain(&error)),
                }
            }
        }
        problems
    }

    async fn read_tally(&self, key: &str) -> Result<ObjectTally, TickError> {
        let damaged = |why: &str| FormatError::Damaged {
            what: "the tally",
            why: why.into(),
        };
        let format = |source| TickError::Format {
            key: key.to_owned(),
            source,
        };
        let (bytes, _) = self
            .store
            .get(key)
            .await?
            .ok_or_else(|| format(damaged("it was listed and is gone")))?;
        ObjectTally::from_bytes(&bytes).map_err(format)
    }

    /// Everything that was taken in, and from how many objects.
    pub fn taken(&self) -> (&Tally, usize) {
        let objects = self.seen.hours.values().map(|hour| hour.keys.len()).sum();
        (&self.seen.all, objects)
    }
}

impl<S: Store, L: Logs> Engine<S, L> {
    /// Makes every tally of the horizon that is missing, without judging: a recount, after a change of what rules match.
    ///
    /// # Errors
    /// As [`Engine::tick`].
    pub async fn ingest(&mut self, now: Minute) -> Result<Summary, TickError> {
        let mut summary = Summary {
            now: now.to_string(),
            ..Summary::default()
        };
        let (policy, rejected) = self.policy_in_use().await?;
        summary.policy_rejected = rejected;
        self.take_in(&policy, now, false, || true, &mut summary).await?;
        Ok(summary)
    }

    /// Reads, judges and saves the minute `now`. A `dry` tick saves nothing. `has_time` says whether there is time to tally
    /// one more object.
    ///
    /// # Errors
    /// When the policy, the ledger or a listing could not be read, or the ledger not saved. Single objects that could not
    /// be read are in the summary: without them fewer offenses are seen, and no ban ends.
    pub async fn tick(&mut self, now: Minute, dry: bool, has_time: impl Fn() -> bool) -> Result<Ticked, TickError> {
        let mut summary = Summary {
            now: now.to_string(),
            ..Summary::default()
        };
        let mut watch = Stopwatch::start();
        let (policy, text, rejected) = self.policy().await?;
        summary.policy_rejected = rejected;
        if !dry {
            self.remember(text).await?;
        }
        summary.milliseconds.policy = watch.lap();
        self.take_in(&policy, now, dry, has_time, &mut summary).await?;
        watch.lap();
        for _ in 0..LEDGER_ATTEMPTS_MAX {
            let (ledger, version) = self.ledger().await?;
            summary.milliseconds.ledger += watch.lap();
            let judgment = judge(&policy, &self.seen.all, &ledger, now);
            summary.milliseconds.judge += watch.lap();
            let mut ours = ledger.ours();
            ours.extend(judgment.ledger.ours());
            // The audit comes first: after the ledger, nobody would say these things again. If we die in between, the next
            // minute decides and writes them once more, and an audit may say too much but never too little.
            if !dry && !judgment.verdicts.is_empty() {
                self.write_verdicts(now, &judgment).await?;
            }
            if !dry && judgment.ledger != ledger {
                match self.save(&judgment.ledger, version).await {
                    Err(error) if error.is_conflict() => continue,
                    saved => saved?,
                }
            }
            summary.milliseconds.ledger += watch.lap();
            summary.count(&policy, &judgment, now);
            return Ok(Ticked {
                summary,
                policy,
                judgment,
                ours,
            });
        }
        Err(TickError::Contended)
    }

    /// Takes in every tally of the horizon, making those that no event has made.
    async fn take_in(
        &mut self,
        policy: &Policy,
        now: Minute,
        dry: bool,
        has_time: impl Fn() -> bool,
        summary: &mut Summary,
    ) -> Result<(), TickError> {
        let from = now - policy.horizon();
        let fingerprint = policy.fingerprint();
        let mut watch = Stopwatch::start();
        let objects = self.logs.list(from, now).await?;
        summary.milliseconds.list = watch.lap();
        let wanted: BTreeMap<String, &Listed> = objects
            .iter()
            .map(|object| (tally_key(&fingerprint, &object.key), object))
            .collect();
        let hours: BTreeSet<String> = wanted
            .keys()
            .filter_map(|key| key.rsplit_once('/'))
            .map(|(hour, _)| hour.to_owned())
            .collect();
        self.seen.keep(&fingerprint, &hours);

        let mut stored: HashSet<String> = HashSet::new();
        if wanted.keys().any(|key| !self.seen.has(key)) {
            for hour in &hours {
                stored.extend(
                    self.store
                        .list(&format!("{hour}/"))
                        .await?
                        .into_iter()
                        .map(|listed| listed.key),
                );
            }
        }
        let is_stored = |key: &&str| stored.contains(*key);
        let unread = self
            .take_tallies(wanted.keys().map(String::as_str).filter(is_stored))
            .await;
        summary.left += unread.len();
        summary.problems.extend(unread);
        for (key, object) in &wanted {
            if self.seen.has(key) || stored.contains(key) {
                continue;
            }
            if !has_time() {
                summary.left += 1;
                continue;
            }
            match tally_object(&self.logs, policy, &object.key).await {
                Ok(tally) => {
                    summary.tallied += 1;
                    summary.requests += tally.requests;
                    summary.skipped += tally.skipped.values().sum::<u64>();
                    if !dry {
                        self.store.put(key, tally.to_bytes(), Condition::Always).await?;
                    }
                    self.seen.add(key, tally);
                }
                Err(error) => {
                    summary.left += 1;
                    summary.problems.push(chain(&error));
                }
            }
        }
        self.take_in_long(policy, now, summary).await?;
        summary.milliseconds.tallies = watch.lap();
        summary.tallies = self.seen.hours.values().map(|hour| hour.keys.len()).sum();
        summary.lag_seconds = self
            .seen
            .all
            .newest()
            .map(|newest| now.epoch_seconds() - newest.epoch_seconds() - 60);
        Ok(())
    }

    /// Takes in what Athena counted for the rules that name it, if it is another tally than the one before.
    async fn take_in_long(&mut self, policy: &Policy, now: Minute, summary: &mut Summary) -> Result<(), TickError> {
        let Some(key) = long_tally_key(policy) else {
            self.seen.take_long(None);
            return Ok(());
        };
        match self.store.get(&key).await? {
            None => self.seen.take_long(None),
            Some((bytes, version)) => {
                let place = (key, version);
                if self.seen.long.as_ref().is_none_or(|long| long.place != place) {
                    match ObjectTally::from_bytes(&bytes) {
                        Ok(counted) => self.seen.take_long(Some(Long {
                            place,
                            until: Minute::of_ms(counted.newest_ms.unwrap_or_default()),
                            tally: counted.tally,
                        })),
                        Err(error) => summary.problems.push(format!("`{}`: {error}", place.0)),
                    }
                }
            }
        }
        let until = self.seen.long.as_ref().map(|long| long.until);
        if until.is_none_or(|until| now.since(until) > ATHENA_PAUSE_MAX) {
            let since = until.map_or_else(|| "not yet".to_owned(), |until| format!("last for {until}"));
            summary.problems.push(format!(
                "rules with `engine = \"athena\"` accuse nobody new: Athena counted {since}; its schedule, or `palisade athena count`, should every hour"
            ));
        }
        Ok(())
    }

    async fn write_verdicts(&self, now: Minute, judgment: &Judgment) -> Result<(), StoreError> {
        let mut lines = Vec::new();
        for verdict in &judgment.verdicts {
            let event = crate::replay::Event {
                time: now,
                verdict: verdict.clone(),
                stopped: 0,
            };
            crate::report::write_line(&mut lines, &crate::report::Line::of(&event)).map_err(|error| {
                StoreError::new(
                    "write verdicts",
                    crate::store::StoreErrorKind::Failed(error.to_string()),
                )
            })?;
        }
        let time = DateTime::<Utc>::from_timestamp(now.epoch_seconds(), 0).unwrap_or_default();
        // Two updaters may decide differently in one minute; the hash keeps both, and the same lines in one place.
        let hash = xxh3_128(&lines) >> 96;
        let key = format!("verdicts/{}-{hash:08x}.jsonl", time.format("%Y-%m-%d/%H-%M"));
        self.store.put(&key, lines, Condition::Always).await.map(|_| ())
    }
}

impl Summary {
    fn count(&mut self, policy: &Policy, judgment: &Judgment, now: Minute) {
        use analyzer::Verdict;
        for verdict in &judgment.verdicts {
            match verdict {
                Verdict::Ban(..) => self.new_bans += 1,
                Verdict::Held(..) => self.held += 1,
                Verdict::Spared(..) => self.spared += 1,
                Verdict::Alert(..) | Verdict::Crowd(..) => self.alerts += 1,
            }
        }
        self.bans = judgment.ledger.wanted(policy, now).len();
    }
}

impl Seen {
    fn has(&self, key: &str) -> bool {
        key.rsplit_once('/')
            .and_then(|(hour, _)| self.hours.get(hour))
            .is_some_and(|hour| hour.keys.contains(key))
    }

    fn add(&mut self, key: &str, tally: ObjectTally) {
        let Some((hour, _)) = key.rsplit_once('/') else { return };
        // A copy under another name counts once, as in a replay. One without any record is like another and counts nothing.
        let known = |identity| self.hours.values().any(|hour| hour.identities.contains(identity));
        let copy = tally.identity.as_ref().is_some_and(known);
        let hour = self.hours.entry(hour.to_owned()).or_default();
        if hour.keys.insert(key.to_owned()) && !copy {
            hour.identities.extend(tally.identity);
            hour.tally.merge(tally.tally.clone());
            self.all.merge(tally.tally);
        }
    }

    /// Forgets the hours that are out of view, and everything if tallies count something else now.
    fn keep(&mut self, fingerprint: &str, hours: &BTreeSet<String>) {
        if self.fingerprint != fingerprint {
            *self = Seen {
                fingerprint: fingerprint.to_owned(),
                ..Seen::default()
            };
        }
        let before = self.hours.len();
        self.hours.retain(|hour, _| hours.contains(hour));
        if self.hours.len() < before {
            self.add_up();
        }
    }

    /// Takes what Athena counted instead of what it counted before. Its slots are its own, so that adding it to the tallies
    /// of objects counts nothing twice.
    fn take_long(&mut self, long: Option<Long>) {
        if self.long.is_some() || long.is_some() {
            self.long = long;
            self.add_up();
        }
    }

    fn add_up(&mut self) {
        self.all = Tally::default();
        for hour in self.hours.values() {
            self.all.merge(hour.tally.clone());
        }
        if let Some(long) = &self.long {
            self.all.merge(long.tally.clone());
        }
    }
}

/// The key of what Athena counted for the rules of `policy` that name it, if any do. It replaces what was there before, and
/// is of no use to a policy that counts something else or looks back further.
pub fn long_tally_key(policy: &Policy) -> Option<String> {
    let horizon = policy.long_horizon()?;
    Some(format!("tallies/athena/{}-{}", policy.fingerprint(), horizon.0))
}

/// The key of an object's tally: derived from the object's identity, so that a second delivery overwrites itself.
pub fn tally_key(fingerprint: &str, object: &str) -> String {
    let hour = match object_key::parse(object).times {
        Some(times) => DateTime::<Utc>::from_timestamp(times.start_s, 0)
            .unwrap_or_default()
            .format("%Y-%m-%dT%H")
            .to_string(),
        None => "undated".to_owned(),
    };
    format!("tallies/{fingerprint}/{hour}/{:032x}", xxh3_128(object.as_bytes()))
}

/// Reads one log object and counts it, on a thread that may block.
///
/// # Errors
/// When the object can't be read to its end: half an object is never a tally.
pub async fn tally_object(logs: &impl Logs, policy: &Policy, object: &str) -> Result<ObjectTally, TickError> {
    let log = logs.open(object).await?;
    let scan = {
        let policy = policy.clone();
        tokio::task::spawn_blocking(move || {
            let mut count = Count::new(&policy);
            let mut newest_ms = None;
            let (scan, identity) = scan_identified(log, &policy.wants(), false, |request| {
                newest_ms = newest_ms.max(Some(request.timestamp_ms));
                count.request(request);
            });
            (scan, identity, count.into_tally(), newest_ms)
        })
        .await
    };
    let unreadable = |why: String| {
        TickError::Store(StoreError::new(
            format!("read `{object}`"),
            crate::store::StoreErrorKind::Failed(why),
        ))
    };
    let (scan, identity, tally, newest_ms) = scan.map_err(|error| unreadable(error.to_string()))?;
    // A failed read may work the next time. Anything else that stopped us is what the object holds.
    if let Some(stop @ ingest::Stop::Io { .. }) = &scan.stopped {
        return Err(unreadable(stop.to_string()));
    }
    let skipped = scan.skipped.iter();
    let skipped = skipped.map(|(skip, count)| (skip.name().to_owned(), count)).collect();
    Ok(ObjectTally {
        object: object.to_owned(),
        requests: scan.requests,
        skipped,
        stopped: scan.stopped.map(|stop| stop.to_string()),
        newest_ms,
        identity: Some(identity),
        tally,
    })
}

/// What the command line and the updater need to know about a deployment: `deployment.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// The format's version, 1.
    pub version: u32,
    /// Where bans are enforced; several web ACLs share one ledger.
    pub targets: Vec<Target>,
}

/// IP sets in one scope and Region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `REGIONAL` or `CLOUDFRONT`.
    pub scope: String,
    /// The Region of a regional target.
    #[serde(default)]
    pub region: Option<String>,
    /// The sets of the ban rule.
    pub block: SetsOfAction,
    /// The sets of the challenge rule.
    #[serde(default)]
    pub challenge: SetsOfAction,
    /// The sets are ours alone: what others put in is removed.
    #[serde(default)]
    pub exclusive: bool,
}

/// The IP sets behind one rule, by family, in the order in which they are filled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SetsOfAction {
    /// For IPv4.
    pub v4: Vec<Set>,
    /// For IPv6.
    pub v6: Vec<Set>,
}

/// One IP set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// What a person called it.
    pub name: String,
    /// What WAF called it.
    pub id: String,
}

/// What reconciling one target's sets did, or why it could not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Updates sent.
    pub writes: usize,
    /// Networks added.
    pub added: usize,
    /// Networks removed.
    pub removed: usize,
    /// Networks that others put there.
    pub foreign: usize,
    /// Wanted, but in no set.
    pub overflow: usize,
    /// How many more the sets could take.
    pub room: usize,
    /// What failed.
    pub failures: Vec<String>,
}

/// The sets of one target for one action and family, and what is wanted in them.
#[derive(Debug)]
pub struct Group {
    /// The family of addresses.
    pub family: Family,
    /// The sets, in the order in which they are filled.
    pub sets: Vec<SetId>,
    /// The networks, most deserving first.
    pub wanted: Vec<IpNet>,
}

impl Target {
    /// Its sets by what they are for.
    pub fn groups(&self, wanted: &[(IpNet, Action)]) -> impl Iterator<Item = Group> {
        let of = |action: Action, family: Family, sets: &[Set]| Group {
            family,
            sets: sets.iter().map(|set| SetId::new(&set.name, &set.id)).collect(),
            wanted: wanted
                .iter()
                .filter(|(net, wanted)| *wanted == action && Family::of(net) == family)
                .map(|(net, _)| *net)
                .collect(),
        };
        [
            of(Action::Block, Family::V4, &self.block.v4),
            of(Action::Block, Family::V6, &self.block.v6),
            of(Action::Challenge, Family::V4, &self.challenge.v4),
            of(Action::Challenge, Family::V6, &self.challenge.v6),
        ]
        .into_iter()
    }

    /// Makes the sets agree with `wanted`. `pause` is called before each further attempt.
    pub async fn reconcile<P, F>(
        &self,
        ip_sets: &impl IpSets,
        wanted: &[(IpNet, Action)],
        ours: &[IpNet],
        mut pause: P,
    ) -> Outcome
    where
        P: FnMut(u32) -> F,
        F: Future<Output = ()>,
    {
        let mut outcome = Outcome::default();
        for Group { family, sets, wanted } in self.groups(wanted) {
            if sets.is_empty() {
                outcome.overflow += wanted.len();
                continue;
            }
            let options = Options {
                family,
                exclusive: self.exclusive,
            };
            match reconcile(ip_sets, &sets, &wanted, ours, &options, |attempt| pause(attempt.number)).await {
                Ok(done) => {
                    outcome.writes += done.applied.sets.len();
                    outcome.added += done.applied.added;
                    outcome.removed += done.applied.removed;
                    outcome.foreign += done.plan.foreign.len();
                    outcome.overflow += done.plan.overflow.len();
                    outcome.room += done.plan.room;
                }
                Err(error) => outcome.failures.push(chain(&error)),
            }
        }
        outcome
    }
}

/// An error with its sources, once each.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
