//! Where files are kept that are being written: a directory of each mount in `blobs/.imgfs/pending`.
//!
//! ```text
//! pending/<number>/
//!   lock              locked by the mount that has the directory
//!   data-<number>     the content of a file that is being written
//!   waiting-<number>  a whole manifest that waits for what it names: a line of JSON, then the manifest
//! ```
//!
//! Manifests survive the mount: the next one takes up those of all that have ended. What else has been left was
//! being written when a mount was killed, and is removed.

use std::{
    fs::{File, TryLockError},
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{ConfinedDir, Flush, images_dir::ImagesDir},
    image::MAX_MANIFEST_BYTES,
};

/// Mounts of one directory that can be written to at the same time.
const MAX_MOUNTS: u32 = 64;

/// Manifests that a mount takes up when it starts.
const MAX_WAITING: usize = 100_000;

/// The longest line that stands before a manifest, in bytes.
const MAX_LINE: usize = 16 << 10;

const LOCK: &str = "lock";
const DATA: &str = "data-";
const WAITING: &str = "waiting-";

/// The directory of one mount.
pub(super) struct Store {
    root: ConfinedDir,
    dir: PathBuf,
    next: AtomicU64,
    /// Whether the mount has ended: manifests that wait stay then.
    is_over: AtomicBool,
    flush: Flush,
    _lock: File,
}

/// A manifest that waits, as it is kept.
pub(super) struct Kept {
    /// Its path below the root of the mount.
    pub path: String,
    /// The time that somebody has set for it.
    pub mtime: Option<(i64, u32)>,
    /// Its content.
    pub content: Vec<u8>,
}

/// The directory, and the manifests that wait in it.
pub(super) type Opened = (Arc<Store>, Vec<(Kept, StoredFile)>);

/// What stands before the manifest.
#[derive(Serialize, Deserialize)]
struct Line {
    path: String,
    mtime: Option<(i64, u32)>,
}

/// A file in the directory, which goes when this is dropped, unless it has been published.
pub(super) struct StoredFile {
    store: Arc<Store>,
    path: PathBuf,
    is_waiting: bool,
}

impl StoredFile {
    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }
}

impl Drop for StoredFile {
    fn drop(&mut self) {
        if self.is_waiting && self.store.is_over.load(Ordering::Relaxed) {
            return;
        }
        // What cannot be removed now goes when the next mount takes up the directory.
        let _ = self.store.root.remove_if_there(&self.path);
    }
}

impl Store {
    /// Takes a directory that no other mount has, and the manifests that wait in it and in those of mounts that have
    /// ended.
    pub(super) fn open(images: &ImagesDir) -> io::Result<Opened> {
        let (root, above) = (images.dir().clone(), images.pending_dir());
        let mut own: Option<Arc<Self>> = None;
        let mut found = Vec::new();
        for number in 1..=MAX_MOUNTS {
            let dir = above.join(number.to_string());
            if own.is_some() && !root.is_dir(&dir) {
                continue;
            }
            root.create_dirs(&dir)?;
            let lock = root.open_or_create(&dir.join(LOCK))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) => return Err(e),
            }
            let left = Self {
                root: root.clone(),
                dir,
                next: AtomicU64::new(1),
                is_over: AtomicBool::new(false),
                flush: images.flush(),
                _lock: lock,
            };
            left.clear(DATA)?;
            let waiting = left.waiting()?;
            match &own {
                None => {
                    let own = own.insert(Arc::new(left));
                    found.extend(waiting.into_iter().map(|(name, kept)| {
                        let path = own.dir.join(name);
                        (kept, StoredFile { store: own.clone(), path, is_waiting: true })
                    }));
                }
                Some(own) => {
                    for (_, kept) in waiting {
                        let file = own.keep(&kept.path, kept.mtime, &kept.content)?;
                        found.push((kept, file));
                    }
                    left.clear(WAITING)?;
                }
            }
        }
        let too_many = || io::Error::other(format!("{MAX_MOUNTS} mounts write to it already"));
        own.map(|own| (own, found)).ok_or_else(too_many)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = self.root.open_dir(&self.dir)?.entries()?;
        Ok(entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect())
    }

    /// Removes the files whose names begin so.
    fn clear(&self, prefix: &str) -> io::Result<()> {
        for name in self.names()?.iter().filter(|name| name.starts_with(prefix)) {
            self.root.remove_if_there(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// The manifests that wait, with the names of their files, in the order in which they have been written. What was
    /// cut short is removed: nobody was told that it is kept.
    fn waiting(&self) -> io::Result<Vec<(String, Kept)>> {
        let mut waiting = Vec::new();
        let mut last = 0;
        let number = |name: &String| -> Option<u64> {
            Some(name.strip_prefix(WAITING)?.parse().unwrap_or(0))
        };
        let mut names = self.names()?;
        names.sort_by_cached_key(number);
        for name in names {
            let Some(number) = number(&name) else { continue };
            last = last.max(number);
            let limit = (MAX_MANIFEST_BYTES + MAX_LINE) as u64;
            let text = self.root.read(&self.dir.join(&name), limit + 1)?;
            let line = text.iter().take(MAX_LINE).position(|byte| *byte == b'\n');
            let parsed = line.and_then(|end| {
                let line: Line = serde_json::from_slice(&text[..end]).ok()?;
                Some(Kept { path: line.path, mtime: line.mtime, content: text[end + 1..].to_vec() })
            });
            match parsed.filter(|_| waiting.len() < MAX_WAITING) {
                Some(parsed) => waiting.push((name, parsed)),
                None => self.root.remove_if_there(&self.dir.join(&name))?,
            }
        }
        self.next.store(last + 1, Ordering::Relaxed);
        Ok(waiting)
    }

    /// Removes what was being written, since nobody writes any more.
    pub(super) fn end(&self) -> io::Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        self.clear(DATA)
    }

    /// A number that no file has.
    pub(super) fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// An empty file to write to.
    pub(super) fn create(self: &Arc<Self>) -> io::Result<(File, StoredFile)> {
        let path = self.dir.join(format!("{DATA}{}", self.next()));
        let file = self.root.create_new(&path)?;
        Ok((file, StoredFile { store: self.clone(), path, is_waiting: false }))
    }

    /// Keeps a whole manifest for the time after this mount.
    pub(super) fn keep(
        self: &Arc<Self>,
        path: &str,
        mtime: Option<(i64, u32)>,
        content: &[u8],
    ) -> io::Result<StoredFile> {
        let mut text = serde_json::to_vec(&Line { path: path.to_owned(), mtime })?;
        text.push(b'\n');
        text.extend_from_slice(content);
        let (mut file, stored) = self.create()?;
        file.write_all(&text)?;
        if self.flush == Flush::Now {
            file.sync_all()?;
        }
        let kept = self.dir.join(format!("{WAITING}{}", self.next()));
        self.root.rename(&stored.path, &kept)?;
        if self.flush == Flush::Now {
            self.root.sync_dir(&self.dir)?;
        }
        Ok(StoredFile { store: self.clone(), path: kept, is_waiting: true })
    }
}
