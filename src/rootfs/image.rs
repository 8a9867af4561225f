//! Images: their manifests and configurations, and the trees that their layers make.

use std::{borrow::Cow, future::ready, io, sync::Arc};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{self, BoxFuture, try_join_all},
};
use serde::Deserialize;

use super::{
    Files, SIDE, Sources, Store,
    index_store::Indexed,
    key::LayerKey,
    layer::Layer,
    scan::Scan,
    stream::{scanned_stream, stream},
    tree::{Origin, Tree},
};
use crate::{
    backend::{Error, Kind, Result},
    image::{Descriptor, Digest, Manifest, Platform, PlatformFilter, Reference, Repository, View},
    layer::{Rootfs, soci_index},
    util::{Kept, Reservation, SingleFlight},
};

/// What a document takes in memory for each of its bytes, with what is parsed of it.
const BYTES_EACH: u64 = 4;

/// What a document takes besides, in bytes.
const BYTES_MORE: u64 = 2048;

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
    _memory: Reservation,
}

/// What is read of a configuration.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    rootfs: Option<ConfigRootfs>,
    #[serde(default)]
    history: Option<Vec<HistoryLine>>,
}

#[derive(Deserialize)]
struct ConfigRootfs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct HistoryLine {
    #[serde(default)]
    created_by: Option<String>,
    #[serde(default)]
    empty_layer: bool,
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

    /// The name of the first platform that is fit for `wanted`: the same, or a lower variant.
    pub fn platform_for(&self, wanted: &Platform) -> Option<&str> {
        let platforms: Vec<Option<Platform>> =
            self.platforms.iter().map(|(_, choice)| choice.platform().cloned()).collect();
        let filter = PlatformFilter::Only(vec![wanted.clone()]);
        let chosen = filter.select(&platforms).kept.into_iter().next()?;
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
        match self.manifest.view() {
            View::Image { layers, .. } => layers,
            View::Index { .. } => &[],
        }
    }

    /// The line of the history that made the layer with this number, from 0 for the lowest, as far as
    /// the configuration tells.
    pub fn created_by(&self, layer: usize) -> Option<&str> {
        self.created_by.get(layer)?.as_deref()
    }

    fn new(
        repository: Repository,
        manifest: Manifest,
        config: Bytes,
        memory: Reservation,
    ) -> Result<Self> {
        let failed = |reason: String| {
            let doing = format!("reading the configuration of {repository}@{}", manifest.digest());
            Error::new(SIDE, doing, Kind::Layer(reason))
        };
        // That of an artifact may be anything.
        let parsed: Option<Config> = serde_json::from_slice(&config).ok();
        let (rootfs, history) = parsed.map_or((None, None), |c| (c.rootfs, c.history));
        let diff_ids = rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
        let count = manifest.blobs().count().saturating_sub(1);
        if !diff_ids.is_empty() && diff_ids.len() != count {
            let named = diff_ids.len();
            return Err(failed(format!("it names {named} layers, the manifest {count}")));
        }
        let lines = history.unwrap_or_default().into_iter().filter(|line| !line.empty_layer);
        let mut created_by: Vec<_> = lines.map(|line| line.created_by).collect();
        if created_by.len() != count {
            // Nobody can tell which line is about which layer.
            created_by = vec![None; count];
        }
        let platform = Platform::of_config(&config);
        let soci_index = soci_index(&manifest).map(|digest| repository.pinned(digest));
        Ok(Self {
            repository,
            manifest,
            config,
            platform,
            diff_ids,
            created_by,
            soci_index,
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
    layers: Kept<LayerKey, Layer>,
    trees: Kept<TreeKey, Tree>,
    /// Trees that are being made.
    merging: SingleFlight<TreeKey, Result<Arc<Tree>>>,
    /// What has been seen of layers in scans, by the number of the scan.
    scanned: Kept<(TreeKey, u64), Tree>,
}

/// The manifest of a platform, and the number of the layer if it is not all of them.
type TreeKey = (Digest, Option<usize>);

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
            View::Index { children } => platforms_of(children),
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

    /// Memory for a document of a manifest, with so many bytes.
    async fn memory_for(&self, bytes: usize, manifest: &Manifest) -> Result<Reservation> {
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
            let reason = "it is an index within an index, which is not supported".to_owned();
            let doing = format!("reading {repository}@{digest}");
            return Err(Error::new(SIDE, doing, Kind::Unfit(reason)));
        };
        let config = self.inner.store.document(repository, config).await?;
        let memory = self.memory_for(manifest.bytes().len() + config.len(), &manifest).await?;
        let variant = Arc::new(Variant::new(repository.clone(), manifest, config, memory)?);
        self.inner.variants.insert(digest, &variant);
        Ok(variant)
    }

    pub(super) fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The layers of a platform, the lowest first.
    pub(super) fn layers(&self, variant: &Variant) -> Vec<Arc<Layer>> {
        let numbers = 0..variant.layer_count();
        numbers.filter_map(|number| self.layer(variant, number)).collect()
    }

    fn layer(&self, variant: &Variant, number: usize) -> Option<Arc<Layer>> {
        let blob = variant.layers().get(number)?;
        let diff_id = variant.diff_ids.get(number).copied();
        let soci_index = variant.soci_index.clone();
        let key = LayerKey::new(blob, soci_index.as_ref());
        let new = || Layer::new(self.inner.store.clone(), key, blob.clone(), diff_id, soci_index);
        let layer = self.inner.layers.share(key, new);
        layer.at.is_in(&variant.repository);
        Some(layer)
    }

    /// The files of a platform, or of its layer with this number, from 0 for the lowest. Nothing is
    /// fetched yet.
    pub fn files(&self, variant: &Arc<Variant>, layer: Option<usize>) -> Files {
        Files::new(self.clone(), variant.clone(), layer, self.layers(variant))
    }

    /// The tree of a platform or of one of its layers, if it has been made and not been let go.
    pub(super) fn known_tree(&self, variant: &Variant, layer: Option<usize>) -> Option<Arc<Tree>> {
        self.inner.trees.get(&(variant.manifest.digest(), layer))
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
        let key = (variant.manifest.digest(), layer);
        let (images, of) = (self.clone(), variant.clone());
        let make = || async move {
            if let Some(tree) = images.known_tree(&of, layer) {
                return Ok(tree);
            }
            let tree = images.inner.store.with_memory(|| images.merge(&of, layer)).await?;
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

    async fn merge(&self, variant: &Arc<Variant>, layer: Option<usize>) -> Result<Arc<Tree>> {
        let numbers = match layer {
            None => 0..variant.layer_count(),
            Some(number) => number..number + 1,
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
            let rootfs = match (layer, indexes.pop()) {
                (Some(_), Some(index)) => Rootfs::raw(index),
                (_, last) => Rootfs::new(indexes.into_iter().chain(last).collect()),
            };
            (rootfs, memory)
        };
        let (rootfs, mut memory) =
            self.inner.store.compute(make).await.map_err(|e| failed(e.into()))?;
        let rootfs = rootfs.map_err(|e| failed(Kind::Unfit(e.to_string())))?;
        memory.resize(rootfs.memory_bytes()).map_err(|e| failed(e.into()))?;
        Ok(Tree::new(rootfs, origins, memory))
    }

    /// What a tree has to know of a layer, which has to be the one that the configuration means.
    fn origin(
        &self,
        variant: &Variant,
        number: usize,
        layer: &Arc<Layer>,
        index: &Arc<Indexed>,
    ) -> Result<Origin> {
        if let Some(note) = index.wrong() {
            return Err(layer.error(Kind::Layer(note.kind.to_string())));
        }
        if let (Some(found), Some(expected)) = (index.diff_id(), variant.diff_ids.get(number))
            && found != *expected
        {
            let reason = format!(
                "decompressed it has the digest {found}; the image's configuration says {expected}"
            );
            let error = layer.error(Kind::Layer(reason));
            self.inner.store.note(&error);
            return Err(error);
        }
        let (of, index) = (layer.clone(), index.clone());
        Ok(Origin {
            number,
            digest: index.blob(),
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
        self.inner.scanned.get(&((variant.manifest.digest(), Some(number)), scan.number))
    }

    /// What has been scanned of a layer, with the file `path`, if that has been. Copies the table.
    pub(super) fn scanned_tree(
        &self,
        variant: &Variant,
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
            number,
            digest: index.blob(),
            created_by: variant.created_by.get(number).cloned().flatten(),
            open: Box::new(move || Ok(scanned_stream(&of, &scanned, &scan_of))),
        };
        let tree = Tree::new(rootfs, vec![origin], memory);
        let key = ((variant.manifest.digest(), Some(number)), scan.number);
        self.inner.scanned.insert(key, &tree);
        Some(tree)
    }
}

fn merging(variant: &Variant) -> String {
    format!("merging the layers of {}", variant.manifest.digest())
}

/// The platforms of an index by name. What is for none, such as an attestation, is left out, and so
/// are artifacts for one, such as a SOCI index.
fn platforms_of(children: &[Descriptor]) -> Vec<(String, Choice)> {
    let mut platforms: Vec<(String, Choice)> = Vec::new();
    for child in children.iter().filter(|child| !child.is_artifact()) {
        let Some(platform) = child.platform.as_ref().filter(|p| !p.is_unknown()) else { continue };
        let mut name = name_of(platform);
        let is_taken = |name: &str| platforms.iter().any(|(taken, _)| taken == name);
        if is_taken(&name) && !platform.os_version.is_empty() {
            name = format!("{name}-{}", safe(&platform.os_version));
        }
        let plain = name.clone();
        let mut number = 1;
        while is_taken(&name) {
            number += 1;
            name = format!("{plain}-{number}");
        }
        platforms.push((name, Choice::Child(Box::new(child.clone()))));
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
