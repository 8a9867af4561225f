//! What the images of a [`Source`] consist of, and whether all of it is there and right.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::{StreamExt, stream};

use super::{Result, Source};
use crate::{
    backend::{
        Backend, Error, Kind, ListedImage, Tally,
        images_dir::{Problem, ProblemKind, Verified},
    },
    image::{Descriptor, Digest, Manifest, Platform, Repository, View},
    util::drop_repeats,
};

/// Blobs that are hashed at the same time.
const AT_ONCE: usize = 4;

/// Indexes nested deeper than this are not looked into.
const MAX_DEPTH: usize = 8;

/// The largest configuration that is read to find out a platform, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// An image of a place, with what it consists of.
#[derive(Clone, Debug)]
pub struct PlaceImage {
    /// The image, as it is listed.
    pub image: ListedImage,
    /// What it is for.
    pub platforms: Vec<String>,
    /// Its manifests and blobs with their sizes in bytes, each once.
    pub parts: BTreeMap<Digest, u64>,
    /// What of it is not there, with the reason.
    pub missing: Vec<(Digest, Error)>,
    blobs: BTreeMap<Digest, Descriptor>,
}

impl PlaceImage {
    /// What it is called: its name, or what the place calls it, or its digest.
    pub fn shown(&self) -> String {
        match (&self.image.name, &self.image.label) {
            (Some(name), _) => name.to_string(),
            (None, Some(label)) => label.clone(),
            (None, None) => self.image.manifest.digest.to_string(),
        }
    }

    /// The size of all of it, in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.values().sum()
    }
}

/// Lists the images of a place whose names contain `pattern`; signatures and the like only with `attachments`.
pub async fn list_place(
    source: &Source,
    pattern: Option<&str>,
    attachments: bool,
) -> Result<Vec<PlaceImage>> {
    let backend = source.backend();
    let mut found = Vec::new();
    for image in source.images().await?.iter().filter(|image| attachments || !image.is_attachment) {
        let mut one = PlaceImage {
            image: image.clone(),
            platforms: Vec::new(),
            parts: BTreeMap::new(),
            missing: Vec::new(),
            blobs: BTreeMap::new(),
        };
        if pattern.is_some_and(|pattern| !one.shown().contains(pattern)) {
            continue;
        }
        let root = image.manifest.clone();
        walk(&backend, &repository_of(image)?, &root, MAX_DEPTH, &mut one).await;
        drop_repeats(&mut one.platforms);
        found.push(one);
    }
    Ok(found)
}

/// Where to ask for the parts of an image. Those without a name are in no repository, which does not matter to
/// the place.
fn repository_of(image: &ListedImage) -> Result<Repository> {
    match &image.name {
        Some(name) => Ok(name.repository().clone()),
        None => Ok(Repository::new("localhost", "image")?),
    }
}

/// Takes up a manifest and what it names.
async fn walk(
    backend: &Arc<dyn Backend>,
    repository: &Repository,
    root: &Descriptor,
    depth: usize,
    found: &mut PlaceImage,
) {
    let digest = root.digest;
    if found.parts.contains_key(&digest) || depth == 0 {
        return;
    }
    let manifest: Manifest = match backend.manifest(&repository.pinned(digest)).await {
        Ok(manifest) => manifest,
        Err(error) => return found.missing.push((digest, error)),
    };
    found.parts.insert(digest, manifest.bytes().len() as u64);
    for blob in manifest.blobs() {
        found.parts.insert(blob.digest, blob.size);
        found.blobs.insert(blob.digest, blob.clone());
        if let Err(error) = backend.check(repository, blob).await {
            found.missing.push((blob.digest, error));
        }
    }
    match manifest.view() {
        View::Index { children, .. } => {
            let is_sparse = backend.sparse(&digest).is_some();
            for child in children {
                if is_sparse && backend.manifest(&repository.pinned(child.digest)).await.is_err() {
                    continue;
                }
                let named = child.platform.as_ref().filter(|platform| !platform.is_unknown());
                found.platforms.extend(named.map(ToString::to_string));
                Box::pin(walk(backend, repository, child, depth - 1, found)).await;
            }
        }
        View::Image { config, .. } => {
            if depth == MAX_DEPTH && config.is_image_config() && config.size <= MAX_CONFIG_BYTES {
                let platform = config_platform(backend, repository, config).await;
                found.platforms.extend(platform.map(|platform| platform.to_string()));
            }
        }
    }
}

async fn config_platform(
    backend: &Arc<dyn Backend>,
    repository: &Repository,
    config: &Descriptor,
) -> Option<Platform> {
    let mut stream = backend.read(repository, config, 0..config.size).await.ok()?;
    let mut text = Vec::new();
    while let Some(piece) = stream.next().await.ok()? {
        text.extend_from_slice(&piece);
    }
    Platform::of_config(&text)
}

/// Checks all images of a place: names, manifests and sizes, and the digest of every blob. `hashed` is called
/// with the number of bytes that have been hashed since it was called the last time.
pub async fn verify_place(source: &Source, hashed: &(dyn Fn(u64) + Sync)) -> Result<Verified> {
    let backend = source.backend();
    let images = list_place(source, None, true).await?;
    let mut verified = Verified { images: images.len(), ..Verified::default() };
    let mut problems: BTreeMap<Digest, (Error, BTreeSet<String>)> = BTreeMap::new();
    let mut blobs: BTreeMap<Digest, (Descriptor, Repository, BTreeSet<String>)> = BTreeMap::new();
    for image in &images {
        for (digest, error) in &image.missing {
            let known = problems.entry(*digest);
            known.or_insert_with(|| (error.clone(), BTreeSet::new())).1.insert(image.shown());
        }
        let repository = repository_of(&image.image)?;
        for (digest, blob) in &image.blobs {
            let known = blobs.entry(*digest);
            let new = || (blob.clone(), repository.clone(), BTreeSet::new());
            known.or_insert_with(new).2.insert(image.shown());
        }
    }
    blobs.retain(|digest, _| !problems.contains_key(digest));
    let checks = blobs.into_values().map(|(blob, repository, users)| {
        let backend = &backend;
        async move { (hash(backend, &repository, &blob, hashed).await, blob, users) }
    });
    let mut checked = stream::iter(checks).buffer_unordered(AT_ONCE);
    while let Some((result, blob, users)) = checked.next().await {
        verified.checked_blobs += 1;
        verified.checked_bytes += blob.size;
        match result {
            Ok(bytes) => verified.hashed_bytes += bytes,
            Err(error) => {
                problems.insert(blob.digest, (error, users));
            }
        }
    }
    drop(checked);
    verified.problems =
        problems.into_iter().map(|(digest, found)| problem(digest, found)).collect();
    Ok(verified)
}

/// Reads a blob to its end, and compares its digest.
async fn hash(
    backend: &Arc<dyn Backend>,
    repository: &Repository,
    blob: &Descriptor,
    hashed: &(dyn Fn(u64) + Sync),
) -> std::result::Result<u64, Error> {
    let mut stream = backend.read(repository, blob, 0..blob.size).await?;
    let doing = format!("reading blob {}", blob.digest);
    let failed = |kind: Kind| Error::new(backend.side(repository), &doing, kind);
    let mut tally = Tally::of(blob);
    while let Some(piece) = stream.next().await? {
        let length = piece.len() as u64;
        tally.count(length).map_err(|kind| failed(*kind))?;
        tally = tokio::task::spawn_blocking(move || {
            tally.hash(&piece);
            tally
        })
        .await
        .map_err(|e| failed(std::io::Error::other(e).into()))?;
        hashed(length);
    }
    tally.check().map_err(|kind| failed(*kind))?;
    Ok(tally.bytes())
}

fn problem(digest: Digest, (error, users): (Error, BTreeSet<String>)) -> Problem {
    let kind = match error.kind() {
        Kind::Damaged(inner) => inner,
        kind => kind,
    };
    let (kind, expected, found) = match kind {
        Kind::NotFound(_) => (ProblemKind::Missing, digest.to_string(), "nothing".to_owned()),
        Kind::Size { expected, found } => {
            (ProblemKind::Truncated, format!("{expected} bytes"), format!("{found} bytes"))
        }
        Kind::Digest { expected, found } => {
            (ProblemKind::Corrupt, expected.to_string(), found.to_string())
        }
        _ => (ProblemKind::Unreadable, digest.to_string(), error.to_string()),
    };
    Problem {
        path: digest.to_string(),
        kind,
        expected,
        found,
        images: users.into_iter().collect(),
        subject: None,
        repaired: false,
    }
}
