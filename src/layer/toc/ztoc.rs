//! SOCI's tables of contents, which it calls ztocs: one for a layer, beside it and not in it.
//!
//! ```text
//! manifest of the image, annotated with the digest of
//!   SOCI index, a manifest of its own: of each layer that has a ztoc, its digest
//!     ztoc: the entries of the archive, and access points of the gzip stream with a digest for each
//! ```
//!
//! So each digest leads back to the manifest of the image. That is so in images that were made by
//! `soci convert` (version 2 of SOCI). The indexes of version 1 are found the other way round: they
//! refer to the image, and whoever may write to its repository can add one. Nothing in the image
//! vouches for them, so they are not used.
//!
//! Sources: `docs/soci-index-manifest-v2.md`, `ztoc/fbs/ztoc.fbs` and the packages `soci` and `ztoc`
//! of awslabs/soci-snapshotter.

use super::{
    TocError,
    flatbuffer::{Buffer, Table},
    kind_of, time,
};
use crate::{
    image::{Descriptor, Digest, Manifest},
    layer::{
        Compression, Kind, LayerIndex, Limits, gzip,
        index::{AssemblyError, Cut, Entries, Source, index_of_cuts, u64_at},
        tar::{BLOCK_BYTES, Claim, MAX_HEADER_BYTES, Refusal, TarEntry, xattrs_of},
    },
};

/// The annotation of an image's manifest with the digest of its SOCI index.
const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

/// The annotation of a ztoc with the digest of its layer.
const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";

/// What access points begin with: their number, 4 bytes, and how far they are apart, 8 bytes.
const POINTS_HEADER_BYTES: usize = 12;

/// Where it is in the blob and in the stream, 8 bytes each, how many bits of the byte before it are
/// its own, and the 32 KiB of the stream before it.
const POINT_BYTES: usize = 17 + gzip::WINDOW_BYTES;

/// Bytes that each span of a plain archive has at least, unless it is the only one.
const MIN_PLAIN_BYTES: u64 = 64 << 10;

/// Bytes that a record takes in an archive, besides its keyword and its value.
const RECORD_BYTES: usize = 5;

/// The most bytes that a ztoc may have: those of a layer of 8 GB.
pub const MAX_ZTOC_BYTES: u64 = 64 << 20;

/// The digest of the SOCI index that the manifest of an image speaks of.
pub fn soci_index(image: &Manifest) -> Option<Digest> {
    image.annotations().get(INDEX_DIGEST)?.parse().ok()
}

/// The ztoc of `layer` in a SOCI index.
pub fn ztoc_of<'a>(soci_index: &'a Manifest, layer: &Digest) -> Option<&'a Descriptor> {
    let is_it = |ztoc: &&Descriptor| {
        let of = ztoc.annotations.get(LAYER_DIGEST).map(|digest| digest.parse::<Digest>());
        matches!(of, Some(Ok(of)) if of == *layer)
    };
    soci_index.blobs().skip(1).find(is_it)
}

impl LayerIndex {
    /// The index that `ztoc` makes, which is that of the layer with this descriptor: its digest has
    /// been checked, and leads back to a manifest. It is for layers that are gzip or not compressed.
    pub fn of_ztoc(layer: &Descriptor, ztoc: &[u8], limits: &Limits) -> Result<Self, TocError> {
        let buffer = Buffer::new(ztoc);
        let root = buffer.root()?;
        let (blob_bytes, stream_bytes) = (root.count(2)?, root.count(3)?);
        if blob_bytes != layer.size {
            return Err(TocError::Packing("it is that of a layer of another size"));
        }
        let compression = root.table(5)?;
        let (kind, last) = (compression.i8(0, GZIP)?, compression.i32(1)?);
        let digests: Vec<[u8; 32]> = compression.texts(2)?.map(digest).collect::<Result<_, _>>()?;
        let points = compression.bytes(3)?;
        if usize::try_from(last).ok().and_then(|last| last.checked_add(1)) != Some(digests.len()) {
            return Err(TocError::Packing("it has not one digest for each span"));
        }
        let (kind, cuts) = match kind {
            GZIP => (Compression::Gzip, gzip_cuts(points, &digests)?),
            PLAIN => (Compression::Plain, plain_cuts(points, &digests)?),
            _ => return Err(TocError::Packing("its compression is unknown")),
        };
        let mut entries = Entries::new(limits);
        for listed in root.table(4)?.tables(0)? {
            let listed = listed?;
            let name = listed.bytes(0)?;
            let (entry, refused) = entry(&listed, name, stream_bytes)?;
            entries.push(name, entry.as_ref()).map_err(|error| about(error, name))?;
            for why in refused {
                entries.refuse(name, &why);
            }
        }
        let blob = layer.digest;
        let source = Source { blob, blob_bytes, used_bytes: blob_bytes, compression: kind };
        let index = index_of_cuts(source, entries, cuts, stream_bytes, limits);
        index.map_err(|error| TocError::assembly(error, ""))
    }
}

/// The kinds of compression that it knows.
const GZIP: i8 = 1;
const PLAIN: i8 = 2;

fn digest(text: Result<&[u8], TocError>) -> Result<[u8; 32], TocError> {
    let digest = std::str::from_utf8(text?).ok().and_then(|text| text.parse().ok());
    match digest {
        Some(Digest::Sha256(digest)) => Ok(digest),
        _ => Err(TocError::Packing("it has a span without a SHA-256")),
    }
}

/// The access points of a gzip stream.
fn gzip_cuts<'a>(points: &'a [u8], digests: &[[u8; 32]]) -> Result<Vec<Cut<'a>>, TocError> {
    let malformed = TocError::Packing("its access points are malformed");
    let Some((header, rest)) = points.split_at_checked(POINTS_HEADER_BYTES) else {
        return Err(malformed);
    };
    let (points, rest) = rest.as_chunks::<POINT_BYTES>();
    let count = header.first_chunk().map(|count| u32::from_le_bytes(*count) as usize);
    if count != Some(digests.len()) || points.len() != digests.len() || !rest.is_empty() {
        return Err(malformed);
    }
    let point = |point: &'a [u8; POINT_BYTES]| {
        let (blob_offset, stream_offset) = (u64_at(point, 0)?, u64_at(point, 8)?);
        let bits = u64::from(point[16]);
        let blob_bits = blob_offset.checked_mul(8)?.checked_sub(bits).filter(|_| bits < 8)?;
        Some((stream_offset, blob_bits, &point[17..]))
    };
    let cuts = points.iter().map(point).zip(digests).map(|(point, digest)| {
        let (stream_offset, blob_bits, window) = point?;
        Some(Cut { stream_offset, blob_bits, window, digest: *digest })
    });
    cuts.collect::<Option<_>>().ok_or(malformed)
}

/// The spans of a plain archive: a version, 4 bytes, how many bytes each has, and how many all have, 8
/// bytes each.
fn plain_cuts(header: &[u8], digests: &[[u8; 32]]) -> Result<Vec<Cut<'static>>, TocError> {
    let malformed = TocError::Packing("its access points are malformed");
    let Some(bytes) = u64_at(header, 4).filter(|bytes| *bytes > 0 && header.len() == 20) else {
        return Err(malformed);
    };
    if bytes < MIN_PLAIN_BYTES && digests.len() > 1 {
        return Err(TocError::Packing("its spans are too small"));
    }
    let cuts = (0_u64..).zip(digests).map(|(number, digest)| {
        let stream_offset = bytes.checked_mul(number)?;
        let blob_bits = stream_offset.checked_mul(8)?;
        Some(Cut { stream_offset, blob_bits, window: &[], digest: *digest })
    });
    cuts.collect::<Option<_>>().ok_or(malformed)
}

type Listed = (Result<TarEntry, Refusal>, Vec<Refusal>);

/// An entry of the archive, if it can be shown, and what of it cannot.
fn entry(listed: &Table<'_>, name: &[u8], stream_bytes: u64) -> Result<Listed, TocError> {
    let wrong = |what| about(AssemblyError::Entry(what), name);
    let kind = std::str::from_utf8(listed.bytes(1)?).ok().and_then(kind_of);
    let kind = kind.ok_or_else(|| wrong("it is of a type that is unknown"))?;
    let (data_offset, size) = (listed.count(2)?, listed.count(3)?);
    if kind == Kind::File && size > 0 {
        if !data_offset.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(wrong("its content is not where an archive can have it"));
        }
        if data_offset.checked_add(size).is_none_or(|end| end > stream_bytes) {
            return Err(wrong("it is not within the layer"));
        }
    }
    let mtime = std::str::from_utf8(listed.bytes(10)?).ok().and_then(time::parse);
    let is_device = matches!(kind, Kind::Char | Kind::Block);
    let claim = Claim {
        name,
        kind,
        mode: (listed.count(5)? & 0o7777) as u16,
        uid: listed.u32(6)?.into(),
        gid: listed.u32(7)?.into(),
        size,
        mtime: mtime.ok_or_else(|| wrong("its time is none"))?,
        target: listed.bytes(4)?,
        device: if is_device { (listed.count(11)?, listed.count(12)?) } else { (0, 0) },
        data_offset: if kind == Kind::File { data_offset } else { 0 },
    };
    let (mut records, mut room) = (Vec::new(), MAX_HEADER_BYTES as usize);
    for record in listed.tables(13)? {
        let record = record?;
        let (key, value) = (record.bytes(0)?, record.bytes(1)?);
        let left = room.checked_sub(key.len() + value.len() + RECORD_BYTES);
        room = left.ok_or_else(|| wrong("it has more than 1 MiB of extended attributes"))?;
        records.push((key, value));
    }
    // Where the parts of a sparse file are it does not say.
    let xattrs = xattrs_of(records).map_err(wrong)?.ok_or_else(|| wrong("it is sparse"))?;
    let mut entry = claim.check();
    let mut refused = Vec::new();
    if let Ok(entry) = &mut entry {
        refused = entry.take_xattrs(xattrs);
    }
    Ok((entry, refused))
}

/// What is wrong with the entry of this name.
fn about(error: AssemblyError, name: &[u8]) -> TocError {
    TocError::assembly(error, &String::from_utf8_lossy(name))
}
