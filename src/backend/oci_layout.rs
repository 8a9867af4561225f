//! OCI image layouts (OCI image specification, `image-layout.md`), as skopeo, umoci, crane, BuildKit and many
//! others read and write them.
//!
//! ```text
//! DIR/
//!   oci-layout                   the version of the layout
//!   index.json                   the images, with their names in annotations
//!   blobs/<algorithm>/<hex>      manifests, configurations and layers
//!   blobs/.imgfs/                imgfs's own state, as in an images_dir: only where imgfs has written
//! ```
//!
//! Several processes may fill a layout at once. Each blob has its lock; a name is added to `index.json` under a
//! lock for all of it, by reading, changing and renaming, after everything that it leads to is there. What
//! others have put into `index.json` stays, whether it is understood or not.

mod index;
mod sink;

use std::{io, ops::Range, path::Path, sync::Arc};

use async_trait::async_trait;

pub(super) use index::{MAX_INDEX, NewEntry, listed_of, merge};
pub use sink::OciLayout;

use super::{
    Blobs, BoxStream, Collection, ConfinedDir, Error, Kind, LocalFile, NameBelow, Result,
    collection::{BlobSource, Parts},
    images_dir::ImagesDir,
};
use crate::image::{Descriptor, Digest, Repository};

/// The list of images.
pub(super) const INDEX: &str = "index.json";

/// The file that makes a directory a layout, and what is in it.
pub(super) const MARK: &str = "oci-layout";
pub(super) const MARK_TEXT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// What errors call a layout.
fn side(root: &Path) -> String {
    format!("layout {}", root.display())
}

fn failed(root: &Path, doing: &str, error: io::Error) -> Error {
    Error::new(side(root), doing, error)
}

/// Opens the layout in the directory `root` to read it: all its images, or the one that it calls `only`.
/// Images that it does not name in full are named below `below`.
pub async fn open(
    root: &Path,
    only: Option<&str>,
    below: Option<&NameBelow>,
) -> Result<Collection> {
    let path = root.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        let dir = ConfinedDir::open(&path).map_err(|e| failed(&path, "opening it", e))?;
        let text = dir.read(&path.join(INDEX), MAX_INDEX + 1);
        let text = text.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                let reason = "it is no OCI image layout: it has no index.json";
                Error::new(side(&path), "opening it", Kind::Config(reason.to_owned()))
            }
            _ => failed(&path, "reading index.json", e),
        })?;
        let listed = listed_of(&text)
            .map_err(|reason| Error::new(side(&path), "reading index.json", Kind::Unfit(reason)))?;
        Ok((ImagesDir::of_layout(dir)?, listed))
    });
    let opened = opened.await.map_err(|e| failed(root, "opening it", io::Error::other(e)))?;
    let (blobs, listed) = opened?;
    Collection::new(Parts {
        side: side(root),
        listed,
        made: Vec::new(),
        blobs: Arc::new(Files(blobs)),
        warnings: Vec::new(),
        below: below.cloned(),
        only: only.map(str::to_owned),
    })
    .await
}

/// The blobs of a layout.
struct Files(ImagesDir);

/// Blobs belong to no repository here; this is what asks for them.
fn nobody() -> Result<Repository> {
    Repository::new("localhost", "layout")
        .map_err(|e| Error::new("layout", "reading", Kind::Config(e.to_string())))
}

#[async_trait]
impl BlobSource for Files {
    fn size(&self, digest: &Digest) -> Option<u64> {
        self.0.blob_size(digest)
    }

    async fn read(&self, blob: &Descriptor, range: Range<u64>) -> Result<BoxStream> {
        self.0.read(&nobody()?, blob, range).await.map_err(|e| e.on(&side(self.0.root())))
    }

    async fn file(&self, blob: &Descriptor) -> Result<Option<LocalFile>> {
        let file = Blobs::file(&self.0, &nobody()?, blob).await;
        file.map_err(|e| e.on(&side(self.0.root())))
    }
}
