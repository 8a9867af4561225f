//! What is written by name: files that come whole into an images_dir, and go from it, under the names that
//! somebody has given them.
//!
//! The promises are those of a pull ([`super::publish`], [`super::receive`]). A blob has been written in the
//! tree's own state and hashed before it gets its name; a manifest goes into just the directory that was named.

use std::{
    collections::BTreeMap,
    fs::{File, Metadata, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    ImagesDir, Inner, LOCKS, PENDING, SCRATCH,
    hashing::HASH_BUFFER,
    layout::{self, LAYOUT_MAP, LayoutMap, MANIFESTS},
    publish::{self, Time},
    read_manifest,
    records::Held,
};
use crate::{
    backend::{Error, Flush, ManifestName, Result},
    image::{
        Algorithm, Descriptor, Digest, Hasher, Manifest, PlatformFilter, Reference, Repository,
        choose,
    },
};

/// Says to `prune` that the tree is being filled, as long as it lives.
#[derive(Debug)]
pub struct Filling(#[expect(dead_code, reason = "it holds a lock")] pub(super) File);

/// The tags of a map as KubeKey writes it.
pub type Tags = BTreeMap<String, Digest>;

impl ImagesDir {
    /// Where is kept what is being written through mounts.
    pub fn pending_dir(&self) -> PathBuf {
        self.inner.state_dir().join(PENDING)
    }

    /// Waits until all that has been published is on the disk.
    pub fn flush_all(&self) -> Result<()> {
        let root = &self.inner.root;
        let flushed = root.open_dir(root.path()).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        flushed.map_err(|e| Error::io(root.path(), "flushing", e))
    }

    /// Says to `prune` that the tree is being filled. Waits while that is at work.
    pub fn fill(&self) -> Result<Filling> {
        let lock = self.tree_lock()?;
        lock.lock_shared().map_err(|e| self.lock_error(e))?;
        Ok(Filling(lock))
    }

    /// The same, if nobody else fills the tree; and nobody can as long as this lives.
    pub fn fill_alone(&self) -> Result<Option<Filling>> {
        let lock = self.tree_lock()?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Filling(lock))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(self.lock_error(e)),
        }
    }

    fn tree_lock(&self) -> Result<File> {
        let (root, locks) = (&self.inner.root, self.inner.state_dir().join(LOCKS));
        let lock = root.create_dirs(&locks).and_then(|()| root.open_or_create(&locks.join("tree")));
        lock.map_err(|e| self.lock_error(e))
    }

    fn lock_error(&self, error: io::Error) -> Error {
        Error::io(&self.inner.state_dir().join(LOCKS), "locking", error)
    }

    /// Whether a blob is there in its size and verified, now if need be. It may read all of it.
    pub fn has_verified(&self, blob: &Descriptor) -> Result<bool> {
        self.inner.check_blob(blob)
    }

    /// Publishes the file `path` in the tree's own state, which is open as `file` and has been found to be `blob`.
    /// If that is there already, the file is removed. `time` is the time that somebody has set for it.
    pub fn publish_written(
        &self,
        path: &Path,
        file: &File,
        blob: Digest,
        time: Option<(i64, u32)>,
    ) -> Result<()> {
        let (inner, target) = (&self.inner, self.inner.blob_path(&blob));
        let failed = |e| Error::io(&target, "writing", e);
        let size = file.metadata().map_err(failed)?.len();
        if inner.is_verified(&Descriptor::new("", blob, size))? {
            inner.root.remove_if_there(path).map_err(failed)?;
            return match time {
                Some(time) => self.set_blob_time(blob, time),
                None => Ok(()),
            };
        }
        inner.publish_blob(path, file, blob, Time::Immutable.or(time)).map_err(failed)
    }

    /// Sets the time of a blob, which stays verified if it has been.
    pub fn set_blob_time(&self, blob: Digest, time: (i64, u32)) -> Result<()> {
        let (inner, path) = (&self.inner, self.inner.blob_path(&blob));
        let failed = |e| Error::io(&path, "setting the time of", e);
        let before = inner.root.stat(&path).map_err(failed)?;
        let held = inner.records.held(&blob, &before);
        inner.set_time(&path, Time::Set(time)).map_err(failed)?;
        let after = inner.root.stat(&path).map_err(failed)?;
        let is_same = |m: &Metadata| (m.dev(), m.ino(), m.size());
        if let Some(held) = held.filter(|_| is_same(&before) == is_same(&after)) {
            inner.records.verified(blob, &after, held).map_err(|e| inner.records_error(e))?;
        }
        Ok(())
    }

    /// Sets the time of the tag `name` in the directory `dir`, as it is shown. Where the tags are one file, it is noted
    /// beside that.
    pub fn set_tag_time(&self, dir: &str, name: &Reference, time: (i64, u32)) -> Result<()> {
        let (inner, tag) = (&self.inner, name.tag().unwrap_or_default());
        match inner.mapped(&self.stored(dir), tag) {
            Some(digest) => inner.note_tag_time(name, &digest, Some(time)),
            None => self.set_time(&format!("{dir}/{tag}"), time),
        }
    }

    /// The time of the tag `name` in the directory `dir`, as it is shown, if it leads to `digest` and has no file of its
    /// own there; `None` if it is not such a tag. That is the one that somebody has set, or else that of its digest.
    pub fn tag_time(&self, dir: &str, name: &Reference, digest: &Digest) -> Option<(i64, u32)> {
        let inner = &self.inner;
        let _here = inner.mapped(&self.stored(dir), name.tag()?).filter(|found| found == digest)?;
        // Another process may have set it since.
        let _ = inner.records.reload();
        let set = inner.records.tag_time(name, digest);
        Some(set.unwrap_or(publish::published_time(Some(digest))))
    }

    /// Where a tag leads that has no file of its own here, but stands in a map of tags.
    pub fn mapped_tag(&self, name: &Reference) -> Option<Digest> {
        let tag = name.tag().filter(|_| name.digest().is_none())?;
        let inner = &self.inner;
        let dirs = inner.layout.candidates(inner.root.path(), name.repository());
        dirs.iter().find_map(|dir| inner.mapped(&dir.join(MANIFESTS), tag))
    }

    /// Sets the time of a file or directory of manifests; `path` as it is shown.
    pub fn set_time(&self, path: &str, time: (i64, u32)) -> Result<()> {
        let path = self.stored(path);
        let set = self.inner.set_time(&path, Time::Set(time));
        set.map_err(|e| Error::io(&path, "setting the time of", e))
    }

    fn stored(&self, path: &str) -> PathBuf {
        self.root().join(&*self.layout().stored_path(path))
    }

    /// Creates the directory `path`, as it is shown, and those on the way.
    pub fn create_dir(&self, path: &str) -> Result<()> {
        let path = self.stored(path);
        self.inner.root.create_dirs(&path).map_err(|e| Error::io(&path, "creating", e))
    }

    /// Whether there is a file at `path`, as it is shown.
    pub fn has_file(&self, path: &str) -> bool {
        self.inner.root.is_file(&self.stored(path))
    }

    /// Whether there is a file with this content at `path`, as it is shown.
    pub fn has_content(&self, path: &str, content: &[u8]) -> bool {
        let limit = content.len() as u64 + 1;
        self.inner.root.read(&self.stored(path), limit).is_ok_and(|found| found == content)
    }

    /// Removes the directory `path`, as it is shown, if it is there. It has to be empty.
    pub fn remove_dir(&self, path: &str) -> Result<()> {
        let path = self.stored(path);
        match self.inner.root.remove_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|e| Error::io(&path, "removing", e)),
        }
    }

    /// Stores a manifest of `repository` in the directory `dir`, as it is shown (`quay.io/team/app/manifests`).
    /// `time` is the time that somebody has set for its file.
    pub fn put_in(
        &self,
        dir: &str,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
        time: Option<(i64, u32)>,
    ) -> Result<()> {
        self.inner.put_in(&self.stored(dir), repository, manifest, name, time)?;
        self.inner.forget_lacking(repository, manifest.blobs().map(|blob| &blob.digest))
    }

    /// Reads a map of tags as KubeKey writes it; `None` if `text` is something else.
    pub fn parse_map(text: &[u8]) -> Option<Tags> {
        layout::parse_layout_map(text)
    }

    /// Stores a map of tags in the directory `dir`: the file as it is, or, where tags have files of their own, the
    /// tags.
    pub fn put_map_in(
        &self,
        dir: &str,
        repository: &Repository,
        text: &[u8],
        tags: &Tags,
        time: Option<(i64, u32)>,
    ) -> Result<()> {
        let (inner, path) = (&self.inner, self.stored(dir));
        let failed = |e| Error::io(&path, "writing a map of tags to", e);
        inner.root.create_dirs(&path).map_err(failed)?;
        let map = layout::read_layout_map(&inner.root, &path).map_err(failed)?;
        if map.is_none() && inner.has_tag_files(&path) {
            for (tag, digest) in tags {
                let manifest = inner.manifest(&repository.pinned(*digest))?;
                let name = ManifestName::Tag(tag.clone());
                inner.put_in(&path, repository, &manifest, &name, None)?;
            }
            return Ok(());
        }
        let _lock = inner.lock_repository(repository).map_err(failed)?;
        let scratch = inner.state_dir().join(SCRATCH);
        let time = Time::Of(Digest::sha256(text)).or(time);
        publish::publish(&inner.root, &scratch, &path.join(LAYOUT_MAP), text, time, Flush::Now)
            .map_err(failed)
    }

    /// Removes a tag of `repository`, which need not be there, from the directory `dir` and from wherever else it would
    /// be found. What has the name of a map of tags is the map.
    pub fn remove_tag_in(&self, dir: &str, repository: &Repository, tag: &str) -> Result<()> {
        let (inner, path) = (&self.inner, self.stored(dir));
        let failed = |e| Error::io(&path, "removing a tag from", e);
        let _lock = inner.lock_repository(repository).map_err(failed)?;
        let map = layout::read_layout_map(&inner.root, &path).map_err(failed)?;
        if tag == LAYOUT_MAP && map.is_some() {
            return inner.root.remove_if_there(&path.join(LAYOUT_MAP)).map_err(failed);
        }
        let others = inner.layout.candidates(inner.root.path(), repository).into_iter();
        let others = others.map(|dir| dir.join(MANIFESTS)).filter(|other| *other != path);
        for dir in [path.clone()].into_iter().chain(others) {
            inner.remove_tag(&dir, repository, tag)?;
        }
        Ok(())
    }

    /// Whether the manifest `digest` of `repository` is here, and is what its name says.
    pub fn has_manifest(&self, repository: &Repository, digest: Digest) -> bool {
        self.inner.manifest(&repository.pinned(digest)).is_ok()
    }

    /// The manifest `digest` in the directory `dir`.
    pub fn manifest_in(&self, dir: &str, digest: &Digest) -> Option<Manifest> {
        let path = self.stored(dir).join(self.inner.layout.digest_name(digest));
        let found = read_manifest(&self.inner.root, &path, digest.algorithm()).ok();
        found.filter(|manifest| manifest.digest() == *digest)
    }

    /// Removes the manifest `digest` from the directory `dir`, where it need not be.
    pub fn remove_manifest_in(
        &self,
        dir: &str,
        repository: &Repository,
        digest: Digest,
    ) -> Result<()> {
        let inner = &self.inner;
        let path = self.stored(dir).join(inner.layout.digest_name(&digest));
        let failed = |e| Error::io(&path, "removing", e);
        let _lock = inner.lock_repository(repository).map_err(failed)?;
        inner.root.remove_if_there(&path).map_err(failed)?;
        let pin = repository.pinned(digest);
        inner.records.unpin(&pin).map_err(|e| inner.records_error(e))
    }

    /// Removes a blob. Whether something names it is the caller's to find out.
    pub fn remove_blob(&self, blob: Digest) -> Result<()> {
        let path = self.inner.blob_path(&blob);
        self.inner.root.remove_if_there(&path).map_err(|e| Error::io(&path, "removing", e))
    }

    /// A file of manifests that names the blob, below the root; `None` if none does.
    pub fn namer_of_blob(&self, blob: &Digest) -> Result<Option<String>> {
        self.find_namer(&|_| true, &|manifest| manifest.blobs().any(|b| b.digest == *blob), None)
    }

    /// A tag or an index that names the manifest `digest` of the directory `dir`; `None` if none does.
    pub fn namer_of_manifest(&self, dir: &str, digest: &Digest) -> Result<Option<String>> {
        let dir = self.stored(dir);
        let names = |manifest: &Manifest| manifest.children().iter().any(|c| c.digest == *digest);
        self.find_namer(&|other| *other == dir, &names, Some(digest))
    }

    /// A file of manifests that `names` something, in the directories that `is_meant` says; or a tag that leads to
    /// `digest`.
    fn find_namer(
        &self,
        is_meant: &dyn Fn(&PathBuf) -> bool,
        names: &dyn Fn(&Manifest) -> bool,
        digest: Option<&Digest>,
    ) -> Result<Option<String>> {
        let inner = &self.inner;
        let walk = layout::walk(&inner.root, inner.layout);
        let walk = walk.map_err(|e| Error::io(inner.root.path(), "reading", e))?;
        for dir in walk.repositories.iter().filter(|dir| is_meant(&dir.manifests)) {
            if let Some(LayoutMap::Map(map)) = &dir.map
                && let Some(tag) = map.iter().find(|(_, to)| Some(*to) == digest)
            {
                return Ok(Some(dir.repository.tagged(tag.0).to_string()));
            }
            let tags = dir.tags.iter().map(|tag| (inner.layout.tag_name(tag).into_owned(), None));
            let digests =
                dir.digests.iter().map(|digest| (inner.layout.digest_name(digest), Some(digest)));
            for (name, own) in tags.chain(digests) {
                let path = dir.manifests.join(name);
                let algorithm = own.map_or(Algorithm::Sha256, Digest::algorithm);
                // What cannot be read names nothing that could be told.
                let Ok(manifest) = read_manifest(&inner.root, &path, algorithm) else { continue };
                let is_its_tag = own.is_none() && Some(&manifest.digest()) == digest;
                if is_its_tag || names(&manifest) {
                    return Ok(Some(inner.relative(&path)));
                }
            }
        }
        Ok(None)
    }

    /// The manifest `digest`, from whichever repository here has it.
    pub fn manifest_anywhere(&self, digest: &Digest) -> Option<Manifest> {
        let inner = &self.inner;
        let walk = layout::walk(&inner.root, inner.layout).ok()?;
        let name = inner.layout.digest_name(digest);
        walk.repositories.iter().filter(|dir| dir.digests.contains(digest)).find_map(|dir| {
            let found = read_manifest(&inner.root, &dir.manifests.join(&name), digest.algorithm());
            found.ok().filter(|manifest| manifest.digest() == *digest)
        })
    }

    /// Takes over what a file of records of another images_dir says that cannot be found out again: what was asked
    /// for by its digest, and which indexes are there in part on purpose. What makes no sense is passed over.
    pub fn take_records(&self, text: &[u8]) -> Result<()> {
        let records = &self.inner.records;
        let text = String::from_utf8_lossy(text);
        for line in text.lines() {
            let mut words = line.splitn(3, ' ');
            let taken = match (words.next(), words.next(), words.next()) {
                (Some("pin"), Some(pin), None) => match pin.parse::<Reference>() {
                    Ok(pin) if pin.digest().is_some() && pin.tag().is_none() => records.pin(&pin),
                    _ => Ok(()),
                },
                (Some("unpin"), Some(pin), None) => match pin.parse::<Reference>() {
                    Ok(pin) => records.unpin(&pin),
                    Err(_) => Ok(()),
                },
                (Some("sparse"), Some(digest), Some(platforms)) => match digest.parse() {
                    Ok(digest) => records.set_sparse(digest, platforms),
                    Err(_) => Ok(()),
                },
                _ => Ok(()),
            };
            taken.map_err(|e| self.inner.records_error(e))?;
        }
        Ok(())
    }

    /// The children of an index that have to be here before it can be named.
    pub fn wanted_children(&self, index: &Manifest) -> Vec<Descriptor> {
        let children = index.children();
        let wanted = self.inner.wanted(index.digest(), children).into_iter();
        children.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(c, _)| c.clone()).collect()
    }
}

impl Inner {
    /// Sets the time of a file or directory. A file that has other names as well, in another images_dir most likely,
    /// is copied first: they keep theirs.
    pub(super) fn set_time(&self, path: &Path, time: Time) -> io::Result<()> {
        let meta = self.root.stat(path)?;
        if time.is_of(&meta) {
            return Ok(());
        }
        if meta.is_dir() {
            return publish::set_time(self.root.open_dir(path)?, time);
        }
        if meta.nlink() > 1 {
            self.unshare(path)?;
        }
        publish::set_time(self.root.open_file(path)?.0, time)
    }

    /// Makes a file of its own of what shares its content with another name.
    fn unshare(&self, path: &Path) -> io::Result<()> {
        let (mut from, meta) = self.root.open_file(path)?;
        let digest = path.file_name().and_then(|n| self.layout.parse_digest(n.to_str()?));
        let scratch = self.state_dir().join(SCRATCH);
        self.root.create_dirs(&scratch)?;
        let copy = scratch.join(format!("{}-copy-{}", std::process::id(), meta.ino()));
        let mut to = self.root.create_file(&copy)?;
        let mut hasher = Hasher::new(digest.map_or(Algorithm::Sha256, |d| d.algorithm()));
        let mut buffer = vec![0; HASH_BUFFER];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    to.write_all(&buffer[..n])?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        publish::seal(
            &to,
            Time::Set((meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0))),
            Flush::Now,
        )?;
        self.root.rename(&copy, path)?;
        let is_blob = path.parent() == Some(&self.root.path().join(layout::BLOBS));
        match digest.filter(|digest| is_blob && hasher.finish() == *digest) {
            Some(digest) => self.records.verified(digest, &to.metadata()?, Held::OnDisk),
            None => Ok(()),
        }
    }

    /// Which children of an index should be there: all, unless it is sparse on purpose.
    pub(super) fn wanted(&self, index: Digest, children: &[Descriptor]) -> Vec<bool> {
        let Some(sparse) = self.records.sparse(&index) else { return vec![true; children.len()] };
        let filter = PlatformFilter::parse(&[sparse]).unwrap_or_default();
        let (kept, _) = choose(children, &filter);
        // Of what the index says nothing, it is not known whether it was wanted.
        (0..children.len()).map(|i| kept.contains(&(i, false))).collect()
    }
}
