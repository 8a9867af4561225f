//! `imgfs rm` and `imgfs tag`: names go and come, and nothing else changes.

use crate::support::cli::Imgfs;
use crate::support::hostile::Hostile;
use crate::support::image::{Built, cosign_signature, digest_tag, single, two_platforms};
use crate::support::registry::Registry;
use crate::support::text;
use crate::support::tree;
use std::collections::BTreeSet;

const LAYOUTS: [&str; 4] = ["documented", "kubekey", "kubekey-4.0.3", "portable"];

fn names(imgfs: &Imgfs) -> BTreeSet<String> {
    let images = imgfs.on_tree("ls", &["--all"]);
    let images = images.images();
    assert!(images.iter().all(|image| image["complete"] == true), "{images:?}");
    images.iter().map(|image| image["image"].as_str().expect("a name").to_owned()).collect()
}

/// Two tags of one signed index, and another image that shares a blob with it.
fn filled(layout: &str) -> (Hostile, Imgfs, Built) {
    let hostile = Hostile::start();
    let image = two_platforms(1);
    for tag in ["1", "2"] {
        image.push_to(&hostile, "app", tag);
    }
    cosign_signature(&image).push_to(&hostile, "app", &digest_tag(image.digest(), ".sig"));
    single(9).push_to(&hostile, "app", "other");
    let imgfs = Imgfs::scratch();
    let host = hostile.host();
    let args = ["1", "2", "other"].map(|tag| format!("{host}/app:{tag}"));
    let mut all = vec!["--layout".to_owned(), layout.to_owned()];
    all.extend(args);
    imgfs.pull(&all).success();
    (hostile, imgfs, image)
}

#[test]
fn an_empty_tag_is_not_the_latest_that_goes() {
    let (hostile, imgfs, _) = filled("documented");
    let before = hostile.log().len();
    let name = format!("{}/app:", hostile.host());
    let far = format!("registry://{name}");
    imgfs.run(&["rm", "--yes", "--plain-http", &far]).expect_code(2).stderr_has("the tag is empty");
    for args in [&[name.as_str()][..], &["--dry-run", &name]] {
        imgfs.on_tree("rm", args).expect_code(2).stderr_has("the tag is empty");
    }
    imgfs.on_tree("tag", &[&name, &format!("{name}3")]).expect_code(2);
    assert_eq!((hostile.log().len(), names(&imgfs).len()), (before, 4));
}

#[test]
fn of_a_directory_the_name_goes_and_what_only_it_needs_with_a_prune() {
    for layout in LAYOUTS {
        let (hostile, imgfs, image) = filled(layout);
        let name = |tag: &str| format!("{}/app:{tag}", hostile.host());
        let signature = name(&digest_tag(image.digest(), ".sig"));
        let all: BTreeSet<String> = [name("1"), name("2"), name("other"), signature.clone()].into();
        assert_eq!(names(&imgfs), all, "{layout}");

        let before = tree::snapshot(imgfs.images_dir());
        let planned = imgfs.on_tree("rm", &["--dry-run", &name("1")]).success();
        assert_eq!(planned.images()[0]["names"][0], name("1"), "{planned}");
        assert_eq!(tree::snapshot(imgfs.images_dir()), before, "{layout}");

        // The other tag needs the signature.
        let blobs = tree::blobs(imgfs.images_dir());
        imgfs.on_tree("rm", &[name("1")]).success();
        assert_eq!(names(&imgfs), [name("2"), name("other"), signature].into(), "{layout}");
        assert_eq!(tree::blobs(imgfs.images_dir()), blobs, "{layout}");
        assert_eq!(imgfs.prune().success().number("removed_bytes"), 0, "{layout}");

        // A name that is not there is an error, and the others go all the same.
        let removed = imgfs.on_tree("rm", &[name("1"), name("2")]).expect_code(1);
        removed.stderr_has("not found");
        assert_eq!(names(&imgfs), [name("other")].into(), "{layout}");
        assert_eq!(tree::blobs(imgfs.images_dir()), blobs, "{layout}");
        assert!(imgfs.on_tree("prune", &["--dry-run"]).success().number("removed_bytes") > 0);

        let emptied = imgfs.on_tree("rm", &["--prune", &name("other")]).success();
        assert!(emptied.number("removed_bytes") > 0);
        assert_eq!(tree::blobs(imgfs.images_dir()), BTreeSet::new(), "{layout}");
        // And the directory is as good as before.
        imgfs.pull(&[name("1")]).success();
        assert_eq!(imgfs.verify().success().problems().len(), 0);
    }
}

#[test]
fn what_was_asked_for_by_its_digest_goes_by_its_digest() {
    let (hostile, imgfs, image) = filled("documented");
    let pinned = format!("{}/app@{}", hostile.host(), image.digest());
    let tagged = format!("{}/app:1", hostile.host());
    // It is there as a tag, and nobody has asked for it by its digest.
    imgfs.on_tree("rm", &[&pinned]).expect_code(1);
    imgfs.pull(&[&pinned]).success();
    assert!(names(&imgfs).contains(&pinned));
    imgfs.on_tree("rm", &[&pinned]).success();
    assert!(!names(&imgfs).contains(&pinned) && names(&imgfs).contains(&tagged));
    // A tag with a digest is the tag, if it leads there.
    let wrong = format!("{tagged}@{}", single(9).digest());
    imgfs.on_tree("rm", &[&wrong]).expect_code(1).stderr_has("the tag leads to");
    imgfs.on_tree("rm", &[format!("{tagged}@{}", image.digest())]).success();
    assert!(!names(&imgfs).contains(&tagged));
}

#[test]
fn a_registry_is_changed_with_yes_only_and_says_what_else_goes() {
    let registry = Registry::plain();
    let (shared, other) = (single(1), single(2));
    for tag in ["1", "latest"] {
        shared.push_to(&registry, "team/app", tag);
    }
    other.push_to(&registry, "team/app", "other");
    let host = registry.host();
    let imgfs = Imgfs::scratch();
    let name = |tag: &str| format!("registry://{host}/team/app:{tag}");
    let rm = |args: &[&str]| imgfs.run(&[&["rm", "--plain-http", "--json"], args].concat());
    let is_there = |tag: &str| {
        imgfs
            .run(&[
                "pull",
                "--plain-http",
                "--dry-run",
                "--images-dir",
                text(&imgfs.home().join("no")),
                &format!("{host}/team/app:{tag}"),
            ])
            .code()
            == 0
    };
    let refused = rm(&[&name("1")]).expect_code(2).stderr_has("--yes");
    assert!(refused.stdout.contains("team/app:latest"), "{refused}");
    assert!(is_there("1") && is_there("latest"));
    rm(&["--yes", &name("absent")]).expect_code(1).stderr_has("not found");
    let removed = rm(&["--yes", &name("1")]).success();
    assert_eq!(removed.images()[0]["names"].as_array().map(Vec::len), Some(2), "{removed}");
    assert!(!is_there("1") && !is_there("latest") && is_there("other"));
    // Nothing was made of the images directory.
    assert!(!imgfs.images_dir().exists());
}

#[test]
fn an_index_keeps_its_children_in_a_registry() {
    let registry = Registry::plain();
    let child = crate::support::image::Image::new().platform("linux/amd64").layer(1, 1000).build();
    let index = crate::support::image::Index::new().child(&child).build();
    index.push_to(&registry, "app", "all");
    child.push_to(&registry, "app", "amd64");
    let imgfs = Imgfs::scratch();
    let name = format!("registry://{}/app:amd64", registry.host());
    let refused = imgfs.run(&["rm", "--plain-http", "--yes", &name]).expect_code(1);
    refused.stderr_has("app:all");
    imgfs.pull(&[format!("{}/app:all", registry.host())]).success();
}

#[test]
fn a_directory_gets_another_name_for_an_image() {
    for layout in LAYOUTS {
        let (hostile, imgfs, image) = filled(layout);
        let source = format!("{}/app:1", hostile.host());
        let blobs = tree::blobs(imgfs.images_dir());
        for target in [
            format!("{}/app:again", hostile.host()),
            "registry.example.com/mirror/app:stable".to_owned(),
        ] {
            imgfs.on_tree("tag", &["--dry-run", &source, &target]).success();
            assert!(!names(&imgfs).contains(&target));
            imgfs.on_tree("tag", &[&source, &target]).success();
            let listed = imgfs.ls().success();
            assert_eq!(listed.image(&target)["digest"], image.digest(), "{layout}");
        }
        // One that is there moves.
        let moved = format!("{}/app:other", hostile.host());
        imgfs.on_tree("tag", &[&source, &moved]).success();
        assert_eq!(imgfs.ls().success().image(&moved)["digest"], image.digest());
        assert_eq!(tree::blobs(imgfs.images_dir()), blobs, "{layout}");
        assert_eq!(imgfs.verify().success().problems().len(), 0);
    }
    let (hostile, imgfs, image) = filled("documented");
    let source = format!("{}/app:1", hostile.host());
    let absent = format!("{}/app:absent", hostile.host());
    imgfs.on_tree("tag", &[&absent, "quay.io/a/b:1"]).expect_code(1).stderr_has("not found");
    imgfs.on_tree("tag", &[&source, &source]).expect_code(2);
    let pinned = format!("quay.io/a/b@{}", image.digest());
    imgfs.on_tree("tag", &[&source, &pinned]).expect_code(2);
    let remote = format!("registry://{source}");
    imgfs.on_tree("tag", &[&source, &remote]).expect_code(2).stderr_has("imgfs push");
}

#[test]
fn a_registry_gets_another_name_without_moving_a_byte_twice() {
    let registry = Registry::plain();
    let image = two_platforms(1);
    image.push_to(&registry, "app", "1");
    let host = registry.host();
    let imgfs = Imgfs::scratch();
    for target in ["app:latest", "mirror/app:1"] {
        let names = ["app:1", target].map(|name| format!("registry://{host}/{name}"));
        imgfs
            .run(&["tag", "--plain-http", &names[0], &names[1]])
            .expect_code(2)
            .stderr_has("--yes");
        let done =
            imgfs.run(&["tag", "--json", "--plain-http", "--yes", &names[0], &names[1]]).success();
        assert_eq!(done.number("moved_bytes"), 0, "{done}");
        let pulled = imgfs.pull(&[format!("{host}/{target}")]).success();
        assert_eq!(pulled.image(&format!("{host}/{target}"))["digest"], image.digest());
    }
}
