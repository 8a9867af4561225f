//! What imgfs remembers of a tree: which blobs have been verified, which manifests were asked for
//! by digest, which indexes are sparse on purpose, which registries lack the referrers API, and which times have been
//! set of tags that have no files of their own.
//!
//! One text file, `blobs/.imgfs/records`, only ever appended to:
//!
//! ```text
//! imgfs records 1
//! blob sha256:<hex> <size> <inode> <mtime in ns> <ctime in ns>
//! unflushed sha256:<hex> <size> <inode> <mtime in ns> <ctime in ns> <mount id> <boot id>
//! pin <registry>/<repository>@sha256:<hex>
//! unpin <registry>/<repository>@sha256:<hex>
//! sparse sha256:<hex> <platforms>
//! no-referrers <registry> <seconds since 1970>
//! tag-time <registry>/<repository>:<tag> sha256:<hex> <seconds since 1970> <ns>
//! no-tag-time <registry>/<repository>:<tag>
//! ```
//!
//! A blob counts as verified as long as its file is the one that was hashed: same size, inode,
//! mtime and ctime. The kernel changes a file's ctime with every change of its content, also where
//! its mtime is set back. A line that cannot be read (cut short by a power cut) is skipped; at
//! worst something is hashed once more. A file with another first line belongs to a newer imgfs
//! and is refused.
//!
//! What `unflushed` says holds as long as the system has not been started again and the file system is mounted:
//! the file has been written and is in memory, and may not be on the disk yet ([`super::durability`]). It becomes
//! a `blob` when all has been flushed. A version of imgfs that does not know this kind of line skips it, and
//! hashes the file.
//!
//! On a file system without lasting inode numbers (FAT, exFAT) nothing of this tells one file from another, so
//! what has been verified there is known to the process that has done it, and not written down.

mod state;

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::durability::Epoch;
use crate::{
    backend::{ConfinedDir, Flush},
    image::{Digest, Reference},
    util::{FileId, locked},
};
use state::{Known, Stamp, State, blob_line, tag_time_line};

pub(super) use state::Held;

const HEADER: &str = "imgfs records 1\n";

/// What the first line of any version begins with.
const NAME: &str = "imgfs records ";

/// The file is rewritten when it has this many lines and most of them are outdated.
const COMPACT_LINES: usize = 4096;

/// How long a registry is taken to lack the referrers API, in seconds: one may be upgraded.
const REFERRERS_MEMORY: u64 = 24 * 3600;

/// The records of a tree. Other processes add to them at the same time.
pub(super) struct Records {
    root: ConfinedDir,
    path: PathBuf,
    /// How far the file has been read. Held while reading it.
    reading: Mutex<Reading>,
    /// Never held while reading or writing, so that asking for what is known waits for no disk.
    state: Mutex<State>,
    /// What this process has verified, where that must not be believed by another one.
    of_this_run: Option<Mutex<HashMap<Digest, Stamp>>>,
    /// In which what has not been flushed is in memory, where that can be told.
    epoch: Option<Epoch>,
    /// When lines that cannot be found out again are flushed.
    flush: Flush,
}

/// Blobs that were not on the disk when this was made.
pub(super) struct Unflushed(Vec<(Digest, Stamp)>);

/// What has been read of the file.
#[derive(Default)]
struct Reading {
    read_to: u64,
    file: FileId,
    lines: usize,
    /// The file is none of records, and is to be written anew.
    damaged: bool,
}

impl Records {
    /// Those in the file `path` of `root`, which need not be there. `knows_again` says whether files can be
    /// told by their inode numbers and times.
    pub(super) fn open(
        root: ConfinedDir,
        path: PathBuf,
        knows_again: bool,
        epoch: Option<Epoch>,
        flush: Flush,
    ) -> io::Result<Self> {
        let (reading, state) = (Mutex::default(), Mutex::default());
        let of_this_run = (!knows_again).then(Mutex::default);
        let records = Self { root, path, reading, state, of_this_run, epoch, flush };
        records.reload()?;
        Ok(records)
    }

    /// The records of a tree that does not exist.
    pub(super) fn absent(root: ConfinedDir) -> Self {
        Self {
            root,
            path: PathBuf::new(),
            reading: Mutex::default(),
            state: Mutex::default(),
            of_this_run: None,
            epoch: None,
            flush: Flush::Now,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // At worst, half of what was read is known, and something is hashed once more.
        locked(&self.state)
    }

    /// Reads what other processes have added.
    pub(super) fn reload(&self) -> io::Result<()> {
        self.refresh(&mut locked(&self.reading))
    }

    /// Whether the file with `meta` is the one that has been found to be `blob`.
    pub(super) fn is_verified(&self, blob: &Digest, meta: &Metadata) -> bool {
        if let Some(of_this_run) = &self.of_this_run {
            return locked(of_this_run).get(blob) == Some(&Stamp::of(meta));
        }
        let known = || self.state().blobs.get(blob).is_some_and(|known| self.holds(known, meta));
        // Another process may have verified it since.
        known() || (self.reload().is_ok() && known())
    }

    /// How long it holds that the file with `meta` is `blob`, if that has been found out.
    pub(super) fn held(&self, blob: &Digest, meta: &Metadata) -> Option<Held> {
        let is_verified = self.is_verified(blob, meta);
        let held = || self.state().blobs.get(blob).map(|known| known.held.clone());
        is_verified.then(|| held().unwrap_or(Held::ThisRun))
    }

    /// Whether `known` says of the file with `meta` what it is, and still holds.
    fn holds(&self, known: &Known, meta: &Metadata) -> bool {
        known.stamp == Stamp::of(meta)
            && match &known.held {
                Held::OnDisk | Held::ThisRun => true,
                Held::InMemory(epoch) => self.epoch.as_ref() == Some(epoch),
            }
    }

    /// How long it holds what is found out of a file that is written now and not flushed.
    pub(super) fn in_memory(&self) -> Held {
        self.epoch.clone().map_or(Held::ThisRun, Held::InMemory)
    }

    /// Notes that the file with `meta` has been found to be `blob`, and how long that holds.
    pub(super) fn verified(&self, blob: Digest, meta: &Metadata, held: Held) -> io::Result<()> {
        let stamp = Stamp::of(meta);
        if let Some(of_this_run) = &self.of_this_run {
            locked(of_this_run).insert(blob, stamp);
            return Ok(());
        }
        if held == Held::ThisRun {
            self.state().blobs.insert(blob, Known { stamp, held });
            return Ok(());
        }
        self.append(&blob_line(&blob, stamp, &held), Flush::Later)
    }

    /// As [`Records::verified`], for a tree that may well be read-only: then it is known for this
    /// run at least.
    pub(super) fn remember(&self, blob: Digest, meta: &Metadata, held: Held) {
        if let Some(state) = self.path.parent() {
            // A tree that imgfs has not written has no place for it yet.
            let _ = self.root.create_dirs(state);
        }
        if self.verified(blob, meta, held).is_err() {
            let known = Known { stamp: Stamp::of(meta), held: Held::ThisRun };
            self.state().blobs.insert(blob, known);
        }
    }

    /// The blobs that are in memory and have not been flushed; those of this epoch.
    pub(super) fn unflushed(&self) -> Unflushed {
        // What other processes have published since is flushed as well, and not counted.
        let state = self.state();
        let ours = |known: &&Known| match &known.held {
            Held::InMemory(epoch) => self.epoch.as_ref() == Some(epoch),
            Held::OnDisk | Held::ThisRun => false,
        };
        let blobs = state.blobs.iter().map(|(digest, known)| (*digest, known));
        let blobs = blobs.filter(|(_, known)| ours(known));
        Unflushed(blobs.map(|(digest, known)| (digest, known.stamp)).collect())
    }

    /// Notes that everything is on the disk that was written before `unflushed` was asked for.
    pub(super) fn flushed(&self, unflushed: &Unflushed) -> io::Result<()> {
        self.replace(unflushed, |stamp| stamp)
    }

    /// Notes that nobody knows what is on the disk of `unflushed`: each has to be hashed again.
    pub(super) fn lost(&self, unflushed: &Unflushed) -> io::Result<()> {
        self.replace(unflushed, |_| Stamp::NONE)
    }

    fn replace(&self, unflushed: &Unflushed, stamp: impl Fn(Stamp) -> Stamp) -> io::Result<()> {
        let same = |blob: &Digest, old: &Stamp| {
            self.state().blobs.get(blob).is_some_and(|known| known.stamp == *old)
        };
        // What has been found out of a blob since is newer than this.
        self.reload()?;
        let lines = unflushed.0.iter().filter(|(blob, old)| same(blob, old));
        let lines: String =
            lines.map(|(blob, old)| blob_line(blob, stamp(*old), &Held::OnDisk)).collect();
        if lines.is_empty() {
            return Ok(());
        }
        self.append(&lines, Flush::Now)
    }

    /// Notes that somebody asked for just this manifest, so that `prune` keeps it.
    pub(super) fn pin(&self, reference: &Reference) -> io::Result<()> {
        if self.state().pins.contains(reference) {
            return Ok(());
        }
        self.append(&format!("pin {reference}\n"), self.flush)
    }

    /// Takes back what `pin` noted.
    pub(super) fn unpin(&self, reference: &Reference) -> io::Result<()> {
        if !self.is_pinned(reference) {
            return Ok(());
        }
        self.append(&format!("unpin {reference}\n"), self.flush)
    }

    pub(super) fn is_pinned(&self, reference: &Reference) -> bool {
        self.state().pins.contains(reference)
    }

    /// Notes that of the index `digest` only the children for `platforms` are wanted.
    pub(super) fn set_sparse(&self, digest: Digest, platforms: &str) -> io::Result<()> {
        if self.sparse(&digest).as_deref().unwrap_or("all") == platforms {
            return Ok(());
        }
        self.append(&format!("sparse {digest} {platforms}\n"), self.flush)
    }

    /// The platforms of which the children of the index `digest` are wanted, if not all.
    pub(super) fn sparse(&self, digest: &Digest) -> Option<String> {
        self.state().sparse.get(digest).filter(|platforms| *platforms != "all").cloned()
    }

    /// Notes the time that somebody has set of a tag, as long as that leads to `digest`.
    pub(super) fn set_tag_time(
        &self,
        tag: &Reference,
        digest: &Digest,
        time: (i64, u32),
    ) -> io::Result<()> {
        self.reload()?;
        if self.tag_time(tag, digest) == Some(time) {
            return Ok(());
        }
        self.append(&tag_time_line(tag, &(*digest, time)), Flush::Later)
    }

    /// Takes back what `set_tag_time` noted.
    pub(super) fn forget_tag_time(&self, tag: &Reference) -> io::Result<()> {
        self.reload()?;
        if !self.state().tag_times.contains_key(tag) {
            return Ok(());
        }
        self.append(&format!("no-tag-time {tag}\n"), Flush::Later)
    }

    pub(super) fn tag_time(&self, tag: &Reference, digest: &Digest) -> Option<(i64, u32)> {
        let state = self.state();
        state.tag_times.get(tag).filter(|(of, _)| of == digest).map(|(_, time)| *time)
    }

    /// Takes back what `verified` noted.
    pub(super) fn distrust(&self, blob: Digest) -> io::Result<()> {
        if let Some(of_this_run) = &self.of_this_run {
            locked(of_this_run).remove(&blob);
            return Ok(());
        }
        self.append(&blob_line(&blob, Stamp::NONE, &Held::OnDisk), Flush::Later)
    }

    /// Registries that were found to lack the referrers API less than a day ago.
    pub(super) fn without_referrers(&self) -> Vec<String> {
        let now = seconds_now();
        let state = self.state();
        let recent = state
            .no_referrers
            .iter()
            .filter(|&(_, &at)| now.checked_sub(at).is_some_and(|age| age < REFERRERS_MEMORY));
        recent.map(|(registry, _)| registry.clone()).collect()
    }

    /// Notes that `registry` lacks the referrers API.
    pub(super) fn note_without_referrers(&self, registry: &str) -> io::Result<()> {
        self.append(&format!("no-referrers {registry} {}\n", seconds_now()), Flush::Later)
    }

    /// Adds lines, and flushes them as `flush` says.
    fn append(&self, lines: &str, flush: Flush) -> io::Result<()> {
        let mut file = self.lock()?;
        let mut reading = locked(&self.reading);
        if reading.damaged {
            file.set_len(0)?;
            *reading = Reading::default();
            *self.state() = State::default();
        }
        let length = file.metadata()?.len();
        if length == 0 {
            file.write_all(HEADER.as_bytes())?;
        }
        // A line that a power cut or a full disk has cut short must not swallow this one.
        let mut last = [b'\n'];
        if length > 0 {
            file.read_exact_at(&mut last, length - 1)?;
        }
        let lines = if last == *b"\n" { lines.to_owned() } else { format!("\n{lines}") };
        file.write_all(lines.as_bytes())?;
        if flush == Flush::Now {
            file.sync_data()?;
        }
        self.refresh(&mut reading)?;
        let live = self.state().len();
        if reading.lines > COMPACT_LINES && reading.lines > 2 * live {
            self.compact()?;
        }
        Ok(())
    }

    /// Opens the file for appending and locks it; it is the one under its name, then.
    fn lock(&self) -> io::Result<File> {
        loop {
            let file = self.root.append_or_create(&self.path)?;
            file.lock()?;
            let current = self.root.stat(&self.path);
            if current.is_ok_and(|m| file.metadata().is_ok_and(|own| own.ino() == m.ino())) {
                return Ok(file);
            }
        }
    }

    /// Reads what has been added since the last time.
    fn refresh(&self, reading: &mut Reading) -> io::Result<()> {
        let (mut file, meta) = match self.root.open_file(&self.path) {
            Ok(opened) => opened,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let file_now = FileId::of(&meta);
        let is_another = file_now != reading.file || meta.len() < reading.read_to;
        if is_another {
            *reading = Reading { file: file_now, ..Reading::default() };
        } else if meta.len() == reading.read_to {
            return Ok(());
        }
        file.seek(SeekFrom::Start(reading.read_to))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        // The last line may still be on its way.
        let complete = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let mut lines = &text[..complete];
        if reading.read_to == 0 && complete > 0 {
            lines = match lines.strip_prefix(HEADER.as_bytes()) {
                Some(lines) => lines,
                None if lines.starts_with(NAME.as_bytes()) => {
                    return Err(io::Error::other(
                        "these records were made by a newer imgfs, which has to be used here",
                    ));
                }
                // Damaged. What they said is found out again.
                None => {
                    reading.damaged = true;
                    *self.state() = State::default();
                    return Ok(());
                }
            };
        }
        reading.read_to += complete as u64;
        let mut state = self.state();
        if is_another {
            *state = State::default();
        }
        for line in lines.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            reading.lines += 1;
            if let Ok(line) = std::str::from_utf8(line) {
                state.take(line);
            }
        }
        Ok(())
    }

    /// Rewrites the file with what still counts. The caller holds its lock.
    fn compact(&self) -> io::Result<()> {
        let text = self.state().to_text(self.epoch.as_ref());
        let fresh = temporary(&self.path);
        let mut file = self.root.create_file(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        self.root.rename(&fresh, &self.path)
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

impl Unflushed {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.0.iter().map(|(digest, _)| digest)
    }

    /// Whether all of them were published longer ago than `age`.
    pub(super) fn are_older_than(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let limit = now.saturating_sub(age).as_nanos();
        self.0.iter().all(|(_, stamp)| u128::try_from(stamp.ctime_ns).is_ok_and(|at| at < limit))
    }
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension(format!("new-{}", std::process::id()))
}

#[cfg(test)]
mod tests;
