//! Entries in symbolic links of their own archive.
//!
//! An archive may have a link `lib -> usr/lib` and after it an entry `lib/x`. Whoever extracts it (umoci, containerd
//! and, if the directory is there, podman and Docker) puts that at `usr/lib/x`, and the link stays. So the table has
//! it there. A link is followed within the root and never out of it, and counts from where it stands in the archive
//! until something replaces it or what it is in. One that cannot be followed, because it leads in a circle or too far,
//! is something that is no directory: an entry in it makes a directory in its place.
//!
//! Links of other layers are not known here and are not followed.

use std::collections::HashMap;

use super::{Directory, Measure, ROOT, Table, TableBuilder, TableError, WHITEOUT_PREFIX};
use crate::layer::{
    Limits,
    tar::{Kind, MAX_COMPONENT_BYTES, MAX_NAME_BYTES, TarEntry},
};

/// How many links are followed for one path, as Linux does.
const MAX_LINKS: usize = 40;

/// The links that the archive has by now, without what whiteouts are called.
#[derive(Default)]
pub(super) struct Links {
    /// By their paths, also those in something that has been replaced.
    links: HashMap<u32, Link>,
    /// Paths at which something that is no directory has been put after others had been put below: 1 more than the
    /// number of the entry that it was. What is below from before that is gone.
    cuts: HashMap<u32, u32>,
}

/// A link that is at some path.
#[derive(Clone, Copy)]
struct Link {
    /// The entry that has put it there.
    made: u32,
    /// The entry that has the target; another one if it was put there by a hard link.
    entry: u32,
}

impl Links {
    pub(super) fn measures(&self) -> [Measure; 2] {
        [Measure::of_map(&self.links), Measure::of_map(&self.cuts)]
    }
}

/// A path without links, and what is known of the things on it.
#[derive(Clone, Default)]
struct Way {
    bytes: Vec<u8>,
    parts: Vec<WayPart>,
}

#[derive(Clone, Copy)]
struct WayPart {
    /// Bytes of the way before it.
    start: usize,
    /// Which path of the table it is, if it is in there.
    path: Option<u32>,
    /// What is in it and was made before the entry of this number is gone.
    cut: u32,
}

impl Way {
    fn path(&self) -> Option<u32> {
        self.parts.last().map_or(Some(ROOT), |part| part.path)
    }

    fn cut(&self) -> u32 {
        self.parts.last().map_or(0, |part| part.cut)
    }

    fn push(&mut self, name: &[u8], path: Option<u32>, cut: u32) {
        self.parts.push(WayPart { start: self.bytes.len(), path, cut });
        if !self.bytes.is_empty() {
            self.bytes.push(b'/');
        }
        self.bytes.extend_from_slice(name);
    }

    /// Goes to what it is in; the root is in itself.
    fn pop(&mut self) {
        if let Some(part) = self.parts.pop() {
            self.bytes.truncate(part.start);
        }
    }
}

/// How much is followed for one path, so that hostile archives take no longer than others.
struct Effort {
    links: usize,
    target_bytes: usize,
}

impl TableBuilder {
    /// The path of the directory `dir` without the links that the archive has by now, and whether some of them cannot
    /// be followed. There, `dir` is as it is written. With a name of `name_bytes` in it, it is not too long.
    pub(super) fn follow(&self, dir: &[u8], name_bytes: usize) -> (Vec<u8>, bool) {
        if self.links.links.is_empty() {
            return (dir.to_vec(), false);
        }
        let mut effort = Effort { links: 0, target_bytes: 0 };
        let (mut way, mut is_stuck) = (Way::default(), false);
        for part in dir.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            let (path, link) = self.step(&way, part);
            match link.and_then(|target| self.chase(way.clone(), target, &mut effort)) {
                Some(there) => way = there,
                None => {
                    is_stuck |= link.is_some();
                    self.go(&mut way, part, path);
                }
            }
        }
        match way.bytes.len() + 1 + name_bytes > MAX_NAME_BYTES {
            true => (dir.to_vec(), true),
            false => (way.bytes, is_stuck),
        }
    }

    /// Where the link with this target leads that is in `way`, through further ones; `None` if it cannot be followed.
    fn chase(&self, mut way: Way, target: &[u8], effort: &mut Effort) -> Option<Way> {
        let mut rest = begin(&mut way, target, b"", effort)?;
        let mut at = 0;
        while at < rest.len() {
            let end = rest[at..].iter().position(|b| *b == b'/').map_or(rest.len(), |len| at + len);
            match &rest[at..end] {
                b"" | b"." => {}
                b".." => way.pop(),
                part if part.len() > MAX_COMPONENT_BYTES => return None,
                part => match self.step(&way, part) {
                    (path, None) => self.go(&mut way, part, path),
                    (_, Some(target)) => {
                        rest = begin(&mut way, target, &rest[end..], effort)?;
                        at = 0;
                        continue;
                    }
                },
            }
            at = end + 1;
        }
        Some(way)
    }

    /// What has the name `part` in `way`: its path, and the target if it is a link.
    fn step(&self, way: &Way, part: &[u8]) -> (Option<u32>, Option<&[u8]>) {
        let find = |parent| self.find_path(parent, self.find_name(part)?);
        let path = way.path().and_then(find);
        let link = path.and_then(|path| self.links.links.get(&path));
        let link = link.filter(|link| link.made >= way.cut());
        (path, link.and_then(|link| self.target(link.entry)))
    }

    fn go(&self, way: &mut Way, part: &[u8], path: Option<u32>) {
        let own = path.and_then(|path| self.links.cuts.get(&path)).copied().unwrap_or(0);
        way.push(part, path, own.max(way.cut()));
    }

    fn target(&self, entry: u32) -> Option<&[u8]> {
        self.table.symlink_target(&self.table.entry(entry)?)
    }

    /// Notes that an entry comes to `path`, which was in the table before if it `is_known`. Gives whether it is one
    /// that is seen: a whiteout puts nothing anywhere.
    pub(super) fn put(&mut self, number: u32, path: u32, kind: Kind, is_known: bool) -> bool {
        let is_hidden =
            self.directory.is_hidden || self.table.name(path).starts_with(WHITEOUT_PREFIX);
        if is_hidden || path == ROOT {
            return !is_hidden;
        }
        if self.links.links.is_empty() {
            return true;
        }
        let mut is_change = self.links.links.remove(&path).is_some();
        if self.directory.is_stuck {
            let mut dir = self.table.parent(path);
            while dir != ROOT {
                is_change |= self.links.links.remove(&dir).is_some();
                dir = self.table.parent(dir);
            }
        }
        if is_known && kind != Kind::Dir {
            self.links.cuts.insert(path, number + 1);
            is_change = true;
        }
        if is_change {
            self.directory = Directory::default();
        }
        true
    }

    /// Notes that the entry `made` has put the link at `path` of which `entry` has the target.
    pub(super) fn add_link(&mut self, path: u32, made: u32, entry: u32) {
        self.links.links.insert(path, Link { made, entry });
        self.directory = Directory::default();
    }

    /// Notes that the hard link `made` is at `path` and is to `target`, which may be a link.
    pub(super) fn add_alias(&mut self, path: u32, made: u32, target: u32) {
        let Some(link) = self.links.links.get(&target).copied() else { return };
        let (mut cut, mut dir) = (0, target);
        while dir != ROOT {
            dir = self.table.parent(dir);
            cut = cut.max(self.links.cuts.get(&dir).copied().unwrap_or(0));
        }
        if link.made >= cut {
            self.add_link(path, made, link.entry);
        }
    }
}

impl Table {
    /// The same table with what is in links where those lead, as a builder puts it. One that an earlier imgfs has
    /// written may have it in the links.
    pub(in crate::layer::index) fn with_links_followed(self) -> Result<Self, TableError> {
        if !self.has_entries_in_links() {
            return Ok(self);
        }
        let limits = Limits { max_table_bytes: u64::MAX, ..Limits::default() };
        let mut builder = TableBuilder::new(&limits);
        for (number, entry) in (0..).zip(self.entries()) {
            let target = match entry.kind {
                Kind::Link => self.link_path(&entry).map(|path| self.full_path(path)),
                Kind::Symlink => self.symlink_target(&entry).map(<[u8]>::to_vec),
                _ => None,
            };
            let xattrs = self.xattrs(number).map(|(name, value)| (name.to_vec(), value.to_vec()));
            builder.push(&TarEntry {
                name: self.full_path(entry.path),
                kind: entry.kind,
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                size: entry.size,
                mtime: entry.mtime,
                target: target.unwrap_or_default(),
                device: entry.device,
                xattrs: xattrs.collect(),
                data_offset: entry.data_offset,
                sparse: self.sparse_extents(number).map(<[_]>::to_vec),
            })?;
        }
        Ok(builder.finish())
    }

    /// Whether it may have such: some path is in one that has been a link.
    fn has_entries_in_links(&self) -> bool {
        let mut is_link = vec![false; self.paths.len()];
        for entry in self.entries() {
            let has_target = matches!(entry.kind, Kind::Symlink | Kind::Link);
            if let Some(is_link) = is_link.get_mut(entry.path as usize) {
                *is_link |= has_target;
            }
        }
        let is_in_link = |path: u32| is_link.get(self.parent(path) as usize) == Some(&true);
        (1..self.path_count()).any(is_in_link)
    }
}

/// What there is to go when a link is followed that is in `way` and has `after` behind it.
fn begin(way: &mut Way, target: &[u8], after: &[u8], effort: &mut Effort) -> Option<Vec<u8>> {
    effort.links += 1;
    effort.target_bytes += target.len();
    let is_too_far = effort.links > MAX_LINKS || effort.target_bytes > MAX_NAME_BYTES;
    if is_too_far || target.is_empty() {
        return None;
    }
    if target.starts_with(b"/") {
        *way = Way::default();
    }
    let rest = [target, after].concat();
    (way.bytes.len() + rest.len() <= 2 * MAX_NAME_BYTES).then_some(rest)
}

#[cfg(test)]
mod tests {
    use crate::layer::{Indexer, LayerIndex, Options};

    fn index(entries: &[(&str, Option<&str>)]) -> LayerIndex {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, target) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            match target {
                None => builder.append_data(&mut header, name, &b""[..]).unwrap(),
                Some(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, name, target).unwrap();
                }
            }
        }
        let mut indexer = Indexer::new(Options::default());
        indexer.push(&builder.into_inner().unwrap()).unwrap();
        indexer.finish_as_found().unwrap()
    }

    /// As an imgfs has written it that took all paths as they stand in the archive.
    #[test]
    fn links_are_followed_in_indexes_of_before() {
        let followed = index(&[("lib", Some("usr/lib")), ("lib/x", None), ("lib/y", None)]);
        let mut before = index(&[("lib", Some("usr/lib")), ("x", None), ("y", None)]);
        let lib = before.table.entry(0).unwrap().path;
        for file in [1, 2] {
            let path = before.table.entry(file).unwrap().path;
            before.table.paths[path as usize].parent = lib;
        }
        let read = LayerIndex::from_bytes(&before.to_bytes().unwrap()).unwrap();
        assert_eq!(read.table, followed.table);
        assert_eq!(read.table.full_path(read.table.entry(1).unwrap().path), b"usr/lib/x");
        // What is followed stays as it is.
        let again = LayerIndex::from_bytes(&followed.to_bytes().unwrap()).unwrap();
        assert_eq!(again.table, followed.table);
        // Also where something is in what was a link.
        let stuck = index(&[("a", Some("a")), ("a/x", None)]);
        let again = LayerIndex::from_bytes(&stuck.to_bytes().unwrap()).unwrap();
        assert_eq!(again.table, stuck.table);
    }
}
