//! The part of a mount below `.imgfs`: what is inside images.
//!
//! ```text
//! .imgfs/<registry>/<repository>:<tag>        -> <name>@<digest>
//! .imgfs/<registry>/<repository>@<digest>/    an image
//!     manifest.json  status.json
//!     rootfs                                  -> <platform>/rootfs
//!     <platform>/config.json  manifest.json
//!     <platform>/rootfs/                      a tree: what a container sees
//!     <platform>/layers/<number>/             a tree: what the layer has by itself
//! ```
//!
//! What is above the trees is known by its path, as in the rest of the mount. What is in a tree is
//! known by numbers: an inode's has a bit that says so, the number of the tree, and that of the node.
//! All of that is made of digests, so it is the same after a remount, and nothing has to be
//! remembered of a file for the kernel's sake.
//!
//! A tree is made when somebody looks into it, which takes a pass over each layer that nobody has
//! looked into before.

mod trees;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bytes::Bytes;

use super::{
    ABSENT, About, Attributes, Entry, FOR_GOOD, Found, Handle, Question, Settings, View, ViewError,
    below,
    names::{self, InsideForm, inside_path},
    table::Kind,
};
use crate::{
    backend::{self, Error, images_dir::published_time},
    catalogue::Catalogue,
    image::{Digest, Platform, Reference, is_referrers_tag},
    layer::{Kind as FileKind, Node},
    rootfs::{Files, Image, Images, Tree, Variant},
    util::locked,
};

pub(super) use trees::EarlyNames;
use trees::{inside_tree, open_node};

/// Says of a number that it is one of a node in a tree.
const TREE: u64 = 1 << 62;

/// Bits of the number of a tree; those of its nodes have 32.
const ID_BITS: u32 = 30;

const MANIFEST: &str = "manifest.json";
const CONFIG: &str = "config.json";
const STATUS: &str = "status.json";
const ROOTFS: &str = "rootfs";
const LAYERS: &str = "layers";

/// The number of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TreeId(u32);

/// Whether an inode is one of a tree.
pub(super) fn is_in_tree(ino: u64) -> bool {
    ino & TREE != 0
}

/// What the inside of images is, as far as anybody has looked.
pub(super) struct Inside {
    images: Images,
    platform: Platform,
    /// Where tags lead.
    catalogue: Catalogue,
    /// Images that somebody has looked into, as paths below `.imgfs`; whether they are links.
    seen: Mutex<BTreeMap<String, FileKind>>,
    trees: Mutex<HashMap<TreeId, Arc<Slot>>>,
    /// The tree that is shown in place of everything else.
    root: OnceLock<TreeId>,
}

/// A tree that may not have been made yet.
struct Slot {
    path: String,
    variant: Arc<Variant>,
    /// The layer that it is, if it is not all of them.
    layer: Option<usize>,
    files: Files,
    early: Arc<EarlyNames>,
}

impl Slot {
    /// Whether `tree` is all of it, and not one of its layers.
    fn is_made_of(&self, tree: &Arc<Tree>) -> bool {
        self.files.made().is_some_and(|made| Arc::ptr_eq(made, tree))
    }
}

/// What takes time to find out.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// Where a tag leads.
    Tag(Reference),
    /// What an image is.
    Image(Reference, Digest),
    /// What a platform of an image is.
    Platform(Arc<Image>, String),
    /// What has this path in a tree.
    Below(TreeId, String),
    /// The same of a path that is no text.
    Bytes(TreeId, Vec<u8>),
}

impl Wanted {
    /// Whether finding it out ends by itself when nothing comes: layers are looked into as long as
    /// something of them does.
    pub(super) fn ends_by_itself(&self) -> bool {
        matches!(self, Self::Below(..) | Self::Bytes(..))
    }
}

/// What a path inside an image leads to, without the trees.
enum Place {
    Directory(Vec<(String, FileKind)>),
    Link(String),
    File(Bytes),
    /// A file whose content changes.
    Fresh(Bytes),
    Tree(TreeId),
    /// This path in a tree.
    Below(TreeId, String),
    Nothing,
    Ask(Wanted),
}

impl Inside {
    pub(super) fn new(images: Images, catalogue: Catalogue, settings: &Settings) -> Self {
        Self {
            images,
            platform: settings.platform.clone(),
            catalogue,
            seen: Mutex::default(),
            trees: Mutex::default(),
            root: OnceLock::new(),
        }
    }

    fn slot(&self, id: TreeId) -> Option<Arc<Slot>> {
        locked(&self.trees).get(&id).cloned()
    }

    /// The tree, if it has been made.
    fn tree(&self, id: TreeId) -> Option<Arc<Tree>> {
        self.slot(id)?.files.made().cloned()
    }

    /// The number of a tree, which is told by what is in it.
    fn tree_id(
        &self,
        image: &Reference,
        platform: &str,
        variant: &Arc<Variant>,
        layer: Option<usize>,
    ) -> TreeId {
        let name = format!("{} {layer:?}", variant.manifest().digest());
        let digest = Digest::sha256(name.as_bytes());
        let mut head = [0; 4];
        head.copy_from_slice(&digest.as_bytes()[..4]);
        let mut id = TreeId(u32::from_be_bytes(head) >> (32 - ID_BITS));
        let mut trees = locked(&self.trees);
        loop {
            let same = |slot: &Arc<Slot>| {
                slot.layer == layer
                    && slot.variant.manifest().digest() == variant.manifest().digest()
            };
            match trees.get(&id) {
                Some(slot) if same(slot) => return id,
                Some(_) => id = TreeId((id.0 + 1) & ((1 << ID_BITS) - 1)),
                None => break,
            }
        }
        let path = match layer {
            None => format!("{image}/{platform}/{ROOTFS}"),
            Some(number) => format!("{image}/{platform}/{LAYERS}/{number}"),
        };
        let files = self.images.files(variant, layer);
        let slot = Slot {
            path: inside_path(&path),
            variant: variant.clone(),
            layer,
            files,
            early: Arc::default(),
        };
        trees.insert(id, Arc::new(slot));
        id
    }

    /// What the path `rest` in an image leads to.
    fn place(&self, name: &Reference, digest: Digest, rest: &str) -> Place {
        let Some(image) = self.images.known_image(&digest) else {
            return Place::Ask(Wanted::Image(name.clone(), digest));
        };
        let mut parts = rest.split('/');
        let first = parts.next().unwrap_or_default();
        let more: Vec<&str> = parts.collect();
        if more.is_empty() {
            match first {
                "" => return Place::Directory(entries_of(&image)),
                MANIFEST => return Place::File(image.manifest().bytes().clone()),
                STATUS => return Place::Fresh(self.status(&image)),
                ROOTFS => {
                    let platform = image.platform_for(&self.platform);
                    let platform = platform.or_else(|| image.platforms().next());
                    return platform
                        .map_or(Place::Nothing, |name| Place::Link(format!("{name}/{ROOTFS}")));
                }
                _ => {}
            }
        }
        if !image.platforms().any(|platform| platform == first) {
            // Another way to write it, such as `linux-arm64-v8`.
            let meant = first.replacen('-', "/", 2).parse().ok();
            let known = meant.and_then(|platform: Platform| image.platform_named(&platform));
            return match known.filter(|_| more.is_empty()) {
                Some(name) => Place::Link(name.to_owned()),
                None => Place::Nothing,
            };
        }
        if more.is_empty() {
            let files = [CONFIG, MANIFEST].map(|name| (name.to_owned(), FileKind::File));
            let dirs = [LAYERS, ROOTFS].map(|name| (name.to_owned(), FileKind::Dir));
            return Place::Directory([files, dirs].concat());
        }
        let Some(variant) = self.images.known_variant(&image, first) else {
            return Place::Ask(Wanted::Platform(image, first.to_owned()));
        };
        match more[..] {
            [MANIFEST] => Place::File(variant.manifest().bytes().clone()),
            [CONFIG] => Place::File(variant.config().clone()),
            [ROOTFS, ref below @ ..] => {
                let id = self.tree_id(name, first, &variant, None);
                Self::tree_place(id, below)
            }
            [LAYERS] => {
                let numbers = 0..variant.layer_count();
                let layers = numbers.map(|number| (number.to_string(), FileKind::Dir));
                Place::Directory(layers.collect())
            }
            [LAYERS, number, ref below @ ..] => match number.parse::<usize>() {
                // `00` is another name than `0`.
                Ok(at) if at < variant.layer_count() && number == at.to_string() => {
                    let id = self.tree_id(name, first, &variant, Some(at));
                    Self::tree_place(id, below)
                }
                _ => Place::Nothing,
            },
            _ => Place::Nothing,
        }
    }

    fn tree_place(id: TreeId, below: &[&str]) -> Place {
        match below {
            [] => Place::Tree(id),
            below => Place::Below(id, below.join("/")),
        }
    }

    fn status(&self, image: &Image) -> Bytes {
        let mut text = format!("{:#}", self.images.status(image));
        text.push('\n');
        text.into()
    }

    /// What of the images that somebody has looked into is in the directory `way`.
    fn seen_in(&self, way: &str) -> Vec<(String, FileKind)> {
        let seen = locked(&self.seen);
        let below = seen.iter().filter_map(|(name, kind)| {
            let rest = if way.is_empty() {
                name.as_str()
            } else {
                name.strip_prefix(way)?.strip_prefix('/')?
            };
            Some(match rest.split_once('/') {
                Some((directory, _)) => (directory.to_owned(), FileKind::Dir),
                None => (rest.to_owned(), *kind),
            })
        });
        below.collect()
    }

    async fn find_out(&self, wanted: &Wanted) -> backend::Result<()> {
        match wanted {
            Wanted::Tag(name) => {
                self.images.resolve(name).await?;
                locked(&self.seen).insert(name.to_string(), FileKind::Symlink);
            }
            Wanted::Image(name, digest) => {
                self.images.image(name.repository(), *digest).await?;
                locked(&self.seen).insert(name.to_string(), FileKind::Dir);
            }
            Wanted::Platform(image, platform) => {
                self.images.variant(image, platform).await?;
            }
            Wanted::Below(..) | Wanted::Bytes(..) => {}
        }
        Ok(())
    }
}

fn entries_of(image: &Image) -> Vec<(String, FileKind)> {
    let mut entries =
        vec![(MANIFEST.to_owned(), FileKind::File), (STATUS.to_owned(), FileKind::File)];
    entries.extend(image.platforms().map(|name| (name.to_owned(), FileKind::Dir)));
    if entries.len() > 2 {
        entries.push((ROOTFS.to_owned(), FileKind::Symlink));
    }
    entries
}

impl View {
    /// Shows the root file system of `image` in place of everything else. Fails if there is no such
    /// image, or not for the platform.
    pub async fn show_only(&self, image: &Reference) -> Result<(), ViewError> {
        let inside = self.inside.as_ref().ok_or(ViewError::Stale)?;
        let digest = inside.images.manifest(image).await?.digest();
        let opened = inside.images.image(image.repository(), digest).await?;
        let unfit = |reason: String| {
            Error::new("image", format_args!("opening {image}"), backend::Kind::Unfit(reason))
        };
        let platform = opened.platform_for(&inside.platform).or_else(|| {
            let mut all = opened.platforms();
            all.next().filter(|_| all.next().is_none())
        });
        let Some(platform) = platform else {
            let all: Vec<&str> = opened.platforms().collect();
            let (wanted, all) = (&inside.platform, all.join(", "));
            return Err(unfit(format!("it is not for {wanted}; --platform takes: {all}")).into());
        };
        let variant = inside.images.variant(&opened, platform).await?;
        let variant = variant.ok_or_else(|| unfit("it has no such platform".into()))?;
        let name = image.repository().pinned(digest);
        let id = inside.tree_id(&name, platform, &variant, None);
        // What is wrong with it is told now, and what is mounted never changes.
        self.made_tree(id).await?;
        let _ = inside.root.set(id);
        Ok(())
    }

    /// Whether nothing that is shown can change any more: it is one tree, which has been made.
    pub fn is_fixed(&self) -> bool {
        let root = self.inside.as_ref().and_then(|inside| inside.tree(*inside.root.get()?));
        root.is_some()
    }

    // --- names above the trees ---

    fn place(&self, path: &str) -> Place {
        let Some(inside) = &self.inside else { return Place::Nothing };
        match names::inside(path) {
            InsideForm::Way(_) => Place::Directory(Vec::new()),
            InsideForm::Tag(name) => match inside.catalogue.resolved(&name) {
                Some(digest) => Place::Link(link_to(&name, digest)),
                None => Place::Ask(Wanted::Tag(name)),
            },
            InsideForm::Image(name, digest, rest) => inside.place(&name, digest, rest),
            InsideForm::Nothing => Place::Nothing,
        }
    }

    /// What `path`, which is below `.imgfs`, leads to.
    pub(super) fn look_inside(&self, path: &str) -> Result<Found, ViewError> {
        let place = self.place(path);
        Ok(match place {
            Place::Nothing => Found::Absent(ABSENT),
            Place::Ask(wanted) => {
                Found::Ask(Question { path: path.to_owned(), about: About::Inside(wanted) })
            }
            // What its root looks like can be told soon.
            Place::Tree(id) if self.can_be_made(id) => {
                let about = About::Inside(Wanted::Below(id, String::new()));
                Found::Ask(Question { path: path.to_owned(), about })
            }
            Place::Tree(id) => Found::Entry(self.entry_of_root(id)),
            Place::Below(id, rest) => match inside_tree(&self.inside, id) {
                Some(tree) => self.found_in_tree(id, &tree, tree.rootfs().find(rest.as_bytes()))?,
                None => {
                    let about = About::Inside(Wanted::Below(id, rest));
                    Found::Ask(Question { path: path.to_owned(), about })
                }
            },
            place => {
                let ino = self.tell(path, &content_of(&place), Kind::Inside);
                Found::Entry(self.entry_of_place(ino, &place))
            }
        })
    }

    fn entry_of_place(&self, ino: u64, place: &Place) -> Entry {
        let time = published_time(None);
        match place {
            Place::Directory(_) => {
                Entry { attributes: Attributes::directory(ino, time), ttl: FOR_GOOD }
            }
            Place::Link(target) => {
                let attributes = Attributes::symlink(ino, target.len() as u64);
                let is_tag = target.contains('@');
                let ttl = if is_tag { self.settings.tag_ttl } else { FOR_GOOD };
                Entry { attributes, ttl }
            }
            Place::File(content) => {
                let attributes = Attributes::file(ino, content.len() as u64, time);
                Entry { attributes, ttl: FOR_GOOD }
            }
            Place::Fresh(content) => {
                let attributes = Attributes::file(ino, content.len() as u64, time);
                Entry { attributes, ttl: Duration::ZERO }
            }
            Place::Tree(id) => self.entry_of_root(*id),
            Place::Below(..) | Place::Nothing | Place::Ask(_) => {
                Entry { attributes: Attributes::file(ino, 0, time), ttl: Duration::ZERO }
            }
        }
    }

    /// Finds out what it takes, and answers the lookup again.
    pub(super) async fn find_out_inside(
        &self,
        path: &str,
        wanted: &Wanted,
    ) -> Result<Found, ViewError> {
        let Some(inside) = &self.inside else { return Ok(Found::Absent(ABSENT)) };
        let mut wanted = wanted.clone();
        loop {
            match &wanted {
                Wanted::Below(id, rest) => return self.find_out_below(path, *id, rest).await,
                Wanted::Bytes(id, rest) => {
                    let tree = self.made_tree(*id).await?;
                    return self.found_in_tree(*id, &tree, tree.rootfs().find(rest));
                }
                Wanted::Tag(_) | Wanted::Image(..) | Wanted::Platform(..) => {}
            }
            match inside.find_out(&wanted).await {
                Err(error) if error.is_not_found() => return Ok(Found::Absent(ABSENT)),
                done => done?,
            }
            match self.look_inside(path)? {
                Found::Ask(Question { about: About::Inside(next), .. }) => {
                    // A tag holds for no time at all if the user wants that.
                    if let (Wanted::Tag(name), Wanted::Tag(_)) = (&wanted, &next) {
                        let target = inside.catalogue.last_resolved(name);
                        let Some(digest) = target else { return Ok(Found::Absent(ABSENT)) };
                        let link = Place::Link(link_to(name, digest));
                        let ino = self.tell(path, &content_of(&link), Kind::Inside);
                        return Ok(Found::Entry(self.entry_of_place(ino, &link)));
                    }
                    wanted = next;
                }
                found => return Ok(found),
            }
        }
    }

    pub(super) fn attributes_inside(&self, ino: u64, path: &str) -> Result<Entry, ViewError> {
        match self.place(path) {
            Place::Nothing => Err(ViewError::Stale),
            Place::Below(id, rest) => self.attributes_below(ino, id, &rest),
            // It is a tag, which may lead elsewhere by now.
            Place::Ask(_) => {
                let attributes = Attributes::symlink(ino, 0);
                Ok(Entry { attributes, ttl: Duration::ZERO })
            }
            place => Ok(self.entry_of_place(ino, &place)),
        }
    }

    pub(super) fn open_inside(&self, path: &str) -> Result<Handle, ViewError> {
        match self.place(path) {
            Place::File(content) => Ok(Handle::Content(content)),
            Place::Fresh(content) => Ok(Handle::Fresh(content)),
            Place::Below(id, rest) => {
                let (tree, node) = self.node_below(id, &rest)?;
                open_node(&tree, node)
            }
            Place::Directory(_) | Place::Tree(_) => {
                Err(ViewError::Wrong(std::io::ErrorKind::IsADirectory))
            }
            Place::Link(_) | Place::Nothing | Place::Ask(_) => Err(ViewError::Stale),
        }
    }

    /// Where the symbolic link `ino` leads.
    pub fn link_target(&self, ino: u64) -> Result<Bytes, ViewError> {
        let wrong = || ViewError::Wrong(std::io::ErrorKind::InvalidInput);
        let of_node = |tree: &Tree, node: Node| {
            let target = tree.rootfs().symlink_target(node);
            target.map(Bytes::copy_from_slice).ok_or_else(wrong)
        };
        if let Some((id, node)) = self.in_tree(ino) {
            let tree = self.tree(id)?;
            return of_node(&tree, tree.rootfs().node(node).ok_or(ViewError::Stale)?);
        }
        let path = self.path_of(ino)?;
        match self.place(&path) {
            Place::Link(target) => Ok(target.into()),
            Place::Below(id, rest) => {
                let (tree, node) = self.node_below(id, &rest)?;
                of_node(&tree, node)
            }
            // The time for which it holds is over: what it was is better than nothing.
            Place::Ask(Wanted::Tag(name)) => {
                let inside = self.inside.as_ref().ok_or(ViewError::Stale)?;
                let digest = inside.catalogue.last_resolved(&name).ok_or(ViewError::Stale)?;
                Ok(link_to(&name, digest).into())
            }
            _ => Err(wrong()),
        }
    }

    /// What is in a directory below `.imgfs` that is no tree: names and kinds.
    pub(super) fn names_inside(&self, path: &str) -> Result<Vec<(String, FileKind)>, ViewError> {
        let InsideForm::Way(way) = names::inside(path) else {
            return match self.place(path) {
                Place::Directory(entries) => Ok(entries),
                _ => Err(ViewError::Stale),
            };
        };
        let mut entries = self.inside.as_ref().map_or(Vec::new(), |inside| inside.seen_in(way));
        for (name, is_directory) in self.names_in(way)?.entries {
            let path = below(way, &name);
            if !is_directory || !matches!(names::inside(&inside_path(&path)), InsideForm::Way(_)) {
                continue;
            }
            let mut has_images = false;
            let mut digests = Vec::new();
            for (image, _) in self.names_in(&format!("{path}/manifests"))?.entries {
                match image.parse::<Digest>() {
                    Ok(_) => digests.push((format!("{name}@{image}"), FileKind::Dir)),
                    Err(_) if is_referrers_tag(&image) => {}
                    Err(_) => {
                        has_images = true;
                        entries.push((format!("{name}:{image}"), FileKind::Symlink));
                    }
                }
            }
            // Most digests are those of what tags lead to, or of platforms.
            if !has_images {
                has_images = !digests.is_empty();
                entries.append(&mut digests);
            }
            let has_more = self
                .names_in(&path)?
                .entries
                .iter()
                .any(|(name, is_directory)| *is_directory && name != "manifests");
            if has_more || !has_images {
                entries.push((name, FileKind::Dir));
            }
        }
        Ok(entries)
    }
}

/// Where a tag that leads to `digest` points, in its own directory.
fn link_to(name: &Reference, digest: Digest) -> String {
    let last = name.repository().path().rsplit('/').next().unwrap_or_default();
    format!("{last}@{digest}")
}

/// What tells one content of a path from the next.
fn content_of(place: &Place) -> Vec<u8> {
    match place {
        Place::Link(target) => target.as_bytes().to_vec(),
        _ => Vec::new(),
    }
}
