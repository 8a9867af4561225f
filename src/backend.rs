//! Image trees: namespaces of references over content-addressed blobs, one module per medium.
//!
//! A registry is such a tree ([`registry`]), and so is a KubeKey `images_dir` ([`images_dir`]).
//! The traits here are what [`crate::transfer`] needs of either side; what a medium can do beyond
//! them is its own affair.

mod confined;
mod error;
pub mod images_dir;
mod local_file;
pub mod registry;

use std::{future::Future, ops::Range, sync::Arc};

use bytes::Bytes;

pub use confined::{ConfinedDir, DirEntry, FileType, OpenDir, SymlinkRefused};
pub use error::{Error, Kind, Result};
pub use local_file::{FileStream, LocalFile, Relinked};

use crate::image::{Descriptor, Digest, Manifest, Reference, Repository};

/// Where names are looked up. What a reference points at is a manifest: bytes, type and digest.
pub trait Names: Send + Sync + 'static {
    /// The digest that `reference` points at now, without fetching the manifest. `None` if the
    /// medium does not tell digests, in which case [`Names::manifest`] finds it out.
    fn head(&self, reference: &Reference) -> impl Future<Output = Result<Option<Digest>>> + Send;

    /// The manifest that `reference` points at. Its digest has been checked against the
    /// reference, if that has one. A name that is not there is [`Kind::NotFound`].
    fn manifest(&self, reference: &Reference) -> impl Future<Output = Result<Manifest>> + Send;

    /// Whether every question costs a round trip, so that none is asked in vain.
    fn is_remote(&self) -> bool;

    /// The platforms of which the children of the index `digest` are here on purpose, if not all.
    fn sparse(&self, digest: &Digest) -> Option<String> {
        let _ = digest;
        None
    }
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

    /// Fails if it is known, without asking over the network, that `blob` is not there in its
    /// size.
    fn check(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (repository, blob);
        async { Ok(()) }
    }

    /// The file that holds `blob`, verified, where the medium has files.
    fn file(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> impl Future<Output = Result<Option<LocalFile>>> + Send {
        let _ = (repository, blob);
        async { Ok(None) }
    }

    /// Reads the bytes `range` of `blob`; what is beyond its end is not read. They are not yet
    /// verified.
    fn read(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Self::Stream>> + Send;
}

/// Content that arrives piece by piece.
pub trait ByteStream: Send + 'static {
    /// The next piece, or `None` once all bytes that were asked for have come. Interruptions are
    /// mended inside; an error is final.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>>> + Send;

    /// Whether the source has been found to send all of the content whatever range it is asked
    /// for, so that asking for parts makes no sense.
    fn ignores_ranges(&self) -> bool {
        false
    }
}

/// One blob, as whoever receives it sees its source.
pub trait Content: Send + Sync + 'static {
    /// What [`Content::read`] returns.
    type Stream: ByteStream;

    /// Reads from byte `offset` to the end; as often as it takes.
    fn read(&self, offset: u64) -> impl Future<Output = Result<Self::Stream>> + Send;

    /// The file that holds it, verified, where there is one.
    fn file(&self) -> impl Future<Output = Result<Option<LocalFile>>> + Send;

    /// The side that it comes from, for errors that show what came.
    fn side(&self) -> String;

    /// Is told when so many more bytes are at the target.
    fn moved(&self, bytes: u64);

    /// Is told when so many bytes that had been told as moved have to be moved once more.
    fn moved_in_vain(&self, bytes: u64);
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

    /// Makes sure, as far as that can be known in advance, that `repository` can be written to.
    fn prepare(&self, repository: &Repository) -> impl Future<Output = Result<()>> + Send;

    /// Prepares to receive `blob`, which will be used from `repository`. It will be read from one
    /// of the `origins`, of which some may be on this very side.
    fn open(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        origins: &[Repository],
    ) -> impl Future<Output = Result<Opened<Self::Receiver>>> + Send;

    /// Whether `name` leads to the manifest `digest` in just the place where [`Sink::put`] would
    /// store it, as far as that is known without asking over the network.
    fn leads_to(
        &self,
        repository: &Repository,
        name: &ManifestName,
        digest: Digest,
    ) -> impl Future<Output = bool> + Send;

    /// Stores a manifest by its digest, under a tag, or both. [`Kind::Incomplete`] if the other
    /// side finds that it lacks what the manifest names.
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

    /// Does what is left to be done after manifests have been put into `repository`.
    fn settle(&self, repository: &Repository) -> impl Future<Output = Result<()>> + Send;

    /// What was believed to be in `repository` has turned out not to be there: look again.
    fn distrust_all(&self, repository: &Repository) -> impl Future<Output = ()> + Send;

    /// Tidies up after a transfer.
    fn close(&self) -> impl Future<Output = ()> + Send;
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
    /// The blob was elsewhere on this side, and has been made to be here, too.
    Mounted,
    /// Another process is receiving it at this moment.
    Busy,
    /// It is to be sent, from [`Receiver::offset`] on.
    Receive(R),
}

/// Receives one blob.
pub trait Receiver: Send + 'static {
    /// How many bytes an earlier, interrupted run has left here.
    fn offset(&self) -> u64;

    /// Takes all of `content` that is missing, verifies the whole, and publishes it. If that fails
    /// nothing is published, and what was received stays for a later run to resume from; after
    /// [`Kind::Digest`] it does not stay.
    fn receive<C: Content>(self, content: Arc<C>) -> impl Future<Output = Result<Received>> + Send;
}

/// How a blob was received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// Bytes that were moved for it, those of earlier runs not counted.
    pub bytes: u64,
    /// Whether it shares its place on the disk with the source, so that nothing moved at all.
    pub linked: bool,
}
