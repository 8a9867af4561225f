//! What is served: manifests and blobs by repository, and what those have brought who push.
//!
//! The front of the server asks these questions and no others, so that it is the same over a directory
//! ([`directory`]) and over a bucket ([`bucket`]). Both follow the same rules:
//!
//! - A blob is in a repository if a manifest there names it that was not taken without it, or if it was brought there
//!   not long ago.
//! - What a client was told to be here is here, whatever becomes of the process.
//! - Nothing is named before it is whole; the front has looked at what a manifest names before it stores that.

pub(super) mod bucket;
pub(super) mod directory;
mod files;
mod known;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    num::NonZeroUsize,
    ops::Range,
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use serde_json::Value;

use super::{index::Entry, route::Target, service::etag_matches};
use crate::{
    backend::{
        BoxStream, Result,
        images_dir::Filling,
        object_store::{BlobReader, WholeBlob},
    },
    image::{Digest, Manifest, Repository},
    util::{Flight, locked},
};

/// Repositories of which is kept what is in them.
const KEPT: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What all indexes that are kept may name together, in manifests and blobs.
const MAX_NAMED: usize = 100_000;

/// What is served.
#[async_trait]
pub(super) trait Tree: Send + Sync + 'static {
    /// Fails unless it can be read now, and written to if it is to be.
    async fn check_ready(&self, is_written: bool) -> std::result::Result<(), String>;

    // --- names ---

    /// The repositories that have manifests, in no order.
    async fn repositories(&self) -> Result<Vec<Repository>>;

    /// Whether there is anything of `repository`.
    async fn exists(&self, repository: &Repository) -> Result<bool>;

    /// The tags of `repository`.
    async fn tags(&self, repository: &Repository) -> Result<BTreeSet<String>>;

    /// The manifest that `target` leads to now.
    async fn find(&self, repository: &Repository, target: &Target) -> Result<Option<Arc<Entry>>>;

    /// The bytes of a manifest of `repository`. An error if they are not there, or not what they were.
    async fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Bytes>;

    /// What refers to `subject`: what says so itself, and what clients have listed under the fallback tag. Each with its
    /// descriptor.
    async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<BTreeMap<Digest, Value>>;

    /// The manifests that name a blob, or a manifest as their child.
    async fn users(&self, repository: &Repository, digest: &Digest) -> Result<Vec<Arc<Entry>>>;

    // --- blobs ---

    /// The bytes of a blob, whatever repository it is in.
    async fn blob_bytes(&self, digest: &Digest) -> Result<Option<u64>>;

    /// The size of a blob that is in `repository`, as that is stated there. Whether it can be read is another question.
    async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>>;

    /// The bytes of a blob that is in `repository` and can be read.
    async fn present_bytes(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>>;

    /// Opens a blob of `size` bytes of which the parts `wanted` are to be sent; without any it is only looked at. `None` if
    /// it is not there in this size.
    async fn open_blob(
        &self,
        digest: &Digest,
        size: u64,
        wanted: &[Range<u64>],
    ) -> Result<Option<BlobPlace>>;

    /// Repositories that have a blob, as far as that is known without much ado. There may be others.
    async fn holders(&self, digest: &Digest) -> Result<Vec<Repository>>;

    // --- writing ---

    /// Keeps `prune` away, where there is such a thing, as long as what it returns lives.
    async fn hold(&self) -> Result<Option<Filling>>;

    /// Stores a manifest, and makes tags lead to it.
    async fn put(&self, repository: &Repository, manifest: &Manifest, how: &Put) -> Result<Taken>;

    /// Removes a tag.
    async fn remove_tag(&self, repository: &Repository, tag: &str) -> Result<()>;

    /// Removes a manifest, and the tags that lead to it, which are returned.
    async fn remove_manifest(&self, repository: &Repository, entry: &Entry) -> Result<Vec<String>>;

    /// Brings a blob of `size` bytes that is here already into `repository`. Whether it could be.
    async fn adopt(&self, repository: &Repository, digest: &Digest, size: u64) -> Result<bool>;

    /// Takes a blob out of `repository` into which it was brought. Whether it was.
    async fn release(&self, repository: &Repository, digest: &Digest) -> Result<bool>;

    // --- uploads ---

    /// Begins an upload. `name` is new.
    async fn begin_upload(&self, repository: &Repository, name: &str) -> Result<Box<dyn Upload>>;

    /// Goes on with an upload; `None` if there is none. [`Kind::InUse`](crate::backend::Kind::InUse) if somebody is
    /// writing to it.
    async fn resume_upload(
        &self,
        repository: &Repository,
        name: &str,
    ) -> Result<Option<Box<dyn Upload>>>;

    /// The bytes that an upload has; `None` if there is none.
    fn upload_bytes(&self, repository: &Repository, name: &str) -> Option<u64>;

    /// Removes what has come of uploads with which nobody goes on. Returns how many those were.
    async fn sweep(&self) -> Result<usize>;
}

/// A blob on its way, to which nobody else writes. When it is dropped, what has come of it stays.
#[async_trait]
pub(super) trait Upload: Send {
    /// How many bytes have come.
    fn size(&self) -> u64;

    /// Adds all of `stream`, which are at most `limit` bytes; more are [`Kind::Size`](crate::backend::Kind::Size), and
    /// they do not count. `whole` is what the upload is to be when all of that has come, if that is known. What came
    /// before another error stays.
    async fn append(
        self: Box<Self>,
        stream: BoxStream,
        limit: Option<u64>,
        whole: Option<WholeBlob>,
    ) -> Result<Box<dyn Upload>>;

    /// Leaves it for the next request.
    async fn rest(self: Box<Self>);

    /// Makes it the blob `digest`, which then is in the upload's repository.
    /// [`Kind::Digest`](crate::backend::Kind::Digest) if it is another one; then it is removed.
    async fn publish(self: Box<Self>, digest: &Digest) -> Result<()>;

    /// Removes it.
    async fn remove(self: Box<Self>) -> Result<()>;
}

/// A blob that can be sent.
pub(super) enum BlobPlace {
    /// A file, and what finds out whether it is right, if that is not known.
    File(Arc<File>, Option<Flight<Result<()>>>),
    /// An object of a store.
    Object(Box<BlobReader>),
    /// Whoever asks for it gets it at this URL.
    Elsewhere(String),
}

/// How a manifest is to be stored.
#[derive(Debug, Default)]
pub(super) struct Put {
    /// The tags that are to lead to it.
    pub(super) tags: Vec<String>,
    /// It was pushed by its digest.
    pub(super) by_digest: bool,
    /// What the tag or the digest by which it was pushed must lead to now.
    pub(super) condition: Condition,
    /// Blobs that it names, and that are not in the repository.
    pub(super) lacking: Vec<Digest>,
    /// The platforms of the children that are here, if not all are.
    pub(super) sparse: Option<String>,
}

impl Put {
    /// Whether the client's condition fails of what is in `tree` now.
    async fn refused(
        &self,
        tree: &dyn Tree,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<Option<Taken>> {
        if self.condition.is_empty() {
            return Ok(None);
        }
        let there = tree.find(repository, &self.target(manifest)).await?;
        let there = there.map(|entry| entry.digest);
        Ok((!self.condition.holds(there.as_ref())).then_some(Taken::No(there)))
    }

    /// The name by which it was pushed.
    fn target(&self, manifest: &Manifest) -> Target {
        match self.tags.first().filter(|_| !self.by_digest) {
            Some(tag) => Target::Tag(tag.clone()),
            None => Target::Digest(manifest.digest()),
        }
    }
}

/// Whether a manifest was stored.
pub(super) enum Taken {
    Yes,
    /// The condition fails: this is what is there.
    No(Option<Digest>),
}

/// `If-Match` and `If-None-Match`, for those who change a name only if nobody else has.
#[derive(Clone, Debug, Default)]
pub(super) struct Condition {
    pub(super) matches: Option<String>,
    pub(super) none_matches: Option<String>,
}

impl Condition {
    pub(super) fn is_empty(&self) -> bool {
        self.matches.is_none() && self.none_matches.is_none()
    }

    /// Whether it holds of a name that leads to `digest`.
    pub(super) fn holds(&self, digest: Option<&Digest>) -> bool {
        self.matches.as_ref().is_none_or(|header| etag_matches(header, digest))
            && !self.none_matches.as_ref().is_some_and(|header| etag_matches(header, digest))
    }
}

/// What is known of each repository that was asked for lately.
struct Slots<T>(std::sync::Mutex<LruCache<Repository, Arc<T>>>);

impl<T: Default> Slots<T> {
    fn new() -> Self {
        Self(std::sync::Mutex::new(LruCache::new(KEPT)))
    }

    fn get(&self, repository: &Repository) -> Arc<T> {
        locked(&self.0).get_or_insert(repository.clone(), Arc::default).clone()
    }

    /// The repositories for which `is_wanted`.
    fn filter(&self, is_wanted: impl Fn(&T) -> bool) -> Vec<Repository> {
        let slots = locked(&self.0);
        let wanted = slots.iter().filter(|(_, slot)| is_wanted(slot));
        wanted.map(|(repository, _)| repository.clone()).collect()
    }

    /// Forgets those that were used longest ago while all of them together name too much, by what `named` says of each.
    fn shrink(&self, named: impl Fn(&T) -> usize) {
        let mut slots = locked(&self.0);
        let mut sum: usize = slots.iter().map(|(_, slot)| named(slot)).sum();
        while sum > MAX_NAMED && slots.len() > 1 {
            let Some((_, slot)) = slots.pop_lru() else { return };
            sum -= named(&slot);
        }
    }
}

/// The bytes of manifests that were asked for lately.
struct Manifests(std::sync::Mutex<Kept>);

struct Kept {
    all: LruCache<Digest, Bytes>,
    bytes: usize,
    limit: usize,
}

impl Manifests {
    /// At most `limit` bytes.
    fn new(limit: usize) -> Self {
        Self(std::sync::Mutex::new(Kept { all: LruCache::unbounded(), bytes: 0, limit }))
    }

    fn get(&self, digest: &Digest) -> Option<Bytes> {
        locked(&self.0).all.get(digest).cloned()
    }

    fn put(&self, digest: Digest, manifest: Bytes) {
        let mut kept = locked(&self.0);
        kept.bytes += manifest.len();
        if let Some(before) = kept.all.put(digest, manifest) {
            kept.bytes -= before.len();
        }
        while kept.bytes > kept.limit {
            let Some((_, oldest)) = kept.all.pop_lru() else { return };
            kept.bytes -= oldest.len();
        }
    }
}
