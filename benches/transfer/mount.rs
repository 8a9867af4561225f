//! What a mount costs: against the files themselves, against curl, and against a pull.

mod daemon;
mod local;
mod remote;

use std::time::{Duration, Instant};

use crate::report::Report;
use crate::{Bench, Result};

impl Bench {
    /// Everything about mounts, one question after the other.
    pub(crate) fn mount(&mut self, report: &mut Report) -> Result<()> {
        self.local_reads(report)?;
        self.many_entries(report)?;
        self.cold_reads(report)?;
        self.reads_over_link(report)?;
        self.copy_out(report)?;
        self.hanging_registry(report)?;
        self.many_readers(report)
    }
}

/// How long something took.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
