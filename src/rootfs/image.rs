//! Images: their manifests and configurations, and the trees that their layers make.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;

use super::SIDE;
use crate::{
    backend::{Error, Kind, Result},
    image::{
        ChainId, Descriptor, Digest, ImageConfig, Manifest, Platform, PlatformFilter, Reference,
        Repository, View,
    },
    layer::soci_index,
    util::Reservation,
};

/// By this annotation, an index tells a child whose layers are compressed with zstd from one for the same platform
/// that others can read.
const ZSTD: &str = "io.github.containers.compression.zstd";

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
pub(super) enum Choice {
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
    pub(super) fn new(
        repository: Repository,
        manifest: Manifest,
        platforms: Vec<(String, Choice)>,
        memory: Reservation,
    ) -> Self {
        Self { repository, manifest, platforms, _memory: memory }
    }

    /// What the platform with this name is.
    pub(super) fn choice(&self, platform: &str) -> Option<&Choice> {
        let (_, choice) = self.platforms.iter().find(|(name, _)| name == platform)?;
        Some(choice)
    }

    /// Where it and its platforms are.
    pub(super) fn repository(&self) -> &Repository {
        &self.repository
    }

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
        self.platform_by(wanted, |_| false)
    }

    /// The same for whoever pulls by containers/image: of images that are equally fit, it takes the first of which the
    /// index says that its layers are compressed with zstd, and else the first.
    pub fn platform_for_containers_image(&self, wanted: &Platform) -> Option<&str> {
        self.platform_by(wanted, |choice| match choice {
            Choice::Itself(_) => false,
            Choice::Child(child) => child.annotations.get(ZSTD).is_some_and(|said| said == "true"),
        })
    }

    fn platform_by(
        &self,
        wanted: &Platform,
        is_preferred: impl Fn(&Choice) -> bool,
    ) -> Option<&str> {
        let platforms: Vec<Option<Platform>> =
            self.platforms.iter().map(|(_, choice)| choice.platform().cloned()).collect();
        let filter = PlatformFilter::Only(vec![wanted.clone()]);
        let kept = filter.select(&platforms).kept;
        let is_it = |number: &&usize| {
            self.platforms.get(**number).is_some_and(|(_, choice)| is_preferred(choice))
        };
        let fit = kept.iter().find(is_it).or(kept.first()).copied();
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
        match self.choice(platform).and_then(Choice::platform) {
            Some(platform) => Cow::Owned(platform.to_string()),
            None => Cow::Borrowed(platform),
        }
    }

    /// The digest of the manifest of a platform, by its name.
    pub fn manifest_of(&self, platform: &str) -> Option<Digest> {
        Some(match self.choice(platform)? {
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

    /// Where tables of contents of its layers are, if SOCI has made some.
    pub(super) fn soci_index(&self) -> Option<&Reference> {
        self.soci_index.as_ref()
    }

    /// Whether it is a chain of layers, and not all of an image.
    pub(super) fn is_chain(&self) -> bool {
        self.chain.is_some()
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

/// The images of an index by the names of their platforms. What is for none, such as an attestation,
/// has been left out, and so are artifacts for one, such as a SOCI index.
pub(super) fn platforms_of(variants: Vec<Descriptor>) -> Vec<(String, Choice)> {
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
pub(super) fn name_of(platform: &Platform) -> String {
    let parts = [&platform.os, &platform.architecture, &platform.variant];
    let parts = parts.into_iter().filter(|part| !part.is_empty()).map(|part| safe(part));
    parts.collect::<Vec<_>>().join("-")
}

/// A text that comes from outside, as part of a file name.
fn safe(text: &str) -> String {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.chars().take(64).map(|c| if is_fine(c) { c } else { '_' }).collect()
}
