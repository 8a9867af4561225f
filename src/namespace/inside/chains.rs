//! Merged chains of layers, by names that tell their content: `.imgfs/.trees/<chain>`.
//!
//! They are shown for container runtimes, which lay a file system of their own over one of them. What a chain
//! is, is known of images that have been recorded or looked into, and of no others: a name of which nothing is
//! known is not there, and no registry is asked for it.

use std::{sync::Arc, time::Duration};

use super::{
    super::{ABSENT, ViewError},
    FileKind, Inside, Place, Slot, TreeId, Wanted,
    names::{self, InsideForm},
};
use crate::{
    image::ChainId,
    rootfs::{Images, Variant},
};

/// How long holds that nothing is at `path`. A chain may be recorded at any moment, and is looked for then.
pub(super) fn absent(path: &str) -> Duration {
    match names::inside(path) {
        InsideForm::Chain(_, "") => Duration::ZERO,
        _ => ABSENT,
    }
}

impl Inside {
    /// The images that are looked into.
    pub(in crate::namespace) fn images(&self) -> &Images {
        &self.images
    }

    /// The number of the tree of a chain.
    fn chain_tree(&self, chain: &ChainId, variant: &Arc<Variant>) -> TreeId {
        self.tree_id_at(variant, None, || names::chain_path(chain))
    }

    /// The tree of a chain, opened now if it has been let go.
    pub(super) async fn slot_of_chain(&self, chain: &ChainId) -> Result<Arc<Slot>, ViewError> {
        let variant = self.images.chain(chain).await?.ok_or(ViewError::Stale)?;
        let id = self.chain_tree(chain, &variant);
        self.slots.get(&id).ok_or(ViewError::Stale)
    }

    /// The directory of all chains.
    pub(super) fn place_of_chains(&self) -> Place {
        let chains = self.images.all_chains().into_iter();
        Place::Directory(chains.map(|chain| (chain.to_string(), FileKind::Dir)).collect())
    }

    /// What the path `rest` in the tree of a chain leads to.
    pub(super) fn place_in_chain(&self, chain: &ChainId, rest: &str) -> Place {
        if !self.images.has_chain(chain) {
            return Place::Nothing;
        }
        match self.images.known_chain(chain) {
            Some(variant) => {
                let id = self.chain_tree(chain, &variant);
                let below: Vec<&str> = rest.split('/').filter(|name| !name.is_empty()).collect();
                Self::tree_place(id, &below)
            }
            None => Place::Ask(Wanted::Chain(*chain)),
        }
    }
}
