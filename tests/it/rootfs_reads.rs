//! Reading files inside images: the right bytes in whatever way layers are packed, how much is fetched for
//! that, and what is left when a mount is killed or the network is gone.

use crate::support::cli::Imgfs;
use crate::support::disk::{SmallDisk, Watch, used_below};
use crate::support::hostile::{Fault, Hostile, Kinds, Match};
use crate::support::image::{Built, Image, Index, OCI_GZIP, OCI_ZSTD};
use crate::support::inside::{Inside, REPOSITORY, debians, pinned};
use crate::support::layers::{Archive, Packed, Packing};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::process::require_program;
use crate::support::readers::{Known, Manner, Readers};
use crate::support::snapshot::assert_same;
use crate::support::{content, model, scale, seed, wait_for};
use std::fmt::Write as _;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(15);

/// The packings that are told apart, with several access points each.
const PACKINGS: [Packing; 5] = [
    Packing::Gzip,
    Packing::GzipMembers(300_000),
    Packing::Zstd,
    Packing::ZstdFrames(1_000_000),
    Packing::Plain,
];

/// Lines that compress about five times.
fn lines(seed: u64, size: usize) -> Vec<u8> {
    let mut random = content::Random::new(seed);
    let mut text = String::with_capacity(size + 64);
    while text.len() < size {
        let _ = writeln!(text, "line {} of a file that says little", random.below(1_000_000));
    }
    text.truncate(size);
    text.into_bytes()
}

/// Files of some MiB: bytes that do not compress, text, zeros; and many small ones.
fn files() -> Vec<(String, Vec<u8>)> {
    let noise = content::Content::Generated { seed: 11, size: 5 * MIB + 77 }.to_vec();
    let mut files = vec![
        ("noise".to_owned(), noise),
        ("text".to_owned(), lines(12, 5_000_001)),
        ("zeros".to_owned(), vec![0; 3_000_000]),
        ("empty".to_owned(), Vec::new()),
    ];
    files.extend((0..60).map(|n| (format!("small/{n}"), lines(n, 100 * n as usize))));
    files.push(("last".to_owned(), lines(13, 70_000)));
    files
}

fn archive(files: &[(String, Vec<u8>)]) -> Archive {
    files.iter().fold(Archive::new().dir("small"), |all, (name, bytes)| all.file(name, bytes))
}

/// The files, in root file systems of a mount.
fn known(rootfs: &[String], files: &[(String, Vec<u8>)]) -> Known {
    let mut known = Known::blobs_of(&[]);
    for place in rootfs {
        for (name, bytes) in files {
            known.add(&format!("{place}{name}"), bytes);
        }
    }
    known
}

/// Reads each file once, from its beginning to its end.
#[track_caller]
fn all_files_are_right(mount: &Mounted, rootfs: &str, files: &[(String, Vec<u8>)]) {
    let sums: String = files
        .iter()
        .map(|(name, bytes)| {
            let digest = content::digest(bytes);
            format!("{}  {}\n", &digest["sha256:".len()..], mount.path(&format!("{rootfs}{name}")))
        })
        .collect();
    let list = tempfile::NamedTempFile::new().expect("making a file");
    std::fs::write(list.path(), sums).expect("writing");
    let list = list.path().to_str().expect("a plain path");
    mount.run("sha256sum", &["-c", "--strict", "--quiet", list]).success();
}

#[test]
fn whatever_the_packing_all_bytes_are_right() {
    require!(Mounts);
    let files = files();
    let archive = archive(&files);
    let images: Vec<_> = PACKINGS
        .into_iter()
        .map(|packing| Image::new().step("x", &archive.pack(packing)).build())
        .collect();
    let names: Vec<_> = (0..images.len()).map(|number| format!("packed/{number}")).collect();
    let list: Vec<_> = names.iter().zip(&images).map(|(n, i)| (n.as_str(), "1", i)).collect();
    let (_registry, host) = debians(&list);
    let rootfs: Vec<_> =
        list.iter().map(|(name, _, image)| pinned(&host, name, image, "rootfs/")).collect();
    let known = known(&rootfs, &files);
    let rounds = scale(40, 600);
    for cache_size in ["10G", "64M", "2M"] {
        let imgfs = Imgfs::scratch();
        let args = ["--platform", "linux/amd64", "--cache-size", cache_size];
        let mut mount = Mounted::start(imgfs.images_dir(), &args);
        // At random while nothing has passed, in order, and at random once more.
        for again in 0..2 {
            let manner = Manner { rounds, ..Manner::default() };
            let seeds = seed() + again..seed() + again + 3;
            let readers = Readers::start(&mount, Some(mount.id()), &known, seeds, &manner);
            for place in &rootfs {
                all_files_are_right(&mount, place, &files);
            }
            assert!(readers.finish().reads > 0);
        }
        assert_eq!(mount.stop().code(), Some(0));
        assert_eq!(mount.log(), Vec::<String>::new(), "{cache_size}");
        // With indexes that are there already.
        mount.restart();
        for place in &rootfs {
            all_files_are_right(&mount, place, &files);
        }
        assert_eq!(mount.log(), Vec::<String>::new(), "{cache_size}");
    }
}

/// What these programs make of their input, with their own ideas of headers, blocks and frames.
const PACKERS: [&[&str]; 9] = [
    &["gzip", "-1", "-N", "archive.tar"],
    &["gzip", "-9", "--rsyncable", "archive.tar"],
    &["pigz", "-p", "3", "-b", "256", "archive.tar"],
    &["pigz", "-p", "2", "-i", "-C", "a comment", "archive.tar"],
    &["zstd", "-q", "-T2", "-19", "--adapt", "archive.tar"],
    &["zstd", "-q", "--long=27", "--check", "archive.tar"],
    &["zstd", "-q", "--no-check", "--fast=5", "archive.tar"],
    &["zstd", "-q", "-T2", "-B512KiB", "--rsyncable", "archive.tar"],
    &["zstd", "-q", "--stream-size=1000", "--no-content-size", "archive.tar"],
];

#[test]
fn what_other_programs_pack_is_read() {
    require!(Mounts);
    let files = files();
    let archive = archive(&files);
    let place = tempfile::tempdir().expect("making a temporary directory");
    std::fs::write(place.path().join("archive.tar"), archive.to_bytes()).expect("writing");
    for command in PACKERS {
        let (program, args) = command.split_first().expect("a program");
        let output = std::process::Command::new(require_program(program, program))
            .args([&["-c"], args].concat())
            .current_dir(place.path())
            .output()
            .expect("starting a program");
        if !output.status.success() {
            panic!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let media_type = if *program == "zstd" { OCI_ZSTD } else { OCI_GZIP }.to_owned();
        let diff_id = archive.gzip().diff_id;
        let packed = Packed { media_type, bytes: output.stdout, diff_id };
        let image = Image::new().step("x", &packed).build();
        let mut inside = Inside::start(image, &["--platform", "linux/amd64"]);
        eprintln!("{command:?}");
        all_files_are_right(&inside.mount, &inside.rootfs(""), &files);
        // By the index, and not in the order of the archive.
        inside.restart_cold();
        let reversed: Vec<_> = files.iter().rev().cloned().collect();
        all_files_are_right(&inside.mount, &inside.rootfs(""), &reversed);
        assert_eq!(inside.mount.log(), Vec::<String>::new());
    }
}

#[test]
fn the_bound_of_the_cache_holds_for_decompressed_bytes_too() {
    require!(Mounts);
    const LIMIT: u64 = 8 * MIB;
    let files = files();
    let archive = archive(&files);
    for packing in [Packing::Gzip, Packing::Zstd] {
        let image = Image::new().step("x", &archive.pack(packing)).build();
        let args = ["--platform", "linux/amd64", "--cache-size", "8M"];
        let inside = Inside::start(image, &args);
        let cache = inside.imgfs.images_dir().join("blobs/.imgfs/cache");
        let watch = Watch::start(move || used_below(&cache));
        let known = known(&[inside.rootfs("")], &files);
        let manner = Manner { rounds: 100, ..Manner::default() };
        let id = Some(inside.mount.id());
        let readers = Readers::start(&inside.mount, id, &known, 0..2, &manner);
        all_files_are_right(&inside.mount, &inside.rootfs(""), &files);
        readers.finish();
        let most = watch.most();
        assert!(most <= LIMIT + LIMIT / 16, "{packing:?}: {most} of {LIMIT}");
        assert_eq!(inside.mount.log(), Vec::<String>::new());
    }
}

#[test]
fn on_a_full_disk_everything_is_read_all_the_same() {
    require!(Mounts);
    let files = files();
    let archive = archive(&files);
    for packing in [Packing::Gzip, Packing::Zstd] {
        let image = Image::new().step("x", &archive.pack(packing)).build();
        let hostile = Hostile::start();
        image.push_to(&hostile, REPOSITORY, "1");
        let disk = SmallDisk::mount(2).expect("mounting a tmpfs, which takes root");
        let dir = disk.path().join("images");
        let mut mount = Mounted::start(&dir, &["--platform", "linux/amd64"]);
        let root = pinned(&hostile.host(), REPOSITORY, &image, "rootfs/");
        for _ in 0..2 {
            all_files_are_right(&mount, &root, &files);
        }
        assert!(disk.used() > MIB, "{packing:?}: the disk is not full: {}", disk.used());
        let log = mount.log();
        assert_eq!(log.len(), 1, "{packing:?}: {log:?}");
        assert_eq!(mount.logged(&["No space left on device"]).len(), 1, "{log:?}");

        assert_eq!(mount.stop().code(), Some(0));
        disk.grow(100);
        mount.restart();
        all_files_are_right(&mount, &root, &files);
        let index = dir.join("blobs/.imgfs/inside/layers").join(&image.layers()[0]);
        assert!(index.exists(), "{packing:?}");
        assert_eq!(mount.log().len(), 1, "{packing:?}: {:?}", mount.log());
    }
}

/// Three layers with many files; the top one is small. About 20 MiB.
fn layered() -> (Vec<Archive>, Built) {
    let mut layers: Vec<_> = (1..3)
        .map(|number: u64| {
            let mut archive = Archive::new().noise(format!("noise{number}"), number, 7 * MIB);
            archive = archive.dir(format!("dir{number}"));
            for file in 0..200 {
                let text = lines(1000 * number + file, 20_000);
                archive = archive.file(format!("dir{number}/file{file}"), text);
            }
            archive
        })
        .collect();
    layers.push(Archive::new().dir("app").file("app/hello", b"hello, world").noise(
        "app/data",
        3,
        2 * MIB,
    ));
    let packings = [Packing::Gzip, Packing::ZstdFrames(1_000_000), Packing::Gzip];
    let mut image = Image::new();
    for (number, (layer, packing)) in layers.iter().zip(packings).enumerate() {
        image = image.step(&format!("step {number}"), &layer.pack(packing));
    }
    let image = image.build();
    (layers, image)
}

#[test]
fn with_an_index_a_small_file_costs_little() {
    require!(Mounts);
    let (_, image) = layered();
    let bytes = image.blob_bytes();
    assert!(bytes > 16 * MIB, "{bytes}");
    for by_tag in [false, true] {
        let mut inside = Inside::start(image.clone(), &["--platform", "linux/amd64"]);
        inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]).success();
        for (file, right) in [
            ("app/hello", b"hello, world".to_vec()),
            ("dir1/file100", lines(1100, 20_000)),
            ("dir1/file199", lines(1199, 20_000)),
            ("dir2/file199", lines(2199, 20_000)),
        ] {
            inside.restart_cold();
            inside.hostile.clear_log();
            let path = match by_tag {
                true => format!(".imgfs/{}/rootfs/{file}", inside.name()),
                false => inside.rootfs(file),
            };
            assert_eq!(inside.mount.cat(&path).success().stdout, right, "{file}");
            let log = inside.hostile.log();
            let sent: u64 = log.iter().map(|served| served.sent).sum();
            let shown: Vec<_> = log
                .iter()
                .map(|served| {
                    format!("{} {} {:?} {}", served.method, served.path, served.range, served.sent)
                })
                .collect();
            assert!(log.len() <= 3, "{file}, by tag: {by_tag}: {shown:#?}");
            assert!(sent <= 5 * MIB / 2, "{file}, by tag: {by_tag}: {sent} bytes: {shown:#?}");
        }
    }
}

#[test]
fn large_images_take_little_memory() {
    require!(Mounts);
    const FILES: usize = 100_000;
    let hostile = Hostile::start();
    let imgfs = Imgfs::scratch();
    let mut mount = Mounted::start(imgfs.images_dir(), &["--platform", "linux/amd64"]);
    for number in 0..scale(1, 10) {
        let mut archive = Archive::new();
        for file in 0..FILES {
            if file % 50 == 0 {
                archive = archive.dir(format!("usr/share/image{number}/directory{}", file / 50));
            }
            let directory = format!("usr/share/image{number}/directory{}", file / 50);
            archive = archive.file(format!("{directory}/module_{file}.py"), b"");
        }
        let image = Image::new().step("x", &archive.gzip()).build();
        image.push_to(&hostile, REPOSITORY, "1");
        let rootfs = mount.path(&pinned(&hostile.host(), REPOSITORY, &image, "rootfs/"));
        let found = mount.run("find", &[&rootfs, "-type", "f", "-printf", "."]).success();
        assert_eq!(found.stdout.len(), FILES);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", mount.id()));
    let status = status.expect("reading the process's status");
    let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    let size: u64 = size.trim().trim_end_matches(" kB").parse().expect("a number");
    eprintln!("{size} KiB");
    assert!(size < 128 << 10, "{size} KiB");
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn what_is_in_an_upper_layer_does_not_wait_for_the_lower_ones() {
    require!(Mounts);
    let (_, image) = layered();
    let inside = Inside::start(image, &["--platform", "linux/amd64"]);
    assert_eq!(inside.mount.cat(&inside.rootfs("app/hello")).success().text(), "hello, world");
    for lower in &inside.image.layers()[..2] {
        assert_eq!(inside.hostile.count("GET", lower), 0, "{:?}", inside.hostile.log());
    }
}

#[test]
fn what_has_passed_is_readable_while_the_rest_passes() {
    require!(Mounts);
    let archive = Archive::new().file("first", b"here").noise("noise", 1, 12 * MIB);
    for packing in [Packing::Gzip, Packing::Zstd, Packing::ZstdFrames(1_000_000), Packing::Plain] {
        let image = Image::new().step("x", &archive.pack(packing)).build();
        let inside = Inside::start(image, &["--platform", "linux/amd64"]);
        // About three seconds for all of it.
        inside.hostile.set_pace(64 * 1024, Duration::from_millis(15));
        let read = inside.mount.cat(&inside.rootfs("first")).success();
        assert_eq!(read.text(), "here");
        let sent: u64 = inside.hostile.blob_gets_now().iter().map(|get| get.sent).sum();
        assert!(sent < 8 * MIB, "{packing:?}: {sent} bytes had been sent");
        inside.hostile.no_pace();
        let right = content::Content::Generated { seed: 1, size: 12 * MIB }.digest();
        let read = inside.mount.cat(&inside.rootfs("noise")).success();
        assert_eq!(content::digest(&read.stdout), right);
        assert_eq!(inside.mount.log(), Vec::<String>::new());
    }
}

#[test]
fn many_who_look_at_once_share_a_pass() {
    require!(Mounts);
    let (_, image) = layered();
    let inside = Inside::start(image, &["--platform", "linux/amd64"]);
    let rootfs = inside.mount.path(&inside.rootfs(""));
    let layer = |number| inside.mount.path(&inside.at(&format!("linux-amd64/layers/{number}")));
    let mut places = vec![rootfs; 6];
    places.extend((0..3).map(layer));
    let all: Vec<_> = places.iter().map(|place| inside.mount.begin("find", &[place])).collect();
    for one in all {
        one.wait().success();
    }
    let (requests, sent) = inside.fetched();
    let all = inside.image.blob_bytes();
    assert!(sent <= all + all / 100, "{sent} bytes of {all} in {requests} requests");
}

#[test]
fn an_index_is_made_once() {
    require!(Mounts);
    let (layers, image) = layered();
    let mut inside = Inside::start(image, &["--platform", "linux/amd64"]);
    let find = |inside: &Inside| {
        let found = inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]);
        found.success().text().lines().count()
    };
    let count = find(&inside);
    assert!(count > 400, "{count}");
    let (_, sent) = inside.fetched();
    let all = inside.image.blob_bytes();
    assert!(sent <= all + all / 100, "{sent} bytes for a pass over {all}");

    // Neither this mount, nor another, nor another image with the same layer passes once more.
    inside.hostile.clear_log();
    assert_eq!(find(&inside), count);
    inside.restart_cold();
    assert_eq!(find(&inside), count);
    let more = Archive::new().file("more", b"1");
    let image = Image::new().step("x", &layers[0].gzip()).step("y", &more.gzip()).build();
    image.push_to(&inside.hostile, "team/other", "1");
    let host = inside.hostile.host();
    let other = inside.mount.path(&pinned(&host, "team/other", &image, "rootfs/"));
    inside.mount.run("find", &[other]).success();
    let first = &image.layers()[0];
    assert_eq!(inside.hostile.count("GET", first), 0, "{:?}", inside.hostile.log());
    let (_, sent) = inside.fetched();
    assert!(sent < 10_000, "{sent}");
    let state = inside.imgfs.images_dir().join("blobs/.imgfs");
    assert!(used_below(&state.join("layers")) < all / 25, "the indexes are too large");
}

#[test]
fn a_scan_of_a_cold_image_is_one_pull() {
    require!(Mounts);
    let (layers, image) = layered();
    let inside = Inside::start(image, &["--platform", "linux/amd64"]);
    let all = inside.image.blob_bytes();
    let place = tempfile::tempdir().expect("making a temporary directory");
    let (archive, copy) = (place.path().join("a.tar"), place.path().join("copy"));
    std::fs::create_dir(&copy).expect("making a directory");
    let [archive, copied] = [&archive, &copy].map(|path| crate::support::text(path).to_owned());
    let rootfs = inside.mount.path(&inside.rootfs(""));
    inside.mount.run("tar", &["-C", &rootfs, "-cf", &archive, "."]).success();
    let (requests, sent) = inside.fetched();
    assert!(sent * 100 <= all * 105, "{sent} bytes in {requests} requests, of {all}");
    inside.mount.run("tar", &["-C", &copied, "--numeric-owner", "-xf", &archive]).success();
    let layers: Vec<_> = layers.iter().collect();
    let mut wanted = model::merged(&layers);
    let mut found = crate::support::snapshot::snapshot(&copy);
    // The root has no entry in the layers, nor have the directories.
    for tree in [&mut wanted, &mut found] {
        tree.values_mut().for_each(|item| item.mtime = (0, 0));
    }
    assert_same(&wanted, &found);
}

#[test]
fn a_mount_that_is_killed_while_a_layer_passes_begins_again() {
    require!(Mounts);
    let files = files();
    let archive = archive(&files);
    for packing in [Packing::Gzip, Packing::Zstd] {
        let image = Image::new().step("x", &archive.pack(packing)).build();
        let mut inside = Inside::start(image, &["--platform", "linux/amd64"]);
        for _ in 0..3 {
            inside.hostile.clear_log();
            inside.hostile.set_pace(64 * 1024, Duration::from_millis(10));
            let reading = inside.mount.begin("cat", &[inside.mount.path(&inside.rootfs("last"))]);
            wait_for("some of the layer to pass", SOON, || {
                inside.hostile.blob_gets_now().iter().any(|get| get.sent > 400_000)
            });
            inside.mount.kill9();
            assert!(!reading.wait().status.success());
            inside.hostile.no_pace();
            inside.mount.restart();
        }
        all_files_are_right(&inside.mount, &inside.rootfs(""), &files);
        assert_eq!(inside.mount.log(), Vec::<String>::new());
    }
}

#[test]
fn what_was_pulled_works_offline() {
    require!(Mounts);
    let (layers, image) = layered();
    let hostile = Hostile::start();
    image.push_to(&hostile, REPOSITORY, "1");
    let name = format!("{}/{REPOSITORY}:1", hostile.host());
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[&name]).success();
    hostile.clear_log();
    let args = ["--offline", "--platform", "linux/amd64"];
    let mut mount = Mounted::start(imgfs.images_dir(), &args);
    let layers: Vec<_> = layers.iter().collect();
    let wanted = model::merged(&layers);
    let by_tag = format!(".imgfs/{name}/rootfs/");
    assert_same(&wanted, &mount.snapshot(&by_tag));
    let by_digest = pinned(&hostile.host(), REPOSITORY, &image, "rootfs/");
    assert_same(&wanted, &mount.snapshot(&by_digest));
    assert_eq!(mount.stop().code(), Some(0));
    mount.restart();
    assert_same(&wanted, &mount.snapshot(&by_tag));
    let absent = format!(".imgfs/{}/team/absent:1", hostile.host());
    mount.run("stat", &["-L", &mount.path(&absent)]).fails_with("No route to host");
    assert_eq!(hostile.requests(), 0, "{:?}", hostile.log());
}

#[test]
fn what_was_read_before_works_while_the_registry_is_down() {
    require!(Mounts);
    let (layers, image) = layered();
    let mut inside = Inside::start(
        image,
        &["--platform", "linux/amd64", "--stall-timeout", "1s", "--connect-timeout", "1s"],
    );
    let layers: Vec<_> = layers.iter().collect();
    let wanted = model::merged(&layers);
    assert_same(&wanted, &inside.mount.snapshot(&inside.rootfs("")));
    // What has been fetched is on the disk soon.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(inside.mount.stop().code(), Some(0));
    inside.hostile.on(Match::any()).fault(Fault::LostConnection);
    inside.hostile.clear_log();
    inside.mount.restart();
    assert_same(&wanted, &inside.mount.snapshot(&inside.rootfs("")));
    assert_eq!(inside.hostile.requests(), 0, "{:?}", inside.hostile.log());
    assert_eq!(inside.mount.log(), Vec::<String>::new());
}

#[test]
fn under_random_faults_bytes_are_right_or_not_there() {
    require!(Mounts);
    let files = files();
    let archive = archive(&files);
    let patience = ["--stall-timeout", "1s", "--connect-timeout", "1s"];
    let args = [&patience[..], &["--platform", "linux/amd64", "--cache-size", "4M"]].concat();
    let mut injected = 0;
    for (number, packing) in PACKINGS.into_iter().enumerate() {
        let image = Image::new().step("x", &archive.pack(packing)).build();
        let mut inside = Inside::start(image, &args);
        let known = known(&[inside.rootfs("")], &files);
        let number = number as u64;
        for (round, kinds) in
            (0..scale(1, 10)).flat_map(|r| [(r, Kinds::Retryable), (r, Kinds::All)])
        {
            inside.restart_cold();
            inside.hostile.faults_random(seed() + number + round as u64, 300, kinds, 2);
            let tolerate = ["EIO", "ETIMEDOUT", "EACCES", "ENOENT", "ESTALE"];
            let manner =
                Manner { rounds: scale(60, 300), tolerate: &tolerate, ..Manner::default() };
            let seeds = 10 * number..10 * number + 4;
            let id = Some(inside.mount.id());
            let readers = Readers::start(&inside.mount, id, &known, seeds, &manner);
            let seen = readers.finish();
            injected += inside.hostile.injected();
            inside.hostile.behave();
            // And then all is well, without another mount.
            wait_for("the mount to recover", SOON, || {
                let read = inside.mount.cat(&inside.rootfs("last"));
                read.status.success()
                    && content::digest(&read.stdout) == content::digest(&lines(13, 70_000))
            });
            all_files_are_right(&inside.mount, &inside.rootfs(""), &files);
            eprintln!("{packing:?} {kinds:?}: {seen:?}");
        }
    }
    assert!(injected > 20, "{injected} faults");
}

#[test]
fn a_platform_of_an_index_is_found_again_by_a_later_mount() {
    require!(Mounts);
    let platform = |name: &str| {
        let archive = Archive::new().dir("etc").file("etc/name", name);
        Image::new().platform(name).step("COPY all", &archive.gzip()).build()
    };
    let (amd64, arm64) = (platform("linux/amd64"), platform("linux/arm64"));
    let index = Index::new().child(&amd64).child(&arm64).build();
    let mut inside = Inside::start(index, &["--platform", "linux/amd64"]);
    for _ in 0..2 {
        for (path, name) in [
            ("rootfs/etc/name", "linux/amd64"),
            ("linux-arm64/rootfs/etc/name", "linux/arm64"),
            ("linux-arm64-v8/layers/0/etc/name", "linux/arm64"),
        ] {
            assert_eq!(inside.mount.cat(&inside.at(path)).success().text(), name, "{path}");
        }
        inside.restart_cold();
    }
    // The tree itself is the first that is looked up.
    let listed = inside.mount.run("ls", &[inside.mount.path(&inside.at("linux-arm64/rootfs"))]);
    assert_eq!(listed.success().text().trim(), "etc");
}
