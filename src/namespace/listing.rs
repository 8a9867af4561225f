//! Directories: what is in one, and what walking through it tells.

use std::{
    borrow::Cow,
    collections::VecDeque,
    ffi::OsStr,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::fs::Stat;

use super::{
    Attributes, Entry, Found, LocalAccess, ROOT, View, ViewError, below,
    inside::{EarlyNames, Place, TreeId, is_in_tree},
    is_absent,
    names::{self, Form, form},
    table::Kind,
};
use crate::{
    backend::{
        DirEntry, Error, FileType, OpenDir,
        images_dir::{Layout, holds_manifests, published_time},
    },
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
    content: Content,
}

enum Content {
    Names(Names),
    /// A directory of a tree.
    Tree(TreeId, Arc<EarlyNames>, Arc<Tree>, Node),
}

/// A directory that is known by its path.
struct Names {
    /// The names with what they are, in order.
    entries: Vec<(String, FileKind)>,
    /// Its path below the root.
    path: Box<str>,
    /// The directory of the images_dir that is shown in it.
    dir: Option<OpenDir>,
    /// What names are called there.
    layout: Layout,
    /// Whether a name in it that is a digest stands for what has that digest.
    holds_digests: bool,
    ahead: Mutex<Ahead>,
}

/// What is in a directory of the rest of the mount, by name.
pub(super) struct NamesIn {
    /// The names, and which are directories.
    pub entries: Vec<(String, bool)>,
    dir: Option<OpenDir>,
}

/// What a directory looks like, to tell whether that changes: when it was modified in the images_dir, in
/// nanoseconds, and how often something has become known besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(i128, u64);

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

impl View {
    /// Whether the directory `ino` is of a tree that has been made, so that listing it needs no disk.
    pub fn is_in_memory(&self, ino: u64) -> bool {
        self.in_tree(ino).is_some_and(|(id, _)| self.tree(id).is_some())
    }

    /// What is in the directory `ino`, if that takes no time but the disk's. `None` if layers have to be looked
    /// into first.
    pub fn list_now(&self, ino: u64) -> Result<Option<Listing>, ViewError> {
        match self.in_tree(ino) {
            Some((id, node)) => {
                Ok(self.tree(id).and_then(|tree| self.list_tree(ino, id, tree, node)))
            }
            None => match self.is_inside(ino)? {
                // What has been known may have been let go.
                true => match self.place_now(&self.path_of(ino)?) {
                    None | Some(Place::Below(..)) => Ok(None),
                    Some(_) => self.list_names(ino).map(Some),
                },
                false => self.list_names(ino).map(Some),
            },
        }
    }

    /// What is in the directory `ino`, however long that takes. It ends by itself when nothing
    /// comes.
    pub async fn list(&self, ino: u64) -> Result<Listing, ViewError> {
        let (tree, id, node) = match self.in_tree(ino) {
            Some((id, node)) => (self.made_tree(id).await?, id, Some(node)),
            None if self.is_inside(ino)? => {
                let (place, _in_use) = self.place_later(&self.path_of(ino)?).await?;
                let Place::Below(id, path) = place else { return self.list_names(ino) };
                let tree = self.made_tree(id).await?;
                let node = tree.rootfs().find(path.as_bytes()).map(Node::number);
                (tree, id, node)
            }
            None => return self.list_names(ino),
        };
        let listing = node.and_then(|node| self.list_tree(ino, id, tree, node));
        listing.ok_or(ViewError::Stale)
    }

    /// Whether `ino`, which is in no tree by its number, is below `.imgfs`.
    fn is_inside(&self, ino: u64) -> Result<bool, ViewError> {
        Ok(ino != ROOT && form(&self.path_of(ino)?) == Form::Inside)
    }

    fn list_tree(&self, ino: u64, id: TreeId, tree: Arc<Tree>, node: u32) -> Option<Listing> {
        let early = self.early_names(id)?;
        let node = tree.rootfs().node(node)?;
        let parent = self.entry_in_tree(id, &tree, tree.rootfs().parent(node)).attributes.ino;
        Some(Listing {
            ino,
            parent,
            unchanged: true,
            content: Content::Tree(id, early, tree, node),
        })
    }

    fn list_names(&self, ino: u64) -> Result<Listing, ViewError> {
        let path = self.path_of(ino)?;
        let form = form(&path);
        let (mut entries, stamp, dir) = match form {
            Form::Inside => (self.names_inside(&path)?, None, None),
            _ => {
                // First this: what changes meanwhile is a change.
                let stamp = self.stamp(&path);
                let found = self.names_in(&path)?;
                let kind = |is_directory| if is_directory { FileKind::Dir } else { FileKind::File };
                let entries = found.entries.into_iter();
                let entries: Vec<_> = entries.map(|(name, dir)| (name, kind(dir))).collect();
                (entries, Some(stamp), found.dir)
            }
        };
        // What is in the images_dir stands before what is known besides.
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(later, _), (first, _)| later == first);
        let unchanged = stamp.is_some() && locked(&self.listed).put(ino, stamp) == Some(stamp);
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        let parent = locked(&self.table).number(above, &[]);
        let anything = Digest::sha256(b"").to_string();
        let holds_digests =
            matches!(names::form(&below(&path, &anything)), Form::Blob(_) | Form::Manifest(_));
        let (layout, ahead) = (self.dir().layout(), Mutex::default());
        let content = Names { entries, path, dir, layout, holds_digests, ahead };
        Ok(Listing { ino, parent, unchanged, content: Content::Names(content) })
    }

    /// Whether the directory `ino` is known to be what it was the last time that it was listed. That is
    /// found out without listing it.
    pub fn is_as_listed(&self, ino: u64) -> bool {
        let last = locked(&self.listed).get(&ino).copied().flatten();
        let Some(last) = last.filter(|_| !is_in_tree(ino)) else { return false };
        self.path_of(ino).is_ok_and(|path| self.stamp(&path) == last)
    }

    fn stamp(&self, path: &str) -> Stamp {
        let modified = match self.dir().dir().stat(&self.local_path(path)) {
            Ok(meta) if meta.is_dir() => {
                i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
            }
            _ => 0,
        };
        Stamp(modified, self.catalogue.generation())
    }

    /// What is in the directory `path` of the images_dir, and what is known besides; in no order.
    pub(super) fn names_in(&self, path: &str) -> Result<NamesIn, ViewError> {
        let dir = self.local_path(path);
        let failed = |e| Error::io(&dir, "reading", e);
        let opened = match self.dir().dir().open_dir(&dir) {
            Ok(opened) => Some(opened),
            Err(e) if is_absent(&e) => None,
            Err(e) => return Err(failed(e).into()),
        };
        let local = opened.as_ref().map_or(Ok(Vec::new()), OpenDir::entries).map_err(failed)?;
        let holds_manifests = holds_manifests(path);
        let mut entries: Vec<(String, bool)> = Vec::with_capacity(local.len());
        for DirEntry { name, kind } in local {
            let Ok(stored) = name.into_string() else { continue };
            let shown = self.dir().layout().shown_name(path, &stored);
            let Some(name) = shown.map(Cow::into_owned) else { continue };
            let is_shown = match kind {
                FileType::RegularFile => names::is_file_of_images(path, holds_manifests, &name),
                FileType::Directory => names::is_directory_of_images(&below(path, &name)),
                _ => false,
            };
            if is_shown {
                entries.push((name, kind == FileType::Directory));
            }
        }
        entries.extend(self.known_in(path));
        if path.is_empty() {
            entries.push((names::BLOBS.to_owned(), true));
        }
        if path.is_empty() || path == names::BLOBS {
            entries.retain(|(name, _)| !names::is_own(name));
        }
        Ok(NamesIn { entries, dir: opened })
    }

    /// What is listed in the directory `path` without being in the images_dir: names, and whether they are
    /// directories.
    fn known_in(&self, path: &str) -> Vec<(String, bool)> {
        if path == names::BLOBS {
            let blobs = self.catalogue.blobs().into_iter();
            return blobs.map(|digest| (digest.to_string(), false)).collect();
        }
        let below = self.catalogue.below(path).into_iter();
        let mut entries: Vec<_> = below.map(|(name, _)| (name, true)).collect();
        if let Some(repository) = names::repository_of(path) {
            let names = self.catalogue.names(repository).into_iter();
            entries.extend(names.map(|name| (name, false)));
        } else if !self.catalogue.names(path).is_empty() {
            entries.push((names::MANIFESTS.to_owned(), true));
        }
        entries
    }

    /// What the entry `at` is that was found when its directory was listed, without asking anybody. What
    /// would have to be asked for is told as it was, or as nothing much, and holds for no time.
    pub fn listed(&self, listing: &Listing, at: usize) -> Result<Option<Entry>, ViewError> {
        let names = match &listing.content {
            Content::Names(names) => names,
            Content::Tree(id, early, tree, dir) => {
                let found = u32::try_from(at).ok().and_then(|at| tree.rootfs().entry_at(*dir, at));
                return Ok(found.map(|(_, node)| self.tell_of_node(*id, early, tree, node)));
            }
        };
        let Some((name, kind)) = names.entries.get(at) else { return Ok(None) };
        let path = below(&names.path, name);
        if let Some(entry) = self.listed_file(names, at, name, &path) {
            return Ok(Some(entry));
        }
        let question = match self.look(&path) {
            Ok(Found::Entry(entry)) => return Ok(Some(entry)),
            Ok(Found::Absent(_)) if *kind != FileKind::File => return Ok(None),
            Ok(Found::Absent(_)) | Err(ViewError::Offline(_)) => None,
            Ok(Found::Ask(question)) => Some(question),
            Err(error) => return Err(error),
        };
        let known = question.as_ref().and_then(|question| self.known_by_name(question));
        let entry = match known {
            Some((name, manifest)) => self.manifest(&path, &name, &manifest),
            None => {
                let ino = self.tell(&path, b"unknown", Kind::Unknown);
                let mtime = published_time(None);
                let attributes = Attributes { kind: *kind, ..Attributes::file(ino, 0, mtime) };
                Entry { attributes, ttl: Duration::ZERO }
            }
        };
        Ok(Some(Entry { ttl: Duration::ZERO, ..entry }))
    }

    /// A file in the images_dir that was found when its directory was listed. This is most of what
    /// walking through a mount costs, so it takes no longer way than it must.
    fn listed_file(&self, listing: &Names, at: usize, name: &str, path: &str) -> Option<Entry> {
        let known = locked(&listing.ahead).take(at);
        let stat = known.or_else(|| listing.stat(name))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let access = LocalAccess::new(stat.st_mode, stat.st_gid);
        let size = u64::try_from(stat.st_size).ok()?;
        let digest = name.parse().ok().filter(|_| listing.holds_digests);
        if &*listing.path == names::BLOBS && self.has_other_size(digest.as_ref(), size) {
            return None;
        }
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Some(self.local_file(path, digest.is_some(), size, mtime, access))
    }

    /// The number of something that was found when its directory was listed, if the kernel is not
    /// told more of it.
    pub fn number_of(&self, listing: &Listing, at: usize) -> u64 {
        match &listing.content {
            Content::Tree(id, _, tree, dir) => {
                let found = u32::try_from(at).ok().and_then(|at| tree.rootfs().entry_at(*dir, at));
                found.map_or(0, |(_, node)| self.entry_in_tree(*id, tree, node).attributes.ino)
            }
            Content::Names(names) => {
                let name = names.entries.get(at).map_or("", |(name, _)| name);
                locked(&self.table).number(&below(&names.path, name), &[])
            }
        }
    }
}
