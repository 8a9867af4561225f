//! What small reads of files inside images cost when only the index is there: counted, not timed.

use crate::support::content::Random;
use crate::support::image::Image;
use crate::support::inside::Inside;
use crate::support::layers::{Archive, Packing};
use crate::support::mount::Mounted;
use crate::support::need::require;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;

const MIB: u64 = 1 << 20;
const READS: u64 = 40;

/// Lines that compress about three times.
fn lines(random: &mut Random, size: usize) -> Vec<u8> {
    let mut text = String::with_capacity(size + 64);
    while text.len() < size {
        let (one, two) = (random.below(1 << 48), random.below(1000));
        let _ = writeln!(text, "value {one:x} is the {two}th of this file");
    }
    text.truncate(size);
    text.into_bytes()
}

#[test]
fn four_kib_at_a_random_place_take_little() {
    require!(Mounts);
    let mut random = Random::new(5);
    let files: Vec<Vec<u8>> = (0..40).map(|_| lines(&mut random, 500_000)).collect();
    let archive = files.iter().enumerate().fold(Archive::new(), |archive, (number, bytes)| {
        archive.file(format!("file{number}"), bytes)
    });
    for (packing, most_inflated, files_stay_open) in [
        (Packing::Gzip, 384 << 10, false),
        // When a file is closed must not matter: the kernel says so some time later.
        (Packing::Gzip, 384 << 10, true),
        (Packing::GzipMembers(300_000), 384 << 10, false),
        // Frames are decompressed from their beginning.
        (Packing::ZstdFrames(1_000_000), MIB, false),
        (Packing::Plain, 200 << 10, false),
    ] {
        let image = Image::new().step("x", &archive.pack(packing)).build();
        let mut inside = Inside::start(image, &["--platform", "linux/amd64"]);
        inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]).success();
        inside.restart_cold();
        let before = inside.status();
        inside.hostile.clear_log();
        let mut open = Vec::new();
        for _ in 0..READS {
            let number = random.below(files.len() as u64) as usize;
            let right = &files[number];
            let offset = random.below(right.len() as u64 - 4096) as usize / 4096 * 4096;
            let path = inside.mount.path(&inside.rootfs(&format!("file{number}")));
            let mut found = vec![0; 4096];
            let file = File::open(path).expect("opening a file of the image");
            file.read_exact_at(&mut found, offset as u64).expect("reading it");
            assert!(found == right[offset..offset + 4096], "{packing:?}: {offset} of {number}");
            open.extend(Some(file).filter(|_| files_stay_open));
        }
        let after = inside.status();
        let each = |name: &str| {
            let of = |status: &serde_json::Value| status[name].as_u64().expect("a number");
            (of(&after) - of(&before)) / READS
        };
        let (inflated, hashed) = (each("inflated_bytes"), each("hashed_bytes"));
        let (_, sent) = inside.fetched();
        eprintln!("{packing:?}: {inflated} inflated, {hashed} hashed, {} sent each", sent / READS);
        assert!(inflated <= most_inflated, "{packing:?}: {inflated} bytes inflated for each read");
        assert!(hashed <= 200 << 10, "{packing:?}: {hashed} bytes hashed for each read");
        assert!(sent / READS <= MIB, "{packing:?}: {sent} bytes sent for {READS} reads");
        assert_eq!(inside.mount.log(), Vec::<String>::new());
    }
}

#[test]
fn a_file_that_is_read_in_order_is_inflated_once() {
    require!(Mounts);
    let mut random = Random::new(6);
    let bytes = lines(&mut random, 6 << 20);
    let archive = Archive::new().file("file", &bytes);
    let image = Image::new().step("x", &archive.pack(Packing::Gzip)).build();
    let mut inside = Inside::start(image, &["--platform", "linux/amd64"]);
    inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]).success();
    inside.restart_cold();
    let before = inside.status()["inflated_bytes"].as_u64().expect("a number");
    assert!(inside.mount.cat(&inside.rootfs("file")).success().stdout == bytes);
    let inflated = inside.status()["inflated_bytes"].as_u64().expect("a number") - before;
    // Two requests run ahead, each of which may begin within a group.
    assert!(inflated <= 9 * MIB, "{inflated} bytes inflated for a file of 6 MiB");
}

#[test]
fn all_files_one_after_the_other_take_few_requests() {
    require!(Mounts);
    let mut random = Random::new(7);
    let files: Vec<Vec<u8>> = (0..150).map(|_| lines(&mut random, 100_000)).collect();
    let archive = files.iter().enumerate().fold(Archive::new(), |archive, (number, bytes)| {
        archive.file(format!("file{number:03}"), bytes)
    });
    let layer = archive.pack(Packing::Gzip);
    let image = Image::new().step("x", &layer).build();
    let mut inside = Inside::start(image, &["--platform", "linux/amd64"]);
    inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]).success();
    assert_eq!(inside.mount.stop().code(), Some(0));
    // With its index, and nothing else.
    std::fs::remove_dir_all(inside.imgfs.images_dir().join("blobs/.imgfs/cache")).unwrap();
    let (name, platform) = (inside.name(), ["--platform", "linux/amd64"]);
    let args = ["--image", &name].into_iter().chain(platform).collect::<Vec<_>>();
    inside.mount = Mounted::start(inside.imgfs.images_dir(), &args);
    inside.hostile.clear_log();
    for (number, right) in files.iter().enumerate() {
        assert!(inside.mount.cat(&format!("file{number:03}")).success().stdout == *right);
    }
    let (requests, sent) = inside.fetched();
    let bytes = layer.bytes.len() as u64;
    eprintln!("{requests} requests, {sent} bytes of {bytes} sent");
    // 256 KiB, four times as much, and then as much as has been read.
    assert!(requests <= 10, "{requests} requests for {bytes} bytes");
    assert!(sent <= bytes, "{sent} bytes sent of {bytes}");
}
