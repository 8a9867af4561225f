//! What is attached to an image for those who read it where it is: profiles, and indexes of its layers.
//!
//! Both are referrers (OCI 1.1) of the manifest of one platform, found in the images_dir, into which a pull has
//! brought them with the image, or in the registry. What they say is nothing that the image's digest covers:
//! a profile is a hint that changes nothing of what is read, and an index is used only for images whose
//! repository is among [`Sources::trusted_indexes`], and only for the image that it is attached to.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use lru::LruCache;
use tokio::{sync::OnceCell, time::timeout};

use super::{SIDE, Sources, Store, documents::collect};
use crate::{
    backend::{Backend, Blobs, Error, Kind, Result},
    image::{Descriptor, Digest, Manifest, Reference, Repository, referrers_tag},
    layer::{
        LayerIndex, Limits, Origin, PROFILE_ARTIFACT_TYPE, PROFILE_MEDIA_TYPE, Profile, StoredHead,
    },
    util::{Reservation, locked},
};

/// What an artifact with indexes is.
pub const INDEX_ARTIFACT_TYPE: &str = "application/vnd.imgfs.index.v1";

/// The type of the blob of an index. Its version stands in it.
pub const INDEX_MEDIA_TYPE: &str = "application/vnd.imgfs.layer-index";

/// The annotation of the blob of an index that says which layer it is of.
pub const INDEX_LAYER: &str = "vnd.imgfs.layer.digest";

/// The annotation that says when an artifact was made.
const CREATED: &str = "org.opencontainers.image.created";

/// Artifacts of ours that are looked at in a registry, and artifacts of any kind in a directory.
const MAX_ARTIFACTS: usize = 16;
const MAX_LOCAL: usize = 256;

/// Indexes of one layer that are tried.
const MAX_TRIED: usize = 2;

/// The largest index that is taken, in bytes.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// An index that comes with fewer bytes in a second is given up.
const SLOWEST_PER_SECOND: u64 = 64 << 10;

/// Images of which is remembered what is attached to them.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// What is attached to an image, the newest first.
#[derive(Debug, Default)]
pub(super) struct Attached {
    pub profiles: Vec<Descriptor>,
    pub indexes: HashMap<Digest, Vec<Descriptor>>,
}

/// Where is looked for what is attached to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Places {
    /// In the images_dir.
    Directory,
    /// In the registry, too, if there is nothing in the images_dir.
    Nearest,
    /// In both.
    All,
}

/// What has been found so far. Each image is asked for once.
pub(super) struct Found(Mutex<LruCache<Digest, Arc<OnceCell<Arc<Attached>>>>>);

impl Default for Found {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED)))
    }
}

/// Why an index that is attached to an image is of no use.
#[derive(Debug, thiserror::Error)]
#[error("the index that is attached to the image is not used: {0}")]
pub(super) struct UnfitIndex(String);

impl Store {
    /// What is attached to the manifest `name`, which is one by digest. Nothing where that cannot be found out.
    pub(super) async fn attached(&self, name: &Reference) -> Arc<Attached> {
        let Some(digest) = name.digest() else { return Arc::default() };
        let cell = locked(&self.attached.0).get_or_insert(digest, Arc::default).clone();
        let find = async {
            match self.find_attached(name, Places::Nearest).await {
                Ok(found) => found.into(),
                Err(error) => {
                    tracing::warn!(image = %name, "what is attached to {name} is not known: {error}");
                    self.note(&error);
                    Arc::default()
                }
            }
        };
        cell.get_or_init(|| find).await.clone()
    }

    /// The same, found out now.
    pub(super) async fn find_attached(&self, name: &Reference, places: Places) -> Result<Attached> {
        let Sources { patience, .. } = self.sources;
        // What cannot be read there may be in the registry.
        let mut artifacts = artifacts_of(self.sources.dir(), name).await.unwrap_or_default();
        let asks = match places {
            Places::Directory => false,
            Places::Nearest => artifacts.is_empty(),
            Places::All => true,
        };
        if let Some(remote) = self.sources.remote().filter(|_| asks) {
            let found = timeout(patience, artifacts_of(&**remote, name)).await;
            let stalled = |_| Error::new(SIDE, format!("reading {name}"), Kind::Stalled(patience));
            artifacts.extend(found.map_err(stalled)??);
        }
        // Texts of times of the same form compare as the times do.
        let created = |manifest: &Manifest| manifest.annotations().get(CREATED).cloned();
        artifacts.sort_by_key(|manifest| std::cmp::Reverse(created(manifest)));
        let mut attached = Attached::default();
        for blob in artifacts.iter().flat_map(|manifest| manifest.blobs().skip(1)) {
            match blob.media_type.as_str() {
                PROFILE_MEDIA_TYPE if !attached.profiles.contains(blob) => {
                    attached.profiles.push(blob.clone());
                }
                INDEX_MEDIA_TYPE => {
                    let layer = blob.annotations.get(INDEX_LAYER).and_then(|d| d.parse().ok());
                    let Some(layer) = layer else { continue };
                    let known = attached.indexes.entry(layer).or_default();
                    if !known.contains(blob) && known.len() < MAX_TRIED {
                        known.push(blob.clone());
                    }
                }
                _ => {}
            }
        }
        Ok(attached)
    }

    /// The newest profile that is attached to the manifest `name` and of use.
    pub(super) async fn attached_profile(&self, name: &Reference) -> Option<Profile> {
        let attached = self.attached(name).await;
        for blob in attached.profiles.iter().take(MAX_TRIED) {
            match self.read_profile(name, blob).await {
                Ok(profile) => return Some(profile),
                Err(error) => self.note(&error),
            }
        }
        None
    }

    pub(super) async fn read_profile(
        &self,
        name: &Reference,
        blob: &Descriptor,
    ) -> Result<Profile> {
        let doing = || format!("reading a profile that is attached to {name}");
        let unfit = |reason: String| Error::new(SIDE, doing(), Kind::Unfit(reason));
        if blob.size > Profile::MAX_BYTES {
            return Err(unfit(format!("it has {} bytes", blob.size)));
        }
        let bytes = self.document(name.repository(), blob).await?;
        let profile = Profile::parse(&bytes).map_err(|e| unfit(e.to_string()))?;
        match name.digest() == Some(profile.image()) {
            true => Ok(profile),
            false => Err(unfit(format!("it is that of {}", profile.image()))),
        }
    }

    /// Fetches an index that is attached to an image, and the memory that its bytes take.
    pub(super) async fn index_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        layer: &Descriptor,
    ) -> Result<(Bytes, Reservation)> {
        let doing = || format!("reading an index of layer {}", layer.digest);
        let failed = |kind: Kind| Error::new(SIDE, doing(), kind);
        // A larger one spares nobody anything.
        let limit = MAX_INDEX_BYTES.min(layer.size.saturating_add(1 << 20));
        if blob.size > limit {
            let reason = format!("it has {} bytes; at most {limit} are taken", blob.size);
            return Err(failed(Kind::Unfit(reason)));
        }
        let memory = self.sources.memory.reserve(blob.size).map_err(|e| failed(e.into()))?;
        // A slow line is no reason to pass over the whole layer.
        let patience = self.sources.patience + Duration::from_secs(blob.size / SLOWEST_PER_SECOND);
        let local = read_whole(self.sources.dir(), repository, blob).await;
        let bytes = match (local, self.sources.remote()) {
            (Ok(bytes), _) => bytes,
            (Err(_), Some(remote)) => {
                let read = timeout(patience, read_whole(&**remote, repository, blob)).await;
                read.map_err(|_| failed(Kind::Stalled(patience)))??
            }
            (Err(_), None) => return Err(failed(Kind::Offline)),
        };
        Ok((bytes, memory))
    }
}

/// The manifests of artifacts of ours that are attached to `name` at `place`.
pub(super) async fn artifacts_of(place: &dyn Backend, name: &Reference) -> Result<Vec<Manifest>> {
    let (repository, Some(subject)) = (name.repository(), name.digest()) else {
        return Ok(Vec::new());
    };
    let listed = match place.referrers(repository, subject).await? {
        Some(listed) => listed,
        None => match place.manifest(&repository.tagged(&referrers_tag(&subject))).await {
            Ok(list) => list.children().to_vec(),
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error),
        },
    };
    // A directory does not say what they are.
    let is_remote = place.capabilities().has_round_trips;
    let may_be_ours = |referrer: &&Descriptor| match referrer.artifact_type.as_deref() {
        Some(kind) => [PROFILE_ARTIFACT_TYPE, INDEX_ARTIFACT_TYPE].contains(&kind),
        None => !is_remote,
    };
    let most = if is_remote { MAX_ARTIFACTS } else { MAX_LOCAL };
    let mut found = Vec::new();
    let created = |referrer: &Descriptor| referrer.annotations.get(CREATED).cloned();
    let ours = listed.iter().filter(may_be_ours);
    let (mut dated, others): (Vec<_>, Vec<_>) = ours.partition(|one| created(one).is_some());
    dated.sort_by_key(|one| std::cmp::Reverse(created(one)));
    dated.truncate(most);
    // Of those that the list says nothing of: registries list what came last first, or last.
    let half = (most - dated.len()) / 2;
    let middle = others.len().saturating_sub(half).max(half);
    let others = others.iter().take(half).chain(others.iter().skip(middle));
    for referrer in dated.iter().chain(others) {
        let manifest = match place.manifest(&repository.pinned(referrer.digest)).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        // A list may say anything.
        if manifest.subject().is_some_and(|found| found.digest == subject) {
            found.push(manifest);
        }
    }
    Ok(found)
}

/// All of a blob, which has the right digest.
async fn read_whole(
    place: &(impl Blobs + ?Sized),
    repository: &Repository,
    blob: &Descriptor,
) -> Result<Bytes> {
    collect(&mut place.read(repository, blob, 0..blob.size).await?, blob).await
}

/// Memory that it takes to look at the stored form of an index, besides its bytes.
pub(super) fn checking_bytes(stored: &[u8]) -> std::result::Result<u64, UnfitIndex> {
    let head = StoredHead::parse(stored).map_err(|e| UnfitIndex(e.to_string()))?;
    Ok(head.reading_bytes())
}

/// The index in `stored`, if it is one of `layer` that a pass can have made, and nothing in it contradicts what
/// the image says of the layer. Whether it is true nobody knows.
pub(super) fn checked(
    stored: &[u8],
    layer: &Descriptor,
    diff_id: Option<Digest>,
) -> std::result::Result<LayerIndex, UnfitIndex> {
    let unfit = |reason: String| Err(UnfitIndex(reason));
    let index = LayerIndex::from_bytes(stored).map_err(|e| UnfitIndex(e.to_string()))?;
    if (index.blob(), index.blob_bytes()) != (layer.digest, layer.size) {
        return unfit(format!("it is of layer {} with {} bytes", index.blob(), index.blob_bytes()));
    }
    if index.origin() != Origin::Pass {
        return unfit("it has not been made in a pass".into());
    }
    // What is wrong with a layer, this machine finds out by itself.
    if index.damage().is_some() {
        return unfit("it says that the layer is damaged".into());
    }
    let Some(found) = index.diff_id() else { return unfit("it has no diff ID".into()) };
    if let Some(expected) = diff_id.filter(|expected| *expected != found) {
        return unfit(format!(
            "it says that the decompressed layer has the digest {found}; the image's configuration says {expected}"
        ));
    }
    let limits = Limits::default();
    let by_ratio = layer.size.saturating_mul(limits.max_ratio).max(Limits::RATIO_FREE_BYTES);
    if index.stream_bytes() > by_ratio.min(limits.max_stream_bytes) {
        return unfit(format!("it says that the layer has {} bytes", index.stream_bytes()));
    }
    Ok(index)
}
