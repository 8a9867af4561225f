//! Snapshots, and what is kept of them on the disk.
//!
//! ```text
//! snapshots/<number>.json     what a snapshot is
//! snapshots/<number>/fs/      the files of one that containerd fills
//! snapshots/<number>/work/    what overlayfs needs for that
//! ```
//!
//! Each file is written beside its place, flushed and renamed, so after a crash a snapshot is as it was or as it
//! was to be. A file that cannot be read is set aside as `<number>.json.damaged`, and a directory without a file
//! is removed by [`State::cleanup`]; neither hinders the others.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{image::ChainId, util::write_whole};

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    View,
    Active,
    Committed,
}

impl Kind {
    /// As containerd's filters have it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// What containerd calls it.
    pub name: String,
    #[serde(default)]
    pub parent: Option<String>,
    pub kind: Kind,
    /// Its number here.
    pub number: u64,
    /// Seconds since 1970, and nanoseconds.
    pub created: (i64, i32),
    pub updated: (i64, i32),
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The merged layers that it shows, if it is one that nobody has filled.
    #[serde(default)]
    pub chain: Option<ChainId>,
    /// The manifest that says where these layers are, as hexadecimal digits.
    #[serde(default)]
    pub manifest: Option<String>,
}

impl Snapshot {
    pub(super) fn new(name: &str, number: u64) -> Self {
        let now = now();
        Self {
            name: name.to_owned(),
            parent: None,
            kind: Kind::Active,
            number,
            created: now,
            updated: now,
            labels: BTreeMap::new(),
            chain: None,
            manifest: None,
        }
    }
}

pub(super) fn now() -> (i64, i32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    (i64::try_from(since.as_secs()).unwrap_or(0), nanos)
}

/// Why something cannot be done to a snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("snapshot {0} does not exist")]
    NotFound(String),
    #[error("snapshot {0} already exists")]
    Exists(String),
    #[error("{0}")]
    Unfit(String),
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
}

type Result<T> = std::result::Result<T, StateError>;

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |error| StateError::Io { path: path.to_owned(), error }
}

/// All snapshots. What changes them blocks.
pub(super) struct State {
    dir: PathBuf,
    by_name: HashMap<String, Snapshot>,
    next: u64,
}

impl State {
    /// Reads what is in `root`, which is created if it does not exist. What is damaged is logged and set aside.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let dir = root.join("snapshots");
        fs::create_dir_all(&dir).map_err(failed(&dir))?;
        let (mut by_name, mut next) = (HashMap::new(), 1);
        for entry in fs::read_dir(&dir).map_err(failed(&dir))? {
            let path = entry.map_err(failed(&dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.split('.').next().and_then(|number| number.parse::<u64>().ok());
            let Some(number) = number else { continue };
            next = next.max(number + 1);
            if name != format!("{number}.json") {
                remove_unfinished(&path);
                continue;
            }
            let read = fs::read(&path).ok();
            let parsed = read.and_then(|text| serde_json::from_slice::<Snapshot>(&text).ok());
            match parsed.filter(|snapshot| snapshot.number == number) {
                Some(snapshot) if !by_name.contains_key(&snapshot.name) => {
                    by_name.insert(snapshot.name.clone(), snapshot);
                }
                _ => {
                    let aside = path.with_extension("json.damaged");
                    let shown = path.display();
                    tracing::warn!("{shown} is damaged, and set aside");
                    if let Err(error) = fs::rename(&path, &aside) {
                        tracing::warn!("{shown}: {error}");
                    }
                }
            }
        }
        Ok(Self { dir, by_name, next })
    }

    pub(super) fn get(&self, name: &str) -> Result<&Snapshot> {
        self.by_name.get(name).ok_or_else(|| StateError::NotFound(name.to_owned()))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Snapshot> {
        self.by_name.values()
    }

    /// The directory that containerd fills.
    pub(super) fn files(&self, number: u64) -> PathBuf {
        self.dir.join(number.to_string()).join("fs")
    }

    pub(super) fn work(&self, number: u64) -> PathBuf {
        self.dir.join(number.to_string()).join("work")
    }

    /// A number that no snapshot has had.
    pub(super) fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Adds a snapshot, whose directories are made first unless nobody is to fill it.
    pub(super) fn add(&mut self, snapshot: Snapshot) -> Result<()> {
        if self.by_name.contains_key(&snapshot.name) {
            return Err(StateError::Exists(snapshot.name));
        }
        if let Some(parent) = &snapshot.parent {
            let parent = self.get(parent)?;
            if parent.kind != Kind::Committed {
                return Err(StateError::Unfit(format!("parent {} is not committed", parent.name)));
            }
        }
        if snapshot.chain.is_none() {
            for dir in [self.files(snapshot.number), self.work(snapshot.number)] {
                fs::create_dir_all(&dir).map_err(failed(&dir))?;
            }
        }
        self.write(&snapshot)?;
        self.by_name.insert(snapshot.name.clone(), snapshot);
        Ok(())
    }

    /// Makes the active snapshot `key` a committed one that is called `name`.
    pub(super) fn commit(
        &mut self,
        key: &str,
        name: &str,
        labels: BTreeMap<String, String>,
        parent: Option<&str>,
    ) -> Result<()> {
        if self.by_name.contains_key(name) {
            return Err(StateError::Exists(name.to_owned()));
        }
        let mut snapshot = self.get(key)?.clone();
        if snapshot.kind != Kind::Active {
            return Err(StateError::Unfit(format!("snapshot {key} is not active")));
        }
        if let Some(parent) = parent {
            if snapshot.parent.as_deref().is_some_and(|own| own != parent) {
                return Err(StateError::Unfit(format!("snapshot {key} has another parent")));
            }
            if self.get(parent)?.kind != Kind::Committed {
                return Err(StateError::Unfit(format!("parent {parent} is not committed")));
            }
            snapshot.parent = Some(parent.to_owned());
        }
        snapshot.kind = Kind::Committed;
        name.clone_into(&mut snapshot.name);
        snapshot.labels = labels;
        snapshot.updated = now();
        // One file, replaced: whatever happens, it is either or.
        self.write(&snapshot)?;
        self.by_name.remove(key);
        self.by_name.insert(snapshot.name.clone(), snapshot);
        Ok(())
    }

    /// Changes the labels of a snapshot.
    pub(super) fn relabel(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut BTreeMap<String, String>),
    ) -> Result<Snapshot> {
        let mut snapshot = self.get(name)?.clone();
        change(&mut snapshot.labels);
        snapshot.updated = now();
        self.write(&snapshot)?;
        self.by_name.insert(snapshot.name.clone(), snapshot.clone());
        Ok(snapshot)
    }

    /// Removes a snapshot that no other one has as its parent.
    pub(super) fn remove(&mut self, name: &str) -> Result<Snapshot> {
        let snapshot = self.get(name)?.clone();
        if self.all().any(|other| other.parent.as_deref() == Some(name)) {
            return Err(StateError::Unfit(format!("snapshot {name} has children")));
        }
        let path = self.path(snapshot.number);
        fs::remove_file(&path).map_err(failed(&path))?;
        self.by_name.remove(name);
        let dir = self.dir.join(snapshot.number.to_string());
        if let Err(error) = remove_tree(&dir) {
            // It is removed by the next cleaning up.
            tracing::warn!("{}: {error}", dir.display());
        }
        Ok(snapshot)
    }

    /// Removes directories that belong to no snapshot.
    pub(super) fn cleanup(&self) -> Result<()> {
        let numbers: HashSet<u64> = self.all().map(|snapshot| snapshot.number).collect();
        for entry in fs::read_dir(&self.dir).map_err(failed(&self.dir))? {
            let path = entry.map_err(failed(&self.dir))?.path();
            remove_unfinished(&path);
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // What has been set aside keeps its directory: somebody may want it back.
            let is_aside = self.dir.join(format!("{name}.json.damaged")).exists();
            if let Ok(number) = name.parse::<u64>()
                && !numbers.contains(&number)
                && !is_aside
            {
                remove_tree(&path).map_err(failed(&path))?;
            }
        }
        Ok(())
    }

    /// Bytes and inodes of the files of a snapshot.
    pub(super) fn usage(dir: &Path) -> io::Result<(u64, u64)> {
        let (mut bytes, mut inodes) = (0, HashSet::new());
        let mut left = vec![dir.to_owned()];
        while let Some(path) = left.pop() {
            let meta = match fs::symlink_metadata(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                meta => meta?,
            };
            if inodes.insert(meta.ino()) {
                bytes += meta.blocks() * 512;
            }
            if meta.is_dir() {
                for entry in fs::read_dir(&path)? {
                    left.push(entry?.path());
                }
            }
        }
        Ok((bytes, inodes.len() as u64))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number}.json"))
    }

    fn write(&self, snapshot: &Snapshot) -> Result<()> {
        let path = self.path(snapshot.number);
        let written = || {
            write_whole(&path, &serde_json::to_vec_pretty(snapshot)?)?;
            File::open(&self.dir)?.sync_all()
        };
        written().map_err(failed(&path))
    }
}

/// Removes a file that somebody has begun to write and has not renamed. None is being written while this is called.
fn remove_unfinished(path: &Path) {
    let is_unfinished = path.extension().is_some_and(|extension| extension == "new");
    if is_unfinished && let Err(error) = fs::remove_file(path) {
        tracing::warn!("{}: {error}", path.display());
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(state: &mut State, name: &str, parent: Option<&str>) -> Result<()> {
        let number = state.number();
        let parent = parent.map(str::to_owned);
        state.add(Snapshot { parent, ..Snapshot::new(name, number) })
    }

    #[test]
    fn snapshots_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        snapshot(&mut state, "a", None).unwrap();
        assert!(matches!(snapshot(&mut state, "a", None), Err(StateError::Exists(_))));
        assert!(matches!(snapshot(&mut state, "b", Some("a")), Err(StateError::Unfit(_))));
        assert!(matches!(snapshot(&mut state, "b", Some("x")), Err(StateError::NotFound(_))));
        let labels: BTreeMap<_, _> = [("l".to_owned(), "1".to_owned())].into();
        state.commit("a", "base", labels.clone(), None).unwrap();
        snapshot(&mut state, "b", Some("base")).unwrap();
        assert!(matches!(state.remove("base"), Err(StateError::Unfit(_))));
        let numbers: Vec<u64> = ["base", "b"].map(|n| state.get(n).unwrap().number).into();
        assert!(state.files(numbers[1]).is_dir());

        let mut again = State::open(dir.path()).unwrap();
        assert_eq!(again.get("base").unwrap(), state.get("base").unwrap());
        assert_eq!(again.get("base").unwrap().labels, labels);
        assert!(again.number() > numbers[1], "no number is used twice");
        let relabelled = again.relabel("b", |labels| drop(labels.insert("x".into(), "y".into())));
        assert_eq!(relabelled.unwrap().labels.len(), 1);
        again.remove("b").unwrap();
        again.remove("base").unwrap();
        assert_eq!(State::open(dir.path()).unwrap().all().count(), 0);
        assert!(!again.files(numbers[1]).exists());
    }

    #[test]
    fn one_damaged_snapshot_does_not_hinder_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        for name in ["a", "b", "c"] {
            snapshot(&mut state, name, None).unwrap();
        }
        let b = state.get("b").unwrap().number;
        fs::write(dir.path().join(format!("snapshots/{b}.json")), "{").unwrap();
        let left = dir.path().join("snapshots/77/fs");
        fs::create_dir_all(&left).unwrap();
        let unfinished = ["78", "79"].map(|n| dir.path().join(format!("snapshots/{n}.json.new")));
        fs::write(&unfinished[0], "{").unwrap();
        let again = State::open(dir.path()).unwrap();
        let mut names: Vec<&str> = again.all().map(|snapshot| snapshot.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "c"]);
        assert!(!unfinished[0].exists(), "a process was killed when it wrote it");
        fs::write(&unfinished[1], "{").unwrap();
        again.cleanup().unwrap();
        assert!(!unfinished[1].exists(), "it could not be written to its end");
        assert!(!left.exists() && again.files(b).exists());
        assert!(dir.path().join(format!("snapshots/{b}.json.damaged")).exists());
    }

    #[test]
    fn files_are_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![1; 10_000]).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        let (bytes, inodes) = State::usage(dir.path()).unwrap();
        assert_eq!(inodes, 2);
        assert!((8192..40_000).contains(&bytes), "{bytes}");
    }
}
