//! What a mount costs: against the files themselves, against curl, and against a pull.

mod daemon;
mod fio;
mod local;
mod remote;
mod written;

use std::time::{Duration, Instant};

use crate::Result;

pub(crate) use daemon::Daemon;
pub(crate) use fio::{Pattern, fio};

/// How long something took.
pub(crate) fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
