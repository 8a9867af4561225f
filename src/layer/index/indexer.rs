//! The pass over a layer.

use std::ops::ControlFlow;

use super::{
    Compression, LayerIndex, MAX_NOTES, Note, Origin, SEQUENTIAL_BYTES, Table, TableError,
    hashing::{Died, HASHING_BYTES, Hashes, Hashing},
    sealing::Sealed,
    span::{Cutter, Span},
    table::TableBuilder,
};
use crate::{
    image::{Algorithm, Digest},
    layer::{
        Limits,
        codec::{Boundary, CodecError, Decoder, Output},
        tar::{Parser, TarEvent},
    },
};

/// How a layer is to be indexed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What is accepted.
    pub limits: Limits,
    /// Who computes the digests.
    pub hashing: Hashing,
    /// The algorithm of the blob's digest.
    pub blob: Algorithm,
    /// The algorithm of the diff ID.
    pub diff_id: Algorithm,
}

impl Default for Options {
    /// SHA-256 on a thread of its own, and the default limits.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            hashing: Hashing::OwnThread,
            blob: Algorithm::Sha256,
            diff_id: Algorithm::Sha256,
        }
    }
}

/// What a layer should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The digest in the manifest.
    pub blob: Digest,
    /// The size in the manifest.
    pub blob_bytes: u64,
    /// The diff ID in the config, if it is known.
    pub diff_id: Option<Digest>,
}

/// Why a layer is not the one that was expected. Nothing of it is to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// It has another size.
    #[error("the layer {blob} should have {expected} bytes, but {found} came")]
    Size {
        /// The digest of the layer that was expected.
        blob: Digest,
        /// Its size.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// It has another digest.
    #[error("the layer {expected} came with the digest {found}")]
    Digest {
        /// The digest of the layer that was expected.
        expected: Digest,
        /// The digest of what came.
        found: Box<Digest>,
    },
    /// What is in it has another digest than the config says.
    #[error("the layer {blob} should have the diff ID {expected}, but decompressed it has {found}")]
    DiffId {
        /// The digest of the layer.
        blob: Digest,
        /// The diff ID that was expected.
        expected: Box<Digest>,
        /// That of what came.
        found: Box<Digest>,
    },
    /// A digest cannot be compared, because it is of another algorithm than was to be computed.
    #[error("the digest {0} is of another algorithm than was computed")]
    Algorithm(Digest),
    /// The thread that hashes has died.
    #[error("the thread that computes the digests has died")]
    Died,
}

/// A piece of the stream, as it passes.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The span that all of it belongs to.
    pub span: u32,
    /// Where in the stream it begins.
    pub stream_offset: u64,
    /// The piece, not empty.
    pub bytes: &'a [u8],
}

/// The pass over a layer: the blob's bytes are pushed in order, then it is finished.
///
/// What has passed can be used before the end, as far as the user accepts that the digest is not
/// checked yet: the table has all entries so far, [`Indexer::push_with`] shows the stream. A blob
/// that cannot be decompressed is still hashed to its end; if it is the right one, its index has
/// what could be read, and says why no more.
pub struct Indexer {
    decoder: Input,
    pass: Pass,
    blob_bytes: u64,
    /// Bytes of the blob that what has been decompressed came from, if that is not all of it.
    used_bytes: Option<u64>,
}

enum Input {
    /// Bytes that are too few to say how the blob is compressed.
    Magic(Vec<u8>),
    Decoding(Decoder),
    /// Nothing more can be decompressed.
    Stopped,
}

/// Where decompressed bytes go to.
struct Pass {
    limits: Limits,
    hashes: Hashes,
    has_died: bool,
    compression: Compression,
    cutter: Cutter,
    /// Bytes of the blob that what has come of the stream took.
    blob_end: u64,
    /// The parser, as long as it can go on.
    tar: Option<Parser>,
    table: TableBuilder,
    notes: Vec<Note>,
    more_notes: u64,
    stream_limit: u64,
    entries: u64,
    is_too_large: bool,
}

impl Indexer {
    /// Begins a pass.
    pub fn new(options: Options) -> Self {
        let limits = options.limits;
        // Blocks of tar are counted with 32 bits.
        let max_stream_bytes = limits.max_stream_bytes.min((1 << 41) - 512);
        let limits = Limits { max_stream_bytes, ..limits };
        Self {
            decoder: Input::Magic(Vec::new()),
            pass: Pass {
                limits,
                hashes: Hashes::new(options.hashing, options.blob, options.diff_id),
                has_died: false,
                compression: Compression::Plain,
                cutter: Cutter::new(Compression::Plain),
                blob_end: 0,
                tar: Some(Parser::new(limits.max_entries)),
                table: TableBuilder::new(&limits),
                notes: Vec::new(),
                more_notes: 0,
                stream_limit: 0,
                entries: 0,
                is_too_large: false,
            },
            blob_bytes: 0,
            used_bytes: None,
        }
    }

    /// Takes the next bytes of the blob.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), IndexError> {
        self.push_with(bytes, &mut |_| {})
    }

    /// Takes the next bytes of the blob and shows what of the stream comes out of them, in order.
    /// A piece's entries are in the table when it is shown.
    pub fn push_with(
        &mut self,
        bytes: &[u8],
        sink: &mut dyn FnMut(Chunk<'_>),
    ) -> Result<(), IndexError> {
        self.blob_bytes += bytes.len() as u64;
        self.pass.hashes.blob(bytes).map_err(|Died| IndexError::Died)?;
        if let Input::Magic(magic) = &mut self.decoder {
            magic.extend_from_slice(bytes);
            if magic.len() >= Compression::MAGIC_BYTES {
                let magic = std::mem::take(magic);
                self.begin(&magic);
                self.decode(&magic, sink);
            }
        } else {
            self.decode(bytes, sink);
        }
        if self.pass.has_died { Err(IndexError::Died) } else { Ok(()) }
    }

    /// The entries that have passed so far.
    pub fn table(&self) -> &Table {
        self.pass.table.table()
    }

    /// The number of a path of the table, if something has passed that has it or is in it.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        self.pass.table.find(path)
    }

    /// Decompressed bytes that have passed so far: what an entry has before them is readable.
    pub fn stream_bytes(&self) -> u64 {
        self.pass.cutter.at()
    }

    /// Bytes of the blob that have passed so far.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// Bytes of memory that it takes at the moment. [`Indexer::finish`] takes no more.
    pub fn memory_bytes(&self) -> u64 {
        let decoder = match &self.decoder {
            Input::Decoding(decoder) => decoder.memory_bytes(),
            Input::Magic(_) | Input::Stopped => 0,
        };
        let sealed = self.pass.hashes.sealed();
        let spans = sealed.spans.capacity() * std::mem::size_of::<Span>();
        decoder
            + HASHING_BYTES
            + self.pass.cutter.memory_bytes()
            + self.pass.table.memory_bytes()
            + (spans + sealed.windows.capacity()) as u64
    }

    /// What cannot be shown of what has passed so far; see [`LayerIndex::notes`].
    pub fn notes(&self) -> &[Note] {
        &self.pass.notes
    }

    /// How much of the stream [`Indexer::so_far`] would cover, in bytes.
    pub fn settled_bytes(&self) -> u64 {
        let sealed = self.pass.hashes.sealed();
        let end = settled(&sealed);
        sealed.spans.get(end).map_or(0, |span| span.stream_offset)
    }

    /// An index of what has passed so far, as far as that can be decompressed again. The layer may
    /// still turn out to be another than `expected`: what is read by this index is what has passed, no
    /// more and no less.
    pub fn so_far(&self, expected: &Expected) -> Option<LayerIndex> {
        let Sealed { mut spans, windows } = {
            let sealed = self.pass.hashes.sealed();
            let end = settled(&sealed);
            let spans = sealed.spans.get(..=end)?.to_vec();
            Sealed { spans, windows: sealed.windows.clone() }
        };
        let stream_bytes = spans.pop().filter(|_| !spans.is_empty())?.stream_offset;
        let used_bytes = spans.last()?.blob_end;
        Some(LayerIndex {
            origin: Origin::Pass,
            blob: expected.blob,
            blob_bytes: expected.blob_bytes,
            used_bytes,
            diff_id: None,
            stream_bytes,
            compression: self.pass.compression,
            table: self.table().clone(),
            spans,
            windows: Some(windows),
            windows_offset: 0,
            notes: self.notes().to_vec(),
            more_notes: self.pass.more_notes,
        })
    }

    /// Ends the pass and compares the layer with what it should be.
    pub fn finish(self, expected: &Expected) -> Result<LayerIndex, IndexError> {
        self.end(Some(expected))
    }

    /// Ends the pass over something of which nobody has said what it should be. The index tells its digest.
    pub fn finish_as_found(self) -> Result<LayerIndex, IndexError> {
        self.end(None)
    }

    fn end(mut self, expected: Option<&Expected>) -> Result<LayerIndex, IndexError> {
        if let Input::Magic(magic) = &mut self.decoder {
            let magic = std::mem::take(magic);
            self.begin(&magic);
            self.decode(&magic, &mut |_| {});
        }
        let is_whole = match &self.decoder {
            Input::Decoding(decoder) => match decoder.finish() {
                Ok(None) => true,
                Ok(Some(at)) => {
                    self.pass.note_whole(Note::trailing(at));
                    // If the archive has not ended before that, it was meant to be part of it.
                    self.pass.tar.as_ref().is_none_or(|tar| tar.finish().is_ok())
                }
                Err(error) => {
                    self.pass.note_whole(Note::damaged(&error));
                    false
                }
            },
            Input::Magic(_) | Input::Stopped => false,
        };
        let mut pass = self.pass;
        if pass.notes.iter().all(|note| !note.is_damage())
            && let Some(Err(error)) = pass.tar.as_ref().map(Parser::finish)
        {
            let number = pass.entries;
            pass.note_whole(Note::unreadable(number, &error));
        }
        pass.end_stream().map_err(|Died| IndexError::Died)?;
        let digests = pass.hashes.finish().map_err(|Died| IndexError::Died)?;
        let as_found = Expected { blob: digests.blob, blob_bytes: self.blob_bytes, diff_id: None };
        let expected = expected.unwrap_or(&as_found);
        let blob = expected.blob;
        if self.blob_bytes != expected.blob_bytes {
            let (expected, found) = (expected.blob_bytes, self.blob_bytes);
            return Err(IndexError::Size { blob, expected, found });
        }
        if blob.algorithm() != digests.blob.algorithm() {
            return Err(IndexError::Algorithm(blob));
        }
        if blob != digests.blob {
            return Err(IndexError::Digest { expected: blob, found: Box::new(digests.blob) });
        }
        // What cannot be decompressed to its end has no diff ID to compare.
        let diff_id = is_whole.then_some(digests.stream);
        if let (Some(found), Some(expected)) = (diff_id, expected.diff_id) {
            if found.algorithm() != expected.algorithm() {
                return Err(IndexError::Algorithm(expected));
            }
            if found != expected {
                let (expected, found) = (Box::new(expected), Box::new(found));
                return Err(IndexError::DiffId { blob, expected, found });
            }
        }
        let stream_bytes = pass.cutter.at();
        let Sealed { mut spans, mut windows } = digests.sealed;
        spans.shrink_to_fit();
        windows.shrink_to_fit();
        Ok(LayerIndex {
            origin: Origin::Pass,
            blob,
            blob_bytes: self.blob_bytes,
            used_bytes: self.used_bytes.unwrap_or(self.blob_bytes),
            diff_id,
            stream_bytes,
            compression: pass.compression,
            table: pass.table.finish(),
            spans,
            windows: Some(windows),
            windows_offset: 0,
            notes: pass.notes,
            more_notes: pass.more_notes,
        })
    }

    fn begin(&mut self, magic: &[u8]) {
        let decoder = Compression::detect(magic)
            .and_then(|compression| Ok((compression, Decoder::new(compression, 0)?)));
        self.decoder = match decoder {
            Ok((compression, decoder)) => {
                self.pass.compression = compression;
                self.pass.cutter = Cutter::new(compression);
                Input::Decoding(decoder)
            }
            Err(error) => self.stopped(&error),
        };
    }

    fn stopped(&mut self, error: &CodecError) -> Input {
        self.used_bytes = match error {
            CodecError::Damaged { at, .. } | CodecError::Wrong { at, .. } => {
                Some((at + 1).min(self.blob_bytes))
            }
            CodecError::Window { at, .. } | CodecError::Dictionary { at, .. } => Some(*at),
            CodecError::Truncated { .. } | CodecError::Unsupported(_) => None,
        };
        self.pass.note_whole(Note::damaged(error));
        Input::Stopped
    }

    fn decode(&mut self, bytes: &[u8], sink: &mut dyn FnMut(Chunk<'_>)) {
        let Input::Decoding(decoder) = &mut self.decoder else { return };
        self.pass.stream_limit = self.pass.limits.stream_bytes(self.blob_bytes);
        self.pass.cutter.input(self.blob_bytes - bytes.len() as u64, bytes);
        match decoder.push(bytes, &mut Shown { pass: &mut self.pass, sink }) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => {
                self.used_bytes = Some(self.blob_bytes);
                if self.pass.is_too_large {
                    let limit = self.pass.stream_limit;
                    self.pass.note_whole(Note::too_large(limit));
                }
                self.decoder = Input::Stopped;
            }
            Err(error) => self.decoder = self.stopped(&error),
        }
    }
}

/// A [`Pass`] together with somebody who wants to see what passes.
struct Shown<'a> {
    pass: &'a mut Pass,
    sink: &'a mut dyn FnMut(Chunk<'_>),
}

impl Output for Shown<'_> {
    fn room(&self) -> usize {
        usize::try_from(self.pass.cutter.room()).unwrap_or(usize::MAX)
    }

    fn bytes(&mut self, bytes: &[u8], blob_end: u64) -> ControlFlow<()> {
        let pass = &mut *self.pass;
        let allowed = pass.stream_limit.saturating_sub(pass.cutter.at());
        let bytes = &bytes[..bytes.len().min(usize::try_from(allowed).unwrap_or(usize::MAX))];
        if bytes.is_empty() {
            pass.is_too_large = true;
            return ControlFlow::Break(());
        }
        pass.parse(bytes);
        let (span, stream_offset) = (pass.cutter.span() as u32, pass.cutter.at());
        let result = pass.take(bytes, blob_end);
        (self.sink)(Chunk { span, stream_offset, bytes });
        if result.is_err() {
            pass.has_died = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn boundary(&mut self, at: Boundary<'_>) {
        self.pass.cutter.boundary(at);
    }
}

/// The number of the span that has to be known no more, because everything before it has been hashed and
/// can be decompressed again without too much ado; 0 if there is none.
fn settled(sealed: &Sealed) -> usize {
    let spans = &sealed.spans;
    let is_near = |end: &usize| {
        let first = spans[*end - 1].first as usize;
        spans[*end].stream_offset - spans[first].stream_offset <= SEQUENTIAL_BYTES
    };
    (1..spans.len()).rev().find(is_near).unwrap_or(0)
}

impl Pass {
    /// Cuts and hashes the next bytes of the stream, which are of one span.
    fn take(&mut self, bytes: &[u8], blob_end: u64) -> Result<(), Died> {
        if self.cutter.since() == 0
            && let Some(start) = self.cutter.begin()
        {
            self.hashes.begin_span(start);
        }
        self.blob_end = blob_end;
        self.hashes.stream(bytes)?;
        if let Some(place) = self.cutter.advance(bytes.len() as u64, blob_end) {
            self.hashes.place(place);
        }
        if self.cutter.ends(blob_end) {
            self.hashes.end_span(self.cutter.at(), blob_end)?;
        }
        Ok(())
    }

    /// Ends the last span.
    fn end_stream(&mut self) -> Result<(), Died> {
        if self.cutter.since() == 0 {
            return Ok(());
        }
        if let Some(place) = self.cutter.take_awaited(self.blob_end) {
            self.hashes.place(place);
        }
        self.hashes.end_span(self.cutter.at(), self.blob_end)
    }

    /// Gives the parser the next bytes of the stream.
    fn parse(&mut self, bytes: &[u8]) {
        let Some(tar) = &mut self.tar else { return };
        let mut full: Option<TableError> = None;
        let (table, notes, more, entries) =
            (&mut self.table, &mut self.notes, &mut self.more_notes, &mut self.entries);
        let result = tar.push(bytes, &mut |event| match event {
            TarEvent::Entry(_) if full.is_some() => {}
            TarEvent::Entry(entry) => {
                *entries += 1;
                full = table.push(&entry).err();
            }
            TarEvent::Refused { number, name, why } => {
                if notes.len() < MAX_NOTES {
                    notes.push(Note::refused(number, name, &why));
                } else {
                    *more += 1;
                }
            }
        });
        let number = self.entries;
        let note = match (full, result) {
            (Some(full), _) => Note::full(number, &full),
            (None, Err(error)) => Note::unreadable(number, &error),
            (None, Ok(())) => return,
        };
        self.note_whole(note);
        self.tar = None;
    }

    /// Adds a note that concerns the layer.
    fn note_whole(&mut self, note: Note) {
        self.notes.push(note);
    }
}
