//! Why something that was asked for could not be done.

use std::{io, path::PathBuf};

use super::{RouteError, TreeSpec};
use crate::{backend, image::ReferenceError, namespace::ViewError, rootfs::PathError};

/// Shorthand for results of this floor.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that ends what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A backend has failed.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// An image has no name at the source or at the target.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A name is not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Source and target are the same directory, and names are to stay what they are.
    #[error("source and target are the same directory, {}", .0.display())]
    SameDirectory(PathBuf),
    /// Nothing says which images of a registry are meant.
    #[error(
        "{0}: all images of a registry cannot be listed; name the images, or a repository (registry://HOST/PATH)"
    )]
    Unlistable(TreeSpec),
    /// The platform of this machine is none that images can be for.
    #[error("{0}; give --platform")]
    Platform(String),
    /// What is asked for cannot be done in the place.
    #[error("{place}: {reason}")]
    NotThere {
        /// The place.
        place: String,
        /// What cannot be done, and where it can.
        reason: String,
    },
    /// Some images of the place have no name that says which repository they are in.
    #[error("{place}: {} no full name: {}", if .images.len() == 1 { "an image has" } else { "images have" }, listed(.images))]
    Nameless {
        /// The place.
        place: String,
        /// What the place calls them, or their digests.
        images: Vec<String>,
    },
    /// The place takes one image only.
    #[error("{place}: it takes one image, and {images} are to be written")]
    OneImage {
        /// The place.
        place: String,
        /// How many there are.
        images: usize,
    },
    /// The one image that was asked for cannot be had.
    #[error(transparent)]
    Image(backend::Error),
    /// The one image that a mount is to show cannot be shown.
    #[error(transparent)]
    Only(ViewError),
    /// The image is not for the platform that is wanted.
    #[error("{image} is not for {wanted}")]
    NotForPlatform {
        /// The image, as it was named.
        image: String,
        /// The platform that is wanted.
        wanted: String,
        /// What the image is for.
        platforms: Vec<String>,
    },
    /// The image has nothing for a platform that its index lists.
    #[error("{image} has no {platform}")]
    NoVariant {
        /// The image, as it was named.
        image: String,
        /// The platform.
        platform: String,
    },
    /// The path leads nowhere in the image.
    #[error(transparent)]
    Path(PathError),
    /// The path is not that of a regular file.
    #[error("it is {0}")]
    NotAFile(&'static str),
    /// Not all files of the image can be told.
    #[error("{image}: what is in it cannot be told in full, since a layer is damaged: {damage}")]
    Incomplete {
        /// The image, as it was named.
        image: String,
        /// What is wrong with it.
        damage: backend::Error,
    },
    /// No package manager has noted anything.
    #[error(
        "{0}: there is no database of packages that imgfs knows: neither dpkg's, nor apk's, nor rpm's"
    )]
    NoPackages(String),
    /// A database of rpm cannot be read.
    #[error("{image}: rpm's database {path} cannot be read: {reason}")]
    RpmDatabase {
        /// The image, as it was named.
        image: String,
        /// Where the database is.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file has been read, but a layer above its own is damaged and may have had another one in its place.
    #[error("the image may have another file here: {0}")]
    Doubtful(backend::Error),
    /// A place for temporary files cannot be made.
    #[error("{}: {error}", .path.display())]
    Scratch {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What was read could not be passed on.
    #[error(transparent)]
    Output(io::Error),
}

/// The first few of them.
fn listed(all: &[String]) -> String {
    let more = if all.len() > 4 { format!(" and {} more", all.len() - 4) } else { String::new() };
    all.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ") + &more
}

impl Error {
    /// Whether it is about the image that was asked for, and not about how that was done.
    pub fn is_of_image(&self) -> bool {
        matches!(
            self,
            Self::Image(_)
                | Self::Only(_)
                | Self::NotForPlatform { .. }
                | Self::Path(_)
                | Self::Incomplete { .. }
                | Self::NoPackages(_)
                | Self::RpmDatabase { .. }
        )
    }

    /// What the user can do about it, if there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Backend(error) | Self::Image(error) => error.hint().map(str::to_owned),
            Self::Unlistable(TreeSpec::Registry { prefix }) if prefix.is_empty() => {
                Some("name one: registry://HOST".to_owned())
            }
            Self::Nameless { .. } => Some(
                "say in which repository they are: --name REPOSITORY (with :TAG for one image)"
                    .to_owned(),
            ),
            Self::OneImage { .. } => {
                Some("name one image, or leave out the name at the end of the place".to_owned())
            }
            Self::RpmDatabase { image, path, .. } => Some(format!(
                "`imgfs cat {image} {path} > FILE` brings the database out for rpm itself: rpm --dbpath DIRECTORY -qa"
            )),
            Self::NotForPlatform { platforms, .. } => {
                Some(format!("give --platform; it is for {}", platforms.join(", ")))
            }
            _ => None,
        }
    }
}
