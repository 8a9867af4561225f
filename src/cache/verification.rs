//! How it is known that a blob is what it should be.

use std::collections::{HashMap, VecDeque};

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
    pub known: HashMap<u32, [u8; 32]>,
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
            known: HashMap::new(),
        }
    }
}
