//! Where blobs are, as far as a run knows.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use crate::{
    image::{Digest, Repository},
    util::locked,
};

/// Which repositories are known to have which blobs.
#[derive(Default)]
pub(super) struct Holders(Mutex<HashMap<(String, Digest), Vec<Repository>>>);

impl Holders {
    fn state(&self) -> MutexGuard<'_, HashMap<(String, Digest), Vec<Repository>>> {
        locked(&self.0)
    }

    pub(super) fn note(&self, repository: &Repository, blob: Digest) {
        let mut state = self.state();
        let holders = state.entry((repository.registry().to_owned(), blob)).or_default();
        if !holders.contains(repository) {
            holders.push(repository.clone());
        }
    }

    /// Whether `repository` has `blob`, or else another repository of the registry that has.
    pub(super) fn find(&self, repository: &Repository, blob: Digest) -> (bool, Option<Repository>) {
        let state = self.state();
        let holders = state.get(&(repository.registry().to_owned(), blob));
        let holders = holders.map(Vec::as_slice).unwrap_or_default();
        (holders.contains(repository), holders.first().cloned())
    }

    pub(super) fn forget(&self, repository: &Repository) {
        for holders in self.state().values_mut() {
            holders.retain(|holder| holder != repository);
        }
    }
}
