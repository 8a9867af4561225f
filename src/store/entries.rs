//! The entries of `layers.json` and `images.json`, as containers/storage reads them.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

use super::list::Entry;
use crate::{
    image::{ChainId, Descriptor, Digest},
    rootfs::WrongLayer,
};

/// A layer of `layers.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerEntry {
    /// The chain of layers that it is the uppermost of.
    pub id: ChainId,
    /// The chain below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ChainId>,
    /// When it was recorded, as RFC 3339 has it.
    pub created: String,
    /// The digest of the layer as it is in the registry.
    pub compressed_diff_digest: Digest,
    /// Its size there, in bytes.
    pub compressed_size: u64,
    /// The digest of the layer decompressed. Without it podman 4.3 ends with a panic.
    pub diff_digest: Digest,
    /// Its size decompressed, in bytes; that of the compressed layer until that is known.
    pub diff_size: u64,
    /// How it is compressed, by the number that containers/storage has for that.
    #[serde(default)]
    pub compression: u8,
}

impl Entry for LayerEntry {
    const PLACE: (&'static str, &'static str) = ("overlay-layers", "layers");
    const LAYER_KEY: &'static str = "id";
}

impl LayerEntry {
    /// Whether it is a layer that has been found not to be what it should be.
    pub(crate) fn is_meant_by(&self, wrong: &WrongLayer) -> bool {
        self.compressed_diff_digest == wrong.layer
            && wrong.diff_id.is_none_or(|diff_id| diff_id == self.diff_digest)
    }

    /// The entry of a layer that is recorded now.
    pub fn new(
        id: ChainId,
        parent: Option<ChainId>,
        blob: &Descriptor,
        diff_id: Digest,
        compression: u8,
    ) -> Self {
        Self {
            id,
            parent,
            created: time(super::now()),
            compressed_diff_digest: blob.digest,
            compressed_size: blob.size,
            diff_digest: diff_id,
            diff_size: blob.size,
            compression,
        }
    }

    /// The same layer, recorded now.
    #[must_use]
    pub fn recorded_now(&self) -> Self {
        Self { created: time(super::now()), ..self.clone() }
    }

    /// When it was recorded, in seconds since 1970; 0 if that cannot be told.
    pub fn created_at(&self) -> i64 {
        DateTime::parse_from_rfc3339(&self.created).map_or(0, |time| time.timestamp())
    }
}

/// Seconds since 1970 as RFC 3339 has them.
pub(super) fn time(seconds: i64) -> String {
    let time = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// How layers of this media type are compressed, by the number that containers/storage has for that. `None` for
/// those that are not shown: encrypted ones, those that are kept elsewhere, and unknown ones.
pub(crate) fn compression(media_type: &str) -> Option<u8> {
    const NONE: u8 = 0;
    const GZIP: u8 = 2;
    const ZSTD: u8 = 4;
    Some(match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => NONE,
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => GZIP,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => ZSTD,
        _ => return None,
    })
}

/// An image of `images.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageEntry {
    /// The hash of its configuration.
    pub id: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its names in full. No other image has one of them.
    #[serde(default)]
    pub names: Vec<String>,
    /// Its uppermost layer.
    pub layer: ChainId,
    /// What podman keeps of an image for itself.
    #[serde(default)]
    pub metadata: String,
    /// The names of its files.
    #[serde(default)]
    pub big_data_names: Vec<String>,
    /// Their sizes in bytes.
    #[serde(default)]
    pub big_data_sizes: BTreeMap<String, u64>,
    /// Their digests.
    #[serde(default)]
    pub big_data_digests: BTreeMap<String, Digest>,
    /// When it was added, as RFC 3339 has it.
    pub created: String,
}

impl Entry for ImageEntry {
    const PLACE: (&'static str, &'static str) = ("overlay-images", "images");
    const LAYER_KEY: &'static str = "layer";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_keys_that_others_read() {
        let diff_id = Digest::sha256(b"x");
        let chains = ChainId::of_layers(&[diff_id, diff_id]).unwrap();
        let blob = Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", diff_id, 5);
        let base = LayerEntry::new(chains[0], None, &blob, diff_id, 2);
        let upper = LayerEntry::new(chains[1], Some(chains[0]), &blob, diff_id, 2);
        let keys = |entry: &LayerEntry| {
            let value = serde_json::to_value(entry).unwrap();
            value.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
        };
        let expected = [
            "id",
            "parent",
            "created",
            "compressed-diff-digest",
            "compressed-size",
            "diff-digest",
            "diff-size",
            "compression",
        ];
        assert_eq!(keys(&upper), expected);
        assert!(!keys(&base).contains(&"parent".to_owned()));
        assert!(super::super::now() - upper.created_at() < 60);
        let text = serde_json::to_string(&upper).unwrap();
        assert_eq!(serde_json::from_str::<LayerEntry>(&text).unwrap(), upper);
    }

    #[test]
    fn layers_that_cannot_be_shown_are_told_by_their_type() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(0)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(2)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(4)),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", None),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", None),
            ("", None),
        ] {
            assert_eq!(compression(media_type), expected, "{media_type}");
        }
    }
}
