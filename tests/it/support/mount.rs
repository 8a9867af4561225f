//! `imgfs mount` in a child process, and programs that look at the mount, none of which may take for ever.
//!
//! ```ignore
//! let mount = Mounted::start(imgfs.images_dir(), &["--manifests", "quay.io/team/app:1"]);
//! mount.run("cp", &["-a", &mount.path("."), copy]).success();
//! ```
//!
//! The tests never look at a mount themselves: a fault of it would hang them, and a reader that waits for an
//! answer cannot even be killed. Here a program that takes too long is freed by killing the mount.

use super::process::{require_program, spawn_tied};
use super::snapshot::Snapshot;
use super::wait_for;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// How long one program may look at a mount.
const PATIENCE: Duration = Duration::from_secs(45);

/// How long starting and ending may take.
const TURN: Duration = Duration::from_secs(20);

/// Panics with what is missing for mounting.
pub(crate) fn require_fuse() {
    assert!(rustix::process::geteuid().is_root(), "tests of the mount have to run as root");
    let device = Path::new("/dev/fuse");
    assert!(device.exists(), "there is no /dev/fuse: load the kernel's module (modprobe fuse)");
    require_program("fusermount3", "fuse3");
    require_program("rsync", "rsync");
    require_program("python3", "python3");
}

/// A mount of imgfs in the foreground. Ended when dropped.
pub(crate) struct Mounted {
    place: tempfile::TempDir,
    images: PathBuf,
    args: Vec<OsString>,
    child: Option<Child>,
}

impl Mounted {
    /// Mounts `images_dir` with further arguments of `imgfs mount`, and waits until it is ready. Registries are
    /// plain, unless there is a `--ca-file`.
    #[track_caller]
    pub(crate) fn start<A: AsRef<OsStr>>(images_dir: &Path, args: &[A]) -> Self {
        require_fuse();
        let place = tempfile::tempdir().expect("making a temporary directory");
        std::fs::create_dir(place.path().join("at")).expect("making a directory");
        let args = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        let mut mounted = Self { place, images: images_dir.to_owned(), args, child: None };
        mounted.restart();
        mounted
    }

    /// Starts it once more at the same place after it has ended.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        let create = |name| std::fs::File::create(self.place.path().join(name)).expect("creating");
        let (stdout, stderr) = (create("stdout"), create("stderr"));
        let child = spawn_tied(env!("CARGO_BIN_EXE_imgfs"), |command| {
            command
                .args(["mount", "--foreground"])
                .args((!self.args.contains(&"--ca-file".into())).then_some("--plain-http"))
                .arg("--images-dir")
                .arg(&self.images)
                .arg("--log-file")
                .arg(self.place.path().join("log"))
                .args(&self.args)
                .arg(self.at())
                .env_clear()
                .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
                .env("HOME", self.place.path())
                .env("RUST_BACKTRACE", "1")
                .current_dir(self.place.path())
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(stderr);
        });
        self.child = Some(child.expect("starting imgfs"));
        let deadline = Instant::now() + TURN;
        while !self.said("stdout").contains("is mounted at") {
            let ended = self.child.as_mut().is_none_or(|child| has_ended(child).is_some());
            assert!(!ended, "imgfs has not mounted:\n{}", self.said("stderr"));
            assert!(Instant::now() < deadline, "imgfs is not ready:\n{}", self.said("stderr"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The mount point.
    pub(crate) fn at(&self) -> PathBuf {
        self.place.path().join("at")
    }

    /// A path in the mount, as text.
    pub(crate) fn path(&self, below: &str) -> String {
        self.at().join(below).into_os_string().into_string().expect("a plain path")
    }

    /// The process id of the mount.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The same; `None` if it does not run.
    pub(crate) fn server(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How many threads the process has.
    pub(crate) fn threads(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id()));
        tasks.expect("listing threads").count()
    }

    /// What the process has open, sockets apart, and how many of those.
    pub(crate) fn open_files(&self) -> (Vec<PathBuf>, usize) {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.id()));
        let files = files.expect("listing what is open").flatten();
        let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        let is_socket = |target: &PathBuf| target.to_string_lossy().starts_with("socket:");
        let (sockets, mut others): (Vec<_>, Vec<_>) = targets.partition(is_socket);
        others.sort();
        (others, sockets.len())
    }

    /// How many inodes the kernel has looked up here and not forgotten, as `statfs` tells.
    #[track_caller]
    pub(crate) fn known_inodes(&self) -> u64 {
        let told = self.run("stat", &["-f", "-c", "%c", &self.path("")]).success().text();
        told.trim().parse().expect("a number")
    }

    /// Lets the kernel forget all that nobody uses.
    #[track_caller]
    pub(crate) fn forget(&self) {
        self.run("mount", &["-i", "-o", "remount,ro", &self.path("")]).success();
    }

    fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.place.path().join(name)).unwrap_or_default()
    }

    /// What it said on standard error.
    pub(crate) fn stderr(&self) -> String {
        self.said("stderr")
    }

    /// The lines that it has written into its log so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.said("log").lines().map(str::to_owned).collect()
    }

    /// The lines of the log that have all these texts.
    pub(crate) fn logged(&self, texts: &[&str]) -> Vec<String> {
        let mut log = self.log();
        log.retain(|line| texts.iter().all(|text| line.contains(text)));
        log
    }

    /// Runs a program that looks at the mount.
    #[track_caller]
    pub(crate) fn run<A: AsRef<OsStr>>(&self, program: &str, args: &[A]) -> Done {
        self.begin(program, args).wait()
    }

    /// Starts a program that looks at the mount.
    pub(crate) fn begin<A: AsRef<OsStr>>(&self, program: &str, args: &[A]) -> Looking {
        Looking::start(program, args, self.child.as_ref().map(Child::id))
    }

    /// Runs `cat` on a file of the mount.
    #[track_caller]
    pub(crate) fn cat(&self, below: &str) -> Done {
        self.run("cat", &[self.path(below)])
    }

    /// Reads some bytes of a file of the mount, and nothing that was not asked for.
    #[track_caller]
    pub(crate) fn slice(&self, below: &str, offset: u64, length: u64) -> Done {
        self.run(
            "dd",
            &[
                format!("if={}", self.path(below)),
                "status=none".to_owned(),
                "bs=4096".to_owned(),
                "iflag=skip_bytes,count_bytes,fullblock".to_owned(),
                format!("skip={offset}"),
                format!("count={length}"),
            ],
        )
    }

    /// Looks at the mount in the test itself. When that takes too long, the mount is killed, which frees whoever
    /// waits for it.
    #[track_caller]
    pub(crate) fn watched<T>(&self, limit: Duration, look: impl FnOnce() -> T) -> T {
        let id = self.id();
        let (done, waits) = std::sync::mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            let in_time = waits.recv_timeout(limit) != Err(RecvTimeoutError::Timeout);
            if !in_time {
                signal(id, Signal::KILL);
            }
            in_time
        });
        // A look that panics drops the sender, too.
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look));
        drop(done);
        let in_time = watch.join().expect("watching");
        assert!(in_time, "looking at the mount took longer than {limit:?}");
        found.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The tree at a path of the mount.
    #[track_caller]
    pub(crate) fn snapshot(&self, below: &str) -> Snapshot {
        let root = self.at().join(below);
        // What the root of a tree is nobody knows before somebody has looked into it.
        self.run("ls", &[&root]).success();
        self.watched(PATIENCE * 4, || super::snapshot::snapshot(&root))
    }

    /// All paths of the mount, sorted, as `find` prints them.
    #[track_caller]
    pub(crate) fn find(&self) -> Vec<String> {
        let found = self.run("find", &[&self.path("."), "-mindepth", "1", "-printf", "%P\n"]);
        let mut paths: Vec<String> = found.success().text().lines().map(str::to_owned).collect();
        paths.sort();
        paths
    }

    /// Whether the kernel lists it.
    pub(crate) fn is_mounted(&self) -> bool {
        is_mounted(&self.at())
    }

    /// SIGTERM, and how the process ends then. Nothing may be mounted after that.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        signal(child.id(), Signal::TERM);
        let deadline = Instant::now() + TURN;
        let status = loop {
            if let Some(status) = has_ended(child) {
                break status;
            }
            assert!(Instant::now() < deadline, "imgfs does not end after SIGTERM");
            std::thread::sleep(Duration::from_millis(5));
        };
        self.child = None;
        assert!(!self.is_mounted(), "it has ended ({status}) and is still mounted");
        status
    }

    /// Waits until the process ends by itself.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let mut status = None;
        wait_for("the end of imgfs", TURN, || {
            status = has_ended(child);
            status.is_some()
        });
        self.child = None;
        status.expect("waited for")
    }

    /// SIGTERM while containers have the file system: nothing is mounted any more, and the process goes on for them.
    #[track_caller]
    pub(crate) fn leave(&mut self) -> Left {
        let child = self.child.take().expect("it runs");
        signal(child.id(), Signal::TERM);
        wait_for("the mount to go", TURN, || !self.is_mounted());
        Left(child)
    }

    /// SIGKILL. Leaves a mount that nobody serves.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A process that goes on without its mount, at most as long as this.
pub(crate) struct Left(Child);

impl Left {
    pub(crate) fn has_ended(&mut self) -> bool {
        has_ended(&mut self.0).is_some()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            signal(child.id(), Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(3);
            while has_ended(child).is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if std::thread::panicking() {
            eprintln!("--- log of the mount\n{}{}---", self.said("log"), self.said("stderr"));
        }
        free(&self.at());
        self.kill9();
    }
}

/// An overlay over a directory of a mount. Taken away when dropped, before the mount.
pub(crate) struct Overlay(PathBuf);

impl Overlay {
    /// Over what is `below` in the mount; what is written goes to `place`, where the overlay is, too.
    #[track_caller]
    pub(crate) fn over(mount: &Mounted, below: &str, place: &Path) -> Self {
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(place.join(name)).expect("making a directory");
        }
        let overlay = Self(place.join("merged"));
        let at = |name: &str| place.join(name).display().to_string();
        // Colons separate lower directories.
        let lower = mount.path(below).replace(':', "\\:");
        let options = format!("lowerdir={lower},upperdir={},workdir={}", at("upper"), at("work"));
        mount.run("mount", &["-t", "overlay", "overlay", "-o", &options, &at("merged")]).success();
        overlay
    }

    pub(crate) fn at(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        free(&self.0);
    }
}

/// Takes away a mount and whatever is mounted over it.
pub(crate) fn free(mountpoint: &Path) {
    for _ in 0..8 {
        if !is_mounted(mountpoint) || unmount(mountpoint, UnmountFlags::DETACH).is_err() {
            return;
        }
    }
}

/// Whether the kernel lists something as mounted there.
pub(crate) fn is_mounted(mountpoint: &Path) -> bool {
    // Somebody may have mounted something at a name that is no text.
    let list = std::fs::read("/proc/self/mountinfo").expect("reading the mounts");
    let list = String::from_utf8_lossy(&list);
    let mountpoint = mountpoint.to_str().expect("a plain path");
    list.lines().any(|line| line.split(' ').nth(4) == Some(mountpoint))
}

fn has_ended(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().expect("waiting for a child")
}

fn signal(id: u32, signal: Signal) {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id");
    let _ = kill_process(id, signal);
}

/// A program that looks at a mount.
pub(crate) struct Looking {
    child: Child,
    out: tempfile::TempDir,
    shown: String,
    started: Instant,
    /// The process that serves the mount.
    server: Option<u32>,
}

/// What a program left that looked at a mount.
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
    shown: String,
}

impl Looking {
    /// `server` is killed when this takes too long.
    pub(crate) fn start<A: AsRef<OsStr>>(program: &str, args: &[A], server: Option<u32>) -> Self {
        let out = tempfile::tempdir().expect("making a temporary directory");
        let create = |name| std::fs::File::create(out.path().join(name)).expect("creating");
        let mut command = Command::new(program);
        command
            .args(args)
            .env("LC_ALL", "C.UTF-8")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(create("stdout"))
            .stderr(create("stderr"));
        let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
        let shown = format!("{program} {args:?}");
        let child = command.spawn().unwrap_or_else(|error| panic!("starting {shown}: {error}"));
        Self { child, out, shown, started: Instant::now(), server }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        has_ended(&mut self.child).is_none()
    }

    /// Sends it a signal.
    pub(crate) fn kill(&mut self, sent: Signal) {
        if self.is_running() {
            signal(self.child.id(), sent);
        }
    }

    /// Waits for the end of one that was meant to run for a while.
    #[track_caller]
    pub(crate) fn wait_from_now(mut self) -> Done {
        self.started = Instant::now();
        self.wait()
    }

    #[track_caller]
    pub(crate) fn wait(mut self) -> Done {
        let status = loop {
            if let Some(status) = has_ended(&mut self.child) {
                break status;
            }
            assert!(
                self.started.elapsed() < PATIENCE,
                "no end within {PATIENCE:?}: {}",
                self.shown
            );
            std::thread::sleep(Duration::from_millis(2));
        };
        let read = |name| std::fs::read(self.out.path().join(name)).expect("reading");
        Done {
            status,
            stdout: read("stdout"),
            stderr: String::from_utf8_lossy(&read("stderr")).into_owned(),
            elapsed: self.started.elapsed(),
            shown: self.shown.clone(),
        }
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        if has_ended(&mut self.child).is_none() {
            if let Some(server) = self.server {
                signal(server, Signal::KILL);
            }
            let _ = self.child.kill();
            let deadline = Instant::now() + Duration::from_secs(5);
            while has_ended(&mut self.child).is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Done {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub(crate) fn success(self) -> Self {
        assert!(self.status.success(), "{}: {}\n{}", self.shown, self.status, self.stderr);
        self
    }

    /// Panics unless the program failed and said so.
    #[track_caller]
    pub(crate) fn fails_with(self, text: &str) -> Self {
        assert!(
            !self.status.success() && self.stderr.contains(text),
            "{}: {}, not {text:?}\n{}",
            self.shown,
            self.status,
            self.stderr
        );
        self
    }
}
