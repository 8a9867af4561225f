//! What is in each repository: derived from its files when it is first asked for, and again when they change.
//!
//! The index is only ever a reflection of the directory: it is compared with what the directory and the file of a
//! tag look like at every request, so what `imgfs pull`, `prune` and `rm` do beside the server counts at once. A file
//! that looks as it did is not read again.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use bytes::Bytes;
use lru::LruCache;

use super::route::Target;
use crate::{
    backend::{
        Result,
        images_dir::{FileStamp, ImagesDir, ManifestFile},
    },
    image::{Algorithm, Descriptor, Digest, Manifest, Repository, listed_referrer},
    util::locked,
};

/// Repositories whose index is kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What all indexes that are kept may name together, in manifests and blobs, and the bytes that each takes, about.
const MAX_NAMED: usize = 100_000;
const BYTES_OF_A_NAME: usize = 200;

/// Bytes of manifests that are kept.
const MANIFEST_BYTES: usize = 4 << 20;

/// A manifest, as far as it is needed to answer.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: ManifestFile,
    /// By the algorithm that names it.
    pub(super) digest: Digest,
    /// By SHA-256.
    sha256: Digest,
    pub(super) media_type: String,
    pub(super) size: u64,
    pub(super) contents: Contents,
}

/// What a manifest names.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The blobs, with their sizes in bytes.
    pub(super) blobs: Vec<(Digest, u64)>,
    /// The children of an index.
    pub(super) children: Vec<Digest>,
    /// What it refers to, and how it is listed there.
    pub(super) subject: Option<(Digest, Arc<Descriptor>)>,
}

/// Manifests by the paths of their files, as text: to compare paths takes taking them apart, which in a repository with
/// thousands of tags is most of the work.
type Files = HashMap<OsString, Arc<Entry>>;

/// What is in a repository.
#[derive(Debug, Default)]
pub(super) struct Index {
    stamps: Vec<FileStamp>,
    /// It was changed so shortly before it was read that it may have been changed since without a trace.
    is_fresh: bool,
    files: Files,
    /// Files that were no manifests, and what they looked like: somebody may just be writing them.
    unreadable: Vec<(PathBuf, FileStamp)>,
    tags: BTreeMap<String, Arc<Entry>>,
    digests: HashMap<Digest, Arc<Entry>>,
    blobs: HashMap<Digest, u64>,
    /// Other sizes that are stated for the same blobs.
    disputed: HashMap<Digest, Vec<u64>>,
    referrers: HashMap<Digest, Vec<Arc<Descriptor>>>,
    /// Bytes of the annotations of referrers.
    annotation_bytes: usize,
}

impl Contents {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let blobs = manifest.blobs().map(|blob| (blob.digest, blob.size)).collect();
        let children = manifest.children().iter().map(|child| child.digest).collect();
        let subject = manifest.subject();
        let subject = subject.map(|of| (of.digest, Arc::new(listed_referrer(manifest))));
        Self { blobs, children, subject }
    }
}

impl Index {
    /// The manifest that a tag or a digest leads to.
    pub(super) fn find(&self, target: &Target) -> Option<&Arc<Entry>> {
        match target {
            Target::Tag(tag) => self.tags.get(tag),
            Target::Digest(digest) => self.digests.get(digest),
        }
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// The tags, in the order of their bytes.
    pub(super) fn tags(&self) -> impl Iterator<Item = &String> {
        self.tags.keys()
    }

    /// The tags that lead to `digest`.
    pub(super) fn tags_of(&self, entry: &Entry) -> Vec<String> {
        let same = |other: &&Arc<Entry>| other.sha256 == entry.sha256;
        let tags = self.tags.iter().filter(|(_, other)| same(other));
        tags.map(|(tag, _)| tag.clone()).collect()
    }

    /// Whether a manifest here names a blob.
    pub(super) fn names(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// The size that the manifests here state for a blob, in bytes. Where they do not agree, it is that of the file
    /// that is `there`, if one states that.
    pub(super) fn blob(&self, digest: &Digest, there: impl Fn() -> Option<u64>) -> Option<u64> {
        let stated = *self.blobs.get(digest)?;
        let others = self.disputed.get(digest);
        let fits = others.and_then(|others| there().filter(|size| others.contains(size)));
        Some(fits.unwrap_or(stated))
    }

    /// The manifests that name a blob, or a manifest as their child.
    pub(super) fn users(&self, digest: &Digest) -> Vec<&Arc<Entry>> {
        let names = |entry: &&Arc<Entry>| {
            let contents = &entry.contents;
            contents.blobs.iter().any(|(blob, _)| blob == digest)
                || contents.children.contains(digest)
        };
        let mut users: Vec<_> = self.files.values().filter(names).collect();
        users.sort_by_key(|entry| entry.digest);
        users.dedup_by_key(|entry| entry.digest);
        users
    }

    /// What refers to `subject`.
    pub(super) fn referrers(&self, subject: &Digest) -> &[Arc<Descriptor>] {
        self.referrers.get(subject).map_or(&[], Vec::as_slice)
    }

    /// What it names, where annotations that are kept count as what takes as much.
    fn named(&self) -> usize {
        self.files.len() + self.blobs.len() + self.annotation_bytes / BYTES_OF_A_NAME
    }

    fn build(
        stamps: Vec<FileStamp>,
        is_fresh: bool,
        tags: BTreeMap<String, ManifestFile>,
        digests: BTreeMap<Digest, ManifestFile>,
        files: Files,
    ) -> Self {
        let mut index = Self { stamps, is_fresh, files, ..Self::default() };
        for (digest, file) in digests {
            // A file that is not what its name says is nobody's manifest.
            let entry = index.files.get(file.path.as_os_str());
            if let Some(entry) = entry.filter(|entry| entry.digest == digest) {
                index.digests.insert(digest, entry.clone());
            }
        }
        let sha512: HashMap<Digest, Arc<Entry>> = index
            .digests
            .values()
            .filter(|entry| entry.digest.algorithm() == Algorithm::Sha512)
            .map(|entry| (entry.sha256, entry.clone()))
            .collect();
        for (tag, file) in tags {
            let Some(entry) = index.files.get(file.path.as_os_str()) else { continue };
            // Whoever has pushed it by another algorithm finds it under that digest.
            let other = sha512.get(&entry.sha256);
            let other = other.filter(|_| !index.digests.contains_key(&entry.sha256));
            match other.filter(|_| entry.digest.algorithm() == Algorithm::Sha256) {
                Some(other) => {
                    let digest = other.digest;
                    let same = Entry {
                        file: entry.file.clone(),
                        digest,
                        sha256: entry.sha256,
                        media_type: entry.media_type.clone(),
                        size: entry.size,
                        contents: Contents::default(),
                    };
                    index.tags.insert(tag, Arc::new(same));
                }
                None => {
                    index.digests.entry(entry.digest).or_insert_with(|| entry.clone());
                    index.tags.insert(tag, entry.clone());
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        for entry in index.digests.values() {
            for &(blob, size) in &entry.contents.blobs {
                let stated = *index.blobs.entry(blob).or_insert(size);
                if stated != size {
                    index.disputed.entry(blob).or_default().push(size);
                }
            }
            if let Some((subject, referrer)) = &entry.contents.subject
                && seen.insert((entry.sha256, *subject))
            {
                let texts = referrer.annotations.iter();
                index.annotation_bytes +=
                    texts.map(|(key, text)| key.len() + text.len()).sum::<usize>();
                index.referrers.entry(*subject).or_default().push(referrer.clone());
            }
        }
        for list in index.referrers.values_mut() {
            list.sort_by_key(|referrer| referrer.digest);
        }
        index
    }
}

/// The indexes of all repositories.
pub(super) struct Indexes {
    dir: ImagesDir,
    slots: Mutex<LruCache<Repository, Arc<Slot>>>,
    manifests: Mutex<Manifests>,
}

#[derive(Default)]
struct Slot {
    /// Held by whoever reads the directory; the others wait for that.
    reading: tokio::sync::Mutex<()>,
    current: Mutex<Option<Arc<Index>>>,
}

impl Indexes {
    pub(super) fn new(dir: ImagesDir) -> Self {
        Self {
            dir,
            slots: Mutex::new(LruCache::new(KEPT)),
            manifests: Mutex::new(Manifests { kept: LruCache::unbounded(), bytes: 0 }),
        }
    }

    /// What is in `repository` now.
    pub(super) async fn get(&self, repository: &Repository) -> Result<Arc<Index>> {
        let stamps = self.dir.repository_stamp(repository);
        if stamps.is_empty() {
            return Ok(Arc::default());
        }
        let slot = self.slot(repository);
        let current = locked(&slot.current).clone();
        if let Some(index) = current.filter(|index| self.holds(index, &stamps)) {
            return Ok(index);
        }
        let _reading = slot.reading.lock().await;
        let before = locked(&slot.current).clone();
        let stamps = self.dir.repository_stamp(repository);
        // Somebody else has just read it.
        match before.clone().filter(|index| self.holds(index, &stamps)) {
            Some(index) => Ok(index),
            None => self.read(repository, &slot, before).await,
        }
    }

    /// Whether `index` is what its directories have, which look like `stamps` now.
    fn holds(&self, index: &Index, stamps: &[FileStamp]) -> bool {
        let is_same = |(path, stamp): &(PathBuf, FileStamp)| self.dir.stamp(path) == Some(*stamp);
        index.stamps == stamps && !index.is_fresh && index.unreadable.iter().all(is_same)
    }

    fn slot(&self, repository: &Repository) -> Arc<Slot> {
        locked(&self.slots).get_or_insert(repository.clone(), Arc::default).clone()
    }

    /// The manifest that `target` leads to in `repository` now.
    pub(super) async fn find(
        &self,
        repository: &Repository,
        target: &Target,
    ) -> Result<Option<Arc<Entry>>> {
        let index = self.get(repository).await?;
        let Some(entry) = index.find(target).cloned() else { return Ok(None) };
        // Somebody may have written into the file, which the directory does not show.
        if self.dir.stamp(&entry.file.path) == Some(entry.file.stamp) {
            return Ok(Some(entry));
        }
        let slot = self.slot(repository);
        let _reading = slot.reading.lock().await;
        let before = locked(&slot.current).clone();
        Ok(self.read(repository, &slot, before).await?.find(target).cloned())
    }

    /// The bytes of a manifest. An error if they are not what they were.
    pub(super) async fn bytes(&self, entry: &Entry) -> Result<Bytes> {
        if let Some(bytes) = locked(&self.manifests).get(&entry.digest) {
            return Ok(bytes);
        }
        let file = ManifestFile { algorithm: entry.digest.algorithm(), ..entry.file.clone() };
        let manifest = self.dir.read_manifest(&file).await?;
        let bytes = manifest.bytes().clone();
        if manifest.digest() == entry.digest {
            locked(&self.manifests).put(entry.digest, bytes.clone());
            return Ok(bytes);
        }
        let kind =
            crate::backend::Kind::Digest { expected: entry.digest, found: manifest.digest() };
        let doing = format!("reading {}", entry.file.path.display());
        Err(crate::backend::Error::new("images_dir", doing, kind))
    }

    /// The repositories in whose indexes that are kept a blob is named. There may be others: to find them all, every
    /// manifest of the tree would have to be read.
    pub(super) fn naming(&self, blob: &Digest) -> Vec<Repository> {
        let slots = locked(&self.slots);
        let names =
            |slot: &Slot| locked(&slot.current).as_ref().is_some_and(|index| index.names(blob));
        slots.iter().filter(|(_, slot)| names(slot)).map(|(name, _)| name.clone()).collect()
    }

    /// Reads what is in a repository, but for the files that are what they were `before`.
    async fn read(
        &self,
        repository: &Repository,
        slot: &Slot,
        before: Option<Arc<Index>>,
    ) -> Result<Arc<Index>> {
        let now = SystemTime::now();
        let stamps = self.dir.repository_stamp(repository);
        let is_fresh = stamps.iter().any(|stamp| stamp.is_recent(now));
        let found = self.dir.repository_files(repository).await?;
        let (mut files, mut unread) = (Files::new(), Vec::new());
        for file in found.tags.values().chain(found.digests.values()) {
            let path = file.path.as_os_str();
            if files.contains_key(path) {
                continue;
            }
            let known = before.as_ref().and_then(|before| before.files.get(path));
            let is_same = |entry: &&Arc<Entry>| {
                (entry.file.stamp, entry.file.algorithm) == (file.stamp, file.algorithm)
            };
            match known.filter(is_same) {
                Some(entry) => drop(files.insert(path.to_owned(), entry.clone())),
                None => unread.push(file.clone()),
            }
        }
        unread.sort_by(|a, b| a.path.cmp(&b.path));
        unread.dedup_by(|a, b| a.path == b.path);
        let entries = self.dir.map_manifests(unread, |file, manifest| {
            let entry = manifest.map(|manifest| Entry {
                sha256: Digest::sha256(manifest.bytes()),
                digest: manifest.digest(),
                media_type: manifest.media_type().to_owned(),
                size: manifest.bytes().len() as u64,
                contents: Contents::of(&manifest),
                file: file.clone(),
            });
            // What cannot be read is a matter of `imgfs verify`.
            entry.inspect_err(|error| tracing::debug!("{error}")).ok()
        });
        let entries = entries.await?.into_iter().flatten();
        let key = |entry: &Entry| entry.file.path.clone().into_os_string();
        files.extend(entries.map(|entry| (key(&entry), Arc::new(entry))));
        let all = found.tags.values().chain(found.digests.values());
        let unreadable = all.filter(|file| !files.contains_key(file.path.as_os_str()));
        let unreadable = unreadable.map(|file| (file.path.clone(), file.stamp)).collect();
        let mut index = Index::build(stamps, is_fresh, found.tags, found.digests, files);
        index.unreadable = unreadable;
        let index = Arc::new(index);
        *locked(&slot.current) = Some(index.clone());
        self.shrink();
        Ok(index)
    }

    /// Forgets the indexes that were used longest ago while all of them name too much.
    fn shrink(&self) {
        let mut slots = locked(&self.slots);
        let named = |slot: &Arc<Slot>| locked(&slot.current).as_ref().map_or(0, |i| i.named());
        let mut sum: usize = slots.iter().map(|(_, slot)| named(slot)).sum();
        while sum > MAX_NAMED && slots.len() > 1 {
            let Some((_, slot)) = slots.pop_lru() else { return };
            sum -= named(&slot);
        }
    }
}

/// Manifests that were asked for lately.
struct Manifests {
    kept: LruCache<Digest, Bytes>,
    bytes: usize,
}

impl Manifests {
    fn get(&mut self, digest: &Digest) -> Option<Bytes> {
        self.kept.get(digest).cloned()
    }

    fn put(&mut self, digest: Digest, manifest: Bytes) {
        self.bytes += manifest.len();
        if let Some(before) = self.kept.put(digest, manifest) {
            self.bytes -= before.len();
        }
        while self.bytes > MANIFEST_BYTES {
            let Some((_, oldest)) = self.kept.pop_lru() else { return };
            self.bytes -= oldest.len();
        }
    }
}
