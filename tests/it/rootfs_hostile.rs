//! The inside of images that are damaged or hostile, and of images whose registry is: what was right stays
//! readable, the rest is an error that is told once, and nothing hangs.

use crate::support::cli::Imgfs;
use crate::support::disk::SmallDisk;
use crate::support::hostile::{Fault, Hostile, Match};
use crate::support::image::{Blob, Built, Image, Receiver as _};
use crate::support::inside::{Inside, REPOSITORY, pinned};
use crate::support::layers::{Archive, Entry, OCI_ENCRYPTED, Packed, Packing, What, pack};
use crate::support::mount::{Mounted, Overlay};
use crate::support::need::require;
use crate::support::snapshot::assert_same;
use crate::support::{content, model, scale, seed, text, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use std::time::Duration;

const PATIENCE: [&str; 6] =
    ["--stall-timeout", "1s", "--connect-timeout", "1s", "--platform", "linux/amd64"];

const EIO: &str = "Input/output error";

fn of(layers: &[&Packed]) -> Built {
    let steps = layers.iter().enumerate();
    steps.fold(Image::new(), |all, (n, layer)| all.step(&format!("step {n}"), layer)).build()
}

/// Three files of noise, 1 MiB each, so that the place of a damage is in the file that one wants.
fn three_files() -> Archive {
    Archive::new().noise("first", 1, 1 << 20).noise("middle", 2, 1 << 20).noise("last", 3, 1 << 20)
}

fn noise(seed: u64) -> Vec<u8> {
    content::Content::Generated { seed, size: 1 << 20 }.to_vec()
}

/// Something is said of this once in the log, and in the status of the image.
#[track_caller]
fn is_told(inside: &Inside, texts: &[&str]) {
    let log = inside.mount.log();
    assert_eq!(inside.mount.logged(texts).len(), 1, "{texts:?} once in {log:#?}");
    let status = inside.status().to_string();
    for text in texts {
        assert!(status.contains(text), "no {text:?} in the status: {status}");
    }
}

#[test]
fn wrong_bytes_do_not_lift_the_protection_of_an_index() {
    require!(Mounts);
    let layer = three_files().gzip();
    let mut inside = Inside::start(of(&[&layer]), &PATIENCE);
    assert!(inside.mount.cat(&inside.rootfs("last")).success().stdout == noise(3));
    // What it had of the layer has gone, and the registry sends something else from now on, as often as it is asked.
    for _ in 0..2 {
        inside.restart_cold();
        inside
            .hostile
            .on(Match::blobs().about(&inside.image.layers()[0]))
            .fault(Fault::FlipByte(100_000));
        for _ in 0..2 {
            inside.mount.cat(&inside.rootfs("first")).fails_with(EIO);
        }
    }
    inside.restart_cold();
    inside.hostile.behave();
    assert!(inside.mount.cat(&inside.rootfs("first")).success().stdout == noise(1));
}

#[test]
fn what_comes_before_a_damage_stays_readable() {
    require!(Mounts);
    let plain = three_files().to_bytes();
    let near = |bytes: &[u8], pattern: &dyn Fn(&[u8]) -> bool| {
        let middle = bytes.len() / 2;
        let found = bytes[middle..].windows(5).position(pattern);
        middle + found.expect("there is such a place")
    };
    // Noise does not compress: the middle of the blob is in the second file.
    for packing in [Packing::Gzip, Packing::GzipMembers(100_000), Packing::ZstdFrames(100_000)] {
        for cut in [false, true] {
            let mut packed = pack(&plain, packing);
            let at = near(&packed.bytes, &|b| match packing {
                Packing::ZstdFrames(_) => b[..4] == [0x28, 0xb5, 0x2f, 0xfd],
                // A stored block: its length, and the complement of that.
                _ => b[0] == 0 && b[1] == !b[3] && b[2] == !b[4],
            });
            if cut {
                packed.bytes.truncate(at + 2);
            } else {
                packed.bytes[at + 2] ^= 0x40;
            }
            let inside = Inside::start(of(&[&packed]), &PATIENCE);
            let read = |name| inside.mount.cat(&inside.rootfs(name));
            eprintln!("{packing:?}, cut off: {cut}");
            // Whoever comes first, and whoever comes later.
            for _ in 0..2 {
                assert!(read("first").success().stdout == noise(1));
                let failed = read("middle").fails_with(EIO);
                assert!(noise(2).starts_with(&failed.stdout));
                assert!(!read("last").status.success());
            }
            is_told(&inside, &[&inside.image.layers()[0]]);
        }
    }
}

#[test]
fn bytes_that_were_changed_are_not_shown() {
    require!(Mounts);
    // What a flipped bit of a stored block does to the archive nobody sees but by sums and digests.
    for packing in [Packing::Gzip, Packing::GzipMembers(100_000), Packing::ZstdFrames(100_000)] {
        let mut packed = three_files().pack(packing);
        let middle = packed.bytes.len() / 2;
        packed.bytes[middle] ^= 1;
        let inside = Inside::start(of(&[&packed]), &[&PATIENCE[..], &["--verify-first"]].concat());
        for _ in 0..2 {
            inside.mount.cat(&inside.rootfs("middle")).fails_with(EIO);
        }
        is_told(&inside, &[&inside.image.layers()[0]]);
    }
}

#[test]
fn an_archive_that_breaks_off_is_damaged() {
    require!(Mounts);
    let plain = three_files().to_bytes();
    let cut = pack(&plain[..plain.len() / 2], Packing::Gzip);
    let mut header = plain.clone();
    // The header of the last file, which says that its checksum is another.
    let at = 2 * ((1 << 20) + 512);
    header[at] ^= 1;
    let wrong = pack(&header, Packing::Gzip);
    for (packed, middle) in [(cut, false), (wrong, true)] {
        let inside = Inside::start(of(&[&packed]), &PATIENCE);
        assert!(inside.mount.cat(&inside.rootfs("first")).success().stdout == noise(1));
        if middle {
            assert!(inside.mount.cat(&inside.rootfs("middle")).success().stdout == noise(2));
        } else {
            inside.mount.cat(&inside.rootfs("middle")).fails_with(EIO);
        }
        assert!(!inside.mount.cat(&inside.rootfs("last")).status.success());
        is_told(&inside, &[&inside.image.layers()[0]]);
    }
}

#[test]
fn a_layer_with_another_digest_is_not_trusted() {
    require!(Mounts);
    let good = three_files().gzip();
    let image = of(&[&good]);
    let digest = image.layers()[0].clone();
    let inside = Inside::start(image, &PATIENCE);
    let mut other = Archive::new().noise("first", 9, 1 << 20).noise("x", 2, 1 << 20);
    other = other.noise("last", 3, 1 << 20);
    let wrong = |bytes: Vec<u8>| Blob {
        digest: digest.clone(),
        media_type: String::new(),
        content: bytes.into(),
    };
    let put = |bytes: Vec<u8>| {
        inside.hostile.put_blob(REPOSITORY, &wrong(bytes));
    };
    // A layer that is whole in itself, and another one than the manifest says.
    put(other.gzip().bytes);
    for _ in 0..2 {
        // It has another size, too: so it is asked for again and again what is missing.
        let found = inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]);
        assert!(!found.status.success(), "{}", found.stderr);
    }
    assert!(!inside.mount.logged(&[&digest]).is_empty(), "{:?}", inside.mount.log());
    assert!(inside.status().to_string().contains(&digest));
    // Nothing of it has been kept.
    put(good.bytes.clone());
    wait_for("the right layer", Duration::from_secs(10), || {
        inside.mount.cat(&inside.rootfs("first")).status.success()
    });
    assert_same(&model::merged(&[&three_files()]), &inside.mount.snapshot(&inside.rootfs("")));
}

#[test]
fn nothing_is_kept_of_what_was_read_before_a_layer_turned_out_to_be_wrong() {
    require!(Mounts);
    for packing in [Packing::Plain, Packing::Gzip] {
        let archive = Archive::new().file("small", "right").noise("noise", 1, 3 << 20);
        let wrong = Archive::new()
            .file("small", "wrong, and longer")
            .file("only here", "wrong")
            .noise("noise", 2, (3 << 20) - 1024);
        let good = archive.pack(packing);
        let image = of(&[&good]);
        let digest = image.layers()[0].clone();
        let mut bytes = wrong.pack(packing).bytes;
        // As long as the manifest says; what is behind the archive is padding.
        assert!(bytes.len() <= good.bytes.len());
        bytes.resize(good.bytes.len(), 0);
        let inside = Inside::start(image, &PATIENCE);
        let put = |bytes: Vec<u8>| {
            let digest = digest.clone();
            let blob = Blob { digest, media_type: String::new(), content: bytes.into() };
            inside.hostile.put_blob(REPOSITORY, &blob);
        };
        put(bytes);
        inside.hostile.set_pace(64 * 1024, Duration::from_millis(20));
        // Nobody knows yet. Who reads now may get what comes, and no more than that.
        let early = inside.mount.cat(&inside.rootfs("small"));
        eprintln!("{packing:?}: {:?} {}", early.text(), early.stderr);
        let other = inside.mount.cat(&inside.rootfs("only here"));
        eprintln!("{packing:?}: {:?} {}", other.text(), other.stderr);
        inside.hostile.no_pace();
        inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]).fails_with(EIO);
        put(good.bytes.clone());
        wait_for("the right layer", Duration::from_secs(10), || {
            let found = inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]);
            found.status.success()
        });
        assert_eq!(inside.mount.cat(&inside.rootfs("small")).success().text(), "right");
        inside.mount.cat(&inside.rootfs("only here")).fails_with("No such file or directory");
        assert_same(&model::merged(&[&archive]), &inside.mount.snapshot(&inside.rootfs("")));
    }
}

#[test]
fn a_layer_with_another_diff_id_is_not_shown() {
    require!(Mounts);
    let mut packed = three_files().gzip();
    packed.diff_id = content::digest(b"something else");
    let good = Archive::new().file("good", b"good").gzip();
    let inside = Inside::start(of(&[&good, &packed]), &PATIENCE);
    for _ in 0..2 {
        inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]).fails_with(EIO);
        inside.mount.cat(&inside.rootfs("first")).fails_with(EIO);
    }
    is_told(&inside, &[&inside.image.layers()[1], &packed.diff_id]);
    // The other layer is not to blame.
    let good = inside.at("linux-amd64/layers/0/good");
    assert_eq!(inside.mount.cat(&good).success().text(), "good");
}

#[test]
fn a_layer_that_is_encrypted_is_unreadable() {
    require!(Mounts);
    let mut packed = three_files().gzip();
    packed.media_type = OCI_ENCRYPTED.to_owned();
    content::fill(5, 0, &mut packed.bytes);
    let good = Archive::new().file("good", b"good").gzip();
    let inside = Inside::start(of(&[&good, &packed]), &PATIENCE);
    for _ in 0..2 {
        let failed = inside.mount.run("ls", &[inside.mount.path(&inside.rootfs(""))]);
        assert!(!failed.status.success());
    }
    assert_eq!(inside.hostile.count("GET", &inside.image.layers()[1]), 0, "it was fetched");
    is_told(&inside, &["encrypted"]);
    let good = inside.at("linux-amd64/layers/0/good");
    assert_eq!(inside.mount.cat(&good).success().text(), "good");
}

#[test]
fn a_media_type_that_is_wrong_about_the_compression_does_no_harm() {
    require!(Mounts);
    for (packing, said) in [(Packing::Zstd, Packing::Gzip), (Packing::Plain, Packing::Gzip)] {
        let mut packed = three_files().pack(packing);
        packed.media_type = three_files().pack(said).media_type;
        let inside = Inside::start(of(&[&packed]), &PATIENCE);
        assert_same(&model::merged(&[&three_files()]), &inside.mount.snapshot(&inside.rootfs("")));
    }
}

#[test]
fn names_that_lead_out_are_refused_and_the_rest_is_shown() {
    require!(Mounts);
    let hostile = Archive::new()
        .file("good", b"1")
        .file("../out", b"x")
        .file("a/../../out", b"x")
        .file("a/..", b"x")
        .dir("..")
        .link("link-out", "../../etc/passwd")
        .entry(Entry::new("odd", What::Fifo))
        .symlink("allowed", "../../../etc/passwd")
        .file(format!("too-long/{}", "x".repeat(256)), b"x")
        .file("/absolute", b"2")
        .file("also good", b"3");
    let shown = Archive::new()
        .file("good", b"1")
        .entry(Entry::new("odd", What::Fifo))
        .symlink("allowed", "../../../etc/passwd")
        .file("/absolute", b"2")
        .file("also good", b"3");
    let inside = Inside::start(of(&[&hostile.gzip()]), &PATIENCE);
    assert_same(&model::merged(&[&shown]), &inside.mount.snapshot(&inside.rootfs("")));
    let status = inside.status().to_string();
    assert!(status.contains("out"), "what was refused is not in the status: {status}");
}

#[test]
fn links_to_nowhere_are_errors_and_loops_end() {
    require!(Mounts);
    let archive = Archive::new()
        .file("good", b"1")
        .dir("dir")
        .link("to-itself", "to-itself")
        .link("to-nothing", "no/where")
        .link("to-dir", "dir")
        .link("round-a", "round-b")
        .link("round-b", "round-a")
        .link("to-broken", "to-nothing")
        .symlink("loop-a", "loop-b")
        .symlink("loop-b", "loop-a")
        .symlink("self", "self")
        .symlink("dir/up", "..");
    let inside = Inside::start(of(&[&archive.gzip()]), &PATIENCE);
    let names = ["to-itself", "to-nothing", "to-dir", "round-a", "round-b", "to-broken"];
    let listed = inside.mount.run("ls", &["-A", &inside.mount.path(&inside.rootfs(""))]);
    let listed = listed.success().text();
    for name in names {
        assert!(listed.lines().any(|line| line == name), "{name} is not listed: {listed}");
        inside.mount.cat(&inside.rootfs(name)).fails_with(EIO);
    }
    for name in ["loop-a", "self"] {
        inside.mount.cat(&inside.rootfs(name)).fails_with("Too many levels of symbolic links");
    }
    assert_eq!(inside.mount.cat(&inside.rootfs("good")).success().text(), "1");
    assert_eq!(inside.mount.cat(&inside.rootfs("dir/up/dir/up/good")).success().text(), "1");
    let find = ["-L", &inside.mount.path(&inside.rootfs(""))];
    assert!(!inside.mount.run("find", &find).status.success());
}

#[test]
fn a_bomb_is_refused_before_it_has_gone_off() {
    require!(Mounts);
    const GIB: u64 = 1 << 30;
    // 3 GiB of zeros in a file, as 48 frames in about 100 kB: twenty thousand times.
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").expect("a short name");
    header.set_mode(0o644);
    header.set_size(3 * GIB);
    header.set_cksum();
    let small = Archive::new().file("small", b"small").without_end().to_bytes();
    let begin = [&small, header.as_bytes().as_slice()].concat();
    let mut bytes = zstd::encode_all(begin.as_slice(), 3).expect("compressing memory");
    let frame = zstd::encode_all(vec![0; 1 << 26].as_slice(), 3).expect("compressing memory");
    for _ in 0..48 {
        bytes.extend_from_slice(&frame);
    }
    let packed = Packed {
        media_type: crate::support::image::OCI_ZSTD.to_owned(),
        diff_id: content::digest(b"nobody gets that far"),
        bytes,
    };
    let inside = Inside::start(of(&[&packed]), &PATIENCE);
    assert_eq!(inside.mount.cat(&inside.rootfs("small")).success().text(), "small");
    let last = 3 * GIB - 4096;
    let failed = inside.mount.slice(&inside.rootfs("zeros"), last, 4096);
    failed.fails_with(EIO);
    is_told(&inside, &[&inside.image.layers()[0]]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", inside.mount.id()));
    let status = status.expect("reading the process's status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 256 << 10, "{peak} KiB");
}

#[test]
fn layers_of_nonsense_are_errors() {
    require!(Mounts);
    for (what, bytes) in [
        ("noise", content::Content::Generated { seed: 1, size: 100_000 }.to_vec()),
        ("text", b"<html>this is no layer</html>".repeat(100)),
        ("the beginning of gzip", vec![0x1f, 0x8b, 8, 0]),
        ("a number of zstd", vec![0x28, 0xb5, 0x2f, 0xfd]),
    ] {
        let media_type = crate::support::image::OCI_GZIP.to_owned();
        let packed = Packed { media_type, diff_id: content::digest(&bytes), bytes };
        let inside = Inside::start(of(&[&packed]), &PATIENCE);
        let failed = inside.mount.cat(&inside.rootfs("file"));
        assert!(!failed.status.success(), "{what}");
        eprintln!("{what}: {:?}", inside.mount.log());
        is_told(&inside, &[&inside.image.layers()[0]]);
    }
}

#[test]
fn reads_that_fail_say_how_and_succeed_later() {
    require!(Mounts);
    let archive = three_files();
    let image = of(&[&archive.gzip()]);
    for has_index in [false, true] {
        let mut inside = Inside::start(image.clone(), &PATIENCE);
        let digest = inside.image.layers()[0].clone();
        if has_index {
            inside.mount.run("find", &[inside.mount.path(&inside.rootfs(""))]).success();
        }
        for (fault, errnos) in [
            (Fault::status(401), &["Permission denied"][..]),
            (Fault::status(403), &["Permission denied"]),
            (Fault::status(404), &[EIO]),
            (Fault::status(418), &[EIO]),
            (Fault::HangBefore, &["Connection timed out", EIO]),
            (Fault::FlipByte(1000), &[EIO]),
            (Fault::HangAfter(1000), &["Connection timed out", EIO]),
        ] {
            if !has_index {
                let index = inside.imgfs.images_dir().join("blobs/.imgfs/inside/layers");
                let _ = std::fs::remove_file(index.join(&digest));
            }
            inside.restart_cold();
            let before = inside.mount.logged(&[&digest]).len();
            let shown = format!("{fault:?}, has index: {has_index}");
            inside.hostile.on(Match::blobs().about(&digest)).fault(fault);
            let failed = inside.mount.cat(&inside.rootfs("last"));
            if has_index && shown.starts_with("Flip") && failed.status.success() {
                // What is read of the first block begins behind that byte, and nothing else of it is used.
                assert!(failed.stdout == noise(3), "{shown}: wrong bytes");
                inside.hostile.behave();
                continue;
            }
            assert!(!failed.status.success(), "{shown}");
            assert!(
                errnos.iter().any(|errno| failed.stderr.contains(errno)),
                "{shown}: {}, {:?}",
                failed.stderr,
                inside.mount.log()
            );
            // The kernel asks twice: 3 s each, as the timeouts above add up.
            assert!(failed.elapsed < Duration::from_secs(20), "{shown}: {:?}", failed.elapsed);
            assert!(noise(3).starts_with(&failed.stdout), "{shown}: wrong bytes");
            let told = inside.mount.logged(&[&digest]).len() - before;
            // What the kernel could not read ahead it asks for once more; each answer is wrong in its own way.
            let is_each_another = ["Hang", "Flip"].iter().any(|fault| shown.starts_with(fault));
            let most = if is_each_another { 2 } else { 1 };
            assert!((1..=most).contains(&told), "{shown}: {:?}", inside.mount.log());
            assert!(inside.status().to_string().contains(&digest), "{shown}");
            inside.hostile.behave();
            let read = inside.mount.cat(&inside.rootfs("last"));
            assert!(read.stdout == noise(3), "{shown}: {:?}", inside.mount.log());
        }
    }
}

#[test]
fn faults_that_pass_are_not_noticed() {
    require!(Mounts);
    let archive = three_files();
    for packing in [Packing::Gzip, Packing::Zstd, Packing::Plain] {
        let mut inside = Inside::start(of(&[&archive.pack(packing)]), &PATIENCE);
        let digest = inside.image.layers()[0].clone();
        for fault in [
            Fault::TruncateAt(100_000),
            Fault::ResetAfter(100_000),
            Fault::status(503),
            Fault::LostConnection,
            Fault::IgnoreRange,
            Fault::Chunked,
        ] {
            for has_index in [false, true] {
                eprintln!("{packing:?} {fault:?}, has index: {has_index}");
                inside.restart_cold();
                let matches = Match::blobs().about(&digest);
                let always = matches!(fault, Fault::IgnoreRange | Fault::Chunked);
                inside.hostile.behave();
                inside
                    .hostile
                    .on(if always { matches } else { matches.nth(1) })
                    .fault(fault.clone());
                for (name, seed) in [("last", 3), ("first", 1), ("middle", 2)] {
                    let read = inside.mount.cat(&inside.rootfs(name)).success();
                    assert!(read.stdout == noise(seed), "{name}");
                }
            }
            assert_eq!(inside.mount.log(), Vec::<String>::new());
            let index = inside.imgfs.images_dir().join("blobs/.imgfs/inside/layers").join(&digest);
            std::fs::remove_file(index).expect("removing an index");
        }
    }
}

#[test]
fn a_damaged_index_is_made_again() {
    require!(Mounts);
    let archive = three_files();
    let mut inside = Inside::start(of(&[&archive.gzip()]), &PATIENCE);
    let wanted = model::merged(&[&archive]);
    assert_same(&wanted, &inside.mount.snapshot(&inside.rootfs("")));
    let digest = inside.image.layers()[0].clone();
    let index = inside.imgfs.images_dir().join("blobs/.imgfs/inside/layers").join(&digest);
    let right = std::fs::read(&index).expect("there is an index");
    let mut random = content::Random::new(seed());
    for case in 0..scale(12, 200) {
        let mut wrong = right.clone();
        match case % 3 {
            0 => wrong.truncate(random.below(right.len() as u64) as usize),
            1 => {
                for _ in 0..1 + random.below(4) {
                    let at = random.below(right.len() as u64) as usize;
                    wrong[at] ^= 1 << random.below(8);
                }
            }
            _ => content::fill(random.next(), 0, &mut wrong[right.len() / 2..]),
        }
        std::fs::write(&index, &wrong).expect("writing");
        inside.restart_cold();
        // Whatever is wrong with it is found out when it is used: at the latest the second time all is well.
        if !inside.mount.cat(&inside.rootfs("middle")).status.success() {
            eprintln!("case {case}: {:?}", inside.mount.log());
        }
        assert!(inside.mount.cat(&inside.rootfs("middle")).success().stdout == noise(2));
        assert_same(&wanted, &inside.mount.snapshot(&inside.rootfs("")));
    }
}

/// Streams of layers once shared their names in the cache with blobs: what a registry served as a blob of
/// that name was shown as the content of files in every image with that layer.
#[test]
fn regression_a_blob_cannot_take_the_place_of_the_stream_of_a_layer() {
    // Large enough that nobody fetches, and hashes, the end while the beginning is read.
    let archive = Archive::new().noise("first", 1, 1 << 20).noise("last", 2, 16 << 20);
    let fake = Archive::new().noise("first", 9, 1 << 20);
    let packed = archive.gzip();
    let image = of(&[&packed]);
    let layer = image.layers()[0].clone();
    let stream = archive.to_bytes();
    let name = content::digest(format!("imgfs: the decompressed stream of {layer}").as_bytes());
    let mut bytes = fake.to_bytes();
    bytes.resize(stream.len(), 0);
    let digest = content::digest(&bytes);
    // An image with a layer that has the name and the size of the stream, and other content.
    let mut attacker = Image::new().layer_raw("application/octet-stream", &bytes).build();
    let json = attacker.json().to_string().replace(&digest, &name);
    let root = attacker.manifests.last_mut().expect("an image has a manifest");
    root.bytes = json.into_bytes();
    root.digest = content::digest(&root.bytes);
    let blob = attacker.blobs.remove(&digest).expect("an image has its layer");
    attacker.blobs.insert(name.clone(), Blob { digest: name.clone(), ..blob });

    let (hostile, imgfs) = (Hostile::start(), Imgfs::scratch());
    image.push_to(&hostile, REPOSITORY, "1");
    attacker.push_to(&hostile, "attacker", "1");
    let manifests = format!("{}/attacker:1", hostile.host());
    let args = [&PATIENCE[..], &["--manifests", &manifests]].concat();
    let mut mount = Mounted::start(imgfs.images_dir(), &args);
    let first = pinned(&hostile.host(), REPOSITORY, &image, "rootfs/first");
    for restarts in 0..2 {
        let begun = mount.slice(&format!("blobs/{name}"), 0, 64 << 10);
        assert!(begun.success().stdout == bytes[..64 << 10], "the attacker's blob can be begun");
        assert!(mount.cat(&first).success().stdout == noise(1), "after {restarts} restarts");
        assert_eq!(mount.stop().code(), Some(0));
        mount.restart();
    }
    assert!(mount.cat(&first).success().stdout == noise(1));
}

/// A process that is stopped until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(process: u32) -> Self {
        let process = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(process, Signal::STOP).expect("stopping a process");
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The kernel has one lock for renames between the directories of a file system. An overlay holds it while it copies a
/// directory up, and asks its lower layers then: whoever answers for one of these must not wait for that lock.
#[test]
fn an_overlay_that_copies_a_directory_up_does_not_hold_up_a_mount() {
    require!(Mounts);
    // Nothing else is to wait.
    let disk = SmallDisk::mount(64).expect("mounting a tmpfs, which takes root");
    let hostile = Hostile::start();
    let files = |layer: Archive| layer.dir("d").dir("e").file("d/a", b"a").file("e/b", b"b");
    let small = of(&[&files(Archive::new()).gzip()]);
    let big = of(&[&files(Archive::new().noise("noise", 1, 3 << 20)).gzip()]);
    small.push_to(&hostile, REPOSITORY, "small");
    big.push_to(&hostile, REPOSITORY, "big");
    let [one, other] =
        ["one", "other"].map(|name| Mounted::start(&disk.path().join(name), &PATIENCE));
    let of = |image: &Built, below: &str| pinned(&hostile.host(), REPOSITORY, image, below);
    for mount in [&one, &other] {
        mount.run("ls", &["-lR", &mount.path(&of(&small, "rootfs"))]).success();
        mount.cat(&of(&small, "rootfs/d/a")).success();
    }
    one.cat(&of(&big, "manifest.json")).success();

    let at = |name: &str| disk.path().join(name);
    for name in ["x", "y"] {
        std::fs::create_dir(at(name)).expect("making a directory");
    }
    let overlay = Overlay::over(&other, &of(&small, "rootfs"), disk.path());
    let merged = |name: &str| overlay.at().join(name);
    std::fs::create_dir(merged("e/new")).expect("making a directory");
    std::fs::metadata(merged("d")).expect("looking at a directory");
    std::fs::write(at("x/file"), "").expect("writing");

    let stopped = Stopped::new(other.id());
    let copies_up = one.begin("chmod", &["700", text(&merged("d"))]);
    std::thread::sleep(Duration::from_millis(500));
    let mut renames = one.begin("mv", &[at("x/file"), at("y/file")]);
    std::thread::sleep(Duration::from_millis(500));
    assert!(renames.is_running(), "nobody holds the lock for renames");
    // All of a layer comes, and gets another place in the cache.
    let passes = one.begin("cat", &[one.path(&of(&big, "rootfs/noise"))]);
    std::thread::sleep(Duration::from_secs(1));
    one.watched(Duration::from_secs(20), || {
        one.run("ls", &[one.path(&of(&small, "rootfs/e"))]).success();
        one.cat(&of(&small, "rootfs/e/b")).success();
        passes.wait_from_now().success();
    });
    drop(stopped);
    copies_up.wait_from_now().success();
    renames.wait_from_now().success();
}
