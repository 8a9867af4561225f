//! Reading a blob through the cache.

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Core, SIDE, Trust,
    readers::Failed,
    requests::Origin,
    state::{Blob, Key, State, WHOLE},
    stored::{Files, Place},
    tasks::point,
    window::Habit,
};
use crate::{
    backend::{
        Error, Kind, Result,
        images_dir::cached::{self, BLOCK_BYTES, ContentId},
    },
    image::Digest,
    util::{filled, joined, read_cached},
};

/// The largest blob that is read, in bytes: far above what any registry takes.
pub(super) const MAX_SIZE: u64 = 1 << 46;

/// What is asked for at once for somebody who reads parts, and has not come far yet: few read on for long, because
/// files end. Of a stream what is decompressed, of a blob what is fetched.
const STREAM_AHEAD_BYTES: u64 = 2 << 20;
const PARTS_AHEAD_BYTES: u64 = 512 << 10;

/// A blob that is read through the cache. Clones are the same handle; as long as one is there, the
/// blob counts as open.
#[derive(Clone)]
pub struct CachedBlob {
    handle: Arc<Handle>,
}

struct Handle {
    core: Arc<Core>,
    key: Key,
    origin: Arc<dyn Origin>,
    /// Whoever reads compares digests of parts by itself.
    checks_itself: bool,
    /// It counts as open for a moment after it has been closed: programs that read an image read one file after
    /// the other, and each of them is open for as long as it is read.
    lingers: bool,
    habit: Habit,
    /// The file has been given to somebody.
    lent: AtomicBool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.core.lock();
        let Some(blob) = state.blobs.get_mut(&self.key) else { return };
        blob.readers.handles = blob.readers.handles.saturating_sub(1);
        blob.readers.lent =
            blob.readers.lent.saturating_sub(u32::from(self.lent.load(Ordering::Relaxed)));
        if blob.readers.handles == 0 {
            if blob.requests.abandon(&mut blob.readers.windows) {
                self.core.stop_later(self.key, blob.id);
            }
            if self.lingers {
                self.core.close_later(self.key, blob);
            }
        }
        self.core.settle(&mut state, &self.key);
    }
}

/// Says which content somebody has begun to hash; see [`CachedBlob::begin_hashing`].
#[derive(Debug)]
pub struct Hashing {
    /// Of the [`Blob`].
    id: u64,
}

/// One block of a read.
enum Piece {
    Memory(Bytes),
    Disk,
    Awaited(oneshot::Receiver<std::result::Result<Bytes, Failed>>),
}

/// What a read found.
enum Found {
    Whole(Arc<File>),
    Blocks(Vec<Piece>, Option<Pins>),
}

/// How an attempt to read has gone wrong.
enum Trouble {
    /// Something has changed: look again.
    Again,
    Failed(Failed),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Failed(Failed { error, origin: 0 })
    }
}

impl CachedBlob {
    pub(super) fn new(core: Arc<Core>, key: Key, origin: Arc<dyn Origin>, trust: Trust) -> Self {
        let handle = Handle {
            checks_itself: trust == Trust::Reader,
            lingers: trust != Trust::Digest,
            habit: match trust {
                Trust::Digest => Habit::of_kernel(core.max_window_bytes),
                Trust::Reader => Habit::in_order(core.max_window_bytes.min(PARTS_AHEAD_BYTES)),
                Trust::Source => Habit::of_stream(core.max_window_bytes.min(STREAM_AHEAD_BYTES)),
            },
            core,
            key,
            origin,
            lent: AtomicBool::new(false),
        };
        Self { handle: Arc::new(handle) }
    }

    /// The size of the blob in bytes, as its descriptor states it.
    pub fn size(&self) -> u64 {
        self.handle.key.size
    }

    /// What it is. `reading {content}` says it in messages.
    pub fn content(&self) -> ContentId {
        self.handle.key.content
    }

    /// Blocks of it that have come, from the source and not from the disk: while they become more,
    /// whoever waits does not wait in vain.
    pub fn arrived_blocks(&self) -> u64 {
        let state = self.handle.core.lock();
        state.blobs.get(&self.handle.key).map_or(0, |blob| blob.requests.arrived)
    }

    /// How often the content has turned out to be wrong. Whoever has read something before it
    /// changes has perhaps read wrong bytes.
    pub fn mismatches(&self) -> u64 {
        let state = self.handle.core.lock();
        state.blobs.get(&self.handle.key).map_or(0, |blob| blob.verification.mismatches)
    }

    /// What was wrong, if it has been since [`CachedBlob::mismatches`] was so many.
    pub fn mismatch_since(&self, mismatches: u64) -> Option<Error> {
        let state = self.handle.core.lock();
        let blob = state.blobs.get(&self.handle.key)?;
        blob.verification.mismatch.clone().filter(|_| blob.verification.mismatches != mismatches)
    }

    /// Drops what is here of it, because somebody has found out that it is wrong. For all others who
    /// have begun to read it that counts as a mismatch.
    pub fn discard(&self) {
        let Handle { core, key, .. } = &*self.handle;
        let reason = "its content was found to be wrong and has been dropped".to_owned();
        let doing = format_args!("reading {}", key.content);
        let error = Error::new(SIDE, doing, Kind::Interrupted(reason));
        core.distrust(&mut core.lock(), key, error);
    }

    /// To be called before the first read by somebody who reads all of the blob and computes its
    /// digest. If that is right, [`CachedBlob::vouch`] takes what this returns.
    pub fn begin_hashing(&self) -> Hashing {
        let Handle { core, key, .. } = &*self.handle;
        let mut state = core.lock();
        let state = &mut *state;
        let id = state.blobs.get_mut(key).map_or(0, |blob| {
            blob.fix(&mut state.memory);
            blob.id
        });
        Hashing { id }
    }

    /// Notes that all of it has been read since `hashing` was begun, and had the right digest.
    ///
    /// Nothing happens if what is in the cache now is not what was there then: as long as the entry
    /// is the same, each of its blocks is what was read.
    pub fn vouch(&self, hashing: &Hashing) {
        let Handle { core, key, .. } = &*self.handle;
        let mut state = core.lock();
        let Some(blob) = state.blob(key, hashing.id) else { return };
        blob.set_verified();
        core.seal_if_whole(&mut state, key);
        core.pump(&mut state, key);
    }

    /// Whether all of it is here and has been verified.
    pub fn is_whole(&self) -> bool {
        let state = self.handle.core.lock();
        let blob = state.blobs.get(&self.handle.key);
        blob.is_some_and(|blob| matches!(blob.disk.place, Place::Whole(_)))
    }

    /// Whether all of it is here, though perhaps nobody has verified it yet.
    pub fn is_complete(&self) -> bool {
        let state = self.handle.core.lock();
        let Some(blob) = state.blobs.get(&self.handle.key) else { return false };
        let whole = 0..self.handle.key.size;
        matches!(blob.disk.place, Place::Whole(_))
            || Blob::blocks_of(&whole).all(|block| blob.has(block, &state.memory))
    }

    /// The same handle for somebody who is going to read all of it, in order.
    #[must_use]
    pub fn for_all(mut self) -> Self {
        let all = self.handle.core.max_window_bytes;
        if let Some(handle) = Arc::get_mut(&mut self.handle) {
            handle.habit.ahead_bytes = all;
        }
        self
    }

    /// The bytes from `offset` on, `length` of them or as many as there are before the end.
    ///
    /// Waits for what is missing, as long as the source does not give up. The last block comes
    /// when the digest of all of them has been found to be right; if it is not, that is
    /// [`Kind::Digest`] for all who wait, and nothing of the blob is kept. Any number of reads
    /// may be under way at once; after an error the next one tries again.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        self.read_before(self.size(), offset, length).await
    }

    /// The same for somebody who reads what ends at the byte `end`. Nothing behind that is asked for ahead, unless it
    /// has been gone on with before.
    pub async fn read_before(&self, end: u64, offset: u64, length: usize) -> Result<Bytes> {
        let Some(range) = self.range(offset, length)? else { return Ok(Bytes::new()) };
        let mut has_asked_itself = false;
        let mut has_waited = false;
        loop {
            match self.attempt(&range, end, &mut has_waited).await {
                Ok(bytes) => {
                    let counts = &mut self.handle.core.lock().counts;
                    counts.reads += 1;
                    counts.hits += u64::from(!has_waited);
                    return Ok(bytes);
                }
                Err(Trouble::Again) => tokio::task::yield_now().await,
                // Another handle's repositories do not give it; perhaps ours do.
                Err(Trouble::Failed(failed))
                    if failed.error.is_refusal()
                        && failed.origin != self.handle.origin.id()
                        && !has_asked_itself =>
                {
                    has_asked_itself = true;
                }
                Err(Trouble::Failed(failed)) => return Err(failed.error),
            }
        }
    }

    /// The same without waiting, not even for the disk, but to open the blob's files: `None` if not all of the
    /// bytes are in memory, or not all may be given out.
    pub fn try_read(&self, offset: u64, length: usize) -> Option<Result<Bytes>> {
        self.try_read_before(self.size(), offset, length)
    }

    /// What [`CachedBlob::try_read`] is to [`CachedBlob::read`], for [`CachedBlob::read_before`].
    pub fn try_read_before(&self, end: u64, offset: u64, length: usize) -> Option<Result<Bytes>> {
        let range = match self.range(offset, length) {
            Ok(Some(range)) => range,
            Ok(None) => return Some(Ok(Bytes::new())),
            Err(error) => return Some(Err(error)),
        };
        // They are closed whenever nobody reads, which is after each small file of an image. To hand that to
        // another thread would cost more than the read.
        self.handle.core.open_files(&self.handle.key);
        let found = self.handle.look(&range, end, false)?;
        let bytes = match found {
            Ok(Found::Whole(file)) => read_file_now(&file, &range)?,
            Ok(Found::Blocks(pieces, pins)) => {
                let disk = match &pins {
                    Some(pins) => pins.read(&range, &pieces, true)?,
                    None => Vec::new(),
                };
                let memory = pieces.into_iter().map(|piece| match piece {
                    Piece::Memory(bytes) => Some(bytes),
                    Piece::Disk | Piece::Awaited(_) => None,
                });
                join(&range, memory.collect(), disk)?
            }
            Err(error) => return Some(Err(error)),
        };
        let counts = &mut self.handle.core.lock().counts;
        counts.reads += 1;
        counts.hits += 1;
        Some(Ok(bytes))
    }

    /// The file that holds the blob, if it is whole and verified: for those who can read it
    /// without help. It stays in the cache as long as this handle.
    pub fn whole_file(&self) -> Option<File> {
        let Handle { core, key, lent, .. } = &*self.handle;
        {
            let mut state = core.lock();
            let blob = state.blobs.get_mut(key)?;
            if !matches!(blob.disk.place, Place::Whole(_)) {
                return None;
            }
            // From now on it stays there.
            if !lent.swap(true, Ordering::Relaxed) {
                blob.readers.lent += 1;
            }
            state.touch(key, WHOLE);
        }
        core.root.open_file(&key.content.whole_path(&core.dir)).ok().map(|(file, _)| file)
    }

    /// Where it is kept and comes from.
    pub(super) fn place(&self) -> (&Arc<Core>, &Key, &Arc<dyn Origin>) {
        (&self.handle.core, &self.handle.key, &self.handle.origin)
    }

    /// Which bytes a read wants; `None` if there are none.
    pub(super) fn range(&self, offset: u64, length: usize) -> Result<Option<Range<u64>>> {
        let size = self.handle.key.size;
        if size > MAX_SIZE {
            let reason = format!("no blob has {size} bytes");
            return Err(self.handle.error(Kind::Unfit(reason)));
        }
        if let (0, ContentId::Blob(expected)) = (size, self.handle.key.content) {
            let found = Digest::of(expected.algorithm(), b"");
            if found != expected {
                return Err(self.handle.error(Kind::Digest { expected, found }));
            }
        }
        let end = offset.saturating_add(length as u64).min(size);
        Ok((offset < end).then_some(offset..end))
    }

    async fn attempt(
        &self,
        range: &Range<u64>,
        end: u64,
        has_waited: &mut bool,
    ) -> std::result::Result<Bytes, Trouble> {
        let Handle { core, key, .. } = &*self.handle;
        if core.is_closed(key) {
            let (to, key) = (core.clone(), *key);
            let opened = core.tasks.spawn_blocking(move || to.open_files(&key));
            opened.await.map_err(|_| Trouble::Again)?;
        }
        let found = self.handle.look(range, end, true).ok_or(Trouble::Again)??;
        let (pieces, pins) = match found {
            Found::Whole(file) => {
                let (wanted, range) = (file, range.clone());
                let work = move || read_file(&wanted, &range);
                let read = self.handle.core.tasks.spawn_blocking(work).await.ok();
                return match read {
                    Some(Ok(bytes)) => Ok(bytes),
                    // Somebody has damaged it.
                    _ => {
                        self.handle.core.drop_whole(&self.handle.key);
                        Err(Trouble::Again)
                    }
                };
            }
            Found::Blocks(pieces, pins) => (pieces, pins),
        };
        let (pieces, disk) = match pins {
            None => (pieces, Vec::new()),
            Some(pins) => {
                let range = range.clone();
                let read = self.handle.core.tasks.spawn_blocking(move || {
                    let disk = pins.read(&range, &pieces, false);
                    (pieces, disk)
                });
                let (pieces, disk) = read.await.map_err(|_| Trouble::Again)?;
                (pieces, disk.ok_or(Trouble::Again)?)
            }
        };
        let mut blocks = Vec::with_capacity(pieces.len());
        for piece in pieces {
            blocks.push(match piece {
                Piece::Memory(bytes) => Some(bytes),
                Piece::Disk => None,
                Piece::Awaited(comes) => {
                    *has_waited = true;
                    let came = comes.await.map_err(|_| Trouble::Again)?;
                    Some(came.map_err(Trouble::Failed)?)
                }
            });
        }
        join(range, blocks, disk).ok_or(Trouble::Again)
    }
}

impl Handle {
    fn error(&self, kind: Kind) -> Error {
        Error::new(SIDE, format_args!("reading {}", self.key.content), kind)
    }

    /// Finds the blocks of a read, and has fetched what is missing. `None` if it is not all here
    /// and the caller does not wait, or if what is known has just changed.
    fn look(&self, range: &Range<u64>, end: u64, waits: bool) -> Option<Result<Found>> {
        let (core, key) = (&self.core, &self.key);
        let mut state = core.lock();
        let state = &mut *state;
        if let Some(whole) = core.open_whole(state, key) {
            state.touch(key, WHOLE);
            return Some(Ok(Found::Whole(whole)));
        }
        let blob = state.blobs.get_mut(key)?;
        if let Place::OtherSize(found) = blob.disk.place {
            return Some(Err(self.error(Kind::Size { expected: key.size, found })));
        }
        let blocks = Blob::blocks_of(range);
        let holds_back = |blob: &Blob, block| !self.checks_itself && blob.is_held_back(block);
        let is_here =
            |blob: &Blob, block| !holds_back(blob, block) && blob.has(block, &state.memory);
        if !waits && !blocks.clone().all(|block| is_here(blob, block)) {
            return None;
        }
        blob.requests.origin = Some(self.origin.clone());
        let mut pieces = Vec::with_capacity(blocks.len());
        let mut is_on_disk = false;
        for block in blocks.clone() {
            let is_held_back = holds_back(blob, block);
            pieces.push(match state.memory.get(blob.id, block) {
                Some(bytes) if !is_held_back => Piece::Memory(bytes.clone()),
                _ if !is_held_back && blob.disk.sum(block).is_some() => {
                    is_on_disk = true;
                    Piece::Disk
                }
                _ => {
                    let (gets, comes) = oneshot::channel();
                    match is_held_back {
                        true => blob.readers.last_waiters.push(gets),
                        false => blob.readers.waiters.entry(block).or_default().push(gets),
                    }
                    Piece::Awaited(comes)
                }
            });
        }
        let urgent = blob.requests.jobs.iter().filter(|running| {
            !running.job.urgent
                && blob.readers.waiters.range(running.next..running.end).next().is_some()
        });
        for running in urgent {
            core.slots(key).promote(running.job.id);
        }
        if state.warned {
            core.store_late(state, key, blocks.clone());
        }
        let blob = state.blobs.get_mut(key)?;
        let is_last_awaited = blob.is_last_awaited();
        let pins = match is_on_disk {
            true => Some(core.pin(state, key, blocks)?),
            false => None,
        };
        core.plan_read(state, key, range, end, self.habit);
        if is_last_awaited {
            core.pump(state, key);
        }
        Some(Ok(Found::Blocks(pieces, pins)))
    }
}

fn read_file(file: &File, range: &Range<u64>) -> std::io::Result<Bytes> {
    point();
    // As long as what was asked for.
    let length = (range.end - range.start) as usize;
    filled(length, |buffer| file.read_exact_at(buffer, range.start).map(|()| length))
}

/// The same if it is in memory.
fn read_file_now(file: &File, range: &Range<u64>) -> Option<Bytes> {
    point();
    let length = (range.end - range.start) as usize;
    let bytes = read_cached(file, range.start, length)?.ok()?;
    (bytes.len() == length).then_some(bytes)
}

/// Puts a read together: blocks that are whole, and for those that are not there the next of what
/// was read from the disk.
fn join(range: &Range<u64>, blocks: Vec<Option<Bytes>>, disk: Vec<Bytes>) -> Option<Bytes> {
    let mut disk = disk.into_iter();
    let mut at = range.start;
    let mut parts = Vec::with_capacity(blocks.len());
    for block in blocks {
        if at == range.end {
            // What came from the disk came in one piece.
            break;
        }
        let part = match block {
            Some(bytes) => {
                // Both are less than a block.
                let start = (at % BLOCK_BYTES) as usize;
                let length = (range.end - at).min(bytes.len().checked_sub(start)? as u64) as usize;
                bytes.slice(start..start + length)
            }
            None => disk.next()?,
        };
        at += part.len() as u64;
        parts.push(part);
    }
    (at == range.end).then(|| joined(parts))
}

/// Keeps the blocks of a read from being evicted.
pub(super) struct Pins {
    core: Arc<Core>,
    key: Key,
    id: u64,
    files: Arc<Files>,
    extents: Range<u32>,
    /// The checksums that the blocks have to have, if that has not been looked at.
    unchecked: Vec<(u32, u32)>,
}

impl Core {
    /// Pins those of `blocks` that are on the disk. `None` if the files have gone.
    pub(super) fn pin(
        self: &Arc<Self>,
        state: &mut State,
        key: &Key,
        blocks: Range<u32>,
    ) -> Option<Pins> {
        let files = self.open_parts(state, key)?;
        let blob = state.blobs.get_mut(key)?;
        let sums = blocks.clone().filter_map(|block| blob.disk.sum(block).map(|sum| (block, sum)));
        let unchecked =
            sums.filter(|(_, (_, checked))| !checked).map(|(block, (sum, _))| (block, sum));
        let unchecked = unchecked.collect();
        let extents =
            blob.disk.extent_of(blocks.start).0..blob.disk.extent_of(blocks.end - 1).0 + 1;
        for (_, extent) in blob.disk.extents.range_mut(extents.clone()) {
            extent.pins += 1;
        }
        let id = blob.id;
        for extent in extents.clone() {
            state.touch(key, extent);
        }
        Some(Pins { core: self.clone(), key: *key, id, files, extents, unchecked })
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.core.lock();
        let Some(blob) = state.blob(&self.key, self.id) else { return };
        for (_, extent) in blob.disk.extents.range_mut(self.extents.clone()) {
            extent.pins = extent.pins.saturating_sub(1);
        }
    }
}

impl Pins {
    /// A whole block, if it is what was written.
    pub(super) fn read_block(&self, block: u32) -> Option<Bytes> {
        let start = u64::from(block) * BLOCK_BYTES;
        let length = cached::block_length(self.key.size, u64::from(block)) as u64;
        let bytes = read_file(&self.files.data, &(start..start + length));
        let expected = self.unchecked.iter().find(|(number, _)| *number == block);
        let is_right = |bytes: &Bytes| {
            expected.is_none_or(|(_, expected)| cached::checksum(bytes) == *expected)
        };
        let bytes = bytes.ok().filter(is_right);
        if expected.is_some() || bytes.is_none() {
            self.checked(block, bytes.is_some());
        }
        bytes
    }

    /// What a read wants of the blocks that are on the disk, in order: neighbours in one piece. Without
    /// waiting for the disk if `now`; then `None` if not all of it is in memory and has been checked. What has
    /// not been checked is read whole, which takes its time.
    fn read(&self, range: &Range<u64>, pieces: &[Piece], now: bool) -> Option<Vec<Bytes>> {
        if now && !self.unchecked.is_empty() {
            return None;
        }
        let data = &self.files.data;
        let read = |part: &Range<u64>| match now {
            true => read_file_now(data, part),
            false => read_file(data, part).ok(),
        };
        let is_disk = |piece: &Piece| matches!(piece, Piece::Disk);
        if self.unchecked.is_empty() && pieces.iter().all(is_disk) {
            let bytes = read(range).map(|bytes| vec![bytes]);
            // If that fails, it is found out at which block.
            if now || bytes.is_some() {
                return bytes;
            }
        }
        let first = Blob::blocks_of(range).start;
        let on_disk = (first..).zip(pieces).filter(|(_, piece)| is_disk(piece));
        let wanted = on_disk.map(|(block, _)| {
            let start = u64::from(block) * BLOCK_BYTES;
            let part = start.max(range.start)..(start + BLOCK_BYTES).min(range.end);
            if now {
                return read(&part);
            }
            let bytes = self.read_block(block)?;
            // Both are within the block.
            Some(bytes.slice((part.start - start) as usize..(part.end - start) as usize))
        });
        wanted.collect()
    }

    /// Notes that a block is what was written, or drops it.
    fn checked(&self, block: u32, is_right: bool) {
        let mut state = self.core.lock();
        let Some(blob) = state.blob(&self.key, self.id) else { return };
        if is_right {
            if let Some((sum, false)) = blob.disk.sum(block) {
                blob.disk.put_sum(block, sum, true);
            }
            return;
        }
        let was_read = blob.disk.sum(block).is_some_and(|(_, was_checked)| was_checked);
        if was_read && blob.is_remembered(block) {
            // What it was can be found out no more.
            return self.core.lose(&mut state, &self.key);
        }
        // Its place stays in use, as does its checksum in the file, which it does not fit.
        blob.disk.drop_sum(block);
    }
}
