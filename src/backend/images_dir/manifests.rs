//! Manifests and tags of a repository: where each generation has them, and writing them.

use std::{
    collections::BTreeMap,
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    Inner, LOCKS, Layout, SCRATCH, SIDE,
    layout::{self, LAYOUT_MAP, LayoutMap, MANIFESTS, MAX_LAYOUT_MAP},
    medium, publish,
};
use crate::{
    backend::{ConfinedDir, Error, FileType, Flush, Kind, ManifestName, Result},
    image::{
        Algorithm, Digest, MAX_MANIFEST_BYTES, Manifest, ManifestError, Reference, Repository,
    },
    util::locked,
};

/// A map of tags as it was read.
pub(super) struct ReadMap {
    file: PathBuf,
    /// Its inode, its size in bytes and its time: it is replaced as a whole.
    stamp: (u64, u64, i64, i64),
    tags: BTreeMap<String, Digest>,
}

impl Inner {
    /// Looks a manifest up, in all generations.
    pub(super) fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        let repository = reference.repository();
        for dir in self.layout.candidates(self.root.path(), repository) {
            let manifests = dir.join(MANIFESTS);
            let failed = |e| Error::io(&manifests, "reading", e);
            let path = match (reference.digest(), reference.tag()) {
                (Some(digest), _) => Some(manifests.join(self.layout.digest_name(&digest))),
                (None, Some(tag)) => self.tag_path(&manifests, tag).map_err(failed)?,
                (None, None) => None,
            };
            let Some(path) = path else { continue };
            let is_tag = reference.digest().is_none();
            if is_tag && medium::is_another_spelling(&self.root, &path).map_err(failed)? {
                continue;
            }
            let algorithm = reference.digest().map_or(Algorithm::Sha256, |d| d.algorithm());
            let manifest = match read_manifest(&self.root, &path, algorithm) {
                Err(error) if is_absent(&error) => continue,
                read => read?,
            };
            match reference.digest() {
                Some(expected) if expected != manifest.digest() => {
                    let found = manifest.digest();
                    return Err(Error::new(
                        SIDE,
                        format_args!("reading {}", path.display()),
                        Kind::Digest { expected, found },
                    ));
                }
                _ => return Ok(manifest),
            }
        }
        Err(Error::new(SIDE, format_args!("looking up {reference}"), Kind::NotFound(String::new())))
    }

    pub(super) fn resolves_to(
        &self,
        repository: &Repository,
        name: &ManifestName,
        digest: Digest,
    ) -> bool {
        let dir = self.manifests_dir(repository);
        let path = match name {
            ManifestName::Tag(tag) => self.tag_path(&dir, tag).ok().flatten(),
            ManifestName::Digest => Some(dir.join(self.layout.digest_name(&digest))),
            ManifestName::Pinned if self.records.is_pinned(&repository.pinned(digest)) => {
                Some(dir.join(self.layout.digest_name(&digest)))
            }
            ManifestName::Pinned => None,
        };
        let found = path.and_then(|path| read_manifest(&self.root, &path, digest.algorithm()).ok());
        found.filter(|manifest| manifest.digest() == digest).is_some_and(|manifest| {
            // One that was pushed without its blobs is not there yet, as far as they are its repository's.
            self.first_lacking(repository, manifest.blobs().map(|blob| &blob.digest)).is_none()
        })
    }

    /// Where new manifests of `repository` go: where it is already, or else where the tree's
    /// layout has it.
    pub(super) fn manifests_dir(&self, repository: &Repository) -> PathBuf {
        let root = self.root.path();
        let own = self.layout.repository_dir(root, repository);
        let alone = root.join(&*self.layout.stored_path(repository.path()));
        self.layout
            .candidates(root, repository)
            .into_iter()
            // Not into a tree without registries: what is there may be from anywhere.
            .filter(|dir| *dir != alone)
            .map(|dir| dir.join(MANIFESTS))
            .find(|dir| self.root.is_dir(dir))
            .unwrap_or_else(|| own.join(MANIFESTS))
    }

    pub(super) fn put(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> Result<()> {
        self.put_in(&self.manifests_dir(repository), repository, manifest, name, None)
    }

    /// The same in the `manifests` directory `dir`, with the time that somebody has set for the file of that name.
    pub(super) fn put_in(
        &self,
        dir: &Path,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
        time: Option<(i64, u32)>,
    ) -> Result<()> {
        self.flush_blobs()?;
        let failed = |e| Error::io(dir, "writing a manifest to", e);
        self.root.create_dirs_and(dir, self.sync.flush()).map_err(failed)?;
        let _lock = self.lock_repository(repository).map_err(failed)?;
        let map = layout::read_layout_map(&self.root, dir).map_err(failed)?;
        let is_g2 = map.is_some() || (self.layout == Layout::Kubekey && !self.has_tag_files(dir));
        match name {
            ManifestName::Tag(tag) if is_g2 => {
                let mut map = match map {
                    Some(LayoutMap::Map(map)) => map,
                    None => Default::default(),
                    Some(LayoutMap::Broken) => return Err(broken_map(dir)),
                };
                self.put_digest(dir, manifest, None)?;
                map.insert(tag.clone(), manifest.digest());
                self.put_map(dir, &map).map_err(failed)?;
                self.note_tag_time(&repository.tagged(tag), &manifest.digest(), time)?;
                if tag == LAYOUT_MAP {
                    return Ok(()); // The file of this name is the map.
                }
                // A file of the older generation would say something else from now on.
                let older = dir.join(&*self.layout.tag_name(tag));
                match self.root.is_dir(&older) {
                    false => self.root.remove_if_there(&older).map_err(failed),
                    true => Ok(()),
                }
            }
            ManifestName::Tag(tag) => {
                let time = publish::Time::Of(manifest.digest()).or(time);
                self.put_file(dir, &self.layout.tag_name(tag), manifest, time)
            }
            ManifestName::Digest => self.put_digest(dir, manifest, time),
            ManifestName::Pinned => {
                self.put_digest(dir, manifest, time)?;
                let pin = repository.pinned(manifest.digest());
                self.records.pin(&pin).map_err(|e| self.records_error(e))
            }
        }
    }

    pub(super) fn mend_map(
        &self,
        repository: &Repository,
        tags: BTreeMap<String, Digest>,
    ) -> Result<()> {
        let dir = self.manifests_dir(repository);
        let path = dir.join(LAYOUT_MAP);
        let failed = |e| Error::io(&path, "mending", e);
        let _lock = self.lock_repository(repository).map_err(failed)?;
        let old = self.root.read(&path, MAX_LAYOUT_MAP).map_err(failed)?;
        let mut map = layout::salvage_layout_map(&old);
        map.extend(tags);
        map.retain(|_, digest| self.root.is_file(&dir.join(self.layout.digest_name(digest))));
        if map.is_empty() {
            let reason = "no tag of the registry leads to a manifest that is here, and nothing of the map can be read";
            let doing = format!("mending {}", path.display());
            return Err(Error::new(SIDE, doing, Kind::Unfit(reason.into())));
        }
        let aside = format!("damaged-layout-{}", Digest::sha256(&old).to_hex());
        let aside = self.state_dir().join(SCRATCH).join(aside);
        self.root.write(&aside, &old).map_err(failed)?;
        self.put_map(&dir, &map).map_err(failed)
    }

    pub(super) fn lock_repository(&self, repository: &Repository) -> io::Result<File> {
        let path = self.state_dir().join(LOCKS).join(lock_name(repository));
        let lock = self.root.open_or_create(&path)?;
        lock.lock()?;
        Ok(lock)
    }

    pub(super) fn put_map(&self, dir: &Path, map: &BTreeMap<String, Digest>) -> io::Result<()> {
        let text = layout::format_layout_map(map);
        let time = publish::Time::Of(Digest::sha256(&text));
        let scratch = self.state_dir().join(SCRATCH);
        // It also says what earlier runs have brought.
        publish::publish(&self.root, &scratch, &dir.join(LAYOUT_MAP), &text, time, Flush::Now)
    }

    fn put_digest(&self, dir: &Path, manifest: &Manifest, time: Option<(i64, u32)>) -> Result<()> {
        let name = self.layout.digest_name(&manifest.digest());
        self.put_file(dir, &name, manifest, publish::Time::Immutable.or(time))
    }

    fn put_file(
        &self,
        dir: &Path,
        name: &str,
        manifest: &Manifest,
        time: publish::Time,
    ) -> Result<()> {
        let target = dir.join(name);
        if self.root.is_dir(&target) {
            let reason = "a repository of this name is in the way; this layout cannot hold both";
            let doing = format!("writing {}", target.display());
            return Err(Error::new(SIDE, doing, Kind::Config(reason.into())));
        }
        if medium::is_another_spelling(&self.root, &target)
            .map_err(|e| Error::io(&target, "writing", e))?
        {
            let reason = "this file system does not tell capitals from small letters, and a tag of the other \
                          spelling is there; a directory that is made with --layout portable can hold both";
            let doing = format!("writing {}", target.display());
            return Err(Error::new(SIDE, doing, Kind::Config(reason.into())));
        }
        let flush = match time {
            publish::Time::Of(_) | publish::Time::Set(_) if !self.knows_again => Flush::Now,
            _ => self.sync.flush(),
        };
        let there = self.root.read(&target, MAX_MANIFEST_BYTES as u64 + 1);
        if there.is_ok_and(|there| there == *manifest.bytes()) {
            if let publish::Time::Set(_) = time {
                let set = self.set_time(&target, time);
                set.map_err(|e| Error::io(&target, "setting the time of", e))?;
            }
            return match flush {
                // An earlier run need not have done that.
                Flush::Now => self.root.sync_file(&target),
                Flush::Later => Ok(()),
            }
            .map_err(|e| Error::io(&target, "flushing", e));
        }
        let scratch = self.state_dir().join(SCRATCH);
        publish::publish(&self.root, &scratch, &target, manifest.bytes(), time, flush)
            .map_err(|e| Error::io(&target, "writing", e))
    }

    /// The file of the manifest that `tag` names in a `manifests` directory, if any.
    fn tag_path(&self, manifests: &Path, tag: &str) -> io::Result<Option<PathBuf>> {
        let map = layout::read_layout_map(&self.root, manifests)?;
        if let Some(LayoutMap::Map(map)) = &map
            && let Some(digest) = map.get(tag)
        {
            return Ok(Some(manifests.join(self.layout.digest_name(digest))));
        }
        let is_the_map = tag == LAYOUT_MAP && map.is_some();
        Ok((!is_the_map).then(|| manifests.join(&*self.layout.tag_name(tag))))
    }

    /// What a map of tags in a `manifests` directory has for `tag`.
    pub(super) fn mapped(&self, manifests: &Path, tag: &str) -> Option<Digest> {
        let file = manifests.join(LAYOUT_MAP);
        let meta = self.root.stat(&file).ok().filter(Metadata::is_file)?;
        let stamp = (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
        let mut last = locked(&self.last_map);
        if last.as_ref().is_none_or(|last| last.file != file || last.stamp != stamp) {
            let tags = match layout::read_layout_map(&self.root, manifests) {
                Ok(Some(LayoutMap::Map(tags))) => tags,
                _ => BTreeMap::new(),
            };
            *last = Some(ReadMap { file, stamp, tags });
        }
        last.as_ref().and_then(|last| last.tags.get(tag).copied())
    }

    /// Notes the time that somebody has set of a tag without a file of its own, or that nobody has.
    pub(super) fn note_tag_time(
        &self,
        tag: &Reference,
        digest: &Digest,
        time: Option<(i64, u32)>,
    ) -> Result<()> {
        let noted = match time {
            Some(time) => self.records.set_tag_time(tag, digest, time),
            None => self.records.forget_tag_time(tag),
        };
        noted.map_err(|e| self.records_error(e))
    }

    /// Whether a `manifests` directory has tags in the way of the generations before G2.
    pub(super) fn has_tag_files(&self, manifests: &Path) -> bool {
        let entries = self.root.open_dir(manifests).and_then(|dir| dir.entries());
        entries.is_ok_and(|entries| {
            entries.iter().any(|entry| {
                let name = entry.name.to_str();
                let is_tag = name.is_some_and(|name| self.layout.parse_tag(name).is_some());
                entry.kind == FileType::RegularFile && is_tag
            })
        })
    }
}

/// The error for a map of tags that cannot be changed, since it is damaged.
pub(super) fn broken_map(dir: &Path) -> Error {
    let reason = "the map of tags is damaged; `imgfs verify --repair` rebuilds what can be saved";
    let doing = format!("reading {}", dir.join(LAYOUT_MAP).display());
    Error::new(SIDE, doing, Kind::Config(reason.into()))
}

/// Whether `error` says that a file is not there, or that a directory has its name.
fn is_absent(error: &Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), Kind::Io(e) if matches!(e.kind(), NotFound | NotADirectory | IsADirectory))
}

/// Reads a manifest's file, whatever its size claims to be.
pub(super) fn read_manifest(
    root: &ConfinedDir,
    path: &Path,
    algorithm: Algorithm,
) -> Result<Manifest> {
    let bytes = root.read(path, MAX_MANIFEST_BYTES as u64 + 1);
    let bytes = bytes.map_err(|e| Error::io(path, "reading", e))?;
    let unreadable =
        |e: ManifestError| Error::new(SIDE, format_args!("reading {}", path.display()), e);
    Manifest::parse_as(algorithm, bytes.into(), None).map_err(unreadable)
}

/// A repository's name can be longer than a file's, so its lock is named by its hash.
fn lock_name(repository: &Repository) -> String {
    Digest::sha256(repository.to_string().as_bytes()).to_hex()
}
