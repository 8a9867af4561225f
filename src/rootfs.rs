//! Images from the inside: their root file systems and single layers, as trees of files that are
//! read where they are, without unpacking anything.
//!
//! [`Images`] opens them. A layer is passed once from its beginning to its end; the index that this
//! makes ([`crate::layer`]) is kept in the images_dir for good, for all images that share the layer.
//! From then on only those spans of a layer are fetched and decompressed that somebody reads. An image
//! may bring a table of contents of a layer, which saves the pass; nothing in the layer vouches for that,
//! so it counts for this image alone.
//!
//! ```text
//! Images    what an image is: its manifests, configurations, platforms
//!   Files     those of a platform, or of one layer, from before anything of them is known
//!   Tree      the same when all is known: names, attributes, content
//!     Layer     the index of a layer, and its stream: decompressed spans, each checked
//!       Shelf     what is kept on the disk: indexes, manifests
//! ```
//!
//! The decompressed stream of a layer is content that the [`crate::cache`] keeps like any other: it
//! is derived from the layer by `stream.rs`, whose spans have been compared with the digests in the
//! index. So both forms share one bound, and what is read twice is decompressed once.
//!

mod documents;
mod files;
mod image;
mod layer;
mod pass;
mod shelf;
mod spans;
mod status;
mod stream;
mod tree;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::sync::Semaphore;

pub use files::{FileFound, Files, PathError};
pub use image::{Image, Images, Variant};
pub use tree::{Tree, TreeFile};

use shelf::Shelf;
use spans::RecentSpans;

use crate::{
    backend::{Backend, Error, images_dir::ImagesDir},
    cache::Cache,
    catalogue::Catalogue,
    util::locked,
};

const SIDE: &str = "image";

/// Failures that are remembered, for those who ask later what went wrong.
const REMEMBERED: usize = 32;

/// Tables of contents that are read at a time.
const TABLES: usize = 4;

/// Where images are, and how long to wait for them.
pub struct Sources {
    /// What names lead to, what is local, and where the rest comes from.
    pub catalogue: Catalogue,
    /// Keeps what is fetched and what is decompressed.
    pub cache: Cache,
    /// A layer of which nothing that can be read comes for so long is given up.
    pub patience: Duration,
    /// Whether nothing of a layer is shown before all of it has been verified.
    pub verify_first: bool,
}

impl Sources {
    /// What is local.
    fn dir(&self) -> &ImagesDir {
        self.catalogue.dir()
    }

    /// Where the rest comes from; `None` if the network is not to be used.
    fn remote(&self) -> Option<&Arc<dyn Backend>> {
        self.catalogue.source()
    }
}

/// What all images of a process share.
struct Store {
    sources: Sources,
    shelf: Shelf,
    recent: Arc<RecentSpans>,
    /// Passes that run at a time: each takes a processor or two.
    passes: Semaphore,
    /// Tables of contents that are read at a time: each may take 64 MiB of memory.
    tables: Semaphore,
    troubles: Mutex<VecDeque<(SystemTime, String)>>,
}

impl Store {
    fn new(sources: Sources) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            shelf: Shelf::new(sources.dir().inside_dir()),
            sources,
            recent: RecentSpans::new(),
            passes: Semaphore::new(processors.clamp(1, 4)),
            tables: Semaphore::new(TABLES),
            troubles: Mutex::default(),
        })
    }

    /// Remembers a failure.
    fn note(&self, error: &Error) {
        let mut troubles = locked(&self.troubles);
        if troubles.len() >= REMEMBERED {
            troubles.pop_front();
        }
        troubles.push_back((SystemTime::now(), error.to_string()));
    }
}
