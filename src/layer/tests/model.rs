//! Random stacks of layers against the obvious way: extract the layers in order.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

use proptest::prelude::*;

use super::{
    archive::{Archive, Header},
    layer,
};
use crate::layer::{Found, Kind, Rootfs, find_from_top};

/// An entry of a random layer.
#[derive(Clone, Debug)]
pub(super) struct Item {
    path: String,
    what: What,
    mode: u16,
    uid: u32,
    mtime: i64,
    xattr: Option<u8>,
}

#[derive(Clone, Debug)]
enum What {
    File(u8),
    Dir,
    Symlink(String),
    Link(String),
    Fifo,
    Char(u8),
}

/// A file of the model: what `stat`, `cat` and `getfattr` would say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    kind: Kind,
    mode: u16,
    uid: u32,
    mtime: i64,
    xattr: Option<u8>,
    content: Vec<u8>,
    device: u32,
    is_broken: bool,
}

/// Path to inode; what is in a directory has its path before it.
type Model = BTreeMap<String, Rc<RefCell<File>>>;

fn content(seed: u8) -> Vec<u8> {
    vec![seed; usize::from(seed)]
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

fn remove(model: &mut Model, path: &str) {
    remove_children(model, path);
    model.remove(path);
}

fn remove_children(model: &mut Model, dir: &str) {
    let inside = format!("{dir}/");
    model.retain(
        |path, _| if dir.is_empty() { path.is_empty() } else { !path.starts_with(&inside) },
    );
}

fn is_dir(model: &Model, path: &str) -> bool {
    model.get(path).is_some_and(|file| file.borrow().kind == Kind::Dir)
}

fn make_dir(model: &mut Model, path: &str, mtime: i64) {
    if is_dir(model, path) {
        return;
    }
    make_dir(model, parent(path), mtime);
    remove(model, path);
    let dir = File {
        kind: Kind::Dir,
        mode: 0o755,
        uid: 0,
        mtime,
        xattr: None,
        content: Vec::new(),
        device: 0,
        is_broken: false,
    };
    model.insert(path.to_owned(), Rc::new(RefCell::new(dir)));
}

/// Obeys one whiteout.
fn obey(model: &mut Model, item: &Item) {
    let dir = parent(&item.path);
    if !is_dir(model, dir) {
        return;
    }
    match name(&item.path) {
        ".wh..wh..opq" => remove_children(model, dir),
        name if name.starts_with(".wh..wh.") => {}
        name => {
            if let Some(hidden) = name.strip_prefix(".wh.") {
                let path = format!("{dir}/{hidden}");
                remove(model, path.trim_start_matches('/'));
            }
        }
    }
}

/// What a layer alone has by now, by path.
#[derive(Clone)]
enum Own {
    Dir,
    Link(String),
    Other,
}

/// Goes along `way` from `at`, through links; `None` if there are too many.
fn walk(
    own: &BTreeMap<String, Own>,
    at: &[String],
    way: &str,
    links: &mut usize,
) -> Option<Vec<String>> {
    *links += 1;
    let mut at = if way.starts_with('/') { Vec::new() } else { at.to_vec() };
    for part in (*links <= 40).then_some(way)?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(at.pop()),
            part => {
                let dir = at.clone();
                at.push(part.to_owned());
                if let Some(Own::Link(target)) = own.get(&at.join("/")) {
                    at = walk(own, &dir, target, links)?;
                }
            }
        }
    }
    Some(at)
}

/// Where `path` is if what it is in is looked for as by whoever extracts the layer.
fn follow(own: &BTreeMap<String, Own>, path: &str) -> String {
    let (mut at, mut links) = (Vec::new(), 0);
    for part in parent(path).split('/').filter(|part| !part.is_empty()) {
        let dir: Vec<String> = at.clone();
        at.push(part.to_owned());
        if let Some(Own::Link(target)) = own.get(&at.join("/"))
            && let Some(there) = walk(own, &dir, target, &mut links)
        {
            at = there;
        }
    }
    at.push(name(path).to_owned());
    at.join("/")
}

/// The items of a layer where they are if links of the same layer are followed.
fn followed(layer: &[Item]) -> Vec<Item> {
    let mut own: BTreeMap<String, Own> = BTreeMap::new();
    let remove = |own: &mut BTreeMap<String, Own>, path: &str| {
        let inside = format!("{path}/");
        own.retain(|other, _| other != path && !other.starts_with(&inside));
    };
    let mut items = layer.to_vec();
    for item in &mut items {
        item.path = follow(&own, &item.path);
        if name(&item.path).starts_with(".wh.") {
            continue;
        }
        for (end, _) in item.path.match_indices('/') {
            let dir = &item.path[..end];
            if !matches!(own.get(dir), Some(Own::Dir)) {
                remove(&mut own, dir);
                own.insert(dir.to_owned(), Own::Dir);
            }
        }
        if !matches!((&item.what, own.get(&item.path)), (What::Dir, Some(Own::Dir))) {
            remove(&mut own, &item.path);
        }
        let is = match &mut item.what {
            What::Dir => Own::Dir,
            What::Symlink(target) => Own::Link(target.clone()),
            What::Link(target) => {
                *target = follow(&own, target);
                match own.get(target) {
                    Some(Own::Link(there)) => Own::Link(there.clone()),
                    _ => Own::Other,
                }
            }
            _ => Own::Other,
        };
        own.insert(item.path.clone(), is);
    }
    items
}

fn extract(model: &mut Model, layer: &[Item], number: usize) {
    let layer = &followed(layer);
    // What lower layers have that no whiteout has removed so far, without anything of this layer.
    let mut lower = model.clone();
    if number > 0 {
        layer.iter().for_each(|item| obey(model, item));
    }
    let kept = model.clone();
    // What a link finds that comes before the whiteout of its target.
    let removed_later = |model: &Model, lower: &Model, target: &str| {
        let is_way = |end: usize| match kept.get(&target[..end]) {
            Some(dir) => model.get(&target[..end]).is_some_and(|now| Rc::ptr_eq(now, dir)),
            None => true,
        };
        let ways = target.match_indices('/').map(|(end, _)| end);
        let is_removed = !kept.contains_key(target) && { ways }.all(is_way);
        lower.get(target).filter(|_| is_removed).cloned()
    };
    let earliest = layer.iter().map(|item| item.mtime).min().unwrap_or(0);
    for (at, item) in layer.iter().enumerate() {
        if name(&item.path).starts_with(".wh.") {
            // The last one of several with the same path counts.
            if number > 0 && !layer[at + 1..].iter().any(|later| later.path == item.path) {
                obey(&mut lower, item);
            }
            continue;
        }
        make_dir(model, parent(&item.path), earliest);
        let mut file = File {
            kind: Kind::File,
            mode: item.mode,
            uid: item.uid,
            mtime: item.mtime,
            xattr: item.xattr,
            content: Vec::new(),
            device: 0,
            is_broken: false,
        };
        if matches!(item.what, What::Dir) {
            file.kind = Kind::Dir;
            make_dir(model, &item.path, earliest);
            *model[&item.path].borrow_mut() = file;
            continue;
        }
        remove(model, &item.path);
        let inode = match &item.what {
            What::Dir => continue,
            What::File(seed) => Rc::new(RefCell::new(File { content: content(*seed), ..file })),
            What::Symlink(target) => {
                let content = target.clone().into_bytes();
                Rc::new(RefCell::new(File { kind: Kind::Symlink, mode: 0o777, content, ..file }))
            }
            What::Fifo => Rc::new(RefCell::new(File { kind: Kind::Fifo, ..file })),
            What::Char(minor) => {
                let device = u32::from(*minor);
                Rc::new(RefCell::new(File { kind: Kind::Char, device, ..file }))
            }
            What::Link(target) => match model
                .get(target)
                .cloned()
                .or_else(|| removed_later(model, &lower, target))
                .filter(|_| *target != item.path)
            {
                Some(t) if t.borrow().kind != Kind::Dir && !t.borrow().is_broken => t,
                _ => Rc::new(RefCell::new(File { is_broken: true, ..file })),
            },
        };
        model.insert(item.path.clone(), inode);
    }
}

pub(super) fn archive(layer: &[Item]) -> Archive {
    layer.iter().fold(Archive::new(), |mut archive, item| {
        let (flag, data, target) = match &item.what {
            What::File(seed) => (b'0', content(*seed), ""),
            What::Dir => (b'5', Vec::new(), ""),
            What::Symlink(target) => (b'2', Vec::new(), &target[..]),
            What::Link(target) => (b'1', Vec::new(), &target[..]),
            What::Fifo => (b'6', Vec::new(), ""),
            What::Char(_) => (b'3', Vec::new(), ""),
        };
        if let Some(value) = item.xattr {
            archive = archive.pax(b'x', &[("SCHILY.xattr.user.v", &[value])]);
        }
        let minor = if let What::Char(minor) = item.what { minor } else { 0 };
        let mut header = Header::new(item.path.as_bytes(), flag);
        header
            .mode(item.mode.into())
            .owner(item.uid.into(), 0)
            .mtime(item.mtime as u64)
            .target(target.as_bytes())
            .size(data.len() as u64)
            .device(0, minor.into());
        archive.entry(&header, &data)
    })
}

fn paths() -> impl Strategy<Value = String> {
    let part = prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

pub(super) fn items() -> impl Strategy<Value = Item> {
    let what = prop_oneof![
        4 => any::<u8>().prop_map(What::File),
        4 => Just(What::Dir),
        3 => (0..4_usize, paths()).prop_map(|(way, path)| {
            What::Symlink(["", "/", "../", "../../"][way].to_owned() + &path)
        }),
        3 => paths().prop_map(What::Link),
        1 => Just(What::Fifo),
        1 => any::<u8>().prop_map(What::Char),
    ];
    let marker = prop_oneof![
        12 => Just(0),
        2 => Just(1),
        1 => Just(2),
        1 => Just(3),
    ];
    (paths(), what, marker, 0_u16..0o7777, 0_u32..5, 0_i64..9, proptest::option::of(any::<u8>()))
        .prop_map(|(path, what, marker, mode, uid, mtime, xattr)| {
            let dir = parent(&path);
            let slash = if dir.is_empty() { "" } else { "/" };
            let last = name(&path);
            let path = match marker {
                1 => format!("{dir}{slash}.wh.{last}"),
                2 => format!("{dir}{slash}.wh..wh..opq"),
                3 => format!("{dir}{slash}.wh..wh.{last}"),
                _ => path,
            };
            // Markers are files.
            let what = if marker > 0 { What::File(0) } else { what };
            Item { path, what, mode, uid, mtime, xattr }
        })
}

/// More than usual: they are small.
fn cases() -> u32 {
    6 * ProptestConfig::default().cases
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn merged_trees_are_what_extracting_makes(
        layers in proptest::collection::vec(proptest::collection::vec(items(), 0..14), 0..5),
    ) {
        let mut model = Model::new();
        make_root(&mut model, &layers);
        for (number, layer) in layers.iter().enumerate() {
            extract(&mut model, layer, number);
        }
        let archives: Vec<Vec<u8>> = layers.iter().map(|items| archive(items).end()).collect();
        let indexes: Vec<_> = archives.iter().map(|archive| layer(archive)).collect();
        let tree = Rootfs::new(indexes.clone()).unwrap();
        let mut found = BTreeMap::new();
        for number in 0..tree.node_count() {
            let node = tree.node(number).unwrap();
            found.insert(String::from_utf8(tree.path(node)).unwrap(), node);
        }
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), model.keys().collect::<Vec<_>>());
        for (path, node) in &found {
            let a = tree.attributes(*node);
            let file = model[path].borrow();
            let mut bytes = tree.symlink_target(*node).unwrap_or_default().to_vec();
            if let Ok(data) = tree.data(*node) {
                for extent in data.extents {
                    let from = extent.stream_offset as usize;
                    bytes.extend(&archives[data.layer][from..from + extent.length as usize]);
                }
            }
            let seen = File {
                kind: a.kind,
                mode: a.mode,
                uid: a.uid,
                mtime: a.mtime.secs,
                xattr: tree.xattrs(*node).next().map(|(_, value)| value[0]),
                content: bytes,
                device: a.device.1,
                is_broken: tree.broken(*node).is_some(),
            };
            prop_assert_eq!(&seen, &*file, "{}", path);
            prop_assert_eq!(a.size, if file.kind == Kind::Dir { 0 } else { seen.content.len() as u64 });
            let links = match a.kind {
                Kind::Dir => {
                    let is_sub = |sub: &&String| {
                        !sub.is_empty() && parent(sub) == path && is_dir(&model, sub)
                    };
                    2 + model.keys().filter(is_sub).count()
                }
                _ => Rc::strong_count(&model[path]),
            };
            prop_assert_eq!(a.links as usize, links, "{}", path);
            // Names share an inode just if they do in the model.
            for (other, other_node) in &found {
                let is_same = tree.inode(*node) == tree.inode(*other_node);
                prop_assert_eq!(is_same, Rc::ptr_eq(&model[path], &model[other]));
            }
        }
        // Looking from the top says the same, where it says something.
        let raw: Vec<_> = indexes.iter().map(|i| Rootfs::raw(Arc::clone(i)).unwrap()).collect();
        let all: Vec<_> = raw.iter().map(Some).collect();
        for path in ["", "a", "b", "a/a", "a/b", "b/a", "b/c", "c/d", "a/b/c", "d/c/b"] {
            match find_from_top(&all, path.as_bytes()) {
                Found::Missing => prop_assert!(!found.contains_key(path), "{}", path),
                Found::Node { layer, node } => {
                    let merged = found.get(path);
                    prop_assert!(merged.is_some(), "{}", path);
                    let (a, b) = (tree.attributes(*merged.unwrap()), raw[layer].attributes(node));
                    prop_assert_eq!((a.kind, a.mode, a.size), (b.kind, b.mode, b.size), "{}", path);
                }
                Found::Waits(_) => prop_assert!(false, "all layers are there"),
                Found::NeedsMerge => {}
            }
        }
    }
}

/// The root is there, with the time of the lowest layer.
fn make_root(model: &mut Model, layers: &[Vec<Item>]) {
    let mtime = layers.first().and_then(|items| items.iter().map(|i| i.mtime).min()).unwrap_or(0);
    let root = File {
        kind: Kind::Dir,
        mode: 0o755,
        uid: 0,
        mtime,
        xattr: None,
        content: Vec::new(),
        device: 0,
        is_broken: false,
    };
    model.insert(String::new(), Rc::new(RefCell::new(root)));
}
