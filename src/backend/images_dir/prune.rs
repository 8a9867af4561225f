//! Removing what nothing needs: blobs and digest-named manifests that no image leads to, and
//! remains of interrupted downloads.

use std::{
    collections::HashSet,
    fs::{Metadata, TryLockError},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use super::{ImagesDir, LOCKS, SCRATCH};
use crate::{
    backend::{Error, FileType, Kind, Result},
    image::{Algorithm, Digest},
};

/// Interrupted downloads are kept this long, for a later run to go on from.
const PARTIAL_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How long those who write to the tree are waited for by who can wait, and how often is looked.
const WRITERS_PATIENCE: Duration = Duration::from_secs(60);
const WRITERS_PAUSE: Duration = Duration::from_millis(5);

/// What has been found out of the inside of images is kept so long after it was used last; it can be found out
/// again, which for a layer takes reading all of it.
const INSIDE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// A file that was removed, or would be.
#[derive(Clone, Debug)]
pub struct Removed {
    /// The file, below the root of the tree.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// The result of [`ImagesDir::prune`].
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// What was removed, or would be.
    pub removed: Vec<Removed>,
}

impl Pruned {
    /// Sum of the sizes of what was removed.
    pub fn bytes(&self) -> u64 {
        self.removed.iter().map(|removed| removed.bytes).sum()
    }
}

impl ImagesDir {
    /// The same as [`ImagesDir::prune`], but where others write to the tree it is tried again for a while. Blocks.
    pub fn prune_patiently(&self, dry_run: bool) -> Result<Pruned> {
        let deadline = Instant::now() + WRITERS_PATIENCE;
        loop {
            match self.prune(dry_run) {
                Err(error) if error.is_in_use() && Instant::now() < deadline => {
                    std::thread::sleep(WRITERS_PAUSE);
                }
                pruned => return pruned,
            }
        }
    }

    /// Removes what nothing needs, or only says what it would remove.
    ///
    /// Refuses while another process fills the tree, and as long as a manifest cannot be read: it
    /// may be the one that needs what would be removed.
    pub fn prune(&self, dry_run: bool) -> Result<Pruned> {
        let inner = &self.inner;
        let doing = format!("pruning {}", inner.root.path().display());
        let refuse = |reason: String| Error::new(super::SIDE, &doing, Kind::Config(reason));
        let locks = inner.state_dir().join(LOCKS);
        let lock = if dry_run {
            None
        } else {
            inner.root.create_dirs(&locks).map_err(|e| Error::io(&locks, "creating", e))?;
            let lock = inner.root.open_or_create(&locks.join("tree"));
            let lock = lock.map_err(|e| Error::io(&locks, "locking", e))?;
            match lock.try_lock() {
                Ok(()) => Some(lock),
                Err(TryLockError::WouldBlock) => {
                    let reason =
                        "another imgfs process is filling this tree; run this when it is done";
                    return Err(Error::new(super::SIDE, &doing, Kind::InUse(reason.into())));
                }
                Err(TryLockError::Error(e)) => return Err(Error::io(&locks, "locking", e)),
            }
        };
        // What others have pinned or kept until now.
        inner.records.reload().map_err(|e| inner.records_error(e))?;
        let inventory = self.inventory()?;
        let unknown =
            inventory.problems.iter().filter(|p| p.kind == super::ProblemKind::Stray).find(|p| {
                let path = inner.root.path().join(&p.path);
                path.parent().is_some_and(|dir| dir.ends_with(super::MANIFESTS))
                    && super::read_manifest(&inner.root, &path, Algorithm::Sha256).is_ok()
            });
        if let Some(problem) = unknown {
            return Err(refuse(format!(
                "{} is a manifest under a name that imgfs does not know, and may need what would be removed",
                problem.path
            )));
        }
        let is_link = |p: &&super::Problem| p.kind == super::ProblemKind::Symlink;
        if let Some(problem) = inventory.problems.iter().find(is_link) {
            return Err(refuse(format!(
                "{} is a symbolic link, which imgfs does not follow, and what is behind it may need what would be \
                 removed; remove the link, or mount there what it points at (`mount --bind`)",
                problem.path
            )));
        }
        if let Some(problem) = inventory.problems.iter().find(|p| p.kind.is_harmful()) {
            return Err(refuse(format!(
                "{} is {}, and what it needs is not known; repair it first (`imgfs verify --repair`)",
                problem.path,
                problem.kind.as_str()
            )));
        }
        let lacks_manifest =
            |image: &&super::ImageEntry| image.missing.iter().any(|m| m.is_manifest);
        if let Some(image) = inventory.images.iter().find(lacks_manifest) {
            return Err(refuse(format!(
                "{} lacks a manifest, and what that needs is not known; repair it first (`imgfs verify --repair`)",
                image.reference
            )));
        }
        let mut candidates: Vec<PathBuf> = inventory.orphans.clone();
        // Somebody is about to name them.
        let (adopted, outdated) = inner.adopted_blobs();
        let adopted: HashSet<Digest> = adopted.into_iter().collect();
        candidates.extend(outdated);
        candidates.extend(inner.idle_lacks(|digest| inventory.needed.contains_key(digest)));
        let is_unneeded = |digest: &&Digest| {
            !inventory.needed.contains_key(*digest) && !adopted.contains(*digest)
        };
        let unneeded = inventory.blobs.keys().filter(is_unneeded);
        candidates.extend(unneeded.map(|digest| inner.blob_path(digest)));
        let links = inventory.odd_blobs.iter().filter(|(_, kind)| **kind == FileType::Symlink);
        let unneeded = links.filter(|(digest, _)| !inventory.needed.contains_key(digest));
        candidates.extend(unneeded.map(|(digest, _)| inner.blob_path(digest)));
        candidates.extend(self.old_partials()?);
        candidates.extend(self.unused_inside());
        if !dry_run {
            candidates.extend(self.scratch_files());
        }
        let mut pruned = Pruned::default();
        for path in candidates {
            // Of a link, the link: that is what goes.
            let bytes = match inner.root.stat(&path) {
                Ok(meta) => meta.len(),
                Err(_) => continue,
            };
            if !dry_run {
                inner.root.remove_file(&path).map_err(|e| Error::io(&path, "removing", e))?;
            }
            pruned.removed.push(Removed { path: inner.relative(&path), bytes });
        }
        pruned.removed.extend(self.prune_caches(dry_run)?);
        drop(lock);
        Ok(pruned)
    }

    /// Removes those of `blobs`, and of `manifests` that have the names of their digests, that nothing here needs. What
    /// has been removed; `None` if another process fills the tree, and may need them.
    pub fn remove_unneeded(
        &self,
        blobs: &HashSet<Digest>,
        manifests: &HashSet<Digest>,
    ) -> Result<Option<Vec<Digest>>> {
        let inner = &self.inner;
        let Some(_alone) = self.fill_alone()? else { return Ok(None) };
        // What others have pinned until now.
        inner.records.reload().map_err(|e| inner.records_error(e))?;
        let inventory = self.inventory()?;
        // What lacks a parent here, and does not go, needs what it names.
        let (mut going, mut staying) = (Vec::new(), Vec::new());
        for path in &inventory.orphans {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(digest) = name.and_then(|name| inner.layout.parse_digest(name)) else {
                continue;
            };
            let manifest = super::read_manifest(&inner.root, path, digest.algorithm()).ok();
            let kind = if manifests.contains(&digest) { &mut going } else { &mut staying };
            kind.push((path, digest, manifest));
        }
        let mut needed: HashSet<Digest> = inner.adopted_blobs().0.into_iter().collect();
        let mut next = 0;
        while let Some((_, _, manifest)) = staying.get(next) {
            let manifest = manifest.clone();
            next += 1;
            let Some(manifest) = manifest else { continue };
            needed.extend(manifest.blobs().map(|blob| blob.digest));
            let is_child =
                |digest: &Digest| manifest.children().iter().any(|c| c.digest == *digest);
            staying.extend(going.extract_if(.., |(_, digest, _)| is_child(digest)));
        }
        let mut removed = Vec::new();
        for (path, digest, _) in going {
            inner.root.remove_if_there(path).map_err(|e| Error::io(path, "removing", e))?;
            removed.push(digest);
        }
        for blob in blobs {
            if !inventory.needed.contains_key(blob) && !needed.contains(blob) {
                self.remove_blob(*blob)?;
                removed.push(*blob);
            }
        }
        Ok(Some(removed))
    }

    /// Partial downloads that nobody has touched for long.
    fn old_partials(&self) -> Result<Vec<PathBuf>> {
        let now = SystemTime::now();
        let mut old = Vec::new();
        for (path, _) in self.partial_downloads()? {
            let modified = self.inner.root.stat(&path).and_then(|meta| meta.modified());
            if modified
                .is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > PARTIAL_LIFETIME))
            {
                old.push(path);
            }
        }
        Ok(old)
    }

    /// Stored indexes and documents that nobody has used for long: their time of modification is that of
    /// their last use.
    fn unused_inside(&self) -> Vec<PathBuf> {
        let (now, root) = (SystemTime::now(), &self.inner.root);
        let list = |dir: &PathBuf| {
            let entries = root.open_dir(dir).and_then(|dir| dir.entries()).unwrap_or_default();
            entries.into_iter().map(|entry| dir.join(entry.name)).collect::<Vec<_>>()
        };
        let files = list(&self.inside_dir()).iter().flat_map(list).collect::<Vec<_>>();
        let is_old = |path: &PathBuf| {
            let used = root.stat(path).ok().filter(Metadata::is_file)?.modified().ok()?;
            Some(now.duration_since(used).ok()? > INSIDE_LIFETIME)
        };
        files.into_iter().filter(|path| is_old(path) == Some(true)).collect()
    }

    /// What killed processes have left of manifests. Nobody else is at work here now.
    fn scratch_files(&self) -> Vec<PathBuf> {
        let scratch = self.inner.state_dir().join(SCRATCH);
        let entries = self.inner.root.open_dir(&scratch).and_then(|dir| dir.entries());
        let entries = entries.unwrap_or_default().into_iter();
        entries.map(|entry| scratch.join(entry.name)).collect()
    }
}
