//! What has been found out of images and holds for good, since it is named by digests: indexes of
//! layers (`docs/layer-index.md`), manifests and configurations.
//!
//! ```text
//! layers/<digest>        the index that a pass has made of the layer with this digest
//! layers/<digest>.<toc>  the index of what images say of its table of contents that say the same
//! documents/<digest>     a manifest or configuration
//! ```
//!
//! Whatever is missing or damaged here is found out once more; so what cannot be written is no
//! error. Nobody removes anything: an index by a pass has at most a fiftieth of its layer's size.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use super::layer::LayerKey;
use crate::{
    backend::{ConfinedDir, images_dir::ImagesDir},
    image::Digest,
    layer::{LayerIndex, Origin, StoredHead},
    util::locked,
};

const LAYERS: &str = "layers";
const DOCUMENTS: &str = "documents";

/// The largest document that is read.
pub(super) const MAX_DOCUMENT: u64 = 8 << 20;

pub(super) struct Shelf {
    /// The images_dir that `dir` is in.
    root: ConfinedDir,
    dir: PathBuf,
    /// Tells temporary files apart.
    next: AtomicU64,
    /// Documents that could not be written.
    unwritten: Mutex<HashMap<Digest, Bytes>>,
}

impl Shelf {
    pub(super) fn new(images: &ImagesDir) -> Self {
        let (root, dir) = (images.dir().clone(), images.inside_dir());
        Self { root, dir, next: AtomicU64::new(0), unwritten: Mutex::default() }
    }

    fn index_path(&self, layer: &LayerKey) -> PathBuf {
        self.dir.join(LAYERS).join(index_name(layer))
    }

    /// Whether there is an index of `layer`, though it may turn out to be of no use.
    pub(super) fn has_index(&self, layer: &LayerKey) -> bool {
        self.root.is_file(&self.index_path(layer))
    }

    /// The index of `layer` without its windows, if it is here.
    pub(super) fn index(&self, layer: &LayerKey) -> Option<LayerIndex> {
        let (mut file, meta) = self.root.open_file(&self.index_path(layer)).ok()?;
        let mut stored = vec![0; StoredHead::BYTES];
        file.read_exact(&mut stored).ok()?;
        let head = StoredHead::parse(&stored).ok()?;
        if meta.len() != head.total_bytes() {
            return None;
        }
        let rest = head.table_bytes() - StoredHead::BYTES as u64;
        (&file).take(rest).read_to_end(&mut stored).ok()?;
        let index = LayerIndex::from_table(&stored).ok()?;
        let is_it = (index.blob(), index.blob_bytes()) == (layer.digest, layer.size)
            && (index.origin() == Origin::Pass) == layer.toc.is_none();
        is_it.then_some(index)
    }

    /// Keeps `index`. What comes back has no windows in memory any more; `None` if it cannot be
    /// kept.
    pub(super) fn put_index(&self, layer: &LayerKey, index: &LayerIndex) -> Option<LayerIndex> {
        let stored = index.to_bytes().ok()?;
        self.put(LAYERS, &index_name(layer), &stored).ok()?;
        LayerIndex::from_table(&stored).ok()
    }

    /// Forgets the index of `layer`, which has turned out to be of no use.
    pub(super) fn drop_index(&self, layer: &LayerKey) {
        // If it stays, it is found to be of no use again.
        let _ = self.root.remove_file(&self.index_path(layer));
    }

    /// The part of the stored index of `layer` that is a window.
    pub(super) fn window(&self, layer: &LayerKey, range: Range<u64>) -> io::Result<Vec<u8>> {
        let (file, _) = self.root.open_file(&self.index_path(layer))?;
        // A window has 32 KiB before it is compressed.
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        let mut window = vec![0; length.min(1 << 20)];
        file.read_exact_at(&mut window, range.start)?;
        Ok(window)
    }

    /// The document with this digest, if it is here.
    pub(super) fn document(&self, digest: &Digest) -> Option<Bytes> {
        if let Some(bytes) = locked(&self.unwritten).get(digest) {
            return Some(bytes.clone());
        }
        let path = self.dir.join(DOCUMENTS).join(digest.to_string());
        let bytes = self.root.read(&path, MAX_DOCUMENT).ok()?;
        (Digest::of(digest.algorithm(), &bytes) == *digest).then(|| bytes.into())
    }

    /// Keeps a document, if only as long as this is in use.
    pub(super) fn put_document(&self, digest: &Digest, bytes: &Bytes) {
        if self.document(digest).is_none()
            && self.put(DOCUMENTS, &digest.to_string(), bytes).is_err()
        {
            locked(&self.unwritten).insert(*digest, bytes.clone());
        }
    }

    fn put(&self, kind: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let dir = self.dir.join(kind);
        self.root.create_dirs(&dir)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!(".{}.{number}", std::process::id()));
        let written = self.root.create_file(&temporary).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_data()
        });
        let done = written.and_then(|()| self.root.rename(&temporary, &dir.join(name)));
        if done.is_err() {
            let _ = self.root.remove_file(&temporary);
        }
        done
    }
}

fn index_name(layer: &LayerKey) -> String {
    match layer.toc {
        Some(toc) => format!("{}.{}", layer.digest, hex::encode(toc.as_bytes())),
        None => layer.digest.to_string(),
    }
}
