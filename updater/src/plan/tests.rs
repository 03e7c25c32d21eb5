use super::*;
use crate::Memory;
use proptest::prelude::*;

fn networks(text: &str) -> Vec<IpNet> {
    text.split_whitespace()
        .map(|network| network.parse().unwrap())
        .collect()
}

/// `count` addresses of which no two are neighbors, so that they cannot be aggregated.
fn scattered(count: u32) -> Vec<IpNet> {
    (0..count)
        .map(|index| IpNet::new((0x0a00_0000 + 2 * index).to_be_bytes().into(), 32).unwrap())
        .collect()
}

fn id(index: usize) -> SetId {
    SetId::new(format!("bans-{index}"), format!("id-{index}"))
}

fn observe(family: Family, contents: &[Vec<IpNet>]) -> Vec<(SetId, IpSet)> {
    let set = |(index, addresses): (usize, &Vec<IpNet>)| {
        let lock_token = LockToken(format!("lock-{index}"));
        (
            id(index),
            IpSet {
                addresses: addresses.clone(),
                lock_token,
                family,
            },
        )
    };
    contents.iter().enumerate().map(set).collect()
}

const KEEP_FOREIGN: Options = Options {
    family: Family::V4,
    exclusive: false,
};
const EXCLUSIVE: Options = Options {
    family: Family::V4,
    exclusive: true,
};

/// What the sets hold once the plan is applied.
fn contents_after(plan: &Plan, observed: &[(SetId, IpSet)]) -> Vec<Vec<IpNet>> {
    let after = |(set, ip_set): &(SetId, IpSet)| {
        let write = plan.writes.iter().find(|write| write.set == *set);
        write.map_or_else(
            || sorted(ip_set.addresses.iter().copied()),
            |write| write.addresses.clone(),
        )
    };
    observed.iter().map(after).collect()
}

/// One story: sets of `addresses_max` addresses that hold `observed`, separated by `|`, and then hold `expected`.
fn check(addresses_max: usize, wanted: &str, ours: &str, observed: &str, options: &Options, expected: &str) -> Plan {
    let contents: Vec<_> = observed.split('|').map(networks).collect();
    let observed = observe(options.family, &contents);
    let plan = plan_within(addresses_max, &networks(wanted), &networks(ours), &observed, options);
    let after: Vec<String> = contents_after(&plan, &observed)
        .iter()
        .map(|content| content.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(after.join(" | "), expected);
    plan
}

#[test]
fn a_ban_is_added_and_an_expired_one_removed() {
    let plan = check(
        9,
        "192.0.2.44/32 192.0.2.7/32",
        "192.0.2.7/32 192.0.2.9/32",
        "192.0.2.9/32 192.0.2.7/32",
        &KEEP_FOREIGN,
        "192.0.2.7/32 192.0.2.44/32",
    );
    let [write] = &plan.writes[..] else {
        panic!("one set, one write")
    };
    assert_eq!(write.added, networks("192.0.2.44/32"));
    assert_eq!(write.removed, networks("192.0.2.9/32"));
    assert_eq!(write.lock_token, LockToken("lock-0".to_owned()));
    assert_eq!((plan.held, plan.room), (2, 7));
}

#[test]
fn nothing_changed_and_nothing_is_written() {
    let plan = check(
        9,
        "192.0.2.44/32 2001:db8::/64 192.0.2.7/32",
        "",
        "192.0.2.7/32 192.0.2.44/32",
        &KEEP_FOREIGN,
        "192.0.2.7/32 192.0.2.44/32",
    );
    assert_eq!(
        plan,
        Plan {
            held: 2,
            room: 7,
            ..Plan::default()
        }
    );
}

#[test]
fn no_offenders_empty_the_set() {
    let plan = check(9, "", "192.0.2.7/32", "192.0.2.7/32", &KEEP_FOREIGN, "");
    assert_eq!(plan.writes.len(), 1);
}

#[test]
fn a_family_takes_its_own_and_ignores_the_other() {
    let v6 = Options {
        family: Family::V6,
        exclusive: false,
    };
    let wanted = "192.0.2.44/32 2001:db8:0:1::/64 ::ffff:192.0.2.45/128";
    check(9, wanted, "", "", &v6, "2001:db8:0:1::/64");
    check(9, wanted, "", "", &KEEP_FOREIGN, "192.0.2.44/32 192.0.2.45/32");

    let mut observed = observe(Family::V6, &[networks("2001:db8:0:9::/64")]);
    observed.extend(observe(Family::V4, &[vec![]]));
    let plan = plan(&networks(wanted), &[], &observed[..1], &KEEP_FOREIGN);
    assert_eq!(
        (plan.writes.len(), plan.overflow.len()),
        (0, 2),
        "there is no set to write to"
    );
}

#[test]
fn host_bits_are_cleared_and_repetitions_are_one() {
    check(
        9,
        "195.178.188.66/29 195.178.188.65/29",
        "",
        "",
        &KEEP_FOREIGN,
        "195.178.188.64/29",
    );
}

#[test]
fn nobody_bans_the_internet() {
    let plan = check(
        9,
        "0.0.0.0/0 192.0.2.7/32 ::ffff:0:0/96",
        "",
        "",
        &KEEP_FOREIGN,
        "192.0.2.7/32",
    );
    assert_eq!(plan.overflow, networks("0.0.0.0/0"));

    // Not even bit by bit: the union of these is everything, and remembering everything makes nothing ours.
    check(
        2,
        "0.0.0.0/2 64.0.0.0/2 128.0.0.0/1",
        "",
        "",
        &KEEP_FOREIGN,
        "0.0.0.0/1 128.0.0.0/1",
    );
    check(9, "", "0.0.0.0/0", "192.0.2.7/32", &KEEP_FOREIGN, "192.0.2.7/32");
}

#[test]
fn a_foreign_network_stays_and_is_reported() {
    let plan = check(
        9,
        "192.0.2.44/32",
        "",
        "198.51.100.0/24 192.0.2.0/24",
        &KEEP_FOREIGN,
        "192.0.2.0/24 192.0.2.44/32 198.51.100.0/24",
    );
    assert_eq!(plan.foreign, networks("192.0.2.0/24 198.51.100.0/24"));
    assert_eq!((plan.held, plan.room), (3, 6));
}

#[test]
fn a_foreign_network_goes_if_the_set_is_ours_alone_and_is_still_reported() {
    let plan = check(9, "192.0.2.44/32", "", "198.51.100.0/24", &EXCLUSIVE, "192.0.2.44/32");
    assert_eq!(plan.foreign, networks("198.51.100.0/24"));
    assert_eq!((plan.held, plan.room), (1, 8));
}

#[test]
fn an_aggregate_of_our_own_making_is_not_foreign() {
    let plan = check(
        9,
        "192.0.2.1/32",
        "192.0.2.0/32",
        "192.0.2.0/31",
        &KEEP_FOREIGN,
        "192.0.2.1/32",
    );
    assert_eq!(plan.foreign, []);
}

#[test]
fn a_network_wider_than_what_we_know_is_foreign() {
    let plan = check(
        9,
        "192.0.2.1/32",
        "192.0.2.0/32",
        "192.0.2.0/30",
        &KEEP_FOREIGN,
        "192.0.2.0/30 192.0.2.1/32",
    );
    assert_eq!(plan.foreign, networks("192.0.2.0/30"));
}

#[test]
fn a_mapped_network_somebody_put_into_an_ipv6_set_stays_what_it_is() {
    let v6 = Options {
        family: Family::V6,
        exclusive: false,
    };
    let mapped = "::ffff:192.0.2.44/128";
    check(
        9,
        &format!("2001:db8:0:1::/64 {mapped}"),
        mapped,
        mapped,
        &v6,
        "::ffff:192.0.2.44/128 2001:db8:0:1::/64",
    );
}

#[test]
fn foreign_networks_count_against_the_quota() {
    let plan = check(
        3,
        "192.0.2.2/32 192.0.2.4/32 192.0.2.6/32",
        "",
        "198.51.100.0/24",
        &KEEP_FOREIGN,
        "192.0.2.2/32 192.0.2.4/32 198.51.100.0/24",
    );
    assert_eq!(plan.overflow, networks("192.0.2.6/32"));
    assert_eq!((plan.held, plan.room), (3, 0));
}

#[test]
fn entries_stay_as_they_are_while_they_fit() {
    check(
        2,
        "192.0.2.0/32 192.0.2.1/32",
        "",
        "",
        &KEEP_FOREIGN,
        "192.0.2.0/32 192.0.2.1/32",
    );
}

#[test]
fn at_the_cap_neighbors_become_one_and_nobody_is_dropped() {
    let plan = check(
        2,
        "192.0.2.0/32 192.0.2.9/32 192.0.2.1/32",
        "",
        "192.0.2.0/32 192.0.2.9/32",
        &KEEP_FOREIGN,
        "192.0.2.0/31 192.0.2.9/32",
    );
    assert_eq!(plan.overflow, []);
}

#[test]
fn the_lowest_ranked_go_first() {
    let plan = check(
        2,
        "192.0.2.9/32 192.0.2.1/32 192.0.2.5/32 192.0.2.3/32",
        "",
        "192.0.2.3/32 192.0.2.5/32",
        &KEEP_FOREIGN,
        "192.0.2.1/32 192.0.2.9/32",
    );
    assert_eq!(
        plan.overflow,
        networks("192.0.2.5/32 192.0.2.3/32"),
        "most deserving first"
    );
}

#[test]
fn what_an_entry_covers_anyway_is_no_overflow() {
    let plan = check(
        2,
        "192.0.2.8/29 192.0.2.1/32 192.0.2.5/32 192.0.2.9/32",
        "",
        "",
        &KEEP_FOREIGN,
        "192.0.2.1/32 192.0.2.8/29",
    );
    assert_eq!(plan.overflow, networks("192.0.2.5/32"));
}

#[test]
fn what_does_not_fit_spills_into_the_next_set() {
    let plan = check(
        2,
        "192.0.2.1/32 192.0.2.3/32 192.0.2.5/32",
        "",
        "|",
        &KEEP_FOREIGN,
        "192.0.2.1/32 192.0.2.3/32 | 192.0.2.5/32",
    );
    assert_eq!((plan.held, plan.room), (3, 1));
}

#[test]
fn an_entry_stays_in_its_set_and_one_more_ban_rewrites_one_set() {
    let plan = check(
        3,
        "192.0.2.5/32 192.0.2.3/32 192.0.2.1/32",
        "192.0.2.7/32",
        "192.0.2.1/32 192.0.2.7/32 | 192.0.2.5/32",
        &KEEP_FOREIGN,
        "192.0.2.1/32 192.0.2.3/32 | 192.0.2.5/32",
    );
    assert_eq!(plan.writes.len(), 1);
}

#[test]
fn an_entry_in_two_sets_is_kept_once() {
    let observed = "192.0.2.1/32 | 192.0.2.1/32 192.0.2.3/32";
    check(
        3,
        "192.0.2.3/32 192.0.2.1/32",
        "",
        observed,
        &KEEP_FOREIGN,
        "192.0.2.1/32 | 192.0.2.3/32",
    );
}

#[test]
fn two_sets_do_not_trade_entries_while_neighbors_become_one() {
    // Filled in order, each set would get the union of what the other one loses, and whichever is written first
    // would let its two clients through.
    check(
        2,
        "192.0.2.4/32 192.0.2.5/32 192.0.2.0/32 192.0.2.1/32 192.0.2.2/32 192.0.2.8/32",
        "",
        "192.0.2.4/32 192.0.2.5/32 | 192.0.2.0/32 192.0.2.1/32",
        &KEEP_FOREIGN,
        "192.0.2.2/32 192.0.2.4/31 | 192.0.2.0/31 192.0.2.8/32",
    );
}

#[test]
fn a_foreign_network_that_stays_attracts_no_newcomer() {
    let foreign = "| 192.0.2.0/24";
    check(
        2,
        "192.0.2.44/32",
        "",
        foreign,
        &KEEP_FOREIGN,
        "192.0.2.44/32 | 192.0.2.0/24",
    );
    check(2, "192.0.2.44/32", "", foreign, &EXCLUSIVE, " | 192.0.2.44/32");
}

#[test]
fn a_set_that_only_gains_is_written_before_one_that_loses() {
    let plan = check(
        2,
        "192.0.2.1/32 192.0.2.2/32 192.0.2.9/32",
        "192.0.2.0/30",
        "192.0.2.0/30 192.0.2.9/32 |",
        &KEEP_FOREIGN,
        "192.0.2.1/32 192.0.2.9/32 | 192.0.2.2/32",
    );
    assert_eq!(
        plan.writes.iter().map(|write| &write.set).collect::<Vec<_>>(),
        [&id(1), &id(0)]
    );
}

#[test]
fn without_sets_everything_overflows() {
    let wanted = networks("192.0.2.9/32 192.0.2.1/32");
    let plan = plan(&wanted, &[], &[], &KEEP_FOREIGN);
    assert_eq!(
        plan,
        Plan {
            overflow: wanted,
            ..Plan::default()
        }
    );
}

#[test]
fn a_set_named_twice_is_one_set() {
    let mut observed = observe(Family::V4, &[vec![]]);
    observed.extend(observed.clone());
    let plan = plan(&networks("192.0.2.9/32"), &[], &observed, &KEEP_FOREIGN);
    assert_eq!((plan.writes.len(), plan.held, plan.room), (1, 1, ADDRESSES_MAX - 1));
}

#[test]
fn the_ten_thousand_and_first_offender_overflows_one_set_and_fits_into_two() {
    let wanted = scattered(10_001);
    let one = plan(&wanted, &[], &observe(Family::V4, &[vec![]]), &KEEP_FOREIGN);
    assert_eq!(one.writes[0].addresses, wanted[..10_000]);
    assert_eq!(
        (one.overflow, one.held, one.room),
        (wanted[10_000..].to_vec(), 10_000, 0)
    );

    let two = plan(&wanted, &[], &observe(Family::V4, &[vec![], vec![]]), &KEEP_FOREIGN);
    assert_eq!(two.writes[1].addresses, wanted[10_000..]);
    assert_eq!((two.overflow, two.held, two.room), (vec![], 10_001, 9_999));
}

#[test]
fn of_twenty_five_thousand_the_most_deserving_get_what_room_there_is() {
    let wanted = scattered(25_000);
    for shards in [1, 2] {
        let plan = plan(&wanted, &[], &observe(Family::V4, &vec![vec![]; shards]), &KEEP_FOREIGN);
        let held = shards * ADDRESSES_MAX;
        let written: Vec<_> = plan.writes.iter().flat_map(|write| write.addresses.clone()).collect();
        assert_eq!(written, wanted[..held]);
        assert_eq!(
            (plan.overflow, plan.held, plan.room),
            (wanted[held..].to_vec(), held, 0)
        );
    }
}

#[test]
fn twenty_five_thousand_neighbors_are_eight_entries() {
    let wanted: Vec<IpNet> = (0..25_000u32)
        .map(|index| IpNet::new((0x0a00_0000 + index).to_be_bytes().into(), 32).unwrap())
        .collect();
    let plan = plan(&wanted, &[], &observe(Family::V4, &[vec![]]), &KEEP_FOREIGN);
    assert_eq!((plan.overflow, plan.held), (vec![], 25_000usize.count_ones() as usize));
}

/// `cargo test -p updater --release -- --ignored --nocapture planning` says how long it takes.
#[test]
#[ignore = "a measurement, for release builds"]
fn planning_a_hundred_thousand_addresses_takes_milliseconds() {
    let mut random = 1u64;
    let mut draw = |bits: u32| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        random >> (64 - bits)
    };
    let v4 = |address: u64, bits| IpNet::new((address as u32).to_be_bytes().into(), bits).unwrap();
    let v6 = |subnet: u64| {
        IpNet::new(
            ((0x2001_0db8u128 << 96) | (u128::from(subnet) << 64))
                .to_be_bytes()
                .into(),
            64,
        )
        .unwrap()
    };
    let cases: [(&str, Family, Vec<IpNet>); 4] = [
        (
            "random over all of IPv4",
            Family::V4,
            (0..100_000).map(|_| v4(draw(32), 32)).collect(),
        ),
        (
            "crowded into a /15",
            Family::V4,
            (0..100_000).map(|_| v4(0x0a00_0000 + draw(17), 32)).collect(),
        ),
        ("every second address", Family::V4, scattered(100_000)),
        ("IPv6 /64s", Family::V6, (0..100_000).map(|_| v6(draw(32))).collect()),
    ];
    for (name, family, wanted) in cases {
        let options = Options {
            family,
            exclusive: false,
        };
        for shards in [1, 2, 12] {
            let empty = observe(family, &vec![vec![]; shards]);
            let full = observe(family, &contents_after(&plan(&wanted, &[], &empty, &options), &empty));
            let start = std::time::Instant::now();
            let plan = plan(&wanted, &wanted, &full, &options);
            let took = start.elapsed();
            eprintln!(
                "{name}, {shards} full sets: {took:?}, {} held, {} over",
                plan.held,
                plan.overflow.len()
            );
            assert_eq!(plan.writes, []);
        }
    }
}

fn small_network() -> impl Strategy<Value = IpNet> {
    let bits = prop_oneof![4 => Just(32u8), 2 => 29u8..=31, 1 => 25u8..=28];
    (0u8..64, bits).prop_map(|(last, bits)| IpNet::new([192, 0, 2, last].into(), bits).unwrap())
}

/// A world small enough to look at every address: wanted, ours, the sets' content, and the quota of a set.
#[derive(Debug, Clone)]
struct World {
    wanted: Vec<IpNet>,
    ours: Vec<IpNet>,
    contents: Vec<Vec<IpNet>>,
    addresses_max: usize,
    options: Options,
}

fn world() -> impl Strategy<Value = World> {
    (4usize..12, any::<bool>()).prop_flat_map(|(addresses_max, exclusive)| {
        let list = || prop::collection::vec(small_network(), 0..30);
        let content =
            prop::collection::btree_set(small_network().prop_map(|network| network.trunc()), 0..=addresses_max);
        let content = content.prop_map(|content| content.into_iter().collect()).prop_shuffle();
        (list(), list(), prop::collection::vec(content, 1..4)).prop_map(move |(wanted, ours, contents)| World {
            wanted,
            ours,
            contents,
            addresses_max,
            options: Options {
                family: Family::V4,
                exclusive,
            },
        })
    })
}

impl World {
    fn observed(&self) -> Vec<(SetId, IpSet)> {
        observe(Family::V4, &self.contents)
    }

    fn plan(&self) -> Plan {
        plan_within(
            self.addresses_max,
            &self.wanted,
            &self.ours,
            &self.observed(),
            &self.options,
        )
    }

    fn foreign(&self) -> Vec<IpNet> {
        let known = addresses(self.wanted.iter().chain(&self.ours));
        let all = self.contents.concat();
        sorted(
            all.into_iter()
                .filter(|network| !addresses([network]).is_subset(&known)),
        )
    }
}

/// Two lists of clients, the second a part of the first and some more, for a few small sets.
fn two_runs() -> impl Strategy<Value = (Vec<IpNet>, Vec<IpNet>, usize, usize)> {
    let client = || (0u8..64).prop_map(|last| IpNet::new([192, 0, 2, last].into(), 32).unwrap());
    (
        prop::collection::vec(client(), 0..40),
        prop::collection::vec(client(), 0..20),
        1usize..4,
        2usize..8,
    )
        .prop_flat_map(|(first, more, sets, addresses_max)| {
            let stays = prop::sample::subsequence(first.clone(), 0..=first.len());
            (
                Just(first),
                stays.prop_map(move |stays| [stays, more.clone()].concat()),
                Just(sets),
                Just(addresses_max),
            )
        })
}

/// The naive way: one address after the other.
fn addresses<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> BTreeSet<u8> {
    let networks: Vec<_> = networks.into_iter().collect();
    let address = |last| std::net::Ipv4Addr::new(192, 0, 2, last);
    (0..=255)
        .filter(|&last| {
            networks
                .iter()
                .any(|network| network.contains(&std::net::IpAddr::V4(address(last))))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_sets_cover_the_most_deserving_and_the_foreign_and_nothing_else(world in world()) {
        let plan = world.plan();
        let after = contents_after(&plan, &world.observed());
        let foreign = world.foreign();
        prop_assert_eq!(&plan.foreign, &foreign);

        // What should be there, by trying every start of the list from the longest on.
        let kept = if world.options.exclusive { vec![] } else { foreign.clone() };
        let room: usize = world
            .contents
            .iter()
            .map(|content| world.addresses_max - content.iter().filter(|network| kept.contains(network)).count())
            .sum();
        let (wanted, _) = holdable(&world.wanted, Family::V4);
        let longest = (0..=wanted.len()).rev().find(|&n| IpNet::aggregate(&wanted[..n].to_vec()).len() <= room).unwrap();
        let banned = addresses(&wanted[..longest]);
        let expected: BTreeSet<u8> = banned.union(&addresses(&kept)).copied().collect();
        prop_assert_eq!(addresses(after.iter().flatten()), expected);

        // Nobody is forgotten: wanted is what is banned and what overflows.
        let overflow: Vec<IpNet> =
            wanted[longest..].iter().copied().filter(|network| !addresses([network]).is_subset(&banned)).collect();
        prop_assert_eq!(&plan.overflow, &overflow);

        let held: usize = after.iter().map(Vec::len).sum();
        prop_assert_eq!(plan.held, held);
        prop_assert_eq!(plan.held + plan.room, world.addresses_max * world.contents.len());
    }

    #[test]
    fn what_is_planned_is_what_waf_accepts(world in world()) {
        let memory = Memory::with_addresses_max(world.addresses_max);
        let mut observed = world.observed();
        for (set, ip_set) in &mut observed {
            memory.create(set, Family::V4, &ip_set.addresses).unwrap();
            ip_set.lock_token = memory.lock_token(set).unwrap();
        }
        let plan = plan_within(world.addresses_max, &world.wanted, &world.ours, &observed, &world.options);
        let applied = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(crate::apply(&memory, &plan))
            .unwrap();
        prop_assert_eq!(applied.sets.len(), plan.writes.len());
        for ((set, _), content) in observed.iter().zip(contents_after(&plan, &observed)) {
            prop_assert_eq!(memory.addresses(set).unwrap(), content);
        }
    }

    #[test]
    fn a_plan_for_its_own_result_writes_nothing(world in world()) {
        let first = world.plan();
        let again = World { contents: contents_after(&first, &world.observed()), ..world }.plan();
        prop_assert_eq!(again.writes, []);
        prop_assert_eq!(again.overflow, first.overflow);
        prop_assert_eq!((again.held, again.room), (first.held, first.room));
    }

    #[test]
    fn foreign_networks_are_never_touched(world in world()) {
        let foreign = world.foreign();
        for write in world.plan().writes {
            let touched: Vec<_> = write.removed.iter().filter(|network| foreign.contains(network)).collect();
            prop_assert!(world.options.exclusive || touched.is_empty(), "{touched:?}");
            let set = sorted(world.contents[world.observed().iter().position(|(set, _)| *set == write.set).unwrap()].iter().copied());
            prop_assert_eq!(&missing_from(&set, &write.addresses), &write.added);
            prop_assert_eq!(&missing_from(&write.addresses, &set), &write.removed);
        }
    }

    #[test]
    fn the_order_in_which_waf_lists_a_set_is_irrelevant(
        (world, shuffled) in world().prop_flat_map(|world| {
            let shuffled: Vec<_> = world.contents.iter().map(|content| Just(content.clone()).prop_shuffle()).collect();
            (Just(world), shuffled)
        }),
    ) {
        prop_assert_eq!(World { contents: shuffled, ..world.clone() }.plan(), world.plan());
    }

    #[test]
    fn an_entry_that_stays_stays_where_it_is(world in world()) {
        let after = contents_after(&world.plan(), &world.observed());
        for (index, content) in after.iter().enumerate() {
            for entry in content {
                let was_somewhere = world.contents.iter().any(|content| content.contains(entry));
                prop_assert!(!was_somewhere || world.contents[index].contains(entry), "{entry} moved to set {index}");
            }
        }
    }

    #[test]
    fn nobody_slips_through_between_two_writes((first, second, sets, addresses_max) in two_runs()) {
        let empty = observe(Family::V4, &vec![vec![]; sets]);
        let before = contents_after(&plan_within(addresses_max, &first, &[], &empty, &KEEP_FOREIGN), &empty);
        let observed = observe(Family::V4, &before);
        let plan = plan_within(addresses_max, &second, &first, &observed, &KEEP_FOREIGN);
        let after = addresses(contents_after(&plan, &observed).iter().flatten());
        let throughout: BTreeSet<u8> = addresses(before.iter().flatten()).intersection(&after).copied().collect();
        let mut contents = before;
        for write in &plan.writes {
            contents[observed.iter().position(|(set, _)| *set == write.set).unwrap()] = write.addresses.clone();
            let now = addresses(contents.iter().flatten());
            prop_assert!(throughout.is_subset(&now), "{:?}", throughout.difference(&now).collect::<Vec<_>>());
        }
    }
}

#[test]
#[ignore = "a measurement: cargo test --release -p updater -- --ignored --nocapture"]
fn how_long_a_plan_of_a_hundred_thousand_addresses_takes() {
    let held = scattered(100_000);
    let contents: Vec<Vec<IpNet>> = held.chunks(ADDRESSES_MAX).map(<[IpNet]>::to_vec).collect();
    let observed = observe(Family::V4, &contents);
    // A hundred bans are over, and as many are new.
    let mut wanted = held[100..].to_vec();
    wanted.extend((0..100u32).map(|index| IpNet::new((0x0b00_0000 + 2 * index).to_be_bytes().into(), 32).unwrap()));
    let mut milliseconds: Vec<u128> = (0..11)
        .map(|_| {
            let began = std::time::Instant::now();
            let plan = plan(&wanted, &held, &observed, &KEEP_FOREIGN);
            let took = began.elapsed().as_millis();
            assert_eq!((plan.held, plan.overflow.len(), plan.writes.len()), (100_000, 0, 1));
            took
        })
        .collect();
    milliseconds.sort_unstable();
    #[expect(clippy::print_stdout, reason = "somebody asked for it")]
    {
        println!(
            "a plan of 100,000 addresses in ten sets: {} ms, the median of eleven",
            milliseconds[5]
        );
    }
}
