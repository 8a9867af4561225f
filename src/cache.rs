//! The cache of a mount: parts of blobs, fetched when they are read, and what follows them.
//!
//! [`Cache::blob`] makes a handle through which a blob is read; where it comes from are any
//! [`Blobs`]. All handles of a digest share what is here and what is under way, so nothing is
//! fetched twice at a time. How it is stored is described in [`crate::backend::images_dir::cached`],
//! which a pull knows, too.
//!
//! # What it promises
//!
//! - **Nobody gets wrong bytes to the end.** A digest is computed over all blocks, one after the
//!   other, as they come. The last one is held back until it has been found to be right; if it is
//!   wrong, everything of the blob goes, and those who wait get [`Kind::Digest`]. What somebody
//!   has read or hashed and is not kept has to be the same when it is fetched again; if it is not,
//!   everything of the blob goes. What is whole and right is sealed and moved to `whole/`.
//! - **A blob is never taken for a decompressed stream, nor a stream for a blob.** They have names of
//!   different types, and directories of their own. What makes an entry right is decided by that
//!   type when the entry is made.
//! - **Its files take no more of the disk than they may**, at any moment. What was used longest ago
//!   goes first; see `evict.rs`. Room is made before something is written. Where none can be made,
//!   or the disk refuses, blocks stay in memory for those who wait for them.
//! - **It may be killed at any time.** Data is written before the checksum that says it is there;
//!   after a power cut, what does not fit its checksum is not there.
//! - **It fetches what is read.** One read of a few bytes gets 256 KiB; who reads on gets more at a
//!   time, up to 16 MiB, and one such window ahead; see `plan.rs`. A source that sends all of the
//!   content, whatever it is asked for, is read once from the front.
//! - **An error is that of those who wait for the blocks** which the request should have brought.
//!   The next read tries again.
//!
//! # How it works
//!
//! All that is known is in one `State` under one lock, which nobody holds while reading
//! or writing. A read takes what is here, leaves a waiter for each block that is not,
//! and starts requests (`read.rs`, `plan.rs`). A request hands each block that has come to its
//! waiters, to the digest and to the disk (`fetch.rs`, `hash.rs`, `disk.rs`). A block stays in
//! memory until it is on the disk, and the last ones for a while longer (`memory.rs`).

mod ahead;
mod consistent;
mod disk;
mod evict;
mod fetch;
mod hash;
mod load;
mod memory;
mod plan;
mod read;
mod readers;
mod requests;
mod slots;
mod state;
mod stored;
mod tasks;
mod verification;
mod window;

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use crate::{
    backend::{
        Blobs, ConfinedDir, Error, Kind, Result,
        images_dir::{
            ImagesDir,
            cached::{BLOCK_BYTES, ContentId, StreamId},
        },
    },
    image::{Descriptor, Digest, Repository},
    util::{Budget, Reservation, locked},
};

pub use consistent::ConsistentBlob;
pub use read::{CachedBlob, Hashing};

use fetch::Source;
use slots::Slots;
use state::{Blob, Key, State};
use stored::Place;
use tasks::Tasks;

const SIDE: &str = "cache";

/// Where files are moved to be removed.
const GONE: &str = "gone";

/// Of the memory of a cache, one part in so many is for blocks that have come lately; what comes later than
/// another part allows is hashed from the disk again, and the rest is for what is remembered of blocks that
/// have gone.
const LATELY_PART: usize = 6;
const FED_PART: usize = 2;
const KNOWN_PART: usize = 3;

/// Of the blocks that wait in memory to be hashed, so many may be of one blob.
const MOST_FED: usize = 32;

/// More memory than this makes nothing faster.
const MOST_MEMORY: u64 = 32 << 20;

/// The memory that a request takes, in bytes: a block that comes, one that is being written, and one that
/// somebody has been given.
const REQUEST_BYTES: u64 = 3 * BLOCK_BYTES;

/// Requests that run at once where there is enough memory.
const MOST_REQUESTS: usize = 16;

/// Requests for streams that are under way at once: each holds some of its stream in memory.
const STREAMS_AT_ONCE: usize = 4;

/// What is evicted at once, in blocks, as long as the cache is large enough.
const EXTENT_BLOCKS: u64 = 32;

/// The order in which blobs were read is written down this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// How a cache is to be.
#[derive(Clone)]
pub struct CacheConfig {
    /// Its directory, which is created if need be.
    pub dir: PathBuf,
    /// The directory that this is in and that others fill: no link in it is followed on the way.
    pub within: Option<ConfinedDir>,
    /// The bytes of the disk that it may use.
    pub limit_bytes: u64,
    /// What is fetched for a first read, in bytes.
    pub first_window_bytes: u64,
    /// The most that is fetched at once for somebody who reads on, in bytes. Twice that is the
    /// most that is fetched in vain.
    pub max_window_bytes: u64,
    /// Requests that run at once.
    pub max_requests: usize,
    /// Requests that run at once for one reader, where each is slow.
    pub connections_per_blob: usize,
    /// Bytes of memory for blocks that have come lately, and for what is remembered of others, besides
    /// [`CacheConfig::max_requests`].
    pub memory_bytes: usize,
    /// What its memory is counted in.
    pub budget: Budget,
}

impl CacheConfig {
    /// A cache in `dir` that takes `limit_bytes` of the disk.
    pub fn new(dir: PathBuf, limit_bytes: u64) -> Self {
        Self {
            dir,
            within: None,
            limit_bytes,
            first_window_bytes: 256 << 10,
            max_window_bytes: 16 << 20,
            max_requests: MOST_REQUESTS,
            connections_per_blob: 8,
            // At most 32 MiB.
            memory_bytes: MOST_MEMORY as usize,
            budget: Budget::unlimited(),
        }
    }

    /// The same cache with a part of `budget` for its memory: at most a quarter.
    #[must_use]
    pub fn within_memory(self, budget: &Budget) -> Self {
        let limit = budget.stats().limit_bytes;
        let requests = usize::try_from(limit / 12 / REQUEST_BYTES).unwrap_or(usize::MAX);
        Self {
            memory_bytes: (limit / 6).min(MOST_MEMORY) as usize,
            max_requests: requests.clamp(1, MOST_REQUESTS),
            budget: budget.clone(),
            ..self
        }
    }
}

/// Processes that can have caches in one images_dir at the same time.
const MAX_CACHES: u32 = 16;

impl CacheConfig {
    /// The cache of an images_dir that takes `limit_bytes` of the disk.
    pub fn in_images_dir(images: &ImagesDir, limit_bytes: u64) -> Self {
        let within = Some(images.dir().clone());
        Self { within, ..Self::new(images.cache_dir(), limit_bytes) }
    }
}

/// What a cache holds, and what it has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes of the disk in use.
    pub held_bytes: u64,
    /// Bytes of the disk that may be used.
    pub limit_bytes: u64,
    /// Blobs of which something is here.
    pub blobs: usize,
    /// Blobs of which everything is here, verified.
    pub complete: usize,
    /// Bytes that sources have sent.
    pub fetched_bytes: u64,
    /// Requests to sources.
    pub requests: u64,
    /// Reads that have been answered.
    pub reads: u64,
    /// Of them, those for which nothing had to be fetched.
    pub hits: u64,
    /// Bytes that have been evicted.
    pub evicted_bytes: u64,
    /// Requests that failed, blobs that were not what they should be, and refusals of the disk.
    pub errors: u64,
}

/// A cache. Clones are the same.
#[derive(Clone)]
pub struct Cache {
    core: Arc<Core>,
}

struct Core {
    me: Weak<Core>,
    dir: PathBuf,
    /// The same: all files are reached through this.
    root: ConfinedDir,
    limit_bytes: u64,
    /// What of that blocks and maps may take. The rest is for directories and for what the file
    /// system needs to find the blocks.
    room_bytes: u64,
    first_window_bytes: u64,
    max_window_bytes: u64,
    /// Requests that run at once for one reader, at most.
    connections: usize,
    extent_blocks: u32,
    /// Blocks that may wait in memory to be hashed.
    feed_blocks: usize,
    /// Bytes that may be taken by what is remembered of blocks that have gone.
    known_bytes: usize,
    _memory: Reservation,
    tasks: Tasks,
    slots: Arc<Slots>,
    /// For streams: they wait for requests, which must not have to wait for them.
    stream_slots: Arc<Slots>,
    /// Requests that are under way.
    fetching: AtomicUsize,
    /// Names for what is to be removed, and numbers of handles.
    gone: AtomicU64,
    origins: AtomicUsize,
    state: Mutex<State>,
    saved: Mutex<Instant>,
    /// Held as long as this is in use.
    lock_file: File,
    #[cfg(test)]
    fails_to_write: std::sync::atomic::AtomicBool,
}

/// Who sees to it that what a handle reads is right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// The cache, by the digest of everything.
    Digest,
    /// Whoever reads it.
    Reader,
    /// Whoever makes it: it is a stream.
    Source,
}

impl Cache {
    /// Opens the cache in `config.dir`, or creates it. What it does, it does in the runtime that
    /// this is called in.
    ///
    /// [`Kind::Config`] if another process has it open, if it is of a newer version, or if this is
    /// not called in a runtime; [`Kind::Memory`] if the budget has no room for it.
    pub fn open(config: CacheConfig) -> Result<Self> {
        let opening = || format!("opening {}", config.dir.display());
        let runtime = Handle::try_current()
            .map_err(|e| Error::new(SIDE, opening(), Kind::Config(e.to_string())))?;
        Self::open_with(config, Tasks::Runtime(runtime))
    }

    /// Opens the cache in `given`, or else the first of the images_dir that no other process has open, with at most
    /// `limit_bytes` on the disk. Where it is comes first. `adapt` sets what is not a matter of where it is.
    pub fn open_free(
        dir: &ImagesDir,
        given: Option<&Path>,
        limit_bytes: u64,
        adapt: impl Fn(CacheConfig) -> CacheConfig,
    ) -> (PathBuf, Result<Self>) {
        let open = |path: &Path| {
            let config = match path.starts_with(dir.root()) {
                true => CacheConfig {
                    dir: path.to_owned(),
                    ..CacheConfig::in_images_dir(dir, limit_bytes)
                },
                false => CacheConfig::new(path.to_owned(), limit_bytes),
            };
            Self::open(adapt(config))
        };
        if let Some(path) = given {
            return (path.to_owned(), open(path));
        }
        let first = dir.cache_dir();
        let mut path = first.clone();
        let mut opened = open(&path);
        for number in 2..=MAX_CACHES {
            if !opened.as_ref().is_err_and(Error::is_in_use) {
                break;
            }
            let mut name = first.clone().into_os_string();
            name.push(format!("-{number}"));
            path = name.into();
            opened = open(&path);
        }
        (path, opened)
    }

    fn open_with(config: CacheConfig, tasks: Tasks) -> Result<Self> {
        let opening = format!("opening {}", config.dir.display());
        let (root, lock, version) = load::lock(&config.dir, config.within.as_ref())?;
        // Those of streams take memory that is counted where they are made.
        let requests = REQUEST_BYTES.saturating_mul(config.max_requests as u64);
        let memory = config.budget.reserve(requests.saturating_add(config.memory_bytes as u64));
        let memory = memory.map_err(|e| Error::new(SIDE, &opening, e))?;
        let extents = (config.limit_bytes / 16 / BLOCK_BYTES).clamp(1, EXTENT_BLOCKS);
        let margin = config.limit_bytes / 128 + (16 << 10);
        let core = Arc::new_cyclic(|me| Core {
            me: me.clone(),
            limit_bytes: config.limit_bytes,
            room_bytes: config.limit_bytes.saturating_sub(margin),
            first_window_bytes: config.first_window_bytes,
            max_window_bytes: config.max_window_bytes,
            connections: config.connections_per_blob,
            // At most `EXTENT_BLOCKS`.
            extent_blocks: extents as u32,
            feed_blocks: (config.memory_bytes / FED_PART / BLOCK_BYTES as usize).max(1),
            known_bytes: config.memory_bytes / KNOWN_PART,
            _memory: memory,
            tasks,
            slots: Slots::new(config.max_requests),
            stream_slots: Slots::new(STREAMS_AT_ONCE),
            fetching: AtomicUsize::new(0),
            gone: AtomicU64::new(0),
            origins: AtomicUsize::new(1),
            state: Mutex::new(State::new(config.memory_bytes / LATELY_PART)),
            saved: Mutex::new(Instant::now()),
            dir: config.dir,
            root,
            lock_file: lock,
            #[cfg(test)]
            fails_to_write: std::sync::atomic::AtomicBool::new(false),
        });
        core.load(version).map_err(|e| Error::new(SIDE, &opening, e))?;
        core.shrink();
        Ok(Self { core })
    }

    /// A handle for reading `blob`, which is fetched from the first of `repositories` that has it
    /// at `source`.
    pub fn blob(
        &self,
        source: Arc<dyn Blobs>,
        repositories: Vec<Repository>,
        blob: &Descriptor,
    ) -> CachedBlob {
        self.handle(source, repositories, blob, Trust::Digest)
    }

    /// The same for those who compare what they read with digests of parts: nothing is held back
    /// from them, and the digest of everything is not computed for their sake.
    pub fn parts(
        &self,
        source: Arc<dyn Blobs>,
        repositories: Vec<Repository>,
        blob: &Descriptor,
    ) -> CachedBlob {
        self.handle(source, repositories, blob, Trust::Reader)
    }

    /// A handle for reading the decompressed stream of `layer`, of `size` bytes, which `source` makes
    /// and has checked before it gives it: so nothing is hashed and nothing held back.
    ///
    /// `id` names the stream. Two streams whose bytes can differ must not have the same. Streams and
    /// blobs have nothing to do with each other here, whatever they are called.
    pub fn stream(
        &self,
        source: Arc<dyn Blobs>,
        repository: Repository,
        layer: &Descriptor,
        id: StreamId,
        size: u64,
    ) -> CachedBlob {
        let key = Key { content: ContentId::Stream(id), size };
        self.open_handle(key, source, vec![repository], layer, Trust::Source)
    }

    fn handle(
        &self,
        source: Arc<dyn Blobs>,
        repositories: Vec<Repository>,
        blob: &Descriptor,
        trust: Trust,
    ) -> CachedBlob {
        let key = Key { content: ContentId::Blob(blob.digest), size: blob.size };
        self.open_handle(key, source, repositories, blob, trust)
    }

    fn open_handle(
        &self,
        key: Key,
        source: Arc<dyn Blobs>,
        repositories: Vec<Repository>,
        blob: &Descriptor,
        trust: Trust,
    ) -> CachedBlob {
        let core = &self.core;
        core.enter(&key, trust);
        let origin = Source {
            id: core.origins.fetch_add(1, Ordering::Relaxed),
            source,
            repositories,
            blob: blob.clone(),
        };
        CachedBlob::new(core.clone(), key, Arc::new(origin), trust)
    }

    /// Bytes that sources have sent of the blob `digest` since the cache was opened, as far as anything is
    /// remembered of it.
    pub fn fetched_bytes(&self, digest: &Digest) -> u64 {
        let state = self.core.lock();
        let of_blob = state.blobs.iter().filter(|(key, _)| key.content == ContentId::Blob(*digest));
        of_blob.map(|(_, blob)| blob.fetched_bytes).sum()
    }

    /// What it holds and has done.
    pub fn stats(&self) -> CacheStats {
        let state = self.core.lock();
        let is_whole = |blob: &&Blob| matches!(blob.disk.place, Place::Whole(_));
        CacheStats {
            held_bytes: state.used,
            limit_bytes: self.core.limit_bytes,
            blobs: state
                .blobs
                .values()
                .filter(|blob| is_whole(blob) || blob.disk.stored > 0)
                .count(),
            complete: state.blobs.values().filter(is_whole).count(),
            ..state.counts
        }
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        tasks::point();
        // What a dead thread has left may be out of date, but never says that a block is there
        // which is not.
        locked(&self.state)
    }

    /// Counts one more handle of a blob, which may be new.
    fn enter(&self, key: &Key, trust: Trust) {
        let mut state = self.lock();
        let state = &mut *state;
        if !state.blobs.contains_key(key) {
            let place = self.place_for(state, key);
            let id = state.number();
            let blocks = Key { size: key.size.min(read::MAX_SIZE), ..*key };
            state.blobs.insert(*key, Blob::new(id, &blocks, self.extent_blocks, place));
        }
        if let Some(blob) = state.blobs.get_mut(key) {
            blob.readers.handles += 1;
            if trust == Trust::Digest {
                blob.verification.is_wanted = true;
                blob.fix(&mut state.memory);
            }
        }
    }

    /// Where requests for some content get their places.
    fn slots(&self, key: &Key) -> &Arc<Slots> {
        if key.content.is_stream() { &self.stream_slots } else { &self.slots }
    }

    /// Whether a new blob may have files: of several sizes of a digest one can be right.
    fn place_for(&self, state: &mut State, key: &Key) -> Place {
        if let Some(size) = state.owners.get(&key.content).copied() {
            let owner = Key { size, ..*key };
            match state.blobs.get(&owner) {
                Some(blob) if matches!(blob.disk.place, Place::Whole(_)) => {
                    return Place::OtherSize(size);
                }
                Some(blob) if !blob.is_idle() || blob.disk.sealing => return Place::Nowhere,
                _ => self.reset(state, &owner, Place::Nowhere),
            }
            if state.blobs.contains_key(&owner) {
                return Place::Nowhere;
            }
        }
        state.owners.insert(key.content, key.size);
        Place::New
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.save_recent();
        // A process that is being started by another thread has it, too, for a moment.
        let _ = self.lock_file.unlock();
    }
}
