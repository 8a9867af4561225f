//! The spans that were decompressed last, and the decoders that stand behind them. Files that lie side by side
//! are read one after the other more often than not.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use lru::LruCache;
use tokio::runtime::Handle;

use super::{index_store::Indexed, key::LayerKey};
use crate::{
    layer::SpanDecoder,
    util::{Budget, Kept, Reservation, locked},
};

/// Bytes of spans that are kept.
const LIMIT: usize = 8 << 20;

/// Spans that are kept: those of tables of contents may be small.
const MOST: usize = 256;

/// Decoders that are kept, about as many as there are readers at a time.
const MOST_DECODERS: usize = 8;

/// How far behind the span that is wanted a decoder may stand to be used for it, in spans.
const MOST_BEHIND: u32 = 64;

/// How long everything is kept when nobody reads.
const IDLE: Duration = Duration::from_secs(5);

/// Spans that have been decompressed together and checked.
pub(super) struct Group {
    /// Where in the stream each begins, and its bytes, in order.
    pub spans: Box<[(u64, Bytes)]>,
    /// For their bytes.
    pub _memory: Reservation,
}

impl Group {
    /// The span that is this part of the stream, if it is one of them.
    pub(super) fn get(&self, range: &Range<u64>) -> Option<&Bytes> {
        let at = self.spans.binary_search_by_key(&range.start, |(offset, _)| *offset).ok()?;
        let bytes = &self.spans.get(at)?.1;
        (bytes.len() as u64 == range.end - range.start).then_some(bytes)
    }
}

/// A span, by where it is in the stream of its layer. Indexes of a layer may number them in different ways.
type Name = (LayerKey, u64);

/// A span that is kept.
struct Recent {
    bytes: Bytes,
    is_checked: Mutex<bool>,
    _memory: Reservation,
}

/// A decoder that is kept, until somebody takes it.
struct Idle {
    decoder: Mutex<Option<SpanDecoder>>,
    index: Arc<Indexed>,
    _memory: Reservation,
}

pub(super) struct RecentSpans {
    spans: Kept<Name, Recent>,
    /// By the layer and the next span.
    decoders: Kept<(LayerKey, u32), Idle>,
    budget: Budget,
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
    /// The bytes of each span; some may have been let go already.
    order: LruCache<Name, usize>,
    decoders: LruCache<(LayerKey, u32), ()>,
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
            decoders: LruCache::unbounded(),
        };
        Arc::new(Self {
            spans: Kept::new(budget),
            decoders: Kept::new(budget),
            budget: budget.clone(),
            usage: Mutex::new(usage),
            runtime: Handle::try_current().ok(),
        })
    }

    /// The bytes of a span, if they are here and right; and how many had to be hashed to find that out.
    pub(super) fn get(&self, layer: &LayerKey, index: &Indexed, span: u32) -> (Option<Bytes>, u64) {
        let range = index.stream_range(span);
        let name = (*layer, range.start);
        let Some(recent) = self.spans.get(&name) else { return (None, 0) };
        if recent.bytes.len() as u64 != range.end - range.start {
            return (None, 0);
        }
        locked(&self.usage).order.promote(&name);
        let mut is_checked = locked(&recent.is_checked);
        if *is_checked {
            return (Some(recent.bytes.clone()), 0);
        }
        let hashed_bytes = recent.bytes.len() as u64;
        if index.is_right(span, &recent.bytes) {
            *is_checked = true;
            return (Some(recent.bytes.clone()), hashed_bytes);
        }
        self.spans.remove_if(&name, |kept| std::ptr::eq(kept, &*recent));
        (None, hashed_bytes)
    }

    /// Keeps a span that begins at `stream_offset`. If it has not been checked, it is before it is given to
    /// anybody.
    pub(super) fn put(&self, layer: &LayerKey, stream_offset: u64, bytes: Bytes, is_checked: bool) {
        // Where there is no room, it is decompressed again.
        let Ok(memory) = self.budget.reserve(bytes.len() as u64) else { return };
        let (name, length) = ((*layer, stream_offset), bytes.len());
        let recent = Recent { bytes, is_checked: Mutex::new(is_checked), _memory: memory };
        self.spans.insert(name, &Arc::new(recent));
        let mut gone = Vec::new();
        {
            let Usage { bytes, order, .. } = &mut *locked(&self.usage);
            *bytes += length;
            *bytes -= order.put(name, length).unwrap_or(0);
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
            self.spans.remove_if(&name, |_| true);
        }
    }

    /// A decoder that stands at `span` or before it, in its group; whoever gets it has it for himself.
    pub(super) fn take_decoder(
        &self,
        layer: &LayerKey,
        index: &Arc<Indexed>,
        span: u32,
    ) -> Option<SpanDecoder> {
        let first = index.group(span).start.max(span.saturating_sub(MOST_BEHIND));
        (first..=span).rev().find_map(|next| {
            let name = (*layer, next);
            let idle = self.decoders.get(&name).filter(|idle| Arc::ptr_eq(&idle.index, index))?;
            let decoder = locked(&idle.decoder).take();
            self.decoders.remove_if(&name, |kept| std::ptr::eq(kept, &*idle));
            locked(&self.usage).decoders.pop(&name);
            decoder
        })
    }

    /// Keeps a decoder for whoever wants the spans behind it.
    pub(super) fn put_decoder(&self, layer: &LayerKey, index: &Arc<Indexed>, decoder: SpanDecoder) {
        let next = decoder.next_span();
        if next >= index.span_count() {
            return;
        }
        let Ok(memory) = self.budget.reserve(decoder.memory_bytes()) else { return };
        let decoder = Mutex::new(Some(decoder));
        let idle = Idle { decoder, index: index.clone(), _memory: memory };
        let name = (*layer, next);
        self.decoders.insert(name, &Arc::new(idle));
        let gone = {
            let Usage { decoders, .. } = &mut *locked(&self.usage);
            decoders.put(name, ());
            (decoders.len() > MOST_DECODERS).then(|| decoders.pop_lru()).flatten()
        };
        if let Some((name, ())) = gone {
            self.decoders.remove_if(&name, |_| true);
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
                all.decoders.clear();
                drop(all);
                self.spans.let_go();
                self.decoders.let_go();
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
