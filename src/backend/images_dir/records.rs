//! What imgfs remembers of a tree: which blobs have been verified, which manifests were asked for
//! by digest, which indexes are sparse on purpose, and which registries lack the referrers API.
//!
//! One text file, `blobs/.imgfs/records`, only ever appended to:
//!
//! ```text
//! imgfs records 1
//! blob sha256:<hex> <size> <inode> <mtime in ns> <ctime in ns>
//! pin <registry>/<repository>@sha256:<hex>
//! unpin <registry>/<repository>@sha256:<hex>
//! sparse sha256:<hex> <platforms>
//! no-referrers <registry> <seconds since 1970>
//! ```
//!
//! A blob counts as verified as long as its file is the one that was hashed: same size, inode,
//! mtime and ctime. The kernel changes a file's ctime with every change of its content, also where
//! its mtime is set back. A line that cannot be read (cut short by a power cut) is skipped; at
//! worst something is hashed once more. A file with another first line belongs to a newer imgfs
//! and is refused.
//!
//! On a file system without lasting inode numbers (FAT, exFAT) nothing of this tells one file from another, so
//! what has been verified there is known to the process that has done it, and not written down.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, Metadata},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    backend::ConfinedDir,
    image::{Digest, Reference},
    util::locked,
};

const HEADER: &str = "imgfs records 1\n";

/// What the first line of any version begins with.
const NAME: &str = "imgfs records ";

/// The file is rewritten when it has this many lines and most of them are outdated.
const COMPACT_LINES: usize = 4096;

/// How long a registry is taken to lack the referrers API, in seconds: one may be upgraded.
const REFERRERS_MEMORY: u64 = 24 * 3600;

/// What a file looked like when it was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    inode: u64,
    mtime_ns: i128,
    ctime_ns: i128,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        let ns = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
        Self {
            size: meta.size(),
            inode: meta.ino(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

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
}

/// What has been read of the file.
#[derive(Default)]
struct Reading {
    read_to: u64,
    inode: u64,
    lines: usize,
    /// The file is none of records, and is to be written anew.
    damaged: bool,
}

#[derive(Default)]
struct State {
    blobs: HashMap<Digest, Stamp>,
    pins: HashSet<Reference>,
    sparse: HashMap<Digest, String>,
    no_referrers: HashMap<String, u64>,
}

impl Records {
    /// Those in the file `path` of `root`, which need not be there. `knows_again` says whether files can be
    /// told by their inode numbers and times.
    pub(super) fn open(root: ConfinedDir, path: PathBuf, knows_again: bool) -> io::Result<Self> {
        let (reading, state) = (Mutex::default(), Mutex::default());
        let of_this_run = (!knows_again).then(Mutex::default);
        let records = Self { root, path, reading, state, of_this_run };
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
        let known = || self.state().blobs.get(blob) == Some(&Stamp::of(meta));
        // Another process may have verified it since.
        known() || (self.reload().is_ok() && known())
    }

    /// Notes that the file with `meta` has been found to be `blob`.
    pub(super) fn verified(&self, blob: Digest, meta: &Metadata) -> io::Result<()> {
        let s = Stamp::of(meta);
        if let Some(of_this_run) = &self.of_this_run {
            locked(of_this_run).insert(blob, s);
            return Ok(());
        }
        self.append(
            &format!("blob {blob} {} {} {} {}\n", s.size, s.inode, s.mtime_ns, s.ctime_ns),
            false,
        )
    }

    /// As [`Records::verified`], for a tree that may well be read-only: then it is known for this
    /// run at least.
    pub(super) fn remember(&self, blob: Digest, meta: &Metadata) {
        if let Some(state) = self.path.parent() {
            // A tree that imgfs has not written has no place for it yet.
            let _ = self.root.create_dirs(state);
        }
        if self.verified(blob, meta).is_err() {
            self.state().blobs.insert(blob, Stamp::of(meta));
        }
    }

    /// Notes that somebody asked for just this manifest, so that `prune` keeps it.
    pub(super) fn pin(&self, reference: &Reference) -> io::Result<()> {
        if self.state().pins.contains(reference) {
            return Ok(());
        }
        self.append(&format!("pin {reference}\n"), true)
    }

    /// Takes back what `pin` noted.
    pub(super) fn unpin(&self, reference: &Reference) -> io::Result<()> {
        if !self.is_pinned(reference) {
            return Ok(());
        }
        self.append(&format!("unpin {reference}\n"), true)
    }

    pub(super) fn is_pinned(&self, reference: &Reference) -> bool {
        self.state().pins.contains(reference)
    }

    /// Notes that of the index `digest` only the children for `platforms` are wanted.
    pub(super) fn set_sparse(&self, digest: Digest, platforms: &str) -> io::Result<()> {
        if self.sparse(&digest).as_deref().unwrap_or("all") == platforms {
            return Ok(());
        }
        self.append(&format!("sparse {digest} {platforms}\n"), true)
    }

    /// The platforms of which the children of the index `digest` are wanted, if not all.
    pub(super) fn sparse(&self, digest: &Digest) -> Option<String> {
        self.state().sparse.get(digest).filter(|platforms| *platforms != "all").cloned()
    }

    /// Takes back what `verified` noted.
    pub(super) fn distrust(&self, blob: Digest) -> io::Result<()> {
        if let Some(of_this_run) = &self.of_this_run {
            locked(of_this_run).remove(&blob);
            return Ok(());
        }
        // No file has this stamp.
        self.append(&format!("blob {blob} 0 0 0 0\n"), false)
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
        self.append(&format!("no-referrers {registry} {}\n", seconds_now()), false)
    }

    /// Adds a line; `durable` ones must not be lost, since they cannot be found out again.
    fn append(&self, line: &str, durable: bool) -> io::Result<()> {
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
        let line = if last == *b"\n" { line.to_owned() } else { format!("\n{line}") };
        file.write_all(line.as_bytes())?;
        if durable {
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
        let is_another = meta.ino() != reading.inode || meta.len() < reading.read_to;
        if is_another {
            *reading = Reading { inode: meta.ino(), ..Reading::default() };
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
        let text = self.state().to_text();
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

fn temporary(path: &Path) -> PathBuf {
    path.with_extension(format!("new-{}", std::process::id()))
}

impl State {
    /// How many lines say all of it.
    fn len(&self) -> usize {
        self.blobs.len() + self.pins.len() + self.sparse.len() + self.no_referrers.len()
    }

    /// All of it, as it stands in the file.
    fn to_text(&self) -> String {
        let mut text = HEADER.to_owned();
        for (digest, s) in &self.blobs {
            text +=
                &format!("blob {digest} {} {} {} {}\n", s.size, s.inode, s.mtime_ns, s.ctime_ns);
        }
        for pin in &self.pins {
            text += &format!("pin {pin}\n");
        }
        for (digest, platforms) in &self.sparse {
            text += &format!("sparse {digest} {platforms}\n");
        }
        for (registry, at) in &self.no_referrers {
            text += &format!("no-referrers {registry} {at}\n");
        }
        text
    }

    /// Takes one line; what makes no sense is skipped.
    fn take(&mut self, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ')?;
        match kind {
            "blob" => {
                let mut fields = rest.split(' ');
                let digest = fields.next()?.parse().ok()?;
                let stamp = Stamp {
                    size: fields.next()?.parse().ok()?,
                    inode: fields.next()?.parse().ok()?,
                    mtime_ns: fields.next()?.parse().ok()?,
                    ctime_ns: fields.next()?.parse().ok()?,
                };
                self.blobs.insert(digest, stamp);
            }
            "pin" => {
                self.pins.insert(rest.parse().ok()?);
            }
            "unpin" => {
                self.pins.remove(&rest.parse().ok()?);
            }
            "no-referrers" => {
                let (registry, at) = rest.split_once(' ')?;
                self.no_referrers.insert(registry.to_owned(), at.parse().ok()?);
            }
            "sparse" => {
                let (digest, platforms) = rest.split_once(' ')?;
                self.sparse.insert(digest.parse().ok()?, platforms.to_owned());
            }
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(path: PathBuf) -> io::Result<Records> {
        let root = ConfinedDir::open(path.parent().unwrap()).unwrap();
        Records::open(root, path, true)
    }

    fn file(dir: &Path, name: &str, text: &str) -> (PathBuf, Metadata) {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        let meta = fs::metadata(&path).unwrap();
        (path, meta)
    }

    #[test]
    fn a_changed_file_is_not_verified() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path().join("records")).unwrap();
        let digest = Digest::sha256(b"x");
        let (path, meta) = file(dir.path(), "x", "hello");
        assert!(!records.is_verified(&digest, &meta));
        records.verified(digest, &meta).unwrap();
        assert!(records.is_verified(&digest, &meta));

        // Another process sees it, and what it adds is seen here.
        let other = open(dir.path().join("records")).unwrap();
        assert!(other.is_verified(&digest, &meta));
        let (_, second) = file(dir.path(), "y", "y");
        other.verified(Digest::sha256(b"y"), &second).unwrap();
        assert!(records.is_verified(&Digest::sha256(b"y"), &second));

        // Same size, same inode, and the mtime put back: the ctime tells.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, "jello").unwrap();
        File::open(&path).unwrap().set_modified(meta.modified().unwrap()).unwrap();
        let changed = fs::metadata(&path).unwrap();
        assert_eq!(
            (changed.modified().unwrap(), changed.ino()),
            (meta.modified().unwrap(), meta.ino())
        );
        assert!(!records.is_verified(&digest, &changed));
    }

    #[test]
    fn where_files_are_not_known_again_nothing_is_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records");
        let of_stick = || {
            let root = ConfinedDir::open(dir.path()).unwrap();
            Records::open(root, path.clone(), false).unwrap()
        };
        let digest = Digest::sha256(b"x");
        let (_, meta) = file(dir.path(), "x", "hello");
        // By somebody who has taken it for another file system, or on one.
        open(path.clone()).unwrap().verified(digest, &meta).unwrap();
        let records = of_stick();
        assert!(!records.is_verified(&digest, &meta));
        records.verified(digest, &meta).unwrap();
        assert!(records.is_verified(&digest, &meta) && !of_stick().is_verified(&digest, &meta));
        records.distrust(digest).unwrap();
        assert!(!records.is_verified(&digest, &meta));
        // What cannot be found out again is kept.
        let reference: Reference = format!("quay.io/a/b@{digest}").parse().unwrap();
        records.pin(&reference).unwrap();
        assert!(of_stick().is_pinned(&reference));
    }

    #[test]
    fn pins_and_sparse_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records");
        let records = open(path.clone()).unwrap();
        let reference: Reference = format!("quay.io/a/b@{}", Digest::sha256(b"m")).parse().unwrap();
        records.pin(&reference).unwrap();
        records.pin(&reference).unwrap();
        records.set_sparse(Digest::sha256(b"i"), "linux/amd64").unwrap();
        let again = open(path.clone()).unwrap();
        assert!(again.is_pinned(&reference));
        assert_eq!(again.sparse(&Digest::sha256(b"i")).as_deref(), Some("linux/amd64"));
        again.unpin(&reference).unwrap();
        again.unpin(&reference).unwrap();
        assert!(!open(path.clone()).unwrap().is_pinned(&reference));
        again.set_sparse(Digest::sha256(b"i"), "all").unwrap();
        assert_eq!(again.sparse(&Digest::sha256(b"i")), None);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 5);
    }

    #[test]
    fn damage_costs_a_hash_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records");
        let (_, meta) = file(dir.path(), "x", "x");
        let digest = Digest::sha256(b"x");
        open(path.clone()).unwrap().verified(digest, &meta).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            format!("{}\nblob sha256:zz 1\n\nnew thing\n{}", text.trim_end(), "blob sha"),
        )
        .unwrap();
        let records = open(path.clone()).unwrap();
        assert!(records.is_verified(&digest, &meta));
        records.verified(Digest::sha256(b"y"), &meta).unwrap();
        assert!(
            records.is_verified(&Digest::sha256(b"y"), &meta),
            "not swallowed by the torn line"
        );
        fs::write(&path, "imgfs records 2\nblob x\n").unwrap();
        assert!(open(path.clone()).is_err());
        fs::write(&path, "\0\x01garbage\nblob x\n").unwrap();
        let afresh = open(path.clone()).unwrap();
        afresh.verified(digest, &meta).unwrap();
        assert!(open(path).unwrap().is_verified(&digest, &meta));
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records");
        let records = open(path.clone()).unwrap();
        let (_, meta) = file(dir.path(), "x", "x");
        for _ in 0..COMPACT_LINES + 10 {
            records.verified(Digest::sha256(b"x"), &meta).unwrap();
        }
        assert!(fs::read_to_string(&path).unwrap().lines().count() < 20);
        assert!(open(path).unwrap().is_verified(&Digest::sha256(b"x"), &meta));
    }
}
