//! KubeKey's `images_dir` as an image tree.
//!
//! ```text
//! images_dir/
//!   <registry>/<repository>/manifests/<tag>             the manifest or index that the tag names
//!   <registry>/<repository>/manifests/<algorithm>:<hex> the same by digest
//!   blobs/<algorithm>:<hex>                             configurations and layers, shared by all
//!   blobs/.imgfs/                                       imgfs's own state:
//!     layout                                              how new repositories are laid out
//!     records                                             what has been verified
//!     partial/<algorithm>:<hex>[.link]                    blobs on their way
//!     scratch/                                            manifests on their way
//!     locks/                                              empty files to lock
//!     cache/                                              what a mount has fetched ([`cached`])
//!     inside/                                             what has been found inside images
//!     given-up/                                           blobs that one of several workers could not bring
//!     pending/                                            what is being written through mounts
//!     serve/                                              what a server keeps ([`serving`], [`uploads`])
//! ```
//!
//! All generations that KubeKey has written are read, mixed in one tree if need be; see
//! [`Layout`]. A portable tree has the same files under names without colons. Several processes may fill a tree at once: each blob and each repository has its
//! lock, and nothing appears under its name before it is whole and verified.

pub mod cached;
mod durability;
mod hashing;
mod inventory;
mod layout;
mod manifests;
mod medium;
mod of_layout;
mod opening;
mod other_tools;
mod portable;
mod prune;
mod publish;
mod receive;
mod records;
mod remove;
mod serving;
mod source;
mod spare_caches;
mod store;
mod uploads;
mod verify;
mod written;

use std::{
    collections::BTreeMap,
    fs::{File, Metadata},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;

pub use durability::SyncMode;
pub use inventory::{ImageEntry, Inventory, Missing, Need};
pub use layout::{Layout, holds_manifests, leads_to_manifests, repository_in};
pub use portable::{is_portable_name_of, is_portable_path};
pub use prune::{Pruned, Removed};
pub use publish::published_time;
pub use receive::PartialBlob;
pub use serving::{FileStamp, ManifestFile, RepositoryFiles};
pub use uploads::{Upload, is_upload_name};
pub use verify::{Problem, ProblemKind, Subject, Verified};
pub use written::{Filling, Tags as WrittenTags};

use hashing::{hash_file, hash_open, held_on_disk};
use layout::{BLOBS, MANIFESTS};
use manifests::read_manifest;
use records::Records;
use source::ReferrersCache;
use store::Traffic;

use super::{
    Capabilities, ConfinedDir, Error, Flush, LocalFile, ManifestName, Names, Opened, Result, Sink,
    writeback::Writeback,
};
use crate::image::{Descriptor, Digest, FilteredIndex, Manifest, Reference, Repository};

const SIDE: &str = "images_dir";

/// The largest blob that is read whole, in bytes: configurations are far smaller.
const MAX_CONTENT: u64 = 4 << 20;

/// More than the name of any layout, in bytes.
const MAX_LAYOUT_NAME: u64 = 4096;

/// Entries of `blobs/.imgfs/`.
const STATE: &str = ".imgfs";
const PARTIAL: &str = "partial";
const SCRATCH: &str = "scratch";
const LOCKS: &str = "locks";
const CACHE: &str = "cache";
const INSIDE: &str = "inside";
const PENDING: &str = "pending";
const GIVEN_UP: &str = "given-up";

/// How blobs come from another images_dir.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Linking {
    /// They share their blocks (reflinks) or their files (hard links) with the source, where the
    /// file system can do that.
    #[default]
    Auto,
    /// They are copied, and hashed on the way.
    Never,
}

/// An images_dir. Clones are the same tree.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use imgfs::{
///     backend::{ManifestName, Names, Sink, images_dir::{ImagesDir, Linking}},
///     image::{Manifest, Repository},
/// };
///
/// let temporary = tempfile::tempdir()?;
/// let dir = ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// // An image for no platform at all is the smallest one.
/// let index = br#"{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}"#;
/// let manifest = Manifest::parse(index.to_vec().into(), None)?;
/// let repository = Repository::new("quay.io", "team/app")?;
/// dir.put(&repository, &manifest, &ManifestName::Tag("v1".to_owned())).await?;
///
/// let dir = ImagesDir::open(temporary.path())?;
/// assert_eq!(dir.head(&repository.tagged("v1")).await?, Some(manifest.digest()));
/// let inventory = dir.inventory()?;
/// assert_eq!(inventory.images[0].reference.to_string(), "quay.io/team/app:v1");
/// assert_eq!(inventory.hidden().count(), 0);
/// assert!(dir.verify(true, &|_| ())?.problems.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct ImagesDir {
    inner: Arc<Inner>,
}

struct Inner {
    /// All that is in the tree is reached through this.
    root: ConfinedDir,
    layout: Layout,
    records: Records,
    linking: Linking,
    sync: SyncMode,
    /// Whether what has been found out of a file holds for another process.
    knows_again: bool,
    /// `None` where files are flushed one by one, or there is no disk.
    writeback: Option<Writeback>,
    traffic: Traffic,
    referrers: ReferrersCache,
    /// The map of tags that was asked for times last.
    last_map: Mutex<Option<manifests::ReadMap>>,
    /// Says to `prune` that the tree is being filled.
    filling: Option<File>,
    /// Whether blobs are in a directory for each algorithm, as in an OCI image layout.
    by_algorithm: bool,
}

impl ImagesDir {
    /// How it is laid out.
    pub fn layout(&self) -> Layout {
        self.inner.layout
    }

    /// Where the tree is.
    pub fn root(&self) -> &Path {
        self.inner.root.path()
    }

    /// The directory itself: all that is in it is to be reached through this.
    pub fn dir(&self) -> &ConfinedDir {
        &self.inner.root
    }

    /// When files are flushed that are published.
    pub(crate) fn flush(&self) -> Flush {
        self.inner.sync.flush()
    }

    /// Whether there is a directory of blobs, without which there is nothing to look after.
    pub fn has_blobs(&self) -> bool {
        self.inner.root.is_dir(&self.root().join(BLOBS))
    }

    /// Free space for blobs, in bytes, where the file system tells.
    pub fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(self.root()).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The size of the file system that the tree is on, in bytes, where it tells.
    pub fn space(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(self.root()).ok()?;
        Some(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    /// The file of `blob`, which has `size` bytes; verified, now if need be.
    pub async fn verified_file(&self, blob: Digest, size: u64) -> Result<LocalFile> {
        self.blocking(move |inner| inner.blob_file(&Descriptor::new("", blob, size))).await
    }

    /// Waits until the disk has everything that was written here and has not been flushed, if `--sync` or another
    /// run asks for that. To be called once, when everything has been written.
    ///
    /// # Errors
    ///
    /// The disk has not taken everything. What was not flushed before is not believed any more.
    pub async fn finish(&self) -> Result<()> {
        self.blocking(|inner| inner.finish()).await
    }

    /// Where a mount of this tree keeps what it has fetched, unless it is told otherwise. A pull
    /// looks there; see [`cached`].
    pub fn cache_dir(&self) -> PathBuf {
        self.inner.cache_dir()
    }

    /// Where is kept what has been found out of the inside of images.
    pub fn inside_dir(&self) -> PathBuf {
        self.inner.state_dir().join(INSIDE)
    }

    /// The file in the place of a blob, if there is one of the right size. Nobody vouches for what
    /// is in it.
    pub fn unverified_file(&self, blob: Digest, size: u64) -> Option<File> {
        let (file, meta) = self.inner.root.open_file(&self.inner.blob_path(&blob)).ok()?;
        (meta.len() == size).then_some(file)
    }

    /// Forgets that `blob` has been verified: its content has been found to be damaged since.
    pub fn distrust(&self, blob: Digest) -> Result<()> {
        self.inner.records.distrust(blob).map_err(|e| self.inner.records_error(e))
    }

    /// Mends the map of tags of `repository`, which has been found to be damaged: `tags` are what
    /// the registry says, as far as it says anything of a manifest that is here. What can still be
    /// read of the old map counts as well, and the old file is kept in `blobs/.imgfs/scratch`.
    pub async fn mend_map(
        &self,
        repository: &Repository,
        tags: BTreeMap<String, Digest>,
    ) -> Result<()> {
        let repository = repository.clone();
        self.blocking(move |inner| inner.mend_map(&repository, tags)).await
    }

    /// The manifests of `repository` by the digest that each has, or had before a platform filter
    /// made it, at the registry.
    pub fn manifests_by_origin(&self, repository: &Repository) -> BTreeMap<Digest, Digest> {
        let (root, dir) = (&self.inner.root, self.inner.manifests_dir(repository));
        let entries = root.open_dir(&dir).and_then(|dir| dir.entries()).unwrap_or_default();
        let layout = self.inner.layout;
        let digests = entries.iter().filter_map(|e| layout.parse_digest(e.name.to_str()?));
        let mut found = BTreeMap::new();
        for digest in digests {
            let path = dir.join(layout.digest_name(&digest));
            let manifest = read_manifest(root, &path, digest.algorithm());
            if let Some(manifest) = manifest.ok().filter(|manifest| manifest.digest() == digest) {
                let origin = manifest.annotations().get(FilteredIndex::ORIGINAL);
                let origin = origin.and_then(|text| text.parse().ok()).unwrap_or(digest);
                found.insert(origin, digest);
            }
        }
        found
    }

    /// Registries that have lately been found to lack the referrers API.
    pub fn registries_without_referrers(&self) -> Vec<String> {
        self.inner.records.without_referrers()
    }

    /// Notes that `registry` lacks the referrers API; forgotten again after a day.
    pub fn note_without_referrers(&self, registry: &str) -> Result<()> {
        let noted = self.inner.records.note_without_referrers(registry);
        noted.map_err(|e| self.inner.records_error(e))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(panic) => Err(Error::new(SIDE, "working", io::Error::other(panic))),
        }
    }
}

#[async_trait]
impl Names for ImagesDir {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DIRECTORY
    }

    fn side(&self, _: &Repository) -> String {
        SIDE.to_owned()
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        let reference = reference.clone();
        self.blocking(move |inner| inner.manifest(&reference)).await
    }

    fn sparse(&self, digest: &Digest) -> Option<String> {
        self.inner.records.sparse(digest)
    }
}

#[async_trait]
impl Sink for ImagesDir {
    async fn has(&self, _: &Repository, blob: &Descriptor) -> Result<bool> {
        let blob = blob.clone();
        self.blocking(move |inner| inner.is_verified(&blob)).await
    }

    async fn content(&self, _: &Repository, blob: &Descriptor) -> Result<Option<Bytes>> {
        let blob = blob.clone();
        self.blocking(move |inner| inner.content(&blob)).await
    }

    async fn prepare(&self, _: &Repository) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _: &Repository, blob: &Descriptor, _: &[Repository]) -> Result<Opened> {
        let blob = blob.clone();
        self.blocking(move |inner| receive::open(inner, &blob)).await
    }

    async fn resolves_to(
        &self,
        repository: &Repository,
        name: &ManifestName,
        digest: Digest,
    ) -> bool {
        let (repository, name) = (repository.clone(), name.clone());
        let looked = self.blocking(move |inner| Ok(inner.resolves_to(&repository, &name, digest)));
        looked.await.unwrap_or(false)
    }

    async fn put(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> Result<()> {
        let (repository, manifest, name) = (repository.clone(), manifest.clone(), name.clone());
        self.blocking(move |inner| {
            inner.put(&repository, &manifest, &name)?;
            // Whoever writes a manifest here himself has brought what it names.
            inner.forget_lacking(&repository, manifest.blobs().map(|blob| &blob.digest))
        })
        .await
    }

    async fn give_up(&self, blob: Digest, is_given_up: bool) {
        let inner = self.inner.clone();
        // It is only a hint.
        let _ = tokio::task::spawn_blocking(move || inner.note_given_up(&blob, is_given_up)).await;
    }

    async fn is_given_up(&self, blob: Digest) -> bool {
        self.inner.root.is_file(&self.inner.given_up_path(&blob))
    }

    async fn keep_sparse(&self, index: Digest, platforms: &str) -> Result<()> {
        let platforms = platforms.to_owned();
        self.blocking(move |inner| {
            let noted = inner.records.set_sparse(index, &platforms);
            noted.map_err(|e| inner.records_error(e))
        })
        .await
    }
}

impl Inner {
    fn state_dir(&self) -> PathBuf {
        self.root.path().join(BLOBS).join(STATE)
    }

    /// Where a worker leaves word that it could not bring a blob ([`Sink::give_up`]).
    fn given_up_path(&self, blob: &Digest) -> PathBuf {
        self.state_dir().join(GIVEN_UP).join(Layout::Portable.digest_name(blob))
    }

    fn note_given_up(&self, blob: &Digest, is_given_up: bool) -> io::Result<()> {
        let path = self.given_up_path(blob);
        if !is_given_up {
            return self.root.remove_if_there(&path);
        }
        self.root.create_dirs(&self.state_dir().join(GIVEN_UP))?;
        self.root.open_or_create(&path).map(drop)
    }

    fn cache_dir(&self) -> PathBuf {
        self.state_dir().join(CACHE)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let blobs = self.root.path().join(BLOBS);
        match self.by_algorithm {
            true => blobs.join(digest.algorithm().as_str()).join(digest.to_hex()),
            false => blobs.join(self.layout.digest_name(digest)),
        }
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.state_dir().join(PARTIAL).join(self.layout.digest_name(digest))
    }

    fn records_error(&self, error: io::Error) -> Error {
        Error::io(&self.state_dir().join("records"), "writing", error)
    }

    // --- blobs ---

    /// The file of a blob, if it is there with its right size.
    fn sized_blob(&self, blob: &Descriptor) -> Result<Option<Metadata>> {
        let path = self.blob_path(&blob.digest);
        match self.root.stat(&path) {
            Ok(meta) => Ok((meta.is_file() && meta.len() == blob.size).then_some(meta)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path, "opening", e)),
        }
    }

    /// Whether `blob` is there, of its right size, and has been verified.
    fn is_verified(&self, blob: &Descriptor) -> Result<bool> {
        let meta = self.sized_blob(blob)?;
        Ok(meta.is_some_and(|meta| self.records.is_verified(&blob.digest, &meta)))
    }

    /// As `is_verified`, but a blob that has not been verified is, by reading it.
    fn check_blob(&self, blob: &Descriptor) -> Result<bool> {
        let Some(meta) = self.sized_blob(blob)? else { return Ok(false) };
        if self.records.is_verified(&blob.digest, &meta) {
            return Ok(true);
        }
        let path = self.blob_path(&blob.digest);
        let found = hash_file(&self.root, &path, blob.digest.algorithm(), &mut |_| {})
            .map_err(|e| Error::io(&path, "reading", e))?;
        if found.digest == blob.digest {
            let held = held_on_disk(&found.file);
            let noted = self.records.verified(blob.digest, &found.meta, held);
            noted.map_err(|e| self.records_error(e))?;
        }
        Ok(found.digest == blob.digest)
    }

    /// The content of a small blob, if it is there and verified.
    fn content(&self, blob: &Descriptor) -> Result<Option<Bytes>> {
        if blob.size > MAX_CONTENT || !self.is_verified(blob)? {
            return Ok(None);
        }
        let path = self.blob_path(&blob.digest);
        let text = self.root.read(&path, MAX_CONTENT);
        text.map(|text| Some(text.into())).map_err(|e| Error::io(&path, "reading", e))
    }

    /// Makes sure that the blobs that a manifest is about to name survive a power cut, also those
    /// that another process has published; if that is wanted at all.
    fn flush_blobs(&self) -> Result<()> {
        if self.sync.flush() == Flush::Later {
            return Ok(());
        }
        let dir = self.root.path().join(BLOBS);
        self.root.sync_dir(&dir).map_err(|e| Error::io(&dir, "flushing", e))
    }
}

/// Entry points of the fuzz targets to parsers that nobody else may call.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Reads the map of a blob that a cache has in parts, and what is written of it.
    pub fn block_map(map: &[u8]) {
        if let Some(parsed) = super::cached::BlockMap::parse(map) {
            assert_eq!(parsed.to_bytes(), map);
        }
    }

    /// Reads a map of tags, and what is written of it.
    pub fn layout_map(text: &[u8]) {
        if let Some(map) = super::layout::parse_layout_map(text) {
            let written = super::layout::format_layout_map(&map);
            assert_eq!(super::layout::parse_layout_map(&written), Some(map));
        }
    }
}
