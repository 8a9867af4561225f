//! The pass over a layer while it is under way.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    image::{Algorithm, Descriptor, Digest},
    layer::{Expected, IndexError, Indexer, LayerIndex, Options},
    lock::locked,
};

pub(super) struct Pass {
    expected: Expected,
    options: Options,
    /// `None` when it has ended.
    indexer: Mutex<Option<Indexer>>,
    /// Bytes of the blob that have passed.
    passed: AtomicU64,
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
        let indexer = Mutex::new(Some(Indexer::new(options)));
        Self { expected, options, indexer, passed: AtomicU64::new(0) }
    }

    /// Forgets what has passed.
    pub(super) fn begin_again(&self) {
        *locked(&self.indexer) = Some(Indexer::new(self.options));
        self.passed.store(0, Ordering::Relaxed);
    }

    /// Takes the next bytes of the blob.
    pub(super) fn push(&self, bytes: &[u8]) -> Result<(), IndexError> {
        if let Some(indexer) = &mut *locked(&self.indexer) {
            indexer.push(bytes)?;
        }
        self.passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes of the blob that have passed.
    pub(super) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// All bytes have come.
    pub(super) fn finish(&self) -> Result<LayerIndex, IndexError> {
        let indexer = locked(&self.indexer).take();
        indexer.ok_or(IndexError::Died)?.finish(&self.expected)
    }
}
