//! The disk is full in the middle of a pull.

use crate::support::cli::Imgfs;
use crate::support::disk::SmallDisk;
use crate::support::hostile::Hostile;
use crate::support::image::Image;
use crate::support::need::require;
use crate::support::tree::{self, assert_tree_sound};
use std::path::PathBuf;

fn disk(mib: u32) -> (SmallDisk, PathBuf) {
    let disk = SmallDisk::mount(mib).expect("mounting a tmpfs, which takes root");
    let images = disk.path().join("images");
    (disk, images)
}

#[test]
fn a_full_disk_is_a_clear_error_and_a_larger_one_a_cure() {
    require!(Root);
    let (disk, images) = disk(8);
    let hostile = Hostile::start();
    let small = Image::new().layer(1, 1_000_000).build();
    let large = Image::new().layer(2, 12_000_000).build();
    small.push_to(&hostile, "small", "1");
    large.push_to(&hostile, "large", "1");
    let names = ["small", "large"].map(|name| format!("{}/{name}:1", hostile.host()));
    let imgfs = Imgfs::new(&images);
    let output = imgfs.pull(&names).expect_code(1);
    assert_eq!(output.image(&names[1])["status"], "failed", "{output}");
    let output = output.stderr_has("no space left");
    assert!(output.stderr.contains(&*images.to_string_lossy()), "the place is named\n{output}");
    // A full disk does not get better by asking the registry again.
    let asked = hostile.log().iter().filter(|served| served.is_blob_get()).count();
    assert!(asked <= 8, "{asked} requests for blobs");
    assert_tree_sound(&images);
    imgfs.ls();

    disk.grow(40);
    imgfs.pull(&names).success();
    assert_tree_sound(&images);
    assert_eq!(tree::blobs(&images).len(), 4);
    imgfs.verify().success();
}

#[test]
fn a_full_disk_ends_a_copy_between_directories() {
    require!(Root);
    let (disk, images) = disk(8);
    let source = tempfile::tempdir().expect("making a temporary directory");
    let small = Image::new().layer(1, 1_000_000).build();
    let large = Image::new().layer(2, 12_000_000).build();
    tree::kubekey_g1(source.path(), "quay.io", "team/small", "1", &small);
    tree::kubekey_g1(source.path(), "quay.io", "team/large", "1", &large);
    let copy = || {
        let imgfs = Imgfs::scratch();
        let (from, to) = (source.path().as_os_str(), images.as_os_str());
        imgfs.copy(&["--from".as_ref(), from, "--to".as_ref(), to, "--all".as_ref()])
    };
    let output = copy().expect_code(1).stderr_has("no space left");
    assert_eq!(output.image("quay.io/team/large:1")["status"], "failed", "{output}");
    assert_tree_sound(&images);
    disk.grow(40);
    let output = copy().success();
    assert_eq!(output.number("linked_blobs"), 0, "another file system");
    assert_tree_sound(&images);
    Imgfs::new(&images).verify().success();
}

#[test]
fn a_disk_that_is_full_from_the_start() {
    require!(Root);
    let (disk, images) = disk(1);
    let hostile = Hostile::start();
    Image::new().layer(1, 100_000).build().push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let ballast = disk.path().join("ballast");
    let mut size = 1 << 20;
    while size > 0 {
        use std::io::Write as _;
        let mut file =
            std::fs::OpenOptions::new().create(true).append(true).open(&ballast).expect("opening");
        if file.write_all(&vec![0; size]).is_err() {
            size /= 2;
        }
    }
    let imgfs = Imgfs::new(&images);
    let output = imgfs.pull(&[&name]);
    assert!(matches!(output.code(), 1 | 2), "{output}");
    output.stderr_has("no space left");
    assert_tree_sound(&images);
    std::fs::remove_file(&ballast).expect("removing");
    imgfs.pull(&[&name]).success();
    assert_tree_sound(&images);
}

#[test]
fn a_directory_that_may_not_be_written() {
    // Root may write anywhere except on what is mounted read-only.
    require!(Root);
    let (disk, images) = disk(4);
    let hostile = Hostile::start();
    Image::new().layer(1, 1000).build().push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::new(&images);
    imgfs.pull(&[&name]).success();
    disk.make_read_only();
    // Looking needs no writing.
    assert_eq!(imgfs.ls().success().images().len(), 1);
    imgfs.verify().success();
    Image::new().layer(2, 1000).build().push_to(&hostile, "app", "1");
    let output = imgfs.pull(&[&name]);
    assert!(matches!(output.code(), 1 | 2), "{output}");
    output.stderr_has("read-only file system");
}

/// Images are carried on media that nobody can write to.
#[test]
fn a_directory_that_may_not_be_written_is_a_source_like_any_other() {
    require!(Root);
    let (disk, images) = disk(4);
    let app = Image::new().layer(1, 500_000).build();
    tree::kubekey_g1(&images, "quay.io", "team/app", "1", &app);
    disk.make_read_only();
    let hostile = Hostile::start();
    let imgfs = Imgfs::new(&images);
    let dest = format!("{}/app:1", hostile.host());
    let output = imgfs.push(&["--dest", &dest]).success();
    assert!(output.stderr.is_empty(), "{output}");
    hostile.assert_complete();
    assert_eq!(hostile.tags("app")["1"], app.digest());
    let to = tempfile::tempdir().expect("making a temporary directory");
    let args = ["--from".as_ref(), images.as_os_str(), "--to".as_ref(), to.path().as_os_str()];
    imgfs.copy(&[&args[..], &["--all".as_ref()]].concat()).success();
    assert_tree_sound(to.path());
}
