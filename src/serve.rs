//! The live page: the same page as a replay's, for a deployment, over HTTP on this machine.
//!
//! Whoever can reach the address may look. Only with writes allowed, and only below a path with a token that every start
//! makes anew, may anybody change something; the token is in no cookie, which other programs on this machine would get
//! too. A request must name a host that nobody can point at us from outside (DNS rebinding), and a change must come from
//! our own page (cross-site request forgery).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use analyzer::client::parse_cidr;
use analyzer::judge::{Charge, Sentence, judge};
use analyzer::policy::Mode;
use analyzer::{Ban, Client, Finding, Ledger, Minute, Offense, Policy, Span, Tally, Verdict, View, findings};
use axum::extract::{DefaultBodyLimit, Form, Path, Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, serve};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use crate::decide::{Act, Decision, Undecided, decide};
use crate::enforce::{self, Enforcer, deployment};
use crate::engine::{Engine, LEDGER_KEY, POLICY_KEY, RUNS_KEY, chain};
use crate::inputs;
use crate::page::live::Live;
use crate::page::{Chosen, Report, Unread, content_security_policy};
use crate::place::{Aws, Place, State};
use crate::replay::{Event, Period, read};
use crate::report::Summary;
use crate::store::Store;
use crate::survey::{Found, Search, Survey, Wanted};

/// A form is a few hundred bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// What is served, and to whom.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The deployment.
    pub state: Place,
    /// Its logs, if requests are to be shown.
    pub logs: Option<Place>,
    /// The time to show; the clock's if there is none.
    pub now: Option<Minute>,
    /// The secret that a change needs; without one nobody may change anything.
    pub token: Option<String>,
    /// Names besides `localhost` by which we may be asked for.
    pub hosts: Vec<String>,
}

/// A deployment that is being served.
struct Site {
    settings: Settings,
    clock: fn() -> Minute,
    engine: Mutex<Engine<State, ()>>,
    enforcer: Mutex<Enforcer>,
    /// The last page, and what it was made from: nobody waits twice for the same one.
    last: Mutex<Option<(String, String)>>,
    /// What came of the last change, for the next page.
    said: Mutex<Option<Result<String, String>>>,
}

/// Serves on `listener` until the process ends. `clock` tells the minute.
///
/// # Errors
/// When the listener fails.
pub async fn run(listener: TcpListener, settings: Settings, clock: fn() -> Minute) -> io::Result<()> {
    let aws = Aws::default();
    let state = State::at(&settings.state, &aws).await;
    let site = Arc::new(Site {
        settings,
        clock,
        engine: Mutex::new(Engine::new(state, ())),
        enforcer: Mutex::new(Enforcer::new(aws)),
        last: Mutex::default(),
        said: Mutex::default(),
    });
    let router = Router::new()
        .route("/", get(look))
        .route("/version", get(version))
        .route("/w/{token}/", get(look_with_token))
        .route("/w/{token}/version", get(version_with_token))
        .route("/w/{token}/{act}", post(change))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(site.clone(), guard))
        .with_state(site);
    serve(listener, router).await
}

/// A token for one start: 128 bits from the system.
///
/// # Errors
/// When the system has none.
pub fn fresh_token() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Lets nobody in who asks for another host, or wants a change from another page; and tells browsers what they may do.
async fn guard(Shared(site): Shared<Arc<Site>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let mut response = if !site.settings.knows(host_of(headers)) {
        refused(
            StatusCode::MISDIRECTED_REQUEST,
            "This is not a name of this server; `--host` adds one.",
        )
    } else if request.method() == Method::POST && !same_origin(headers) {
        refused(
            StatusCode::FORBIDDEN,
            "This change did not come from a page of this server.",
        )
    } else {
        next.run(request).await
    };
    let policy = format!("{}; frame-ancestors 'none'", content_security_policy(true));
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // A browser leaves a form's origin out where no referrer may be sent at all.
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn refused(status: StatusCode, why: &'static str) -> Response {
    (status, why).into_response()
}

fn host_of(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

/// Whether a change comes from our own page. Browsers say so in two headers, of which only new ones send the second.
fn same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(host) = host_of(headers) else { return false };
    let origin = text("origin").and_then(|origin| origin.strip_prefix("http://").or(origin.strip_prefix("https://")));
    origin == Some(host) && text("sec-fetch-site").is_none_or(|site| site == "same-origin")
}

impl Settings {
    /// Whether a Host header names us: an address, which no name server can turn into another, or a name that we were told.
    fn knows(&self, host: Option<&str>) -> bool {
        let Some(host) = host else { return false };
        if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
            return true;
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if host.starts_with('[') && bare.parse::<IpAddr>().is_ok() {
            return true;
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => name,
            _ => host,
        };
        let known = self.hosts.iter().map(String::as_str).chain(["localhost"]);
        known.into_iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Whether this is the secret. Hashes are compared, so that the time it takes tells nothing.
    fn admits(&self, token: &str) -> bool {
        let hash = |text: &str| Sha256::digest(text.as_bytes());
        self.token.as_deref().is_some_and(|known| hash(known) == hash(token))
    }
}

async fn look(Shared(site): Shared<Arc<Site>>) -> Response {
    site.page(false).await
}

async fn look_with_token(Shared(site): Shared<Arc<Site>>, Path(token): Path<String>) -> Response {
    if !site.settings.admits(&token) {
        return refused(StatusCode::NOT_FOUND, "There is nothing here.");
    }
    site.page(true).await
}

async fn version(Shared(site): Shared<Arc<Site>>) -> Response {
    let engine = site.engine.lock().await;
    match version_of(&engine.store).await {
        Ok(version) => version.into_response(),
        Err(why) => (StatusCode::BAD_GATEWAY, why).into_response(),
    }
}

async fn version_with_token(shared: Shared<Arc<Site>>, Path(token): Path<String>) -> Response {
    if !shared.settings.admits(&token) {
        return refused(StatusCode::NOT_FOUND, "There is nothing here.");
    }
    version(shared).await
}

/// What a form says.
#[derive(Deserialize)]
struct Wish {
    cidr: String,
    why: String,
    #[serde(default)]
    r#for: String,
}

async fn change(
    Shared(site): Shared<Arc<Site>>,
    Path((token, act)): Path<(String, String)>,
    Form(wish): Form<Wish>,
) -> Response {
    if !site.settings.admits(&token) {
        return refused(StatusCode::NOT_FOUND, "There is nothing here.");
    }
    let done = match wish.decision(&act) {
        Err(why) => Err(why),
        Ok(decision) => {
            let engine = site.engine.lock().await;
            decide(&engine, &decision, site.now())
                .await
                .map_err(|error| match error {
                    Undecided::Refused(why, hint) => format!("{why}: {hint}"),
                    Undecided::Failed(error) => chain(&error),
                })
        }
    };
    *site.last.lock().await = None;
    *site.said.lock().await = Some(done.map_err(|why| format!("Nothing has changed: {why}")));
    let back = format!("/w/{token}/");
    (StatusCode::SEE_OTHER, [(header::LOCATION, back)]).into_response()
}

impl Wish {
    fn decision(&self, act: &str) -> Result<Decision, String> {
        let span = match self.r#for.trim() {
            "" => None,
            text => Some(Span::parse(text)?),
        };
        let act = match act {
            "ban" => Act::Ban(span),
            "allow" => Act::Allow(span),
            "unban" => Act::Unban,
            _ => return Err("there is no such change".to_owned()),
        };
        let why = self.why.trim();
        if why.is_empty() {
            return Err("a reason is missing; whoever finds it in a year will be glad".to_owned());
        }
        Ok(Decision {
            net: parse_cidr(self.cidr.trim())?,
            act,
            why: why.to_owned(),
        })
    }
}

/// Which state a page shows: it changes with everything that runs and people write.
async fn version_of(store: &State) -> Result<String, String> {
    let mut text = String::new();
    for key in [LEDGER_KEY, POLICY_KEY, RUNS_KEY] {
        let value = store.get(key).await.map_err(|error| error.to_string())?;
        text += &value.map_or_else(String::new, |(_, version)| version.0);
        text.push('\n');
    }
    Ok(format!("{:032x}", xxh3_128(text.as_bytes())))
}

impl Site {
    fn now(&self) -> Minute {
        self.settings.now.unwrap_or_else(self.clock)
    }

    async fn page(&self, writes: bool) -> Response {
        match self.html(writes).await {
            Ok(html) => Html(html).into_response(),
            Err(why) => (StatusCode::BAD_GATEWAY, format!("The page could not be made: {why}")).into_response(),
        }
    }

    async fn html(&self, writes: bool) -> Result<String, String> {
        let now = self.now();
        let mut engine = self.engine.lock().await;
        let version = version_of(&engine.store).await?;
        let made_from = format!("{version} {} {writes}", now.0);
        let said = if writes { self.said.lock().await.take() } else { None };
        let mut last = self.last.lock().await;
        if let Some((from, html)) = &*last
            && said.is_none()
            && *from == made_from
        {
            return Ok(html.clone());
        }
        let mut live = Live {
            now,
            ticking: self.settings.now.is_none(),
            version,
            writes_at: writes.then(|| "./".to_owned()),
            said,
            ..Live::default()
        };
        let fresh = live.said.is_none();
        let html = self.make(&mut engine, &mut live).await?;
        // What was said once is not said again.
        *last = fresh.then(|| (made_from, html.clone()));
        Ok(html)
    }

    async fn make(&self, engine: &mut Engine<State, ()>, live: &mut Live) -> Result<String, String> {
        let now = live.now;
        let (policy, rejected) = engine.policy_in_use().await.map_err(|error| chain(&error))?;
        let (ledger, _) = engine.ledger().await.map_err(|error| chain(&error))?;
        live.policy_rejected = rejected;
        live.enforcing = policy.mode == Mode::Enforce;
        live.runs = engine.runs().await.map_err(|error| error.to_string())?;
        live.problems = engine
            .take_stored(&policy, now)
            .await
            .map_err(|error| error.to_string())?;
        live.by_hand = ledger
            .manual
            .iter()
            .filter(|manual| manual.in_force(now))
            .cloned()
            .collect();
        let wanted = ledger.wanted(&policy, now);
        live.bans = wanted.len();

        let (targets, ours) = (deployment(&engine.store).await, ledger.ours());
        let names: Vec<String> = match &targets {
            Ok(deployment) => deployment.targets.iter().map(name_of).collect(),
            Err(_) => Vec::new(),
        };
        let wanted = enforce::Wanted {
            mode: policy.mode,
            bans: &wanted,
            ours: &ours,
        };
        match self.enforcer.lock().await.show(&engine.store, &wanted).await {
            Ok(shown) if !names.is_empty() => {
                live.targets = names
                    .into_iter()
                    .zip(shown.into_iter().map(|(outcome, _)| outcome))
                    .collect();
            }
            Ok(_) if live.enforcing => live.problems.push(
                "the policy enforces, but `deployment.json` in the state names no IP sets, so nothing is blocked"
                    .into(),
            ),
            Ok(_) => {}
            Err(error) => live.problems.push(error.to_string()),
        }

        let (tally, objects) = engine.taken();
        live.lag_seconds = tally
            .newest()
            .map(|newest| now.epoch_seconds() - newest.epoch_seconds() - 60);
        let events = events(&policy, tally, &ledger, now);
        live.held = events
            .iter()
            .filter(|event| matches!(event.verdict, Verdict::Held(..)))
            .count();
        let chosen = Chosen::of(&events, tally);
        let (found, problems) = self.search(&policy, &chosen, now).await;
        live.problems.extend(problems);
        let summary = Summary {
            objects: objects as u64,
            requests: tally
                .all_clients()
                .map(|(client, _)| tally.requests_of(client, Minute(0), Minute(u32::MAX)))
                .sum(),
            clients: tally.clients() as u64,
            unattributed: tally.unattributed,
            ..Summary::default()
        };
        let logs = self
            .settings
            .logs
            .as_ref()
            .map_or_else(|| "<logs>".to_owned(), Place::to_string);
        let report = Report {
            source: self.settings.state.to_string(),
            arguments: format!("--policy policy.toml {logs}"),
            policy_name: POLICY_KEY.to_owned(),
            policy: &policy,
            tally,
            summary: &summary,
            chosen: &chosen,
            events: &events,
            found: found.as_ref().map_err(|why| *why),
            live: Some(live),
        };
        // Counting takes its time where there are very many clients; others must not wait for it.
        Ok(tokio::task::block_in_place(|| report.html()))
    }

    /// Reads the logs of the horizon for the requests behind what is shown, and what could not be read.
    async fn search(&self, policy: &Policy, chosen: &Chosen<'_>, now: Minute) -> (Result<Found, Unread>, Vec<String>) {
        let Some(logs) = &self.settings.logs else {
            return (Err(Unread::NoLogs), Vec::new());
        };
        let period = Period {
            from_ms: Some((now - policy.horizon()).epoch_seconds() * 1000),
            to_ms: Some((now + Span::MINUTE).epoch_seconds() * 1000),
        };
        let path = PathBuf::from(logs.to_string());
        tokio::task::block_in_place(|| {
            let inputs = inputs::find(&[path], &period);
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let reading = read(&inputs, period, threads, &(), || Survey::new(policy));
            let wanted = Wanted::new(
                reading.collected.frequent(),
                &chosen.events,
                chosen.bans_cut.iter().copied(),
                chosen.clients.iter().copied(),
            );
            let reading = read(&inputs, period, threads, &(), || Search::new(policy, &wanted));
            let problems = reading
                .problems
                .iter()
                .map(|problem| format!("`{}`: {}", problem.object, problem.what));
            (Ok(reading.collected.found), problems.collect())
        })
    }
}

fn name_of(target: &crate::engine::Target) -> String {
    let sets: BTreeSet<&str> = [&target.block, &target.challenge]
        .into_iter()
        .flat_map(|sets| sets.v4.iter().chain(&sets.v6))
        .map(|set| set.name.as_str())
        .collect();
    let region = target.region.as_deref().unwrap_or_default();
    let sets = sets.into_iter().collect::<Vec<_>>().join(", ");
    format!("{} {region}: {sets}", target.scope)
}

/// What holds now, as verdicts: the bans in force, and whoever is spared or held at this minute, or causes an alert.
fn events(policy: &Policy, tally: &Tally, ledger: &Ledger, now: Minute) -> Vec<Event> {
    let bans = ledger.bans_in_force(policy, now).into_iter().map(|(client, ban)| {
        let strike = ledger.offenders.get(&client).map_or(1, |offender| offender.strikes);
        let sentence = Sentence {
            strike,
            until: ban.until,
            action: ban.action,
        };
        Event {
            time: ban.from,
            verdict: Verdict::Ban(charge_of(policy, tally, client, ban), sentence),
            stopped: tally.requests_of(client, ban.from, ban.until),
        }
    });
    let mut events: Vec<Event> = bans.collect();
    // What goes on is said when it begins; a ledger that has heard of nothing makes it be said again.
    let unaware = Ledger {
        going_on: BTreeSet::new(),
        ..ledger.clone()
    };
    let verdicts = judge(policy, tally, &unaware, now).verdicts.into_iter();
    events.extend(
        verdicts
            .filter(|verdict| !matches!(verdict, Verdict::Ban(..)))
            .map(|verdict| Event {
                time: now,
                verdict,
                stopped: 0,
            }),
    );
    events
}

/// The offense behind a ban. The ledger remembers its hits; the rest is in the tallies, as long as these reach back.
fn charge_of(policy: &Policy, tally: &Tally, client: Client, ban: &Ban) -> Charge {
    let index = policy.rules.iter().position(|rule| rule.name == ban.rule);
    let view = View {
        horizon: ban.from - policy.horizon(),
        long_horizon: ban.from - policy.long_horizon().unwrap_or_default(),
        slate: Minute(0),
        now: ban.from,
    };
    let found = findings(policy, tally, client, view).into_iter().find_map(|finding| {
        let (Finding::Offense(offense) | Finding::Shared(offense)) = finding;
        (Some(offense.rule) == index && offense.hits == ban.hits).then_some(offense)
    });
    let remembered = Offense {
        rule: index.unwrap_or(usize::MAX),
        hits: ban.hits,
        matched: ban.hits,
        requests: 0,
        first_hit: ban.last_hit,
        last_hit: ban.last_hit,
    };
    let rule = index.map(|index| &policy.rules[index]);
    Charge {
        client,
        rule: ban.rule.clone(),
        limit: rule.map_or(0, |rule| rule.limit),
        window: rule.map_or(Span(0), |rule| rule.window),
        offense: found.unwrap_or(remembered),
        also: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            state: Place::Folder("state".into()),
            logs: None,
            now: None,
            token: Some("c0ffee".into()),
            hosts: vec!["palisade.internal".into()],
        }
    }

    #[test]
    fn only_names_that_nobody_can_point_at_us_are_ours() {
        for host in [
            "127.0.0.1:8711",
            "localhost:9000",
            "LOCALHOST",
            "[::1]:8711",
            "[::1]",
            "10.1.2.3",
            "palisade.internal:80",
        ] {
            assert!(settings().knows(Some(host)), "{host}");
        }
        for host in [
            "example.com",
            "example.com:8711",
            "127.0.0.1.example.com:8711",
            "localhost.example.com",
            "",
            "palisade.internal.example.com",
        ] {
            assert!(!settings().knows(Some(host)), "{host}");
        }
        assert!(!settings().knows(None));
    }

    #[test]
    fn a_change_comes_from_our_own_page() {
        let headers = |pairs: &[(&'static str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| {
                    (
                        header::HeaderName::from_static(name),
                        HeaderValue::from_str(value).unwrap(),
                    )
                })
                .collect::<HeaderMap>()
        };
        let ours = [("host", "127.0.0.1:8711"), ("origin", "http://127.0.0.1:8711")];
        assert!(same_origin(&headers(&ours)));
        assert!(same_origin(&headers(&[
            ours[0],
            ours[1],
            ("sec-fetch-site", "same-origin")
        ])));
        for strange in [
            &[ours[0]][..],
            &[ours[0], ("origin", "null")],
            &[ours[0], ("origin", "http://127.0.0.1:8712")],
            &[ours[0], ("origin", "http://example.com")],
            &[ours[0], ours[1], ("sec-fetch-site", "cross-site")],
            &[ours[1]],
        ] {
            assert!(!same_origin(&headers(strange)), "{strange:?}");
        }
    }

    #[test]
    fn the_token_is_the_whole_token() {
        assert!(settings().admits("c0ffee"));
        for other in ["", "c0ffe", "c0ffee0", "C0FFEE"] {
            assert!(!settings().admits(other));
        }
        let without = Settings {
            token: None,
            ..settings()
        };
        assert!(!without.admits(""));
        assert_ne!(fresh_token().unwrap(), fresh_token().unwrap());
    }
}
