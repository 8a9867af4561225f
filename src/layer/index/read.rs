//! Reading spans by ranges of the blob.

use std::{
    mem,
    ops::{ControlFlow, Range},
};

use sha2::{Digest as _, Sha256};

use super::{Compression, LayerIndex, Origin, span::Start};
use crate::layer::{
    codec::{Boundary, CodecError, Decoder, Output},
    gzip,
};

/// Why a span cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There is no such span.
    #[error("the layer has no span {0}")]
    NoSpan(u32),
    /// The window that decompressing begins with is needed and was not given.
    #[error("the window before span {0} is missing")]
    NoWindow(u32),
    /// The window that decompressing begins with is damaged.
    #[error("the window before span {0} is damaged")]
    Window(u32),
    /// The bytes of the blob cannot be decompressed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// They end before the span does.
    #[error("the compressed bytes end before span {0} does")]
    Short(u32),
    /// They are something else, or decompress to something else, than in the pass that made the index,
    /// or than the table of contents says that it was made of.
    #[error("span {0} has not the content that it had when the layer was indexed")]
    Digest(u32),
    /// It begins in the blob before the end of the one before, although a table of contents says
    /// that it has a beginning of its own.
    #[error("the compressed bytes of span {0} begin before those of the span before it end")]
    Overlap(u32),
}

/// A span that has been decompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Its number.
    pub span: u32,
    /// Its bytes, as many as [`LayerIndex::stream_range`] says.
    pub bytes: Vec<u8>,
    /// Whether they have been compared with its digest. If not, it lies before the spans that are wanted, and
    /// [`LayerIndex::is_right`] has to say so before they are given to anybody.
    pub is_checked: bool,
}

/// What a [`SpanDecoder`] has done, in decompressed bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes that it has decompressed.
    pub inflated_bytes: u64,
    /// Bytes that it has hashed.
    pub hashed_bytes: u64,
}

impl Work {
    /// What has been done since it was `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            inflated_bytes: self.inflated_bytes - before.inflated_bytes,
            hashed_bytes: self.hashed_bytes - before.hashed_bytes,
        }
    }
}

impl LayerIndex {
    /// Decompresses a span from `compressed`, which is [`LayerIndex::fetch_range`] of it, and
    /// checks it. For an index that has its windows in memory.
    pub fn decode(&self, span: u32, compressed: &[u8]) -> Result<Vec<u8>, DecodeError> {
        self.decode_with(span, None, compressed)
    }

    /// The same with the compressed window from the stored form, [`LayerIndex::window_range`].
    pub fn decode_with(
        &self,
        span: u32,
        window: Option<&[u8]>,
        compressed: &[u8],
    ) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = SpanDecoder::new(self, span, window)?;
        let mut found = None;
        let wanted = span..span.saturating_add(1);
        decoder.push(self, &wanted, compressed, &mut |decoded| {
            found = (decoded.span == span).then_some(decoded.bytes);
        })?;
        found.ok_or(DecodeError::Short(span))
    }

    /// Whether `bytes` are those of a span. Never for an index of [`Origin::Ztoc`], whose digests are those of
    /// compressed bytes.
    pub fn is_right(&self, span: u32, bytes: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(bytes).into();
        self.origin != Origin::Ztoc
            && self.spans.get(span as usize).is_some_and(|span| span.digest == digest)
    }

    /// A decoder that begins at `span`, which is there and is a start. `window` is as for
    /// [`SpanDecoder::new`].
    fn decoder(&self, span: u32, window: Option<&[u8]>) -> Result<Decoder, DecodeError> {
        let start = &self.spans[span as usize];
        let blob_bits = start.blob_bits().unwrap_or(0);
        Ok(match start.start {
            Start::Window { .. } if self.compression == Compression::Gzip => {
                let window = self.window(span, window)?;
                Decoder::Gzip(Box::new(gzip::Decoder::resume(blob_bits, &window)?))
            }
            _ => Decoder::new(self.compression, blob_bits / 8)?,
        })
    }

    /// The window before a group, decompressed.
    fn window(&self, span: u32, given: Option<&[u8]>) -> Result<Vec<u8>, DecodeError> {
        let in_memory = || {
            let range = self.spans.get(span as usize)?.window()?;
            let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
            self.windows.as_ref()?.get(range)
        };
        let compressed = given.or_else(in_memory).ok_or(DecodeError::NoWindow(span))?;
        zstd::bulk::decompress(compressed, gzip::WINDOW_BYTES)
            .map_err(|_| DecodeError::Window(span))
    }
}

/// Decompresses spans one after the other, from bytes of the blob that come in pieces. It stands behind the
/// last one that was wanted, and can go on from there.
///
/// All calls have to be given the index that it was made for.
pub struct SpanDecoder {
    decoder: Decoder,
    /// Offset in the blob of the next byte to be pushed.
    next_byte: u64,
    spans: Collector,
    /// Compressed bytes from the beginning of a span on, where its digest is that of those.
    unchecked: Vec<u8>,
}

/// Collects the bytes of spans and checks them.
struct Collector {
    /// The span that is being decompressed.
    at: u32,
    bytes: Vec<u8>,
    /// Decompressed bytes that are passed over before the next one of a span.
    skip: u64,
    /// Where in the blob the decoder has to begin anew for that span. What comes before are headers
    /// of the archive, and holes.
    restart: Option<u64>,
    /// The span whose digest is wrong.
    wrong: Option<u32>,
    work: Work,
}

/// A [`Collector`] together with what is wanted, and who gets it.
struct Giving<'a, 'b> {
    index: &'a LayerIndex,
    wanted: &'a Range<u32>,
    spans: &'a mut Collector,
    sink: &'b mut dyn FnMut(Decoded),
}

impl SpanDecoder {
    /// Begins to decompress at the first span of the group that `span` is in. `window` is
    /// [`LayerIndex::window_range`] of it in the stored form, or `None` if it needs none or the index has its
    /// windows in memory. Groups after the first one need none, but for [`Origin::Ztoc`]: there they have to
    /// be in memory.
    pub fn new(index: &LayerIndex, span: u32, window: Option<&[u8]>) -> Result<Self, DecodeError> {
        if span >= index.span_count() {
            return Err(DecodeError::NoSpan(span));
        }
        let at = index.group(span).start;
        let decoder = index.decoder(at, window)?;
        let next_byte = decoder.next_byte();
        let spans = Collector {
            at,
            bytes: Vec::new(),
            // `group` gives numbers of spans that are there.
            skip: index.spans[at as usize].skip.into(),
            restart: None,
            wrong: None,
            work: Work::default(),
        };
        Ok(Self { decoder, next_byte, spans, unchecked: Vec::new() })
    }

    /// The next span that it gives.
    pub fn next_span(&self) -> u32 {
        self.spans.at
    }

    /// What has to be pushed next of the blob for the spans up to `end`; more than they need, if it is not known
    /// where they end.
    pub fn fetch_range(&self, index: &LayerIndex, end: u32) -> Range<u64> {
        let begin = self.next_byte;
        begin..index.fetch_range(self.spans.at..end).end.max(begin)
    }

    /// Bytes of memory that it takes, besides what has come out of it.
    pub fn memory_bytes(&self) -> u64 {
        self.decoder.memory_bytes() + self.unchecked.capacity() as u64
    }

    /// What it has done so far.
    pub fn work(&self) -> Work {
        self.spans.work
    }

    /// Takes the next bytes of the blob. Gives each span before the end of those that are `wanted` to `sink` as
    /// soon as it is complete, and if it is wanted, has been compared with its digest.
    ///
    /// Says whether all have come. Then what was pushed has not been used up beyond that, and what
    /// [`SpanDecoder::fetch_range`] says has to be pushed for others.
    pub fn push(
        &mut self,
        index: &LayerIndex,
        wanted: &Range<u32>,
        compressed: &[u8],
        sink: &mut dyn FnMut(Decoded),
    ) -> Result<bool, DecodeError> {
        if wanted.end > index.span_count() {
            return Err(DecodeError::NoSpan(wanted.end.saturating_sub(1)));
        }
        if index.origin == Origin::Ztoc {
            return self.push_unchecked(index, wanted, compressed, sink);
        }
        let begin = self.next_byte;
        self.next_byte += compressed.len() as u64;
        let mut rest = compressed;
        while self.spans.at < wanted.end {
            if let Some(restart) = self.spans.restart {
                let overlap = DecodeError::Overlap(self.spans.at);
                let passed = restart.checked_sub(begin).ok_or(overlap)?;
                rest = match usize::try_from(passed).ok().and_then(|at| compressed.get(at..)) {
                    Some(rest) if !rest.is_empty() => rest,
                    _ => return Ok(false),
                };
                self.decoder.restart(restart);
                self.spans.restart = None;
            }
            let spans = &mut self.spans;
            let result = self.decoder.push(rest, &mut Giving { index, wanted, spans, sink });
            if let Some(span) = self.spans.wrong {
                return Err(DecodeError::Digest(span));
            }
            // What is wrong behind a span that was wanted does not matter.
            if self.spans.at < wanted.end && self.spans.restart.is_none() {
                let _ = result?;
                return Ok(false);
            }
        }
        self.next_byte = self.spans.restart.unwrap_or(self.decoder.next_byte());
        Ok(true)
    }

    /// The same where digests are those of compressed bytes: of a span nothing is decompressed before
    /// all of it is here.
    fn push_unchecked(
        &mut self,
        index: &LayerIndex,
        wanted: &Range<u32>,
        compressed: &[u8],
        sink: &mut dyn FnMut(Decoded),
    ) -> Result<bool, DecodeError> {
        if self.spans.at >= wanted.end {
            return Ok(true);
        }
        self.unchecked.extend_from_slice(compressed);
        self.next_byte += compressed.len() as u64;
        while self.spans.at < wanted.end {
            let span = self.spans.at;
            let range = index.fetch_range(span..span + 1);
            let length = (range.end - range.start) as usize;
            let Some(bytes) = self.unchecked.get(..length) else { return Ok(false) };
            let digest: [u8; 32] = Sha256::digest(bytes).into();
            self.spans.work.hashed_bytes += length as u64;
            if index.spans[span as usize].digest != digest {
                return Err(DecodeError::Digest(span));
            }
            let spans = &mut self.spans;
            let result = self.decoder.push(bytes, &mut Giving { index, wanted, spans, sink });
            if self.spans.at == span {
                let _ = result?;
                return Err(DecodeError::Short(span));
            }
            if self.spans.at < wanted.end {
                // Two spans may have a byte in common.
                let next = index.fetch_range(span + 1..span + 2).start;
                self.unchecked.drain(..(next - range.start) as usize);
                self.decoder = index.decoder(span + 1, None)?;
            }
        }
        Ok(true)
    }
}

impl Giving<'_, '_> {
    fn finish_span(&mut self) -> ControlFlow<()> {
        let (index, spans) = (self.index, &mut *self.spans);
        let span = spans.at;
        let is_compressed_digest = index.origin == Origin::Ztoc;
        let is_checked = span >= self.wanted.start || is_compressed_digest;
        if is_checked && !is_compressed_digest {
            spans.work.hashed_bytes += spans.bytes.len() as u64;
            if !index.is_right(span, &spans.bytes) {
                spans.wrong = Some(span);
                return ControlFlow::Break(());
            }
        }
        (self.sink)(Decoded { span, bytes: mem::take(&mut spans.bytes), is_checked });
        spans.at += 1;
        if let Some(next) = index.spans.get(spans.at as usize)
            && index.origin == Origin::Toc
        {
            spans.skip = next.skip.into();
            if next.is_start() {
                spans.restart = next.blob_bits().map(|bits| bits / 8);
                return ControlFlow::Break(());
            }
        }
        if spans.at >= self.wanted.end || is_compressed_digest {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

impl Output for Giving<'_, '_> {
    fn room(&self) -> usize {
        let left = match self.spans.skip {
            0 => {
                let range = self.index.stream_range(self.spans.at);
                (range.end - range.start).saturating_sub(self.spans.bytes.len() as u64)
            }
            skip => skip,
        };
        usize::try_from(left).unwrap_or(usize::MAX).max(1)
    }

    fn is_pass(&self) -> bool {
        false
    }

    fn bytes(&mut self, mut bytes: &[u8], _: u64) -> ControlFlow<()> {
        self.spans.work.inflated_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let spans = &mut *self.spans;
            if spans.at >= self.wanted.end {
                return ControlFlow::Break(());
            }
            let skipped = usize::try_from(spans.skip).unwrap_or(usize::MAX).min(bytes.len());
            if skipped > 0 {
                spans.skip -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            let range = self.index.stream_range(spans.at);
            // A span has 8 MiB at most.
            let length = (range.end - range.start) as usize;
            spans.bytes.reserve_exact(length - spans.bytes.len());
            let count = bytes.len().min(length - spans.bytes.len());
            spans.bytes.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if spans.bytes.len() == length {
                self.finish_span()?;
            }
        }
        ControlFlow::Continue(())
    }

    fn boundary(&mut self, _: Boundary<'_>) {}
}
