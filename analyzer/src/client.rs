//! Whom a ban hits: an IPv4 address, or an IPv6 network.
//!
//! A client is taken from the address that connected, or from a hop of a forwarded header that the operator trusts,
//! counted from the right, because everything left of it was written by whoever sent the request.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ingest::Request;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Whom a ban hits, as a network: an IPv4 /32, or an IPv6 network of the policy's `ipv6_prefix`. No host bits are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client(IpNet);

/// One number is hashed faster than all the parts of a network.
impl Hash for Client {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.0 {
            IpNet::V4(net) => state.write_u64(u64::from(net.addr().to_bits()) << 8 | u64::from(net.prefix_len())),
            // Host bits are zero, unless the network is a single address.
            IpNet::V6(net) => state.write_u128(net.addr().to_bits() ^ u128::from(net.prefix_len())),
        }
    }
}

/// What tells an IPv4 prefix length from an IPv6 one in [`Client::to_bits`].
const IPV4: u16 = 256;

impl Client {
    /// The client behind `address`; `ipv6_prefix` is between 1 and 128. IPv4 in IPv6 clothes (`::ffff:192.0.2.1`) is IPv4.
    pub fn of(address: IpAddr, ipv6_prefix: u8) -> Client {
        match address.to_canonical() {
            IpAddr::V4(v4) => Client(IpNet::V4(Ipv4Net::from(v4))),
            IpAddr::V6(v6) => {
                let net = Ipv6Net::new(v6, ipv6_prefix).unwrap_or_else(|_| Ipv6Net::from(v6));
                Client(IpNet::V6(net.trunc()))
            }
        }
    }

    /// The client that is this very network, as it was stored; host bits are cleared.
    pub fn of_net(net: IpNet) -> Client {
        Client(net.trunc())
    }

    /// The network to ban.
    pub fn net(self) -> IpNet {
        self.0
    }

    /// The address and the prefix length, which has [`IPV4`] on top for IPv4.
    #[inline]
    pub(crate) fn to_bits(self) -> (u128, u16) {
        match self.0 {
            IpNet::V4(net) => (u128::from(net.addr().to_bits()), IPV4 + u16::from(net.prefix_len())),
            IpNet::V6(net) => (net.addr().to_bits(), u16::from(net.prefix_len())),
        }
    }

    /// The client of [`Client::to_bits`].
    pub(crate) fn from_bits(address: u128, length: u16) -> Client {
        let address: IpAddr = match length {
            IPV4.. => Ipv4Addr::from_bits(address as u32).into(),
            _ => Ipv6Addr::from_bits(address).into(),
        };
        Client(IpNet::new_assert(address, (length % IPV4) as u8))
    }

    /// Whether the two networks share an address.
    pub fn overlaps(self, net: &IpNet) -> bool {
        net.contains(&self.0) || self.0.contains(net)
    }

    /// Why no log may ever get this client banned, or `None` for an ordinary one.
    pub fn never_banned(self) -> Option<&'static str> {
        NEVER_BANNED
            .iter()
            .find(|(net, _)| IpNet::from_str(net).is_ok_and(|net| self.overlaps(&net)))
            .map(|(_, what)| *what)
    }
}

/// With its prefix: `192.0.2.44/32`, `2001:db8::/64`.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ranges of the IANA special-purpose address registries (RFC 6890) that no client on the internet has. A log that
/// shows one shows a proxy, a spoofed header or a health check; banning it would ban something of the operator's.
/// The documentation ranges are not here: nobody owns them, and examples and drills need somebody to ban.
const NEVER_BANNED: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network (RFC 791)"),
    ("10.0.0.0/8", "private address (RFC 1918)"),
    ("100.64.0.0/10", "carrier-grade NAT (RFC 6598)"),
    ("127.0.0.0/8", "loopback (RFC 1122)"),
    ("169.254.0.0/16", "link-local (RFC 3927)"),
    ("172.16.0.0/12", "private address (RFC 1918)"),
    ("192.0.0.0/24", "protocol assignments (RFC 6890)"),
    ("192.168.0.0/16", "private address (RFC 1918)"),
    ("224.0.0.0/4", "multicast (RFC 5771)"),
    ("240.0.0.0/4", "reserved or broadcast (RFC 1112)"),
    ("::/127", "unspecified or loopback (RFC 4291)"),
    ("64:ff9b::/96", "NAT64, behind which a whole network may sit (RFC 6052)"),
    ("fc00::/7", "unique local address (RFC 4193)"),
    ("fe80::/10", "link-local (RFC 4291)"),
    ("ff00::/8", "multicast (RFC 4291)"),
];

/// Where a request's client is read from: the policy's `[client]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSource {
    /// The connection itself, or a header.
    pub ip: IpSource,
    /// How long the network of an IPv6 client is. A household or a server gets a /64 (RFC 6177), and may use any address in it.
    pub ipv6_prefix: u8,
}

/// The address a client is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpSource {
    /// `clientIp`: who connected to the load balancer, API or distribution.
    Source,
    /// A header that the operator's own proxies append to.
    Header {
        /// The header's name; matches without regard to case.
        name: String,
        /// How many proxies of the operator's append to it: 1 takes the last address, 2 the last but one.
        trusted_hops: usize,
    },
}

impl ClientSource {
    /// The client that made `request`, or `None` when the trusted hop holds no address: then nobody can be blamed, for the
    /// address that connected is the operator's own proxy.
    pub fn client_of(&self, request: &Request<'_>) -> Option<Client> {
        let address = match &self.ip {
            IpSource::Source => request.client_ip,
            IpSource::Header { name, trusted_hops } => {
                // Several headers of one name are one list in order (RFC 9110, section 5.3).
                let mut hops: Vec<&str> = Vec::new();
                for value in request.header(name) {
                    hops.extend(value.split(','));
                }
                let hop = hops.len().checked_sub(*trusted_hops).map(|at| hops[at])?;
                parse_hop(hop)?
            }
        };
        Some(Client::of(address, self.ipv6_prefix))
    }
}

/// An address as proxies write it: bare, with a port, in brackets, quoted, or with a zone.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim().trim_matches('"');
    if let Ok(address) = hop.parse::<IpAddr>() {
        return Some(address);
    }
    if let Ok(socket) = hop.parse::<SocketAddr>() {
        return Some(socket.ip());
    }
    let bare = hop
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .map_or(hop, |(inside, _)| inside);
    let bare = bare.split_once('%').map_or(bare, |(address, _)| address);
    if let Ok(address) = bare.parse::<Ipv6Addr>() {
        return Some(IpAddr::V6(address));
    }
    // CloudFront-Viewer-Address writes IPv6 with a port and without brackets: `2001:db8:0:0:0:0:0:1:46532`. Where the port
    // passes for one more group, it falls into the host half, which a /64 ignores.
    let (address, port) = hop.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// Reads an address or network as an operator writes it; a bare address is itself alone.
///
/// # Errors
/// A sentence fragment when it is neither, or has host bits set.
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => IpNet::from(
            text.parse::<IpAddr>()
                .map_err(|_| format!("`{text}` is not an address or a network; write it like `203.0.113.0/24`"))?,
        ),
    };
    if net.trunc() != net {
        return Err(format!(
            "`{text}` has bits set after its prefix; did you mean `{}`?",
            net.trunc()
        ));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use ingest::Header;

    use super::*;

    fn client_behind(hops: usize, headers: &[(&str, &str)]) -> Option<String> {
        let source = ClientSource {
            ip: IpSource::Header {
                name: "x-forwarded-for".into(),
                trusted_hops: hops,
            },
            ipv6_prefix: 64,
        };
        let headers = headers
            .iter()
            .map(|(name, value)| Header {
                name: (*name).into(),
                value: (*value).into(),
            })
            .collect();
        source
            .client_of(&Request {
                headers,
                ..Request::default()
            })
            .map(|c| c.to_string())
    }

    #[test]
    fn hops_are_counted_from_the_right_whatever_the_sender_wrote_left_of_them() {
        let xff = [("X-Forwarded-For", "127.0.0.1, 203.0.113.9,192.0.2.44")];
        assert_eq!(client_behind(1, &xff).unwrap(), "192.0.2.44/32");
        assert_eq!(client_behind(2, &xff).unwrap(), "203.0.113.9/32");
        assert_eq!(client_behind(4, &xff), None);
        let two_headers = [("x-forwarded-for", "127.0.0.1"), ("X-FORWARDED-FOR", "192.0.2.44")];
        assert_eq!(client_behind(1, &two_headers).unwrap(), "192.0.2.44/32");
    }

    #[test]
    fn a_hop_that_is_no_address_blames_nobody() {
        for value in [
            "",
            "unknown",
            "192.0.2.44, ",
            "192.0.2.44, REDACTED",
            "192.0.2.300",
            "1",
            "a:b:c:d:e:f:g:h:1",
        ] {
            assert_eq!(client_behind(1, &[("x-forwarded-for", value)]), None, "{value}");
        }
        assert_eq!(client_behind(1, &[]), None);
    }

    #[test]
    fn hops_are_read_as_proxies_write_them() {
        for (value, client) in [
            ("192.0.2.44:5123", "192.0.2.44/32"),
            (" \"[2001:db8:1:2:3::4]:80\"", "2001:db8:1:2::/64"),
            ("[2001:db8::1]", "2001:db8::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("::ffff:192.0.2.44", "192.0.2.44/32"),
            ("2001:db8:0:0:0:0:0:1:46532", "2001:db8::/64"),
        ] {
            assert_eq!(
                client_behind(1, &[("x-forwarded-for", value)]).as_deref(),
                Some(client),
                "{value}"
            );
        }
    }

    #[test]
    fn addresses_no_client_has_are_never_banned() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "64:ff9b::c000:22c",
        ] {
            assert!(
                Client::of(address.parse().unwrap(), 64).never_banned().is_some(),
                "{address}"
            );
        }
        for address in ["192.0.2.44", "8.8.8.8", "172.32.0.1", "2001:db8::1", "2600::1"] {
            assert_eq!(
                Client::of(address.parse().unwrap(), 64).never_banned(),
                None,
                "{address}"
            );
        }
    }

    #[test]
    fn a_network_with_host_bits_is_refused_with_the_one_that_was_meant() {
        assert!(
            parse_cidr("192.0.2.66/29")
                .unwrap_err()
                .contains("did you mean `192.0.2.64/29`?")
        );
        assert_eq!(parse_cidr("192.0.2.66").unwrap().to_string(), "192.0.2.66/32");
        assert!(parse_cidr("office").is_err());
    }
}
