//! Layers that bring a table of contents: they are listed without a pass over them.

use crate::support::content::Content;
use crate::support::hostile::{Fault, Match};
use crate::support::image::{Artifact, Blob, Built, Image, Index, Receiver};
use crate::support::inside::{Inside, REPOSITORY, pinned};
use crate::support::layers::{Archive, Packed, Packing, pack};
use crate::support::need::require;
use crate::support::process::require_program;
use crate::support::{wait_for, ztoc};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Bytes of the archive between two places where decompressing can begin.
const SPAN: usize = 1_500_000;

/// Files of 1 MiB.
const FILES: u64 = 24;

fn truth(n: u64) -> Vec<u8> {
    Content::Generated { seed: n, size: MIB }.to_vec()
}

fn archive() -> Archive {
    (0..FILES).fold(Archive::new().dir("etc").file("etc/name", "chunked"), |archive, n| {
        archive.noise(format!("file{n}"), n, MIB)
    })
}

/// An image with the tag 1, and the same as skopeo packs it in zstd:chunked with the tag `chunked`. The digest
/// of its layer, and its size.
fn chunked(args: &[&str]) -> (Inside, String, u64) {
    require_program("skopeo", "skopeo");
    let image = Image::new().step("COPY all", &archive().pack(Packing::Plain)).build();
    let place = tempfile::tempdir().unwrap();
    image.write_oci_layout(&place.path().join("from"), "1");
    let done = Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--dest-compress"])
        .args(["--dest-compress-format", "zstd:chunked", "oci:from:1", "dir:to"])
        .current_dir(place.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let inside = Inside::start(image, &[&["--platform", "linux/amd64"], args].concat());
    let to = place.path().join("to");
    let manifest = std::fs::read(to.join("manifest.json")).unwrap();
    let parsed: Value = serde_json::from_slice(&manifest).unwrap();
    let put = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().to_owned();
        let content = std::fs::read(to.join(digest.trim_start_matches("sha256:"))).unwrap();
        let size = content.len() as u64;
        let blob =
            Blob { digest: digest.clone(), media_type: String::new(), content: content.into() };
        inside.hostile.put_blob(REPOSITORY, &blob);
        (digest, size)
    };
    put(&parsed["config"]);
    let (layer, size) = put(&parsed["layers"][0]);
    let media_type = parsed["mediaType"].as_str().unwrap();
    inside.hostile.put_manifest(REPOSITORY, "chunked", media_type, &manifest);
    (inside, layer, size)
}

fn path(inside: &Inside, below: &str) -> String {
    format!(".imgfs/{}/{REPOSITORY}:chunked/rootfs/{below}", inside.hostile.host())
}

#[test]
fn a_table_of_contents_spares_the_pass() {
    require!(Mounts);
    let (inside, layer, size) = chunked(&[]);
    let listed = inside.mount.run("find", &[inside.mount.path(&path(&inside, ""))]).success();
    assert_eq!(listed.text().lines().count() as u64, FILES + 3, "{}", listed.text());
    let sent = || -> u64 {
        let gets = inside.hostile.blob_gets();
        gets.iter().filter(|get| get.path.contains(&layer)).map(|get| get.sent).sum()
    };
    let for_listing = sent();
    assert!(for_listing < MIB, "{for_listing} of {size} bytes for a list");
    assert_eq!(inside.mount.cat(&path(&inside, "etc/name")).success().text(), "chunked");
    let one = inside.mount.cat(&path(&inside, "file5")).success();
    // Some is asked for ahead, of the stream and of the layer: 4 MiB each at most.
    assert!(sent() < 10 * MIB, "{} of {size} bytes for one file of 1 MiB", sent());
    assert!(one.stdout == truth(5));
    // From the end to the beginning, and then from places within.
    for n in (0..FILES).rev() {
        let file = format!("file{n}");
        assert!(inside.mount.cat(&path(&inside, &file)).success().stdout == truth(n), "{file}");
        let part = inside.mount.slice(&path(&inside, &file), 700_001, 1000).success();
        assert!(part.stdout == truth(n)[700_001..701_001], "{file}");
    }
}

#[test]
fn what_a_table_says_is_compared_with_what_comes() {
    require!(Mounts);
    let (inside, layer, _) = chunked(&[]);
    inside.mount.run("find", &[inside.mount.path(&path(&inside, ""))]).success();
    inside.hostile.on(Match::blobs().about(&layer)).fault(Fault::FlipByte(1000));
    inside.mount.cat(&path(&inside, "file0")).fails_with("Input/output error");
    inside.hostile.behave();
    let read = inside.mount.cat(&path(&inside, "file0")).success();
    assert!(read.stdout == truth(0));
}

const SOCI_INDEX: &str = "application/vnd.amazon.soci.index.v2+json";
const SOCI_INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
const SOCI_LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";

/// An image as `soci convert` makes it: an index with an image of one layer and, before it, its SOCI index.
struct Soci {
    image: Built,
    layer: String,
    ztoc: String,
    soci_index: String,
}

/// What is in all of these images.
fn layer() -> Packed {
    let archive = archive().to_bytes();
    let bytes = ztoc::gzip(&archive, SPAN).0;
    Packed { bytes, ..pack(&archive, Packing::Gzip) }
}

/// The ztoc of that.
fn table() -> Vec<u8> {
    let archive = archive().to_bytes();
    let (blob, points) = ztoc::gzip(&archive, SPAN);
    ztoc::ztoc(&archive, &blob, &points, ztoc::Form::Gzip)
}

/// One that lists another archive, but is as right of the blob.
fn planted() -> Vec<u8> {
    let names = Archive::new().dir("etc").file("etc/name", "planted");
    let other = (0..FILES).fold(names, |archive, n| archive.noise(format!("planted{n}"), n, MIB));
    let (blob, points) = ztoc::gzip(&archive().to_bytes(), SPAN);
    ztoc::ztoc(&other.to_bytes(), &blob, &points, ztoc::Form::Gzip)
}

fn soci(table: &[u8]) -> Soci {
    let layer = layer();
    let layer_digest = Blob::new("", layer.bytes.clone().into()).digest;
    let annotations = [(SOCI_LAYER_DIGEST, layer_digest.as_str())];
    let soci_index = Artifact::new(SOCI_INDEX)
        .annotated_blob("application/octet-stream", table, &annotations)
        .build();
    let child = Image::new()
        .step("COPY all", &layer)
        .annotation(SOCI_INDEX_DIGEST, soci_index.digest())
        .build();
    let as_artifact = |descriptor: &mut Value| {
        descriptor["artifactType"] = SOCI_INDEX.into();
        descriptor["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
    };
    let image = Index::new().child_with(&soci_index, as_artifact).child(&child).build();
    let ztoc = Blob::new("", table.to_vec().into()).digest;
    Soci { image, layer: layer_digest, ztoc, soci_index: soci_index.digest().to_owned() }
}

fn sent(inside: &Inside, blob: &str) -> u64 {
    let gets = inside.hostile.blob_gets();
    gets.iter().filter(|get| get.path.contains(blob)).map(|get| get.sent).sum()
}

#[test]
fn what_soci_has_made_spares_the_pass() {
    require!(Mounts);
    let soci = soci(&table());
    let mut inside = Inside::start(soci.image.clone(), &["--platform", "linux/amd64"]);
    let names = inside.mount.run("ls", &[inside.mount.path(&inside.at(""))]).success().text();
    assert!(names.contains("linux-amd64\n") && !names.contains("linux-amd64-2"), "{names}");
    let listed = inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]).success();
    assert_eq!(listed.text().lines().count() as u64, FILES + 3, "{}", listed.text());
    assert_eq!(sent(&inside, &soci.layer), 0, "a list takes nothing of the layer");
    assert!(inside.mount.cat(&inside.rootfs("file5")).success().stdout == truth(5));
    assert!(sent(&inside, &soci.layer) < 10 * MIB, "{} for one file", sent(&inside, &soci.layer));
    for n in (0..FILES).rev() {
        let file = inside.rootfs(&format!("file{n}"));
        assert!(inside.mount.cat(&file).success().stdout == truth(n), "{file}");
    }
    // What has been found out stays.
    inside.restart_cold();
    inside.hostile.clear_log();
    assert!(inside.mount.cat(&inside.rootfs("file7")).success().stdout == truth(7));
    assert_eq!(sent(&inside, &soci.ztoc), 0);
    // Wrong bytes are not given out, right ones are.
    inside.restart_cold();
    inside.hostile.on(Match::blobs().about(&soci.layer)).fault(Fault::FlipByte(1000));
    inside.mount.cat(&inside.rootfs("file0")).fails_with("Input/output error");
    inside.hostile.behave();
    assert!(inside.mount.cat(&inside.rootfs("file0")).success().stdout == truth(0));
}

#[test]
fn without_what_soci_has_made_there_is_the_pass() {
    require!(Mounts);
    let soci = soci(&table());
    let faults = [
        (Match::blobs().about(&soci.ztoc), Fault::status(404)),
        (Match::blobs().about(&soci.ztoc), Fault::FlipByte(500)),
        (Match::blobs().about(&soci.ztoc), Fault::HangBefore),
        (Match::any().about(&soci.soci_index), Fault::status(404)),
        (Match::any().about(&soci.soci_index), Fault::HangBefore),
    ];
    for (of, fault) in faults {
        let shown = format!("{fault:?}");
        let args =
            ["--platform", "linux/amd64", "--stall-timeout", "1s", "--connect-timeout", "1s"];
        let inside = Inside::start(soci.image.clone(), &args);
        inside.hostile.on(of).fault(fault);
        for n in [0, FILES - 1] {
            let file = inside.rootfs(&format!("file{n}"));
            assert!(inside.mount.cat(&file).success().stdout == truth(n), "{shown}");
        }
        let status = inside.status().to_string();
        assert!(status.contains("its table of contents is not used"), "{shown}: {status}");
    }
}

/// Whoever may write to the repository can add such an index: nothing in the image speaks of it.
#[test]
fn what_only_refers_to_the_image_is_not_believed() {
    require!(Mounts);
    let image = Image::new().step("COPY all", &layer()).build();
    let annotations = [(SOCI_LAYER_DIGEST, &*image.layers()[0])];
    let soci_index = Artifact::new("application/vnd.amazon.soci.index.v1+json")
        .annotated_blob("application/octet-stream", &planted(), &annotations)
        .subject(&image)
        .build();
    let inside = Inside::start(image, &["--platform", "linux/amd64"]);
    soci_index.push_by_digest(&inside.hostile, REPOSITORY);
    let read = inside.mount.cat(&inside.rootfs("etc/name")).success();
    assert_eq!(read.text(), "chunked");
}

/// Nothing in a layer vouches for what an image says of it.
#[test]
fn what_one_image_says_of_a_layer_is_not_what_another_one_shows() {
    require!(Mounts);
    let (planted, honest) = (soci(&planted()), soci(&table()));
    assert_eq!(planted.layer, honest.layer);
    let plain = Image::new().step("COPY all", &layer()).build();
    let mut inside = Inside::start(planted.image, &["--platform", "linux/amd64"]);
    for image in [&honest.image, &plain] {
        image.push_by_digest(&inside.hostile, REPOSITORY);
    }
    let listed = inside.mount.run("ls", &[inside.mount.path(&inside.rootfs(""))]).success().text();
    assert!(listed.contains("planted0"), "{listed}");
    assert!(inside.mount.cat(&inside.rootfs("planted3")).success().stdout == truth(3));
    for round in ["the same mount", "a later one"] {
        for image in [&honest.image, &plain] {
            let below = |path| format!("rootfs/{path}");
            let at = |path| pinned(&inside.hostile.host(), REPOSITORY, image, &below(path));
            let listed = inside.mount.run("ls", &[inside.mount.path(&at(""))]).success().text();
            assert!(listed.contains("file0") && !listed.contains("planted"), "{round}: {listed}");
            assert!(inside.mount.cat(&at("file3")).success().stdout == truth(3), "{round}");
            assert_eq!(inside.mount.cat(&at("etc/name")).success().text(), "chunked", "{round}");
        }
        inside.restart_cold();
    }
    // By now a pass has been made for the plain image, and that knows better.
    assert_eq!(inside.mount.cat(&inside.rootfs("etc/name")).success().text(), "chunked");
}

#[test]
fn a_table_that_turns_out_to_be_wrong_is_given_up() {
    require!(Mounts);
    // Its access points are those of another blob.
    let archive = archive().to_bytes();
    let (mut blob, points) = ztoc::gzip(&archive, SPAN);
    for byte in blob.iter_mut().skip(1 << 20) {
        *byte ^= 1;
    }
    let soci = soci(&ztoc::ztoc(&archive, &blob, &points, ztoc::Form::Gzip));
    let mut inside = Inside::start(soci.image, &["--platform", "linux/amd64"]);
    inside.mount.cat(&inside.rootfs("file9")).fails_with("Input/output error");
    let layer = soci.layer.clone();
    let indexes = inside.imgfs.images_dir().join("blobs/.imgfs/inside/layers");
    wait_for("the pass", Duration::from_secs(20), || indexes.join(&layer).exists());
    inside.restart_cold();
    for n in 0..FILES {
        assert!(inside.mount.cat(&inside.rootfs(&format!("file{n}"))).success().stdout == truth(n));
    }
    assert!(sent(&inside, &layer) > 0);
}

#[test]
fn who_wants_everything_verified_gets_no_table() {
    require!(Mounts);
    let soci = soci(&planted());
    let args = ["--platform", "linux/amd64", "--verify-first"];
    let inside = Inside::start(soci.image, &args);
    assert_eq!(inside.mount.cat(&inside.rootfs("etc/name")).success().text(), "chunked");
}
