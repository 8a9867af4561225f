//! Blobs: read with one `GET`, looked for with one `HEAD`, written with one `PUT` or, if they are large, in parts.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectStoreExt, PutPayload, path::Path};
use tokio::{sync::OwnedSemaphorePermit, task::JoinSet};

use super::{Inner, ObjectTree, error};
use crate::{
    backend::{
        Blobs, BoxStream, ByteStream, Content, Error, Kind, Opened, Received, Receiver, Result,
        Tally,
    },
    image::{Descriptor, Repository},
    util::locked,
};

/// The size of a part, in bytes, and the largest blob that is written at once: the least that S3 takes as a part.
pub(super) const PART_BYTES: usize = 5 << 20;

/// The most parts that S3 takes; those of larger blobs are larger.
const MAX_PARTS: u64 = 9_000;

/// Parts of one blob that are sent at the same time.
const PARTS_AT_ONCE: usize = 3;

/// Buffers for less than this are not worth keeping, in bytes.
const SMALL: usize = 64 << 10;

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
        match self.inner.store.head(&self.inner.blob_key(&blob.digest)).await {
            Ok(meta) => Ok(meta.size == blob.size),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.inner.error(format_args!("looking for blob {}", blob.digest), &e)),
        }
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

/// Bytes that are collected, with the room that they take.
struct Buffer {
    bytes: BytesMut,
    room: Room,
}

/// A place among the buffers that there may be at once.
struct Room {
    inner: Arc<Inner>,
    _permit: OwnedSemaphorePermit,
}

impl Room {
    /// Keeps what `bytes` are in for the next buffer, if nobody else has them. The heap would put each new one at
    /// another place, and not give the old ones back.
    fn reuse(&self, bytes: Bytes) {
        if let Ok(mut bytes) = bytes.try_into_mut() {
            bytes.clear();
            if bytes.capacity() == PART_BYTES {
                locked(&self.inner.spare).push(bytes);
            }
        }
    }
}

impl Upload {
    fn error(&self, kind: impl Into<Kind>) -> Error {
        Error::new(&self.inner.side, format_args!("storing blob {}", self.blob.digest), kind)
    }

    fn failed(&self, error: &object_store::Error) -> Error {
        match error {
            // The bucket, or the parts that had come.
            object_store::Error::NotFound { .. } => self.error(Kind::Store(error::text(error))),
            error => self.error(error::kind(error)),
        }
    }

    async fn buffer(&self, most: usize) -> Result<Buffer> {
        // It is never closed.
        let room = self.inner.buffers.clone().acquire_owned().await;
        let permit = room.map_err(|e| self.error(std::io::Error::other(e)))?;
        let room = Room { inner: self.inner.clone(), _permit: permit };
        let bytes = usize::try_from(self.blob.size).unwrap_or(most).min(most);
        let spare = || locked(&self.inner.spare).pop();
        let bytes = match bytes {
            SMALL..=PART_BYTES => spare().unwrap_or_else(|| BytesMut::with_capacity(PART_BYTES)),
            bytes => BytesMut::with_capacity(bytes),
        };
        Ok(Buffer { bytes, room })
    }

    fn part_bytes(&self) -> usize {
        let least = self.blob.size.div_ceil(MAX_PARTS);
        usize::try_from(least).unwrap_or(usize::MAX).max(PART_BYTES)
    }

    /// Fills a buffer of up to `most` bytes from `source`, and hashes it; whether the source has ended.
    async fn fill(&self, source: &mut Source, most: usize) -> Result<(Buffer, bool)> {
        let mut buffer = self.buffer(most).await?;
        while buffer.bytes.len() < most {
            let Some(piece) = source.next(most - buffer.bytes.len()).await? else {
                return Ok((buffer, true));
            };
            source.tally.count(piece.len() as u64).map_err(|kind| self.error(*kind))?;
            source.tally.hash(&piece);
            buffer.bytes.extend_from_slice(&piece);
        }
        Ok((buffer, source.tally.bytes() == self.blob.size))
    }

    async fn put(&self, key: &Path, source: &mut Source) -> Result<()> {
        let (buffer, _) = self.fill(source, PART_BYTES).await?;
        source.tally.check().map_err(|kind| self.error(*kind))?;
        let Buffer { bytes, room } = buffer;
        let (count, bytes) = (bytes.len() as u64, bytes.freeze());
        let payload = PutPayload::from_bytes(bytes.clone());
        self.inner.store.put(key, payload).await.map_err(|e| self.failed(&e))?;
        room.reuse(bytes);
        source.content.moved(count);
        Ok(())
    }

    async fn put_parts(&self, upload: &mut dyn MultipartUpload, source: &mut Source) -> Result<()> {
        let most = self.part_bytes();
        let mut sending: JoinSet<object_store::Result<u64>> = JoinSet::new();
        let sent = |done: Option<std::result::Result<object_store::Result<u64>, _>>| match done {
            Some(Ok(Ok(count))) => Ok(count),
            Some(Ok(Err(e))) => Err(self.failed(&e)),
            Some(Err(e)) => Err(self.error(std::io::Error::other::<tokio::task::JoinError>(e))),
            None => Ok(0),
        };
        let mut is_end = false;
        while !is_end {
            // The buffer that is waited for may be one of those that are on their way.
            while sending.len() >= PARTS_AT_ONCE {
                source.content.moved(sent(sending.join_next().await)?);
            }
            let buffer;
            (buffer, is_end) = self.fill(source, most).await?;
            let Buffer { bytes, room } = buffer;
            if bytes.is_empty() {
                break;
            }
            let (count, bytes) = (bytes.len() as u64, bytes.freeze());
            let part = upload.put_part(PutPayload::from_bytes(bytes.clone()));
            sending.spawn(async move {
                let done = part.await;
                room.reuse(bytes);
                done.map(|()| count)
            });
        }
        while !sending.is_empty() {
            source.content.moved(sent(sending.join_next().await)?);
        }
        source.tally.check().map_err(|kind| self.error(*kind))
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
    /// The next bytes, at most `most` of them.
    async fn next(&mut self, most: usize) -> Result<Option<Bytes>> {
        while self.rest.is_empty() {
            match self.stream.next().await? {
                Some(piece) => self.rest = piece,
                None => return Ok(None),
            }
        }
        let count = self.rest.len().min(most).min(PIECE);
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
        if self.blob.size <= PART_BYTES as u64 {
            self.put(&key, &mut source).await?;
        } else {
            let upload = self.inner.store.put_multipart(&key).await;
            let mut upload = upload.map_err(|e| self.failed(&e))?;
            if let Err(error) = self.put_parts(&mut *upload, &mut source).await {
                // Parts that stay are paid for. If even this fails, the store's own rules for them have to do.
                let _ = upload.abort().await;
                return Err(error);
            }
            if let Err(e) = upload.complete().await {
                // It may have been done and the answer lost, so that there was nothing to complete the next time. In
                // Azure, another writer of the blob makes an end of the parts of all.
                let tree = ObjectTree { inner: self.inner.clone() };
                if !tree.has_blob(&self.blob).await.unwrap_or(false) {
                    let _ = upload.abort().await;
                    return Err(self.failed(&e));
                }
            }
        }
        Ok(Received { bytes: self.blob.size, linked: false })
    }
}
