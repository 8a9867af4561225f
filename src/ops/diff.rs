//! What differs between the files of two images, file by file, without pulling either.
//!
//! Both trees are walked side by side. What they say of a file (mode, owner, links, extended attributes)
//! is compared as it is; content is only read where its place does not tell whether it is the same
//! (`content.rs`). [`package_diff`] compares what package managers have noted instead (`packages.rs`).

mod content;
mod packages;
mod rpm;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

pub use packages::{PackageChange, PackageDiff, package_diff};

use super::{Error, NamedImage, OpenImage, Opener, Result, type_name};
use crate::{
    image::{Descriptor, Digest},
    layer::{Attributes, Kind, LayerIndex, Node, Rootfs},
    rootfs::{PathError, Tree},
};
use content::{Sameness, is_same_content, known_sameness, place};

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

/// What differs between two images.
#[derive(Clone, Debug, Serialize)]
pub struct DiffReport {
    /// The old image.
    pub a: Side,
    /// The new image.
    pub b: Side,
    /// What was compared of them.
    pub path: String,
    /// What differs, by path.
    pub changes: Vec<FileChange>,
    /// How much that is.
    pub total: Tally,
    /// Bytes of files that were read of either image to compare them.
    pub compared_bytes: u64,
}

/// One of two images.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// What it was called.
    pub image: String,
    /// Its name, by its digest.
    pub name: String,
    /// What it runs on, as in `linux/arm64/v8`.
    pub platform: String,
    /// Its layers from which something comes or that have something which is no longer there.
    pub layers: Vec<LayerTally>,
}

/// A layer, and what of the differences it has.
#[derive(Clone, Debug, Serialize)]
pub struct LayerTally {
    /// From 0 for the lowest.
    pub number: usize,
    /// The digest of the blob.
    pub digest: Digest,
    /// The line of the history that made it.
    pub created_by: Option<String>,
    /// What of the differences is in it.
    #[serde(flatten)]
    pub tally: Tally,
}

/// How much differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Files, directories and the like that only the new image has.
    pub added: u64,
    /// Their content, in bytes.
    pub added_bytes: u64,
    /// What only the old image has.
    pub removed: u64,
    /// Its content, in bytes.
    pub removed_bytes: u64,
    /// What both have, but not the same.
    pub changed: u64,
}

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Only the new image has it.
    Added,
    /// Only the old image has it.
    Removed,
    /// Both have it, but not the same.
    Changed,
}

/// What of a file is not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// What it is.
    Type,
    /// Its bytes.
    Content,
    /// Its permissions, with set-uid, set-gid and sticky.
    Mode,
    /// Its owner or group.
    Owner,
    /// Where the symbolic link leads.
    Target,
    /// Which other names it has, or how many (hard links).
    Links,
    /// Major or minor number of the device.
    Device,
    /// Its extended attributes.
    Xattrs,
    /// When it was modified.
    Mtime,
}

/// A file that differs.
#[derive(Clone, Debug, Serialize)]
pub struct FileChange {
    /// Its path.
    pub path: String,
    /// How it differs.
    pub change: Change,
    /// What is not the same, if both images have it.
    pub aspects: Vec<Aspect>,
    /// What it is in the old image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<FileState>,
    /// What it is in the new image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<FileState>,
}

/// What a file is in one of the images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileState {
    /// `file`, `directory`, `symlink`, `char`, `block` or `fifo`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Permissions in octal digits, with set-uid, set-gid and sticky.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file or of a symbolic link's target.
    pub size: u64,
    /// Names that it has.
    pub links: u32,
    /// When it was modified, in seconds since 1970.
    pub mtime: i64,
    /// Where it leads, if it is a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Major and minor number, if it is a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<(u16, u32)>,
    /// Names of its extended attributes, and their values as text.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
    /// The number of the layer that it comes from, from 0 for the lowest.
    pub layer: usize,
}

impl DiffReport {
    /// Whether nothing differs.
    pub fn is_same(&self) -> bool {
        self.changes.is_empty()
    }
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

impl Side {
    fn new(opened: &OpenImage) -> Self {
        let layers = opened.variant.layers().iter().enumerate().map(|(number, layer)| LayerTally {
            number,
            digest: layer.digest,
            created_by: opened.variant.created_by(number).map(str::to_owned),
            tally: Tally::default(),
        });
        Self {
            image: opened.shown.clone(),
            name: opened.image.name().to_string(),
            platform: opened.platform.clone(),
            layers: layers.collect(),
        }
    }

    /// For what is told by image only.
    fn without_layers(opened: &OpenImage) -> Self {
        Self { layers: Vec::new(), ..Self::new(opened) }
    }
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.added += other.added;
        self.added_bytes += other.added_bytes;
        self.removed += other.removed;
        self.removed_bytes += other.removed_bytes;
        self.changed += other.changed;
    }
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

/// A tree, and where in it the comparison begins.
struct Place {
    tree: Arc<Tree>,
    start: Option<Node>,
    /// The names of files with several, as seen from `start`; by the node that stands for all of them.
    names: HashMap<Node, Vec<Vec<u8>>>,
    /// The number of the lowest layer of the tree.
    first_layer: usize,
}

impl Place {
    async fn find(opened: &OpenImage, path: &str) -> Result<Self> {
        let tree = opened.whole_tree().await?;
        let found = opened.files.resolve(path.as_bytes(), true).await.map_err(Error::Image)?;
        let path = match found {
            Ok((of, node)) => Some(of.rootfs().path(node)),
            Err(PathError::Missing | PathError::NotADirectory) => None,
            Err(error) => return Err(Error::Path(error)),
        };
        Ok(Self::new(tree, path, 0))
    }

    fn new(tree: Arc<Tree>, path: Option<Vec<u8>>, first_layer: usize) -> Self {
        let rootfs = tree.rootfs();
        let start = path.as_ref().and_then(|path| rootfs.find(path));
        let path = path.unwrap_or_default();
        let mut names: HashMap<Node, Vec<Vec<u8>>> = HashMap::new();
        for node in (0..rootfs.node_count()).filter_map(|number| rootfs.node(number)) {
            let attributes = rootfs.attributes(node);
            if attributes.kind != Kind::Dir && attributes.links > 1 {
                let name = from(&path, rootfs.path(node));
                names.entry(rootfs.inode(node)).or_default().push(name);
            }
        }
        names.values_mut().for_each(|names| names.sort_unstable());
        Self { tree, start, names, first_layer }
    }

    /// The bytes of a file that `other` does not have. Of one with several names they count for the first,
    /// and not at all if `other` has something under one of them.
    fn own_bytes(&self, node: Node, path: &[u8], other: &Self) -> u64 {
        let attributes = self.tree.rootfs().attributes(node);
        if attributes.kind != Kind::File {
            return 0;
        }
        let names = self.names(node);
        let is_first = names.first().is_none_or(|first| first == path);
        let is_elsewhere = || names.iter().any(|name| other.has(name));
        if is_first && !is_elsewhere() { attributes.size } else { 0 }
    }

    /// Whether there is something at `path`, as seen from where the comparison begins.
    fn has(&self, path: &[u8]) -> bool {
        let rootfs = self.tree.rootfs();
        let mut parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty());
        self.start.and_then(|at| parts.try_fold(at, |at, part| rootfs.lookup(at, part))).is_some()
    }

    fn state(&self, node: Node) -> FileState {
        let rootfs = self.tree.rootfs();
        let of = rootfs.attributes(node);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        FileState {
            kind: type_name(of.kind),
            mode: format!("{:04o}", of.mode),
            uid: of.uid,
            gid: of.gid,
            size: of.size,
            links: of.links,
            mtime: of.mtime.secs,
            target: rootfs.symlink_target(node).map(text),
            device: matches!(of.kind, Kind::Char | Kind::Block).then_some(of.device),
            xattrs: rootfs.xattrs(node).map(|(name, value)| (text(name), text(value))).collect(),
            layer: self.first_layer + rootfs.content_layer(node),
        }
    }

    /// The names of a file that has several.
    fn names(&self, node: Node) -> &[Vec<u8>] {
        self.names.get(&self.tree.rootfs().inode(node)).map(Vec::as_slice).unwrap_or_default()
    }
}

/// A path as it is seen from `start`, if it is below that.
fn from(start: &[u8], path: Vec<u8>) -> Vec<u8> {
    let below = path.strip_prefix(start).and_then(|below| match start.is_empty() {
        true => Some(below),
        false => below.strip_prefix(b"/"),
    });
    below.map(<[u8]>::to_vec).unwrap_or(path)
}

/// Something that is in one of the trees or in both.
struct Pair {
    /// From where the comparison begins.
    path: Vec<u8>,
    a: Option<Node>,
    b: Option<Node>,
    /// What is not the same of what both have.
    aspects: Vec<Aspect>,
    /// Whether only reading tells if the content is the same.
    must_be_read: bool,
}

/// Goes through both trees side by side, in the order of the paths. Leaves out what is the same for sure.
fn walk(a: &Place, b: &Place, times: bool) -> Vec<Pair> {
    let mut found = Vec::new();
    let mut waiting = vec![(Vec::new(), a.start, b.start)];
    while let Some((path, in_a, in_b)) = waiting.pop() {
        let (mut aspects, mut must_be_read) = (Vec::new(), false);
        if let (Some(in_a), Some(in_b)) = (in_a, in_b) {
            aspects = differing(a, in_a, b, in_b, times);
            match known_sameness(&a.tree, in_a, &b.tree, in_b) {
                Sameness::Same => {}
                Sameness::Different => aspects.push(Aspect::Content),
                Sameness::Unknown => must_be_read = true,
            }
            aspects.sort_unstable();
        }
        let first = waiting.len();
        for (name, in_a, in_b) in merged(&entries(&a.tree, in_a), &entries(&b.tree, in_b)) {
            let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
            waiting.push(([&path, slash, name].concat(), in_a, in_b));
        }
        // The last one is taken first.
        waiting[first..].reverse();
        if in_a.is_none() || in_b.is_none() || must_be_read || !aspects.is_empty() {
            found.push(Pair { path, a: in_a, b: in_b, aspects, must_be_read });
        }
    }
    found
}

type Names<'a> = Vec<(&'a [u8], Node)>;

fn entries(tree: &Tree, node: Option<Node>) -> Names<'_> {
    node.map(|node| tree.rootfs().entries(node).collect()).unwrap_or_default()
}

/// The entries of two directories, which are in the order of their names, as those of one.
fn merged<'a>(a: &Names<'a>, b: &Names<'a>) -> Vec<(&'a [u8], Option<Node>, Option<Node>)> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut all = Vec::new();
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return all,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let in_a = if order.is_le() { a.next() } else { None };
        let in_b = if order.is_ge() { b.next() } else { None };
        if let Some((name, _)) = in_a.or(in_b) {
            all.push((*name, in_a.map(|(_, node)| *node), in_b.map(|(_, node)| *node)));
        }
    }
}

/// What two files do not have in common, but for their content.
fn differing(a: &Place, in_a: Node, b: &Place, in_b: Node, times: bool) -> Vec<Aspect> {
    let (of_a, of_b) = (a.tree.rootfs(), b.tree.rootfs());
    let (one, other) = (of_a.attributes(in_a), of_b.attributes(in_b));
    let has_names = |attributes: &Attributes| attributes.kind != Kind::Dir;
    let xattrs = |tree: &Tree, node| -> BTreeMap<Vec<u8>, Vec<u8>> {
        let all = tree.rootfs().xattrs(node);
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let checks = [
        (Aspect::Type, one.kind != other.kind),
        // Linux has no permissions for symbolic links, and those who write archives note what they like.
        (Aspect::Mode, one.mode != other.mode && one.kind != Kind::Symlink),
        (Aspect::Owner, (one.uid, one.gid) != (other.uid, other.gid)),
        (Aspect::Target, of_a.symlink_target(in_a) != of_b.symlink_target(in_b)),
        (Aspect::Links, has_names(&one) && has_names(&other) && a.names(in_a) != b.names(in_b)),
        (Aspect::Device, one.device != other.device),
        (Aspect::Xattrs, xattrs(&a.tree, in_a) != xattrs(&b.tree, in_b)),
        (Aspect::Mtime, times && one.mtime != other.mtime),
    ];
    let is_other_thing = one.kind != other.kind;
    let counts = |aspect: Aspect| match aspect {
        // That it leads somewhere else, or is another device, says nothing more then.
        Aspect::Mode | Aspect::Target | Aspect::Links | Aspect::Device => !is_other_thing,
        _ => true,
    };
    let differing = checks.into_iter().filter(|(aspect, differs)| *differs && counts(*aspect));
    differing.map(|(aspect, _)| aspect).collect()
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
        assert_eq!(from(b"", b"a/b".to_vec()), b"a/b");
        assert_eq!(from(b"a", b"a/b".to_vec()), b"b");
        assert_eq!(from(b"a", b"ab/b".to_vec()), b"ab/b");
        assert_eq!(shown("/", b""), "/");
        assert_eq!(shown("/", b"a/b"), "/a/b");
        assert_eq!(shown("/etc", b"a"), "/etc/a");
    }
}
