//! What archives have that is not an ordinary file: files with holes, hard links that lead nowhere, and layers of
//! which only a part can be read. A mount and `imgfs ls` show it, and nobody takes it for something else.

use crate::support::cli::{Imgfs, Output};
use crate::support::content::digest;
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image};
use crate::support::inside::Inside;
use crate::support::layers::{Archive, Packing, SparseForm, pack};
use crate::support::mount::{Done, Mounted};
use crate::support::need::require;
use crate::support::text;

/// Runs `imgfs COMMAND` on an image.
#[track_caller]
fn look(imgfs: &Imgfs, command: &str, args: &[&str]) -> Output {
    let common = [command, "--plain-http", "--images-dir", text(imgfs.images_dir())];
    imgfs.run(&[&common[..], args].concat())
}

/// `/var/log/lastlog` after somebody has got a user id of two thousand million.
const SIZE: u64 = 1_970_000_000 * 292;

const FORMS: [(&str, SparseForm); 4] = [
    ("old", SparseForm::OldGnu),
    ("pax00", SparseForm::Pax00),
    ("pax01", SparseForm::Pax01),
    ("pax10", SparseForm::Pax10),
];

/// What is in each of these files: data in the middle, and at the end.
const PARTS: [(u64, u64); 2] = [(1 << 30, 8192), (SIZE - 292, 292)];

fn lastlogs(packing: Packing) -> Built {
    let (middle, end) = ([b'M'; 8192], [b'L'; 292]);
    let parts: [(u64, &[u8]); 2] = [(PARTS[0].0, &middle), (PARTS[1].0, &end)];
    let archive =
        FORMS.into_iter().fold(Archive::new().file("plain", [0; 5000]), |all, (name, form)| {
            all.sparse(name, form, SIZE, &parts)
        });
    let archive = archive.sparse("nothing", SparseForm::Pax01, SIZE, &[]);
    Image::new().step("x", &archive.pack(packing)).build()
}

/// Where data and holes are, as `lseek` says: pairs of beginning and end.
const SEEK: &str = r#"
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
at, size = 0, os.fstat(file).st_size
while at < size:
    try:
        data = os.lseek(file, at, os.SEEK_DATA)
    except OSError as error:
        print(error.strerror)
        break
    at = os.lseek(file, data, os.SEEK_HOLE)
    print(data, at)
"#;

#[test]
fn files_with_holes_are_copied_without_reading_these() {
    require!(Mounts);
    for packing in [Packing::Gzip, Packing::Zstd] {
        let inside = Inside::start(lastlogs(packing), &[""; 0]);
        let alone =
            Mounted::start(&inside.imgfs.home().join("other"), &["--image", &inside.name()]);
        for (mount, below) in [(&inside.mount, inside.rootfs("")), (&alone, String::new())] {
            for (name, _) in FORMS {
                let file = mount.path(&format!("{below}{name}"));
                let stat = mount.run("stat", &["-c", "%s %b", &file]).success().text();
                assert_eq!(stat, format!("{SIZE} 17\n"), "{name}");
                let found = mount.run("python3", &["-c", SEEK, &file]).success().text();
                let part = |(at, length): (u64, u64)| format!("{at} {}\n", at + length);
                assert_eq!(found, PARTS.map(part).concat(), "{name}");
                let copy = inside.imgfs.home().join("copy");
                mount.run("cp", &["--sparse=auto", &file, text(&copy)]).success();
                assert_same_parts(mount, &file, text(&copy));
                let tar = inside.imgfs.home().join("tar");
                mount.run("tar", &["-S", "-cf", text(&tar), &file]).success();
                assert!(std::fs::metadata(&tar).expect("the archive").len() < 1 << 20);
                std::fs::remove_file(&copy).expect("removing");
            }
            let nothing = mount.path(&format!("{below}nothing"));
            let stat = mount.run("stat", &["-c", "%s %b", &nothing]).success().text();
            assert_eq!(stat, format!("{SIZE} 0\n"));
            let found = mount.run("python3", &["-c", SEEK, &nothing]).success().text();
            assert_eq!(found, "No such device or address\n");
            // Zeros that are stored are data.
            let plain = mount.path(&format!("{below}plain"));
            let stat = mount.run("stat", &["-c", "%s %b", &plain]).success().text();
            assert_eq!(stat, "5000 10\n");
            assert_eq!(mount.run("python3", &["-c", SEEK, &plain]).success().text(), "0 5000\n");
        }
        // Outside images nothing has holes.
        let manifest = inside.mount.path(&inside.at("manifest.json"));
        let size = inside.image.root().bytes.len();
        let found = inside.mount.run("python3", &["-c", SEEK, &manifest]).success().text();
        assert_eq!(found, format!("0 {size}\n"));
    }
}

#[track_caller]
fn assert_same_parts(mount: &Mounted, file: &str, copy: &str) {
    for (at, length) in PARTS {
        let part = |from: &str| {
            let from = format!("if={from}");
            let (skip, count) = (format!("skip={}", at - 100), format!("count={}", length + 100));
            let flags = "iflag=skip_bytes,count_bytes,fullblock";
            mount.run("dd", &[&from, "status=none", flags, &skip, &count]).success().stdout
        };
        assert_eq!(digest(&part(file)), digest(&part(copy)), "{at}");
    }
}

#[test]
fn a_hard_link_to_nothing_is_never_an_empty_file() {
    require!(Mounts);
    let archive = Archive::new()
        .file("a", "one")
        .link("dangling", "nowhere")
        .link("early", "late")
        .file("late", "two")
        .dir("dir")
        .link("to-dir", "dir")
        .link("self", "self");
    let image = Image::new().step("x", &archive.gzip()).build();
    let inside = Inside::start(image, &[""; 0]);
    let alone = Mounted::start(&inside.imgfs.home().join("other"), &["--image", &inside.name()]);
    let broken = ["dangling", "early", "to-dir", "self"];
    for (mount, below) in [(&inside.mount, inside.rootfs("")), (&alone, String::new())] {
        let at = |name: &str| mount.path(&format!("{below}{name}"));
        for name in broken {
            mount.run("cat", &[at(name)]).fails_with("Input/output error");
            mount
                .run("cp", &[at(name), inside.imgfs.home().join("x").display().to_string()])
                .fails_with("Input/output error");
        }
        assert_eq!(mount.run("cat", &[at("a"), at("late")]).success().text(), "onetwo");
        // tar does not open files that are empty and may be read.
        let archive = inside.imgfs.home().join("tar");
        let done = mount.run("tar", &["-C", &at(""), "-cf", text(&archive), "."]);
        for name in broken {
            assert!(done.stderr.contains(&format!("{name}: ")), "{}", done.stderr);
        }
        assert!(!done.status.success());
    }
    let of = |path: &str| format!("{}:{path}", inside.name());
    let listed = look(&inside.imgfs, "ls", &[&of("/")]).success();
    let line = listed.stdout.lines().find(|line| line.contains("dangling"));
    let reason = "it is a hard link to something that is not there";
    assert!(line.is_some_and(|line| line.ends_with(&format!("({reason})"))), "{listed}");
    let listed = look(&inside.imgfs, "ls", &["--json", &of("/")]).success();
    let report = listed.report();
    let entries = report["entries"].as_array().expect("entries");
    let told: Vec<_> = entries.iter().filter(|entry| entry["error"].is_string()).collect();
    assert_eq!(told.len(), broken.len(), "{listed}");
    for name in broken {
        let name = format!("/{name}");
        let read = look(&inside.imgfs, "cat", &[&inside.name(), &name]);
        read.expect_code(1).stderr_has("hard link");
    }
}

/// A file, and then something that is no header where the next one should be.
fn damaged(name: &str) -> Vec<u8> {
    let archive = Archive::new().file(name, "before").raw([b'?'; 512]).file("behind", "x");
    archive.to_bytes()
}

#[test]
fn a_list_that_is_not_complete_is_no_success() {
    require!(Mounts);
    let lower = Archive::new().file("lower", "1").file("behind", "old").gzip();
    let upper = pack(&damaged("a"), Packing::Gzip);
    let image = Image::new().step("lower", &lower).step("upper", &upper).build();
    let inside = Inside::start(image, &[""; 0]);
    let alone = Mounted::start(&inside.imgfs.home().join("other"), &["--image", &inside.name()]);
    for (mount, below) in [(&inside.mount, inside.rootfs("")), (&alone, String::new())] {
        for attempt in 0..2 {
            let done: Done = mount.run("ls", &[mount.path(&below)]);
            assert!(!done.status.success(), "attempt {attempt}: {}", done.text());
            assert!(done.stderr.contains("Input/output error"), "{}", done.stderr);
        }
        // Of these the damaged layer may have had others.
        for name in ["lower", "behind"] {
            mount.cat(&format!("{below}{name}")).fails_with("Input/output error");
        }
        assert_eq!(mount.cat(&format!("{below}a")).success().text(), "before");
    }
    drop(alone);
    let of = |path: &str| format!("{}:{path}", inside.name());
    for further in [&[][..], &["-R"], &["--json"]] {
        let root = of("/");
        let args = [further, &[&*root]].concat();
        let listed = look(&inside.imgfs, "ls", &args).expect_code(1).stderr_has("checksum");
        for name in ["a", "lower", "behind"] {
            assert!(listed.stdout.contains(name), "{listed}");
        }
    }
    let cat = |path: &str| look(&inside.imgfs, "cat", &[&inside.name(), path]);
    assert_eq!(cat("/a").success().stdout, "before");
    // The damaged layer may have had another one, and it has.
    assert_eq!(cat("/behind").expect_code(1).stderr_has("checksum").stdout, "old");
    cat("/missing").expect_code(1).stderr_has("checksum");
}

#[test]
fn what_cannot_be_shown_of_a_layer_is_told() {
    let archive = Archive::new().file("../up", "x").file("good", "y");
    let image = Image::new().step("x", &archive.gzip()).build();
    let hostile = Hostile::start();
    image.push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1:/", hostile.host());
    let listed = look(&imgfs, "ls", &[&name]).success();
    assert!(listed.stdout.contains("good") && !listed.stdout.contains("up"), "{listed}");
    let listed =
        listed.stderr_has("warning: ").stderr_has("`../up`").stderr_has("leads out of the root");
    assert_eq!(listed.stderr.lines().count(), 1, "{listed}");
    let report = look(&imgfs, "ls", &["--json", &name]).success().report();
    assert_eq!(report["notes"].as_array().map(Vec::len), Some(1), "{report}");
}

#[test]
fn names_that_are_too_long_are_an_error_of_their_own() {
    require!(Mounts);
    let long = "n".repeat(255);
    let archive = Archive::new().dir("d").file(format!("d/{long}"), "x");
    let image = Image::new().step("x", &archive.gzip()).build();
    let inside = Inside::start(image, &[""; 0]);
    let alone = Mounted::start(&inside.imgfs.home().join("other"), &["--image", &inside.name()]);
    let host = inside.hostile.host();
    let too_long = format!("{long}n");
    for above in [
        "",
        "blobs/",
        ".imgfs/",
        &format!("{host}/"),
        &format!(".imgfs/{host}/"),
        &format!("{host}/team/app/manifests/"),
        &inside.at(""),
        &inside.rootfs(""),
        &inside.rootfs("d/"),
    ] {
        inside
            .mount
            .run("stat", &[inside.mount.path(&format!("{above}{too_long}"))])
            .fails_with("File name too long");
    }
    for above in ["", "d/"] {
        let path = alone.path(&format!("{above}{too_long}"));
        alone.run("stat", &[path]).fails_with("File name too long");
        alone.run("cat", &[alone.path(&format!("d/{long}"))]).success();
    }
    assert_eq!(inside.mount.cat(&inside.rootfs(&format!("d/{long}"))).success().text(), "x");
    assert_eq!(inside.mount.log(), [""; 0]);
    let path = format!("/d/{too_long}");
    let read = look(&inside.imgfs, "cat", &[&inside.name(), &path]);
    read.expect_code(1).stderr_has("255 bytes");
}
