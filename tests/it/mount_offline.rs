//! A mount where there is no network, and one that must leave the network alone.

use crate::support::cli::Imgfs;
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image};
use crate::support::mount::{Looking, require_fuse};
use crate::support::need::require;
use crate::support::process::require_program;
use crate::support::text;
use crate::support::tree;
use serde_json::{Value, json};
use std::path::Path;

/// What shells, desktops and other programs look for in any directory.
const NO_IMAGES: [&str; 22] = [
    ".git",
    ".git/HEAD",
    ".hg",
    ".svn/entries",
    ".Trash",
    ".Trash-0/info",
    ".Trash-1000",
    ".DS_Store",
    ".hidden",
    ".xdg-volume-info",
    ".metadata_never_index",
    "autorun.inf",
    "desktop.ini",
    "Thumbs.db",
    "package.json",
    "foo",
    "foo/bar",
    "foo/bar/manifests/latest",
    "lost+found",
    "System Volume Information",
    "blobs/.git",
    "blobs/sha256:0000000000000000000000000000000000000000000000000000000000000000",
];

/// A directory with an image in it, and the host in the name of that image.
fn filled() -> (Imgfs, Built, String) {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 300_000).layer(2, 70_000).build();
    image.push_to(&hostile, "team/app", "1");
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[format!("{}/team/app:1", hostile.host())]).success();
    (imgfs, image, hostile.host())
}

/// Runs `offline.py`: `further` arguments of `imgfs mount`, `further` parts of the plan.
#[track_caller]
fn alone(imgfs: &Imgfs, args: &[&str], further: &[(&str, Value)]) -> Value {
    require_fuse();
    require_program("ip", "iproute2");
    let place = tempfile::tempdir().expect("making a temporary directory");
    let [at, program, plan] = ["at", "offline.py", "plan.json"].map(|name| place.path().join(name));
    std::fs::create_dir(&at).expect("making a directory");
    let mut command = vec![json!(env!("CARGO_BIN_EXE_imgfs")), json!("mount")];
    command.extend(["--foreground", "--plain-http", "--images-dir"].map(Value::from));
    command.push(json!(imgfs.images_dir()));
    command.extend(args.iter().copied().map(Value::from));
    command.push(json!(at));
    let mut all = json!({"at": at, "command": command, "quiet": NO_IMAGES, "copies": []});
    for (key, value) in further {
        all[*key] = value.clone();
    }
    std::fs::write(&plan, all.to_string()).expect("writing");
    std::fs::write(&program, include_str!("support/offline.py")).expect("writing");
    let flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"];
    let run = [Path::new("python3"), &program, &plan].map(text);
    // Whatever happens in there ends with it, the mount included.
    let report = Looking::start("unshare", &[&flags[..], &run].concat(), None).wait().success();
    let report: Value = serde_json::from_str(&report.text()).expect("it prints JSON");
    for name in NO_IMAGES {
        assert_eq!(report["quiet"][name], "ENOENT", "{name}: {report}");
    }
    assert_eq!(report["status"], 0, "{report}");
    report
}

#[test]
fn without_a_network_all_that_is_local_works_and_the_rest_says_why_not() {
    require!(Mounts);
    let (imgfs, image, host) = filled();
    let absent =
        ["registry.example/team/app/manifests/1".to_owned(), format!("{host}/team/no/manifests/1")];
    let log = imgfs.home().join("log");
    let log_to = text(&log);
    for args in [
        &["--log-file", log_to, "--stall-timeout", "1s", "--connect-timeout", "1s"][..],
        &["--log-file", log_to, "--offline"],
    ] {
        let offline = args.contains(&"--offline");
        let _ = std::fs::remove_file(&log);
        let copy = tempfile::tempdir().expect("making a temporary directory");
        let copies = json!([["blobs", copy.path()], [host, copy.path()]]);
        let further = [("network", json!(false)), ("loud", json!(absent)), ("copies", copies)];
        let report = alone(&imgfs, args, &further);
        assert_eq!(tree::snapshot(copy.path()), tree::snapshot(imgfs.images_dir()));
        assert!(copy.path().join("blobs").join(&image.layers()[0]).exists());
        let log = std::fs::read_to_string(&log).expect("reading the log");
        for (path, name) in
            absent.iter().zip(["registry.example/team/app:1", &format!("{host}/team/no:1")])
        {
            let errno = if offline { "EHOSTUNREACH" } else { "EIO" };
            assert_eq!(report["loud"][path], errno, "{report}\n{log}");
            let told = log.lines().filter(|line| line.contains(name)).count();
            assert_eq!(told, 1, "{name}\n{log}");
        }
        assert_eq!(log.lines().count(), 2, "{log}");
    }
}

#[test]
fn names_that_no_registry_can_have_ask_the_network_nothing() {
    require!(Mounts);
    let (imgfs, _, host) = filled();
    let loud = "registry.example/team/app/manifests/1";
    let args = ["--stall-timeout", "1s", "--connect-timeout", "1s", "--log-file", "/dev/null"];
    let copies = json!([["blobs", imgfs.home().join("copy")]]);
    let further = [("network", json!(true)), ("loud", json!([loud])), ("copies", copies)];
    let report = alone(&imgfs, &args, &further);
    assert_eq!(report["asked_for_quiet"], json!([]), "{report}");
    assert!(report["listed"].as_array().is_some_and(|all| all.contains(&json!(host))), "{report}");
    // And what is asked is seen.
    let asked = report["asked"].as_array().expect("a list");
    for expected in ["name registry.example", "connection to port 80"] {
        assert!(asked.contains(&json!(expected)), "{report}");
    }
    assert_ne!(report["loud"][loud], "ENOENT", "{report}");
}
