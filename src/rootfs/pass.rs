//! The pass over a layer while it is under way.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::watch;

use crate::{
    image::{Algorithm, Descriptor, Digest},
    layer::{Expected, IndexError, Indexer, LayerIndex, Options},
    util::locked,
};

pub(super) struct Pass {
    expected: Expected,
    options: Options,
    /// `None` when it has ended.
    indexer: Mutex<Option<Indexer>>,
    /// Bytes of the blob that have passed.
    passed: watch::Sender<u64>,
    has_failed: AtomicBool,
}

impl Pass {
    pub(super) fn new(blob: &Descriptor, diff_id: Option<Digest>) -> Self {
        let options = Options {
            blob: blob.digest.algorithm(),
            diff_id: diff_id.map_or(Algorithm::Sha256, |digest| digest.algorithm()),
            ..Options::default()
        };
        // The diff ID is compared by each image with its own: a wrong one is that image's fault,
        // not the layer's.
        let expected = Expected { blob: blob.digest, blob_bytes: blob.size, diff_id: None };
        Self {
            expected,
            options,
            indexer: Mutex::new(None),
            passed: watch::Sender::new(0),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Begins, with nothing passed.
    pub(super) fn begin(&self) {
        *locked(&self.indexer) = Some(Indexer::new(self.options));
        self.passed.send_replace(0);
    }

    /// Takes the next bytes of the blob.
    pub(super) fn push(&self, bytes: &[u8]) -> Result<(), IndexError> {
        if let Some(indexer) = &mut *locked(&self.indexer) {
            indexer.push(bytes)?;
        }
        self.passed.send_modify(|passed| *passed += bytes.len() as u64);
        Ok(())
    }

    /// Bytes of the blob that have passed; changes whenever more have.
    pub(super) fn passed(&self) -> watch::Receiver<u64> {
        self.passed.subscribe()
    }

    /// An index of what has passed, if the file `path` and all of its content has.
    pub(super) fn index_with(&self, path: &[u8]) -> Option<LayerIndex> {
        let indexer = locked(&self.indexer);
        let indexer = indexer.as_ref()?;
        let (table, path) = (indexer.table(), indexer.find(path)?);
        let entry = table.last_entry(path).and_then(|number| table.entry(number));
        // A directory may have no entry of its own.
        let end = entry.map_or(0, |entry| entry.data_offset.saturating_add(entry.size));
        (end <= indexer.settled_bytes()).then(|| indexer.so_far(&self.expected)).flatten()
    }

    /// All bytes have come.
    pub(super) fn finish(&self) -> Result<LayerIndex, IndexError> {
        let indexer = locked(&self.indexer).take();
        indexer.ok_or(IndexError::Died)?.finish(&self.expected)
    }

    /// It was not the layer that it should be.
    pub(super) fn fail(&self) {
        self.has_failed.store(true, Ordering::Release);
    }

    /// Whether it has turned out not to be the layer that it should be.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }
}
