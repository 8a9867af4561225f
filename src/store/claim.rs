//! Whose a directory is: whether it is a store of imgfs, and which process may change it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{STATE, StoreDir};
use crate::{
    backend::{Error, Kind, Result},
    util::disturbs,
};

/// The file in the state of a store that is locked by whoever changes it.
const LOCK: &str = "lock";

/// How long is waited for another process, which may be about to end.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// What is read of the file that says who has locked it, in bytes.
const MAX_HOLDER: u64 = 4096;

/// That no other process changes a store, or whatever else has such a lock, as long as this lives.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

/// Why there is no claim.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process has it.
    #[error("{0}")]
    Held(String),
    /// The file could not be locked.
    #[error("locking it: {0}")]
    Lock(#[from] io::Error),
}

impl Claim {
    /// Locks the file `path`, which is created if need be, for `holder`. Waits for whoever has it for some seconds.
    pub fn take(path: &Path, holder: &str) -> std::result::Result<Self, ClaimError> {
        let mut options = OpenOptions::new();
        let mut lock = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(ClaimError::Held(format!("{} has it to itself", holder_of(&lock))));
                }
                Err(TryLockError::Error(e)) => return Err(e.into()),
            }
        }
        let said = format!("{holder} (process {})", std::process::id());
        // It is told to those who are refused, and is not worth an error.
        let _ = lock.set_len(0).and_then(|()| lock.write_all(said.as_bytes()));
        Ok(Self { _lock: lock })
    }
}

impl StoreDir {
    /// Opens the store in the directory `root` as [`StoreDir::create`] does, and keeps all others from changing it
    /// as long as the claim lives, for `holder`. [`Kind::InUse`] if another process has it.
    ///
    /// ```
    /// use imgfs::store::StoreDir;
    ///
    /// let temporary = tempfile::tempdir()?;
    /// let (_store, claim) = StoreDir::serve(&temporary.path().join("store"), "the mount at /mnt")?;
    /// drop(claim);
    /// assert!(StoreDir::serve(&temporary.path().join("store"), "the mount at /mnt").is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn serve(root: &Path, holder: &str) -> Result<(Self, Claim)> {
        let store = Self::begin(root)?;
        // Before anything else is changed: it may be another's.
        let claim = store.claim(holder)?;
        store.complete()?;
        Ok((store, claim))
    }

    /// Keeps all others from changing the store as long as the claim lives, for `holder`. Waits for whoever has it
    /// for some seconds.
    pub fn claim(&self, holder: &str) -> Result<Claim> {
        let path = self.root.join(STATE).join(LOCK);
        Claim::take(&path, holder).map_err(|error| match error {
            ClaimError::Held(held) => {
                let way_out = "end that first, or give another directory with --store";
                self.refused(Kind::InUse(format!("{held}; {way_out}")))
            }
            ClaimError::Lock(e) => self.error("locking", &path, e),
        })
    }

    fn refused(&self, kind: Kind) -> Error {
        Error::new("store", format_args!("opening {}", self.root.display()), kind)
    }

    /// An error if there is something in the directory that imgfs has not made.
    pub(super) fn refuse_others(&self) -> Result<()> {
        let found = others_in(&self.root);
        match found.map_err(|e| self.error("reading", &self.root, e))? {
            None => Ok(()),
            Some(path) => Err(self.refused(Kind::Config(format!(
                "{} is not imgfs's; give a directory that is empty or does not exist yet: --store DIR",
                path.display()
            )))),
        }
    }
}

/// Who says that he has locked the file.
fn holder_of(lock: &File) -> String {
    let (mut lock, mut text) = (lock, Vec::new());
    let read =
        lock.rewind().and_then(|()| lock.take(MAX_HOLDER).read_to_end(&mut text)).unwrap_or(0);
    match String::from_utf8(text) {
        Ok(text) if read > 0 && !text.contains(disturbs) => text,
        _ => "another process".to_owned(),
    }
}

/// Something in the directory `root` that imgfs has not made. What podman creates in a store that it is to read and
/// that is not there yet does not count, nor does what file systems have by themselves.
fn others_in(root: &Path) -> io::Result<Option<PathBuf>> {
    // Only whoever runs containers has these: it is all of a store of podman's own.
    let containers = root.join("overlay-containers");
    if fs::symlink_metadata(&containers).is_ok() {
        return Ok(Some(containers));
    }
    let has = |name| fs::metadata(root.join(name)).is_ok();
    if has(STATE) && has("overlay-layers") {
        return Ok(None);
    }
    for entry in entries(root)? {
        let path = root.join(&entry);
        match entry.to_str() {
            Some(STATE | "lost+found") => {}
            Some("overlay" | "overlay-images" | "overlay-layers") => {
                for below in entries(&path)? {
                    let path = path.join(&below);
                    let is_lock = path.extension().is_some_and(|ending| ending == "lock");
                    let is_harmless = is_lock || (below == "l" && entries(&path)?.is_empty());
                    if !is_harmless {
                        return Ok(Some(path));
                    }
                }
            }
            _ => return Ok(Some(path)),
        }
    }
    Ok(None)
}

/// The names in a directory; none if it does not exist.
fn entries(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found?.map(|entry| Ok(entry?.file_name())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All paths below `dir`, with what is in the files.
    fn all(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        for name in entries(dir).unwrap() {
            let path = dir.join(name);
            match path.is_dir() {
                true => found.extend(all(&path)),
                false => found.push((path.clone(), fs::read(&path).unwrap())),
            }
            found.push((path, Vec::new()));
        }
        found.sort();
        found
    }

    #[test]
    fn a_directory_that_imgfs_has_not_made_is_refused_and_stays_what_it_was() {
        let podman = &[
            ("overlay-containers/containers.json", "[]"),
            ("overlay-layers/layers.json", r#"[{"id":"x"}]"#),
            ("overlay/x/diff/file", ""),
            ("storage.lock", ""),
        ][..];
        let snapshotter = &[(".imgfs/x/source", "{}"), ("snapshots/1/fs/x", "")][..];
        let images = &[("overlay-images/images.json", "[]")][..];
        let layers = &[("overlay/0/diff/x", "")][..];
        for files in [podman, snapshotter, images, layers, &[("file", "x")][..]] {
            let dir = tempfile::tempdir().unwrap();
            for (path, content) in files {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            let before = all(dir.path());
            let errors = [
                StoreDir::create(dir.path()).unwrap_err(),
                StoreDir::open(dir.path()).unwrap_err(),
                StoreDir::serve(dir.path(), "x").unwrap_err(),
            ];
            assert_eq!(all(dir.path()), before);
            for error in [&errors[0], &errors[2]] {
                let text = error.to_string();
                assert!(text.contains("not imgfs's") && text.contains("--store DIR"), "{text}");
            }
        }
    }

    #[test]
    fn the_store_of_podman_is_refused_though_imgfs_has_been_in_it() {
        let dir = tempfile::tempdir().unwrap();
        StoreDir::create(dir.path()).unwrap();
        fs::create_dir(dir.path().join("overlay-containers")).unwrap();
        let error = StoreDir::create(dir.path()).unwrap_err().to_string();
        assert!(error.contains("overlay-containers is not imgfs's"), "{error}");
        assert!(StoreDir::open(dir.path()).is_err());
    }

    #[test]
    fn what_podman_and_file_systems_have_put_into_an_empty_store_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        for below in ["overlay-images", "overlay-layers", "overlay/l", "lost+found", ".imgfs"] {
            fs::create_dir_all(dir.path().join(below)).unwrap();
        }
        fs::write(dir.path().join("overlay-images/images.lock"), "").unwrap();
        fs::write(dir.path().join("overlay-layers/layers.lock"), "").unwrap();
        StoreDir::create(dir.path()).unwrap();
        StoreDir::create(dir.path()).unwrap();
    }

    #[test]
    fn a_store_has_one_process_at_a_time_and_others_are_told_which() {
        let dir = tempfile::tempdir().unwrap();
        let (_store, claim) = StoreDir::serve(dir.path(), "the mount at /mnt/a").unwrap();
        let error = StoreDir::serve(dir.path(), "the mount at /mnt/b").unwrap_err();
        let text = error.to_string();
        let holder = format!("the mount at /mnt/a (process {})", std::process::id());
        assert!(error.is_in_use() && text.contains(&holder) && text.contains("--store"), "{text}");
        // Whoever ends soon is waited for.
        let ends = std::thread::spawn(move || {
            std::thread::sleep(PAUSE * 4);
            drop(claim);
        });
        StoreDir::serve(dir.path(), "the mount at /mnt/b").unwrap();
        ends.join().unwrap();
    }
}
