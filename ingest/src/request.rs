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
    /// The headers in the order they were logged, duplicates included.
    pub headers: Vec<Header<'a>>,
    /// Labels that rules put on the request.
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
