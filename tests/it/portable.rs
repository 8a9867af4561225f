//! Directories for file systems that take few names, and directories that are other tools'.

use crate::support::cli::{Imgfs, SAME};
use crate::support::hostile::Hostile;
use crate::support::image::{
    Artifact, Built, Image, cosign_signature, digest_tag, push_referrers_with_fallback_tag, single,
};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::text;
use crate::support::tree::{self, everything_under};
use crate::support::written;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tags that are one name, or none, where capitals make no difference, names do not end in dots, and devices have
/// names.
const TAGS: [&str; 6] = ["A", "a", "v1.0-RC1", "v1.", "con", "layout"];

/// A registry with all that is hard to name, and the names of its images.
fn registry() -> (Hostile, Vec<String>) {
    let hostile = Hostile::start();
    for (seed, tag) in (1..).zip(TAGS) {
        single(seed).push_to(&hostile, "team/app", tag);
    }
    let signed = single(20);
    signed.push_to(&hostile, "aux/con.tools", "1");
    let signature = digest_tag(signed.digest(), ".sig");
    cosign_signature(&signed).push_to(&hostile, "aux/con.tools", &signature);
    let referrer = Artifact::new("application/vnd.example.sbom").subject(&signed);
    let referrer = referrer.blob("text/plain", b"parts").build();
    referrer.push_by_digest(&hostile, "aux/con.tools");
    push_referrers_with_fallback_tag(&hostile, "aux/con.tools", signed.digest(), &[&referrer]);
    let mut names: Vec<String> =
        TAGS.iter().map(|tag| format!("{}/team/app:{tag}", hostile.host())).collect();
    names.push(format!("{}/aux/con.tools:1", hostile.host()));
    (hostile, names)
}

/// Names that some file system does not take, or takes for one.
fn unportable(root: &Path) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let is_bad = |path: &PathBuf| {
        let below = path.strip_prefix(root).expect("below").to_str().expect("text").to_owned();
        let name = below.rsplit('/').next().expect("a name");
        let base = name.split('.').next().unwrap_or_default().to_lowercase();
        name.contains(['<', '>', ':', '"', '\\', '|', '?', '*'])
            || name.ends_with(['.', ' '])
            || ["con", "aux", "nul", "prn", "com1", "lpt1"].contains(&base.as_str())
            || !seen.insert(below.to_lowercase())
    };
    everything_under(root).into_iter().filter(is_bad).collect()
}

fn names_of(imgfs: &Imgfs) -> BTreeSet<String> {
    let images = imgfs.ls().success().images();
    assert!(images.iter().all(|image| image["complete"] == true), "{images:?}");
    images.iter().map(|image| image["image"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_portable_directory_has_names_for_everything_and_all_commands_read_it() {
    let (hostile, names) = registry();
    let imgfs = Imgfs::scratch();
    let args: Vec<&str> = names.iter().map(String::as_str).collect();
    imgfs.pull(&[&["--layout", "portable"], &args[..]].concat()).success();
    assert_eq!(unportable(imgfs.images_dir()), Vec::<PathBuf>::new());
    let before = tree::snapshot(imgfs.images_dir());

    // It is what it is, without being told; also when nobody has written it down.
    for is_remembered in [true, false] {
        if !is_remembered {
            fs::remove_file(imgfs.images_dir().join("blobs/.imgfs/layout")).expect("it is there");
        }
        let again = imgfs.pull(&args).success();
        assert_eq!(again.number("fetched_blobs"), 0);
        assert!(names_of(&imgfs).is_superset(&names.iter().cloned().collect()));
        assert_eq!(imgfs.verify().success().problems().len(), 0);
        assert_eq!(imgfs.prune().success().number("removed_bytes"), 0);
    }
    assert_eq!(tree::snapshot(imgfs.images_dir()), before);
    imgfs.pull(&["--layout", "kubekey", args[0]]).expect_code(2).stderr_has("layout `portable`");
    let missing = format!("{}/team/app:V1.", hostile.host());
    imgfs
        .run(&["cat", "--offline", "--images-dir", text(imgfs.images_dir()), &missing, "/x"])
        .expect_code(1);

    // What comes out of it is what came in.
    let target = Hostile::start();
    imgfs.push(&["--dest", &format!("{}/{SAME}", target.host())]).success();
    let (one, other) = (Imgfs::scratch(), Imgfs::scratch());
    let pull = |imgfs: &Imgfs, host: &str| {
        let names = names.iter().map(|name| name.replace(&hostile.host(), host));
        imgfs.pull(&names.collect::<Vec<_>>()).success();
        let files = tree::snapshot(imgfs.images_dir());
        let files = files.into_iter().filter(|(path, _)| !path.contains(".imgfs"));
        files.map(|(path, look)| (path.replace(host, "host"), look)).collect::<Vec<_>>()
    };
    assert_eq!(pull(&one, &target.host()), pull(&other, &hostile.host()));
    let back = Imgfs::scratch();
    back.copy(&["--from", text(imgfs.images_dir()), "--to", text(back.images_dir()), "--all"])
        .success();
    assert_eq!(names_of(&back), names_of(&other));
    let copied = Imgfs::scratch();
    let to = text(copied.images_dir());
    copied
        .copy(&["--from", text(other.images_dir()), "--to", to, "--all", "--layout", "portable"])
        .success();
    assert_eq!(names_of(&copied), names_of(&other));
    assert_eq!(unportable(copied.images_dir()), Vec::<PathBuf>::new());
}

#[test]
fn a_mount_shows_the_same_whichever_layout_is_on_the_disk() {
    require!(Mounts);
    let (_hostile, names) = registry();
    let mut found = Vec::new();
    for layout in ["documented", "portable"] {
        let imgfs = Imgfs::scratch();
        let args: Vec<&str> = names.iter().map(String::as_str).collect();
        imgfs.pull(&[&["--layout", layout], &args[..]].concat()).success();
        let mounted = Mounted::start(imgfs.images_dir(), &["--offline"]);
        let paths = mounted.find();
        let files: Vec<String> =
            paths.iter().filter(|path| path.contains("/app/manifests/")).cloned().collect();
        let contents: Vec<Vec<u8>> =
            files.iter().map(|path| fs::read(mounted.at().join(path)).expect("reading")).collect();
        assert_eq!(files.len(), TAGS.len(), "{files:?}");
        let blobs = paths.iter().filter(|path| path.starts_with("blobs/sha256:"));
        for blob in blobs {
            let content = fs::read(mounted.at().join(blob)).expect("reading");
            assert_eq!(crate::support::content::digest(&content), blob["blobs/".len()..]);
        }
        found.push((paths, contents));
    }
    assert!(found[0] == found[1], "{:?}\n{:?}", found[0].0, found[1].0);
}

#[test]
fn a_mix_of_layouts_is_refused() {
    let hostile = Hostile::start();
    single(1).push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    for layout in ["documented", "portable"] {
        let imgfs = Imgfs::scratch();
        imgfs.pull(&["--layout", layout, &name]).success();
        let blobs = imgfs.images_dir().join("blobs");
        let stray = if layout == "portable" { "sha256:" } else { "sha256-" };
        fs::write(blobs.join(format!("{stray}{}", "0".repeat(64))), "").expect("writing");
        let before = tree::snapshot(imgfs.images_dir());
        imgfs.ls().expect_code(2).stderr_has("one layout in a directory");
        imgfs.pull(&[&name]).expect_code(2).stderr_has("one layout in a directory");
        imgfs.prune().expect_code(2);
        assert_eq!(tree::snapshot(imgfs.images_dir()), before);
    }
}

/// A file system with few names, mounted as long as this lives.
struct Stick {
    place: tempfile::TempDir,
    mount: Vec<String>,
}

impl Stick {
    fn new(make: &[&str], mount: &[&str]) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        let (disk, at) = (place.path().join("disk"), place.path().join("at"));
        fs::create_dir(&at).expect("making a directory");
        fs::File::create(&disk).and_then(|file| file.set_len(40 << 20)).expect("making a disk");
        let made = Command::new(make[0]).args(&make[1..]).arg(&disk).output().expect("running");
        assert!(made.status.success(), "{made:?}");
        let mount = ["-o", "loop"].iter().chain(mount).map(|arg| (*arg).to_owned());
        let mount = mount.chain([text(&disk).to_owned(), text(&at).to_owned()]).collect();
        let stick = Self { place, mount };
        stick.plug_in();
        stick
    }

    fn plug_in(&self) {
        let done = Command::new("mount").args(&self.mount).output().expect("running mount");
        assert!(done.status.success(), "{done:?}");
    }

    fn pull_out(&self) -> bool {
        Command::new("umount").arg(self.at()).status().is_ok_and(|status| status.success())
    }

    fn at(&self) -> PathBuf {
        self.place.path().join("at")
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        self.pull_out();
    }
}

#[test]
fn a_stick_takes_portable_directories_and_no_others() {
    require!(Sticks);
    let exfat = Stick::new(&["mkfs.exfat"], &["-t", "exfat-fuse"]);
    let ntfs = Stick::new(&["mkfs.ntfs", "-F", "-Q"], &["-t", "ntfs-3g", "-o", "windows_names"]);
    let (hostile, names) = registry();
    let args: Vec<&str> = names.iter().map(String::as_str).collect();
    for stick in [exfat, ntfs] {
        let imgfs = Imgfs::new(stick.at().join("images"));
        let refused = imgfs.pull(&args).expect_code(2).stderr_has("no colons");
        refused.stderr_has("--layout portable");
        assert_eq!(everything_under(imgfs.images_dir()), Vec::<PathBuf>::new());
        imgfs.pull(&[&["--layout", "portable"], &args[..]].concat()).success();
        // Whatever is remembered of inode numbers and times is worth nothing now.
        assert!(stick.pull_out());
        stick.plug_in();
        assert!(names_of(&imgfs).is_superset(&names.iter().cloned().collect()));
        let verified = imgfs.verify().success();
        assert_eq!(verified.number("hashed_bytes"), verified.number("checked_bytes"));
        assert_eq!(imgfs.pull(&args).success().number("fetched_blobs"), 0);
        let path = text(imgfs.images_dir()).to_owned();
        imgfs.run(&["ls", "--images-dir", &path, "--offline", &format!("{}:/", names[0])]);
        let target = Hostile::start();
        imgfs.push(&["--dest", &format!("{}/{SAME}", target.host())]).success();
        let other = Imgfs::scratch();
        let host = hostile.host();
        let renamed = names.iter().map(|name| name.replace(&host, &target.host()));
        other.pull(&renamed.collect::<Vec<_>>()).success();
        assert_eq!(imgfs.prune().success().number("removed_bytes"), 0);
    }
}

/// An older imgfs, or a documented pull that was interrupted, has left nothing but its note.
#[test]
fn a_portable_directory_is_not_copied_into_a_mount_file_by_file() {
    require!(Mounts);
    let images = written::zoo();
    let source = written::directory(&images);
    let stick = Imgfs::scratch();
    let (from, to) = (text(source.images_dir()), text(stick.images_dir()));
    stick.copy(&["--from", from, "--to", to, "--all", "--layout", "portable"]).success();
    let target = Imgfs::scratch();
    let mut mount = written::local(target.images_dir());
    let all = format!("{to}/.");
    mount.run("cp", &["-a", &all, &mount.path("")]).fails_with("Invalid argument");
    let way_out = ["layout `portable`", "imgfs copy --from DIR --to IMAGES_DIR --all"];
    assert!(!mount.logged(&way_out).is_empty(), "{:?}", mount.log());
    // Tags wait for what has not come; manifests by their digests have not become tags.
    let (waiting, refused): (Vec<_>, Vec<_>) =
        written::pending(&mount).into_iter().partition(|(_, state)| state == "waiting");
    assert_eq!(waiting.len(), images.len(), "{waiting:?}");
    assert!(waiting.iter().all(|(name, _)| !name.contains("sha256")), "{waiting:?}");
    assert!(refused.iter().all(|(name, state)| state == "refused" && name.contains("sha256")));
    assert_eq!(mount.stop().code(), Some(0));
    assert_eq!(target.ls().images().len(), 0);
}

#[test]
fn an_empty_directory_can_still_become_portable() {
    let imgfs = Imgfs::scratch();
    let state = imgfs.images_dir().join("blobs/.imgfs");
    fs::create_dir_all(&state).expect("making a directory");
    fs::write(state.join("layout"), "documented\n").expect("writing");
    let hostile = Hostile::start();
    single(1).push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&["--layout", "portable", &name]).success();
    assert_eq!(unportable(imgfs.images_dir()), Vec::<PathBuf>::new());
    assert_eq!(fs::read_to_string(state.join("layout")).expect("reading"), "portable\n");
    imgfs.pull(&["--layout", "documented", &name]).expect_code(2);
}

#[test]
fn a_layout_of_another_tool_is_named_and_left_alone() {
    let hostile = Hostile::start();
    single(1).push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let image: Built = Image::new().layer(1, 100).build();
    image.write_oci_layout(imgfs.images_dir(), "1");
    let before = everything_under(imgfs.images_dir());
    let dir = text(imgfs.images_dir()).to_owned();
    let target = format!("registry://{}", hostile.host());
    for args in [
        vec!["ls", "--images-dir", &dir],
        vec!["verify", "--images-dir", &dir],
        vec!["prune", "--images-dir", &dir],
        vec!["pull", "--plain-http", "--images-dir", &dir, &name],
        vec!["pull", "--plain-http", "--dry-run", "--images-dir", &dir, &name],
        vec!["push", "--plain-http", "--images-dir", &dir, "--dest", &name],
        vec!["copy", "--plain-http", "--from", &dir, "--to", &target, "--all"],
        vec!["copy", "--plain-http", "--from", &target, "--to", &dir, "app:1"],
        vec!["rm", "--images-dir", &dir, &name],
        vec!["tag", "--images-dir", &dir, &name, "quay.io/a/b:1"],
        vec!["cat", "--plain-http", "--images-dir", &dir, &name, "/x"],
    ] {
        let refused = imgfs.run(&args);
        assert_ne!(refused.code(), 0, "{refused}");
        refused.stderr_has("OCI image layout");
    }
    assert_eq!(everything_under(imgfs.images_dir()), before);
}
