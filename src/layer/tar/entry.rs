//! What archives have in them, and what may be wrong with it.

use super::name::{self, normalise};

/// The longest name of an extended attribute, as in Linux (`XATTR_NAME_MAX`).
const MAX_XATTR_NAME_BYTES: usize = 255;

/// The longest value of an extended attribute, as in Linux (`XATTR_SIZE_MAX`).
const MAX_XATTR_VALUE_BYTES: usize = 64 << 10;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A hard link to another entry.
    Link,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
}

/// A time since 1970-01-01, UTC. `nanos` count forward also before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// Nanoseconds after that, below 1,000,000,000.
    pub nanos: u32,
}

/// A part of a file that is in the archive. What is in no extent is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Where in the decompressed stream it begins.
    pub stream_offset: u64,
    /// Bytes of it, more than 0.
    pub length: u64,
}

/// An extended attribute: name and value.
pub(in crate::layer) type Xattr = (Vec<u8>, Vec<u8>);

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::layer) struct TarEntry {
    /// Its path without `/` at the ends and without `.` and `..`; empty for the root.
    pub(in crate::layer) name: Vec<u8>,
    pub(in crate::layer) kind: Kind,
    /// Permissions, with set-uid, set-gid and sticky: 12 bits.
    pub(in crate::layer) mode: u16,
    pub(in crate::layer) uid: u32,
    pub(in crate::layer) gid: u32,
    /// Bytes of the file; 0 for everything else.
    pub(in crate::layer) size: u64,
    pub(in crate::layer) mtime: Time,
    /// The normalised path of a hard link's target, or a symbolic link's target as it is.
    pub(in crate::layer) target: Vec<u8>,
    /// Major and minor number of a device.
    pub(in crate::layer) device: (u16, u32),
    pub(in crate::layer) xattrs: Vec<Xattr>,
    /// Where its data begins in the stream.
    pub(in crate::layer) data_offset: u64,
    /// The parts of a sparse file, in order and apart; `None` if all of it is there.
    pub(in crate::layer) sparse: Option<Vec<Extent>>,
}

/// What somebody says of an entry: the header of an archive, or a table of contents.
pub(in crate::layer) struct Claim<'a> {
    pub(in crate::layer) name: &'a [u8],
    pub(in crate::layer) kind: Kind,
    /// 12 bits.
    pub(in crate::layer) mode: u16,
    /// Any number: what `chown` makes of it is the owner.
    pub(in crate::layer) uid: i64,
    pub(in crate::layer) gid: i64,
    /// Of no meaning for what is no file.
    pub(in crate::layer) size: u64,
    pub(in crate::layer) mtime: Time,
    /// Of no meaning for what is no link.
    pub(in crate::layer) target: &'a [u8],
    /// 0 and 0 for what is no device.
    pub(in crate::layer) device: (u64, u64),
    pub(in crate::layer) data_offset: u64,
}

impl Claim<'_> {
    /// The entry, if there can be such a one.
    pub(in crate::layer) fn check(&self) -> Result<TarEntry, Refusal> {
        let kind = self.kind;
        let name = normalise(self.name)?;
        if name.is_empty() && kind != Kind::Dir {
            return Err(Refusal::NoName);
        }
        let target = match kind {
            Kind::Link => normalise(self.target)?,
            Kind::Symlink if self.target.contains(&0) => return Err(Refusal::ZeroByte),
            // With the zero byte at its end it has to fit `PATH_MAX`.
            Kind::Symlink if self.target.len() >= name::MAX_NAME_BYTES => {
                return Err(Refusal::LongName);
            }
            Kind::Symlink => self.target.to_vec(),
            _ => Vec::new(),
        };
        // What comes of Go's `os.Lchown` by root, with which containerd and umoci extract: the lower 32
        // bits. The last number says that the owner is to stay what it is, and that is root.
        let owner = |id: i64| match id as u32 {
            u32::MAX => 0,
            id => id,
        };
        // What fits a Linux `dev_t` of 32 bits.
        let (major, minor) = match self.device {
            (major @ 0..=0xfff, minor @ 0..=0xf_ffff) => (major as u16, minor as u32),
            (major, minor) => return Err(Refusal::Device(major, minor)),
        };
        Ok(TarEntry {
            name,
            kind,
            mode: self.mode,
            uid: owner(self.uid),
            gid: owner(self.gid),
            size: if kind == Kind::File { self.size } else { 0 },
            mtime: self.mtime,
            target,
            device: (major, minor),
            xattrs: Vec::new(),
            data_offset: self.data_offset,
            sparse: None,
        })
    }
}

/// Whether Linux would have an extended attribute of this name and value.
fn is_xattr(name: &[u8], value: &[u8]) -> bool {
    (1..=MAX_XATTR_NAME_BYTES).contains(&name.len())
        && !name.contains(&0)
        && value.len() <= MAX_XATTR_VALUE_BYTES
}

/// Why an entry, or something of it, is not shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its name, or that of its target, leads out of the root.
    #[error("its name leads out of the root with `..`")]
    DotDot,
    /// Its name, or that of its target, has a component of more than 255 bytes.
    #[error("a part of its name is longer than 255 bytes")]
    LongComponent,
    /// Its name, or that of its target, has more than 4096 bytes.
    #[error("its name is longer than 4096 bytes")]
    LongName,
    /// Its name, or that of its target, has a byte in it that names cannot have.
    #[error("its name has a zero byte in it")]
    ZeroByte,
    /// It is named as the root directory, but is none.
    #[error("it has the name of the root but is no directory")]
    NoName,
    /// It is of a kind that file systems do not have.
    #[error("its type is {0:#04x}, which is unknown")]
    UnknownType(u8),
    /// The numbers of its device are too large.
    #[error("its device number {0}:{1} is too large")]
    Device(u64, u64),
    /// A number in its header, which is named, is none. The entry is shown without it.
    #[error("its {0} is not a number and is ignored")]
    Unreadable(&'static str),
    /// The PAX header before it is damaged, so that nobody knows what it is.
    #[error("its PAX header is damaged: {0}")]
    Pax(&'static str),
    /// The map of a sparse file is wrong.
    #[error("its sparse map is wrong: {0}")]
    Sparse(&'static str),
    /// An extended attribute cannot be shown; the entry is.
    #[error("its extended attribute `{0}` is not valid")]
    Xattr(String),
}

impl Refusal {
    /// That of the extended attribute `name`.
    fn xattr(name: &[u8]) -> Self {
        let name = &name[..name.len().min(MAX_XATTR_NAME_BYTES)];
        Self::Xattr(String::from_utf8_lossy(name).into_owned())
    }
}

/// Why an archive cannot be read any further. `offset` is one of the decompressed stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// What should be a header has a wrong checksum.
    #[error("the tar header at {offset} has a wrong checksum")]
    Checksum {
        /// Where the header begins.
        offset: u64,
    },
    /// A number in a header is none.
    #[error("the tar header at {offset} has an unreadable {field}")]
    Number {
        /// Where the header begins.
        offset: u64,
        /// Which number it is.
        field: &'static str,
    },
    /// A PAX header is damaged.
    #[error("the PAX header at {offset} is damaged: {what}")]
    Pax {
        /// Where the header begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There are more entries than are accepted.
    #[error("the archive has more than {limit} entries")]
    TooManyEntries {
        /// How many are.
        limit: u32,
    },
    /// It ends in the middle of an entry.
    #[error("the archive ends at {offset}, in the middle of an entry")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
}

/// What the parser tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::layer) enum TarEvent {
    /// The next entry. Its data is still to come.
    Entry(Box<TarEntry>),
    /// Something is not shown.
    Refused {
        /// The number of the entry in the archive, from 0, with those that are not shown.
        number: u64,
        /// Its name as it stands there.
        name: Vec<u8>,
        why: Refusal,
    },
}

impl TarEntry {
    /// Takes its extended attributes, with `None` for a value that is none. Gives those that are not
    /// shown.
    pub(in crate::layer) fn take_xattrs(
        &mut self,
        xattrs: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    ) -> Vec<Refusal> {
        let mut refused = Vec::new();
        for (name, value) in xattrs {
            match value {
                Some(value) if is_xattr(&name, &value) => self.xattrs.push((name, value)),
                _ => refused.push(Refusal::xattr(&name)),
            }
        }
        refused
    }

    /// Stands for an entry that has been refused: a file with the name of the root.
    pub(super) fn nameless(data_offset: u64) -> Self {
        Self {
            name: Vec::new(),
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time::default(),
            target: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
            data_offset,
            sparse: None,
        }
    }

    pub(super) fn is_nameless(&self) -> bool {
        self.name.is_empty() && self.kind != Kind::Dir
    }
}
