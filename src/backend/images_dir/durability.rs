//! When what is written reaches the disk, and how long it may be believed before it has.
//!
//! A file that has not been flushed is believed as long as its content is in the memory of the kernel that
//! received it: until the system starts again, or the file system is unmounted. Both leave a trace that nobody
//! can forge by accident, and together they are an [`Epoch`]. What was recorded in another one is hashed before
//! it is believed.

use std::{fmt, fs, path::Path, str::FromStr, sync::Arc, thread, time::Duration};

use rustix::fs::{Advice, AtFlags, StatxFlags, fadvise, statx, syncfs};

use super::Inner;
use crate::backend::{ConfinedDir, Error, Flush, Result};

/// Where Linux says which start of the system this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// `STATX_MNT_ID_UNIQUE`, since Linux 6.8: a number that no other mount has had since the system was started.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Characters of a boot id: a UUID.
const BOOT_ID_LENGTH: usize = 36;

/// After which the kernel has begun to write what is in memory, twice over.
const SETTLED_AGE: Duration = Duration::from_secs(60);

/// When what is written to a directory is flushed to the disk.
///
/// Whatever is chosen, no file that was damaged by a power cut, or by pulling out a disk, is ever taken for
/// whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// Never; the kernel does it when it sees fit, within about half a minute.
    #[default]
    None,
    /// All at once, when everything else is done.
    End,
    /// Every file before it gets its name.
    Each,
}

impl SyncMode {
    pub(super) fn flush(self) -> Flush {
        match self {
            Self::None | Self::End => Flush::Later,
            Self::Each => Flush::Now,
        }
    }
}

/// The time in which a file that is not on the disk is in memory: one mount, in one start of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    mount: u64,
    boot: Arc<str>,
}

impl Epoch {
    /// The present one, of the directory `dir` in `root`. `None` where the system does not tell.
    pub(super) fn now(root: &ConfinedDir, dir: &Path) -> Option<Self> {
        let dir = root.open_dir(dir).ok()?;
        let stat = statx(&dir, "", AtFlags::EMPTY_PATH, MNT_ID_UNIQUE).ok()?;
        let is_told = StatxFlags::from_bits_retain(stat.stx_mask).contains(MNT_ID_UNIQUE);
        let boot = fs::read_to_string(BOOT_ID).ok()?;
        is_told.then(|| Self::new(stat.stx_mnt_id, boot.trim())).flatten()
    }

    /// Whether the system has been started again since.
    pub(super) fn is_of_another_start(&self, now: &Self) -> bool {
        self.boot != now.boot
    }

    /// `None` unless `boot` is a UUID.
    pub(super) fn new(mount: u64, boot: &str) -> Option<Self> {
        let is_id = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        (boot.len() == BOOT_ID_LENGTH && is_id(boot)).then(|| Self { mount, boot: boot.into() })
    }
}

/// As it stands in records: the mount's number, and the boot id. That comes last, since a line that a power cut
/// has cut short must not look like another one, and it always has the same length.
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.mount, self.boot)
    }
}

impl FromStr for Epoch {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (mount, boot) = text.split_once(' ').ok_or(())?;
        Self::new(mount.parse().map_err(|_| ())?, boot).ok_or(())
    }
}

impl Inner {
    /// See [`super::ImagesDir::finish`].
    pub(super) fn finish(&self) -> Result<()> {
        match self.sync {
            SyncMode::None => Ok(()),
            SyncMode::End => self.settle(),
            // What an earlier run has left.
            SyncMode::Each if self.records.unflushed().is_empty() => Ok(()),
            SyncMode::Each => self.settle(),
        }
    }

    /// Flushes what earlier runs have left, on a thread that nobody waits for, if they have left anything. What
    /// has been written within the last minute is left to later runs: the disk may still be busy with it, and a
    /// process does not end while it flushes.
    pub(super) fn settle_old(self: &Arc<Self>) {
        let unflushed = self.records.unflushed();
        if !unflushed.is_empty() && unflushed.are_older_than(SETTLED_AGE) {
            let inner = self.clone();
            let work = move || {
                if let Err(error) = inner.settle() {
                    tracing::warn!("{error}");
                }
            };
            // If there cannot be another thread, a later run does it.
            let _ = thread::Builder::new().name("flush".into()).spawn(work);
        }
    }

    /// Waits until everything is on the disk, and notes that for the blobs that were not known to be there.
    fn settle(&self) -> Result<()> {
        // It was opened before anything was written, so it tells of all errors since.
        let Some(file) = &self.filling else { return Ok(()) };
        let unflushed = self.records.unflushed();
        let Err(error) = syncfs(file) else {
            return self.records.flushed(&unflushed).map_err(|e| self.records_error(e));
        };
        for blob in unflushed.digests() {
            // What is in memory is no longer what is on the disk. It is to be hashed as it is there.
            if let Ok((file, _)) = self.root.open_file(&self.blob_path(blob)) {
                let _ = fadvise(&file, 0, None, Advice::DontNeed);
            }
        }
        self.records.lost(&unflushed).map_err(|e| self.records_error(e))?;
        Err(Error::io(self.root.path(), "flushing", error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ImagesDir, Linking, hash_file, records::Held},
        *,
    };
    use crate::image::{Descriptor, Digest};

    const BOOT: &str = "0f6a2b4c-1d2e-4f50-8a9b-0c1d2e3f4a5b";

    /// The directory as a process sees it that runs in this epoch.
    fn open_in(path: &Path, mount: u64, boot: &str) -> ImagesDir {
        let root = ConfinedDir::open(path).unwrap();
        let filling = root.open_or_create(&path.join("blobs/.imgfs/locks/tree")).unwrap();
        let (layout, epoch) = (Default::default(), Epoch::new(mount, boot));
        let (linking, sync) = (Linking::Auto, SyncMode::None);
        ImagesDir::in_epoch(root, layout, linking, sync, Some(filling), epoch).unwrap()
    }

    #[test]
    fn what_is_flushed_later_is_believed_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        ImagesDir::create(dir.path(), None, Linking::Auto).unwrap();
        let [here, later] = [open_in(dir.path(), 1, BOOT), open_in(dir.path(), 2, BOOT)];
        let content = b"what a layer may be";
        let blob = Descriptor::new("", Digest::sha256(content), content.len() as u64);
        let path = here.inner.blob_path(&blob.digest);
        let publish = || {
            fs::write(&path, content).unwrap();
            let meta = here.inner.root.stat(&path).unwrap();
            let held = here.inner.records.in_memory();
            assert!(matches!(held, Held::InMemory(_)));
            here.inner.records.verified(blob.digest, &meta, held).unwrap();
        };
        publish();
        assert!(here.inner.is_verified(&blob).unwrap() && !later.inner.is_verified(&blob).unwrap());
        assert!(!here.inner.records.unflushed().is_empty());
        // It has been written just now, so nothing is begun.
        here.inner.settle_old();
        here.inner.finish().unwrap();
        assert!(!here.inner.records.unflushed().is_empty());
        here.inner.settle().unwrap();
        assert!(here.inner.records.unflushed().is_empty());
        assert!(later.inner.is_verified(&blob).unwrap());

        // What was not flushed, and is as it was: it is hashed once.
        here.distrust(blob.digest).unwrap();
        publish();
        assert!(!later.inner.is_verified(&blob).unwrap() && later.inner.check_blob(&blob).unwrap());
        assert!(open_in(dir.path(), 3, BOOT).inner.is_verified(&blob).unwrap());

        // And what is not as it was: it is not the blob.
        publish();
        let zeros = vec![0; content.len()];
        fs::write(&path, zeros).unwrap();
        let meta = here.inner.root.stat(&path).unwrap();
        here.inner.records.verified(blob.digest, &meta, here.inner.records.in_memory()).unwrap();
        assert!(
            !later.inner.check_blob(&blob).unwrap() && !later.inner.is_verified(&blob).unwrap()
        );
        assert!(later.inner.blob_file(&blob).is_err());
        let found = hash_file(&later.inner.root, &path, blob.digest.algorithm(), &mut |_| ());
        assert_ne!(found.unwrap().digest, blob.digest);
    }

    #[test]
    fn what_programs_write_is_flushed_by_them_and_believed_no_longer_than_memory() {
        let dir = tempfile::tempdir().unwrap();
        ImagesDir::create(dir.path(), None, Linking::Auto).unwrap();
        let blob = Descriptor::new("", Digest::sha256(b"content"), 7);
        let opened = [ImagesDir::open_unflushed(dir.path()), ImagesDir::open(dir.path())];
        for (images, is_flushed) in opened.into_iter().zip([false, true]) {
            let images = images.unwrap();
            // Before Linux 6.8 nobody could tell how long to believe it.
            let tells = Epoch::now(&images.inner.root, dir.path()).is_some();
            let path = images.inner.state_dir().join("written");
            fs::write(&path, b"content").unwrap();
            let file = fs::File::open(&path).unwrap();
            images.publish_written(&path, &file, blob.digest, None).unwrap();
            assert!(images.inner.is_verified(&blob).unwrap());
            assert_eq!(images.inner.records.unflushed().is_empty(), is_flushed || !tells);
            let after_a_start = open_in(dir.path(), 7, BOOT);
            assert_eq!(after_a_start.inner.is_verified(&blob).unwrap(), is_flushed || !tells);
            fs::remove_file(images.inner.blob_path(&blob.digest)).unwrap();
        }
    }

    #[test]
    fn the_present_epoch_is_the_same_again_and_survives_being_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        let now = Epoch::now(&root, dir.path());
        assert_eq!(now, Epoch::now(&root, dir.path()));
        let Some(now) = now else { return }; // Before Linux 6.8.
        assert_eq!(now.to_string().parse(), Ok(now.clone()));
        let text = now.to_string();
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<Epoch>().is_err(), "{}", &text[..cut]);
        }
        assert_eq!(Epoch::now(&root, &dir.path().join("absent")), None);
    }
}
