//! What layers bring, what of that later layers hide or overwrite, and what images share.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet},
};

use serde::{Serialize, Serializer};

use super::{Error, NamedImage, OpenImage, Opener, Result};
use crate::{
    image::Digest,
    layer::{Kind, LayerIndex, Rootfs, Table},
    rootfs::Tree,
};

/// Files that are hidden or overwritten of which an image's report tells, the largest ones.
const SHOWN_FILES: usize = 20;

/// What images take.
#[derive(Debug, Serialize)]
pub struct Usage {
    /// The images, in the order in which they were named.
    pub images: Vec<ImageUsage>,
    /// The size of all layers of all images, in bytes as they are stored; each layer counts once.
    pub distinct_bytes: u64,
    /// The same of those layers that more than one of the images has.
    pub shared_bytes: u64,
    /// Images that could not be looked into, and why.
    #[serde(serialize_with = "failures")]
    pub failed: Vec<(String, Error)>,
}

fn failures<S: Serializer>(all: &[(String, Error)], to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_seq(all.iter().map(|(image, error)| {
        BTreeMap::from([("image", image.clone()), ("error", error.to_string())])
    }))
}

/// What an image takes.
#[derive(Clone, Debug, Serialize)]
pub struct ImageUsage {
    /// What it was called.
    pub image: String,
    /// Its name, by its digest.
    pub name: String,
    /// What it runs on, as in `linux/arm64/v8`.
    pub platform: String,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerUsage>,
    /// All layers together.
    pub total: Amount,
    /// The size of those layers that another one of the images has, too, in bytes as they are stored.
    pub shared_bytes: u64,
    /// The largest files that are in a layer but not in the image.
    pub hidden_files: Vec<HiddenFile>,
    /// Why there may be more in it: a layer is damaged, though it is the one that the manifest means.
    pub damage: Option<String>,
}

/// A layer, and what it takes.
#[derive(Clone, Debug, Serialize)]
pub struct LayerUsage {
    /// From 0 for the lowest.
    pub number: usize,
    /// The digest of the blob.
    pub digest: Digest,
    /// What it takes.
    #[serde(flatten)]
    pub amount: Amount,
    /// How many of the images have it.
    pub images: usize,
    /// The line of the history that made it.
    pub created_by: Option<String>,
}

/// What a layer takes, or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// The size of the blob, in bytes.
    pub compressed_bytes: u64,
    /// The content of its files, in bytes; holes of sparse files do not count.
    pub unpacked_bytes: u64,
    /// Entries of its archive, whiteouts included.
    pub entries: u64,
    /// What of `unpacked_bytes` cannot be seen in the image: later layers, or later entries of the same
    /// one, remove or overwrite it.
    pub hidden_bytes: u64,
    /// How many files that is; empty ones do not count.
    pub hidden_entries: u64,
}

/// A file that is in a layer but not in the image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HiddenFile {
    /// Bytes of its content.
    pub bytes: u64,
    /// Its path.
    pub path: String,
    /// The number of the layer that it is in.
    pub layer: usize,
    /// The number of the layer whose file is in its place; `None` if there is none.
    pub overwritten_by: Option<usize>,
}

/// Finds out what images take. Layers that nobody has looked into before are read once.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # use imgfs::{
/// #     backend::{ManifestName, Sink, images_dir::{ImagesDir, Linking}, registry::RegistryConfig},
/// #     image::{Digest, Manifest, Repository},
/// # };
/// use imgfs::ops::{OpenOptions, Opener, this_machine, usage};
///
/// let temporary = tempfile::tempdir()?;
/// # let dir = ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// # let digest = Digest::sha256(b"{}");
/// # std::fs::write(temporary.path().join(format!("blobs/{digest}")), b"{}")?;
/// # let manifest = format!(
/// #     r#"{{"schemaVersion": 2, "config": {{"digest": "{digest}", "size": 2}}, "layers": []}}"#
/// # );
/// # let manifest = Manifest::parse(manifest.into_bytes().into(), None)?;
/// # let repository = Repository::new("registry.example.com", "team/app")?;
/// # dir.put(&repository, &manifest, &ManifestName::Tag("v1".to_owned())).await?;
/// // There is an image `registry.example.com/team/app:v1`, without layers.
/// let options = OpenOptions {
///     images_dir: temporary.path().to_owned(),
///     index_cache: None,
///     platform: this_machine()?,
///     any_single_platform: true,
///     offline: true,
/// };
/// let opener = Opener::new(options, RegistryConfig::default())?;
/// let names = ["registry.example.com/team/app:v1".parse()?, "registry.example.com/no:1".parse()?];
/// let usage = usage(&opener, &names).await;
/// assert_eq!((usage.images.len(), usage.failed.len()), (1, 1));
/// assert_eq!(usage.images[0].total.unpacked_bytes, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub async fn usage(opener: &Opener, names: &[NamedImage]) -> Usage {
    let (mut images, mut failed) = (Vec::new(), Vec::new());
    for name in names {
        match of_image(opener, name).await {
            Ok(usage) => images.push(usage),
            Err(error) => failed.push((name.shown.clone(), error)),
        }
    }
    let (distinct_bytes, shared_bytes) = share(&mut images);
    Usage { images, distinct_bytes, shared_bytes, failed }
}

async fn of_image(opener: &Opener, name: &NamedImage) -> Result<ImageUsage> {
    let opened = opener.open(name).await?;
    let tree = opened.files.tree().await.map_err(Error::Image)?;
    Ok(ImageUsage::new(&opened, &tree))
}

/// Finds out which images have which layers; the bytes of all and of the shared ones.
fn share(images: &mut [ImageUsage]) -> (u64, u64) {
    let mut holders: BTreeMap<Digest, (u64, usize)> = BTreeMap::new();
    for image in images.iter() {
        for (digest, bytes) in image.distinct() {
            holders.entry(digest).or_insert((bytes, 0)).1 += 1;
        }
    }
    let count = |digest: &Digest| holders.get(digest).map_or(0, |(_, count)| *count);
    for image in images {
        for layer in &mut image.layers {
            layer.images = count(&layer.digest);
        }
        let shared = image.distinct().into_iter().filter(|(digest, _)| count(digest) > 1);
        image.shared_bytes = shared.map(|(_, bytes)| bytes).sum();
    }
    let sum = |least: usize| {
        holders.values().filter(|(_, count)| *count >= least).map(|(bytes, _)| bytes).sum()
    };
    (sum(1), sum(2))
}

impl ImageUsage {
    fn new(opened: &OpenImage, tree: &Tree) -> Self {
        let rootfs = tree.rootfs();
        let visible = visible(rootfs);
        let mut largest = BinaryHeap::new();
        let layers = opened.variant.layers().iter().zip(rootfs.layers()).enumerate();
        let layers = layers.map(|(number, (blob, index))| {
            let mut amount = Amount { compressed_bytes: blob.size, ..Amount::default() };
            amount.count(number, index, rootfs, &visible, &mut largest);
            LayerUsage {
                number,
                digest: blob.digest,
                amount,
                images: 1,
                created_by: opened.variant.created_by(number).map(str::to_owned),
            }
        });
        let layers: Vec<LayerUsage> = layers.collect();
        let mut total = Amount::default();
        for layer in &layers {
            total.add(&layer.amount);
        }
        let largest = largest.into_sorted_vec().into_iter();
        Self {
            image: opened.shown.clone(),
            name: opened.image.name().to_string(),
            platform: opened.platform.clone(),
            layers,
            total,
            shared_bytes: 0,
            hidden_files: largest.map(|Reverse((bytes, Reverse(file)))| file.with(bytes)).collect(),
            damage: tree.damage().map(ToString::to_string),
        }
    }

    /// The size of its layers, each of which counts once, in bytes as they are stored.
    pub fn distinct_bytes(&self) -> u64 {
        self.distinct().into_iter().map(|(_, bytes)| bytes).sum()
    }

    /// Its layers, each once, with the sizes of their blobs.
    fn distinct(&self) -> BTreeSet<(Digest, u64)> {
        self.layers.iter().map(|layer| (layer.digest, layer.amount.compressed_bytes)).collect()
    }
}

impl Amount {
    fn add(&mut self, other: &Self) {
        self.compressed_bytes += other.compressed_bytes;
        self.unpacked_bytes += other.unpacked_bytes;
        self.entries += other.entries;
        self.hidden_bytes += other.hidden_bytes;
        self.hidden_entries += other.hidden_entries;
    }

    /// Counts what is in a layer.
    fn count(
        &mut self,
        number: usize,
        index: &LayerIndex,
        rootfs: &Rootfs,
        visible: &HashSet<(usize, u64)>,
        largest: &mut Largest,
    ) {
        let table = index.table();
        for (entry_number, entry) in (0..).zip(table.entries()) {
            self.entries += 1;
            let extents = table.extents(entry_number);
            // Of what is not empty, no two begin at the same place.
            let Some(first) = extents.first() else { continue };
            let bytes: u64 = extents.iter().map(|extent| extent.length).sum();
            self.unpacked_bytes += bytes;
            if !visible.contains(&(number, first.stream_offset)) {
                self.hidden_bytes += bytes;
                self.hidden_entries += 1;
                let file = Hidden::new(table, entry.path, number, rootfs);
                largest.push(Reverse((bytes, Reverse(file))));
                if largest.len() > SHOWN_FILES {
                    largest.pop();
                }
            }
        }
    }
}

/// The largest files so far; the one to be dropped next comes first: of equal ones, the last by path.
type Largest = BinaryHeap<Reverse<(u64, Reverse<Hidden>)>>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hidden {
    path: Vec<u8>,
    layer: usize,
    overwritten_by: Option<usize>,
}

impl Hidden {
    fn new(table: &Table, path: u32, layer: usize, rootfs: &Rootfs) -> Self {
        let path = table.full_path(path);
        let overwritten_by = rootfs.find(&path).map(|node| rootfs.content_layer(node));
        Self { path, layer, overwritten_by }
    }

    fn with(self, bytes: u64) -> HiddenFile {
        let path = String::from_utf8_lossy(&self.path);
        let (layer, overwritten_by) = (self.layer, self.overwritten_by);
        HiddenFile { bytes, path: format!("/{path}"), layer, overwritten_by }
    }
}

/// The files that can be seen: of each inode the layer, and where in its stream the content begins.
fn visible(rootfs: &Rootfs) -> HashSet<(usize, u64)> {
    let nodes = (0..rootfs.node_count()).filter_map(|number| rootfs.node(number));
    let files = nodes
        .filter(|node| rootfs.inode(*node) == *node)
        .filter(|node| rootfs.attributes(*node).kind == Kind::File);
    let begins = files.filter_map(|node| {
        let data = rootfs.data(node).ok()?;
        Some((data.layer, data.extents.first()?.stream_offset))
    });
    begins.collect()
}
