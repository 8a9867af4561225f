//! Open files.

use std::{fs::File, io, num::NonZeroU64};

use bytes::Bytes;
use rustix::fs::{Advice, fadvise};

use super::PendingHandle;
use crate::{
    backend::{Error, LocalFile, Result},
    cache::{CachedBlob, ConsistentBlob},
    rootfs::TreeFile,
    util::{read_cached, read_part},
};

/// An open file. It stays what it was when it was opened.
pub enum Handle {
    /// A file in the images_dir whose content nobody vouches for, such as that of a tag.
    File(File),
    /// A blob in the images_dir, verified.
    Blob(Box<LocalFile>),
    /// Content that is at hand.
    Content(Bytes),
    /// The same, of something that is not what it was a moment ago.
    Fresh(Bytes),
    /// A blob that is read from a registry, by way of the cache.
    Remote(ConsistentBlob),
    /// A file inside an image.
    Inside(Box<TreeFile>),
    /// A file that is being written.
    Pending(PendingHandle),
}

impl Handle {
    pub(super) fn of_remote(blob: CachedBlob) -> Self {
        Self::Remote(ConsistentBlob::new(blob))
    }

    /// The file that the kernel could as well read itself.
    pub fn local_file(&self) -> Option<&File> {
        match self {
            Self::File(file) => Some(file),
            Self::Blob(blob) => Some(blob.file()),
            Self::Content(_)
            | Self::Fresh(_)
            | Self::Remote(_)
            | Self::Inside(_)
            | Self::Pending(_) => None,
        }
    }

    /// Whether what is read is known to be right, and not only once the end has been read.
    pub fn is_certain(&self) -> bool {
        match self {
            Self::File(_) | Self::Blob(_) | Self::Content(_) => true,
            Self::Inside(file) => file.is_certain(),
            Self::Fresh(_) | Self::Pending(_) => false,
            Self::Remote(remote) => remote.blob().is_whole(),
        }
    }

    /// Whether reading ends by itself when nothing comes, however long it takes.
    pub fn ends_by_itself(&self) -> bool {
        matches!(self, Self::Inside(_))
    }

    /// What reading it is called.
    pub fn reading(&self) -> String {
        match self {
            Self::Remote(remote) => format!("reading {}", remote.blob().content()),
            Self::Inside(file) => format!("reading a file of layer {}", file.layer()),
            Self::File(_)
            | Self::Blob(_)
            | Self::Content(_)
            | Self::Fresh(_)
            | Self::Pending(_) => "reading a local file".to_owned(),
        }
    }

    /// Where the first byte from `offset` on is that is not in a hole; `None` if there is none. Only files inside
    /// images have holes.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        match self {
            Self::Inside(file) => Ok(file.next_data(offset)),
            Self::Pending(file) => file.next_data(offset).map_err(failed),
            _ => Ok((offset < self.size()?).then_some(offset)),
        }
    }

    /// Where the first hole from `offset` on is, at the latest the end of the file; `None` if `offset` is not in
    /// the file.
    pub fn next_hole(&self, offset: u64) -> Result<Option<u64>> {
        match self {
            Self::Inside(file) => Ok(file.next_hole(offset)),
            Self::Pending(file) => file.next_hole(offset).map_err(failed),
            _ => {
                let size = self.size()?;
                Ok((offset < size).then_some(size))
            }
        }
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata().map_err(failed)?.len()),
            Self::Blob(blob) => Ok(blob.file().metadata().map_err(failed)?.len()),
            Self::Content(content) | Self::Fresh(content) => Ok(content.len() as u64),
            Self::Remote(remote) => Ok(remote.blob().size()),
            Self::Inside(file) => Ok(file.size()),
            Self::Pending(file) => Ok(file.size()),
        }
    }

    /// Reads without waiting, neither for a registry nor for the disk, if that can be. At most `length`
    /// bytes; fewer only at the end.
    pub fn read_now(&self, offset: u64, length: usize) -> Option<Result<Bytes>> {
        match self {
            Self::File(file) => read_file_now(file, offset, length),
            Self::Blob(blob) => read_file_now(blob.file(), offset, length),
            Self::Content(content) | Self::Fresh(content) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let to = from.saturating_add(length).min(content.len());
                Some(Ok(content.slice(from..to)))
            }
            Self::Inside(file) => file.read_now(offset, length),
            Self::Pending(_) => None,
            Self::Remote(remote) => remote.try_read(offset, length),
        }
    }

    /// Reads, however long that takes.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        match self {
            Self::Remote(remote) => remote.read(offset, length).await,
            Self::Inside(file) => file.read(offset, length).await,
            Self::Pending(file) => file.read(offset, length).await.map_err(failed),
            Self::File(file) => read_file(file, offset, length).await,
            Self::Blob(blob) => read_file(blob.file(), offset, length).await,
            Self::Content(_) | Self::Fresh(_) => {
                self.read_now(offset, length).unwrap_or_else(|| Ok(Bytes::new()))
            }
        }
    }
}

/// After so many bytes the disk is told what comes next.
const STEP: u64 = 1 << 20;

/// Reads what is in memory; `None` if the disk would have to be waited for.
fn read_file_now(file: &File, offset: u64, length: usize) -> Option<Result<Bytes>> {
    let content = read_cached(file, offset, length)?;
    read_ahead(file, offset, length);
    Some(content.map_err(failed))
}

/// Reads on a thread that may wait for the disk.
async fn read_file(file: &File, offset: u64, length: usize) -> Result<Bytes> {
    let file = file.try_clone().map_err(failed)?;
    let read = move || {
        let content = read_part(&file, offset, length).map_err(failed);
        read_ahead(&file, offset, length);
        content
    };
    tokio::task::spawn_blocking(read).await.map_err(|e| failed(io::Error::other(e)))?
}

/// Tells the disk what comes next.
fn read_ahead(file: &File, offset: u64, length: usize) {
    let end = offset.saturating_add(length as u64);
    if offset / STEP != end / STEP {
        // The next requests come when this one has been answered. Until then the disk would rest.
        let _ = fadvise(file, end, NonZeroU64::new(2 * STEP), Advice::WillNeed);
    }
}

fn failed(error: io::Error) -> Error {
    Error::new("images_dir", "reading", error)
}
