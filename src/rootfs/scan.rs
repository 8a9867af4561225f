//! The scan of a layer from its beginning to its end, which makes its index.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    image::{Algorithm, Descriptor, Digest},
    layer::{Expected, IndexError, Indexer, LayerIndex, Options},
    util::{Budget, OutOfMemory, Reservation, locked},
};

/// After so many bytes of the blob, what the scan takes is counted anew. They may be a thousand times as
/// many decompressed, with an entry for each 512 of those: 3 MiB of a table.
const COUNT_EACH: usize = 16 << 10;

/// Numbers of scans.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A scan, as those see it who look into the layer while it is under way.
pub(super) struct Scan {
    /// Of all scans of this process it is this one.
    pub number: u64,
    expected: Expected,
    options: Options,
    budget: Budget,
    /// `None` when it has ended.
    state: Mutex<Option<State>>,
    /// Bytes of the blob that have been scanned.
    scanned: watch::Sender<u64>,
    has_failed: AtomicBool,
}

struct State {
    indexer: Indexer,
    memory: Reservation,
}

/// Why a scan has ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    /// It is not the layer that it should be.
    #[error("{0}")]
    Index(#[from] IndexError),
    /// There is no room for its table.
    #[error("{0}")]
    Memory(#[from] OutOfMemory),
}

impl Scan {
    pub(super) fn new(blob: &Descriptor, diff_id: Option<Digest>, budget: &Budget) -> Self {
        let options = Options {
            blob: blob.digest.algorithm(),
            diff_id: diff_id.map_or(Algorithm::Sha256, |digest| digest.algorithm()),
            ..Options::default()
        };
        // The diff ID is compared by each image with its own: a wrong one is that image's fault,
        // not the layer's.
        let expected = Expected { blob: blob.digest, blob_bytes: blob.size, diff_id: None };
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            expected,
            options,
            budget: budget.clone(),
            state: Mutex::new(None),
            scanned: watch::Sender::new(0),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Begins, with nothing scanned.
    pub(super) fn begin(&self) -> Result<(), OutOfMemory> {
        let indexer = Indexer::new(self.options);
        let memory = self.budget.reserve(indexer.memory_bytes())?;
        *locked(&self.state) = Some(State { indexer, memory });
        self.scanned.send_replace(0);
        Ok(())
    }

    /// Takes the next bytes of the blob, as far as there is room in memory for what comes of them. Returns
    /// those that are left; then [`Scan::count`] has to succeed before it goes on.
    pub(super) fn push(&self, mut bytes: Bytes) -> Result<Bytes, IndexError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(COUNT_EACH));
            if let Some(state) = &mut *locked(&self.state) {
                state.indexer.push(&piece)?;
            }
            self.scanned.send_modify(|scanned| *scanned += piece.len() as u64);
            if self.count().is_err() {
                break;
            }
        }
        Ok(bytes)
    }

    /// Reserves the memory that it takes by now.
    pub(super) fn count(&self) -> Result<(), OutOfMemory> {
        match &mut *locked(&self.state) {
            Some(State { indexer, memory }) => memory.resize(indexer.memory_bytes()),
            None => Ok(()),
        }
    }

    /// Bytes of the blob that have been scanned; changes whenever there are more.
    pub(super) fn scanned(&self) -> watch::Receiver<u64> {
        self.scanned.subscribe()
    }

    /// An index of what has been scanned, with its memory, if the file `path` and all of its content has
    /// been. Takes a copy of the table.
    pub(super) fn index_with(&self, path: &[u8]) -> Option<(LayerIndex, Reservation)> {
        let state = locked(&self.state);
        let indexer = &state.as_ref()?.indexer;
        let (table, path) = (indexer.table(), indexer.find(path)?);
        let entry = table.last_entry(path).and_then(|number| table.entry(number));
        // A directory may have no entry of its own.
        let end = entry.map_or(0, |entry| entry.data_offset.saturating_add(entry.size));
        if end > indexer.settled_bytes() {
            return None;
        }
        // Where there is no room for a copy, the end of the scan has to be waited for.
        let mut memory = self.budget.reserve(indexer.memory_bytes()).ok()?;
        let index = indexer.so_far(&self.expected)?;
        memory.resize(index.memory_bytes()).ok()?;
        Some((index, memory))
    }

    /// All bytes have come: the index, and the memory that it takes.
    pub(super) fn finish(&self) -> Result<(LayerIndex, Reservation), ScanError> {
        let State { indexer, mut memory } = locked(&self.state).take().ok_or(IndexError::Died)?;
        let index = indexer.finish(&self.expected)?;
        memory.resize(index.memory_bytes())?;
        Ok((index, memory))
    }

    /// Gives back what it takes; it may begin once more.
    pub(super) fn stop(&self) {
        let state = locked(&self.state).take();
        drop(state);
    }

    /// It was not the layer that it should be.
    pub(super) fn fail(&self) {
        self.has_failed.store(true, Ordering::Release);
        self.stop();
    }

    /// Whether it has turned out not to be the layer that it should be.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }
}
