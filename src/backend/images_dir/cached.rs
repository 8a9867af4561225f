//! The files in which the cache of a mount keeps parts of blobs, and what a pull takes from them.
//!
//! ```text
//! blobs/.imgfs/cache/        or the directory of `--cache-dir`
//!   version                    `imgfs cache 3`
//!   lock                       locked by the process whose cache this is
//!   part/<digest>              the blocks of a blob that are here, each at its offset; holes between
//!   part/<digest>.map          which blocks these are
//!   whole/<digest>             whole and verified blobs, sealed as a pull seals its own
//!   streams/part/, streams/whole/
//!                              the same for decompressed streams of layers, named by [`StreamId`]
//!   recent                     names of files, the one that was read last at the end
//!   gone/                      files that are about to be removed
//! ```
//!
//! A blob is known to be right by its digest, a stream because imgfs has made it of a layer that it
//! has checked. So streams have directories of their own: no blob that a registry sends can take the
//! place of a stream, and no stream that of a blob.
//!
//! Digests are written `sha256-<hex>` here, which every file system takes. Version 2 wrote `sha256:<hex>`; its files
//! are renamed when it is opened for the first time.
//!
//! Version 1 kept streams among the blobs, under digests of texts. When a cache of version 1 is
//! opened for the first time, whole files whose content has not the digest in their name are removed,
//! and only then the version becomes 3. Parts stay: they are hashed before the end of a blob is
//! given out, and by a pull, as they always were.
//!
//! A map is a header and a checksum for each block of [`BLOCK_BYTES`], all little-endian:
//!
//! ```text
//!  0  "imgfsmap"
//!  8  version, 1 (u32)
//! 12  bytes of a block (u32)
//! 16  bytes of the blob (u64)
//! 24  0 (u32)
//! 28  CRC-32 of what is before (u32)
//! 32  for each block the CRC-32 of its bytes, or 0 if it is not here (u32)
//! ```
//!
//! A block is written before its checksum, and its checksum is cleared before the block goes. So
//! a process that is killed leaves no checksum without its block; after a power cut, which keeps
//! no order, the block does not fit its checksum and counts as absent.
//!
//! Files below `whole/` are never written to, only renamed and removed: a pull may take one away
//! at any time. Files below `part/` belong to whoever holds the lock; others only read them, or
//! remove them.

use std::{
    fmt::{self, Display, Formatter},
    fs::{self, File},
    io::{self, ErrorKind, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use sha2::{Digest as _, Sha256};

use super::{Layout, portable, publish};
use crate::{
    backend::{ConfinedDir, Flush},
    image::Digest,
};

/// The file in a cache that whoever uses it holds locked.
pub const LOCK: &str = "lock";

/// Content is kept and checked in blocks of this many bytes.
pub const BLOCK_BYTES: u64 = 128 << 10;

/// Bytes before the first checksum of a map.
pub const HEADER_BYTES: u64 = 32;

/// The content of the file `version`.
pub const VERSION: &str = "imgfs cache 3\n";

/// What it was when names had colons.
pub const VERSION_WITH_COLONS: &str = "imgfs cache 2\n";

/// What it was when streams were among the blobs.
pub const VERSION_WITHOUT_STREAMS: &str = "imgfs cache 1\n";

/// What the file `version` begins with, whatever the version.
pub const VERSION_NAME: &str = "imgfs cache ";

/// The directory of blobs that are here in parts.
pub const PART: &str = "part";

/// The directory of whole and verified blobs.
pub const WHOLE: &str = "whole";

/// How the name of a map ends.
pub const MAP_SUFFIX: &str = ".map";

const MAGIC: &[u8; 8] = b"imgfsmap";
const MAP_VERSION: u32 = 1;

/// The directory of decompressed streams, which has directories [`PART`] and [`WHOLE`] as well.
pub const STREAMS: &str = "streams";

/// What a file of the cache holds. Content of the one kind is never taken for content of the other.
///
/// ```
/// use imgfs::{backend::images_dir::cached::ContentId, image::Digest};
///
/// let digest = Digest::sha256(b"content");
/// // Every file system takes such a name.
/// let name = digest.to_string().replace(':', "-");
/// let blob = ContentId::parse_blob(&name).unwrap();
/// assert_eq!(blob, ContentId::Blob(digest));
/// assert_eq!(blob.file_name(), name);
/// // What names a blob names no stream.
/// assert_eq!(ContentId::parse_stream(&name), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContentId {
    /// A blob with this digest.
    Blob(Digest),
    /// The decompressed stream of a layer.
    Stream(StreamId),
}

impl ContentId {
    /// The content that a file with this name holds in the directories of blobs.
    pub fn parse_blob(name: &str) -> Option<Self> {
        portable::digest(name).map(Self::Blob)
    }

    /// The content that a file with this name holds in the directories of streams.
    pub fn parse_stream(name: &str) -> Option<Self> {
        name.parse().ok().map(Self::Stream)
    }

    /// Whether it is the decompressed stream of a layer.
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// The name of its files.
    pub fn file_name(&self) -> String {
        match self {
            Self::Blob(digest) => Layout::Portable.digest_name(digest),
            Self::Stream(id) => id.to_string(),
        }
    }

    /// Where the cache at `dir` has it, if it has all of it.
    pub fn whole_path(&self, dir: &Path) -> PathBuf {
        self.base(dir).join(WHOLE).join(self.file_name())
    }

    /// Where the cache at `dir` has parts of it.
    pub fn part_path(&self, dir: &Path) -> PathBuf {
        self.base(dir).join(PART).join(self.file_name())
    }

    /// Where the cache at `dir` says which parts of it it has.
    pub fn map_path(&self, dir: &Path) -> PathBuf {
        self.base(dir).join(PART).join(format!("{}{MAP_SUFFIX}", self.file_name()))
    }

    fn base(&self, dir: &Path) -> PathBuf {
        match self {
            Self::Blob(_) => dir.to_owned(),
            Self::Stream(_) => dir.join(STREAMS),
        }
    }
}

impl Display for ContentId {
    /// As it is called in messages.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(digest) => write!(f, "blob {digest}"),
            Self::Stream(id) => write!(f, "the decompressed stream of layer {}", id.layer),
        }
    }
}

/// Names the decompressed stream of a layer, made in a certain way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId {
    layer: Digest,
    /// SHA-256 of what says how it was made.
    form: [u8; 32],
}

impl StreamId {
    /// The stream of `layer`. `form` says everything else on which its bytes depend.
    pub fn new(layer: Digest, form: &str) -> Self {
        Self { layer, form: Sha256::digest(form.as_bytes()).into() }
    }
}

impl Display for StreamId {
    /// As its files are called: `<digest of the layer, with - for the colon>.<64 hexadecimal digits>`.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let layer = Layout::Portable.digest_name(&self.layer);
        write!(f, "{layer}.{}", hex::encode(self.form))
    }
}

impl FromStr for StreamId {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let (layer, form) = name.split_once('.').ok_or(())?;
        let mut id = Self { layer: portable::digest(layer).ok_or(())?, form: [0; 32] };
        hex::decode_to_slice(form, &mut id.form).map_err(|_| ())?;
        // One stream has one name: no capital letters.
        if id.to_string() == name { Ok(id) } else { Err(()) }
    }
}

/// Where the cache at `dir` has the blob `digest`, if it has all of it.
pub fn whole_path(dir: &Path, digest: &Digest) -> PathBuf {
    ContentId::Blob(*digest).whole_path(dir)
}

/// Where the cache at `dir` has parts of the blob `digest`.
pub fn part_path(dir: &Path, digest: &Digest) -> PathBuf {
    ContentId::Blob(*digest).part_path(dir)
}

/// Where the cache at `dir` says which parts of the blob `digest` it has.
pub fn map_path(dir: &Path, digest: &Digest) -> PathBuf {
    ContentId::Blob(*digest).map_path(dir)
}

/// The number of blocks of a blob of `size` bytes.
pub fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES)
}

/// The checksum of a block, never 0.
pub fn checksum(block: &[u8]) -> u32 {
    crc32fast::hash(block).max(1)
}

/// The header of the map of a blob of `size` bytes.
pub fn map_header(size: u64) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&MAP_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
    header[16..24].copy_from_slice(&size.to_le_bytes());
    let sum = crc32fast::hash(&header[..28]);
    header[28..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// Bytes of the map of a blob of `size` bytes.
pub fn map_bytes(size: u64) -> u64 {
    HEADER_BYTES + 4 * block_count(size)
}

/// Where in a map the checksum of `block` stands.
pub fn sum_offset(block: u64) -> u64 {
    HEADER_BYTES + 4 * block
}

/// Which blocks of a blob are here.
///
/// ```
/// use imgfs::backend::images_dir::cached::{BLOCK_BYTES, BlockMap, block_count, block_length, checksum};
///
/// let size = BLOCK_BYTES + 10;
/// assert_eq!((block_count(size), block_length(size, 1)), (2, 10));
/// let map = BlockMap { size, sums: vec![0, checksum(b"ten bytes.")] };
/// assert_eq!(BlockMap::parse(&map.to_bytes()), Some(map));
/// assert_eq!(BlockMap::parse(b"something else"), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    /// Bytes of the blob.
    pub size: u64,
    /// The checksum of each block, 0 if it is not here.
    pub sums: Vec<u32>,
}

impl BlockMap {
    /// Reads a map; `None` if it is damaged, or of another version.
    pub fn parse(map: &[u8]) -> Option<Self> {
        let (header, sums) = map.split_at_checked(HEADER_BYTES as usize)?;
        let size = u64::from_le_bytes(header[16..24].try_into().ok()?);
        let is_whole = header == map_header(size)
            && sums.len() % 4 == 0
            && (sums.len() / 4) as u64 == block_count(size);
        is_whole.then(|| {
            let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            Self { size, sums: sums.chunks_exact(4).map(number).collect() }
        })
    }

    /// The map as it stands in its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut map = map_header(self.size).to_vec();
        map.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        map
    }

    /// Reads a map from its file in `root`; `None` if there is none that makes sense.
    pub fn read(root: &ConfinedDir, path: &Path) -> io::Result<Option<Self>> {
        match root.read(path, u64::MAX) {
            Ok(map) => Ok(Self::parse(&map)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The bytes of block number `block` of a blob of `size` bytes: how many it has.
pub fn block_length(size: u64, block: u64) -> usize {
    // At most `BLOCK_BYTES`.
    size.saturating_sub(block * BLOCK_BYTES).min(BLOCK_BYTES) as usize
}

/// Gives a file of the cache the mode and time of a published blob, and flushes it.
pub fn seal(file: &File) -> io::Result<()> {
    publish::seal(file, publish::Time::Immutable, Flush::Now)
}

/// Whether the content of the file at `path` has this digest. Reads all of it.
pub fn has_digest(root: &ConfinedDir, path: &Path, digest: &Digest) -> io::Result<bool> {
    Ok(super::hash_file(root, path, digest.algorithm(), &mut |_| {})?.digest == *digest)
}

/// Whether a file looks like a published blob.
pub fn is_sealed(meta: &fs::Metadata) -> bool {
    publish::looks_sealed(meta)
}

/// Adds to `to`, which holds the first `have` bytes of a blob, what the cache at `dir` has next.
/// Returns how many bytes that is. They are as unverified as `to` is.
pub(super) fn append_prefix(
    root: &ConfinedDir,
    dir: &Path,
    digest: &Digest,
    size: u64,
    mut to: &File,
    have: u64,
) -> io::Result<u64> {
    let Some(map) = BlockMap::read(root, &map_path(dir, digest))?.filter(|map| map.size == size)
    else {
        return Ok(0);
    };
    let part = match root.open_file(&part_path(dir, digest)) {
        Ok((part, _)) => part,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let mut buffer = vec![0; BLOCK_BYTES as usize];
    let mut added = 0;
    for block in have / BLOCK_BYTES..block_count(size) {
        let piece = &mut buffer[..block_length(size, block)];
        // `block` is below the number of checksums. A block that is not here, or goes while it
        // is read, does not fit its checksum.
        let sum = map.sums[block as usize];
        let start = block * BLOCK_BYTES;
        if sum == 0 || part.read_exact_at(piece, start).is_err() || checksum(piece) != sum {
            break;
        }
        // Less than a block, and only of the first one.
        let known = (have + added - start) as usize;
        to.write_all(&piece[known..])?;
        added += (piece.len() - known) as u64;
    }
    Ok(added)
}

/// Makes the cache at `dir` forget what it has of `digest` in parts: it is damaged.
pub(super) fn discard_parts(root: &ConfinedDir, dir: &Path, digest: &Digest) {
    for path in [map_path(dir, digest), part_path(dir, digest)] {
        // What cannot be removed is found out again.
        let _ = root.remove_file(&path);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(size: u64, sums: &[u32]) -> BlockMap {
        BlockMap { size, sums: sums.to_vec() }
    }

    #[test]
    fn maps_are_read_as_they_were_written() {
        for map in [map(0, &[]), map(1, &[7]), map(BLOCK_BYTES + 1, &[0, u32::MAX])] {
            assert_eq!(BlockMap::parse(&map.to_bytes()), Some(map.clone()));
            assert_eq!(map.to_bytes().len() as u64, map_bytes(map.size));
        }
    }

    #[test]
    fn damaged_maps_are_none() {
        let good = map(3 * BLOCK_BYTES, &[1, 2, 3]).to_bytes();
        for cut in 0..good.len() {
            assert_eq!(BlockMap::parse(&good[..cut]), None, "cut to {cut}");
        }
        assert_eq!(BlockMap::parse(&[&good[..], &[0; 4]].concat()), None, "too long");
        for at in 0..HEADER_BYTES as usize {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(BlockMap::parse(&bad), None, "byte {at} is damaged");
        }
        let mut huge = good.clone();
        huge[..32].copy_from_slice(&map_header(u64::MAX));
        assert_eq!(BlockMap::parse(&huge), None);
    }

    #[test]
    fn names_of_streams_are_read_as_they_were_written() {
        for layer in [Digest::sha256(b"1"), Digest::of(crate::image::Algorithm::Sha512, b"1")] {
            let id = StreamId::new(layer, "a form");
            let name = id.to_string();
            assert!(name.len() + MAP_SUFFIX.len() <= 255);
            assert_eq!(name.parse(), Ok(id));
            assert_eq!(ContentId::parse_stream(&name), Some(ContentId::Stream(id)));
            assert_eq!(ContentId::parse_blob(&name), None, "a blob has no such name");
            assert_eq!(ContentId::parse_stream(&layer.to_string()), None);
            assert_ne!(id, StreamId::new(layer, "another form"));
            for wrong in
                [&name[1..], &name[..name.len() - 1], &format!("{name}0"), &name.to_uppercase()]
            {
                assert_eq!(wrong.parse::<StreamId>(), Err(()), "{wrong}");
            }
        }
    }

    #[test]
    fn the_form_stays_as_it_is() {
        let written = map(BLOCK_BYTES + 5, &[0x0102_0304, 0]).to_bytes();
        assert_eq!(
            hex::encode(written),
            "696d6766736d617001000000000002000500020000000000000000002ef016f10403020100000000"
        );
    }

    #[test]
    fn a_prefix_ends_where_a_block_is_absent_or_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        let size = 3 * BLOCK_BYTES + 10;
        let content: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let digest = Digest::sha256(&content);
        fs::create_dir(dir.path().join(PART)).unwrap();
        let sums: Vec<u32> = content.chunks(BLOCK_BYTES as usize).map(checksum).collect();
        let write = |content: &[u8], sums: &[u32]| {
            fs::write(part_path(dir.path(), &digest), content).unwrap();
            fs::write(map_path(dir.path(), &digest), map(size, sums).to_bytes()).unwrap();
        };
        let take = |have: u64| {
            let path = dir.path().join("to");
            fs::write(&path, &content[..have as usize]).unwrap();
            let to = File::options().append(true).open(&path).unwrap();
            let added = append_prefix(&root, dir.path(), &digest, size, &to, have).unwrap();
            let found = fs::read(&path).unwrap();
            assert_eq!(found.len() as u64, have + added);
            assert!(content.starts_with(&found));
            found.len() as u64
        };
        assert_eq!(take(5), 5, "there is nothing");
        write(&content, &sums);
        assert_eq!(take(0), size);
        assert_eq!(take(BLOCK_BYTES + 7), size);
        assert_eq!(take(size), size);
        write(&content, &[sums[0], sums[1], 0, sums[3]]);
        assert_eq!(take(0), 2 * BLOCK_BYTES);
        assert_eq!(take(2 * BLOCK_BYTES + 9), 2 * BLOCK_BYTES + 9);
        let mut damaged = content.clone();
        damaged[BLOCK_BYTES as usize + 3] ^= 1;
        write(&damaged, &sums);
        assert_eq!(take(0), BLOCK_BYTES);
        write(&content[..9], &sums);
        assert_eq!(take(3), 3);
        assert_eq!(
            append_prefix(
                &root,
                dir.path(),
                &digest,
                size - 1,
                &File::create(dir.path().join("x")).unwrap(),
                0
            )
            .unwrap(),
            0
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_map_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(map) = BlockMap::parse(&bytes) {
                prop_assert_eq!(map.to_bytes(), bytes);
            }
        }
    }
}
