//! Opens images: finds their platforms and configurations, and keeps what has been read of them.

mod trees;

use std::{
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::iter};

use super::{
    SIDE, Sources, Store,
    image::{Choice, Image, Variant, name_of, platforms_of},
    key::LayerKey,
    layer::Layer,
    recorded::Recorded,
    tree::Tree,
};
use crate::{
    backend::{Error, Kind, Result},
    image::{
        ChainId, Descriptor, Digest, Manifest, MediaType, Platform, Reference, Repository, View,
    },
    util::{Kept, Reservation, SingleFlight},
};

/// What a document takes in memory for each of its bytes, with what is parsed of it.
const BYTES_EACH: u64 = 4;

/// What a document takes besides, in bytes.
const BYTES_MORE: u64 = 2048;

/// Indexes within an index are looked into to this depth.
const MAX_INDEX_DEPTH: usize = 8;

/// So many children of an index are looked at to find out what they run on, which the index has not
/// said. Each takes two requests.
const MAX_UNSAID: usize = 256;

/// As many of them at a time.
const UNSAID_AT_ONCE: usize = 8;

/// Opens images. Clones are the same.
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    images: Kept<Digest, Image>,
    variants: Kept<Digest, Variant>,
    chains: Kept<ChainId, Variant>,
    recorded: Mutex<Recorded>,
    layers: Kept<LayerKey, Layer>,
    trees: Kept<TreeKey, Tree>,
    /// Trees that are being made.
    merging: SingleFlight<TreeKey, Result<Arc<Tree>>>,
    /// What has been seen of layers in scans, by the number of the scan.
    scanned: Kept<(TreeKey, u64), Tree>,
}

/// What a platform is known by, and the number of the layer if it is not all of them.
type TreeKey = (Digest, Option<usize>);

/// Which layers of a platform a tree is made of.
#[derive(Clone, Copy)]
enum Layers {
    /// Those from this number on, merged.
    From(usize),
    /// This one, with its whiteouts as the files that they are.
    Alone(usize),
}

impl Clone for Images {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl Images {
    /// Opens images that are in `sources`.
    pub fn new(sources: Sources) -> Self {
        let memory = sources.memory.clone();
        let inner = Inner {
            store: Store::new(sources),
            images: Kept::new(&memory),
            variants: Kept::new(&memory),
            chains: Kept::new(&memory),
            recorded: Mutex::default(),
            layers: Kept::new(&memory),
            trees: Kept::new(&memory),
            merging: SingleFlight::default(),
            scanned: Kept::new(&memory),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The manifest that `name` leads to: what is local goes before what a registry says.
    pub async fn manifest(&self, name: &Reference) -> Result<Manifest> {
        self.inner.store.manifest(name).await
    }

    /// Finds out which manifest `name` leads to, and returns its digest.
    pub async fn resolve(&self, name: &Reference) -> Result<Digest> {
        Ok(self.inner.store.resolve(name).await?.digest)
    }

    /// The image with this digest in `repository`.
    pub async fn image(&self, repository: &Repository, digest: Digest) -> Result<Arc<Image>> {
        if let Some(image) = self.known_image(&digest) {
            return Ok(image);
        }
        let manifest = self.manifest(&repository.pinned(digest)).await?;
        let platforms = match manifest.view() {
            View::Index { .. } => {
                let unsaid = AtomicUsize::new(0);
                platforms_of(self.variants_of(repository, &manifest, 0, &unsaid).await?)
            }
            View::Image { .. } => {
                let variant = self.open_variant(repository, manifest.clone()).await?;
                let name = variant.platform().map_or("unknown".into(), name_of);
                vec![(name, Choice::Itself(variant))]
            }
        };
        let memory = self.memory_for(manifest.bytes().len(), &manifest).await?;
        let repository = repository.clone();
        let image = Arc::new(Image::new(repository, manifest, platforms, memory));
        self.inner.images.insert(digest, &image);
        Ok(image)
    }

    /// The images in an index, and in those that are nested in it, each with what it runs on. Where the
    /// index does not say that, the configuration does. What is not there is left out, unless nothing
    /// remains; `unsaid` counts what has been looked at.
    fn variants_of<'a>(
        &'a self,
        repository: &'a Repository,
        index: &'a Manifest,
        depth: usize,
        unsaid: &'a AtomicUsize,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        let children = index.children().iter();
        let children = children.filter(|c| !c.is_artifact() && c.attests().is_none()).cloned();
        let looked = children.map(move |child| self.variants_in(repository, child, depth, unsaid));
        let looked = iter(looked.collect::<Vec<_>>()).buffered(UNSAID_AT_ONCE).collect::<Vec<_>>();
        async move {
            let (mut variants, mut absent) = (Vec::new(), None);
            for found in looked.await {
                match found {
                    Ok(found) => variants.extend(found),
                    Err(error) if error.is_not_found() || matches!(error.kind(), Kind::Offline) => {
                        absent.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            match absent.filter(|_| variants.is_empty()) {
                Some(error) => Err(error),
                None => Ok(variants),
            }
        }
        .boxed()
    }

    /// The images that a child of an index is, or that are in it.
    async fn variants_in(
        &self,
        repository: &Repository,
        mut child: Descriptor,
        depth: usize,
        unsaid: &AtomicUsize,
    ) -> Result<Vec<Descriptor>> {
        let is_nested = MediaType::parse(&child.media_type).is_some_and(MediaType::is_index);
        match &child.platform {
            Some(platform) if platform.is_unknown() => return Ok(Vec::new()),
            Some(_) if !is_nested => return Ok(vec![child]),
            _ => {}
        }
        let unfit = |reason: String| {
            Error::new(SIDE, format_args!("reading {repository}"), Kind::Unfit(reason))
        };
        if depth >= MAX_INDEX_DEPTH {
            return Err(unfit(format!("its indexes are nested more than {MAX_INDEX_DEPTH} deep")));
        }
        if unsaid.fetch_add(1, Ordering::Relaxed) >= MAX_UNSAID {
            return Err(unfit(format!(
                "of more than {MAX_UNSAID} of its manifests it does not say what they run on"
            )));
        }
        let manifest = self.manifest(&repository.pinned(child.digest)).await?;
        match manifest.view() {
            View::Index { .. } => self.variants_of(repository, &manifest, depth + 1, unsaid).await,
            View::Image { .. } if child.platform.is_some() => Ok(vec![child]),
            View::Image { config, .. } if config.is_image_config() => {
                let config = self.inner.store.document(repository, config).await?;
                child.platform = Platform::of_config(&config);
                Ok(vec![child])
            }
            View::Image { .. } => Ok(Vec::new()),
        }
    }

    /// Memory for a document of a manifest, with so many bytes.
    pub(super) async fn memory_for(
        &self,
        bytes: usize,
        manifest: &Manifest,
    ) -> Result<Reservation> {
        let store = &self.inner.store;
        let bytes = bytes as u64 * BYTES_EACH + BYTES_MORE;
        let reserve = || {
            let doing = format_args!("opening {}", manifest.digest());
            ready(store.sources.memory.reserve(bytes).map_err(|e| Error::new(SIDE, doing, e)))
        };
        store.with_memory(reserve).await
    }

    /// The image with this digest, if it has been opened and not been let go.
    pub fn known_image(&self, digest: &Digest) -> Option<Arc<Image>> {
        self.inner.images.get(digest)
    }

    /// A platform of an image, if it has been opened and not been let go.
    pub fn known_variant(&self, image: &Image, platform: &str) -> Option<Arc<Variant>> {
        match image.choice(platform)? {
            Choice::Itself(variant) => Some(variant.clone()),
            Choice::Child(child) => self.inner.variants.get(&child.digest),
        }
    }

    /// A platform of an image, by its name; `None` if it has none of that name.
    pub async fn variant(&self, image: &Image, platform: &str) -> Result<Option<Arc<Variant>>> {
        let child = match image.choice(platform) {
            None => return Ok(None),
            Some(Choice::Itself(variant)) => return Ok(Some(variant.clone())),
            Some(Choice::Child(child)) => child,
        };
        if let Some(variant) = self.known_variant(image, platform) {
            return Ok(Some(variant));
        }
        let manifest = self.manifest(&image.repository().pinned(child.digest)).await?;
        self.open_variant(image.repository(), manifest).await.map(Some)
    }

    async fn open_variant(
        &self,
        repository: &Repository,
        manifest: Manifest,
    ) -> Result<Arc<Variant>> {
        let digest = manifest.digest();
        let View::Image { config, .. } = manifest.view() else {
            let reason = "it is a nested index, and the index that it is in calls it an image";
            let doing = format!("reading {repository}@{digest}");
            return Err(Error::new(SIDE, doing, Kind::Unfit(reason.to_owned())));
        };
        let config = self.inner.store.document(repository, config).await?;
        let memory = self.memory_for(manifest.bytes().len() + config.len(), &manifest).await?;
        let variant = Arc::new(Variant::new(repository.clone(), manifest, config, memory)?);
        self.inner.variants.insert(digest, &variant);
        self.note(&variant);
        Ok(variant)
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// Images that are found by their content.
    pub(super) fn recorded(&self) -> &Mutex<Recorded> {
        &self.inner.recorded
    }

    /// The chains that have been opened.
    pub(super) fn chains(&self) -> &Kept<ChainId, Variant> {
        &self.inner.chains
    }
}
