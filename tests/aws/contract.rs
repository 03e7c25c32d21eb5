//! What [`IpSets`] promises, looked at in the fake and in WAF alike.
//!
//! Every other test of the updater believes [`Memory`]. Here is why it may.

use std::slice;
use std::sync::Mutex;

use ipnet::IpNet;
use updater::{
    ADDRESSES_MAX, Family, IpSet, IpSetError, IpSets, LockToken, Memory, Options, Reconciled, Scope, SetId, Wafv2,
    reconcile,
};

use super::{Console, StandIn, many, networks, unique};

/// Somebody who keeps IP sets, and lets others edit them.
trait Keeper {
    type Sets: IpSets + Sync;

    fn sets(&self) -> &Self::Sets;

    async fn create(&self, family: Family, addresses: &[IpNet]) -> SetId;

    /// Adds an address behind our back.
    fn add(&self, set: &SetId, network: IpNet) -> impl Future<Output = ()> + Send;
}

impl Keeper for Memory {
    type Sets = Memory;

    fn sets(&self) -> &Memory {
        self
    }

    async fn create(&self, family: Family, addresses: &[IpNet]) -> SetId {
        let name = unique("bans");
        let set = SetId::new(&name, format!("id-of-{name}"));
        Memory::create(self, &set, family, addresses).unwrap();
        set
    }

    async fn add(&self, set: &SetId, network: IpNet) {
        self.edit(set, |addresses| addresses.push(network)).unwrap();
    }
}

struct Waf {
    wafv2: Wafv2,
    console: Console,
}

impl Waf {
    fn new(aws: &StandIn) -> Waf {
        Waf {
            wafv2: Wafv2::new(&aws.config("eu-central-1"), Scope::Regional),
            console: Console::new(aws, "eu-central-1", aws_sdk_wafv2::types::Scope::Regional),
        }
    }
}

impl Keeper for Waf {
    type Sets = Wafv2;

    fn sets(&self) -> &Wafv2 {
        &self.wafv2
    }

    async fn create(&self, family: Family, addresses: &[IpNet]) -> SetId {
        self.console.create(&unique("bans"), family, addresses, None).await
    }

    async fn add(&self, set: &SetId, network: IpNet) {
        self.console.add(set, network).await;
    }
}

/// Makes every promise two tests: one with the fake, one with WAF.
macro_rules! promises {
    ($($promise:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(&updater::Memory::new()).await;
            })*
        }

        mod waf {
            $(#[tokio::test]
            async fn $promise() {
                let Some(aws) = super::StandIn::shared() else { return };
                super::$promise(&super::Waf::new(aws)).await;
            })*
        }
    };
}

promises! {
    a_set_is_read_as_it_was_created
    an_update_replaces_everything_and_makes_its_token_stale
    an_edit_behind_our_back_makes_our_token_stale
    a_set_needs_its_name_and_its_id
    what_is_refused_is_refused_as_a_whole
    ten_thousand_addresses_fit_and_one_more_does_not
    a_set_can_be_emptied
    reconciling_twice_writes_once
    reconciling_fills_the_next_set_when_one_is_full
    what_somebody_else_adds_meanwhile_stays
    a_set_of_the_other_family_is_left_alone
}

async fn a_set_is_read_as_it_was_created(keeper: &impl Keeper) {
    for (family, content) in [
        (Family::V4, "192.0.2.1/32 198.51.100.0/24"),
        (Family::V6, "2001:db8::/64 2001:db8:1::1/128"),
    ] {
        let set = keeper.create(family, &networks(content)).await;
        let found = read(keeper, &set).await;
        assert_eq!((found.addresses, found.family), (networks(content), family));
        assert_eq!(
            read(keeper, &set).await.lock_token,
            found.lock_token,
            "reading changes nothing"
        );
    }
}

async fn an_update_replaces_everything_and_makes_its_token_stale(keeper: &impl Keeper) {
    let set = keeper.create(Family::V4, &networks("192.0.2.1/32 192.0.2.2/32")).await;
    let lock = read(keeper, &set).await.lock_token;
    keeper
        .sets()
        .update(&set, &networks("192.0.2.3/32"), &lock)
        .await
        .unwrap();
    assert_eq!(
        keeper.sets().update(&set, &[], &lock).await,
        Err(IpSetError::OptimisticLock)
    );
    let after = read(keeper, &set).await;
    assert_eq!(after.addresses, networks("192.0.2.3/32"));
    assert_eq!(keeper.sets().update(&set, &[], &after.lock_token).await, Ok(()));
}

async fn an_edit_behind_our_back_makes_our_token_stale(keeper: &impl Keeper) {
    let set = keeper.create(Family::V6, &networks("2001:db8::/64")).await;
    let lock = read(keeper, &set).await.lock_token;
    keeper.add(&set, "2001:db8:1::/64".parse().unwrap()).await;
    assert_eq!(
        keeper.sets().update(&set, &[], &lock).await,
        Err(IpSetError::OptimisticLock)
    );
    assert_eq!(
        read(keeper, &set).await.addresses,
        networks("2001:db8::/64 2001:db8:1::/64")
    );
}

async fn a_set_needs_its_name_and_its_id(keeper: &impl Keeper) {
    let set = keeper.create(Family::V4, &[]).await;
    let lock = read(keeper, &set).await.lock_token;
    let wrong_name = SetId::new("another", &set.id);
    let wrong_id = SetId::new(&set.name, "00000000-0000-4000-8000-000000000000");
    for wrong in [wrong_name, wrong_id] {
        assert_eq!(keeper.sets().get(&wrong).await, Err(IpSetError::Nonexistent));
        assert_eq!(
            keeper.sets().update(&wrong, &[], &lock).await,
            Err(IpSetError::Nonexistent)
        );
    }
}

async fn what_is_refused_is_refused_as_a_whole(keeper: &impl Keeper) {
    let check = async |family, good: &str, bad: &str| {
        let set = keeper.create(family, &networks(good)).await;
        let before = read(keeper, &set).await;
        let error = offer(keeper, &set, &networks(&format!("{good} {bad}")), &before.lock_token)
            .await
            .unwrap_err();
        let IpSetError::InvalidParameter { field, parameter, .. } = error else {
            panic!("{bad}: {error:?}")
        };
        assert_eq!((field.as_str(), parameter.as_str()), ("IP_ADDRESS", bad));
        assert_eq!(read(keeper, &set).await, before);
    };
    check(Family::V4, "192.0.2.1/32", "0.0.0.0/0").await;
    check(Family::V4, "192.0.2.1/32", "195.178.188.66/29").await;
    check(Family::V4, "192.0.2.1/32", "2001:db8::/64").await;
    check(Family::V4, "192.0.2.1/32", "192.0.2.1/32").await;
    check(Family::V6, "2001:db8::/64", "::/0").await;
    check(Family::V6, "2001:db8::/64", "2001:db8:1::1/64").await;
    check(Family::V6, "2001:db8::/64", "192.0.2.1/32").await;
}

async fn ten_thousand_addresses_fit_and_one_more_does_not(keeper: &impl Keeper) {
    for family in [Family::V4, Family::V6] {
        let set = keeper.create(family, &[]).await;
        let lock = read(keeper, &set).await.lock_token;
        let addresses = many(family, 10_001);
        assert_eq!(
            offer(keeper, &set, &addresses, &lock).await,
            Err(IpSetError::LimitsExceeded)
        );
        assert_eq!(offer(keeper, &set, &addresses[..10_000], &lock).await, Ok(()));
        assert_eq!(read(keeper, &set).await.addresses, addresses[..10_000]);
    }
}

async fn a_set_can_be_emptied(keeper: &impl Keeper) {
    let set = keeper.create(Family::V4, &networks("192.0.2.1/32")).await;
    let lock = read(keeper, &set).await.lock_token;
    assert_eq!(keeper.sets().update(&set, &[], &lock).await, Ok(()));
    assert_eq!(read(keeper, &set).await.addresses, []);
}

async fn reconciling_twice_writes_once(keeper: &impl Keeper) {
    for (family, foreign, wanted) in [
        (Family::V4, "203.0.113.9/32", "192.0.2.1/32 198.51.100.0/24"),
        (Family::V6, "2001:db8:f::/64", "2001:db8:1::/64 2001:db8:2::/64"),
    ] {
        let set = keeper.create(family, &networks(foreign)).await;
        let run = async || reconciled(keeper.sets(), slice::from_ref(&set), family, &networks(wanted)).await;
        let first = run().await;
        assert_eq!(
            (first.applied.sets.len(), first.applied.added, first.applied.removed),
            (1, 2, 0)
        );
        let after = read(keeper, &set).await;
        assert_eq!(
            sorted(after.addresses),
            sorted(networks(&format!("{wanted} {foreign}")))
        );

        let second = run().await;
        assert_eq!((second.applied.sets.len(), second.plan.foreign), (0, networks(foreign)));
        assert_eq!(read(keeper, &set).await.lock_token, after.lock_token, "nobody wrote");
    }
}

async fn reconciling_fills_the_next_set_when_one_is_full(keeper: &impl Keeper) {
    let sets = [
        keeper.create(Family::V4, &[]).await,
        keeper.create(Family::V4, &[]).await,
    ];
    let wanted = many(Family::V4, 10_003);
    let done = reconciled(keeper.sets(), &sets, Family::V4, &wanted).await;
    assert_eq!((done.applied.sets.as_slice(), done.plan.overflow.len()), (&sets[..], 0));
    let [first, second] = [
        read(keeper, &sets[0]).await.addresses,
        read(keeper, &sets[1]).await.addresses,
    ];
    assert_eq!((first.len(), second.len()), (ADDRESSES_MAX, 3));
    assert_eq!(sorted([first, second].concat()), wanted);
}

async fn what_somebody_else_adds_meanwhile_stays(keeper: &(impl Keeper + Sync)) {
    let set = keeper.create(Family::V4, &networks("203.0.113.1/32")).await;
    let rivaled = Rivaled {
        keeper,
        edits: Mutex::new(networks("203.0.113.2/32 203.0.113.3/32")),
    };
    let done = reconciled(&rivaled, slice::from_ref(&set), Family::V4, &networks("192.0.2.1/32")).await;
    assert_eq!(
        (done.attempts, done.applied.sets.len()),
        (3, 1),
        "two edits came in between"
    );
    let everything = networks("192.0.2.1/32 203.0.113.1/32 203.0.113.2/32 203.0.113.3/32");
    assert_eq!(sorted(read(keeper, &set).await.addresses), everything);
}

async fn a_set_of_the_other_family_is_left_alone(keeper: &impl Keeper) {
    let set = keeper.create(Family::V6, &networks("2001:db8::/64")).await;
    let before = read(keeper, &set).await;
    let options = Options {
        family: Family::V4,
        exclusive: true,
    };
    let result = reconcile(
        keeper.sets(),
        slice::from_ref(&set),
        &networks("192.0.2.1/32"),
        &[],
        &options,
        async |_| (),
    )
    .await;
    assert_eq!(
        result.unwrap_err().to_string(),
        format!("use IP set `{set}` for IPv4: it holds IPv6")
    );
    assert_eq!(read(keeper, &set).await, before);
}

/// Sets that somebody edits each time we have read one, until the edits are used up.
struct Rivaled<'a, K> {
    keeper: &'a K,
    edits: Mutex<Vec<IpNet>>,
}

impl<K: Keeper + Sync> IpSets for Rivaled<'_, K> {
    async fn get(&self, set: &SetId) -> Result<IpSet, IpSetError> {
        let found = self.keeper.sets().get(set).await;
        let edit = self.edits.lock().unwrap().pop();
        if let Some(network) = edit {
            self.keeper.add(set, network).await;
        }
        found
    }

    async fn update(&self, set: &SetId, addresses: &[IpNet], lock: &LockToken) -> Result<(), IpSetError> {
        self.keeper.sets().update(set, addresses, lock).await
    }
}

async fn read(keeper: &impl Keeper, set: &SetId) -> IpSet {
    keeper.sets().get(set).await.unwrap()
}

async fn offer(keeper: &impl Keeper, set: &SetId, addresses: &[IpNet], lock: &LockToken) -> Result<(), IpSetError> {
    keeper.sets().update(set, addresses, lock).await
}

async fn reconciled(ip_sets: &impl IpSets, sets: &[SetId], family: Family, wanted: &[IpNet]) -> Reconciled {
    let options = Options {
        family,
        exclusive: false,
    };
    reconcile(ip_sets, sets, wanted, wanted, &options, async |_| ())
        .await
        .unwrap()
}

fn sorted(mut networks: Vec<IpNet>) -> Vec<IpNet> {
    networks.sort_unstable();
    networks
}
