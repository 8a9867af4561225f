//! A list of a store, `layers.json` or `images.json`, and its lock.

use std::{
    fs::{self, File, OpenOptions},
    io,
    marker::PhantomData,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{FlockOperation, fcntl_lock},
    rand::{GetRandomFlags, getrandom},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::StoreDir;
use crate::{
    backend::{Error, Kind, Result},
    image::ChainId,
    util::{locked, write_whole},
};

/// Bytes of a lock file that are compared by whoever has the store open.
const STAMP_BYTES: usize = 64;

/// Locks of fcntl(2) are those of a process, so within one only this keeps changes apart.
static CHANGING: Mutex<()> = Mutex::new(());

/// What a list consists of.
pub(super) trait Entry: Serialize + DeserializeOwned {
    /// The directory of the list, and its name without an ending.
    const PLACE: (&'static str, &'static str);
    /// The key of the layer that an entry is about.
    const LAYER_KEY: &'static str;
}

/// A list of a store.
pub(super) struct List<'a, T> {
    store: &'a StoreDir,
    path: PathBuf,
    lock: PathBuf,
    of: PhantomData<T>,
}

impl StoreDir {
    pub(super) fn list<T: Entry>(&self) -> List<'_, T> {
        let (dir, name) = T::PLACE;
        let dir = self.root.join(dir);
        let path = dir.join(format!("{name}.json"));
        List { store: self, path, lock: dir.join(format!("{name}.lock")), of: PhantomData }
    }

    /// Writes a small file so that it is whole or not there, and flushes it.
    pub(super) fn write_whole(&self, path: &Path, content: &[u8]) -> Result<()> {
        write_whole(path, content).map_err(|e| self.error("writing", path, e))
    }

    /// Flushes a directory, so that the names in it survive a power cut.
    pub(super) fn sync_dir(&self, path: &Path) -> Result<()> {
        let synced = File::open(path).and_then(|dir| dir.sync_all());
        synced.map_err(|e| self.error("flushing", path, e))
    }
}

impl<T: Entry> List<'_, T> {
    /// Creates an empty list and its lock, if they are missing. One that cannot be read is set aside, unless it names
    /// layers that are not imgfs's.
    pub(super) fn ensure(&self) -> Result<()> {
        self.open_lock()?;
        match self.read() {
            Ok(_) if self.path.exists() => Ok(()),
            Ok(_) => self.change(|_| {}),
            Err(error) if matches!(error.kind(), Kind::Layer(_)) => {
                if let Some(layer) = self.others_layer()? {
                    return Err(error.with_kind(Kind::Config(format!(
                        "it names the layer {layer}, which is not imgfs's; give a directory that is empty or does not \
                         exist yet: --store DIR"
                    ))));
                }
                let aside = self.path.with_extension("json.damaged");
                tracing::warn!("{error}; it is set aside as {}", aside.display());
                let moved = fs::rename(&self.path, &aside);
                moved.map_err(|e| self.store.error("setting aside", &self.path, e))?;
                self.change(|_| {})
            }
            Err(error) => Err(error),
        }
    }

    /// A layer that the list names, though it is damaged, and that somebody else has written.
    fn others_layer(&self) -> Result<Option<ChainId>> {
        let failed = |e| self.store.error("reading", &self.path, e);
        let text = fs::read(&self.path).map_err(failed)?;
        let entries: Vec<Value> = serde_json::from_slice(&text).unwrap_or_default();
        for entry in &entries {
            let chain = entry[T::LAYER_KEY].as_str().and_then(|id| id.parse().ok());
            if let Some(chain) = chain
                && self.store.unpacked_by_others(&chain)?.is_some()
            {
                return Ok(Some(chain));
            }
        }
        Ok(None)
    }

    /// What is listed. What is not there lists nothing.
    pub(super) fn read(&self) -> Result<Vec<T>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(self.store.error("reading", &self.path, e)),
        };
        serde_json::from_slice(&text).map_err(|e| {
            let side = format_args!("store {}", self.store.root.display());
            let doing = format_args!("reading {}", self.path.display());
            Error::new(side, doing, Kind::Layer(format!("it is malformed: {e}")))
        })
    }

    /// Changes the list under its lock, and tells whoever has it open.
    pub(super) fn change(&self, change: impl FnOnce(&mut Vec<T>)) -> Result<()> {
        let _changing = locked(&CHANGING);
        let lock = self.open_lock()?;
        let failed = |doing, e: io::Error| self.store.error(doing, &self.lock, e);
        loop {
            match fcntl_lock(&lock, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                done => break done.map_err(|e| failed("locking", e.into()))?,
            }
        }
        let mut entries = self.read()?;
        change(&mut entries);
        let text = serde_json::to_vec(&entries)
            .map_err(|e| self.store.error("writing", &self.path, e.into()))?;
        let before = fs::metadata(&self.path).and_then(|meta| meta.modified()).ok();
        self.store.write_whole(&self.path, &text)?;
        self.change_time(before)?;
        if let Some(dir) = self.path.parent() {
            self.store.sync_dir(dir)?;
        }
        // In place: the file is known by its inode to those who have it open.
        let mut stamp = [0; STAMP_BYTES];
        fill_random(&mut stamp).map_err(|e| failed("writing", e))?;
        lock.write_all_at(&stamp, 0).map_err(|e| failed("writing", e))?;
        // Closing it gives the lock back.
        lock.sync_all().map_err(|e| failed("writing", e))
    }

    /// Sees to it that the list has another time of modification than it had.
    fn change_time(&self, before: Option<SystemTime>) -> Result<()> {
        let failed = |e| self.store.error("writing", &self.path, e);
        let file = File::options().write(true).open(&self.path).map_err(failed)?;
        let now = file.metadata().and_then(|meta| meta.modified()).map_err(failed)?;
        match before.filter(|before| *before >= now) {
            Some(before) => file.set_modified(before + Duration::from_millis(10)).map_err(failed),
            None => Ok(()),
        }
    }

    fn open_lock(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        options.open(&self.lock).map_err(|e| self.store.error("opening", &self.lock, e))
    }
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    // So few come at once, or not at all.
    match getrandom(&mut *bytes, GetRandomFlags::empty())? {
        filled if filled == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::LayerEntry;
    use super::*;
    use crate::image::Digest;

    fn layer(name: &str) -> LayerEntry {
        let diff_id = Digest::sha256(name.as_bytes());
        let id = ChainId::of_layers(&[diff_id]).unwrap()[0];
        LayerEntry {
            id,
            parent: None,
            created: "2024-01-01T00:00:00Z".into(),
            compressed_diff_digest: diff_id,
            compressed_size: 1,
            diff_digest: diff_id,
            diff_size: 2,
            compression: 2,
        }
    }

    #[test]
    fn a_change_is_seen_by_those_who_have_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(dir.path()).unwrap();
        let (json, lock) = (
            dir.path().join("overlay-layers/layers.json"),
            dir.path().join("overlay-layers/layers.lock"),
        );
        let mut seen = Vec::new();
        for name in ["a", "b", "c"] {
            store.list().change(|list: &mut Vec<LayerEntry>| list.push(layer(name))).unwrap();
            let meta = fs::metadata(&json).unwrap();
            let stamp = fs::read(&lock).unwrap();
            assert_eq!(stamp.len(), STAMP_BYTES);
            seen.push((meta.mtime(), meta.mtime_nsec(), stamp, fs::metadata(&lock).unwrap().ino()));
        }
        assert_eq!(store.layers().unwrap().len(), 3);
        for pair in seen.windows(2) {
            assert!(pair[0].2 != pair[1].2, "the stamp is another one");
            assert!((pair[0].0, pair[0].1) < (pair[1].0, pair[1].1), "the time is another one");
            assert_eq!(pair[0].3, pair[1].3, "the lock is the same file");
        }
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        StoreDir::create(dir.path()).unwrap();
        let json = dir.path().join("overlay-layers/layers.json");
        fs::write(&json, "[{").unwrap();
        let store = StoreDir::create(dir.path()).unwrap();
        assert!(store.layers().unwrap().is_empty());
        assert_eq!(fs::read(dir.path().join("overlay-layers/layers.json.damaged")).unwrap(), b"[{");
        // Not an empty list: programs stop at what is no list.
        assert_eq!(fs::read(&json).unwrap(), b"[]");
    }

    #[test]
    fn what_is_damaged_and_not_imgfs_s_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        StoreDir::create(dir.path()).unwrap();
        let id = layer("a").id;
        for (list, key) in
            [("overlay-layers/layers.json", "id"), ("overlay-images/images.json", "layer")]
        {
            let json = dir.path().join(list);
            let text = format!(r#"[{{"{key}":"{id}","created":"x"}}]"#);
            fs::write(&json, &text).unwrap();
            let diff = dir.path().join(format!("overlay/{id}/diff"));
            fs::create_dir_all(&diff).unwrap();
            let error = StoreDir::create(dir.path()).unwrap_err().to_string();
            assert!(error.contains(&id.to_string()) && error.contains("--store DIR"), "{error}");
            assert_eq!(fs::read_to_string(&json).unwrap(), text);
            // Without that layer it is a damaged list of imgfs.
            fs::remove_dir_all(diff).unwrap();
            StoreDir::create(dir.path()).unwrap();
            assert_eq!(fs::read(&json).unwrap(), b"[]");
        }
    }
}
