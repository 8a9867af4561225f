//! How values are written: sizes, durations, addresses, patterns.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use imgfs::backend::registry::{PatternError, RegistryPattern};

/// `10G`, `500M`, `64KiB` or a plain number of bytes; K, M, G and T are powers of 1024.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_uppercase();
    let shift = match unit.trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("write it as in 10G, 500M or 1048576".into()),
    };
    let number: u64 = number.parse().map_err(|_| "write it as in 10G or 500M".to_owned())?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or("it is out of range".into())
}

/// The same, or 0.
pub(super) fn size_or_zero(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { size(text) }
}

/// `HOST=ADDRESS[:PORT]`
pub(super) fn resolution(text: &str) -> Result<(String, SocketAddr), String> {
    let (host, address) = text.split_once('=').ok_or("write it as HOST=ADDRESS[:PORT]")?;
    let socket = match address.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, 0),
        Err(_) => address.parse().map_err(|_| format!("`{address}` is no IP address"))?,
    };
    let host = match host.to_ascii_lowercase().as_str() {
        "" => return Err("the host is missing".into()),
        "docker.io" | "index.docker.io" => "registry-1.docker.io".to_owned(),
        host => host.to_owned(),
    };
    Ok((host, socket))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("it must be more than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as in 90s, 5m or 1h30m")),
    }
}

pub(super) fn umask(text: &str) -> Result<u16, String> {
    let mask = u16::from_str_radix(text, 8).ok().filter(|mask| *mask <= 0o777);
    mask.ok_or_else(|| "write it as in 022 or 007".into())
}

pub(super) fn pattern(text: &str) -> Result<RegistryPattern, PatternError> {
    text.parse()
}
