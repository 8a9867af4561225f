//! Receiving a blob into `blobs/.imgfs/partial/<digest>`, and publishing it.
//!
//! The partial file holds a prefix of the blob and nothing else, so a process that is killed
//! leaves just what it has written, and the next one goes on from there. Whoever holds the file's
//! lock is receiving the blob; everybody else waits or does something else. What a prefix is worth
//! is only known in the end, when all of it has been hashed.

use std::{
    fs::{File, Metadata, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    Inner, Linking, cached, hash_file, held_on_disk, publish,
    records::Held,
    store::{self, Target, Writer},
};
use crate::{
    backend::{
        ConfinedDir, Content, Error, Flush, Kind, LocalFile, Opened, Received, Receiver, Result,
        writeback,
    },
    image::{Descriptor, Digest, Hasher},
};

/// Size of the buffer for reading what is there already.
const READ_BUFFER: usize = 256 << 10;

/// A blob on its way into an images_dir. Dropped before it is whole, it stays for later.
pub struct PartialBlob {
    inner: Arc<Inner>,
    blob: Descriptor,
    path: PathBuf,
    /// Holds the lock.
    file: File,
    /// Of what an earlier process has left.
    hasher: Hasher,
    received: u64,
    /// Some of it is from the cache of a mount.
    from_cache: bool,
    /// Of what was received, the kernel has begun to write this many bytes to the disk.
    begun: u64,
    /// The file, for that.
    to_disk: Option<Arc<File>>,
}

/// Whose turn it is to bring a blob.
enum Claim {
    /// It is there.
    Present,
    /// That of another process.
    Busy,
    /// Ours: nobody else works on it as long as this lives.
    Ours(Box<PartialBlob>),
}

/// Finds out whether `blob` is there, being received, or to be received.
pub(super) fn open(inner: &Arc<Inner>, blob: &Descriptor) -> Result<Opened> {
    let mut partial = match claim(inner, blob)? {
        Claim::Present => return Ok(Opened::Present),
        Claim::Busy => return Ok(Opened::Busy),
        Claim::Ours(partial) => partial,
    };
    if partial.take_whole(&inner.cache_dir())? {
        return Ok(Opened::Present);
    }
    partial.take_parts();
    partial.resume()?;
    partial.begun = partial.received;
    Ok(Opened::Receive(partial))
}

/// Makes `blob` one of the tree if it is there, though not verified, or if the cache in `cache_dir` has all of it.
/// Whether it is one then.
pub(super) fn take_whole(inner: &Arc<Inner>, blob: &Descriptor, cache_dir: &Path) -> Result<bool> {
    let places = [inner.blob_path(&blob.digest), cached::whole_path(cache_dir, &blob.digest)];
    if !places.iter().any(|path| has_its_size(&inner.root, path, blob)) {
        return Ok(false);
    }
    match claim(inner, blob)? {
        Claim::Present => Ok(true),
        Claim::Busy => Ok(false),
        Claim::Ours(partial) => partial.take_whole(cache_dir),
    }
}

/// Whether there is a file at `path` that is as large as `blob`.
fn has_its_size(root: &ConfinedDir, path: &Path, blob: &Descriptor) -> bool {
    root.stat(path).is_ok_and(|meta| meta.is_file() && meta.len() == blob.size)
}

fn claim(inner: &Arc<Inner>, blob: &Descriptor) -> Result<Claim> {
    if inner.is_verified(blob)? {
        return Ok(Claim::Present);
    }
    let path = inner.partial_path(&blob.digest);
    let failed = |e| Error::io(&path, "opening", e);
    let Some(file) = lock(&inner.root, &path).map_err(failed)? else { return Ok(Claim::Busy) };
    // Now nobody else works on this blob; another process may just have published it.
    if inner.check_blob(blob)? {
        inner.root.remove_file(&path).map_err(failed)?;
        return Ok(Claim::Present);
    }
    Ok(Claim::Ours(Box::new(PartialBlob {
        inner: inner.clone(),
        hasher: Hasher::new(blob.digest.algorithm()),
        blob: blob.clone(),
        path,
        file,
        received: 0,
        from_cache: false,
        begun: 0,
        to_disk: None,
    })))
}

/// Publishes the whole `file` at `path`, which has been hashed to `found`, as `blob`. If it is another one, it is
/// removed.
pub(super) fn publish_file(
    inner: &Arc<Inner>,
    blob: &Descriptor,
    path: PathBuf,
    file: File,
    found: Digest,
) -> Result<()> {
    let whole = PartialBlob {
        inner: inner.clone(),
        hasher: Hasher::new(blob.digest.algorithm()),
        blob: blob.clone(),
        path,
        file,
        received: blob.size,
        from_cache: false,
        begun: blob.size,
        to_disk: None,
    };
    whole.commit(found)
}

/// Opens and locks a partial file; `None` if another process has it.
fn lock(root: &ConfinedDir, path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = root.open_or_create(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        // Between opening and locking, its owner may have published or dropped it.
        match root.stat(path) {
            Ok(named) if named.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
}

impl PartialBlob {
    /// Takes the blob from the cache of a mount, if that has all of it: its file becomes ours, once
    /// it has been hashed. Whether it is there now.
    fn take_whole(&self, cache_dir: &Path) -> Result<bool> {
        let root = &self.inner.root;
        let path = cached::whole_path(cache_dir, &self.blob.digest);
        if !has_its_size(root, &path, &self.blob) {
            return Ok(false);
        }
        // What cannot be had from there is fetched, and what is wrong there is the mount's affair.
        let Ok(found) = hash_file(root, &path, self.blob.digest.algorithm(), &mut |_| {}) else {
            return Ok(false);
        };
        let target = self.inner.blob_path(&self.blob.digest);
        if found.digest != self.blob.digest
            || !publish::looks_sealed(&found.meta)
            || root.rename(&path, &target).is_err()
        {
            return Ok(false);
        }
        let held = held_on_disk(&found.file);
        let meta = root.stat(&target).map_err(|e| Error::io(&target, "opening", e))?;
        let content = |m: &Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec());
        if content(&meta) != content(&found.meta) {
            // Somebody has put another file in its place since it was hashed.
            root.remove_file(&target).map_err(|e| Error::io(&target, "removing", e))?;
            return Ok(false);
        }
        root.remove_file(&self.path).map_err(|e| self.error(e))?;
        self.inner.records.verified(self.blob.digest, &meta, held).map_err(|e| self.error(e))?;
        Ok(true)
    }

    /// Adds what the cache of a mount has of the bytes that come next. Nothing, if there is no
    /// reading or writing it: then it is fetched.
    fn take_parts(&mut self) {
        let dir = self.inner.cache_dir();
        let (digest, size) = (&self.blob.digest, self.blob.size);
        let Ok(have) = self.file.seek(io::SeekFrom::End(0)) else { return };
        let taken = cached::append_prefix(&self.inner.root, &dir, digest, size, &self.file, have);
        self.from_cache = taken.is_ok_and(|taken| taken > 0);
        // Read on from the start whatever has come of it.
        let _ = self.file.rewind();
    }

    /// Hashes what an earlier process has left.
    fn resume(&mut self) -> Result<()> {
        let failed = |e| Error::io(&self.path, "reading", e);
        if self.file.metadata().map_err(failed)?.len() > self.blob.size {
            self.file.set_len(0).map_err(failed)?;
        }
        let mut buffer = vec![0; READ_BUFFER];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.hasher.update(&buffer[..n]);
                    self.received += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(&self.path, "reading", e)),
            }
        }
    }

    /// Has the kernel begin to write to the disk what has been received, if nobody is going to wait for that.
    fn begin_writeback(&mut self) {
        let Some(writeback) = &self.inner.writeback else { return };
        while self.received >= self.begun + writeback::STEP {
            if self.to_disk.is_none() {
                // Opened once more: the one that we have holds the lock as long as anybody has it.
                let opened = self.inner.root.open_file(&self.path).ok();
                self.to_disk = opened.map(|(file, _)| Arc::new(file));
            }
            if let Some(file) = &self.to_disk {
                writeback.begin(file, self.begun);
            }
            self.begun += writeback::STEP;
        }
    }

    fn error(&self, kind: impl Into<Kind>) -> Error {
        Error::new("images_dir", format_args!("storing blob {}", self.blob.digest), kind)
    }

    /// Publishes the blob, if `found` is its digest and its size is right.
    fn commit(self, found: Digest) -> Result<()> {
        if self.received != self.blob.size {
            let (expected, found) = (self.blob.size, self.received);
            return Err(self.error(Kind::Size { expected, found }));
        }
        let expected = self.blob.digest;
        if found != expected {
            self.inner.root.remove_file(&self.path).map_err(|e| self.error(e))?;
            if self.from_cache {
                // Or else the next attempt would take the same.
                cached::discard_parts(&self.inner.root, &self.inner.cache_dir(), &expected);
            }
            return Err(self.error(Kind::Digest { expected, found }));
        }
        self.publish()
    }

    /// Gives the file, which is known to be the blob, its name.
    fn publish(self) -> Result<()> {
        let time = publish::Time::Immutable;
        let published = self.inner.publish_blob(&self.path, &self.file, self.blob.digest, time);
        published.map_err(|e| self.error(e))
    }

    /// Shares the blocks of `source`, or the whole file, instead of copying it. Gives the blob
    /// back where the file system can do neither.
    fn link(mut self, source: &LocalFile) -> Result<Option<Self>> {
        // What was received before is worth nothing compared to that.
        if rustix::fs::ioctl_ficlone(&self.file, source.file()).is_ok() {
            if self.file.metadata().map_err(|e| self.error(e))?.len() == self.blob.size {
                self.publish()?;
                return Ok(None);
            }
            self.file.set_len(0).map_err(|e| self.error(e))?;
            self.file.rewind().map_err(|e| self.error(e))?;
            (self.received, self.hasher) = (0, Hasher::new(self.blob.digest.algorithm()));
            return Ok(Some(self));
        }
        // With a time or mode that is not ours, it would be another file than a copy.
        if !publish::is_sealed(source.meta()) {
            return Ok(Some(self));
        }
        let temporary = self.path.with_extension("link");
        let (root, target) = (&self.inner.root, self.inner.blob_path(&self.blob.digest));
        let records = &self.inner.records;
        let in_memory = records.in_memory();
        let flush = match &in_memory {
            Held::InMemory(_) => self.inner.sync.flush(),
            // What cannot be told of memory is told of the disk.
            Held::OnDisk | Held::ThisRun => Flush::Now,
        };
        let linked = source.hard_link(root, &temporary, &target, flush);
        let Some((meta, is_on_disk)) = linked.map_err(|e| self.error(e))? else {
            return Ok(Some(self));
        };
        root.remove_file(&self.path).map_err(|e| self.error(e))?;
        let held = if is_on_disk { Held::OnDisk } else { in_memory };
        let noted = records.verified(self.blob.digest, &meta, held);
        noted.map_err(|e| self.error(e))?;
        Ok(None)
    }
}

impl Inner {
    /// Gives the file `path` in the tree's own state, which is open as `file` and known to be `blob`, the blob's
    /// name.
    pub(super) fn publish_blob(
        &self,
        path: &Path,
        file: &File,
        blob: Digest,
        time: publish::Time,
    ) -> io::Result<()> {
        let flush = self.sync.flush();
        publish::seal(file, time, flush)?;
        self.root.rename(path, &self.blob_path(&blob))?;
        let held = match flush {
            Flush::Now => Held::OnDisk,
            Flush::Later => self.records.in_memory(),
        };
        self.records.verified(blob, &file.metadata()?, held)
    }
}

impl Writer for PartialBlob {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let found = self.received + bytes.len() as u64;
        if found > self.blob.size {
            return Err(self.error(Kind::Size { expected: self.blob.size, found }));
        }
        self.file.write_all(bytes).map_err(|e| self.error(e))?;
        self.received = found;
        self.begin_writeback();
        Ok(())
    }
}

#[async_trait]
impl Receiver for PartialBlob {
    fn offset(&self) -> u64 {
        self.received
    }

    async fn receive(self: Box<Self>, content: Arc<dyn Content>) -> Result<Received> {
        let mut partial = *self;
        if partial.inner.linking == Linking::Auto
            && let Some(source) = content.file().await?
        {
            match store::blocking(move || partial.link(&source)).await? {
                None => return Ok(Received { bytes: 0, linked: true }),
                Some(same) => partial = same,
            }
        }
        let (offset, size) = (partial.received, partial.blob.size);
        let inner = partial.inner.clone();
        let target = Target { hasher: partial.hasher.clone(), writer: partial };
        let stream = content.read(offset).await?;
        let target = store::store(target, &inner.traffic, &content, stream).await?;
        store::blocking(move || target.writer.commit(target.hasher.finish())).await?;
        Ok(Received { bytes: size.saturating_sub(offset), linked: false })
    }
}
