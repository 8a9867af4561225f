//! Where things are written: a scratch directory on a disk, and a tmpfs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// A directory that contenders fill.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) on_disk: bool,
}

impl Place {
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Removes what the last contender left.
    pub(crate) fn clear(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.path)?)?)
    }
}

/// The scratch directory with its places. All of it goes when this is dropped.
pub(crate) struct Workshop {
    path: PathBuf,
    disk: Place,
    tmpfs: Option<Place>,
    /// Mounted by us, or a directory in a tmpfs that was there.
    mounted: bool,
    can_drop_caches: bool,
}

impl Workshop {
    /// Makes one in `path`; each place must hold `bytes`.
    pub(crate) fn open(path: Option<&Path>, bytes: u64) -> Result<Self> {
        let unique = format!("imgfs-bench-{}", std::process::id());
        let path = path.map_or_else(std::env::temp_dir, Path::to_owned).join(&unique);
        let disk = Place { name: "disk", path: path.join("disk"), on_disk: true };
        std::fs::create_dir_all(&disk.path).map_err(|e| format!("{}: {e}", disk.path.display()))?;
        let root = rustix::process::geteuid().is_root();
        let mut workshop = Self { path, disk, tmpfs: None, mounted: false, can_drop_caches: root };
        // Hardly anything is compressed or shared in the destination: the bytes, and something to spare.
        let needed = bytes + bytes / 8 + (64 << 20);
        if memory_available()? < needed + (1 << 30) {
            eprintln!(
                "bench: too little memory for a tmpfs of {} MB: the disk only",
                needed / 1_000_000
            );
        } else if root {
            let path = workshop.path.join("tmpfs");
            std::fs::create_dir(&path)?;
            let size = format!("size={needed},mode=0755");
            let status = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "imgfs-bench"])
                .arg(&path)
                .status()?;
            workshop.mounted = status.success();
            workshop.tmpfs =
                status.success().then_some(Place { name: "tmpfs", path, on_disk: false });
        } else if rustix::fs::statvfs("/dev/shm").is_ok_and(|s| s.f_bavail * s.f_frsize > needed) {
            let path = Path::new("/dev/shm").join(unique);
            std::fs::create_dir(&path)?;
            workshop.tmpfs = Some(Place { name: "tmpfs", path, on_disk: false });
        }
        Ok(workshop)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        [Some(&self.disk), self.tmpfs.as_ref()].into_iter().flatten().cloned().collect()
    }

    /// Where the destination adds the least noise.
    pub(crate) fn quietest(&self) -> Place {
        self.tmpfs.as_ref().unwrap_or(&self.disk).clone()
    }

    /// Whether so many bytes can be kept in memory.
    pub(crate) fn memory_for(&self, bytes: u64) -> Result<bool> {
        // A tmpfs of about that size may fill as well.
        let tmpfs = if self.tmpfs.is_some() { bytes } else { 0 };
        Ok(memory_available()? > bytes + tmpfs + (1 << 30))
    }

    pub(crate) fn can_drop_caches(&self) -> bool {
        self.can_drop_caches
    }

    /// Writes out what is dirty and, where we may, empties the page cache.
    pub(crate) fn settle(&self) -> Result<()> {
        rustix::fs::sync();
        if self.can_drop_caches {
            std::fs::write("/proc/sys/vm/drop_caches", "3")
                .map_err(|e| format!("/proc/sys/vm/drop_caches: {e}"))?;
        }
        Ok(())
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Some(tmpfs) = &self.tmpfs {
            if self.mounted {
                let _ = Command::new("umount").arg("--lazy").arg(&tmpfs.path).status();
            } else {
                let _ = std::fs::remove_dir_all(&tmpfs.path);
            }
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Reads all files in `directory`, so that they are in the page cache.
pub(crate) fn read_all(directory: &Path, buffer: &mut [u8]) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            read_all(&entry.path(), buffer)?;
        } else {
            let mut file = File::open(entry.path())?;
            while file.read(buffer)? > 0 {}
        }
    }
    Ok(())
}

/// Bytes that can be had without swapping.
fn memory_available() -> Result<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("/proc/meminfo has no MemAvailable")?;
    Ok(kib.parse::<u64>()? << 10)
}
