//! Finds where a damaged record ends.
//!
//! Records are read by serde_json, which is fast but can only say *that* something is wrong. Then this walker goes over
//! the same bytes and says where the record stops being one, so that the next one is not lost. It checks the
//! structure of JSON, not its literals, and knows two things JSON does not: a string never holds a raw newline, and a
//! line that begins like a record is a record. It stops and goes on anywhere, so it needs no more memory than a chunk.

use memchr::memchr3;

/// Deeper is not a log record. The kinds of the open brackets fit into one integer.
const DEPTH_MAX: u32 = 128;

/// Bytes needed behind a `{` to know its first key.
pub(crate) const LOOKAHEAD: usize = 128;

/// Keys that open a record or a wrapper of one, but no object inside of a record. They tell a new record from a part
/// of the one before. `action` or `name` cannot do that: rule groups and headers have them too.
const OPENING_KEYS: [&str; 21] = [
    "timestamp",
    "formatVersion",
    "webaclId",
    "terminatingRuleId",
    "terminatingRuleType",
    "terminatingRuleMatchDetails",
    "httpSourceName",
    "httpSourceId",
    "httpRequest",
    "ruleGroupList",
    "rateBasedRuleList",
    "nonTerminatingMatchingRules",
    "message",
    "@message",
    "messageType",
    "logEvents",
    "logStreamName",
    "logGroup",
    "ingestionTime",
    "eventId",
    "id",
];

/// Where a walk ended. Positions are in the bytes of the last call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walk {
    /// Nothing wrong so far. The bytes from here on must come again, with more behind them.
    More(usize),
    /// The value is complete; it ends before this position.
    Ended(usize),
    /// The record was cut: its line ends here, and the next line is none of it.
    Cut(usize),
    /// What is here cannot be here.
    Wrong(usize),
    /// Here it gets deeper than [`DEPTH_MAX`].
    TooDeep(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
    /// More of the number or literal that has begun.
    Scalar,
}

/// The state between two chunks of one value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walker {
    /// A bit for each open bracket, the innermost lowest: 1 is an object.
    objects: u128,
    depth: u32,
    expect: Expect,
    /// Inside a string, and whether it is a key.
    string: Option<bool>,
    /// The next byte is the first of its line, which is not the first of the value.
    at_line_start: bool,
    events_key: bool,
    /// Position behind the `[` of `logEvents` or `events`, if that was met in the last call.
    pub(crate) events: Option<usize>,
}

impl Walker {
    /// A walker before the `{` or `[` of a value.
    pub(crate) fn new() -> Walker {
        Walker {
            objects: 0,
            depth: 0,
            expect: Expect::Value,
            string: None,
            at_line_start: false,
            events_key: false,
            events: None,
        }
    }

    /// Goes on. `last` says that no bytes will follow these.
    pub(crate) fn walk(&mut self, bytes: &[u8], last: bool) -> Walk {
        let mut at = 0;
        self.events = None;
        loop {
            if let Some(is_key) = self.string {
                match self.string_end(bytes, at) {
                    Ok(end) => {
                        self.events_key =
                            is_key && self.depth == 1 && matches!(&bytes[at..end], b"logEvents" | b"events");
                        self.string = None;
                        self.expect = if is_key { Expect::Colon } else { Expect::CommaOrEnd };
                        at = end + 1;
                    }
                    Err(stopped) => return stopped,
                }
                continue;
            }
            let Some(&byte) = bytes.get(at) else {
                return Walk::More(at);
            };
            let line_start = std::mem::replace(&mut self.at_line_start, byte == b'\n');
            if self.expect == Expect::Scalar {
                if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.') {
                    at += 1;
                    continue;
                }
                self.expect = Expect::CommaOrEnd;
            }
            if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                at += 1;
                continue;
            }
            if line_start && self.depth > 0 && matches!(byte, b'{' | b'0'..=b'9') {
                if bytes.len() - at < LOOKAHEAD && !last {
                    self.at_line_start = true;
                    return Walk::More(at);
                }
                if Opening::at(bytes, at) == Some(Opening::Known) || iso_time(&bytes[at..]).is_some() {
                    return Walk::Cut(at.saturating_sub(1));
                }
            }
            if self.depth == DEPTH_MAX && matches!(byte, b'{' | b'[') {
                return Walk::TooDeep(at);
            }
            if !self.step(byte, at) {
                return if line_start && self.depth > 0 {
                    Walk::Cut(at.saturating_sub(1))
                } else {
                    Walk::Wrong(at)
                };
            }
            at += 1;
            if self.depth == 0 && self.expect == Expect::CommaOrEnd {
                return Walk::Ended(at);
            }
        }
    }

    /// Takes one structural byte, or says that it cannot be here.
    fn step(&mut self, byte: u8, at: usize) -> bool {
        use Expect::{Colon, CommaOrEnd, Key, KeyOrEnd, Scalar, Value, ValueOrEnd};
        match (byte, self.expect) {
            (b'{' | b'[', Value | ValueOrEnd) => {
                if byte == b'[' && self.depth == 1 && self.events_key {
                    self.events = Some(at + 1);
                }
                self.depth += 1;
                self.objects = self.objects << 1 | u128::from(byte == b'{');
                self.expect = if byte == b'{' { KeyOrEnd } else { ValueOrEnd };
            }
            (b'}', KeyOrEnd) | (b']', ValueOrEnd) => self.close(),
            (b'}', CommaOrEnd) if self.in_object() => self.close(),
            (b']', CommaOrEnd) if !self.in_object() => self.close(),
            (b'"', Key | KeyOrEnd) => self.string = Some(true),
            (b'"', Value | ValueOrEnd) => self.string = Some(false),
            (b':', Colon) => self.expect = Value,
            (b',', CommaOrEnd) => self.expect = if self.in_object() { Key } else { Value },
            (b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z', Value | ValueOrEnd) => self.expect = Scalar,
            _ => return false,
        }
        true
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    fn close(&mut self) {
        self.objects >>= 1;
        self.depth -= 1;
        self.expect = Expect::CommaOrEnd;
    }

    /// The closing quote of the string that `from` is in.
    fn string_end(&self, bytes: &[u8], mut from: usize) -> Result<usize, Walk> {
        loop {
            match memchr3(b'"', b'\\', b'\n', &bytes[from..]).map(|found| from + found) {
                None => return Err(Walk::More(bytes.len())),
                Some(at) if bytes[at] == b'"' => return Ok(at),
                Some(at) if bytes[at] == b'\n' => return Err(Walk::Cut(at)),
                Some(at) => match bytes.get(at + 1) {
                    None => return Err(Walk::More(at)),
                    Some(b'\n') => return Err(Walk::Cut(at + 1)),
                    Some(_) => from = at + 2,
                },
            }
        }
    }
}

/// How much a `{` looks like the beginning of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// An object whose first key only records and their wrappers begin with.
    Known,
    /// An object with some other first key.
    Other,
}

impl Opening {
    /// Looks at the `{` at this position.
    ///
    /// This never takes text inside a string for a record, whatever a client sends: in JSON a quote inside a string has
    /// a backslash before it, so in `{"key":` the quotes are real, and behind a real closing quote comes no letter.
    pub(crate) fn at(bytes: &[u8], at: usize) -> Option<Opening> {
        let ahead = &bytes[at..bytes.len().min(at + LOOKAHEAD)];
        let key = ahead.strip_prefix(b"{")?.trim_ascii_start().strip_prefix(b"\"")?;
        let length = key
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'@' | b'_' | b'-'))?;
        let (key, rest) = key.split_at(length);
        if length == 0 || !rest.strip_prefix(b"\"")?.trim_ascii_start().starts_with(b":") {
            return None;
        }
        if OPENING_KEYS.iter().any(|known| known.as_bytes() == key) {
            Some(Opening::Known)
        } else {
            Some(Opening::Other)
        }
    }
}

/// The length of an ISO time and the space behind it, which CloudWatch's export to S3 puts before each record.
pub(crate) fn iso_time(line: &[u8]) -> Option<usize> {
    let digits_and_dashes = b"dddd-dd-ddTdd:dd";
    let shape_fits = line.len() > digits_and_dashes.len()
        && line.iter().zip(digits_and_dashes).all(|(byte, shape)| match shape {
            b'd' => byte.is_ascii_digit(),
            b'T' => matches!(byte, b'T' | b' '),
            _ => byte == shape,
        });
    if !shape_fits {
        return None;
    }
    let rest = &line[digits_and_dashes.len()..line.len().min(64)];
    let end = rest
        .iter()
        .position(|byte| !byte.is_ascii_digit() && !matches!(byte, b':' | b'.' | b'Z' | b'+' | b'-'))?;
    let spaces = rest[end..]
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    (spaces > 0 && rest.get(end + spaces) == Some(&b'{')).then_some(digits_and_dashes.len() + end + spaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_keys_open_a_record() {
        let checks = [
            (r#"{"timestamp":1"#, Some(Opening::Known)),
            ("{ \r\n\t \"@message\" : ", Some(Opening::Known)),
            (r#"{"name":"#, Some(Opening::Other)),
            (r#"{"Timestamp":"#, Some(Opening::Other)),
            // What such bytes are in strings that clients send.
            (r#"{\"timestamp\":1}"#, None),
            (r#"{","args":""#, None),
            (r#"{"}]"#, None),
            (r#"{"},{"name":"#, None),
            // What is no key, or not yet.
            (r#"{"timestamp","#, None),
            (r#"{"timestamp":"#.get(..11).unwrap(), None),
            (r#"{"":1"#, None),
            ("{}", None),
            ("{", None),
        ];
        for (text, expected) in checks {
            assert_eq!(Opening::at(text.as_bytes(), 0), expected, "{text}");
        }
    }

    #[test]
    fn a_walk_can_pause_anywhere() {
        let texts: [(&[u8], Walk); 7] = [
            (
                br#"{"a":[1,-2.5e3,true,null,"x\"\\",{}],"b":{"c":[]}} rest"#,
                Walk::Ended(50),
            ),
            (b"{\"a\":\"x\n\"}", Walk::Cut(7)),
            (b"{\"a\":[\n{\"timestamp\":1}", Walk::Cut(6)),
            (b"{\"a\":[\n{\"name\":1}]}", Walk::Ended(19)),
            (b"{\"a\":1\n2026-11-01T12:00:00Z {", Walk::Cut(6)),
            (b"{\"a\":[}", Walk::Wrong(6)),
            (b"{\"a\" 1}", Walk::Wrong(5)),
        ];
        for (text, expected) in texts {
            assert_eq!(
                Walker::new().walk(text, true),
                expected,
                "{}",
                String::from_utf8_lossy(text)
            );
            for pause in 0..text.len() {
                let mut walker = Walker::new();
                // What was not walked yet comes again.
                let (whole, offset) = match walker.walk(&text[..pause], false) {
                    Walk::More(at) => (walker.walk(&text[at..], true), at),
                    whole => (whole, 0),
                };
                let whole = match whole {
                    Walk::More(at) => Walk::More(at + offset),
                    Walk::Ended(at) => Walk::Ended(at + offset),
                    // At the very beginning of a piece the newline before it is out of sight.
                    Walk::Cut(0) if text[offset] != b'\n' => Walk::Cut(offset - 1),
                    Walk::Cut(at) => Walk::Cut(at + offset),
                    Walk::Wrong(at) => Walk::Wrong(at + offset),
                    Walk::TooDeep(at) => Walk::TooDeep(at + offset),
                };
                assert_eq!(whole, expected, "{} after {pause}", String::from_utf8_lossy(text));
            }
        }
    }
}
