//! Images that are found by the content of their layers.
//!
//! A [`ChainId`] names the merge of the lowest layers of an image. Which image has a chain is recorded here:
//! for good by whoever keeps the manifest and the configuration ([`Images::record`]), and for a while for
//! images that somebody has looked into. What has been recorded needs no registry to be told, and no name.
//!
//! A chain is shown for all images that have it, so nothing counts in it that only one of them says: tables
//! of contents are not used, and each layer is compared with its diff ID when all of it has been scanned.
//! A layer that is not what it should be is told to whoever has recorded it ([`Images::wrong_layers`]).

use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use serde_json::Value;

use super::{Images, SIDE, Variant, Work, WorkDone, index_store::MAX_DOCUMENT};
use crate::{
    backend::{Error, Kind, Result},
    cache::CacheStats,
    catalogue::HeldBlobs,
    image::{ChainId, Descriptor, Digest, MAX_MANIFEST_BYTES, Manifest, Repository, View},
    util::{BudgetStats, Reservation, locked},
};

/// Images that are remembered for having been looked into.
const MAX_PASSING: usize = 1024;

/// What an image takes that has been recorded, and each of its layers, in bytes.
const BYTES_EACH: u64 = 1024;
const BYTES_PER_LAYER: u64 = 512;

/// The files in which an image has been recorded.
pub const MANIFEST_FILE: &str = "manifest";
/// That of its configuration.
pub const CONFIG_FILE: &str = "config";

/// An image that is to be found by its content.
pub struct Record {
    /// Where its layers are.
    pub repository: Repository,
    /// The manifest of a platform.
    pub manifest: Manifest,
    /// The configuration that it names.
    pub config: Bytes,
    /// The directory where both are kept, as [`MANIFEST_FILE`] and [`CONFIG_FILE`].
    pub kept_in: PathBuf,
}

/// A layer has been found not to be what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongLayer {
    /// Its digest.
    pub layer: Digest,
    /// The diff ID that it does not have, if that is what is wrong; then it may be right in other images.
    pub diff_id: Option<Digest>,
    /// What is wrong.
    pub reason: String,
}

/// All images that are found by their content.
#[derive(Default)]
pub(super) struct Recorded {
    images: HashMap<Digest, Entry>,
    /// By chain, the images that have it, and how many of their layers it is; the first is shown.
    chains: HashMap<ChainId, Vec<(Digest, usize)>>,
    /// Those that have only been looked into, the oldest first.
    passing: VecDeque<Digest>,
    /// What is to be told of images by whoever has recorded them.
    notes: HashMap<Digest, Value>,
}

struct Entry {
    repository: Repository,
    chains: Vec<ChainId>,
    /// `None` for an image that has only been looked into.
    kept: Option<Kept>,
}

struct Kept {
    dir: PathBuf,
    _blobs: HeldBlobs,
    _memory: Reservation,
}

/// An image that has a chain, and how many of its layers that is.
struct Found {
    manifest: Digest,
    repository: Repository,
    dir: Option<PathBuf>,
    layers: usize,
}

impl Recorded {
    fn add(&mut self, manifest: Digest, entry: Entry) {
        self.remove(&manifest);
        for (number, chain) in entry.chains.iter().enumerate() {
            self.chains.entry(*chain).or_default().push((manifest, number + 1));
        }
        self.images.insert(manifest, entry);
    }

    fn remove(&mut self, manifest: &Digest) {
        let Some(entry) = self.images.remove(manifest) else { return };
        for chain in &entry.chains {
            if let Some(images) = self.chains.get_mut(chain) {
                images.retain(|(of, _)| of != manifest);
                if images.is_empty() {
                    self.chains.remove(chain);
                }
            }
        }
    }

    /// Remembers an image that has been looked into.
    fn note(&mut self, manifest: Digest, repository: &Repository, chains: Vec<ChainId>) {
        if self.images.contains_key(&manifest) {
            return;
        }
        self.add(manifest, Entry { repository: repository.clone(), chains, kept: None });
        self.passing.push_back(manifest);
        while self.passing.len() > MAX_PASSING {
            let Some(oldest) = self.passing.pop_front() else { break };
            if self.images.get(&oldest).is_some_and(|entry| entry.kept.is_none()) {
                self.remove(&oldest);
            }
        }
    }

    fn find(&self, chain: &ChainId) -> Option<Found> {
        let (manifest, layers) = *self.chains.get(chain)?.first()?;
        let entry = self.images.get(&manifest)?;
        let dir = entry.kept.as_ref().map(|kept| kept.dir.clone());
        Some(Found { manifest, repository: entry.repository.clone(), dir, layers })
    }
}

impl Images {
    /// Records an image, which from now on is found by the chains of its layers and has blobs that can be
    /// opened. Returns its chains, the lowest first.
    ///
    /// [`Kind::Unfit`] if its configuration does not tell the diff IDs of all of its layers;
    /// [`Kind::Memory`] if there is no room for what has to be remembered of it.
    pub fn record(&self, record: &Record) -> Result<Vec<ChainId>> {
        let Record { repository, manifest, config, kept_in } = record;
        let digest = manifest.digest();
        let failed = |kind: Kind| Error::new(SIDE, format_args!("recording {digest}"), kind);
        let memory = &self.store().sources.memory;
        let variant = Variant::new(
            repository.clone(),
            manifest.clone(),
            config.clone(),
            memory.reserve(0).map_err(|e| failed(e.into()))?,
        )?;
        let unfit = || {
            let reason = "its configuration does not tell the diff IDs of its layers";
            failed(Kind::Unfit(reason.into()))
        };
        let chains = variant.chains().ok_or_else(unfit)?;
        let bytes = BYTES_EACH + BYTES_PER_LAYER * chains.len() as u64;
        let memory = memory.reserve(bytes).map_err(|e| failed(e.into()))?;
        let blobs: Vec<Descriptor> = manifest.blobs().cloned().collect();
        let blobs = self.store().sources.catalogue.hold_blobs(repository, &blobs)?;
        let kept = Kept { dir: kept_in.clone(), _blobs: blobs, _memory: memory };
        let entry =
            Entry { repository: repository.clone(), chains: chains.clone(), kept: Some(kept) };
        locked(self.recorded()).add(digest, entry);
        Ok(chains)
    }

    /// Forgets an image that has been recorded, by the digest of its manifest. What is open stays open.
    pub fn forget_record(&self, manifest: &Digest) {
        let chains = {
            let mut recorded = locked(self.recorded());
            let chains = recorded.images.get(manifest).map(|entry| entry.chains.clone());
            recorded.remove(manifest);
            recorded.notes.remove(manifest);
            chains.unwrap_or_default()
        };
        for chain in chains {
            // Another image may have it, from another blob.
            self.chains().remove_if(&chain, |_| true);
        }
    }

    /// Says what is to be told of an image that is or was recorded, in its status.
    pub fn set_store_note(&self, manifest: Digest, note: Value) {
        locked(self.recorded()).notes.insert(manifest, note);
    }

    /// What is to be told of an image.
    pub(super) fn store_note(&self, manifest: &Digest) -> Option<Value> {
        locked(self.recorded()).notes.get(manifest).cloned()
    }

    /// Remembers an image that has been looked into.
    pub(super) fn note(&self, variant: &Variant) {
        if let Some(chains) = variant.chains() {
            let digest = variant.manifest().digest();
            locked(self.recorded()).note(digest, variant.repository(), chains);
        }
    }

    /// Whether an image with this chain is known.
    pub fn has_chain(&self, chain: &ChainId) -> bool {
        locked(self.recorded()).chains.contains_key(chain)
    }

    /// All chains that are known, in no order.
    pub fn all_chains(&self) -> Vec<ChainId> {
        locked(self.recorded()).chains.keys().copied().collect()
    }

    /// The layers of a chain as a variant of their own, if it has been opened and not been let go.
    pub fn known_chain(&self, chain: &ChainId) -> Option<Arc<Variant>> {
        self.chains().get(chain)
    }

    /// The layers of a chain as a variant of their own. `None` if no image has it that is known. Asks no
    /// registry for an image that has been recorded.
    pub async fn chain(&self, chain: &ChainId) -> Result<Option<Arc<Variant>>> {
        if let Some(known) = self.known_chain(chain) {
            return Ok(Some(known));
        }
        let found = locked(self.recorded()).find(chain);
        let Some(Found { manifest, repository, dir, layers }) = found else { return Ok(None) };
        let documents = match dir {
            Some(dir) => {
                let read = tokio::task::spawn_blocking(move || read_record(&dir, &manifest));
                read.await.ok().flatten()
            }
            None => None,
        };
        let (manifest, config) = match documents {
            Some(documents) => documents,
            None => {
                let manifest = self.manifest(&repository.pinned(manifest)).await?;
                let View::Image { config, .. } = manifest.view() else { return Ok(None) };
                let config = self.store().document(&repository, config).await?;
                (manifest, config)
            }
        };
        let memory = self.memory_for(manifest.bytes().len() + config.len(), &manifest).await?;
        let variant = Variant::new(repository, manifest, config, memory)?;
        let variant = Arc::new(variant.chain(chain, layers));
        self.chains().insert(*chain, &variant);
        Ok(Some(variant))
    }

    /// Sees to it that the layer with this number, from 0 for the lowest, is indexed, and is the one that the
    /// configuration means. Returns the bytes of its decompressed stream. However many ask for that, it is
    /// done once; it ends by itself when nothing comes.
    pub async fn index_layer(&self, variant: &Arc<Variant>, number: usize) -> Result<u64> {
        let unknown = || {
            let doing = format!("indexing a layer of {}", variant.manifest().digest());
            Error::new(SIDE, doing, Kind::Unfit(format!("it has no layer {number}")))
        };
        let layer = self.layer(variant, number).ok_or_else(unknown)?;
        let index = self.store().with_memory(|| layer.index()).await?;
        self.origin(variant, number, &layer, &index)?;
        Ok(index.stream_bytes())
    }

    /// Notes that another repository has the layers of a chain, too.
    pub fn is_also_in(&self, variant: &Variant, repository: &Repository) {
        for layer in self.layers(variant) {
            layer.at.is_in(repository);
        }
    }

    /// Whether the layer with this number has been indexed. Blocks for a moment.
    pub fn is_layer_indexed(&self, variant: &Variant, number: usize) -> bool {
        self.layer(variant, number).is_some_and(|layer| layer.is_indexed())
    }

    /// Bytes that registries have sent of a layer, by its digest.
    pub fn fetched_bytes(&self, layer: &Digest) -> u64 {
        self.store().sources.cache.fetched_bytes(layer)
    }

    /// What has been done to layers since the process began.
    pub fn work(&self) -> Work {
        let WorkDone { passes, failed_passes, inflated_bytes } = &self.store().work;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Work {
            passes: of(passes),
            failed_passes: of(failed_passes),
            inflated_bytes: of(inflated_bytes) + of(&self.store().decoded.inflated),
        }
    }

    /// What the cache holds and has done.
    pub fn cache_stats(&self) -> CacheStats {
        self.store().sources.cache.stats()
    }

    /// How much memory is in use.
    pub fn memory_stats(&self) -> BudgetStats {
        self.store().sources.memory.stats()
    }

    /// Layers that have been found not to be what they should be since the last time that this was called.
    pub fn wrong_layers(&self) -> Vec<WrongLayer> {
        std::mem::take(&mut locked(&self.store().wrong))
    }

    /// Why the layer with this digest could not be read the last time that it failed.
    pub fn last_read_error(&self, layer: &Digest) -> Option<String> {
        locked(&self.store().failed_reads).peek(layer).cloned()
    }

    /// Waits until there may be some.
    pub async fn wrong_layer_found(&self) {
        self.store().wrong_found.notified().await;
    }
}

/// The manifest and the configuration of a record, if they are what they should be. Blocks for a moment.
pub fn read_record(dir: &Path, manifest: &Digest) -> Option<(Manifest, Bytes)> {
    let read = |name: &str, limit: u64| -> Option<Bytes> {
        let mut bytes = Vec::new();
        fs::File::open(dir.join(name)).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
        Some(bytes.into())
    };
    let bytes = read(MANIFEST_FILE, MAX_MANIFEST_BYTES as u64)?;
    let parsed = Manifest::parse_as(manifest.algorithm(), bytes, None).ok()?;
    let View::Image { config, .. } = parsed.view() else { return None };
    let bytes = read(CONFIG_FILE, MAX_DOCUMENT)?;
    let is_it = parsed.digest() == *manifest
        && Digest::of(config.digest.algorithm(), &bytes) == config.digest;
    is_it.then_some((parsed, bytes))
}
