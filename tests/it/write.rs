//! Writing through a mount into the directory of images, with the tools of every day.

use crate::support::cli::Imgfs;
use crate::support::content::digest;
use crate::support::image::Image;
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::tree::{self, assert_modes_and_times, assert_tree_sound};
use crate::support::written::{self, HOST, directory, file, files_of, local, pending, python};
use crate::support::{text, wait_for};
use std::path::Path;
use std::time::Duration;

fn empty() -> Imgfs {
    let imgfs = Imgfs::scratch();
    std::fs::create_dir(imgfs.images_dir()).expect("making a directory");
    imgfs
}

/// What `rsync` would do.
#[track_caller]
fn rsync(mount: &Mounted, from: &Path, options: &[&str]) -> String {
    let (from, to) = (format!("{}/", text(from)), mount.path(""));
    let args: Vec<&str> = options.iter().copied().chain([&*from, &*to]).collect();
    mount.run("rsync", &args).success().text()
}

#[test]
fn cp_of_a_directory_of_images_is_an_import() {
    require!(Mounts);
    let source = directory(&written::zoo());
    let target = empty();
    let mut mount = local(target.images_dir());
    let from = format!("{}/.", text(source.images_dir()));
    mount.run("cp", &["-a", &from, &mount.path("")]).success();
    assert_eq!(pending(&mount), []);
    assert_eq!(tree::snapshot(target.images_dir()), tree::snapshot(source.images_dir()));
    assert_tree_sound(target.images_dir());
    assert_modes_and_times(target.images_dir());
    target.verify().success();
    assert_eq!(rsync(&mount, source.images_dir(), &["-ai"]), "", "nothing is left to be done");
    mount.run("cp", &["-a", &from, &mount.path("")]).success();
    assert_eq!(tree::snapshot(target.images_dir()), tree::snapshot(source.images_dir()));
    assert_eq!(mount.stop().code(), Some(0));
    assert_eq!(mount.log(), Vec::<String>::new());
    // What has been hashed while it was written need not be hashed once more.
    let output = target.verify().success();
    assert_eq!(output.number("hashed_bytes"), 0, "{output}");
    // Nothing is left of what was on its way.
    let left = tree::everything_under(&target.images_dir().join("blobs/.imgfs/pending"));
    let left: Vec<_> = left.iter().filter(|p| p.is_file() && !p.ends_with("lock")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn files_may_come_in_any_order_and_what_waits_survives_a_restart() {
    require!(Mounts);
    let images = written::zoo();
    let files = files_of(&images[0].1, "team/app", "1");
    let target = empty();
    let place = tempfile::tempdir().expect("making a temporary directory");
    let mut mount = local(target.images_dir());
    let copy = |mount: &Mounted, (path, content): &(String, Vec<u8>)| {
        let from = file(place.path(), "file", content);
        let above = Path::new(path).parent().expect("a directory");
        mount.run("mkdir", &["-p", &mount.path(text(above))]).success();
        mount.run("cp", &[text(&from), &mount.path(path)]).success();
    };
    let (manifests, blobs): (Vec<_>, Vec<_>) =
        files.iter().partition(|(path, _)| path.contains("/manifests/"));
    // The index before its children, and these before their blobs.
    for written in manifests.iter().rev() {
        copy(&mount, written);
    }
    let tag = format!("{HOST}/team/app/manifests/1");
    let is_waiting = |mount: &Mounted| pending(mount).contains(&(tag.clone(), "waiting".into()));
    assert!(is_waiting(&mount), "{:?}", pending(&mount));
    assert_eq!(pending(&mount).len(), manifests.len());
    let published = tree::everything_under(&target.images_dir().join(HOST));
    assert!(!published.iter().any(|path| path.is_file()), "nothing has its name yet");
    // Everybody sees it, and nobody reads it.
    let size = mount.run("stat", &["-c", "%s", &mount.path(&tag)]).success().text();
    assert_eq!(size.trim(), manifests.last().expect("one").1.len().to_string());
    mount.cat(&tag).fails_with("busy");
    let mounts = Imgfs::scratch().run(&["mounts"]).success().stdout;
    assert!(mounts.contains(&format!("{}: {tag} waits for", text(&mount.at()))), "{mounts}");

    for restart in [Mounted::kill9 as fn(&mut Mounted), |mount| assert!(mount.stop().success())] {
        restart(&mut mount);
        mount.restart();
        assert!(is_waiting(&mount), "{:?}", pending(&mount));
    }
    let (last, others) = blobs.split_last().expect("some");
    for written in others {
        copy(&mount, written);
    }
    assert!(is_waiting(&mount));
    let status = written::status(&mount);
    let first = status["pending"].as_array().expect("a list").iter().find(|file| {
        file["missing"]["blobs"].as_array().is_some_and(|missing| !missing.is_empty())
    });
    let first = first.expect("something lacks a blob");
    assert_eq!(first["missing"]["blobs"][0].as_str(), last.0.strip_prefix("blobs/"));
    copy(&mount, last);
    assert_eq!(pending(&mount), []);
    assert_tree_sound(target.images_dir());
    target.verify().success();
    assert_eq!(mount.cat(&tag).success().stdout, manifests.last().expect("one").1);
}

#[test]
fn what_another_process_brings_completes_what_waits() {
    require!(Mounts);
    let images = [("team/app:1", Image::new().layer(1, 300_000).build())];
    let source = directory(&images);
    let target = empty();
    let mut mount = local(target.images_dir());
    let files = files_of(&images[0].1, "team/other", "7");
    let (tag, content) = files.last().expect("a tag");
    let place = tempfile::tempdir().expect("making a temporary directory");
    let from = file(place.path(), "manifest", content);
    mount.run("mkdir", &["-p", &mount.path(&format!("{HOST}/team/other/manifests"))]).success();
    mount.run("cp", &[text(&from), &mount.path(tag)]).success();
    assert_eq!(pending(&mount).len(), 1);
    // Ending it is said, and with --strict an error; what waits goes on to wait.
    let said = Imgfs::scratch().run(&["umount", "--strict", text(&mount.at())]).expect_code(1);
    assert!(said.stderr.contains(&format!("{tag} waits for 2 blobs")), "{said}");
    assert_eq!(mount.ends().code(), Some(0));
    mount.restart();
    assert_eq!(pending(&mount).len(), 1);
    let (from, to) = (source.images_dir().as_os_str(), target.images_dir().as_os_str());
    source.copy(&["--from".as_ref(), from, "--to".as_ref(), to, "--all".as_ref()]).success();
    wait_for("the tag", Duration::from_secs(20), || pending(&mount).is_empty());
    assert_tree_sound(target.images_dir());
    assert_eq!(mount.cat(tag).success().stdout, *content);
    assert!(
        Imgfs::scratch()
            .run(&["umount", "--strict", text(&mount.at())])
            .success()
            .stderr
            .is_empty()
    );
}

#[test]
fn wrong_content_has_no_name() {
    require!(Mounts);
    let target = empty();
    let mount = local(target.images_dir());
    let place = tempfile::tempdir().expect("making a temporary directory");
    let wrong = file(place.path(), "wrong", b"something else");
    let named = digest(b"something");
    let blob = format!("blobs/{named}");
    mount.run("cp", &[text(&wrong), &mount.path(&blob)]).fails_with("Input/output error");
    mount.run("stat", &[&mount.path(&blob)]).fails_with("No such file");
    let found = digest(b"something else");
    assert_eq!(mount.logged(&[&blob, &found, &named]).len(), 1, "{:?}", mount.log());
    // A manifest that is none, or another one than its name says.
    mount.run("mkdir", &["-p", &mount.path("a.io/b/manifests")]).success();
    for name in ["v1", &digest(b"x")] {
        let path = mount.path(&format!("a.io/b/manifests/{name}"));
        mount.run("cp", &[text(&wrong), &path]).fails_with("Input/output error");
        mount.run("stat", &[&path]).fails_with("No such file");
    }
    let index = br#"{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}"#;
    let other = file(place.path(), "index", index);
    let path = mount.path(&format!("a.io/b/manifests/{}", digest(b"x")));
    mount.run("cp", &[text(&other), &path]).fails_with("Input/output error");
    mount.run("cp", &[text(&other), &mount.path("a.io/b/manifests/v1")]).success();
    // The same by renaming, which leaves the file where it was.
    let program = "
open('blobs/.tmp', 'wb').write(b'something else')
try: os.rename('blobs/.tmp', sys.argv[2]); sys.exit('renamed')
except OSError as e: assert e.errno == errno.EIO, e
assert not os.path.exists(sys.argv[2])
assert open('blobs/.tmp', 'rb').read() == b'something else'
os.remove('blobs/.tmp')
open('blobs/.tmp', 'wb').write(b'something')
os.rename('blobs/.tmp', sys.argv[2])
assert open(sys.argv[2], 'rb').read() == b'something'
assert os.listdir('blobs') == [sys.argv[3]]
";
    python(&mount, program, &[&blob, &named]).success();
    // Writing it once more, and that ends wrong, leaves what is there.
    mount.run("cp", &[text(&wrong), &mount.path(&blob)]).fails_with("Input/output error");
    assert_eq!(mount.cat(&blob).success().stdout, b"something");
    let too_large = "
try: open('a.io/b/manifests/v2', 'wb').write(b'x' * (5 << 20)); sys.exit('written')
except OSError as e: assert e.errno == errno.EFBIG, e
";
    python(&mount, too_large, &[]).success();
    assert_tree_sound(target.images_dir());
}

#[test]
fn what_can_be_created_and_what_cannot() {
    require!(Mounts);
    let target = empty();
    let mount = local(target.images_dir());
    let program = "
def refused(number, what, *args):
    try: what(*args)
    except OSError as e: assert e.errno == number, (args, e)
    else: sys.exit('not refused: %s %s' % (what, args))
digest = 'sha256:' + hashlib.sha256(b'x').hexdigest()
os.makedirs('a.io/b/manifests', exist_ok=True)
for path in ['README', 'a.io/x', 'a.io/b/x', 'blobs/x', 'blobs/sha256:12', 'a.io/b/manifests/-x', '.hidden']:
    refused(errno.EINVAL, open, path, 'w')
for path in ['UPPER', '.git', 'blobs/x', 'a.io/.x']:
    refused(errno.EINVAL, os.mkdir, path)
refused(errno.EINVAL, os.symlink, 'v1', 'a.io/b/manifests/v2')
refused(errno.EINVAL, os.mkfifo, 'a.io/b/manifests/v2')
for path in ['.imgfs/x', '.imgfs/pending.json']:
    refused(errno.EROFS, open, path, 'w')
refused(errno.EROFS, os.remove, '.imgfs/pending.json')
# Created, and nothing written: it stays, and is nothing yet.
open('a.io/b/manifests/v1', 'w').close()
open('blobs/' + digest, 'w').close()
assert os.listdir('a.io/b/manifests') == ['v1']
assert os.stat('a.io/b/manifests/v1').st_size == 0
refused(errno.EEXIST, os.open, 'blobs/' + digest, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
open('blobs/' + digest, 'wb').write(b'x')
assert open('blobs/' + digest, 'rb').read() == b'x'
os.remove('a.io/b/manifests/v1')
assert os.listdir('a.io/b/manifests') == []
# Whatever begins with a dot, and stays as it is.
with open('blobs/.x', 'w') as f: f.write('one')
with open('blobs/.x', 'a') as f: f.write('two')
assert open('blobs/.x').read() == 'onetwo'
os.mkdir('blobs/.d'); open('blobs/.d/f', 'w').write('f')
refused(errno.ENOTEMPTY, os.rmdir, 'blobs/.d')
refused(errno.EXDEV, os.rename, 'blobs/.d', 'blobs/.e')
os.rename('blobs/.d/f', 'blobs/.f'); os.rmdir('blobs/.d')
assert sorted(os.listdir('blobs')) == ['.f', '.x', digest]
# Names are no longer than elsewhere.
refused(errno.ENAMETOOLONG, open, 'blobs/' + 'x' * 300, 'w')
# An empty blob is whole as soon as it is closed.
nothing = 'blobs/sha256:' + hashlib.sha256(b'').hexdigest()
open(nothing, 'w').close()
assert open(nothing).read() == ''
# Directories are what they are elsewhere.
refused(errno.EEXIST, os.mkdir, 'a.io/b')
refused(errno.ENOTEMPTY, os.rmdir, 'a.io')
refused(errno.EXDEV, os.rename, 'a.io', 'b.io')
os.rmdir('a.io/b/manifests'); os.rmdir('a.io/b'); os.rmdir('a.io')
# What modes and owners there are is not for us to say.
os.chmod('blobs/' + digest, 0o600); os.chown('blobs/' + digest, 1, 1)
assert os.stat('blobs/' + digest).st_mode & 0o777 == 0o644
space = os.statvfs('.')
assert space.f_bavail > 0 and space.f_bfree > 0
";
    python(&mount, program, &[]).success();
    assert!(!mount.logged(&["README: nothing of a directory of images"]).is_empty());
    let published = tree::blobs(target.images_dir());
    assert_eq!(published.len(), 2, "{published:?}");
}

#[test]
fn tags_are_made_moved_and_removed_as_files() {
    require!(Mounts);
    let images = [
        ("team/app:1", Image::new().layer(1, 100_000).build()),
        ("team/app:2", Image::new().layer(2, 100_000).build()),
    ];
    let target = directory(&images);
    let mount = local(target.images_dir());
    let dir = mount.path(&format!("{HOST}/team/app/manifests"));
    let other = mount.path(&format!("{HOST}/other/app/manifests"));
    let at = |name: &str| format!("{dir}/{name}");
    let (one, two) = (images[0].1.root().bytes.clone(), images[1].1.root().bytes.clone());
    let read = |path: &str| mount.run("cat", &[path]).success().stdout;
    mount.run("cp", &[&at("1"), &at("stable")]).success();
    mount.run("ln", &[&at("1"), &at("linked")]).success();
    mount.run("cp", &["-l", &at("1"), &at("linked-too")]).success();
    mount.run("cp", &["--reflink=auto", &at("1"), &at("reflinked")]).success();
    mount.run("install", &["-m", "600", &at("1"), &at("installed")]).success();
    for name in ["stable", "linked", "linked-too", "reflinked", "installed"] {
        assert_eq!(read(&at(name)), one, "{name}");
    }
    // In another repository, blobs and all, without a byte being copied.
    mount.run("mkdir", &["-p", &other]).success();
    mount.run("cp", &[&at("2"), &format!("{other}/2")]).success();
    assert_eq!(read(&format!("{other}/2")), two);
    mount.run("mv", &[&at("linked"), &at("moved")]).success();
    mount.run("mv", &["-n", &at("2"), &at("moved")]);
    assert_eq!(read(&at("moved")), one);
    mount.run("mv", &[&at("linked-too"), &format!("{other}/moved")]).success();
    // A tag is replaced at once, and who has the old one open keeps it.
    let program = "
old = open(sys.argv[2], 'rb'); first = old.read(3)
new = open(sys.argv[3], 'rb').read()
out = open(sys.argv[2], 'wb'); out.write(new[:10]); out.flush()
assert open(sys.argv[2], 'rb').read(3) == first, 'as long as the new one is not whole'
out.write(new[10:]); out.close()
assert open(sys.argv[2], 'rb').read() == new
rest = old.read()
assert first + rest != new and len(first + rest) > 100
";
    python(&mount, program, &[&at("stable"), &at("2")]).success();
    assert_eq!(read(&at("stable")), two);
    // With a temporary file, as editors and git do it.
    let program = "
new = open(sys.argv[3], 'rb').read(); d = os.path.dirname(sys.argv[2])
open(d + '/.new', 'wb').write(new)
os.link(d + '/.new', d + '/by-link'); os.rename(d + '/.new', sys.argv[2])
assert open(d + '/by-link', 'rb').read() == new and open(sys.argv[2], 'rb').read() == new
";
    python(&mount, program, &[&at("edited"), &at("1")]).success();
    assert_eq!(pending(&mount), []);
    assert_tree_sound(target.images_dir());
    target.verify().success();
    let listed = target.ls().images().len();
    assert_eq!(listed, 2 + 6 + 2, "{}", target.ls());
    mount.run("rm", &[&at("moved")]).success();
    mount.run("stat", &[&at("moved")]).fails_with("No such file");
    assert_eq!(target.ls().images().len(), listed - 1);
    mount.run("rm", &["-r", &mount.path(&format!("{HOST}/team"))]).success();
    assert_eq!(target.ls().images().len(), 2);
    assert_eq!(mount.run("ls", &[mount.path(HOST)]).success().text(), "other\n");
}

#[test]
fn what_is_needed_is_busy_and_the_rest_goes() {
    require!(Mounts);
    let images = written::zoo();
    let target = directory(&images);
    let mount = local(target.images_dir());
    let app = &images[0].1;
    let dir = mount.path(&format!("{HOST}/team/app/manifests"));
    let child = format!("{dir}/{}", app.manifests[0].digest);
    mount.run("rm", &[&child]).fails_with("busy");
    let blob = mount.path(&format!("blobs/{}", app.blobs.keys().next().expect("a blob")));
    mount.run("rm", &[&blob]).fails_with("busy");
    assert!(!mount.logged(&["names it"]).is_empty());
    // Written by its digest as well, the index still goes before its children.
    let root = format!("{dir}/{}", app.digest());
    mount.run("cp", &[&format!("{dir}/1"), &root]).success();
    let nested = mount.path(&format!("{HOST}/deep/er/nested/manifests"));
    for repository in ["team/app", "deep", "team", "charts", ""] {
        mount.run("rm", &["-r", &mount.path(&format!("{HOST}/{repository}"))]).success();
    }
    mount.run("stat", &[&format!("{nested}/1")]).fails_with("No such file");
    assert_eq!(mount.run("ls", &[mount.path("")]).success().text(), "blobs\n");
    assert_eq!(target.ls().images().len(), 0);
    let all = format!("rm {}/*", mount.path("blobs"));
    mount.run("sh", &["-c", &all]).success();
    assert_eq!(tree::blobs(target.images_dir()).len(), 0);
}

#[test]
fn rsync_finds_nothing_to_do_the_second_time() {
    require!(Mounts);
    let image = Image::new().layer(3, 500_000).build();
    let hub = Image::new().layer(4, 100_000).layer(3, 500_000).build();
    for generation in 0..3 {
        let source = tempfile::tempdir().expect("making a temporary directory");
        match generation {
            0 => {
                tree::kubekey_g0(source.path(), "calico/cni", "v3", &image);
                tree::kubekey_g0(source.path(), "library/redis", "7", &hub);
            }
            1 => {
                tree::kubekey_g1(source.path(), "quay.io", "calico/cni", "v3", &image);
                tree::kubekey_g1(source.path(), "registry-1.docker.io", "library/redis", "7", &hub);
            }
            _ => {
                tree::kubekey_g2(source.path(), "quay.io", "calico/cni", "v3", &image);
                tree::kubekey_g2(source.path(), "registry-1.docker.io", "library/redis", "7", &hub);
                tree::kubekey_g2(
                    source.path(),
                    "registry-1.docker.io",
                    "library/redis",
                    "8",
                    &image,
                );
            }
        }
        let images = if generation == 2 { 3 } else { 2 };
        for options in [&["-a"][..], &["-a", "--inplace"], &["-a", "--delete-after", "--checksum"]]
        {
            let target = empty();
            let mut mount = local(target.images_dir());
            assert_eq!(rsync(&mount, source.path(), options), "");
            assert_eq!(pending(&mount), [], "{generation} {options:?}");
            assert_eq!(target.ls().success().images().len(), images, "{generation}");
            target.verify().success();
            let again = ["-ai", "--delete-after", "--no-perms"];
            assert_eq!(rsync(&mount, source.path(), &again), "", "{generation} {options:?}");
            // Also after a restart, and for whoever looks at the directory itself.
            assert_eq!(mount.stop().code(), Some(0));
            mount.restart();
            assert_eq!(rsync(&mount, source.path(), &again), "", "{generation} {options:?}");
        }
    }
}

#[test]
fn times_of_tags_are_kept_where_all_tags_are_one_file() {
    require!(Mounts);
    let image = |n| Image::new().layer(n, 1000).build();
    let images = [1, 2].map(image);
    let target = empty();
    let source = tempfile::tempdir().expect("making a temporary directory");
    for (tag, image) in ["1", "2"].into_iter().zip(&images) {
        tree::kubekey_g2(target.images_dir(), HOST, "team/app", "of-kubekey", image);
        tree::kubekey_g1(source.path(), HOST, "team/app", tag, image);
    }
    // What others change is seen at once.
    let options = ["--write", "local", "--offline", "--tag-ttl", "1ms"];
    let mut mount = Mounted::start(target.images_dir(), &options);
    let again = ["-ai", "--no-perms"];
    rsync(&mount, source.path(), &["-a"]);
    assert_eq!(rsync(&mount, source.path(), &again), "");
    let manifests = format!("{HOST}/team/app/manifests");
    assert!(!target.images_dir().join(&manifests).join("1").exists(), "it is in the map");
    assert_eq!(mount.stop().code(), Some(0));
    mount.restart();
    assert_eq!(rsync(&mount, source.path(), &again), "", "also after a restart");
    // Setting a time is remembered as well, and moving a tag forgets it.
    let tag = mount.path(&format!("{manifests}/1"));
    let time = || mount.run("stat", &["-c", "%Y", &tag]).success().text();
    mount.run("touch", &["-d", "@1234567890", &tag]).success();
    assert_eq!(time(), "1234567890\n");
    let moved = mount.path(&format!("{manifests}/moved"));
    mount.run("mv", &[&tag, &moved]).success();
    mount.run("mv", &[&moved, &tag]).success();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(time(), "1234567890\n", "a name takes its time along");
    mount.run("cp", &[&mount.path(&format!("{manifests}/2")), &tag]).success();
    assert_ne!(time(), "1234567890\n");
    assert!(rsync(&mount, source.path(), &again).contains("/1"), "it is brought back");
    assert_eq!(rsync(&mount, source.path(), &again), "");
    target.verify().success();
    // What was removed by somebody else is not taken to be here.
    let map = target.images_dir().join(&manifests).join("layout");
    std::fs::write(&map, "{}").expect("writing a map");
    assert!(rsync(&mount, source.path(), &again).contains("/1"), "it is brought back");
}

#[test]
fn a_tag_of_a_map_is_what_the_map_says_now() {
    require!(Mounts);
    let images = [1, 2].map(|n| Image::new().layer(n, 1000).build());
    for options in [&["--offline"][..], &[]] {
        let target = empty();
        for (tag, image) in ["1", "2"].into_iter().zip(&images) {
            tree::kubekey_g2(target.images_dir(), HOST, "team/app", tag, image);
        }
        let args = ["--write", "local", "--tag-ttl", "1ms", "--connect-timeout", "1s"];
        let mount = Mounted::start(target.images_dir(), &[&args[..], options].concat());
        let at = |tag: &str| format!("{HOST}/team/app/manifests/{tag}");
        let copy = |from: &str, to: &str| {
            mount.run("cp", &[mount.path(&at(from)), mount.path(&at(to))]).success();
        };
        let is = |tag: &str, image: usize| {
            let found = mount.cat(&at(tag)).success().stdout;
            assert!(found == images[image].root().bytes, "{tag} is another one");
        };
        copy("1", "x");
        is("x", 0);
        copy("2", "x");
        is("x", 1);
        copy("x", "y");
        is("y", 1);
        // Somebody else moves one.
        let manifests = target.images_dir().join(HOST).join("team/app/manifests");
        tree::set_layout(&manifests, "x", images[0].digest());
        is("x", 0);
        copy("x", "z");
        is("z", 0);
        target.verify().success();
    }
}

#[test]
fn an_rsync_that_is_killed_is_continued() {
    require!(Mounts);
    let source = directory(&[("team/app:1", Image::new().layer(9, 30_000_000).build())]);
    let target = empty();
    let mount = local(target.images_dir());
    let (from, to) = (format!("{}/", text(source.images_dir())), mount.path(""));
    for options in
        [&["-a", "--partial"][..], &["-a", "--inplace"], &["-a", "--partial-dir=.partial"]]
    {
        let slow = ["--bwlimit=20000"];
        let args: Vec<&str> = options.iter().copied().chain(slow).chain([&*from, &*to]).collect();
        let mut running =
            mount.begin("timeout", &[&["-s", "INT", "0.3", "rsync"], &args[..]].concat());
        while running.is_running() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!running.wait().status.success());
        assert_eq!(target.ls().images().len(), 0);
        assert_tree_sound(target.images_dir());
    }
    mount.run("rsync", &["-a", &from, &to]).success();
    assert_eq!(tree::snapshot(target.images_dir()), tree::snapshot(source.images_dir()));
    target.verify().success();
}

#[test]
fn files_are_written_in_every_way_that_there_is() {
    require!(Mounts);
    let target = empty();
    let mount = local(target.images_dir());
    let program = "
import random
random.seed(7)
content = random.randbytes(6_000_000)
holes = bytearray(5_000_000); holes[4_000_000:4_000_004] = b'data'; holes = bytes(holes)
def name(bytes): return 'blobs/sha256:' + hashlib.sha256(bytes).hexdigest()
def has(bytes):
    assert open(name(bytes), 'rb').read() == bytes
    os.remove(name(bytes))
    assert not os.path.exists(name(bytes))
pieces = list(range(0, len(content), 300_000))
# Out of order.
random.shuffle(pieces)
with open(name(content), 'wb') as f:
    for at in pieces: f.seek(at); f.write(content[at:at + 300_000])
has(content)
# Wrong at first, right at last.
with open(name(content), 'wb') as f:
    f.write(bytes(len(content))); f.flush()
    f.seek(0); f.write(content)
has(content)
# Longer than it should be, then cut; also from the path.
with open(name(content), 'wb') as f:
    f.write(content + b'more'); f.flush(); f.truncate(len(content))
has(content)
# Appended, with other descriptors open for writing.
first = os.open(name(content), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
second = os.open(name(content), os.O_WRONLY | os.O_APPEND)
for number, at in enumerate(range(0, len(content), 300_000)):
    os.write([first, second][number % 2], content[at:at + 300_000])
os.close(first)
try: open(name(content), 'rb'); sys.exit('it is not whole yet')
except OSError as e: assert e.errno == errno.EBUSY, e
os.close(second)
has(content)
# Memory.
fd = os.open(name(content), os.O_CREAT | os.O_RDWR); os.ftruncate(fd, len(content))
m = mmap.mmap(fd, len(content)); m[:] = content; m.flush(); m.close(); os.close(fd)
has(content)
# Holes.
with open(name(holes), 'wb') as f: f.seek(4_000_000); f.write(b'data'); f.truncate(len(holes))
has(holes)
# Space that is reserved.
fd = os.open(name(content), os.O_CREAT | os.O_WRONLY)
os.posix_fallocate(fd, 0, len(content)); assert os.fstat(fd).st_size == len(content)
os.write(fd, content); os.fsync(fd); os.close(fd)
has(content)
# Past the memory of the system.
size = 4096 * 1000
direct = mmap.mmap(-1, size); direct.write(content[:size])
fd = os.open(name(content[:size]), os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
assert os.write(fd, direct) == size; os.close(fd)
has(content[:size])
# From one pending file to another, and from what is published.
open('blobs/.source', 'wb').write(content)
source = os.open('blobs/.source', os.O_RDONLY)
fd = os.open(name(content), os.O_CREAT | os.O_WRONLY)
done = 0
while done < len(content): done += os.copy_file_range(source, fd, len(content) - done)
os.close(fd)
published = os.open(name(content), os.O_RDONLY)
double = content + content
fd = os.open(name(double), os.O_CREAT | os.O_WRONLY)
for _ in range(2):
    done = 0
    while done < len(content): done += os.copy_file_range(published, fd, len(content) - done, done)
os.close(fd)
has(double)
# What is published is left alone, and being written once more the same is harmless.
with open(name(content), 'r+b') as f: f.seek(5); f.write(content[5:9])
assert open(name(content), 'rb').read() == content
with open(name(content), 'r+b') as f: pass
try:
    with open(name(content), 'r+b') as f: f.seek(5); f.write(b'XXXXX')
    sys.exit('taken')
except OSError as e: assert e.errno == errno.EIO, e
try: os.truncate(name(content), 5); sys.exit('cut')
except OSError as e: assert e.errno == errno.EPERM, e
assert open(name(content), 'rb').read() == content
has(content)
# A descriptor that is used further after it was published.
fd = os.open(name(content), os.O_CREAT | os.O_WRONLY); os.write(fd, content)
os.close(os.dup(fd))
assert open(name(content), 'rb').read() == content
os.pwrite(fd, b'XXXXX', 100)
assert open(name(content), 'rb').read() == content
try: os.close(fd); sys.exit('taken')
except OSError as e: assert e.errno == errno.EIO, e
has(content)
# Several processes write to one descriptor, as in a shell.
fd = os.open(name(content), os.O_CREAT | os.O_WRONLY)
for at in range(0, len(content), 2_000_000):
    if os.fork() == 0:
        os.write(fd, content[at:at + 2_000_000])
        os.close(fd); os._exit(0)
    assert os.wait()[1] == 0
os.close(fd)
has(content)
";
    python(&mount, program, &[]).success();
    let tail = "dd if=/dev/zero of=$1 bs=1000 count=3 seek=2 conv=notrunc status=none && \
                dd if=/dev/zero of=$1 bs=1000 count=2 conv=notrunc status=none";
    let zeros = format!("blobs/{}", digest(&[0; 5000]));
    let path = mount.path(&zeros);
    // The first of them leaves it wrong.
    let half = "dd if=/dev/zero of=$1 bs=1000 count=3 seek=2 conv=notrunc status=none";
    assert!(mount.run("sh", &["-c", tail, "sh", &path]).status.success(), "holes are zeros");
    let other = format!("blobs/{}", digest(b"other"));
    mount.run("sh", &["-c", half, "sh", &mount.path(&other)]).fails_with("Input/output error");
    assert_tree_sound(target.images_dir());
    assert_eq!(tree::blobs(target.images_dir()).len(), 1);
}

#[test]
fn archives_are_unpacked_into_a_mount() {
    require!(Mounts);
    let source = directory(&written::zoo());
    let target = empty();
    let mount = local(target.images_dir());
    let place = tempfile::tempdir().expect("making a temporary directory");
    let archive = place.path().join("archive.tar");
    let made = ["-C", text(source.images_dir()), "-cf", text(&archive), "."];
    mount.run("tar", &made).success();
    mount.run("tar", &["-C", &mount.path(""), "-xpf", text(&archive)]).success();
    assert_eq!(pending(&mount), []);
    assert_eq!(tree::snapshot(target.images_dir()), tree::snapshot(source.images_dir()));
    target.verify().success();
    // And moved there, which copies.
    let moved = empty();
    let second = local(moved.images_dir());
    let from = format!("mv {}/* {}", text(source.images_dir()), second.path(""));
    second.run("sh", &["-c", &from]);
    assert_eq!(moved.ls().images().len(), target.ls().images().len());
    moved.verify().success();
}
