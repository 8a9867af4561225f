//! Opening places that are neither directories of images nor registries.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use super::{ArchiveFormat, Error, Medium, NamedImage, Request, Result, TreeSpec};
use crate::{
    backend::{
        Backend, ListedImage, Lister, Listing, NameBelow, Sink,
        images_dir::Linking,
        oci_layout::{self, OciLayout},
    },
    image::{Reference, ReferenceError},
    transfer::Route,
};

/// Images that a place has, to be read.
#[derive(Clone)]
pub struct Source {
    lister: Arc<dyn Lister>,
    listing: Listing,
    place: String,
}

impl TreeSpec {
    /// The medium that is meant, if it is one. A file that is named where a directory could be is an archive.
    pub fn medium(&self) -> Option<Medium> {
        match self {
            Self::Medium(medium) => Some(medium.clone()),
            Self::Directory(path) if path.is_file() => {
                Some(Medium::Archive { format: ArchiveFormat::Oci, file: path.clone(), name: None })
            }
            Self::Directory(_) | Self::Registry { .. } => None,
        }
    }
}

impl Source {
    /// Opens `medium`, and finds out which images it has: all, or the one that it names. Those that are not named
    /// in full there are named below `below`.
    pub async fn open(medium: &Medium, below: Option<&NameBelow>) -> Result<Self> {
        let place = medium.to_string();
        let lister: Arc<dyn Lister> = match medium {
            Medium::OciLayout { dir, name } => {
                Arc::new(oci_layout::open(dir, name.as_deref(), below).await?)
            }
            _ => return Err(Error::Unreadable(place)),
        };
        let listing = lister.images().await?;
        Ok(Self { lister, listing, place })
    }

    /// What can be read from it.
    pub fn backend(&self) -> Arc<dyn Backend> {
        self.lister.clone()
    }

    /// Its images.
    pub fn images(&self) -> &[ListedImage] {
        &self.listing.images
    }

    /// What the user should know of it.
    pub fn warnings(&self) -> &[String] {
        &self.listing.warnings
    }

    /// The names of its images, without those that belong to others. An error if some have none.
    pub(super) fn names(&self) -> Result<Vec<Reference>> {
        let images = self.listing.images.iter().filter(|image| !image.is_attachment);
        let mut names = Vec::new();
        let mut nameless = Vec::new();
        for image in images {
            match &image.name {
                Some(name) => names.push(name.clone()),
                None => nameless.push(shown(image)),
            }
        }
        match nameless.is_empty() {
            true => Ok(names),
            false => Err(Error::Nameless { place: self.place.clone(), images: nameless }),
        }
    }

    /// The image that `text` means: as the place calls it, by its digest, or by its name.
    pub fn image(&self, text: &str) -> std::result::Result<NamedImage, ReferenceError> {
        let is_it = |image: &&ListedImage| {
            image.label.as_deref() == Some(text) || image.manifest.digest.to_string() == text
        };
        let named: NamedImage = text.parse()?;
        Ok(match self.listing.images.iter().find(is_it) {
            Some(image) => {
                let repository = named.reference.repository();
                NamedImage { reference: repository.pinned(image.manifest.digest), ..named }
            }
            None => named,
        })
    }

    /// The place.
    pub fn place(&self) -> &str {
        &self.place
    }
}

/// What to call an image that has no name.
fn shown(image: &ListedImage) -> String {
    image.label.clone().unwrap_or_else(|| image.manifest.digest.short())
}

/// Opens `medium` to be written with what `routes` say. With `dry_run` nothing is created.
pub(super) fn open_sink(
    medium: &Medium,
    routes: &[Route],
    linking: Linking,
    dry_run: bool,
) -> Result<Arc<dyn Sink>> {
    let targets: BTreeSet<&Reference> = routes.iter().map(|route| &route.to).collect();
    if medium.holds_one_image() && targets.len() > 1 {
        return Err(Error::OneImage { place: medium.to_string(), images: targets.len() });
    }
    match medium {
        Medium::OciLayout { dir, name } => Ok(Arc::new(match dry_run {
            true => OciLayout::look(dir, name.as_deref())?,
            false => OciLayout::create(dir, name.as_deref(), linking)?,
        })),
        _ => Err(Error::Unwritable(medium.to_string())),
    }
}

/// Refuses what would be read and written at once.
pub(super) fn check_apart(request: &Request) -> Result<()> {
    let path = |spec: &TreeSpec| match spec.medium() {
        Some(
            Medium::OciLayout { dir: path, .. }
            | Medium::SkopeoDir(path)
            | Medium::Archive { file: path, .. },
        ) => Some(path),
        _ => None,
    };
    let (Some(from), Some(to)) = (path(&request.from), path(&request.to)) else { return Ok(()) };
    let is_same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    match is_same(&from, &to) && !matches!(request.to.medium(), Some(Medium::OciLayout { .. })) {
        true => Err(Error::SameDirectory(to)),
        false => Ok(()),
    }
}
