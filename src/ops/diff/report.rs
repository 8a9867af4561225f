//! What a comparison tells.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{image::Digest, ops::OpenImage};

/// What differs between two images.
#[derive(Clone, Debug, Serialize)]
pub struct DiffReport {
    /// The old image.
    pub a: Side,
    /// The new image.
    pub b: Side,
    /// What was compared of them.
    pub path: String,
    /// What differs, by path.
    pub changes: Vec<FileChange>,
    /// How much that is.
    pub total: Tally,
    /// Bytes of files that were read of either image to compare them.
    pub compared_bytes: u64,
}

/// One of two images.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// What it was called.
    pub image: String,
    /// Its name, by its digest.
    pub name: String,
    /// What it runs on, as in `linux/arm64/v8`.
    pub platform: String,
    /// Its layers from which something comes or that have something which is no longer there.
    pub layers: Vec<LayerTally>,
}

/// A layer, and what of the differences it has.
#[derive(Clone, Debug, Serialize)]
pub struct LayerTally {
    /// From 0 for the lowest.
    pub number: usize,
    /// The digest of the blob.
    pub digest: Digest,
    /// The line of the history that made it.
    pub created_by: Option<String>,
    /// What of the differences is in it.
    #[serde(flatten)]
    pub tally: Tally,
}

/// How much differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Files, directories and the like that only the new image has.
    pub added: u64,
    /// Their content, in bytes.
    pub added_bytes: u64,
    /// What only the old image has.
    pub removed: u64,
    /// Its content, in bytes.
    pub removed_bytes: u64,
    /// What both have, but not the same.
    pub changed: u64,
}

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Only the new image has it.
    Added,
    /// Only the old image has it.
    Removed,
    /// Both have it, but not the same.
    Changed,
}

/// What of a file is not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// What it is.
    Type,
    /// Its bytes.
    Content,
    /// Its permissions, with set-uid, set-gid and sticky.
    Mode,
    /// Its owner or group.
    Owner,
    /// Where the symbolic link leads.
    Target,
    /// Which other names it has, or how many (hard links).
    Links,
    /// Major or minor number of the device.
    Device,
    /// Its extended attributes.
    Xattrs,
    /// When it was modified.
    Mtime,
}

/// A file that differs.
#[derive(Clone, Debug, Serialize)]
pub struct FileChange {
    /// Its path.
    pub path: String,
    /// How it differs.
    pub change: Change,
    /// What is not the same, if both images have it.
    pub aspects: Vec<Aspect>,
    /// What it is in the old image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<FileState>,
    /// What it is in the new image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<FileState>,
}

/// What a file is in one of the images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileState {
    /// `file`, `directory`, `symlink`, `char`, `block` or `fifo`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Permissions in octal digits, with set-uid, set-gid and sticky.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file or of a symbolic link's target.
    pub size: u64,
    /// Names that it has.
    pub links: u32,
    /// When it was modified, in seconds since 1970.
    pub mtime: i64,
    /// Where it leads, if it is a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Major and minor number, if it is a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<(u16, u32)>,
    /// Names of its extended attributes, and their values as text.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
    /// The number of the layer that it comes from, from 0 for the lowest.
    pub layer: usize,
}

impl DiffReport {
    /// Whether nothing differs.
    pub fn is_same(&self) -> bool {
        self.changes.is_empty()
    }
}

impl Side {
    pub(super) fn new(opened: &OpenImage) -> Self {
        let layers = opened.variant.layers().iter().enumerate().map(|(number, layer)| LayerTally {
            number,
            digest: layer.digest,
            created_by: opened.variant.created_by(number).map(str::to_owned),
            tally: Tally::default(),
        });
        Self {
            image: opened.shown.clone(),
            name: opened.image.name().to_string(),
            platform: opened.platform.clone(),
            layers: layers.collect(),
        }
    }

    /// For what is told by image only.
    pub(super) fn without_layers(opened: &OpenImage) -> Self {
        Self { layers: Vec::new(), ..Self::new(opened) }
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.added += other.added;
        self.added_bytes += other.added_bytes;
        self.removed += other.removed;
        self.removed_bytes += other.removed_bytes;
        self.changed += other.changed;
    }
}
