//! The formats of what is kept between runs: a log object's tally, and the ledger.
//!
//! Each format has a version, and a version we do not know is refused rather than guessed at, so that a newer Palisade's
//! state is never overwritten by an older one. The types here belong to the formats; those of the judge are not serialised.
//!
//! A tally is the line `palisade-tally 2`, then a zstd frame of a [postcard](https://postcard.jamesmunns.com/wire-format)
//! record: small, and read in about a microsecond a client. The ledger is JSON that people can read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use chrono::DateTime;
use foldhash::HashMap;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::client::Client;
use crate::crowd::{Sample, Sighting};
use crate::ledger::{Action, Ban, Episode, Ledger, Manual, ManualKind, Offender};
use crate::policy::Severity;
use crate::tally::{Cell, Cells, MinuteTotals, Slot, Tally, Value};
use crate::time::Minute;

/// Why stored bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Written by a newer Palisade.
    #[error(
        "{what} is of version {version}, and this Palisade reads version {known}: update Palisade, nothing was overwritten"
    )]
    Version {
        /// What was read.
        what: &'static str,
        /// Its version.
        version: u32,
        /// Ours.
        known: u32,
    },
    /// Not what it should be.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

const TALLY_VERSION: u32 = 2;
const LEDGER_VERSION: u32 = 1;

/// For so many clients there is room before they are read, whatever number a damaged tally claims.
const CLIENTS_AT_ONCE: usize = 1 << 20;

/// What reading one log object gave, as it is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObjectTally {
    /// The object's key.
    pub object: String,
    /// Requests read.
    pub requests: u64,
    /// Records skipped, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Why the rest of the object could not be read, if so. What came before it is counted, and reading again finds no more.
    pub stopped: Option<String>,
    /// The newest request's time, in milliseconds since the epoch.
    pub newest_ms: Option<i64>,
    /// The object's size in bytes and a hash of them: a copy under another name is the same object and counts once.
    pub identity: Option<(u64, u128)>,
    /// The counts.
    pub tally: Tally,
}

/// `C` is all clients: where they are counted when written, and put there when read, for they are many.
#[derive(Serialize, Deserialize)]
struct StoredTally<C> {
    object: String,
    requests: u64,
    skipped: BTreeMap<String, u64>,
    stopped: Option<String>,
    newest_ms: Option<i64>,
    identity: Option<(u64, u128)>,
    unattributed: u64,
    clients: C,
    minutes: Vec<StoredMinute>,
    /// The texts behind the hashes of traits.
    texts: BTreeMap<u64, String>,
}

#[derive(Serialize, Deserialize)]
struct StoredClient<C, V> {
    address: IpAddr,
    prefix: u8,
    /// (slot, minute, hits)
    cells: C,
    /// (slot, minute, hash)
    values: V,
}

/// Every client with its cells, in the order in which they are written.
struct Written<'t>(Vec<(&'t Client, &'t Cells)>);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Listed<'t, T, F>(&'t [T], F);
        impl<T, F: Fn(&T) -> U, U: Serialize> Serialize for Listed<'_, T, F> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.iter().map(&self.1))
            }
        }
        serializer.collect_seq(self.0.iter().map(|(client, cells)| StoredClient {
            address: client.net().network(),
            prefix: client.net().prefix_len(),
            cells: Listed(cells.all(), |cell: &Cell| (cell.slot.0, cell.minute.0, cell.hits)),
            values: Listed(cells.values(), |value: &Value| {
                (value.slot.0, value.minute.0, value.hash)
            }),
        }))
    }
}

/// The clients of a tally, put where they belong while they are read.
#[derive(Default)]
struct Clients(HashMap<Client, Cells>);

impl<'de> Deserialize<'de> for Clients {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Clients, D::Error> {
        deserializer.deserialize_seq(Clients::default())
    }
}

impl<'de> de::Visitor<'de> for Clients {
    type Value = Clients;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("clients")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut stored: A) -> Result<Clients, A::Error> {
        let Clients(mut clients) = self;
        clients.reserve(stored.size_hint().unwrap_or_default().min(CLIENTS_AT_ONCE));
        while let Some(client) = stored.next_element::<StoredClient<Vec<(u16, u32, u32)>, Vec<(u16, u32, u64)>>>()? {
            let net = IpNet::new(client.address, client.prefix).map_err(de::Error::custom)?;
            let cell = |(slot, minute, hits)| Cell {
                slot: Slot(slot),
                minute: Minute(minute),
                hits,
            };
            let value = |(slot, minute, hash)| Value {
                slot: Slot(slot),
                minute: Minute(minute),
                hash,
            };
            let cells = Cells::stored(
                client.cells.into_iter().map(cell).collect(),
                client.values.into_iter().map(value).collect(),
            );
            clients.insert(Client::of_net(net), cells);
        }
        Ok(Clients(clients))
    }
}

#[derive(Serialize, Deserialize)]
struct StoredMinute {
    minute: u32,
    requests: u64,
    allowed: u64,
    /// (the client's hash, requests, the hashes of its traits)
    sample: Vec<(u64, u64, [u64; 4])>,
}

impl ObjectTally {
    /// The bytes to keep: the same tally gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut clients: Vec<_> = self.tally.clients.iter().collect();
        clients.sort_unstable_by_key(|(client, _)| client.to_bits());
        let sighting = |(hash, sighting): (&u64, &Sighting)| (*hash, sighting.requests, sighting.traits);
        let minute = |(minute, totals): (&Minute, &MinuteTotals)| StoredMinute {
            minute: minute.0,
            requests: totals.requests,
            allowed: totals.allowed,
            sample: totals.sample.0.iter().map(sighting).collect(),
        };
        // Texts that no sample refers to any more depend on the order of counting, and nobody will miss them.
        let referred = self.tally.minutes.values().flat_map(|totals| totals.sample.texts());
        let text = |hash: u64| self.tally.texts.get(&hash).map(|text| (hash, text.to_string()));
        let stored = StoredTally {
            object: self.object.clone(),
            requests: self.requests,
            skipped: self.skipped.clone(),
            stopped: self.stopped.clone(),
            newest_ms: self.newest_ms,
            identity: self.identity,
            unattributed: self.tally.unattributed,
            clients: Written(clients),
            minutes: self.tally.minutes.iter().map(minute).collect(),
            texts: referred.filter_map(text).collect(),
        };
        let mut bytes = format!("palisade-tally {TALLY_VERSION}\n").into_bytes();
        // Neither can fail: the types hold nothing that postcard can't write, and memory does not refuse.
        let record = postcard::to_allocvec(&stored).unwrap_or_default();
        bytes.extend(zstd::encode_all(record.as_slice(), 1).unwrap_or_default());
        bytes
    }

    /// Reads what [`ObjectTally::to_bytes`] wrote.
    ///
    /// # Errors
    /// When the version is not ours, or the bytes are damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<ObjectTally, FormatError> {
        let what = "the tally";
        let damaged = |why: String| FormatError::Damaged { what, why };
        let line_ends = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| damaged("it has no version".into()))?;
        let version = std::str::from_utf8(&bytes[..line_ends])
            .ok()
            .and_then(|line| line.strip_prefix("palisade-tally "));
        let version: u32 = version
            .and_then(|version| version.parse().ok())
            .ok_or_else(|| damaged("it has no version".into()))?;
        if version != TALLY_VERSION {
            return Err(FormatError::Version {
                what,
                version,
                known: TALLY_VERSION,
            });
        }
        let record = zstd::decode_all(&bytes[line_ends + 1..]).map_err(|error| damaged(error.to_string()))?;
        let stored: StoredTally<Clients> = postcard::from_bytes(&record).map_err(|error| damaged(error.to_string()))?;
        let mut tally = Tally {
            clients: stored.clients.0,
            unattributed: stored.unattributed,
            ..Tally::default()
        };
        for StoredMinute {
            minute,
            requests,
            allowed,
            sample,
        } in stored.minutes
        {
            let sample = sample
                .into_iter()
                .map(|(hash, requests, traits)| (hash, Sighting { requests, traits }));
            let totals = MinuteTotals {
                requests,
                allowed,
                sample: Sample(sample.collect()),
            };
            tally.minutes.insert(Minute(minute), totals);
        }
        tally.texts.extend(
            stored
                .texts
                .into_iter()
                .map(|(hash, text)| (hash, text.into_boxed_str())),
        );
        let (object, requests, skipped) = (stored.object, stored.requests, stored.skipped);
        let (stopped, newest_ms, identity) = (stored.stopped, stored.newest_ms, stored.identity);
        Ok(ObjectTally {
            object,
            requests,
            skipped,
            stopped,
            newest_ms,
            identity,
            tally,
        })
    }
}

/// A minute as people read it: RFC 3339 in UTC.
#[derive(Clone, Copy)]
struct Time(Minute);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time =
            DateTime::parse_from_rfc3339(&text).map_err(|_| de::Error::custom(format!("`{text}` is not a time")))?;
        Ok(Time(Minute::of_ms(time.timestamp_millis())))
    }
}

#[derive(Serialize, Deserialize)]
struct StoredLedger {
    version: u32,
    offenders: BTreeMap<String, StoredOffender>,
    manual: Vec<StoredManual>,
    leaving: BTreeSet<IpNet>,
    going_on: Vec<StoredEpisode>,
}

#[derive(Serialize, Deserialize)]
struct StoredOffender {
    strikes: u32,
    rule: String,
    action: Action,
    from: Time,
    until: Time,
    severity: Severity,
    hits: u64,
    last_hit: Time,
}

#[derive(Serialize, Deserialize)]
struct StoredManual {
    net: IpNet,
    kind: ManualKind,
    why: String,
    since: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Time>,
}

#[derive(Serialize, Deserialize)]
struct StoredEpisode {
    kind: EpisodeKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EpisodeKind {
    Spared,
    Held,
    Alert,
    Crowd,
}

impl Ledger {
    /// JSON for `ledger.json`: the same ledger gives the same text.
    pub fn to_json(&self) -> String {
        let offender = |offender: &Offender| {
            let ban = &offender.ban;
            StoredOffender {
                strikes: offender.strikes,
                rule: ban.rule.clone(),
                action: ban.action,
                from: Time(ban.from),
                until: Time(ban.until),
                severity: ban.severity,
                hits: ban.hits,
                last_hit: Time(ban.last_hit),
            }
        };
        let manual = |manual: &Manual| StoredManual {
            net: manual.net,
            kind: manual.kind,
            why: manual.why.clone(),
            since: Time(manual.since),
            until: manual.until.map(Time),
        };
        let episode = |episode: &Episode| {
            let (kind, client, rule) = match episode {
                Episode::Spared(client, rule) => (EpisodeKind::Spared, Some(client.net()), Some(rule.clone())),
                Episode::Held(client) => (EpisodeKind::Held, Some(client.net()), None),
                Episode::Alert(client, rule) => (EpisodeKind::Alert, Some(client.net()), Some(rule.clone())),
                Episode::Crowd => (EpisodeKind::Crowd, None, None),
            };
            StoredEpisode { kind, client, rule }
        };
        let stored = StoredLedger {
            version: LEDGER_VERSION,
            offenders: self
                .offenders
                .iter()
                .map(|(client, known)| (client.to_string(), offender(known)))
                .collect(),
            manual: self.manual.iter().map(manual).collect(),
            leaving: self.leaving.clone(),
            going_on: self.going_on.iter().map(episode).collect(),
        };
        // Cannot fail: every key is a string.
        let mut text = serde_json::to_string_pretty(&stored).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads `ledger.json`.
    ///
    /// # Errors
    /// When the version is not ours, or the text is damaged. Never an empty ledger instead.
    pub fn from_json(text: &[u8]) -> Result<Ledger, FormatError> {
        let what = "the ledger";
        let damaged = |why: String| FormatError::Damaged { what, why };
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        if version != LEDGER_VERSION {
            return Err(FormatError::Version {
                what,
                version,
                known: LEDGER_VERSION,
            });
        }
        let stored: StoredLedger = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        let mut offenders = BTreeMap::new();
        for (client, known) in stored.offenders {
            let net: IpNet = client
                .parse()
                .map_err(|_| damaged(format!("`{client}` is not a network")))?;
            let ban = Ban {
                rule: known.rule,
                action: known.action,
                from: known.from.0,
                until: known.until.0,
                severity: known.severity,
                hits: known.hits,
                last_hit: known.last_hit.0,
            };
            offenders.insert(
                Client::of_net(net),
                Offender {
                    strikes: known.strikes,
                    ban,
                },
            );
        }
        let mut going_on = BTreeSet::new();
        for episode in stored.going_on {
            let rule = || episode.rule.clone().unwrap_or_default();
            let client = episode.client.map(Client::of_net);
            let known = match (episode.kind, client) {
                (EpisodeKind::Spared, Some(client)) => Episode::Spared(client, rule()),
                (EpisodeKind::Held, Some(client)) => Episode::Held(client),
                (EpisodeKind::Alert, Some(client)) => Episode::Alert(client, rule()),
                (EpisodeKind::Crowd, None) => Episode::Crowd,
                _ => return Err(damaged("an episode names nobody".into())),
            };
            going_on.insert(known);
        }
        let manual = |manual: StoredManual| Manual {
            net: manual.net,
            kind: manual.kind,
            why: manual.why,
            since: manual.since.0,
            until: manual.until.map(|until| until.0),
        };
        Ok(Ledger {
            offenders,
            manual: stored.manual.into_iter().map(manual).collect(),
            leaving: stored.leaving,
            going_on,
        })
    }
}

#[cfg(test)]
mod tests {
    use ingest::{Header, Request};

    use super::*;
    use crate::policy::Policy;

    fn some_tally() -> ObjectTally {
        let policy = Policy::default_policy();
        let mut tally = Tally::default();
        for n in 0..500u32 {
            let request = Request {
                timestamp_ms: 1_793_534_400_000 + i64::from(n) * 7_000,
                client_ip: if n % 3 == 0 {
                    IpAddr::from([192, 0, 2, (n % 200) as u8])
                } else {
                    "2001:db8::9".parse().unwrap()
                },
                action: if n % 7 == 0 { "BLOCK" } else { "ALLOW" }.into(),
                waf_rule: if n % 11 == 0 { "palisade-ban" } else { "x" }.into(),
                method: "POST".into(),
                uri: format!("/{n}/login").into(),
                headers: vec![Header {
                    name: "User-Agent".into(),
                    value: format!("agent {n}").into(),
                }],
                ..Request::default()
            };
            tally.count(&policy, &request);
        }
        let skipped = BTreeMap::from([("truncated".to_owned(), 1)]);
        ObjectTally {
            object: "2026/11/01/12/x.gz".into(),
            requests: 500,
            skipped,
            stopped: Some("cut".into()),
            newest_ms: Some(1_793_537_900_000),
            identity: Some((9, 7)),
            tally,
        }
    }

    #[test]
    fn a_tally_comes_back_as_it_went_and_the_same_tally_gives_the_same_bytes() {
        let tally = some_tally();
        let bytes = tally.to_bytes();
        let back = ObjectTally::from_bytes(&bytes).unwrap();
        assert_eq!(
            (&back.tally.clients, &back.tally.minutes),
            (&tally.tally.clients, &tally.tally.minutes)
        );
        assert_eq!(
            (&back.object, back.requests, back.newest_ms),
            (&tally.object, 500, tally.newest_ms)
        );
        assert_eq!((&back.skipped, back.tally.unattributed), (&tally.skipped, 0));
        assert!(
            back.tally
                .texts
                .iter()
                .all(|(hash, text)| tally.tally.texts.get(hash) == Some(text))
        );
        assert_eq!(back.to_bytes(), bytes);
    }

    #[test]
    fn a_tally_of_a_newer_palisade_or_with_damage_is_refused() {
        let bytes = some_tally().to_bytes();
        let newer = [b"palisade-tally 3\n", &bytes[17..]].concat();
        assert!(
            ObjectTally::from_bytes(&newer)
                .unwrap_err()
                .to_string()
                .contains("version 3, and this Palisade reads version 2")
        );
        for cut in [0, 5, 16, 17, 40, bytes.len() - 1] {
            assert!(ObjectTally::from_bytes(&bytes[..cut]).is_err(), "{cut}");
        }
        for at in 17..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 0x55;
            let _ = ObjectTally::from_bytes(&broken);
        }
    }

    #[test]
    fn a_ledger_comes_back_as_it_went_and_people_can_read_it() {
        let client = Client::of("192.0.2.44".parse().unwrap(), 64);
        let ban = Ban {
            rule: "login".into(),
            action: Action::Block,
            from: Minute(29_892_251),
            until: Minute(29_892_266),
            severity: Severity::High,
            hits: 20,
            last_hit: Minute(29_892_250),
        };
        let manual = Manual {
            net: "198.51.100.0/24".parse().unwrap(),
            kind: ManualKind::Ban,
            why: "asked by abuse desk".into(),
            since: Minute(1),
            until: None,
        };
        let ledger = Ledger {
            offenders: [(client, Offender { strikes: 2, ban })].into(),
            manual: vec![manual],
            leaving: ["192.0.2.99/32".parse().unwrap()].into(),
            going_on: [
                Episode::Held(client),
                Episode::Crowd,
                Episode::Spared(client, "login".into()),
                Episode::Alert(client, "x".into()),
            ]
            .into(),
        };
        let text = ledger.to_json();
        assert_eq!(Ledger::from_json(text.as_bytes()).unwrap(), ledger);
        assert!(
            text.contains("\"192.0.2.44/32\": {\n      \"strikes\": 2,\n      \"rule\": \"login\""),
            "{text}"
        );
        assert!(
            Ledger::from_json(text.replace("\"version\": 1", "\"version\": 9").as_bytes())
                .unwrap_err()
                .to_string()
                .contains("version 9")
        );
        for damage in ["", "{}", "[]", "null", "{\"version\":1}", &text[..text.len() / 2]] {
            assert!(Ledger::from_json(damage.as_bytes()).is_err(), "{damage}");
        }
    }
}
