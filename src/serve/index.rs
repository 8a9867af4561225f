//! What is in a repository, as its manifests say: where tags lead, which blobs are named, and what refers to what.
//!
//! An index is derived from the manifests that are stored, and knows where each is and what it looked like there. So
//! whoever makes the next one reads those only that have changed.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    fmt::Debug,
    sync::Arc,
};

use serde_json::Value;

use super::route::Target;
use crate::image::{Algorithm, Descriptor, Digest, Manifest, MediaType, listed_referrer};

/// The bytes that something takes which an index names, about.
const BYTES_OF_A_NAME: usize = 200;

/// Where a manifest is stored, and what it looked like there: equal as long as nobody has changed it.
pub(super) trait Place: Clone + PartialEq + Debug + Send + Sync + 'static {
    /// Where that is, as text: to compare paths takes taking them apart, which in a repository with thousands of tags
    /// is most of the work.
    fn name(&self) -> &OsStr;
}

/// What a tree lists of a repository. Nothing of it has been read.
#[derive(Debug)]
pub(super) struct Listed<P> {
    /// Where the manifest of each tag is.
    pub(super) tags: BTreeMap<String, P>,
    /// Where each manifest is that is stored by its digest.
    pub(super) digests: BTreeMap<Digest, P>,
}

/// A manifest, as far as it is needed to answer.
#[derive(Debug)]
pub(super) struct Entry {
    /// By the algorithm that names it.
    pub(super) digest: Digest,
    /// By SHA-256.
    sha256: Digest,
    pub(super) media_type: String,
    pub(super) size: u64,
    pub(super) contents: Contents,
}

/// What a manifest names.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The blobs, with their sizes in bytes.
    pub(super) blobs: Vec<(Digest, u64)>,
    /// The children of an index.
    pub(super) children: Vec<Digest>,
    /// What it refers to, and how it is listed there.
    pub(super) subject: Option<(Digest, Arc<Descriptor>)>,
}

/// A manifest, and where it is stored.
#[derive(Debug)]
pub(super) struct Stored<P> {
    pub(super) place: P,
    pub(super) entry: Arc<Entry>,
}

/// Manifests by the names of their places.
pub(super) type ByPlace<P> = HashMap<OsString, Arc<Stored<P>>>;

/// What is in a repository.
#[derive(Debug)]
pub(super) struct Index<P> {
    known: ByPlace<P>,
    tags: BTreeMap<String, Arc<Stored<P>>>,
    digests: HashMap<Digest, Arc<Stored<P>>>,
    blobs: HashMap<Digest, u64>,
    /// Other sizes that are stated for the same blobs.
    disputed: HashMap<Digest, Vec<u64>>,
    referrers: HashMap<Digest, Vec<Arc<Descriptor>>>,
    /// Bytes of the annotations of referrers.
    annotation_bytes: usize,
}

impl Entry {
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self {
            digest: manifest.digest(),
            sha256: Digest::sha256(manifest.bytes()),
            media_type: manifest.media_type().to_owned(),
            size: manifest.bytes().len() as u64,
            contents: Contents::of(manifest),
        }
    }

    /// Whether the bytes are those of `other`, by whatever algorithm each is named.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }

    /// Whether a list of what refers to `subject` may have it: it refers to that, or to nothing.
    pub(super) fn may_refer_to(&self, subject: &Digest) -> bool {
        self.contents.subject.as_ref().is_none_or(|(other, _)| other == subject)
    }
}

impl Contents {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let blobs = manifest.blobs().map(|blob| (blob.digest, blob.size)).collect();
        let children = manifest.children().iter().map(|child| child.digest).collect();
        let subject = manifest.subject();
        let subject = subject.map(|of| (of.digest, Arc::new(listed_referrer(manifest))));
        Self { blobs, children, subject }
    }
}

impl<P> Default for Index<P> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            tags: BTreeMap::new(),
            digests: HashMap::new(),
            blobs: HashMap::new(),
            disputed: HashMap::new(),
            referrers: HashMap::new(),
            annotation_bytes: 0,
        }
    }
}

impl<P: Place> Listed<P> {
    /// What of it is as it was `before`, and what has to be read.
    pub(super) fn compare(
        &self,
        before: impl Fn(&OsStr) -> Option<Arc<Stored<P>>>,
    ) -> (ByPlace<P>, Vec<P>) {
        let (mut known, mut unread) = (ByPlace::new(), Vec::new());
        for place in self.tags.values().chain(self.digests.values()) {
            if known.contains_key(place.name()) {
                continue;
            }
            match before(place.name()).filter(|stored| stored.place == *place) {
                Some(stored) => drop(known.insert(place.name().to_owned(), stored)),
                None => unread.push(place.clone()),
            }
        }
        unread.sort_by(|a, b| a.name().cmp(b.name()));
        unread.dedup_by(|a, b| a.name() == b.name());
        (known, unread)
    }
}

impl<P: Place> Index<P> {
    /// The manifest that a tag or a digest leads to.
    pub(super) fn find(&self, target: &Target) -> Option<&Arc<Stored<P>>> {
        match target {
            Target::Tag(tag) => self.tags.get(tag),
            Target::Digest(digest) => self.digests.get(digest),
        }
    }

    /// The manifest in the place with this name.
    pub(super) fn at(&self, name: &OsStr) -> Option<&Arc<Stored<P>>> {
        self.known.get(name)
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// The tags, in the order of their bytes.
    pub(super) fn tags(&self) -> impl Iterator<Item = &String> {
        self.tags.keys()
    }

    /// The tags that lead to `digest`.
    pub(super) fn tags_of(&self, entry: &Entry) -> Vec<String> {
        let tags = self.tags.iter().filter(|(_, other)| other.entry.is_same(entry));
        tags.map(|(tag, _)| tag.clone()).collect()
    }

    /// Whether a manifest here names a blob.
    pub(super) fn names(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// The size that the manifests here state for a blob, in bytes. Where they do not agree, it is that of the blob
    /// that is `there`, if one states that.
    pub(super) fn blob(&self, digest: &Digest, there: impl Fn() -> Option<u64>) -> Option<u64> {
        let stated = *self.blobs.get(digest)?;
        let others = self.disputed.get(digest);
        let fits = others.and_then(|others| there().filter(|size| others.contains(size)));
        Some(fits.unwrap_or(stated))
    }

    /// All sizes that the manifests here state for a blob, in bytes.
    pub(super) fn sizes(&self, digest: &Digest) -> Vec<u64> {
        let others = self.disputed.get(digest).into_iter().flatten();
        self.blobs.get(digest).into_iter().chain(others).copied().collect()
    }

    /// The manifests that name a blob, or a manifest as their child.
    pub(super) fn users(&self, digest: &Digest) -> Vec<Arc<Entry>> {
        let names = |entry: &&Arc<Entry>| {
            let contents = &entry.contents;
            contents.blobs.iter().any(|(blob, _)| blob == digest)
                || contents.children.contains(digest)
        };
        let all = self.known.values().map(|stored| &stored.entry);
        let mut users: Vec<Arc<Entry>> = all.filter(names).cloned().collect();
        users.sort_by_key(|entry| entry.digest);
        users.dedup_by_key(|entry| entry.digest);
        users
    }

    /// What refers to `subject`.
    pub(super) fn referrers(&self, subject: &Digest) -> &[Arc<Descriptor>] {
        self.referrers.get(subject).map_or(&[], Vec::as_slice)
    }

    /// How much it names, where annotations that are kept count as what takes as much.
    pub(super) fn named(&self) -> usize {
        self.known.len() + self.blobs.len() + self.annotation_bytes / BYTES_OF_A_NAME
    }

    /// The index of what is `listed`, of which `known` are the manifests that could be read.
    pub(super) fn build(listed: Listed<P>, known: ByPlace<P>) -> Self {
        let mut index = Self { known, ..Self::default() };
        for (digest, place) in listed.digests {
            // What is not what its name says is nobody's manifest.
            let stored = index.known.get(place.name());
            if let Some(stored) = stored.filter(|stored| stored.entry.digest == digest) {
                index.digests.insert(digest, stored.clone());
            }
        }
        let sha512: HashMap<Digest, Digest> = index
            .digests
            .iter()
            .filter(|(digest, _)| digest.algorithm() == Algorithm::Sha512)
            .map(|(digest, stored)| (stored.entry.sha256, *digest))
            .collect();
        for (tag, place) in listed.tags {
            let Some(stored) = index.known.get(place.name()) else { continue };
            let entry = &stored.entry;
            // Whoever has pushed it by another algorithm finds it under that digest.
            let other = sha512.get(&entry.sha256);
            let other = other.filter(|_| !index.digests.contains_key(&entry.sha256));
            match other.filter(|_| entry.digest.algorithm() == Algorithm::Sha256) {
                Some(other) => {
                    let entry = Entry {
                        digest: *other,
                        sha256: entry.sha256,
                        media_type: entry.media_type.clone(),
                        size: entry.size,
                        contents: Contents::default(),
                    };
                    let place = stored.place.clone();
                    index.tags.insert(tag, Arc::new(Stored { place, entry: Arc::new(entry) }));
                }
                None => {
                    index.digests.entry(entry.digest).or_insert_with(|| stored.clone());
                    index.tags.insert(tag, stored.clone());
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        for stored in index.digests.values() {
            let entry = &stored.entry;
            for &(blob, size) in &entry.contents.blobs {
                let stated = *index.blobs.entry(blob).or_insert(size);
                if stated != size {
                    index.disputed.entry(blob).or_default().push(size);
                }
            }
            if let Some((subject, referrer)) = &entry.contents.subject
                && seen.insert((entry.sha256, *subject))
            {
                let texts = referrer.annotations.iter();
                index.annotation_bytes +=
                    texts.map(|(key, text)| key.len() + text.len()).sum::<usize>();
                index.referrers.entry(*subject).or_default().push(referrer.clone());
            }
        }
        for list in index.referrers.values_mut() {
            list.sort_by_key(|referrer| referrer.digest);
        }
        index
    }
}

/// What a list of referrers has, each with its descriptor as it stands there.
pub(super) fn listed_children(list: &[u8]) -> Vec<(Digest, Value)> {
    let Ok(parsed) = Manifest::parse(list.to_vec().into(), None) else { return Vec::new() };
    let Ok(json) = serde_json::from_slice::<Value>(list) else { return Vec::new() };
    let descriptors = json["manifests"].as_array().into_iter().flatten();
    let manifests =
        descriptors.filter(|d| !d["mediaType"].as_str().is_some_and(MediaType::is_of_blob));
    let children = parsed.children().iter().map(|child| child.digest);
    children.zip(manifests.cloned()).collect()
}
