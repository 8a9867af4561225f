//! A blob that is a file of this machine: what a backend gives that has files, so that whoever
//! receives the blob may link the file or send it from there.

use std::{
    fs::{File, Metadata},
    io,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::Errno};
use tokio::task::JoinHandle;

use super::{ByteStream, ConfinedDir, Error, Flush, Result, confined::if_supported};

/// Files are read in pieces of this many bytes. Of each blob under way two or three are held.
const PIECE: usize = 128 << 10;

/// Is told what a file looks like once it has been given another name, which changes its ctime, and whether its
/// content is known to be on the disk.
pub type Relinked = Box<dyn Fn(&Metadata, bool) + Send + Sync>;

/// A file that has been found to hold a blob.
pub struct LocalFile {
    dir: ConfinedDir,
    path: PathBuf,
    file: Arc<File>,
    meta: Metadata,
    is_on_disk: bool,
    relinked: Relinked,
}

impl LocalFile {
    /// The file at `path` in `dir`, which is open as `file` and looked like `meta` when it was verified. Its
    /// content is known to be on the disk, or may be in memory only.
    pub fn new(
        dir: ConfinedDir,
        path: PathBuf,
        file: File,
        meta: Metadata,
        is_on_disk: bool,
        relinked: Relinked,
    ) -> Self {
        Self { dir, path, file: Arc::new(file), meta, is_on_disk, relinked }
    }

    /// The file, open for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What it looked like when it was verified.
    pub fn meta(&self) -> &Metadata {
        &self.meta
    }

    /// Reads the bytes `range` of it.
    pub fn read(&self, range: Range<u64>) -> FileStream {
        FileStream::start(self.file.clone(), self.path.clone(), range)
    }

    /// Makes `to` in the directory `dir` another name of the file, by way of `temporary`, and returns
    /// what the file looks like since, and whether its content is known to be on the disk. With [`Flush::Now`]
    /// it is, for it is flushed unless that has been done. `None` where the file system cannot do that, or where
    /// the file has been replaced since it was verified.
    pub fn hard_link(
        &self,
        dir: &ConfinedDir,
        temporary: &Path,
        to: &Path,
        flush: Flush,
    ) -> io::Result<Option<(Metadata, bool)>> {
        dir.remove_if_there(temporary)?;
        let is_flushed = flush == Flush::Now && !self.is_on_disk;
        if is_flushed && if_supported(self.file.sync_all()).is_err() {
            return Ok(None);
        }
        let is_on_disk = self.is_on_disk || is_flushed;
        // Another file system, too many links, or not ours to link: copying serves as well.
        if dir.hard_link(&self.dir, &self.path, temporary).is_err() {
            return Ok(None);
        }
        let content = |meta: &Metadata| {
            (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())
        };
        if content(&dir.stat(temporary)?) != content(&self.meta) {
            dir.remove_file(temporary)?;
            return Ok(None);
        }
        dir.rename(temporary, to)?;
        // Where both were the same file already, renaming does nothing.
        dir.remove_if_there(temporary)?;
        let linked = dir.stat(to)?;
        if content(&linked) == content(&self.meta) {
            (self.relinked)(&linked, is_on_disk);
        }
        Ok(Some((linked, is_on_disk)))
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
    /// Begins to read the bytes `range` of `file`, which is called `path` in errors.
    pub(super) fn start(file: Arc<File>, path: PathBuf, range: Range<u64>) -> Self {
        let mut stream = Self { path, file, left: range, next: None };
        stream.read_ahead();
        stream
    }

    /// Each stream keeps its own position. Those of one blob share the file, and one that has been given
    /// up may still be reading its last piece.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_of_one_file_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..3 * PIECE + 7).map(|at| (at / 1000) as u8).collect();
        std::fs::write(&path, &content).unwrap();
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
