//! A mount with a store, podman with a store of its own that reads it, and containerd with the snapshotter.
//!
//! ```ignore
//! let hostile = Hostile::start();
//! let bed = StoreBed::start(&[]);
//! bed.prepare(&format!("{}/team/app:1", hostile.host())).success();
//! bed.podman(&["pull", &image]).success();
//! ```

use super::cli::Imgfs;
use super::image::{Built, Image};
use super::layers::{Archive, Entry};
use super::mount::{Done, Looking, Mounted};
use serde_json::Value;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// As podman is told to be on a machine that is itself a container: no network of its own, and no limits.
const CONTAINERS_CONF: &str = r#"
[containers]
netns = "none"
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"#;

/// A mount that serves a store.
pub(crate) struct StoreBed {
    pub(crate) mount: Mounted,
    pub(crate) imgfs: Imgfs,
    store: PathBuf,
    place: tempfile::TempDir,
}

impl StoreBed {
    /// Starts a mount with a store, and with further arguments.
    #[track_caller]
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_with(None, args)
    }

    /// The same with the store in a directory of the test's.
    #[track_caller]
    pub(crate) fn start_with(store: Option<&Path>, args: &[&str]) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        let imgfs = Imgfs::scratch();
        let socket = place.path().join("store.sock");
        let store = store.map_or_else(|| place.path().join("store"), Path::to_owned);
        let mut all = vec!["--store".to_owned(), super::text(&store).to_owned()];
        all.extend(["--store-socket".to_owned(), super::text(&socket).to_owned()]);
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let mount = Mounted::start(imgfs.images_dir(), &all);
        symlink(env!("CARGO_BIN_EXE_imgfs"), place.path().join("imgfs-store-helper"))
            .expect("linking");
        std::fs::write(place.path().join("containers.conf"), CONTAINERS_CONF).expect("writing");
        let bed = Self { mount, imgfs, store, place };
        bed.write_storage_conf();
        bed
    }

    /// What tells podman where its store is, and this one.
    fn write_storage_conf(&self) {
        let (graph, run) = (self.path("graph"), self.path("run"));
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n[storage.options]\nadditionalimagestores = [\"{}\"]\n",
            graph.display(),
            run.display(),
            self.store().display(),
        );
        std::fs::write(self.path("storage.conf"), text).expect("writing");
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.place.path().join(below)
    }

    /// The directory of the store.
    pub(crate) fn store(&self) -> PathBuf {
        self.store.clone()
    }

    #[track_caller]
    fn run(&self, program: &str, args: &[&str], env: &[(&str, &Path)], stdin: &str) -> Done {
        self.begin(program, args, env, stdin).wait()
    }

    fn begin(&self, program: &str, args: &[&str], env: &[(&str, &Path)], stdin: &str) -> Looking {
        // The program is another child, so that its environment is its own.
        let mut words =
            vec!["-i".to_owned(), "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned()];
        words.push(format!("HOME={}", self.place.path().display()));
        words.extend(env.iter().map(|(name, value)| format!("{name}={}", value.display())));
        let input = self.path("stdin");
        std::fs::write(&input, stdin).expect("writing");
        words.extend(["sh", "-c", "exec \"$@\" < \"$0\""].map(str::to_owned));
        words.push(super::text(&input).to_owned());
        words.push(program.to_owned());
        words.extend(args.iter().map(|arg| (*arg).to_owned()));
        Looking::start("env", &words, self.mount.server())
    }

    /// What containers/image does before it pulls `image`.
    #[track_caller]
    pub(crate) fn prepare(&self, image: &str) -> Done {
        self.prepare_with(&format!("{{\"{image}\":{{}}}}"))
    }

    /// The same with what it writes on standard input.
    #[track_caller]
    pub(crate) fn prepare_with(&self, request: &str) -> Done {
        let helper = self.path("imgfs-store-helper");
        let env = [("IMGFS_STORE_SOCKET", &*self.path("store.sock"))];
        self.run(super::text(&helper), &[], &env, request)
    }

    /// The same in the background.
    pub(crate) fn begin_prepare(&self, image: &str) -> Looking {
        let helper = self.path("imgfs-store-helper");
        let env = [("IMGFS_STORE_SOCKET", &*self.path("store.sock"))];
        self.begin(super::text(&helper), &[], &env, &format!("{{\"{image}\":{{}}}}"))
    }

    /// `imgfs store ...`
    #[track_caller]
    pub(crate) fn imgfs_store(&self, args: &[&str]) -> Done {
        let env = [
            ("IMGFS_STORE_SOCKET", &*self.path("store.sock")),
            ("IMGFS_STORE", &*self.store()),
            ("CONTAINERS_STORAGE_CONF", &*self.path("storage.conf")),
        ];
        let all: Vec<&str> = std::iter::once("store").chain(args.iter().copied()).collect();
        self.run(env!("CARGO_BIN_EXE_imgfs"), &all, &env, "")
    }

    /// What `imgfs store ls --json` says of `image`.
    #[track_caller]
    pub(crate) fn listed(&self, image: &str) -> Value {
        let text = self.imgfs_store(&["ls", "--json"]).success().text();
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let images = all["images"].as_array().cloned().unwrap_or_default();
        images.into_iter().find(|found| found["image"] == image).unwrap_or(Value::Null)
    }

    /// The layers that the store lists.
    pub(crate) fn layers(&self) -> Vec<Value> {
        let text = std::fs::read(self.store().join("overlay-layers/layers.json")).expect("reading");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// Runs podman, with a store of its own, and the registry `host`, which is plain.
    #[track_caller]
    pub(crate) fn podman(&self, host: &str, args: &[&str]) -> Done {
        self.tool("podman", host, args)
    }

    /// Runs podman, buildah or skopeo like that.
    #[track_caller]
    pub(crate) fn tool(&self, program: &str, host: &str, args: &[&str]) -> Done {
        self.begin_tool(program, host, args).wait()
    }

    /// The same in the background.
    pub(crate) fn begin_tool(&self, program: &str, host: &str, args: &[&str]) -> Looking {
        let [storage, registries, conf] =
            ["storage.conf", "registries.conf", "containers.conf"].map(|name| self.path(name));
        // What does not know the helper leaves it out.
        let text = format!(
            "additional-layer-store-auth-helper = {:?}\n[[registry]]\nlocation = \"{host}\"\ninsecure = true\n",
            self.path("imgfs-store-helper"),
        );
        std::fs::write(&registries, text).expect("writing");
        let socket = self.path("store.sock");
        let env = [
            ("IMGFS_STORE_SOCKET", &*socket),
            ("PODMAN_IGNORE_CGROUPSV1_WARNING", Path::new("1")),
            ("CONTAINERS_STORAGE_CONF", &*storage),
            ("CONTAINERS_REGISTRIES_CONF", &*registries),
            ("CONTAINERS_CONF", &*conf),
            ("XDG_DATA_HOME", self.place.path()),
        ];
        self.begin(program, args, &env, "")
    }
}

/// Whether podman calls the helper by itself, as it does from 5.2 on.
pub(crate) fn podman_calls_the_helper() -> bool {
    let output = std::process::Command::new("podman").arg("--version").output();
    let said = String::from_utf8(output.expect("running podman").stdout).expect("text");
    let version = said.split_whitespace().last().expect("a version");
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(5), Some(2))
}

impl Drop for StoreBed {
    fn drop(&mut self) {
        // Containers that a failed test has left.
        let graph = self.path("graph");
        if graph.exists() {
            let _ = std::process::Command::new("podman")
                .args(["--root", super::text(&graph), "--runroot", super::text(&self.path("run"))])
                .args(["--cgroup-manager", "cgroupfs", "--runtime", "runc", "rm", "-af", "-t", "0"])
                .output();
            let _ = std::process::Command::new("umount")
                .args(["-l"])
                .arg(graph.join("overlay"))
                .output();
        }
    }
}

/// `cap_chown=ep` (linux/capability.h, version 2).
const CAP_CHOWN: [u8; 20] = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Names of programs that busybox is.
const APPLETS: [&str; 16] = [
    "sh", "ls", "cat", "echo", "sleep", "id", "stat", "touch", "rm", "find", "md5sum", "dd",
    "true", "false", "wc", "mkdir",
];

/// An image in which programs run, with whiteouts, an opaque directory, a hard link, a set-uid program, and files
/// of somebody else; `variant` makes another one of it.
pub(crate) fn runnable(variant: &str) -> Built {
    runnable_with(variant, None)
}

/// The same, which runs until it is told to end.
pub(crate) fn pausing() -> Built {
    runnable_with("pause", Some("#!/bin/sh\ntrap 'exit 0' TERM\nsleep 1000 &\nwait\n"))
}

fn runnable_with(variant: &str, program: Option<&str>) -> Built {
    let busybox = std::fs::read("/bin/busybox").expect("reading busybox");
    let mut base = Archive::new();
    for dir in ["bin", "etc", "proc", "sys", "dev", "root", "tmp", "opq", "doc"] {
        base = base.dir(dir);
    }
    base = base.entry(Entry::file("bin/busybox", &busybox).mode(0o755));
    for name in APPLETS {
        base = base.symlink(format!("bin/{name}"), "busybox");
    }
    base = base
        .entry(Entry::file("bin/su", &busybox).mode(0o4755))
        .dir("able")
        .entry(
            Entry::file("able/cat", &busybox).mode(0o755).xattr("security.capability", CAP_CHOWN),
        )
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
        .file("etc/group", "root:x:0:\nuser:x:1000:\n")
        .file("etc/gone", "to be removed\n")
        .file("opq/lower", "hidden\n")
        .file("doc/a", "base\n");
    let middle = Archive::new()
        .dir("data")
        .entry(Entry::file("data/big", variant.repeat(50_000)).mode(0o640).owner(1000, 1000))
        .link("data/hard", "data/big")
        .file("doc/a", "upper\n");
    let mut top = Archive::new()
        .whiteout("etc/gone")
        .dir("opq")
        .opaque("opq")
        .file("opq/upper", "shown\n")
        .file("etc/variant", format!("{variant}\n"));
    if let Some(program) = program {
        // What images of the tests run.
        top = top.entry(Entry::file("bin/true", program).mode(0o755));
    }
    let mut image = Image::new();
    for (step, layer) in [("ADD base", &base), ("ADD middle", &middle), ("RUN rm", &top)] {
        image = image.step(step, &layer.gzip());
    }
    image.build()
}

/// The names that containers/storage has for the layers of an image, the lowest first.
pub(crate) fn chains(image: &Built) -> Vec<String> {
    let config = image.json()["config"]["digest"].as_str().expect("a digest").to_owned();
    let config: Value =
        serde_json::from_slice(&image.blobs[&config].content.to_vec()).expect("JSON");
    let mut chains: Vec<String> = Vec::new();
    for diff_id in config["rootfs"]["diff_ids"].as_array().expect("a list") {
        let hex = diff_id.as_str().expect("a digest").trim_start_matches("sha256:");
        chains.push(match chains.last() {
            None => hex.to_owned(),
            Some(below) => {
                let text = format!("{below}+{hex}");
                super::content::digest(text.as_bytes()).trim_start_matches("sha256:").to_owned()
            }
        });
    }
    chains
}
