//! Making an index of files and of where their pieces are, which somebody else has listed.

use std::mem;

use super::{
    AssemblyError, Compression, Entries, LayerIndex, Origin,
    span::{MAX_BYTES, MAX_REACH_BYTES, Span, Start},
};
use crate::{
    image::Digest,
    layer::{
        Limits,
        tar::{BLOCK_BYTES, Extent, Kind, Refusal, TarEntry},
    },
};

/// A part of a file that is compressed together with its beginning, and has a digest.
#[derive(Clone, Copy, Debug)]
pub(in crate::layer) struct Piece {
    /// Where in the file it begins.
    pub(in crate::layer) file_offset: u64,
    /// Bytes of it.
    pub(in crate::layer) bytes: u64,
    /// Where in the blob the member or frame begins that it is in.
    pub(in crate::layer) blob_offset: u64,
    /// How many bytes that has before it.
    pub(in crate::layer) inner_offset: u64,
    /// The SHA-256 of its bytes.
    pub(in crate::layer) digest: [u8; 32],
}

/// What is known of the blob.
pub(in crate::layer) struct Source {
    pub(in crate::layer) blob: Digest,
    pub(in crate::layer) blob_bytes: u64,
    /// Where in the blob the files end.
    pub(in crate::layer) used_bytes: u64,
    pub(in crate::layer) compression: Compression,
}

/// The spans of an index that is being made.
pub(super) struct Spans {
    pub(super) spans: Vec<Span>,
    pub(super) windows: Vec<u8>,
    pub(super) stream_bytes: u64,
}

impl Source {
    /// The index of what was listed of it.
    pub(super) fn index(self, origin: Origin, entries: Entries, spans: Spans) -> LayerIndex {
        LayerIndex {
            origin,
            blob: self.blob,
            blob_bytes: self.blob_bytes,
            used_bytes: self.used_bytes,
            diff_id: None,
            stream_bytes: spans.stream_bytes,
            compression: self.compression,
            table: entries.table.finish(),
            spans: spans.spans,
            windows: Some(spans.windows),
            windows_offset: 0,
            notes: entries.notes,
            more_notes: entries.more_notes,
        }
    }
}

/// Bytes that the stream of a blob may have.
pub(super) fn stream_limit(limits: &Limits, blob_bytes: u64) -> u64 {
    // Blocks of tar are counted with 32 bits.
    limits.stream_bytes(blob_bytes).min((1 << 41) - BLOCK_BYTES as u64)
}

/// A piece and whose it is.
struct Placed {
    piece: Piece,
    entry: u32,
    /// Where the stream has it.
    stream_offset: u64,
}

/// Takes entries, each followed by its pieces in order.
pub(in crate::layer) struct Assembler {
    source: Source,
    entries: Entries,
    stream_limit: u64,
    /// Bytes of all pieces, with what is between them at most.
    stream_bytes: u64,
    /// The last entry.
    current: Current,
    /// Files that are not empty, and which piece of `pieces` is the first of each.
    files: Vec<(u32, u32)>,
    pieces: Vec<Placed>,
}

/// How much of the last entry is known.
#[derive(Clone, Copy)]
struct Current {
    /// `None` if it is not shown.
    entry: Option<u32>,
    size: u64,
    /// Bytes of it that have been listed.
    listed: u64,
}

impl Assembler {
    pub(in crate::layer) fn new(source: Source, limits: &Limits) -> Self {
        Self {
            entries: Entries::new(limits),
            stream_limit: stream_limit(limits, source.used_bytes),
            stream_bytes: 0,
            current: Current { entry: None, size: 0, listed: 0 },
            files: Vec::new(),
            pieces: Vec::new(),
            source,
        }
    }

    /// Takes the next entry, or what of it is refused. Its data is still to be listed.
    pub(in crate::layer) fn entry(
        &mut self,
        raw_name: &[u8],
        entry: Result<&TarEntry, &Refusal>,
    ) -> Result<(), AssemblyError> {
        self.end_entry()?;
        let number = self.entries.push(raw_name, entry)?;
        let size = entry.map_or(0, |entry| entry.size);
        self.current = Current { entry: number, size, listed: 0 };
        if let (Some(number), Ok(entry)) = (number, entry)
            && entry.kind == Kind::File
            && entry.size > 0
        {
            self.entries.table.reserve(mem::size_of::<(u32, u32)>())?;
            self.files.push((number, self.pieces.len() as u32));
        }
        Ok(())
    }

    /// Takes the next entry, which is not to be shown.
    pub(in crate::layer) fn pass_over(&mut self) -> Result<(), AssemblyError> {
        self.end_entry()?;
        self.current = Current { entry: None, size: 0, listed: 0 };
        self.entries.pass_over()
    }

    /// Notes that the last entry, or something of it, is not shown.
    pub(in crate::layer) fn refuse(&mut self, raw_name: &[u8], why: &Refusal) {
        self.entries.refuse(raw_name, why);
    }

    /// Says that the next bytes of the last entry are zeros.
    pub(in crate::layer) fn zeros(&mut self, offset: u64, bytes: u64) -> Result<(), AssemblyError> {
        self.list(offset, bytes)
    }

    /// Says where the next bytes of the last entry are.
    pub(in crate::layer) fn piece(&mut self, piece: Piece) -> Result<(), AssemblyError> {
        self.list(piece.file_offset, piece.bytes)?;
        let wrong = |what| Err(AssemblyError::Entry(what));
        if piece.bytes > MAX_BYTES {
            return wrong("it has a chunk of more than 8 MiB");
        }
        if piece.blob_offset >= self.source.used_bytes {
            return wrong("it is not within the layer");
        }
        if piece.inner_offset > MAX_REACH_BYTES {
            return wrong("it is more than 64 MiB behind the place where decompressing begins");
        }
        let Some(entry) = self.current.entry else { return Ok(()) };
        self.stream_bytes += piece.bytes + BLOCK_BYTES as u64;
        if self.stream_bytes > self.stream_limit {
            return Err(AssemblyError::TooLarge { limit: self.stream_limit });
        }
        self.entries.table.reserve(mem::size_of::<Placed>() + mem::size_of::<Span>())?;
        self.pieces.push(Placed { piece, entry, stream_offset: 0 });
        Ok(())
    }

    fn list(&mut self, offset: u64, bytes: u64) -> Result<(), AssemblyError> {
        // What is not shown has no size that is known.
        let Some(_) = self.current.entry else { return Ok(()) };
        if offset != self.current.listed {
            return Err(AssemblyError::Entry("its chunks are not one after the other"));
        }
        if bytes == 0 || bytes > self.current.size - offset {
            return Err(AssemblyError::Entry("its chunks are not within it"));
        }
        self.current.listed += bytes;
        Ok(())
    }

    fn end_entry(&self) -> Result<(), AssemblyError> {
        let Current { entry, size, listed } = self.current;
        match entry {
            Some(entry) if listed < size => {
                Err(self.about(entry, "its chunks are fewer bytes than it has"))
            }
            _ => Ok(()),
        }
    }

    fn about(&self, entry: u32, what: &'static str) -> AssemblyError {
        let table = self.entries.table();
        let path = table.entry(entry).map_or(Vec::new(), |entry| table.full_path(entry.path));
        AssemblyError::Path(path, what)
    }

    /// The index of all that has been listed.
    pub(in crate::layer) fn finish(mut self) -> Result<LayerIndex, AssemblyError> {
        self.end_entry()?;
        let (spans, stream_bytes) = self.spans()?;
        for (at, (entry, first)) in self.files.iter().enumerate() {
            let end =
                self.files.get(at + 1).map_or(self.pieces.len(), |(_, first)| *first as usize);
            let pieces = &self.pieces[*first as usize..end];
            let extents = extents(pieces);
            let size = self.entries.table().entry(*entry).map_or(0, |entry| entry.size);
            let begin = extents.iter().map(|e| e.stream_offset).min().unwrap_or(0);
            let is_whole = extents.len() == 1 && extents[0].length == size;
            self.entries.table.place(*entry, begin, (!is_whole).then_some(&extents))?;
        }
        let spans = Spans { spans, windows: Vec::new(), stream_bytes };
        Ok(self.source.index(Origin::Toc, self.entries, spans))
    }

    /// A span for each piece, in the order of the blob. Gives each piece its place in the stream: a
    /// file begins at a multiple of 512 bytes, and what follows in it follows there, too.
    fn spans(&mut self) -> Result<(Vec<Span>, u64), AssemblyError> {
        let mut order: Vec<u32> = (0..self.pieces.len() as u32).collect();
        order.sort_unstable_by_key(|at| {
            let piece = &self.pieces[*at as usize].piece;
            (piece.blob_offset, piece.inner_offset)
        });
        let mut spans: Vec<Span> = Vec::with_capacity(order.len());
        let mut before: Option<usize> = None;
        let mut stream_end = 0_u64;
        for at in order {
            let at = at as usize;
            let (entry, piece) = (self.pieces[at].entry, self.pieces[at].piece);
            let (mut stream_offset, mut start, mut skip) =
                (0, Start::Clean { blob_bits: piece.blob_offset * 8 }, piece.inner_offset);
            if let Some(before) = before.map(|before| &self.pieces[before]) {
                let last = &before.piece;
                let is_next =
                    before.entry == entry && last.file_offset + last.bytes == piece.file_offset;
                stream_offset = match is_next {
                    true => stream_end,
                    false => stream_end.next_multiple_of(BLOCK_BYTES as u64),
                };
                if last.blob_offset == piece.blob_offset {
                    start = Start::No;
                    skip = match skip.checked_sub(last.inner_offset + last.bytes) {
                        Some(skip) => skip,
                        None => return Err(self.about(entry, "it overlaps another file")),
                    };
                }
            }
            if let Some(span) = spans.last_mut() {
                span.padding = (stream_offset - stream_end) as u16;
            }
            let first = match (start, spans.last()) {
                (Start::No, Some(last)) => last.first,
                _ => spans.len() as u32,
            };
            spans.push(Span {
                stream_offset,
                blob_end: 0,
                digest: piece.digest,
                start,
                first,
                // It is not more than 64 MiB.
                skip: skip as u32,
                padding: 0,
            });
            self.pieces[at].stream_offset = stream_offset;
            stream_end = stream_offset + piece.bytes;
            before = Some(at);
        }
        Ok((spans, stream_end))
    }
}

/// Where the pieces of a file are in the stream; those that follow each other in one.
fn extents(pieces: &[Placed]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for Placed { piece, stream_offset, .. } in pieces {
        match extents.last_mut() {
            Some(last)
                if last.file_offset + last.length == piece.file_offset
                    && last.stream_offset + last.length == *stream_offset =>
            {
                last.length += piece.bytes;
            }
            _ => extents.push(Extent {
                file_offset: piece.file_offset,
                stream_offset: *stream_offset,
                length: piece.bytes,
            }),
        }
    }
    extents
}
