//! Sources that lie, break and fail, and disks that are full.

use std::{
    fmt::Debug,
    fs,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use tracing::{Dispatch, Event, Level, field::Field};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::{super::Cache, fake::*};
use crate::backend::{Kind, images_dir::cached};

fn files(dir: &std::path::Path) -> usize {
    ["part", "whole"].iter().map(|d| fs::read_dir(dir.join("cache").join(d)).unwrap().count()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_blob_is_never_given_to_the_end() {
    for (size, lie_at) in [(10, 3), (BLOCK, 0), (3 * MIB, 5), (3 * MIB, 3 * MIB - 1)] {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 64 * MIB);
        let fake = Fake::new(size, 3);
        fake.faults(|f| f.lie_at = Some(lie_at));
        let blob = fake.open_in(&cache);
        let error = blob.read(size - 1, 1).await.unwrap_err();
        assert!(
            matches!(error.kind(), Kind::Digest { expected, .. } if *expected == fake.blob().digest),
            "{error}"
        );
        let held = || cache.stats().held_bytes;
        until("it is dropped", || files(dir.path()) == 0 && held() == 0).await;
        assert!(blob.try_read(0, 1).is_none());
        // It starts afresh.
        fake.faults(|f| f.lie_at = None);
        read_all(&fake, &blob, 100_000).await.unwrap();
        assert_eq!(fake.sent(), 2 * size);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_wait_hear_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::new(3 * MIB, 3);
    fake.faults(|f| f.lie_at = Some(7));
    fake.stall();
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let blob = fake.open_in(&cache);
            tokio::spawn(async move { blob.read(3 * MIB - 9, 9).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    fake.go_on();
    for read in reads {
        assert!(matches!(read.await.unwrap().unwrap_err().kind(), Kind::Digest { .. }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_hashed_and_evicted_has_to_come_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 8 * MIB);
    let fake = Fake::new(32 * MIB, 4);
    let blob = fake.open_in(&cache);
    read_all(&fake, &blob, 128 << 10).await.unwrap();
    assert!(cache.stats().evicted_bytes > 20 * MIB);
    fake.faults(|f| f.lie_at = Some(5000));
    let error = blob.read(5000, 10).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Digest { .. }), "{error}");
    fake.faults(|f| f.lie_at = None);
    assert_eq!(blob.read(5000, 10).await.unwrap(), fake.part(5000, 10));
    // And it is still known that all of it was right.
    let sent = fake.sent();
    blob.read(32 * MIB - 1, 1).await.unwrap();
    assert!(fake.sent() - sent <= MIB, "{} more", fake.sent() - sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_that_of_those_who_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::new(16 * MIB, 5);
    let blob = fake.open_in(&cache);
    blob.read(0, 10).await.unwrap();
    fake.faults(|f| f.fail = 1);
    assert!(blob.read(8 * MIB, 10).await.is_err());
    assert_eq!(blob.read(0, 10).await.unwrap(), fake.part(0, 10));
    assert_eq!(blob.read(8 * MIB, 10).await.unwrap(), fake.part(8 * MIB, 10));
    // One who wants the last block waits for all of them.
    fake.faults(|f| f.break_after = Some(MIB));
    assert!(blob.read(16 * MIB - 1, 1).await.is_err());
    fake.faults(|f| f.break_after = None);
    read_all(&fake, &blob, 300_000).await.unwrap();
    for wrong in [(Some(BLOCK / 2), 0), (None, 3)] {
        let dir = tempfile::tempdir().unwrap();
        let cache = super::fake::cache(dir.path(), 64 * MIB);
        let blob = fake.open_in(&cache);
        fake.faults(|f| (f.end_after, f.too_many) = wrong);
        if wrong.1 == 0 {
            assert!(blob.read(0, 10).await.is_err());
        } else {
            // More than was asked for is not looked at.
            blob.read(0, 10).await.unwrap();
        }
    }
}

/// The warnings that are logged.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == Level::WARN {
            let mut fields = String::new();
            event.record(&mut |field: &Field, value: &dyn Debug| {
                fields += &format!("{field}={value:?} ");
            });
            self.0.lock().unwrap().push(fields);
        }
    }
}

impl Warnings {
    /// A runtime whose threads log to this.
    fn runtime(&self) -> tokio::runtime::Runtime {
        let logged = Dispatch::new(tracing_subscriber::registry().with(self.clone()));
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .on_thread_start(move || {
                // As long as the thread.
                std::mem::forget(tracing::dispatcher::set_default(&logged));
            })
            .enable_all()
            .build()
            .unwrap()
    }
}

#[test]
fn on_a_full_disk_reads_go_on_with_one_warning() {
    let warnings = Warnings::default();
    let runtime = warnings.runtime();
    runtime.block_on(async { runtime.spawn(read_on_a_full_disk(warnings)).await.unwrap() });
}

async fn read_on_a_full_disk(warnings: Warnings) {
    let dir = tempfile::tempdir().unwrap();
    let cache = super::fake::cache(dir.path(), 64 * MIB);
    let fake = Fake::new(24 * MIB + 5, 6);
    let blob = fake.open_in(&cache);
    blob.read(0, MIB as usize).await.unwrap();
    cache.core.fails_to_write.store(true, SeqCst);
    read_all(&fake, &blob, 128 << 10).await.unwrap();
    {
        let warnings = warnings.0.lock().unwrap();
        assert!(matches!(&warnings[..], [one] if one.contains("cache: writing")), "{warnings:?}");
    }
    // The end is known to be right, and what was not kept has to be the same.
    assert!(fake.sent() < 28 * MIB, "{}", fake.sent());
    read_all(&fake, &blob, 500_000).await.unwrap();
    for i in 0..50u64 {
        let at = i * 7_919_777 % fake.size();
        assert_eq!(blob.read(at, 70_000).await.unwrap(), fake.part(at, 70_000));
    }
    fake.faults(|f| f.lie_at = Some(20 * MIB));
    assert!(blob.read(20 * MIB, 5).await.is_err());
    fake.faults(|f| f.lie_at = None);
    // Some time after there is room again, it is used.
    cache.core.fails_to_write.store(false, SeqCst);
    cache.core.lock().refused_until = None;
    read_all(&fake, &blob, 500_000).await.unwrap();
    until("it is sealed", || cache.stats().complete == 1).await;
    assert_eq!(warnings.0.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_size_of_a_digest_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let right = Fake::new(2 * MIB, 7);
    let blob = right.open_in(&cache);
    blob.read(0, 10).await.unwrap();
    let wrong = Fake::with(right.part(0, usize::MAX), 2 * MIB - 1, right.blob().digest, 10_000);
    let other = wrong.open_in(&cache);
    assert_eq!(other.read(5, 10).await.unwrap(), right.part(5, 10));
    assert!(matches!(other.read(MIB, 2 << 20).await.unwrap_err().kind(), Kind::Digest { .. }));
    read_all(&right, &blob, 100_000).await.unwrap();
    assert_eq!(right.sent(), right.size());
    until("it is sealed", || cache.stats().complete == 1).await;
    drop(other);
    let error = wrong.open_in(&cache).read(0, 1).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Size { .. }), "{error}");
    let huge = Fake::with(noise(10, 1), u64::MAX, right.blob().digest, 10);
    assert!(huge.open_in(&cache).read(0, 1).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_taken_away_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::new(2 * MIB, 8);
    let blob = fake.open_in(&cache);
    read_all(&fake, &blob, 100_000).await.unwrap();
    until("it is sealed", || cache.stats().complete == 1).await;
    fs::remove_file(cached::whole_path(&dir.path().join("cache"), &fake.blob().digest)).unwrap();
    read_all(&fake, &blob, 100_000).await.unwrap();
    assert_eq!(fake.sent(), fake.size(), "the file is still open");
    drop(blob);
    let blob = fake.open_in(&cache);
    read_all(&fake, &blob, 100_000).await.unwrap();
    assert_eq!(fake.sent(), 2 * fake.size());
}

/// Reads enough of something else that nothing is left of what was there before.
async fn evict_all(cache: &Cache) {
    let other = Fake::new(16 * MIB, 99);
    read_all(&other, &other.open_in(cache), 128 << 10).await.unwrap();
    rest(cache).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_what_was_hashed_is_what_is_vouched_for() {
    for (is_evicted, is_discarded) in [(false, false), (true, false), (false, true), (true, true)] {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 8 * MIB);
        let fake = Fake::new(4 * MIB, 3);
        let blob = cache.parts(fake.clone(), vec![repository("a")], fake.blob());
        let hashing = blob.begin_hashing();
        read_all(&fake, &blob, 100_000).await.unwrap();
        rest(&cache).await;
        // Other bytes take the place of some that were hashed.
        fake.faults(|f| f.lie_at = Some(5000));
        if is_evicted {
            evict_all(&cache).await;
        }
        if is_discarded {
            blob.discard();
        }
        if is_evicted || is_discarded {
            let read = blob.read(0, 10_000).await;
            assert_eq!(read.is_err(), !is_discarded, "what was hashed comes back the same");
        }
        let _ = blob.read(0, 10_000).await;
        blob.vouch(&hashing);
        // Whoever wants to be sure of the end does not get it while the beginning is wrong.
        let other = fake.open_in(&cache);
        let begin = other.read(0, 10_000).await.unwrap();
        if begin == fake.part(0, 10_000) {
            assert!(!is_evicted && !is_discarded);
            until("it is sealed", || cache.stats().complete == 1).await;
            continue;
        }
        let error = other.read(4 * MIB - 9, 9).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Digest { .. }), "{error}");
        assert_eq!(cache.stats().complete, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_what_was_given_and_not_hashed_has_to_come_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 8 * MIB);
    let fake = Fake::new(24 * MIB, 4);
    let blob = fake.open_in(&cache);
    let mismatches = blob.mismatches();
    // Far from what has been hashed.
    let at = 12 * MIB;
    fake.faults(|f| f.lie_at = Some(at + 5));
    assert_ne!(blob.read(at, 10).await.unwrap(), fake.part(at, 10));
    fake.faults(|f| f.lie_at = None);
    evict_all(&cache).await;
    assert!(blob.try_read(at, 10).is_none());
    let error = blob.read(at, 10).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Digest { .. }), "{error}");
    assert!(blob.mismatch_since(mismatches).is_some());
    // It starts afresh.
    read_all(&fake, &blob, 128 << 10).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_begun_to_read_hears_that_it_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 8 * MIB);
    let fake = Fake::new(4 * MIB, 5);
    let (one, other) = (fake.open_in(&cache), fake.open_in(&cache));
    let mismatches = one.mismatches();
    one.read(0, 10).await.unwrap();
    other.discard();
    assert!(one.mismatch_since(mismatches).is_some());
    assert!(one.mismatch_since(one.mismatches()).is_none());
    let files = || files(dir.path());
    until("it is gone", || files() == 0).await;
}
