//! What has been found out of images and holds for good, since it is named by digests: indexes of
//! layers (`docs/layer-index.md`), manifests and configurations.
//!
//! ```text
//! layers/<digest>     the index of the layer with this digest
//! documents/<digest>  a manifest or configuration
//! ```
//!
//! Whatever is missing or damaged here is found out once more; so what cannot be written is no
//! error. Nobody removes anything: an index has at most a fiftieth of its layer's size.

use std::{
    collections::HashMap,
    fs::{self, File},
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

use crate::{
    image::{Descriptor, Digest},
    layer::{LayerIndex, StoredHead},
    lock::locked,
};

const LAYERS: &str = "layers";
const DOCUMENTS: &str = "documents";

/// The largest document that is read.
pub(super) const MAX_DOCUMENT: u64 = 8 << 20;

pub(super) struct Shelf {
    dir: PathBuf,
    /// Tells temporary files apart.
    next: AtomicU64,
    /// Documents that could not be written.
    unwritten: Mutex<HashMap<Digest, Bytes>>,
}

impl Shelf {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, next: AtomicU64::new(0), unwritten: Mutex::default() }
    }

    fn index_path(&self, blob: &Digest) -> PathBuf {
        self.dir.join(LAYERS).join(blob.to_string())
    }

    /// Whether there is an index of `blob`, though it may turn out to be of no use.
    pub(super) fn has_index(&self, blob: &Digest) -> bool {
        self.index_path(blob).exists()
    }

    /// The index of `blob` without its windows, if it is here.
    pub(super) fn index(&self, blob: &Descriptor) -> Option<LayerIndex> {
        let mut file = File::open(self.index_path(&blob.digest)).ok()?;
        let mut stored = vec![0; StoredHead::BYTES];
        file.read_exact(&mut stored).ok()?;
        let head = StoredHead::parse(&stored).ok()?;
        if file.metadata().ok()?.len() != head.total_bytes() {
            return None;
        }
        let rest = head.table_bytes() - StoredHead::BYTES as u64;
        (&file).take(rest).read_to_end(&mut stored).ok()?;
        let index = LayerIndex::from_table(&stored).ok()?;
        (index.blob() == blob.digest && index.blob_bytes() == blob.size).then_some(index)
    }

    /// Keeps `index`. What comes back has no windows in memory any more; `None` if it cannot be
    /// kept.
    pub(super) fn put_index(&self, index: &LayerIndex) -> Option<LayerIndex> {
        let stored = index.to_bytes().ok()?;
        self.put(LAYERS, &index.blob(), &stored).ok()?;
        LayerIndex::from_table(&stored).ok()
    }

    /// Forgets the index of `blob`, which has turned out to be of no use.
    pub(super) fn drop_index(&self, blob: &Digest) {
        // If it stays, it is found to be of no use again.
        let _ = fs::remove_file(self.index_path(blob));
    }

    /// The part of the stored index of `blob` that is a window.
    pub(super) fn window(&self, blob: &Digest, range: Range<u64>) -> io::Result<Vec<u8>> {
        let file = File::open(self.index_path(blob))?;
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
        let file = File::open(self.dir.join(DOCUMENTS).join(digest.to_string())).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT).read_to_end(&mut bytes).ok()?;
        (Digest::of(digest.algorithm(), &bytes) == *digest).then(|| bytes.into())
    }

    /// Keeps a document, if only as long as this is in use.
    pub(super) fn put_document(&self, digest: &Digest, bytes: &Bytes) {
        if self.document(digest).is_none() && self.put(DOCUMENTS, digest, bytes).is_err() {
            locked(&self.unwritten).insert(*digest, bytes.clone());
        }
    }

    fn put(&self, kind: &str, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        let dir = self.dir.join(kind);
        fs::create_dir_all(&dir)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!(".{}.{number}", std::process::id()));
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_data()
        });
        let done = written.and_then(|()| fs::rename(&temporary, dir.join(digest.to_string())));
        if done.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        done
    }
}
