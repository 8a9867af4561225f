//! What a container sees of a list of layers, worked out as plainly as can be: layer by layer, whiteout by
//! whiteout, entry by entry, into one map of paths.

use super::layers::{Archive, Entry, What};
use super::snapshot::{Item, Kind, Snapshot};
use std::collections::BTreeMap;

/// The tree that layers make, from the lowest to the highest.
pub(crate) fn merged(layers: &[&Archive]) -> Snapshot {
    let mut tree = Tree::new();
    for layer in layers {
        tree.begin_layer(layer);
        for entry in layer.entries() {
            if let Some(path) = hidden_by(entry) {
                tree.hide(&path);
            }
        }
        for entry in layer.entries().filter(|entry| !is_whiteout(entry)) {
            tree.put(entry);
        }
    }
    tree.snapshot()
}

/// The tree of one layer by itself, with its whiteouts as the files that they are.
pub(crate) fn raw(layer: &Archive) -> Snapshot {
    let mut tree = Tree::new();
    tree.begin_layer(layer);
    for entry in layer.entries() {
        tree.put(entry);
    }
    tree.snapshot()
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/');
    parts.filter(|part| !matches!(part, [] | [b'.'])).map(<[u8]>::to_vec).collect()
}

fn clean(path: &[u8]) -> Vec<u8> {
    parts(path).join(&b'/')
}

fn is_whiteout(entry: &Entry) -> bool {
    parts(&entry.name).last().is_some_and(|name| name.starts_with(WHITEOUT))
}

/// What is hidden of lower layers: a path with all that is in it, or what is in a directory.
enum Hidden {
    Path(Vec<u8>),
    Inside(Vec<u8>),
}

fn hidden_by(entry: &Entry) -> Option<Hidden> {
    let mut parts = parts(&entry.name);
    let name = parts.pop()?;
    if name == OPAQUE {
        return Some(Hidden::Inside(parts.join(&b'/')));
    }
    let hidden = name.strip_prefix(WHITEOUT)?;
    if hidden.is_empty() || hidden.starts_with(WHITEOUT) {
        return None;
    }
    parts.push(hidden.to_vec());
    Some(Hidden::Path(parts.join(&b'/')))
}

/// Inodes, and the paths that lead to them.
struct Tree {
    inodes: Vec<Item>,
    paths: BTreeMap<Vec<u8>, usize>,
    /// The time of directories that the layer does not name.
    implied_mtime: (i64, u32),
}

impl Tree {
    fn new() -> Self {
        Self { inodes: Vec::new(), paths: BTreeMap::new(), implied_mtime: (0, 0) }
    }

    fn begin_layer(&mut self, layer: &Archive) {
        self.implied_mtime = layer.entries().map(|entry| entry.mtime).min().unwrap_or_default();
        if self.paths.is_empty() {
            self.imply(b"");
        }
    }

    fn imply(&mut self, path: &[u8]) {
        let entry = Entry::new(path, What::Dir).mtime(self.implied_mtime.0, self.implied_mtime.1);
        self.insert(path, &entry);
    }

    fn insert(&mut self, path: &[u8], entry: &Entry) {
        self.paths.insert(path.to_vec(), self.inodes.len());
        self.inodes.push(item(entry));
    }

    fn inside(path: &[u8]) -> Vec<u8> {
        if path.is_empty() { Vec::new() } else { [path, b"/"].concat() }
    }

    fn remove_inside(&mut self, path: &[u8]) {
        let prefix = Self::inside(path);
        self.paths.retain(|path, _| path.is_empty() || !path.starts_with(&prefix));
    }

    fn remove(&mut self, path: &[u8]) {
        self.remove_inside(path);
        self.paths.remove(path);
    }

    fn hide(&mut self, hidden: &Hidden) {
        match hidden {
            Hidden::Path(path) => self.remove(path),
            Hidden::Inside(path) => self.remove_inside(path),
        }
    }

    fn kind(&self, path: &[u8]) -> Option<Kind> {
        self.paths.get(path).map(|inode| self.inodes[*inode].kind)
    }

    fn put(&mut self, entry: &Entry) {
        let path = clean(&entry.name);
        let parts = parts(&path);
        for depth in 1..parts.len() {
            let parent = parts[..depth].join(&b'/');
            if self.kind(&parent) != Some(Kind::Dir) {
                self.remove(&parent);
                self.imply(&parent);
            }
        }
        let merges = matches!(entry.what, What::Dir) && self.kind(&path) == Some(Kind::Dir);
        if merges {
            self.insert(&path, entry);
            return;
        }
        let linked = match &entry.what {
            What::Link(target) => Some(self.paths[&clean(target)]),
            _ => None,
        };
        self.remove(&path);
        match linked {
            Some(inode) => drop(self.paths.insert(path, inode)),
            None => self.insert(&path, entry),
        }
    }

    fn snapshot(self) -> Snapshot {
        let mut found = Snapshot::new();
        for (path, inode) in &self.paths {
            let mut item = self.inodes[*inode].clone();
            let mut names = self.paths.iter().filter(|(_, other)| *other == inode);
            item.first_name = names.next().expect("it has a name").0.clone();
            item.links = 1 + names.count() as u64;
            if item.kind == Kind::Dir {
                let prefix = Self::inside(path);
                let inside = self.paths.iter().filter(|(other, inode)| {
                    !other.is_empty()
                        && other
                            .strip_prefix(prefix.as_slice())
                            .is_some_and(|name| !name.is_empty() && !name.contains(&b'/'))
                        && self.inodes[**inode].kind == Kind::Dir
                });
                item.links = 2 + inside.count() as u64;
            }
            found.insert(path.clone(), item);
        }
        found
    }
}

fn item(entry: &Entry) -> Item {
    let mut item = Item {
        kind: Kind::File,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: 0,
        mtime: entry.mtime,
        links: 1,
        first_name: Vec::new(),
        device: (0, 0),
        content: String::new(),
        target: Vec::new(),
        xattrs: entry.xattrs.clone(),
    };
    match &entry.what {
        What::File(content) => (item.size, item.content) = (content.len(), content.digest()),
        What::Sparse(sparse) => {
            (item.size, item.content) = (sparse.size, super::content::digest(&sparse.content()));
        }
        What::Dir => item.kind = Kind::Dir,
        What::Symlink(target) => {
            (item.kind, item.size, item.target) =
                (Kind::Symlink, target.len() as u64, target.clone());
        }
        What::Char(major, minor) => (item.kind, item.device) = (Kind::Char, (*major, *minor)),
        What::Block(major, minor) => (item.kind, item.device) = (Kind::Block, (*major, *minor)),
        What::Fifo => item.kind = Kind::Fifo,
        What::Link(_) => panic!("a link has no attributes"),
    }
    item
}
