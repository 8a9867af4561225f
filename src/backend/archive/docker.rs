//! What `docker save` writes: `manifest.json`, configurations and layers, and no manifest that has a digest.
//!
//! The manifest of an image is made here, in the form of Docker's schema 2: from the same archive always the same
//! bytes, with the layers as they are stored. Of a layer that is not compressed the digest is its diff ID, which
//! whoever reads it checks. One that is compressed is read once, to find out its digest, and to compare what is in
//! it with the diff ID in the configuration. Of an image with one that is damaged, or is
//! another one, the manifest cannot be read; it is listed all the same, and the other images of the archive can be had.

use std::{collections::HashMap, ops::Range, sync::Arc};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;

use super::{MANIFEST, MAX_DOCUMENT, Reader, content::Archive};
use crate::{
    backend::{
        BoxStream, Error, Kind, Result,
        collection::{BlobSource, Labels, Listed, Parts},
    },
    image::{Descriptor, Digest, ImageConfig, Manifest, MediaType},
    layer::{Compression, Hashing, Indexer, Limits, Member, Note, NoteKind, Options},
};

const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Whether a text can be a `manifest.json`.
#[cfg(feature = "fuzzing")]
pub(super) fn is_saved(text: &[u8]) -> bool {
    serde_json::from_slice::<Vec<Saved>>(text).is_ok()
}

/// Reads `manifest.json`, and makes a manifest for each image that it lists.
pub(super) async fn parts(reader: &Reader) -> Result<Parts> {
    let text = reader.read(MANIFEST, MAX_DOCUMENT).await?;
    let saved: Vec<Saved> = serde_json::from_slice(&text).map_err(|e| {
        reader.error("reading manifest.json", Kind::Unfit(format!("it is malformed: {e}")))
    })?;
    let (blobs, layers) = (HashMap::new(), HashMap::new());
    let mut found = Found { reader, blobs, layers, bad: HashMap::new() };
    let (mut listed, mut made) = (Vec::new(), Vec::new());
    for image in saved {
        let manifest = found.manifest(&image).await?;
        let digest = manifest.digest();
        let descriptor =
            Descriptor::new(manifest.media_type(), digest, manifest.bytes().len() as u64);
        let tags = image.repo_tags.unwrap_or_default();
        let mut names: Vec<Option<String>> = tags.into_iter().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        let labels = names.into_iter().map(|full| Labels { full, short: None });
        listed.extend(labels.map(|labels| Listed { manifest: descriptor.clone(), labels }));
        // One with a wrong layer is listed, and whoever reads it is told.
        if !found.bad.contains_key(&digest) {
            made.push(manifest);
        }
    }
    let blobs = Blobs { archive: reader.archive.clone(), places: found.blobs, bad: found.bad };
    Ok(Parts {
        side: reader.side.clone(),
        listed,
        made,
        blobs: Arc::new(blobs),
        warnings: Vec::new(),
        below: None,
        only: None,
    })
}

/// Where a blob lies in the archive.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
}

/// What has been found of the archive's blobs.
struct Found<'a> {
    reader: &'a Reader,
    blobs: HashMap<Digest, Place>,
    /// Layers that have been read, by where they lie and by their diff IDs.
    layers: HashMap<(u64, Digest), Layer>,
    /// Manifests of images with layers that are not what they should be, and why.
    bad: HashMap<Digest, Error>,
}

/// A layer that has been read.
#[derive(Clone)]
struct Layer {
    descriptor: Descriptor,
    /// Why it is not what it should be.
    wrong: Option<Error>,
}

impl Found<'_> {
    fn unfit(&self, what: &str, reason: String) -> Error {
        self.reader.error(format_args!("reading {what}"), Kind::Unfit(reason))
    }

    async fn manifest(&mut self, image: &Saved) -> Result<Manifest> {
        let text = self.reader.read(&image.config, MAX_DOCUMENT).await?;
        let config = ImageConfig::parse(&text)
            .map_err(|e| self.unfit(&image.config, format!("it is malformed: {e}")))?;
        let member = self.member(&image.config)?;
        let config_digest = Digest::sha256(&text);
        self.blobs.insert(config_digest, Place { offset: member.data_offset, size: member.size });
        let layers = image.layers.as_deref().unwrap_or_default();
        if layers.len() != config.diff_ids.len() {
            let reason = format!(
                "it lists {} layers, and the configuration {} has {}",
                layers.len(),
                image.config,
                config.diff_ids.len()
            );
            return Err(self.unfit(MANIFEST, reason));
        }
        let (mut described, mut first_wrong) = (Vec::with_capacity(layers.len()), None);
        for (name, diff_id) in layers.iter().zip(config.diff_ids) {
            let Layer { descriptor: layer, wrong } = self.layer(name, diff_id).await?;
            first_wrong = first_wrong.or(wrong);
            described.push(json!({
                "mediaType": layer.media_type, "size": layer.size, "digest": layer.digest.to_string(),
            }));
        }
        let document = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::DockerManifest.as_str(),
            "config": {"mediaType": CONFIG, "size": text.len(), "digest": config_digest.to_string()},
            "layers": described,
        });
        let manifest = Manifest::parse(document.to_string().into_bytes().into(), None)
            .map_err(|e| self.reader.error("reading manifest.json", e))?;
        if let Some(error) = first_wrong {
            let (digest, size) = (manifest.digest(), manifest.bytes().len() as u64);
            self.blobs.insert(digest, Place { offset: 0, size });
            self.bad.insert(digest, error);
        }
        Ok(manifest)
    }

    fn member(&self, name: &str) -> Result<Member> {
        let found = self.reader.members.find(name).cloned();
        found.map_err(|reason| self.unfit(name, reason))
    }

    async fn layer(&mut self, name: &str, diff_id: Digest) -> Result<Layer> {
        let member = self.member(name)?;
        let key = (member.data_offset, diff_id);
        if let Some(known) = self.layers.get(&key) {
            return Ok(known.clone());
        }
        let magic_bytes = member.size.min(Compression::MAGIC_BYTES as u64);
        let start = member.data_offset;
        let magic = self.reader.archive.read(start..start + magic_bytes)?;
        let magic = crate::backend::collection::read_whole(magic, magic_bytes).await?;
        let compression =
            Compression::detect(&magic).map_err(|e| self.unfit(name, e.to_string()))?;
        let (media_type, (digest, wrong)) = match compression {
            Compression::Plain => (LAYER.to_owned(), (diff_id, None)),
            Compression::Gzip => {
                (format!("{LAYER}.gzip"), self.pass(name, &member, diff_id).await?)
            }
            Compression::Zstd => {
                (format!("{LAYER}.zstd"), self.pass(name, &member, diff_id).await?)
            }
        };
        self.blobs.insert(digest, Place { offset: start, size: member.size });
        let descriptor = Descriptor::new(&media_type, digest, member.size);
        let layer = Layer { descriptor, wrong };
        self.layers.insert(key, layer.clone());
        Ok(layer)
    }

    /// Reads a compressed layer to its end: gives its digest, and what is wrong with it.
    async fn pass(
        &self,
        name: &str,
        member: &Member,
        diff_id: Digest,
    ) -> Result<(Digest, Option<Error>)> {
        let start = member.data_offset;
        let mut stream = self.reader.archive.read(start..start + member.size)?;
        // Of its files nothing has to be known.
        let limits = Limits { max_entries: 1, ..Limits::default() };
        let options = Options {
            limits,
            hashing: Hashing::OwnThread,
            diff_id: diff_id.algorithm(),
            ..Options::default()
        };
        let mut indexer = Indexer::new(options);
        while let Some(piece) = stream.next().await? {
            let pushed = tokio::task::spawn_blocking(move || {
                let pushed = indexer.push(&piece);
                pushed.map(|()| indexer)
            });
            let pushed = pushed.await.map_err(|e| self.unfit(name, e.to_string()))?;
            indexer = pushed.map_err(|e| self.unfit(name, e.to_string()))?;
        }
        let index = indexer.finish_as_found().map_err(|e| self.unfit(name, e.to_string()))?;
        let error = |kind: Kind| self.reader.error(format_args!("reading the layer {name}"), kind);
        let wrong = match index.diff_id() {
            Some(found) if found == diff_id => None,
            Some(found) => Some(error(Kind::Digest { expected: diff_id, found })),
            None => {
                // That there are more entries than were asked for is no damage.
                let is_damage =
                    |note: &&Note| matches!(note.kind, NoteKind::Damaged(_) | NoteKind::Wrong(_));
                let note = index.notes().iter().find(is_damage).or_else(|| index.damage());
                let why = note.map(|note| note.kind.to_string()).unwrap_or_default();
                Some(error(Kind::Layer(why)))
            }
        };
        Ok((index.blob(), wrong))
    }
}

/// The configurations and layers of an archive.
struct Blobs {
    archive: Arc<Archive>,
    places: HashMap<Digest, Place>,
    /// Manifests of images with layers that are not what they should be, and why.
    bad: HashMap<Digest, Error>,
}

#[async_trait]
impl BlobSource for Blobs {
    fn size(&self, digest: &Digest) -> Option<u64> {
        self.places.get(digest).map(|place| place.size)
    }

    async fn read(&self, blob: &Descriptor, range: Range<u64>) -> Result<BoxStream> {
        if let Some(error) = self.bad.get(&blob.digest) {
            return Err(error.clone());
        }
        let place = self.places.get(&blob.digest);
        let place = place.ok_or_else(|| self.archive.missing(&blob.digest))?;
        self.archive.read(place.offset + range.start..place.offset + range.end)
    }
}
