//! A [`View`] that can be written to.
//!
//! Above what the view shows lie *pending* files: those that are being written, and whole manifests that wait for
//! what they name. What is written becomes part of the images_dir under the promises of a pull, through the same
//! code: whole and verified before it is named.
//!
//! - A file that is created gets an inode of its own ([`Pending`]), and its content a file in
//!   `blobs/.imgfs/pending` (`store.rs`). It is hashed while it is written (`hashing.rs`).
//! - When it is closed, or when it is renamed from a name that begins with a dot, it is judged by its name (`place.rs`):
//!   a blob by its digest, a manifest by its form. What is wrong when its last writer has closed it has no name any
//!   more; before that, whoever closes a descriptor may not be the last one (`writing.rs`).
//! - A blob that is right is published; and so is a manifest, once all that it names is here (`publish.rs`).
//! - What has been published never changes. Opening it for writing begins another pending file of the same name,
//!   and is answered with `ESTALE`: the kernel looks the name up again, in the same thread, and is told of the new
//!   inode then. All others go on to see what is published, until that is replaced.
//! - What has been pushed and is not to be kept goes when nothing is on its way any more (`pushed.rs`).
//! - `change.rs` renames, links and removes; `withdraw.rs` removes tags at registries. `looking.rs` sees what others
//!   bring. `status.rs` tells what is pending, and what was refused.
//!
//! Locks are taken in this order: a file's `publishing`, the table, a file's state.

mod change;
mod handle;
mod hashing;
mod listing;
mod looking;
mod pending;
mod place;
mod publish;
mod pushed;
mod staged;
mod status;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod view;
mod withdraw;
mod writing;

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use lru::LruCache;

pub use handle::PendingHandle;

use super::{
    ABSENT, Attributes, Entry, Found, Handle, MAX_NAME_BYTES, Namespace, Refusal, Subject,
    Upstream, View, ViewError, Writing, below,
    inodes::{Kind, Node},
    names,
};
use crate::{
    backend::{
        self,
        images_dir::{self, Filling, ImagesDir},
    },
    catalogue::Catalogue,
    image::{Digest, Repository},
    layer::Kind as FileKind,
    util::locked,
};
use looking::Looking;
use pending::{Pending, Stage};
use place::Place;
use publish::disk;
use pushed::Pushed;
use status::Refusals;
use store::Store;
use table::Table;

type Result<T> = std::result::Result<T, ViewError>;

/// Blobs that are copied at the same time for a tag that is copied between registries.
const BLOBS_AT_ONCE: usize = 8;

/// Manifests of which is remembered where they were read.
const MAX_ORIGINS: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 12) - 1);

/// Manifests of which is remembered what they name.
const MAX_ORDERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 14) - 1);

/// A registry that cannot be reached is not asked again for so long.
const UNREACHABLE: Duration = Duration::from_secs(30);

/// The file below `.imgfs` that tells what is pending.
const STATUS: &str = "pending.json";

/// Why names of the layout for other file systems are refused.
const PORTABLE: &str = "that is a name in the layout `portable`, and files have other names here; copy that directory \
                        with imgfs copy --from DIR --to IMAGES_DIR --all";

/// The time that is shown of what only a registry has: another one than that of any file that is here, so that
/// whoever brings the same file by its time and size does bring it.
const ELSEWHERE: (i64, u32) = (0, 0);

/// A view that can be written to.
pub struct Writable {
    view: Arc<View>,
    dir: ImagesDir,
    /// The file that tells what is pending.
    status_ino: u64,
    table: Arc<Table>,
    store: Arc<Store>,
    upstream: Option<Arc<dyn Upstream>>,
    /// The repositories in which manifests have been read that were not here.
    origins: Mutex<LruCache<Digest, Repository>>,
    /// What manifests name, for the order in which they are listed.
    children: Mutex<LruCache<Digest, Arc<[Digest]>>>,
    /// Registries that could not be reached, and when.
    unreachable: Mutex<HashMap<String, Instant>>,
    /// Names whose last content was refused.
    refused: Refusals,
    looking: Looking,
    filling: Mutex<Use>,
    /// What has been pushed and is not to be kept.
    pushed: Pushed,
}

/// Whether the tree is said to be being filled.
struct Use {
    filling: Option<Filling>,
    last: Instant,
}

impl Writable {
    /// Makes `view` writable; what is written goes through to `upstream`, if there is that. Has to be called in a
    /// runtime. What an earlier mount has left is taken up.
    pub fn new(view: Arc<View>, upstream: Option<Arc<dyn Upstream>>) -> backend::Result<Arc<Self>> {
        let dir = view.dir().clone();
        let failed = |e| backend::Error::io(&dir.pending_dir(), "opening", e);
        let (store, kept) = Store::open(&dir).map_err(failed)?;
        let writable = Arc::new(Self {
            status_ino: view.inodes().number(&names::inside_path(STATUS), &[]),
            view,
            dir: dir.clone(),
            table: Arc::default(),
            store,
            upstream,
            origins: Mutex::new(LruCache::new(MAX_ORIGINS)),
            children: Mutex::new(LruCache::new(MAX_ORDERED)),
            unreachable: Mutex::default(),
            refused: Refusals::default(),
            looking: Looking::default(),
            filling: Mutex::new(Use { filling: None, last: Instant::now() }),
            pushed: Pushed::default(),
        });
        for (kept, stored) in kept {
            let Some(Place::Manifest(place)) = Place::of(&kept.path) else { continue };
            // The mount that kept it has come to its end just after it had published it.
            if dir.has_content(&kept.path, &kept.content) {
                continue;
            }
            let bytes = Bytes::from(kept.content);
            let Some(waiting) = writable.take_up(&place, &bytes, stored) else { continue };
            let base = (Handle::Content(bytes.clone()), bytes.len() as u64, (0, 0));
            let file = writable.pending_of(&kept.path, Place::Manifest(place), base);
            let mut state = file.state();
            state.is_written = true;
            state.replaces = dir.has_file(&kept.path);
            state.mtime = kept.mtime;
            state.stage = Stage::Waiting(waiting);
            drop(state);
            writable.table.name(&kept.path, &file);
        }
        if !writable.table.is_empty() {
            writable.begin().map_err(|_| failed(io::ErrorKind::WouldBlock.into()))?;
        }
        tokio::spawn(Self::keep_looking(Arc::downgrade(&writable)));
        Ok(writable)
    }

    /// What is shown beside pending files.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    fn dir(&self) -> &ImagesDir {
        &self.dir
    }

    fn table(&self) -> &Table {
        &self.table
    }

    fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn pushed(&self) -> &Pushed {
        &self.pushed
    }

    fn upstream(&self) -> Option<&Arc<dyn Upstream>> {
        self.upstream.as_ref()
    }

    fn catalogue(&self) -> &Catalogue {
        self.view.catalogue()
    }

    /// Says that the tree is being filled.
    fn begin(&self) -> Result<()> {
        let mut filling = locked(&self.filling);
        filling.last = Instant::now();
        if filling.filling.is_none() {
            filling.filling = Some(self.dir.fill().map_err(|e| publish::failed(&e))?);
        }
        Ok(())
    }

    fn log(&self, error: &ViewError) {
        tracing::warn!("{error}");
    }

    /// The repository in which a manifest was read that is not here.
    fn origin(&self, digest: &Digest) -> Option<Repository> {
        locked(&self.origins).get(digest).cloned()
    }

    // --- pending files ---

    fn new_number(&self, path: &str) -> u64 {
        self.view.inodes().number(path, &self.table.next().to_le_bytes())
    }

    /// A pending file with the content of something.
    fn pending_of(
        &self,
        path: &str,
        place: Place,
        base: (Handle, u64, (i64, u32)),
    ) -> Arc<Pending> {
        Pending::of_base(self.new_number(path), &self.store, &self.table, path, place, base)
    }

    /// Takes the name from a file whose content is wrong.
    fn reject(&self, file: &Arc<Pending>) {
        let mut state = file.state();
        if matches!(state.stage, Stage::Published) {
            return;
        }
        state.stage = Stage::Rejected;
        let path = state.path.take();
        state.refused_as.clone_from(&path);
        drop(state);
        if let Some(path) = path {
            self.table.refuse(&path, file);
        }
        file.discard();
        self.forget_unknown(file.ino);
    }

    /// The same, and tells it to whoever asks what is pending.
    fn refuse(&self, file: &Arc<Pending>, error: &ViewError) {
        if let Some(path) = &file.state().path {
            self.refused.note(path, error);
        }
        self.reject(file);
    }

    /// Takes the name from a file that has been published: what has it now is in the images_dir.
    fn retire(&self, file: &Arc<Pending>) {
        if !matches!(file.state().stage, Stage::Published) {
            // Somebody has begun to write to it once more.
            return;
        }
        let path = file.state().path.clone();
        if let Some(path) = path {
            self.table.unname(&path, file);
            self.table.unhide(&path);
            self.restore_time(path.rsplit_once('/').map_or("", |(above, _)| above));
        }
        self.forget_unknown(file.ino);
    }

    /// Forgets a file that has no name and that the kernel does not know.
    fn forget_unknown(&self, ino: u64) {
        if self.view.inodes().node(ino).is_err() {
            self.table.forget(ino);
        }
    }

    fn tell(&self, file: &Arc<Pending>) -> Entry {
        let path = file.state().path.clone().unwrap_or_default();
        self.view.inodes().tell_known(file.ino, &path, Kind::Pending);
        self.entry(file)
    }

    fn entry(&self, file: &Arc<Pending>) -> Entry {
        let look = file.look();
        let attributes = Attributes {
            stored_bytes: look.stored_bytes,
            ..Attributes::file(file.ino, look.size, look.mtime)
        };
        Entry { attributes, ttl: Duration::ZERO }
    }

    /// A directory that is only there for pending files.
    fn tell_directory(&self, path: &str, mtime: Option<(i64, u32)>) -> Entry {
        let ino = self.view.inodes().tell(path, &[], Kind::Directory);
        Entry {
            attributes: Attributes::directory(ino, mtime.unwrap_or((1, 0))),
            ttl: Duration::ZERO,
        }
    }

    /// The path of `name` in a directory that can be written to; `None` for what is inside images.
    fn path(&self, parent: u64, name: &OsStr) -> Result<Option<String>> {
        if name.len() > MAX_NAME_BYTES {
            return Err(ViewError::Wrong(io::ErrorKind::InvalidFilename));
        }
        let above = self.view.path_of_directory(parent)?;
        Ok(above.zip(name.to_str()).map(|(above, name)| below(&above, name)))
    }

    /// The same, to be changed.
    fn path_to_change(&self, parent: u64, name: &OsStr) -> Result<String> {
        let shown = || name.to_string_lossy().into_owned();
        match self.view.path_of_directory(parent)? {
            None => {
                Err(ViewError::Refused(Refusal::ReadOnly, format!("{}: it is read-only", shown())))
            }
            Some(_) => self.path(parent, name)?.ok_or_else(|| {
                ViewError::Refused(Refusal::Invalid, format!("{}: the name is no text", shown()))
            }),
        }
    }

    /// What is told of something that the view shows, by where that is.
    fn seen(&self, mut entry: Entry) -> Entry {
        entry.attributes.mtime = match self.view.inodes().node(entry.attributes.ino) {
            Ok(Node { kind: Kind::Blob(_), .. }) => ELSEWHERE,
            Ok(Node { kind: Kind::Manifest(digest), path, .. }) => {
                self.mapped_time(&path, &digest).unwrap_or(ELSEWHERE)
            }
            _ => return entry,
        };
        entry
    }

    /// The time of a tag that leads to `digest` here and has no file of its own.
    fn mapped_time(&self, path: &str, digest: &Digest) -> Option<(i64, u32)> {
        let place = Place::of_tag(path)?;
        self.dir.tag_time(&place.dir, &place.reference(), digest)
    }

    /// Whether `path` is a tag that is here and has no file of its own.
    fn is_mapped(&self, path: &str) -> bool {
        let place = Place::of_tag(path);
        place.is_some_and(|place| self.dir.mapped_tag(&place.reference()).is_some())
    }

    /// Whether `ino` is something that is not here.
    fn is_elsewhere(&self, ino: u64) -> bool {
        match self.view.inodes().node(ino) {
            Ok(Node { kind: Kind::Blob(_), .. }) => true,
            Ok(Node { kind: Kind::Manifest(_), path, .. }) => !self.is_mapped(&path),
            _ => false,
        }
    }

    /// The registry that would be asked for `path`.
    fn registry(path: &str) -> &str {
        path.split('/').next().unwrap_or(path)
    }

    fn is_unreachable(&self, path: &str) -> bool {
        let mut unreachable = locked(&self.unreachable);
        if unreachable.is_empty() {
            return false;
        }
        unreachable.retain(|_, since| since.elapsed() < UNREACHABLE);
        unreachable.contains_key(Self::registry(path))
    }

    /// The file that tells what is pending.
    fn status_entry(&self) -> Entry {
        let size = self.status().len() as u64;
        let attributes = Attributes::file(self.status_ino, size, (1, 0));
        Entry { attributes, ttl: Duration::ZERO }
    }

    /// What the view has under a name, if that is here or known without asking.
    fn lookup_in_view(&self, parent: u64, name: &OsStr, path: &str) -> Result<Found> {
        let is_hidden = self.table.is_hidden(path);
        match self.view.lookup(parent, name) {
            Ok(Found::Entry(entry)) if entry.attributes.kind == FileKind::Dir => {
                if self.is_directory_there(path, &entry, is_hidden) {
                    return Ok(Found::Entry(entry));
                }
                self.view.forget(entry.attributes.ino, 1);
                Ok(Found::Absent(Duration::ZERO))
            }
            Ok(Found::Entry(entry)) if is_hidden => {
                // Another process has brought it back, or a registry still has it.
                if self.is_elsewhere(entry.attributes.ino) {
                    self.view.forget(entry.attributes.ino, 1);
                    return Ok(Found::Absent(Duration::ZERO));
                }
                self.table.unhide(path);
                Ok(Found::Entry(entry))
            }
            Ok(Found::Entry(entry)) => Ok(Found::Entry(self.seen(entry))),
            Ok(Found::Ask(_))
                if (is_hidden || self.is_unreachable(path)) && !self.is_mapped(path) =>
            {
                Ok(Found::Absent(Duration::ZERO))
            }
            Err(ViewError::Offline(_)) => Ok(Found::Absent(ABSENT)),
            found => found,
        }
    }

    // --- opening ---

    /// Opens a file that is pending or has been for reading.
    fn open_pending(&self, file: &Arc<Pending>) -> Result<Handle> {
        let state = file.state();
        let is_published = matches!(state.stage, Stage::Published);
        let is_dot = state.place == Place::Dot;
        let path = state.path.clone().unwrap_or_default();
        drop(state);
        if is_published {
            let opened = file.open_published().map_err(|e| disk(&path, "opening", e))?;
            return Ok(opened.unwrap_or_else(|| Handle::Pending(PendingHandle::new(file, false))));
        }
        if is_dot {
            return Ok(Handle::Pending(PendingHandle::new(file, false)));
        }
        let reason = format!("{path}: it is being written, or waits for what it names");
        Err(ViewError::Refused(Refusal::Busy, reason))
    }

    /// What is told of a tag whose file is not there any more: it may have been renamed, and then the kernel finds it
    /// when it looks its name up again.
    fn gone(&self, ino: u64, error: ViewError) -> ViewError {
        let is_tag = || {
            let node = self.view.inodes().node(ino);
            node.is_ok_and(|node| node.kind == Kind::LocalTag)
        };
        match error {
            ViewError::Tree(error) if publish::is_absent(&error) && is_tag() => ViewError::Stale,
            error => error,
        }
    }

    /// Notes where a manifest is read that is not here.
    fn note_origin(&self, ino: u64) {
        if let Ok(node) = self.view.inodes().node(ino)
            && let Kind::Manifest(digest) = node.kind
            && let Some(image) = Subject::of_path(&node.path).image
        {
            locked(&self.origins).put(digest, image.repository().clone());
        }
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        Writing::end(self);
    }
}

/// The error for a name under which nothing can be written.
fn invalid(path: &str) -> ViewError {
    let reason = match images_dir::is_portable_path(path) {
        true => format!("{path}: {PORTABLE}"),
        false => format!(
            "{path}: nothing of a directory of images has such a name; there can be \
             REGISTRY/REPOSITORY/manifests/TAG, the same with a digest, and blobs/ALGORITHM:HEX"
        ),
    };
    ViewError::Refused(Refusal::Invalid, reason)
}
