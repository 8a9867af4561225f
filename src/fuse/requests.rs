//! The requests of the kernel, one function each, and by whom they are answered.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, mpsc::Sender},
    thread,
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime;

use super::{
    BLOCK, CACHE_DIR_XATTR,
    answers::{Line, Shared, file_type, xattr},
    counts::Asked,
    writing,
};
use crate::{
    layer::Kind,
    namespace::{Attributes, Entry, Found, Handle},
};

/// Requests of the kernel that may be under way in the background: reading ahead, mostly.
const BACKGROUND: u16 = 64;

/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

pub(super) struct Adapter {
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: runtime::Handle,
    /// Is told when the kernel asks for nothing any more.
    pub(super) ends: Sender<()>,
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel does not have, it does not need to have.
        let _ = config
            .add_capabilities(InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_PARALLEL_DIROPS);
        // What has not been verified is read directly, and can be mapped all the same.
        let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        let _ = config.set_max_background(BACKGROUND);
        let _ = config.set_congestion_threshold(BACKGROUND * 3 / 4);
        if self.shared.is_writable {
            let _ = config.set_max_write(writing::MAX_WRITE);
        }
        if self.shared.options.passthrough {
            let passes = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
                && config.set_max_stack_depth(1).is_ok();
            self.shared.files.set_passthrough(passes);
        }
        Ok(())
    }

    /// The session has ended. If somebody waits for that, this thread goes no further: next it would unmount what
    /// is at the mount point now.
    fn destroy(&mut self) {
        if self.ends.send(()).is_ok() {
            loop {
                thread::park();
            }
        }
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.shared.counts.asked(Asked::Lookup);
        let found = self.lookup_to_write(request, parent, name);
        match found.unwrap_or_else(|| self.shared.view.lookup(parent.0, name)) {
            Ok(Found::Ask(question)) => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move { shared.find_out(question, reply).await });
            }
            Ok(found) => self.shared.found(reply, &found),
            Err(error) => {
                let subject = || self.shared.view.subject_of_name(parent.0, name);
                reply.error(self.shared.failed_for(subject, &error));
            }
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.shared.counts.asked(Asked::Forget);
        self.shared.view.forget(ino.0, times);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.shared.counts.asked(Asked::Getattr);
        match self.shared.view.attributes_now(ino.0) {
            Ok(Some(entry)) => reply.attr(&entry.ttl, &self.shared.attr(&entry.attributes)),
            Ok(None) => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move {
                    let _waits = shared.counts.waits(Asked::Getattr);
                    match shared.view.attributes(ino.0).await {
                        Ok(entry) => reply.attr(&entry.ttl, &shared.attr(&entry.attributes)),
                        Err(error) => reply.error(shared.failed(ino, &error)),
                    }
                });
            }
            Err(error) => reply.error(self.shared.failed(ino, &error)),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.shared.counts.asked(Asked::Open);
        if self.shared.is_writable && writing::writes(flags) {
            return self.open_to_write(request, ino, reply);
        }
        if self.shared.view.opens_every_file() {
            // From now on the kernel reads without asking first, which is half of what it costs to
            // read a small file.
            return reply.error(Errno::ENOSYS);
        }
        match self.shared.view.open_now(ino.0) {
            Ok(Some(handle)) => self.shared.opened(ino.0, handle, reply),
            Ok(None) => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move {
                    let _waits = shared.counts.waits(Asked::Open);
                    let subject = || shared.view.subject(ino.0);
                    match shared.in_time("opening", subject, shared.view.open(ino.0)).await {
                        Ok(handle) => shared.opened(ino.0, handle, reply),
                        Err(errno) => reply.error(errno),
                    }
                });
            }
            Err(error) => reply.error(self.shared.failed(ino, &error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.shared.counts.asked(Asked::Read);
        let handle = match self.handle(ino, fh) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(errno),
        };
        // 32 bits always fit.
        let length = size as usize;
        match handle.read_now(offset, length) {
            Some(Ok(content)) => {
                self.shared.counts.read(content.len());
                reply.data(&content);
            }
            Some(Err(error)) => reply.error(self.shared.failed(ino, &error.into())),
            None => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move {
                    let _waits = shared.counts.waits(Asked::Read);
                    let read = async { Ok(handle.read(offset, length).await?) };
                    let read = match handle.ends_by_itself() {
                        true => read.await.map_err(|error| shared.failed(ino, &error)),
                        false => {
                            let subject = || shared.view.subject(ino.0);
                            shared.in_time(&handle.reading(), subject, read).await
                        }
                    };
                    match read {
                        Ok(content) => {
                            shared.counts.read(content.len());
                            reply.data(&content);
                        }
                        Err(errno) => reply.error(errno),
                    }
                });
            }
        }
    }

    /// Where the next data or the next hole of a file is.
    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let handle = match self.handle(ino, fh) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(errno),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let found = match whence {
            SEEK_DATA => handle.next_data(offset),
            SEEK_HOLE => handle.next_hole(offset),
            // The kernel itself knows all others.
            _ => return reply.error(Errno::EINVAL),
        };
        match found {
            Ok(found) => match found.and_then(|found| i64::try_from(found).ok()) {
                Some(found) => reply.offset(found),
                None => reply.error(Errno::ENXIO),
            },
            Err(error) => reply.error(self.shared.failed(ino, &error.into())),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if self.shared.is_writable {
            return self.release_written(ino, fh, reply);
        }
        self.shared.files.close(ino.0, fh.0);
        reply.ok();
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        if self.shared.is_writable {
            return self.flush_file(request, ino, fh, reply);
        }
        // Asked once, and never again.
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.shared.counts.asked(Asked::Create);
        self.create_file(request, parent, name, flags, reply);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.shared.counts.asked(Asked::Write);
        self.write_to(ino, fh, offset, bytes, reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.shared.counts.asked(Asked::Fallocate);
        self.allocate(ino, fh, (offset, length), mode, reply);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        from: INodeNo,
        from_fh: FileHandle,
        from_offset: u64,
        to: INodeNo,
        to_fh: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.shared.counts.asked(Asked::CopyFileRange);
        self.copy_range((from, from_fh, from_offset), (to, to_fh, to_offset), length, reply);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        self.shared.counts.asked(Asked::Fsync);
        self.sync_file(ino, fh, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync_directory(ino, reply);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.shared.counts.asked(Asked::Setattr);
        self.change_attributes(ino, size, mtime, reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.shared.counts.asked(Asked::Mkdir);
        self.make_directory(parent, name, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.shared.counts.asked(Asked::Rmdir);
        self.remove_directory(parent, name, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.shared.counts.asked(Asked::Unlink);
        self.unlink_file(parent, name, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.shared.counts.asked(Asked::Rename);
        self.rename_file((parent, name), (new_parent, new_name), flags, reply);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.shared.counts.asked(Asked::Link);
        self.link_file(ino, parent, name, reply);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, _: &Path, reply: ReplyEntry) {
        self.refuse(parent, name, "a symbolic link", reply);
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        self.refuse(parent, name, "a device, a pipe or a socket", reply);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.shared.counts.asked(Asked::Readlink);
        match self.shared.view.link_target_now(ino.0) {
            Ok(Some(target)) => reply.data(&target),
            Ok(None) => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move {
                    match shared.view.link_target(ino.0).await {
                        Ok(target) => reply.data(&target),
                        Err(error) => reply.error(shared.failed(ino, &error)),
                    }
                });
            }
            Err(error) => reply.error(self.shared.failed(ino, &error)),
        }
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.shared.counts.asked(Asked::Opendir);
        if self.shared.view.is_fixed() {
            // And lists directories without asking first.
            return reply.error(Errno::ENOSYS);
        }
        if self.shared.view.is_as_listed(ino.0) {
            return self.shared.listing(None, reply);
        }
        let runtime = self.runtime.clone();
        self.where_it_may_wait(ino, move |shared| match shared.view.list_now(ino.0) {
            Ok(Some(listing)) => shared.listing(Some(listing), reply),
            Ok(None) => {
                let shared = shared.clone();
                runtime.spawn(async move {
                    let _waits = shared.counts.waits(Asked::Opendir);
                    match shared.view.list(ino.0).await {
                        Ok(listing) => shared.listing(Some(listing), reply),
                        Err(error) => reply.error(shared.failed(ino, &error)),
                    }
                });
            }
            Err(error) => reply.error(shared.failed(ino, &error)),
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.shared.counts.asked(Asked::Readdir);
        self.where_it_may_wait(ino, move |shared| {
            let listing = match shared.directory(ino.0, fh.0) {
                Ok(listing) => listing,
                Err(errno) => return reply.error(errno),
            };
            let listed = shared.listed(&listing, offset, |next, name, line| {
                let (ino, kind) = match line {
                    Line::Dot(ino) => (ino, Kind::Dir),
                    Line::Entry { at, kind } => (shared.view.number_of(&listing, at), kind),
                };
                Ok(reply.add(INodeNo(ino), next, file_type(kind), name))
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(shared.failed(ino, &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.shared.counts.asked(Asked::Readdir);
        self.where_it_may_wait(ino, move |shared| {
            let listing = match shared.directory(ino.0, fh.0) {
                Ok(listing) => listing,
                Err(errno) => return reply.error(errno),
            };
            let listed = shared.listed(&listing, offset, |next, name, line| {
                let entry = match line {
                    Line::Dot(ino) => {
                        Entry { attributes: Attributes::dot(ino), ttl: Duration::ZERO }
                    }
                    Line::Entry { at, .. } => match shared.view.listed(&listing, at)? {
                        Some(entry) => entry,
                        // It has gone since the directory was opened.
                        None => return Ok(false),
                    },
                };
                let (ino, attr) = (entry.attributes.ino, shared.attr(&entry.attributes));
                let full = reply.add(INodeNo(ino), next, name, &entry.ttl, &attr, Generation(0));
                if full && matches!(line, Line::Entry { .. }) {
                    shared.view.forget(ino, 1);
                }
                Ok(full)
            });
            match listed {
                Ok(()) => {
                    reply.ok();
                    listing.look_ahead();
                }
                Err(error) => reply.error(shared.failed(ino, &error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.shared.files.close_directory(fh.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.shared.counts.asked(Asked::Statfs);
        if self.shared.is_writable {
            return self.free_space(ino, reply);
        }
        let space = self.shared.view.space();
        let blocks = |bytes: u64| bytes / BLOCK;
        // Nothing can be written, so nothing is free.
        reply.statfs(
            blocks(space.total_bytes),
            0,
            0,
            space.files,
            0,
            BLOCK as u32,
            255,
            BLOCK as u32,
        );
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.shared.counts.asked(Asked::Getxattr);
        if ino == INodeNo::ROOT && name == CACHE_DIR_XATTR {
            return xattr(self.shared.options.cache_dir.as_os_str().as_bytes(), size, reply);
        }
        let name = name.as_bytes().to_owned();
        self.xattrs(ino, reply, move |all, reply| {
            match all.iter().find(|(known, _)| *known == name) {
                Some((_, value)) => xattr(value, size, reply),
                None => reply.error(Errno::NO_XATTR),
            }
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.shared.counts.asked(Asked::Listxattr);
        self.xattrs(ino, reply, move |all, reply| {
            let names: Vec<u8> =
                all.into_iter().flat_map(|(name, _)| name.into_iter().chain([0])).collect();
            xattr(&names, size, reply);
        });
    }
}

impl Adapter {
    /// A file that is open, or that the kernel uses without having opened it.
    pub(super) fn handle(&self, ino: INodeNo, fh: FileHandle) -> Result<Arc<Handle>, Errno> {
        let handle = match fh.0 {
            0 => self.shared.files.unopened(ino.0, || self.shared.view.open_now(ino.0)),
            fh => Ok(self.shared.files.get(fh)),
        };
        match handle {
            Ok(handle) => handle.ok_or(Errno::EBADF),
            Err(error) => Err(self.shared.failed(ino, &error)),
        }
    }

    /// Does what lists the directory `ino`. That of a tree is in memory, so it is done at once; any other may
    /// wait for the disk, on a thread on which nobody else waits.
    fn where_it_may_wait(&self, ino: INodeNo, work: impl FnOnce(&Arc<Shared>) + Send + 'static) {
        if self.shared.view.is_in_memory(ino.0) {
            return work(&self.shared);
        }
        let shared = self.shared.clone();
        drop(self.runtime.spawn_blocking(move || work(&shared)));
    }

    /// Answers by the extended attributes of `ino`.
    fn xattrs(
        &self,
        ino: INodeNo,
        reply: ReplyXattr,
        answer: impl FnOnce(Vec<(Vec<u8>, Vec<u8>)>, ReplyXattr) + Send + 'static,
    ) {
        match self.shared.view.xattrs_now(ino.0) {
            Ok(Some(all)) => answer(all, reply),
            Ok(None) => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move {
                    match shared.view.xattrs(ino.0).await {
                        Ok(all) => answer(all, reply),
                        Err(error) => reply.error(shared.failed(ino, &error)),
                    }
                });
            }
            Err(error) => reply.error(self.shared.failed(ino, &error)),
        }
    }
}
