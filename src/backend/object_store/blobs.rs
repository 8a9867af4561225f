//! Blobs: read with one `GET`, looked for with one `HEAD`, written with one `PUT` or, if they are large, in parts.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{GetOptions, GetRange};

use super::{Inner, ObjectTree, parts::Parts};
use crate::{
    backend::{
        Blobs, BoxStream, ByteStream, Content, Error, Kind, Opened, Received, Receiver, Result,
        Tally,
    },
    image::{Descriptor, Repository},
};

/// Pieces are handed on in this size at most, in bytes.
const PIECE: usize = 256 << 10;

#[async_trait]
impl Blobs for ObjectTree {
    async fn read(
        &self,
        _: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        self.read_blob(blob, range).await
    }
}

impl ObjectTree {
    /// Reads the bytes `range` of a blob, which is the same in all repositories.
    pub(super) async fn read_blob(
        &self,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        let inner = &self.inner;
        let doing = format!("fetching blob {}", blob.digest);
        let range = range.start.min(blob.size)..range.end.min(blob.size);
        if range.is_empty() {
            return Ok(Box::new(Pieces { stream: None, inner: inner.clone(), doing }));
        }
        let is_whole = range.start == 0 && range.end == blob.size;
        let part = (!is_whole).then(|| GetRange::Bounded(range.clone()));
        let options = GetOptions { range: part, ..GetOptions::default() };
        let found = inner.store.get_opts(&inner.blob_key(&blob.digest), options).await;
        let found = found.map_err(|e| inner.error(&doing, &e))?;
        if found.meta.size != blob.size {
            let kind = Kind::Size { expected: blob.size, found: found.meta.size };
            return Err(Error::new(&inner.side, &doing, kind));
        }
        let stream = Some(found.into_stream());
        Ok(Box::new(Pieces { stream, inner: inner.clone(), doing }))
    }
}

/// A part of a blob that is on its way. The store's client repeats what breaks.
struct Pieces {
    stream: Option<futures_util::stream::BoxStream<'static, object_store::Result<Bytes>>>,
    inner: Arc<Inner>,
    doing: String,
}

#[async_trait]
impl ByteStream for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        match stream.next().await {
            Some(Ok(piece)) => Ok(Some(piece)),
            Some(Err(e)) => Err(self.inner.error(&self.doing, &e)),
            None => Ok(None),
        }
    }
}

impl ObjectTree {
    /// Whether a blob is there in its size.
    pub(super) async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        Ok(self.blob_bytes(&blob.digest).await? == Some(blob.size))
    }

    pub(super) async fn open_blob(&self, blob: &Descriptor) -> Result<Opened> {
        match self.has_blob(blob).await? {
            true => Ok(Opened::Present),
            false => Ok(Opened::Receive(Box::new(Upload {
                inner: self.inner.clone(),
                blob: blob.clone(),
            }))),
        }
    }
}

/// A blob that is to be written.
struct Upload {
    inner: Arc<Inner>,
    blob: Descriptor,
}

impl Upload {
    fn error(&self, kind: impl Into<Kind>) -> Error {
        Error::new(&self.inner.side, self.doing(), kind)
    }

    fn doing(&self) -> String {
        format!("storing blob {}", self.blob.digest)
    }

    /// Hands all of `source` to `parts`.
    async fn pass(&self, parts: &mut Parts, source: &mut Source) -> Result<()> {
        while let Some(piece) = source.next().await? {
            source.tally.count(piece.len() as u64).map_err(|kind| self.error(*kind))?;
            source.tally.hash(&piece);
            parts.take(piece).await?;
            source.content.moved(parts.take_arrived());
        }
        source.tally.check().map_err(|kind| self.error(*kind))
    }
}

impl ObjectTree {
    /// Makes `parts` be the blob.
    pub(super) async fn complete_blob(&self, parts: &mut Parts, blob: &Descriptor) -> Result<()> {
        let is_one = !parts.has_begun();
        let Err(error) = parts.complete().await else { return Ok(()) };
        // It may have been done and the answer lost, so that there was nothing to complete the next time. In
        // Azure, another writer of the blob makes an end of the parts of all.
        if !is_one && self.has_blob(blob).await.unwrap_or(false) {
            return Ok(());
        }
        parts.abort().await;
        Err(error)
    }
}

/// Where the bytes of a blob come from, and what they have been so far.
struct Source {
    content: Arc<dyn Content>,
    stream: BoxStream,
    rest: Bytes,
    tally: Tally,
}

impl Source {
    /// The next bytes.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.rest.is_empty() {
            match self.stream.next().await? {
                Some(piece) => self.rest = piece,
                None => return Ok(None),
            }
        }
        let count = self.rest.len().min(PIECE);
        Ok(Some(self.rest.split_to(count)))
    }
}

#[async_trait]
impl Receiver for Upload {
    fn offset(&self) -> u64 {
        0
    }

    async fn receive(self: Box<Self>, content: Arc<dyn Content>) -> Result<Received> {
        let key = self.inner.blob_key(&self.blob.digest);
        let stream = content.read(0).await?;
        let tally = Tally::of(&self.blob);
        let mut source = Source { content, stream, rest: Bytes::new(), tally };
        let size = Some(self.blob.size);
        let mut parts = Parts::new(self.inner.clone(), key, self.doing(), size);
        if let Err(error) = self.pass(&mut parts, &mut source).await {
            parts.abort().await;
            return Err(error);
        }
        let tree = ObjectTree { inner: self.inner.clone() };
        tree.complete_blob(&mut parts, &self.blob).await?;
        source.content.moved(parts.take_arrived());
        Ok(Received { bytes: self.blob.size, linked: false })
    }
}
