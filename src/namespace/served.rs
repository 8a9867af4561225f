//! What a front end serves as a file system, whatever it is made of.

use std::ffi::OsStr;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Entry, Found, Handle, Listing, Question, Space, Subject, View, ViewError, Xattrs};

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
}

#[async_trait]
impl Namespace for View {
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found> {
        self.lookup(parent, name)
    }

    async fn find_out(&self, question: &Question) -> Result<Found> {
        self.find_out(question).await
    }

    fn forget(&self, ino: u64, times: u64) {
        self.forget(ino, times);
    }

    fn attributes_now(&self, ino: u64) -> Result<Option<Entry>> {
        self.attributes_now(ino)
    }

    async fn attributes(&self, ino: u64) -> Result<Entry> {
        self.attributes(ino).await
    }

    fn link_target_now(&self, ino: u64) -> Result<Option<Bytes>> {
        self.link_target_now(ino)
    }

    async fn link_target(&self, ino: u64) -> Result<Bytes> {
        self.link_target(ino).await
    }

    fn xattrs_now(&self, ino: u64) -> Result<Option<Xattrs>> {
        self.xattrs_now(ino)
    }

    async fn xattrs(&self, ino: u64) -> Result<Xattrs> {
        self.xattrs(ino).await
    }

    fn open_now(&self, ino: u64) -> Result<Option<Handle>> {
        self.open_now(ino)
    }

    async fn open(&self, ino: u64) -> Result<Handle> {
        self.open(ino).await
    }

    fn is_in_memory(&self, ino: u64) -> bool {
        self.is_in_memory(ino)
    }

    fn is_as_listed(&self, ino: u64) -> bool {
        self.is_as_listed(ino)
    }

    fn list_now(&self, ino: u64) -> Result<Option<Listing>> {
        self.list_now(ino)
    }

    async fn list(&self, ino: u64) -> Result<Listing> {
        self.list(ino).await
    }

    fn listed(&self, listing: &Listing, at: usize) -> Result<Option<Entry>> {
        self.listed(listing, at)
    }

    fn number_of(&self, listing: &Listing, at: usize) -> u64 {
        self.number_of(listing, at)
    }

    fn space(&self) -> Space {
        self.space()
    }

    fn is_fixed(&self) -> bool {
        self.is_fixed()
    }

    fn opens_every_file(&self) -> bool {
        self.opens_every_file()
    }

    fn subject(&self, ino: u64) -> Subject {
        self.subject(ino)
    }

    fn subject_of_name(&self, parent: u64, name: &OsStr) -> Subject {
        self.subject_of_name(parent, name)
    }
}
