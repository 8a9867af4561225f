//! What is to be fetched next.
//!
//! A read that finds blocks missing has them fetched, and what follows them up to the size of its
//! [`super::window::Window`]. A reader that goes on gets one window ahead: as soon as it enters
//! the last one that was asked for, the next is, four times as large. So at most two requests are
//! under way for it, and as long as it does not read nothing more is fetched for it.
//!
//! Where each connection is slow, two are not enough. A reader who has come far and waits for the source gets more
//! requests, as long as they make it faster; the more there are the smaller they are, so that what is fetched in
//! vain when it stops is no more than before.

use std::{
    mem,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use super::{
    Core,
    requests::{Job, Running},
    state::{Blob, Key, State},
    window::{Habit, Window},
};
use crate::backend::images_dir::cached::BLOCK_BYTES;

/// Requests that are under way for a sequential reader.
const REQUESTS_AHEAD: usize = 2;

/// A request that is made smaller since there are several has at least this many blocks: 2 MiB.
const LEAST_BLOCKS: u32 = 16;

/// Blocks that are fetched ahead if nothing can be written to the disk.
const UNCACHED_BLOCKS: u32 = 4;

/// Blocks by which the digest may be behind what comes then.
const UNCACHED_LAG: u32 = 16;

/// At most this part of the cache is fetched ahead at a time.
const AHEAD_PART: u64 = 8;

/// A request that is to be made.
pub(super) struct Plan {
    range: Range<u32>,
    window: u64,
    urgent: bool,
    for_last: bool,
}

impl Plan {
    /// A request for what somebody is expected to read.
    pub(super) fn ahead(range: Range<u32>) -> Self {
        Self { range, window: 0, urgent: false, for_last: false }
    }
}

impl Core {
    /// The most blocks that are asked for at once.
    pub(super) fn max_blocks(&self, state: &State) -> u32 {
        if state.is_refused() {
            return UNCACHED_BLOCKS;
        }
        let readers = self.fetching.load(Ordering::Relaxed).div_ceil(REQUESTS_AHEAD).max(1);
        let share = self.limit_bytes / AHEAD_PART / readers as u64;
        let blocks = self.max_window_bytes.min(share) / BLOCK_BYTES;
        u32::try_from(blocks).unwrap_or(u32::MAX).max(self.first_window())
    }

    /// Blocks that are asked for at first. What is derived comes from larger pieces, which are kept
    /// for a while; so there is nothing to be won by asking for more than is read.
    fn first_blocks(&self, blob: &Blob) -> u32 {
        if blob.content.is_stream() { 1 } else { self.first_window() }
    }

    fn first_window(&self) -> u32 {
        u32::try_from(self.first_window_bytes / BLOCK_BYTES).unwrap_or(u32::MAX).max(1)
    }

    /// The most blocks that a source which sends everything may be ahead of its readers.
    fn stream_ahead(&self, state: &State, blob: &Blob) -> Option<u32> {
        if state.is_refused() {
            return Some(UNCACHED_BLOCKS);
        }
        let ahead = (2 * self.max_window_bytes).min(self.limit_bytes / AHEAD_PART) / BLOCK_BYTES;
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX).max(1);
        (blob.size > self.limit_bytes / 2).then_some(ahead)
    }

    /// Has fetched what a read of the bytes `range` needs, and will need. What is read ends at the byte `end`.
    ///
    /// No more is asked for at once than the `habit` says, or half of what the reader has read already: who has come
    /// far is likely to go on, and each request costs the source as much as some megabytes. So what two requests have
    /// fetched in vain when it stops is no more than that.
    pub(super) fn plan_read(
        self: &Arc<Self>,
        state: &mut State,
        key: &Key,
        range: &Range<u64>,
        end: u64,
        habit: Habit,
    ) {
        let most = self.max_blocks(state);
        let is_refused = state.is_refused();
        let State { blobs, memory, .. } = state;
        let Some(blob) = blobs.get_mut(key) else { return };
        let blocks = Blob::blocks_of(range);
        let mut windows = mem::take(&mut blob.readers.windows);
        let first = self.first_blocks(blob).min(most);
        let is_here = blob.first_missing(blocks.clone(), memory).is_none();
        let window = windows.note(range, first, habit, is_here);
        // A stream costs its source nothing but what is read of it.
        let read_bytes = if blob.content.is_stream() { 0 } else { window.read_bytes };
        let ahead = habit.ahead_bytes.max(read_bytes / REQUESTS_AHEAD as u64) / BLOCK_BYTES;
        let max = most.min(u32::try_from(ahead).unwrap_or(u32::MAX)).max(1);
        let stop = window.limit(range.start, end).div_ceil(BLOCK_BYTES);
        let stop = u32::try_from(stop).unwrap_or(u32::MAX);
        let mut plans = Vec::new();
        let mut at = blocks.start;
        while let Some(start) = blob.first_missing(at..blocks.end, memory) {
            if window.sequential {
                window.grow(max);
            }
            let limit = start.saturating_add(window.blocks.min(max)).min(stop).max(blocks.end);
            let end = blob.missing_run(start, limit, memory);
            window.ahead = window.ahead.max(end);
            plans.push(Plan {
                range: start..end,
                window: window.id,
                urgent: true,
                for_last: false,
            });
            at = end;
        }
        if blob.requests.quiet_until.is_some_and(|until| Instant::now() >= until) {
            blob.requests.quiet_until = None;
        }
        if window.sequential && blob.requests.quiet_until.is_none() {
            // Blobs are small enough for that.
            let next = window.next.div_ceil(BLOCK_BYTES) as u32;
            window.ahead = window.ahead.max(next);
            let is_ours = |r: &&Running| r.job.window == window.id && r.next < r.end;
            let mut requests = blob.requests.jobs.iter().filter(is_ours).count() + plans.len();
            let is_far = window.blocks >= max && !blob.content.is_stream() && !is_refused;
            let wanted = match is_far {
                true => {
                    let waits = blocks.clone().any(|block| !blob.has(block, memory));
                    let fetched = blob.requests.arrived.saturating_mul(BLOCK_BYTES);
                    let least = max as usize * REQUESTS_AHEAD / LEAST_BLOCKS as usize;
                    let most = self.connections.min(least);
                    window.requests(REQUESTS_AHEAD, most, Instant::now(), fetched, waits)
                }
                false => REQUESTS_AHEAD,
            };
            // Together they have as much as two of the largest.
            let all = |window: &Window| window.blocks.saturating_mul(REQUESTS_AHEAD as u32);
            let each = |window: &Window| (all(window) / wanted.max(1) as u32).max(1);
            while requests < wanted {
                let ahead = all(window).saturating_sub(each(window));
                let horizon = next.saturating_add(ahead).min(blob.blocks).min(stop);
                let Some(start) = blob.first_missing(window.ahead..horizon, memory) else {
                    window.ahead = window.ahead.max(horizon);
                    break;
                };
                window.grow(max);
                let limit = start.saturating_add(each(window)).min(stop);
                let end = blob.missing_run(start, limit, memory);
                window.ahead = end;
                let range = start..end;
                plans.push(Plan { range, window: window.id, urgent: false, for_last: false });
                requests += 1;
            }
        }
        blob.readers.windows = windows;
        blob.requests.wake();
        self.launch(state, key, plans);
    }

    /// Sees to it that everything somebody waits for is on its way. Called whenever something has
    /// changed but for a read.
    pub(super) fn pump(self: &Arc<Self>, state: &mut State, key: &Key) {
        let max = self.max_blocks(state);
        let State { blobs, memory, .. } = state;
        let Some(blob) = blobs.get_mut(key) else { return };
        blob.readers.prune();
        let mut plans: Vec<Plan> = Vec::new();
        let awaited: Vec<u32> = blob.readers.waiters.keys().copied().collect();
        for block in awaited {
            if blob.has(block, memory) {
                // They look again when nobody answers.
                blob.readers.waiters.remove(&block);
            } else if !blob.requests.is_coming(block)
                && !plans.iter().any(|p| p.range.contains(&block))
            {
                let limit = block.saturating_add(self.first_blocks(blob));
                let end = blob.missing_run(block, limit, memory);
                plans.push(Plan { range: block..end, window: 0, urgent: true, for_last: false });
            }
        }
        if blob.is_last_awaited() {
            let mut requests =
                blob.requests.jobs.iter().filter(|r| r.job.for_last && r.next < r.end).count();
            let mut at = blob.verification.prefix.to;
            let horizon = at.saturating_add(max.saturating_mul(REQUESTS_AHEAD as u32));
            while requests < REQUESTS_AHEAD
                && let Some(start) = blob.first_missing(at..horizon, memory)
            {
                at = blob.missing_run(start, start.saturating_add(max), memory);
                plans.push(Plan { range: start..at, window: 0, urgent: true, for_last: true });
                requests += 1;
            }
            blob.requests.wake();
        }
        self.launch(state, key, plans);
        self.kick_hash(state, key);
    }

    /// Starts requests.
    pub(super) fn launch(self: &Arc<Self>, state: &mut State, key: &Key, plans: Vec<Plan>) {
        for plan in plans {
            let id = state.number();
            let Some(blob) = state.blobs.get_mut(key) else { return };
            let Some(origin) = blob.requests.origin.clone() else { return };
            let mut range = plan.range;
            if blob.requests.ignores_ranges {
                let streams = || blob.requests.jobs.iter().position(|running| running.is_stream);
                if let Some(at) = streams() {
                    let running = &blob.requests.jobs[at];
                    let is_needed = blob.readers.waiters.range(running.next..).next().is_some();
                    if running.next <= range.start || is_needed || !plan.urgent {
                        // It comes, or is asked for again when this stream has ended.
                        continue;
                    }
                    blob.requests.jobs.remove(at).job.stop.notify_one();
                }
                range = 0..blob.blocks;
            }
            let job = Arc::new(Job {
                id,
                window: plan.window,
                blob: blob.id,
                range: range.clone(),
                urgent: plan.urgent,
                for_last: plan.for_last,
                has_begun: AtomicBool::new(false),
                stop: Notify::new(),
                moved: Notify::new(),
            });
            blob.requests.jobs.push(Running {
                job: job.clone(),
                next: range.start,
                end: range.end,
                is_stream: blob.requests.ignores_ranges,
            });
            self.fetching.fetch_add(1, Ordering::Relaxed);
            self.tasks.spawn(origin.fetch(self.clone(), *key, job));
        }
    }

    /// Whether a request had better not go on: it is so far ahead of its readers that what it
    /// brings would be gone before they come.
    pub(super) fn pace(&self, key: &Key, job: &Job) -> Pace {
        let mut state = self.lock();
        let state = &mut *state;
        let is_refused = state.is_refused();
        let Some(blob) = state.blobs.get(key).filter(|blob| blob.id == job.blob) else {
            return Pace::Stop;
        };
        let Some(running) = blob.requests.jobs.iter().find(|running| running.job.id == job.id)
        else {
            return Pace::Stop;
        };
        // What goes before it has been hashed has to be fetched once more.
        let lag = match is_refused {
            true => Some(UNCACHED_LAG),
            false => (blob.size > self.limit_bytes / 2)
                .then_some((self.limit_bytes / 4 / BLOCK_BYTES).max(UNCACHED_BLOCKS.into()) as u32),
        };
        let hashed = blob.verification.prefix.to;
        let is_followed = |lag: u32| {
            let near = hashed.saturating_add(lag)..hashed.saturating_add(lag.saturating_mul(3));
            // Only what the digest is about to come to, and not what is read beyond a gap.
            blob.verification.prefix.running
                && near.contains(&running.next)
                && blob.first_missing(hashed..running.next, &state.memory).is_none()
        };
        if lag.is_some_and(is_followed) {
            return Pace::Wait;
        }
        let ahead = match running.is_stream {
            true => self.stream_ahead(state, blob),
            false => is_refused.then_some(UNCACHED_BLOCKS * 2),
        };
        let Some(ahead) = ahead else { return Pace::GoOn };
        if blob.readers.waiters.range(running.next..running.end).next().is_some() {
            return Pace::GoOn;
        }
        let reader = match (blob.is_last_awaited(), running.is_stream) {
            // Blobs are small enough for that.
            (true, _) => blob.verification.prefix.to,
            (false, true) => (blob.readers.windows.furthest() / BLOCK_BYTES) as u32,
            (false, false) => {
                let reader = blob.readers.windows.position(job.window).unwrap_or(0);
                (reader / BLOCK_BYTES) as u32
            }
        };
        if running.next <= reader.saturating_add(ahead) {
            return Pace::GoOn;
        }
        // Somebody waits for what has already passed.
        let mut awaited = blob.readers.waiters.keys();
        let is_in_the_way = awaited.any(|block| !blob.requests.is_coming(*block))
            || blob.is_last_awaited()
                && !blob.is_settled(blob.verification.prefix.to, &state.memory);
        match running.is_stream && !is_in_the_way {
            true => Pace::Wait,
            false => Pace::Stop,
        }
    }
}

/// How a request is to go on.
pub(super) enum Pace {
    GoOn,
    Wait,
    Stop,
}
