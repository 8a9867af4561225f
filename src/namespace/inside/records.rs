//! What is remembered of trees, by their numbers.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{
        ViewError,
        names::{self, InsideForm, inside_path},
    },
    EarlyNames, Inside,
    places::{LAYERS, ROOTFS},
};
use crate::{
    image::{Digest, Reference},
    rootfs::{Files, Tree, Variant},
    util::locked,
};

/// Says of a number that it is one of a node in a tree.
const TREE: u64 = 1 << 62;

/// Bits of the number of a tree; those of its nodes have 32.
pub(super) const ID_BITS: u32 = 30;

/// With so many trees, what the kernel was told by its path is not remembered any longer than the kernel does.
pub(super) const MAX_EARLY_TREES: usize = 1024;

/// Trees of which is remembered what they are, below which nobody looks for those that are not needed.
pub(super) const SWEEP_FROM: usize = 64;

/// The number of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::namespace) struct TreeId(u32);

impl TreeId {
    /// The number of the inode that is `node` in this tree.
    pub(super) fn inode(self, node: u32) -> u64 {
        TREE | u64::from(self.0) << 32 | u64::from(node)
    }
}

/// Whether an inode is one of a tree.
pub(in crate::namespace) fn is_in_tree(ino: u64) -> bool {
    ino & TREE != 0
}

/// The tree that an inode is in by its number.
pub(in crate::namespace) fn tree_of(ino: u64) -> Option<TreeId> {
    // Of the upper half what is the tree's.
    let id = (ino >> 32) as u32 & ((1 << ID_BITS) - 1);
    is_in_tree(ino).then_some(TreeId(id))
}

#[derive(Default)]
pub(super) struct Records {
    pub(super) by_id: HashMap<TreeId, Record>,
    /// With so many, those are removed that are not needed.
    pub(super) sweep_at: usize,
}

/// What is remembered of a tree as long as the kernel knows anything in it.
pub(super) struct Record {
    /// Where it is in the mount.
    pub(super) path: Box<str>,
    pub(super) of: TreeOf,
    pub(super) early: Arc<EarlyNames>,
    /// How often the kernel has been told of something in it, and has not forgotten it.
    pub(super) told: u64,
}

/// What a tree is of: what a platform or a chain of layers is known by, and the layer if it is not all of them.
pub(super) type TreeOf = (Digest, Option<usize>);

/// A tree that may not have been made.
pub(super) struct Slot {
    pub(super) files: Files,
    pub(super) early: Arc<EarlyNames>,
}

impl Slot {
    /// Whether `tree` is all of it, and not one of its layers.
    pub(super) fn is_made_of(&self, tree: &Arc<Tree>) -> bool {
        self.files.made().is_some_and(|made| Arc::ptr_eq(&made, tree))
    }
}

impl Inside {
    /// The tree, if it has been made and not been let go.
    pub(in crate::namespace) fn tree(&self, id: TreeId) -> Option<Arc<Tree>> {
        self.slots.get(&id)?.files.made()
    }

    /// A tree that may not have been made, opened now if it has been let go.
    pub(super) async fn slot(&self, id: TreeId) -> Result<Arc<Slot>, ViewError> {
        if let Some(slot) = self.slots.get(&id) {
            return Ok(slot);
        }
        let known = locked(&self.records).by_id.get(&id).map(|r| (r.path.clone(), r.of.1));
        let (path, layer) = known.ok_or(ViewError::Stale)?;
        if let InsideForm::Chain(chain, _) = names::inside(&path) {
            return self.slot_of_chain(&chain).await;
        }
        let InsideForm::Image(name, digest, rest) = names::inside(&path) else {
            return Err(ViewError::Stale);
        };
        let platform = rest.split('/').next().unwrap_or_default();
        let image = self.images.image(name.repository(), digest).await?;
        let variant = self.images.variant(&image, platform).await?.ok_or(ViewError::Stale)?;
        let id = self.tree_id(&name, platform, &variant, layer);
        self.slots.get(&id).ok_or(ViewError::Stale)
    }

    /// Where a tree is in the mount.
    pub(in crate::namespace) fn path(&self, id: TreeId) -> Option<Box<str>> {
        locked(&self.records).by_id.get(&id).map(|record| record.path.clone())
    }

    /// What of a tree the kernel knows by its path.
    pub(in crate::namespace) fn early(&self, id: TreeId) -> Option<Arc<EarlyNames>> {
        locked(&self.records).by_id.get(&id).map(|record| record.early.clone())
    }

    /// Notes that the kernel is told of something in a tree once more.
    pub(super) fn told(&self, id: TreeId) {
        if let Some(record) = locked(&self.records).by_id.get_mut(&id) {
            record.told += 1;
        }
    }

    /// Notes that the kernel forgets so many times that it was told of something in a tree.
    pub(in crate::namespace) fn forgotten(&self, id: TreeId, times: u64) {
        let Records { by_id, .. } = &mut *locked(&self.records);
        if let Some(record) = by_id.get_mut(&id) {
            record.told = record.told.saturating_sub(times);
            // What was told by its path keeps its number, for file systems that lie on top.
            if record.told == 0 && record.early.is_empty() {
                by_id.remove(&id);
            }
        }
    }

    /// The number of a tree, which is told by what is in it.
    pub(super) fn tree_id(
        &self,
        image: &Reference,
        platform: &str,
        variant: &Arc<Variant>,
        layer: Option<usize>,
    ) -> TreeId {
        self.tree_id_at(variant, layer, || match layer {
            None => format!("{image}/{platform}/{ROOTFS}"),
            Some(number) => format!("{image}/{platform}/{LAYERS}/{number}"),
        })
    }

    /// The same of a tree that is at `path`, below `.imgfs`.
    pub(super) fn tree_id_at(
        &self,
        variant: &Arc<Variant>,
        layer: Option<usize>,
        path: impl FnOnce() -> String,
    ) -> TreeId {
        let name = format!("{} {layer:?}", variant.key());
        let digest = Digest::sha256(name.as_bytes());
        let mut head = [0; 4];
        head.copy_from_slice(&digest.as_bytes()[..4]);
        let mut id = TreeId(u32::from_be_bytes(head) >> (32 - ID_BITS));
        let of = (variant.key(), layer);
        let records = &mut *locked(&self.records);
        while records.by_id.get(&id).is_some_and(|record| record.of != of) {
            id = TreeId((id.0 + 1) & ((1 << ID_BITS) - 1));
        }
        if records.by_id.len() >= records.sweep_at {
            let keeps_early = records.by_id.len() < MAX_EARLY_TREES;
            records.by_id.retain(|id, record| {
                record.told > 0
                    || self.slots.contains(id)
                    || (keeps_early && !record.early.is_empty())
            });
            records.sweep_at = (records.by_id.len() * 2).max(SWEEP_FROM);
        }
        let record = records.by_id.entry(id).or_insert_with(|| {
            let path = inside_path(&path()).into();
            Record { path, of, early: Arc::default(), told: 0 }
        });
        if self.slots.get(&id).is_none() {
            let files = self.images.files(variant, layer);
            let slot = Arc::new(Slot { files, early: record.early.clone() });
            self.slots.insert(id, &slot);
        }
        id
    }
}
