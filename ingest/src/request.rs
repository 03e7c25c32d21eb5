//! What one WAF log record says about one request.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

/// One WAF log record, borrowed from the bytes it was read from.
///
/// Strings are as logged. WAF's redaction (`REDACTED`) and data protection (a Base64 hash) replace values before they
/// are logged, so any of them may be one of these instead.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// When the request was made, in milliseconds since 1970. The only event time: an object's name is later.
    pub timestamp_ms: i64,
    /// The web ACL: an ARN, or the bare GUID of WAF Classic; empty if not logged.
    pub web_acl: Cow<'a, str>,
    /// What WAF did: `ALLOW`, `BLOCK`, `CAPTCHA`, `CHALLENGE`, and whatever AWS adds one day.
    pub action: Cow<'a, str>,
    /// The rule that decided (`terminatingRuleId`), or `Default_Action`.
    pub waf_rule: Cow<'a, str>,
    /// The TCP peer. An IPv4 address that was written as IPv6 is IPv4 here.
    pub client_ip: IpAddr,
    /// Two letters, if AWS knew.
    pub country: Option<Cow<'a, str>>,
    /// `GET`, `POST`, …
    pub method: Cow<'a, str>,
    /// The path, without the query string.
    pub uri: Cow<'a, str>,
    /// The query string, without the question mark.
    pub args: Cow<'a, str>,
    /// The host as logged since 2025, else the `Host` header.
    pub host: Option<Cow<'a, str>>,
    /// The headers in the order they were logged, duplicates included; those of them that were [wanted](Wants).
    pub headers: Vec<Header<'a>>,
    /// Labels that rules put on the request, if they were [wanted](Wants).
    pub labels: Vec<Cow<'a, str>>,
    /// The JA3 fingerprint of the TLS handshake: CloudFront and ALB only.
    pub ja3: Option<Cow<'a, str>>,
    /// The JA4 fingerprint of the TLS handshake: CloudFront and ALB only.
    pub ja4: Option<Cow<'a, str>>,
    /// The status of a custom response. Not the origin's status, which WAF never sees.
    pub response_code: Option<u16>,
    /// CloudFront's, the load balancer's or the API's id of the request.
    pub request_id: Option<Cow<'a, str>>,
}

/// One header of a request, as logged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// In the client's own spelling: compare without case.
    pub name: Cow<'a, str>,
    /// The value.
    pub value: Cow<'a, str>,
}

impl Request<'_> {
    /// Every value of a header, in order. Names are compared without ASCII case, as HTTP has it.
    pub fn header<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s str> {
        self.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| &*header.value)
    }

    /// The first `User-Agent`, if one was sent and logged.
    pub fn user_agent(&self) -> Option<&str> {
        self.headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("user-agent"))
            .map(|header| &*header.value)
    }

    /// Whether WAF let the request through to the origin.
    pub fn allowed(&self) -> bool {
        self.action.eq_ignore_ascii_case("ALLOW")
    }
}

/// Which headers, and whether labels, somebody will look at. The others are checked like everything else, but not handed
/// out, which is most of the work with a request.
///
/// ```
/// let log = br#"{"timestamp":1793534400000,"httpRequest":{"clientIp":"192.0.2.44","headers":[{"name":"Via","value":"1.1 x"},{"name":"Cookie","value":"a=b"}]}}"#;
/// let wants = ingest::Wants::nothing().and_header("via");
/// ingest::scan_for(&log[..], &wants, |request| {
///     assert_eq!(request.headers.len(), 1);
///     assert_eq!(request.header("via").next(), Some("1.1 x"));
/// });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wants {
    all_headers: bool,
    headers: Vec<String>,
    pub(crate) labels: bool,
}

impl Wants {
    /// All headers and labels.
    pub fn everything() -> Wants {
        Wants {
            all_headers: true,
            headers: Vec::new(),
            labels: true,
        }
    }

    /// Neither headers nor labels. A host that was not logged by itself is still taken from the `Host` header.
    pub fn nothing() -> Wants {
        Wants {
            all_headers: false,
            headers: Vec::new(),
            labels: false,
        }
    }

    /// The headers of this name too, in any case.
    #[must_use]
    pub fn and_header(mut self, name: &str) -> Wants {
        if !self.header(name.as_bytes()) {
            self.headers.push(name.to_owned());
        }
        self
    }

    /// Labels too.
    #[must_use]
    pub fn and_labels(mut self) -> Wants {
        self.labels = true;
        self
    }

    /// Whether headers of this name are wanted.
    #[inline]
    pub(crate) fn header(&self, name: &[u8]) -> bool {
        self.all_headers
            || self
                .headers
                .iter()
                .any(|wanted| wanted.as_bytes().eq_ignore_ascii_case(name))
    }
}

/// A request from `0.0.0.0` at the epoch that asks for nothing: what tests fill in.
impl Default for Request<'_> {
    fn default() -> Self {
        Request {
            timestamp_ms: 0,
            web_acl: Cow::default(),
            action: Cow::default(),
            waf_rule: Cow::default(),
            client_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            country: None,
            method: Cow::default(),
            uri: Cow::default(),
            args: Cow::default(),
            host: None,
            headers: Vec::new(),
            labels: Vec::new(),
            ja3: None,
            ja4: None,
            response_code: None,
            request_id: None,
        }
    }
}
