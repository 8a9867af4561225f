//! A layer of images: its index, made once, and its parts, fetched and decompressed when they are
//! read.

use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::time::timeout;

use super::{
    SIDE, Sources, Store,
    pass::Pass,
    spans::Group,
    stream::{Decompressed, Passing, Stream},
};
use crate::{
    backend::{Error, Kind, Result, images_dir::cached::StreamId},
    cache::CachedBlob,
    image::{Descriptor, Digest, Reference, Repository},
    layer::{
        DecodeError, IndexError, LayerIndex, Limits, MAX_ZTOC_BYTES, Origin, SpanDecoder, TocError,
        TocReader, ztoc_of,
    },
    util::locked,
};

/// What of a blob is read at a time when all of it is.
pub(super) const STEP: usize = 256 << 10;

/// What layers are known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LayerKey {
    pub digest: Digest,
    /// Of several sizes that manifests give a digest, one can be right.
    pub size: u64,
    /// Stands for what an image says of a table of contents of the layer. Nothing in the layer vouches
    /// for that, so what one image says must not become what another one shows. `None` if it says
    /// nothing, and for what a pass has found, which is true for all.
    pub toc: Option<Digest>,
}

impl LayerKey {
    /// That of a layer of an image with this SOCI index.
    pub(super) fn new(blob: &Descriptor, soci_index: Option<&Reference>) -> Self {
        let mut claims: Vec<String> = TocReader::claims(blob).map(str::to_owned).collect();
        // Which repository it is read from says nothing of it.
        claims.extend(soci_index.and_then(Reference::digest).map(|digest| digest.to_string()));
        let toc = (!claims.is_empty()).then(|| Digest::sha256(claims.join("\n").as_bytes()));
        Self { digest: blob.digest, size: blob.size, toc }
    }

    /// The name of the layer's stream by `index`: of all on which its bytes depend.
    fn stream_id(&self, index: &LayerIndex) -> StreamId {
        let by = match (index.origin(), &self.toc) {
            (Origin::Pass, _) => "pass".to_owned(),
            (Origin::Toc, Some(toc)) => format!("toc {toc}"),
            (Origin::Ztoc, Some(toc)) => format!("ztoc {toc}"),
            (Origin::Toc, None) => "toc".to_owned(),
            (Origin::Ztoc, None) => "ztoc".to_owned(),
        };
        let (from, to) = (self.size, index.stream_bytes());
        StreamId::new(self.digest, &format!("{from} bytes compressed, {to} decompressed, by {by}"))
    }

    /// That of what a pass finds.
    pub(super) fn without_toc(self) -> Self {
        Self { toc: None, ..self }
    }
}

/// Something that is being found out, for all who want to know.
type Coming<T> = Shared<BoxFuture<'static, Result<T>>>;

pub(super) struct Layer {
    pub store: Arc<Store>,
    pub blob: Descriptor,
    key: LayerKey,
    /// Says by which algorithm the stream is hashed.
    diff_id: Option<Digest>,
    repositories: Mutex<Vec<Repository>>,
    /// Where there may be a table of contents of it.
    soci_index: Option<Reference>,
    index: Mutex<Known>,
    /// Groups of spans that are being decompressed, by their first.
    decoding: Mutex<HashMap<(Origin, u32), Coming<Group>>>,
    /// What came has not been what its table of contents says.
    toc_is_doubted: AtomicBool,
    /// What is local is not what it should be.
    local_is_bad: AtomicBool,
}

enum Known {
    Nothing,
    /// It is being read, or made by the pass.
    Coming(Coming<Arc<LayerIndex>>, Arc<Pass>),
    Index(Arc<LayerIndex>),
}

/// Why a table of contents is of no use.
#[derive(Debug, thiserror::Error)]
enum TocTrouble {
    #[error("{0}")]
    Fetch(#[from] Error),
    #[error("{0}")]
    Toc(#[from] TocError),
}

/// What has been fetched or made anew because spans were not what they should be.
enum Doubted {
    Nothing,
    Bytes,
    Index,
}

/// The compressed bytes of a layer.
pub(super) enum Compressed {
    File(Arc<File>),
    Cached(CachedBlob),
}

impl Compressed {
    /// The same for somebody who is going to read all of it.
    pub(super) fn for_all(self) -> Self {
        match self {
            Self::Cached(blob) => Self::Cached(blob.for_all()),
            Self::File(file) => Self::File(file),
        }
    }

    /// Grows whenever a part of it has come that can be read.
    fn progress(&self) -> u64 {
        match self {
            Self::File(_) => 0,
            Self::Cached(blob) => blob.arrived_blocks(),
        }
    }

    /// The bytes `range`, all of them.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        // Nobody asks for more than a group of spans, or a table of contents.
        let length = (range.end - range.start) as usize;
        let failed = |e| Error::new(SIDE, "reading a layer", e);
        match self {
            Self::File(file) => {
                let file = file.clone();
                let read = tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; length];
                    file.read_exact_at(&mut bytes, range.start).map(|()| bytes.into())
                });
                read.await.map_err(io::Error::other).and_then(|read| read).map_err(failed)
            }
            Self::Cached(blob) => blob.read(range.start, length).await,
        }
    }
}

impl Layer {
    pub(super) fn new(
        store: Arc<Store>,
        key: LayerKey,
        blob: Descriptor,
        diff_id: Option<Digest>,
        soci_index: Option<Reference>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            blob,
            key,
            diff_id,
            repositories: Mutex::default(),
            soci_index,
            index: Mutex::new(Known::Nothing),
            decoding: Mutex::default(),
            toc_is_doubted: AtomicBool::new(false),
            local_is_bad: AtomicBool::new(false),
        })
    }

    /// Notes that `repository` has it.
    pub(super) fn is_in(&self, repository: &Repository) {
        let mut repositories = locked(&self.repositories);
        if !repositories.contains(repository) {
            repositories.push(repository.clone());
        }
    }

    /// What an index of it is known by, and all that is read by that index.
    fn key_of(&self, index: &LayerIndex) -> LayerKey {
        match index.origin() {
            Origin::Pass => self.key.without_toc(),
            Origin::Toc | Origin::Ztoc => self.key,
        }
    }

    /// The index, if it is here.
    pub(super) fn known_index(&self) -> Option<Arc<LayerIndex>> {
        match &*locked(&self.index) {
            Known::Index(index) => Some(index.clone()),
            Known::Nothing | Known::Coming(..) => None,
        }
    }

    /// Whether the index is here, or can be read from the disk.
    pub(super) fn is_indexed(&self) -> bool {
        let has = |key| self.store.shelf.has_index(&key);
        self.known_index().is_some()
            || has(self.key.without_toc())
            || (self.may_use_toc() && has(self.key))
    }

    /// The pass that is under way.
    pub(super) fn pass(&self) -> Option<Arc<Pass>> {
        match &*locked(&self.index) {
            Known::Coming(_, pass) => Some(pass.clone()),
            Known::Nothing | Known::Index(_) => None,
        }
    }

    /// The index, made now if need be. Whoever gives up waiting does not end that; after an error
    /// the next one tries again.
    pub(super) fn index(self: &Arc<Self>) -> Coming<Arc<LayerIndex>> {
        let mut known = locked(&self.index);
        match &*known {
            Known::Index(index) => {
                let index = index.clone();
                async move { Ok(index) }.boxed().shared()
            }
            Known::Coming(coming, _) => coming.clone(),
            Known::Nothing => {
                let pass = Arc::new(Pass::new(&self.blob, self.diff_id));
                let (layer, of) = (self.clone(), pass.clone());
                let coming = spawned(async move { layer.find_index(of).await });
                *known = Known::Coming(coming.clone(), pass);
                coming
            }
        }
    }

    async fn find_index(self: Arc<Self>, pass: Arc<Pass>) -> Result<Arc<LayerIndex>> {
        let found = match self.stored_index().await {
            Some(index) => Ok(Arc::new(index)),
            None => self.make_index(&pass).await,
        };
        *locked(&self.index) = match &found {
            Ok(index) => Known::Index(index.clone()),
            Err(_) => Known::Nothing,
        };
        if let Err(error) = &found {
            self.store.note(error);
            pass.fail();
        }
        found
    }

    async fn stored_index(self: &Arc<Self>) -> Option<LayerIndex> {
        let layer = self.clone();
        let find = move || {
            let (shelf, key) = (&layer.store.shelf, layer.key);
            // A pass knows better than a table of contents.
            shelf
                .index(&key.without_toc())
                .or_else(|| layer.may_use_toc().then(|| shelf.index(&key))?)
        };
        tokio::task::spawn_blocking(find).await.ok()?
    }

    /// Whether what an image says of a table of contents is of interest.
    fn may_use_toc(&self) -> bool {
        self.key.toc.is_some() && !self.store.sources.verify_first
    }

    /// The index that the author of the image has made, if there is one. It is believed because its
    /// digest is in the manifest, and only for images that say the same of it.
    async fn index_of_toc(self: &Arc<Self>) -> Option<LayerIndex> {
        // If it is local a pass takes no longer, and sees what is there and not what somebody says.
        if self.is_local() || !self.may_use_toc() {
            return None;
        }
        let _permit = self.store.tables.acquire().await.ok()?;
        let no_use = |trouble: TocTrouble| {
            let reason = format!("its table of contents is not used: {trouble}");
            self.store.note(&self.error(Kind::Layer(reason)));
        };
        match self.read_toc().await.map_err(no_use) {
            Ok(Some(index)) => Some(index),
            _ => self.read_ztoc().await.map_err(no_use).ok().flatten(),
        }
    }

    /// That which is in the layer.
    async fn read_toc(&self) -> std::result::Result<Option<LayerIndex>, TocTrouble> {
        let reader = TocReader::new(&self.blob, Limits::default())?;
        let Some(mut reader) = reader else { return Ok(None) };
        let compressed = self.compressed()?;
        loop {
            let bytes = self.fetch(&compressed, reader.wanted()).await?;
            if let Some(index) = reader.push(&bytes)? {
                return Ok(Some(index));
            }
        }
    }

    /// That which SOCI has made of it.
    async fn read_ztoc(self: &Arc<Self>) -> std::result::Result<Option<LayerIndex>, TocTrouble> {
        let Sources { cache, patience, .. } = &self.store.sources;
        let remote = self.store.sources.remote();
        let (Some(name), Some(remote)) = (&self.soci_index, remote) else { return Ok(None) };
        let soci_index = timeout(*patience, self.store.manifest(name)).await;
        let soci_index = soci_index.map_err(|_| self.error(Kind::Stalled(*patience)))??;
        let Some(ztoc) = ztoc_of(&soci_index, &self.blob.digest) else { return Ok(None) };
        if ztoc.size > MAX_ZTOC_BYTES {
            return Err(TocError::TooLarge.into());
        }
        let blob = cache.parts(remote.clone(), vec![name.repository().clone()], ztoc);
        let bytes = self.fetch(&Compressed::Cached(blob.clone()), 0..ztoc.size).await?;
        let (layer, expected) = (self.clone(), ztoc.digest);
        let read = tokio::task::spawn_blocking(move || {
            let found = Digest::of(expected.algorithm(), &bytes);
            if found != expected {
                // The next attempt is not to get the same.
                blob.discard();
                return Err(TocError::Digest { expected, found: found.into() });
            }
            LayerIndex::of_ztoc(&layer.blob, &bytes, &Limits::default())
        });
        Ok(Some(read.await.map_err(|e| self.error(io::Error::other(e)))??))
    }

    async fn make_index(self: &Arc<Self>, pass: &Arc<Pass>) -> Result<Arc<LayerIndex>> {
        if let Some(index) = self.index_of_toc().await {
            return self.keep(index).await;
        }
        let _permit = self
            .store
            .passes
            .acquire()
            .await
            .map_err(|e| self.error(Kind::Interrupted(e.to_string())))?;
        let was_local = self.is_local();
        let index = match self.run_pass(pass).await {
            // What is wrong here may be right there.
            Err(_) if was_local && self.store.sources.remote().is_some() => {
                self.local_is_bad.store(true, Ordering::Relaxed);
                self.run_pass(pass).await
            }
            done => done,
        }?;
        self.keep(index).await
    }

    /// Keeps an index for good, if that can be.
    async fn keep(self: &Arc<Self>, index: LayerIndex) -> Result<Arc<LayerIndex>> {
        let layer = self.clone();
        let kept = tokio::task::spawn_blocking(move || {
            // With its windows in memory it serves as well, until the process ends.
            layer.store.shelf.put_index(&layer.key_of(&index), &index).unwrap_or(index)
        });
        kept.await.map(Arc::new).map_err(|e| self.error(io::Error::other(e)))
    }

    /// If it is the table of contents that is wrong and not what the registry sends, a pass finds that
    /// out. What is open keeps to the table; who opens the image later has the layer as it is.
    fn pass_for_later(self: &Arc<Self>) {
        if self.toc_is_doubted.swap(true, Ordering::Relaxed) {
            return;
        }
        let layer = self.clone();
        tokio::spawn(async move {
            let _permit = layer.store.passes.acquire().await;
            let pass = Pass::new(&layer.blob, layer.diff_id);
            match layer.run_pass(&Arc::new(pass)).await {
                Ok(index) => drop(layer.keep(index).await),
                Err(error) => layer.store.note(&error),
            }
        });
    }

    /// Passes the layer from its beginning to its end.
    async fn run_pass(&self, pass: &Arc<Pass>) -> Result<LayerIndex> {
        let compressed = self.compressed()?.for_all();
        let hashing = match &compressed {
            Compressed::Cached(blob) => Some(blob.begin_hashing()),
            Compressed::File(_) => None,
        };
        pass.begin();
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(2);
        let of = pass.clone();
        let work = tokio::task::spawn_blocking(move || -> std::result::Result<(), IndexError> {
            while let Some(bytes) = receiver.blocking_recv() {
                of.push(&bytes)?;
            }
            Ok(())
        });
        let mut at = 0;
        while at < self.blob.size {
            let end = self.blob.size.min(at + STEP as u64);
            let bytes = self.fetch(&compressed, at..end).await?;
            at += bytes.len() as u64;
            if bytes.is_empty() || sender.send(bytes).await.is_err() {
                // The digest says what is wrong.
                break;
            }
        }
        drop(sender);
        let of = pass.clone();
        let ended = async {
            work.await.map_err(io::Error::other)?.map_err(|e| self.not_expected(&e))?;
            let index = tokio::task::spawn_blocking(move || of.finish()).await;
            index.map_err(io::Error::other)?.map_err(|e| self.not_expected(&e))
        };
        let index = ended.await.map_err(|kind: Kind| self.error(kind));
        if index.is_ok() {
            tracing::info!(digest = %self.blob.digest, bytes = self.blob.size, "indexed a layer");
        }
        if let (Compressed::Cached(blob), Some(hashing)) = (&compressed, hashing) {
            match &index {
                Ok(_) => blob.vouch(&hashing),
                // Nothing of it is to be believed, and it is not to come again.
                Err(error) if error.is_mismatch() => blob.discard(),
                Err(_) => {}
            }
        }
        index
    }

    fn not_expected(&self, error: &IndexError) -> Kind {
        match error {
            IndexError::Digest { expected, found } => {
                Kind::Digest { expected: *expected, found: **found }
            }
            IndexError::Size { expected, found, .. } => {
                Kind::Size { expected: *expected, found: *found }
            }
            other => Kind::Layer(other.to_string()),
        }
    }

    /// Reads compressed bytes, and does not wait for ever: only as long as something comes. That
    /// has to be of use; a registry that sends a few bytes at each attempt is given up like one that
    /// sends none.
    pub(super) async fn fetch(&self, from: &Compressed, range: Range<u64>) -> Result<Bytes> {
        let Sources { patience, .. } = &self.store.sources;
        let mut read = std::pin::pin!(from.read(range));
        loop {
            let before = from.progress();
            match timeout(*patience, &mut read).await {
                // It is the layer that is not there, and not the file that is read.
                Ok(Err(error)) if error.is_not_found() => {
                    return Err(error.with_kind(Kind::Layer(error.kind().to_string())));
                }
                Ok(done) => return done,
                // It begins again at 0 when what was here has been found to be wrong.
                Err(_) if from.progress() != before => {}
                Err(_) => return Err(self.error(Kind::Stalled(*patience))),
            }
        }
    }

    pub(super) fn error(&self, kind: impl Into<Kind>) -> Error {
        Error::new(SIDE, format_args!("reading layer {}", self.blob.digest), kind)
    }

    fn is_local(&self) -> bool {
        self.local().is_some()
    }

    fn local(&self) -> Option<File> {
        if self.local_is_bad.load(Ordering::Relaxed) {
            return None;
        }
        self.store.sources.dir().unverified_file(self.blob.digest, self.blob.size)
    }

    /// Where the layer's bytes come from now. Nobody has checked them.
    pub(super) fn compressed(&self) -> Result<Compressed> {
        if self.blob.media_type.ends_with("+encrypted") {
            return Err(self.error(Kind::Layer("the layer is encrypted".into())));
        }
        if let Some(file) = self.local() {
            return Ok(Compressed::File(Arc::new(file)));
        }
        let sources = &self.store.sources;
        let Some(remote) = sources.remote() else {
            return Err(self.error(Kind::Offline));
        };
        let repositories = locked(&self.repositories).clone();
        Ok(Compressed::Cached(sources.cache.parts(remote.clone(), repositories, &self.blob)))
    }

    /// A reader of the layer's decompressed stream.
    pub(super) fn stream(self: &Arc<Self>, index: &Arc<LayerIndex>) -> Result<Stream> {
        let repository = locked(&self.repositories).first().cloned();
        let repository =
            repository.ok_or_else(|| self.error(Kind::NotFound("nobody has it".into())))?;
        let source = Arc::new(Decompressed { layer: self.clone(), index: index.clone() });
        let (id, size) = (self.key_of(index).stream_id(index), index.stream_bytes());
        let stream = self.store.sources.cache.stream(source, repository, &self.blob, id, size);
        Ok(Stream::Cached { stream, _reader: self.store.recent.reader() })
    }

    /// The same of what has passed while the pass goes on.
    pub(super) fn passing_stream(
        self: &Arc<Self>,
        index: &Arc<LayerIndex>,
        pass: &Arc<Pass>,
    ) -> Stream {
        let (layer, index, pass) = (self.clone(), index.clone(), pass.clone());
        Stream::Passing(Arc::new(Passing { layer, index, pass, last: Mutex::default() }))
    }

    /// The spans of the group that `span` is in, checked.
    pub(super) fn group(self: &Arc<Self>, index: &Arc<LayerIndex>, span: u32) -> Coming<Group> {
        let spans = index.group(span);
        if let Some(group) = self.store.recent.get(&self.key_of(index), spans.start) {
            return async move { Ok(group) }.boxed().shared();
        }
        let (key, mut decoding) = ((index.origin(), spans.start), locked(&self.decoding));
        let (layer, index) = (self.clone(), index.clone());
        let begin = || {
            spawned(async move {
                let group = layer.decode(&index, spans).await;
                if let Ok(group) = &group {
                    layer.store.recent.put(&layer.key_of(&index), group.clone());
                }
                locked(&layer.decoding).remove(&key);
                group
            })
        };
        decoding.entry(key).or_insert_with(begin).clone()
    }

    pub(super) async fn decode(
        self: &Arc<Self>,
        index: &Arc<LayerIndex>,
        spans: Range<u32>,
    ) -> Result<Group> {
        let mut index = index.clone();
        let mut doubted = Doubted::Nothing;
        loop {
            let compressed = self.compressed()?;
            let bytes = self.fetch(&compressed, index.fetch_range(spans.clone())).await?;
            let (layer, of, wanted) = (self.clone(), index.clone(), spans.clone());
            let decoded =
                tokio::task::spawn_blocking(move || layer.decode_now(&of, wanted, &bytes));
            let error = match decoded.await.map_err(|e| self.error(io::Error::other(e)))? {
                Ok(group) => return Ok(group),
                Err(error) => error,
            };
            let of_window = matches!(error, DecodeError::Window(_) | DecodeError::NoWindow(_));
            doubted = match doubted {
                Doubted::Nothing if !of_window => {
                    self.distrust(&compressed, &error);
                    Doubted::Bytes
                }
                // The same bytes came again, so it is the index that has been damaged since it was
                // read, or rather its windows.
                Doubted::Nothing | Doubted::Bytes if !index.has_windows() => {
                    self.forget_index(&index);
                    let again = self.index().await?;
                    if !is_cut_alike(&again, &index, &spans) {
                        let reason = "it has been indexed anew; what is open is to be opened again";
                        return Err(self.error(Kind::Layer(reason.into())));
                    }
                    index = again;
                    Doubted::Index
                }
                _ => {
                    if index.origin() != Origin::Pass {
                        self.pass_for_later();
                    }
                    return Err(self.error(Kind::Layer(error.to_string())));
                }
            };
        }
    }

    /// Sees to it that `index` is made anew when it is needed.
    fn forget_index(&self, index: &LayerIndex) {
        self.store.shelf.drop_index(&self.key_of(index));
        *locked(&self.index) = Known::Nothing;
    }

    /// Sees to it that the next attempt does not get the bytes that have just been found to be wrong.
    pub(super) fn distrust(&self, compressed: &Compressed, error: &DecodeError) {
        self.store.note(&self.error(Kind::Layer(error.to_string())));
        match compressed {
            Compressed::File(_) if self.store.sources.remote().is_some() => {
                self.local_is_bad.store(true, Ordering::Relaxed);
            }
            Compressed::File(_) => {}
            Compressed::Cached(blob) => blob.discard(),
        }
    }

    /// The window that decompressing begins with at the group of `span`, where it is not in memory.
    pub(super) fn window(&self, index: &LayerIndex, span: u32) -> Option<Vec<u8>> {
        let range = index.window_range(span).filter(|_| !index.has_windows())?;
        // If it cannot be read, decoding says that it is missing.
        self.store.shelf.window(&self.key_of(index), range).ok()
    }

    fn decode_now(
        &self,
        index: &LayerIndex,
        spans: Range<u32>,
        compressed: &[u8],
    ) -> std::result::Result<Group, DecodeError> {
        let window = self.window(index, spans.start);
        let (first, last) = (spans.start, spans.end.saturating_sub(1));
        let mut decoder = SpanDecoder::new(index, spans, window.as_deref())?;
        let mut found = Vec::new();
        let is_whole = decoder.push(compressed, &mut |_, bytes| found.push(bytes.into()))?;
        if is_whole {
            Ok(Group { first, spans: found.into() })
        } else {
            Err(DecodeError::Short(last))
        }
    }
}

/// Whether these spans are the same by two indexes of a layer.
fn is_cut_alike(one: &LayerIndex, other: &LayerIndex, spans: &Range<u32>) -> bool {
    let of = |index: &LayerIndex| {
        let ranges: Vec<_> = spans.clone().map(|span| index.stream_range(span)).collect();
        (index.origin(), index.stream_bytes(), ranges)
    };
    of(one) == of(other)
}

/// Runs `work` to its end whoever waits for it.
fn spawned<T: Clone + Send + Sync + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Coming<T> {
    let task = tokio::spawn(work);
    async move {
        match task.await {
            Ok(done) => done,
            Err(died) => Err(Error::new(SIDE, "reading a layer", io::Error::other(died))),
        }
    }
    .boxed()
    .shared()
}
