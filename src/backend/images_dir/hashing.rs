//! Hashing files that are there.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    path::Path,
};

use super::records::Held;
use crate::{
    backend::{ConfinedDir, confined::if_supported},
    image::{Algorithm, Digest, Hasher},
};

/// Buffer for hashing files.
pub(super) const HASH_BUFFER: usize = 512 << 10;

/// Flushes a file that has been read and found to be right, which it may have been in memory only, and says how
/// long that holds. There is nothing to wait for with a file that has been there for long.
pub(super) fn held_on_disk(file: &File) -> Held {
    let flushed = match file.sync_all() {
        // What cannot be written to has nothing to flush.
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        flushed => if_supported(flushed),
    };
    match flushed {
        Ok(()) => Held::OnDisk,
        Err(_) => Held::ThisRun,
    }
}

/// What hashing a file found.
pub(super) struct Hashed {
    pub(super) digest: Digest,
    pub(super) file: File,
    /// Of the file that was read, not of what has its name now.
    pub(super) meta: Metadata,
}

/// Hashes the file `path` of `root`; `progress` gets the number of bytes of each step.
pub(super) fn hash_file(
    root: &ConfinedDir,
    path: &Path,
    algorithm: Algorithm,
    progress: &mut dyn FnMut(usize),
) -> io::Result<Hashed> {
    let (file, meta) = root.open_file(path)?;
    hash_open(file, meta, algorithm, progress)
}

/// The same with a file that is open and has not been read from, and looked like `meta` then.
pub(super) fn hash_open(
    mut file: File,
    meta: Metadata,
    algorithm: Algorithm,
    progress: &mut dyn FnMut(usize),
) -> io::Result<Hashed> {
    // A hint, and a failure to take it is none.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; HASH_BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                progress(n);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Hashed { digest: hasher.finish(), file, meta })
}
