//! The names and inodes of files that are being written, and the directories that are only there for them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::pending::{Pending, Stage};
use crate::util::locked;

/// Names that are remembered to have been removed.
const MAX_HIDDEN: usize = 100_000;

/// For so long a thread is about to open what it has begun to replace.
const CLAIM: Duration = Duration::from_secs(2);

/// Threads that may be about to open something at the same time.
const MAX_CLAIMS: usize = 10_000;

/// Directories of which is remembered which times have been set.
const MAX_TIMES: usize = 100_000;

/// What is being written.
#[derive(Default)]
pub(super) struct Table(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    names: BTreeMap<Box<str>, Arc<Pending>>,
    inodes: HashMap<u64, Arc<Pending>>,
    /// Whose content was refused last under a name that nothing else has had since.
    refused: HashMap<Box<str>, u64>,
    /// Threads that are about to open what they have begun to replace.
    claims: HashMap<(u32, Box<str>), Instant>,
    /// Directories whose names begin with a dot, and those in them, with the times that have been set.
    directories: BTreeMap<Box<str>, Option<(i64, u32)>>,
    /// The times that have been set of other directories since somebody has created or removed a name in them.
    times: HashMap<Box<str>, (i64, u32)>,
    /// What has been removed, and that a registry may have all the same.
    hidden: HashSet<Box<str>>,
    next: u64,
}

impl Table {
    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        locked(&self.0)
    }

    /// A number that no file has had.
    pub(super) fn next(&self) -> u64 {
        let mut entries = self.entries();
        entries.next += 1;
        entries.next
    }

    /// The file that has this name.
    pub(super) fn named(&self, path: &str) -> Option<Arc<Pending>> {
        self.entries().names.get(path).cloned()
    }

    /// The file with this inode.
    pub(super) fn inode(&self, ino: u64) -> Option<Arc<Pending>> {
        self.entries().inodes.get(&ino).cloned()
    }

    /// All files that have names, in their order.
    pub(super) fn all(&self) -> Vec<Arc<Pending>> {
        self.entries().names.values().cloned().collect()
    }

    /// Whether nothing has a name.
    pub(super) fn is_empty(&self) -> bool {
        self.entries().names.is_empty()
    }

    /// Gives a file this name; what had it is returned.
    pub(super) fn name(&self, path: &str, file: &Arc<Pending>) -> Option<Arc<Pending>> {
        let mut entries = self.entries();
        entries.hidden.remove(path);
        entries.refused.remove(path);
        entries.inodes.insert(file.ino, file.clone());
        let before = entries.names.insert(path.into(), file.clone());
        before.filter(|before| !Arc::ptr_eq(before, file))
    }

    /// Takes this name from a file, if it has it.
    pub(super) fn unname(&self, path: &str, file: &Arc<Pending>) {
        let mut entries = self.entries();
        if entries.names.get(path).is_some_and(|named| Arc::ptr_eq(named, file)) {
            entries.names.remove(path);
        }
    }

    /// Takes this name from a file, as its content was refused.
    pub(super) fn refuse(&self, path: &str, file: &Arc<Pending>) {
        let mut entries = self.entries();
        if entries.names.get(path).is_some_and(|named| Arc::ptr_eq(named, file)) {
            entries.names.remove(path);
            entries.refused.insert(path.into(), file.ino);
        }
    }

    /// Gives the name again to a file that was refused under it, if nothing else has had it since.
    pub(super) fn name_again(&self, path: &str, file: &Arc<Pending>) {
        let mut entries = self.entries();
        if entries.refused.get(path) != Some(&file.ino) {
            return;
        }
        entries.refused.remove(path);
        entries.hidden.remove(path);
        entries.names.insert(path.into(), file.clone());
        entries.inodes.insert(file.ino, file.clone());
        let mut state = file.state();
        state.path = state.refused_as.take();
        state.stage = Stage::Writing;
    }

    /// Forgets an inode that nobody knows.
    pub(super) fn forget(&self, ino: u64) {
        let mut entries = self.entries();
        let Some(file) = entries.inodes.get(&ino).cloned() else { return };
        if let Some(path) = &file.state().refused_as
            && entries.refused.get(path) == Some(&ino)
        {
            entries.refused.remove(path);
        }
        let is_named = file.state().path.as_ref().is_some_and(|path| {
            entries.names.get(path).is_some_and(|named| Arc::ptr_eq(named, &file))
        });
        if !is_named {
            entries.inodes.remove(&ino);
        }
    }

    // --- who replaces what ---

    /// Notes that a thread is about to open what it has begun to replace.
    pub(super) fn claim(&self, thread: u32, path: &str) {
        let mut entries = self.entries();
        // Whoever has not come to it by now has been refused.
        if entries.claims.len() >= MAX_CLAIMS {
            entries.claims.clear();
        }
        entries.claims.insert((thread, path.into()), Instant::now());
    }

    /// Whether it is.
    pub(super) fn has_claimed(&self, thread: u32, path: &str) -> bool {
        let entries = self.entries();
        if entries.claims.is_empty() {
            return false;
        }
        // The kernel asks at once. Whoever comes later has given it up.
        let since = entries.claims.get(&(thread, path.into()));
        since.is_some_and(|since| since.elapsed() < CLAIM)
    }

    /// It has opened it.
    pub(super) fn unclaim(&self, thread: u32, path: &str) {
        self.entries().claims.remove(&(thread, path.into()));
    }

    // --- directories ---

    /// Notes a directory that is nowhere else.
    pub(super) fn add_directory(&self, path: &str) {
        self.entries().directories.insert(path.into(), None);
    }

    /// The time of such a directory, if there is one of this path: the one that has been set, if any has.
    pub(super) fn directory(&self, path: &str) -> Option<Option<(i64, u32)>> {
        self.entries().directories.get(path).copied()
    }

    /// Sets the time of such a directory. Whether there is one.
    pub(super) fn set_directory_time(&self, path: &str, time: (i64, u32)) -> bool {
        let mut entries = self.entries();
        let directory = entries.directories.get_mut(path);
        directory.map(|known| *known = Some(time)).is_some()
    }

    /// Notes the time that has been set of another directory, which it keeps when what is pending in it is published.
    pub(super) fn note_time(&self, path: &str, time: (i64, u32)) {
        let mut entries = self.entries();
        // Whatever is forgotten is only a time.
        if entries.times.len() >= MAX_TIMES {
            entries.times.clear();
        }
        entries.times.insert(path.into(), time);
    }

    /// The time that has been set of another directory.
    pub(super) fn noted_time(&self, path: &str) -> Option<(i64, u32)> {
        self.entries().times.get(path).copied()
    }

    /// Somebody creates or removes a name in the directory that `path` is in.
    pub(super) fn touch_above(&self, path: &str) {
        let mut entries = self.entries();
        if !entries.times.is_empty() {
            let above = path.rsplit_once('/').map_or("", |(above, _)| above);
            entries.times.remove(above);
        }
    }

    /// Removes such a directory. Whether there was one.
    pub(super) fn remove_directory(&self, path: &str) -> bool {
        self.entries().directories.remove(path).is_some()
    }

    /// The names in a directory that lead to such files and directories, each once, and which are directories.
    pub(super) fn names_in(&self, dir: &str) -> Vec<(String, bool)> {
        let entries = self.entries();
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        let range = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let below = |path: &str| path.strip_prefix(prefix.as_str()).map(str::to_owned);
        let mut add = |path: &str, is_directory: bool| -> bool {
            let Some(rest) = below(path) else { return false };
            match rest.split_once('/') {
                Some((first, _)) => drop(found.insert(first.to_owned(), true)),
                None => drop(found.entry(rest).or_insert(is_directory)),
            }
            true
        };
        for path in entries.names.range::<str, _>(range).map(|(path, _)| path) {
            if !add(path, false) {
                break;
            }
        }
        for path in entries.directories.range::<str, _>(range).map(|(path, _)| path) {
            if !add(path, true) {
                break;
            }
        }
        found.into_iter().collect()
    }

    /// Whether the directory `dir` is on the way to any of them.
    pub(super) fn leads_to(&self, dir: &str) -> bool {
        let entries = self.entries();
        let prefix = format!("{dir}/");
        let range = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let is_below = |path: &str| path.starts_with(&prefix);
        let mut names = entries.names.range::<str, _>(range).map(|(path, _)| path);
        let mut directories = entries.directories.range::<str, _>(range).map(|(path, _)| path);
        names.next().is_some_and(|path| is_below(path))
            || directories.next().is_some_and(|path| is_below(path))
    }

    // --- what has been removed ---

    /// Notes that a name has been removed.
    pub(super) fn hide(&self, path: &str) {
        let mut entries = self.entries();
        // Whatever is seen again then is at a registry.
        if entries.hidden.len() >= MAX_HIDDEN {
            entries.hidden.clear();
        }
        entries.hidden.insert(path.into());
    }

    /// The name is there again.
    pub(super) fn unhide(&self, path: &str) {
        self.entries().hidden.remove(path);
    }

    /// Whether it has been removed.
    pub(super) fn is_hidden(&self, path: &str) -> bool {
        let entries = self.entries();
        !entries.hidden.is_empty() && entries.hidden.contains(path)
    }
}
