//! A bucket of an object store that is served.
//!
//! Any number of servers may serve the same one, and none knows of the others. So what can change is asked for at each
//! request: a tag is one `GET`, on the condition that it has changed. What a server has seen to be there (manifests by
//! their digests, and that they name blobs) it takes to be there for [`HOLDS`]; what it has not seen it looks for, so
//! that what another one has brought is there at once, and what another one has removed is gone after that time.
//!
//! Whether a blob is in a repository is known from the manifests that were asked for. If none of those names it, the
//! notes of what was brought are looked at, and then all manifests of the repository, of which each is read once.
//!
//! Blobs are not hashed when they are read: each was when it was written, and its key appeared when that was done.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::{
    BlobPlace, Manifests, Put, Slots, Taken, Tree, Upload,
    known::{HOLDS, Seen, Slot, Stated},
};
use crate::{
    backend::{
        BoxStream, Error, Kind, ManifestName, Result, Sink,
        images_dir::Filling,
        object_store::{
            BlobReader, FoundManifest, ManifestObject, ObjectTree, ObjectUpload, Uploads, WholeBlob,
        },
    },
    image::{Algorithm, Digest, Manifest, Repository, is_referrers_tag, referrers_tag},
    serve::{
        index::{Entry, Index, Listed, Place, Stored, listed_children},
        route::Target,
    },
    util::locked,
};

/// Manifests that are read at the same time.
const READ_AT_ONCE: usize = 16;

/// Bytes of manifests that are kept.
const MANIFEST_BYTES: usize = 16 << 20;

/// For how long a URL is good at which a client gets a blob. Clients follow at once; the clocks here and at the store may
/// differ.
const URL_LIFETIME: Duration = Duration::from_secs(900);

/// A bucket that is served.
pub(in crate::serve) struct Bucket {
    tree: ObjectTree,
    repositories: Arc<Slots<Slot>>,
    manifests: Manifests,
    uploads: Arc<Uploads>,
    /// For how long an upload may rest, and a blob belong to a repository without being named there.
    upload_ttl: Duration,
    /// Whether clients are sent to the store for blobs.
    redirects: bool,
}

fn target_name(target: &Target) -> String {
    match target {
        Target::Tag(tag) => tag.clone(),
        Target::Digest(digest) => digest.to_string(),
    }
}

impl Bucket {
    /// Fails if it cannot be used as it is to be.
    pub(in crate::serve) async fn open(
        tree: ObjectTree,
        upload_ttl: Duration,
        is_written: bool,
        redirects: bool,
    ) -> Result<Self> {
        tree.check_readable().await?;
        if is_written {
            tree.check_writable().await?;
        }
        if redirects {
            // Whether a URL can be made says nothing of whether there is such a blob.
            tree.blob_url(&Digest::sha256(b""), URL_LIFETIME).await?;
        }
        Ok(Self {
            uploads: Uploads::new(tree.clone()),
            tree,
            repositories: Arc::new(Slots::new()),
            manifests: Manifests::new(MANIFEST_BYTES),
            upload_ttl,
            redirects,
        })
    }

    /// All that is in `repository` now: its objects are listed, and those read that are not known.
    async fn contents(&self, repository: &Repository) -> Result<Arc<Index<ManifestObject>>> {
        let asked = Instant::now();
        let slot = self.repositories.get(repository);
        let _listing = slot.listing.lock().await;
        let (seen, index) = {
            let known = locked(&slot.known);
            let seen = known.seen.values().map(|seen| seen.stored.clone());
            let seen: HashMap<OsString, _> =
                seen.map(|stored| (stored.place.name().to_owned(), stored)).collect();
            (seen, known.index.clone())
        };
        // Somebody else has listed it meanwhile.
        if let Some((index, at)) = &index
            && *at >= asked
        {
            return Ok(index.clone());
        }
        let at = Instant::now();
        let objects = self.tree.repository_objects(repository).await?;
        let listed = Listed { tags: objects.tags, digests: objects.digests };
        let (mut known, unread) = listed.compare(|name| {
            let in_index = index.as_ref().and_then(|(index, _)| index.at(name).cloned());
            in_index.or_else(|| seen.get(name).cloned())
        });
        let read = stream::iter(unread).map(|place| async move {
            match self.tree.read_object(&place).await {
                Ok(manifest) => {
                    let entry = Arc::new(Entry::of(&manifest));
                    Ok(Some(Arc::new(Stored { place, entry })))
                }
                // It has gone meanwhile, or is none.
                Err(error) if matches!(error.kind(), Kind::NotFound(_) | Kind::Manifest(_)) => {
                    tracing::debug!("{error}");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        });
        let mut read = read.buffered(READ_AT_ONCE);
        while let Some(stored) = read.try_next().await? {
            let named = stored.map(|stored| (stored.place.name().to_owned(), stored));
            known.extend(named);
        }
        let index = Arc::new(Index::build(listed, known));
        locked(&slot.known).index = Some((index.clone(), at));
        self.repositories.shrink(|slot| locked(&slot.known).named());
        Ok(index)
    }

    /// What the manifests of `repository` say of `blob`.
    async fn stated(&self, repository: &Repository, blob: &Digest) -> Result<Option<Stated>> {
        let slot = self.repositories.get(repository);
        let (stated, names) = {
            let known = locked(&slot.known);
            (known.stated(blob), known.worth_asking(blob))
        };
        if stated.is_some() {
            return Ok(stated);
        }
        for name in names {
            let target = match name.parse::<Digest>() {
                Ok(digest) => Target::Digest(digest),
                Err(_) => Target::Tag(name),
            };
            self.find(repository, &target).await?;
            let stated = locked(&slot.known).stated(blob);
            if stated.is_some() {
                return Ok(stated);
            }
        }
        Ok(None)
    }

    /// The size of `blob` by what is `stated` of it, unless the repository has not got it.
    async fn size_of(
        &self,
        repository: &Repository,
        blob: &Digest,
        stated: Stated,
    ) -> Result<Option<u64>> {
        let slot = self.repositories.get(repository);
        let lacking = locked(&slot.known).lacking.clone();
        // Whoever takes a manifest without a blob makes a note of that before the manifest is there.
        let holds = |at: &Instant| *at >= stated.since && at.elapsed() < HOLDS;
        let lacking = lacking.filter(|(lacking, at)| holds(at) && !lacking.contains(blob));
        if lacking.is_none() {
            let at = Instant::now();
            let lacking = Arc::new(self.tree.lacking(repository).await?);
            locked(&slot.known).lacking = Some((lacking.clone(), at));
            if lacking.contains(blob) {
                return Ok(None);
            }
        }
        match &stated.sizes[..] {
            [size] => Ok(Some(*size)),
            sizes => {
                let there = self.tree.blob_bytes(blob).await?;
                let fits = there.filter(|size| sizes.contains(size));
                Ok(fits.or(sizes.first().copied()))
            }
        }
    }

    /// The size of a blob that was brought into `repository`.
    async fn brought(&self, repository: &Repository, blob: &Digest) -> Result<Option<u64>> {
        let slot = self.repositories.get(repository);
        let known = locked(&slot.known).brought.get(blob).copied();
        if let Some((size, _)) = known.filter(|(_, until)| *until > Instant::now()) {
            return Ok(Some(size));
        }
        let Some((size, left)) = self.tree.adopted(repository, blob, self.upload_ttl).await? else {
            locked(&slot.known).brought.remove(blob);
            return Ok(None);
        };
        let until = Instant::now() + left.min(HOLDS);
        locked(&slot.known).note_brought(*blob, size, until);
        Ok(Some(size))
    }
}

#[async_trait]
impl Tree for Bucket {
    async fn check_ready(&self, _: bool) -> std::result::Result<(), String> {
        // Whether it can be written to was found out at the start.
        self.tree.check_readable().await.map_err(|error| {
            tracing::warn!("{error}");
            "the object store cannot be read".to_owned()
        })
    }

    async fn repositories(&self) -> Result<Vec<Repository>> {
        Ok(self.tree.repositories().await?.into_iter().collect())
    }

    async fn exists(&self, repository: &Repository) -> Result<bool> {
        let slot = self.repositories.get(repository);
        let existed = locked(&slot.known).existed;
        if existed.is_some_and(|at| at.elapsed() < HOLDS) {
            return Ok(true);
        }
        let at = Instant::now();
        let exists =
            self.tree.has_manifests(repository).await? || self.tree.has_adopted(repository).await?;
        locked(&slot.known).existed = exists.then_some(at);
        Ok(exists)
    }

    async fn tags(&self, repository: &Repository) -> Result<BTreeSet<String>> {
        let mut tags = self.tree.repository_objects(repository).await?.tags;
        // The bucket keeps them for its own sake; who wants to know what refers to something asks for that.
        tags.retain(|tag, _| !is_referrers_tag(tag));
        Ok(tags.into_keys().collect())
    }

    async fn find(&self, repository: &Repository, target: &Target) -> Result<Option<Arc<Entry>>> {
        let slot = self.repositories.get(repository);
        let name = target_name(target);
        let before = locked(&slot.known).seen.get(&name).cloned();
        if let Some(before) = &before
            && matches!(target, Target::Digest(_))
            && before.at.elapsed() < HOLDS
        {
            return Ok(Some(before.stored.entry.clone()));
        }
        // Without its bytes there would have to be another request for them.
        let before = before.filter(|seen| self.manifests.get(&seen.stored.entry.digest).is_some());
        let at = Instant::now();
        let place = before.as_ref().map(|seen| &seen.stored.place);
        let found = self.tree.find_manifest(repository, &name, place).await?;
        let mut known = locked(&slot.known);
        let seen = match (found, before) {
            (FoundManifest::Same, Some(before)) => Seen { at, ..before },
            (FoundManifest::Read(place, manifest), _) => {
                let entry = Arc::new(Entry::of(&manifest));
                self.manifests.put(entry.digest, manifest.bytes().clone());
                Seen { stored: Arc::new(Stored { place, entry }), since: at, at }
            }
            (FoundManifest::Nothing | FoundManifest::Same, _) => {
                known.seen.remove(&name);
                return Ok(None);
            }
        };
        let entry = seen.stored.entry.clone();
        known.note_seen(name, seen);
        Ok(Some(entry))
    }

    async fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Bytes> {
        if let Some(bytes) = self.manifests.get(digest) {
            return Ok(bytes);
        }
        let found = self.tree.find_manifest(repository, &digest.to_string(), None).await?;
        match found {
            FoundManifest::Read(_, manifest) => {
                self.manifests.put(*digest, manifest.bytes().clone());
                Ok(manifest.bytes().clone())
            }
            FoundManifest::Same | FoundManifest::Nothing => {
                let doing = format!("reading the manifest {}", repository.pinned(*digest));
                Err(Error::new("bucket", doing, Kind::NotFound(String::new())))
            }
        }
    }

    async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<BTreeMap<Digest, Value>> {
        // Whoever writes a manifest into a bucket lists it there.
        let list = Target::Tag(referrers_tag(subject));
        let Some(list) = self.find(repository, &list).await? else { return Ok(BTreeMap::new()) };
        let children = listed_children(&self.manifest(repository, &list.digest).await?);
        let found = stream::iter(children).map(|(child, descriptor)| async move {
            let entry = self.find(repository, &Target::Digest(child)).await?;
            let refers = entry.is_some_and(|entry| entry.may_refer_to(subject));
            Ok::<_, Error>(refers.then_some((child, descriptor)))
        });
        let found: Vec<_> = found.buffered(READ_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn users(&self, repository: &Repository, digest: &Digest) -> Result<Vec<Arc<Entry>>> {
        Ok(self.contents(repository).await?.users(digest))
    }

    async fn blob_bytes(&self, digest: &Digest) -> Result<Option<u64>> {
        self.tree.blob_bytes(digest).await
    }

    async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>> {
        if let Some(stated) = self.stated(repository, digest).await?
            && let Some(size) = self.size_of(repository, digest, stated).await?
        {
            return Ok(Some(size));
        }
        if let Some(size) = self.brought(repository, digest).await? {
            return Ok(Some(size));
        }
        // A manifest may name it that nobody has asked for here.
        self.contents(repository).await?;
        match self.stated(repository, digest).await? {
            Some(stated) => self.size_of(repository, digest, stated).await,
            None => Ok(None),
        }
    }

    async fn present_bytes(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>> {
        match self.blob_size(repository, digest).await? {
            Some(_) => self.tree.blob_bytes(digest).await,
            None => Ok(None),
        }
    }

    async fn open_blob(
        &self,
        digest: &Digest,
        size: u64,
        wanted: &[Range<u64>],
    ) -> Result<Option<BlobPlace>> {
        let reader = BlobReader::new(&self.tree, digest, size);
        let first = wanted.first().filter(|first| !first.is_empty());
        // Stores give one part of an object at a time, so who wants several gets them here.
        let is_sent_there = self.redirects && wanted.len() == 1;
        let Some(first) = first.filter(|_| !is_sent_there) else {
            if self.tree.blob_bytes(digest).await? != Some(size) {
                return Ok(None);
            }
            return Ok(Some(match is_sent_there {
                true => BlobPlace::Elsewhere(self.tree.blob_url(digest, URL_LIFETIME).await?),
                false => BlobPlace::Object(Box::new(reader)),
            }));
        };
        // The request that is going to be answered shows whether it is there.
        let opened = reader.open(first).await?;
        Ok(opened.map(|reader| BlobPlace::Object(Box::new(reader))))
    }

    async fn holders(&self, digest: &Digest) -> Result<Vec<Repository>> {
        Ok(self.repositories.filter(|slot| {
            let known = locked(&slot.known);
            known.stated(digest).is_some() || known.brought.contains_key(digest)
        }))
    }

    async fn hold(&self) -> Result<Option<Filling>> {
        // Nothing removes blobs from a bucket.
        Ok(None)
    }

    async fn put(&self, repository: &Repository, manifest: &Manifest, how: &Put) -> Result<Taken> {
        if let Some(refused) = how.refused(self, repository, manifest).await? {
            return Ok(refused);
        }
        let target = how.target(manifest);
        for blob in &how.lacking {
            self.tree.note_lacking(repository, blob, self.upload_ttl).await?;
            locked(&self.repositories.get(repository).known).lacking = None;
        }
        self.tree.put(repository, manifest, &ManifestName::Digest).await?;
        // A tag in a bucket says SHA-256, and what it says has to be there.
        if !how.tags.is_empty() && manifest.digest().algorithm() != Algorithm::Sha256 {
            let (bytes, kind) = (manifest.bytes().clone(), manifest.media_type());
            if let Ok(same) = Manifest::parse_as(Algorithm::Sha256, bytes, Some(kind)) {
                self.tree.put(repository, &same, &ManifestName::Digest).await?;
            }
        }
        for tag in &how.tags {
            let is_asked_for = matches!(&target, Target::Tag(asked) if asked == tag);
            let holds = |there: Option<&Digest>| !is_asked_for || how.condition.holds(there);
            if let Err(there) = self.tree.tag_if(repository, manifest, tag, holds).await? {
                return Ok(Taken::No(there));
            }
        }
        Ok(Taken::Yes)
    }

    async fn remove_tag(&self, repository: &Repository, tag: &str) -> Result<()> {
        self.tree.remove_name(repository, tag).await?;
        locked(&self.repositories.get(repository).known).forget();
        Ok(())
    }

    async fn remove_manifest(&self, repository: &Repository, entry: &Entry) -> Result<Vec<String>> {
        let tags = self.contents(repository).await?.tags_of(entry);
        for tag in &tags {
            // Another server may have given it to another manifest meanwhile.
            let there = self.find(repository, &Target::Tag(tag.clone())).await?;
            if there.is_some_and(|there| there.is_same(entry)) {
                self.tree.remove_name(repository, tag).await?;
            }
        }
        self.tree.remove_name(repository, &entry.digest.to_string()).await?;
        if let Some((subject, _)) = &entry.contents.subject {
            self.tree.remove_referrer(repository, subject, &entry.digest).await?;
        }
        locked(&self.repositories.get(repository).known).forget();
        Ok(tags)
    }

    async fn adopt(&self, repository: &Repository, digest: &Digest, size: u64) -> Result<bool> {
        if self.tree.blob_bytes(digest).await? != Some(size) {
            return Ok(false);
        }
        let slot = self.repositories.get(repository);
        bring(&self.tree, &slot, repository, digest, size, self.upload_ttl).await?;
        Ok(true)
    }

    async fn release(&self, repository: &Repository, digest: &Digest) -> Result<bool> {
        let adopted = self.tree.adopted(repository, digest, self.upload_ttl).await?;
        self.tree.release(repository, digest).await?;
        let slot = self.repositories.get(repository);
        let mut known = locked(&slot.known);
        known.brought.remove(digest);
        known.forget();
        Ok(adopted.is_some())
    }

    async fn begin_upload(&self, repository: &Repository, name: &str) -> Result<Box<dyn Upload>> {
        let upload = self.uploads.begin(repository, name)?;
        Ok(self.upload(repository, upload))
    }

    async fn resume_upload(
        &self,
        repository: &Repository,
        name: &str,
    ) -> Result<Option<Box<dyn Upload>>> {
        let upload = self.uploads.resume(repository, name)?;
        Ok(upload.map(|upload| self.upload(repository, upload)))
    }

    fn upload_bytes(&self, repository: &Repository, name: &str) -> Option<u64> {
        self.uploads.bytes(repository, name)
    }

    async fn sweep(&self) -> Result<usize> {
        let ended = self.uploads.end_old(self.upload_ttl);
        Ok(ended + self.tree.remove_leftovers(self.upload_ttl).await?)
    }
}

impl Bucket {
    fn upload(&self, repository: &Repository, upload: ObjectUpload) -> Box<dyn Upload> {
        Box::new(BucketUpload {
            tree: self.tree.clone(),
            slot: self.repositories.get(repository),
            repository: repository.clone(),
            upload_ttl: self.upload_ttl,
            upload,
        })
    }
}

/// Notes that a blob is in `repository`.
async fn bring(
    tree: &ObjectTree,
    slot: &Slot,
    repository: &Repository,
    digest: &Digest,
    size: u64,
    lifetime: Duration,
) -> Result<()> {
    tree.adopt(repository, digest, size).await?;
    let until = Instant::now() + lifetime.min(HOLDS);
    locked(&slot.known).note_brought(*digest, size, until);
    Ok(())
}

/// An upload into a bucket.
struct BucketUpload {
    tree: ObjectTree,
    slot: Arc<Slot>,
    repository: Repository,
    upload_ttl: Duration,
    upload: ObjectUpload,
}

#[async_trait]
impl Upload for BucketUpload {
    fn size(&self) -> u64 {
        self.upload.size()
    }

    async fn append(
        self: Box<Self>,
        stream: BoxStream,
        limit: Option<u64>,
        whole: Option<WholeBlob>,
    ) -> Result<Box<dyn Upload>> {
        let Self { tree, slot, repository, upload_ttl, upload } = *self;
        let upload = upload.append(stream, limit, whole).await?;
        Ok(Box::new(Self { tree, slot, repository, upload_ttl, upload }))
    }

    async fn rest(self: Box<Self>) {
        self.upload.rest();
    }

    async fn publish(self: Box<Self>, digest: &Digest) -> Result<()> {
        let size = self.upload.size();
        self.upload.publish(digest).await?;
        // Before anybody is told that it is here.
        bring(&self.tree, &self.slot, &self.repository, digest, size, self.upload_ttl).await
    }

    async fn remove(self: Box<Self>) -> Result<()> {
        self.upload.remove().await;
        Ok(())
    }
}
