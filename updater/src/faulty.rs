//! Lets calls fail as a script says.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;

use crate::{IpSet, IpSetError, IpSets, LockToken, SetId};

/// Wraps [`IpSets`] and lets calls fail.
///
/// Each call takes the next [`Fault`] of its script; a script that came to its end lets everything pass. Reads and
/// updates have scripts of their own, so that a test can say "the second update" without counting reads.
pub struct Faulty<T> {
    inner: T,
    gets: Mutex<Script>,
    updates: Mutex<Script>,
}

type Script = Box<dyn Iterator<Item = Fault> + Send>;

/// What happens to one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing, it passes.
    None,
    /// It fails and is not carried out: throttled, refused, locked by somebody else, or lost on its way.
    Before(IpSetError),
    /// It is carried out, then the answer gets lost and this error comes instead.
    After(IpSetError),
}

impl<T> Faulty<T> {
    /// Lets everything pass until it is told otherwise.
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            gets: Mutex::new(Box::new(std::iter::empty())),
            updates: Mutex::new(Box::new(std::iter::empty())),
        }
    }

    /// The script for reads. It may be endless.
    #[must_use]
    pub fn on_get<S>(self, script: S) -> Self
    where
        S: IntoIterator<Item = Fault>,
        S::IntoIter: Send + 'static,
    {
        Self {
            gets: Mutex::new(Box::new(script.into_iter())),
            ..self
        }
    }

    /// The script for updates. It may be endless.
    #[must_use]
    pub fn on_update<S>(self, script: S) -> Self
    where
        S: IntoIterator<Item = Fault>,
        S::IntoIter: Send + 'static,
    {
        Self {
            updates: Mutex::new(Box::new(script.into_iter())),
            ..self
        }
    }

    /// What is wrapped.
    pub fn inner(&self) -> &T {
        &self.inner
    }
}

impl<T: IpSets + Sync> IpSets for Faulty<T> {
    async fn get(&self, set: &SetId) -> Result<IpSet, IpSetError> {
        match next(&self.gets) {
            Fault::None => self.inner.get(set).await,
            Fault::Before(error) => Err(error),
            Fault::After(error) => self.inner.get(set).await.and(Err(error)),
        }
    }

    async fn update(&self, set: &SetId, addresses: &[IpNet], lock: &LockToken) -> Result<(), IpSetError> {
        match next(&self.updates) {
            Fault::None => self.inner.update(set, addresses, lock).await,
            Fault::Before(error) => Err(error),
            Fault::After(error) => self.inner.update(set, addresses, lock).await.and(Err(error)),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Faulty<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

fn next(script: &Mutex<Script>) -> Fault {
    script
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .next()
        .unwrap_or(Fault::None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Family, Memory};

    #[tokio::test]
    async fn each_call_takes_the_next_fault_and_then_everything_passes() {
        let set = SetId::new("bans", "id-1");
        let memory = Memory::new();
        memory.create(&set, Family::V4, &[]).unwrap();
        let faulty = Faulty::new(&memory)
            .on_get([Fault::None, Fault::Before(IpSetError::Throttled)])
            .on_update([
                Fault::Before(IpSetError::OptimisticLock),
                Fault::After(IpSetError::Internal),
            ]);
        let addresses: [IpNet; 1] = ["192.0.2.1/32".parse().unwrap()];

        let lock = faulty.get(&set).await.unwrap().lock_token;
        assert_eq!(faulty.get(&set).await, Err(IpSetError::Throttled));
        assert_eq!(
            faulty.update(&set, &addresses, &lock).await,
            Err(IpSetError::OptimisticLock)
        );
        assert_eq!(memory.addresses(&set).unwrap(), [], "not carried out");
        assert_eq!(faulty.update(&set, &addresses, &lock).await, Err(IpSetError::Internal));
        assert_eq!(
            memory.addresses(&set).unwrap(),
            addresses,
            "carried out, and reported as failed"
        );
        assert_eq!(faulty.get(&set).await.unwrap().addresses, addresses);
        assert_eq!(
            (memory.gets(), memory.updates()),
            (2, 1),
            "what failed before never arrived"
        );
    }
}
