//! What a mount shows: its parts, joined.

use std::{
    ffi::OsStr,
    io,
    num::NonZeroUsize,
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;

use super::{
    ABSENT, Attributes, Entry, Found, Handle, Listing, MAX_NAME_BYTES, Namespace, Question,
    Settings, Space, Subject, ViewError, Xattrs, below,
    inodes::{Inodes, Kind, Node},
    inside::{Inside, Place, TreeId, is_in_tree, tree_of},
    listing::{Content, Names},
    names::{Form, form},
    repositories::{Repositories, Stamp},
    values::About,
};
use crate::{
    backend::{Backend, images_dir::ImagesDir, images_dir::published_time},
    cache::Cache,
    catalogue::{self, Catalogue},
    image::Reference,
    layer::{Kind as FileKind, Node as TreeNode},
    rootfs::{Images, Sources},
    util::locked,
};

type Result<T> = std::result::Result<T, ViewError>;

/// Directories of which is remembered what they looked like.
const MAX_LISTED: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// The namespace of a mount.
pub struct View {
    inodes: Arc<Inodes>,
    repositories: Arc<Repositories>,
    /// `None` if there is no cache to read with.
    inside: Option<Inside>,
    /// What each directory looked like when it was last listed.
    listed: Mutex<LruCache<u64, Stamp>>,
}

/// What an inode belongs to.
enum Part<'a> {
    /// A tree inside an image, by the number of the node.
    Tree(&'a Inside, TreeId, u32),
    /// Something inside images that is known by its path.
    Inside(&'a Inside, Node),
    /// Something that registries have.
    Repositories(Node),
}

impl View {
    /// A view of `dir`, of what `source` can bring, if that is not to be offline, and of what of
    /// that is in `cache`.
    pub fn new(
        dir: ImagesDir,
        source: Option<Arc<dyn Backend>>,
        cache: Option<Cache>,
        settings: &Settings,
    ) -> Arc<Self> {
        let of_names = catalogue::Settings {
            options: settings.options.clone(),
            tag_ttl: settings.tag_ttl,
            // The kernel keeps that for as long as it is told to.
            absent_ttl: Duration::ZERO,
        };
        let catalogue = Catalogue::new(dir, source, of_names, &settings.budget);
        let inodes = Arc::new(Inodes::new());
        let repositories = Arc::new(Repositories::new(
            inodes.clone(),
            catalogue.clone(),
            cache.clone(),
            settings.tag_ttl,
        ));
        let inside = cache.map(|cache| {
            let images = Images::new(Sources {
                catalogue: catalogue.clone(),
                cache,
                patience: settings.patience,
                verify_first: settings.verify_first,
                memory: settings.budget.clone(),
                index_cache: None,
                profiles: settings.profiles,
                trusted_indexes: settings.trusted_indexes.clone(),
            });
            Inside::new(inodes.clone(), repositories.clone(), images, catalogue, settings)
        });
        let listed = Mutex::new(LruCache::new(MAX_LISTED));
        Arc::new(Self { inodes, repositories, inside, listed })
    }

    /// The images_dir.
    pub fn dir(&self) -> &ImagesDir {
        self.repositories.images_dir()
    }

    /// The inodes that the kernel knows.
    pub(super) fn inodes(&self) -> &Arc<Inodes> {
        &self.inodes
    }

    /// The path of a directory that has one below the root, and is not inside images; `None` for all others.
    pub(super) fn path_of_directory(&self, ino: u64) -> Result<Option<Box<str>>> {
        Ok(match self.part(ino)? {
            Part::Repositories(node) => Some(node.path),
            Part::Inside(..) | Part::Tree(..) => None,
        })
    }

    /// How many inodes the kernel knows, the root not counted.
    pub fn known_inodes(&self) -> usize {
        self.inodes.len()
    }

    /// What names lead to.
    pub fn catalogue(&self) -> &Catalogue {
        self.repositories.catalogue()
    }

    /// The images that are looked into; `None` if there is no cache to read with.
    pub fn images(&self) -> Option<&Images> {
        self.inside.as_ref().map(Inside::images)
    }

    /// Lists `image` although it has not been looked up yet.
    pub fn declare(&self, image: &Reference) {
        self.repositories.declare(image);
    }

    /// Looks `image` up, so that what belongs to it is listed.
    pub async fn resolve(&self, image: &Reference) -> Result<()> {
        self.repositories.resolve(image).await
    }

    /// Shows the root file system of `image` in place of everything else. Fails if there is no such
    /// image, or not for the platform.
    pub async fn show_only(&self, image: &Reference) -> Result<()> {
        self.inside.as_ref().ok_or(ViewError::Stale)?.show_only(image).await
    }

    /// Is to be called when nobody looks at it any more. Blocks for a moment: what was read when images started is
    /// kept for the next time.
    pub fn finish(&self) {
        if let Some(inside) = &self.inside {
            inside.finish();
        }
    }

    // --- which part ---

    /// What an inode that the kernel knows belongs to.
    fn part(&self, ino: u64) -> Result<Part<'_>> {
        if let Some((inside, id, node)) = self.in_tree(ino) {
            return Ok(Part::Tree(inside, id, node));
        }
        let node = self.inodes.node(ino)?;
        let is_inside = match node.kind {
            Kind::Inside | Kind::Early(_) => true,
            Kind::Unknown => form(&node.path) == Form::Inside,
            _ => false,
        };
        Ok(match &self.inside {
            Some(inside) if is_inside => Part::Inside(inside, node),
            None if is_inside => return Err(ViewError::Stale),
            _ => Part::Repositories(node),
        })
    }

    /// The tree and the node that `ino` is, if it is in a tree by its number.
    fn in_tree(&self, ino: u64) -> Option<(&Inside, TreeId, u32)> {
        let inside = self.inside.as_ref()?;
        inside.in_tree(ino).map(|(id, node)| (inside, id, node))
    }

    /// What `path` leads to. [`Found::Entry`] tells the kernel of it once more.
    pub(super) fn look(&self, path: &str) -> Result<Found> {
        match &self.inside {
            Some(inside) if form(path) == Form::Inside => inside.look(path),
            _ => self.repositories.look(path),
        }
    }

    /// What the kernel is told of a name of which nothing is known yet but its kind.
    fn unknown(&self, path: &str, kind: FileKind) -> Entry {
        let ino = self.inodes.tell(path, b"unknown", Kind::Unknown);
        let mtime = published_time(None);
        let attributes = Attributes { kind, ..Attributes::file(ino, 0, mtime) };
        Entry { attributes, ttl: Duration::ZERO }
    }

    // --- directories that are known by their paths ---

    /// Lists a directory that is known by its path.
    pub(super) fn list_names(&self, ino: u64) -> Result<Listing> {
        let (path, mut entries, stamp, dir) = match self.part(ino)? {
            Part::Tree(..) => return Err(ViewError::Stale),
            Part::Inside(inside, node) => {
                let entries = inside.names_in(&node.path)?;
                (node.path, entries, None, None)
            }
            Part::Repositories(node) => {
                // First this: what changes meanwhile is a change.
                let stamp = self.repositories.stamp(&node.path);
                let found = self.repositories.names_in(&node.path)?;
                let kind = |is_directory| if is_directory { FileKind::Dir } else { FileKind::File };
                let entries = found.entries.into_iter();
                let entries: Vec<_> = entries.map(|(name, dir)| (name, kind(dir))).collect();
                (node.path, entries, Some(stamp), found.dir)
            }
        };
        // What is in the images_dir stands before what is known besides.
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(later, _), (first, _)| later == first);
        let unchanged = match stamp {
            Some(stamp) => locked(&self.listed).put(ino, stamp) == Some(stamp),
            None => false,
        };
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        let parent = self.inodes.number(above, &[]);
        let content = Content::Names(Names::new(entries, path, dir, self.repositories.layout()));
        Ok(Listing { ino, parent, unchanged, content })
    }
}

#[async_trait]
impl Namespace for View {
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found> {
        if name.len() > MAX_NAME_BYTES {
            return Err(ViewError::Wrong(io::ErrorKind::InvalidFilename));
        }
        let above = match self.part(parent)? {
            Part::Tree(inside, id, node) => return inside.lookup_in_tree(id, node, name),
            Part::Inside(inside, above) if name.to_str().is_none() => {
                return Ok(inside.ask_for_bytes(&above.path, name));
            }
            Part::Inside(_, above) | Part::Repositories(above) => above,
        };
        // What is not UTF-8 is nothing that a registry has; in the images_dir it is nobody's.
        match name.to_str() {
            Some(name) => self.look(&below(&above.path, name)),
            None => Ok(Found::Absent(ABSENT)),
        }
    }

    async fn find_out(&self, question: &Question) -> Result<Found> {
        match (&question.about, &self.inside) {
            (About::Name(name), _) => self.repositories.find_out(&question.path, name).await,
            (About::Inside(wanted), Some(inside)) => inside.find_out(&question.path, wanted).await,
            (About::Inside(_), None) => Ok(Found::Absent(ABSENT)),
        }
    }

    fn forget(&self, ino: u64, times: u64) {
        let (tree, times) = match tree_of(ino) {
            // Nodes of trees are not counted, only the trees: what has a node can be made again at any time.
            Some(tree) => (tree, times),
            None => match self.inodes.forgotten(ino, times) {
                Some((Kind::Early(tree), times)) => (tree, times),
                _ => return,
            },
        };
        if let Some(inside) = &self.inside {
            inside.forgotten(tree, times);
        }
    }

    fn attributes_now(&self, ino: u64) -> Result<Option<Entry>> {
        match self.part(ino)? {
            Part::Tree(inside, id, node) => Ok(inside.attributes_in_tree(id, node)),
            Part::Inside(inside, node) if node.kind != Kind::Unknown => {
                match inside.place_now(&node.path) {
                    Some(place) => inside.attributes_of_place(ino, &place),
                    None => Ok(None),
                }
            }
            Part::Inside(_, node) | Part::Repositories(node) => {
                self.repositories.attributes(ino, &node).map(Some)
            }
        }
    }

    async fn attributes(&self, ino: u64) -> Result<Entry> {
        match (self.attributes_now(ino)?, &self.inside) {
            (Some(entry), _) => Ok(entry),
            (None, Some(inside)) => inside.attributes_later(ino).await,
            (None, None) => Err(ViewError::Stale),
        }
    }

    fn link_target_now(&self, ino: u64) -> Result<Option<Bytes>> {
        match self.part(ino)? {
            Part::Tree(inside, ..) | Part::Inside(inside, _) => inside.link_target_now(ino),
            Part::Repositories(_) => Err(ViewError::Wrong(std::io::ErrorKind::InvalidInput)),
        }
    }

    async fn link_target(&self, ino: u64) -> Result<Bytes> {
        match self.part(ino)? {
            Part::Tree(inside, ..) | Part::Inside(inside, _) => inside.link_target(ino).await,
            Part::Repositories(_) => Err(ViewError::Wrong(std::io::ErrorKind::InvalidInput)),
        }
    }

    fn xattrs_now(&self, ino: u64) -> Result<Option<Xattrs>> {
        match self.part(ino)? {
            Part::Tree(inside, ..) | Part::Inside(inside, _) => inside.xattrs_now(ino),
            Part::Repositories(_) => Ok(Some(Xattrs::new())),
        }
    }

    async fn xattrs(&self, ino: u64) -> Result<Xattrs> {
        match self.part(ino)? {
            Part::Tree(inside, ..) | Part::Inside(inside, _) => inside.xattrs(ino).await,
            Part::Repositories(_) => Ok(Xattrs::new()),
        }
    }

    fn open_now(&self, ino: u64) -> Result<Option<Handle>> {
        match self.part(ino)? {
            Part::Tree(inside, id, node) => inside.open_in_tree(id, node),
            Part::Inside(inside, node) if node.kind != Kind::Unknown => {
                match inside.place_now(&node.path) {
                    Some(place) => inside.open_place(&place),
                    None => Ok(None),
                }
            }
            Part::Inside(_, node) | Part::Repositories(node) => {
                self.repositories.open_now(ino, &node)
            }
        }
    }

    async fn open(&self, ino: u64) -> Result<Handle> {
        if let Some(handle) = self.open_now(ino)? {
            return Ok(handle);
        }
        match self.part(ino)? {
            Part::Tree(inside, ..) | Part::Inside(inside, _) => {
                inside.open_later(ino).await?.ok_or(ViewError::Stale)
            }
            Part::Repositories(node) => self.repositories.open(ino, &node).await,
        }
    }

    fn is_in_memory(&self, ino: u64) -> bool {
        self.in_tree(ino).is_some_and(|(inside, id, _)| inside.tree(id).is_some())
    }

    fn is_as_listed(&self, ino: u64) -> bool {
        let last = locked(&self.listed).get(&ino).copied();
        let Some(last) = last.filter(|_| !is_in_tree(ino)) else { return false };
        self.inodes.path_of(ino).is_ok_and(|path| self.repositories.stamp(&path) == last)
    }

    fn list_now(&self, ino: u64) -> Result<Option<Listing>> {
        match self.part(ino)? {
            Part::Tree(inside, id, node) => {
                Ok(inside.tree(id).and_then(|tree| inside.list_tree(ino, id, tree, node)))
            }
            // What has been known may have been let go.
            Part::Inside(inside, node) => match inside.place_now(&node.path) {
                None | Some(Place::Below(..)) => Ok(None),
                Some(_) => self.list_names(ino).map(Some),
            },
            Part::Repositories(_) => self.list_names(ino).map(Some),
        }
    }

    /// It ends by itself when nothing comes.
    async fn list(&self, ino: u64) -> Result<Listing> {
        let (inside, tree, id, node) = match self.part(ino)? {
            Part::Tree(inside, id, node) => (inside, inside.made_tree(id).await?, id, Some(node)),
            Part::Inside(inside, node) => {
                let (place, _in_use) = inside.place_later(&node.path).await?;
                let Place::Below(id, path) = place else { return self.list_names(ino) };
                let tree = inside.made_tree(id).await?;
                let node = tree.rootfs().find(path.as_bytes()).map(TreeNode::number);
                (inside, tree, id, node)
            }
            Part::Repositories(_) => return self.list_names(ino),
        };
        let listing = node.and_then(|node| inside.list_tree(ino, id, tree, node));
        listing.ok_or(ViewError::Stale)
    }

    /// What would have to be asked for is told as it was, or as nothing much, and holds for no time.
    fn listed(&self, listing: &Listing, at: usize) -> Result<Option<Entry>> {
        let names = match (&listing.content, &self.inside) {
            (Content::Names(names), _) => names,
            (Content::Tree(id, early, tree, dir), Some(inside)) => {
                let found = u32::try_from(at).ok().and_then(|at| tree.rootfs().entry_at(*dir, at));
                return Ok(found.map(|(_, node)| inside.tell_of_node(*id, early, tree, node)));
            }
            (Content::Tree(..), None) => return Err(ViewError::Stale),
        };
        let Some((name, kind)) = names.entries.get(at) else { return Ok(None) };
        let path = below(&names.path, name);
        if let Some(stat) = names.stat_of(at, name)
            && let digest = names.digest_of(name)
            && let Some(entry) = self.repositories.listed_file(&path, &stat, digest.as_ref())
        {
            return Ok(Some(entry));
        }
        let question = match self.look(&path) {
            Ok(Found::Entry(entry)) => return Ok(Some(entry)),
            Ok(Found::Absent(_)) if *kind != FileKind::File => return Ok(None),
            Ok(Found::Absent(_)) | Err(ViewError::Offline(_)) => None,
            Ok(Found::Ask(question)) => Some(question),
            Err(error) => return Err(error),
        };
        let known = question.as_ref().and_then(|question| self.repositories.known(question));
        let entry = known.unwrap_or_else(|| self.unknown(&path, *kind));
        Ok(Some(Entry { ttl: Duration::ZERO, ..entry }))
    }

    fn number_of(&self, listing: &Listing, at: usize) -> u64 {
        match (&listing.content, &self.inside) {
            (Content::Names(names), _) => {
                let name = names.entries.get(at).map_or("", |(name, _)| name);
                self.inodes.number(&below(&names.path, name), &[])
            }
            (Content::Tree(id, _, tree, dir), Some(inside)) => {
                let found = u32::try_from(at).ok().and_then(|at| tree.rootfs().entry_at(*dir, at));
                found.map_or(0, |(_, node)| inside.entry_in_tree(*id, tree, node).attributes.ino)
            }
            (Content::Tree(..), None) => 0,
        }
    }

    fn space(&self) -> Space {
        self.repositories.space()
    }

    fn is_fixed(&self) -> bool {
        self.inside.as_ref().is_some_and(Inside::is_fixed)
    }

    fn opens_every_file(&self) -> bool {
        self.inside.as_ref().is_some_and(Inside::opens_every_file)
    }

    fn subject(&self, ino: u64) -> Subject {
        let path = match self.part(ino) {
            Ok(Part::Tree(inside, id, _)) => inside.path(id),
            Ok(Part::Inside(_, node) | Part::Repositories(node)) => Some(node.path),
            Err(_) => None,
        };
        path.map(|path| Subject::of_path(&path)).unwrap_or_default()
    }

    fn subject_of_name(&self, parent: u64, name: &OsStr) -> Subject {
        let name = String::from_utf8_lossy(name.as_bytes());
        match self.part(parent) {
            Ok(Part::Tree(inside, id, _)) => {
                inside.path(id).map(|path| Subject::of_path(&path)).unwrap_or_default()
            }
            Ok(Part::Inside(_, node) | Part::Repositories(node)) => {
                Subject::of_path(&below(&node.path, &name))
            }
            Err(_) => Subject::default(),
        }
    }
}
