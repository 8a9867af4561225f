//! A file that is being written, and what has become of it.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rustix::{
    fs::{FallocateFlags, SeekFrom, fallocate},
    io::Errno,
};
use tokio::{runtime, sync, task};

use super::{
    hashing::{self, Hashing, Prefix},
    place::Place,
    publish::Waiting,
    store::{Store, StoredFile},
    table::Table,
};
use crate::{
    image::{Algorithm, Digest, MAX_MANIFEST_BYTES},
    namespace::{Handle, mtime_of},
    util::{locked, read_part},
};

/// What is copied at a time where the system cannot copy by itself, in bytes.
const STEP: usize = 1 << 20;

/// The largest file of records that is read, in bytes.
const MAX_RECORDS: u64 = 64 << 20;

/// A file that is being written, or has been.
pub(super) struct Pending {
    pub(super) ino: u64,
    store: Arc<Store>,
    table: Weak<Table>,
    state: Mutex<State>,
    /// Held by all who change the content, and alone by whoever judges and publishes it: what has been hashed is what
    /// gets its name.
    changing: RwLock<()>,
    /// Held by whoever makes a file of its own of what the content is based on.
    copying: Mutex<()>,
    hashing: Mutex<Hashing>,
    prefix: Mutex<Prefix>,
    /// Held by whoever publishes it, or takes its name from it.
    pub(super) publishing: Arc<sync::Mutex<()>>,
}

/// What is known of it.
pub(super) struct State {
    /// Its path below the root; `None` if it has no name any more.
    pub path: Option<Box<str>>,
    /// The path that it had when its content was refused: it gets that again if it is written to further.
    pub refused_as: Option<Box<str>>,
    /// What it is written as.
    pub place: Place,
    content: Content,
    /// Whether something published has the same name, and is to be replaced.
    pub replaces: bool,
    /// How often it is open.
    pub opens: usize,
    /// How often it is open for writing.
    pub writers: usize,
    /// How many of these have not been closed since they wrote last. The kernel says that a file has been let go only
    /// some time after close(2).
    pub active: usize,
    /// The process that has opened it for writing last; 0 if nobody knows.
    pub opener: u32,
    /// Whether its content has ever been written.
    pub is_written: bool,
    /// Whether that has changed since it was judged last.
    pub is_dirty: bool,
    /// How often a change has been begun.
    pub changes: u64,
    /// The time that somebody has set.
    pub mtime: Option<(i64, u32)>,
    /// How far it has come.
    pub stage: Stage,
}

impl State {
    /// Whether more is to come.
    pub(super) fn is_being_written(&self) -> bool {
        self.active > 0 || self.writers > 0 && self.is_dirty
    }
}

/// How far a file has come.
pub(super) enum Stage {
    /// It is being written.
    Writing,
    /// It is a whole manifest that waits for what it names.
    Waiting(Arc<Waiting>),
    /// It has been published.
    Published,
    /// Its content was wrong.
    Rejected,
}

/// Where the content of a file is.
enum Content {
    File(Arc<File>, StoredFile),
    /// As that of something published, of this size and time, as long as nothing has been changed.
    Base(Arc<Handle>, u64, (i64, u32)),
    /// Nobody needs it but for its size.
    Size(u64, (i64, u32)),
}

/// What a file looks like.
pub(super) struct Look {
    pub size: u64,
    pub stored_bytes: u64,
    pub mtime: (i64, u32),
}

impl Pending {
    /// An empty file.
    pub(super) fn create(
        ino: u64,
        store: &Arc<Store>,
        table: &Arc<Table>,
        path: &str,
        place: Place,
    ) -> io::Result<Arc<Self>> {
        let content = match place {
            Place::Foreign => Content::Size(0, now()),
            _ => {
                let (file, stored) = store.create()?;
                Content::File(Arc::new(file), stored)
            }
        };
        Ok(Self::with(ino, store, table, path, place, content))
    }

    /// A file with the content of `base`, which has this size and time, until that is changed.
    pub(super) fn of_base(
        ino: u64,
        store: &Arc<Store>,
        table: &Arc<Table>,
        path: &str,
        place: Place,
        base: (Handle, u64, (i64, u32)),
    ) -> Arc<Self> {
        let content = Content::Base(Arc::new(base.0), base.1, base.2);
        Self::with(ino, store, table, path, place, content)
    }

    fn with(
        ino: u64,
        store: &Arc<Store>,
        table: &Arc<Table>,
        path: &str,
        place: Place,
        content: Content,
    ) -> Arc<Self> {
        let state = State {
            path: Some(path.into()),
            refused_as: None,
            place,
            content,
            replaces: false,
            opens: 0,
            writers: 0,
            active: 0,
            opener: 0,
            is_written: false,
            is_dirty: false,
            changes: 0,
            mtime: None,
            stage: Stage::Writing,
        };
        Arc::new(Self {
            ino,
            store: store.clone(),
            table: Arc::downgrade(table),
            state: Mutex::new(state),
            changing: RwLock::default(),
            copying: Mutex::default(),
            hashing: Mutex::default(),
            prefix: Mutex::new(Prefix::new(Algorithm::Sha256)),
            publishing: Arc::default(),
        })
    }

    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        locked(&self.state)
    }

    pub(super) fn look(&self) -> Look {
        let state = self.state();
        let (size, stored_bytes, mtime) = match &state.content {
            Content::File(file, _) => match file.metadata() {
                Ok(meta) => (meta.len(), meta.blocks() * 512, mtime_of(&meta)),
                Err(_) => (0, 0, (0, 0)),
            },
            Content::Base(_, size, mtime) => (*size, *size, *mtime),
            Content::Size(size, mtime) => (*size, 0, *mtime),
        };
        Look { size, stored_bytes, mtime: state.mtime.unwrap_or(mtime) }
    }

    pub(super) fn size(&self) -> u64 {
        self.look().size
    }

    /// Whether it has a file of its own, which is empty.
    pub(super) fn is_empty_file(&self, state: &State) -> bool {
        match &state.content {
            Content::File(file, _) => file.metadata().is_ok_and(|meta| meta.len() == 0),
            Content::Base(..) | Content::Size(..) => false,
        }
    }

    // --- reading ---

    /// Reads up to `length` bytes. It may wait.
    pub(super) fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let source = match &self.state().content {
            Content::File(file, _) => Ok(file.clone()),
            Content::Base(handle, ..) => Err(handle.clone()),
            Content::Size(..) => return Err(Errno::BUSY.into()),
        };
        let read = |file: &File| read_part(file, offset, length);
        let handle = match source {
            Ok(file) => return read(&file),
            Err(handle) => handle,
        };
        match (handle.read_now(offset, length), handle.local_file()) {
            (Some(read), _) => read.map_err(io::Error::other),
            // This is a thread that may wait.
            (None, Some(file)) => read(file),
            (None, None) => {
                let read = handle.read(offset, length);
                runtime::Handle::current().block_on(read).map_err(io::Error::other)
            }
        }
    }

    /// All of it, if it has `limit` bytes at most.
    pub(super) fn read_all(&self, limit: u64) -> io::Result<Bytes> {
        let size = self.size();
        if size > limit {
            return Err(Errno::FBIG.into());
        }
        // It fits: it is bounded.
        self.read_at(0, usize::try_from(size).unwrap_or(0))
    }

    /// The records of another images_dir, of which only the size is kept from now on. `None` if it was before.
    pub(super) fn take_records(&self) -> io::Result<Option<Bytes>> {
        if matches!(self.state().content, Content::Size(..)) {
            return Ok(None);
        }
        let records = self.read_all(MAX_RECORDS)?;
        let look = self.look();
        self.state().content = Content::Size(look.size, look.mtime);
        Ok(Some(records))
    }

    fn seek(&self, from: impl FnOnce(u64) -> SeekFrom, offset: u64) -> io::Result<Option<u64>> {
        let file = match &self.state().content {
            Content::File(file, _) => Some(file.clone()),
            _ => None,
        };
        if offset >= self.size() {
            return Ok(None);
        }
        let Some(file) = file else { return Ok(Some(offset)) };
        // Nobody uses the position of the file.
        match rustix::fs::seek(&file, from(offset)) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.seek(SeekFrom::Data, offset)
    }

    pub(super) fn next_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        match &self.state().content {
            Content::File(..) => {}
            Content::Base(_, size, _) | Content::Size(size, _) => {
                return Ok((offset < *size).then_some(*size));
            }
        }
        self.seek(SeekFrom::Hole, offset)
    }

    // --- writing ---

    /// The most bytes that it can have.
    fn limit(&self) -> u64 {
        match self.state().place {
            Place::Manifest(_) => MAX_MANIFEST_BYTES as u64,
            Place::Records => MAX_RECORDS,
            Place::Blob(_) | Place::Dot | Place::Foreign => u64::MAX,
        }
    }

    /// Notes that something is going to be changed. What has been published is left as it is: this becomes a file of
    /// its own again, which replaces it.
    fn begin_change(self: &Arc<Self>) {
        let mut state = self.state();
        state.is_written = true;
        state.is_dirty = true;
        state.changes += 1;
        match state.stage {
            Stage::Writing => {}
            // Somebody has it open and is not done: it was judged too early.
            Stage::Rejected => {
                let path = state.refused_as.clone();
                drop(state);
                if let (Some(table), Some(path)) = (self.table.upgrade(), path) {
                    table.name_again(&path, self);
                }
            }
            Stage::Waiting(_) => state.stage = Stage::Writing,
            Stage::Published => {
                state.stage = Stage::Writing;
                state.replaces = true;
                let path = state.path.clone();
                drop(state);
                if let (Some(table), Some(path)) = (self.table.upgrade(), path) {
                    table.name(&path, self);
                }
            }
        }
    }

    /// To be held while the content is changed.
    fn changing(&self) -> RwLockReadGuard<'_, ()> {
        self.changing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held while the content must not change.
    pub(super) fn unchanging(&self) -> RwLockWriteGuard<'_, ()> {
        self.changing.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file in which its content is, if that has been changed.
    pub(super) fn own_file(&self) -> Option<Arc<File>> {
        match &self.state().content {
            Content::File(file, _) => Some(file.clone()),
            _ => None,
        }
    }

    /// The file to write to; what the content is based on is copied into it first, up to `keep` bytes.
    fn file(&self, keep: u64) -> io::Result<Arc<File>> {
        let _copying = locked(&self.copying);
        let (base, size) = match &self.state().content {
            Content::File(file, _) => return Ok(file.clone()),
            Content::Size(..) => return Err(Errno::OPNOTSUPP.into()),
            Content::Base(handle, size, _) => (handle.clone(), *size),
        };
        let (file, stored) = self.store.create()?;
        let end = keep.min(size);
        let mut copied = 0;
        if let Some(source) = base.local_file() {
            copied = copy_range(source, 0, &file, 0, end)?;
        }
        while copied < end {
            let length = usize::try_from(end - copied).unwrap_or(STEP).min(STEP);
            let bytes = self.read_at(copied, length)?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all_at(&bytes, copied)?;
            copied += bytes.len() as u64;
        }
        let file = Arc::new(file);
        hashing::start_over(&self.hashing, &self.prefix, || {
            self.state().content = Content::File(file.clone(), stored);
        });
        locked(&self.hashing).written(0, end, u64::MAX);
        Ok(file)
    }

    pub(super) fn write(self: &Arc<Self>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        let end = offset.checked_add(length).filter(|end| *end <= self.limit());
        let end = end.ok_or(Errno::FBIG)?;
        let _changing = self.changing();
        self.begin_change();
        if let Content::Size(size, time) = &mut self.state().content {
            *size = end.max(*size);
            *time = now();
            return Ok(());
        }
        let file = self.file(u64::MAX)?;
        if let Err(error) = file.write_all_at(bytes, offset) {
            // Some of it may have been written.
            locked(&self.hashing).changed(offset);
            return Err(error);
        }
        let hashed = hashing::hashed(&self.prefix);
        if locked(&self.hashing).written(offset, length, hashed) {
            let (this, restarts) = (self.clone(), hashing::restarts(&self.prefix));
            let follow = move || hashing::follow(&file, restarts, &this.hashing, &this.prefix);
            task::spawn_blocking(follow);
        }
        Ok(())
    }

    pub(super) fn set_len(self: &Arc<Self>, size: u64) -> io::Result<()> {
        if size > self.limit() {
            return Err(Errno::FBIG.into());
        }
        let _changing = self.changing();
        self.begin_change();
        if let Content::Size(old, time) = &mut self.state().content {
            *old = size;
            *time = now();
            return Ok(());
        }
        let file = self.file(size)?;
        if size == 0 {
            return hashing::start_over(&self.hashing, &self.prefix, || file.set_len(0));
        }
        let set = file.set_len(size);
        locked(&self.hashing).changed(size);
        set
    }

    pub(super) fn allocate(
        self: &Arc<Self>,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let end = offset.checked_add(length).filter(|end| *end <= self.limit());
        end.ok_or(Errno::FBIG)?;
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        let _changing = self.changing();
        self.begin_change();
        let file = self.file(u64::MAX)?;
        let allocated = fallocate(&*file, flags, offset, length);
        if !flags.difference(FallocateFlags::KEEP_SIZE).is_empty() {
            locked(&self.hashing).changed(offset);
        }
        Ok(allocated?)
    }

    /// Copies from another file, as far as the system does that.
    pub(super) fn copy_from(
        self: &Arc<Self>,
        from: &File,
        offset_in: u64,
        offset: u64,
        length: u64,
    ) -> io::Result<u64> {
        let end = offset.checked_add(length).filter(|end| *end <= self.limit());
        end.ok_or(Errno::FBIG)?;
        let _changing = self.changing();
        self.begin_change();
        let file = self.file(u64::MAX)?;
        let (mut offset_in, mut offset_out) = (offset_in, offset);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        let copied = rustix::fs::copy_file_range(
            from,
            Some(&mut offset_in),
            &*file,
            Some(&mut offset_out),
            length,
        );
        let mut hashing = locked(&self.hashing);
        match copied {
            Ok(copied) => drop(hashing.written(offset, copied as u64, u64::MAX)),
            Err(_) => hashing.changed(offset),
        }
        Ok(copied? as u64)
    }

    /// Flushes it, if it has not been published. Whether that is so.
    pub(super) fn sync(&self) -> io::Result<bool> {
        match self.own_file() {
            Some(file) => file.sync_all().map(|()| true),
            None => Ok(false),
        }
    }

    // --- judging and publishing ---

    /// The digest of its content. It may read all of it.
    pub(super) fn digest(&self, algorithm: Algorithm) -> io::Result<Digest> {
        let file = match self.own_file() {
            Some(file) => file,
            // It is what has been published under another name, most likely.
            None => self.file(u64::MAX)?,
        };
        let size = file.metadata()?.len();
        hashing::digest(&file, size, algorithm, &self.hashing, &self.prefix)
    }

    /// What is read of it by whoever opens it now that it has been published; it stays what it is.
    pub(super) fn open_published(&self) -> io::Result<Option<Handle>> {
        let base = match &self.state().content {
            Content::Base(handle, ..) => handle.clone(),
            Content::File(..) | Content::Size(..) => return Ok(None),
        };
        Ok(match &*base {
            Handle::File(file) => Some(Handle::File(file.try_clone()?)),
            Handle::Content(bytes) => Some(Handle::Content(bytes.clone())),
            _ => None,
        })
    }

    /// It has been removed: whoever has it open keeps it, and nothing comes of it.
    pub(super) fn remove(&self) {
        let mut state = self.state();
        state.path = None;
        state.place = Place::Dot;
        if matches!(state.stage, Stage::Waiting(_)) {
            state.stage = Stage::Rejected;
        }
        drop(state);
        self.discard();
    }

    /// Gives its space back, if nobody can reach it any more.
    pub(super) fn discard(&self) {
        let mut state = self.state();
        let is_reachable = state.opens > 0 || state.path.is_some();
        if !is_reachable && matches!(state.content, Content::File(..)) {
            state.content = Content::Size(0, (0, 0));
        }
    }

    /// Its file, to be published. Nothing is to be written to it any more.
    pub(super) fn stored(&self) -> io::Result<(Arc<File>, PathBuf)> {
        let file = self.file(u64::MAX)?;
        match &self.state().content {
            Content::File(_, stored) => Ok((file, stored.path().clone())),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// It has been published with this content, and its own file is not needed any more. It has got the time that was
    /// `set`, or else the `usual` one; a time that has been set since is returned.
    pub(super) fn published(
        &self,
        content: Handle,
        set: Option<(i64, u32)>,
        usual: (i64, u32),
    ) -> Option<(i64, u32)> {
        let size = content.size().unwrap_or(0);
        let mut state = self.state();
        let later = state.mtime.filter(|mtime| Some(*mtime) != set);
        let mtime = later.or(set).unwrap_or(usual);
        state.content = Content::Base(Arc::new(content), size, mtime);
        state.stage = Stage::Published;
        state.mtime = None;
        state.is_dirty = false;
        state.replaces = false;
        later
    }
}

fn now() -> (i64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

/// Copies between files, as far as the system does that by itself.
fn copy_range(
    from: &File,
    mut offset_in: u64,
    to: &File,
    mut offset_out: u64,
    length: u64,
) -> io::Result<u64> {
    let mut copied = 0;
    while copied < length {
        let step = usize::try_from(length - copied).unwrap_or(usize::MAX).min(1 << 30);
        let (source, target) = (Some(&mut offset_in), Some(&mut offset_out));
        match rustix::fs::copy_file_range(from, source, to, target, step) {
            Ok(0) => break,
            Ok(step) => copied += step as u64,
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(copied)
}
