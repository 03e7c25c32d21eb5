//! Makes plausible traffic: WAF log records of an API with ordinary clients and known attackers, as Firehose delivers them.
//!
//! The same seed gives the same bytes on every machine. All addresses are documentation addresses (RFC 5737, RFC 3849), so
//! that nobody's are in a demo, a test or a benchmark.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use chrono::{DateTime, Utc};
use flate2::Compression;
use flate2::write::GzEncoder;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// One request before it is a record; what is left at its default is that of an ordinary allowed request.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// Who connected.
    pub client: IpAddr,
    /// The method.
    pub method: &'static str,
    /// The path.
    pub uri: String,
    /// The query string.
    pub args: String,
    /// The User-Agent header.
    pub user_agent: String,
    /// The country of the connection.
    pub country: &'static str,
    /// The JA4 fingerprint.
    pub ja4: &'static str,
    /// What WAF did.
    pub action: &'static str,
    /// The rule that decided.
    pub waf_rule: &'static str,
    /// Label names.
    pub labels: Vec<&'static str>,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// One more header, of a name that a policy chose.
    pub forwarded: Option<(String, String)>,
}

impl Sent {
    /// An ordinary allowed `GET /`.
    pub fn new(timestamp_ms: i64, client: IpAddr) -> Sent {
        Sent {
            timestamp_ms,
            client,
            method: "GET",
            uri: "/".into(),
            args: String::new(),
            user_agent: USER_AGENTS[0].into(),
            country: "DE",
            ja4: "t13d1516h2_8daaf6152771_d8a2da3f94cd",
            action: "ALLOW",
            waf_rule: "Default_Action",
            labels: Vec::new(),
            headers: Vec::new(),
            forwarded: None,
        }
    }

    /// Writes it as AWS WAF does: one record, in WAF's order of fields, without a newline.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn write(&self, out: &mut impl Write, number: u64) -> io::Result<()> {
        let text = |text: &str| Value::from(text).to_string();
        write!(
            out,
            r#"{{"timestamp":{},"formatVersion":1,"webaclId":"arn:aws:wafv2:eu-central-1:111122223333:regional/webacl/api/3a2f8a4e-6f5e-4c43-9a55-5f3d6b5c0001","terminatingRuleId":{},"terminatingRuleType":"REGULAR","action":"{}","terminatingRuleMatchDetails":[],"httpSourceName":"ALB","httpSourceId":"111122223333-app/api/50dc6c495c0c9188","ruleGroupList":[{{"ruleGroupId":"AWS#AWSManagedRulesCommonRuleSet","terminatingRule":null,"nonTerminatingMatchingRules":[],"excludedRules":null,"customerConfig":null}}],"rateBasedRuleList":[],"nonTerminatingMatchingRules":[],"requestHeadersInserted":null,"responseCodeSent":null,"httpRequest":{{"clientIp":"{}","country":"{}","headers":[{{"name":"host","value":"api.example.com"}},{{"name":"user-agent","value":{}}},{{"name":"accept","value":"application/json, text/plain, */*"}},{{"name":"accept-encoding","value":"gzip, deflate, br"}},{{"name":"accept-language","value":"de-DE,de;q=0.9,en;q=0.8"}},{{"name":"authorization","value":"REDACTED"}}"#,
            self.timestamp_ms,
            text(self.waf_rule),
            self.action,
            self.client,
            self.country,
            text(&self.user_agent),
        )?;
        let forwarded = self.forwarded.iter().map(|(name, value)| (name.as_str(), value));
        let headers = self.headers.iter().map(|(name, value)| (*name, value));
        for (name, value) in headers.chain(forwarded) {
            write!(out, r#",{{"name":{},"value":{}}}"#, text(name), text(value))?;
        }
        write!(
            out,
            r#"],"uri":{},"args":{},"httpVersion":"HTTP/2.0","httpMethod":"{}","requestId":"1-{:08x}-{:024x}","fragment":"","scheme":"https","host":"api.example.com"}}"#,
            text(&self.uri),
            text(&self.args),
            self.method,
            self.timestamp_ms / 1000,
            number,
        )?;
        if !self.labels.is_empty() {
            let labels: Vec<Value> = self.labels.iter().map(|name| json!({ "name": name })).collect();
            write!(out, r#","labels":{}"#, Value::from(labels))?;
        }
        write!(out, r#","ja4Fingerprint":"{}"}}"#, self.ja4)
    }
}

/// What ordinary clients send.
const USER_AGENTS: [&str; 4] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "ExampleApp/5.2 (Android 16)",
];

/// A client of the demo whose story is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its address.
    pub client: IpAddr,
    /// What it does, for people.
    pub story: &'static str,
    /// Whether it deserves a ban.
    pub attacker: bool,
}

/// An hour of traffic.
#[derive(Debug, Clone)]
pub struct Hour {
    /// The requests, in the order of time.
    pub requests: Vec<Sent>,
    /// The clients with a story; everybody else is ordinary.
    pub known: Vec<Known>,
    /// How many clients are ordinary.
    pub ordinary: usize,
}

/// When the demo's hour begins: 2026-11-01T12:00:00Z.
pub const HOUR_BEGINS_MS: i64 = 1_793_534_400_000;

const MINUTE_MS: i64 = 60_000;

/// Makes the demo's hour.
pub fn hour(seed: u64) -> Hour {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut requests = Vec::new();

    // Ordinary people: they come at some minute, log in, look at a few things, and go.
    let ordinary = 1_200;
    for person in 0..ordinary {
        let client = if person % 5 == 0 {
            IpAddr::V6(Ipv6Addr::new(
                0x2001,
                0xdb8,
                0x10,
                person as u16,
                0,
                0,
                0,
                random.random_range(1..0xffff),
            ))
        } else {
            IpAddr::V4(Ipv4Addr::new(198, 51, 100, (person % 250) as u8 + 1))
        };
        // 250 addresses for 960 people: some share one, as people do.
        let country = ["DE", "DE", "AT", "CH", "FR", "US"][random.random_range(0..6)];
        let user_agent = USER_AGENTS[random.random_range(0..USER_AGENTS.len())];
        let begins = HOUR_BEGINS_MS + random.random_range(0..55 * MINUTE_MS);
        let pages = random.random_range(4..40);
        for page in 0..pages {
            let at = begins + page * random.random_range(2_000..9_000);
            let mut sent = Sent {
                user_agent: user_agent.into(),
                country,
                ..Sent::new(at, client)
            };
            if page == 1 {
                (sent.method, sent.uri) = ("POST", "/api/v1/login".into());
            } else {
                sent.uri = format!(
                    "/api/v1/{}/{}",
                    ["orders", "items", "profile", "search"][random.random_range(0..4)],
                    random.random_range(1..400)
                );
            }
            requests.push(sent);
        }
    }

    let mut known = Vec::new();
    let mut story = |client: &str, story: &'static str, attacker: bool| -> IpAddr {
        let client = client.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        known.push(Known {
            client,
            story,
            attacker,
        });
        client
    };
    let minute = |minute: i64| HOUR_BEGINS_MS + minute * MINUTE_MS;

    let client = story(
        "192.0.2.44",
        "tries passwords, and goes on as soon as its ban ends",
        true,
    );
    for n in 0..1_500 {
        let sent = Sent::new(minute(6) + n * 2_000, client);
        requests.push(Sent {
            method: "POST",
            uri: "/api/v1/login".into(),
            country: "NL",
            user_agent: "python-requests/2.32".into(),
            ..sent
        });
    }
    let client = story("192.0.2.61", "looks for secrets and backups", true);
    for (n, path) in [
        "/.env",
        "/.git/config",
        "/.aws/credentials",
        "/backup.zip",
        "/db.sql",
        "/.env.production",
        "/config/.env",
    ]
    .iter()
    .enumerate()
    {
        requests.push(Sent {
            uri: (*path).into(),
            country: "RO",
            ..Sent::new(minute(14) + n as i64 * 3_000, client)
        });
    }
    let client = story("192.0.2.77", "looks for WordPress and PHP on an API", true);
    for n in 0..40 {
        let path = [
            "/wp-login.php",
            "/xmlrpc.php",
            "/wp-admin/setup-config.php",
            "/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php",
            "/wp-content/plugins/x/x.php",
        ];
        requests.push(Sent {
            uri: path[n % path.len()].into(),
            country: "VN",
            ..Sent::new(minute(20) + n as i64 * 2_500, client)
        });
    }
    let client = story("192.0.2.90", "floods the search", true);
    for n in 0..9_000 {
        requests.push(Sent {
            uri: "/api/v1/search".into(),
            args: format!("q={n}"),
            country: "US",
            ..Sent::new(minute(30) + n * 45, client)
        });
    }
    let client = story("192.0.2.105", "injects SQL with a tool that says its name", true);
    for n in 0..60 {
        requests.push(Sent {
            uri: "/api/v1/items/1".into(),
            args: format!("id=1%27%20OR%20{n}%3D{n}--"),
            user_agent: "sqlmap/1.8.2#stable (https://sqlmap.org)".into(),
            action: "BLOCK",
            waf_rule: "AWS-AWSManagedRulesSQLiRuleSet",
            labels: vec!["awswaf:managed:aws:sql-database:SQLi_QueryArguments"],
            ..Sent::new(minute(25) + n * 1_500, client)
        });
    }
    let client = story("192.0.2.120", "walks into the trap", true);
    requests.push(Sent {
        uri: "/palisade-trap/".into(),
        user_agent: "SiteSnagger".into(),
        ..Sent::new(minute(40), client)
    });
    let network = story(
        "2001:db8:bad::1",
        "crawls everything, with another address of its /64 for each request",
        true,
    );
    for n in 0..900 {
        let IpAddr::V6(first) = network else { break };
        let client = IpAddr::V6(Ipv6Addr::from_bits(
            (first.to_bits() & !0xffff_ffff_ffff_ffff) | u128::from(random.random::<u64>()),
        ));
        requests.push(Sent {
            uri: format!("/api/v1/items/{n}"),
            country: "SE",
            ..Sent::new(minute(34) + n * 700, client)
        });
    }

    let office = story(
        "203.0.113.7",
        "an office behind one address: 40 logins in four minutes, among much else",
        false,
    );
    for n in 0..40 {
        requests.push(Sent {
            method: "POST",
            uri: "/api/v1/login".into(),
            ..Sent::new(minute(10) + n * 6_000, office)
        });
    }
    for n in 0..700 {
        requests.push(Sent {
            uri: format!("/api/v1/orders/{}", n % 90),
            ..Sent::new(minute(8) + n * 900, office)
        });
    }
    let monitor = story(
        "203.0.113.200",
        "the operator's own scanner, which the policy allows",
        false,
    );
    for n in 0..300 {
        let path = ["/health", "/.env", "/.git/config", "/actuator/env"][n as usize % 4];
        let at = minute(0) + n * 11_000;
        requests.push(Sent {
            uri: path.into(),
            user_agent: "our-scanner/1.0".into(),
            ..Sent::new(at, monitor)
        });
    }
    let liar = story(
        "192.0.2.130",
        "claims to be 127.0.0.1 in X-Forwarded-For and tries passwords",
        true,
    );
    for n in 0..80 {
        let headers = vec![("x-forwarded-for", "127.0.0.1".to_owned())];
        requests.push(Sent {
            method: "POST",
            uri: "/api/v1/login".into(),
            headers,
            ..Sent::new(minute(44) + n * 2_000, liar)
        });
    }

    requests.sort_by_key(|sent| sent.timestamp_ms);
    Hour {
        requests,
        known,
        ordinary,
    }
}

/// Writes `requests` below `folder` as Firehose does: gzip objects under hour prefixes, each a minute of traffic by time of
/// arrival, records on lines. Returns how many objects.
///
/// # Errors
/// When the folder cannot be written.
pub fn deliver(requests: &[Sent], folder: &Path, seed: u64) -> io::Result<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Records reach Firehose within seconds, so that an object holds the end of the minute before.
    let mut minutes: BTreeMap<i64, Vec<(u64, &Sent)>> = BTreeMap::new();
    for (number, sent) in requests.iter().enumerate() {
        let arrives_ms = sent.timestamp_ms + random.random_range(500..8_000);
        minutes
            .entry(arrives_ms.div_euclid(MINUTE_MS))
            .or_default()
            .push((number as u64, sent));
    }
    let objects = minutes.len();
    for (minute, sent) in minutes {
        let time = DateTime::<Utc>::from_timestamp_millis(minute * MINUTE_MS).unwrap_or_default();
        let object = folder.join(firehose_key("api", time, random.random()));
        fs::create_dir_all(object.parent().unwrap_or(folder))?;
        let mut out = io::BufWriter::new(fs::File::create(object)?);
        gzip(sent, &mut out)?;
        out.flush()?;
    }
    Ok(objects)
}

/// The key that Firehose gives an object which it began at `time`, below its prefix; `id` makes it one of its own.
pub fn firehose_key(stream: &str, time: DateTime<Utc>, id: u128) -> String {
    let (a, b, c, d, e) = (
        (id >> 96) as u32,
        (id >> 80) as u16,
        (id >> 64) as u16,
        (id >> 48) as u16,
        id & 0xffff_ffff_ffff,
    );
    format!(
        "{}/aws-waf-logs-{stream}-1-{}-{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}.gz",
        time.format("%Y/%m/%d/%H"),
        time.format("%Y-%m-%d-%H-%M-%S")
    )
}

/// The key that WAF gives an object which it delivers itself, below `AWSLogs/<account>/WAFLogs/<region>/<web_acl>/`.
pub fn direct_key(account: &str, region: &str, web_acl: &str, time: DateTime<Utc>, id: u128) -> String {
    let time = DateTime::<Utc>::from_timestamp(time.timestamp().div_euclid(300) * 300, 0).unwrap_or_default();
    format!(
        "{}/{account}_waflogs_{region}_{web_acl}_{}_{:08x}.log.gz",
        time.format("%Y/%m/%d/%H/%M"),
        time.format("%Y%m%dT%H%MZ"),
        id >> 96
    )
}

/// Writes numbered requests as records on lines, compressed as they are delivered.
///
/// # Errors
/// When `out` fails.
pub fn gzip<'a>(requests: impl IntoIterator<Item = (u64, &'a Sent)>, out: impl Write) -> io::Result<()> {
    let mut gz = GzEncoder::new(out, Compression::fast());
    for (number, sent) in requests {
        sent.write(&mut gz, number)?;
        gz.write_all(b"\n")?;
    }
    gz.finish().map(|_| ())
}
