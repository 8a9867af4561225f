//! An images_dir with a manifest that is not in it yet: what is pushed from before it is published.

use std::ops::Range;

use async_trait::async_trait;

use crate::{
    backend::{
        Attachments, Blobs, BoxStream, Capabilities, LocalFile, Names, Result, Tags,
        images_dir::ImagesDir,
    },
    image::{Descriptor, Digest, Manifest, Reference, Repository},
};

/// The images_dir, and the manifest under its name and its digest.
pub(super) struct Staged {
    dir: ImagesDir,
    name: Reference,
    manifest: Manifest,
}

impl Staged {
    pub(super) fn new(dir: ImagesDir, name: Reference, manifest: Manifest) -> Self {
        Self { dir, name, manifest }
    }

    fn staged(&self, reference: &Reference) -> Option<&Manifest> {
        let is_it = *reference == self.name
            || reference.repository() == self.name.repository()
                && reference.digest() == Some(self.manifest.digest());
        is_it.then_some(&self.manifest)
    }
}

#[async_trait]
impl Names for Staged {
    fn capabilities(&self) -> Capabilities {
        self.dir.capabilities()
    }

    fn side(&self, repository: &Repository) -> String {
        self.dir.side(repository)
    }

    async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        match self.staged(reference) {
            Some(manifest) => Ok(Some(manifest.digest())),
            None => self.dir.head(reference).await,
        }
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        match self.staged(reference) {
            Some(manifest) => Ok(manifest.clone()),
            None => self.dir.manifest(reference).await,
        }
    }

    fn sparse(&self, digest: &Digest) -> Option<String> {
        self.dir.sparse(digest)
    }
}

#[async_trait]
impl Attachments for Staged {
    async fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Option<Vec<Descriptor>>> {
        self.dir.referrers(repository, subject).await
    }

    async fn tags(&self, repository: &Repository) -> Result<Tags> {
        self.dir.tags(repository).await
    }
}

#[async_trait]
impl Blobs for Staged {
    async fn check(&self, repository: &Repository, blob: &Descriptor) -> Result<()> {
        self.dir.check(repository, blob).await
    }

    async fn file(&self, repository: &Repository, blob: &Descriptor) -> Result<Option<LocalFile>> {
        self.dir.file(repository, blob).await
    }

    async fn read(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        self.dir.read(repository, blob, range).await
    }
}
