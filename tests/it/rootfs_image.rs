//! One image as a root file system, as its users use it: by `chroot`, under an overlay, by tools that read
//! trees; and without a mount by `ls` and `cat`.

use crate::selftest_layers::{everything, everything_of_pax};
use crate::support::cli::Imgfs;
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image};
use crate::support::inside::REPOSITORY;
use crate::support::layers::{Archive, Entry, Packing, What};
use crate::support::mount::{Mounted, Overlay};
use crate::support::need::require;
use crate::support::process::require_program;
use crate::support::snapshot::{Kind, assert_same, snapshot};
use crate::support::{model, text};

/// The image's root file system, mounted.
struct OfImage {
    // The mount ends first: it uses the rest.
    mount: Mounted,
    _hostile: Hostile,
    _imgfs: Imgfs,
}

impl OfImage {
    #[track_caller]
    fn start(image: &Built, args: &[&str]) -> Self {
        let hostile = Hostile::start();
        image.push_to(&hostile, REPOSITORY, "1");
        let name = format!("{}/{REPOSITORY}:1", hostile.host());
        let imgfs = Imgfs::scratch();
        let args = [&["--image", &name, "--platform", "linux/amd64"], args].concat();
        let mount = Mounted::start(imgfs.images_dir(), &args);
        Self { mount, _hostile: hostile, _imgfs: imgfs }
    }
}

/// Debian's static busybox with some of its names, under a layer of a user's own.
fn busybox() -> (Vec<Archive>, Built) {
    let program = require_program("busybox", "busybox-static");
    let program = std::fs::read(program).expect("reading busybox");
    let mut base = Archive::new()
        .dir("bin")
        .entry(Entry::file("bin/busybox", program).mode(0o755))
        .dir("proc")
        .dir("tmp")
        .dir("etc")
        .file("etc/name", b"base\n")
        .file("etc/gone", b"gone\n");
    for name in ["sh", "cat", "ls", "sha256sum"] {
        base = base.link(format!("bin/{name}"), "bin/busybox");
    }
    let top = Archive::new().file("etc/name", b"top\n").whiteout("etc/gone");
    let image =
        Image::new().step("base", &base.gzip()).step("top", &top.pack(Packing::Zstd)).build();
    (vec![base, top], image)
}

#[test]
fn a_program_runs_in_it() {
    require!(Mounts);
    let (layers, image) = busybox();
    let of = OfImage::start(&image, &[]);
    let root = of.mount.path("");
    let layers: Vec<_> = layers.iter().collect();
    assert_same(&model::merged(&layers), &of.mount.snapshot(""));
    let script = "cat /etc/name && ls /etc && sha256sum /bin/busybox";
    let said = of.mount.run("chroot", &[&root, "/bin/sh", "-c", script]).success().text();
    let sum = of.mount.run("sha256sum", &[require_program("busybox", "busybox-static")]);
    let sum = sum.success().text();
    let sum = sum.split(' ').next().expect("a sum");
    assert_eq!(said, format!("top\nname\n{sum}  /bin/busybox\n"));
    let failed = of.mount.run("chroot", &[&root, "/bin/sh", "-c", "echo x > /etc/name"]);
    failed.fails_with("Read-only file system");
    assert_eq!(of.mount.log(), Vec::<String>::new());
}

#[test]
fn an_overlay_on_top_takes_writes() {
    require!(Mounts);
    let (_, image) = busybox();
    let of = OfImage::start(&image, &[]);
    // On a tmpfs, so that it does not matter what is under /tmp.
    let place = tempfile::tempdir_in("/dev/shm").expect("making a temporary directory");
    let overlay = Overlay::over(&of.mount, "", place.path());
    let root = overlay.at();
    let script =
        "echo changed > /etc/name && echo new > /etc/new && rm /bin/ls && cat /etc/name /etc/new";
    let said = of.mount.run("chroot", &[text(root), "/bin/sh", "-c", script]).success().text();
    assert_eq!(said, "changed\nnew\n");
    assert_eq!(of.mount.cat("etc/name").success().text(), "top\n");
    of.mount.run("stat", &[of.mount.path("bin/ls")]).success();
    let append = "echo more >> /etc/name && cat /etc/name";
    let said = of.mount.run("chroot", &[text(root), "/bin/sh", "-c", append]).success().text();
    assert_eq!(said, "changed\nmore\n");
    drop(overlay);
    assert_eq!(of.mount.log(), Vec::<String>::new());
}

#[test]
fn owners_are_the_images_or_squashed() {
    require!(Mounts);
    let archive = everything_of_pax(everything(Archive::new()));
    let image = Image::new().step("x", &archive.gzip()).build();
    let of = OfImage::start(&image, &[]);
    let wanted = model::merged(&[&archive]);
    assert_same(&wanted, &of.mount.snapshot(""));
    drop(of);
    let of = OfImage::start(&image, &["--uid", "1234", "--gid", "4321"]);
    let mut squashed = wanted;
    for item in squashed.values_mut() {
        (item.uid, item.gid) = (1234, 4321);
    }
    assert_same(&squashed, &of.mount.snapshot(""));
}

#[test]
fn the_mount_point_has_the_attributes_of_the_root() {
    require!(Mounts);
    let root = Entry::new("./", What::Dir).mode(0o1711).owner(5, 6).mtime(77, 0);
    let image = Image::new().step("x", &Archive::new().entry(root).dir("d").gzip()).build();
    let of = OfImage::start(&image, &[]);
    let said = of.mount.run("stat", &["-c", "%a %u %g %h %Y", &of.mount.path("")]);
    assert_eq!(said.success().text(), "1711 5 6 3 77\n");
}

#[test]
fn nothing_is_obeyed_that_an_image_says_of_devices_and_set_uid() {
    require!(Mounts);
    let archive = everything(Archive::new());
    let image = Image::new().step("x", &archive.gzip()).build();
    let options = |mount: &Mounted| {
        let list = std::fs::read_to_string("/proc/self/mountinfo").expect("reading the mounts");
        let at = mount.at();
        let line = list.lines().find(|line| line.split(' ').nth(4) == Some(text(&at)));
        line.expect("it is mounted").split(' ').nth(5).expect("options").to_owned()
    };
    let of = OfImage::start(&image, &[]);
    let said = options(&of.mount);
    for option in ["ro", "nodev", "nosuid"] {
        assert!(said.split(',').any(|o| o == option), "{said}");
    }
    of.mount.run("cat", &[of.mount.path("null")]).fails_with("Permission denied");
    drop(of);
    let of = OfImage::start(&image, &["-o", "dev,suid"]);
    let said = options(&of.mount);
    assert!(!said.split(',').any(|o| ["nodev", "nosuid"].contains(&o)), "{said}");
    assert_eq!(of.mount.cat("null").success().stdout, b"");
}

/// Two versions of an application.
fn versions() -> [(Archive, Built); 2] {
    ["1", "2"].map(|version| {
        let mut archive = Archive::new().dir("share");
        for number in 0..50 {
            let text = format!("file {number}\nof every version\n").repeat(number + 1);
            archive = archive.file(format!("share/file{number}"), text);
        }
        let archive = archive
            .file("share/version", format!("version {version}\n"))
            .file(format!("only-in-{version}"), b"x")
            .symlink("link", "share")
            .link("hard", "share/file7");
        let image = Image::new().step("x", &archive.gzip()).build();
        (archive, image)
    })
}

#[test]
fn tools_that_read_trees_work_on_it() {
    require!(Mounts);
    let [(archive, first), (_, second)] = versions();
    let (one, two) = (OfImage::start(&first, &[]), OfImage::start(&second, &[]));
    let (old, new) = (one.mount.path(""), two.mount.path(""));

    let found = one.mount.run("grep", &["-r", "-l", "version 1", &old]).success().text();
    assert_eq!(found, format!("{old}share/version\n"));
    let found = one.mount.run("grep", &["-r", "-c", "of every version", &old]).success().text();
    let lines = found.lines().filter_map(|line| line.rsplit_once(':')).map(|(_, n)| n);
    let count: usize = lines.map(|n| n.parse::<usize>().expect("a number")).sum();
    assert_eq!(count, (1..=50).sum::<usize>() + 8);

    let diff = one.mount.run("diff", &["-r", "--no-dereference", &old, &new]);
    assert_eq!(diff.status.code(), Some(1), "{}", diff.stderr);
    let said = diff.text();
    let differing = said.lines().filter(|line| line.starts_with("diff ")).count();
    assert_eq!(differing, 1, "{said}");
    for line in ["< version 1", "> version 2", "only-in-1", "only-in-2"] {
        assert!(said.contains(line), "{said}");
    }
    one.mount.run("diff", &["-r", "--no-dereference", &old, &old]).success();

    let copy = tempfile::tempdir().expect("making a temporary directory");
    let to = text(copy.path());
    one.mount.run("rsync", &["-aHX", "--numeric-ids", &old, to]).success();
    assert_same(&model::merged(&[&archive]), &snapshot(copy.path()));
    let again = one.mount.run("rsync", &["-aiH", "--checksum", "--numeric-ids", &old, to]);
    assert_eq!(again.success().text(), "");
    for of in [one, two] {
        assert_eq!(of.mount.log(), Vec::<String>::new());
    }
}

#[test]
fn an_image_that_cannot_be_had_is_no_mount() {
    require!(Mounts);
    let hostile = Hostile::start();
    let imgfs = Imgfs::scratch();
    let place = tempfile::tempdir().expect("making a temporary directory");
    let name = format!("{}/no/such:1", hostile.host());
    let args = ["mount", "--plain-http", "--foreground", "--image", &name, "--images-dir"];
    let args = [&args[..], &[text(imgfs.images_dir()), text(place.path())]].concat();
    let output = imgfs.run(&args);
    assert_eq!(output.code(), 1, "{output}");
    assert!(output.stderr.contains("no/such"), "{output}");
    assert!(!crate::support::mount::is_mounted(place.path()));
}

#[test]
fn an_image_for_another_platform_than_asked_for_is_no_mount() {
    require!(Mounts);
    let hostile = Hostile::start();
    busybox().1.push_to(&hostile, REPOSITORY, "1");
    let imgfs = Imgfs::scratch();
    let place = tempfile::tempdir().expect("making a temporary directory");
    let name = format!("{}/{REPOSITORY}:1", hostile.host());
    let args =
        ["mount", "--plain-http", "--foreground", "--image", &name, "--platform", "linux/s390x"];
    let args =
        [&args[..], &["--images-dir", text(imgfs.images_dir()), text(place.path())]].concat();
    imgfs.run(&args).expect_code(1).stderr_has("not for linux/s390x");
    assert!(!crate::support::mount::is_mounted(place.path()));
}

#[test]
fn without_a_mount_an_image_is_listed_and_read() {
    require!(Mounts);
    let archive = everything_of_pax(everything(Archive::new()));
    let top = Archive::new().file("bin/new", b"new\n").whiteout("bin/wall");
    let image = Image::new().step("x", &archive.gzip()).step("y", &top.pack(Packing::Zstd)).build();
    let hostile = Hostile::start();
    image.push_to(&hostile, REPOSITORY, "1");
    let name = format!("{}/{REPOSITORY}:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let run = |args: &[&str]| {
        let directory = text(imgfs.images_dir());
        let common = ["--plain-http", "--images-dir", directory, "--platform", "linux/amd64"];
        imgfs.run(&[&args[..1], &common, &args[1..]].concat())
    };
    let wanted = model::merged(&[&archive, &top]);
    let listed = run(&["ls", &format!("{name}:/bin")]).success().stdout;
    for entry in ["su", "su2", "new"] {
        assert!(listed.lines().any(|line| line.ends_with(entry)), "{entry}: {listed}");
    }
    assert!(!listed.contains("wall"), "{listed}");
    let listed = run(&["ls", &format!("{name}:/")]).success().stdout;
    for path in wanted.keys().filter(|path| !path.is_empty() && !path.contains(&b'/')) {
        if let Ok(path) = std::str::from_utf8(path) {
            assert!(listed.contains(path), "{path}: {listed}");
        }
    }
    assert_eq!(run(&["cat", &name, "bin/new"]).success().stdout, "new\n");
    assert_eq!(run(&["cat", &name, "/bin/su2"]).success().stdout, "su");
    for (path, item) in wanted.iter().filter(|(_, item)| item.kind == Kind::File) {
        let Ok(path) = std::str::from_utf8(path) else { continue };
        if item.size < 1000 && path.starts_with("sparse") {
            assert_eq!(run(&["cat", &name, path]).success().stdout.len() as u64, item.size);
        }
    }
    // Through symbolic links, which lead to what is in the image and nowhere else.
    let links = Archive::new()
        .dir("real")
        .file("real/file", b"here\n")
        .symlink("absolute", "/real/file")
        .symlink("out", "../../../../../../real/file")
        .symlink("dir", "real")
        .symlink("round", "round")
        .symlink("passwd", "/etc/passwd");
    let image = Image::new().step("x", &links.gzip()).build();
    image.push_to(&hostile, "team/links", "1");
    let links = format!("{}/team/links:1", hostile.host());
    for path in ["real/file", "absolute", "out", "dir/file", "real/../dir/./file"] {
        assert_eq!(run(&["cat", &links, path]).success().stdout, "here\n", "{path}");
    }
    for (path, text) in [
        ("nope", "no such file"),
        ("passwd", "no such file"),
        ("real", "directory"),
        ("real/file/x", "no directory"),
        ("round", "symbolic links"),
    ] {
        let output = run(&["cat", &links, path]);
        assert_eq!(output.code(), 1, "{path}: {output}");
        let said = output.stderr.to_lowercase();
        assert!(said.contains(text) && said.contains(path), "{path}: {output}");
        assert_eq!(output.stdout, "");
    }
}
