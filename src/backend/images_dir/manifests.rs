//! Manifests and tags of a repository: where each generation has them, and writing them.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    Inner, LOCKS, Layout, SCRATCH, SIDE,
    layout::{self, LAYOUT_MAP, LayoutMap, MANIFESTS},
    publish,
};
use crate::{
    backend::{Error, Kind, ManifestName, Result},
    image::{
        Algorithm, Digest, MAX_MANIFEST_BYTES, Manifest, ManifestError, Reference, Repository,
        is_tag,
    },
};

impl Inner {
    /// Looks a manifest up, in all generations.
    pub(super) fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        let repository = reference.repository();
        for dir in layout::candidates(&self.root, repository) {
            let manifests = dir.join(MANIFESTS);
            let failed = |e| Error::io(&manifests, "reading", e);
            let path = match (reference.digest(), reference.tag()) {
                (Some(digest), _) => Some(manifests.join(digest.to_string())),
                (None, Some(tag)) => tag_path(&manifests, tag).map_err(failed)?,
                (None, None) => None,
            };
            let Some(path) = path.filter(|path| path.is_file()) else { continue };
            let algorithm = reference.digest().map_or(Algorithm::Sha256, |d| d.algorithm());
            let manifest = read_manifest(&path, algorithm)?;
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
            ManifestName::Tag(tag) => tag_path(&dir, tag).ok().flatten(),
            ManifestName::Digest => Some(dir.join(digest.to_string())),
            ManifestName::Pinned if self.records.is_pinned(&repository.pinned(digest)) => {
                Some(dir.join(digest.to_string()))
            }
            ManifestName::Pinned => None,
        };
        let found = path.and_then(|path| read_manifest(&path, digest.algorithm()).ok());
        found.is_some_and(|manifest| manifest.digest() == digest)
    }

    /// Where new manifests of `repository` go: where it is already, or else where the tree's
    /// layout has it.
    pub(super) fn manifests_dir(&self, repository: &Repository) -> PathBuf {
        let own = self.root.join(self.layout.registry_dir(repository.registry()));
        layout::candidates(&self.root, repository)
            .into_iter()
            // Not into a tree without registries: what is there may be from anywhere.
            .filter(|dir| dir != &self.root.join(repository.path()))
            .map(|dir| dir.join(MANIFESTS))
            .find(|dir| dir.is_dir())
            .unwrap_or_else(|| own.join(repository.path()).join(MANIFESTS))
    }

    pub(super) fn put(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> Result<()> {
        self.flush_blobs()?;
        let dir = self.manifests_dir(repository);
        let failed = |e| Error::io(&dir, "writing a manifest to", e);
        publish::create_dirs(&dir).map_err(failed)?;
        let _lock = self.lock_repository(repository).map_err(failed)?;
        let map = layout::read_layout_map(&dir).map_err(failed)?;
        let is_g2 = map.is_some() || (self.layout == Layout::Kubekey && !has_tag_files(&dir));
        match name {
            ManifestName::Tag(tag) if is_g2 => {
                let mut map = match map {
                    Some(LayoutMap::Map(map)) => map,
                    None => Default::default(),
                    Some(LayoutMap::Broken) => {
                        let reason = "the map of tags is damaged; `imgfs verify --repair` rebuilds what can be saved";
                        let path = dir.join(LAYOUT_MAP);
                        return Err(Error::new(
                            SIDE,
                            format_args!("reading {}", path.display()),
                            Kind::Config(reason.into()),
                        ));
                    }
                };
                self.put_file(&dir, &manifest.digest().to_string(), manifest)?;
                map.insert(tag.clone(), manifest.digest());
                self.put_map(&dir, &map).map_err(failed)?;
                if tag == LAYOUT_MAP {
                    return Ok(()); // The file of this name is the map.
                }
                // A file of the older generation would say something else from now on.
                let older = dir.join(tag);
                if older.is_file() { fs::remove_file(older).map_err(failed) } else { Ok(()) }
            }
            ManifestName::Tag(tag) => self.put_file(&dir, tag, manifest),
            ManifestName::Digest => self.put_file(&dir, &manifest.digest().to_string(), manifest),
            ManifestName::Pinned => {
                self.put_file(&dir, &manifest.digest().to_string(), manifest)?;
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
        let old = fs::read(&path).map_err(failed)?;
        let mut map = layout::salvage_layout_map(&old);
        map.extend(tags);
        map.retain(|_, digest| dir.join(digest.to_string()).is_file());
        if map.is_empty() {
            let reason = "no tag of the registry leads to a manifest that is here, and nothing of the map can be read";
            let doing = format!("mending {}", path.display());
            return Err(Error::new(SIDE, doing, Kind::Unfit(reason.into())));
        }
        let aside = format!("damaged-layout-{}", Digest::sha256(&old).to_hex());
        fs::write(self.state_dir().join(SCRATCH).join(aside), &old).map_err(failed)?;
        self.put_map(&dir, &map).map_err(failed)
    }

    fn lock_repository(&self, repository: &Repository) -> io::Result<File> {
        let lock = lock_file(&self.state_dir().join(LOCKS).join(lock_name(repository)))?;
        lock.lock()?;
        Ok(lock)
    }

    fn put_map(&self, dir: &Path, map: &BTreeMap<String, Digest>) -> io::Result<()> {
        let text = layout::format_layout_map(map);
        let time = publish::Time::Of(Digest::sha256(&text));
        publish::publish(&self.state_dir().join(SCRATCH), &dir.join(LAYOUT_MAP), &text, time)
    }

    fn put_file(&self, dir: &Path, name: &str, manifest: &Manifest) -> Result<()> {
        let target = dir.join(name);
        let time = match name.parse::<Digest>() {
            Ok(_) => publish::Time::Immutable,
            Err(_) => publish::Time::Of(manifest.digest()),
        };
        if target.is_dir() {
            let reason = "a repository of this name is in the way; this layout cannot hold both";
            let doing = format!("writing {}", target.display());
            return Err(Error::new(SIDE, doing, Kind::Config(reason.into())));
        }
        if fs::read(&target).is_ok_and(|there| there == *manifest.bytes()) {
            return Ok(());
        }
        publish::publish(&self.state_dir().join(SCRATCH), &target, manifest.bytes(), time)
            .map_err(|e| Error::io(&target, "writing", e))
    }
}

/// The file of the manifest that `tag` names in a `manifests` directory, if any.
fn tag_path(manifests: &Path, tag: &str) -> io::Result<Option<PathBuf>> {
    let map = layout::read_layout_map(manifests)?;
    if let Some(LayoutMap::Map(map)) = &map
        && let Some(digest) = map.get(tag)
    {
        return Ok(Some(manifests.join(digest.to_string())));
    }
    let is_the_map = tag == LAYOUT_MAP && map.is_some();
    Ok((!is_the_map).then(|| manifests.join(tag)))
}

/// Whether a `manifests` directory has tags in the way of the generations before G2.
fn has_tag_files(manifests: &Path) -> bool {
    fs::read_dir(manifests).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry.file_name().to_str().is_some_and(is_tag)
                && entry.file_type().is_ok_and(|t| t.is_file())
        })
    })
}

/// Reads a manifest's file, whatever its size claims to be.
pub(super) fn read_manifest(path: &Path, algorithm: Algorithm) -> Result<Manifest> {
    let failed = |e| Error::io(path, "reading", e);
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let unreadable =
        |e: ManifestError| Error::new(SIDE, format_args!("reading {}", path.display()), e);
    Manifest::parse_as(algorithm, bytes.into(), None).map_err(unreadable)
}

pub(super) fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

/// A repository's name can be longer than a file's, so its lock is named by its hash.
fn lock_name(repository: &Repository) -> String {
    Digest::sha256(repository.to_string().as_bytes()).to_hex()
}
