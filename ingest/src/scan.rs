//! Cuts a log object into records, and finds the way back after damage.
//!
//! A record is parsed where it stands, without looking for its end first: that serves lines, arrays and streams without
//! any delimiter alike. Only when that fails does the walker find out where the damaged record ends, and from there on
//! the scanner seeks the next thing that can only be the beginning of a record. Text in the strings of a well-formed
//! record is never looked at that way; see [`Opening::at`] for why text in a damaged one is no danger either.

use std::fmt;
use std::io::Read;
use std::ops::AddAssign;

use memchr::{memchr, memchr2};

use crate::as_written::{self, Lists};
use crate::container::{Stop, unpack};
use crate::record::{self, Front, Object};
use crate::request::{Request, Wants};
use crate::walk::{LOOKAHEAD, Opening, Walk, Walker, iso_time};

/// A longer record is skipped. Firehose takes none above 1,000 KiB; the rest is room for wrappers, which hold many
/// records at once, escaped. This bounds the memory of a scan.
pub const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The buffer at first. It grows only for records that do not fit.
const BUFFER_BYTES: usize = 256 * 1024;

/// The buffer at most: the longest record and enough behind it to see what comes next.
const BUFFER_BYTES_MAX: usize = RECORD_BYTES_MAX + 1024;

/// With less than this in the buffer, a record that is not as expected may only be cut by the buffer's end.
const NEAR_END_BYTES: usize = 64 * 1024;

/// Without a record in the first so many bytes, an object that does not look like text is given up.
const BINARY_BYTES_MAX: u64 = 1024 * 1024;

/// Bytes that tell text from something else.
const SAMPLE_BYTES: usize = 4096;

/// Reads a log object to its end and lends each record to `each`, in the order they are written.
///
/// ```
/// let log = br#"{"timestamp":1793534400000,"action":"BLOCK","httpRequest":{"clientIp":"192.0.2.44","uri":"/login"}}"#;
/// let mut seen = Vec::new();
/// let scan = ingest::scan(&log[..], |request| seen.push((request.client_ip, request.uri.to_string())));
///
/// assert_eq!(scan.requests, 1);
/// assert_eq!(seen, [("192.0.2.44".parse().unwrap(), "/login".to_owned())]);
/// ```
pub fn scan<R: Read>(log: R, each: impl FnMut(&Request<'_>)) -> Scan {
    scan_for(log, &Wants::everything(), each)
}

/// [`scan()`] for somebody who looks at only some headers, or at no labels: that is several times faster.
pub fn scan_for<R: Read>(log: R, wants: &Wants, each: impl FnMut(&Request<'_>)) -> Scan {
    scan_with(BUFFER_BYTES, Reader::Fast, log, wants, each)
}

/// Which reader is asked first. They agree on everything; tests and the fuzz target see to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The one for records as WAF writes them, and where it gives up the tolerant one.
    Fast,
    /// The tolerant one alone.
    Tolerant,
}

/// [`scan_for()`] with a buffer of this size at first, so that tests can put its edges anywhere.
pub(crate) fn scan_with<R: Read>(
    buffer_bytes: usize,
    reader: Reader,
    log: R,
    wants: &Wants,
    each: impl FnMut(&Request<'_>),
) -> Scan {
    match unpack(log) {
        Ok(text) => Scanner::new(buffer_bytes, reader, wants, text, each).run(),
        Err(stop) => Scan {
            stopped: Some(stop),
            ..Scan::default()
        },
    }
}

/// What a scan met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Records that were read.
    pub requests: u64,
    /// What was skipped, by reason.
    pub skipped: Skipped,
    /// Bytes of text, after unpacking.
    pub bytes: u64,
    /// Why the object was not read to its end, if so. The rest of the scan tells of what came before.
    pub stopped: Option<Stop>,
}

/// Why something is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    /// JSON was begun, but what came is none.
    Malformed,
    /// A record without its end.
    Truncated,
    /// A JSON object that is no WAF log record.
    NotWaf,
    /// A record whose time is missing, or not in milliseconds of this century.
    NoTimestamp,
    /// A record without an address of a client.
    NoClientIp,
    /// A record beyond [`RECORD_BYTES_MAX`].
    TooLong,
    /// A line of something else.
    NotJson,
}

impl Skip {
    /// Every reason, in order.
    pub const ALL: [Skip; 7] = [
        Skip::Malformed,
        Skip::Truncated,
        Skip::NotWaf,
        Skip::NoTimestamp,
        Skip::NoClientIp,
        Skip::TooLong,
        Skip::NotJson,
    ];

    /// The name in summaries, such as `not-waf`.
    pub fn name(self) -> &'static str {
        match self {
            Skip::Malformed => "malformed",
            Skip::Truncated => "truncated",
            Skip::NotWaf => "not-waf",
            Skip::NoTimestamp => "no-timestamp",
            Skip::NoClientIp => "no-client-ip",
            Skip::TooLong => "too-long",
            Skip::NotJson => "not-json",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How often each [`Skip`] was met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    counts: [u64; Skip::ALL.len()],
}

impl Skipped {
    /// Everything skipped, whatever the reason.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How often this reason was met.
    pub fn get(&self, skip: Skip) -> u64 {
        self.counts[skip as usize]
    }

    /// Counts one more.
    pub fn add(&mut self, skip: Skip) {
        self.counts[skip as usize] += 1;
    }

    /// The reasons that were met, in order, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Skip, u64)> {
        Skip::ALL.into_iter().zip(self.counts).filter(|(_, count)| *count > 0)
    }
}

impl AddAssign for Skipped {
    fn add_assign(&mut self, other: Skipped) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
    }
}

/// The part of the text that is in memory.
struct Window<R> {
    text: R,
    buffer: Vec<u8>,
    /// What is in use lies between these.
    start: usize,
    end: usize,
    /// Position of `start` in the whole text.
    position: u64,
    /// No more will come, and if so, perhaps not because the text is at its end.
    ended: bool,
    stopped: Option<Stop>,
}

impl<R: Read> Window<R> {
    fn new(buffer_bytes: usize, text: R) -> Window<R> {
        Window {
            text,
            buffer: vec![0; buffer_bytes.max(2 * LOOKAHEAD)],
            start: 0,
            end: 0,
            position: 0,
            ended: false,
            stopped: None,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, length: usize) {
        self.start += length;
        self.position += length as u64;
    }

    /// Reads until the buffer is full, which makes a scan independent of how the bytes arrive. `false`: there is
    /// nothing more, or, unless `ended`, no room for it.
    fn more(&mut self) -> bool {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.ended {
            return false;
        }
        if self.end == self.buffer.len() {
            if self.end >= BUFFER_BYTES_MAX {
                return false;
            }
            self.buffer.resize((2 * self.end).min(BUFFER_BYTES_MAX), 0);
        }
        let end_before = self.end;
        while self.end < self.buffer.len() {
            match self.text.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(read) => self.end += read,
                Err(error) => {
                    self.ended = true;
                    self.stopped = Some(Stop::from_error(error));
                    break;
                }
            }
        }
        self.end > end_before
    }
}

/// What the scanner is about to do.
#[derive(Clone, Copy)]
enum Mode {
    /// Take the next record.
    Between,
    /// Look for a record in what is left of a damaged one, or of a line that is no record at all.
    Seeking {
        /// Damage reaches up to here: a newline before is a part of it.
        until: u64,
        /// The damaged record was written on several lines, and so will be the rest of it.
        on_lines: bool,
    },
}

struct Scanner<'w, R, F> {
    window: Window<R>,
    reader: Reader,
    wants: &'w Wants,
    lists: Lists,
    each: F,
    scan: Scan,
    mode: Mode,
    /// In `events` of a wrapper that is too long to be held: what comes after them is no damage.
    in_events: bool,
    /// The last line was not text: one reason is enough for the lines that a binary insertion falls into.
    in_binary: bool,
    /// What the text begins with does not look like text.
    begins_binary: bool,
}

impl<'w, R: Read, F: FnMut(&Request<'_>)> Scanner<'w, R, F> {
    fn new(buffer_bytes: usize, reader: Reader, wants: &'w Wants, text: R, each: F) -> Self {
        Scanner {
            window: Window::new(buffer_bytes, text),
            reader,
            wants,
            lists: Lists::default(),
            each,
            scan: Scan::default(),
            mode: Mode::Between,
            in_events: false,
            in_binary: false,
            begins_binary: false,
        }
    }

    fn run(mut self) -> Scan {
        self.window.more();
        let bytes = self.window.bytes();
        self.begins_binary = is_binary(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
        loop {
            if self.is_binary() && self.window.position > BINARY_BYTES_MAX {
                break;
            }
            match self.mode {
                Mode::Seeking { until, on_lines } => self.seek(until, on_lines),
                Mode::Between => {
                    let bytes = self.window.bytes();
                    let blank = bytes.iter().take_while(|byte| is_separator(**byte)).count();
                    let first = bytes.get(blank).copied();
                    self.window.consume(blank);
                    match first {
                        Some(b'{') if self.record_as_written() => {}
                        Some(b'{') => self.record(None),
                        Some(_) => self.other(),
                        None if self.window.more() => {}
                        None => break,
                    }
                }
            }
        }
        let binary = self.is_binary();
        self.scan.bytes = self.window.position + self.window.bytes().len() as u64;
        self.scan.stopped = self.window.stopped;
        if binary && self.scan.stopped.is_none() {
            // The "lines" of such an object say nothing to anybody.
            self.scan.skipped = Skipped::default();
            self.scan.stopped = Some(Stop::Binary);
        }
        self.scan
    }

    fn is_binary(&self) -> bool {
        self.begins_binary && self.scan.requests == 0
    }

    /// Takes the record whose `{` is next, if it is as WAF writes it. Tells whether it was.
    fn record_as_written(&mut self) -> bool {
        if self.reader == Reader::Tolerant {
            return false;
        }
        loop {
            let bytes = self.window.bytes();
            if let Some(length) = as_written::read(bytes, self.wants, &mut self.lists, &mut self.each) {
                self.scan.requests += 1;
                self.in_binary = false;
                self.past(length, true);
                return true;
            }
            // Perhaps only its end is missing. This happens once a buffer: the tolerant reader would have to go over all
            // of the record's beginning, and then again over all of the record.
            let is_near_end = bytes.len() < NEAR_END_BYTES && self.window.start > 0 && !self.window.ended;
            if !is_near_end || !self.window.more() {
                return false;
            }
        }
    }

    /// Takes the record whose `{` is next. If it was found in or behind damage, it may be a part of the damaged record
    /// instead: a header, say. Such a part is nobody's loss.
    fn record(&mut self, opening: Option<Opening>) {
        let found = opening.is_some();
        // After damage we ask the walker first: it gives up on depth, so that nested beginnings of records, each
        // of them without an end, cannot make us read the same bytes over and over again.
        let mut trusted = !found;
        loop {
            let bytes = self.window.bytes();
            if trusted {
                match record::read_front(bytes) {
                    Front::Object(_, length) if length > RECORD_BYTES_MAX => {
                        self.skip(Skip::TooLong);
                        self.window.consume(length);
                        self.mode = Mode::Between;
                        return;
                    }
                    Front::Object(object, length) if found || !swallowed_a_record(&object, &bytes[..length]) => {
                        let read = settle(object, found, self.wants, &mut self.scan, &mut self.each);
                        self.in_binary = false;
                        return self.past(length, read || !found);
                    }
                    Front::Unfinished => {
                        if self.window.more() {
                            continue;
                        }
                    }
                    Front::Object(..) | Front::Wrong => {}
                }
            }
            let bytes = self.window.bytes();
            let mut walker = Walker::new();
            match walker.walk(bytes, self.window.ended) {
                Walk::Ended(_) if !trusted => trusted = true,
                Walk::Ended(length) => {
                    let text = record::repaired(&bytes[..length]);
                    let read = match record::read_front(text.as_bytes()) {
                        Front::Object(object, _) => settle(object, found, self.wants, &mut self.scan, &mut self.each),
                        Front::Unfinished | Front::Wrong => {
                            self.skip_damaged(Skip::Malformed, length, opening);
                            false
                        }
                    };
                    return self.past(length, read || !found);
                }
                Walk::Cut(at) => return self.damaged(Skip::Truncated, at, opening),
                Walk::Wrong(at) => return self.damaged(Skip::Malformed, at, opening),
                Walk::TooDeep(_) if found => return self.window.consume(1),
                Walk::TooDeep(at) => return self.damaged(Skip::Malformed, at, opening),
                Walk::More(at) => {
                    let ended = self.window.ended;
                    // Where the text ends, the walker may see more than where the buffer does.
                    if self.window.more() || self.window.ended != ended {
                        continue;
                    }
                    return if self.window.ended {
                        let length = self.window.bytes().len();
                        self.damaged(Skip::Truncated, length, opening)
                    } else {
                        self.too_long(walker, at)
                    };
                }
            }
        }
    }

    fn skip(&mut self, skip: Skip) {
        self.scan.skipped.add(skip);
    }

    /// Goes past a record, and with it, if that `ends` the damage, back to what should be there.
    fn past(&mut self, length: usize, ends: bool) {
        self.window.consume(length);
        match self.mode {
            Mode::Seeking { until, .. } if !ends || self.window.position < until => {}
            _ => self.mode = Mode::Between,
        }
    }

    /// Counts damage up to `at`, unless it is a part of damage that was: a cut wrapper and the cut record in it are one
    /// cut, and so are a cut record and its cut header.
    fn skip_damaged(&mut self, skip: Skip, at: usize, opening: Option<Opening>) {
        let end = self.window.position + at as u64;
        let known = matches!(self.mode, Mode::Seeking { until, .. } if end <= until);
        if !known && opening != Some(Opening::Other) {
            self.skip(skip);
        }
    }

    /// Counts the record that begins here and is good up to `at`, and seeks the next behind its `{`.
    fn damaged(&mut self, skip: Skip, at: usize, opening: Option<Opening>) {
        self.skip_damaged(skip, at, opening);
        let damaged = &self.window.bytes()[..at];
        let on_lines = memchr(b'\n', damaged.trim_ascii_end()).is_some();
        let until = match self.mode {
            Mode::Seeking { until, .. } => until,
            Mode::Between => 0,
        };
        self.mode = Mode::Seeking {
            until: until.max(self.window.position + at as u64),
            on_lines,
        };
        self.window.consume(1);
    }

    /// Goes past a record that the buffer cannot hold, of which the walker has seen all up to `at`.
    fn too_long(&mut self, mut walker: Walker, mut at: usize) {
        if let Some(events) = walker.events {
            // An export of a whole log group is one object, but its events count by themselves.
            self.in_events = true;
            self.mode = Mode::Between;
            return self.window.consume(events);
        }
        self.skip(Skip::TooLong);
        self.mode = Mode::Between;
        loop {
            self.window.consume(at);
            let ended = !self.window.more() && self.window.ended;
            match walker.walk(self.window.bytes(), ended) {
                Walk::More(_) if ended => return self.window.consume(self.window.bytes().len()),
                Walk::More(seen) => at = seen,
                Walk::Ended(end) | Walk::Cut(end) => return self.window.consume(end),
                Walk::Wrong(end) | Walk::TooDeep(end) => {
                    self.window.consume(end);
                    self.mode = Mode::Seeking {
                        until: self.window.position,
                        on_lines: false,
                    };
                    return;
                }
            }
        }
    }

    /// Takes a line that does not begin like a record.
    fn other(&mut self) {
        if self.window.bytes().len() < LOOKAHEAD {
            self.window.more();
        }
        let bytes = self.window.bytes();
        if bytes.starts_with(b"\xef\xbb\xbf") {
            return self.window.consume(3);
        }
        if let Some(length) = iso_time(bytes) {
            return self.window.consume(length);
        }
        let line = &bytes[..bytes.len().min(LOOKAHEAD)];
        let line = &line[..memchr(b'\n', line).unwrap_or(line.len())];
        let binary = is_binary(line);
        let rest_of_events = self.in_events && matches!(bytes.first(), Some(b'"' | b'}'));
        if bytes.first() == Some(&b'}') {
            self.in_events = false;
        }
        if !(binary && self.in_binary || rest_of_events) {
            self.skip(Skip::NotJson);
        }
        self.in_binary = binary;
        self.mode = Mode::Seeking {
            until: self.window.position,
            on_lines: false,
        };
    }

    /// Goes to the next record on this line, or past the line.
    fn seek(&mut self, until: u64, on_lines: bool) {
        let mut from = 0;
        loop {
            let bytes = self.window.bytes();
            let Some(at) = memchr2(b'{', b'\n', &bytes[from..]).map(|found| from + found) else {
                self.window.consume(bytes.len());
                if self.window.more() {
                    from = 0;
                    continue;
                }
                self.mode = Mode::Between;
                return;
            };
            if bytes.len() - at < LOOKAHEAD && !self.window.ended {
                self.window.consume(at);
                self.window.more();
                from = 0;
                // With less than the lookahead left there was room for more, so by now one of both is true.
                debug_assert!(self.window.ended || self.window.bytes().len() >= LOOKAHEAD);
                continue;
            }
            if bytes[at] == b'\n' {
                let goes_on = on_lines && matches!(bytes.get(at + 1), Some(b' ' | b'\t' | b'"' | b'}' | b']'));
                if goes_on || self.window.position + (at as u64) < until {
                    from = at + 1;
                    continue;
                }
                self.window.consume(at + 1);
                self.mode = Mode::Between;
                return;
            }
            let opening = Opening::at(bytes, at);
            if opening.is_none() {
                from = at + 1;
                continue;
            }
            self.window.consume(at);
            return self.record(opening);
        }
    }
}

/// Counts an object's records and lends them out; tells whether there was one, good or bad.
fn settle(
    object: Object<'_>,
    found: bool,
    wants: &Wants,
    scan: &mut Scan,
    each: &mut impl FnMut(&Request<'_>),
) -> bool {
    let mut any = false;
    object.open(wants, &mut |record| match record {
        Ok(request) => {
            any = true;
            scan.requests += 1;
            each(request);
        }
        Err(Skip::NotWaf) if found => {}
        Err(skip) => {
            any = true;
            scan.skipped.add(skip);
        }
    });
    any
}

/// Whether this record was cut at the end of a line where a value was due, and so took the next line's record for it.
fn swallowed_a_record(object: &Object<'_>, bytes: &[u8]) -> bool {
    memchr(b'\n', bytes).is_some() && !object.is_wrapper() && matches!(Walker::new().walk(bytes, true), Walk::Cut(_))
}

/// What may stand between records: white space, the punctuation of arrays, the record separator of RFC 7464, padding.
fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b'[' | b']' | 0x1e | 0)
}

/// Whether a tenth of this is neither printable nor UTF-8.
fn is_binary(bytes: &[u8]) -> bool {
    let strange: usize = bytes
        .utf8_chunks()
        .map(|chunk| {
            let controls = chunk
                .valid()
                .bytes()
                .filter(|byte| *byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r'));
            controls.count() + chunk.invalid().len()
        })
        .sum();
    strange * 10 > bytes.len()
}
