//! What of a blob is on the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    sync::Arc,
};

use super::state::Key;
use crate::backend::images_dir::cached;

/// Bytes that so many take on the disk.
pub(super) fn disk_bytes(bytes: u64) -> u64 {
    bytes.next_multiple_of(4096)
}

/// Where a blob is on the disk.
pub(super) enum Place {
    /// Nowhere, and it is not to be: another size of the digest has the files.
    Nowhere,
    /// Nowhere yet.
    New,
    /// In parts; the files, while they are open.
    Parts(Option<Arc<Files>>),
    /// In one piece, verified; its file, while it is open.
    Whole(Option<Arc<File>>),
    /// There is a verified blob of the digest, with this other size.
    OtherSize(u64),
}

/// The files of a blob that is here in parts.
pub(super) struct Files {
    pub data: File,
    pub map: File,
}

/// Some neighbouring blocks: what is evicted at once.
pub(super) struct Extent {
    /// The checksums of the blocks that are on the disk; 0 for the others.
    pub sums: Vec<u32>,
    /// Whose checksums have been compared, as bits: those that were written by an earlier process
    /// are when they are first read.
    pub checked: u64,
    /// Blocks that have a place on the disk, as bits.
    pub charged: u64,
    /// Who is reading it at the moment.
    pub pins: u32,
    /// It is being evicted; its blocks are not here any more.
    pub leaving: bool,
}

/// The place of a blob on the disk, and what of it is there.
///
/// - A block is on the disk if its extent has a checksum for it and is not leaving, and on its way there if
///   it is in `writing`; never both. Its content is written before its checksum.
/// - `stored` is the number of checksums in extents that are not leaving. There are extents only of a blob in parts.
/// - `charge` is what is counted of [`super::state::State::used`] for the blob: what has been reserved before
///   it was written.
/// - While `sealing`, everything is on the disk and verified; nothing is written or evicted.
pub(super) struct Stored {
    /// Bytes of the blob.
    size: u64,
    /// Blocks in an extent.
    pub extent_blocks: u32,
    pub place: Place,
    pub extents: BTreeMap<u32, Extent>,
    /// Blocks on the disk.
    pub stored: u32,
    /// Blocks on their way to the disk.
    pub writing: BTreeSet<u32>,
    /// Bytes of the disk that its files use.
    pub charge: u64,
    pub sealing: bool,
}

impl Stored {
    pub(super) fn new(key: &Key, extent_blocks: u32, place: Place) -> Self {
        Self {
            size: key.size,
            extent_blocks,
            place,
            extents: BTreeMap::new(),
            stored: 0,
            writing: BTreeSet::new(),
            charge: 0,
            sealing: false,
        }
    }

    /// The extent of a block, and which one in it that is.
    pub(super) fn extent_of(&self, block: u32) -> (u32, usize) {
        (block / self.extent_blocks, (block % self.extent_blocks) as usize)
    }

    /// The checksum of a block that is on the disk, and whether that has been compared.
    pub(super) fn sum(&self, block: u32) -> Option<(u32, bool)> {
        let (extent, at) = self.extent_of(block);
        let extent = self.extents.get(&extent).filter(|extent| !extent.leaving)?;
        let sum = extent.sums.get(at).copied().filter(|sum| *sum != 0)?;
        Some((sum, extent.checked >> at & 1 == 1))
    }

    /// Whether a block is on the disk and somebody may have read it, or hashed it.
    pub(super) fn was_given(&self, block: u32) -> bool {
        // Nobody is given what an earlier process has left before it has been compared.
        self.sum(block).is_some_and(|(_, checked)| checked)
    }

    /// Notes that a block is on the disk.
    pub(super) fn put_sum(&mut self, block: u32, sum: u32, checked: bool) {
        let (extent, at) = self.extent_of(block);
        let blocks = self.extent_blocks as usize;
        let extent = self.extents.entry(extent).or_insert_with(|| Extent {
            sums: vec![0; blocks],
            checked: 0,
            charged: 0,
            pins: 0,
            leaving: false,
        });
        self.stored += u32::from(extent.sums[at] == 0);
        extent.sums[at] = sum;
        extent.checked = extent.checked & !(1 << at) | u64::from(checked) << at;
        extent.charged |= 1 << at;
    }

    /// Whether a block has a place on the disk, whatever is in it.
    pub(super) fn is_charged(&self, block: u32) -> bool {
        let (extent, at) = self.extent_of(block);
        self.extents.get(&extent).is_some_and(|extent| extent.charged >> at & 1 == 1)
    }

    /// Bytes that the blocks of an extent have on the disk.
    pub(super) fn charge_of(&self, number: u32) -> u64 {
        let Some(extent) = self.extents.get(&number) else { return 0 };
        let first = number * self.extent_blocks;
        let has_place = |at: &u32| extent.charged >> at & 1 == 1;
        let lengths = (0..self.extent_blocks).filter(has_place);
        lengths
            .map(|at| disk_bytes(cached::block_length(self.size, u64::from(first + at)) as u64))
            .sum()
    }

    /// Notes that a block is not on the disk any more.
    pub(super) fn drop_sum(&mut self, block: u32) {
        let (extent, at) = self.extent_of(block);
        if let Some(extent) = self.extents.get_mut(&extent)
            && extent.sums[at] != 0
        {
            extent.sums[at] = 0;
            extent.checked &= !(1 << at);
            self.stored -= 1;
        }
    }

    /// Whether the extent of `block` is being evicted.
    pub(super) fn is_leaving(&self, block: u32) -> bool {
        self.extents.get(&self.extent_of(block).0).is_some_and(|extent| extent.leaving)
    }

    /// Whether a block is on the disk, or will be in a moment.
    pub(super) fn is_kept(&self, block: u32) -> bool {
        self.writing.contains(&block) || self.sum(block).is_some()
    }
}
