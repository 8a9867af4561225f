//! A mount when nothing goes wrong: what it shows, what it fetches for that, and what it refuses.

use crate::support::cli::{Imgfs, SAME};
use crate::support::content::Content;
use crate::support::hostile::Hostile;
use crate::support::image::{
    Artifact, Built, Image, Index, cosign_signature, digest_tag, push_referrers_with_fallback_tag,
};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::registry::Registry;
use crate::support::tree::{self, assert_modes_and_times, assert_tree_sound};
use crate::support::{content, skopeo, text, wait_for};
use std::time::Duration;

/// One of every kind that registries hold, with signatures and referrers; gives the names to ask for.
fn zoo(hostile: &Hostile) -> Vec<String> {
    let platform = |platform: &str| {
        let image = Image::new().platform(platform).layer(1, 700_000);
        image.layer_gzip_tar(&[("app", platform.as_bytes())]).build()
    };
    let application = Index::new()
        .child(&platform("linux/amd64"))
        .child(&platform("linux/arm64/v8"))
        .attest()
        .build();
    let helm = Artifact::with_config("application/vnd.cncf.helm.config.v1+json", b"{\"name\":1}")
        .blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart")
        .build();
    let cases = [
        ("team/app", application.clone()),
        ("team/docker", Image::new().docker().layer(2, 300_000).build()),
        ("team/zstd", Image::new().layer_zstd(&[("a", b"zstd")]).build()),
        ("team/empty", Image::new().empty_layer().zero_byte_layer().build()),
        ("charts/helm", helm),
    ];
    for (repository, image) in &cases {
        image.push_to(hostile, repository, "1");
    }
    cosign_signature(&application).push_to(
        hostile,
        "team/app",
        &digest_tag(application.digest(), ".sig"),
    );
    let sbom = Artifact::new("application/spdx+json").subject(&application);
    let sbom = sbom.blob("application/spdx+json", b"{\"packages\":[]}").build();
    sbom.push_by_digest(hostile, "team/app");
    push_referrers_with_fallback_tag(hostile, "team/app", application.digest(), &[&sbom]);
    cases.iter().map(|(name, _)| format!("{}/{name}:1", hostile.host())).collect()
}

/// `--manifests NAME` for each.
fn declared(names: &[String]) -> Vec<&str> {
    names.iter().flat_map(|name| ["--manifests", name]).collect()
}

/// An image with one large layer, and the path of that layer.
fn large(hostile: &Hostile, seed: u64, size: u64) -> (Built, String) {
    let image = Image::new().layer(seed, size).build();
    image.push_to(hostile, "large", &seed.to_string());
    let layer = format!("blobs/{}", image.layers()[0]);
    (image, layer)
}

fn expected(seed: u64, size: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).expect("small")];
    Content::Generated { seed, size }.read_at(offset, &mut bytes);
    bytes
}

#[test]
fn what_tasks_pull_is_listed() {
    require!(Mounts);
    let hostile = Hostile::start();
    let host = hostile.host();
    for tag in ["1", "2", "3"] {
        Image::new().layer(1, 1000).build().push_to(&hostile, "team/app", tag);
    }
    let home = Imgfs::scratch();
    std::fs::create_dir(home.images_dir()).expect("making a directory");
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("making a file");
    let tasks = format!(
        "- image:\n    pull:\n      images_dir: /nowhere\n      manifests: ['{host}/team/app:{{{{ .tag }}}}']\n\
         - image:\n    pull:\n      images_dir: /nowhere\n      manifests: [{host}/team/app:2]\n"
    );
    std::fs::write(file.path(), tasks).expect("writing");
    let args = ["--manifests", text(file.path()), "--set", "tag=1"];
    let mount = Mounted::start(home.images_dir(), &args);
    let listed = mount.run("ls", &[mount.path(&format!("{host}/team/app/manifests"))]);
    assert_eq!(listed.success().text().split_whitespace().collect::<Vec<_>>(), ["1", "2"]);
}

#[test]
fn a_copy_of_cold_images_is_what_a_pull_writes() {
    require!(Mounts);
    let hostile = Hostile::start();
    let names = zoo(&hostile);
    let pulled = Imgfs::scratch();
    pulled.pull(&names).success();
    let pulled_tree = tree::snapshot(pulled.images_dir());

    let backing = Imgfs::scratch();
    // All in a file: one a line.
    let list = backing.home().join("list");
    std::fs::write(&list, names.join("\n")).expect("writing");
    let mut mount = Mounted::start(backing.images_dir(), &["--manifests", text(&list)]);
    let copy = Imgfs::scratch();
    std::fs::create_dir(copy.images_dir()).expect("making a directory");
    let target = text(copy.images_dir());
    mount.run("cp", &["-a", &mount.path("."), target]).success();
    assert_eq!(tree::snapshot(copy.images_dir()), pulled_tree);
    assert_tree_sound(copy.images_dir());
    assert_modes_and_times(copy.images_dir());
    copy.verify().success();
    let diff =
        mount.run("diff", &["-r", "-x", ".imgfs", &mount.path("."), text(pulled.images_dir())]);
    diff.success();

    // Neither what cp has copied, nor what a pull has written, is moved by rsync.
    for same in [copy.images_dir(), pulled.images_dir()] {
        let args = ["-ain", "--omit-dir-times", "--exclude=.imgfs", &mount.path(""), text(same)];
        assert_eq!(mount.run("rsync", &args).success().text(), "");
    }
    let synced = tempfile::tempdir().expect("making a temporary directory");
    let (from, to) = (mount.path(""), text(synced.path()));
    assert!(!mount.run("rsync", &["-ai", &from, to]).success().text().is_empty());
    assert_eq!(mount.run("rsync", &["-ai", "--checksum", &from, to]).success().text(), "");
    assert_eq!(mount.run("rsync", &["-ai", &from, to]).success().text(), "");
    assert_eq!(tree::snapshot(synced.path()), pulled_tree);

    let unpacked = tempfile::tempdir().expect("making a temporary directory");
    let archive = unpacked.path().join("archive.tar");
    mount.run("tar", &["-C", &mount.path(""), "-cf", text(&archive), "."]).success();
    let tree_of_tar = unpacked.path().join("tree");
    std::fs::create_dir(&tree_of_tar).expect("making a directory");
    mount.run("tar", &["-C", text(&tree_of_tar), "-xf", text(&archive)]).success();
    assert_eq!(tree::snapshot(&tree_of_tar), pulled_tree);
    assert_eq!(mount.stop().code(), Some(0));
    assert_eq!(mount.log(), Vec::<String>::new());

    // And it is of use.
    let registry = Registry::plain();
    let output = copy.push(&["--dest", &format!("{}/{SAME}", registry.host())]).success();
    assert!(output.images().len() >= names.len(), "{output}");
    for name in &names {
        let (_, name) = name.split_once('/').expect("a host");
        let there = skopeo::fetch(&format!("{}/{name}", registry.host()));
        assert_eq!(there, skopeo::fetch(&format!("{}/{name}", hostile.host())), "{name}");
    }
}

#[test]
fn a_platform_filter_shows_what_a_pull_with_it_writes() {
    require!(Mounts);
    let hostile = Hostile::start();
    let names = zoo(&hostile);
    let app = &names[..1];
    for options in [&["--platform", "linux/arm64"][..], &["--platform", "arm64", "--index", "keep"]]
    {
        let pulled = Imgfs::scratch();
        pulled.pull(&[options, &[app[0].as_str()]].concat()).success();
        let backing = Imgfs::scratch();
        let mount = Mounted::start(backing.images_dir(), &[options, &declared(app)].concat());
        let copy = tempfile::tempdir().expect("making a temporary directory");
        mount.run("cp", &["-a", &mount.path("."), text(copy.path())]).success();
        assert_eq!(tree::snapshot(copy.path()), tree::snapshot(pulled.images_dir()), "{options:?}");
    }
}

#[test]
fn what_is_listed_costs_nothing_and_what_is_named_is_looked_up() {
    require!(Mounts);
    let hostile = Hostile::start();
    let names = zoo(&hostile);
    let backing = Imgfs::scratch();
    let mount = Mounted::start(backing.images_dir(), &declared(&names[..1]));
    hostile.clear_log();
    let paths = mount.find();
    let root = mount.path("");
    mount.run("ls", &["-lR", &root]).success();
    mount
        .run("find", &[root.as_str(), "-type", "f", "-size", "+1k", "-printf", "%s %p\n"])
        .success();
    mount.run("du", &["-a", &root]).success();
    assert_eq!(hostile.requests(), 0, "{:?}", hostile.log());
    let host = hostile.host();
    assert!(paths.contains(&format!("{host}/team/app/manifests/1")), "{paths:?}");
    assert!(
        !paths.iter().any(|path| path.contains("zstd") || path.contains(".imgfs")),
        "{paths:?}"
    );

    // By its name it is found, with its blobs; and it is listed from then on.
    let zstd = format!("{host}/team/zstd/manifests/1");
    mount.run("stat", &[mount.path(&zstd)]).success();
    assert!(hostile.requests() > 0);
    assert_eq!(hostile.blob_gets().len(), 0, "nothing was read");
    hostile.clear_log();
    let image = Image::new().layer_zstd(&[("a", b"zstd")]).build();
    let paths = mount.find();
    assert!(paths.contains(&zstd), "{paths:?}");
    for digest in image.blobs.keys() {
        assert!(paths.contains(&format!("blobs/{digest}")), "{digest}: {paths:?}");
    }
    assert_eq!(mount.cat(&zstd).success().stdout, image.root().bytes);
    // By digest, too.
    let docker = Image::new().docker().layer(2, 300_000).build();
    let pinned = format!("{host}/team/docker/manifests/{}", docker.digest());
    assert_eq!(mount.cat(&pinned).success().stdout, docker.root().bytes);
}

#[test]
fn a_small_read_fetches_little_and_once() {
    require!(Mounts);
    const SIZE: u64 = 64 << 20;
    const MIDDLE: u64 = (SIZE / 2) + 12_288;
    let hostile = Hostile::start();
    let (_, layer) = large(&hostile, 5, SIZE);
    let name = [format!("{}/large:5", hostile.host())];
    let backing = Imgfs::scratch();
    let mut mount = Mounted::start(backing.images_dir(), &declared(&name));
    let fetched = || {
        let gets = hostile.blob_gets();
        (gets.len(), gets.iter().map(|served| served.sent).sum::<u64>())
    };
    hostile.clear_log();
    let right = expected(5, SIZE, MIDDLE, 4096);
    assert_eq!(mount.slice(&layer, MIDDLE, 4096).success().stdout, right);
    let (requests, bytes) = fetched();
    assert!(
        (1..=2).contains(&requests) && bytes <= 300 << 10,
        "{requests} requests, {bytes} bytes"
    );

    hostile.clear_log();
    assert_eq!(mount.slice(&layer, MIDDLE, 4096).success().stdout, right);
    assert_eq!(fetched(), (0, 0));
    // After a while all of it is on the disk; then no way of ending loses it.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(mount.stop().code(), Some(0));
    mount.restart();
    assert_eq!(mount.slice(&layer, MIDDLE, 4096).success().stdout, right);
    mount.kill9();
    mount.restart();
    assert!(mount.stderr().contains("a killed imgfs has left its mount"), "{}", mount.stderr());
    assert_eq!(mount.slice(&layer, MIDDLE, 4096).success().stdout, right);
    assert_eq!(fetched(), (0, 0));
}

#[test]
fn names_that_are_no_images_are_not_there() {
    require!(Mounts);
    let hostile = Hostile::start();
    let names = zoo(&hostile);
    let backing = Imgfs::scratch();
    let mount = Mounted::start(backing.images_dir(), &declared(&names[..1]));
    hostile.clear_log();
    let host = hostile.host();
    let absent = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    for name in [
        ".git",
        ".git/HEAD",
        ".Trash",
        ".Trash-1000",
        ".hidden",
        ".imgfs/.git",
        ".imgfs/autorun.inf",
        ".imgfs/x",
        ".xdg-volume-info",
        "autorun.inf",
        "Thumbs.db",
        "desktop.ini",
        "lost+found",
        "node_modules",
        "Dockerfile",
        "blobs/.imgfs",
        "blobs/.imgfs/cache",
        "blobs/x",
        &format!("blobs/{absent}"),
        &format!("{host}/UPPER"),
        &format!("{host}/team/app/manifests/.swp"),
        &format!("{host}/.git"),
    ] {
        mount.run("stat", &[mount.path(name)]).fails_with("No such file or directory");
    }
    assert_eq!(hostile.requests(), 0, "{:?}", hostile.log());
    mount.cat(&format!("{host}/team/app/manifests/2")).fails_with("No such file or directory");
    mount.cat(&format!("{host}/team/no/manifests/1")).fails_with("No such file or directory");
    let pinned = format!("{host}/team/app/manifests/{absent}");
    mount.cat(&pinned).fails_with("No such file or directory");
    assert_eq!(mount.log(), Vec::<String>::new());
}

#[test]
fn nothing_can_be_changed() {
    require!(Mounts);
    let hostile = Hostile::start();
    let names = zoo(&hostile);
    let backing = Imgfs::scratch();
    backing.pull(&names[1..2]).success();
    let args = [&declared(&names)[..], &["--uid", "1234", "--gid", "4321"]].concat();
    let mount = Mounted::start(backing.images_dir(), &args);
    let app = mount.path(&format!("{}/team/app/manifests/1", hostile.host()));
    let local = mount.path(&format!("{}/team/docker/manifests/1", hostile.host()));
    let new = mount.path("blobs/new");
    for file in [&app, &local] {
        for args in [
            &["touch", file][..],
            &["rm", "-f", file],
            &["mv", file, &new],
            &["chmod", "600", file],
            &["chown", "1", file],
            &["truncate", "-s", "0", file],
            &["ln", "-s", file, &new],
            &["dd", "if=/dev/null", &format!("of={file}"), "conv=notrunc"],
        ] {
            mount.run(args[0], &args[1..]).fails_with("Read-only file system");
        }
    }
    for args in [["touch", &new], ["mkdir", &new], ["mkfifo", &new]] {
        mount.run(args[0], &args[1..]).fails_with("Read-only file system");
    }
    let format = "%a %u %g %F %h %Y";
    let stat = |path: &str| mount.run("stat", &["-c", format, path]).success().text();
    let time = stat(&app);
    assert!(time.starts_with("644 1234 4321 regular file 1 "), "{time}");
    assert!(stat(&mount.path("blobs")).starts_with("755 1234 4321 directory "));
    let stat = mount.run("stat", &["-f", "-c", "%S %b %f %a %l", &mount.path("")]).success().text();
    let numbers: Vec<u64> = stat.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    assert!(numbers[0] > 0 && numbers[1] > 0, "{stat}");
    assert_eq!(numbers[2..], [0, 0, 255], "{stat}");
    mount.run("df", &[mount.path("")]).success();
    assert_tree_sound(backing.images_dir());
}

#[test]
fn offline_there_is_what_is_local() {
    require!(Mounts);
    let hostile = Hostile::start();
    let names = zoo(&hostile);
    let backing = Imgfs::scratch();
    backing.pull(&names[..2]).success();
    hostile.clear_log();
    for further in [&["--offline"][..], &["--offline", "--no-passthrough"]] {
        let args = [further, &declared(&names)].concat();
        let mount = Mounted::start(backing.images_dir(), &args);
        let copy = tempfile::tempdir().expect("making a temporary directory");
        let (blobs, app) =
            (mount.path("blobs"), mount.path(&format!("{}/team/app", hostile.host())));
        mount.run("cp", &["-a", &blobs, &app, text(copy.path())]).success();
        let copied = tree::snapshot(&copy.path().join("blobs"));
        let mut there = tree::snapshot(&backing.images_dir().join("blobs"));
        there.retain(|path, _| !path.starts_with(".imgfs"));
        assert_eq!(copied, there);
        let zstd = format!("{}/team/zstd/manifests/1", hostile.host());
        mount.cat(&zstd).fails_with("No route to host");
        let unknown = format!("{}/team/else/manifests/1", hostile.host());
        mount.cat(&unknown).fails_with("No route to host");
        let lines = mount.logged(&["team/else:1", "offline"]);
        assert_eq!(lines.len(), 1, "{:?}", mount.log());
        mount.run("stat", &[mount.path(".git")]).fails_with("No such file");
        assert_eq!(hostile.requests(), 0);
    }
}

#[test]
fn local_blobs_are_read_by_many_and_mapped() {
    require!(Mounts);
    // Reads through a mapping, while other programs have the file open, before and after.
    const MAPPED: &str = "import hashlib, mmap, sys\n\
        files = [open(sys.argv[1], 'rb') for _ in range(50)]\n\
        files[0].read(10)\n\
        maps = [mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) for f in files]\n\
        assert len({hashlib.sha256(m).hexdigest() for m in maps}) == 1\n\
        for f in files[::2]: f.close()\n\
        files += [open(sys.argv[1], 'rb') for _ in range(50)]\n\
        for f in files[100:0:-1]: f.close()\n\
        print(hashlib.sha256(maps[7]).hexdigest())";
    let hostile = Hostile::start();
    let (image, layer) = large(&hostile, 6, 5_000_000);
    let name = [format!("{}/large:6", hostile.host())];
    let digest = image.layers()[0].trim_start_matches("sha256:").to_owned();
    let local = Imgfs::scratch();
    local.pull(&name).success();
    for further in [&[][..], &["--no-passthrough"]] {
        for remote in [false, true] {
            let scratch = Imgfs::scratch();
            let images = if remote { scratch.images_dir() } else { local.images_dir() };
            let mount = Mounted::start(images, &[further, &declared(&name)].concat());
            let path = mount.path(&layer);
            let sums = [0; 4].map(|_| mount.begin("python3", &["-c", MAPPED, &path]));
            for sum in sums {
                assert_eq!(sum.wait().success().text().trim(), digest, "{further:?} {remote}");
            }
            let right = expected(6, 5_000_000, 4_999_000, 1000);
            assert_eq!(mount.slice(&layer, 4_999_000, 4096).success().stdout, right);
            assert_eq!(mount.log(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_tag_that_moves_is_noticed() {
    require!(Mounts);
    let hostile = Hostile::start();
    let [old, new] = [11, 12].map(|seed| Image::new().layer(seed, 1000).build());
    assert_eq!(old.root().bytes.len(), new.root().bytes.len());
    old.push_to(&hostile, "app", "1");
    let name = [format!("{}/app:1", hostile.host())];
    let path = format!("{}/app/manifests/1", hostile.host());
    let backing = Imgfs::scratch();
    let args = [&declared(&name)[..], &["--tag-ttl", "1s"]].concat();
    let mount = Mounted::start(backing.images_dir(), &args);
    let copy = tempfile::tempdir().expect("making a temporary directory");
    let to = text(copy.path());
    mount.run("rsync", &["-a", &mount.path(""), to]).success();
    assert_eq!(mount.cat(&path).success().stdout, old.root().bytes);

    // One opens it now and reads it later.
    let gate = copy.path().join("gate");
    let script = "exec 3<\"$1\"; touch \"$2\"; while [ -e \"$2\" ]; do sleep 0.05; done; cat <&3";
    let slow = mount.begin("sh", &["-c", script, "-", &mount.path(&path), text(&gate)]);
    wait_for("the file to be open", Duration::from_secs(10), || gate.exists());
    new.push_to(&hostile, "app", "1");
    let mut seen = Vec::new();
    wait_for("the new manifest", Duration::from_secs(10), || {
        seen = mount.cat(&path).success().stdout;
        seen != old.root().bytes
    });
    assert_eq!(seen, new.root().bytes);
    std::fs::remove_file(&gate).expect("removing");
    assert_eq!(slow.wait().success().stdout, old.root().bytes);

    let moved = mount.run("rsync", &["-ai", &mount.path(""), to]).success().text();
    assert!(moved.contains(&path), "{moved}");
    let copied = std::fs::read(copy.path().join(&path)).expect("reading");
    assert_eq!(content::digest(&copied), new.digest());
    assert_tree_sound(copy.path());
}

#[test]
fn a_local_tag_that_is_replaced_is_never_read_in_part() {
    require!(Mounts);
    let hostile = Hostile::start();
    let [short, long] = [1, 3].map(|layers| {
        let image = Image::new();
        (0..layers).fold(image, |image, seed| image.layer(seed, 1000)).build()
    });
    let backing = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    let path = format!("{}/app/manifests/1", hostile.host());
    short.push_to(&hostile, "app", "1");
    backing.pull(&[name.as_str()]).success();
    // The kernel keeps what it knows of a tag; when it is opened, it has to be what is there.
    let mount = Mounted::start(backing.images_dir(), &["--tag-ttl", "1h"]);
    for image in [&short, &long, &short, &long] {
        image.push_to(&hostile, "app", "1");
        backing.pull(&[name.as_str()]).success();
        assert_eq!(mount.cat(&path).success().stdout, image.root().bytes);
        let size = mount.run("stat", &["-c", "%s", &mount.path(&path)]).success().text();
        assert_eq!(size.trim(), image.root().bytes.len().to_string());
    }
    assert_eq!(mount.log(), Vec::<String>::new());
}

#[test]
fn a_pull_and_a_mount_use_what_the_other_has_fetched() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (image, layer) = large(&hostile, 7, 3_000_000);
    let (other, other_layer) = large(&hostile, 8, 3_000_000);
    let names = [7, 8].map(|seed| format!("{}/large:{seed}", hostile.host()));
    let imgfs = Imgfs::scratch();
    let mount = Mounted::start(imgfs.images_dir(), &declared(&names));
    let digest = |path: &str| content::digest(&mount.cat(path).success().stdout);
    assert_eq!(digest(&layer), image.layers()[0]);
    // What is whole in the cache, the pull takes.
    wait_for("the whole blob", Duration::from_secs(10), || {
        let name = content::cached_name(&image.layers()[0]);
        imgfs.images_dir().join("blobs/.imgfs/cache/whole").join(name).exists()
    });
    hostile.clear_log();
    imgfs.pull(&names[..1]).success();
    let sent = hostile.blob_bytes_sent();
    assert!(!sent.contains_key(&image.layers()[0]), "{sent:?}");
    assert_eq!(digest(&layer), image.layers()[0]);

    // What a pull has published, the mount reads there.
    imgfs.pull(&names[1..]).success();
    hostile.clear_log();
    assert_eq!(digest(&other_layer), other.layers()[0]);
    assert_eq!(hostile.blob_gets().len(), 0, "{:?}", hostile.blob_gets());
    assert_tree_sound(imgfs.images_dir());
    imgfs.verify().success();
}
