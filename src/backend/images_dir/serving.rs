//! What a server needs of a tree besides [`Names`](crate::backend::Names) and
//! [`Sink`](crate::backend::Sink): what is in a repository, file by file, so that what has been read once need not
//! be read again; the lock that is held for one write and not for life; and what is promised to those who push.
//!
//! ```text
//! blobs/.imgfs/serve/
//!   adopted/<SHA-256 of the repository's name>/<digest>   the repository's name: the blob was brought into it,
//!                                                         and it need not name the blob yet; the file's time of
//!                                                         modification says until when that holds
//!   lacking/<the same>/<digest>                           the repository's name: a manifest there names the blob,
//!                                                         which was never brought into it
//!   uploads/                                              blobs on their way ([`super::uploads`])
//! ```

use std::{
    collections::BTreeMap,
    fs::{File, Metadata, TryLockError},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::fs::{Stat, Timespec, Timestamps, UTIME_OMIT, futimens};

use super::{
    ImagesDir, Inner, LOCKS, SIDE,
    layout::{self, LAYOUT_MAP, LayoutMap, MANIFESTS},
    manifests::{broken_map, read_manifest},
    written::Filling,
};
use crate::{
    backend::{Error, FileType, Kind, ManifestName, Result},
    image::{Algorithm, Descriptor, Digest, Manifest, Repository},
};

/// The directory of a server's own state, below that of imgfs.
pub(super) const SERVE: &str = "serve";
const ADOPTED: &str = "adopted";
const LACKING: &str = "lacking";

/// The longest name of a repository in a note, in bytes.
const MAX_NAME: u64 = 4096;

/// How often is looked whether the lock of the tree is free.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What tells a file from another one, and from itself after a change: the kernel changes the ctime with every
/// change of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl FileStamp {
    /// Of a file that looks like this.
    pub fn of(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    fn of_stat(stat: &Stat) -> Self {
        let nanoseconds = |value| i64::try_from(value).unwrap_or_default();
        Self {
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            mtime: (stat.st_mtime, nanoseconds(stat.st_mtime_nsec)),
            ctime: (stat.st_ctime, nanoseconds(stat.st_ctime_nsec)),
        }
    }

    /// Whether it was changed so shortly before `now` that another change might leave the same stamp: the clock of
    /// a file system ticks every few milliseconds.
    pub fn is_recent(&self, now: SystemTime) -> bool {
        const TICKS: Duration = Duration::from_millis(50);
        let seconds = u64::try_from(self.ctime.0).unwrap_or_default();
        let nanoseconds = u32::try_from(self.ctime.1).unwrap_or_default();
        let changed = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        now.duration_since(changed).map_or(true, |age| age < TICKS)
    }
}

/// A file with a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it looked like.
    pub stamp: FileStamp,
    /// The algorithm of the digest that names it.
    pub algorithm: Algorithm,
}

/// What is in a repository.
#[derive(Clone, Debug, Default)]
pub struct RepositoryFiles {
    /// The file that each tag leads to.
    pub tags: BTreeMap<String, ManifestFile>,
    /// The file of each manifest that is named by its digest.
    pub digests: BTreeMap<Digest, ManifestFile>,
}

impl ImagesDir {
    /// What the directories of `repository` look like: as long as this stays the same, no manifest comes or goes.
    /// Nothing of it is there if it is empty.
    pub fn repository_stamp(&self, repository: &Repository) -> Vec<FileStamp> {
        let dirs = self.inner.manifests_dirs(repository);
        let metas = dirs.iter().filter_map(|dir| self.inner.root.stat(dir).ok());
        metas.filter(Metadata::is_dir).map(|meta| FileStamp::of(&meta)).collect()
    }

    /// The files of `repository`. Nothing is read of them.
    pub async fn repository_files(&self, repository: &Repository) -> Result<RepositoryFiles> {
        let repository = repository.clone();
        self.blocking(move |inner| inner.repository_files(&repository)).await
    }

    /// What the file at `path` looks like now; `None` if it is not there.
    pub fn stamp(&self, path: &Path) -> Option<FileStamp> {
        let meta = self.inner.root.stat(path).ok()?;
        meta.is_file().then(|| FileStamp::of(&meta))
    }

    /// Reads the manifest in `file`.
    pub async fn read_manifest(&self, file: &ManifestFile) -> Result<Manifest> {
        let file = file.clone();
        self.blocking(move |inner| read_manifest(&inner.root, &file.path, file.algorithm)).await
    }

    /// Reads the manifests in `files`, one after the other, and what `map` makes of each.
    pub async fn map_manifests<T: Send + 'static>(
        &self,
        files: Vec<ManifestFile>,
        map: impl Fn(&ManifestFile, Result<Manifest>) -> T + Send + 'static,
    ) -> Result<Vec<T>> {
        self.blocking(move |inner| {
            let read = |file: &ManifestFile| read_manifest(&inner.root, &file.path, file.algorithm);
            Ok(files.iter().map(|file| map(file, read(file))).collect())
        })
        .await
    }

    /// The repositories that have manifests, in no order.
    pub async fn repositories(&self) -> Result<Vec<Repository>> {
        self.blocking(|inner| {
            let walk = layout::walk(&inner.root, inner.layout);
            let walk = walk.map_err(|e| Error::io(inner.root.path(), "reading", e))?;
            Ok(walk.repositories.into_iter().map(|found| found.repository).collect())
        })
        .await
    }

    /// The file in the place of the blob `digest`, what it looks like, and whether it has been verified as it is.
    pub fn blob_file(&self, digest: &Digest) -> Option<(File, Metadata, bool)> {
        let (file, meta) = self.inner.root.open_file(&self.inner.blob_path(digest)).ok()?;
        let verified = self.inner.records.is_verified(digest, &meta);
        Some((file, meta, verified))
    }

    /// The size in bytes of the file in the place of the blob `digest`; `None` if there is none.
    pub fn blob_bytes(&self, digest: &Digest) -> Option<u64> {
        let meta = self.inner.root.stat(&self.inner.blob_path(digest)).ok()?;
        meta.is_file().then_some(meta.len())
    }

    /// Keeps `prune` away from what is about to be written. Waits while it is at work, for at most `patience`; then
    /// it is [`Kind::InUse`].
    pub async fn filling(&self, patience: Duration) -> Result<Filling> {
        let locks = self.inner.state_dir().join(LOCKS);
        let failed = |e| Error::io(&locks, "locking", e);
        let deadline = Instant::now() + patience;
        let lock = self.inner.root.open_or_create(&locks.join("tree")).map_err(failed)?;
        loop {
            match lock.try_lock_shared() {
                Ok(()) => return Ok(Filling(lock)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(TryLockError::WouldBlock) => {
                    let reason = "`imgfs prune` is at work here".to_owned();
                    return Err(Error::new(SIDE, "waiting for the tree", Kind::InUse(reason)));
                }
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
    }

    /// Notes that `blob` belongs to `repository` for at least `lifetime`, though no manifest there names it yet.
    pub async fn adopt(
        &self,
        repository: &Repository,
        blob: Digest,
        lifetime: Duration,
    ) -> Result<()> {
        let repository = repository.clone();
        self.blocking(move |inner| {
            let path = inner.adopted_path(&repository, &blob);
            let noted = inner.note_adopted(&path, &repository, lifetime);
            noted.map_err(|e| Error::io(&path, "writing", e))?;
            inner.forget_lacking(&repository, std::iter::once(&blob))
        })
        .await
    }

    /// Notes that `repository` has not got `blobs`, though a manifest there is going to name them: it is taken without
    /// them, and must not give out what others have brought. It holds until somebody brings the blob into the
    /// repository.
    pub async fn note_lacking(&self, repository: &Repository, blobs: Vec<Digest>) -> Result<()> {
        let repository = repository.clone();
        self.blocking(move |inner| {
            for blob in blobs {
                let path = inner.lacking_path(&repository, &blob);
                let noted = inner.note_name(&path, &repository);
                noted.map_err(|e| Error::io(&path, "writing", e))?;
                // Somebody may have brought it just now, before there was a note to take away.
                let adopted = inner.root.stat(&inner.adopted_path(&repository, &blob));
                if adopted.is_ok_and(|meta| holds(&meta)) {
                    inner.forget_lacking(&repository, std::iter::once(&blob))?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Whether `repository` has not got `blob`, whatever manifests there name ([`ImagesDir::note_lacking`]).
    pub fn lacks(&self, repository: &Repository, blob: &Digest) -> bool {
        self.inner.root.is_file(&self.inner.lacking_path(repository, blob))
    }

    /// As [`Sink::put`](crate::backend::Sink::put), but blobs that the repository lacks it lacks still: whoever pushes
    /// a manifest need not have brought them.
    pub async fn put_pushed(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> Result<()> {
        let (repository, manifest, name) = (repository.clone(), manifest.clone(), name.clone());
        self.blocking(move |inner| inner.put(&repository, &manifest, &name)).await
    }

    /// Takes back what [`ImagesDir::adopt`] noted.
    pub fn release(&self, repository: &Repository, blob: &Digest) -> Result<()> {
        let path = self.inner.adopted_path(repository, blob);
        self.inner.root.remove_if_there(&path).map_err(|e| Error::io(&path, "removing", e))
    }

    /// Whether `blob` has been adopted by `repository`, and that still holds.
    pub fn is_adopted(&self, repository: &Repository, blob: &Digest) -> bool {
        let meta = self.inner.root.stat(&self.inner.adopted_path(repository, blob));
        meta.is_ok_and(|meta| holds(&meta))
    }

    /// The repositories that have adopted `blob`, as far as that still holds.
    pub async fn owners(&self, blob: Digest) -> Result<Vec<Repository>> {
        self.blocking(move |inner| {
            let name = inner.layout.digest_name(&blob);
            let notes = inner.list(&inner.adopted_dir()).into_iter().map(|dir| dir.join(&name));
            let counts = |path: &PathBuf| inner.root.stat(path).is_ok_and(|meta| holds(&meta));
            // What is no name is of an older version, and not known.
            let owner = |path: PathBuf| {
                let text = inner.root.read(&path, MAX_NAME).ok()?;
                let (registry, path) = std::str::from_utf8(&text).ok()?.split_once('/')?;
                Repository::new(registry, path).ok()
            };
            Ok(notes.filter(counts).filter_map(owner).collect())
        })
        .await
    }

    /// Whether anything has been adopted by `repository`.
    pub fn has_adopted(&self, repository: &Repository) -> bool {
        let dir = self.inner.adopted_dir().join(repository.hashed_name());
        let entries = self.inner.root.open_dir(&dir).and_then(|dir| dir.entries());
        entries.is_ok_and(|entries| !entries.is_empty())
    }

    /// Removes `tags` of `repository`.
    pub async fn remove_tags(&self, repository: &Repository, tags: &[String]) -> Result<()> {
        let (repository, tags) = (repository.clone(), tags.to_vec());
        self.blocking(move |inner| {
            let doing = format!("removing tags of {repository}");
            let failed = |e| Error::new(SIDE, &doing, Kind::Io(e));
            let _lock = inner.lock_repository(&repository).map_err(failed)?;
            for dir in inner.manifests_dirs(&repository) {
                for tag in &tags {
                    inner.remove_tag(&dir, &repository, tag)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes the manifest `digest` of `repository`, and the `tags` that lead to it.
    pub async fn remove_manifest(
        &self,
        repository: &Repository,
        digest: Digest,
        tags: &[String],
    ) -> Result<()> {
        let (repository, tags) = (repository.clone(), tags.to_vec());
        self.blocking(move |inner| {
            let doing = format!("removing {}", repository.pinned(digest));
            let failed = |e| Error::new(SIDE, &doing, Kind::Io(e));
            let _lock = inner.lock_repository(&repository).map_err(failed)?;
            let dirs = inner.manifests_dirs(&repository);
            for tag in &tags {
                for dir in &dirs {
                    inner.remove_tag(dir, &repository, tag)?;
                }
            }
            let pin = repository.pinned(digest);
            inner.records.unpin(&pin).map_err(|e| inner.records_error(e))?;
            for dir in &dirs {
                let path = dir.join(inner.layout.digest_name(&digest));
                if inner.root.is_file(&path) {
                    inner.root.remove_if_there(&path).map_err(failed)?;
                    inner.root.sync_dir(dir).map_err(failed)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Nobody asks for the manifest `digest` of `repository` by its digest alone any more, since something else
    /// names it.
    pub async fn unpin(&self, repository: &Repository, digest: Digest) -> Result<()> {
        let pin = repository.pinned(digest);
        self.blocking(move |inner| inner.records.unpin(&pin).map_err(|e| inner.records_error(e)))
            .await
    }

    /// Makes the blob `blob`, which the cache in `cache_dir` of a mount or a server has whole, one of the tree. Whether
    /// it is there then.
    pub async fn take_from_cache(&self, blob: &Descriptor, cache_dir: &Path) -> Result<bool> {
        let (blob, cache_dir) = (blob.clone(), cache_dir.to_owned());
        self.blocking(move |inner| super::receive::take_whole(inner, &blob, &cache_dir)).await
    }
}

impl Inner {
    /// Where manifests of `repository` may be, in the order in which they count.
    fn manifests_dirs(&self, repository: &Repository) -> Vec<PathBuf> {
        let candidates = self.layout.candidates(self.root.path(), repository);
        candidates.into_iter().map(|dir| dir.join(MANIFESTS)).collect()
    }

    fn repository_files(&self, repository: &Repository) -> Result<RepositoryFiles> {
        let mut found = RepositoryFiles::default();
        for dir in self.manifests_dirs(repository) {
            let failed = |e| Error::io(&dir, "reading", e);
            let listed = match self.root.open_dir(&dir) {
                Ok(listed) => listed,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            let map = match layout::read_layout_map(&self.root, &dir).map_err(failed)? {
                Some(LayoutMap::Broken) => return Err(broken_map(&dir)),
                Some(LayoutMap::Map(map)) => Some(map),
                None => None,
            };
            for entry in listed.entries().map_err(failed)? {
                let is_file = entry.kind == FileType::RegularFile;
                let Some(name) = entry.name.to_str().filter(|_| is_file) else { continue };
                // What has gone meanwhile is not there.
                let Ok(stat) = listed.stat(&entry.name) else { continue };
                let (path, stamp) = (dir.join(name), FileStamp::of_stat(&stat));
                if let Some(digest) = self.layout.parse_digest(name) {
                    let algorithm = digest.algorithm();
                    let file = ManifestFile { path, stamp, algorithm };
                    found.digests.entry(digest).or_insert(file);
                } else if let Some(tag) = self.layout.parse_tag(name)
                    && !(map.is_some() && name == LAYOUT_MAP)
                    && !map.as_ref().is_some_and(|map| map.contains_key(&*tag))
                {
                    let file = ManifestFile { path, stamp, algorithm: Algorithm::Sha256 };
                    found.tags.entry(tag.into_owned()).or_insert(file);
                }
            }
            for (tag, digest) in map.into_iter().flatten() {
                if let Some(file) = found.digests.get(&digest) {
                    found.tags.entry(tag).or_insert_with(|| file.clone());
                }
            }
        }
        Ok(found)
    }

    fn adopted_dir(&self) -> PathBuf {
        self.state_dir().join(SERVE).join(ADOPTED)
    }

    fn adopted_path(&self, repository: &Repository, blob: &Digest) -> PathBuf {
        self.adopted_dir().join(repository.hashed_name()).join(self.layout.digest_name(blob))
    }

    fn lacking_dir(&self) -> PathBuf {
        self.state_dir().join(SERVE).join(LACKING)
    }

    fn lacking_path(&self, repository: &Repository, blob: &Digest) -> PathBuf {
        self.lacking_dir().join(repository.hashed_name()).join(self.layout.digest_name(blob))
    }

    /// The first of `blobs` that `repository` is noted to lack.
    pub(super) fn first_lacking<'a>(
        &self,
        repository: &Repository,
        mut blobs: impl Iterator<Item = &'a Digest>,
    ) -> Option<&'a Digest> {
        if !self.root.is_dir(&self.lacking_dir().join(repository.hashed_name())) {
            return None;
        }
        blobs.find(|blob| self.root.is_file(&self.lacking_path(repository, blob)))
    }

    /// From now on `repository` has what names it.
    pub(super) fn forget_lacking<'a>(
        &self,
        repository: &Repository,
        blobs: impl Iterator<Item = &'a Digest>,
    ) -> Result<()> {
        if !self.root.is_dir(&self.lacking_dir().join(repository.hashed_name())) {
            return Ok(());
        }
        for blob in blobs {
            let path = self.lacking_path(repository, blob);
            self.root.remove_if_there(&path).map_err(|e| Error::io(&path, "removing", e))?;
        }
        Ok(())
    }

    fn note_name(&self, path: &Path, repository: &Repository) -> io::Result<File> {
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        self.root.create_dirs(dir)?;
        let file = self.root.open_or_create(path)?;
        file.write_all_at(repository.to_string().as_bytes(), 0)?;
        Ok(file)
    }

    fn note_adopted(
        &self,
        path: &Path,
        repository: &Repository,
        lifetime: Duration,
    ) -> io::Result<()> {
        let file = self.note_name(path, repository)?;
        let until = SystemTime::now() + lifetime;
        let until = until.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(until.as_secs()).unwrap_or(i64::MAX);
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
        };
        Ok(futimens(&file, &times)?)
    }

    /// What is in the directory `dir`, if there is one.
    fn list(&self, dir: &Path) -> Vec<PathBuf> {
        let entries = self.root.open_dir(dir).and_then(|dir| dir.entries());
        let entries = entries.unwrap_or_default().into_iter();
        entries.map(|entry| dir.join(entry.name)).collect()
    }

    /// The blobs that some repository has adopted, and the notes of those that do not count any more.
    pub(super) fn adopted_blobs(&self) -> (Vec<Digest>, Vec<PathBuf>) {
        let (mut adopted, mut old) = (Vec::new(), Vec::new());
        for path in self.list(&self.adopted_dir()).iter().flat_map(|dir| self.list(dir)) {
            let name = path.file_name().and_then(|name| name.to_str());
            let digest = name.and_then(|name| self.layout.parse_digest(name));
            match (digest, self.root.stat(&path)) {
                (Some(digest), Ok(meta)) if holds(&meta) => adopted.push(digest),
                (_, Ok(meta)) if meta.is_file() => old.push(path),
                _ => {}
            }
        }
        (adopted, old)
    }

    /// The notes that a repository lacks a blob which is not `needed` by any manifest here.
    pub(super) fn idle_lacks(&self, needed: impl Fn(&Digest) -> bool) -> Vec<PathBuf> {
        let notes = self.list(&self.lacking_dir()).into_iter().flat_map(|dir| self.list(&dir));
        let is_needed = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.and_then(|name| self.layout.parse_digest(name))
                .is_some_and(|digest| needed(&digest))
        };
        notes.filter(|path| !is_needed(path)).collect()
    }
}

/// Whether a note of an adoption still counts.
fn holds(meta: &Metadata) -> bool {
    meta.is_file() && meta.modified().is_ok_and(|until| until > SystemTime::now())
}
