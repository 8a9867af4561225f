//! Media into which images are written in one pass, one object after another: archives, and what takes an
//! archive.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Capabilities, Content, Error, Kind, ManifestName, Names, Opened, Received, Result, Sink,
};
use crate::image::{Descriptor, Digest, Manifest, Reference, Repository};

/// A medium that is written in one pass. What it is given comes in the order of digests.
#[async_trait]
pub trait Packer: Send {
    /// Whether it keeps manifests and indexes as they are. Otherwise an image in it is a configuration and layers,
    /// for one platform.
    fn keeps_manifests(&self) -> bool;

    /// Whether it has a place for signatures and what else is attached to images.
    fn keeps_attachments(&self) -> bool;

    /// Takes a blob. After an error nothing of it is there; if the medium cannot take back what it has been given,
    /// everything that follows fails, too.
    async fn blob(&mut self, blob: &Descriptor, content: &Arc<dyn Content>) -> Result<Received>;

    /// Takes a manifest.
    async fn manifest(&mut self, manifest: &Manifest) -> Result<()>;

    /// Writes which images there are, and ends it. Without this nothing has been written, as far as the medium can
    /// take it back.
    async fn finish(&mut self, images: &[PackedImage]) -> Result<()>;

    /// Takes back what has been written, as far as that can be done.
    async fn abandon(&mut self);
}

/// An image of which all has been packed.
#[derive(Clone, Debug)]
pub struct PackedImage {
    /// Its name, with a tag or a digest; `None` if it belongs to another one, which it names.
    pub name: Option<Reference>,
    /// Its manifest or index.
    pub manifest: Manifest,
    /// The manifest of the image for the one platform that media know which have no indexes.
    pub single: Option<Manifest>,
}

/// A medium of which it is only known that nothing is there yet: what planning asks before a [`Packer`] writes.
pub struct Unwritten {
    side: String,
}

impl Unwritten {
    /// One that errors call `side`.
    pub fn new(side: impl Into<String>) -> Self {
        Self { side: side.into() }
    }

    fn refuse<T>(&self, doing: &str) -> Result<T> {
        Err(Error::new(&self.side, doing, Kind::NotFound(String::new())))
    }
}

#[async_trait]
impl Names for Unwritten {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DIRECTORY
    }

    fn side(&self, _: &Repository) -> String {
        self.side.clone()
    }

    async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        self.refuse(&format!("looking up {reference}"))
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        self.refuse(&format!("looking up {reference}"))
    }
}

#[async_trait]
impl Sink for Unwritten {
    async fn has(&self, _: &Repository, _: &Descriptor) -> Result<bool> {
        Ok(false)
    }

    async fn content(&self, _: &Repository, _: &Descriptor) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn prepare(&self, _: &Repository) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _: &Repository, blob: &Descriptor, _: &[Repository]) -> Result<Opened> {
        self.refuse(&format!("storing blob {}", blob.digest))
    }

    async fn resolves_to(&self, _: &Repository, _: &ManifestName, _: Digest) -> bool {
        false
    }

    async fn put(&self, _: &Repository, manifest: &Manifest, _: &ManifestName) -> Result<()> {
        self.refuse(&format!("storing {}", manifest.digest()))
    }
}
