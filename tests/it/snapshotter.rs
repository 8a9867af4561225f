//! `imgfs snapshotter` under containerd as it is: images of which it fetches no layers.

use crate::support::cli::Imgfs;
use crate::support::containerd::{Auth, Containerd, is_2};
use crate::support::hostile::{Access, Hostile, PASSWORD, USER};
use crate::support::need::require;
use crate::support::store::{pausing, runnable};
use crate::support::wait_for;
use imgfs::snapshotter::messages::{
    CommitRequest, Empty, FieldMask, Info, InfoResponse, KeyRequest, Kind, ListRequest,
    ListResponse, Mount, MountsResponse, PrepareRequest, UpdateRequest, UsageResponse,
};
use std::time::Duration;
use tonic::Code;

const PREPARE: &str = "/containerd.services.snapshots.v1.Snapshots/Prepare";
const VIEW: &str = "/containerd.services.snapshots.v1.Snapshots/View";
const COMMIT: &str = "/containerd.services.snapshots.v1.Snapshots/Commit";
const REMOVE: &str = "/containerd.services.snapshots.v1.Snapshots/Remove";
const STAT: &str = "/containerd.services.snapshots.v1.Snapshots/Stat";
const UPDATE: &str = "/containerd.services.snapshots.v1.Snapshots/Update";
const LIST: &str = "/containerd.services.snapshots.v1.Snapshots/List";
const USAGE: &str = "/containerd.services.snapshots.v1.Snapshots/Usage";

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_pod_runs_on_layers_that_containerd_has_not_fetched() {
    require!(Containerd);
    let hostile = Hostile::start();
    let (image, pause) = (runnable("pod"), pausing());
    image.push_to(&hostile, "team/app", "1");
    pause.push_to(&hostile, "team/pause", "1");
    let host = hostile.host();
    let [app, pause] = ["app", "pause"].map(|name| format!("{host}/team/{name}:1"));
    let mut bed = Containerd::start(&host, &pause);
    bed.pull(&app, None);
    let content = bed.ctr(&["content", "ls", "-q"]).success().text();
    for layer in image.layers() {
        assert!(!content.contains(&layer), "containerd has fetched {layer}\n{}", bed.logged());
    }
    assert!(content.contains(image.digest()));
    let sandbox = bed.sandbox("one");
    let container = bed.container(&sandbox, "first", &app);
    let text =
        bed.exec(&container, "cat doc/a etc/variant; ls opq; stat -c '%a %h' /bin/su /data/big");
    assert_eq!(text, "upper\npod\nupper\n4755 1\n640 2\n");
    // All layers are one directory below the container's own.
    let mounts = bed.exec(&container, "cat /proc/mounts");
    let root = mounts.lines().find(|line| line.contains(" / overlay ")).expect("the root");
    let lower = root.split("lowerdir=").nth(1).unwrap().split(',').next().unwrap();
    assert!(!lower.contains(':') && lower.contains("/.imgfs/.trees/"), "{root}");
    bed.exec(&container, "echo own > /etc/variant && rm -r /doc && cat /etc/variant");

    // The snapshotter is killed, and there is no registry any more: what is new starts.
    let passes = || bed.exec(&container, "md5sum data/big bin/busybox > /dev/null; echo read");
    assert_eq!(passes(), "read\n");
    drop(hostile);
    bed.kill_snapshotter();
    bed.start_snapshotter();
    // containerd waits for a moment before it connects once more.
    let stat = || bed.ctr(&["snapshots", "--snapshotter", "imgfs", "ls"]).status.success();
    wait_for("the connection of containerd", PATIENCE, stat);
    let second = bed.container(&sandbox, "second", &app);
    assert_eq!(bed.exec(&second, "cat etc/variant; ls -d doc"), "pod\ndoc\n");
    bed.remove_sandbox(&sandbox.0);

    // What is removed in containerd goes here.
    bed.remove_images(&[&app, &pause]);
    wait_for_no_snapshots(&bed);
}

/// Waits until nothing is left of any image in the snapshotter's directory.
#[track_caller]
fn wait_for_no_snapshots(bed: &Containerd) {
    let entries = |below: &str| -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(bed.path(below)).expect("listing");
        entries.map(|entry| entry.expect("listing").path()).collect()
    };
    let left = || [entries("snapshotter/snapshots"), entries("snapshotter/.imgfs")].concat();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !left().is_empty() {
        if std::time::Instant::now() > deadline {
            let told = |args: &[&str]| bed.ctr(args).text();
            let files = left()
                .iter()
                .map(|path| {
                    format!(
                        "{}: {}\n",
                        path.display(),
                        std::fs::read_to_string(path).unwrap_or_default()
                    )
                })
                .collect::<String>();
            panic!(
                "left:\n{files}\n{}\n{}\n{}\n{}",
                told(&["snapshots", "--snapshotter", "imgfs", "ls"]),
                told(&["containers", "ls"]),
                told(&["leases", "ls"]),
                bed.logged(),
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Kills containerd, or else the snapshotter, while pods come and go.
fn kill_at_any_moment(is_containerd: bool) {
    let hostile = Hostile::start();
    let (image, pause) = (runnable("kills"), pausing());
    image.push_to(&hostile, "team/app", "1");
    pause.push_to(&hostile, "team/pause", "1");
    let host = hostile.host();
    let [app, pause] = ["app", "pause"].map(|name| format!("{host}/team/{name}:1"));
    let mut bed = Containerd::start(&host, &pause);
    bed.pull(&app, None);
    let mut moment: u64 = 12345;
    for round in 0..50 {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let process = bed.process(is_containerd);
        std::thread::scope(|threads| {
            threads.spawn(move || {
                std::thread::sleep(Duration::from_millis((moment >> 33) % 700));
                let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
            });
            // Whatever of it fails since one of the two is gone, fails.
            for pod in 0..10 {
                let made = bed.try_sandbox(&format!("{round}-{pod}")).and_then(|sandbox| {
                    bed.try_container(&sandbox, "c", &app)?;
                    bed.try_remove_sandbox(&sandbox.0)
                });
                if made.is_err() {
                    break;
                }
            }
        });
        bed.start_again(is_containerd);
        let snapshots = || {
            let listed = bed.ctr(&["snapshots", "--snapshotter", "imgfs", "ls"]);
            listed.status.success().then(|| listed.text())
        };
        wait_for("the connection of containerd", PATIENCE, || snapshots().is_some());
        let listed = snapshots().expect("the snapshots");
        for name in listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
            bed.ctr(&["snapshots", "--snapshotter", "imgfs", "info", name]).success();
        }
    }
    for sandbox in bed.sandboxes() {
        bed.remove_sandbox(&sandbox);
    }
    let sandbox = bed.sandbox("last");
    let container = bed.container(&sandbox, "c", &app);
    assert_eq!(bed.exec(&container, "cat etc/variant"), "kills\n");
    bed.remove_sandbox(&sandbox.0);
    // What containerd has leased to itself before it was killed, it would keep for a day.
    for lease in bed.ctr(&["leases", "ls", "-q"]).success().text().lines() {
        bed.ctr(&["leases", "delete", "--sync", lease]).success();
    }
    bed.remove_images(&[&app, &pause]);
    wait_for_no_snapshots(&bed);
}

#[test]
fn no_snapshot_is_lost_when_containerd_is_killed() {
    require!(Long);
    require!(Containerd);
    kill_at_any_moment(true);
}

#[test]
fn no_snapshot_is_lost_when_the_snapshotter_is_killed() {
    require!(Long);
    require!(Containerd);
    kill_at_any_moment(false);
}

#[test]
fn credentials_of_kubernetes_are_used_for_layers() {
    require!(Containerd);
    let hostile = Hostile::start();
    let image = runnable("private");
    image.push_to(&hostile, "team/app", "1");
    hostile.set_access(Access::basic());
    let host = hostile.host();
    let name = format!("{host}/team/app:1");
    let bed = Containerd::start(&host, &name);
    let auth = Auth { username: USER.to_owned(), password: PASSWORD.to_owned() };
    bed.pull(&name, Some(auth));
    let content = bed.ctr(&["content", "ls", "-q"]).success().text();
    for layer in image.layers() {
        assert!(!content.contains(&layer), "containerd has fetched {layer}\n{}", bed.logged());
    }
    assert!(!bed.logged().contains(PASSWORD));
}

#[test]
fn what_is_not_of_an_image_is_an_ordinary_snapshot() {
    require!(Containerd);
    let hostile = Hostile::start();
    runnable("ordinary").push_to(&hostile, "team/app", "1");
    let name = format!("{}/team/app:1", hostile.host());
    let bed = Containerd::start(&hostile.host(), &name);
    // `ctr` says nothing of images if it pulls them by itself, as that of 1.x always does, and fetches all layers.
    let mut pull = vec!["images", "pull", "--snapshotter", "imgfs", "--plain-http", &name];
    if is_2() {
        pull.insert(2, "--local");
    }
    bed.ctr(&pull).success();
    let run = ["run", "--rm", "--snapshotter", "imgfs", &name, "one"];
    let command = ["sh", "-c", "cat doc/a etc/variant; ls opq; ls etc/gone 2>&1 | wc -l"];
    let text = bed.ctr(&[&run[..], &command].concat()).success().text();
    assert_eq!(text, "upper\nordinary\nupper\n1\n");
    let listed = bed.ctr(&["snapshots", "--snapshotter", "imgfs", "ls"]).success().text();
    assert_eq!(listed.lines().filter(|line| line.contains("Committed")).count(), 3, "{listed}");
}

/// `ctr images pull` of containerd 2.x leaves it to the transfer service. That of 1.x has none.
#[test]
fn the_transfer_service_of_containerd_2_fetches_no_layers() {
    require!(Containerd);
    if !is_2() {
        return;
    }
    let hostile = Hostile::start();
    let (image, other) = (runnable("transfer"), runnable("other"));
    image.push_to(&hostile, "team/app", "1");
    other.push_to(&hostile, "team/other", "1");
    let [name, other] = ["app", "other"].map(|name| format!("{}/team/{name}:1", hostile.host()));
    let bed = Containerd::start(&hostile.host(), &name);
    bed.ctr(&["images", "pull", "--snapshotter", "imgfs", "--plain-http", &name]).success();
    let content = bed.ctr(&["content", "ls", "-q"]).success().text();
    for layer in image.layers() {
        assert!(!content.contains(&layer), "containerd has fetched {layer}\n{}", bed.logged());
    }
    let run = ["run", "--rm", "--snapshotter", "imgfs", &name, "transferred"];
    let text = bed.ctr(&[&run[..], &["cat", "/etc/variant"]].concat()).success().text();
    assert_eq!(text, "transfer\n");
    // Other snapshotters are as they were.
    bed.ctr(&["images", "pull", "--plain-http", &other]).success();
    let listed = bed.ctr(&["snapshots", "--snapshotter", "overlayfs", "ls"]).success().text();
    assert_eq!(listed.lines().filter(|line| line.contains("Committed")).count(), 3, "{listed}");
}

/// Calls the snapshotter as containerd does that has not been configured.
#[test]
fn that_containerd_does_not_say_which_images_it_fetches_is_told_once() {
    require!(Containerd);
    let bed = Containerd::start("127.0.0.1:1", "127.0.0.1:1/none:1");
    for key in ["a", "b"] {
        let chain = format!("sha256:{}", "0".repeat(64));
        let request = PrepareRequest {
            key: key.to_owned(),
            labels: [("containerd.io/snapshot.ref".to_owned(), chain)].into(),
            ..PrepareRequest::default()
        };
        bed.call::<MountsResponse>("snapshotter.sock", PREPARE, request).expect("an ordinary one");
    }
    let told = bed.logged().matches("does not say which image").count();
    assert_eq!(told, 1, "{}", bed.logged());
}

/// Calls the snapshotter as containerd does.
#[test]
fn one_snapshotter_has_a_directory() {
    require!(Containerd);
    let bed = Containerd::start("127.0.0.1:1", "127.0.0.1:1/none:1");
    let (root, imgfs) = (bed.path("snapshotter"), Imgfs::scratch());
    let [address, at] = ["other.sock", "other"].map(|name| imgfs.home().join(name));
    let args = ["snapshotter", "--root", &root.to_string_lossy(), "--address"].map(str::to_owned);
    let others = [address.to_string_lossy(), "--mountpoint".into(), at.to_string_lossy()];
    let args = args.into_iter().chain(others.map(std::borrow::Cow::into_owned));
    let output = imgfs.run(&args.collect::<Vec<_>>()).expect_code(2);
    output.stderr_has("the snapshotter at").stderr_has("has it to itself").stderr_has("--root DIR");
}

#[test]
fn the_calls_of_a_snapshotter_do_what_containerd_expects() {
    require!(Containerd);
    let bed = Containerd::start("127.0.0.1:1", "127.0.0.1:1/none:1");
    let code = |call: &'static str, key: &str, parent: &str| -> Result<Vec<Mount>, Code> {
        let request = PrepareRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: [("l".to_owned(), "1".to_owned())].into(),
            ..PrepareRequest::default()
        };
        let answer = bed.call::<MountsResponse>("snapshotter.sock", call, request);
        answer.map(|answer| answer.mounts).map_err(|status| status.code())
    };
    let prepare = |key: &str, parent: &str| code(PREPARE, key, parent);
    let mounts = prepare("a", "").unwrap();
    assert_eq!((mounts[0].r#type.as_str(), mounts[0].options[0].as_str()), ("bind", "rw"));
    assert_eq!(prepare("a", ""), Err(Code::AlreadyExists));
    assert_eq!(prepare("b", "none"), Err(Code::NotFound));
    assert_eq!(prepare("b", "a"), Err(Code::FailedPrecondition), "it is not committed");
    std::fs::write(std::path::Path::new(&mounts[0].source).join("file"), "x").unwrap();
    let commit = |key: &str, name: &str| {
        let (key, name) = (key.to_owned(), name.to_owned());
        let request = CommitRequest { key, name, ..CommitRequest::default() };
        bed.call::<Empty>("snapshotter.sock", COMMIT, request).map(drop).map_err(|s| s.code())
    };
    commit("a", "base").unwrap();
    assert_eq!(commit("a", "base"), Err(Code::AlreadyExists));
    assert_eq!(commit("none", "x"), Err(Code::NotFound));
    let view = code(VIEW, "view", "base").unwrap();
    assert_eq!((view[0].r#type.as_str(), view[0].options[0].as_str()), ("bind", "ro"));
    let upper = prepare("upper", "base").unwrap();
    assert_eq!(upper[0].r#type, "overlay");
    let has = |mount: &Mount, key: &str| mount.options.iter().any(|o| o.starts_with(key));
    assert!(
        has(&upper[0], "upperdir=") && has(&upper[0], "workdir=") && has(&upper[0], "lowerdir=")
    );
    commit("upper", "second").unwrap();
    let view = code(VIEW, "both", "second").unwrap();
    assert!(has(&view[0], "lowerdir=") && !has(&view[0], "upperdir="), "{view:?}");
    let key = |key: &str| KeyRequest { key: key.to_owned(), ..KeyRequest::default() };
    let usage: UsageResponse = bed.call("snapshotter.sock", USAGE, key("base")).unwrap();
    assert!(usage.size > 0 && usage.inodes == 2, "{usage:?}");
    let update = UpdateRequest {
        info: Some(Info {
            name: "base".to_owned(),
            labels: [("m".to_owned(), "2".to_owned())].into(),
            ..Info::default()
        }),
        update_mask: Some(FieldMask { paths: vec!["labels.m".to_owned()] }),
        ..UpdateRequest::default()
    };
    let updated: InfoResponse = bed.call("snapshotter.sock", UPDATE, update).unwrap();
    assert_eq!(updated.info.unwrap().labels.get("m").map(String::as_str), Some("2"));
    let stat: InfoResponse = bed.call("snapshotter.sock", STAT, key("base")).unwrap();
    assert_eq!(stat.info.unwrap().kind, i32::from(Kind::Committed));
    let remove = |name: &str| {
        bed.call::<Empty>("snapshotter.sock", REMOVE, key(name)).map(drop).map_err(|s| s.code())
    };
    assert_eq!(remove("base"), Err(Code::FailedPrecondition), "it has children");
    for name in ["view", "both", "second", "base"] {
        assert_eq!(remove(name), Ok(()), "{name}");
    }
    assert_eq!(remove("base"), Err(Code::NotFound));
    let lists =
        ListRequest { filters: vec!["kind==committed".to_owned()], ..ListRequest::default() };
    // It answers in parts, of which there is none.
    assert!(bed.call::<ListResponse>("snapshotter.sock", LIST, lists).is_err());
    let wrong = ListRequest { filters: vec!["name==\"".to_owned()], ..ListRequest::default() };
    let wrong = bed.call::<ListResponse>("snapshotter.sock", LIST, wrong).unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let other =
        bed.call::<Empty>("snapshotter.sock", "/runtime.v1.RuntimeService/Version", Empty {});
    assert_eq!(other.unwrap_err().code(), Code::Unimplemented);
}

/// Whether containerd makes of it what it should is seen in the other tests, which use it.
#[test]
fn the_configuration_is_printed_for_each_runtime() {
    let imgfs = Imgfs::scratch();
    let of = |args: &[&str]| {
        let printed = [&["snapshotter", "setup"], args, &["--address", "/run/x.sock"]].concat();
        imgfs.run(&printed).success().stdout
    };
    let toml = |text: &str| text.parse::<toml::Table>().expect("TOML");
    let first = toml(&of(&["--for", "containerd-1"]));
    let second = of(&["--for", "containerd-2"]);
    assert_eq!(of(&[]), second, "what most people have");
    let second = toml(&second);
    for (parsed, version) in [(&first, 2), (&second, 3)] {
        assert_eq!(parsed["version"].as_integer(), Some(version));
        let plugin = &parsed["proxy_plugins"]["imgfs"];
        assert_eq!(plugin["address"].as_str(), Some("/run/x.sock"));
        let exports = &plugin["exports"];
        assert_eq!(exports["root"].as_str(), Some("/var/lib/imgfs/snapshotter"));
        // A text, and not a boolean: containerd does not start otherwise.
        assert_eq!(exports["enable_remote_snapshot_annotations"].as_str(), Some("true"));
    }
    let cri = [
        &first["plugins"]["io.containerd.grpc.v1.cri"]["containerd"],
        &second["plugins"]["io.containerd.cri.v1.images"],
    ];
    for settings in cri {
        assert_eq!(settings["snapshotter"].as_str(), Some("imgfs"));
        assert_eq!(settings["disable_snapshot_annotations"].as_bool(), Some(false));
    }
    let transfer = &second["plugins"]["io.containerd.transfer.v1.local"];
    let unpacked = transfer["unpack_config"].as_array().expect("a list");
    let snapshotters: Vec<&str> =
        unpacked.iter().map(|of| of["snapshotter"].as_str().expect("a text")).collect();
    assert_eq!(snapshotters, ["overlayfs", "imgfs"], "that of containerd stays");
    assert_eq!(transfer.as_table().map(toml::Table::len), Some(1), "it knows no other setting");
    let docker = of(&["--for", "docker"]);
    assert_eq!(toml(&docker)["proxy_plugins"]["imgfs"]["type"].as_str(), Some("snapshot"));
    assert!(docker.contains("\"storage-driver\": \"imgfs\""), "{docker}");
    let k3s = of(&["--for", "k3s"]);
    assert!(k3s.contains("enable_remote_snapshot_annotations = \"true\""), "{k3s}");
    assert!(k3s.contains("--image-service /run/k3s/containerd/containerd.sock"), "{k3s}");
    imgfs.run(&["snapshotter", "setup", "--for", "other"]).expect_code(2);
}

#[test]
fn the_drop_in_of_the_daemon_set_is_what_is_printed_for_containerd_2() {
    let manifest = include_str!("../../deploy/kubernetes/daemonset.yaml");
    let (_, rest) = manifest.split_once("  imgfs.toml: |\n").expect("the drop-in");
    let (text, _) = rest.split_once("\n---").expect("the end of it");
    let mut drop_in = text.parse::<toml::Table>().expect("TOML");
    let printed = Imgfs::scratch().run(&["snapshotter", "setup"]).success().stdout;
    let mut printed = printed.parse::<toml::Table>().expect("TOML");
    // What is imported is in no later form than what imports it. In containerd 1.x, it would replace all of CRI.
    assert_eq!(drop_in.remove("version").and_then(|version| version.as_integer()), Some(2));
    printed.remove("version");
    assert_eq!(drop_in, printed);
}
