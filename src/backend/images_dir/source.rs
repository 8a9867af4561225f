//! An images_dir as the source of a transfer: its blobs as files, and what is attached to its
//! manifests.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs::Metadata,
    io,
    iter::once,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;

use super::{
    ImagesDir, Inner, SIDE,
    layout::{self, LayoutMap, MANIFESTS},
    manifests::read_manifest,
    records::Held,
};
use crate::{
    backend::{
        Attachments, Blobs, BoxStream, Error, FileType, Kind, LocalFile, Result, SymlinkRefused,
        Tags,
    },
    image::{Descriptor, Digest, Manifest, Repository, referrers_tag},
    util::locked,
};

#[async_trait]
impl Blobs for ImagesDir {
    async fn gives(&self, repository: &Repository, manifest: &Manifest) -> Result<()> {
        let (repository, manifest) = (repository.clone(), manifest.clone());
        let blobs = move |inner: &Arc<Inner>| {
            inner.given_to(&repository, manifest.blobs().map(|blob| &blob.digest))
        };
        self.blocking(blobs).await
    }

    async fn check(&self, repository: &Repository, blob: &Descriptor) -> Result<()> {
        let (repository, blob) = (repository.clone(), blob.clone());
        self.blocking(move |inner| {
            inner.given_to(&repository, once(&blob.digest))?;
            inner.there(&blob)
        })
        .await
    }

    async fn read(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        Ok(Box::new(self.open_blob(repository, blob).await?.read(range)))
    }

    async fn file(&self, repository: &Repository, blob: &Descriptor) -> Result<Option<LocalFile>> {
        self.open_blob(repository, blob).await.map(Some)
    }
}

impl ImagesDir {
    async fn open_blob(&self, repository: &Repository, blob: &Descriptor) -> Result<LocalFile> {
        let (repository, blob) = (repository.clone(), blob.clone());
        self.blocking(move |inner| {
            inner.given_to(&repository, once(&blob.digest))?;
            inner.blob_file(&blob)
        })
        .await
    }
}

impl Inner {
    /// Fails if somebody has pushed a manifest into `repository` that names one of `blobs`, and has not brought that: it
    /// may be there for another repository, whose matter it is ([`ImagesDir::note_lacking`]).
    fn given_to<'a>(
        &self,
        repository: &Repository,
        blobs: impl Iterator<Item = &'a Digest>,
    ) -> Result<()> {
        let Some(blob) = self.first_lacking(repository, blobs) else { return Ok(()) };
        let reason = format!("a manifest of {repository} names it and was pushed without it");
        let path = self.blob_path(blob);
        Err(Error::new(SIDE, format_args!("reading {}", path.display()), Kind::Unfit(reason)))
    }

    /// Fails unless a blob is there in its size.
    fn there(&self, blob: &Descriptor) -> Result<()> {
        let path = self.blob_path(&blob.digest);
        let kind = match self.root.stat(&path) {
            Ok(meta) if meta.is_symlink() => Kind::Io(io::Error::other(SymlinkRefused::at(&path))),
            Ok(meta) if meta.is_file() && meta.len() == blob.size => return Ok(()),
            Ok(meta) => Kind::Size { expected: blob.size, found: meta.len() },
            Err(e) if SymlinkRefused::is_cause_of(&e) => Kind::Io(e),
            Err(_) => Kind::NotFound(String::new()),
        };
        Err(damaged(&path, kind))
    }

    /// Opens a blob that has been verified, or verifies it now.
    pub(super) fn blob_file(self: &Arc<Self>, blob: &Descriptor) -> Result<LocalFile> {
        self.there(blob)?;
        let path = self.blob_path(&blob.digest);
        let failed = |e| Error::io(&path, "reading", e);
        let (mut file, mut meta) = self.root.open_file(&path).map_err(failed)?;
        if meta.len() != blob.size || !self.records.is_verified(&blob.digest, &meta) {
            let hashed = super::hash_open(file, meta, blob.digest.algorithm(), &mut |_| {});
            let hashed = hashed.map_err(failed)?;
            if hashed.digest != blob.digest {
                let (expected, found) = (blob.digest, hashed.digest);
                return Err(damaged(&path, Kind::Digest { expected, found }));
            }
            (file, meta) = (hashed.file, hashed.meta);
            self.records.remember(blob.digest, &meta, super::held_on_disk(&file));
        }
        let (inner, digest) = (self.clone(), blob.digest);
        let held = self.records.held(&digest, &meta).unwrap_or(Held::ThisRun);
        let is_on_disk = held == Held::OnDisk;
        // By its ctime, which another name changes, the record knows the file.
        let relinked = move |linked: &Metadata, is_on_disk| {
            let held = if is_on_disk { Held::OnDisk } else { held.clone() };
            inner.records.remember(digest, linked, held);
        };
        let relinked = Box::new(relinked);
        Ok(LocalFile::new(self.root.clone(), path, file, meta, is_on_disk, relinked))
    }

    /// What names which subject among the manifests of `repository`.
    fn referrers(&self, repository: &Repository) -> Result<Arc<Referrers>> {
        let mut found = Vec::new();
        let mut stamps = Vec::new();
        for dir in self.layout.candidates(self.root.path(), repository) {
            let dir = dir.join(MANIFESTS);
            match self.root.stat(&dir) {
                Ok(meta) if !meta.is_dir() => continue,
                Ok(meta) => stamps.push((meta.ino(), meta.mtime(), meta.mtime_nsec())),
                Err(_) => continue,
            }
            found.push(dir);
        }
        if let Some((known, referrers)) = self.referrers.get(repository)
            && known == stamps
        {
            return Ok(referrers);
        }
        let mut referrers = Referrers::new();
        for dir in found {
            let entries = self.root.open_dir(&dir).and_then(|dir| dir.entries());
            for entry in entries.map_err(|e| Error::io(&dir, "reading", e))? {
                let name = entry.name.to_str();
                let Some(digest) = name.and_then(|name| self.layout.parse_digest(name)) else {
                    continue;
                };
                let path = dir.join(&entry.name);
                // What is broken is reported by `verify`.
                let Ok(manifest) = read_manifest(&self.root, &path, digest.algorithm()) else {
                    continue;
                };
                if let Some(subject) = manifest.subject().filter(|_| manifest.digest() == digest) {
                    referrers.entry(subject.digest).or_default().push(Descriptor::new(
                        manifest.media_type(),
                        digest,
                        manifest.bytes().len() as u64,
                    ));
                }
            }
        }
        let referrers = Arc::new(referrers);
        self.referrers.put(repository, stamps, referrers.clone());
        Ok(referrers)
    }

    fn tags(&self, repository: &Repository) -> Result<Vec<String>> {
        let mut tags = Vec::new();
        for dir in self.layout.candidates(self.root.path(), repository) {
            let dir = dir.join(MANIFESTS);
            let failed = |e| Error::io(&dir, "reading", e);
            let map = layout::read_layout_map(&self.root, &dir).map_err(failed)?;
            let is_map = map.is_some();
            if let Some(LayoutMap::Map(map)) = map {
                tags.extend(map.into_keys());
            }
            let entries = match self.root.open_dir(&dir).and_then(|dir| dir.entries()) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            for entry in entries {
                let is_file = entry.kind == FileType::RegularFile;
                let name = entry.name.into_string().unwrap_or_default();
                let tag = self.layout.parse_tag(&name);
                let tag = tag.filter(|_| is_file && !(is_map && name == layout::LAYOUT_MAP));
                tags.extend(tag.map(Cow::into_owned));
            }
        }
        tags.sort_unstable();
        tags.dedup();
        Ok(tags)
    }
}

#[async_trait]
impl Attachments for ImagesDir {
    async fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Option<Vec<Descriptor>>> {
        let repository = repository.clone();
        self.blocking(move |inner| {
            // The fallback tag says it as the registry said it, and is carried as it is.
            let fallback = repository.tagged(&referrers_tag(&subject));
            if inner.manifest(&fallback).is_ok() {
                return Ok(None);
            }
            let referrers = inner.referrers(&repository)?;
            Ok(Some(referrers.get(&subject).cloned().unwrap_or_default()))
        })
        .await
    }

    async fn tags(&self, repository: &Repository) -> Result<Tags> {
        let repository = repository.clone();
        let names = self.blocking(move |inner| inner.tags(&repository)).await?;
        Ok(Tags { names, complete: true })
    }
}

fn damaged(path: &Path, what: Kind) -> Error {
    Error::new(SIDE, format_args!("reading {}", path.display()), Kind::Damaged(Box::new(what)))
}

/// Manifests of a repository by the digest that their `subject` names.
type Referrers = BTreeMap<Digest, Vec<Descriptor>>;

/// What its directories looked like when the referrers of a repository were read.
type Stamps = Vec<(u64, i64, i64)>;

/// Keeps [`Referrers`] as long as no file comes or goes in the repository.
#[derive(Default)]
pub(super) struct ReferrersCache(Mutex<HashMap<Repository, (Stamps, Arc<Referrers>)>>);

impl ReferrersCache {
    fn get(&self, repository: &Repository) -> Option<(Stamps, Arc<Referrers>)> {
        locked(&self.0).get(repository).cloned()
    }

    fn put(&self, repository: &Repository, stamps: Stamps, referrers: Arc<Referrers>) {
        let mut known = locked(&self.0);
        known.insert(repository.clone(), (stamps, referrers));
    }
}
