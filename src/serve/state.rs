//! What all requests share, and what is found out for them.

use std::{ops::Range, sync::Arc};

use tokio::sync::Semaphore;

use super::{
    access::{Access, Action, User},
    counts::Counts,
    index::Entry,
    log::AccessLog,
    names::{Named, Names},
    reply::{Problem, Result},
    route::Target,
    through::{Stale, Through},
    tree::{BlobPlace, Tree, Upload},
};
use crate::{
    backend::images_dir::Filling,
    cache::CachedBlob,
    image::{Descriptor, Digest, Manifest, Repository},
};

/// Blobs that are fetched to their end although nobody waits for them any more.
const ENDS_AT_ONCE: usize = 4;

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
    pub(super) tree: Arc<dyn Tree>,
    pub(super) names: Names,
    pub(super) abilities: Abilities,
    pub(super) through: Option<Through>,
    pub(super) access: Access,
    pub(super) counts: Counts,
    pub(super) log: Option<AccessLog>,
    pub(super) uploads: Semaphore,
    pub(super) ends: Arc<Semaphore>,
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
    Tree,
    Memory(Box<Manifest>),
}

/// A blob that was asked for.
pub(super) enum FoundBlob {
    Tree(BlobPlace),
    Cache(CachedBlob),
}

impl From<Arc<Entry>> for FoundManifest {
    fn from(entry: Arc<Entry>) -> Self {
        Self {
            digest: entry.digest,
            media_type: entry.media_type.clone(),
            size: entry.size,
            place: ManifestPlace::Tree,
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
    pub(super) tree: Arc<dyn Tree>,
    pub(super) names: Names,
    pub(super) abilities: Abilities,
    pub(super) through: Option<Through>,
    pub(super) access: Access,
    pub(super) counts: Counts,
    pub(super) log: Option<AccessLog>,
    /// Uploads that may receive something at the same time.
    pub(super) uploads_at_once: usize,
}

impl Shared {
    pub(super) fn new(foundation: Foundation) -> Arc<Self> {
        let Foundation { tree, names, abilities, through, access, counts, log, uploads_at_once } =
            foundation;
        Arc::new(Self {
            tree,
            names,
            abilities,
            through,
            access,
            counts,
            log,
            uploads: Semaphore::new(uploads_at_once),
            ends: Arc::new(Semaphore::new(ENDS_AT_ONCE)),
        })
    }

    // --- names ---

    /// Whether there is anything of `repository` in the tree.
    pub(super) async fn exists(&self, repository: &Repository) -> Result<bool> {
        self.tree.exists(repository).await.map_err(|e| Problem::local(&e))
    }

    /// The repository from which what `named` means is read by `user`. Where he may read what he has named, and not
    /// what else it may mean, it does not mean that: whoever pushes first asks for what is not there yet.
    pub(super) async fn to_read(&self, user: &User, named: &Named) -> Result<Repository> {
        let may_read = |repository| self.allows(user, Action::Pull, repository);
        match &named.fallback {
            Some(fallback)
                if (may_read(fallback) || !may_read(&named.repository))
                    && !self.exists(&named.repository).await? =>
            {
                Ok(fallback.clone())
            }
            _ => Ok(named.repository.clone()),
        }
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

    /// The manifest of the tree that `target` leads to in `repository`.
    pub(super) async fn find(
        &self,
        repository: &Repository,
        target: &Target,
    ) -> Result<Option<Arc<Entry>>> {
        self.tree.find(repository, target).await.map_err(|e| Problem::local(&e))
    }

    /// The manifest that `target` leads to in `repository`.
    pub(super) async fn manifest(
        &self,
        repository: &Repository,
        target: &Target,
    ) -> Result<FoundManifest> {
        let found = self.find(repository, target).await?;
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
                let mut found: FoundManifest = match self.find(repository, &digest).await? {
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

    /// The bytes of the blob `digest` of `repository`. Whether it can be had is another question.
    pub(super) async fn blob_bytes(&self, repository: &Repository, digest: Digest) -> Result<u64> {
        let mut size = self.known_blob(repository, &digest).await?;
        if size.is_none()
            && let Some(through) = self.through(repository)
        {
            size = Some(through.blob_size(repository, digest).await?);
        }
        // A length of 0 would be a whole answer of which nothing is looked at.
        let size = size.filter(|size| digest.may_have(*size));
        size.ok_or_else(|| Problem::blob_unknown(digest))
    }

    /// The blob `digest` of `repository`, of `size` bytes, of which the parts `wanted` are to be sent; without any it is only
    /// looked at.
    pub(super) async fn blob(
        &self,
        repository: &Repository,
        digest: Digest,
        size: u64,
        wanted: &[Range<u64>],
    ) -> Result<FoundBlob> {
        let opened = self.tree.open_blob(&digest, size, wanted).await;
        if let Some(place) = opened.map_err(|e| Problem::local(&e))? {
            return Ok(FoundBlob::Tree(place));
        }
        match self.through(repository) {
            Some(through) => {
                let blob = through.blob(repository, &Descriptor::new("", digest, size));
                blob.map(FoundBlob::Cache)
            }
            None => Err(Problem::blob_unknown(digest)),
        }
    }

    /// The size of a blob that belongs to `repository`, as far as that is known here.
    pub(super) async fn known_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>> {
        let size = self.tree.blob_size(repository, digest).await;
        if let Some(size) = size.map_err(|e| Problem::local(&e))? {
            return Ok(Some(size));
        }
        let through = self.through(repository);
        Ok(through.and_then(|through| through.known_blob(repository, digest)))
    }

    // --- writing ---

    /// Keeps `prune` away as long as what it returns lives.
    pub(super) async fn hold(&self) -> Result<Option<Filling>> {
        self.tree.hold().await.map_err(|e| Problem::local(&e))
    }

    /// Goes on with an upload.
    pub(super) async fn resume_upload(
        &self,
        repository: &Repository,
        name: &str,
    ) -> Result<Box<dyn Upload>> {
        match self.tree.resume_upload(repository, name).await {
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

    /// Removes uploads to which nothing has come for long.
    pub(super) async fn sweep(&self) {
        match self.tree.sweep().await {
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
