//! Where the bytes of a layer are, and reading them compressed.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::time::timeout;

use super::{SIDE, Sources, Store};
use crate::{
    backend::{Error, Kind, Result},
    cache::CachedBlob,
    image::{Descriptor, Repository},
    layer::DecodeError,
    util::locked,
};

/// What of a blob is read at a time when all of it is, in bytes.
pub(super) const STEP: usize = 256 << 10;

/// How long what was not in the images_dir is taken not to be there yet. To look takes longer than to decompress a
/// small part.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Where a layer is: in the images_dir, or in repositories of a registry, by way of the cache.
pub(super) struct Location {
    pub store: Arc<Store>,
    pub blob: Descriptor,
    repositories: Mutex<Vec<Repository>>,
    /// What is local is not what it should be.
    local_is_bad: AtomicBool,
    /// When it was not in the images_dir last.
    absent_at: Mutex<Option<Instant>>,
}

/// The compressed bytes of a layer.
pub(super) enum Compressed {
    File(Arc<File>),
    Cached(CachedBlob),
}

impl Compressed {
    /// The same for somebody who is going to read all of it.
    pub(super) fn for_all(self) -> Self {
        match self {
            Self::Cached(blob) => Self::Cached(blob.for_all()),
            Self::File(file) => Self::File(file),
        }
    }

    /// Grows whenever a part of it has come that can be read.
    fn progress(&self) -> u64 {
        match self {
            Self::File(_) => 0,
            Self::Cached(blob) => blob.arrived_blocks(),
        }
    }

    /// The bytes `range`, all of them.
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        // Nobody asks for more than a group of spans, or a table of contents.
        let length = (range.end - range.start) as usize;
        let failed = |e| Error::new(SIDE, "reading a layer", e);
        match self {
            Self::File(file) => {
                let file = file.clone();
                let read = tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; length];
                    file.read_exact_at(&mut bytes, range.start).map(|()| bytes.into())
                });
                read.await.map_err(io::Error::other).and_then(|read| read).map_err(failed)
            }
            Self::Cached(blob) => blob.read(range.start, length).await,
        }
    }
}

impl Location {
    pub(super) fn new(store: Arc<Store>, blob: Descriptor) -> Self {
        Self {
            store,
            blob,
            repositories: Mutex::default(),
            local_is_bad: AtomicBool::new(false),
            absent_at: Mutex::default(),
        }
    }

    /// Notes that `repository` has it.
    pub(super) fn is_in(&self, repository: &Repository) {
        let mut repositories = locked(&self.repositories);
        if !repositories.contains(repository) {
            repositories.push(repository.clone());
        }
    }

    /// A repository that has it.
    pub(super) fn repository(&self) -> Option<Repository> {
        locked(&self.repositories).first().cloned()
    }

    pub(super) fn error(&self, kind: impl Into<Kind>) -> Error {
        Error::new(SIDE, format_args!("reading layer {}", self.blob.digest), kind)
    }

    /// Whether it is in the images_dir. Blocks for a moment.
    pub(super) fn is_local(&self) -> bool {
        self.local().is_some()
    }

    fn local(&self) -> Option<File> {
        if self.local_is_bad.load(Ordering::Relaxed) {
            return None;
        }
        self.store.sources.dir().unverified_file(self.blob.digest, self.blob.size)
    }

    /// Looks for it elsewhere from now on: what is in the images_dir is not what it should be.
    pub(super) fn distrust_local(&self) {
        self.local_is_bad.store(true, Ordering::Relaxed);
    }

    /// Where the layer's bytes come from now. Nobody has checked them.
    pub(super) async fn compressed(self: &Arc<Self>) -> Result<Compressed> {
        if self.blob.media_type.ends_with("+encrypted") {
            return Err(self.error(Kind::Layer("the layer is encrypted".into())));
        }
        let is_absent = locked(&self.absent_at).is_some_and(|at| at.elapsed() < LOOK_AGAIN);
        if !is_absent || self.store.sources.remote().is_none() {
            let location = self.clone();
            let local = tokio::task::spawn_blocking(move || location.local());
            if let Some(file) = local.await.map_err(|e| self.error(io::Error::other(e)))? {
                return Ok(Compressed::File(Arc::new(file)));
            }
            *locked(&self.absent_at) = Some(Instant::now());
        }
        self.remote().map(Compressed::Cached).ok_or_else(|| self.error(Kind::Offline))
    }

    /// The bytes as they come from a registry, by way of the cache; `None` if nothing is fetched from any. As long as such
    /// a handle is there, what is fetched ahead goes on coming.
    pub(super) fn remote(&self) -> Option<CachedBlob> {
        let sources = &self.store.sources;
        let repositories = locked(&self.repositories).clone();
        Some(sources.cache.parts(sources.remote()?.clone(), repositories, &self.blob))
    }

    /// Reads compressed bytes, and does not wait for ever: only as long as something comes. That
    /// has to be of use; a registry that sends a few bytes at each attempt is given up like one that
    /// sends none.
    pub(super) async fn fetch(&self, from: &Compressed, range: Range<u64>) -> Result<Bytes> {
        let fetched = self.fetch_in_time(from, range).await;
        fetched.inspect_err(|error| self.store.note_failed_read(&self.blob.digest, error))
    }

    async fn fetch_in_time(&self, from: &Compressed, range: Range<u64>) -> Result<Bytes> {
        let Sources { patience, .. } = &self.store.sources;
        let mut read = std::pin::pin!(from.read(range));
        loop {
            let before = from.progress();
            match timeout(*patience, &mut read).await {
                // It is the layer that is not there, and not the file that is read.
                Ok(Err(error)) if error.is_not_found() => {
                    return Err(error.with_kind(Kind::Layer(error.kind().to_string())));
                }
                Ok(done) => return done,
                // It begins again at 0 when what was here has been found to be wrong.
                Err(_) if from.progress() != before => {}
                Err(_) => return Err(self.error(Kind::Stalled(*patience))),
            }
        }
    }

    /// Sees to it that the next attempt does not get the bytes that have just been found to be wrong.
    pub(super) fn distrust(&self, compressed: &Compressed, error: &DecodeError) {
        self.store.note(&self.error(Kind::Layer(error.to_string())));
        match compressed {
            Compressed::File(_) if self.store.sources.remote().is_some() => self.distrust_local(),
            Compressed::File(_) => {}
            Compressed::Cached(blob) => blob.discard(),
        }
    }
}
