//! What imgfs does, one function a verb: a request goes in, and a report comes out.
//!
//! | verb | function |
//! |---|---|
//! | pull, push, copy | [`transfer`], or [`Transfer::prepare`] and [`Transfer::run`] |
//! | list what a directory has | [`list`] |
//! | check a directory, and mend it | [`verify`], [`repair`] |
//! | remove what no image needs | [`prune`] |
//! | remove images by their names | [`remove`] |
//! | look into an image | [`OpenImage`] |
//! | show images as a file system | [`namespace`], which `fuse::mount` then mounts |
//!
//! Nothing here prints, ends the process, or starts a runtime: functions that may ask a registry are
//! asynchronous, and what happens on the way is reported to an [`Observer`]. The `imgfs` command, the
//! tests and other programs all call these functions.

mod check;
mod error;
mod mount;
mod open;
mod remove;
mod request;
mod route;
mod transfer;

pub use check::{ListRequest, Listing, list, prune, registries_of, repair, verify};
pub use error::{Error, Result};
pub use mount::{NamespaceRequest, Shown, namespace};
pub use open::{FileEntry, OpenImage, OpenRequest, Scratch, this_machine};
pub use remove::{RemoveReport, RemoveRequest, RemovedImage, remove};
pub(crate) use request::split_scheme;
pub use request::{Images, Request, TreeSpec, TreeSpecError, bare_name};
pub use route::{RouteError, with_image};
pub use transfer::{
    Ending, NothingToDo, Observer, Project, Traffic, Transfer, TransferOptions, TransferReport,
    transfer,
};
