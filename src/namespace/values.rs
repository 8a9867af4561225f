//! What a namespace says of files and directories, as plain values.

use std::{fs::Metadata, io, os::unix::fs::MetadataExt, time::Duration};

use super::inside::Wanted;
use crate::{
    backend::{Error, images_dir::published_time},
    image::Reference,
    layer::Kind as FileKind,
};

/// What an inode looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub ino: u64,
    /// What it is; never a hard link.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of these that are no holes.
    pub stored_bytes: u64,
    /// When it was changed, in seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// What an image says of a file in it.
    pub inside: Option<InsideAttributes>,
    /// What the images_dir says of a file or directory in it.
    pub local: Option<LocalAccess>,
}

/// Who may use a file or directory of an images_dir.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAccess {
    /// Its permissions, and nothing else of its mode.
    pub mode: u16,
    /// The group that they speak of.
    pub gid: u32,
}

impl LocalAccess {
    pub(super) fn new(mode: u32, gid: u32) -> Self {
        // 9 bits.
        Self { mode: (mode & 0o777) as u16, gid }
    }

    pub(super) fn of(meta: &Metadata) -> Self {
        Self::new(meta.mode(), meta.gid())
    }

    /// The permissions among `most` that nobody has beyond those that he has in the images_dir, where the
    /// file is shown as one of the group `gid`.
    pub fn shown(self, most: u16, gid: u32) -> u16 {
        let Self { mode, gid: own } = self;
        let both = mode & (mode >> 3) & 0o7;
        let mode = if own == gid { mode } else { mode & 0o700 | both << 3 | both };
        mode & most
    }
}

/// What an image says of a file in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsideAttributes {
    /// Permissions, with set-uid, set-gid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that it has.
    pub links: u32,
    /// Major and minor number of a device.
    pub device: (u16, u32),
}

impl Attributes {
    pub(super) fn directory(ino: u64, mtime: (i64, u32)) -> Self {
        Self { kind: FileKind::Dir, ..Self::file(ino, 0, mtime) }
    }

    pub(super) fn file(ino: u64, size: u64, mtime: (i64, u32)) -> Self {
        let kind = FileKind::File;
        Self { ino, kind, size, stored_bytes: size, mtime, inside: None, local: None }
    }

    pub(super) fn symlink(ino: u64, size: u64) -> Self {
        Self { kind: FileKind::Symlink, ..Self::file(ino, size, published_time(None)) }
    }

    pub(super) fn with_access(self, local: LocalAccess) -> Self {
        Self { local: Some(local), ..self }
    }

    /// Those of nothing.
    pub fn none() -> Self {
        Self::file(0, 0, (0, 0))
    }

    /// Those of the directory `ino`, as far as that matters where it is listed in itself.
    pub fn dot(ino: u64) -> Self {
        Self::directory(ino, (0, 0))
    }
}

/// Extended attributes: names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub attributes: Attributes,
    /// How long that holds.
    pub ttl: Duration,
}

/// The answer to a lookup.
#[derive(Debug)]
pub enum Found {
    /// It is there. The kernel is told of it once more.
    Entry(Entry),
    /// It is not there, which holds so long.
    Absent(Duration),
    /// A registry has to be asked: by [`super::Namespace::find_out`].
    Ask(Question),
}

/// A name whose meaning takes time to find out.
#[derive(Clone, Debug)]
pub struct Question {
    pub(super) path: String,
    pub(super) about: About,
}

/// What has to be found out.
#[derive(Clone, Debug)]
pub(super) enum About {
    /// What a registry has under this name.
    Name(Reference),
    /// What is inside an image.
    Inside(Wanted),
}

impl Question {
    /// What finding it out is called.
    pub fn doing(&self) -> String {
        match &self.about {
            About::Name(name) => format!("looking up {name}"),
            About::Inside(_) => format!("looking up {}", self.path),
        }
    }

    /// Whether that ends by itself when nothing comes, however long it takes.
    pub fn ends_by_itself(&self) -> bool {
        matches!(&self.about, About::Inside(wanted) if wanted.ends_by_itself())
    }
}

/// A failure of a namespace.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The kernel speaks of an inode that it should have forgotten.
    #[error("no such inode")]
    Stale,
    /// What it is made of has failed.
    #[error("{0}")]
    Tree(#[from] Error),
    /// It is not local, and the network is not to be used.
    #[error("{0} is not local, and imgfs is offline")]
    Offline(String),
    /// It is a directory, or it is none; or its name is too long.
    #[error("{0}")]
    Wrong(io::ErrorKind),
    /// What was to be written or changed must not be, or cannot be.
    #[error("{1}")]
    Refused(Refusal, String),
    /// The disk does not take or give what was written.
    #[error("{doing}: {error}")]
    Disk {
        /// What was being done.
        doing: String,
        /// What the system says.
        error: io::Error,
    },
}

/// Why something that was to be written or changed is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing of an images_dir can have this name, or can be of this kind.
    Invalid,
    /// Its content is not what its name says.
    Content,
    /// Something needs it, or it is still being written.
    Busy,
    /// This mount does not do that.
    NotPermitted,
    /// It is shown, and nothing is written there.
    ReadOnly,
    /// Somebody has no right to do this at a registry.
    Denied,
    /// There is no such project at a registry.
    NoProject,
    /// A directory is not empty.
    NotEmpty,
    /// There is something of that name.
    Exists,
    /// Directories are not moved.
    OtherDevice,
    /// It is larger than such a file can be.
    TooLarge,
    /// The file system does not have this.
    Unsupported,
}

impl Refusal {
    /// Whether programs meet it in the ordinary course of things, so that nobody needs to read of it.
    pub fn is_usual(self) -> bool {
        matches!(self, Self::NotEmpty | Self::Exists | Self::OtherDevice | Self::Unsupported)
    }
}

/// What a file system has in it, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// The size of the file system that the images_dir is on, and of all blobs that are known and
    /// not there.
    pub total_bytes: u64,
    /// Inodes that the kernel knows.
    pub files: u64,
}
