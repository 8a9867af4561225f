//! How many connections are worth having at a time.

use std::time::{Duration, Instant};

/// How much faster a doubled number of connections has to be to stay.
const GAIN: f64 = 1.15;

/// Bytes a second of one connection that are fast enough. A reader that waits at this rate shares the processor or
/// the whole link with others, and further connections would only cost memory and time.
const FAST: f64 = 150e6;

/// Decides on the number of connections that one reader has: doubled while it waits for them and they become
/// faster.
#[derive(Debug)]
pub(crate) struct Parallelism {
    number: usize,
    max: usize,
    trial: Duration,
    /// When the trial began, after what had been fetched; `None` right after a change, as a new
    /// connection takes its time to become fast.
    began: Option<(Instant, u64)>,
    changed: Instant,
    waited: Duration,
    /// The number before the last change, with its bytes a second.
    before: Option<(usize, f64)>,
    is_settled: bool,
}

impl Parallelism {
    /// Begins with `start`, and tries each number for the time of `trial`.
    pub(crate) fn new(start: usize, max: usize, trial: Duration) -> Self {
        Self {
            number: start,
            max,
            trial,
            began: None,
            changed: Instant::now(),
            waited: Duration::ZERO,
            before: None,
            is_settled: max <= start,
        }
    }

    /// How many there are to be.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// How many there may be.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Bytes a second before the last change.
    pub(crate) fn rate(&self) -> f64 {
        self.before.map_or(0.0, |(_, rate)| rate)
    }

    /// It stays as it is: what was tried last cannot be done.
    pub(crate) fn settle(&mut self) {
        if let Some((connections, _)) = self.before.take() {
            self.number = connections;
        }
        self.is_settled = true;
    }

    /// Takes note of `fetched` bytes altogether, and that the reader has just waited so long.
    pub(crate) fn note(&mut self, now: Instant, fetched: u64, waited: Duration) {
        if self.is_settled {
            return;
        }
        let Some((began, before)) = self.began else {
            if now.saturating_duration_since(self.changed) >= self.trial / 3 {
                (self.began, self.waited) = (Some((now, fetched)), Duration::ZERO);
            }
            return;
        };
        self.waited += waited;
        let elapsed = now.saturating_duration_since(began);
        if elapsed < self.trial {
            return;
        }
        let rate = fetched.saturating_sub(before) as f64 / elapsed.as_secs_f64();
        let is_waiting = self.waited > elapsed / 2;
        (self.began, self.changed) = (None, now);
        if let Some((connections, slower)) = self.before.take()
            && rate < slower * GAIN
        {
            self.number = connections;
            self.is_settled = true;
        } else if is_waiting && self.number < self.max && rate < FAST * self.number as f64 {
            self.before = Some((self.number, rate));
            self.number = (self.number * 2).min(self.max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of the number of connections where each brings at most `each` bytes a second, all
    /// of them `link`, and the reader takes `reader`.
    fn connections(max: usize, each: f64, link: f64, reader: f64) -> usize {
        let trial = Duration::from_millis(300);
        let (mut pace, start) = (Parallelism::new(1, max, trial), Instant::now());
        let (mut fetched, step) = (0.0, Duration::from_millis(10));
        for at in 1..1000 {
            let brought = (each * pace.number as f64).min(link);
            fetched += brought.min(reader) * step.as_secs_f64();
            let waited = step.mul_f64((1.0 - brought / reader).max(0.0));
            pace.note(start + step * at, fetched as u64, waited);
        }
        pace.number
    }

    #[test]
    fn connections_are_added_while_the_sum_grows() {
        // As many as there may be, where each is slow.
        assert_eq!(connections(8, 40e6, 10e9, 1e9), 8);
        assert_eq!(connections(6, 40e6, 10e9, 1e9), 6);
        // One carries what the link does.
        assert_eq!(connections(8, 125e6, 125e6, 1e9), 1);
        // Two do.
        assert_eq!(connections(8, 60e6, 125e6, 1e9), 2);
        // The reader is the slower one.
        assert_eq!(connections(8, 2e9, 10e9, 1e9), 1);
        assert_eq!(connections(8, 300e6, 10e9, 1e9), 1);
        // Several readers share what the machine can do.
        assert_eq!(connections(8, 160e6, 160e6, 1e9), 1);
        assert_eq!(connections(8, 140e6, 10e9, 1e9), 4);
        assert_eq!(connections(1, 40e6, 10e9, 1e9), 1);
    }
}
