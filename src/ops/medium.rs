//! Opening places that are neither directories of images nor registries.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use tokio::sync::OnceCell;

use super::{ArchiveFormat, Error, Medium, NamedImage, Request, Result, TransferOptions, TreeSpec};
use crate::{
    backend::{
        Backend, ListedImage, Lister, Listing, NameBelow, Packer, Sink, Unwritten,
        archive::{self, ArchivePacker},
        docker_daemon::{self, DaemonPacker},
        object_store::{ObjectTree, Use, Writers},
        oci_layout::{self, OciLayout},
        skopeo_dir::{self, SkopeoDirPacker},
    },
    image::{Reference, ReferenceError},
    transfer::Route,
};

/// Images that a place has, to be read.
#[derive(Clone)]
pub struct Source {
    lister: Arc<dyn Lister>,
    listing: Arc<OnceCell<Listing>>,
    place: String,
}

/// Endings of archives, by which a file is told from a directory, or from a part of an image's name.
const ARCHIVE_ENDINGS: [&str; 5] = [".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.zstd"];

/// Whether a path is called as archives are. One with a `/` at its end is a directory.
///
/// ```
/// assert!(imgfs::ops::ends_as_archive("images.tar.gz".as_ref()));
/// assert!(!imgfs::ops::ends_as_archive("images.tar/".as_ref()));
/// ```
pub fn ends_as_archive(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    ARCHIVE_ENDINGS.iter().any(|ending| text.ends_with(ending.as_bytes()))
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
            Medium::Archive { file, name, .. } => {
                let kept = super::index_cache::user_dir().map(|dir| dir.join("archives"));
                Arc::new(archive::open(file, name.as_deref(), below, kept).await?)
            }
            Medium::SkopeoDir(dir) => Arc::new(skopeo_dir::open(dir, below).await?),
            Medium::DockerDaemon { name } => {
                Arc::new(docker_daemon::open(name.as_deref(), below).await?)
            }
            Medium::ObjectStore { store, bucket, prefix } => {
                Arc::new(ObjectTree::open(*store, bucket, prefix, Writers::Many, Use::Run)?)
            }
        };
        let source = Self { lister, listing: Arc::default(), place };
        // What is asked over a network is asked for when it is needed.
        if !source.lister.capabilities().has_round_trips {
            source.listing().await?;
        }
        Ok(source)
    }

    /// What can be read from it.
    pub fn backend(&self) -> Arc<dyn Backend> {
        self.lister.clone()
    }

    async fn listing(&self) -> Result<&Listing> {
        Ok(self.listing.get_or_try_init(|| self.lister.images()).await?)
    }

    /// Its images. An object store is asked for them now, if it has not been asked before.
    pub async fn images(&self) -> Result<&[ListedImage]> {
        Ok(&self.listing().await?.images)
    }

    /// What the user should know of it, as far as it is known by now.
    pub fn warnings(&self) -> Vec<String> {
        self.listing.get().map(|listing| listing.warnings.clone()).unwrap_or_default()
    }

    /// The names of its images, without those that belong to others. An error if some have none.
    pub async fn names(&self) -> Result<Vec<Reference>> {
        let images = self.images().await?.iter().filter(|image| !image.is_attachment);
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
            [&image.label, &image.other_label].iter().any(|label| label.as_deref() == Some(text))
                || image.manifest.digest.to_string() == text
        };
        let named: NamedImage = text.parse()?;
        let listed = self.listing.get().and_then(|listing| listing.images.iter().find(is_it));
        Ok(match listed {
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

/// What images are written into.
pub(super) enum Target {
    /// Something that takes objects in any order.
    Sink(Arc<dyn Sink>),
    /// Something that takes them one after another.
    Packer(Box<dyn Packer>),
}

/// Opens `medium` to be written with what `routes` say. With `dry_run` nothing is created. What is packed is
/// replaced at once, so everything else that can be wrong has to be found out before.
pub(super) fn open_target(
    medium: &Medium,
    routes: &[Route],
    options: TransferOptions,
) -> Result<Target> {
    let TransferOptions { linking, dry_run, .. } = options;
    let targets: BTreeSet<&Reference> = routes.iter().map(|route| &route.to).collect();
    if medium.holds_one_image() && targets.len() > 1 {
        return Err(Error::OneImage { place: medium.to_string(), images: targets.len() });
    }
    if medium.is_packed() && options.shard.is_some() && !dry_run {
        let reason = "several workers cannot fill it together (--shard)".to_owned();
        return Err(Error::NotThere { place: medium.to_string(), reason });
    }
    match medium {
        Medium::OciLayout { dir, name } => Ok(Target::Sink(Arc::new(match dry_run {
            true => OciLayout::look(dir, name.as_deref())?,
            false => OciLayout::create(dir, name.as_deref(), linking)?,
        }))),
        // Whatever is there is replaced.
        _ if medium.is_packed() && dry_run => {
            Ok(Target::Sink(Arc::new(Unwritten::new(medium.to_string()))))
        }
        Medium::Archive { format, file, name } => {
            Ok(Target::Packer(Box::new(ArchivePacker::create(file, *format, name.as_deref())?)))
        }
        Medium::SkopeoDir(dir) => Ok(Target::Packer(Box::new(SkopeoDirPacker::create(dir)?))),
        Medium::DockerDaemon { name } => {
            Ok(Target::Packer(Box::new(DaemonPacker::begin(name.as_deref())?)))
        }
        Medium::ObjectStore { store, bucket, prefix } => {
            let writers = match options.single_writer {
                true => Writers::One,
                false => Writers::Many,
            };
            let tree = ObjectTree::open(*store, bucket, prefix, writers, Use::Run)?;
            Ok(Target::Sink(Arc::new(tree)))
        }
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
