//! Images from the inside: their root file systems and single layers, as trees of files that are
//! read where they are, without unpacking anything.
//!
//! [`Images`] opens them. A layer is scanned once from its beginning to its end; the index that this
//! makes ([`crate::layer`]) is stored in the images_dir, for all images that share the layer.
//! From then on only those spans of a layer are fetched and decompressed that somebody reads. An image
//! may bring a table of contents of a layer, which saves the scan; nothing in the layer vouches for that,
//! so it counts for this image alone.
//!
//! ```text
//! Images    what an image is: its manifests, configurations, platforms
//!   Files     those of a platform, or of one layer, from before anything of them is known
//!   Tree      the same when all is known: names, attributes, content
//!     Stream      the decompressed stream of a layer, by way of the cache
//!       Layer       its index, and its spans, decompressed and checked
//!         Scan        what makes the index
//!         Location    where its bytes are
//!       IndexStore  what is kept on the disk: indexes, manifests, configurations, profiles
//!     Start       what is read of an image when it starts
//! ```
//!
//! The decompressed stream of a layer is content that the [`crate::cache`] keeps like any other: it
//! is derived from the layer by `stream.rs`, whose spans have been compared with the digests in the
//! index. So both forms share one bound, and what is read twice is decompressed once.
//!
//! # Memory
//!
//! Everything large is counted by the [`Budget`] in [`Sources::memory`] before it is made: manifests,
//! indexes, trees, spans, and what making them takes. It stays in memory while there is room, and is read
//! or made again when it is needed after it was let go. What is open keeps what it needs, and that stays
//! counted. Who finds no room waits a while for others to give some back, holding none itself; only one
//! scan at a time waits while it holds some. What needs more than there is at all is an error that says so.
//!
//! Processors are shared by all layers, and nobody who waits for bytes of a layer holds one.

mod attached;
mod decode;
mod documents;
mod files;
mod follow;
mod image;
mod images;
mod index_store;
mod key;
mod layer;
mod location;
mod recorded;
mod scan;
mod shared;
mod spans;
mod starts;
mod status;
mod stream;
mod tree;

use std::{
    collections::VecDeque,
    io,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use lru::LruCache;
use tokio::sync::{Notify, Semaphore};

pub use attached::{INDEX_ARTIFACT_TYPE, INDEX_LAYER, INDEX_MEDIA_TYPE};
pub use files::{FileFound, Files, PathError};
pub use image::{Image, Variant};
pub use images::Images;
pub use index_store::{IndexCache, MadeBy, StoredIndex};
pub use recorded::{CONFIG_FILE, MANIFEST_FILE, Record, WrongLayer, read_record};
pub use shared::{LayerIndexes, LayerState, Pulled, PulledIndex};
pub use starts::Profiles;
pub use tree::{Tree, TreeFile};

use index_store::{IndexStore, Indexed};
use key::LayerKey;
use spans::{Group, RecentSpans};
use starts::Starts;

use crate::{
    backend::{Backend, Error, Result, images_dir::ImagesDir, registry::RegistryPattern},
    cache::Cache,
    catalogue::Catalogue,
    image::{Digest, Repository},
    util::{Budget, Kept, SingleFlight, locked},
};

const SIDE: &str = "image";

/// Failures that are remembered, for those who ask later what went wrong.
const REMEMBERED: usize = 32;

/// Layers that are remembered for not being what they should be, until somebody asks for them.
const REMEMBERED_WRONG: usize = 256;

/// Layers that could not be read, of which the reason is remembered.
const REMEMBERED_FAILED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The least that stored indexes and documents may take of the disk, in bytes: what several thousand
/// layers of usual size have. Where the cache is large, they may take a tenth of its size.
const INDEX_STORE_BYTES: u64 = 2 << 30;

/// How long something waits at most for memory that others use.
const MEMORY_PATIENCE: Duration = Duration::from_secs(20);

/// Where images are, and how long to wait for them.
pub struct Sources {
    /// What names lead to, what is local, and where the rest comes from.
    pub catalogue: Catalogue,
    /// Keeps what is fetched and what is decompressed.
    pub cache: Cache,
    /// A layer of which nothing that can be read comes for so long is given up.
    pub patience: Duration,
    /// Whether nothing of a layer is shown before all of it has been verified.
    pub verify_first: bool,
    /// The memory for all that is known of images.
    pub memory: Budget,
    /// Where what is found out of images is kept, if that is not to be in the images_dir.
    pub index_cache: Option<IndexCache>,
    /// What is done with profiles.
    pub profiles: Profiles,
    /// Repositories of which whoever can attach something to an image may say what its layers contain.
    pub trusted_indexes: Vec<RegistryPattern>,
}

impl Sources {
    /// What is local.
    fn dir(&self) -> &ImagesDir {
        self.catalogue.dir()
    }

    /// Where the rest comes from; `None` if the network is not to be used.
    fn remote(&self) -> Option<&Arc<dyn Backend>> {
        self.catalogue.source()
    }

    /// Whether indexes that are attached to images in `repository` are used.
    fn trusts(&self, repository: &Repository) -> bool {
        self.trusted_indexes.iter().any(|pattern| pattern.matches(repository))
    }
}

/// What has been done to layers since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Passes that have indexed a layer.
    pub passes: u64,
    /// Those that failed.
    pub failed_passes: u64,
    /// Bytes that were decompressed, in passes and for readers.
    pub inflated_bytes: u64,
}

/// The same as it is counted.
#[derive(Default)]
struct WorkDone {
    passes: AtomicU64,
    failed_passes: AtomicU64,
    inflated_bytes: AtomicU64,
}

/// What all images of a process share.
struct Store {
    sources: Sources,
    index_store: Arc<IndexStore>,
    /// Indexes by what they are of.
    indexes: Kept<LayerKey, Indexed>,
    /// Indexes that are being read or made.
    indexing: SingleFlight<LayerKey, Result<Arc<Indexed>>>,
    /// Spans that are being decompressed, by where in the stream their group begins.
    decoding: SingleFlight<(LayerKey, u64), Result<Option<Arc<Group>>>>,
    recent: Arc<RecentSpans>,
    /// What reading has taken since the start.
    decoded: Decoded,
    /// Layers that are parsed, and trees that are made, at a time: each takes a processor or two. Nobody
    /// holds one while waiting for anything else.
    processors: Semaphore,
    /// Held by the one scan that waits for memory while it holds some.
    memory_turn: tokio::sync::Mutex<()>,
    /// Held while an index takes the place of another, or is dropped.
    replacing: Mutex<()>,
    starts: Starts,
    /// What is attached to images.
    attached: attached::Found,
    errors: Mutex<VecDeque<(SystemTime, String)>>,
    work: WorkDone,
    /// Is told when a layer has been found not to be what it should be.
    wrong_found: Notify,
    /// Those that nobody has asked for yet, with [`Images::wrong_layers`].
    wrong: Mutex<Vec<WrongLayer>>,
    /// Why layers could not be read the last time that it failed.
    failed_reads: Mutex<LruCache<Digest, String>>,
}

/// What has been decompressed and hashed for those who read, in bytes.
#[derive(Default)]
struct Decoded {
    inflated: AtomicU64,
    hashed: AtomicU64,
}

impl Decoded {
    fn add(&self, work: crate::layer::Work) {
        self.inflated.fetch_add(work.inflated_bytes, Ordering::Relaxed);
        self.hashed.fetch_add(work.hashed_bytes, Ordering::Relaxed);
    }
}

impl Store {
    fn new(sources: Sources) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = &sources.memory;
        let store_bytes = (sources.cache.stats().limit_bytes / 10).max(INDEX_STORE_BYTES);
        let index_store = match &sources.index_cache {
            Some(cache) => IndexStore::in_cache(cache, memory),
            None => IndexStore::new(sources.dir(), store_bytes, memory),
        };
        Arc::new(Self {
            index_store: index_store.into(),
            indexes: Kept::new(memory),
            indexing: SingleFlight::default(),
            decoding: SingleFlight::default(),
            recent: RecentSpans::new(memory),
            decoded: Decoded::default(),
            processors: Semaphore::new(processors),
            memory_turn: tokio::sync::Mutex::default(),
            replacing: Mutex::default(),
            starts: Starts::new(sources.profiles, memory),
            attached: attached::Found::default(),
            errors: Mutex::default(),
            work: WorkDone::default(),
            wrong_found: Notify::new(),
            wrong: Mutex::default(),
            failed_reads: Mutex::new(LruCache::new(REMEMBERED_FAILED)),
            sources,
        })
    }

    /// Remembers a failure.
    fn note(&self, error: &Error) {
        let mut errors = locked(&self.errors);
        if errors.len() >= REMEMBERED {
            errors.pop_front();
        }
        errors.push_back((SystemTime::now(), error.to_string()));
    }

    /// Notes why a layer could not be read.
    fn note_failed_read(&self, layer: &Digest, error: &Error) {
        locked(&self.failed_reads).put(*layer, error.to_string());
    }

    /// Notes that a layer is not what it should be.
    fn note_wrong(&self, found: WrongLayer) {
        let mut wrong = locked(&self.wrong);
        if wrong.len() < REMEMBERED_WRONG && !wrong.contains(&found) {
            wrong.push(found);
        }
        self.wrong_found.notify_one();
    }

    /// Does what takes a processor, on a thread that may block, when one is free.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let permit = self.processors.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        drop(permit);
        done.map_err(io::Error::other)
    }

    /// Does `work`, again if it fails for want of memory that others use. It must hold none then.
    async fn with_memory<T, F: Future<Output = Result<T>>>(
        &self,
        work: impl FnMut() -> F,
    ) -> Result<T> {
        let patience = self.sources.patience.min(MEMORY_PATIENCE);
        self.sources.memory.retry(patience, Error::is_short_of_memory, work).await
    }
}

/// Entry points of the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use crate::image::{Descriptor, Digest};

    /// Checks an index that was attached to an image, and reads what it promises of the layer that it says it is of.
    pub fn attached_index(stored: &[u8]) {
        let Ok(reading) = super::attached::checking_bytes(stored) else { return };
        // As much as a mount would refuse for want of memory.
        if reading > 64 << 20 {
            return;
        }
        let Ok(claim) = crate::layer::LayerIndex::from_bytes(stored) else { return };
        let other = Descriptor::new("", Digest::sha256(b"other"), claim.blob_bytes());
        assert!(super::attached::checked(stored, &other, None).is_err());
        let layer = Descriptor::new("", claim.blob(), claim.blob_bytes());
        let wrong = Some(Digest::sha256(b"other"));
        assert!(super::attached::checked(stored, &layer, wrong).is_err());
        if let Ok(index) = super::attached::checked(stored, &layer, claim.diff_id()) {
            for span in 0..index.span_count().min(64) {
                // Nothing comes of what is not the layer.
                assert!(
                    index.decode(span, &[0; 64]).is_err() || index.stream_range(span).is_empty()
                );
            }
        }
    }
}
