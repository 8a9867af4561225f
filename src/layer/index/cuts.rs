//! Making an index of spans that somebody else has cut.

use super::{
    AssemblyError, Compression, Entries, LayerIndex, Origin, Source,
    assembler::{Spans, stream_limit},
    most_compressed_bytes,
    span::{MAX_BYTES, Span, Start, keep_window},
};
use crate::layer::Limits;

/// A place where decompressing can begin, and what is known of the bytes from there up to the next.
#[derive(Clone, Copy, Debug)]
pub(in crate::layer) struct Cut<'a> {
    /// Where in the decompressed stream it is.
    pub(in crate::layer) stream_offset: u64,
    /// Where in the blob, in bits.
    pub(in crate::layer) blob_bits: u64,
    /// Of gzip: what of the stream comes before it.
    pub(in crate::layer) window: &'a [u8],
    /// The SHA-256 of the compressed bytes from there on, with all of the first and the last.
    pub(in crate::layer) digest: [u8; 32],
}

/// The index of a blob with these entries, which are within its stream of `stream_bytes` bytes. That is
/// cut like that.
pub(in crate::layer) fn index_of_cuts<'a>(
    source: Source,
    entries: Entries,
    cuts: impl IntoIterator<Item = Cut<'a>>,
    stream_bytes: u64,
    limits: &Limits,
) -> Result<LayerIndex, AssemblyError> {
    let limit = stream_limit(limits, source.blob_bytes);
    if stream_bytes > limit {
        return Err(AssemblyError::TooLarge { limit });
    }
    let mut found = Spans { spans: Vec::new(), windows: Vec::new(), stream_bytes };
    for cut in cuts {
        let (blob_bits, first) = (cut.blob_bits, found.spans.len() as u32);
        let start = match source.compression {
            Compression::Plain | Compression::Zstd => Start::Clean { blob_bits },
            Compression::Gzip => {
                let no_memory = AssemblyError::Span(first, "there is no memory");
                let kept = keep_window(cut.window, &mut found.windows).ok_or(no_memory)?;
                Start::Window { blob_bits, offset: kept.0, bytes: kept.1 }
            }
        };
        found.spans.push(Span {
            stream_offset: cut.stream_offset,
            blob_end: 0,
            digest: cut.digest,
            start,
            first,
            skip: 0,
            padding: 0,
        });
    }
    check_spans(&found, source.used_bytes)?;
    Ok(source.index(Origin::Ztoc, entries, found))
}

/// Sees to it that the spans follow each other from the beginning of the stream to its end, and
/// that none takes more memory than it may.
fn check_spans(found: &Spans, blob_bytes: u64) -> Result<(), AssemblyError> {
    let (spans, end) = (&found.spans, (found.stream_bytes, blob_bytes.saturating_mul(8)));
    if spans.first().map_or(end.0, |span| span.stream_offset) != 0 {
        return Err(AssemblyError::Span(0, "the stream does not begin with it"));
    }
    for (number, span) in (0..).zip(spans) {
        let wrong = |what| Err(AssemblyError::Span(number, what));
        let next = spans.get(number as usize + 1);
        let bits = |span: &Span| span.blob_bits().unwrap_or(0);
        let next = next.map_or(end, |next| (next.stream_offset, bits(next)));
        let bytes = match next.0.checked_sub(span.stream_offset) {
            Some(bytes @ 1..=MAX_BYTES) => bytes,
            Some(0) | None => return wrong("it ends before it begins"),
            Some(_) => return wrong("it has more than 8 MiB"),
        };
        match next.1.checked_sub(bits(span)) {
            Some(bits) if bits / 8 <= most_compressed_bytes(bytes) => {}
            Some(_) => return wrong("it has more bytes than can be in it"),
            None => return wrong("it ends in the blob before it begins there"),
        }
    }
    Ok(())
}
