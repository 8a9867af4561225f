//! Deterministic bytes that do not compress, and their digests.
//!
//! Every eight bytes depend on the seed and on their own position only, so a server can answer a range
//! request in the middle of a layer of 300 MB without ever holding the layer.

use sha2::{Digest as _, Sha256};
use std::io::{self, Read};
use std::sync::Arc;

/// The output function of `SplitMix64`.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Writes the bytes of stream `seed` that start at `offset` into `buffer`.
pub(crate) fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let base = mix(seed.wrapping_add(GOLDEN));
    let word = |index: u64| mix(base.wrapping_add(index.wrapping_mul(GOLDEN))).to_le_bytes();
    let mut index = offset / 8;
    let mut rest = buffer;
    let skip = (offset % 8) as usize;
    if skip != 0 {
        let head = (8 - skip).min(rest.len());
        rest[..head].copy_from_slice(&word(index)[skip..skip + head]);
        rest = &mut rest[head..];
        index += 1;
    }
    let mut chunks = rest.chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&word(index));
        index += 1;
    }
    let tail = chunks.into_remainder();
    let last = word(index);
    tail.copy_from_slice(&last[..tail.len()]);
}

/// A small deterministic generator for decisions (which fault, how long to wait).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(GOLDEN)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// True in `per_mille` of 1,000 cases.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }
}

/// The bytes of a blob: held, or produced when they are read.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Held(Arc<[u8]>),
    Generated {
        seed: u64,
        size: u64,
    },
    /// Bytes that were hashed when they came and are not here any more.
    Unkept {
        size: u64,
    },
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Held(bytes) => bytes.len() as u64,
            Self::Generated { size, .. } | Self::Unkept { size } => *size,
        }
    }

    /// Whether the bytes can be had.
    pub(crate) fn is_kept(&self) -> bool {
        !matches!(self, Self::Unkept { .. })
    }

    /// Copies bytes from `offset` on into `buffer`; returns how many there were.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let left = self.len().saturating_sub(offset);
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        match self {
            Self::Held(bytes) => {
                let from = usize::try_from(offset).expect("held content fits into memory");
                if count > 0 {
                    buffer[..count].copy_from_slice(&bytes[from..from + count]);
                }
            }
            Self::Generated { seed, .. } => fill(*seed, offset, &mut buffer[..count]),
            Self::Unkept { .. } => panic!("the bytes of this blob were not kept"),
        }
        count
    }

    pub(crate) fn reader(&self) -> ContentReader {
        ContentReader { content: self.clone(), offset: 0 }
    }

    /// All bytes at once; for small content.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len()).expect("fits into memory")];
        self.read_at(0, &mut bytes);
        bytes
    }

    pub(crate) fn digest(&self) -> String {
        digest_of_reader(&mut self.reader()).expect("reading from memory")
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Held(bytes.into())
    }
}

pub(crate) struct ContentReader {
    content: Content,
    offset: u64,
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read_at(self.offset, buffer);
        self.offset += count as u64;
        Ok(count)
    }
}

/// What the cache of a mount calls the files of a blob.
pub(crate) fn cached_name(digest: &str) -> String {
    digest.replacen(':', "-", 1)
}

/// `sha256:<hex>` of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// `sha256:<hex>` of all that a reader gives.
pub(crate) fn digest_of_reader(reader: &mut dyn Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(format!("sha256:{}", hex::encode(hasher.finalize()))),
            count => hasher.update(&buffer[..count]),
        }
    }
}
