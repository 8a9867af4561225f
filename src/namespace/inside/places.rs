//! What the paths below `.imgfs` lead to, down to the trees.

use std::time::Duration;

use bytes::Bytes;

use super::{
    super::{
        Attributes, Entry, FOR_GOOD, ViewError, below,
        names::{self, InsideForm, inside_path},
    },
    InUse, Inside, Wanted,
    records::TreeId,
};
use crate::{
    backend::images_dir::published_time,
    image::{Digest, Platform, Reference, is_referrers_tag},
    layer::Kind as FileKind,
    rootfs::Image,
    util::locked,
};

pub(super) const MANIFEST: &str = "manifest.json";

pub(super) const CONFIG: &str = "config.json";

pub(super) const STATUS: &str = "status.json";

pub(super) const ROOTFS: &str = "rootfs";

pub(super) const LAYERS: &str = "layers";

/// What a path inside an image leads to, without the trees.
pub(in crate::namespace) enum Place {
    Directory(Vec<(String, FileKind)>),
    Link(String),
    File(Bytes),
    /// A file whose content changes.
    Fresh(Bytes),
    Tree(TreeId),
    /// This path in a tree.
    Below(TreeId, String),
    Nothing,
    Ask(Wanted),
}

pub(super) fn entries_of(image: &Image) -> Vec<(String, FileKind)> {
    let mut entries =
        vec![(MANIFEST.to_owned(), FileKind::File), (STATUS.to_owned(), FileKind::File)];
    entries.extend(image.platforms().map(|name| (name.to_owned(), FileKind::Dir)));
    if entries.len() > 2 {
        entries.push((ROOTFS.to_owned(), FileKind::Symlink));
    }
    entries
}

/// Where a tag that leads to `digest` points, in its own directory.
pub(super) fn link_to(name: &Reference, digest: Digest) -> String {
    let last = name.repository().path().rsplit('/').next().unwrap_or_default();
    format!("{last}@{digest}")
}

/// What tells one content of a path from the next.
pub(super) fn content_of(place: &Place) -> Vec<u8> {
    match place {
        Place::Link(target) => target.as_bytes().to_vec(),
        _ => Vec::new(),
    }
}

impl Inside {
    /// What the path `rest` in an image leads to.
    pub(super) fn place_in_image(&self, name: &Reference, digest: Digest, rest: &str) -> Place {
        let Some(image) = self.images.known_image(&digest) else {
            return Place::Ask(Wanted::Image(name.clone(), digest));
        };
        let mut parts = rest.split('/');
        let first = parts.next().unwrap_or_default();
        let more: Vec<&str> = parts.collect();
        if more.is_empty() {
            match first {
                "" => return Place::Directory(entries_of(&image)),
                MANIFEST => return Place::File(image.manifest().bytes().clone()),
                STATUS => return Place::Fresh(self.status(&image)),
                ROOTFS => {
                    let platform = image.platform_for(&self.platform);
                    let platform = platform.or_else(|| image.platforms().next());
                    return platform
                        .map_or(Place::Nothing, |name| Place::Link(format!("{name}/{ROOTFS}")));
                }
                _ => {}
            }
        }
        if !image.platforms().any(|platform| platform == first) {
            // Another way to write it, such as `linux-arm64-v8`.
            let meant = first.replacen('-', "/", 2).parse().ok();
            let known = meant.and_then(|platform: Platform| image.platform_named(&platform));
            return match known.filter(|_| more.is_empty()) {
                Some(name) => Place::Link(name.to_owned()),
                None => Place::Nothing,
            };
        }
        if more.is_empty() {
            let files = [CONFIG, MANIFEST].map(|name| (name.to_owned(), FileKind::File));
            let dirs = [LAYERS, ROOTFS].map(|name| (name.to_owned(), FileKind::Dir));
            return Place::Directory([files, dirs].concat());
        }
        let Some(variant) = self.images.known_variant(&image, first) else {
            return Place::Ask(Wanted::Platform(image, first.to_owned()));
        };
        match more[..] {
            [MANIFEST] => Place::File(variant.manifest().bytes().clone()),
            [CONFIG] => Place::File(variant.config().clone()),
            [ROOTFS, ref below @ ..] => {
                let id = self.tree_id(name, first, &variant, None);
                Self::tree_place(id, below)
            }
            [LAYERS] => {
                let numbers = 0..variant.layer_count();
                let layers = numbers.map(|number| (number.to_string(), FileKind::Dir));
                Place::Directory(layers.collect())
            }
            [LAYERS, number, ref below @ ..] => match number.parse::<usize>() {
                // `00` is another name than `0`.
                Ok(at) if at < variant.layer_count() && number == at.to_string() => {
                    let id = self.tree_id(name, first, &variant, Some(at));
                    Self::tree_place(id, below)
                }
                _ => Place::Nothing,
            },
            _ => Place::Nothing,
        }
    }

    pub(super) fn tree_place(id: TreeId, below: &[&str]) -> Place {
        match below {
            [] => Place::Tree(id),
            below => Place::Below(id, below.join("/")),
        }
    }

    pub(super) fn status(&self, image: &Image) -> Bytes {
        let mut text = format!("{:#}", self.images.status(image));
        text.push('\n');
        text.into()
    }

    /// What of the images that somebody has looked into is in the directory `way`.
    pub(super) fn seen_in(&self, way: &str) -> Vec<(String, FileKind)> {
        let seen = locked(&self.seen);
        let below = seen.iter().filter_map(|(name, kind)| {
            let rest = if way.is_empty() {
                name.as_str()
            } else {
                name.strip_prefix(way)?.strip_prefix('/')?
            };
            Some(match rest.split_once('/') {
                Some((directory, _)) => (directory.to_owned(), FileKind::Dir),
                None => (rest.to_owned(), *kind),
            })
        });
        below.collect()
    }

    /// What `path`, which is below `.imgfs`, is, if that can be told now.
    pub(in crate::namespace) fn place_now(&self, path: &str) -> Option<Place> {
        match self.place(path) {
            Place::Ask(Wanted::Image(..) | Wanted::Platform(..) | Wanted::Chain(_)) => None,
            place => Some(place),
        }
    }

    /// The same, however long that takes; and what has to be in use so that it stays known.
    pub(in crate::namespace) async fn place_later(
        &self,
        path: &str,
    ) -> Result<(Place, Vec<InUse>), ViewError> {
        let mut in_use = Vec::new();
        loop {
            match self.place(path) {
                Place::Ask(
                    wanted @ (Wanted::Image(..) | Wanted::Platform(..) | Wanted::Chain(_)),
                ) => {
                    in_use.push(self.make_known(&wanted).await?);
                }
                place => return Ok((place, in_use)),
            }
        }
    }

    pub(super) fn place(&self, path: &str) -> Place {
        match names::inside(path) {
            InsideForm::Way(_) => Place::Directory(Vec::new()),
            InsideForm::Tag(name) => match self.catalogue.resolved(&name) {
                Some(digest) => Place::Link(link_to(&name, digest)),
                None => Place::Ask(Wanted::Tag(name)),
            },
            InsideForm::Image(name, digest, rest) => self.place_in_image(&name, digest, rest),
            InsideForm::Chains => self.place_of_chains(),
            InsideForm::Chain(chain, rest) => self.place_in_chain(&chain, rest),
            InsideForm::Nothing => Place::Nothing,
        }
    }

    pub(super) fn entry_of_place(&self, ino: u64, place: &Place) -> Entry {
        let time = published_time(None);
        match place {
            Place::Directory(_) => {
                Entry { attributes: Attributes::directory(ino, time), ttl: FOR_GOOD }
            }
            Place::Link(target) => {
                let attributes = Attributes::symlink(ino, target.len() as u64);
                let is_tag = target.contains('@');
                let ttl = if is_tag { self.tag_ttl } else { FOR_GOOD };
                Entry { attributes, ttl }
            }
            Place::File(content) => {
                let attributes = Attributes::file(ino, content.len() as u64, time);
                Entry { attributes, ttl: FOR_GOOD }
            }
            Place::Fresh(content) => {
                let attributes = Attributes::file(ino, content.len() as u64, time);
                Entry { attributes, ttl: Duration::ZERO }
            }
            Place::Tree(_) | Place::Below(..) | Place::Nothing | Place::Ask(_) => {
                Entry { attributes: Attributes::file(ino, 0, time), ttl: Duration::ZERO }
            }
        }
    }

    /// What is in a directory below `.imgfs` that is no tree: names and kinds.
    pub(in crate::namespace) fn names_in(
        &self,
        path: &str,
    ) -> Result<Vec<(String, FileKind)>, ViewError> {
        let InsideForm::Way(way) = names::inside(path) else {
            return match self.place(path) {
                Place::Directory(entries) => Ok(entries),
                _ => Err(ViewError::Stale),
            };
        };
        let mut entries = self.seen_in(way);
        for (name, is_directory) in self.repositories.names_in(way)?.entries {
            let path = below(way, &name);
            if !is_directory || !matches!(names::inside(&inside_path(&path)), InsideForm::Way(_)) {
                continue;
            }
            let mut has_images = false;
            let mut digests = Vec::new();
            for (image, _) in self.repositories.names_in(&format!("{path}/manifests"))?.entries {
                match image.parse::<Digest>() {
                    Ok(_) => digests.push((format!("{name}@{image}"), FileKind::Dir)),
                    Err(_) if is_referrers_tag(&image) => {}
                    Err(_) => {
                        has_images = true;
                        entries.push((format!("{name}:{image}"), FileKind::Symlink));
                    }
                }
            }
            // Most digests are those of what tags lead to, or of platforms.
            if !has_images {
                has_images = !digests.is_empty();
                entries.append(&mut digests);
            }
            let has_more = self
                .repositories
                .names_in(&path)?
                .entries
                .iter()
                .any(|(name, is_directory)| *is_directory && name != "manifests");
            if has_more || !has_images {
                entries.push((name, FileKind::Dir));
            }
        }
        Ok(entries)
    }
}
