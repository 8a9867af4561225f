//! Indexes of layers that are made while they are pulled, or on another machine; and those that lie.

use crate::support::cli::Imgfs;
use crate::support::content::Content;
use crate::support::hostile::{Hostile, Match};
use crate::support::image::{Artifact, Built, Image};
use crate::support::inside::{REPOSITORY, pinned};
use crate::support::layers::{Archive, Packed, Packing};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::registry::Registry;
use crate::support::wait_for;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const FILES: u64 = 12;
const SOON: Duration = Duration::from_secs(20);

const INDEX: &str = "application/vnd.imgfs.index.v1";
const INDEX_BLOB: &str = "application/vnd.imgfs.layer-index";
const LAYER: &str = "vnd.imgfs.layer.digest";

const ARGS: [&str; 4] = ["--platform", "linux/amd64", "--log-level", "info"];

fn truth(n: u64) -> Vec<u8> {
    Content::Generated { seed: n, size: MIB }.to_vec()
}

fn layer() -> Packed {
    layer_with(FILES)
}

fn layer_with(files: u64) -> Packed {
    let archive = (0..files).fold(Archive::new().dir("etc").file("etc/name", "true"), |all, n| {
        all.noise(format!("file{n}"), n, MIB)
    });
    archive.pack(Packing::Gzip)
}

/// A layer of the same names and sizes, and with other content.
fn other_layer(files: u64) -> Packed {
    let archive = (0..files).fold(Archive::new().dir("etc").file("etc/name", "lies"), |all, n| {
        all.noise(format!("file{n}"), n + 100, MIB)
    });
    archive.pack(Packing::Gzip)
}

fn image() -> Built {
    Image::new().step("COPY all", &layer()).build()
}

#[track_caller]
fn report(imgfs: &Imgfs, args: &[&str]) -> Value {
    let place = imgfs.images_dir().to_str().expect("a plain path");
    let output = imgfs.run(&[args, &["--json", "--images-dir", place]].concat());
    assert_eq!(output.code(), 0, "{args:?}: {}{}", output.stdout, output.stderr);
    serde_json::from_str(output.stdout.lines().last().unwrap_or_default()).expect("a report")
}

fn sent(hostile: &Hostile, layer: &str) -> u64 {
    let gets = hostile.blob_gets();
    gets.iter().filter(|get| get.path.contains(layer)).map(|get| get.sent).sum()
}

/// The image under `team/app:1` in a registry of its own.
fn serve(image: &Built) -> (Hostile, String) {
    let hostile = Hostile::start();
    hostile.set_referrers_api(true);
    image.push_to(&hostile, REPOSITORY, "1");
    let name = format!("{}/{REPOSITORY}:1", hostile.host());
    (hostile, name)
}

#[track_caller]
fn all_is_right(mount: &Mounted, path: &str) {
    assert_eq!(mount.cat(&format!("{path}etc/name")).success().text(), "true");
    for n in 0..FILES {
        assert!(mount.cat(&format!("{path}file{n}")).success().stdout == truth(n), "file{n}");
    }
}

fn indexed(mount: &Mounted) -> usize {
    mount.logged(&["indexed a layer"]).len()
}

#[test]
fn a_pull_makes_the_indexes_of_what_passes() {
    require!(Mounts);
    let image = image();
    let (hostile, name) = serve(&image);
    let imgfs = Imgfs::scratch();
    let pulled = imgfs.pull(&["--index-layers", &name]);
    assert_eq!(pulled.code(), 0, "{}", pulled.stderr);
    let made: Value = serde_json::from_str(pulled.stdout.lines().last().unwrap()).unwrap();
    let expected = json!({"passed": 1, "read": 0, "known": 0, "failed": []});
    assert_eq!(made["indexed_layers"], expected);
    let indexes = report(&imgfs, &["index", "ls"]);
    assert_eq!(indexes["indexes"][0]["layer"], image.layers()[0]);
    assert_eq!(indexes["indexes"][0]["made_by"], "pass");
    assert_eq!(indexes["indexes"][0]["entries"], FILES + 2);
    // There is nothing to do the second time, and what is missing is made of the file.
    let again = imgfs.pull(&["--index-layers", &name]);
    let again: Value = serde_json::from_str(again.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(again["indexed_layers"]["known"], 1);
    let removed = report(&imgfs, &["index", "rm", "--offline", &name]);
    assert_eq!(removed["removed"], 1);
    let third = imgfs.pull(&["--index-layers", &name]);
    let third: Value = serde_json::from_str(third.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(third["indexed_layers"]["read"], 1);
    hostile.clear_log();
    let mount = Mounted::start(imgfs.images_dir(), &[&ARGS[..], &["--offline"]].concat());
    all_is_right(&mount, &format!(".imgfs/{name}/rootfs/"));
    assert_eq!((indexed(&mount), hostile.requests()), (0, 0));
}

#[test]
fn a_copy_between_directories_makes_indexes_too() {
    let image = image();
    let (_hostile, name) = serve(&image);
    let from = Imgfs::scratch();
    assert_eq!(from.pull(&[&name]).code(), 0);
    let place = tempfile::tempdir().unwrap();
    for (link, passed, read) in [("never", 1, 0), ("auto", 0, 1)] {
        let to = place.path().join(link);
        let args = ["--from", from.images_dir().to_str().unwrap(), "--to", to.to_str().unwrap()];
        let copied = from.copy(&[&args[..], &["--all", "--index-layers", "--link", link]].concat());
        assert_eq!(copied.code(), 0, "{}", copied.stderr);
        let made: Value = serde_json::from_str(copied.stdout.lines().last().unwrap()).unwrap();
        let expected = json!({"passed": passed, "read": read, "known": 0, "failed": []});
        assert_eq!(made["indexed_layers"], expected, "{link}");
    }
    let args = ["--from", from.images_dir().to_str().unwrap(), "--to", "registry://127.0.0.1:1"];
    let refused = from.copy(&[&args[..], &["--all", "--index-layers"]].concat());
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr.contains("--to is a registry"), "{}", refused.stderr);
}

#[test]
fn an_interrupted_pull_leaves_no_index_of_what_has_not_come() {
    let image = image();
    let (hostile, name) = serve(&image);
    let imgfs = Imgfs::scratch();
    hostile
        .on(Match::blobs().about(&image.layers()[0]))
        .fault(crate::support::hostile::Fault::FlipByte(3_000_000));
    let pulled = imgfs.pull(&["--index-layers", &name]);
    assert_eq!(pulled.code(), 1, "{}", pulled.stderr);
    assert_eq!(report(&imgfs, &["index", "ls"])["indexes"], json!([]));
    hostile.behave();
    assert_eq!(imgfs.pull(&["--index-layers", &name]).code(), 0);
    assert_eq!(report(&imgfs, &["index", "ls"])["indexes"].as_array().unwrap().len(), 1);
}

#[test]
fn a_second_machine_with_the_index_and_the_profile_needs_no_pass() {
    require!(Mounts);
    let image = image();
    let (hostile, name) = serve(&image);
    let path = pinned(&hostile.host(), REPOSITORY, &image, "rootfs/");
    let first = Imgfs::scratch();
    let mut mount = Mounted::start(first.images_dir(), &ARGS);
    for n in [2, 7] {
        assert!(mount.cat(&format!("{path}file{n}")).success().stdout == truth(n));
    }
    assert_eq!(mount.stop().code(), Some(0));
    report(&first, &["profile", "push", "--plain-http", &name]);
    let pushed = report(&first, &["index", "push", "--plain-http", &name]);
    assert_eq!((pushed["blobs"].as_u64(), &pushed["failed"]), (Some(1), &json!([])));
    let states = report(&Imgfs::scratch(), &["index", "ls", "--plain-http", &name]);
    assert_eq!(states["layers"][0]["attached"], true);
    assert_eq!(states["layers"][0]["index"], Value::Null);
    hostile.assert_complete();

    let second = Imgfs::scratch();
    let trusting = ["--profiles", "--trust-indexes", &hostile.host()];
    hostile.clear_log();
    let mut mount = Mounted::start(second.images_dir(), &[&ARGS[..], &trusting].concat());
    let listed = mount.run("find", &[mount.path(&path)]).success();
    assert_eq!(listed.text().lines().count() as u64, FILES + 3);
    let layer = &image.layers()[0];
    assert_eq!(sent(&hostile, layer), 0, "a list takes nothing of the layer");
    assert!(mount.cat(&format!("{path}file2")).success().stdout == truth(2));
    wait_for("the profile to be followed", SOON, || {
        !mount.logged(&["has fetched what its profile has"]).is_empty()
    });
    assert!(sent(&hostile, layer) < 9 * MIB, "{} of 12 MiB", sent(&hostile, layer));
    hostile.clear_log();
    assert!(mount.cat(&format!("{path}file7")).success().stdout == truth(7));
    // What is read ahead of a reader at the end of a file is in no profile.
    assert!(hostile.requests() <= 2, "{} requests", hostile.requests());
    all_is_right(&mount, &path);
    assert_eq!(indexed(&mount), 0);
    assert_eq!(mount.stop().code(), Some(0));
    let made_by = report(&second, &["index", "ls"])["indexes"][0]["made_by"].clone();
    assert_eq!(made_by, "attached");
    // The same later, without a registry; and without trust it is of no use.
    let mount =
        Mounted::start(second.images_dir(), &[&ARGS[..], &trusting, &["--offline"]].concat());
    assert_eq!(
        mount.run("find", &[mount.path(&path)]).success().text().lines().count() as u64,
        FILES + 3
    );
    drop(mount);
    let mount = Mounted::start(second.images_dir(), &ARGS);
    all_is_right(&mount, &path);
    assert_eq!(indexed(&mount), 1);
}

/// Where things are in the head of a stored index (docs/layer-index.md).
mod head {
    pub(super) const BLOB: std::ops::Range<usize> = 16..48;
    pub(super) const DIFF_ID: std::ops::Range<usize> = 80..112;
    pub(super) const BLOB_BYTES: std::ops::Range<usize> = 144..152;
    pub(super) const BODY_BYTES: usize = 160;
    pub(super) const RAW_BYTES: std::ops::Range<usize> = 168..176;
    pub(super) const DIGEST: usize = 184;
    pub(super) const END: usize = 216;
}

/// The stored form of the index of an image's only layer.
fn stored_index(image: &Built) -> Vec<u8> {
    let (_hostile, name) = serve(image);
    let imgfs = Imgfs::scratch();
    assert_eq!(imgfs.pull(&["--index-layers", &name]).code(), 0);
    let place = imgfs.images_dir().join("blobs/.imgfs");
    let find = std::process::Command::new("find")
        .arg(&place)
        .args(["-path", "*/layers/*", "-type", "f"])
        .output()
        .unwrap();
    let found = String::from_utf8(find.stdout).unwrap();
    std::fs::read(found.trim()).unwrap()
}

/// The same with a digest in its head that fits.
fn sealed(mut index: Vec<u8>) -> Vec<u8> {
    let body = u64::from_le_bytes(index[head::BODY_BYTES..][..8].try_into().unwrap()) as usize;
    let digest = Sha256::new()
        .chain_update(&index[..head::DIGEST])
        .chain_update(&index[head::END..head::END + body])
        .finalize();
    index[head::DIGEST..head::END].copy_from_slice(&digest);
    index
}

fn raw(digest: &str) -> Vec<u8> {
    hex::decode(digest.trim_start_matches("sha256:")).unwrap()
}

/// Attaches an index to an image in a registry.
fn attach(hostile: &Hostile, image: &Built, index: &[u8]) {
    Artifact::new(INDEX)
        .annotated_blob(INDEX_BLOB, index, &[(LAYER, &image.layers()[0])])
        .subject(image)
        .build()
        .push_by_digest(hostile, REPOSITORY);
}

#[test]
fn an_index_that_is_not_fit_for_the_layer_is_not_used() {
    require!(Mounts);
    let [image, other] =
        [layer_with(4), other_layer(4)].map(|layer| Image::new().step("COPY all", &layer).build());
    let (own, of_other) = (stored_index(&image), stored_index(&other));
    let edit = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut index = own.clone();
        edit(&mut index);
        sealed(index)
    };
    let (hostile, name) = serve(&image);
    let path = pinned(&hostile.host(), REPOSITORY, &image, "rootfs/");
    for (what, lie, reason) in [
        ("another layer", of_other, "it is of layer"),
        (
            "another size",
            edit(&|index| index[head::BLOB_BYTES].copy_from_slice(&(1_u64 << 40).to_le_bytes())),
            "it is of layer",
        ),
        ("another diff ID", edit(&|index| index[head::DIFF_ID].fill(7)), "configuration says"),
        ("cut off", own[..own.len() - 1].to_vec(), "bytes instead of"),
        ("damaged", [&own[..300], &[0; 8], &own[308..]].concat(), "damaged"),
        ("a bomb", bomb(&own, 1 << 30), "memory"),
        ("a larger bomb", bomb(&own, u64::MAX), "too large"),
        ("something else", b"an index".to_vec(), "no layer index"),
    ] {
        attach(&hostile, &image, &lie);
        let node = Imgfs::scratch();
        let place = node.images_dir().to_str().unwrap();
        let trusting = ["--trust-indexes", &hostile.host()];
        let mut mount = Mounted::start(node.images_dir(), &[&ARGS[..], &trusting].concat());
        assert_eq!(mount.cat(&format!("{path}etc/name")).success().text(), "true", "{what}");
        assert!(mount.cat(&format!("{path}file3")).success().stdout == truth(3), "{what}");
        wait_for("the layer to be indexed", SOON, || indexed(&mount) == 1);
        let warned = mount.logged(&["WARN", reason]);
        assert!(!warned.is_empty(), "{what}: {:?}", mount.log());
        assert_eq!(mount.stop().code(), Some(0));
        // Nor is it kept by hand.
        report(&node, &["index", "rm", "--plain-http", &name]);
        if what != "a bomb" {
            let pull = ["index", "pull", "--plain-http", &name, "--images-dir", place];
            let pulled = node.run(&pull);
            assert_eq!(pulled.code(), 1, "{what}: {}", pulled.stdout);
            assert!(pulled.stderr.contains(reason), "{what}: {}", pulled.stderr);
        }
        assert_eq!(report(&node, &["index", "ls"])["indexes"], json!([]), "{what}");
        // The next lie is the only one.
        let repositories = hostile.repositories();
        assert!(repositories.contains(REPOSITORY));
        for digest in referrers(&hostile, &image) {
            hostile.remove_manifest(REPOSITORY, &digest);
        }
    }
}

fn referrers(hostile: &Hostile, image: &Built) -> Vec<String> {
    let url = format!("{}/v2/{REPOSITORY}/referrers/{}", hostile.url(), image.digest());
    let got = std::process::Command::new("curl").args(["-fsS", &url]).output().unwrap();
    let list: Value = serde_json::from_slice(&got.stdout).unwrap();
    let digest = |referrer: &Value| referrer["digest"].as_str().unwrap().to_owned();
    list["manifests"].as_array().unwrap().iter().map(digest).collect()
}

/// An index whose body becomes `bytes` zeros, or says so.
fn bomb(index: &[u8], bytes: u64) -> Vec<u8> {
    let zeros = vec![0; (bytes.min(64 << 20)) as usize];
    let body = zstd::bulk::compress(&zeros, 1).unwrap();
    let mut made = index[..head::END].to_vec();
    made[head::BODY_BYTES..][..8].copy_from_slice(&(body.len() as u64).to_le_bytes());
    made[head::RAW_BYTES].copy_from_slice(&bytes.to_le_bytes());
    made[176..184].fill(0);
    made.extend(body);
    sealed(made)
}

#[test]
fn an_index_that_lies_well_gives_nobody_wrong_bytes_and_other_images_nothing() {
    require!(Mounts);
    let layer = layer();
    let image = Image::new().step("COPY all", &layer).build();
    // It has the same layer, and another configuration.
    let second = Image::new().step("COPY all", &layer).empty_step("CMD x").build();
    assert_ne!(image.digest(), second.digest());
    // All that can be compared without the layer is right.
    let own = stored_index(&image);
    let mut lie = stored_index(&Image::new().step("COPY all", &other_layer(FILES)).build());
    for range in [head::BLOB, head::DIFF_ID, head::BLOB_BYTES] {
        let right = own[range.clone()].to_vec();
        lie[range].copy_from_slice(&right);
    }
    assert_eq!(lie[head::BLOB], raw(&image.layers()[0]));
    let (hostile, _) = serve(&image);
    second.push_to(&hostile, REPOSITORY, "2");
    attach(&hostile, &image, &sealed(lie));
    let [path, other] =
        [&image, &second].map(|image| pinned(&hostile.host(), REPOSITORY, image, "rootfs/"));

    let node = Imgfs::scratch();
    let trusting = ["--trust-indexes", &format!("{}/team", hostile.host())];
    let args = [&ARGS[..], &trusting].concat();
    let mut mount = Mounted::start(node.images_dir(), &args);
    for n in [0, 5, 11] {
        // Its spans are not what comes.
        mount.cat(&format!("{path}file{n}")).fails_with("Input/output error");
    }
    mount.cat(&format!("{path}etc/name")).fails_with("Input/output error");
    // Another image with the layer is shown as it is, in the same mount and while the lie is in use.
    all_is_right(&mount, &other);
    // So is this one once the layer has been passed over.
    wait_for("the layer to be indexed", SOON, || indexed(&mount) > 0);
    assert_eq!(mount.stop().code(), Some(0));
    mount.restart();
    all_is_right(&mount, &path);
    drop(mount);

    // Whoever does not trust it has never seen it.
    for patterns in [&[][..], &["--trust-indexes", "quay.io"], &["--verify-first"]] {
        let node = Imgfs::scratch();
        let trusting = if patterns.contains(&"--verify-first") { &trusting[..] } else { &[] };
        let mount = Mounted::start(node.images_dir(), &[&ARGS[..], patterns, trusting].concat());
        all_is_right(&mount, &path);
    }
}

#[test]
fn indexes_travel_with_an_image_through_a_directory() {
    require!(Mounts);
    let image = image();
    let (hostile, name) = serve(&image);
    let imgfs = Imgfs::scratch();
    assert_eq!(imgfs.pull(&["--index-layers", &name]).code(), 0);
    let place = imgfs.images_dir().to_str().unwrap();
    let attached = report(&imgfs, &["index", "push", "--local", "--offline", &name]);
    assert!(attached["artifact"].is_string());
    assert_eq!(imgfs.verify().code(), 0);
    // To another registry, and from there to another machine.
    let there = Registry::plain();
    let dest = format!("{}/{REPOSITORY}:1", there.host());
    let pushed = imgfs.run(&["push", "--plain-http", "--images-dir", place, "--dest", &dest]);
    assert_eq!(pushed.code(), 0, "{}", pushed.stderr);
    let node = Imgfs::scratch();
    let pulled = report(&node, &["index", "pull", "--plain-http", &dest]);
    assert_eq!(pulled["indexes"][0]["state"], "stored");
    let trusting = ["--trust-indexes", "*"];
    let mount = Mounted::start(node.images_dir(), &[&ARGS[..], &trusting].concat());
    let path = pinned(&there.host(), REPOSITORY, &image, "rootfs/");
    assert!(mount.cat(&format!("{path}file4")).success().stdout == truth(4));
    assert_eq!(indexed(&mount), 0);
    drop((mount, hostile));
}
