//! Reads one record, tolerantly.
//!
//! Keys come in any order, unknown ones are passed over, the last of duplicates wins. A number may be written as a string
//! and the other way round; null, or any other type than the one meant, is as good as absence. Only a record without a
//! usable time or client is refused, because nobody could be held responsible for it.
//!
//! Strings without escapes are lent from the bytes; nothing is copied for them.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use memchr::memchr;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::request::{Header, Request, Wants};
use crate::scan::Skip;

/// 2015-01-01, the year WAF appeared. A "time" before it is in seconds, or zero.
pub(crate) const TIMESTAMP_MS_MIN: i64 = 1_420_070_400_000;
/// 2100-01-01. A "time" after it is in microseconds.
pub(crate) const TIMESTAMP_MS_MAX: i64 = 4_102_444_800_000;

/// Wrappers in wrappers that are opened. CloudWatch's `message` in somebody's own `message` occurs; more is a game.
const WRAPPERS_MAX: u32 = 4;

/// An object that begins at the front of some bytes.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly always an object, and a box for each would be slower"
)]
pub(crate) enum Front<'a> {
    /// It was read, and ends before this position.
    Object(Object<'a>, usize),
    /// It may go on behind the bytes.
    Unfinished,
    /// It is not JSON.
    Wrong,
}

/// Reads the object at the front of these bytes, whatever follows it.
pub(crate) fn read_front(bytes: &[u8]) -> Front<'_> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Lenient<Object<'_>>>();
    match values.next() {
        Some(Ok(Lenient(Some(object)))) => Front::Object(object, values.byte_offset()),
        Some(Err(error)) if error.is_eof() => Front::Unfinished,
        Some(Ok(Lenient(None)) | Err(_)) => Front::Wrong,
        None => Front::Unfinished,
    }
}

/// The same bytes without what JSON forbids but a reader can do without: invalid UTF-8, raw control characters and
/// halves of surrogate pairs become U+FFFD.
pub(crate) fn repaired(bytes: &[u8]) -> String {
    const HALF: &str = "\\ufffd";
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.extend(chunk.valid().chars().map(|char| match char {
            '\t' | '\r' => ' ',
            '\n' => '\n',
            char if char < ' ' => '\u{fffd}',
            char => char,
        }));
        if !chunk.invalid().is_empty() {
            text.push('\u{fffd}');
        }
    }
    if !text.contains("\\u") {
        return text;
    }
    let mut whole = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = memchr(b'\\', rest.as_bytes()) {
        let (before, escape) = rest.split_at(at);
        whole.push_str(before);
        let (kept, length) = match (surrogate(escape), escape.get(6..).and_then(surrogate)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (&escape[..12], 12),
            (Some(_), _) => (HALF, 6),
            // The backslash and what it escapes, which may be a backslash itself.
            (None, _) => {
                let length = escape.char_indices().nth(2).map_or(escape.len(), |(length, _)| length);
                (&escape[..length], length)
            }
        };
        whole.push_str(kept);
        rest = &escape[length..];
    }
    whole.push_str(rest);
    whole
}

/// The surrogate that an escape at the front of this text stands for.
fn surrogate(escape: &str) -> Option<u16> {
    let digits = escape.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16)
        .ok()
        .filter(|unit| (0xd800..=0xdfff).contains(unit))
}

/// A JSON object, as far as it concerns us.
#[derive(Default)]
pub(crate) struct Object<'a> {
    request: Request<'a>,
    timestamp_ms: Option<i64>,
    /// What `httpRequest` says; without one the object is no record.
    http: Option<Http>,
    message: Option<Message<'a>>,
    events: Option<Vec<Object<'a>>>,
    control: bool,
}

/// What of `httpRequest` is not yet in the request.
#[derive(Default)]
struct Http {
    client_ip: Option<IpAddr>,
}

/// What a wrapper holds.
enum Message<'a> {
    Text(Cow<'a, str>),
    Object(Box<Object<'a>>),
}

impl<'a> Object<'a> {
    /// Whether this holds records rather than being one.
    pub(crate) fn is_wrapper(&self) -> bool {
        self.http.is_none() && (self.message.is_some() || self.events.is_some() || self.control)
    }

    /// Hands out what is in here: one record, those of a wrapper, or why not.
    pub(crate) fn open(self, wants: &Wants, each: &mut impl FnMut(Result<&Request<'_>, Skip>)) {
        self.open_at(0, wants, each);
    }

    fn open_at(self, depth: u32, wants: &Wants, each: &mut impl FnMut(Result<&Request<'_>, Skip>)) {
        if self.http.is_some() {
            match self.into_request(wants) {
                Ok(request) => each(Ok(&request)),
                Err(skip) => each(Err(skip)),
            }
        } else if self.control {
            // CloudWatch asks whether the stream is there. Nobody requested anything, and nothing is lost.
        } else if depth == WRAPPERS_MAX {
            each(Err(Skip::NotWaf));
        } else if let Some(events) = self.events {
            events
                .into_iter()
                .for_each(|event| event.open_at(depth + 1, wants, each));
        } else {
            match self.message {
                Some(Message::Object(object)) => object.open_at(depth + 1, wants, each),
                Some(Message::Text(text)) => open_text(&text, depth + 1, wants, each),
                None => each(Err(Skip::NotWaf)),
            }
        }
    }

    fn into_request(self, wants: &Wants) -> Result<Request<'a>, Skip> {
        let mut request = self.request;
        request.timestamp_ms = self.timestamp_ms.ok_or(Skip::NoTimestamp)?;
        request.client_ip = self.http.and_then(|http| http.client_ip).ok_or(Skip::NoClientIp)?;
        if request.host.is_none() {
            let header = request
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("host"));
            request.host = header
                .map(|header| header.value.clone())
                .filter(|host| !host.is_empty());
        }
        request.headers.retain(|header| wants.header(header.name.as_bytes()));
        if !wants.labels {
            request.labels.clear();
        }
        Ok(request)
    }
}

/// Opens a wrapped record that was logged as text.
fn open_text(text: &str, depth: u32, wants: &Wants, each: &mut impl FnMut(Result<&Request<'_>, Skip>)) {
    let text = text.trim_start();
    if !text.starts_with('{') {
        return each(Err(Skip::NotWaf));
    }
    match read_front(text.as_bytes()) {
        Front::Object(object, _) => object.open_at(depth, wants, each),
        Front::Unfinished => each(Err(Skip::Truncated)),
        Front::Wrong => match read_front(repaired(text.as_bytes()).as_bytes()) {
            Front::Object(object, _) => object.open_at(depth, wants, each),
            Front::Unfinished => each(Err(Skip::Truncated)),
            Front::Wrong => each(Err(Skip::Malformed)),
        },
    }
}

// Reading leniently: a type says what it can be made of, everything else becomes nothing.

/// What a JSON value of any type becomes, if it can.
trait FromJson<'de>: Sized {
    fn from_text(_text: Cow<'de, str>) -> Option<Self> {
        None
    }
    fn from_integer(_number: i64) -> Option<Self> {
        None
    }
    fn from_float(_number: f64) -> Option<Self> {
        None
    }
    fn from_bool(_truth: bool) -> Option<Self> {
        None
    }
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
    fn from_object<A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// Both the visitor of a value and, by [`Deserialize`], what it became.
struct Lenient<T>(Option<T>);

impl<T> Lenient<T> {
    fn new() -> Self {
        Lenient(None)
    }
}

impl<'de, T: FromJson<'de>> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Lenient::<T>::new()).map(Lenient)
    }
}

impl<'de, T: FromJson<'de>> Visitor<'de> for Lenient<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Option<T>, E> {
        Ok(T::from_text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Option<T>, E> {
        Ok(T::from_text(Cow::Owned(text.to_owned())))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Option<T>, E> {
        Ok(T::from_integer(number))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Option<T>, E> {
        match i64::try_from(number) {
            Ok(number) => Ok(T::from_integer(number)),
            Err(_) => Ok(T::from_float(number as f64)),
        }
    }
    fn visit_f64<E>(self, number: f64) -> Result<Option<T>, E> {
        Ok(T::from_float(number))
    }
    fn visit_bool<E>(self, truth: bool) -> Result<Option<T>, E> {
        Ok(T::from_bool(truth))
    }
    fn visit_unit<E>(self) -> Result<Option<T>, E> {
        Ok(None)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Option<T>, A::Error> {
        T::from_list(list)
    }
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Option<T>, A::Error> {
        T::from_object(object)
    }
}

/// The next value of an object, read leniently.
fn value<'de, T: FromJson<'de>, A: MapAccess<'de>>(object: &mut A) -> Result<Option<T>, A::Error> {
    Ok(object.next_value::<Lenient<T>>()?.0)
}

/// The next value of an object as text, unless it is empty or the word AWS writes for nothing.
fn named<'de, A: MapAccess<'de>>(object: &mut A, nothing: &str) -> Result<Option<Cow<'de, str>>, A::Error> {
    Ok(value::<Cow<'de, str>, _>(object)?.filter(|text| !text.is_empty() && text != nothing))
}

impl<'de> FromJson<'de> for Cow<'de, str> {
    fn from_text(text: Cow<'de, str>) -> Option<Self> {
        Some(text)
    }
    fn from_integer(number: i64) -> Option<Self> {
        Some(Cow::Owned(number.to_string()))
    }
    fn from_float(number: f64) -> Option<Self> {
        Some(Cow::Owned(number.to_string()))
    }
    fn from_bool(truth: bool) -> Option<Self> {
        Some(Cow::Borrowed(if truth { "true" } else { "false" }))
    }
}

struct Integer(i64);

impl<'de> FromJson<'de> for Integer {
    fn from_text(text: Cow<'de, str>) -> Option<Self> {
        let text = text.trim();
        match text.parse() {
            Ok(number) => Some(Integer(number)),
            Err(_) => Self::from_float(text.parse().ok()?),
        }
    }
    fn from_integer(number: i64) -> Option<Self> {
        Some(Integer(number))
    }
    fn from_float(number: f64) -> Option<Self> {
        // Saturates, and what is out of range is refused by those who ask.
        number.is_finite().then_some(Integer(number as i64))
    }
}

impl<'de> FromJson<'de> for IpAddr {
    fn from_text(text: Cow<'de, str>) -> Option<Self> {
        let text = text.trim();
        match text.parse::<IpAddr>() {
            Ok(address) => Some(address.to_canonical()),
            // A zone (`fe80::1%eth0`) names an interface of the logging host, and says nothing about the client.
            Err(_) => Some(IpAddr::V6(text.split_once('%')?.0.parse::<Ipv6Addr>().ok()?).to_canonical()),
        }
    }
}

impl<'de> FromJson<'de> for Header<'de> {
    fn from_object<A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        let (mut header_name, mut header_value) = (None, None);
        while let Some(key) = object.next_key()? {
            match key {
                Key::Name => header_name = value(&mut object)?,
                Key::Value => header_value = value(&mut object)?,
                _ => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(match (header_name, header_value) {
            (Some(name), Some(value)) => Some(Header { name, value }),
            _ => None,
        })
    }
}

struct Label<'a>(Cow<'a, str>);

impl<'de> FromJson<'de> for Label<'de> {
    fn from_text(text: Cow<'de, str>) -> Option<Self> {
        Some(Label(text))
    }
    fn from_object<A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        let mut name = None;
        while let Some(key) = object.next_key()? {
            match key {
                Key::Name => name = value(&mut object)?,
                _ => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(name.map(Label))
    }
}

/// Those elements of a list that can be read.
struct List<T>(Vec<T>);

impl<'de, T: FromJson<'de>> FromJson<'de> for List<T> {
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        // Browsers send a dozen headers.
        let mut read = Vec::new();
        while let Some(Lenient(element)) = list.next_element::<Lenient<T>>()? {
            if read.is_empty() {
                read.reserve(16);
            }
            read.extend(element);
        }
        Ok(Some(List(read)))
    }
}

impl<'de> FromJson<'de> for Message<'de> {
    fn from_text(text: Cow<'de, str>) -> Option<Self> {
        Some(Message::Text(text))
    }
    fn from_object<A: MapAccess<'de>>(object: A) -> Result<Option<Self>, A::Error> {
        Ok(Object::from_object(object)?.map(|object| Message::Object(Box::new(object))))
    }
}

impl<'de> FromJson<'de> for Object<'de> {
    fn from_object<A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        let mut read = Object::default();
        while let Some(key) = object.next_key()? {
            match key {
                Key::Timestamp => read.timestamp_ms = value::<Integer, _>(&mut object)?.and_then(Integer::timestamp_ms),
                Key::WebAcl => read.request.web_acl = value(&mut object)?.unwrap_or_default(),
                Key::Action => read.request.action = value(&mut object)?.unwrap_or_default(),
                Key::WafRule => read.request.waf_rule = value(&mut object)?.unwrap_or_default(),
                Key::Labels => {
                    let labels = value::<List<Label<'de>>, _>(&mut object)?.map_or_else(Vec::new, |labels| labels.0);
                    read.request.labels = labels.into_iter().map(|label| label.0).collect();
                }
                Key::Ja3 => read.request.ja3 = named(&mut object, "-")?,
                Key::Ja4 => read.request.ja4 = named(&mut object, "-")?,
                Key::ResponseCode => {
                    let code = value::<Integer, _>(&mut object)?;
                    read.request.response_code = code.and_then(|code| u16::try_from(code.0).ok());
                }
                Key::HttpRequest => read.http = Some(object.next_value_seed(HttpRequest(&mut read.request))?),
                Key::Message => read.message = value(&mut object)?,
                Key::Events => read.events = value::<List<Object<'de>>, _>(&mut object)?.map(|events| events.0),
                Key::MessageType => {
                    read.control =
                        value::<Cow<'de, str>, _>(&mut object)?.is_some_and(|of_type| of_type == "CONTROL_MESSAGE");
                }
                _ => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Some(read))
    }
}

impl Integer {
    fn timestamp_ms(self) -> Option<i64> {
        Some(self.0).filter(|ms| (TIMESTAMP_MS_MIN..TIMESTAMP_MS_MAX).contains(ms))
    }
}

/// Reads `httpRequest` into the request it belongs to.
struct HttpRequest<'r, 'a>(&'r mut Request<'a>);

impl<'de> serde::de::DeserializeSeed<'de> for HttpRequest<'_, 'de> {
    type Value = Http;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Http, D::Error> {
        let parts = deserializer
            .deserialize_any(Lenient::<HttpParts<'de>>::new())?
            .unwrap_or_default();
        let request = self.0;
        request.country = parts.country;
        request.method = parts.method;
        request.uri = parts.uri;
        request.args = parts.args;
        request.host = parts.host;
        request.headers = parts.headers;
        request.request_id = parts.request_id;
        Ok(Http {
            client_ip: parts.client_ip,
        })
    }
}

#[derive(Default)]
struct HttpParts<'a> {
    client_ip: Option<IpAddr>,
    country: Option<Cow<'a, str>>,
    method: Cow<'a, str>,
    uri: Cow<'a, str>,
    args: Cow<'a, str>,
    host: Option<Cow<'a, str>>,
    headers: Vec<Header<'a>>,
    request_id: Option<Cow<'a, str>>,
}

impl<'de> FromJson<'de> for HttpParts<'de> {
    fn from_object<A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        let mut read = HttpParts::default();
        while let Some(key) = object.next_key()? {
            match key {
                Key::ClientIp => read.client_ip = value(&mut object)?,
                Key::Country => read.country = named(&mut object, "-")?,
                Key::Method => read.method = value(&mut object)?.unwrap_or_default(),
                Key::Uri => read.uri = value(&mut object)?.unwrap_or_default(),
                Key::Args => read.args = value(&mut object)?.unwrap_or_default(),
                Key::Host => read.host = named(&mut object, "")?,
                Key::Headers => {
                    read.headers = value::<List<Header<'de>>, _>(&mut object)?.map_or_else(Vec::new, |list| list.0);
                }
                Key::RequestId => read.request_id = named(&mut object, "null")?,
                _ => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Some(read))
    }
}

/// The keys that matter, wherever they occur.
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
    Message,
    Events,
    MessageType,
    ClientIp,
    Country,
    Method,
    Uri,
    Args,
    Host,
    Headers,
    RequestId,
    Name,
    Value,
    Unknown,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;

        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            // Bytes, because a key that is not UTF-8 is just one more that we do not know.
            fn visit_bytes<E>(self, key: &[u8]) -> Result<Key, E> {
                Ok(match key {
                    b"timestamp" => Key::Timestamp,
                    b"webaclId" => Key::WebAcl,
                    b"action" => Key::Action,
                    b"terminatingRuleId" => Key::WafRule,
                    b"labels" => Key::Labels,
                    b"ja3Fingerprint" => Key::Ja3,
                    b"ja4Fingerprint" => Key::Ja4,
                    b"responseCodeSent" => Key::ResponseCode,
                    b"httpRequest" => Key::HttpRequest,
                    b"message" | b"@message" => Key::Message,
                    b"logEvents" | b"events" => Key::Events,
                    b"messageType" => Key::MessageType,
                    b"clientIp" => Key::ClientIp,
                    b"country" => Key::Country,
                    b"httpMethod" => Key::Method,
                    b"uri" => Key::Uri,
                    b"args" => Key::Args,
                    b"host" => Key::Host,
                    b"headers" => Key::Headers,
                    b"requestId" => Key::RequestId,
                    b"name" => Key::Name,
                    b"value" => Key::Value,
                    _ => Key::Unknown,
                })
            }
        }

        deserializer.deserialize_bytes(KeyVisitor)
    }
}
