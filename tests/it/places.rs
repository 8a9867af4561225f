//! Places that are neither directories of images nor registries: what all of them have in common, and OCI image
//! layouts.

use crate::support::cli::{Imgfs, Output};
use crate::support::hostile::Hostile;
use crate::support::image::{
    Built, Image, Index, application, cosign_signature, digest_tag, single, two_platforms,
};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::s3::S3;
use crate::support::tree::{self, assert_tree_sound};
use crate::support::{skopeo, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A directory for places, and a client that runs in it.
pub(crate) struct Bed {
    dir: tempfile::TempDir,
    pub(crate) imgfs: Imgfs,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("making a directory"), imgfs: Imgfs::scratch() }
    }

    pub(crate) fn with(imgfs: Imgfs) -> Self {
        Self { dir: tempfile::tempdir().expect("making a directory"), imgfs }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `scheme:/the/path/of/name`
    pub(crate) fn at(&self, scheme: &str, name: &str) -> String {
        format!("{scheme}:{}", self.path(name).display())
    }

    pub(crate) fn copy(&self, from: &str, to: &str, args: &[&str]) -> Output {
        self.imgfs.run(&[&["copy", "--json", "--from", from, "--to", to], args].concat())
    }

    /// A directory of images with an image of two platforms, and one that shares nothing with it.
    pub(crate) fn images(&self) -> (String, Built, Built) {
        let (app, other) = (two_platforms(11), single(2));
        let dir = self.path("images");
        tree::kubekey_g1(&dir, "quay.io", "team/app", "v1", &app);
        tree::kubekey_g1(&dir, "quay.io", "team/other", "v2", &other);
        (text(&dir).to_owned(), app, other)
    }
}

/// The names and digests that a place lists.
#[track_caller]
pub(crate) fn listed(imgfs: &Imgfs, place: &str) -> BTreeSet<(String, String)> {
    let output = imgfs.run(&["ls", "--json", place]).success();
    let images = output.report()["images"].as_array().cloned().unwrap_or_default();
    let name = |image: &Value| {
        image["image"].as_str().or(image["label"].as_str()).unwrap_or("-").to_owned()
    };
    let digest = |image: &Value| image["digest"].as_str().expect("a digest").to_owned();
    images.iter().map(|image| (name(image), digest(image))).collect()
}

fn index_of(layout: &Path) -> Value {
    serde_json::from_slice(&fs::read(layout.join("index.json")).expect("reading")).expect("JSON")
}

fn entries(layout: &Path) -> Vec<Value> {
    index_of(layout)["manifests"].as_array().expect("a list").clone()
}

/// Changes `index.json` as another tool could.
fn edit_index(layout: &Path, edit: impl FnOnce(&mut Value)) {
    let mut index = index_of(layout);
    edit(&mut index);
    fs::write(layout.join("index.json"), index.to_string()).expect("writing");
}

#[test]
fn an_unknown_scheme_is_an_error_that_lists_the_known_ones_and_makes_nothing() {
    let bed = Bed::new();
    let (from, ..) = bed.images();
    let before = fs::read_dir(bed.imgfs.home()).expect("listing").count();
    for place in
        ["oci-archiv:a.tar", "docker://quay.io/x", "containers-storage:x", "ftp://x/y", "x.y:z"]
    {
        for args in [["--from", &from, "--to", place], ["--from", place, "--to", &from]] {
            let output = bed.imgfs.run(&[&["copy", "--all"][..], &args].concat()).expect_code(2);
            for known in [
                "oci:DIR",
                "oci-archive:FILE",
                "docker-archive:FILE",
                "dir:DIR",
                "docker-daemon:",
                "s3://",
                "gs://",
                "az://",
            ] {
                assert!(output.stderr.contains(known), "{place}: {output}");
            }
        }
        let output =
            bed.imgfs.run(&["pull", "--images-dir", place, "quay.io/x/y:1"]).expect_code(2);
        assert!(output.stderr.contains("--images-dir"), "{output}");
    }
    assert_eq!(fs::read_dir(bed.imgfs.home()).expect("listing").count(), before);
}

/// The same for every medium: what goes in comes out.
#[test]
fn images_come_out_of_every_medium_as_they_went_in() {
    let store = S3::start();
    let imgfs = Imgfs::scratch().envs(store.environment());
    let bed = Bed::with(imgfs);
    let (from, app, other) = bed.images();
    let media = [
        ("layout", bed.at("oci", "layout"), true),
        ("archive", bed.at("oci-archive", "archive.tar"), true),
        ("store", store.place("a/prefix"), true),
        ("docker", bed.at("docker-archive", "docker.tar"), false),
    ];
    for (name, place, keeps_digests) in media {
        let output = bed.copy(&from, &place, &["--all", "--platform", "linux/amd64"]);
        // The first image alone has platforms; the other is for amd64.
        output.success();
        let output = bed.copy(&from, &place, &["--all"]).success();
        assert_eq!(output.images().len(), 2, "{name}: {output}");
        let expected: BTreeSet<(String, String)> = [
            ("quay.io/team/app:v1".to_owned(), app.digest().to_owned()),
            ("quay.io/team/other:v2".to_owned(), other.digest().to_owned()),
        ]
        .into();
        let found = listed(&bed.imgfs, &place);
        if keeps_digests {
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(found.len(), 2, "{name}");
        let output = bed.imgfs.run(&["verify", "--json", &place]).success();
        assert_eq!(output.report()["problems"], json!([]), "{name}: {output}");
        let back = bed.path(&format!("back-{name}"));
        bed.copy(&place, text(&back), &["--all"]).success();
        assert_tree_sound(&back);
        if keeps_digests {
            assert_eq!(tree::blobs(&back), tree::blobs(&bed.path("images")), "{name}");
        }
        // One by its name, and nothing that is not there.
        let one = bed.path(&format!("one-{name}"));
        bed.copy(&place, text(&one), &["quay.io/team/other:v2"]).success();
        assert_tree_sound(&one);
        bed.copy(&place, text(&one), &["quay.io/team/none:v2"]).expect_code(1);
    }
}

#[test]
fn every_medium_can_be_looked_into() {
    let bed = Bed::new();
    let app = application();
    let dir = bed.path("images");
    tree::kubekey_g1(&dir, "quay.io", "team/app", "v1", &app);
    for place in [bed.at("oci", "layout"), bed.at("oci-archive", "a.tar"), bed.at("dir", "dir")] {
        bed.copy(text(&dir), &place, &["quay.io/team/app:v1"]).success();
        let name =
            if place.starts_with("dir:") { vec!["--name", "quay.io/team/app:v1"] } else { vec![] };
        let run = |args: &[&str]| bed.imgfs.run(&[args, &["--from", &place], &name].concat());
        let image = "quay.io/team/app:v1";
        let output = run(&["cat", "--platform", "linux/amd64", image, "/app"]).success();
        assert_eq!(output.stdout, "linux/amd64", "{place}");
        let output = run(&["ls", "--platform", "linux/arm64", &format!("{image}:/etc")]).success();
        assert!(output.stdout.contains("os-release"), "{place}: {output}");
        let output = run(&["digest", image]).success();
        assert_eq!(output.stdout.trim(), app.digest(), "{place}");
        let output = run(&["inspect", "--raw", image]).success();
        assert_eq!(output.stdout.as_bytes(), app.root().bytes, "{place}");
        run(&["diff", "--platform", "linux/amd64", image, image]).success();
        run(&["cat", "quay.io/team/no:v1", "/app"]).expect_code(1);
        // As --images-dir, it is the same place.
        if name.is_empty() {
            let args = ["cat", "--images-dir", &place, "--platform", "linux/amd64", image, "/app"];
            assert_eq!(bed.imgfs.run(&args).success().stdout, "linux/amd64");
        }
    }
}

#[test]
fn a_mount_shows_what_a_place_has() {
    require!(Mounts);
    let bed = Bed::new();
    let (from, app, _) = bed.images();
    let place = bed.at("oci-archive", "a.tar");
    bed.copy(&from, &place, &["--all"]).success();
    let dir = bed.path("cache");
    let mount = Mounted::start(&dir, &["--from", &place]);
    let manifest = mount.at().join("quay.io/team/app/manifests/v1");
    assert_eq!(fs::read(manifest).expect("reading"), app.root().bytes);
    let names: BTreeSet<String> = fs::read_dir(mount.at().join("quay.io/team"))
        .expect("listing")
        .map(|entry| entry.expect("listing").file_name().into_string().expect("text"))
        .collect();
    assert_eq!(names, ["app".to_owned(), "other".to_owned()].into());
}

#[test]
fn what_a_place_cannot_do_is_said() {
    let bed = Bed::new();
    let (from, ..) = bed.images();
    let layout = bed.at("oci", "layout");
    bed.copy(&from, &layout, &["--all"]).success();
    let dir = bed.at("dir", "dir");
    bed.copy(&from, &dir, &["--all"])
        .expect_code(2)
        .stderr_has("it takes one image, and 2 are to be written");
    assert!(!bed.path("dir").exists());
    let named = format!("{layout}:x");
    bed.copy(&from, &named, &["--all"]).expect_code(2).stderr_has("it takes one image");
    let output = bed.imgfs.run(&["rm", "--images-dir", &layout, "quay.io/team/app:v1"]);
    output.expect_code(2).stderr_has("names cannot be removed there");
    let output = bed.imgfs.run(&["verify", "--repair", &layout]);
    output.expect_code(2).stderr_has("only a directory of images can be repaired");
    bed.imgfs
        .run(&["copy", "--from", &layout, "--to", &from])
        .expect_code(2)
        .stderr_has("no image is named");
    let archive = bed.at("oci-archive", "a.tar");
    bed.copy(&from, &archive, &["--all", "--shard", "1/2"])
        .expect_code(2)
        .stderr_has("several workers");
    bed.copy(&from, &layout, &["--all", "--name", "quay.io/x/y"])
        .expect_code(2)
        .stderr_has("--name is for places");
}

#[test]
fn several_workers_replace_nothing_that_is_packed() {
    let bed = Bed::new();
    let (from, ..) = bed.images();
    let dir = bed.at("dir", "dir");
    bed.copy(&from, &dir, &["quay.io/team/other:v2"]).success();
    let before = tree::everything_under(&bed.path("dir"));
    let manifest = fs::read(bed.path("dir/manifest.json")).expect("reading");
    bed.copy(&from, &dir, &["quay.io/team/other:v2", "--shard", "1/2"])
        .expect_code(2)
        .stderr_has("several workers");
    assert_eq!(tree::everything_under(&bed.path("dir")), before);
    assert_eq!(fs::read(bed.path("dir/manifest.json")).expect("reading"), manifest);
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    let bed = Bed::new();
    let (from, ..) = bed.images();
    let (dir, layout, registry) =
        (text(&bed.path("dir")).to_owned(), bed.at("oci", "layout"), "registry://127.0.0.1:1");
    let idle: [(&[&str], &[&str]); 5] = [
        (&["--layout", "portable"], &[&layout, registry]),
        (&["--sync", "end"], &[&layout, registry]),
        (&["--index-layers"], &[&layout, registry]),
        (&["--create-projects"], &[&layout, &dir]),
        (&["--single-writer"], &[&layout, &dir, registry]),
    ];
    for (args, targets) in idle {
        for target in targets {
            let args = [&["--all"], args].concat();
            let reason = format!("{} is about", args[1]);
            bed.copy(&from, target, &args).expect_code(2).stderr_has(&reason);
            if target.starts_with("oci:") && args[1] != "--create-projects" {
                let args = [&["pull", "--images-dir", target], &args[1..], &["a.io/b:c"]].concat();
                bed.imgfs.run(&args).expect_code(2).stderr_has(&reason);
            }
        }
    }
    for name in ["dir", "layout"] {
        assert!(!bed.path(name).exists(), "{name}");
    }
}

#[test]
fn a_directory_is_named_alike_by_all_commands() {
    let bed = Bed::new();
    let (from, ..) = bed.images();
    let (local, image) = (format!("local://{from}"), "quay.io/team/other:v2");
    for args in [
        &["ls"][..],
        &["verify"],
        &["prune", "--dry-run"],
        &["inspect", image],
        &["index", "ls"],
        &["profile", "ls"],
        &["digest", image],
    ] {
        let plain = bed.imgfs.run(&[args, &["--images-dir", &from]].concat()).success();
        let schemed = bed.imgfs.run(&[args, &["--images-dir", &local]].concat()).success();
        // The time that it took comes last.
        let said = |output: &Output| output.stdout.split("; ").next().map(str::to_owned);
        assert_eq!(said(&schemed), said(&plain), "{args:?}");
    }
    // As an argument, too, in which a colon could stand before a path in an image.
    let plain = bed.imgfs.run(&["ls", "--images-dir", &from]).success();
    assert_eq!(bed.imgfs.run(&["ls", &local]).success().stdout, plain.stdout);
    bed.imgfs.run(&["ls", "--recursive", &local]).expect_code(2).stderr_has("IMAGE[:/PATH]");
    let layout = bed.at("oci", "layout");
    bed.copy(&from, &layout, &["--all"]).success();
    for args in [&["prune"][..], &["serve"], &["index", "ls"], &["profile", "ls"]] {
        let output = bed.imgfs.run(&[args, &["--images-dir", &layout]].concat());
        output.expect_code(2).stderr_has("directory");
    }
}

#[test]
fn blobs_are_linked_between_a_directory_and_a_layout() {
    use std::os::unix::fs::MetadataExt as _;
    let bed = Bed::new();
    let (from, ..) = bed.images();
    let (a, layout, b) = (bed.path("a"), bed.at("oci", "layout"), bed.path("b"));
    bed.copy(&from, text(&a), &["--all"]).success();
    for (source, target) in [(text(&a), layout.as_str()), (&layout, text(&b))] {
        let output = bed.copy(source, target, &["--all"]).success();
        assert_eq!(output.number("linked_blobs"), tree::blobs(&a).len() as u64, "{output}");
        assert_eq!(output.number("moved_bytes"), 0);
    }
    for blob in tree::blobs(&a) {
        let hex = blob.trim_start_matches("sha256:");
        let inode = |path: PathBuf| fs::metadata(path).expect("a blob").ino();
        let inodes = [
            a.join("blobs").join(&blob),
            bed.path("layout/blobs/sha256").join(hex),
            b.join("blobs").join(&blob),
        ]
        .map(inode);
        // A reflink would do as well.
        assert!(inodes.iter().all(|inode| *inode == inodes[0]) || is_reflink(&a), "{inodes:?}");
    }
    let output = bed.copy(&layout, text(&b), &["--all"]).success();
    assert!(output.images().iter().all(|image| image["status"] == "unchanged"), "{output}");
}

/// Whether the file system shares blocks between files.
fn is_reflink(dir: &Path) -> bool {
    let (one, two) = (dir.join(".one"), dir.join(".two"));
    fs::write(&one, [1; 4096]).expect("writing");
    let (source, target) =
        (fs::File::open(&one).expect("opening"), fs::File::create(&two).expect("creating"));
    let shared = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
    fs::remove_file(one).and_then(|()| fs::remove_file(two)).expect("removing");
    shared
}

#[test]
fn concurrent_writers_of_index_json_lose_nothing() {
    const WRITERS: usize = 100;
    let bed = Bed::new();
    let image = Image::new().layer(1, 100).build();
    let dir = bed.path("images");
    for at in 0..WRITERS {
        tree::kubekey_g1(&dir, "quay.io", "team/app", &format!("v{at}"), &image);
    }
    let layout = bed.at("oci", "layout");
    let running: Vec<_> = (0..WRITERS)
        .map(|at| {
            let name = format!("quay.io/team/app:v{at}");
            bed.imgfs.spawn(&["copy", "--json", "--from", text(&dir), "--to", &layout, &name])
        })
        .collect();
    for writer in running {
        writer.wait().success();
    }
    let names: BTreeSet<String> =
        listed(&bed.imgfs, &layout).into_iter().map(|(name, _)| name).collect();
    let expected = (0..WRITERS).map(|at| format!("quay.io/team/app:v{at}")).collect();
    assert_eq!(names, expected);
    bed.imgfs.run(&["verify", &layout]).success();
}

#[test]
fn unknown_entries_and_annotations_of_a_layout_stay() {
    let bed = Bed::new();
    let (from, app, other) = bed.images();
    let layout = bed.at("oci", "layout");
    bed.copy(&from, &layout, &["quay.io/team/app:v1"]).success();
    let strange = json!({"mediaType": "application/x-strange", "digest": format!("sha256:{}", "0".repeat(64)), "size": 7, "x": [1]});
    edit_index(&bed.path("layout"), |index| {
        index["annotations"] = json!({"of": "the index"});
        index["x-own"] = json!({"z": 1, "a": 2});
        index["manifests"][0]["annotations"]["own"] = "kept".into();
        let entries = index["manifests"].as_array_mut().expect("a list");
        entries.insert(0, strange.clone());
    });
    bed.copy(&from, &layout, &["quay.io/team/other:v2"]).success();
    // The tag moves, and what others have said of its entry stays.
    let moved = bed.path("moved");
    tree::kubekey_g1(&moved, "quay.io", "team/app", "v1", &other);
    bed.copy(text(&moved), &layout, &["--all"]).success();
    let index = index_of(&bed.path("layout"));
    assert_eq!(index["annotations"], json!({"of": "the index"}));
    assert_eq!(index["x-own"], json!({"z": 1, "a": 2}));
    let entries = entries(&bed.path("layout"));
    assert_eq!(entries.len(), 3, "{entries:#?}");
    assert_eq!(entries[0], strange);
    assert_eq!(entries[1]["annotations"]["own"], "kept");
    assert_eq!(entries[1]["digest"], other.digest());
    assert_ne!(entries[1]["digest"], app.digest());
}

#[test]
fn tagging_by_digest_drops_nothing() {
    let bed = Bed::new();
    let (from, app, _) = bed.images();
    let (source, layout) = (bed.at("oci", "source"), bed.at("oci", "layout"));
    for place in [&source, &layout] {
        bed.copy(&from, place, &["quay.io/team/app:v1"]).success();
    }
    let pinned = format!("quay.io/team/app@{}", app.digest());
    bed.copy(&source, &layout, &[&pinned]).success();
    let expected = ("quay.io/team/app:v1".to_owned(), app.digest().to_owned());
    assert_eq!(listed(&bed.imgfs, &layout), [expected].into());
}

#[test]
fn names_of_a_layout_are_full_short_or_none() {
    let bed = Bed::new();
    let image = single(5);
    let path = bed.path("layout");
    image.write_oci_layout(&path, "v1");
    let layout = bed.at("oci", "layout");
    let target = bed.path("target");
    let copy = |args: &[&str]| bed.copy(&layout, text(&target), args);
    copy(&["--all"])
        .expect_code(2)
        .stderr_has("an image has no full name: v1")
        .stderr_has("--name REPOSITORY");
    let names = |args: &[&str]| {
        let images = copy(args).success().images();
        images
            .iter()
            .map(|image| image["image"].as_str().expect("a name").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&["--all", "--name", "quay.io/x/y"]), ["quay.io/x/y:v1"]);
    assert_eq!(names(&["--all", "--name", "quay.io/x/y:other"]), ["quay.io/x/y:other"]);
    let one = format!("{layout}:v1");
    bed.copy(&one, text(&target), &["--name", "quay.io/x/z"]).success();
    bed.copy(&format!("{layout}:v2"), text(&target), &["--name", "quay.io/x/z"])
        .expect_code(2)
        .stderr_has("it has v1");

    // Several names of one digest are several tags; the full name goes before the other.
    edit_index(&path, |index| {
        let mut second = index["manifests"][0].clone();
        second["annotations"] = json!({
            "io.containerd.image.name": "quay.io/full/name:v9", "org.opencontainers.image.ref.name": "v9",
        });
        let mut third = index["manifests"][0].clone();
        third["annotations"] = json!({"org.opencontainers.image.ref.name": "quay.io/ref/name:v8"});
        index["manifests"] = json!([second, third]);
    });
    assert_eq!(names(&["--all"]), ["quay.io/full/name:v9", "quay.io/ref/name:v8"]);

    // No annotations: by digest.
    for annotations in [json!({}), Value::Null] {
        edit_index(&path, |index| {
            index["manifests"] = json!([index["manifests"][0].clone()]);
            index["manifests"][0]["annotations"] = annotations.clone();
        });
        copy(&["--all"]).expect_code(2).stderr_has("no full name: sha256:");
        let by_digest = format!("quay.io/x/y@{}", image.digest());
        assert_eq!(names(&["--all", "--name", "quay.io/x/y"]), [by_digest]);
    }
    edit_index(&path, |index| {
        index["manifests"][0].as_object_mut().expect("an object").remove("annotations");
    });
    assert_eq!(names(&["--all", "--name", "quay.io/x/y"]).len(), 1);
    assert_tree_sound(&target);
}

#[test]
fn nested_and_sparse_indexes_stay_as_they_are() {
    let bed = Bed::new();
    let inner = two_platforms(21);
    let nested = Index::new().child(&inner).child(&single(3)).build();
    let path = bed.path("layout");
    nested.write_oci_layout(&path, "quay.io/x/nested:1");
    let layout = bed.at("oci", "layout");
    for place in [bed.at("oci", "second"), bed.at("oci-archive", "a.tar")] {
        bed.copy(&layout, &place, &["--all"]).success();
        let expected = ("quay.io/x/nested:1".to_owned(), nested.digest().to_owned());
        assert_eq!(listed(&bed.imgfs, &place), [expected].into());
        let back = bed.path("back");
        bed.copy(&place, text(&back), &["--all"]).success();
        assert_tree_sound(&back);
    }

    // Of one index, only the child for amd64 is there.
    let whole = two_platforms(31);
    let path = bed.path("sparse");
    whole.write_oci_layout(&path, "quay.io/x/sparse:1");
    let children = whole.json()["manifests"].as_array().expect("children").clone();
    for child in &children[1..] {
        let hex = child["digest"].as_str().expect("a digest").trim_start_matches("sha256:");
        fs::remove_file(path.join("blobs/sha256").join(hex)).expect("removing");
    }
    let sparse = bed.at("oci", "sparse");
    for place in [
        bed.at("oci", "third"),
        bed.at("oci-archive", "b.tar"),
        text(&bed.path("dir-of-it")).to_owned(),
    ] {
        bed.copy(&sparse, &place, &["--all"]).success();
        if !place.starts_with('/') {
            let expected = ("quay.io/x/sparse:1".to_owned(), whole.digest().to_owned());
            assert_eq!(listed(&bed.imgfs, &place), [expected].into());
        }
        let again = bed.path("again");
        bed.copy(&place, text(&again), &["--all"]).success();
        tree::assert_sparse_tree_sound(&again);
    }
}

#[test]
fn signatures_go_into_a_layout_and_out_of_it() {
    let bed = Bed::new();
    let hostile = Hostile::start();
    let app = single(7);
    app.push_to(&hostile, "team/app", "1");
    cosign_signature(&app).push_to(&hostile, "team/app", &digest_tag(app.digest(), ".sig"));
    let registry = format!("registry://{}", hostile.host());
    let layout = bed.at("oci", "layout");
    let run = |from: &str, to: &str, args: &[&str]| {
        bed.imgfs.run(
            &[&["copy", "--json", "--plain-http", "--referrers", "--from", from, "--to", to], args]
                .concat(),
        )
    };
    let output = run(&registry, &layout, &["team/app:1"]).success();
    assert_eq!(output.images()[0]["attached"].as_array().map(Vec::len), Some(1), "{output}");
    let archive = bed.at("oci-archive", "a.tar");
    for (from, to) in [(layout.as_str(), archive.as_str()), (&archive, &registry)] {
        let output = run(from, to, &["--all"]).success();
        assert_eq!(output.images().len(), 1, "a signature is no image of its own: {output}");
        assert_eq!(output.images()[0]["attached"].as_array().map(Vec::len), Some(1), "{output}");
    }
}

/// containerd takes whatever has its name of an image for one, and a signature cannot be unpacked.
#[test]
fn what_is_attached_has_no_name_of_an_image_and_what_is_pinned_keeps_its_repository() {
    let bed = Bed::new();
    let hostile = Hostile::start();
    let (app, pinned) = (single(7), single(8));
    app.push_to(&hostile, "team/app", "1");
    pinned.push_to(&hostile, "team/pinned", "9");
    cosign_signature(&app).push_to(&hostile, "team/app", &digest_tag(app.digest(), ".sig"));
    let dir = bed.path("dir");
    let host = hostile.host();
    let (tagged, by_digest) =
        (format!("{host}/team/app:1"), format!("{host}/team/pinned@{}", pinned.digest()));
    let pull = ["pull", "--plain-http", "--referrers", "--images-dir", text(&dir)];
    bed.imgfs.run(&[&pull[..], &[&tagged, &by_digest]].concat()).success();
    let expected: BTreeSet<(String, String)> =
        [(tagged, app.digest().to_owned()), (by_digest, pinned.digest().to_owned())].into();
    for place in [bed.at("oci", "layout"), bed.at("oci-archive", "a.tar")] {
        bed.copy(text(&dir), &place, &["--all"]).success();
        bed.copy(text(&dir), &place, &["--all"]).success();
        let index = match place.starts_with("oci:") {
            true => fs::read(bed.path("layout/index.json")).expect("reading"),
            false => crate::places_archives::member(&bed.path("a.tar"), "index.json"),
        };
        let index: Value = serde_json::from_slice(&index).expect("JSON");
        let entries = index["manifests"].as_array().expect("a list");
        let named = |key: &str| -> BTreeSet<&str> {
            entries.iter().filter_map(|entry| entry["annotations"][key].as_str()).collect()
        };
        let images: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(named("io.containerd.image.name"), images, "{index:#}");
        assert!(!named("org.opencontainers.image.ref.name").iter().any(|n| n.ends_with(".sig")));
        assert_eq!(entries.len(), 3, "{index:#}");
        let back = bed.path(place.split(':').next().expect("a scheme"));
        let output = bed.copy(&place, text(&back), &["--all"]).success();
        let attached = output
            .images()
            .iter()
            .filter_map(|i| i["attached"].as_array()?.first().cloned())
            .count();
        assert_eq!(attached, 1, "{output}");
        let mut images = listed(&bed.imgfs, text(&back));
        images.retain(|(name, _)| !name.ends_with(".sig"));
        assert_eq!(images, expected);
    }
    // What is called by the user's own word is so called, pinned or not.
    let layout = format!("{}:own", bed.at("oci", "other"));
    bed.copy(text(&dir), &layout, &[&format!("{host}/team/pinned@{}", pinned.digest())]).success();
    assert_eq!(skopeo::skopeo(&["inspect", "--raw", &layout]), pinned.root().bytes);
}

#[test]
fn a_name_of_an_archive_makes_no_directory_and_a_link_stays_one() {
    let bed = Bed::new();
    let (from, ..) = bed.images();
    for name in ["images.tar", "images.tar.gz", "images.tgz"] {
        let path = bed.path(name);
        bed.copy(&from, text(&path), &["--all"]).expect_code(2).stderr_has("oci-archive:");
        assert!(!path.exists());
    }
    let path = format!("{}/", bed.path("images.tar").display());
    bed.copy(&from, &path, &["--all"]).success();
    assert!(bed.path("images.tar/blobs").is_dir());

    // Another disk, say; there and not there yet.
    fs::create_dir(bed.path("disk")).expect("making a directory");
    std::os::unix::fs::symlink("disk/first.tar", bed.path("link.tar")).expect("linking");
    let link = bed.at("oci-archive", "link.tar");
    for _ in 0..2 {
        bed.copy(&from, &link, &["--all"]).success();
        assert!(bed.path("link.tar").is_symlink());
        assert_eq!(listed(&bed.imgfs, text(&bed.path("disk/first.tar"))).len(), 2);
    }
    assert_eq!(fs::read_dir(bed.path("disk")).expect("listing").count(), 1);
}

#[test]
fn a_damaged_blob_of_a_layout_is_found_and_not_copied() {
    let bed = Bed::new();
    let image = single(9);
    let path = bed.path("layout");
    image.write_oci_layout(&path, "quay.io/x/y:1");
    let layer = image.layers()[0].trim_start_matches("sha256:").to_owned();
    tree::flip_byte_quietly(&path.join("blobs/sha256").join(&layer), 100);
    let layout = bed.at("oci", "layout");
    let output = bed.imgfs.run(&["verify", "--json", &layout]).expect_code(1);
    assert_eq!(output.problems()[0]["kind"], "corrupt", "{output}");
    for to in
        [text(&bed.path("dir")).to_owned(), bed.at("oci", "other"), bed.at("oci-archive", "a.tar")]
    {
        bed.copy(&layout, &to, &["--all"]).expect_code(1).stderr_has("digest mismatch");
    }
    assert!(!bed.path("a.tar").exists(), "an archive without a single image is none");
    fs::remove_file(path.join("blobs/sha256").join(&layer)).expect("removing");
    let output = bed.imgfs.run(&["verify", "--json", &layout]).expect_code(1);
    assert_eq!(output.problems()[0]["kind"], "missing", "{output}");
    bed.imgfs.run(&["ls", &layout]).expect_code(1);
}

#[test]
fn other_directories_are_not_taken_for_layouts() {
    let bed = Bed::new();
    let (from, ..) = bed.images();
    fs::create_dir(bed.path("full")).expect("making a directory");
    fs::write(bed.path("full/file"), "x").expect("writing");
    for scheme in ["oci", "dir"] {
        let place = bed.at(scheme, "full");
        bed.copy(&from, &place, &["quay.io/team/other:v2"])
            .expect_code(2)
            .stderr_has("it is not empty and no");
        bed.imgfs.run(&["ls", &place]).expect_code(2);
    }
    assert_eq!(fs::read_dir(bed.path("full")).expect("listing").count(), 1);
    bed.copy(&from, &format!("oci:{from}"), &["--all"])
        .expect_code(2)
        .stderr_has("it is not empty and no");
}

#[test]
fn a_run_of_tasks_takes_places() {
    let bed = Bed::new();
    let (from, app, _) = bed.images();
    let layout = bed.at("oci", "layout");
    let tasks = format!(
        "- name: out\n  image:\n    copy:\n      from: {{path: {from}, manifests: [\"quay.io/team/app:v1\"]}}\n      to: {{path: \"{layout}\"}}\n"
    );
    fs::write(bed.path("tasks.yaml"), tasks).expect("writing");
    bed.imgfs.run(&["run", text(&bed.path("tasks.yaml"))]).success();
    let expected = ("quay.io/team/app:v1".to_owned(), app.digest().to_owned());
    assert_eq!(listed(&bed.imgfs, &layout), [expected].into());
}

#[test]
fn pull_fills_a_layout_and_push_empties_it() {
    let bed = Bed::new();
    let hostile = Hostile::start();
    let app = two_platforms(41);
    app.push_to(&hostile, "team/app", "1");
    let layout = bed.at("oci", "layout");
    let image = format!("{}/team/app:1", hostile.host());
    bed.imgfs.run(&["pull", "--plain-http", "--images-dir", &layout, &image]).success();
    let place = skopeo::Place::layout(&bed.path("layout"), &image);
    assert_eq!(skopeo::Skopeo::new().inspect_raw(&place), app.root().bytes);
    let other = Hostile::start();
    let dest = format!("{}/{{{{ .module.image.reference.repository }}}}:new", other.host());
    bed.imgfs.run(&["push", "--plain-http", "--images-dir", &layout, "--dest", &dest]).success();
    assert_eq!(other.tags("team/app")["new"], app.digest());
}
