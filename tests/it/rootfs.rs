//! The inside of images in a mount: what is where, and that a tree is what a container sees.

use crate::selftest_layers::{everything, everything_of_pax, stack};
use crate::support::cli::Imgfs;
use crate::support::image::{Artifact, Built, Image, Index};
use crate::support::inside::{Inside, debians, pinned};
use crate::support::layers::{Archive, Entry, Packing, What};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::snapshot::assert_same;
use crate::support::tree::{self, assert_tree_sound};
use crate::support::{model, text};
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;

/// The names in a directory of a mount, sorted.
#[track_caller]
fn listed(mount: &Mounted, below: &str) -> Vec<String> {
    let listed = mount.run("ls", &["-A", &mount.path(below)]).success().text();
    let mut names: Vec<_> = listed.lines().map(str::to_owned).collect();
    names.sort();
    names
}

/// Where a symbolic link of a mount leads.
#[track_caller]
fn link(mount: &Mounted, below: &str) -> String {
    let said = mount.run("readlink", &["-n", &mount.path(below)]);
    said.success().text()
}

fn two_platforms() -> Built {
    let image = |platform: &str| {
        let base = Archive::new().dir("etc").file("etc/name", platform);
        let top = Archive::new().file("app", platform).whiteout("etc/name");
        Image::new()
            .platform(platform)
            .step("ADD base /", &base.gzip())
            .empty_step("ENV A=1")
            .step("COPY app /", &top.pack(Packing::Zstd))
            .build()
    };
    let index = Index::new().child(&image("linux/amd64")).child(&image("linux/arm/v7"));
    index.attest().build()
}

#[test]
fn an_image_is_a_directory() {
    require!(Mounts);
    let index = two_platforms();
    let single = Image::new().step("x", &Archive::new().file("x", b"1").gzip()).build();
    let images = [("team/app", "1.0", &index), ("single", "v1", &single)];
    let (_registry, host) = debians(&images);
    let imgfs = Imgfs::scratch();
    let platform = ["--platform", "linux/amd64", "--platform", "linux/arm/v7"];
    let mount = Mounted::start(imgfs.images_dir(), &platform);

    let tag = format!(".imgfs/{host}/team/app:1.0");
    assert_eq!(link(&mount, &tag), format!("app@{}", index.digest()));
    let image = pinned(&host, "team/app", &index, "");
    let names = listed(&mount, &image);
    let platforms = ["linux-amd64", "linux-arm-v7"];
    assert_eq!(names, [&platforms[..], &["manifest.json", "rootfs", "status.json"]].concat());
    assert_eq!(mount.cat(&format!("{image}/manifest.json")).success().stdout, index.root().bytes);
    for (number, platform) in platforms.into_iter().enumerate() {
        let below = |name: &str| format!("{image}/{platform}/{name}");
        let names = ["config.json", "layers", "manifest.json", "rootfs"];
        assert_eq!(listed(&mount, &below("")), names);
        let manifest = &index.manifests[number].bytes;
        assert_eq!(mount.cat(&below("manifest.json")).success().stdout, *manifest);
        let manifest: Value = serde_json::from_slice(manifest).expect("it is JSON");
        let config = manifest["config"]["digest"].as_str().expect("a digest");
        let right = index.blobs[config].content.to_vec();
        assert_eq!(mount.cat(&below("config.json")).success().stdout, right);
        assert_eq!(listed(&mount, &below("layers")), ["0", "1"]);
        assert_eq!(listed(&mount, &below("layers/0")), ["etc"]);
        assert_eq!(listed(&mount, &below("layers/1")), ["app", "etc"]);
        assert_eq!(listed(&mount, &below("layers/1/etc")), [".wh.name"]);
        assert_eq!(listed(&mount, &below("rootfs")), ["app", "etc"]);
        assert_eq!(listed(&mount, &below("rootfs/etc")), [""; 0]);
    }
    // The first platform that was asked for; through the tag, too.
    assert_eq!(link(&mount, &format!("{image}/rootfs")), "linux-amd64/rootfs");
    assert_eq!(mount.cat(&format!("{tag}/rootfs/app")).success().text(), "linux/amd64");
    let status = mount.cat(&format!("{image}/status.json")).success().text();
    assert!(serde_json::from_str::<Value>(&status).is_ok_and(|s| s.is_object()), "{status}");

    // A single image is one of one platform.
    let image = format!(".imgfs/{host}/single:v1");
    let names = ["linux-amd64", "manifest.json", "rootfs", "status.json"];
    assert_eq!(listed(&mount, &format!("{image}/")), names);
    assert_eq!(mount.cat(&format!("{image}/rootfs/x")).success().text(), "1");
    assert_eq!(mount.log(), Vec::<String>::new());
}

#[test]
fn the_platform_that_is_asked_for_is_shown() {
    require!(Mounts);
    let inside = Inside::start(two_platforms(), &["--platform", "linux/arm/v7"]);
    assert_eq!(link(&inside.mount, &inside.at("rootfs")), "linux-arm-v7/rootfs");
    assert_eq!(inside.mount.cat(&inside.rootfs("app")).success().text(), "linux/arm/v7");
}

#[test]
fn the_tree_above_stays_as_it_was() {
    require!(Mounts);
    let inside = Inside::start(two_platforms(), &["--platform", "linux/amd64"]);
    let Inside { mount, hostile, .. } = &inside;
    mount.cat(&inside.rootfs("app")).success();
    assert!(!listed(mount, "").contains(&".imgfs".to_owned()));
    assert!(!mount.find().iter().any(|path| path.contains(".imgfs")), "{:?}", mount.find());

    let manifest = format!("{}/team/app/manifests/1", hostile.host());
    mount.run("stat", &[mount.path(&manifest)]).success();
    let copy = tempfile::tempdir().expect("making a temporary directory");
    mount.run("cp", &["-a", &mount.path("."), text(copy.path())]).success();
    assert_tree_sound(copy.path());
    let pulled = Imgfs::scratch();
    pulled.pull(&["--platform", "linux/amd64", &inside.name()]).success();
    assert_eq!(tree::snapshot(copy.path()), tree::snapshot(pulled.images_dir()));
    assert_eq!(mount.log(), Vec::<String>::new());
}

#[test]
fn names_that_are_not_there_are_not_found() {
    require!(Mounts);
    let inside = Inside::start(two_platforms(), &["--platform", "linux/amd64"]);
    let Inside { mount, hostile, .. } = &inside;
    // So that all layers are known.
    mount.run("find", &[mount.path(&inside.rootfs(""))]).success();
    let host = hostile.host();
    hostile.clear_log();
    let absent = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let gone = "No such file or directory";
    for name in [
        ".imgfs/.git",
        ".imgfs/.Trash-1000",
        ".imgfs/autorun.inf",
        &format!(".imgfs/{host}/.git"),
        &format!(".imgfs/{host}/UPPER:1"),
        &format!(".imgfs/{host}/team/app@sha256:12"),
        &inside.at("nope"),
        &inside.at("linux-s390x"),
        &inside.at("linux-amd64/nope"),
        &inside.at("linux-amd64/layers/2"),
        &inside.at("linux-amd64/layers/00"),
        &inside.at("linux-amd64/layers/-1"),
        &inside.rootfs("nope"),
        &inside.rootfs("etc/name"),
    ] {
        mount.run("stat", &[mount.path(name)]).fails_with(gone);
    }
    assert_eq!(hostile.requests(), 0, "{:?}", hostile.log());
    mount.run("stat", &["-L", &mount.path(&format!(".imgfs/{host}/team/app:2"))]).fails_with(gone);
    let pinned = format!(".imgfs/{host}/team/app@{absent}");
    mount.run("ls", &[mount.path(&pinned)]).fails_with(gone);
    mount.run("stat", &[mount.path(&inside.rootfs("app/x"))]).fails_with("Not a directory");
    for args in [["touch", "new"], ["mkdir", "newdir"]] {
        mount.run(args[0], &[mount.path(&inside.rootfs(args[1]))]).fails_with("Read-only");
    }
    mount.run("rm", &["-f", &mount.path(&inside.rootfs("app"))]).fails_with("Read-only");
    let set = ["-n", "user.x", "-v", "1", &mount.path(&inside.rootfs("app"))];
    mount.run("setfattr", &set).fails_with("Read-only");
}

#[test]
fn a_tag_that_moves_leads_to_the_new_image() {
    require!(Mounts);
    let of = |text: &str| {
        let archive = Archive::new().file("which", text);
        Image::new().step("x", &archive.gzip()).build()
    };
    let inside = Inside::start(of("old"), &["--tag-ttl", "1s"]);
    let path = format!(".imgfs/{}/rootfs/which", inside.name());
    assert_eq!(inside.mount.cat(&path).success().text(), "old");
    of("new").push_to(&inside.hostile, "team/app", "1");
    crate::support::wait_for("the tag to move", std::time::Duration::from_secs(10), || {
        inside.mount.cat(&path).success().text() == "new"
    });
    // Who has named the digest keeps what that is.
    assert_eq!(inside.mount.cat(&inside.rootfs("which")).success().text(), "old");
}

#[test]
fn what_is_no_image_has_no_root_file_system() {
    require!(Mounts);
    let helm = Artifact::with_config("application/vnd.cncf.helm.config.v1+json", b"{\"name\":1}")
        .blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart")
        .build();
    let inside = Inside::start(helm, &["--platform", "linux/amd64"]);
    let manifest = inside.mount.cat(&inside.at("manifest.json")).success().stdout;
    assert_eq!(manifest, inside.image.root().bytes);
    inside.status();
    let failed = inside.mount.run("ls", &[inside.mount.path(&inside.rootfs(""))]);
    assert!(
        !failed.status.success(),
        "{} {:?}",
        failed.text(),
        inside.mount.run("find", &[inside.mount.path(&inside.at(""))]).text()
    );
}

/// Compares the tree, and each layer by itself, with what the model makes of the same layers.
#[track_caller]
fn is_as_modelled(what: &str, layers: &[&Archive], packing: Packing) {
    let mut image = Image::new();
    for (number, layer) in layers.iter().enumerate() {
        image = image.step(&format!("step {number}"), &layer.pack(packing));
    }
    let inside = Inside::start(image.build(), &["--platform", "linux/amd64"]);
    eprintln!("{what}");
    let found = inside.mount.snapshot(&inside.rootfs(""));
    assert_same(&model::merged(layers), &found);
    for (number, layer) in layers.iter().enumerate() {
        // A link into a lower layer leads nowhere here.
        if layer.entries().any(|entry| matches!(entry.what, What::Link(_))) && number > 0 {
            continue;
        }
        let found = inside.mount.snapshot(&inside.at(&format!("linux-amd64/layers/{number}")));
        assert_same(&model::raw(layer), &found);
    }
    assert_eq!(inside.mount.log(), Vec::<String>::new());
}

#[test]
fn all_that_archives_hold_is_shown_with_its_attributes() {
    require!(Mounts);
    let pax = everything_of_pax(everything(Archive::new()));
    is_as_modelled("PAX", &[&pax], Packing::Gzip);
    is_as_modelled("GNU", &[&everything(Archive::gnu())], Packing::Plain);
    is_as_modelled("zstd", &[&pax], Packing::ZstdFrames(100_000));
    is_as_modelled("without an end", &[&everything(Archive::new()).without_end()], Packing::Gzip);
}

#[test]
fn layers_are_merged_as_a_container_sees_them() {
    require!(Mounts);
    let [base, middle, top] = stack();
    is_as_modelled("three layers", &[&base, &middle, &top], Packing::Gzip);
}

/// A rule of `rootfs-rules.md`, and layers from the lowest to the highest that show it.
fn rules() -> Vec<(&'static str, Vec<Archive>)> {
    let new = Archive::new;
    let base = || new().dir("d").file("d/a", b"a").file("d/b", b"b").dir("e").file("e/c", b"c");
    vec![
        (
            "a whiteout hides nothing of its own layer, before it",
            vec![base(), new().dir("d").file("d/a", b"new").whiteout("d/a")],
        ),
        ("or after it", vec![base(), new().dir("d").whiteout("d/a").file("d/a", b"new")]),
        (
            "a directory of its own layer starts empty",
            vec![base(), new().dir("d").file("d/new", b"1").whiteout("d")],
        ),
        (
            "an opaque whiteout after the new children",
            vec![base(), new().dir("d").file("d/new", b"1").opaque("d")],
        ),
        ("and before them", vec![base(), new().opaque("d").dir("d").file("d/new", b"1")]),
        ("opaque without the directory itself", vec![base(), new().opaque("d")]),
        (
            "a whiteout under a symbolic link does not escape",
            vec![
                new().dir("real").file("real/a", b"a").symlink("link", "real"),
                new().whiteout("link/a"),
            ],
        ),
        (
            "nor does an opaque one",
            vec![
                new().dir("real").file("real/a", b"a").symlink("link", "real"),
                new().opaque("link"),
            ],
        ),
        (
            "whiteouts in the lowest layer do nothing",
            vec![base().whiteout("d/a").opaque("e").whiteout("never/was")],
        ),
        (
            "names that only look like whiteouts",
            vec![
                base(),
                new()
                    .dir(".wh..wh.plnk")
                    .file(".wh..wh.aufs", b"")
                    .file("d/.wh..wh..opqX", b"")
                    .dir("d"),
            ],
        ),
        ("a whiteout with a body", vec![base(), new().file("d/.wh.a", b"body")]),
        (
            "a whiteout that is a hard link",
            vec![base(), new().file("d/.wh.a", b"").link("d/.wh.b", "d/.wh.a")],
        ),
        (
            "a directory over a directory takes its attributes",
            vec![
                base(),
                new().entry(Entry::new("d", What::Dir).mode(0o1700).owner(7, 8).mtime(9, 0)),
            ],
        ),
        ("a file over a directory", vec![base(), new().file("d", b"file")]),
        ("a symbolic link over a directory", vec![base(), new().symlink("d", "e")]),
        (
            "a directory over a symbolic link",
            vec![base().symlink("l", "d"), new().dir("l").file("l/x", b"x")],
        ),
        (
            "a file below a symbolic link of a lower layer",
            vec![base().symlink("l", "d"), new().file("l/x", b"x")],
        ),
        ("missing parents", vec![base(), new().file("p/q/r", b"1").file("d/s/t", b"2")]),
        (
            "and one that comes later",
            vec![new().file("p/q", b"1").entry(Entry::new("p", What::Dir).mode(0o700).mtime(3, 0))],
        ),
        (
            "missing parents over a lower layer's directory",
            vec![
                new().entry(Entry::new("d", What::Dir).mode(0o700).owner(5, 5)),
                new().file("d/x", b"1"),
            ],
        ),
        (
            "the last of repeated entries wins",
            vec![new().file("f", b"1").file("f", b"two").entry(Entry::file("f", b"3").mode(0o600))],
        ),
        ("a file, then a directory", vec![new().file("f", b"1").dir("f").file("f/x", b"2")]),
        ("a directory, then a file", vec![new().dir("f").file("f/x", b"2").file("f", b"1")]),
        ("a hard link over layers", vec![base(), new().link("l", "d/a"), new().link("m", "l")]),
        (
            "whose target is hidden later",
            vec![base(), new().link("l", "d/a"), new().whiteout("d/a")],
        ),
        ("or replaced later", vec![base(), new().link("l", "d/a"), new().file("d/a", b"another")]),
        (
            "or replaced in its own layer",
            vec![new().file("a", b"1").link("l", "a").file("a", b"22")],
        ),
        (
            "a link that is replaced",
            vec![new().file("a", b"1").link("l", "a").link("m", "a"), new().file("l", b"2")],
        ),
        ("a hard link to a symbolic link", vec![new().symlink("s", "d").link("l", "s")]),
        (
            "a hard link to a device",
            vec![new().entry(Entry::new("n", What::Char(1, 3))).link("l", "n")],
        ),
        (
            "names that want to be put right",
            vec![
                new()
                    .dir("./")
                    .dir("./d/")
                    .file("./d//a", b"1")
                    .file("/abs/b", b"2")
                    .file("d/./c", b"3")
                    .link("l", "/abs/b"),
            ],
        ),
        ("an empty layer between", vec![base(), new(), new().whiteout("e")]),
        ("a whiteout of what never was", vec![base(), new().whiteout("x/y").whiteout("z")]),
        (
            "a whiteout, and the same name again in a higher layer",
            vec![base(), new().whiteout("d"), new().file("d/again", b"1")],
        ),
        (
            "the attributes of the root",
            vec![
                new().entry(Entry::new("./", What::Dir).mode(0o711).owner(1, 2).mtime(77, 0)),
                new().file("f", b""),
            ],
        ),
        (
            "files without bytes and of one block",
            vec![new().file("none", b"").file("block", [1; 512]).file("more", [2; 513])],
        ),
    ]
}

#[test]
fn the_rules_of_merging_hold() {
    require!(Mounts);
    let mut wrong = Vec::new();
    for (rule, layers) in rules() {
        let layers: Vec<&Archive> = layers.iter().collect();
        let look = || is_as_modelled(rule, &layers, Packing::Gzip);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(look)).is_err() {
            wrong.push(rule);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn many_entries_of_a_directory_are_listed_once_each() {
    require!(Mounts);
    let mut archive = Archive::new().dir("many");
    for number in 0..5000 {
        archive = archive.file(format!("many/file with a rather long name {number:05}"), b"");
    }
    is_as_modelled("5000 files", &[&archive], Packing::Gzip);
}

#[test]
fn what_is_found_before_all_layers_are_known_stays_the_same() {
    require!(Mounts);
    let base = Archive::new()
        .dir("d")
        .file("d/kept", b"1")
        .link("another", "d/kept")
        .dir("both")
        .file("both/lower", b"2");
    let top = Archive::new()
        .entry(Entry::file("top", b"3").mode(0o755))
        .entry(Entry::new("both", What::Dir).mode(0o700).owner(3, 4))
        .file("both/upper", b"4")
        .file("implied/x", b"5")
        .symlink("link", "both/lower");
    let image = Image::new().step("base", &base.gzip()).step("top", &top.gzip()).build();
    let paths = ["top", "both", "both/upper", "implied", "link", "both/lower", "d/kept", "another"];
    // Each of them in a mount that knows nothing yet.
    for first in paths {
        let inside = Inside::start(image.clone(), &["--platform", "linux/amd64"]);
        let stat = |path: &str| {
            let path = inside.mount.path(&inside.rootfs(path));
            let args = ["-c", "%i %F %a %u %g %s %h %y", &path];
            inside.mount.run("stat", &args).success().text()
        };
        let early = stat(first);
        inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]).success();
        inside.mount.forget();
        assert_eq!(stat(first), early, "{first}");
    }
}

#[test]
fn who_is_in_a_directory_stays_there_while_the_tree_is_made() {
    require!(Mounts);
    let base = Archive::new().dir("both").file("both/lower", b"lower ").file("other", b"other");
    let top = Archive::new().dir("both").file("both/upper", b"upper ").dir("both/sub");
    let image = Image::new().step("base", &base.gzip()).step("top", &top.gzip()).build();
    let inside = Inside::start(image, &["--platform", "linux/amd64"]);
    let rootfs = inside.mount.path(&inside.rootfs(""));
    let script = "cd \"$0both\" && exec 5<upper && cat upper && find \"$0\" >/dev/null && \
        cat lower <&5 upper && cat <&5 && ls && cd sub && cd ../.. && cat other";
    let said = inside.mount.run("bash", &["-c", script, &rootfs]).success().text();
    assert_eq!(said, "upper lower upper upper lower\nsub\nupper\nother");
}

#[test]
fn modes_and_owners_of_an_image_are_obeyed() {
    require!(Mounts);
    let archive = Archive::new()
        .entry(Entry::file("private", b"private").mode(0o600))
        .entry(Entry::file("theirs", b"theirs").mode(0o600).owner(65534, 65534))
        .file("public", b"public")
        .entry(Entry::new("closed", What::Dir).mode(0o700))
        .file("closed/inside", b"closed")
        .entry(Entry::file("su", b"su").mode(0o4755));
    let image = Image::new().step("x", &archive.gzip()).build();
    // As it is at first, and when all is known.
    for is_listed in [false, true] {
        let args = ["--platform", "linux/amd64", "--allow-other", "--registries", "127.0.0.1:*"];
        let inside = Inside::start(image.clone(), &args);
        let mount = &inside.mount;
        let place = mount.at().parent().expect("a directory").to_owned();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&place, open).expect("setting a mode");
        if is_listed {
            mount.run("find", &[mount.path(&inside.rootfs(""))]).success();
        }
        let as_nobody = |path: &str| {
            let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--", "cat"];
            mount.run("setpriv", &[&user[..], &[&mount.path(&inside.rootfs(path))]].concat())
        };
        assert_eq!(as_nobody("public").success().text(), "public");
        assert_eq!(as_nobody("theirs").success().text(), "theirs");
        as_nobody("private").fails_with("Permission denied");
        as_nobody("closed/inside").fails_with("Permission denied");
        assert_eq!(mount.cat(&inside.rootfs("closed/inside")).success().text(), "closed");
    }
}

#[test]
fn the_directory_of_images_stays_in_order() {
    require!(Mounts);
    let inside = Inside::start(two_platforms(), &["--platform", "linux/amd64"]);
    let mount = &inside.mount;
    mount.run("find", &[mount.path(&inside.rootfs(""))]).success();
    assert_tree_sound(inside.imgfs.images_dir());
    // No image has been pulled yet.
    inside.imgfs.verify().expect_code(3);
    inside.imgfs.pull(&[inside.name()]).success();
    inside.imgfs.prune().success();
    inside.imgfs.verify().success();
    assert_tree_sound(inside.imgfs.images_dir());
    assert_eq!(mount.cat(&inside.rootfs("app")).success().text(), "linux/amd64");
    assert_eq!(mount.log(), Vec::<String>::new());
}

#[test]
fn names_that_are_no_text_are_found_without_a_listing() {
    require!(Mounts);
    let archive = Archive::new().dir(b"d\xff").file(b"d\xff/\xfe", b"1").file(b"\xfd", b"2");
    let image = Image::new().step("x", &archive.gzip()).build();
    for (path, right) in [(&b"\xfd"[..], "2"), (b"d\xff/\xfe", "1")] {
        let inside = Inside::start(image.clone(), &["--platform", "linux/amd64"]);
        let rootfs = inside.mount.path(&inside.rootfs(""));
        let path = OsString::from_vec([rootfs.as_bytes(), path].concat());
        assert_eq!(inside.mount.run("cat", &[path]).success().text(), right);
    }
}

#[test]
fn every_file_says_where_it_comes_from() {
    require!(Mounts);
    let base = Archive::new()
        .dir("d")
        .file("d/kept", b"1")
        .file("d/changed", b"2")
        .symlink("link", "d")
        .entry(Entry::file("own", b"x").xattr("user.own", b"mine"));
    let top = Archive::new().file("d/changed", b"3").link("linked", "d/kept");
    let (lower, upper) = (base.gzip(), top.gzip());
    let image = Image::new()
        .empty_step("ENV A=1")
        .step("ADD base /", &lower)
        .empty_step("ENV B=2")
        .step("RUN change", &upper)
        .build();
    let layers = image.layers();
    let inside = Inside::start(image, &["--platform", "linux/amd64"]);
    let value = |below: &str, name: &str| {
        let path = inside.mount.path(&inside.rootfs(below));
        let said = inside.mount.run("getfattr", &["-h", "--only-values", "-n", name, &path]);
        said.success().text()
    };
    for (path, number, created_by) in [
        ("d/kept", 0, "ADD base /"),
        ("d/changed", 1, "RUN change"),
        ("own", 0, "ADD base /"),
        ("d", 0, "ADD base /"),
        ("linked", 0, "ADD base /"),
    ] {
        let layer = value(path, "user.imgfs.layer");
        assert_eq!(layer, format!("{number} {}", layers[number]), "{path}");
        assert_eq!(value(path, "user.imgfs.created_by"), created_by, "{path}");
    }
    assert_eq!(value("own", "user.own"), "mine");
    let path = inside.mount.path(&inside.rootfs("own"));
    let dump = inside.mount.run("getfattr", &["-d", &path]).success().text();
    for name in ["user.imgfs.layer=", "user.imgfs.created_by=", "user.own=\"mine\""] {
        assert!(dump.contains(name), "{dump}");
    }
    let none = ["-n", "user.none", &path];
    inside.mount.run("getfattr", &none).fails_with("No such attribute");
}
