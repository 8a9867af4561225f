//! Blobs that clients send over several requests, on their way into a bucket.
//!
//! What has come of an upload is known to this process alone, and is gone with it. Bytes are hashed as they come. As long
//! as they are few they wait in memory; beyond that they are sent in parts: under the blob's own key if that is known
//! from the beginning, since an object that is sent in parts is not there before it is completed, and that only happens
//! when the digest was right. Otherwise they go to a key of their own, are copied by the store to the blob's key when
//! the digest has been said, and removed.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use lru::LruCache;
use object_store::{ObjectStoreExt, path::Path};

use super::{
    ObjectTree,
    parts::{Parts, Resting},
};
use crate::{
    backend::{BoxStream, Error, Kind, Result},
    image::{Algorithm, Descriptor, Digest, Hasher, Repository},
    util::locked,
};

/// The directory of what is on its way.
pub(super) const UPLOADS: &str = "uploads";

/// Uploads that are known at a time. The one that has rested longest goes for the next.
const MAX_UPLOADS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// What those that rest may hold in memory together, in bytes; those that have rested longest go for others.
const RESTING_BYTES: usize = 64 << 20;

/// The largest object that stores copy at once, in bytes: that of S3.
const MAX_COPY: u64 = 5 << 30;

/// What is known of an upload before its bytes come.
#[derive(Clone, Copy, Debug)]
pub struct WholeBlob {
    /// What it is to be.
    pub digest: Digest,
    /// Its bytes, if they are stated.
    pub size: Option<u64>,
}

/// The uploads of a server.
pub struct Uploads {
    tree: ObjectTree,
    all: Mutex<LruCache<Key, Slot>>,
}

type Key = (Repository, String);

#[derive(Clone)]
struct Slot {
    upload: Arc<tokio::sync::Mutex<State>>,
    /// Its bytes, also while somebody writes to it.
    size: Arc<AtomicU64>,
}

struct State {
    hasher: Hasher,
    parts: Option<Parts>,
    resting: Option<Resting>,
    touched: Instant,
    /// It has become a blob, or failed, and only its name is left for a moment.
    has_ended: bool,
}

/// An upload to which nobody else writes. When it is dropped, what has come of it stays.
pub struct ObjectUpload {
    uploads: Arc<Uploads>,
    key: Key,
    state: tokio::sync::OwnedMutexGuard<State>,
    size: Arc<AtomicU64>,
}

impl Uploads {
    /// None, of blobs for `tree`.
    pub fn new(tree: ObjectTree) -> Arc<Self> {
        Arc::new(Self { tree, all: Mutex::new(LruCache::new(MAX_UPLOADS)) })
    }

    /// Begins the upload `name` to `repository`. The name must be new.
    pub fn begin(self: &Arc<Self>, repository: &Repository, name: &str) -> Result<ObjectUpload> {
        let state = State {
            hasher: Hasher::new(Algorithm::Sha256),
            parts: None,
            resting: None,
            touched: Instant::now(),
            has_ended: false,
        };
        let slot = Slot { upload: Arc::new(tokio::sync::Mutex::new(state)), size: Arc::default() };
        let key = (repository.clone(), name.to_owned());
        let state = slot.upload.clone().try_lock_owned().map_err(|_| self.in_use())?;
        let size = slot.size.clone();
        // Outside of the lock, since an upload that goes for it may have something to end.
        let before = locked(&self.all).push(key.clone(), slot);
        drop(before);
        Ok(ObjectUpload { uploads: self.clone(), key, state, size })
    }

    /// Goes on with the upload `name` to `repository`; `None` if there is none. [`Kind::InUse`] if somebody is writing to
    /// it.
    pub fn resume(
        self: &Arc<Self>,
        repository: &Repository,
        name: &str,
    ) -> Result<Option<ObjectUpload>> {
        let key = (repository.clone(), name.to_owned());
        let Some(slot) = locked(&self.all).get(&key).cloned() else { return Ok(None) };
        let state = slot.upload.try_lock_owned().map_err(|_| self.in_use())?;
        if state.has_ended {
            return Ok(None);
        }
        Ok(Some(ObjectUpload { uploads: self.clone(), key, state, size: slot.size }))
    }

    /// The bytes that the upload `name` to `repository` has; `None` if there is none.
    pub fn bytes(&self, repository: &Repository, name: &str) -> Option<u64> {
        let key = (repository.clone(), name.to_owned());
        locked(&self.all).peek(&key).map(|slot| slot.size.load(Ordering::Relaxed))
    }

    /// Ends uploads to which nothing has come for `lifetime`. Returns how many.
    pub fn end_old(&self, lifetime: Duration) -> usize {
        let is_old = |state: &State| state.touched.elapsed() > lifetime;
        let old: Vec<Key> = {
            let all = locked(&self.all);
            let rests = |slot: &Slot| slot.upload.try_lock().is_ok_and(|state| is_old(&state));
            all.iter().filter(|(_, slot)| rests(slot)).map(|(key, _)| key.clone()).collect()
        };
        let ended: Vec<Option<Slot>> = old.iter().map(|key| locked(&self.all).pop(key)).collect();
        ended.len()
    }

    fn in_use(&self) -> Error {
        let reason = "another request is writing to this upload".to_owned();
        Error::new(&self.tree.inner.side, "opening an upload", Kind::InUse(reason))
    }

    /// Ends those that have rested longest while all that rest hold too much.
    fn shrink(&self) {
        let mut ended = Vec::new();
        let mut all = locked(&self.all);
        // Those that are being written to count elsewhere.
        let held = |slot: &Slot| {
            let state = slot.upload.try_lock();
            state.map_or(0, |state| state.resting.as_ref().map_or(0, |resting| resting.0.len()))
        };
        let mut sum: usize = all.iter().map(|(_, slot)| held(slot)).sum();
        let oldest: Vec<Key> = match sum > RESTING_BYTES {
            true => all.iter().rev().map(|(key, _)| key.clone()).collect(),
            false => Vec::new(),
        };
        for key in oldest {
            if sum <= RESTING_BYTES {
                break;
            }
            let bytes = all.peek(&key).map_or(0, held);
            if bytes > 0 {
                sum -= bytes;
                ended.extend(all.pop(&key));
            }
        }
        drop(all);
        if !ended.is_empty() {
            tracing::warn!("{} uploads that rested have ended for want of memory", ended.len());
        }
    }
}

impl ObjectUpload {
    /// How many bytes have come.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn tree(&self) -> &ObjectTree {
        &self.uploads.tree
    }

    /// Adds all of `stream`, which are at most `limit` bytes; more are [`Kind::Size`], and the end of the upload, since
    /// what has been sent cannot be taken back. What came before the stream failed stays; if the store fails, the upload
    /// has ended.
    pub async fn append(
        mut self,
        mut stream: BoxStream,
        limit: Option<u64>,
        whole: Option<WholeBlob>,
    ) -> Result<Self> {
        self.state.touched = Instant::now();
        if self.state.parts.is_none() {
            let parts = self.new_parts(whole);
            self.state.parts = Some(parts);
        }
        let end = limit.map_or(u64::MAX, |limit| self.size().saturating_add(limit));
        while let Some(mut piece) = stream.next().await? {
            let found = self.size().saturating_add(piece.len() as u64);
            if found > end {
                self.end().await;
                let kind = Kind::Size { expected: end, found };
                return Err(Error::new(&self.tree().inner.side, "storing an upload", kind));
            }
            while !piece.is_empty() {
                if let Err(error) = self.add(&mut piece).await {
                    self.end().await;
                    return Err(error);
                }
            }
        }
        Ok(self)
    }

    fn new_parts(&mut self, whole: Option<WholeBlob>) -> Parts {
        let inner = self.tree().inner.clone();
        let (repository, name) = &self.key;
        let (key, size) = match whole {
            Some(whole) => {
                self.state.hasher = Hasher::new(whole.digest.algorithm());
                (inner.blob_key(&whole.digest), whole.size)
            }
            None => (inner.upload_key(repository, name), None),
        };
        Parts::new(inner, key, format!("storing an upload to {repository}"), size)
    }

    /// Takes as much of `piece` as there is room for. Counting, hashing and storing are one step: whatever is given up in
    /// the middle, what was counted is there.
    async fn add(&mut self, piece: &mut bytes::Bytes) -> Result<()> {
        let state = &mut *self.state;
        let Some(parts) = &mut state.parts else { return Ok(()) };
        parts.wake(&mut state.resting).await?;
        let room = parts.room().await?;
        let now = piece.split_to(room.min(piece.len()));
        state.hasher.update(&now);
        parts.add(&now);
        self.size.fetch_add(now.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes it the blob `digest`. [`Kind::Digest`] if it is another one. Either way it has ended then.
    pub async fn publish(mut self, digest: &Digest) -> Result<()> {
        let published = self.try_publish(digest).await;
        self.end().await;
        published
    }

    async fn try_publish(&mut self, digest: &Digest) -> Result<()> {
        let tree = self.tree().clone();
        let blob = Descriptor::new("", *digest, self.size());
        let own_key = tree.inner.upload_key(&self.key.0, &self.key.1);
        let state = &mut *self.state;
        let mismatch = |found: Digest| {
            let kind = Kind::Digest { expected: *digest, found };
            Error::new(&tree.inner.side, format_args!("storing blob {digest}"), kind)
        };
        let key = tree.inner.blob_key(digest);
        let doing = || format!("storing blob {digest}");
        let mut parts = match state.parts.take() {
            Some(parts) => parts,
            None => Parts::new(tree.inner.clone(), key.clone(), doing(), Some(0)),
        };
        parts.wake(&mut state.resting).await?;
        let found = state.hasher.clone().finish();
        if found.algorithm() == digest.algorithm() && found != *digest {
            parts.abort().await;
            return Err(mismatch(found));
        }
        if !parts.has_begun() {
            let found = Digest::of(digest.algorithm(), parts.collected());
            if found != *digest {
                return Err(mismatch(found));
            }
            parts.rename(key);
            return tree.complete_blob(&mut parts, &blob).await;
        }
        if *parts.key() == key {
            return tree.complete_blob(&mut parts, &blob).await;
        }
        if *parts.key() != own_key {
            // It was begun as another blob.
            parts.abort().await;
            return Err(mismatch(found));
        }
        if tree.has_blob(&blob).await? && found == *digest {
            parts.abort().await;
            return Ok(());
        }
        parts.complete().await?;
        let copied = tree.publish_object(&own_key, &blob, found).await;
        // What stays is removed when it is old.
        let _ = tree.inner.remove(&own_key).await;
        copied
    }

    /// Leaves it for the next request.
    pub fn rest(self) {
        let uploads = self.uploads.clone();
        drop(self);
        uploads.shrink();
    }

    /// Removes it.
    pub async fn remove(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
        self.state.has_ended = true;
        self.state.resting = None;
        if let Some(mut parts) = self.state.parts.take() {
            parts.abort().await;
        }
        locked(&self.uploads.all).pop(&self.key);
    }
}

impl Drop for ObjectUpload {
    fn drop(&mut self) {
        let state = &mut *self.state;
        state.touched = Instant::now();
        // While it rests, its room is for others.
        if let Some(resting) = state.parts.as_mut().and_then(Parts::rest) {
            state.resting = Some(resting);
        }
    }
}

impl ObjectTree {
    /// Makes the object `from`, which hashes to `found`, the `blob`. By another algorithm than that of the blob, it is
    /// read once more.
    async fn publish_object(&self, from: &Path, blob: &Descriptor, found: Digest) -> Result<()> {
        let inner = &self.inner;
        let to = inner.blob_key(&blob.digest);
        let doing = || format!("storing blob {}", blob.digest);
        let failed = |e| inner.error(doing(), &e);
        if found == blob.digest && blob.size <= MAX_COPY {
            return inner.store.copy(from, &to).await.map_err(failed);
        }
        // The store cannot copy it, or it has to be hashed: through here, part by part.
        let read = inner.store.get(from).await.map_err(failed)?;
        let mut stream = read.into_stream();
        let mut parts = Parts::new(inner.clone(), to, doing(), Some(blob.size));
        let mut hasher = Hasher::new(blob.digest.algorithm());
        while let Some(piece) = stream.try_next().await.map_err(failed)? {
            hasher.update(&piece);
            parts.take(piece).await?;
        }
        let found = hasher.finish();
        if found != blob.digest {
            parts.abort().await;
            let kind = Kind::Digest { expected: blob.digest, found };
            return Err(Error::new(&inner.side, doing(), kind));
        }
        self.complete_blob(&mut parts, blob).await
    }
}
