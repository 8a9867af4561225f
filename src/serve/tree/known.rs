//! What is known of a repository in a bucket, from what was asked for.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    backend::object_store::ManifestObject,
    image::Digest,
    serve::index::{Index, Place, Stored},
};

/// For how long what was there is taken to be there.
pub(super) const HOLDS: Duration = Duration::from_secs(60);

/// Manifests of one repository that are remembered because they were asked for.
const MAX_SEEN: usize = 1024;

/// Blobs of one repository that are remembered because they were brought.
const MAX_BROUGHT: usize = 4096;

impl Place for ManifestObject {
    fn name(&self) -> &OsStr {
        self.key().as_ref()
    }
}

/// What is known of a repository.
#[derive(Default)]
pub(super) struct Slot {
    /// Held by whoever lists it; the others wait for that.
    pub(super) listing: tokio::sync::Mutex<()>,
    pub(super) known: Mutex<Known>,
}

#[derive(Default)]
pub(super) struct Known {
    /// What names, tags and digests, have been found to lead to.
    pub(super) seen: HashMap<String, Seen>,
    /// All that was there at a moment.
    pub(super) index: Option<(Arc<Index<ManifestObject>>, Instant)>,
    /// Blobs that the repository has not got whatever manifests name, at a moment.
    pub(super) lacking: Option<(Arc<HashSet<Digest>>, Instant)>,
    /// The sizes of blobs that were brought, and until when that is known to hold.
    pub(super) brought: HashMap<Digest, (u64, Instant)>,
    /// When something was found to be there.
    pub(super) existed: Option<Instant>,
}

#[derive(Clone)]
pub(super) struct Seen {
    pub(super) stored: Arc<Stored<ManifestObject>>,
    /// When it was found there first, and last.
    pub(super) since: Instant,
    pub(super) at: Instant,
}

/// What the manifests say of a blob that are known to be there.
pub(super) struct Stated {
    /// Its size; there may be manifests that do not agree.
    pub(super) sizes: Vec<u64>,
    /// When the last of them was found.
    pub(super) since: Instant,
}

impl Known {
    pub(super) fn note_seen(&mut self, name: String, seen: Seen) {
        if self.seen.len() >= MAX_SEEN {
            self.seen.clear();
        }
        self.existed = Some(seen.at);
        self.seen.insert(name, seen);
    }

    pub(super) fn note_brought(&mut self, blob: Digest, size: u64, until: Instant) {
        if self.brought.len() >= MAX_BROUGHT {
            self.brought.clear();
        }
        self.existed = Some(Instant::now());
        self.brought.insert(blob, (size, until));
    }

    /// What manifests say of `blob` that were there not long ago.
    pub(super) fn stated(&self, blob: &Digest) -> Option<Stated> {
        let lately = self.seen.values().filter(|seen| seen.at.elapsed() < HOLDS);
        let mut sizes = Vec::new();
        let mut since = None;
        for seen in lately {
            let blobs = &seen.stored.entry.contents.blobs;
            for &(_, size) in blobs.iter().filter(|(digest, _)| digest == blob) {
                sizes.push(size);
                since = since.max(Some(seen.since));
            }
        }
        if let Some((index, at)) = self.index.as_ref().filter(|(_, at)| at.elapsed() < HOLDS) {
            let stated = index.sizes(blob);
            if !stated.is_empty() {
                sizes.extend(stated);
                since = since.max(Some(*at));
            }
        }
        sizes.sort_unstable();
        sizes.dedup();
        since.map(|since| Stated { sizes, since })
    }

    /// The names of manifests that name `blob`, and were there longer ago.
    pub(super) fn worth_asking(&self, blob: &Digest) -> Vec<String> {
        let names_it =
            |seen: &Seen| seen.stored.entry.contents.blobs.iter().any(|(digest, _)| digest == blob);
        let seen = self.seen.iter().filter(|(_, seen)| names_it(seen));
        seen.map(|(name, _)| name.clone()).collect()
    }

    /// How much it names.
    pub(super) fn named(&self) -> usize {
        let seen = self.seen.values().map(|seen| 1 + seen.stored.entry.contents.blobs.len());
        let index = self.index.as_ref().map_or(0, |(index, _)| index.named());
        seen.sum::<usize>() + index + self.brought.len()
    }

    /// Forgets what may have gone.
    pub(super) fn forget(&mut self) {
        *self = Self { brought: std::mem::take(&mut self.brought), ..Self::default() };
    }
}
