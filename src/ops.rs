//! What imgfs does, one function a verb: a request goes in, and a report comes out.
//!
//! | verb | function |
//! |---|---|
//! | pull, push, copy | [`transfer`], or [`Transfer::prepare`] and [`Transfer::run`] |
//! | list what a directory has | [`list`] |
//! | list what a registry has | [`list_registry`] |
//! | check a directory, and mend it | [`verify`], [`repair`] |
//! | remove what no image needs | [`prune`] |
//! | look into images | [`Opener`] |
//! | tell what an image is | [`inspect`], [`digest`] |
//! | compare images | [`diff`], [`package_diff`] |
//! | tell what layers take | [`usage`] |
//! | remove images by their names | [`remove`] |
//! | show images as a file system | [`namespace`], which `fuse::mount` then mounts |
//!
//! Nothing here prints, ends the process, or starts a runtime: functions that may ask a registry are
//! asynchronous, and what happens on the way is reported to an [`Observer`]. The `imgfs` command, the
//! tests and other programs all call these functions.

mod check;
mod diff;
mod error;
mod index_cache;
mod inspect;
mod listing;
mod mount;
mod open;
mod remove;
mod request;
mod route;
mod through;
mod transfer;
mod usage;

pub use crate::rootfs::IndexCache;
pub use check::{ListRequest, Listing, list, prune, registries_of, repair, verify};
pub use diff::{
    Aspect, Change, DiffReport, DiffRequest, FileChange, FileState, LayerTally, PackageChange,
    PackageDiff, Side, Tally, diff, package_diff,
};
pub use error::{Error, Result};
pub use index_cache::user_index_cache;
pub use inspect::{Child, Inspection, LayerReport, Selected, Step, digest, inspect};
pub use listing::{RegistryListRequest, RegistryListing, RepositoryListing, list_registry};
pub use mount::{NamespaceRequest, Shown, Write, namespace};
pub use open::{
    FileEntry, FileListing, NamedImage, OpenImage, OpenOptions, Opener, Scratch, this_machine,
    type_name,
};
pub use remove::{RemoveReport, RemoveRequest, RemovedImage, remove};
pub(crate) use request::split_scheme;
pub use request::{Images, Request, TreeSpec, TreeSpecError, bare_name};
pub use route::{RouteError, with_image};
pub use through::Through;
pub use transfer::{
    Ending, NothingToDo, Observer, Project, Traffic, Transfer, TransferOptions, TransferReport,
    transfer,
};
pub use usage::{Amount, HiddenFile, ImageUsage, LayerUsage, Usage, usage};
