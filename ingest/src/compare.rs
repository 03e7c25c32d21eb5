//! Compares the two readers of records, on records made to confuse them.
//!
//! Built only for tests, for the fuzz target and for the benchmark's long run (feature `compare`). [`Logs`] makes logs
//! from a seed: records as WAF writes them, with texts in them that a client would send to pass for something else, and with
//! up to four wounds each. [`disagreement`] reads anything with both readers.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::as_written::{self, Lists};
use crate::request::{Request, Wants};
use crate::scan::{Reader, Scan, scan_with};

/// What the reader for records as WAF writes them makes of a log, where the tolerant one makes something else of it.
pub fn disagreement(log: &[u8], wants: &Wants, buffer_bytes: usize) -> Option<String> {
    let fast = reading(Reader::Fast, log, wants, buffer_bytes);
    let tolerant = reading(Reader::Tolerant, log, wants, buffer_bytes);
    (fast != tolerant).then(|| {
        let words = |reader| {
            let mut words = Vec::new();
            let scan = scan_with(buffer_bytes, reader, log, wants, |request| {
                words.push(format!("{request:?}"))
            });
            format!("{}\n{scan:?}", words.join("\n"))
        };
        format!(
            "== log\n{}\n== as written\n{}\n== tolerantly\n{}\n",
            log.escape_ascii(),
            words(Reader::Fast),
            words(Reader::Tolerant)
        )
    })
}

/// On how many lines of a log a record as WAF writes it begins: a comparison of records that are always left to the tolerant
/// reader would show nothing.
pub fn read_as_written(log: &[u8]) -> usize {
    let mut lists = Lists::default();
    let lines = log.split(|byte| *byte == b'\n');
    lines
        .filter(|line| as_written::read(line, &Wants::everything(), &mut lists, &mut |_| ()).is_some())
        .count()
}

fn reading(reader: Reader, log: &[u8], wants: &Wants, buffer_bytes: usize) -> (u64, Scan) {
    let mut hasher = DefaultHasher::new();
    let scan = scan_with(buffer_bytes, reader, log, wants, |request| hash(request, &mut hasher));
    (hasher.finish(), scan)
}

fn hash(request: &Request<'_>, hasher: &mut DefaultHasher) {
    let Request {
        timestamp_ms,
        web_acl,
        action,
        waf_rule,
        client_ip,
        country,
        method,
        uri,
        args,
        host,
        headers,
        labels,
        ja3,
        ja4,
        response_code,
        request_id,
    } = request;
    (timestamp_ms, web_acl, action, waf_rule, client_ip, country, method, uri).hash(hasher);
    (args, host, labels, ja3, ja4, response_code, request_id, headers.len()).hash(hasher);
    headers
        .iter()
        .for_each(|header| (&header.name, &header.value).hash(hasher));
}

/// Makes logs without end; the same seed makes the same ones.
pub struct Logs {
    random: Random,
    log: Vec<u8>,
    record: Vec<u8>,
    /// A record as it was before its wounds.
    before: Vec<u8>,
}

impl Logs {
    /// The logs of a seed.
    pub fn new(seed: u64) -> Logs {
        Logs {
            random: Random(seed),
            log: Vec::new(),
            record: Vec::new(),
            before: Vec::new(),
        }
    }

    /// The next log, with so many records.
    pub fn next_log(&mut self, records: usize) -> &[u8] {
        self.log.clear();
        for _ in 0..records {
            self.record.clear();
            record(&mut self.random, &mut self.record);
            // Real records begin like the one before them, and the reader makes use of that.
            let http = |record: &[u8]| memchr::memmem::find(record, b"\"httpRequest\":");
            if self.random.one_in(2)
                && let (Some(old), Some(new)) = (http(&self.before), http(&self.record))
            {
                self.record.splice(..new, self.before[..old].iter().copied());
            }
            self.before.clone_from(&self.record);
            // Most are left as they are: what is damaged is the tolerant reader's anyway.
            for _ in 0..[0, 0, 0, 0, 1, 1, 2, 4][self.random.below(8)] {
                wound(&mut self.random, &mut self.record);
            }
            self.log.extend_from_slice(&self.record);
            let between = self.random.of(&["\n", "\n", "\n", "\n", "", "\r\n", ",\n", " "]);
            self.log.extend_from_slice(between.as_bytes());
        }
        &self.log
    }

    /// What is wanted of the next log.
    pub fn wants(&mut self) -> Wants {
        match self.random.below(4) {
            0 => Wants::everything(),
            1 => Wants::nothing(),
            2 => Wants::nothing().and_header("user-agent").and_labels(),
            _ => Wants::nothing().and_header("Host").and_header("x"),
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (((self.next() >> 32) * end as u64) >> 32) as usize
    }

    fn of<'t>(&mut self, all: &[&'t str]) -> &'t str {
        all[self.below(all.len())]
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// Strings that no writer of JSON would write.
const BROKEN_TEXTS: [&str; 7] = [
    r"\ud83d\ude00",
    r"\ud83d",
    r"\ude00\ud83d",
    r"\u00",
    r"\u+041",
    r"\x41",
    r"\",
];

/// Strings as they stand in a record: what clients send, escaped.
const TEXTS: [&str; 33] = [
    "",
    "/",
    "/login",
    "x",
    "host",
    "Host",
    "user-agent",
    "-",
    "null",
    "REDACTED",
    r#"\"Chromium\";v=\"141\""#,
    r#"\",\"uri\":\"/evil"#,
    r#"\"}],\"uri\":\"/evil\",\"x\":[{\""#,
    r#"],\"clientIp\":\"203.0.113.66\",\"a\":[\""#,
    r"\\",
    r"\\\\",
    r#"\\\""#,
    r#"a\\\\\"b"#,
    r"\/a\/b",
    r"\b\f\n\r\t",
    r"\u0041\u00e9",
    r"\u0022,\u0022uri\u0022:\u0022",
    "größe",
    "\u{1f600}",
    "\u{7f}",
    "{\\\"timestamp\\\":1793534400000}",
    "}{",
    "[{",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36",
    "0123456789abcdef0123456789abcdef0123456789abcdef",
    "'\u{201c}",
    "a b\\tc",
    "::1%eth0",
];

/// Addresses, and what is none.
const ADDRESSES: [&str; 16] = [
    "192.0.2.44",
    "198.51.100.7",
    "203.0.113.255",
    "2001:db8::1",
    "2001:DB8:0:0:0:0:0:1",
    "::ffff:192.0.2.1",
    "::",
    "1.2.3.256",
    "01.2.3.4",
    "1.2.3",
    "1.2.3.4.5",
    " 192.0.2.1",
    "fe80::1%eth0",
    "0.0.0.0",
    "1..2.3",
    "",
];

/// Values of any type, some of which are no JSON.
const VALUES: [&str; 24] = [
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "01",
    "1.5",
    "1e3",
    "-",
    "200",
    "70000",
    "1793534400000",
    "1793534400",
    "99999999999999999999",
    "\"x\"",
    "\"1793534400000\"",
    "[]",
    "{}",
    "[1,[2,{\"a\":null}]]",
    "{\"name\":\"x\"}",
    "nul",
    "[{\"name\":\"host\",\"value\":1}]",
    "{\"a\":1,}",
];

/// What wounds put between other bytes.
const SHRAPNEL: [&str; 40] = [
    "\"",
    "\\",
    "\\\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    " ",
    "\n",
    "\t",
    "\r\n",
    "\u{0}",
    "\u{1f}",
    "é",
    "null",
    "0",
    "\\u0061",
    "\"uri\":\"/two\",",
    ",\"uri\":\"/two\"",
    "\"clientIp\":\"203.0.113.9\",",
    "\"headers\":[],",
    ",\"headers\":[{\"name\":\"host\",\"value\":\"b\"}]",
    "\"timestamp\":1793534400001,",
    ",\"action\":\"BLOCK\"",
    ",\"labels\":[]",
    "{\"name\":\"host\",\"value\":\"h\"},",
    ",{\"value\":\"v\",\"name\":\"n\"}",
    ",{\"name\":\"n\",\"value\":\"v\",\"x\":1}",
    "\"message\":\"{}\",",
    ",\"events\":[]",
    "\"x\":{},",
    ",\"a\\u0063tion\":\"X\"",
    ",\"httpRequest\":{}",
    ",\"httpRequest\":null",
    "\"ruleGroupId\":\"a\",",
    "],\"uri\":\"",
    "\"}],\"uri\":\"/",
    "}\n{\"timestamp\":1",
];

fn push(out: &mut Vec<u8>, parts: &[&str]) {
    parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
}

/// A text from the list, or two of them.
fn text(random: &mut Random, out: &mut Vec<u8>) {
    push(out, &["\"", random.of(&TEXTS)]);
    if random.one_in(6) {
        push(out, &[random.of(&TEXTS)]);
    }
    if random.one_in(60) {
        push(out, &[random.of(&BROKEN_TEXTS)]);
    }
    push(out, &["\""]);
}

/// A text that is what it should be, mostly.
fn plain(random: &mut Random, usual: &[&str], out: &mut Vec<u8>) {
    if random.one_in(80) {
        push(out, &[random.of(&VALUES)]);
    } else if random.one_in(12) {
        text(random, out);
    } else {
        push(out, &["\"", random.of(usual), "\""]);
    }
}

/// Writes a record: nearly always what WAF could write, with texts that a client could send.
fn record(random: &mut Random, out: &mut Vec<u8>) {
    let mut order: [usize; 14] = std::array::from_fn(|at| at);
    if random.one_in(8) {
        order.swap(random.below(14), random.below(14));
    }
    if random.one_in(40) {
        order[random.below(14)] = random.below(14);
    }
    let mut between = "{";
    for key in order {
        if key != 0 && key != 9 && random.one_in(5) {
            continue;
        }
        push(out, &[between]);
        between = ",";
        match key {
            0 => {
                push(out, &["\"timestamp\":"]);
                if random.one_in(40) {
                    push(out, &[random.of(&VALUES)]);
                } else {
                    push(out, &["17935344000", random.of(&["00", "17", "99"])]);
                }
            }
            1 => {
                push(out, &["\"formatVersion\":1,\"webaclId\":"]);
                plain(
                    random,
                    &[
                        "arn:aws:wafv2:eu-central-1:111122223333:regional/webacl/api/3a2f8a4e",
                        "a",
                    ],
                    out,
                );
            }
            2 => {
                push(out, &["\"terminatingRuleId\":"]);
                plain(random, &["Default_Action", "rate-limit"], out);
            }
            3 => push(out, &["\"terminatingRuleType\":\"REGULAR\""]),
            4 => {
                push(out, &["\"action\":"]);
                plain(random, &["ALLOW", "BLOCK", "CAPTCHA"], out);
            }
            5 => {
                push(out, &["\"terminatingRuleMatchDetails\":["]);
                if random.one_in(3) {
                    push(
                        out,
                        &["{\"conditionType\":\"XSS\",\"location\":\"HEADER\",\"matchedData\":["],
                    );
                    text(random, out);
                    push(out, &[","]);
                    text(random, out);
                    push(out, &["]}"]);
                }
                push(out, &["]"]);
            }
            6 => {
                push(out, &["\"ruleGroupList\":["]);
                for at in 0..random.below(3) {
                    push(out, &[["", ",", ","][at], "{\"ruleGroupId\":"]);
                    text(random, out);
                    push(out, &[",\"terminatingRule\":"]);
                    push(
                        out,
                        &[random.of(&[
                            "null",
                            "null",
                            "{\"ruleId\":\"x\",\"action\":\"BLOCK\",\"ruleMatchDetails\":null}",
                        ])],
                    );
                    push(out, &[",\"nonTerminatingMatchingRules\":[],\"excludedRules\":null"]);
                    push(
                        out,
                        &[
                            random.of(&["", ",\"customerConfig\":null", ",\"customerConfig\":{}"]),
                            "}",
                        ],
                    );
                }
                push(out, &["]"]);
            }
            7 => {
                rate_rules(random, out);
                push(
                    out,
                    &[
                        ",\"nonTerminatingMatchingRules\":",
                        random.of(&["[]", "[]", "[]", "null"]),
                    ],
                );
            }
            8 => push(
                out,
                &["\"responseCodeSent\":", random.of(&["null", "null", "302", "405"])],
            ),
            9 => http(random, out),
            10 => {
                push(out, &["\"labels\":["]);
                for at in 0..random.below(3) {
                    push(out, &[["", ",", ","][at], "{\"name\":"]);
                    text(random, out);
                    push(out, &["}"]);
                }
                push(out, &["]"]);
            }
            11 => {
                push(out, &["\"ja3Fingerprint\":"]);
                plain(random, &["6f7889b9fb1a62a9577e685c1fcfa919", "-", ""], out);
            }
            12 => {
                push(out, &["\"ja4Fingerprint\":"]);
                plain(random, &["t13d1717h2_5b57614c22b0_3cbfd9057e0d"], out);
            }
            _ => {
                let key = ["oversizeFields", "requestBodySize", "act", "Action", "uri", "clientIp"];
                let key = if random.one_in(30) { "message" } else { random.of(&key) };
                let value = if random.one_in(6) {
                    random.of(&VALUES)
                } else {
                    random.of(&["413", "[\"REQUEST_BODY\"]"])
                };
                push(out, &["\"", key, "\":", value]);
            }
        }
    }
    push(out, &["}"]);
}

fn rate_rules(random: &mut Random, out: &mut Vec<u8>) {
    push(out, &["\"rateBasedRuleList\":["]);
    for at in 0..[0, 1, 1, 1, 2][random.below(5)] {
        push(out, &[["", ","][at], "{\"rateBasedRuleId\":\"arn:aws:wafv2:x\","]);
        push(
            out,
            &[
                random.of(&["\"rateBasedRuleName\":\"rate-limit\",", ""]),
                "\"limitKey\":",
            ],
        );
        plain(random, &["IP", "CUSTOMKEYS"], out);
        push(
            out,
            &[
                ",\"maxRateAllowed\":",
                random.of(&["2000", "2000", "2000", "1.5", "\"2000\""]),
            ],
        );
        push(
            out,
            &[random.of(&["", ",\"evaluationWindowSec\":300", ",\"evaluationWindowSec\":\"120\""])],
        );
        if !random.one_in(4) {
            push(out, &[",\"limitValue\":"]);
            plain(random, &["192.0.2.44", "198.51.100.7", "2001:db8::1"], out);
        }
        push(out, &[random.of(&["", "", ",\"customValues\":[]"]), "}"]);
    }
    push(out, &["]"]);
}

fn http(random: &mut Random, out: &mut Vec<u8>) {
    let mut order: [usize; 9] = std::array::from_fn(|at| at);
    if random.one_in(8) {
        order.swap(random.below(9), random.below(9));
    }
    push(out, &["\"httpRequest\":"]);
    let mut between = "{";
    for key in order {
        if key != 0 && random.one_in(5) {
            continue;
        }
        push(out, &[between]);
        between = ",";
        match key {
            0 => {
                let address = if random.one_in(20) {
                    random.of(&ADDRESSES)
                } else {
                    random.of(&ADDRESSES[..4])
                };
                push(out, &["\"clientIp\":\"", address, "\""]);
            }
            1 => {
                push(out, &["\"country\":"]);
                plain(random, &["DE", "US", "-"], out);
            }
            2 => {
                push(out, &["\"headers\":["]);
                for at in 0..random.below(5) {
                    push(out, &[if at == 0 { "" } else { "," }, "{\"name\":"]);
                    plain(
                        random,
                        &["host", "Host", "user-agent", "User-Agent", "cookie", "x"],
                        out,
                    );
                    push(out, &[",\"value\":"]);
                    text(random, out);
                    push(out, &["}"]);
                }
                push(out, &["]"]);
            }
            3 => {
                push(out, &["\"uri\":"]);
                text(random, out);
            }
            4 => {
                push(out, &["\"args\":"]);
                text(random, out);
            }
            5 => {
                push(out, &["\"httpVersion\":\"HTTP/2.0\",\"httpMethod\":"]);
                plain(random, &["GET", "POST"], out);
            }
            6 => {
                push(out, &["\"requestId\":"]);
                plain(random, &["1-6ae729c0-1e73cc3bade632177a494328", "null"], out);
            }
            7 => push(out, &["\"fragment\":\"\",\"scheme\":\"https\""]),
            _ => {
                push(out, &["\"host\":"]);
                plain(random, &["api.example.com", ""], out);
            }
        }
    }
    push(out, &["}"]);
}

/// Damages a record somewhere.
fn wound(random: &mut Random, record: &mut Vec<u8>) {
    if record.is_empty() {
        return;
    }
    let mut at = random.below(record.len());
    // Where something begins or ends it hurts most.
    if random.one_in(2) {
        at = (at..record.len())
            .find(|at| matches!(record[*at], b'"' | b',' | b':' | b'{' | b'}' | b'[' | b']'))
            .unwrap_or(at);
        at += random.below(2);
    }
    let at = at.min(record.len() - 1);
    let length = [1, 2, 8, 40][random.below(4)].min(record.len() - at);
    match random.below(8) {
        0 => record[at] = random.next() as u8,
        1 | 2 => {
            let shrapnel = random.of(&SHRAPNEL);
            record.splice(at..at, shrapnel.bytes());
        }
        3 => {
            record.drain(at..at + length);
        }
        4 => {
            let copied = record[at..at + length].to_vec();
            let to = random.below(record.len());
            record.splice(to..to, copied);
        }
        5 => record.truncate(at),
        6 => {
            let value = random.of(&VALUES);
            let end = (at..record.len())
                .find(|at| matches!(record[*at], b',' | b'}'))
                .unwrap_or(record.len());
            record.splice(at..end, value.bytes());
        }
        _ => {
            let byte = [0x80, 0xc3, 0xff, 0x1f, 0x7f, b'\\'][random.below(6)];
            record.insert(at, byte);
        }
    }
}
