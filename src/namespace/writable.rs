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
mod hashing;
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

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;

pub use pending::PendingHandle;

use super::{
    ABSENT, Attributes, Caller, Entry, Found, Handle, Listing, MAX_NAME_BYTES, Namespace, Question,
    Refusal, Space, Subject, Upstream, View, ViewError, Writing, Xattrs, below,
    inodes::Kind,
    listing::{Content, Names},
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
        if self.is_elsewhere(entry.attributes.ino) {
            entry.attributes.mtime = ELSEWHERE;
        }
        entry
    }

    /// Whether `ino` is something that is not here.
    fn is_elsewhere(&self, ino: u64) -> bool {
        let node = self.view.inodes().node(ino);
        node.is_ok_and(|node| matches!(node.kind, Kind::Manifest(_) | Kind::Blob(_)))
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
            Ok(Found::Ask(_)) if is_hidden || self.is_unreachable(path) => {
                Ok(Found::Absent(Duration::ZERO))
            }
            Err(ViewError::Offline(_)) => Ok(Found::Absent(ABSENT)),
            found => found,
        }
    }

    // --- directories ---

    /// Whether a directory that the view shows is there. All that may lead to an image at a registry is, as long as
    /// registries are asked.
    fn is_directory_there(&self, path: &str, entry: &Entry, is_hidden: bool) -> bool {
        if path == names::inside_path("") || self.table.leads_to(path) {
            return true;
        }
        if path == names::BLOBS {
            return !is_hidden;
        }
        let is_here = entry.attributes.local.is_some();
        let is_known = || {
            let catalogue = self.catalogue();
            !catalogue.below(path).is_empty()
                || !catalogue.names(path).is_empty()
                || names::repository_of(path).is_some_and(|name| !catalogue.names(name).is_empty())
        };
        is_here || self.catalogue().source().is_some() || is_known()
    }

    fn listing_of(&self, ino: u64, path: &str) -> Listing {
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        let parent = self.view.inodes().number(above, &[]);
        let found = self.table.names_in(path).into_iter();
        let kind = |is_directory| if is_directory { FileKind::Dir } else { FileKind::File };
        let entries = found.map(|(name, is_directory)| (name, kind(is_directory))).collect();
        let names = Names::new(entries, path.into(), None, self.dir.layout());
        Listing { ino, parent, unchanged: false, content: Content::Names(names) }
    }

    /// Adds what is pending to what the view lists, and puts it in the order in which it can be removed.
    fn complete_listing(&self, mut listing: Listing) -> Listing {
        listing.unchanged = false;
        let Content::Names(names) = &mut listing.content else { return listing };
        let path = names.path.to_string();
        if path == names::inside_path("") {
            names.entries.push((STATUS.to_owned(), FileKind::File));
            return listing;
        }
        names.entries.retain(|(name, _)| {
            let path = below(&path, name);
            !self.table.is_hidden(&path) || self.table.named(&path).is_some()
        });
        let mut has: std::collections::HashSet<String> =
            names.entries.iter().map(|(name, _)| name.clone()).collect();
        for (name, is_directory) in self.table.names_in(&path) {
            if has.insert(name.clone()) {
                let kind = if is_directory { FileKind::Dir } else { FileKind::File };
                names.entries.push((name, kind));
            }
        }
        if backend::images_dir::holds_manifests(&path) {
            self.order(&path, &mut names.entries);
        }
        listing
    }

    /// Tags before digests, and indexes before what they name: so each can be removed when it comes.
    fn order(&self, dir: &str, entries: &mut [(String, FileKind)]) {
        let digest = |name: &str| name.parse::<Digest>().ok();
        let named: HashMap<Digest, Arc<[Digest]>> = entries
            .iter()
            .filter_map(|(name, _)| digest(name))
            .map(|digest| (digest, self.children_of(dir, &digest)))
            .collect();
        let mut ranks: HashMap<Digest, usize> = named.keys().map(|digest| (*digest, 1)).collect();
        // As deep as indexes may be nested.
        for _ in 0..8 {
            for (index, children) in &named {
                let rank = ranks[index];
                for child in children.iter() {
                    if let Some(below) = ranks.get_mut(child) {
                        *below = (*below).max(rank + 1);
                    }
                }
            }
        }
        let rank =
            |name: &str| digest(name).map_or(0, |digest| ranks.get(&digest).copied().unwrap_or(1));
        entries.sort_by_cached_key(|(name, _)| (rank(name), name.clone()));
    }

    fn children_of(&self, dir: &str, digest: &Digest) -> Arc<[Digest]> {
        if let Some(known) = locked(&self.children).get(digest) {
            return known.clone();
        }
        let Some(manifest) = self.dir.manifest_in(dir, digest) else { return Arc::new([]) };
        let children: Arc<[Digest]> = manifest.children().iter().map(|c| c.digest).collect();
        locked(&self.children).put(*digest, children.clone());
        children
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

#[async_trait]
impl Namespace for Writable {
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found> {
        self.lookup_for(parent, name, Caller { thread: 0 })
    }

    async fn find_out(&self, question: &Question) -> Result<Found> {
        let path = &question.path;
        match self.view.find_out(question).await {
            Ok(Found::Entry(entry)) => Ok(Found::Entry(self.seen(entry))),
            // Whatever keeps it from being found, it can be created.
            Err(error) if !question.ends_by_itself() => {
                use backend::Kind::{Connect, Interrupted, Stalled, Tls, WaitTooLong};
                if let ViewError::Tree(error) = &error
                    && matches!(
                        error.kind(),
                        Connect(_) | Interrupted(_) | Stalled(_) | Tls(_) | WaitTooLong { .. }
                    )
                {
                    let registry = Self::registry(path).to_owned();
                    locked(&self.unreachable).insert(registry, Instant::now());
                }
                tracing::info!("{path}: it is taken not to be there: {error}");
                Ok(Found::Absent(ABSENT))
            }
            found => found,
        }
    }

    fn forget(&self, ino: u64, times: u64) {
        self.view.forget(ino, times);
        if self.table.inode(ino).is_some() {
            self.forget_unknown(ino);
        }
    }

    fn attributes_now(&self, ino: u64) -> Result<Option<Entry>> {
        if let Some(file) = self.table.inode(ino) {
            return Ok(Some(self.entry(&file)));
        }
        if ino == self.status_ino {
            return Ok(Some(self.status_entry()));
        }
        if let Ok(Some(path)) = self.view.path_of_directory(ino)
            && let Some(mtime) = self.table.directory(&path)
        {
            let attributes = Attributes::directory(ino, mtime.unwrap_or((1, 0)));
            return Ok(Some(Entry { attributes, ttl: Duration::ZERO }));
        }
        let entry = self.view.attributes_now(ino).map_err(|error| self.gone(ino, error))?;
        Ok(entry.map(|entry| self.seen(entry)))
    }

    async fn attributes(&self, ino: u64) -> Result<Entry> {
        self.view.attributes(ino).await.map(|entry| self.seen(entry))
    }

    fn link_target_now(&self, ino: u64) -> Result<Option<Bytes>> {
        self.view.link_target_now(ino)
    }

    async fn link_target(&self, ino: u64) -> Result<Bytes> {
        self.view.link_target(ino).await
    }

    fn xattrs_now(&self, ino: u64) -> Result<Option<Xattrs>> {
        match self.table.inode(ino).is_some() || ino == self.status_ino {
            true => Ok(Some(Xattrs::new())),
            false => self.view.xattrs_now(ino),
        }
    }

    async fn xattrs(&self, ino: u64) -> Result<Xattrs> {
        self.view.xattrs(ino).await
    }

    fn open_now(&self, ino: u64) -> Result<Option<Handle>> {
        if let Some(file) = self.table.inode(ino) {
            return self.open_pending(&file).map(Some);
        }
        if ino == self.status_ino {
            return Ok(match self.waiting_manifests() {
                0 => Some(Handle::Fresh(self.status())),
                _ => None,
            });
        }
        self.note_origin(ino);
        self.view.open_now(ino).map_err(|error| self.gone(ino, error))
    }

    async fn open(&self, ino: u64) -> Result<Handle> {
        if ino == self.status_ino {
            self.look_now().await;
            return Ok(Handle::Fresh(self.status()));
        }
        self.view.open(ino).await
    }

    fn is_in_memory(&self, ino: u64) -> bool {
        self.view.is_in_memory(ino)
    }

    fn is_as_listed(&self, ino: u64) -> bool {
        // What is written changes what is listed in ways that the view knows nothing of.
        self.view.is_in_memory(ino) && self.view.is_as_listed(ino)
    }

    fn list_now(&self, ino: u64) -> Result<Option<Listing>> {
        if let Some(path) = self.view.path_of_directory(ino)?
            && self.table.directory(&path).is_some()
        {
            return Ok(Some(self.listing_of(ino, &path)));
        }
        Ok(self.view.list_now(ino)?.map(|listing| self.complete_listing(listing)))
    }

    async fn list(&self, ino: u64) -> Result<Listing> {
        self.view.list(ino).await.map(|listing| self.complete_listing(listing))
    }

    fn listed(&self, listing: &Listing, at: usize) -> Result<Option<Entry>> {
        if let Content::Names(names) = &listing.content
            && let Some((name, _)) = names.entries.get(at)
        {
            let path = below(&names.path, name);
            if path == names::inside_path(STATUS) {
                let entry = self.status_entry();
                self.view.inodes().tell_known(entry.attributes.ino, &path, Kind::Pending);
                return Ok(Some(entry));
            }
            if let Some(file) = self.table.named(&path)
                && !file.state().replaces
            {
                return Ok(Some(self.tell(&file)));
            }
            if let Some(mtime) = self.table.directory(&path) {
                return Ok(Some(self.tell_directory(&path, mtime)));
            }
        }
        Ok(self.view.listed(listing, at)?.map(|entry| self.seen(entry)))
    }

    fn number_of(&self, listing: &Listing, at: usize) -> u64 {
        if let Content::Names(names) = &listing.content
            && let Some((name, _)) = names.entries.get(at)
            && let Some(file) = self.table.named(&below(&names.path, name))
        {
            return file.ino;
        }
        self.view.number_of(listing, at)
    }

    fn space(&self) -> Space {
        self.view.space()
    }

    fn is_fixed(&self) -> bool {
        false
    }

    fn opens_every_file(&self) -> bool {
        false
    }

    fn subject(&self, ino: u64) -> Subject {
        match self.table.inode(ino) {
            Some(file) => {
                let path = file.state().path.clone();
                path.map(|path| Subject::of_path(&path)).unwrap_or_default()
            }
            None => self.view.subject(ino),
        }
    }

    fn subject_of_name(&self, parent: u64, name: &OsStr) -> Subject {
        self.view.subject_of_name(parent, name)
    }

    fn writing(&self) -> Option<&dyn Writing> {
        Some(self)
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
