//! What the lines of the records say, taken together.

use std::{
    collections::{HashMap, HashSet},
    fs::Metadata,
    os::unix::fs::MetadataExt,
};

use super::{super::durability::Epoch, HEADER};
use crate::image::{Digest, Reference};

/// What a file looked like when it was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Stamp {
    size: u64,
    inode: u64,
    mtime_ns: i128,
    pub(super) ctime_ns: i128,
}

impl Stamp {
    /// The stamp of no file.
    pub(super) const NONE: Self = Self { size: 0, inode: 0, mtime_ns: 0, ctime_ns: 0 };

    pub(super) fn of(meta: &Metadata) -> Self {
        let ns = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
        Self {
            size: meta.size(),
            inode: meta.ino(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    fn parse<'a>(fields: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        Some(Self {
            size: fields.next()?.parse().ok()?,
            inode: fields.next()?.parse().ok()?,
            mtime_ns: fields.next()?.parse().ok()?,
            ctime_ns: fields.next()?.parse().ok()?,
        })
    }

    fn to_text(self) -> String {
        format!("{} {} {} {}", self.size, self.inode, self.mtime_ns, self.ctime_ns)
    }
}

/// How long it holds that a file with this stamp is the one that was hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Held {
    /// For good: it is on the disk.
    OnDisk,
    /// As long as the kernel has it in memory.
    InMemory(Epoch),
    /// As long as this process lives. It is not written down.
    ThisRun,
}

/// What is known of a blob.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) stamp: Stamp,
    pub(super) held: Held,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) blobs: HashMap<Digest, Known>,
    pub(super) pins: HashSet<Reference>,
    pub(super) sparse: HashMap<Digest, String>,
    pub(super) no_referrers: HashMap<String, u64>,
    pub(super) tag_times: HashMap<Reference, (Digest, (i64, u32))>,
}

/// The line that says that the file with `stamp` is `blob`; nothing, if that is not to be written down.
pub(super) fn blob_line(blob: &Digest, stamp: Stamp, held: &Held) -> String {
    let stamp = stamp.to_text();
    match held {
        Held::OnDisk => format!("blob {blob} {stamp}\n"),
        Held::InMemory(epoch) => format!("unflushed {blob} {stamp} {epoch}\n"),
        Held::ThisRun => String::new(),
    }
}

/// The line that says which time has been set of a tag when that led to a manifest.
pub(super) fn tag_time_line(tag: &Reference, set: &(Digest, (i64, u32))) -> String {
    let (digest, (seconds, nanoseconds)) = set;
    format!("tag-time {tag} {digest} {seconds} {nanoseconds}\n")
}

impl State {
    /// How many lines say all of it.
    pub(super) fn len(&self) -> usize {
        let others = self.sparse.len() + self.no_referrers.len() + self.tag_times.len();
        self.blobs.len() + self.pins.len() + others
    }

    /// All of it, as it stands in the file; in the epoch `now` without what holds no longer.
    pub(super) fn to_text(&self, now: Option<&Epoch>) -> String {
        let is_over = |known: &Known| match (&known.held, now) {
            (Held::InMemory(epoch), Some(now)) => epoch.is_of_another_start(now),
            _ => false,
        };
        let mut text = HEADER.to_owned();
        for (digest, known) in self.blobs.iter().filter(|(_, known)| !is_over(known)) {
            text += &blob_line(digest, known.stamp, &known.held);
        }
        for pin in &self.pins {
            text += &format!("pin {pin}\n");
        }
        for (digest, platforms) in &self.sparse {
            text += &format!("sparse {digest} {platforms}\n");
        }
        for (registry, at) in &self.no_referrers {
            text += &format!("no-referrers {registry} {at}\n");
        }
        for (tag, set) in &self.tag_times {
            text += &tag_time_line(tag, set);
        }
        text
    }

    /// Takes one line; what makes no sense is skipped.
    pub(super) fn take(&mut self, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ')?;
        match kind {
            "blob" => {
                let mut fields = rest.split(' ');
                let digest = fields.next()?.parse().ok()?;
                let known = Known { stamp: Stamp::parse(&mut fields)?, held: Held::OnDisk };
                self.blobs.insert(digest, known);
            }
            "unflushed" => {
                let mut fields = rest.splitn(6, ' ');
                let digest = fields.next()?.parse().ok()?;
                let stamp = Stamp::parse(&mut fields)?;
                let held = Held::InMemory(fields.next()?.parse().ok()?);
                self.blobs.insert(digest, Known { stamp, held });
            }
            "pin" => {
                self.pins.insert(rest.parse().ok()?);
            }
            "unpin" => {
                self.pins.remove(&rest.parse().ok()?);
            }
            "no-referrers" => {
                let (registry, at) = rest.split_once(' ')?;
                self.no_referrers.insert(registry.to_owned(), at.parse().ok()?);
            }
            "tag-time" => {
                let mut fields = rest.split(' ');
                let (tag, digest) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
                let time = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
                self.tag_times.insert(tag, (digest, time));
            }
            "no-tag-time" => {
                self.tag_times.remove(&rest.parse().ok()?);
            }
            "sparse" => {
                let (digest, platforms) = rest.split_once(' ')?;
                self.sparse.insert(digest.parse().ok()?, platforms.to_owned());
            }
            _ => {}
        }
        Some(())
    }
}
