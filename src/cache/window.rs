//! How far ahead of its readers a blob is fetched. Everything here counts in blocks, except where
//! readers are.

use std::{
    mem,
    ops::Range,
    time::{Duration, Instant},
};

use lru::LruCache;

use super::state::Blob;
use crate::util::Parallelism;

/// Bytes by which a read may miss the place where the one before it ended and still be taken for its
/// continuation, at least and at most: the kernel sends several reads at once, in any order, and between two files
/// of an archive there is something. In between it is twice what has been read, so that small reads here and there
/// are not taken for those of somebody who reads on.
const LEAST_SLACK: u64 = 32 << 10;
const SLACK: u64 = 256 << 10;

/// See [`Habit::of_stream`].
const LEAST_STREAM_BYTES: u64 = 64 << 10;

/// The same for readers that have come some way, of which more reads are under way.
const WIDE_SLACK: u64 = 1 << 20;

/// Positions that are remembered of each blob.
const MAX_WINDOWS: usize = 64;

/// A window grows by this factor with sequential reading.
const GROWTH: u32 = 4;

/// How long a number of requests is tried before it is judged: what was asked for before has to come first.
const TRIAL: Duration = Duration::from_secs(1);

/// How blobs are read through a handle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habit {
    /// The most that is asked for at once for somebody who has not read as much yet, in bytes.
    pub ahead_bytes: u64,
    /// The most by which two reads that belong together miss each other, see [`SLACK`].
    slack: u64,
    /// Nobody is taken for somebody who reads on before so many bytes have been read in one place.
    least_bytes: u64,
    /// Whether more is asked for at first where what was asked for besides what was read has been of use.
    learns: bool,
}

impl Habit {
    /// Whoever reads what the kernel asks for.
    pub(super) fn of_kernel(ahead_bytes: u64) -> Self {
        Self { ahead_bytes, slack: SLACK, least_bytes: 0, learns: false }
    }

    /// Whoever reads a stream for the kernel. What is decompressed ahead in vain costs more than what is fetched.
    pub(super) fn of_stream(ahead_bytes: u64) -> Self {
        Self { least_bytes: LEAST_STREAM_BYTES, ..Self::of_kernel(ahead_bytes) }
    }

    /// Whoever asks for what follows only when it has got what comes before, and reads small files here and there.
    pub(super) fn in_order(ahead_bytes: u64) -> Self {
        Self { ahead_bytes, slack: LEAST_SLACK, least_bytes: 0, learns: true }
    }
}

/// Where somebody reads, and what has been asked for ahead of that.
#[derive(Debug)]
pub(super) struct Window {
    pub id: u64,
    /// The byte after the furthest that has been read.
    pub next: u64,
    /// The block after the last one that has been asked for.
    pub ahead: u32,
    /// How many blocks are asked for at a time.
    pub blocks: u32,
    /// Whether there has been more than one read, one after the other.
    pub sequential: bool,
    /// Bytes that have been read there.
    pub read_bytes: u64,
    /// Where what is read there ends, as far as readers have said.
    end: u64,
    /// Whether it goes on behind such an end.
    goes_on: bool,
    /// How often it has since somebody asked.
    went_on: u32,
    /// How many requests are made for a reader who has come far.
    far: Option<Box<Far>>,
}

/// What is known of the speed of a reader who has come far.
#[derive(Debug)]
struct Far {
    requests: Parallelism,
    /// Since when the reader waits for what it has asked for.
    waits_since: Option<Instant>,
}

impl Window {
    /// Makes the window larger, as long as it is below `max` blocks.
    pub(super) fn grow(&mut self, max: u32) {
        self.blocks = self.blocks.saturating_mul(GROWTH).min(max).max(1);
    }

    /// Where that has to end which is asked for ahead, as somebody reads at `offset` what ends at `end`. Nothing is
    /// known of what is behind that, unless it has been gone on with before, as by somebody who reads all files.
    pub(super) fn limit(&mut self, offset: u64, end: u64) -> u64 {
        if self.end > 0 && offset >= self.end {
            self.goes_on = true;
            self.went_on += 1;
        }
        self.end = self.end.max(end);
        if self.goes_on { u64::MAX } else { self.end }
    }

    /// How many requests are to be under way for this reader: `usual` ones, and up to `most` while it waits for
    /// what comes, and gets it the sooner the more there are. `fetched` bytes have come until now, and it
    /// `waits` for what it reads.
    pub(super) fn requests(
        &mut self,
        usual: usize,
        most: usize,
        now: Instant,
        fetched: u64,
        waits: bool,
    ) -> usize {
        let far = self.far.get_or_insert_with(|| {
            let requests = Parallelism::new(usual, most, TRIAL);
            Box::new(Far { requests, waits_since: None })
        });
        let since = far.waits_since.take();
        let waited = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        far.waits_since = waits.then_some(now);
        far.requests.note(now, fetched, waited);
        far.requests.number()
    }

    /// By how many bytes a read at `offset` misses the place where it would go on, if not by too
    /// many.
    fn missed_by(&self, offset: u64, habit: Habit) -> Option<u64> {
        let slack = match self.sequential {
            true => WIDE_SLACK,
            false => self.read_bytes.saturating_mul(2).clamp(LEAST_SLACK, habit.slack),
        };
        Some(self.next.abs_diff(offset)).filter(|missed| *missed <= slack)
    }
}

/// How much a read at a new place that finds everything here counts for against one that does not: where a quarter
/// of them do, more is asked for with the others.
const FOUND: u32 = 3;

/// So many more finds than that double what is asked for at first.
const DOUBLES: u32 = 4;

/// Who has gone on behind the ends of files so many times more often than at another place is going to there, too.
const RUNS: u32 = 4;

/// The places at which a blob is read.
#[derive(Debug)]
pub(super) struct Windows {
    /// By their numbers.
    known: LruCache<u64, Window>,
    numbers: u64,
    /// How often reads at new places have found everything here, as those of neighbours do.
    found: u32,
    /// How often more somebody has gone on behind the end of a file than at a new place.
    runs: u32,
}

impl Default for Windows {
    fn default() -> Self {
        // Bounded where one is added: most blobs have one reader, and need no room for more.
        Self { known: LruCache::unbounded(), numbers: 0, found: 0, runs: 0 }
    }
}

impl Windows {
    /// Finds the reader that reads on with `range`, or takes it for a new one, which begins with `first` blocks, or
    /// with twice as many where that is of use. `is_here` says whether all of the range is here or coming.
    pub(super) fn note(
        &mut self,
        range: &Range<u64>,
        first: u32,
        habit: Habit,
        is_here: bool,
    ) -> &mut Window {
        let Range { start: offset, end } = *range;
        let block = Blob::blocks_of(range).start;
        let near = self.known.iter();
        let near = near.filter_map(|(id, w)| Some((w.missed_by(offset, habit)?, *id)));
        let near = near.min().map(|(_, id)| id);
        if near.is_none() {
            self.numbers += 1;
            self.runs = self.runs.saturating_sub(1);
            self.found = match is_here {
                true => (self.found + FOUND).min(2 * DOUBLES - 1),
                false => self.found.saturating_sub(1),
            };
            if self.known.len() >= MAX_WINDOWS {
                self.known.pop_lru();
            }
        }
        let id = near.unwrap_or(self.numbers);
        let first = if habit.learns { first << (self.found / DOUBLES) } else { first };
        let new = || Window {
            id,
            next: end,
            ahead: block,
            blocks: first.max(1),
            sequential: false,
            read_bytes: end.saturating_sub(offset),
            end: 0,
            goes_on: self.runs >= RUNS,
            went_on: 0,
            far: None,
        };
        let window = self.known.get_or_insert_mut(id, new);
        if near.is_some() {
            window.read_bytes += end.saturating_sub(offset.max(window.next));
            window.sequential |= end > window.next && window.read_bytes >= habit.least_bytes;
            window.next = window.next.max(end);
        }
        self.runs = (self.runs + mem::take(&mut window.went_on)).min(2 * RUNS);
        window
    }

    /// Where the reader is that a request was made for.
    pub(super) fn position(&self, id: u64) -> Option<u64> {
        self.known.peek(&id).map(|window| window.next)
    }

    /// What had been asked for from `block` on does not come.
    pub(super) fn set_back(&mut self, id: u64, block: u32) {
        if let Some(window) = self.known.peek_mut(&id) {
            window.ahead = window.ahead.min(block);
        }
    }

    /// The end of what has been read furthest.
    pub(super) fn furthest(&self) -> u64 {
        self.known.iter().map(|(_, window)| window.next).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Habit = Habit { ahead_bytes: 0, slack: SLACK, least_bytes: 0, learns: false };

    #[test]
    fn readers_are_told_apart() {
        let mut windows = Windows::default();
        let mut note = |offset: u64| windows.note(&(offset..offset + 4096), 2, KERNEL, false).id;
        let (a, b) = (note(0), note(1 << 30));
        assert_ne!(a, b);
        for i in 1..100u64 {
            assert_eq!(note(i * 4096), a);
            assert_eq!(note((1 << 30) + i * 4096), b);
        }
        assert_eq!(windows.furthest(), (1 << 30) + 100 * 4096);
        let c = windows.note(&(100 << 20..(100 << 20) + 1), 2, KERNEL, false);
        assert!(!c.sequential && c.blocks == 2 && c.ahead == 800);
        c.grow(128);
        c.grow(128);
        assert_eq!(c.blocks, 32);
        c.grow(128);
        c.grow(128);
        assert_eq!(c.blocks, 128);
    }

    #[test]
    fn more_is_asked_for_at_a_time_where_that_is_faster() {
        // Each request brings 40 bytes a millisecond, and all of them at most `link`.
        let requests = |most: usize, link: u64, reader_waits: bool| {
            let mut windows = Windows::default();
            let window = windows.note(&(0..1), 1, KERNEL, false);
            let (start, mut fetched, mut requests) = (Instant::now(), 0, 2);
            for at in 0..20_000 {
                fetched += (40 * requests as u64).min(link);
                let now = start + Duration::from_millis(at);
                requests = window.requests(2, most, now, fetched, reader_waits);
            }
            requests
        };
        assert_eq!(requests(8, 10_000, true), 8);
        assert_eq!(requests(8, 10_000, false), 2, "the reader is the slower one");
        assert_eq!(requests(8, 80, true), 2, "two are as fast as the link");
        assert_eq!(requests(8, 160, true), 4);
        assert_eq!(requests(1, 10_000, true), 2);
    }

    #[test]
    fn reads_in_another_order_are_one_reader() {
        let mut windows = Windows::default();
        let mut note =
            |kib: u64| windows.note(&(kib << 10..(kib + 128) << 10), 2, KERNEL, false).id;
        let id = note(0);
        for kib in [256, 128, 512, 384, 640] {
            assert_eq!(note(kib), id);
        }
    }

    #[test]
    fn small_reads_here_and_there_are_not_those_of_one_who_reads_on() {
        let mut windows = Windows::default();
        for kib in [0, 100, 200, 60, 300] {
            let window = windows.note(&(kib << 10..(kib + 4) << 10), 2, KERNEL, false);
            assert!(!window.sequential, "{kib}");
        }
        // Small files side by side are.
        assert!(windows.note(&(306 << 10..307 << 10), 2, KERNEL, false).sequential);
        // But too little has been read of them to decompress more.
        let stream = Habit::of_stream(0);
        let mut windows = Windows::default();
        for (kib, is_sequential) in [(0, false), (12, false), (24, false), (80, true)] {
            let window = windows.note(&(kib << 10..(kib + 24) << 10), 2, stream, false);
            assert_eq!(window.sequential, is_sequential, "{kib}");
        }
        // What follows something large is read on; but not if it would be asked for in order.
        let mut windows = Windows::default();
        let far = 1 << 30;
        for (at, habit, is_sequential) in [(0, KERNEL, true), (far, Habit::in_order(0), false)] {
            windows.note(&(at..at + (200 << 10)), 2, habit, false);
            let next = at + (400 << 10);
            let window = windows.note(&(next..next + 1), 2, habit, false);
            assert_eq!(window.sequential, is_sequential, "{at}");
        }
    }

    #[test]
    fn what_is_behind_a_file_is_asked_for_once_somebody_has_gone_on_behind_one() {
        let mut windows = Windows::default();
        let window = windows.note(&(0..4096), 2, KERNEL, false);
        assert_eq!([window.limit(0, 10_000), window.limit(8192, 10_000)], [10_000, 10_000]);
        // Two that are read at a time.
        assert_eq!([window.limit(11_000, 20_000), window.limit(4096, 10_000)], [u64::MAX; 2]);
        // Whoever reads all files does so at other places, too.
        let mut at = |place: u64, file: u64| {
            let offset = (place << 30) + file * 4096;
            let window = windows.note(&(offset..offset + 4096), 2, KERNEL, false);
            window.limit(offset, offset + 4096) == u64::MAX
        };
        let all: Vec<bool> = (1..4)
            .map(|place| (0..9).map(|file| at(place, file)).last())
            .map(Option::unwrap)
            .collect();
        assert_eq!(all, [true; 3]);
        assert!(at(5, 0));
        // But not for long, if he reads one at each.
        assert!((6..20).map(|place| at(place, 0)).filter(|goes_on| *goes_on).count() <= 4);
    }

    #[test]
    fn more_is_asked_for_at_first_where_it_is_of_use() {
        let mut windows = Windows::default();
        let habit = Habit::in_order(0);
        let mut places = (0..).map(|number: u64| number << 30);
        let mut first = |habit, is_here| {
            let at = places.next().unwrap_or(0);
            windows.note(&(at..at + 1), 2, habit, is_here).blocks
        };
        assert_eq!(first(habit, false), 2);
        assert_eq!([true, true, true].map(|is_here| first(habit, is_here)), [2, 4, 4]);
        assert_eq!(first(KERNEL, false), 2);
        // One in five is not enough for that.
        for number in 0..100 {
            first(habit, number % 5 == 4);
        }
        assert_eq!(first(habit, false), 2);
        // One in three is.
        for number in 0..60 {
            first(habit, number % 3 == 0);
        }
        assert!(first(habit, true) >= 4);
    }

    #[test]
    fn few_places_are_remembered() {
        let mut windows = Windows::default();
        for i in 0..1000u64 {
            windows.note(&(i << 30..(i << 30) + 1), 2, KERNEL, false);
        }
        assert_eq!(windows.known.len(), MAX_WINDOWS);
        let last = (999 << 30) + 1;
        assert_eq!(windows.note(&(last..last + 1), 2, KERNEL, false).id, 1000);
    }
}
