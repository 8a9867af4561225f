//! What a front end serves as a file system, whatever it is made of.

use std::ffi::OsStr;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Entry, Found, Handle, Listing, Question, Space, Subject, ViewError, Writing, Xattrs};

type Result<T> = std::result::Result<T, ViewError>;

/// Files and directories by their inodes, as plain values. `fuse` knows no more of what it serves than this.
///
/// What takes no time is answered at once. A function that ends in `_now` returns `None` where it would have to
/// wait; its asynchronous counterpart waits. Inodes that the kernel has been told of stay known until they have
/// been forgotten as often ([`Namespace::forget`]). [`ViewError::Stale`] is the answer for others.
#[async_trait]
pub trait Namespace: Send + Sync + 'static {
    /// What `name` in the directory `parent` leads to. [`Found::Entry`] tells the kernel of it once more.
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found>;

    /// Finds out what [`Found::Ask`] needs, and answers the lookup.
    async fn find_out(&self, question: &Question) -> Result<Found>;

    /// The kernel forgets so many times that it was told of `ino`.
    fn forget(&self, ino: u64, times: u64);

    /// What an inode looks like, if that can be told now.
    fn attributes_now(&self, ino: u64) -> Result<Option<Entry>>;

    /// What an inode looks like.
    async fn attributes(&self, ino: u64) -> Result<Entry>;

    /// Where a symbolic link leads, if that can be told now.
    fn link_target_now(&self, ino: u64) -> Result<Option<Bytes>>;

    /// Where a symbolic link leads.
    async fn link_target(&self, ino: u64) -> Result<Bytes>;

    /// Extended attributes, names and values, if they can be told now.
    fn xattrs_now(&self, ino: u64) -> Result<Option<Xattrs>>;

    /// Extended attributes, names and values.
    async fn xattrs(&self, ino: u64) -> Result<Xattrs>;

    /// Opens a file, if that takes no time.
    fn open_now(&self, ino: u64) -> Result<Option<Handle>>;

    /// Opens a file.
    async fn open(&self, ino: u64) -> Result<Handle>;

    /// Whether listing the directory `ino` needs no disk.
    fn is_in_memory(&self, ino: u64) -> bool;

    /// Whether the directory `ino` is known to be what it was when it was listed last.
    fn is_as_listed(&self, ino: u64) -> bool;

    /// Lists a directory, if that takes no time but the disk's.
    fn list_now(&self, ino: u64) -> Result<Option<Listing>>;

    /// Lists a directory.
    async fn list(&self, ino: u64) -> Result<Listing>;

    /// What the entry `at` of a listing is; `None` if it has gone. It tells the kernel of it once more.
    fn listed(&self, listing: &Listing, at: usize) -> Result<Option<Entry>>;

    /// The number of the entry `at` of a listing, of which the kernel is told no more.
    fn number_of(&self, listing: &Listing, at: usize) -> u64;

    /// What `statfs` tells.
    fn space(&self) -> Space;

    /// Whether nothing that is shown can change any more.
    fn is_fixed(&self) -> bool;

    /// Whether all that is shown is fixed and every file of it can be opened.
    fn opens_every_file(&self) -> bool;

    /// What an inode belongs to, for logs.
    fn subject(&self, ino: u64) -> Subject;

    /// What `name` in the directory `parent` belongs to, for logs.
    fn subject_of_name(&self, parent: u64, name: &OsStr) -> Subject;

    /// What writes, if it can be written to.
    fn writing(&self) -> Option<&dyn Writing> {
        None
    }
}
