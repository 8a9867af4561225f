//! The requests for a blob that are under way, and what is known of where it comes from.

use std::{
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use super::{Core, state::Key, window::Windows};

/// A request that has at most so many blocks to come is nearly done: 512 KiB.
const NEARLY_DONE_BLOCKS: u32 = 4;

/// Where a blob can be fetched from.
pub(super) trait Origin: Send + Sync {
    /// Fetches what `job` says, and tells the cache how that has ended.
    fn fetch(
        self: Arc<Self>,
        core: Arc<Core>,
        key: Key,
        job: Arc<Job>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Tells origins apart.
    fn id(&self) -> usize;
}

/// A request that is under way.
pub(super) struct Running {
    pub job: Arc<Job>,
    /// The blocks that are to come.
    pub next: u32,
    pub end: u32,
    /// All of the content comes, whatever is asked for.
    pub is_stream: bool,
}

/// What one request is to fetch.
pub(super) struct Job {
    pub id: u64,
    /// Of which [`super::window::Window`].
    pub window: u64,
    /// Of the [`Blob`].
    pub blob: u64,
    pub range: Range<u32>,
    /// Somebody waits for it.
    pub urgent: bool,
    /// It is for somebody who waits for the last block, and so for all others.
    pub for_last: bool,
    /// The source has been asked.
    pub has_begun: AtomicBool,
    pub stop: Notify,
    /// A reader has moved.
    pub moved: Notify,
}

/// The requests for a blob.
///
/// - No block comes twice: the blocks from `next` to `end` of two jobs have none in common, unless one of them
///   is of a source that sends everything; of those there is one at most.
/// - A job that is not here any more is told to stop, and what it brings then is not taken.
pub(super) struct Requests {
    pub jobs: Vec<Running>,
    /// The source sends everything, whatever it is asked for.
    pub ignores_ranges: bool,
    /// No read-ahead until then: the source has failed.
    pub quiet_until: Option<Instant>,
    /// Whom the last reader wanted to be asked.
    pub origin: Option<Arc<dyn Origin>>,
    /// Blocks that have come since it was opened first.
    pub arrived: u64,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self {
            jobs: Vec::new(),
            ignores_ranges: false,
            quiet_until: None,
            origin: None,
            arrived: 0,
        }
    }

    /// What it is for a blob of which all that is known is dropped: the same source, of which nothing is under
    /// way. What was is stopped.
    pub(super) fn begin_anew(&mut self) -> Self {
        self.stop();
        Self { origin: self.origin.take(), ignores_ranges: self.ignores_ranges, ..Self::new() }
    }

    /// Whether a block is being fetched.
    pub(super) fn is_coming(&self, block: u32) -> bool {
        self.jobs.iter().any(|job| (job.next..job.end).contains(&block))
    }

    /// Ends those that nobody who leaves would miss. What has begun and is nearly done may come to its end, and a
    /// source that sends everything, which would begin anew for the next reader, may go on. Whether there are such.
    pub(super) fn abandon(&mut self, windows: &mut Windows) -> bool {
        self.jobs.retain(|running| {
            let job = &running.job;
            let is_nearly_done = running.end - running.next <= NEARLY_DONE_BLOCKS;
            let may_stay =
                (running.is_stream || is_nearly_done) && job.has_begun.load(Ordering::Relaxed);
            if !may_stay {
                job.stop.notify_one();
                windows.set_back(job.window, running.next);
            }
            may_stay
        });
        !self.jobs.is_empty()
    }

    /// Ends all requests.
    pub(super) fn stop(&mut self) {
        for running in self.jobs.drain(..) {
            running.job.stop.notify_one();
        }
    }

    /// Lets requests that wait look whether they can go on.
    pub(super) fn wake(&self) {
        self.jobs.iter().for_each(|running| running.job.moved.notify_one());
    }
}
