//! Layers that bring a table of contents: they are listed without a pass over them.

use crate::support::content::Content;
use crate::support::hostile::{Fault, Match};
use crate::support::image::{Blob, Image, Receiver};
use crate::support::inside::{Inside, REPOSITORY};
use crate::support::layers::{Archive, Packing};
use crate::support::process::require_program;
use serde_json::Value;
use std::process::Command;

const MIB: u64 = 1 << 20;

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
    let (inside, layer, _) = chunked(&[]);
    inside.mount.run("find", &[inside.mount.path(&path(&inside, ""))]).success();
    inside.hostile.on(Match::blobs().about(&layer)).fault(Fault::FlipByte(1000));
    inside.mount.cat(&path(&inside, "file0")).fails_with("Input/output error");
    inside.hostile.behave();
    let read = inside.mount.cat(&path(&inside, "file0")).success();
    assert!(read.stdout == truth(0));
}
