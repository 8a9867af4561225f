//! An overlay of unpacked files, as a container runtime mounts it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::places::Place;

/// A read-only mount; it ends with this value.
pub(super) struct Overlay {
    pub(super) mountpoint: PathBuf,
}

impl Overlay {
    /// Mounts one over `rootfs` and an empty directory: alone, a layer needs no overlay.
    pub(super) fn mount(place: &Place, rootfs: &Path) -> Result<Self> {
        let [empty, mountpoint] = ["empty", "overlay"].map(|name| place.path.join(name));
        fs::create_dir_all(&empty)?;
        fs::create_dir_all(&mountpoint)?;
        let layers = format!("lowerdir={}:{}", rootfs.display(), empty.display());
        let status = Command::new("mount")
            .args(["-t", "overlay", "-o", &layers, "imgfs-bench"])
            .arg(&mountpoint)
            .status()?;
        if !status.success() {
            return Err("overlayfs cannot be mounted, which needs root".into());
        }
        Ok(Self { mountpoint })
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.mountpoint).status();
    }
}
