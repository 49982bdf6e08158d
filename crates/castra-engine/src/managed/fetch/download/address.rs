//! Addresses that a download may connect to: public ones only, unless the user allows others.
//!
//! URLs of images come from files, and files come with repositories. Without this check, one could
//! make a user's machine send requests to services that trust it alone: on loopback, in the local
//! network, or a cloud's metadata service. The check sees the actual socket addresses, after name
//! resolution and for every redirect.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout};

use crate::context::{PrivateSources, RuntimeContext};

/// Check of the addresses that are connected to.
#[derive(Debug, Clone)]
pub(super) struct Guard(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    allowed: PrivateSources,
    /// Host and port of the user's proxy and mirror, which are trusted wherever they are.
    trusted: Vec<(String, u16)>,
}

/// An address that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused(pub(super) SocketAddr);

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not a public address", self.0)
    }
}

impl Guard {
    /// Creates the check of what the user allows. `proxy` is the user's own.
    pub(super) fn new(context: &RuntimeContext, proxy: Option<(String, u16)>) -> Self {
        let mirror = context.own_mirror.as_ref().and_then(authority);
        let trusted = proxy.into_iter().chain(mirror).collect();
        Self(Arc::new(Rules { allowed: context.private_sources.clone(), trusted }))
    }

    fn allows(&self, address: SocketAddr) -> bool {
        is_public(address.ip()) || self.0.allowed.allow(address)
    }

    fn trusts(&self, uri: &Uri) -> bool {
        authority(uri).is_some_and(|authority| self.0.trusted.contains(&authority))
    }
}

fn authority(uri: &Uri) -> Option<(String, u16)> {
    let port = uri.port_u16().or_else(|| match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    });
    Some((uri.host()?.to_ascii_lowercase(), port?))
}

/// Returns `true` for an address that is reachable from everywhere, by the registries of RFC 6890.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let special = match ip.octets() {
        // This network; private networks; carrier-grade NAT; this host; link-local, with the
        // clouds' metadata services.
        [0 | 10 | 127, ..]
        | [100, 64..=127, ..]
        | [169, 254, ..]
        | [172, 16..=31, ..]
        | [192, 168, ..] => true,
        // Protocol assignments, documentation, 6to4 relays, benchmarks.
        [192, 0, 0 | 2, _]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..] => true,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => true,
        _ => false,
    };
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        // IPv4 in IPv6: mapped addresses, and those that NAT64 and 6to4 translate.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            embedded(high, low)
        }
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo and other assignments, documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast is all of 2000::/3; everything else is local, multicast or nothing.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Resolver that leaves out addresses that are not allowed.
#[derive(Debug)]
pub(super) struct GuardedResolver(pub(super) Guard);

impl Resolver for GuardedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = DefaultResolver::default().resolve(uri, config, timeout)?;
        if self.0.trusts(uri) {
            return Ok(found);
        }
        let mut kept = self.empty();
        for address in found.iter().filter(|address| self.0.allows(**address)) {
            kept.push(*address);
        }
        match (kept.is_empty(), found.first()) {
            (true, Some(address)) => Err(ureq::Error::Other(Box::new(Refused(*address)))),
            _ => Ok(kept),
        }
    }
}

/// Connector that refuses an address in the URL itself, which a proxy would be asked for without
/// any name resolution here.
#[derive(Debug)]
pub(super) struct GuardedConnector(pub(super) Guard);

impl Connector<()> for GuardedConnector {
    type Out = ();

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<()>,
    ) -> Result<Option<()>, ureq::Error> {
        let host = details.uri.host().unwrap_or_default();
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let address =
            ip.zip(authority(details.uri)).map(|(ip, (_, port))| SocketAddr::new(ip, port));
        match address.filter(|address| !self.0.allows(*address) && !self.0.trusts(details.uri)) {
            Some(address) => Err(ureq::Error::Other(Box::new(Refused(address)))),
            None => Ok(chained),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::context::{ALLOW_PRIVATE_SOURCES, Environment, MIRROR};
    use crate::report::Silent;

    fn guard(switch: &str, mirror: &str, proxy: Option<(String, u16)>) -> Guard {
        let variables = [("HOME", "/nowhere"), (ALLOW_PRIVATE_SOURCES, switch), (MIRROR, mirror)];
        let environment = Environment::of(variables);
        let context = RuntimeContext::new(environment, Arc::new(Silent), Cancel::new());
        Guard::new(&context.expect("a context"), proxy)
    }

    fn allows(switch: &str, address: &str) -> bool {
        guard(switch, "", None).allows(address.parse().expect("an address"))
    }

    #[test]
    fn only_public_addresses_are_connected_to() {
        let private = [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "10.0.0.1:80",
            "172.16.0.1:80",
            "172.31.255.255:80",
            "192.168.1.1:80",
            "169.254.169.254:80",
            "100.64.0.1:80",
            "100.127.0.1:80",
            "192.0.0.192:80",
            "198.18.0.1:80",
            "224.0.0.1:80",
            "239.1.1.1:80",
            "240.0.0.1:80",
            "255.255.255.255:80",
            "[::]:80",
            "[::1]:80",
            "[::7f00:1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::7f00:1]:80",
            "[64:ff9b:1::1]:80",
            "[2002:7f00:1::]:80",
            "[2001::1]:80",
            "[2001:db8::1]:80",
            "[fc00::1]:80",
            "[fd00:ec2::254]:80",
            "[fe80::1]:80",
            "[fec0::1]:80",
            "[ff02::1]:80",
            "[100::1]:80",
        ];
        for address in private {
            assert!(!allows("", address), "{address}");
            assert!(!allows("0", address), "{address}");
            assert!(allows("1", address), "{address}");
        }
        for address in [
            "1.1.1.1:443",
            "172.15.0.1:80",
            "172.32.0.1:80",
            "100.63.0.1:80",
            "100.128.0.1:80",
            "151.101.1.1:443",
            "192.0.1.1:80",
            "[2606:4700::1111]:443",
            "[2a04:4e42::1]:443",
            "[::ffff:1.1.1.1]:80",
            "[64:ff9b::101:101]:443",
        ] {
            assert!(allows("", address), "{address}");
        }
    }

    #[test]
    fn the_switch_can_name_addresses() {
        let switch = "127.0.0.1:8000, 10.0.0.5,[::1]:9";
        for address in ["127.0.0.1:8000", "[::ffff:127.0.0.1]:8000", "10.0.0.5:80", "[::1]:9"] {
            assert!(allows(switch, address), "{address}");
        }
        for address in ["127.0.0.1:8001", "127.0.0.2:8000", "10.0.0.6:80", "[::1]:10"] {
            assert!(!allows(switch, address), "{address}");
        }
    }

    #[test]
    fn the_users_own_mirror_and_proxy_may_be_anywhere() {
        let guard =
            guard("", "http://Mirror.lan:8080/castra", Some(("127.0.0.1".to_owned(), 3128)));
        for (uri, trusted) in [
            ("http://mirror.lan:8080/x", true),
            ("http://mirror.lan/x", false),
            ("http://127.0.0.1:3128/", true),
            ("http://127.0.0.1:80/", false),
            ("http://mirror.lan.example.org:8080/", false),
        ] {
            assert_eq!(guard.trusts(&uri.parse().expect("a URI")), trusted, "{uri}");
        }
    }
}
