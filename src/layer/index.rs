//! The index of a layer, and the pass that makes it.
//!
//! The decompressed stream is cut into *spans* of 128 KiB. For some of them decompressing can begin at or a
//! little before their first byte: at the start of a gzip member or a zstd frame, at the end of a deflate
//! block together with what is needed of the 32 KiB before it, at any byte of a plain archive. Those that
//! follow without such a beginning form a *group* with the one that has it, and are only reached through
//! it. Each span has a SHA-256 of its decompressed bytes, and the place in the blob where it ends. These
//! are taken in the pass that checked the whole blob against its digest, so what is read by a range
//! later is known to be right, and what is not wanted of a group need not be hashed.
//!
//! A table of contents that a layer comes with has digests, too, one for each chunk of a file. An
//! index that is made of one ([`Origin::Toc`]) has a span for each of these; what the archive has
//! between them is in none. One of SOCI ([`Origin::Ztoc`]) has spans like those of a pass, but the
//! digest of each is that of its compressed bytes.

mod assembler;
mod cuts;
mod entries;
mod hashing;
mod indexer;
mod read;
mod sealing;
mod span;
mod stored;
mod table;

use std::ops::Range;

use crate::image::Digest;

use super::{
    CodecError, Compression, TarError,
    tar::{Extent, Refusal},
};

pub(super) use assembler::{Assembler, Piece, Source};
pub(super) use cuts::{Cut, index_of_cuts};
pub(super) use entries::{AssemblyError, Entries};
pub use hashing::Hashing;
pub use indexer::{Chunk, Expected, IndexError, Indexer, Options};
pub use read::{DecodeError, Decoded, SpanDecoder, Work};
pub use span::Span;
pub(super) use stored::u64_at;
pub use stored::{StoredError, StoredHead};
pub(super) use table::ROOT;
pub use table::{Entry, Table, TableError, Xattrs};

/// What has to be decompressed for one span before it is better to decompress all of the layer in
/// order.
const SEQUENTIAL_BYTES: u64 = 16 << 20;

/// What cannot be shown of a layer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The number of the entry in the archive that it is about, with those that are not shown.
    pub entry: Option<u64>,
    /// Its name as it stands there, at most 4096 bytes of it.
    pub name: Vec<u8>,
    /// What it says.
    pub kind: NoteKind,
}

/// What a [`Note`] says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteKind {
    /// An entry or something of it is not shown.
    #[error("{0}")]
    Refused(String),
    /// From here on nothing of the stream can be read.
    #[error("{0}")]
    Damaged(String),
    /// Something of the stream is wrong, and nobody knows what.
    #[error("{0}")]
    Wrong(String),
    /// From here on the archive's entries are not known.
    #[error("{0}")]
    Unreadable(String),
    /// There is something after the end of the compressed data, which is ignored.
    #[error("{0}")]
    Trailing(String),
}

/// Notes that are kept of what is refused in one layer.
const MAX_NOTES: usize = 256;

impl Note {
    /// Whether it says that something of the layer cannot be read.
    fn is_damage(&self) -> bool {
        match self.kind {
            NoteKind::Damaged(_) | NoteKind::Wrong(_) | NoteKind::Unreadable(_) => true,
            NoteKind::Refused(_) | NoteKind::Trailing(_) => false,
        }
    }

    fn refused(entry: u64, mut name: Vec<u8>, why: &Refusal) -> Self {
        name.truncate(4096);
        Self { entry: Some(entry), name, kind: NoteKind::Refused(why.to_string()) }
    }

    fn damaged(error: &CodecError) -> Self {
        let kind = match error {
            CodecError::Wrong { .. } => NoteKind::Wrong,
            _ => NoteKind::Damaged,
        };
        Self { entry: None, name: Vec::new(), kind: kind(error.to_string()) }
    }

    fn too_large(limit: u64) -> Self {
        let text = format!("the layer has more than {limit} decompressed bytes; see its limits");
        Self { entry: None, name: Vec::new(), kind: NoteKind::Damaged(text) }
    }

    fn unreadable(entry: u64, why: &TarError) -> Self {
        Self { entry: Some(entry), name: Vec::new(), kind: NoteKind::Unreadable(why.to_string()) }
    }

    fn full(entry: u64, why: &TableError) -> Self {
        Self { entry: Some(entry), name: Vec::new(), kind: NoteKind::Unreadable(why.to_string()) }
    }

    fn trailing(at: u64) -> Self {
        let text = format!("what begins at byte {at} is not compressed data and is ignored");
        Self { entry: None, name: Vec::new(), kind: NoteKind::Trailing(text) }
    }
}

/// What an index was made of, and so what of the layer has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A pass over the whole blob, whose digest was the expected one.
    Pass,
    /// A table of contents whose digest the manifest has. Of the blob nothing has been checked: its
    /// digest and its diff ID may be other ones. What is read of files is compared with the digests
    /// in that table, so it is what the author of the image has listed; that the archive in the
    /// blob has the same entries is not known.
    Toc,
    /// A table of contents of SOCI. The same is true of it, except that its digests are those of the
    /// compressed bytes of spans.
    Ztoc,
}

/// What is known of a layer. Immutable; made by an [`Indexer`] in one pass, from a table of contents
/// that the layer comes with ([`TocReader`](crate::layer::TocReader)), or from its stored form.
///
/// An index of [`Origin::Toc`] has a stream of its own: the contents of the files
/// one after the other, each at a multiple of 512 bytes, and nothing in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    origin: Origin,
    /// The digest of the blob, which a pass has checked.
    blob: Digest,
    blob_bytes: u64,
    /// Bytes of the blob that the stream came from: fewer if it is damaged, or if a table of contents
    /// comes behind them.
    used_bytes: u64,
    /// The digest of the stream; `None` if it could not be read to its end or has not been read.
    diff_id: Option<Digest>,
    stream_bytes: u64,
    compression: Compression,
    table: Table,
    spans: Vec<Span>,
    /// The compressed windows of all spans, or nothing if they are only in the stored form.
    windows: Option<Vec<u8>>,
    /// Where in the stored form the windows begin.
    windows_offset: u64,
    notes: Vec<Note>,
    /// Notes that are not in `notes`.
    more_notes: u64,
}

impl LayerIndex {
    /// What it was made of.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The digest of the blob, as the manifest has it; [`LayerIndex::origin`] says whether it has
    /// been checked.
    pub fn blob(&self) -> Digest {
        self.blob
    }

    /// Bytes of the blob.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// The digest of the decompressed stream, which has been compared with the one that was
    /// expected; `None` if the blob is as it should be, but cannot be decompressed to its end, and
    /// always if the index was made of a table of contents.
    pub fn diff_id(&self) -> Option<Digest> {
        self.diff_id
    }

    /// Decompressed bytes that can be read; see [`LayerIndex`] for those of a table of contents.
    pub fn stream_bytes(&self) -> u64 {
        self.stream_bytes
    }

    /// How it is compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The entries of its archive.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What cannot be shown, the first 256 of it; what concerns the whole layer is always there.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// How many notes there are beyond [`LayerIndex::notes`].
    pub fn more_notes(&self) -> u64 {
        self.more_notes
    }

    /// Why the layer cannot be read to its end, if that is so. What comes before is readable.
    pub fn damage(&self) -> Option<&Note> {
        self.notes.iter().find(|note| note.is_damage())
    }

    /// Why nothing of the layer can be believed, if that is so: a checksum in it is another, though
    /// it is the layer that the manifest means.
    pub fn wrong(&self) -> Option<&Note> {
        self.notes.iter().find(|note| matches!(note.kind, NoteKind::Wrong(_)))
    }

    /// How many spans the stream is cut into. They are numbered from 0.
    pub fn span_count(&self) -> u32 {
        self.spans.len() as u32
    }

    /// The span that has the byte at `stream_offset`; `None` behind the end, and where there is
    /// nothing between the files of a table of contents.
    pub fn span_of(&self, stream_offset: u64) -> Option<u32> {
        let span = self.span_from(stream_offset);
        self.stream_range(span).contains(&stream_offset).then_some(span)
    }

    /// The first span that ends behind `stream_offset`; the number of spans if there is none.
    pub fn span_from(&self, stream_offset: u64) -> u32 {
        let after = self.spans.partition_point(|span| span.stream_offset <= stream_offset) as u32;
        match after.checked_sub(1) {
            Some(span) if stream_offset < self.stream_range(span).end => span,
            _ => after,
        }
    }

    /// The part of the stream that a span is; empty if there is no such span.
    pub fn stream_range(&self, span: u32) -> Range<u64> {
        let Some(known) = self.spans.get(span as usize) else {
            return self.stream_bytes..self.stream_bytes;
        };
        let next = self.spans.get(span as usize + 1).map_or(self.stream_bytes, |s| s.stream_offset);
        known.stream_offset..next - u64::from(known.padding)
    }

    /// The spans that are decompressed together with `span`: from the one before it at which
    /// decompressing can begin, up to the next one of that kind.
    pub fn group(&self, span: u32) -> Range<u32> {
        let known = self.spans.get(span as usize).or(self.spans.last());
        let first = known.map_or(0, |span| span.first);
        first..self.spans.partition_point(|span| span.first <= first) as u32
    }

    /// The digests of the pieces of a file whose content is in `extents`, by their places in the file, if
    /// the index has digests of just these: the author of a table of contents has listed them. Of the
    /// same pieces, equal digests are equal bytes.
    pub fn chunk_digests(&self, extents: &[Extent]) -> Option<Vec<(Range<u64>, [u8; 32])>> {
        if self.origin != Origin::Toc {
            return None;
        }
        let mut found = Vec::new();
        for extent in extents {
            let (mut at, end) = (extent.stream_offset, extent.stream_offset + extent.length);
            while at < end {
                let span = self.span_of(at)?;
                let range = self.stream_range(span);
                if range.start != at || range.end > end {
                    return None;
                }
                let begin = extent.file_offset + (at - extent.stream_offset);
                let digest = self.spans.get(span as usize)?.digest;
                found.push((begin..begin + (range.end - at), digest));
                at = range.end;
            }
        }
        Some(found)
    }

    /// Whether `span` is best read by decompressing the layer in order and keeping what passes,
    /// because more than 16 MiB would have to be decompressed for it alone: zstd layers of one
    /// frame.
    pub fn needs_sequential(&self, span: u32) -> bool {
        self.decompressed_bytes(self.group(span)) > SEQUENTIAL_BYTES
    }

    /// Bytes that come out of decompressing these spans of one group, with those passed over.
    fn decompressed_bytes(&self, spans: Range<u32>) -> u64 {
        if self.origin != Origin::Toc {
            // Only the first one has something before it.
            let skip = self.spans.get(spans.start as usize).map_or(0, |span| span.skip);
            let end = self.stream_range(spans.end.saturating_sub(1)).end;
            return u64::from(skip) + end - self.stream_range(spans.start).start.min(end);
        }
        let bytes = |span: u32| {
            let range = self.stream_range(span);
            let skip = self.spans.get(span as usize).map_or(0, |span| span.skip);
            u64::from(skip) + (range.end - range.start)
        };
        spans.map(bytes).sum()
    }

    /// The bytes of the blob that it takes to decompress these spans, from the beginning of the
    /// first one's group on. Empty if there are none.
    pub fn fetch_range(&self, spans: Range<u32>) -> Range<u64> {
        if spans.is_empty() || spans.end > self.span_count() {
            return 0..0;
        }
        let start_of = |first: u32| self.spans.get(first as usize).and_then(Span::blob_bits);
        let begin = start_of(self.group(spans.start).start).unwrap_or(0) / 8;
        let end = match self.spans[spans.end as usize - 1].blob_end {
            // Without a start behind them, nobody knows where in the blob they end.
            0 => start_of(self.group(spans.end - 1).end)
                .map_or(self.used_bytes, |bits| bits.div_ceil(8)),
            known => known,
        };
        if self.origin != Origin::Toc {
            return begin..end;
        }
        // A table of contents may have its members far from each other, with anything in between.
        let last = self.group(spans.end - 1).start;
        let start = start_of(last).unwrap_or(0) / 8;
        let most = most_compressed_bytes(self.decompressed_bytes(last..spans.end));
        begin..end.min(start.saturating_add(most))
    }

    /// Where in the stored form the window is that [`SpanDecoder::new`] needs to begin at the group
    /// of `span`; `None` if it needs none. For an index that was read from its stored form.
    pub fn window_range(&self, span: u32) -> Option<Range<u64>> {
        let window = self.spans.get(self.group(span).start as usize)?.window()?;
        Some(self.windows_offset + window.start..self.windows_offset + window.end)
    }

    /// Whether its windows are in memory.
    pub fn has_windows(&self) -> bool {
        self.windows.is_some()
    }

    /// Bytes that the index takes in memory; about as many again are needed to make its stored form.
    pub fn memory_bytes(&self) -> u64 {
        self.table.memory_bytes()
            + (self.spans.capacity() * std::mem::size_of::<Span>()) as u64
            + self.windows.as_ref().map_or(0, |windows| windows.capacity() as u64)
    }

    /// Forgets the windows, which take most of the memory. They are then read from the stored form
    /// when they are needed: [`LayerIndex::window_range`].
    #[must_use]
    pub fn without_windows(mut self) -> Self {
        self.windows = None;
        self
    }

    /// The same index with its windows in its stored form only, which has the head `head`.
    #[must_use]
    pub fn with_windows_stored(self, head: &StoredHead) -> Self {
        Self { windows: None, windows_offset: head.table_bytes(), ..self }
    }

    /// The same index that does not say where in the blob spans end.
    #[cfg(test)]
    pub(super) fn without_ends(mut self) -> Self {
        self.spans.iter_mut().for_each(|span| span.blob_end = 0);
        self
    }

    #[cfg(test)]
    pub(super) fn set_windows_offset(&mut self, offset: u64) {
        self.windows_offset = offset;
    }
}

/// What `bytes` bytes have at most when they are compressed, by anybody who wants to save room:
/// deflate with its fixed codes takes an eighth more, zstd 3 bytes for each block, and headers are
/// short.
fn most_compressed_bytes(bytes: u64) -> u64 {
    bytes + bytes / 8 + (64 << 10)
}
