//! What a table takes in memory, and the hash tables that find its parts while it is made.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    mem,
};

use hashbrown::HashTable;

/// A builder is measured again after so many entries at the latest: as many as 16 KiB of a blob can be, which are a
/// thousand times as many decompressed, with an entry for each 512 of those.
pub(super) const ENTRIES_AT_ONCE: usize = 1 << 15;

/// A list, or the places of a hash table.
pub(super) struct Measure {
    length: usize,
    capacity: usize,
    /// Bytes of an element.
    element: usize,
    /// How many times its memory it has while it grows to twice its size.
    growing: usize,
}

impl Measure {
    pub(super) fn of<T>(list: &Vec<T>) -> Self {
        let element = mem::size_of::<T>();
        // Large ones grow where they are.
        Self { length: list.len(), capacity: list.capacity(), element, growing: 2 }
    }

    pub(super) fn of_lookup(lookup: &Lookup) -> Self {
        // Of eight places at most seven are taken; each has a byte of its own.
        let places = lookup.table.capacity() / 7 * 8;
        Self { length: lookup.table.len() / 7 * 8, capacity: places, element: 5, growing: 3 }
    }

    pub(super) fn of_map<K, V>(map: &HashMap<K, V>) -> Self {
        let element = mem::size_of::<(K, V)>() + 1;
        Self { length: map.len() / 7 * 8, capacity: map.capacity() / 7 * 8, element, growing: 3 }
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.capacity * self.element) as u64
    }

    /// The bytes that it may take before it is measured again.
    pub(super) fn bytes_soon(&self) -> u64 {
        // A name, a target, or what else is in bytes.
        let of_an_entry = if self.element == 1 { 16 } else { 1 };
        let is_nearly_full = self.capacity - self.length <= ENTRIES_AT_ONCE * of_an_entry;
        self.bytes() * if is_nearly_full { self.growing as u64 } else { 1 }
    }
}

/// Finds the numbers of things that are kept elsewhere by what they are. Strangers cannot choose its hashes.
#[derive(Default)]
pub(super) struct Lookup {
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Lookup {
    pub(super) fn find(&self, what: impl Hash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let hash = self.hasher.hash_one(what);
        self.table.find(hash, |number| is_it(*number)).copied()
    }

    /// Adds a number that is not in it. `of` says again what the number of another thing stands for.
    pub(super) fn insert<T: Hash>(&mut self, what: impl Hash, number: u32, of: impl Fn(u32) -> T) {
        let hash = self.hasher.hash_one(what);
        let rehash = |other: &u32| self.hasher.hash_one(of(*other));
        self.table.insert_unique(hash, number, rehash);
    }
}
