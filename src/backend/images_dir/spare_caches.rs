//! Caches of mounts that were there at the same time as others, and that no mount uses any more.
//!
//! The first cache of a directory is kept for the next mount. Those with a number (`cache-2` and so on) are only
//! of use while several mounts are there at once.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{CACHE, ImagesDir, Removed, cached};
use crate::backend::{Error, FileType, Result};

/// Directories of a cache lie no deeper in each other.
const MAX_DEPTH: usize = 4;

impl ImagesDir {
    /// Removes caches with a number that nobody uses; with `dry_run` only says which files these have.
    pub fn prune_caches(&self, dry_run: bool) -> Result<Vec<Removed>> {
        let (root, state) = (&self.inner.root, self.inner.state_dir());
        let entries = match root.open_dir(&state).and_then(|dir| dir.entries()) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&state, "reading", e)),
        };
        let mut removed = Vec::new();
        for entry in entries {
            let is_spare = entry.name.to_str().is_some_and(is_spare_cache);
            if entry.kind != FileType::Directory || !is_spare {
                continue;
            }
            let path = state.join(&entry.name);
            // Held until it is gone: a mount that comes meanwhile takes another one.
            let Some(_lock) = self.lock_cache(&path, dry_run) else { continue };
            self.remove_below(&path, dry_run, 0, &mut removed)
                .map_err(|e| Error::io(&path, "removing", e))?;
        }
        Ok(removed)
    }

    /// Locks the cache in `path`; `None` if somebody has it, or nobody can say.
    fn lock_cache(&self, path: &Path, dry_run: bool) -> Option<File> {
        let lock = path.join(cached::LOCK);
        let file = match dry_run {
            true => self.inner.root.open_file(&lock).ok()?.0,
            false => self.inner.root.open_or_create(&lock).ok()?,
        };
        file.try_lock().ok().map(|()| file)
    }

    fn remove_below(
        &self,
        dir: &Path,
        dry_run: bool,
        depth: usize,
        removed: &mut Vec<Removed>,
    ) -> io::Result<()> {
        let root = &self.inner.root;
        let (mut dirs, mut files): (Vec<PathBuf>, Vec<PathBuf>) = (Vec::new(), Vec::new());
        for entry in root.open_dir(dir)?.entries()? {
            let is_dir = entry.kind == FileType::Directory && depth < MAX_DEPTH;
            if is_dir { &mut dirs } else { &mut files }.push(dir.join(&entry.name));
        }
        for dir in dirs {
            self.remove_below(&dir, dry_run, depth + 1, removed)?;
        }
        // The lock last: who finds it gone may make a new one.
        files.sort_by_key(|path| path.ends_with(cached::LOCK));
        for path in files {
            let Ok(meta) = root.stat(&path) else { continue };
            if !dry_run {
                root.remove_file(&path)?;
            }
            removed.push(Removed { path: self.inner.relative(&path), bytes: meta.len() });
        }
        match dry_run {
            true => Ok(()),
            // A mount that has come at this moment has something in it again.
            false => match root.remove_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                removed => removed,
            },
        }
    }
}

/// Whether a directory of the state has this name that is the cache of a second mount, or of a later one.
fn is_spare_cache(name: &str) -> bool {
    let number = name.strip_prefix(CACHE).and_then(|rest| rest.strip_prefix('-'));
    number.and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| number >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_caches_with_a_number_are_spare() {
        for name in ["cache-2", "cache-16"] {
            assert!(is_spare_cache(name), "{name}");
        }
        for name in ["cache", "cache-", "cache-1", "cache-x", "cached-2", "inside", "cache-2/.."] {
            assert!(!is_spare_cache(name), "{name}");
        }
    }
}
