//! The lines that programs read: `replay --json`, and the verdicts kept in the state.

use std::collections::BTreeMap;
use std::io::{self, Write};

use analyzer::Verdict;
use analyzer::judge::Charge;
use serde::Serialize;

use crate::replay::Event;

/// One line of `--json`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line<'a> {
    /// A ban begins.
    #[allow(missing_docs)]
    Ban {
        time: String,
        client: String,
        rule: &'a str,
        hits: u64,
        limit: u32,
        window: String,
        strike: u32,
        until: String,
        stopped: u64,
        action: String,
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        also: &'a [String],
    },
    /// An offense that goes unpunished.
    Spared(Unpunished<'a>),
    /// An offense that the brake holds.
    Held(Unpunished<'a>),
    /// Something to look at.
    Alert(Alert<'a>),
    /// The last line of a replay.
    Summary(Summary),
}

/// An offense and the reason why nobody was banned for it.
#[derive(Serialize)]
pub struct Unpunished<'a> {
    time: String,
    client: String,
    rule: &'a str,
    hits: u64,
    limit: u32,
    window: String,
    because: &'a str,
}

/// Something to look at: an offense against a rule that only alerts, or a crowd.
#[derive(Serialize)]
pub struct Alert<'a> {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    rule: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hits: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usual: Option<u64>,
    window: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    separator: Option<Separator<'a>>,
}

/// What a crowd has in common and ordinary clients have not.
#[derive(Serialize)]
pub struct Separator<'a> {
    field: String,
    value: &'a str,
    share: f64,
    usual: f64,
}

/// The last line.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Objects read.
    pub objects: u64,
    /// Objects with the very bytes of another.
    pub duplicates: u64,
    /// Objects left unread because of their key's time.
    pub pruned: u64,
    /// Requests in the period.
    pub requests: u64,
    /// Records that could not be read.
    pub skipped: u64,
    /// The same by reason.
    pub skipped_by: BTreeMap<&'static str, u64>,
    /// Objects that could not be read to their end, and why.
    pub unreadable: BTreeMap<String, String>,
    /// Requests without an address at the trusted hop.
    pub unattributed: u64,
    /// Clients counted.
    pub clients: u64,
    /// Bans imposed.
    pub bans: u64,
    /// Clients banned at least once.
    pub banned_clients: u64,
    /// Requests that the bans would have stopped.
    pub stopped: u64,
    /// Offenses spared.
    pub spared: u64,
    /// Offenses held by the brake.
    pub held: u64,
    /// Alerts raised.
    pub alerts: u64,
    /// The first request's time.
    pub from: Option<String>,
    /// The last request's time.
    pub to: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

impl<'a> Line<'a> {
    /// The line for one verdict.
    pub fn of(event: &'a Event) -> Line<'a> {
        let time = event.time.to_string();
        match &event.verdict {
            Verdict::Ban(charge, sentence) => Line::Ban {
                time,
                client: charge.client.to_string(),
                rule: &charge.rule,
                hits: charge.offense.hits,
                limit: charge.limit,
                window: charge.window.to_string(),
                strike: sentence.strike,
                until: sentence.until.to_string(),
                stopped: event.stopped,
                action: sentence.action.to_string(),
                also: &charge.also,
            },
            Verdict::Spared(charge, because) => Line::Spared(Unpunished::of(time, charge, because)),
            Verdict::Held(charge, because) => Line::Held(Unpunished::of(time, charge, because)),
            Verdict::Alert(charge) => Line::Alert(Alert {
                time,
                client: Some(charge.client.to_string()),
                rule: &charge.rule,
                hits: Some(charge.offense.hits),
                limit: Some(charge.limit),
                clients: None,
                usual: None,
                window: charge.window.to_string(),
                separator: None,
            }),
            Verdict::Crowd(crowd) => Line::Alert(Alert {
                time,
                client: None,
                rule: "crowd",
                hits: None,
                limit: None,
                clients: Some(crowd.clients),
                usual: Some(crowd.usual),
                window: crowd.window.to_string(),
                separator: crowd.separator.as_ref().map(|(which, value, share, usual)| {
                    let rounded = |share: f64| (share * 1000.0).round() / 1000.0;
                    Separator {
                        field: which.to_string(),
                        value,
                        share: rounded(*share),
                        usual: rounded(*usual),
                    }
                }),
            }),
        }
    }
}

impl<'a> Unpunished<'a> {
    fn of(time: String, charge: &'a Charge, because: &'a str) -> Unpunished<'a> {
        Unpunished {
            time,
            client: charge.client.to_string(),
            rule: &charge.rule,
            hits: charge.offense.hits,
            limit: charge.limit,
            window: charge.window.to_string(),
            because,
        }
    }
}

/// Writes one JSON object and a newline.
///
/// # Errors
/// When `out` fails.
pub fn write_line(out: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}
