//! Cutting the stream into spans.

use std::ops::Range;

use crate::layer::{
    Compression,
    codec::Boundary,
    gzip::{FOLLOWING_BYTES, WINDOW_BYTES},
};

/// Decompressed bytes of a span. The cache keeps blocks of as many, so each of them is one span.
pub(super) const SPAN_BYTES: u64 = 128 << 10;

/// Decompressed bytes of the spans of layers that are compressed so well that the digests of smaller ones
/// would take too much of the index.
const LONG_SPAN_BYTES: u64 = 1 << 20;

/// Bytes that a span takes in the stored form, and which part of the blob's bytes those of all may take.
const STORED_SPAN_BYTES: u64 = 40;
const SPAN_SHARE: u64 = 128;

/// Decompressed bytes of the largest span that is read: those of version 2 of the stored form, and chunks of
/// tables of contents, have so many at most.
pub(super) const MAX_BYTES: u64 = 8 << 20;

/// Decompressed bytes that have to be passed over at most to get to the beginning of a span of a
/// table of contents. Those who put several files into one member do that with small ones.
pub(super) const MAX_REACH_BYTES: u64 = 64 << 20;

/// The same of an index that a pass has made.
pub(super) const MAX_SKIP_BYTES: u64 = LONG_SPAN_BYTES;

/// Takes little time, and the higher levels gain little on 32 KiB.
const WINDOW_LEVEL: i32 = 3;

/// A part of the stream that has a digest, and is read as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where in the stream it begins.
    pub(super) stream_offset: u64,
    /// How many bytes of the blob it takes to decompress it, from where that begins; 0 if that is not known.
    pub(super) blob_end: u64,
    /// The SHA-256 of its decompressed bytes; of its compressed ones if the index is made of a table of
    /// SOCI.
    pub(super) digest: [u8; 32],
    pub(super) start: Start,
    /// The number of the span at which decompressing begins for this one: the first of its group.
    pub(super) first: u32,
    /// Decompressed bytes to be passed over before its first one: from where decompressing begins,
    /// or from the end of the span before if it is no start.
    pub(super) skip: u32,
    /// Bytes of the stream between its end and the next span, where there is nothing. 0 in an index
    /// that a pass has made.
    pub(super) padding: u16,
}

/// How decompressing can begin for a span, at or before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Not at all.
    No,
    /// At the beginning of a member, a frame, or anywhere in a plain archive: at this bit of the blob.
    Clean { blob_bits: u64 },
    /// At this bit within a gzip member, with the window that is here among all windows.
    Window { blob_bits: u64, offset: u64, bytes: u32 },
}

impl Span {
    pub(super) fn is_start(&self) -> bool {
        self.start != Start::No
    }

    /// Where in the blob decompressing can begin, in bits.
    pub(super) fn blob_bits(&self) -> Option<u64> {
        match self.start {
            Start::No => None,
            Start::Clean { blob_bits } | Start::Window { blob_bits, .. } => Some(blob_bits),
        }
    }

    pub(super) fn window(&self) -> Option<Range<u64>> {
        match self.start {
            Start::Window { offset, bytes, .. } => Some(offset..offset + u64::from(bytes)),
            Start::No | Start::Clean { .. } => None,
        }
    }
}

/// A place at or before the first byte of a span where decompressing could begin, and needs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CleanStart {
    pub(super) blob_bits: u64,
    /// Decompressed bytes from there up to the span.
    pub(super) skip: u32,
}

/// The same within a gzip member, if it is worth the window.
#[derive(Debug)]
pub(super) struct WindowStart {
    pub(super) blob_bits: u64,
    pub(super) skip: u32,
    /// The stream before it, at most 32 KiB.
    pub(super) window: Vec<u8>,
    /// The blob from the byte with that bit on, until 32 KiB have come of it or all has; `None` if that is
    /// more than [`FOLLOWING_BYTES`].
    pub(super) following: Option<Vec<u8>>,
}

/// Cuts the stream as it comes, at multiples of [`SPAN_BYTES`], and finds the last place before each of these
/// where decompressing could begin.
pub(super) struct Cutter {
    compression: Compression,
    /// Decompressed bytes so far.
    at: u64,
    /// Where the current span begins; nothing may have come of it yet.
    span_at: u64,
    /// Where it ends, unless it is made longer then.
    span_end: u64,
    /// Spans before it.
    count: u64,
    /// Bytes of the blob before the last place where one could begin.
    boundary_bytes: u64,
    /// That place, unless it has been used or is too far from the next span.
    last: Option<Place>,
    /// The place for the current span, as long as what follows it has not come.
    awaited: Option<Place>,
    /// What of the blob has come from the first of these places on.
    behind: Vec<u8>,
    /// Where in the blob that begins.
    behind_at: u64,
}

/// Where decompressing could begin.
struct Place {
    stream_offset: u64,
    blob_bits: u64,
    /// `None` if it needs none.
    window: Option<Vec<u8>>,
}

impl Place {
    fn skip(&self, span_at: u64) -> u32 {
        // It is less than a long span.
        (span_at - self.stream_offset) as u32
    }
}

impl Cutter {
    pub(super) fn new(compression: Compression) -> Self {
        Self {
            compression,
            at: 0,
            span_at: 0,
            span_end: SPAN_BYTES,
            count: 0,
            boundary_bytes: 0,
            last: None,
            awaited: None,
            behind: Vec::new(),
            behind_at: 0,
        }
    }

    /// Decompressed bytes so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Decompressed bytes of the current span.
    pub(super) fn since(&self) -> u64 {
        self.at - self.span_at
    }

    /// The number of the current span.
    pub(super) fn span(&self) -> u64 {
        self.count
    }

    /// How many more bytes it takes at once, at least 1: those of the current span, and no more than what
    /// shows which bytes of a window are needed.
    pub(super) fn room(&self) -> u64 {
        let left = self.span_end - self.at;
        let awaited = self.awaited.as_ref().map(|place| place.stream_offset + WINDOW_BYTES as u64);
        awaited.map_or(left, |end| left.min(end.saturating_sub(self.at))).max(1)
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory_bytes(&self) -> u64 {
        (self.behind.capacity() + 2 * WINDOW_BYTES) as u64
    }

    /// Notes what is pushed next of the blob, from the byte `blob_offset` on: for windows.
    pub(super) fn input(&mut self, blob_offset: u64, bytes: &[u8]) {
        if self.compression != Compression::Gzip {
            return;
        }
        let places = [&self.last, &self.awaited].into_iter().flatten();
        let needed = places.filter(|place| place.window.is_some()).map(|p| p.blob_bits / 8).min();
        // What is too long is of no use.
        let oldest = blob_offset.saturating_sub(FOLLOWING_BYTES as u64);
        let from = needed.unwrap_or(blob_offset).max(oldest);
        let passed = from.saturating_sub(self.behind_at).min(self.behind.len() as u64);
        self.behind.drain(..passed as usize);
        self.behind_at = blob_offset - self.behind.len() as u64;
        self.behind.extend_from_slice(bytes);
    }

    /// Notes a place where decompressing could begin.
    pub(super) fn boundary(&mut self, at: Boundary<'_>) {
        if self.compression == Compression::Plain {
            return;
        }
        self.boundary_bytes = at.blob_bits / 8;
        let window = match (at.window, &self.last) {
            // One that needs nothing is better, unless it is too far from the span that is next.
            (Some(_), Some(Place { window: None, .. })) => return,
            (window, _) => window,
        };
        let mut room = self.last.take().and_then(|place| place.window).unwrap_or_default();
        let window = window.map(|window| {
            room.clear();
            room.extend_from_slice(window);
            room
        });
        self.last = Some(Place { stream_offset: self.at, blob_bits: at.blob_bits, window });
    }

    /// Called before the first byte of each span: how decompressing can begin there without a window, if it can.
    pub(super) fn begin(&mut self) -> Option<CleanStart> {
        if self.compression == Compression::Plain {
            return Some(CleanStart { blob_bits: self.at * 8, skip: 0 });
        }
        let place = self.last.take()?;
        if place.window.is_none() || self.count == 0 {
            return Some(CleanStart { blob_bits: place.blob_bits, skip: place.skip(self.span_at) });
        }
        self.awaited = Some(place);
        None
    }

    /// Notes that `bytes` more bytes belong to the current span, at most [`Cutter::room`], and came from
    /// what is before the byte `blob_end` of the blob. Gives the place with a window for the current span as
    /// soon as what follows it is known.
    pub(super) fn advance(&mut self, bytes: u64, blob_end: u64) -> Option<WindowStart> {
        self.at += bytes;
        let place = self.awaited.as_ref()?;
        let is_enough = self.at >= place.stream_offset + WINDOW_BYTES as u64;
        if is_enough { self.take_awaited(blob_end) } else { None }
    }

    /// The same when nothing more follows.
    pub(super) fn take_awaited(&mut self, blob_end: u64) -> Option<WindowStart> {
        let mut place = self.awaited.take()?;
        let skip = place.skip(self.span_at);
        let (from, to) = (place.blob_bits / 8, blob_end);
        let following = match to.checked_sub(from) {
            Some(length) if length <= FOLLOWING_BYTES as u64 => {
                let begin = from.checked_sub(self.behind_at);
                let begin = begin.and_then(|begin| usize::try_from(begin).ok());
                let range = begin.map(|begin| begin..begin + length as usize);
                range.and_then(|range| self.behind.get(range)).map(<[u8]>::to_vec)
            }
            _ => None,
        };
        let window = place.window.take().unwrap_or_default();
        Some(WindowStart { blob_bits: place.blob_bits, skip, window, following })
    }

    /// Whether the current span ends here; then the next one begins.
    pub(super) fn ends(&mut self, blob_end: u64) -> bool {
        if self.at < self.span_end {
            return false;
        }
        // Within a deflate block it depends on how the blob is pushed what has been taken of it.
        let blob_bytes = match self.compression {
            Compression::Gzip => self.boundary_bytes,
            Compression::Plain | Compression::Zstd => blob_end,
        };
        let stored = (self.count + 1) * STORED_SPAN_BYTES * SPAN_SHARE;
        if stored > blob_bytes && self.since() < LONG_SPAN_BYTES {
            self.span_end += SPAN_BYTES;
            // It begins before the next span, but too far.
            self.last = None;
            return false;
        }
        self.span_at = self.at;
        self.span_end = self.at + SPAN_BYTES;
        self.count += 1;
        true
    }
}

/// Puts a window to the others, compressed and with a checksum: a wrong one would not always be found
/// by the digest of what comes out with it. Returns its place and its length there; `None` if there is no
/// memory for that.
pub(super) fn keep_window(window: &[u8], windows: &mut Vec<u8>) -> Option<(u64, u32)> {
    let mut compressor = zstd::bulk::Compressor::new(WINDOW_LEVEL).ok()?;
    compressor.include_checksum(true).ok()?;
    let window = compressor.compress(window).ok()?;
    let offset = windows.len() as u64;
    windows.extend_from_slice(&window);
    Some((offset, window.len() as u32))
}
