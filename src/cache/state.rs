//! What is known of the cache's blobs, all under one lock that is never held during input or
//! output (but for creating and renaming files, and where a file is opened that is closed meanwhile).

use std::{collections::HashMap, ops::Range, time::Instant};

use lru::LruCache;

use super::{
    CacheStats,
    memory::Memory,
    readers::{Failed, Readers},
    requests::Requests,
    stored::{Place, Stored},
    verification::Verification,
};
use crate::backend::images_dir::cached::{self, ContentId};

/// What names content here. Descriptors that state different sizes for a digest, of which at most
/// one can be right, have nothing to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub content: ContentId,
    pub size: u64,
}

/// In place of the number of an extent: the file of a whole blob.
pub(super) const WHOLE: u32 = u32::MAX;

pub(super) struct State {
    pub blobs: HashMap<Key, Blob>,
    /// Which size of some content has the files.
    pub owners: HashMap<ContentId, u64>,
    /// In which order extents and whole blobs were used. Its bound is that of the disk.
    pub lru: LruCache<(Key, u32), ()>,
    pub memory: Memory,
    /// Bytes that are taken by what is remembered of blocks that have gone, or more: what is dropped with its
    /// blob is still in it until the next time that it is counted.
    pub known_bytes: usize,
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
            known_bytes: 0,
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
        if unit == WHOLE || blob.disk.extents.get(&unit).is_some_and(|extent| !extent.leaving) {
            self.lru.put((*key, unit), ());
        }
    }

    /// Takes everything of a blob out of the order of use.
    pub(super) fn forget_use(&mut self, key: &Key, blob: &Blob) {
        for unit in blob.disk.extents.keys().chain([&WHOLE]) {
            self.lru.pop(&(*key, *unit));
        }
    }
}

/// A blob that is known: on the disk, or in use. Its parts change for reasons of their own; what holds for each
/// is said there. What takes more than one of them is here.
pub(super) struct Blob {
    /// Changes when all that is known of the blob is dropped.
    pub id: u64,
    pub content: ContentId,
    pub size: u64,
    /// Bytes that sources have sent of it.
    pub fetched_bytes: u64,
    pub blocks: u32,
    pub disk: Stored,
    pub verification: Verification,
    pub requests: Requests,
    pub readers: Readers,
}

impl Blob {
    pub(super) fn new(id: u64, key: &Key, extent_blocks: u32, place: Place) -> Self {
        Self {
            id,
            content: key.content,
            size: key.size,
            fetched_bytes: 0,
            // Handles see to it that the number is small enough.
            blocks: cached::block_count(key.size) as u32,
            disk: Stored::new(key, extent_blocks, place),
            verification: Verification::new(key),
            requests: Requests::new(),
            readers: Readers::default(),
        }
    }

    /// The same blob, of which nothing is known any more. Those who have it open keep it open.
    pub(super) fn begin_anew(&mut self, id: u64, key: &Key, place: Place) -> Self {
        Self {
            verification: self.verification.begin_anew(key),
            requests: self.requests.begin_anew(),
            readers: self.readers.begin_anew(),
            fetched_bytes: self.fetched_bytes,
            ..Self::new(id, key, self.disk.extent_blocks, place)
        }
    }

    /// Whether all content is known to be right: by its digest, or because it is a stream, which
    /// whoever makes it has checked. What it is was decided when the entry was made.
    pub(super) fn is_verified(&self) -> bool {
        self.verification.verified || self.content.is_stream()
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

    /// Whether a block is here, if not to be given out.
    pub(super) fn has(&self, block: u32, memory: &Memory) -> bool {
        self.disk.sum(block).is_some() || memory.has(self.id, block)
    }

    /// Whether nobody uses it and nothing is done for it.
    pub(super) fn is_idle(&self) -> bool {
        self.readers.handles == 0
            && self.requests.jobs.is_empty()
            && self.disk.writing.is_empty()
            && !self.verification.prefix.running
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
        self.has(block, memory) || self.requests.is_coming(block)
    }

    /// From now on, what is given to readers stays what it is; see [`Verification::is_fixed`].
    pub(super) fn fix(&mut self, memory: &mut Memory) {
        if !std::mem::replace(&mut self.verification.is_fixed, true) {
            // These could go without being remembered.
            memory.forget_released(self.id);
        }
    }

    /// Whether it has to be remembered what a block was that goes away.
    pub(super) fn is_remembered(&self, block: u32) -> bool {
        let is_wanted = self.verification.is_fixed || block < self.verification.prefix.to;
        is_wanted
            && !self.content.is_stream()
            && self.verification.prefix.known.get(block).is_none()
    }

    /// Whether a block is the one that is held back.
    pub(super) fn is_held_back(&self, block: u32) -> bool {
        !self.is_verified() && block + 1 == self.blocks
    }

    /// Whether somebody waits for the block that is held back.
    pub(super) fn is_last_awaited(&self) -> bool {
        !self.is_verified() && !self.readers.last_waiters.is_empty()
    }

    /// Notes that everything is right: nothing is held back any more.
    pub(super) fn set_verified(&mut self) {
        self.verification.verified = true;
        if let Some(last) = self.blocks.checked_sub(1) {
            self.readers.release_last(last);
        }
    }

    /// Tells those who wait for any of `blocks` that they wait in vain; returns how many.
    pub(super) fn fail(&mut self, blocks: Range<u32>, failed: &Failed) -> usize {
        let also_last = self.blocks.checked_sub(1).is_some_and(|last| blocks.contains(&last));
        self.readers.fail(blocks, also_last, failed)
    }

    /// Begins the digest anew.
    pub(super) fn restart_prefix(&mut self, key: &Key) {
        self.verification.restart(key);
        self.requests.wake();
    }
}
