//! What an images_dir holds: its images, what each needs, and what of that is there. Nothing is
//! hashed here but manifests, which are small.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
};

use super::{
    ImagesDir, Inner, Problem, ProblemKind, STATE, Subject,
    layout::{self, BLOBS, LAYOUT_MAP, LayoutMap, RepositoryDir},
    read_manifest,
};
use crate::{
    backend::{DirEntry, Error, FileType, Kind, Result},
    image::{
        Algorithm, Descriptor, Digest, FilteredIndex, Manifest, Platform, Reference, Repository,
        View, is_attachment_tag,
    },
    util::drop_repeats,
};

/// The largest configuration that is read to find out an image's platform, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Nested indexes below this depth are not followed.
const MAX_INDEX_DEPTH: usize = 8;

/// An image in an images_dir.
#[derive(Clone, Debug)]
pub struct ImageEntry {
    /// Its name, Docker Hub as `docker.io`.
    pub reference: Reference,
    /// Digest of its manifest or index.
    pub digest: Digest,
    /// Media type of the same.
    pub media_type: String,
    /// What it runs on, as far as that is known.
    pub platforms: Vec<String>,
    /// All blobs that it needs, with their sizes in bytes.
    pub blobs: BTreeMap<Digest, u64>,
    /// Bytes of all its manifests.
    pub manifest_bytes: u64,
    /// What it lacks.
    pub missing: Vec<Missing>,
    /// Whether this is the tag of a signature or the like, and not an image of its own.
    pub is_attachment: bool,
}

impl ImageEntry {
    /// Bytes of all that the image consists of.
    pub fn bytes(&self) -> u64 {
        self.blobs.values().sum::<u64>() + self.manifest_bytes
    }
}

/// Something that an image needs and that is not there, or not of its right size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it is a manifest and not a blob.
    pub is_manifest: bool,
}

/// All that is in an images_dir.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The images, by name.
    pub images: Vec<ImageEntry>,
    /// What is wrong with names and manifests.
    pub problems: Vec<Problem>,
    /// Files in `blobs/` with a digest's name, with their sizes in bytes.
    pub blobs: BTreeMap<Digest, u64>,
    /// What else in `blobs/` has a digest's name, and is no regular file.
    pub odd_blobs: BTreeMap<Digest, FileType>,
    /// What each blob should be, and who needs it.
    pub needed: BTreeMap<Digest, Need>,
    /// Repositories that have manifests to which nothing leads, and no image: no tag, and no note of what somebody has
    /// asked for by its digest, which a copy of a mount does not have.
    pub nameless: Vec<Repository>,
    /// Symbolic links to a directory above themselves, below the root of the tree: all that they could show is
    /// shown without them.
    upward_links: HashSet<String>,
    /// Digest-named manifests that no tag, pin or referrer leads to.
    pub(super) orphans: Vec<PathBuf>,
}

/// Who needs a blob.
#[derive(Debug, Clone)]
pub struct Need {
    /// What its descriptors say.
    pub descriptor: Descriptor,
    /// Images that have it, by their place in [`Inventory::images`].
    pub images: Vec<usize>,
}

impl Inventory {
    /// The names of the images that need `blob`.
    pub fn users(&self, blob: &Digest) -> Vec<Reference> {
        let need = self.needed.get(blob);
        let images = need.into_iter().flat_map(|need| &need.images);
        images.filter_map(|&i| Some(self.images.get(i)?.reference.clone())).collect()
    }

    /// What may stand for images that are not among [`Inventory::images`]: symbolic links, which are not
    /// followed, and tags and maps of tags that cannot be read.
    pub fn hidden(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| match &problem.subject {
            Some(Subject::Tag(_) | Subject::Map(_)) => true,
            Some(Subject::Manifest { tag, .. }) => tag.is_some(),
            Some(Subject::Blob(..)) => false,
            None => {
                problem.kind == ProblemKind::Symlink && !self.upward_links.contains(&problem.path)
            }
        })
    }

    /// What the user should know of [`Inventory::nameless`], one line each.
    pub fn notices(&self) -> impl Iterator<Item = String> {
        self.nameless.iter().map(|repository| {
            format!(
                "{repository}: left out: it has manifests, and neither a tag nor a note of what was asked for by its digest, \
                 as in a copy of a mount; name what you want with its digest (IMAGE@sha256:...)"
            )
        })
    }

    /// Number of images. What is attached to an image is part of it.
    pub fn image_count(&self) -> usize {
        self.images.iter().filter(|image| !image.is_attachment).count()
    }

    /// Bytes of `image` that another image has as well.
    pub fn shared_bytes(&self, image: &ImageEntry) -> u64 {
        let shared = |digest: &Digest| self.needed.get(digest).is_some_and(|n| n.images.len() > 1);
        image.blobs.iter().filter(|(digest, _)| shared(digest)).map(|(_, size)| size).sum()
    }
}

/// Whether a symbolic link leads to a directory that it is in.
fn leads_upwards(link: &Path) -> bool {
    let above = link.parent().map(Path::canonicalize);
    match (link.canonicalize(), above) {
        (Ok(target), Some(Ok(above))) => above.starts_with(target),
        _ => false,
    }
}

impl ImagesDir {
    /// Reads all names and manifests.
    pub fn inventory(&self) -> Result<Inventory> {
        let inner = &self.inner;
        let walk = layout::walk(&inner.root, inner.layout);
        let walk = walk.map_err(|e| Error::io(inner.root.path(), "reading", e))?;
        let mut inventory = Inventory::default();
        let stray_blobs = inner.list_blobs(&mut inventory)?;
        for path in walk.stray.into_iter().chain(stray_blobs) {
            inventory.problems.push(Problem::stray(inner.relative(&path)));
        }
        for path in walk.links {
            if leads_upwards(&path) {
                inventory.upward_links.insert(inner.relative(&path));
            }
            inventory.problems.push(Problem::link(inner.relative(&path)));
        }
        for dir in walk.repositories {
            Scan::new(inner, &dir, &mut inventory).run();
        }
        inventory.images.sort_by(|a, b| a.reference.cmp(&b.reference));
        for (index, image) in inventory.images.iter().enumerate() {
            for (digest, &size) in &image.blobs {
                let need = inventory.needed.entry(*digest).or_insert_with(|| Need {
                    descriptor: Descriptor::new("", *digest, size),
                    images: Vec::new(),
                });
                need.images.push(index);
            }
        }
        Ok(inventory)
    }
}

impl Inner {
    /// A path as it is shown: below the root.
    pub(super) fn relative(&self, path: &std::path::Path) -> String {
        path.strip_prefix(self.root.path()).unwrap_or(path).display().to_string()
    }

    /// Finds what in `blobs/` is named by a digest. Returns what else is there.
    fn list_blobs(&self, inventory: &mut Inventory) -> Result<Vec<PathBuf>> {
        let path = self.root.path().join(BLOBS);
        let failed = |e| Error::io(&path, "reading", e);
        let dir = match self.root.open_dir(&path) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut stray = Vec::new();
        for DirEntry { name, kind } in dir.entries().map_err(failed)? {
            let digest = name.to_str().and_then(|name| self.layout.parse_digest(name));
            match (digest, kind) {
                (Some(digest), FileType::RegularFile) => {
                    // What has gone meanwhile is not there.
                    let Ok(stat) = dir.stat(&name) else { continue };
                    inventory.blobs.insert(digest, u64::try_from(stat.st_size).unwrap_or(0));
                }
                (Some(digest), kind) => drop(inventory.odd_blobs.insert(digest, kind)),
                _ if name == STATE && kind == FileType::Directory => {}
                _ => stray.push(path.join(name)),
            }
        }
        Ok(stray)
    }

    /// What the configuration of a single image says it runs on.
    fn platform_of(&self, config: &Descriptor) -> Option<Platform> {
        let text = self.root.read(&self.blob_path(&config.digest), MAX_CONFIG_BYTES).ok()?;
        Platform::of_config(&text)
    }
}

/// Reads one repository into an inventory.
struct Scan<'a> {
    inner: &'a Inner,
    dir: &'a RepositoryDir,
    inventory: &'a mut Inventory,
    /// Digest-named manifests that are what their names say.
    manifests: HashMap<Digest, Manifest>,
    /// Those that some name leads to.
    reached: HashSet<Digest>,
}

impl<'a> Scan<'a> {
    fn new(inner: &'a Inner, dir: &'a RepositoryDir, inventory: &'a mut Inventory) -> Self {
        Self { inner, dir, inventory, manifests: HashMap::new(), reached: HashSet::new() }
    }

    fn run(mut self) {
        let (dir, repository) = (self.dir, &self.dir.repository);
        let before = (self.inventory.images.len(), self.inventory.orphans.len());
        for digest in &dir.digests {
            self.read_by_digest(digest);
        }
        for tag in &dir.tags {
            // The map is newer than a file: KubeKey writes it on top of what it finds.
            if matches!(&dir.map, Some(LayoutMap::Map(map)) if map.contains_key(tag)) {
                continue;
            }
            let reference = repository.tagged(tag);
            let stored = self.inner.layout.tag_name(tag);
            let path = dir.manifests.join(&*stored);
            match read_manifest(&self.inner.root, &path, Algorithm::Sha256) {
                Ok(manifest) => self.add_image(reference, &manifest),
                Err(error) => {
                    let name = Subject::Tag(reference);
                    self.problem(
                        &stored,
                        ProblemKind::Unreadable,
                        "a manifest",
                        &error.kind().to_string(),
                        name,
                    );
                }
            }
        }
        match &dir.map {
            Some(LayoutMap::Map(map)) => {
                for (tag, digest) in map {
                    let reference = repository.tagged(tag);
                    match self.manifests.get(digest).cloned() {
                        Some(manifest) => self.add_image(reference, &manifest),
                        None => self.problem(
                            LAYOUT_MAP,
                            ProblemKind::DanglingTag,
                            &digest.to_string(),
                            "no such manifest",
                            Subject::Manifest {
                                repository: repository.clone(),
                                digest: *digest,
                                tag: Some(tag.clone()),
                            },
                        ),
                    }
                }
            }
            Some(LayoutMap::Broken) => self.problem(
                LAYOUT_MAP,
                ProblemKind::Unreadable,
                "a JSON map from tags to digests",
                "something else",
                Subject::Map(repository.clone()),
            ),
            None => {}
        }
        self.note_links();
        self.add_pins();
        self.follow_referrers();
        self.note_orphans();
        let mut images = self.inventory.images.iter().skip(before.0);
        if images.all(|image| image.is_attachment) && self.inventory.orphans.len() > before.1 {
            self.inventory.nameless.push(repository.clone());
        }
    }

    /// Links in place of manifests: a repair puts the manifest itself there. Of a map it is not known what
    /// it should hold.
    fn note_links(&mut self) {
        for name in &self.dir.links {
            let repository = self.dir.repository.clone();
            let stored = self.inner.layout.stored_name(layout::MANIFESTS, name);
            let path = self.inner.relative(&self.dir.manifests.join(&*stored));
            let mut problem = Problem::link(path);
            problem.expected = "a file".to_owned();
            problem.subject = match name.parse::<Digest>() {
                Ok(digest) => Some(Subject::Manifest { repository, digest, tag: None }),
                Err(_) if name == LAYOUT_MAP => None,
                Err(_) => {
                    let reference = repository.tagged(name);
                    problem.images = vec![reference.to_string()];
                    Some(Subject::Tag(reference))
                }
            };
            self.inventory.problems.push(problem);
        }
    }

    fn problem(
        &mut self,
        file: &str,
        kind: ProblemKind,
        expected: &str,
        found: &str,
        subject: Subject,
    ) {
        let path = self.inner.relative(&self.dir.manifests.join(file));
        let images = match &subject {
            Subject::Tag(reference) => vec![reference.to_string()],
            Subject::Manifest { repository, tag: Some(tag), .. } => {
                vec![repository.tagged(tag).to_string()]
            }
            _ => Vec::new(),
        };
        self.inventory.problems.push(Problem {
            path,
            kind,
            expected: expected.to_owned(),
            found: found.to_owned(),
            images,
            subject: Some(subject),
            repaired: false,
        });
    }

    fn read_by_digest(&mut self, digest: &Digest) {
        let name = self.inner.layout.digest_name(digest);
        let expected = digest.to_string();
        let path = self.dir.manifests.join(&name);
        let subject = || Subject::Manifest {
            repository: self.dir.repository.clone(),
            digest: *digest,
            tag: None,
        };
        let size = self.inner.root.stat(&path).map_or(0, |meta| meta.len());
        match read_manifest(&self.inner.root, &path, digest.algorithm()) {
            Ok(manifest) if manifest.digest() == *digest => {
                self.manifests.insert(*digest, manifest);
            }
            Ok(manifest) => {
                let (found, subject) = (manifest.digest().to_string(), subject());
                self.problem(&name, ProblemKind::Corrupt, &expected, &found, subject);
            }
            Err(error) => {
                let kind = match error.kind() {
                    Kind::Io(_) => ProblemKind::Unreadable,
                    _ if size == 0 => ProblemKind::Truncated,
                    _ => ProblemKind::Corrupt,
                };
                let (found, subject) = (format!("{size} bytes: {}", error.kind()), subject());
                self.problem(&name, kind, &expected, &found, subject);
            }
        }
    }

    fn add_image(&mut self, reference: Reference, manifest: &Manifest) {
        let is_attachment = reference.tag().is_some_and(is_attachment_tag);
        let mut image = ImageEntry {
            reference,
            digest: manifest.digest(),
            media_type: manifest.media_type().to_owned(),
            platforms: Vec::new(),
            blobs: BTreeMap::new(),
            manifest_bytes: 0,
            missing: Vec::new(),
            is_attachment,
        };
        let mut seen = HashSet::new();
        self.add_manifest(&mut image, manifest, &mut seen, 0);
        drop_repeats(&mut image.platforms);
        self.inventory.images.push(image);
    }

    fn add_manifest(
        &mut self,
        image: &mut ImageEntry,
        manifest: &Manifest,
        seen: &mut HashSet<Digest>,
        depth: usize,
    ) {
        if !seen.insert(manifest.digest()) || depth > MAX_INDEX_DEPTH {
            return;
        }
        self.reached.insert(manifest.digest());
        // What is attached to an index stays with what a platform filter has made of it.
        let original = manifest.annotations().get(FilteredIndex::ORIGINAL);
        self.reached.extend(original.and_then(|digest| digest.parse::<Digest>().ok()));
        image.manifest_bytes += manifest.bytes().len() as u64;
        for blob in manifest.blobs() {
            let there = self.inventory.blobs.get(&blob.digest);
            let first = image.blobs.insert(blob.digest, blob.size).is_none();
            if first && there != Some(&blob.size) {
                let (digest, bytes) = (blob.digest, blob.size);
                image.missing.push(Missing { digest, bytes, is_manifest: false });
            }
        }
        match manifest.view() {
            View::Image { config, .. } if depth == 0 && !image.is_attachment => {
                image.platforms.extend(self.inner.platform_of(config).map(|p| p.to_string()));
            }
            View::Image { .. } => {}
            View::Index { children, .. } => {
                let wanted = self.inner.wanted(manifest.digest(), children);
                for (child, wanted) in children.iter().zip(wanted) {
                    match self.manifests.get(&child.digest).cloned() {
                        Some(manifest) => {
                            let platform = child.platform.clone();
                            let platform = platform.or_else(|| self.configured(&manifest));
                            let named = platform.filter(|platform| !platform.is_unknown());
                            image.platforms.extend(named.map(|platform| platform.to_string()));
                            self.add_manifest(image, &manifest, seen, depth + 1);
                        }
                        None if wanted && seen.insert(child.digest) => {
                            let (digest, bytes) = (child.digest, child.size);
                            image.missing.push(Missing { digest, bytes, is_manifest: true });
                        }
                        None => {}
                    }
                }
            }
        }
    }

    /// What a child of an index runs on, of which the index does not say that.
    fn configured(&self, child: &Manifest) -> Option<Platform> {
        match child.view() {
            View::Image { config, .. } if config.is_image_config() => {
                self.inner.platform_of(config)
            }
            _ => None,
        }
    }

    /// Images that were asked for by digest.
    fn add_pins(&mut self) {
        let mut pinned: Vec<Manifest> = self
            .manifests
            .values()
            .filter(|m| self.inner.records.is_pinned(&self.dir.repository.pinned(m.digest())))
            .cloned()
            .collect();
        pinned.sort_by_key(Manifest::digest);
        for manifest in pinned {
            self.add_image(self.dir.repository.pinned(manifest.digest()), &manifest);
        }
    }

    /// Referrers belong to the image that they refer to, and theirs to them.
    fn follow_referrers(&mut self) {
        loop {
            let next = self.manifests.values().find(|m| {
                !self.reached.contains(&m.digest())
                    && m.subject().is_some_and(|s| self.reached.contains(&s.digest))
            });
            let Some(referrer) = next.cloned() else { return };
            let subject = referrer.subject().map(|s| s.digest);
            let repository: &Repository = &self.dir.repository;
            let mut image = self
                .inventory
                .images
                .iter()
                .position(|i| i.reference.repository() == repository && Some(i.digest) == subject)
                .map(|at| self.inventory.images.remove(at));
            let standing_in = ImageEntry {
                reference: repository.pinned(referrer.digest()),
                digest: referrer.digest(),
                media_type: referrer.media_type().to_owned(),
                platforms: Vec::new(),
                blobs: BTreeMap::new(),
                manifest_bytes: 0,
                missing: Vec::new(),
                is_attachment: true,
            };
            let entry = image.get_or_insert(standing_in);
            let platforms = std::mem::take(&mut entry.platforms);
            self.add_manifest(entry, &referrer, &mut HashSet::new(), 1);
            entry.platforms = platforms;
            self.inventory.images.extend(image);
        }
    }

    fn note_orphans(&mut self) {
        for digest in self.manifests.keys().filter(|digest| !self.reached.contains(digest)) {
            let name = self.inner.layout.digest_name(digest);
            self.inventory.orphans.push(self.dir.manifests.join(name));
        }
    }
}
