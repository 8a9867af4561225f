//! The support for layers: archives that GNU tar reads as they are meant, a model that agrees with umoci, and
//! a comparison that finds what is different.

use crate::support::image::Image;
use crate::support::layers::{Archive, Entry, Packed, Packing, SparseForm, What, pack};
use crate::support::snapshot::{Snapshot, assert_same, differences, snapshot};
use crate::support::umoci::Unpacked;
use crate::support::{content, model};
use std::io::Read as _;
use std::process::Command;

/// One of every kind that archives hold.
pub(crate) fn everything(archive: Archive) -> Archive {
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(255));
    archive
        .dir("./")
        .dir("bin/")
        .entry(Entry::file("bin/su", b"su").mode(0o4755))
        .entry(Entry::file("bin/wall", b"wall").mode(0o2755).owner(0, 5))
        .link("bin/su2", "bin/su")
        .entry(Entry::new("tmp", What::Dir).mode(0o1777))
        .entry(Entry::file("private", b"p").mode(0o600).owner(1000, 100))
        .entry(Entry::file("unreadable", b"").mode(0).owner(4_000_000_000, 3_000_000))
        .entry(Entry::file("long ago", b"").mtime(-1_000_000, 0))
        .link("zz-su", "./bin//su")
        .symlink("lib", "usr/lib")
        .symlink("dangling", "/no/where")
        .entry(Entry::new("null", What::Char(1, 3)).mode(0o666))
        .entry(Entry::new("disk", What::Block(259, 70000)).mode(0o660).owner(0, 6))
        .entry(Entry::new("pipe", What::Fifo).mode(0o620))
        .file(b"not utf-8 \xff\xfe", b"1")
        .file(&long, b"2")
        .symlink("long link", "t".repeat(300))
        .link("long hard link", &long)
        .sparse("sparse-old", SparseForm::OldGnu, 300_000, &[(0, &[9; 512]), (70_144, &[7; 5000])])
}

/// What only PAX headers can say. The parts of sparse files are whole blocks: GNU tar reads no others.
pub(crate) fn everything_of_pax(archive: Archive) -> Archive {
    let many: Vec<(u64, &[u8])> = (0..60).map(|n| (n * 10_240 + 512, &[b'p'; 512][..])).collect();
    archive
        .entry(Entry::file("times", b"").mtime(1_600_000_000, 123_456_789))
        .entry(Entry::file("before 1970", b"").mtime(-2, 750_000_000))
        .entry(Entry::file("attributes", b"x").xattr("user.a", b"1").xattr("user.b", b"\0\xff=\n"))
        .entry(
            Entry::file("ping", b"x")
                .xattr("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        )
        .entry(Entry::new("with attributes", What::Dir).xattr("user.dir", b"d"))
        .sparse("sparse-many", SparseForm::OldGnu, 1_000_000, &many)
        .sparse("sparse-0.0", SparseForm::Pax00, 800_000, &many)
        .sparse("sparse-0.1", SparseForm::Pax01, 800_000, &many)
        .sparse("sparse-1.0", SparseForm::Pax10, 800_000, &many)
        .sparse("sparse-empty", SparseForm::Pax10, 5_000, &[])
        .sparse("sparse-full", SparseForm::Pax10, 5, &[(0, b"12345")])
}

fn untar(bytes: &[u8]) -> Snapshot {
    let place = tempfile::tempdir().expect("making a temporary directory");
    let (file, tree) = (place.path().join("a.tar"), place.path().join("tree"));
    std::fs::write(&file, bytes).expect("writing");
    std::fs::create_dir(&tree).expect("making a directory");
    let output = Command::new("tar")
        .args(["--numeric-owner", "--same-owner", "-p", "--xattrs", "--xattrs-include=*", "-xf"])
        .arg(&file)
        .arg("-C")
        .arg(&tree)
        .output()
        .expect("starting tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    snapshot(&tree)
}

/// Nobody has to know when a directory was last changed that an archive does not name.
fn without_implied(mut found: Snapshot) -> Snapshot {
    for path in ["long".to_owned(), format!("long/{}", "d".repeat(120))] {
        found.get_mut(path.as_bytes()).expect("it is there").mtime = (0, 0);
    }
    found
}

#[test]
fn archives_say_to_gnu_tar_what_they_say_to_the_model() {
    for archive in [everything_of_pax(everything(Archive::new())), everything(Archive::gnu())] {
        let found = untar(&archive.to_bytes());
        assert_same(&without_implied(model::merged(&[&archive])), &without_implied(found));
    }
}

/// Whiteouts and what is put in their place; without what umoci and the rules see differently.
pub(crate) fn stack() -> [Archive; 3] {
    let base = Archive::new()
        .dir("./")
        .dir("etc")
        .file("etc/kept", b"kept")
        .file("etc/gone", b"gone")
        .file("etc/changed", b"old")
        .dir("opaque")
        .file("opaque/old", b"old")
        .dir("opaque/sub")
        .file("opaque/sub/old", b"old")
        .dir("tree")
        .dir("tree/sub")
        .file("tree/sub/leaf", b"leaf")
        .dir("replaced")
        .file("replaced/inside", b"1")
        .file("file", b"a file")
        .file("target", b"shared")
        .file("other target", b"shared, too")
        .link("other link", "other target")
        .symlink("points", "etc");
    let middle = Archive::new()
        .entry(Entry::new("etc", What::Dir).mode(0o700).mtime(5, 0))
        .whiteout("etc/gone")
        .entry(Entry::file("etc/changed", b"new").mode(0o640))
        .dir("opaque")
        .file("opaque/new", b"new")
        .opaque("opaque")
        .whiteout("tree")
        .file("replaced", b"now a file")
        .dir("file")
        .file("file/inside", b"2")
        .link("linked", "target")
        .whiteout("other target");
    let top = Archive::new()
        .whiteout("target")
        .dir("tree")
        .file("tree/again", b"3")
        .whiteout("points")
        .dir("points")
        .file("points/inside", b"4");
    [base, middle, top]
}

#[test]
fn the_model_agrees_with_umoci() {
    let [base, middle, top] = stack();
    let image = Image::new()
        .step("base", &base.gzip())
        .step("middle", &middle.pack(Packing::Plain))
        .step("top", &top.gzip())
        .build();
    let unpacked = Unpacked::built(&image);
    assert_same(&model::merged(&[&base, &middle, &top]), &snapshot(&unpacked.rootfs()));
}

#[test]
fn differences_are_found() {
    let archive = everything_of_pax(everything(Archive::new()));
    let wanted = model::merged(&[&archive]);
    assert_eq!(differences(&wanted, &wanted, |_| false), [""; 0]);
    let path = b"bin/su".to_vec();
    for (what, change) in [
        ("mode", (|item| item.mode ^= 0o4000) as fn(&mut crate::support::snapshot::Item)),
        ("owner", |item| item.uid += 1),
        ("group", |item| item.gid += 1),
        ("size", |item| item.size += 1),
        ("mtime", |item| item.mtime.1 += 1),
        ("links", |item| item.links += 1),
        ("first name", |item| item.first_name.clear()),
        ("device", |item| item.device.0 += 1),
        ("content", |item| item.content.clear()),
        ("target", |item| item.target.push(b'x')),
        ("xattrs", |item| drop(item.xattrs.insert(b"user.x".to_vec(), Vec::new()))),
    ] {
        let mut found = wanted.clone();
        change(found.get_mut(&path).expect("it is there"));
        let lines = differences(&wanted, &found, |_| false);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(&format!("/bin/su: {what} is")), "{lines:?}");
        assert_eq!(differences(&wanted, &found, |difference| difference.what == what), [""; 0]);
    }
    let mut found = wanted.clone();
    found.remove(&path);
    assert_eq!(differences(&wanted, &found, |_| false), ["/bin/su: entry is nothing, not File"]);
    assert_eq!(differences(&found, &wanted, |_| false), ["/bin/su: entry is File, not nothing"]);
}

#[test]
fn packings_are_read_by_others() {
    let plain = content::Content::Generated { seed: 3, size: 3_000_000 }.to_vec();
    let unpack = |packed: &Packed, program: &str| {
        let place = tempfile::NamedTempFile::new().expect("making a file");
        std::fs::write(place.path(), &packed.bytes).expect("writing");
        let mut found = Vec::new();
        let mut child = Command::new(program)
            .arg("-dc")
            .stdin(std::fs::File::open(place.path()).expect("opening"))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("starting");
        child.stdout.take().expect("a pipe").read_to_end(&mut found).expect("reading");
        child.wait().expect("waiting");
        found
    };
    for (packing, program) in [
        (Packing::Gzip, "gzip"),
        (Packing::GzipMembers(700_000), "gzip"),
        (Packing::Zstd, "zstd"),
        (Packing::ZstdFrames(500_000), "zstd"),
    ] {
        let packed = pack(&plain, packing);
        assert_eq!(packed.diff_id, content::digest(&plain));
        assert!(unpack(&packed, program) == plain, "{packing:?}");
    }
}
