//! Reads one record as AWS WAF writes it, at a few gigabytes a second.
//!
//! WAF's records have no white space, known keys, integers without signs, and headers and labels of one form. This reader
//! expects exactly that and verifies it as it goes: every byte is checked, nothing is skipped on trust. Whatever is
//! different in any way (another order is not different) makes it give up, and the tolerant reader in `record` takes the
//! same bytes from the beginning. So it may refuse whatever it likes, but must never read anything else than the tolerant
//! reader would: `tests` and the fuzz target compare the two on records made to confuse them.
//!
//! What a client sends cannot pass for a key: keys are looked for only where a key is due, which is never inside a string.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::str;

use memchr::{memchr, memchr_iter};
use wide::i8x16;

use crate::record::{TIMESTAMP_MS_MAX, TIMESTAMP_MS_MIN};
use crate::request::{Header, Request, Wants};

/// A longer record is left to the tolerant reader, which knows the limits.
const LENGTH_MAX: usize = 1024 * 1024;

/// Deeper values are left to the tolerant reader, which knows the limits. WAF's have five levels.
const DEPTH_MAX: u32 = 16;

/// What one record leaves to the next: memory, and what is likely to come again.
#[derive(Default)]
pub(crate) struct Lists {
    headers: Vec<Header<'static>>,
    labels: Vec<Cow<'static, str>>,
    found: Found,
    openings: [Opening; OPENINGS],
    /// Which opening is replaced next.
    oldest: usize,
}

/// Records of one web ACL begin alike but for their times: the same rule groups, mostly the same action.
const OPENINGS: usize = 4;

/// Longer openings are not kept.
const OPENING_BYTES_MAX: usize = 16 * 1024;

/// What stood between a record's time and the value of its first rate-based rule, or its list of those rules. Where the same
/// bytes stand there again, they mean the same, and they were checked.
#[derive(Default)]
struct Opening {
    text: Vec<u8>,
    /// What a request takes from it; empty where it has none.
    web_acl: String,
    waf_rule: String,
    action: String,
    /// It ends within the first rate-based rule, behind the opening quote of its last value.
    in_rate_rule: bool,
}

/// How many header lines are kept, each in the place that some bytes of its name and value give.
const HEADERS_KEPT: usize = 256;

/// Longer headers are not kept.
const HEADER_BYTES_MAX: usize = 512;

/// A header as it was met last. Where the same bytes stand again, they mean the same.
#[derive(Default)]
struct KnownHeader {
    text: Vec<u8>,
    name: Text,
    value: Text,
    is_host: bool,
    is_wanted: bool,
}

/// Lends the record at the front of these bytes to `each`. Gives its length, or `None` if it is to be read tolerantly.
pub(crate) fn read(
    bytes: &[u8],
    wants: &Wants,
    lists: &mut Lists,
    each: &mut impl FnMut(&Request<'_>),
) -> Option<usize> {
    let found = &mut lists.found;
    found.clear();
    let mut cursor = Cursor {
        bytes: &bytes[..bytes.len().min(LENGTH_MAX)],
        at: 0,
    };
    cursor.record(wants, found, &lists.openings)?;
    let length = cursor.at;
    let client_ip = found.client_ip?;
    if !(TIMESTAMP_MS_MIN..TIMESTAMP_MS_MAX).contains(&found.timestamp_ms) {
        return None;
    }
    let record = Checked::new(&bytes[..length], found.headers_end)?;
    if let Some(part) = &found.opening {
        lists.openings[lists.oldest].keep(&record, part, found)?;
        lists.oldest = (lists.oldest + 1) % OPENINGS;
    }
    let known = found.known_opening.map(|known| &lists.openings[known]);
    // What is not from a known opening came behind it, and of two keys the last one counts.
    let kept = |text: Text, of: fn(&Opening) -> &str| match known {
        Some(opening) if text.is_none() => Some(Cow::Borrowed(of(opening))),
        _ => record.text(text),
    };
    let host = match record.text(found.host)? {
        host if host.is_empty() => record.text(found.host_header)?,
        host => host,
    };
    let mut headers: Vec<Header<'_>> = std::mem::take(&mut lists.headers);
    for (name, value) in &found.headers {
        headers.push(Header {
            name: record.text(*name)?,
            value: record.text(*value)?,
        });
    }
    let mut labels: Vec<Cow<'_, str>> = std::mem::take(&mut lists.labels);
    for label in &found.labels {
        labels.push(record.text(*label)?);
    }
    let request = Request {
        timestamp_ms: found.timestamp_ms,
        web_acl: kept(found.web_acl, |opening| &opening.web_acl)?,
        action: kept(found.action, |opening| &opening.action)?,
        waf_rule: kept(found.waf_rule, |opening| &opening.waf_rule)?,
        client_ip,
        country: something(record.text(found.country)?, "-"),
        method: record.text(found.method)?,
        uri: record.text(found.uri)?,
        args: record.text(found.args)?,
        host: something(host, ""),
        headers,
        labels,
        ja3: something(record.text(found.ja3)?, "-"),
        ja4: something(record.text(found.ja4)?, "-"),
        response_code: found.response_code,
        request_id: something(record.text(found.request_id)?, "null"),
    };
    each(&request);
    (lists.headers, lists.labels) = (emptied(request.headers), emptied(request.labels));
    Some(length)
}

/// Where a string is, without its quotes. The default is no string.
#[derive(Clone, Copy, Default)]
struct Text {
    begins: u32,
    ends: u32,
    has_escapes: bool,
}

impl Text {
    #[inline(always)]
    fn is_none(self) -> bool {
        self.ends == 0
    }

    /// The same string where what it is in begins later by so much; no string stays none.
    #[inline(always)]
    fn moved(self, by: usize) -> Text {
        if self.is_none() {
            return self;
        }
        Text {
            begins: self.begins + by as u32,
            ends: self.ends + by as u32,
            ..self
        }
    }

    /// The same string as seen from `from`, which is not behind it.
    fn seen_from(self, from: usize) -> Text {
        if self.is_none() {
            return self;
        }
        Text {
            begins: self.begins - from as u32,
            ends: self.ends - from as u32,
            ..self
        }
    }
}

impl Opening {
    /// Keeps a part of a record that has been checked.
    #[inline(never)]
    fn keep(&mut self, record: &Checked<'_>, part: &Range<usize>, found: &Found) -> Option<()> {
        let text = &record.record[part.clone()];
        if text.len() > OPENING_BYTES_MAX {
            return Some(());
        }
        let [web_acl, waf_rule, action] = found.opening_texts;
        self.web_acl = record.text(web_acl)?.into_owned();
        self.waf_rule = record.text(waf_rule)?.into_owned();
        self.action = record.text(action)?.into_owned();
        self.text.clear();
        self.text.extend_from_slice(text);
        self.in_rate_rule = found.opening_in_rate_rule;
        Some(())
    }
}

/// What was found in a record.
#[derive(Default)]
struct Found {
    /// A bit for each key that was met.
    seen: u32,
    timestamp_ms: i64,
    web_acl: Text,
    action: Text,
    waf_rule: Text,
    ja3: Text,
    ja4: Text,
    response_code: Option<u16>,
    labels: Vec<Text>,
    client_ip: Option<IpAddr>,
    country: Text,
    method: Text,
    uri: Text,
    args: Text,
    host: Text,
    request_id: Text,
    headers: Vec<(Text, Text)>,
    /// The first `Host` header's value.
    host_header: Text,
    /// Where the headers end; most texts are behind them.
    headers_end: usize,
    /// An opening that is not known yet, with the web ACL, rule and action in it, for they may come later too, and whether it
    /// ends in a rate-based rule.
    opening: Option<Range<usize>>,
    opening_texts: [Text; 3],
    opening_in_rate_rule: bool,
    /// Which of the known openings it is.
    known_opening: Option<usize>,
    /// Headers by some of their bytes.
    known_headers: Vec<KnownHeader>,
}

impl Found {
    fn clear(&mut self) {
        let (mut labels, mut headers) = (std::mem::take(&mut self.labels), std::mem::take(&mut self.headers));
        labels.clear();
        headers.clear();
        let known_headers = std::mem::take(&mut self.known_headers);
        *self = Found {
            labels,
            headers,
            known_headers,
            ..Found::default()
        };
    }

    /// Refuses a key that was met before: of two, the tolerant reader takes the last.
    #[inline(always)]
    fn once(&mut self, key: Key) -> Option<()> {
        let bit = 1 << key as u32;
        let is_new = self.seen & bit == 0;
        self.seen |= bit;
        is_new.then_some(())
    }
}

/// The keys that matter.
#[derive(Clone, Copy)]
enum Key {
    Timestamp,
    WebAcl,
    Action,
    WafRule,
    Labels,
    Ja3,
    Ja4,
    ResponseCode,
    HttpRequest,
    ClientIp,
    Country,
    Headers,
    Uri,
    Args,
    Method,
    RequestId,
    Host,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Goes past a record. Keys in their usual order are recognised together with the comma before them, the rest one by one.
    fn record(&mut self, wants: &Wants, found: &mut Found, openings: &[Opening; OPENINGS]) -> Option<()> {
        if self.literal(br#"{"timestamp":"#) {
            self.value_of(Key::Timestamp, wants, found)?;
            found.known_opening = openings.iter().position(|opening| self.is_known(opening));
            if found.known_opening.is_none() {
                self.opening(wants, found)?;
            }
            if self.literal(br#","nonTerminatingMatchingRules":"#) {
                self.skip(DEPTH_MAX)?;
            }
            if self.literal(br#","requestHeadersInserted":"#) {
                self.skip(DEPTH_MAX)?;
            }
            if self.literal(br#","responseCodeSent":"#) {
                self.value_of(Key::ResponseCode, wants, found)?;
            }
            if self.literal(br#","httpRequest":"#) {
                self.value_of(Key::HttpRequest, wants, found)?;
            }
            if self.literal(br#","labels":"#) {
                self.value_of(Key::Labels, wants, found)?;
            }
            if self.literal(br#","ja3Fingerprint":"#) {
                self.value_of(Key::Ja3, wants, found)?;
            }
            if self.literal(br#","ja4Fingerprint":"#) {
                self.value_of(Key::Ja4, wants, found)?;
            }
        } else {
            self.expect(b'{')?;
            self.member(wants, found)?;
        }
        loop {
            match self.next()? {
                b',' => self.member(wants, found)?,
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Goes past this opening, and the rate-based rule it may end in, if it is what is next.
    #[inline(always)]
    fn is_known(&mut self, opening: &Opening) -> bool {
        let begins = self.at;
        if opening.text.is_empty() || !self.bytes[begins..].starts_with(&opening.text) {
            return false;
        }
        self.at += opening.text.len();
        if opening.in_rate_rule {
            if self.string().is_none() || !self.literal(b"}]") {
                self.at = begins;
                return false;
            }
        } else if self.skip(DEPTH_MAX).is_none() {
            // So would the whole record be refused otherwise.
            self.at = self.bytes.len();
            return true;
        }
        true
    }

    /// Goes past what stands between a record's time and the end of its rate-based rules, mostly the same in all records.
    #[inline(never)]
    fn opening(&mut self, wants: &Wants, found: &mut Found) -> Option<()> {
        let begins = self.at;
        if self.literal(br#","formatVersion":1,"webaclId":"#) {
            self.value_of(Key::WebAcl, wants, found)?;
        }
        if self.literal(br#","terminatingRuleId":"#) {
            self.value_of(Key::WafRule, wants, found)?;
        }
        if self.literal(br#","terminatingRuleType":"#) {
            self.text()?;
        }
        if self.literal(br#","action":"#) {
            self.value_of(Key::Action, wants, found)?;
        }
        if self.literal(br#","terminatingRuleMatchDetails":"#) {
            self.skip(DEPTH_MAX)?;
        }
        if self.literal(br#","httpSourceName":"#) {
            self.text()?;
        }
        if self.literal(br#","httpSourceId":"#) {
            self.text()?;
        }
        if self.literal(br#","ruleGroupList":"#) {
            self.rule_groups()?;
        }
        if self.literal(br#","rateBasedRuleList":"#) {
            let list = self.at;
            let ends = match self.rate_rule() {
                Some(ends) => {
                    found.opening_in_rate_rule = true;
                    ends
                }
                None => {
                    self.at = list;
                    self.skip(DEPTH_MAX)?;
                    list
                }
            };
            found.opening = Some(begins..ends);
            found.opening_texts = [found.web_acl, found.waf_rule, found.action];
        }
        Some(())
    }

    /// Goes past a list of one rate-based rule. Gives where its last value begins, which is the client that was limited.
    fn rate_rule(&mut self) -> Option<usize> {
        self.literal(br#"[{"rateBasedRuleId":""#).then_some(())?;
        self.string()?;
        if self.literal(br#","rateBasedRuleName":"#) {
            self.text()?;
        }
        self.literal(br#","limitKey":"#).then_some(())?;
        self.text()?;
        self.literal(br#","maxRateAllowed":"#).then_some(())?;
        self.integer()?;
        if self.literal(br#","evaluationWindowSec":"#) {
            self.skip(0)?;
        }
        self.literal(br#","limitValue":""#).then_some(())?;
        let ends = self.at;
        self.string()?;
        self.literal(b"}]").then_some(ends)
    }

    /// Goes past any key of a record, and its value.
    #[inline(never)]
    fn member(&mut self, wants: &Wants, found: &mut Found) -> Option<()> {
        let key = match self.key()? {
            b"timestamp" => Key::Timestamp,
            b"webaclId" => Key::WebAcl,
            b"action" => Key::Action,
            b"terminatingRuleId" => Key::WafRule,
            b"labels" => Key::Labels,
            b"ja3Fingerprint" => Key::Ja3,
            b"ja4Fingerprint" => Key::Ja4,
            b"responseCodeSent" => Key::ResponseCode,
            b"httpRequest" => Key::HttpRequest,
            // Perhaps a wrapper.
            b"message" | b"@message" | b"logEvents" | b"events" | b"messageType" => return None,
            // With an escape it may be any key.
            key if key.contains(&b'\\') => return None,
            _ => return self.skip(DEPTH_MAX),
        };
        self.value_of(key, wants, found)
    }

    #[inline(always)]
    fn value_of(&mut self, key: Key, wants: &Wants, found: &mut Found) -> Option<()> {
        found.once(key)?;
        match key {
            Key::Timestamp => found.timestamp_ms = self.integer()?,
            Key::WebAcl => found.web_acl = self.text()?,
            Key::Action => found.action = self.text()?,
            Key::WafRule => found.waf_rule = self.text()?,
            Key::Labels => self.labels(wants, found)?,
            Key::Ja3 => found.ja3 = self.text_or_null()?,
            Key::Ja4 => found.ja4 = self.text_or_null()?,
            Key::ResponseCode => {
                if !self.literal(b"null") {
                    found.response_code = u16::try_from(self.integer()?).ok();
                }
            }
            Key::HttpRequest => self.http(wants, found)?,
            Key::ClientIp => {
                let text = self.text()?;
                found.client_ip = Some(address(&self.bytes[text.begins as usize..text.ends as usize])?);
            }
            Key::Country => found.country = self.text_or_null()?,
            Key::Headers => {
                self.headers(wants, found)?;
                found.headers_end = self.at;
            }
            Key::Uri => found.uri = self.text()?,
            Key::Args => found.args = self.text()?,
            Key::Method => found.method = self.text()?,
            Key::RequestId => found.request_id = self.text_or_null()?,
            Key::Host => found.host = self.text_or_null()?,
        }
        Some(())
    }

    fn http(&mut self, wants: &Wants, found: &mut Found) -> Option<()> {
        if self.literal(br#"{"clientIp":"#) {
            self.value_of(Key::ClientIp, wants, found)?;
            if self.literal(br#","country":"#) {
                self.value_of(Key::Country, wants, found)?;
            }
            if self.literal(br#","headers":"#) {
                self.value_of(Key::Headers, wants, found)?;
            }
            if self.literal(br#","uri":"#) {
                self.value_of(Key::Uri, wants, found)?;
            }
            if self.literal(br#","args":"#) {
                self.value_of(Key::Args, wants, found)?;
            }
            if self.literal(br#","httpVersion":"#) {
                self.text()?;
            }
            if self.literal(br#","httpMethod":"#) {
                self.value_of(Key::Method, wants, found)?;
            }
            if self.literal(br#","requestId":"#) {
                self.value_of(Key::RequestId, wants, found)?;
            }
            if self.literal(br#","fragment":"#) {
                self.text()?;
            }
            if self.literal(br#","scheme":"#) {
                self.text()?;
            }
            if self.literal(br#","host":"#) {
                self.value_of(Key::Host, wants, found)?;
            }
        } else {
            self.expect(b'{')?;
            self.http_member(wants, found)?;
        }
        loop {
            match self.next()? {
                b',' => self.http_member(wants, found)?,
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    #[inline(never)]
    fn http_member(&mut self, wants: &Wants, found: &mut Found) -> Option<()> {
        let key = match self.key()? {
            b"clientIp" => Key::ClientIp,
            b"country" => Key::Country,
            b"headers" => Key::Headers,
            b"uri" => Key::Uri,
            b"args" => Key::Args,
            b"httpMethod" => Key::Method,
            b"requestId" => Key::RequestId,
            b"host" => Key::Host,
            key if key.contains(&b'\\') => return None,
            _ => return self.skip(DEPTH_MAX),
        };
        self.value_of(key, wants, found)
    }

    fn headers(&mut self, wants: &Wants, found: &mut Found) -> Option<()> {
        if self.literal(b"[]") {
            return Some(());
        }
        self.expect(b'[')?;
        if found.known_headers.is_empty() {
            found.known_headers.resize_with(HEADERS_KEPT, KnownHeader::default);
        }
        loop {
            self.header(wants, found)?;
            if !self.literal(b"},") {
                return self.literal(b"}]").then_some(());
            }
        }
    }

    /// Goes past a header, up to its brace.
    #[inline(always)]
    fn header(&mut self, wants: &Wants, found: &mut Found) -> Option<()> {
        const BEGINS: &[u8; 9] = br#"{"name":""#;
        let begins = self.at;
        let rest = self.bytes.get(begins..)?;
        // Names that begin alike, such as those of `sec-fetch-…`, differ in the second word, long values mostly in the third.
        let word = |at| Some(u64::from_le_bytes(*rest.get(at..)?.first_chunk()?));
        let words = word(9)? ^ word(17)?.rotate_left(25) ^ word(48)?.rotate_left(42);
        let place = (words.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % HEADERS_KEPT;
        let known = &mut found.known_headers[place];
        if known.text.is_empty() || !begins_with(rest, &known.text) {
            if !self.literal(BEGINS) {
                return None;
            }
            let name = self.string()?;
            // With an escape it may be any name.
            if name.has_escapes || !self.literal(br#","value":""#) {
                return None;
            }
            let value = self.string()?;
            known.name = name.seen_from(begins);
            known.value = value.seen_from(begins);
            let name = &self.bytes[name.begins as usize..name.ends as usize];
            known.is_host = name.eq_ignore_ascii_case(b"host");
            known.is_wanted = wants.header(name);
            known.text.clear();
            if self.at - begins <= HEADER_BYTES_MAX {
                known.text.extend_from_slice(&self.bytes[begins..self.at]);
            }
        } else {
            self.at += known.text.len();
        }
        if known.is_host && found.host_header.ends == 0 {
            found.host_header = known.value.moved(begins);
        }
        if known.is_wanted {
            found
                .headers
                .push((known.name.moved(begins), known.value.moved(begins)));
        }
        Some(())
    }

    fn labels(&mut self, wants: &Wants, found: &mut Found) -> Option<()> {
        if self.literal(b"[]") {
            return Some(());
        }
        self.expect(b'[')?;
        loop {
            if !self.literal(br#"{"name":""#) {
                return None;
            }
            let name = self.string()?;
            if wants.labels {
                found.labels.push(name);
            }
            if !self.literal(b"},") {
                return self.literal(b"}]").then_some(());
            }
        }
    }

    /// Goes past the rule groups, most of which found nothing.
    fn rule_groups(&mut self) -> Option<()> {
        if self.literal(b"[]") {
            return Some(());
        }
        self.expect(b'[')?;
        loop {
            let before = self.at;
            let quiet = self.literal(br#"{"ruleGroupId":""#)
                && self.string().is_some()
                && self.literal(br#","terminatingRule":null,"nonTerminatingMatchingRules":[],"excludedRules":null"#)
                && (self.literal(br#","customerConfig":null}"#) || self.literal(b"}"));
            if !quiet {
                self.at = before;
                self.skip(DEPTH_MAX)?;
            }
            match self.next()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Goes past a value of any kind.
    fn skip(&mut self, depth: u32) -> Option<()> {
        match *self.bytes.get(self.at)? {
            b'"' => {
                self.at += 1;
                self.string()?;
            }
            b'[' => {
                self.at += 1;
                if self.literal(b"]") {
                    return Some(());
                }
                loop {
                    self.skip(depth.checked_sub(1)?)?;
                    match self.next()? {
                        b',' => {}
                        b']' => break,
                        _ => return None,
                    }
                }
            }
            b'{' => {
                self.at += 1;
                if self.literal(b"}") {
                    return Some(());
                }
                loop {
                    self.key()?;
                    self.skip(depth.checked_sub(1)?)?;
                    match self.next()? {
                        b',' => {}
                        b'}' => break,
                        _ => return None,
                    }
                }
            }
            b'n' if self.literal(b"null") => {}
            b't' if self.literal(b"true") => {}
            b'f' if self.literal(b"false") => {}
            b'0'..=b'9' => {
                self.integer()?;
            }
            _ => return None,
        }
        Some(())
    }

    #[inline(always)]
    fn next(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline(always)]
    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// Goes past this text, if it is next.
    #[inline(always)]
    fn literal<const N: usize>(&mut self, text: &[u8; N]) -> bool {
        let next = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<N>);
        let is_next = next.is_some_and(|next| next == text);
        if is_next {
            self.at += N;
        }
        is_next
    }

    /// Goes past a string whose opening quote has been passed, and its closing quote. The string is UTF-8, has no raw control
    /// characters, and its escapes stand for something.
    #[inline(always)]
    fn string(&mut self) -> Option<Text> {
        let begins = self.at;
        let stop = plain(self.bytes, begins);
        if *self.bytes.get(stop)? != b'"' {
            return self.odd_string(begins, stop);
        }
        self.at = stop + 1;
        Some(Text {
            begins: begins as u32,
            ends: stop as u32,
            has_escapes: false,
        })
    }

    /// Goes past a string with something else in it, at `stop` for the first time, than printable ASCII.
    #[inline(never)]
    fn odd_string(&mut self, begins: usize, stop: usize) -> Option<Text> {
        let mut from = stop;
        let ends = loop {
            let quote = from + memchr(b'"', self.bytes.get(from..)?)?;
            let backslashes = self.bytes[begins..quote]
                .iter()
                .rev()
                .take_while(|byte| **byte == b'\\');
            if backslashes.count() % 2 == 0 {
                break quote;
            }
            from = quote + 1;
        };
        let odd = &self.bytes[stop..ends];
        if odd.iter().any(|byte| *byte < b' ') {
            return None;
        }
        let has_escapes = memchr(b'\\', odd).is_some();
        if has_escapes && !escapes_are_good(odd) {
            return None;
        }
        str::from_utf8(odd).ok()?;
        self.at = ends + 1;
        Some(Text {
            begins: begins as u32,
            ends: ends as u32,
            has_escapes,
        })
    }

    /// Goes past a key and its colon.
    #[inline(always)]
    fn key(&mut self) -> Option<&'a [u8]> {
        let Text { begins, ends, .. } = self.text()?;
        self.expect(b':')?;
        Some(&self.bytes[begins as usize..ends as usize])
    }

    #[inline(always)]
    fn text(&mut self) -> Option<Text> {
        self.expect(b'"')?;
        self.string()
    }

    #[inline(always)]
    fn text_or_null(&mut self) -> Option<Text> {
        if self.literal(b"null") {
            Some(Text::default())
        } else {
            self.text()
        }
    }

    /// Goes past an integer without a sign. What follows it is looked at by the caller, who knows what may.
    #[inline(always)]
    fn integer(&mut self) -> Option<i64> {
        let begins = self.at;
        let mut number = 0i64;
        while let Some(digit @ b'0'..=b'9') = self.bytes.get(self.at) {
            number = number.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
            self.at += 1;
        }
        let digits = self.at - begins;
        let leading_zero = digits > 1 && self.bytes[begins] == b'0';
        ((1..=18).contains(&digits) && !leading_zero).then_some(number)
    }
}

/// A record of which every string has been checked.
struct Checked<'a> {
    record: &'a [u8],
    /// What is behind the headers, where most texts are: known to be UTF-8 at once, which is cheaper.
    rest: &'a str,
    rest_begins: usize,
}

impl<'a> Checked<'a> {
    fn new(record: &'a [u8], rest_begins: usize) -> Option<Checked<'a>> {
        Some(Checked {
            record,
            rest: str::from_utf8(&record[rest_begins..]).ok()?,
            rest_begins,
        })
    }

    /// A string of the record, unless it has escapes that only the tolerant reader knows.
    #[inline(always)]
    fn text(&self, text: Text) -> Option<Cow<'a, str>> {
        let (begins, ends) = (text.begins as usize, text.ends as usize);
        let raw = match begins.checked_sub(self.rest_begins) {
            Some(begins) => self.rest.get(begins..ends - self.rest_begins)?,
            None => str::from_utf8(&self.record[begins..ends]).ok()?,
        };
        if text.has_escapes {
            return unescaped(raw).map(Cow::Owned);
        }
        Some(Cow::Borrowed(raw))
    }
}

#[inline(never)]
fn escapes_are_good(record: &[u8]) -> bool {
    let mut behind = 0;
    memchr_iter(b'\\', record).all(|at| {
        if at < behind {
            return true;
        }
        behind = at + 2;
        match record.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => true,
            Some(b'u') => {
                let digits = record.get(at + 2..at + 6).unwrap_or_default();
                let digits = str::from_utf8(digits).unwrap_or_default();
                let is_hex = digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                // Whether a surrogate has its other half is for the tolerant reader to see.
                is_hex && u16::from_str_radix(digits, 16).is_ok_and(|unit| !(0xd800..=0xdfff).contains(&unit))
            }
            _ => false,
        }
    })
}

fn unescaped(raw: &str) -> Option<String> {
    let mut whole = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, escape)) = rest.split_once('\\') {
        whole.push_str(before);
        whole.push(match escape.as_bytes().first()? {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = u32::from_str_radix(escape.get(1..5)?, 16).ok()?;
                rest = &escape[5..];
                whole.push(char::from_u32(unit)?);
                continue;
            }
            _ => return None,
        });
        rest = &escape[1..];
    }
    whole.push_str(rest);
    Some(whole)
}

/// Nothing, where AWS writes nothing or a word for it.
#[inline(always)]
fn something<'a>(text: Cow<'a, str>, nothing: &str) -> Option<Cow<'a, str>> {
    if text.is_empty() || *text == *nothing {
        return None;
    }
    Some(text)
}

/// An address in its usual form.
pub(crate) fn address(text: &[u8]) -> Option<IpAddr> {
    if let Some(v4) = v4(text) {
        return Some(IpAddr::V4(v4));
    }
    let address: IpAddr = str::from_utf8(text).ok()?.parse().ok()?;
    Some(address.to_canonical())
}

fn v4(text: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let (mut at, mut digits) = (0, 0);
    for byte in text {
        match byte {
            b'0'..=b'9' if digits == 0 || octets[at] > 0 => {
                octets[at] = octets[at].checked_mul(10)?.checked_add(byte - b'0')?;
                digits += 1;
            }
            b'.' if digits > 0 && at < 3 => (at, digits) = (at + 1, 0),
            _ => return None,
        }
    }
    (at == 3 && digits > 0).then(|| Ipv4Addr::from(octets))
}

/// Where printable ASCII without quotes and backslashes ends, from this position on.
#[inline(always)]
fn plain(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(piece) = bytes.get(at..).and_then(<[u8]>::first_chunk::<16>) {
        let piece = i8x16::new(piece.map(|byte| byte as i8));
        // As signed numbers, bytes beyond ASCII are below zero.
        let stops = piece.simd_eq(i8x16::splat(b'"' as i8))
            | piece.simd_eq(i8x16::splat(b'\\' as i8))
            | piece.simd_lt(i8x16::splat(b' ' as i8));
        let stops = stops.to_bitmask();
        if stops != 0 {
            return at + stops.trailing_zeros() as usize;
        }
        at += 16;
    }
    let is_plain = |byte: &&u8| !matches!(**byte, b'"' | b'\\' | 0..b' ' | 0x80..);
    at + bytes.get(at..).unwrap_or_default().iter().take_while(is_plain).count()
}

/// Whether `bytes` begin with `known`, for texts too short to call a function for them.
#[inline(always)]
fn begins_with(bytes: &[u8], known: &[u8]) -> bool {
    let Some(bytes) = bytes.get(..known.len()) else {
        return false;
    };
    let (Some(last), Some(known_last)) = (bytes.last_chunk::<16>(), known.last_chunk::<16>()) else {
        return bytes == known;
    };
    let (pieces, known_pieces) = (bytes.as_chunks::<16>().0, known.as_chunks::<16>().0);
    last == known_last && pieces.iter().zip(known_pieces).all(|(piece, known)| piece == known)
}

/// The memory of a list without what was in it.
fn emptied<T, U>(mut list: Vec<T>) -> Vec<U> {
    list.clear();
    // Collecting in place keeps the memory where the two types differ by a lifetime only.
    list.into_iter().filter_map(|_| None).collect()
}
