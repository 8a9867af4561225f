//! Reading spans by ranges of the blob.

use std::ops::{ControlFlow, Range};

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
        let mut decoder = SpanDecoder::new(self, span..span.saturating_add(1), window)?;
        let mut found = None;
        decoder.push(compressed, &mut |_, bytes| found = Some(bytes))?;
        found.ok_or(DecodeError::Short(span))
    }

    /// A decoder that begins at `span`, which is there and is a start. `window` is as for
    /// [`SpanDecoder::new`].
    fn decoder(&self, span: u32, window: Option<&[u8]>) -> Result<Decoder, DecodeError> {
        let start = &self.spans[span as usize];
        Ok(match start.start {
            Start::Window { .. } if self.compression == Compression::Gzip => {
                let window = self.window(span, window)?;
                Decoder::Gzip(Box::new(gzip::Decoder::resume(start.blob_bits, &window)?))
            }
            _ => Decoder::new(self.compression, start.blob_bits / 8)?,
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

/// Decompresses spans one after the other, from bytes of the blob that come in pieces.
pub struct SpanDecoder<'a> {
    decoder: Decoder,
    /// Offset in the blob of the next byte to be pushed.
    blob_offset: u64,
    spans: Collector<'a>,
    /// Compressed bytes from the beginning of a span on, where its digest is that of those.
    unchecked: Vec<u8>,
}

/// Collects the bytes of spans and checks them.
struct Collector<'a> {
    index: &'a LayerIndex,
    /// The first span that is wanted.
    first: u32,
    /// The span that is being decompressed, and where those end that are wanted.
    at: u32,
    end: u32,
    bytes: Vec<u8>,
    /// Decompressed bytes that are passed over before the next one of a span.
    skip: u64,
    /// Where in the blob the decoder has to begin anew for that span. What comes before are headers
    /// of the archive, and holes.
    restart: Option<u64>,
    /// The span whose digest is wrong.
    wrong: Option<u32>,
}

/// A [`Collector`] together with who gets the spans.
struct Giving<'a, 'b> {
    spans: &'b mut Collector<'a>,
    sink: &'b mut dyn FnMut(u32, Vec<u8>),
}

impl<'a> SpanDecoder<'a> {
    /// Begins to decompress these spans. What has to be pushed is [`LayerIndex::fetch_range`] of
    /// them. `window` is [`LayerIndex::window_range`] of the first one in the stored form, or
    /// `None` if it needs none or the index has its windows in memory. Those after the first group
    /// need none, but for [`Origin::Ztoc`]: there they have to be in memory.
    pub fn new(
        index: &'a LayerIndex,
        spans: Range<u32>,
        window: Option<&[u8]>,
    ) -> Result<Self, DecodeError> {
        if spans.is_empty() || spans.end > index.span_count() {
            return Err(DecodeError::NoSpan(spans.end.saturating_sub(1)));
        }
        let at = index.group(spans.start).start;
        // `group` gives numbers of spans that are there.
        let start = &index.spans[at as usize];
        let decoder = index.decoder(at, window)?;
        let spans = Collector {
            index,
            first: spans.start,
            at,
            end: spans.end,
            bytes: Vec::new(),
            skip: start.skip.into(),
            restart: None,
            wrong: None,
        };
        Ok(Self { decoder, blob_offset: start.blob_bits / 8, spans, unchecked: Vec::new() })
    }

    /// Takes the next bytes of the blob; gives each span that is complete and right to `sink`.
    /// Says whether all spans have come; what is pushed after that does not matter.
    pub fn push(
        &mut self,
        compressed: &[u8],
        sink: &mut dyn FnMut(u32, Vec<u8>),
    ) -> Result<bool, DecodeError> {
        if self.spans.index.origin == Origin::Ztoc {
            return self.push_unchecked(compressed, sink);
        }
        let begin = self.blob_offset;
        self.blob_offset += compressed.len() as u64;
        let mut rest = compressed;
        while self.spans.at < self.spans.end {
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
            let result = self.decoder.push(rest, &mut Giving { spans: &mut self.spans, sink });
            if let Some(span) = self.spans.wrong {
                return Err(DecodeError::Digest(span));
            }
            // What is wrong behind a span that was wanted does not matter.
            if self.spans.at < self.spans.end && self.spans.restart.is_none() {
                let _ = result?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same where digests are those of compressed bytes: of a span nothing is decompressed before
    /// all of it is here.
    fn push_unchecked(
        &mut self,
        compressed: &[u8],
        sink: &mut dyn FnMut(u32, Vec<u8>),
    ) -> Result<bool, DecodeError> {
        if self.spans.at >= self.spans.end {
            return Ok(true);
        }
        self.unchecked.extend_from_slice(compressed);
        let index = self.spans.index;
        while self.spans.at < self.spans.end {
            let span = self.spans.at;
            let range = index.fetch_range(span..span + 1);
            let length = (range.end - range.start) as usize;
            let Some(bytes) = self.unchecked.get(..length) else { return Ok(false) };
            let digest: [u8; 32] = Sha256::digest(bytes).into();
            if index.spans[span as usize].digest != digest {
                return Err(DecodeError::Digest(span));
            }
            let result = self.decoder.push(bytes, &mut Giving { spans: &mut self.spans, sink });
            if self.spans.at == span {
                let _ = result?;
                return Err(DecodeError::Short(span));
            }
            if self.spans.at < self.spans.end {
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
        let spans = &mut *self.spans;
        if spans.index.origin != Origin::Ztoc {
            let digest: [u8; 32] = Sha256::digest(&spans.bytes).into();
            if spans.index.spans[spans.at as usize].digest != digest {
                spans.wrong = Some(spans.at);
                return ControlFlow::Break(());
            }
        }
        let bytes = std::mem::take(&mut spans.bytes);
        if spans.at >= spans.first {
            (self.sink)(spans.at, bytes);
        }
        spans.at += 1;
        if spans.at >= spans.end || spans.index.origin == Origin::Ztoc {
            return ControlFlow::Break(());
        }
        let next = &spans.index.spans[spans.at as usize];
        spans.skip = next.skip.into();
        if spans.index.origin == Origin::Toc && next.is_start() {
            spans.restart = Some(next.blob_bits / 8);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

impl Output for Giving<'_, '_> {
    fn bytes(&mut self, mut bytes: &[u8]) -> ControlFlow<()> {
        while !bytes.is_empty() {
            let spans = &mut *self.spans;
            if spans.at >= spans.end {
                return ControlFlow::Break(());
            }
            let skipped = usize::try_from(spans.skip).unwrap_or(usize::MAX).min(bytes.len());
            if skipped > 0 {
                spans.skip -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            let range = spans.index.stream_range(spans.at);
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
