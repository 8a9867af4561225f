//! Reading a large blob over several connections, where one is slower than its reader.
//!
//! Registries, the stores behind them and what is on the way often give each connection only a part of
//! what the link could carry. A blob begins to come over one connection. While its reader waits for the
//! network, connections are added, as long as all of them together become faster: each fetches segments
//! ahead of the reader, who gets everything in order.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
};

use super::blob::BlobStream;
use crate::{
    backend::{ByteStream, Result},
    util::{Budget, Parallelism, Reservation},
};

/// How a blob is divided. Sizes are in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Division {
    /// Less than this comes over one connection.
    pub min_bytes: u64,
    /// What one request fetches ahead.
    pub segment_bytes: u64,
    /// How long a number of connections is tried before it is judged.
    pub trial: Duration,
}

impl Division {
    pub(super) const USUAL: Self =
        Self { min_bytes: 32 << 20, segment_bytes: 4 << 20, trial: Duration::from_millis(300) };
}

/// What is fetched ahead of the readers of all registries, all together, in segments.
const SEGMENTS_AHEAD: usize = 16;

/// The second connection begins where the reader will be after this time, so that there is enough for it
/// to be asked for. Less than a segment is never enough.
const LEAD: Duration = Duration::from_millis(300);

/// The memory that segments may take which are fetched ahead of their readers.
pub(super) struct Ahead {
    segments: Arc<Semaphore>,
    budget: Budget,
}

/// The memory for one segment.
struct Room {
    _segment: OwnedSemaphorePermit,
    _memory: Reservation,
}

impl Ahead {
    /// As much as `budget` has left, and at most [`SEGMENTS_AHEAD`].
    pub(super) fn within(budget: &Budget) -> Self {
        Self { segments: Arc::new(Semaphore::new(SEGMENTS_AHEAD)), budget: budget.clone() }
    }

    /// Room for a segment of so many bytes, if there is any.
    fn room(&self, bytes: u64) -> Option<Room> {
        let segment = self.segments.clone().try_acquire_owned().ok()?;
        Some(Room { _segment: segment, _memory: self.budget.reserve(bytes).ok()? })
    }
}

/// A blob that may come over several connections.
pub(super) struct ParallelStream {
    /// The first connection, until it has come to what others fetch.
    first: Option<BlobStream>,
    /// What makes further ones.
    pattern: BlobStream,
    division: Division,
    /// One that may become the second connection.
    candidate: Option<Candidate>,
    /// What is fetched behind the first connection, in order.
    segments: VecDeque<Segment>,
    /// What is behind these, and fetched by nobody yet.
    rest: Range<u64>,
    pace: Parallelism,
    ahead: Arc<Ahead>,
    fetched: Arc<AtomicU64>,
    ignores_ranges: bool,
    /// Ends with the stream.
    tasks: JoinSet<()>,
}

/// A part that is fetched by a task. No more than its size is ever held.
struct Segment {
    range: Range<u64>,
    chunks: mpsc::UnboundedReceiver<Result<Bytes>>,
    is_complete: Arc<AtomicBool>,
    /// Of what may be fetched ahead. The only connection needs none.
    _room: Option<Room>,
}

struct Candidate {
    segment: Segment,
    /// Tells whether the registry has sent just what was asked for.
    is_good: oneshot::Receiver<bool>,
}

impl ParallelStream {
    /// Takes over `first`, a blob that has begun to come, with at most `connections`. `ahead` bounds what
    /// is fetched ahead for all readers together.
    pub(super) fn new(
        first: BlobStream,
        division: Division,
        connections: usize,
        ahead: Arc<Ahead>,
    ) -> Self {
        let range = first.rest();
        Self {
            pattern: first.fork(range.clone(), 0),
            first: Some(first),
            division,
            candidate: None,
            segments: VecDeque::new(),
            rest: range.end..range.end,
            pace: Parallelism::new(1, connections, division.trial),
            ahead,
            fetched: Arc::default(),
            ignores_ranges: false,
            tasks: JoinSet::new(),
        }
    }

    /// Whether the stream of a blob, of which `rest` is wanted, gains from this.
    pub(super) fn serves(first: &BlobStream, division: Division, connections: usize) -> bool {
        let rest = first.rest();
        connections > 1 && rest.end - rest.start >= division.min_bytes && !first.ignores_ranges()
    }

    /// Fetches `range` by a task of its own. `good` is told whether that can be done.
    fn fetch(&mut self, range: Range<u64>, good: Option<oneshot::Sender<bool>>) -> Segment {
        let connection = 1 + (self.segments.len() % self.pace.max().max(2));
        let source = self.first.as_ref().unwrap_or(&self.pattern);
        let mut stream = source.fork(range.clone(), connection);
        let (give, chunks) = mpsc::unbounded_channel();
        let is_complete = Arc::new(AtomicBool::new(false));
        let (complete, fetched) = (is_complete.clone(), self.fetched.clone());
        self.tasks.spawn(async move {
            if let Some(good) = good {
                let started = stream.start().await;
                let is_good = started.as_ref().is_ok_and(|stream| !stream.ignores_ranges());
                let (Ok(started), Ok(()), true) = (started, good.send(is_good), is_good) else {
                    return;
                };
                stream = started;
            }
            loop {
                let chunk = match stream.next().await {
                    Ok(None) => break,
                    Ok(Some(chunk)) => Ok(chunk),
                    Err(error) => Err(error),
                };
                let has_failed = chunk.is_err();
                fetched.fetch_add(
                    chunk.as_ref().map_or(0, |chunk| chunk.len() as u64),
                    Ordering::Relaxed,
                );
                if give.send(chunk).is_err() || has_failed {
                    break;
                }
            }
            complete.store(true, Ordering::Relaxed);
        });
        Segment { range, chunks, is_complete, _room: None }
    }

    /// Asks for a second connection, some way ahead of the first.
    fn try_second(&mut self) {
        let Some(first) = &self.first else { return };
        let (rest, segment) = (first.rest(), self.division.segment_bytes);
        // At most what was measured, so it fits.
        let lead = (self.pace.rate() * LEAD.as_secs_f64()) as u64;
        let start = rest.start.saturating_add(lead.max(segment));
        let end = start.saturating_add(segment);
        if end >= rest.end || !first.session().blobs.has_room() {
            return self.pace.settle();
        }
        let Some(room) = self.ahead.room(segment) else { return self.pace.settle() };
        let (good, is_good) = oneshot::channel();
        let segment = self.fetch(start..end, Some(good));
        self.candidate =
            Some(Candidate { segment: Segment { _room: Some(room), ..segment }, is_good });
    }

    /// Takes the second connection, if it is one.
    fn judge_second(&mut self) {
        let Some(mut candidate) = self.candidate.take() else { return };
        let Some(first) = &mut self.first else { return self.pace.settle() };
        let rest = first.rest();
        match candidate.is_good.try_recv() {
            Ok(true) if rest.start < candidate.segment.range.start => {
                first.end_at(candidate.segment.range.start);
                self.rest = candidate.segment.range.end..rest.end;
                self.segments.push_back(candidate.segment);
            }
            Err(oneshot::error::TryRecvError::Empty)
                if rest.start < candidate.segment.range.start =>
            {
                self.candidate = Some(candidate);
            }
            // It was too late, or the registry does not know ranges.
            _ => {
                self.tasks.abort_all();
                self.pace.settle();
            }
        }
    }

    /// Has as many connections at work as are wanted.
    fn fill(&mut self) {
        let is_open = |segment: &&Segment| !segment.is_complete.load(Ordering::Relaxed);
        let mut open =
            self.segments.iter().filter(is_open).count() + usize::from(self.first.is_some());
        while !self.rest.is_empty() && open < self.pace.number() {
            let is_only = self.first.is_none() && self.segments.is_empty();
            let has_room = is_only || self.pattern.session().blobs.has_room();
            let room = match self.ahead.room(self.division.segment_bytes) {
                Some(room) if has_room => Some(room),
                _ if is_only => None,
                _ => return,
            };
            let end = self.rest.end.min(self.rest.start + self.division.segment_bytes);
            let segment = self.fetch(self.rest.start..end, None);
            self.segments.push_back(Segment { _room: room, ..segment });
            self.rest.start = end;
            open += 1;
        }
    }

    /// The next piece in order.
    async fn piece(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(first) = &mut self.first {
                let piece = first.next().await?;
                if let Some(piece) = piece {
                    self.fetched.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    return Ok(Some(piece));
                }
                self.ignores_ranges = first.ignores_ranges();
                if let Some(first) = self.first.take() {
                    // With where the registry's redirect has led at last.
                    self.pattern = first.fork(first.rest(), 0);
                }
            }
            self.fill();
            let Some(segment) = self.segments.front_mut() else { return Ok(None) };
            match segment.chunks.recv().await {
                Some(piece) => return piece.map(Some),
                None => drop(self.segments.pop_front()),
            }
        }
    }
}

#[async_trait]
impl ByteStream for ParallelStream {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        self.judge_second();
        let began = Instant::now();
        let piece = self.piece().await?;
        let now = Instant::now();
        self.pace.note(now, self.fetched.load(Ordering::Relaxed), now - began);
        if self.pace.number() > 1 {
            match self.first.is_some() && self.segments.is_empty() {
                true if self.candidate.is_none() => self.try_second(),
                true => {}
                false => self.fill(),
            }
        }
        Ok(piece)
    }

    fn ignores_ranges(&self) -> bool {
        self.first.as_ref().map_or(self.ignores_ranges, ByteStream::ignores_ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_ahead_is_taken_from_the_memory_of_the_process() {
        let segment = Division::USUAL.segment_bytes;
        for (budget, expected) in
            [(Budget::unlimited(), SEGMENTS_AHEAD), (Budget::new(3 * segment + 1), 3)]
        {
            let ahead = Ahead::within(&budget);
            let rooms: Vec<Room> = std::iter::from_fn(|| ahead.room(segment)).collect();
            assert_eq!(rooms.len(), expected);
            assert_eq!(budget.stats().used_bytes, expected as u64 * segment);
            drop(rooms);
            assert_eq!(budget.stats().used_bytes, 0);
            assert!(ahead.room(segment).is_some());
        }
    }
}
