//! A layer of images: its index, made once.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{BoxFuture, ready},
};
use tokio::time::timeout;

use super::{
    Sources, Store,
    attached::{Places, checked, checking_bytes},
    index_store::Indexed,
    key::{LayerKey, Source},
    location::{Compressed, Location, STEP},
    recorded::WrongLayer,
    scan::{Scan, ScanError},
};
use crate::{
    backend::{Error, Kind, Result},
    image::{Descriptor, Digest, Reference},
    layer::{IndexError, LayerIndex, Limits, MAX_ZTOC_BYTES, TocError, TocReader, ztoc_of},
    util::{Died, OutOfMemory, Reservation, locked},
};

/// What reading a table of contents takes in memory at most, besides its compressed bytes.
const TOC_BYTES: u64 = 64 << 20;

/// The same for each of its compressed bytes.
const TOC_BYTES_EACH: u64 = 32;

pub(super) struct Layer {
    pub at: Arc<Location>,
    pub key: LayerKey,
    /// Says by which algorithm the stream is hashed.
    diff_id: Option<Digest>,
    claims: Claims,
    /// The scan that is under way, or is going to be if there is no other way to know the index.
    scan: Mutex<Option<Arc<Scan>>>,
    /// What came has not been what its table of contents says.
    toc_is_doubted: AtomicBool,
    /// When and why the layer could not be passed once more. Held while that is tried.
    rescan_failed: tokio::sync::Mutex<Option<(Instant, Error)>>,
}

/// After a scan that was to make an index once more has failed, there is none for so long.
const RESCAN_PAUSE: Duration = Duration::from_secs(30);

/// Where there may be indexes of a layer that others have made.
pub(super) struct Claims {
    /// A table of contents of SOCI.
    pub soci_index: Option<Reference>,
    /// The image to which indexes may be attached that are trusted.
    pub attached: Option<Reference>,
}

/// Why a table of contents is of no use.
#[derive(Debug, thiserror::Error)]
enum TocFailure {
    #[error("{0}")]
    Fetch(#[from] Error),
    #[error("{0}")]
    Toc(#[from] TocError),
    #[error("{0}")]
    Memory(#[from] OutOfMemory),
}

/// An index that was made of a table of contents, with its memory.
type TocIndex = std::result::Result<Option<(LayerIndex, Reservation)>, TocFailure>;

/// What a scan does that finds no room in memory because of what others use.
#[derive(Clone, Copy)]
enum WhenShort {
    Fail,
    /// Wait while it holds what it has. Only one may.
    Wait,
}

impl Layer {
    pub(super) fn new(
        store: Arc<Store>,
        key: LayerKey,
        blob: Descriptor,
        diff_id: Option<Digest>,
        claims: Claims,
    ) -> Arc<Self> {
        Arc::new(Self {
            at: Arc::new(Location::new(store, blob)),
            key,
            diff_id,
            claims,
            scan: Mutex::default(),
            toc_is_doubted: AtomicBool::new(false),
            rescan_failed: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.at.store
    }

    pub(super) fn error(&self, kind: impl Into<Kind>) -> Error {
        self.at.error(kind)
    }

    // --- the index ---

    /// The index, if it is in memory.
    pub(super) fn known_index(&self) -> Option<Arc<Indexed>> {
        let known = |key: &LayerKey| self.store().indexes.get(key);
        known(&self.key.without_toc()).or_else(|| self.may_use_toc().then(|| known(&self.key))?)
    }

    /// Whether the index is in memory or on the disk. Blocks for a moment.
    pub(super) fn is_indexed(&self) -> bool {
        let has = |key| self.store().index_store.has_index(&key);
        self.known_index().is_some()
            || has(self.key.without_toc())
            || (self.may_use_toc() && has(self.key))
    }

    /// The scan that is under way.
    pub(super) fn scan(&self) -> Option<Arc<Scan>> {
        locked(&self.scan).clone()
    }

    /// The index, made now if need be. Whoever gives up waiting does not end that; after an error
    /// the next one tries again. Does not wait for memory, unless it takes a scan.
    pub(super) fn index(self: &Arc<Self>) -> BoxFuture<'static, Result<Arc<Indexed>>> {
        if let Some(index) = self.known_index() {
            return ready(Ok(index)).boxed();
        }
        let begin = || {
            let scan = self.new_scan();
            *locked(&self.scan) = Some(scan.clone());
            let ended = ScanEnded { layer: self.clone(), scan };
            async move { ended.layer.find_index(&ended.scan).await }
        };
        let flight = self.store().indexing.run(self.key, begin);
        let layer = self.clone();
        async move { flight.await.unwrap_or_else(|died| Err(layer.died(died))) }.boxed()
    }

    pub(super) fn died(&self, died: Died) -> Error {
        self.error(io::Error::other(died))
    }

    async fn find_index(self: &Arc<Self>, scan: &Arc<Scan>) -> Result<Arc<Indexed>> {
        if let Some(index) = self.known_index() {
            return Ok(index);
        }
        let found = match self.stored_index().await {
            Ok(Some(index)) => {
                let index = Arc::new(index);
                self.store().indexes.insert(self.key.of(index.source()), &index);
                Ok(index)
            }
            Ok(None) => self.make_index(scan).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &found {
            self.store().note(error);
            if error.is_mismatch() {
                let (layer, reason) = (self.at.blob.digest, error.to_string());
                self.store().note_wrong(WrongLayer { layer, diff_id: None, reason });
            }
            scan.fail();
        }
        found
    }

    async fn stored_index(self: &Arc<Self>) -> Result<Option<Indexed>> {
        let layer = self.clone();
        let find = move || {
            // A scan knows better than a table of contents.
            let store = &layer.store().index_store;
            match layer.may_use_toc() {
                true => store.best_index(&layer.key),
                false => store.index(&layer.key.without_toc()),
            }
        };
        let found = self.store().compute(find).await.map_err(|e| self.error(e))?;
        found.map_err(|error: OutOfMemory| self.error(error))
    }

    async fn make_index(self: &Arc<Self>, scan: &Arc<Scan>) -> Result<Arc<Indexed>> {
        if let Some(index) = self.attached_index().await? {
            let index = Arc::new(index);
            self.store().indexes.insert(self.key, &index);
            return Ok(index);
        }
        match self.index_of_toc().await? {
            Some((index, memory)) => self.keep(index, memory).await,
            None => self.scan_with_memory(scan).await,
        }
    }

    /// Whether what an image says of a table of contents is of interest.
    fn may_use_toc(&self) -> bool {
        self.key.toc.is_some() && !self.store().sources.verify_first
    }

    async fn is_local(self: &Arc<Self>) -> bool {
        let at = self.at.clone();
        tokio::task::spawn_blocking(move || at.is_local()).await.unwrap_or(false)
    }

    /// The index that the author of the image has made, if there is one. It is believed because its
    /// digest is in the manifest, and only for images that say the same of it.
    async fn index_of_toc(self: &Arc<Self>) -> Result<Option<(LayerIndex, Reservation)>> {
        // If it is local a scan takes no longer, and sees what is there and not what somebody says.
        if !self.may_use_toc() || self.is_local().await {
            return Ok(None);
        }
        for from_soci in [false, true] {
            let read = match from_soci {
                false => self.read_toc().await,
                true => self.read_ztoc().await,
            };
            match read {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(TocFailure::Memory(error)) => return Err(self.error(error)),
                Err(failure) => {
                    let reason = format!("its table of contents is not used: {failure}");
                    self.store().note(&self.error(Kind::Layer(reason)));
                }
            }
        }
        Ok(None)
    }

    /// The index that somebody has attached to the image, if those are trusted.
    async fn attached_index(self: &Arc<Self>) -> Result<Option<Indexed>> {
        let Some(name) = self.claims.attached.as_ref().filter(|_| self.may_use_toc()) else {
            return Ok(None);
        };
        // What has been found to be wrong is not fetched again.
        if self.toc_is_doubted.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let attached = match self.is_local().await {
            // No registry is to be waited for then.
            true => match self.store().find_attached(name, Places::Directory).await {
                Ok(found) => found.into(),
                Err(_) => return Ok(None),
            },
            false => self.store().attached(name).await,
        };
        for blob in attached.indexes.get(&self.at.blob.digest).into_iter().flatten() {
            match self.take_attached(name, blob).await {
                Ok(index) => return Ok(Some(index)),
                // One that says that it needs more than there is at all is of no use.
                Err(error) if error.is_short_of_memory() => return Err(error),
                Err(error) => {
                    tracing::warn!(image = %name, digest = %self.at.blob.digest, "{error}");
                    self.store().note(&error);
                }
            }
        }
        Ok(None)
    }

    /// Fetches an index that is attached to the image `name`, checks what of it can be, and keeps it.
    pub(super) async fn take_attached(
        self: &Arc<Self>,
        name: &Reference,
        blob: &Descriptor,
    ) -> Result<Indexed> {
        let (bytes, memory) =
            self.store().index_blob(name.repository(), blob, &self.at.blob).await?;
        let layer = self.clone();
        let take = move || {
            let unfit = |reason: String| layer.error(Kind::Layer(reason));
            let reading = checking_bytes(&bytes).map_err(|e| unfit(e.to_string()))?;
            let budget = &layer.store().sources.memory;
            let reading = budget.reserve(reading).map_err(|e| layer.error(e))?;
            let index = checked(&bytes, &layer.at.blob, layer.diff_id);
            let index = index.map_err(|e| unfit(e.to_string()))?;
            let store = &layer.store().index_store;
            if store.put_attached(&layer.key, &bytes).is_ok()
                && let Some(stored) = store.index(&layer.key).map_err(|e| layer.error(e))?
            {
                return Ok(stored);
            }
            // As long as there is room in memory, that serves as well.
            drop(memory);
            Indexed::attached(index, &bytes, reading).map_err(|e| layer.error(e))
        };
        self.store().compute(take).await.map_err(|e| self.error(e))?
    }

    /// Memory for a table of contents of so many bytes.
    fn memory_for_toc(
        &self,
        compressed_bytes: u64,
    ) -> std::result::Result<Reservation, OutOfMemory> {
        let unpacked = compressed_bytes.saturating_mul(TOC_BYTES_EACH).min(TOC_BYTES);
        self.store().sources.memory.reserve(compressed_bytes.saturating_add(unpacked))
    }

    /// That which is in the layer.
    async fn read_toc(self: &Arc<Self>) -> TocIndex {
        let reader = TocReader::new(&self.at.blob, Limits::default())?;
        let Some(mut reader) = reader else { return Ok(None) };
        let compressed = self.at.compressed().await?;
        loop {
            let wanted = reader.wanted();
            let mut memory = self.memory_for_toc(wanted.end.saturating_sub(wanted.start))?;
            let bytes = self.at.fetch(&compressed, wanted).await?;
            let read = move || {
                let index = reader.push(&bytes)?;
                Ok::<_, TocError>((reader, index))
            };
            let read = self.store().compute(read).await.map_err(|e| self.error(e))?;
            let (again, index) = read?;
            reader = again;
            if let Some(index) = index {
                memory.resize(index.memory_bytes())?;
                return Ok(Some((index, memory)));
            }
        }
    }

    /// That which SOCI has made of it.
    async fn read_ztoc(self: &Arc<Self>) -> TocIndex {
        let Sources { cache, patience, .. } = &self.store().sources;
        let remote = self.store().sources.remote();
        let (Some(name), Some(remote)) = (&self.claims.soci_index, remote) else { return Ok(None) };
        let soci_index = timeout(*patience, self.store().manifest(name)).await;
        let soci_index = soci_index.map_err(|_| self.error(Kind::Stalled(*patience)))??;
        let Some(ztoc) = ztoc_of(&soci_index, &self.at.blob.digest) else { return Ok(None) };
        if ztoc.size > MAX_ZTOC_BYTES {
            return Err(TocError::TooLarge.into());
        }
        let mut memory = self.memory_for_toc(ztoc.size)?;
        let blob = cache.parts(remote.clone(), vec![name.repository().clone()], ztoc);
        let bytes = self.at.fetch(&Compressed::Cached(blob.clone()), 0..ztoc.size).await?;
        let (layer, expected) = (self.clone(), ztoc.digest);
        let read = move || {
            let found = Digest::of(expected.algorithm(), &bytes);
            if found != expected {
                // The next attempt is not to get the same.
                blob.discard();
                return Err(TocError::Digest { expected, found: found.into() });
            }
            LayerIndex::of_ztoc(&layer.at.blob, &bytes, &Limits::default())
        };
        let index = self.store().compute(read).await.map_err(|e| self.error(e))??;
        memory.resize(index.memory_bytes())?;
        Ok(Some((index, memory)))
    }

    /// Keeps an index in memory and, if that can be, on the disk.
    async fn keep(
        self: &Arc<Self>,
        index: LayerIndex,
        memory: Reservation,
    ) -> Result<Arc<Indexed>> {
        let index = self.put(index, memory).await?;
        self.store().indexes.insert(self.key.of(index.source()), &index);
        Ok(index)
    }

    async fn put(self: &Arc<Self>, index: LayerIndex, memory: Reservation) -> Result<Arc<Indexed>> {
        let layer = self.clone();
        let put = move || {
            let _replacing = locked(&layer.store().replacing);
            let key = layer.key.of(Source::of(index.origin()));
            layer.store().index_store.put_index(&key, index, memory)
        };
        // Waiting for the disk takes no processor.
        let stored = tokio::task::spawn_blocking(put).await;
        let stored = stored.map_err(|e| self.error(io::Error::other(e)))?;
        stored.map(Arc::new).map_err(|error| self.error(error))
    }

    /// Sees to it that `index` is made anew when it is needed, if it has not been by somebody else.
    pub(super) async fn forget_index(self: &Arc<Self>, index: &Arc<Indexed>) {
        let (layer, index) = (self.clone(), index.clone());
        let forget = move || {
            let _replacing = locked(&layer.store().replacing);
            let key = layer.key.of(index.source());
            layer.store().indexes.remove_if(&key, |kept| std::ptr::eq(kept, &*index));
            layer.store().index_store.drop_index(&key, &index);
        };
        // Its only failure is a panic, which leaves the index to be found to be of no use again.
        let _ = tokio::task::spawn_blocking(forget).await;
    }

    /// The index in place of `index`, with which something could not be decompressed: because of its windows, if
    /// `of_window` says so.
    ///
    /// What the registry sends may be wrong as well, twice over. So an index that was made here stays until a scan has
    /// passed all of the layer and found that it is the right one: without it, the next scan would give out what it
    /// has not compared with anything yet.
    pub(super) async fn index_again(
        self: &Arc<Self>,
        index: &Arc<Indexed>,
        of_window: bool,
    ) -> Result<Arc<Indexed>> {
        if of_window || index.source() != Source::Pass {
            self.forget_index(index).await;
            return self.index().await;
        }
        let mut failed = self.rescan_failed.lock().await;
        // Others may have waited for the same.
        if let Some(now) = self.known_index().filter(|now| !Arc::ptr_eq(now, index)) {
            return Ok(now);
        }
        if let Some((when, error)) = &*failed
            && when.elapsed() < RESCAN_PAUSE
        {
            return Err(error.clone());
        }
        let scanned = self.scan_with_memory(&self.new_scan()).await;
        *failed = scanned.as_ref().err().map(|error| (Instant::now(), error.clone()));
        if let Err(error) = &scanned {
            self.store().note(error);
        }
        scanned
    }

    /// Makes the index by a scan, whatever others say of the layer, and keeps it on the disk.
    pub(super) async fn scan_now(self: &Arc<Self>) -> Result<()> {
        let (index, memory) = self.scan_anywhere(&self.new_scan(), WhenShort::Fail).await?;
        self.put(index, memory).await.map(drop)
    }

    /// The digest that the image says its stream has.
    pub(super) fn diff_id(&self) -> Option<Digest> {
        self.diff_id
    }

    /// If it is the table of contents that is wrong and not what the registry sends, a scan finds that
    /// out. What is open keeps to the table; who opens the image later has the layer as it is.
    pub(super) fn scan_for_later(self: &Arc<Self>) {
        if self.toc_is_doubted.swap(true, Ordering::Relaxed) {
            return;
        }
        let layer = self.clone();
        tokio::spawn(async move {
            let scanned = layer.run_scan(&layer.new_scan(), WhenShort::Fail).await;
            let kept = match scanned {
                Ok((index, memory)) => layer.put(index, memory).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = kept {
                layer.store().note(&error);
            }
        });
    }

    // --- scanning ---

    /// A scan that nobody follows yet.
    fn new_scan(&self) -> Arc<Scan> {
        Scan::new(&self.at.blob, self.diff_id, &self.store().sources.memory).into()
    }

    /// Scans the layer and keeps the index. If there is no room in memory because of what others use, it
    /// begins once more, alone, and waits for it.
    async fn scan_with_memory(self: &Arc<Self>, scan: &Arc<Scan>) -> Result<Arc<Indexed>> {
        let attempt = |when_short| async move {
            let (index, memory) = self.scan_anywhere(scan, when_short).await?;
            self.keep(index, memory).await
        };
        match attempt(WhenShort::Fail).await {
            Err(error) if error.is_short_of_memory() => {
                let _turn = self.store().memory_turn.lock().await;
                self.store().with_memory(|| attempt(WhenShort::Wait)).await
            }
            done => done,
        }
    }

    /// Scans the layer where it is; elsewhere, if what is local is not what it should be.
    async fn scan_anywhere(
        self: &Arc<Self>,
        scan: &Arc<Scan>,
        when_short: WhenShort,
    ) -> Result<(LayerIndex, Reservation)> {
        let was_local = self.is_local().await;
        match self.run_scan(scan, when_short).await {
            Err(error) if matches!(error.kind(), Kind::Memory(_)) => Err(error),
            // What is wrong here may be right there.
            Err(_) if was_local && self.store().sources.remote().is_some() => {
                self.at.distrust_local();
                self.run_scan(scan, when_short).await
            }
            done => done,
        }
    }

    /// Scans the layer from its beginning to its end. A processor is taken for each piece that has come,
    /// while the next one is on its way.
    async fn run_scan(
        self: &Arc<Self>,
        scan: &Arc<Scan>,
        when_short: WhenShort,
    ) -> Result<(LayerIndex, Reservation)> {
        let compressed = self.at.compressed().await?.for_all();
        let hashing = match &compressed {
            Compressed::Cached(blob) => Some(blob.begin_hashing()),
            Compressed::File(_) => None,
        };
        scan.begin().map_err(|error| self.error(error))?;
        let scanned = self.scan_pieces(scan, &compressed, when_short).await;
        let scanned = match scanned {
            Ok(()) => {
                let of = scan.clone();
                let finish = move || of.finish();
                let index = self.store().compute(finish).await.map_err(|e| self.error(e));
                index.and_then(|index| index.map_err(|e| self.scan_error(&e)))
            }
            Err(error) => Err(error),
        };
        scan.stop();
        let work = &self.store().work;
        match &scanned {
            Ok((index, _)) => {
                work.passes.fetch_add(1, Ordering::Relaxed);
                work.inflated_bytes.fetch_add(index.stream_bytes(), Ordering::Relaxed);
            }
            Err(_) => {
                work.failed_passes.fetch_add(1, Ordering::Relaxed);
            }
        }
        if scanned.is_ok() {
            let blob = &self.at.blob;
            tracing::info!(digest = %blob.digest, bytes = blob.size, "indexed a layer");
        }
        if let (Compressed::Cached(blob), Some(hashing)) = (&compressed, hashing) {
            match &scanned {
                Ok(_) => blob.vouch(&hashing),
                // Nothing of it is to be believed, and it is not to come again.
                Err(error) if error.is_mismatch() => blob.discard(),
                Err(_) => {}
            }
        }
        scanned
    }

    async fn scan_pieces(
        &self,
        scan: &Arc<Scan>,
        compressed: &Compressed,
        when_short: WhenShort,
    ) -> Result<()> {
        let size = self.at.blob.size;
        let fetch = |at: u64| async move {
            match at < size {
                true => self.at.fetch(compressed, at..size.min(at + STEP as u64)).await,
                false => Ok(Bytes::new()),
            }
        };
        let count = || ready(scan.count().map_err(|error| self.error(error)));
        let push = |mut bytes: Bytes| async move {
            while !bytes.is_empty() {
                let of = scan.clone();
                let pushed = self.store().compute(move || of.push(bytes)).await;
                bytes = pushed
                    .map_err(|e| self.error(e))?
                    .map_err(|e| self.scan_error(&ScanError::Index(e)))?;
                match when_short {
                    WhenShort::Fail => count().await?,
                    WhenShort::Wait => self.store().with_memory(count).await?,
                }
            }
            Ok(())
        };
        let mut at = 0;
        let mut piece = fetch(0).await?;
        // Where it ends too early, the digest says what is wrong.
        while !piece.is_empty() {
            at += piece.len() as u64;
            let (next, pushed) = futures_util::join!(fetch(at), push(piece));
            pushed?;
            piece = next?;
        }
        Ok(())
    }

    fn scan_error(&self, error: &ScanError) -> Error {
        self.error(match error {
            ScanError::Memory(error) => Kind::Memory(*error),
            ScanError::Index(IndexError::Digest { expected, found }) => {
                Kind::Digest { expected: *expected, found: **found }
            }
            ScanError::Index(IndexError::Size { expected, found, .. }) => {
                Kind::Size { expected: *expected, found: *found }
            }
            ScanError::Index(other) => Kind::Layer(other.to_string()),
        })
    }
}

/// Sees to it that a scan does not seem to be under way when whoever did it has ended, in whatever way.
struct ScanEnded {
    layer: Arc<Layer>,
    scan: Arc<Scan>,
}

impl Drop for ScanEnded {
    fn drop(&mut self) {
        self.scan.stop();
        let mut scan = locked(&self.layer.scan);
        if scan.as_ref().is_some_and(|scan| Arc::ptr_eq(scan, &self.scan)) {
            *scan = None;
        }
    }
}
