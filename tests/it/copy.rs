//! `imgfs copy`: from any tree to any other, and nothing moves that need not.

use crate::support::cli::{Imgfs, Output};
use crate::support::hostile::Hostile;
use crate::support::image::{
    Artifact, Blob, Built, Image, buildkit_cache, cosign_signature, digest_tag,
    push_referrers_with_fallback_tag, single, two_platforms,
};
use crate::support::registry::Registry;
use crate::support::serving::Serving;
use crate::support::text;
use crate::support::tree::{self, assert_sparse_tree_sound, assert_tree_sound};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

fn registry(hostile: &Hostile) -> String {
    format!("registry://{}", hostile.host())
}

/// `imgfs copy --from FROM --to TO ARGS...`
fn copy(from: &str, to: &str, args: &[&str]) -> Output {
    Imgfs::scratch().copy(&[&["--from", from, "--to", to], args].concat())
}

/// A directory for trees.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("making a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn at(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }
}

/// Two images in two repositories.
fn source() -> (Hostile, Built, Built) {
    let hostile = Hostile::start();
    let (app, other) = (two_platforms(11), single(2));
    app.push_to(&hostile, "team/app", "1");
    other.push_to(&hostile, "team/other", "2");
    (hostile, app, other)
}

/// Requests that are meant to change something.
/// `imgfs verify` finds nothing wrong, and knows it without hashing.
#[track_caller]
fn assert_known_to_be_sound(directory: &Path) {
    assert_tree_sound(directory);
    let output = Imgfs::new(directory).verify().success();
    assert_eq!(output.number("hashed_bytes"), 0, "{output}");
}

#[test]
fn images_go_through_all_four_directions_and_come_out_the_same() {
    let (a, app, other) = source();
    let place = Place::new();
    let names = ["team/app:1", "team/other:2"];
    let output = copy(&registry(&a), &place.at("one"), &names).success();
    let bytes = app.blob_bytes() + other.blob_bytes();
    assert_eq!(output.number("moved_bytes"), bytes);
    assert_eq!(output.number("received_bytes"), bytes);
    assert_eq!(output.report()["command"], "copy");
    assert_known_to_be_sound(&place.path("one"));

    let output = copy(&place.at("one"), &place.at("two"), &["--all"]).success();
    assert_eq!(output.number("sent_bytes") + output.number("received_bytes"), 0);
    assert_eq!(output.number("linked_blobs"), tree::blobs(&place.path("one")).len() as u64);
    assert_known_to_be_sound(&place.path("two"));
    assert_eq!(tree::blobs(&place.path("one")), tree::blobs(&place.path("two")));

    let b = Hostile::start();
    let output = copy(&place.at("two"), &registry(&b), &["--all"]).success();
    b.assert_complete();
    assert_eq!(output.number("sent_bytes"), bytes);

    let c = Hostile::start();
    let output = copy(&registry(&b), &format!("{}/mirror", registry(&c)), &names).success();
    c.assert_complete();
    assert_eq!((output.number("sent_bytes"), output.number("received_bytes")), (bytes, bytes));
    assert_eq!(output.number("moved_bytes"), bytes);
    assert_eq!(c.tags("mirror/team/app")["1"], app.digest());
    assert_eq!(c.tags("mirror/team/other")["2"], other.digest());
    assert_eq!(c.repositories().len(), 2);
    let entry = output.image(&format!("{}/team/app:1", b.host()));
    assert_eq!(entry["target"], format!("{}/mirror/team/app:1", c.host()));
    assert_eq!((&entry["status"], &entry["digest"]), (&json!("copied"), &json!(app.digest())));
    for (from, to, args) in [
        (registry(&a), place.at("one"), &names[..]),
        (place.at("one"), place.at("two"), &["--all"]),
        (place.at("two"), registry(&b), &["--all"]),
        (registry(&b), format!("{}/mirror", registry(&c)), &names),
    ] {
        let output = copy(&from, &to, args).success();
        assert!(output.images().iter().all(|image| image["status"] == "unchanged"), "{output}");
        assert_eq!(output.number("moved_bytes"), 0, "{output}");
    }
}

/// 6 images with 47 references to 36 blobs: 6 configs, 27 layers of their own, 2 layers that all of them have,
/// and one that two have.
fn six_images() -> Vec<(String, Built)> {
    (0..6)
        .map(|number| {
            let mut image = Image::new().layer(1, 30_000).layer(2, 10_000);
            if number < 2 {
                image = image.layer(3, 5000);
            }
            let own = if number < 3 { 5 } else { 4 };
            let image =
                (0..own).fold(image, |image, layer| image.layer(100 * (number + 1) + layer, 2000));
            (format!("team/app{number}"), image.annotation("n", &number.to_string()).build())
        })
        .collect()
}

#[test]
fn six_images_with_shared_layers_cost_a_known_number_of_requests() {
    let (from, to) = (Hostile::start(), Hostile::start());
    let images = six_images();
    let mut distinct = BTreeMap::new();
    for (number, (name, image)) in images.iter().enumerate() {
        // Configurations are not shared.
        assert_eq!(image.layers().len(), [8, 8, 7, 6, 6, 6][number]);
        image.push_to(&from, name, "1");
        distinct.extend(image.blobs.clone());
    }
    let references: usize = images.iter().map(|(_, image)| image.blobs.len()).sum();
    assert_eq!((references, distinct.len()), (47, 36));
    let names: Vec<String> = images.iter().map(|(name, _)| format!("{name}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let output = copy(&registry(&from), &registry(&to), &names).success();
    to.assert_complete();
    assert!(distinct.keys().all(|digest| to.blob_puts(digest) == 1));
    let mut mounts = to.log();
    mounts.retain(|served| served.is_mount() && served.status == 201);
    // Others ask a repository for its own blobs, which says whether they are there.
    mounts.retain(|served| served.query("from") != served.repository.as_deref());
    assert_eq!((mounts.len(), output.number("mounted_blobs")), (11, 11));
    assert_eq!(output.number("moved_blobs"), 36);
    let log = to.log();
    assert!(log.len() <= 130, "{} requests: {log:#?}", log.len());
    assert_eq!(to.open_uploads(), 0);
    let bytes: u64 = distinct.values().map(Blob::size).sum();
    assert_eq!((to.uploaded_bytes(), output.number("received_bytes")), (bytes, bytes));

    // Within one registry nothing moves at all.
    from.clear_log();
    let target = format!("{}/copies", registry(&from));
    let output = copy(&registry(&from), &target, &names).success();
    from.assert_complete();
    assert_eq!((from.uploaded_bytes(), from.blob_gets().len()), (0, 0));
    assert_eq!((output.number("mounted_blobs"), output.number("moved_blobs")), (47, 0));
    assert_eq!(output.number("moved_bytes") + output.number("received_bytes"), 0);
    for (name, image) in &images {
        assert_eq!(from.tags(&format!("copies/{name}"))["1"], image.digest());
    }
}

#[test]
fn from_registry_to_registry_nothing_is_written_to_the_disk() {
    let (a, ..) = source();
    let b = Hostile::start();
    let imgfs = Imgfs::scratch();
    let args = ["--from", &registry(&a), "--to", &registry(&b), "team/app:1", "team/other:2"];
    imgfs.copy(&args).success();
    b.assert_complete();
    // HOME is where it was run.
    assert_eq!(tree::everything_under(imgfs.home()), Vec::<PathBuf>::new());
}

#[test]
fn a_platform_is_copied_alone_in_every_direction() {
    let (a, app, _) = source();
    let place = Place::new();
    copy(&registry(&a), &place.at("all"), &["team/app:1"]).success();
    let b = Hostile::start();
    let name = format!("{}/team/app:1", a.host());
    for (from, to) in [
        (registry(&a), registry(&b)),
        (registry(&a), place.at("one")),
        (place.at("all"), format!("{}/x", registry(&b))),
        (place.at("all"), place.at("two")),
    ] {
        let args = ["--platform", "linux/arm64", &name];
        let output = copy(&from, &to, &args).success();
        let entry = output.image(&name);
        assert_eq!(entry["original_digest"], app.digest(), "{output}");
        assert_eq!(entry["platforms"], json!(["linux/arm64"]));
        let again = copy(&from, &to, &args).success();
        assert_eq!(again.image(&name)["status"], "unchanged", "{again}");
        assert_eq!(again.image(&name)["digest"], entry["digest"]);
    }
    b.assert_complete();
    let digests = ["team/app", "x/team/app"].map(|name| b.tags(name)["1"].clone());
    assert_eq!(digests[0], digests[1], "the filter makes the same of the same");
    for tree in ["one", "two"] {
        assert_known_to_be_sound(&place.path(tree));
        assert_eq!(tree::blobs(&place.path(tree)).len(), 4, "with the attestation");
    }

    let lacking = ["--platform", "linux/arm64,linux/s390x", &name];
    let c = Hostile::start();
    let output = copy(&registry(&a), &registry(&c), &lacking).expect_code(1);
    output.stderr_has("linux/s390x").stderr_has("linux/arm64");
    assert!(c.writes().is_empty());
    let warn = [&lacking[..], &["--policy", "warn"]].concat();
    let output = copy(&registry(&a), &registry(&c), &warn).success().stderr_has("linux/s390x");
    assert!(output.stderr.contains("warning: "), "{output}");
    c.assert_complete();
    // Kept as it is, only a directory can hold a part of it.
    let keep = ["--platform", "linux/arm64", "--index", "keep", &name];
    let output = copy(&registry(&a), &registry(&c), &keep).expect_code(1);
    output.stderr_has("whole indexes only");
    copy(&registry(&a), &place.at("sparse"), &keep).success();
    copy(&place.at("sparse"), &place.at("sparser"), &["--all"]).success();
    assert_sparse_tree_sound(&place.path("sparser"));
    Imgfs::new(place.path("sparser")).verify().success();
    copy(&place.at("sparser"), &registry(&c), &["--all"]).expect_code(1).stderr_has("--platform");
}

#[test]
fn images_are_named_listed_matched_and_renamed() {
    let (a, app, other) = source();
    let b = Hostile::start();
    // Below the tree, with and without its name; in a file with comments.
    let team = format!("{}/team", registry(&a));
    let full = format!("{}/team/other:2", a.host());
    copy(&team, &registry(&b), &["app:1", &full]).success();
    assert_eq!(b.repositories(), BTreeSet::from(["app", "other"].map(String::from)));
    let list = tempfile::NamedTempFile::new().expect("making a file");
    std::fs::write(&list, "# images\napp:1\n\nother:2 # the other\n").expect("writing");
    let to = format!("{}/listed", registry(&b));
    copy(&team, &to, &["--file", text(list.path())]).success();
    assert_eq!(b.tags("listed/other")["2"], other.digest());

    let dest = format!(
        "{}/new/{{{{ .module.image.reference.repository | replace \"/\" \"-\" }}}}:v{{{{ .module.image.reference.tag }}}}",
        b.host()
    );
    copy(&team, &registry(&b), &["--dest", &dest, "app:1"]).success();
    assert_eq!(b.tags("new/team-app")["v1"], app.digest());
    let args = ["--pattern", "other", "app:1", "other:2"];
    let output = copy(&team, &format!("{}/matched", registry(&b)), &args).success();
    assert_eq!(output.images().len(), 1);
    assert_eq!(b.tags("matched/other").len(), 1);
    let none = ["--pattern", "^nothing$", "app:1"];
    copy(&team, &registry(&b), &none).expect_code(3).stderr_has("no image matches");
    // By digest, and it stays so.
    let pinned = format!("other@{}", other.digest());
    copy(&team, &format!("{}/pinned", registry(&b)), &[&pinned]).success();
    assert!(b.manifest("pinned/other", other.digest()).is_some());
    assert!(b.tags("pinned/other").is_empty());
    b.assert_complete();
}

#[test]
fn all_tags_of_a_repository_are_found_page_by_page() {
    let a = Hostile::start();
    a.set_page_limit(3);
    let images: Vec<Built> = (20..31).map(single).collect();
    for (number, image) in images.iter().enumerate() {
        image.push_to(&a, "team/app", &format!("v{number}"));
    }
    cosign_signature(&images[0]).push_to(&a, "team/app", &digest_tag(images[0].digest(), ".sig"));
    single(40).push_to(&a, "team/other", "1");
    let place = Place::new();
    let from = format!("{}/team/app", registry(&a));
    let output = copy(&from, &place.at("tree"), &["--all"]).success();
    assert_eq!(output.images().len(), 11, "a signature is no image of its own: {output}");
    assert_tree_sound(&place.path("tree"));
    let copied = Imgfs::new(place.path("tree")).ls().success().images();
    let tag = |image: &Value| image["image"].as_str().is_some_and(|name| name.contains("app:v"));
    assert_eq!((copied.len(), copied.iter().filter(|image| tag(image)).count()), (12, 11));
    let b = Hostile::start();
    copy(&from, &format!("{}/flat", registry(&b)), &["--all", "--pattern", ":v1"]).success();
    b.assert_complete();
    let tags = b.tags("flat");
    assert_eq!(tags.keys().collect::<Vec<_>>(), ["v1", "v10"]);
}

#[test]
fn directories_share_what_they_can_and_records_stay_good() {
    let (a, app, other) = source();
    let place = Place::new();
    let names = ["team/app:1", "team/other:2"];
    copy(&registry(&a), &place.at("one"), &names).success();
    let inode = |tree: &str, digest: &str| {
        let path = place.path(tree).join("blobs").join(digest);
        std::fs::metadata(path).expect("the blob is there").ino()
    };
    for (tree, args) in [("linked", &["--all"][..]), ("copied", &["--all", "--link", "never"])] {
        let output = copy(&place.at("one"), &place.at(tree), args).success();
        let blobs: Vec<&String> = app.blobs.keys().chain(other.blobs.keys()).collect();
        let same = blobs.iter().filter(|digest| inode("one", digest) == inode(tree, digest));
        let (same, linked) = (same.count(), output.number("linked_blobs"));
        if tree == "copied" {
            assert_eq!((same, linked), (0, 0), "{output}");
            assert_eq!(output.number("moved_bytes"), app.blob_bytes() + other.blob_bytes());
        } else {
            // A file system that shares blocks has no need of the other.
            assert!(same == blobs.len() || same == 0, "{same}");
            assert_eq!((linked, output.number("moved_bytes")), (blobs.len() as u64, 0));
        }
        tree::assert_modes_and_times(&place.path(tree));
        assert_known_to_be_sound(&place.path(tree));
        assert_known_to_be_sound(&place.path("one"));
    }
    // What is known of the one is not lost when the other goes.
    std::fs::remove_dir_all(place.path("linked")).expect("removing");
    assert_tree_sound(&place.path("one"));
    Imgfs::new(place.path("one")).verify().success();
}

#[test]
fn trees_of_all_generations_are_sources() {
    let place = Place::new();
    let (a, b, c) = (single(2), two_platforms(11), single(4));
    let old = place.path("old");
    tree::kubekey_g0(&old, "library/g0", "1", &a);
    tree::kubekey_g1(&old, "registry-1.docker.io", "library/g1", "1", &b);
    tree::kubekey_g2(&old, "quay.io", "team/g2", "1", &c);
    let hostile = Hostile::start();
    let output = copy(text(&old), &registry(&hostile), &["--all"]).success();
    hostile.assert_complete();
    assert_eq!(output.images().len(), 3, "{output}");
    for (name, image) in [("library/g0", &a), ("library/g1", &b), ("team/g2", &c)] {
        assert_eq!(hostile.tags(name)["1"], image.digest());
    }
    for layout in ["documented", "kubekey", "kubekey-4.0.3"] {
        let to = place.at(layout);
        copy(text(&old), &to, &["--all", "--layout", layout]).success();
        assert_known_to_be_sound(Path::new(&to));
        let images = Imgfs::new(&to).ls().success().images();
        let names: BTreeSet<_> =
            images.iter().filter_map(|image| image["image"].as_str()).collect();
        let expected = ["docker.io/library/g0:1", "docker.io/library/g1:1", "quay.io/team/g2:1"];
        assert_eq!(names, BTreeSet::from(expected), "{layout}");
        assert!(images.iter().all(|image| image["complete"] == true), "{layout}: {images:?}");
    }
}

#[test]
fn damage_in_a_directory_is_not_passed_on() {
    for (what, damage, said) in tree::DAMAGES {
        for link in ["auto", "never"] {
            let place = Place::new();
            let (bad, good) = (Image::new().layer(5, 300_000).build(), single(3));
            tree::kubekey_g1(&place.path("one"), "quay.io", "team/bad", "1", &bad);
            tree::kubekey_g1(&place.path("one"), "quay.io", "team/good", "1", &good);
            let blob = place.path("one").join("blobs").join(&bad.layers()[0]);
            damage(&blob);
            let args = ["--all", "--link", link];
            let output = copy(&place.at("one"), &place.at("two"), &args).expect_code(1);
            let output = output.stderr_has(said).stderr_has(text(&blob)).stderr_has("--repair");
            assert_eq!(output.image("quay.io/team/bad:1")["status"], "failed", "{what}");
            assert_eq!(output.image("quay.io/team/good:1")["status"], "copied", "{what}");
            assert_tree_sound(&place.path("two"));
            assert_eq!(Imgfs::new(place.path("two")).ls().success().images().len(), 1);
        }
    }
}

/// What lists the referrers of `subject` at a registry without the API, by digest.
fn listed(hostile: &Hostile, repository: &str, subject: &Built) -> BTreeSet<String> {
    let list = hostile.manifest(repository, &digest_tag(subject.digest(), ""));
    let list: Value = serde_json::from_slice(&list.expect("a list")).expect("JSON");
    let entries = list["manifests"].as_array().expect("a list").iter();
    entries.map(|entry| entry["digest"].as_str().expect("a digest").to_owned()).collect()
}

#[test]
fn signatures_and_referrers_travel_in_all_directions() {
    let image = two_platforms(11);
    let sbom = Artifact::new("application/spdx+json").subject(&image).blob("text/spdx", b"sbom");
    let sbom = sbom.build();
    let on_sbom = Artifact::new("application/vnd.signature").subject(&sbom).build();
    let signature = cosign_signature(&image);
    for from_api in [true, false] {
        let a = Hostile::start();
        a.set_referrers_api(from_api);
        image.push_to(&a, "team/app", "1");
        signature.push_to(&a, "team/app", &digest_tag(image.digest(), ".sig"));
        if from_api {
            sbom.push_by_digest(&a, "team/app");
            on_sbom.push_by_digest(&a, "team/app");
        } else {
            push_referrers_with_fallback_tag(&a, "team/app", image.digest(), &[&sbom]);
            push_referrers_with_fallback_tag(&a, "team/app", sbom.digest(), &[&on_sbom]);
        }
        let place = Place::new();
        copy(&registry(&a), &place.at("one"), &["team/app:1"]).success();
        copy(&place.at("one"), &place.at("two"), &["--all"]).success();
        for tree in ["one", "two"] {
            assert_known_to_be_sound(&place.path(tree));
            let known = tree::blobs(&place.path(tree));
            assert!(sbom.blobs.keys().all(|digest| known.contains(digest)));
            assert!(signature.blobs.keys().all(|digest| known.contains(digest)));
        }
        for to_api in [true, false] {
            for (from, args) in [(registry(&a), ["team/app:1"]), (place.at("two"), ["--all"])] {
                let b = Hostile::start();
                b.set_referrers_api(to_api);
                let output = copy(&from, &registry(&b), &args).success();
                assert!(output.stderr.is_empty(), "{output}");
                b.assert_complete();
                let tags = b.tags("team/app");
                assert_eq!(tags[&digest_tag(image.digest(), ".sig")], signature.digest());
                for referrer in [&sbom, &on_sbom] {
                    assert!(b.manifest("team/app", referrer.digest()).is_some(), "{output}");
                }
                if !to_api {
                    let one = |built: &Built| BTreeSet::from([built.digest().to_owned()]);
                    assert_eq!(listed(&b, "team/app", &image), one(&sbom));
                    assert_eq!(listed(&b, "team/app", &sbom), one(&on_sbom));
                }
                b.clear_log();
                let output = copy(&from, &registry(&b), &args).success();
                assert!(b.writes().is_empty(), "{from_api} {to_api} {:#?}", b.writes());
                assert_eq!(output.images()[0]["status"], "unchanged", "{output}");
            }
        }
    }
}

#[test]
fn a_list_of_referrers_is_merged_with_that_of_others() {
    let image = single(2);
    let ours = Artifact::new("application/vnd.ours").subject(&image).build();
    let theirs = Artifact::new("application/vnd.theirs").subject(&image).build();
    let (a, b) = (Hostile::start(), Hostile::start());
    for (hostile, referrer) in [(&a, &ours), (&b, &theirs)] {
        image.push_to(hostile, "team/app", "1");
        push_referrers_with_fallback_tag(hostile, "team/app", image.digest(), &[referrer]);
    }
    copy(&registry(&a), &registry(&b), &["team/app:1"]).success();
    b.assert_complete();
    let both = BTreeSet::from([&ours, &theirs].map(|built| built.digest().to_owned()));
    assert_eq!(listed(&b, "team/app", &image), both);
    b.clear_log();
    let output = copy(&registry(&a), &registry(&b), &["team/app:1"]).success();
    assert!(b.writes().is_empty(), "{:#?}", b.writes());
    assert_eq!(output.images()[0]["status"], "unchanged", "{output}");
}

#[test]
fn a_dry_run_of_a_copy_touches_nothing_and_is_right() {
    let (a, app, other) = source();
    let place = Place::new();
    let names = ["team/app:1", "team/other:2"];
    let bytes = app.blob_bytes() + other.blob_bytes();
    let dry =
        |from: &str, to: &str| copy(from, to, &[&["--dry-run"], &names[..]].concat()).success();
    let output = dry(&registry(&a), &place.at("one"));
    assert_eq!(output.number("missing_bytes"), bytes, "{output}");
    assert!(!place.path("one").exists());
    let b = Hostile::start();
    assert_eq!(dry(&registry(&a), &registry(&b)).number("missing_bytes"), bytes);
    assert!(b.writes().is_empty());
    // Within one registry, everything is mounted.
    let output = dry(&registry(&a), &format!("{}/copies", registry(&a)));
    assert_eq!(output.number("missing_bytes"), 0, "{output}");
    assert!(a.writes().is_empty());

    copy(&registry(&a), &place.at("one"), &names[1..]).success();
    let before = tree::snapshot(&place.path("one"));
    let output = dry(&registry(&a), &place.at("one"));
    assert_eq!(output.number("missing_bytes"), app.blob_bytes(), "{output}");
    assert_eq!(output.number("reused_bytes"), other.blob_bytes(), "{output}");
    assert_eq!(tree::snapshot(&place.path("one")), before);
    copy(&place.at("one"), &place.at("two"), &["--all", "--dry-run"]).success();
    assert!(!place.path("two").exists());
}

#[test]
fn what_cannot_be_copied_is_refused_at_once() {
    let place = Place::new();
    let tree = place.path("tree");
    tree::kubekey_g1(&tree, "quay.io", "team/a", "1", &single(2));
    tree::kubekey_g1(&tree, "quay.io", "team/b", "1", &single(3));
    std::fs::write(place.path("file"), "a file").expect("writing");
    let hostile = Hostile::start();
    let (dir, to, reg) = (place.at("tree"), place.at("to"), registry(&hostile));
    let (file, none) = (place.at("file"), place.at("none"));
    let itself = format!("quay.io/team/a:{}", "1");
    let one = format!("{}/one:1", hostile.host());
    let cases: Vec<(Vec<&str>, i32, Vec<&str>)> = vec![
        (vec!["--from", &dir, "--to", &to], 2, vec!["no image is named", "--all"]),
        (vec!["--from", &dir, "--to", &to, "--all", "x:1"], 2, vec!["--all"]),
        (vec!["--to", &to, "--all"], 2, vec!["--from"]),
        (vec!["--from", &dir, "--all"], 2, vec!["--to"]),
        (vec!["--from", "docker://x", "--to", &to, "--all"], 2, vec!["--from", "docker://"]),
        (vec!["--from", &dir, "--to", "https://h.io", "--all"], 2, vec!["--to", "https://"]),
        (vec!["--from", &dir, "--to", "registry://h.io/x:1", "--all"], 2, vec!["--to", "an image"]),
        (
            vec!["--from", &dir, "--to", "registry://", "--all"],
            2,
            vec!["quay.io/team/a:1", "registry://HOST"],
        ),
        (vec!["--from", "registry://", "--to", &to, "--all"], 2, vec!["name the images"]),
        (vec!["--from", &reg, "--to", &to, "--all"], 2, vec!["registry://HOST/PATH"]),
        (vec!["--from", &none, "--to", &to, "--all"], 2, vec![&none]),
        (vec!["--from", &file, "--to", &to, "--all"], 2, vec![&file]),
        (vec!["--from", &dir, "--to", &file, "--all"], 2, vec![&file]),
        (vec!["--from", &dir, "--to", &dir, "--all"], 2, vec!["same directory", &dir]),
        (
            vec!["--from", "registry://quay.io", "--to", "registry://quay.io", "team/a:1"],
            2,
            vec!["onto itself"],
        ),
        (
            vec!["--from", "registry://", "--to", "registry://quay.io", &itself],
            2,
            vec!["onto itself"],
        ),
        (
            vec!["--from", "registry://quay.io/x", "--to", &to, "h.io/y:1"],
            2,
            vec!["h.io/y:1", "registry://quay.io/x"],
        ),
        (
            vec!["--from", &dir, "--to", &reg, "--all", "--dest", &one],
            2,
            vec!["quay.io/team/a:1", "quay.io/team/b:1", &one],
        ),
        (
            vec!["--from", &dir, "--to", &to, "--all", "--dest", "h.io/{{ .no }}:1"],
            2,
            vec!["quay.io/team/a:1", "1:"],
        ),
        (vec!["--from", &dir, "--to", &to, "--all", "--pattern", "["], 2, vec!["--pattern"]),
        (vec!["--from", &dir, "--to", &to, "--file", &none], 2, vec![&none]),
        (
            vec!["--from", &dir, "--to", &to, "--all", "--pattern", "^nothing"],
            3,
            vec!["no image matches"],
        ),
        (
            vec!["--from", &dir, "--to", &to, "--all", "--create-projects"],
            2,
            vec!["--create-projects"],
        ),
        (vec!["--from", &dir, "--to", &reg, "--all", "--layout", "kubekey"], 2, vec!["--layout"]),
        (vec!["--from", &dir, "--to", &to, "UPPER:1"], 2, vec!["UPPER:1"]),
        (
            vec![
                "--from",
                "registry://quay.io",
                "--to",
                &reg,
                "team/a:1",
                "--username",
                "x",
                "--password-stdin",
            ],
            2,
            vec!["--username", "quay.io"],
        ),
    ];
    let mut wrong = Vec::new();
    for (args, code, named) in cases {
        let output = Imgfs::scratch().stdin("secret").copy(&args);
        let said = named.iter().all(|part| output.stderr.contains(part));
        let left = Path::new(&to).exists();
        if output.code() != code || !said || left {
            wrong.push(format!("{code} and {named:?}; {to} exists: {left}\n{output}"));
            let _ = std::fs::remove_dir_all(&to);
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(hostile.log().is_empty());
    let gone = copy("registry://registry.invalid", &reg, &["x:1", "--connect-timeout", "2s"]);
    gone.expect_code(1).stderr_has("registry.invalid").stderr_has("cannot connect");
}

/// BuildKit exports its cache as an index of blobs, unless it is told to write a manifest.
#[test]
fn a_cache_of_buildkit_goes_everywhere_with_its_blobs() {
    let (hostile, real, place) = (Hostile::start(), Registry::plain(), Place::new());
    let cache = buildkit_cache(81);
    cache.push_to(&hostile, "team/cache", "1");
    let dir = place.path("images");
    let imgfs = Imgfs::new(&dir);
    let name = format!("{}/team/cache:1", hostile.host());
    let dest = "quay.io/team/cache:1";
    let output = imgfs.copy(&[
        "--from",
        &registry(&hostile),
        "--to",
        text(&dir),
        "--dest",
        dest,
        "team/cache:1",
    ]);
    let output = output.success();
    assert_eq!(output.number("moved_blobs"), cache.blobs.len() as u64, "{output}");
    assert_tree_sound(&dir);
    assert_known_to_be_sound(&dir);
    // Nothing of it is taken for something that nobody needs.
    let pruned = imgfs.prune().success();
    assert_eq!(tree::blobs(&dir), cache.blobs.keys().cloned().collect(), "{pruned}");
    // It runs nowhere, so no platform is asked for in vain.
    let filtered = Imgfs::scratch().pull(&["--platform", "linux/arm64", &name]).success();
    assert_eq!(filtered.image(&name)["digest"], cache.digest(), "{filtered}");

    // Without a blob it is not whole, and repaired it is.
    let blob = cache.blobs.keys().next().expect("it has blobs");
    let file = dir.join("blobs").join(blob);
    let bytes = std::fs::read(&file).expect("reading");
    std::fs::remove_file(&file).expect("removing");
    imgfs.verify().expect_code(1);
    std::fs::write(&file, bytes).expect("writing");

    let whole = |reader: &dyn Fn(&str) -> bool| cache.blobs.keys().all(|digest| reader(digest));
    let target = format!("registry://{}", real.host());
    copy(text(&dir), &target, &["--dest", &format!("{}/team/cache:1", real.host()), dest])
        .success();
    assert_eq!(real.manifest("team/cache", "1"), Some(cache.root().bytes.clone()));
    assert!(whole(&|digest| real.has_blob("team/cache", digest)));
    // By another registry, and through media that are written in other ways.
    let mut from = text(&dir).to_owned();
    for (medium, name) in [("oci", "layout"), ("oci-archive", "archive.tar"), ("local", "back")] {
        let separator = if medium == "local" { "://" } else { ":" };
        let to = format!("{medium}{separator}{}", place.at(name));
        copy(&from, &to, &[dest]).success();
        Imgfs::scratch().run(&["verify", &to]).success();
        from = to;
    }
    assert_tree_sound(&place.path("back"));
    assert_eq!(tree::blobs(&place.path("back")), tree::blobs(&dir));

    // And what the server is given it gives out again.
    let serving = Serving::fresh(&["--local-name", "quay.io"]);
    let served = format!("registry://{}", serving.host());
    let there = format!("{}/team/cache:1", serving.host());
    copy(text(&dir), &served, &["--dest", &there, dest]).success();
    let again = place.path("again");
    copy(&served, text(&again), &["team/cache:1"]).success();
    assert_tree_sound(&again);
    assert_eq!(tree::blobs(&again), tree::blobs(&dir));
}
