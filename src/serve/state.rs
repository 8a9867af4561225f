//! What all requests share, and what is found out for them.

use std::{
    fs::File,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use lru::LruCache;
use tokio::sync::Semaphore;

use super::{
    access::{Access, Action, User},
    counts::Counts,
    index::{Entry, Index, Indexes},
    log::AccessLog,
    names::{Named, Names},
    reply::{Problem, Result},
    route::Target,
    through::{Stale, Through},
};
use crate::{
    backend::{
        self,
        images_dir::{FileStamp, Filling, ImagesDir, Upload},
    },
    cache::CachedBlob,
    image::{Descriptor, Digest, Manifest, Repository},
    util::{Flight, SingleFlight, locked},
};

/// Uploads that receive something at the same time.
const UPLOADS_AT_ONCE: usize = 64;

/// Uploads that are kept open between two requests, so that what has come need not be hashed again.
const KEPT_UPLOADS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Blobs that are fetched to their end although nobody waits for them any more.
const ENDS_AT_ONCE: usize = 4;

/// Blobs that were found to be damaged, and are remembered.
const KEPT_DAMAGED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// How long a write waits for `prune`.
const PRUNE_PATIENCE: Duration = Duration::from_secs(30);

/// What may be done to the tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    pub(super) read_only: bool,
    pub(super) delete: bool,
    /// Whether a manifest may lack what it names.
    pub(super) sparse: bool,
}

/// What all requests share.
pub(super) struct Shared {
    pub(super) dir: ImagesDir,
    pub(super) names: Names,
    pub(super) abilities: Abilities,
    pub(super) upload_ttl: Duration,
    pub(super) indexes: Indexes,
    pub(super) through: Option<Through>,
    pub(super) access: Access,
    pub(super) counts: Counts,
    pub(super) log: Option<AccessLog>,
    pub(super) uploads: Semaphore,
    pub(super) ends: Arc<Semaphore>,
    open_uploads: Mutex<LruCache<(Repository, String), Upload>>,
    verifications: SingleFlight<Digest, backend::Result<()>>,
    damaged: Arc<Mutex<LruCache<Digest, FileStamp>>>,
}

/// A manifest that was asked for.
pub(super) struct FoundManifest {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) size: u64,
    pub(super) place: ManifestPlace,
    /// It may be out of date.
    pub(super) stale: Option<Stale>,
}

pub(super) enum ManifestPlace {
    Tree(Arc<Entry>),
    Memory(Box<Manifest>),
}

/// A blob that was asked for.
pub(super) struct FoundBlob {
    pub(super) size: u64,
    pub(super) place: BlobPlace,
}

pub(super) enum BlobPlace {
    /// A file of the tree, and what finds out whether it is right, if that is not known.
    Tree(Arc<File>, Option<Flight<backend::Result<()>>>),
    Cache(CachedBlob),
}

impl From<Arc<Entry>> for FoundManifest {
    fn from(entry: Arc<Entry>) -> Self {
        Self {
            digest: entry.digest,
            media_type: entry.media_type.clone(),
            size: entry.size,
            place: ManifestPlace::Tree(entry),
            stale: None,
        }
    }
}

impl From<Manifest> for FoundManifest {
    fn from(manifest: Manifest) -> Self {
        Self {
            digest: manifest.digest(),
            media_type: manifest.media_type().to_owned(),
            size: manifest.bytes().len() as u64,
            place: ManifestPlace::Memory(Box::new(manifest)),
            stale: None,
        }
    }
}

/// What a server is made of.
pub(super) struct Foundation {
    pub(super) dir: ImagesDir,
    pub(super) names: Names,
    pub(super) abilities: Abilities,
    pub(super) upload_ttl: Duration,
    pub(super) through: Option<Through>,
    pub(super) access: Access,
    pub(super) counts: Counts,
    pub(super) log: Option<AccessLog>,
}

impl Shared {
    pub(super) fn new(foundation: Foundation) -> Arc<Self> {
        let Foundation { dir, names, abilities, upload_ttl, through, access, counts, log } =
            foundation;
        Arc::new(Self {
            indexes: Indexes::new(dir.clone()),
            dir,
            names,
            abilities,
            upload_ttl,
            through,
            access,
            counts,
            log,
            uploads: Semaphore::new(UPLOADS_AT_ONCE),
            ends: Arc::new(Semaphore::new(ENDS_AT_ONCE)),
            open_uploads: Mutex::new(LruCache::new(KEPT_UPLOADS)),
            verifications: SingleFlight::default(),
            damaged: Arc::new(Mutex::new(LruCache::new(KEPT_DAMAGED))),
        })
    }

    // --- names ---

    /// The repository from which what `named` means is read.
    pub(super) async fn to_read(&self, named: &Named) -> Result<Repository> {
        match &named.fallback {
            Some(fallback) if !self.exists(&named.repository).await? => Ok(fallback.clone()),
            _ => Ok(named.repository.clone()),
        }
    }

    /// Whether there is anything of `repository` in the tree.
    pub(super) async fn exists(&self, repository: &Repository) -> Result<bool> {
        let index = self.index(repository).await?;
        Ok(!index.is_empty() || self.dir.has_adopted(repository))
    }

    pub(super) async fn index(&self, repository: &Repository) -> Result<Arc<Index>> {
        self.indexes.get(repository).await.map_err(|e| Problem::local(&e))
    }

    /// What pulls `repository` through, if anything does.
    pub(super) fn through(&self, repository: &Repository) -> Option<&Through> {
        self.through.as_ref().filter(|through| through.serves(repository))
    }

    pub(super) fn check(&self, user: &User, action: Action, repository: &Repository) -> Result<()> {
        let shown = self.names.shown(repository);
        self.access.check(user, action, &shown, &repository.to_string())
    }

    pub(super) fn allows(&self, user: &User, action: Action, repository: &Repository) -> bool {
        let shown = self.names.shown(repository);
        self.access.allows(user, action, &shown, &repository.to_string())
    }

    // --- content ---

    /// The manifest that `target` leads to in `repository`.
    pub(super) async fn manifest(
        &self,
        repository: &Repository,
        target: &Target,
    ) -> Result<FoundManifest> {
        let found = self.indexes.find(repository, target).await.map_err(|e| Problem::local(&e))?;
        let unknown = || match target {
            Target::Tag(tag) => Problem::manifest_unknown(repository.tagged(tag)),
            Target::Digest(digest) => Problem::manifest_unknown(repository.pinned(*digest)),
        };
        match (found, target, self.through(repository)) {
            (Some(entry), Target::Digest(_), _) | (Some(entry), _, None) => Ok(entry.into()),
            (None, _, None) => Err(unknown()),
            // What nobody has pulled through is owned, and nobody is asked for it.
            (Some(entry), Target::Tag(tag), Some(through))
                if !through.is_recorded(repository, tag) =>
            {
                Ok(entry.into())
            }
            (_, Target::Tag(tag), Some(through)) => {
                let tag = through.tag(repository, tag).await?;
                let digest = Target::Digest(tag.digest);
                let here = self.indexes.find(repository, &digest).await;
                let mut found: FoundManifest = match here.map_err(|e| Problem::local(&e))? {
                    Some(entry) => entry.into(),
                    None => through.manifest(repository, tag.digest).await?.into(),
                };
                found.stale = tag.stale;
                Ok(found)
            }
            (None, Target::Digest(digest), Some(through)) => {
                Ok(through.manifest(repository, *digest).await?.into())
            }
        }
    }

    /// The blob `digest` of `repository`.
    pub(super) async fn blob(&self, repository: &Repository, digest: Digest) -> Result<FoundBlob> {
        let through = self.through(repository);
        let mut size = self.blob_size(repository, &digest).await?;
        if size.is_none()
            && let Some(through) = through
        {
            size = Some(through.blob_size(repository, digest).await?);
        }
        // A length of 0 would be a whole answer of which nothing is looked at.
        let size = size.filter(|size| digest.may_have(*size));
        let Some(size) = size else { return Err(Problem::blob_unknown(digest)) };
        if let Some((file, meta, verified)) = self.dir.blob_file(&digest)
            && meta.len() == size
            && locked(&self.damaged).get(&digest) != Some(&FileStamp::of(&meta))
        {
            let doubt = (!verified).then(|| self.verify(digest, size, FileStamp::of(&meta)));
            return Ok(FoundBlob { size, place: BlobPlace::Tree(Arc::new(file), doubt) });
        }
        match through {
            Some(through) => {
                let blob = through.blob(repository, &Descriptor::new("", digest, size));
                Ok(FoundBlob { size, place: BlobPlace::Cache(blob?) })
            }
            None => Err(Problem::blob_unknown(digest)),
        }
    }

    /// The size of a blob that belongs to `repository`, as far as that is known here; whether the blob is here is
    /// another question.
    pub(super) async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>> {
        let index = self.index(repository).await?;
        if self.belongs(&index, repository, digest)
            && let Some(size) = index.blob(digest, || self.dir.blob_bytes(digest))
        {
            return Ok(Some(size));
        }
        if self.dir.is_adopted(repository, digest) {
            return Ok(self.dir.blob_bytes(digest));
        }
        match self.through(repository) {
            Some(through) => Ok(through.known_blob(repository, digest)),
            None => Ok(None),
        }
    }

    /// Whether a blob is in the tree in its size, and belongs to `repository`, of which `index` is what is there.
    pub(super) fn has_blob(
        &self,
        index: &Index,
        repository: &Repository,
        blob: &Descriptor,
    ) -> bool {
        self.belongs(index, repository, &blob.digest)
            && self.dir.blob_bytes(&blob.digest) == Some(blob.size)
    }

    /// Whether a blob is in `repository`, of which `index` is what is there: it was brought into it, or a manifest there
    /// names it that was not taken without it.
    pub(super) fn belongs(&self, index: &Index, repository: &Repository, blob: &Digest) -> bool {
        let is_named = index.names(blob) && !self.dir.lacks(repository, blob);
        is_named || self.dir.is_adopted(repository, blob)
    }

    /// Hashes a file of the tree, once for all who want it.
    fn verify(&self, digest: Digest, size: u64, stamp: FileStamp) -> Flight<backend::Result<()>> {
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

    // --- writing ---

    /// Keeps `prune` away as long as what it returns lives.
    pub(super) async fn filling(&self) -> Result<Filling> {
        self.dir.filling(PRUNE_PATIENCE).await.map_err(|e| Problem::local(&e))
    }

    /// Takes an upload that was left open, or opens it.
    pub(super) async fn take_upload(&self, repository: &Repository, name: &str) -> Result<Upload> {
        let key = (repository.clone(), name.to_owned());
        if let Some(upload) = locked(&self.open_uploads).pop(&key) {
            return Ok(upload);
        }
        match self.dir.open_upload(repository, name).await {
            Ok(Some(upload)) => Ok(upload),
            Ok(None) => Err(upload_unknown()),
            Err(error) if error.is_in_use() => Err(Problem::new(
                hyper::StatusCode::CONFLICT,
                "BLOB_UPLOAD_INVALID",
                "another request is writing to this upload",
            )),
            Err(error) => Err(Problem::local(&error)),
        }
    }

    /// Leaves an upload open for the next request.
    pub(super) fn keep_upload(&self, repository: &Repository, name: &str, upload: Upload) {
        let key = (repository.clone(), name.to_owned());
        let before = locked(&self.open_uploads).push(key, upload);
        drop(before);
    }

    /// Removes uploads to which nothing has come for long.
    pub(super) async fn remove_old_uploads(&self) {
        // Those that are open are locked, and so would stay.
        locked(&self.open_uploads).clear();
        match self.dir.remove_old_uploads(self.upload_ttl).await {
            Ok(0) => {}
            Ok(count) => tracing::info!("{count} abandoned uploads have been removed"),
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// There is no such upload, or no longer.
pub(super) fn upload_unknown() -> Problem {
    let status = hyper::StatusCode::NOT_FOUND;
    Problem::new(status, "BLOB_UPLOAD_UNKNOWN", "there is no such upload, or it has ended")
}
