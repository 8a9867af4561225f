//! The entries of an archive, compactly in memory.
//!
//! Paths are a tree of components whose names are kept once. An entry is 32 bytes, a path 12; what
//! few entries have (fractions of seconds, extended attributes, holes) stands in lists of its own.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    mem,
};

use hashbrown::HashTable;

use crate::layer::{
    Limits,
    tar::{BLOCK_BYTES, Extent, Kind, TarEntry, Time, Xattr},
};

/// The path of the root.
pub(in crate::layer) const ROOT: u32 = 0;

/// A builder is measured again after so many entries at the latest: as many as 16 KiB of a blob can be, which are a
/// thousand times as many decompressed, with an entry for each 512 of those.
const ENTRIES_AT_ONCE: usize = 1 << 15;

/// Stands for an entry that is not there.
pub(super) const NONE: u32 = u32::MAX;

/// Why a table cannot take more. What it has stays readable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It would become too large.
    #[error("the table of the archive would take more than {limit} bytes")]
    TooLarge {
        /// How large it may be.
        limit: u64,
    },
    /// Its entries have more than 65,536 different owners.
    #[error("the archive has more than 65536 different owners")]
    TooManyOwners,
}

/// A component of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathPart {
    /// The path that it is in, always with a lower number.
    pub(super) parent: u32,
    /// Where in `names` its name is.
    pub(super) name: u32,
    /// The last entry with this path, or `NONE`.
    pub(super) last: u32,
}

/// What every entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) path: u32,
    pub(super) size: u64,
    /// Where its data begins, in blocks of tar.
    pub(super) block: u32,
    pub(super) secs: i64,
    /// Which of `owners`.
    pub(super) owner: u16,
    /// The kind in the highest four bits, the mode in the others.
    pub(super) kind_and_mode: u16,
    /// Of a hard link, the path of its target; of a symbolic link, where in `targets` it is; of a
    /// device, major and minor number.
    pub(super) extra: u32,
}

/// The table of an archive's entries, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Length and bytes of each name.
    pub(super) names: Vec<u8>,
    pub(super) paths: Vec<PathPart>,
    pub(super) rows: Vec<Row>,
    pub(super) owners: Vec<(u32, u32)>,
    /// Length (16 bits) and bytes of each symbolic link's target.
    pub(super) targets: Vec<u8>,
    /// Entries with fractions of seconds.
    pub(super) nanos: Vec<(u32, u32)>,
    /// Entries with extended attributes, and where in `xattr_sets` they are.
    pub(super) xattrs: Vec<(u32, u32)>,
    /// Count (16 bits) and, of each, lengths (8 and 32 bits), name and value.
    pub(super) xattr_sets: Vec<u8>,
    /// Sparse entries, and which of `extents` is the first.
    pub(super) sparse: Vec<(u32, u32)>,
    pub(super) extents: Vec<Extent>,
}

/// An entry of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which path of the table it has.
    pub path: u32,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with set-uid, set-gid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file.
    pub size: u64,
    /// When it was modified.
    pub mtime: Time,
    /// Major and minor number of a device.
    pub device: (u16, u32),
    /// Where in the stream its data begins.
    pub data_offset: u64,
    extra: u32,
}

const KINDS: [Kind; 7] =
    [Kind::File, Kind::Link, Kind::Symlink, Kind::Char, Kind::Block, Kind::Dir, Kind::Fifo];

/// The kind with this number, as [`kind_number`] gives it.
pub(super) fn kind_of(number: u16) -> Option<Kind> {
    KINDS.get(usize::from(number)).copied()
}

fn kind_number(kind: Kind) -> u16 {
    match kind {
        Kind::File => 0,
        Kind::Link => 1,
        Kind::Symlink => 2,
        Kind::Char => 3,
        Kind::Block => 4,
        Kind::Dir => 5,
        Kind::Fifo => 6,
    }
}

impl Table {
    /// How many entries it has. They are numbered from 0, in the archive's order.
    pub fn len(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The entry with a number below [`Table::len`].
    pub fn entry(&self, number: u32) -> Option<Entry> {
        let row = self.rows.get(number as usize)?;
        let kind = kind_of(row.kind_and_mode >> 12)?;
        let (uid, gid) = self.owners.get(usize::from(row.owner)).copied().unwrap_or_default();
        let device = match kind {
            Kind::Char | Kind::Block => ((row.extra >> 20) as u16, row.extra & 0xf_ffff),
            _ => (0, 0),
        };
        Some(Entry {
            path: row.path,
            kind,
            mode: row.kind_and_mode & 0o7777,
            uid,
            gid,
            size: row.size,
            mtime: Time { secs: row.secs, nanos: find(&self.nanos, number).unwrap_or(0) },
            device,
            data_offset: u64::from(row.block) * BLOCK_BYTES as u64,
            extra: row.extra,
        })
    }

    /// All entries, in the archive's order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..self.len()).filter_map(|number| self.entry(number))
    }

    /// How many paths it knows: those of entries, of what they are in, and of what hard links
    /// point at. Number 0 is the root; what a path is in has a lower number than it.
    pub fn path_count(&self) -> u32 {
        self.paths.len() as u32
    }

    /// The last component of a path.
    pub fn name(&self, path: u32) -> &[u8] {
        self.name_at(self.paths.get(path as usize).map_or(0, |part| part.name))
    }

    /// The name that begins at byte `at` of all of them.
    fn name_at(&self, at: u32) -> &[u8] {
        match self.names.get(at as usize..).and_then(<[u8]>::split_first) {
            Some((length, rest)) => rest.get(..usize::from(*length)).unwrap_or_default(),
            None => &[],
        }
    }

    /// What a path is in, and where its name begins.
    fn place_of(&self, path: u32) -> (u32, u32) {
        self.paths.get(path as usize).map_or((ROOT, 0), |part| (part.parent, part.name))
    }

    /// The path that a path is in; the root is in itself.
    pub fn parent(&self, path: u32) -> u32 {
        self.paths.get(path as usize).map_or(ROOT, |part| part.parent)
    }

    /// The whole of a path, without `/` at its ends.
    pub fn full_path(&self, path: u32) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = path;
        while at != ROOT {
            parts.push(self.name(at));
            at = self.parent(at);
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// The number of the last entry with a path.
    pub fn last_entry(&self, path: u32) -> Option<u32> {
        self.paths.get(path as usize).map(|part| part.last).filter(|last| *last != NONE)
    }

    /// The path that a hard link points at.
    pub fn link_path(&self, entry: &Entry) -> Option<u32> {
        (entry.kind == Kind::Link).then_some(entry.extra)
    }

    /// What a symbolic link says.
    pub fn symlink_target(&self, entry: &Entry) -> Option<&[u8]> {
        if entry.kind != Kind::Symlink {
            return None;
        }
        let (length, rest) = self.targets.get(entry.extra as usize..)?.split_first_chunk()?;
        rest.get(..usize::from(u16::from_le_bytes(*length)))
    }

    /// The extended attributes of an entry: name and value of each.
    pub fn xattrs(&self, number: u32) -> Xattrs<'_> {
        let at = find(&self.xattrs, number);
        let set = at.and_then(|at| self.xattr_sets.get(at as usize..)?.split_first_chunk());
        match set {
            Some((count, rest)) => Xattrs { left: u16::from_le_bytes(*count), rest },
            None => Xattrs { left: 0, rest: &[] },
        }
    }

    /// Where the content of a file is. What is in no extent is zeros.
    pub fn extents(&self, number: u32) -> Vec<Extent> {
        let Some(entry) = self.entry(number).filter(|e| e.kind == Kind::File) else {
            return Vec::new();
        };
        match self.sparse_extents(number) {
            Some(extents) => extents.to_vec(),
            None if entry.size == 0 => Vec::new(),
            None => {
                let stream_offset = entry.data_offset;
                vec![Extent { file_offset: 0, stream_offset, length: entry.size }]
            }
        }
    }

    /// Bytes of a file that are stored: those of all its extents.
    pub fn stored_bytes(&self, number: u32) -> u64 {
        match self.sparse_extents(number) {
            Some(extents) => extents.iter().map(|extent| extent.length).sum(),
            None => self.entry(number).map_or(0, |entry| entry.size),
        }
    }

    /// The extents of a sparse file; `None` if the entry is none.
    fn sparse_extents(&self, number: u32) -> Option<&[Extent]> {
        let at = self.sparse.binary_search_by_key(&number, |(entry, _)| *entry).ok()?;
        let first = self.sparse[at].1 as usize;
        let end = self.sparse.get(at + 1).map(|(_, first)| *first as usize);
        Some(self.extents.get(first..end.unwrap_or(self.extents.len())).unwrap_or_default())
    }

    /// The bytes of the set of extended attributes that begins at byte `at` of all of them.
    fn xattr_set_at(&self, at: u32) -> &[u8] {
        let all = self.xattr_sets.get(at as usize..).unwrap_or_default();
        let Some((count, rest)) = all.split_first_chunk() else { return &[] };
        let mut set = Xattrs { left: u16::from_le_bytes(*count), rest };
        while set.next().is_some() {}
        &all[..all.len() - set.rest.len()]
    }

    /// Bytes that it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.lists().iter().map(Measure::bytes).sum()
    }

    fn lists(&self) -> [Measure; 10] {
        [
            Measure::of(&self.names),
            Measure::of(&self.paths),
            Measure::of(&self.rows),
            Measure::of(&self.owners),
            Measure::of(&self.targets),
            Measure::of(&self.nanos),
            Measure::of(&self.xattrs),
            Measure::of(&self.xattr_sets),
            Measure::of(&self.sparse),
            Measure::of(&self.extents),
        ]
    }

    fn shrink(&mut self) {
        self.names.shrink_to_fit();
        self.paths.shrink_to_fit();
        self.rows.shrink_to_fit();
        self.owners.shrink_to_fit();
        self.targets.shrink_to_fit();
        self.nanos.shrink_to_fit();
        self.xattrs.shrink_to_fit();
        self.xattr_sets.shrink_to_fit();
        self.sparse.shrink_to_fit();
        self.extents.shrink_to_fit();
    }
}

/// A list, or the places of a hash table.
struct Measure {
    length: usize,
    capacity: usize,
    /// Bytes of an element.
    element: usize,
    /// How many times its memory it has while it grows to twice its size.
    growing: usize,
}

impl Measure {
    fn of<T>(list: &Vec<T>) -> Self {
        let element = mem::size_of::<T>();
        // Large ones grow where they are.
        Self { length: list.len(), capacity: list.capacity(), element, growing: 2 }
    }

    fn of_lookup(lookup: &Lookup) -> Self {
        // Of eight places at most seven are taken; each has a byte of its own.
        let places = lookup.table.capacity() / 7 * 8;
        Self { length: lookup.table.len() / 7 * 8, capacity: places, element: 5, growing: 3 }
    }

    fn bytes(&self) -> u64 {
        (self.capacity * self.element) as u64
    }

    /// The bytes that it may take before it is measured again.
    fn bytes_soon(&self) -> u64 {
        // A name, a target, or what else is in bytes.
        let of_an_entry = if self.element == 1 { 16 } else { 1 };
        let is_nearly_full = self.capacity - self.length <= ENTRIES_AT_ONCE * of_an_entry;
        self.bytes() * if is_nearly_full { self.growing as u64 } else { 1 }
    }
}

/// Finds the numbers of things that are kept elsewhere by what they are. Strangers cannot choose its hashes.
#[derive(Default)]
struct Lookup {
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Lookup {
    fn find(&self, what: impl Hash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let hash = self.hasher.hash_one(what);
        self.table.find(hash, |number| is_it(*number)).copied()
    }

    /// Adds a number that is not in it. `of` says again what the number of another thing stands for.
    fn insert<T: Hash>(&mut self, what: impl Hash, number: u32, of: impl Fn(u32) -> T) {
        let hash = self.hasher.hash_one(what);
        let rehash = |other: &u32| self.hasher.hash_one(of(*other));
        self.table.insert_unique(hash, number, rehash);
    }
}

/// What a list that is sorted by entry has for one.
fn find(list: &[(u32, u32)], entry: u32) -> Option<u32> {
    list.binary_search_by_key(&entry, |(e, _)| *e).ok().map(|at| list[at].1)
}

/// The extended attributes of an entry.
#[derive(Clone, Debug, Default)]
pub struct Xattrs<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (&name_bytes, rest) = self.rest.split_first()?;
        let (value_bytes, rest) = rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(usize::from(name_bytes))?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_bytes) as usize)?;
        self.rest = rest;
        Some((name, value))
    }
}

/// Makes a [`Table`].
pub(super) struct TableBuilder {
    table: Table,
    limit: u64,
    /// Bytes of the table, and nearly as many again of what is here beside it.
    bytes: u64,
    /// Where each name begins.
    names: Lookup,
    /// The paths, by parent and name.
    paths: Lookup,
    owners: HashMap<(u32, u32), u16>,
    /// Where each set begins.
    xattr_sets: Lookup,
    /// The directory of the last entry: most are in the same one.
    directory: (Vec<u8>, u32),
}

impl TableBuilder {
    pub(super) fn new(limits: &Limits) -> Self {
        let mut table = Table::default();
        // The root.
        table.names.push(0);
        table.paths.push(PathPart { parent: ROOT, name: 0, last: NONE });
        Self {
            table,
            // Offsets have 32 bits.
            limit: limits.max_table_bytes.min(1 << 31),
            bytes: 0,
            names: Lookup::default(),
            paths: Lookup::default(),
            owners: HashMap::new(),
            xattr_sets: Lookup::default(),
            directory: (Vec::new(), ROOT),
        }
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Bytes that it takes in memory, with what is forgotten at its end, until [`ENTRIES_AT_ONCE`] more have been
    /// added. What grows is there twice for a moment, so that is counted before.
    pub(super) fn memory_bytes(&self) -> u64 {
        let lookups = [&self.names, &self.paths, &self.xattr_sets].map(Measure::of_lookup);
        let lists = self.table.lists();
        lists.iter().chain(&lookups).map(Measure::bytes_soon).sum()
    }

    pub(super) fn finish(mut self) -> Table {
        self.table.shrink();
        self.table
    }

    /// The number of a path, if an entry has it or is in it.
    pub(super) fn find(&self, path: &[u8]) -> Option<u32> {
        let mut parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty());
        parts.try_fold(ROOT, |parent, part| self.find_path(parent, self.find_name(part)?))
    }

    /// Adds an entry.
    pub(super) fn push(&mut self, entry: &TarEntry) -> Result<(), TableError> {
        let number = self.table.len();
        self.reserve(mem::size_of::<Row>())?;
        let path = self.path(&entry.name)?;
        let extra = match entry.kind {
            Kind::Link => self.path(&entry.target)?,
            Kind::Symlink => {
                self.reserve(2 + entry.target.len())?;
                let at = self.table.targets.len() as u32;
                // The parser accepts no more than 4096 bytes.
                let length = entry.target.len() as u16;
                self.table.targets.extend_from_slice(&length.to_le_bytes());
                self.table.targets.extend_from_slice(&entry.target);
                at
            }
            Kind::Char | Kind::Block => u32::from(entry.device.0) << 20 | entry.device.1,
            Kind::File | Kind::Dir | Kind::Fifo => 0,
        };
        let owner = self.owner(entry.uid, entry.gid)?;
        if entry.mtime.nanos != 0 {
            self.reserve(8)?;
            self.table.nanos.push((number, entry.mtime.nanos));
        }
        if !entry.xattrs.is_empty() {
            let at = self.xattr_set(&entry.xattrs)?;
            self.table.xattrs.push((number, at));
        }
        if let Some(extents) = &entry.sparse {
            self.reserve(8 + mem::size_of_val(&extents[..]))?;
            self.table.sparse.push((number, self.table.extents.len() as u32));
            self.table.extents.extend_from_slice(extents);
        }
        // The limit of the stream keeps it below 32 bits.
        let block = (entry.data_offset / BLOCK_BYTES as u64) as u32;
        self.table.rows.push(Row {
            path,
            size: entry.size,
            block,
            secs: entry.mtime.secs,
            owner,
            kind_and_mode: kind_number(entry.kind) << 12 | entry.mode,
            extra,
        });
        self.table.paths[path as usize].last = number;
        Ok(())
    }

    /// Says where the data of a file is that was pushed without it, which is done in the order of
    /// the entries. `extents` as in [`TarEntry::sparse`].
    pub(super) fn place(
        &mut self,
        entry: u32,
        data_offset: u64,
        extents: Option<&[Extent]>,
    ) -> Result<(), TableError> {
        if let Some(extents) = extents {
            self.reserve(8 + mem::size_of_val(extents))?;
            self.table.sparse.push((entry, self.table.extents.len() as u32));
            self.table.extents.extend_from_slice(extents);
        }
        if let Some(row) = self.table.rows.get_mut(entry as usize) {
            // The limit of the stream keeps it below 32 bits.
            row.block = (data_offset / BLOCK_BYTES as u64) as u32;
        }
        Ok(())
    }

    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), TableError> {
        self.bytes += bytes as u64;
        if self.bytes > self.limit {
            Err(TableError::TooLarge { limit: self.limit })
        } else {
            Ok(())
        }
    }

    fn path(&mut self, path: &[u8]) -> Result<u32, TableError> {
        let (directory, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], path),
        };
        if name.is_empty() {
            return Ok(ROOT);
        }
        if self.directory.0 != directory {
            let mut at = ROOT;
            for part in directory.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
                at = self.child(at, part)?;
            }
            self.directory = (directory.to_vec(), at);
        }
        self.child(self.directory.1, name)
    }

    /// Where a name begins, if there is such.
    fn find_name(&self, name: &[u8]) -> Option<u32> {
        self.names.find(name, |at| self.table.name_at(at) == name)
    }

    fn find_path(&self, parent: u32, name: u32) -> Option<u32> {
        self.paths.find((parent, name), |path| self.table.place_of(path) == (parent, name))
    }

    fn child(&mut self, parent: u32, name: &[u8]) -> Result<u32, TableError> {
        let name = match self.find_name(name) {
            Some(at) => at,
            None => {
                self.reserve(1 + name.len())?;
                let at = self.table.names.len() as u32;
                // The parser accepts no more than 255 bytes.
                self.table.names.push(name.len() as u8);
                self.table.names.extend_from_slice(name);
                let table = &self.table;
                self.names.insert(name, at, |at| table.name_at(at));
                at
            }
        };
        if let Some(path) = self.find_path(parent, name) {
            return Ok(path);
        }
        self.reserve(mem::size_of::<PathPart>())?;
        let path = self.table.path_count();
        self.table.paths.push(PathPart { parent, name, last: NONE });
        let table = &self.table;
        self.paths.insert((parent, name), path, |path| table.place_of(path));
        Ok(path)
    }

    fn owner(&mut self, uid: u32, gid: u32) -> Result<u16, TableError> {
        if let Some(owner) = self.owners.get(&(uid, gid)) {
            return Ok(*owner);
        }
        let owner = u16::try_from(self.owners.len()).map_err(|_| TableError::TooManyOwners)?;
        self.table.owners.push((uid, gid));
        self.owners.insert((uid, gid), owner);
        Ok(owner)
    }

    fn xattr_set(&mut self, xattrs: &[Xattr]) -> Result<u32, TableError> {
        // A PAX header of 1 MiB has fewer than 65,536 of them.
        let mut set = (xattrs.len() as u16).to_le_bytes().to_vec();
        for (name, value) in xattrs {
            set.push(name.len() as u8);
            set.extend_from_slice(&(value.len() as u32).to_le_bytes());
            set.extend_from_slice(name);
            set.extend_from_slice(value);
        }
        self.reserve(8)?;
        let is_it = |at| self.table.xattr_set_at(at) == set;
        if let Some(at) = self.xattr_sets.find(&set[..], is_it) {
            return Ok(at);
        }
        self.reserve(set.len())?;
        let at = self.table.xattr_sets.len() as u32;
        self.table.xattr_sets.extend_from_slice(&set);
        let table = &self.table;
        self.xattr_sets.insert(&set[..], at, |at| table.xattr_set_at(at));
        Ok(at)
    }
}
