//! What looking into images takes: memory and disk that have a bound, processors that nobody holds while
//! waiting. Whatever was let go is found again.

use crate::support::cli::Imgfs;
use crate::support::hostile::{Fault, Hostile, Match};
use crate::support::image::{Built, Image, OCI_GZIP};
use crate::support::inside::{Inside, pinned};
use crate::support::layers::Archive;
use crate::support::mount::Mounted;
use crate::support::{scale, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const MIB: u64 = 1 << 20;

/// An image of so many files, of which each has its own content.
fn image_of_files(number: usize, files: usize) -> Built {
    let mut archive = Archive::new();
    for file in 0..files {
        let name = format!("usr/share/part-{:03}/file-{file:05}", file / 100);
        archive = archive.file(name, format!("{number} {file}"));
    }
    Image::new().step("ADD files /", &archive.gzip()).build()
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The archive of so many empty files, compressed, but for its end.
fn many_entries(count: usize) -> Vec<u8> {
    let header = Archive::new().file("0000000000", b"").without_end().to_bytes();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for number in 0..count {
        let mut entry = header.clone();
        entry[..10].copy_from_slice(format!("{number:010}").as_bytes());
        // The checksum counts itself as blanks.
        entry[148..156].fill(b' ');
        let sum: u32 = entry[..512].iter().map(|byte| u32::from(*byte)).sum();
        entry[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        encoder.write_all(&entry).unwrap();
    }
    encoder.finish().unwrap()
}

fn status(mount: &Mounted, path: &str) -> Value {
    serde_json::from_str(&mount.cat(path).success().text()).unwrap()
}

/// The most memory that a process has had, in bytes.
fn peak_rss(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn memory_has_a_bound_whatever_is_looked_at() {
    let (images, files) = (scale(24, 300), scale(2000, 20_000));
    let (layers, entries) = (scale(3, 10), scale(400_000, 4_000_000));
    let memory_mib = scale(40, 128) as u64;
    let hostile = Hostile::start();
    let host = hostile.host();
    let honest: Vec<Built> = (0..images).map(|number| image_of_files(number, files)).collect();
    for (number, image) in honest.iter().enumerate() {
        image.push_to(&hostile, &format!("honest/{number}"), "1");
    }
    let large = many_entries(entries);
    let end = compressed(&[0; 1024]);
    let mut greedy = Image::new();
    for number in 0..layers {
        // gzip members one after the other are one file.
        let own = Archive::new().file(format!("own-{number}"), b"").without_end().to_bytes();
        greedy = greedy.layer_raw(OCI_GZIP, &[&compressed(&own)[..], &large, &end].concat());
    }
    let greedy = greedy.build();
    greedy.push_to(&hostile, "greedy", "1");

    let imgfs = Imgfs::scratch();
    let memory = format!("{memory_mib}M");
    let mut mount = Mounted::start(imgfs.images_dir(), &["--memory", &memory]);
    let rootfs = |number: usize| {
        let below = "linux-amd64/rootfs";
        pinned(&host, &format!("honest/{number}"), &honest[number], below)
    };
    // Each of the greedy layers wants more than there is for everything.
    let wanting: Vec<_> = (0..layers)
        .map(|number| pinned(&host, "greedy", &greedy, &format!("linux-amd64/layers/{number}")))
        .map(|path| mount.begin("ls", &[mount.path(&path)]))
        .collect();
    let list = |number: usize| {
        let path = mount.path(&rootfs(number));
        let format = ["-type", "f", "-printf", "%P %i %s\n"];
        let found = mount.run("find", &[&[&path[..]], &format[..]].concat()).success().text();
        let lines: BTreeMap<String, String> = found
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
            .collect();
        assert_eq!(lines.len(), files, "image {number}");
        lines
    };
    let first = list(0);
    for number in 1..images {
        list(number);
        let file = number * 37 % files;
        let path = format!("{}/usr/share/part-{:03}/file-{file:05}", rootfs(number), file / 100);
        assert_eq!(mount.cat(&path).success().text(), format!("{number} {file}"));
    }
    for looking in wanting {
        looking.wait_from_now().fails_with("Cannot allocate memory");
    }
    // The kernel knows files of the first image still, whose tree was let go long ago: they are the same.
    let path = format!("{}/usr/share/part-000/file-00007", rootfs(0));
    assert_eq!(mount.cat(&path).success().text(), "0 7");
    assert_eq!(list(0), first);
    let at = |number: usize| pinned(&host, &format!("honest/{number}"), &honest[number], "");
    let memory = status(&mount, &format!("{}status.json", at(0)))["memory"].clone();
    let bytes = |name: &str| memory[name].as_u64().unwrap();
    let uncounted = (20 * MIB + memory_mib * MIB / 8).min(memory_mib * MIB / 2);
    assert_eq!(bytes("limit_bytes"), memory_mib * MIB - uncounted);
    // It was full, and never fuller.
    assert!(bytes("peak_bytes") <= bytes("limit_bytes"), "{memory}");
    assert!(bytes("peak_bytes") > bytes("limit_bytes") / 2, "{memory}");
    let peak = peak_rss(mount.id());
    // A program that is not optimised is larger by itself than all of that.
    let allowed = memory_mib + scale(64, 0) as u64;
    eprintln!("at most {} MiB of {allowed} MiB", peak / MIB);
    assert!(peak < allowed * MIB, "{} MiB", peak / MIB);
    let log = mount.logged(&["--memory"]);
    assert!(!log.is_empty(), "{:?}", mount.log());
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn layers_that_trickle_hold_up_nobody_else() {
    let slow = (0..8).fold(Image::new(), |image, n| {
        let layer = Archive::new().noise(format!("file-{n}"), n, MIB);
        image.step("ADD", &layer.gzip())
    });
    let slow = slow.build();
    let local = image_of_files(1, 10);
    let hostile = Hostile::start();
    let host = hostile.host();
    slow.push_to(&hostile, "slow", "1");
    local.push_to(&hostile, "local", "1");
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[format!("{host}/local:1")]).success();
    for digest in slow.layers() {
        let drip = Fault::Drip { bytes: 500, interval: Duration::from_millis(50) };
        hostile.on(Match::blobs().about(&digest)).fault(drip);
    }
    let mount = Mounted::start(imgfs.images_dir(), &["--stall-timeout", "60s"]);
    let rootfs = pinned(&host, "slow", &slow, "linux-amd64/rootfs");
    let mut waiting = mount.begin("ls", &[mount.path(&rootfs)]);
    // All of its layers are on their way, which is more than there are processors for.
    wait_for("requests for all layers", Duration::from_secs(20), || {
        let gets = hostile.blob_gets_now();
        slow.layers().iter().all(|digest| gets.iter().any(|get| get.digest() == digest))
    });
    let rootfs = pinned(&host, "local", &local, "linux-amd64/rootfs");
    let found = mount.run("find", &[&mount.path(&rootfs), "-type", "f"]).success().text();
    assert_eq!(found.lines().count(), 10);
    assert!(waiting.is_running());
}

/// The stored indexes and documents.
fn stored(imgfs: &Imgfs) -> Vec<PathBuf> {
    let inside = imgfs.images_dir().join("blobs/.imgfs/inside");
    let list = |kind: &str| std::fs::read_dir(inside.join(kind)).unwrap();
    list("layers").chain(list("documents")).map(|entry| entry.unwrap().path()).collect()
}

fn set_age(path: &Path, days: u64) {
    let time = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn prune_removes_what_has_been_found_out_and_not_been_used_for_long() {
    let mut inside = Inside::start(image_of_files(1, 10), &["--platform", "linux/amd64"]);
    let file = "usr/share/part-000/file-00003";
    assert_eq!(inside.mount.cat(&inside.rootfs(file)).success().text(), "1 3");
    assert_eq!(inside.mount.stop().code(), Some(0));
    let all = stored(&inside.imgfs);
    assert_eq!(all.len(), 3, "an index, a manifest and a configuration: {all:?}");
    all.iter().for_each(|path| set_age(path, 20));
    inside.imgfs.prune().success();
    assert_eq!(stored(&inside.imgfs), all);
    all.iter().for_each(|path| set_age(path, 40));
    // What is used is young again.
    inside.mount.restart();
    inside.mount.cat(&inside.at("manifest.json")).success();
    assert_eq!(inside.mount.stop().code(), Some(0));
    let removed = inside.imgfs.prune().success();
    assert!(removed.number("removed_bytes") > 0);
    let left = stored(&inside.imgfs);
    assert!(!left.is_empty() && left.len() < all.len(), "{left:?}");
    inside.mount.restart();
    assert_eq!(inside.mount.cat(&inside.rootfs(file)).success().text(), "1 3");
}
