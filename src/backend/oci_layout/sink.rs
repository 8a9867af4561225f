//! Writing a layout.

use std::{io, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    INDEX, MARK, MARK_TEXT, failed,
    index::{self, MAX_INDEX, NewEntry},
    side,
};
use crate::{
    backend::{
        Capabilities, ConfinedDir, Error, Kind, ManifestName, Names, Opened, Result, Sink,
        images_dir::{ImagesDir, Linking},
    },
    image::{Descriptor, Digest, MAX_MANIFEST_BYTES, Manifest, Reference, Repository},
};

/// A layout that is being filled.
pub struct OciLayout {
    inner: Arc<Inner>,
}

struct Inner {
    blobs: ImagesDir,
    /// What its one new image is called in `org.opencontainers.image.ref.name`.
    label: Option<String>,
}

impl OciLayout {
    /// Opens the layout at `root` to be filled, and makes one of it if nothing is there. `label` is what an image
    /// is called in `org.opencontainers.image.ref.name`, if that is not to be its full name.
    ///
    /// [`Kind::Config`] if something else is there.
    pub fn create(root: &Path, label: Option<&str>, linking: Linking) -> Result<Self> {
        let io = |e| failed(root, "creating it", e);
        let dir = ConfinedDir::create(root).map_err(io)?;
        let is_there = |name: &str| dir.stat(&root.join(name)).is_ok();
        if !is_there(MARK) && !is_there(INDEX) {
            let entries = dir.open_dir(root).and_then(|dir| dir.entries()).map_err(io)?;
            // Another process may just be making one of it.
            let is_new = entries
                .iter()
                .all(|entry| ["blobs", MARK, INDEX].iter().any(|own| entry.name == *own));
            if !is_new || is_there("blobs/.imgfs/layout") {
                let reason = "it is not empty and no OCI image layout; give another directory";
                return Err(Error::new(side(root), "creating it", Kind::Config(reason.to_owned())));
            }
        }
        let blobs = ImagesDir::create_layout(dir, linking)?;
        if !is_there_file(&blobs, MARK) {
            blobs.publish_file(&root.join(MARK), MARK_TEXT).map_err(io)?;
        }
        Ok(Self { inner: Arc::new(Inner { blobs, label: label.map(str::to_owned) }) })
    }

    /// The layout at `root` as it is, or nothing, to find out what would have to be written.
    pub fn look(root: &Path, label: Option<&str>) -> Result<Self> {
        let dir = match root.exists() {
            true => ConfinedDir::open(root).map_err(|e| failed(root, "opening it", e))?,
            false => ConfinedDir::absent(root),
        };
        let blobs = ImagesDir::of_layout(dir)?;
        Ok(Self { inner: Arc::new(Inner { blobs, label: label.map(str::to_owned) }) })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        self.inner.blobs.root()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(panic) => Err(failed(self.root(), "working", io::Error::other(panic))),
        }
    }
}

fn is_there_file(blobs: &ImagesDir, name: &str) -> bool {
    blobs.dir().is_file(&blobs.root().join(name))
}

impl Inner {
    fn root(&self) -> &Path {
        self.blobs.root()
    }

    fn error(&self, doing: impl std::fmt::Display, kind: impl Into<Kind>) -> Error {
        Error::new(side(self.root()), doing, kind)
    }

    /// The text of `index.json`; empty if there is none.
    fn index(&self) -> Result<Vec<u8>> {
        match self.blobs.dir().read(&self.root().join(INDEX), MAX_INDEX + 1) {
            Ok(text) => Ok(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(self.error("reading index.json", e)),
        }
    }

    /// The manifest `digest`, if it is there and whole.
    fn manifest(&self, digest: Digest) -> Result<Manifest> {
        let doing = format!("reading {digest}");
        let path = self.blobs.path_of(&digest);
        let text = self.blobs.dir().read(&path, MAX_MANIFEST_BYTES as u64 + 1);
        let text = text.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => self.error(&doing, Kind::NotFound(String::new())),
            _ => self.error(&doing, e),
        })?;
        let found = Digest::of(digest.algorithm(), &text);
        if found != digest {
            return Err(self.error(&doing, Kind::Digest { expected: digest, found }));
        }
        Manifest::parse_as(digest.algorithm(), text.into(), None).map_err(|e| self.error(&doing, e))
    }

    fn find(&self, name: &Reference) -> Result<Digest> {
        let found = index::find(&self.index()?, name, self.label.as_deref());
        let missing =
            || self.error(format_args!("looking up {name}"), Kind::NotFound(String::new()));
        found.ok_or_else(missing)
    }

    fn put(&self, repository: &Repository, manifest: &Manifest, name: &ManifestName) -> Result<()> {
        let digest = manifest.digest();
        let doing = format!("storing {digest}");
        let failed = |e| self.error(&doing, e);
        // What blobs are there must survive a power cut before anything names them.
        self.blobs.prepare_blob(&digest)?;
        if self.manifest(digest).is_err() {
            self.blobs
                .publish_file(&self.blobs.path_of(&digest), manifest.bytes())
                .map_err(failed)?;
        }
        let name = match name {
            ManifestName::Tag(tag) => Some(repository.tagged(tag)),
            ManifestName::Pinned => Some(repository.pinned(digest)),
            // A referrer is found by looking through the list.
            ManifestName::Digest if manifest.subject().is_some() => None,
            ManifestName::Digest => return Ok(()),
        };
        let _lock = self.blobs.lock_file("index").map_err(failed)?;
        let new = NewEntry { manifest, name: name.as_ref(), label: self.label.as_deref() };
        let merged = index::merge(&self.index()?, &new)
            .map_err(|reason| self.error("changing index.json", Kind::Unfit(reason)))?;
        match merged {
            Some(text) => self.blobs.publish_file(&self.root().join(INDEX), &text).map_err(failed),
            None => Ok(()),
        }
    }

    fn resolves_to(&self, repository: &Repository, name: &ManifestName, digest: Digest) -> bool {
        if self.manifest(digest).is_err() {
            return false;
        }
        match name {
            ManifestName::Tag(tag) => self.find(&repository.tagged(tag)).is_ok_and(|d| d == digest),
            ManifestName::Digest => true,
            ManifestName::Pinned => self.index().is_ok_and(|text| {
                index::listed_of(&text)
                    .is_ok_and(|all| all.iter().any(|one| one.manifest.digest == digest))
            }),
        }
    }
}

#[async_trait]
impl Names for OciLayout {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DIRECTORY
    }

    fn side(&self, _: &Repository) -> String {
        side(self.root())
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        let reference = reference.clone();
        self.blocking(move |inner| {
            let digest = match reference.digest() {
                Some(digest) => digest,
                None => inner.find(&reference)?,
            };
            inner.manifest(digest)
        })
        .await
    }
}

#[async_trait]
impl Sink for OciLayout {
    async fn has(&self, repository: &Repository, blob: &Descriptor) -> Result<bool> {
        self.inner.blobs.has(repository, blob).await
    }

    async fn content(&self, repository: &Repository, blob: &Descriptor) -> Result<Option<Bytes>> {
        self.inner.blobs.content(repository, blob).await
    }

    async fn prepare(&self, _: &Repository) -> Result<()> {
        Ok(())
    }

    async fn open(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        origins: &[Repository],
    ) -> Result<Opened> {
        let digest = blob.digest;
        self.blocking(move |inner| inner.blobs.prepare_blob(&digest)).await?;
        self.inner.blobs.open(repository, blob, origins).await
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

    async fn give_up(&self, blob: Digest, is_given_up: bool) {
        self.inner.blobs.give_up(blob, is_given_up).await;
    }

    async fn is_given_up(&self, blob: Digest) -> bool {
        self.inner.blobs.is_given_up(blob).await
    }

    async fn put(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> Result<()> {
        let (repository, manifest, name) = (repository.clone(), manifest.clone(), name.clone());
        self.blocking(move |inner| inner.put(&repository, &manifest, &name)).await
    }
}
