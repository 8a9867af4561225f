//! Opening a cache: whose it is, what is in it, and what was used last.

use std::{
    collections::HashMap,
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
    state::{Blob, Key, Place, WHOLE, disk_bytes},
};
use crate::{
    backend::{
        ConfinedDir, Error, Kind, Result,
        images_dir::cached::{self, BLOCK_BYTES, BlockMap, MAP_SUFFIX, PART, WHOLE as WHOLE_DIR},
    },
    image::Digest,
    util::locked,
};

/// The file that says in which order blobs were used.
const RECENT: &str = "recent";

/// More than a file `version` has, in bytes.
const MAX_VERSION: u64 = 4096;

/// Creates what is missing of the cache at `dir`, and takes its lock. If it is in `within`, no link in there
/// is followed on the way to it.
pub(super) fn lock(dir: &Path, within: Option<&ConfinedDir>) -> Result<(ConfinedDir, File)> {
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
    let path = dir.join("lock");
    let mut lock = root.open_or_create(&path).map_err(|e| failed("opening", &path, e))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // Without its number it is another process all the same.
            let _ = (&lock).take(20).read_to_string(&mut owner);
            let owner = owner.trim();
            return Err(refuse(format!(
                "process {} is using this cache; give each mount its own (--cache-dir)",
                if owner.is_empty() { "?" } else { owner }
            )));
        }
        Err(TryLockError::Error(e)) => return Err(failed("locking", &path, e)),
    }
    let version = dir.join("version");
    match root.read(&version, MAX_VERSION) {
        Ok(text) if text == cached::VERSION.as_bytes() => {}
        Ok(text) if text.starts_with(cached::VERSION_NAME.as_bytes()) => {
            return Err(refuse(format!(
                "it is in the form `{}`, of a newer imgfs; give another directory (--cache-dir)",
                String::from_utf8_lossy(&text).trim()
            )));
        }
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("reading", &version, e)),
        // None, or what a power cut has left of it; nothing in here is trusted unseen.
        _ => {
            let written = root.write(&version, cached::VERSION.as_bytes());
            written.map_err(|e| failed("writing", &version, e))?;
        }
    }
    for name in [PART, WHOLE_DIR, GONE] {
        let path = dir.join(name);
        root.create_dirs(&path).map_err(|e| failed("creating", &path, e))?;
    }
    let written = lock
        .set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()));
    // A full disk must not keep anybody from reading what is here; it is for a message only.
    drop(written);
    Ok((root, lock))
}

impl Core {
    /// Finds what is here, and removes what makes no sense.
    pub(super) fn load(&self) -> io::Result<()> {
        let root = &self.root;
        for (_, path) in entries(root, &self.dir.join(GONE))? {
            root.remove_file(&path)?;
        }
        let mut found = Vec::new();
        for (digest, path) in digests(root, &self.dir.join(WHOLE_DIR))? {
            let meta = root.stat(&path)?;
            if !meta.is_file() || !cached::is_sealed(&meta) {
                root.remove_file(&path)?;
                continue;
            }
            let key = Key { digest, size: meta.len() };
            let mut blob = Blob::new(0, &key, self.extent_blocks, Place::Whole(None));
            blob.charge = disk_bytes(key.size);
            found.push((key, blob));
        }
        let part = self.dir.join(PART);
        for (name, path) in entries(root, &part)? {
            // A map without data is worth nothing.
            let of = name.strip_suffix(MAP_SUFFIX).filter(|of| of.parse::<Digest>().is_ok());
            if of.is_some_and(|of| root.stat(&part.join(of)).is_err()) {
                root.remove_file(&path)?;
            }
        }
        for (digest, path) in digests(root, &part)? {
            let is_whole = found.iter().any(|(key, _)| key.digest == digest);
            let loaded = if is_whole { None } else { self.load_parts(digest, &path)? };
            match loaded {
                Some(loaded) => found.push(loaded),
                None => {
                    root.remove_if_there(&cached::map_path(&self.dir, &digest))?;
                    root.remove_if_there(&path)?;
                }
            }
        }
        let recent = root.read(&self.dir.join(RECENT), u64::MAX).unwrap_or_default();
        let recent = String::from_utf8_lossy(&recent);
        let ranks: HashMap<&str, usize> = recent.lines().zip(1..).collect();
        found.sort_by_key(|(key, _)| ranks.get(key.digest.to_string().as_str()).copied());
        let mut state = self.lock();
        for (key, mut blob) in found {
            blob.id = state.number();
            state.used += blob.charge;
            state.owners.insert(key.digest, key.size);
            let units = match blob.place {
                Place::Whole(_) => vec![WHOLE],
                _ => blob.extents.keys().copied().collect(),
            };
            state.blobs.insert(key, blob);
            for unit in units {
                state.touch(&key, unit);
            }
        }
        Ok(())
    }

    /// What is here of a blob in parts; `None` if that makes no sense.
    fn load_parts(&self, digest: Digest, path: &Path) -> io::Result<Option<(Key, Blob)>> {
        let meta = self.root.stat(path)?;
        let map_path = cached::map_path(&self.dir, &digest);
        let is_sane = self
            .root
            .stat(&map_path)
            .is_ok_and(|map| map.len() == cached::map_bytes(meta.len().min(MAX_SIZE)));
        let map = if is_sane { BlockMap::read(&self.root, &map_path)? } else { None };
        let Some(map) = map.filter(|map| meta.is_file() && map.size == meta.len()) else {
            return Ok(None);
        };
        let key = Key { digest, size: map.size };
        let mut blob = Blob::new(0, &key, self.extent_blocks, Place::Parts(None));
        blob.charge = disk_bytes(cached::map_bytes(map.size));
        for (block, sum) in (0..).zip(&map.sums).filter(|(_, sum)| **sum != 0) {
            blob.put_sum(block, *sum, false);
            blob.charge += disk_bytes(blob.length(block) as u64);
        }
        if blob.stored == 0 {
            return Ok(None);
        }
        // A process that was killed between clearing a checksum and removing its block, or between
        // a block and its checksum, has left one that nobody knows.
        if meta.blocks() * 512 > blob.charge {
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
            self.runtime.spawn_blocking(move || core.save_recent());
        }
    }

    /// Writes down in which order blobs were used. Without it the next process takes another
    /// order, which is why failing to is no error.
    pub(super) fn save_recent(&self) {
        let mut last: HashMap<Digest, usize> = HashMap::new();
        let mut order: Vec<Digest> = Vec::new();
        {
            let state = self.lock();
            for (key, _) in state.lru.iter() {
                last.insert(key.digest, order.len());
                order.push(key.digest);
            }
        }
        let mut text = String::new();
        for (_, digest) in order.iter().enumerate().filter(|(at, d)| last.get(d) == Some(at)) {
            text.push_str(&format!("{digest}\n"));
        }
        let temporary = self.dir.join(GONE).join(RECENT);
        let written = self
            .root
            .write(&temporary, text.as_bytes())
            .and_then(|()| self.root.rename(&temporary, &self.dir.join(RECENT)));
        if written.is_err() {
            // Its remains are removed when the cache is opened.
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

/// The entries that are named by a digest.
fn digests(root: &ConfinedDir, dir: &Path) -> io::Result<Vec<(Digest, PathBuf)>> {
    let parse = |(name, path): (String, PathBuf)| Some((name.parse().ok()?, path));
    Ok(entries(root, dir)?.into_iter().filter_map(parse).collect())
}
