//! The spans that were decompressed last. Files that lie side by side are read one after the other
//! more often than not.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use lru::LruCache;
use tokio::runtime::Handle;

use super::key::LayerKey;
use crate::util::{Budget, Kept, Reservation, locked};

/// Bytes that are kept.
const LIMIT: usize = 16 << 20;

/// Groups that are kept: those of tables of contents may be small.
const MOST: usize = 256;

/// How long they are kept when nobody reads.
const IDLE: Duration = Duration::from_secs(5);

/// Spans that are decompressed together.
pub(super) struct Group {
    /// The number of the first of them.
    pub first: u32,
    pub spans: Box<[Bytes]>,
    /// For their bytes.
    pub _memory: Reservation,
}

impl Group {
    /// The span with this number, if it is one of them.
    pub(super) fn get(&self, span: u32) -> Option<&Bytes> {
        self.spans.get(span.checked_sub(self.first)? as usize)
    }

    /// Decompressed bytes.
    pub(super) fn bytes(&self) -> usize {
        self.spans.iter().map(Bytes::len).sum()
    }
}

/// A group: its layer and the number of its first span.
type Name = (LayerKey, u32);

pub(super) struct RecentSpans {
    groups: Kept<Name, Group>,
    usage: Mutex<Usage>,
    /// Where it waits for readers to have ended.
    runtime: Option<Handle>,
}

struct Usage {
    readers: usize,
    /// Readers that have ended.
    reads: u64,
    /// Whether somebody waits for them to have ended for good.
    is_watched: bool,
    /// Of `order`.
    bytes: usize,
    /// The bytes of each group; some may have been let go already.
    order: LruCache<Name, usize>,
}

impl RecentSpans {
    /// For the runtime that this is called in.
    pub(super) fn new(budget: &Budget) -> Arc<Self> {
        let usage = Usage {
            readers: 0,
            reads: 0,
            is_watched: false,
            bytes: 0,
            order: LruCache::unbounded(),
        };
        Arc::new(Self {
            groups: Kept::new(budget),
            usage: Mutex::new(usage),
            runtime: Handle::try_current().ok(),
        })
    }

    /// The group that begins with the span `first` of a layer.
    pub(super) fn get(&self, layer: &LayerKey, first: u32) -> Option<Arc<Group>> {
        let name = (*layer, first);
        let group = self.groups.get(&name)?;
        locked(&self.usage).order.promote(&name);
        Some(group)
    }

    pub(super) fn put(&self, layer: &LayerKey, group: &Arc<Group>) {
        let name = (*layer, group.first);
        self.groups.insert(name, group);
        let mut gone = Vec::new();
        {
            let Usage { bytes, order, .. } = &mut *locked(&self.usage);
            *bytes += group.bytes();
            *bytes -= order.put(name, group.bytes()).unwrap_or(0);
            // A single one is kept however large it is: somebody is about to read it.
            while (*bytes > LIMIT || order.len() > MOST)
                && order.len() > 1
                && let Some((oldest, size)) = order.pop_lru()
            {
                *bytes -= size;
                gone.push(oldest);
            }
        }
        for name in gone {
            self.groups.remove_if(&name, |_| true);
        }
    }

    /// Notes that somebody reads. Some time after the last one has ended, everything is forgotten:
    /// not at once, because programs that read everything read one file after the other.
    pub(super) fn reader(self: &Arc<Self>) -> Reader {
        locked(&self.usage).readers += 1;
        Reader(self.clone())
    }

    /// Forgets everything once nobody has read for a while.
    async fn forget_when_idle(self: Arc<Self>) {
        loop {
            let reads = locked(&self.usage).reads;
            tokio::time::sleep(IDLE).await;
            let mut all = locked(&self.usage);
            if all.readers == 0 && all.reads == reads {
                all.is_watched = false;
                all.bytes = 0;
                all.order.clear();
                drop(all);
                self.groups.let_go();
                return;
            }
        }
    }
}

/// Somebody who reads.
pub(super) struct Reader(Arc<RecentSpans>);

impl Drop for Reader {
    fn drop(&mut self) {
        let mut all = locked(&self.0.usage);
        all.readers -= 1;
        all.reads += 1;
        if let Some(runtime) = &self.0.runtime
            && all.readers == 0
            && !all.is_watched
        {
            all.is_watched = true;
            runtime.spawn(self.0.clone().forget_when_idle());
        }
    }
}
