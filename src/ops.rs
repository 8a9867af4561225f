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
//! | carry profiles and indexes of layers to other machines | [`Opener`] |
//! | remove images by their names | [`remove`] |
//! | serve an additional image store from a mount | [`StoreDaemon`] |
//! | show images as a file system | [`namespace`], which `fuse::mount` then mounts |
//!
//! Nothing here prints, ends the process, or starts a runtime: functions that may ask a registry are
//! asynchronous, and what happens on the way is reported to an [`Observer`]. The `imgfs` command, the
//! tests and other programs all call these functions.

mod artifact;
mod check;
mod diff;
mod error;
mod index_cache;
mod index_layers;
mod indexes;
mod inspect;
mod listing;
mod medium;
mod mount;
mod open;
mod place;
mod profiles;
mod remove;
mod request;
mod route;
mod store;
mod survey;
mod through;
mod transfer;
mod usage;

pub use crate::rootfs::{
    IndexCache, LayerState, MadeBy, Profiles, Pulled, PulledIndex, StoredIndex,
};
pub use check::{ListRequest, Listing, list, prune, registries_of, repair, verify};
#[cfg(feature = "fuzzing")]
pub use diff::fuzzing;
pub use diff::{
    Aspect, Change, DiffReport, DiffRequest, FileChange, FileState, LayerTally, PackageChange,
    PackageDiff, Side, Tally, diff, package_diff,
};
pub use error::{Error, Result};
pub use index_cache::user_index_cache;
pub use index_layers::IndexedLayers;
pub use indexes::PushedIndexes;
pub use inspect::{Child, Inspection, LayerReport, Selected, Step, digest, inspect};
pub use listing::{RegistryListRequest, RegistryListing, RepositoryListing, list_registry};
pub use medium::{Source, ends_as_archive};
pub use mount::{NamespaceRequest, Shown, Write, namespace, namespace_of};
pub use open::{
    FileEntry, FileListing, NamedImage, OpenImage, OpenOptions, Opener, Scratch, this_machine,
    type_name,
};
pub use place::{ArchiveFormat, Medium, Store};
pub use profiles::{AttachReport, AttachTo};
pub use remove::{RemoveReport, RemoveRequest, RemovedImage, remove};
pub(crate) use request::split_scheme;
pub use request::{Images, Request, TreeSpec, TreeSpecError, bare_name};
pub use route::{RouteError, with_image};
pub use store::{StoreDaemon, StoreOptions};
pub use survey::{PlaceImage, list_place, verify_place};
pub use through::Through;
pub use transfer::{
    Ending, NothingToDo, Observer, Project, Traffic, Transfer, TransferOptions, TransferReport,
    transfer,
};
pub use usage::{Amount, HiddenFile, ImageUsage, LayerUsage, Usage, usage};
