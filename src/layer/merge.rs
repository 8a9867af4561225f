//! What a container sees of a list of layers.
//!
//! The rules are those of the OCI image specification (`layer.md`), and where it says nothing, what
//! comes of extracting the layers in order with whiteouts obeyed first:
//!
//! - A symbolic link is followed by what comes after it in its own layer: `lib/x` after `lib -> usr/lib` is
//!   `usr/lib/x`, also if it is a whiteout or what a hard link is to. That is done already when a layer is indexed.
//! - Links of lower layers are not followed: an entry in something of theirs that is no directory makes one in its
//!   place. That is what an overlay of extracted layers shows, and so what podman, Docker and containerd run; umoci,
//!   which extracts all layers into one directory, puts it behind the link.
//! - `.wh.NAME` hides NAME of lower layers, `.wh..wh..opq` all that they have in its directory,
//!   wherever in the archive they stand. Neither makes the directory that it is in. Other names
//!   that begin with `.wh..wh.` are not shown and mean nothing; hard links may point at them, as
//!   AUFS did.
//! - A directory over a directory keeps what is in it. Everything else replaces.
//! - A hard link is to what its target is at that place of the archive; a whiteout that comes after it has
//!   removed nothing yet.
//!
//! The merged tree is made as a whole, from the lowest layer up: what a hard link means depends on
//! everything before it. [`find_from_top`] answers for one path before all layers are known.

mod build;
mod from_top;

use std::{mem, sync::Arc};

use super::{
    index::{LayerIndex, Table, Xattrs},
    tar::{Extent, Kind, Time},
};

use build::{Whiteouts, build};
pub use from_top::{Found, find_from_top};

/// Why a tree cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// There are more layers than a tree can have.
    #[error("the image has {0} layers; at most 65535 are supported")]
    TooManyLayers(usize),
}

/// A place in a [`Rootfs`]. Its number is the same for the same layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(u32);

impl Node {
    /// The number, below [`Rootfs::node_count`]. That of the root is 0.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// Why an entry, a hard link, cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is a link to itself.
    #[error("it is a hard link to itself")]
    ToItself,
    /// Its target is not there, or not yet.
    #[error("it is a hard link to something that is not there")]
    Missing,
    /// Its target is a directory.
    #[error("it is a hard link to a directory")]
    Directory,
    /// Its target is a broken link.
    #[error("it is a hard link to a hard link that leads nowhere")]
    Broken,
}

/// What `stat` tells of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What it is; never [`Kind::Link`].
    pub kind: Kind,
    /// Permissions, with set-uid, set-gid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file or of a symbolic link's target; 0 for everything else.
    pub size: u64,
    /// Bytes of these that are stored; the rest are holes.
    pub stored_bytes: u64,
    /// When it was modified.
    pub mtime: Time,
    /// Names that it has; of a directory, as Linux counts: 2, and one for each directory in it.
    pub links: u32,
    /// Major and minor number of a device.
    pub device: (u16, u32),
}

/// Where the content of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// The number of the layer, from 0 for the lowest.
    pub layer: usize,
    /// Bytes of the file.
    pub size: u64,
    /// Its parts in the stream of that layer, in order. Between them are zeros.
    pub extents: Vec<Extent>,
}

/// A tree of files, made of layers.
#[derive(Debug)]
pub struct Rootfs {
    layers: Vec<Arc<LayerIndex>>,
    /// The time of directories that a layer has implicitly.
    implied_times: Vec<Time>,
    /// By depth, and within a directory by name: so its content is a range.
    rows: Vec<NodeRow>,
    /// Nodes whose inode is another entry than theirs, or has several names.
    shared: Vec<(u32, u32)>,
    inodes: Vec<Inode>,
    broken: Vec<(u32, Broken)>,
    /// Directories that have replaced something else.
    anew: Vec<u32>,
}

/// What the tree knows of each node; the rest is in the layers.
#[derive(Clone, Copy, Debug)]
struct NodeRow {
    /// The layer that the entry is in, which also has the name.
    layer: u16,
    form: Form,
    /// Which of the layer's paths it has.
    path: u32,
    parent: u32,
    /// What is in it, if it is a directory.
    first: u32,
    count: u32,
    subdirs: u32,
}

/// Where the attributes of a node are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// In the last entry with its path.
    Entry,
    /// Nowhere: the directory is there because something is in it.
    Implied,
    /// In `inodes`, by `shared`.
    Shared,
    /// In the last entry with its path, which is a link as `broken` says.
    Broken,
}

/// What several names share.
#[derive(Clone, Copy, Debug)]
struct Inode {
    layer: u16,
    entry: u32,
    links: u32,
    /// The first node that has it.
    node: u32,
}

impl Rootfs {
    /// Merges layers, which come from the lowest to the highest.
    pub fn new(layers: Vec<Arc<LayerIndex>>) -> Result<Self, MergeError> {
        build(layers, Whiteouts::Obeyed)
    }

    /// The entries of one layer alone. Whiteouts are shown as the files that they are; hard links
    /// into lower layers are broken.
    pub fn raw(layer: Arc<LayerIndex>) -> Result<Self, MergeError> {
        build(vec![layer], Whiteouts::Shown)
    }

    /// Memory that it takes to merge `layers`, in bytes; the tree takes less when it has been made.
    pub fn merging_bytes<'a>(layers: impl IntoIterator<Item = &'a LayerIndex>) -> u64 {
        let paths: u64 =
            layers.into_iter().map(|layer| u64::from(layer.table().path_count()) + 1).sum();
        paths * build::BYTES_PER_PATH
    }

    /// The layers, from the lowest to the highest.
    pub fn layers(&self) -> &[Arc<LayerIndex>] {
        &self.layers
    }

    /// How many nodes there are, at least one.
    pub fn node_count(&self) -> u32 {
        self.rows.len() as u32
    }

    /// The node with a number.
    pub fn node(&self, number: u32) -> Option<Node> {
        (number < self.node_count()).then_some(Node(number))
    }

    /// The root directory.
    pub fn root(&self) -> Node {
        Node(0)
    }

    /// What has the name `name` in the directory `dir`.
    pub fn lookup(&self, dir: Node, name: &[u8]) -> Option<Node> {
        let range = self.range(dir);
        let rows = self.rows.get(range.start as usize..range.end as usize)?;
        let at = rows.binary_search_by(|row| self.row_name(row).cmp(name)).ok()?;
        Some(Node(range.start + at as u32))
    }

    /// What has the path `path` from the root on, without following symbolic links.
    pub fn find(&self, path: &[u8]) -> Option<Node> {
        path.split(|b| *b == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(self.root(), |dir, name| self.lookup(dir, name))
    }

    /// What is in a directory: name and node of each, by name. Empty for everything else.
    pub fn entries(
        &self,
        dir: Node,
    ) -> impl DoubleEndedIterator<Item = (&[u8], Node)> + ExactSizeIterator {
        self.range(dir).map(|number| (self.name(Node(number)), Node(number)))
    }

    /// How many entries a directory has.
    pub fn entry_count(&self, dir: Node) -> u32 {
        self.row(dir).count
    }

    /// The entry of a directory that is at this place, by name and from 0.
    pub fn entry_at(&self, dir: Node, at: u32) -> Option<(&[u8], Node)> {
        let row = self.row(dir);
        let node = Node(row.first.checked_add(at).filter(|_| at < row.count)?);
        Some((self.name(node), node))
    }

    /// The directory that a node is in; the root is in itself.
    pub fn parent(&self, node: Node) -> Node {
        Node(self.row(node).parent)
    }

    /// The name of a node; empty for the root.
    pub fn name(&self, node: Node) -> &[u8] {
        self.row_name(self.row(node))
    }

    /// The path of a node, without `/` at its ends.
    pub fn path(&self, node: Node) -> Vec<u8> {
        let row = self.row(node);
        self.table(usize::from(row.layer)).map_or(Vec::new(), |table| table.full_path(row.path))
    }

    /// The node that stands for all names of a file: the same for all that share an inode.
    pub fn inode(&self, node: Node) -> Node {
        self.shared(node).map_or(node, |inode| Node(inode.node))
    }

    /// Its attributes.
    pub fn attributes(&self, node: Node) -> Attributes {
        let row = self.row(node);
        let implied = Attributes {
            kind: Kind::Dir,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: 0,
            stored_bytes: 0,
            mtime: self.implied_times.get(usize::from(row.layer)).copied().unwrap_or_default(),
            links: 2 + row.subdirs,
            device: (0, 0),
        };
        let Some((_, table, number)) = self.entry(node) else { return implied };
        let Some(entry) = table.entry(number) else { return implied };
        let target_bytes = table.symlink_target(&entry).map(|target| target.len() as u64);
        Attributes {
            kind: if entry.kind == Kind::Link { Kind::File } else { entry.kind },
            // Whatever its header says: Linux has no other mode for it.
            mode: if entry.kind == Kind::Symlink { 0o777 } else { entry.mode },
            uid: entry.uid,
            gid: entry.gid,
            size: target_bytes.unwrap_or(entry.size),
            stored_bytes: target_bytes.unwrap_or_else(|| table.stored_bytes(number)),
            mtime: entry.mtime,
            links: match entry.kind {
                Kind::Dir => 2 + row.subdirs,
                _ => self.shared(node).map_or(1, |inode| inode.links),
            },
            device: entry.device,
        }
    }

    /// What a symbolic link says; `None` for everything else.
    pub fn symlink_target(&self, node: Node) -> Option<&[u8]> {
        let (_, table, number) = self.entry(node)?;
        table.symlink_target(&table.entry(number)?)
    }

    /// The extended attributes, by name: name and value of each.
    pub fn xattrs(&self, node: Node) -> Xattrs<'_> {
        match self.entry(node) {
            Some((_, table, number)) => table.xattrs(number),
            None => Xattrs::default(),
        }
    }

    /// Where the content of a file is; for everything else there is none.
    pub fn data(&self, node: Node) -> Result<Data, Broken> {
        if let Some(broken) = self.broken(node) {
            return Err(broken);
        }
        let Some((layer, table, number)) = self.entry(node) else {
            return Ok(Data { layer: self.layer_of(node), size: 0, extents: Vec::new() });
        };
        let size = table.entry(number).map_or(0, |entry| entry.size);
        Ok(Data { layer, size, extents: table.extents(number) })
    }

    /// Why a node cannot be read, if that is so.
    pub fn broken(&self, node: Node) -> Option<Broken> {
        if self.row(node).form != Form::Broken {
            return None;
        }
        let at = self.broken.binary_search_by_key(&node.0, |(node, _)| *node).ok()?;
        Some(self.broken[at].1)
    }

    /// Whether any node cannot be read.
    pub fn has_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    /// The number of the layer that a node comes from, from 0 for the lowest. A hard link comes
    /// from where the link is.
    pub fn layer_of(&self, node: Node) -> usize {
        usize::from(self.row(node).layer)
    }

    /// The number of the layer that the attributes and the content of a node come from.
    pub fn content_layer(&self, node: Node) -> usize {
        self.entry(node).map_or(self.layer_of(node), |(layer, ..)| layer)
    }

    /// Whether a node is a directory that no layer has an entry for.
    pub fn is_implied(&self, node: Node) -> bool {
        self.row(node).form == Form::Implied
    }

    /// Whether a directory has replaced something else, so that it began empty.
    fn is_anew(&self, node: Node) -> bool {
        self.anew.binary_search(&node.0).is_ok()
    }

    /// Bytes that the tree takes in memory, without its layers.
    pub fn memory_bytes(&self) -> u64 {
        let bytes = self.rows.capacity() * mem::size_of::<NodeRow>()
            + self.shared.capacity() * mem::size_of::<(u32, u32)>()
            + self.inodes.capacity() * mem::size_of::<Inode>()
            + self.broken.capacity() * mem::size_of::<(u32, Broken)>();
        bytes as u64
    }

    /// A node of another tree is taken for the root.
    fn row(&self, node: Node) -> &NodeRow {
        self.rows.get(node.0 as usize).unwrap_or(&self.rows[0])
    }

    fn row_name(&self, row: &NodeRow) -> &[u8] {
        self.table(usize::from(row.layer)).map_or(&[], |table| table.name(row.path))
    }

    fn table(&self, layer: usize) -> Option<&Table> {
        // The root of a tree without layers is in none.
        self.layers.get(layer).map(|layer| layer.table())
    }

    fn range(&self, dir: Node) -> std::ops::Range<u32> {
        let row = self.row(dir);
        row.first..row.first + row.count
    }

    fn shared(&self, node: Node) -> Option<&Inode> {
        if self.row(node).form != Form::Shared {
            return None;
        }
        let at = self.shared.binary_search_by_key(&node.0, |(node, _)| *node).ok()?;
        self.inodes.get(self.shared[at].1 as usize)
    }

    /// Layer, table and number of the entry that has the attributes.
    fn entry(&self, node: Node) -> Option<(usize, &Table, u32)> {
        let row = self.row(node);
        let (layer, number) = match row.form {
            Form::Implied => return None,
            Form::Shared => {
                let inode = self.shared(node)?;
                (usize::from(inode.layer), Some(inode.entry))
            }
            Form::Entry | Form::Broken => (usize::from(row.layer), None),
        };
        let table = self.table(layer)?;
        let number = number.or_else(|| table.last_entry(row.path))?;
        Some((layer, table, number))
    }
}
