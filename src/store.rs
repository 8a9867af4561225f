//! An additional image store: a directory in the format of containers/storage, which podman, CRI-O, buildah and
//! skopeo read besides their own, and whose layers are shown by a mount of imgfs.
//!
//! ```text
//! overlay-images/  images.json  images.lock  <config hex>/{manifest, =base64(key)...}
//! overlay-layers/  layers.json  layers.lock
//! overlay/<chain>/ link   diff -> MOUNT/.imgfs/.trees/<chain>
//!                  additionallayer     the absolute path of als/
//!                  als/{info, blob -> MOUNT/blobs/sha256:<hex>}
//!                  empty/ merged/ work/
//! overlay/l/<LINK> -> ../<chain>/diff
//! .imgfs/<manifest hex>/{manifest,config,source}
//! .imgfs/lock          locked by whoever changes the store
//! ```
//!
//! `<chain>` is a [`ChainId`]. There is no file `lower` in the directory of a layer, and its `diff` is the merge
//! of the whole chain, so a container has one directory below its own and needs no whiteouts.
//!
//! # What it promises
//!
//! - The directory is valid at any moment, also when nothing of imgfs runs: what `layers.json` and
//!   `images.json` name has been written and flushed before, and each of the two is replaced by renaming.
//! - Programs that have the store open notice a change: the lists are changed under an exclusive lock of
//!   fcntl(2) on `layers.lock` or `images.lock`, and 64 fresh random bytes are written into that file in place,
//!   which is how containers/storage tells that it has to read the list again.
//! - A layer that is listed never becomes another one: it is named by its content.
//! - What it takes to show a layer is in `.imgfs`, so no registry is needed for that.
//! - A directory that imgfs has not made is left alone, and one process at a time changes a store (`claim.rs`).
//! - A recording that fails takes back what it has written (`begun.rs`).
//!
//! A damaged record is set aside, and does not hinder the others.

mod begun;
mod claim;
mod dirs;
mod entries;
mod graphroots;
mod list;
mod prune;
mod records;
mod setup;
pub mod wire;

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

pub use claim::{Claim, ClaimError};
pub use entries::{ImageEntry, LayerEntry};
#[cfg(feature = "fuzzing")]
pub use graphroots::fuzz_graphroot;
pub use graphroots::{Needed, default_graphroots, needed_by};
pub use prune::{InUse, PruneReport, RemoveReport, Removed};
pub use records::{Source, StoredRecord};
pub use setup::setup;

use crate::{
    backend::{Error, Result},
    image::{ChainId, View},
};

/// Where the store is, unless something else is said.
pub const DEFAULT_DIR: &str = "/var/lib/imgfs/store";

/// Where the daemon of a store listens, unless something else is said.
pub const DEFAULT_SOCKET: &str = "/run/imgfs/store.sock";

/// The directory of what imgfs alone knows of a store. What has it has been made by imgfs.
const STATE: &str = ".imgfs";

/// A layer that has been listed for less than this is kept, though nobody needs it yet.
const YOUNG: Duration = Duration::from_secs(24 * 3600);

/// The directory of a store. Everything here blocks.
#[derive(Clone, Debug)]
pub struct StoreDir {
    root: PathBuf,
}

impl StoreDir {
    /// Opens the store in the directory `root`, which is created with an empty store in it as far as that is
    /// missing. An error if there is something in it that imgfs has not made.
    ///
    /// ```
    /// use imgfs::store::StoreDir;
    ///
    /// let temporary = tempfile::tempdir()?;
    /// let store = StoreDir::create(&temporary.path().join("store"))?;
    /// assert!(store.layers()?.is_empty() && store.images()?.is_empty());
    /// assert!(StoreDir::open(temporary.path()).is_err(), "there is no store");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create(root: &Path) -> Result<Self> {
        let store = Self::begin(root)?;
        store.complete()?;
        Ok(store)
    }

    /// Creates what tells that it is a store of imgfs, unless it is somebody else's.
    fn begin(root: &Path) -> Result<Self> {
        let failed = |e| Error::new("store", format_args!("creating {}", root.display()), e);
        let root = std::path::absolute(root).map_err(failed)?;
        let store = Self { root };
        store.refuse_others()?;
        // First of all, so that the directory is known again if the rest fails.
        store.create_dirs(&store.root.join(STATE))?;
        Ok(store)
    }

    /// Creates what else is missing of it.
    fn complete(&self) -> Result<()> {
        for dir in ["overlay/l", "overlay-layers", "overlay-images"] {
            self.create_dirs(&self.root.join(dir))?;
        }
        self.list::<LayerEntry>().ensure()?;
        self.list::<ImageEntry>().ensure()
    }

    /// Opens the store in the directory `root`. An error of the kind [`io::ErrorKind::NotFound`] if there is none.
    pub fn open(root: &Path) -> Result<Self> {
        let failed = |e| Error::new("store", format_args!("opening {}", root.display()), e);
        let root = std::path::absolute(root).map_err(failed)?;
        fs::metadata(root.join("overlay-layers")).map_err(failed)?;
        let store = Self { root };
        store.refuse_others()?;
        Ok(store)
    }

    /// The same for records alone, without the lists that other programs read.
    pub(crate) fn only_records(root: &Path) -> Result<Self> {
        let store = Self { root: root.to_owned() };
        store.create_dirs(&store.root.join(STATE))?;
        Ok(store)
    }

    /// Where it is, as an absolute path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn error(&self, doing: &str, path: &Path, error: io::Error) -> Error {
        let side = format_args!("store {}", self.root.display());
        Error::new(side, format_args!("{doing} {}", path.display()), error)
    }

    fn create_dirs(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).map_err(|e| self.error("creating", path, e))
    }

    /// The layers that are listed.
    pub fn layers(&self) -> Result<Vec<LayerEntry>> {
        self.list().read()
    }

    /// The images that are listed: those that have been added, and not those that have only been pulled.
    pub fn images(&self) -> Result<Vec<ImageEntry>> {
        self.list().read()
    }

    /// Lists layers whose directories are written now, each of them showing what the mount at `mount` has.
    /// Those that are listed already stay what they are. If it fails, nothing is left of the others.
    pub fn add_layers(&self, mount: &Path, layers: &[LayerEntry]) -> Result<()> {
        let mut seen = HashSet::new();
        // Images share them.
        let layers: Vec<&LayerEntry> =
            layers.iter().filter(|layer| seen.insert(layer.id)).collect();
        let known: HashSet<ChainId> = self.layers()?.iter().map(|layer| layer.id).collect();
        let new: Vec<&LayerEntry> =
            layers.iter().filter(|layer| !known.contains(&layer.id)).copied().collect();
        self.refuse_layers_of_others(&new)?;
        let listed = self.write_and_list(mount, &layers, &new);
        listed.map_err(|error| self.take_back(&new, error))
    }

    fn write_and_list(
        &self,
        mount: &Path,
        layers: &[&LayerEntry],
        new: &[&LayerEntry],
    ) -> Result<()> {
        let mut is_changed = false;
        for layer in layers {
            let is_new = new.iter().any(|other| other.id == layer.id);
            is_changed |= self.write_layer(mount, layer, is_new)?;
        }
        if is_changed {
            self.sync_layers()?;
        }
        if new.is_empty() {
            return Ok(());
        }
        self.list().change(|listed: &mut Vec<LayerEntry>| {
            for layer in new {
                if !listed.iter().any(|known| known.id == layer.id) {
                    listed.push((*layer).clone());
                }
            }
        })
    }

    /// Corrects the sizes of decompressed layers, which are not known before a layer has been read.
    pub fn set_sizes(&self, sizes: &[(ChainId, u64)]) -> Result<()> {
        let known = self.layers()?;
        let is_other = |(chain, size): &&(ChainId, u64)| {
            known.iter().any(|layer| layer.id == *chain && layer.diff_size != *size)
        };
        let changed: Vec<(ChainId, u64)> = sizes.iter().filter(is_other).copied().collect();
        if changed.is_empty() {
            return Ok(());
        }
        let mut rewritten = Vec::new();
        self.list().change(|listed: &mut Vec<LayerEntry>| {
            for layer in listed {
                if let Some((_, size)) = changed.iter().find(|(chain, _)| *chain == layer.id) {
                    layer.diff_size = *size;
                    rewritten.push(layer.clone());
                }
            }
        })?;
        rewritten.iter().try_for_each(|layer| self.write_info(layer))
    }

    /// Lists the image of a record by `names`, which it has from now on and no other. Its layers have to be
    /// listed.
    pub fn add_image(&self, record: &StoredRecord, names: &[String]) -> Result<()> {
        let View::Image { config, .. } = record.manifest.view() else {
            return self.write_image(record, names).map(drop);
        };
        let listed = self.write_image(record, names).and_then(|image| self.list_image(image));
        listed.map_err(|error| self.take_back_image(&config.digest.to_hex(), error))
    }

    fn list_image(&self, image: ImageEntry) -> Result<()> {
        let names = image.names.clone();
        self.list().change(|listed: &mut Vec<ImageEntry>| {
            for other in listed.iter_mut() {
                other.names.retain(|name| other.id == image.id || !names.contains(name));
            }
            match listed.iter_mut().find(|known| known.id == image.id) {
                Some(known) => {
                    let kept = std::mem::take(&mut known.names);
                    *known = image;
                    known.names.extend(kept.into_iter().filter(|name| !names.contains(name)));
                }
                None => listed.push(image),
            }
            listed.retain(|image| !image.names.is_empty());
        })
    }

    /// Lists layers and images no longer that are not to be kept, and then removes what is written of them.
    /// Images go with their uppermost layer. Returns the layers that have gone.
    pub fn remove_layers(&self, is_kept: impl Fn(&LayerEntry) -> bool) -> Result<Vec<ChainId>> {
        let is_gone = |layer: &LayerEntry| !is_kept(layer);
        let gone: Vec<ChainId> =
            self.layers()?.iter().filter(|l| is_gone(l)).map(|layer| layer.id).collect();
        if gone.is_empty() {
            return Ok(gone);
        }
        // An image must not be listed without its layers.
        self.remove_images(|image| !gone.contains(&image.layer))?;
        self.list()
            .change(|listed: &mut Vec<LayerEntry>| listed.retain(|l| !gone.contains(&l.id)))?;
        for chain in &gone {
            self.remove_layer_dir(chain)?;
        }
        Ok(gone)
    }

    /// Lists images no longer that are not to be kept.
    pub fn remove_images(&self, is_kept: impl Fn(&ImageEntry) -> bool) -> Result<()> {
        let gone: Vec<String> =
            self.images()?.into_iter().filter(|i| !is_kept(i)).map(|image| image.id).collect();
        if gone.is_empty() {
            return Ok(());
        }
        self.list()
            .change(|listed: &mut Vec<ImageEntry>| listed.retain(|i| !gone.contains(&i.id)))?;
        gone.iter().try_for_each(|id| self.remove_image_dir(id))
    }

    /// Takes names away from images, which are listed no longer when they have none left. Returns those names
    /// that an image had.
    pub fn remove_names(&self, names: &[String]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        if !self.images()?.iter().any(|i| i.names.iter().any(|name| names.contains(name))) {
            return Ok(found);
        }
        let mut gone = Vec::new();
        self.list().change(|listed: &mut Vec<ImageEntry>| {
            for image in listed.iter_mut() {
                let (out, kept) = std::mem::take(&mut image.names)
                    .into_iter()
                    .partition::<Vec<_>, _>(|name| names.contains(name));
                found.extend(out);
                image.names = kept;
            }
            gone = listed.iter().filter(|i| i.names.is_empty()).map(|i| i.id.clone()).collect();
            listed.retain(|image| !image.names.is_empty());
        })?;
        gone.iter().try_for_each(|id: &String| self.remove_image_dir(id))?;
        Ok(found)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
