//! The mounted namespace: an images_dir, together with all that a pull would write into it.
//!
//! [`Namespace`] is what a front end serves. [`View`] is the one of a mount. It joins parts that know
//! nothing of each other's files:
//!
//! - `Repositories`: blobs, manifests and maps of tags, those of the images_dir and those that a pull
//!   would write, in directories that are known by their paths;
//! - `Inside`, below `.imgfs`: what is inside images.
//!
//! [`Writable`] is a [`View`] that can be written to: above what the view shows lie the files that are being
//! written, until they are published.
//!
//! `Inodes` says which of them an inode belongs to, and how often the kernel has been told of it. Another
//! part (files that are being written, for example) is one more kind of inodes, and one more arm where
//! [`View`] decides; or it is a [`Namespace`] of its own over a [`View`].
//!
//! Of the images_dir, blobs, manifests and maps of tags are shown, as they are, and with no more permissions
//! than they have there; symbolic links and other files are not. Above it lies the catalogue: manifests, tags and
//! blobs of images that have been declared or looked up, and that are not in the directory. What a
//! path can be is known by its form (`names.rs`), so that only names that a registry may have are
//! asked for, and nothing that is merely listed touches the network.
//!
//! Plain values in and out: no kernel is needed. Questions that may have to wait are answered in two
//! steps. [`Namespace::lookup`] answers at once, or says what has to be found out; [`Namespace::find_out`]
//! does that, and may take its time. The same for [`Namespace::open`] and for reading.

mod counts;
mod handle;
mod inodes;
mod inside;
mod listing;
mod names;
mod repositories;
mod served;
mod subject;
#[cfg(test)]
mod tests;
mod values;
mod view;
mod writable;
mod writing;

use std::{fs::Metadata, io, os::unix::fs::MetadataExt, time::Duration};

pub use handle::Handle;
pub use inodes::ROOT;
pub use listing::Listing;
pub use served::Namespace;
pub use subject::Subject;
pub use values::{
    Attributes, Entry, Found, InsideAttributes, LocalAccess, Question, Refusal, Space, ViewError,
    Xattrs,
};
pub use view::View;
pub use writable::{PendingHandle, Writable};
pub use writing::{Caller, Changes, FreeSpace, Keeping, Upstream, Writing};

use crate::{
    backend::{SymlinkRefused, registry::RegistryPattern},
    image::Platform,
    rootfs::Profiles,
    transfer::Options,
    util::Budget,
};

/// How long the kernel may keep what cannot change: what is named by its digest.
const FOR_GOOD: Duration = Duration::from_secs(24 * 3600);

/// The longest name of a file in bytes, as everywhere in Linux.
const MAX_NAME_BYTES: usize = 255;

/// How long it may keep that something is not there.
const ABSENT: Duration = Duration::from_secs(2);

/// How a view behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which platforms of an image are shown, and so on, as for a pull.
    pub options: Options,
    /// After this time a tag is looked up again.
    pub tag_ttl: Duration,
    /// The platform that is shown where only one can be.
    pub platform: Platform,
    /// A layer of which nothing comes for so long is given up.
    pub patience: Duration,
    /// Whether nothing inside a layer is shown before all of the layer has been verified.
    pub verify_first: bool,
    /// The memory that all of it may take.
    pub budget: Budget,
    /// What is done with start-up profiles of images.
    pub profiles: Profiles,
    /// Repositories of which indexes that are attached to images are used.
    pub trusted_indexes: Vec<RegistryPattern>,
}

/// The path of `name` in the directory `above`.
fn below(above: &str, name: &str) -> String {
    if above.is_empty() {
        return name.to_owned();
    }
    let mut path = String::with_capacity(above.len() + 1 + name.len());
    path.extend([above, "/", name]);
    path
}

/// Whether `error` says that nothing is there that is shown: links are not.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || SymlinkRefused::is_cause_of(error)
}

fn mtime_of(meta: &Metadata) -> (i64, u32) {
    // Nanoseconds are below 10^9.
    (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0))
}
