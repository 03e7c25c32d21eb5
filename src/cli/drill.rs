//! `palisade drill`: an incident exercise. A marked attack that harms nobody goes into the logs, and somebody with a clock
//! watches it become a ban.
//!
//! The attack comes from a documentation address (RFC 5737), or, with `--url`, from this machine against an API of the
//! operator's. Which attack is not a matter of taste: candidates are judged by the policy in force, here, before anything
//! is written, and the first one that it bans is taken. Afterwards the ban is ended and the attack's log object removed;
//! what stays is said.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use analyzer::client::IpSource;
use analyzer::judge::{Sentence, judge};
use analyzer::policy::Mode;
use analyzer::{Action, Client, Ledger, Minute, Policy, Span, Tally, Verdict};
use chrono::{DateTime, Utc};
use clap::Args;
use ingest::object_key;

use super::deployment::{StateArgs, policy_in_force, runtime, this_minute};
use super::exit::{Exit, Failure};
use super::output::{HEADING, Printer, several, stdout, table, write_table};
use crate::enforce::Enforcer;
use crate::engine::{Engine, TickError, tally_key};
use crate::inputs::describe;
use crate::logs::Logs;
use crate::place::{Aws, LogPlace, Place, State};
use crate::store::{Condition, Store};
use crate::traffic::{Sent, direct_key, firehose_key, gzip};

#[derive(Args)]
pub(super) struct DrillArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The logs: a folder, or `s3://bucket/prefix` up to the year
    #[arg(long, value_name = "PLACE")]
    logs: Place,
    /// How long to wait for the ban
    #[arg(long, value_name = "SPAN", value_parser = Span::parse, default_value = "15m")]
    within: Span,
    /// Send real requests to this URL of yours instead of writing a log; WAF will ban the address you send from
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// With `--url`, never send more requests than this
    #[arg(long, value_name = "N", default_value_t = 100, requires = "url",
        value_parser = clap::value_parser!(u32).range(1..=REQUESTS_MAX))]
    requests: u32,
    /// One JSON object a stage
    #[arg(long)]
    json: bool,
}

/// More would be an attack and no exercise.
const REQUESTS_MAX: i64 = 2_000;
/// Slow enough for any API that needs Palisade.
const REQUESTS_PAUSE: Duration = Duration::from_millis(100);
/// How long a ban that was ended may take to leave the IP sets: two runs and WAF's own time.
const LEAVING_MAX: Duration = Duration::from_secs(180);

/// What the drill can do: what for, method, and paths in turn. None of them does anything where nobody listens.
const ATTACKS: [(&str, &str, &[&str]); 3] = [
    ("tries passwords", "POST", &["/login"]),
    (
        "looks for secrets",
        "GET",
        &["/.env", "/.git/config", "/.aws/credentials", "/backup.zip", "/db.sql"],
    ),
    ("floods", "GET", &["/search"]),
];

pub(super) fn run(args: &DrillArgs, printer: &Printer) -> Result<Exit, Failure> {
    let _ = ctrlc::set_handler(|| STOP.store(true, Ordering::SeqCst));
    runtime()?.block_on(Drill::begin(args, printer))
}

/// Set by Ctrl-C: what was begun is cleaned up.
static STOP: AtomicBool = AtomicBool::new(false);

struct Drill<'a> {
    args: &'a DrillArgs,
    printer: &'a Printer,
    engine: Engine<State, LogPlace>,
    enforcer: Enforcer,
    policy: Policy,
    /// In the user agent of every request.
    mark: String,
    attack: Attack,
    began: Instant,
    stages: Vec<(String, Duration)>,
    /// Whether the ban has been seen in the IP sets.
    in_sets: bool,
}

/// An attack that the policy bans.
struct Attack {
    what: &'static str,
    rule: String,
    requests: Vec<Sent>,
}

impl Drill<'_> {
    async fn begin(args: &DrillArgs, printer: &Printer) -> Result<Exit, Failure> {
        let aws = Aws::default();
        let state = State::at(&args.state.state, &aws).await;
        let policy = policy_in_force(&state).await?;
        let engine = Engine::new(state, LogPlace::at(&args.logs, &aws).await);
        let (ledger, _) = engine.ledger().await?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = this_minute();
        // A misspelt place would get our object, and nobody would ever find it there.
        engine.logs.list(now, now).await?;
        let mark = format!("palisade-drill/{:x}", since.as_millis());
        let address = stranger(&policy, &ledger, now, since.subsec_nanos())?;
        let attack = Attack::choose(&policy, address, &mark, now)?;
        let mut drill = Drill {
            args,
            printer,
            engine,
            enforcer: Enforcer::new(aws),
            policy,
            mark,
            attack,
            began: Instant::now(),
            stages: Vec::new(),
            in_sets: false,
        };
        match &args.url {
            None => drill.written(address, since.as_nanos(), now).await,
            Some(url) => drill.sent(url, now).await,
        }
    }

    /// Writes the attack as if it had been delivered, and watches.
    async fn written(&mut self, address: IpAddr, id: u128, now: Minute) -> Result<Exit, Failure> {
        let prefix = match &self.args.logs {
            Place::Folder(_) => "",
            Place::Bucket { prefix, .. } => prefix,
        };
        let key = key_below(&self.args.logs.to_string(), id);
        let mut bytes = Vec::new();
        gzip((1..).zip(&self.attack.requests), &mut bytes)?;
        self.say(&format!(
            "{address} {}: {} against the rule `{}`, marked `{}`",
            self.attack.what,
            several(self.attack.requests.len() as u64, "request"),
            self.attack.rule,
            self.mark
        ));
        self.began = Instant::now();
        self.deliver(&key, bytes).await?;
        self.reached("log object written")?;

        let object = format!("{prefix}{key}");
        let client = Client::of(address, self.policy.client.ipv6_prefix);
        let watched = self.watch(client, &object).await;

        let mut left = Vec::new();
        if let Err(failure) = self.take_back(&key).await {
            left.push(format!("the log object `{key}` ({failure})"));
        }
        let tally = tally_key(&self.policy.fingerprint(), &object);
        if let Err(error) = self.engine.store.delete(&tally).await {
            left.push(format!("its tally `{tally}` ({error})"));
        }
        self.end(client, watched, left, now).await
    }

    async fn deliver(&self, key: &str, bytes: Vec<u8>) -> Result<(), Failure> {
        match &self.args.logs {
            Place::Folder(folder) => {
                let file = folder.join(key);
                let hour = file.parent().unwrap_or(folder);
                let failed =
                    |error| Failure::new(format!("failed to write `{}`: {}", file.display(), describe(&error)));
                std::fs::create_dir_all(hour).map_err(failed)?;
                // Nobody reads half of it: hidden files are no log objects.
                let hidden = hour.join(".palisade-drill");
                std::fs::write(&hidden, bytes).map_err(failed)?;
                std::fs::rename(hidden, &file).map_err(failed)?;
            }
            logs @ Place::Bucket { .. } => {
                let logs = State::at(logs, &Aws::default()).await;
                logs.put(key, bytes, Condition::IfAbsent).await?;
            }
        }
        Ok(())
    }

    async fn take_back(&self, key: &str) -> Result<(), Failure> {
        match &self.args.logs {
            Place::Folder(folder) => {
                std::fs::remove_file(folder.join(key)).map_err(|error| Failure::new(describe(&error)))?;
                // The folders above it too, if they are there because of us.
                let above = Path::new(key)
                    .ancestors()
                    .skip(1)
                    .take_while(|above| !above.as_os_str().is_empty());
                for above in above {
                    if std::fs::remove_dir(folder.join(above)).is_err() {
                        break;
                    }
                }
            }
            logs @ Place::Bucket { .. } => State::at(logs, &Aws::default()).await.delete(key).await?,
        }
        Ok(())
    }

    /// Sends the attack to `url`, finds out from the logs who we are, and watches.
    async fn sent(&mut self, url: &str, now: Minute) -> Result<Exit, Failure> {
        let (needed, allowed) = (self.attack.requests.len(), self.args.requests);
        if needed > allowed as usize {
            return Err(Failure::usage(format!(
                "the policy bans nobody for {}; it takes {needed}",
                several(allowed.into(), "request")
            ))
            .hint(format!("`--requests {needed}` allows them")));
        }
        let known = self
            .engine
            .logs
            .list(now - self.policy.horizon(), now + Span::MINUTE)
            .await?;
        let mut seen: HashSet<String> = known.into_iter().map(|object| object.key).collect();
        self.say(&format!(
            "This machine {} at {url}: {needed} requests against the rule `{}`, marked `{}`",
            self.attack.what, self.attack.rule, self.mark
        ));
        let agent = agent(&self.mark);
        self.began = Instant::now();
        for sent in self.attack.requests.clone() {
            if STOP.load(Ordering::SeqCst) {
                break;
            }
            let (agent, url) = (agent.clone(), format!("{}{}", url.trim_end_matches('/'), sent.uri));
            let status = tokio::task::spawn_blocking(move || ask(&agent, sent.method, &url)).await;
            let status = status.unwrap_or_else(|error| Err(error.to_string()));
            status.map_err(|why| Failure::new(format!("failed to reach the URL: {why}")))?;
            tokio::time::sleep(REQUESTS_PAUSE).await;
        }
        self.reached("requests sent")?;
        // Their minute is over when the next one begins, and no earlier can anybody judge it.
        let (client, object) = loop {
            if let Some(found) = self.find_ourselves(&mut seen, now).await? {
                break found;
            }
            if self.is_over() {
                return Err(self.late(
                    "no log object with our requests was delivered",
                    "does WAF log this URL's web ACL to `--logs`?",
                ));
            }
            tokio::time::sleep(self.pause()).await;
        };
        self.reached("logs delivered")?;
        let mut watched = self.watch(client, &object).await;
        if matches!(watched, Ok(Watched::InSets)) {
            watched = self.refused(&agent, url).await;
        }
        self.end(client, watched, Vec::new(), now).await
    }

    /// Looks into objects that are new for requests with our mark: who made them, and in which object.
    async fn find_ourselves(
        &self,
        seen: &mut HashSet<String>,
        began: Minute,
    ) -> Result<Option<(Client, String)>, Failure> {
        let until = this_minute() + Span::MINUTE;
        for object in self.engine.logs.list(began - Span::MINUTE, until).await? {
            if !seen.insert(object.key.clone()) {
                continue;
            }
            let log = self.engine.logs.open(&object.key).await?;
            let (mark, source) = (self.mark.clone(), self.policy.client.clone());
            let found = tokio::task::spawn_blocking(move || {
                let mut found = None;
                ingest::scan(log, |request| {
                    if request.header("user-agent").any(|agent| agent == mark) {
                        found = source.client_of(request);
                    }
                });
                found
            });
            if let Some(client) = found.await.ok().flatten() {
                return Ok(Some((client, object.key)));
            }
        }
        Ok(None)
    }

    /// Waits until `object` is counted, its client banned, and the ban in the IP sets.
    async fn watch(&mut self, client: Client, object: &str) -> Result<Watched, Failure> {
        let tally = tally_key(&self.policy.fingerprint(), object);
        let (mut counted, mut banned) = (false, None);
        loop {
            if !counted && self.engine.store.get(&tally).await?.is_some() {
                counted = true;
                self.reached("counted")?;
            }
            if banned.is_none() {
                let (ledger, _) = self.engine.ledger().await?;
                if let Some(offender) = ledger
                    .offenders
                    .get(&client)
                    .filter(|offender| offender.ban.in_force(this_minute()))
                {
                    banned = Some(offender.ban.action);
                    self.reached(&format!("banned for {}, {}", offender.ban.span(), offender.ban.rule))?;
                }
            }
            match banned {
                Some(_) if self.policy.mode == Mode::Observe => return Ok(Watched::Banned),
                Some(action) => {
                    let held = self.enforcer.hold(&self.engine.store, action, client.net()).await;
                    if held.map_err(|why| Failure::new(format!("failed to look into the IP sets: {why}")))? {
                        self.in_sets = true;
                        self.reached("in the IP sets")?;
                        return Ok(Watched::InSets);
                    }
                }
                None => {}
            }
            if self.is_over() {
                return Err(match (counted, banned) {
                    (false, None) => self.late("nobody counted the log object", "does an updater run on this state and these logs? `palisade run`, or the stack's alarms, would say"),
                    (true, None) => self.late("nobody was banned for it", "`palisade explain` on these logs says how far from the limit; the brake may hold the ban"),
                    (_, Some(_)) => self.late("the ban is in the ledger, but in no IP set", "`palisade plan` says what is missing"),
                });
            }
            tokio::time::sleep(self.pause()).await;
        }
    }

    /// Waits until the URL refuses us, as everybody else whom the ban rule stops.
    async fn refused(&mut self, agent: &ureq::Agent, url: &str) -> Result<Watched, Failure> {
        loop {
            let (asking, asked) = (agent.clone(), url.to_owned());
            let status = tokio::task::spawn_blocking(move || ask(&asking, "GET", &asked)).await;
            // A block is a 403, a challenge a 202 (WAF developer guide, "Rule actions").
            if let Ok(Ok(status @ (403 | 202))) = status {
                self.reached(&format!("refused with {status}"))?;
                return Ok(Watched::InSets);
            }
            if self.is_over() {
                return Err(self.late(
                    "the URL still answers us",
                    "is the web ACL with the ban rule associated with it?",
                ));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Ends the ban, waits until it is out of the IP sets, and says what stays.
    async fn end(
        &mut self,
        client: Client,
        watched: Result<Watched, Failure>,
        mut left: Vec<String>,
        began: Minute,
    ) -> Result<Exit, Failure> {
        let net = client.net();
        let now = this_minute();
        let ended = self.engine.change(|ledger| {
            let offender = ledger.offenders.get_mut(&client);
            // The slate begins here, so that what was counted of the drill bans nobody again.
            Ok::<_, TickError>(
                offender
                    .filter(|offender| offender.ban.in_force(now) && offender.ban.from >= began)
                    .map(|offender| {
                        offender.ban.until = now;
                        offender.ban.action
                    }),
            )
        });
        match ended.await {
            Ok(Some(action)) => {
                self.reached("ban ended")?;
                left.push(format!(
                    "{net} in the ledger with one strike, forgotten after {}, and its verdicts in the audit",
                    self.policy.forget_after
                ));
                if self.in_sets && !self.gone(net, action).await? {
                    left.push(format!("{net} in an IP set; the next run takes it out"));
                }
            }
            Ok(None) => left.push(format!(
                "a ban of {net} if one still comes; `palisade unban {net}` ends it"
            )),
            Err(failure) => left.push(format!("the ban of {net} ({failure})")),
        }
        self.report(&left)?;
        watched?;
        if self.policy.mode == Mode::Observe {
            self.printer
                .note("The policy observes: the ban is in the ledger alone, and nothing was blocked");
        }
        Ok(Exit::Done)
    }

    /// Whether the network has left the IP sets.
    async fn gone(&mut self, net: ipnet::IpNet, action: Action) -> Result<bool, Failure> {
        let ended = Instant::now();
        while ended.elapsed() < LEAVING_MAX && !STOP.load(Ordering::SeqCst) {
            if matches!(self.enforcer.hold(&self.engine.store, action, net).await, Ok(false)) {
                self.reached("out of the IP sets")?;
                return Ok(true);
            }
            tokio::time::sleep(self.pause()).await;
        }
        Ok(false)
    }

    /// The clock stops here for a stage.
    fn reached(&mut self, stage: &str) -> Result<(), Failure> {
        let after = self.began.elapsed();
        if self.args.json {
            let line = serde_json::json!({"type": "stage", "stage": stage, "seconds": (after.as_secs_f64() * 10.0).round() / 10.0});
            writeln!(stdout(), "{line}")?;
        }
        self.stages.push((stage.to_owned(), after));
        Ok(())
    }

    fn say(&self, text: &str) {
        self.printer.note(text);
    }

    fn report(&self, left: &[String]) -> Result<(), Failure> {
        let mut out = stdout();
        if self.args.json {
            writeln!(out, "{}", serde_json::json!({"type": "left", "left": left}))?;
            return Ok(());
        }
        writeln!(out, "{HEADING}Drill{HEADING:#}")?;
        let mut rows = table(&["stage", "after"], &[1]);
        for (stage, after) in &self.stages {
            rows.add_row([stage.clone(), format!("{:.1} s", after.as_secs_f64())]);
        }
        write_table(&mut out, &rows)?;
        let mut text = String::new();
        for left in left {
            let _ = write!(text, "\n  {left}");
        }
        writeln!(out, "\nleft:{text}")?;
        Ok(())
    }

    fn is_over(&self) -> bool {
        STOP.load(Ordering::SeqCst) || self.began.elapsed() >= Duration::from_secs(u64::from(self.args.within.0) * 60)
    }

    fn late(&self, what: &str, hint: &str) -> Failure {
        let after = if STOP.load(Ordering::SeqCst) {
            "when you stopped the drill".to_owned()
        } else {
            format!("within {}", self.args.within)
        };
        Failure::new(format!("{what} {after}")).hint(hint)
    }

    /// A folder may be looked at often; S3 and WAF count requests.
    fn pause(&self) -> Duration {
        Duration::from_millis(if matches!(self.args.state.state, Place::Folder(_)) {
            200
        } else {
            1_000
        })
    }
}

/// How far the attack came.
enum Watched {
    Banned,
    InSets,
}

impl Attack {
    /// The smallest of the attacks that the policy bans, as of `now`.
    fn choose(policy: &Policy, client: IpAddr, mark: &str, now: Minute) -> Result<Attack, Failure> {
        for (what, method, paths) in ATTACKS {
            for count in [30, 60, 600, 6_000] {
                let requests = requests(policy, client, (method, paths), count, mark, now);
                if let Some((rule, _)) = banned(policy, client, &requests, now) {
                    return Ok(Attack { what, rule, requests });
                }
            }
        }
        let can: Vec<&str> = ATTACKS.iter().map(|(what, ..)| *what).collect();
        Err(Failure::new(format!(
            "the policy bans nobody who {} in the last minute, and the drill can do nothing else",
            can.join(" or ")
        ))
        .hint("`palisade check` rehearses the policy's own tests"))
    }
}

/// So many requests in the minute before `now`: the last one that can be judged.
fn requests(
    policy: &Policy,
    client: IpAddr,
    (method, paths): (&'static str, &[&str]),
    count: usize,
    mark: &str,
    now: Minute,
) -> Vec<Sent> {
    let begins_ms = (now.epoch_seconds() - 60) * 1_000;
    let request = |n: usize| {
        let at_ms = begins_ms + i64::try_from(n * 60_000 / count).unwrap_or(0);
        let mut sent = Sent::new(at_ms, client);
        (sent.method, sent.uri, sent.user_agent) = (method, paths[n % paths.len()].to_owned(), mark.to_owned());
        if let IpSource::Header { name, trusted_hops } = &policy.client.ip {
            let proxies = ", 10.0.0.1".repeat(trusted_hops - 1);
            sent.forwarded = Some((name.clone(), format!("{client}{proxies}")));
        }
        sent
    };
    (0..count).map(request).collect()
}

/// What the policy does to the client: the same reading, counting and judging as everywhere.
fn banned(policy: &Policy, client: IpAddr, requests: &[Sent], now: Minute) -> Option<(String, Sentence)> {
    let mut log = Vec::new();
    for (number, sent) in (1..).zip(requests) {
        sent.write(&mut log, number).ok()?;
        log.push(b'\n');
    }
    let mut tally = Tally::default();
    ingest::scan(log.as_slice(), |request| tally.count(policy, request));
    let client = Client::of(client, policy.client.ipv6_prefix);
    let judgment = judge(policy, &tally, &Ledger::default(), now);
    judgment.verdicts.into_iter().find_map(|verdict| match verdict {
        Verdict::Ban(charge, sentence) if charge.client == client => Some((charge.rule, sentence)),
        _ => None,
    })
}

/// A documentation address (RFC 5737) of which nobody knows anything.
fn stranger(policy: &Policy, ledger: &Ledger, now: Minute, random: u32) -> Result<IpAddr, Failure> {
    let addresses = [(192, 0, 2), (198, 51, 100), (203, 0, 113)]
        .into_iter()
        .flat_map(|(a, b, c)| (1..=254).map(move |d| IpAddr::V4(Ipv4Addr::new(a, b, c, d))));
    let addresses: Vec<IpAddr> = addresses.collect();
    let from = random as usize % addresses.len();
    let unknown = |address: &&IpAddr| {
        let client = Client::of(**address, policy.client.ipv6_prefix);
        !ledger.offenders.contains_key(&client)
            && !ledger.manual.iter().any(|manual| client.overlaps(&manual.net))
            && ledger.spares(policy, client, now).is_none()
    };
    let found = addresses[from..]
        .iter()
        .chain(&addresses[..from])
        .find(unknown)
        .copied();
    found.ok_or_else(|| {
        Failure::new("every documentation address is known or allowed here, so that none is left for a drill")
            .hint("`palisade status` shows whom this state knows")
    })
}

/// The key of an object that is delivered now, in the layout that the folder above it asks for.
fn key_below(folder: &str, id: u128) -> String {
    let time = DateTime::<Utc>::from(SystemTime::now());
    let named = format!("{}/x", folder.trim_end_matches('/'));
    let of = object_key::parse(&named);
    match (of.account, of.region, of.web_acl) {
        (Some(account), Some(region), Some(web_acl)) => direct_key(account, region, web_acl, time, id),
        _ => firehose_key("drill", time, id),
    }
}

fn agent(mark: &str) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(mark);
    config.build().new_agent()
}

/// The status of one request. Whatever the URL answers is an answer.
fn ask(agent: &ureq::Agent, method: &str, url: &str) -> Result<u16, String> {
    let answer = if method == "POST" {
        agent.post(url).send_empty()
    } else {
        agent.get(url).call()
    };
    answer
        .map(|answer| answer.status().as_u16())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Minute = Minute(29_892_247);
    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

    fn policy(text: &str) -> Policy {
        Policy::parse(text).unwrap()
    }

    #[test]
    fn the_attack_is_the_smallest_that_the_policy_bans() {
        let attack = |text: &str| Attack::choose(&policy(text), CLIENT, "mark", NOW);
        let default = attack(analyzer::DEFAULT_POLICY).unwrap();
        assert_eq!(
            (default.rule.as_str(), default.requests.len()),
            ("login-brute-force", 30)
        );
        assert!(default.requests.iter().all(|sent| sent.user_agent == "mark"));

        let rule = |of: &str| format!("[[rule]]\nname = \"mine\"\nwhy = \"x\"\nwindow = \"5m\"\n{of}");
        let flood = attack(&rule("limit = 500\nmatch = {}")).unwrap();
        assert_eq!((flood.what, flood.requests.len()), ("tries passwords", 600));
        let env = attack(&rule("limit = 3\nmatch = { uri = \"*/.env\" }")).unwrap();
        assert_eq!((env.what, env.requests.len()), ("looks for secrets", 30));
        for nothing in [
            "limit = 3\nmatch = { uri = \"/never\" }",
            "limit = 3\nmatch = {}\nthen = \"alert\"",
        ] {
            assert!(attack(&rule(nothing)).is_err(), "{nothing}");
        }
    }

    #[test]
    fn behind_proxies_the_attack_comes_from_beyond_them() {
        for hops in [1, 3] {
            let client = format!("[client]\nip = {{ header = \"X-Real\", trusted_hops = {hops} }}\n");
            let text = analyzer::DEFAULT_POLICY.replacen("[client]\nip = \"source\"", &client, 1);
            assert!(text.contains("X-Real"));
            let attack = Attack::choose(&policy(&text), CLIENT, "mark", NOW).unwrap();
            assert_eq!(attack.rule, "login-brute-force");
        }
    }

    #[test]
    fn the_attacker_is_nobody_s_acquaintance() {
        let allows =
            "[[allow]]\ncidr = \"192.0.2.0/24\"\nnote = \"x\"\n[[allow]]\ncidr = \"203.0.113.0/24\"\nnote = \"x\"\n";
        let policy = policy(&format!("{}\n{allows}", analyzer::DEFAULT_POLICY));
        for random in [0, 5, 300, 761] {
            let address = stranger(&policy, &Ledger::default(), NOW, random).unwrap();
            assert!(address.to_string().starts_with("198.51.100."), "{address}");
        }
    }

    #[test]
    fn objects_are_named_as_those_around_them() {
        for (folder, account) in [
            ("logs/waf/", None),
            ("", None),
            ("AWSLogs/111122223333/WAFLogs/eu-central-1/api/", Some("111122223333")),
        ] {
            let key = key_below(folder, 7 << 96);
            let of = object_key::parse(&key);
            assert_eq!(of.account, account, "{key}");
            assert!(of.times.is_some() && key.starts_with("20"), "{key}");
        }
    }
}
