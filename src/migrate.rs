//! Reads what "Security Automations for AWS WAF" leaves behind, and says the same as a policy and a ledger.
//!
//! The retiring solution keeps, per stack, `<stack>-waf_log_conf.json` and `<stack>-app_log_conf.json` (thresholds),
//! `<stack>-waf_log_out.json` and `<stack>-app_log_out.json` (whom its Lambda parser blocks, and since when), and twelve IP
//! sets whose entries have no dates. Facts are from its source, version 4.0.4: `log_parser/lambda_log_parser.py` compares
//! `>=` threshold per minute and address, and keeps an entry while `now - updated_at < general.blockPeriod` minutes; its
//! spelling of suffixes is `ignoredSufixes`.
//!
//! [`migrate`] is pure: what is read and the minute are arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use analyzer::client::parse_cidr;
use analyzer::ledger::Ban;
use analyzer::policy::Severity;
use analyzer::{Action, Client, DEFAULT_POLICY, Ledger, Manual, ManualKind, Minute, Offender, Policy, Span, rehearse};
use chrono::DateTime;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use toml_edit::DocumentMut;

/// What there is to go on, and whom it concerns.
#[derive(Debug, Clone, PartialEq)]
pub struct Migration {
    /// The stack's name, as its files and IP sets have it.
    pub stack: String,
    /// The policy, as text with comments; it parses.
    pub policy: String,
    /// The bans that run, and what operators decided by hand.
    pub ledger: Ledger,
    /// Line by line, what became of what.
    pub lines: Vec<Line>,
    /// What could not be read, and was left out.
    pub problems: Vec<String>,
}

/// What became of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// In which of four ways.
    pub kind: Kind,
    /// The thing, as the old solution calls it.
    pub old: String,
    /// What it is now.
    pub now: String,
}

/// How something of the old solution fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// There is the same thing.
    Maps,
    /// There is the same thing, and it does better.
    Better,
    /// There is no such thing; what to do instead.
    NoEquivalent,
    /// It is over, or must not be carried over.
    LeftOut,
}

/// Why nothing could be migrated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MigrateError(String);

/// Migrates from files (name and content), as of `now`. Entries of the bad-bot set, which the old solution never ends, are
/// banned for `bad_bots_for`, or until somebody takes them back.
///
/// # Errors
/// When none of the files is one of the old solution's.
pub fn migrate(
    files: &[(String, Vec<u8>)],
    now: Minute,
    bad_bots_for: Option<Span>,
) -> Result<Migration, MigrateError> {
    let old = Old::read(files);
    if old.confs.is_empty() && old.states.is_empty() && old.sets.is_empty() {
        let why = old
            .problems
            .first()
            .map(|problem| format!(": {problem}"))
            .unwrap_or_default();
        return Err(MigrateError(format!(
            "no file of \"Security Automations for AWS WAF\" was found{why}"
        )));
    }
    let mut lines = Vec::new();
    let rules = rules(&old, &mut lines);
    let allows = allows(&old, &mut lines);
    let mut policy_text = write_policy(&old, &rules, &allows, now, true);
    // A path or an allow that a test stumbles over is no reason to hand out a policy whose own tests fail.
    let fails = |policy: &Policy| rehearse(policy).iter().any(|rehearsal| !rehearsal.failures.is_empty());
    if Policy::parse(&policy_text).is_ok_and(|policy| fails(&policy)) {
        policy_text = write_policy(&old, &rules, &allows, now, false);
    }
    let policy = Policy::parse(&policy_text)
        .map_err(|error| MigrateError(format!("the policy came out wrong: {}", error.message)))?;
    let mut ledger = Ledger::default();
    carry_dated(&old, &policy, now, &mut ledger, &mut lines);
    carry_undated(&old, &policy, now, bad_bots_for, &mut ledger, &mut lines);
    say_the_rest(&old, &mut lines);
    lines.sort_by_key(|line| line.kind);
    Ok(Migration {
        stack: old.stack,
        policy: policy_text,
        ledger,
        lines,
        problems: old.problems,
    })
}

/// Which of the two logs a file is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Log {
    /// WAF's log: HTTP flood.
    Waf,
    /// The application's access log: scanners and probes.
    App,
}

impl Log {
    const ALL: [Log; 2] = [Log::Waf, Log::App];

    fn name(self) -> &'static str {
        match self {
            Log::Waf => "waf_log",
            Log::App => "app_log",
        }
    }

    /// How the conf spells its limit.
    fn threshold(self) -> &'static str {
        match self {
            Log::Waf => "requestThreshold",
            Log::App => "errorThreshold",
        }
    }

    /// The template's default for it.
    fn threshold_default(self) -> u64 {
        match self {
            Log::Waf => 100,
            Log::App => 50,
        }
    }

    /// The rule that stands for it.
    fn rule(self) -> &'static str {
        match self {
            Log::Waf => "http-flood",
            Log::App => "scanners-and-probes",
        }
    }

    fn purpose(self) -> Purpose {
        match self {
            Log::Waf => Purpose::HttpFlood,
            Log::App => Purpose::ScannersProbes,
        }
    }
}

/// The template's default of `WAFBlockPeriod`, in minutes.
const BLOCK_PERIOD_DEFAULT: u64 = 240;

/// What an IP set of the old solution is for. The endings of their names are a contract of its template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Whitelist,
    Blacklist,
    HttpFlood,
    ScannersProbes,
    ReputationLists,
    BadBot,
}

const SET_ENDINGS: [(&str, Purpose); 6] = [
    ("WhitelistSetIPV", Purpose::Whitelist),
    ("BlacklistSetIPV", Purpose::Blacklist),
    ("HTTPFloodSetIPV", Purpose::HttpFlood),
    ("ScannersProbesSetIPV", Purpose::ScannersProbes),
    ("IPReputationListsSetIPV", Purpose::ReputationLists),
    ("IPBadBotSetIPV", Purpose::BadBot),
];

/// What the old solution left, read.
#[derive(Default)]
struct Old {
    stack: String,
    confs: BTreeMap<Log, Conf>,
    states: BTreeMap<Log, State>,
    sets: Vec<Set>,
    problems: Vec<String>,
}

struct Conf {
    threshold: Option<u64>,
    block_period: Option<u64>,
    ignored_suffixes: Vec<String>,
    error_codes: Vec<String>,
    /// The path, its threshold, and a block period that was never read.
    uris: Vec<(String, Option<u64>, Option<u64>)>,
    /// Keys that the old solution never read.
    unknown: Vec<String>,
}

impl Conf {
    fn block_period(&self) -> Span {
        let minutes = self.block_period.unwrap_or(BLOCK_PERIOD_DEFAULT);
        Span(u32::try_from(minutes).unwrap_or(u32::MAX).clamp(1, Span::MAX.0))
    }

    fn ignores(&self, uri: &str) -> bool {
        self.ignored_suffixes.iter().any(|suffix| uri.ends_with(suffix))
    }
}

/// An entry of the state: an address, of which path if any, and the rest as it is written.
struct State(Vec<(Option<String>, String, Entry)>);

struct Entry {
    max_counter_per_min: u64,
    updated_at: String,
}

impl Entry {
    /// `2023-04-24 22:16:11 UTC+0000`, in milliseconds since the epoch.
    fn updated_ms(&self) -> Option<i64> {
        DateTime::parse_from_str(&self.updated_at, "%Y-%m-%d %H:%M:%S UTC%z")
            .ok()
            .map(|time| time.timestamp_millis())
    }
}

struct Set {
    name: String,
    purpose: Purpose,
    nets: Vec<IpNet>,
}

impl Old {
    fn read(files: &[(String, Vec<u8>)]) -> Old {
        let mut old = Old::default();
        let mut stacks = BTreeSet::new();
        for (name, bytes) in files {
            if let Err(why) = old.read_file(name, bytes, &mut stacks) {
                old.problems.push(format!("`{name}`: {why}"));
            }
        }
        if stacks.len() > 1 {
            let all: Vec<String> = stacks.iter().map(|stack| format!("`{stack}`")).collect();
            old.problems.push(format!(
                "files of several stacks ({}): migrate one stack at a time, or their thresholds mix",
                all.join(", ")
            ));
        }
        old.stack = stacks.into_iter().next().unwrap_or_default();
        old
    }

    fn read_file(&mut self, name: &str, bytes: &[u8], stacks: &mut BTreeSet<String>) -> Result<(), String> {
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("is not JSON: {error}"))?;
        if let Some(set) = value.get("IPSet") {
            let (stack, set, problems) = read_set(set)?;
            stacks.insert(stack);
            self.problems
                .extend(problems.iter().map(|why| format!("`{name}`: {why}")));
            self.sets.push(set);
            return Ok(());
        }
        for log in Log::ALL {
            if let Some(stack) = file.strip_suffix(&format!("-{}_conf.json", log.name())) {
                let conf = read_conf(log, &value)?;
                stacks.insert(stack.to_owned());
                self.confs.insert(log, conf);
                return Ok(());
            }
            if let Some(stack) = file.strip_suffix(&format!("-{}_out.json", log.name())) {
                let state = read_state(&value)?;
                stacks.insert(stack.to_owned());
                self.states.insert(log, state);
                return Ok(());
            }
        }
        Err("is neither a conf or state file of the old solution (`<stack>-waf_log_conf.json`) nor what `aws wafv2 get-ip-set` prints".into())
    }

    fn set_of(&self, purpose: Purpose) -> impl Iterator<Item = &Set> {
        self.sets.iter().filter(move |set| set.purpose == purpose)
    }

    fn block_period(&self, log: Log) -> Span {
        let conf = self.confs.get(&log).or_else(|| self.confs.values().next());
        conf.map_or(Span(BLOCK_PERIOD_DEFAULT as u32), Conf::block_period)
    }
}

/// The stack, the set, and what in it is no address.
fn read_set(set: &Value) -> Result<(String, Set, Vec<String>), String> {
    #[derive(Deserialize)]
    struct IpSet {
        #[serde(rename = "Name")]
        name: String,
        #[serde(rename = "Addresses")]
        addresses: Vec<String>,
    }
    let set: IpSet = serde_json::from_value(set.clone()).map_err(|error| format!("is no IP set: {error}"))?;
    let found = SET_ENDINGS.iter().find_map(|(ending, purpose)| {
        let stack = set.name.strip_suffix(['4', '6'])?.strip_suffix(ending)?;
        Some((stack.to_owned(), *purpose))
    });
    let Some((stack, purpose)) = found else {
        return Err(format!(
            "is the IP set `{}`, whose name is none that the old solution gives",
            set.name
        ));
    };
    let (mut nets, mut problems) = (Vec::new(), Vec::new());
    for address in &set.addresses {
        match parse_cidr(address) {
            Ok(net) => nets.push(net),
            Err(why) => problems.push(why),
        }
    }
    let name = set.name;
    let set = Set { name, purpose, nets };
    Ok((stack, set, problems))
}

/// A number that people may have written as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|item| match item {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
    .collect()
}

fn read_conf(log: Log, value: &Value) -> Result<Conf, String> {
    let object = |value: Option<&Value>| value.and_then(Value::as_object).cloned();
    let Some(general) = object(value.get("general")) else {
        return Err("has no `general`".into());
    };
    let uris: Map<String, Value> = object(value.get("uriList")).unwrap_or_default();
    let known = [log.threshold(), "blockPeriod", "ignoredSufixes", "errorCodes"];
    let mut unknown: Vec<String> = general
        .keys()
        .filter(|key| !known.contains(&key.as_str()))
        .map(|key| format!("general.{key}"))
        .collect();
    let outer = value.as_object().into_iter().flatten().map(|(key, _)| key);
    unknown.extend(outer.filter(|key| *key != "general" && *key != "uriList").cloned());
    let uri = |(uri, limits): (&String, &Value)| {
        (
            uri.clone(),
            limits.get(log.threshold()).and_then(number),
            limits.get("blockPeriod").and_then(number),
        )
    };
    Ok(Conf {
        threshold: general.get(log.threshold()).and_then(number),
        block_period: general.get("blockPeriod").and_then(number),
        ignored_suffixes: texts(general.get("ignoredSufixes")),
        error_codes: texts(general.get("errorCodes")),
        uris: uris.iter().map(uri).collect(),
        unknown,
    })
}

fn read_state(value: &Value) -> Result<State, String> {
    let object = value.as_object().ok_or("is no state: it is not an object")?;
    // An entry that says nothing is kept and left out later, with its name: it costs no other entry.
    let entry = |value: &Value| Entry {
        max_counter_per_min: value.get("max_counter_per_min").and_then(number).unwrap_or(0),
        updated_at: value
            .get("updated_at")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
    };
    let members = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
    let mut entries: Vec<(Option<String>, String, Entry)> = Vec::new();
    for (address, value) in members(object.get("general")) {
        entries.push((None, address, entry(&value)));
    }
    for (uri, addresses) in members(object.get("uriList")) {
        for (address, value) in members(Some(&addresses)) {
            entries.push((Some(uri.clone()), address, entry(&value)));
        }
    }
    Ok(State(entries))
}

/// A rule to write.
struct NewRule {
    log: Log,
    /// `None`: every path.
    uri: Option<String>,
    name: String,
    limit: u64,
    ban: Span,
    ignored_suffixes: Vec<String>,
    /// A block period of its own that the old solution never read.
    meant: Option<u64>,
}

fn rules(old: &Old, lines: &mut Vec<Line>) -> Vec<NewRule> {
    let mut rules: Vec<NewRule> = Vec::new();
    let mut names: BTreeSet<String> = BTreeSet::new();
    for (log, conf) in &old.confs {
        let place = log.name();
        let mut say = |kind, old: String, now: String| {
            lines.push(Line {
                kind,
                old: format!("{place}: {old}"),
                now,
            })
        };
        let threshold = conf.threshold.unwrap_or(log.threshold_default());
        let ban = conf.block_period();
        let mut add = |uri: Option<&String>, threshold: u64, meant: Option<u64>| {
            let name = unique(&mut names, log.rule(), uri);
            rules.push(NewRule {
                log: *log,
                uri: uri.cloned(),
                name: name.clone(),
                limit: threshold.clamp(1, u64::from(u32::MAX)),
                ban,
                ignored_suffixes: conf.ignored_suffixes.clone(),
                meant,
            });
            name
        };
        let seen = conf.error_codes.iter().any(|code| code == "403") || conf.error_codes.is_empty();
        if *log == Log::App {
            let codes: Vec<&str> = conf
                .error_codes
                .iter()
                .map(String::as_str)
                .filter(|code| *code != "403")
                .collect();
            if !codes.is_empty() {
                say(
                    Kind::NoEquivalent,
                    format!("general.errorCodes {}", codes.join(", ")),
                    "WAF logs do not hold the origin's status. The rules for secrets, path traversal, PHP probing and attack tools in the new policy find scanners by what they ask for".into(),
                );
            }
            if seen {
                say(
                    Kind::Maps,
                    "general.errorCodes 403".into(),
                    "`match = { action = \"BLOCK\" }`: what WAF blocks is a 403".into(),
                );
            }
        }
        if *log == Log::Waf || seen {
            let name = add(None, threshold, None);
            say(
                Kind::Maps,
                format!("general.{} = {threshold}", log.threshold()),
                format!("rule `{name}`: `limit = {}` in `window = \"1m\"`", threshold.max(1)),
            );
            say(
                Kind::Better,
                format!("general.{} was counted per log object", log.threshold()),
                format!(
                    "`{name}` counts over all objects, so that the same number bans more clients than it did: replay before you enforce"
                ),
            );
        } else {
            say(
                Kind::NoEquivalent,
                format!("general.{} = {threshold}", log.threshold()),
                "none of its error codes shows in WAF logs, so there is no such rule".into(),
            );
        }
        say(
            Kind::Maps,
            format!(
                "general.blockPeriod = {} minutes",
                conf.block_period.unwrap_or(BLOCK_PERIOD_DEFAULT)
            ),
            format!("ban = [\"{ban}\"]"),
        );
        if !conf.ignored_suffixes.is_empty() {
            say(
                Kind::Maps,
                format!("general.ignoredSufixes {}", conf.ignored_suffixes.join(", ")),
                "`unless = { uri = [\"*suffix\", …] }`; upper and lower case are the same now".into(),
            );
        }
        for (uri, threshold, meant) in &conf.uris {
            let shown = format!("uriList {uri:?}");
            match threshold {
                _ if conf.ignores(uri) => say(
                    Kind::LeftOut,
                    shown,
                    "its path ends with one of `ignoredSufixes`, so the old solution never counted it".into(),
                ),
                None => say(
                    Kind::LeftOut,
                    shown,
                    format!("it has no `{}`, so the old solution never compared it", log.threshold()),
                ),
                Some(_) if *log == Log::App && !seen => say(
                    Kind::NoEquivalent,
                    shown,
                    "none of the error codes shows in WAF logs".into(),
                ),
                Some(threshold) => {
                    let name = add(Some(uri), *threshold, *meant);
                    say(
                        Kind::Maps,
                        format!("{shown} {} = {threshold}", log.threshold()),
                        format!("rule `{name}`: `limit = {}` in `window = \"1m\"`", (*threshold).max(1)),
                    );
                }
            }
            if let Some(minutes) = meant {
                say(
                    Kind::Better,
                    format!("uriList {uri:?} blockPeriod = {minutes} was ignored"),
                    "a rule may have a `ban` of its own; the line is in the policy, commented out".into(),
                );
            }
        }
        for key in &conf.unknown {
            say(
                Kind::LeftOut,
                format!("{key:?}"),
                "the old solution never read it, so nothing was made of it".into(),
            );
        }
    }
    if !rules.is_empty() {
        lines.push(Line {
            kind: Kind::Better,
            old: "a block was as long for everybody, began anew with each further burst, and ended only when a log object arrived".into(),
            now: "a ban ends at its minute; with a ladder like [\"15m\", \"1h\", \"6h\", \"24h\"] it grows for those who come back".into(),
        });
    }
    rules
}

/// `http-flood`, `http-flood-api-login`.
fn unique(names: &mut BTreeSet<String>, base: &str, uri: Option<&String>) -> String {
    let mut name = base.to_owned();
    for part in uri
        .map(|uri| uri.split(|c: char| !c.is_ascii_alphanumeric()))
        .into_iter()
        .flatten()
    {
        if !part.is_empty() {
            name += &format!("-{}", part.to_ascii_lowercase());
        }
    }
    if uri.is_some() && name == base {
        name += "-root";
    }
    name.truncate(56);
    let mut candidate = name.clone();
    let mut number = 2;
    while !names.insert(candidate.clone()) {
        candidate = format!("{name}-{number}");
        number += 1;
    }
    candidate
}

fn allows(old: &Old, lines: &mut Vec<Line>) -> Vec<(IpNet, String)> {
    let mut allows = Vec::new();
    for set in old.set_of(Purpose::Whitelist) {
        allows.extend(set.nets.iter().map(|net| (*net, format!("was in {}", set.name))));
        if !set.nets.is_empty() {
            lines.push(Line {
                kind: Kind::Maps,
                old: format!("{}: {}", set.name, networks(set.nets.len())),
                now: "an `[[allow]]` each, with a note that you can make a better one".into(),
            });
            lines.push(Line {
                kind: Kind::NoEquivalent,
                old: format!("{}: passed by all other rules of the web ACL", set.name),
                now: "Palisade never bans an allowed network, but it is no WAF rule: keep the allow rule in your web ACL if these networks need it".into(),
            });
        }
    }
    allows
}

/// The rules of the default policy that stand for what the old solution did without a threshold.
const PROBES: [&str; 5] = [
    "secrets-and-backups",
    "path-traversal",
    "path-traversal-in-arguments",
    "wordpress-and-php-probing",
    "attack-tools",
];

fn several(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn networks(number: usize) -> String {
    several(number, "network", "networks")
}

/// Text as TOML writes it, on one line: JSON's strings are TOML's, but for DEL.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

fn write_policy(old: &Old, rules: &[NewRule], allows: &[(IpNet, String)], now: Minute, tests: bool) -> String {
    let stack = &old.stack;
    let mut text = String::new();
    let ban = old.block_period(Log::Waf);
    // Writing into a string can't fail.
    let _ = write!(
        text,
        "# What the stack {} of \"Security Automations for AWS WAF\" did, as a policy: {now}.
#
# It observes. The old thresholds were counted in each log object for itself; here they are counted as they read, and so
# reach more clients. Replay your logs first:  palisade replay --policy policy.toml <folder of WAF logs>
# Then:  mode = \"enforce\"

mode = \"observe\"
lateness = \"20m\"                     # how late a log object may come: Firehose buffers for up to 15 minutes

[ban]
# WAFBlockPeriod. Better: ladder = [\"15m\", \"1h\", \"6h\", \"24h\"], short for a mistake and long for those who come back.
ladder = [\"{ban}\"]
forget_after = \"7d\"                  # quiet for so long after a ban: the next strike is the first again

[brake]                              # new: the old solution had none
new_bans = 200                       # more in one run: worst first up to here, hold the rest, raise the alarm
allowed_share = 0.2                  # ten or more clients that made more than this share of allowed requests: hold all

[client]
ip = \"source\"                        # as before; behind a CDN of your own: {{ header = \"x-forwarded-for\", trusted_hops = 1 }}
ipv6_prefix = 64                     # before: single addresses, of which a household has 18 quintillion

[ours]                               # requests that a ban stopped never count, so a ban cannot feed itself
",
        quoted(stack)
    );
    let theirs = [
        "BlacklistRule",
        "HttpFloodRegularRule",
        "ScannersAndProbesRule",
        "IPReputationListsRule",
        "BadBotRule",
    ];
    let theirs: Vec<String> = theirs.iter().map(|rule| quoted(&format!("{stack}{rule}"))).collect();
    let _ = write!(
        text,
        "# The old stack's, for as long as your logs hold them: its bans must not count against anybody either.\nwaf_rule = [\"*palisade*\", {}]\nlabel = \"*:palisade:*\"\n",
        theirs.join(", ")
    );
    for (net, note) in allows {
        let _ = write!(text, "\n[[allow]]\ncidr = \"{net}\"\nnote = {}\n", quoted(note));
    }
    for rule in rules {
        write_rule(&mut text, rule, ban);
        if tests {
            write_tests(&mut text, rule);
        }
    }
    let mut kept: Vec<&str> = Vec::new();
    if old.confs.contains_key(&Log::App) {
        kept.extend(PROBES);
    }
    if old.set_of(Purpose::BadBot).next().is_some() {
        kept.push("trap");
    }
    if !kept.is_empty() {
        text += "\n\n# From the default policy: what finds scanners, probes and bad bots in WAF logs. `palisade policy` has more rules.\n# The old honeypot was an API of its own; the new one is a path of yours: put yours into the `match` of `trap`.\n";
        text += &default_rules(&kept);
    }
    text
}

fn write_rule(text: &mut String, rule: &NewRule, ladder: Span) {
    let NewRule {
        log,
        uri,
        name,
        limit,
        ban,
        ignored_suffixes,
        meant,
    } = rule;
    let what = match (log, uri) {
        (Log::Waf, None) => "requests of one client in a minute".to_owned(),
        (Log::Waf, Some(uri)) => format!("requests for {uri} of one client in a minute"),
        (Log::App, None) => "requests of one client in a minute that WAF blocked".to_owned(),
        (Log::App, Some(uri)) => format!("requests for {uri} of one client in a minute that WAF blocked"),
    };
    let (threshold, file) = (log.threshold(), log.name());
    let place = uri
        .as_ref()
        .map_or("general".to_owned(), |uri| format!("uriList {}", quoted(uri)));
    let _ = write!(
        text,
        "\n[[rule]]\nname   = \"{name}\"\nwhy    = {}\n# {file}_conf.json: {place}, {threshold}.",
        quoted(&format!("{limit} {what}."))
    );
    if *log == Log::Waf && uri.is_none() {
        *text += " If your stack read logs with Athena, the threshold was divided by\n# the minutes between two queries: with the defaults 100 / 5 = 20 a minute.";
    }
    *text += "\n";
    let mut conditions: Vec<String> = Vec::new();
    if let Some(uri) = uri {
        conditions.push(format!("uri = {}", quoted(uri)));
    }
    if *log == Log::App {
        conditions.push("action = \"BLOCK\"".to_owned());
    }
    if !conditions.is_empty() {
        let _ = writeln!(text, "match  = {{ {} }}", conditions.join(", "));
    }
    if !ignored_suffixes.is_empty() {
        let suffixes: Vec<String> = ignored_suffixes
            .iter()
            .map(|suffix| quoted(&format!("*{suffix}")))
            .collect();
        let _ = writeln!(text, "unless = {{ uri = [{}] }}", suffixes.join(", "));
    }
    let _ = write!(text, "limit  = {limit}\nwindow = \"1m\"\n");
    if *log == Log::App {
        *text += "# share = 0.5                      # better: spares an address most of whose users are served\n";
    }
    if *ban != ladder {
        let _ = writeln!(text, "ban    = [\"{ban}\"]");
    }
    if let Some(minutes) = meant {
        let minutes = Span(u32::try_from(*minutes).unwrap_or(u32::MAX).clamp(1, Span::MAX.0));
        let _ = writeln!(
            text,
            "# ban    = [\"{minutes}\"]                 # its blockPeriod, which the old solution never read"
        );
    }
}

/// At the limit, and one request below it.
fn write_tests(text: &mut String, rule: &NewRule) {
    /// More than the judge should be made to count in a test.
    const TIMES_MAX: u64 = 100_000;
    if rule.limit > TIMES_MAX {
        return;
    }
    let uri = rule
        .uri
        .as_ref()
        .map_or(String::new(), |uri| format!(", uri = {}", quoted(uri)));
    let action = match rule.log {
        Log::Waf => "",
        Log::App => ", action = \"BLOCK\", waf_rule = \"some-rule\"",
    };
    let mut write = |name: &str, times: u64, banned: &str| {
        let _ = write!(
            text,
            "\n  [[rule.test]]\n  name   = {}\n  sends  = [{{ client = \"192.0.2.44\"{uri}{action}, times = {times} }}]\n  banned = [{banned}]\n",
            quoted(name)
        );
    };
    write("as many as the threshold in a minute", rule.limit, "\"192.0.2.44\"");
    if rule.limit > 1 {
        write("one fewer", rule.limit - 1, "");
    }
}

/// The named rules of the default policy, with their comments and tests.
fn default_rules(names: &[&str]) -> String {
    let Ok(mut document) = DEFAULT_POLICY.parse::<DocumentMut>() else {
        return String::new();
    };
    let keys: Vec<String> = document.iter().map(|(key, _)| key.to_owned()).collect();
    for key in keys.iter().filter(|key| *key != "rule") {
        document.remove(key);
    }
    if let Some(rules) = document.get_mut("rule").and_then(|item| item.as_array_of_tables_mut()) {
        rules.retain(|rule| {
            let name = rule.get("name").and_then(|name| name.as_str());
            name.is_some_and(|name| names.contains(&name))
        });
    }
    document.set_trailing("");
    document.to_string()
}

/// Bans of the Lambda parser, whose state says since when.
fn carry_dated(old: &Old, policy: &Policy, now: Minute, ledger: &mut Ledger, lines: &mut Vec<Line>) {
    for (log, State(entries)) in &old.states {
        let place = log.name();
        let mut left_out = |what: String, why: &str| {
            lines.push(Line {
                kind: Kind::LeftOut,
                old: format!("{place}: {what}"),
                now: why.to_owned(),
            })
        };
        let Some(conf) = old.confs.get(log) else {
            left_out(
                format!("{} of the state", several(entries.len(), "entry", "entries")),
                "its conf is missing, and with it the block period that says when they end: give that file too",
            );
            continue;
        };
        let mut carried = 0;
        for (uri, address, entry) in entries {
            let shown = match uri {
                Some(uri) => format!("{address:?} in uriList {uri:?}"),
                None => format!("{address:?}"),
            };
            let Ok(ip) = address.parse::<IpAddr>() else {
                left_out(shown, "is not an address");
                continue;
            };
            let threshold = match uri {
                None => Some(conf.threshold.unwrap_or(log.threshold_default())),
                Some(uri) => conf
                    .uris
                    .iter()
                    .find(|(known, ..)| known == uri && !conf.ignores(uri))
                    .and_then(|(_, threshold, _)| *threshold),
            };
            let Some(threshold) = threshold else {
                left_out(
                    shown,
                    "its path is no longer in the conf, so the next log object would have unblocked it",
                );
                continue;
            };
            if entry.max_counter_per_min < threshold {
                left_out(
                    shown,
                    "its count is below the threshold of today, so the next log object would have unblocked it",
                );
                continue;
            }
            let Some(updated_ms) = entry.updated_ms() else {
                left_out(shown, "its `updated_at` is no time, so nobody knows when it ends");
                continue;
            };
            let client = Client::of(ip, policy.client.ipv6_prefix);
            let (from, until) = (
                Minute::of_ms(updated_ms),
                Minute::of_ms(updated_ms.saturating_add(block_ms(conf))),
            );
            if until <= now {
                left_out(shown, "its block period is over");
                continue;
            }
            if let Some(because) = policy.spares(client) {
                left_out(shown, &format!("may not be banned ({because})"));
                continue;
            }
            carried += 1;
            let rule = rule_name(log, uri.as_deref(), policy);
            let ban = Ban {
                rule,
                action: Action::Block,
                from,
                until,
                severity: Severity::Medium,
                hits: entry.max_counter_per_min,
                last_hit: from,
            };
            let known = ledger.offenders.get(&client).map(|offender| offender.ban.until);
            if known.is_none_or(|known| known < until) {
                ledger.offenders.insert(client, Offender { strikes: 1, ban });
            }
        }
        if carried > 0 {
            lines.push(Line {
                kind: Kind::Maps,
                old: format!("{place}: {} of the state", several(carried, "entry", "entries")),
                now: "bans in the ledger, until the minute in which the old solution would have ended them; their first strike".into(),
            });
        }
    }
    if ledger.offenders.keys().any(|client| client.net().addr().is_ipv6()) {
        lines.push(Line {
            kind: Kind::Better,
            old: "single IPv6 addresses were blocked".into(),
            now: "the /64 is banned: a household or a server has one, and may use any address in it".into(),
        });
    }
}

fn block_ms(conf: &Conf) -> i64 {
    i64::try_from(conf.block_period.unwrap_or(BLOCK_PERIOD_DEFAULT))
        .unwrap_or(i64::MAX)
        .saturating_mul(60_000)
}

/// The rule of the new policy that stands for a path of the old conf; the general one if there is none.
fn rule_name(log: &Log, uri: Option<&str>, policy: &Policy) -> String {
    let base = log.rule();
    let of_path = |uri: &str| {
        policy.rules.iter().find(|rule| {
            rule.name.starts_with(base)
                && rule.matches.conditions.iter().any(|(field, patterns)| {
                    *field == analyzer::policy::Field::Uri && patterns.iter().any(|pattern| pattern.as_str() == uri)
                })
        })
    };
    uri.and_then(of_path).map_or(base.to_owned(), |rule| rule.name.clone())
}

/// Entries of IP sets, which have no dates: what operators and the honeypot put in, and what Athena's parser did.
fn carry_undated(
    old: &Old,
    policy: &Policy,
    now: Minute,
    bad_bots_for: Option<Span>,
    ledger: &mut Ledger,
    lines: &mut Vec<Line>,
) {
    for set in &old.sets {
        let line = |kind, what: String, now: String| Line {
            kind,
            old: format!("{}: {what}", set.name),
            now,
        };
        let log = Log::ALL.into_iter().find(|log| log.purpose() == set.purpose);
        let (why, until) = match (set.purpose, log) {
            (Purpose::Whitelist, _) => continue,
            (Purpose::ReputationLists, _) => {
                lines.push(line(
                    Kind::NoEquivalent,
                    format!("{} of public lists", networks(set.nets.len())),
                    "Palisade reads no lists. AWSManagedRulesAmazonIpReputationList in your web ACL is kept up to date by AWS; these entries would only grow old".into(),
                ));
                continue;
            }
            (Purpose::Blacklist, _) => (format!("was in {}", set.name), None),
            (Purpose::BadBot, _) => (
                format!("walked into the old honeypot ({})", set.name),
                bad_bots_for.map(|span| now + span),
            ),
            // With a state, whom it does not name the next log object unblocks. Without one Athena's parser wrote the set.
            (_, Some(log)) if old.states.contains_key(&log) => {
                let unknown = set
                    .nets
                    .iter()
                    .filter(|net| !ledger.offenders.keys().any(|client| client.overlaps(net)))
                    .count();
                if unknown > 0 {
                    lines.push(line(
                        Kind::LeftOut,
                        format!("{} that no running entry of the state explains", networks(unknown)),
                        "the next log object would have unblocked it".into(),
                    ));
                }
                continue;
            }
            (_, log) => {
                let span = log.map_or(Span(BLOCK_PERIOD_DEFAULT as u32), |log| old.block_period(log));
                (
                    format!("was in {}, nobody knows since when", set.name),
                    Some(now + span),
                )
            }
        };
        let mut carried = 0;
        for net in &set.nets {
            for net in without(*net, policy) {
                if let Some(because) = policy.spares(Client::of_net(net)) {
                    lines.push(line(
                        Kind::LeftOut,
                        net.to_string(),
                        format!("may not be banned ({because})"),
                    ));
                    continue;
                }
                carried += 1;
                ledger.manual.push(Manual {
                    net,
                    kind: ManualKind::Ban,
                    why: why.clone(),
                    since: now,
                    until,
                });
            }
        }
        if carried > 0 {
            let how = match until {
                None => "bans by hand until you take them back: `palisade unban`".to_owned(),
                Some(until) => format!(
                    "bans by hand until {until}: the set has no dates, and this is the latest that a full period from now allows"
                ),
            };
            lines.push(line(Kind::Maps, networks(set.nets.len()), how));
            if set.purpose == Purpose::BadBot {
                lines.push(line(
                    Kind::Better,
                    "once in, nobody ever left".into(),
                    "the rule `trap` bans for 24 hours, then for 7 days; `palisade migrate --bad-bots-for 7d` ends the old ones too".into(),
                ));
            }
        }
    }
}

/// A network without the allowed parts of it: the old allow rule came before the deny rule.
fn without(net: IpNet, policy: &Policy) -> Vec<IpNet> {
    let inside = |allow: &IpNet| net.contains(allow) && *allow != net;
    if !policy.allows.iter().any(|allow| inside(&allow.cidr)) {
        return vec![net];
    }
    let halves = net.subnets(net.prefix_len() + 1).into_iter().flatten();
    let allowed = |half: &IpNet| policy.allows.iter().any(|allow| allow.cidr.contains(half));
    halves
        .filter(|half| !allowed(half))
        .flat_map(|half| without(half, policy))
        .collect()
}

/// What no file shows, and a migration must not forget.
fn say_the_rest(old: &Old, lines: &mut Vec<Line>) {
    let mut say = |kind, old: &str, now: &str| {
        lines.push(Line {
            kind,
            old: old.to_owned(),
            now: now.to_owned(),
        })
    };
    if !old.confs.contains_key(&Log::Waf) {
        say(
            Kind::NoEquivalent,
            "HTTP flood by AWS WAF rate based rule",
            "keep the rate-based rule in your web ACL: it acts within seconds, Palisade within minutes",
        );
    }
    say(
        Kind::NoEquivalent,
        "SqlInjectionRule, XssRule, AWS managed rules",
        "they are WAF rules and stay in your web ACL; Palisade reads what they saw",
    );
    say(
        Kind::NoEquivalent,
        "IPRetentionPeriodAllowedParam, IPRetentionPeriodDeniedParam",
        "no IP set shows when an entry ends: look into the stack's DynamoDB table, and use `palisade ban` or `allow` with `--for`",
    );
    say(
        Kind::NoEquivalent,
        "RequestThresholdByCountryParam, HTTPFloodAthenaQueryGroupByParam",
        "they are in no file. A rule with `match = { country = \"TR\" }` and a limit of its own does the first; grouping by country needs one rule a country",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_network_loses_the_allowed_part_of_it_and_nothing_else() {
        let policy = Policy::parse(
            "[[allow]]\ncidr = \"198.51.100.7\"\nnote = \"a\"\n[[allow]]\ncidr = \"198.51.100.128/25\"\nnote = \"b\"",
        )
        .unwrap();
        let nets = without("198.51.100.0/24".parse().unwrap(), &policy);
        let banned = |last: u8| {
            let address = IpAddr::from([198, 51, 100, last]);
            nets.iter().filter(|net| net.contains(&address)).count()
        };
        for last in 0..=255 {
            assert_eq!(banned(last), usize::from(last < 128 && last != 7), "{last}");
        }
        let whole: IpNet = "192.0.2.0/24".parse().unwrap();
        assert_eq!(without(whole, &policy), [whole]);
    }

    #[test]
    fn rule_names_come_from_paths_and_never_meet() {
        let mut names = BTreeSet::new();
        let mut name = |uri: &str| unique(&mut names, "http-flood", Some(&uri.to_owned()));
        assert_eq!(name("/api/v1/Login.php"), "http-flood-api-v1-login-php");
        assert_eq!(name("/api/v1/login/php"), "http-flood-api-v1-login-php-2");
        assert_eq!(name("/"), "http-flood-root");
        assert!(name(&"/x".repeat(200)).len() <= 64);
    }
}
