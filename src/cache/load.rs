//! Opening a cache: whose it is, what is in it, and what was used last.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, TryLockError},
    io::{self, ErrorKind, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{
    Core, GONE, SAVE_INTERVAL, SIDE,
    disk::punch,
    read::MAX_SIZE,
    state::{Blob, Key, WHOLE},
    stored::{Place, disk_bytes},
};
use crate::{
    backend::{
        ConfinedDir, Error, Kind, Result,
        images_dir::cached::{
            self, BLOCK_BYTES, BlockMap, ContentId, MAP_SUFFIX, PART, STREAMS, WHOLE as WHOLE_DIR,
        },
    },
    util::locked,
};

/// The file that says in which order blobs were used.
const RECENT: &str = "recent";

/// More than a file `version` has, in bytes.
const MAX_VERSION: u64 = 4096;

/// The versions of a cache that are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// This one.
    Current,
    /// Names have colons.
    WithColons,
    /// The same, and streams are among the blobs. Also what a power cut has left without a version.
    WithoutStreams,
}

/// Creates what is missing of the cache at `dir`, and takes its lock. If it is in `within`, no link in there
/// is followed on the way to it.
///
/// The last value says of which version it is; if that is an older one, [`Core::load`] has to bring it into form
/// first, and to write the version.
pub(super) fn lock(
    dir: &Path,
    within: Option<&ConfinedDir>,
) -> Result<(ConfinedDir, File, Version)> {
    let failed = |doing: &str, path: &Path, error: io::Error| {
        Error::new(SIDE, format_args!("{doing} {}", path.display()), error)
    };
    let refuse = |reason: String| {
        Error::new(SIDE, format_args!("opening {}", dir.display()), Kind::Config(reason))
    };
    let root = match within {
        Some(above) => above.create_dirs(dir).and_then(|()| above.subdirectory(dir)),
        None => ConfinedDir::create(dir),
    };
    let root = root.map_err(|e| failed("creating", dir, e))?;
    let path = dir.join(cached::LOCK);
    let mut lock = root.open_or_create(&path).map_err(|e| failed("opening", &path, e))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // Without its number it is another process all the same.
            let _ = (&lock).take(20).read_to_string(&mut owner);
            let owner = owner.trim();
            let reason = format!(
                "process {} is using this cache; give each mount its own (--cache-dir)",
                if owner.is_empty() { "?" } else { owner }
            );
            let opening = format_args!("opening {}", dir.display());
            return Err(Error::new(SIDE, opening, Kind::InUse(reason)));
        }
        Err(TryLockError::Error(e)) => return Err(failed("locking", &path, e)),
    }
    let version = dir.join("version");
    let found = match root.read(&version, MAX_VERSION) {
        Ok(text) if text == cached::VERSION.as_bytes() => Version::Current,
        Ok(text) if text == cached::VERSION_WITH_COLONS.as_bytes() => Version::WithColons,
        Ok(text) if text == cached::VERSION_WITHOUT_STREAMS.as_bytes() => Version::WithoutStreams,
        Ok(text) if text.starts_with(cached::VERSION_NAME.as_bytes()) => {
            return Err(refuse(format!(
                "it is in the form `{}`, of a newer imgfs; give another directory (--cache-dir)",
                String::from_utf8_lossy(&text).trim()
            )));
        }
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("reading", &version, e)),
        // None, or what a power cut has left of it.
        _ => Version::WithoutStreams,
    };
    let streams = dir.join(STREAMS);
    let dirs = [dir, &streams].map(|base| [base.join(PART), base.join(WHOLE_DIR)]);
    for path in dirs.into_iter().flatten().chain([dir.join(GONE)]) {
        root.create_dirs(&path).map_err(|e| failed("creating", &path, e))?;
    }
    let written = lock
        .set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()));
    // A full disk must not keep anybody from reading what is here; it is for a message only.
    drop(written);
    Ok((root, lock, found))
}

impl Core {
    /// Finds what is here, and removes what makes no sense.
    ///
    /// Whole files of a version in which their names were no proof of their content are hashed.
    pub(super) fn load(&self, version: Version) -> io::Result<()> {
        let root = &self.root;
        for (_, path) in entries(root, &self.dir.join(GONE))? {
            root.remove_file(&path)?;
        }
        if version != Version::Current {
            self.rename_with_colons()?;
        }
        if version == Version::WithoutStreams {
            for (content, path) in contents(root, &self.dir.join(WHOLE_DIR), ContentId::parse_blob)?
            {
                let is_right = match content {
                    ContentId::Blob(digest) => cached::has_digest(root, &path, &digest)?,
                    ContentId::Stream(_) => false,
                };
                if !is_right {
                    root.remove_file(&path)?;
                }
            }
        }
        if version != Version::Current {
            root.write(&self.dir.join("version"), cached::VERSION.as_bytes())?;
        }
        let mut found = Vec::new();
        self.load_from(&self.dir, ContentId::parse_blob, &mut found)?;
        self.load_from(&self.dir.join(STREAMS), ContentId::parse_stream, &mut found)?;
        let recent = root.read(&self.dir.join(RECENT), u64::MAX).unwrap_or_default();
        let recent = String::from_utf8_lossy(&recent);
        let ranks: HashMap<&str, usize> = recent.lines().zip(1..).collect();
        found.sort_by_key(|(key, _)| ranks.get(key.content.file_name().as_str()).copied());
        let mut state = self.lock();
        for (key, mut blob) in found {
            blob.id = state.number();
            state.used += blob.disk.charge;
            state.owners.insert(key.content, key.size);
            let units = match blob.disk.place {
                Place::Whole(_) => vec![WHOLE],
                _ => blob.disk.extents.keys().copied().collect(),
            };
            state.blobs.insert(key, blob);
            for unit in units {
                state.touch(&key, unit);
            }
        }
        Ok(())
    }

    /// Gives files whose names have colons the names that they have now.
    fn rename_with_colons(&self) -> io::Result<()> {
        for base in [self.dir.clone(), self.dir.join(STREAMS)] {
            for dir in [base.join(PART), base.join(WHOLE_DIR)] {
                for (name, path) in entries(&self.root, &dir)? {
                    if name.contains(':') {
                        self.root.rename(&path, &dir.join(name.replacen(':', "-", 1)))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds what is here of one kind of content, whose names `parse` knows.
    fn load_from(&self, base: &Path, parse: Parse, found: &mut Vec<(Key, Blob)>) -> io::Result<()> {
        let root = &self.root;
        for (content, path) in contents(root, &base.join(WHOLE_DIR), parse)? {
            let meta = root.stat(&path)?;
            if !meta.is_file() || !cached::is_sealed(&meta) {
                root.remove_file(&path)?;
                continue;
            }
            let key = Key { content, size: meta.len() };
            let mut blob = Blob::new(0, &key, self.extent_blocks, Place::Whole(None));
            blob.disk.charge = disk_bytes(key.size);
            found.push((key, blob));
        }
        let whole: HashSet<ContentId> = found.iter().map(|(key, _)| key.content).collect();
        let part = base.join(PART);
        for (name, path) in entries(root, &part)? {
            // A map without data is worth nothing.
            let of = name.strip_suffix(MAP_SUFFIX).filter(|of| parse(of).is_some());
            if of.is_some_and(|of| root.stat(&part.join(of)).is_err()) {
                root.remove_file(&path)?;
            }
        }
        for (content, path) in contents(root, &part, parse)? {
            let is_whole = whole.contains(&content);
            let loaded = if is_whole { None } else { self.load_parts(content, &path)? };
            match loaded {
                Some(loaded) => found.push(loaded),
                None => {
                    root.remove_if_there(&content.map_path(&self.dir))?;
                    root.remove_if_there(&path)?;
                }
            }
        }
        Ok(())
    }

    /// What is here of content in parts; `None` if that makes no sense.
    fn load_parts(&self, content: ContentId, path: &Path) -> io::Result<Option<(Key, Blob)>> {
        let meta = self.root.stat(path)?;
        let map_path = content.map_path(&self.dir);
        let is_sane = self
            .root
            .stat(&map_path)
            .is_ok_and(|map| map.len() == cached::map_bytes(meta.len().min(MAX_SIZE)));
        let map = if is_sane { BlockMap::read(&self.root, &map_path)? } else { None };
        let Some(map) = map.filter(|map| meta.is_file() && map.size == meta.len()) else {
            return Ok(None);
        };
        let key = Key { content, size: map.size };
        let mut blob = Blob::new(0, &key, self.extent_blocks, Place::Parts(None));
        blob.disk.charge = disk_bytes(cached::map_bytes(map.size));
        for (block, sum) in (0..).zip(&map.sums).filter(|(_, sum)| **sum != 0) {
            blob.disk.put_sum(block, *sum, false);
            blob.disk.charge += disk_bytes(blob.length(block) as u64);
        }
        if blob.disk.stored == 0 {
            return Ok(None);
        }
        // A process that was killed between clearing a checksum and removing its block, or between
        // a block and its checksum, has left one that nobody knows.
        if meta.blocks() * 512 > blob.disk.charge {
            let (file, _) = self.root.open_to_write(path)?;
            let mut at = 0;
            let is_absent = |block: u64| map.sums.get(block as usize) == Some(&0);
            while at < cached::block_count(map.size) {
                let start = at;
                while is_absent(at) {
                    at += 1;
                }
                if at > start
                    && punch(&file, start * BLOCK_BYTES, (at - start) * BLOCK_BYTES).is_err()
                {
                    return Ok(None);
                }
                at += 1;
            }
        }
        Ok(Some((key, blob)))
    }

    /// Evicts until everything fits: the limit may be lower than it was.
    pub(super) fn shrink(&self) {
        loop {
            let victim = {
                let mut state = self.lock();
                if state.used <= self.room_bytes {
                    return;
                }
                self.choose_victim(&mut state)
            };
            match victim {
                Some(victim) => self.evict(victim),
                None => return,
            }
        }
    }

    /// Writes down in which order blobs were used, if that was not done lately.
    pub(super) fn save_recent_sometimes(&self) {
        {
            let mut saved = locked(&self.saved);
            if saved.elapsed() < SAVE_INTERVAL {
                return;
            }
            *saved = Instant::now();
        }
        if let Some(core) = self.me.upgrade() {
            drop(self.tasks.spawn_blocking(move || core.save_recent()));
        }
    }

    /// Writes down in which order blobs were used. Without it the next process takes another
    /// order, which is why failing to is no error.
    pub(super) fn save_recent(&self) {
        let mut last: HashMap<ContentId, usize> = HashMap::new();
        let mut order: Vec<ContentId> = Vec::new();
        {
            let state = self.lock();
            for ((key, _), ()) in state.lru.iter().rev() {
                last.insert(key.content, order.len());
                order.push(key.content);
            }
        }
        let mut text = String::new();
        for (_, content) in order.iter().enumerate().filter(|(at, c)| last.get(c) == Some(at)) {
            text.push_str(&format!("{}\n", content.file_name()));
        }
        let temporary = self.dir.join(format!("{RECENT}.new"));
        let written = self
            .root
            .write(&temporary, text.as_bytes())
            .and_then(|()| self.root.rename(&temporary, &self.dir.join(RECENT)));
        if written.is_err() {
            // What remains of it is written over the next time.
            let _ = self.root.remove_file(&temporary);
        }
    }
}

fn entries(root: &ConfinedDir, dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = root.open_dir(dir)?.entries()?.into_iter();
    // Other names are not ours.
    let named = entries.filter_map(|entry| entry.name.into_string().ok());
    Ok(named.map(|name| (name.clone(), dir.join(name))).collect())
}

/// Tells which content a file holds by its name.
type Parse = fn(&str) -> Option<ContentId>;

/// The entries whose names `parse` knows.
fn contents(root: &ConfinedDir, dir: &Path, parse: Parse) -> io::Result<Vec<(ContentId, PathBuf)>> {
    let parse = |(name, path): (String, PathBuf)| Some((parse(&name)?, path));
    Ok(entries(root, dir)?.into_iter().filter_map(parse).collect())
}
