//! A source that counts what it is asked for, and misbehaves on demand; and what tests share.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    ops::{Deref, Range},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::super::{Cache, CacheConfig, CachedBlob};
use crate::{
    backend::{Blobs, BoxStream, ByteStream, Error, Kind, Result, images_dir::cached::BLOCK_BYTES},
    image::{Descriptor, Digest, Repository},
};

pub(super) const BLOCK: u64 = BLOCK_BYTES;
pub(super) const MIB: u64 = 1 << 20;

/// Bytes of one piece of a stream: no part of a block.
const PIECE: u64 = 40_000;

/// What to do wrong.
#[derive(Default)]
pub(super) struct Faults {
    /// So many of the next requests fail.
    pub fail: usize,
    /// Repositories that do not have it.
    pub denied: HashSet<String>,
    /// Everything is sent, whatever is asked for.
    pub ignores_ranges: bool,
    /// The byte at this offset is sent wrong.
    pub lie_at: Option<u64>,
    /// Streams break after so many bytes.
    pub break_after: Option<u64>,
    /// Streams end after so many bytes as if that were all.
    pub end_after: Option<u64>,
    /// Streams have so many bytes too many.
    pub too_many: usize,
    /// Before each answer.
    pub delay: Option<Duration>,
    /// Bytes in a second that all streams share.
    pub rate: Option<f64>,
}

pub(super) struct Inner {
    /// The content is this, over and over.
    base: Bytes,
    blob: Descriptor,
    pub faults: Mutex<Faults>,
    pub log: Mutex<Vec<(String, Range<u64>)>>,
    pub sent: AtomicU64,
    open: AtomicUsize,
    pub most_open: AtomicUsize,
    /// Whether anything is sent.
    gate: watch::Sender<bool>,
    piece: u64,
    /// When the link is free.
    link: Mutex<Option<Instant>>,
}

pub(super) struct Fake(Arc<Inner>);

impl Deref for Fake {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

pub(super) fn noise(size: u64, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size as usize + 8);
    while (bytes.len() as u64) < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size as usize);
    bytes.into()
}

impl Fake {
    pub(super) fn new(size: u64, seed: u64) -> Arc<Self> {
        let content = noise(size, seed);
        let digest = Digest::sha256(&content);
        Self::with(content, size, digest, PIECE)
    }

    /// A blob of any size, of which the end is never read.
    pub(super) fn endless(size: u64) -> Arc<Self> {
        Self::with(noise(MIB + 13, size), size, Digest::sha256(&size.to_le_bytes()), PIECE)
    }

    pub(super) fn with(base: Bytes, size: u64, digest: Digest, piece: u64) -> Arc<Self> {
        let blob = Descriptor::new("", digest, size);
        Arc::new(Self(Arc::new(Inner {
            base,
            blob,
            faults: Mutex::default(),
            log: Mutex::default(),
            sent: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            gate: watch::Sender::new(true),
            piece,
            link: Mutex::default(),
        })))
    }

    pub(super) fn open_in(self: &Arc<Self>, cache: &Cache) -> CachedBlob {
        cache.blob(self.clone(), vec![repository("a")], &self.blob)
    }
}

impl Inner {
    pub(super) fn blob(&self) -> &Descriptor {
        &self.blob
    }

    pub(super) fn size(&self) -> u64 {
        self.blob.size
    }

    /// What a read is to return.
    pub(super) fn part(&self, offset: u64, length: usize) -> Bytes {
        let end = offset.saturating_add(length as u64).min(self.size());
        let mut at = offset.min(end);
        let base = self.base.len() as u64;
        let start = at % base;
        if start + (end - at) <= base {
            return self.base.slice(start as usize..(start + end - at) as usize);
        }
        let mut part = Vec::new();
        while at < end {
            let start = at % base;
            let length = (end - at).min(base - start);
            part.extend_from_slice(&self.base[start as usize..(start + length) as usize]);
            at += length;
        }
        part.into()
    }

    pub(super) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().unwrap());
    }

    pub(super) fn requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        self.log.lock().unwrap().iter().map(|(_, range)| range.clone()).collect()
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    pub(super) fn stall(&self) {
        self.gate.send_replace(false);
    }

    pub(super) fn go_on(&self) {
        self.gate.send_replace(true);
    }
}

pub(super) fn repository(name: &str) -> Repository {
    Repository::new("r.example", name).unwrap()
}

fn error(kind: Kind) -> Error {
    Error::new("fake", "fetching", kind)
}

pub(super) struct FakeStream {
    fake: Arc<Inner>,
    range: Range<u64>,
    sent: u64,
    extra: usize,
    ignores_ranges: bool,
    gate: watch::Receiver<bool>,
}

impl Drop for FakeStream {
    fn drop(&mut self) {
        self.fake.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Blobs for Fake {
    async fn read(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        assert_eq!(blob.digest, self.blob.digest);
        assert!(range.start < range.end && range.end <= self.size(), "{range:?}");
        self.log.lock().unwrap().push((repository.path().to_owned(), range.clone()));
        let (delay, refused, fails, ignores_ranges, extra) = {
            let mut faults = self.faults.lock().unwrap();
            let fails = faults.fail > 0;
            faults.fail = faults.fail.saturating_sub(1);
            let refused = faults.denied.contains(repository.path());
            (faults.delay, refused, fails, faults.ignores_ranges, faults.too_many)
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        if refused {
            return Err(error(Kind::Denied("no".into())));
        }
        if fails {
            return Err(error(Kind::Interrupted("scripted".into())));
        }
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_open.fetch_max(open, Ordering::SeqCst);
        let gate = self.gate.subscribe();
        let ignores_ranges = ignores_ranges && range != (0..self.size());
        Ok(Box::new(FakeStream {
            fake: self.0.clone(),
            range,
            sent: 0,
            extra,
            ignores_ranges,
            gate,
        }))
    }
}

#[async_trait]
impl ByteStream for FakeStream {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        // Whoever drops the sender drops the test.
        let _ = self.gate.wait_for(|open| *open).await;
        let at = self.range.start + self.sent;
        let mut length = self.fake.piece.min(self.range.end - at);
        let lie_at = {
            let faults = self.fake.faults.lock().unwrap();
            if faults.break_after.is_some_and(|after| self.sent >= after) {
                return Err(error(Kind::Interrupted("scripted break".into())));
            }
            if faults.end_after.is_some_and(|after| self.sent >= after) {
                return Ok(None);
            }
            length = length.min(faults.break_after.map_or(length, |after| after - self.sent));
            faults.lie_at
        };
        if length == 0 {
            let extra = std::mem::take(&mut self.extra);
            return Ok((extra > 0).then(|| vec![0; extra].into()));
        }
        let mut piece = self.fake.part(at, length as usize);
        if let Some(lie_at) = lie_at.filter(|lie_at| (at..at + length).contains(lie_at)) {
            let mut wrong = piece.to_vec();
            wrong[(lie_at - at) as usize] ^= 1;
            piece = wrong.into();
        }
        let rate = self.fake.faults.lock().unwrap().rate;
        if let Some(rate) = rate {
            let come = {
                let mut link = self.fake.link.lock().unwrap();
                // So much comes into the socket's buffer while nobody looks.
                let buffered = Instant::now() - Duration::from_millis(5);
                let free = link.unwrap_or(buffered).max(buffered);
                *link.insert(free + Duration::from_secs_f64(length as f64 / rate))
            };
            tokio::time::sleep_until(come.into()).await;
        }
        self.sent += length;
        self.fake.sent.fetch_add(length, Ordering::SeqCst);
        Ok(Some(piece))
    }

    fn ignores_ranges(&self) -> bool {
        self.ignores_ranges
    }
}

/// A cache of some MiB in `dir`.
pub(super) fn cache(dir: &Path, limit_bytes: u64) -> Cache {
    Cache::open(CacheConfig::new(dir.join("cache"), limit_bytes)).unwrap()
}

/// Waits until `is_so`, which it has to be soon.
pub(super) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A read of what the cache has, from memory or from the disk: nothing is fetched for it.
pub(super) async fn read_held(fake: &Fake, blob: &CachedBlob, offset: u64, length: usize) -> Bytes {
    let sent = fake.sent();
    let bytes = blob.read(offset, length).await.unwrap();
    assert_eq!(fake.sent(), sent, "{length} bytes at {offset} were not there");
    bytes
}

/// Waits until nothing is fetched or written.
pub(super) async fn rest(cache: &Cache) {
    let writes = || cache.core.lock().blobs.values().any(|blob| !blob.disk.writing.is_empty());
    until("it rests", || cache.core.fetching.load(Ordering::SeqCst) == 0 && !writes()).await;
}

/// Waits until nothing is done any more, and drops the cache for good.
pub(super) async fn close(cache: Cache) {
    until("everything ends", || Arc::strong_count(&cache.core) == 1).await;
    drop(cache);
}

/// Reads all of a blob in order, and compares.
pub(super) async fn read_all(fake: &Fake, blob: &CachedBlob, step: usize) -> Result<()> {
    let mut at = 0;
    while at < fake.size() {
        let bytes = blob.read(at, step).await?;
        assert!(!bytes.is_empty());
        assert!(bytes == fake.part(at, step), "wrong bytes at {at}");
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Bytes of the disk that the files below `dir` take. As files come and go while this looks, the
/// least of some looks is what there was at least.
pub(super) fn disk_use(dir: &Path) -> u64 {
    let look = || {
        let mut files = BTreeMap::new();
        find_files(dir, &mut files);
        files.values().sum()
    };
    (0..3).map(|_| look()).min().unwrap_or(0)
}

fn find_files(dir: &Path, files: &mut BTreeMap<u64, u64>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => find_files(&entry.path(), files),
            Ok(meta) => drop(files.insert(meta.ino(), meta.blocks() * 512)),
            Err(_) => {}
        }
    }
}

/// Copies a directory as it is at this moment, more or less: files one after the other. What is
/// only zeros becomes a hole.
pub(super) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
            continue;
        }
        // It may have gone.
        let Ok(source) = File::open(entry.path()) else { continue };
        let copy = File::create(target).unwrap();
        let meta = source.metadata().unwrap();
        copy.set_len(meta.len()).unwrap();
        let mut buffer = vec![0; 4096];
        let mut at = 0;
        while let Ok(length @ 1..) = source.read_at(&mut buffer, at) {
            if buffer[..length].iter().any(|byte| *byte != 0) {
                copy.write_all_at(&buffer[..length], at).unwrap();
            }
            at += length as u64;
        }
        let modified = source.metadata().unwrap().modified().unwrap();
        copy.set_permissions(source.metadata().unwrap().permissions()).unwrap();
        copy.set_modified(modified).unwrap();
    }
}
