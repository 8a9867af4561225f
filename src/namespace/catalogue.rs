//! Images that are known and not, or not wholly, in the images_dir: their manifests, tags and
//! blobs, as a pull would write them.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::names::{BLOBS, manifests_of};
use crate::{
    backend::ManifestName,
    image::{Descriptor, Digest, Manifest, Reference, Repository},
    transfer::Plan,
};

/// A blob and who has it.
#[derive(Clone, Debug)]
pub(super) struct KnownBlob {
    pub descriptor: Descriptor,
    pub repositories: Vec<Repository>,
}

/// Where a tag leads.
#[derive(Clone, Copy, Debug)]
struct Tag {
    digest: Digest,
    /// From then on it has to be looked up again.
    until: Instant,
}

#[derive(Default)]
struct Known {
    tags: HashMap<String, Tag>,
    manifests: HashMap<Digest, Manifest>,
}

/// Whether something is a directory.
pub(super) type IsDirectory = bool;

/// What is known.
#[derive(Default)]
pub(super) struct Catalogue {
    repositories: HashMap<Repository, Known>,
    blobs: HashMap<Digest, KnownBlob>,
    /// What is listed in which directory.
    listed: HashMap<String, BTreeMap<String, IsDirectory>>,
    generation: u64,
}

impl Catalogue {
    /// Changes whenever something new is listed.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// What is listed in the directory `path`.
    pub(super) fn list(&self, path: &str) -> impl Iterator<Item = (&str, IsDirectory)> {
        let entries = self.listed.get(path).into_iter().flatten();
        entries.map(|(name, is_directory)| (name.as_str(), *is_directory))
    }

    pub(super) fn blob(&self, digest: &Digest) -> Option<&KnownBlob> {
        self.blobs.get(digest)
    }

    pub(super) fn blobs(&self) -> impl Iterator<Item = &KnownBlob> {
        self.blobs.values()
    }

    /// The manifest that `name` leads to. Second, whether that is to be found out again.
    pub(super) fn manifest(&self, name: &Reference) -> Option<(&Manifest, bool)> {
        let known = self.repositories.get(name.repository())?;
        if let Some(digest) = name.digest() {
            return Some((known.manifests.get(&digest)?, false));
        }
        let tag = known.tags.get(name.tag()?)?;
        Some((known.manifests.get(&tag.digest)?, tag.until <= Instant::now()))
    }

    /// The manifest with this digest in `repository`.
    pub(super) fn manifest_by_digest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<&Manifest> {
        self.repositories.get(repository)?.manifests.get(digest)
    }

    /// Lists a tag that has not been looked up yet.
    pub(super) fn declare(&mut self, image: &Reference) {
        let directory = manifests_of(image.repository());
        match (image.tag(), image.digest()) {
            (Some(tag), _) => self.list_file(&directory, tag),
            (None, Some(digest)) => self.list_file(&directory, &digest.to_string()),
            (None, None) => {}
        }
    }

    /// Notes that `name` still leads where it led.
    pub(super) fn confirm(&mut self, name: &Reference, ttl: Duration) {
        let tag = name
            .tag()
            .and_then(|tag| self.repositories.get_mut(name.repository())?.tags.get_mut(tag));
        if let Some(tag) = tag {
            tag.until = Instant::now() + ttl;
        }
    }

    /// Takes up what a pull of one image would have to write.
    pub(super) fn add(&mut self, plan: &Plan, ttl: Duration) {
        for planned in plan.images.iter().flat_map(|image| &image.manifests) {
            let directory = manifests_of(&planned.repository);
            let digest = planned.manifest.digest();
            for name in &planned.names {
                let known = self.repositories.entry(planned.repository.clone()).or_default();
                known.manifests.insert(digest, planned.manifest.clone());
                match name {
                    ManifestName::Tag(tag) => {
                        let until = Instant::now() + ttl;
                        known.tags.insert(tag.clone(), Tag { digest, until });
                        self.list_file(&directory, tag);
                    }
                    ManifestName::Digest | ManifestName::Pinned => {
                        self.list_file(&directory, &digest.to_string());
                    }
                }
            }
        }
        for blob in plan.missing() {
            let digest = blob.descriptor.digest;
            let known = self.blobs.entry(digest).or_insert_with(|| KnownBlob {
                descriptor: blob.descriptor.clone(),
                repositories: Vec::new(),
            });
            for repository in &blob.sources {
                if !known.repositories.contains(repository) {
                    known.repositories.push(repository.clone());
                }
            }
            self.list_file(BLOBS, &digest.to_string());
        }
    }

    /// Takes up a single manifest.
    pub(super) fn add_manifest(&mut self, name: &Reference, manifest: Manifest, ttl: Duration) {
        let known = self.repositories.entry(name.repository().clone()).or_default();
        if let (Some(tag), None) = (name.tag(), name.digest()) {
            let until = Instant::now() + ttl;
            known.tags.insert(tag.to_owned(), Tag { digest: manifest.digest(), until });
        }
        known.manifests.insert(manifest.digest(), manifest);
        self.declare(name);
    }

    fn list_file(&mut self, directory: &str, name: &str) {
        self.list_entry(directory, name, false);
        // And the directories that lead there.
        let mut path = directory;
        while let Some((above, name)) = path.rsplit_once('/') {
            self.list_entry(above, name, true);
            path = above;
        }
        self.list_entry("", path, true);
    }

    fn list_entry(&mut self, directory: &str, name: &str, is_directory: IsDirectory) {
        let entries = self.listed.entry(directory.to_owned()).or_default();
        if entries.insert(name.to_owned(), is_directory).is_none() {
            self.generation += 1;
        }
    }
}
