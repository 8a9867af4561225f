//! Removing images by their names, from a directory or from registries.

use std::{collections::HashSet, sync::Arc};

use super::{Error, Result, TreeSpec};
use crate::{
    backend::{
        self, Removal, Remover,
        images_dir::{ImagesDir, Linking, Pruned},
        registry::{Registry, RegistryConfig},
    },
    image::Reference,
};

/// Which images are to be removed, and from where.
#[derive(Clone, Debug)]
pub struct RemoveRequest {
    /// The directory, or registries.
    pub from: TreeSpec,
    /// The images.
    pub images: Vec<Reference>,
    /// Remove from a directory what no image needs any more, too.
    pub prune: bool,
    /// Only find out what would be removed.
    pub dry_run: bool,
}

/// What became of an image that was to be removed.
#[derive(Debug)]
pub struct RemovedImage {
    /// The image.
    pub image: Reference,
    /// What was removed with it, or would be, or why it could not be.
    pub outcome: backend::Result<Removal>,
}

/// What [`remove`] has done.
#[derive(Debug, Default)]
pub struct RemoveReport {
    /// Each image, in the order of the request.
    pub images: Vec<RemovedImage>,
    /// What no image needed any more, if that was asked for and all images have been removed.
    pub pruned: Option<Pruned>,
}

impl RemoveReport {
    /// Whether some image could not be removed.
    pub fn has_failures(&self) -> bool {
        self.images.iter().any(|image| image.outcome.is_err())
    }
}

/// Removes images. A directory keeps their content until it is pruned; in a registry the manifest goes, and all
/// tags that lead to it.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use imgfs::{
///     backend::{ManifestName, Sink, images_dir::{ImagesDir, Linking}, registry::RegistryConfig},
///     image::{Manifest, Repository},
///     ops::{RemoveRequest, TreeSpec, remove},
/// };
///
/// let temporary = tempfile::tempdir()?;
/// let dir = ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// let index = br#"{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}"#;
/// let manifest = Manifest::parse(index.to_vec().into(), None)?;
/// let repository = Repository::new("registry.example.com", "team/app")?;
/// dir.put(&repository, &manifest, &ManifestName::Tag("v1".to_owned())).await?;
///
/// let request = RemoveRequest {
///     from: TreeSpec::Directory(temporary.path().to_owned()),
///     images: vec![repository.tagged("v1"), repository.tagged("v2")],
///     prune: false,
///     dry_run: false,
/// };
/// let report = remove(&request, RegistryConfig::default()).await?;
/// assert_eq!(report.images[0].outcome.as_ref().unwrap().digest, Some(manifest.digest()));
/// assert!(report.images[1].outcome.as_ref().unwrap_err().is_not_found());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub async fn remove(request: &RemoveRequest, config: RegistryConfig) -> Result<RemoveReport> {
    let remover: Arc<dyn Remover> = match &request.from {
        TreeSpec::Directory(root) => {
            let dir = ImagesDir::open(root)?;
            Arc::new(match request.dry_run {
                true => dir,
                false => ImagesDir::create(root, None, Linking::Auto)?,
            })
        }
        TreeSpec::Registry { .. } => Arc::new(Registry::new(config)),
        TreeSpec::Medium(medium) => {
            let reason =
                "names cannot be removed there, only from a directory of images or a registry";
            return Err(Error::NotThere { place: medium.to_string(), reason: reason.to_owned() });
        }
    };
    let mut report = RemoveReport::default();
    let mut gone: HashSet<Reference> = HashSet::new();
    for image in &request.images {
        // One may have gone with another one.
        if gone.contains(image) {
            continue;
        }
        let mut outcome = remover.removal(image).await;
        if let Ok(removal) = &outcome {
            let removed = match request.dry_run {
                true => Ok(()),
                false => remover.remove(removal).await,
            };
            match removed {
                Ok(()) => gone.extend(removal.names.iter().cloned()),
                Err(error) => outcome = Err(error),
            }
        }
        report.images.push(RemovedImage { image: image.clone(), outcome });
    }
    // It says that the directory is being filled, which keeps `prune` away.
    drop(remover);
    if let (TreeSpec::Directory(root), true, false) =
        (&request.from, request.prune, report.has_failures() || request.dry_run)
    {
        report.pruned = super::prune(root, false)?;
    }
    Ok(report)
}
