//! Directories: what is in one, and what walking through it tells.

use std::{
    collections::VecDeque,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    sync::Mutex,
    time::Duration,
};

use rustix::fs::{AtFlags, FileType, Stat, statat};

use super::{
    Attributes, Entry, Found, View, ViewError, below,
    names::{self, Form, form},
    table::Kind,
};
use crate::{
    image::Digest,
    lock::locked,
    tree::{Attachments, Blobs, Error, Names, images_dir::published_time},
};

/// Entries that are looked at before they are asked for: about what the kernel asks for at once.
const AHEAD: usize = 256;

/// What is in a directory, by name, at one moment.
#[derive(Debug)]
pub struct Listing {
    /// The names with what they are, in order.
    pub entries: Vec<(String, bool)>,
    /// The directory itself.
    pub ino: u64,
    /// The one above it.
    pub parent: u64,
    /// Whether it is what it was the last time that it was listed.
    pub unchanged: bool,
    /// Its path below the root.
    path: Box<str>,
    /// The directory of the images_dir that is shown in it.
    dir: Option<File>,
    /// Whether a name in it that is a digest stands for what has that digest.
    holds_digests: bool,
    ahead: Mutex<Ahead>,
}

/// What has been found out of the entries that are going to be asked for.
#[derive(Debug, Default)]
struct Ahead {
    /// The first of them.
    from: usize,
    found: VecDeque<Option<Stat>>,
}

impl Ahead {
    fn take(&mut self, at: usize) -> Option<Stat> {
        if at + 1 == self.from {
            // It did not fit, and comes once more.
            return None;
        }
        if at != self.from {
            self.found.clear();
        }
        self.from = at + 1;
        self.found.pop_front()?
    }
}

impl Listing {
    fn stat(&self, name: &str) -> Option<Stat> {
        statat(self.dir.as_ref()?, name, AtFlags::empty()).ok()
    }

    /// Looks at the next entries while those before them are on their way to whoever asked.
    pub fn look_ahead(&self) {
        let mut ahead = locked(&self.ahead);
        let next = ahead.from + ahead.found.len();
        let room = AHEAD.saturating_sub(ahead.found.len());
        for (name, is_directory) in self.entries.iter().skip(next).take(room) {
            ahead.found.push_back(if *is_directory { None } else { self.stat(name) });
        }
    }
}

impl<S: Names + Blobs + Attachments> View<S> {
    /// What is in the directory `ino`.
    pub fn list(&self, ino: u64) -> Result<Listing, ViewError> {
        let path = self.path_of(ino)?;
        let dir = self.local_path(&path);
        let mut entries: Vec<(String, bool)> = Vec::new();
        let mut opened = None;
        let stamp = match fs::metadata(&dir) {
            Ok(meta) if meta.is_dir() => {
                let failed = |e| Error::io(&dir, "reading", e);
                for entry in fs::read_dir(&dir).map_err(failed)? {
                    let entry = entry.map_err(failed)?;
                    let Ok(name) = entry.file_name().into_string() else { continue };
                    let kind = entry.file_type().map_err(failed)?;
                    let is_directory = match kind.is_symlink() {
                        // Whoever puts a registry on another disk means it.
                        true => fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir()),
                        false => kind.is_dir(),
                    };
                    if is_directory || kind.is_file() || kind.is_symlink() {
                        entries.push((name, is_directory));
                    }
                }
                opened = Some(File::open(&dir).map_err(failed)?);
                i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
            }
            _ => 0,
        };
        let generation = {
            let catalogue = locked(&self.catalogue);
            let known = catalogue.list(&path);
            entries.extend(known.map(|(name, is_directory)| (name.to_owned(), is_directory)));
            catalogue.generation()
        };
        if path.is_empty() {
            entries.push((names::BLOBS.to_owned(), true));
        }
        if path.is_empty() || &*path == names::BLOBS {
            entries.retain(|(name, _)| !names::is_own(name));
        }
        // What is in the images_dir stands before what is known besides.
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(later, _), (first, _)| later == first);
        let now = (stamp, generation);
        let unchanged = locked(&self.listed).insert(ino, now) == Some(now);
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        let parent = locked(&self.table).number(above, &[]);
        let anything = Digest::sha256(b"").to_string();
        let holds_digests =
            matches!(form(&below(&path, &anything)), Form::Blob(_) | Form::Manifest(_));
        let ahead = Mutex::default();
        Ok(Listing { entries, ino, parent, unchanged, path, dir: opened, holds_digests, ahead })
    }

    /// What the entry `at` is that was found when its directory was listed, without asking anybody. What
    /// would have to be asked for is told as it was, or as nothing much, and holds for no time.
    pub fn listed(&self, listing: &Listing, at: usize) -> Result<Option<Entry>, ViewError> {
        let Some((name, is_directory)) = listing.entries.get(at) else { return Ok(None) };
        let path = below(&listing.path, name);
        if let Some(entry) = self.listed_file(listing, at, name, &path) {
            return Ok(Some(entry));
        }
        let question = match self.look(&path) {
            Ok(Found::Entry(entry)) => return Ok(Some(entry)),
            Ok(Found::Absent(_)) if *is_directory => return Ok(None),
            Ok(Found::Absent(_)) | Err(ViewError::Offline(_)) => None,
            Ok(Found::Ask(question)) => Some(question),
            Err(error) => return Err(error),
        };
        let known = question.and_then(|question| {
            let catalogue = locked(&self.catalogue);
            let (manifest, _) = catalogue.manifest(&question.name)?;
            Some((question, manifest.clone()))
        });
        let entry = match known {
            Some((question, manifest)) => self.manifest(&path, &question.name, &manifest),
            None => {
                let ino = self.tell(&path, b"unknown", Kind::Unknown);
                let mtime = published_time(None);
                let attributes = Attributes { ino, is_directory: false, size: 0, mtime };
                Entry { attributes, ttl: Duration::ZERO }
            }
        };
        Ok(Some(Entry { ttl: Duration::ZERO, ..entry }))
    }

    /// A file in the images_dir that was found when its directory was listed. This is most of what
    /// walking through a mount costs, so it takes no longer way than it must.
    fn listed_file(&self, listing: &Listing, at: usize, name: &str, path: &str) -> Option<Entry> {
        let known = locked(&listing.ahead).take(at);
        let stat = known.or_else(|| listing.stat(name))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let size = u64::try_from(stat.st_size).ok()?;
        let digest = name.parse().ok().filter(|_| listing.holds_digests);
        if &*listing.path == names::BLOBS && self.has_other_size(digest.as_ref(), size) {
            return None;
        }
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Some(self.local_file(path, digest.is_some(), size, mtime))
    }

    /// The number of something that was found when its directory was listed, if the kernel is not
    /// told more of it.
    pub fn number_of(&self, listing: &Listing, name: &str) -> u64 {
        locked(&self.table).number(&below(&listing.path, name), &[])
    }
}
