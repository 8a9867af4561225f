//! `imgfs serve` in a child process on a free port.
//!
//! ```ignore
//! let serving = Serving::start(imgfs.images_dir(), &["--allow-delete"]);
//! image.push_to(&serving.client(), "team/app", "v1");
//! serving.stop();
//! ```

use super::client::Client;
use super::process::spawn_tied;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long starting and ending may take.
const TURN: Duration = Duration::from_secs(20);

/// A server. Killed when dropped.
pub(crate) struct Serving {
    place: tempfile::TempDir,
    images: PathBuf,
    environment: Vec<(&'static str, String)>,
    args: Vec<OsString>,
    child: Option<Child>,
    /// The address of each line that it has printed.
    addresses: Vec<String>,
}

impl Serving {
    /// Serves `images_dir` with further arguments of `imgfs serve`. Upstreams are plain.
    #[track_caller]
    pub(crate) fn start<A: AsRef<OsStr>>(images_dir: &Path, args: &[A]) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        Self::begin(place, images_dir.to_owned(), Vec::new(), args)
    }

    /// Serves `bucket`, a place in an object store that a process with this environment may use.
    #[track_caller]
    pub(crate) fn bucket<A: AsRef<OsStr>>(
        bucket: &str,
        environment: Vec<(&'static str, String)>,
        args: &[A],
    ) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        Self::begin(place, bucket.into(), environment, args)
    }

    /// Serves a directory of its own, which goes with the server.
    #[track_caller]
    pub(crate) fn fresh<A: AsRef<OsStr>>(args: &[A]) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        let images = place.path().join("images");
        Self::begin(place, images, Vec::new(), args)
    }

    #[track_caller]
    fn begin<A: AsRef<OsStr>>(
        place: tempfile::TempDir,
        images: PathBuf,
        environment: Vec<(&'static str, String)>,
        args: &[A],
    ) -> Self {
        let mut serving = Self {
            place,
            images,
            environment,
            args: args.iter().map(|arg| arg.as_ref().to_owned()).collect(),
            child: None,
            addresses: Vec::new(),
        };
        serving.restart();
        serving
    }

    /// Starts it once more, perhaps at another port.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        let create = |name| std::fs::File::create(self.place.path().join(name)).expect("creating");
        let (stdout, stderr) = (create("stdout"), create("stderr"));
        let child = spawn_tied(env!("CARGO_BIN_EXE_imgfs"), |command| {
            let has_address = self.args.iter().any(|arg| arg == "--listen");
            command
                .args(["serve", "--plain-http", "--images-dir"])
                .arg(&self.images)
                .args((!has_address).then_some("--listen=127.0.0.1:0"))
                .args(&self.args)
                .env_clear()
                .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
                .env("HOME", self.place.path())
                .env("RUST_BACKTRACE", "1")
                .envs(self.environment.iter().map(|(name, value)| (name, value)))
                .current_dir(self.place.path())
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(stderr);
        });
        self.child = Some(child.expect("starting imgfs"));
        let deadline = Instant::now() + TURN;
        let wanted = self.args.iter().filter(|arg| *arg == "--listen").count().max(1)
            + usize::from(self.args.iter().any(|arg| arg == "--metrics"));
        loop {
            self.addresses = addresses(&self.said("stdout"));
            if self.addresses.len() >= wanted {
                return;
            }
            let ended = self.child.as_mut().expect("it runs").try_wait().expect("waiting");
            assert!(ended.is_none(), "imgfs does not serve:\n{}", self.said("stderr"));
            assert!(Instant::now() < deadline, "imgfs is not ready:\n{}", self.said("stderr"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn host(&self) -> String {
        self.addresses[0].clone()
    }

    /// The other addresses that it has printed.
    pub(crate) fn address(&self, number: usize) -> String {
        self.addresses[number].clone()
    }

    /// A client that does what it is told.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.host())
    }

    pub(crate) fn images(&self) -> &Path {
        &self.images
    }

    /// A directory that goes with the server.
    pub(crate) fn place(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What it has said on standard output or standard error.
    pub(crate) fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.place.path().join(name)).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("process ids are small");
        let id = Pid::from_raw(id).expect("process ids are positive");
        kill_process(id, signal).expect("signalling imgfs");
    }

    /// SIGTERM, and its end.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(TURN * 2)
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait().expect("waiting for imgfs") {
                let said = self.said("stderr");
                assert!(!said.contains("panicked at"), "imgfs panicked\n{said}");
                return status;
            }
            assert!(Instant::now() < deadline, "imgfs does not end:\n{}", self.said("stderr"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL.
    pub(crate) fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Its resident memory, and the most that it was, in bytes.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.expect("reading what the kernel says of imgfs");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            let number = line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
            number.unwrap_or_default() * 1024
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

/// The addresses in what it prints: `DIR is served at http://127.0.0.1:1234`.
fn addresses(said: &str) -> Vec<String> {
    let lines = said.lines().filter_map(|line| {
        let address = line.rsplit_once(" at ")?.1;
        let address = address.trim_start_matches("http://").trim_start_matches("https://");
        Some(address.to_owned())
    });
    lines.collect()
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("imgfs serve said:\n{}", self.said("stderr"));
        }
    }
}
