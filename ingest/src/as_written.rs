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

use memchr::{memchr, memchr_iter};

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
    let bytes = &bytes[..bytes.len().min(LENGTH_MAX)];
    let mut cursor = Cursor {
        bytes,
        at: 0,
        quotes_escaped: 0,
    };
    let mut seen = Seen(0);
    let mut timestamp_ms = 0;
    let mut http = Http::default();
    let (mut web_acl, mut action, mut waf_rule, mut ja3, mut ja4) = (NONE, NONE, NONE, NONE, NONE);
    let mut response_code = None;
    let mut labels: Vec<Cow<'a, str>> = std::mem::take(&mut lists.labels);
    http.headers = std::mem::take(&mut lists.headers);

    cursor.expect(b'{')?;
    loop {
        let key = cursor.key()?;
        match key {
            b"timestamp" => {
                seen.once(0)?;
                timestamp_ms = cursor.integer()?;
            }
            b"webaclId" => {
                seen.once(1)?;
                web_acl = cursor.text()?;
            }
            b"action" => {
                seen.once(2)?;
                action = cursor.text()?;
            }
            b"terminatingRuleId" => {
                seen.once(3)?;
                waf_rule = cursor.text()?;
            }
            b"labels" => {
                seen.once(4)?;
                cursor.labels(wants, &mut labels)?;
            }
            b"ja3Fingerprint" => {
                seen.once(5)?;
                ja3 = cursor.text_or_null()?;
            }
            b"ja4Fingerprint" => {
                seen.once(6)?;
                ja4 = cursor.text_or_null()?;
            }
            b"responseCodeSent" => {
                seen.once(7)?;
                if !cursor.literal(b"null") {
                    response_code = u16::try_from(cursor.integer()?).ok();
                }
            }
            b"httpRequest" => {
                seen.once(8)?;
                cursor.http(wants, &mut http)?;
            }
            b"ruleGroupList" => cursor.rule_groups()?,
            b"message" | b"@message" | b"logEvents" | b"events" | b"messageType" => return None,
            _ if key.contains(&b'\\') => return None,
            _ => cursor.skip(DEPTH_MAX)?,
        }
        match cursor.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    let client_ip = http.client_ip?;
    if !(TIMESTAMP_MS_MIN..TIMESTAMP_MS_MAX).contains(&timestamp_ms) {
        return None;
    }
    let escapes = cursor.strings_are_good()?;
    let host = match text(bytes, http.host, escapes)? {
        host if host.is_empty() => text(bytes, http.host_header, escapes)?,
        host => host,
    };
    let request = Request {
        timestamp_ms,
        web_acl: text(bytes, web_acl, escapes)?,
        action: text(bytes, action, escapes)?,
        waf_rule: text(bytes, waf_rule, escapes)?,
        client_ip,
        country: something(text(bytes, http.country, escapes)?, "-"),
        method: text(bytes, http.method, escapes)?,
        uri: text(bytes, http.uri, escapes)?,
        args: text(bytes, http.args, escapes)?,
        host: something(host, ""),
        headers: http.headers,
        labels,
        ja3: something(text(bytes, ja3, escapes)?, "-"),
        ja4: something(text(bytes, ja4, escapes)?, "-"),
        response_code,
        request_id: something(text(bytes, http.request_id, escapes)?, "null"),
    };
    Some((request, cursor.at))
}

/// Where a string begins and ends, without its quotes.
type Text = (usize, usize);

/// No string: nothing begins before the record's brace.
const NONE: Text = (0, 0);

/// Which keys were met: of two, the tolerant reader takes the last.
struct Seen(u32);

impl Seen {
    fn once(&mut self, key: u32) -> Option<()> {
        let before = self.0;
        self.0 |= 1 << key;
        (before != self.0).then_some(())
    }
}

#[derive(Default)]
struct Http<'a> {
    client_ip: Option<IpAddr>,
    country: Text,
    method: Text,
    uri: Text,
    args: Text,
    host: Text,
    request_id: Text,
    headers: Vec<Header<'a>>,
    /// The first `Host` header's value.
    host_header: Text,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How many quotes with a backslash of their own were met.
    quotes_escaped: usize,
}

impl<'a> Cursor<'a> {
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

    /// Goes past the string whose first byte is next, and its closing quote.
    #[inline(always)]
    fn string(&mut self) -> Option<Text> {
        let begins = self.at;
        let mut from = begins;
        loop {
            let quote = find_quote(self.bytes, from)?;
            self.at = quote + 1;
            // Before the first byte is the opening quote.
            if self.bytes[quote - 1] != b'\\' || !self.is_escaped(quote) {
                return Some((begins, quote));
            }
            from = quote + 1;
        }
    }

    /// Whether the quote at this position, behind a backslash, is a part of its string.
    #[inline(never)]
    fn is_escaped(&mut self, quote: usize) -> bool {
        let backslashes = self.bytes[..quote].iter().rev().take_while(|byte| **byte == b'\\').count();
        let escaped = backslashes % 2 == 1;
        self.quotes_escaped += usize::from(escaped);
        escaped
    }

    /// Goes past a key and its colon. It may have escapes; then it is none of ours.
    #[inline(always)]
    fn key(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let (begins, ends) = self.string()?;
        self.expect(b':')?;
        Some(&self.bytes[begins..ends])
    }

    #[inline(always)]
    fn text(&mut self) -> Option<Text> {
        self.expect(b'"')?;
        self.string()
    }

    #[inline(always)]
    fn text_or_null(&mut self) -> Option<Text> {
        if self.literal(b"null") { Some(NONE) } else { self.text() }
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

    /// Goes past the rule groups, most of which found nothing.
    fn rule_groups(&mut self) -> Option<()> {
        self.expect(b'[')?;
        if self.literal(b"]") {
            return Some(());
        }
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

    fn labels(&mut self, wants: &Wants, labels: &mut Vec<Cow<'a, str>>) -> Option<()> {
        self.expect(b'[')?;
        if self.literal(b"]") {
            return Some(());
        }
        loop {
            if !self.literal(br#"{"name":""#) {
                return None;
            }
            let name = self.string()?;
            if wants.labels {
                labels.push(text(self.bytes, name, true)?);
            }
            self.expect(b'}')?;
            match self.next()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }

    fn http(&mut self, wants: &Wants, http: &mut Http<'a>) -> Option<()> {
        let mut seen = Seen(0);
        self.expect(b'{')?;
        loop {
            let key = self.key()?;
            match key {
                b"clientIp" => {
                    seen.once(0)?;
                    let (begins, ends) = self.text()?;
                    http.client_ip = Some(address(&self.bytes[begins..ends])?);
                }
                b"country" => {
                    seen.once(1)?;
                    http.country = self.text_or_null()?;
                }
                b"headers" => {
                    seen.once(2)?;
                    self.headers(wants, http)?;
                }
                b"uri" => {
                    seen.once(3)?;
                    http.uri = self.text()?;
                }
                b"args" => {
                    seen.once(4)?;
                    http.args = self.text()?;
                }
                b"httpMethod" => {
                    seen.once(5)?;
                    http.method = self.text()?;
                }
                b"requestId" => {
                    seen.once(6)?;
                    http.request_id = self.text_or_null()?;
                }
                b"host" => {
                    seen.once(7)?;
                    http.host = self.text_or_null()?;
                }
                _ if key.contains(&b'\\') => return None,
                _ => self.skip(DEPTH_MAX)?,
            }
            match self.next()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    fn headers(&mut self, wants: &Wants, http: &mut Http<'a>) -> Option<()> {
        self.expect(b'[')?;
        if self.literal(b"]") {
            return Some(());
        }
        loop {
            if !self.literal(br#"{"name":""#) {
                return None;
            }
            let name = self.string()?;
            if !self.literal(br#","value":""#) {
                return None;
            }
            let value = self.string()?;
            self.expect(b'}')?;
            let name_bytes = &self.bytes[name.0..name.1];
            // With an escape it may be any name.
            if memchr(b'\\', name_bytes).is_some() {
                return None;
            }
            if http.host_header == NONE && name_bytes.eq_ignore_ascii_case(b"host") {
                http.host_header = value;
            }
            if wants.header(name_bytes) {
                http.headers.push(Header {
                    name: text(self.bytes, name, false)?,
                    value: text(self.bytes, value, true)?,
                });
            }
            match self.next()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Checks what is inside the strings: no raw control characters, UTF-8, and escapes that stand for something. Tells
    /// whether there are any escapes. All backslashes are inside strings, for elsewhere we would have given up.
    fn strings_are_good(&self) -> Option<bool> {
        let record = &self.bytes[..self.at];
        let (mut controls, mut all, mut backslashes) = (0u8, 0u8, 0usize);
        let (chunks, rest) = record.as_chunks::<128>();
        for chunk in chunks.iter().map(|chunk| &chunk[..]).chain([rest]) {
            let mut count = 0u8;
            for byte in chunk {
                controls |= u8::from(*byte < b' ');
                all |= byte;
                count += u8::from(*byte == b'\\');
            }
            backslashes += usize::from(count);
        }
        if controls != 0 || (all >= 0x80 && str::from_utf8(record).is_err()) {
            return None;
        }
        // Mostly they stand before quotes, and those were all looked at.
        if backslashes != self.quotes_escaped {
            let mut next = 0;
            for at in memchr_iter(b'\\', record) {
                if at < next {
                    continue;
                }
                next = at + 2;
                match record.get(at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        let digits = str::from_utf8(record.get(at + 2..at + 6)?).ok()?;
                        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                        let unit = u16::from_str_radix(digits, 16).ok()?;
                        // Whether a surrogate has its other half is for the tolerant reader to see.
                        if !is_hex || (0xd800..=0xdfff).contains(&unit) {
                            return None;
                        }
                    }
                    _ => return None,
                }
            }
        }
        Some(backslashes > 0)
    }
}

/// The text of a string that has been walked over, unless it has escapes that only the tolerant reader knows.
#[inline(always)]
fn text(bytes: &[u8], (begins, ends): Text, may_have_escapes: bool) -> Option<Cow<'_, str>> {
    let raw = &bytes[begins..ends];
    if may_have_escapes && memchr(b'\\', raw).is_some() {
        return unescaped(raw).map(Cow::Owned);
    }
    str::from_utf8(raw).ok().map(Cow::Borrowed)
}

fn unescaped(raw: &[u8]) -> Option<String> {
    let mut whole = String::with_capacity(raw.len());
    let mut rest = str::from_utf8(raw).ok()?;
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

/// The first quote from this position on: short strings are the rule, so words of eight bytes come first.
#[inline(always)]
fn find_quote(bytes: &[u8], from: usize) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let mut at = from;
    for _ in 0..4 {
        let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
            break;
        };
        // A byte that equals becomes zero; the lowest zero byte is the lowest one whose highest bit is set here.
        let differing = u64::from_le_bytes(*word) ^ (ONES * b'"' as u64);
        let equal = differing.wrapping_sub(ONES) & !differing & (ONES << 7);
        if equal != 0 {
            return Some(at + equal.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    memchr(b'"', bytes.get(at..)?).map(|found| at + found)
}

/// The memory of a list without what was in it.
fn emptied<T, U>(mut list: Vec<T>) -> Vec<U> {
    list.clear();
    // Collecting in place keeps the memory where the two types differ by a lifetime only.
    list.into_iter().filter_map(|_| None).collect()
}
