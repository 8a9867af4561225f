//! Hashing beside decompressing.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use super::{
    sealing::{SEALER_BYTES, Sealed, Sealer},
    span::{CleanStart, SPAN_BYTES, WindowStart},
};
use crate::{
    image::{Algorithm, Digest, Hasher},
    layer::gzip::{FOLLOWING_BYTES, WINDOW_BYTES},
    util::locked,
};

/// Who computes the digests of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashing {
    /// The thread that pushes.
    Inline,
    /// A thread of its own, which is at most 1 MiB behind. It ends with the pass.
    OwnThread,
}

/// Bytes that are handed over at a time.
const PARCEL_BYTES: usize = SPAN_BYTES as usize;

/// Parcels that wait at most.
const PARCELS: usize = 8;

/// Memory that hashing on a thread of its own takes: parcels that wait and those that are spare, with a place
/// for a window for each that waits, and what it takes to thin that.
pub(super) const HASHING_BYTES: u64 =
    ((PARCEL_BYTES + WINDOW_BYTES + FOLLOWING_BYTES) * (PARCELS + 2)) as u64 + SEALER_BYTES;

/// The digests of a pass, and its spans.
pub(super) struct Digests {
    /// Of the blob.
    pub(super) blob: Digest,
    /// Of the stream.
    pub(super) stream: Digest,
    pub(super) sealed: Sealed,
}

struct State {
    blob: Hasher,
    stream: Hasher,
    sealer: Sealer,
}

/// A part of a span, what is known of its beginning, and of its end.
#[derive(Default)]
struct Part {
    begins: Option<CleanStart>,
    bytes: Vec<u8>,
    place: Option<Box<WindowStart>>,
    ends: Option<End>,
}

/// Where a span ends in the stream, and how much of the blob it takes.
#[derive(Clone, Copy)]
struct End {
    stream_end: u64,
    blob_end: u64,
}

enum Job {
    Blob(Vec<u8>),
    Part(Part),
}

impl State {
    /// Does it; gives back the room that it took.
    fn do_job(&mut self, job: Job) -> Vec<u8> {
        match job {
            Job::Blob(bytes) => {
                self.blob.update(&bytes);
                bytes
            }
            Job::Part(part) => {
                if let Some(start) = part.begins {
                    self.sealer.begin(start);
                }
                self.stream(&part.bytes);
                if let Some(place) = part.place {
                    self.sealer.consider(*place);
                }
                if let Some(end) = part.ends {
                    self.sealer.end(end.stream_end, end.blob_end);
                }
                part.bytes
            }
        }
    }

    fn stream(&mut self, bytes: &[u8]) {
        // While a part is in the processor's cache, both take it.
        for part in bytes.chunks(16 << 10) {
            self.stream.update(part);
            self.sealer.bytes(part);
        }
    }
}

/// Takes what is to be hashed, and where the stream is cut.
pub(super) struct Hashes {
    way: Way,
    sealed: Arc<Mutex<Sealed>>,
}

enum Way {
    Inline(Box<Inline>),
    OwnThread(Worker),
}

/// The state of hashing in the thread that pushes; boxed because it is large.
pub(super) struct Inline(State);

/// The thread that hashes, and what waits to be handed to it.
pub(super) struct Worker {
    jobs: SyncSender<Job>,
    /// Parcels that have been hashed and can be filled again.
    spare: Receiver<Vec<u8>>,
    thread: JoinHandle<State>,
    blob: Vec<u8>,
    part: Part,
}

/// The thread that hashes has died, which only happens if it panics.
#[derive(Debug)]
pub(super) struct Died;

impl Way {
    fn new(hashing: Hashing, state: &dyn Fn() -> State) -> Self {
        let inline = || Self::Inline(Box::new(Inline(state())));
        if hashing == Hashing::Inline {
            return inline();
        }
        let (jobs, to_do) = sync_channel::<Job>(PARCELS);
        let (done, spare) = sync_channel(PARCELS);
        let mut state_of_thread = state();
        let thread = std::thread::Builder::new().name("layer-hash".to_owned()).spawn(move || {
            for job in to_do {
                let mut parcel = state_of_thread.do_job(job);
                parcel.clear();
                // If nobody wants it, it goes.
                let _ = done.try_send(parcel);
            }
            state_of_thread
        });
        match thread {
            Ok(thread) => Self::OwnThread(Worker {
                jobs,
                spare,
                thread,
                blob: Vec::new(),
                part: Part::default(),
            }),
            // There are enough threads already.
            Err(_) => inline(),
        }
    }
}

impl Hashes {
    pub(super) fn new(hashing: Hashing, blob: Algorithm, stream: Algorithm) -> Self {
        let sealed = Arc::<Mutex<Sealed>>::default();
        let state = || State {
            blob: Hasher::new(blob),
            stream: Hasher::new(stream),
            sealer: Sealer::new(sealed.clone()),
        };
        let way = Way::new(hashing, &state);
        Self { way, sealed }
    }

    /// The spans that are complete by now.
    pub(super) fn sealed(&self) -> MutexGuard<'_, Sealed> {
        locked(&self.sealed)
    }

    /// Takes the next bytes of the blob.
    pub(super) fn blob(&mut self, bytes: &[u8]) -> Result<(), Died> {
        match &mut self.way {
            Way::Inline(state) => {
                state.0.blob.update(bytes);
                Ok(())
            }
            Way::OwnThread(worker) => worker.blob(bytes),
        }
    }

    /// A span begins, at which decompressing can begin without a window.
    pub(super) fn begin_span(&mut self, start: CleanStart) {
        match &mut self.way {
            Way::Inline(state) => state.0.sealer.begin(start),
            Way::OwnThread(worker) => worker.part.begins = Some(start),
        }
    }

    /// Takes the next bytes of the current span.
    pub(super) fn stream(&mut self, bytes: &[u8]) -> Result<(), Died> {
        match &mut self.way {
            Way::Inline(state) => {
                state.0.stream(bytes);
                Ok(())
            }
            Way::OwnThread(worker) => worker.stream(bytes),
        }
    }

    /// Decompressing could begin here for the current span.
    pub(super) fn place(&mut self, place: WindowStart) {
        match &mut self.way {
            Way::Inline(state) => state.0.sealer.consider(place),
            Way::OwnThread(worker) => worker.part.place = Some(Box::new(place)),
        }
    }

    /// Ends the current span; see [`Sealer::end`].
    pub(super) fn end_span(&mut self, stream_end: u64, blob_end: u64) -> Result<(), Died> {
        match &mut self.way {
            Way::Inline(state) => {
                state.0.sealer.end(stream_end, blob_end);
                Ok(())
            }
            Way::OwnThread(worker) => {
                worker.part.ends = Some(End { stream_end, blob_end });
                worker.hand_over_part()
            }
        }
    }

    /// The digests of everything.
    pub(super) fn finish(self) -> Result<Digests, Died> {
        let state = match self.way {
            Way::Inline(state) => state.0,
            Way::OwnThread(mut worker) => {
                worker.hand_over_part()?;
                worker.hand_over_blob()?;
                drop(worker.jobs);
                worker.thread.join().map_err(|_| Died)?
            }
        };
        let State { blob, stream, .. } = state;
        let sealed = mem::take(&mut *locked(&self.sealed));
        Ok(Digests { blob: blob.finish(), stream: stream.finish(), sealed })
    }
}

/// Puts as many of `bytes` into a parcel as it takes; returns the rest.
fn fill<'a>(parcel: &mut Vec<u8>, spare: &Receiver<Vec<u8>>, bytes: &'a [u8]) -> &'a [u8] {
    if parcel.capacity() == 0 {
        *parcel = spare.try_recv().unwrap_or_default();
        parcel.reserve_exact(PARCEL_BYTES);
    }
    let (taken, rest) = bytes.split_at(bytes.len().min(PARCEL_BYTES - parcel.len()));
    parcel.extend_from_slice(taken);
    rest
}

impl Worker {
    fn blob(&mut self, mut bytes: &[u8]) -> Result<(), Died> {
        while !bytes.is_empty() {
            bytes = fill(&mut self.blob, &self.spare, bytes);
            if self.blob.len() == PARCEL_BYTES {
                self.hand_over_blob()?;
            }
        }
        Ok(())
    }

    fn stream(&mut self, mut bytes: &[u8]) -> Result<(), Died> {
        while !bytes.is_empty() {
            if self.part.bytes.len() == PARCEL_BYTES {
                self.hand_over_part()?;
            }
            bytes = fill(&mut self.part.bytes, &self.spare, bytes);
        }
        Ok(())
    }

    fn hand_over_blob(&mut self) -> Result<(), Died> {
        let blob = mem::take(&mut self.blob);
        self.jobs.send(Job::Blob(blob)).map_err(|_| Died)
    }

    fn hand_over_part(&mut self) -> Result<(), Died> {
        let part = mem::take(&mut self.part);
        self.jobs.send(Job::Part(part)).map_err(|_| Died)
    }
}
