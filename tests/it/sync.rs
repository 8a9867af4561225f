//! Pulls that do not wait for the disk, and disks that lose what they have not taken.

use crate::support::cli::Imgfs;
use crate::support::content::Random;
use crate::support::disk::PullableDisk;
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image, Index};
use crate::support::need::require;
use crate::support::tree::{self, assert_tree_sound};
use crate::support::{scale, seed};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MODES: [&str; 3] = ["none", "end", "each"];

fn records(images: &Path) -> String {
    fs::read_to_string(images.join("blobs/.imgfs/records")).unwrap_or_default()
}

/// How many blobs the records of a directory take to be on the disk, and in memory.
fn recorded(images: &Path) -> (usize, usize) {
    let text = records(images);
    // The last line about a blob counts.
    let mut last = std::collections::BTreeMap::new();
    for line in text.lines() {
        if let Some((kind @ ("blob" | "unflushed"), rest)) = line.split_once(' ') {
            last.insert(rest.split(' ').next().unwrap_or_default(), kind);
        }
    }
    let of = |wanted: &str| last.values().filter(|kind| **kind == wanted).count();
    (of("blob"), of("unflushed"))
}

fn app(largest: u64) -> Built {
    let base = Image::new().layer(1, 300_000);
    let arm = base.clone().platform("linux/arm64").layer(2, 900_000).build();
    Index::new().child(&base.layer(3, largest).build()).child(&arm).attest().build()
}

#[test]
fn what_has_not_been_flushed_is_recorded_as_such() {
    let hostile = Hostile::start();
    let image = app(11_000_000);
    image.push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let count = image.blobs.len();
    for (mode, expected) in MODES.into_iter().zip([(0, count), (count, 0), (count, 0)]) {
        let imgfs = Imgfs::scratch();
        imgfs.pull(&["--sync", mode, &name]).success();
        assert_tree_sound(imgfs.images_dir());
        tree::assert_modes_and_times(imgfs.images_dir());
        assert_eq!(recorded(imgfs.images_dir()), expected, "--sync {mode}");
        // It is as good as any.
        let output = imgfs.pull(&["--sync", mode, &name]).success();
        assert_eq!(output.image(&name)["status"], "unchanged", "{output}");
        let output = imgfs.verify().success();
        assert_eq!(output.number("hashed_bytes"), 0, "--sync {mode}\n{output}");
        // Whoever asks for it has it on the disk, whatever earlier runs have asked for.
        imgfs.pull(&["--sync", "each", &name]).success();
        assert_eq!(recorded(imgfs.images_dir()), (count, 0), "--sync each after {mode}");
    }
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[&name]).success();
    assert_eq!(recorded(imgfs.images_dir()), (0, count), "without --sync it is `none`");
    let (from, to) = (imgfs.images_dir().as_os_str(), imgfs.home().join("to"));
    for mode in MODES {
        let args = ["--from".as_ref(), from, "--to".as_ref(), to.as_os_str(), "--all".as_ref()];
        imgfs.copy(&[&args[..], &["--sync".as_ref(), mode.as_ref()]].concat()).success();
        // Another name for what is in memory only is as good as that.
        let expected = if mode == "none" { (0, count) } else { (count, 0) };
        assert_eq!(recorded(&to), expected, "copy --sync {mode}, linked");
        assert_tree_sound(&to);
        fs::remove_dir_all(&to).expect("removing a copy");
        let args = [&args[..], &["--link=never", "--sync", mode].map(AsRef::as_ref)].concat();
        imgfs.copy(&args).success();
        assert_eq!(recorded(&to), expected, "copy --sync {mode}");
        fs::remove_dir_all(&to).expect("removing a copy");
    }
    let output = imgfs.copy(&[
        "--from",
        &imgfs.images_dir().to_string_lossy(),
        "--to",
        "registry://localhost:1",
        "--all",
        "--sync=end",
    ]);
    output.expect_code(2).stderr_has("--sync is about directories, and --to is a registry");
}

#[test]
fn tasks_are_carried_out_with_it() {
    let hostile = Hostile::start();
    app(11_000_000).push_to(&hostile, "app", "1");
    for (mode, is_flushed) in MODES.into_iter().zip([false, true, true]) {
        let imgfs = Imgfs::scratch();
        let tasks = imgfs.home().join("tasks.yaml");
        let host = hostile.host();
        let text = format!(
            "- name: pull\n  image:\n    pull:\n      images_dir: {}\n      manifests: [{host}/app:1]\n",
            imgfs.images_dir().display()
        );
        fs::write(&tasks, text).expect("writing tasks");
        let args = ["run", "--plain-http", "--sync", mode, &tasks.to_string_lossy()];
        imgfs.run(&args).success();
        let (on_disk, in_memory) = recorded(imgfs.images_dir());
        assert_eq!((on_disk > 0, in_memory > 0), (is_flushed, !is_flushed), "run --sync {mode}");
    }
}

/// Makes of the content of a file what a power cut leaves of it.
type Damage = fn(&[u8]) -> Vec<u8>;

/// Files as a power cut leaves them: their names, sizes and times are right, and what is in them is not.
#[test]
fn nothing_of_another_start_of_the_system_is_believed() {
    let hostile = Hostile::start();
    let image = app(700_000);
    image.push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let damages: [(&str, Damage); 5] = [
        ("empty", |_| Vec::new()),
        ("zeros", |bytes| vec![0; bytes.len()]),
        ("torn", |bytes| [&bytes[..bytes.len() / 2], &vec![0; bytes.len().div_ceil(2)]].concat()),
        ("hole", |bytes| {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle..].iter_mut().take(4096).for_each(|byte| *byte = 0);
            bytes
        }),
        ("short", |bytes| bytes[..bytes.len() - 1].to_vec()),
    ];
    for layout in ["documented", "kubekey", "portable"] {
        let imgfs = Imgfs::scratch();
        let images = imgfs.images_dir();
        imgfs.pull(&["--layout", layout, &name]).success();
        let whole = tree::everything_under(images);
        let files: Vec<(PathBuf, Vec<u8>)> = whole
            .into_iter()
            .filter(|path| path.is_file() && !path.starts_with(images.join("blobs/.imgfs")))
            .map(|path| (path.clone(), fs::read(&path).expect("reading")))
            .collect();
        // The layouts differ in how tags are written.
        let damages = if layout == "documented" { &damages[..] } else { &damages[..2] };
        for (damage, apply) in damages {
            for (path, content) in &files {
                fs::write(path, apply(content)).expect("damaging");
                with_these_stamps(images);
                assert_is_found_and_mended(&imgfs, &name, layout, damage, path);
                assert_eq!(fs::read(path).expect("reading"), *content, "{}", path.display());
            }
        }
    }
}

/// Makes all records say that the files, as they are now, were hashed when the system had been started another
/// time.
fn with_these_stamps(images: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let mut text = "imgfs records 1\n".to_owned();
    for entry in fs::read_dir(images.join("blobs")).expect("listing").flatten() {
        let meta = entry.metadata().expect("looking");
        let digest = entry.file_name().to_string_lossy().replace("sha256-", "sha256:");
        if meta.is_file() {
            let ns = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
            let times = [ns(meta.mtime(), meta.mtime_nsec()), ns(meta.ctime(), meta.ctime_nsec())];
            text += &format!("unflushed {digest} {} {}", meta.len(), meta.ino());
            text +=
                &format!(" {} {} 12345 aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\n", times[0], times[1]);
        }
    }
    fs::write(images.join("blobs/.imgfs/records"), text).expect("writing records");
}

/// The map of tags is flushed always, and is not mended by a pull.
#[track_caller]
fn assert_is_found_and_mended(imgfs: &Imgfs, name: &str, layout: &str, damage: &str, path: &Path) {
    let what = format!("{damage} {} ({layout})", path.display());
    let output = imgfs.verify();
    assert_eq!(output.code(), 1, "{what}: {output}");
    assert!(!output.problems().is_empty(), "{what}: {output}");
    let is_map = layout == "kubekey" && path.ends_with("manifests/layout");
    let output = if is_map { imgfs.repair() } else { imgfs.pull(&[name]) };
    let output = output.success();
    if !is_map {
        assert_eq!(output.image(name)["status"], "pulled", "{what}: {output}");
    }
    imgfs.verify().success();
}

#[test]
fn a_disk_whose_plug_is_pulled_shows_no_wrong_byte() {
    require!(Loops);
    let hostile = Hostile::start();
    let image = app(700_000);
    image.push_to(&hostile, "app", "1");
    let other = Image::new().layer(9, 2_000_000).build();
    other.push_to(&hostile, "app", "2");
    let names = ["1", "2"].map(|tag| format!("{}/app:{tag}", hostile.host()));
    for layout in ["documented", "kubekey"] {
        let mut disk = PullableDisk::make(96);
        let images = disk.path().join("images");
        let imgfs = Imgfs::new(&images);
        // What has been waited for is there.
        imgfs.pull(&["--layout", layout, "--sync", "end", &names[0]]).success();
        disk.pull_plug();
        assert_tree_sound(&images);
        assert_eq!(imgfs.verify().success().number("hashed_bytes"), 0, "it was on the disk");
        let output = imgfs.pull(&[&names[0]]).success();
        assert_eq!(output.number("fetched_bytes"), 0, "{output}");

        // What has not is gone, or is found out.
        for has_names in [false, true] {
            imgfs.pull(&[&names[1]]).success();
            if has_names {
                disk.flush_names();
            }
            disk.pull_plug();
            let unsound = tree::problems(&images, tree::Indexes::Whole);
            assert!(!has_names || !unsound.is_empty(), "nothing was lost");
            let output = imgfs.verify();
            assert_eq!(output.code() == 0, unsound.is_empty(), "{unsound:?}\n{output}");
            let output = imgfs.pull(&names).success();
            assert_eq!(output.image(&names[0])["status"], "unchanged", "{output}");
            assert_eq!(output.image(&names[1])["status"], "pulled", "{output}");
            assert_tree_sound(&images);
            imgfs.verify().success();
            imgfs.run(&["rm", "--images-dir", &images.to_string_lossy(), &names[1]]).success();
            imgfs.prune().success();
            disk.remount();
        }
    }
}

#[test]
fn a_plug_that_is_pulled_in_the_middle_costs_time_and_nothing_else() {
    require!(Loops);
    let hostile = Hostile::start();
    let base = Image::new().layer(1, 3_000_000);
    let built = [("app", base.clone().layer(2, 2_000_000)), ("other", base.layer(3, 4_000_000))];
    let mut names = Vec::new();
    for (repository, image) in built {
        image.build().push_to(&hostile, repository, "1");
        names.push(format!("{}/{repository}:1", hostile.host()));
    }
    hostile.set_pace(32 * 1024, Duration::from_millis(4));
    let mut random = Random::new(seed());
    let modes = ["none", "end", "each"];
    let mut disk = PullableDisk::make(96);
    let images = disk.path().join("images");
    let imgfs = Imgfs::new(&images);
    for round in 0..scale(6, 60) {
        let mode = modes[round % modes.len()];
        let running = imgfs.spawn_pull(
            &[&["--sync", mode], &names.iter().map(String::as_str).collect::<Vec<_>>()[..]]
                .concat(),
        );
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(random.below(250)));
            disk.flush_names();
        }
        disk.pull_plug_and(|| drop(running.kill9()));
        if !images.join("blobs").exists() {
            continue;
        }
        let unsound = tree::problems(&images, tree::Indexes::Whole);
        let output = imgfs.verify();
        let is_found = output.code() != 0 || output.stderr.contains("no images");
        assert!(is_found || unsound.is_empty(), "--sync {mode}: {unsound:?}\n{output}");
        if mode == "each" && round == 2 {
            continue; // The next one goes on from there.
        }
        let all = imgfs.pull(&names).success();
        assert_tree_sound(&images);
        imgfs.verify().success();
        drop(all);
        std::fs::remove_dir_all(&images).expect("starting over");
    }
}

#[test]
fn what_was_unmounted_in_good_order_is_hashed_once_and_not_fetched_again() {
    require!(Loops);
    let hostile = Hostile::start();
    let image = app(700_000);
    image.push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let disk = PullableDisk::make(96);
    let imgfs = Imgfs::new(disk.path().join("images"));
    imgfs.pull(&[&name]).success();
    assert_eq!(imgfs.verify().success().number("hashed_bytes"), 0, "it is in memory");
    disk.remount();
    let output = imgfs.verify().success();
    assert_eq!(output.number("hashed_bytes"), image.blob_bytes(), "{output}");
    assert_eq!(imgfs.verify().success().number("hashed_bytes"), 0, "once");
    let output = imgfs.pull(&[&name]).success();
    assert_eq!(output.number("fetched_bytes"), 0, "{output}");
    disk.remount();
    assert_eq!(imgfs.verify().success().number("hashed_bytes"), 0, "it is on the disk");
}
