//! Reading files without waiting for the disk, writing small ones whole, and telling one file from the next.

use std::{
    fs::{self, File, Metadata},
    io::{self, IoSliceMut, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::filled;

/// Tells a file from the others of its file system, also from those that had its inode number before it: a file system
/// gives the number of a file that is gone to the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileId {
    inode: u64,
    /// When it was created, where the file system knows that.
    created: Option<SystemTime>,
}

impl FileId {
    pub(crate) fn of(meta: &Metadata) -> Self {
        Self { inode: meta.ino(), created: meta.created().ok() }
    }
}

/// The directory that `path` is in, which is the working directory if it is a name alone.
///
/// ```
/// use std::path::Path;
///
/// use imgfs::util::directory_of;
///
/// assert_eq!(directory_of(Path::new("a/b")), Path::new("a"));
/// assert_eq!(directory_of(Path::new("b")), Path::new("."));
/// ```
pub fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads the `length` bytes at `offset`, or as many as there are before the end, if they are in memory.
/// `None` if that would have to wait for the disk.
///
/// Where the file system cannot say whether it would (`RWF_NOWAIT` is not known to all), it is read in any case.
pub(crate) fn read_cached(file: &File, offset: u64, length: usize) -> Option<io::Result<Bytes>> {
    let now = |buffer: &mut [u8], at| {
        let buffers = &mut [IoSliceMut::new(buffer)];
        match preadv2(file, buffers, at, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.read_at(buffer, at),
            read => Ok(read?),
        }
    };
    match filled(length, |buffer| read_by(now, buffer, offset)) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
        read => Some(read),
    }
}

/// Fills `buffer` from the byte `offset` of the file on, as far as there is something. How many bytes that are.
pub(crate) fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    read_by(|buffer, at| file.read_at(buffer, at), buffer, offset)
}

/// Reads the `length` bytes at `offset`, or as many as there are before the end. May wait for the disk.
pub(crate) fn read_part(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    filled(length, |buffer| read_at_most(file, buffer, offset))
}

/// Fills `buffer` by calls of `read` with what is left of it and the offset of that, until there is nothing more.
fn read_by(
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    buffer: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match read(&mut buffer[have..], offset.saturating_add(have as u64)) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

/// Writes a small file so that it is whole or what it was before, and flushes it. It is written as `<path>.new`
/// first, for one writer at a time. That the name survives a power cut, too, takes a flush of its directory.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = File::create(&new)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // It would take the room that was missing.
        let _ = fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use rustix::fs::{Advice, fadvise};

    use super::*;

    #[test]
    fn what_is_in_memory_is_read_and_what_is_not_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 7) as u8).collect();
        fs::write(&path, &content).unwrap();
        let file = File::open(&path).unwrap();
        let read = |offset, length| read_cached(&file, offset, length);
        assert_eq!(read(0, 1 << 20).unwrap().unwrap(), content);
        assert_eq!(read((1 << 20) - 5, 100).unwrap().unwrap(), content[(1 << 20) - 5..]);
        assert_eq!(read(2 << 20, 100).unwrap().unwrap(), b""[..]);
        file.sync_all().unwrap();
        fadvise(file.as_fd(), 0, None, Advice::DontNeed).unwrap();
        // Whether it has left memory is up to the system; what is told is never wrong.
        if let Some(bytes) = read(0, 1 << 20) {
            assert_eq!(bytes.unwrap(), content);
        }
    }
}
