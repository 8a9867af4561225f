//! Inodes: their numbers, and those that the kernel knows at the moment.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Mutex,
};

use sha2::{Digest as _, Sha256};

use super::{ViewError, inside::TreeId};
use crate::util::locked;

/// The number of the root.
pub const ROOT: u64 = 1;

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    /// A file in the images_dir that is named by its digest.
    Local,
    /// Another file there, which may be replaced.
    LocalTag,
    /// A manifest that is not in the images_dir, by its digest.
    Manifest(crate::image::Digest),
    /// A blob that is not in the images_dir.
    Blob(crate::image::Digest),
    /// Something on the way to the inside of images, as its path says.
    Inside,
    /// Something in a tree of which the kernel was told before that had been made, as its path says.
    Early(TreeId),
    /// A name of which nothing is known yet.
    Unknown,
    /// A file that is being written, or has been.
    Pending,
}

/// An inode that the kernel knows.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Below the root, without a leading slash.
    pub path: Box<str>,
    pub kind: Kind,
    /// How often it has been told to the kernel, and not been forgotten.
    lookups: u64,
}

/// The inodes that the kernel knows, whichever part of the mount they belong to.
pub(super) struct Inodes(Mutex<Table>);

impl Inodes {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Table::new()))
    }

    pub(super) fn node(&self, ino: u64) -> Result<Node, ViewError> {
        locked(&self.0).get(ino).cloned().ok_or(ViewError::Stale)
    }

    /// The path of an inode below the root.
    pub(super) fn path_of(&self, ino: u64) -> Result<Box<str>, ViewError> {
        let table = locked(&self.0);
        table.get(ino).map(|node| node.path.clone()).ok_or(ViewError::Stale)
    }

    /// The number of what has the path `path`, and this content if it can have another one later.
    pub(super) fn number(&self, path: &str, content: &[u8]) -> u64 {
        locked(&self.0).number(path, content)
    }

    /// Its number, of which the kernel is told once more.
    pub(super) fn tell(&self, path: &str, content: &[u8], kind: Kind) -> u64 {
        let mut table = locked(&self.0);
        let ino = table.number(path, content);
        table.told(ino, path, kind);
        ino
    }

    /// The kernel is told once more of an inode that has its number already.
    pub(super) fn tell_known(&self, ino: u64, path: &str, kind: Kind) {
        locked(&self.0).told(ino, path, kind);
    }

    /// The kernel has renamed an inode that it knows, and knows it by this path from now on.
    pub(super) fn moved(&self, ino: u64, path: &str) {
        if let Some(node) = locked(&self.0).0.get_mut(&ino) {
            node.path = path.into();
        }
    }

    /// The kernel forgets so many times that it was told of an inode. What that was, and how many of the
    /// times it had been told.
    pub(super) fn forgotten(&self, ino: u64, times: u64) -> Option<(Kind, u64)> {
        locked(&self.0).forgotten(ino, times)
    }

    /// How many inodes the kernel knows, the root not counted.
    pub(super) fn len(&self) -> usize {
        locked(&self.0).len()
    }
}

/// Inodes by their numbers, which are hashes already.
struct Table(HashMap<u64, Node, BuildHasherDefault<Number>>);

/// The hash of a number that is one.
#[derive(Default)]
struct Number(u64);

impl Hasher for Number {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The table takes the highest bits for itself, and of these two are always 0.
        self.0 = number << 2;
    }
}

impl Table {
    fn new() -> Self {
        let root = Node { path: "".into(), kind: Kind::Directory, lookups: 1 };
        Self([(ROOT, root)].into_iter().collect())
    }

    fn get(&self, ino: u64) -> Option<&Node> {
        self.0.get(&ino)
    }

    /// The number of a file or directory. It is made of its name and, where one name can stand for
    /// different content in the course of time, of the content; so it is the same after a remount.
    fn number(&self, path: &str, content: &[u8]) -> u64 {
        if path.is_empty() {
            return ROOT;
        }
        let mut hash = Sha256::new();
        hash.update(path.as_bytes());
        hash.update([0]);
        hash.update(content);
        let hash = hash.finalize();
        let mut head = [0; 8];
        head.copy_from_slice(&hash[..8]);
        // Some programs take the highest bit for a sign; the next one is for trees.
        let mut number = (u64::from_be_bytes(head) >> 2).max(ROOT + 1);
        while self.0.get(&number).is_some_and(|node| *node.path != *path) {
            number += 1;
        }
        number
    }

    /// Notes that the kernel is told of an inode once more.
    fn told(&mut self, ino: u64, path: &str, kind: Kind) {
        let node = self.0.entry(ino).or_insert_with(|| Node {
            path: path.into(),
            kind: kind.clone(),
            lookups: 0,
        });
        node.kind = kind;
        node.lookups += 1;
    }

    /// Notes that the kernel forgets so many times that it was told of an inode. What that was, and how
    /// many of the times it had been told.
    fn forgotten(&mut self, ino: u64, times: u64) -> Option<(Kind, u64)> {
        if ino == ROOT {
            return None;
        }
        let node = self.0.get_mut(&ino)?;
        let times = times.min(node.lookups);
        node.lookups -= times;
        let kind = node.kind.clone();
        if node.lookups == 0 {
            self.0.remove(&ino);
        }
        Some((kind, times))
    }

    /// How many inodes the kernel knows, the root not counted.
    fn len(&self) -> usize {
        self.0.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_differ() {
        let table = Table::new();
        assert_eq!(table.number("", b""), ROOT);
        let numbers = [table.number("a", b""), table.number("a", b"1"), table.number("b", b"")];
        assert_eq!(numbers[0], Table::new().number("a", b""));
        assert!(numbers[0] != numbers[1] && numbers[0] != numbers[2] && numbers[1] != numbers[2]);
    }

    #[test]
    fn what_the_kernel_forgets_is_gone() {
        let mut table = Table::new();
        let ino = table.number("a", b"");
        table.told(ino, "a", Kind::Directory);
        table.told(ino, "a", Kind::Directory);
        table.forgotten(ino, 1);
        assert!(table.get(ino).is_some());
        table.forgotten(ino, 1);
        assert_eq!((table.get(ino).is_none(), table.len()), (true, 0));
        table.forgotten(ROOT, 5);
        assert!(table.get(ROOT).is_some());
    }
}
