//! Two trees side by side, and what differs in what they say of their files.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    content::{Sameness, known_sameness},
    report::{Aspect, FileState},
};
use crate::{
    layer::{Attributes, Kind, Node},
    ops::{Error, OpenImage, Result, type_name},
    rootfs::{PathError, Tree},
};

/// A tree, and where in it the comparison begins.
pub(super) struct Place {
    pub(super) tree: Arc<Tree>,
    pub(super) start: Option<Node>,
    /// The names of files with several, as seen from `start`; by the node that stands for all of them.
    pub(super) names: HashMap<Node, Vec<Vec<u8>>>,
    /// The number of the lowest layer of the tree.
    pub(super) first_layer: usize,
}

impl Place {
    pub(super) async fn find(opened: &OpenImage, path: &str) -> Result<Self> {
        let tree = opened.whole_tree().await?;
        let found = opened.files.resolve(path.as_bytes(), true).await.map_err(Error::Image)?;
        let path = match found {
            Ok((of, node)) => Some(of.rootfs().path(node)),
            Err(PathError::Missing | PathError::NotADirectory) => None,
            Err(error) => return Err(Error::Path(error)),
        };
        Ok(Self::new(tree, path, 0))
    }

    pub(super) fn new(tree: Arc<Tree>, path: Option<Vec<u8>>, first_layer: usize) -> Self {
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
    pub(super) fn own_bytes(&self, node: Node, path: &[u8], other: &Self) -> u64 {
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
    pub(super) fn has(&self, path: &[u8]) -> bool {
        let rootfs = self.tree.rootfs();
        let mut parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty());
        self.start.and_then(|at| parts.try_fold(at, |at, part| rootfs.lookup(at, part))).is_some()
    }

    pub(super) fn state(&self, node: Node) -> FileState {
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
    pub(super) fn names(&self, node: Node) -> &[Vec<u8>] {
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
pub(super) struct Pair {
    /// From where the comparison begins.
    pub(super) path: Vec<u8>,
    pub(super) a: Option<Node>,
    pub(super) b: Option<Node>,
    /// What is not the same of what both have.
    pub(super) aspects: Vec<Aspect>,
    /// Whether only reading tells if the content is the same.
    pub(super) must_be_read: bool,
}

/// Goes through both trees side by side, in the order of the paths. Leaves out what is the same for sure.
pub(super) fn walk(a: &Place, b: &Place, times: bool) -> Vec<Pair> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_seen_from_where_the_comparison_begins() {
        assert_eq!(from(b"", b"a/b".to_vec()), b"a/b");
        assert_eq!(from(b"a", b"a/b".to_vec()), b"b");
        assert_eq!(from(b"a", b"ab/b".to_vec()), b"ab/b");
    }
}
