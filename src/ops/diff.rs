//! What differs between the files of two images, file by file, without pulling either.
//!
//! Both trees are walked side by side. What they say of a file (mode, owner, links, extended attributes)
//! is compared as it is (`walk.rs`); content is only read where its place does not tell whether it is the same
//! (`content.rs`). [`package_diff`] compares what package managers have noted instead (`packages.rs`).

mod content;
mod packages;
mod report;
mod rpm;
mod walk;

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

pub use packages::{PackageChange, PackageDiff, package_diff};
pub use report::{Aspect, Change, DiffReport, FileChange, FileState, LayerTally, Side, Tally};

use super::{Error, NamedImage, OpenImage, Opener, Result};
use crate::{
    image::Descriptor,
    layer::{Kind, LayerIndex, Node, Rootfs},
    rootfs::{PathError, Tree},
};
use content::{is_same_content, place};
use walk::{Pair, Place, walk};

/// Files that are read and compared at the same time.
const AT_A_TIME: usize = 8;

/// What is compared.
#[derive(Clone, Debug)]
pub struct DiffRequest {
    /// The image that counts as the old one.
    pub a: NamedImage,
    /// The image that counts as the new one.
    pub b: NamedImage,
    /// What is compared of them: a file, or a directory with all that is in it. Symbolic links are followed,
    /// in each image by itself.
    pub path: String,
    /// Whether another time of modification is a difference.
    pub times: bool,
}

/// Compares the files of two images. Layers that nobody has looked into before are read once, those that
/// both have once for both: not at all if the images consist of the same ones, or if they have the same
/// paths above those that are the same from the bottom up. What a damaged layer hides is an error.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # use imgfs::{
/// #     backend::{ManifestName, Sink, images_dir::{ImagesDir, Linking}, registry::RegistryConfig},
/// #     image::{Digest, Manifest, Repository},
/// # };
/// use imgfs::ops::{DiffRequest, OpenOptions, Opener, diff, this_machine};
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
/// // There is an image `registry.example.com/team/app:v1`.
/// let options = OpenOptions {
///     images_dir: temporary.path().to_owned(),
///     index_cache: None,
///     platform: this_machine()?,
///     any_single_platform: true,
///     offline: true,
/// };
/// let opener = Opener::new(options, RegistryConfig::default())?;
/// let request = DiffRequest {
///     a: "registry.example.com/team/app:v1".parse()?,
///     b: "registry.example.com/team/app:v1".parse()?,
///     path: "/".to_owned(),
///     times: false,
/// };
/// assert!(diff(&opener, &request).await?.is_same());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub async fn diff(opener: &Opener, request: &DiffRequest) -> Result<DiffReport> {
    let (a, b) = (opener.open(&request.a).await?, opener.open(&request.b).await?);
    let (mut old, mut new) = (Side::new(&a), Side::new(&b));
    let path = clean(&request.path);
    if path == "/" && has_same_layers(&a, &b) {
        let (changes, total) = (Vec::new(), Tally::default());
        return Ok(DiffReport { a: old, b: new, path, changes, total, compared_bytes: 0 });
    }
    let upper = match path == "/" && !request.times {
        true => upper_parts(opener, &a, &b).await?,
        false => None,
    };
    let (a, b) = match upper {
        Some(upper) => upper,
        None => futures_util::try_join!(Place::find(&a, &path), Place::find(&b, &path))?,
    };
    if a.start.is_none() && b.start.is_none() {
        return Err(Error::Path(PathError::Missing));
    }
    let mut pairs = walk(&a, &b, request.times);
    let compared_bytes = compare_contents(&a.tree, &b.tree, &mut pairs).await?;
    let mut total = Tally::default();
    let mut changes = Vec::new();
    for pair in &pairs {
        let (change, tally) = match (pair.a, pair.b, pair.aspects.is_empty()) {
            (Some(node), None, _) => {
                let removed_bytes = a.own_bytes(node, &pair.path, &b);
                (Change::Removed, Tally { removed: 1, removed_bytes, ..Tally::default() })
            }
            (None, Some(node), _) => {
                let added_bytes = b.own_bytes(node, &pair.path, &a);
                (Change::Added, Tally { added: 1, added_bytes, ..Tally::default() })
            }
            (_, _, false) => (Change::Changed, Tally { changed: 1, ..Tally::default() }),
            (_, _, true) => continue,
        };
        total.add(&tally);
        let (in_a, in_b) = (pair.a.map(|n| a.state(n)), pair.b.map(|n| b.state(n)));
        for (side, state) in [(&mut old, &in_a), (&mut new, &in_b)] {
            let layer = state.as_ref().and_then(|state| side.layers.get_mut(state.layer));
            if let Some(layer) = layer {
                layer.tally.add(&tally);
            }
        }
        let (path, aspects) = (shown(&path, &pair.path), pair.aspects.clone());
        changes.push(FileChange { path, change, aspects, a: in_a, b: in_b });
    }
    for side in [&mut old, &mut new] {
        side.layers.retain(|layer| layer.tally != Tally::default());
    }
    Ok(DiffReport { a: old, b: new, path, changes, total, compared_bytes })
}

/// `/a/b` for everything that means the same; `..` stays, since a link may be before it.
fn clean(path: &str) -> String {
    let parts: Vec<&str> =
        path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

/// The whole of a path that is `below` the one that is compared.
fn shown(path: &str, below: &[u8]) -> String {
    match below.is_empty() {
        true => path.to_owned(),
        false => format!("{}/{}", path.trim_end_matches('/'), String::from_utf8_lossy(below)),
    }
}

fn has_same_layers(a: &OpenImage, b: &OpenImage) -> bool {
    let digests = |opened: &OpenImage| {
        let layers = opened.variant.layers().iter();
        layers.map(|layer| (layer.digest, layer.size)).collect::<Vec<_>>()
    };
    digests(a) == digests(b)
}

/// What two images have above the layers that are the same in both from the bottom up, if all differences
/// are in that: as after building the same thing again. `None` if what is below decides something.
async fn upper_parts(
    opener: &Opener,
    a: &OpenImage,
    b: &OpenImage,
) -> Result<Option<(Place, Place)>> {
    let pairs = a.variant.layers().iter().zip(b.variant.layers());
    let same =
        |one: &Descriptor, other: &Descriptor| (one.digest, one.size) == (other.digest, other.size);
    let first = pairs.take_while(|(one, other)| same(one, other)).count();
    if first == 0 {
        return Ok(None);
    }
    let (one, other) =
        futures_util::try_join!(opener.upper_tree(a, first), opener.upper_tree(b, first))?;
    if !stands_alone(&one) || !stands_alone(&other) {
        return Ok(None);
    }
    let root = || Some(Vec::new());
    let (one, other) = (Place::new(one, root(), first), Place::new(other, root(), first));
    Ok(has_same_shape(&one, &other).then_some((one, other)))
}

/// Whether what the layers of a tree do to what is below them is told by the tree that they make, by their
/// paths alone: nothing of what is below is removed or has further names, and what is a directory has been
/// nothing else.
fn stands_alone(tree: &Tree) -> bool {
    let rootfs = tree.rootfs();
    let mut nodes = (0..rootfs.node_count()).filter_map(|number| rootfs.node(number));
    let keeps_what_is_below = |index: &Arc<LayerIndex>| {
        let table = index.table();
        table.entries().all(|entry| {
            let is_dir = |node| rootfs.attributes(node).kind == Kind::Dir;
            !table.name(entry.path).starts_with(b".wh.")
                && (entry.kind == Kind::Dir
                    || !rootfs.find(&table.full_path(entry.path)).is_some_and(is_dir))
        })
    };
    nodes.all(|node| rootfs.broken(node).is_none())
        && rootfs.layers().iter().all(keeps_what_is_below)
}

/// Whether two trees have the same paths, directories at the same ones, and no entry for the same ones of
/// these.
fn has_same_shape(a: &Place, b: &Place) -> bool {
    let (of_a, of_b) = (a.tree.rootfs(), b.tree.rootfs());
    let mut waiting = vec![(of_a.root(), of_b.root())];
    while let Some((in_a, in_b)) = waiting.pop() {
        let is_dir = |rootfs: &Rootfs, node| rootfs.attributes(node).kind == Kind::Dir;
        let is_same = of_a.name(in_a) == of_b.name(in_b)
            && is_dir(of_a, in_a) == is_dir(of_b, in_b)
            && of_a.is_implied(in_a) == of_b.is_implied(in_b)
            && of_a.entry_count(in_a) == of_b.entry_count(in_b);
        if !is_same {
            return false;
        }
        let entries = of_a.entries(in_a).zip(of_b.entries(in_b));
        waiting.extend(entries.map(|((_, in_a), (_, in_b))| (in_a, in_b)));
    }
    true
}

/// Reads what has to be read, in the order in which it is in the layers of the old image. Returns how many
/// bytes that were.
async fn compare_contents(a: &Tree, b: &Tree, pairs: &mut [Pair]) -> Result<u64> {
    let must_be_read = pairs.iter_mut().filter(|pair| pair.must_be_read);
    let nodes = must_be_read.filter_map(|pair| Some((pair.a?, pair.b?, pair)));
    let mut nodes: Vec<(Node, Node, &mut Pair)> = nodes.collect();
    nodes.sort_by_key(|(in_a, ..)| place(a, *in_a));
    let compared = nodes.iter().map(|(in_a, in_b, _)| is_same_content((a, *in_a), (b, *in_b)));
    // One after the other they would wait for a registry most of the time.
    let compared: Vec<(bool, u64)> =
        stream::iter(compared).buffered(AT_A_TIME).try_collect().await.map_err(Error::Image)?;
    for ((.., pair), (is_same, _)) in nodes.into_iter().zip(&compared) {
        if !is_same {
            pair.aspects.push(Aspect::Content);
            pair.aspects.sort_unstable();
        }
    }
    Ok(compared.iter().map(|(_, bytes)| bytes).sum())
}

/// An entry point of the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Reads `file` as a database of rpm.
    pub fn rpm_database(file: &[u8]) {
        let _ = super::rpm::packages(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_in_one_way() {
        for (path, expected) in [
            ("", "/"),
            ("/", "/"),
            ("etc", "/etc"),
            ("//etc/./a/", "/etc/a"),
            ("/a/../b", "/a/../b"),
        ] {
            assert_eq!(clean(path), expected);
        }
        assert_eq!(shown("/", b""), "/");
        assert_eq!(shown("/", b"a/b"), "/a/b");
        assert_eq!(shown("/etc", b"a"), "/etc/a");
    }
}
