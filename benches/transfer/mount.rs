//! What a mount costs: against the files themselves, against curl, and against a pull.

mod daemon;
mod local;
mod remote;

use std::time::{Duration, Instant};

use crate::Result;

/// How long something took.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
