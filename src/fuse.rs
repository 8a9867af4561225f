//! The adapter between the kernel and a [`Namespace`]: requests in, replies out, and nothing else. All
//! of `fuser` stays in here.
//!
//! What can be answered without waiting is answered on the thread that got the request, since
//! passing it on costs more than most answers. What has to wait for a registry, or for a file to be
//! hashed, becomes a task that has the reply; so one slow blob delays nobody else. Every such wait
//! has a deadline: the kernel lets nobody interrupt it.

mod counts;
mod errno;
mod files;
mod writing;

use std::{
    ffi::OsStr,
    fmt::Display,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session,
    SessionACL, SessionUnmounter, TimeOrNow, WriteFlags,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{runtime, time::timeout};
use tracing::{Level, Span, field::display};

use counts::{Asked, Counts};
use errno::errno;
use files::Files;

use crate::{
    layer::Kind,
    namespace::{
        Attributes, Entry, Found, Handle, Listing, Namespace, Question, Subject, ViewError,
    },
    util::Metrics,
};

/// Requests of the kernel that may be under way in the background: reading ahead, mostly.
const BACKGROUND: u16 = 64;

/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Block size of `statfs`, in bytes.
const BLOCK: u64 = 4096;

/// What kind of a FUSE file system it is: the list of mounts has `fuse.imgfs`.
pub const SUBTYPE: &str = "imgfs";

/// How a view is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Who is shown as the owner of everything: user and group.
    pub owner: (u32, u32),
    /// Who is shown as the owner of what is inside images, if not those that they say.
    pub inside_owner: (Option<u32>, Option<u32>),
    /// What of the permissions is taken away of files and directories that can be written.
    pub umask: u16,
    /// Whether other users may look at it.
    pub allow_other: bool,
    /// After this time a request that waits for a registry fails.
    pub deadline: Duration,
    /// Let the kernel read local files itself, where it can do that.
    pub passthrough: bool,
    /// What stands as the source of the mount in the list of mounts.
    pub source: String,
    /// Where its cache is, for whoever asks for [`CACHE_DIR_XATTR`].
    pub cache_dir: PathBuf,
    /// Threads that take requests from the kernel, 1 at least. Whatever waits is done elsewhere, so on few
    /// processors one is the fastest.
    pub threads: usize,
    /// Where requests and failures are counted, if they are.
    pub metrics: Option<Metrics>,
    /// Further options, as in `mount -o`.
    pub other: Vec<String>,
}

/// The extended attribute of the root of a mount that says where its cache is. It is not listed, so
/// that no copy has it.
pub const CACHE_DIR_XATTR: &str = "user.imgfs.cache_dir";

/// A mount that serves nobody yet.
pub struct Mount {
    // First, so that nobody waits for it when the session is dropped without having served.
    ended: Receiver<()>,
    session: Session<Adapter>,
    span: Span,
}

/// Ends a mount.
pub struct Unmounter(SessionUnmounter);

impl Unmounter {
    /// Unmounts. `EBUSY` while somebody uses it.
    pub fn unmount(&mut self) -> io::Result<()> {
        self.0.unmount()
    }
}

/// Mounts `view` at the directory `mountpoint`. Waits of requests happen on `runtime`.
///
/// Each failure that a program is told of is an event of `tracing` at the level `WARN`, within a span
/// that names the mount point, with the image and the digest that it is about.
pub fn mount(
    view: Arc<dyn Namespace>,
    mountpoint: &Path,
    options: MountOptions,
    runtime: runtime::Handle,
) -> io::Result<Mount> {
    let mut config = Config::default();
    config.mount_options = vec![
        if view.writing().is_some() { MountOption::RW } else { MountOption::RO },
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName(options.source.clone()),
        // `Subtype` would be for helpers only; the kernel knows it, too.
        MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
    ];
    // What an image says of devices and of set-uid is to be seen, and not to be obeyed unless
    // somebody asks for that.
    let has = |name: &str| options.other.iter().any(|option| option == name);
    config.mount_options.push(if has("dev") { MountOption::Dev } else { MountOption::NoDev });
    config.mount_options.push(if has("suid") { MountOption::Suid } else { MountOption::NoSuid });
    let other = options
        .other
        .iter()
        .filter(|o| !["dev", "suid", "nodev", "nosuid"].contains(&o.as_str()))
        .cloned();
    config.mount_options.extend(other.map(MountOption::CUSTOM));
    if options.allow_other {
        config.acl = SessionACL::All;
    }
    if options.threads > 1 {
        config.n_threads = Some(options.threads);
        config.clone_fd = true;
    }
    let span = tracing::error_span!("mount", mountpoint = %mountpoint.display());
    let counts = Counts::new(&options.metrics.clone().unwrap_or_default());
    let is_writable = view.writing().is_some();
    let (files, of_shared) = (Files::default(), span.clone());
    let shared = Arc::new(Shared { view, files, options, counts, span: of_shared, is_writable });
    let (ends, ended) = mpsc::channel();
    let adapter = Adapter { shared, runtime, ends };
    Ok(Mount { ended, session: Session::new(adapter, mountpoint, &config)?, span })
}

impl Mount {
    /// What ends the mount while [`Mount::serve`] runs.
    pub fn unmounter(&mut self) -> Unmounter {
        Unmounter(self.session.unmount_callable())
    }

    /// Serves the kernel until the mount ends. After that the process should end soon: one of its threads waits
    /// for that.
    pub fn serve(self) -> io::Result<()> {
        let Self { ended, mut session, span } = self;
        span.in_scope(|| tracing::info!("mounted"));
        // Once somebody has unmounted it, fuser 0.18 unmounts once more what is there then, which may be anybody's.
        // It never comes to that: see `Adapter::destroy`.
        let mut unmounter = session.unmount_callable();
        let device = session.as_fd().try_clone_to_owned()?;
        let name = "fuse".to_owned();
        drop(thread::Builder::new().name(name).spawn(move || session.run())?);
        let _ = ended.recv();
        let ended = match is_connected(&device)? {
            false => Ok(()),
            // It would be left without anybody who answers.
            true => unmounter.unmount().and(Err(io::Error::other("the mount has ended early"))),
        };
        span.in_scope(|| tracing::info!("unmounted"));
        ended
    }
}

/// Whether what an open `/dev/fuse` serves is still mounted.
fn is_connected(device: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(device, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default()))?;
    Ok(!polled[0].revents().contains(PollFlags::ERR))
}

/// What replies need, also those that come from tasks.
struct Shared {
    view: Arc<dyn Namespace>,
    files: Files,
    options: MountOptions,
    counts: Counts,
    /// What failures are logged in.
    span: Span,
    /// Whether anything can be written.
    is_writable: bool,
}

struct Adapter {
    shared: Arc<Shared>,
    runtime: runtime::Handle,
    /// Is told when the kernel asks for nothing any more.
    ends: Sender<()>,
}

impl Shared {
    /// What the kernel is told of a failure of the inode `ino`, which is logged.
    fn failed(&self, ino: INodeNo, error: &ViewError) -> Errno {
        self.failed_for(|| self.view.subject(ino.0), error)
    }

    /// What the kernel is told of a failure, which is logged.
    fn failed_for(&self, subject: impl FnOnce() -> Subject, error: &ViewError) -> Errno {
        let errno = errno(error);
        self.counts.failed(errno);
        // What does not exist or cannot is no failure, nor what does not exist any more: the kernel looks again.
        let is_failure = match error {
            ViewError::Refused(refusal, _) => !refusal.is_usual(),
            _ => ![Errno::ENOENT, Errno::ENAMETOOLONG, Errno::ESTALE]
                .iter()
                .any(|usual| usual.code() == errno.code()),
        };
        if is_failure {
            self.log(subject, error);
        }
        errno
    }

    fn log(&self, subject: impl FnOnce() -> Subject, failure: &dyn Display) {
        if tracing::enabled!(Level::WARN) {
            let Subject { image, digest } = subject();
            let (image, digest) = (image.map(display), digest.map(display));
            self.span.in_scope(|| tracing::warn!(image, digest, "{failure}"));
        }
    }

    /// Waits for something, but not for ever.
    async fn in_time<T>(
        &self,
        what: &str,
        subject: impl FnOnce() -> Subject,
        work: impl Future<Output = Result<T, ViewError>>,
    ) -> Result<T, Errno> {
        match timeout(self.options.deadline, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.failed_for(subject, &error)),
            Err(_) => {
                let seconds = self.options.deadline.as_secs();
                self.log(subject, &format_args!("{what}: no answer within {seconds} s"));
                self.counts.failed(Errno::ETIMEDOUT);
                Err(Errno::ETIMEDOUT)
            }
        }
    }

    fn attr(&self, attributes: &Attributes) -> FileAttr {
        let (seconds, nanoseconds) = attributes.mtime;
        let nanoseconds = Duration::from_nanos(nanoseconds.into());
        let mtime = match u64::try_from(seconds) {
            Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + nanoseconds,
            Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanoseconds,
        };
        let kind = file_type(attributes.kind);
        let (own_uid, own_gid) = self.options.owner;
        let (perm, nlink, uid, gid, rdev) = match (&attributes.inside, kind) {
            (Some(inside), _) => {
                let (all_uid, all_gid) = self.options.inside_owner;
                let (uid, gid) = (all_uid.unwrap_or(inside.uid), all_gid.unwrap_or(inside.gid));
                (inside.mode, inside.links, uid, gid, device_number(inside.device))
            }
            (None, FileType::Symlink) => (0o777, 1, own_uid, own_gid, 0),
            (None, kind) => {
                let (most, links) =
                    if kind == FileType::Directory { (0o755, 2) } else { (0o644, 1) };
                let perm = attributes.local.map_or(most, |local| local.shown(most, own_gid));
                let perm = if self.is_writable { self.may_write(perm, kind) } else { perm };
                (perm, links, own_uid, own_gid, 0)
            }
        };
        FileAttr {
            ino: INodeNo(attributes.ino),
            size: attributes.size,
            blocks: attributes.stored_bytes.div_ceil(512),
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: SystemTime::UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }

    /// The permissions of what can be written, of which `perm` are those to read: whoever may read it may write it,
    /// if the umask says so.
    fn may_write(&self, perm: u16, kind: FileType) -> u16 {
        let all = if kind == FileType::Directory { 0o777 } else { 0o666 };
        let read = perm & 0o555;
        (read | (read & 0o444) >> 1) & all & !self.options.umask
    }

    fn entry(&self, reply: ReplyEntry, entry: &Entry) {
        reply.entry(&entry.ttl, &self.attr(&entry.attributes), Generation(0));
    }

    /// That a name is not there, and that the kernel may remember it.
    fn absent(&self, reply: ReplyEntry, ttl: Duration) {
        reply.entry(&ttl, &self.attr(&Attributes::none()), Generation(0));
    }

    fn found(&self, reply: ReplyEntry, found: &Found) {
        match found {
            Found::Entry(entry) => self.entry(reply, entry),
            Found::Absent(ttl) => self.absent(reply, *ttl),
            // `find_out` has found out.
            Found::Ask(_) => reply.error(Errno::EIO),
        }
    }

    async fn find_out(&self, question: Question, reply: ReplyEntry) {
        let _waits = self.counts.waits(Asked::Lookup);
        let found = self.view.find_out(&question);
        let found = match question.ends_by_itself() {
            true => found.await.map_err(|error| self.failed_for(|| question.subject(), &error)),
            false => self.in_time(&question.doing(), || question.subject(), found).await,
        };
        match found {
            Ok(found) => self.found(reply, &found),
            Err(errno) => reply.error(errno),
        }
    }

    fn opened(&self, ino: u64, handle: Handle, reply: ReplyOpen) {
        self.files.open(ino, handle, self.options.passthrough, reply);
    }

    /// Lists entries from `offset` on, as long as `add` takes them.
    fn listed(
        &self,
        listing: &Listing,
        offset: u64,
        mut add: impl FnMut(u64, &OsStr, Line) -> Result<bool, ViewError>,
    ) -> Result<(), ViewError> {
        let dots = [(".", listing.ino), ("..", listing.parent)];
        let dots = dots.map(|(name, ino)| (OsStr::new(name), Line::Dot(ino)));
        // What has been listed before is not looked at again.
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let entries = (skip.saturating_sub(dots.len())..listing.len()).filter_map(|at| {
            let (name, kind) = listing.entry(at)?;
            Some((name, Line::Entry { at, kind }))
        });
        if skip >= dots.len() + listing.len()
            && let Some(damage) = listing.damage()
        {
            return Err(damage);
        }
        for ((name, line), at) in dots.into_iter().skip(skip).chain(entries).zip(offset..) {
            if add(at + 1, name, line)? {
                break;
            }
        }
        Ok(())
    }

    /// A directory that is open, or that the kernel lists without having opened it.
    fn directory(&self, ino: u64, fh: u64) -> Result<Arc<Listing>, Errno> {
        let list = || match self.view.list_now(ino) {
            Ok(listing) => listing.map(Arc::new).ok_or(Errno::EBADF),
            Err(error) => Err(self.failed(INodeNo(ino), &error)),
        };
        if fh == 0 { list() } else { self.files.directory(fh, list) }
    }

    /// Opens a directory; without a listing if it is what it was the last time, when the kernel has
    /// kept that, most likely.
    fn listing(&self, listing: Option<Listing>, reply: ReplyOpen) {
        let mut flags = FopenFlags::FOPEN_CACHE_DIR;
        if listing.as_ref().is_none_or(|listing| listing.unchanged) {
            flags |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        reply.opened(FileHandle(self.files.open_directory(listing)), flags);
    }
}

/// One line of a directory.
enum Line {
    /// The directory with this number, which has no name of its own here.
    Dot(u64),
    /// The entry of the listing.
    Entry { at: usize, kind: Kind },
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File | Kind::Link => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

/// The number of a device as the kernel takes it from a file system: 12 bits of major and 20 of
/// minor number, the latter in two parts.
fn device_number((major, minor): (u16, u32)) -> u32 {
    (minor & 0xff) | u32::from(major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
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
    fn handle(&self, ino: INodeNo, fh: FileHandle) -> Result<Arc<Handle>, Errno> {
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

/// Answers with `content`, or with its length if that is what was asked for.
fn xattr(content: &[u8], size: u32, reply: ReplyXattr) {
    let Ok(length) = u32::try_from(content.len()) else { return reply.error(Errno::E2BIG) };
    match size {
        0 => reply.size(length),
        size if length > size => reply.error(Errno::ERANGE),
        _ => reply.data(content),
    }
}
