//! The spans that were decompressed last. Files that lie side by side are read one after the other
//! more often than not.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::layer::LayerKey;
use crate::util::locked;

/// Bytes that are kept.
const LIMIT: usize = 16 << 20;

/// Groups that are kept: those of tables of contents may be small, and they are looked for one by one.
const MOST: usize = 256;

/// How long they are kept when nobody reads.
const IDLE: Duration = Duration::from_secs(5);

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

pub(super) struct RecentSpans {
    kept: Mutex<Kept>,
    /// Where it waits for readers to have ended.
    runtime: Option<Handle>,
}

#[derive(Default)]
struct Kept {
    readers: usize,
    /// Readers that have ended.
    reads: u64,
    /// Whether somebody waits for them to have ended for good.
    is_watched: bool,
    bytes: usize,
    /// What was used last stands last.
    groups: VecDeque<(LayerKey, Group)>,
}

impl RecentSpans {
    /// For the runtime that this is called in.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { kept: Mutex::default(), runtime: Handle::try_current().ok() })
    }

    /// The group that begins with the span `first` of a layer.
    pub(super) fn get(&self, layer: &LayerKey, first: u32) -> Option<Group> {
        let mut kept = locked(&self.kept);
        let at = kept.groups.iter().position(|(of, g)| of == layer && g.first == first)?;
        let found = kept.groups.remove(at)?;
        let group = found.1.clone();
        kept.groups.push_back(found);
        Some(group)
    }

    pub(super) fn put(&self, layer: &LayerKey, group: Group) {
        let mut kept = locked(&self.kept);
        kept.bytes += group.bytes();
        kept.groups.push_back((*layer, group));
        // A single one is kept however large it is: somebody is about to read it.
        while (kept.bytes > LIMIT || kept.groups.len() > MOST) && kept.groups.len() > 1 {
            let oldest = kept.groups.pop_front().map_or(0, |(_, group)| group.bytes());
            kept.bytes -= oldest;
        }
    }

    /// Notes that somebody reads. Some time after the last one has ended, everything is forgotten:
    /// not at once, because programs that read everything read one file after the other.
    pub(super) fn reader(self: &Arc<Self>) -> Reader {
        locked(&self.kept).readers += 1;
        Reader(self.clone())
    }

    /// Forgets everything once nobody has read for a while.
    async fn forget_when_idle(self: Arc<Self>) {
        loop {
            let reads = locked(&self.kept).reads;
            tokio::time::sleep(IDLE).await;
            let mut kept = locked(&self.kept);
            if kept.readers == 0 && kept.reads == reads {
                *kept = Kept::default();
                return;
            }
        }
    }
}

/// Somebody who reads.
pub(super) struct Reader(Arc<RecentSpans>);

impl Drop for Reader {
    fn drop(&mut self) {
        let mut kept = locked(&self.0.kept);
        kept.readers -= 1;
        kept.reads += 1;
        if let Some(runtime) = &self.0.runtime
            && kept.readers == 0
            && !kept.is_watched
        {
            kept.is_watched = true;
            runtime.spawn(self.0.clone().forget_when_idle());
        }
    }
}
