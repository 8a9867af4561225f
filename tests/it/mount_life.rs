//! Living with a mount: how it starts and ends, who lists it, who may have one.

use crate::support::cli::{Imgfs, Output};
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image};
use crate::support::mount::{Looking, Mounted, free, is_mounted, require_fuse};
use crate::support::need::require;
use crate::support::{content, text, wait_for};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// A mount point for processes in the background. Whatever is mounted there ends when dropped, which ends them.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        require_fuse();
        let directory = tempfile::tempdir().expect("making a temporary directory");
        std::fs::create_dir(directory.path().join("at")).expect("making a directory");
        Self { directory }
    }

    pub(crate) fn at(&self) -> PathBuf {
        self.directory.path().join("at")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        free(&self.at());
    }
}

/// A directory with one image in it, the path of that image's layer, and what is in there.
pub(crate) fn filled(hostile: &Hostile) -> (Imgfs, String, Built) {
    let image = Image::new().layer(1, 300_000).build();
    image.push_to(hostile, "app", "1");
    let imgfs = Imgfs::scratch().timeout(Duration::from_secs(20));
    imgfs.pull(&[format!("{}/app:1", hostile.host())]).success();
    let layer = format!("blobs/{}", image.layers()[0]);
    (imgfs, layer, image)
}

#[track_caller]
fn assert_readable(at: &Path, layer: &str) {
    let read = Looking::start("cat", &[at.join(layer)], None).wait().success();
    assert_eq!(format!("blobs/{}", content::digest(&read.stdout)), layer);
}

/// `imgfs mount` into the background.
pub(crate) fn mount(imgfs: &Imgfs, at: &Path, further: &[&str]) -> Output {
    let args = ["mount", "--offline", "--images-dir", text(imgfs.images_dir())];
    imgfs.run(&[&args[..], further, &[text(at)]].concat())
}

#[test]
fn it_goes_into_the_background_when_it_is_ready() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (imgfs, layer, _) = filled(&hostile);
    let place = Place::new();
    let at = place.at();
    mount(&imgfs, &at, &[]).success();
    assert!(is_mounted(&at));
    assert_readable(&at, &layer);

    let listed = imgfs.run(&["mounts"]).success();
    let line = listed.stdout.lines().find(|line| line.contains(text(&at)));
    assert!(line.is_some_and(|line| line.contains(text(imgfs.images_dir()))), "{listed}");
    let listed = imgfs.run(&["mounts", "--json"]).success();
    let mount_of = |event: &serde_json::Value| event["mountpoint"] == text(&at);
    let event = listed.events().into_iter().find(mount_of).expect("it is listed");
    assert_eq!(event["images_dir"], text(imgfs.images_dir()));
    assert_eq!(event["uid"], 0);

    let again = mount(&imgfs, &at, &[]).expect_code(2).stderr_has("already");
    assert!(again.stderr.contains("imgfs umount"), "{again}");

    let script = "exec 3<\"$1\"; touch \"$2\"; while [ -e \"$2\" ]; do sleep 0.05; done; cat <&3";
    let gate = place.directory.path().join("gate");
    let file = at.join(&layer);
    let user = Looking::start("sh", &["-c", script, "-", text(&file), text(&gate)], None);
    wait_for("the file to be open", SOON, || gate.exists());
    imgfs.run(&["umount", text(&at)]).expect_code(2).stderr_has("busy").stderr_has("--lazy");
    assert!(is_mounted(&at));
    imgfs.run(&["umount", "--lazy", text(&at)]).success();
    assert!(!is_mounted(&at));
    std::fs::remove_file(&gate).expect("removing");
    let read = user.wait().success();
    assert_eq!(format!("blobs/{}", content::digest(&read.stdout)), layer);

    mount(&imgfs, &at, &[]).success();
    imgfs.run(&["umount", text(&at)]).success();
    assert!(!is_mounted(&at));
    imgfs.run(&["umount", text(&at)]).expect_code(2).stderr_has("not mounted there");
    wait_for("the end of all processes", SOON, || !a_process_has(text(&at)));
}

/// Whether a process has this among its arguments.
fn a_process_has(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("listing processes");
    processes.flatten().any(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    })
}

#[test]
fn what_cannot_be_mounted_is_refused_with_the_reason() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (imgfs, _, _) = filled(&hostile);
    let place = Place::new();
    let directory = place.directory.path();
    let (file, full, inside) =
        (directory.join("file"), directory.join("full"), imgfs.images_dir().join("inside"));
    std::fs::write(&file, "").expect("writing");
    std::fs::create_dir_all(full.join("x")).expect("making a directory");
    std::fs::create_dir(&inside).expect("making a directory");
    for (at, reason) in [
        (directory.join("missing"), "does not exist"),
        (file.clone(), "not a directory"),
        (full, "not empty"),
        (inside, "is in"),
    ] {
        for further in [&[][..], &["--foreground"]] {
            let failed = mount(&imgfs, &at, further).stderr_has(reason).stderr_has(text(&at));
            assert_ne!(failed.code(), 0, "{failed}");
            assert_eq!(failed.stderr.matches(reason).count(), 1, "told once\n{failed}");
            assert!(!is_mounted(&at));
        }
    }
    // What only the process in the background finds out comes through, too.
    let log = file.join("log");
    let args = ["--log-file", text(&log)];
    mount(&imgfs, &place.at(), &args).expect_code(2).stderr_has("--log-file");
    mount(&imgfs, &place.at(), &["--manifests", "UPPER//x"]).stderr_has("UPPER");
    for shown in [place.at(), imgfs.images_dir().join("blobs")] {
        mount(&imgfs, &place.at(), &["--cache-dir", text(&shown)]).stderr_has("--cache-dir");
    }
    let layout = format!("oci:{}", text(&directory.join("layout")));
    let copy = ["copy", "--from", text(imgfs.images_dir()), "--to", &layout, "--all"];
    imgfs.run(&copy).success();
    for write in ["local", "through"] {
        mount(&imgfs, &place.at(), &["--from", &layout, "--write", write])
            .expect_code(2)
            .stderr_has("is only read");
    }
    mount(&imgfs, &place.at(), &["-o", "nonsense=1"]).expect_code(2).stderr_has("cannot mount");
    assert!(!is_mounted(&place.at()));
}

#[test]
fn signals_end_it_and_a_killed_one_is_cleaned_up() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (imgfs, layer, _) = filled(&hostile);
    let mut mount = Mounted::start(imgfs.images_dir(), &["--offline"]);
    assert_readable(&mount.at(), &layer);
    assert_eq!(mount.stop().code(), Some(0));

    // While somebody has a file open.
    mount.restart();
    let gate = imgfs.home().join("gate");
    let script = "exec 3<\"$1\"; touch \"$2\"; while [ -e \"$2\" ]; do sleep 0.05; done; cat <&3";
    let file = mount.path(&layer);
    let user = mount.begin("sh", &["-c", script, "-", file.as_str(), text(&gate)]);
    wait_for("the file to be open", SOON, || gate.exists());
    let id = i32::try_from(mount.id()).expect("small");
    let id = rustix::process::Pid::from_raw(id).expect("positive");
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("signalling");
    wait_for("the mount to go", SOON, || !mount.is_mounted());
    std::fs::remove_file(&gate).expect("removing");
    let read = user.wait().success();
    assert_eq!(format!("blobs/{}", content::digest(&read.stdout)), layer);
    assert_eq!(mount.ends().code(), Some(0));

    mount.restart();
    // The kernel may answer for it then.
    std::fs::metadata(mount.at()).expect("asking");
    mount.kill9();
    assert!(mount.is_mounted(), "a stale mount is left");
    mount.run("ls", &[mount.path("")]).fails_with("not connected");
    mount.restart();
    assert!(mount.stderr().contains("a killed imgfs has left its mount"), "{}", mount.stderr());
    assert_readable(&mount.at(), &layer);

    // And so does the form that goes into the background; `umount` knows a stale one, too.
    std::fs::metadata(mount.at()).expect("asking");
    mount.kill9();
    let at = mount.at();
    let warned = self::mount(&imgfs, &at, &[]).success();
    assert!(warned.stderr.contains("a killed imgfs has left its mount"), "{warned}");
    assert_eq!(warned.stderr.matches("a killed imgfs").count(), 1, "{warned}");
    assert_readable(&at, &layer);
    imgfs.run(&["umount", text(&at)]).success();
    mount.restart();
    mount.kill9();
    imgfs.run(&["umount", text(&at)]).success();
    assert!(!mount.is_mounted());
}

#[test]
fn a_line_of_fstab_and_a_supervisor() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (imgfs, layer, _) = filled(&hostile);
    let place = Place::new();
    let program = place.directory.path().join("mount.imgfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_imgfs"), &program).expect("linking");
    let socket = place.directory.path().join("notify");
    let notified = UnixDatagram::bind(&socket).expect("binding");
    notified.set_read_timeout(Some(SOON)).expect("setting a timeout");
    let at = place.at();
    let options = "ro,nofail,_netdev,x-systemd.automount,offline,uid=77,gid=78,cache_size=1G";
    let notify = format!("NOTIFY_SOCKET={}", text(&socket));
    let images = text(imgfs.images_dir());
    let args = [notify.as_str(), text(&program), images, text(&at), "-n", "-o", options];
    Looking::start("env", &args, None).wait().success();
    let mut message = [0; 64];
    let length = notified.recv(&mut message).expect("a message");
    assert_eq!(message[..length].trim_ascii_end(), b"READY=1");
    assert_readable(&at, &layer);
    let stat = Looking::start("stat", &["-c", "%u %g", text(&at.join(&layer))], None);
    assert_eq!(stat.wait().success().text(), "77 78\n");
    imgfs.run(&["umount", text(&at)]).success();

    let missing = place.directory.path().join("missing");
    let failing = [images, text(&missing)];
    let failed = Looking::start(text(&program), &failing, None).wait();
    assert!(!failed.status.success());
    assert!(failed.stderr.contains("does not exist"), "{}", failed.stderr);
}

#[test]
fn it_may_be_told_to_end_as_soon_as_it_is_there() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (imgfs, _, _) = filled(&hostile);
    let mut mount = Mounted::start(imgfs.images_dir(), &["--offline"]);
    for _ in 0..30 {
        assert_eq!(mount.stop().code(), Some(0));
        mount.restart();
    }
}

/// What a user does who is not root, in a namespace of mounts where everybody may use `/dev/fuse`.
const AS_NOBODY: &str = r#"
set -eu
place=$1 program=$2 layer=$3
mount --make-rprivate /
mknod "$place/fuse" c 10 229
chmod 666 "$place/fuse"
mount --bind "$place/fuse" /dev/fuse
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH="$PATH" HOME="$place/home" "$@"; }
as_nobody "$program" mount --offline --images-dir "$place/images" "$place/at"
grep -q " $place/at .*user_id=65534" /proc/self/mountinfo
as_nobody stat -c 'owner %u' "$place/at/$layer"
as_nobody sha256sum "$place/at/$layer"
as_nobody "$program" mounts
as_nobody "$program" umount "$place/at"
if grep -q " $place/at " /proc/self/mountinfo; then exit 1; fi
as_nobody "$program" mount --offline --foreground --images-dir "$place/images" "$place/at" &
while ! grep -q " $place/at " /proc/self/mountinfo; do sleep 0.05; done
sleep 0.2
kill -TERM $(as_nobody pgrep -u 65534 -f -- "--foreground --images-dir $place/images")
wait
if grep -q " $place/at " /proc/self/mountinfo; then exit 1; fi
echo ended
"#;

#[test]
fn whoever_is_not_root_mounts_with_a_helper() {
    require!(Mounts);
    use std::os::unix::fs::{PermissionsExt, chown};
    let hostile = Hostile::start();
    let (imgfs, layer, _) = filled(&hostile);
    let place = Place::new();
    let root = place.directory.path();
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
            .expect("setting a mode");
    };
    open(root);
    // The binary may be where nobody else can look.
    let program = root.join("imgfs");
    std::fs::copy(env!("CARGO_BIN_EXE_imgfs"), &program).expect("copying");
    open(&program);
    std::fs::create_dir(root.join("home")).expect("making a directory");
    let copied =
        Looking::start("cp", &["-a", text(imgfs.images_dir()), text(&root.join("images"))], None);
    copied.wait().success();
    for owned in ["at", "home"] {
        chown(root.join(owned), Some(65534), Some(65534)).expect("changing the owner");
    }
    let args = ["-m", "--", "sh", "-c", AS_NOBODY, "-", text(root), text(&program), &layer];
    let done = Looking::start("unshare", &args, None).wait();
    let said = done.success();
    let text = said.text();
    assert!(text.contains("owner 65534"), "{text}\n{}", said.stderr);
    let digest = layer.trim_start_matches("blobs/sha256:");
    assert!(text.contains(digest) && text.ends_with("ended\n"), "{text}\n{}", said.stderr);
}
