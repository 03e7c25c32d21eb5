//! Makes the data: WAF records as browsers and programs behind an application load balancer cause them.
//!
//! A record has 2.4 KB, as real ones of web sites do: a dozen headers with client hints (quotes in strings, so escapes),
//! a cookie, three managed rule groups, a rate-based rule that names the client, and labels. The same arguments give the
//! same bytes. All addresses are of the benchmarking range (RFC 2544) and of documentation ranges.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

/// When the first record was logged: 2026-11-01T12:00:00Z.
pub(crate) const BEGINS_MS: u64 = 1_793_534_400_000;

/// What to make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// How many records.
    pub(crate) records: u64,
    /// From how many clients; a few of them send most.
    pub(crate) clients: u64,
    /// Over how many minutes.
    pub(crate) minutes: u64,
}

/// A generator of numbers that looks random and needs no crate: SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Writes the records on lines.
///
/// # Errors
/// When `out` fails.
pub(crate) fn write(plan: Plan, out: &mut impl Write) -> io::Result<()> {
    let mut random = Random(0x7061_6c69_7361_6465);
    let mut line = Vec::with_capacity(4096);
    for number in 0..plan.records {
        line.clear();
        record(plan, number, &mut random, &mut line)?;
        line.push(b'\n');
        out.write_all(&line)?;
    }
    Ok(())
}

/// Writes the records into `objects` gzip files below `folder`, each its part of the time, as Firehose would.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write_objects(plan: Plan, objects: u64, folder: &Path) -> io::Result<()> {
    let mut random = Random(0x7061_6c69_7361_6465);
    let mut line = Vec::with_capacity(4096);
    for object in 0..objects {
        let path = folder.join(format!("part-{object:04}.gz"));
        let mut gz = GzEncoder::new(BufWriter::new(File::create(path)?), Compression::new(6));
        for number in plan.records * object / objects..plan.records * (object + 1) / objects {
            line.clear();
            record(plan, number, &mut random, &mut line)?;
            line.push(b'\n');
            gz.write_all(&line)?;
        }
        gz.finish()?.flush()?;
    }
    Ok(())
}

const CHROME: &str =
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36";
const HINTS: &str = r#"\"Google Chrome\";v=\"141\", \"Not?A_Brand\";v=\"8\", \"Chromium\";v=\"141\""#;

fn record(plan: Plan, number: u64, random: &mut Random, out: &mut Vec<u8>) -> io::Result<()> {
    let time = BEGINS_MS + number * plan.minutes * 60_000 / plan.records.max(1) + random.below(900);
    // Every client is somebody, and the low numbers are the busy ones.
    let (a, b) = (random.below(plan.clients), random.below(plan.clients));
    let who = if random.below(4) == 0 {
        a
    } else {
        a.min(b) * a.min(b) / plan.clients
    };
    let program = who % 4 == 3;
    let ip: IpAddr = if who % 5 == 4 {
        Ipv6Addr::new(
            0x2001,
            0xdb8,
            (who >> 16) as u16,
            who as u16,
            0,
            0,
            0,
            1 + random.below(200) as u16,
        )
        .into()
    } else {
        Ipv4Addr::new(198, 18 + (who >> 16) as u8 % 2, (who >> 8) as u8, who as u8).into()
    };
    let country = random.of(&["DE", "DE", "US", "FR", "AT", "GB", "CH", "NL"]);
    let (action, rule, group_rule) = match random.below(50) {
        0 => ("BLOCK", "AWS-AWSManagedRulesCommonRuleSet", true),
        1 => ("BLOCK", "rate-limit", false),
        2 => ("CHALLENGE", "challenge-login", false),
        _ => ("ALLOW", "Default_Action", false),
    };
    let (method, uri) = match random.below(20) {
        0 => ("POST", "/api/v1/login".to_owned()),
        1 => ("GET", format!("/static/js/{}.a78e6cdc.chunk.js", random.below(60))),
        2 => ("OPTIONS", "/api/v1/orders".to_owned()),
        3..=5 => ("GET", "/api/v1/search".to_owned()),
        6 => ("POST", format!("/api/v1/orders/{}/items", random.below(9_000))),
        7 if random.below(400) == 0 => (
            "GET",
            random
                .of(&["/.env", "/wp-login.php", "/.git/config", "/static/../../etc/passwd"])
                .to_owned(),
        ),
        _ => ("GET", format!("/api/v1/items/{}", random.below(4_000))),
    };
    let args = match random.below(3) {
        0 => format!(
            "q={}&page={}&sort=price",
            random.of(&["shoes", "red+hat", "caf%C3%A9", "a%20b"]),
            random.below(30)
        ),
        1 => "lang=de".to_owned(),
        _ => String::new(),
    };
    write!(
        out,
        r#"{{"timestamp":{time},"formatVersion":1,"webaclId":"arn:aws:wafv2:eu-central-1:111122223333:regional/webacl/api/3a2f8a4e-6f5e-4c43-9a55-5f3d6b5c0001","terminatingRuleId":"{rule}","terminatingRuleType":"{}","action":"{action}","terminatingRuleMatchDetails":[],"httpSourceName":"ALB","httpSourceId":"111122223333-app/api/50dc6c495c0c9188","ruleGroupList":["#,
        if group_rule { "MANAGED_RULE_GROUP" } else { "REGULAR" },
    )?;
    for (at, group) in ["AmazonIpReputationList", "KnownBadInputsRuleSet", "CommonRuleSet"]
        .into_iter()
        .enumerate()
    {
        let comma = if at == 0 { "" } else { "," };
        let terminating = if group_rule && at == 2 {
            r#"{"ruleId":"SizeRestrictions_QUERYSTRING","action":"BLOCK","ruleMatchDetails":null}"#
        } else {
            "null"
        };
        write!(
            out,
            r#"{comma}{{"ruleGroupId":"AWS#AWSManagedRules{group}","terminatingRule":{terminating},"nonTerminatingMatchingRules":[],"excludedRules":null,"customerConfig":null}}"#
        )?;
    }
    write!(
        out,
        r#"],"rateBasedRuleList":[{{"rateBasedRuleId":"arn:aws:wafv2:eu-central-1:111122223333_MANAGED:regional/ipset/3a2f8a4e-6f5e-4c43-9a55-5f3d6b5c0001_77ce5c35-14fa-4731-9710-86216d568f12_IPV4/77ce5c35-14fa-4731-9710-86216d568f12","rateBasedRuleName":"rate-limit","limitKey":"IP","maxRateAllowed":2000,"evaluationWindowSec":300,"limitValue":"{ip}"}}],"nonTerminatingMatchingRules":[],"requestHeadersInserted":null,"responseCodeSent":null,"httpRequest":{{"clientIp":"{ip}","country":"{country}","headers":[{{"name":"host","value":"api.example.com"}}"#
    )?;
    let version = ["141", "140", "139", "138", "136"][(who % 9 % 5) as usize];
    if program {
        write!(
            out,
            r#",{{"name":"user-agent","value":"ExampleApp/5.{} (Android 16)"}},{{"name":"accept","value":"application/json"}},{{"name":"accept-encoding","value":"gzip"}},{{"name":"authorization","value":"REDACTED"}}"#,
            random.below(4)
        )?;
    } else {
        write!(
            out,
            r#",{{"name":"content-length","value":"{}"}},{{"name":"sec-ch-ua-platform","value":"\"Windows\""}},{{"name":"user-agent","value":"{}"}},{{"name":"accept","value":"application/json, text/plain, */*"}},{{"name":"sec-ch-ua","value":"{}"}},{{"name":"sec-ch-ua-mobile","value":"?0"}},{{"name":"sec-fetch-site","value":"same-site"}},{{"name":"sec-fetch-mode","value":"cors"}},{{"name":"sec-fetch-dest","value":"empty"}},{{"name":"referer","value":"https://www.example.com/"}},{{"name":"accept-encoding","value":"gzip, deflate, br, zstd"}},{{"name":"accept-language","value":"de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7"}},{{"name":"cookie","value":"session={:016x}{:016x}; _ga=GA1.1.{}.1793{:06}"}},{{"name":"x-amzn-trace-id","value":"Root=1-{:08x}-{:016x}{:08x}"}}"#,
            random.below(900),
            CHROME.replace("141", version),
            HINTS.replace("141", version),
            // A session lasts.
            Random(who).next(),
            Random(!who).next(),
            Random(who ^ 7).next() as u32,
            random.below(1_000_000),
            time / 1000,
            random.next(),
            random.next() as u32,
        )?;
    }
    write!(
        out,
        r#"],"uri":"{uri}","args":"{args}","httpVersion":"HTTP/2.0","httpMethod":"{method}","requestId":"1-{:08x}-{:016x}{:08x}","fragment":"","scheme":"https","host":"api.example.com"}}"#,
        time / 1000,
        random.next(),
        random.next() as u32,
    )?;
    write!(
        out,
        r#","labels":[{{"name":"awswaf:clientip:geo:country:{country}"}},{{"name":"awswaf:clientip:geo:region:{country}-BE"}}"#
    )?;
    if group_rule {
        write!(
            out,
            r#",{{"name":"awswaf:managed:aws:core-rule-set:SizeRestrictions_QueryString"}}"#
        )?;
    }
    write!(
        out,
        r#"],"ja3Fingerprint":"{}","ja4Fingerprint":"{}"}}"#,
        if program {
            "2bab0327a296230f9f6427341e716ea0"
        } else {
            "6f7889b9fb1a62a9577e685c1fcfa919"
        },
        if program {
            "t13d1717h2_5b57614c22b0_3cbfd9057e0d"
        } else {
            "t13d1516h2_8daaf6152771_d8a2da3f94cd"
        },
    )
}
