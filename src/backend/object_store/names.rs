//! Names: manifests by digest and by tag, and what is attached to them.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use serde_json::{Value, json};

use super::{Inner, MAX_CONFLICTS, ObjectTree, Version, Writers};
use crate::{
    backend::{
        Attachments, Capabilities, Error, Kind, ManifestName, Names, Opened, Result, Sink, Tags,
    },
    image::{
        Algorithm, Descriptor, Digest, MAX_MANIFEST_BYTES, Manifest, MediaType, Reference,
        Repository, is_referrers_tag, is_tag, referrers_tag,
    },
    util::locked,
};

/// More tags of a repository than this are not listed.
const MAX_TAGS: usize = 100_000;

#[async_trait]
impl Names for ObjectTree {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            has_round_trips: true,
            has_blobs_per_repository: false,
            // Manifests are written after all that they name, and nothing says which are sparse on purpose.
            requires_whole_images: true,
            can_mount_blobs: false,
        }
    }

    fn side(&self, _: &Repository) -> String {
        self.inner.side.clone()
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        let inner = &self.inner;
        let doing = format!("fetching manifest {reference}");
        let key = inner.name_key(reference);
        let found = inner.get(&key, MAX_MANIFEST_BYTES as u64).await;
        let (bytes, _) = found.map_err(|e| inner.error(&doing, &e))?;
        let algorithm = reference.digest().map_or(Algorithm::Sha256, |d| d.algorithm());
        let manifest = Manifest::parse_as(algorithm, bytes, None)
            .map_err(|e| Error::new(&inner.side, &doing, e))?;
        if let Some(expected) = reference.digest().filter(|d| *d != manifest.digest()) {
            let kind = Kind::Digest { expected, found: manifest.digest() };
            return Err(Error::new(&inner.side, &doing, kind));
        }
        inner.note_seen(key, manifest.digest());
        Ok(manifest)
    }
}

#[async_trait]
impl Attachments for ObjectTree {
    /// They are under the fallback tag, which is kept by whoever writes.
    async fn referrers(&self, _: &Repository, _: Digest) -> Result<Option<Vec<Descriptor>>> {
        Ok(None)
    }

    async fn tags(&self, repository: &Repository) -> Result<Tags> {
        let inner = &self.inner;
        let dir = inner.key(&format!("{repository}/manifests"));
        let mut names = Vec::new();
        let mut objects = inner.store.list(Some(&dir));
        let failed = |e| inner.error(format_args!("listing tags of {repository}"), &e);
        while let Some(object) = objects.try_next().await.map_err(failed)? {
            let name = object.location.filename().unwrap_or_default();
            // Deeper keys belong to repositories that have `manifests` in their names.
            let is_here = object.location.parts().count() == dir.parts().count() + 1;
            if is_here && is_tag(name) {
                names.push(name.to_owned());
            }
            if names.len() >= MAX_TAGS {
                return Ok(Tags { names, complete: false });
            }
        }
        Ok(Tags { names, complete: true })
    }
}

/// A list of referrers with what another one has besides; `None` if that is nothing.
fn joined(there: &[u8], more: &[u8]) -> Option<Bytes> {
    if there == more {
        return None;
    }
    let parsed = serde_json::from_slice::<Value>(there).ok().zip(serde_json::from_slice(more).ok());
    let (mut list, more): (Value, Value) = match parsed {
        Some(parsed) => parsed,
        None => return Some(Bytes::copy_from_slice(more)),
    };
    let Some(Value::Array(entries)) = list.get_mut("manifests") else {
        return Some(more.to_string().into_bytes().into());
    };
    let before = entries.len();
    for entry in more["manifests"].as_array().into_iter().flatten() {
        if !entries.iter().any(|own| own["digest"] == entry["digest"]) {
            entries.push(entry.clone());
        }
    }
    (entries.len() > before).then(|| list.to_string().into_bytes().into())
}

impl Inner {
    /// Writes `bytes` to `key` if it still is as in `version`, or is not there if that is `None`. Whether it was so.
    async fn put_if(&self, key: &Path, bytes: Bytes, version: Option<Version>) -> Result<bool> {
        let mode = match (self.writers, version) {
            (Writers::One, _) => PutMode::Overwrite,
            (Writers::Many, Some(version)) => PutMode::Update(version),
            (Writers::Many, None) => PutMode::Create,
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.store.put_opts(key, PutPayload::from_bytes(bytes), options).await {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. }
                | object_store::Error::NotFound { .. },
            ) => Ok(false),
            Err(e) => Err(self.error(format_args!("writing {key}"), &e)),
        }
    }

    /// Changes what `key` holds by `change`, which says what it is to be, or `None` if it is that already. What
    /// others write in between is not lost.
    pub(super) async fn update(
        &self,
        key: &Path,
        change: impl Fn(Option<&[u8]>) -> Result<Option<Bytes>>,
    ) -> Result<()> {
        self.check_conditions().await?;
        for _ in 0..MAX_CONFLICTS {
            let found = match self.get(key, MAX_MANIFEST_BYTES as u64).await {
                Ok(found) => Some(found),
                Err(object_store::Error::NotFound { .. }) => None,
                Err(e) => return Err(self.error(format_args!("reading {key}"), &e)),
            };
            let (text, version) = found.unzip();
            let Some(bytes) = change(text.as_deref())? else { return Ok(()) };
            if self.put_if(key, bytes, version).await? {
                return Ok(());
            }
        }
        let reason = format!("others have changed it {MAX_CONFLICTS} times at the same moment");
        Err(Error::new(&self.side, format_args!("writing {key}"), Kind::InUse(reason)))
    }

    /// Adds `manifest` to the list of referrers of its subject, as the distribution specification has it for
    /// registries without the referrers API.
    async fn add_referrer(&self, repository: &Repository, manifest: &Manifest) -> Result<()> {
        let Some(subject) = manifest.subject() else { return Ok(()) };
        let key = self.manifest_key(repository, &referrers_tag(&subject.digest));
        let digest = manifest.digest().to_string();
        let document: Value = serde_json::from_slice(manifest.bytes()).unwrap_or_default();
        let mut entry = json!({
            "mediaType": manifest.media_type(), "digest": digest, "size": manifest.bytes().len(),
        });
        let kind = document.get("artifactType").or_else(|| document.pointer("/config/mediaType"));
        if let Some(kind) = kind {
            entry["artifactType"] = kind.clone();
        }
        if let Some(annotations) = document.get("annotations").filter(|a| a.is_object()) {
            entry["annotations"] = annotations.clone();
        }
        self.update(&key, |text| {
            let empty = || {
                json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": []})
            };
            let mut index = text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_else(empty);
            if !index["manifests"].is_array() {
                index["manifests"] = json!([]);
            }
            let Value::Array(entries) = &mut index["manifests"] else { return Ok(None) };
            if entries.iter().any(|one| one["digest"].as_str() == Some(&digest)) {
                return Ok(None);
            }
            entries.push(entry.clone());
            Ok(Some(index.to_string().into_bytes().into()))
        })
        .await
    }

    /// Makes `tag` lead to `manifest`, if `check` has nothing against what it holds by then.
    pub(super) async fn put_tag(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        tag: &str,
        check: impl Fn(Option<&[u8]>) -> Result<()>,
    ) -> Result<()> {
        let key = self.manifest_key(repository, tag);
        let bytes = manifest.bytes();
        let change = |text: Option<&[u8]>| {
            check(text)?;
            match text.filter(|_| is_referrers_tag(tag)) {
                // Others may have added something that this one does not have.
                Some(there) => Ok(joined(there, bytes)),
                None => Ok((text != Some(&bytes[..])).then(|| bytes.clone())),
            }
        };
        self.update(&key, change).await?;
        if !is_referrers_tag(tag) {
            self.note_seen(key, manifest.digest());
        }
        Ok(())
    }

    async fn put_by_digest(&self, repository: &Repository, manifest: &Manifest) -> Result<()> {
        let digest = manifest.digest();
        let key = self.manifest_key(repository, &digest.to_string());
        if self.has_seen(&key, &digest) {
            return Ok(());
        }
        // Whoever writes it writes the same.
        let payload = PutPayload::from_bytes(manifest.bytes().clone());
        self.store
            .put(&key, payload)
            .await
            .map_err(|e| self.error(format_args!("writing {key}"), &e))?;
        self.note_seen(key, digest);
        Ok(())
    }
}

#[async_trait]
impl Sink for ObjectTree {
    async fn has(&self, _: &Repository, blob: &Descriptor) -> Result<bool> {
        self.has_blob(blob).await
    }

    async fn content(&self, _: &Repository, _: &Descriptor) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn prepare(&self, _: &Repository) -> Result<()> {
        self.inner.check_conditions().await
    }

    async fn open(&self, _: &Repository, blob: &Descriptor, _: &[Repository]) -> Result<Opened> {
        self.open_blob(blob).await
    }

    async fn resolves_to(
        &self,
        repository: &Repository,
        name: &ManifestName,
        digest: Digest,
    ) -> bool {
        let key = match name {
            ManifestName::Tag(tag) => self.inner.manifest_key(repository, tag),
            ManifestName::Digest | ManifestName::Pinned => {
                self.inner.manifest_key(repository, &digest.to_string())
            }
        };
        self.inner.has_seen(&key, &digest)
    }

    async fn put(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> Result<()> {
        let inner = &self.inner;
        inner.put_by_digest(repository, manifest).await?;
        if let ManifestName::Tag(tag) = name {
            inner.put_tag(repository, manifest, tag, |_| Ok(())).await?;
        }
        inner.add_referrer(repository, manifest).await
    }

    async fn forget_known(&self, _: &Repository) {
        if let Some(seen) = &self.inner.seen {
            locked(seen).clear();
        }
    }

    async fn give_up(&self, blob: Digest, is_given_up: bool) {
        let (store, key) = (&self.inner.store, self.inner.given_up_key(&blob));
        // It is only a hint.
        let _ = match is_given_up {
            true => store.put(&key, PutPayload::from_static(b"imgfs\n")).await.map(drop),
            false => store.delete(&key).await,
        };
    }

    async fn is_given_up(&self, blob: Digest) -> bool {
        self.inner.store.head(&self.inner.given_up_key(&blob)).await.is_ok()
    }
}
