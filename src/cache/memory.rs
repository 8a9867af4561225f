//! Blocks in memory: those on their way to the disk, and the last few that came.

use std::collections::HashMap;

use bytes::Bytes;
use lru::LruCache;

/// A block: the number of its blob, and its own.
type Name = (u64, u32);

/// A bounded number of bytes of blocks, and besides them those that are held.
pub(super) struct Memory {
    limit: usize,
    /// Of what is not held.
    bytes: usize,
    held: HashMap<Name, Bytes>,
    /// Blocks that are not held. Reading one does not make it stay longer: who reads on wants the
    /// next ones.
    released: LruCache<Name, Bytes>,
}

impl Memory {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, held: HashMap::new(), released: LruCache::unbounded() }
    }

    /// Holds a block until [`Memory::release`].
    pub(super) fn hold(&mut self, blob: u64, block: u32, bytes: Bytes) {
        self.remove(blob, block);
        self.held.insert((blob, block), bytes);
    }

    /// From now on the block may go.
    pub(super) fn release(&mut self, blob: u64, block: u32) {
        let Some(bytes) = self.held.remove(&(blob, block)) else { return };
        self.bytes += bytes.len();
        self.released.put((blob, block), bytes);
        while self.bytes > self.limit
            && let Some((_, bytes)) = self.released.pop_lru()
        {
            self.bytes -= bytes.len();
        }
    }

    pub(super) fn get(&self, blob: u64, block: u32) -> Option<&Bytes> {
        let name = (blob, block);
        self.held.get(&name).or_else(|| self.released.peek(&name))
    }

    pub(super) fn has(&self, blob: u64, block: u32) -> bool {
        self.get(blob, block).is_some()
    }

    fn remove(&mut self, blob: u64, block: u32) {
        self.held.remove(&(blob, block));
        if let Some(bytes) = self.released.pop(&(blob, block)) {
            self.bytes -= bytes.len();
        }
    }

    /// Removes the blocks of a blob that are not held.
    pub(super) fn forget_released(&mut self, blob: u64) {
        let bytes = &mut self.bytes;
        self.released.retain(|name, block| {
            let stays = name.0 != blob;
            if !stays {
                *bytes -= block.len();
            }
            stays
        });
    }

    /// Removes all blocks of a blob.
    pub(super) fn forget(&mut self, blob: u64) {
        self.held.retain(|name, _| name.0 != blob);
        self.forget_released(blob);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_what_is_held_stays() {
        let mut memory = Memory::new(20);
        for block in 0..5 {
            memory.hold(1, block, Bytes::from_static(&[0; 10]));
        }
        let has = |memory: &Memory| (0..5).filter(|b| memory.has(1, *b)).collect::<Vec<_>>();
        assert_eq!(has(&memory), [0, 1, 2, 3, 4]);
        for block in [3, 0, 1] {
            memory.release(1, block);
            memory.release(1, block);
        }
        assert_eq!(has(&memory), [0, 1, 2, 4]);
        memory.hold(1, 0, Bytes::from_static(&[0; 10]));
        memory.release(1, 2);
        assert_eq!(has(&memory), [0, 1, 2, 4]);
        memory.forget(2);
        memory.forget(1);
        assert_eq!((has(&memory).len(), memory.bytes, memory.released.len()), (0, 0, 0));
    }
}
