//! Following a profile: what it says is going to be read is fetched and decompressed ahead.
//!
//! Compressed bytes are fetched in few large requests, several at a time, in about the order in which they are
//! needed: those of reads that come one after the other are sorted by where they are, and neighbours become one
//! request. Then the spans are decompressed into the cache, where whoever reads finds them. All of that goes behind
//! what somebody waits for.
//!
//! What is fetched is bounded by [`MOST_BYTES`] and by the size of the cache, whatever a profile says, and only
//! layers of the image are read, that have an index already.

use std::{
    collections::HashSet,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::iter};

use super::{
    Images, Variant,
    decode::stream_bytes,
    index_store::Indexed,
    layer::Layer,
    location::Compressed,
    stream::{Stream, stream},
};
use crate::{
    backend::images_dir::cached::BLOCK_BYTES,
    cache::CachedBlob,
    layer::{Profile, ProfiledRead, ProfiledStream, StreamKind},
};

/// Bytes that are fetched at most, and as many may come out of them.
const MOST_BYTES: u64 = 512 << 20;

/// At most this part of the cache is filled.
const CACHE_PART: u64 = 4;

/// Requests for compressed bytes at a time. The cache has places for more.
const REQUESTS: usize = 6;

/// Parts that are decompressed at a time: one place for streams is left to those who wait.
const DECODING: usize = 3;

/// Compressed bytes between two parts that are fetched with them, since a request costs more.
const GAP: u64 = 128 << 10;

/// What one request fetches, if it does not take more for one span.
const REQUEST_BYTES: u64 = 8 << 20;

/// Reads that are sorted by where they are: few at first, so that what is needed at once comes at once.
const BATCHES: [usize; 4] = [16, 64, 256, 1024];

/// Failures after which a profile is given up.
const MOST_FAILURES: usize = 8;

/// How often, and for how long, layers are waited for that have no index yet.
const LATER: Duration = Duration::from_millis(500);
const ROUNDS: usize = 40;

/// A stream of the image that a profile speaks of.
struct Source {
    layer: Arc<Layer>,
    index: Arc<Indexed>,
    /// Keeps what has been decompressed last.
    _open: Stream,
    stream: CachedBlob,
    /// `None` if the layer is local.
    compressed: Option<CachedBlob>,
}

/// One request, and what is decompressed when it has come.
struct Step {
    source: usize,
    compressed: Range<u64>,
    reads: Vec<Range<u64>>,
}

impl Step {
    /// Bytes that nobody needs, and that may be fetched before the next part: no more than those that are.
    fn gap(&self) -> u64 {
        GAP.min(self.compressed.end - self.compressed.start)
    }
}

/// What is left of the bound, and what has been taken already.
struct Bound {
    compressed: u64,
    decompressed: u64,
    taken: HashSet<(usize, u32)>,
}

/// Fetches what `profile` says is read of the image. Bytes that have been asked for.
pub(super) async fn follow(images: &Images, variant: &Arc<Variant>, profile: &Profile) -> u64 {
    let limit = images.store().sources.cache.stats().limit_bytes / CACHE_PART;
    let limit = limit.min(MOST_BYTES);
    let mut bound = Bound { compressed: limit, decompressed: limit, taken: HashSet::new() };
    let mut sources: Vec<Option<Source>> = profile.streams().iter().map(|_| None).collect();
    let mut is_followed = vec![false; sources.len()];
    for round in 0..ROUNDS {
        let mut is_new = false;
        for (number, of) in profile.streams().iter().enumerate() {
            if sources[number].is_none() {
                sources[number] = open(images, variant, of).await;
                is_new |= sources[number].is_some();
            }
        }
        if is_new {
            let reads: Vec<&ProfiledRead> = profile
                .reads()
                .iter()
                .filter(|read| {
                    let number = usize::from(read.stream);
                    sources[number].is_some() && !is_followed[number]
                })
                .collect();
            if !run(&sources, &reads, &mut bound).await {
                break;
            }
            for (source, is_followed) in sources.iter().zip(&mut is_followed) {
                *is_followed = source.is_some();
            }
        }
        let mut open = profile.streams().iter().zip(&is_followed).filter(|(_, done)| !**done);
        let waits = open.any(|(of, _)| {
            layer_of(images, variant, of).is_some_and(|layer| layer.known_index().is_none())
        });
        if !waits || round + 1 == ROUNDS {
            break;
        }
        tokio::time::sleep(LATER).await;
    }
    limit - bound.compressed
}

/// The layer of the image that a profile speaks of, if it has such a one.
fn layer_of(images: &Images, variant: &Variant, of: &ProfiledStream) -> Option<Arc<Layer>> {
    let number = variant.layers().iter().position(|layer| layer.digest == of.layer)?;
    images.layer(variant, number)
}

/// Opens a stream of the image, if its layer has an index and that has the stream that is meant.
async fn open(images: &Images, variant: &Arc<Variant>, of: &ProfiledStream) -> Option<Source> {
    let layer = layer_of(images, variant, of)?;
    // It is made for those who read, and not for this.
    let index = layer.known_index()?;
    if !of.is_of(&index.blob(), StreamKind::of(index.origin()), index.stream_bytes()) {
        return None;
    }
    let open = stream(&layer, &index).ok()?;
    let Stream::Cached { stream, .. } = &open else { return None };
    let stream = stream.clone();
    let compressed = match layer.at.compressed().await.ok()? {
        Compressed::Cached(blob) => Some(blob),
        Compressed::File(_) => None,
    };
    Some(Source { layer, index, _open: open, stream, compressed })
}

/// Whether there is room for more.
async fn run(sources: &[Option<Source>], reads: &[&ProfiledRead], bound: &mut Bound) -> bool {
    let failures = AtomicUsize::new(0);
    let (mut at, mut batch) = (0, 0);
    while at < reads.len() {
        let end = reads.len().min(at + BATCHES[batch.min(BATCHES.len() - 1)]);
        let (steps, has_room) = plan(sources, &reads[at..end], bound);
        iter(steps)
            .map(|step| fetch(sources, step, &failures))
            .buffered(REQUESTS)
            .for_each_concurrent(DECODING, |step| decode(sources, step, &failures))
            .await;
        if !has_room || failures.load(Ordering::Relaxed) >= MOST_FAILURES {
            return false;
        }
        (at, batch) = (end, batch + 1);
    }
    true
}

async fn fetch(sources: &[Option<Source>], step: Step, failures: &AtomicUsize) -> Step {
    if let Some(source) = &sources[step.source]
        && let Some(compressed) = &source.compressed
        && failures.load(Ordering::Relaxed) < MOST_FAILURES
        && let Err(error) = compressed.fetch_ahead(step.compressed.clone()).await
    {
        failures.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(digest = %source.layer.at.blob.digest, "a profile is not followed: {error}");
    }
    step
}

async fn decode(sources: &[Option<Source>], step: Step, failures: &AtomicUsize) {
    let Some(source) = &sources[step.source] else { return };
    for read in step.reads {
        if failures.load(Ordering::Relaxed) >= MOST_FAILURES {
            return;
        }
        if let Err(error) = source.stream.fetch_ahead(read).await {
            failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(digest = %source.layer.at.blob.digest, "a profile is not followed: {error}");
        }
    }
}

/// What has to be done for some reads, which are of sources that are open. Second, whether there is room for more.
fn plan(
    sources: &[Option<Source>],
    reads: &[&ProfiledRead],
    bound: &mut Bound,
) -> (Vec<Step>, bool) {
    let mut parts: Vec<(usize, Range<u64>, Range<u64>)> = Vec::new();
    let mut has_room = true;
    for read in reads {
        let number = usize::from(read.stream);
        let Some(source) = sources.get(number).and_then(Option::as_ref) else { continue };
        if source.stream.has(read.range.clone()) {
            continue;
        }
        let index = &source.index;
        let mut span = index.span_from(read.range.start);
        let mut at = read.range.start;
        // Group by group: each can be fetched by itself.
        while at < read.range.end && span < index.span_count() {
            let group = index.group(span);
            let end = index.stream_range(group.end - 1).end.max(at + 1);
            let part = at..end.min(read.range.end);
            let compressed = index.fetch_range(group.clone());
            // What can only be decompressed from the beginning is more than anybody has asked for.
            let is_wanted = !index.needs_sequential(span);
            if is_wanted && bound.taken.insert((number, group.start)) {
                let from_elsewhere = match source.compressed {
                    // The cache fetches whole blocks.
                    Some(_) => compressed.end - compressed.start + BLOCK_BYTES,
                    None => 0,
                };
                has_room = bound.take(from_elsewhere, stream_bytes(index, &group));
                if !has_room {
                    return (steps(parts), false);
                }
            }
            if is_wanted {
                parts.push((number, compressed, part));
            }
            (at, span) = (end, group.end);
        }
    }
    (steps(parts), has_room)
}

impl Bound {
    fn take(&mut self, compressed: u64, decompressed: u64) -> bool {
        let left = |of: u64, bytes: u64| of.checked_sub(bytes);
        match (left(self.compressed, compressed), left(self.decompressed, decompressed)) {
            (Some(compressed), Some(decompressed)) => {
                (self.compressed, self.decompressed) = (compressed, decompressed);
                true
            }
            _ => false,
        }
    }
}

/// Requests for the parts, which are the number of a source, its compressed bytes, and what is read.
fn steps(mut parts: Vec<(usize, Range<u64>, Range<u64>)>) -> Vec<Step> {
    parts.sort_by_key(|(source, compressed, read)| (*source, compressed.start, read.start));
    let mut steps: Vec<Step> = Vec::new();
    for (source, compressed, read) in parts {
        match steps.last_mut() {
            Some(step)
                if step.source == source
                    && compressed.start <= step.compressed.end.saturating_add(step.gap())
                    && compressed.end.max(step.compressed.end) - step.compressed.start
                        <= REQUEST_BYTES =>
            {
                step.compressed.end = step.compressed.end.max(compressed.end);
                step.reads.push(read);
            }
            _ => steps.push(Step { source, compressed, reads: vec![read] }),
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_request() {
        let mib = 1 << 20;
        let made = steps(vec![
            (1, 0..100, 0..1),
            (0, 20 * mib..21 * mib, 70..71),
            (0, 0..mib, 5..6),
            (0, 0..mib, 2..3),
            (0, mib + GAP..2 * mib, 20..21),
            (0, 3 * mib..8 * mib + 1, 30..31),
        ]);
        let begins = |step: Step| step.reads.iter().map(|read| read.start).collect::<Vec<_>>();
        let made =
            made.into_iter().map(|step| (step.source, step.compressed.clone(), begins(step)));
        assert_eq!(
            made.collect::<Vec<_>>(),
            [
                (0, 0..2 * mib, vec![2, 5, 20]),
                (0, 3 * mib..8 * mib + 1, vec![30]),
                (0, 20 * mib..21 * mib, vec![70]),
                (1, 0..100, vec![0]),
            ]
        );
    }

    #[test]
    fn what_is_taken_is_bounded() {
        let mut bound = Bound { compressed: 10, decompressed: 100, taken: HashSet::new() };
        assert!(bound.take(4, 60) && !bound.take(4, 60) && !bound.take(7, 1) && bound.take(6, 40));
        assert!(!bound.take(0, 1) && bound.take(0, 0));
    }
}
