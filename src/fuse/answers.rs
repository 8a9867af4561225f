//! What the kernel is told: attributes, names, lists of directories, and failures, which are logged as well.

use std::{
    ffi::OsStr,
    fmt::Display,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyEntry, ReplyOpen,
    ReplyXattr,
};
use tokio::{sync::Semaphore, time::timeout};
use tracing::{Level, Span, field::display};

use super::{
    BLOCK, MountOptions,
    counts::{Asked, Counts},
    errno::errno,
    files::Files,
};
use crate::{
    layer::Kind,
    namespace::{
        Attributes, Entry, Found, Handle, Listing, Namespace, Question, Subject, ViewError,
    },
};

/// What replies need, also those that come from tasks.
pub(super) struct Shared {
    pub(super) view: Arc<dyn Namespace>,
    pub(super) files: Files,
    pub(super) options: MountOptions,
    pub(super) counts: Counts,
    /// What failures are logged in.
    pub(super) span: Span,
    /// Whether anything can be written.
    pub(super) is_writable: bool,
    /// How many of the threads that take requests may write to the disk: one of them never waits for it.
    pub(super) writers: Semaphore,
    /// For what waits for the disk elsewhere.
    pub(super) waiting: Arc<Semaphore>,
}

impl Shared {
    /// What the kernel is told of a failure of the inode `ino`, which is logged.
    pub(super) fn failed(&self, ino: INodeNo, error: &ViewError) -> Errno {
        self.failed_for(|| self.view.subject(ino.0), error)
    }

    /// What the kernel is told of a failure, which is logged.
    pub(super) fn failed_for(&self, subject: impl FnOnce() -> Subject, error: &ViewError) -> Errno {
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

    pub(super) fn log(&self, subject: impl FnOnce() -> Subject, failure: &dyn Display) {
        if tracing::enabled!(Level::WARN) {
            let Subject { image, digest } = subject();
            let (image, digest) = (image.map(display), digest.map(display));
            self.span.in_scope(|| tracing::warn!(image, digest, "{failure}"));
        }
    }

    /// Waits for something, but not for ever.
    pub(super) async fn in_time<T>(
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

    pub(super) fn attr(&self, attributes: &Attributes) -> FileAttr {
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
    pub(super) fn may_write(&self, perm: u16, kind: FileType) -> u16 {
        let all = if kind == FileType::Directory { 0o777 } else { 0o666 };
        let read = perm & 0o555;
        (read | (read & 0o444) >> 1) & all & !self.options.umask
    }

    pub(super) fn entry(&self, reply: ReplyEntry, entry: &Entry) {
        reply.entry(&entry.ttl, &self.attr(&entry.attributes), Generation(0));
    }

    /// That a name is not there, and that the kernel may remember it.
    pub(super) fn absent(&self, reply: ReplyEntry, ttl: Duration) {
        reply.entry(&ttl, &self.attr(&Attributes::none()), Generation(0));
    }

    pub(super) fn found(&self, reply: ReplyEntry, found: &Found) {
        match found {
            Found::Entry(entry) => self.entry(reply, entry),
            Found::Absent(ttl) => self.absent(reply, *ttl),
            // `find_out` has found out.
            Found::Ask(_) => reply.error(Errno::EIO),
        }
    }

    pub(super) async fn find_out(&self, question: Question, reply: ReplyEntry) {
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

    pub(super) fn opened(&self, ino: u64, handle: Handle, reply: ReplyOpen) {
        self.files.open(ino, handle, self.options.passthrough, reply);
    }

    /// Lists entries from `offset` on, as long as `add` takes them.
    pub(super) fn listed(
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
    pub(super) fn directory(&self, ino: u64, fh: u64) -> Result<Arc<Listing>, Errno> {
        let list = || match self.view.list_now(ino) {
            Ok(listing) => listing.map(Arc::new).ok_or(Errno::EBADF),
            Err(error) => Err(self.failed(INodeNo(ino), &error)),
        };
        if fh == 0 { list() } else { self.files.directory(fh, list) }
    }

    /// Opens a directory; without a listing if it is what it was the last time, when the kernel has
    /// kept that, most likely.
    pub(super) fn listing(&self, listing: Option<Listing>, reply: ReplyOpen) {
        let mut flags = FopenFlags::FOPEN_CACHE_DIR;
        if listing.as_ref().is_none_or(|listing| listing.unchanged) {
            flags |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        reply.opened(FileHandle(self.files.open_directory(listing)), flags);
    }
}

/// One line of a directory.
pub(super) enum Line {
    /// The directory with this number, which has no name of its own here.
    Dot(u64),
    /// The entry of the listing.
    Entry { at: usize, kind: Kind },
}

pub(super) fn file_type(kind: Kind) -> FileType {
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

/// Answers with `content`, or with its length if that is what was asked for.
pub(super) fn xattr(content: &[u8], size: u32, reply: ReplyXattr) {
    let Ok(length) = u32::try_from(content.len()) else { return reply.error(Errno::E2BIG) };
    match size {
        0 => reply.size(length),
        size if length > size => reply.error(Errno::ERANGE),
        _ => reply.data(content),
    }
}
