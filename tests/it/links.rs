//! Links, devices and modes in an images_dir that somebody else fills: nothing outside it is shown, read or
//! written, and nobody sees more than the modes let him.

use crate::support::cli::Imgfs;
use crate::support::content;
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::tree::{self, assert_tree_sound};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

const SECRET: &str = "nobody may read this";

/// A directory with an image in it, and a place outside with a secret file.
struct Scene {
    hostile: Hostile,
    imgfs: Imgfs,
    image: Built,
    name: String,
    outside: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let hostile = Hostile::start();
        let image = Image::new().layer(1, 300_000).build();
        image.push_to(&hostile, "app", "1");
        let name = format!("{}/app:1", hostile.host());
        let imgfs = Imgfs::scratch();
        imgfs.pull(&[&name]).success();
        let outside = tempfile::tempdir().expect("making a temporary directory");
        fs::write(outside.path().join("secret"), SECRET).expect("writing");
        Self { hostile, imgfs, image, name, outside }
    }

    fn secret(&self) -> PathBuf {
        self.outside.path().join("secret")
    }

    fn at(&self, below: &str) -> PathBuf {
        self.imgfs.images_dir().join(below)
    }

    fn layer(&self) -> String {
        format!("blobs/{}", self.image.layers()[0])
    }

    fn manifests(&self) -> String {
        format!("{}/app/manifests", self.hostile.host())
    }

    /// What is outside is as it was.
    #[track_caller]
    fn assert_untouched(&self) {
        let files = tree::everything_under(self.outside.path());
        assert_eq!(files, [self.secret()]);
        assert_eq!(fs::read_to_string(self.secret()).expect("reading"), SECRET);
    }
}

/// Puts a link in the place of what is at `path`.
fn replace_by_link(path: &Path, target: impl AsRef<Path>) {
    if path.is_dir() {
        fs::rename(path, path.with_extension("moved")).expect("renaming");
    } else {
        let _ = fs::remove_file(path);
    }
    symlink(target, path).expect("linking");
}

/// Lets anybody into the directory of the mount point, and runs a program as somebody who is nobody.
fn as_nobody(mount: &Mounted, program: &str, path: &str) -> crate::support::mount::Done {
    let place = mount.at().parent().expect("a directory").to_owned();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("setting a mode");
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    mount.run("setpriv", &[&user[..], &[program, &mount.path(path)]].concat())
}

#[test]
fn a_mount_shows_nothing_that_a_link_points_at() {
    require!(Mounts);
    let scene = Scene::new();
    let host = scene.hostile.host().clone();
    let blob = format!("blobs/{}", content::digest(b"a link"));
    let links = [
        ("x".to_owned(), scene.secret()),
        (blob, scene.secret()),
        (format!("{}/linked", scene.manifests()), scene.secret()),
        ("quay.io".to_owned(), scene.outside.path().to_owned()),
        (format!("{host}/magic"), "/proc/self/root".into()),
        (format!("{host}/inside"), "app".into()),
        ("blobs/descriptor".to_owned(), "/proc/self/fd/0".into()),
    ];
    for (link, target) in &links {
        symlink(target, scene.at(link)).expect("linking");
    }
    fs::write(scene.at("notes.txt"), SECRET).expect("writing");
    fs::write(scene.at("blobs/notes"), SECRET).expect("writing");
    fs::create_dir(scene.at(".git")).expect("making a directory");
    fs::write(scene.at(".git/config"), SECRET).expect("writing");
    let mount = Mounted::start(scene.imgfs.images_dir(), &["--allow-other", "--offline"]);
    let shown = mount.find();
    for path in links.iter().map(|(link, _)| link.as_str()).chain([
        "notes.txt",
        "blobs/notes",
        ".git",
        ".git/config",
    ]) {
        assert!(!shown.iter().any(|other| other == path), "{path} in {shown:?}");
        let read = mount.run("cat", &[mount.path(path)]);
        assert!(!read.status.success() && read.stdout.is_empty(), "{path}");
        let read = as_nobody(&mount, "cat", path);
        assert!(!read.status.success() && read.stdout.is_empty(), "{path}");
    }
    assert!(shown.contains(&scene.layer()), "{shown:?}");
    as_nobody(&mount, "cat", &scene.layer()).success();
    as_nobody(&mount, "cat", &format!("{}/1", scene.manifests())).success();
}

#[test]
fn a_link_that_comes_while_it_is_mounted_is_not_followed() {
    require!(Mounts);
    let scene = Scene::new();
    let tag = format!("{}/1", scene.manifests());
    let by_digest = format!("{}/{}", scene.manifests(), scene.image.digest());
    let mount = Mounted::start(scene.imgfs.images_dir(), &["--allow-other", "--offline"]);
    mount.find();
    for path in [&scene.layer(), &tag, &by_digest] {
        replace_by_link(&scene.at(path), scene.secret());
        let read = mount.cat(path);
        assert!(!read.status.success() && read.stdout.is_empty(), "{path}");
    }
    replace_by_link(&scene.at("blobs"), scene.outside.path());
    let read = mount.cat(&scene.layer());
    assert!(!read.status.success() && read.stdout.is_empty());
}

#[test]
fn a_mount_shows_files_with_the_modes_that_they_have() {
    require!(Mounts);
    let scene = Scene::new();
    let tag = format!("{}/1", scene.manifests());
    let mode = |path: &str, mode| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(scene.at(path), mode).expect("setting a mode");
    };
    mode(&scene.layer(), 0o600);
    mode(&tag, 0o4777);
    let group = Some(4321);
    std::os::unix::fs::chown(scene.at(&scene.layer()), None, group).expect("changing the group");
    let config = scene.image.json()["config"]["digest"].as_str().expect("a digest").to_owned();
    let config = format!("blobs/{config}");
    mode(&config, 0o640);
    std::os::unix::fs::chown(scene.at(&config), None, group).expect("changing the group");
    let closed = format!("{}/closed", scene.hostile.host());
    fs::create_dir_all(scene.at(&format!("{closed}/manifests"))).expect("making a directory");
    fs::write(scene.at(&format!("{closed}/manifests/1")), "{}").expect("writing");
    mode(&closed, 0o700);
    let mount = Mounted::start(scene.imgfs.images_dir(), &["--allow-other", "--offline"]);
    let shown = |path: &str| {
        let told = mount.run("stat", &["-c", "%a", &mount.path(path)]).success().text();
        told.trim().to_owned()
    };
    // By a lookup, and as they are listed.
    for listed in [false, true] {
        if listed {
            mount.forget();
            mount.run("ls", &["-lR", &mount.path("")]).success();
        }
        assert_eq!(shown(&scene.layer()), "600");
        assert_eq!(shown(&config), "600", "its group is not the one that is shown");
        assert_eq!(shown(&tag), "644");
        assert_eq!(shown(&closed), "700");
        assert_eq!(shown("blobs"), "755");
    }
    mount.cat(&scene.layer()).success();
    as_nobody(&mount, "cat", &scene.layer()).fails_with("Permission denied");
    as_nobody(&mount, "cat", &format!("{closed}/manifests/1")).fails_with("Permission denied");
    as_nobody(&mount, "cat", &tag).success();
}

#[test]
fn what_is_no_file_hangs_nobody() {
    require!(Mounts);
    let scene = Scene::new();
    let layer = scene.at(&scene.layer());
    let tag = scene.at(&format!("{}/1", scene.manifests()));
    for path in [&layer, &tag] {
        fs::remove_file(path).expect("removing");
        let pipe = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, path, pipe, mode, 0).expect("making a pipe");
    }
    let mount = Mounted::start(scene.imgfs.images_dir(), &["--offline"]);
    for path in [scene.layer(), format!("{}/1", scene.manifests())] {
        let read = mount.cat(&path);
        assert!(!read.status.success() && read.stdout.is_empty(), "{path}");
    }
    drop(mount);
    assert!(scene.imgfs.verify().problems().len() >= 2);
    scene
        .imgfs
        .push(&["--dest", &format!("{}/other", scene.hostile.host()), &scene.name])
        .expect_code(1);
    scene.imgfs.pull(&[&scene.name]).success();
    assert_tree_sound(scene.imgfs.images_dir());
    scene.imgfs.verify().success();
}

#[test]
fn verify_names_links_and_a_repair_replaces_those_that_it_can() {
    require!(Mounts);
    let scene = Scene::new();
    let tag = format!("{}/1", scene.manifests());
    replace_by_link(&scene.at(&scene.layer()), scene.secret());
    replace_by_link(&scene.at(&tag), scene.secret());
    let output = scene.imgfs.verify().expect_code(1);
    let problems = output.problems();
    for path in [&scene.layer(), &tag] {
        let problem = problems.iter().find(|problem| problem["path"] == path.as_str());
        let problem = problem.unwrap_or_else(|| panic!("{path} in {output}"));
        assert_eq!(problem["kind"], "symlink", "{output}");
    }
    scene.imgfs.prune().expect_code(2).stderr_has("symbolic link");
    scene.imgfs.repair().success();
    scene.imgfs.verify().success();
    assert_tree_sound(scene.imgfs.images_dir());
    assert!(scene.at(&scene.layer()).symlink_metadata().expect("it is there").is_file());
    scene.assert_untouched();

    // What is behind a linked directory nobody knows.
    symlink(scene.outside.path(), scene.at("quay.io")).expect("linking");
    let output = scene.imgfs.verify().expect_code(1);
    assert_eq!(output.problems().len(), 1, "{output}");
    assert_eq!(output.problems()[0]["path"], "quay.io");
    scene.imgfs.prune().expect_code(2).stderr_has("quay.io is a symbolic link");
    fs::remove_file(scene.at("quay.io")).expect("removing");
    // A link that no image needs goes, and what it points at stays.
    let unneeded = scene.at("blobs").join(content::digest(b"nobody needs it"));
    symlink(scene.secret(), &unneeded).expect("linking");
    scene.imgfs.verify().expect_code(1);
    scene.imgfs.prune().success();
    assert!(unneeded.symlink_metadata().is_err());
    scene.assert_untouched();
}

#[test]
fn a_pull_writes_through_no_link() {
    require!(Mounts);
    let scene = Scene::new();
    let second = Image::new().layer(2, 300_000).build();
    second.push_to(&scene.hostile, "app", "2");
    let name = format!("{}/app:2", scene.hostile.host());
    let directories = [
        "blobs",
        "blobs/.imgfs",
        "blobs/.imgfs/partial",
        "blobs/.imgfs/scratch",
        "blobs/.imgfs/locks",
        &scene.hostile.host().clone(),
        &format!("{}/app", scene.hostile.host()),
        &scene.manifests(),
    ];
    for directory in directories {
        let path = scene.at(directory);
        replace_by_link(&path, scene.outside.path());
        let output = scene.imgfs.pull(&[&name]);
        assert!(matches!(output.code(), 1 | 2), "{directory}: {output}");
        let output = output.stderr_has(&format!("{} is a symbolic link", path.display()));
        output.stderr_has("mount --bind");
        scene.assert_untouched();
        fs::remove_file(&path).expect("removing");
        fs::rename(path.with_extension("moved"), &path).expect("renaming");
    }
    for file in ["blobs/.imgfs/records", "blobs/.imgfs/layout", "blobs/.imgfs/locks/tree"] {
        let path = scene.at(file);
        let content = fs::read(&path).expect("reading");
        replace_by_link(&path, scene.secret());
        let output = scene.imgfs.pull(&[&name]);
        assert!(matches!(output.code(), 1 | 2), "{file}: {output}");
        output.stderr_has(&format!("{} is a symbolic link", path.display()));
        scene.assert_untouched();
        fs::remove_file(&path).expect("removing");
        fs::write(&path, content).expect("writing");
    }
    // The files of an image themselves are replaced.
    let third = Image::new().layer(3, 300_000).build();
    third.push_to(&scene.hostile, "app", "3");
    let name = format!("{}/app:3", scene.hostile.host());
    let partial = scene.at("blobs/.imgfs/partial").join(&third.layers()[0]);
    symlink(scene.secret(), &partial).expect("linking");
    scene.imgfs.pull(&[&name]).expect_code(1).stderr_has("is a symbolic link");
    scene.assert_untouched();
    fs::remove_file(&partial).expect("removing");
    symlink(scene.secret(), scene.at("blobs").join(&third.layers()[0])).expect("linking");
    symlink(scene.secret(), scene.at(&format!("{}/3", scene.manifests()))).expect("linking");
    scene.imgfs.pull(&[&name]).success();
    scene.assert_untouched();
    assert_tree_sound(scene.imgfs.images_dir());
    scene.imgfs.verify().success();
}

#[test]
fn a_push_reads_through_no_link() {
    require!(Mounts);
    let scene = Scene::new();
    let dest = format!("{}/copy:1", scene.hostile.host());
    let layer = scene.at(&scene.layer());
    // The right content, so that nothing but the link can be what is wrong.
    let copy = scene.outside.path().join("layer");
    fs::copy(&layer, &copy).expect("copying");
    replace_by_link(&layer, &copy);
    let output = scene.imgfs.push(&["--dest", &dest, &scene.name]).expect_code(1);
    output.stderr_has("is a symbolic link");
    assert!(!scene.hostile.tags("copy").contains_key("1"));
    fs::remove_file(&layer).expect("removing");
    fs::copy(&copy, &layer).expect("copying");
    let manifests = scene.at(&scene.manifests());
    replace_by_link(&manifests, manifests.with_extension("moved"));
    let output = scene.imgfs.push(&["--dest", &dest, &scene.name]).expect_code(1);
    output.stderr_has("is a symbolic link");
}

/// Nobody takes a part for the whole.
#[test]
fn images_behind_a_link_are_not_left_out_in_silence() {
    let scene = Scene::new();
    let host = scene.hostile.host();
    let other = Image::new().layer(2, 1000).build();
    other.push_to(&scene.hostile, "other", "1");
    scene.imgfs.pull(&[format!("{host}/other:1")]).success();
    scene.imgfs.ls().success();
    let repository = scene.at(&format!("{host}/app"));
    let moved = scene.outside.path().join("app");
    fs::rename(&repository, &moved).expect("renaming");
    symlink(&moved, &repository).expect("linking");

    let listed = scene.imgfs.ls().expect_code(1).stderr_has("symbolic link");
    assert_eq!(listed.images().len(), 1, "{listed}");
    let dest = format!("{host}/copies/{{{{ .module.image.reference.repository }}}}:1");
    let pushed = scene.imgfs.push(&["--dest", &dest]).expect_code(1);
    let pushed = pushed.stderr_has(&format!("left out: {host}/app: a symbolic link"));
    assert_eq!(pushed.report()["left_out"], serde_json::json!([format!("{host}/app")]));
    assert_eq!(pushed.images().len(), 1, "{pushed}");
    assert!(scene.hostile.tags("copies/other").contains_key("1"));

    // A tag that cannot be read is one more, if it can be one of those that were asked for.
    fs::remove_file(&repository).expect("removing");
    fs::rename(&moved, &repository).expect("renaming");
    fs::write(scene.at(&format!("{}/1", scene.manifests())), "{").expect("writing");
    scene.imgfs.push(&["--dest", &dest]).expect_code(1).stderr_has("left out:");
    scene.imgfs.push(&["--src-pattern", "other", "--dest", &dest]).success();
}

/// The images_dir itself may be anywhere: its owner has said so.
#[test]
fn the_images_dir_may_be_a_link_itself() {
    require!(Mounts);
    let scene = Scene::new();
    let link = scene.outside.path().join("images");
    symlink(scene.imgfs.images_dir(), &link).expect("linking");
    let imgfs = Imgfs::new(&link);
    imgfs.pull(&[&scene.name]).success();
    imgfs.verify().success();
    let mount = Mounted::start(&link, &["--offline"]);
    let read = mount.cat(&scene.layer()).success();
    assert_eq!(content::digest(&read.stdout), scene.image.layers()[0]);
}

#[test]
fn the_cache_of_a_mount_is_written_through_no_link() {
    require!(Mounts);
    let scene = Scene::new();
    let second = Image::new().layer(2, 300_000).build();
    second.push_to(&scene.hostile, "app", "2");
    let name = format!("{}/app:2", scene.hostile.host());
    symlink(scene.outside.path(), scene.at("blobs/.imgfs/cache")).expect("linking");
    let tried = scene.imgfs.run(&[
        "mount".as_ref(),
        "--foreground".as_ref(),
        "--images-dir".as_ref(),
        scene.imgfs.images_dir().as_os_str(),
        scene.imgfs.home().as_os_str(),
    ]);
    assert_ne!(tried.code(), 0, "{tried}");
    scene.assert_untouched();
    fs::remove_file(scene.at("blobs/.imgfs/cache")).expect("removing");
    // Nor through one that comes later.
    let mount = Mounted::start(scene.imgfs.images_dir(), &["--manifests", &name]);
    mount.cat(&format!("{}/2", scene.manifests())).success();
    replace_by_link(&scene.at("blobs/.imgfs/cache/part"), scene.outside.path());
    let read = mount.cat(&format!("blobs/{}", second.layers()[0])).success();
    assert_eq!(content::digest(&read.stdout), second.layers()[0]);
    scene.assert_untouched();
    assert_eq!(fs::metadata(scene.secret()).expect("it is there").size(), SECRET.len() as u64);
}
