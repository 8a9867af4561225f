//! Blobs that come piece by piece over several requests, each into a file of its own below
//! `blobs/.imgfs/serve/uploads`, until their digest is known.
//!
//! The file holds what has come and nothing else, so it survives restarts and `kill -9`. Whoever holds its lock
//! writes to it. When the blob is whole it is published as the receiver of a pull publishes: its digest is
//! compared, it is flushed, and renamed to its place.

use std::{
    fs::{File, TryLockError},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;

use super::{
    ImagesDir, Inner, SIDE, hash_open, receive,
    serving::SERVE,
    store::{self, Target, Writer},
};
use crate::{
    backend::{BoxStream, Content, Error, Kind, LocalFile, Result},
    image::{Algorithm, Descriptor, Digest, Hasher, Repository},
};

const UPLOADS: &str = "uploads";

/// Characters of an upload's name that say which repository it is for.
const OWNER_LENGTH: usize = 32;

/// A blob on its way, which nobody else writes to. Dropped before it is published, its file stays.
pub struct Upload {
    inner: Arc<Inner>,
    path: PathBuf,
    /// Holds the lock.
    file: File,
    /// Of all that has come; `None` if that has to be read again first.
    hasher: Option<Hasher>,
    size: u64,
}

impl ImagesDir {
    /// Begins an upload to `repository`. `name` must be new, and is of letters and digits only.
    pub async fn create_upload(&self, repository: &Repository, name: &str) -> Result<Upload> {
        let path = self.inner.upload_path(repository, name);
        self.blocking(move |inner| {
            let failed = |e| Error::io(&path, "creating", e);
            inner.root.create_dirs(&inner.uploads_dir()).map_err(failed)?;
            let file = inner.root.create_new(&path).map_err(failed)?;
            // It is new, and nobody knows its name.
            file.lock().map_err(failed)?;
            let hasher = Some(Hasher::new(Algorithm::Sha256));
            Ok(Upload { inner: inner.clone(), path, file, hasher, size: 0 })
        })
        .await
    }

    /// Goes on with the upload `name` to `repository`; `None` if there is none. [`Kind::InUse`] if somebody is
    /// writing to it.
    pub async fn open_upload(&self, repository: &Repository, name: &str) -> Result<Option<Upload>> {
        let path = self.inner.upload_path(repository, name);
        self.blocking(move |inner| {
            let failed = |e| Error::io(&path, "opening", e);
            let (mut file, _) = match inner.root.open_to_write(&path) {
                Ok(opened) => opened,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(failed(e)),
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let reason = "another request is writing to this upload".to_owned();
                    return Err(Error::new(SIDE, "opening an upload", Kind::InUse(reason)));
                }
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            // It may have been published since it was opened.
            let named = inner.root.stat(&path).ok().map(|meta| meta.ino());
            if named != Some(file.metadata().map_err(failed)?.ino()) {
                return Ok(None);
            }
            let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
            Ok(Some(Upload { inner: inner.clone(), path, file, hasher: None, size }))
        })
        .await
    }

    /// The bytes that the upload `name` to `repository` has; `None` if there is none.
    pub fn upload_bytes(&self, repository: &Repository, name: &str) -> Option<u64> {
        let meta = self.inner.root.stat(&self.inner.upload_path(repository, name)).ok()?;
        meta.is_file().then_some(meta.len())
    }

    /// Removes uploads to which nothing has come for `lifetime`. Returns how many.
    pub async fn remove_old_uploads(&self, lifetime: Duration) -> Result<usize> {
        self.blocking(move |inner| {
            let dir = inner.uploads_dir();
            let entries = inner.root.open_dir(&dir).and_then(|dir| dir.entries());
            let now = SystemTime::now();
            let mut removed = 0;
            for path in entries.unwrap_or_default().into_iter().map(|entry| dir.join(entry.name)) {
                let modified = inner.root.stat(&path).and_then(|meta| meta.modified());
                let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
                let Some(_) = age.filter(|age| *age > lifetime) else { continue };
                // Not under somebody who writes to it.
                let Ok((file, _)) = inner.root.open_to_write(&path) else { continue };
                if file.try_lock().is_ok() && inner.root.remove_file(&path).is_ok() {
                    removed += 1;
                }
            }
            Ok(removed)
        })
        .await
    }
}

impl Inner {
    fn uploads_dir(&self) -> PathBuf {
        self.state_dir().join(SERVE).join(UPLOADS)
    }

    /// Where the upload `name` is. An upload to one repository is not found in another.
    fn upload_path(&self, repository: &Repository, name: &str) -> PathBuf {
        let owner = &repository.hashed_name()[..OWNER_LENGTH];
        self.uploads_dir().join(format!("{owner}-{name}"))
    }
}

impl Upload {
    /// How many bytes have come.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds all of `stream`, which are at most `limit` bytes; more are [`Kind::Size`], and none of them are kept.
    /// What came before another error stays.
    pub async fn append(mut self, stream: BoxStream, limit: Option<u64>) -> Result<Self> {
        let before = self.size;
        let known = self.hasher.is_some();
        let hasher = self.hasher.take().unwrap_or_else(|| Hasher::new(Algorithm::Sha256));
        let end = limit.map_or(u64::MAX, |limit| before.saturating_add(limit));
        let inner = self.inner.clone();
        let path = self.path.clone();
        let target = Target { hasher, writer: Appending { upload: self, end } };
        let content: Arc<dyn Content> = Arc::new(Unnamed);
        match store::store(target, &inner.traffic, &content, stream).await {
            Ok(Target { hasher, writer }) => {
                Ok(Self { hasher: known.then_some(hasher), ..writer.upload })
            }
            Err(error) if error.is_mismatch() => {
                // More came than was said: nobody knows what of it is meant.
                if let Ok((file, _)) = inner.root.open_to_write(&path) {
                    let _ = file.set_len(before);
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Publishes it as the blob `digest`. [`Kind::Digest`] if it is another one; then it is removed.
    pub async fn publish(self, digest: Digest) -> Result<u64> {
        let inner = self.inner.clone();
        let dir = ImagesDir { inner };
        dir.blocking(move |inner| {
            let failed = |e| Error::io(&self.path, "reading", e);
            let found = match self.hasher {
                Some(hasher) if digest.algorithm() == Algorithm::Sha256 => hasher.finish(),
                _ => {
                    (&self.file).rewind().map_err(failed)?;
                    let meta = self.file.metadata().map_err(failed)?;
                    let file = self.file.try_clone().map_err(failed)?;
                    let hashed = hash_open(file, meta, digest.algorithm(), &mut |_| {});
                    hashed.map_err(failed)?.digest
                }
            };
            let blob = Descriptor::new("", digest, self.size);
            if found == digest && inner.check_blob(&blob)? {
                // It is there already.
                inner.root.remove_file(&self.path).map_err(failed)?;
                return Ok(self.size);
            }
            receive::publish_file(inner, &blob, self.path, self.file, found)?;
            Ok(self.size)
        })
        .await
    }

    /// Removes it.
    pub fn remove(self) -> Result<()> {
        let removed = self.inner.root.remove_file(&self.path);
        removed.map_err(|e| Error::io(&self.path, "removing", e))
    }
}

/// Writes at the end of an upload.
struct Appending {
    upload: Upload,
    /// The size that it may reach, in bytes.
    end: u64,
}

impl Writer for Appending {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let upload = &mut self.upload;
        let found = upload.size.saturating_add(bytes.len() as u64);
        if found > self.end {
            let doing = "storing an upload";
            return Err(Error::new(SIDE, doing, Kind::Size { expected: self.end, found }));
        }
        upload.file.write_all(bytes).map_err(|e| Error::io(&upload.path, "writing", e))?;
        upload.size = found;
        Ok(())
    }
}

/// Content of which nothing is known but what has come.
struct Unnamed;

#[async_trait]
impl Content for Unnamed {
    async fn read(&self, _: u64) -> Result<BoxStream> {
        let reason = "what a client sends can be read once".to_owned();
        Err(Error::new(SIDE, "storing an upload", Kind::Unfit(reason)))
    }

    async fn file(&self) -> Result<Option<LocalFile>> {
        Ok(None)
    }

    fn side(&self) -> String {
        "a client".to_owned()
    }

    fn moved(&self, _: u64) {}

    fn retransmitted(&self, _: u64) {}
}

/// Whether `name` may be that of an upload.
pub fn is_upload_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && Path::new(name).components().count() == 1
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::backend::{ByteStream, images_dir::Linking};

    /// Gives pieces, and then breaks off or ends.
    struct Pieces(Vec<&'static str>, bool);

    #[async_trait]
    impl ByteStream for Pieces {
        async fn next(&mut self) -> Result<Option<Bytes>> {
            match (self.0.is_empty(), self.1) {
                (false, _) => Ok(Some(Bytes::from_static(self.0.remove(0).as_bytes()))),
                (true, true) => Ok(None),
                (true, false) => {
                    Err(Error::new("client", "sending", Kind::Interrupted("gone".into())))
                }
            }
        }
    }

    fn pieces(all: &[&'static str], ends: bool) -> BoxStream {
        Box::new(Pieces(all.to_vec(), ends))
    }

    fn tree() -> (tempfile::TempDir, ImagesDir, Repository) {
        let temporary = tempfile::tempdir().unwrap();
        drop(ImagesDir::create(temporary.path(), None, Linking::Auto).unwrap());
        let dir = ImagesDir::open(temporary.path()).unwrap();
        (temporary, dir, Repository::new("registry.local", "team/app").unwrap())
    }

    #[tokio::test]
    async fn pieces_become_a_blob_also_after_a_restart() {
        let (_temporary, dir, repository) = tree();
        let upload = dir.create_upload(&repository, "a1").await.unwrap();
        let upload = upload.append(pieces(&["one ", "two "], true), None).await.unwrap();
        assert_eq!((upload.size(), dir.upload_bytes(&repository, "a1")), (8, Some(8)));
        drop(upload);
        // As another process sees it.
        let again = ImagesDir::open(dir.root()).unwrap();
        let upload = again.open_upload(&repository, "a1").await.unwrap().unwrap();
        let upload = upload.append(pieces(&["three"], true), None).await.unwrap();
        let digest = Digest::sha256(b"one two three");
        assert_eq!(upload.publish(digest).await.unwrap(), 13);
        let (_, meta, verified) = again.blob_file(&digest).unwrap();
        assert!(verified && meta.len() == 13);
        assert_eq!(again.upload_bytes(&repository, "a1"), None);
        assert!(again.open_upload(&repository, "a1").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_came_before_a_break_stays_and_what_is_too_much_does_not() {
        let (_temporary, dir, repository) = tree();
        let upload = dir.create_upload(&repository, "a1").await.unwrap();
        assert!(upload.append(pieces(&["one "], false), None).await.is_err());
        assert_eq!(dir.upload_bytes(&repository, "a1"), Some(4));
        let upload = dir.open_upload(&repository, "a1").await.unwrap().unwrap();
        let error = upload.append(pieces(&["two", "x"], true), Some(3)).await.err().unwrap();
        assert!(error.is_mismatch());
        assert_eq!(dir.upload_bytes(&repository, "a1"), Some(4));
        let upload = dir.open_upload(&repository, "a1").await.unwrap().unwrap();
        let upload = upload.append(pieces(&["two"], true), Some(3)).await.unwrap();
        let digest = Digest::of(Algorithm::Sha512, b"one two");
        upload.publish(digest).await.unwrap();
        assert_eq!(dir.blob_bytes(&digest), Some(7));
    }

    #[tokio::test]
    async fn another_digest_publishes_nothing_and_two_writers_are_one_too_many() {
        let (_temporary, dir, repository) = tree();
        let upload = dir.create_upload(&repository, "a1").await.unwrap();
        let second = dir.open_upload(&repository, "a1").await.err().unwrap();
        assert!(second.is_in_use());
        let other = Repository::new("registry.local", "team/other").unwrap();
        assert!(dir.open_upload(&other, "a1").await.unwrap().is_none());
        let upload = upload.append(pieces(&["one"], true), None).await.unwrap();
        let error = upload.publish(Digest::sha256(b"other")).await.err().unwrap();
        assert!(error.is_mismatch());
        assert_eq!(dir.upload_bytes(&repository, "a1"), None);
        assert_eq!(dir.blob_bytes(&Digest::sha256(b"other")), None);
    }

    #[test]
    fn names_of_uploads() {
        assert!(is_upload_name("0123456789abcdef") && is_upload_name("A"));
        for name in ["", "..", "a/b", "a.b", "é", &"a".repeat(65)] {
            assert!(!is_upload_name(name), "{name}");
        }
    }

    #[tokio::test]
    async fn what_is_adopted_is_spared_until_its_time_is_over() {
        let (_temporary, dir, repository) = tree();
        let digests = ["kept", "old"].map(|text| Digest::sha256(text.as_bytes()));
        for (digest, lifetime) in [(digests[0], 3600), (digests[1], 0)] {
            let upload = dir.create_upload(&repository, "a1").await.unwrap();
            let text = if digest == digests[0] { "kept" } else { "old" };
            let upload = upload.append(pieces(&[text], true), None).await.unwrap();
            upload.publish(digest).await.unwrap();
            dir.adopt(&repository, digest, Duration::from_secs(lifetime)).await.unwrap();
        }
        assert!(dir.is_adopted(&repository, &digests[0]));
        assert!(!dir.is_adopted(&repository, &digests[1]));
        let pruned = dir.prune(false).unwrap();
        assert_eq!(pruned.removed.len(), 2, "the blob and its note: {:?}", pruned.removed);
        assert_eq!(digests.map(|digest| dir.blob_bytes(&digest)), [Some(4), None]);
        let filling = dir.filling(Duration::ZERO).await.unwrap();
        assert!(dir.prune(false).is_err(), "somebody is writing");
        drop(filling);
        dir.release(&repository, &digests[0]).unwrap();
        assert_eq!(dir.prune(false).unwrap().removed.len(), 1);
    }
}
