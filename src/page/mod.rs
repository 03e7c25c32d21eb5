//! The page that operators look at: one file of HTML that needs nothing else.
//!
//! [`Report`] is what a page says and [`Report::html`] the page; `sections` writes its parts, `charts` counts what its
//! pictures show, `live` adds what only a running deployment has. The page works offline and without a script, which only
//! draws pictures, sorts and searches. Text from logs is escaped by maud wherever it appears and in the data for the
//! script by `json_for_html`; a Content-Security-Policy with the hashes of our own script and style is the second wall.
//!
//! Every list has a limit, so that ten million requests make no larger page than ten thousand. What is cut is ranked
//! first, and the page says how much is missing.

pub mod charts;
pub mod live;
mod sections;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use analyzer::tally::Slot;
use analyzer::{Client, Minute, Policy, Tally, Verdict};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::replay::Event;
use crate::report::{Line, Summary};
use crate::survey::Found;
use charts::{Activity, Rates, Timeline};
use live::Live;

/// The most bans with evidence on one page: those that would have stopped most requests.
pub const BANS_MAX: usize = 400;
/// The most rows of each other kind of verdict.
pub const VERDICTS_MAX: usize = 200;
/// The most rows of a ranking.
pub const TOP_MAX: usize = 15;
/// The most bytes of HTML. Beyond it clients are left without an explanation, those with the fewest requests first.
pub const BYTES_MAX: usize = 4_500_000;

/// What a client's activity takes in the page's data, at most.
const ACTIVITY_BYTES: usize = 600;

/// What a page says.
pub struct Report<'a> {
    /// What was replayed, as it was typed; for a deployment, its state.
    pub source: String,
    /// What to add to `palisade explain <client>` to see the same client: the policy and the paths, as they were typed.
    pub arguments: String,
    /// How the policy is called.
    pub policy_name: String,
    /// The policy that judged.
    pub policy: &'a Policy,
    /// What it judged.
    pub tally: &'a Tally,
    /// The last line of `--json`.
    pub summary: &'a Summary,
    /// What is shown of the verdicts.
    pub chosen: &'a Chosen<'a>,
    /// Every verdict, for the timeline.
    pub events: &'a [Event],
    /// The requests behind them, or why there are none.
    pub found: Result<&'a Found, Unread>,
    /// What only a running deployment has.
    pub live: Option<&'a Live>,
}

/// Why a page shows no requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// A live page was not told where the logs are.
    NoLogs,
    /// Athena counted, and sent back the numbers of those who could reach a limit.
    ByAthena,
}

/// The verdicts that a page shows, and whose clients it explains.
#[derive(Debug, Default)]
pub struct Chosen<'a> {
    /// In the order of time. The place of each is its name.
    pub events: Vec<&'a Event>,
    /// Bans that are not shown.
    pub bans_cut: Vec<&'a Event>,
    /// Other verdicts that are not shown.
    pub others_cut: usize,
    /// The clients to explain, the most important first: with a verdict that is shown, then those with most requests.
    pub clients: Vec<Client>,
    /// The clients with most requests, those that our own rules stopped included.
    pub top: Vec<(Client, u64)>,
}

impl<'a> Chosen<'a> {
    /// Chooses among the verdicts of a replay of `tally`.
    pub fn of(events: &'a [Event], tally: &Tally) -> Chosen<'a> {
        let mut bans: Vec<&Event> = Vec::new();
        let mut others: BTreeMap<u8, Vec<&Event>> = BTreeMap::new();
        for event in events {
            match &event.verdict {
                Verdict::Ban(..) => bans.push(event),
                Verdict::Held(..) => others.entry(0).or_default().push(event),
                Verdict::Spared(..) => others.entry(1).or_default().push(event),
                Verdict::Alert(..) | Verdict::Crowd(..) => others.entry(2).or_default().push(event),
            }
        }
        bans.sort_by_key(|event| (Reverse(event.stopped), event.time, client_of(event)));
        let bans_cut = bans.split_off(bans.len().min(BANS_MAX));
        let mut clients: Vec<Client> = bans.iter().filter_map(|event| client_of(event)).collect();
        let (mut chosen, mut others_cut) = (bans, 0);
        for (_, mut kind) in others {
            // The first ones: verdicts that last are said when they begin.
            others_cut += kind.len().saturating_sub(VERDICTS_MAX);
            kind.truncate(VERDICTS_MAX);
            clients.extend(kind.iter().filter_map(|event| client_of(event)));
            chosen.extend(kind);
        }
        chosen.sort_by_key(|event| event.time);
        let mut top: Vec<(Client, u64)> = tally
            .all_clients()
            .map(|(client, _)| (client, tally.requests_of(client, Minute(0), Minute(u32::MAX))))
            .collect();
        let by_requests = |(client, requests): &(Client, u64)| (Reverse(*requests), *client);
        if top.len() > TOP_MAX {
            top.select_nth_unstable_by_key(TOP_MAX, by_requests);
            top.truncate(TOP_MAX);
        }
        top.sort_unstable_by_key(by_requests);
        clients.extend(top.iter().map(|(client, _)| *client));
        let mut known = BTreeSet::new();
        clients.retain(|client| known.insert(*client));
        Chosen {
            events: chosen,
            bans_cut,
            others_cut,
            clients,
            top,
        }
    }
}

/// Whom a verdict is about.
pub fn client_of(event: &Event) -> Option<Client> {
    match &event.verdict {
        Verdict::Ban(charge, _) | Verdict::Held(charge, _) | Verdict::Spared(charge, _) | Verdict::Alert(charge) => {
            Some(charge.client)
        }
        Verdict::Crowd(_) => None,
    }
}

/// What the script reads. The lines are those of `replay --json`.
#[derive(Serialize)]
struct Data<'a> {
    lines: Vec<Line<'a>>,
    summary: &'a Summary,
    bans_cut: usize,
    timeline: Timeline,
    rates: Vec<Rates>,
    activity: BTreeMap<String, Activity>,
    live: Option<live::Polling<'a>>,
}

impl Report<'_> {
    /// The whole page.
    pub fn html(&self) -> String {
        let mut data = Data {
            lines: self.chosen.events.iter().map(|event| Line::of(event)).collect(),
            summary: self.summary,
            bans_cut: self.chosen.bans_cut.len(),
            timeline: Timeline::of(self.tally, self.events),
            rates: Rates::of(self.policy, self.tally),
            activity: BTreeMap::new(),
            live: self.live.map(|live| live.polling()),
        };
        let (header, parts) = (self.header(), self.parts(&data.timeline, &data.rates));
        let written = header.0.len() + parts.0.len() + SCRIPT.len() + STYLE.len();
        let (mut explained, mut left_out, mut clients) = (0, 0, String::new());
        for client in &self.chosen.clients {
            if written + clients.len() + explained * ACTIVITY_BYTES > BYTES_MAX {
                left_out += 1;
                continue;
            }
            clients.push_str(&self.client(*client).0);
            explained += 1;
            let activity = self.tally.cells(*client).map(Activity::of);
            data.activity
                .extend(activity.map(|activity| (client.to_string(), activity)));
        }
        let body = html! {
            a.skip href="#main" { "Skip to the content" }
            @if let Some(live) = self.live { (live.stale()) }
            div.wrap {
                (header)
                main id="main" {
                    (parts)
                    (self.clients(PreEscaped(clients), explained, left_out))
                }
                (self.footer())
            }
        };
        document(&self.title(), body, &json_for_html(&data), self.live.is_some()).into_string()
    }

    fn title(&self) -> String {
        match self.live {
            None => format!("Palisade replay of {}", self.source),
            Some(_) => format!("Palisade: {}", self.source),
        }
    }

    /// All requests of the client, those that our own rules stopped included, and how many of them WAF allowed.
    fn requests_of(&self, client: Client) -> (u64, u64) {
        self.tally.cells(client).map_or((0, 0), |cells| {
            let sum = |slot| cells.sum(slot, Minute(0), Minute(u32::MAX));
            let requests = sum(Slot::REQUESTS);
            (requests + sum(Slot::OURS), requests - sum(Slot::REFUSED))
        })
    }
}

const STYLE: &str = concat!(include_str!("uplot/uPlot.min.css"), "\n", include_str!("page.css"));

/// uPlot (MIT, 50 KB): small, fast with many points, and kept well. Its license travels with every page.
const SCRIPT: &str = concat!(
    "/*\nuPlot:\n",
    include_str!("uplot/LICENSE"),
    "\n*/\n",
    include_str!("uplot/uPlot.iife.min.js"),
    "\n",
    include_str!("page.js")
);

/// What a page may do: run our script, use our style, and nothing else. A live page may also ask its server whether
/// something has changed and send its forms there.
pub fn content_security_policy(live: bool) -> String {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())));
    let (connect, form) = if live {
        ("'self'", "'self'")
    } else {
        ("'none'", "'none'")
    };
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src {connect}; form-action {form}; base-uri 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

fn document(title: &str, body: Markup, data: &str, live: bool) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(content_security_policy(live));
                meta name="viewport" content="width=device-width, initial-scale=1";
                // A browser leaves the origin out of a form where no referrer may be sent at all.
                meta name="referrer" content=(if live { "same-origin" } else { "no-referrer" });
                meta name="robots" content="noindex";
                title { (title) }
                // Without an icon of its own a browser asks a server for one.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                (body)
                script type="application/json" id="data" { (PreEscaped(data)) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// JSON that cannot end the element it stands in: what HTML or an old parser might take for its own is written as `\u….`.
/// All of these appear in strings alone, where the escape means the same.
fn json_for_html(data: &impl Serialize) -> String {
    let json = serde_json::to_string(data).unwrap_or_else(|_| "null".to_owned());
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<'
            | '>'
            | '&'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => safe.push_str(&format!("\\u{:04x}", c as u32)),
            _ => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_script_and_style_cannot_end_their_own_elements() {
        for text in [SCRIPT, STYLE] {
            let lower = text.to_ascii_lowercase();
            assert!(!lower.contains("</script") && !lower.contains("</style") && !lower.contains("<!--"));
        }
    }

    #[test]
    fn data_cannot_end_its_element_and_reads_as_it_was() {
        let hostile = "</script><!--\u{2028}\u{202e}&amp;\"\\\u{0}é";
        let json = json_for_html(&hostile);
        assert!(json.chars().all(|c| !"<>&\u{2028}\u{202e}".contains(c)), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
    }
}
