//! Eviction: what was used longest ago goes first, an extent of a blob in parts at a time, or a
//! whole blob.
//!
//! Nothing goes that is being read, written or sealed, and no whole blob of which somebody has the
//! file. The checksums of an extent are cleared before its blocks go. What blocks
//! have to be when they are fetched again is remembered first, unless nobody reads the whole blob.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use sha2::{Digest as _, Sha256};

use super::{
    Core,
    disk::{Gone, punch},
    state::{Key, State, WHOLE},
    stored::{Extent, Files, Place},
    tasks::point,
};
use crate::backend::images_dir::cached::{self, BLOCK_BYTES};

/// What is to be evicted.
pub(super) enum Victim {
    /// It has been forgotten already, and what is left is to wait until it has gone.
    Whole(Gone),
    /// It is pinned.
    Extent { key: Key, id: u64, number: u32, files: Arc<Files>, given: Vec<u32> },
}

impl Core {
    /// Finds what was used longest ago and may go.
    pub(super) fn choose_victim(&self, state: &mut State) -> Option<Victim> {
        let may_go = |&(key, unit): &(Key, u32)| {
            let Some(blob) = state.blobs.get(&key) else { return false };
            if unit == WHOLE {
                return blob.readers.lent == 0;
            }
            let blocks =
                unit * blob.disk.extent_blocks..(unit + 1).saturating_mul(blob.disk.extent_blocks);
            let is_free = |extent: &Extent| extent.pins == 0 && !extent.leaving;
            !blob.disk.sealing
                && blob.disk.extents.get(&unit).is_some_and(is_free)
                && blob.disk.writing.range(blocks).next().is_none()
        };
        let (key, unit) = state.lru.iter().rev().map(|(unit, ())| *unit).find(may_go)?;
        if unit == WHOLE {
            let blob = state.blobs.get(&key)?;
            state.counts.evicted_bytes += blob.disk.charge;
            return Some(Victim::Whole(self.forget(state, &key, Place::New)));
        }
        let Some(files) = self.open_parts(state, &key) else {
            // It has been reset, and its place will be free.
            return Some(Victim::Whole(Gone::default()));
        };
        let blob = state.blobs.get_mut(&key)?;
        let first = unit * blob.disk.extent_blocks;
        let given = (first..first + blob.disk.extent_blocks)
            .filter(|block| blob.disk.was_given(*block) && blob.is_remembered(*block));
        let given = given.collect();
        let id = blob.id;
        blob.disk.extents.get_mut(&unit)?.pins += 1;
        Some(Victim::Extent { key, id, number: unit, files, given })
    }

    /// Evicts it.
    pub(super) fn evict(&self, victim: Victim) {
        let (key, id, number, files, given) = match victim {
            Victim::Whole(gone) => {
                self.remove_gone(&gone);
                return;
            }
            Victim::Extent { key, id, number, files, given } => (key, id, number, files, given),
        };
        point();
        let known: Vec<_> = given.iter().filter_map(|block| sha(&files, &key, *block)).collect();
        let first = {
            let mut state = self.lock();
            let state = &mut *state;
            let Some(blob) = state.blobs.get_mut(&key).filter(|blob| blob.id == id) else { return };
            let Some(extent) = blob.disk.extents.get_mut(&number) else { return };
            extent.pins -= 1;
            let first = number * blob.disk.extent_blocks;
            let blocks = first..first + blob.disk.extent_blocks;
            let is_used = extent.pins > 0
                || extent.leaving
                || blob.disk.sealing
                || blob.disk.writing.range(blocks.clone()).next().is_some();
            let has_come_further = blocks.clone().any(|block| {
                blob.disk.was_given(block) && blob.is_remembered(block) && !given.contains(&block)
            });
            if is_used || has_come_further {
                return;
            }
            if known.len() < given.len() {
                // They cannot be read: nobody can say what they were.
                return self.lose(state, &key);
            }
            for (block, sha) in known {
                state.known_bytes += blob.verification.prefix.known.insert(block, sha);
            }
            let gone = blocks.filter(|block| blob.disk.sum(*block).is_some()).count();
            // At most the number of blocks of an extent.
            blob.disk.stored -= gone as u32;
            if let Some(extent) = blob.disk.extents.get_mut(&number) {
                extent.leaving = true;
                state.lru.pop(&(key, number));
            }
            first
        };
        let (start, end) = self.extent_bytes(&key, first);
        let blocks = self.extent_blocks.min(cached::block_count(key.size) as u32 - first);
        let zeros = vec![0; 4 * blocks as usize];
        point();
        let cleared = files.map.write_all_at(&zeros, cached::sum_offset(first.into()));
        let punched = cleared.and_then(|()| punch(&files.data, start, end - start));
        let mut state = self.lock();
        let state = &mut *state;
        let Some(blob) = state.blobs.get_mut(&key).filter(|blob| blob.id == id) else { return };
        let freed = blob.disk.charge_of(number);
        blob.disk.extents.remove(&number);
        if punched.is_ok() {
            // Where there are no holes, its place is free when the file has gone.
            blob.disk.charge -= freed;
            state.used -= freed;
        }
        state.counts.evicted_bytes += freed;
        if punched.is_err() && blob.disk.stored == 0 && blob.disk.writing.is_empty() {
            self.reset(state, &key, Place::New);
            return;
        }
        self.settle(state, &key);
        self.bound_known(state);
    }

    fn extent_bytes(&self, key: &Key, first: u32) -> (u64, u64) {
        let start = u64::from(first) * BLOCK_BYTES;
        let end = start + u64::from(self.extent_blocks) * BLOCK_BYTES;
        (start, end.min(key.size.next_multiple_of(BLOCK_BYTES)))
    }
}

/// The hash of a block on the disk.
fn sha(files: &Files, key: &Key, block: u32) -> Option<(u32, [u8; 32])> {
    let mut bytes = vec![0; cached::block_length(key.size, u64::from(block))];
    let file: &File = &files.data;
    file.read_exact_at(&mut bytes, u64::from(block) * BLOCK_BYTES).ok()?;
    Some((block, Sha256::digest(&bytes).into()))
}
