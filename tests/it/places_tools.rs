//! Round trips with other tools, both ways: skopeo, podman, umoci, containerd and Docker.

use crate::places::{Bed, listed};
use crate::support::image::{Built, Image, Index};
use crate::support::need::require;
use crate::support::process::{program, spawn_tied};
use crate::support::skopeo::{Place, Skopeo};
use crate::support::tree::assert_tree_sound;
use crate::support::{text, tree, umoci, wait_for};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// An image that every tool can unpack, for the platform of this machine and another one.
fn application() -> Built {
    let platform = |platform: &str| {
        Image::new()
            .platform(platform)
            .layer_gzip_tar(&[("etc/os-release", b"ID=test\n")])
            .layer_gzip_tar(&[("app", platform.as_bytes())])
            .build()
    };
    Index::new().child(&platform("linux/amd64")).child(&platform("linux/arm64")).build()
}

fn single() -> Built {
    Image::new()
        .layer_gzip_tar(&[("etc/os-release", b"ID=test\n")])
        .layer_gzip_tar(&[("app", b"x")])
        .build()
}

/// A bed whose directory of images has `image` as `quay.io/team/app:v1`.
fn bed(image: &Built) -> (Bed, String) {
    let bed = Bed::new();
    let dir = bed.path("images");
    tree::kubekey_g1(&dir, "quay.io", "team/app", "v1", image);
    let dir = text(&dir).to_owned();
    (bed, dir)
}

const NAME: &str = "quay.io/team/app:v1";

#[track_caller]
fn assert_holds(bed: &Bed, place: &str, image: &Built) {
    let name = listed(&bed.imgfs, place).into_iter().next().expect("an image");
    assert_eq!(name, (NAME.to_owned(), image.digest().to_owned()), "{place}");
    let back = bed.path("back");
    bed.copy(place, text(&back), &["--all"]).success();
    assert_tree_sound(&back);
}

#[test]
fn skopeo_reads_what_imgfs_writes_and_the_other_way_round() {
    let image = application();
    let (bed, from) = bed(&image);
    let skopeo = Skopeo::new();
    for (scheme, name) in [("oci", "layout"), ("oci-archive", "a.tar")] {
        let own = bed.at(scheme, name);
        bed.copy(&from, &own, &["--all"]).success();
        let theirs = bed.at(scheme, &format!("theirs-{name}"));
        let args = [
            "copy",
            "--all",
            "--preserve-digests",
            &format!("{own}:{NAME}"),
            &format!("{theirs}:{NAME}"),
        ];
        skopeo.run(&args);
        assert_holds(&bed, &theirs, &image);
    }
    let own = bed.at("dir", "dir");
    bed.copy(&from, &own, &["--all"]).success();
    let theirs = bed.at("dir", "theirs");
    skopeo.run(&["copy", "--all", "--preserve-digests", &own, &theirs]);
    let output = bed.copy(&theirs, text(&bed.path("from-dir")), &["--name", NAME]).success();
    assert_eq!(output.images()[0]["digest"], image.digest());
    assert_tree_sound(&bed.path("from-dir"));
    let raw = skopeo.run(&["inspect", "--raw", &own]);
    assert_eq!(raw, image.root().bytes);
}

#[test]
fn skopeo_reads_docker_archives_and_imgfs_those_of_skopeo() {
    let image = single();
    let (bed, from) = bed(&image);
    let skopeo = Skopeo::new();
    for scheme in ["docker-archive", "oci-archive"] {
        let own = bed.at(scheme, &format!("{scheme}.tar"));
        bed.copy(&from, &own, &["--all"]).success();
        let theirs = bed.at("docker-archive", &format!("theirs-{scheme}.tar"));
        let source =
            format!("docker-archive:{}:{NAME}", bed.path(&format!("{scheme}.tar")).display());
        skopeo.run(&["copy", &source, &format!("{theirs}:{NAME}")]);
        // Links among its members, and layers that are not compressed.
        bed.imgfs.run(&["verify", &theirs]).success();
        let output = bed.imgfs.run(&["cat", "--from", &theirs, NAME, "/app"]).success();
        assert_eq!(output.stdout, "x");
    }
}

#[test]
fn umoci_unpacks_a_layout_of_imgfs_and_imgfs_reads_what_umoci_has_changed() {
    require!(Root);
    let image = single();
    let (bed, from) = bed(&image);
    let layout = format!("{}:v1", bed.at("oci", "layout"));
    bed.copy(&from, &layout, &["--all"]).success();
    let (tag, bundle) = (format!("{}:v1", bed.path("layout").display()), bed.path("bundle"));
    umoci::umoci(&["unpack", "--image", &tag, text(&bundle)]);
    assert_eq!(std::fs::read(bundle.join("rootfs/app")).expect("reading"), b"x");
    std::fs::write(bundle.join("rootfs/new"), "new").expect("writing");
    let changed = format!("{}:v2", bed.path("layout").display());
    umoci::umoci(&["repack", "--image", &changed, text(&bundle)]);
    umoci::umoci(&["gc", "--layout", text(&bed.path("layout"))]);
    let place = format!("{}:v2", bed.at("oci", "layout"));
    bed.copy(&place, text(&bed.path("back")), &["--name", "quay.io/team/app"]).success();
    assert_tree_sound(&bed.path("back"));
    let output = bed.imgfs.run(&["cat", "--from", &place, "v2", "/new"]).success();
    assert_eq!(output.stdout, "new");
    // What umoci keeps is still there.
    bed.imgfs.run(&["verify", &bed.at("oci", "layout")]).success();
}

#[test]
fn podman_loads_what_imgfs_writes_and_imgfs_reads_what_podman_saves() {
    require!(Podman);
    let podman = program("podman");
    let image = single();
    let (bed, from) = bed(&image);
    let run = |args: &[&str]| {
        let output = Command::new(&podman)
            .args([
                "--root",
                text(&bed.path("store")),
                "--runroot",
                text(&bed.path("run")),
                "--storage-driver",
                "vfs",
            ])
            .args(args)
            .env("HOME", bed.imgfs.home())
            .output()
            .expect("starting podman");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "podman {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for scheme in ["oci-archive", "docker-archive"] {
        let name = format!("{scheme}.tar");
        bed.copy(&from, &bed.at(scheme, &name), &["--all"]).success();
        run(&["load", "-i", text(&bed.path(&name))]);
        assert!(run(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).contains(NAME));
        for format in ["docker-archive", "oci-archive", "docker-dir", "oci-dir"] {
            let saved = bed.path(&format!("saved-{format}-{scheme}"));
            run(&["save", "--format", format, "-o", text(&saved), NAME]);
            let place = match format {
                "docker-dir" => format!("dir:{}", saved.display()),
                "oci-dir" => format!("oci:{}", saved.display()),
                _ => text(&saved).to_owned(),
            };
            let args = ["cat", "--from", &place, "--name", NAME, NAME, "/app"];
            assert_eq!(bed.imgfs.run(&args).success().stdout, "x", "{format}");
            bed.imgfs.run(&["verify", "--name", NAME, &place]).success();
        }
        run(&["rmi", "--force", NAME]);
    }
}

/// A daemon of the tests' own, with its state in a directory.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(program: &str, socket: PathBuf, args: &[String]) -> Self {
        let child = spawn_tied(program, |command| {
            command
                .args(args)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
        });
        let child = child.unwrap_or_else(|e| panic!("{program}: {e}"));
        wait_for(program, Duration::from_secs(30), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        Self { child, socket }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(id) =
            i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn containerd(dir: &Path) -> Daemon {
    let at = |name: &str| text(&dir.join(name)).to_owned();
    std::fs::write(
        dir.join("config.toml"),
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
    )
    .expect("writing");
    let args = [
        "--config",
        &at("config.toml"),
        "--root",
        &at("root"),
        "--state",
        &at("state"),
        "--address",
        &at("socket"),
    ];
    Daemon::start("containerd", dir.join("socket"), &args.map(str::to_owned))
}

#[test]
fn containerd_imports_what_imgfs_writes_and_imgfs_reads_what_it_exports() {
    require!(Containerd);
    let image = application();
    let (bed, from) = bed(&image);
    std::fs::create_dir(bed.path("d")).expect("making a directory");
    let daemon = containerd(&bed.path("d"));
    let ctr = |args: &[&str]| {
        let output = Command::new("ctr")
            .args(["--address", text(&daemon.socket)])
            .args(args)
            .output()
            .expect("starting ctr");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ctr {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    bed.copy(&from, &bed.at("oci-archive", "a.tar"), &["--all"]).success();
    ctr(&["images", "import", "--all-platforms", "--no-unpack", text(&bed.path("a.tar"))]);
    let list = ctr(&["images", "ls"]);
    assert!(list.contains(NAME) && list.contains(image.digest()), "{list}");
    ctr(&["images", "export", "--all-platforms", text(&bed.path("b.tar")), NAME]);
    assert_holds(&bed, text(&bed.path("b.tar")), &image);
}

#[test]
fn docker_loads_what_imgfs_writes_and_imgfs_reads_from_it() {
    require!(Docker);
    let image = single();
    let (bed, from) = bed(&image);
    let dir = bed.path("d");
    std::fs::create_dir(&dir).expect("making a directory");
    let containerd = containerd(&dir);
    let at = |name: &str| text(&dir.join(name)).to_owned();
    let socket = dir.join("docker.sock");
    let args = [
        "--data-root",
        &at("data"),
        "--exec-root",
        &at("exec"),
        "--pidfile",
        &at("pid"),
        "--host",
        &format!("unix://{}", socket.display()),
        "--containerd",
        text(&containerd.socket),
        "--storage-driver",
        "vfs",
        "--iptables=false",
        "--ip-masq=false",
        "--bridge=none",
    ];
    let daemon = Daemon::start("dockerd", socket.clone(), &args.map(str::to_owned));
    let host = format!("unix://{}", daemon.socket.display());
    let imgfs = crate::support::cli::Imgfs::scratch().env("DOCKER_HOST", &host);
    let run = |args: &[&str]| imgfs.run(args);
    run(&["copy", "--from", &from, "--to", "docker-daemon:", "--all"]).success();
    let output = run(&["ls", "docker-daemon:"]).success();
    assert!(output.stdout.contains(NAME), "{output}");
    let output = run(&["cat", "--from", &format!("docker-daemon:{NAME}"), NAME, "/app"]).success();
    assert_eq!(output.stdout, "x");
    let target = bed.path("back");
    run(&["copy", "--from", "docker-daemon:", "--to", text(&target), "--all"]).success();
    assert_tree_sound(&target);
    run(&["copy", "--from", "docker-daemon:none:1", "--to", text(&target)])
        .expect_code(2)
        .stderr_has("not found");
    // An archive goes in through Docker's own client as well.
    bed.copy(&from, &bed.at("oci-archive", "a.tar"), &["--all"]).success();
    let output = Command::new(program("docker"))
        .args(["--host", &host, "load", "-i", text(&bed.path("a.tar"))])
        .output()
        .expect("starting docker");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    drop(daemon);
    run(&["ls", "docker-daemon:"]).expect_code(2).stderr_has("is the daemon running");
}

#[test]
fn layouts_of_skopeo_have_short_names() {
    let image = single();
    let (bed, _) = bed(&image);
    let layout = bed.path("layout");
    image.write_oci_layout(&bed.path("source"), "it");
    Skopeo::new().copy(&Place::layout(&bed.path("source"), "it"), &Place::layout(&layout, "v7"));
    let output = bed
        .copy(
            &bed.at("oci", "layout"),
            text(&bed.path("to")),
            &["--all", "--name", "quay.io/team/app"],
        )
        .success();
    assert_eq!(output.images()[0]["image"], "quay.io/team/app:v7");
    assert_eq!(output.images()[0]["digest"], image.digest());
}
