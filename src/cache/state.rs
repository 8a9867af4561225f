//! What is known of the cache's blobs, all under one lock that is never held during input or
//! output (but for opening and renaming files).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs::File,
    future::Future,
    ops::Range,
    pin::Pin,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::{Notify, oneshot};

use super::{CacheStats, Core, memory::Memory, window::Windows};
use crate::{
    backend::{
        Error,
        images_dir::cached::{self, ContentId},
    },
    image::Hasher,
};

/// What names content here. Descriptors that state different sizes for a digest, of which at most
/// one can be right, have nothing to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub content: ContentId,
    pub size: u64,
}

/// In place of the number of an extent: the file of a whole blob.
pub(super) const WHOLE: u32 = u32::MAX;

/// A reader that waits for a block.
pub(super) type Waiter = oneshot::Sender<Result<Bytes, Failed>>;

/// Why a block did not come.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub error: Error,
    /// Whether a handle with other repositories has tried.
    pub origin: usize,
}

/// Where a blob can be fetched from.
pub(super) trait Origin: Send + Sync {
    /// Fetches what `job` says, and tells the cache how that has ended.
    fn fetch(
        self: Arc<Self>,
        core: Arc<Core>,
        key: Key,
        job: Arc<Job>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Tells origins apart.
    fn id(&self) -> usize;
}

pub(super) struct State {
    pub blobs: HashMap<Key, Blob>,
    /// Which size of some content has the files.
    pub owners: HashMap<ContentId, u64>,
    /// In which order extents and whole blobs were used. Its bound is that of the disk.
    pub lru: LruCache<(Key, u32), ()>,
    pub memory: Memory,
    /// Bytes of the disk that are used, or about to be.
    pub used: u64,
    /// Numbers for blobs and jobs.
    numbers: u64,
    /// Nothing is written until then: the disk has refused.
    pub refused_until: Option<Instant>,
    pub warned: bool,
    /// What is counted as it happens; the rest of it is found when somebody asks.
    pub counts: CacheStats,
}

impl State {
    pub(super) fn new(memory_bytes: usize) -> Self {
        Self {
            blobs: HashMap::new(),
            owners: HashMap::new(),
            lru: LruCache::unbounded(),
            memory: Memory::new(memory_bytes),
            used: 0,
            numbers: 0,
            refused_until: None,
            warned: false,
            counts: CacheStats::default(),
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// The blob, if it is still the one with this number.
    pub(super) fn blob(&mut self, key: &Key, id: u64) -> Option<&mut Blob> {
        self.blobs.get_mut(key).filter(|blob| blob.id == id)
    }

    /// Whether nothing is written to the disk for now.
    pub(super) fn is_refused(&self) -> bool {
        self.refused_until.is_some_and(|until| Instant::now() < until)
    }

    /// Marks an extent, or a whole blob, as the one that was used last.
    pub(super) fn touch(&mut self, key: &Key, unit: u32) {
        let Some(blob) = self.blobs.get(key) else { return };
        if unit == WHOLE || blob.extents.get(&unit).is_some_and(|extent| !extent.leaving) {
            self.lru.put((*key, unit), ());
        }
    }

    /// Takes everything of a blob out of the order of use.
    pub(super) fn forget_use(&mut self, key: &Key, blob: &Blob) {
        for unit in blob.extents.keys().chain([&WHOLE]) {
            self.lru.pop(&(*key, *unit));
        }
    }
}

/// Bytes that so many take on the disk.
pub(super) fn disk_bytes(bytes: u64) -> u64 {
    bytes.next_multiple_of(4096)
}

/// Where a blob is on the disk.
pub(super) enum Place {
    /// Nowhere, and it is not to be: another size of the digest has the files.
    Nowhere,
    /// Nowhere yet.
    New,
    /// In parts; the files, while they are open.
    Parts(Option<Arc<Files>>),
    /// In one piece, verified; its file, while it is open.
    Whole(Option<Arc<File>>),
    /// There is a verified blob of the digest, with this other size.
    OtherSize(u64),
}

/// The files of a blob that is here in parts.
pub(super) struct Files {
    pub data: File,
    pub map: File,
}

/// Some neighbouring blocks: what is evicted at once.
pub(super) struct Extent {
    /// The checksums of the blocks that are on the disk; 0 for the others.
    pub sums: Vec<u32>,
    /// Whose checksums have been compared, as bits: those that were written by an earlier process
    /// are when they are first read.
    pub checked: u64,
    /// Blocks that have a place on the disk, as bits.
    pub charged: u64,
    /// Who is reading it at the moment.
    pub pins: u32,
    /// It is being evicted; its blocks are not here any more.
    pub leaving: bool,
}

/// A blob that is known: on the disk, or in use.
pub(super) struct Blob {
    /// Changes when all that is known of the blob is dropped.
    pub id: u64,
    pub content: ContentId,
    pub size: u64,
    pub blocks: u32,
    pub place: Place,
    /// Blocks in an extent.
    pub extent_blocks: u32,
    pub extents: BTreeMap<u32, Extent>,
    /// Blocks on the disk.
    pub stored: u32,
    /// Blocks on their way to the disk.
    pub writing: BTreeSet<u32>,
    /// Bytes of the disk that its files use.
    pub charge: u64,
    pub jobs: Vec<Running>,
    /// Who gets a block as soon as it comes.
    pub waiters: BTreeMap<u32, Vec<Waiter>>,
    /// Who gets the last block when everything has been verified.
    pub last_waiters: Vec<Waiter>,
    /// Somebody wants everything to be verified.
    pub is_digest_wanted: bool,
    /// A block that has been given to a reader stays what it was as long as `id` does: what is not
    /// kept is remembered by its hash, and what comes in its place is compared with that.
    pub is_fixed: bool,
    pub windows: Windows,
    pub prefix: Prefix,
    /// The digest of all blocks, one after the other, has been right.
    pub verified: bool,
    pub sealing: bool,
    pub ignores_ranges: bool,
    /// No read-ahead until then: the source has failed.
    pub quiet_until: Option<Instant>,
    pub origin: Option<Arc<dyn Origin>>,
    /// Blocks that have come since it was opened first.
    pub arrived: u64,
    /// How often its content has turned out to be wrong since it was opened first.
    pub mismatches: u64,
    /// The last of these times.
    pub mismatch: Option<Error>,
    pub handles: u32,
    /// Handles that have given the file away.
    pub lent: u32,
}

/// How far the digest has been computed.
pub(super) struct Prefix {
    /// Changes when it is begun anew.
    pub run: u64,
    /// `None` while the next block is being hashed, and for streams.
    pub hasher: Option<Hasher>,
    /// Blocks that have been hashed.
    pub to: u32,
    /// The next blocks, as they came.
    pub feed: VecDeque<Bytes>,
    pub running: bool,
    /// Of blocks that were here and are not on the disk: what they have to be if they are fetched
    /// again.
    pub known: HashMap<u32, [u8; 32]>,
}

/// A request that is under way.
pub(super) struct Running {
    pub job: Arc<Job>,
    /// The blocks that are to come.
    pub next: u32,
    pub end: u32,
    /// All of the content comes, whatever is asked for.
    pub is_stream: bool,
}

/// What one request is to fetch.
pub(super) struct Job {
    pub id: u64,
    /// Of which [`super::window::Window`].
    pub window: u64,
    /// Of the [`Blob`].
    pub blob: u64,
    pub range: Range<u32>,
    /// Somebody waits for it.
    pub urgent: bool,
    /// It is for somebody who waits for the last block, and so for all others.
    pub for_last: bool,
    pub stop: Notify,
    /// A reader has moved.
    pub moved: Notify,
}

impl Blob {
    pub(super) fn new(id: u64, key: &Key, extent_blocks: u32, place: Place) -> Self {
        Self {
            id,
            content: key.content,
            size: key.size,
            // Handles see to it that the number is small enough.
            blocks: cached::block_count(key.size) as u32,
            place,
            extent_blocks,
            extents: BTreeMap::new(),
            stored: 0,
            writing: BTreeSet::new(),
            charge: 0,
            jobs: Vec::new(),
            waiters: BTreeMap::new(),
            last_waiters: Vec::new(),
            is_digest_wanted: false,
            is_fixed: false,
            windows: Windows::default(),
            prefix: Prefix::new(key),
            verified: false,
            sealing: false,
            ignores_ranges: false,
            quiet_until: None,
            origin: None,
            arrived: 0,
            mismatches: 0,
            mismatch: None,
            handles: 0,
            lent: 0,
        }
    }

    /// Whether all content is known to be right: by its digest, or because it is a stream, which
    /// whoever makes it has checked. What it is was decided when the entry was made.
    pub(super) fn is_verified(&self) -> bool {
        self.verified || self.content.is_stream()
    }

    /// Bytes of a block.
    pub(super) fn length(&self, block: u32) -> usize {
        cached::block_length(self.size, u64::from(block))
    }

    /// The blocks that hold the bytes `range`, which is not empty.
    pub(super) fn blocks_of(range: &Range<u64>) -> Range<u32> {
        // Blobs are small enough for that.
        let first = (range.start / cached::BLOCK_BYTES) as u32;
        first..range.end.div_ceil(cached::BLOCK_BYTES) as u32
    }

    /// The extent of a block, and which one in it that is.
    pub(super) fn extent_of(&self, block: u32) -> (u32, usize) {
        (block / self.extent_blocks, (block % self.extent_blocks) as usize)
    }

    /// The checksum of a block that is on the disk, and whether that has been compared.
    pub(super) fn sum(&self, block: u32) -> Option<(u32, bool)> {
        let (extent, at) = self.extent_of(block);
        let extent = self.extents.get(&extent).filter(|extent| !extent.leaving)?;
        let sum = extent.sums.get(at).copied().filter(|sum| *sum != 0)?;
        Some((sum, extent.checked >> at & 1 == 1))
    }

    /// Whether a block is on the disk and somebody may have read it, or hashed it.
    pub(super) fn was_given(&self, block: u32) -> bool {
        // Nobody is given what an earlier process has left before it has been compared.
        self.sum(block).is_some_and(|(_, checked)| checked)
    }

    /// Notes that a block is on the disk.
    pub(super) fn put_sum(&mut self, block: u32, sum: u32, checked: bool) {
        let (extent, at) = self.extent_of(block);
        let blocks = self.extent_blocks as usize;
        let extent = self.extents.entry(extent).or_insert_with(|| Extent {
            sums: vec![0; blocks],
            checked: 0,
            charged: 0,
            pins: 0,
            leaving: false,
        });
        self.stored += u32::from(extent.sums[at] == 0);
        extent.sums[at] = sum;
        extent.checked = extent.checked & !(1 << at) | u64::from(checked) << at;
        extent.charged |= 1 << at;
    }

    /// Whether a block has a place on the disk, whatever is in it.
    pub(super) fn is_charged(&self, block: u32) -> bool {
        let (extent, at) = self.extent_of(block);
        self.extents.get(&extent).is_some_and(|extent| extent.charged >> at & 1 == 1)
    }

    /// Bytes that the blocks of an extent have on the disk.
    pub(super) fn charge_of(&self, number: u32) -> u64 {
        let Some(extent) = self.extents.get(&number) else { return 0 };
        let first = number * self.extent_blocks;
        let has_place = |at: &u32| extent.charged >> at & 1 == 1;
        let lengths = (0..self.extent_blocks).filter(has_place);
        lengths.map(|at| disk_bytes(self.length(first + at) as u64)).sum()
    }

    /// Notes that a block is not on the disk any more.
    pub(super) fn drop_sum(&mut self, block: u32) {
        let (extent, at) = self.extent_of(block);
        if let Some(extent) = self.extents.get_mut(&extent)
            && extent.sums[at] != 0
        {
            extent.sums[at] = 0;
            extent.checked &= !(1 << at);
            self.stored -= 1;
        }
    }

    /// Whether the extent of `block` is being evicted.
    pub(super) fn is_leaving(&self, block: u32) -> bool {
        self.extents.get(&self.extent_of(block).0).is_some_and(|extent| extent.leaving)
    }

    /// Whether a block is on the disk, or will be in a moment.
    pub(super) fn is_kept(&self, block: u32) -> bool {
        self.writing.contains(&block) || self.sum(block).is_some()
    }

    /// Whether a block is here, if not to be given out.
    pub(super) fn has(&self, block: u32, memory: &Memory) -> bool {
        self.sum(block).is_some() || memory.has(self.id, block)
    }

    /// Whether a block is being fetched.
    pub(super) fn is_coming(&self, block: u32) -> bool {
        self.jobs.iter().any(|job| (job.next..job.end).contains(&block))
    }

    /// Whether nobody uses it and nothing is done for it.
    pub(super) fn is_idle(&self) -> bool {
        self.handles == 0 && self.jobs.is_empty() && self.writing.is_empty() && !self.prefix.running
    }

    /// The end of the blocks from `start` on, up to `limit`, that are neither here nor coming.
    pub(super) fn missing_run(&self, start: u32, limit: u32, memory: &Memory) -> u32 {
        let limit = limit.min(self.blocks);
        let mut end = start;
        while end < limit && !self.is_settled(end, memory) {
            end += 1;
        }
        // One request less in the end.
        let is_rest = end == limit && end + 1 == self.blocks && end > start;
        if is_rest && !self.is_settled(end, memory) { end + 1 } else { end }
    }

    /// The first of `blocks` that is neither here nor coming.
    pub(super) fn first_missing(&self, blocks: Range<u32>, memory: &Memory) -> Option<u32> {
        let mut blocks = blocks.start..blocks.end.min(self.blocks);
        blocks.find(|block| !self.is_settled(*block, memory))
    }

    /// Whether nothing has to be done for a block to be here soon.
    pub(super) fn is_settled(&self, block: u32, memory: &Memory) -> bool {
        self.has(block, memory) || self.is_coming(block)
    }

    /// From now on, what is given to readers stays what it is; see [`Blob::is_fixed`].
    pub(super) fn fix(&mut self, memory: &mut Memory) {
        if !std::mem::replace(&mut self.is_fixed, true) {
            // These could go without being remembered.
            memory.forget_released(self.id);
        }
    }

    /// Whether it has to be remembered what a block was that goes away.
    pub(super) fn is_remembered(&self, block: u32) -> bool {
        let is_wanted = self.is_fixed || block < self.prefix.to;
        is_wanted && !self.content.is_stream() && !self.prefix.known.contains_key(&block)
    }

    /// Whether a block is the one that is held back.
    pub(super) fn is_held_back(&self, block: u32) -> bool {
        !self.is_verified() && block + 1 == self.blocks
    }

    /// Whether somebody waits for the block that is held back.
    pub(super) fn is_last_awaited(&self) -> bool {
        !self.is_verified() && !self.last_waiters.is_empty()
    }

    /// Forgets readers that have gone away.
    pub(super) fn prune_waiters(&mut self) {
        self.last_waiters.retain(|waiter| !waiter.is_closed());
        self.waiters.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
    }

    /// Notes that everything is right: nothing is held back any more.
    pub(super) fn set_verified(&mut self) {
        self.verified = true;
        if let Some(last) = self.blocks.checked_sub(1)
            && !self.last_waiters.is_empty()
        {
            self.waiters.entry(last).or_default().append(&mut self.last_waiters);
        }
    }

    /// Gives a block to those who wait for it.
    pub(super) fn give(&mut self, block: u32, bytes: &Bytes) {
        for waiter in self.waiters.remove(&block).unwrap_or_default() {
            // Who has gone away does not want it.
            let _ = waiter.send(Ok(bytes.clone()));
        }
    }

    /// Tells those who wait for any of `blocks` that they wait in vain; returns how many.
    pub(super) fn fail(&mut self, blocks: Range<u32>, failed: &Failed) -> usize {
        let mut told = 0;
        if self.blocks.checked_sub(1).is_some_and(|last| blocks.contains(&last)) {
            for waiter in self.last_waiters.drain(..) {
                told += usize::from(waiter.send(Err(failed.clone())).is_ok());
            }
        }
        let all: Vec<u32> = self.waiters.range(blocks).map(|(block, _)| *block).collect();
        for block in all {
            for waiter in self.waiters.remove(&block).unwrap_or_default() {
                told += usize::from(waiter.send(Err(failed.clone())).is_ok());
            }
        }
        told
    }

    /// Ends all requests.
    pub(super) fn stop_jobs(&mut self) {
        for running in self.jobs.drain(..) {
            running.job.stop.notify_one();
        }
    }

    /// Lets requests that wait look whether they can go on.
    pub(super) fn wake_jobs(&self) {
        self.jobs.iter().for_each(|running| running.job.moved.notify_one());
    }

    /// Begins the digest anew.
    pub(super) fn restart_prefix(&mut self, key: &Key) {
        let run = self.prefix.run + 1;
        self.prefix = Prefix { run, ..Prefix::new(key) };
        self.verified = false;
        self.wake_jobs();
    }
}

impl Prefix {
    fn new(key: &Key) -> Self {
        Self {
            run: 0,
            hasher: match key.content {
                ContentId::Blob(digest) => Some(Hasher::new(digest.algorithm())),
                ContentId::Stream(_) => None,
            },
            to: 0,
            feed: VecDeque::new(),
            running: false,
            known: HashMap::new(),
        }
    }
}
