//! What a mount that is written to is like, as a simple model in memory.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::DIRS;
use crate::image::{Digest, Manifest};

/// What a name is, worked out plainly.
pub(super) enum Meaning {
    Dot,
    Blob(String),
    Tag,
    Digest(String),
}

pub(super) fn meaning(path: &str) -> Meaning {
    let (dir, name) = path.rsplit_once('/').unwrap();
    match (dir, name) {
        (_, name) if name.starts_with('.') => Meaning::Dot,
        ("blobs", name) => Meaning::Blob(name.to_owned()),
        (_, name) if name.contains(':') => Meaning::Digest(name.to_owned()),
        _ => Meaning::Tag,
    }
}

pub(super) fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').unwrap().0
}

pub(super) fn manifest(content: &Bytes) -> Option<Manifest> {
    Manifest::parse(content.clone(), None).ok()
}

pub(super) fn digest(content: &Bytes) -> String {
    Digest::sha256(content).to_string()
}

/// The model: what has been published, what waits, and what begins with a dot.
#[derive(Clone, Default, Debug)]
pub(super) struct Model {
    pub(super) published: BTreeMap<String, Bytes>,
    waiting: BTreeMap<String, Bytes>,
    pub(super) dots: BTreeMap<String, Bytes>,
    /// The times that have been set of what is published, and of what waits.
    pub(super) times: BTreeMap<String, i64>,
    waiting_times: BTreeMap<String, i64>,
}

pub(super) type Outcome = std::result::Result<(), &'static str>;

impl Model {
    fn lacks(&self, content: &Bytes, dir: &str) -> bool {
        let manifest = manifest(content).unwrap();
        let lacks = |path: String| !self.published.contains_key(&path);
        let mut children = manifest.children().iter();
        manifest.blobs().any(|blob| lacks(format!("blobs/{}", blob.digest)))
            || children.any(|child| lacks(format!("{dir}/{}", child.digest)))
    }

    pub(super) fn settle(&mut self) {
        loop {
            let ready = self.waiting.iter().find(|(path, c)| !self.lacks(c, dir_of(path)));
            let Some((path, content)) = ready.map(|(p, c)| (p.clone(), c.clone())) else { return };
            self.waiting.remove(&path);
            self.times.remove(&path);
            self.times.extend(self.waiting_times.remove_entry(&path));
            self.published.insert(path, content);
        }
    }

    /// Nothing waits under this name any more.
    pub(super) fn stop_waiting(&mut self, path: &str) -> bool {
        self.waiting_times.remove(path);
        self.waiting.remove(path).is_some()
    }

    /// Somebody sets the time of a file by its name.
    pub(super) fn touch(&mut self, path: &str, time: i64) -> Outcome {
        self.read(path)?;
        if self.waiting.contains_key(path) {
            self.waiting_times.insert(path.to_owned(), time);
        } else {
            self.times.insert(path.to_owned(), time);
        }
        Ok(())
    }

    /// The time that a file must have, if that is known.
    pub(super) fn time(&self, path: &str) -> Option<i64> {
        let times = if self.is_shown(path) { &self.times } else { &self.waiting_times };
        times.get(path).copied()
    }

    fn is_shown(&self, path: &str) -> bool {
        self.dots.contains_key(path) || self.published.contains_key(path)
    }

    /// Whether `content` may have this name.
    pub(super) fn fits(path: &str, content: &Bytes) -> bool {
        match meaning(path) {
            Meaning::Dot => true,
            Meaning::Blob(name) => digest(content) == name,
            Meaning::Tag => manifest(content).is_some(),
            Meaning::Digest(name) => manifest(content).is_some() && digest(content) == name,
        }
    }

    /// `content` is whole under this name.
    pub(super) fn put(&mut self, path: &str, content: &Bytes) {
        if !matches!(meaning(path), Meaning::Tag | Meaning::Digest(_)) {
            self.times.remove(path);
        }
        match meaning(path) {
            Meaning::Dot => drop(self.dots.insert(path.to_owned(), content.clone())),
            Meaning::Blob(_) => drop(self.published.insert(path.to_owned(), content.clone())),
            Meaning::Tag | Meaning::Digest(_) => {
                // Children that another repository has come with it.
                let dir = dir_of(path);
                for child in manifest(content).unwrap().children() {
                    let found = DIRS.iter().find_map(|other| {
                        self.published.get(&format!("{other}/{}", child.digest)).cloned()
                    });
                    if let Some(found) = found.filter(|found| !self.lacks(found, dir)) {
                        let path = format!("{dir}/{}", child.digest);
                        self.published.entry(path).or_insert(found);
                    }
                }
                self.waiting.insert(path.to_owned(), content.clone());
            }
        }
        self.settle();
    }

    pub(super) fn write(&mut self, path: &str, content: &Bytes) -> Outcome {
        // Without a byte it is not written at all, unless it has been before.
        self.stop_waiting(path);
        if !Self::fits(path, content) {
            return Err("EIO");
        }
        self.put(path, content);
        Ok(())
    }

    /// What is read under a name; `None` if it waits.
    pub(super) fn read(&self, path: &str) -> std::result::Result<Option<Bytes>, &'static str> {
        let found = self.dots.get(path).or_else(|| self.published.get(path));
        match (found, self.waiting.contains_key(path)) {
            (Some(found), _) => Ok(Some(found.clone())),
            (None, true) => Ok(None),
            (None, false) => Err("ENOENT"),
        }
    }

    fn is_named(&self, path: &str) -> bool {
        let names = |content: &Bytes, name: &str| {
            manifest(content).is_some_and(|m| {
                let mut children = m.children().iter();
                m.blobs().any(|blob| blob.digest.to_string() == name)
                    || children.any(|child| child.digest.to_string() == name)
            })
        };
        let by_waiting = |name: &str| self.waiting.values().any(|content| names(content, name));
        match meaning(path) {
            Meaning::Dot | Meaning::Tag => false,
            Meaning::Blob(name) => {
                by_waiting(&name) || self.published.values().any(|content| names(content, &name))
            }
            Meaning::Digest(name) => {
                let mut here = self.published.iter().filter(|(p, _)| dir_of(p) == dir_of(path));
                by_waiting(&name)
                    || here.any(|(other, content)| {
                        names(content, &name)
                            || matches!(meaning(other), Meaning::Tag) && digest(content) == name
                    })
            }
        }
    }

    pub(super) fn unlink(&mut self, path: &str) -> Outcome {
        self.read(path)?;
        if self.dots.remove(path).is_some() {
            self.times.remove(path);
        }
        let was_waiting = self.stop_waiting(path);
        if !self.published.contains_key(path) {
            assert!(was_waiting || matches!(meaning(path), Meaning::Dot));
            return Ok(());
        }
        if self.is_named(path) {
            return Err("EBUSY");
        }
        self.published.remove(path);
        self.times.remove(path);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Outcome {
        if from == to {
            return Ok(());
        }
        self.read(from)?;
        if let Some(published) = self.published.get(from).cloned() {
            if !matches!(meaning(from), Meaning::Tag) {
                return Err("EPERM");
            }
            if !Self::fits(to, &published) {
                return Err("EIO");
            }
            self.stop_waiting(to);
            self.put(to, &published);
            return self.unlink(from);
        }
        let (content, was_waiting) = match self.waiting.get(from) {
            Some(content) => (content.clone(), true),
            None => (self.dots[from].clone(), false),
        };
        if !Self::fits(to, &content) {
            return Err("EIO");
        }
        // The time goes with the file.
        let time =
            if was_waiting { self.waiting_times.remove(from) } else { self.times.remove(from) };
        if was_waiting {
            self.waiting.remove(from);
        } else {
            self.dots.remove(from);
        }
        self.stop_waiting(to);
        self.put(to, &content);
        if let Some(time) = time {
            self.touch(to, time)?;
        }
        Ok(())
    }

    pub(super) fn link(&mut self, from: &str, to: &str) -> Outcome {
        self.read(from)?;
        if self.read(to).is_ok() {
            return Err("EEXIST");
        }
        if matches!(meaning(from), Meaning::Blob(_)) {
            return Err("EPERM");
        }
        let content = self.published.get(from).or_else(|| self.waiting.get(from));
        let content = content.or_else(|| self.dots.get(from)).unwrap().clone();
        if !Self::fits(to, &content) {
            return Err("EIO");
        }
        self.put(to, &content);
        Ok(())
    }
}
