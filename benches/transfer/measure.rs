//! Runs a command and says what it used.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// What one run of a command took, its children included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) wall: Duration,
    /// User and system time.
    pub(crate) cpu: Duration,
    /// The largest of its processes.
    pub(crate) peak_rss_kib: u64,
}

impl Usage {
    pub(crate) fn longer_by(self, more: Duration) -> Self {
        Self { wall: self.wall + more, ..self }
    }

    /// Both, one after the other.
    pub(crate) fn then(self, next: Self) -> Self {
        Self {
            wall: self.wall + next.wall,
            cpu: self.cpu + next.cpu,
            peak_rss_kib: self.peak_rss_kib.max(next.peak_rss_kib),
        }
    }
}

/// A command to be measured. It must succeed, and its standard error is kept for when it does not.
pub(crate) struct Job {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, String)>,
    directory: PathBuf,
    output: Option<PathBuf>,
}

impl Job {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: "/".into(),
            output: None,
        }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(crate) fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    pub(crate) fn within(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.directory);
        self
    }

    pub(crate) fn output_to(mut self, file: &Path) -> Self {
        self.output = Some(file.to_owned());
        self
    }

    /// Runs it under GNU time, which asks the kernel (`wait4`). A process of our own size would not do as the
    /// parent: the kernel counts what a child was before its `exec` into the child's peak.
    pub(crate) fn run(&self) -> Result<Usage> {
        let scratch = std::env::temp_dir().join(format!("imgfs-bench-{}", std::process::id()));
        let (figures, errors) = (scratch.with_extension("time"), scratch.with_extension("err"));
        let outcome = self.run_under_time(&figures, &errors);
        let _ = std::fs::remove_file(&figures);
        let _ = std::fs::remove_file(&errors);
        outcome
    }

    fn run_under_time(&self, figures: &Path, errors: &Path) -> Result<Usage> {
        let mut command = Command::new("/usr/bin/time");
        command
            .args(["--format", "%U %S %M", "--output"])
            .arg(figures)
            .arg("--")
            .arg(&self.program)
            .args(&self.arguments);
        // Nobody's proxy, credentials or registry settings in here.
        command.env_clear().env("HOME", "/nonexistent").env("LC_ALL", "C.UTF-8");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        command.current_dir(&self.directory).stdin(Stdio::null()).stderr(File::create(errors)?);
        command.stdout(match &self.output {
            Some(path) => Stdio::from(File::create(path)?),
            None => Stdio::null(),
        });
        let start = Instant::now();
        let status = command
            .status()
            .map_err(|e| format!("/usr/bin/time: {e} (Debian's package is called time)"))?;
        let wall = start.elapsed();
        if !status.success() {
            let errors = std::fs::read_to_string(errors).unwrap_or_default();
            return Err(format!("{}: {status}\n{errors}", self.program.display()).into());
        }
        let figures = std::fs::read_to_string(figures)?;
        parse(&figures, wall).ok_or_else(|| format!("not the output of GNU time: {figures}").into())
    }
}

fn parse(figures: &str, wall: Duration) -> Option<Usage> {
    let mut words = figures.lines().last()?.split(' ');
    let mut seconds = || words.next()?.parse::<f64>().ok();
    let cpu = Duration::try_from_secs_f64(seconds()? + seconds()?).ok()?;
    Some(Usage { wall, cpu, peak_rss_kib: words.next()?.parse().ok()? })
}

pub(crate) fn median<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    let middle = values.len() / 2;
    values.into_iter().nth(middle)
}
