//! The blobs of an OCI image layout, which differ from those of an images_dir only in where they lie: they are
//! received, linked, verified and recorded by the same code.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{
    Flush, ImagesDir, LOCKS, Layout, Linking, PARTIAL, SCRATCH, STATE, SyncMode, layout::BLOBS,
    publish,
};
use crate::{
    backend::{ConfinedDir, Error, Result},
    image::Digest,
};

impl ImagesDir {
    /// The blobs of the layout in the directory `root`, to be read. Nothing is written there.
    pub(in crate::backend) fn of_layout(root: ConfinedDir) -> Result<Self> {
        Ok(Self::durable(root, Linking::default())?.by_algorithm())
    }

    /// The same, to be filled.
    pub(in crate::backend) fn create_layout(root: ConfinedDir, linking: Linking) -> Result<Self> {
        let state = root.path().join(BLOBS).join(STATE);
        let failed = |e| Error::io(root.path(), "creating", e);
        for name in [PARTIAL, SCRATCH, LOCKS] {
            root.create_dirs(&state.join(name)).map_err(failed)?;
        }
        root.create_dirs(&root.path().join(BLOBS).join("sha256")).map_err(failed)?;
        Ok(Self::durable(root, linking)?.by_algorithm())
    }

    /// Whatever is written is flushed before it is named: `index.json` has no record that could say otherwise.
    fn durable(root: ConfinedDir, linking: Linking) -> Result<Self> {
        Self::in_epoch(root, Layout::default(), linking, SyncMode::Each, None, None)
    }

    /// Where a blob is.
    pub(in crate::backend) fn path_of(&self, digest: &Digest) -> PathBuf {
        self.inner.blob_path(digest)
    }

    /// The size of what is in the place of a blob, in bytes.
    pub(in crate::backend) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        let meta = self.inner.root.stat(&self.inner.blob_path(digest)).ok()?;
        meta.is_file().then_some(meta.len())
    }

    /// Makes sure that the directory of a blob is there.
    pub(in crate::backend) fn prepare_blob(&self, digest: &Digest) -> Result<()> {
        let path = self.inner.blob_path(digest);
        let dir = path.parent().unwrap_or(&path);
        self.inner.root.create_dirs(dir).map_err(|e| Error::io(dir, "creating", e))
    }

    /// Publishes a small file, whole and durable.
    pub(in crate::backend) fn publish_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let scratch = self.inner.state_dir().join(SCRATCH);
        publish::publish(
            &self.inner.root,
            &scratch,
            path,
            content,
            publish::Time::Immutable,
            Flush::Now,
        )
    }

    /// Waits until no other process has the lock `name`, and takes it.
    pub(in crate::backend) fn lock_file(&self, name: &str) -> io::Result<File> {
        let path = self.inner.state_dir().join(LOCKS).join(name);
        let file = self.inner.root.open_or_create(&path)?;
        file.lock()?;
        Ok(file)
    }
}
