//! Reads a policy as a colleague would: everything here is allowed, and probably not meant.

use std::fmt;

use crate::client::IpSource;
use crate::pattern::Pattern;
use crate::policy::{Field, Match, Policy, Rule, Then};

/// Something that is allowed and probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lint {
    /// Where: the name of a rule in backticks, or a section.
    pub place: String,
    /// What, and what to do about it.
    pub message: String,
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// No client can be counted on to send more than this many requests in a minute and be seen in full; a limit that needs
/// more can't be reached. 1,000 a second from one address is more than AWS API Gateway's default quota lets through in a tenth of it.
const REQUESTS_A_MINUTE_MAX: u64 = 60_000;

/// Shorter than this, a ban is over before it took effect: a log object arrives after up to five minutes, an update takes
/// one, and WAF's own propagation up to a few (the developer guide's page on direct delivery to S3 and on managing IP sets).
const DELAY_MINUTES: u32 = 10;

/// The shortest prefixes that still look like a network somebody knows.
const ALLOW_PREFIX_MIN: (u8, u8) = (16, 32);

/// What the policy probably does not mean, in the order of the file.
pub fn lint(policy: &Policy) -> Vec<Lint> {
    let mut lints = Vec::new();
    let mut say = |place: &str, message: String| {
        lints.push(Lint {
            place: place.to_owned(),
            message,
        })
    };
    for step in policy.ladder.steps() {
        if step.span.0 < DELAY_MINUTES {
            say(
                "[ban]",
                format!(
                    "a ban of {} is over before it takes effect: logs arrive up to 5 minutes late; use at least {DELAY_MINUTES}m",
                    step.span
                ),
            );
        }
    }
    for allow in &policy.allows {
        let min = if allow.cidr.addr().is_ipv4() {
            ALLOW_PREFIX_MIN.0
        } else {
            ALLOW_PREFIX_MIN.1
        };
        if allow.cidr.prefix_len() < min {
            say(
                "[[allow]]",
                format!(
                    "`{}` ({}) is wider than /{min}: whoever attacks from there is never banned",
                    allow.cidr, allow.note
                ),
            );
        }
    }
    if let IpSource::Header { name, trusted_hops } = &policy.client.ip
        && name == "x-forwarded-for"
        && *trusted_hops > 3
    {
        say(
            "[client]",
            format!(
                "`trusted_hops = {trusted_hops}` is a long chain of your own proxies; one too many and clients choose their own address"
            ),
        );
    }
    if policy.rules.is_empty() {
        say(
            "[[rule]]",
            "there is no rule, so nobody will ever be banned; `palisade policy` prints a policy to start from".into(),
        );
    }
    for (at, rule) in policy.rules.iter().enumerate() {
        let place = format!("rule `{}`", rule.name);
        for step in rule.ladder.iter().flat_map(|ladder| ladder.steps()) {
            if step.span.0 < DELAY_MINUTES {
                say(
                    &place,
                    format!(
                        "a ban of {} is over before it takes effect: logs arrive up to 5 minutes late; use at least {DELAY_MINUTES}m",
                        step.span
                    ),
                );
            }
        }
        if rule.then == Then::Alert && rule.ladder.is_some() {
            say(
                &place,
                "`then = \"alert\"` bans nobody, so its `ban` is never used".into(),
            );
        }
        if u64::from(rule.limit) > u64::from(rule.window.0) * REQUESTS_A_MINUTE_MAX {
            say(
                &place,
                format!(
                    "no client sends {} requests in {}; the limit is over what the window can hold",
                    rule.limit, rule.window
                ),
            );
        }
        if let Some(values) = distinct_values(rule)
            && u64::from(rule.limit) > values
        {
            say(
                &place,
                format!(
                    "its `match` leaves only {values} distinct values of `{}`, so `limit = {}` is never reached",
                    shown(rule.distinct.as_ref()),
                    rule.limit
                ),
            );
        }
        for (field, pattern) in never(&rule.matches) {
            say(
                &place,
                format!("`{field} = \"{pattern}\"` can never match: {}", why_never(field)),
            );
        }
        if let Some(unless) = &rule.unless {
            for (field, pattern) in never(unless) {
                say(
                    &place,
                    format!(
                        "`unless` `{field} = \"{pattern}\"` can never match: {}",
                        why_never(field)
                    ),
                );
            }
            if covers(unless, &rule.matches) {
                say(
                    &place,
                    "is unreachable: whatever its `match` accepts, its `unless` takes away".into(),
                );
            }
        }
        if let Some(other) = policy.rules[..at].iter().find(|other| shadows(other, rule)) {
            say(
                &place,
                format!(
                    "is unreachable: `{}` above bans everybody this rule would, no later and for no shorter time",
                    other.name
                ),
            );
        }
    }
    lints
}

fn shown(field: Option<&Field>) -> String {
    field.map(Field::to_string).unwrap_or_default()
}

/// Whether `a` bans whoever `b` would ban, at the same hit or before, and at least for as long.
fn shadows(a: &Rule, b: &Rule) -> bool {
    a.then == b.then
        && a.distinct == b.distinct
        && a.limit <= b.limit
        && a.window >= b.window
        && (a.share.is_none() || a.share <= b.share && a.matches == b.matches)
        && a.unless.as_ref().is_none_or(|unless| Some(unless) == b.unless.as_ref())
        && covers(&a.matches, &b.matches)
        && a.severity >= b.severity
        && match (&a.ladder, &b.ladder) {
            (a, b) if a == b => true,
            (Some(a), Some(b)) => (1..=10).all(|strike| {
                a.step(strike).span >= b.step(strike).span && a.step(strike).action >= b.step(strike).action
            }),
            _ => false,
        }
}

/// Whether every request that `b` accepts is accepted by `a`: each condition of `a` is implied by one of `b` on the same field.
fn covers(a: &Match, b: &Match) -> bool {
    a.conditions.iter().all(|(field, wide)| {
        b.conditions
            .iter()
            .any(|(other, narrow)| other == field && narrow.iter().all(|n| wide.iter().any(|w| w.covers(n))))
    })
}

/// How many distinct values of the counted field can match at all, if the `match` says so literally.
fn distinct_values(rule: &Rule) -> Option<u64> {
    let field = rule.distinct.as_ref()?;
    let (_, patterns) = rule.matches.conditions.iter().find(|(matched, _)| matched == field)?;
    (!multiple(field) && patterns.iter().all(|p| p.literal().is_some())).then_some(patterns.len() as u64)
}

/// A request may have several values of these.
fn multiple(field: &Field) -> bool {
    matches!(field, Field::Label | Field::Header(_))
}

fn never(matches: &Match) -> impl Iterator<Item = (&Field, &Pattern)> {
    matches
        .conditions
        .iter()
        .flat_map(|(field, patterns)| patterns.iter().map(move |pattern| (field, pattern)))
        .filter(|(field, pattern)| can_never(field, pattern))
}

/// Whether no value that AWS writes for `field` could match.
fn can_never(field: &Field, pattern: &Pattern) -> bool {
    let text = pattern.as_str();
    let stars = text.contains('*');
    let letters = text.chars().filter(|c| *c != '*').count();
    let only = |allowed: fn(char) -> bool| text.chars().all(|c| c == '*' || allowed(c));
    let of_length = |length: usize| if stars { letters <= length } else { letters == length };
    !match field {
        Field::Uri => {
            (text.starts_with(['/', '*']) || text.eq_ignore_ascii_case("redacted")) && !text.contains(['?', '#'])
        }
        Field::Args => !text.starts_with('?') && !text.contains('#'),
        Field::Method => only(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') && letters > 0 || stars,
        Field::Host => !text.contains(['/', ' ']),
        Field::Country => only(|c| c.is_ascii_alphabetic()) && of_length(2),
        Field::Ja3 => only(|c| c.is_ascii_hexdigit()) && of_length(32),
        Field::Ja4 => only(|c| c.is_ascii_alphanumeric() || c == '_') && of_length(36),
        Field::ResponseCode => only(|c| c.is_ascii_digit()) && of_length(3),
        Field::Label => stars || text.to_ascii_lowercase().starts_with("awswaf:"),
        Field::Action => only(|c| c.is_ascii_alphabetic() || c == '_') && !text.eq_ignore_ascii_case("count"),
        Field::WafRule => !text.is_empty(),
        Field::UserAgent | Field::Header(_) => true,
    }
}

fn why_never(field: &Field) -> &'static str {
    match field {
        Field::Uri => "a uri begins with `/`, and the part after `?` is `args`",
        Field::Args => "`args` come without the `?`, and a fragment is never sent",
        Field::Method => "a method is one word, like `POST`",
        Field::Host => "a host has no scheme and no path",
        Field::Country => "a country is two letters, like `DE`",
        Field::Ja3 => "a JA3 fingerprint is 32 hexadecimal digits",
        Field::Ja4 => "a JA4 fingerprint has 36 characters, like `t13d1516h2_8daaf6152771_d8a2da3f94cd`",
        Field::ResponseCode => "a response code has three digits, like `403` or `4*`",
        Field::Label => {
            "a label's name is written in full, like `awswaf:managed:aws:core-rule-set:NoUserAgent_Header`, or with `*`"
        }
        Field::Action => "`action` is ALLOW, BLOCK, CAPTCHA or CHALLENGE; a rule that only counts shows in labels",
        Field::WafRule => "the terminating rule always has a name; without one it is `Default_Action`",
        Field::UserAgent | Field::Header(_) => "no such value exists",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_has_nothing_to_complain_about() {
        assert_eq!(lint(&Policy::default_policy()), []);
    }

    /// Lints a policy of one rule with the given lines, which follow a name and a why.
    fn check(rule: &str, expected: &[&str]) {
        let text = format!("[[rule]]\nname = \"a\"\nwhy = \"b\"\n{rule}");
        check_policy(&text, expected);
    }

    fn check_policy(text: &str, expected: &[&str]) {
        let lints: Vec<String> = lint(&Policy::parse(text).unwrap())
            .iter()
            .map(Lint::to_string)
            .collect();
        assert_eq!(lints.len(), expected.len(), "{lints:?}");
        for (lint, part) in lints.iter().zip(expected) {
            assert!(lint.contains(part), "`{lint}` does not say `{part}`");
        }
    }

    #[test]
    fn what_is_allowed_and_probably_not_meant_is_said() {
        check("limit = 20\nwindow = \"5m\"", &[]);
        check(
            "limit = 20\nwindow = \"5m\"\nban = [\"5m\"]",
            &["over before it takes effect"],
        );
        check(
            "limit = 20\nwindow = \"5m\"\nban = [\"5h\"]\nthen = \"alert\"",
            &["never used"],
        );
        check("limit = 400000\nwindow = \"5m\"", &["over what the window can hold"]);
        check(
            "limit = 5\nwindow = \"5m\"\nmatch = { uri = [\"/a\", \"/b\"] }\ndistinct = \"uri\"",
            &["leaves only 2 distinct values"],
        );
        check(
            "limit = 2\nwindow = \"5m\"\nmatch = { uri = \"/a*\" }\nunless = { uri = \"/*\" }",
            &["unreachable"],
        );
        check_policy("", &["there is no rule"]);
        check_policy(
            "[[allow]]\ncidr = \"10.0.0.0/8\"\nnote = \"vpn\"\n[[rule]]\nname = \"a\"\nwhy = \"b\"\nlimit = 1\nwindow = \"1m\"",
            &["wider than /16"],
        );
        check_policy(
            "[[rule]]\nname = \"wide\"\nwhy = \"b\"\nlimit = 5\nwindow = \"10m\"\nmatch = { uri = \"/a*\" }\n[[rule]]\nname = \"narrow\"\nwhy = \"b\"\nlimit = 9\nwindow = \"5m\"\nmatch = { method = \"GET\", uri = [\"/ab\", \"/ac*\"] }",
            &["`wide` above bans everybody"],
        );
    }

    #[test]
    fn patterns_that_can_never_match_are_named() {
        for (matches, part) in [
            ("uri = \"login\"", "uri begins with"),
            ("uri = \"/login?x=1\"", "`args`"),
            ("args = \"?x\"", "without the `?`"),
            ("method = \"PO ST\"", "one word"),
            ("host = \"https://api.example.com\"", "no scheme"),
            ("country = \"DEU\"", "two letters"),
            ("ja3 = \"xyz\"", "32 hexadecimal"),
            ("ja4 = \"t13d\"", "36 characters"),
            ("response_code = 4030", "three digits"),
            ("label = \"bot:verified\"", "in full"),
            ("action = \"COUNT\"", "labels"),
            ("waf_rule = \"\"", "has a name"),
        ] {
            check(&format!("limit = 2\nwindow = \"5m\"\nmatch = {{ {matches} }}"), &[part]);
        }
        for matches in [
            "uri = \"*login\"",
            "country = \"de\"",
            "ja4 = \"t13d*\"",
            "response_code = [403, \"5*\"]",
            "label = \"*:bot:verified\"",
            "action = \"block\"",
            "method = \"propfind\"",
            "args = \"\"",
        ] {
            check(&format!("limit = 2\nwindow = \"5m\"\nmatch = {{ {matches} }}"), &[]);
        }
    }
}
