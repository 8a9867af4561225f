//! What a directory of images has, whether it is whole, and what of it nobody needs.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use super::Result;
use crate::{
    backend::{
        self, Backend,
        images_dir::{ImageEntry, ImagesDir, Inventory, Linking, Problem, Pruned, Verified},
        registry::{Registry, RegistryConfig},
    },
    image::Reference,
    transfer::{self, Observer},
};

/// Which images of a directory are listed.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Only those whose name contains this.
    pub pattern: Option<String>,
    /// Tags of signatures and the like, too.
    pub attachments: bool,
}

/// Images of a directory.
#[derive(Debug)]
pub struct Listing {
    /// The images, by name.
    pub images: Vec<ImageEntry>,
    /// Names of images whose manifests cannot be read.
    pub unreadable: Vec<String>,
    /// Symbolic links, which are not followed, and maps of tags that cannot be read: there may be more images
    /// behind them.
    pub hidden: Vec<String>,
    /// All that is known of the directory.
    pub inventory: Inventory,
}

impl Listing {
    /// Whether there is nothing to list.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty() && self.unreadable.is_empty()
    }

    /// Whether something of what is listed is missing or cannot be read, or there may be more than is listed.
    pub fn is_incomplete(&self) -> bool {
        !self.unreadable.is_empty()
            || !self.hidden.is_empty()
            || self.images.iter().any(|image| !image.missing.is_empty())
    }
}

/// Lists images in the directory `root`.
///
/// ```
/// use imgfs::{backend::images_dir::{ImagesDir, Linking}, ops::{ListRequest, list}};
///
/// let temporary = tempfile::tempdir()?;
/// ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// let listing = list(temporary.path(), &ListRequest::default())?;
/// assert!(listing.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn list(root: &Path, request: &ListRequest) -> Result<Listing> {
    let inventory = ImagesDir::open(root)?.inventory()?;
    let matches = |name: &str| request.pattern.as_deref().is_none_or(|part| name.contains(part));
    let images = inventory.images.iter();
    let images = images
        .filter(|image| request.attachments || !image.is_attachment)
        .filter(|image| matches(&image.reference.to_string()));
    let unreadable = inventory.hidden().flat_map(|problem| &problem.images);
    let unreadable = unreadable.filter(|name| matches(name));
    // Of these it is not known which images they are.
    let hidden = inventory.hidden().filter(|problem| problem.images.is_empty());
    let hidden = hidden.map(|problem| problem.path.clone()).collect();
    let (images, unreadable) = (images.cloned().collect(), unreadable.cloned().collect());
    Ok(Listing { images, unreadable, hidden, inventory })
}

/// Checks the directory `root`: names, manifests and sizes, and the digests of blobs that have
/// changed since they were hashed, or with `full` of all. `hashed` is called from several threads
/// with the number of bytes that have been hashed since it was called the last time.
///
/// ```
/// use imgfs::{backend::images_dir::{ImagesDir, Linking}, ops::verify};
///
/// let temporary = tempfile::tempdir()?;
/// ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// let verified = verify(temporary.path(), true, &|_| ())?;
/// assert!(verified.problems.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn verify(root: &Path, full: bool, hashed: &(dyn Fn(u64) + Sync)) -> Result<Verified> {
    Ok(ImagesDir::open(root)?.verify(full, &|bytes| hashed(bytes))?)
}

/// The registries that [`repair`] asks about `problems`.
pub fn registries_of(problems: &[Problem]) -> Vec<String> {
    let images = problems.iter().flat_map(|problem| &problem.images);
    let images = images.filter_map(|image| image.parse::<Reference>().ok());
    let names: BTreeSet<String> =
        images.map(|image| image.repository().registry().to_owned()).collect();
    names.into_iter().collect()
}

/// Fetches again what [`verify`] has found to be broken in the directory `root`: marks problems as
/// repaired, adds those that come up on the way, and counts the images anew. Returns the errors
/// that were met, too.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::sync::Arc;
/// use imgfs::{
///     backend::{images_dir::{ImagesDir, Linking}, registry::RegistryConfig},
///     ops::{repair, verify},
///     transfer::Observer,
/// };
///
/// let temporary = tempfile::tempdir()?;
/// ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// let verified = verify(temporary.path(), false, &|_| ())?;
/// let observer: Arc<dyn Observer> = Arc::new(());
/// let config = RegistryConfig::default();
/// let (repaired, errors) = repair(temporary.path(), verified, config, &observer).await?;
/// assert!(repaired.problems.is_empty() && errors.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub async fn repair(
    root: &Path,
    verified: Verified,
    config: RegistryConfig,
    observer: &Arc<dyn Observer>,
) -> Result<(Verified, Vec<backend::Error>)> {
    let dir = ImagesDir::create(root, None, Linking::Auto)?;
    let concurrency = config.concurrency;
    let registry: Arc<dyn Backend> = Arc::new(Registry::new(config));
    let problems = verified.problems;
    let repaired = transfer::repair(&registry, &dir, problems, concurrency, observer).await;
    let (problems, errors) = repaired?;
    let images = dir.inventory()?.image_count();
    Ok((Verified { problems, images, ..verified }, errors))
}

/// Removes what no image of the directory `root` needs, or with `dry_run` only says what. `None` if
/// nothing was ever put there.
///
/// ```
/// use imgfs::{backend::images_dir::{ImagesDir, Linking}, ops::prune};
///
/// let temporary = tempfile::tempdir()?;
/// ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// let stray = format!("blobs/sha256:{}", "0".repeat(64));
/// std::fs::create_dir_all(temporary.path().join("blobs"))?;
/// std::fs::write(temporary.path().join(&stray), "of no image")?;
/// let pruned = prune(temporary.path(), false)?.unwrap();
/// assert_eq!(pruned.removed[0].path, stray);
/// assert_eq!(pruned.bytes(), 11);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn prune(root: &Path, dry_run: bool) -> Result<Option<Pruned>> {
    let dir = ImagesDir::open(root)?;
    if !dir.has_blobs() {
        return Ok(None);
    }
    Ok(Some(dir.prune(dry_run)?))
}
