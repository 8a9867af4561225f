//! What is in directories that can be written to, and in which order it is listed.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{
        Entry, Listing, below,
        listing::{Content, Names},
        names,
    },
    STATUS, Writable,
};
use crate::{backend, image::Digest, layer::Kind as FileKind, util::locked};

impl Writable {
    /// Whether a directory that the view shows is there. All that may lead to an image at a registry is, as long as
    /// registries are asked.
    pub(super) fn is_directory_there(&self, path: &str, entry: &Entry, is_hidden: bool) -> bool {
        if path == names::inside_path("") || self.table.leads_to(path) {
            return true;
        }
        if path == names::BLOBS {
            return !is_hidden;
        }
        let is_here = entry.attributes.local.is_some();
        let is_known = || {
            let catalogue = self.catalogue();
            !catalogue.below(path).is_empty()
                || !catalogue.names(path).is_empty()
                || names::repository_of(path).is_some_and(|name| !catalogue.names(name).is_empty())
        };
        is_here || self.catalogue().source().is_some() || is_known()
    }

    pub(super) fn listing_of(&self, ino: u64, path: &str) -> Listing {
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        let parent = self.view.inodes().number(above, &[]);
        let found = self.table.names_in(path).into_iter();
        let kind = |is_directory| if is_directory { FileKind::Dir } else { FileKind::File };
        let entries = found.map(|(name, is_directory)| (name, kind(is_directory))).collect();
        let names = Names::new(entries, path.into(), None, self.dir.layout());
        Listing { ino, parent, unchanged: false, content: Content::Names(names) }
    }

    /// Adds what is pending to what the view lists, and puts it in the order in which it can be removed.
    pub(super) fn complete_listing(&self, mut listing: Listing) -> Listing {
        listing.unchanged = false;
        let Content::Names(names) = &mut listing.content else { return listing };
        let path = names.path.to_string();
        if path == names::inside_path("") {
            names.entries.push((STATUS.to_owned(), FileKind::File));
            return listing;
        }
        names.entries.retain(|(name, _)| {
            let path = below(&path, name);
            !self.table.is_hidden(&path) || self.table.named(&path).is_some()
        });
        let mut has: std::collections::HashSet<String> =
            names.entries.iter().map(|(name, _)| name.clone()).collect();
        for (name, is_directory) in self.table.names_in(&path) {
            if has.insert(name.clone()) {
                let kind = if is_directory { FileKind::Dir } else { FileKind::File };
                names.entries.push((name, kind));
            }
        }
        if backend::images_dir::holds_manifests(&path) {
            self.order(&path, &mut names.entries);
        }
        listing
    }

    /// Tags before digests, and indexes before what they name: so each can be removed when it comes.
    pub(super) fn order(&self, dir: &str, entries: &mut [(String, FileKind)]) {
        let digest = |name: &str| name.parse::<Digest>().ok();
        let named: HashMap<Digest, Arc<[Digest]>> = entries
            .iter()
            .filter_map(|(name, _)| digest(name))
            .map(|digest| (digest, self.children_of(dir, &digest)))
            .collect();
        let mut ranks: HashMap<Digest, usize> = named.keys().map(|digest| (*digest, 1)).collect();
        // As deep as indexes may be nested.
        for _ in 0..8 {
            for (index, children) in &named {
                let rank = ranks[index];
                for child in children.iter() {
                    if let Some(below) = ranks.get_mut(child) {
                        *below = (*below).max(rank + 1);
                    }
                }
            }
        }
        let rank =
            |name: &str| digest(name).map_or(0, |digest| ranks.get(&digest).copied().unwrap_or(1));
        entries.sort_by_cached_key(|(name, _)| (rank(name), name.clone()));
    }

    pub(super) fn children_of(&self, dir: &str, digest: &Digest) -> Arc<[Digest]> {
        if let Some(known) = locked(&self.children).get(digest) {
            return known.clone();
        }
        let Some(manifest) = self.dir.manifest_in(dir, digest) else { return Arc::new([]) };
        let children: Arc<[Digest]> = manifest.children().iter().map(|c| c.digest).collect();
        locked(&self.children).put(*digest, children.clone());
        children
    }
}
