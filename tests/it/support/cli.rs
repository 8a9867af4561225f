//! Runs the imgfs binary as a user would, in a clean environment, and never waits for ever.

use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Behind the host of a target: what is called so at the source is called so there.
pub(crate) const SAME: &str =
    "{{ .module.image.reference.repository }}:{{ .module.image.reference.reference }}";

/// The binary under test and how it is called.
pub(crate) struct Imgfs {
    images_dir: PathBuf,
    home: tempfile::TempDir,
    env: Vec<(OsString, OsString)>,
    stdin: Option<String>,
    timeout: Duration,
    path_prefix: Option<PathBuf>,
}

/// What a run left.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
    pub(crate) peak_rss: Option<u64>,
    command: String,
}

impl Imgfs {
    /// `images_dir` need not exist.
    pub(crate) fn new(images_dir: impl Into<PathBuf>) -> Self {
        Self {
            images_dir: images_dir.into(),
            home: tempfile::tempdir().expect("making a temporary directory"),
            env: Vec::new(),
            stdin: None,
            timeout: Duration::from_mins(1),
            path_prefix: None,
        }
    }

    /// Fills a directory of its own that goes when this goes.
    pub(crate) fn scratch() -> Self {
        let mut imgfs = Self::new("");
        imgfs.images_dir = imgfs.home.path().join("images");
        imgfs
    }

    pub(crate) fn images_dir(&self) -> &Path {
        &self.images_dir
    }

    /// HOME of the runs.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn envs(self, environment: Vec<(&'static str, String)>) -> Self {
        environment.into_iter().fold(self, |imgfs, (key, value)| imgfs.env(key, value))
    }

    pub(crate) fn stdin(mut self, text: &str) -> Self {
        self.stdin = Some(text.to_owned());
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Programs in this directory are found first.
    pub(crate) fn path_prefix(mut self, directory: &Path) -> Self {
        self.path_prefix = Some(directory.to_owned());
        self
    }

    /// Writes `$HOME/.docker/config.json`.
    pub(crate) fn docker_config(self, config: &Value) -> Self {
        let directory = self.home.path().join(".docker");
        std::fs::create_dir_all(&directory).expect("making a directory");
        std::fs::write(directory.join("config.json"), config.to_string()).expect("writing");
        self
    }

    /// `imgfs ARGS...`, nothing added; waits for the end.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, args: &[A]) -> Output {
        self.spawn(args).wait()
    }

    /// `imgfs pull --images-dir DIR --json --plain-http ARGS...`
    pub(crate) fn pull<A: AsRef<OsStr>>(&self, args: &[A]) -> Output {
        self.spawn_pull(args).wait()
    }

    /// Starts what `pull` would run.
    pub(crate) fn spawn_pull<A: AsRef<OsStr>>(&self, args: &[A]) -> Running {
        self.spawn(&self.moving("pull", args))
    }

    /// `imgfs push --images-dir DIR --json --plain-http ARGS...`
    pub(crate) fn push<A: AsRef<OsStr>>(&self, args: &[A]) -> Output {
        self.spawn_push(args).wait()
    }

    /// Starts what `push` would run.
    pub(crate) fn spawn_push<A: AsRef<OsStr>>(&self, args: &[A]) -> Running {
        self.spawn(&self.moving("push", args))
    }

    /// `imgfs copy --json --plain-http ARGS...`
    pub(crate) fn copy<A: AsRef<OsStr>>(&self, args: &[A]) -> Output {
        self.spawn_copy(args).wait()
    }

    /// Starts what `copy` would run.
    pub(crate) fn spawn_copy<A: AsRef<OsStr>>(&self, args: &[A]) -> Running {
        let mut all: Vec<OsString> = ["copy", "--json", "--plain-http"].map(Into::into).into();
        all.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        self.spawn(&all)
    }

    /// Arguments of a command that moves images between the tree and plain registries.
    fn moving<A: AsRef<OsStr>>(&self, command: &str, args: &[A]) -> Vec<OsString> {
        let mut all = self.subcommand(command);
        all.push("--plain-http".into());
        all.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        all
    }

    /// `imgfs COMMAND --images-dir DIR --json ARGS...`
    pub(crate) fn on_tree<A: AsRef<OsStr>>(&self, command: &str, args: &[A]) -> Output {
        let mut all = self.subcommand(command);
        all.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        self.run(&all)
    }

    fn subcommand(&self, command: &str) -> Vec<OsString> {
        let directory = self.images_dir.clone().into_os_string();
        vec![command.into(), "--images-dir".into(), directory, "--json".into()]
    }

    pub(crate) fn ls(&self) -> Output {
        self.on_tree::<&str>("ls", &[])
    }

    pub(crate) fn verify(&self) -> Output {
        self.on_tree::<&str>("verify", &[])
    }

    /// `verify --repair` against plain registries.
    pub(crate) fn repair(&self) -> Output {
        self.on_tree("verify", &["--repair", "--plain-http"])
    }

    pub(crate) fn prune(&self) -> Output {
        self.on_tree::<&str>("prune", &[])
    }

    pub(crate) fn spawn<A: AsRef<OsStr>>(&self, args: &[A]) -> Running {
        let out = tempfile::tempdir().expect("making a temporary directory");
        let create = |name: &str| {
            let file = std::fs::File::create(out.path().join(name)).expect("creating a file");
            Stdio::from(file)
        };
        let mut path = OsString::from("/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        if let Some(prefix) = &self.path_prefix {
            let mut longer = prefix.clone().into_os_string();
            longer.push(":");
            longer.push(path);
            path = longer;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_imgfs"));
        command
            .args(args)
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.home.path())
            .env("LANG", "C.UTF-8")
            .env("RUST_BACKTRACE", "1")
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(self.home.path())
            .stdout(create("stdout"))
            .stderr(create("stderr"));
        match &self.stdin {
            Some(text) => {
                let path = out.path().join("stdin");
                std::fs::write(&path, text).expect("writing");
                command.stdin(std::fs::File::open(&path).expect("opening"));
            }
            None => {
                command.stdin(Stdio::null());
            }
        }
        let name = format!("{:?}", args.iter().map(AsRef::as_ref).collect::<Vec<_>>());
        Running {
            child: command.spawn().expect("starting imgfs"),
            started: Instant::now(),
            timeout: self.timeout,
            peak_rss: None,
            out,
            command: format!("imgfs {name}"),
        }
    }
}

/// A run that has not ended yet. Killed when dropped.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    timeout: Duration,
    peak_rss: Option<u64>,
    out: tempfile::TempDir,
    command: String,
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.look().is_none()
    }

    /// SIGKILL, unless it has ended already; what it left either way.
    pub(crate) fn kill9(mut self) -> Output {
        let _ = self.child.kill();
        self.wait()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id()).expect("process ids are small");
        let id = rustix::process::Pid::from_raw(id).expect("process ids are positive");
        rustix::process::kill_process(id, signal).expect("signalling imgfs");
    }

    /// Waits for the end. Past the timeout the process is killed and the test fails with its output.
    pub(crate) fn wait(mut self) -> Output {
        let status = loop {
            if let Some(status) = self.look() {
                break status;
            }
            if self.started.elapsed() > self.timeout {
                let _ = self.child.kill();
                let status = self.child.wait().expect("waiting for imgfs");
                panic!("imgfs did not end within {:?}\n{}", self.timeout, self.output(status));
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let output = self.output(status);
        assert!(
            !output.stderr.contains("panicked at") && output.status.code() != Some(101),
            "imgfs panicked\n{output}"
        );
        output
    }

    fn look(&mut self) -> Option<ExitStatus> {
        if let Some(kib) = peak_rss(self.child.id()) {
            self.peak_rss = Some(kib * 1024);
        }
        self.child.try_wait().expect("waiting for imgfs")
    }

    fn output(&self, status: ExitStatus) -> Output {
        let read = |name: &str| {
            let bytes = std::fs::read(self.out.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Output {
            status,
            stdout: read("stdout"),
            stderr: read("stderr"),
            elapsed: self.started.elapsed(),
            peak_rss: self.peak_rss,
            command: self.command.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The high-water mark of resident memory so far, in KiB, without that of the program's file: of that there is several
/// times as much where it is not optimised.
fn peak_rss(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let kib = |field: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim().trim_end_matches(" kB").trim().parse().ok()
    };
    Some(kib("VmHWM:")?.saturating_sub(kib("RssFile:")?))
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, stdout, stderr, command, elapsed, .. } = self;
        write!(
            f,
            "{command}\n{status} after {elapsed:?}\n--- stdout\n{stdout}--- stderr\n{stderr}---"
        )
    }
}

impl Output {
    /// The exit status; a negative signal number when a signal ended it.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| -self.status.signal().unwrap_or(0))
    }

    /// Panics with the whole output unless the exit status is this one.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "exit status\n{self}");
        self
    }

    #[track_caller]
    pub(crate) fn success(self) -> Self {
        self.expect_code(0)
    }

    /// Panics unless stderr has this text, in any case.
    #[track_caller]
    pub(crate) fn stderr_has(self, text: &str) -> Self {
        let found = self.stderr.to_lowercase().contains(&text.to_lowercase());
        assert!(found, "no {text:?} on stderr\n{self}");
        self
    }

    /// Panics unless stderr has one of these texts, in any case.
    #[track_caller]
    pub(crate) fn stderr_has_one_of(self, texts: &[&str]) -> Self {
        let said = self.stderr.to_lowercase();
        let found = texts.iter().any(|text| said.contains(&text.to_lowercase()));
        assert!(found, "none of {texts:?} on stderr\n{self}");
        self
    }

    /// Every line of stdout, parsed.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| {
                serde_json::from_str(line)
                    .unwrap_or_else(|error| panic!("not JSON ({error}): {line}\n{self}"))
            })
            .collect()
    }

    /// The last line of stdout, which must be the report.
    #[track_caller]
    pub(crate) fn report(&self) -> Value {
        let events = self.events();
        let last = events.last().unwrap_or_else(|| panic!("no output\n{self}"));
        assert_eq!(last["event"], "report", "the last line is no report\n{self}");
        last.clone()
    }

    /// A number in the report.
    #[track_caller]
    pub(crate) fn number(&self, key: &str) -> u64 {
        let report = self.report();
        report[key].as_u64().unwrap_or_else(|| panic!("no number {key:?} in the report\n{self}"))
    }

    /// The report's entry about an image.
    #[track_caller]
    pub(crate) fn image(&self, name: &str) -> Value {
        self.images()
            .into_iter()
            .find(|image| image["image"] == name)
            .unwrap_or_else(|| panic!("no image {name:?} in the report\n{self}"))
    }

    /// The report's entries about images.
    #[track_caller]
    pub(crate) fn images(&self) -> Vec<Value> {
        let report = self.report();
        report["images"]
            .as_array()
            .unwrap_or_else(|| panic!("no images in the report\n{self}"))
            .clone()
    }

    /// The report's problems.
    #[track_caller]
    pub(crate) fn problems(&self) -> Vec<Value> {
        let report = self.report();
        report["problems"]
            .as_array()
            .unwrap_or_else(|| panic!("no problems in the report\n{self}"))
            .clone()
    }
}
