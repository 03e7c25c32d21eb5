//! Makes IP sets look like a plan, once ([`apply`]) or until they do ([`reconcile`]).

use std::future::Future;

use ipnet::IpNet;
use thiserror::Error;

use crate::{Family, IpSet, IpSetError, IpSets, Options, Plan, SetId, plan};

/// How often [`reconcile`] reads and plans before it gives up. Our only rivals are a person in the console and a
/// deployment; who loses five times in a row against those should tell somebody, and the next run starts afresh.
pub const ATTEMPTS_MAX: u32 = 5;

/// Reads the sets, plans, and writes what differs; again from the start if a set changed meanwhile or a call failed
/// in a way that passes.
///
/// Nothing is remembered from one attempt to the next: each compares what should be with what is. So a write whose
/// answer got lost is not repeated, and an attempt that stopped halfway is finished by the next one. Where a read
/// fails nothing is planned, because an unreadable set is not an empty one.
///
/// `pause` is asked between two attempts, with the attempt that failed; how long to wait is its decision.
pub async fn reconcile<P, F>(
    ip_sets: &impl IpSets,
    sets: &[SetId],
    wanted: &[IpNet],
    ours: &[IpNet],
    options: &Options,
    mut pause: P,
) -> Result<Reconciled, ReconcileError>
where
    P: FnMut(Attempt) -> F,
    F: Future<Output = ()>,
{
    let mut applied = Applied::default();
    let mut number = 1;
    loop {
        let failure = match attempt(ip_sets, sets, wanted, ours, options, &mut applied).await {
            Ok(plan) => {
                return Ok(Reconciled {
                    plan,
                    applied,
                    attempts: number,
                });
            }
            Err(failure) => failure,
        };
        match failure.ip_set_error() {
            Some(error) if error.is_retryable() && number < ATTEMPTS_MAX => {
                pause(Attempt {
                    number,
                    error: error.clone(),
                })
                .await;
            }
            _ => return Err(failure),
        }
        number += 1;
    }
}

/// Writes every set of the plan in its order, and stops at the first that fails. Decides nothing.
pub async fn apply(ip_sets: &impl IpSets, plan: &Plan) -> Result<Applied, ApplyError> {
    let mut applied = Applied::default();
    for write in &plan.writes {
        match ip_sets.update(&write.set, &write.addresses, &write.lock_token).await {
            Ok(()) => {
                applied.sets.push(write.set.clone());
                applied.added += write.added.len();
                applied.removed += write.removed.len();
            }
            Err(source) => {
                return Err(ApplyError {
                    set: write.set.clone(),
                    applied,
                    source,
                });
            }
        }
    }
    Ok(applied)
}

/// What was certainly written. A write whose answer got lost is not in here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// The sets written, in order. After several attempts a set can be here twice.
    pub sets: Vec<SetId>,
    /// How many entries were new in their set.
    pub added: usize,
    /// How many entries left their set.
    pub removed: usize,
}

/// A set that could not be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("write IP set `{set}`")]
pub struct ApplyError {
    /// The set that failed; those after it were not tried.
    pub set: SetId,
    /// What had been written before.
    pub applied: Applied,
    /// Why.
    pub source: IpSetError,
}

/// The sets agree with what was wanted, as far as the plan says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// The last plan. Its `writes` are empty when there was nothing, or nothing more, to write.
    pub plan: Plan,
    /// What was written, in all attempts together.
    pub applied: Applied,
    /// How many attempts it took; one, usually.
    pub attempts: u32,
}

/// An attempt that failed and will be followed by another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Counted from one.
    pub number: u32,
    /// What went wrong.
    pub error: IpSetError,
}

/// Why the sets could not be made to agree.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReconcileError {
    /// A set could not be read.
    #[error("read IP set `{set}`")]
    Read {
        /// The set.
        set: SetId,
        /// What earlier attempts had written.
        applied: Applied,
        /// Why.
        source: IpSetError,
    },
    /// A set holds the other family. Its addresses were left alone, and nothing else was written in this attempt.
    #[error("use IP set `{set}` for {wanted}: it holds {found}")]
    WrongFamily {
        /// The set.
        set: SetId,
        /// What it should hold.
        wanted: Family,
        /// What it holds.
        found: Family,
    },
    /// A set could not be written. Its `applied` includes earlier attempts.
    #[error(transparent)]
    Write(#[from] ApplyError),
}

impl ReconcileError {
    /// What the keeper of the sets said, if it was not our own mistake.
    fn ip_set_error(&self) -> Option<&IpSetError> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Write(error) => Some(&error.source),
            Self::WrongFamily { .. } => None,
        }
    }
}

/// One attempt: read, plan, apply. `applied` grows by what was written, also when the attempt fails.
async fn attempt(
    ip_sets: &impl IpSets,
    sets: &[SetId],
    wanted: &[IpNet],
    ours: &[IpNet],
    options: &Options,
    applied: &mut Applied,
) -> Result<Plan, ReconcileError> {
    let observed = observe(ip_sets, sets, options.family, applied).await?;
    let plan = plan(wanted, ours, &observed, options);
    match apply(ip_sets, &plan).await {
        Ok(now) => {
            applied.extend(now);
            Ok(plan)
        }
        Err(error) => {
            applied.extend(error.applied);
            Err(ApplyError {
                applied: applied.clone(),
                ..error
            }
            .into())
        }
    }
}

async fn observe(
    ip_sets: &impl IpSets,
    sets: &[SetId],
    family: Family,
    applied: &Applied,
) -> Result<Vec<(SetId, IpSet)>, ReconcileError> {
    let mut observed = Vec::with_capacity(sets.len());
    for set in sets {
        let ip_set = ip_sets.get(set).await.map_err(|source| ReconcileError::Read {
            set: set.clone(),
            applied: applied.clone(),
            source,
        })?;
        if ip_set.family != family {
            return Err(ReconcileError::WrongFamily {
                set: set.clone(),
                wanted: family,
                found: ip_set.family,
            });
        }
        observed.push((set.clone(), ip_set));
    }
    Ok(observed)
}

impl Applied {
    fn extend(&mut self, later: Applied) {
        self.sets.extend(later.sets);
        self.added += later.added;
        self.removed += later.removed;
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::sync::Mutex;

    use super::*;
    use crate::{Fault, Faulty, LockToken, Memory};
    use proptest::prelude::*;

    const OPTIONS: Options = Options {
        family: Family::V4,
        exclusive: false,
    };

    fn networks(text: &str) -> Vec<IpNet> {
        text.split_whitespace()
            .map(|network| network.parse().unwrap())
            .collect()
    }

    fn id(index: usize) -> SetId {
        SetId::new(format!("bans-{index}"), format!("id-{index}"))
    }

    /// IPv4 sets with these contents.
    fn memory(contents: &[&str]) -> (Memory, Vec<SetId>) {
        let memory = Memory::new();
        let sets: Vec<SetId> = (0..contents.len()).map(id).collect();
        for (set, content) in sets.iter().zip(contents) {
            memory.create(set, Family::V4, &networks(content)).unwrap();
        }
        (memory, sets)
    }

    /// Reconciles without waiting, and says between which attempts it would have waited.
    async fn run(
        ip_sets: &impl IpSets,
        sets: &[SetId],
        wanted: &str,
        ours: &str,
    ) -> (Result<Reconciled, ReconcileError>, Vec<Attempt>) {
        let pauses = Mutex::new(Vec::new());
        let pause = async |attempt| pauses.lock().unwrap().push(attempt);
        let result = reconcile(ip_sets, sets, &networks(wanted), &networks(ours), &OPTIONS, pause).await;
        (result, pauses.into_inner().unwrap())
    }

    /// A plan that puts one address into each of `count` sets.
    fn one_each(memory: &Memory, count: usize) -> Plan {
        let write = |index| crate::Write {
            set: id(index),
            addresses: networks("192.0.2.1/32"),
            lock_token: memory.lock_token(&id(index)).unwrap(),
            added: networks("192.0.2.1/32"),
            removed: networks("192.0.2.9/32"),
        };
        Plan {
            writes: (0..count).map(write).collect(),
            ..Plan::default()
        }
    }

    #[tokio::test]
    async fn apply_writes_every_set_in_order() {
        let (memory, sets) = memory(&["192.0.2.9/32", "192.0.2.9/32"]);
        let applied = apply(&memory, &one_each(&memory, 2)).await.unwrap();
        assert_eq!(
            applied,
            Applied {
                sets: sets.clone(),
                added: 2,
                removed: 2
            }
        );
        assert_eq!(memory.addresses(&sets[1]).unwrap(), networks("192.0.2.1/32"));
    }

    #[tokio::test]
    async fn apply_stops_at_the_first_failure_and_says_what_was_written() {
        let (memory, sets) = memory(&["", "", ""]);
        let mut plan = one_each(&memory, 3);
        plan.writes[1].lock_token = LockToken("stale".to_owned());
        let error = apply(&memory, &plan).await.unwrap_err();
        assert_eq!(error.to_string(), "write IP set `bans-1`");
        assert_eq!(
            error.source().unwrap().to_string(),
            "somebody changed the IP set after we read it"
        );
        assert_eq!(
            error.applied,
            Applied {
                sets: vec![id(0)],
                added: 1,
                removed: 1
            }
        );
        assert_eq!(memory.addresses(&sets[2]).unwrap(), [], "not tried");
    }

    #[tokio::test]
    async fn nothing_changed_and_nothing_is_written() {
        let (memory, sets) = memory(&["192.0.2.1/32 198.51.100.0/24", ""]);
        let (result, _) = run(&memory, &sets, "192.0.2.1/32", "").await;
        let reconciled = result.unwrap();
        assert_eq!((reconciled.applied, reconciled.attempts), (Applied::default(), 1));
        assert_eq!((memory.gets(), memory.updates()), (2, 0));
    }

    #[tokio::test]
    async fn an_address_is_added_and_the_second_run_has_nothing_to_do() {
        let (memory, sets) = memory(&["192.0.2.9/32"]);
        let (first, _) = run(&memory, &sets, "192.0.2.1/32", "192.0.2.9/32").await;
        assert_eq!(
            first.unwrap().applied,
            Applied {
                sets: sets.clone(),
                added: 1,
                removed: 1
            }
        );
        let (second, _) = run(&memory, &sets, "192.0.2.1/32", "192.0.2.9/32").await;
        assert_eq!(second.unwrap().plan.writes, []);
        assert_eq!(memory.updates(), 1);
    }

    /// Lets a person edit the first set between our read and our write, a few times.
    struct Rival<'a> {
        memory: &'a Memory,
        edits: Mutex<Vec<IpNet>>,
    }

    impl IpSets for Rival<'_> {
        async fn get(&self, set: &SetId) -> Result<IpSet, IpSetError> {
            self.memory.get(set).await
        }

        async fn update(&self, set: &SetId, addresses: &[IpNet], lock: &LockToken) -> Result<(), IpSetError> {
            if let Some(network) = self.edits.lock().unwrap().pop() {
                self.memory.edit(set, |addresses| addresses.push(network)).unwrap();
            }
            self.memory.update(set, addresses, lock).await
        }
    }

    #[tokio::test]
    async fn an_edit_between_read_and_write_survives() {
        let (memory, sets) = memory(&[""]);
        let edits = Mutex::new(networks("198.51.100.0/24 198.51.101.0/24"));
        let (result, pauses) = run(&Rival { memory: &memory, edits }, &sets, "192.0.2.1/32", "").await;
        let reconciled = result.unwrap();
        assert_eq!(reconciled.attempts, 3);
        assert_eq!(reconciled.plan.foreign, networks("198.51.100.0/24 198.51.101.0/24"));
        let survived = networks("192.0.2.1/32 198.51.100.0/24 198.51.101.0/24");
        assert_eq!(memory.addresses(&sets[0]).unwrap(), survived);
        let expected = [1, 2].map(|number| Attempt {
            number,
            error: IpSetError::OptimisticLock,
        });
        assert_eq!(pauses, expected);
    }

    #[tokio::test]
    async fn after_five_lost_races_we_give_up_and_say_so() {
        let (memory, sets) = memory(&[""]);
        let faulty = Faulty::new(&memory).on_update(std::iter::repeat(Fault::Before(IpSetError::OptimisticLock)));
        let (result, pauses) = run(&faulty, &sets, "192.0.2.1/32", "").await;
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "write IP set `bans-0`");
        assert_eq!(
            error.source().unwrap().to_string(),
            IpSetError::OptimisticLock.to_string()
        );
        assert_eq!(memory.gets(), ATTEMPTS_MAX as usize);
        assert_eq!(
            pauses.len(),
            ATTEMPTS_MAX as usize - 1,
            "nobody waits after the last attempt"
        );
    }

    #[tokio::test]
    async fn a_failed_read_is_not_an_empty_set() {
        let (memory, sets) = memory(&["198.51.100.0/24", "192.0.2.9/32"]);
        let denied = IpSetError::Denied {
            action: "wafv2:GetIPSet".to_owned(),
        };
        let faulty = Faulty::new(&memory).on_get([Fault::None, Fault::Before(denied.clone())]);
        let (result, pauses) = run(&faulty, &sets, "192.0.2.1/32", "192.0.2.9/32").await;
        let error = result.unwrap_err();
        assert_eq!(
            error,
            ReconcileError::Read {
                set: id(1),
                applied: Applied::default(),
                source: denied
            }
        );
        assert_eq!(error.to_string(), "read IP set `bans-1`");
        assert_eq!(
            error.source().unwrap().to_string(),
            "not allowed to call `wafv2:GetIPSet`"
        );
        assert_eq!((memory.updates(), pauses.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_throttled_read_is_tried_again() {
        let (memory, sets) = memory(&["", ""]);
        let faulty = Faulty::new(&memory).on_get([Fault::None, Fault::Before(IpSetError::Throttled)]);
        let (result, pauses) = run(&faulty, &sets, "192.0.2.1/32", "").await;
        assert_eq!(result.unwrap().attempts, 2);
        assert_eq!(
            pauses,
            [Attempt {
                number: 1,
                error: IpSetError::Throttled
            }]
        );
    }

    #[tokio::test]
    async fn a_write_whose_answer_got_lost_is_not_repeated() {
        let (memory, sets) = memory(&[""]);
        let faulty = Faulty::new(&memory).on_update([Fault::After(IpSetError::Internal)]);
        let (result, _) = run(&faulty, &sets, "192.0.2.1/32", "").await;
        assert_eq!(result.unwrap().plan.writes, []);
        assert_eq!(memory.addresses(&sets[0]).unwrap(), networks("192.0.2.1/32"));
        assert_eq!(memory.updates(), 1);
    }

    #[tokio::test]
    async fn what_an_earlier_attempt_wrote_is_in_the_report() {
        let (memory, sets) = memory(&["192.0.2.8/32", "192.0.2.9/32"]);
        let denied = IpSetError::Denied {
            action: "wafv2:UpdateIPSet".to_owned(),
        };
        let script = [
            Fault::None,
            Fault::Before(IpSetError::Throttled),
            Fault::Before(denied.clone()),
        ];
        let faulty = Faulty::new(&memory).on_update(script);
        let (result, _) = run(&faulty, &sets, "", "192.0.2.8/31").await;
        let written = Applied {
            sets: vec![id(0)],
            added: 0,
            removed: 1,
        };
        let expected = ApplyError {
            set: id(1),
            applied: written,
            source: denied,
        };
        assert_eq!(result, Err(ReconcileError::Write(expected)));
    }

    #[tokio::test]
    async fn a_set_of_the_other_family_is_a_mistake_and_left_alone() {
        let (memory, mut sets) = memory(&[""]);
        sets.push(SetId::new("bans-v6", "id-6"));
        memory.create(&sets[1], Family::V6, &networks("2001:db8::/64")).unwrap();
        let (result, _) = run(&memory, &sets, "192.0.2.1/32", "").await;
        assert_eq!(
            result.unwrap_err().to_string(),
            "use IP set `bans-v6` for IPv4: it holds IPv6"
        );
        assert_eq!(memory.updates(), 0);
    }

    /// A Lambda may want to spawn this; a future that is not `Send` would be found out there, far from its cause.
    #[test]
    fn reconciling_can_move_between_threads() {
        fn check(_: impl Send) {}
        let (memory, sets) = memory(&[""]);
        let faulty = Faulty::new(memory);
        check(reconcile(
            &faulty,
            &sets,
            &[],
            &[],
            &OPTIONS,
            |_| std::future::ready(()),
        ));
    }

    fn fault() -> impl Strategy<Value = Fault> {
        let error = || {
            prop_oneof![
                Just(IpSetError::Throttled),
                Just(IpSetError::Internal),
                Just(IpSetError::OptimisticLock)
            ]
        };
        prop_oneof![2 => Just(Fault::None), 1 => error().prop_map(Fault::Before), 1 => error().prop_map(Fault::After)]
    }

    fn clients() -> impl Strategy<Value = Vec<IpNet>> {
        let client = (0u8..32).prop_map(|last| IpNet::new([192, 0, 2, last].into(), 32).unwrap());
        prop::collection::vec(client, 0..20)
    }

    proptest! {
        #[test]
        fn whatever_fails_on_the_way_the_sets_end_the_same(
            before in clients(),
            wanted in clients(),
            gets in prop::collection::vec(fault(), 0..4),
            updates in prop::collection::vec(fault(), 0..4),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let prepare = || {
                let (memory, sets) = memory(&["198.51.100.0/24", "198.51.101.0/24"]);
                let fill = reconcile(&memory, &sets, &before, &[], &OPTIONS, |_| std::future::ready(()));
                runtime.block_on(fill).unwrap();
                (memory, sets)
            };
            let (calm, sets) = prepare();
            let (stormy, _) = prepare();
            let stormy = Faulty::new(stormy).on_get(gets).on_update(updates);
            let quick = |_| std::future::ready(());
            runtime.block_on(reconcile(&calm, &sets, &wanted, &before, &OPTIONS, quick)).unwrap();

            // Each attempt uses up at least one of the faults, at most eight: three runs of five attempts suffice.
            let mut result = runtime.block_on(reconcile(&stormy, &sets, &wanted, &before, &OPTIONS, quick));
            for _ in 0..2 {
                if result.is_err() {
                    result = runtime.block_on(reconcile(&stormy, &sets, &wanted, &before, &OPTIONS, quick));
                }
            }
            prop_assert!(result.is_ok(), "{result:?}");
            for set in &sets {
                prop_assert_eq!(calm.addresses(set), stormy.inner().addresses(set));
            }
        }
    }
}
