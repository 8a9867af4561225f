//! Random orders of everything that happens in a cache, chosen by the scheduler of `shuttle`.
//!
//! It is the cache itself that runs here, with its files. Every task runs alone until it comes to a
//! [`super::super::tasks::point`], where the scheduler chooses the next one. If nobody can go on any
//! more, somebody waits in vain, and the scheduler reports a deadlock.
//!
//! Each test runs some schedules. `IMGFS_SCHEDULES=5000 cargo test --lib interleavings` runs more;
//! a failure prints a schedule that `shuttle::replay` takes (not all of a failure is repeated:
//! times and the order of hash maps are not the scheduler's).

use std::{
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::BytesMut;
use shuttle::{Config, Runner, future, scheduler::RandomScheduler};
use tokio::sync::mpsc;

use super::{
    super::{
        Cache, CacheConfig, CachedBlob,
        tasks::{Begin, Tasks, point},
    },
    fake::*,
};
use crate::image::Digest;

/// Five blocks or so, of which most have room.
const LIMIT: u64 = 700 << 10;

/// How many schedules each test runs.
fn schedules() -> usize {
    std::env::var("IMGFS_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(40)
}

fn explore(test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    Runner::new(RandomScheduler::new(schedules()), config).run(test);
}

/// Opens a cache whose tasks the scheduler runs.
fn open(dir: &Path) -> Cache {
    let (sender, mut begins) = mpsc::unbounded_channel::<Begin>();
    drop(future::spawn(async move {
        while let Some(begin) = begins.recv().await {
            begin();
        }
    }));
    let config = CacheConfig {
        memory_bytes: 12 * BLOCK as usize,
        ..CacheConfig::new(dir.join("cache"), LIMIT)
    };
    Cache::open_with(config, Tasks::Scheduled(sender)).unwrap()
}

/// Reads all of a blob as the mount does: it is given up when it turns out to have been wrong.
/// Whether it came to the end.
async fn read_to_the_end(fake: &Fake, blob: &CachedBlob, step: usize) -> bool {
    let mismatches = blob.mismatches();
    let mut found = BytesMut::new();
    while (found.len() as u64) < fake.size() {
        let read = blob.read(found.len() as u64, step).await;
        if blob.mismatch_since(mismatches).is_some() {
            return false;
        }
        let Ok(bytes) = read else { return false };
        found.extend_from_slice(&bytes);
    }
    assert!(found == fake.part(0, usize::MAX), "wrong bytes to the end");
    true
}

/// Hashes all of a blob, and says so if the digest is right.
async fn vouch(fake: &Arc<Fake>, cache: &Cache) {
    let blob = cache.parts(fake.clone(), vec![repository("a")], fake.blob());
    let hashing = blob.begin_hashing();
    let mut found = BytesMut::new();
    while (found.len() as u64) < fake.size() {
        let Ok(bytes) = blob.read(found.len() as u64, 200_000).await else { return };
        found.extend_from_slice(&bytes);
    }
    match Digest::sha256(&found) == fake.blob().digest {
        true => blob.vouch(&hashing),
        false => blob.discard(),
    }
}

/// Checks the bound at any moments.
fn watch(cache: &Cache, dir: &Path) {
    for _ in 0..30 {
        let used = cache.core.lock().used;
        assert!(used <= cache.core.room_bytes, "{used} bytes are counted");
        // Nothing happens while this looks.
        let used = disk_use(&dir.join("cache"));
        assert!(used <= LIMIT, "{used} bytes are used");
    }
}

/// Lets the source do something wrong for some moments.
fn meddle(fake: &Fake, change: impl FnOnce(&mut Faults), moments: usize) {
    for _ in 0..moments {
        point();
    }
    fake.faults(change);
    for _ in 0..moments {
        point();
    }
    fake.faults(|f| *f = Faults::default());
}

/// Waits until nothing of the cache is at work, and ends it.
#[allow(clippy::needless_pass_by_value)]
fn end(cache: Cache) {
    while Arc::strong_count(&cache.core) > 1 {
        shuttle::thread::yield_now();
    }
}

static LARGE: LazyLock<Arc<Fake>> = LazyLock::new(|| Fake::new(6 * BLOCK + 100, 1));
static SMALL: LazyLock<Arc<Fake>> = LazyLock::new(|| Fake::new(3 * BLOCK, 2));

#[test]
fn nobody_gets_wrong_bytes_to_the_end_or_waits_in_vain() {
    let ends = Arc::new(AtomicUsize::new(0));
    let counted = ends.clone();
    explore(move || {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let mut tasks = Vec::new();
        for (fake, step) in [(&*LARGE, 100_000), (&*LARGE, 300_000), (&*SMALL, 50_000)] {
            let (blob, ends) = (fake.open_in(&cache), counted.clone());
            tasks.push(future::spawn(async move {
                ends.fetch_add(usize::from(read_to_the_end(fake, &blob, step).await), SeqCst);
            }));
        }
        let other = cache.clone();
        tasks.push(future::spawn(async move { vouch(&LARGE, &other).await }));
        let at = 2 * BLOCK + 7;
        let liar = shuttle::thread::spawn(move || meddle(&LARGE, |f| f.lie_at = Some(at), 12));
        let breaker = shuttle::thread::spawn(|| meddle(&SMALL, |f| f.fail = 2, 8));
        let (watched, place) = (cache.clone(), dir.path().to_owned());
        let watcher = shuttle::thread::spawn(move || watch(&watched, &place));
        for task in tasks {
            future::block_on(task).unwrap();
        }
        for thread in [liar, breaker, watcher] {
            thread.join().unwrap();
        }
        // Whatever has happened, all is right from now on, also for the next process.
        for _ in 0..2 {
            let blob = SMALL.open_in(&cache);
            assert!(future::block_on(read_to_the_end(&SMALL, &blob, 70_000)));
        }
        let blob = LARGE.open_in(&cache);
        let _ = future::block_on(read_to_the_end(&LARGE, &blob, 70_000));
        drop(blob);
        end(cache);
        let cache = open(dir.path());
        for fake in [&*LARGE, &*SMALL] {
            // What an earlier process has left of what was wrong goes when the end is reached.
            let is_read = (0..2)
                .any(|_| future::block_on(read_to_the_end(fake, &fake.open_in(&cache), 70_000)));
            assert!(is_read);
        }
        watch(&cache, dir.path());
        end(cache);
    });
    // Or else this would test nothing.
    assert!(ends.load(SeqCst) > schedules() / 2, "{ends:?}");
}

/// Tests run side by side, and nobody is to meddle with these.
static HONEST_LARGE: LazyLock<Arc<Fake>> = LazyLock::new(|| Fake::new(6 * BLOCK + 100, 3));
static HONEST_SMALL: LazyLock<Arc<Fake>> = LazyLock::new(|| Fake::new(3 * BLOCK, 4));

#[test]
fn a_killed_process_leaves_nothing_wrong_at_any_moment() {
    explore(|| {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let readers = [&*HONEST_LARGE, &*HONEST_SMALL].map(|fake| {
            let blob = fake.open_in(&cache);
            future::spawn(async move {
                assert!(read_to_the_end(fake, &blob, 120_000).await);
            })
        });
        let crashed = dir.path().join("crashed");
        let (from, to) = (dir.path().join("cache"), crashed.join("cache"));
        let killer = shuttle::thread::spawn(move || {
            (0..40).for_each(|_| point());
            copy_dir(&from, &to);
        });
        killer.join().unwrap();
        let second = open(&crashed);
        for fake in [&*HONEST_SMALL, &*HONEST_LARGE] {
            let blob = fake.open_in(&second);
            assert!(future::block_on(read_to_the_end(fake, &blob, 90_000)), "not what was left");
        }
        watch(&second, &crashed);
        end(second);
        for reader in readers {
            future::block_on(reader).unwrap();
        }
        end(cache);
    });
}
