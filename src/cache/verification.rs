//! How it is known that a blob is what it should be.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::state::Key;
use crate::{
    backend::{Error, images_dir::cached::ContentId},
    image::Hasher,
};

/// What is known of the content of a blob, and what has to be remembered so that it stays that.
///
/// - `verified` is set when the digest of all blocks has been found to be right, and by nothing else. It goes
///   with all that is known of the blob, or when the digest is begun anew.
/// - Every block before `prefix.to` is what was hashed, as long as the prefix is not begun anew: it is on the
///   disk, on its way there, or its hash is in `prefix.known`.
/// - If `is_fixed`, the same goes for every block that a reader has been given.
/// - `mismatches` only grows, also when everything else is dropped: whoever has begun to read before that
///   has perhaps read something else.
pub(super) struct Verification {
    /// Somebody wants everything to be verified.
    pub is_wanted: bool,
    /// A block that has been given to a reader stays what it was as long as the number of the blob does: what
    /// is not kept is remembered by its hash, and what comes in its place is compared with that.
    pub is_fixed: bool,
    pub prefix: Prefix,
    /// The digest of all blocks, one after the other, has been right.
    pub verified: bool,
    /// How often its content has turned out to be wrong since it was opened first.
    pub mismatches: u64,
    /// The last of these times.
    pub mismatch: Option<Error>,
}

impl Verification {
    pub(super) fn new(key: &Key) -> Self {
        Self {
            is_wanted: false,
            is_fixed: false,
            prefix: Prefix::new(key),
            verified: false,
            mismatches: 0,
            mismatch: None,
        }
    }

    /// What it is for a blob of which all that is known is dropped: what its readers want, and how often they
    /// have been wrong.
    pub(super) fn begin_anew(&mut self, key: &Key) -> Self {
        Self {
            is_wanted: self.is_wanted,
            is_fixed: self.is_fixed,
            mismatches: self.mismatches,
            mismatch: self.mismatch.take(),
            ..Self::new(key)
        }
    }

    /// Begins the digest anew.
    pub(super) fn restart(&mut self, key: &Key) {
        let run = self.prefix.run + 1;
        self.prefix = Prefix { run, ..Prefix::new(key) };
        self.verified = false;
    }
}

/// How far the digest has been computed.
pub(super) struct Prefix {
    /// Changes when it is begun anew.
    pub run: u64,
    /// `None` while the next block is being hashed, and for streams.
    pub hasher: Option<Hasher>,
    /// Blocks that have been hashed.
    pub to: u32,
    /// The next blocks, as they came.
    pub feed: VecDeque<Bytes>,
    pub running: bool,
    /// Of blocks that were here and are not on the disk: what they have to be if they are fetched
    /// again.
    pub known: Known,
}

/// SHA-256 sums of blocks, by the numbers of the blocks.
#[derive(Default)]
pub(super) struct Known(BTreeMap<u32, Box<Sums>>);

/// Those of neighbours: mostly all of them are known or none.
type Sums = [Option<[u8; 32]>; SUMS as usize];

const SUMS: u32 = 32;

/// What [`Sums`] take, with their place in the map.
const SUMS_BYTES: usize = size_of::<Sums>() + 32;

impl Known {
    pub(super) fn get(&self, block: u32) -> Option<[u8; 32]> {
        self.0.get(&(block / SUMS))?[(block % SUMS) as usize]
    }

    /// Notes the sum of a block; by how many bytes that makes it larger.
    #[must_use]
    pub(super) fn insert(&mut self, block: u32, sha: [u8; 32]) -> usize {
        let before = self.bytes();
        let sums = self.0.entry(block / SUMS).or_insert_with(|| Box::new([None; SUMS as usize]));
        sums[(block % SUMS) as usize] = Some(sha);
        self.bytes() - before
    }

    /// The memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.0.len() * SUMS_BYTES
    }
}

impl Prefix {
    fn new(key: &Key) -> Self {
        Self {
            run: 0,
            hasher: match key.content {
                ContentId::Blob(digest) => Some(Hasher::new(digest.algorithm())),
                ContentId::Stream(_) => None,
            },
            to: 0,
            feed: VecDeque::new(),
            running: false,
            known: Known::default(),
        }
    }
}
