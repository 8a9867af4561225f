//! The memory that a process may take for what it can make again: one bound for all of it.
//!
//! Whatever is large says how many bytes it takes before it is made, with a [`Reservation`] that it holds
//! as long as it exists. [`Kept`] values stay in memory while there is room, although nobody uses them.
//! When a reservation needs room, those that were used least recently are let go; what is in use
//! elsewhere stays alive and stays counted. A reservation that finds no room is refused: the sum of all
//! reservations is never above the limit.

use std::{
    any::Any,
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    ops::Deref,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lru::LruCache;
use tokio::{sync::Notify, time::timeout_at};

use super::locked;

/// Memory of a process that no budget counts, in bytes: the program itself, stacks and connections.
const UNCOUNTED: u64 = 20 << 20;

/// One part in so many of a process's memory is what the allocator has been given back and cannot use.
const FRAGMENTED_PART: u64 = 8;

/// How long is waited for memory before it is tried again, at first and after many attempts.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Entries of a [`Kept`] below which nobody looks for those that have been let go.
const SWEEP_FROM: usize = 64;

/// There is no room for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfMemory {
    /// It is larger than the whole budget.
    #[error(
        "it needs {wanted} bytes of memory, and {limit} are allowed; a larger --memory would allow it"
    )]
    TooLarge {
        /// Bytes that it needs in all.
        wanted: u64,
        /// Bytes that everything together may take.
        limit: u64,
    },
    /// Others use what it needs.
    #[error(
        "it needs {wanted} bytes of memory more, and of the {limit} that are allowed {used} are in use; \
         try again later, or with a larger --memory"
    )]
    Full {
        /// Bytes that it needs more.
        wanted: u64,
        /// Bytes that it has.
        held: u64,
        /// Bytes that are in use, and cannot be let go.
        used: u64,
        /// Bytes that everything together may take.
        limit: u64,
    },
}

impl OutOfMemory {
    /// Whether it is worth to wait until others have ended. What would take more than half of everything does not
    /// wait: it would keep from the others what they wait for.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TooLarge { .. } => false,
            Self::Full { wanted, held, limit, .. } => held.saturating_add(*wanted) <= limit / 2,
        }
    }
}

/// How many bytes of memory there are for everything that is counted. Clones are the same.
#[derive(Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

struct Inner {
    limit: u64,
    used: AtomicU64,
    /// The most that has been in use.
    peak: AtomicU64,
    /// What is kept although it may be in use nowhere, by the number of its place.
    kept: Mutex<LruCache<u64, Arc<dyn Any + Send + Sync>>>,
    next: AtomicU64,
    freed: Notify,
}

/// What a budget is, and how much of it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetStats {
    /// Bytes that are in use.
    pub used_bytes: u64,
    /// The most that have been.
    pub peak_bytes: u64,
    /// The most that may be.
    pub limit_bytes: u64,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stats().fmt(f)
    }
}

impl Budget {
    /// One of `limit_bytes`.
    pub fn new(limit_bytes: u64) -> Self {
        let inner = Inner {
            limit: limit_bytes,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            kept: Mutex::new(LruCache::unbounded()),
            next: AtomicU64::new(0),
            freed: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// One for a process that is to take `memory_bytes` in all: less what it takes without anything that is
    /// counted, for which 20 MiB and an eighth of all are left, but no more than half.
    pub fn of_process(memory_bytes: u64) -> Self {
        let uncounted = UNCOUNTED + memory_bytes / FRAGMENTED_PART;
        Self::new(memory_bytes - uncounted.min(memory_bytes / 2))
    }

    /// One that refuses nothing and never lets anything go.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// How much of it is in use.
    pub fn stats(&self) -> BudgetStats {
        BudgetStats {
            used_bytes: self.inner.used.load(Ordering::Acquire),
            peak_bytes: self.inner.peak.load(Ordering::Acquire),
            limit_bytes: self.inner.limit,
        }
    }

    /// Reserves `bytes`, if need be by letting go what is kept and was used least recently.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reservation, OutOfMemory> {
        let mut reservation = Reservation { budget: self.clone(), bytes: 0 };
        reservation.resize(bytes)?;
        Ok(reservation)
    }

    /// Does `work`, and does it again when it fails for want of memory that others use and give back. It
    /// must hold no reservation when it has failed. Given up after `patience`.
    pub(crate) async fn retry<T, E, F>(
        &self,
        patience: Duration,
        is_short: impl Fn(&E) -> bool,
        mut work: impl FnMut() -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let deadline = Instant::now() + patience;
        let mut pause = SHORTEST_PAUSE;
        loop {
            match work().await {
                Err(error) if is_short(&error) && Instant::now() < deadline => {}
                done => return done,
            }
            // It may have been given back before this waits, so it does not wait for that alone.
            let freed = self.inner.freed.notified();
            let _ = timeout_at(deadline.min(Instant::now() + pause).into(), freed).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Adds to what is in use, or says what that was.
    fn add(&self, bytes: u64) -> Result<(), u64> {
        let Inner { used, peak, limit, .. } = &*self.inner;
        let add = |used: u64| used.checked_add(bytes).filter(|sum| sum <= limit);
        let before = used.fetch_update(Ordering::AcqRel, Ordering::Acquire, add)?;
        peak.fetch_max(before + bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Lets go what was used least recently; whether there was anything.
    fn let_one_go(&self) -> bool {
        let popped = locked(&self.inner.kept).pop_lru();
        // Not while the lock is held: it may own what is kept itself.
        popped.is_some()
    }

    fn keep(&self, place: u64, value: Arc<dyn Any + Send + Sync>) {
        let before = locked(&self.inner.kept).put(place, value);
        drop(before);
    }

    fn drop_kept(&self, place: u64) {
        let kept = locked(&self.inner.kept).pop(&place);
        drop(kept);
    }

    fn next_place(&self) -> u64 {
        self.inner.next.fetch_add(1, Ordering::Relaxed)
    }
}

/// Bytes of a [`Budget`] that are in use until this is dropped.
pub(crate) struct Reservation {
    budget: Budget,
    bytes: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation({} bytes)", self.bytes)
    }
}

impl Reservation {
    /// Makes it one of `bytes`; if there is no room, it stays what it is.
    pub(crate) fn resize(&mut self, bytes: u64) -> Result<(), OutOfMemory> {
        let Some(more) = bytes.checked_sub(self.bytes) else {
            self.give_back(self.bytes - bytes);
            return Ok(());
        };
        let limit = self.budget.inner.limit;
        if bytes > limit {
            return Err(OutOfMemory::TooLarge { wanted: bytes, limit });
        }
        while let Err(used) = self.budget.add(more) {
            if !self.budget.let_one_go() {
                return Err(OutOfMemory::Full { wanted: more, held: self.bytes, used, limit });
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    fn give_back(&mut self, bytes: u64) {
        if bytes > 0 {
            self.bytes -= bytes;
            self.budget.inner.used.fetch_sub(bytes, Ordering::AcqRel);
            self.budget.inner.freed.notify_waiters();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// A value with the memory that it takes.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    value: T,
    _memory: Reservation,
}

impl<T> Counted<T> {
    /// `value`, which takes what has been reserved.
    pub(crate) fn new(value: T, memory: Reservation) -> Self {
        Self { value, _memory: memory }
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Values by key that a budget keeps as long as there is room, and that are found as long as they exist.
/// The values hold the reservations for what they take.
pub(crate) struct Kept<K, T> {
    budget: Budget,
    known: Mutex<Known<K, T>>,
}

struct Known<K, T> {
    values: HashMap<K, Place<T>>,
    /// With so many entries, those are removed whose values do not exist any more.
    sweep_at: usize,
}

impl<K: Eq + Hash, T> Known<K, T> {
    /// Forgets the keys of what does not exist any more, when there may be many.
    fn sweep(&mut self) {
        if self.values.len() >= self.sweep_at {
            self.values.retain(|_, place| place.value.strong_count() > 0);
            self.sweep_at = (self.values.len() * 2).max(SWEEP_FROM);
        }
    }
}

struct Place<T> {
    number: u64,
    value: Weak<T>,
}

impl<K: Eq + Hash, T: Send + Sync + 'static> Kept<K, T> {
    /// Keeps nothing yet.
    pub(crate) fn new(budget: &Budget) -> Self {
        let known = Known { values: HashMap::new(), sweep_at: SWEEP_FROM };
        Self { budget: budget.clone(), known: Mutex::new(known) }
    }

    /// The value of `key`, if it still exists. That is a use of it.
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<Arc<T>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let (value, number) = {
            let known = locked(&self.known);
            let place = known.values.get(key)?;
            (place.value.upgrade()?, place.number)
        };
        let mut kept = locked(&self.budget.inner.kept);
        if !kept.promote(&number) {
            kept.put(number, value.clone());
        }
        Some(value)
    }

    /// Keeps `value` in place of what `key` had.
    pub(crate) fn insert(&self, key: K, value: &Arc<T>) {
        let number = self.budget.next_place();
        let place = Place { number, value: Arc::downgrade(value) };
        let before = {
            let mut known = locked(&self.known);
            known.sweep();
            known.values.insert(key, place)
        };
        if let Some(before) = before {
            self.budget.drop_kept(before.number);
        }
        self.budget.keep(number, value.clone());
    }

    /// Whether the value of `key` still exists. That is no use of it.
    pub(crate) fn contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let known = locked(&self.known);
        known.values.get(key).is_some_and(|place| place.value.strong_count() > 0)
    }

    /// The value of `key`, or one that is made now and found as long as somebody uses it. It is not kept
    /// for its own sake.
    pub(crate) fn share(&self, key: K, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        let mut known = locked(&self.known);
        if let Some(value) = known.values.get(&key).and_then(|place| place.value.upgrade()) {
            return value;
        }
        known.sweep();
        let value = make();
        let place = Place { number: self.budget.next_place(), value: Arc::downgrade(&value) };
        known.values.insert(key, place);
        value
    }

    /// Keeps the value of `key` no longer, if it is `value` and not another one by now. Whether it was.
    pub(crate) fn remove_if<Q>(&self, key: &Q, is_it: impl FnOnce(&T) -> bool) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let (value, number) = {
            let mut known = locked(&self.known);
            let Some(place) = known.values.get(key) else { return false };
            let value = place.value.upgrade();
            if !value.as_deref().is_some_and(is_it) {
                return false;
            }
            let number = place.number;
            known.values.remove(key);
            (value, number)
        };
        drop(value);
        self.budget.drop_kept(number);
        true
    }

    /// Keeps none of them any longer. What is in use elsewhere is still found.
    pub(crate) fn let_go(&self) {
        let numbers: Vec<u64> =
            locked(&self.known).values.values().map(|place| place.number).collect();
        for number in numbers {
            self.budget.drop_kept(number);
        }
    }
}

impl<K, T> Drop for Kept<K, T> {
    fn drop(&mut self) {
        for place in locked(&self.known).values.values() {
            self.budget.drop_kept(place.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    fn value(budget: &Budget, bytes: u64) -> Arc<Counted<u64>> {
        Arc::new(Counted::new(bytes, budget.reserve(bytes).unwrap()))
    }

    fn used(budget: &Budget) -> u64 {
        budget.stats().used_bytes
    }

    #[test]
    fn what_is_dropped_is_given_back() {
        let budget = Budget::new(100);
        let mut first = budget.reserve(60).unwrap();
        let full = OutOfMemory::Full { wanted: 41, held: 0, used: 60, limit: 100 };
        assert_eq!(budget.reserve(41).unwrap_err(), full);
        assert!(full.is_transient());
        first.resize(10).unwrap();
        let second = budget.reserve(90).unwrap();
        assert_eq!((used(&budget), second.bytes), (100, 90));
        first.resize(11).unwrap_err();
        drop(second);
        first.resize(100).unwrap();
        drop(first);
        assert_eq!(used(&budget), 0);
        assert_eq!(budget.stats().peak_bytes, 100);
    }

    #[test]
    fn what_is_larger_than_everything_says_so_and_drops_nothing() {
        let budget = Budget::new(100);
        let kept = Kept::new(&budget);
        kept.insert("a", &value(&budget, 50));
        let error = budget.reserve(101).unwrap_err();
        assert!(!error.is_transient());
        assert!(error.to_string().contains("--memory"), "{error}");
        assert!(kept.get("a").is_some());
    }

    #[test]
    fn what_was_used_least_recently_goes_first() {
        let budget = Budget::new(100);
        let kept = Kept::new(&budget);
        for key in ["a", "b", "c"] {
            kept.insert(key, &value(&budget, 30));
        }
        assert!(kept.get("a").is_some());
        let _more = budget.reserve(30).unwrap();
        assert!(kept.get("b").is_none() && kept.get("a").is_some() && kept.get("c").is_some());
        assert_eq!(used(&budget), 90);
    }

    #[test]
    fn what_is_in_use_stays_counted_and_is_found_and_kept_again() {
        let budget = Budget::new(100);
        let kept = Kept::new(&budget);
        let open = value(&budget, 60);
        kept.insert("a", &open);
        assert!(matches!(budget.reserve(50), Err(OutOfMemory::Full { used: 60, .. })));
        assert!(Arc::ptr_eq(&kept.get("a").unwrap(), &open));
        drop(open);
        // It was used last, so it is kept.
        assert_eq!(used(&budget), 60);
        let _more = budget.reserve(50).unwrap();
        assert!(kept.get("a").is_none());
    }

    #[test]
    fn a_value_is_removed_only_if_it_is_the_one_that_is_meant() {
        let budget = Budget::unlimited();
        let kept = Kept::new(&budget);
        let (old, new) = (value(&budget, 1), value(&budget, 2));
        kept.insert("a", &old);
        kept.insert("a", &new);
        assert!(!kept.remove_if("a", |kept| **kept == 1));
        assert!(Arc::ptr_eq(&kept.get("a").unwrap(), &new));
        assert!(kept.remove_if("a", |kept| **kept == 2));
        assert!(kept.get("a").is_none());
        drop((old, new));
        assert_eq!(used(&budget), 0);
    }

    #[test]
    fn keys_of_what_has_gone_do_not_stay() {
        let budget = Budget::new(10);
        let kept = Kept::new(&budget);
        for key in 0..10_000 {
            drop(kept.share(key, || value(&budget, 1)));
            kept.insert(key, &value(&budget, 1));
        }
        assert!(locked(&kept.known).values.len() <= 2 * SWEEP_FROM);
        drop(kept);
        assert_eq!(used(&budget), 0);
    }

    #[test]
    fn values_that_own_kept_values_go_with_them() {
        struct Owner {
            own: Kept<u8, Counted<u64>>,
        }
        let budget = Budget::new(100);
        let kept = Kept::new(&budget);
        let owner = Arc::new(Owner { own: Kept::new(&budget) });
        kept.insert("owner", &owner);
        owner.own.insert(1, &value(&budget, 40));
        drop(owner);
        let all = budget.reserve(100).unwrap();
        assert!(kept.get("owner").is_none());
        drop(all);
        assert_eq!(used(&budget), 0);
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_for_others_to_end() {
        let budget = Budget::new(100);
        let first = budget.reserve(80).unwrap();
        let patience = Duration::from_secs(3600);
        let mut attempts = 0;
        let mut first = Some(first);
        let second = budget.retry(patience, OutOfMemory::is_transient, || {
            attempts += 1;
            let reserved = budget.reserve(30);
            first = None;
            ready(reserved)
        });
        assert_eq!(second.await.unwrap().bytes, 30);
        assert_eq!(attempts, 2);
        let too_large =
            budget.retry(patience, OutOfMemory::is_transient, || ready(budget.reserve(101)));
        assert!(!too_large.await.unwrap_err().is_transient());
    }

    #[test]
    fn what_wants_more_than_half_does_not_wait() {
        let budget = Budget::new(100);
        let _others = budget.reserve(40).unwrap();
        let mut greedy = budget.reserve(20).unwrap();
        assert!(!greedy.resize(61).unwrap_err().is_transient());
        assert_eq!(greedy.bytes, 20);
        let _more = budget.reserve(15).unwrap();
        assert!(greedy.resize(50).unwrap_err().is_transient());
    }

    #[tokio::test]
    async fn but_not_for_ever() {
        let budget = Budget::new(100);
        let _first = budget.reserve(80).unwrap();
        let second =
            budget.retry(Duration::ZERO, OutOfMemory::is_transient, || ready(budget.reserve(30)));
        assert!(second.await.unwrap_err().is_transient());
    }
}
