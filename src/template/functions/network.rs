//! KubeKey's functions on addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Call, Function, function};
use crate::template::{Value, error::Cause};

pub(super) const FUNCTIONS: &[Function] = &[
    function("ipFamily", "s", |call| {
        let text = call.text(0);
        let address = text.parse().ok().or_else(|| network(&text).map(|(address, _)| address));
        match address {
            Some(IpAddr::V4(_)) => Ok("IPv4".into()),
            Some(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => Ok("IPv4".into()),
            Some(IpAddr::V6(_)) => Ok("IPv6".into()),
            None => Err(format!("{text} is not ip or cidr").into()),
        }
    }),
    function("isIP", "s", |call| Ok(call.text(0).parse::<IpAddr>().is_ok().into())),
    function("ipInCIDR", "s", |call| {
        let mut found = Vec::new();
        for part in call.text(0).split(',') {
            addresses(call, part, &mut found)?;
        }
        Ok(found.into_iter().collect())
    }),
];

/// An address and the length of its prefix.
fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let is_number = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let length = length.parse().ok().filter(|length| is_number && *length <= bits)?;
    Some((address, length))
}

/// Adds the addresses that `10.0.0.0/30`, `10.0.0.0/255.255.255.252`, `10.0.0.1-10.0.0.4` or
/// `10.0.0.1` stands for. Of a network of IPv4, its own address and that of the broadcast are none.
fn addresses(call: &Call<'_>, text: &str, found: &mut Vec<Value>) -> Result<(), Cause> {
    let text = text.trim_end_matches('/');
    let range = if let Some((address, length)) = text.split_once('/') {
        if length == "32" || length == "128" {
            found.push(address.into());
            return Ok(());
        }
        let text = match length.parse::<Ipv4Addr>() {
            Ok(mask) => format!("{}/{}", address.trim(), mask.to_bits().leading_ones()),
            Err(_) => text.trim().to_owned(),
        };
        match network(&text) {
            Some((IpAddr::V4(address), length)) => {
                let hosts = u32::MAX.checked_shr(length).unwrap_or(0);
                let first = u128::from(address.to_bits() & !hosts);
                Some((first + 1, (first + u128::from(hosts)).saturating_sub(1), true))
            }
            Some((IpAddr::V6(address), length)) => {
                let hosts = u128::MAX.checked_shr(length).unwrap_or(0);
                Some((address.to_bits() & !hosts, address.to_bits() | hosts, false))
            }
            None => None,
        }
    } else if let Some((first, last)) = text.split_once('-') {
        match (first.parse(), last.parse()) {
            (Ok(IpAddr::V4(first)), Ok(IpAddr::V4(last))) => {
                Some((first.to_bits().into(), last.to_bits().into(), true))
            }
            (Ok(IpAddr::V6(first)), Ok(IpAddr::V6(last))) => {
                Some((first.to_bits(), last.to_bits(), false))
            }
            _ => None,
        }
    } else {
        found.push(text.into());
        return Ok(());
    };
    let Some((first, last, is_v4)) = range else { return Ok(()) };
    for bits in first..=last {
        call.run.steps(1)?;
        let address = match u32::try_from(bits) {
            Ok(bits) if is_v4 => IpAddr::V4(Ipv4Addr::from_bits(bits)),
            _ => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        };
        found.push(address.to_string().into());
    }
    Ok(())
}
