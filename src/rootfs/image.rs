//! Images: their manifests and configurations, and the trees that their layers make.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use serde::Deserialize;

use super::{
    Files, SIDE, Sources, Store,
    layer::{Layer, LayerKey},
    tree::{Origin, Tree},
};
use crate::{
    backend::{Error, Kind, Result},
    image::{Descriptor, Digest, Manifest, Platform, PlatformFilter, Reference, Repository, View},
    layer::{LayerIndex, Rootfs, soci_index},
    util::locked,
};

/// An image, from the outside: which platforms it has.
#[derive(Clone, Debug)]
pub struct Image {
    repository: Repository,
    manifest: Manifest,
    platforms: Vec<(String, Choice)>,
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

    fn layers(&self) -> &[Descriptor] {
        match self.manifest.view() {
            View::Image { layers, .. } => layers,
            View::Index { .. } => &[],
        }
    }

    fn new(repository: Repository, manifest: Manifest, config: Bytes) -> Result<Self> {
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
        Ok(Self { repository, manifest, config, platform, diff_ids, created_by, soci_index })
    }
}

/// Opens images. Clones are the same.
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    images: Mutex<HashMap<Digest, Arc<Image>>>,
    variants: Mutex<HashMap<Digest, Arc<Variant>>>,
    layers: Mutex<HashMap<LayerKey, Arc<Layer>>>,
}

impl Clone for Images {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl Images {
    /// Opens images that are in `sources`.
    pub fn new(sources: Sources) -> Self {
        let inner = Inner {
            store: Store::new(sources),
            images: Mutex::default(),
            variants: Mutex::default(),
            layers: Mutex::default(),
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
        let image = Arc::new(Image { repository: repository.clone(), manifest, platforms });
        locked(&self.inner.images).insert(digest, image.clone());
        Ok(image)
    }

    /// The image with this digest, if it has been opened.
    pub fn known_image(&self, digest: &Digest) -> Option<Arc<Image>> {
        locked(&self.inner.images).get(digest).cloned()
    }

    /// A platform of an image, if it has been opened.
    pub fn known_variant(&self, image: &Image, platform: &str) -> Option<Arc<Variant>> {
        match &image.platforms.iter().find(|(name, _)| name == platform)?.1 {
            Choice::Itself(variant) => Some(variant.clone()),
            Choice::Child(child) => locked(&self.inner.variants).get(&child.digest).cloned(),
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
        let variant = Arc::new(Variant::new(repository.clone(), manifest, config)?);
        locked(&self.inner.variants).insert(digest, variant.clone());
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
        let mut layers = locked(&self.inner.layers);
        let new = || Layer::new(self.inner.store.clone(), key, blob.clone(), diff_id, soci_index);
        let layer = layers.entry(key).or_insert_with(new);
        layer.is_in(&variant.repository);
        Some(layer.clone())
    }

    /// The files of a platform, or of its layer with this number, from 0 for the lowest. Nothing is
    /// fetched yet.
    pub fn files(&self, variant: &Arc<Variant>, layer: Option<usize>) -> Files {
        Files::new(self.clone(), variant.clone(), layer, self.layers(variant))
    }

    /// The tree of a platform or of one of its layers.
    pub(super) async fn merge(
        &self,
        variant: &Arc<Variant>,
        layer: Option<usize>,
    ) -> Result<Arc<Tree>> {
        let numbers = match layer {
            None => 0..variant.layer_count(),
            Some(number) => number..number + 1,
        };
        let layers: Vec<_> =
            numbers.clone().filter_map(|number| self.layer(variant, number)).collect();
        // From the top down: what is asked for first is most often there.
        let mut indexes: Vec<_> = layers.iter().rev().map(Layer::index).collect();
        indexes.reverse();
        let mut indexes = try_join_all(indexes).await?;
        let mut origins = Vec::new();
        for ((number, of), index) in numbers.zip(&layers).zip(&indexes) {
            origins.push(self.origin(variant, number, of, index)?);
        }
        let made = tokio::task::spawn_blocking(move || match (layer, indexes.pop()) {
            (Some(_), Some(index)) => Rootfs::raw(index),
            (_, last) => Rootfs::new(indexes.into_iter().chain(last).collect()),
        });
        let doing = || format!("merging the layers of {}", variant.manifest.digest());
        let rootfs = made
            .await
            .map_err(|e| Error::new(SIDE, doing(), std::io::Error::other(e)))?
            .map_err(|e| Error::new(SIDE, doing(), Kind::Unfit(e.to_string())))?;
        Ok(Tree::new(rootfs, origins))
    }

    /// What a tree has to know of a layer, which has to be the one that the configuration means.
    fn origin(
        &self,
        variant: &Variant,
        number: usize,
        layer: &Arc<Layer>,
        index: &Arc<LayerIndex>,
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
            open: Box::new(move || of.stream(&index)),
        })
    }

    /// A layer by itself, whose index is known.
    pub(super) fn raw_tree(
        &self,
        variant: &Variant,
        number: usize,
        layer: &Arc<Layer>,
        index: &Arc<LayerIndex>,
    ) -> Result<Arc<Tree>> {
        raw(layer, index, self.origin(variant, number, layer, index)?)
    }

    /// What has passed of a layer, with the file `path`, if that has.
    pub(super) fn passing_tree(
        &self,
        variant: &Variant,
        number: usize,
        layer: &Arc<Layer>,
        path: &[u8],
    ) -> Option<Arc<Tree>> {
        if self.inner.store.sources.verify_first {
            return None;
        }
        let pass = layer.pass()?;
        let index = Arc::new(pass.index_with(path)?);
        let (of, passed) = (layer.clone(), index.clone());
        let origin = Origin {
            number,
            digest: index.blob(),
            created_by: variant.created_by.get(number).cloned().flatten(),
            open: Box::new(move || Ok(of.passing_stream(&passed, &pass))),
        };
        raw(layer, &index, origin).ok()
    }
}

fn raw(layer: &Layer, index: &Arc<LayerIndex>, origin: Origin) -> Result<Arc<Tree>> {
    let rootfs = Rootfs::raw(index.clone());
    let rootfs = rootfs.map_err(|e| layer.error(Kind::Unfit(e.to_string())))?;
    Ok(Tree::new(rootfs, vec![origin]))
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
