//! The spans that were decompressed last. Files that lie side by side are read one after the other
//! more often than not.

use std::{collections::VecDeque, sync::Mutex};

use bytes::Bytes;

use super::layer::LayerKey;
use crate::lock::locked;

/// Bytes that are kept.
const LIMIT: usize = 16 << 20;

#[derive(Default)]
pub(super) struct RecentSpans(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    bytes: usize,
    /// The one that was used last stands last.
    spans: VecDeque<(LayerKey, u32, Bytes)>,
}

impl RecentSpans {
    pub(super) fn get(&self, layer: &LayerKey, span: u32) -> Option<Bytes> {
        let mut kept = locked(&self.0);
        let at = kept.spans.iter().position(|(of, number, _)| of == layer && *number == span)?;
        let found = kept.spans.remove(at)?;
        let bytes = found.2.clone();
        kept.spans.push_back(found);
        Some(bytes)
    }

    pub(super) fn put(&self, layer: &LayerKey, span: u32, bytes: Bytes) {
        let mut kept = locked(&self.0);
        kept.bytes += bytes.len();
        kept.spans.push_back((*layer, span, bytes));
        // A single one is kept however large it is: somebody is about to read it.
        while kept.bytes > LIMIT && kept.spans.len() > 1 {
            let oldest = kept.spans.pop_front().map_or(0, |(_, _, bytes)| bytes.len());
            kept.bytes -= oldest;
        }
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        *locked(&self.0) = Kept::default();
    }
}
