//! What a cache is after its process has ended, and what a pull takes from it.

use std::{fs, os::unix::fs::FileExt, path::PathBuf, time::Duration};

use async_trait::async_trait;

use super::{
    super::{Cache, CacheConfig},
    fake::*,
};
use crate::backend::{
    Blobs, BoxStream, Content, Kind, LocalFile, Opened, Result, Sink,
    images_dir::{ImagesDir, Linking, cached},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_fetched_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (parts, whole) = (Fake::new(20 * MIB, 1), Fake::new(2 * MIB, 2));
    let first = cache(dir.path(), 64 * MIB);
    let (blob, other) = (parts.open_in(&first), whole.open_in(&first));
    blob.read(0, 100).await.unwrap();
    blob.read(10 * MIB, 100).await.unwrap();
    read_all(&whole, &other, 100_000).await.unwrap();
    until("it is sealed", || first.stats().complete == 1).await;
    drop((blob, other));
    let config = CacheConfig::new(dir.path().join("cache"), MIB);
    let error = Cache::open(config).err().unwrap();
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    let held = first.stats().held_bytes;
    close(first).await;
    let second = cache(dir.path(), 64 * MIB);
    let stats = second.stats();
    assert_eq!((stats.blobs, stats.complete, stats.held_bytes), (2, 1, held));
    let (blob, other) = (parts.open_in(&second), whole.open_in(&second));
    let (sent, of_whole) = (parts.sent(), whole.sent());
    assert_eq!(read_held(&parts, &blob, 10 * MIB, 100).await, parts.part(10 * MIB, 100));
    assert_eq!(read_held(&whole, &other, 2 * MIB - 5, 100).await.len(), 5);
    assert_eq!((parts.sent(), whole.sent()), (sent, of_whole));
    read_all(&parts, &blob, 100_000).await.unwrap();
    assert_eq!(parts.sent(), parts.size(), "what was here was not fetched again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_damaged_meanwhile_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(4 * MIB, 3);
    let path = |c: fn(&std::path::Path, &crate::image::Digest) -> PathBuf| {
        c(&dir.path().join("cache"), &fake.blob().digest)
    };
    let open = |path: PathBuf| fs::File::options().write(true).open(path).unwrap();
    let damages: [(&str, &dyn Fn(), u64); 6] = [
        ("a byte", &|| open(path(cached::part_path)).write_all_at(b"xx", 77).unwrap(), BLOCK),
        ("a checksum", &|| open(path(cached::map_path)).write_all_at(b"xx", 36).unwrap(), BLOCK),
        ("a header", &|| open(path(cached::map_path)).write_all_at(b"xx", 3).unwrap(), 3 * MIB),
        ("no map", &|| fs::remove_file(path(cached::map_path)).unwrap(), 3 * MIB),
        ("no data", &|| fs::remove_file(path(cached::part_path)).unwrap(), 3 * MIB),
        ("cut", &|| open(path(cached::part_path)).set_len(MIB).unwrap(), 3 * MIB),
    ];
    for (what, damage, more) in damages {
        let _ = fs::remove_dir_all(dir.path().join("cache"));
        let first = cache(dir.path(), 64 * MIB);
        let blob = fake.open_in(&first);
        blob.read(0, 3 << 20).await.unwrap();
        drop(blob);
        close(first).await;
        damage();
        let second = cache(dir.path(), 64 * MIB);
        let blob = fake.open_in(&second);
        let sent = fake.sent();
        read_all(&fake, &blob, 100_000).await.unwrap();
        let sent = fake.sent() - sent;
        assert!(sent <= more + MIB + 2 * BLOCK, "{what}: {sent} more");
        drop(blob);
        close(second).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_versions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    close(cache(dir.path(), MIB)).await;
    fs::write(dir.path().join("cache/version"), "imgfs cache 4\n").unwrap();
    let error = Cache::open(CacheConfig::new(dir.path().join("cache"), MIB)).err().unwrap();
    assert!(matches!(error.kind(), Kind::Config(_)), "{error}");
    fs::write(dir.path().join("cache/version"), "").unwrap();
    close(cache(dir.path(), MIB)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lower_limit_holds_at_once_and_what_was_read_last_stays() {
    let dir = tempfile::tempdir().unwrap();
    let fakes: Vec<_> = (0..8).map(|i| Fake::new(2 * MIB, i)).collect();
    let first = cache(dir.path(), 64 * MIB);
    for fake in &fakes {
        read_all(fake, &fake.open_in(&first), 100_000).await.unwrap();
    }
    until("all are sealed", || first.stats().complete == 8).await;
    // Used again, and so the last ones.
    for fake in &fakes[..2] {
        read_held(fake, &fake.open_in(&first), 0, 10).await;
    }
    close(first).await;
    let second = cache(dir.path(), 5 * MIB);
    assert!(disk_use(dir.path()) <= 5 * MIB);
    assert_eq!(second.stats().complete, 2);
    for fake in &fakes[..2] {
        read_held(fake, &fake.open_in(&second), 0, 10).await;
    }
}

/// Copies the cache at any moment while it is read, and goes on with the copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_leaves_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let fakes: Vec<_> = (0..3).map(|i| Fake::new(6 * MIB + i, 20 + i)).collect();
    let live = cache(dir.path(), 12 * MIB);
    let readers: Vec<_> = (0..3)
        .map(|reader| {
            let (live, fakes) = (live.clone(), fakes.clone());
            tokio::spawn(async move {
                let mut random = reader + 1;
                for round in 0u64.. {
                    random = random * 7_919 % 1_000_003 + 1;
                    let fake = &fakes[(round + random) as usize % 3];
                    let blob = fake.open_in(&live);
                    let at = random * 77_777 % fake.size();
                    assert_eq!(blob.read(at, 200_000).await.unwrap(), fake.part(at, 200_000));
                }
            })
        })
        .collect();
    for image in 0..12 {
        tokio::time::sleep(Duration::from_millis(15)).await;
        let crashed = dir.path().join(format!("crashed-{image}"));
        let (from, to) = (dir.path().join("cache"), crashed.join("cache"));
        tokio::task::spawn_blocking(move || copy_dir(&from, &to)).await.unwrap();
        let second = cache(&crashed, 12 * MIB);
        for fake in &fakes {
            let blob = fake.open_in(&second);
            let mut at = 0;
            while at < fake.size() {
                if let Some(bytes) = blob.try_read(at, 50_000) {
                    assert!(bytes.unwrap() == fake.part(at, 50_000), "image {image}, at {at}");
                }
                at += 50_000;
            }
            read_all(fake, &blob, 300_000).await.unwrap();
        }
        assert!(disk_use(&crashed) <= 12 * MIB);
        close(second).await;
        fs::remove_dir_all(crashed).unwrap();
    }
    for reader in readers {
        reader.abort();
        assert!(reader.await.unwrap_err().is_cancelled(), "a reader has failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_takes_what_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let images = ImagesDir::create(dir.path(), None, Linking::Auto).unwrap();
    let (parts, whole) = (Fake::new(20 * MIB, 1), Fake::new(2 * MIB, 2));
    let cache = Cache::open(CacheConfig::new(images.cache_dir(), 64 * MIB)).unwrap();
    let (blob, other) = (parts.open_in(&cache), whole.open_in(&cache));
    blob.read(0, 3 << 20).await.unwrap();
    read_all(&whole, &other, 100_000).await.unwrap();
    until("it is sealed", || cache.stats().complete == 1).await;
    rest(&cache).await;
    let opened = images.open(&repository("a"), whole.blob(), &[]).await.unwrap();
    assert!(matches!(opened, Opened::Present));
    assert!(images.has(&repository("a"), whole.blob()).await.unwrap());
    let path = dir.path().join("blobs").join(whole.blob().digest.to_string());
    assert_eq!(fs::read(path).unwrap(), whole.part(0, usize::MAX));
    // The mount goes on with what it has open.
    read_all(&whole, &other, 100_000).await.unwrap();
    match images.open(&repository("a"), parts.blob(), &[]).await.unwrap() {
        Opened::Receive(partial) => assert!(partial.offset() >= 3 * MIB, "{}", partial.offset()),
        _ => panic!("it is not there"),
    }
    drop(images);
    // To `verify` and `prune` it is not there.
    let images = ImagesDir::open(dir.path()).unwrap();
    let verified = images.verify(true, &|_| ()).unwrap();
    assert!(verified.problems.iter().all(|p| !p.path.contains("cache")), "{verified:?}");
    let pruned = images.prune(false).unwrap();
    assert!(pruned.removed.iter().all(|removed| !removed.path.contains("cache")), "{pruned:?}");
    read_held(&parts, &blob, 0, 10).await;
}

/// What is read from a source by a pull.
struct Pulled(std::sync::Arc<Fake>);

#[async_trait]
impl Content for Pulled {
    async fn read(&self, offset: u64) -> Result<BoxStream> {
        self.0.read(&repository("a"), self.0.blob(), offset..self.0.size()).await
    }

    async fn file(&self) -> Result<Option<LocalFile>> {
        Ok(None)
    }

    fn side(&self) -> String {
        "a source".to_owned()
    }

    fn moved(&self, _: u64) {}

    fn retransmitted(&self, _: u64) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_misled_by_a_wrong_part_once() {
    let dir = tempfile::tempdir().unwrap();
    let images = ImagesDir::create(dir.path(), None, Linking::Auto).unwrap();
    let fake = Fake::new(5 * MIB, 1);
    let cache = Cache::open(CacheConfig::new(images.cache_dir(), 64 * MIB)).unwrap();
    fake.faults(|f| f.lie_at = Some(100));
    let blob = fake.open_in(&cache);
    blob.read(0, 2 << 20).await.unwrap();
    rest(&cache).await;
    fake.faults(|f| f.lie_at = None);
    let open = || async {
        match images.open(&repository("a"), fake.blob(), &[]).await.unwrap() {
            Opened::Receive(partial) => partial,
            _ => panic!("it is not there"),
        }
    };
    let partial = open().await;
    assert!(partial.offset() >= 2 * MIB);
    let content = std::sync::Arc::new(Pulled(fake.clone()));
    let error = partial.receive(content.clone()).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Digest { .. }), "{error}");
    let partial = open().await;
    assert_eq!(partial.offset(), 0);
    partial.receive(content).await.unwrap();
    assert!(images.has(&repository("a"), fake.blob()).await.unwrap());
    // The mount finds out by itself.
    let error = blob.read(fake.size() - 1, 1).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Digest { .. }), "{error}");
    read_all(&fake, &blob, 100_000).await.unwrap();
}
