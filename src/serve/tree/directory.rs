//! A directory of images that is served.
//!
//! Blobs are files and are sent as such; those that nobody has verified are hashed once for all who ask. Every write
//! keeps `prune` away, from looking for what a manifest names until the tag is there. Uploads are files, too, and
//! survive the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use serde_json::Value;

use super::{
    BlobPlace, Put, Taken, Tree, Upload,
    files::{Indexes, Snapshot},
};
use crate::{
    backend::{
        BoxStream, ManifestName, Result, Sink,
        images_dir::{self, FileStamp, Filling, ImagesDir},
        object_store::WholeBlob,
    },
    image::{Algorithm, Descriptor, Digest, Manifest, Repository, listed_json, referrers_tag},
    serve::{
        index::{Entry, listed_children},
        route::Target,
        sparse::present_platforms,
    },
    util::{Flight, SingleFlight, locked},
};

/// Uploads that are kept open between two requests, so that what has come need not be hashed again.
const KEPT_UPLOADS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// How long a write waits for `prune`.
const PRUNE_PATIENCE: Duration = Duration::from_secs(30);

/// Blobs that were found to be damaged, and are remembered.
const KEPT_DAMAGED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A directory that is served.
pub(in crate::serve) struct Directory {
    dir: ImagesDir,
    indexes: Indexes,
    /// Where blobs are that have come through upstreams.
    cache_dir: PathBuf,
    /// For how long an upload may rest, and a blob belong to a repository without being named there.
    upload_ttl: Duration,
    open_uploads: Arc<OpenUploads>,
    verifications: SingleFlight<Digest, Result<()>>,
    damaged: Arc<Mutex<LruCache<Digest, FileStamp>>>,
}

impl Directory {
    pub(in crate::serve) fn new(dir: ImagesDir, cache_dir: PathBuf, upload_ttl: Duration) -> Self {
        Self {
            indexes: Indexes::new(dir.clone()),
            dir,
            cache_dir,
            upload_ttl,
            open_uploads: Arc::new(OpenUploads(Mutex::new(LruCache::new(KEPT_UPLOADS)))),
            verifications: SingleFlight::default(),
            damaged: Arc::new(Mutex::new(LruCache::new(KEPT_DAMAGED))),
        }
    }

    /// Whether a blob is in `repository`, of which `snapshot` is what is there.
    fn has(&self, snapshot: &Snapshot, repository: &Repository, blob: &Digest) -> bool {
        let is_named = snapshot.index.names(blob) && !self.dir.lacks(repository, blob);
        is_named || self.dir.is_adopted(repository, blob)
    }

    /// Hashes a file of the tree, once for all who want it.
    fn verify(&self, digest: Digest, size: u64, stamp: FileStamp) -> Flight<Result<()>> {
        let (dir, damaged) = (self.dir.clone(), self.damaged.clone());
        self.verifications.run(digest, || async move {
            let verified = dir.verified_file(digest, size).await;
            if let Err(error) = &verified {
                tracing::error!("{error}; `imgfs verify --repair` fetches it again");
                locked(&damaged).put(digest, stamp);
            }
            verified.map(drop)
        })
    }

    async fn has_manifest(&self, repository: &Repository, digest: Digest) -> Result<bool> {
        Ok(self.indexes.find(repository, &Target::Digest(digest)).await?.is_some())
    }

    /// Whether something names a manifest that is pushed: the index of which it is a child, or its subject.
    async fn is_named(&self, repository: &Repository, manifest: &Manifest) -> Result<bool> {
        if let Some(subject) = manifest.subject()
            && self.has_manifest(repository, subject.digest).await?
        {
            return Ok(true);
        }
        let digest = manifest.digest();
        let snapshot = self.indexes.get(repository).await?;
        let users = snapshot.index.users(&digest);
        Ok(users.iter().any(|user| user.contents.children.contains(&digest)))
    }

    /// Notes of the indexes that have lost the child `digest` on purpose that they are not incomplete.
    async fn keep_sparse(
        &self,
        repository: &Repository,
        snapshot: &Snapshot,
        digest: &Digest,
    ) -> Result<()> {
        for user in snapshot.index.users(digest) {
            let bytes = self.indexes.bytes(repository, &user.digest).await?;
            if let Ok(parent) = Manifest::parse_as(user.digest.algorithm(), bytes, None) {
                let platforms = present_platforms(self, repository, &parent).await?;
                self.dir.keep_sparse(user.digest, &platforms).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Tree for Directory {
    async fn check_ready(&self, is_written: bool) -> std::result::Result<(), String> {
        let root = self.dir.root();
        let is_writable = || rustix::fs::access(root, rustix::fs::Access::WRITE_OK).is_ok();
        match self.dir.dir().stat(root) {
            Err(_) => Err("the directory of images cannot be read".to_owned()),
            Ok(_) if is_written && !is_writable() => {
                Err("the directory of images cannot be written to".to_owned())
            }
            Ok(_) => Ok(()),
        }
    }

    async fn repositories(&self) -> Result<Vec<Repository>> {
        self.dir.repositories().await
    }

    async fn exists(&self, repository: &Repository) -> Result<bool> {
        let snapshot = self.indexes.get(repository).await?;
        Ok(!snapshot.index.is_empty() || self.dir.has_adopted(repository))
    }

    async fn tags(&self, repository: &Repository) -> Result<BTreeSet<String>> {
        Ok(self.indexes.get(repository).await?.index.tags().cloned().collect())
    }

    async fn find(&self, repository: &Repository, target: &Target) -> Result<Option<Arc<Entry>>> {
        self.indexes.find(repository, target).await
    }

    async fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Bytes> {
        self.indexes.bytes(repository, digest).await
    }

    async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<BTreeMap<Digest, Value>> {
        let snapshot = self.indexes.get(repository).await?;
        let own = snapshot.index.referrers(subject).iter();
        let mut found: BTreeMap<Digest, Value> =
            own.map(|referrer| (referrer.digest, listed_json(referrer))).collect();
        // What clients have listed under a tag where there was no such list.
        let fallback = Target::Tag(referrers_tag(subject));
        if let Some(list) = snapshot.index.find(&fallback)
            && let Ok(bytes) = self.indexes.bytes(repository, &list.entry.digest).await
        {
            for (child, descriptor) in listed_children(&bytes) {
                let child_here = snapshot.index.find(&Target::Digest(child));
                if child_here.is_some_and(|stored| stored.entry.may_refer_to(subject)) {
                    found.entry(child).or_insert(descriptor);
                }
            }
        }
        Ok(found)
    }

    async fn users(&self, repository: &Repository, digest: &Digest) -> Result<Vec<Arc<Entry>>> {
        Ok(self.indexes.get(repository).await?.index.users(digest))
    }

    async fn blob_bytes(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.dir.blob_bytes(digest))
    }

    async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>> {
        let snapshot = self.indexes.get(repository).await?;
        if self.has(&snapshot, repository, digest)
            && let Some(size) = snapshot.index.blob(digest, || self.dir.blob_bytes(digest))
        {
            return Ok(Some(size));
        }
        let is_adopted = self.dir.is_adopted(repository, digest);
        Ok(self.dir.blob_bytes(digest).filter(|_| is_adopted))
    }

    async fn present_bytes(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>> {
        let snapshot = self.indexes.get(repository).await?;
        let has = self.has(&snapshot, repository, digest);
        Ok(self.dir.blob_bytes(digest).filter(|_| has))
    }

    async fn open_blob(
        &self,
        digest: &Digest,
        size: u64,
        _: &[Range<u64>],
    ) -> Result<Option<BlobPlace>> {
        let Some((file, meta, verified)) = self.dir.blob_file(digest) else { return Ok(None) };
        let stamp = FileStamp::of(&meta);
        if meta.len() != size || locked(&self.damaged).get(digest) == Some(&stamp) {
            return Ok(None);
        }
        let doubt = (!verified).then(|| self.verify(*digest, size, stamp));
        Ok(Some(BlobPlace::File(Arc::new(file), doubt)))
    }

    async fn holders(&self, digest: &Digest) -> Result<Vec<Repository>> {
        let mut all = self.indexes.naming(digest);
        // Those that have no manifest yet, too.
        all.extend(self.dir.owners(*digest).await?);
        Ok(all)
    }

    async fn hold(&self) -> Result<Option<Filling>> {
        self.dir.filling(PRUNE_PATIENCE).await.map(Some)
    }

    async fn put(&self, repository: &Repository, manifest: &Manifest, how: &Put) -> Result<Taken> {
        let digest = manifest.digest();
        if let Some(refused) = how.refused(self, repository, manifest).await? {
            return Ok(refused);
        }
        if let Some(platforms) = &how.sparse {
            self.dir.keep_sparse(digest, platforms).await?;
        }
        if !how.lacking.is_empty() {
            self.dir.note_lacking(repository, how.lacking.clone()).await?;
        }
        // The tag is to lead to this digest, and not to the other one of the same bytes.
        let sha512 = || Digest::of(Algorithm::Sha512, manifest.bytes());
        let is_by_digest = how.by_digest
            || digest.algorithm() != Algorithm::Sha256
            || self.has_manifest(repository, sha512()).await?;
        if is_by_digest {
            // Without a tag it is kept for its own sake, until something else names it.
            let is_pinned = how.tags.is_empty() && !self.is_named(repository, manifest).await?;
            let name = if is_pinned { ManifestName::Pinned } else { ManifestName::Digest };
            self.dir.put_pushed(repository, manifest, &name).await?;
        }
        for tag in &how.tags {
            let name = ManifestName::Tag(tag.clone());
            self.dir.put_pushed(repository, manifest, &name).await?;
        }
        if !how.tags.is_empty() {
            self.dir.unpin(repository, digest).await?;
        }
        for child in manifest.children() {
            self.dir.unpin(repository, child.digest).await?;
        }
        Ok(Taken::Yes)
    }

    async fn remove_tag(&self, repository: &Repository, tag: &str) -> Result<()> {
        self.dir.remove_tags(repository, &[tag.to_owned()]).await
    }

    async fn remove_manifest(&self, repository: &Repository, entry: &Entry) -> Result<Vec<String>> {
        let snapshot = self.indexes.get(repository).await?;
        let tags = snapshot.index.tags_of(entry);
        self.dir.remove_manifest(repository, entry.digest, &tags).await?;
        self.keep_sparse(repository, &snapshot, &entry.digest).await?;
        Ok(tags)
    }

    async fn adopt(&self, repository: &Repository, digest: &Digest, size: u64) -> Result<bool> {
        let blob = Descriptor::new("", *digest, size);
        let is_here = self.dir.blob_bytes(digest) == Some(size)
            || self.dir.take_from_cache(&blob, &self.cache_dir).await.unwrap_or(false);
        // Nobody gets as his own what is not what it is called.
        if !is_here || self.dir.verified_file(*digest, size).await.is_err() {
            return Ok(false);
        }
        self.dir.adopt(repository, *digest, self.upload_ttl).await?;
        Ok(true)
    }

    async fn release(&self, repository: &Repository, digest: &Digest) -> Result<bool> {
        let is_adopted = self.dir.is_adopted(repository, digest);
        if is_adopted {
            self.dir.release(repository, digest)?;
        }
        Ok(is_adopted)
    }

    async fn begin_upload(&self, repository: &Repository, name: &str) -> Result<Box<dyn Upload>> {
        let upload = self.dir.create_upload(repository, name).await?;
        Ok(self.opened(repository, name, upload))
    }

    async fn resume_upload(
        &self,
        repository: &Repository,
        name: &str,
    ) -> Result<Option<Box<dyn Upload>>> {
        let upload = match self.open_uploads.take(repository, name) {
            Some(upload) => Some(upload),
            None => self.dir.open_upload(repository, name).await?,
        };
        Ok(upload.map(|upload| self.opened(repository, name, upload)))
    }

    fn upload_bytes(&self, repository: &Repository, name: &str) -> Option<u64> {
        self.dir.upload_bytes(repository, name)
    }

    async fn sweep(&self) -> Result<usize> {
        // Those that are open are locked, and so would stay.
        self.open_uploads.close();
        self.dir.remove_old_uploads(self.upload_ttl).await
    }
}

impl Directory {
    fn opened(
        &self,
        repository: &Repository,
        name: &str,
        upload: images_dir::Upload,
    ) -> Box<dyn Upload> {
        let open = Opened {
            dir: self.dir.clone(),
            upload_ttl: self.upload_ttl,
            open_uploads: self.open_uploads.clone(),
            repository: repository.clone(),
            name: name.to_owned(),
        };
        Box::new(FileUpload { open, upload })
    }
}

/// Uploads that are left open between two requests.
struct OpenUploads(Mutex<LruCache<(Repository, String), images_dir::Upload>>);

impl OpenUploads {
    fn take(&self, repository: &Repository, name: &str) -> Option<images_dir::Upload> {
        locked(&self.0).pop(&(repository.clone(), name.to_owned()))
    }

    fn keep(&self, repository: Repository, name: String, upload: images_dir::Upload) {
        let before = locked(&self.0).push((repository, name), upload);
        drop(before);
    }

    fn close(&self) {
        locked(&self.0).clear();
    }
}

/// An upload into a file.
struct FileUpload {
    open: Opened,
    upload: images_dir::Upload,
}

/// Which one it is.
struct Opened {
    dir: ImagesDir,
    upload_ttl: Duration,
    open_uploads: Arc<OpenUploads>,
    repository: Repository,
    name: String,
}

#[async_trait]
impl Upload for FileUpload {
    fn size(&self) -> u64 {
        self.upload.size()
    }

    async fn append(
        self: Box<Self>,
        stream: BoxStream,
        limit: Option<u64>,
        _: Option<WholeBlob>,
    ) -> Result<Box<dyn Upload>> {
        let Self { open, upload } = *self;
        let upload = upload.append(stream, limit).await?;
        Ok(Box::new(Self { open, upload }))
    }

    async fn rest(self: Box<Self>) {
        let Self { open, upload } = *self;
        open.open_uploads.keep(open.repository, open.name, upload);
    }

    async fn publish(self: Box<Self>, digest: &Digest) -> Result<()> {
        let Self { open, upload } = *self;
        upload.publish(*digest).await?;
        // Before anybody is told that it is here.
        open.dir.adopt(&open.repository, *digest, open.upload_ttl).await
    }

    async fn remove(self: Box<Self>) -> Result<()> {
        self.upload.remove()
    }
}
