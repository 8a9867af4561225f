//! What is open: files and directories by their handles, and how the kernel reads each inode.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use fuser::{BackingId, Errno, FileHandle, FopenFlags, ReplyOpen};
use lru::LruCache;

use crate::namespace::{Handle, Listing, ViewError};
use crate::util::locked;

/// Files that are kept open because the kernel reads them without opening them.
const MAX_UNOPENED: NonZeroUsize = NonZeroUsize::new(128).unwrap();

/// An open file.
struct OpenFile {
    handle: Arc<Handle>,
    /// Kept as long as the kernel reads the file by itself.
    _backing: Option<Arc<BackingId>>,
}

/// How an inode is read as long as it is open anywhere: the kernel takes only one way at a time.
struct Mode {
    opens: usize,
    /// Of an inode that the kernel reads by itself.
    backing: Option<Weak<BackingId>>,
}

/// What is open.
pub(super) struct Files {
    files: Mutex<HashMap<u64, OpenFile>>,
    directories: Mutex<HashMap<u64, Option<Arc<Listing>>>>,
    modes: Mutex<HashMap<u64, Mode>>,
    /// Inodes of which the kernel may have kept what has not been verified.
    doubtful: Mutex<HashSet<u64>>,
    /// Files that the kernel reads without having opened them, by inode.
    unopened: Mutex<LruCache<u64, Arc<Handle>>>,
    next: AtomicU64,
    passthrough: AtomicBool,
}

impl Files {
    pub(super) fn new() -> Self {
        Self {
            files: Mutex::default(),
            directories: Mutex::default(),
            modes: Mutex::default(),
            doubtful: Mutex::default(),
            unopened: Mutex::new(LruCache::new(MAX_UNOPENED)),
            next: AtomicU64::new(0),
            passthrough: AtomicBool::new(false),
        }
    }

    /// Whether the kernel can read files by itself.
    pub(super) fn set_passthrough(&self, can: bool) {
        self.passthrough.store(can, Ordering::Relaxed);
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Opens a file, and tells the kernel.
    pub(super) fn open(&self, ino: u64, handle: Handle, passthrough: bool, reply: ReplyOpen) {
        let fh = self.next();
        // Held until the kernel has been told, so that two opens agree on the way.
        let mut modes = locked(&self.modes);
        let mode = modes.entry(ino).or_insert(Mode { opens: 0, backing: None });
        let may_pass = passthrough && (mode.opens == 0 || mode.backing.is_some());
        let known = mode.backing.as_ref().and_then(Weak::upgrade);
        let backing = match handle.local_file().filter(|_| may_pass) {
            _ if known.is_some() => known,
            Some(file) if self.passthrough.load(Ordering::Relaxed) => {
                match reply.open_backing(file) {
                    Ok(backing) => Some(Arc::new(backing)),
                    Err(_) => {
                        // Whoever lacks the privilege lacks it for all files.
                        self.passthrough.store(false, Ordering::Relaxed);
                        None
                    }
                }
            }
            _ => None,
        };
        let is_certain = handle.is_certain();
        let keep = self.may_keep(ino, is_certain, mode.opens > 0);
        mode.opens += 1;
        mode.backing = backing.as_ref().map(Arc::downgrade);
        let file = OpenFile { handle: Arc::new(handle), _backing: backing.clone() };
        locked(&self.files).insert(fh, file);
        match backing {
            Some(backing) => {
                reply.opened_passthrough(FileHandle(fh), FopenFlags::empty(), &backing);
            }
            // What has not been verified comes from us each time, so that whoever has begun to
            // read what turns out to be wrong gets no right end from the kernel's memory. It is
            // one copy less, too.
            None if !is_certain => reply.opened(FileHandle(fh), FopenFlags::FOPEN_DIRECT_IO),
            // An inode never changes its content: that would be another inode.
            None if keep => reply.opened(FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE),
            None => reply.opened(FileHandle(fh), FopenFlags::empty()),
        }
    }

    /// Opens a file to be written to, of which the kernel is to keep nothing. Its handle.
    pub(super) fn open_to_write(&self, ino: u64, handle: Handle) -> u64 {
        let fh = self.next();
        locked(&self.modes).entry(ino).or_insert(Mode { opens: 0, backing: None }).opens += 1;
        locked(&self.doubtful).insert(ino);
        let file = OpenFile { handle: Arc::new(handle), _backing: None };
        locked(&self.files).insert(fh, file);
        fh
    }

    /// Whether what the kernel has of an inode is right. What came before the digest was known
    /// need not be, and is asked for once more: that costs no request.
    fn may_keep(&self, ino: u64, is_certain: bool, is_open: bool) -> bool {
        let mut doubtful = locked(&self.doubtful);
        if !is_certain {
            doubtful.insert(ino);
            return false;
        }
        // As long as it is open elsewhere, doubtful bytes may still come.
        if is_open { !doubtful.contains(&ino) } else { !doubtful.remove(&ino) }
    }

    pub(super) fn get(&self, fh: u64) -> Option<Arc<Handle>> {
        locked(&self.files).get(&fh).map(|file| file.handle.clone())
    }

    /// A file that the kernel reads without having opened it.
    pub(super) fn unopened(
        &self,
        ino: u64,
        open: impl FnOnce() -> Result<Option<Handle>, ViewError>,
    ) -> Result<Option<Arc<Handle>>, ViewError> {
        if let Some(handle) = locked(&self.unopened).get(&ino) {
            return Ok(Some(handle.clone()));
        }
        let Some(handle) = open()? else { return Ok(None) };
        let handle = Arc::new(handle);
        // Nobody says when it is not needed any more. One at a time goes, so that what is fetched ahead of a
        // program that reads many files has somebody who reads it all the while.
        let oldest = locked(&self.unopened).push(ino, handle.clone());
        drop(oldest);
        Ok(Some(handle))
    }

    pub(super) fn close(&self, ino: u64, fh: u64) {
        let mut modes = locked(&self.modes);
        if let Some(mode) = modes.get_mut(&ino) {
            mode.opens = mode.opens.saturating_sub(1);
            if mode.opens == 0 {
                modes.remove(&ino);
            }
        }
        drop(modes);
        let closed = locked(&self.files).remove(&fh);
        drop(closed);
    }

    /// Opens a directory; `None` if it is to be listed when the kernel asks what is in it.
    pub(super) fn open_directory(&self, listing: Option<Listing>) -> u64 {
        let fh = self.next();
        locked(&self.directories).insert(fh, listing.map(Arc::new));
        fh
    }

    /// What is in an open directory, listed now if it has not been.
    pub(super) fn directory(
        &self,
        fh: u64,
        list: impl FnOnce() -> Result<Arc<Listing>, Errno>,
    ) -> Result<Arc<Listing>, Errno> {
        let open = locked(&self.directories).get(&fh).cloned();
        match open.ok_or(Errno::EBADF)? {
            Some(listing) => Ok(listing),
            None => {
                let listing = list()?;
                if let Some(open) = locked(&self.directories).get_mut(&fh) {
                    *open = Some(listing.clone());
                }
                Ok(listing)
            }
        }
    }

    pub(super) fn close_directory(&self, fh: u64) {
        locked(&self.directories).remove(&fh);
    }
}
