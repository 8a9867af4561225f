//! What is fetched, when, and how often.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use super::fake::*;
use crate::backend::images_dir::cached;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_small_read_in_the_middle_costs_one_request_and_256_kib() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::endless(1 << 30);
    let blob = fake.open_in(&cache);
    let at = (1 << 29) + 12_345;
    assert!(blob.try_read(at, 4096).is_none());
    assert_eq!(blob.read(at, 4096).await.unwrap(), fake.part(at, 4096));
    until("the request ends", || fake.most_open.load(SeqCst) == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((fake.requests(), fake.sent()), (1, 256 << 10));
    assert_eq!(read_held(&fake, &blob, at, 4096).await, fake.part(at, 4096));
    let stats = cache.stats();
    assert_eq!((stats.reads, stats.hits, stats.requests), (2, 1, 1));
    assert_eq!(stats.fetched_bytes, 256 << 10);
}

/// The small files of an image are opened, read and closed one after another. None of that is handed to
/// another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_open_is_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let (whole, parts) = (Fake::new(MIB, 1), Fake::new(20 * MIB, 2));
    read_all(&whole, &whole.open_in(&cache), 100_000).await.unwrap();
    parts.open_in(&cache).read(0, 100).await.unwrap();
    until("it is sealed", || cache.stats().complete == 1).await;
    rest(&cache).await;
    for fake in [whole, parts] {
        let sent = fake.sent();
        for _ in 0..3 {
            let blob = fake.open_in(&cache);
            // The system may be writing it to the disk at this moment.
            until("it is read", || blob.try_read(10, 20).is_some()).await;
        }
        assert_eq!(fake.sent(), sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequential_reading_takes_few_requests_and_fetches_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 1024 * MIB);
    let fake = Fake::new(100 * MIB + 77, 1);
    let blob = fake.open_in(&cache);
    read_all(&fake, &blob, 128 << 10).await.unwrap();
    assert_eq!(fake.sent(), fake.size());
    // 256 KiB, 1 MiB, 4 MiB, and 16 MiB each from there on.
    assert!(fake.requests() <= 10, "{:?}", fake.ranges());
    let mut next = 0;
    let mut ranges = fake.ranges();
    ranges.sort_by_key(|range| range.start);
    for range in ranges {
        assert_eq!(range.start, next, "{:?}", fake.ranges());
        next = range.end;
    }
    until("it is sealed", || cache.stats().complete == 1).await;
    let digest = fake.blob().digest;
    let whole = cached::whole_path(&dir.path().join("cache"), &digest);
    assert!(cached::is_sealed(&std::fs::metadata(&whole).unwrap()));
    assert_eq!(std::fs::read(&whole).unwrap(), fake.part(0, usize::MAX));
    let file = blob.whole_file().unwrap();
    assert_eq!(file.metadata().unwrap().len(), fake.size());
    assert_eq!(read_held(&fake, &blob, 5, 10).await, fake.part(5, 10));
    assert_eq!(blob.read(fake.size() - 5, 10).await.unwrap().len(), 5);
    assert!(blob.read(fake.size(), 10).await.unwrap().is_empty());
    assert!(blob.read(u64::MAX, usize::MAX).await.unwrap().is_empty());
    assert_eq!(fake.sent(), fake.size());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_has_at_most_two_windows_fetched_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 1024 * MIB);
    let fake = Fake::endless(1 << 30);
    let blob = fake.open_in(&cache);
    let mut at = 0;
    while at < 50 * MIB {
        at += blob.read(at, 128 << 10).await.unwrap().len() as u64;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent = fake.sent();
    assert!((50 * MIB..=50 * MIB + 32 * MIB).contains(&sent), "{sent}");
    // After a seek it is small again.
    let before = fake.requests();
    blob.read(800 * MIB, 4096).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fake.ranges().split_off(before), vec![800 * MIB..800 * MIB + (256 << 10)]);
    // And the first reader goes on where it was.
    let requests = fake.requests();
    blob.read(at, 128 << 10).await.unwrap();
    assert_eq!(fake.requests(), requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_served_while_the_rest_is_coming() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::endless(64 * MIB);
    fake.faults(|f| f.break_after = Some(BLOCK + 5));
    let blob = fake.open_in(&cache);
    // Of two blocks that were asked for, the first came.
    assert_eq!(blob.read(0, 100).await.unwrap(), fake.part(0, 100));
    until("the request ends", || cache.core.fetching.load(SeqCst) == 0).await;
    assert_eq!(blob.read(BLOCK, 100).await.unwrap(), fake.part(BLOCK, 100));
    assert_eq!(fake.requests(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_readers_of_the_same_share_the_requests() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::new(8 * MIB, 2);
    fake.stall();
    let mut tasks = Vec::new();
    for i in 0..64 {
        let (fake, blob) = (fake.clone(), fake.open_in(&cache));
        tasks.push(tokio::spawn(async move {
            let at = i % 2 * BLOCK + i;
            assert_eq!(blob.read(at, 4096).await.unwrap(), fake.part(at, 4096));
            read_all(&fake, &blob, 50_000).await.unwrap();
        }));
    }
    until("it is asked for", || fake.requests() > 0).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    // What they want, and what they will want next.
    assert!(fake.requests() <= 3, "{:?}", fake.ranges());
    fake.go_on();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(fake.sent(), fake.size(), "{:?}", fake.ranges());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_at_different_places_have_windows_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 1024 * MIB);
    let fake = Fake::endless(1 << 30);
    let blob = fake.open_in(&cache);
    for step in 0..40 {
        for reader in 0..4 {
            let at = reader * 200 * MIB + step * BLOCK;
            assert_eq!(blob.read(at, BLOCK as usize).await.unwrap(), fake.part(at, BLOCK as usize));
        }
    }
    // 256 KiB, 1, 4 and 16 MiB for each.
    assert!(fake.requests() <= 16, "{:?}", fake.ranges());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_requests_at_once_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::endless(1 << 30);
    fake.faults(|f| f.delay = Some(Duration::from_millis(5)));
    let reads = (0..50).map(|i| {
        let blob = fake.open_in(&cache);
        tokio::spawn(async move { blob.read(i * 20 * MIB, 1).await.unwrap() })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap();
    }
    assert_eq!(fake.requests(), 50);
    assert!(fake.most_open.load(SeqCst) <= 16, "{:?}", fake.most_open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_reads_any_more_is_not_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::endless(1 << 30);
    let blob = fake.open_in(&cache);
    blob.read(0, 1 << 20).await.unwrap();
    fake.stall();
    blob.read((1 << 20) - 4096, 4096).await.unwrap();
    let abandoned = tokio::spawn({
        let blob = blob.clone();
        async move { blob.read(500 * MIB, 5).await }
    });
    until("it is asked for", || fake.requests() > 1).await;
    abandoned.abort();
    drop(abandoned.await);
    drop(blob);
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_been_sent_when_its_reader_leaves_is_not_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::endless(64 * MIB);
    fake.faults(|f| f.rate = Some(4e6));
    // Two blocks are asked for, and the second is on its way when the first is here.
    let blob = fake.open_in(&cache);
    assert_eq!(blob.read(0, 100).await.unwrap(), fake.part(0, 100));
    drop(blob);
    rest(&cache).await;
    let blob = fake.open_in(&cache);
    assert_eq!(read_held(&fake, &blob, BLOCK, 100).await, fake.part(BLOCK, 100));
    assert_eq!((fake.requests(), fake.sent()), (1, 2 * BLOCK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_block_comes_when_everything_has_been_verified() {
    for size in [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * MIB + 3] {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 64 * MIB);
        let fake = Fake::new(size, size);
        let blob = fake.open_in(&cache);
        // Of a blob of which nothing has been read.
        assert_eq!(blob.read(size - 1, 10).await.unwrap(), fake.part(size - 1, 10));
        assert_eq!(fake.sent(), size);
        until("it is sealed", || cache.stats().complete == 1).await;
        assert!(blob.whole_file().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_blob_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::new(0, 0);
    assert!(fake.open_in(&cache).read(0, 10).await.unwrap().is_empty());
    let lie = Fake::with(noise(1, 1), 0, crate::image::Digest::sha256(b"x"), 1);
    assert!(lie.open_in(&cache).read(0, 10).await.is_err());
    assert_eq!(fake.requests() + lie.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_ignores_ranges_is_streamed_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 256 * MIB);
    let fake = Fake::new(30 * MIB + 1, 9);
    fake.faults(|f| f.ignores_ranges = true);
    let blob = fake.open_in(&cache);
    let at = 20 * MIB;
    let (a, b) = tokio::join!(blob.read(at, 100), blob.read(3 * MIB, 100));
    assert_eq!(a.unwrap(), fake.part(at, 100));
    assert_eq!(b.unwrap(), fake.part(3 * MIB, 100));
    read_all(&fake, &blob, 100_000).await.unwrap();
    let all = 0..fake.size();
    assert_eq!(fake.ranges().iter().filter(|range| **range == all).count(), 1);
    assert_eq!(fake.sent(), fake.size());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_that_is_streamed_waits_for_its_readers() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 16 * MIB);
    let fake = Fake::new(48 * MIB, 10);
    fake.faults(|f| f.ignores_ranges = true);
    let blob = fake.open_in(&cache);
    blob.read(0, 100).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(fake.sent() < 6 * MIB, "{}", fake.sent());
    read_all(&fake, &blob, 100_000).await.unwrap();
    // From the front once more, as it has been evicted.
    assert_eq!(blob.read(0, 100).await.unwrap(), fake.part(0, 100));
    read_all(&fake, &blob, 100_000).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_repository_is_asked_when_one_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::endless(64 * MIB);
    fake.faults(|f| f.denied.extend(["a".to_owned()]));
    let both = vec![repository("a"), repository("b")];
    let blob = cache.blob(fake.clone(), both, fake.blob());
    assert_eq!(blob.read(0, 5).await.unwrap(), fake.part(0, 5));
    let only = fake.open_in(&cache);
    assert!(only.read(30 * MIB, 5).await.is_err());
    // Whoever waits for another's request, which is refused, asks himself.
    fake.faults(|f| f.delay = Some(Duration::from_millis(50)));
    let first = tokio::spawn(async move { only.read(40 * MIB, 5).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(blob.read(40 * MIB, 5).await.unwrap(), fake.part(40 * MIB, 5));
    let _ = first.await.unwrap();
    let nowhere = cache.blob(fake.clone(), Vec::new(), fake.blob());
    assert!(nowhere.read(50 * MIB, 5).await.unwrap_err().is_not_found());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fetched_ahead_is_just_that_and_costs_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 1024 * MIB);
    let fake = Fake::endless(1 << 30);
    let blob = fake.open_in(&cache);
    // Block by block, so that a reader would be taken for one who reads on.
    for at in 0..8 {
        let range = at * BLOCK + 7..(at + 1) * BLOCK;
        blob.fetch_ahead(range.clone()).await.unwrap();
        assert!(blob.has(range));
    }
    assert_eq!((fake.requests() as u64, fake.sent()), (8, 8 * BLOCK));
    blob.fetch_ahead(100..8 * BLOCK).await.unwrap();
    assert_eq!(fake.requests(), 8);
    // Only what is missing, in one request for each gap.
    blob.fetch_ahead(20 * BLOCK..21 * BLOCK).await.unwrap();
    blob.fetch_ahead(4 * BLOCK..30 * BLOCK).await.unwrap();
    // Both are made at once, so either may come first.
    let mut gaps = fake.ranges()[9..].to_vec();
    gaps.sort_by_key(|range| range.start);
    assert_eq!(gaps, [8 * BLOCK..20 * BLOCK, 21 * BLOCK..30 * BLOCK]);
    assert!(blob.has(0..30 * BLOCK) && !blob.has(0..30 * BLOCK + 1));
    assert_eq!(blob.read(29 * BLOCK, 100).await.unwrap(), fake.part(29 * BLOCK, 100));
    assert_eq!(fake.requests(), 11);
    // What is not there is not there.
    blob.fetch_ahead(1 << 30..u64::MAX).await.unwrap();
    assert_eq!(fake.requests(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_fetched_ahead_is_told_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 64 * MIB);
    let fake = Fake::endless(16 * MIB);
    fake.faults(|f| f.break_after = Some(BLOCK));
    let blob = fake.open_in(&cache);
    assert!(blob.fetch_ahead(0..4 * BLOCK).await.is_err());
    assert_eq!(blob.read(3 * BLOCK, 10).await.unwrap(), fake.part(3 * BLOCK, 10));
}
