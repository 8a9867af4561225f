//! Which network addresses may be connected to. Names are judged by what they resolve to at the
//! time of the connection, so that a name whose address changes gains nothing.
//!
//! Addresses are in one of four zones, in the order of what a stranger could do there through us:
//! public ones, private ones, those of this machine, and special ones (link-local, multicast,
//! metadata services of clouds). A connection has a limit: the last zone that it may lead to.

use std::{
    collections::BTreeMap,
    env, fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    sync::{Arc, Mutex},
};

use lru::LruCache;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

use crate::util::locked;

/// Hosts whose zone is remembered. A host that was forgotten counts as a public one, which allows
/// least.
const REMEMBERED_HOSTS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Where an address is. The order is that of the limits: who may reach one may reach those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Zone {
    /// Anywhere in the Internet.
    Public,
    /// A private network (RFC 1918, RFC 4193, RFC 6598).
    Private,
    /// This machine.
    Loopback,
    /// Link-local, multicast, reserved, unspecified, or a cloud's metadata service.
    Special,
}

impl Zone {
    /// The zone of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, c, _] = address.octets();
        // Alibaba's metadata service, and Azure's, which has a public address.
        let metadata = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
        match (a, b, c) {
            _ if metadata.contains(&address) => Self::Special,
            // This network (also an address of this machine on Linux), link-local (and most
            // metadata services), protocol assignments (and Oracle's), multicast and reserved.
            (0, ..) | (169, 254, _) | (192, 0, 0) | (224..=255, ..) => Self::Special,
            (127, ..) => Self::Loopback,
            (100, 64..=127, _) => Self::Private,
            _ if address.is_private() => Self::Private,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let v4_in = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Special,
            // The metadata services of Amazon (and its other local services) and Google.
            [0xfd00, 0x0ec2, ..] | [0xfd20, 0x00ce, ..] => Self::Special,
            [0xfe80..=0xfebf, ..] | [0xff00..=0xffff, ..] => Self::Special,
            [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Self::Private,
            // An IPv4 address in other words: NAT64 and 6to4, and the old form of a mapped one.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => {
                Self::of_v4(v4_in(high, low))
            }
            [0x2002, high, low, ..] => Self::of_v4(v4_in(high, low)),
            _ => Self::Public,
        }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "in a private network",
            Self::Loopback => "on this machine",
            Self::Special => "link-local or otherwise special",
        })
    }
}

/// A connection that was not made because of where its address is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} is at {address}, which is {}", Zone::of(*address))]
pub(crate) struct Refused {
    host: String,
    address: IpAddr,
}

/// The address in a URL whose host is one.
pub(crate) fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).parse().ok()
}

/// Refuses a URL whose host is an address beyond `limit`. The resolver never sees those.
pub(crate) fn check_literal(url: &Url, limit: Zone) -> Result<(), Refused> {
    match literal(url) {
        Some(address) if Zone::of(address) > limit => {
            Err(Refused { host: url.host_str().unwrap_or_default().to_owned(), address })
        }
        _ => Ok(()),
    }
}

/// What hosts have resolved to so far.
#[derive(Debug)]
pub(crate) struct Zones(Mutex<LruCache<String, Zone>>);

impl Default for Zones {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED_HOSTS)))
    }
}

impl Zones {
    /// The first zone in which `host` has ever had an address. Where that is not known, the host
    /// counts as public.
    pub(crate) fn of_host(&self, host: &str) -> Zone {
        locked(&self.0).get(host).copied().unwrap_or(Zone::Public)
    }

    fn note(&self, host: &str, zone: Zone) {
        let mut known = locked(&self.0);
        // A name that has been public once must not become trusted by resolving to something else.
        let zone = known.get(host).map_or(zone, |before| zone.min(*before));
        known.put(host.to_owned(), zone);
    }
}

/// The system's resolver, without addresses that are beyond the limit.
pub(crate) struct Resolver {
    limit: Zone,
    zones: Arc<Zones>,
    /// Hosts of proxies, which the user has named and which are always to be reached.
    proxies: Arc<[String]>,
}

impl Resolver {
    /// One for connections that may lead as far as `limit`.
    pub(crate) fn new(limit: Zone, zones: Arc<Zones>) -> Self {
        Self { limit, zones, proxies: proxy_hosts(env::vars()).into() }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_ascii_lowercase();
        let is_proxy = self.proxies.contains(&host);
        let (limit, zones) = (self.limit, self.zones.clone());
        Box::pin(async move {
            // The port is filled in by the HTTP library.
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            if is_proxy {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            let kept = filter(&host, found, limit, &zones)?;
            Ok(Box::new(kept.into_iter()) as Addrs)
        })
    }
}

/// The addresses of `host` that are within `limit`. An error if there are others only.
fn filter(
    host: &str,
    found: Vec<SocketAddr>,
    limit: Zone,
    zones: &Zones,
) -> Result<Vec<SocketAddr>, Refused> {
    if let Some(first) = found.iter().map(|address| Zone::of(address.ip())).min() {
        zones.note(host, first);
    }
    let (kept, beyond): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| Zone::of(address.ip()) <= limit);
    match (kept.is_empty(), beyond.first()) {
        (true, Some(address)) => Err(Refused { host: host.to_owned(), address: address.ip() }),
        _ => Ok(kept),
    }
}

/// The hosts of the proxies that the HTTP library takes from the environment.
fn proxy_hosts(vars: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let vars: BTreeMap<String, String> =
        vars.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let values = ["http_proxy", "https_proxy", "all_proxy"].iter().filter_map(|n| vars.get(*n));
    let url = |value: &String| match value.contains("://") {
        true => value.parse::<Url>().ok(),
        false => format!("http://{value}").parse().ok(),
    };
    values.filter_map(|value| Some(url(value)?.host_str()?.to_ascii_lowercase())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_of_addresses() {
        for (address, zone) in [
            ("8.8.8.8", Zone::Public),
            ("198.18.0.1", Zone::Public),
            ("172.15.0.1", Zone::Public),
            ("2606:4700::1", Zone::Public),
            ("10.1.2.3", Zone::Private),
            ("172.16.0.1", Zone::Private),
            ("192.168.1.1", Zone::Private),
            ("100.64.0.1", Zone::Private),
            ("fd12:3456::1", Zone::Private),
            ("fec0::1", Zone::Private),
            ("127.0.0.1", Zone::Loopback),
            ("127.9.9.9", Zone::Loopback),
            ("::1", Zone::Loopback),
            ("0.0.0.0", Zone::Special),
            ("0.1.2.3", Zone::Special),
            ("169.254.169.254", Zone::Special),
            ("169.254.0.1", Zone::Special),
            ("192.0.0.192", Zone::Special),
            ("100.100.100.200", Zone::Special),
            ("168.63.129.16", Zone::Special),
            ("224.0.0.1", Zone::Special),
            ("240.0.0.1", Zone::Special),
            ("255.255.255.255", Zone::Special),
            ("::", Zone::Special),
            ("fe80::1", Zone::Special),
            ("ff02::1", Zone::Special),
            ("fd00:ec2::254", Zone::Special),
            ("fd20:ce::254", Zone::Special),
            // The same in other words.
            ("::ffff:169.254.169.254", Zone::Special),
            ("::ffff:127.0.0.1", Zone::Loopback),
            ("::127.0.0.1", Zone::Loopback),
            ("64:ff9b::169.254.169.254", Zone::Special),
            ("64:ff9b::8.8.8.8", Zone::Public),
            ("2002:a9fe:a9fe::1", Zone::Special),
            ("2002:7f00:1::", Zone::Loopback),
        ] {
            assert_eq!(Zone::of(address.parse().unwrap()), zone, "{address}");
        }
    }

    #[test]
    fn literals_are_found_however_they_are_written() {
        for (url, limit, fits) in [
            ("http://169.254.169.254/x", Zone::Loopback, false),
            ("http://169.254.169.254/x", Zone::Special, true),
            ("http://[fe80::1]:80/x", Zone::Loopback, false),
            ("http://2130706433/x", Zone::Private, false),
            ("http://0x7f.1/x", Zone::Private, false),
            ("http://127.0.0.1/x", Zone::Loopback, true),
            ("http://10.0.0.1/x", Zone::Private, true),
            ("https://quay.io/x", Zone::Public, true),
        ] {
            assert_eq!(check_literal(&url.parse().unwrap(), limit).is_ok(), fits, "{url}");
        }
    }

    #[test]
    fn addresses_beyond_the_limit_are_left_out() {
        let zones = Zones::default();
        let list = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
        };
        let mixed = list(&["169.254.169.254", "10.0.0.1"]);
        assert_eq!(filter("a", mixed, Zone::Loopback, &zones).unwrap(), list(&["10.0.0.1"]));
        let refused = filter("b", list(&["169.254.169.254"]), Zone::Loopback, &zones).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "b is at 169.254.169.254, which is link-local or otherwise special"
        );
        assert!(filter("c", Vec::new(), Zone::Public, &zones).unwrap().is_empty());
    }

    #[test]
    fn a_host_that_was_public_stays_so() {
        let zones = Zones::default();
        assert_eq!(zones.of_host("x"), Zone::Public);
        zones.note("x", Zone::Loopback);
        assert_eq!(zones.of_host("x"), Zone::Loopback);
        zones.note("x", Zone::Public);
        zones.note("x", Zone::Loopback);
        assert_eq!(zones.of_host("x"), Zone::Public, "rebinding");
    }

    #[test]
    fn proxies_are_known() {
        let vars = [
            ("HTTP_PROXY", "http://Proxy.example.com:3128"),
            ("https_proxy", "user:pass@localhost:3129"),
            ("NO_PROXY", "quay.io"),
        ];
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(proxy_hosts(vars.into_iter()), ["proxy.example.com", "localhost"]);
    }
}
