//! Backends: namespaces of references over content-addressed blobs, one module per medium.
//!
//! A registry is one ([`registry`]), and so is a KubeKey `images_dir` ([`images_dir`]). The traits
//! here are object-safe, and everything above this floor uses backends as `dyn` [`Backend`] and
//! `dyn` [`Sink`]: a call for each piece of 16 KiB or more costs nothing to dispatch, and a new
//! medium costs its own module only. Where media differ in what they can do, they say so in their
//! [`Capabilities`].

pub mod archive;
mod collection;
mod confined;
#[cfg(test)]
mod conformance;
pub mod docker_daemon;
mod error;
pub mod images_dir;
mod local_file;
pub mod object_store;
pub mod oci_layout;
mod packer;
pub mod registry;
mod shard;
pub mod skopeo_dir;
mod tally;
mod writeback;

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

pub use collection::{Collection, ListedImage, NameBelow, NameBelowError};
pub use confined::{ConfinedDir, DirEntry, FileType, Flush, OpenDir, SymlinkRefused};
pub use error::{Error, Kind, Result};
pub use local_file::{FileStream, LocalFile, Relinked};
pub use packer::{PackedImage, Packer, Unwritten};
pub use shard::{Shard, ShardError, Sharded};
pub(crate) use tally::Tally;

use crate::image::{Descriptor, Digest, Manifest, Reference, Repository};

/// What a medium can do, where media differ. Callers ask for the one fact that matters to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether every question costs a round trip over a network. Then nothing is asked that can be
    /// done without; otherwise looking is free, and everything is looked at.
    pub has_round_trips: bool,
    /// Whether a blob belongs to a repository, and has to be brought into each that needs it.
    /// Otherwise all repositories share their blobs.
    pub has_blobs_per_repository: bool,
    /// Whether a manifest is accepted only if all that it names is there. Then an index cannot
    /// lack some of its children, and a manifest that is there has all of its parts.
    pub requires_whole_images: bool,
    /// Whether a blob of one repository can be brought into another one without moving its bytes
    /// (distribution specification, "Mounting a blob from another repository").
    pub can_mount_blobs: bool,
}

impl Capabilities {
    /// Those of a directory: looking is free, blobs are shared, and anything can be left out.
    pub const DIRECTORY: Self = Self {
        has_round_trips: false,
        has_blobs_per_repository: false,
        requires_whole_images: false,
        can_mount_blobs: false,
    };

    /// Those of a registry that follows the distribution specification.
    pub const REGISTRY: Self = Self {
        has_round_trips: true,
        has_blobs_per_repository: true,
        requires_whole_images: true,
        can_mount_blobs: true,
    };
}

/// Where names are looked up. What a reference points at is a manifest: bytes, type and digest.
#[async_trait]
pub trait Names: Send + Sync + 'static {
    /// What this medium can do.
    fn capabilities(&self) -> Capabilities;

    /// What errors call the place where `repository` is: `registry quay.io`, `images_dir`.
    fn side(&self, repository: &Repository) -> String;

    /// The digest that `reference` points at now, without fetching the manifest. `None` if the
    /// medium does not tell digests, in which case [`Names::manifest`] finds it out. Where nothing is fetched over
    /// a network, that of the manifest.
    async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        Ok(Some(self.manifest(reference).await?.digest()))
    }

    /// The manifest that `reference` points at. Its digest has been checked against the
    /// reference, if that has one. A name that is not there is [`Kind::NotFound`].
    async fn manifest(&self, reference: &Reference) -> Result<Manifest>;

    /// The platforms of which the children of the index `digest` are here on purpose, if not all.
    fn sparse(&self, digest: &Digest) -> Option<String> {
        let _ = digest;
        None
    }
}

/// What can list the signatures, attestations and other things that are attached to manifests.
#[async_trait]
pub trait Attachments: Send + Sync + 'static {
    /// Manifests that name `subject` in their `subject` field (OCI 1.1). `None` if the medium
    /// cannot tell; then the fallback tag of [`Attachments::tags`] may.
    async fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Option<Vec<Descriptor>>>;

    /// The tags of `repository`, as far as one request gets them.
    async fn tags(&self, repository: &Repository) -> Result<Tags>;
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
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Fails if `manifest`, which is in `repository`, names blobs that were never brought there, and are another
    /// repository's matter where they are here. Asks nobody over the network.
    async fn gives(&self, repository: &Repository, manifest: &Manifest) -> Result<()> {
        let _ = (repository, manifest);
        Ok(())
    }

    /// Fails if it is known, without asking over the network, that `blob` is not there in its
    /// size.
    async fn check(&self, repository: &Repository, blob: &Descriptor) -> Result<()> {
        let _ = (repository, blob);
        Ok(())
    }

    /// The file that holds `blob`, verified, where the medium has files.
    async fn file(&self, repository: &Repository, blob: &Descriptor) -> Result<Option<LocalFile>> {
        let _ = (repository, blob);
        Ok(None)
    }

    /// Reads the bytes `range` of `blob`; what is beyond its end is not read. They are not yet
    /// verified.
    async fn read(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream>;
}

/// A medium that images can be read from: names, what is attached to them, and content. Whatever
/// has the three traits is one.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::sync::Arc;
/// use imgfs::{
///     backend::{Backend, ManifestName, Sink, images_dir::{ImagesDir, Linking}},
///     image::{Manifest, Repository},
/// };
///
/// let temporary = tempfile::tempdir()?;
/// let dir = ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// let index = br#"{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}"#;
/// let manifest = Manifest::parse(index.to_vec().into(), None)?;
/// let repository = Repository::new("registry.example.com", "team/app")?;
/// dir.put(&repository, &manifest, &ManifestName::Tag("v1".to_owned())).await?;
///
/// let backend: Arc<dyn Backend> = Arc::new(dir);
/// let found = backend.manifest(&repository.tagged("v1")).await?;
/// assert_eq!(found.digest(), manifest.digest());
/// assert!(backend.manifest(&repository.tagged("v2")).await.unwrap_err().is_not_found());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub trait Backend: Names + Attachments + Blobs {}

impl<T: Names + Attachments + Blobs> Backend for T {}

/// A medium that says which images it has.
#[async_trait]
pub trait Lister: Backend {
    /// All its images.
    async fn images(&self) -> Result<Listing>;
}

/// What a medium has.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The images, in the order of the medium.
    pub images: Vec<ListedImage>,
    /// What the user should know of the medium.
    pub warnings: Vec<String>,
}

/// Content that arrives piece by piece.
#[async_trait]
pub trait ByteStream: Send + 'static {
    /// The next piece, or `None` once all bytes that were asked for have come. Interruptions are
    /// mended inside; an error is final.
    async fn next(&mut self) -> Result<Option<Bytes>>;

    /// Whether the source has been found to send all of the content whatever range it is asked
    /// for, so that asking for parts makes no sense.
    fn ignores_ranges(&self) -> bool {
        false
    }
}

/// A stream of any medium.
pub type BoxStream = Box<dyn ByteStream>;

/// One blob, as whoever receives it sees its source.
#[async_trait]
pub trait Content: Send + Sync + 'static {
    /// Reads from byte `offset` to the end; as often as it takes.
    async fn read(&self, offset: u64) -> Result<BoxStream>;

    /// The file that holds it, verified, where there is one.
    async fn file(&self) -> Result<Option<LocalFile>>;

    /// The side that it comes from, for errors that show what came.
    fn side(&self) -> String;

    /// Is called when so many more bytes are at the target.
    fn moved(&self, bytes: u64);

    /// Is called when so many bytes that had been reported as moved have to be sent once more.
    fn retransmitted(&self, bytes: u64);
}

/// Where content is written. The order is the caller's duty: blobs, then the manifests that name
/// them (children before indexes), then tags; so nothing is ever named before it is whole.
#[async_trait]
pub trait Sink: Names {
    /// Whether `blob` is there and verified, as far as that is known without reading it.
    async fn has(&self, repository: &Repository, blob: &Descriptor) -> Result<bool>;

    /// The content of a small blob, if it is there, verified, and cheaper to read here than at
    /// its source.
    async fn content(&self, repository: &Repository, blob: &Descriptor) -> Result<Option<Bytes>>;

    /// Makes sure, as far as that can be known in advance, that `repository` can be written to.
    async fn prepare(&self, repository: &Repository) -> Result<()>;

    /// Prepares to receive `blob`, which will be used from `repository`. It will be read from one
    /// of the `origins`, of which some may be on this very side.
    async fn open(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        origins: &[Repository],
    ) -> Result<Opened>;

    /// Whether `name` resolves to the manifest `digest` in just the place where [`Sink::put`]
    /// would store it, as far as that is known without asking over the network.
    async fn resolves_to(
        &self,
        repository: &Repository,
        name: &ManifestName,
        digest: Digest,
    ) -> bool;

    /// Stores a manifest by its digest, under a tag, or both. [`Kind::Incomplete`] if the other
    /// side finds that it lacks what the manifest names.
    async fn put(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> Result<()>;

    /// Notes that of the index `index` only the children for `platforms` are wanted (`all` for
    /// all), so that the others do not count as missing.
    ///
    /// By default nothing: which children are there says which are wanted.
    async fn keep_sparse(&self, index: Digest, platforms: &str) -> Result<()> {
        let _ = (index, platforms);
        Ok(())
    }

    /// Does what is left to be done after manifests have been put into `repository`.
    async fn settle(&self, repository: &Repository) -> Result<()> {
        let _ = repository;
        Ok(())
    }

    /// What was believed to be in `repository` has turned out not to be there: forgets it, so that
    /// it is looked at again.
    async fn forget_known(&self, repository: &Repository) {
        let _ = repository;
    }

    /// Leaves word for other workers, where there is a place for that, that this one could not bring `blob`, or that
    /// this is over. It is only a hint: nothing is wrong if it gets lost, or stays for too long.
    async fn give_up(&self, blob: Digest, is_given_up: bool) {
        let _ = (blob, is_given_up);
    }

    /// Whether another worker has left word that it could not bring `blob`.
    async fn is_given_up(&self, blob: Digest) -> bool {
        let _ = blob;
        false
    }

    /// Tidies up after a transfer.
    async fn close(&self) {}
}

/// What goes when a name is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The manifest that it leads to; `None` if that cannot be read.
    pub digest: Option<Digest>,
    /// All names that go: first the one that was asked for; then in a directory those of its attachments that are
    /// of no use without it, and in a registry the others of the same manifest.
    pub names: Vec<Reference>,
    /// Whether others may go, too, of which nobody knows.
    pub may_be_more: bool,
}

/// A medium of which names can be removed.
#[async_trait]
pub trait Remover: Names {
    /// What goes with `name`. [`Kind::NotFound`] if it is not there; [`Kind::Unfit`] if something else would not
    /// be whole without it.
    async fn removal(&self, name: &Reference) -> Result<Removal>;

    /// Removes it.
    async fn remove(&self, removal: &Removal) -> Result<()>;
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
pub enum Opened {
    /// The blob is there, of the right size and verified.
    Present,
    /// The blob was elsewhere on this side, and has been made to be here, too.
    Mounted,
    /// Another process is receiving it at this moment.
    Busy,
    /// Another worker is to bring it, and has not yet.
    Awaited,
    /// It is to be sent, from [`Receiver::offset`] on.
    Receive(Box<dyn Receiver>),
}

/// Receives one blob.
#[async_trait]
pub trait Receiver: Send + 'static {
    /// How many bytes an earlier, interrupted run has left here.
    fn offset(&self) -> u64;

    /// Takes all of `content` that is missing, verifies the whole, and publishes it. If that fails
    /// nothing is published, and what was received stays for a later run to resume from; after
    /// [`Kind::Digest`] it does not stay.
    async fn receive(self: Box<Self>, content: Arc<dyn Content>) -> Result<Received>;
}

/// How a blob was received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// Bytes that were moved for it, those of earlier runs not counted.
    pub bytes: u64,
    /// Whether it shares its place on the disk with the source, so that nothing moved at all.
    pub linked: bool,
}
