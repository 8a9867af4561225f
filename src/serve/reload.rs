//! Files of the configuration that are read again when they change.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{backend::images_dir::FileStamp, util::locked};

/// How often is looked whether a file has changed.
const LOOK: Duration = Duration::from_secs(1);

/// What has been read of some files, and is read again when one of them changes. What makes no sense then is
/// reported, and what was read before holds.
pub(super) struct Reloading<T> {
    paths: Vec<PathBuf>,
    read: Box<Read<T>>,
    state: Mutex<State<T>>,
}

/// Makes something of files.
type Read<T> = dyn Fn(&[PathBuf]) -> Result<T, String> + Send + Sync;

struct State<T> {
    value: Arc<T>,
    stamps: Vec<Option<FileStamp>>,
    looked: Instant,
}

impl<T> Reloading<T> {
    /// Reads `paths` for the first time.
    pub(super) fn new(
        paths: Vec<PathBuf>,
        read: impl Fn(&[PathBuf]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let stamps = stamps(&paths);
        let value = Arc::new(read(&paths)?);
        let state = Mutex::new(State { value, stamps, looked: Instant::now() });
        Ok(Self { paths, read: Box::new(read), state })
    }

    /// What the files say.
    pub(super) fn get(&self) -> Arc<T> {
        let mut state = locked(&self.state);
        if state.looked.elapsed() < LOOK {
            return state.value.clone();
        }
        state.looked = Instant::now();
        let stamps = stamps(&self.paths);
        if stamps != state.stamps {
            state.stamps = stamps;
            match (self.read)(&self.paths) {
                Ok(value) => {
                    tracing::info!("{} has been read again", shown(&self.paths));
                    state.value = Arc::new(value);
                }
                Err(error) => tracing::error!("{error}; what was read before holds"),
            }
        }
        state.value.clone()
    }
}

/// Reads a file of the configuration, of at most 16 MiB.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    let failed = |e: io::Error| format!("{}: {e}", path.display());
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > 16 << 20 {
        return Err(format!("{}: it has {size} bytes, which is too much", path.display()));
    }
    fs::read_to_string(path).map_err(failed)
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<FileStamp>> {
    // Links are followed: Kubernetes changes what a link leads to.
    paths.iter().map(|path| Some(FileStamp::of(&fs::metadata(path).ok()?))).collect()
}

fn shown(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_and_nonsense_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "1").unwrap();
        let read = |paths: &[PathBuf]| {
            read_text(&paths[0])?.trim().parse::<u32>().map_err(|e| e.to_string())
        };
        let number = Reloading::new(vec![path.clone()], read).unwrap();
        let look = || {
            locked(&number.state).looked -= LOOK;
            *number.get()
        };
        assert_eq!(look(), 1);
        fs::write(&path, "22").unwrap();
        assert_eq!(look(), 22);
        fs::write(&path, "nonsense").unwrap();
        assert_eq!(look(), 22);
        fs::remove_file(&path).unwrap();
        assert_eq!(look(), 22);
        assert!(Reloading::new(vec![path], read).is_err());
    }
}
