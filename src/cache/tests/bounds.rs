//! The limit, and everything at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use proptest::prelude::*;

use super::fake::*;
use crate::{
    backend::Kind,
    cache::{Cache, CacheConfig},
    util::Budget,
};

/// Watches how much of the disk is used.
fn watch(dir: &std::path::Path) -> (Arc<AtomicU64>, Arc<AtomicBool>) {
    let (most, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (dir, out, stop) = (dir.to_owned(), most.clone(), done.clone());
    std::thread::spawn(move || {
        while !stop.load(SeqCst) {
            out.fetch_max(disk_use(&dir), SeqCst);
            std::thread::sleep(Duration::from_micros(500));
        }
    });
    (most, done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_times_the_limit_is_read_within_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 8 * MIB;
    let cache = cache(dir.path(), limit);
    let (most, done) = watch(dir.path());
    let large = Fake::new(96 * MIB, 1);
    let small: Vec<_> = (0..16).map(|i| Fake::new(2 * MIB + i * 1000, i)).collect();
    let blob = large.open_in(&cache);
    read_all(&large, &blob, 128 << 10).await.unwrap();
    assert!(large.sent() <= large.size() + MIB, "{} of {}", large.sent(), large.size());
    // The end again: that it is right has not been forgotten.
    let before = large.sent();
    blob.read(96 * MIB - 10, 10).await.unwrap();
    assert!(large.sent() - before <= MIB);
    for fake in &small {
        read_all(fake, &fake.open_in(&cache), 128 << 10).await.unwrap();
    }
    for i in 0..200u64 {
        let at = i * 982_451_653 % large.size();
        assert_eq!(blob.read(at, 10_000).await.unwrap(), large.part(at, 10_000), "at {at}");
    }
    done.store(true, SeqCst);
    let most = most.load(SeqCst);
    assert!((limit / 2..=limit).contains(&most), "{most} of {limit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_readers_in_a_small_cache() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 4 * MIB;
    let cache = cache(dir.path(), limit);
    let (most, done) = watch(dir.path());
    let fakes: Vec<_> = (0..4).map(|i| Fake::new(8 * MIB + i, i)).collect();
    let tasks: Vec<_> = (0..16usize)
        .map(|reader| {
            let (cache, fake) = (cache.clone(), fakes[reader % 4].clone());
            tokio::spawn(async move {
                let blob = fake.open_in(&cache);
                if reader < 8 {
                    read_all(&fake, &blob, 100_000 + reader).await.unwrap();
                }
                for i in 0..20 {
                    let at = (i * 1_234_577 + reader as u64 * 7_777) % fake.size();
                    assert_eq!(blob.read(at, 50_000).await.unwrap(), fake.part(at, 50_000));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    done.store(true, SeqCst);
    assert!(most.load(SeqCst) <= limit, "{most:?}");
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_remembered_of_blocks_that_have_gone_has_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    // Enough to remember some 64 blocks, which are 8 MiB.
    let config = CacheConfig { memory_bytes: 8000, ..CacheConfig::new(dir.path().into(), 4 * MIB) };
    let cache = Cache::open(config).unwrap();
    let small = Fake::new(8 * MIB, 1);
    read_all(&small, &small.open_in(&cache), 128 << 10).await.unwrap();
    let large = Fake::new(64 * MIB, 2);
    let blob = large.open_in(&cache);
    let error = read_all(&large, &blob, 128 << 10).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Memory(_)), "{error}");
    assert!(error.to_string().contains("--memory"), "{error}");
    assert!(blob.mismatches() > 0, "whoever has it open must not read on");
    assert!(large.sent() <= 3 * large.size(), "it is not fetched for ever");
    let known = cache.core.lock().known_bytes;
    assert!(known <= 8000, "{known}");
    // All others go on.
    read_all(&small, &small.open_in(&cache), 128 << 10).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_budget_counts_the_cache_and_may_have_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Budget::new(12 * MIB);
    let config = |name: &str| CacheConfig::new(dir.path().join(name), MIB).within_memory(&budget);
    let cache = Cache::open(config("a")).unwrap();
    let used = budget.stats().used_bytes;
    assert!((2 * MIB..=3 * MIB).contains(&used), "{used}");
    let fake = Fake::new(3 * MIB, 1);
    read_all(&fake, &fake.open_in(&cache), 128 << 10).await.unwrap();
    let others = budget.reserve(12 * MIB - used).unwrap();
    let error = Cache::open(config("b")).err().unwrap();
    assert!(matches!(error.kind(), Kind::Memory(_)), "{error}");
    drop((others, fake));
    close(cache).await;
    assert_eq!(budget.stats().used_bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_without_room_serves_reads_all_the_same() {
    for limit in [0, 100, 200 << 10, 600 << 10] {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), limit);
        let fake = Fake::new(5 * MIB + 1, 1);
        let blob = fake.open_in(&cache);
        read_all(&fake, &blob, 100_000).await.unwrap();
        assert_eq!(blob.read(MIB, 10).await.unwrap(), fake.part(MIB, 10));
        assert!(disk_use(dir.path()) <= limit.max(16 << 10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_somebody_has_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 8 * MIB);
    let (kept, large) = (Fake::new(3 * MIB, 1), Fake::new(20 * MIB, 2));
    let blob = kept.open_in(&cache);
    read_all(&kept, &blob, 100_000).await.unwrap();
    until("it is sealed", || cache.stats().complete == 1).await;
    let file = blob.whole_file();
    assert!(file.is_some());
    read_all(&large, &large.open_in(&cache), 100_000).await.unwrap();
    read_held(&kept, &blob, 0, 10).await;
    drop(blob);
    read_all(&large, &large.open_in(&cache), 100_000).await.unwrap();
    assert_eq!(cache.stats().complete, 0);
    assert!(kept.open_in(&cache).try_read(0, 10).is_none());
}

/// What a reader does next.
#[derive(Clone, Debug)]
enum Step {
    Read { blob: usize, at: u64, length: usize },
    Scan { blob: usize, at: u64, steps: usize },
    Close { blob: usize },
    Fail { blob: usize, requests: usize },
    Break { blob: usize, after: Option<u64> },
    Reopen,
    Ranges { blob: usize, ignored: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let blob = 0..3usize;
    prop_oneof![
        8 => (blob.clone(), 0..4 * MIB, 1..400_000usize)
            .prop_map(|(blob, at, length)| Step::Read { blob, at, length }),
        3 => (blob.clone(), 0..4 * MIB, 1..12usize)
            .prop_map(|(blob, at, steps)| Step::Scan { blob, at, steps }),
        1 => blob.clone().prop_map(|blob| Step::Close { blob }),
        1 => (blob.clone(), 1..3usize).prop_map(|(blob, requests)| Step::Fail { blob, requests }),
        1 => (blob.clone(), proptest::option::of(1..2 * MIB))
            .prop_map(|(blob, after)| Step::Break { blob, after }),
        1 => Just(Step::Reopen),
        1 => (blob, any::<bool>()).prop_map(|(blob, ignored)| Step::Ranges { blob, ignored }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn reads_are_right_or_fail_where_the_source_fails(
        limit in prop_oneof![Just(3 * MIB), Just(700 << 10), Just(64 * MIB)],
        steps in proptest::collection::vec((0..3usize, step()), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(random_steps(limit, steps));
    }
}

async fn random_steps(limit: u64, steps: Vec<(usize, Step)>) {
    let dir = tempfile::tempdir().unwrap();
    let fakes: Vec<_> = [2 * MIB + 5, 4 * MIB, 3 * BLOCK / 2]
        .iter()
        .zip(0..)
        .map(|(s, i)| Fake::new(*s, i))
        .collect();
    let mut cache = cache(dir.path(), limit);
    let mut open: Vec<_> = fakes.iter().map(|fake| Some(fake.open_in(&cache))).collect();
    let mut tasks: Vec<tokio::task::JoinHandle<()>> = Vec::new();
    for (parallel, step) in steps {
        let handle = |open: &mut Vec<Option<_>>, blob: usize| {
            open[blob].get_or_insert_with(|| fakes[blob].open_in(&cache)).clone()
        };
        match step {
            Step::Read { blob, at, length } => {
                let (fake, blob) = (fakes[blob].clone(), handle(&mut open, blob));
                tasks.push(tokio::spawn(async move {
                    match blob.try_read(at, length) {
                        Some(bytes) => assert!(bytes.unwrap() == fake.part(at, length)),
                        None => match blob.read(at, length).await {
                            Ok(bytes) => assert!(bytes == fake.part(at, length)),
                            Err(error) => {
                                assert!(error.to_string().contains("scripted"), "{error}");
                            }
                        },
                    }
                }));
            }
            Step::Scan { blob, at, steps } => {
                let (fake, blob) = (fakes[blob].clone(), handle(&mut open, blob));
                tasks.push(tokio::spawn(async move {
                    let mut at = at;
                    for _ in 0..steps {
                        match blob.read(at, 150_000).await {
                            Ok(bytes) => assert!(bytes == fake.part(at, 150_000)),
                            Err(error) => {
                                assert!(error.to_string().contains("scripted"), "{error}");
                            }
                        }
                        at += 150_000;
                    }
                }));
            }
            Step::Close { blob } => open[blob] = None,
            Step::Fail { blob, requests } => fakes[blob].faults(|f| f.fail = requests),
            Step::Break { blob, after } => fakes[blob].faults(|f| f.break_after = after),
            Step::Ranges { blob, ignored } => fakes[blob].faults(|f| f.ignores_ranges = ignored),
            Step::Reopen => {
                for task in tasks.drain(..) {
                    task.await.unwrap();
                }
                open.iter_mut().for_each(|blob| *blob = None);
                close(cache).await;
                cache = super::fake::cache(dir.path(), limit);
            }
        }
        if parallel == 0 {
            for task in tasks.drain(..) {
                task.await.unwrap();
            }
        }
        assert!(disk_use(dir.path()) <= limit);
    }
    for task in tasks {
        task.await.unwrap();
    }
    for fake in &fakes {
        fake.faults(|f| (f.fail, f.break_after) = (0, None));
        read_all(fake, &fake.open_in(&cache), 90_000).await.unwrap();
    }
    drop(open);
    close(cache).await;
}
