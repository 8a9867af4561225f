//! The daemon of a store: it records images whose layers a mount shows, for the runtimes that read the store.
//!
//! ```text
//! Daemon     answers what is asked on its socket (`listen.rs`)
//!   prepare    an image is about to be pulled: resolve, check, record, list its layers (`prepare.rs`)
//!   keep       what is recorded, its passes, and what is withdrawn (`keep.rs`)
//! ```
//!
//! An image that is recorded is pulled without its layers: the runtime finds them in the store. Whatever goes
//! wrong before an image is recorded means that it is pulled in the ordinary way, and is logged in one line.
//!
//! After an image has been recorded all of its layers are passed through together, which makes their indexes
//! and compares them with their digests. One that is not what it should be withdraws all images that have it:
//! their layers are listed no longer, so the next pull of them is an ordinary one.

mod keep;
mod listen;
mod prepare;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Error, Result};
use crate::{
    backend::{
        self, Kind,
        registry::{GivenCredentials, RegistryPattern},
    },
    catalogue::Catalogue,
    image::{ChainId, Digest, Platform, Reference},
    namespace::View,
    rootfs::Images,
    store::{Claim, LayerEntry, Source, StoreDir, StoredRecord},
    util::{Counters, Gauge, Metrics, SingleFlight, locked},
};

/// How long preparing an image may take, so that whoever waits for it for ten seconds gets an answer.
const PREPARE_DEADLINE: Duration = Duration::from_millis(9_500);

/// Images that are remembered for being pulled in the ordinary way.
const MAX_ORDINARY: usize = 1024;

/// How the daemon of a store behaves.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The directory of the store, which is created if it does not exist.
    pub dir: PathBuf,
    /// Where the mount is whose trees the store leads to.
    pub mount: PathBuf,
    /// Images that may be served; those of all repositories if it is empty.
    pub images: Vec<RegistryPattern>,
    /// Images with less than so many bytes of layers are pulled in the ordinary way.
    pub min_bytes: u64,
    /// The platform of the images.
    pub platform: Platform,
    /// Where credentials go that come with images.
    pub given: GivenCredentials,
}

/// The daemon of a store. Clones are the same.
#[derive(Clone)]
pub struct StoreDaemon {
    inner: Arc<Inner>,
}

struct Inner {
    options: StoreOptions,
    dir: StoreDir,
    /// No other mount serves the store, and nobody else changes it, as long as this is there.
    claim: Mutex<Option<Claim>>,
    images: Images,
    catalogue: Catalogue,
    state: Mutex<State>,
    /// Held while the store is changed.
    changing: tokio::sync::Mutex<()>,
    preparing: SingleFlight<String, std::result::Result<Prepared, String>>,
    counts: Counts,
}

/// What is counted.
struct Counts {
    prepared: Counters,
    passes: Counters,
    entries: Gauge,
}

#[derive(Default)]
struct State {
    /// By the digests of their manifests.
    images: HashMap<Digest, Known>,
    /// Images that are pulled in the ordinary way, with the reason; the oldest first.
    ordinary: Vec<(String, String)>,
}

/// What is known of an image that is recorded.
#[derive(Clone)]
struct Known {
    source: Source,
    chains: Vec<ChainId>,
    layers: Vec<LayerEntry>,
    /// By layer, whether it is indexed and known to be right.
    passed: Vec<bool>,
    last_error: Option<String>,
}

/// An image that can be pulled without its layers.
#[derive(Clone, Debug)]
enum Prepared {
    /// Its manifest.
    Lazy(Digest),
    /// It is pulled in the ordinary way, for this reason.
    Ordinary(String),
}

impl Known {
    fn new(record: &StoredRecord) -> Self {
        Self {
            source: record.source.clone(),
            chains: record.chains.clone(),
            layers: record.layers.clone(),
            passed: vec![false; record.layers.len()],
            last_error: None,
        }
    }

    fn is_lazy(&self) -> bool {
        self.source.is_lazy()
    }
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        Self {
            prepared: metrics.counters(
                "imgfs_store_prepared",
                "Images that somebody was about to pull, by what became of them",
            ),
            passes: metrics
                .counters("imgfs_store_passes", "Passes through layers, by how they ended"),
            entries: metrics.gauge("imgfs_store_images", "Images that are recorded in the store"),
        }
    }
}

impl StoreDaemon {
    /// Opens the store, and takes up what is recorded in it, for a mount of `view`. Asks no registry. Has to be
    /// called in a runtime, and used there.
    ///
    /// A record that is damaged is set aside and logged. An error if another process has the store, or if the
    /// directory is not one that imgfs has made.
    pub async fn open(options: StoreOptions, view: &View, metrics: &Metrics) -> Result<Self> {
        let images = view.images().cloned().ok_or_else(|| {
            let reason = "a store needs a cache to read layers with";
            backend::Error::new("store", "opening it", Kind::Config(reason.to_owned()))
        })?;
        let root = options.dir.clone();
        let holder = format!("the mount at {}", options.mount.display());
        let (dir, claim) = blocking(move || StoreDir::serve(&root, &holder)).await?;
        let inner = Inner {
            options,
            dir,
            claim: Mutex::new(Some(claim)),
            images,
            catalogue: view.catalogue().clone(),
            state: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            preparing: SingleFlight::default(),
            counts: Counts::new(metrics),
        };
        let daemon = Self { inner: Arc::new(inner) };
        daemon.take_up().await?;
        Ok(daemon)
    }

    /// Where the store is.
    pub fn dir(&self) -> &StoreDir {
        &self.inner.dir
    }

    /// What is recorded, for people and programs.
    fn list(&self) -> Value {
        let state = locked(&self.inner.state);
        let is_there = |(_, known): &(&Digest, &Known)| !known.source.forgotten;
        let mut images: Vec<(&Digest, &Known)> = state.images.iter().filter(is_there).collect();
        // Of a name that leads elsewhere now the newest comes first.
        images.sort_by_key(|(_, known)| {
            (&known.source.reference, std::cmp::Reverse(known.source.recorded))
        });
        // The row of an image that was withdrawn tells the same.
        let withdrawn: HashSet<&str> = images
            .iter()
            .filter(|(_, known)| !known.is_lazy())
            .flat_map(|(_, known)| known.source.names())
            .collect();
        let ordinary = state
            .ordinary
            .iter()
            .filter(|(image, _)| {
                let name =
                    image.parse::<Reference>().map_or_else(|_| image.clone(), |n| n.to_string());
                !withdrawn.contains(&*name)
            })
            .map(
                |(image, reason)| json!({ "image": image, "state": "ordinary", "reason": reason }),
            );
        let images = images.iter().map(|(digest, known)| self.describe(digest, known));
        let dir = self.inner.dir.root().display().to_string();
        json!({ "store": dir, "images": images.chain(ordinary).collect::<Vec<_>>() })
    }

    fn describe(&self, digest: &Digest, known: &Known) -> Value {
        let fetched = known
            .layers
            .iter()
            .map(|layer| self.inner.images.fetched_bytes(&layer.compressed_diff_digest));
        let (state, reason) = match &known.source.withdrawn {
            None => ("lazy", None),
            Some(reason) => ("ordinary", Some(reason)),
        };
        // Reading goes on after the passes.
        let failed_read = known
            .layers
            .iter()
            .find_map(|layer| self.inner.images.last_read_error(&layer.compressed_diff_digest));
        let indexed = known.passed.iter().filter(|passed| **passed).count();
        json!({
            "image": known.source.reference,
            "names": known.source.names().collect::<Vec<_>>(),
            "digest": digest.to_string(),
            "platform": known.source.platform,
            "state": state,
            "reason": reason,
            "added": known.source.added,
            "layers": known.layers.len(),
            "indexed_layers": indexed,
            "indexed": indexed == known.layers.len(),
            "size_bytes": known.layers.iter().map(|layer| layer.compressed_size).sum::<u64>(),
            "fetched_bytes": fetched.sum::<u64>(),
            "recorded": known.source.recorded,
            "last_error": failed_read.as_ref().or(known.last_error.as_ref()),
        })
    }
}

/// Does what waits for the disk, on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> backend::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let died = |e| backend::Error::new("store", "writing", std::io::Error::other(e));
    done.map_err(died)?.map_err(Error::from)
}
