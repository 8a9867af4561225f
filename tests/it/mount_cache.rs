//! The cache of a mount as its users see it: its bound, a full disk under it, and pulls beside it.

use crate::support::cli::Imgfs;
use crate::support::content::cached_name;
use crate::support::disk::{SmallDisk, Watch, used, used_below};
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::readers::{Known, Manner, Readers};
use crate::support::tree::{self, assert_tree_sound};
use crate::support::{content, scale, text, wait_for};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(15);

/// An image with so many layers of this size, and its name.
fn image(hostile: &Hostile, layers: u64, size: u64) -> (Built, String) {
    let mut image = Image::new();
    for seed in 0..layers {
        image = image.layer(100 + seed, size + seed);
    }
    let image = image.build();
    image.push_to(hostile, "app", "1");
    (image, format!("{}/app:1", hostile.host()))
}

fn disk(mib: u32) -> SmallDisk {
    SmallDisk::mount(mib).expect("mounting a tmpfs, which takes root")
}

/// Reads all layers from the beginning to the end, some at a time.
#[track_caller]
fn all_layers_are_right(mount: &Mounted, image: &Built) {
    let layers = image.layers();
    for some in layers.chunks(3) {
        let sums = some
            .iter()
            .map(|digest| mount.begin("sha256sum", &[mount.path(&format!("blobs/{digest}"))]));
        for (sum, digest) in sums.collect::<Vec<_>>().into_iter().zip(some) {
            let sum = sum.wait().success().text();
            assert_eq!(sum.split(' ').next(), Some(&digest["sha256:".len()..]));
        }
    }
}

#[test]
fn its_bound_holds_while_much_more_is_read() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (limit, layers, size) = (scale(8, 64) as u64, scale(10, 16) as u64, scale(10, 64) as u64);
    let (image, name) = image(&hostile, layers, size * MIB);
    let known = Known::blobs_of(&[&image]);
    // Once where everything is counted that takes space, once in the place where it usually is.
    for in_memory in [true, false] {
        let imgfs = Imgfs::scratch();
        let disk = disk(4 * limit as u32);
        let in_images = imgfs.images_dir().join("blobs/.imgfs/cache");
        let in_disk = disk.path().join("cache");
        let limit_argument = format!("{limit}M");
        let mut args = vec!["--manifests", &name, "--cache-size", &limit_argument];
        if in_memory {
            args.extend(["--cache-dir", text(&in_disk)]);
        }
        let mut mount = Mounted::start(imgfs.images_dir(), &args);
        let watch = if in_memory {
            let disk = disk.path().to_owned();
            Watch::start(move || used(&disk))
        } else {
            Watch::start(move || used_below(&in_images))
        };
        let readers = Readers::start(&mount, Some(mount.id()), &known, 0..2, &Manner::default());
        all_layers_are_right(&mount, &image);
        readers.stop();
        let most = watch.most();
        let limit = limit * MIB;
        // One file after the other is counted: what goes from one to the next meanwhile counts twice.
        let slack = if in_memory { 0 } else { limit / 16 };
        let allowed = limit / 2..=limit + slack;
        assert!(allowed.contains(&most), "{most} of {limit}, in memory: {in_memory}");
        assert_eq!(mount.stop().code(), Some(0));
        assert_eq!(mount.log(), Vec::<String>::new());
    }
}

#[test]
fn a_full_disk_is_told_once_and_hinders_nobody() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (image, name) = image(&hostile, 3, 6 * MIB);
    let known = Known::blobs_of(&[&image]);
    let (imgfs, disk) = (Imgfs::scratch(), disk(4));
    let cache = disk.path().join("cache");
    let args = ["--manifests", &name, "--cache-dir", text(&cache), "--cache-size", "1G"];
    let mut mount = Mounted::start(imgfs.images_dir(), &args);
    for _ in 0..2 {
        let readers = Readers::start(
            &mount,
            Some(mount.id()),
            &known,
            0..2,
            &Manner { rounds: 60, ..Manner::default() },
        );
        all_layers_are_right(&mount, &image);
        readers.finish();
    }
    assert!(disk.used() > 3 * MIB, "the disk is not full: {}", disk.used());
    let log = mount.log();
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(mount.logged(&["No space left on device", text(&cache)]).len(), 1, "{log:?}");

    // With more room it is a cache again, for the next mount at the latest.
    assert_eq!(mount.stop().code(), Some(0));
    disk.grow(40);
    mount.restart();
    all_layers_are_right(&mount, &image);
    wait_for("a complete blob", SOON, || {
        image.layers().iter().all(|digest| cache.join("whole").join(cached_name(digest)).exists())
    });
    assert_eq!(mount.log().len(), 1, "{:?}", mount.log());
}

#[test]
fn how_much_is_in_it_is_told_wherever_it_is() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (image, name) = image(&hostile, 1, 3 * MIB);
    let elsewhere = tempfile::tempdir().unwrap();
    for args in [
        &["--manifests", &name][..],
        &["--manifests", &name, "--cache-dir", text(elsewhere.path())],
    ] {
        let imgfs = Imgfs::scratch();
        let mount = Mounted::start(imgfs.images_dir(), args);
        all_layers_are_right(&mount, &image);
        let listed = imgfs.run(&["mounts", "--json"]).success();
        let is_it = |event: &serde_json::Value| event["mountpoint"] == text(&mount.at());
        let event = listed.events().into_iter().find(is_it).expect("it is listed");
        assert!(event["cache_bytes"].as_u64().unwrap() >= 3 * MIB, "{args:?}: {event}");
        // No copy of the mount has what this takes.
        let names = mount.run("getfattr", &["--absolute-names", "-d", text(&mount.at())]).success();
        assert_eq!(names.text(), "", "{args:?}");
    }
}

#[test]
fn each_mount_of_a_directory_has_a_cache_of_its_own() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (image, name) = image(&hostile, 1, 300_000);
    let imgfs = Imgfs::scratch();
    let mounts: Vec<Mounted> =
        (0..3).map(|_| Mounted::start(imgfs.images_dir(), &["--manifests", &name])).collect();
    for mount in &mounts {
        all_layers_are_right(mount, &image);
    }
    let caches = imgfs.images_dir().join("blobs/.imgfs");
    for name in ["cache", "cache-2", "cache-3"] {
        assert!(caches.join(name).join("lock").exists(), "{name}");
    }
    drop(mounts);
    // One that is free is used again.
    let again = Mounted::start(imgfs.images_dir(), &["--manifests", &name]);
    all_layers_are_right(&again, &image);
    assert!(!caches.join("cache-4").exists());
    // Those that nobody uses go with `prune`, and the first stays for the next mount.
    let second = Mounted::start(imgfs.images_dir(), &["--manifests", &name]);
    let named =
        imgfs.run(&["prune", "--dry-run", "--json", "--images-dir", text(imgfs.images_dir())]);
    let named = named.success();
    assert!(named.stdout.contains("cache-3/") && !named.stdout.contains("cache-2/"), "{named}");
    let removed = imgfs.prune().success();
    assert!(removed.number("removed_bytes") > 300_000, "{removed}");
    let is_there = ["cache", "cache-2", "cache-3"].map(|name| caches.join(name).exists());
    assert_eq!(is_there, [true, true, false]);
    all_layers_are_right(&second, &image);
    drop((again, second));
    imgfs.prune().success();
    assert!(caches.join("cache").exists() && !caches.join("cache-2").exists());
}

/// 8 MB/s a connection: so that two can meet in the middle.
const PACE: (u64, Duration) = (32 * 1024, Duration::from_millis(4));

#[test]
fn a_pull_and_a_reader_at_the_same_time_do_not_disturb_each_other() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (image, name) = image(&hostile, 1, 6 * MIB);
    let layer = image.layers()[0].clone();
    let path = format!("blobs/{layer}");
    for pull_first in [false, true] {
        let imgfs = Imgfs::scratch();
        let mut mount = Mounted::start(imgfs.images_dir(), &["--manifests", &name]);
        hostile.clear_log();
        hostile.set_pace(PACE.0, PACE.1);
        let has_begun = || {
            let gets = hostile.blob_gets_now();
            gets.iter().any(|get| get.digest() == layer && get.sent > MIB / 2)
        };
        let (read, pulled) = if pull_first {
            let pull = imgfs.spawn_pull(&[&name]);
            wait_for("the pull", SOON, has_begun);
            let read = mount.begin("cat", &[mount.path(&path)]);
            (read.wait(), pull.wait())
        } else {
            let read = mount.begin("cat", &[mount.path(&path)]);
            wait_for("the reader", SOON, has_begun);
            let pulled = imgfs.pull(&[&name]);
            (read.wait(), pulled)
        };
        hostile.no_pace();
        pulled.success();
        assert_eq!(content::digest(&read.success().stdout), layer);
        // Neither sees what the other is fetching at that moment; but a pull goes on where the reader was when
        // it began.
        let sent = hostile.blob_bytes_sent()[&layer];
        assert!(sent <= 2 * image.blobs[&layer].size(), "{sent}");
        let gets = hostile.blob_gets();
        let whole = gets.iter().filter(|get| get.digest() == layer && get.range.is_none());
        assert_eq!(whole.count(), usize::from(pull_first), "{gets:?}");

        // Whatever they have left, all of it is right and nothing is fetched any more.
        hostile.clear_log();
        assert_tree_sound(imgfs.images_dir());
        imgfs.verify().success();
        let read = mount.cat(&path).success();
        assert_eq!(content::digest(&read.stdout), layer);
        assert_eq!(hostile.blob_gets().len(), 0);
        assert_eq!(mount.stop().code(), Some(0));
        assert_eq!(mount.log(), Vec::<String>::new());
    }
}

#[test]
fn a_prune_beside_a_mount_disturbs_nobody() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (image, name) = image(&hostile, 4, 2 * MIB);
    let other = Image::new().layer(7, 500_000).build();
    other.push_to(&hostile, "other", "1");
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[format!("{}/other:1", hostile.host())]).success();
    let mut mount = Mounted::start(imgfs.images_dir(), &["--manifests", &name]);
    let mut known = Known::blobs_of(&[&image, &other]);
    known.add(&format!("{}/other/manifests/1", hostile.host()), &other.root().bytes);
    let mut readers = Readers::start(&mount, Some(mount.id()), &known, 0..4, &Manner::default());
    readers.have_begun();
    for _ in 0..5 {
        imgfs.prune().success();
        readers.are_running();
    }
    assert!(readers.stop().reads > 0);
    assert_tree_sound(imgfs.images_dir());
    assert_eq!(tree::blobs(imgfs.images_dir()).len(), other.blobs.len());
    all_layers_are_right(&mount, &image);
    assert_eq!(mount.stop().code(), Some(0));
    assert_eq!(mount.log(), Vec::<String>::new());
}
