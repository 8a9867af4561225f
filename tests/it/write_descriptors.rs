//! Writing through a mount with descriptors that are copied, given away and closed early, and names that change
//! while something waits.

use crate::support::cli::Imgfs;
use crate::support::image::Image;
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::text;
use crate::support::tree::{self, assert_tree_sound};
use crate::support::written::{HOST, directory, file, local, pending, python};
use std::path::Path;

/// Two tags of one repository, and the content of the second one as a file.
struct Tags {
    target: Imgfs,
    mount: Mounted,
    place: tempfile::TempDir,
    first: String,
    second: String,
    new: Vec<u8>,
}

impl Tags {
    fn start() -> Self {
        let image = |layer| Image::new().layer(layer, 200_000).build();
        let images = [("team/app:1", image(1)), ("team/app:2", image(2))];
        let target = directory(&images);
        let mount = local(target.images_dir());
        let [first, second] = ["1", "2"].map(|tag| format!("{HOST}/team/app/manifests/{tag}"));
        let new = images[1].1.root().bytes.clone();
        let place = tempfile::tempdir().expect("making a temporary directory");
        Self { target, mount, place, first, second, new }
    }

    /// The first tag has its own content again.
    fn reset(&self, old: &Path) {
        self.mount.run("cp", &[text(old), &self.mount.path(&self.first)]).success();
        assert_ne!(self.mount.cat(&self.first).success().stdout, self.new);
    }
}

#[test]
fn who_has_inherited_a_descriptor_may_go_on() {
    require!(Mounts);
    let target = Imgfs::scratch();
    std::fs::create_dir(target.images_dir()).expect("making a directory");
    let mount = local(target.images_dir());
    let program = "
content = os.urandom(300_000)
path = 'blobs/sha256:' + hashlib.sha256(content).hexdigest()
fd = os.open(path, os.O_CREAT | os.O_WRONLY)
(has_begun, begun), (may_go_on, go_on) = os.pipe(), os.pipe()
if os.fork() == 0:
    os.write(fd, content[:100_000])
    os.write(begun, b'x')
    os.read(may_go_on, 1)
    os.write(fd, content[100_000:])
    os._exit(0)
os.read(has_begun, 1)
os.close(fd)
assert os.path.exists(path)
os.write(go_on, b'x')
os.wait()
for _ in range(1000):
    if os.path.exists(path) and open(path, 'rb').read() == content: break
    import time; time.sleep(0.01)
else: sys.exit('it has not been published')
";
    python(&mount, program, &[]).success();
    assert_eq!(mount.log(), Vec::<String>::new());
}

#[test]
fn what_is_closed_before_it_is_whole_is_not_lost() {
    require!(Mounts);
    let tags = Tags::start();
    let Tags { target, mount, first, new, .. } = &tags;
    let old = mount.cat(first).success().stdout;
    let old = file(tags.place.path(), "old", &old);
    let from = file(tags.place.path(), "new", new);
    for script in [
        "cat $1 >$2",
        "dd if=$1 of=$2 status=none",
        "{ head -c 100 $1; tail -c +101 $1; } >$2",
        "exec 3>$2; head -c 100 $1 >&3; tail -c +101 $1 >&3; exec 3>&-",
        "exec 3>$2; printf %s \"$(head -c 100 $1)\" >&3; printf %s \"$(tail -c +101 $1)\" >&3; exec 3>&-",
    ] {
        for shell in ["bash", "dash"] {
            tags.reset(&old);
            mount.run(shell, &["-ec", script, shell, text(&from), &mount.path(first)]).success();
            assert_eq!(mount.cat(first).success().stdout, *new, "{shell}: {script}");
        }
    }
    let prelude = "
import subprocess, threading
new, tag = open(sys.argv[2], 'rb').read(), sys.argv[3]
";
    for program in [
        // A copy of the descriptor is closed first, with half of it written.
        "
fd = os.open(tag, os.O_WRONLY | os.O_TRUNC); copy = os.dup(fd)
os.write(fd, new[:100]); os.close(copy)
os.write(fd, new[100:]); os.close(fd)
",
        // Another program gets it, and it is closed here at once.
        "
f = open(tag, 'wb')
cat = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=f)
f.close(); cat.communicate(new); assert cat.returncode == 0
",
        // The same with a beginning. It looks wrong when it is closed here, and nothing is lost by that.
        "
f = open(tag, 'wb', buffering=0); f.write(new[:100])
cat = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=f)
try: f.close()
except OSError as e: assert e.errno == errno.EIO, e
cat.communicate(new[100:]); assert cat.returncode == 0
",
        // Several threads, each with a copy.
        "
fd = os.open(tag, os.O_WRONLY | os.O_TRUNC)
def write(at):
    copy = os.dup(fd); os.pwrite(copy, new[at:at + 50], at); os.close(copy)
writers = [threading.Thread(target=write, args=[at]) for at in range(0, len(new), 50)]
for writer in writers: writer.start()
for writer in writers: writer.join()
os.close(fd)
",
    ] {
        tags.reset(&old);
        python(mount, &format!("{prelude}{program}"), &[text(&from), first]).success();
        assert_eq!(mount.cat(first).success().stdout, *new, "{program}");
    }
    // Nothing has been said but of the one that could be judged too early only.
    assert!(mount.log().len() <= 1, "{:?}", mount.log());
    assert_eq!(pending(mount), []);
    assert_tree_sound(target.images_dir());
    target.verify().success();
}

#[test]
fn what_a_shell_does_not_hear_of_is_told_at_the_end() {
    require!(Mounts);
    let tags = Tags::start();
    let Tags { target, mount, first, second, new, .. } = &tags;
    let before = tree::snapshot(target.images_dir());
    // A shell looks at no error of close(2).
    let script = "echo '{' >$1; : >$2";
    mount.run("bash", &["-ec", script, "bash", &mount.path(first), &mount.path(second)]).success();
    let refused = |tag: &String| (tag.clone(), "refused".to_owned());
    assert_eq!(pending(mount), [refused(first), refused(second)]);
    assert_eq!(tree::snapshot(target.images_dir()), before, "both have what they had");
    assert_eq!(mount.cat(second).success().stdout, *new);
    assert_eq!(mount.log().len(), 2, "{:?}", mount.log());
    let from = file(tags.place.path(), "new", new);
    mount.run("cp", &[text(&from), &mount.path(second)]).success();
    assert_eq!(pending(mount), [refused(first)]);
    let mounts = Imgfs::scratch().run(&["mounts"]).success().stdout;
    assert!(
        mounts.contains(&format!("{first} was refused: the manifest is malformed")),
        "{mounts}"
    );
    let said = Imgfs::scratch().run(&["umount", "--strict", text(&mount.at())]).expect_code(1);
    assert!(said.stderr.contains(&format!("{first} was refused: ")), "{said}");
}

#[test]
fn a_tag_that_was_renamed_is_there_at_once() {
    require!(Mounts);
    let tags = Tags::start();
    let Tags { target, mount, first, second, new, .. } = &tags;
    let dir = mount.path(&format!("{HOST}/team/app/manifests"));
    let script = "
cd $1; cp 1 old; cp 2 new
cp 1 a; cp 2 b; cat a b >/dev/null; stat a b >/dev/null
mv b a; cmp a new; [ ! -e b ]; stat a >/dev/null; touch -d 2020-01-01 a; cmp a new
ln -f 1 a; cmp a old
mv a c; cp 2 c; cmp c new
mv c d; cat 1 >d; cmp d old
mv d e; mv e f; ln f g; rm f; cmp g old; mv 2 g; cmp g new; cp g 2
rm old new g
";
    mount.run("bash", &["-exc", script, "bash", &dir]).success();
    assert_eq!(mount.log(), Vec::<String>::new());
    assert_eq!(pending(mount), []);
    assert_eq!(mount.cat(second).success().stdout, *new);
    assert_ne!(mount.cat(first).success().stdout, *new);
    assert_tree_sound(target.images_dir());
    assert_eq!(target.ls().success().images().len(), 2);
}

#[test]
fn times_belong_to_what_was_written_last() {
    require!(Mounts);
    let image = |layer| Image::new().layer(layer, 200_000).build();
    let (old, new) =
        (directory(&[("team/app:1", image(1))]), directory(&[("team/app:1", image(2))]));
    let tag = format!("{HOST}/team/app/manifests/1");
    let touch = |imgfs: &Imgfs, day: &str| {
        let path = imgfs.images_dir().join(&tag);
        let touched = std::process::Command::new("touch").arg("-d").arg(day).arg(path).status();
        assert!(touched.expect("running touch").success());
    };
    touch(&old, "2020-01-01");
    touch(&new, "2021-01-01");
    let target = Imgfs::scratch();
    std::fs::create_dir(target.images_dir()).expect("making a directory");
    let mut mount = local(target.images_dir());
    let rsync = |mount: &Mounted, from: &Imgfs, options: &[&str]| {
        let (from, to) = (format!("{}/", text(from.images_dir())), mount.path(""));
        let args = ["-aiO", "--inplace", "--exclude=.imgfs"]
            .iter()
            .chain(options)
            .copied()
            .chain([&*from, &*to]);
        mount.run("rsync", &args.collect::<Vec<_>>()).success().text()
    };
    rsync(&mount, &old, &[]);
    let is_old = |mount: &Mounted| {
        assert_eq!(rsync(mount, &old, &[]), "", "what is published has its own time");
        assert_eq!(pending(mount), [(tag.clone(), "waiting".to_owned())]);
    };
    // The tag comes before what it names, and is not taken for what is there already.
    for _ in 0..2 {
        let done = rsync(&mount, &new, &["--exclude=/blobs"]);
        assert!(done.contains(&tag), "{done}");
        is_old(&mount);
    }
    assert_eq!(mount.stop().code(), Some(0));
    mount.restart();
    is_old(&mount);
    rsync(&mount, &new, &["--exclude=/*.example"]);
    assert_eq!(pending(&mount), []);
    assert_eq!(rsync(&mount, &new, &[]), "");
    assert_tree_sound(target.images_dir());
}

#[test]
fn what_has_come_while_nothing_was_mounted_completes_what_waited() {
    require!(Mounts);
    let source = directory(&[("team/app:1", Image::new().layer(1, 200_000).build())]);
    let target = Imgfs::scratch();
    std::fs::create_dir(target.images_dir()).expect("making a directory");
    let mut mount = local(target.images_dir());
    let from = source.images_dir().join(HOST);
    mount.run("rsync", &["-a", text(&from), &mount.path("")]).success();
    assert_eq!(pending(&mount).len(), 1);
    assert_eq!(mount.stop().code(), Some(0));
    let blobs = source.images_dir().join("blobs");
    let mut copy = std::process::Command::new("cp");
    copy.arg("-a").arg(blobs).arg(target.images_dir());
    assert!(copy.status().expect("running cp").success());
    mount.restart();
    let said = Imgfs::scratch().run(&["umount", "--strict", text(&mount.at())]).success();
    assert!(!said.stderr.contains("waits"), "{said}");
    let tag = target.images_dir().join(HOST).join("team/app/manifests/1");
    assert!(tag.is_file());
    assert_tree_sound(target.images_dir());
}
