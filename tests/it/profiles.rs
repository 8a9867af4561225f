//! Start-up profiles: what is read is recorded, carried to other machines, and fetched ahead.

use crate::support::cli::Imgfs;
use crate::support::hostile::Hostile;
use crate::support::image::{Artifact, Built, Image};
use crate::support::inside::{Inside, REPOSITORY};
use crate::support::layers::{Archive, Packing};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::{content::Content, wait_for};
use serde_json::{Value, json};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const FILES: u64 = 40;
const SOON: Duration = Duration::from_secs(20);

/// What a program reads when it starts.
const READ: [u64; 3] = [15, 3, 9];

const PROFILE: &str = "application/vnd.imgfs.profile.v1";
const PROFILE_BLOB: &str = "application/vnd.imgfs.profile.v1+json";

/// Says when a profile has been followed.
const ARGS: [&str; 4] = ["--platform", "linux/amd64", "--log-level", "info"];

fn truth(n: u64) -> Vec<u8> {
    Content::Generated { seed: n, size: MIB }.to_vec()
}

fn image() -> Built {
    let archive =
        (0..FILES).fold(Archive::new(), |archive, n| archive.noise(format!("file{n}"), n, MIB));
    Image::new().step("COPY all", &archive.pack(Packing::Gzip)).build()
}

fn followed(mount: &Mounted) -> bool {
    !mount.logged(&["has fetched what its profile has"]).is_empty()
}

/// Waits until all layers of an image are indexed.
#[track_caller]
fn look(mount: &Mounted, path: &str) {
    mount.run("ls", &[mount.path(path)]).success();
}

#[track_caller]
fn read(mount: &Mounted, path: &str, n: u64) {
    assert!(mount.cat(&format!("{path}file{n}")).success().stdout == truth(n), "file{n}");
}

/// What `imgfs COMMAND --json` reports of a directory.
#[track_caller]
fn report(imgfs: &Imgfs, args: &[&str]) -> Value {
    let place = imgfs.images_dir().to_str().expect("a plain path");
    let output = imgfs.run(&[args, &["--json", "--images-dir", place]].concat());
    assert_eq!(output.code(), 0, "{args:?}: {}{}", output.stdout, output.stderr);
    serde_json::from_str(output.stdout.lines().last().unwrap_or_default()).expect("a report")
}

#[test]
fn what_a_start_reads_is_fetched_ahead_by_the_next() {
    require!(Mounts);
    let mut inside = Inside::start(image(), &ARGS);
    let path = inside.rootfs("");
    look(&inside.mount, &path);
    for n in READ {
        read(&inside.mount, &path, n);
    }
    assert!(!followed(&inside.mount), "there is no profile yet");
    inside.restart_cold();
    let listed = report(&inside.imgfs, &["profile", "ls"]);
    let profile = &listed["profiles"][0];
    assert_eq!(profile["image"], inside.image.digest());
    assert_eq!(profile["platform"], "linux/amd64");
    assert_eq!(profile["layers"], json!(inside.image.layers()));
    let bytes = profile["read_bytes"].as_u64().unwrap();
    assert!((3 * MIB..5 * MIB).contains(&bytes), "{bytes}");

    // Something that is not in it is nobody's start.
    inside.hostile.clear_log();
    read(&inside.mount, &path, 20);
    assert!(!followed(&inside.mount));
    // The first read of a start brings the others.
    read(&inside.mount, &path, READ[0]);
    wait_for("the profile to be followed", SOON, || followed(&inside.mount));
    let (_, sent) = inside.fetched();
    assert!(sent < 24 * MIB, "{sent} bytes for 4 files of 1 MiB");
    inside.hostile.clear_log();
    for n in READ {
        read(&inside.mount, &path, n);
    }
    // What is read ahead of a reader at the end of a file is in no profile. It is no more than what has been read.
    let (requests, sent) = inside.fetched();
    let read = READ.len() as u64 * MIB;
    assert!(requests <= 2 * READ.len() && sent <= read, "{requests} requests, {sent} bytes");
}

#[test]
fn a_start_with_a_profile_waits_for_few_requests_and_takes_hardly_more_bytes() {
    require!(Mounts);
    let inside = Inside::start(image(), &ARGS);
    let path = inside.rootfs("");
    look(&inside.mount, &path);
    // All over the layer, and never one after the other.
    let small = |mount: &Mounted, reads: std::ops::Range<u64>| {
        for n in reads.map(|n| n * 7 % FILES) {
            let part = mount.slice(&format!("{path}file{n}"), 500_000, 4096).success();
            assert!(part.stdout == truth(n)[500_000..504_096]);
        }
    };
    small(&inside.mount, 0..FILES);
    let (imgfs, hostile) = (&inside.imgfs, &inside.hostile);
    let mut inside_mount = inside.mount;
    assert_eq!(inside_mount.stop().code(), Some(0));
    let start = |profiles: &str| {
        let cache = tempfile::tempdir().unwrap();
        let cache_dir = cache.path().join("cache");
        let args = [&ARGS[..], &["--cache-dir", cache_dir.to_str().unwrap(), profiles]].concat();
        hostile.clear_log();
        let mut mount = Mounted::start(imgfs.images_dir(), &args);
        small(&mount, 0..1);
        if profiles != "--profiles=off" {
            wait_for("the profile to be followed", SOON, || followed(&mount));
        }
        let ahead = hostile.blob_gets().len();
        small(&mount, 1..FILES);
        assert_eq!(mount.stop().code(), Some(0));
        let gets = hostile.blob_gets();
        (gets.len() - ahead, gets.iter().map(|get| get.sent).sum::<u64>())
    };
    let (without, bytes_without) = start("--profiles=off");
    let (with, bytes_with) = start("--profiles=local");
    assert!(4 * with <= without, "{with} requests after a profile, {without} without one");
    assert!(bytes_with <= bytes_without + bytes_without / 4, "{bytes_with}, {bytes_without}");
}

#[test]
fn a_profile_goes_to_other_machines_by_a_file_and_by_the_registry() {
    require!(Mounts);
    let mut inside = Inside::start(image(), &ARGS);
    inside.hostile.set_referrers_api(true);
    let path = inside.rootfs("");
    look(&inside.mount, &path);
    for n in READ {
        read(&inside.mount, &path, n);
    }
    assert_eq!(inside.mount.stop().code(), Some(0));
    let name = inside.name();
    let (imgfs, hostile, digest) = (&inside.imgfs, &inside.hostile, inside.image.digest());
    let place = imgfs.images_dir().to_str().unwrap();
    let exported = imgfs.run(&["profile", "export", digest, "--images-dir", place]);
    assert_eq!(exported.code(), 0, "{}", exported.stderr);
    let written: Value = serde_json::from_str(&exported.stdout).unwrap();
    assert_eq!(written["image"], digest);
    assert!(!exported.stdout.contains(&hostile.host()), "{}", exported.stdout);
    let shown = report(imgfs, &["profile", "show", "--plain-http", &name]);
    assert_eq!(
        shown["reads"].as_array().unwrap().len(),
        written["reads"].as_array().unwrap().len()
    );

    // By a file, into a directory that does not exist yet.
    let other = Imgfs::scratch().stdin(&exported.stdout);
    let imported = report(&other, &["profile", "import", "-"]);
    assert_eq!(imported["read_bytes"], shown["read_bytes"]);

    // By the registry; the second time there is nothing to do.
    let pushed = report(imgfs, &["profile", "push", "--plain-http", &name]);
    assert!(pushed["artifact"].as_str().is_some_and(|digest| digest.starts_with("sha256:")));
    let again = report(imgfs, &["profile", "push", "--plain-http", &name]);
    assert_eq!(again["artifact"], Value::Null);
    let pulled = report(&Imgfs::scratch(), &["profile", "pull", "--plain-http", &name]);
    assert_eq!(pulled["read_bytes"], shown["read_bytes"]);
    hostile.assert_complete();

    // A mount finds it by itself, but only if it is asked to.
    for (profiles, finds) in [("--profiles=local", false), ("--profiles", true)] {
        let node = Imgfs::scratch();
        hostile.clear_log();
        let mount = Mounted::start(node.images_dir(), &[&ARGS[..], &[profiles]].concat());
        for n in READ {
            read(&mount, &path, n);
        }
        if finds {
            wait_for("the profile to be followed", SOON, || followed(&mount));
        }
        assert_eq!(hostile.count("GET", "/referrers/") > 0, finds, "{profiles}");
    }
}

#[test]
fn a_pull_brings_a_profile_along() {
    require!(Mounts);
    let mut inside = Inside::start(image(), &ARGS);
    let path = inside.rootfs("");
    look(&inside.mount, &path);
    read(&inside.mount, &path, 7);
    assert_eq!(inside.mount.stop().code(), Some(0));
    let name = inside.name();
    report(&inside.imgfs, &["profile", "push", "--plain-http", &name]);
    let node = Imgfs::scratch();
    assert_eq!(node.pull(&["--platform", "linux/amd64", &name]).code(), 0);
    let args = [&ARGS[..], &["--offline", "--profiles"]].concat();
    let mount = Mounted::start(node.images_dir(), &args);
    let path = format!(".imgfs/{}/{REPOSITORY}:1/rootfs/", inside.hostile.host());
    read(&mount, &path, 7);
    wait_for("the profile to be followed", SOON, || followed(&mount));
}

#[test]
fn a_hostile_profile_costs_a_bounded_number_of_bytes_and_changes_nothing() {
    require!(Mounts);
    let image = image();
    let (digest, layer) = (image.digest().to_owned(), image.layers()[0].clone());
    let other = format!("sha256:{}", "7".repeat(64));
    let profile = json!({
        "version": 1,
        "image": digest,
        "streams": [
            {"layer": layer, "stream": "archive"},
            {"layer": other, "stream": "archive"},
            {"layer": layer, "stream": "contents"},
        ],
        "reads": [
            [1, 0, 1_000_000], [2, 0, 1_000_000], [0, 0, 500 * MIB],
        ],
    });
    let mut inside = Inside::start(image, &ARGS);
    inside.hostile.set_referrers_api(true);
    let path = inside.rootfs("");
    look(&inside.mount, &path);
    read(&inside.mount, &path, 0);
    assert_eq!(inside.mount.stop().code(), Some(0));
    let node = &inside.imgfs;
    let hostile = Artifact::new(PROFILE)
        .blob(PROFILE_BLOB, profile.to_string().as_bytes())
        .subject(&inside.image)
        .build();
    hostile.push_by_digest(&inside.hostile, REPOSITORY);
    report(node, &["profile", "pull", "--plain-http", &inside.name()]);

    // A quarter of the cache may be filled.
    let cache = tempfile::tempdir().unwrap();
    let cache_dir = cache.path().join("cache");
    let bounded = ["--cache-size", "32M", "--cache-dir", cache_dir.to_str().unwrap()];
    inside.hostile.clear_log();
    let mount = Mounted::start(node.images_dir(), &[&ARGS[..], &bounded].concat());
    let part = mount.slice(&format!("{path}file33"), 500_000, 4096).success();
    assert!(part.stdout == truth(33)[500_000..504_096]);
    wait_for("the profile to be followed", SOON, || followed(&mount));
    let sent: u64 = inside.hostile.blob_gets().iter().map(|get| get.sent).sum();
    // And what the read itself takes, and what is read ahead for whoever reads on.
    assert!(sent < 8 * MIB + 10 * MIB, "{sent} bytes");
    for n in [0, 11, 33] {
        read(&mount, &path, n);
    }
}

#[test]
fn what_is_no_profile_is_refused() {
    let imgfs = Imgfs::scratch();
    let place = imgfs.images_dir().to_str().unwrap().to_owned();
    let import = |text: &str| {
        let imgfs = Imgfs::new(&place).stdin(text);
        let done = imgfs.run(&["profile", "import", "-", "--images-dir", &place]);
        assert_eq!((done.code(), done.stdout.as_str()), (2, ""), "{text}: {}", done.stderr);
        done.stderr
    };
    assert!(import("").contains("malformed"));
    assert!(import("{\"version\":7}").contains("version 7"));
    assert!(import(&" ".repeat(2 << 20)).contains("at most 1048576"));
    let missing = format!("sha256:{}", "0".repeat(64));
    let done = imgfs.run(&["profile", "export", &missing, "--images-dir", &place]);
    assert_eq!(done.code(), 1);
    assert!(done.stderr.contains("there is no profile of it here"), "{}", done.stderr);
    let listed = imgfs.run(&["profile", "ls", "--images-dir", &place]);
    assert_eq!((listed.code(), listed.stdout.as_str()), (0, ""));
}

#[test]
fn a_registry_without_the_referrers_api_serves_as_well() {
    require!(Mounts);
    let mut inside = Inside::start(image(), &ARGS);
    inside.hostile.set_referrers_api(false);
    let path = inside.rootfs("");
    look(&inside.mount, &path);
    read(&inside.mount, &path, 2);
    assert_eq!(inside.mount.stop().code(), Some(0));
    let name = inside.name();
    report(&inside.imgfs, &["profile", "push", "--plain-http", &name]);
    let pulled = report(&Imgfs::scratch(), &["profile", "pull", "--plain-http", &name]);
    assert_eq!(pulled["image"], inside.image.digest());
    let none = Imgfs::scratch();
    let place = none.images_dir().to_str().unwrap();
    let other = Hostile::start();
    image().push_to(&other, REPOSITORY, "1");
    let name = format!("{}/{REPOSITORY}:1", other.host());
    let done = none.run(&["profile", "pull", "--plain-http", &name, "--images-dir", place]);
    assert_eq!(done.code(), 1);
    assert!(done.stderr.contains("no profile is attached to it"), "{}", done.stderr);
}
