//! Places that have something already, and what becomes of that when something else is written there.

use crate::places::{Bed, listed};
use crate::support::hostile::{Fault, Hostile, Match};
use crate::support::image::{Image, Index, single};
use crate::support::layers::{Archive, Packing};
use crate::support::{text, tree};
use serde_json::Value;
use std::fs;
use std::path::Path;

#[test]
fn a_dir_keeps_its_image_until_the_next_one_is_whole() {
    let bed = Bed::new();
    let (from, app, other) = bed.images();
    let dir = bed.at("dir", "dir");
    bed.copy(&from, &dir, &["quay.io/team/app:v1"]).success();
    fs::write(bed.path("dir/signature-1"), "signed").expect("writing");
    let before = tree::everything_under(&bed.path("dir"));
    let digest = |place: &str| listed(&bed.imgfs, place).into_iter().next().expect("an image").1;
    let layer = Path::new(&from).join("blobs").join(&other.layers()[0]);
    let content = fs::read(&layer).expect("reading");
    fs::remove_file(&layer).expect("removing");
    bed.copy(&from, &dir, &["quay.io/team/other:v2"]).expect_code(1);
    bed.imgfs.run(&["verify", &dir]).success();
    assert_eq!(digest(&dir), app.digest());
    assert_eq!(tree::everything_under(&bed.path("dir")), before);
    // What a killed run has left goes with the image that was there.
    fs::write(&layer, content).expect("writing");
    let hex = &other.layers()[0][7..];
    fs::write(bed.path(&format!("dir/.{hex}.new")), "some").expect("writing");
    bed.copy(&from, &dir, &["quay.io/team/other:v2"]).success();
    bed.imgfs.run(&["verify", &dir]).success();
    assert_eq!(digest(&dir), other.digest());
    let fresh = bed.at("dir", "fresh");
    bed.copy(&from, &fresh, &["quay.io/team/other:v2"]).success();
    let names = |name: &str| -> Vec<_> {
        let all = tree::everything_under(&bed.path(name)).into_iter();
        all.map(|path| path.strip_prefix(bed.path(name)).expect("below").to_owned()).collect()
    };
    assert_eq!(names("dir"), names("fresh"));
}

#[test]
fn a_name_of_a_layout_means_the_image_that_got_it_last() {
    let bed = Bed::new();
    let (from, app, other) = bed.images();
    let named = format!("{}:latest", bed.at("oci", "layout"));
    let entries = || {
        let text = fs::read(bed.path("layout/index.json")).expect("reading");
        let index: Value = serde_json::from_slice(&text).expect("JSON");
        let entries = index["manifests"].as_array().expect("a list").clone();
        let of = |entry: &Value| {
            let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str();
            (entry["digest"].as_str().expect("a digest").to_owned(), name.map(str::to_owned))
        };
        entries.iter().map(of).collect::<Vec<_>>()
    };
    let latest = || Some("latest".to_owned());
    bed.copy(&from, &named, &["quay.io/team/app:v1"]).success();
    bed.copy(&from, &named, &["quay.io/team/other:v2"]).success();
    let (first, second) = (app.digest().to_owned(), other.digest().to_owned());
    assert_eq!(entries(), [(first.clone(), None), (second.clone(), latest())]);
    let all = listed(&bed.imgfs, &bed.at("oci", "layout"));
    assert!(all.contains(&("quay.io/team/app:v1".to_owned(), first.clone())), "{all:?}");
    // And back, although all of it is there.
    bed.copy(&from, &named, &["quay.io/team/app:v1"]).success();
    assert_eq!(entries(), [(first, latest()), (second, None)]);
}

#[test]
fn what_a_medium_for_one_platform_got_is_what_is_reported() {
    let bed = Bed::new();
    let (from, app, _) = bed.images();
    let whole = bed.copy(&from, &bed.at("oci-archive", "o.tar"), &["quay.io/team/app:v1"]);
    let (whole, output) = (
        whole.success().images()[0].clone(),
        bed.copy(&from, &bed.at("docker-archive", "d.tar"), &["quay.io/team/app:v1"]).success(),
    );
    let image = &output.images()[0];
    let platforms = image["platforms"].as_array().expect("a list");
    assert_eq!(platforms.len(), 1, "{output}");
    let said = image["warnings"].as_array().expect("a list");
    let part = format!("only {} is written", platforms[0].as_str().expect("a platform"));
    assert!(said.len() == 1 && said[0].as_str().expect("text").contains(&part), "{output}");
    assert!(image["bytes"].as_u64() < whole["bytes"].as_u64(), "{output}");
    assert!(whole["platforms"].as_array().expect("a list").len() > 1, "{:?}", app.digest());
    // An image that is for one platform is not warned of.
    let output = bed.copy(&from, &bed.at("docker-archive", "s.tar"), &["quay.io/team/other:v2"]);
    assert_eq!(output.success().images()[0]["warnings"], serde_json::json!([]));
    // Nor is one that there is for one platform only, in two compressions.
    let packed = |packing| {
        let layer = Archive::new().file("etc/a", "x").pack(packing);
        Image::new().step("ADD", &layer).build()
    };
    let index = Index::new().child(&packed(Packing::Gzip)).child(&packed(Packing::Zstd)).build();
    let (place, name) = (bed.at("oci", "layout"), "quay.io/team/both:v1");
    index.write_oci_layout(&bed.path("layout"), name);
    let output = bed.copy(&place, &bed.at("docker-archive", "t.tar"), &[name]);
    assert_eq!(output.success().images()[0]["warnings"], serde_json::json!([]));
    // They are told once each, in whatever order an index has them.
    let arm = Image::new().platform("linux/arm64").layer(1, 100).build();
    let (gzip, zstd) = (packed(Packing::Gzip), packed(Packing::Zstd));
    let index = Index::new().child(&gzip).child(&arm).child(&zstd).build();
    index.write_oci_layout(&bed.path("layout2"), name);
    let to = bed.path("to");
    bed.copy(&bed.at("oci", "layout2"), text(&to), &[name]).success();
    for place in [bed.at("oci", "layout2"), text(&to).to_owned()] {
        let listed = bed.imgfs.run(&["ls", "--images-dir", &place]).success().stdout;
        assert!(listed.contains(" linux/amd64,linux/arm64 "), "{listed}");
    }
}

#[test]
fn what_a_killed_run_has_left_beside_an_archive_goes_with_the_next_one() {
    let bed = Bed::new();
    let (from, ..) = bed.images();
    let place = bed.at("oci-archive", "a.tar");
    fs::write(bed.path("a.tar.imgfs-4194304"), "some of it").expect("writing");
    fs::write(bed.path("b.tar.imgfs-4194304"), "of another one").expect("writing");
    bed.copy(&from, &place, &["--all"]).success();
    let there = |name: &str| bed.path(name).exists();
    assert!(there("a.tar") && !there("a.tar.imgfs-4194304") && there("b.tar.imgfs-4194304"));
}

#[test]
fn a_worker_that_fails_lets_the_others_end() {
    let hostile = Hostile::start();
    let broken = Image::new().layer(1, 5000).layer(2, 6000).build();
    broken.push_to(&hostile, "team/broken", "1");
    single(3).push_to(&hostile, "team/app", "1");
    for layer in broken.layers() {
        let path = format!("blobs/{layer}");
        hostile.on(Match::any().path(&path)).fault(Fault::Status(404, Vec::new()));
    }
    let bed = Bed::new();
    let names = ["broken", "app"].map(|name| format!("{}/team/{name}:1", hostile.host()));
    let runs = ["1/2", "2/2"].map(|shard| {
        let dir = bed.path("images");
        let args = ["pull", "--plain-http", "--images-dir", text(&dir), "--shard", shard];
        bed.imgfs.spawn(&[&args[..], &[&*names[0], &*names[1]]].concat())
    });
    for run in runs {
        let output = run.wait().expect_code(1);
        assert!(output.stderr.contains("not found"), "{output}");
    }
    let dir = bed.path("images");
    let listed = bed.imgfs.run(&["ls", "--json", "--images-dir", text(&dir)]).success();
    assert_eq!(listed.images().len(), 1, "{listed}");
    assert_eq!(listed.images()[0]["image"], names[1].as_str());
}
