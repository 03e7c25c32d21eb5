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
use std::str;

use memchr::{memchr, memchr_iter, memchr2};

use crate::record::{TIMESTAMP_MS_MAX, TIMESTAMP_MS_MIN};
use crate::request::{Header, Request, Wants};

/// A longer record is left to the tolerant reader, which knows the limits.
const LENGTH_MAX: usize = 1024 * 1024;

/// Deeper values are left to the tolerant reader, which knows the limits. WAF's have five levels.
const DEPTH_MAX: u32 = 16;

/// The lists of the last request, empty, so that their memory is used again.
#[derive(Default)]
pub(crate) struct Lists {
    headers: Vec<Header<'static>>,
    labels: Vec<Cow<'static, str>>,
    found: Found,
}

impl Lists {
    /// Takes the memory of a request's lists back.
    pub(crate) fn reclaim(&mut self, request: Request<'_>) {
        self.headers = emptied(request.headers);
        self.labels = emptied(request.labels);
    }
}

/// The record at the front of these bytes and its length, or `None` if it is to be read tolerantly.
pub(crate) fn read<'a>(bytes: &'a [u8], wants: &Wants, lists: &mut Lists) -> Option<(Request<'a>, usize)> {
    let found = &mut lists.found;
    found.clear();
    let mut cursor = Cursor {
        bytes: &bytes[..bytes.len().min(LENGTH_MAX)],
        at: 0,
        quotes_escaped: 0,
    };
    cursor.record(wants, found)?;
    let client_ip = found.client_ip?;
    if !(TIMESTAMP_MS_MIN..TIMESTAMP_MS_MAX).contains(&found.timestamp_ms) {
        return None;
    }
    let record = Checked::new(&bytes[..cursor.at], cursor.quotes_escaped)?;
    let host = match record.text(found.host)? {
        host if host.is_empty() => record.text(found.host_header)?,
        host => host,
    };
    let mut headers: Vec<Header<'a>> = std::mem::take(&mut lists.headers);
    for (name, value) in &found.headers {
        headers.push(Header {
            name: record.text(*name)?,
            value: record.text(*value)?,
        });
    }
    let mut labels: Vec<Cow<'a, str>> = std::mem::take(&mut lists.labels);
    for label in &found.labels {
        labels.push(record.text(*label)?);
    }
    let request = Request {
        timestamp_ms: found.timestamp_ms,
        web_acl: record.text(found.web_acl)?,
        action: record.text(found.action)?,
        waf_rule: record.text(found.waf_rule)?,
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
    Some((request, cursor.at))
}

/// Where a string is, without its quotes. The default is no string.
#[derive(Clone, Copy, Default)]
struct Text {
    begins: u32,
    ends: u32,
    /// Whether quotes with a backslash before them are in it.
    has_quotes: bool,
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
}

impl Found {
    fn clear(&mut self) {
        let (mut labels, mut headers) = (std::mem::take(&mut self.labels), std::mem::take(&mut self.headers));
        labels.clear();
        headers.clear();
        *self = Found {
            labels,
            headers,
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
    /// How many quotes with a backslash before them were met.
    quotes_escaped: usize,
}

impl<'a> Cursor<'a> {
    /// Goes past a record. Keys in their usual order are recognised together with the comma before them, the rest one by one.
    fn record(&mut self, wants: &Wants, found: &mut Found) -> Option<()> {
        if self.literal(br#"{"timestamp":"#) {
            self.value_of(Key::Timestamp, wants, found)?;
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
                self.skip(DEPTH_MAX)?;
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
            Key::Headers => self.headers(wants, found)?,
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
        loop {
            if !self.literal(br#"{"name":""#) {
                return None;
            }
            let begins = self.at;
            // With an escape it may be any name.
            let ends = find::<true>(self.bytes, begins)?;
            self.at = ends;
            if !self.literal(br#"","value":""#) {
                return None;
            }
            let value = self.string()?;
            let name = &self.bytes[begins..ends];
            if name.len() == 4 && found.host_header.ends == 0 && name.eq_ignore_ascii_case(b"host") {
                found.host_header = value;
            }
            if wants.header(name) {
                let name = Text {
                    begins: begins as u32,
                    ends: ends as u32,
                    has_quotes: false,
                };
                found.headers.push((name, value));
            }
            if !self.literal(b"},") {
                return self.literal(b"}]").then_some(());
            }
        }
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
            let before = (self.at, self.quotes_escaped);
            let quiet = self.literal(br#"{"ruleGroupId":""#)
                && self.string().is_some()
                && self.literal(br#","terminatingRule":null,"nonTerminatingMatchingRules":[],"excludedRules":null"#)
                && (self.literal(br#","customerConfig":null}"#) || self.literal(b"}"));
            if !quiet {
                (self.at, self.quotes_escaped) = before;
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

    /// Goes past a string whose opening quote has been passed, and its closing quote.
    #[inline(always)]
    fn string(&mut self) -> Option<Text> {
        let begins = self.at;
        let quotes_before = self.quotes_escaped;
        let mut from = begins;
        loop {
            let quote = find::<false>(self.bytes, from)?;
            self.at = quote + 1;
            // Before the first byte is the opening quote.
            if self.bytes[quote - 1] != b'\\' || !self.is_escaped(quote) {
                return Some(Text {
                    begins: begins as u32,
                    ends: quote as u32,
                    has_quotes: self.quotes_escaped != quotes_before,
                });
            }
            from = quote + 1;
        }
    }

    /// Whether the quote at this position, behind a backslash, is a part of its string.
    #[inline(never)]
    fn is_escaped(&mut self, quote: usize) -> bool {
        let backslashes = self.bytes[..quote].iter().rev().take_while(|byte| **byte == b'\\');
        let escaped = backslashes.count() % 2 == 1;
        self.quotes_escaped += usize::from(escaped);
        escaped
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

/// A record whose strings hold nothing but what they may: UTF-8, no raw control characters, escapes that stand for something.
struct Checked<'a> {
    record: &'a str,
    /// There are other escapes than those of quotes.
    has_escapes: bool,
}

impl<'a> Checked<'a> {
    /// All backslashes are inside strings, for elsewhere the cursor would have given up.
    fn new(record: &'a [u8], quotes_escaped: usize) -> Option<Checked<'a>> {
        let (chunks, rest) = record.as_chunks::<128>();
        let (mut lowest, mut backslashes) = (u8::MAX, 0);
        for chunk in chunks {
            let mut in_chunk = 0u8;
            for byte in chunk {
                lowest = lowest.min(*byte);
                in_chunk += u8::from(*byte == b'\\');
            }
            backslashes += usize::from(in_chunk);
        }
        for byte in rest {
            lowest = lowest.min(*byte);
            backslashes += usize::from(*byte == b'\\');
        }
        if lowest < b' ' {
            return None;
        }
        // Mostly they stand before quotes, and those were all looked at.
        let has_escapes = backslashes != quotes_escaped;
        if has_escapes && !escapes_are_good(record) {
            return None;
        }
        Some(Checked {
            record: str::from_utf8(record).ok()?,
            has_escapes,
        })
    }

    /// A string of the record, unless it has escapes that only the tolerant reader knows.
    #[inline(always)]
    fn text(&self, text: Text) -> Option<Cow<'a, str>> {
        let raw = self.record.get(text.begins as usize..text.ends as usize)?;
        if text.has_quotes || (self.has_escapes && memchr(b'\\', raw.as_bytes()).is_some()) {
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
fn something<'a>(text: Cow<'a, str>, nothing: &str) -> Option<Cow<'a, str>> {
    Some(text).filter(|text| !text.is_empty() && text != nothing)
}

/// An address in its usual form.
fn address(text: &[u8]) -> Option<IpAddr> {
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

/// The first quote from this position on; `None` too if `NO_ESCAPES` are allowed and one comes before it. Short strings are
/// the rule, so words of eight bytes come first.
#[inline(always)]
fn find<const NO_ESCAPES: bool>(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    for _ in 0..4 {
        let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
            break;
        };
        let word = u64::from_le_bytes(*word);
        let quotes = equal(word, b'"');
        let stops = if NO_ESCAPES {
            quotes | equal(word, b'\\')
        } else {
            quotes
        };
        if stops != 0 {
            // The lowest bit is right; those above it may not be.
            let first = stops & stops.wrapping_neg();
            return (first & quotes != 0).then_some(at + first.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = bytes.get(at..)?;
    let found = if NO_ESCAPES {
        memchr2(b'"', b'\\', rest)
    } else {
        memchr(b'"', rest)
    };
    found.map(|found| at + found).filter(|found| bytes[*found] == b'"')
}

/// Words whose bytes are all one.
const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// The highest bit of the lowest byte that equals `wanted` is set, none below it, and perhaps others above it.
#[inline(always)]
fn equal(word: u64, wanted: u8) -> u64 {
    let differing = word ^ (ONES * wanted as u64);
    differing.wrapping_sub(ONES) & !differing & (ONES << 7)
}

/// The memory of a list without what was in it.
fn emptied<T, U>(mut list: Vec<T>) -> Vec<U> {
    list.clear();
    // Collecting in place keeps the memory where the two types differ by a lifetime only.
    list.into_iter().filter_map(|_| None).collect()
}
