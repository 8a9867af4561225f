//! The mounted namespace: an images_dir, together with all that a pull would write into it.
//!
//! Of the images_dir, blobs, manifests and maps of tags are shown, as they are, and with no more permissions
//! than they have there; symbolic links and other files are not. Above it lies the catalogue: manifests, tags and
//! blobs of images that have been declared or looked up, and that are not in the directory. What a
//! path can be is known by its form (`names.rs`), so that only names that a registry may have are
//! asked for, and nothing that is merely listed touches the network.
//!
//! Plain values in and out: no kernel is needed. Questions that may have to wait are answered in two
//! steps. [`View::lookup`] answers at once, or says what has to be found out; [`View::find_out`] does
//! that, and may take its time. The same for [`View::open`] and for reading.

mod handle;
mod inside;
mod listing;
mod names;
mod served;
mod subject;
mod table;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsStr,
    fs::Metadata,
    io,
    num::NonZeroUsize,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use lru::LruCache;

pub use handle::{Handle, RemoteBlob};
pub use listing::Listing;
pub use served::Namespace;
pub use subject::Subject;
pub use table::ROOT;

use inside::Inside;
use names::{Form, form};
use table::{Kind, Table};

use crate::{
    backend::{
        self, Backend, Error, SymlinkRefused,
        images_dir::{ImagesDir, holds_manifests, published_time},
    },
    cache::Cache,
    catalogue::{self, Catalogue},
    image::{Digest, Manifest, Platform, Reference},
    layer::Kind as FileKind,
    rootfs::{Images, Sources},
    transfer::Options,
    util::{Budget, locked},
};

/// How long the kernel may keep what cannot change: what is named by its digest.
const FOR_GOOD: Duration = Duration::from_secs(24 * 3600);

/// The longest name of a file in bytes, as everywhere in Linux.
const MAX_NAME_BYTES: usize = 255;

/// How long it may keep that something is not there.
const ABSENT: Duration = Duration::from_secs(2);

/// Directories of which is remembered what they looked like.
const MAX_LISTED: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// How a view behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which platforms of an image are shown, and so on, as for a pull.
    pub options: Options,
    /// After this time a tag is looked up again.
    pub tag_ttl: Duration,
    /// The platform that is shown where only one can be.
    pub platform: Platform,
    /// A layer of which nothing comes for so long is given up.
    pub patience: Duration,
    /// Whether nothing inside a layer is shown before all of the layer has been verified.
    pub verify_first: bool,
    /// The memory that all of it may take.
    pub budget: Budget,
}

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
    fn new(mode: u32, gid: u32) -> Self {
        // 9 bits.
        Self { mode: (mode & 0o777) as u16, gid }
    }

    fn of(meta: &Metadata) -> Self {
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
    fn directory(ino: u64, mtime: (i64, u32)) -> Self {
        Self { kind: FileKind::Dir, ..Self::file(ino, 0, mtime) }
    }

    fn file(ino: u64, size: u64, mtime: (i64, u32)) -> Self {
        let kind = FileKind::File;
        Self { ino, kind, size, stored_bytes: size, mtime, inside: None, local: None }
    }

    fn symlink(ino: u64, size: u64) -> Self {
        Self { kind: FileKind::Symlink, ..Self::file(ino, size, published_time(None)) }
    }

    fn with_access(self, local: LocalAccess) -> Self {
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
    /// A registry has to be asked: by [`View::find_out`].
    Ask(Question),
}

/// A name whose meaning takes time to find out.
#[derive(Clone, Debug)]
pub struct Question {
    path: String,
    about: About,
}

/// What has to be found out.
#[derive(Clone, Debug)]
enum About {
    /// What a registry has under this name.
    Name(Reference),
    /// What is inside an image.
    Inside(inside::Wanted),
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

/// A failure of the view that is none of a tree.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The kernel speaks of an inode that it should have forgotten.
    #[error("no such inode")]
    Stale,
    /// A tree has failed.
    #[error("{0}")]
    Tree(#[from] Error),
    /// It is not local, and the network is not to be used.
    #[error("{0} is not local, and imgfs is offline")]
    Offline(String),
    /// It is a directory, or it is none; or its name is too long.
    #[error("{0}")]
    Wrong(io::ErrorKind),
}

/// The namespace of a mount. `S` is where images come from.
pub struct View {
    catalogue: Catalogue,
    cache: Option<Cache>,
    settings: Settings,
    table: Mutex<Table>,
    /// What each directory looked like when it was last listed.
    listed: Mutex<LruCache<u64, Option<listing::Stamp>>>,
    /// `None` if there is no cache to read with.
    inside: Option<Inside>,
}

impl View {
    /// A view of `dir`, of what `source` can bring, if that is not to be offline, and of what of
    /// that is in `cache`.
    pub fn new(
        dir: ImagesDir,
        source: Option<Arc<dyn Backend>>,
        cache: Option<Cache>,
        settings: Settings,
    ) -> Arc<Self> {
        let of_names = catalogue::Settings {
            options: settings.options.clone(),
            tag_ttl: settings.tag_ttl,
            // The kernel keeps that for as long as it is told to.
            absent_ttl: Duration::ZERO,
        };
        let catalogue = Catalogue::new(dir, source, of_names, &settings.budget);
        let inside = cache.clone().map(|cache| {
            let images = Images::new(Sources {
                catalogue: catalogue.clone(),
                cache,
                patience: settings.patience,
                verify_first: settings.verify_first,
                memory: settings.budget.clone(),
            });
            Inside::new(images, catalogue.clone(), &settings)
        });
        Arc::new(Self {
            inside,
            catalogue,
            cache,
            settings,
            table: Mutex::new(Table::new()),
            listed: Mutex::new(LruCache::new(MAX_LISTED)),
        })
    }

    /// The images_dir.
    pub fn dir(&self) -> &ImagesDir {
        self.catalogue.dir()
    }

    /// How many inodes the kernel knows, the root not counted.
    pub fn known_inodes(&self) -> usize {
        locked(&self.table).len()
    }

    /// Lists `image` although it has not been looked up yet.
    pub fn declare(&self, image: &Reference) {
        self.catalogue.declare(image);
    }

    /// Looks `image` up, so that what belongs to it is listed.
    pub async fn resolve(&self, image: &Reference) -> Result<(), ViewError> {
        match self.catalogue.look_up(image).await {
            Err(error) if matches!(error.kind(), backend::Kind::Offline) => {
                Err(ViewError::Offline(image.to_string()))
            }
            looked_up => Ok(looked_up?),
        }
    }

    // --- names ---

    /// What `name` in the directory `parent` leads to.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found, ViewError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(ViewError::Wrong(io::ErrorKind::InvalidFilename));
        }
        if let Some((tree, node)) = self.in_tree(parent) {
            return self.lookup_in_tree(tree, node, name);
        }
        let above = self.path_of(parent)?;
        // What is not UTF-8 is nothing that a registry has; in the images_dir it is nobody's.
        let Some(name) = name.to_str() else {
            return Ok(match form(&above) {
                Form::Inside => self.ask_for_bytes(&above, name),
                _ => Found::Absent(ABSENT),
            });
        };
        self.look(&below(&above, name))
    }

    /// Whether a blob in the images_dir has been cut short by a KubeKey that was killed: it is as
    /// good as none.
    fn has_other_size(&self, blob: Option<&Digest>, size: u64) -> bool {
        let Some(digest) = blob else { return false };
        self.catalogue.blob_size(digest).is_some_and(|known| known != size)
    }

    fn look(&self, path: &str) -> Result<Found, ViewError> {
        let form = form(path);
        match form {
            Form::Own => return Ok(Found::Absent(ABSENT)),
            Form::Inside => return self.look_inside(path),
            _ => {}
        }
        if let Some(entry) = self.local(path, &form)? {
            return Ok(Found::Entry(entry));
        }
        match form {
            Form::Directory | Form::Way => Ok(Found::Entry(self.directory(path))),
            Form::Blob(digest) => Ok(match self.catalogue.blob_size(&digest) {
                Some(size) => Found::Entry(self.blob(path, digest, size)),
                None => Found::Absent(ABSENT),
            }),
            Form::Manifest(name) => {
                let is_offline = self.catalogue.source().is_none();
                match self.catalogue.manifest(&name) {
                    Some(known) if !known.is_stale || is_offline => {
                        Ok(Found::Entry(self.manifest(path, &name, &known.manifest)))
                    }
                    _ => {
                        let about = About::Name(name);
                        Ok(Found::Ask(Question { path: path.to_owned(), about }))
                    }
                }
            }
            Form::Other | Form::Own | Form::Inside => Ok(Found::Absent(ABSENT)),
        }
    }

    /// Finds out what it takes, and answers the lookup again.
    pub async fn find_out(&self, question: &Question) -> Result<Found, ViewError> {
        let name = match &question.about {
            About::Name(name) => name,
            About::Inside(wanted) => return self.find_out_inside(&question.path, wanted).await,
        };
        match self.resolve(name).await {
            Err(ViewError::Tree(error)) if error.is_not_found() => {
                return Ok(Found::Absent(ABSENT));
            }
            resolved => resolved?,
        }
        match self.look(&question.path)? {
            // The time for which it holds is over before it could be told.
            Found::Ask(question) => Ok(match self.known_by_name(&question) {
                Some((name, manifest)) => {
                    Found::Entry(self.manifest(&question.path, &name, &manifest))
                }
                None => Found::Absent(ABSENT),
            }),
            found => Ok(found),
        }
    }

    /// What was found out the last time, though that may not hold any more.
    fn known_by_name(&self, question: &Question) -> Option<(Reference, Manifest)> {
        let About::Name(name) = &question.about else { return None };
        let known = self.catalogue.manifest(name)?;
        Some((name.clone(), known.manifest))
    }

    fn path_of(&self, ino: u64) -> Result<Box<str>, ViewError> {
        let table = locked(&self.table);
        table.get(ino).map(|node| node.path.clone()).ok_or(ViewError::Stale)
    }

    fn local_path(&self, path: &str) -> PathBuf {
        self.dir().root().join(path)
    }

    /// What is in the images_dir under `path`.
    fn local(&self, path: &str, form: &Form) -> Result<Option<Entry>, ViewError> {
        let file = self.local_path(path);
        let meta = match self.dir().dir().stat(&file) {
            Ok(meta) => meta,
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => return Err(Error::io(&file, "looking up", e).into()),
        };
        if meta.is_dir() && names::is_directory_of_images(path) {
            let Entry { attributes, ttl } = self.directory(path);
            let attributes = Attributes { mtime: mtime_of(&meta), ..attributes };
            let attributes = match path.is_empty() {
                true => attributes,
                false => attributes.with_access(LocalAccess::of(&meta)),
            };
            return Ok(Some(Entry { attributes, ttl }));
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        if !meta.is_file() || !names::is_file_of_images(above, holds_manifests(above), name) {
            return Ok(None);
        }
        if let Form::Blob(digest) = form
            && self.has_other_size(Some(digest), meta.len())
        {
            return Ok(None);
        }
        let has_digest = match form {
            Form::Blob(_) => true,
            Form::Manifest(name) => name.digest().is_some(),
            _ => false,
        };
        let access = LocalAccess::of(&meta);
        Ok(Some(self.local_file(path, has_digest, meta.len(), mtime_of(&meta), access)))
    }

    /// A file in the images_dir. Unless it is named by its digest, it is replaced when a tag moves.
    fn local_file(
        &self,
        path: &str,
        has_digest: bool,
        size: u64,
        mtime: (i64, u32),
        access: LocalAccess,
    ) -> Entry {
        let (ino, ttl) = match has_digest {
            true => (self.tell(path, &[], Kind::Local), FOR_GOOD),
            false => (self.tell(path, &stamp(size, mtime), Kind::LocalTag), self.settings.tag_ttl),
        };
        Entry { attributes: Attributes::file(ino, size, mtime).with_access(access), ttl }
    }

    fn tell(&self, path: &str, content: &[u8], kind: Kind) -> u64 {
        let mut table = locked(&self.table);
        let ino = table.number(path, content);
        table.told(ino, path, kind);
        ino
    }

    fn directory(&self, path: &str) -> Entry {
        let ino = self.tell(path, &[], Kind::Directory);
        let attributes = Attributes::directory(ino, published_time(None));
        Entry { attributes, ttl: FOR_GOOD }
    }

    fn blob(&self, path: &str, digest: Digest, size: u64) -> Entry {
        let ino = self.tell(path, &[], Kind::Blob(digest));
        let attributes = Attributes::file(ino, size, published_time(None));
        Entry { attributes, ttl: FOR_GOOD }
    }

    fn manifest(&self, path: &str, name: &Reference, manifest: &Manifest) -> Entry {
        let digest = manifest.digest();
        let is_tag = name.digest().is_none();
        let content = if is_tag { digest.as_bytes() } else { &[] };
        let ino = self.tell(path, content, Kind::Manifest(digest));
        let mtime = published_time(is_tag.then_some(&digest));
        let size = manifest.bytes().len() as u64;
        let attributes = Attributes::file(ino, size, mtime);
        let ttl = if is_tag { self.settings.tag_ttl } else { FOR_GOOD };
        Entry { attributes, ttl }
    }

    /// The kernel forgets so many times that it was told of `ino`.
    pub fn forget(&self, ino: u64, times: u64) {
        let Some(tree) = inside::tree_of(ino) else {
            let known = locked(&self.table).forgotten(ino, times);
            if let Some((Kind::Early(tree), times)) = known {
                self.forgotten_in_tree(tree, times);
            }
            return;
        };
        // Nodes of trees are not counted, only the trees: what has a node can be made again at any time.
        self.forgotten_in_tree(tree, times);
    }

    /// What an inode looks like that the kernel knows, if that takes no time. `None` if
    /// [`View::attributes`] has to find it out.
    pub fn attributes_now(&self, ino: u64) -> Result<Option<Entry>, ViewError> {
        if let Some((tree, node)) = self.in_tree(ino) {
            return Ok(self.attributes_in_tree(tree, node));
        }
        let kind = locked(&self.table).get(ino).map(|node| node.kind.clone());
        if matches!(kind, Some(Kind::Inside | Kind::Early(_))) {
            let path = self.path_of(ino)?;
            return match self.place_now(&path) {
                Some(place) => self.attributes_of_place(ino, &place),
                None => Ok(None),
            };
        }
        self.attributes_outside(ino).map(Some)
    }

    /// What an inode looks like that the kernel knows, however long that takes.
    pub async fn attributes(&self, ino: u64) -> Result<Entry, ViewError> {
        match self.attributes_now(ino)? {
            Some(entry) => Ok(entry),
            None => self.attributes_later(ino).await,
        }
    }

    /// What an inode looks like that is not inside an image.
    fn attributes_outside(&self, ino: u64) -> Result<Entry, ViewError> {
        let node = locked(&self.table).get(ino).cloned().ok_or(ViewError::Stale)?;
        let of_file = |size, mtime| Attributes::file(ino, size, mtime);
        let mut ttl = FOR_GOOD;
        let attributes = match node.kind {
            Kind::Directory => {
                let local = self.dir().dir().stat(&self.local_path(&node.path));
                match local.ok().filter(Metadata::is_dir) {
                    Some(meta) if ino == ROOT => Attributes::directory(ino, mtime_of(&meta)),
                    Some(meta) => Attributes::directory(ino, mtime_of(&meta))
                        .with_access(LocalAccess::of(&meta)),
                    None => Attributes::directory(ino, published_time(None)),
                }
            }
            Kind::Inside | Kind::Early(_) => return Err(ViewError::Stale),
            Kind::Unknown => {
                ttl = Duration::ZERO;
                of_file(0, published_time(None))
            }
            Kind::Local | Kind::LocalTag => {
                let file = self.local_path(&node.path);
                let meta = self.dir().dir().stat(&file);
                let meta = meta.map_err(|e| Error::io(&file, "looking up", e))?;
                if !meta.is_file() {
                    return Err(ViewError::Stale);
                }
                if node.kind == Kind::LocalTag {
                    self.check_stamp(ino, &node.path, &meta)?;
                    ttl = self.settings.tag_ttl;
                }
                of_file(meta.len(), mtime_of(&meta)).with_access(LocalAccess::of(&meta))
            }
            Kind::Blob(digest) => {
                let size = self.catalogue.blob_size(&digest).ok_or(ViewError::Stale)?;
                of_file(size, published_time(None))
            }
            Kind::Manifest(digest) => {
                let manifest = self.known_manifest(&node.path, &digest)?;
                let is_tag = !node.path.ends_with(&digest.to_string());
                if is_tag {
                    ttl = self.settings.tag_ttl;
                }
                let size = manifest.bytes().len() as u64;
                of_file(size, published_time(is_tag.then_some(&digest)))
            }
        };
        Ok(Entry { attributes, ttl })
    }

    /// Whether the file of a tag is still the one that the kernel knows. If not, it has to look the
    /// name up again; it does that by itself.
    fn check_stamp(&self, ino: u64, path: &str, meta: &Metadata) -> Result<(), ViewError> {
        let now = locked(&self.table).number(path, &stamp(meta.len(), mtime_of(meta)));
        if now == ino { Ok(()) } else { Err(ViewError::Stale) }
    }

    fn known_manifest(&self, path: &str, digest: &Digest) -> Result<Manifest, ViewError> {
        let Form::Manifest(name) = form(path) else { return Err(ViewError::Stale) };
        self.catalogue.manifest_by_digest(name.repository(), digest).ok_or(ViewError::Stale)
    }

    // --- files ---

    /// Opens the file `ino`, if that takes no time. `None` if a blob has to be hashed first, or a tree
    /// to be made again.
    pub fn open_now(&self, ino: u64) -> Result<Option<Handle>, ViewError> {
        if let Some((tree, node)) = self.in_tree(ino) {
            return self.open_in_tree(tree, node);
        }
        let node = locked(&self.table).get(ino).cloned().ok_or(ViewError::Stale)?;
        match node.kind {
            Kind::Directory => Err(ViewError::Wrong(io::ErrorKind::IsADirectory)),
            // Looking it up, which comes before opening, makes something else of it.
            Kind::Unknown => Err(ViewError::Stale),
            Kind::Inside | Kind::Early(_) => match self.place_now(&node.path) {
                Some(place) => self.open_place(&place),
                None => Ok(None),
            },
            Kind::Local if matches!(form(&node.path), Form::Blob(_)) => Ok(None),
            Kind::Local | Kind::LocalTag => {
                let path = self.local_path(&node.path);
                let opened = self.dir().dir().open_file(&path);
                let (file, meta) = opened.map_err(|e| Error::io(&path, "opening", e))?;
                if node.kind == Kind::LocalTag {
                    self.check_stamp(ino, &node.path, &meta)?;
                }
                Ok(Some(Handle::File(file)))
            }
            Kind::Manifest(digest) => {
                let manifest = self.known_manifest(&node.path, &digest)?;
                Ok(Some(Handle::Content(manifest.bytes().clone())))
            }
            Kind::Blob(digest) => self.open_remote(digest).map(Some),
        }
    }

    /// Opens the file `ino`, however long that takes.
    pub async fn open(&self, ino: u64) -> Result<Handle, ViewError> {
        if let Some(handle) = self.open_now(ino)? {
            return Ok(handle);
        }
        if let Some(handle) = self.open_later(ino).await? {
            return Ok(handle);
        }
        let path = self.path_of(ino)?;
        let Form::Blob(digest) = form(&path) else { return Err(ViewError::Stale) };
        let known = self.catalogue.blob(&digest);
        let size = match self.dir().dir().stat(&self.local_path(&path)) {
            Ok(meta) if meta.is_file() => meta.len(),
            _ if known.is_some() => return self.open_remote(digest),
            Ok(_) => return Err(ViewError::Stale),
            Err(e) => return Err(Error::io(&self.local_path(&path), "opening", e).into()),
        };
        match self.dir().verified_file(digest, size).await {
            Ok(file) => Ok(Handle::Blob(file.into())),
            // What is broken here, a registry has.
            Err(_) if known.is_some() => self.open_remote(digest),
            Err(error) => Err(error.into()),
        }
    }

    fn open_remote(&self, digest: Digest) -> Result<Handle, ViewError> {
        let known = self.catalogue.blob(&digest).ok_or(ViewError::Stale)?;
        let (Some(source), Some(cache)) = (self.catalogue.source(), &self.cache) else {
            return Err(ViewError::Offline(format!("blob {digest}")));
        };
        Ok(Handle::of_remote(cache.blob(source.clone(), known.repositories, &known.descriptor)))
    }

    /// What `statfs` tells.
    pub fn space(&self) -> Space {
        let known = self.catalogue.blob_bytes();
        let local = self.dir().space().unwrap_or_default();
        Space { total_bytes: local + known, files: self.known_inodes() as u64 }
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

/// The path of `name` in the directory `above`.
fn below(above: &str, name: &str) -> String {
    if above.is_empty() {
        return name.to_owned();
    }
    let mut path = String::with_capacity(above.len() + 1 + name.len());
    path.extend([above, "/", name]);
    path
}

/// Whether `error` says that nothing is there that is shown: links are not.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || SymlinkRefused::is_cause_of(error)
}

fn mtime_of(meta: &Metadata) -> (i64, u32) {
    // Nanoseconds are below 10^9.
    (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0))
}

/// What tells one file of a tag from the next.
fn stamp(size: u64, (seconds, nanoseconds): (i64, u32)) -> [u8; 20] {
    let mut stamp = [0; 20];
    stamp[..8].copy_from_slice(&size.to_le_bytes());
    stamp[8..16].copy_from_slice(&seconds.to_le_bytes());
    stamp[16..].copy_from_slice(&nanoseconds.to_le_bytes());
    stamp
}
