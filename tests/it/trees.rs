//! Trees as `KubeKey` leaves them, and what time and accidents make of them.

use crate::support::cli::{Imgfs, Output};
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image, Index};
use crate::support::tree::{self, assert_tree_sound};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn image() -> Built {
    let layer =
        |platform: &str, seed| Image::new().platform(platform).layer(seed, 5000).layer(9, 3000);
    Index::new()
        .child(&layer("linux/amd64", 1).build())
        .child(&layer("linux/arm64", 2).build())
        .build()
}

/// A registry that has `team/app:v1`, and the name of it.
fn source() -> (Hostile, String) {
    let hostile = Hostile::start();
    image().push_to(&hostile, "team/app", "v1");
    let name = format!("{}/team/app:v1", hostile.host());
    (hostile, name)
}

/// How a tree comes to be, for tests that hold for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    G1,
    G2,
    ByImgfs,
}

fn make(made: Made, imgfs: &Imgfs, hostile: &Hostile, name: &str) {
    let (dir, host) = (imgfs.images_dir(), hostile.host());
    match made {
        Made::G1 => tree::kubekey_g1(dir, &host, "team/app", "v1", &image()),
        Made::G2 => tree::kubekey_g2(dir, &host, "team/app", "v1", &image()),
        Made::ByImgfs => {
            imgfs.pull(&[name]).success();
            hostile.clear_log();
        }
    }
}

const ALL: [Made; 3] = [Made::G1, Made::G2, Made::ByImgfs];

fn manifests(imgfs: &Imgfs, hostile: &Hostile) -> PathBuf {
    imgfs.images_dir().join(hostile.host()).join("team/app/manifests")
}

fn blob(imgfs: &Imgfs, digest: &str) -> PathBuf {
    imgfs.images_dir().join("blobs").join(digest)
}

fn problem(output: &Output, path: &str) -> Value {
    let problems = output.problems();
    problems
        .into_iter()
        .find(|problem| problem["path"].as_str().is_some_and(|found| found.ends_with(path)))
        .unwrap_or_else(|| panic!("no problem with {path}\n{output}"))
}

fn amd64_layer() -> String {
    Image::new().layer(1, 5000).build().layers()[0].clone()
}

#[test]
fn every_generation_is_listed_and_whole() {
    let imgfs = Imgfs::scratch();
    let dir = imgfs.images_dir();
    tree::kubekey_g0(dir, "kubesphere/pause", "3.9", &Index::new().child(&image()).build());
    tree::kubekey_g1(dir, "registry-1.docker.io", "library/nginx", "1.25", &image());
    tree::kubekey_g1(dir, "quay.io", "a/manifests/b", "layout", &image());
    tree::kubekey_g2(dir, "registry-1.docker.io", "library/busybox", "1.36", &image());
    tree::kubekey_g2(dir, "registry.example:5000", "blobs/x", "v1", &image());
    assert_tree_sound(dir);
    let output = imgfs.ls().success();
    let mut names: Vec<String> = output
        .images()
        .iter()
        .map(|image| image["image"].as_str().unwrap_or_default().to_owned())
        .collect();
    names.sort();
    let old = names.iter().position(|name| name.ends_with("kubesphere/pause:3.9"));
    names.remove(old.unwrap_or_else(|| panic!("the oldest generation is not listed\n{output}")));
    let expected = [
        "docker.io/library/busybox:1.36",
        "docker.io/library/nginx:1.25",
        "quay.io/a/manifests/b:layout",
        "registry.example:5000/blobs/x:v1",
    ];
    assert_eq!(names, expected, "{output}");
    let nginx = output.image("docker.io/library/nginx:1.25");
    assert_eq!(nginx["digest"], image().digest());
    assert_eq!(nginx["bytes"].as_u64().map(|bytes| bytes >= image().blob_bytes()), Some(true));
    let platforms = nginx["platforms"].as_array().expect("platforms").clone();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"].map(Value::from));
    assert!(output.images().iter().all(|image| image["complete"] == true), "{output}");
    let before = tree::snapshot(dir);
    assert_eq!(imgfs.verify().success().problems().len(), 0);
    assert_eq!(imgfs.prune().success().number("removed_bytes"), 0);
    assert_eq!(tree::snapshot(dir), before, "looking changes nothing");
}

#[test]
fn a_pull_on_top_takes_what_is_there() {
    for made in ALL {
        let (hostile, name) = source();
        let imgfs = Imgfs::scratch();
        make(made, &imgfs, &hostile, &name);
        let output = imgfs.pull(&[&name]).success();
        assert_eq!(output.number("fetched_bytes"), 0, "{made:?}\n{output}");
        assert_eq!(output.image(&name)["digest"], image().digest());
        assert!(hostile.blob_gets().is_empty());
        // One generation in a tree is enough.
        assert_eq!(manifests(&imgfs, &hostile).join("layout").exists(), made == Made::G2);
        image().push_to(&hostile, "team/app", "v2");
        imgfs.pull(&[format!("{}/team/app:v2", hostile.host())]).success();
        assert_tree_sound(imgfs.images_dir());
        let listed = imgfs.ls().success();
        assert_eq!(listed.images().len(), 2, "{made:?}\n{listed}");
    }
}

#[test]
fn a_tag_named_layout_does_not_confuse_anyone() {
    let (hostile, _) = source();
    image().push_to(&hostile, "team/app", "layout");
    let name = format!("{}/team/app:layout", hostile.host());
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[&name]).success();
    assert_eq!(imgfs.ls().success().image(&name)["complete"], true);
    // In the newest generation the name is taken by the map; the tag is an entry in it.
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[name.as_str(), "--layout", "kubekey"]).success();
    let map = tree::layout(&manifests(&imgfs, &hostile));
    assert_eq!(map["layout"], image().digest());
    assert_eq!(imgfs.ls().success().image(&name)["complete"], true);
}

/// Damages a tree of each kind, looks whether verify says so, and whether `--repair` and, in another copy, a pull
/// mends it with no more than what is broken.
fn damage_is_found_and_mended(
    what: &str,
    kinds: &[&str],
    path: impl Fn(&Imgfs, &Hostile, Made) -> Option<PathBuf>,
    damage: impl Fn(&Path),
) {
    for made in ALL {
        for by_pull in [false, true] {
            let what = format!("{what}, {made:?}, pull: {by_pull}");
            let (hostile, name) = source();
            let imgfs = Imgfs::scratch();
            make(made, &imgfs, &hostile, &name);
            let Some(path) = path(&imgfs, &hostile, made) else {
                continue;
            };
            let whole = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            damage(&path);
            let output = imgfs.verify().expect_code(1);
            let relative = path.strip_prefix(imgfs.images_dir()).expect("inside");
            let found = problem(&output, &relative.to_string_lossy());
            let kind = found["kind"].as_str().unwrap_or_default();
            assert!(kinds.contains(&kind), "{what}: {kind}\n{output}");
            assert_eq!(found["repaired"], false, "{what}\n{output}");
            assert!(found["images"].to_string().contains(&name), "{what}\n{output}");
            output.stderr_has(&relative.to_string_lossy());
            if by_pull {
                imgfs.pull(&[&name]).success();
            } else {
                let output = imgfs.repair();
                assert_eq!(
                    problem(&output, &relative.to_string_lossy())["repaired"],
                    true,
                    "{output}"
                );
                output.success();
            }
            assert_tree_sound(imgfs.images_dir());
            let fetched: u64 = hostile.blob_bytes_sent().values().sum();
            assert!(fetched <= whole, "{what}: {fetched} bytes were fetched for {whole}");
            assert_eq!(imgfs.verify().success().problems().len(), 0, "{what}");
        }
    }
}

#[test]
fn a_blob_cut_short() {
    let path = |imgfs: &Imgfs, _: &Hostile, _| Some(blob(imgfs, &amd64_layer()));
    damage_is_found_and_mended("cut blob", &["truncated"], path, |path| tree::truncate(path, 1234));
}

#[test]
fn a_blob_of_no_bytes() {
    let path = |imgfs: &Imgfs, _: &Hostile, _| Some(blob(imgfs, &amd64_layer()));
    damage_is_found_and_mended("empty blob", &["truncated"], path, |path| tree::truncate(path, 0));
}

#[test]
fn a_blob_that_is_gone() {
    let path = |imgfs: &Imgfs, _: &Hostile, _| Some(blob(imgfs, &amd64_layer()));
    damage_is_found_and_mended("no blob", &["missing"], path, |path| {
        std::fs::remove_file(path).expect("removing");
    });
}

#[test]
fn a_blob_with_other_bytes() {
    let path = |imgfs: &Imgfs, _: &Hostile, _| Some(blob(imgfs, &amd64_layer()));
    damage_is_found_and_mended("altered blob", &["corrupt"], path, |path| {
        let mut bytes = std::fs::read(path).expect("reading");
        bytes[77] ^= 1;
        std::fs::write(path, bytes).expect("writing");
    });
}

#[test]
fn a_child_manifest_that_is_gone() {
    let path = |imgfs: &Imgfs, hostile: &Hostile, _| {
        Some(manifests(imgfs, hostile).join(&image().manifests[0].digest))
    };
    damage_is_found_and_mended("no child", &["missing"], path, |path| {
        std::fs::remove_file(path).expect("removing");
    });
}

#[test]
fn a_manifest_of_no_bytes() {
    let path = |imgfs: &Imgfs, hostile: &Hostile, _| {
        Some(manifests(imgfs, hostile).join(&image().manifests[0].digest))
    };
    let kinds = ["truncated", "corrupt", "unreadable"];
    damage_is_found_and_mended("empty child", &kinds, path, |path| tree::truncate(path, 0));
}

#[test]
fn a_tag_of_no_bytes() {
    let path = |imgfs: &Imgfs, hostile: &Hostile, made| {
        (made != Made::G2).then(|| manifests(imgfs, hostile).join("v1"))
    };
    let kinds = ["truncated", "corrupt", "unreadable"];
    damage_is_found_and_mended("empty tag", &kinds, path, |path| tree::truncate(path, 0));
}

#[test]
fn a_layout_that_points_nowhere() {
    for by_pull in [false, true] {
        let (hostile, name) = source();
        let imgfs = Imgfs::scratch();
        make(Made::G2, &imgfs, &hostile, &name);
        let root = manifests(&imgfs, &hostile).join(image().digest());
        std::fs::remove_file(&root).expect("removing");
        let listed = imgfs.ls();
        assert_ne!(listed.code(), 0, "{listed}");
        assert!(
            listed.stderr.contains(&name) || listed.image(&name)["complete"] == false,
            "{listed}"
        );
        let output = imgfs.verify().expect_code(1);
        let kinds: Vec<Value> = output.problems().iter().map(|one| one["kind"].clone()).collect();
        assert!(kinds.contains(&"dangling-tag".into()), "{output}");
        if by_pull {
            imgfs.pull(&[&name]).success();
        } else {
            imgfs.repair().success();
        }
        assert!(root.is_file());
        assert_tree_sound(imgfs.images_dir());
        assert!(hostile.blob_gets().is_empty(), "no blob was broken");
    }
}

#[test]
fn a_layout_that_cannot_be_read_is_not_overwritten_in_silence() {
    let (hostile, name) = source();
    let imgfs = Imgfs::scratch();
    make(Made::G2, &imgfs, &hostile, &name);
    let map = manifests(&imgfs, &hostile).join("layout");
    let whole = std::fs::read(&map).expect("reading");
    std::fs::write(&map, &whole[..20]).expect("writing");
    let output = imgfs.verify().expect_code(1);
    assert_eq!(problem(&output, "manifests/layout")["kind"], "unreadable");
    image().push_to(&hostile, "team/app", "v2");
    let output = imgfs.pull(&[format!("{}/team/app:v2", hostile.host())]).expect_code(1);
    output.stderr_has("layout");
    assert_eq!(std::fs::read(&map).expect("reading"), &whole[..20]);
}

#[test]
fn stray_files_are_named_and_left_alone() {
    let (hostile, name) = source();
    for made in ALL {
        let imgfs = Imgfs::scratch();
        make(made, &imgfs, &hostile, &name);
        let strays = ["notes.txt", "blobs/sha256:abc", "blobs/tmp.1", "127.0.0.1/x"];
        for stray in strays {
            let path = imgfs.images_dir().join(stray);
            std::fs::create_dir_all(path.parent().expect("inside")).expect("making a directory");
            std::fs::write(path, "{\"a\": 1}").expect("writing");
        }
        let output = imgfs.verify();
        for stray in strays {
            assert_eq!(problem(&output, stray)["kind"], "stray", "{made:?}");
        }
        let listed = imgfs.ls().success();
        assert_eq!(listed.images().len(), 1, "{listed}");
        imgfs.pull(&[&name]).success();
        imgfs.prune();
        for stray in strays {
            assert!(imgfs.images_dir().join(stray).is_file(), "{stray} is somebody's");
        }
    }
}

#[test]
fn prune_removes_what_nobody_needs_and_nothing_else() {
    for made in ALL {
        let (hostile, name) = source();
        let imgfs = Imgfs::scratch();
        make(made, &imgfs, &hostile, &name);
        let before = tree::snapshot(imgfs.images_dir());
        let orphan = Image::new().layer(99, 700).build();
        for one in orphan.blobs.values() {
            std::fs::write(blob(&imgfs, &one.digest), one.content.to_vec()).expect("writing");
        }
        let manifest = manifests(&imgfs, &hostile).join(orphan.digest());
        std::fs::write(&manifest, &orphan.root().bytes).expect("writing");
        let dry = imgfs.on_tree("prune", &["--dry-run"]).success();
        assert!(manifest.exists());
        let output = imgfs.prune().success();
        let removed = output.report()["removed"].as_array().map_or(0, Vec::len);
        assert_eq!(removed, 3, "{made:?}\n{output}");
        assert_eq!(dry.report()["removed"], output.report()["removed"]);
        let bytes = orphan.blob_bytes() + orphan.root().bytes.len() as u64;
        assert_eq!(output.number("removed_bytes"), bytes, "{output}");
        assert_eq!(tree::snapshot(imgfs.images_dir()), before, "{made:?}");
    }
}

#[test]
fn what_was_verified_is_not_hashed_again_until_it_changes() {
    let (hostile, name) = source();
    let imgfs = Imgfs::scratch();
    tree::kubekey_g1(imgfs.images_dir(), &hostile.host(), "team/app", "v1", &image());
    let first = imgfs.verify().success();
    assert!(first.number("hashed_bytes") >= image().blob_bytes(), "{first}");
    // What KubeKey wrote is hashed once by the first pull that wants it.
    imgfs.pull(&[&name]).success();
    let second = imgfs.verify().success();
    assert_eq!(second.number("hashed_bytes"), 0, "{second}");
    assert_eq!(second.number("checked_blobs"), first.number("checked_blobs"));
    let full = imgfs.on_tree("verify", &["--full"]).success();
    assert!(full.number("hashed_bytes") >= image().blob_bytes(), "{full}");

    // The same size and time but other bytes: only reading all of it can tell.
    let layer = blob(&imgfs, &amd64_layer());
    tree::flip_byte_quietly(&layer, 100);
    let full = imgfs.on_tree("verify", &["--full"]).expect_code(1);
    assert_eq!(problem(&full, &amd64_layer())["kind"], "corrupt");
    // And once seen it is not forgotten.
    imgfs.verify().expect_code(1);
    imgfs.pull(&[&name]).success();
    assert_tree_sound(imgfs.images_dir());
}

#[test]
fn an_incomplete_image_is_listed_with_what_it_lacks() {
    let (hostile, name) = source();
    let imgfs = Imgfs::scratch();
    make(Made::G1, &imgfs, &hostile, &name);
    std::fs::remove_file(blob(&imgfs, &amd64_layer())).expect("removing");
    let listed = imgfs.ls();
    let entry = listed.image(&name);
    assert_eq!(entry["complete"], false);
    assert_eq!(entry["missing"], serde_json::json!([amd64_layer()]));
}
