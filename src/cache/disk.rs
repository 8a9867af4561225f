//! Writing blocks, sealing whole blobs, and dropping what is wrong.
//!
//! Whoever writes has room first: [`Core::reserve`] counts what is about to be written, and evicts
//! until it fits. A block is written, then its checksum. What the disk refuses stays in memory
//! for those who wait for it, and for a while nothing is written.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::fs::FallocateFlags;
use sha2::{Digest as _, Sha256};

use super::{
    Core, SIDE,
    readers::Failed,
    state::{Blob, Key, State, WHOLE},
    stored::{Files, Place, disk_bytes},
    tasks::point,
};
use crate::{
    backend::{
        ConfinedDir, Error, Kind,
        images_dir::cached::{self, BLOCK_BYTES},
    },
    util::OutOfMemory,
};

/// After the disk has refused, nothing is written for so long.
const REFUSAL: Duration = Duration::from_secs(30);

/// What has been renamed to be removed once the lock is released.
#[must_use]
#[derive(Default)]
pub(super) struct Gone {
    pub paths: Vec<PathBuf>,
    /// Bytes of the disk that are free then.
    pub charge: u64,
}

impl Core {
    /// Writes a block that has come, and lets those who wait for that know.
    pub(super) fn store(self: &Arc<Self>, key: &Key, id: u64, block: u32, bytes: &[u8]) {
        let stored = self.write(key, id, block, bytes);
        let sha = stored.is_none().then(|| Sha256::digest(bytes).into());
        let mut state = self.lock();
        let state = &mut *state;
        let Some(blob) = state.blobs.get_mut(key).filter(|blob| blob.id == id) else {
            // What was written is in a file without a name.
            state.used -= stored.map_or(0, |(_, charge)| charge);
            return;
        };
        blob.disk.writing.remove(&block);
        match stored {
            Some((sum, charge)) => {
                blob.disk.put_sum(block, sum, true);
                blob.disk.charge += charge;
                let extent = blob.disk.extent_of(block).0;
                state.touch(key, extent);
            }
            None if blob.is_remembered(block) => {
                if let Some(sha) = sha {
                    state.known_bytes += blob.verification.prefix.known.insert(block, sha);
                }
            }
            None => {}
        }
        state.memory.release(id, block);
        self.seal_if_whole(state, key);
        self.settle(state, key);
        self.bound_known(state);
    }

    /// Writes those of `blocks` that the disk had refused, if they are still in memory.
    pub(super) fn store_late(self: &Arc<Self>, state: &mut State, key: &Key, blocks: Range<u32>) {
        let is_refused = state.is_refused();
        let State { blobs, memory, .. } = state;
        let Some(blob) = blobs.get_mut(key).filter(|_| !is_refused) else { return };
        for block in blocks {
            let may_be = !blob.disk.is_kept(block) && !blob.disk.is_leaving(block);
            if let Some(bytes) = memory.get(blob.id, block).filter(|_| may_be).cloned() {
                blob.disk.writing.insert(block);
                memory.hold(blob.id, block, bytes.clone());
                let (core, key, id) = (self.clone(), *key, blob.id);
                drop(self.tasks.spawn_blocking(move || core.store(&key, id, block, &bytes)));
            }
        }
    }

    /// Writes a block and its checksum; what that is, and how many bytes of the disk it took.
    fn write(&self, key: &Key, id: u64, block: u32, bytes: &[u8]) -> Option<(u32, u64)> {
        let files = self.create_parts(key, id)?;
        let is_charged = self.lock().blob(key, id)?.disk.is_charged(block);
        let charge = if is_charged { 0 } else { disk_bytes(bytes.len() as u64) };
        if !self.reserve(charge) {
            return None;
        }
        let sum = cached::checksum(bytes);
        let start = u64::from(block) * BLOCK_BYTES;
        point();
        let written = self.may_write().and_then(|()| {
            files.data.write_all_at(bytes, start)?;
            files.map.write_all_at(&sum.to_le_bytes(), cached::sum_offset(block.into()))
        });
        match written {
            Ok(()) => Some((sum, charge)),
            Err(error) => {
                let path = key.content.part_path(&self.dir);
                self.refused(&path, "writing", error);
                if charge > 0 {
                    // The part that was written; if not now, it goes when the cache is opened.
                    let _ = punch(&files.data, start, BLOCK_BYTES);
                }
                self.lock().used -= charge;
                None
            }
        }
    }

    /// Makes room for so many bytes; `false` if there can be none.
    fn reserve(&self, bytes: u64) -> bool {
        loop {
            let victim = {
                let mut state = self.lock();
                if state.used + bytes <= self.room_bytes {
                    state.used += bytes;
                    return true;
                }
                self.choose_victim(&mut state)
            };
            match victim {
                Some(victim) => self.evict(victim),
                None => return false,
            }
        }
    }

    /// The files of a blob in parts, created if need be. `None` if it is not to be on the disk.
    fn create_parts(&self, key: &Key, id: u64) -> Option<Arc<Files>> {
        {
            let mut state = self.lock();
            let blob = state.blob(key, id)?;
            match blob.disk.place {
                Place::New => {}
                Place::Parts(_) => return self.open_parts(&mut state, key),
                Place::Nowhere | Place::Whole(_) | Place::OtherSize(_) => return None,
            }
        }
        // A map that takes a good part of the cache is that of a lie.
        let charge = disk_bytes(cached::map_bytes(key.size));
        if charge > self.room_bytes / 4 || !self.reserve(charge) {
            return None;
        }
        let mut state = self.lock();
        let created = match state.blob(key, id).map(|blob| &blob.disk.place) {
            Some(Place::New) => self.may_write().and_then(|()| create(&self.root, &self.dir, key)),
            // Another block was faster.
            Some(_) => {
                state.used -= charge;
                return self.open_parts(&mut state, key);
            }
            None => {
                state.used -= charge;
                return None;
            }
        };
        match created {
            Ok(files) => {
                let files = Arc::new(files);
                if let Some(blob) = state.blob(key, id) {
                    blob.disk.place = Place::Parts(Some(files.clone()));
                    blob.disk.charge += charge;
                }
                Some(files)
            }
            Err(error) => {
                state.used -= charge;
                drop(state);
                for path in paths(&self.dir, key) {
                    // Nothing of it is used, whether it is there or not.
                    let _ = self.root.remove_file(&path);
                }
                let path = key.content.part_path(&self.dir);
                self.refused(&path, "creating", error);
                None
            }
        }
    }

    /// Whether a blob is on the disk and its files have to be opened before it can be read.
    pub(super) fn is_closed(&self, key: &Key) -> bool {
        let state = self.lock();
        let place = state.blobs.get(key).map(|blob| &blob.disk.place);
        matches!(place, Some(Place::Parts(None) | Place::Whole(None)))
    }

    /// Opens the files of a blob, if they are not open. That may wait for the disk, while nobody else has to.
    pub(super) fn open_files(&self, key: &Key) {
        let (id, is_whole) = {
            let mut state = self.lock();
            match state.blobs.get_mut(key).map(|blob| (blob.id, &blob.disk.place)) {
                Some((id, Place::Parts(None))) => (id, false),
                Some((id, Place::Whole(None))) => (id, true),
                _ => return,
            }
        };
        point();
        let parts = if is_whole { None } else { self.parts_of(key).ok() };
        let whole = if is_whole { self.whole_of(key) } else { None };
        let mut state = self.lock();
        let Some(blob) = state.blob(key, id) else { return };
        // If they cannot be opened, whoever reads finds that out.
        match &mut blob.disk.place {
            Place::Parts(files @ None) => *files = parts.map(Arc::new),
            Place::Whole(file @ None) => *file = whole.map(Arc::new),
            _ => {}
        }
    }

    /// Opens the files of a blob in parts.
    fn parts_of(&self, key: &Key) -> io::Result<Files> {
        let open = |path: PathBuf| self.root.open_to_write(&path);
        let (data, meta) = open(key.content.part_path(&self.dir))?;
        match meta.len() == key.size {
            true => Ok(Files { data, map: open(key.content.map_path(&self.dir))?.0 }),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Opens the file of a whole blob, if it is one.
    fn whole_of(&self, key: &Key) -> Option<File> {
        let (file, meta) = self.root.open_file(&key.content.whole_path(&self.dir)).ok()?;
        Some(file).filter(|_| meta.len() == key.size)
    }

    /// The open files of a blob in parts. If they have gone, it is forgotten that they were there.
    pub(super) fn open_parts(&self, state: &mut State, key: &Key) -> Option<Arc<Files>> {
        let blob = state.blobs.get_mut(key)?;
        let Place::Parts(files) = &mut blob.disk.place else { return None };
        if let Some(files) = files {
            return Some(files.clone());
        }
        match self.parts_of(key) {
            Ok(opened) => {
                let opened = Arc::new(opened);
                *files = Some(opened.clone());
                Some(opened)
            }
            Err(_) => {
                self.lose(state, key);
                None
            }
        }
    }

    /// The open file of a whole blob.
    pub(super) fn open_whole(&self, state: &mut State, key: &Key) -> Option<Arc<File>> {
        let blob = state.blobs.get_mut(key)?;
        let Place::Whole(file) = &mut blob.disk.place else { return None };
        if let Some(file) = file {
            return Some(file.clone());
        }
        match self.whole_of(key) {
            Some(opened) => {
                let opened = Arc::new(opened);
                *file = Some(opened.clone());
                Some(opened)
            }
            None => {
                // A pull has taken it away.
                self.reset(state, key, Place::New);
                None
            }
        }
    }

    /// Forgets a whole blob that cannot be read.
    pub(super) fn drop_whole(&self, key: &Key) {
        let mut state = self.lock();
        if state.blobs.get(key).is_some_and(|blob| matches!(blob.disk.place, Place::Whole(_))) {
            self.reset(&mut state, key, Place::New);
        }
    }

    /// Drops a blob that is not, or perhaps not, what it should be. Whoever has begun to read it is
    /// told when asking for [`super::CachedBlob::mismatch_since`].
    pub(super) fn distrust(&self, state: &mut State, key: &Key, error: Error) {
        if let Some(blob) = state.blobs.get_mut(key) {
            blob.verification.mismatches += 1;
            blob.verification.mismatch = Some(error);
        }
        self.reset(state, key, Place::New);
    }

    /// The same when files have gone, or cannot be read. Those who have read what cannot be
    /// compared any more are told.
    pub(super) fn lose(&self, state: &mut State, key: &Key) {
        let is_mixed =
            state.blobs.get(key).is_some_and(|b| b.verification.is_fixed && !b.is_verified());
        if !is_mixed {
            return self.reset(state, key, Place::New);
        }
        let reason = "what the cache had of it has gone; open it again".to_owned();
        let doing = format_args!("reading {}", key.content);
        self.distrust(state, key, Error::new(SIDE, doing, Kind::Interrupted(reason)));
    }

    /// Sees to it that what is remembered of blocks that have gone takes no more memory than it may: the blob of
    /// which most is remembered is dropped. Whoever reads it is told.
    pub(super) fn bound_known(&self, state: &mut State) {
        let known = |blob: &Blob| blob.verification.prefix.known.bytes();
        while state.known_bytes > self.known_bytes {
            state.known_bytes = state.blobs.values().map(known).sum();
            let most = state.blobs.iter_mut().max_by_key(|(_, blob)| known(blob));
            let Some((key, blob)) = most.filter(|_| state.known_bytes > self.known_bytes) else {
                return;
            };
            let (key, wanted) = (*key, state.known_bytes as u64);
            let kind = OutOfMemory::TooLarge { wanted, limit: self.known_bytes as u64 };
            let doing = format_args!("remembering what has been read of {}", key.content);
            let error = Error::new(SIDE, doing, kind);
            blob.fail(0..u32::MAX, &Failed { error: error.clone(), origin: 0 });
            state.counts.errors += 1;
            self.distrust(state, &key, error);
        }
    }

    /// Drops all that is known of a blob and all that is here of it.
    pub(super) fn reset(&self, state: &mut State, key: &Key, place: Place) {
        let gone = self.forget(state, key, place);
        self.remove_later(gone);
        self.settle(state, key);
    }

    /// The same, but what is to be removed then is the caller's affair.
    pub(super) fn forget(&self, state: &mut State, key: &Key, place: Place) -> Gone {
        let id = state.number();
        let Some(blob) = state.blobs.get_mut(key) else { return Gone::default() };
        let new = blob.begin_anew(id, key, place);
        let old = std::mem::replace(blob, new);
        state.forget_use(key, &old);
        state.memory.forget(old.id);
        self.rename_away(key, &old)
    }

    /// Takes the names of a blob's files away.
    fn rename_away(&self, key: &Key, blob: &Blob) -> Gone {
        let named = match blob.disk.place {
            Place::Parts(_) => paths(&self.dir, key).to_vec(),
            Place::Whole(_) => vec![key.content.whole_path(&self.dir)],
            Place::New | Place::Nowhere | Place::OtherSize(_) => Vec::new(),
        };
        let rename = |from: PathBuf| {
            let number = self.gone.fetch_add(1, Ordering::Relaxed);
            let to = self.dir.join(super::GONE).join(number.to_string());
            // If it has gone already, so much the better.
            self.root.move_file(&from, &to).is_ok().then_some(to)
        };
        Gone { paths: named.into_iter().filter_map(rename).collect(), charge: blob.disk.charge }
    }

    /// Removes files on a thread that may wait.
    fn remove_later(&self, gone: Gone) {
        let Some(core) = self.me.upgrade().filter(|_| gone.charge > 0) else { return };
        drop(self.tasks.spawn_blocking(move || core.remove_gone(&gone)));
    }

    pub(super) fn remove_gone(&self, gone: &Gone) {
        point();
        for path in &gone.paths {
            // What stays goes when the cache is opened again.
            let _ = self.root.remove_file(path);
        }
        let mut state = self.lock();
        state.used = state.used.saturating_sub(gone.charge);
    }

    /// Closes and forgets what nobody uses.
    pub(super) fn settle(&self, state: &mut State, key: &Key) {
        let Some(blob) = state.blobs.get_mut(key).filter(|b| b.is_idle() && !b.disk.sealing) else {
            return;
        };
        if blob.disk.extents.values().any(|extent| extent.leaving || extent.pins > 0) {
            return;
        }
        blob.requests.origin = None;
        if blob.readers.closing.is_some() {
            return;
        }
        // What nobody reads takes no memory.
        state.memory.forget(blob.id);
        blob.restart_prefix(key);
        blob.readers.windows = super::window::Windows::default();
        match &mut blob.disk.place {
            Place::Parts(files) if blob.disk.stored > 0 => *files = None,
            Place::Whole(file) => *file = None,
            _ => {
                let Some(old) = state.blobs.remove(key) else { return };
                if state.owners.get(&key.content) == Some(&key.size) {
                    state.owners.remove(&key.content);
                }
                state.forget_use(key, &old);
                let gone = self.rename_away(key, &old);
                self.remove_later(gone);
            }
        }
    }

    /// Gives a blob of which everything is on the disk and verified its place among the whole
    /// ones.
    pub(super) fn seal_if_whole(self: &Arc<Self>, state: &mut State, key: &Key) {
        let Some(blob) = state.blobs.get_mut(key) else { return };
        let is_whole =
            blob.is_verified() && blob.disk.stored == blob.blocks && blob.disk.writing.is_empty();
        let Place::Parts(Some(files)) = &blob.disk.place else { return };
        if !is_whole || blob.disk.sealing {
            return;
        }
        blob.disk.sealing = true;
        let (core, key, id, files) = (self.clone(), *key, blob.id, files.clone());
        drop(self.tasks.spawn_blocking(move || core.seal(&key, id, &files)));
    }

    fn seal(&self, key: &Key, id: u64, files: &Arc<Files>) {
        point();
        let sealed = cached::seal(&files.data);
        // The same file, whatever it is called.
        let file = files.data.try_clone().ok().map(Arc::new);
        let whole = key.content.whole_path(&self.dir);
        let mut state = self.lock();
        let Some(blob) = state.blob(key, id) else { return };
        // Under the lock, so that it is that of this blob and no later one.
        let sealed = sealed.and_then(|()| {
            let [data, map] = paths(&self.dir, key);
            // Without it, what has both names for a moment is not taken for parts when the cache is opened.
            self.root.remove_if_there(&map)?;
            self.root.move_file(&data, &whole)
        });
        blob.disk.sealing = false;
        if let Err(error) = sealed {
            // It has no name any more, or cannot get one: what is known of it is worth nothing.
            self.reset(&mut state, key, Place::New);
            drop(state);
            // A pull that has found it to be wrong removes it.
            if error.kind() != io::ErrorKind::NotFound {
                self.refused(&whole, "publishing", error);
            }
            return;
        }
        blob.disk.place = Place::Whole(file);
        let charge = disk_bytes(key.size);
        let freed = blob.disk.charge.saturating_sub(charge);
        blob.disk.charge = charge;
        let extents = std::mem::take(&mut blob.disk.extents);
        state.used -= freed;
        for extent in extents.keys() {
            state.lru.pop(&(*key, *extent));
        }
        state.touch(key, WHOLE);
        self.settle(&mut state, key);
        drop(state);
        // A power cut before it is on the disk costs the blob, and nothing else.
        let _ = whole.parent().map(|dir| self.root.sync_dir(dir));
    }

    /// The disk has refused: for a while nothing is written. The first time somebody is told.
    pub(super) fn refused(&self, path: &Path, doing: &str, error: io::Error) {
        let error = Error::new(SIDE, format_args!("{doing} {}", path.display()), error);
        let is_first = {
            let mut state = self.lock();
            state.counts.errors += 1;
            state.refused_until = Some(Instant::now() + REFUSAL);
            !std::mem::replace(&mut state.warned, true)
        };
        if is_first {
            tracing::warn!(cache_dir = %self.dir.display(), "{error}");
        }
    }

    /// Where tests let writing fail.
    #[cfg(test)]
    fn may_write(&self) -> io::Result<()> {
        match self.fails_to_write.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn may_write(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The files of a blob in parts: data and map.
fn paths(dir: &Path, key: &Key) -> [PathBuf; 2] {
    [key.content.part_path(dir), key.content.map_path(dir)]
}

/// Creates the files of a blob of which nothing is here.
fn create(root: &ConfinedDir, dir: &Path, key: &Key) -> io::Result<Files> {
    let [data, map] = paths(dir, key);
    let create = |path: &Path, size: u64| {
        let file = root.create_file(path)?;
        file.set_len(size)?;
        io::Result::Ok(file)
    };
    // An old map must not be taken for that of the new data.
    let map = create(&map, 0)?;
    map.set_len(cached::map_bytes(key.size))?;
    let data = create(&data, key.size)?;
    map.write_all_at(&cached::map_header(key.size), 0)?;
    Ok(Files { data, map })
}

/// Gives a part of a file back to the disk.
pub(super) fn punch(file: &File, start: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, start, length).map_err(io::Error::from)
}
