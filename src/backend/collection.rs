//! A collection of images: a list of entries, each with a digest and mostly with a name, over blobs by
//! digest. What OCI image layouts, archives and skopeo's directories have in common when they are read.
//!
//! A medium reads its list and says where its blobs are ([`BlobSource`]); what names lead to, what is
//! attached to what, and which indexes are sparse is found out here, once for all of them.

mod naming;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use async_trait::async_trait;

pub(super) use naming::{ATTACHMENT_NAME, CONTAINERD_NAME, Labels, REF_NAME};
pub use naming::{NameBelow, NameBelowError};

use super::{
    Attachments, Blobs, BoxStream, Capabilities, Error, Kind, Lister, Listing, LocalFile, Names,
    Result, Tags,
};
use crate::image::{
    Descriptor, Digest, MAX_MANIFEST_BYTES, Manifest, Reference, Repository, is_attachment_tag,
    listed_referrer,
};

/// More images than this are not listed of one medium: its list is held in memory.
pub(super) const MAX_IMAGES: usize = 100_000;

/// An image as a medium lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedImage {
    /// Its name; `None` if the medium says too little, and nobody else has said more.
    pub name: Option<Reference>,
    /// What the medium calls it, if it calls it anything.
    pub label: Option<String>,
    /// What else the medium calls it.
    pub other_label: Option<String>,
    /// What it is.
    pub manifest: Descriptor,
    /// Whether it is a signature or something else that belongs to another one.
    pub is_attachment: bool,
}

/// Where the blobs of a collection are.
#[async_trait]
pub(super) trait BlobSource: Send + Sync + 'static {
    /// The size of a blob in bytes, if it is there.
    fn size(&self, digest: &Digest) -> Option<u64>;

    /// Reads a part of a blob that is there in its size.
    async fn read(&self, blob: &Descriptor, range: Range<u64>) -> Result<BoxStream>;

    /// The file that holds a blob, verified, where blobs are files.
    async fn file(&self, blob: &Descriptor) -> Result<Option<LocalFile>> {
        let _ = blob;
        Ok(None)
    }
}

/// What a medium says of an image.
pub(super) struct Listed {
    pub(super) manifest: Descriptor,
    pub(super) labels: Labels,
}

/// A collection that can be read.
pub struct Collection {
    side: String,
    images: Vec<ListedImage>,
    names: BTreeMap<Reference, Descriptor>,
    /// Media types of manifests that do not say theirs.
    media_types: HashMap<Digest, String>,
    /// Manifests that are in no blob, since they have been made here.
    made: HashMap<Digest, Manifest>,
    /// The platforms that are here of indexes that lack some of their children.
    sparse: HashMap<Digest, String>,
    blobs: Arc<dyn BlobSource>,
    referrers: BTreeMap<Digest, Vec<Descriptor>>,
    warnings: Vec<String>,
}

/// What a collection is made of.
pub(super) struct Parts {
    /// What errors call it.
    pub(super) side: String,
    pub(super) listed: Vec<Listed>,
    /// Manifests that are in no blob.
    pub(super) made: Vec<Manifest>,
    pub(super) blobs: Arc<dyn BlobSource>,
    pub(super) warnings: Vec<String>,
    /// Where images are that are not named in full.
    pub(super) below: Option<NameBelow>,
    /// The one image that is wanted, as the medium calls it.
    pub(super) only: Option<String>,
}

impl Collection {
    /// Names the images of a medium, and finds out what is attached to others.
    pub(super) async fn new(parts: Parts) -> Result<Self> {
        let Parts { side, listed, made, blobs, warnings, below, only } = parts;
        let mut collection = Self {
            side,
            images: Vec::new(),
            names: BTreeMap::new(),
            media_types: HashMap::new(),
            made: made.into_iter().map(|manifest| (manifest.digest(), manifest)).collect(),
            sparse: HashMap::new(),
            blobs,
            referrers: BTreeMap::new(),
            warnings,
        };
        if listed.len() > MAX_IMAGES {
            let reason = format!("it lists more than {MAX_IMAGES} images");
            return Err(collection.error("listing images", Kind::Unfit(reason)));
        }
        let ambiguous = ambiguous_names(&listed);
        let all: Vec<String> = listed.iter().filter_map(|one| one.labels.shown()).collect();
        for Listed { manifest, labels } in listed {
            if only.as_deref().is_some_and(|only| !labels.is(only)) {
                continue;
            }
            let digest = manifest.digest;
            collection.media_types.insert(digest, manifest.media_type.clone());
            let name = labels.name(below.as_ref(), digest);
            let name = match labels.full.as_ref().filter(|full| ambiguous.contains(*full)) {
                Some(_) => name.map(|name| labels.with_tag(name)),
                None => name,
            };
            let mut is_attachment =
                name.as_ref().and_then(Reference::tag).is_some_and(is_attachment_tag);
            if labels.shown().is_none() {
                // What has no name and a subject belongs to that.
                let read = collection.by_digest(digest).await;
                is_attachment |= read.is_ok_and(|manifest| manifest.subject().is_some());
            }
            let name = name.filter(|name| !is_attachment || name.tag().is_some());
            if let Some(name) = &name {
                let known = collection.names.insert(name.clone(), manifest.clone());
                if known.as_ref().is_some_and(|known| known.digest != digest) {
                    let reason = format!(
                        "it has more than one image called {name}; name one as it is named there"
                    );
                    return Err(collection.error("listing images", Kind::Unfit(reason)));
                }
                if known.is_some() {
                    continue;
                }
            }
            let label = labels.shown();
            let other_label = labels.short.filter(|short| Some(short) != label.as_ref());
            collection.images.push(ListedImage {
                name,
                label,
                other_label,
                manifest,
                is_attachment,
            });
        }
        if let (Some(only), true) = (&only, collection.images.is_empty()) {
            let mut has: Vec<&str> = all.iter().map(String::as_str).take(10).collect();
            has.sort_unstable();
            let has = match has.as_slice() {
                [] => "it names none of its images".to_owned(),
                has => format!("it has {}", has.join(", ")),
            };
            let kind = Kind::NotFound(has);
            return Err(collection.error(&format!("looking up {only}"), kind));
        }
        collection.look_into().await;
        Ok(collection)
    }

    /// Finds the indexes of which some children are not there, on purpose, and what refers to what.
    async fn look_into(&mut self) {
        let mut open: Vec<Digest> = self.images.iter().map(|image| image.manifest.digest).collect();
        let listed: HashSet<Digest> = open.iter().copied().collect();
        let mut seen = HashSet::new();
        while let Some(digest) = open.pop() {
            if !seen.insert(digest) || seen.len() > MAX_IMAGES {
                continue;
            }
            // What cannot be read is found when it is wanted.
            let Ok(manifest) = self.by_digest(digest).await else { continue };
            if let Some(subject) = manifest.subject()
                && listed.contains(&digest)
            {
                let referrers = self.referrers.entry(subject.digest).or_default();
                referrers.push(listed_referrer(&manifest));
            }
            let (here, missing): (Vec<&Descriptor>, Vec<&Descriptor>) =
                manifest.children().iter().partition(|child| self.has(&child.digest));
            for child in manifest.children().iter().filter(|child| !child.media_type.is_empty()) {
                self.media_types.entry(child.digest).or_insert_with(|| child.media_type.clone());
            }
            open.extend(here.iter().map(|child| child.digest));
            let platforms: Vec<String> = here
                .iter()
                .filter_map(|child| child.platform.as_ref())
                .filter(|platform| !platform.is_unknown())
                .map(ToString::to_string)
                .collect();
            if !missing.is_empty() && !platforms.is_empty() {
                self.sparse.insert(digest, platforms.join(","));
            }
        }
        for referrers in self.referrers.values_mut() {
            referrers.sort_by_key(|referrer| referrer.digest);
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        self.made.contains_key(digest) || self.blobs.size(digest).is_some()
    }

    fn error(&self, doing: &str, kind: impl Into<Kind>) -> Error {
        Error::new(&self.side, doing, kind)
    }

    async fn by_digest(&self, digest: Digest) -> Result<Manifest> {
        if let Some(made) = self.made.get(&digest) {
            return Ok(made.clone());
        }
        let doing = format!("reading {digest}");
        let Some(size) = self.blobs.size(&digest) else {
            return Err(self.error(&doing, Kind::NotFound(String::new())));
        };
        if size > MAX_MANIFEST_BYTES as u64 {
            return Err(self.error(&doing, crate::image::ManifestError::TooLarge));
        }
        let blob = Descriptor::new("", digest, size);
        let bytes = read_whole(self.blobs.read(&blob, 0..size).await?, size).await?;
        let found = Digest::of(digest.algorithm(), &bytes);
        if found != digest {
            return Err(self.error(&doing, Kind::Digest { expected: digest, found }));
        }
        let media_type = self.media_types.get(&digest).map(String::as_str);
        let media_type = media_type.filter(|text| !text.is_empty());
        Manifest::parse_as(digest.algorithm(), bytes.into(), media_type)
            .map_err(|e| self.error(&doing, e))
    }

    fn descriptor(&self, reference: &Reference) -> Result<Digest> {
        if let Some(digest) = reference.digest() {
            return Ok(digest);
        }
        if let Some(found) = self.names.get(reference) {
            return Ok(found.digest);
        }
        let names = self.names.keys().take(4).map(ToString::to_string).collect::<Vec<_>>();
        let unnamed = self.images.iter().filter(|image| image.name.is_none());
        let unnamed: Vec<&str> =
            unnamed.filter_map(|image| image.label.as_deref()).take(4).collect();
        let detail = match (names.as_slice(), unnamed.as_slice()) {
            ([], []) => String::new(),
            ([], labels) => format!(
                "it has {} only; --name REPOSITORY says in which repository",
                labels.join(", ")
            ),
            (names, _) => format!("it has {}", names.join(", ")),
        };
        Err(self.error(&format!("looking up {reference}"), Kind::NotFound(detail)))
    }

    /// Fails unless a blob is there in its size.
    fn there(&self, blob: &Descriptor) -> Result<()> {
        let kind = match self.blobs.size(&blob.digest) {
            Some(size) if size == blob.size => return Ok(()),
            Some(found) => Kind::Size { expected: blob.size, found },
            None => Kind::NotFound(String::new()),
        };
        Err(self.error(&format!("reading blob {}", blob.digest), kind))
    }
}

/// Full names that several images have. umoci, for one, copies the annotations of an image to the one that it makes of
/// it, and only changes the short name.
fn ambiguous_names(listed: &[Listed]) -> HashSet<String> {
    let mut seen: HashMap<&str, Digest> = HashMap::new();
    let mut ambiguous = HashSet::new();
    for one in listed {
        let Some(full) = one.labels.full.as_deref() else { continue };
        let digest = one.manifest.digest;
        if *seen.entry(full).or_insert(digest) != digest {
            ambiguous.insert(full.to_owned());
        }
    }
    ambiguous
}

/// Reads a stream of at most `size` bytes to its end.
pub(super) async fn read_whole(mut stream: BoxStream, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(MAX_MANIFEST_BYTES));
    while let Some(piece) = stream.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[async_trait]
impl Lister for Collection {
    async fn images(&self) -> Result<Listing> {
        Ok(Listing { images: self.images.clone(), warnings: self.warnings.clone() })
    }
}

#[async_trait]
impl Names for Collection {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DIRECTORY
    }

    fn side(&self, _: &Repository) -> String {
        self.side.clone()
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        self.by_digest(self.descriptor(reference)?).await
    }

    fn sparse(&self, digest: &Digest) -> Option<String> {
        self.sparse.get(digest).cloned()
    }
}

#[async_trait]
impl Attachments for Collection {
    async fn referrers(&self, _: &Repository, subject: Digest) -> Result<Option<Vec<Descriptor>>> {
        Ok(Some(self.referrers.get(&subject).cloned().unwrap_or_default()))
    }

    async fn tags(&self, repository: &Repository) -> Result<Tags> {
        let names = self.names.keys().filter(|name| name.repository() == repository);
        let names = names.filter_map(|name| name.tag().map(str::to_owned)).collect();
        Ok(Tags { names, complete: true })
    }
}

#[async_trait]
impl Blobs for Collection {
    async fn check(&self, _: &Repository, blob: &Descriptor) -> Result<()> {
        self.there(blob)
    }

    async fn file(&self, _: &Repository, blob: &Descriptor) -> Result<Option<LocalFile>> {
        self.there(blob)?;
        self.blobs.file(blob).await
    }

    async fn read(
        &self,
        _: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        self.there(blob)?;
        self.blobs.read(blob, range.start.min(blob.size)..range.end.min(blob.size)).await
    }
}
