//! The spans that were decompressed last. Files that lie side by side are read one after the other
//! more often than not.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use super::layer::LayerKey;
use crate::lock::locked;

/// Bytes that are kept.
const LIMIT: usize = 16 << 20;

/// Spans that are decompressed together.
#[derive(Clone)]
pub(super) struct Group {
    /// The number of the first of them.
    pub first: u32,
    pub spans: Arc<[Bytes]>,
}

impl Group {
    /// The span with this number, if it is one of them.
    pub(super) fn get(&self, span: u32) -> Option<&Bytes> {
        self.spans.get(span.checked_sub(self.first)? as usize)
    }

    fn bytes(&self) -> usize {
        self.spans.iter().map(Bytes::len).sum()
    }
}

#[derive(Default)]
pub(super) struct RecentSpans(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    bytes: usize,
    /// What was used last stands last.
    groups: VecDeque<(LayerKey, Group)>,
}

impl RecentSpans {
    /// The group that begins with the span `first` of a layer.
    pub(super) fn get(&self, layer: &LayerKey, first: u32) -> Option<Group> {
        let mut kept = locked(&self.0);
        let at = kept.groups.iter().position(|(of, g)| of == layer && g.first == first)?;
        let found = kept.groups.remove(at)?;
        let group = found.1.clone();
        kept.groups.push_back(found);
        Some(group)
    }

    pub(super) fn put(&self, layer: &LayerKey, group: Group) {
        let mut kept = locked(&self.0);
        kept.bytes += group.bytes();
        kept.groups.push_back((*layer, group));
        // A single one is kept however large it is: somebody is about to read it.
        while kept.bytes > LIMIT && kept.groups.len() > 1 {
            let oldest = kept.groups.pop_front().map_or(0, |(_, group)| group.bytes());
            kept.bytes -= oldest;
        }
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        *locked(&self.0) = Kept::default();
    }
}
