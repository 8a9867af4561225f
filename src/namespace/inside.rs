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
//! .imgfs/.trees/<chain>/                      a tree: what the lowest layers of an image make, by their content
//! ```
//!
//! What is above the trees is known by its path, as in the rest of the mount. What is in a tree is
//! known by numbers: an inode's has a bit that says so, the number of the tree, and that of the node.
//! All of that is made of digests, so it is the same after a remount, and nothing has to be
//! remembered of a file for the kernel's sake.
//!
//! A tree is made when somebody looks into it, which takes a scan of each layer that nobody has
//! looked into before. It may be let go when memory is short. Of a tree of which the kernel knows anything
//! a short record stays that says what it is of, so that it is made again when the kernel speaks of it;
//! of what is above the trees, the path says that. What cannot be answered without that is answered by
//! `..._later`, which may take its time, in place of `..._now`.

mod chains;
mod trees;

use std::{
    any::Any,
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use lru::LruCache;

use super::{
    ABSENT, Attributes, Entry, FOR_GOOD, Found, Handle, Question, Settings, ViewError, below,
    inodes::{Inodes, Kind},
    names::{self, InsideForm, inside_path},
    repositories::Repositories,
    values::About,
};
use crate::{
    backend::{self, Error, images_dir::published_time},
    catalogue::Catalogue,
    image::{ChainId, Digest, Platform, Reference, is_referrers_tag},
    layer::{Kind as FileKind, Node},
    rootfs::{Files, Image, Images, Tree, Variant},
    util::{Kept, locked},
};

pub(super) use trees::EarlyNames;
use trees::open_node;

/// Says of a number that it is one of a node in a tree.
const TREE: u64 = 1 << 62;

/// Bits of the number of a tree; those of its nodes have 32.
const ID_BITS: u32 = 30;

const MANIFEST: &str = "manifest.json";
const CONFIG: &str = "config.json";
const STATUS: &str = "status.json";
const ROOTFS: &str = "rootfs";
const LAYERS: &str = "layers";

/// Tags of which is remembered where they lead, and images that are listed for having been looked into.
const MAX_NAMES: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 14) - 1);

/// With so many trees, what the kernel was told by its path is not remembered any longer than the kernel does.
const MAX_EARLY_TREES: usize = 1024;

/// Trees of which is remembered what they are, below which nobody looks for those that are not needed.
const SWEEP_FROM: usize = 64;

/// The number of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TreeId(u32);

/// Whether an inode is one of a tree.
pub(super) fn is_in_tree(ino: u64) -> bool {
    ino & TREE != 0
}

/// The tree that an inode is in by its number.
pub(super) fn tree_of(ino: u64) -> Option<TreeId> {
    // Of the upper half what is the tree's.
    let id = (ino >> 32) as u32 & ((1 << ID_BITS) - 1);
    is_in_tree(ino).then_some(TreeId(id))
}

/// What the inside of images is, as far as anybody has looked.
pub(super) struct Inside {
    inodes: Arc<Inodes>,
    /// Which names are listed beside `.imgfs`: they are listed in it, too.
    repositories: Arc<Repositories>,
    images: Images,
    platform: Platform,
    tag_ttl: Duration,
    /// Where tags lead.
    catalogue: Catalogue,
    /// Images that somebody has looked into, as paths below `.imgfs`; whether they are links.
    seen: Mutex<LruCache<String, FileKind>>,
    /// Trees that the kernel may know something of.
    records: Mutex<Records>,
    slots: Kept<TreeId, Slot>,
    /// The tree that is shown in place of everything else.
    root: OnceLock<(TreeId, Arc<Tree>)>,
}

/// Something that is in use, whatever it is, as long as this exists.
pub(super) type InUse = Arc<dyn Any + Send + Sync>;

#[derive(Default)]
struct Records {
    by_id: HashMap<TreeId, Record>,
    /// With so many, those are removed that are not needed.
    sweep_at: usize,
}

/// What is remembered of a tree as long as the kernel knows anything in it.
struct Record {
    /// Where it is in the mount.
    path: Box<str>,
    of: TreeOf,
    early: Arc<EarlyNames>,
    /// How often the kernel has been told of something in it, and has not forgotten it.
    told: u64,
}

/// What a tree is of: what a platform or a chain of layers is known by, and the layer if it is not all of them.
type TreeOf = (Digest, Option<usize>);

/// A tree that may not have been made.
struct Slot {
    files: Files,
    early: Arc<EarlyNames>,
}

impl Slot {
    /// Whether `tree` is all of it, and not one of its layers.
    fn is_made_of(&self, tree: &Arc<Tree>) -> bool {
        self.files.made().is_some_and(|made| Arc::ptr_eq(&made, tree))
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
    /// What a chain of layers is.
    Chain(ChainId),
    /// What has this path in a tree.
    Below(TreeId, String),
    /// What has this name in a node of a tree.
    Named(TreeId, u32, Vec<u8>),
    /// What has this name, which is no text, in the directory with this path.
    NamedBelow(String, Vec<u8>),
}

impl Wanted {
    /// Whether finding it out ends by itself when nothing comes: layers are looked into as long as
    /// something of them does.
    pub(super) fn ends_by_itself(&self) -> bool {
        matches!(self, Self::Below(..) | Self::Named(..) | Self::NamedBelow(..))
    }
}

/// What a path inside an image leads to, without the trees.
pub(super) enum Place {
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
    pub(super) fn new(
        inodes: Arc<Inodes>,
        repositories: Arc<Repositories>,
        images: Images,
        catalogue: Catalogue,
        settings: &Settings,
    ) -> Self {
        Self {
            inodes,
            repositories,
            images,
            platform: settings.platform.clone(),
            tag_ttl: settings.tag_ttl,
            catalogue,
            seen: Mutex::new(LruCache::new(MAX_NAMES)),
            records: Mutex::default(),
            slots: Kept::new(&settings.budget),
            root: OnceLock::new(),
        }
    }

    /// Keeps what was read when images started.
    pub(super) fn finish(&self) {
        self.images.finish_starts();
    }

    /// The tree, if it has been made and not been let go.
    pub(super) fn tree(&self, id: TreeId) -> Option<Arc<Tree>> {
        self.slots.get(&id)?.files.made()
    }

    /// A tree that may not have been made, opened now if it has been let go.
    async fn slot(&self, id: TreeId) -> Result<Arc<Slot>, ViewError> {
        if let Some(slot) = self.slots.get(&id) {
            return Ok(slot);
        }
        let known = locked(&self.records).by_id.get(&id).map(|r| (r.path.clone(), r.of.1));
        let (path, layer) = known.ok_or(ViewError::Stale)?;
        if let InsideForm::Chain(chain, _) = names::inside(&path) {
            return self.slot_of_chain(&chain).await;
        }
        let InsideForm::Image(name, digest, rest) = names::inside(&path) else {
            return Err(ViewError::Stale);
        };
        let platform = rest.split('/').next().unwrap_or_default();
        let image = self.images.image(name.repository(), digest).await?;
        let variant = self.images.variant(&image, platform).await?.ok_or(ViewError::Stale)?;
        let id = self.tree_id(&name, platform, &variant, layer);
        self.slots.get(&id).ok_or(ViewError::Stale)
    }

    /// Where a tree is in the mount.
    pub(super) fn path(&self, id: TreeId) -> Option<Box<str>> {
        locked(&self.records).by_id.get(&id).map(|record| record.path.clone())
    }

    /// What of a tree the kernel knows by its path.
    pub(super) fn early(&self, id: TreeId) -> Option<Arc<EarlyNames>> {
        locked(&self.records).by_id.get(&id).map(|record| record.early.clone())
    }

    /// Notes that the kernel is told of something in a tree once more.
    fn told(&self, id: TreeId) {
        if let Some(record) = locked(&self.records).by_id.get_mut(&id) {
            record.told += 1;
        }
    }

    /// Notes that the kernel forgets so many times that it was told of something in a tree.
    pub(super) fn forgotten(&self, id: TreeId, times: u64) {
        let Records { by_id, .. } = &mut *locked(&self.records);
        if let Some(record) = by_id.get_mut(&id) {
            record.told = record.told.saturating_sub(times);
            // What was told by its path keeps its number, for file systems that lie on top.
            if record.told == 0 && record.early.is_empty() {
                by_id.remove(&id);
            }
        }
    }

    /// The number of a tree, which is told by what is in it.
    fn tree_id(
        &self,
        image: &Reference,
        platform: &str,
        variant: &Arc<Variant>,
        layer: Option<usize>,
    ) -> TreeId {
        self.tree_id_at(variant, layer, || match layer {
            None => format!("{image}/{platform}/{ROOTFS}"),
            Some(number) => format!("{image}/{platform}/{LAYERS}/{number}"),
        })
    }

    /// The same of a tree that is at `path`, below `.imgfs`.
    fn tree_id_at(
        &self,
        variant: &Arc<Variant>,
        layer: Option<usize>,
        path: impl FnOnce() -> String,
    ) -> TreeId {
        let name = format!("{} {layer:?}", variant.key());
        let digest = Digest::sha256(name.as_bytes());
        let mut head = [0; 4];
        head.copy_from_slice(&digest.as_bytes()[..4]);
        let mut id = TreeId(u32::from_be_bytes(head) >> (32 - ID_BITS));
        let of = (variant.key(), layer);
        let records = &mut *locked(&self.records);
        while records.by_id.get(&id).is_some_and(|record| record.of != of) {
            id = TreeId((id.0 + 1) & ((1 << ID_BITS) - 1));
        }
        if records.by_id.len() >= records.sweep_at {
            let keeps_early = records.by_id.len() < MAX_EARLY_TREES;
            records.by_id.retain(|id, record| {
                record.told > 0
                    || self.slots.contains(id)
                    || (keeps_early && !record.early.is_empty())
            });
            records.sweep_at = (records.by_id.len() * 2).max(SWEEP_FROM);
        }
        let record = records.by_id.entry(id).or_insert_with(|| {
            let path = inside_path(&path()).into();
            Record { path, of, early: Arc::default(), told: 0 }
        });
        if self.slots.get(&id).is_none() {
            let files = self.images.files(variant, layer);
            let slot = Arc::new(Slot { files, early: record.early.clone() });
            self.slots.insert(id, &slot);
        }
        id
    }

    /// What the path `rest` in an image leads to.
    fn place_in_image(&self, name: &Reference, digest: Digest, rest: &str) -> Place {
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

    /// Finds out what it takes, which is known as long as the result is in use.
    async fn make_known(&self, wanted: &Wanted) -> backend::Result<InUse> {
        Ok(match wanted {
            Wanted::Tag(name) => {
                self.images.resolve(name).await?;
                locked(&self.seen).put(name.to_string(), FileKind::Symlink);
                Arc::new(())
            }
            Wanted::Image(name, digest) => {
                let image = self.images.image(name.repository(), *digest).await?;
                locked(&self.seen).put(name.to_string(), FileKind::Dir);
                image
            }
            Wanted::Platform(image, platform) => {
                Arc::new((image.clone(), self.images.variant(image, platform).await?))
            }
            Wanted::Chain(chain) => Arc::new(self.images.chain(chain).await?),
            Wanted::Below(..) | Wanted::Named(..) | Wanted::NamedBelow(..) => Arc::new(()),
        })
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

impl Inside {
    /// Shows the root file system of `image` in place of everything else. Fails if there is no such
    /// image, or not for the platform.
    pub(super) async fn show_only(&self, image: &Reference) -> Result<(), ViewError> {
        let digest = self.images.manifest(image).await?.digest();
        let opened = self.images.image(image.repository(), digest).await?;
        let unfit = |reason: String| {
            Error::new("image", format_args!("opening {image}"), backend::Kind::Unfit(reason))
        };
        let platform = opened.platform_for(&self.platform).or_else(|| {
            let mut all = opened.platforms();
            all.next().filter(|_| all.next().is_none())
        });
        let Some(platform) = platform else {
            let all: Vec<&str> = opened.platforms().collect();
            let (wanted, all) = (&self.platform, all.join(", "));
            return Err(unfit(format!("it is not for {wanted}; --platform takes: {all}")).into());
        };
        let variant = self.images.variant(&opened, platform).await?;
        let variant = variant.ok_or_else(|| unfit("it has no such platform".into()))?;
        let name = image.repository().pinned(digest);
        let id = self.tree_id(&name, platform, &variant, None);
        // What is wrong with it is told now, and what is mounted never changes.
        let tree = self.made_tree(id).await?;
        self.told(id);
        let _ = self.root.set((id, tree));
        Ok(())
    }

    /// Whether nothing that is shown can change any more: it is one tree, which has been made.
    pub(super) fn is_fixed(&self) -> bool {
        self.root.get().is_some()
    }

    /// Whether all that is shown is fixed and every file of it can be opened.
    pub(super) fn opens_every_file(&self) -> bool {
        self.root.get().is_some_and(|(_, tree)| !tree.rootfs().has_broken())
    }

    // --- names above the trees ---

    /// What `path`, which is below `.imgfs`, is, if that can be told now.
    pub(super) fn place_now(&self, path: &str) -> Option<Place> {
        match self.place(path) {
            Place::Ask(Wanted::Image(..) | Wanted::Platform(..) | Wanted::Chain(_)) => None,
            place => Some(place),
        }
    }

    /// The same, however long that takes; and what has to be in use so that it stays known.
    pub(super) async fn place_later(&self, path: &str) -> Result<(Place, Vec<InUse>), ViewError> {
        let mut in_use = Vec::new();
        loop {
            match self.place(path) {
                Place::Ask(
                    wanted @ (Wanted::Image(..) | Wanted::Platform(..) | Wanted::Chain(_)),
                ) => {
                    in_use.push(self.make_known(&wanted).await?);
                }
                place => return Ok((place, in_use)),
            }
        }
    }

    fn place(&self, path: &str) -> Place {
        match names::inside(path) {
            InsideForm::Way(_) => Place::Directory(Vec::new()),
            InsideForm::Tag(name) => match self.catalogue.resolved(&name) {
                Some(digest) => Place::Link(link_to(&name, digest)),
                None => Place::Ask(Wanted::Tag(name)),
            },
            InsideForm::Image(name, digest, rest) => self.place_in_image(&name, digest, rest),
            InsideForm::Chains => self.place_of_chains(),
            InsideForm::Chain(chain, rest) => self.place_in_chain(&chain, rest),
            InsideForm::Nothing => Place::Nothing,
        }
    }

    /// What `path`, which is below `.imgfs`, leads to.
    pub(super) fn look(&self, path: &str) -> Result<Found, ViewError> {
        let place = self.place(path);
        Ok(match place {
            Place::Nothing => Found::Absent(chains::absent(path)),
            Place::Ask(wanted) => {
                Found::Ask(Question { path: path.to_owned(), about: About::Inside(wanted) })
            }
            Place::Tree(id) => match self.tree(id) {
                Some(tree) => self.found_in_tree(id, &tree, Some(tree.rootfs().root()))?,
                // What its root looks like can be told soon.
                None => {
                    let about = About::Inside(Wanted::Below(id, String::new()));
                    Found::Ask(Question { path: path.to_owned(), about })
                }
            },
            Place::Below(id, rest) => match self.tree(id) {
                Some(tree) => self.found_in_tree(id, &tree, tree.rootfs().find(rest.as_bytes()))?,
                None => {
                    let about = About::Inside(Wanted::Below(id, rest));
                    Found::Ask(Question { path: path.to_owned(), about })
                }
            },
            place => {
                let ino = self.inodes.tell(path, &content_of(&place), Kind::Inside);
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
                let ttl = if is_tag { self.tag_ttl } else { FOR_GOOD };
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
            Place::Tree(_) | Place::Below(..) | Place::Nothing | Place::Ask(_) => {
                Entry { attributes: Attributes::file(ino, 0, time), ttl: Duration::ZERO }
            }
        }
    }

    /// Finds out what it takes, and answers the lookup again.
    pub(super) async fn find_out(&self, path: &str, wanted: &Wanted) -> Result<Found, ViewError> {
        let mut wanted = wanted.clone();
        let mut in_use = Vec::new();
        loop {
            match &wanted {
                Wanted::Below(id, rest) => return self.find_out_below(path, *id, rest).await,
                Wanted::Named(id, node, name) => {
                    let tree = self.made_tree(*id).await?;
                    let rootfs = tree.rootfs();
                    let found = rootfs.node(*node).and_then(|node| rootfs.lookup(node, name));
                    return self.found_in_tree(*id, &tree, found);
                }
                Wanted::NamedBelow(above, name) => {
                    let (place, _in_use) = self.place_later(above).await?;
                    let (id, rest) = match place {
                        Place::Below(id, rest) => (id, rest),
                        Place::Tree(id) => (id, String::new()),
                        _ => return Ok(Found::Absent(ABSENT)),
                    };
                    let tree = self.made_tree(id).await?;
                    let path = [rest.as_bytes(), b"/", name].concat();
                    return self.found_in_tree(id, &tree, tree.rootfs().find(&path));
                }
                Wanted::Tag(_) | Wanted::Image(..) | Wanted::Platform(..) | Wanted::Chain(_) => {}
            }
            match self.make_known(&wanted).await {
                Err(error) if error.is_not_found() => return Ok(Found::Absent(ABSENT)),
                done => in_use.push(done?),
            }
            match self.look(path)? {
                Found::Ask(Question { about: About::Inside(next), .. }) => {
                    // A tag holds for no time at all if the user wants that.
                    if let (Wanted::Tag(name), Wanted::Tag(_)) = (&wanted, &next) {
                        let target = self.catalogue.last_resolved(name);
                        let Some(digest) = target else { return Ok(Found::Absent(ABSENT)) };
                        let link = Place::Link(link_to(name, digest));
                        let ino = self.inodes.tell(path, &content_of(&link), Kind::Inside);
                        return Ok(Found::Entry(self.entry_of_place(ino, &link)));
                    }
                    wanted = next;
                }
                found => return Ok(found),
            }
        }
    }

    /// The attributes of `ino`, which is `place`, if they can be told now.
    pub(super) fn attributes_of_place(
        &self,
        ino: u64,
        place: &Place,
    ) -> Result<Option<Entry>, ViewError> {
        match place {
            Place::Nothing => Err(ViewError::Stale),
            Place::Below(id, rest) => Ok(self.attributes_below(ino, *id, rest)),
            // It is a tag, which may lead elsewhere by now.
            Place::Ask(_) => {
                let attributes = Attributes::symlink(ino, 0);
                Ok(Some(Entry { attributes, ttl: Duration::ZERO }))
            }
            place => Ok(Some(self.entry_of_place(ino, place))),
        }
    }

    pub(super) async fn attributes_later(&self, ino: u64) -> Result<Entry, ViewError> {
        if let Some((id, node)) = self.in_tree(ino) {
            return self.attributes_in_tree_later(id, node).await;
        }
        let (place, _in_use) = self.place_later(&self.inodes.path_of(ino)?).await?;
        if let Place::Below(id, rest) = &place {
            let _in_use = self.node_below_later(*id, rest).await?;
            return self.attributes_below(ino, *id, rest).ok_or(ViewError::Stale);
        }
        self.attributes_of_place(ino, &place)?.ok_or(ViewError::Stale)
    }

    /// Opens the file that is `place`, if that takes no time.
    pub(super) fn open_place(&self, place: &Place) -> Result<Option<Handle>, ViewError> {
        Ok(Some(match place {
            Place::File(content) => Handle::Content(content.clone()),
            Place::Fresh(content) => Handle::Fresh(content.clone()),
            Place::Below(id, rest) => match self.node_below(*id, rest) {
                Some((tree, node)) => open_node(&tree, node)?,
                None => return Ok(None),
            },
            Place::Directory(_) | Place::Tree(_) => {
                return Err(ViewError::Wrong(std::io::ErrorKind::IsADirectory));
            }
            Place::Link(_) | Place::Nothing | Place::Ask(_) => return Err(ViewError::Stale),
        }))
    }

    /// Opens the file `ino`, if it is inside an image, however long that takes.
    pub(super) async fn open_later(&self, ino: u64) -> Result<Option<Handle>, ViewError> {
        if let Some((id, node)) = self.in_tree(ino) {
            let tree = self.made_tree(id).await?;
            return open_node(&tree, tree.rootfs().node(node).ok_or(ViewError::Stale)?).map(Some);
        }
        let path = self.inodes.path_of(ino)?;
        if names::form(&path) != names::Form::Inside {
            return Ok(None);
        }
        match self.place_later(&path).await? {
            (Place::Below(id, rest), _in_use) => {
                let (tree, node) = self.node_below_later(id, &rest).await?;
                open_node(&tree, node).map(Some)
            }
            (place, _in_use) => self.open_place(&place),
        }
    }

    /// Where the symbolic link `ino` leads, if that can be told now. `None` if [`Inside::link_target`] has
    /// to find it out.
    pub(super) fn link_target_now(&self, ino: u64) -> Result<Option<Bytes>, ViewError> {
        if let Some((id, node)) = self.in_tree(ino) {
            let Some(tree) = self.tree(id) else { return Ok(None) };
            let node = tree.rootfs().node(node).ok_or(ViewError::Stale)?;
            return target_of(&tree, node).map(Some);
        }
        match self.place_now(&self.inodes.path_of(ino)?) {
            Some(Place::Link(target)) => Ok(Some(target.into())),
            Some(Place::Below(id, rest)) => match self.node_below(id, &rest) {
                Some((tree, node)) => target_of(&tree, node).map(Some),
                None => Ok(None),
            },
            // The time for which it holds is over: what it was is better than nothing.
            Some(Place::Ask(Wanted::Tag(name))) => {
                let digest = self.catalogue.last_resolved(&name);
                Ok(digest.map(|digest| link_to(&name, digest).into()))
            }
            None => Ok(None),
            Some(_) => Err(ViewError::Wrong(std::io::ErrorKind::InvalidInput)),
        }
    }

    /// Where the symbolic link `ino` leads, however long it takes to know.
    pub(super) async fn link_target(&self, ino: u64) -> Result<Bytes, ViewError> {
        let mut _in_use: Vec<InUse> = Vec::new();
        if let Some((id, _)) = self.in_tree(ino) {
            _in_use.push(self.made_tree(id).await?);
        } else {
            let (place, held) = self.place_later(&self.inodes.path_of(ino)?).await?;
            _in_use.extend(held);
            match place {
                Place::Below(id, rest) => {
                    let (tree, _) = self.node_below_later(id, &rest).await?;
                    _in_use.push(tree);
                }
                Place::Ask(wanted) => {
                    self.make_known(&wanted).await?;
                }
                _ => {}
            }
        }
        self.link_target_now(ino)?.ok_or(ViewError::Stale)
    }

    /// What is in a directory below `.imgfs` that is no tree: names and kinds.
    pub(super) fn names_in(&self, path: &str) -> Result<Vec<(String, FileKind)>, ViewError> {
        let InsideForm::Way(way) = names::inside(path) else {
            return match self.place(path) {
                Place::Directory(entries) => Ok(entries),
                _ => Err(ViewError::Stale),
            };
        };
        let mut entries = self.seen_in(way);
        for (name, is_directory) in self.repositories.names_in(way)?.entries {
            let path = below(way, &name);
            if !is_directory || !matches!(names::inside(&inside_path(&path)), InsideForm::Way(_)) {
                continue;
            }
            let mut has_images = false;
            let mut digests = Vec::new();
            for (image, _) in self.repositories.names_in(&format!("{path}/manifests"))?.entries {
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
                .repositories
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

fn target_of(tree: &Tree, node: Node) -> Result<Bytes, ViewError> {
    let target = tree.rootfs().symlink_target(node).map(Bytes::copy_from_slice);
    target.ok_or(ViewError::Wrong(std::io::ErrorKind::InvalidInput))
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
