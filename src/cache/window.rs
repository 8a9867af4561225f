//! How far ahead of its readers a blob is fetched. Everything here counts in blocks, except where
//! readers are.

use std::time::{Duration, Instant};

use lru::LruCache;

use crate::util::Parallelism;

/// Bytes by which a read may miss the place where the one before it ended and still be taken for
/// its continuation: the kernel sends several reads at once, in any order.
const SLACK: u64 = 256 << 10;

/// The same for readers that have come some way, of which more reads are under way.
const WIDE_SLACK: u64 = 1 << 20;

/// Positions that are remembered of each blob.
const MAX_WINDOWS: usize = 64;

/// A window grows by this factor with sequential reading.
const GROWTH: u32 = 4;

/// How long a number of requests is tried before it is judged: what was asked for before has to come first.
const TRIAL: Duration = Duration::from_secs(1);

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
    fn missed_by(&self, offset: u64) -> Option<u64> {
        let slack = if self.sequential { WIDE_SLACK } else { SLACK };
        Some(self.next.abs_diff(offset)).filter(|missed| *missed <= slack)
    }
}

/// The places at which a blob is read.
#[derive(Debug)]
pub(super) struct Windows {
    /// By their numbers.
    known: LruCache<u64, Window>,
    numbers: u64,
}

impl Default for Windows {
    fn default() -> Self {
        // Bounded where one is added: most blobs have one reader, and need no room for more.
        Self { known: LruCache::unbounded(), numbers: 0 }
    }
}

impl Windows {
    /// Finds the reader that reads on at `offset`, up to `end`, or takes it for a new one, which
    /// begins with `first` blocks.
    pub(super) fn note(&mut self, offset: u64, end: u64, block: u32, first: u32) -> &mut Window {
        let near = self.known.iter().filter_map(|(id, w)| Some((w.missed_by(offset)?, *id)));
        let near = near.min().map(|(_, id)| id);
        if near.is_none() {
            self.numbers += 1;
            if self.known.len() >= MAX_WINDOWS {
                self.known.pop_lru();
            }
        }
        let id = near.unwrap_or(self.numbers);
        let new = || Window {
            id,
            next: end,
            ahead: block,
            blocks: first.max(1),
            sequential: false,
            far: None,
        };
        let window = self.known.get_or_insert_mut(id, new);
        if near.is_some() {
            window.sequential |= end > window.next;
            window.next = window.next.max(end);
        }
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

    #[test]
    fn readers_are_told_apart() {
        let mut windows = Windows::default();
        let a = windows.note(0, 4096, 0, 2).id;
        let b = windows.note(1 << 30, (1 << 30) + 4096, 8192, 2).id;
        assert_ne!(a, b);
        for i in 1..100u64 {
            assert_eq!(windows.note(i * 4096, (i + 1) * 4096, 0, 2).id, a);
            let far = (1 << 30) + i * 4096;
            assert_eq!(windows.note(far, far + 4096, 0, 2).id, b);
        }
        assert_eq!(windows.furthest(), (1 << 30) + 100 * 4096);
        let c = windows.note(100 << 20, (100 << 20) + 1, 800, 2);
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
            let window = windows.note(0, 1, 0, 1);
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
        let id = windows.note(0, 128 << 10, 0, 2).id;
        for kib in [256, 128, 512, 384, 640] {
            let window = windows.note(kib << 10, (kib + 128) << 10, 0, 2);
            assert_eq!(window.id, id);
        }
    }

    #[test]
    fn few_places_are_remembered() {
        let mut windows = Windows::default();
        for i in 0..1000u64 {
            windows.note(i << 30, (i << 30) + 1, 0, 2);
        }
        assert_eq!(windows.known.len(), MAX_WINDOWS);
        assert_eq!(windows.note((999 << 30) + 1, (999 << 30) + 2, 0, 2).id, 1000);
    }
}
