//! Cutting the stream into spans.

use std::ops::Range;

use crate::layer::{Compression, codec::Boundary};

/// Decompressed bytes after which a span ends at the first beginning that costs nothing, and of
/// every span of a plain archive.
const MIN_BYTES: u64 = 1 << 20;

/// Decompressed bytes after which a span ends at the end of a block, even if the window that it
/// takes makes the index larger than `WINDOW_SHARE` says.
const PATIENT_BYTES: u64 = 3 << 20;

/// Decompressed bytes after which a deflate span ends anywhere. Blocks of known compressors have 4
/// MiB of output at most, so this is for what somebody has made on purpose.
const MAX_GZIP_BYTES: u64 = 8 << 20;

/// Decompressed bytes after which a zstd span ends anywhere. In layers of one frame all do.
const MAX_ZSTD_BYTES: u64 = 2 << 20;

/// No span has more bytes.
pub(super) const MAX_BYTES: u64 = MAX_GZIP_BYTES;

/// Decompressed bytes that have to be passed over at most to get to the beginning of a span of a
/// table of contents. Those who put several files into one member do that with small ones.
pub(super) const MAX_REACH_BYTES: u64 = 64 << 20;

/// Windows may take one part of this many of the blob's bytes: 1.4 %, so that 2 % are enough for
/// all of the index.
const WINDOW_SHARE: u64 = 70;

/// Takes little time, and the higher levels gain little on 32 KiB.
const WINDOW_LEVEL: i32 = 3;

/// A part of the stream that is read as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where in the stream it begins.
    pub(super) stream_offset: u64,
    /// Where in the blob, in bits; of no use if it is no start.
    pub(super) blob_bits: u64,
    /// The SHA-256 of its decompressed bytes; of its compressed ones if the index is made of a table of
    /// SOCI.
    pub(super) digest: [u8; 32],
    pub(super) start: Start,
    /// Decompressed bytes to be passed over before its first one: from where decompressing begins,
    /// or from the end of the span before if it is no start. 0 in an index that a pass has made.
    pub(super) skip: u32,
    /// Bytes of the stream between its end and the next span, where there is nothing. 0 in an index
    /// that a pass has made.
    pub(super) padding: u16,
}

/// How decompressing can begin at a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Not at all.
    No,
    /// At the beginning of a member, a frame, or anywhere in a plain archive.
    Clean,
    /// Within a gzip member, with the window that is here among all windows.
    Window { offset: u64, bytes: u32 },
}

impl Span {
    pub(super) fn is_start(&self) -> bool {
        self.start != Start::No
    }

    pub(super) fn window(&self) -> Option<Range<u64>> {
        match self.start {
            Start::Window { offset, bytes } => Some(offset..offset + u64::from(bytes)),
            Start::No | Start::Clean => None,
        }
    }
}

/// Cuts the stream as it comes. A span's digest is filled in later.
pub(super) struct Cutter {
    compression: Compression,
    pub(super) spans: Vec<Span>,
    pub(super) windows: Vec<u8>,
    /// Decompressed bytes so far.
    at: u64,
    /// Where a member or frame began last, and how far it was from the one before.
    clean_at: u64,
    clean_step: Option<u64>,
    /// Bytes of the last window that was compressed: an estimate for the next one.
    last_window_bytes: u64,
}

impl Cutter {
    pub(super) fn new(compression: Compression) -> Self {
        Self {
            compression,
            spans: Vec::new(),
            windows: Vec::new(),
            at: 0,
            clean_at: 0,
            clean_step: None,
            last_window_bytes: 12 << 10,
        }
    }

    /// Decompressed bytes so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Bytes of the current span.
    pub(super) fn since(&self) -> u64 {
        self.at - self.spans.last().map_or(0, |span| span.stream_offset)
    }

    /// How many more bytes go into the current span before it has to end.
    pub(super) fn room(&self) -> u64 {
        let max = match self.compression {
            Compression::Plain => MIN_BYTES,
            Compression::Gzip => MAX_GZIP_BYTES,
            Compression::Zstd => MAX_ZSTD_BYTES,
        };
        max.saturating_sub(self.since())
    }

    /// Notes that `bytes` more bytes belong to the current span, at most [`Cutter::room`].
    pub(super) fn advance(&mut self, bytes: u64) {
        self.at += bytes;
    }

    /// Ends the current span if it is full, and begins the next one.
    pub(super) fn cut_if_full(&mut self) -> bool {
        if self.room() > 0 {
            return false;
        }
        let (blob_bits, start) = match self.compression {
            Compression::Plain => (self.at * 8, Start::Clean),
            Compression::Gzip | Compression::Zstd => (0, Start::No),
        };
        self.begin(blob_bits, start);
        true
    }

    /// Considers a place where decompressing could begin; says whether a span ended.
    pub(super) fn boundary(&mut self, at: Boundary<'_>) -> bool {
        let since = self.since();
        if at.window.is_none() && self.at > self.clean_at {
            self.clean_step = Some(self.at - self.clean_at);
            self.clean_at = self.at;
        }
        match at.window {
            _ if self.spans.is_empty() => {
                self.begin(at.blob_bits, Start::Clean);
                return false;
            }
            None if since == 0 => {
                // A later place for the same byte of the stream: after members that are empty, or
                // after a span that was full just before.
                if let Some(span) = self.spans.last_mut() {
                    if let Some(window) = span.window() {
                        // It is the last one; it was an offset into memory.
                        self.windows.truncate(window.start as usize);
                    }
                    span.blob_bits = at.blob_bits;
                    span.start = Start::Clean;
                }
                return false;
            }
            // Also what ends a group of spans that can only be read together.
            None if since >= MIN_BYTES || self.spans.last().is_some_and(|s| !s.is_start()) => {
                self.begin(at.blob_bits, Start::Clean);
            }
            Some(window) if since >= MIN_BYTES => {
                let cost = self.windows.len() as u64 + self.last_window_bytes;
                let is_affordable = cost * WINDOW_SHARE <= at.blob_bits / 8;
                // Where members are small, the next one begins soon, and costs nothing.
                let is_patient = self.clean_step.is_some_and(|step| step < MIN_BYTES);
                if (!is_affordable || is_patient) && since < PATIENT_BYTES {
                    return false;
                }
                // If there is no memory for that, the span goes on.
                let Some(start) = keep_window(window, &mut self.windows) else { return false };
                if let Start::Window { bytes, .. } = start {
                    self.last_window_bytes = bytes.into();
                }
                self.begin(at.blob_bits, start);
            }
            _ => return false,
        }
        true
    }

    fn begin(&mut self, blob_bits: u64, start: Start) {
        let (stream_offset, digest) = (self.at, [0; 32]);
        self.spans.push(Span { stream_offset, blob_bits, digest, start, skip: 0, padding: 0 });
    }

    /// Takes back a span that has just begun with nothing in it.
    pub(super) fn finish(&mut self) {
        if self.since() == 0 && self.spans.len() > 1 || self.at == 0 {
            self.spans.pop();
        }
    }
}

/// Puts a window to the others, compressed and with a checksum: a wrong one would not always be found
/// by the digest of what comes out with it. `None` if there is no memory for that.
pub(super) fn keep_window(window: &[u8], windows: &mut Vec<u8>) -> Option<Start> {
    let mut compressor = zstd::bulk::Compressor::new(WINDOW_LEVEL).ok()?;
    compressor.include_checksum(true).ok()?;
    let window = compressor.compress(window).ok()?;
    let offset = windows.len() as u64;
    windows.extend_from_slice(&window);
    Some(Start::Window { offset, bytes: window.len() as u32 })
}
