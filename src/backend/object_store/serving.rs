//! What a server needs of a bucket besides [`Names`](crate::backend::Names) and [`Sink`](crate::backend::Sink): what is in
//! a repository, object by object, so that what has been read once need not be read again; and what is promised to
//! those who push.
//!
//! ```text
//! blobs/.imgfs/serve/
//!   adopted/<SHA-256 of the repository's name>/<digest>   a blob was brought into the repository, which need not name
//!                                                         it yet: its size and the repository's name. When it was
//!                                                         written says for how long that holds
//!   lacking/<the same>/<digest>                           a manifest of the repository names the blob, which was never
//!                                                         brought into it
//!   uploads/<the same>-<name>                             blobs on their way ([`super::uploads`])
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{
    GetOptions, ObjectMeta, ObjectStoreExt, PutPayload, path::Path, signer::Method,
};
use serde_json::{Value, json};

use super::{Inner, ObjectTree, uploads::UPLOADS};
use crate::{
    backend::{Error, Kind, Result},
    image::{
        Algorithm, Digest, MAX_MANIFEST_BYTES, Manifest, Repository, is_referrers_tag, is_tag,
        referrers_tag,
    },
    util::locked,
};

const SERVE: &str = "blobs/.imgfs/serve";

/// The largest note, in bytes.
const MAX_NOTE: u64 = 8192;

/// An object with a manifest, and what it looked like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestObject {
    key: Path,
    size: u64,
    e_tag: Option<String>,
    /// The algorithm of the digest that names it.
    algorithm: Algorithm,
}

impl ManifestObject {
    /// Its key.
    pub fn key(&self) -> &str {
        self.key.as_ref()
    }
}

/// What is in a repository.
#[derive(Clone, Debug, Default)]
pub struct RepositoryObjects {
    /// The object of each tag.
    pub tags: BTreeMap<String, ManifestObject>,
    /// The object of each manifest that is named by its digest.
    pub digests: BTreeMap<Digest, ManifestObject>,
}

/// What is under the name of a manifest.
pub enum FoundManifest {
    /// What was there before.
    Same,
    /// This one.
    Read(ManifestObject, Box<Manifest>),
    /// Nothing, or no manifest.
    Nothing,
}

impl ObjectTree {
    /// Fails unless the bucket can be read.
    pub async fn check_readable(&self) -> Result<()> {
        let key = self.inner.key("blobs/.imgfs/probe");
        match self.inner.store.head(&key).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.inner.error("looking at the bucket", &e)),
        }
    }

    /// Fails unless the bucket can be written to by several at once. That is found out once.
    pub async fn check_writable(&self) -> Result<()> {
        self.inner.check_conditions().await
    }

    // --- names ---

    /// The objects of `repository`. Nothing is read of them.
    pub async fn repository_objects(&self, repository: &Repository) -> Result<RepositoryObjects> {
        let inner = &self.inner;
        let dir = inner.key(&format!("{repository}/manifests"));
        let depth = dir.parts().count() + 1;
        let mut found = RepositoryObjects::default();
        let mut objects = inner.store.list(Some(&dir));
        let failed = |e| inner.error(format_args!("listing {repository}"), &e);
        while let Some(object) = objects.try_next().await.map_err(failed)? {
            // Deeper keys belong to repositories that have `manifests` in their names.
            if object.location.parts().count() != depth {
                continue;
            }
            let name = object.location.filename().unwrap_or_default().to_owned();
            if let Ok(digest) = name.parse::<Digest>() {
                found.digests.insert(digest, manifest_object(object, digest.algorithm()));
            } else if is_tag(&name) {
                found.tags.insert(name, manifest_object(object, Algorithm::Sha256));
            }
        }
        Ok(found)
    }

    /// The repositories that have manifests.
    pub async fn repositories(&self) -> Result<BTreeSet<Repository>> {
        let (names, _) = self.names().await?;
        Ok(names.into_iter().map(|name| name.repository().clone()).collect())
    }

    /// Reads the manifest that `repository` has under `name`, a tag or a digest, unless it is what was there `before`.
    pub async fn find_manifest(
        &self,
        repository: &Repository,
        name: &str,
        before: Option<&ManifestObject>,
    ) -> Result<FoundManifest> {
        let inner = &self.inner;
        let digest = name.parse::<Digest>().ok();
        let key = inner.manifest_key(repository, name);
        let doing = || format!("fetching manifest {repository}:{name}");
        let e_tag = before.and_then(|before| before.e_tag.clone());
        let options = GetOptions { if_none_match: e_tag, ..GetOptions::default() };
        let found = match inner.store.get_opts(&key, options).await {
            Ok(found) => found,
            Err(object_store::Error::NotModified { .. }) => return Ok(FoundManifest::Same),
            Err(object_store::Error::NotFound { .. }) => return Ok(FoundManifest::Nothing),
            Err(e) => return Err(inner.error(doing(), &e)),
        };
        if found.meta.size > MAX_MANIFEST_BYTES as u64 {
            tracing::warn!("{key} has {} bytes, and so is no manifest", found.meta.size);
            return Ok(FoundManifest::Nothing);
        }
        let algorithm = digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let object = manifest_object(found.meta.clone(), algorithm);
        let bytes = found.bytes().await.map_err(|e| inner.error(doing(), &e))?;
        match Manifest::parse_as(algorithm, bytes, None) {
            Ok(manifest) if digest.is_none_or(|digest| manifest.digest() == digest) => {
                Ok(FoundManifest::Read(object, Box::new(manifest)))
            }
            Ok(_) => {
                tracing::warn!("{key} is not what its name says");
                Ok(FoundManifest::Nothing)
            }
            Err(error) => {
                tracing::warn!("{key} is no manifest: {error}");
                Ok(FoundManifest::Nothing)
            }
        }
    }

    /// Reads the manifest in `object`.
    pub async fn read_object(&self, object: &ManifestObject) -> Result<Manifest> {
        let inner = &self.inner;
        let doing = format!("fetching {}", object.key);
        let found = inner.get(&object.key, MAX_MANIFEST_BYTES as u64).await;
        let (bytes, _) = found.map_err(|e| inner.error(&doing, &e))?;
        Manifest::parse_as(object.algorithm, bytes, None)
            .map_err(|e| Error::new(&inner.side, &doing, e))
    }

    /// Makes `tag` lead to `manifest`, if `holds` of the digest that it leads to by then; otherwise that is returned.
    pub async fn tag_if(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        tag: &str,
        holds: impl Fn(Option<&Digest>) -> bool + Send + Sync,
    ) -> Result<std::result::Result<(), Option<Digest>>> {
        // What is written is given up with an error, as if others wrote all the time; why is noted here.
        let refused = Mutex::new(None);
        let check = |text: Option<&[u8]>| {
            let there = text.map(Digest::sha256);
            if holds(there.as_ref()) {
                return Ok(());
            }
            *locked(&refused) = Some(there);
            let reason = "it leads to something else by now".to_owned();
            Err(Error::new(&self.inner.side, format_args!("writing {tag}"), Kind::InUse(reason)))
        };
        let put = self.inner.put_tag(repository, manifest, tag, check).await;
        let refused = locked(&refused).take();
        match (put, refused) {
            (Err(_), Some(there)) => Ok(Err(there)),
            (put, _) => put.map(Ok),
        }
    }

    /// Removes a tag of `repository`, or a manifest by its digest.
    pub async fn remove_name(&self, repository: &Repository, name: &str) -> Result<()> {
        self.inner.remove(&self.inner.manifest_key(repository, name)).await
    }

    /// Takes `manifest` out of the list of what refers to its subject.
    pub async fn remove_referrer(
        &self,
        repository: &Repository,
        subject: &Digest,
        manifest: &Digest,
    ) -> Result<()> {
        let key = self.inner.manifest_key(repository, &referrers_tag(subject));
        let digest = manifest.to_string();
        let change = |text: Option<&[u8]>| {
            let list = text.and_then(|text| serde_json::from_slice::<Value>(text).ok());
            let Some(mut list) = list else { return Ok(None) };
            let Some(entries) = list["manifests"].as_array_mut() else { return Ok(None) };
            let before = entries.len();
            entries.retain(|entry| entry["digest"].as_str() != Some(&digest));
            let is_changed = entries.len() < before;
            Ok(is_changed.then(|| Bytes::from(list.to_string().into_bytes())))
        };
        self.inner.update(&key, change).await
    }

    /// Whether `repository` has a manifest, and not only lists of what refers to some that have gone.
    pub async fn has_manifests(&self, repository: &Repository) -> Result<bool> {
        let objects = self.repository_objects(repository).await?;
        let is_own = |tag: &String| !is_referrers_tag(tag);
        Ok(!objects.digests.is_empty() || objects.tags.keys().any(is_own))
    }

    // --- blobs ---

    /// The bytes of the blob `digest`; `None` if it is not there.
    pub async fn blob_bytes(&self, digest: &Digest) -> Result<Option<u64>> {
        match self.inner.store.head(&self.inner.blob_key(digest)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.inner.error(format_args!("looking for blob {digest}"), &e)),
        }
    }

    /// Where anybody can get the blob `digest` for `lifetime`. [`Kind::Config`] if the store cannot give such a URL with
    /// these credentials.
    pub async fn blob_url(&self, digest: &Digest, lifetime: Duration) -> Result<String> {
        let inner = &self.inner;
        let doing = format!("making a URL of blob {digest}");
        let refused = |reason: String| Error::new(&inner.side, &doing, Kind::Config(reason));
        let signer = inner.signer.as_ref();
        let signer = signer.ok_or_else(|| refused("the store has no such URLs".to_owned()))?;
        let url = signer.signed_url(Method::GET, &inner.blob_key(digest), lifetime).await;
        url.map(String::from).map_err(|e| refused(super::error::text(&e)))
    }

    // --- notes ---

    /// Notes that `blob`, of `size` bytes, belongs to `repository`, though no manifest there names it yet.
    pub async fn adopt(&self, repository: &Repository, blob: &Digest, size: u64) -> Result<()> {
        let note = json!({ "size": size, "repository": repository.to_string() });
        self.inner.write(&self.inner.adopted_key(repository, blob), note.to_string()).await?;
        self.inner.remove(&self.inner.lacking_key(repository, blob)).await
    }

    /// The size of `blob`, and for how much longer that belongs to `repository` without being named there; `None` if it
    /// does not. It does for `lifetime` after it was brought.
    pub async fn adopted(
        &self,
        repository: &Repository,
        blob: &Digest,
        lifetime: Duration,
    ) -> Result<Option<(u64, Duration)>> {
        let key = self.inner.adopted_key(repository, blob);
        let failed = |e| self.inner.error(format_args!("looking for blob {blob}"), &e);
        let found = match self.inner.store.get(&key).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let left = lifetime.checked_sub(age(&found.meta));
        let Some(left) = left.filter(|_| found.meta.size <= MAX_NOTE) else { return Ok(None) };
        let note = found.bytes().await.map_err(failed)?;
        let note = serde_json::from_slice::<Value>(&note).unwrap_or_default();
        Ok(note["size"].as_u64().map(|size| (size, left)))
    }

    /// Whether anything has been brought into `repository`.
    pub async fn has_adopted(&self, repository: &Repository) -> Result<bool> {
        let dir = self.inner.key(&format!("{SERVE}/adopted/{}", repository.hashed_name()));
        let first = self.inner.store.list(Some(&dir)).try_next().await;
        let first = first.map_err(|e| self.inner.error(format_args!("listing {repository}"), &e));
        Ok(first?.is_some())
    }

    /// Takes back what [`ObjectTree::adopt`] noted.
    pub async fn release(&self, repository: &Repository, blob: &Digest) -> Result<()> {
        self.inner.remove(&self.inner.adopted_key(repository, blob)).await
    }

    /// Notes that `repository` has not got `blob`, though a manifest there is going to name it: it is taken without it, and
    /// must not give out what others have brought. It holds until somebody brings the blob into the repository.
    pub async fn note_lacking(
        &self,
        repository: &Repository,
        blob: &Digest,
        lifetime: Duration,
    ) -> Result<()> {
        let key = self.inner.lacking_key(repository, blob);
        self.inner.write(&key, repository.to_string()).await?;
        // Somebody may have brought it just now, before there was a note to take away.
        match self.adopted(repository, blob, lifetime).await? {
            Some(_) => self.inner.remove(&key).await,
            None => Ok(()),
        }
    }

    /// The blobs that `repository` has not got, whatever manifests there name.
    pub async fn lacking(&self, repository: &Repository) -> Result<HashSet<Digest>> {
        let dir = self.inner.key(&format!("{SERVE}/lacking/{}", repository.hashed_name()));
        let objects = self.inner.store.list(Some(&dir));
        let digests = objects.map_ok(|object| {
            object.location.filename().and_then(|name| name.parse::<Digest>().ok())
        });
        let digests: Vec<Option<Digest>> = digests
            .try_collect()
            .await
            .map_err(|e| self.inner.error(format_args!("listing {repository}"), &e))?;
        Ok(digests.into_iter().flatten().collect())
    }

    /// Removes what has been left by uploads that ended in the middle, and notes that do not hold any more, when they are
    /// older than `lifetime`. Returns how many uploads those were.
    pub async fn remove_leftovers(&self, lifetime: Duration) -> Result<usize> {
        let mut count = 0;
        for dir in [UPLOADS, "adopted"] {
            let dir_key = self.inner.key(&format!("{SERVE}/{dir}"));
            let mut objects = self.inner.store.list(Some(&dir_key));
            let failed = |e| self.inner.error("looking for abandoned uploads", &e);
            while let Some(object) = objects.try_next().await.map_err(failed)? {
                if age(&object) > lifetime {
                    self.inner.remove(&object.location).await?;
                    count += usize::from(dir == UPLOADS);
                }
            }
        }
        Ok(count)
    }
}

impl Inner {
    fn adopted_key(&self, repository: &Repository, blob: &Digest) -> Path {
        self.key(&format!("{SERVE}/adopted/{}/{blob}", repository.hashed_name()))
    }

    fn lacking_key(&self, repository: &Repository, blob: &Digest) -> Path {
        self.key(&format!("{SERVE}/lacking/{}/{blob}", repository.hashed_name()))
    }

    pub(super) fn upload_key(&self, repository: &Repository, name: &str) -> Path {
        self.key(&format!("{SERVE}/{UPLOADS}/{}-{name}", repository.hashed_name()))
    }

    async fn write(&self, key: &Path, text: String) -> Result<()> {
        let put = self.store.put(key, PutPayload::from(text.into_bytes())).await;
        put.map(drop).map_err(|e| self.error(format_args!("writing {key}"), &e))
    }

    /// Removes an object, if it is there.
    pub(super) async fn remove(&self, key: &Path) -> Result<()> {
        match self.store.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error(format_args!("removing {key}"), &e)),
        }
    }
}

fn manifest_object(meta: ObjectMeta, algorithm: Algorithm) -> ManifestObject {
    ManifestObject { key: meta.location, size: meta.size, e_tag: meta.e_tag, algorithm }
}

/// How long ago an object was written, as the store and this machine know the time.
fn age(meta: &ObjectMeta) -> Duration {
    let modified = SystemTime::from(meta.last_modified);
    SystemTime::now().duration_since(modified).unwrap_or_default()
}
