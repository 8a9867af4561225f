//! What some tests need of the machine, and what happens where that is missing.
//!
//! A test that cannot run here must not look as if it had passed. libtest cannot skip at run time, so such a
//! test says `SKIPPED` on standard error, past the harness that captures output, and adds a line to the file that
//! `IMGFS_TEST_SKIPPED` names; `scripts/test` prints how many these are. Where `CI` is set nothing is
//! skipped: what is missing is a failure.

use std::io::Write as _;
use std::path::Path;

/// What a test needs.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    /// To be root, for small file systems in memory and for owners of files.
    Root,
    /// The same, and FUSE.
    Mounts,
    /// The same, and file systems of sticks: exfatprogs, exfat-fuse and ntfs-3g.
    Sticks,
    /// The same, and loop devices with ext4.
    Loops,
    /// Mounts, and podman with runc, buildah and skopeo.
    Podman,
    /// Mounts, and containerd with runc.
    Containerd,
    /// Root, and Docker's daemon and client with containerd and runc.
    Docker,
    /// strace, as root.
    Strace,
    /// An object store: `scripts/setup --object-store`.
    ObjectStore,
    /// The long form of the tests: `scripts/test --long`.
    Long,
}

/// A program that runs in a container without any other file: it has to be linked statically.
const BUSYBOX: &str = "/bin/busybox";

fn has(programs: &[&str]) -> bool {
    programs.iter().all(|name| super::process::find_program(name).is_some())
        && std::fs::read(BUSYBOX).is_ok_and(|program| {
            let head = &program[..program.len().min(4096)];
            !head.windows(8).any(|window| window == b"ld-linux")
        })
}

/// Programs that make and mount the file systems of sticks.
const STICKS: [&str; 4] = [
    "/usr/sbin/mkfs.exfat",
    "/usr/sbin/mkfs.ntfs",
    "/sbin/mount.exfat-fuse",
    "/sbin/mount.ntfs-3g",
];

impl Need {
    /// What of it is missing here.
    fn missing(self) -> Option<&'static str> {
        let is_root = rustix::process::geteuid().is_root();
        match self {
            Self::Root
            | Self::Mounts
            | Self::Sticks
            | Self::Loops
            | Self::Podman
            | Self::Containerd
            | Self::Docker
            | Self::Strace
                if !is_root =>
            {
                Some("it has to run as root")
            }
            Self::Mounts | Self::Sticks | Self::Podman | Self::Containerd
                if !Path::new("/dev/fuse").exists() =>
            {
                Some("there is no /dev/fuse: load the kernel's module (modprobe fuse)")
            }
            Self::Long if super::scale(0, 1) == 0 => {
                Some("it is run by `scripts/test --long` only")
            }
            Self::Sticks if !STICKS.iter().all(|path| Path::new(path).exists()) => {
                Some("exfatprogs, exfat-fuse or ntfs-3g is missing")
            }
            Self::Loops if !Path::new("/dev/loop-control").exists() => {
                Some("there are no loop devices")
            }
            Self::Loops if !Path::new("/usr/sbin/mkfs.ext4").exists() => {
                Some("e2fsprogs is missing")
            }
            Self::Podman if !has(&["podman", "runc", "buildah", "skopeo"]) => {
                Some("podman, runc, buildah, skopeo or busybox-static is missing")
            }
            Self::Containerd if !has(&["containerd", "ctr", "runc"]) => {
                Some("containerd, runc or busybox-static is missing")
            }
            Self::Docker if !has(&["dockerd", "docker", "containerd", "runc"]) => {
                Some("docker.io or containerd is missing")
            }
            Self::ObjectStore if super::seaweed::weed().is_none() => {
                Some("there is no object store: scripts/setup --object-store")
            }
            Self::Strace if super::process::find_program("strace").is_none() => {
                Some("strace is missing")
            }
            _ => None,
        }
    }
}

/// Whether the test `name` can run. If not, it is reported as skipped.
#[track_caller]
pub(crate) fn is_met(need: Need, name: &str) -> bool {
    let Some(missing) = need.missing() else { return true };
    let is_set =
        |name| std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "false");
    // The long form is a choice, and nothing that a machine lacks.
    let is_choice = matches!(need, Need::Long);
    assert!(is_choice || !is_set("CI"), "nothing is skipped where CI is set: {missing}");
    let line = format!("SKIPPED {name}: {missing}\n");
    // Not `eprintln!`, which the harness captures.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(list) = std::env::var_os("IMGFS_TEST_SKIPPED") {
        let list = std::fs::OpenOptions::new().create(true).append(true).open(list);
        list.and_then(|mut list| list.write_all(line.as_bytes())).expect("writing the list");
    }
    false
}

/// Ends the test, reported as skipped, where the machine lacks what it needs.
macro_rules! require {
    ($need:ident) => {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        if !$crate::support::need::is_met($crate::support::need::Need::$need, &name) {
            return;
        }
    };
}

pub(crate) use require;
