//! Making the indexes of layers while they are transferred into a directory, of the bytes that pass anyway.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::Observer;
use crate::{
    backend::{Error, Kind, Names, Result, images_dir::ImagesDir},
    image::{Algorithm, Descriptor, Digest, Reference, View},
    layer::{Expected, IndexError, Indexer, Options},
    rootfs::LayerIndexes,
    transfer::{self as engine, Event, Passing, Report, Status},
    util::locked,
};

const SIDE: &str = "layer index";

/// Pieces of a layer that wait for its indexer. A piece has 16 to 64 KiB.
const QUEUED: usize = 64;

/// Indexes within an index are looked into to this depth.
const MAX_DEPTH: usize = 8;

/// What is read at a time of a layer that has not passed, in bytes.
const STEP: usize = 1 << 20;

/// Makes indexes of layers.
pub(super) struct LayerIndexing {
    indexes: LayerIndexes,
    dir: ImagesDir,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Indexes that are being made of what passes.
    passing: HashMap<Digest, JoinHandle<Result<()>>>,
}

/// How many indexes there are, and why others are not.
#[derive(Debug, Default)]
pub struct IndexedLayers {
    /// Layers that have been indexed while they passed.
    pub passed: usize,
    /// Layers that have been read once more, because they had been there before, or had not come in one piece.
    pub read: usize,
    /// Layers of which there was an index.
    pub known: usize,
    /// Layers that could not be indexed, with the reasons.
    pub failed: Vec<Error>,
}

impl LayerIndexing {
    pub(super) fn new(dir: &ImagesDir) -> Arc<Self> {
        let indexes = LayerIndexes::new(dir, 0);
        Arc::new(Self { indexes, dir: dir.clone(), state: Mutex::default() })
    }

    /// Begins to index a layer of which all bytes are going to pass.
    fn begin(&self, layer: &Descriptor) -> Option<Box<dyn Passing>> {
        if !is_layer(layer) || self.indexes.has(layer) {
            return None;
        }
        let (gives, takes) = channel(QUEUED);
        let (indexes, of) = (self.indexes.clone(), layer.clone());
        let work = thread::Builder::new().name("index".into());
        let work = work.spawn(move || index_what_passes(&indexes, &of, takes)).ok()?;
        // An earlier attempt at the same layer has ended without success.
        locked(&self.state).passing.insert(layer.digest, work);
        Some(Box::new(Passed { gives: Some(gives), next: 0 }))
    }

    /// Waits for the indexes that are being made, and makes those of the layers of all images in `report` that are
    /// missing.
    pub(super) async fn finish(self: Arc<Self>, report: &Report) -> IndexedLayers {
        let mut layers = BTreeMap::new();
        for image in &report.images {
            if let Status::Copied | Status::Unchanged = image.status {
                let to = match (image.route.to.tag(), image.digest) {
                    (None, Some(digest)) => image.route.to.repository().pinned(digest),
                    _ => image.route.to.clone(),
                };
                layers_of(&self.dir, to, 0, &mut layers).await;
            }
        }
        let layers: Vec<Descriptor> = layers.into_values().collect();
        let finish = move || self.finish_all(&layers);
        let done = tokio::task::spawn_blocking(finish).await;
        done.unwrap_or_else(|panic| IndexedLayers {
            failed: vec![Error::new(SIDE, "indexing layers", io::Error::other(panic))],
            ..IndexedLayers::default()
        })
    }

    fn finish_all(&self, layers: &[Descriptor]) -> IndexedLayers {
        let mut done = IndexedLayers::default();
        let mut passing = std::mem::take(&mut locked(&self.state).passing);
        for layer in layers.iter().filter(|layer| is_layer(layer)) {
            let passed = passing.remove(&layer.digest).map(JoinHandle::join);
            if matches!(passed, Some(Ok(Ok(())))) {
                done.passed += 1;
            } else if self.indexes.has(layer) {
                done.known += 1;
            } else {
                match self.read(layer) {
                    Ok(()) => done.read += 1,
                    Err(error) => done.failed.push(error),
                }
            }
        }
        done
    }

    /// Indexes a layer that is in the directory.
    fn read(&self, layer: &Descriptor) -> Result<()> {
        use std::io::Read;
        let missing = || failed(layer, Kind::NotFound("it is not in the directory".into()));
        let file = self.dir.unverified_file(layer.digest, layer.size).ok_or_else(missing)?;
        let mut indexer = Indexer::new(options(layer));
        let mut buffer = vec![0; STEP];
        loop {
            match (&file).read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    let pushed = indexer.push(&buffer[..count]);
                    pushed.map_err(|e| index_failed(layer, &e))?;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(layer, e.into())),
            }
        }
        finish(&self.indexes, layer, indexer)
    }
}

/// Collects the layers of an image that is in `dir`, and of its platforms that are there.
fn layers_of<'a>(
    dir: &'a ImagesDir,
    image: Reference,
    depth: usize,
    layers: &'a mut BTreeMap<Digest, Descriptor>,
) -> BoxFuture<'a, ()> {
    async move {
        // What is not there, `verify` tells, and whoever wanted it has been told.
        let Ok(manifest) = dir.manifest(&image).await else { return };
        match manifest.view() {
            View::Image { layers: found, .. } => {
                layers.extend(found.iter().map(|layer| (layer.digest, layer.clone())));
            }
            View::Index { children, .. } if depth < MAX_DEPTH => {
                for child in children {
                    let child = image.repository().pinned(child.digest);
                    layers_of(dir, child, depth + 1, layers).await;
                }
            }
            View::Index { .. } => {}
        }
    }
    .boxed()
}

/// Whether a blob is a layer that can be looked into.
fn is_layer(blob: &Descriptor) -> bool {
    let kind = blob.media_type.as_str();
    let is_tar =
        kind.contains(".tar") || kind.contains("rootfs.diff") || kind.contains("rootfs.foreign");
    let is_of_images = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."]
        .iter()
        .any(|begin| kind.starts_with(begin));
    is_of_images && is_tar && !kind.ends_with("+encrypted")
}

fn options(layer: &Descriptor) -> Options {
    Options { blob: layer.digest.algorithm(), diff_id: Algorithm::Sha256, ..Options::default() }
}

fn failed(layer: &Descriptor, kind: Kind) -> Error {
    Error::new(SIDE, format_args!("indexing layer {}", layer.digest), kind)
}

fn index_failed(layer: &Descriptor, error: &IndexError) -> Error {
    failed(layer, Kind::Layer(error.to_string()))
}

fn finish(indexes: &LayerIndexes, layer: &Descriptor, indexer: Indexer) -> Result<()> {
    let expected = Expected { blob: layer.digest, blob_bytes: layer.size, diff_id: None };
    // It compares the digest with what has passed.
    let index = indexer.finish(&expected).map_err(|e| index_failed(layer, &e))?;
    indexes.put(layer, index)
}

fn index_what_passes(
    indexes: &LayerIndexes,
    layer: &Descriptor,
    mut takes: Receiver<Bytes>,
) -> Result<()> {
    let mut indexer = Indexer::new(options(layer));
    while let Some(bytes) = takes.blocking_recv() {
        indexer.push(&bytes).map_err(|e| index_failed(layer, &e))?;
        if indexer.blob_bytes() >= layer.size {
            break;
        }
    }
    if indexer.blob_bytes() < layer.size {
        return Err(failed(layer, Kind::Interrupted("it has not passed to its end".into())));
    }
    finish(indexes, layer, indexer)
}

/// Passes the bytes of a layer on to its indexer.
struct Passed {
    /// `None` if they have not come in order.
    gives: Option<Sender<Bytes>>,
    next: u64,
}

#[async_trait]
impl Passing for Passed {
    async fn pass(&mut self, offset: u64, bytes: &Bytes) {
        if offset != self.next {
            self.gives = None;
        }
        self.next = offset + bytes.len() as u64;
        if let Some(gives) = &self.gives
            && gives.send(bytes.clone()).await.is_err()
        {
            // The indexer says itself what was wrong.
            self.gives = None;
        }
    }
}

/// Tells what happens in a transfer, and has its layers indexed.
pub(super) struct Indexing {
    pub observer: Arc<dyn Observer>,
    pub layers: Arc<LayerIndexing>,
}

impl engine::Observer for Indexing {
    fn event(&self, event: Event<'_>) {
        self.observer.event(event);
    }

    fn passes(&self, blob: &Descriptor) -> Option<Box<dyn Passing>> {
        self.layers.begin(blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_by_their_types() {
        let is = |kind: &str| is_layer(&Descriptor::new(kind, Digest::sha256(b""), 0));
        for kind in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            assert!(is(kind), "{kind}");
        }
        for kind in [
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.in-toto+json",
            "application/vnd.imgfs.layer-index",
            "",
        ] {
            assert!(!is(kind), "{kind}");
        }
    }
}
