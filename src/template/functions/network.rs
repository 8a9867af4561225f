//! KubeKey's functions on addresses.

use std::net::IpAddr;

use super::{Function, function};

pub(super) const FUNCTIONS: &[Function] = &[
    function("ipFamily", "s", |call| {
        let text = call.text(0);
        match address(&text) {
            Some(IpAddr::V4(_)) => Ok("IPv4".into()),
            Some(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => Ok("IPv4".into()),
            Some(IpAddr::V6(_)) => Ok("IPv6".into()),
            None => Err(format!("{text} is not ip or cidr").into()),
        }
    }),
    function("isIP", "s", |call| Ok(call.text(0).parse::<IpAddr>().is_ok().into())),
];

/// An address, alone or with the length of a prefix.
fn address(text: &str) -> Option<IpAddr> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let fits = |length: &str| length.parse::<u8>().is_ok_and(|length| length <= bits);
    length.is_none_or(fits).then_some(address)
}
