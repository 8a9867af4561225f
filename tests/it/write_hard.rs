//! Writing through a mount when things go wrong, and when many do it at once.

use crate::support::cli::Imgfs;
use crate::support::content::digest;
use crate::support::disk::{PullableDisk, SmallDisk};
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::tree::{self, assert_tree_sound};
use crate::support::written::{self, HOST, begin_python, directory, local, pending, python};
use crate::support::{scale, seed, text, wait_for};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

fn empty() -> Imgfs {
    let imgfs = Imgfs::scratch();
    std::fs::create_dir(imgfs.images_dir()).expect("making a directory");
    imgfs
}

/// Images that share layers.
fn many(number: u64) -> Vec<(&'static str, Built)> {
    let names: Vec<&'static str> =
        (0..number).map(|n| &*Box::leak(format!("team/app{n}:1").into_boxed_str())).collect();
    let image = |n: u64| Image::new().layer(n, 400_000).layer(n / 2 + 1000, 300_000).build();
    names.into_iter().zip(0..).map(|(name, n)| (name, image(n))).collect()
}

/// Copies a directory by redirections.
const REDIRECTIONS: &str = "cd $1; find . -path ./blobs/.imgfs -prune -o -type f -print | while read file; do \
                            mkdir -p $2/${file%/*}; cat $file >$2/$file; done";

#[test]
fn kills_in_the_middle_leave_nothing_wrong() {
    require!(Mounts);
    let source = directory(&many(8));
    let target = empty();
    let mut mount = local(target.images_dir());
    let from = format!("{}/", text(source.images_dir()));
    let mut random = seed() | 1;
    let mut started = Instant::now();
    for kill in 0..scale(12, 50) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Sometimes nothing is left to be done: then it starts over.
        if kill % 4 == 3 {
            mount.run("rm", &["-rf", &mount.path(HOST)]).success();
        }
        let running = match kill % 3 {
            0 => mount.begin("rsync", &["-a", &from, &mount.path("")]),
            // Over what is there, with descriptors that the shell copies and closes.
            1 => mount.begin("bash", &["-ec", REDIRECTIONS, "bash", &from, &mount.path("")]),
            _ => mount.begin("cp", &["-a", &format!("{from}."), &mount.path("")]),
        };
        std::thread::sleep(Duration::from_micros(random % 120_000));
        mount.kill9();
        drop(running);
        assert_tree_sound(target.images_dir());
        mount.restart();
        assert!(started.elapsed() < Duration::from_secs(60), "it takes too long");
        started = Instant::now();
    }
    mount.run("rsync", &["-a", &from, &mount.path("")]).success();
    assert_eq!(pending(&mount), []);
    assert_eq!(tree::snapshot(target.images_dir()), tree::snapshot(source.images_dir()));
    target.verify().success();
    assert_eq!(mount.stop().code(), Some(0));
    let left = tree::everything_under(&target.images_dir().join("blobs/.imgfs/pending"));
    let left: Vec<_> = left.iter().filter(|p| p.is_file() && !p.ends_with("lock")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn sixteen_write_at_once() {
    require!(Mounts);
    let source = directory(&many(6));
    let target = empty();
    let mount = local(target.images_dir());
    let from = format!("{}/.", text(source.images_dir()));
    // All write the same, and each something of its own.
    let program = "
import shutil, threading, random
source, number = sys.argv[2], int(sys.argv[3])
random.seed(number)
files = []
for top, dirs, names in os.walk(source):
    if '.imgfs' in dirs: dirs.remove('.imgfs')
    files += [os.path.relpath(os.path.join(top, name), source) for name in names]
random.shuffle(files)
for name in files:
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, 'wb') as f: f.write(open(os.path.join(source, name), 'rb').read())
own = os.urandom(200_000); path = 'blobs/sha256:' + hashlib.sha256(own).hexdigest()
with open(path, 'wb') as f: f.write(own)
assert open(path, 'rb').read() == own
";
    let at = mount.path("");
    let program = format!("import os, sys, hashlib\nos.chdir(sys.argv[1])\n{program}");
    let writers: Vec<_> = (0..16)
        .map(|number| {
            let number = number.to_string();
            mount.begin("python3", &["-c", &program, &at, &from, &number])
        })
        .collect();
    for writer in writers {
        writer.wait().success();
    }
    assert_eq!(pending(&mount), [], "{:?}", mount.log());
    assert_tree_sound(target.images_dir());
    target.verify().success();
    assert_eq!(target.ls().images().len(), 6);
    let blobs = tree::blobs(source.images_dir()).len();
    assert_eq!(tree::blobs(target.images_dir()).len(), blobs + 16);
}

#[test]
fn two_mounts_and_a_pull_fill_one_directory() {
    require!(Mounts);
    let hostile = Hostile::start();
    let images = many(6);
    for (name, image) in &images {
        image.push_to(&hostile, name.trim_end_matches(":1"), "1");
    }
    let source = directory(&images);
    let target = empty();
    let mounts = [local(target.images_dir()), local(target.images_dir())];
    let names: Vec<String> =
        images.iter().map(|(name, _)| format!("{}/{name}", hostile.host())).collect();
    let from = format!("{}/.", text(source.images_dir()));
    // Of two that make the same directory at the same moment, cp takes it ill if it is the other.
    let only_dirs = ["-a", "--include=*/", "--exclude=*", &from, &mounts[0].path("")];
    mounts[0].run("rsync", &only_dirs).success();
    let pulling = target.spawn_pull(&names);
    let first = mounts[0].begin("cp", &["-a", &from, &mounts[0].path("")]);
    let second = mounts[1].begin("rsync", &["-a", &from, &mounts[1].path("")]);
    pulling.wait().success();
    let first = first.wait();
    // It looks first, and creates then what was not there. By then the others may have brought it.
    if !first.status.success() {
        let strange = first.stderr.lines().find(|line| !line.ends_with(": File exists"));
        assert_eq!(strange, None);
        mounts[0].run("cp", &["-a", &from, &mounts[0].path("")]).success();
    }
    second.wait().success();
    for mount in &mounts {
        assert_eq!(pending(mount), [], "{:?}", mount.log());
        let tag = format!("{HOST}/{}/manifests/1", images[0].0.trim_end_matches(":1"));
        assert_eq!(mount.cat(&tag).success().stdout, images[0].1.root().bytes);
    }
    assert_tree_sound(target.images_dir());
    target.verify().success();
    assert_eq!(target.ls().images().len(), 12);
    // What one of them removes, the other does not show, at the latest when the kernel asks again.
    let tag = format!("{HOST}/{}/manifests/1", images[1].0.trim_end_matches(":1"));
    mounts[0].run("rm", &[mounts[0].path(&tag)]).success();
    mounts[1].forget();
    mounts[1].cat(&tag).fails_with("No such file");
}

#[test]
fn a_full_disk_is_said_at_the_write() {
    require!(Mounts);
    let disk = SmallDisk::mount(12).expect("mounting a tmpfs, which takes root");
    let images = disk.path().join("images");
    std::fs::create_dir(&images).expect("making a directory");
    let small = [("team/app:1", Image::new().layer(1, 1_000_000).build())];
    let source = directory(&small);
    let mount = Mounted::start(&images, &["--write", "local", "--offline"]);
    let from = format!("{}/.", text(source.images_dir()));
    mount.run("cp", &["-a", &from, &mount.path("")]).success();
    let program = "
content = os.urandom(20_000_000)
path = 'blobs/sha256:' + hashlib.sha256(content).hexdigest()
fd = os.open(path, os.O_CREAT | os.O_WRONLY)
try:
    done = 0
    while done < len(content): done += os.write(fd, content[done:done + 500_000])
    sys.exit('there was room')
except OSError as e: assert e.errno == errno.ENOSPC, e
try: os.posix_fallocate(fd, 0, 20_000_000); sys.exit('there was room')
except OSError as e: assert e.errno == errno.ENOSPC, e
try: os.close(fd); sys.exit('taken')
except OSError as e: assert e.errno == errno.EIO, e
assert not os.path.exists(path)
import time
for _ in range(1000):
    if os.statvfs('.').f_bavail * os.statvfs('.').f_frsize > 5_000_000: break
    time.sleep(0.01)
else: sys.exit('its space is not given back')
content = content[:2_000_000]
with open('blobs/sha256:' + hashlib.sha256(content).hexdigest(), 'wb') as f: f.write(content)
";
    python(&mount, program, &[]).success();
    assert!(!mount.logged(&["No space left"]).is_empty(), "{:?}", mount.log());
    assert_tree_sound(&images);
    let target = Imgfs::new(&images);
    target.verify().success();
    assert_eq!(tree::blobs(&images).len(), 3);
}

#[test]
fn who_waits_for_the_disk_to_write_delays_nobody() {
    require!(Mounts);
    require!(Loops);
    let disk = PullableDisk::make(96);
    let images = disk.path().join("images");
    std::fs::create_dir(&images).expect("making a directory");
    let mount = local(&images);
    let source = directory(&[("team/app:1", Image::new().layer(1, 1000).build())]);
    let from = format!("{}/.", text(source.images_dir()));
    mount.run("cp", &["-a", &from, &mount.path("")]).success();
    let tag = format!("{HOST}/team/app/manifests/1");
    // More of them than there are threads for what waits for the disk.
    let program = "
import threading
paths = ['blobs/sha256:' + hashlib.sha256(b'%d' % n).hexdigest() for n in range(200)]
def write(path):
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.pwrite(fd, bytes(65536), 0)
    all_write.wait()
    while not os.path.exists(sys.argv[2]): os.pwrite(fd, bytes(65536), 0)
    os._exit(0)
all_write = threading.Barrier(201)
for path in paths: threading.Thread(target=write, args=[path]).start()
all_write.wait()
open(sys.argv[3], 'w').close()
";
    let notes = tempfile::tempdir().expect("making a temporary directory");
    let [end, begun] = ["end", "begun"].map(|name| notes.path().join(name));
    let writers = begin_python(&mount, program, &[text(&end), text(&begun)]);
    wait_for("all to write", Duration::from_secs(20), || begun.exists());
    let frozen = disk.freeze();
    // By now all of them wait.
    std::thread::sleep(Duration::from_millis(200));
    mount.watched(Duration::from_secs(10), || {
        mount.run("cat", &[mount.path(&tag)]).success();
        mount.run("ls", &["-lR", &mount.path("")]).success();
    });
    drop(frozen);
    std::fs::write(&end, "").expect("writing");
    writers.wait_from_now().success();
}

#[test]
fn what_is_flushed_is_there_after_the_plug_is_pulled() {
    require!(Mounts);
    require!(Loops);
    let mut disk = PullableDisk::make(96);
    let images = disk.path().join("images");
    std::fs::create_dir(&images).expect("making a directory");
    let image = Image::new().layer(1, 1_000_000).build();
    let source = directory(&[("team/app:1", image.clone())]);
    let mut mount = local(&images);
    let from = format!("{}/.", text(source.images_dir()));
    mount.run("cp", &["-a", &from, &mount.path("")]).success();
    // A file that has been published, and a directory.
    let tag = format!("{HOST}/team/app/manifests/1");
    mount.run("sync", &[mount.path(&tag)]).success();
    mount.run("sync", &[mount.path(&format!("{HOST}/team/app/manifests"))]).success();
    disk.pull_plug_and(|| mount.kill9());
    assert_tree_sound(&images);
    Imgfs::new(&images).verify().success();
    let found = std::fs::read(images.join(&tag)).expect("the tag");
    assert!(found == image.root().bytes);
}

#[test]
fn others_read_and_write_as_far_as_they_are_let() {
    require!(Mounts);
    let target = directory(&[("team/app:1", Image::new().layer(1, 1000).build())]);
    let content = b"something";
    let blob = format!("blobs/{}", digest(content));
    let others = ["--write", "local", "--offline", "--allow-other"];
    for (further, may_write) in
        [(&[][..], false), (&["--umask", "002", "--gid", "65534"][..], true)]
    {
        let mount = Mounted::start(target.images_dir(), &[&others[..], further].concat());
        let place = mount.at().parent().expect("a directory").to_owned();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&place, open).expect("setting a mode");
        let as_nobody = |program: &str| {
            let user = ["--reuid", "65533", "--regid", "65534", "--clear-groups", "--", "sh", "-c"];
            mount.run("setpriv", &[&user[..], &[program]].concat())
        };
        let tag = mount.path(&format!("{HOST}/team/app/manifests/1"));
        as_nobody(&format!("cat {tag}")).success();
        let write = format!("printf something > {}", mount.path(&blob));
        let (write, remove) = (as_nobody(&write), as_nobody(&format!("rm -f {tag}.no; rm {tag}")));
        if may_write {
            write.success();
            remove.success();
            let mode = mount.run("stat", &["-c", "%a %g", &mount.path(&blob)]).success().text();
            assert_eq!(mode, "664 65534\n");
        } else {
            write.fails_with("Permission denied");
            remove.fails_with("Permission denied");
            let mode = mount.run("stat", &["-c", "%a", &mount.path(""), &tag]).success().text();
            assert_eq!(mode, "755\n644\n");
        }
    }
    assert_tree_sound(target.images_dir());
}

#[test]
fn prune_waits_for_what_is_being_written() {
    require!(Mounts);
    let target = empty();
    let mount = local(target.images_dir());
    let images = many(1);
    let files = written::files_of(&images[0].1, "team/app", "1");
    let place = tempfile::tempdir().expect("making a temporary directory");
    let from = written::file(place.path(), "blob", &files[0].1);
    mount.run("cp", &[text(&from), &mount.path(&files[0].0)]).success();
    target.prune().expect_code(2).stderr_has("is filling this tree");
}

#[test]
fn options_of_writing_have_to_make_sense() {
    require!(Mounts);
    let target = empty();
    let place = tempfile::tempdir().expect("making a temporary directory");
    for (args, said) in [
        (&["--write", "local,through"][..], "either local or through"),
        (&["--write", "delete"], "--write through,delete"),
        (&["--write", "local", "--dest", "x"], "--write through"),
        (&["--write", "local", "--no-keep"], "--write through"),
        (&["--write", "through", "--offline"], "--offline"),
        (&["--write", "local", "--image", "a.io/b:1"], "--image"),
        (&["--dest", "x"], "--write"),
        (&["--write", "local", "--umask", "9"], "022"),
    ] {
        let images = text(target.images_dir());
        let mount = ["mount", "--images-dir", images, text(place.path())];
        let output = target.run(&[&mount[..], args].concat()).expect_code(2);
        assert!(output.stderr.contains(said), "{args:?}: {output}");
    }
}
