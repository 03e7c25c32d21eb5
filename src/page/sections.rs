//! The parts of a page.
//!
//! Whatever comes from a log goes through [`data`], which makes control and direction marks visible and isolates the
//! text's direction; escaping is maud's.

use std::collections::BTreeSet;

use analyzer::judge::{Charge, Sentence};
use analyzer::policy::Then;
use analyzer::{Action, Client, Crowd, Finding, Minute, Verdict, View, eager, findings};
use maud::{Markup, html};

use super::charts::{Rates, Timeline};
use super::{BANS_MAX, Report, TOP_MAX, Unread, VERDICTS_MAX, client_of};
use crate::cli::output::{count, several, short};
use crate::cli::time::{clock, rfc3339, shown};
use crate::replay::Event;
use crate::survey::{Evidence, Frequency, Samples, Top};

/// How many sample values an evidence shows.
const SAMPLES_SHOWN: usize = 5;

impl Report<'_> {
    pub(super) fn header(&self) -> Markup {
        html! {
            header {
                p.where {
                    @if self.live.is_some() { "Palisade, live: " } @else { "Palisade, replay of " }
                    (data(&self.source, 120)) @if self.by_athena() { ", counted by Athena" } ", judged by " (data(&self.policy_name, 120))
                }
                @if let Some(live) = self.live {
                    (live.header(&self.policy.brake))
                } @else {
                    h1 { (self.lead()) }
                    (self.tiles())
                }
                (self.warnings())
                nav aria-label="Sections" { ul {
                    @if self.live.is_some() { li { a href="#deployment" { "Deployment" } } }
                    @for (at, name) in [
                        ("timeline", "Timeline"),
                        ("bans", "Bans"),
                        ("cost", "Collateral"),
                        ("spared", "Spared, held, alerts"),
                        ("rules", "Rules and their limits"),
                        ("top", "Most frequent"),
                        ("clients", "Clients"),
                    ] {
                        li { a href={ "#" (at) } { (name) } }
                    }
                } }
            }
        }
    }

    pub(super) fn parts(&self, timeline: &Timeline, rates: &[Rates]) -> Markup {
        html! {
            @if let Some(live) = self.live { (live.deployment(&self.policy.brake)) }
            (self.timeline(timeline))
            (self.bans())
            (self.cost())
            (self.others())
            (self.rules(rates))
            (self.tops(rates))
        }
    }

    fn by_athena(&self) -> bool {
        self.found.err() == Some(Unread::ByAthena)
    }

    /// Says where `what` is to be had, if this page has no requests to show.
    fn unread(&self, what: &str) -> Markup {
        html! {
            @match self.found {
                Ok(_) => {}
                Err(Unread::NoLogs) => { (what) " are in the logs: start " code { "palisade serve" } " with " code { "--logs" } " to see them here." }
                Err(Unread::ByAthena) => {
                    (what) " are in the logs, and Athena counted without showing them: "
                    code { "palisade replay --html report.html " (data(&self.arguments, 300)) } " reads them."
                }
            }
        }
    }

    /// Says who is missing from the tally, if Athena left anybody out.
    fn left_out(&self) -> Markup {
        let sent_back = self.tally.clients() as u64;
        html! {
            @if self.by_athena() && sent_back < self.summary.clients {
                "Athena sent back " (count(sent_back)) " of " (several(self.summary.clients, "client"))
                ", those that could reach a limit: the others are in the sums of all, and not here."
            }
        }
    }

    /// The answer, in a sentence.
    fn lead(&self) -> String {
        let summary = self.summary;
        if summary.requests == 0 {
            return "There was no request to judge".to_owned();
        }
        if summary.bans == 0 {
            return format!(
                "Nobody would have been banned for the {} in these logs",
                several(summary.requests, "request")
            );
        }
        format!(
            "{} of {} would have stopped {} of {}",
            several(summary.bans, "ban"),
            several(summary.banned_clients, "client"),
            count(summary.stopped),
            several(summary.requests, "request")
        )
    }

    fn tiles(&self) -> Markup {
        let summary = self.summary;
        let (stopped, cost) = self.cost_of_all();
        let period = match (&summary.from, &summary.to) {
            (Some(from), Some(to)) => format!("{} to {} UTC", minute_of(from), minute_of(to)),
            _ => String::new(),
        };
        html! {
            dl.tiles {
                div { dt { "requests " @if self.by_athena() { "counted" } @else { "read" } } dd { (count(summary.requests)) } dd { "from " (several(summary.clients, "client")) } }
                div { dt { "bans" } dd { (count(summary.bans)) } dd { "of " (several(summary.banned_clients, "client")) } }
                div { dt { "requests stopped" } dd { (count(summary.stopped)) } dd { (percent(summary.stopped, summary.requests)) " of all requests" } }
                @match self.found {
                    Ok(found) => div.cost[found.innocent > 0] { dt { "collateral" } dd { (count(found.innocent)) }
                        dd { "stopped though they did not match; WAF allowed " (count(cost)) " of all " (count(stopped)) " stopped" } },
                    Err(_) => div.cost[cost > 0] { dt { "collateral, at most" } dd { (count(cost)) }
                        dd { "stopped though WAF allowed them, of all " (count(stopped)) " stopped" } },
                }
                div { dt { "spared" } dd { (count(summary.spared)) } dd { (count(summary.held)) " held, " (several(summary.alerts, "alert")) } }
            }
            @if !period.is_empty() { p.note { (period) } }
        }
    }

    /// All requests that the bans would have stopped, and those of them that WAF allowed.
    fn cost_of_all(&self) -> (u64, u64) {
        let bans = self.events.iter().filter_map(|event| match &event.verdict {
            Verdict::Ban(charge, sentence) => {
                let allowed = self.tally.allowed_of(charge.client, event.time, sentence.until);
                Some((event.stopped, allowed))
            }
            _ => None,
        });
        bans.fold((0, 0), |sum, ban| (sum.0 + ban.0, sum.1 + ban.1))
    }

    /// What a reader must know before believing the page.
    fn warnings(&self) -> Markup {
        let summary = self.summary;
        let mut warnings: Vec<String> = Vec::new();
        if summary.skipped > 0 {
            let reasons: Vec<String> = summary
                .skipped_by
                .iter()
                .map(|(reason, records)| format!("{} {reason}", count(*records)))
                .collect();
            warnings.push(format!(
                "{} could not be read and counts for nobody: {}",
                several(summary.skipped, "record"),
                reasons.join(", ")
            ));
        }
        if summary.unattributed > 0 {
            warnings.push(format!(
                "{} had no address at the trusted hop of the forwarded header, so nobody is blamed for it",
                several(summary.unattributed, "request")
            ));
        }
        if !self.chosen.bans_cut.is_empty() {
            warnings.push(format!(
                "This page shows the {} that would have stopped most; {} more are in the numbers, the timeline and `--json`",
                several(BANS_MAX as u64, "ban"),
                count(self.chosen.bans_cut.len() as u64)
            ));
        }
        if self.chosen.others_cut > 0 {
            warnings.push(format!(
                "Of what was spared, held and alerted, the first {} each are shown; {} more are in the numbers and `--json`",
                count(VERDICTS_MAX as u64),
                count(self.chosen.others_cut as u64)
            ));
        }
        const UNREADABLE_SHOWN: usize = 10;
        html! {
            @for warning in &warnings { p.warn { (warning) } }
            @if !summary.unreadable.is_empty() {
                div.warn {
                    (several(summary.unreadable.len() as u64, "object")) " could not be read to the end:"
                    ul { @for (object, why) in summary.unreadable.iter().take(UNREADABLE_SHOWN) {
                        li { (data(object, 160)) ": " (data(why, 160)) }
                    } }
                    @if summary.unreadable.len() > UNREADABLE_SHOWN {
                        "and " (count((summary.unreadable.len() - UNREADABLE_SHOWN) as u64)) " more"
                    }
                }
            }
        }
    }

    fn timeline(&self, timeline: &Timeline) -> Markup {
        let sum = |list: &[u64]| count(list.iter().sum());
        let stopped = if self.live.is_some() {
            "during bans"
        } else {
            "would be stopped"
        };
        let most = timeline.bans.iter().max().copied().unwrap_or(0);
        let text = format!(
            "Requests over time: {} allowed, {} blocked, {} {stopped}; at most {} in force at once.",
            sum(&timeline.allowed),
            sum(&timeline.blocked),
            sum(&timeline.stopped),
            several(u64::from(most), "ban")
        );
        html! {
            section aria-labelledby="timeline" {
                h2 id="timeline" { "Timeline" }
                @if timeline.allowed.is_empty() {
                    p { "There was no request." }
                } @else {
                    p { "Requests every " (span_of(timeline.step_s)) ", UTC. Bans are bars above the columns; where they are too many for that, a line counts those in force." }
                    ul.legend {
                        li { i.allowed {} "allowed" }
                        li { i.blocked {} "blocked by WAF" }
                        li { i.stopped {} (stopped) }
                        li { i.bar {} "a ban" }
                    }
                    div.chart data-chart="timeline" data-readout="readout" role="img" aria-label=(text) {}
                    output.readout id="readout" {}
                    @let missing = self.summary.requests.saturating_sub(self.summary.unattributed);
                    @let missing = missing.saturating_sub([&timeline.allowed, &timeline.blocked, &timeline.stopped].into_iter().flatten().sum());
                    @if self.by_athena() && missing > 0 {
                        p.note { (several(missing, "request")) " of clients that Athena left out, stopped by our own rules, are not in the picture." }
                    }
                    noscript { p.note { "Pictures need a script, which this browser does not run; everything else is here." } }
                }
            }
        }
    }

    /// The bans that are shown, with their places.
    fn shown_bans(&self) -> Vec<(usize, &Event, &Charge, &Sentence)> {
        let events = self.chosen.events.iter().enumerate();
        events
            .filter_map(|(at, event)| match &event.verdict {
                Verdict::Ban(charge, sentence) => Some((at, *event, charge, sentence)),
                _ => None,
            })
            .collect()
    }

    fn bans(&self) -> Markup {
        let bans = self.shown_bans();
        let mut rules: Vec<&str> = bans.iter().map(|(_, _, charge, _)| charge.rule.as_str()).collect();
        rules.sort_unstable();
        rules.dedup();
        let countries: BTreeSet<String> = bans.iter().filter_map(|(at, ..)| self.country(*at)).collect();
        html! {
            section aria-labelledby="bans" {
                h2 id="bans" { @if self.live.is_some() { "Bans in force" } @else { "Bans" } }
                @if bans.is_empty() {
                    p { @if self.live.is_some() { "Nobody is banned." } @else { "Nobody would have been banned." } }
                } @else {
                    p { "Open a row for its evidence; follow a client to everything it did." }
                    (tools("ban-rows", "Search bans", html! {
                        (select("rule", "Rule", rules.iter().copied()))
                        @if !countries.is_empty() { (select("country", "Country", countries.iter().map(String::as_str))) }
                    }, true))
                    div.scroll role="region" aria-label="Table of bans" tabindex="0" {
                        table id="ban-rows" data-sort {
                            thead { tr {
                                th { span.vh { "Evidence" } }
                                th data-key="text" { "Client" }
                                th data-key="text" { "Rule" }
                                th.wide data-key="text" { "Began (UTC)" }
                                @if self.live.is_some() {
                                    th.n data-key="number" { "Left" }
                                } @else {
                                    th.n.wide data-key="number" { "For" }
                                    th.n.wide data-key="number" { "Strike" }
                                }
                                th.n.wide data-key="number" { "Hits" }
                                th.n.wide data-key="number" { "Matched" }
                                th.n data-key="number" { @if self.live.is_some() { "Sent" } @else { "Stopped" } }
                                th.n.wide data-key="number" { "Allowed" }
                            } }
                            @for (at, event, charge, sentence) in &bans { (self.ban(*at, event, charge, sentence)) }
                        }
                    }
                }
            }
        }
    }

    fn ban(&self, at: usize, event: &Event, charge: &Charge, sentence: &Sentence) -> Markup {
        let offense = &charge.offense;
        let country = self.country(at).unwrap_or_default();
        let allowed = self.tally.allowed_of(charge.client, event.time, sentence.until);
        let span = sentence.until.since(event.time);
        html! {
            tbody data-rule=(charge.rule) data-country=(country) {
                tr {
                    td { button.open type="button" aria-expanded="false" aria-controls={ "ban-" (at) } aria-label={ "Evidence against " (charge.client) } {} }
                    th.mono scope="row" { (link(charge.client)) @if !country.is_empty() { " " span.quiet { (data(&country, 20)) } } }
                    td.rule { (charge.rule) @if sentence.action == Action::Challenge { " " span.quiet { "(challenge)" } } }
                    td.t.wide { (shown(event.time)) }
                    @if let Some(live) = self.live {
                        td.n data-value=(sentence.until.0) { (live.left(sentence.until)) }
                    } @else {
                        td.n.wide data-value=(span.0) { (span) }
                        td.n.wide data-value=(sentence.strike) { (sentence.strike) }
                    }
                    td.n.wide data-value=(offense.hits) { (count(offense.hits)) " of " (count(u64::from(charge.limit))) }
                    td.n.wide data-value=(permille(offense.matched, offense.requests)) { (percent(offense.matched, offense.requests)) }
                    td.n data-value=(event.stopped) { (count(event.stopped)) }
                    td.n.wide data-value=(allowed) { (count(allowed)) }
                }
                tr.more id={ "ban-" (at) } data-folded { td colspan=(if self.live.is_some() { 9 } else { 10 }) { (self.evidence(at, event, charge, Some((sentence, allowed)))) } }
            }
        }
    }

    /// The requests behind a verdict.
    fn evidence(&self, at: usize, event: &Event, charge: &Charge, ban: Option<(&Sentence, u64)>) -> Markup {
        let offense = &charge.offense;
        let rule = self.policy.rules.iter().find(|rule| rule.name == charge.rule);
        let found = self.found.ok().and_then(|found| found.evidence(at));
        let hits = match rule.and_then(|rule| rule.distinct.as_ref()) {
            Some(field) => format!(
                "{} distinct {field} in {}",
                count(offense.hits),
                several(offense.matched, "request")
            ),
            None => several(offense.hits, "hit"),
        };
        let needed = rule.and_then(|rule| rule.share);
        html! {
            @if let Some(rule) = rule { p.data { (rule.why) } }
            div.evidence {
                div {
                    h3 { "Offense" }
                    dl.facts {
                        dt { "Rule" } dd { (charge.rule) ": " (count(u64::from(charge.limit))) " in " (charge.window) }
                        dt { "Window" } dd.t { (window(offense.first_hit, offense.last_hit)) " UTC" }
                        dt { "Hits" } dd { (hits) }
                        dt { "Matched" } dd {
                            (count(offense.matched)) " of " (several(offense.requests, "request")) " (" (percent(offense.matched, offense.requests)) ")"
                            @if let Some(share) = needed { ", " (format!("{:.0} %", share * 100.0)) " needed" }
                        }
                        @if let Some((first, last)) = found.and_then(|found| found.seen_ms) {
                            dt { "First seen" } dd.t { (time(first)) }
                            dt { "Last seen" } dd.t { (time(last)) }
                        }
                        @if !charge.also.is_empty() { dt { "Also" } dd { (charge.also.join(", ")) } }
                        @if let Some((sentence, _)) = ban { dt { "Banned" } dd.t { (window(event.time, sentence.until)) " UTC, strike " (sentence.strike) ", " (sentence.action) } }
                    }
                }
                @if let Some(found) = found {
                    div { h3 { "Requests that matched" } (samples(&found.requests, 100)) }
                    div {
                        h3 { "From" } (samples(&found.countries, 40))
                        h3 { "With" } (samples(&found.user_agents, 120))
                        h3 { "WAF's action" } (samples(&found.actions, 40))
                    }
                } @else if self.found.is_err() {
                    div { p.quiet { (self.unread("Requests, countries and user agents")) } }
                }
                @if let (Some((_, allowed)), Some(found)) = (ban, found) {
                    (self.cost_of(event, allowed, found))
                }
            }
            @if let (Some(live), Some(_)) = (self.live, ban) { (live.unban_form(charge.client.net())) }
            p.next { (link(charge.client)) ": rule by rule" @if self.found.is_ok() { ", and its first requests" } }
        }
    }

    fn cost_of(&self, event: &Event, allowed: u64, found: &Evidence) -> Markup {
        html! {
            div {
                h3 { "What the ban costs" }
                p {
                    @if event.stopped == 0 { "The client sent nothing since it began." }
                    @else {
                        @if self.live.is_some() { "Since it began, the client sent " } @else { "It stops " }
                        (several(event.stopped, "request")) ", " (count(allowed)) " of which WAF allowed. "
                    }
                    @if found.innocent > 0 { (several(found.innocent, "allowed request")) " did not match the rule:" }
                    @else if allowed > 0 { "Every allowed one matched the rule." }
                }
                @if found.innocent > 0 { (samples(&found.innocent_requests, 100)) }
            }
        }
    }

    /// The bans that would have cost most, by what did not even match their rule.
    fn cost(&self) -> Markup {
        let mut bans: Vec<(u64, u64, usize, &Event, &Charge)> = self
            .shown_bans()
            .into_iter()
            .map(|(at, event, charge, sentence)| {
                let allowed = self.tally.allowed_of(charge.client, event.time, sentence.until);
                let found = self.found.ok().and_then(|found| found.evidence(at));
                let innocent = found.map_or(0, |found| found.innocent);
                (innocent, allowed, at, event, charge)
            })
            .filter(|(_, allowed, ..)| *allowed > 0)
            .collect();
        bans.sort_by_key(|(innocent, allowed, at, ..)| (std::cmp::Reverse((*innocent, *allowed)), *at));
        let costly = bans.len();
        bans.truncate(TOP_MAX);
        html! {
            section aria-labelledby="cost" {
                h2 id="cost" { "Collateral" }
                @if bans.is_empty() {
                    p { "No ban would have stopped a request that WAF allowed." }
                } @else {
                    p {
                        "What WAF allowed, a ban would have refused. "
                        @if self.found.is_ok() { "Requests that did not match the ban's rule come first: they are what a wrongly banned user misses." }
                        @else { (self.unread("Which of these requests did not match the ban's rule, and what a wrongly banned user misses,")) }
                        @if costly > bans.len() { " The " (bans.len()) " costliest of " (count(costly as u64)) " bans." }
                    }
                    div.scroll role="region" aria-label="Table of what bans cost" tabindex="0" {
                        table id="cost-rows" data-sort {
                            thead { tr {
                                th data-key="text" { "Client" }
                                th data-key="text" { "Rule" }
                                th.wide data-key="text" { "Began (UTC)" }
                                @if self.found.is_ok() { th.n data-key="number" { "Not matching" } }
                                th.n.wide[self.found.is_ok()] data-key="number" { "Allowed" }
                                th.n.wide data-key="number" { @if self.live.is_some() { "Sent" } @else { "Stopped" } }
                                @if self.found.is_ok() { th.wide { "The most frequent of those not matching" } }
                            } }
                            @for (innocent, allowed, at, event, charge) in &bans {
                                tbody { tr {
                                    th.mono scope="row" { (link(charge.client)) }
                                    td.rule { (charge.rule) }
                                    td.t.wide { (shown(event.time)) }
                                    @if self.found.is_ok() { td.n data-value=(innocent) { (count(*innocent)) } }
                                    td.n.wide[self.found.is_ok()] data-value=(allowed) { (count(*allowed)) }
                                    td.n.wide data-value=(event.stopped) { (count(event.stopped)) }
                                    @if let Ok(found) = self.found {
                                        td.mono.wide {
                                            @for (at, (value, _)) in found.evidence(*at).map(|found| found.innocent_requests.most(2).0).iter().flatten().enumerate() {
                                                @if at > 0 { br; }
                                                (data(value, 60))
                                            }
                                        }
                                    }
                                } }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Who was not banned, and why.
    fn others(&self) -> Markup {
        let rows: Vec<(usize, &Event)> = self
            .chosen
            .events
            .iter()
            .enumerate()
            .filter(|(_, event)| !matches!(event.verdict, Verdict::Ban(..)))
            .map(|(at, event)| (at, *event))
            .collect();
        let kinds: BTreeSet<&str> = rows.iter().map(|(_, event)| kind_of(event)).collect();
        html! {
            section aria-labelledby="spared" {
                h2 id="spared" { "Spared, held, alerts" }
                @if rows.is_empty() {
                    p { "No limit was reached by anybody who was not banned." }
                } @else {
                    p { "Limits that were reached without a ban: an allow entry or a share spares, the brake holds, a rule that only alerts says so." }
                    (tools("other-rows", "Search spared, held and alerts", select("kind", "What", kinds.iter().copied()), true))
                    div.scroll role="region" aria-label="Table of spared, held and alerts" tabindex="0" {
                        table id="other-rows" data-sort {
                            thead { tr {
                                th { span.vh { "Evidence" } }
                                th data-key="text" { "Client" }
                                th data-key="text" { "What" }
                                th.wide data-key="text" { "Rule" }
                                th.wide data-key="text" { "When (UTC)" }
                                th.n.wide data-key="number" { "Hits" }
                                th { "Because" }
                            } }
                            @for (at, event) in &rows { (self.other(*at, event)) }
                        }
                    }
                }
            }
        }
    }

    fn other(&self, at: usize, event: &Event) -> Markup {
        let (charge, because) = match &event.verdict {
            Verdict::Crowd(crowd) => return self.crowd(event, crowd),
            Verdict::Ban(charge, _) => (charge, ""),
            Verdict::Held(charge, because) | Verdict::Spared(charge, because) => (charge, because.as_str()),
            Verdict::Alert(charge) => (charge, "the rule only alerts"),
        };
        html! {
            tbody data-kind=(kind_of(event)) {
                tr {
                    td { button.open type="button" aria-expanded="false" aria-controls={ "other-" (at) } aria-label={ "Evidence about " (charge.client) } {} }
                    th.mono scope="row" { (link(charge.client)) }
                    td { (kind_of(event)) }
                    td.rule.wide { (charge.rule) }
                    td.t.wide { (shown(event.time)) }
                    td.n.wide data-value=(charge.offense.hits) { (count(charge.offense.hits)) " of " (count(u64::from(charge.limit))) }
                    td.data { (data(because, 160)) }
                }
                tr.more id={ "other-" (at) } data-folded { td colspan="7" { (self.evidence(at, event, charge, None)) } }
            }
        }
    }

    fn crowd(&self, event: &Event, crowd: &Crowd) -> Markup {
        html! {
            tbody data-kind="alert" { tr {
                td {}
                th scope="row" { (several(crowd.clients, "client")) }
                td { "alert" }
                td.wide { "crowd" }
                td.t.wide { (shown(event.time)) }
                td.n.wide data-value="0" {}
                td.data {
                    "Very many clients with few requests each in " (crowd.window) ", usually " (count(crowd.usual)) "; no ban stops this shape. "
                    @match &crowd.separator {
                        Some((field, value, share, usual)) => {
                            (field.to_string()) " " (data(value, 80)) " would separate " (format!("{:.0} % of them (usually {:.0} %)", share * 100.0, usual * 100.0))
                            ": match it in a Challenge or rate-based rule."
                        }
                        None => { "No path, JA4, country or user agent separates them: consider Challenge for all." }
                    }
                }
            } }
        }
    }

    fn rules(&self, rates: &[Rates]) -> Markup {
        let silent: Vec<&str> = rates
            .iter()
            .filter(|rate| rate.clients == 0)
            .map(|rate| rate.rule.as_str())
            .collect();
        html! {
            section aria-labelledby="rules" {
                h2 id="rules" { "Rules and their limits" }
                p {
                    "How many clients (upwards, each line ten times more) had how many hits in their worst window (to the right). "
                    "A limit in the gap between the ordinary and the rest is a good one; one inside the crowd will ban users."
                }
                @if self.by_athena() { p.note { (self.left_out()) } }
                ul.legend {
                    li { i.allowed {} "below the limit" }
                    li { i.stopped {} "reached it" }
                }
                div.cards {
                    @for (at, (rate, rule)) in rates.iter().zip(&self.policy.rules).enumerate().filter(|(_, (rate, _))| rate.clients > 0) {
                        div.card {
                            h3 { (rate.rule) }
                            p.data { (rule.why) }
                            div.chart data-chart="rates" data-rate=(at) role="img" aria-label=(describe(rate)) {}
                            p {
                                strong { (several(rate.reached, "client")) } " of " (count(rate.clients)) " reached "
                                (count(u64::from(rate.limit))) @if let Some(field) = &rule.distinct { " distinct " (field.to_string()) } " in " (rate.window)
                                @if rate.highest_below > 0 { "; the next came to " (count(rate.highest_below)) }
                                ". " (self.consequences(&rate.rule, rule.then))
                            }
                        }
                    }
                }
                @if !silent.is_empty() { p.note { "No request matched " (silent.join(", ")) "." } }
            }
        }
    }

    /// What came of the offenses against one rule.
    fn consequences(&self, rule: &str, then: Then) -> String {
        let (mut bans, mut stopped, mut spared) = (0, 0, 0);
        for event in self.events {
            match &event.verdict {
                Verdict::Ban(charge, _) if charge.rule == rule => {
                    bans += 1;
                    stopped += event.stopped;
                }
                Verdict::Spared(charge, _) if charge.rule == rule => spared += 1,
                _ => {}
            }
        }
        let spared = if spared > 0 {
            format!(", {spared} spared")
        } else {
            String::new()
        };
        match then {
            Then::Alert => "It only alerts.".to_owned(),
            Then::Ban if self.live.is_some() => format!("{} in force{spared}.", several(bans, "ban")),
            Then::Ban => format!(
                "{}, {} stopped{spared}.",
                several(bans, "ban"),
                several(stopped, "request")
            ),
        }
    }

    fn tops(&self, rates: &[Rates]) -> Markup {
        let requests = self.summary.requests;
        let mut rules: Vec<&Rates> = rates.iter().filter(|rate| rate.matched > 0).collect();
        rules.sort_by_key(|rate| std::cmp::Reverse(rate.matched));
        html! {
            section aria-labelledby="top" {
                h2 id="top" { "Most frequent" }
                p {
                    @if self.found.is_ok() { "By requests; paths without query strings and without what may be a secret." }
                    @else { "By requests. " (self.left_out()) " " (self.unread("The most frequent paths, WAF rules, countries and user agents")) }
                }
                div.tops {
                    div {
                        h3 { "Clients" }
                        (ranking("Client", &html! {
                            @for (client, requests) in &self.chosen.top {
                                @let (_, allowed) = self.requests_of(*client);
                                tbody { tr { th.mono scope="row" { (link(*client)) } (frequency(Frequency { requests: *requests, allowed }, self.summary.requests)) } }
                            }
                        }))
                        @let more = self.tally.clients().saturating_sub(self.chosen.top.len());
                        @if more > 0 { p.note { (count(more as u64)) " more" } }
                    }
                    div {
                        h3 { "Our rules" }
                        (ranking("Our rules", &html! {
                            @for rate in rules.iter().take(TOP_MAX) {
                                tbody { tr { th scope="row" { (rate.rule) } td.n { (count(rate.matched)) } td.n { (percent(rate.matched, requests)) } td.n.wide {} } }
                            }
                        }))
                    }
                    @for (top, heading) in [(Top::Uri, "Paths"), (Top::WafRule, "WAF rules"), (Top::Country, "Countries"), (Top::UserAgent, "User agents")] {
                        @let (values, more) = self.found.map_or_else(|_| Default::default(), |found| found.top(top, TOP_MAX));
                        @if !values.is_empty() {
                            div {
                                h3 { (heading) }
                                (ranking(heading, &html! {
                                    @for (value, often) in &values {
                                        tbody { tr { th.data scope="row" { (data(value, 100)) } (frequency(*often, requests)) } }
                                    }
                                }))
                                @if more > 0 { p.note { "and others, which came less often" } }
                            }
                        }
                    }
                }
            }
        }
    }

    pub(super) fn clients(&self, clients: Markup, explained: usize, left_out: usize) -> Markup {
        html! {
            section aria-labelledby="clients" {
                h2 id="clients" { "Clients" }
                @if explained == 0 {
                    p { "There is nobody to explain." }
                } @else {
                    p {
                        "Everybody in the tables above, rule by rule. For anybody else: "
                        code { "palisade explain <client> " (data(&self.arguments, 300)) }
                        @if left_out > 0 { ". " (several(left_out as u64, "client")) " found no place on this page" }
                        @if self.found.is_err() { ". " (self.unread("Where each came from, with what, and its first requests")) }
                    }
                    (tools("client-list", "Search clients", html! {}, false))
                    div id="client-list" { (clients) }
                }
            }
        }
    }

    /// Everything about one client.
    pub(super) fn client(&self, client: Client) -> Markup {
        let (requests, allowed) = self.requests_of(client);
        let theirs: Vec<&Event> = self
            .chosen
            .events
            .iter()
            .copied()
            .filter(|event| client_of(event) == Some(client))
            .collect();
        let bans = theirs
            .iter()
            .filter(|event| matches!(event.verdict, Verdict::Ban(..)))
            .count() as u64;
        let profile = self
            .found
            .ok()
            .and_then(|found| found.profile(client))
            .unwrap_or_default();
        let address = client.to_string();
        let never = self.policy.spares(client);
        html! {
            details.client id={ "client-" (address) } {
                summary {
                    h3.mono { (address) }
                    span.quiet {
                        (several(requests, "request")) ", " (count(allowed)) " allowed"
                        @if bans > 0 { ", " (several(bans, "ban")) }
                        @if let Some(because) = &never { ", never banned (" (data(because, 80)) ")" }
                    }
                }
                div {
                    div.chart data-chart="activity" data-client=(address) role="img" aria-label={ "Requests of " (address) " over time" } {}
                    div {
                        h3 { "Its worst window, rule by rule" }
                        (self.windows(client))
                    }
                    @if !theirs.is_empty() {
                        div {
                            h3 { "Decided" }
                            ul { @for event in &theirs { li { span.t { (shown(event.time)) } span { (self.decided(event)) } } } }
                        }
                    }
                    @if !profile.countries.most(1).0.is_empty() {
                        div.evidence {
                            div { h3 { "From" } (samples(&profile.countries, 40)) }
                            div { h3 { "With" } (samples(&profile.user_agents, 120)) }
                        }
                    }
                    @if !profile.first.is_empty() {
                        div {
                            h3 { "Its first requests" }
                            div.scroll role="region" aria-label={ "First requests of " (address) } tabindex="0" { table {
                                thead { tr { th { "Time (UTC)" } th { "Action" } th.wide { "By" } th { "Request" } th.wide { "Counts for" } } }
                                @for one in &profile.first {
                                    tbody { tr {
                                        td.t { (time(one.timestamp_ms)) }
                                        td { (data(&one.action, 12)) }
                                        td.wide { (data(&one.waf_rule, 40)) }
                                        td.mono.data { (data(&format!("{} {}", short(&one.method, 10), one.uri), 90)) }
                                        td.wide { (one.rules.join(", ")) }
                                    } }
                                }
                            } }
                        }
                    }
                    p.quiet { code { "palisade explain " (address) " " (data(&self.arguments, 300)) } }
                }
            }
        }
    }

    fn decided(&self, event: &Event) -> String {
        match &event.verdict {
            Verdict::Ban(charge, sentence) => format!(
                "banned for {} by {}, strike {}",
                sentence.until.since(event.time),
                charge.rule,
                sentence.strike
            ),
            Verdict::Held(charge, because) => format!("{}: held ({})", charge.rule, short(because, 160)),
            Verdict::Spared(charge, because) => format!("{}: spared ({})", charge.rule, short(because, 160)),
            Verdict::Alert(charge) => format!("{}: alert", charge.rule),
            Verdict::Crowd(_) => String::new(),
        }
    }

    /// How near a client came to each rule.
    fn windows(&self, client: Client) -> Markup {
        let found = findings(&eager(self.policy), self.tally, client, View::ALL);
        let address = client.to_string();
        html! {
            @if found.is_empty() {
                p.quiet { "None of its requests matched a rule." }
            } @else {
                div.scroll role="region" aria-label={ "Rules and " (address) } tabindex="0" { table {
                    thead { tr { th { "Rule" } th.n { "Hits" } th.n { "Limit" } th.wide { "When (UTC)" } th.n.wide { "Matched" } th { span.vh { "Whether it was reached" } } } }
                    @for finding in &found {
                        @let (Finding::Offense(offense) | Finding::Shared(offense)) = finding;
                        @let rule = &self.policy.rules[offense.rule];
                        tbody { tr {
                            th scope="row" { (rule.name) }
                            td.n { (count(offense.hits)) }
                            td.n { (count(u64::from(rule.limit))) " in " (rule.window) }
                            td.t.wide { (window(offense.first_hit, offense.last_hit)) }
                            td.n.wide {
                                (percent(offense.matched, offense.requests))
                                @if let Some(share) = rule.share { span.quiet { " of " (format!("{:.0} %", share * 100.0)) } }
                            }
                            td { @if offense.hits >= u64::from(rule.limit) { strong { "reached" } } @else { span.quiet { "not reached" } } }
                        } }
                    }
                } }
            }
        }
    }

    pub(super) fn footer(&self) -> Markup {
        let summary = self.summary;
        html! {
            footer {
                p {
                    @if self.by_athena() { "Athena counted " (several(summary.requests, "request")) }
                    @else { "Read " (several(summary.requests, "request")) " from " (several(summary.objects, "object")) }
                    @if summary.duplicates > 0 { ", " (several(summary.duplicates, "object")) " delivered twice and counted once" }
                    @if summary.pruned > 0 { ", " (several(summary.pruned, "object")) " left out because of their names' times" }
                    ". Palisade " (env!("CARGO_PKG_VERSION")) "."
                }
                p { "Query strings, cookies and headers other than the user agent are never shown; parts of paths that may be secrets are redacted. The same data for programs: " code { @if self.live.is_some() { "palisade status --json" } @else { "palisade replay --json" } } "." }
            }
        }
    }

    /// The most frequent country behind a verdict.
    fn country(&self, at: usize) -> Option<String> {
        let found = self.found.ok()?.evidence(at)?;
        let (countries, _) = found.countries.most(1);
        countries.first().map(|(country, _)| short(country, 20))
    }
}

fn kind_of(event: &Event) -> &'static str {
    match &event.verdict {
        Verdict::Ban(..) => "ban",
        Verdict::Held(..) => "held",
        Verdict::Spared(..) => "spared",
        Verdict::Alert(..) | Verdict::Crowd(..) => "alert",
    }
}

/// Text from a log: on one line, its control and direction marks shown, its direction kept to itself.
pub(super) fn data(text: &str, max: usize) -> Markup {
    html! { bdi.data { (short(text, max)) } }
}

fn link(client: Client) -> Markup {
    let address = client.to_string();
    html! { a href={ "#client-" (address) } { (address) } }
}

fn samples(samples: &Samples, max: usize) -> Markup {
    let (most, values) = samples.most(SAMPLES_SHOWN);
    let more = values - most.len();
    html! {
        ul {
            @for (value, times) in &most { li { span.n { (count(*times)) "×" } span.mono { (data(value, max)) } } }
            @if samples.more { li { span.n {} span.quiet { "of very many different ones" } } }
            @else if more > 0 { li { span.n {} span.quiet { (count(more as u64)) " more" } } }
        }
    }
}

pub(super) fn tools(target: &str, label: &str, selects: Markup, folds: bool) -> Markup {
    html! {
        div.tools data-for=(target) {
            label { (label) input type="search" autocomplete="off" spellcheck="false"; }
            (selects)
            @if folds { button type="button" data-unfold aria-pressed="false" { "All evidence" } }
            output.shown aria-live="polite" {}
        }
    }
}

fn select<'a>(name: &str, label: &str, values: impl Iterator<Item = &'a str>) -> Markup {
    html! {
        label { (label) select name=(name) {
            option value="" { "all" }
            @for value in values { option value=(value) { (value) } }
        } }
    }
}

fn ranking(what: &str, rows: &Markup) -> Markup {
    html! {
        div.scroll role="region" aria-label={ "Most frequent: " (what) } tabindex="0" {
            table {
                thead { tr { th { (what) } th.n { "Requests" } th.n { "Share" } th.n.wide { "Allowed" } } }
                (rows)
            }
        }
    }
}

fn frequency(frequency: Frequency, all: u64) -> Markup {
    html! {
        td.n { (count(frequency.requests)) }
        td.n { (percent(frequency.requests, all)) }
        td.n.wide { (count(frequency.allowed)) }
    }
}

fn describe(rate: &Rates) -> String {
    format!(
        "Worst windows of {} under {}: {} below the limit of {}, the highest with {}; {} at or above it, the highest with {}.",
        several(rate.clients, "client"),
        rate.rule,
        count(rate.clients - rate.reached),
        count(u64::from(rate.limit)),
        count(rate.highest_below),
        count(rate.reached),
        count(rate.highest)
    )
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    let percent = part as f64 * 100.0 / whole.max(1) as f64;
    if part > 0 && percent < 0.1 {
        "< 0.1 %".to_owned()
    } else if percent > 0.0 && percent < 10.0 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

fn permille(part: u64, whole: u64) -> u64 {
    part * 1000 / whole.max(1)
}

/// `2026-11-01 12:06–12:10`, or both dates where they differ.
fn window(first: Minute, last: Minute) -> String {
    if first == last {
        return shown(first);
    }
    let (from, to) = (shown(first), shown(last));
    if from[..10] == to[..10] {
        format!("{from}–{}", clock(last))
    } else {
        format!("{from} – {to}")
    }
}

fn time(ms: i64) -> String {
    rfc3339(ms).replace('T', " ").replace('Z', "")
}

/// An RFC 3339 time to its minute.
fn minute_of(text: &str) -> String {
    text.get(..16).unwrap_or(text).replace('T', " ")
}

fn span_of(seconds: u32) -> String {
    match seconds / 60 {
        1 => "minute".to_owned(),
        minutes => format!("{}", analyzer::Span(minutes)),
    }
}
