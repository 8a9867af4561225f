//! The decompressed stream of a layer, and how it becomes content for the cache.

use std::{
    collections::VecDeque,
    future::ready,
    io,
    ops::Range,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    decode::{Keeping, stream_bytes},
    index_store::Indexed,
    layer::Layer,
    location::{Compressed, STEP},
    scan::Scan,
    spans::{Group, Reader},
};
use crate::{
    backend::{Blobs, BoxStream, ByteStream, Kind, Result},
    cache::CachedBlob,
    image::{Descriptor, Repository},
    layer::SpanDecoder,
    util::{joined, locked},
};

/// Spans that are decompressed together for somebody who reads on.
const SPANS_AT_ONCE: u32 = 4;

/// The window of usual zstd frames, in bytes.
const WINDOW_BYTES: u64 = 2 << 20;

/// The decompressed stream of a layer, open for reading.
pub(super) enum Stream {
    /// By way of the cache.
    Cached { stream: CachedBlob, _compressed: Option<CachedBlob>, _reader: Reader },
    /// What has been scanned, while nobody knows yet whether it is the right layer.
    Scanning(Arc<dyn ReadScanned>),
}

/// Reads what has been scanned of a layer.
pub(super) trait ReadScanned: Send + Sync {
    /// The bytes `range`, all of them.
    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>>;

    /// Waits until it is known whether it is the right layer.
    fn verified(&self) -> BoxFuture<'_, Result<()>>;
}

impl Stream {
    /// Whether what is read is known to be right.
    pub(super) fn is_certain(&self) -> bool {
        matches!(self, Self::Cached { .. })
    }

    /// Waits until it is known whether what was read is right.
    pub(super) async fn verified(&self) -> Result<()> {
        match self {
            Self::Cached { .. } => Ok(()),
            Self::Scanning(stream) => stream.verified().await,
        }
    }

    /// Reads of a file that ends at the byte `end`, without waiting for a registry, if that can be.
    pub(super) fn try_read(&self, end: u64, offset: u64, length: usize) -> Option<Result<Bytes>> {
        match self {
            Self::Cached { stream, .. } => stream.try_read_before(end, offset, length),
            Self::Scanning(_) => None,
        }
    }

    /// Reads, however long that takes.
    pub(super) async fn read(&self, end: u64, offset: u64, length: usize) -> Result<Bytes> {
        match self {
            Self::Cached { stream, .. } => stream.read_before(end, offset, length).await,
            Self::Scanning(stream) => stream.read(offset..offset + length as u64).await,
        }
    }
}

/// A layer that is being scanned.
pub(super) struct Scanned {
    pub layer: Arc<Layer>,
    pub index: Arc<Indexed>,
    pub scan: Arc<Scan>,
    /// What was read last.
    pub last: Mutex<Option<Arc<Group>>>,
}

impl Scanned {
    /// The group of a span up to that. It may become longer yet, so it is kept here only.
    async fn group(&self, span: u32) -> Result<Arc<Group>> {
        let range = self.index.stream_range(span);
        let last = locked(&self.last).clone();
        if let Some(group) = last.filter(|group| group.get(&range).is_some()) {
            return Ok(group);
        }
        let spans = self.index.group(span).start..span + 1;
        let group = self.layer.decode(&self.index, spans, Keeping::Nothing).await?;
        *locked(&self.last) = Some(group.clone());
        Ok(group)
    }
}

impl ReadScanned for Scanned {
    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        let read = async move {
            let mut parts = Vec::new();
            let mut at = range.start;
            while at < range.end {
                if self.scan.has_failed() {
                    // Whoever has begun to read what was wrong does not get the end of it.
                    let reason = "it has turned out not to be the layer that it should be";
                    return Err(self.layer.error(Kind::Layer(reason.into())));
                }
                let ended = || self.layer.error(Kind::Layer("it ends before the file does".into()));
                let span = self.index.span_of(at).ok_or_else(ended)?;
                let group = self.group(span).await?;
                // A span has 8 MiB at most.
                let of = self.index.stream_range(span);
                let skip = (at - of.start) as usize;
                let found = group.get(&of).filter(|found| skip < found.len()).ok_or_else(ended)?;
                let length = (found.len() - skip).min((range.end - at) as usize);
                parts.push(found.slice(skip..skip + length));
                at += length as u64;
            }
            Ok(joined(parts))
        };
        read.boxed()
    }

    fn verified(&self) -> BoxFuture<'_, Result<()>> {
        async move {
            let index = self.layer.index().await?;
            match index.wrong() {
                Some(note) => Err(self.layer.error(Kind::Layer(note.kind.to_string()))),
                None => Ok(()),
            }
        }
        .boxed()
    }
}

/// A layer as the source of its stream.
pub(super) struct Decompressed {
    pub layer: Arc<Layer>,
    pub index: Arc<Indexed>,
}

#[async_trait]
impl Blobs for Decompressed {
    async fn read(&self, _: &Repository, _: &Descriptor, range: Range<u64>) -> Result<BoxStream> {
        let all = 0..self.index.stream_bytes();
        let first = self.index.span_from(range.start);
        let last = self.index.span_from(range.end.saturating_sub(1));
        let spans = first..self.index.span_count().min(last.saturating_add(1));
        let is_sequential = spans.clone().any(|span| self.index.needs_sequential(span));
        // What can only be decompressed from its beginning is decompressed once, and all kept.
        let way = match is_sequential && range == all {
            true => Way::InOrder(self.in_order().await?),
            false => Way::Each { ready: VecDeque::new(), coming: JoinSet::new() },
        };
        let (layer, index) = (self.layer.clone(), self.index.clone());
        Ok(Box::new(Spans { layer, index, left: range, spans, way, ignores_ranges: is_sequential }))
    }
}

/// How spans come.
enum Way {
    /// A few at a time, wherever they are.
    Each {
        /// Those that have come.
        ready: VecDeque<Bytes>,
        /// Those that follow, on their way; at most one task, which ends with this.
        coming: JoinSet<Result<Vec<Bytes>>>,
    },
    /// All of the layer, decompressed in order.
    InOrder(mpsc::Receiver<Result<Bytes>>),
}

/// A part of a stream.
pub(super) struct Spans {
    layer: Arc<Layer>,
    index: Arc<Indexed>,
    /// What is still to come of the range that was asked for, and of its spans.
    left: Range<u64>,
    spans: Range<u32>,
    way: Way,
    ignores_ranges: bool,
}

impl Spans {
    /// The next span, whole.
    async fn span(&mut self, span: u32) -> Result<Bytes> {
        let ended = || {
            let reason = format!("decompressing has ended before span {span}");
            self.layer.error(Kind::Interrupted(reason))
        };
        match &mut self.way {
            Way::InOrder(comes) => comes.recv().await.ok_or_else(ended)?,
            Way::Each { ready, coming } => {
                if ready.is_empty() {
                    let end = self.spans.end;
                    let some = |from: u32| from..end.min(from.saturating_add(SPANS_AT_ONCE));
                    let came = match coming.join_next().await {
                        Some(came) => came.map_err(|e| self.layer.error(io::Error::other(e)))??,
                        None => self.layer.spans(&self.index, some(span)).await?,
                    };
                    ready.extend(came);
                    let next = some(span + ready.len() as u32);
                    if !next.is_empty() {
                        // They are on their way while these are read.
                        let (layer, index) = (self.layer.clone(), self.index.clone());
                        coming.spawn(async move { layer.spans(&index, next).await });
                    }
                }
                ready.pop_front().ok_or_else(ended)
            }
        }
    }
}

#[async_trait]
impl ByteStream for Spans {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.left.start >= self.left.end {
            return Ok(None);
        }
        let span = self.spans.start;
        // Behind the last one there is nothing either.
        let begin = match span < self.spans.end {
            true => self.index.stream_range(span).start,
            false => self.left.end,
        };
        let bytes = if self.left.start < begin {
            // Between the files of a table of contents there is nothing, and not much of it.
            let gap = begin.min(self.left.end) - self.left.start;
            Bytes::from(vec![0; gap as usize])
        } else {
            let bytes = self.span(span).await?;
            self.spans.start += 1;
            let skip = (self.left.start - begin).min(bytes.len() as u64);
            bytes.slice(skip as usize..)
        };
        let left = self.left.end - self.left.start;
        let bytes = bytes.slice(..(bytes.len() as u64).min(left) as usize);
        self.left.start += bytes.len() as u64;
        Ok(Some(bytes))
    }

    fn ignores_ranges(&self) -> bool {
        self.ignores_ranges
    }
}

impl Decompressed {
    /// Decompresses all of the layer from its beginning.
    async fn in_order(&self) -> Result<mpsc::Receiver<Result<Bytes>>> {
        let (layer, index) = (self.layer.clone(), self.index.clone());
        let compressed = layer.at.compressed().await?.for_all();
        let (gives, comes) = mpsc::channel(4);
        let (sender, mut receiver) = mpsc::channel::<Bytes>(2);
        // The span that is decompressed, the one that waits, and the window.
        let largest = (0..index.span_count()).map(|span| stream_bytes(&index, &(span..span + 1)));
        let bytes = 3 * largest.max().unwrap_or(0).max(WINDOW_BYTES) + 4 * STEP as u64;
        let budget = &layer.at.store.sources.memory;
        let reserve = || ready(budget.reserve(bytes).map_err(|error| layer.error(error)));
        let memory = layer.at.store.with_memory(reserve).await?;
        let (reader, failed) = (layer.clone(), gives.clone());
        let fetch = index.fetch_range(0..index.span_count());
        let compressed = Arc::new(compressed);
        let source = compressed.clone();
        tokio::spawn(async move {
            let mut at = fetch.start;
            while at < fetch.end {
                let end = fetch.end.min(at + STEP as u64);
                match reader.at.fetch(&source, at..end).await {
                    Ok(bytes) if bytes.is_empty() => break,
                    Ok(bytes) => {
                        at += bytes.len() as u64;
                        if sender.send(bytes).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        // Who has gone away does not want to know.
                        let _ = failed.send(Err(error)).await;
                        return;
                    }
                }
            }
        });
        tokio::task::spawn_blocking(move || {
            if let Err(error) = decompress(&layer, &index, &compressed, &mut receiver, &gives) {
                let _ = gives.blocking_send(Err(error));
            }
            drop(memory);
        });
        Ok(comes)
    }
}

fn decompress(
    layer: &Arc<Layer>,
    index: &Indexed,
    compressed: &Compressed,
    comes: &mut mpsc::Receiver<Bytes>,
    gives: &mpsc::Sender<Result<Bytes>>,
) -> Result<()> {
    let failed = |error| {
        layer.at.distrust(compressed, &error);
        layer.error(Kind::Layer(error.to_string()))
    };
    let window = layer.window(index, 0);
    let spans = 0..index.span_count();
    let mut decoder = SpanDecoder::new(index, 0, window.as_deref()).map_err(failed)?;
    let mut is_wanted = true;
    while is_wanted {
        let Some(bytes) = comes.blocking_recv() else { return Ok(()) };
        let before = decoder.work();
        let is_done = decoder.push(index, &spans, &bytes, &mut |one| {
            is_wanted &= gives.blocking_send(Ok(one.bytes.into())).is_ok();
        });
        layer.at.store.decoded.add(decoder.work().since(before));
        is_wanted &= !is_done.map_err(failed)?;
    }
    Ok(())
}

/// A reader of the decompressed stream of `layer`.
pub(super) fn stream(layer: &Arc<Layer>, index: &Arc<Indexed>) -> Result<Stream> {
    let repository = layer.at.repository();
    let repository =
        repository.ok_or_else(|| layer.error(Kind::NotFound("nobody has it".into())))?;
    let source = Arc::new(Decompressed { layer: layer.clone(), index: index.clone() });
    let store = &layer.at.store;
    let (id, size) = (layer.key.of(index.source()).stream_id(index), index.stream_bytes());
    let stream = store.sources.cache.stream(source, repository, &layer.at.blob, id, size);
    let (compressed, reader) = (layer.at.remote(), store.recent.reader());
    Ok(Stream::Cached { stream, _compressed: compressed, _reader: reader })
}

/// The same of what has been scanned while the scan goes on.
pub(super) fn scanned_stream(layer: &Arc<Layer>, index: &Arc<Indexed>, scan: &Arc<Scan>) -> Stream {
    let (layer, index, scan) = (layer.clone(), index.clone(), scan.clone());
    Stream::Scanning(Arc::new(Scanned { layer, index, scan, last: Mutex::default() }))
}
