//! Layers of images: what is inside their blobs, without unpacking them.
//!
//! Nothing here does I/O: compressed bytes are pushed in, values come out. A layer is passed once
//! from its beginning to its end by an [`Indexer`]. That makes a [`LayerIndex`]: the table of the
//! files in its tar archive, and what it takes to decompress any part of it later from a range of
//! the blob, with a digest for each part. Some layers come with a table of contents, of which a
//! [`TocReader`] makes an index without a pass. A [`Rootfs`] is what a container sees of a list of
//! layers.
//!
//! ```text
//! merge      Rootfs: whiteouts, opaque directories, hard links over layers
//! toc        TocReader -> LayerIndex, from the tables of eStargz and zstd:chunked
//! index      Indexer -> LayerIndex: table of entries, spans and their digests, stored form
//! tar        a push parser of archives
//! gzip zstd  push decoders that say where one can begin again
//! ```
//!
//! Offsets into the decompressed archive are called *stream* offsets, those into the blob *blob*
//! offsets.

mod codec;
mod compressed;
mod gzip;
mod index;
mod members;
mod merge;
mod profile;
mod tar;
#[cfg(test)]
mod tests;
mod toc;
mod zstd;

pub use codec::{CodecError, Compression};
pub use index::{
    Chunk, DecodeError, Decoded, Entry, Expected, Hashing, IndexError, Indexer, LayerIndex, Note,
    NoteKind, Options, Origin, Span, SpanDecoder, StoredError, StoredHead, Table, TableError, Work,
    Xattrs,
};
pub use members::{Member, MemberReader, Refused};
pub use merge::{Attributes, Broken, Data, Found, MergeError, Node, Rootfs, find_from_top};
pub use profile::{
    PROFILE_ARTIFACT_TYPE, PROFILE_MEDIA_TYPE, Profile, ProfileError, ProfileRecorder,
    ProfiledRead, ProfiledStream, StreamKind,
};
pub use tar::{Extent, Kind, Refusal, TarError, Time};
pub use toc::{MAX_ZTOC_BYTES, TocError, TocReader, soci_index, ztoc_of};

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

/// Entry points of the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use std::sync::Arc;

    use super::{
        Compression, Expected, Hashing, Indexer, LayerIndex, Limits, Options, Origin, Rootfs,
        SpanDecoder, TocReader, index::Source,
    };
    use crate::image::{Descriptor, Digest};

    /// So that an input takes little time.
    fn limits() -> Limits {
        Limits {
            max_entries: 1000,
            max_table_bytes: 1 << 20,
            max_stream_bytes: 32 << 20,
            ..Limits::default()
        }
    }

    /// Indexes a blob, plain or compressed, in pieces of `piece` bytes, and reads all that its
    /// index promises.
    pub fn blob(blob: &[u8], piece: u16) {
        let options = Options { limits: limits(), hashing: Hashing::Inline, ..Options::default() };
        let mut indexer = Indexer::new(options);
        let mut stream = Vec::new();
        for piece in blob.chunks(usize::from(piece).max(1)) {
            let shown = indexer.push_with(piece, &mut |chunk| {
                assert_eq!(chunk.stream_offset, stream.len() as u64);
                stream.extend_from_slice(chunk.bytes);
            });
            assert_eq!(shown, Ok(()));
        }
        let expected =
            Expected { blob: Digest::sha256(blob), blob_bytes: blob.len() as u64, diff_id: None };
        let index = indexer.finish(&expected);
        assert!(index.is_ok(), "{index:?}");
        let Ok(index) = index else { return };
        // The last piece may be too short to have been shown.
        assert!(index.stream_bytes() >= stream.len() as u64);
        for span in 0..index.span_count() {
            let range = index.fetch_range(span..span + 1);
            let found = index.decode(span, &blob[range.start as usize..range.end as usize]);
            let known = index.stream_range(span);
            let (from, to) = (known.start as usize, known.end as usize);
            if let Some(shown) = stream.get(from..to) {
                assert_eq!(found.as_deref(), Ok(shown));
            }
        }
        let stored = index.to_bytes();
        let again = stored.as_deref().map(LayerIndex::from_bytes);
        assert!(matches!(&again, Ok(Ok(again)) if again.table() == index.table()), "{again:?}");
        tree(index);
    }

    /// Reads the body of a stored index whose digest does not matter, of a blob of `blob_bytes`; one of
    /// version 2 if it `is_old`.
    pub fn body(origin: Origin, is_old: bool, body: &[u8], blob_bytes: u64, stream_bytes: u64) {
        if let Ok(index) = LayerIndex::from_body(origin, is_old, body, blob_bytes, stream_bytes) {
            for span in 0..index.span_count() {
                let _ = index.decode(span, &[0; 64]);
                let group = index.group(span);
                assert!(group.contains(&span));
                let range = index.fetch_range(group.start..span + 1);
                assert!(range.start <= range.end && range.end <= blob_bytes);
            }
            let all = 0..index.span_count();
            if let Ok(mut decoder) = SpanDecoder::new(&index, 0, None) {
                let _ = decoder.push(&index, &all, &[0; 300], &mut |_| {});
            }
            let stored = index.clone().with_windows(&[]).to_bytes();
            assert!(stored.is_ok());
            tree(index);
        }
        let _ = LayerIndex::from_bytes(body);
    }

    /// Reads a table of contents of SOCI with the right digest, of a blob, and all that it promises.
    pub fn ztoc(blob: &[u8], ztoc: &[u8]) {
        let layer = Descriptor::new("", Digest::sha256(blob), blob.len() as u64);
        let Ok(index) = LayerIndex::of_ztoc(&layer, ztoc, &limits()) else { return };
        for span in 0..index.span_count() {
            let range = index.fetch_range(span..span + 1);
            let compressed = &blob[range.start as usize..range.end as usize];
            let known = index.stream_range(span);
            if let Ok(found) = index.decode(span, compressed) {
                assert_eq!(found.len() as u64, known.end - known.start);
            }
        }
        let stored = index.to_bytes();
        let again = stored.as_deref().map(LayerIndex::from_bytes);
        assert!(matches!(&again, Ok(Ok(again)) if again.table() == index.table()), "{again:?}");
        tree(index);
    }

    /// Reads a table of contents with the right digest, of a blob that has `members` before it, and
    /// all that it promises. It is that of an eStargz or of zstd:chunked.
    pub fn toc(is_stargz: bool, members: &[u8], json: &[u8]) {
        let compression = if is_stargz { Compression::Gzip } else { Compression::Zstd };
        let (blob, used_bytes) = (Digest::sha256(members), members.len() as u64);
        let source = Source { blob, blob_bytes: used_bytes, used_bytes, compression };
        let Ok(index) = super::toc::index_of(source, json, &limits()) else { return };
        for span in 0..index.span_count() {
            let range = index.fetch_range(span..span + 1);
            let compressed = &members[range.start as usize..range.end as usize];
            let known = index.stream_range(span);
            if let Ok(found) = index.decode(span, compressed) {
                assert_eq!(found.len() as u64, known.end - known.start);
            }
            assert_eq!(index.span_of(known.start), Some(span));
        }
        if let Ok(mut decoder) = SpanDecoder::new(&index, 0, None) {
            let all = 0..index.span_count();
            let range = index.fetch_range(all.clone());
            let compressed = &members[range.start as usize..range.end as usize];
            let _ = decoder.push(&index, &all, compressed, &mut |_| {});
        }
        for (number, entry) in (0..).zip(index.table().entries()) {
            for extent in index.table().extents(number) {
                let end = extent.stream_offset + extent.length;
                assert!(extent.file_offset + extent.length <= entry.size);
                assert!(index.span_of(extent.stream_offset).is_some());
                assert!(index.span_of(end - 1).is_some());
            }
        }
        let stored = index.to_bytes();
        let again = stored.as_deref().map(LayerIndex::from_bytes);
        assert!(matches!(&again, Ok(Ok(again)) if again.table() == index.table()), "{again:?}");
        tree(index);
    }

    /// Reads the end of a blob of `blob_bytes` as that of an eStargz.
    pub fn tail(blob_bytes: u64, digest: Digest, tail: &[u8]) {
        let mut layer = Descriptor::new("", digest, blob_bytes);
        let name = "containerd.io/snapshot/stargz/toc.digest";
        layer.annotations.insert(name.to_owned(), digest.to_string());
        let Ok(Some(mut reader)) = TocReader::new(&layer, Limits::default()) else { return };
        loop {
            let wanted = reader.wanted();
            assert!(wanted.start <= wanted.end && wanted.end <= blob_bytes);
            // Whatever is not there is zeros.
            let mut bytes = vec![0; (wanted.end - wanted.start) as usize];
            let count = bytes.len().min(tail.len());
            let end = bytes.len();
            bytes[end - count..].copy_from_slice(&tail[tail.len() - count..]);
            match reader.push(&bytes) {
                Ok(None) => {}
                Ok(Some(index)) => return tree(index),
                Err(_) => return,
            }
        }
    }

    fn tree(index: LayerIndex) {
        let index = Arc::new(index);
        for tree in [Rootfs::raw(Arc::clone(&index)), Rootfs::new(vec![Arc::clone(&index), index])]
        {
            let Ok(tree) = tree else { continue };
            for node in (0..tree.node_count()).filter_map(|number| tree.node(number)) {
                tree.attributes(node);
                tree.symlink_target(node);
                tree.xattrs(node).count();
                assert_eq!(tree.data(node).is_err(), tree.broken(node).is_some());
                assert_eq!(
                    tree.lookup(tree.parent(node), tree.name(node)).is_some(),
                    node != tree.root()
                );
            }
        }
    }
}
