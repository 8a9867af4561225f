//! `imgfs serve` with the programs that people use.

use crate::support::cli::Imgfs;
use crate::support::hostile::Hostile;
use crate::support::image::{Image, Index};
use crate::support::need::require;
use crate::support::process::{program, spawn_tied};
use crate::support::serving::Serving;
use crate::support::skopeo::{Place, Skopeo};
use crate::support::{text, wait_for};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::Duration;

fn serving() -> Serving {
    Serving::fresh(&["--allow-delete"])
}

/// An image that programs can unpack.
fn image() -> crate::support::image::Built {
    let child = |platform: &str| {
        Image::new().platform(platform).layer_gzip_tar(&[("etc/hello", b"hello")]).build()
    };
    Index::new().child(&child("linux/amd64")).child(&child("linux/arm64")).build()
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("running a program");
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&stdout).into_owned()
}

#[test]
fn skopeo_pushes_and_pulls_and_deletes() {
    let serving = serving();
    let layout = tempfile::tempdir().expect("a directory");
    let image = image();
    image.write_oci_layout(layout.path(), "v1");
    let skopeo = Skopeo::new();
    let place = format!("docker://{}/team/app:v1", serving.host());
    let from = format!("oci:{}:v1", layout.path().display());
    let plain = "--dest-tls-verify=false";
    skopeo.run(&["copy", "--all", plain, &from, &place]);
    assert_eq!(
        skopeo.inspect_raw(&Place::plain(&format!("{}/team/app:v1", serving.host()))),
        image.root().bytes
    );
    let back = layout.path().join("back");
    let back = format!("dir:{}", back.display());
    skopeo.run(&["copy", "--all", "--src-tls-verify=false", &place, &back]);
    skopeo.run(&["delete", "--tls-verify=false", &place]);
    assert_eq!(serving.client().get("/v2/team/app/manifests/v1").status, 404);
    // As Docker's types, of which the digests are others.
    skopeo.run(&["copy", "--format", "v2s2", plain, &from, &place]);
    assert_eq!(serving.client().get("/v2/team/app/manifests/v1").status, 200);
}

#[test]
fn imgfs_pushes_and_pulls() {
    let upstream = Hostile::start();
    let image = image();
    image.push_to(&upstream, "team/app", "v1");
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[format!("{}/team/app:v1", upstream.host())]).success();
    let serving = serving();
    let dest = format!("{}/mirror/app:v1", serving.host());
    imgfs.push(&["--dest", &dest]).success();
    imgfs.push(&["--dest", &dest]).success();
    let other = Imgfs::scratch();
    other.pull(&[&dest]).success();
    crate::support::tree::assert_tree_sound(other.images_dir());
    assert_eq!(serving.client().get("/v2/mirror/app/manifests/v1").body, image.root().bytes);
}

#[test]
fn podman_and_buildah_push_and_pull() {
    require!(Podman);
    let podman = program("podman");
    let serving = serving();
    image().push_to(&serving.client(), "team/app", "v1");
    let files = tempfile::tempdir().expect("a directory");
    let storage = |program: &Path| {
        let mut command = Command::new(program);
        command.arg("--root").arg(files.path().join("root"));
        command.arg("--runroot").arg(files.path().join("run"));
        command.args(["--storage-driver", "vfs"]).env("HOME", files.path());
        command
    };
    let host = serving.host();
    let name = format!("{host}/team/app:v1");
    run(storage(&podman).args(["pull", "--tls-verify=false", &name]));
    let pushed = format!("{host}/team/podman:v2");
    run(storage(&podman).args(["push", "--tls-verify=false", &name, &pushed]));
    assert_eq!(serving.client().get("/v2/team/podman/manifests/v2").status, 200);
    let buildah = program("buildah");
    let pushed = format!("docker://{host}/team/buildah:v3");
    run(storage(&buildah).args(["push", "--tls-verify=false", &name, &pushed]));
    assert_eq!(serving.client().get("/v2/team/buildah/manifests/v3").status, 200);
    run(storage(&buildah).args(["pull", "--tls-verify=false", &format!("{host}/team/buildah:v3")]));
}

/// A daemon that is ended with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let id = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        for _ in 0..500 {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn containerd_pulls_and_pushes_and_takes_it_as_a_mirror() {
    require!(Containerd);
    let (containerd, ctr) = (program("containerd"), program("ctr"));
    let upstream = Hostile::start();
    let image = image();
    image.push_to(&upstream, "team/app", "v1");
    let host = upstream.host();
    let serving = Serving::fresh(&["--upstream", &host]);
    let files = tempfile::tempdir().expect("a directory");
    let at = |name: &str| files.path().join(name);
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = {:?}\n",
        at("root"),
        at("state"),
        at("socket")
    );
    std::fs::write(at("config.toml"), config).expect("writing");
    let log = std::fs::File::create(at("log")).expect("creating");
    let daemon = spawn_tied(text(&containerd), |command| {
        command
            .arg("-c")
            .arg(at("config.toml"))
            .stdout(log.try_clone().expect("a file"))
            .stderr(log);
    });
    let _daemon = Daemon(daemon.expect("starting containerd"));
    let ctr = || {
        let mut command = Command::new(&ctr);
        command.arg("-a").arg(at("socket"));
        command
    };
    wait_for("containerd", Duration::from_secs(20), || {
        ctr().arg("version").output().is_ok_and(|output| output.status.success())
    });
    let url = format!("http://{}", serving.host());
    let hosts =
        Imgfs::scratch().run(&["serve", "--print-config", "containerd", "--url", &url]).success();
    std::fs::create_dir_all(at("hosts/_default")).expect("making a directory");
    std::fs::write(at("hosts/_default/hosts.toml"), hosts.stdout).expect("writing");
    upstream.clear_log();
    let name = format!("{host}/team/app:v1");
    run(ctr()
        .args(["images", "pull", "--all-platforms", "--snapshotter", "native", "--hosts-dir"])
        .arg(at("hosts"))
        .arg(&name));
    assert!(upstream.requests() > 0, "it came through");
    let pushed = format!("{}/team/ctr:v1", serving.host());
    run(ctr().args(["images", "push", "--plain-http", &pushed, &name]));
    assert_eq!(serving.client().get("/v2/team/ctr/manifests/v1").status, 200);
}

#[test]
fn docker_pulls_pushes_and_mirrors_docker_hub() {
    require!(Docker);
    let (dockerd, docker) = (program("dockerd"), program("docker"));
    let upstream = Hostile::start();
    let image = image();
    image.push_to(&upstream, "library/hello", "v1");
    let place = format!("docker.io=http://{}", upstream.host());
    let serving = Serving::fresh(&["--upstream", &place]);
    image.push_to(&serving.client(), "team/app", "v1");
    let files = tempfile::tempdir().expect("a directory");
    let at = |name: &str| text(&files.path().join(name)).to_owned();
    let log = std::fs::File::create(at("log")).expect("creating");
    // What the machine's own daemon is told does not count, and it is to have a store of its own.
    let config = r#"{"features": {"containerd-snapshotter": false}}"#;
    std::fs::write(at("daemon.json"), config).expect("writing");
    let daemon = spawn_tied(text(&dockerd), |command| {
        command
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--storage-driver=vfs",
            ])
            .args(["--data-root", &at("root"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["-H", &format!("unix://{}", at("socket")), "--config-file", &at("daemon.json")])
            .args(["--registry-mirror", &format!("http://{}", serving.host())])
            .env("HOME", files.path())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log);
    });
    let _daemon = Daemon(daemon.expect("starting dockerd"));
    let docker = || {
        let mut command = Command::new(&docker);
        command.args(["-H", &format!("unix://{}", at("socket"))]).env("HOME", files.path());
        command
    };
    let is_up = || docker().arg("version").output().is_ok_and(|output| output.status.success());
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !is_up() {
        if std::time::Instant::now() > deadline {
            // Some machines do not let it: no cgroups, no mounts.
            let log = std::fs::read_to_string(at("log")).unwrap_or_default();
            assert!(std::env::var_os("CI").is_none(), "dockerd does not start:\n{log}");
            eprintln!("SKIPPED: dockerd does not start here:\n{log}");
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let name = format!("{}/team/app:v1", serving.host());
    run(docker().args(["pull", &name]));
    let pushed = format!("{}/team/docker:v1", serving.host());
    run(docker().args(["tag", &name, &pushed]));
    run(docker().args(["push", &pushed]));
    assert_eq!(serving.client().get("/v2/team/docker/manifests/v1").status, 200);
    upstream.clear_log();
    run(docker().args(["pull", "hello:v1"]));
    assert!(upstream.requests() > 0, "it came through the mirror");
}
