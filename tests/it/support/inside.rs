//! A mount and an image in it that is looked into.

use super::cli::Imgfs;
use super::hostile::Hostile;
use super::image::Built;
use super::mount::Mounted;
use super::registry::Registry;
use serde_json::Value;
use std::ffi::OsStr;

/// The repository of the image that a test looks into.
pub(crate) const REPOSITORY: &str = "team/app";

/// An image under `team/app:1` in a registry of its own, and a mount.
pub(crate) struct Inside {
    // The mount ends first: it uses the rest.
    pub(crate) mount: Mounted,
    pub(crate) hostile: Hostile,
    pub(crate) imgfs: Imgfs,
    pub(crate) image: Built,
}

impl Inside {
    /// `args` are further arguments of the mount.
    #[track_caller]
    pub(crate) fn start<A: AsRef<OsStr>>(image: Built, args: &[A]) -> Self {
        let hostile = Hostile::start();
        image.push_to(&hostile, REPOSITORY, "1");
        let imgfs = Imgfs::scratch();
        let mount = Mounted::start(imgfs.images_dir(), args);
        Self { mount, hostile, imgfs, image }
    }

    /// `HOST/team/app:1`
    pub(crate) fn name(&self) -> String {
        format!("{}/{REPOSITORY}:1", self.hostile.host())
    }

    /// A path in the image, from the mount point on; the image is named by its digest.
    pub(crate) fn at(&self, below: &str) -> String {
        pinned(&self.hostile.host(), REPOSITORY, &self.image, below)
    }

    /// A path in the root file system.
    pub(crate) fn rootfs(&self, below: &str) -> String {
        self.at(&format!("rootfs/{below}"))
    }

    /// What the mount says of the image.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let text = self.mount.cat(&self.at("status.json")).success().text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}"))
    }

    /// Ends the mount, forgets what it has fetched and decompressed, and begins once more. What it has found
    /// out of layers stays.
    #[track_caller]
    pub(crate) fn restart_cold(&mut self) {
        assert_eq!(self.mount.stop().code(), Some(0));
        let cache = self.imgfs.images_dir().join("blobs/.imgfs/cache");
        if let Err(error) = std::fs::remove_dir_all(&cache) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", cache.display());
        }
        self.mount.restart();
    }

    /// Requests for blobs since the log was cleared, and bytes that were sent for them.
    pub(crate) fn fetched(&self) -> (usize, u64) {
        let gets = self.hostile.blob_gets();
        (gets.len(), gets.iter().map(|served| served.sent).sum())
    }
}

/// `.imgfs/HOST/REPOSITORY@DIGEST/BELOW`
pub(crate) fn pinned(host: &str, repository: &str, image: &Built, below: &str) -> String {
    format!(".imgfs/{host}/{repository}@{}/{below}", image.digest())
}

/// Pushes images to a registry of Debian's, and gives the host.
pub(crate) fn debians(images: &[(&str, &str, &Built)]) -> (Registry, String) {
    let registry = Registry::plain();
    for (repository, tag, image) in images {
        image.push_to(&registry, repository, tag);
    }
    let host = registry.host();
    (registry, host)
}
