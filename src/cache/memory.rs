//! Blocks in memory: those on their way to the disk, and the last few that came.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

/// A block: the number of its blob, and its own.
type Name = (u64, u32);

/// A bounded number of bytes of blocks, and besides them those that are held.
pub(super) struct Memory {
    limit: usize,
    /// Of what is not held.
    bytes: usize,
    blocks: HashMap<Name, Block>,
    /// Blocks that are not held, the oldest first.
    order: BTreeMap<u64, Name>,
    clock: u64,
}

struct Block {
    bytes: Bytes,
    /// Its place in `order`; `None` while it is held.
    age: Option<u64>,
}

impl Memory {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, blocks: HashMap::new(), order: BTreeMap::new(), clock: 0 }
    }

    /// Holds a block until [`Memory::release`].
    pub(super) fn hold(&mut self, blob: u64, block: u32, bytes: Bytes) {
        self.remove(blob, block);
        self.blocks.insert((blob, block), Block { bytes, age: None });
    }

    /// From now on the block may go.
    pub(super) fn release(&mut self, blob: u64, block: u32) {
        let name = (blob, block);
        let Some(known) = self.blocks.get_mut(&name).filter(|known| known.age.is_none()) else {
            return;
        };
        self.clock += 1;
        known.age = Some(self.clock);
        self.bytes += known.bytes.len();
        self.order.insert(self.clock, name);
        while self.bytes > self.limit
            && let Some((_, (blob, block))) = self.order.first_key_value()
        {
            self.remove(*blob, *block);
        }
    }

    pub(super) fn get(&self, blob: u64, block: u32) -> Option<&Bytes> {
        self.blocks.get(&(blob, block)).map(|known| &known.bytes)
    }

    pub(super) fn has(&self, blob: u64, block: u32) -> bool {
        self.blocks.contains_key(&(blob, block))
    }

    fn remove(&mut self, blob: u64, block: u32) {
        if let Some(known) = self.blocks.remove(&(blob, block))
            && let Some(age) = known.age
        {
            self.order.remove(&age);
            self.bytes -= known.bytes.len();
        }
    }

    /// Removes the blocks of a blob that are not held.
    pub(super) fn forget_released(&mut self, blob: u64) {
        let is_meant = |name: &Name, block: &Block| name.0 == blob && block.age.is_some();
        let all = self.blocks.iter().filter(|(name, block)| is_meant(name, block));
        let blocks: Vec<Name> = all.map(|(name, _)| *name).collect();
        for (blob, block) in blocks {
            self.remove(blob, block);
        }
    }

    /// Removes all blocks of a blob.
    pub(super) fn forget(&mut self, blob: u64) {
        let blocks: Vec<Name> = self.blocks.keys().filter(|name| name.0 == blob).copied().collect();
        for (blob, block) in blocks {
            self.remove(blob, block);
        }
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
        assert_eq!((has(&memory).len(), memory.bytes, memory.order.len()), (0, 0, 0));
    }
}
