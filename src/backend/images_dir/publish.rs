//! How files come to their final names: whole, durable, and with times that copies keep.
//!
//! 1. The content is written to a file in `blobs/.imgfs/`, which is on the same file system.
//! 2. It gets mode 0644 and its time, and is flushed to the disk.
//! 3. It is renamed to its final name, and the directory is flushed.
//!
//! A process that is killed at any point leaves nothing under a final name that is not whole, and
//! so does a power cut.
//!
//! With [`Flush::Later`] nothing is flushed, and the last sentence is true of processes only. After a power cut
//! a file may have its name, its size and its times, and zeros or nothing in it. It is found out by what it is:
//!
//! - a *blob*, and a *manifest by digest*, by their digests: a blob before it is believed in another
//!   [`Epoch`](super::durability::Epoch), a manifest whenever it is read;
//! - a *tag*, which is a manifest, since neither the beginning of one nor anything with a zero in it is JSON. The
//!   next pull of the tag reads it, and writes it anew;
//! - the *records*, line by line, each of which has its parts at the end that tell it from another one.
//!
//! The *map of tags* of a repository is flushed always, since it says also what earlier runs have brought. So are
//! tags on file systems that do not keep the order of their changes (FAT), where a name may lead to what another
//! file has had in it.

use std::{
    fs::{File, Metadata, Permissions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};

use crate::{
    backend::{ConfinedDir, Flush, confined::if_supported},
    image::Digest,
};

/// The mtime of everything that is named by its digest, in seconds: it never changes, and 0 is
/// taken by some tools for "unknown".
const IMMUTABLE: i64 = 1;

/// 2 January 1980, in seconds: FAT's times begin a day earlier, in whatever zone it is read.
const FIRST_TAG_TIME: i64 = 315_619_200;

/// The mtime of a file that is named by a tag, computed from the digest that the tag points at:
/// `rsync` compares size and time, and the manifest of a moved tag often has just the old size.
pub(super) fn tag_mtime(digest: &Digest) -> i64 {
    let mut head = [0; 4];
    head.copy_from_slice(&digest.as_bytes()[..4]);
    // An even number of seconds between 1980 and 2014, which also FAT can tell: never in the future, and apart
    // from `IMMUTABLE`.
    FIRST_TAG_TIME + 2 * i64::from(u32::from_be_bytes(head) >> 3)
}

/// The mtime of a file that is published here, in seconds and nanoseconds: of one that is named by
/// its digest, or of a tag's that points at `target`.
///
/// ```
/// use imgfs::{backend::images_dir::published_time, image::Digest};
///
/// assert_eq!(published_time(None), (1, 0));
/// let times = [b"one", b"two"].map(|manifest| published_time(Some(&Digest::sha256(manifest))));
/// assert_ne!(times[0], times[1], "rsync sees that a tag has moved");
/// ```
pub fn published_time(target: Option<&Digest>) -> (i64, u32) {
    (target.map_or(IMMUTABLE, tag_mtime), 0)
}

/// The time a file gets.
#[derive(Clone, Copy)]
pub(super) enum Time {
    /// Named by its digest.
    Immutable,
    /// Named by a tag, or a map of tags: the time says what it holds.
    Of(Digest),
    /// The time that somebody has set, in seconds and nanoseconds.
    Set((i64, u32)),
}

impl Time {
    /// The time that somebody has set, or else this one.
    pub(super) fn or(self, set: Option<(i64, u32)>) -> Self {
        set.map_or(self, Self::Set)
    }

    /// Whether a file with `meta` has it.
    pub(super) fn is_of(self, meta: &Metadata) -> bool {
        let Timespec { tv_sec, tv_nsec } = self.modification();
        (meta.mtime(), meta.mtime_nsec()) == (tv_sec, tv_nsec)
    }

    fn modification(self) -> Timespec {
        let (seconds, nanoseconds) = match self {
            Self::Immutable => (IMMUTABLE, 0),
            Self::Of(digest) => (tag_mtime(&digest), 0),
            Self::Set(time) => time,
        };
        Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
    }
}

/// Gives a file its mode and time, as far as the file system has these, and flushes it as `flush` says.
pub(super) fn seal(file: &File, time: Time, flush: Flush) -> io::Result<()> {
    if_supported(file.set_permissions(Permissions::from_mode(0o644)))?;
    set_time(file, time)?;
    match flush {
        Flush::Now => file.sync_all(),
        Flush::Later => Ok(()),
    }
}

/// Gives a file or directory its time, as far as the file system has that.
pub(super) fn set_time(file: impl AsFd, time: Time) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: time.modification(),
    };
    if_supported(futimens(file, &times).map_err(io::Error::from))
}

/// Whether a file has the mode and time of a blob that has been published here.
pub(super) fn is_sealed(meta: &Metadata) -> bool {
    meta.permissions().mode() & 0o7777 == 0o644
        && (meta.mtime(), meta.mtime_nsec()) == (IMMUTABLE, 0)
}

/// Whether it has them as far as the file system may have them: without modes, all files look as if they could
/// be executed, and FAT's times begin in 1980 of some zone.
pub(super) fn looks_sealed(meta: &Metadata) -> bool {
    let mode = meta.permissions().mode() & 0o7777;
    let first_day = FIRST_TAG_TIME - 2 * 86_400..=FIRST_TAG_TIME;
    (mode == 0o644 || mode & 0o100 != 0)
        && (meta.mtime() == IMMUTABLE || first_day.contains(&meta.mtime()))
}

/// Publishes `content` as `target` in `root`, by way of the directory `scratch` there, and flushes it as `flush`
/// says.
pub(super) fn publish(
    root: &ConfinedDir,
    scratch: &Path,
    target: &Path,
    content: &[u8],
    time: Time,
    flush: Flush,
) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // Process numbers repeat, in containers that share a volume for one: only a file that we have
    // created ourselves is ours.
    let (temporary, mut file) = loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = scratch.join(format!("{}-{number}", std::process::id()));
        match root.create_new(&path) {
            Ok(file) => break (path, file),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    };
    let written = (|| {
        file.write_all(content)?;
        seal(&file, time, flush)?;
        root.rename(&temporary, target)
    })();
    if written.is_err() {
        // What cannot be removed either is removed by `prune`.
        let _ = root.remove_file(&temporary);
    }
    written?;
    match flush {
        Flush::Now => root.sync_dir(target.parent().unwrap_or(root.path())),
        Flush::Later => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn tag_times_differ_and_lie_in_the_past() {
        let times: std::collections::HashSet<i64> =
            (0..1000u32).map(|i| tag_mtime(&Digest::sha256(&i.to_be_bytes()))).collect();
        assert_eq!(times.len(), 1000);
        let possible = FIRST_TAG_TIME..1_400_000_000;
        assert!(times.iter().all(|t| possible.contains(t) && t % 2 == 0));
    }

    #[test]
    fn publishing_replaces_whole_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        let (scratch, target) = (dir.path().join("s"), dir.path().join("a/b/t"));
        root.create_dirs(&scratch).unwrap();
        root.create_dirs(target.parent().unwrap()).unwrap();
        for (text, flush) in [("one", Flush::Now), ("two", Flush::Later)] {
            let time = Time::Immutable;
            publish(&root, &scratch, &target, text.as_bytes(), time, flush).unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), text);
        }
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
        let (nowhere, time) = (dir.path().join("no/t"), Time::Immutable);
        assert!(publish(&root, &scratch, &nowhere, b"x", time, Flush::Later).is_err());
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "nothing is left behind");
    }
}
