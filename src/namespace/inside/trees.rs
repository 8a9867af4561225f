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
        ABSENT, About, Attributes, Entry, FOR_GOOD, Found, Handle, InsideAttributes, Question,
        ROOT, View, ViewError, below, table::Kind,
    },
    ID_BITS, Inside, Place, Slot, TREE, TreeId, Wanted, is_in_tree,
};
use crate::{
    backend::images_dir::published_time,
    layer::Node,
    rootfs::{FileFound, Tree},
    util::locked,
};

/// Extended attributes: names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The number of an inode in a tree.
fn number(id: TreeId, node: u32) -> u64 {
    TREE | u64::from(id.0) << 32 | u64::from(node)
}

/// The tree with a number, if it has been made.
pub(super) fn inside_tree(inside: &Option<Inside>, id: TreeId) -> Option<Arc<Tree>> {
    inside.as_ref()?.tree(id)
}

pub(super) fn open_node(tree: &Tree, node: Node) -> Result<Handle, ViewError> {
    match tree.open(node)? {
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
    /// Notes that the kernel is told of a path. It is too late if the tree has been made.
    fn add(&self, rest: &str, path: &str) -> bool {
        let mut told = locked(&self.told);
        let is_early = self.nodes.get().is_none();
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
    Attributes {
        ino,
        kind: found.kind,
        size: found.size,
        mtime: (found.mtime.secs, found.mtime.nanos),
        inside: Some(InsideAttributes {
            mode: found.mode,
            uid: found.uid,
            gid: found.gid,
            links: found.links,
            device: found.device,
        }),
        local: None,
    }
}

impl View {
    /// The tree and the node that `ino` is, if it is in a tree.
    pub(in crate::namespace) fn in_tree(&self, ino: u64) -> Option<(TreeId, u32)> {
        if ino == ROOT {
            return Some((*self.inside.as_ref()?.root.get()?, 0));
        }
        // The lower half, and of the upper one what is the tree's.
        let id = (ino >> 32) as u32 & ((1 << ID_BITS) - 1);
        is_in_tree(ino).then_some((TreeId(id), ino as u32))
    }

    fn number_in_tree(&self, id: TreeId, node: u32) -> u64 {
        let root = self.inside.as_ref().and_then(|inside| inside.root.get());
        if root == Some(&id) && node == 0 { ROOT } else { number(id, node) }
    }

    /// A tree that has been made. The kernel has no number of anything in another one, but for its
    /// root.
    pub(in crate::namespace) fn tree(&self, id: TreeId) -> Result<Arc<Tree>, ViewError> {
        inside_tree(&self.inside, id).ok_or(ViewError::Stale)
    }

    /// A tree, made now if need be.
    pub(in crate::namespace) async fn made_tree(&self, id: TreeId) -> Result<Arc<Tree>, ViewError> {
        Ok(self.slot(id)?.files.tree().await?)
    }

    /// Whether a tree has not been made, but can be without passing a layer.
    pub(super) fn can_be_made(&self, id: TreeId) -> bool {
        self.slot(id).is_ok_and(|slot| slot.files.made().is_none() && slot.files.is_indexed())
    }

    // --- by number ---

    /// The directory that a tree is, also if it has not been made.
    pub(super) fn entry_of_root(&self, id: TreeId) -> Entry {
        self.attributes_in_tree(id, 0)
    }

    pub(in crate::namespace) fn attributes_in_tree(&self, id: TreeId, node: u32) -> Entry {
        let tree = self.tree(id).ok();
        match tree.as_ref().and_then(|tree| Some((tree, tree.rootfs().node(node)?))) {
            Some((tree, node)) => self.entry_in_tree(id, tree, node),
            None => {
                let ino = self.number_in_tree(id, node);
                let attributes = Attributes::directory(ino, published_time(None));
                Entry { attributes, ttl: Duration::ZERO }
            }
        }
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
                let ino = self.tell(path, b"early", Kind::Inside);
                Entry { attributes: attributes_of(ino, tree, node), ttl: FOR_GOOD }
            }
            None => self.entry_in_tree(id, tree, node),
        }
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
        if let Ok(tree) = self.tree(id) {
            let rootfs = tree.rootfs();
            let found = rootfs.node(node).and_then(|node| rootfs.lookup(node, name.as_bytes()));
            return self.found_in_tree(id, &tree, found);
        }
        // It is the root.
        let slot = self.slot(id)?;
        match name.to_str() {
            Some(name) => self.look_inside(&below(&slot.path, name)),
            None => Ok(self.ask_for_bytes(id, &slot.path, "", name)),
        }
    }

    /// What has a name that is no text is told when the tree has been made.
    pub(in crate::namespace) fn ask_for_bytes(
        &self,
        id: TreeId,
        path: &str,
        rest: &str,
        name: &OsStr,
    ) -> Found {
        let path = below(path, &name.to_string_lossy());
        let wanted = Wanted::Bytes(id, [rest.as_bytes(), b"/", name.as_bytes()].concat());
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
                let slot = self.slot(id)?;
                Ok(Found::Entry(self.tell_of_node(id, &slot.early, tree, node)))
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
    ) -> Result<Handle, ViewError> {
        let tree = self.tree(id)?;
        let node = tree.rootfs().node(node).ok_or(ViewError::Stale)?;
        open_node(&tree, node)
    }

    // --- by path ---

    /// Finds out what has the path `rest` in a tree.
    pub(super) async fn find_out_below(
        &self,
        path: &str,
        id: TreeId,
        rest: &str,
    ) -> Result<Found, ViewError> {
        let slot = self.slot(id)?;
        if self.can_be_made(id) {
            slot.files.tree().await?;
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
                let ino = self.tell(path, b"early", Kind::Inside);
                let attributes = attributes_of(ino, &tree, node);
                Found::Entry(Entry { attributes, ttl: Duration::ZERO })
            }
            FileFound::Missing | FileFound::Unknown => Found::Absent(ABSENT),
        })
    }

    /// What has the path `rest` in a tree, as far as that is known.
    pub(super) fn node_below(
        &self,
        id: TreeId,
        rest: &str,
    ) -> Result<(Arc<Tree>, Node), ViewError> {
        match self.slot(id)?.files.find_now(rest.as_bytes()) {
            FileFound::At(tree, node) => Ok((tree, node)),
            FileFound::Missing | FileFound::Unknown => Err(ViewError::Stale),
        }
    }

    /// What of a tree the kernel knows by its path.
    pub(in crate::namespace) fn early_names(&self, id: TreeId) -> Option<Arc<EarlyNames>> {
        self.slot(id).ok().map(|slot| slot.early.clone())
    }

    /// The path of the image or layer below the root of the mount, if `ino` is in its tree.
    pub(in crate::namespace) fn image_path(&self, ino: u64) -> Option<String> {
        let (id, _) = self.in_tree(ino)?;
        Some(self.slot(id).ok()?.path.clone())
    }

    fn slot(&self, id: TreeId) -> Result<Arc<Slot>, ViewError> {
        let inside = self.inside.as_ref().ok_or(ViewError::Stale)?;
        inside.slot(id).ok_or(ViewError::Stale)
    }

    pub(super) fn attributes_below(
        &self,
        ino: u64,
        id: TreeId,
        rest: &str,
    ) -> Result<Entry, ViewError> {
        let (tree, node) = self.node_below(id, rest)?;
        let ttl = if self.slot(id)?.is_made_of(&tree) { FOR_GOOD } else { Duration::ZERO };
        Ok(Entry { attributes: attributes_of(ino, &tree, node), ttl })
    }

    /// The tree and the path in it that the directory `path` is, if it was told of before the tree
    /// was made.
    pub(in crate::namespace) fn tree_path(&self, path: &str) -> Option<(TreeId, String)> {
        match self.place(path) {
            Place::Below(id, rest) => Some((id, rest)),
            _ => None,
        }
    }

    /// The extended attributes of `ino`: names and values.
    pub fn xattrs(&self, ino: u64) -> Result<Xattrs, ViewError> {
        if let Some((id, node)) = self.in_tree(ino) {
            // Nobody has looked into it: then it is its root, which has none worth waiting for.
            let Ok(tree) = self.tree(id) else { return Ok(Vec::new()) };
            let node = tree.rootfs().node(node).ok_or(ViewError::Stale)?;
            return Ok(xattrs_of(&tree, node));
        }
        match self.place(&self.path_of(ino)?) {
            Place::Below(id, rest) => {
                let (tree, node) = self.node_below(id, &rest)?;
                Ok(xattrs_of(&tree, node))
            }
            _ => Ok(Vec::new()),
        }
    }
}
