//! What is written: opening, closing, and what else a front end asks of [`Writing`].

use std::{ffi::OsStr, fs, sync::Arc, time::Duration};

use async_trait::async_trait;
use rustix::fs::OFlags;

use super::{
    STATUS, Writable,
    handle::PendingHandle,
    invalid,
    pending::{Pending, Stage, State},
    place::{self, Place},
    publish::{self, disk, failed},
};
use crate::{
    image::Digest,
    namespace::{
        Caller, Changes, Entry, Found, FreeSpace, Handle, Namespace, Refusal, ViewError, Writing,
        inodes::Kind, names,
    },
};

type Result<T> = std::result::Result<T, ViewError>;

/// Whether a file without a single byte is what is to be written there.
fn is_whole_if_empty(place: &Place) -> bool {
    matches!(place, Place::Blob(digest) if *digest == Digest::of(digest.algorithm(), b""))
}

/// The process that a thread belongs to; 0 if nobody knows.
fn process_of(thread: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|id| id.trim().parse().ok()).unwrap_or(0)
}

/// A process, and those that it and its children have started.
fn with_children(process: u32) -> Vec<u32> {
    let parent_of = |process: u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name, which comes before, may have anything in it.
        let fields = stat.rsplit_once(')')?.1;
        fields.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = ids.filter_map(|id| Some((id, parent_of(id)?))).collect();
    let mut found = vec![process];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        at += 1;
        let children = parents.iter().filter(|(_, above)| *above == parent).map(|(id, _)| *id);
        let new: Vec<u32> = children.filter(|id| !found.contains(id)).collect();
        found.extend(new);
    }
    found
}

/// Whether the process of a thread has a descriptor for writing to this inode: then it has closed another one, as dup(2)
/// and the redirections of shells make them. Or whether one that it has started has one, and goes on writing. `false` if
/// nobody knows.
fn can_write_further(thread: u32, ino: u64) -> bool {
    let writes_to = |text: &str| {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let number = |digits: &str, radix| u64::from_str_radix(digits.trim(), radix).ok();
        let flags = field("flags:").and_then(|flags| number(flags, 8)).unwrap_or(0);
        let is_open_for_writing = flags & u64::from(OFlags::ACCMODE.bits()) != 0;
        is_open_for_writing && field("ino:").and_then(|ino| number(ino, 10)) == Some(ino)
    };
    let process = process_of(thread);
    if process == 0 {
        return false;
    }
    // The descriptor that is being closed is not among them any more.
    with_children(process).into_iter().any(|process| {
        let descriptors = fs::read_dir(format!("/proc/{process}/fdinfo")).into_iter().flatten();
        let descriptors = descriptors.flatten();
        let mut texts = descriptors.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        texts.any(|text| writes_to(&text))
    })
}

#[async_trait]
impl Writing for Writable {
    fn lookup_for(&self, parent: u64, name: &OsStr, caller: Caller) -> Result<Found> {
        if name == STATUS && parent == self.view.inodes().number(&names::inside_path(""), &[]) {
            let entry = self.status_entry();
            let path = names::inside_path(STATUS);
            self.view.inodes().tell_known(entry.attributes.ino, &path, Kind::Pending);
            return Ok(Found::Entry(entry));
        }
        let Some(path) = self.path(parent, name)? else { return self.view.lookup(parent, name) };
        if let Some(file) = self.table.named(&path) {
            if !file.state().replaces || self.table.has_claimed(caller.thread, &path) {
                return Ok(Found::Entry(self.tell(&file)));
            }
            return match self.lookup_in_view(parent, name, &path)? {
                Found::Entry(entry) => Ok(Found::Entry(Entry { ttl: Duration::ZERO, ..entry })),
                _ => Ok(Found::Entry(self.tell(&file))),
            };
        }
        if self.table.has_claimed(caller.thread, &path)
            && let Some(file) = self.replace_once_more(&path)?
        {
            return Ok(Found::Entry(self.tell(&file)));
        }
        if let Some(mtime) = self.table.directory(&path) {
            return Ok(Found::Entry(self.tell_directory(&path, mtime)));
        }
        if place::is_below_dot(&path) {
            return Ok(Found::Absent(Duration::ZERO));
        }
        self.lookup_in_view(parent, name, &path)
    }

    fn create(
        &self,
        parent: u64,
        name: &OsStr,
        exclusive: bool,
        caller: Caller,
    ) -> Result<(Entry, Handle)> {
        let path = self.path_to_change(parent, name)?;
        let place = Place::of(&path).ok_or_else(|| invalid(&path))?;
        self.begin()?;
        self.table.touch_above(&path);
        let known = self.table.named(&path);
        if exclusive && known.is_some() {
            return Err(ViewError::Refused(Refusal::Exists, path));
        }
        let file = match known {
            Some(file) => file,
            None => {
                let there = self.peek(parent, name, &path)?;
                if there.is_some() && exclusive {
                    return Err(ViewError::Refused(Refusal::Exists, path));
                }
                let ino = self.new_number(&path);
                let file = Pending::create(ino, &self.store, &self.table, &path, place);
                let file = file.map_err(|e| disk(&path, "creating", e))?;
                file.state().replaces = there.is_some();
                self.table.name(&path, &file);
                file
            }
        };
        Ok((self.tell(&file), self.opened(&file, caller)))
    }

    fn open_to_write(&self, ino: u64, caller: Caller) -> Result<Handle> {
        if let Some(file) = self.table.inode(ino) {
            // What has been published since it was looked up is replaced by itself, if it is written to.
            let path = file.state().path.clone().ok_or(ViewError::Stale)?;
            self.table.unclaim(caller.thread, &path);
            self.begin()?;
            return Ok(self.opened(&file, caller));
        }
        let path = self.view.inodes().path_of(ino)?;
        self.begin_to_replace(ino, &path, caller)
    }

    fn change(&self, ino: u64, changes: Changes) -> Result<Entry> {
        self.change_attributes(ino, changes)
    }

    async fn flush(&self, handle: &Handle, caller: Caller) -> Result<()> {
        let Handle::Pending(handle @ PendingHandle { file, writes: true, .. }) = handle else {
            return Ok(());
        };
        let (opener, path, changes) = {
            let mut state = file.state();
            handle.set_active(&mut state, false);
            if state.active > 0 || !self.is_to_be_judged(file, &state) {
                return Ok(());
            }
            // Who has written nothing yet has closed another descriptor, or has given this one to somebody else.
            if file.is_empty_file(&state) && !is_whole_if_empty(&state.place) {
                return Ok(());
            }
            (state.opener, state.path.clone(), state.changes)
        };
        self.begin()?;
        let Err(error) = self.complete(file).await else { return Ok(()) };
        if matches!(error, ViewError::Refused(Refusal::Content, _)) {
            let process = process_of(caller.thread);
            let is_another = opener != 0 && process != 0 && opener != process;
            let ino = file.ino;
            let goes_on = is_another
                || publish::blocking(move || Ok(can_write_further(caller.thread, ino))).await?;
            let mut state = file.state();
            if goes_on || state.active > 0 || state.changes != changes {
                // Somebody else has it open for writing, too, and is not done.
                state.is_dirty = true;
                return Ok(());
            }
        }
        if path.is_some() {
            self.refuse(file, &error);
        }
        Err(error)
    }

    async fn release(&self, handle: &Handle) {
        let Handle::Pending(handle @ PendingHandle { file, writes: true, .. }) = handle else {
            return;
        };
        let (is_last, is_to_be_judged, is_untouched) = {
            let mut state = file.state();
            handle.set_active(&mut state, false);
            state.writers = state.writers.saturating_sub(1);
            let is_last = state.writers == 0;
            let is_untouched = state.replaces && !state.is_written;
            (is_last, self.is_to_be_judged(file, &state), is_untouched)
        };
        if !is_last {
            return;
        }
        if is_untouched {
            // It was opened, and nothing has come of that.
            let mtime = file.state().mtime;
            let path = file.state().path.clone();
            self.reject(file);
            if let (Some(mtime), Some(path)) = (mtime, path)
                && let Err(error) = self.set_time(&path, mtime)
            {
                self.log(&error);
            }
        } else if is_to_be_judged {
            self.judge_at_last(file).await;
        }
    }

    fn make_directory(&self, parent: u64, name: &OsStr) -> Result<Entry> {
        let path = self.path_to_change(parent, name)?;
        if !place::can_be_directory(&path) {
            return Err(invalid(&path));
        }
        if self.table.named(&path).is_some() {
            return Err(ViewError::Refused(Refusal::Exists, path));
        }
        self.begin()?;
        self.table.touch_above(&path);
        self.table.unhide(&path);
        if place::is_below_dot(&path) {
            self.table.add_directory(&path);
            return Ok(self.tell_directory(&path, None));
        }
        self.dir.create_dir(&path).map_err(|e| publish::failed(&e))?;
        match self.view.lookup(parent, name)? {
            Found::Entry(entry) => Ok(entry),
            _ => Err(invalid(&path)),
        }
    }

    fn remove_directory(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.remove_empty(parent, name)
    }

    async fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        let path = self.path_to_change(parent, name)?;
        self.remove_file(&path).await
    }

    async fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> Result<()> {
        self.rename_file(from, to, replace).await
    }

    async fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Entry> {
        self.link_file(ino, parent, name).await
    }

    fn sync(&self) -> Result<()> {
        self.dir.flush_all().map_err(|e| failed(&e))
    }

    fn free_space(&self) -> Result<FreeSpace> {
        let stat = rustix::fs::statvfs(self.dir.root());
        let stat = stat.map_err(|e| disk("", "asking for free space", e.into()))?;
        Ok(FreeSpace {
            block_bytes: stat.f_frsize,
            blocks: stat.f_blocks,
            free: stat.f_bfree,
            available: stat.f_bavail,
            files: stat.f_files,
            free_files: stat.f_ffree,
        })
    }

    async fn look_again(&self) {
        self.look_now().await;
    }

    fn waiting(&self) -> usize {
        self.waiting_manifests() + self.refused.len()
    }

    fn end(&self) {
        self.drop_pushed();
        if let Err(error) = self.store.end() {
            self.log(&disk("", "removing pending files", error));
        }
    }

    fn refuse(&self, parent: u64, name: &OsStr, what: &str) -> ViewError {
        match self.path_to_change(parent, name) {
            Ok(path) => ViewError::Refused(
                Refusal::Invalid,
                format!("{path}: nothing of a directory of images is {what}"),
            ),
            Err(error) => error,
        }
    }
}

impl Writable {
    /// A file that has just been opened for writing.
    pub(super) fn opened(&self, file: &Arc<Pending>, caller: Caller) -> Handle {
        file.state().opener = process_of(caller.thread);
        Handle::Pending(PendingHandle::new(file, true))
    }

    /// Whether it is time to judge what has been written.
    pub(super) fn is_to_be_judged(&self, file: &Pending, state: &State) -> bool {
        if matches!(state.stage, Stage::Published) {
            return false;
        }
        match &state.place {
            place if !state.is_written && !state.replaces && is_whole_if_empty(place) => {
                file.is_empty_file(state)
            }
            _ => state.is_dirty,
        }
    }

    /// Judges what nobody has open for writing any more. Nobody waits for what becomes of it: what is wrong is logged, and
    /// told with what is pending.
    async fn judge_at_last(&self, file: &Arc<Pending>) {
        let was_named = {
            let mut state = file.state();
            let is_empty = file.is_empty_file(&state) && !is_whole_if_empty(&state.place);
            if is_empty && !state.replaces {
                // As if nothing had ever been written to it.
                (state.is_written, state.is_dirty) = (false, false);
                return;
            }
            state.path.is_some()
        };
        let judged = match self.complete(file).await {
            Ok(()) if was_named || file.state().place == Place::Dot => return,
            // It was refused, written to further, and something else had its name by then.
            Ok(()) => {
                let path = file.state().refused_as.clone().unwrap_or_default();
                let reason = format!("{path}: another file has been written under this name");
                ViewError::Refused(Refusal::Content, reason)
            }
            Err(error) => error,
        };
        {
            let mut state = file.state();
            if state.writers > 0 {
                // Somebody has begun to write to it once more.
                state.is_dirty = true;
                return;
            }
        }
        self.log(&judged);
        self.refuse(file, &judged);
    }

    /// The content of something published, with its size and time. Whether it is right is found out when what is made
    /// of it is judged.
    fn base_of(&self, ino: u64, path: &str) -> Result<(Handle, u64, (i64, u32))> {
        let entry = self.view.attributes_now(ino)?.ok_or(ViewError::Stale)?;
        let opened = match self.view.open_now(ino)? {
            Some(handle) => handle,
            None => {
                let stored = self.dir().root().join(&*self.dir().layout().stored_path(path));
                let opened = self.dir().dir().open_file(&stored);
                Handle::File(opened.map_err(|e| disk(path, "opening", e))?.0)
            }
        };
        Ok((opened, entry.attributes.size, entry.attributes.mtime))
    }

    /// Begins a file that is to replace what is published under `path`, in place of one that has just been published;
    /// `None` if nothing is.
    pub(super) fn replace_once_more(&self, path: &str) -> Result<Option<Arc<Pending>>> {
        let Some(place) = Place::of(path) else { return Ok(None) };
        let Found::Entry(entry) = self.view.look(path)? else { return Ok(None) };
        let base = self.base_of(entry.attributes.ino, path);
        self.view.forget(entry.attributes.ino, 1);
        let file = self.pending_of(path, place, base?);
        file.state().replaces = true;
        self.table.name(path, &file);
        Ok(Some(file))
    }

    /// Begins a file that is to replace what `ino` is, which has this path. The kernel is to look it up again.
    fn begin_to_replace(&self, ino: u64, path: &str, caller: Caller) -> Result<Handle> {
        let place = Place::of(path).ok_or_else(|| {
            ViewError::Refused(Refusal::ReadOnly, format!("{path}: it is read-only"))
        })?;
        self.begin()?;
        if self.table.named(path).is_none() {
            match self.base_of(ino, path) {
                // It has just been replaced: then this replaces what is there now.
                Err(ViewError::Stale) => drop(self.replace_once_more(path)?),
                base => {
                    let file = self.pending_of(path, place, base?);
                    file.state().replaces = true;
                    self.table.name(path, &file);
                }
            }
        }
        self.table.claim(caller.thread, path);
        Err(ViewError::Stale)
    }
}
