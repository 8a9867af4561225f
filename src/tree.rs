//! Image trees: namespaces of references over content-addressed blobs, one module per medium.
//!
//! A registry is such a tree ([`registry`]), and so is a KubeKey `images_dir` ([`images_dir`]).
//! The traits here are what [`crate::transfer`] needs of either side; what a medium can do beyond
//! them is its own affair.

mod error;
pub mod images_dir;
pub mod registry;

use std::future::Future;

use bytes::Bytes;

pub use error::{Error, Kind, Result};

use crate::image::{Descriptor, Digest, Hasher, Manifest, Reference, Repository};

/// Where names are looked up. What a reference points at is a manifest: bytes, type and digest.
pub trait Names: Send + Sync + 'static {
    /// The digest that `reference` points at now, without fetching the manifest. `None` if the
    /// medium does not tell digests, in which case [`Names::manifest`] finds it out.
    fn head(&self, reference: &Reference) -> impl Future<Output = Result<Option<Digest>>> + Send;

    /// The manifest that `reference` points at. Its digest has been checked against the
    /// reference, if that has one. A name that is not there is [`Kind::NotFound`].
    fn manifest(&self, reference: &Reference) -> impl Future<Output = Result<Manifest>> + Send;
}

/// What can list the signatures, attestations and other things that are attached to manifests.
pub trait Attachments: Send + Sync + 'static {
    /// Manifests that name `subject` in their `subject` field (OCI 1.1). `None` if the medium
    /// cannot tell; then the fallback tag of [`Attachments::tags`] may.
    fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> impl Future<Output = Result<Option<Vec<Descriptor>>>> + Send;

    /// The tags of `repository`, as far as one request gets them.
    fn tags(&self, repository: &Repository) -> impl Future<Output = Result<Tags>> + Send;
}

/// Tags of a repository.
#[derive(Clone, Debug, Default)]
pub struct Tags {
    /// The names, in no particular order.
    pub names: Vec<String>,
    /// Whether these are all.
    pub complete: bool,
}

/// Where content is read.
pub trait Blobs: Send + Sync + 'static {
    /// What [`Blobs::read`] returns.
    type Stream: ByteStream;

    /// Reads `blob` from byte `offset` to its end. The bytes are not yet verified.
    fn read(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        offset: u64,
    ) -> impl Future<Output = Result<Self::Stream>> + Send;
}

/// Content that arrives piece by piece.
pub trait ByteStream: Send + 'static {
    /// The next piece, or `None` once all bytes that were asked for have come. Interruptions are
    /// mended inside; an error is final.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>>> + Send;
}

/// Where content is written. The order is the caller's duty: blobs, then the manifests that name
/// them (children before indexes), then tags; so nothing is ever named before it is whole.
pub trait Sink: Names {
    /// What receives one blob.
    type Receiver: Receiver;

    /// Whether `blob` is there and verified, as far as that is known without reading it.
    fn has(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// The content of a small blob, if it is there, verified, and cheaper to read here than at
    /// its source.
    fn content(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> impl Future<Output = Result<Option<Bytes>>> + Send;

    /// Prepares to receive `blob`, which will be used from `repository`.
    fn open(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> impl Future<Output = Result<Opened<Self::Receiver>>> + Send;

    /// Whether `name` leads to the manifest `digest` in just the place where [`Sink::put`] would
    /// store it.
    fn leads_to(
        &self,
        repository: &Repository,
        name: &ManifestName,
        digest: Digest,
    ) -> impl Future<Output = bool> + Send;

    /// Stores a manifest by its digest, under a tag, or both.
    fn put(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Notes that of the index `index` only the children for `platforms` are wanted (`all` for
    /// all), so that the others do not count as missing.
    fn keep_sparse(
        &self,
        index: Digest,
        platforms: &str,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// How a manifest is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestName {
    /// By its digest: children of an index, referrers.
    Digest,
    /// By its digest, because somebody asked for just this one.
    Pinned,
    /// By this tag.
    Tag(String),
}

/// What [`Sink::open`] found.
pub enum Opened<R> {
    /// The blob is there, of the right size and verified.
    Present,
    /// Another process is receiving it at this moment.
    Busy,
    /// It is to be sent, from [`Receiver::offset`] on.
    Receive(R),
}

/// Receives one blob. Whoever sends it hashes what he sends, which can be done at the same time as
/// storing it. The methods block; they belong on a worker thread.
pub trait Receiver: Send + 'static {
    /// How many bytes an earlier, interrupted run has left here.
    fn offset(&self) -> u64;

    /// The state of the hash after [`Receiver::offset`] bytes.
    fn hasher(&self) -> Hasher;

    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Publishes the blob, if `found` is its digest and its size is right. Without this call
    /// nothing is published, and what was received stays for a later run to resume from. On
    /// [`Kind::Digest`] it does not stay.
    fn commit(self, found: Digest) -> Result<()>;
}
