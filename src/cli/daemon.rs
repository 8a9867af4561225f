//! Going into the background, and what a process there has to say.
//!
//! The process starts itself once more, detached, with a pipe as its standard output. What comes
//! through the pipe says that it is ready; that it closes without a word says that it has failed,
//! with the reason on standard error.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use close_fds::CloseFdsBuilder;
use imgfs::{
    serve::{Address, MetricsEndpoint},
    util::{LocalListener, Metrics},
};
use listenfd::ListenFd;
use sd_notify::NotifyState;

use super::{Failure, Outcome, log, mounts};

/// What is said when all is well.
const READY: &[u8] = b"ready\n";

/// The first file that is neither standard input, output nor error.
const FIRST_OTHER_FILE: i32 = 3;

/// Says to a process that it is the one in the background. Hidden from users.
pub(super) const DETACHED: &str = "--detached";

/// How the C library is told to keep one heap only. By default it has several for each processor,
/// none of which gives back what a busy minute has taken: with 64 readers that was 58 MiB, and is 40,
/// at the same speed. What is larger than a buffer is not put into the heap, so that it is given back as soon
/// as it is freed; by default the first large one that is freed makes the heap take all later ones. With 300 images
/// of 20,000 files each, whose tables come and go, that is 107 MiB for 256 KiB, 123 for 1 MiB, and 161 for 2 MiB.
const HEAP: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "524288"),
    ("MALLOC_TRIM_THRESHOLD_", "8388608"),
];

/// What of that the user has not said otherwise.
fn heap() -> impl Iterator<Item = (&'static str, &'static str)> {
    HEAP.into_iter().filter(|(name, _)| std::env::var_os(name).is_none())
}

/// Starts the process over with the heap of a daemon, unless it has that already.
pub(super) fn keep_one_heap() -> Result<(), Failure> {
    if heap().next().is_none() {
        return Ok(());
    }
    let failed = |e: io::Error| Failure::new(format!("cannot start: {e}"));
    let program = std::env::current_exe().map_err(failed)?;
    // It comes back only if it has failed.
    Err(failed(Command::new(program).args(super::arguments()).envs(heap()).exec()))
}

/// Starts the process once more, in the background, and waits until it is ready.
pub(super) fn detach() -> Result<Outcome, Failure> {
    let failed = |e: io::Error| Failure::new(format!("cannot go into the background: {e}"));
    let program = std::env::current_exe().map_err(failed)?;
    // What else our caller has open is none of the process's business: it may be a pipe that somebody reads to
    // its end, or a lock.
    CloseFdsBuilder::new().cloexecfrom(FIRST_OTHER_FILE);
    let mut child = Command::new(program)
        .args(super::arguments())
        .arg(DETACHED)
        .envs(heap())
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut said = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(READY.len() as u64).read_to_end(&mut said).map_err(failed)?;
    }
    if said == READY {
        return Ok(Outcome::Done);
    }
    let status = child.wait().map_err(failed)?;
    // It has said itself why.
    std::process::exit(status.code().unwrap_or(1));
}

/// Whoever waits for a mount to be ready.
pub(super) enum Ready {
    /// The process that has started this one.
    Parent,
    /// Nobody, or a supervisor.
    Foreground,
}

/// Leaves the session of the process that has started this one.
pub(super) fn enter() -> Result<Ready, Failure> {
    // It fails for a process that leads a session already, which is as well.
    let _ = rustix::process::setsid();
    Ok(Ready::Parent)
}

impl Ready {
    pub(super) fn foreground() -> Self {
        Self::Foreground
    }

    /// Tells that the mount is ready. In the background the process then holds nothing any more of what its caller
    /// reads from, or may wait for: what it has to log from now on goes to the file or to the system's log.
    pub(super) fn tell(self) -> Result<(), Failure> {
        let failed = |e: io::Error| Failure::new(format!("cannot tell that it is ready: {e}"));
        // Without a supervisor it does nothing.
        sd_notify::notify(&[NotifyState::Ready]).map_err(failed)?;
        if let Self::Parent = self {
            io::stdout().write_all(READY).and_then(|()| io::stdout().flush()).map_err(failed)?;
            let nothing =
                File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
            let gone = |e: rustix::io::Errno| failed(e.into());
            rustix::stdio::dup2_stdout(&nothing).map_err(gone)?;
            rustix::stdio::dup2_stdin(&nothing).map_err(gone)?;
            log::leave_stderr();
            rustix::stdio::dup2_stderr(&nothing).map_err(gone)?;
            // No file system is kept busy by its mere presence.
            std::env::set_current_dir("/").map_err(failed)?;
        }
        Ok(())
    }
}

/// Starts to show what is counted at the address of `--metrics`, if there is one.
pub(super) async fn show_metrics(
    address: Option<&Address>,
    metrics: &Metrics,
) -> Result<Option<MetricsEndpoint>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let started = MetricsEndpoint::start(address, metrics.clone()).await;
    let failed = |e| Failure::new(format!("--metrics: cannot listen at {address}: {e}"));
    started.map(Some).map_err(failed)
}

/// The socket of a daemon: that which whoever has started the process has opened, or else the one that `option` names.
pub(super) fn listener(option: &str, path: &Path) -> Result<LocalListener, Failure> {
    let failed = |e| Failure::new(format!("{option} {}: {e}", mounts::shown(path)));
    let listener = match ListenFd::from_env().take_unix_listener(0).map_err(failed)? {
        Some(opened) => LocalListener::from_std(opened),
        None => LocalListener::bind(path),
    };
    listener.map_err(failed)
}
