//! The writing half of the protocol. All of it may wait for the disk or for a registry, so it happens elsewhere than
//! on the thread that got the request. Only bytes are written there as long as another thread takes requests: passing
//! them on costs as much as writing them.

use std::{
    ffi::{OsStr, OsString},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, OpenAccMode, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow,
};
use tokio::sync::OwnedSemaphorePermit;

use super::{answers::Shared, requests::Adapter};
use crate::namespace::{
    Caller, Changes, Found, Handle, PendingHandle, Subject, ViewError, Writing,
};

type Result<T> = std::result::Result<T, ViewError>;

/// `O_EXCL` of open(2).
const O_EXCL: i32 = 0o200;

/// The largest write that the kernel sends at once, in bytes: more of it makes nothing faster.
pub(super) const MAX_WRITE: u32 = 1 << 20;

pub(super) fn caller(request: &Request) -> Caller {
    Caller { thread: request.pid() }
}

/// Whether a file is to be opened for writing.
pub(super) fn writes(flags: OpenFlags) -> bool {
    flags.acc_mode() != OpenAccMode::O_RDONLY
}

impl Shared {
    /// What writes. Without it no request to write comes, as the kernel knows that the mount is read-only.
    fn writing(&self) -> std::result::Result<&dyn Writing, Errno> {
        self.view.writing().ok_or(Errno::EROFS)
    }

    /// The answer to a request about `name` in `parent`.
    fn of_name<T>(
        &self,
        parent: INodeNo,
        name: &OsStr,
        done: impl FnOnce(&dyn Writing) -> Result<T>,
    ) -> std::result::Result<T, Errno> {
        done(self.writing()?).map_err(|error| self.failed_name(parent, name, &error))
    }

    /// Waits until what has been published is on the disk.
    fn sync(&self, ino: INodeNo) -> std::result::Result<(), Errno> {
        self.writing()?.sync().map_err(|error| self.failed(ino, &error))
    }

    /// Writes `bytes`, which may wait for the disk, and says so.
    fn write(&self, ino: INodeNo, handle: &Handle, offset: u64, bytes: &[u8], reply: ReplyWrite) {
        let written = pending(handle).and_then(|file| {
            let doing = || format!("writing {} bytes", bytes.len());
            file.write(offset, bytes).map_err(|error| self.disk(ino, doing(), error))
        });
        match written {
            // At most what the kernel sends at once.
            Ok(()) => reply.written(u32::try_from(bytes.len()).unwrap_or(0)),
            Err(errno) => reply.error(errno),
        }
    }
}

fn empty(reply: ReplyEmpty, done: std::result::Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn pending(handle: &Handle) -> std::result::Result<&PendingHandle, Errno> {
    match handle {
        Handle::Pending(pending) => Ok(pending),
        _ => Err(Errno::EBADF),
    }
}

impl Adapter {
    /// Does what may wait for the disk, which leaves threads to others however many wait.
    fn elsewhere(&self, work: impl FnOnce(&Arc<Shared>) + Send + 'static) {
        let (shared, runtime) = (self.shared.clone(), self.runtime.clone());
        let begin = move |permit: OwnedSemaphorePermit| {
            let work = move || {
                work(&shared);
                drop(permit);
            };
            drop(runtime.spawn_blocking(work));
        };
        let waiting = self.shared.waiting.clone();
        match waiting.clone().try_acquire_owned() {
            Ok(permit) => begin(permit),
            Err(_) => drop(self.runtime.spawn(async move {
                // It is never closed.
                if let Ok(permit) = waiting.acquire_owned().await {
                    begin(permit);
                }
            })),
        }
    }

    pub(super) fn create_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, caller) = (name.to_owned(), caller(request));
        self.elsewhere(move |shared| {
            let is_exclusive = flags & O_EXCL != 0;
            let created = shared.of_name(parent, &name, |writing| {
                writing.create(parent.0, &name, is_exclusive, caller)
            });
            match created {
                Ok((entry, handle)) => {
                    let fh = shared.files.open_to_write(entry.attributes.ino, handle);
                    let (attr, flags) =
                        (shared.attr(&entry.attributes), FopenFlags::FOPEN_DIRECT_IO);
                    reply.created(&entry.ttl, &attr, Generation(0), FileHandle(fh), flags);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    pub(super) fn open_to_write(&self, request: &Request, ino: INodeNo, reply: ReplyOpen) {
        let caller = caller(request);
        self.elsewhere(move |shared| {
            let opened = match shared.writing() {
                Ok(writing) => writing.open_to_write(ino.0, caller),
                Err(errno) => return reply.error(errno),
            };
            match opened {
                Ok(handle) => {
                    let fh = shared.files.open_to_write(ino.0, handle);
                    reply.opened(FileHandle(fh), FopenFlags::FOPEN_DIRECT_IO);
                }
                Err(error) => reply.error(shared.failed(ino, &error)),
            }
        });
    }

    pub(super) fn write_to(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        bytes: &[u8],
        reply: ReplyWrite,
    ) {
        let handle = match self.handle(ino, fh) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(errno),
        };
        match self.shared.writers.try_acquire() {
            Ok(_one_of_them) => {
                let _spawns = self.runtime.enter();
                self.shared.write(ino, &handle, offset, bytes, reply);
            }
            Err(_) => {
                let bytes = bytes.to_vec();
                self.elsewhere(move |shared| shared.write(ino, &handle, offset, &bytes, reply));
            }
        }
    }

    pub(super) fn allocate(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        range: (u64, u64),
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let handle = match self.handle(ino, fh) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(errno),
        };
        self.elsewhere(move |shared| {
            let done = pending(&handle).and_then(|file| {
                let done = file.allocate(mode.cast_unsigned(), range.0, range.1);
                done.map_err(|error| shared.disk(ino, "allocating space".to_owned(), error))
            });
            empty(reply, done);
        });
    }

    pub(super) fn copy_range(
        &self,
        from: (INodeNo, FileHandle, u64),
        to: (INodeNo, FileHandle, u64),
        length: u64,
        reply: ReplyWrite,
    ) {
        let handles = self.handle(from.0, from.1).and_then(|a| Ok((a, self.handle(to.0, to.1)?)));
        let (source, target) = match handles {
            Ok(handles) => handles,
            Err(errno) => return reply.error(errno),
        };
        self.elsewhere(move |shared| {
            let copied = pending(&target).and_then(|file| {
                // What is returned has 32 bits.
                let length = length.min(1 << 30);
                let copied = file.copy_from(&source, from.2, to.2, length);
                copied.map_err(|error| match error.raw_os_error() {
                    // The kernel then reads and writes.
                    Some(code) if is_no_copy(code) => Errno::EOPNOTSUPP,
                    _ => shared.disk(to.0, "copying".to_owned(), error),
                })
            });
            match copied {
                Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    pub(super) fn sync_file(&self, ino: INodeNo, fh: FileHandle, reply: ReplyEmpty) {
        let handle = match self.handle(ino, fh) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(errno),
        };
        self.elsewhere(move |shared| {
            let flushed = match &*handle {
                Handle::Pending(file) => file.sync(),
                _ => Ok(false),
            };
            let flushed = flushed.map_err(|error| shared.disk(ino, "flushing".to_owned(), error));
            empty(reply, flushed.and_then(|done| if done { Ok(()) } else { shared.sync(ino) }));
        });
    }

    pub(super) fn sync_directory(&self, ino: INodeNo, reply: ReplyEmpty) {
        self.elsewhere(move |shared| {
            empty(reply, shared.sync(ino));
        });
    }

    pub(super) fn flush_file(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        reply: ReplyEmpty,
    ) {
        let handle = match self.shared.files.get(fh.0) {
            Some(handle) if matches!(&*handle, Handle::Pending(_)) => handle,
            // Nothing has been written to any other.
            _ => return reply.ok(),
        };
        let (shared, caller) = (self.shared.clone(), caller(request));
        self.runtime.spawn(async move {
            let flushed = match shared.writing() {
                Ok(writing) => writing.flush(&handle, caller).await,
                Err(errno) => return reply.error(errno),
            };
            empty(reply, flushed.map_err(|error| shared.failed(ino, &error)));
        });
    }

    /// Closes a file that has been open for writing.
    pub(super) fn release_written(&self, ino: INodeNo, fh: FileHandle, reply: ReplyEmpty) {
        let handle = self.shared.files.get(fh.0);
        self.shared.files.close(ino.0, fh.0);
        let Some(handle) = handle.filter(|handle| matches!(&**handle, Handle::Pending(_))) else {
            return reply.ok();
        };
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            if let Ok(writing) = shared.writing() {
                writing.release(&handle).await;
            }
            reply.ok();
        });
    }

    pub(super) fn change_attributes(
        &self,
        ino: INodeNo,
        size: Option<u64>,
        mtime: Option<TimeOrNow>,
        reply: ReplyAttr,
    ) {
        let mtime = mtime.map(|time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        });
        let changes = Changes { size, mtime: mtime.map(seconds) };
        self.elsewhere(move |shared| {
            let changed = shared.writing().and_then(|writing| {
                writing.change(ino.0, changes).map_err(|error| shared.failed(ino, &error))
            });
            match changed {
                Ok(entry) => reply.attr(&Duration::ZERO, &shared.attr(&entry.attributes)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    pub(super) fn make_directory(&self, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.elsewhere(move |shared| {
            let made = |writing: &dyn Writing| writing.make_directory(parent.0, &name);
            match shared.of_name(parent, &name, made) {
                Ok(entry) => shared.entry(reply, &entry),
                Err(errno) => reply.error(errno),
            }
        });
    }

    pub(super) fn remove_directory(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.elsewhere(move |shared| {
            let removed = |writing: &dyn Writing| writing.remove_directory(parent.0, &name);
            empty(reply, shared.of_name(parent, &name, removed));
        });
    }

    pub(super) fn unlink_file(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (shared, name) = (self.shared.clone(), name.to_owned());
        self.runtime.spawn(async move {
            let done = match shared.writing() {
                Ok(writing) => writing.unlink(parent.0, &name).await,
                Err(errno) => return reply.error(errno),
            };
            empty(reply, done.map_err(|error| shared.failed_name(parent, &name, &error)));
        });
    }

    pub(super) fn rename_file(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let shared = self.shared.clone();
        let (old, new): (OsString, OsString) = (from.1.to_owned(), to.1.to_owned());
        let (from, to) = (from.0, to.0);
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        if !flags.difference(RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        self.runtime.spawn(async move {
            let done = match shared.writing() {
                Ok(writing) => writing.rename((from.0, &old), (to.0, &new), replace).await,
                Err(errno) => return reply.error(errno),
            };
            empty(reply, done.map_err(|error| shared.failed_name(to, &new, &error)));
        });
    }

    pub(super) fn link_file(&self, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (shared, name) = (self.shared.clone(), name.to_owned());
        self.runtime.spawn(async move {
            let done = match shared.writing() {
                Ok(writing) => writing.link(ino.0, parent.0, &name).await,
                Err(errno) => return reply.error(errno),
            };
            match done {
                Ok(entry) => shared.entry(reply, &entry),
                Err(error) => reply.error(shared.failed_name(parent, &name, &error)),
            }
        });
    }

    /// Refuses what nothing of an images_dir is.
    pub(super) fn refuse(&self, parent: INodeNo, name: &OsStr, what: &str, reply: ReplyEntry) {
        match self.shared.writing() {
            Ok(writing) => {
                let error = writing.refuse(parent.0, name, what);
                reply.error(self.shared.failed_name(parent, name, &error));
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Looks a name up for whoever asks. `None` if nothing can be written here.
    pub(super) fn lookup_to_write(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
    ) -> Option<Result<Found>> {
        let writing = self.shared.view.writing()?;
        Some(writing.lookup_for(parent.0, name, caller(request)))
    }

    /// What the file system has that is written to.
    pub(super) fn free_space(&self, ino: INodeNo, reply: ReplyStatfs) {
        self.elsewhere(move |shared| {
            let space = shared.writing().and_then(|writing| {
                writing.free_space().map_err(|error| shared.failed(ino, &error))
            });
            match space {
                Ok(space) => {
                    let block = u32::try_from(space.block_bytes).unwrap_or(u32::MAX);
                    reply.statfs(
                        space.blocks,
                        space.free,
                        space.available,
                        space.files,
                        space.free_files,
                        block,
                        255,
                        block,
                    );
                }
                Err(errno) => reply.error(errno),
            }
        });
    }
}

impl Shared {
    fn failed_name(&self, parent: INodeNo, name: &OsStr, error: &ViewError) -> Errno {
        self.failed_for(|| self.view.subject_of_name(parent.0, name), error)
    }

    /// What the kernel is told of a failure of the file that is being written, which is logged.
    fn disk(&self, ino: INodeNo, doing: String, error: std::io::Error) -> Errno {
        let subject = self.view.subject(ino.0);
        let doing = match &subject {
            Subject { image: Some(image), .. } => format!("{doing} of {image}"),
            Subject { digest: Some(digest), .. } => format!("{doing} of {digest}"),
            Subject { .. } => doing,
        };
        self.failed_for(|| subject, &ViewError::Disk { doing, error })
    }
}

/// Whether an error of copy_file_range(2) says that it cannot be done in this way.
fn is_no_copy(code: i32) -> bool {
    [Errno::EOPNOTSUPP, Errno::EXDEV, Errno::EINVAL, Errno::ENOSYS]
        .iter()
        .any(|errno| errno.code() == code)
}

/// Seconds and nanoseconds since 1970.
fn seconds(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => (-whole, 0),
                part => (-whole - 1, 1_000_000_000 - part),
            }
        }
    }
}
