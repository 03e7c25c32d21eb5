//! Looks at the requests themselves, for a page: what was asked for most, and what each offender sent.
//!
//! A tally has numbers alone. To show samples without keeping everybody's requests, logs are read twice: the [`Survey`]
//! counts for the judge and, in buckets, how often values came; a [`Search`] then knows whom to look at and which values
//! may be frequent, and counts those exactly. Nothing depends on the order of requests or objects, and nothing grows with
//! the number of requests: where values must be left out, those with the smallest hashes are kept.

use std::collections::{BTreeMap, HashMap, HashSet};

use analyzer::{Client, Minute, Policy, Verdict};
use ingest::Request;
use xxhash_rust::xxh3::xxh3_64;

use crate::replay::{Collect, Count, Event};

/// What a page ranks by, besides clients and our own rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Top {
    /// The path.
    Uri,
    /// The WAF rule that decided.
    WafRule,
    /// The country of the connection.
    Country,
    /// The User-Agent header.
    UserAgent,
}

impl Top {
    /// All of them, in the order of a page.
    pub const ALL: [Top; 4] = [Top::Uri, Top::WafRule, Top::Country, Top::UserAgent];

    fn of<'r>(self, request: &'r Request<'_>) -> &'r str {
        match self {
            Top::Uri => &request.uri,
            Top::WafRule => &request.waf_rule,
            Top::Country => request.country.as_deref().unwrap_or("-"),
            Top::UserAgent => request.user_agent().unwrap_or("-"),
        }
    }

    fn bucket(self, value: &str) -> u32 {
        let hash = xxh3_64(value.as_bytes()) as u32;
        (hash & (BUCKETS - 1)) | ((self as u32) << BUCKETS.trailing_zeros())
    }
}

/// How many buckets the values of one field fall into. A frequent value is in a full bucket.
const BUCKETS: u32 = 1 << 18;

/// Values in so many of a field's fullest buckets are counted exactly; a page shows the first few dozen of them.
const FULLEST: usize = 2_000;

/// The first reading: counts for the judge, and how full each bucket is.
pub struct Survey<'p> {
    /// What the judge needs.
    pub count: Count<'p>,
    buckets: HashMap<u32, u64>,
}

impl<'p> Survey<'p> {
    /// Nothing read yet.
    pub fn new(policy: &'p Policy) -> Survey<'p> {
        Survey {
            count: Count::new(policy),
            buckets: HashMap::new(),
        }
    }

    /// The buckets whose values are worth counting.
    pub fn frequent(&self) -> Frequent {
        let mut chosen = HashSet::new();
        for top in Top::ALL {
            let field = top as u32;
            let mut full: Vec<(u64, u32)> = self
                .buckets
                .iter()
                .filter(|(bucket, _)| *bucket >> BUCKETS.trailing_zeros() == field)
                .map(|(bucket, requests)| (*requests, *bucket))
                .collect();
            full.sort_unstable_by_key(|(requests, bucket)| (std::cmp::Reverse(*requests), *bucket));
            chosen.extend(full.into_iter().take(FULLEST).map(|(_, bucket)| bucket));
        }
        Frequent(chosen)
    }
}

impl Collect for Survey<'_> {
    fn request(&mut self, request: &Request<'_>) {
        self.count.request(request);
        for top in Top::ALL {
            *self.buckets.entry(top.bucket(top.of(request))).or_default() += 1;
        }
    }

    fn settle(&mut self) {
        self.count.settle();
    }

    fn join(&mut self, other: Self) {
        self.count.join(other.count);
        for (bucket, requests) in other.buckets {
            *self.buckets.entry(bucket).or_default() += requests;
        }
    }
}

/// Which values may be frequent.
#[derive(Debug, Default)]
pub struct Frequent(HashSet<u32>);

/// What is looked for in the second reading: for each verdict the requests behind it, and for each client its own.
#[derive(Debug, Default)]
pub struct Wanted {
    frequent: Frequent,
    cases: Vec<Case>,
    by_client: HashMap<Client, Vec<usize>>,
    profiled: HashSet<Client>,
}

/// One offense as it is looked for among requests.
#[derive(Debug)]
struct Case {
    rule: usize,
    first_hit: Minute,
    last_hit: Minute,
    ban: Option<(Minute, Minute)>,
    /// Whether samples are kept, or innocent requests counted and nothing else.
    sampled: bool,
}

impl Wanted {
    /// The requests behind the `shown` verdicts, whose places say which case is whose; those of `clients`; and how many
    /// innocent requests the bans among `others` would have stopped.
    pub fn new<'e>(
        frequent: Frequent,
        shown: &[&Event],
        others: impl IntoIterator<Item = &'e Event>,
        clients: impl IntoIterator<Item = Client>,
    ) -> Wanted {
        let mut wanted = Wanted {
            frequent,
            ..Wanted::default()
        };
        wanted.profiled.extend(clients);
        for (event, sampled) in shown
            .iter()
            .map(|event| (*event, true))
            .chain(others.into_iter().map(|event| (event, false)))
        {
            let (charge, ban) = match &event.verdict {
                Verdict::Ban(charge, sentence) => (charge, Some((event.time, sentence.until))),
                Verdict::Held(charge, _) | Verdict::Spared(charge, _) | Verdict::Alert(charge) => (charge, None),
                Verdict::Crowd(_) => {
                    // It has no client, but its place must be taken.
                    wanted.cases.push(Case {
                        rule: usize::MAX,
                        first_hit: Minute(0),
                        last_hit: Minute(0),
                        ban: None,
                        sampled: false,
                    });
                    continue;
                }
            };
            wanted
                .by_client
                .entry(charge.client)
                .or_default()
                .push(wanted.cases.len());
            wanted.cases.push(Case {
                rule: charge.offense.rule,
                first_hit: charge.offense.first_hit,
                last_hit: charge.offense.last_hit,
                ban,
                sampled,
            });
        }
        for client in &wanted.profiled {
            wanted.by_client.entry(*client).or_default();
        }
        wanted
    }
}

/// The second reading.
pub struct Search<'p> {
    policy: &'p Policy,
    wanted: &'p Wanted,
    /// What was found.
    pub found: Found,
}

/// What the second reading found.
#[derive(Debug, Default)]
pub struct Found {
    tops: BTreeMap<Top, HashMap<Box<str>, Frequency>>,
    /// By the event's place.
    evidence: HashMap<usize, Evidence>,
    clients: HashMap<Client, Profile>,
    /// Over all bans, shown or not: requests that WAF allowed and that did not match the ban's rule.
    pub innocent: u64,
}

/// How often a value came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frequency {
    /// Requests.
    pub requests: u64,
    /// Those of them that WAF allowed.
    pub allowed: u64,
}

/// The requests behind one verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The first and the last hit, in milliseconds since the epoch.
    pub seen_ms: Option<(i64, i64)>,
    /// Method and path of the hits, redacted.
    pub requests: Samples,
    /// The countries of the hits.
    pub countries: Samples,
    /// The user agents of the hits.
    pub user_agents: Samples,
    /// What WAF did with the hits.
    pub actions: Samples,
    /// Requests during the ban that WAF allowed and that did not match the rule: those that cost somebody something, if
    /// the ban was wrong.
    pub innocent: u64,
    /// Method and path of these, redacted.
    pub innocent_requests: Samples,
}

/// Everything one client sent, in short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// The first requests.
    pub first: Vec<Shown>,
    /// Where from.
    pub countries: Samples,
    /// With what.
    pub user_agents: Samples,
}

/// How many of a client's first requests are shown.
pub const SHOWN_MAX: usize = 10;

impl<'p> Search<'p> {
    /// Nothing read yet.
    pub fn new(policy: &'p Policy, wanted: &'p Wanted) -> Search<'p> {
        Search {
            policy,
            wanted,
            found: Found::default(),
        }
    }
}

impl Collect for Search<'_> {
    fn request(&mut self, request: &Request<'_>) {
        let allowed = request.allowed();
        for top in Top::ALL {
            let value = top.of(request);
            if !self.wanted.frequent.0.contains(&top.bucket(value)) {
                continue;
            }
            let values = self.found.tops.entry(top).or_default();
            if !values.contains_key(value) {
                values.insert(value.into(), Frequency::default());
            }
            if let Some(frequency) = values.get_mut(value) {
                frequency.requests += 1;
                frequency.allowed += u64::from(allowed);
            }
        }
        let Some(client) = self.policy.client.client_of(request) else {
            return;
        };
        let Some(cases) = self.wanted.by_client.get(&client) else {
            return;
        };
        if self.wanted.profiled.contains(&client) {
            let profile = self.found.clients.entry(client).or_default();
            profile.first.push(Shown::of(self.policy, request));
            if profile.first.len() >= 2 * SHOWN_MAX {
                profile.keep_first();
            }
            profile.countries.add(Top::Country.of(request));
            profile.user_agents.add(Top::UserAgent.of(request));
        }

        let minute = Minute::of_ms(request.timestamp_ms);
        let ours = self.policy.ours.stopped(request);
        for at in cases {
            let case = &self.wanted.cases[*at];
            let Some(rule) = self.policy.rules.get(case.rule) else {
                continue;
            };
            let counts = !ours && rule.counts(request);
            if case.sampled && counts && (case.first_hit..=case.last_hit).contains(&minute) {
                let evidence = self.found.evidence.entry(*at).or_default();
                let ms = request.timestamp_ms;
                let (first, last) = evidence.seen_ms.unwrap_or((ms, ms));
                evidence.seen_ms = Some((first.min(ms), last.max(ms)));
                evidence.requests.add(&asked(request));
                evidence.countries.add(Top::Country.of(request));
                evidence.user_agents.add(Top::UserAgent.of(request));
                evidence.actions.add(&request.action);
            }
            if allowed && !counts && case.ban.is_some_and(|(from, until)| (from..until).contains(&minute)) {
                self.found.innocent += 1;
                if case.sampled {
                    let evidence = self.found.evidence.entry(*at).or_default();
                    evidence.innocent += 1;
                    evidence.innocent_requests.add(&asked(request));
                }
            }
        }
    }

    fn join(&mut self, other: Self) {
        self.found.innocent += other.found.innocent;
        for (top, values) in other.found.tops {
            let all = self.found.tops.entry(top).or_default();
            for (value, frequency) in values {
                let known = all.entry(value).or_default();
                known.requests += frequency.requests;
                known.allowed += frequency.allowed;
            }
        }
        for (at, evidence) in other.found.evidence {
            self.found.evidence.entry(at).or_default().join(evidence);
        }
        for (client, profile) in other.found.clients {
            let known = self.found.clients.entry(client).or_default();
            known.first.extend(profile.first);
            known.keep_first();
            known.countries.join(profile.countries);
            known.user_agents.join(profile.user_agents);
        }
    }
}

impl Found {
    /// The most frequent values of a field, and how many more were counted.
    pub fn top(&self, top: Top, most: usize) -> (Vec<(String, Frequency)>, usize) {
        // Several paths may look alike once they are redacted.
        let mut values: HashMap<String, Frequency> = HashMap::new();
        for (value, frequency) in self.tops.get(&top).into_iter().flatten() {
            let shown = if top == Top::Uri {
                redacted(value)
            } else {
                value.to_string()
            };
            let known = values.entry(shown).or_default();
            known.requests += frequency.requests;
            known.allowed += frequency.allowed;
        }
        let mut values: Vec<(String, Frequency)> = values.into_iter().collect();
        values.sort_unstable_by(|a, b| (b.1.requests, &a.0).cmp(&(a.1.requests, &b.0)));
        let more = values.len().saturating_sub(most);
        values.truncate(most);
        (values, more)
    }

    /// The requests behind the event at this place.
    pub fn evidence(&self, at: usize) -> Option<&Evidence> {
        self.evidence.get(&at)
    }

    /// What a client sent.
    pub fn profile(&self, client: Client) -> Option<Profile> {
        let mut profile = self.clients.get(&client).cloned()?;
        profile.keep_first();
        Some(profile)
    }
}

impl Evidence {
    fn join(&mut self, other: Evidence) {
        self.seen_ms = match (self.seen_ms, other.seen_ms) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
        self.requests.join(other.requests);
        self.countries.join(other.countries);
        self.user_agents.join(other.user_agents);
        self.actions.join(other.actions);
        self.innocent += other.innocent;
        self.innocent_requests.join(other.innocent_requests);
    }
}

impl Profile {
    fn keep_first(&mut self) {
        self.first.sort();
        self.first.truncate(SHOWN_MAX);
    }
}

/// The most values that one list of samples counts.
const SAMPLES_MAX: usize = 200;

/// The longest value that is kept, in characters; longer ones are cut.
const SAMPLE_CHARS_MAX: usize = 160;

/// Values and how often each came; of very many those with the smallest hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Samples {
    by_hash: BTreeMap<u64, (Box<str>, u64)>,
    /// Whether there were more values than are kept.
    pub more: bool,
}

impl Samples {
    fn add(&mut self, value: &str) {
        let hash = xxh3_64(value.as_bytes());
        if let Some((_, count)) = self.by_hash.get_mut(&hash) {
            *count += 1;
            return;
        }
        // A value that does not belong to the smallest now never will: what is kept depends on the set of values alone.
        if self.by_hash.len() >= SAMPLES_MAX && self.by_hash.last_key_value().is_some_and(|(last, _)| hash > *last) {
            self.more = true;
            return;
        }
        let kept: String = value.chars().take(SAMPLE_CHARS_MAX).collect();
        self.by_hash.insert(hash, (kept.into(), 1));
        self.bound();
    }

    fn join(&mut self, other: Samples) {
        self.more |= other.more;
        for (hash, (value, count)) in other.by_hash {
            self.by_hash.entry(hash).or_insert((value, 0)).1 += count;
        }
        self.bound();
    }

    fn bound(&mut self) {
        while self.by_hash.len() > SAMPLES_MAX {
            self.by_hash.pop_last();
            self.more = true;
        }
    }

    /// The most frequent ones, each with its count, and how many distinct values were kept.
    pub fn most(&self, most: usize) -> (Vec<(&str, u64)>, usize) {
        let mut values: Vec<(&str, u64)> = self.by_hash.values().map(|(value, count)| (&**value, *count)).collect();
        values.sort_unstable_by(|a, b| (b.1, a.0).cmp(&(a.1, b.0)));
        values.truncate(most);
        (values, self.by_hash.len())
    }
}

/// A request as it is shown: never its query string, headers or cookies, which may hold credentials.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// The method.
    pub method: String,
    /// The path, redacted.
    pub uri: String,
    /// What WAF did.
    pub action: String,
    /// The WAF rule that decided.
    pub waf_rule: String,
    /// Our rules for which it counts.
    pub rules: Vec<String>,
}

impl Shown {
    fn of(policy: &Policy, request: &Request<'_>) -> Shown {
        let rules = policy
            .rules
            .iter()
            .filter(|rule| !rule.matches.conditions.is_empty() && rule.counts(request));
        Shown {
            timestamp_ms: request.timestamp_ms,
            method: request.method.to_string(),
            uri: redacted(&request.uri),
            action: request.action.to_string(),
            waf_rule: request.waf_rule.to_string(),
            rules: if policy.ours.stopped(request) {
                Vec::new()
            } else {
                rules.map(|rule| rule.name.clone()).collect()
            },
        }
    }
}

fn asked(request: &Request<'_>) -> String {
    format!("{} {}", request.method, redacted(&request.uri))
}

/// A segment of a path that is at least so long and mixes letters and digits is a token until proven otherwise.
const TOKEN_CHARS_MIN: usize = 20;

/// A path without what may be a secret or a person: no query string or fragment, and no segment that looks like a token or
/// a mail address. Paths are chosen by whoever built the API, and some put reset tokens into them.
pub fn redacted(uri: &str) -> String {
    let path = uri.split(['?', '#', ';']).next().unwrap_or_default();
    let segment = |segment: &str| -> String {
        let letters = segment.chars().any(|c| c.is_ascii_alphabetic());
        let digits = segment.chars().any(|c| c.is_ascii_digit());
        let long = segment.chars().count() >= TOKEN_CHARS_MIN;
        let mail = segment.contains('@') || segment.to_ascii_lowercase().contains("%40");
        if mail || (long && letters && digits) {
            "[redacted]".to_owned()
        } else {
            segment.to_owned()
        }
    };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_without_what_may_be_a_secret() {
        for (uri, shown) in [
            ("/api/v1/orders/17", "/api/v1/orders/17"),
            ("/.git/config", "/.git/config"),
            ("/reset?token=abc", "/reset"),
            ("/reset;jsessionid=1/x", "/reset"),
            ("/reset/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0", "/reset/[redacted]"),
            ("/users/jane@example.com/avatar", "/users/[redacted]/avatar"),
            ("/users/jane%40example.com", "/users/[redacted]"),
            ("/o/3f2504e0-4f89-11d3-9a0c-0305e82c3301", "/o/[redacted]"),
            (
                "/vendor/phpunit/src/Util/PHP/eval-stdin.php",
                "/vendor/phpunit/src/Util/PHP/eval-stdin.php",
            ),
        ] {
            assert_eq!(redacted(uri), shown);
        }
    }

    #[test]
    fn which_samples_are_kept_depends_on_the_values_alone() {
        let values: Vec<String> = (0..1_000).map(|n| format!("/{n}")).collect();
        let (mut one, mut first, mut second) = (Samples::default(), Samples::default(), Samples::default());
        for value in &values {
            one.add(value);
        }
        for (n, value) in values.iter().rev().enumerate() {
            if n % 3 == 0 {
                first.add(value)
            } else {
                second.add(value)
            }
        }
        second.join(first);
        assert_eq!(one, second);
        assert_eq!((one.most(5).1, one.more), (SAMPLES_MAX, true));
    }

    #[test]
    fn frequent_values_are_counted_exactly_among_many_rare_ones() {
        let policy = Policy::parse("").unwrap();
        let requests: Vec<String> = (0..60_000)
            .map(|n| {
                if n % 3 == 0 {
                    format!("/hot/{}", n % 5)
                } else {
                    format!("/cold/{n}")
                }
            })
            .collect();
        let request = |uri: &String| Request {
            uri: uri.clone().into(),
            action: "ALLOW".into(),
            ..Request::default()
        };
        let (mut survey, mut other) = (Survey::new(&policy), Survey::new(&policy));
        for (n, uri) in requests.iter().enumerate() {
            if n % 2 == 0 { &mut survey } else { &mut other }.request(&request(uri));
        }
        survey.join(other);
        let wanted = Wanted::new(survey.frequent(), &[], [], []);
        let mut search = Search::new(&policy, &wanted);
        requests.iter().for_each(|uri| search.request(&request(uri)));
        let (top, _) = search.found.top(Top::Uri, 5);
        assert_eq!(top.iter().map(|(_, frequency)| frequency.requests).sum::<u64>(), 20_000);
        assert!(
            top.iter()
                .all(|(uri, frequency)| uri.starts_with("/hot/") && frequency.allowed == frequency.requests)
        );
        assert!(search.found.tops[&Top::Uri].len() < 20_000);
    }
}
