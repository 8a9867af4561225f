//! What is known of names, manifests and blobs at the moment.

use std::{
    collections::{BTreeMap, HashMap, btree_map, hash_map},
    num::NonZeroUsize,
    ops::Bound,
    sync::Weak,
    time::{Duration, Instant},
};

use lru::LruCache;

use super::{Inner, KnownManifest};
use crate::{
    backend::ManifestName,
    image::{Descriptor, Digest, Manifest, Reference, Repository},
    transfer::Plan,
    util::{Reservation, locked},
};

/// Tags of which it is known where they lead. With some 300 bytes each, the most that they take is 5 MiB;
/// whoever walks through more tags than that has the first ones looked up again.
const MAX_TAGS: NonZeroUsize = NonZeroUsize::new(1 << 14).unwrap();

/// What a manifest takes beside its bytes: its parsed form, which is about as large.
const PER_MANIFEST: u64 = 512;

/// What a blob takes, with its media type, its places in maps and the repositories that have it.
const PER_BLOB: u64 = 512;

/// A blob and who has it.
#[derive(Clone, Debug)]
pub struct KnownBlob {
    /// What it is.
    pub descriptor: Descriptor,
    /// The repositories of the source that have it.
    pub repositories: Vec<Repository>,
}

/// What is known of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TagState {
    /// Where it leads; `None` if it is not there.
    pub digest: Option<Digest>,
    /// Whether it has to be looked up again.
    pub is_stale: bool,
}

/// Where a tag was found to lead.
struct Tag {
    digest: Option<Digest>,
    until: Instant,
}

/// What a pull would write under a tag.
#[derive(Clone, Copy)]
struct Written {
    /// The digest that the tag had at the source.
    made_of: Digest,
    /// That of the manifest, which a platform filter may have made.
    digest: Digest,
}

/// Something that several images may need.
struct Shared<T> {
    value: T,
    uses: usize,
}

#[derive(Default)]
struct Names {
    /// What is listed, and for how many reasons.
    listed: BTreeMap<String, usize>,
    written: HashMap<String, Shared<Written>>,
    manifests: HashMap<Digest, Shared<Manifest>>,
}

impl Names {
    fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.manifests.is_empty() && self.written.is_empty()
    }
}

pub(super) struct Known {
    /// By their whole names.
    repositories: BTreeMap<String, Names>,
    blobs: HashMap<Digest, Shared<KnownBlob>>,
    tags: LruCache<Reference, Tag>,
    generation: u64,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            repositories: BTreeMap::new(),
            blobs: HashMap::new(),
            tags: LruCache::new(MAX_TAGS),
            generation: 0,
        }
    }
}

/// What one look-up has put into [`Known`]. Dropped, it is taken out again.
pub(super) struct Listed {
    catalogue: Weak<Inner>,
    names: Vec<(String, String)>,
    written: Vec<(String, String)>,
    manifests: Vec<(String, Digest)>,
    blobs: Vec<Digest>,
    _memory: Reservation,
}

/// Blobs that are listed as long as this exists.
pub struct HeldBlobs {
    _listed: Listed,
}

impl Listed {
    fn new(catalogue: Weak<Inner>, memory: Reservation) -> Self {
        Self {
            catalogue,
            names: Vec::new(),
            written: Vec::new(),
            manifests: Vec::new(),
            blobs: Vec::new(),
            _memory: memory,
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some(catalogue) = self.catalogue.upgrade() {
            locked(&catalogue.known).forget(self);
        }
    }
}

/// What a manifest takes, in bytes.
pub(super) fn bytes_of_manifest(manifest: &Manifest) -> u64 {
    2 * manifest.bytes().len() as u64 + PER_MANIFEST
}

impl Known {
    /// What [`Known::add`] takes of memory for a plan, in bytes.
    pub(super) fn bytes_of(plan: &Plan) -> u64 {
        let manifests = plan.images.iter().flat_map(|image| &image.manifests);
        let manifests: u64 = manifests.map(|planned| bytes_of_manifest(&planned.manifest)).sum();
        manifests + plan.missing().count() as u64 * PER_BLOB
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    // --- lists ---

    pub(super) fn names(&self, repository: &str) -> Vec<String> {
        let names = self.repositories.get(repository);
        names.map(|names| names.listed.keys().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn below(&self, above: &str) -> Vec<(String, bool)> {
        let prefix = if above.is_empty() { String::new() } else { format!("{above}/") };
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        let mut from = Bound::Included(prefix.clone());
        loop {
            let mut range = self.repositories.range((from, Bound::Unbounded));
            let Some((name, names)) = range.next() else { break };
            let Some(rest) = name.strip_prefix(&prefix) else { break };
            let first = rest.split('/').next().unwrap_or_default();
            let is_repository = first == rest && !names.listed.is_empty();
            if !names.listed.is_empty() || first != rest {
                *found.entry(first.to_owned()).or_default() |= is_repository;
            }
            // What follows all names that begin with `a/` begins with `a0` at least.
            from = match first == rest {
                true => Bound::Excluded(name.clone()),
                false => Bound::Included(format!("{prefix}{first}0")),
            };
        }
        found.into_iter().collect()
    }

    pub(super) fn blob(&self, digest: &Digest) -> Option<&KnownBlob> {
        self.blobs.get(digest).map(|blob| &blob.value)
    }

    pub(super) fn blobs(&self) -> impl Iterator<Item = &KnownBlob> {
        self.blobs.values().map(|blob| &blob.value)
    }

    // --- names ---

    pub(super) fn manifest(&mut self, name: &Reference) -> Option<KnownManifest> {
        if let Some(digest) = name.digest() {
            let manifest = self.manifest_by_digest(name.repository(), &digest)?.clone();
            return Some(KnownManifest { manifest, is_stale: false });
        }
        let written = self.written(name)?;
        let manifest = self.manifest_by_digest(name.repository(), &written.digest)?.clone();
        let holds = TagState { digest: Some(written.made_of), is_stale: false };
        Some(KnownManifest { manifest, is_stale: self.tag(name) != Some(holds) })
    }

    pub(super) fn manifest_by_digest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<&Manifest> {
        let names = self.repositories.get(&repository.to_string())?;
        names.manifests.get(digest).map(|manifest| &manifest.value)
    }

    fn written(&self, tag: &Reference) -> Option<Written> {
        let names = self.repositories.get(&tag.repository().to_string())?;
        names.written.get(tag.tag()?).map(|written| written.value)
    }

    /// The digest that a tag had at the source when it was planned what a pull would write.
    pub(super) fn planned(&self, tag: &Reference) -> Option<Digest> {
        self.written(tag).filter(|_| tag.digest().is_none()).map(|written| written.made_of)
    }

    pub(super) fn tag(&mut self, tag: &Reference) -> Option<TagState> {
        let Tag { digest, until } = self.tags.get(tag)?;
        Some(TagState { digest: *digest, is_stale: *until <= Instant::now() })
    }

    /// Until when what is known of a tag holds.
    #[cfg(test)]
    pub(super) fn holds_until(&self, tag: &Reference) -> Option<Instant> {
        self.tags.peek(tag).map(|tag| tag.until)
    }

    /// Whether `name` has been found not to be there, and that still holds.
    pub(super) fn is_absent(&mut self, name: &Reference) -> bool {
        self.tag(name) == Some(TagState { digest: None, is_stale: false })
    }

    /// Notes where a tag leads; `None` if it is not there. That holds for `ttl`.
    pub(super) fn set_tag(&mut self, tag: &Reference, digest: Option<Digest>, ttl: Duration) {
        self.tags.put(tag.clone(), Tag { digest, until: Instant::now() + ttl });
    }

    // --- what is listed ---

    /// Lists a name that has not been looked up yet, for good.
    pub(super) fn declare(&mut self, image: &Reference) {
        let name = match (image.tag(), image.digest()) {
            (Some(tag), _) => tag.to_owned(),
            (None, Some(digest)) => digest.to_string(),
            (None, None) => return,
        };
        self.list(&image.repository().to_string(), &name);
    }

    fn list(&mut self, repository: &str, name: &str) {
        let names = self.repositories.entry(repository.to_owned()).or_default();
        let uses = names.listed.entry(name.to_owned()).or_default();
        *uses += 1;
        if *uses == 1 {
            self.generation += 1;
        }
    }

    /// Takes up what a pull of one image would have to write; `made_of` is the digest of its root at the
    /// source. Where its tags lead holds for `ttl`.
    pub(super) fn add(
        &mut self,
        plan: &Plan,
        made_of: Option<Digest>,
        ttl: Duration,
        catalogue: Weak<Inner>,
        memory: Reservation,
    ) -> Listed {
        let mut listed = Listed::new(catalogue, memory);
        for planned in plan.images.iter().flat_map(|image| &image.manifests) {
            let repository = planned.repository.to_string();
            let digest = planned.manifest.digest();
            for name in &planned.names {
                self.add_manifest_to(&mut listed, &repository, &planned.manifest);
                match name {
                    ManifestName::Tag(tag) => {
                        let name = planned.repository.tagged(tag);
                        // What is attached to an image is never made of something else.
                        let is_root = plan.images.iter().any(|image| image.report.route.to == name);
                        let made_of = made_of.filter(|_| is_root).unwrap_or(digest);
                        self.set_tag(&name, Some(made_of), ttl);
                        self.add_written(
                            &mut listed,
                            &repository,
                            tag,
                            Written { made_of, digest },
                        );
                    }
                    ManifestName::Digest | ManifestName::Pinned => {
                        self.add_name(&mut listed, &repository, digest.to_string());
                    }
                }
            }
        }
        for blob in plan.missing() {
            self.add_blob(&mut listed, &blob.descriptor, &blob.sources);
        }
        listed
    }

    fn add_blob(&mut self, listed: &mut Listed, blob: &Descriptor, sources: &[Repository]) {
        let new = || Shared {
            value: KnownBlob { descriptor: blob.clone(), repositories: Vec::new() },
            uses: 0,
        };
        let known = self.blobs.entry(blob.digest).or_insert_with(new);
        known.uses += 1;
        if known.uses == 1 {
            self.generation += 1;
        }
        for repository in sources {
            if !known.value.repositories.contains(repository) {
                known.value.repositories.push(repository.clone());
            }
        }
        listed.blobs.push(blob.digest);
    }

    /// What [`Known::hold_blobs`] takes of memory for so many blobs, in bytes.
    pub(super) fn bytes_of_blobs(count: usize) -> u64 {
        count as u64 * PER_BLOB
    }

    /// Lists blobs that `repository` has, for whoever holds the result.
    pub(super) fn hold_blobs(
        &mut self,
        repository: &Repository,
        blobs: &[Descriptor],
        catalogue: Weak<Inner>,
        memory: Reservation,
    ) -> HeldBlobs {
        let mut listed = Listed::new(catalogue, memory);
        for blob in blobs {
            self.add_blob(&mut listed, blob, std::slice::from_ref(repository));
        }
        HeldBlobs { _listed: listed }
    }

    /// Takes up a single manifest.
    pub(super) fn add_manifest(
        &mut self,
        name: &Reference,
        manifest: &Manifest,
        catalogue: Weak<Inner>,
        memory: Reservation,
    ) -> Listed {
        let mut listed = Listed::new(catalogue, memory);
        let (repository, digest) = (name.repository().to_string(), manifest.digest());
        self.add_manifest_to(&mut listed, &repository, manifest);
        match name.tag().filter(|_| name.digest().is_none()) {
            Some(tag) => {
                let written = Written { made_of: digest, digest };
                self.add_written(&mut listed, &repository, tag, written);
            }
            None => self.add_name(&mut listed, &repository, digest.to_string()),
        }
        listed
    }

    fn add_manifest_to(&mut self, listed: &mut Listed, repository: &str, manifest: &Manifest) {
        let names = self.repositories.entry(repository.to_owned()).or_default();
        let new = || Shared { value: manifest.clone(), uses: 0 };
        names.manifests.entry(manifest.digest()).or_insert_with(new).uses += 1;
        listed.manifests.push((repository.to_owned(), manifest.digest()));
    }

    fn add_name(&mut self, listed: &mut Listed, repository: &str, name: String) {
        self.list(repository, &name);
        listed.names.push((repository.to_owned(), name));
    }

    fn add_written(&mut self, listed: &mut Listed, repository: &str, tag: &str, written: Written) {
        let names = self.repositories.entry(repository.to_owned()).or_default();
        let shared =
            names.written.entry(tag.to_owned()).or_insert(Shared { value: written, uses: 0 });
        shared.value = written;
        shared.uses += 1;
        listed.written.push((repository.to_owned(), tag.to_owned()));
        self.add_name(listed, repository, tag.to_owned());
    }

    /// Takes out what a look-up has put in, as far as no other needs it.
    fn forget(&mut self, listed: &Listed) {
        for (repository, name) in &listed.names {
            let Some(names) = self.repositories.get_mut(repository) else { continue };
            if let btree_map::Entry::Occupied(mut uses) = names.listed.entry(name.clone()) {
                *uses.get_mut() -= 1;
                if *uses.get() == 0 {
                    uses.remove();
                    self.generation += 1;
                }
            }
        }
        for (repository, tag) in &listed.written {
            let Some(names) = self.repositories.get_mut(repository) else { continue };
            release(&mut names.written, tag.clone());
        }
        for (repository, digest) in &listed.manifests {
            let Some(names) = self.repositories.get_mut(repository) else { continue };
            release(&mut names.manifests, *digest);
        }
        for digest in &listed.blobs {
            if release(&mut self.blobs, *digest) {
                self.generation += 1;
            }
        }
        let touched = listed.names.iter().map(|(repository, _)| repository);
        for repository in touched {
            if self.repositories.get(repository).is_some_and(Names::is_empty) {
                self.repositories.remove(repository);
            }
        }
    }
}

/// Counts one use less; whether that was the last one.
fn release<K: Eq + std::hash::Hash, T>(all: &mut HashMap<K, Shared<T>>, key: K) -> bool {
    let hash_map::Entry::Occupied(mut shared) = all.entry(key) else { return false };
    shared.get_mut().uses -= 1;
    let is_last = shared.get().uses == 0;
    if is_last {
        shared.remove();
    }
    is_last
}
