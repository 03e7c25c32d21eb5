//! A policy made ready for counting: most rules are not asked about most requests.
//!
//! Of each rule's conditions the one that fewest requests meet is its key, and each pattern of a key has a literal part
//! that must occur in the field whatever its wildcards stand for. All those parts are looked for at once, in one pass over
//! each field, and only the rules whose part was found are asked whether the request counts. So what a rule means is said
//! in one place, [`Rule::counts`], and a hundred rules cost hardly more than ten. Fields repeat themselves: what was found in
//! a value is remembered until another value takes its place, and a value that is met again is only compared.
//!
//! Requests come in the order of time, so that each is another client's, whose cells are somewhere else in memory. Hits are
//! therefore noted one behind the other, sorted once there are many, and put into the tally client by client.

use std::hash::BuildHasher;
use std::sync::Arc;

use aho_corasick::automaton::Automaton;
use aho_corasick::dfa::DFA;
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, StartKind};
use foldhash::fast::RandomState;
use ingest::Request;

use crate::client::Client;
use crate::pattern::Pattern;
use crate::policy::{Field, Policy, RULES_MAX, Rule};
use crate::tally::{Cells, Hit, Slot, Tally, Value};
use crate::time::Minute;

/// Needles of so many bytes in all may have the fastest automaton, which has a kilobyte or less for each of them.
const DFA_BYTES_MAX: usize = 16 * 1024;

/// How many values of a field are remembered.
const REMEMBERED: usize = 256;

/// Longer values are not remembered; a client may send very long ones.
const REMEMBERED_BYTES_MAX: usize = 1024;

/// So many hits are noted before they are put into the tally; this bounds the memory for them, at about 20 MB.
const NOTED_MAX: usize = 1 << 18;

/// Counts requests by a policy. A clone shares what took time to make, so that every thread can have one.
///
/// ```
/// let policy = analyzer::Policy::default_policy();
/// let mut counter = analyzer::Counter::new(&policy);
/// counter.count(&ingest::Request::default());
/// assert_eq!(counter.take().clients(), 1);
/// ```
#[derive(Debug, Clone)]
pub struct Counter<'p> {
    policy: &'p Policy,
    tally: Tally,
    noted: Noted,
    noted_max: usize,
    which: Candidates,
}

/// What is known beforehand about which rules may count a request.
#[derive(Debug, Clone)]
struct Candidates {
    /// Rules that have to be asked about every request.
    always: RuleSet,
    searches: Vec<Search>,
}

impl<'p> Counter<'p> {
    /// Makes `policy` ready: some hundred microseconds for the default one.
    pub fn new(policy: &'p Policy) -> Counter<'p> {
        let mut always = RuleSet::default();
        let mut keys: Vec<(&Field, Vec<(&str, usize)>)> = Vec::new();
        for (index, rule) in policy
            .rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| !rule.counts_everything())
        {
            let Some((field, needles)) = key_of(rule) else {
                always.insert(index);
                continue;
            };
            let needles = needles.into_iter().map(|needle| (needle, index));
            match keys.iter_mut().find(|(known, _)| *known == field) {
                Some((_, known)) => known.extend(needles),
                None => keys.push((field, needles.collect())),
            }
        }
        let mut searches = Vec::new();
        for (field, needles) in keys {
            match Automata::of(needles.iter().map(|(needle, _)| *needle)) {
                Some(automata) => searches.push(Search {
                    field: field.clone(),
                    automata: Arc::new(automata),
                    rules: needles.iter().map(|(_, rule)| *rule as u16).collect(),
                    remembered: Vec::new(),
                    hasher: RandomState::default(),
                }),
                // Too much for an automaton: asking is always right.
                None => needles.iter().for_each(|(_, rule)| always.insert(*rule)),
            }
        }
        Counter {
            policy,
            tally: Tally::default(),
            noted: Noted::default(),
            noted_max: NOTED_MAX,
            which: Candidates { always, searches },
        }
    }

    /// The policy.
    pub fn policy(&self) -> &'p Policy {
        self.policy
    }

    /// Counts one request.
    #[inline]
    pub fn count(&mut self, request: &Request<'_>) {
        let Counter {
            policy,
            tally,
            noted,
            noted_max,
            which,
        } = self;
        tally.count_asking(
            policy,
            request,
            || which.of(request),
            |_, client, hit| noted.note(client, hit),
        );
        if noted.len() >= *noted_max {
            noted.put_into(tally);
        }
    }

    /// What was counted since the last time.
    pub fn take(&mut self) -> Tally {
        self.noted.put_into(&mut self.tally);
        std::mem::take(&mut self.tally)
    }
}

/// Hits in the order in which they came: the client in two numbers, the second of which has slot and minute below it,
/// because numbers are sorted fastest.
#[derive(Debug, Clone, Default)]
struct Noted {
    hits: Vec<(u128, u64)>,
    values: Vec<(u128, u64, u64)>,
}

impl Noted {
    fn len(&self) -> usize {
        self.hits.len().max(self.values.len())
    }

    #[inline]
    fn note(&mut self, client: Client, hit: Hit) {
        let (address, length) = client.to_bits();
        let below =
            |slot: Slot, minute: Minute| u64::from(length) << 48 | u64::from(slot.0) << 32 | u64::from(minute.0);
        match hit {
            Hit::Request { slot, minute } => self.hits.push((address, below(slot, minute))),
            Hit::Value(value) => self.values.push((address, below(value.slot, value.minute), value.hash)),
        }
    }

    fn put_into(&mut self, tally: &mut Tally) {
        let client_of = |address: u128, below: u64| (address, (below >> 48) as u16);
        let cell_of = |below: u64| (Slot((below >> 32) as u16), Minute(below as u32));
        self.hits.sort_unstable();
        self.values.sort_unstable();
        let mut values = self.values.as_slice();
        // Whoever has values has hits too.
        for hits in self.hits.chunk_by(|a, b| client_of(a.0, a.1) == client_of(b.0, b.1)) {
            let client = client_of(hits[0].0, hits[0].1);
            let of_client = values.iter().take_while(|value| client_of(value.0, value.1) == client);
            let (now, later) = values.split_at(of_client.count());
            values = later;
            let cells = Cells::counted(
                hits.iter().map(|hit| cell_of(hit.1)),
                now.iter().map(|(_, below, hash)| {
                    let (slot, minute) = cell_of(*below);
                    Value {
                        slot,
                        minute,
                        hash: *hash,
                    }
                }),
            );
            tally.put(Client::from_bits(client.0, client.1), cells);
        }
        self.hits.clear();
        self.values.clear();
    }
}

impl Candidates {
    /// The rules that may count `request`, in their order; all others do not.
    fn of(&mut self, request: &Request<'_>) -> impl Iterator<Item = usize> + use<> {
        let mut candidates = self.always;
        for search in &mut self.searches {
            let Search {
                field,
                automata,
                rules,
                remembered,
                hasher,
            } = search;
            field.any(request, |value| {
                if value.len() > REMEMBERED_BYTES_MAX {
                    automata.each_found(value.as_bytes(), |needle| candidates.insert(usize::from(rules[needle])));
                    return false;
                }
                if remembered.is_empty() {
                    remembered.resize_with(REMEMBERED, Remembered::default);
                }
                // Keyed, for values are chosen by clients.
                let place = hasher.hash_one(value) as usize % REMEMBERED;
                let known = &mut remembered[place];
                if known.value != value {
                    known.value.clear();
                    known.value.push_str(value);
                    known.rules.clear();
                    automata.each_found(value.as_bytes(), |needle| {
                        let rule = rules[needle];
                        if !known.rules.contains(&rule) {
                            known.rules.push(rule);
                        }
                    });
                }
                known
                    .rules
                    .iter()
                    .for_each(|rule| candidates.insert(usize::from(*rule)));
                false
            });
        }
        candidates.into_iter()
    }
}

/// The condition that a rule's requests are recognised by, with what one of its fields' values must contain. `None` if every
/// request may count.
fn key_of(rule: &Rule) -> Option<(&Field, Vec<&str>)> {
    let conditions = rule.matches.conditions.iter();
    let usable = conditions.filter_map(|(field, patterns)| {
        let needles: Vec<&str> = patterns.iter().map(Pattern::longest_part).collect();
        needles
            .iter()
            .all(|needle| !needle.is_empty())
            .then_some((field, needles))
    });
    // Most requests have one of few methods and actions; the longer a needle, the fewer have it.
    usable.max_by_key(|(field, needles)| {
        let telling = !matches!(
            field,
            Field::Method | Field::Action | Field::Country | Field::ResponseCode
        );
        (telling, needles.iter().map(|needle| needle.len()).min())
    })
}

/// What is looked for in one field.
#[derive(Debug, Clone)]
struct Search {
    field: Field,
    automata: Arc<Automata>,
    /// The rule of each needle.
    rules: Arc<[u16]>,
    /// By the hash of the value; the empty one has nothing in it.
    remembered: Vec<Remembered>,
    hasher: RandomState,
}

/// A value, and the rules whose needles are in it.
#[derive(Debug, Clone, Default)]
struct Remembered {
    value: String,
    rules: Vec<u16>,
}

#[derive(Debug, Clone)]
enum Automata {
    Dfa(DFA),
    Nfa(NFA),
}

impl Automata {
    fn of<'n>(needles: impl Iterator<Item = &'n str> + Clone) -> Option<Automata> {
        let bytes: usize = needles.clone().map(str::len).sum();
        if bytes <= DFA_BYTES_MAX {
            let mut dfa = DFA::builder();
            dfa.ascii_case_insensitive(true)
                .start_kind(StartKind::Unanchored)
                .prefilter(false);
            dfa.build(needles).ok().map(Automata::Dfa)
        } else {
            let mut nfa = NFA::builder();
            nfa.ascii_case_insensitive(true).prefilter(false);
            nfa.build(needles).ok().map(Automata::Nfa)
        }
    }

    /// Calls `each` with the number of every needle in `value`, perhaps several times.
    #[inline]
    fn each_found(&self, value: &[u8], each: impl FnMut(usize)) {
        match self {
            Automata::Dfa(dfa) => each_found(dfa, value, each),
            Automata::Nfa(nfa) => each_found(nfa, value, each),
        }
    }
}

#[inline]
fn each_found(automaton: &impl Automaton, value: &[u8], mut each: impl FnMut(usize)) {
    let Ok(mut state) = automaton.start_state(Anchored::No) else {
        return;
    };
    for byte in value {
        state = automaton.next_state(Anchored::No, state, *byte);
        if automaton.is_special(state) && automaton.is_match(state) {
            for at in 0..automaton.match_len(state) {
                each(automaton.match_pattern(state, at).as_usize());
            }
        }
    }
}

/// Rules by their places in the policy.
#[derive(Debug, Clone, Copy, Default)]
struct RuleSet([u64; RULES_MAX.div_ceil(64)]);

impl RuleSet {
    fn insert(&mut self, rule: usize) {
        self.0[rule / 64] |= 1 << (rule % 64);
    }

    fn into_iter(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(at, word)| {
            std::iter::successors((word != 0).then_some(word), |word| {
                let rest = word & (word - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |word| at * 64 + word.trailing_zeros() as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use ingest::Header;
    use proptest::prelude::*;

    use super::*;
    use crate::tally::Tally;

    fn tallies(policy: &Policy, requests: &[Request<'_>]) -> [Tally; 2] {
        let mut counter = Counter::new(policy);
        counter.noted_max = 7;
        let mut both = [Tally::default(), Tally::default()];
        for request in requests {
            both[0].count(policy, request);
            counter.count(request);
        }
        both[1] = counter.take();
        both
    }

    /// What requests are made of here: parts of the default policy's patterns, in any case, and other things.
    fn text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("/login".to_owned()),
            Just("/.ENV".to_owned()),
            Just("/.git".to_owned()),
            Just("/config".to_owned()),
            Just("..%2F".to_owned()),
            Just("/../".to_owned()),
            Just("etc/passwd".to_owned()),
            Just("SqlMap".to_owned()),
            Just("hello, world".to_owned()),
            Just("awswaf:managed:aws:sql-database:SQLi_Cookie".to_owned()),
            Just("awswaf:managed:aws:bot-control:bot:verified".to_owned()),
            Just("/palisade-trap".to_owned()),
            "[a-c/.*ö]{0,3}",
        ];
        prop::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn asking_only_the_candidates_changes_no_count(
            made in prop::collection::vec((text(), text(), text(), text(), 0usize..3, 0usize..3, 0u8..4), 0..20),
            patterns in prop::collection::vec(("[a/.*ö]{0,4}", "[a/.*]{0,4}", any::<bool>()), 0..4),
        ) {
            let mut policy = Policy::default_policy();
            for (at, (first, second, unless)) in patterns.into_iter().enumerate() {
                let mut rule = policy.rules[2 + at].clone();
                let condition = |field, pattern: &str| (field, vec![Pattern::new(pattern)]);
                rule.matches.conditions = vec![condition(Field::Uri, &first), condition(Field::Args, &second)];
                rule.unless = unless.then(|| rule.matches.clone());
                policy.rules.push(rule);
            }
            let requests: Vec<Request<'_>> = made
                .iter()
                .map(|(uri, args, agent, label, method, action, client)| Request {
                    timestamp_ms: 1_793_534_400_000 + i64::from(*client) * 40_000,
                    client_ip: match client {
                        0 | 1 => std::net::IpAddr::from([192, 0, 2, *client]),
                        _ => std::net::IpAddr::from([0x2001, 0xdb8, 0, u16::from(*client), 0, 0, 0, 1]),
                    },
                    method: ["GET", "POST", "post"][*method].into(),
                    action: ["ALLOW", "BLOCK", "CAPTCHA"][*action].into(),
                    uri: uri.into(),
                    args: args.into(),
                    headers: vec![Header { name: "User-Agent".into(), value: agent.into() }],
                    labels: vec!["some:label".into(), label.into()],
                    ..Request::default()
                })
                .collect();
            let [asking_all, asking_candidates] = tallies(&policy, &requests);
            prop_assert_eq!(asking_all, asking_candidates);
        }
    }

    #[test]
    fn few_rules_of_the_default_policy_are_asked_about_an_ordinary_request() {
        let policy = Policy::default_policy();
        let request = Request {
            method: "POST".into(),
            action: "ALLOW".into(),
            uri: "/api/v1/orders".into(),
            ..Request::default()
        };
        let asked: Vec<&str> = Counter::new(&policy)
            .which
            .of(&request)
            .map(|rule| policy.rules[rule].name.as_str())
            .collect();
        assert_eq!(asked, ["request-flood", "many-distinct-uris"]);
    }

    #[test]
    fn a_thousand_rules_and_ten_thousand_patterns_are_counted_alike() {
        let mut policy = Policy::default_policy();
        let rule = policy.rules[2].clone();
        for number in policy.rules.len()..RULES_MAX {
            let mut rule = rule.clone();
            let patterns = (0..10)
                .map(|n| Pattern::new(&format!("*/secret-{number}-{n}/*")))
                .collect();
            rule.matches.conditions = vec![(Field::Uri, patterns)];
            policy.rules.push(rule);
        }
        let uris = [
            "/secret-999-3/",
            "/secret-999-3",
            "/x/SECRET-20-0/y",
            "/secret-100-9/secret-101-9/",
        ];
        let requests = uris.map(|uri| Request {
            uri: uri.into(),
            ..Request::default()
        });
        let [asking_all, asking_candidates] = tallies(&policy, &requests);
        assert_eq!(asking_all, asking_candidates);
    }
}
