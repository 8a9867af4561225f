//! `--keep`: what comes through becomes part of the tree, as a pull of the platforms that clients ask for would have
//! made it.
//!
//! Whenever somebody asks for a manifest, it is noted. A task looks at what was noted until all blobs of it are in
//! the cache or in the tree, and then publishes as a pull does: blobs, manifests, at last the tag. Of an index, the
//! children are published that clients have asked for; it is remembered to be sparse on purpose. What is not
//! complete after an hour is forgotten until somebody asks again.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::store::Store;
use crate::{
    backend::{ManifestName, Result, Sink, images_dir::ImagesDir},
    image::{Digest, Manifest, Repository},
    serve::sparse::wanted_platforms,
    util::locked,
};

/// How often is looked whether something is complete.
const LOOK: Duration = Duration::from_secs(1);

/// How long something may take to become complete.
const PATIENCE: Duration = Duration::from_secs(3600);

/// How long `prune` may keep us from writing.
const PRUNE_PATIENCE: Duration = Duration::from_secs(30);

/// Manifests that are waited for at once.
const MAX_NOTED: usize = 4096;

/// Publishes what has come through.
pub(super) struct Keeper {
    dir: ImagesDir,
    cache_dir: PathBuf,
    store: Store,
    noted: Mutex<HashMap<(Repository, Digest), Instant>>,
}

impl Keeper {
    pub(super) fn new(dir: ImagesDir, cache_dir: PathBuf, store: Store) -> Arc<Self> {
        let keeper = Arc::new(Self { dir, cache_dir, store, noted: Mutex::default() });
        tokio::spawn({
            let keeper = Arc::downgrade(&keeper);
            async move {
                loop {
                    tokio::time::sleep(LOOK).await;
                    let Some(keeper) = keeper.upgrade() else { return };
                    keeper.look().await;
                }
            }
        });
        keeper
    }

    /// Notes that somebody has asked for a manifest.
    pub(super) fn note(&self, repository: &Repository, manifest: &Manifest) {
        // An index is published with the first of its children.
        if !manifest.children().is_empty() {
            return;
        }
        let mut noted = locked(&self.noted);
        if noted.len() < MAX_NOTED {
            noted.entry((repository.clone(), manifest.digest())).or_insert_with(Instant::now);
        }
    }

    async fn look(&self) {
        let noted: Vec<_> = locked(&self.noted).iter().map(|(k, at)| (k.clone(), *at)).collect();
        for ((repository, digest), at) in noted {
            let is_done = match self.publish(&repository, digest).await {
                Ok(is_done) => is_done,
                Err(error) => {
                    tracing::warn!("keeping {}: {error}", repository.pinned(digest));
                    false
                }
            };
            if is_done || at.elapsed() > PATIENCE {
                locked(&self.noted).remove(&(repository, digest));
            }
        }
    }

    /// Publishes a manifest, if all of its blobs are here, with the tags and the indexes that lead to it. Whether it
    /// has.
    async fn publish(&self, repository: &Repository, digest: Digest) -> Result<bool> {
        let Some(manifest) = self.store.manifest(&digest) else { return Ok(true) };
        let _filling = self.dir.filling(PRUNE_PATIENCE).await?;
        for blob in manifest.blobs() {
            let is_here = self.dir.has(repository, blob).await?;
            if !is_here && !self.dir.take_from_cache(blob, &self.cache_dir).await? {
                return Ok(false);
            }
        }
        self.dir.put(repository, &manifest, &ManifestName::Digest).await?;
        let (tags, manifests) =
            self.store.read(repository, |record| (record.tags.clone(), record.manifests.clone()));
        for (tag, record) in tags {
            if record.digest == digest {
                self.dir.put(repository, &manifest, &ManifestName::Tag(tag)).await?;
                continue;
            }
            let Some(index) = self.store.manifest(&record.digest) else { continue };
            if index.children().iter().any(|child| child.digest == digest) {
                self.put_index(repository, &index, &manifests).await?;
                self.dir.put(repository, &index, &ManifestName::Tag(tag)).await?;
            }
        }
        Ok(true)
    }

    /// Publishes an index of which some children are here.
    async fn put_index(
        &self,
        repository: &Repository,
        index: &Manifest,
        here: &[Digest],
    ) -> Result<()> {
        let mut present = HashSet::new();
        for child in index.children() {
            let is_here = here.contains(&child.digest)
                && self.dir.resolves_to(repository, &ManifestName::Digest, child.digest).await;
            if is_here {
                present.insert(child.digest);
            }
        }
        if index.children().iter().any(|child| !present.contains(&child.digest)) {
            let platforms = wanted_platforms(index, &present);
            self.dir.keep_sparse(index.digest(), &platforms).await?;
        }
        self.dir.put(repository, index, &ManifestName::Digest).await
    }
}
