//! What is remembered of what has come through: which tags led where and when, the manifests, and how large blobs
//! are. It survives restarts, so that a server can start, and go on, without its upstreams.
//!
//! ```text
//! repositories/<SHA-256 of the name>.json   a [`Record`]
//! manifests/<algorithm>-<hex>               a manifest; its content is compared with its name when it is read
//! ```
//!
//! Files are written beside their places and renamed. What is lost is asked for again.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lru::LruCache;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    backend::{ConfinedDir, Error, Result, images_dir::Layout},
    image::{Digest, MAX_MANIFEST_BYTES, Manifest, Repository},
    util::locked,
};

/// Records that are kept in memory.
const KEPT: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The largest record that is read, in bytes.
const MAX_RECORD: u64 = 64 << 20;

/// Manifests that a record names at most; the ones that came first are forgotten.
const MAX_MANIFESTS: usize = 20_000;

/// Subjects whose referrers are remembered in a repository.
const MAX_SUBJECTS: usize = 1000;

/// Bytes that all manifests may take on the disk.
const MANIFEST_BYTES: u64 = 256 << 20;

/// What has come through of a repository.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// Its name, to find it again by its file.
    pub(super) repository: String,
    pub(super) tags: BTreeMap<String, TagRecord>,
    /// Manifests, the one that came first at the beginning.
    pub(super) manifests: Vec<Digest>,
    /// The sizes of blobs in bytes.
    pub(super) blobs: BTreeMap<Digest, u64>,
    /// Those of blobs that no manifest which came through names: what the upstream said, which is known to be right
    /// when the blob has come.
    pub(super) stated: BTreeMap<Digest, u64>,
    /// The tags that the upstream listed the last time.
    pub(super) listed: BTreeSet<String>,
    /// What the upstream listed as referrers, by their subjects.
    pub(super) referrers: BTreeMap<Digest, Vec<Value>>,
}

/// A tag that came through a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TagRecord {
    pub(super) digest: Digest,
    /// The registry.
    pub(super) host: String,
    /// When it said so, in seconds since 1970.
    pub(super) at: u64,
}

impl TagRecord {
    pub(super) fn now(digest: Digest, host: &str) -> Self {
        Self { digest, host: host.to_owned(), at: seconds_now() }
    }

    /// How long ago that was.
    pub(super) fn age(&self) -> Duration {
        Duration::from_secs(seconds_now().saturating_sub(self.at))
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

/// Where it is kept. Clones are the same.
#[derive(Clone)]
pub(super) struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: ConfinedDir,
    path: PathBuf,
    records: Mutex<LruCache<Repository, Arc<Mutex<Record>>>>,
    /// Bytes of the manifests on the disk.
    manifest_bytes: Mutex<u64>,
}

impl Store {
    /// What is kept in `path`, which is in `root` and is created if need be.
    pub(super) fn open(root: ConfinedDir, path: &Path) -> Result<Self> {
        for name in ["repositories", "manifests"] {
            let dir = path.join(name);
            root.create_dirs(&dir).map_err(|e| Error::io(&dir, "creating", e))?;
        }
        let inner = Inner {
            root,
            path: path.to_owned(),
            records: Mutex::new(LruCache::new(KEPT)),
            manifest_bytes: Mutex::new(0),
        };
        let store = Self { inner: Arc::new(inner) };
        store.sweep();
        Ok(store)
    }

    /// What has come through of `repository`, as `look` sees it.
    pub(super) fn read<T>(&self, repository: &Repository, look: impl FnOnce(&Record) -> T) -> T {
        look(&locked(&self.record(repository)))
    }

    /// Changes what is remembered of `repository`. What cannot be written is known until the server ends.
    pub(super) fn change(&self, repository: &Repository, change: impl FnOnce(&mut Record)) {
        let record = self.record(repository);
        let mut record = locked(&record);
        change(&mut record);
        record.repository = repository.to_string();
        let excess = record.manifests.len().saturating_sub(MAX_MANIFESTS);
        record.manifests.drain(..excess);
        while record.referrers.len() > MAX_SUBJECTS {
            record.referrers.pop_first();
        }
        // A map of strings and numbers always has a JSON form.
        let text = serde_json::to_vec(&*record).unwrap_or_default();
        let path = self.record_path(repository);
        if let Err(error) = self.write(&path, &text) {
            tracing::warn!("{}: {error}", path.display());
        }
    }

    /// The manifest with this digest, if it is here and whole.
    pub(super) fn manifest(&self, digest: &Digest) -> Option<Manifest> {
        let path = self.manifest_path(digest);
        let bytes = self.inner.root.read(&path, MAX_MANIFEST_BYTES as u64 + 1).ok()?;
        let manifest = Manifest::parse_as(digest.algorithm(), bytes.into(), None).ok()?;
        (manifest.digest() == *digest).then_some(manifest)
    }

    /// Keeps a manifest of `repository`.
    pub(super) fn put_manifest(&self, repository: &Repository, manifest: &Manifest) {
        let digest = manifest.digest();
        let path = self.manifest_path(&digest);
        if self.manifest(&digest).is_none() {
            if let Err(error) = self.write(&path, manifest.bytes()) {
                tracing::warn!("{}: {error}", path.display());
            }
            let mut bytes = locked(&self.inner.manifest_bytes);
            *bytes += manifest.bytes().len() as u64;
            let is_full = *bytes > MANIFEST_BYTES;
            drop(bytes);
            if is_full {
                self.sweep();
            }
        }
        let is_recorded = self.read(repository, |record| {
            record.manifests.contains(&digest)
                && manifest.blobs().all(|blob| record.blobs.get(&blob.digest) == Some(&blob.size))
        });
        if is_recorded {
            return;
        }
        self.change(repository, |record| {
            if !record.manifests.contains(&digest) {
                record.manifests.push(digest);
            }
            record.blobs.extend(manifest.blobs().map(|blob| (blob.digest, blob.size)));
        });
    }

    /// The repositories of which something has come through.
    pub(super) fn repositories(&self) -> Vec<Repository> {
        let dir = self.inner.path.join("repositories");
        let entries = self.inner.root.open_dir(&dir).and_then(|dir| dir.entries());
        let records = entries.unwrap_or_default().into_iter().filter_map(|entry| {
            let record = self.read_record(&dir.join(entry.name))?;
            let has_content = !record.tags.is_empty() || !record.manifests.is_empty();
            let (registry, path) = record.repository.split_once('/').filter(|_| has_content)?;
            Repository::new(registry, path).ok()
        });
        records.collect()
    }

    fn record(&self, repository: &Repository) -> Arc<Mutex<Record>> {
        if let Some(record) = locked(&self.inner.records).get(repository) {
            return record.clone();
        }
        let read = self.read_record(&self.record_path(repository)).unwrap_or_default();
        let mut records = locked(&self.inner.records);
        // Another thread may have read it, too.
        records.get_or_insert(repository.clone(), || Arc::new(Mutex::new(read))).clone()
    }

    fn read_record(&self, path: &Path) -> Option<Record> {
        let text = self.inner.root.read(path, MAX_RECORD).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn record_path(&self, repository: &Repository) -> PathBuf {
        let name = format!("{}.json", repository.hashed_name());
        self.inner.path.join("repositories").join(name)
    }

    fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.inner.path.join("manifests").join(Layout::Portable.digest_name(digest))
    }

    fn write(&self, path: &Path, content: &[u8]) -> std::io::Result<()> {
        static COUNTER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let temporary = path.with_extension(format!("{}-{number}.new", std::process::id()));
        let written = self.inner.root.write(&temporary, content);
        let written = written.and_then(|()| self.inner.root.rename(&temporary, path));
        if written.is_err() {
            let _ = self.inner.root.remove_file(&temporary);
        }
        written
    }

    /// Removes the manifests that came first while all of them take more than they may, and what killed processes
    /// have left.
    fn sweep(&self) {
        let dir = self.inner.path.join("manifests");
        let entries = self.inner.root.open_dir(&dir).and_then(|dir| dir.entries());
        let mut found = Vec::new();
        for entry in entries.unwrap_or_default() {
            let path = dir.join(&entry.name);
            if path.extension().is_some_and(|end| end == "new") {
                let _ = self.inner.root.remove_file(&path);
                continue;
            }
            if let Ok(meta) = self.inner.root.stat(&path) {
                found.push((meta.modified().unwrap_or(UNIX_EPOCH), meta.len(), path));
            }
        }
        found.sort();
        let mut bytes: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, path) in found {
            // With some room, so that this is not done for every manifest.
            if bytes <= MANIFEST_BYTES / 8 * 7 {
                break;
            }
            if self.inner.root.remove_file(&path).is_ok() {
                bytes -= size;
            }
        }
        *locked(&self.inner.manifest_bytes) = bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_through_survives_and_what_is_damaged_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        let path = dir.path().join("through");
        let store = Store::open(root.clone(), &path).unwrap();
        let repository = Repository::new("quay.io", "team/app").unwrap();
        let index = br#"{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}"#;
        let manifest = Manifest::parse(index.to_vec().into(), None).unwrap();
        store.put_manifest(&repository, &manifest);
        store.change(&repository, |record| {
            record.tags.insert("v1".into(), TagRecord::now(manifest.digest(), "quay.io"));
        });

        let again = Store::open(root, &path).unwrap();
        let tag = again.read(&repository, |record| record.tags.get("v1").cloned()).unwrap();
        assert_eq!((tag.digest, tag.host.as_str()), (manifest.digest(), "quay.io"));
        assert_eq!(again.manifest(&manifest.digest()).unwrap().bytes(), manifest.bytes());
        assert_eq!(again.repositories(), std::slice::from_ref(&repository));

        std::fs::write(again.manifest_path(&manifest.digest()), b"{}").unwrap();
        assert!(again.manifest(&manifest.digest()).is_none());
        std::fs::write(again.record_path(&repository), b"nonsense").unwrap();
        locked(&again.inner.records).clear();
        assert!(again.read(&repository, |record| record.tags.is_empty()));
    }
}
