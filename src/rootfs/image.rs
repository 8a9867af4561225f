//! Images: their manifests and configurations, and the trees that their layers make.

use std::{
    borrow::Cow,
    future::ready,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture, try_join_all},
    stream::iter,
};

use super::{
    Files, SIDE, Sources, Store,
    follow::follow,
    index_store::Indexed,
    key::LayerKey,
    layer::{Claims, Layer},
    recorded::{Recorded, WrongLayer},
    scan::Scan,
    starts::{Start, Ways},
    stream::{scanned_stream, stream},
    tree::{Origin, Tree},
};
use crate::{
    backend::{Error, Kind, Result},
    image::{
        ChainId, Descriptor, Digest, ImageConfig, Manifest, MediaType, Platform, PlatformFilter,
        Reference, Repository, View,
    },
    layer::{ProfiledStream, Rootfs, StreamKind, soci_index},
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

/// An image, from the outside: which platforms it has.
#[derive(Debug)]
pub struct Image {
    repository: Repository,
    manifest: Manifest,
    platforms: Vec<(String, Choice)>,
    _memory: Reservation,
}

/// What a platform of an image is.
#[derive(Clone, Debug)]
enum Choice {
    /// The image itself: it is a single one.
    Itself(Arc<Variant>),
    /// A child of the index.
    Child(Box<Descriptor>),
}

/// An image for one platform.
#[derive(Debug)]
pub struct Variant {
    repository: Repository,
    manifest: Manifest,
    config: Bytes,
    platform: Option<Platform>,
    /// By layer, as far as the configuration tells.
    diff_ids: Vec<Digest>,
    created_by: Vec<Option<String>>,
    /// Where tables of contents of its layers are, if SOCI has made some.
    soci_index: Option<Reference>,
    /// What trees of it are known by.
    key: Digest,
    /// The layers, if it is a chain of them and not all of an image.
    chain: Option<Vec<Descriptor>>,
    _memory: Reservation,
}

impl Image {
    /// Its name, by its digest.
    pub fn name(&self) -> Reference {
        self.repository.pinned(self.manifest.digest())
    }

    /// The manifest or index as it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The names of its platforms, as in `linux-arm64-v8`.
    pub fn platforms(&self) -> impl Iterator<Item = &str> {
        self.platforms.iter().map(|(name, _)| name.as_str())
    }

    /// The name of the first platform that is fit for `wanted`: the same, or a lower variant, or else
    /// the first in an index of which nothing says what it is for.
    pub fn platform_for(&self, wanted: &Platform) -> Option<&str> {
        let platforms: Vec<Option<Platform>> =
            self.platforms.iter().map(|(_, choice)| choice.platform().cloned()).collect();
        let filter = PlatformFilter::Only(vec![wanted.clone()]);
        let fit = filter.select(&platforms).kept.into_iter().next();
        let is_unsaid = |choice: &Choice| match choice {
            Choice::Itself(_) => false,
            Choice::Child(child) => child.platform.is_none(),
        };
        let unsaid = || self.platforms.iter().position(|(_, choice)| is_unsaid(choice));
        let chosen = fit.or_else(unsaid)?;
        self.platforms.get(chosen).map(|(name, _)| name.as_str())
    }

    /// A platform as people write it (`linux/arm64/v8`), by its name. The name, where nothing is said of it.
    pub fn written<'a>(&self, platform: &'a str) -> Cow<'a, str> {
        let found = self.platforms.iter().find(|(name, _)| name == platform);
        match found.and_then(|(_, choice)| choice.platform()) {
            Some(platform) => Cow::Owned(platform.to_string()),
            None => Cow::Borrowed(platform),
        }
    }

    /// The digest of the manifest of a platform, by its name.
    pub fn manifest_of(&self, platform: &str) -> Option<Digest> {
        let (_, choice) = self.platforms.iter().find(|(name, _)| name == platform)?;
        Some(match choice {
            Choice::Itself(variant) => variant.manifest.digest(),
            Choice::Child(child) => child.digest,
        })
    }

    /// The name of the platform that is just this one.
    pub fn platform_named(&self, platform: &Platform) -> Option<&str> {
        let mut all = self.platforms.iter();
        let found = all.find(|(_, choice)| choice.platform() == Some(platform))?;
        Some(&found.0)
    }
}

impl Choice {
    fn platform(&self) -> Option<&Platform> {
        match self {
            Self::Itself(variant) => variant.platform.as_ref(),
            Self::Child(child) => child.platform.as_ref(),
        }
    }
}

impl Variant {
    /// Its name, by its digest.
    pub fn name(&self) -> Reference {
        self.repository.pinned(self.manifest.digest())
    }

    /// What it runs on, if anything says that.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// The manifest as it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The configuration as it is.
    pub fn config(&self) -> &Bytes {
        &self.config
    }

    /// How many layers it has.
    pub fn layer_count(&self) -> usize {
        self.layers().len()
    }

    /// Its layers, the lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        match (&self.chain, self.manifest.view()) {
            (Some(layers), _) => layers,
            (None, View::Image { layers, .. }) => layers,
            (None, View::Index { .. }) => &[],
        }
    }

    /// The digests of its decompressed layers, as far as the configuration tells.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }

    /// Where its layers are.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// What trees of it are known by: the digest of its manifest, or of what a chain is made of.
    pub(crate) fn key(&self) -> Digest {
        self.key
    }

    /// The names of the chains of its layers, the lowest first; `None` if its configuration does not tell them.
    pub fn chains(&self) -> Option<Vec<ChainId>> {
        let is_told = self.manifest.blobs().next().is_some_and(Descriptor::is_image_config)
            && self.diff_ids.len() == self.layer_count();
        is_told.then(|| ChainId::of_layers(&self.diff_ids))?
    }

    /// The lowest `count` layers as a variant of their own, called `chain`. What only this image says of them
    /// does not count in it.
    pub(super) fn chain(self, chain: &ChainId, count: usize) -> Self {
        let mut layers: Vec<Descriptor> = self.layers().iter().take(count).cloned().collect();
        let mut made_of = chain.to_string();
        for layer in &mut layers {
            layer.annotations.clear();
            made_of += &format!(" {} {}", layer.digest, layer.size);
        }
        let mut diff_ids = self.diff_ids;
        diff_ids.truncate(count);
        Self {
            key: Digest::sha256(made_of.as_bytes()),
            created_by: vec![None; layers.len()],
            diff_ids,
            soci_index: None,
            chain: Some(layers),
            ..self
        }
    }

    /// The line of the history that made the layer with this number, from 0 for the lowest, as far as
    /// the configuration tells.
    pub fn created_by(&self, layer: usize) -> Option<&str> {
        self.created_by.get(layer)?.as_deref()
    }

    pub(super) fn new(
        repository: Repository,
        manifest: Manifest,
        config: Bytes,
        memory: Reservation,
    ) -> Result<Self> {
        let failed = |reason: String| {
            let doing = format!("reading the configuration of {repository}@{}", manifest.digest());
            Error::new(SIDE, doing, Kind::Layer(reason))
        };
        let is_image = manifest.blobs().next().is_some_and(Descriptor::is_image_config);
        let ImageConfig { diff_ids, history, platform } = match ImageConfig::parse(&config) {
            Ok(parsed) => parsed,
            Err(error) if is_image => return Err(failed(format!("it is malformed: {error}"))),
            // That of an artifact may be anything.
            Err(_) => ImageConfig::default(),
        };
        let count = manifest.blobs().count().saturating_sub(1);
        if !diff_ids.is_empty() && diff_ids.len() != count {
            let named = diff_ids.len();
            return Err(failed(format!("it names {named} layers, the manifest {count}")));
        }
        let lines = history.into_iter().filter(|line| !line.empty_layer);
        let mut created_by: Vec<_> = lines.map(|line| line.created_by).collect();
        if created_by.len() != count {
            // Nobody can tell which line is about which layer.
            created_by = vec![None; count];
        }
        let soci_index = soci_index(&manifest).map(|digest| repository.pinned(digest));
        let key = manifest.digest();
        Ok(Self {
            repository,
            manifest,
            config,
            platform,
            diff_ids,
            created_by,
            soci_index,
            key,
            chain: None,
            _memory: memory,
        })
    }
}

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
                let name = variant.platform.as_ref().map_or("unknown".into(), name_of);
                vec![(name, Choice::Itself(variant))]
            }
        };
        let memory = self.memory_for(manifest.bytes().len(), &manifest).await?;
        let repository = repository.clone();
        let image = Arc::new(Image { repository, manifest, platforms, _memory: memory });
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
        match &image.platforms.iter().find(|(name, _)| name == platform)?.1 {
            Choice::Itself(variant) => Some(variant.clone()),
            Choice::Child(child) => self.inner.variants.get(&child.digest),
        }
    }

    /// A platform of an image, by its name; `None` if it has none of that name.
    pub async fn variant(&self, image: &Image, platform: &str) -> Result<Option<Arc<Variant>>> {
        let found = image.platforms.iter().find(|(name, _)| name == platform);
        let child = match found {
            None => return Ok(None),
            Some((_, Choice::Itself(variant))) => return Ok(Some(variant.clone())),
            Some((_, Choice::Child(child))) => child,
        };
        if let Some(variant) = self.known_variant(image, platform) {
            return Ok(Some(variant));
        }
        let manifest = self.manifest(&image.repository.pinned(child.digest)).await?;
        self.open_variant(&image.repository, manifest).await.map(Some)
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

    /// The layers of a platform, the lowest first, as they are known where the indexes that are attached to it are
    /// trusted.
    pub(super) fn layers_with_attached(&self, variant: &Variant) -> Vec<Arc<Layer>> {
        let numbers = 0..variant.layer_count();
        let of = |number| self.layer_with(variant, number, Some(variant.name()));
        numbers.filter_map(of).collect()
    }

    /// Images that are found by their content.
    pub(super) fn recorded(&self) -> &Mutex<Recorded> {
        &self.inner.recorded
    }

    /// The chains that have been opened.
    pub(super) fn chains(&self) -> &Kept<ChainId, Variant> {
        &self.inner.chains
    }

    /// The layers of a platform, the lowest first.
    pub(super) fn layers(&self, variant: &Variant) -> Vec<Arc<Layer>> {
        let numbers = 0..variant.layer_count();
        numbers.filter_map(|number| self.layer(variant, number)).collect()
    }

    pub(super) fn layer(&self, variant: &Variant, number: usize) -> Option<Arc<Layer>> {
        self.layer_with(variant, number, self.trusted_attachments(variant))
    }

    /// A layer, and where indexes of it may be attached that are trusted.
    fn layer_with(
        &self,
        variant: &Variant,
        number: usize,
        attached: Option<Reference>,
    ) -> Option<Arc<Layer>> {
        let blob = variant.layers().get(number)?;
        let diff_id = variant.diff_ids.get(number).copied();
        let soci_index = variant.soci_index.clone();
        let key = LayerKey::new(blob, soci_index.as_ref(), attached.as_ref());
        let claims = Claims { soci_index, attached };
        let new = || Layer::new(self.inner.store.clone(), key, blob.clone(), diff_id, claims);
        let layer = self.inner.layers.share(key, new);
        layer.at.is_in(&variant.repository);
        Some(layer)
    }

    /// The name of the manifest of a platform, if the indexes that are attached to it are trusted.
    pub(super) fn trusted_attachments(&self, variant: &Variant) -> Option<Reference> {
        // A chain is shown for every image that has it, and must not depend on what is attached to one of them.
        let is_trusted =
            variant.chain.is_none() && self.inner.store.sources.trusts(&variant.repository);
        is_trusted.then(|| variant.name())
    }

    /// The start of a platform of an image, which may be over.
    fn start(&self, variant: &Arc<Variant>) -> Option<Arc<Start>> {
        let store = &self.inner.store;
        let platform = variant.platform.as_ref().map(Platform::to_string);
        let repository = variant.repository.to_string();
        let ways = || {
            let (to_find, to_follow) = (Arc::downgrade(&self.inner), Arc::downgrade(&self.inner));
            let (of, to) = (variant.clone(), variant.clone());
            Ways {
                find: Box::new(move |start| {
                    let Some(inner) = to_find.upgrade() else { return };
                    let Some(runtime) = inner.store.starts.runtime().cloned() else { return };
                    runtime.spawn(async move {
                        let finds = inner.store.starts.finds();
                        if let Some(profile) = (Self { inner }).profile(&of, finds).await {
                            start.offer(profile);
                        }
                    });
                }),
                follow: Box::new(move |profile| {
                    let Some(inner) = to_follow.upgrade() else { return };
                    let Some(runtime) = inner.store.starts.runtime().cloned() else { return };
                    runtime.spawn(async move {
                        let bytes = follow(&Self { inner }, &to, &profile).await;
                        let image = to.name();
                        tracing::info!(%image, bytes, "has fetched what its profile has");
                    });
                }),
            }
        };
        let image = variant.manifest.digest();
        store.starts.of(image, platform, repository, &store.index_store, ways)
    }

    /// The files of a platform, or of its layer with this number, from 0 for the lowest. Nothing is
    /// fetched yet.
    pub fn files(&self, variant: &Arc<Variant>, layer: Option<usize>) -> Files {
        Files::new(self.clone(), variant.clone(), layer, self.layers(variant))
    }

    /// The tree of a platform or of one of its layers, if it has been made and not been let go.
    pub(super) fn known_tree(&self, variant: &Variant, layer: Option<usize>) -> Option<Arc<Tree>> {
        self.inner.trees.get(&(variant.key, layer))
    }

    /// The tree of a platform or of one of its layers, which is made once for all who want it.
    pub(super) fn tree(
        &self,
        variant: &Arc<Variant>,
        layer: Option<usize>,
    ) -> BoxFuture<'static, Result<Arc<Tree>>> {
        if let Some(tree) = self.known_tree(variant, layer) {
            return future::ready(Ok(tree)).boxed();
        }
        let key = (variant.key, layer);
        let (images, of) = (self.clone(), variant.clone());
        let make = || async move {
            if let Some(tree) = images.known_tree(&of, layer) {
                return Ok(tree);
            }
            let layers = match layer {
                None => Layers::From(0),
                Some(number) => Layers::Alone(number),
            };
            let tree = images.inner.store.with_memory(|| images.merge(&of, layers)).await?;
            images.inner.trees.insert(key, &tree);
            Ok(tree)
        };
        let flight = self.inner.merging.run(key, make);
        let doing = merging(variant);
        async move {
            let died = |died| Err(Error::new(SIDE, doing, io::Error::other(died)));
            flight.await.unwrap_or_else(died)
        }
        .boxed()
    }

    /// What the layers of a platform from `first` on make, as if there was nothing below them.
    pub async fn upper_tree(&self, variant: &Arc<Variant>, first: usize) -> Result<Arc<Tree>> {
        self.inner.store.with_memory(|| self.merge(variant, Layers::From(first))).await
    }

    async fn merge(&self, variant: &Arc<Variant>, layers: Layers) -> Result<Arc<Tree>> {
        let (numbers, is_alone) = match layers {
            Layers::From(first) => (first.min(variant.layer_count())..variant.layer_count(), false),
            Layers::Alone(number) => (number..number + 1, true),
        };
        let layers: Vec<_> =
            numbers.clone().filter_map(|number| self.layer(variant, number)).collect();
        // From the top down: what is asked for first is most often there.
        let mut indexes: Vec<_> = layers.iter().rev().map(Layer::index).collect();
        indexes.reverse();
        let indexes = try_join_all(indexes).await?;
        let mut origins = Vec::new();
        for ((number, of), index) in numbers.zip(&layers).zip(&indexes) {
            origins.push(self.origin(variant, number, of, index)?);
        }
        let failed = |kind: Kind| Error::new(SIDE, merging(variant), kind);
        let bytes = Rootfs::merging_bytes(indexes.iter().map(|index| &****index));
        let memory = &self.inner.store.sources.memory;
        let memory = memory.reserve(bytes).map_err(|e| failed(e.into()))?;
        let mut indexes: Vec<_> = indexes.iter().map(|index| (**index).clone()).collect();
        let make = move || {
            let rootfs = match (is_alone, indexes.pop()) {
                (true, Some(index)) => Rootfs::raw(index),
                (_, last) => Rootfs::new(indexes.into_iter().chain(last).collect()),
            };
            (rootfs, memory)
        };
        let (rootfs, mut memory) =
            self.inner.store.compute(make).await.map_err(|e| failed(e.into()))?;
        let rootfs = rootfs.map_err(|e| failed(Kind::Unfit(e.to_string())))?;
        memory.resize(rootfs.memory_bytes()).map_err(|e| failed(e.into()))?;
        Ok(Tree::new(rootfs, origins, memory, self.start(variant)))
    }

    /// What a tree has to know of a layer, which has to be the one that the configuration means.
    pub(super) fn origin(
        &self,
        variant: &Variant,
        number: usize,
        layer: &Arc<Layer>,
        index: &Arc<Indexed>,
    ) -> Result<Origin> {
        if let Some(note) = index.wrong() {
            let reason = note.kind.to_string();
            self.inner.store.note_wrong(WrongLayer {
                layer: index.blob(),
                diff_id: None,
                reason: reason.clone(),
            });
            return Err(layer.error(Kind::Layer(reason)));
        }
        if let (Some(found), Some(expected)) = (index.diff_id(), variant.diff_ids.get(number))
            && found != *expected
        {
            let reason = format!(
                "decompressed it has the digest {found}; the image's configuration says {expected}"
            );
            let error = layer.error(Kind::Layer(reason.clone()));
            self.inner.store.note(&error);
            let wrong = WrongLayer { layer: index.blob(), diff_id: Some(*expected), reason };
            self.inner.store.note_wrong(wrong);
            return Err(error);
        }
        let (of, index) = (layer.clone(), index.clone());
        Ok(Origin {
            is_told: variant.chain.is_none(),
            number,
            digest: index.blob(),
            stream: profiled(&index),
            created_by: variant.created_by.get(number).cloned().flatten(),
            open: Box::new(move || stream(&of, &index)),
        })
    }

    /// What has been seen of a layer in a scan, if somebody has looked before.
    pub(super) fn known_scanned(
        &self,
        variant: &Variant,
        number: usize,
        scan: &Scan,
    ) -> Option<Arc<Tree>> {
        self.inner.scanned.get(&((variant.key, Some(number)), scan.number))
    }

    /// What has been scanned of a layer, with the file `path`, if that has been. Copies the table.
    pub(super) fn scanned_tree(
        &self,
        variant: &Arc<Variant>,
        number: usize,
        layer: &Arc<Layer>,
        scan: &Arc<Scan>,
        path: &[u8],
    ) -> Option<Arc<Tree>> {
        if self.inner.store.sources.verify_first {
            return None;
        }
        let (index, memory) = scan.index_with(path)?;
        let index = Indexed::unstored(index, memory);
        let budget = &self.inner.store.sources.memory;
        // Where there is no room for it, the end of the scan has to be waited for.
        let mut memory = budget.reserve(Rootfs::merging_bytes([&***index])).ok()?;
        let rootfs = Rootfs::raw((**index).clone()).ok()?;
        memory.resize(rootfs.memory_bytes()).ok()?;
        let (of, scan_of, scanned) = (layer.clone(), scan.clone(), index.clone());
        let origin = Origin {
            is_told: variant.chain.is_none(),
            number,
            digest: index.blob(),
            // How long it is nobody knows yet.
            stream: ProfiledStream { bytes: ProfiledStream::UNKNOWN, ..profiled(&index) },
            created_by: variant.created_by.get(number).cloned().flatten(),
            open: Box::new(move || Ok(scanned_stream(&of, &scanned, &scan_of))),
        };
        let tree = Tree::new(rootfs, vec![origin], memory, self.start(variant));
        let key = ((variant.key, Some(number)), scan.number);
        self.inner.scanned.insert(key, &tree);
        Some(tree)
    }
}

/// How profiles name the stream of a layer.
fn profiled(index: &Indexed) -> ProfiledStream {
    let kind = StreamKind::of(index.origin());
    ProfiledStream { layer: index.blob(), kind, bytes: index.stream_bytes() }
}

fn merging(variant: &Variant) -> String {
    format!("merging the layers of {}", variant.manifest.digest())
}

/// The images of an index by the names of their platforms. What is for none, such as an attestation,
/// has been left out, and so are artifacts for one, such as a SOCI index.
fn platforms_of(variants: Vec<Descriptor>) -> Vec<(String, Choice)> {
    let mut platforms: Vec<(String, Choice)> = Vec::new();
    for child in variants {
        let platform = child.platform.as_ref();
        let mut name = platform.map_or("unknown".to_owned(), name_of);
        let is_taken = |name: &str| platforms.iter().any(|(taken, _)| taken == name);
        let os_version = platform.map(|platform| platform.os_version.as_str());
        if let Some(version) = os_version.filter(|version| !version.is_empty() && is_taken(&name)) {
            name = format!("{name}-{}", safe(version));
        }
        let plain = name.clone();
        let mut number = 1;
        while is_taken(&name) {
            number += 1;
            name = format!("{plain}-{number}");
        }
        platforms.push((name, Choice::Child(Box::new(child))));
    }
    platforms
}

/// The name of a platform: `linux-amd64`, `linux-arm64-v8`.
fn name_of(platform: &Platform) -> String {
    let parts = [&platform.os, &platform.architecture, &platform.variant];
    let parts = parts.into_iter().filter(|part| !part.is_empty()).map(|part| safe(part));
    parts.collect::<Vec<_>>().join("-")
}

/// A text that comes from outside, as part of a file name.
fn safe(text: &str) -> String {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.chars().take(64).map(|c| if is_fine(c) { c } else { '_' }).collect()
}
