//! Layers of images: what is inside their blobs, without unpacking them.
//!
//! Nothing here does I/O: compressed bytes are pushed in, values come out. A layer is passed once
//! from its beginning to its end by an [`Indexer`]. That makes a [`LayerIndex`]: the table of the
//! files in its tar archive, and what it takes to decompress any part of it later from a range of
//! the blob, with a digest for each part. A [`Rootfs`] is what a container sees of a list of
//! layers.
//!
//! ```text
//! merge      Rootfs: whiteouts, opaque directories, hard links over layers
//! index      Indexer -> LayerIndex: table of entries, spans and their digests, stored form
//! tar        a push parser of archives
//! gzip zstd  push decoders that say where one can begin again
//! ```
//!
//! Offsets into the decompressed archive are called *stream* offsets, those into the blob *blob*
//! offsets.

mod codec;
mod gzip;
mod index;
mod merge;
mod tar;
#[cfg(test)]
mod tests;
mod zstd;

pub use codec::{CodecError, Compression};
pub use index::{
    Chunk, DecodeError, Entry, Expected, Hashing, IndexError, Indexer, LayerIndex, Note, NoteKind,
    Options, Span, SpanDecoder, StoredError, StoredHead, Table, TableError, Xattrs,
};
pub use merge::{Attributes, Broken, Data, Found, MergeError, Node, Rootfs, find_from_top};
pub use tar::{Extent, Kind, Refusal, TarError, Time};

/// What the parsers of a layer accept, so that a hostile one costs bounded memory and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of an archive. What comes after them is not shown.
    pub max_entries: u32,
    /// Bytes that the table of an archive may take in memory.
    pub max_table_bytes: u64,
    /// Decompressed bytes of a layer; at most 2 TiB.
    pub max_stream_bytes: u64,
    /// Decompressed bytes for each byte of the blob, once there are more than
    /// [`Limits::RATIO_FREE_BYTES`].
    pub max_ratio: u64,
}

impl Limits {
    /// Decompressed bytes that come in any ratio: a blob of zeros is no attack as long as it is
    /// small.
    pub const RATIO_FREE_BYTES: u64 = 1 << 30;

    /// How many decompressed bytes are allowed after `blob_bytes` of the blob.
    fn stream_bytes(&self, blob_bytes: u64) -> u64 {
        let by_ratio = blob_bytes.saturating_mul(self.max_ratio).max(Self::RATIO_FREE_BYTES);
        by_ratio.min(self.max_stream_bytes)
    }
}

impl Default for Limits {
    /// What no honest image reaches: 4 million entries, 512 MiB of table, 256 GiB of stream. The
    /// ratio of 2000 is about twice what deflate can do at all; zstd has no such bound of its own.
    fn default() -> Self {
        Self {
            max_entries: 4_000_000,
            max_table_bytes: 512 << 20,
            max_stream_bytes: 256 << 30,
            max_ratio: 2000,
        }
    }
}
