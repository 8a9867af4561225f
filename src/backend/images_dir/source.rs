//! An images_dir as the source of a transfer: its blobs as files, and what is attached to its
//! manifests.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, Metadata},
    io,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::Errno};
use tokio::task::JoinHandle;

use super::{
    ImagesDir, Inner, SIDE,
    layout::{self, LayoutMap, MANIFESTS},
    manifests::read_manifest,
    publish,
};
use crate::{
    backend::{Attachments, Blobs, BoxStream, ByteStream, Error, Kind, Result, Tags},
    image::{Descriptor, Digest, Repository, is_tag, referrers_tag},
    util::locked,
};

/// Files are read in pieces of this many bytes. Of each blob under way two or three are held.
const PIECE: usize = 128 << 10;

/// A file that has been found to hold a blob.
pub struct BlobFile {
    inner: Arc<Inner>,
    digest: Digest,
    path: PathBuf,
    file: Arc<File>,
    meta: Metadata,
}

impl BlobFile {
    /// The file, open for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads the bytes `range` of it.
    pub fn read(&self, range: Range<u64>) -> FileStream {
        FileStream::start(self.file.clone(), self.path.clone(), range)
    }

    /// Makes `to` another name of the file, by way of `temporary`, and returns what the file looks
    /// like since. `None` where that cannot be, or where it would be another file than a copy:
    /// with a time or mode that is not ours.
    pub(super) fn hard_link(&self, temporary: &Path, to: &Path) -> io::Result<Option<Metadata>> {
        if !publish::is_sealed(&self.meta) {
            return Ok(None);
        }
        remove_if_there(temporary)?;
        // Another file system, too many links, or not ours to link: copying serves as well.
        if fs::hard_link(&self.path, temporary).is_err() {
            return Ok(None);
        }
        let content = |meta: &Metadata| {
            (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())
        };
        // Somebody may have put another file in its place since it was verified.
        if content(&fs::metadata(temporary)?) != content(&self.meta) {
            fs::remove_file(temporary)?;
            return Ok(None);
        }
        fs::rename(temporary, to)?;
        // Where both were the same file already, renaming does nothing.
        remove_if_there(temporary)?;
        // All this has changed the time of the last change, by which the record knows the file.
        let linked = fs::metadata(to)?;
        if content(&linked) == content(&self.meta) {
            self.inner.records.remember(self.digest, &linked);
        }
        Ok(Some(linked))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A part of a file that is read piece by piece, one piece ahead.
pub struct FileStream {
    path: PathBuf,
    file: Arc<File>,
    /// What has not been asked for.
    left: Range<u64>,
    next: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl FileStream {
    fn start(file: Arc<File>, path: PathBuf, range: Range<u64>) -> Self {
        let mut stream = Self { path, file, left: range, next: None };
        stream.read_ahead();
        stream
    }

    /// Every stream knows by itself where it is. Those of one blob share what the system knows of
    /// that, and one that has been given up may still be reading its last piece.
    fn read_ahead(&mut self) {
        let from = self.left.start;
        let to = self.left.end.min(from.saturating_add(PIECE as u64));
        if from >= to {
            return;
        }
        self.left.start = to;
        let file = self.file.clone();
        self.next = Some(tokio::task::spawn_blocking(move || {
            // At most a piece.
            let mut piece = Vec::with_capacity((to - from) as usize);
            while piece.len() < piece.capacity() {
                let at = from + piece.len() as u64;
                match rustix::io::pread(&file, spare_capacity(&mut piece), at) {
                    Ok(0) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(piece)
        }));
    }
}

#[async_trait]
impl ByteStream for FileStream {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let failed = |e| Error::io(&self.path, "reading", e);
        let Some(ahead) = self.next.take() else { return Ok(None) };
        let piece = ahead.await.map_err(io::Error::other).and_then(|r| r).map_err(failed)?;
        if piece.is_empty() {
            return Ok(None);
        }
        self.read_ahead();
        Ok(Some(piece.into()))
    }
}

#[async_trait]
impl Blobs for ImagesDir {
    async fn check(&self, _: &Repository, blob: &Descriptor) -> Result<()> {
        let blob = blob.clone();
        self.blocking(move |inner| inner.there(&blob).map(|_| ())).await
    }

    async fn read(
        &self,
        _: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        let (inner, blob) = (self.inner.clone(), blob.clone());
        Ok(Box::new(self.blocking(move |_| inner.blob_file(&blob)).await?.read(range)))
    }

    async fn file(&self, _: &Repository, blob: &Descriptor) -> Result<Option<BlobFile>> {
        let blob = blob.clone();
        self.blocking(move |inner| inner.blob_file(&blob)).await.map(Some)
    }
}

impl Inner {
    /// The file of a blob that must be there.
    fn there(&self, blob: &Descriptor) -> Result<Metadata> {
        if let Some(meta) = self.sized_blob(blob)? {
            return Ok(meta);
        }
        let path = self.blob_path(&blob.digest);
        let kind = match fs::metadata(&path) {
            Ok(meta) => Kind::Size { expected: blob.size, found: meta.len() },
            Err(_) => Kind::NotFound(String::new()),
        };
        Err(damaged(&path, kind))
    }

    /// Opens a blob that has been verified, or verifies it now.
    pub(super) fn blob_file(self: &Arc<Self>, blob: &Descriptor) -> Result<BlobFile> {
        self.there(blob)?;
        let path = self.blob_path(&blob.digest);
        let failed = |e| Error::io(&path, "reading", e);
        let file = File::open(&path).map_err(failed)?;
        let mut meta = file.metadata().map_err(failed)?;
        if meta.len() != blob.size || !self.records.is_verified(&blob.digest, &meta) {
            let hashed =
                super::hash_file(&path, blob.digest.algorithm(), &mut |_| {}).map_err(failed)?;
            if hashed.digest != blob.digest {
                let (expected, found) = (blob.digest, hashed.digest);
                return Err(damaged(&path, Kind::Digest { expected, found }));
            }
            meta = hashed.meta;
            self.records.remember(blob.digest, &meta);
        }
        Ok(BlobFile { inner: self.clone(), digest: blob.digest, path, file: Arc::new(file), meta })
    }

    /// What names which subject among the manifests of `repository`.
    fn referrers(&self, repository: &Repository) -> Result<Arc<Referrers>> {
        let mut found = Vec::new();
        let mut stamps = Vec::new();
        for dir in layout::candidates(&self.root, repository) {
            let dir = dir.join(MANIFESTS);
            match fs::metadata(&dir) {
                Ok(meta) => stamps.push((meta.ino(), meta.mtime(), meta.mtime_nsec())),
                Err(_) => continue,
            }
            found.push(dir);
        }
        if let Some((known, referrers)) = self.referrers.get(repository)
            && known == stamps
        {
            return Ok(referrers);
        }
        let mut referrers = Referrers::new();
        for dir in found {
            for entry in fs::read_dir(&dir).map_err(|e| Error::io(&dir, "reading", e))?.flatten() {
                let name = entry.file_name();
                let Some(digest) = name.to_str().and_then(|n| n.parse::<Digest>().ok()) else {
                    continue;
                };
                // What is broken is `verify`'s affair.
                let Ok(manifest) = read_manifest(&entry.path(), digest.algorithm()) else {
                    continue;
                };
                if let Some(subject) = manifest.subject().filter(|_| manifest.digest() == digest) {
                    referrers.entry(subject.digest).or_default().push(Descriptor::new(
                        manifest.media_type(),
                        digest,
                        manifest.bytes().len() as u64,
                    ));
                }
            }
        }
        let referrers = Arc::new(referrers);
        self.referrers.put(repository, stamps, referrers.clone());
        Ok(referrers)
    }

    fn tags(&self, repository: &Repository) -> Result<Vec<String>> {
        let mut tags = Vec::new();
        for dir in layout::candidates(&self.root, repository) {
            let dir = dir.join(MANIFESTS);
            let failed = |e| Error::io(&dir, "reading", e);
            let map = layout::read_layout_map(&dir).map_err(failed)?;
            let is_map = map.is_some();
            if let Some(LayoutMap::Map(map)) = map {
                tags.extend(map.into_keys());
            }
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            for entry in entries.flatten() {
                let is_file = entry.file_type().is_ok_and(|t| !t.is_dir());
                let name = entry.file_name().into_string().unwrap_or_default();
                if is_file && is_tag(&name) && !(is_map && name == layout::LAYOUT_MAP) {
                    tags.push(name);
                }
            }
        }
        tags.sort_unstable();
        tags.dedup();
        Ok(tags)
    }
}

#[async_trait]
impl Attachments for ImagesDir {
    async fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Option<Vec<Descriptor>>> {
        let repository = repository.clone();
        self.blocking(move |inner| {
            // The fallback tag says it as the registry said it, and is carried as it is.
            let fallback = repository.tagged(&referrers_tag(&subject));
            if inner.manifest(&fallback).is_ok() {
                return Ok(None);
            }
            let referrers = inner.referrers(&repository)?;
            Ok(Some(referrers.get(&subject).cloned().unwrap_or_default()))
        })
        .await
    }

    async fn tags(&self, repository: &Repository) -> Result<Tags> {
        let repository = repository.clone();
        let names = self.blocking(move |inner| inner.tags(&repository)).await?;
        Ok(Tags { names, complete: true })
    }
}

fn damaged(path: &Path, what: Kind) -> Error {
    Error::new(SIDE, format_args!("reading {}", path.display()), Kind::Damaged(Box::new(what)))
}

/// Manifests of a repository by the digest that their `subject` names.
type Referrers = BTreeMap<Digest, Vec<Descriptor>>;

/// What its directories looked like when the referrers of a repository were read.
type Stamps = Vec<(u64, i64, i64)>;

/// Keeps [`Referrers`] as long as no file comes or goes in the repository.
#[derive(Default)]
pub(super) struct ReferrersCache(Mutex<HashMap<Repository, (Stamps, Arc<Referrers>)>>);

impl ReferrersCache {
    fn get(&self, repository: &Repository) -> Option<(Stamps, Arc<Referrers>)> {
        locked(&self.0).get(repository).cloned()
    }

    fn put(&self, repository: &Repository, stamps: Stamps, referrers: Arc<Referrers>) {
        let mut known = locked(&self.0);
        known.insert(repository.clone(), (stamps, referrers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_of_one_file_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..3 * PIECE + 7).map(|at| (at / 1000) as u8).collect();
        fs::write(&path, &content).unwrap();
        let file = File::open(&path).unwrap();
        let (file, end) = (Arc::new(file), content.len() as u64);
        let start = |from| FileStream::start(file.clone(), path.clone(), from..end);
        let (mut first, mut second, mut third) = (start(0), start(5), start(3 * PIECE as u64));
        let (mut from_first, mut from_second) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            from_first.extend(first.next().await.unwrap().unwrap_or_default());
            from_second.extend(second.next().await.unwrap().unwrap_or_default());
        }
        assert!(from_first == content && from_second == content[5..]);
        assert_eq!(third.next().await.unwrap().unwrap(), content[3 * PIECE..]);
        assert!(third.next().await.unwrap().is_none());
    }
}
