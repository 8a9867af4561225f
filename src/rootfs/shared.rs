//! Profiles and indexes of layers, as commands handle them: what is kept here, and what is attached to images.

use std::{collections::HashSet, io, sync::Arc};

use bytes::Bytes;

use super::{
    Images, Variant,
    attached::{Attached, Places, artifacts_of},
    index_store::{IndexStore, MadeBy, StoredIndex},
    key::{LayerKey, Source},
    layer::Layer,
};
use crate::{
    backend::{Backend, Error, Kind, Result, images_dir::ImagesDir},
    image::{Descriptor, Digest, Manifest, Reference},
    layer::{LayerIndex, Profile},
    util::Budget,
};

const SIDE: &str = "index store";

/// What is known of the index of a layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerState {
    /// The layer.
    pub layer: Descriptor,
    /// The index that is kept here, if there is one that is of use for this image.
    pub stored: Option<StoredIndex>,
    /// Whether an index of it is attached to the image.
    pub is_attached: bool,
}

/// What became of an index that was to be pulled.
#[derive(Debug)]
pub struct PulledIndex {
    /// The digest of the layer.
    pub layer: Digest,
    /// Bytes of the index.
    pub bytes: u64,
    /// What became of it.
    pub outcome: Result<Pulled>,
}

/// What has been done with an index that is attached to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// It is here now.
    Stored,
    /// This machine has made one itself, which is better.
    HasOwn,
}

impl Images {
    // --- profiles ---

    /// All profiles that are kept here.
    pub async fn profiles(&self) -> Result<Vec<Profile>> {
        self.blocking("listing profiles", |store| Ok(store.profiles())).await
    }

    /// The profile of a platform of an image that is kept here, or else, if `finds`, the newest that is
    /// attached to it, which is then kept.
    pub async fn profile(&self, variant: &Variant, finds: bool) -> Option<Profile> {
        let image = variant.manifest().digest();
        if let Ok(Some(profile)) = self.stored_profile(image).await {
            return Some(profile);
        }
        if !finds {
            return None;
        }
        let profile = self.store().attached_profile(&variant.name()).await?;
        let kept = profile.clone().seen_in(variant.name().repository().to_string());
        // Otherwise it is fetched again the next time.
        let _ = self.keep_profile(kept).await;
        Some(profile)
    }

    /// The profile of the image with the manifest `image` that is kept here.
    pub async fn stored_profile(&self, image: Digest) -> Result<Option<Profile>> {
        self.blocking("reading a profile", move |store| Ok(store.profile(&image))).await
    }

    /// Keeps a profile in place of the one that its image has.
    pub async fn keep_profile(&self, profile: Profile) -> Result<()> {
        self.blocking("keeping a profile", move |store| store.put_profile(&profile)).await
    }

    /// Removes the profile of an image that is kept here. Whether there was one.
    pub async fn remove_profile(&self, image: Digest) -> Result<bool> {
        self.blocking("removing a profile", move |store| store.remove_profile(&image)).await
    }

    /// The newest profile that is attached to a platform of an image. An error if that cannot be found out, or
    /// if none of them is of use.
    pub async fn attached_profile(&self, variant: &Variant) -> Result<Option<Profile>> {
        let (store, name) = (self.store(), variant.name());
        let attached = store.find_attached(&name, Places::All).await?;
        let mut failure = None;
        for blob in &attached.profiles {
            match store.read_profile(&name, blob).await {
                Ok(profile) => return Ok(Some(profile)),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// The digests of all blobs of profiles and indexes that are attached to the manifest `name` at `place`.
    pub async fn attached_blobs(
        &self,
        place: &dyn Backend,
        name: &Reference,
    ) -> Result<HashSet<Digest>> {
        let artifacts = artifacts_of(place, name).await?;
        Ok(artifacts.iter().flat_map(Manifest::blobs).map(|blob| blob.digest).collect())
    }

    /// Ends the recording of what images read when they start, and keeps what has been recorded. Blocks.
    pub fn finish_starts(&self) {
        self.store().starts.finish();
    }

    // --- indexes ---

    /// All indexes that are kept here.
    pub async fn indexes(&self) -> Result<Vec<StoredIndex>> {
        self.blocking("listing indexes", |store| Ok(store.indexes())).await
    }

    /// What is known of the indexes of a platform's layers; what is attached to it only if `looks`.
    pub async fn layer_states(&self, variant: &Variant, looks: bool) -> Result<Vec<LayerState>> {
        let attached = match looks {
            true => self.store().find_attached(&variant.name(), Places::All).await?,
            false => Attached::default(),
        };
        let stored = self.indexes().await?;
        let keys = self.attached_keys(variant);
        let mut states = Vec::new();
        for (layer, key) in variant.layers().iter().zip(keys) {
            let of = |made_by| {
                let is_it =
                    |index: &&StoredIndex| index.layer == layer.digest && index.made_by == made_by;
                stored.iter().find(is_it).cloned()
            };
            let for_this =
                self.blocking("reading an index", move |s| Ok(s.has_index(&key))).await?;
            let stored = of(MadeBy::Pass);
            let stored = stored.or_else(|| for_this.then(|| of(MadeBy::Attached)).flatten());
            let stored = stored.or_else(|| of(MadeBy::Author));
            let is_attached = attached.indexes.contains_key(&layer.digest);
            states.push(LayerState { layer: layer.clone(), stored, is_attached });
        }
        Ok(states)
    }

    /// The stored forms of the indexes of a platform's layers, which this machine has made in passes. They are made
    /// now where there are none. What is wrong with a layer is its own error, and a damaged one has none to give.
    pub async fn own_indexes(&self, variant: &Variant) -> Vec<(Descriptor, Result<Bytes>)> {
        let mut found = Vec::new();
        for layer in self.layers(variant) {
            let bytes = self.own_index(&layer).await;
            found.push((layer.at.blob.clone(), bytes));
        }
        found
    }

    async fn own_index(&self, layer: &Arc<Layer>) -> Result<Bytes> {
        let key = layer.key.without_toc();
        let has = self.blocking("reading an index", move |store| Ok(store.has_index(&key))).await?;
        if !has {
            layer.scan_now().await?;
        }
        let (of, diff_id) = (layer.clone(), layer.diff_id());
        let stored =
            self.blocking("reading an index", move |store| store.stored_form(&key)).await?;
        let check = move || {
            // Nobody is given what would not be taken.
            let checked = super::attached::checked(&stored, &of.at.blob, diff_id);
            checked.map(|_| Bytes::from(stored)).map_err(|e| of.error(Kind::Layer(e.to_string())))
        };
        let checked = tokio::task::spawn_blocking(check).await;
        checked.map_err(|e| layer.error(io::Error::other(e)))?
    }

    /// Fetches the indexes that are attached to a platform of an image, checks what of them can be checked, and keeps
    /// them for this image. A mount uses them if it trusts the repository's.
    pub async fn pull_indexes(&self, variant: &Variant) -> Result<Vec<PulledIndex>> {
        let name = variant.name();
        let attached = self.store().find_attached(&name, Places::All).await?;
        let mut done = Vec::new();
        for layer in self.layers_with_attached(variant) {
            let digest = layer.at.blob.digest;
            let Some(blobs) = attached.indexes.get(&digest) else { continue };
            let key = layer.key.without_toc();
            let has_own = self.blocking("reading an index", move |s| Ok(s.has_index(&key))).await?;
            let mut outcome = None;
            let mut bytes = 0;
            for blob in blobs {
                bytes = blob.size;
                if has_own {
                    outcome = Some(Ok(Pulled::HasOwn));
                    break;
                }
                let taken = layer.take_attached(&name, blob).await;
                let is_taken = taken.is_ok();
                outcome = Some(taken.map(|_| Pulled::Stored));
                if is_taken {
                    break;
                }
            }
            if let Some(outcome) = outcome {
                done.push(PulledIndex { layer: digest, bytes, outcome });
            }
        }
        Ok(done)
    }

    /// Removes the indexes of a platform's layers that are kept here, those that are attached to it and, unless
    /// `only_attached`, those that this machine has made: for other images with these layers, too. How many.
    pub async fn remove_indexes(&self, variant: &Variant, only_attached: bool) -> Result<usize> {
        let layers = self.layers_with_attached(variant).into_iter().chain(self.layers(variant));
        let mut keys: Vec<LayerKey> = layers.map(|layer| layer.key).collect();
        if !only_attached {
            let own: Vec<LayerKey> = keys.iter().map(|key| key.without_toc()).collect();
            keys.extend(own);
        }
        if only_attached {
            keys.retain(|key| key.toc.is_some());
        }
        self.blocking("removing indexes", move |store| {
            let mut removed = 0;
            for key in keys {
                removed += usize::from(store.remove_index(&key)?);
            }
            Ok(removed)
        })
        .await
    }

    /// What the layers are known by where attached indexes are trusted.
    fn attached_keys(&self, variant: &Variant) -> Vec<LayerKey> {
        self.layers_with_attached(variant).iter().map(|layer| layer.key).collect()
    }

    /// Work with the store, which blocks.
    async fn blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&IndexStore) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.store().index_store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        let failed = |e: io::Error| Error::new(SIDE, doing, e);
        done.map_err(|e| failed(io::Error::other(e)))?.map_err(failed)
    }
}

/// The indexes that are kept in an images_dir, for who makes them while layers pass.
#[derive(Clone)]
pub struct LayerIndexes {
    store: Arc<IndexStore>,
    budget: Budget,
}

impl LayerIndexes {
    /// Those of `dir`, which take `limit_bytes` at most.
    pub fn new(dir: &ImagesDir, limit_bytes: u64) -> Self {
        let budget = Budget::unlimited();
        let store = IndexStore::new(dir, limit_bytes.max(super::INDEX_STORE_BYTES), &budget);
        Self { store: Arc::new(store), budget }
    }

    fn key(layer: &Descriptor) -> LayerKey {
        LayerKey { digest: layer.digest, size: layer.size, toc: None }
    }

    /// Whether there is an index of `layer` that this machine has made. Blocks for a moment.
    pub fn has(&self, layer: &Descriptor) -> bool {
        matches!(self.store.index(&Self::key(layer)), Ok(Some(_)))
    }

    /// Keeps an index that was made in a pass over `layer`. Blocks.
    pub fn put(&self, layer: &Descriptor, index: LayerIndex) -> Result<()> {
        let failed = |kind: Kind| {
            Error::new(SIDE, format_args!("keeping the index of layer {}", layer.digest), kind)
        };
        let is_it = (index.blob(), index.blob_bytes()) == (layer.digest, layer.size)
            && Source::of(index.origin()) == Source::Pass;
        if !is_it {
            return Err(failed(Kind::Layer("it is that of another layer".into())));
        }
        let memory = self.budget.reserve(0).map_err(|e| failed(e.into()))?;
        let put = self.store.put_index(&Self::key(layer), index, memory);
        match put.map_err(|e| failed(e.into()))?.is_stored() {
            true => Ok(()),
            false => Err(failed(io::Error::other("it cannot be written").into())),
        }
    }
}
