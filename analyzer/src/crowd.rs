//! Sees the shape that bans cannot stop: very many clients with about one request each.
//!
//! No limit per client finds such a crowd and no IP set holds it, so all we do is say so, and name what would separate
//! it from ordinary traffic. It is found in a sample: of the clients of each minute those with the smallest hashes. Which
//! clients those are depends on the set of clients alone, and each is counted in full, so samples merge exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use foldhash::HashMap;
use ingest::Request;

use crate::client::Client;
use crate::policy::CrowdLimit;
use crate::tally::{Tally, hash as hash_bytes};
use crate::time::{Minute, Span};

/// How many clients of a minute are in its sample. The number of clients is then known within about 6 %
/// (bottom-k estimate, standard error 1/√(k−2)).
pub(crate) const SAMPLE_MAX: usize = 256;

/// The longest text of a trait that is kept, in bytes.
const TEXT_MAX: usize = 200;

/// Without so many windows before, nobody knows what is usual.
const WINDOWS_BEFORE_MIN: usize = 3;

/// Below this share of a crowd, a trait separates nothing.
const SHARE_MIN: f64 = 0.5;

/// A minute's sampled clients by their hash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sample(pub(crate) BTreeMap<u64, Sighting>);

/// One sampled client in one minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) requests: u64,
    /// The hashes of its traits; the smallest combination it showed, so that order does not matter.
    pub(crate) traits: [u64; Trait::ALL.len()],
}

/// What a crowd may have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trait {
    /// The path.
    Uri,
    /// The JA4 fingerprint.
    Ja4,
    /// The country.
    Country,
    /// The User-Agent header.
    UserAgent,
}

impl Trait {
    pub(crate) const ALL: [Trait; 4] = [Trait::Uri, Trait::Ja4, Trait::Country, Trait::UserAgent];

    fn of<'r>(self, request: &'r Request<'_>) -> &'r str {
        // Athena is asked for the same four, `athena::TRAITS`.
        match self {
            Trait::Uri => &request.uri,
            Trait::Ja4 => request.ja4.as_deref().unwrap_or_default(),
            Trait::Country => request.country.as_deref().unwrap_or_default(),
            Trait::UserAgent => request.user_agent().unwrap_or_default(),
        }
    }
}

/// As the field is called in a policy.
impl fmt::Display for Trait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trait::Uri => "uri",
            Trait::Ja4 => "ja4",
            Trait::Country => "country",
            Trait::UserAgent => "user_agent",
        })
    }
}

/// Very many clients with few requests each.
#[derive(Debug, Clone, PartialEq)]
pub struct Crowd {
    /// About how many such clients the window had.
    pub clients: u64,
    /// About how many it usually has.
    pub usual: u64,
    /// The window.
    pub window: Span,
    /// The trait that most of them share and ordinary clients do not: which, its text, its share of the crowd and its usual share.
    pub separator: Option<(Trait, String, f64, f64)>,
}

impl Sample {
    pub(crate) fn count(&mut self, client: Client, request: &Request<'_>, texts: &mut HashMap<u64, Box<str>>) {
        let hash = hash_of(client);
        if self.0.len() >= SAMPLE_MAX && self.0.last_key_value().is_some_and(|(largest, _)| hash > *largest) {
            return;
        }
        self.sight(client, 1, Trait::ALL.map(|which| which.of(request)), texts);
    }

    /// Notes that `client` sent so many requests, and what the one with the smallest traits looked like.
    pub(crate) fn sight(
        &mut self,
        client: Client,
        requests: u64,
        looks: [&str; Trait::ALL.len()],
        texts: &mut HashMap<u64, Box<str>>,
    ) {
        let traits = looks.map(|text| {
            let hash = hash_bytes(text.as_bytes());
            texts.entry(hash).or_insert_with(|| cut(text).into());
            hash
        });
        self.add(hash_of(client), Sighting { requests, traits });
    }

    pub(crate) fn merge(&mut self, other: Sample) {
        for (hash, sighting) in other.0 {
            self.add(hash, sighting);
        }
    }

    /// The hashes of the texts that this sample refers to.
    pub(crate) fn texts(&self) -> impl Iterator<Item = u64> {
        self.0.values().flat_map(|sighting| sighting.traits)
    }

    fn add(&mut self, hash: u64, sighting: Sighting) {
        self.0
            .entry(hash)
            .and_modify(|known| {
                known.requests += sighting.requests;
                known.traits = known.traits.min(sighting.traits);
            })
            .or_insert(sighting);
        while self.0.len() > SAMPLE_MAX {
            self.0.pop_last();
        }
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn hash_of(client: Client) -> u64 {
    let net = client.net();
    match net.network() {
        std::net::IpAddr::V4(v4) => hash_bytes(&v4.octets()),
        std::net::IpAddr::V6(v6) => hash_bytes(&v6.octets()),
    }
}

/// The clients of a window: about how many send few requests, and the sampled ones of those.
struct Window {
    is_empty: bool,
    few: u64,
    sightings: Vec<Sighting>,
}

fn window(tally: &Tally, from: Minute, to: Minute, requests_each: u32) -> Window {
    let mut union = Sample::default();
    for (_, totals) in tally.minutes.range(from..to) {
        union.merge(totals.sample.clone());
    }
    // Of k smallest hashes out of n uniform ones the largest lies about at k/n of the range.
    let sampled = union.0.len() as f64;
    let clients = match union.0.last_key_value() {
        Some((largest, _)) if union.0.len() >= SAMPLE_MAX => {
            (sampled - 1.0) / ((*largest as f64 + 1.0) / (u64::MAX as f64))
        }
        _ => sampled,
    };
    let sightings: Vec<Sighting> = union
        .0
        .into_values()
        .filter(|sighting| sighting.requests <= u64::from(requests_each))
        .collect();
    let few = if sampled == 0.0 {
        0.0
    } else {
        clients * sightings.len() as f64 / sampled
    };
    Window {
        is_empty: sampled == 0.0,
        few: few.round() as u64,
        sightings,
    }
}

/// The crowd in the window that ends before `now`, if there is one.
pub(crate) fn crowd(limit: &CrowdLimit, tally: &Tally, horizon: Span, now: Minute) -> Option<Crowd> {
    let from = now - limit.window;
    let requests: u64 = tally.minutes.range(from..now).map(|(_, totals)| totals.requests).sum();
    if requests < u64::from(limit.clients) {
        return None;
    }
    let here = window(tally, from, now, limit.requests_each);
    if here.few < u64::from(limit.clients) {
        return None;
    }
    // What is usual is what whole windows before this one had. One that the beginning of the log or an outage cut short
    // would make everything look like a surge.
    let first = tally
        .minutes
        .first_key_value()
        .map_or(now, |(minute, _)| *minute)
        .max(now - horizon);
    let mut before = Vec::new();
    let mut to = from;
    while to - limit.window >= first && to > Minute(limit.window.0) {
        let earlier = window(tally, to - limit.window, to, limit.requests_each);
        if !earlier.is_empty {
            before.push(earlier);
        }
        to = to - limit.window;
    }
    if before.len() < WINDOWS_BEFORE_MIN {
        return None;
    }
    before.sort_by_key(|window| window.few);
    let usual = before.get(before.len() / 2).map_or(0, |median| median.few);
    if (here.few as f64) < limit.surge * usual as f64 {
        return None;
    }
    let ordinary: Vec<&Sighting> = before
        .iter()
        .filter(|window| window.few <= usual)
        .flat_map(|window| &window.sightings)
        .collect();
    let separator = Trait::ALL
        .into_iter()
        .enumerate()
        .filter_map(|(at, which)| {
            let (top, share) = most_common(here.sightings.iter().map(|s| s.traits[at]))?;
            let text = tally.texts.get(&top).filter(|text| !text.is_empty())?;
            let usual = ordinary.iter().filter(|s| s.traits[at] == top).count() as f64 / ordinary.len().max(1) as f64;
            (share >= SHARE_MIN && share > 2.0 * usual).then(|| (which, text.to_string(), share, usual))
        })
        .max_by(|a, b| (a.2 - a.3).total_cmp(&(b.2 - b.3)).then(b.0.cmp(&a.0)));
    Some(Crowd {
        clients: here.few,
        usual,
        window: limit.window,
        separator,
    })
}

/// The most common hash and its share; the smallest of equals.
fn most_common(hashes: impl Iterator<Item = u64>) -> Option<(u64, f64)> {
    let hashes: Vec<u64> = hashes.collect();
    let distinct: BTreeSet<u64> = hashes.iter().copied().collect();
    let counts = distinct
        .into_iter()
        .map(|hash| (hashes.iter().filter(|h| **h == hash).count(), hash));
    let (count, hash) = counts.max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)))?;
    Some((hash, count as f64 / hashes.len() as f64))
}
