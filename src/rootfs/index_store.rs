//! What has been found out of images and holds for good, since it is named by digests: indexes of
//! layers (`docs/layer-index.md`), manifests and configurations.
//!
//! ```text
//! layers/<digest>        the index that a scan has made of the layer with this digest
//! layers/<digest>.<toc>  the index of what images say of its table of contents that say the same, or
//!                        one that was attached to an image
//! documents/<digest>     a manifest or configuration
//! profiles/<digest>      what is read of the image with this manifest when it starts
//! ```
//!
//! Each file is written under another name, synced and renamed, so it is whole or not there; readers
//! check it against the digest in it or in its name. Whatever is missing or damaged here is found out
//! once more, so what cannot be written is no error, and everything may be removed at any time.
//!
//! All files together take at most a bound. When a new one would exceed it, those go that were used least
//! recently: the time of last modification is set when a file is used, at most once an hour. `imgfs
//! prune` removes what has not been used for long; a store that is in no images_dir ([`IndexCache`]) does
//! so itself when it is written to.
//!
//! Everything in here blocks.

mod shared;

pub use shared::{MadeBy, StoredIndex};

use std::{
    fs::File,
    io::{self, Read, Write},
    ops::{Deref, Range},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use super::key::{LayerKey, Source};
use crate::{
    backend::{
        ConfinedDir,
        images_dir::{ImagesDir, Layout},
    },
    image::Digest,
    layer::{LayerIndex, Origin, StoredHead},
    util::{Budget, Counted, FileId, Kept, OutOfMemory, Reservation, locked},
};

const LAYERS: &str = "layers";
const DOCUMENTS: &str = "documents";
const PROFILES: &str = "profiles";

/// The largest document that is read.
pub(super) const MAX_DOCUMENT: u64 = 8 << 20;

/// After so long a use is noted again. A file that is in use is then younger than anything that has not
/// been used for a day, and reading costs no writes.
const NOTE_USE_AFTER: Duration = Duration::from_secs(3600);

/// After so long a file under a temporary name belongs to nobody any more.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// After so long an [`IndexCache`] lets go of what nobody has used.
const UNUSED_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// A directory of its own for what has been found out of images, for where there is no images_dir.
#[derive(Clone, Debug)]
pub struct IndexCache {
    /// The directory. Whoever can write to it can make images look different.
    pub dir: ConfinedDir,
    /// Bytes that all files in it may take together.
    pub limit_bytes: u64,
}

/// An index, with where it is stored and the memory that it takes.
pub(super) struct Indexed {
    index: Arc<LayerIndex>,
    /// Its file; `None` if it is not stored.
    file: Option<FileId>,
    source: Source,
    /// Stands for all that it says, if that was attached to an image.
    claim: Option<Digest>,
    _memory: Reservation,
}

impl Indexed {
    /// An index that is not stored.
    pub(super) fn unstored(index: LayerIndex, memory: Reservation) -> Arc<Self> {
        let source = Source::of(index.origin());
        Arc::new(Self { index: Arc::new(index), file: None, source, claim: None, _memory: memory })
    }

    /// An index that was attached to an image and could not be stored. `memory` becomes what it takes.
    pub(super) fn attached(
        index: LayerIndex,
        stored: &[u8],
        mut memory: Reservation,
    ) -> Result<Self, OutOfMemory> {
        memory.resize(index.memory_bytes())?;
        let claim = stored.get(..StoredHead::BYTES).map(Digest::sha256);
        let source = Source::Attached;
        Ok(Self { index: Arc::new(index), file: None, source, claim, _memory: memory })
    }

    /// Who says what it has.
    pub(super) fn source(&self) -> Source {
        self.source
    }

    /// Whether it is on the disk.
    pub(super) fn is_stored(&self) -> bool {
        self.file.is_some()
    }

    /// What tells an attached index from another one of the same layer.
    pub(super) fn claim(&self) -> String {
        self.claim.map(|claim| claim.to_string()).unwrap_or_default()
    }
}

impl Deref for Indexed {
    type Target = Arc<LayerIndex>;

    fn deref(&self) -> &Arc<LayerIndex> {
        &self.index
    }
}

pub(super) struct IndexStore {
    /// The directory that `dir` is in, or is.
    root: ConfinedDir,
    layout: Layout,
    dir: PathBuf,
    limit_bytes: u64,
    /// After so long without use a file is removed, by this process.
    lifetime: Option<Duration>,
    /// Bytes of all files, as far as this process knows; `None` before it has looked.
    held_bytes: Mutex<Option<u64>>,
    /// Tells temporary files apart.
    next: AtomicU64,
    budget: Budget,
    /// Documents that could not be written.
    unwritten: Kept<Digest, Counted<Bytes>>,
}

impl IndexStore {
    /// The store in `images`, which need not exist yet, of at most `limit_bytes`.
    pub(super) fn new(images: &ImagesDir, limit_bytes: u64, budget: &Budget) -> Self {
        let (root, layout) = (images.dir().clone(), images.layout());
        Self::at(root, layout, images.inside_dir(), limit_bytes, None, budget)
    }

    /// The store in a directory of its own.
    pub(super) fn in_cache(cache: &IndexCache, budget: &Budget) -> Self {
        let path = cache.dir.path().to_owned();
        // The names of which every file system takes, wherever a home may be.
        let (root, layout) = (cache.dir.clone(), Layout::Portable);
        Self::at(root, layout, path, cache.limit_bytes, Some(UNUSED_AFTER), budget)
    }

    fn at(
        root: ConfinedDir,
        layout: Layout,
        dir: PathBuf,
        limit_bytes: u64,
        lifetime: Option<Duration>,
        budget: &Budget,
    ) -> Self {
        Self {
            root,
            layout,
            dir,
            limit_bytes,
            lifetime,
            held_bytes: Mutex::default(),
            next: AtomicU64::new(0),
            budget: budget.clone(),
            unwritten: Kept::new(budget),
        }
    }

    fn index_name(&self, layer: &LayerKey) -> String {
        let name = self.layout.digest_name(&layer.digest);
        match layer.toc {
            Some(toc) => format!("{name}.{}", hex::encode(toc.as_bytes())),
            None => name,
        }
    }

    fn index_path(&self, layer: &LayerKey) -> PathBuf {
        self.dir.join(LAYERS).join(self.index_name(layer))
    }

    /// Whether there is an index of `layer`, though it may turn out to be of no use.
    pub(super) fn has_index(&self, layer: &LayerKey) -> bool {
        self.root.is_file(&self.index_path(layer))
    }

    /// The index of `layer` without its windows, if it is here. Fails only if there is no room for it in
    /// memory.
    pub(super) fn index(&self, layer: &LayerKey) -> Result<Option<Indexed>, OutOfMemory> {
        let Some((file, head, mut stored)) = self.open_index(layer) else { return Ok(None) };
        let mut memory = self.budget.reserve(head.reading_bytes())?;
        let claim = Digest::sha256(&stored);
        let rest = head.table_bytes() - StoredHead::BYTES as u64;
        if (&file).take(rest).read_to_end(&mut stored).is_err() {
            return Ok(None);
        }
        let Ok(index) = LayerIndex::from_table(&stored) else { return Ok(None) };
        drop(stored);
        let source = match (index.origin(), layer.toc) {
            // What others have found out stands under the name of the image that it was attached to.
            (Origin::Pass, Some(_)) => Source::Attached,
            (origin, _) => Source::of(origin),
        };
        let is_it = (index.blob(), index.blob_bytes()) == (layer.digest, layer.size)
            && (source == Source::Pass) == layer.toc.is_none();
        if !is_it {
            return Ok(None);
        }
        let claim = (source == Source::Attached).then_some(claim);
        note_use(&file);
        memory.resize(index.memory_bytes())?;
        let id = file.metadata().ok().map(|meta| FileId::of(&meta));
        Ok(Some(Indexed { index: index.into(), file: id, source, claim, _memory: memory }))
    }

    /// The file of an index, with its head, and the bytes of that.
    fn open_index(&self, layer: &LayerKey) -> Option<(File, StoredHead, Vec<u8>)> {
        let (mut file, meta) = self.root.open_file(&self.index_path(layer)).ok()?;
        let mut stored = vec![0; StoredHead::BYTES];
        file.read_exact(&mut stored).ok()?;
        let head = StoredHead::parse(&stored).ok()?;
        (meta.len() == head.total_bytes()).then_some((file, head, stored))
    }

    /// Keeps `index`, whose memory is `memory`. It has no windows in memory any more when it could be
    /// kept. Fails if there is not enough memory to write it.
    pub(super) fn put_index(
        &self,
        layer: &LayerKey,
        index: LayerIndex,
        mut memory: Reservation,
    ) -> Result<Indexed, OutOfMemory> {
        memory.resize(index.memory_bytes())?;
        let writing = self.budget.reserve(index.memory_bytes())?;
        let stored = index.to_bytes().ok().and_then(|stored| {
            let file = self.put(LAYERS, &self.index_name(layer), &stored).ok()?;
            Some((StoredHead::parse(&stored).ok()?, file))
        });
        drop(writing);
        // With its windows in memory it serves as well, as long as there is room for it.
        let (index, file) = match stored {
            Some((head, file)) => (index.with_windows_stored(&head), Some(file)),
            None => (index, None),
        };
        memory.resize(index.memory_bytes())?;
        let source = Source::of(index.origin());
        Ok(Indexed { index: index.into(), file, source, claim: None, _memory: memory })
    }

    /// Removes the stored form of `index`, which has turned out to be of no use. If another one has taken
    /// its place, that stays.
    pub(super) fn drop_index(&self, layer: &LayerKey, index: &Indexed) {
        let path = self.index_path(layer);
        let stored = self.root.stat(&path).ok().map(|meta| FileId::of(&meta));
        if stored.is_some() && stored == index.file {
            // If it stays, it is found to be of no use again.
            let _ = self.root.remove_file(&path);
        }
    }

    /// The part of the stored index of `layer` that is a window.
    pub(super) fn window(&self, layer: &LayerKey, range: Range<u64>) -> io::Result<Vec<u8>> {
        let (file, _) = self.root.open_file(&self.index_path(layer))?;
        // A window has 32 KiB before it is compressed.
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        let mut window = vec![0; length.min(1 << 20)];
        file.read_exact_at(&mut window, range.start)?;
        note_use(&file);
        Ok(window)
    }

    /// The document with this digest, if it is here.
    pub(super) fn document(&self, digest: &Digest) -> Option<Bytes> {
        if let Some(bytes) = self.unwritten.get(digest) {
            return Some((**bytes).clone());
        }
        let path = self.dir.join(DOCUMENTS).join(self.layout.digest_name(digest));
        let (file, _) = self.root.open_file(&path).ok()?;
        let mut bytes = Vec::new();
        (&file).take(MAX_DOCUMENT).read_to_end(&mut bytes).ok()?;
        note_use(&file);
        (Digest::of(digest.algorithm(), &bytes) == *digest).then(|| bytes.into())
    }

    /// Keeps a document; one that cannot be written as long as there is room for it in memory.
    pub(super) fn put_document(&self, digest: &Digest, bytes: &Bytes) {
        if self.document(digest).is_none()
            && self.put(DOCUMENTS, &self.layout.digest_name(digest), bytes).is_err()
            && let Ok(memory) = self.budget.reserve(bytes.len() as u64)
        {
            self.unwritten.insert(*digest, &Counted::new(bytes.clone(), memory).into());
        }
    }

    /// Writes a file.
    fn put(&self, kind: &str, name: &str, bytes: &[u8]) -> io::Result<FileId> {
        self.make_room(bytes.len() as u64)?;
        let dir = self.dir.join(kind);
        self.root.create_dirs(&dir)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!(".{}.{number}", std::process::id()));
        let written = self.root.create_file(&temporary).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_data()?;
            Ok(FileId::of(&file.metadata()?))
        });
        let done =
            written.and_then(|file| self.root.rename(&temporary, &dir.join(name)).map(|()| file));
        match done {
            Ok(_) => {
                if let Some(held) = &mut *locked(&self.held_bytes) {
                    *held += bytes.len() as u64;
                }
            }
            Err(_) => drop(self.root.remove_file(&temporary)),
        }
        done
    }

    /// Removes what was used least recently, until there is room for `bytes` more.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        if bytes > self.limit_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut held = locked(&self.held_bytes);
        if held.is_some_and(|held| held + bytes <= self.limit_bytes) {
            return Ok(());
        }
        // Others may have written, and removed, here as well.
        let mut files = self.files();
        if let Some(lifetime) = self.lifetime {
            let now = SystemTime::now();
            let is_unused =
                |file: &StoredFile| now.duration_since(file.used).is_ok_and(|age| age > lifetime);
            files.retain(|file| !is_unused(file) || self.root.remove_file(&file.path).is_err());
        }
        let mut sum: u64 = files.iter().map(|file| file.bytes).sum();
        if sum + bytes > self.limit_bytes {
            // A tenth more, so that it is not looked through for each new file.
            let goal = (self.limit_bytes - bytes).min(self.limit_bytes / 10 * 9);
            files.sort_by_key(|file| file.used);
            for file in files {
                if sum <= goal {
                    break;
                }
                if self.root.remove_file(&file.path).is_ok() {
                    sum -= file.bytes;
                }
            }
        }
        *held = Some(sum);
        Ok(())
    }

    /// All files of the store, but those that are being written.
    fn files(&self) -> Vec<StoredFile> {
        let mut files = Vec::new();
        for kind in [LAYERS, DOCUMENTS, PROFILES] {
            let dir = self.dir.join(kind);
            let entries = self.root.open_dir(&dir).and_then(|dir| dir.entries());
            for entry in entries.unwrap_or_default() {
                let path = dir.join(&entry.name);
                let Ok(meta) = self.root.stat(&path) else { continue };
                let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let age = SystemTime::now().duration_since(used).unwrap_or_default();
                let name = path.file_name().unwrap_or_default();
                let is_temporary = name.as_encoded_bytes().starts_with(b".");
                if meta.is_file() && (!is_temporary || age > ABANDONED_AFTER) {
                    files.push(StoredFile { path, bytes: meta.len(), used });
                }
            }
        }
        files
    }
}

/// A file of the store.
struct StoredFile {
    path: PathBuf,
    bytes: u64,
    /// When it was used last.
    used: SystemTime,
}

/// Notes that a file is used, if that was not noted just now.
fn note_use(file: &File) {
    let now = SystemTime::now();
    let noted = file.metadata().and_then(|meta| meta.modified());
    if noted.is_ok_and(|noted| now.duration_since(noted).is_ok_and(|age| age > NOTE_USE_AFTER)) {
        // Where that cannot be written, nothing is removed either.
        let _ = file.set_modified(now);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layer::{Expected, Hashing, Indexer, Options};

    fn document(number: u32) -> (Digest, Bytes) {
        let bytes = Bytes::from(format!("{number:0>100}"));
        (Digest::sha256(&bytes), bytes)
    }

    fn images(path: &std::path::Path) -> ImagesDir {
        ImagesDir::open(path).unwrap()
    }

    fn set_age(store: &IndexStore, digest: &Digest, hours: u64) {
        let path = store.dir.join(DOCUMENTS).join(store.layout.digest_name(digest));
        let time = SystemTime::now() - Duration::from_secs(hours * 3600);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn held(store: &IndexStore) -> u64 {
        store.files().iter().map(|file| file.bytes).sum()
    }

    #[test]
    fn what_was_used_least_recently_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = IndexStore::new(&images(dir.path()), 1000, &Budget::unlimited());
        let documents: Vec<_> = (0..10).map(document).collect();
        for ((digest, bytes), hours) in documents.iter().zip((10..20).rev()) {
            store.put_document(digest, bytes);
            set_age(&store, digest, hours);
        }
        assert_eq!(held(&store), 1000);
        // The oldest is used.
        assert!(store.document(&documents[0].0).is_some());
        let (digest, bytes) = document(10);
        store.put_document(&digest, &bytes);
        assert_eq!(held(&store), 1000);
        let has = |number: usize| store.document(&documents[number].0).is_some();
        assert!(has(0) && !has(1) && has(2) && store.document(&digest).is_some());
    }

    #[test]
    fn what_others_have_written_counts() {
        let dir = tempfile::tempdir().unwrap();
        let budget = Budget::unlimited();
        let (one, other) = (
            IndexStore::new(&images(dir.path()), 1000, &budget),
            IndexStore::new(&images(dir.path()), 1000, &budget),
        );
        for number in 0..40 {
            let store = if number % 2 == 0 { &one } else { &other };
            let (digest, bytes) = document(number);
            store.put_document(&digest, &bytes);
        }
        // Each may believe for a while that it is alone.
        assert!(held(&one) <= 2000, "{}", held(&one));
        let third = IndexStore::new(&images(dir.path()), 500, &budget);
        let (digest, bytes) = document(100);
        third.put_document(&digest, &bytes);
        assert!(held(&third) <= 500 && third.document(&digest).is_some());
    }

    #[test]
    fn what_cannot_be_written_is_kept_in_bounded_memory() {
        let dir = tempfile::tempdir().unwrap();
        let images = images(dir.path());
        fs::create_dir_all(images.inside_dir().parent().unwrap()).unwrap();
        fs::write(images.inside_dir(), b"").unwrap();
        let budget = Budget::new(1000);
        let store = IndexStore::new(&images, 1 << 20, &budget);
        for number in 0..100 {
            let (digest, bytes) = document(number);
            store.put_document(&digest, &bytes);
            assert_eq!(store.document(&digest), Some(bytes));
        }
        assert_eq!(budget.stats().used_bytes, 1000);
        assert!(store.document(&document(0).0).is_none());
        assert!(store.document(&document(95).0).is_some());
    }

    #[test]
    fn a_store_of_its_own_lets_go_of_what_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache =
            IndexCache { dir: ConfinedDir::open(dir.path()).unwrap(), limit_bytes: 1 << 20 };
        let documents: Vec<_> = (0..3).map(document).collect();
        let first = IndexStore::in_cache(&cache, &Budget::unlimited());
        for (digest, bytes) in &documents[..2] {
            first.put_document(digest, bytes);
        }
        set_age(&first, &documents[0].0, 31 * 24);
        set_age(&first, &documents[1].0, 29 * 24);
        let later = IndexStore::in_cache(&cache, &Budget::unlimited());
        later.put_document(&documents[2].0, &documents[2].1);
        let has = documents.iter().map(|(digest, _)| later.document(digest).is_some());
        assert_eq!(has.collect::<Vec<_>>(), [false, true, true]);
    }

    fn index_of(blob: &[u8]) -> LayerIndex {
        let options = Options { hashing: Hashing::Inline, ..Options::default() };
        let mut indexer = Indexer::new(options);
        indexer.push(blob).unwrap();
        let (blob, blob_bytes) = (Digest::sha256(blob), blob.len() as u64);
        indexer.finish(&Expected { blob, blob_bytes, diff_id: None }).unwrap()
    }

    #[test]
    fn only_the_index_that_is_of_no_use_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let budget = Budget::unlimited();
        let store = IndexStore::new(&images(dir.path()), 1 << 20, &budget);
        let blob = [0; 1024];
        let key = LayerKey { digest: Digest::sha256(&blob), size: 1024, toc: None };
        let put = || store.put_index(&key, index_of(&blob), budget.reserve(0).unwrap()).unwrap();
        let old = put();
        // Somebody else has found that it is of no use, and made it anew.
        let new = put();
        assert!(!new.has_windows());
        store.drop_index(&key, &old);
        let read = store.index(&key).unwrap().unwrap();
        assert_eq!(read.file, new.file);
        store.drop_index(&key, &read);
        assert!(store.index(&key).unwrap().is_none() && !store.has_index(&key));
        // The next file has its inode number, most likely.
        let again = put();
        store.drop_index(&key, &read);
        assert_eq!(store.index(&key).unwrap().map(|found| found.file), Some(again.file));
        drop((old, new, read, again));
        assert_eq!(budget.stats().used_bytes, 0);
    }

    #[test]
    fn an_index_that_memory_has_no_room_for_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let blob = [0; 1024];
        let key = LayerKey { digest: Digest::sha256(&blob), size: 1024, toc: None };
        let budget = Budget::unlimited();
        let store = IndexStore::new(&images(dir.path()), 1 << 20, &budget);
        store.put_index(&key, index_of(&blob), budget.reserve(0).unwrap()).unwrap();
        let store = IndexStore::new(&images(dir.path()), 1 << 20, &Budget::new(10));
        assert!(matches!(store.index(&key), Err(OutOfMemory::TooLarge { .. })));
    }
}
