//! The policy: what an operator writes down, checked once and from then on correct.
//!
//! [`Policy::parse`] is the only way to get one. What is typed (`Typed` and friends, one to one with the TOML) becomes what
//! is meant ([`Policy`]); an unknown key, an impossible limit or a span in seconds is refused with the place and a hint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use ingest::{Request, Wants};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::client::{Client, ClientSource, IpSource, parse_cidr};
use crate::judge::{BRAKE_CLIENTS_MIN, percent};
use crate::ledger::Action;
use crate::pattern::Pattern;
use crate::tally::DISTINCT_MAX;
use crate::time::Span;

/// The commented policy that works for an API on the day it is installed, in observe mode.
pub const DEFAULT_POLICY: &str = include_str!("default-policy.toml");

/// The most rules a policy may have: a request is compared with each.
pub const RULES_MAX: usize = 1_000;

/// The most patterns one policy may hold, over all rules.
pub const PATTERNS_MAX: usize = 10_000;

/// The longest window of a rule that Athena counts for: every hour all of it is scanned again, and paid for.
pub const ATHENA_WINDOW_MAX: Span = Span(30 * 24 * 60);

/// How long after one count by Athena the next may come without a hit being missed: it is made every hour, and one may fail.
pub const ATHENA_PAUSE_MAX: Span = Span(3 * 60);

/// A checked policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Judge only, or judge and update.
    pub mode: Mode,
    /// How late a log object may come and its requests still count; part of the horizon.
    pub lateness: Span,
    /// The ban times of rules that have none of their own.
    pub ladder: Ladder,
    /// Quiet time after the end of a ban that brings an offender back to the first step.
    pub forget_after: Span,
    /// Limits on the harm of one run.
    pub brake: Brake,
    /// Whom a request is attributed to.
    pub client: ClientSource,
    /// Which blocked requests were blocked by our own IP sets.
    pub ours: Ours,
    /// Networks that are never banned.
    pub allows: Vec<Allow>,
    /// The shape that bans cannot stop; `None` when the operator switched the alert off.
    pub crowd: Option<CrowdLimit>,
    /// In the order of the file.
    pub rules: Vec<Rule>,
}

/// What the updater does with a judgment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Judge and report.
    Observe,
    /// Judge, report and update the IP sets.
    Enforce,
}

/// Ban times that grow with each strike. Never empty; the last step repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder(Vec<Step>);

/// One ban: how long, and what WAF does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The time from the judgment to the end of the ban.
    pub span: Span,
    /// Block, or challenge.
    pub action: Action,
}

impl Ladder {
    /// The step for the `strike`-th offense, counted from one.
    pub fn step(&self, strike: u32) -> Step {
        let at = (strike.max(1) as usize - 1).min(self.0.len() - 1);
        self.0[at]
    }

    /// All steps, shortest first as a rule.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }
}

/// Limits on the harm one run can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Brake {
    /// The most bans one run may impose; the worst offenders go first, the rest is held.
    pub new_bans: usize,
    /// If the clients that a run would ban made more than this share of all allowed requests, all are held.
    /// Looked at from [`crate::judge::BRAKE_CLIENTS_MIN`] clients on.
    pub allowed_share: f64,
}

/// What it holds, for people.
impl fmt::Display for Brake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what is more than {} new bans in one run", self.new_bans)?;
        if self.allowed_share < 1.0 {
            let share = percent(self.allowed_share);
            write!(
                f,
                ", and {BRAKE_CLIENTS_MIN} or more bans whose clients made more than {share} of the allowed requests"
            )?;
        }
        Ok(())
    }
}

/// How WAF's records show that our own rules stopped a request: either pattern list is enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    /// Names of the terminating rules that use our IP sets.
    pub waf_rule: Vec<Pattern>,
    /// Labels that those rules add; they also show when the rule sits in a rule group.
    pub label: Vec<Pattern>,
}

impl Ours {
    /// Whether our own rules stopped `request`. What our allow set let through was not stopped.
    pub fn stopped(&self, request: &Request<'_>) -> bool {
        !request.allowed()
            && (self.waf_rule.iter().any(|p| p.matches(&request.waf_rule))
                || self
                    .label
                    .iter()
                    .any(|p| request.labels.iter().any(|label| p.matches(label))))
    }
}

/// A network that is never banned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// The network; a client that overlaps it is spared.
    pub cidr: IpNet,
    /// Whose it is.
    pub note: String,
}

/// When many clients with few requests each are worth an alert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrowdLimit {
    /// At least so many clients that send few requests…
    pub clients: u32,
    /// …within so long…
    pub window: Span,
    /// …each at most so many requests…
    pub requests_each: u32,
    /// …and at least so many times the usual number of such clients.
    pub surge: f64,
}

/// One of our rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Unique; lower-case letters, digits and hyphens.
    pub name: String,
    /// One sentence for whoever asks why a client was banned.
    pub why: String,
    /// What a request must look like to count.
    pub matches: Match,
    /// What a request must not look like to count.
    pub unless: Option<Match>,
    /// The hits within a window that make an offense.
    pub limit: u32,
    /// How many minutes a window has.
    pub window: Span,
    /// The least share of the client's requests in the window that must match, 0 to 1.
    pub share: Option<f64>,
    /// Count this field's distinct values instead of requests.
    pub distinct: Option<Field>,
    /// Ranks offenders when there are more than the brake or the IP sets take.
    pub severity: Severity,
    /// Ban times of its own.
    pub ladder: Option<Ladder>,
    /// Ban, or only say so.
    pub then: Then,
    /// Who counts its hits in the live loop.
    pub engine: Engine,
    /// Its inline tests.
    pub tests: Vec<RuleTest>,
}

impl Rule {
    /// Whether `request` counts for this rule.
    pub fn counts(&self, request: &Request<'_>) -> bool {
        self.matches.matches(request) && !self.unless.as_ref().is_some_and(|unless| unless.matches(request))
    }

    /// Whether every request counts, so that the rule's hits are the client's requests.
    pub fn counts_everything(&self) -> bool {
        self.matches.conditions.is_empty() && self.unless.is_none() && self.distinct.is_none()
    }
}

/// What an offense leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// A ban.
    Ban,
    /// A message; nobody is banned.
    Alert,
}

/// Who counts for a rule in the live loop. A replay has everything counted by one engine, whichever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Palisade itself, as log objects come.
    Scan,
    /// Athena, once an hour: for windows whose logs nobody wants to read again every time.
    Athena,
}

/// How bad an offense is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A nuisance.
    Low,
    /// The default.
    Medium,
    /// An attack.
    High,
    /// An attack that nobody does by mistake.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        })
    }
}

/// Conditions on a request, all of which must hold. No condition matches every request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// A field and the patterns of which one must match. A field that a record lacks matches no pattern, not even `*`.
    pub conditions: Vec<(Field, Vec<Pattern>)>,
}

impl Match {
    /// Whether every condition holds.
    pub fn matches(&self, request: &Request<'_>) -> bool {
        self.conditions
            .iter()
            .all(|(field, patterns)| field.any(request, |value| patterns.iter().any(|p| p.matches(value))))
    }
}

/// A field of a request that a policy can look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `action`: what WAF did: ALLOW, BLOCK, CAPTCHA, CHALLENGE, or what AWS adds next.
    Action,
    /// `terminatingRuleId`.
    WafRule,
    /// The name of any label.
    Label,
    /// `httpMethod`.
    Method,
    /// `host`, or the Host header where a record has no such field.
    Host,
    /// `uri`: the path, as it was sent.
    Uri,
    /// `args`: the query string without its question mark.
    Args,
    /// The User-Agent header.
    UserAgent,
    /// Any header of this name.
    Header(String),
    /// The ISO 3166 country of the connection.
    Country,
    /// The JA3 fingerprint (CloudFront and ALB only).
    Ja3,
    /// The JA4 fingerprint (CloudFront and ALB only).
    Ja4,
    /// `responseCodeSent`: the status of WAF's own custom response; never the origin's status.
    ResponseCode,
}

impl Field {
    /// Every field without a parameter, by its name in a policy.
    const NAMED: [(&'static str, Field); 12] = [
        ("action", Field::Action),
        ("waf_rule", Field::WafRule),
        ("label", Field::Label),
        ("method", Field::Method),
        ("host", Field::Host),
        ("uri", Field::Uri),
        ("args", Field::Args),
        ("user_agent", Field::UserAgent),
        ("country", Field::Country),
        ("ja3", Field::Ja3),
        ("ja4", Field::Ja4),
        ("response_code", Field::ResponseCode),
    ];

    /// Reads a name as a policy writes it.
    ///
    /// # Errors
    /// A sentence fragment that names the field that was probably meant.
    pub fn parse(name: &str) -> Result<Field, String> {
        if let Some(header) = name.strip_prefix("header.").filter(|header| !header.is_empty()) {
            return Ok(Field::Header(header.to_ascii_lowercase()));
        }
        if let Some((_, field)) = Self::NAMED.iter().find(|(known, _)| *known == name) {
            return Ok(field.clone());
        }
        let known: Vec<&str> = Self::NAMED
            .iter()
            .map(|(known, _)| *known)
            .chain(["header.<name>"])
            .collect();
        let meant = nearest(name, &known)
            .map(|meant| format!("; did you mean `{meant}`?"))
            .unwrap_or_default();
        Err(format!(
            "unknown match field `{name}`{meant} The fields are {}",
            known.join(", ")
        ))
    }

    /// Whether `wanted` accepts any value that `request` has for this field.
    pub fn any(&self, request: &Request<'_>, mut wanted: impl FnMut(&str) -> bool) -> bool {
        match self {
            Field::Action => wanted(&request.action),
            Field::WafRule => wanted(&request.waf_rule),
            Field::Label => request.labels.iter().any(|label| wanted(label)),
            Field::Method => wanted(&request.method),
            Field::Host => request.host.as_deref().is_some_and(wanted),
            Field::Uri => wanted(&request.uri),
            Field::Args => wanted(&request.args),
            Field::UserAgent => request.user_agent().is_some_and(wanted),
            Field::Header(name) => request.header(name).any(wanted),
            Field::Country => request.country.as_deref().is_some_and(wanted),
            Field::Ja3 => request.ja3.as_deref().is_some_and(wanted),
            Field::Ja4 => request.ja4.as_deref().is_some_and(wanted),
            Field::ResponseCode => {
                let Some(code) = request.response_code else {
                    return false;
                };
                let mut digits = [0u8; 5];
                let mut at = digits.len();
                let mut rest = code;
                loop {
                    at -= 1;
                    digits[at] = b'0' + (rest % 10) as u8;
                    rest /= 10;
                    if rest == 0 {
                        break;
                    }
                }
                std::str::from_utf8(&digits[at..]).is_ok_and(wanted)
            }
        }
    }
}

/// As a policy writes it.
impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Header(name) => write!(f, "header.{name}"),
            field => f.write_str(
                Self::NAMED
                    .iter()
                    .find(|(_, named)| named == field)
                    .map_or("?", |(name, _)| name),
            ),
        }
    }
}

/// A story that a rule must tell right.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleTest {
    /// What it shows.
    pub name: String,
    /// What the clients send.
    pub sends: Vec<Sends>,
    /// The clients that this rule bans, and nobody else.
    #[serde(default)]
    pub banned: Vec<String>,
    /// The clients that this rule would have banned but spared, if the test says.
    pub spared: Option<Vec<String>>,
    /// The clients that this rule raises an alert for, if the test says.
    pub alerted: Option<Vec<String>>,
}

/// Requests of one client, spread evenly over a time. What is left out is that of an ordinary allowed request.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sends {
    /// An address.
    pub client: String,
    /// How many requests.
    #[serde(default = "one")]
    pub times: u32,
    /// Over how long; all of them in the first minute if left out.
    pub over: Option<Span>,
    /// How long after the start of the test.
    pub after: Option<Span>,
    /// `GET` if left out.
    pub method: Option<String>,
    /// `/` if left out. `{n}` in any text becomes the number of the request.
    pub uri: Option<String>,
    /// The query string.
    pub args: Option<String>,
    /// `api.example.com` if left out.
    pub host: Option<String>,
    /// A browser's if left out; `""` sends none.
    pub user_agent: Option<String>,
    /// Further headers.
    #[serde(default)]
    pub header: BTreeMap<String, String>,
    /// Labels.
    #[serde(default)]
    pub label: OneOrMany,
    /// `ALLOW` if left out.
    pub action: Option<String>,
    /// `Default_Action` if left out.
    pub waf_rule: Option<String>,
    /// The country of the connection.
    pub country: Option<String>,
    /// The JA3 fingerprint.
    pub ja3: Option<String>,
    /// The JA4 fingerprint.
    pub ja4: Option<String>,
    /// The status of WAF's custom response.
    pub response_code: Option<u16>,
}

fn one() -> u32 {
    1
}

/// A TOML value that may be a string, a number, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OneOrMany(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OneOrMany, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![number.to_string()]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut all = Vec::new();
                while let Some(OneOrMany(mut one)) = seq.next_element()? {
                    all.append(&mut one);
                }
                Ok(OneOrMany(all))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Why a policy was refused: what and where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PolicyError {
    /// What is wrong; may be several lines that show the place in the file.
    pub message: String,
    /// What the operator probably meant.
    pub hint: Option<String>,
}

impl Policy {
    /// Reads and checks a policy.
    ///
    /// # Errors
    /// The first thing that is wrong with it, with its place where TOML gives one.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let typed: Typed = toml::from_str(text).map_err(|error| {
            let hint = did_you_mean(error.message());
            let mut message = error.to_string().trim_end().to_owned();
            for (rust, plain) in [
                ("u32", "a whole number"),
                ("usize", "a whole number"),
                ("u8", "a whole number"),
                ("f64", "a number"),
            ] {
                message = message.replace(&format!("expected {rust}"), &format!("expected {plain}"));
            }
            PolicyError { message, hint }
        })?;
        typed.meant().map_err(|message| PolicyError { message, hint: None })
    }

    /// The policy that comes with the program.
    pub fn default_policy() -> Policy {
        Policy::parse(DEFAULT_POLICY).unwrap_or_else(|error| panic!("the embedded policy is wrong: {error}"))
    }

    /// The longest window of the crowd alert or of any rule that [`Engine::Scan`] counts for.
    pub fn longest_window(&self) -> Span {
        let rules = self.rules.iter().filter(|rule| rule.engine == Engine::Scan);
        rules
            .map(|rule| rule.window)
            .chain(self.crowd.map(|crowd| crowd.window))
            .max()
            .unwrap_or(Span::MINUTE)
    }

    /// Longest window + accepted lateness: older requests no longer matter, except to rules that Athena counts for.
    pub fn horizon(&self) -> Span {
        Span(self.longest_window().0 + self.lateness.0)
    }

    /// The same for the rules that [`Engine::Athena`] counts for, if there are any. Their hits are seen up to
    /// [`ATHENA_PAUSE_MAX`] later than others, and only windows that lie wholly inside the horizon are looked at.
    pub fn long_horizon(&self) -> Option<Span> {
        let rules = self.rules.iter().filter(|rule| rule.engine == Engine::Athena);
        let longest = rules.map(|rule| rule.window).max()?;
        Some(Span(longest.0 + self.lateness.0 + ATHENA_PAUSE_MAX.0))
    }

    /// The same policy for a tally that one engine counted for all rules, as in a replay.
    pub fn counted_by_one_engine(&self) -> Policy {
        let mut policy = self.clone();
        for rule in &mut policy.rules {
            rule.engine = Engine::Scan;
        }
        policy
    }

    /// Why `client` may never be banned, or `None`.
    pub fn spares(&self, client: Client) -> Option<String> {
        if let Some(what) = client.never_banned() {
            return Some(format!("never banned: {what}"));
        }
        self.allows
            .iter()
            .find(|allow| client.overlaps(&allow.cidr))
            .map(|allow| format!("allow: {}", allow.note))
    }

    /// What [`crate::Tally::count`] will look at in a request.
    pub fn wants(&self) -> Wants {
        let of_rules = self.rules.iter().flat_map(|rule| {
            let unless = rule.unless.iter().flat_map(|unless| &unless.conditions);
            let conditions = rule.matches.conditions.iter().chain(unless).map(|(field, _)| field);
            conditions.chain(&rule.distinct)
        });
        // Crowds are told apart by their user agents.
        let mut wants = Wants::nothing().and_header("user-agent");
        if !self.ours.label.is_empty() {
            wants = wants.and_labels();
        }
        if let IpSource::Header { name, .. } = &self.client.ip {
            wants = wants.and_header(name);
        }
        for field in of_rules {
            wants = match field {
                Field::Label => wants.and_labels(),
                Field::Header(name) => wants.and_header(name),
                _ => wants,
            };
        }
        wants
    }

    /// The ladder that `rule` uses.
    pub fn ladder_of<'a>(&'a self, rule: &'a Rule) -> &'a Ladder {
        rule.ladder.as_ref().unwrap_or(&self.ladder)
    }

    /// Identifies what a tally counted: it changes with `[client]`, `[ours]` and what rules match, and not with limits,
    /// windows or bans, which apply to hits already counted. 32 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        // The name of the hash that distinct values and samples are kept as.
        let mut text = String::from("xxh64");
        let _ = write!(text, "{:?}{:?}", self.client, self.ours);
        for rule in &self.rules {
            let _ = write!(text, "{:?}", (&rule.name, &rule.matches, &rule.unless, &rule.distinct));
        }
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes()))
    }
}

// What is typed, one to one with the TOML.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    #[serde(default = "observe")]
    mode: Mode,
    #[serde(default = "default_lateness")]
    lateness: Span,
    #[serde(default)]
    ban: TypedBan,
    #[serde(default)]
    brake: TypedBrake,
    #[serde(default)]
    client: TypedClient,
    #[serde(default)]
    ours: TypedOurs,
    #[serde(default)]
    crowd: TypedCrowd,
    #[serde(default)]
    allow: Vec<TypedAllow>,
    #[serde(default)]
    rule: Vec<TypedRule>,
}

fn observe() -> Mode {
    Mode::Observe
}

/// Firehose buffers for up to 15 minutes (its BufferingHints page); direct delivery to S3 takes five and a little.
fn default_lateness() -> Span {
    Span(20)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TypedBan {
    ladder: Vec<TypedStep>,
    forget_after: Span,
}

impl Default for TypedBan {
    fn default() -> TypedBan {
        let ladder = [Span(15), Span(60), Span(360), Span(1440)].map(|span| {
            TypedStep(Step {
                span,
                action: Action::Block,
            })
        });
        TypedBan {
            ladder: ladder.into(),
            forget_after: Span(7 * 24 * 60),
        }
    }
}

/// `"15m"`, or `{ for = "15m", action = "challenge" }`.
struct TypedStep(Step);

impl<'de> Deserialize<'de> for TypedStep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TypedStep, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            r#for: Span,
            #[serde(default = "block")]
            action: Action,
        }
        fn block() -> Action {
            Action::Block
        }
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TypedStep;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time span like \"15m\" or { for = \"15m\", action = \"challenge\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TypedStep, E> {
                Ok(TypedStep(Step {
                    span: Span::parse(text).map_err(E::custom)?,
                    action: Action::Block,
                }))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TypedStep, A::Error> {
                let table = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(TypedStep(Step {
                    span: table.r#for,
                    action: table.action,
                }))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TypedBrake {
    new_bans: usize,
    allowed_share: f64,
}

impl Default for TypedBrake {
    fn default() -> TypedBrake {
        TypedBrake {
            new_bans: 200,
            allowed_share: 0.2,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TypedClient {
    ip: TypedIp,
    ipv6_prefix: u8,
}

impl Default for TypedClient {
    fn default() -> TypedClient {
        TypedClient {
            ip: TypedIp(IpSource::Source),
            ipv6_prefix: 64,
        }
    }
}

struct TypedIp(IpSource);

impl<'de> Deserialize<'de> for TypedIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TypedIp, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            header: String,
            trusted_hops: usize,
        }
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TypedIp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"source\" or { header = \"x-forwarded-for\", trusted_hops = 1 }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TypedIp, E> {
                if text == "source" {
                    Ok(TypedIp(IpSource::Source))
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TypedIp, A::Error> {
                let Table { header, trusted_hops } = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                if !(1..=10).contains(&trusted_hops) {
                    return Err(de::Error::custom(
                        "`trusted_hops` counts your own proxies from the right, 1 to 10",
                    ));
                }
                Ok(TypedIp(IpSource::Header {
                    name: header.to_ascii_lowercase(),
                    trusted_hops,
                }))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TypedOurs {
    waf_rule: OneOrMany,
    label: OneOrMany,
}

impl Default for TypedOurs {
    fn default() -> TypedOurs {
        TypedOurs {
            waf_rule: OneOrMany(vec!["*palisade*".into()]),
            label: OneOrMany(vec!["*:palisade:*".into()]),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TypedCrowd {
    alert: bool,
    clients: u32,
    window: Span,
    requests_each: u32,
    surge: f64,
}

impl Default for TypedCrowd {
    fn default() -> TypedCrowd {
        TypedCrowd {
            alert: true,
            clients: 2_000,
            window: Span(5),
            requests_each: 2,
            surge: 5.0,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedAllow {
    cidr: Cidr,
    note: String,
}

struct Cidr(IpNet);

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cidr, D::Error> {
        parse_cidr(&String::deserialize(deserializer)?)
            .map(Cidr)
            .map_err(de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedRule {
    name: String,
    why: String,
    #[serde(default)]
    r#match: TypedMatch,
    unless: Option<TypedMatch>,
    limit: u32,
    window: Span,
    share: Option<f64>,
    distinct: Option<TypedField>,
    #[serde(default = "medium")]
    severity: Severity,
    ban: Option<Vec<TypedStep>>,
    #[serde(default = "ban")]
    then: Then,
    #[serde(default = "scan")]
    engine: Engine,
    #[serde(default)]
    test: Vec<RuleTest>,
}

fn scan() -> Engine {
    Engine::Scan
}

fn medium() -> Severity {
    Severity::Medium
}

fn ban() -> Then {
    Then::Ban
}

struct TypedField(Field);

impl<'de> Deserialize<'de> for TypedField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TypedField, D::Error> {
        Field::parse(&String::deserialize(deserializer)?)
            .map(TypedField)
            .map_err(de::Error::custom)
    }
}

#[derive(Default)]
struct TypedMatch(Match);

impl<'de> Deserialize<'de> for TypedMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TypedMatch, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TypedMatch;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of fields like { method = \"POST\", uri = [\"/login\"] }")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<TypedMatch, A::Error> {
                let mut conditions: BTreeMap<Field, Vec<Pattern>> = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    // `header.referer = "x"` is a table in TOML, `"header.referer" = "x"` a plain key: both are meant alike.
                    let read: Vec<(Field, OneOrMany)> = if name == "header" {
                        let headers: BTreeMap<String, OneOrMany> = map.next_value()?;
                        headers
                            .into_iter()
                            .map(|(header, values)| (Field::Header(header.to_ascii_lowercase()), values))
                            .collect()
                    } else {
                        vec![(Field::parse(&name).map_err(de::Error::custom)?, map.next_value()?)]
                    };
                    for (field, OneOrMany(values)) in read {
                        if values.is_empty() {
                            return Err(de::Error::custom(format!(
                                "`{field}` is an empty list, which nothing matches; leave the field out to match everything"
                            )));
                        }
                        conditions
                            .entry(field)
                            .or_default()
                            .extend(values.iter().map(|value| Pattern::new(value)));
                    }
                }
                Ok(TypedMatch(Match {
                    conditions: conditions.into_iter().collect(),
                }))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl Typed {
    /// What was typed becomes what is meant, or the reason why it cannot.
    fn meant(self) -> Result<Policy, String> {
        let ladder = ladder(self.ban.ladder, "`[ban]`")?;
        if !(self.brake.allowed_share > 0.0 && self.brake.allowed_share <= 1.0) {
            return Err(
                "`[brake]`: `allowed_share` is a share between 0 and 1, for example 0.2; 1 switches this brake off"
                    .into(),
            );
        }
        if self.brake.new_bans == 0 {
            return Err(
                "`[brake]`: `new_bans = 0` would hold every ban; use `mode = \"observe\"` to judge without banning"
                    .into(),
            );
        }
        if !(1..=128).contains(&self.client.ipv6_prefix) {
            return Err(
                "`[client]`: `ipv6_prefix` is a prefix length between 1 and 128; 64 is what one site gets".into(),
            );
        }
        let crowd = &self.crowd;
        if crowd.clients == 0 || crowd.requests_each == 0 || crowd.surge.is_nan() || crowd.surge < 1.0 {
            return Err("`[crowd]`: `clients` and `requests_each` are at least 1, `surge` is at least 1.0; `alert = false` switches it off".into());
        }
        if self.rule.len() > RULES_MAX {
            return Err(format!(
                "{} rules are more than the {RULES_MAX} a policy may have",
                self.rule.len()
            ));
        }
        let mut names = BTreeSet::new();
        let mut rules = Vec::new();
        for typed in self.rule {
            let rule = typed.meant()?;
            if !names.insert(rule.name.clone()) {
                return Err(format!(
                    "two rules are called `{}`; names are how bans are explained, so each needs its own",
                    rule.name
                ));
            }
            rules.push(rule);
        }
        let patterns: usize = rules
            .iter()
            .flat_map(|rule| &rule.matches.conditions)
            .map(|(_, patterns)| patterns.len())
            .sum();
        if patterns > PATTERNS_MAX {
            return Err(format!(
                "{patterns} patterns are more than the {PATTERNS_MAX} a policy may have"
            ));
        }
        let policy = Policy {
            mode: self.mode,
            lateness: self.lateness,
            ladder,
            forget_after: self.ban.forget_after,
            brake: Brake {
                new_bans: self.brake.new_bans,
                allowed_share: self.brake.allowed_share,
            },
            client: ClientSource {
                ip: self.client.ip.0,
                ipv6_prefix: self.client.ipv6_prefix,
            },
            ours: Ours {
                waf_rule: patterns_of(self.ours.waf_rule),
                label: patterns_of(self.ours.label),
            },
            allows: self
                .allow
                .into_iter()
                .map(|allow| Allow {
                    cidr: allow.cidr.0,
                    note: allow.note,
                })
                .collect(),
            crowd: crowd.alert.then_some(CrowdLimit {
                clients: crowd.clients,
                window: crowd.window,
                requests_each: crowd.requests_each,
                surge: crowd.surge,
            }),
            rules,
        };
        // An offender that is forgotten while the burst it was banned for is still in view would be banned for it again.
        let horizon = policy.long_horizon().unwrap_or_default().max(policy.horizon());
        if policy.forget_after < horizon {
            return Err(format!(
                "`[ban]`: `forget_after = \"{}\"` is shorter than the horizon of {horizon} (longest window + `lateness`)",
                policy.forget_after,
            ));
        }
        Ok(policy)
    }
}

impl TypedRule {
    fn meant(self) -> Result<Rule, String> {
        let name = self.name;
        if name.is_empty()
            || name.len() > 64
            || !name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(format!(
                "rule `{name}`: a name has up to 64 lower-case letters, digits and hyphens, like `login-brute-force`"
            ));
        }
        if self.why.trim().is_empty() {
            return Err(format!(
                "rule `{name}`: `why` is empty; write the sentence you want to read at three in the morning"
            ));
        }
        if self.limit == 0 {
            return Err(format!(
                "rule `{name}`: `limit = 0` would ban everybody; 1 means the first hit is one too many"
            ));
        }
        let distinct = self.distinct.map(|field| field.0);
        if let Some(field) = &distinct
            && self.limit as usize > DISTINCT_MAX
        {
            return Err(format!(
                "rule `{name}`: distinct values of `{field}` are counted up to {DISTINCT_MAX} a minute, so `limit` can't be {}",
                self.limit
            ));
        }
        if self.share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            return Err(format!(
                "rule `{name}`: `share` is between 0 and 1, for example 0.5 for half of the client's requests"
            ));
        }
        if self.engine == Engine::Athena && self.window > ATHENA_WINDOW_MAX {
            return Err(format!(
                "rule `{name}`: `window = \"{}\"` is longer than the {ATHENA_WINDOW_MAX} that Athena is asked to look back",
                self.window
            ));
        }
        let ladder = self
            .ban
            .map(|steps| ladder(steps, &format!("rule `{name}`")))
            .transpose()?;
        for test in &self.test {
            let place = || format!("rule `{name}`, test `{}`", test.name);
            for sends in &test.sends {
                sends
                    .client
                    .parse::<std::net::IpAddr>()
                    .map_err(|_| format!("{}: client `{}` is not an IP address", place(), sends.client))?;
                if sends.times > 1_000_000 {
                    return Err(format!("{}: `times` is at most 1000000", place()));
                }
            }
            for client in test
                .banned
                .iter()
                .chain(test.spared.iter().flatten())
                .chain(test.alerted.iter().flatten())
            {
                parse_cidr(client).map_err(|why| format!("{}: {why}", place()))?;
            }
        }
        Ok(Rule {
            name,
            why: self.why,
            matches: self.r#match.0,
            unless: self.unless.map(|unless| unless.0),
            limit: self.limit,
            window: self.window,
            share: self.share,
            distinct,
            severity: self.severity,
            ladder,
            then: self.then,
            engine: self.engine,
            tests: self.test,
        })
    }
}

fn ladder(steps: Vec<TypedStep>, place: &str) -> Result<Ladder, String> {
    if steps.is_empty() {
        return Err(format!(
            "{place}: the ladder has no step; write for example [\"15m\", \"1h\", \"6h\", \"24h\"]"
        ));
    }
    Ok(Ladder(steps.into_iter().map(|step| step.0).collect()))
}

fn patterns_of(OneOrMany(texts): OneOrMany) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text)).collect()
}

/// The hint for serde's "unknown field `x`, expected one of `y`, `z`".
fn did_you_mean(message: &str) -> Option<String> {
    let (_, rest) = message
        .split_once("unknown field `")
        .or_else(|| message.split_once("unknown variant `"))?;
    let (typed, rest) = rest.split_once('`')?;
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    nearest(typed, &known).map(|meant| format!("did you mean `{meant}`?"))
}

/// The known word that `typed` was probably meant to be.
pub(crate) fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let close = |word: &&&str| strsim::jaro_winkler(typed, word) > 0.75;
    known
        .iter()
        .filter(close)
        .max_by(|a, b| strsim::jaro_winkler(typed, a).total_cmp(&strsim::jaro_winkler(typed, b)))
        .copied()
}
