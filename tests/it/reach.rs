//! Which registries are asked at all, where connections may lead, and how long somebody waits.

use crate::support::cli::Imgfs;
use crate::support::content::{self, Content};
use crate::support::hostile::{Access, Fault, Hostile, Match};
use crate::support::image::{Built, Image};
use crate::support::mount::{Mounted, require_fuse};
use crate::support::text;
use imgfs::backend::{
    Blobs as _, Kind, Names as _,
    registry::{Access as Reached, Registry, RegistryConfig},
};
use imgfs::image::{Descriptor, Manifest, Reference};
use serde_json::json;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

fn image() -> Built {
    Image::new().layer(1, 300_000).build()
}

/// Whether somebody has connected to `listener` since it was made.
fn was_called(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).expect("setting a socket");
    match listener.accept() {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    }
}

#[test]
fn who_lets_others_look_says_which_registries_they_may_have_asked() {
    require_fuse();
    let place = tempfile::tempdir().expect("making a temporary directory");
    let imgfs = Imgfs::scratch();
    for further in [&["--allow-other"][..], &["-o", "allow_other"], &["-o", "ro,allow_other"]] {
        let args = ["mount", "--foreground", "--images-dir", text(imgfs.images_dir())];
        let args = [&args[..], further, &[text(place.path())]].concat();
        let failed = imgfs.run(&args).expect_code(2);
        failed.stderr_has("--allow-other").stderr_has("--registries").stderr_has("hint:");
    }
    for (pattern, reason) in [("https://quay.io", "leave out"), ("quay.*", "`*`"), ("", "empty")] {
        let args = ["mount", "--registries", pattern, text(place.path())];
        imgfs.run(&args).expect_code(2).stderr_has(reason);
    }
    // What a mount is told to show has to be among them.
    let args = ["mount", "--images-dir", text(imgfs.images_dir()), "--foreground"];
    let named = ["--manifests", "quay.io/a/b:1", "--registries", "docker.io", text(place.path())];
    let failed = imgfs.run(&[&args[..], &named].concat()).expect_code(2);
    failed.stderr_has("quay.io/a/b is not among --registries");
}

#[test]
fn what_is_not_among_the_registries_does_not_exist_and_is_not_asked() {
    let (hostile, other) = (Hostile::start(), TcpListener::bind("127.0.0.1:0").expect("binding"));
    let image = image();
    image.push_to(&hostile, "team/app", "1");
    image.push_to(&hostile, "private/app", "1");
    let host = hostile.host();
    let imgfs = Imgfs::scratch();
    let allowed = format!("{host}/team");
    for others in [false, true] {
        let allow = if others { &["--allow-other"][..] } else { &[] };
        let args = [&["--registries", "*.example.com", "--registries", &allowed][..], allow];
        let mount = Mounted::start(imgfs.images_dir(), &args.concat());
        let unlisted = other.local_addr().expect("its address").to_string();
        for name in [format!("{unlisted}/app"), format!("{host}/private/app")] {
            for path in [format!("{name}/manifests/1"), format!(".imgfs/{name}:1")] {
                let failed = mount.run("stat", &[mount.path(&path)]);
                failed.fails_with("No such file or directory");
            }
        }
        assert_eq!(mount.log(), Vec::<String>::new(), "nobody is bothered");
        let read = mount.cat(&format!("{host}/team/app/manifests/1")).success();
        assert_eq!(read.stdout, image.root().bytes);
    }
    assert!(!was_called(&other));
    let asked = hostile.log();
    assert!(asked.iter().all(|served| served.path.contains("/team/")), "{asked:?}");
}

#[test]
fn this_machine_is_only_asked_for_others_if_it_is_named() {
    let hostile = Hostile::start();
    let image = image();
    image.push_to(&hostile, "app", "1");
    let host = hostile.host();
    let imgfs = Imgfs::scratch();
    let manifest = format!("{host}/app/manifests/1");
    let mount = Mounted::start(imgfs.images_dir(), &["--allow-other", "--registries", "*"]);
    mount.cat(&manifest).fails_with("Permission denied");
    // Names are judged by what they resolve to.
    let by_name = host.replace("127.0.0.1", "localhost");
    mount.cat(&format!("{by_name}/app/manifests/1")).fails_with("Permission denied");
    assert_eq!(mount.logged(&["on this machine"]).len(), 2, "{:?}", mount.log());
    assert!(hostile.log().is_empty());
    drop(mount);
    // Without others, everything is as it was.
    for args in [&["--allow-other", "--registries", "*", "--registries", &host][..], &[]] {
        let mount = Mounted::start(imgfs.images_dir(), args);
        assert_eq!(mount.cat(&manifest).success().stdout, image.root().bytes);
    }
}

#[test]
fn special_addresses_are_not_asked_by_a_mere_lookup() {
    let imgfs = Imgfs::scratch();
    for args in [&[][..], &["--registries", "*"]] {
        let mount = Mounted::start(imgfs.images_dir(), args);
        for host in ["169.254.169.254", "169.254.169.254:8080", "[fd00:ec2::254]:80", "0.0.0.0:80"]
        {
            let path = format!("{host}/latest/meta-data/manifests/1");
            mount.run("stat", &[mount.path(&path)]).fails_with("Permission denied");
            assert_eq!(mount.logged(&[host, "special"]).len(), 1, "{host}: {:?}", mount.log());
        }
    }
}

/// A registry that is not on this machine as far as anybody can tell: it is behind a proxy, and
/// leads to an address of this machine for its blobs, or for its tokens.
fn public(front: &Hostile, imgfs: Imgfs) -> Imgfs {
    imgfs.env("http_proxy", front.url()).env("no_proxy", "127.0.0.1")
}

#[test]
fn a_public_registry_does_not_lead_to_this_machine() {
    let (front, inner) = (Hostile::start(), Hostile::start());
    image().push_to(&front, "app", "1");
    front.redirect_blobs_to(&inner, 100);
    let name = "registry.invalid/app:1";
    let failed = public(&front, Imgfs::scratch()).pull(&[name]).expect_code(1);
    failed.stderr_has("not connecting").stderr_has("on this machine").stderr_has("hint:");
    assert!(inner.log().is_empty(), "{:?}", inner.log());

    // Whoever names the host means it.
    let imgfs = public(&front, Imgfs::scratch());
    let auths = imgfs.home().join("auths.json");
    std::fs::write(&auths, json!([{"registry": inner.host()}]).to_string()).expect("writing");
    imgfs.pull(&["--auths", text(&auths), name]).success();
    assert!(!inner.log().is_empty());
}

#[test]
fn a_registry_on_this_machine_may_lead_to_another_one_there() {
    let (front, inner) = (Hostile::start(), Hostile::start());
    image().push_to(&front, "app", "1");
    front.redirect_blobs_to(&inner, 100);
    Imgfs::scratch().pull(&[format!("{}/app:1", front.host())]).success();
    assert!(!inner.log().is_empty());
}

fn layer_of(manifest: &Manifest) -> Descriptor {
    manifest.blobs().max_by_key(|blob| blob.size).expect("a layer").clone()
}

#[test]
fn a_registry_that_waits_for_us_has_not_stalled() {
    const STALL: Duration = Duration::from_millis(300);
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 2_000_000).build();
    image.push_to(&hostile, "app", "1");
    hostile.set_pace(64 << 10, Duration::from_millis(10));
    let name: Reference = format!("{}/app:1", hostile.host()).parse().expect("a name");
    let registry = Registry::new(RegistryConfig {
        defaults: Reached { plain_http: true, ..Reached::default() },
        stall_timeout: STALL,
        ..RegistryConfig::default()
    });
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    let received = runtime.block_on(async {
        let manifest = registry.manifest(&name).await.expect("a manifest");
        let layer = layer_of(&manifest);
        let mut stream =
            registry.read(name.repository(), &layer, 0..layer.size).await.expect("a stream");
        let mut received = Vec::new();
        let mut pieces = 0;
        let reading = async {
            while let Some(piece) = stream.next().await.expect("a piece") {
                received.extend_from_slice(&piece);
                pieces += 1;
                // Writing what has come takes longer than a registry may keep silent.
                if pieces == 3 {
                    tokio::time::sleep(STALL * 2).await;
                }
            }
        };
        // And so does something else on the same thread, while somebody waits for more.
        let blocking = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(40)).await;
                std::thread::sleep(STALL * 3);
            }
        };
        tokio::join!(reading, blocking);
        received
    });
    assert_eq!(received, Content::Generated { seed: 1, size: 2_000_000 }.to_vec());
    assert_eq!(registry.stats().retries(), 0);

    // One that does stall is noticed all the same.
    hostile.on(Match::blobs()).fault(Fault::HangAfter(1000));
    let failed = runtime.block_on(async {
        let manifest = registry.manifest(&name).await.expect("a manifest");
        let layer = layer_of(&manifest);
        let started = Instant::now();
        let stream = registry.read(name.repository(), &layer, 0..layer.size).await;
        let mut stream = stream.expect("a stream");
        let error = loop {
            match stream.next().await {
                Ok(piece) => assert!(piece.is_some(), "it cannot have ended"),
                Err(error) => break error,
            }
        };
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
        error
    });
    assert!(matches!(failed.kind(), Kind::Stalled(limit) if *limit == STALL), "{failed}");
}

/// A credential helper that writes down that it was asked, and then does `more`.
fn helper(imgfs: &Imgfs, more: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let bin = imgfs.home().join("bin");
    std::fs::create_dir_all(&bin).expect("making a directory");
    let (program, asked) = (bin.join("docker-credential-bed"), bin.join("asked"));
    let script = format!("#!/bin/sh\nread host\necho $$ >> {}\n{more}\n", text(&asked));
    std::fs::write(&program, script).expect("writing");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("setting a mode");
    (bin, asked)
}

fn asked(path: &std::path::Path) -> Vec<String> {
    let asked = std::fs::read_to_string(path).unwrap_or_default();
    asked.lines().map(str::to_owned).collect()
}

#[test]
fn a_helper_is_asked_once_for_all_who_need_it() {
    let hostile = Hostile::with_access(Access::basic());
    let names: Vec<String> = (0..6)
        .map(|number| {
            image().push_to(&hostile, &format!("app{number}"), "1");
            format!("{}/app{number}:1", hostile.host())
        })
        .collect();
    let imgfs = Imgfs::scratch().docker_config(&json!({"credsStore": "bed"}));
    let answer = json!({"ServerURL": "", "Username": "bed", "Secret": "secret"});
    let (bin, log) = helper(&imgfs, &format!("sleep 0.3; echo '{answer}'"));
    let imgfs = imgfs.path_prefix(&bin);
    imgfs.pull(&names).success();
    assert_eq!(asked(&log).len(), 1);
}

#[test]
fn a_helper_that_hangs_is_given_up_and_killed() {
    let hostile = Hostile::with_access(Access::basic());
    image().push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch().docker_config(&json!({"credsStore": "bed"}));
    let (bin, log) = helper(&imgfs, "exec sleep 1000");
    let imgfs = imgfs.path_prefix(&bin).timeout(Duration::from_secs(30));
    let name = format!("{}/app:1", hostile.host());
    let args = ["--stall-timeout", "500ms", "--connect-timeout", "500ms", &name];
    let failed = imgfs.pull(&args).expect_code(1);
    failed.stderr_has("docker-credential-bed has not answered within");
    let ids = asked(&log);
    assert!(!ids.is_empty(), "it was asked");
    for id in ids {
        let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "it still runs: {state}");
    }
}

#[test]
fn a_connection_lasts_from_listing_tags_to_the_transfer() {
    let hostile = Hostile::start();
    let image = image();
    image.push_to(&hostile, "team/app", "1");
    let imgfs = Imgfs::scratch();
    let from = format!("registry://{}/team/app", hostile.host());
    let to = text(imgfs.images_dir()).to_owned();
    let args = ["copy", "--plain-http", "--all", "--from", &from, "--to", &to];
    imgfs.run(&args).success();
    let log = hostile.log();
    assert!(log[0].path.ends_with("/tags/list"), "{log:?}");
    let same = log.iter().filter(|served| served.connection == log[0].connection).count();
    assert!(same > 1, "{log:?}");
    let layer = std::fs::read(imgfs.images_dir().join(format!("blobs/{}", image.layers()[0])));
    assert_eq!(content::digest(&layer.expect("the layer")), image.layers()[0]);
}
