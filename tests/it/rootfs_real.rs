//! Real files: every image, looked into through a mount, is what umoci unpacks of it, attribute for attribute.

use crate::support::cli::Imgfs;
use crate::support::inside::{REPOSITORY, debians};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::process::require_program;
use crate::support::registry::Registry;
use crate::support::snapshot::{Difference, Kind, Snapshot, differences, shortened, snapshot};
use crate::support::umoci::{Unpacked, umoci};
use crate::support::{skopeo, text};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is not the same, and why that is right.
const ALLOWED: [Allowed; 1] = [Allowed {
    is: |difference| {
        difference.path.is_empty() && difference.what == "mtime" && difference.wanted == "(0, 0)"
    },
    reason: "for a root without an entry umoci takes time 0, imgfs the earliest of the layer",
}];

/// A difference that is known.
struct Allowed {
    is: fn(&Difference<'_>) -> bool,
    reason: &'static str,
}

/// What differs between what umoci has unpacked and what a mount shows, a line each.
fn compare(name: &str, unpacked: &Snapshot, shown: &Snapshot) -> Vec<String> {
    let used = RefCell::new(BTreeSet::<&str>::new());
    let lines = differences(unpacked, shown, |difference| {
        let known = ALLOWED.iter().find(|allowed| (allowed.is)(difference));
        used.borrow_mut().extend(known.map(|allowed| allowed.reason));
        known.is_some()
    });
    let files = shown.values().filter(|item| item.kind == Kind::File);
    let bytes: u64 = files.clone().map(|item| item.size).sum();
    eprintln!("{name}: {} entries, {} files, {bytes} bytes", shown.len(), files.count());
    for reason in used.into_inner() {
        eprintln!("{name}: allowed: {reason}");
    }
    lines.into_iter().map(|line| format!("{name}: {line}")).collect()
}

/// The directories of the platforms of an image.
#[track_caller]
fn platforms(mount: &Mounted, image: &str) -> Vec<String> {
    let listed = mount.run("ls", &[mount.path(image)]).success().text();
    listed.lines().filter(|name| name.starts_with("linux-")).map(str::to_owned).collect()
}

/// How many bytes the mount has fetched so far.
fn fetched(mount: &Mounted, image: &str) -> u64 {
    let status = mount.cat(&format!("{image}status.json")).success().text();
    let status: Value = serde_json::from_str(&status).expect("the status is JSON");
    status["fetched_bytes"].as_u64().expect("a number")
}

/// What differs, in all platforms of an image that is in a layout and in a registry.
fn compare_all(mount: &Mounted, layout: &Path, name: &str) -> Vec<String> {
    let image = format!(".imgfs/{name}/");
    let mut lines = Vec::new();
    for platform in platforms(mount, &image) {
        let inside = format!("{image}{platform}/");
        let manifest = mount.cat(&format!("{inside}manifest.json")).success().stdout;
        let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest is JSON");
        let layers = manifest["layers"].as_array().expect("layers");
        let blobs: u64 = layers.iter().filter_map(|layer| layer["size"].as_u64()).sum();
        let before = fetched(mount, &image);
        let shown = mount.snapshot(&format!("{inside}rootfs"));
        let fetched = fetched(mount, &image) - before;
        let unpacked = Unpacked::of(layout, &manifest);
        let name = format!("{name} {platform}");
        eprintln!("{name}: fetched {fetched} bytes of {blobs} in {} layers", layers.len());
        lines.extend(compare(&name, &snapshot(&unpacked.rootfs()), &shown));
    }
    lines
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// What a script prints.
#[track_caller]
fn run(name: &str, args: &[&str]) -> String {
    let output = Command::new(script(name)).args(args).output().expect("starting a script");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {args:?}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Images made of the distribution's packages: `scripts/make-images`. Only in the long form.
#[test]
fn images_of_packages_are_what_umoci_unpacks() {
    require!(Long);
    require!(Mounts);
    let layout = PathBuf::from(run("make-images", &[]));
    let registry = Registry::plain();
    run("seed-registry", &[text(&layout), &format!("http://{}", registry.host())]);
    let index = std::fs::read_to_string(layout.join("index.json")).expect("reading the index");
    let index: Value = serde_json::from_str(&index).expect("an index is JSON");
    let names = index["manifests"]
        .as_array()
        .expect("manifests")
        .iter()
        .filter_map(|entry| entry["annotations"]["org.opencontainers.image.ref.name"].as_str());
    let names: Vec<_> = names.filter(|name| !name.contains(":sha256-")).collect();
    assert!(names.len() >= 8, "{names:?}");
    let imgfs = Imgfs::scratch();
    let mut mount = Mounted::start(imgfs.images_dir(), &["--cache-size", "1G"]);
    let mut lines = Vec::new();
    for name in names {
        lines.extend(compare_all(&mount, &layout, &format!("{}/{name}", registry.host())));
    }
    assert!(lines.is_empty(), "{} differences:\n{}", lines.len(), shortened(&lines));
    assert_eq!(mount.stop().code(), Some(0));
    assert_eq!(mount.log(), Vec::<String>::new());
}

/// Directories with many real files, as far as this machine has them.
const REAL: [&str; 4] = [
    "/usr/lib/python3.11/json",
    "/usr/lib/python3/dist-packages",
    "/usr/share/zoneinfo",
    "/usr/share/perl5",
];

/// Changes a root file system in ways that layers have to tell of.
fn change(rootfs: &Path, step: &str) {
    let output = Command::new("bash")
        .args(["-euc", step])
        .current_dir(rootfs)
        .output()
        .expect("starting bash");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The layers are made by umoci, too: another writer of archives, and of whiteouts.
#[test]
fn an_image_that_umoci_has_made_is_what_it_unpacks() {
    require!(Mounts);
    let place = tempfile::tempdir().expect("making a temporary directory");
    let (layout, bundle) = (place.path().join("layout"), place.path().join("bundle"));
    let image = format!("{}:it", layout.display());
    umoci(&["init", "--layout", text(&layout)]);
    umoci(&["new", "--image", &image]);
    umoci(&["unpack", "--image", &image, text(&bundle)]);
    let rootfs = bundle.join("rootfs");
    let busybox = require_program("busybox", "busybox-static");
    let real = REAL.into_iter().filter(|path| Path::new(path).is_dir()).collect::<Vec<_>>();
    let steps = [
        format!(
            "cp -a --parents {} .; mkdir -p bin; cp {} bin/busybox
             for name in sh ls cat; do ln bin/busybox bin/$name; done; ln -s bin sbin",
            real.join(" "),
            busybox.display()
        ),
        "chmod 4755 bin/busybox; mkdir -p var/tmp opt/a/b; chmod 1777 var/tmp; echo a > opt/a/b/c
         chown -R 1000:100 opt; setfattr -n user.note -v 'of a file' opt/a/b/c
         setfattr -n user.note -v 'of a directory' opt/a
         mknod null c 1 3; mkfifo pipe; touch -d '2001-02-03 04:05:06.789' opt/a/b/old
         printf 'x' > $'odd \\xff name'; truncate -s 3M opt/sparse; echo end >> opt/sparse"
            .to_owned(),
        "rm -r usr/share/*; rm sbin pipe; mkdir sbin; echo new > sbin/new; rm -r opt/a/b; echo file > opt/a/b
         ln opt/a/b opt/linked; rm bin/cat; mv bin/ls bin/list"
            .to_owned(),
        "rm opt/a/b; chmod 700 opt; rm -r opt/a; mkdir opt/a; echo again > opt/a/again".to_owned(),
    ];
    for (number, step) in steps.iter().enumerate() {
        change(&rootfs, step);
        umoci(&["repack", "--refresh-bundle", "--image", &image, text(&bundle)]);
        eprintln!("layer {number} is made");
    }
    let (registry, host) = debians(&[]);
    skopeo::push_oci_layout(&layout, "it", &format!("{host}/{REPOSITORY}:it"));
    let imgfs = Imgfs::scratch();
    let mut mount = Mounted::start::<&str>(imgfs.images_dir(), &[]);
    let mut lines = compare_all(&mount, &layout, &format!("{host}/{REPOSITORY}:it"));
    // And umoci has meant what the files are now, but for parts of seconds and the times of directories.
    let mut shown = mount.snapshot(&format!(".imgfs/{host}/{REPOSITORY}:it/rootfs/"));
    let mut made = snapshot(&rootfs);
    for tree in [&mut shown, &mut made] {
        tree.values_mut().for_each(|item| item.mtime = (0, 0));
    }
    lines.extend(compare("the bundle", &made, &shown));
    assert!(lines.is_empty(), "{} differences:\n{}", lines.len(), shortened(&lines));
    assert_eq!(mount.stop().code(), Some(0));
    assert_eq!(mount.log(), Vec::<String>::new());
    drop(registry);
}
