//! Hashing beside decompressing.

use std::{
    mem,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use sha2::{Digest as _, Sha256};

use crate::{
    image::{Algorithm, Digest, Hasher},
    util::locked,
};

/// Who computes the digests of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashing {
    /// The thread that pushes.
    Inline,
    /// A thread of its own, which is at most 2 MiB behind. It ends with the pass.
    OwnThread,
}

/// Bytes that are handed over at a time.
const PARCEL_BYTES: usize = 256 << 10;

/// Parcels that wait at most.
const PARCELS: usize = 8;

/// Memory that hashing on a thread of its own takes: those that wait, and those that are spare.
pub(super) const HASHING_BYTES: u64 = (PARCEL_BYTES * (PARCELS + 2)) as u64;

/// The digests of a pass.
pub(super) struct Digests {
    /// Of the blob.
    pub(super) blob: Digest,
    /// Of the stream.
    pub(super) stream: Digest,
    /// Of each span.
    pub(super) spans: Vec<[u8; 32]>,
}

struct State {
    blob: Hasher,
    stream: Hasher,
    span: Sha256,
    spans: SpanDigests,
}

/// The digests of spans, shared with those who want to know them while more come.
type SpanDigests = Arc<Mutex<Vec<[u8; 32]>>>;

enum Job {
    Blob(Vec<u8>),
    Stream(Vec<u8>),
    EndSpan,
}

impl State {
    fn do_job(&mut self, job: &Job) {
        match job {
            Job::Blob(bytes) => self.blob.update(bytes),
            Job::Stream(bytes) => self.stream(bytes),
            Job::EndSpan => self.end_span(),
        }
    }

    fn stream(&mut self, bytes: &[u8]) {
        // While a part is in the processor's cache, both take it.
        for part in bytes.chunks(16 << 10) {
            self.stream.update(part);
            self.span.update(part);
        }
    }

    fn end_span(&mut self) {
        locked(&self.spans).push(self.span.finalize_reset().into());
    }

    fn finish(self) -> Digests {
        let spans = mem::take(&mut *locked(&self.spans));
        Digests { blob: self.blob.finish(), stream: self.stream.finish(), spans }
    }
}

/// Takes what is to be hashed.
pub(super) struct Hashes {
    way: Way,
    spans: SpanDigests,
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
    stream: Vec<u8>,
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
                state_of_thread.do_job(&job);
                if let Job::Blob(mut parcel) | Job::Stream(mut parcel) = job {
                    parcel.clear();
                    // If nobody wants it, it goes.
                    let _ = done.try_send(parcel);
                }
            }
            state_of_thread
        });
        match thread {
            Ok(thread) => Self::OwnThread(Worker {
                jobs,
                spare,
                thread,
                blob: Vec::new(),
                stream: Vec::new(),
            }),
            // There are enough threads already.
            Err(_) => inline(),
        }
    }
}

impl Hashes {
    pub(super) fn new(hashing: Hashing, blob: Algorithm, stream: Algorithm) -> Self {
        let spans = SpanDigests::default();
        let state = || State {
            blob: Hasher::new(blob),
            stream: Hasher::new(stream),
            span: Sha256::new(),
            spans: spans.clone(),
        };
        let way = Way::new(hashing, &state);
        Self { way, spans }
    }

    /// How many spans have been hashed.
    pub(super) fn span_count(&self) -> usize {
        locked(&self.spans).len()
    }

    /// The digests of the first spans, as far as they have been computed.
    pub(super) fn spans(&self) -> Vec<[u8; 32]> {
        locked(&self.spans).clone()
    }

    /// Takes the next bytes of the blob.
    pub(super) fn blob(&mut self, bytes: &[u8]) -> Result<(), Died> {
        match &mut self.way {
            Way::Inline(state) => state.0.blob.update(bytes),
            Way::OwnThread(worker) => worker.collect(bytes, false)?,
        }
        Ok(())
    }

    /// Takes the next bytes of the stream.
    pub(super) fn stream(&mut self, bytes: &[u8]) -> Result<(), Died> {
        match &mut self.way {
            Way::Inline(state) => state.0.stream(bytes),
            Way::OwnThread(worker) => worker.collect(bytes, true)?,
        }
        Ok(())
    }

    /// Ends the current span.
    pub(super) fn end_span(&mut self) -> Result<(), Died> {
        match &mut self.way {
            Way::Inline(state) => state.0.end_span(),
            Way::OwnThread(worker) => {
                worker.hand_over(true)?;
                worker.jobs.send(Job::EndSpan).map_err(|_| Died)?;
            }
        }
        Ok(())
    }

    /// The digests of everything.
    pub(super) fn finish(self) -> Result<Digests, Died> {
        match self.way {
            Way::Inline(state) => Ok(state.0.finish()),
            Way::OwnThread(mut worker) => {
                worker.hand_over(true)?;
                worker.hand_over(false)?;
                drop(worker.jobs);
                worker.thread.join().map(State::finish).map_err(|_| Died)
            }
        }
    }
}

impl Worker {
    fn collect(&mut self, mut bytes: &[u8], is_stream: bool) -> Result<(), Died> {
        while !bytes.is_empty() {
            let parcel = if is_stream { &mut self.stream } else { &mut self.blob };
            if parcel.capacity() == 0 {
                *parcel = self.spare.try_recv().unwrap_or_default();
                parcel.reserve_exact(PARCEL_BYTES);
            }
            let count = bytes.len().min(PARCEL_BYTES - parcel.len());
            parcel.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if parcel.len() == PARCEL_BYTES {
                self.hand_over(is_stream)?;
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, is_stream: bool) -> Result<(), Died> {
        let parcel = std::mem::take(if is_stream { &mut self.stream } else { &mut self.blob });
        if parcel.is_empty() {
            return Ok(());
        }
        let job = if is_stream { Job::Stream(parcel) } else { Job::Blob(parcel) };
        self.jobs.send(job).map_err(|_| Died)
    }
}
