//! A fake of WAF that obeys WAF's rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use crate::{ADDRESSES_MAX, Family, IpSet, IpSetError, IpSets, LockToken, SetId};

/// IP sets in memory, which accept and refuse what WAF accepts and refuses:
///
/// - an update replaces the whole content and makes every older lock token stale;
/// - more than [`ADDRESSES_MAX`] addresses, the other family, a `/0` and set host bits are refused, and so is the
///   whole update with them;
/// - an address given twice is refused. What WAF does with it is documented nowhere, so nothing here may rely on it.
///
/// It counts the calls that reach it, and lets a test edit a set behind our back as a person in the console would.
#[derive(Debug)]
pub struct Memory {
    addresses_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sets: BTreeMap<SetId, IpSet>,
    tokens: u64,
    gets: usize,
    updates: usize,
}

impl Memory {
    /// No sets yet.
    pub fn new() -> Self {
        Self::with_addresses_max(ADDRESSES_MAX)
    }

    /// With a smaller quota, for tests at the cap that a person can follow.
    pub(crate) fn with_addresses_max(addresses_max: usize) -> Self {
        Self {
            addresses_max,
            state: Mutex::default(),
        }
    }

    /// Creates a set, or replaces one of the same name and id.
    pub fn create(&self, set: &SetId, family: Family, addresses: &[IpNet]) -> Result<(), IpSetError> {
        self.check(family, addresses)?;
        let mut state = self.state();
        let lock_token = state.next_token();
        state.sets.insert(
            set.clone(),
            IpSet {
                addresses: addresses.to_vec(),
                lock_token,
                family,
            },
        );
        Ok(())
    }

    /// Edits a set behind our back: the rules hold, the lock token changes, and no call is counted.
    pub fn edit(&self, set: &SetId, edit: impl FnOnce(&mut Vec<IpNet>)) -> Result<(), IpSetError> {
        let mut state = self.state();
        let current = state.sets.get(set).ok_or(IpSetError::Nonexistent)?;
        let (family, mut addresses) = (current.family, current.addresses.clone());
        edit(&mut addresses);
        self.check(family, &addresses)?;
        state.replace(set, addresses)
    }

    /// What a set holds, sorted. A look from outside, which counts as no call.
    pub fn addresses(&self, set: &SetId) -> Option<Vec<IpNet>> {
        let mut addresses = self.state().sets.get(set)?.addresses.clone();
        addresses.sort_unstable();
        Some(addresses)
    }

    /// A set's present lock token. A look from outside, too.
    pub fn lock_token(&self, set: &SetId) -> Option<LockToken> {
        self.state().sets.get(set).map(|set| set.lock_token.clone())
    }

    /// How often [`IpSets::get`] was called.
    pub fn gets(&self) -> usize {
        self.state().gets
    }

    /// How often [`IpSets::update`] was called, refused updates included.
    pub fn updates(&self) -> usize {
        self.state().updates
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state changes in single steps: a thread that panicked in between leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, family: Family, addresses: &[IpNet]) -> Result<(), IpSetError> {
        if addresses.len() > self.addresses_max {
            return Err(IpSetError::LimitsExceeded);
        }
        let mut seen = BTreeSet::new();
        for network in addresses {
            if Family::of(network) != family || network.prefix_len() == 0 || *network != network.trunc() {
                return Err(invalid(network, "The parameter contains formatting that is not valid."));
            }
            if !seen.insert(network) {
                return Err(invalid(network, "The parameter is a duplicate."));
            }
        }
        Ok(())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl IpSets for Memory {
    async fn get(&self, set: &SetId) -> Result<IpSet, IpSetError> {
        let mut state = self.state();
        state.gets += 1;
        state.sets.get(set).cloned().ok_or(IpSetError::Nonexistent)
    }

    async fn update(&self, set: &SetId, addresses: &[IpNet], lock: &LockToken) -> Result<(), IpSetError> {
        let mut state = self.state();
        state.updates += 1;
        let current = state.sets.get(set).ok_or(IpSetError::Nonexistent)?;
        if current.lock_token != *lock {
            return Err(IpSetError::OptimisticLock);
        }
        self.check(current.family, addresses)?;
        state.replace(set, addresses.to_vec())
    }
}

impl State {
    fn next_token(&mut self) -> LockToken {
        self.tokens += 1;
        LockToken(format!("token-{}", self.tokens))
    }

    fn replace(&mut self, set: &SetId, addresses: Vec<IpNet>) -> Result<(), IpSetError> {
        let lock_token = self.next_token();
        let current = self.sets.get_mut(set).ok_or(IpSetError::Nonexistent)?;
        current.addresses = addresses;
        current.lock_token = lock_token;
        Ok(())
    }
}

fn invalid(network: &IpNet, reason: &str) -> IpSetError {
    IpSetError::InvalidParameter {
        field: "IP_ADDRESS".to_owned(),
        parameter: network.to_string(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(text: &str) -> Vec<IpNet> {
        text.split_whitespace()
            .map(|network| network.parse().unwrap())
            .collect()
    }

    fn bans() -> SetId {
        SetId::new("bans", "id-1")
    }

    fn with(family: Family, addresses: &str) -> Memory {
        let memory = Memory::new();
        memory.create(&bans(), family, &networks(addresses)).unwrap();
        memory
    }

    /// Offers `addresses` to a set and says what WAF would say.
    async fn offer(family: Family, addresses: &[IpNet]) -> Result<(), IpSetError> {
        let memory = with(family, "");
        let lock = memory.lock_token(&bans()).unwrap();
        let answer = memory.update(&bans(), addresses, &lock).await;
        let expected = if answer.is_ok() { addresses.len() } else { 0 };
        assert_eq!(memory.addresses(&bans()).unwrap().len(), expected, "all or nothing");
        answer
    }

    #[tokio::test]
    async fn an_update_replaces_everything_and_makes_its_token_stale() {
        let memory = with(Family::V4, "192.0.2.1/32 192.0.2.2/32");
        let lock = memory.get(&bans()).await.unwrap().lock_token;
        memory.update(&bans(), &networks("192.0.2.3/32"), &lock).await.unwrap();
        assert_eq!(memory.get(&bans()).await.unwrap().addresses, networks("192.0.2.3/32"));
        assert_eq!(
            memory.update(&bans(), &[], &lock).await,
            Err(IpSetError::OptimisticLock)
        );
        assert_eq!(memory.addresses(&bans()).unwrap(), networks("192.0.2.3/32"));
        assert_eq!((memory.gets(), memory.updates()), (2, 2));
    }

    #[tokio::test]
    async fn an_edit_behind_our_back_makes_our_token_stale() {
        let memory = with(Family::V4, "");
        let lock = memory.get(&bans()).await.unwrap().lock_token;
        memory
            .edit(&bans(), |addresses| addresses.push("198.51.100.7/32".parse().unwrap()))
            .unwrap();
        assert_eq!(
            memory.update(&bans(), &[], &lock).await,
            Err(IpSetError::OptimisticLock)
        );
        assert_eq!(memory.updates(), 1, "the edit was not ours");
    }

    #[tokio::test]
    async fn a_refused_address_is_named_in_wafs_own_words() {
        let check = async |family, addresses: &str, parameter: &str| {
            let error = offer(family, &networks(addresses)).await.unwrap_err();
            let expected =
                format!("WAF refused IP_ADDRESS `{parameter}`: The parameter contains formatting that is not valid.");
            assert_eq!(error.to_string(), expected);
        };
        check(Family::V4, "192.0.2.1/32 0.0.0.0/0", "0.0.0.0/0").await;
        check(Family::V6, "::/0", "::/0").await;
        check(Family::V4, "2001:db8::/64", "2001:db8::/64").await;
        check(Family::V6, "192.0.2.1/32", "192.0.2.1/32").await;
        check(Family::V4, "195.178.188.66/29", "195.178.188.66/29").await;
    }

    #[tokio::test]
    async fn an_address_given_twice_is_refused() {
        let error = offer(Family::V4, &networks("192.0.2.1/32 192.0.2.1/32"))
            .await
            .unwrap_err();
        assert!(matches!(error, IpSetError::InvalidParameter { .. }));
    }

    #[tokio::test]
    async fn ten_thousand_addresses_fit_and_one_more_does_not() {
        let address = |index: u32| IpNet::new((0x0a00_0000 + index).to_be_bytes().into(), 32).unwrap();
        let mut addresses: Vec<IpNet> = (0..10_000).map(address).collect();
        assert_eq!(offer(Family::V4, &addresses).await, Ok(()));
        addresses.push(address(10_000));
        assert_eq!(offer(Family::V4, &addresses).await, Err(IpSetError::LimitsExceeded));
    }

    #[tokio::test]
    async fn an_unknown_set_does_not_exist() {
        let memory = with(Family::V4, "");
        let lock = memory.lock_token(&bans()).unwrap();
        let other = SetId::new("bans", "id-2");
        assert_eq!(memory.get(&other).await, Err(IpSetError::Nonexistent));
        assert_eq!(memory.update(&other, &[], &lock).await, Err(IpSetError::Nonexistent));
        assert_eq!(memory.edit(&other, Vec::clear), Err(IpSetError::Nonexistent));
    }
}
