//! The engine: from any tree to any other.
//!
//! [`copy`] does all of this:
//!
//! 1. [`plan`] resolves every image and finds out what its graph consists of and what of that the
//!    target has. A [`Plan`] is a value that can be printed.
//! 2. [`execute`] moves each missing blob once, however many images share it, the largest first,
//!    several at a time; and publishes each image as soon as its last blob has come: blobs, then
//!    children, then the root, then the tag.
//! 3. The [`Report`] says what became of each image. One image's failure stops no other.

mod attach;
mod blobs;
mod copy;
mod execute;
mod graph;
mod plan;
mod repair;

mod report;

pub use copy::copy;
pub use execute::execute;
pub use plan::{BlobPlan, ImagePlan, Plan, PlannedManifest, plan};
pub use repair::repair;

pub use report::{Event, ImageReport, Observer, Report, Status};

use crate::image::PlatformFilter;

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
