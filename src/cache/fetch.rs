//! Fetching: one request to a source, block by block into the cache.

use std::{
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::{
    Core, MOST_FED, SIDE,
    plan::Pace,
    readers::Failed,
    requests::{Job, Origin},
    state::{Blob, Key, State},
};
use crate::{
    backend::{
        Blobs, BoxStream, Error, Kind, Result,
        images_dir::cached::{BLOCK_BYTES, block_length},
    },
    image::{Descriptor, Digest, Repository},
};

/// After a failed read-ahead there is none for so long.
const QUIET: Duration = Duration::from_secs(5);

/// A source that sends everything waits so long for its readers before it is cut off.
const PAUSE: Duration = Duration::from_secs(10);

/// What is nearly done when its last reader leaves has so long to come to its end, and a source that sends everything
/// goes on for so long. What has been sent is not fetched again then, and the connection stays. Parts of blobs and
/// streams count as open for so long.
const LINGER: Duration = Duration::from_millis(500);

/// A blob at a source, in some repositories.
pub(super) struct Source {
    pub id: usize,
    pub source: Arc<dyn Blobs>,
    pub repositories: Vec<Repository>,
    pub blob: Descriptor,
}

impl Origin for Source {
    fn fetch(
        self: Arc<Self>,
        core: Arc<Core>,
        key: Key,
        job: Arc<Job>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut ending = Ending { core: &core, key, job: &job, origin: self.id, result: None };
            let result = self.run(&core, &key, &job).await;
            ending.result = Some(result);
        })
    }

    fn id(&self) -> usize {
        self.id
    }
}

/// Tells the cache that a job has ended, also if its task dies.
struct Ending<'a> {
    core: &'a Arc<Core>,
    key: Key,
    job: &'a Job,
    origin: usize,
    result: Option<Result<()>>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            let kind = Kind::Interrupted("the request was given up".into());
            Err(Error::new(SIDE, format_args!("fetching {}", self.key.content), kind))
        });
        let result = result.map_err(|error| Failed { error, origin: self.origin });
        self.core.ended(&self.key, self.job, result);
    }
}

/// What is to be done with a block that has come.
pub(super) enum Arrival {
    /// Nobody wants more.
    Stop,
    /// Nothing.
    Pass,
    /// It is to be written to the disk.
    Store,
}

impl Source {
    /// Ends well also when it is stopped.
    async fn run(&self, core: &Arc<Core>, key: &Key, job: &Job) -> Result<()> {
        let slots = core.slots(key);
        let mut slot = tokio::select! {
            biased;
            () = job.stop.notified() => return Ok(()),
            slot = slots.acquire(job.id, job.urgent) => Some(slot),
        };
        let mut block = job.range.start;
        let Some(mut stream) = self.open(core, key, job, &mut block).await? else {
            return Ok(());
        };
        let end = core.end_of(key, job).unwrap_or(job.range.end);
        let mut arriving = BytesMut::new();
        let mut writing: Option<oneshot::Receiver<()>> = None;
        while block < end {
            loop {
                match core.pace(key, job) {
                    Pace::GoOn => break,
                    Pace::Stop => return Ok(()),
                    Pace::Wait => slot = None,
                }
                tokio::select! {
                    biased;
                    () = job.stop.notified() => return Ok(()),
                    () = job.moved.notified() => {}
                    () = core.tasks.sleep(PAUSE) => return Ok(()),
                }
            }
            if slot.is_none() {
                slot = Some(slots.acquire(job.id, true).await);
            }
            let piece = tokio::select! {
                biased;
                () = job.stop.notified() => return Ok(()),
                piece = stream.next() => piece?,
            };
            let Some(mut piece) = piece else {
                let reason = format!("it ended at block {block} of {end}");
                return Err(self.error(key, Kind::Interrupted(reason)));
            };
            Self::count(core, key, 0, piece.len());
            while !piece.is_empty() {
                if block >= end {
                    let found = u64::from(end) * BLOCK_BYTES + piece.len() as u64;
                    return Err(self.error(key, Kind::Size { expected: key.size, found }));
                }
                let length = block_length(key.size, u64::from(block));
                let Some(bytes) = collect(&mut arriving, &mut piece, length) else { break };
                match core.arrived(key, job, block, &bytes).await? {
                    Arrival::Stop => return Ok(()),
                    Arrival::Pass => {}
                    Arrival::Store => {
                        if let Some(writing) = writing.take() {
                            // It has said itself what it had to say.
                            let _ = writing.await;
                        }
                        let (to, key, id) = (core.clone(), *key, job.blob);
                        let store = move || to.store(&key, id, block, &bytes);
                        writing = Some(core.tasks.spawn_blocking(store));
                    }
                }
                block += 1;
            }
        }
        drop(stream);
        drop(slot);
        Ok(())
    }

    /// Makes the request, at the first repository that has the blob. `None` if it has been
    /// stopped.
    async fn open(
        &self,
        core: &Arc<Core>,
        key: &Key,
        job: &Job,
        block: &mut u32,
    ) -> Result<Option<BoxStream>> {
        let bytes = |blocks: &Range<u32>| {
            let end = u64::from(blocks.end) * BLOCK_BYTES;
            u64::from(blocks.start) * BLOCK_BYTES..end.min(key.size)
        };
        let all = 0..key.size;
        let mut refusal = None;
        for repository in &self.repositories {
            let range = bytes(&job.range);
            let is_part = range != all;
            Self::count(core, key, 1, 0);
            job.has_begun.store(true, Ordering::Relaxed);
            let opened = tokio::select! {
                biased;
                () = job.stop.notified() => return Ok(None),
                opened = self.source.read(repository, &self.blob, range) => opened,
            };
            match opened {
                Ok(stream) if is_part && stream.ignores_ranges() => {
                    drop(stream);
                    if !core.begin_stream(key, job) {
                        return Ok(None);
                    }
                    *block = 0;
                    Self::count(core, key, 1, 0);
                    return tokio::select! {
                        biased;
                        () = job.stop.notified() => Ok(None),
                        opened = self.source.read(repository, &self.blob, all) => opened.map(Some),
                    };
                }
                Ok(stream) => return Ok(Some(stream)),
                Err(error) if error.is_refusal() => refusal = Some(error),
                Err(error) => return Err(error),
            }
        }
        let nowhere =
            || self.error(key, Kind::NotFound("no repository is known to have it".into()));
        Err(refusal.unwrap_or_else(nowhere))
    }

    /// Counts what comes from elsewhere.
    fn count(core: &Core, key: &Key, requests: u64, bytes: usize) {
        if !key.content.is_stream() {
            let mut state = core.lock();
            state.counts.requests += requests;
            state.counts.fetched_bytes += bytes as u64;
            if let Some(blob) = state.blobs.get_mut(key) {
                blob.fetched_bytes += bytes as u64;
            }
        }
    }

    fn error(&self, key: &Key, kind: Kind) -> Error {
        Error::new(SIDE, format_args!("fetching {}", key.content), kind)
    }
}

/// Takes from `piece` what is missing of a block of `length` bytes; the block, once it is whole.
fn collect(arriving: &mut BytesMut, piece: &mut Bytes, length: usize) -> Option<Bytes> {
    if arriving.is_empty() && piece.len() == length {
        return Some(piece.split_to(length));
    }
    if arriving.capacity() < length {
        arriving.reserve(length - arriving.len());
    }
    let taken = piece.split_to(piece.len().min(length - arriving.len()));
    arriving.extend_from_slice(&taken);
    (arriving.len() == length).then(|| arriving.split().freeze())
}

impl Core {
    /// Stops what is still on its way for a blob after [`LINGER`], if nobody has opened it again.
    pub(super) fn stop_later(self: &Arc<Self>, key: Key, blob: u64) {
        let core = self.clone();
        self.tasks.spawn(async move {
            core.tasks.sleep(LINGER).await;
            if let Some(blob) = core.lock().blob(&key, blob)
                && blob.readers.handles == 0
            {
                blob.requests.stop();
            }
        });
    }

    /// Closes a blob when nobody has opened it again for [`LINGER`]. Until then what is known of its readers stays.
    pub(super) fn close_later(&self, key: Key, blob: &mut Blob) {
        let closed = blob.readers.closing.unwrap_or(0) + 1;
        if blob.readers.closing.replace(closed).is_some() {
            return;
        }
        // Whoever drops the cache does not wait for that.
        let (core, id, mut closed) = (self.me.clone(), blob.id, closed);
        self.tasks.spawn(async move {
            loop {
                let Some(sleep) = core.upgrade().map(|core| core.tasks.sleep(LINGER)) else {
                    return;
                };
                sleep.await;
                let Some(core) = core.upgrade() else { return };
                let mut state = core.lock();
                let Some(blob) = state.blob(&key, id) else { return };
                let is_open = blob.readers.handles > 0;
                if !is_open && blob.readers.closing != Some(closed) {
                    closed = blob.readers.closing.unwrap_or(0);
                    continue;
                }
                blob.readers.closing = None;
                if !is_open {
                    if blob.requests.abandon(&mut blob.readers.windows) {
                        core.stop_later(key, id);
                    }
                    core.settle(&mut state, &key);
                }
                return;
            }
        });
    }

    /// Where a job ends, which is where the blob ends if its source sends everything.
    fn end_of(&self, key: &Key, job: &Job) -> Option<u32> {
        let state = self.lock();
        let running = &state.blobs.get(key)?.requests.jobs;
        running.iter().find(|running| running.job.id == job.id).map(|running| running.end)
    }

    /// The source of `job` sends everything: from now on that is kept. Not so if another job
    /// already does so.
    fn begin_stream(&self, key: &Key, job: &Job) -> bool {
        let mut state = self.lock();
        let Some(blob) = state.blob(key, job.blob) else { return false };
        blob.requests.ignores_ranges = true;
        if blob.requests.jobs.iter().any(|running| running.is_stream) {
            return false;
        }
        let blocks = blob.blocks;
        match blob.requests.jobs.iter_mut().find(|running| running.job.id == job.id) {
            Some(running) => {
                (running.next, running.end, running.is_stream) = (0, blocks, true);
                true
            }
            None => false,
        }
    }

    /// Takes a block that has come: gives it to those who wait for it, and to the digest.
    async fn arrived(
        self: &Arc<Self>,
        key: &Key,
        job: &Job,
        block: u32,
        bytes: &Bytes,
    ) -> Result<Arrival> {
        if let Some(arrival) = self.take(key, job, block, bytes, None)? {
            return Ok(arrival);
        }
        let wanted = bytes.clone();
        let hashed = self.tasks.spawn_blocking(move || Sha256::digest(&wanted).into()).await;
        // It fails only when the runtime ends.
        let Ok(sha) = hashed else { return Ok(Arrival::Stop) };
        Ok(self.take(key, job, block, bytes, Some(sha))?.unwrap_or(Arrival::Stop))
    }

    /// The same, with its SHA-256 if that has been computed; `None` if it has to be.
    fn take(
        self: &Arc<Self>,
        key: &Key,
        job: &Job,
        block: u32,
        bytes: &Bytes,
        sha: Option<[u8; 32]>,
    ) -> Result<Option<Arrival>> {
        let mut state = self.lock();
        let state = &mut *state;
        let is_refused = state.is_refused();
        // One at least, so that the digest comes forward whatever becomes of the block.
        let share = self.feed_blocks / self.fetching.load(Ordering::Relaxed).max(1);
        let feed_blocks = share.clamp(1, MOST_FED);
        let Some(blob) = state.blobs.get_mut(key).filter(|blob| blob.id == job.blob) else {
            return Ok(Some(Arrival::Stop));
        };
        let Some(at) = blob.requests.jobs.iter().position(|running| running.job.id == job.id)
        else {
            return Ok(Some(Arrival::Stop));
        };
        let is_here = blob.has(block, &state.memory);
        let may_be_stored =
            !is_refused && !blob.disk.is_leaving(block) && !blob.disk.writing.contains(&block);
        if !is_here {
            let expected = blob.verification.prefix.known.get(block);
            let is_remembered = !may_be_stored && blob.is_remembered(block);
            match (expected, sha) {
                (Some(_), None) => return Ok(None),
                (None, None) if is_remembered => return Ok(None),
                (Some(expected), Some(found)) if found != expected => {
                    return Err(self.changed(state, key, block, expected, found));
                }
                (None, Some(sha)) if is_remembered => {
                    state.known_bytes += blob.verification.prefix.known.insert(block, sha);
                }
                _ => {}
            }
        }
        blob.requests.jobs[at].next = block + 1;
        blob.requests.arrived += 1;
        if is_here {
            return Ok(Some(Arrival::Pass));
        }
        if block < blob.verification.prefix.to
            && blob.verification.prefix.known.get(block).is_none()
        {
            // What was hashed is gone, and nothing says that this is the same.
            blob.restart_prefix(key);
        }
        let prefix = &mut blob.verification.prefix;
        // With what is being hashed itself.
        let fed = prefix.feed.len() + usize::from(prefix.hasher.is_none());
        if !blob.content.is_stream()
            && block as usize == prefix.to as usize + fed
            && fed < feed_blocks
        {
            prefix.feed.push_back(bytes.clone());
        }
        blob.readers.give(block, bytes);
        state.memory.hold(blob.id, block, bytes.clone());
        if may_be_stored {
            blob.disk.writing.insert(block);
        } else {
            state.memory.release(blob.id, block);
        }
        self.kick_hash(state, key);
        self.bound_known(state);
        Ok(Some(if may_be_stored { Arrival::Store } else { Arrival::Pass }))
    }

    /// A block has come that is not what it was when it came before. If the blob is verified, the
    /// block is wrong. If not, nobody knows which of the two is, so everything is dropped.
    fn changed(
        &self,
        state: &mut State,
        key: &Key,
        block: u32,
        expected: [u8; 32],
        found: [u8; 32],
    ) -> Error {
        let (expected, found) = (Digest::Sha256(expected), Digest::Sha256(found));
        let doing = format!("fetching block {block} of {} once more", key.content);
        let error = Error::new(SIDE, doing, Kind::Digest { expected, found });
        if let Some(blob) = state.blobs.get_mut(key).filter(|blob| !blob.is_verified()) {
            blob.fail(0..u32::MAX, &Failed { error: error.clone(), origin: 0 });
            self.distrust(state, key, error.clone());
        }
        error
    }

    /// A job has ended. Tells those who wait for what it has not brought, and goes on with what
    /// else is wanted.
    fn ended(self: &Arc<Self>, key: &Key, job: &Job, result: std::result::Result<(), Failed>) {
        self.fetching.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.lock();
        if result.is_err() {
            state.counts.errors += 1;
        }
        let Some(blob) = state.blob(key, job.blob) else { return };
        let at = blob.requests.jobs.iter().position(|running| running.job.id == job.id);
        let ended = at.map(|at| blob.requests.jobs.remove(at));
        if let Some(running) = ended.as_ref().filter(|running| running.next < running.end) {
            blob.readers.windows.set_back(job.window, running.next);
        }
        if let Some(running) = ended
            && let Err(failed) = result
        {
            let mut told = 0;
            for block in running.next..running.end {
                if !blob.requests.is_coming(block) {
                    told += blob.fail(block..block + 1, &failed);
                }
            }
            if job.for_last
                && let Some(last) = blob.blocks.checked_sub(1)
            {
                told += blob.fail(last..last + 1, &failed);
            }
            if told == 0 {
                blob.requests.quiet_until = Some(Instant::now() + QUIET);
            }
        }
        self.pump(&mut state, key);
        self.settle(&mut state, key);
        drop(state);
        self.save_recent_sometimes();
    }
}
