//! Making spans of what the [`super::span::Cutter`] has cut: their digests, and the windows that are worth
//! their room. That is done where the stream is hashed, so beside decompressing.

use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use super::span::{CleanStart, Span, Start, WindowStart, keep_window};
use crate::{
    layer::gzip::{THINNER_BYTES, Thinner},
    util::locked,
};

/// Decompressed bytes of a group before it is worth a window to end it.
const MIN_GROUP_BYTES: u64 = 256 << 10;

/// Decompressed bytes after which a group ends at the next place, even if the window that it takes makes
/// the index larger than `WINDOW_SHARE` says.
const PATIENT_BYTES: u64 = 3 << 20;

/// Windows may take one part of this many of the blob's bytes: 1.7 %, so that 2 % are enough for
/// all of the index.
const WINDOW_SHARE: u64 = 60;

/// Memory that a [`Sealer`] takes besides what it has sealed, in bytes.
pub(super) const SEALER_BYTES: u64 = THINNER_BYTES;

/// The spans that are complete, and their windows; shared with those who want to know them while more come.
#[derive(Clone, Default)]
pub(super) struct Sealed {
    pub(super) spans: Vec<Span>,
    pub(super) windows: Vec<u8>,
}

/// Takes the stream in order, and where it is cut.
pub(super) struct Sealer {
    sealed: Arc<Mutex<Sealed>>,
    digest: Sha256,
    /// Where the current span begins, its number, and how decompressing can begin there.
    span_at: u64,
    number: u32,
    start: Start,
    skip: u32,
    /// Where in the stream the current group begins, and the number of its first span.
    group_at: u64,
    first: u32,
    /// Bytes of the last window that was kept: an estimate for the next one.
    last_window_bytes: u64,
    thinner: Option<Thinner>,
}

impl Sealer {
    pub(super) fn new(sealed: Arc<Mutex<Sealed>>) -> Self {
        Self {
            sealed,
            digest: Sha256::new(),
            span_at: 0,
            number: 0,
            start: Start::No,
            skip: 0,
            group_at: 0,
            first: 0,
            last_window_bytes: 3 << 10,
            thinner: None,
        }
    }

    /// A span begins at which decompressing can begin without a window.
    pub(super) fn begin(&mut self, start: CleanStart) {
        self.start_at(Start::Clean { blob_bits: start.blob_bits }, start.skip);
    }

    fn start_at(&mut self, start: Start, skip: u32) {
        (self.start, self.skip) = (start, skip);
        (self.group_at, self.first) = (self.span_at, self.number);
    }

    /// Takes the next bytes of the current span.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    /// Considers a place at which decompressing could begin for the current span. What is decided depends on
    /// the blob alone.
    pub(super) fn consider(&mut self, mut place: WindowStart) {
        let group_bytes = self.span_at - self.group_at;
        let mut sealed = locked(&self.sealed);
        let cost = sealed.windows.len() as u64 + self.last_window_bytes;
        let is_affordable = cost * WINDOW_SHARE <= place.blob_bits / 8;
        if group_bytes < MIN_GROUP_BYTES || (!is_affordable && group_bytes < PATIENT_BYTES) {
            return;
        }
        if let Some(following) = &place.following {
            self.thinner = self.thinner.take().or_else(Thinner::new);
            if let Some(thinner) = &mut self.thinner {
                thinner.thin(&mut place.window, place.blob_bits, following);
            }
        }
        // If there is no memory for that, the group goes on.
        let kept = keep_window(&place.window, &mut sealed.windows);
        drop(sealed);
        if let Some((offset, bytes)) = kept {
            self.last_window_bytes = bytes.into();
            let start = Start::Window { blob_bits: place.blob_bits, offset, bytes };
            self.start_at(start, place.skip);
        }
    }

    /// The current span ends, at the byte `stream_end` of the stream. All of it came from what is before the
    /// byte `blob_end` of the blob.
    pub(super) fn end(&mut self, stream_end: u64, blob_end: u64) {
        let span = Span {
            stream_offset: self.span_at,
            blob_end,
            digest: self.digest.finalize_reset().into(),
            start: self.start,
            first: self.first,
            skip: self.skip,
            padding: 0,
        };
        locked(&self.sealed).spans.push(span);
        (self.start, self.skip) = (Start::No, 0);
        self.span_at = stream_end;
        self.number += 1;
    }
}
