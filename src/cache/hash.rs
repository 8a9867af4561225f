//! The digest of a blob, computed as its blocks come, on a thread of its own: from memory while
//! they come in order, else from the file.
//!
//! It runs as long as the next block is here. When the last one has been hashed and the digest is
//! right, that block may be given out, and what is complete is sealed. When it is wrong, all that
//! is known of the blob goes.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{
    Core, SIDE,
    read::Pins,
    readers::Failed,
    state::{Key, State},
};
use crate::{
    backend::{Error, Kind, images_dir::cached::ContentId},
    image::{Digest, Hasher},
};

/// What to hash next.
enum Next {
    /// This block, which is in memory.
    Bytes(Hasher, Bytes),
    /// The next block is not here, or has gone bad.
    Nothing,
    /// This one, which is on the disk.
    Disk(Hasher, u32, Pins),
    /// Everything has been hashed.
    End(Digest, Bytes),
}

impl Core {
    /// Goes on with the digest, if it can be gone on with.
    pub(super) fn kick_hash(self: &Arc<Self>, state: &mut State, key: &Key) {
        let State { blobs, memory, .. } = state;
        let Some(blob) = blobs.get_mut(key) else { return };
        let next = blob.verification.prefix.to;
        let is_wanted = blob.verification.is_wanted && !blob.is_verified();
        if blob.verification.prefix.running || !is_wanted || next >= blob.blocks {
            return;
        }
        if blob.verification.prefix.feed.is_empty() && !blob.has(next, memory) {
            return;
        }
        blob.verification.prefix.running = true;
        let (core, key, id, run) = (self.clone(), *key, blob.id, blob.verification.prefix.run);
        drop(self.tasks.spawn_blocking(move || core.hash(&key, id, run)));
    }

    fn hash(self: &Arc<Self>, key: &Key, id: u64, run: u64) {
        let mut last = Bytes::new();
        loop {
            match self.next_to_hash(key, id, run, &last) {
                Next::Bytes(mut hasher, bytes) => {
                    hasher.update(&bytes);
                    if !self.hashed(key, id, run, hasher, &bytes) {
                        return;
                    }
                    last = bytes;
                }
                Next::Disk(mut hasher, block, pins) => {
                    let bytes = pins.read_block(block);
                    if let Some(bytes) = &bytes {
                        hasher.update(bytes);
                    }
                    let goes_on = match &bytes {
                        Some(bytes) => self.hashed(key, id, run, hasher, bytes),
                        // It is fetched again by whoever needs it.
                        None => self.give_back(key, id, run, hasher),
                    };
                    if !goes_on {
                        return;
                    }
                    last = bytes.unwrap_or_default();
                }
                Next::Nothing => return,
                Next::End(found, last) => {
                    self.finish(key, id, run, found, &last);
                    return;
                }
            }
        }
    }

    fn next_to_hash(self: &Arc<Self>, key: &Key, id: u64, run: u64, last: &Bytes) -> Next {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(blob) =
            state.blobs.get_mut(key).filter(|b| b.id == id && b.verification.prefix.run == run)
        else {
            return Next::Nothing;
        };
        let next = blob.verification.prefix.to;
        let Some(hasher) = blob.verification.prefix.hasher.take() else { return Next::Nothing };
        if next == blob.blocks {
            return Next::End(hasher.finish(), last.clone());
        }
        if let Some(bytes) = blob.verification.prefix.feed.pop_front() {
            return Next::Bytes(hasher, bytes);
        }
        if let Some(bytes) = state.memory.get(id, next) {
            return Next::Bytes(hasher, bytes.clone());
        }
        if blob.disk.sum(next).is_some()
            && let Some(pins) = self.pin(state, key, next..next + 1)
        {
            return Next::Disk(hasher, next, pins);
        }
        if let Some(blob) = state.blob(key, id).filter(|blob| blob.verification.prefix.run == run) {
            blob.verification.prefix.hasher = Some(hasher);
            blob.verification.prefix.running = false;
            blob.requests.wake();
        }
        self.pump(state, key);
        self.settle(state, key);
        Next::Nothing
    }

    /// Notes that a block has been hashed; whether that is still of interest.
    fn hashed(&self, key: &Key, id: u64, run: u64, hasher: Hasher, bytes: &Bytes) -> bool {
        let is_kept =
            self.lock().blob(key, id).is_some_and(|b| b.disk.is_kept(b.verification.prefix.to));
        let mut sha = (!is_kept).then(|| Sha256::digest(bytes).into());
        let mut state = self.lock();
        let Some(blob) = state.blob(key, id).filter(|blob| blob.verification.prefix.run == run)
        else {
            return false;
        };
        let block = blob.verification.prefix.to;
        blob.verification.prefix.hasher = Some(hasher);
        blob.verification.prefix.to += 1;
        if !blob.disk.is_kept(block) && blob.is_remembered(block) {
            // It may have to be fetched again.
            let sha = sha.take().unwrap_or_else(|| Sha256::digest(bytes).into());
            let more = blob.verification.prefix.known.insert(block, sha);
            blob.requests.wake();
            state.known_bytes += more;
            self.bound_known(&mut state);
            return true;
        }
        blob.requests.wake();
        true
    }

    /// Gives the hasher back as it was; whether that is still of interest.
    fn give_back(&self, key: &Key, id: u64, run: u64, hasher: Hasher) -> bool {
        let mut state = self.lock();
        let Some(blob) = state.blob(key, id).filter(|blob| blob.verification.prefix.run == run)
        else {
            return false;
        };
        blob.verification.prefix.hasher = Some(hasher);
        // What came meanwhile is what follows the block that was not there.
        blob.verification.prefix.feed.clear();
        true
    }

    /// All has been hashed.
    fn finish(self: &Arc<Self>, key: &Key, id: u64, run: u64, found: Digest, last: &Bytes) {
        let mut state = self.lock();
        let Some(blob) = state.blob(key, id).filter(|blob| blob.verification.prefix.run == run)
        else {
            return;
        };
        blob.verification.prefix.running = false;
        // Streams are not hashed.
        let ContentId::Blob(expected) = key.content else { return };
        if found == expected {
            blob.set_verified();
            let block = blob.blocks.saturating_sub(1);
            blob.readers.give(block, last);
            self.seal_if_whole(&mut state, key);
            self.pump(&mut state, key);
            self.settle(&mut state, key);
            return;
        }
        let doing = format!("reading {}", key.content);
        let error = Error::new(SIDE, doing, Kind::Digest { expected, found });
        blob.fail(0..u32::MAX, &Failed { error: error.clone(), origin: 0 });
        state.counts.errors += 1;
        self.distrust(&mut state, key, error);
    }
}
