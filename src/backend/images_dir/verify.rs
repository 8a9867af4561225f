//! Whether an images_dir is whole: names, manifests, sizes, and the hash of every byte that has
//! not been hashed since it last changed (or of every byte, if asked).

use std::{
    io,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{ImagesDir, Inventory, PARTIAL, hash_file};
use crate::{
    backend::{Error, FileType, Result},
    image::{Descriptor, Digest, Reference, Repository},
    util::locked,
};

/// What a symbolic link is found to be.
const LINK: &str = "a symbolic link, which is not followed";

/// Something that is not as it should be.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The file, below the root of the tree.
    pub path: String,
    /// What is wrong with it.
    pub kind: ProblemKind,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// The images that suffer from it.
    pub images: Vec<String>,
    /// What would have to be fetched to repair it; `None` where nothing can.
    pub subject: Option<Subject>,
    /// Whether it has been repaired since.
    pub repaired: bool,
}

/// Kinds of [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// Shorter than it should be (or longer), as a killed KubeKey leaves it.
    Truncated,
    /// The right size, but other content.
    Corrupt,
    /// Not there at all.
    Missing,
    /// Not a manifest, or not readable.
    Unreadable,
    /// A tag that points at a manifest that is not there.
    DanglingTag,
    /// A symbolic link. None is followed, so whatever it points at is not part of the tree.
    Symlink,
    /// A file that nothing reads. Harmless.
    Stray,
}

impl ProblemKind {
    /// Its name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Corrupt => "corrupt",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
            Self::DanglingTag => "dangling-tag",
            Self::Symlink => "symlink",
            Self::Stray => "stray",
        }
    }

    /// Whether an image suffers from it.
    pub fn is_harmful(self) -> bool {
        self != Self::Stray
    }
}

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A blob, and an image that needs it.
    Blob(Reference, Box<Descriptor>),
    /// A manifest by digest, and the tag that points at it, if one does.
    Manifest {
        /// Its repository.
        repository: Repository,
        /// Its digest.
        digest: Digest,
        /// The tag.
        tag: Option<String>,
    },
    /// The manifest of a tag.
    Tag(Reference),
    /// The map of tags of a repository.
    Map(Repository),
}

impl Problem {
    /// A link, of which nobody knows what was meant to be there.
    pub(super) fn link(path: String) -> Self {
        Self {
            path,
            kind: ProblemKind::Symlink,
            expected: "a file or a directory".into(),
            found: LINK.into(),
            images: Vec::new(),
            subject: None,
            repaired: false,
        }
    }

    pub(super) fn stray(path: String) -> Self {
        Self {
            path,
            kind: ProblemKind::Stray,
            expected: "nothing".into(),
            found: "a file that no image needs".into(),
            images: Vec::new(),
            subject: None,
            repaired: false,
        }
    }
}

/// The result of [`ImagesDir::verify`].
#[derive(Debug, Default)]
pub struct Verified {
    /// All that is wrong, by path.
    pub problems: Vec<Problem>,
    /// Number of images, without what is attached to them.
    pub images: usize,
    /// Blobs that were looked at.
    pub checked_blobs: usize,
    /// Their bytes.
    pub checked_bytes: u64,
    /// Bytes that were hashed, the others being known to be unchanged since they were.
    pub hashed_bytes: u64,
}

impl ImagesDir {
    /// Checks everything. With `full`, blobs are hashed again that are known to be unchanged.
    /// `progress` is called from several threads with numbers of bytes done.
    pub fn verify(&self, full: bool, progress: &(dyn Fn(u64) + Sync)) -> Result<Verified> {
        let inner = &self.inner;
        let inventory = self.inventory()?;
        let mut verified = Verified { images: inventory.image_count(), ..Verified::default() };
        let mut to_hash: Vec<(Digest, u64)> = Vec::new();
        for (digest, &size) in &inventory.blobs {
            verified.checked_blobs += 1;
            verified.checked_bytes += size;
            if inventory.needed.get(digest).is_some_and(|need| need.descriptor.size != size) {
                continue; // Reported below; its hash cannot be right.
            }
            let meta = inner.root.stat(&inner.blob_path(digest));
            let known = meta.is_ok_and(|meta| inner.records.is_verified(digest, &meta));
            if full || !known {
                to_hash.push((*digest, size));
            }
        }
        to_hash.sort_by_key(|&(digest, size)| (std::cmp::Reverse(size), digest));
        let failures = self.hash_all(&to_hash, progress)?;
        verified.hashed_bytes = to_hash.iter().map(|(_, size)| size).sum();
        verified.problems = inventory.problems.clone();
        name_users(&mut verified.problems, &inventory);
        verified.problems.extend(missing(&inventory, inner));
        for (digest, kind, found) in failures {
            let path = inner.relative(&inner.blob_path(&digest));
            verified.problems.push(blob_problem(
                &inventory,
                digest,
                path,
                kind,
                digest.to_string(),
                found,
            ));
        }
        verified.problems.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(verified)
    }

    /// Hashes blobs on all processors, the largest first. Returns those that failed.
    fn hash_all(
        &self,
        blobs: &[(Digest, u64)],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<(Digest, ProblemKind, String)>> {
        let inner = &self.inner;
        // Without a place for records (a tree that imgfs never wrote to) there are none.
        let recording = inner.root.is_dir(&inner.state_dir());
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(Vec::new());
        let trouble: Mutex<Option<io::Error>> = Mutex::new(None);
        let work = || {
            while let Some(&(digest, _)) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let path = inner.blob_path(&digest);
                let hashed = hash_file(&inner.root, &path, digest.algorithm(), &mut |n| {
                    progress(n as u64);
                });
                let failure = match hashed {
                    Ok(hashed) if hashed.digest == digest => {
                        if !recording {
                            continue;
                        }
                        let held = super::held_on_disk(&hashed.file);
                        if let Err(e) = inner.records.verified(digest, &hashed.meta, held) {
                            *locked(&trouble) = Some(e);
                        }
                        continue;
                    }
                    Ok(hashed) => {
                        if recording {
                            // It must not be trusted from now on, whatever was known of it. If this
                            // cannot be written, it is found again by the next full run.
                            let _ = inner.records.distrust(digest);
                        }
                        (digest, ProblemKind::Corrupt, hashed.digest.to_string())
                    }
                    Err(e) => (digest, ProblemKind::Unreadable, e.to_string()),
                };
                locked(&failures).push(failure);
            }
        };
        let threads =
            thread::available_parallelism().map_or(1, usize::from).min(blobs.len().max(1));
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        match trouble.into_inner().unwrap_or_else(PoisonError::into_inner) {
            // A tree on a read-only file system can be verified all the same.
            Some(e)
                if e.kind() != io::ErrorKind::ReadOnlyFilesystem
                    && e.kind() != io::ErrorKind::PermissionDenied =>
            {
                Err(inner.records_error(e))
            }
            _ => Ok(failures.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Files of downloads that were interrupted, with their sizes in bytes.
    pub fn partial_downloads(&self) -> Result<Vec<(PathBuf, u64)>> {
        let dir = self.inner.state_dir().join(PARTIAL);
        let failed = |e| Error::io(&dir, "reading", e);
        let opened = match self.inner.root.open_dir(&dir) {
            Ok(opened) => opened,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut found = Vec::new();
        for entry in opened.entries().map_err(failed)? {
            if let Ok(stat) = opened.stat(&entry.name) {
                found.push((dir.join(&entry.name), u64::try_from(stat.st_size).unwrap_or(0)));
            }
        }
        Ok(found)
    }
}

/// Adds to damaged manifests the images that suffer.
fn name_users(problems: &mut [Problem], inventory: &Inventory) {
    for problem in problems {
        let Some(Subject::Manifest { repository, digest, .. }) = &problem.subject else { continue };
        let suffers = |image: &&super::ImageEntry| {
            image.reference.repository() == repository
                && image.missing.iter().any(|lack| lack.is_manifest && lack.digest == *digest)
        };
        let users = inventory.images.iter().filter(suffers);
        problem.images.extend(users.map(|image| image.reference.to_string()));
    }
}

/// Blobs and manifests that images need and that are not there, or not of the right size.
fn missing(inventory: &Inventory, inner: &super::Inner) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (digest, need) in &inventory.needed {
        let found = inventory.blobs.get(digest);
        if found == Some(&need.descriptor.size) {
            continue;
        }
        let path = inner.relative(&inner.blob_path(digest));
        let expected = format!("{} bytes", need.descriptor.size);
        let (kind, found) = match (found, inventory.odd_blobs.get(digest)) {
            (Some(size), _) => (ProblemKind::Truncated, format!("{size} bytes")),
            (None, Some(FileType::Symlink)) => (ProblemKind::Symlink, LINK.to_owned()),
            (None, Some(_)) => {
                (ProblemKind::Missing, "something that is no regular file".to_owned())
            }
            (None, None) => (ProblemKind::Missing, "no such file".to_owned()),
        };
        problems.push(blob_problem(inventory, *digest, path, kind, expected, found));
    }
    for (digest, kind) in &inventory.odd_blobs {
        if inventory.needed.contains_key(digest) {
            continue;
        }
        let path = inner.relative(&inner.blob_path(digest));
        problems.push(match kind {
            FileType::Symlink => {
                let (expected, found) = (digest.to_string(), LINK.to_owned());
                blob_problem(inventory, *digest, path, ProblemKind::Symlink, expected, found)
            }
            _ => Problem::stray(path),
        });
    }
    for image in &inventory.images {
        for lack in image.missing.iter().filter(|lack| lack.is_manifest) {
            let repository = image.reference.repository().clone();
            let path =
                inner.manifests_dir(&repository).join(inner.layout.digest_name(&lack.digest));
            let path = inner.relative(&path);
            if let Some(known) = problems.iter_mut().find(|p: &&mut Problem| p.path == path) {
                known.images.push(image.reference.to_string());
                continue;
            }
            // A damaged one has been reported as such.
            if inventory.problems.iter().any(|p| p.path == path) {
                continue;
            }
            problems.push(Problem {
                path,
                kind: ProblemKind::Missing,
                expected: format!("a manifest of {} bytes", lack.bytes),
                found: "no such file".into(),
                images: vec![image.reference.to_string()],
                subject: Some(Subject::Manifest { repository, digest: lack.digest, tag: None }),
                repaired: false,
            });
        }
    }
    problems
}

fn blob_problem(
    inventory: &Inventory,
    digest: Digest,
    path: String,
    kind: ProblemKind,
    expected: String,
    found: String,
) -> Problem {
    let users = inventory.users(&digest);
    let need = inventory.needed.get(&digest);
    let subject = users
        .first()
        .zip(need)
        .map(|(image, need)| Subject::Blob(image.clone(), Box::new(need.descriptor.clone())));
    let found = match users.is_empty() {
        true => format!("{found}; no image needs it, `imgfs prune` removes it"),
        false => found,
    };
    let images = users.iter().map(ToString::to_string).collect();
    Problem { path, kind, expected, found, images, subject, repaired: false }
}
