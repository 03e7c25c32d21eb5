//! What only a running deployment has: bans with time left, IP sets and their room, the last runs, decisions by hand.

use analyzer::policy::Brake;
use analyzer::{Manual, ManualKind, Minute};
use ipnet::IpNet;
use maud::{Markup, html};
use serde::Serialize;

use super::sections::data;
use crate::cli::output::{count, several};
use crate::cli::time::shown;
use crate::engine::{Outcome, Run};

/// A deployment at one moment.
#[derive(Debug, Default)]
pub struct Live {
    /// The moment.
    pub now: Minute,
    /// Whether the clock runs; not when the page is asked for another time.
    pub ticking: bool,
    /// Changes whenever the page would.
    pub version: String,
    /// Where forms are sent, if whoever looks may change anything.
    pub writes_at: Option<String>,
    /// Whether IP sets are updated.
    pub enforcing: bool,
    /// Bans in force, by hand and otherwise.
    pub bans: usize,
    /// Offenders that the brake holds.
    pub held: usize,
    /// Why `policy.toml` is not the policy in use, if it is not.
    pub policy_rejected: Option<String>,
    /// Seconds between the newest request known and now.
    pub lag_seconds: Option<i64>,
    /// Decisions by hand that hold.
    pub by_hand: Vec<Manual>,
    /// Where bans are enforced, and how that place looks now.
    pub targets: Vec<(String, Outcome)>,
    /// The last runs, the newest first.
    pub runs: Vec<Run>,
    /// What could not be read for this page.
    pub problems: Vec<String>,
    /// What came of the last change.
    pub said: Option<Result<String, String>>,
}

/// What the script of a live page needs.
#[derive(Debug, Serialize)]
pub(super) struct Polling<'a> {
    version: &'a str,
    ticking: bool,
    poll_ms: u32,
}

/// How often a live page asks whether something has changed. Runs come once a minute.
const POLL_MS: u32 = 15_000;

/// A run that is older than this is news by itself: runs come once a minute, and one may take its time.
const RUN_MINUTES_MAX: u32 = 5;

/// Requests that are older than this when they are judged are late even for Firehose, which buffers up to 15 minutes.
const LAG_SECONDS_MAX: i64 = 20 * 60;

impl Live {
    pub(super) fn polling(&self) -> Polling<'_> {
        Polling {
            version: &self.version,
            ticking: self.ticking,
            poll_ms: POLL_MS,
        }
    }

    pub(super) fn writes(&self) -> bool {
        self.writes_at.is_some()
    }

    pub(super) fn stale(&self) -> Markup {
        html! {
            div.stale id="stale" role="status" hidden { "Something has changed. " button type="button" { "Show it" } }
        }
    }

    /// Time left, which the script counts down.
    pub(super) fn left(&self, until: Minute) -> Markup {
        let minutes = until.since(self.now).0;
        html! {
            span data-until=(until.epoch_seconds()) {
                @if minutes >= 60 { (minutes / 60) "h " } (minutes % 60) "m"
            }
        }
    }

    pub(super) fn header(&self, brake: &Brake) -> Markup {
        let room: usize = self.targets.iter().map(|(_, outcome)| outcome.room).sum();
        let overflow: usize = self.targets.iter().map(|(_, outcome)| outcome.overflow).sum();
        let last = self.runs.first();
        let age = last.map(|run| self.now.since(Minute::of_ms(run.finished_ms)));
        let lag = self.lag_seconds.map(|seconds| seconds.max(0));
        html! {
            h1 {
                (several(self.bans as u64, "ban"))
                @if self.bans == 1 { " is" } @else { " are" }
                " in force"
                @if !self.enforcing { ", and nothing is blocked: the policy observes" }
            }
            @if let Some(said) = &self.said {
                @match said {
                    Ok(done) => p.said role="status" { (done) },
                    Err(why) => p.said.failed role="alert" { (why) },
                }
            }
            dl.tiles {
                div { dt { "bans in force" } dd { (count(self.bans as u64)) } dd { "at " (shown(self.now)) " UTC" } }
                div { dt { "held by the brake" } dd { (count(self.held as u64)) } dd { @if self.held == 0 { "released; " } @else { "it is on; " } (several(brake.new_bans as u64, "new ban")) " a run at most" } }
                div { dt { "room in the IP sets" } dd { @if self.targets.is_empty() { "–" } @else { (count(room as u64)) } }
                    dd { @if overflow > 0 { (count(overflow as u64)) " did not fit" } @else if self.targets.is_empty() { "no IP set is named" } @else { "everything fits" } } }
                div { dt { "last run" } dd { @match age { Some(age) => { (ago(age.0)) } None => "–" } }
                    dd { @match last { Some(run) if run.failed() => { "with failures" } Some(_) => "without a failure", None => "no run is on record" } } }
                div { dt { "lag of the logs" } dd { @match lag { Some(seconds) => { ((seconds + 59) / 60) " min" } None => "–" } } dd { "newest request known" } }
            }
            @if let Some(why) = &self.policy_rejected {
                p.warn { "policy.toml was rejected, the policy used before is in force: " (data(why, 300)) }
            }
            @if age.is_some_and(|age| age.0 > RUN_MINUTES_MAX) {
                p.warn { "No run has finished for " (ago(age.unwrap_or_default().0)) ": is the updater running?" }
            }
            @if lag.is_some_and(|lag| lag > LAG_SECONDS_MAX) {
                p.warn { "No request is known of the last " (lag.unwrap_or_default() / 60) " minutes: is WAF still delivering logs?" }
            }
            @for problem in &self.problems { p.warn { (data(problem, 300)) } }
        }
    }

    pub(super) fn deployment(&self, brake: &Brake) -> Markup {
        html! {
            section aria-labelledby="deployment" {
                h2 id="deployment" { "Deployment" }
                p {
                    @if self.enforcing { "Enforcing: every run makes the IP sets hold the bans in force." }
                    @else { "Observing: bans are judged and remembered, and no IP set is touched." }
                    " The brake holds " (brake.to_string()) "."
                    @if !self.writes() { " This page only shows." }
                }
                div.two {
                    div { h3 { "IP sets" } (self.sets()) }
                    div { h3 { "Last runs" } (self.last_runs()) }
                }
                h3.later { "Decisions by hand" }
                (self.decisions())
            }
        }
    }

    fn sets(&self) -> Markup {
        html! {
            @if self.targets.is_empty() {
                p.note { code { "deployment.json" } " names no IP sets." }
            } @else {
                div.scroll role="region" aria-label="IP sets" tabindex="0" { table {
                    thead { tr { th { "Where" } th.n { "Room" } th.n { "Missing" } th.n { "Too many" } th.n { "Foreign" } th.n { "Overflow" } } }
                    @for (name, outcome) in &self.targets {
                        tbody {
                            tr {
                                th scope="row" { (data(name, 60)) }
                                td.n { (count(outcome.room as u64)) }
                                td.n { (count(outcome.added as u64)) }
                                td.n { (count(outcome.removed as u64)) }
                                td.n { (count(outcome.foreign as u64)) }
                                td.n { @if outcome.overflow > 0 { span.state-bad { (count(outcome.overflow as u64)) } } @else { "0" } }
                            }
                            @for failure in &outcome.failures { tr { td colspan="6" { span.state-bad { "failed: " } (data(failure, 300)) } } }
                        }
                    }
                } }
                p.note { "Missing and too many is what the next run would add and remove." }
            }
        }
    }

    fn last_runs(&self) -> Markup {
        const RUNS_SHOWN: usize = 8;
        html! {
            @if self.runs.is_empty() {
                p.note { "Runs are on record from the first one of this version on." }
            } @else {
                div.scroll role="region" aria-label="Last runs" tabindex="0" { table {
                    thead { tr { th { "Minute (UTC)" } th.n { "Bans" } th.n { "New" } th.n { "Held" } th.n.wide { "Objects" } th.n { "Lag" } th { "" span.vh { "Outcome" } } } }
                    @for run in self.runs.iter().take(RUNS_SHOWN) {
                        tbody {
                            tr {
                                th.t scope="row" { (run.summary.now.get(..16).unwrap_or_default().replace('T', " ")) }
                                td.n { (count(run.summary.bans as u64)) }
                                td.n { (count(run.summary.new_bans as u64)) }
                                td.n { (count(run.summary.held as u64)) }
                                td.n.wide { (count(run.summary.tallies as u64)) }
                                td.n { @if let Some(lag) = run.summary.lag_seconds { ((lag.max(0) + 59) / 60) " min" } }
                                td { @if run.failed() { span.state-bad { "failed" } } @else { span.state-good { "done" } } }
                            }
                            @for failure in run.failures() { tr { td colspan="7" { (data(failure, 300)) } } }
                        }
                    }
                } }
            }
        }
    }

    fn decisions(&self) -> Markup {
        html! {
            @if self.by_hand.is_empty() {
                p.note { "None." }
            } @else {
                div.scroll role="region" aria-label="Decisions by hand" tabindex="0" { table {
                    thead { tr { th { "Network" } th { "What" } th.wide { "Since (UTC)" } th { "Left" } th { "Why" } @if self.writes() { th { "Change" } } } }
                    @for manual in &self.by_hand {
                        tbody { tr {
                            th.mono scope="row" { (manual.net) }
                            td { @if manual.kind == ManualKind::Ban { "banned" } @else { "never banned" } }
                            td.t.wide { (shown(manual.since)) }
                            td { @match manual.until { Some(until) => (self.left(until)), None => "until it is taken back" } }
                            td.data { (data(&manual.why, 200)) }
                            @if self.writes() { td { @if manual.kind == ManualKind::Ban { (self.unban_form(manual.net)) } } }
                        } }
                    }
                } }
            }
            @if let Some(at) = &self.writes_at {
                div.two {
                    (by_hand_form(at, "ban", "Ban", "Ban by hand"))
                    (by_hand_form(at, "allow", "Never ban", "Allow: never ban"))
                }
            }
        }
    }

    /// Ends the bans of a network.
    pub(super) fn unban_form(&self, net: IpNet) -> Markup {
        html! {
            @if let Some(at) = &self.writes_at {
                form.row-form method="post" action={ (at) "unban" } data-confirm={ "End the ban of " (net) "?" } {
                    input type="hidden" name="cidr" value=(net);
                    input type="text" name="why" required maxlength="200" placeholder="reason" aria-label={ "Reason to unban " (net) };
                    button { "Unban" }
                }
            }
        }
    }
}

fn by_hand_form(at: &str, action: &str, verb: &str, heading: &str) -> Markup {
    html! {
        form.hand method="post" action={ (at) (action) } {
            h3 { (heading) }
            label { "Address or network" input type="text" name="cidr" required maxlength="60" autocomplete="off" spellcheck="false"; }
            label { "For, like 1h or 7d; until it is taken back if empty" input type="text" name="for" maxlength="10" autocomplete="off"; }
            label { "Reason" input type="text" name="why" required maxlength="200"; }
            div { button { (verb) } }
        }
    }
}

fn ago(minutes: u32) -> String {
    match minutes {
        0 => "now".to_owned(),
        minutes if minutes < 120 => format!("{minutes} min"),
        minutes => format!("{} h", minutes / 60),
    }
}
