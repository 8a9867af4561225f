//! What a front end needs to write into a namespace.

use std::{ffi::OsStr, sync::Arc};

use async_trait::async_trait;

use super::{Entry, Found, Handle, ViewError};
use crate::{
    backend::{self, Backend, Removal},
    image::Reference,
};

type Result<T> = std::result::Result<T, ViewError>;

/// Who asks for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The number of the thread; 0 if nobody knows.
    pub thread: u32,
}

/// What is to be changed of the attributes of a file or directory. Owners and permissions cannot be: they stay
/// what a pull gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The size in bytes.
    pub size: Option<u64>,
    /// The time of modification, in seconds and nanoseconds since 1970.
    pub mtime: Option<(i64, u32)>,
}

/// What the file system that is written to has, as statvfs(3) tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeSpace {
    /// The size of a block in bytes.
    pub block_bytes: u64,
    /// All blocks.
    pub blocks: u64,
    /// Blocks that are free.
    pub free: u64,
    /// Blocks that are free for everybody.
    pub available: u64,
    /// All inodes.
    pub files: u64,
    /// Inodes that are free.
    pub free_files: u64,
}

/// Files that are written, renamed and removed by name. Inodes are those of [`super::Namespace`].
///
/// Functions that are not asynchronous may wait for the disk, and are to be called where that holds up nobody
/// else; all of them in a runtime.
#[async_trait]
pub trait Writing: Send + Sync + 'static {
    /// As [`super::Namespace::lookup`], for `caller`: whoever has just begun to replace a file finds the new one
    /// under its name, and all others the old one. It waits for nothing.
    fn lookup_for(&self, parent: u64, name: &OsStr, caller: Caller) -> Result<Found>;

    /// Creates a file and opens it for writing; if `exclusive`, there must be none of that name.
    fn create(
        &self,
        parent: u64,
        name: &OsStr,
        exclusive: bool,
        caller: Caller,
    ) -> Result<(Entry, Handle)>;

    /// Opens a file for writing. [`ViewError::Stale`] if that begins a new file of the same name, which is then to
    /// be looked up and opened.
    fn open_to_write(&self, ino: u64, caller: Caller) -> Result<Handle>;

    /// Changes attributes.
    fn change(&self, ino: u64, changes: Changes) -> Result<Entry>;

    /// A descriptor of an open file is closed. What has been written is published if it is whole and right, and
    /// nobody else writes to the file.
    async fn flush(&self, handle: &Handle, caller: Caller) -> Result<()>;

    /// The last descriptor of an open file has been closed.
    async fn release(&self, handle: &Handle);

    /// Creates a directory.
    fn make_directory(&self, parent: u64, name: &OsStr) -> Result<Entry>;

    /// Removes a directory, which has to be empty.
    fn remove_directory(&self, parent: u64, name: &OsStr) -> Result<()>;

    /// Removes a file.
    async fn unlink(&self, parent: u64, name: &OsStr) -> Result<()>;

    /// Renames a file, replacing what is there if `replace`.
    async fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> Result<()>;

    /// Gives the content of a file another name.
    async fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Entry>;

    /// Makes what is published durable.
    fn sync(&self) -> Result<()>;

    /// What there is of space.
    fn free_space(&self) -> Result<FreeSpace>;

    /// Looks once more whether what waits lacks nothing any more, as others may have brought it. It takes some seconds
    /// at most.
    async fn look_again(&self);

    /// How many manifests wait for what they name, and names whose last content was refused.
    fn waiting(&self) -> usize;

    /// Nobody writes any more: removes what has not become whole, and what has been pushed and is not to be kept. Whole
    /// manifests go on to wait.
    fn end(&self);

    /// Refuses what can be created nowhere, such as symbolic links.
    fn refuse(&self, parent: u64, name: &OsStr, what: &str) -> ViewError;
}

/// Whether what has been pushed stays in the images_dir.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// It stays.
    Keep,
    /// What nothing else there needs goes.
    Drop,
}

/// The registries that what is written goes through to.
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// Pushes `image` and all that it needs from `source`, the name of it last.
    async fn push(&self, source: Arc<dyn Backend>, image: &Reference) -> backend::Result<()>;

    /// Whether manifests have names there that are known by their digests alone.
    fn takes_digests(&self) -> bool;

    /// Whether a tag that is removed goes there, too.
    fn deletes(&self) -> bool;

    /// What `image` is called there.
    fn target(&self, image: &Reference) -> backend::Result<Reference>;

    /// What goes there when a tag is removed, first the tag as it is called there. [`backend::Kind::NotFound`] if it
    /// is not there; [`backend::Kind::Unfit`] if something else would not be whole without it.
    async fn removal(&self, tag: &Reference) -> backend::Result<Removal>;

    /// Removes it.
    async fn delete(&self, removal: &Removal) -> backend::Result<()>;

    /// What becomes of what has been pushed.
    fn keeping(&self) -> Keeping;
}
