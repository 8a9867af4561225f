//! Directories: what is in one at a moment.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex},
};

use rustix::fs::Stat;

use super::{
    ViewError, below,
    inside::{EarlyNames, TreeId},
    names::{Form, form},
};
use crate::{
    backend::{OpenDir, images_dir::Layout},
    image::Digest,
    layer::{Kind as FileKind, Node},
    rootfs::Tree,
    util::locked,
};

/// Entries that are looked at before they are asked for: about what the kernel asks for at once.
const AHEAD: usize = 256;

/// What is in a directory at one moment.
pub struct Listing {
    /// The directory itself.
    pub ino: u64,
    /// The one above it.
    pub parent: u64,
    /// Whether it is what it was the last time that it was listed.
    pub unchanged: bool,
    pub(super) content: Content,
}

pub(super) enum Content {
    Names(Names),
    /// A directory of a tree.
    Tree(TreeId, Arc<EarlyNames>, Arc<Tree>, Node),
}

/// A directory that is known by its path.
pub(super) struct Names {
    /// The names with what they are, in order.
    pub(super) entries: Vec<(String, FileKind)>,
    /// Its path below the root.
    pub(super) path: Box<str>,
    /// The directory of the images_dir that is shown in it.
    dir: Option<OpenDir>,
    /// What names are called there.
    layout: Layout,
    /// Whether a name in it that is a digest stands for what has that digest.
    holds_digests: bool,
    ahead: Mutex<Ahead>,
}

/// What has been found out of the entries that are going to be asked for.
#[derive(Debug, Default)]
struct Ahead {
    /// The first of them.
    from: usize,
    found: VecDeque<Option<Stat>>,
}

impl Ahead {
    fn take(&mut self, at: usize) -> Option<Stat> {
        if at + 1 == self.from {
            // It did not fit, and comes once more.
            return None;
        }
        if at != self.from {
            self.found.clear();
        }
        self.from = at + 1;
        self.found.pop_front()?
    }
}

impl Names {
    /// `dir` is the directory of the images_dir that is shown in it.
    pub(super) fn new(
        entries: Vec<(String, FileKind)>,
        path: Box<str>,
        dir: Option<OpenDir>,
        layout: Layout,
    ) -> Self {
        let anything = Digest::sha256(b"").to_string();
        let holds_digests =
            matches!(form(&below(&path, &anything)), Form::Blob(_) | Form::Manifest(_));
        Self { entries, path, dir, layout, holds_digests, ahead: Mutex::default() }
    }

    /// What the images_dir has of the entry `at`, which is called `name`.
    pub(super) fn stat_of(&self, at: usize, name: &str) -> Option<Stat> {
        let known = locked(&self.ahead).take(at);
        known.or_else(|| self.stat(name))
    }

    /// The digest that an entry is named by.
    pub(super) fn digest_of(&self, name: &str) -> Option<Digest> {
        name.parse().ok().filter(|_| self.holds_digests)
    }

    fn stat(&self, name: &str) -> Option<Stat> {
        let stored = self.layout.stored_name(&self.path, name);
        self.dir.as_ref()?.stat(&*stored).ok()
    }

    fn look_ahead(&self) {
        let mut ahead = locked(&self.ahead);
        let next = ahead.from + ahead.found.len();
        let room = AHEAD.saturating_sub(ahead.found.len());
        for (name, kind) in self.entries.iter().skip(next).take(room) {
            let stat = if *kind == FileKind::File { self.stat(name) } else { None };
            ahead.found.push_back(stat);
        }
    }
}

impl Listing {
    /// How many entries it has.
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Names(names) => names.entries.len(),
            // 32 bits always fit.
            Content::Tree(_, _, tree, dir) => tree.rootfs().entry_count(*dir) as usize,
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name and kind of an entry, from 0.
    pub fn entry(&self, at: usize) -> Option<(&OsStr, FileKind)> {
        match &self.content {
            Content::Names(names) => {
                let (name, kind) = names.entries.get(at)?;
                Some((OsStr::new(name), *kind))
            }
            Content::Tree(_, _, tree, dir) => {
                let (name, node) = tree.rootfs().entry_at(*dir, u32::try_from(at).ok()?)?;
                Some((OsStr::from_bytes(name), tree.rootfs().attributes(node).kind))
            }
        }
    }

    /// Why there may be more entries than it has.
    pub fn damage(&self) -> Option<ViewError> {
        match &self.content {
            Content::Names(_) => None,
            Content::Tree(_, _, tree, _) => tree.damage().map(|error| error.clone().into()),
        }
    }

    /// Looks at the next entries while those before them are on their way to whoever asked.
    pub fn look_ahead(&self) {
        if let Content::Names(names) = &self.content {
            names.look_ahead();
        }
    }
}
