//! An object that is written while its bytes come: with one `PUT` if they are few, otherwise in parts.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload, path::Path};
use tokio::{sync::OwnedSemaphorePermit, task::JoinSet};

use super::{BUFFERS, Inner, error};
use crate::{
    backend::{Error, Kind, Result},
    util::locked,
};

/// The size of a part, in bytes, and the largest object that is written at once: the least that S3 takes as a part.
pub(super) const PART_BYTES: usize = 5 << 20;

/// The most parts that S3 takes; those of larger objects are larger.
const MAX_PARTS: u64 = 9_000;

/// Parts of one object that are sent at the same time.
const PARTS_AT_ONCE: usize = 3;

/// Buffers for less than this are not worth keeping, in bytes.
const SMALL: usize = 64 << 10;

/// An object on its way. Nothing of it can be seen in the store until it is complete, and dropping it ends it.
pub(super) struct Parts {
    inner: Arc<Inner>,
    key: Path,
    /// What errors say is being done.
    doing: String,
    /// Its bytes, if they are known.
    size: Option<u64>,
    buffer: Option<Buffer>,
    /// From the second part on.
    upload: Option<Box<dyn MultipartUpload>>,
    sending: JoinSet<object_store::Result<u64>>,
    /// Bytes that have got to the store, and have not been reported.
    arrived: u64,
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
            let mut spare = locked(&self.inner.spare);
            if bytes.capacity() == PART_BYTES && spare.len() < BUFFERS {
                spare.push(bytes);
            }
        }
    }
}

impl Parts {
    /// Nothing yet of the object `key`, of `size` bytes if that is known.
    pub(super) fn new(inner: Arc<Inner>, key: Path, doing: String, size: Option<u64>) -> Self {
        let sending = JoinSet::new();
        Self { inner, key, doing, size, buffer: None, upload: None, sending, arrived: 0 }
    }

    fn error(&self, kind: impl Into<Kind>) -> Error {
        Error::new(&self.inner.side, &self.doing, kind)
    }

    fn failed(&self, error: &object_store::Error) -> Error {
        match error {
            // The bucket, or the parts that had come.
            object_store::Error::NotFound { .. } => self.error(Kind::Store(error::text(error))),
            error => self.error(error::kind(error)),
        }
    }

    /// Where it is written.
    pub(super) fn key(&self) -> &Path {
        &self.key
    }

    /// Whether a part is on its way, so that it cannot become another object any more.
    pub(super) fn has_begun(&self) -> bool {
        self.upload.is_some()
    }

    /// Makes it the object `key`, which it can be as long as it has not begun.
    pub(super) fn rename(&mut self, key: Path) {
        debug_assert!(!self.has_begun());
        self.key = key;
    }

    /// What has been collected and not been sent.
    pub(super) fn collected(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer.bytes)
    }

    fn part_bytes(&self) -> usize {
        let least = self.size.unwrap_or_default().div_ceil(MAX_PARTS);
        usize::try_from(least).unwrap_or(usize::MAX).max(PART_BYTES)
    }

    /// Waits until there is room for more, and says for how much. Nothing is lost if this is given up.
    pub(super) async fn room(&mut self) -> Result<usize> {
        let most = self.part_bytes();
        if self.collected().len() >= most {
            self.send().await?;
        }
        match &self.buffer {
            Some(buffer) => Ok(most - buffer.bytes.len()),
            None => {
                self.buffer = Some(self.new_buffer(most).await?);
                Ok(most)
            }
        }
    }

    /// Adds at most as much as there is [`Self::room`] for.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        if let Some(buffer) = &mut self.buffer {
            buffer.bytes.extend_from_slice(bytes);
        }
    }

    /// Takes all of `piece`, and sends what is full.
    pub(super) async fn take(&mut self, mut piece: Bytes) -> Result<()> {
        while !piece.is_empty() {
            let room = self.room().await?;
            self.add(&piece.split_to(room.min(piece.len())));
        }
        Ok(())
    }

    /// The bytes that have got to the store since this was asked last.
    pub(super) fn take_arrived(&mut self) -> u64 {
        std::mem::take(&mut self.arrived)
    }

    async fn new_buffer(&mut self, most: usize) -> Result<Buffer> {
        // It is never closed.
        let room = self.inner.buffers.clone().acquire_owned().await;
        let permit = room.map_err(|e| self.error(std::io::Error::other(e)))?;
        let room = Room { inner: self.inner.clone(), _permit: permit };
        let bytes = self.size.map_or(most, |size| usize::try_from(size).unwrap_or(most).min(most));
        let spare = || locked(&self.inner.spare).pop();
        let bytes = match bytes {
            SMALL..=PART_BYTES => spare().unwrap_or_else(|| BytesMut::with_capacity(PART_BYTES)),
            bytes => BytesMut::with_capacity(bytes),
        };
        Ok(Buffer { bytes, room })
    }

    /// Sends what has been collected as the next part.
    async fn send(&mut self) -> Result<()> {
        // The buffer that is waited for next may be one of those that are on their way.
        while self.sending.len() >= PARTS_AT_ONCE {
            self.wait().await?;
        }
        if self.upload.is_none() {
            let upload = self.inner.store.put_multipart(&self.key).await;
            self.upload = Some(upload.map_err(|e| self.failed(&e))?);
        }
        if let (Some(upload), Some(Buffer { bytes, room })) = (&mut self.upload, self.buffer.take())
        {
            let (count, bytes) = (bytes.len() as u64, bytes.freeze());
            let part = upload.put_part(PutPayload::from_bytes(bytes.clone()));
            self.sending.spawn(async move {
                let done = part.await;
                room.reuse(bytes);
                done.map(|()| count)
            });
        }
        Ok(())
    }

    /// Waits until one more part has been sent.
    async fn wait(&mut self) -> Result<()> {
        match self.sending.join_next().await {
            Some(Ok(Ok(count))) => self.arrived += count,
            Some(Ok(Err(e))) => return Err(self.failed(&e)),
            Some(Err(e)) => return Err(self.error(std::io::Error::other(e))),
            None => {}
        }
        Ok(())
    }

    /// Makes the object be there.
    pub(super) async fn complete(&mut self) -> Result<()> {
        if self.upload.is_none() {
            let Buffer { bytes, room } = match self.buffer.take() {
                Some(buffer) => buffer,
                None => self.new_buffer(0).await?,
            };
            let (count, bytes) = (bytes.len() as u64, bytes.freeze());
            let payload = PutPayload::from_bytes(bytes.clone());
            self.inner.store.put(&self.key, payload).await.map_err(|e| self.failed(&e))?;
            room.reuse(bytes);
            self.arrived += count;
            return Ok(());
        }
        if !self.collected().is_empty() {
            self.send().await?;
        }
        while !self.sending.is_empty() {
            self.wait().await?;
        }
        if let Some(mut upload) = self.upload.take()
            && let Err(e) = upload.complete().await
        {
            self.upload = Some(upload);
            return Err(self.failed(&e));
        }
        Ok(())
    }

    /// Takes back what has been sent: parts that stay are paid for. If even this fails, the store's own rules for them
    /// have to do.
    pub(super) async fn abort(&mut self) {
        self.sending.shutdown().await;
        if let Some(mut upload) = self.upload.take() {
            let _ = upload.abort().await;
        }
    }

    /// Gives the room back that others may need, since nothing comes for a while.
    pub(super) fn rest(&mut self) -> Option<Resting> {
        let buffer = self.buffer.take()?;
        let bytes = buffer.bytes.to_vec();
        buffer.room.reuse(buffer.bytes.freeze());
        Some(Resting(bytes))
    }

    /// Goes on with what was collected before a rest.
    pub(super) async fn wake(&mut self, resting: &mut Option<Resting>) -> Result<()> {
        if resting.is_some() {
            self.room().await?;
        }
        if let Some(Resting(bytes)) = resting.take() {
            self.add(&bytes);
        }
        Ok(())
    }
}

/// What has been collected of an object, and needs no more memory than it has bytes.
pub(super) struct Resting(pub(super) Vec<u8>);

impl Drop for Parts {
    /// Whoever gives it up without a word leaves no parts behind, either.
    fn drop(&mut self) {
        self.sending.abort_all();
        let Some(mut upload) = self.upload.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { drop(upload.abort().await) });
        }
    }
}
