//! The rules of merged trees, one table each.

use std::sync::Arc;

use super::{
    archive::{Archive, Header},
    layer,
};
use crate::layer::{Broken, Found, Kind, LayerIndex, Node, Rootfs, find_from_top};

fn merged(layers: &[Archive]) -> Rootfs {
    let layers: Vec<_> = layers.iter().map(|archive| layer(&archive.clone().end())).collect();
    Rootfs::new(layers).unwrap()
}

/// The content of a file, which is found in its layer's archive.
fn content(tree: &Rootfs, archives: &[Archive], node: Node) -> String {
    let data = match tree.data(node) {
        Ok(data) => data,
        Err(why) => return format!("! {why}"),
    };
    let stream = archives[data.layer].clone().end();
    let mut content = vec![b'.'; data.size as usize];
    for extent in data.extents {
        let (to, from) = (extent.file_offset as usize, extent.stream_offset as usize);
        let length = extent.length as usize;
        content[to..to + length].copy_from_slice(&stream[from..from + length]);
    }
    content.escape_ascii().to_string()
}

/// Every path with what is there: `d` and permissions, content, number of links if several.
fn list(archives: &[Archive]) -> Vec<String> {
    let tree = merged(archives);
    let mut lines = Vec::new();
    for number in 1..tree.node_count() {
        let node = tree.node(number).unwrap();
        assert_eq!(tree.find(&tree.path(node)), Some(node));
        let parent = tree.parent(node);
        assert_eq!(tree.lookup(parent, tree.name(node)), Some(node));
        let a = tree.attributes(node);
        let path = tree.path(node).escape_ascii().to_string();
        let links = if a.links > 1 { format!(" x{}", a.links) } else { String::new() };
        lines.push(match a.kind {
            Kind::Dir => format!("{path}/ {:o}", a.mode),
            Kind::Symlink => {
                format!("{path} -> {}{links}", tree.symlink_target(node).unwrap().escape_ascii())
            }
            Kind::File => format!("{path} {}{links}", content(&tree, archives, node)),
            kind => format!("{path} {kind:?}{links}"),
        });
    }
    lines.sort();
    lines
}

#[track_caller]
fn check(what: &str, archives: &[Archive], expected: &[&str]) {
    assert_eq!(list(archives), expected, "{what}");
}

fn a() -> Archive {
    Archive::new()
}

#[test]
fn whiteouts() {
    let base = || a().dir("d").file("d/x", b"1").file("d/y", b"1").file("e", b"1");
    let both = ["d/ 755", "d/y 1", "e 1"];
    check("hides a lower file", &[base(), a().file("d/.wh.x", b"")], &both);
    check("hides a directory and all in it", &[base(), a().file(".wh.d", b"")], &["e 1"]);
    check(
        "of nothing",
        &[base(), a().file(".wh.no", b"").file("no/.wh.x", b"")],
        &["d/ 755", "d/x 1", "d/y 1", "e 1"],
    );
    let own = ["d/ 755", "d/x 2", "d/y 1", "e 1"];
    check(
        "not of its own layer, before",
        &[base(), a().file("d/.wh.x", b"").file("d/x", b"2")],
        &own,
    );
    check(
        "not of its own layer, after",
        &[base(), a().file("d/x", b"2").file("d/.wh.x", b"")],
        &own,
    );
    let anew = ["d/ 755", "d/z 2", "e 1"];
    check(
        "a directory made anew",
        &[base(), a().file(".wh.d", b"").dir("d").file("d/z", b"2")],
        &anew,
    );
    check(
        "the same in another order",
        &[base(), a().dir("d").file("d/z", b"2").file(".wh.d", b"")],
        &anew,
    );
    check("the middle of three", &[base(), a().file("d/x", b"2"), a().file("d/.wh.x", b"")], &both);
    check(
        "hidden, then there again",
        &[base(), a().file("d/.wh.x", b""), a().file("d/x", b"3")],
        &["d/ 755", "d/x 3", "d/y 1", "e 1"],
    );
    check(
        "with a body, a link, a device, a directory",
        &[
            base(),
            a().file("d/.wh.x", b"body")
                .link("d/.wh.y", ".wh..wh.aufs")
                .entry(Header::new(b".wh.e", b'3').device(0, 0), b""),
        ],
        &["d/ 755"],
    );
    check(
        "a directory as a marker",
        &[base(), a().dir(".wh.e").file(".wh.e/x", b"")],
        &["d/ 755", "d/x 1", "d/y 1"],
    );
    check(
        "in the lowest layer",
        &[a().file("d/.wh.x", b"").file("d/.wh..wh..opq", b"").file("e", b"1")],
        &["e 1"],
    );
    check(
        "of dots",
        &[base(), a().file("d/.wh..", b"").file("d/.wh...", b"").file("d/.wh.", b"")],
        &["d/ 755", "d/x 1", "d/y 1", "e 1"],
    );
    check(
        "of a name with a dot",
        &[base().file(".x", b"1"), a().file(".wh..x", b"")],
        &["d/ 755", "d/x 1", "d/y 1", "e 1"],
    );
}

#[test]
fn opaque_directories() {
    let base = || a().dir("d").file("d/x", b"1").file("d/s/y", b"1").file("e", b"1");
    let upper = ["d/ 755", "d/n 2", "e 1"];
    let opaque = "d/.wh..wh..opq";
    check("before", &[base(), a().dir("d").file(opaque, b"").file("d/n", b"2")], &upper);
    check("after", &[base(), a().dir("d").file("d/n", b"2").file(opaque, b"")], &upper);
    check("alone", &[base(), a().file(opaque, b"")], &["d/ 755", "e 1"]);
    check(
        "hides directories that are there again",
        &[base(), a().file(opaque, b"").file("d/s/z", b"2")],
        &["d/ 755", "d/s/ 755", "d/s/z 2", "e 1"],
    );
    check("in the root", &[base(), a().file(".wh..wh..opq", b"").file("n", b"2")], &["n 2"]);
    check(
        "only of lower layers",
        &[base(), a().file("d/n", b"2"), a().file(opaque, b"").file("d/m", b"3")],
        &["d/ 755", "d/m 3", "e 1"],
    );
    let names = [".wh..wh.plnk", ".wh..wh.aufs", ".wh..wh..opqX", ".wh..wh.x"];
    for name in names {
        check(
            name,
            &[base(), a().file(&format!("d/{name}"), b"").file(name, b"")],
            &["d/ 755", "d/s/ 755", "d/s/y 1", "d/x 1", "e 1"],
        );
        check(name, &[a().file(&format!("{name}/x"), b"").file("d/x", b"1")], &["d/ 755", "d/x 1"]);
    }
}

#[test]
fn markers_do_not_follow_symlinks() {
    let base = || a().file("real/x", b"1").symlink("link", "real");
    let all = ["link -> real", "real/ 755", "real/x 1"];
    check("whiteout", &[base(), a().file("link/.wh.x", b"")], &all);
    check("opaque", &[base(), a().file("link/.wh..wh..opq", b"")], &all);
}

/// As for whoever extracts the layer alone: umoci, containerd, podman.
#[test]
fn entries_in_links_of_the_same_layer() {
    let base = || a().file("usr/lib/old", b"1");
    for target in ["usr/lib", "/usr/lib", "../../usr/lib", "./usr/../usr//lib/"] {
        let link = format!("lib -> {target}");
        let in_usr = ["usr/ 755", "usr/lib/ 755", "usr/lib/old 1", "usr/lib/x 2"];
        let layer = a().symlink("lib", target).file("lib/x", b"2");
        check(target, &[base(), layer.clone()], &[&[&link[..]], &in_usr[..]].concat());
        check(
            "all in one",
            &[base().symlink("lib", target).file("lib/x", b"2")],
            &[&[&link[..]], &in_usr[..]].concat(),
        );
        // Where it leads is made if it is not there.
        let made = ["usr/ 755", "usr/lib/ 755", "usr/lib/x 2"];
        check("alone", &[layer], &[&[&link[..]], &made[..]].concat());
    }
    let deep = a().symlink("a/b/l", "../c").dir("a/b/l/d").file("a/b/l/d/x", b"1");
    let found = ["a/ 755", "a/b/ 755", "a/b/l -> ../c", "a/c/ 755", "a/c/d/ 755", "a/c/d/x 1"];
    check("relative to its directory", &[deep], &found);
    let chain = a().symlink("a", "b").symlink("b", "/c/../d").dir("d/e").symlink("d/e/f", "../g");
    check(
        "links that lead to links",
        &[chain.file("a/e/f/x", b"1")],
        &["a -> b", "b -> /c/../d", "d/ 755", "d/e/ 755", "d/e/f -> ../g", "d/g/ 755", "d/g/x 1"],
    );
    check(
        "a link is replaced, not followed, where it is what the entry is",
        &[a().symlink("l", "d").dir("l").file("l/x", b"1")],
        &["l/ 755", "l/x 1"],
    );
    check(
        "what comes before the link is not in it",
        &[a().file("l/x", b"1").symlink("l", "d").file("l/y", b"2")],
        &["d/ 755", "d/y 2", "l -> d"],
    );
    check(
        "a link that is there no more",
        &[a().symlink("l", "d").file("l", b"1").file("l/x", b"2")],
        &["l/ 755", "l/x 2"],
    );
    check(
        "a link in what has been replaced",
        &[a().symlink("p/l", "/d").file("p", b"1").dir("p").file("p/l/x", b"2")],
        &["p/ 755", "p/l/ 755", "p/l/x 2"],
    );
    check(
        "the last of several",
        &[a().symlink("l", "d").file("l/x", b"1").symlink("l", "e").file("l/x", b"2")],
        &["d/ 755", "d/x 1", "e/ 755", "e/x 2", "l -> e"],
    );
    check(
        "a hard link to a link",
        &[a().symlink("l", "d").link("h", "l").file("l", b"1").file("h/x", b"2")],
        &["d/ 755", "d/x 2", "h -> d", "l 1"],
    );
    check(
        "hard links in links, to what is in links",
        &[a().symlink("l", "d").file("d/t", b"1").link("l/u", "l/t").link("v", "l/u")],
        &["d/ 755", "d/t 1 x3", "d/u 1 x3", "l -> d", "v 1 x3"],
    );
    let lower = || a().file("d/x", b"1").file("d/y", b"1");
    check(
        "whiteouts in links",
        &[lower(), a().symlink("l", "d").file("l/.wh.x", b"").file("l/z", b"2")],
        &["d/ 755", "d/y 1", "d/z 2", "l -> d"],
    );
    check(
        "opaque directories in links",
        &[lower(), a().symlink("l", "d").file("l/z", b"2").file("l/.wh..wh..opq", b"")],
        &["d/ 755", "d/z 2", "l -> d"],
    );
}

#[test]
fn links_that_cannot_be_followed() {
    let circle = || a().symlink("a", "b").symlink("b", "a");
    // As in everything that is no directory.
    check("a circle", &[circle().file("a/x", b"1")], &["a/ 755", "a/x 1", "b -> a"]);
    check(
        "then it is one no more",
        &[circle().file("a/x", b"1").file("b/y", b"2")],
        &["a/ 755", "a/x 1", "a/y 2", "b -> a"],
    );
    check(
        "behind others",
        &[a().symlink("l", "d").symlink("d/e", "e").file("l/e/x", b"1")],
        &["d/ 755", "d/e/ 755", "d/e/x 1", "l -> d"],
    );
    check("a whiteout in it", &[circle().file("a/.wh.x", b"")], &["a -> b", "b -> a"]);
    let to_file = a().file("f", b"1").symlink("l", "f").file("l/x", b"2");
    check("to a file", &[to_file], &["f/ 755", "f/x 2", "l -> f"]);
    for (count, is_followed) in [(40, true), (41, false)] {
        let mut archive = a();
        for number in 0..count {
            archive = archive.symlink(&format!("l{number}"), &format!("l{}", number + 1));
        }
        let tree = merged(&[archive.file("l0/x", b"")]);
        assert_eq!(tree.find(format!("l{count}/x").as_bytes()).is_some(), is_followed, "{count}");
        assert_eq!(tree.find(b"l0/x").is_some(), !is_followed, "{count}");
    }
    // Each link leads to a longer path than the one before.
    let part = "p".repeat(250);
    let mut archive = a().long(b'K', part.as_bytes()).symlink("l0", "");
    for number in 1..17 {
        let target = format!("l{}/{part}", number - 1);
        archive = archive.long(b'K', target.as_bytes()).symlink(&format!("l{number}"), "");
    }
    for number in 0..17 {
        archive = archive.file(&format!("l{number}/x"), b"");
    }
    let tree = merged(&[archive]);
    for number in 0..17 {
        let there = [&vec![&part[..]; number + 1].join("/"), "/x"].concat();
        let is_followed = number < 16;
        assert_eq!(tree.find(there.as_bytes()).is_some(), is_followed, "{number}");
        assert_eq!(tree.find(format!("l{number}/x").as_bytes()).is_some(), !is_followed);
    }
}

#[test]
fn links_of_lower_layers_are_not_followed() {
    let base = || a().file("usr/lib/old", b"1").symlink("lib", "usr/lib");
    check(
        "an entry",
        &[base(), a().file("lib/x", b"2")],
        &["lib/ 755", "lib/x 2", "usr/ 755", "usr/lib/ 755", "usr/lib/old 1"],
    );
    // A layer's own link may lead to one of a lower layer.
    check(
        "an own one before it",
        &[base(), a().symlink("l", "lib").file("l/x", b"2")],
        &["l -> lib", "lib/ 755", "lib/x 2", "usr/ 755", "usr/lib/ 755", "usr/lib/old 1"],
    );
}

#[test]
fn links_have_all_permissions() {
    let tree = merged(&[a().entry(Header::new(b"l", b'2').mode(0o4644).target(b"x"), b"")]);
    assert_eq!(tree.attributes(tree.find(b"l").unwrap()).mode, 0o777);
}

#[test]
fn replaced_types() {
    let dir = || a().dir("p").file("p/x", b"1");
    let mode = |name: &[u8], mode| a().entry(Header::new(name, b'5').mode(mode), b"");
    check("directory over directory", &[dir(), mode(b"p", 0o700)], &["p/ 700", "p/x 1"]);
    check("file over directory", &[dir(), a().file("p", b"2")], &["p 2"]);
    check("symlink over directory", &[dir(), a().symlink("p", "q")], &["p -> q"]);
    check("fifo over directory", &[dir(), a().entry(&Header::new(b"p", b'6'), b"")], &["p Fifo"]);
    check("directory over file", &[a().file("p", b"1"), mode(b"p", 0o700)], &["p/ 700"]);
    check(
        "directory over symlink",
        &[a().symlink("p", "q").file("q/x", b"1"), a().dir("p")],
        &["p/ 755", "q/ 755", "q/x 1"],
    );
    check("file over file", &[a().file("p", b"1"), a().file("p", b"2")], &["p 2"]);
    check(
        "file, then directory again: empty",
        &[dir(), a().file("p", b"2"), a().dir("p")],
        &["p/ 755"],
    );
    check(
        "something in a symlink makes a directory",
        &[a().symlink("p", "q").file("q/y", b"1"), a().file("p/x", b"2")],
        &["p/ 755", "p/x 2", "q/ 755", "q/y 1"],
    );
    let bad = a().entry(Header::new(b"p", b'5').mode(0o1777).owner(5, 6).mtime(77), b"");
    let tree = merged(&[dir(), bad]);
    let attributes = tree.attributes(tree.find(b"p").unwrap());
    assert_eq!(
        (attributes.mode, attributes.uid, attributes.gid, attributes.mtime.secs),
        (0o1777, 5, 6, 77)
    );
    assert_eq!(tree.layer_of(tree.find(b"p").unwrap()), 1);
    assert_eq!(tree.layer_of(tree.find(b"p/x").unwrap()), 0);
}

#[test]
fn missing_parents() {
    let early = a()
        .entry(Header::new(b"z", b'0').mtime(50), b"")
        .entry(Header::new(b"p/q/x", b'0').mtime(70), b"");
    let tree = merged(std::slice::from_ref(&early));
    let attributes = |tree: &Rootfs, path: &[u8]| tree.attributes(tree.find(path).unwrap());
    for path in [&b"p"[..], b"p/q", b""] {
        let a = attributes(&tree, path);
        assert_eq!((a.kind, a.mode, a.uid, a.gid, a.mtime.secs), (Kind::Dir, 0o755, 0, 0, 50));
        assert!(tree.is_implied(tree.find(path).unwrap()));
    }
    // An entry wins, in the same layer after it and in a later one; a later implication does not.
    let explicit =
        |archive: Archive| archive.entry(Header::new(b"p", b'5').mode(0o711).owner(3, 4), b"");
    for layers in [
        vec![explicit(early.clone())],
        vec![early.clone(), explicit(a())],
        vec![explicit(a()), early],
    ] {
        let a = attributes(&merged(&layers), b"p");
        assert_eq!((a.mode, a.uid, a.gid), (0o711, 3, 4));
    }
    assert_eq!(merged(&[a()]).attributes(merged(&[a()]).root()).mtime.secs, 0);
    let none = Rootfs::new(Vec::new()).unwrap();
    assert_eq!((none.node_count(), none.attributes(none.root()).mode), (1, 0o755));
    assert_eq!((none.path(none.root()), none.data(none.root()).unwrap().size), (Vec::new(), 0));
    let root = merged(&[
        a().file("x", b""),
        a().entry(Header::new(b"./", b'5').mode(0o700).mtime(9), b""),
    ]);
    let a = root.attributes(root.root());
    assert_eq!((a.mode, a.mtime.secs, root.entries(root.root()).len()), (0o700, 9, 1));
}

#[test]
fn repeated_entries() {
    check("files", &[a().file("p", b"1").file("p", b"2")], &["p 2"]);
    check(
        "a file, then a directory",
        &[a().file("p", b"1").dir("p").file("p/x", b"")],
        &["p/ 755", "p/x "],
    );
    check("a directory, then a file", &[a().dir("p").file("p/x", b"").file("p", b"2")], &["p 2"]);
    check(
        "and a directory again",
        &[a().dir("p").file("p/x", b"").file("p", b"2").dir("p")],
        &["p/ 755"],
    );
    check(
        "a directory twice",
        &[a().dir("p").file("p/x", b"1").entry(Header::new(b"p/", b'5').mode(0o700), b"")],
        &["p/ 700", "p/x 1"],
    );
    check(
        "in other spellings",
        &[a().file("./p", b"1").file("/p", b"2").file("p", b"3")],
        &["p 3"],
    );
    check(
        "a file becomes a parent",
        &[a().file("p", b"1").file("p/x", b"2")],
        &["p/ 755", "p/x 2"],
    );
}

#[test]
fn hard_links() {
    let base = || a().file("t", b"1");
    check("in a layer", &[base().link("l", "t")], &["l 1 x2", "t 1 x2"]);
    check(
        "by other spellings",
        &[base().link("l", "./t").link("m", "/t")],
        &["l 1 x3", "m 1 x3", "t 1 x3"],
    );
    check("to a link", &[base().link("l", "t").link("m", "l")], &["l 1 x3", "m 1 x3", "t 1 x3"]);
    check("to a symlink", &[a().symlink("s", "x").link("l", "s")], &["l -> x x2", "s -> x x2"]);
    check("over layers", &[base(), a().link("l", "t")], &["l 1 x2", "t 1 x2"]);
    check("target hidden later", &[base().link("l", "t"), a().file(".wh.t", b"")], &["l 1"]);
    check("target replaced later", &[base().link("l", "t"), a().file("t", b"2")], &["l 1", "t 2"]);
    check(
        "target replaced in the layer",
        &[base().link("l", "t").file("t", b"2")],
        &["l 1", "t 2"],
    );
    check(
        "over layers, target hidden later",
        &[base(), a().link("l", "t"), a().file(".wh.t", b"")],
        &["l 1"],
    );
    check("link hidden", &[base().link("l", "t"), a().file(".wh.l", b"")], &["t 1"]);
    check(
        "replaces a directory",
        &[base().file("l/x", b""), a().link("l", "t")],
        &["l 1 x2", "t 1 x2"],
    );
    check(
        "to what the lower layer has, then replaced",
        &[base(), a().link("l", "t").file("t", b"2").link("m", "t")],
        &["l 1", "m 2 x2", "t 2 x2"],
    );
    check(
        "into the directory of AUFS",
        &[a().file(".wh..wh.plnk/1", b"1").link("l", ".wh..wh.plnk/1").link("m", ".wh..wh.plnk/1")],
        &["l 1 x2", "m 1 x2"],
    );
    let tree = merged(&[base(), a().link("l", "t").dir("d").link("d/k", "t")]);
    let node = |path: &[u8]| tree.find(path).unwrap();
    assert_eq!(tree.inode(node(b"l")), tree.inode(node(b"t")));
    assert_eq!(tree.inode(node(b"l")), tree.inode(node(b"d/k")));
    assert_eq!(tree.inode(node(b"d")), node(b"d"));
    assert_eq!((tree.layer_of(node(b"l")), tree.data(node(b"l")).unwrap().layer), (1, 0));
}

#[test]
fn broken_hard_links() {
    let cases: [(Vec<Archive>, &[u8], Broken); 11] = [
        (vec![a().link("l", "l")], b"l", Broken::ToItself),
        (vec![a().file("l", b"1").link("l", "./l")], b"l", Broken::ToItself),
        (vec![a().file("l", b"1"), a().link("l", "l")], b"l", Broken::ToItself),
        (vec![a().link("l", "no")], b"l", Broken::Missing),
        (vec![a().link("l", "later").file("later", b"")], b"l", Broken::Missing),
        (vec![a().link("l", "m").link("m", "l")], b"l", Broken::Missing),
        (vec![a().link("l", "m").link("m", "l")], b"m", Broken::Broken),
        (vec![a().dir("d").link("l", "d")], b"l", Broken::Directory),
        (vec![a().link("l", "/")], b"l", Broken::Directory),
        (vec![a().file("d/t", b"").symlink("s", "d"), a().link("l", "s/t")], b"l", Broken::Missing),
        (vec![a().file("d/t", b"").link("d", "d/t")], b"d", Broken::Missing),
    ];
    for (layers, path, expected) in cases {
        let tree = merged(&layers);
        let node = tree.find(path).unwrap();
        assert_eq!(tree.broken(node), Some(expected));
        assert_eq!(tree.data(node), Err(expected));
        let attributes = tree.attributes(node);
        assert_eq!((attributes.kind, attributes.size, attributes.links), (Kind::File, 0, 1));
    }
}

/// As for whoever extracts the layer in order: umoci and containerd.
#[test]
fn hard_links_to_what_the_same_layer_removes() {
    let base = || a().dir("d").file("d/t", b"1").file("d/k", b"2").link("d/also", "d/t");
    let rest = ["d/ 755", "d/also 1 x2", "d/k 2", "l 1 x2"];
    let whiteout = "d/.wh.t";
    check("then the whiteout", &[base(), a().link("l", "d/t").file(whiteout, b"")], &rest);
    let all = a().link("l", "d/t").link("m", "d/t").file(".wh.d", b"");
    check("then one of its directory", &[base(), all], &["l 1 x2", "m 1 x2"]);
    let opaque = a().link("l", "d/t").file("d/.wh..wh..opq", b"");
    check("then all in its directory", &[base(), opaque], &["d/ 755", "l 1"]);
    check(
        "then something else of its name",
        &[base(), a().dir("d").link("l", "d/t").file("d/t", b"new").file(".wh.d", b"")],
        &["d/ 755", "d/t new", "l 1"],
    );
    let missing = |what: &str, layer: Archive, further: &[Archive]| {
        let tree = merged(&[&[base()], further, &[layer]].concat());
        let link = tree.find(b"l").unwrap();
        assert_eq!(tree.broken(link), Some(Broken::Missing), "{what}");
    };
    missing("after the whiteout", a().file(whiteout, b"").link("l", "d/t"), &[]);
    missing("after one of its directory", a().file(".wh.d", b"").link("l", "d/t"), &[]);
    let twice = a().file(whiteout, b"").link("l", "d/t").file(".wh.d", b"");
    missing("between two", twice, &[]);
    missing("what never was there", a().link("l", "d/no").file("d/.wh.no", b""), &[]);
    let gone = a().file(whiteout, b"");
    missing("what a lower layer has removed", a().link("l", "d/t").file(whiteout, b""), &[gone]);
}

#[test]
fn counts_of_directories() {
    let tree = merged(&[a().dir("d").dir("d/a").dir("d/b").file("d/c", b"").symlink("d/s", "a")]);
    let links = |path: &[u8]| tree.attributes(tree.find(path).unwrap()).links;
    assert_eq!((links(b""), links(b"d"), links(b"d/a")), (3, 4, 2));
}

#[test]
fn names_are_bytes_in_a_stable_order() {
    let archive = a()
        .file("b", b"")
        .file("a\u{ff}", b"")
        .pax(b'x', &[("path", b"a\xff")])
        .file("x", b"")
        .file("B", b"")
        .file("a.b", b"")
        .file("a", b"");
    let tree = merged(&[archive]);
    let names: Vec<_> = tree.entries(tree.root()).map(|(name, _)| name.to_vec()).collect();
    assert_eq!(names, [&b"B"[..], b"a", b"a.b", b"a\xc3\xbf", b"a\xff", b"b"]);
}

#[test]
fn a_layer_alone() {
    let archive = a()
        .file("d/.wh.x", b"")
        .file("d/.wh..wh..opq", b"")
        .file(".wh..wh.plnk/1", b"")
        .link("l", "lower")
        .file("f", b"");
    let tree = Rootfs::raw(layer(&archive.end())).unwrap();
    let paths: Vec<_> = (1..tree.node_count())
        .map(|n| String::from_utf8(tree.path(tree.node(n).unwrap())).unwrap())
        .collect();
    assert_eq!(
        paths,
        [".wh..wh.plnk", "d", "f", "l", ".wh..wh.plnk/1", "d/.wh..wh..opq", "d/.wh.x"]
    );
    assert_eq!(tree.broken(tree.find(b"l").unwrap()), Some(Broken::Missing));
}

#[test]
fn from_the_top() {
    let archives = [
        a().dir("d")
            .file("d/x", b"1")
            .file("d/y", b"1")
            .file("f", b"1")
            .file("e/z", b"1")
            .file("g/z", b"1"),
        a().file("d/.wh.x", b"")
            .file("n/.wh.x", b"")
            .file("e/.wh..wh..opq", b"")
            .file("e/n", b"2")
            .file("g", b"2"),
        a().file("d/new", b"3").link("l", "f").file("d/sub/k", b"3").dir("own"),
    ];
    let indexes: Vec<Arc<LayerIndex>> = archives.iter().map(|a| layer(&a.clone().end())).collect();
    let raw: Vec<Rootfs> = indexes.iter().map(|i| Rootfs::raw(Arc::clone(i)).unwrap()).collect();
    let all: Vec<_> = raw.iter().map(Some).collect();
    let node =
        |layer: usize, path: &[u8]| Found::Node { layer, node: raw[layer].find(path).unwrap() };
    let table = [
        (&b"d/new"[..], node(2, b"d/new")),
        (b"own", node(2, b"own")),
        (b"d/sub/k", node(2, b"d/sub/k")),
        (b"l", Found::NeedsMerge),
        (b"e/n", node(1, b"e/n")),
        (b"e/z", Found::Missing),
        (b"d/x", Found::Missing),
        (b"g", node(1, b"g")),
        (b"g/z", Found::Missing),
        (b"d/y", node(0, b"d/y")),
        (b"d", node(0, b"d")),
        (b"n", Found::Missing),
        (b"no/where", Found::Missing),
        (b"d/.wh.x", Found::Missing),
    ];
    let merged = Rootfs::new(indexes).unwrap();
    for (path, expected) in table {
        assert_eq!(find_from_top(&all, path), expected, "{}", path.escape_ascii());
        // What it says is what the merged tree has.
        assert_eq!(merged.find(path).is_some(), expected != Found::Missing);
    }
    // The root of nothing is there, too.
    let empty = Rootfs::raw(layer(&a().end())).unwrap();
    for layers in [&[][..], &[Some(&empty)], &[Some(&empty), Some(&empty)]] {
        assert_eq!(find_from_top(layers, b"/"), Found::NeedsMerge);
        assert_eq!(find_from_top(layers, b"a"), Found::Missing);
    }
    assert_eq!(find_from_top(&[None, Some(&empty)], b""), Found::Waits(0));
    // Also in a link of the same layer.
    let linked = layer(&a().symlink("lib", "usr/lib").file("lib/x", b"1").end());
    let linked = Rootfs::raw(linked).unwrap();
    let found = Found::Node { layer: 1, node: linked.find(b"usr/lib/x").unwrap() };
    assert_eq!(find_from_top(&[None, Some(&linked)], b"usr/lib/x"), found);
    assert_eq!(find_from_top(&[None, Some(&linked)], b"lib/x"), Found::Missing);
    // A hit does not need what is below.
    assert_eq!(find_from_top(&[None, None, Some(&raw[2])], b"d/new"), node(2, b"d/new"));
    assert_eq!(find_from_top(&[None, all[1], all[2]], b"g/z"), Found::Missing);
    assert_eq!(find_from_top(&[None, all[1], all[2]], b"d/y"), Found::Waits(0));
    assert_eq!(find_from_top(&[None, all[1], all[2]], b"d"), Found::Waits(0));
}
