//! Making the merged tree.

use std::{collections::HashMap, sync::Arc};

use super::{Broken, Form, Inode, MergeError, NodeRow, Rootfs};
use crate::layer::{
    index::{Entry, LayerIndex, ROOT, Table},
    tar::{Kind, Time},
};

/// What is done with names that begin with `.wh.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whiteouts {
    /// What they say; they are not shown.
    Obeyed,
    /// Nothing; they are shown.
    Shown,
}

const PREFIX: &[u8] = b".wh.";
const META_PREFIX: &[u8] = b".wh..wh.";
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// Stands for a node or a name that is not there.
const NONE: u32 = u32::MAX;

/// Memory for each path of each layer while a tree is made, in bytes: a node, an inode, a place among the
/// children, one among the names and one among what whiteouts have removed, all of which may just have doubled
/// their room.
pub(super) const BYTES_PER_PATH: u64 = 224;

/// The number of the root among the nodes.
const TOP: u32 = 0;

/// What a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// That of a file.
    Name,
    /// Something of this name is hidden.
    Whiteout(&'a [u8]),
    /// All that is in the directory is hidden.
    Opaque,
    /// Nothing, but it is not to be seen.
    Hidden,
}

/// What `name` means in a layer.
pub(super) fn meaning(name: &[u8]) -> Meaning<'_> {
    match name.strip_prefix(PREFIX) {
        None => Meaning::Name,
        Some(_) if name == OPAQUE => Meaning::Opaque,
        // The names of whiteouts would be `.wh..` and `.wh...`: nothing that could be hidden.
        Some(b"" | b"." | b"..") => Meaning::Hidden,
        Some(_) if name.starts_with(META_PREFIX) => Meaning::Hidden,
        Some(hidden) => Meaning::Whiteout(hidden),
    }
}

#[derive(Clone, Copy)]
struct BuildNode {
    layer: u16,
    path: u32,
    inode: u32,
    is_alive: bool,
    /// Whether it has replaced something else of its name.
    is_anew: bool,
    /// Lists of what is in a directory, with what was there and is not alive.
    first_child: u32,
    next: u32,
}

#[derive(Clone, Copy)]
struct BuildInode {
    layer: u16,
    /// `NONE` if it is implied.
    entry: u32,
    links: u32,
    kind: InodeKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum InodeKind {
    Dir,
    Leaf,
    Broken(Broken),
}

/// The tree so far.
struct Builder<'a> {
    whiteouts: Whiteouts,
    /// Names of all layers, with one number each.
    names: HashMap<&'a [u8], u32>,
    nodes: Vec<BuildNode>,
    children: HashMap<(u32, u32), u32>,
    inodes: Vec<BuildInode>,
}

/// The layer that is being added.
struct Layer<'a> {
    number: u16,
    table: &'a Table,
    /// The name of each of its paths.
    names: Vec<u32>,
    /// The node where a path was found last.
    nodes: Vec<u32>,
    /// Which paths are not to be seen.
    is_hidden: Vec<bool>,
    /// Inodes of such paths, for the hard links of this layer.
    hidden: HashMap<u32, u32>,
    /// Nodes of lower layers that whiteouts of this one have removed, and the entry that each whiteout is.
    removed: HashMap<u32, u32>,
    /// Of these, the ones in whose place this layer has something else, by directory and name.
    replaced: HashMap<(u32, u32), u32>,
}

pub(super) fn build(
    layers: Vec<Arc<LayerIndex>>,
    whiteouts: Whiteouts,
) -> Result<Rootfs, MergeError> {
    if layers.len() > usize::from(u16::MAX) {
        return Err(MergeError::TooManyLayers(layers.len()));
    }
    let mut builder = Builder {
        whiteouts,
        names: HashMap::new(),
        nodes: Vec::new(),
        children: HashMap::new(),
        inodes: vec![BuildInode { layer: 0, entry: NONE, links: 1, kind: InodeKind::Dir }],
    };
    builder.nodes.push(BuildNode {
        layer: 0,
        path: ROOT,
        inode: 0,
        is_alive: true,
        is_anew: false,
        first_child: NONE,
        next: NONE,
    });
    for (number, layer) in (0..).zip(&layers) {
        builder.add(number, layer.table());
    }
    let implied_times = layers.iter().map(|layer| earliest(layer.table())).collect();
    let mut rootfs = Rootfs {
        implied_times,
        rows: Vec::new(),
        shared: Vec::new(),
        inodes: Vec::new(),
        broken: Vec::new(),
        anew: Vec::new(),
        layers: Vec::new(),
    };
    builder.finish(&layers, &mut rootfs);
    rootfs.layers = layers;
    Ok(rootfs)
}

/// The earliest time of a layer's entries.
fn earliest(table: &Table) -> Time {
    table.entries().map(|entry| entry.mtime).min().unwrap_or_default()
}

impl<'a> Builder<'a> {
    fn add(&mut self, number: u16, table: &'a Table) {
        let paths = 0..table.path_count();
        let names = paths.clone().map(|path| self.name(table.name(path))).collect();
        let nodes = vec![NONE; paths.len()];
        let mut is_hidden = vec![false; paths.len()];
        if self.whiteouts == Whiteouts::Obeyed {
            for path in 1..table.path_count() {
                // What a path is in comes before it.
                is_hidden[path as usize] =
                    is_hidden[table.parent(path) as usize] || table.name(path).starts_with(PREFIX);
            }
        }
        let hidden = HashMap::new();
        let (removed, replaced) = (HashMap::new(), HashMap::new());
        let mut layer = Layer { number, table, names, nodes, is_hidden, hidden, removed, replaced };
        if self.whiteouts == Whiteouts::Obeyed && number > 0 {
            self.obey(&mut layer);
        }
        for (number, entry) in (0..).zip(table.entries()) {
            if layer.is_hidden[entry.path as usize] {
                self.add_hidden(&mut layer, number, &entry);
            } else {
                self.add_entry(&mut layer, number, &entry);
            }
        }
    }

    /// Keeps what is not to be seen for links to it.
    fn add_hidden(&mut self, layer: &mut Layer<'a>, number: u32, entry: &Entry) {
        let inode = match layer.table.link_path(entry) {
            Some(target) => self.link_target(layer, number, entry.path, target).ok(),
            None if entry.kind == Kind::Dir => None,
            None => Some(self.add_inode(BuildInode {
                layer: layer.number,
                entry: number,
                links: 0,
                kind: InodeKind::Leaf,
            })),
        };
        match inode {
            Some(inode) => layer.hidden.insert(entry.path, inode),
            None => layer.hidden.remove(&entry.path),
        };
    }

    fn name(&mut self, name: &'a [u8]) -> u32 {
        let next = self.names.len() as u32;
        *self.names.entry(name).or_insert(next)
    }

    /// Hides what the whiteouts of a layer say, before anything of the layer is there.
    fn obey(&mut self, layer: &mut Layer<'a>) {
        let is_whiteout = |path: &u32| {
            matches!(meaning(layer.table.name(*path)), Meaning::Whiteout(_) | Meaning::Opaque)
        };
        let paths = (1..layer.table.path_count()).filter(is_whiteout);
        // What only hard links name is no whiteout.
        let entry_of = |path| layer.table.last_entry(path).map(|entry| (entry, path));
        let mut whiteouts: Vec<(u32, u32)> = paths.filter_map(entry_of).collect();
        // What several of them remove, the first one has removed.
        whiteouts.sort_unstable();
        for (entry, path) in whiteouts {
            let Some(dir) = self.find(layer, layer.table.parent(path)) else { continue };
            let removed = match meaning(layer.table.name(path)) {
                Meaning::Name | Meaning::Hidden => continue,
                Meaning::Whiteout(hidden) => {
                    let name = self.names.get(hidden);
                    match name.and_then(|name| self.child(dir, *name)) {
                        Some(node) => self.kill(node),
                        None => continue,
                    }
                }
                Meaning::Opaque => self.kill_children(dir),
            };
            layer.removed.extend(removed.into_iter().map(|node| (node, entry)));
        }
    }

    fn add_entry(&mut self, layer: &mut Layer<'a>, number: u32, entry: &Entry) {
        let path = entry.path;
        let inode = |kind| BuildInode { layer: layer.number, entry: number, links: 1, kind };
        if path == ROOT {
            // The parser lets nothing else be the root.
            if entry.kind == Kind::Dir {
                self.update(TOP, layer.number, path, inode(InodeKind::Dir));
            }
            return;
        }
        if entry.kind == Kind::Dir {
            let inode = inode(InodeKind::Dir);
            let node = self.directory(layer, path);
            self.update(node, layer.number, path, inode);
            return;
        }
        let leaf = inode(InodeKind::Leaf);
        let dir = self.directory(layer, layer.table.parent(path));
        if let Some(node) = self.child(dir, layer.names[path as usize]) {
            self.kill(node);
        }
        let target = layer
            .table
            .link_path(entry)
            .map(|target| self.link_target(layer, number, path, target));
        let inode = match target {
            None => self.add_inode(leaf),
            Some(Err(why)) => self.add_inode(BuildInode { kind: InodeKind::Broken(why), ..leaf }),
            Some(Ok(inode)) => {
                self.inodes[inode as usize].links += 1;
                inode
            }
        };
        self.add_node(layer, dir, path, inode);
    }

    /// The inode that the hard link `entry`, which has the path `path`, is to.
    fn link_target(
        &self,
        layer: &Layer<'a>,
        entry: u32,
        path: u32,
        target: u32,
    ) -> Result<u32, Broken> {
        if target == path {
            return Err(Broken::ToItself);
        }
        if layer.is_hidden[target as usize] {
            return layer.hidden.get(&target).copied().ok_or(Broken::Missing);
        }
        let node = self.find(layer, target).or_else(|| self.find_removed(layer, target, entry));
        let node = node.ok_or(Broken::Missing)?;
        let inode = self.nodes[node as usize].inode;
        match self.inodes[inode as usize].kind {
            InodeKind::Leaf => Ok(inode),
            InodeKind::Dir => Err(Broken::Directory),
            InodeKind::Broken(_) => Err(Broken::Broken),
        }
    }

    fn add_inode(&mut self, inode: BuildInode) -> u32 {
        self.inodes.push(inode);
        self.inodes.len() as u32 - 1
    }

    fn add_node(&mut self, layer: &mut Layer<'a>, dir: u32, path: u32, inode: u32) -> u32 {
        let node = self.nodes.len() as u32;
        let name = layer.names[path as usize];
        let next = std::mem::replace(&mut self.nodes[dir as usize].first_child, node);
        self.nodes.push(BuildNode {
            layer: layer.number,
            path,
            inode,
            is_alive: true,
            is_anew: false,
            first_child: NONE,
            next,
        });
        if let Some(before) = self.children.insert((dir, name), node)
            && layer.removed.contains_key(&before)
        {
            layer.replaced.entry((dir, name)).or_insert(before);
        }
        layer.nodes[path as usize] = node;
        node
    }

    /// Gives a directory other attributes.
    fn update(&mut self, node: u32, layer: u16, path: u32, inode: BuildInode) {
        let node = &mut self.nodes[node as usize];
        node.layer = layer;
        node.path = path;
        self.inodes[node.inode as usize] = inode;
    }

    fn is_dir(&self, node: u32) -> bool {
        let inode = self.nodes[node as usize].inode;
        self.inodes[inode as usize].kind == InodeKind::Dir
    }

    /// What has a name in a directory now.
    fn child(&self, dir: u32, name: u32) -> Option<u32> {
        let node = *self.children.get(&(dir, name))?;
        (self.nodes[node as usize].is_alive && self.is_dir(dir)).then_some(node)
    }

    /// What has a path of the layer now.
    fn find(&self, layer: &Layer<'a>, path: u32) -> Option<u32> {
        let mut parts = Vec::new();
        let mut at = path;
        // From the nearest directory whose node is known.
        let start = loop {
            if at == ROOT {
                break TOP;
            }
            let known = layer.nodes[at as usize];
            if known != NONE && self.nodes[known as usize].is_alive {
                break known;
            }
            parts.push(layer.names[at as usize]);
            at = layer.table.parent(at);
        };
        parts.iter().rev().try_fold(start, |dir, name| self.child(dir, *name))
    }

    /// What lower layers have at a path of the layer that a whiteout has removed which only comes after `entry`:
    /// whoever extracts the layer in order finds it there.
    fn find_removed(&self, layer: &Layer<'a>, path: u32, entry: u32) -> Option<u32> {
        if layer.removed.is_empty() {
            return None;
        }
        let mut parts = Vec::new();
        let mut at = path;
        while at != ROOT {
            parts.push(layer.names[at as usize]);
            at = layer.table.parent(at);
        }
        let was_there = |node: &u32| {
            self.nodes[*node as usize].is_alive
                || layer.removed.get(node).is_some_and(|whiteout| *whiteout > entry)
        };
        parts.iter().rev().try_fold(TOP, |dir, name| {
            let place = (dir, *name);
            let known = [layer.replaced.get(&place), self.children.get(&place)];
            let node = known.into_iter().flatten().copied().find(was_there);
            node.filter(|_| self.is_dir(dir))
        })
    }

    /// The directory with a path of the layer, which is made if it is not there.
    fn directory(&mut self, layer: &mut Layer<'a>, path: u32) -> u32 {
        let mut missing = Vec::new();
        let mut at = path;
        let mut dir = loop {
            if at == ROOT {
                break TOP;
            }
            let known = layer.nodes[at as usize];
            if known != NONE && self.nodes[known as usize].is_alive && self.is_dir(known) {
                break known;
            }
            missing.push(at);
            at = layer.table.parent(at);
        };
        for path in missing.into_iter().rev() {
            let child = self.child(dir, layer.names[path as usize]);
            dir = match child {
                Some(node) if self.is_dir(node) => {
                    layer.nodes[path as usize] = node;
                    node
                }
                other => {
                    let is_anew = other.is_some();
                    if let Some(node) = other {
                        self.kill(node);
                    }
                    let inode = self.add_inode(BuildInode {
                        layer: layer.number,
                        entry: NONE,
                        links: 1,
                        kind: InodeKind::Dir,
                    });
                    let node = self.add_node(layer, dir, path, inode);
                    self.nodes[node as usize].is_anew = is_anew;
                    node
                }
            };
        }
        dir
    }

    /// Removes a node and all that is in it. Gives the nodes that it was.
    fn kill(&mut self, node: u32) -> Vec<u32> {
        let mut doomed = vec![node];
        let mut killed = Vec::new();
        while let Some(node) = doomed.pop() {
            let dead = &mut self.nodes[node as usize];
            if !std::mem::replace(&mut dead.is_alive, false) {
                continue;
            }
            killed.push(node);
            self.inodes[dead.inode as usize].links -= 1;
            let mut child = dead.first_child;
            while child != NONE {
                doomed.push(child);
                child = self.nodes[child as usize].next;
            }
        }
        killed
    }

    fn kill_children(&mut self, dir: u32) -> Vec<u32> {
        let mut killed = Vec::new();
        let mut child = std::mem::replace(&mut self.nodes[dir as usize].first_child, NONE);
        while child != NONE {
            let next = self.nodes[child as usize].next;
            killed.append(&mut self.kill(child));
            child = next;
        }
        killed
    }

    /// Puts what is alive into its final order.
    fn finish(self, layers: &[Arc<LayerIndex>], rootfs: &mut Rootfs) {
        let alive = self.nodes.iter().filter(|node| node.is_alive).count();
        rootfs.rows.reserve_exact(alive);
        // Build numbers of the nodes in the order of their rows.
        let mut order = Vec::with_capacity(alive);
        let mut final_inodes = HashMap::new();
        let name_of = |node: &BuildNode| layers[usize::from(node.layer)].table().name(node.path);
        self.push_row(TOP, 0, layers, &mut final_inodes, rootfs);
        order.push(TOP);
        let mut at = 0;
        while let Some(&dir) = order.get(at) {
            let first = order.len();
            let mut child = self.nodes[dir as usize].first_child;
            while child != NONE {
                let node = &self.nodes[child as usize];
                if node.is_alive {
                    order.push(child);
                }
                child = node.next;
            }
            order[first..].sort_unstable_by_key(|child| name_of(&self.nodes[*child as usize]));
            let mut subdirs = 0;
            for &child in &order[first..] {
                self.push_row(child, at as u32, layers, &mut final_inodes, rootfs);
                subdirs += u32::from(self.is_dir(child));
            }
            let row = &mut rootfs.rows[at];
            row.first = first as u32;
            row.count = (order.len() - first) as u32;
            row.subdirs = subdirs;
            at += 1;
        }
        rootfs.shared.shrink_to_fit();
        rootfs.inodes.shrink_to_fit();
        rootfs.broken.shrink_to_fit();
    }

    fn push_row(
        &self,
        node: u32,
        parent: u32,
        layers: &[Arc<LayerIndex>],
        final_inodes: &mut HashMap<u32, u32>,
        rootfs: &mut Rootfs,
    ) {
        let number = rootfs.rows.len() as u32;
        let node = &self.nodes[node as usize];
        let inode = &self.inodes[node.inode as usize];
        if node.is_anew {
            rootfs.anew.push(number);
        }
        let own = || layers.get(usize::from(node.layer))?.table().last_entry(node.path);
        let is_own = || inode.layer == node.layer && own() == Some(inode.entry);
        let form = match inode.kind {
            InodeKind::Broken(why) => {
                rootfs.broken.push((number, why));
                Form::Broken
            }
            InodeKind::Dir if inode.entry == NONE => Form::Implied,
            InodeKind::Dir => Form::Entry,
            InodeKind::Leaf if inode.links == 1 && is_own() => Form::Entry,
            InodeKind::Leaf => {
                let at = *final_inodes.entry(node.inode).or_insert_with(|| {
                    rootfs.inodes.push(Inode {
                        layer: inode.layer,
                        entry: inode.entry,
                        links: inode.links,
                        node: number,
                    });
                    rootfs.inodes.len() as u32 - 1
                });
                rootfs.shared.push((number, at));
                Form::Shared
            }
        };
        rootfs.rows.push(NodeRow {
            layer: node.layer,
            form,
            path: node.path,
            parent,
            first: 0,
            count: 0,
            subdirs: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_mean() {
        let table: [(&str, Meaning<'_>); 11] = [
            ("a", Meaning::Name),
            (".wha", Meaning::Name),
            ("a.wh.b", Meaning::Name),
            (".wh.a", Meaning::Whiteout(b"a")),
            (".wh..a", Meaning::Whiteout(b".a")),
            (".wh..wh..opq", Meaning::Opaque),
            (".wh..wh..opqX", Meaning::Hidden),
            (".wh..wh.plnk", Meaning::Hidden),
            (".wh..wh.aufs", Meaning::Hidden),
            (".wh..", Meaning::Hidden),
            (".wh...", Meaning::Hidden),
        ];
        for (name, expected) in table {
            assert_eq!(meaning(name.as_bytes()), expected, "{name}");
        }
        assert_eq!(meaning(b".wh."), Meaning::Hidden);
    }
}
