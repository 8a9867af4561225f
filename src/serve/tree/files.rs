//! What is in each repository of a directory: derived from its files when it is first asked for, and again when they
//! change.
//!
//! The index is only ever a reflection of the directory: it is compared with what the directory and the file of a
//! tag look like at every request, so what `imgfs pull`, `prune` and `rm` do beside the server counts at once. A file
//! that looks as it did is not read again.

use std::{
    ffi::OsStr,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use bytes::Bytes;

use super::{Manifests, Slots};
use crate::{
    backend::{
        Error, Kind, Result,
        images_dir::{FileStamp, ImagesDir, ManifestFile},
    },
    image::{Digest, Repository},
    serve::{
        index::{Entry, Index, Listed, Place, Stored},
        route::Target,
    },
    util::locked,
};

/// Bytes of manifests that are kept.
const MANIFEST_BYTES: usize = 4 << 20;

impl Place for ManifestFile {
    fn name(&self) -> &OsStr {
        self.path.as_os_str()
    }
}

/// The index of a repository, and what its directories looked like.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) index: Index<ManifestFile>,
    stamps: Vec<FileStamp>,
    /// It was changed so shortly before it was read that it may have been changed since without a trace.
    is_fresh: bool,
    /// Files that were no manifests: somebody may just be writing them.
    unreadable: Vec<ManifestFile>,
}

/// The indexes of all repositories.
pub(super) struct Indexes {
    dir: ImagesDir,
    slots: Slots<Slot>,
    manifests: Manifests,
}

#[derive(Default)]
struct Slot {
    /// Held by whoever reads the directory; the others wait for that.
    reading: tokio::sync::Mutex<()>,
    current: Mutex<Option<Arc<Snapshot>>>,
}

impl Slot {
    fn current(&self) -> Option<Arc<Snapshot>> {
        locked(&self.current).clone()
    }
}

impl Indexes {
    pub(super) fn new(dir: ImagesDir) -> Self {
        Self { dir, slots: Slots::new(), manifests: Manifests::new(MANIFEST_BYTES) }
    }

    /// What is in `repository` now.
    pub(super) async fn get(&self, repository: &Repository) -> Result<Arc<Snapshot>> {
        let stamps = self.dir.repository_stamp(repository);
        if stamps.is_empty() {
            return Ok(Arc::default());
        }
        let slot = self.slots.get(repository);
        if let Some(snapshot) = slot.current().filter(|snapshot| self.holds(snapshot, &stamps)) {
            return Ok(snapshot);
        }
        let _reading = slot.reading.lock().await;
        let before = slot.current();
        let stamps = self.dir.repository_stamp(repository);
        // Somebody else has just read it.
        match before.clone().filter(|snapshot| self.holds(snapshot, &stamps)) {
            Some(snapshot) => Ok(snapshot),
            None => self.read(repository, &slot, before).await,
        }
    }

    /// Whether `snapshot` is what its directories have, which look like `stamps` now.
    fn holds(&self, snapshot: &Snapshot, stamps: &[FileStamp]) -> bool {
        snapshot.stamps == stamps
            && !snapshot.is_fresh
            && snapshot.unreadable.iter().all(|file| self.is_same(file))
    }

    /// Whether a file looks as it did.
    fn is_same(&self, file: &ManifestFile) -> bool {
        self.dir.stamp(&file.path) == Some(file.stamp)
    }

    /// The manifest that `target` leads to in `repository` now.
    pub(super) async fn find(
        &self,
        repository: &Repository,
        target: &Target,
    ) -> Result<Option<Arc<Entry>>> {
        let snapshot = self.get(repository).await?;
        let Some(stored) = snapshot.index.find(target) else { return Ok(None) };
        // Somebody may have written into the file, which the directory does not show.
        if self.is_same(&stored.place) {
            return Ok(Some(stored.entry.clone()));
        }
        let slot = self.slots.get(repository);
        let _reading = slot.reading.lock().await;
        let before = slot.current();
        let snapshot = self.read(repository, &slot, before).await?;
        Ok(snapshot.index.find(target).map(|stored| stored.entry.clone()))
    }

    /// The bytes of a manifest. An error if they are not what they were.
    pub(super) async fn bytes(&self, repository: &Repository, digest: &Digest) -> Result<Bytes> {
        if let Some(bytes) = self.manifests.get(digest) {
            return Ok(bytes);
        }
        let snapshot = self.get(repository).await?;
        let doing = || format!("reading the manifest {}", repository.pinned(*digest));
        let Some(stored) = snapshot.index.find(&Target::Digest(*digest)) else {
            return Err(Error::new("images_dir", doing(), Kind::NotFound(String::new())));
        };
        let manifest = self.dir.read_manifest(&stored.place).await?;
        if manifest.digest() == *digest {
            self.manifests.put(*digest, manifest.bytes().clone());
            return Ok(manifest.bytes().clone());
        }
        let kind = Kind::Digest { expected: *digest, found: manifest.digest() };
        Err(Error::new("images_dir", doing(), kind))
    }

    /// The repositories in whose indexes that are kept a blob is named. There may be others: to find them all, every
    /// manifest of the tree would have to be read.
    pub(super) fn naming(&self, blob: &Digest) -> Vec<Repository> {
        self.slots.filter(|slot| slot.current().is_some_and(|current| current.index.names(blob)))
    }

    /// Reads what is in a repository, but for the files that are what they were `before`.
    async fn read(
        &self,
        repository: &Repository,
        slot: &Slot,
        before: Option<Arc<Snapshot>>,
    ) -> Result<Arc<Snapshot>> {
        let now = SystemTime::now();
        let stamps = self.dir.repository_stamp(repository);
        let is_fresh = stamps.iter().any(|stamp| stamp.is_recent(now));
        let found = self.dir.repository_files(repository).await?;
        let listed = Listed { tags: found.tags, digests: found.digests };
        let (mut known, unread) = listed
            .compare(|name| before.as_ref().and_then(|before| before.index.at(name).cloned()));
        let read = self.dir.map_manifests(unread.clone(), |file, manifest| {
            let stored = manifest.map(|manifest| {
                Arc::new(Stored { place: file.clone(), entry: Arc::new(Entry::of(&manifest)) })
            });
            // What cannot be read is a matter of `imgfs verify`.
            stored.inspect_err(|error| tracing::debug!("{error}")).ok()
        });
        let read = read.await?.into_iter().flatten();
        known.extend(read.map(|stored| (stored.place.name().to_owned(), stored)));
        let unreadable = unread.into_iter().filter(|file| !known.contains_key(file.name()));
        let unreadable = unreadable.collect();
        let index = Index::build(listed, known);
        let snapshot = Arc::new(Snapshot { index, stamps, is_fresh, unreadable });
        *locked(&slot.current) = Some(snapshot.clone());
        self.slots.shrink(|slot| slot.current().map_or(0, |current| current.index.named()));
        Ok(snapshot)
    }
}
