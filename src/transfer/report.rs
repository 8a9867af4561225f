//! What became of a transfer, and what is told while it runs.

use async_trait::async_trait;
use bytes::Bytes;

use super::Route;
use crate::{
    backend::Error,
    image::{Descriptor, Digest},
};

/// What became of one image.
#[derive(Clone, Debug)]
pub struct ImageReport {
    /// Its name at the source and at the target.
    pub route: Route,
    /// What became of it.
    pub status: Status,
    /// Digest of the manifest or index at the target.
    pub digest: Option<Digest>,
    /// Digest at the source, where a platform filter has made another one of it.
    pub original_digest: Option<Digest>,
    /// What it runs on.
    pub platforms: Vec<String>,
    /// Bytes of all it consists of.
    pub bytes: u64,
    /// Names of what is attached to it.
    pub attached: Vec<String>,
    /// What the user should know all the same.
    pub warnings: Vec<String>,
    /// What belongs to it and is not at the target, or may be lacking there. With any of these the run
    /// has not done all that was wanted, whatever the status says.
    pub losses: Vec<String>,
}

/// What became of an image.
#[derive(Clone, Debug)]
pub enum Status {
    /// It would be copied.
    Planned,
    /// It has been copied, wholly or for the part that was missing.
    Copied,
    /// All of it was there.
    Unchanged,
    /// Nothing of it was wanted.
    Skipped,
    /// It could not be copied.
    Failed(Error),
}

impl ImageReport {
    pub(super) fn new(route: &Route, status: Status) -> Self {
        Self {
            route: route.clone(),
            status,
            digest: None,
            original_digest: None,
            platforms: Vec::new(),
            bytes: 0,
            attached: Vec::new(),
            warnings: Vec::new(),
            losses: Vec::new(),
        }
    }
}

/// What became of a transfer.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Each image, in the order in which they were asked for.
    pub images: Vec<ImageReport>,
    /// Blobs that were moved.
    pub moved_blobs: usize,
    /// Their bytes, as far as they had to be moved in this run.
    pub moved_bytes: u64,
    /// Blobs that share their place on the disk with the source.
    pub linked_blobs: usize,
    /// Blobs that were mounted from another repository of their registry.
    pub mounted_blobs: usize,
    /// Blobs that were there.
    pub reused_blobs: usize,
    /// Their bytes, and those that interrupted runs had left of others.
    pub reused_bytes: u64,
    /// Why blobs could not be moved, for those that no image of the plan needs.
    pub failed_blobs: Vec<Error>,
}

/// Something that happens during a transfer.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The plan is made.
    Planned {
        /// Number of images that can be copied.
        images: usize,
        /// Number of blobs that are missing.
        blobs: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// A blob starts to be moved.
    BlobStarted {
        /// Which.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Bytes that are there from an earlier run.
        offset: u64,
    },
    /// Some bytes of a blob are at the target.
    BlobProgress {
        /// Which.
        digest: Digest,
        /// How many more.
        bytes: u64,
    },
    /// Some bytes of a blob have to be moved once more.
    BlobSetBack {
        /// Which.
        digest: Digest,
        /// How many had been counted as progress in vain.
        bytes: u64,
    },
    /// What was received of a blob was damaged, and it starts over.
    BlobRestarted {
        /// Which.
        digest: Digest,
        /// How many bytes had been counted as progress.
        bytes: u64,
    },
    /// A blob that was to be moved is there after all.
    BlobFound {
        /// Its size in bytes.
        size: u64,
    },
    /// A blob is done with.
    BlobDone {
        /// Which.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Whether it is at the target.
        ok: bool,
    },
    /// Another process is receiving this blob; it is waited for, and other work goes on.
    Waiting {
        /// Which.
        digest: Digest,
    },
    /// Another worker is to bring this blob; it is waited for, and other work goes on.
    Awaiting {
        /// Which.
        digest: Digest,
    },
    /// An image is done with.
    ImageDone(&'a ImageReport),
}

/// Is told what happens. Called from several threads; must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something has happened.
    fn event(&self, event: Event<'_>);

    /// A blob is going to be read from its beginning; who else wants its bytes, if somebody does.
    fn passes(&self, blob: &Descriptor) -> Option<Box<dyn Passing>> {
        let _ = blob;
        None
    }
}

/// Gets the bytes of a blob while it is moved, before anybody knows whether they are right.
#[async_trait]
pub trait Passing: Send + 'static {
    /// The bytes from `offset` on. Those of a blob that is interrupted may not come in one piece, or not to its end.
    /// Whoever takes its time here holds up the blob.
    async fn pass(&mut self, offset: u64, bytes: &Bytes);
}

impl Observer for () {
    fn event(&self, _: Event<'_>) {}
}
