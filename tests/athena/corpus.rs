//! Logs that have every match field and every oddity in them, and the policies that look at them.

use analyzer::Policy;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng as Random;
use serde_json::{Value, json};

/// 2026-11-01 12:00 UTC.
pub(crate) const NOON_MS: i64 = 1_793_534_400_000;

/// A rule for every match field, wildcards at either end and in the middle, `unless`, `distinct` and `share`, and patterns
/// that mean something to SQL.
pub(crate) const EVERYTHING: &str = r##"
[ours]
waf_rule = ["*palisade*", "Ban'Rule"]
label = ["*:palisade:*"]

[[rule]]
name = "everything"
why = "x"
limit = 60
window = "10m"

[[rule]]
name = "field-action"
why = "x"
match = { action = ["BLOCK", "captcha"] }
limit = 3
window = "5m"

[[rule]]
name = "field-waf-rule"
why = "x"
match = { waf_rule = "rate*" }
limit = 3
window = "5m"
share = 0.3

[[rule]]
name = "field-label"
why = "x"
match = { label = ["*:signal:*", "awswaf:managed:token:absent"] }
limit = 4
window = "5m"

[[rule]]
name = "field-method"
why = "x"
match = { method = ["post", "REDACTED"] }
unless = { label = "*bot:verified" }
limit = 10
window = "7m"

[[rule]]
name = "field-host"
why = "x"
match = { host = ["*.example.com", "MÜNCHEN.example"] }
limit = 10
window = "7m"

[[rule]]
name = "field-uri"
why = "x"
match = { uri = ["/api/*/LOGIN", "*.env", "*50%_off!*", "/quo'te\"\\*", "/ünï*", "/k*"] }
limit = 2
window = "5m"

[[rule]]
name = "field-args"
why = "x"
match = { args = ["", "*' or 1=1 --*", "*;drop*"] }
unless = { method = "OPTIONS", uri = "*" }
limit = 8
window = "5m"

[[rule]]
name = "field-user-agent"
why = "x"
match = { user_agent = ["*", ""] }
unless = { user_agent = ["Mozilla/*", "*bot*"] }
limit = 6
window = "5m"

[[rule]]
name = "field-header"
why = "x"
match = { "header.x-api-key" = "*", "header.accept" = ["*/*", "a,b"] }
limit = 2
window = "15m"

[[rule]]
name = "field-country"
why = "x"
match = { country = ["xx", "D*"] }
limit = 6
window = "5m"

[[rule]]
name = "field-ja3"
why = "x"
match = { ja3 = "*" }
unless = { ja4 = "t13d*" }
limit = 6
window = "5m"

[[rule]]
name = "field-response-code"
why = "x"
match = { response_code = ["403", "4*"] }
limit = 3
window = "5m"

[[rule]]
name = "distinct-uri"
why = "x"
match = { method = "*" }
distinct = "uri"
limit = 6
window = "5m"

[[rule]]
name = "distinct-label"
why = "x"
distinct = "label"
limit = 5
window = "5m"

[[rule]]
name = "distinct-header"
why = "x"
match = { action = "*" }
unless = { uri = "/health" }
distinct = "header.x-api-key"
limit = 3
window = "10m"

[[rule]]
name = "distinct-host"
why = "x"
match = { host = "*" }
distinct = "host"
limit = 4
window = "10m"

[[rule]]
name = "nothing-matches-this"
why = "x"
match = { uri = "*" }
unless = { action = "*" }
limit = 1
window = "1m"
"##;

pub(crate) fn policy(head: &str, rules: &str) -> Policy {
    Policy::parse(&format!("{head}\n{rules}")).unwrap()
}

/// So many records in a hundred minutes from [`NOON_MS`] on, a line each, in no order. The same seed gives the same lines.
pub(crate) fn records(seed: u64, count: usize) -> Vec<String> {
    let mut random = Random::seed_from_u64(seed);
    let mut lines: Vec<String> = (0..count).map(|_| record(&mut random).to_string()).collect();
    lines.extend((0..40).map(innocent));
    lines.extend(borderline());
    lines.extend((0..300).map(one_of_many));
    // Where the periods that are asked for begin, which is in them, and end, which is not.
    lines.extend([-1, 65, 180].map(|minute| asks("203.0.113.70", minute, "US")));
    lines.extend(odd_lines());
    lines
}

/// Somebody whose only request accuses nobody.
fn innocent(n: i64) -> String {
    asks(&format!("203.0.113.{}", 100 + n), n, "US")
}

/// `field-country` takes six in five minutes: one who reaches exactly that, from the first to the last of the minutes; one
/// who needs a minute more; and one who does one less.
fn borderline() -> Vec<String> {
    let clients: [(&str, &[i64]); 3] = [
        ("203.0.113.60", &[20, 20, 20, 20, 20, 24]),
        ("203.0.113.61", &[20, 20, 20, 20, 20, 25]),
        ("203.0.113.62", &[20, 20, 20, 20, 24]),
    ];
    let each = clients
        .iter()
        .flat_map(|(address, minutes)| minutes.iter().map(move |minute| (address, minute)));
    each.map(|(address, minute)| asks(address, *minute, "XX")).collect()
}

/// One of more clients in a minute than are sampled, each with a request.
fn one_of_many(n: i64) -> String {
    match n % 2 {
        0 => asks(&format!("198.18.{}.{}", n / 100, n % 100), 50, "US"),
        _ => asks(&format!("2001:db8:{n}::1"), 50, "FR"),
    }
}

/// A request that no rule but one about countries looks at.
fn asks(address: &str, minute: i64, country: &str) -> String {
    let hops = json!([{"name": "x-forwarded-for", "value": format!("{address},{address}")}]);
    json!({
        "timestamp": NOON_MS + minute * 60_000,
        "action": "ALLOW",
        "httpRequest": {"clientIp": address, "headers": hops, "uri": "/", "args": "a=1", "httpMethod": "GET", "country": country},
    })
    .to_string()
}

/// What is no record, or one that nobody can be held responsible for, and keys in an order of their own.
fn odd_lines() -> Vec<String> {
    let time = NOON_MS + 30_000;
    [
        r#"{"timestamp":"#.to_owned(),
        r#"{"no": "record"}"#.to_owned(),
        json!({"action": "ALLOW", "httpRequest": {"clientIp": "192.0.2.200", "uri": "/no-time"}}).to_string(),
        json!({"timestamp": time / 1000, "action": "ALLOW", "httpRequest": {"clientIp": "192.0.2.200"}}).to_string(),
        json!({"timestamp": time, "action": "ALLOW", "httpRequest": {"uri": "/nobody"}}).to_string(),
        json!({"timestamp": time, "action": "ALLOW", "httpRequest": {"clientIp": "somebody"}}).to_string(),
        // Nothing but what is needed.
        json!({"timestamp": time, "httpRequest": {"clientIp": "192.0.2.201"}}).to_string(),
        json!({"httpRequest": {"headers": null, "clientIp": "192.0.2.201"}, "labels": null, "timestamp": time}).to_string(),
        r#"{"httpRequest":{"clientIp":"192.0.2.201","headers":[],"uri":"\/escaped\/login","args":null},"labels":[],"timestamp":1793534430000,"action":"BLOCK","webaclId":"arn:aws:wafv2:eu-central-1:111122223333:regional\/webacl\/x\/y"}"#
            .to_owned(),
    ]
    .into()
}

const ADDRESSES: &[&str] = &[
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "198.51.100.7",
    "203.0.113.9",
    "10.1.2.3",
    "::ffff:192.0.2.1",
    "::FFFF:C000:0203",
    "2001:db8:0:1::5",
    "2001:DB8:0:1:0:0:0:6",
    "2001:0db8:0000:0001:ffff:ffff:ffff:ffff",
    "2001:db8:0:12::1",
    "2001:db8:0:1f::1",
    "2001:db8:ff00::1",
    "64:ff9b::192.0.2.5",
    "fe80::1%eth0",
    "::",
    " 192.0.2.4 ",
];

const HOPS: &[&str] = &[
    "192.0.2.1",
    " 192.0.2.1 ",
    "192.0.2.1:65535",
    "192.0.2.1:65536",
    "192.0.2.1:080",
    "192.0.2.1:",
    "192.0.2.01",
    "192.0.2.256",
    "\"[2001:db8:1:2:3::4]:80\"",
    "[2001:db8:1:2::1]",
    "[2001:db8:1:2::1%eth0]:443",
    "2001:db8:1:a::1",
    "[192.0.2.1]",
    "[2001:db8:1:2::1]garbage",
    "\"192.0.2.2\"",
    "\"\"192.0.2.2",
    "2001:db8:0:0:0:0:0:1:46532",
    "2001:db8:1:2:3:4:5:6:7",
    "2001:db8:1:2::1:+80",
    "2001:db8::1::2",
    "1:2:3:4:5:6:7::",
    "::1.2.3.4",
    "::ffff:192.0.2.3:443",
    "fe80::1%eth0",
    "unknown",
    "REDACTED",
    "",
    "\u{a0}192.0.2.1\u{3000}",
    "\t198.51.100.7\t",
    "192.0.2.1, 203.0.113.9",
    "127.0.0.1,198.51.100.7",
];

const URIS: &[&str] = &[
    "/",
    "/health",
    "/api/v1/login",
    "/API/v1/Login",
    "/api//login",
    "/api/login",
    "/.env",
    "/app/.ENV",
    "/.env.bak",
    "/sale/50%_OFF!now",
    "/sale/50x_off!",
    "/sale/50%%off!",
    "/quo'te\"\\path",
    "/quo''te\"\\path",
    "/ünïcode/größe",
    "/ÜNÏ",
    "/k",
    "/K",
    "/\u{212a}elvin",
    "REDACTED",
    "",
    "/new\nline\u{0}",
    "/日本語/🦀",
    "/*",
];

fn pick<'a>(random: &mut Random, from: &[&'a str]) -> &'a str {
    from[random.random_range(0..from.len())]
}

fn record(random: &mut Random) -> Value {
    let heavy = random.random_range(0..10) < 3;
    let address = if heavy { "192.0.2.1" } else { pick(random, ADDRESSES) };
    let mut record = json!({
        "timestamp": NOON_MS + random.random_range(0..100 * 60_000i64),
        "formatVersion": 1,
        "webaclId": "arn:aws:wafv2:eu-central-1:111122223333:regional/webacl/api/5d2f",
        "terminatingRuleId": pick(random, &["Default_Action", "rate-limit", "Rate", "my-palisade-ban", "ban'rule", "Ban'Rule", "x"]),
        "terminatingRuleType": "REGULAR",
        "action": pick(random, &["ALLOW", "ALLOW", "ALLOW", "allow", "BLOCK", "CAPTCHA", "CHALLENGE", "MONETIZE"]),
        "terminatingRuleMatchDetails": [],
        "httpSourceName": "ALB",
        "httpSourceId": "111122223333-app/api/1234",
        "ruleGroupList": [{"ruleGroupId": "AWS#AWSManagedRulesBotControlRuleSet", "terminatingRule": null, "nonTerminatingMatchingRules": [], "excludedRules": [{"exclusionType": "EXCLUDED_AS_COUNT", "ruleId": "x", "ruleMatchDetails": null}], "customerConfig": null}],
        "rateBasedRuleList": [{"rateBasedRuleId": "x", "limitKey": "IP", "limitValue": null, "maxRateAllowed": 100, "evaluationWindowSec": 300}],
        "nonTerminatingMatchingRules": [],
        "requestHeadersInserted": null,
        "responseCodeSent": null,
        "httpRequest": {
            "clientIp": address,
            "country": pick(random, &["DE", "de", "XX", "-", "", "US"]),
            "headers": headers(random),
            "uri": pick(random, URIS),
            "args": pick(random, &["", "a=1", "id=1' OR 1=1 -- ", "q=;DROP TABLE x", "REDACTED"]),
            "httpVersion": "HTTP/1.1",
            "httpMethod": pick(random, &["GET", "POST", "Post", "OPTIONS", "REDACTED"]),
            "requestId": "1-2-3",
        },
    });
    match random.random_range(0..5) {
        0 => record["responseCodeSent"] = json!(403),
        1 => record["responseCodeSent"] = json!("405"),
        _ => {}
    }
    match random.random_range(0..5) {
        0 => {
            record["labels"] =
                json!([{"name": "awswaf:managed:aws:bot-control:signal:x"}, {"name": "AWSWAF:managed:token:absent"}])
        }
        1 => record["labels"] = json!([{"name": "awswaf:managed:aws:bot-control:bot:verified"}]),
        2 => record["labels"] = json!([{"name": "awswaf:111122223333:webacl:api:palisade:banned"}, {"name": null}, {}]),
        3 => {
            record["labels"] = json!(
                (0..random.random_range(0..4))
                    .map(|n| json!({"name": format!("label:{n}")}))
                    .collect::<Vec<_>>()
            )
        }
        _ => {}
    }
    if random.random_range(0..2) == 0 {
        record["ja3Fingerprint"] = json!(pick(random, &["abcdef0123456789abcdef0123456789", "-", ""]));
        record["ja4Fingerprint"] = json!(pick(
            random,
            &["t13d1516h2_8daaf6152771_b186095e22b6", "T13D", "q13x", "-"]
        ));
    }
    if random.random_range(0..3) == 0 {
        record["httpRequest"]["host"] = json!(pick(
            random,
            &[
                "api.example.com",
                "münchen.example",
                "MÜNCHEN.example",
                "",
                "API.EXAMPLE.COM"
            ]
        ));
    }
    for absent in ["args", "uri", "httpMethod", "country", "headers"] {
        if random.random_range(0..25) == 0 {
            record["httpRequest"].as_object_mut().unwrap().remove(absent);
        }
    }
    for absent in ["action", "terminatingRuleId"] {
        if random.random_range(0..40) == 0 {
            record.as_object_mut().unwrap().remove(absent);
        }
    }
    record
}

fn headers(random: &mut Random) -> Value {
    if random.random_range(0..20) == 0 {
        return Value::Null;
    }
    let mut headers = Vec::new();
    let mut add = |random: &mut Random, names: &[&str], values: &[&str]| {
        headers.push(json!({"name": pick(random, names), "value": pick(random, values)}));
    };
    if random.random_range(0..2) == 0 {
        add(
            random,
            &["Host", "host", "HOST"],
            &["www.example.com", "example.org", "", "a.EXAMPLE.com"],
        );
    }
    for _ in 0..random.random_range(0..3) {
        add(
            random,
            &["User-Agent", "user-agent"],
            &["Mozilla/5.0", "curl/8", "Googlebot", "", "x'; --"],
        );
    }
    for _ in 0..random.random_range(0..3) {
        add(random, &["X-Api-Key", "x-api-key"], &["a", "A", "b", "REDACTED", ""]);
    }
    for _ in 0..random.random_range(0..2) {
        add(random, &["Accept"], &["*/*", "a,b", "text/html"]);
    }
    for _ in 0..random.random_range(0..4) {
        add(random, &["X-Forwarded-For", "x-forwarded-for"], HOPS);
    }
    if random.random_range(0..10) == 0 {
        headers.push(json!({"name": "X-Api-Key", "value": null}));
        headers.push(json!({"value": "nameless"}));
        headers.push(json!({"name": "\u{212a}", "value": "kelvin"}));
    }
    Value::Array(headers)
}
