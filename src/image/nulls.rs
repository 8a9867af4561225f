//! `null` in documents that others have written. Programs in Go write it for what they have not set, and
//! read it as if the field were not there; so does imgfs, wherever a list, a map, a text or one of their
//! values may stand.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer};

use super::Platform;

/// A field that has its default if it is null.
pub(super) fn absent<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A list of texts without those that are null.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let list: Option<Vec<Option<String>>> = Option::deserialize(deserializer)?;
    Ok(list.unwrap_or_default().into_iter().flatten().collect())
}

/// Bytes in base64; none where it is something else, which nobody need understand.
pub(super) fn base64<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Bytes>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    Ok(text.and_then(|text| STANDARD.decode(text).ok()).map(Bytes::from))
}

/// A map without the keys whose value is null.
pub(super) fn map<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    let map: Option<BTreeMap<String, Option<String>>> = Option::deserialize(deserializer)?;
    let pairs = map.unwrap_or_default().into_iter();
    Ok(pairs.filter_map(|(key, value)| Some((key, value?))).collect())
}

/// A platform, unless it names neither an operating system nor an architecture.
pub(super) fn platform<'de, D>(deserializer: D) -> Result<Option<Platform>, D::Error>
where
    D: Deserializer<'de>,
{
    let platform: Option<Platform> = Option::deserialize(deserializer)?;
    Ok(platform.filter(|platform| !(platform.os.is_empty() && platform.architecture.is_empty())))
}

/// Tells a field that is null (`Some(None)`) from one that is not there (`None`).
pub(super) fn named<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}
