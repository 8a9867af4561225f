//! The part of a mount that is known by what registries have: blobs, manifests and maps of tags, in the
//! directories of their repositories. What is in the images_dir is shown as it is there; above it lies what
//! a pull would write for the images that have been declared or looked up.

use std::{
    borrow::Cow, fs::Metadata, io, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc,
    time::Duration,
};

use rustix::fs::Stat;

use super::{
    ABSENT, Attributes, Entry, FOR_GOOD, Found, Handle, LocalAccess, Question, ROOT, Space,
    ViewError, below,
    inodes::{Inodes, Kind, Node},
    is_absent, mtime_of,
    names::{self, Form, form},
    values::About,
};
use crate::{
    backend::{
        self, ConfinedDir, DirEntry, Error, FileType, OpenDir,
        images_dir::{ImagesDir, Layout, holds_manifests, published_time},
    },
    cache::Cache,
    catalogue::{Catalogue, KnownManifest},
    image::{Digest, Manifest, Reference},
};

/// What is in a directory.
pub(super) struct NamesIn {
    /// The names, and which are directories; in no order.
    pub entries: Vec<(String, bool)>,
    /// The directory of the images_dir, if it has one there.
    pub dir: Option<OpenDir>,
}

/// What a directory looks like, to tell whether that changes: when it was modified in the images_dir, in
/// nanoseconds, and how often something has become known besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(i128, u64);

/// Blobs, manifests and maps of tags.
pub(super) struct Repositories {
    inodes: Arc<Inodes>,
    catalogue: Catalogue,
    /// What blobs are read with that are not in the images_dir.
    cache: Option<Cache>,
    tag_ttl: Duration,
}

impl Repositories {
    pub(super) fn new(
        inodes: Arc<Inodes>,
        catalogue: Catalogue,
        cache: Option<Cache>,
        tag_ttl: Duration,
    ) -> Self {
        Self { inodes, catalogue, cache, tag_ttl }
    }

    pub(super) fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    pub(super) fn images_dir(&self) -> &ImagesDir {
        self.catalogue.dir()
    }

    fn dir(&self) -> &ConfinedDir {
        self.catalogue.dir().dir()
    }

    /// What names are called in the images_dir.
    pub(super) fn layout(&self) -> Layout {
        self.catalogue.dir().layout()
    }

    fn local_path(&self, path: &str) -> PathBuf {
        self.catalogue.dir().root().join(&*self.layout().stored_path(path))
    }

    /// Lists `image` although it has not been looked up yet.
    pub(super) fn declare(&self, image: &Reference) {
        self.catalogue.declare(image);
    }

    /// Looks `image` up, so that what belongs to it is listed.
    pub(super) async fn resolve(&self, image: &Reference) -> Result<(), ViewError> {
        match self.catalogue.look_up(image).await {
            Err(error) if matches!(error.kind(), backend::Kind::Offline) => {
                Err(ViewError::Offline(image.to_string()))
            }
            looked_up => Ok(looked_up?),
        }
    }

    // --- names ---

    /// Whether a blob in the images_dir has been cut short by a KubeKey that was killed: it is as
    /// good as none.
    fn has_other_size(&self, blob: Option<&Digest>, size: u64) -> bool {
        let Some(digest) = blob else { return false };
        self.catalogue.blob_size(digest).is_some_and(|known| known != size)
    }

    /// What `path` leads to.
    pub(super) fn look(&self, path: &str) -> Result<Found, ViewError> {
        let form = form(path);
        if matches!(form, Form::Own | Form::Inside) {
            return Ok(Found::Absent(ABSENT));
        }
        if let Some(entry) = self.local(path, &form)? {
            return Ok(Found::Entry(entry));
        }
        match form {
            Form::Directory | Form::Way => Ok(Found::Entry(self.directory(path))),
            Form::Blob(digest) => Ok(match self.catalogue.blob_size(&digest) {
                Some(size) => Found::Entry(self.blob(path, digest, size)),
                None => Found::Absent(ABSENT),
            }),
            Form::Manifest(name) => {
                let is_offline = self.catalogue.source().is_none();
                // Where all tags are one file, that says where they lead now.
                let mapped = self.catalogue.dir().mapped_tag(&name);
                let holds = |known: &KnownManifest| match mapped {
                    Some(digest) => known.manifest.digest() == digest,
                    None => !known.is_stale || is_offline,
                };
                match self.catalogue.manifest(&name) {
                    Some(known) if holds(&known) => {
                        Ok(Found::Entry(self.manifest(path, &name, &known.manifest)))
                    }
                    _ => {
                        let about = About::Name(name);
                        Ok(Found::Ask(Question { path: path.to_owned(), about }))
                    }
                }
            }
            Form::Other | Form::Own | Form::Inside => Ok(Found::Absent(ABSENT)),
        }
    }

    /// Finds out what it takes, and answers the lookup again.
    pub(super) async fn find_out(&self, path: &str, name: &Reference) -> Result<Found, ViewError> {
        match self.resolve(name).await {
            Err(ViewError::Tree(error)) if error.is_not_found() => {
                return Ok(Found::Absent(ABSENT));
            }
            resolved => resolved?,
        }
        match self.look(path)? {
            // The time for which it holds is over before it could be told.
            Found::Ask(question) => {
                Ok(self.known(&question).map_or(Found::Absent(ABSENT), Found::Entry))
            }
            found => Ok(found),
        }
    }

    /// What was found out the last time, though that may not hold any more.
    pub(super) fn known(&self, question: &Question) -> Option<Entry> {
        let About::Name(name) = &question.about else { return None };
        let known = self.catalogue.manifest(name)?;
        Some(self.manifest(&question.path, name, &known.manifest))
    }

    /// What is in the images_dir under `path`.
    fn local(&self, path: &str, form: &Form) -> Result<Option<Entry>, ViewError> {
        let file = self.local_path(path);
        let meta = match self.dir().stat(&file) {
            Ok(meta) => meta,
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => return Err(Error::io(&file, "looking up", e).into()),
        };
        if meta.is_dir() && names::is_directory_of_images(path) {
            let Entry { attributes, ttl } = self.directory(path);
            let attributes = Attributes { mtime: mtime_of(&meta), ..attributes };
            let attributes = match path.is_empty() {
                true => attributes,
                false => attributes.with_access(LocalAccess::of(&meta)),
            };
            return Ok(Some(Entry { attributes, ttl }));
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        if !meta.is_file() || !names::is_file_of_images(above, holds_manifests(above), name) {
            return Ok(None);
        }
        if let Form::Blob(digest) = form
            && self.has_other_size(Some(digest), meta.len())
        {
            return Ok(None);
        }
        let has_digest = match form {
            Form::Blob(_) => true,
            Form::Manifest(name) => name.digest().is_some(),
            _ => false,
        };
        let access = LocalAccess::of(&meta);
        Ok(Some(self.local_file(path, has_digest, meta.len(), mtime_of(&meta), access)))
    }

    /// A file in the images_dir. Unless it is named by its digest, it is replaced when a tag moves.
    fn local_file(
        &self,
        path: &str,
        has_digest: bool,
        size: u64,
        mtime: (i64, u32),
        access: LocalAccess,
    ) -> Entry {
        let (ino, ttl) = match has_digest {
            true => (self.inodes.tell(path, &[], Kind::Local), FOR_GOOD),
            false => (self.inodes.tell(path, &stamp(size, mtime), Kind::LocalTag), self.tag_ttl),
        };
        Entry { attributes: Attributes::file(ino, size, mtime).with_access(access), ttl }
    }

    fn directory(&self, path: &str) -> Entry {
        let ino = self.inodes.tell(path, &[], Kind::Directory);
        let attributes = Attributes::directory(ino, published_time(None));
        Entry { attributes, ttl: FOR_GOOD }
    }

    fn blob(&self, path: &str, digest: Digest, size: u64) -> Entry {
        let ino = self.inodes.tell(path, &[], Kind::Blob(digest));
        let attributes = Attributes::file(ino, size, published_time(None));
        Entry { attributes, ttl: FOR_GOOD }
    }

    fn manifest(&self, path: &str, name: &Reference, manifest: &Manifest) -> Entry {
        let digest = manifest.digest();
        let is_tag = name.digest().is_none();
        let content = if is_tag { digest.as_bytes() } else { &[] };
        let ino = self.inodes.tell(path, content, Kind::Manifest(digest));
        let mtime = published_time(is_tag.then_some(&digest));
        let size = manifest.bytes().len() as u64;
        let attributes = Attributes::file(ino, size, mtime);
        let ttl = if is_tag { self.tag_ttl } else { FOR_GOOD };
        Entry { attributes, ttl }
    }

    /// What an inode looks like.
    pub(super) fn attributes(&self, ino: u64, node: &Node) -> Result<Entry, ViewError> {
        let of_file = |size, mtime| Attributes::file(ino, size, mtime);
        let mut ttl = FOR_GOOD;
        let attributes = match node.kind {
            Kind::Directory => {
                let local = self.dir().stat(&self.local_path(&node.path));
                match local.ok().filter(Metadata::is_dir) {
                    Some(meta) if ino == ROOT => Attributes::directory(ino, mtime_of(&meta)),
                    Some(meta) => Attributes::directory(ino, mtime_of(&meta))
                        .with_access(LocalAccess::of(&meta)),
                    None => Attributes::directory(ino, published_time(None)),
                }
            }
            Kind::Inside | Kind::Early(_) | Kind::Pending => return Err(ViewError::Stale),
            Kind::Unknown => {
                ttl = Duration::ZERO;
                of_file(0, published_time(None))
            }
            Kind::Local | Kind::LocalTag => {
                let file = self.local_path(&node.path);
                let meta = self.dir().stat(&file);
                let meta = meta.map_err(|e| Error::io(&file, "looking up", e))?;
                if !meta.is_file() {
                    return Err(ViewError::Stale);
                }
                if node.kind == Kind::LocalTag {
                    self.check_stamp(ino, &node.path, &meta)?;
                    ttl = self.tag_ttl;
                }
                of_file(meta.len(), mtime_of(&meta)).with_access(LocalAccess::of(&meta))
            }
            Kind::Blob(digest) => {
                let size = self.catalogue.blob_size(&digest).ok_or(ViewError::Stale)?;
                of_file(size, published_time(None))
            }
            Kind::Manifest(digest) => {
                let manifest = self.known_manifest(&node.path, &digest)?;
                let is_tag = !node.path.ends_with(&digest.to_string());
                if is_tag {
                    ttl = self.tag_ttl;
                }
                let size = manifest.bytes().len() as u64;
                of_file(size, published_time(is_tag.then_some(&digest)))
            }
        };
        Ok(Entry { attributes, ttl })
    }

    /// Whether the file of a tag is still the one that the kernel knows. If not, it has to look the
    /// name up again; it does that by itself.
    fn check_stamp(&self, ino: u64, path: &str, meta: &Metadata) -> Result<(), ViewError> {
        let now = self.inodes.number(path, &stamp(meta.len(), mtime_of(meta)));
        if now == ino { Ok(()) } else { Err(ViewError::Stale) }
    }

    fn known_manifest(&self, path: &str, digest: &Digest) -> Result<Manifest, ViewError> {
        let Form::Manifest(name) = form(path) else { return Err(ViewError::Stale) };
        self.catalogue.manifest_by_digest(name.repository(), digest).ok_or(ViewError::Stale)
    }

    // --- files ---

    /// Opens the file `ino`, if that takes no time. `None` if a blob has to be hashed first.
    pub(super) fn open_now(&self, ino: u64, node: &Node) -> Result<Option<Handle>, ViewError> {
        match node.kind {
            Kind::Directory => Err(ViewError::Wrong(io::ErrorKind::IsADirectory)),
            // Looking it up, which comes before opening, makes something else of it.
            Kind::Unknown | Kind::Inside | Kind::Early(_) | Kind::Pending => Err(ViewError::Stale),
            Kind::Local if matches!(form(&node.path), Form::Blob(_)) => Ok(None),
            Kind::Local | Kind::LocalTag => {
                let path = self.local_path(&node.path);
                let opened = self.dir().open_file(&path);
                let (file, meta) = opened.map_err(|e| Error::io(&path, "opening", e))?;
                if node.kind == Kind::LocalTag {
                    self.check_stamp(ino, &node.path, &meta)?;
                }
                Ok(Some(Handle::File(file)))
            }
            Kind::Manifest(digest) => {
                let manifest = self.known_manifest(&node.path, &digest)?;
                Ok(Some(Handle::Content(manifest.bytes().clone())))
            }
            Kind::Blob(digest) => self.open_remote(digest).map(Some),
        }
    }

    /// Opens the file `ino`, however long that takes.
    pub(super) async fn open(&self, ino: u64, node: &Node) -> Result<Handle, ViewError> {
        if let Some(handle) = self.open_now(ino, node)? {
            return Ok(handle);
        }
        let path = &node.path;
        let Form::Blob(digest) = form(path) else { return Err(ViewError::Stale) };
        let known = self.catalogue.blob(&digest);
        let size = match self.dir().stat(&self.local_path(path)) {
            Ok(meta) if meta.is_file() => meta.len(),
            _ if known.is_some() => return self.open_remote(digest),
            Ok(_) => return Err(ViewError::Stale),
            Err(e) => return Err(Error::io(&self.local_path(path), "opening", e).into()),
        };
        match self.images_dir().verified_file(digest, size).await {
            Ok(file) => Ok(Handle::Blob(file.into())),
            // What is broken here, a registry has.
            Err(_) if known.is_some() => self.open_remote(digest),
            Err(error) => Err(error.into()),
        }
    }

    fn open_remote(&self, digest: Digest) -> Result<Handle, ViewError> {
        let known = self.catalogue.blob(&digest).ok_or(ViewError::Stale)?;
        let (Some(source), Some(cache)) = (self.catalogue.source(), &self.cache) else {
            return Err(ViewError::Offline(format!("blob {digest}")));
        };
        Ok(Handle::of_remote(cache.blob(source.clone(), known.repositories, &known.descriptor)))
    }

    /// What `statfs` tells.
    pub(super) fn space(&self) -> Space {
        let known = self.catalogue.blob_bytes();
        let local = self.images_dir().space().unwrap_or_default();
        Space { total_bytes: local + known, files: self.inodes.len() as u64 }
    }

    // --- directories ---

    /// What the directory `path` looks like now.
    pub(super) fn stamp(&self, path: &str) -> Stamp {
        let modified = match self.dir().stat(&self.local_path(path)) {
            Ok(meta) if meta.is_dir() => {
                i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
            }
            _ => 0,
        };
        Stamp(modified, self.catalogue.generation())
    }

    /// What is in the directory `path` of the images_dir, and what is known besides; in no order.
    pub(super) fn names_in(&self, path: &str) -> Result<NamesIn, ViewError> {
        let dir = self.local_path(path);
        let failed = |e| Error::io(&dir, "reading", e);
        let opened = match self.dir().open_dir(&dir) {
            Ok(opened) => Some(opened),
            Err(e) if is_absent(&e) => None,
            Err(e) => return Err(failed(e).into()),
        };
        let local = opened.as_ref().map_or(Ok(Vec::new()), OpenDir::entries).map_err(failed)?;
        let holds_manifests = holds_manifests(path);
        let mut entries: Vec<(String, bool)> = Vec::with_capacity(local.len());
        for DirEntry { name, kind } in local {
            let Ok(stored) = name.into_string() else { continue };
            let shown = self.layout().shown_name(path, &stored);
            let Some(name) = shown.map(Cow::into_owned) else { continue };
            let is_shown = match kind {
                FileType::RegularFile => names::is_file_of_images(path, holds_manifests, &name),
                FileType::Directory => names::is_directory_of_images(&below(path, &name)),
                _ => false,
            };
            if is_shown {
                entries.push((name, kind == FileType::Directory));
            }
        }
        entries.extend(self.known_in(path));
        if path.is_empty() {
            entries.push((names::BLOBS.to_owned(), true));
        }
        if path.is_empty() || path == names::BLOBS {
            entries.retain(|(name, _)| !names::is_own(name));
        }
        Ok(NamesIn { entries, dir: opened })
    }

    /// What is listed in the directory `path` without being in the images_dir: names, and whether they are
    /// directories.
    fn known_in(&self, path: &str) -> Vec<(String, bool)> {
        if path == names::BLOBS {
            let blobs = self.catalogue.blobs().into_iter();
            return blobs.map(|digest| (digest.to_string(), false)).collect();
        }
        let below = self.catalogue.below(path).into_iter();
        let mut entries: Vec<_> = below.map(|(name, _)| (name, true)).collect();
        if let Some(repository) = names::repository_of(path) {
            let names = self.catalogue.names(repository).into_iter();
            entries.extend(names.map(|name| (name, false)));
        } else if !self.catalogue.names(path).is_empty() {
            entries.push((names::MANIFESTS.to_owned(), true));
        }
        entries
    }

    /// A file in the images_dir that was found when its directory was listed. This is most of what
    /// walking through a mount costs, so it takes no longer way than it must.
    pub(super) fn listed_file(
        &self,
        path: &str,
        stat: &Stat,
        digest: Option<&Digest>,
    ) -> Option<Entry> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let access = LocalAccess::new(stat.st_mode, stat.st_gid);
        let size = u64::try_from(stat.st_size).ok()?;
        if path.starts_with("blobs/") && self.has_other_size(digest, size) {
            return None;
        }
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Some(self.local_file(path, digest.is_some(), size, mtime, access))
    }
}

/// What tells one file of a tag from the next.
fn stamp(size: u64, (seconds, nanoseconds): (i64, u32)) -> [u8; 20] {
    let mut stamp = [0; 20];
    stamp[..8].copy_from_slice(&size.to_le_bytes());
    stamp[8..16].copy_from_slice(&seconds.to_le_bytes());
    stamp[16..].copy_from_slice(&nanoseconds.to_le_bytes());
    stamp
}
