//! Files in trees: those that the kernel knows by the number of their node, and those that it has
//! been told of by their path, because their tree had not been made yet.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use super::{
    super::{
        ABSENT, Attributes, Entry, FOR_GOOD, Found, Handle, InsideAttributes, Listing, Question,
        ROOT, ViewError, Xattrs, below, inodes::Kind, listing::Content, values::About,
    },
    Inside, Place, TreeId, Wanted,
    records::tree_of,
};
use crate::{
    backend::images_dir::published_time,
    layer::Node,
    rootfs::{FileFound, Tree},
    util::locked,
};

/// What tells what was found before its tree had been made from what has the same path otherwise.
pub(super) const EARLY: &[u8] = b"early";

/// Files of a tree of which the kernel is told by their path. Programs look for few before they list a directory.
const MAX_EARLY: usize = 4096;

pub(super) fn open_node(tree: &Tree, node: Node) -> Result<Handle, ViewError> {
    let file = tree.open(node)?;
    if let Some(damage) = tree.damage_above(node) {
        return Err(damage.into());
    }
    match file {
        Some(file) => Ok(Handle::Inside(Box::new(file))),
        None => Err(ViewError::Wrong(std::io::ErrorKind::IsADirectory)),
    }
}

/// What of a tree the kernel was told of by its path, before the tree had been made. It keeps its
/// number: a file system that lies on top, such as overlayfs, does not take another one.
#[derive(Default)]
pub(in crate::namespace) struct EarlyNames {
    /// The paths in the tree, and in the mount.
    told: Mutex<HashMap<String, String>>,
    /// The latter, by what the former have turned out to be.
    nodes: OnceLock<HashMap<Node, String>>,
}

impl EarlyNames {
    /// Whether the kernel has been told of nothing by its path.
    pub(super) fn is_empty(&self) -> bool {
        locked(&self.told).is_empty()
    }

    /// Notes that the kernel is told of a path. Not if the tree has been made, or has been told of by too many
    /// paths: then it has to be made first.
    fn add(&self, rest: &str, path: &str) -> bool {
        let mut told = locked(&self.told);
        let is_early = self.nodes.get().is_none() && told.len() < MAX_EARLY;
        if is_early {
            told.insert(rest.to_owned(), path.to_owned());
        }
        is_early
    }

    /// The path by which the kernel knows a node of the tree, if it does.
    fn path(&self, tree: &Tree, node: Node) -> Option<&str> {
        let nodes = self.nodes.get_or_init(|| {
            let told = locked(&self.told);
            let found = told.iter().filter_map(|(rest, path)| {
                let node = tree.rootfs().find(rest.as_bytes())?;
                Some((tree.rootfs().inode(node), path.clone()))
            });
            found.collect()
        });
        if nodes.is_empty() {
            return None;
        }
        nodes.get(&tree.rootfs().inode(node)).map(String::as_str)
    }
}

fn xattrs_of(tree: &Tree, node: Node) -> Xattrs {
    let all = tree.xattrs(node).into_iter();
    all.map(|(name, value)| (name.to_vec(), value.into_owned())).collect()
}

fn attributes_of(ino: u64, tree: &Tree, node: Node) -> Attributes {
    let found = tree.rootfs().attributes(node);
    // What nobody can read must not pass for an empty file: whoever reads no files of 0 bytes, as tar does,
    // tries those that he has no permission to read.
    let hidden = if tree.rootfs().broken(node).is_some() { 0o444 } else { 0 };
    Attributes {
        ino,
        kind: found.kind,
        size: found.size,
        stored_bytes: found.stored_bytes,
        mtime: (found.mtime.secs, found.mtime.nanos),
        inside: Some(InsideAttributes {
            mode: found.mode & !hidden,
            uid: found.uid,
            gid: found.gid,
            links: found.links,
            device: found.device,
        }),
        local: None,
    }
}

impl Inside {
    /// The tree and the node that `ino` is, if it is in a tree.
    pub(in crate::namespace) fn in_tree(&self, ino: u64) -> Option<(TreeId, u32)> {
        if ino == ROOT {
            return Some((self.root.get()?.0, 0));
        }
        // The lower half.
        tree_of(ino).map(|id| (id, ino as u32))
    }

    fn number_in_tree(&self, id: TreeId, node: u32) -> u64 {
        let is_root = node == 0 && self.root.get().is_some_and(|(root, _)| *root == id);
        if is_root { ROOT } else { id.inode(node) }
    }

    /// A tree, made now if need be.
    pub(in crate::namespace) async fn made_tree(&self, id: TreeId) -> Result<Arc<Tree>, ViewError> {
        Ok(self.slot(id).await?.files.tree().await?)
    }

    // --- by number ---

    /// The directory that a tree is, of which nothing else is known.
    fn unknown_root(&self, id: TreeId) -> Entry {
        let ino = self.number_in_tree(id, 0);
        Entry { attributes: Attributes::directory(ino, published_time(None)), ttl: Duration::ZERO }
    }

    /// The attributes of a node, if the tree is at hand.
    pub(in crate::namespace) fn attributes_in_tree(&self, id: TreeId, node: u32) -> Option<Entry> {
        let tree = self.tree(id)?;
        Some(self.entry_in_tree(id, &tree, tree.rootfs().node(node)?))
    }

    pub(super) async fn attributes_in_tree_later(
        &self,
        id: TreeId,
        node: u32,
    ) -> Result<Entry, ViewError> {
        let slot = self.slot(id).await?;
        // What its root looks like is not worth a scan.
        if node == 0 && slot.files.made().is_none() && !slot.files.is_indexed().await {
            return Ok(self.unknown_root(id));
        }
        let tree = slot.files.tree().await?;
        let node = tree.rootfs().node(node).ok_or(ViewError::Stale)?;
        Ok(self.entry_in_tree(id, &tree, node))
    }

    /// What the kernel is told of a node, once more.
    pub(in crate::namespace) fn tell_of_node(
        &self,
        id: TreeId,
        early: &EarlyNames,
        tree: &Tree,
        node: Node,
    ) -> Entry {
        match early.path(tree, node) {
            Some(path) => {
                let ino = self.tell_early(id, path);
                Entry { attributes: attributes_of(ino, tree, node), ttl: FOR_GOOD }
            }
            None => {
                self.told(id);
                self.entry_in_tree(id, tree, node)
            }
        }
    }

    /// Tells the kernel of something in a tree by its path.
    fn tell_early(&self, id: TreeId, path: &str) -> u64 {
        self.told(id);
        self.inodes.tell(path, EARLY, Kind::Early(id))
    }

    pub(in crate::namespace) fn entry_in_tree(&self, id: TreeId, tree: &Tree, node: Node) -> Entry {
        let ino = self.number_in_tree(id, tree.rootfs().inode(node).number());
        Entry { attributes: attributes_of(ino, tree, node), ttl: FOR_GOOD }
    }

    pub(in crate::namespace) fn lookup_in_tree(
        &self,
        id: TreeId,
        node: u32,
        name: &OsStr,
    ) -> Result<Found, ViewError> {
        if let Some(tree) = self.tree(id) {
            let rootfs = tree.rootfs();
            let found = rootfs.node(node).and_then(|node| rootfs.lookup(node, name.as_bytes()));
            return self.found_in_tree(id, &tree, found);
        }
        let path = self.path(id).ok_or(ViewError::Stale)?;
        match name.to_str() {
            // In the root of a tree that has not been made, some names are known before it is.
            Some(name) if node == 0 => self.look(&below(&path, name)),
            _ => {
                let wanted = Wanted::Named(id, node, name.as_bytes().to_vec());
                let path = below(&path, &name.to_string_lossy());
                Ok(Found::Ask(Question { path, about: About::Inside(wanted) }))
            }
        }
    }

    /// What has a name that is no text in the directory `above` is told when its tree has been made.
    pub(in crate::namespace) fn ask_for_bytes(&self, above: &str, name: &OsStr) -> Found {
        let path = below(above, &name.to_string_lossy());
        let wanted = Wanted::NamedBelow(above.to_owned(), name.as_bytes().to_vec());
        Found::Ask(Question { path, about: About::Inside(wanted) })
    }

    pub(super) fn found_in_tree(
        &self,
        id: TreeId,
        tree: &Tree,
        node: Option<Node>,
    ) -> Result<Found, ViewError> {
        match (node, tree.damage()) {
            (Some(node), _) => {
                let early = self.early(id).ok_or(ViewError::Stale)?;
                Ok(Found::Entry(self.tell_of_node(id, &early, tree, node)))
            }
            // It may be in what cannot be read.
            (None, Some(damage)) => Err(damage.clone().into()),
            (None, None) => Ok(Found::Absent(FOR_GOOD)),
        }
    }

    pub(in crate::namespace) fn open_in_tree(
        &self,
        id: TreeId,
        node: u32,
    ) -> Result<Option<Handle>, ViewError> {
        let Some(tree) = self.tree(id) else { return Ok(None) };
        let node = tree.rootfs().node(node).ok_or(ViewError::Stale)?;
        open_node(&tree, node).map(Some)
    }

    /// What is in a directory of a tree.
    pub(in crate::namespace) fn list_tree(
        &self,
        ino: u64,
        id: TreeId,
        tree: Arc<Tree>,
        node: u32,
    ) -> Option<Listing> {
        let early = self.early(id)?;
        let node = tree.rootfs().node(node)?;
        let parent = self.entry_in_tree(id, &tree, tree.rootfs().parent(node)).attributes.ino;
        let content = Content::Tree(id, early, tree, node);
        Some(Listing { ino, parent, unchanged: true, content })
    }

    // --- by path ---

    /// Finds out what has the path `rest` in a tree.
    pub(super) async fn find_out_below(
        &self,
        path: &str,
        id: TreeId,
        rest: &str,
    ) -> Result<Found, ViewError> {
        let slot = self.slot(id).await?;
        // As long as it is in use it is not let go.
        let mut _tree = None;
        if slot.files.made().is_some() || slot.files.is_indexed().await {
            _tree = Some(slot.files.tree().await?);
        } else if rest.is_empty() {
            // What its root looks like is not worth a scan.
            self.told(id);
            return Ok(Found::Entry(self.unknown_root(id)));
        }
        Ok(match slot.files.find(rest.as_bytes()).await? {
            FileFound::At(tree, node) if slot.is_made_of(&tree) => {
                Found::Entry(self.tell_of_node(id, &slot.early, &tree, node))
            }
            // It has been made just now.
            FileFound::At(..) if !slot.early.add(rest, path) => {
                let tree = slot.files.tree().await?;
                return self.found_in_tree(id, &tree, tree.rootfs().find(rest.as_bytes()));
            }
            FileFound::At(tree, node) => {
                let ino = self.tell_early(id, path);
                let attributes = attributes_of(ino, &tree, node);
                Found::Entry(Entry { attributes, ttl: Duration::ZERO })
            }
            FileFound::Missing | FileFound::Unknown => Found::Absent(ABSENT),
        })
    }

    /// What has the path `rest` in a tree, if that is known now.
    pub(super) fn node_below(&self, id: TreeId, rest: &str) -> Option<(Arc<Tree>, Node)> {
        let slot = self.slots.get(&id)?;
        match slot.files.find_now(rest.as_bytes()) {
            FileFound::At(tree, node) => Some((tree, node)),
            FileFound::Missing | FileFound::Unknown => None,
        }
    }

    /// What has the path `rest` in a tree.
    pub(super) async fn node_below_later(
        &self,
        id: TreeId,
        rest: &str,
    ) -> Result<(Arc<Tree>, Node), ViewError> {
        match self.slot(id).await?.files.find(rest.as_bytes()).await? {
            FileFound::At(tree, node) => Ok((tree, node)),
            FileFound::Missing | FileFound::Unknown => Err(ViewError::Stale),
        }
    }

    /// The attributes of `ino`, which has the path `rest` in a tree, if they are known now.
    pub(super) fn attributes_below(&self, ino: u64, id: TreeId, rest: &str) -> Option<Entry> {
        let (tree, node) = self.node_below(id, rest)?;
        let slot = self.slots.get(&id)?;
        let ttl = if slot.is_made_of(&tree) { FOR_GOOD } else { Duration::ZERO };
        Some(Entry { attributes: attributes_of(ino, &tree, node), ttl })
    }

    /// The extended attributes of `ino`, names and values, if they are known now. `None` if
    /// [`Inside::xattrs`] has to find them out.
    pub(in crate::namespace) fn xattrs_now(&self, ino: u64) -> Result<Option<Xattrs>, ViewError> {
        if let Some((id, node)) = self.in_tree(ino) {
            let Some(tree) = self.tree(id) else { return Ok(None) };
            let node = tree.rootfs().node(node).ok_or(ViewError::Stale)?;
            return Ok(Some(xattrs_of(&tree, node)));
        }
        Ok(match self.place_now(&self.inodes.path_of(ino)?) {
            Some(Place::Below(id, rest)) => {
                self.node_below(id, &rest).map(|(tree, node)| xattrs_of(&tree, node))
            }
            Some(_) => Some(Vec::new()),
            None => None,
        })
    }

    /// The extended attributes of `ino`, names and values, however long it takes to know them.
    pub(in crate::namespace) async fn xattrs(&self, ino: u64) -> Result<Xattrs, ViewError> {
        if let Some((id, node)) = self.in_tree(ino) {
            let slot = self.slot(id).await?;
            // Nobody has looked into it: then it is its root, which has none worth a scan.
            if node == 0 && slot.files.made().is_none() && !slot.files.is_indexed().await {
                return Ok(Vec::new());
            }
            let tree = slot.files.tree().await?;
            let node = tree.rootfs().node(node).ok_or(ViewError::Stale)?;
            return Ok(xattrs_of(&tree, node));
        }
        match self.place_later(&self.inodes.path_of(ino)?).await? {
            (Place::Below(id, rest), _in_use) => {
                let (tree, node) = self.node_below_later(id, &rest).await?;
                Ok(xattrs_of(&tree, node))
            }
            _ => Ok(Vec::new()),
        }
    }
}
