//! `umoci`, which unpacks images as they are meant to be unpacked.

use super::image::Built;
use super::process::require_program;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root file system that umoci unpacks. It is removed when this is dropped.
pub(crate) struct Unpacked {
    place: tempfile::TempDir,
}

impl Unpacked {
    /// Unpacks an image that was built here.
    #[track_caller]
    pub(crate) fn built(image: &Built) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        let layout = place.path().join("layout");
        image.write_oci_layout(&layout, "it");
        Self::unpack(place, &layout, "it")
    }

    /// Unpacks an image of an OCI layout.
    #[track_caller]
    pub(crate) fn layout(layout: &Path, tag: &str) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        Self::unpack(place, layout, tag)
    }

    #[track_caller]
    fn unpack(place: tempfile::TempDir, layout: &Path, tag: &str) -> Self {
        let output = Command::new(require_program("umoci", "umoci"))
            .args(["unpack", "--image", &format!("{}:{tag}", layout.display())])
            .arg(place.path().join("bundle"))
            .output()
            .expect("starting umoci");
        assert!(
            output.status.success(),
            "umoci: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Self { place }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.place.path().join("bundle/rootfs")
    }
}
