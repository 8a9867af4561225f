//! The file that an archive is written to until it is whole, beside its place: `FILE.imgfs-<pid>`.
//!
//! Whoever writes it has it locked. What nobody has locked was left by a process that was killed, and is removed by
//! the next one that writes the same archive. The number tells nothing: the process may be one of another machine or
//! container.

use std::{
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::util::directory_of;

/// Stands between the name of the archive and a number.
const MARK: &str = ".imgfs-";

/// Files of this process's number that others may have, and files that vanish while they are made.
const TRIES: usize = 100;

/// Creates the file for `target`, locked, and removes those that have been left for it.
pub(super) fn create(target: &Path) -> io::Result<(File, PathBuf)> {
    clear(target);
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(format!("{MARK}{}", std::process::id()));
    let mut path = target.with_file_name(&name);
    for number in 1..=TRIES {
        match File::options().write(true).create_new(true).open(&path) {
            // It may have been removed before it was locked, as if it had been left.
            Ok(file) if lock(&file)? && is_at(&file, &path) => return Ok((file, path)),
            Ok(_) => {}
            // A process of the same number on another machine writes it.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let mut other = name.clone();
                other.push(format!("-{number}"));
                path = target.with_file_name(other);
            }
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Locks a file that is new. Whether that could be done, or there are no locks there.
fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        // Somebody looks whether it has been left.
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) if has_no_locks(&e) => Ok(true),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn has_no_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let none = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK, Errno::INVAL];
    none.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), path.symlink_metadata()) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

/// Removes what killed processes have left. What cannot be looked at stays.
fn clear(target: &Path) {
    let Some(name) = target.file_name() else { return };
    let Ok(entries) = fs::read_dir(directory_of(target)) else { return };
    for entry in entries.flatten() {
        if !is_of(name, &entry.file_name()) || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        if let Ok(file) = File::options().write(true).open(&path)
            && file.try_lock().is_ok()
            && is_at(&file, &path)
        {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Whether a file was made here for the archive `name`.
fn is_of(name: &OsStr, other: &OsStr) -> bool {
    let rest = other.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
    let number = rest.and_then(|rest| rest.strip_prefix(MARK.as_bytes()));
    number.is_some_and(|number| {
        number.first().is_some_and(u8::is_ascii_digit)
            && number.iter().all(|b| b.is_ascii_digit() || *b == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_writes_any_more_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("k.tar");
        let names = || {
            let entries = fs::read_dir(dir.path()).unwrap();
            let mut names: Vec<String> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let kept = ["k.tar.imgfs-x", "k.tar.imgfs-", "l.tar.imgfs-1", "k.tar.imgfs-1.gz"];
        let left = ["k.tar.imgfs-1", "k.tar.imgfs-4194304", "k.tar.imgfs-7-2"];
        for name in kept.iter().chain(&left) {
            fs::write(dir.path().join(name), "left").unwrap();
        }
        let (first, its_path) = create(&target).unwrap();
        // A second one of the same process has another name, and leaves the first one alone.
        let (_second, path) = create(&target).unwrap();
        assert!(its_path != path && is_at(&first, &its_path));
        let of = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut expected = vec![of(&its_path), of(&path)];
        expected.extend(kept.iter().map(ToString::to_string));
        expected.sort();
        assert_eq!(names(), expected);
        drop(first);
        create(&target).unwrap();
        assert!(!its_path.exists() || its_path != path, "it was left");
        assert!(path.exists(), "it is being written");
    }
}
