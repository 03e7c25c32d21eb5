//! Arithmetic on networks: their canonical form, what a list of them covers, and how few of them say the same.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net};

/// The one form in which we compare and write a network: host bits cleared, and v4-mapped IPv6 (`::ffff:192.0.2.1`)
/// turned into the IPv4 it means.
pub(crate) fn canonical(network: &IpNet) -> IpNet {
    let network = network.trunc();
    if let IpNet::V6(v6) = network
        && let Some(bits) = v6.prefix_len().checked_sub(96)
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        return Ipv4Net::new(v4, bits).map_or(network, IpNet::V4);
    }
    network
}

/// First and last address of a network, as numbers. Families must not be mixed.
pub(crate) fn span(network: &IpNet) -> (u128, u128) {
    match network {
        IpNet::V4(v4) => (u32::from(v4.network()).into(), u32::from(v4.broadcast()).into()),
        IpNet::V6(v6) => (v6.network().into(), v6.broadcast().into()),
    }
}

/// Which addresses a list of networks covers together.
#[derive(Debug, Default)]
pub(crate) struct Coverage(Vec<(u128, u128)>);

impl Coverage {
    /// What `networks`, all of one family, cover.
    pub(crate) fn of<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut spans: Vec<_> = networks.into_iter().map(span).collect();
        // What ends where does not matter to what is merged.
        spans.sort_unstable_by_key(|&(first, _)| first);
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Whether every single address of `network` is covered.
    pub(crate) fn contains(&self, network: &IpNet) -> bool {
        let (first, last) = span(network);
        let after = self.0.partition_point(|&(start, _)| start <= first);
        after > 0 && last <= self.0[after - 1].1
    }

    /// Those of `sorted` of which not every single address is covered, in their order.
    pub(crate) fn missing<'a>(&self, sorted: &'a [IpNet]) -> impl Iterator<Item = &'a IpNet> {
        let mut spans = self.0.iter().peekable();
        sorted.iter().filter(move |network| {
            let (first, last) = span(network);
            while spans.next_if(|(_, end)| *end < first).is_some() {}
            spans.peek().is_none_or(|&&(start, end)| first < start || end < last)
        })
    }

    /// Whether at least one address of `network` is covered.
    pub(crate) fn overlaps(&self, network: &IpNet) -> bool {
        let (first, last) = span(network);
        let after = self.0.partition_point(|&(start, _)| start <= last);
        after > 0 && first <= self.0[after - 1].1
    }
}

/// The fewest networks that cover exactly the same addresses, in order. The whole address space stays two halves,
/// because no set can hold a `/0`.
pub(crate) fn aggregate(networks: &[IpNet]) -> Vec<IpNet> {
    let fewest = IpNet::aggregate(&networks.to_vec());
    fewest
        .into_iter()
        .flat_map(|network| match network.prefix_len() {
            0 => network.subnets(1).map_or_else(|_| Vec::new(), Iterator::collect),
            _ => vec![network],
        })
        .collect()
}

/// Finds the longest start of a list that aggregates to at most `room` networks. `whole` is the aggregate of it all.
///
/// The number of networks is not monotone: a further address often adds one, but the one that completes a `/24` takes
/// away up to seven. So a binary search can stop too early. We count the aggregate exactly after each network
/// instead, and remember the last place where it fitted.
pub(crate) fn longest_start_that_fits(networks: &[IpNet], whole: &[IpNet], room: usize) -> usize {
    let firsts: Vec<u128> = whole.iter().map(|block| span(block).0).collect();
    let block_of = |network| firsts.partition_point(|&first| first <= span(network).0) - 1;
    let homes: Vec<usize> = networks.iter().map(block_of).collect();
    let mut members = vec![0u32; whole.len()];
    for &home in &homes {
        members[home] += 1;
    }

    // Most clients have no neighbor and are alone in their block of the whole: to count those takes no tree.
    let mut alone = 0;
    let mut blocks = Blocks::new(networks.first().map_or(128, IpNet::max_prefix_len));
    let mut longest = 0;
    for (index, (network, &home)) in networks.iter().zip(&homes).enumerate() {
        match members[home] {
            1 => alone += 1,
            _ => blocks.insert(network),
        }
        if alone + blocks.len() <= room {
            longest = index + 1;
        }
    }
    longest
}

/// The aggregate of a growing list: disjoint blocks, first address → last address, each as large as possible.
struct Blocks {
    ends: BTreeMap<u128, u128>,
    /// Last minus first address of the largest block allowed, a `/1`.
    size_max: u128,
}

impl Blocks {
    fn new(bits: u8) -> Self {
        Self {
            ends: BTreeMap::new(),
            size_max: u128::MAX >> (129 - u32::from(bits)),
        }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn insert(&mut self, network: &IpNet) {
        let (mut first, last) = span(network);
        if self
            .ends
            .range(..=first)
            .next_back()
            .is_some_and(|(_, &end)| end >= last)
        {
            return;
        }
        while let Some((&inner, _)) = self.ends.range(first..=last).next() {
            self.ends.remove(&inner);
        }
        // Two halves of the same parent become the parent, whose other half may be there as well.
        let mut size = last - first;
        while size < self.size_max {
            let sibling = first ^ (size + 1);
            if self.ends.get(&sibling) != Some(&(sibling + size)) {
                break;
            }
            self.ends.remove(&sibling);
            first = first.min(sibling);
            size = 2 * size + 1;
        }
        self.ends.insert(first, first + size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn host_bits_are_cleared_and_mapped_addresses_become_ipv4() {
        let check = |from: &str, to: &str| {
            assert_eq!(canonical(&from.parse().unwrap()).to_string(), to);
        };
        check("195.178.188.66/29", "195.178.188.64/29");
        check("2001:db8::1/64", "2001:db8::/64");
        check("::ffff:192.0.2.44/128", "192.0.2.44/32");
        check("::ffff:192.0.2.44/120", "192.0.2.0/24");
        // These span more than the mapped addresses, so no IPv4 network means the same.
        check("::ffff:192.0.2.44/80", "::/80");
        check("::/64", "::/64");
    }

    #[test]
    fn coverage_is_about_addresses_not_entries() {
        let coverage = Coverage::of(&networks(&["192.0.2.0/26", "192.0.2.64/26", "192.0.2.200/32"]));
        assert!(coverage.contains(&"192.0.2.0/25".parse().unwrap()));
        assert!(coverage.contains(&"192.0.2.200/32".parse().unwrap()));
        assert!(!coverage.contains(&"192.0.2.0/24".parse().unwrap()));
        assert!(!coverage.contains(&"192.0.2.200/31".parse().unwrap()));
        assert!(!Coverage::default().contains(&"192.0.2.0/24".parse().unwrap()));
    }

    #[test]
    fn the_whole_internet_stays_two_halves() {
        let check = |halves: &[&str]| {
            let halves = networks(halves);
            assert_eq!(aggregate(&halves), halves);
            let mut blocks = Blocks::new(halves[0].max_prefix_len());
            halves.iter().for_each(|half| blocks.insert(half));
            assert_eq!(blocks.len(), 2);
        };
        check(&["0.0.0.0/1", "128.0.0.0/1"]);
        check(&["::/1", "8000::/1"]);
    }

    fn longest(list: &[IpNet], room: usize) -> usize {
        longest_start_that_fits(list, &aggregate(list), room)
    }

    #[test]
    fn an_address_that_completes_a_block_makes_room() {
        let mut list = networks(&["192.0.2.0/32", "192.0.2.2/31", "192.0.2.4/30"]);
        list.push("198.51.100.1/32".parse().unwrap());
        assert_eq!(longest(&list, 2), 2, "three and four networks do not fit");
        list.insert(3, "192.0.2.1/32".parse().unwrap());
        assert_eq!(longest(&list, 2), 5, "the fourth network joined the first three");
    }

    fn small_network() -> impl Strategy<Value = IpNet> {
        (0u8..=255, 24u8..=32).prop_map(|(last, bits)| IpNet::new([192, 0, 2, last].into(), bits).unwrap().trunc())
    }

    proptest! {
        #[test]
        fn the_longest_start_is_the_one_that_trying_all_of_them_finds(
            list in prop::collection::vec(small_network(), 0..40),
            room in 0usize..12,
        ) {
            let naive = (0..=list.len()).rev().find(|&n| aggregate(&list[..n]).len() <= room).unwrap();
            prop_assert_eq!(longest(&list, room), naive);
        }

        #[test]
        fn coverage_agrees_with_looking_at_every_address(
            list in prop::collection::vec(small_network(), 0..10),
            network in small_network(),
        ) {
            let naive = (0..=255u8)
                .map(|last| IpNet::new([192, 0, 2, last].into(), 32).unwrap())
                .filter(|address| network.contains(address))
                .all(|address| list.iter().any(|other| other.contains(&address)));
            prop_assert_eq!(Coverage::of(&list).contains(&network), naive);
            // Networks either nest or are apart.
            let naive = list.iter().any(|other| other.contains(&network) || network.contains(other));
            prop_assert_eq!(Coverage::of(&list).overlaps(&network), naive);
        }

        #[test]
        fn what_is_missing_is_what_is_not_contained(
            list in prop::collection::vec(small_network(), 0..10),
            mut others in prop::collection::vec(small_network(), 0..10),
        ) {
            others.sort_unstable();
            let coverage = Coverage::of(&list);
            let missing: Vec<_> = coverage.missing(&others).collect();
            let naive: Vec<_> = others.iter().filter(|other| !coverage.contains(other)).collect();
            prop_assert_eq!(missing, naive);
        }
    }
}
