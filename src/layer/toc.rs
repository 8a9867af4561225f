//! Tables of contents that layers come with: eStargz, zstd:chunked and SOCI.
//!
//! Some authors of images compress each file for itself, and put a table of contents into the blob
//! that says which files there are, where, and with which digests. From it an index is made
//! without a pass over the layer: one or two ranges of the blob, and what is in the layer is known.
//!
//! What is believed, and why:
//!
//! - The annotations of the layer's descriptor, as they stand in the manifest, whose digest somebody
//!   has checked. Without them a table is not even looked for.
//! - The table, since its digest is in an annotation: of eStargz that of the JSON, of zstd:chunked
//!   that of the compressed JSON. Where it is does not have to be believed.
//! - What is read of a file, since the table has a digest for each chunk.
//!
//! SOCI's tables are blobs of their own; see `ztoc`. What follows is about the other two.
//!
//! Everything else in the blob is not believed and not looked at. In particular nothing says that
//! the archive in it, which others unpack, has the same entries: see [`Origin::Toc`]. A table that
//! makes no sense is refused as a whole. That says nothing about the layer, which can still be
//! indexed by a pass.
//!
//! ```text
//! eStargz       member | member | ... | member with stargz.index.json in an archive | footer
//! zstd:chunked  frame | frame | ... | skippable frame with compressed JSON | others
//! ```
//!
//! Sources: `docs/estargz.md` of containerd/stargz-snapshotter, and what its package `estargz`
//! writes; package `pkg/chunked` of containers/storage. The JSON is the same in both. Names in it
//! are UTF-8: what others a layer has, its author has lost already.
//!
//! [`Origin::Toc`]: super::Origin::Toc

mod flatbuffer;
mod footer;
mod json;
mod member;
mod time;
mod ztoc;

use std::ops::Range;

pub use ztoc::{MAX_ZTOC_BYTES, soci_index, ztoc_of};

use super::{
    CodecError, Compression, Kind, LayerIndex, Limits, TableError,
    index::{Assembler, AssemblyError, Source},
};
use crate::image::{Descriptor, Digest};

/// The digest of eStargz's JSON.
const STARGZ_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Where zstd:chunked's JSON is (offset, length, length when it is decompressed, and kind), and the
/// digest of it as it is compressed. The second pair is the older one, which Debian 12 still writes.
const CHUNKED: [(&str, &str); 2] = [
    (
        "io.github.containers.zstd-chunked.manifest-position",
        "io.github.containers.zstd-chunked.manifest-checksum",
    ),
    (
        "io.containers.zstd-chunked.manifest-position",
        "io.containers.zstd-chunked.manifest-checksum",
    ),
];

/// The kind of zstd:chunked's JSON that there is.
const CHUNKED_KIND: u64 = 1;

/// Bytes of the header of a skippable frame, which stands before zstd:chunked's JSON.
const SKIPPABLE_HEADER_BYTES: u64 = 8;

/// The most that a table may have, compressed or not: some 150,000 files, indented as eStargz has them.
const MAX_TOC_BYTES: u64 = 64 << 20;

/// Bytes at the end of a blob that are asked for first. The footer alone has 51, but the tables of
/// up to 7,000 files or so have less than this, and a second request would cost more than it.
const TAIL_BYTES: u64 = 256 << 10;

/// Why there is no index of a table of contents. The layer itself may be as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TocError {
    /// An annotation of the layer is malformed.
    #[error("the annotation `{name}` of the layer is malformed: `{value}`")]
    Annotation {
        /// Its name.
        name: &'static str,
        /// What it says, at most 160 characters of it.
        value: String,
    },
    /// Other bytes came than [`TocReader::wanted`] has asked for.
    #[error("{expected} bytes of the layer were asked for, {found} came")]
    Length {
        /// How many were asked for.
        expected: u64,
        /// How many came.
        found: u64,
    },
    /// The blob does not end as one with a table does.
    #[error("the layer does not end with the footer of an eStargz")]
    Footer,
    /// The table should be where nothing of the blob is.
    #[error("the table of contents should be at byte {offset}, but the layer has {blob_bytes}")]
    Position {
        /// Where it should be.
        offset: u64,
        /// Bytes of the blob.
        blob_bytes: u64,
    },
    /// The table is too large.
    #[error("the table of contents has more than 67108864 bytes")]
    TooLarge,
    /// It is another one than the manifest says.
    #[error("the table of contents should have the digest {expected}, but has {found}")]
    Digest {
        /// What the manifest says.
        expected: Digest,
        /// What it is.
        found: Box<Digest>,
    },
    /// It cannot be decompressed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// It is not packed as it should be.
    #[error("the table of contents is malformed: {0}")]
    Packing(&'static str),
    /// It is no JSON, or not that of a table.
    #[error("the table of contents is malformed: {0}")]
    Json(String),
    /// It is of another version than 1.
    #[error("the table of contents is of version {0}; only 1 is known")]
    Version(u64),
    /// What it says of a file cannot be.
    #[error("the table of contents makes no sense for `{name}`: {what}")]
    Entry {
        /// The name of the file, at most 160 characters of it.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// What it says of a span cannot be.
    #[error("the table of contents makes no sense for span {number}: {what}")]
    Span {
        /// The number of the span, from 0.
        number: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// It has more entries than are accepted.
    #[error("the table of contents has more than {limit} entries")]
    TooManyEntries {
        /// How many are.
        limit: u32,
    },
    /// Its files have more bytes than are accepted.
    #[error("the files in the table of contents have more than {limit} bytes")]
    StreamTooLarge {
        /// How many are.
        limit: u64,
    },
    /// Its index would become too large.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// Reads the table of contents of a layer, without I/O: it says which bytes of the blob it needs,
/// is given them, and makes an index of them.
///
/// zstd:chunked takes one range, and so does an eStargz with a table of less than 256 KiB; larger
/// ones take two.
///
/// ```
/// # use imgfs::{image::Descriptor, layer::{LayerIndex, Limits, TocError, TocReader}};
/// # fn list(layer: &Descriptor, fetch: impl Fn(std::ops::Range<u64>) -> Vec<u8>)
/// # -> Result<Option<LayerIndex>, TocError> {
/// let Some(mut reader) = TocReader::new(layer, Limits::default())? else {
///     return Ok(None);
/// };
/// loop {
///     if let Some(index) = reader.push(&fetch(reader.wanted()))? {
///         return Ok(Some(index));
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct TocReader {
    blob: Digest,
    blob_bytes: u64,
    limits: Limits,
    /// What the manifest says of the table.
    digest: Digest,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The end of the blob of an eStargz is to come.
    Tail,
    /// What comes before the end of an eStargz's table is to come.
    Head {
        toc: Range<u64>,
        /// That end.
        tail: Vec<u8>,
    },
    /// The table of zstd:chunked is to come.
    Chunked { toc: Range<u64>, raw_bytes: u64 },
}

impl TocReader {
    /// A reader for the layer with this descriptor, which is that of a manifest whose digest has
    /// been checked. `None` if that says nothing of a table of contents. A layer that has both
    /// kinds is read as zstd:chunked.
    pub fn new(layer: &Descriptor, limits: Limits) -> Result<Option<Self>, TocError> {
        let annotation = |name| layer.annotations.get(name).map(|value| Annotation { name, value });
        let chunked = CHUNKED
            .into_iter()
            .find_map(|(position, digest)| Some((annotation(position)?, annotation(digest)?)));
        let (digest, state) = match (chunked, annotation(STARGZ_DIGEST)) {
            (Some((position, digest)), _) => (digest.digest()?, position.chunked(layer.size)?),
            (None, Some(digest)) => (digest.digest()?, State::Tail),
            (None, None) => return Ok(None),
        };
        let (blob, blob_bytes) = (layer.digest, layer.size);
        Ok(Some(Self { blob, blob_bytes, limits, digest, state }))
    }

    /// What the descriptor of a layer says of a table of contents. Whoever says the same of the same
    /// layer means the same table.
    pub fn claims(layer: &Descriptor) -> impl Iterator<Item = &str> {
        let names = CHUNKED.into_iter().flat_map(|(position, digest)| [position, digest]);
        let claims = names.chain([STARGZ_DIGEST]).map(|name| layer.annotations.get(name));
        claims.flatten().map(String::as_str)
    }

    /// The bytes of the blob that [`TocReader::push`] needs next, at most 64 MiB.
    pub fn wanted(&self) -> Range<u64> {
        match &self.state {
            State::Tail => self.tail_start()..self.blob_bytes,
            State::Head { toc, .. } => toc.start..self.tail_start(),
            State::Chunked { toc, .. } => toc.clone(),
        }
    }

    fn tail_start(&self) -> u64 {
        self.blob_bytes.saturating_sub(TAIL_BYTES)
    }

    /// Takes these bytes. Gives the index, or `None` if [`TocReader::wanted`] wants others now. An
    /// error is the end: whoever asks another source takes a new reader.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<LayerIndex>, TocError> {
        let wanted = self.wanted();
        let (expected, found) = (wanted.end - wanted.start, bytes.len() as u64);
        if expected != found {
            return Err(TocError::Length { expected, found });
        }
        match &self.state {
            State::Tail => {
                let toc = self.find_toc(bytes)?;
                // Of the bytes that are here, what is not the footer.
                let tail = &bytes[..bytes.len() - (self.blob_bytes - toc.end) as usize];
                if toc.start < wanted.start {
                    self.state = State::Head { toc, tail: tail.to_vec() };
                    return Ok(None);
                }
                self.finish_stargz(toc.start, &tail[(toc.start - wanted.start) as usize..])
            }
            State::Head { toc, tail } => self.finish_stargz(toc.start, &[bytes, tail].concat()),
            State::Chunked { toc, raw_bytes } => {
                self.check(bytes)?;
                let json = member::decompress_frame(bytes, *raw_bytes, toc.start)?;
                let used_bytes = toc.start.saturating_sub(SKIPPABLE_HEADER_BYTES);
                self.finish(Compression::Zstd, used_bytes, &json)
            }
        }
    }

    /// Where the end of the blob says that the table is.
    fn find_toc(&self, tail: &[u8]) -> Result<Range<u64>, TocError> {
        let footer = footer::parse(tail).ok_or(TocError::Footer)?;
        let toc = footer.toc_offset..self.blob_bytes - footer.bytes;
        if toc.is_empty() {
            return Err(TocError::Position { offset: toc.start, blob_bytes: self.blob_bytes });
        }
        if toc.end - toc.start > MAX_TOC_BYTES { Err(TocError::TooLarge) } else { Ok(toc) }
    }

    fn finish_stargz(
        &self,
        toc_offset: u64,
        member: &[u8],
    ) -> Result<Option<LayerIndex>, TocError> {
        let json = member::unpack(member, toc_offset)?;
        self.check(&json)?;
        self.finish(Compression::Gzip, toc_offset, &json)
    }

    fn check(&self, bytes: &[u8]) -> Result<(), TocError> {
        let found = Digest::of(self.digest.algorithm(), bytes);
        if found == self.digest {
            Ok(())
        } else {
            Err(TocError::Digest { expected: self.digest, found: Box::new(found) })
        }
    }

    fn finish(
        &self,
        compression: Compression,
        used_bytes: u64,
        json: &[u8],
    ) -> Result<Option<LayerIndex>, TocError> {
        let (blob, blob_bytes) = (self.blob, self.blob_bytes);
        let source = Source { blob, blob_bytes, used_bytes, compression };
        index_of(source, json, &self.limits).map(Some)
    }
}

/// The index of the table `json`.
pub(super) fn index_of(
    source: Source,
    json: &[u8],
    limits: &Limits,
) -> Result<LayerIndex, TocError> {
    let mut assembler = Assembler::new(source, limits);
    json::read(json, &mut assembler)?;
    assembler.finish().map_err(|error| TocError::assembly(error, ""))
}

impl TocError {
    /// `name` is that of the last entry.
    fn assembly(error: AssemblyError, name: &str) -> Self {
        match error {
            AssemblyError::Entry(what) => Self::Entry { name: shorten(name), what },
            AssemblyError::Path(path, what) => {
                Self::Entry { name: shorten(&String::from_utf8_lossy(&path)), what }
            }
            AssemblyError::Span(number, what) => Self::Span { number, what },
            AssemblyError::Table(error) => Self::Table(error),
            AssemblyError::TooManyEntries { limit } => Self::TooManyEntries { limit },
            AssemblyError::TooLarge { limit } => Self::StreamTooLarge { limit },
        }
    }
}

/// An annotation of the layer.
struct Annotation<'a> {
    name: &'static str,
    value: &'a str,
}

impl Annotation<'_> {
    fn wrong(&self) -> TocError {
        TocError::Annotation { name: self.name, value: shorten(self.value) }
    }

    fn digest(&self) -> Result<Digest, TocError> {
        self.value.parse().map_err(|_| self.wrong())
    }

    /// Where zstd:chunked's table is in a blob of `blob_bytes` bytes.
    fn chunked(&self, blob_bytes: u64) -> Result<State, TocError> {
        let number = |text: &str| {
            let is_number = text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| is_number)
        };
        let numbers: Option<Vec<u64>> = self.value.split(':').map(number).collect();
        let Some(&[offset, bytes, raw_bytes, CHUNKED_KIND]) = numbers.as_deref() else {
            return Err(self.wrong());
        };
        if bytes > MAX_TOC_BYTES || raw_bytes > MAX_TOC_BYTES {
            return Err(TocError::TooLarge);
        }
        match offset.checked_add(bytes) {
            Some(end) if end <= blob_bytes => Ok(State::Chunked { toc: offset..end, raw_bytes }),
            _ => Err(TocError::Position { offset, blob_bytes }),
        }
    }
}

/// What an entry is, as all of these tables write it.
fn kind_of(text: &str) -> Option<Kind> {
    Some(match text {
        "reg" => Kind::File,
        "hardlink" => Kind::Link,
        "symlink" => Kind::Symlink,
        "char" => Kind::Char,
        "block" => Kind::Block,
        "dir" => Kind::Dir,
        "fifo" => Kind::Fifo,
        _ => return None,
    })
}

/// Hostile input is quoted in messages, but never at length.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(160) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}
