//! The engine: from any tree to any other.
//!
//! [`copy`] does all of this:
//!
//! 1. [`plan`] resolves every image and finds out what its graph consists of and what of that the
//!    target has. A [`Plan`] is a value that can be printed.
//! 2. [`execute`] moves each missing blob once, however many images share it, the largest first,
//!    several at a time; and publishes each image as soon as its last blob has come: blobs, then
//!    children, then the root, then the tag. In a registry, a blob that has been moved into one
//!    repository is mounted into the others.
//! 3. The [`Report`] says what became of each image. One image's failure stops no other.

mod attach;
mod content;
mod copy;
mod execute;
mod graph;
mod pack;
mod plan;
mod publish;
mod repair;

mod report;

pub use copy::copy;
pub use execute::execute;
pub use pack::pack;
pub use plan::{BlobPlan, BlobTarget, ImagePlan, Plan, PlannedManifest, plan};
pub use repair::repair;

pub use report::{Event, ImageReport, Observer, Passing, Report, Status};

use crate::image::{PlatformFilter, Reference};

/// An image's name at the source and at the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// What it is called at the source.
    pub from: Reference,
    /// What it is to be called at the target. A digest here says that it is wanted under its
    /// digest, whatever that is after a platform filter.
    pub to: Reference,
}

impl From<Reference> for Route {
    /// The same name on both sides.
    fn from(image: Reference) -> Self {
        Self { to: image.clone(), from: image }
    }
}

/// What is wanted of the images.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which platforms.
    pub platforms: PlatformFilter,
    /// What to do where an image lacks one of them.
    pub policy: Policy,
    /// What to do with an index of which only some children are wanted.
    pub index: IndexMode,
    /// Whether to carry signatures and other things that are attached to the images.
    pub attachments: bool,
    /// Ask a registry for each part of an image, too, if it has the image by its name: it may have lost some.
    pub recheck: bool,
}

/// What to do where an image lacks a requested platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The image fails.
    #[default]
    Strict,
    /// The report has a warning, and what there is of the image is copied.
    Warn,
}

/// What to do with an index of which only some children are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexMode {
    /// Write a new index with just those; its digest is a new one.
    #[default]
    Rewrite,
    /// Keep the index with its digest, and leave the other children out.
    Keep,
}
