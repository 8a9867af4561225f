//! What has been pushed and is not to be kept in the images_dir ([`Keeping::Drop`]).
//!
//! Images that are on their way may need the same blobs, and nothing says so before their manifests have been
//! written: `rsync` brings all blobs first. So what has been pushed stays until nothing has been written for
//! [`IDLE`], or until the mount ends. If a manifest still waits then, it all stays: what the waiting one needs may be
//! known to nobody yet.
//!
//! [`Keeping::Drop`]: crate::namespace::Keeping::Drop

use std::{collections::HashSet, num::NonZeroUsize, sync::Mutex, time::Duration};

use lru::LruCache;
use tokio::sync::{RwLock, RwLockReadGuard};

use super::{Writable, place::ManifestPlace, publish::Missing, publish::failed};
use crate::{
    backend::images_dir::ImagesDir,
    image::{Digest, Manifest},
    namespace::Writing,
    util::locked,
};

/// What has been pushed stays for so long after something was written last.
pub(super) const IDLE: Duration = Duration::from_secs(300);

/// Blobs and manifests that are noted; others stay.
const MAX_NOTED: usize = 1 << 18;

/// Blobs of which is remembered that they have been dropped.
const MAX_DROPPED: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 14) - 1);

/// Children of children below this depth stay.
const MAX_DEPTH: usize = 8;

/// What has been pushed.
pub(super) struct Pushed {
    /// Held by whoever publishes something, so that nothing goes meanwhile that it needs.
    gate: RwLock<()>,
    parts: Mutex<Parts>,
    dropped: Mutex<LruCache<Digest, ()>>,
}

#[derive(Clone, Default)]
struct Parts {
    blobs: HashSet<Digest>,
    manifests: HashSet<Digest>,
}

impl Default for Pushed {
    fn default() -> Self {
        let dropped = Mutex::new(LruCache::new(MAX_DROPPED));
        Self { gate: RwLock::default(), parts: Mutex::default(), dropped }
    }
}

impl Pushed {
    /// As long as this is held, nothing is dropped.
    pub(super) async fn stay(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// Notes what `manifest`, which has been pushed from `place`, consists of.
    pub(super) fn note(&self, dir: &ImagesDir, manifest: &Manifest, place: &ManifestPlace) {
        let mut found = Parts::default();
        found.add(dir, manifest, &place.dir, 0);
        let mut parts = locked(&self.parts);
        if parts.blobs.len() + parts.manifests.len() < MAX_NOTED {
            parts.blobs.extend(found.blobs);
            parts.manifests.extend(found.manifests);
        }
    }

    /// Somebody has written it again: it is kept for what comes with it.
    pub(super) fn wrote(&self, digest: &Digest) {
        let mut parts = locked(&self.parts);
        parts.blobs.remove(digest);
        parts.manifests.remove(digest);
    }

    /// Says of what a manifest waits for that it was here.
    pub(super) fn tell_dropped(&self, path: &str, missing: &[Missing]) {
        let dropped = locked(&self.dropped);
        if let Some(gone) = missing.iter().find(|missing| dropped.contains(&missing.digest)) {
            tracing::warn!(
                "{path}: it waits for {}, which has been pushed and was not kept (--no-keep): write that again",
                gone.digest
            );
        }
    }
}

impl Parts {
    fn is_empty(&self) -> bool {
        self.blobs.is_empty() && self.manifests.is_empty()
    }

    fn add(&mut self, dir: &ImagesDir, manifest: &Manifest, at: &str, depth: usize) {
        self.blobs.extend(manifest.blobs().map(|blob| blob.digest));
        for child in manifest.children().iter().filter(|_| depth < MAX_DEPTH) {
            if self.manifests.insert(child.digest)
                && let Some(child) = dir.manifest_in(at, &child.digest)
            {
                self.add(dir, &child, at, depth + 1);
            }
        }
    }
}

impl Writable {
    /// Removes what has been pushed and nothing here needs, unless something is on its way. May wait for the disk.
    pub(super) fn drop_pushed(&self) {
        let Ok(_nobody_publishes) = self.pushed().gate.try_write() else { return };
        if locked(&self.pushed().parts).is_empty() || self.waiting() > 0 {
            return;
        }
        let parts = locked(&self.pushed().parts).clone();
        // It is said to be filled by this mount.
        locked(&self.filling).filling = None;
        match self.dir().remove_unneeded(&parts.blobs, &parts.manifests) {
            Ok(Some(removed)) => {
                let mut dropped = locked(&self.pushed().dropped);
                for digest in removed {
                    dropped.put(digest, ());
                }
                *locked(&self.pushed().parts) = Parts::default();
            }
            // Another process fills the directory, and may need it.
            Ok(None) => {}
            Err(error) => self.log(&failed(&error)),
        }
    }
}
