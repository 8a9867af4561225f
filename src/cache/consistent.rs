//! Reading a blob so that all that is given out belongs together.

use bytes::Bytes;

use super::CachedBlob;
use crate::backend::Result;

/// A blob of which nothing is given out any more after it has been found to be wrong. What comes when it is fetched
/// anew is right, but whoever has read the beginning before would have a wrong beginning and a right end: it has to
/// be opened again.
#[derive(Clone)]
pub struct ConsistentBlob {
    blob: CachedBlob,
    /// How often its content had been wrong when it was opened.
    mismatches: u64,
}

impl ConsistentBlob {
    /// Begins to read `blob`.
    pub fn new(blob: CachedBlob) -> Self {
        let mismatches = blob.mismatches();
        Self { blob, mismatches }
    }

    /// The blob, of which each read stands for itself.
    pub fn blob(&self) -> &CachedBlob {
        &self.blob
    }

    /// As [`CachedBlob::try_read`].
    pub fn try_read(&self, offset: u64, length: usize) -> Option<Result<Bytes>> {
        let read = self.blob.try_read(offset, length)?;
        // Last, so that what was read is not of what came after a mismatch.
        Some(self.check().and(read))
    }

    /// As [`CachedBlob::read`].
    pub async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        self.check()?;
        let read = self.blob.read(offset, length).await;
        // It may have changed meanwhile, and this have waited for what came then.
        self.check().and(read)
    }

    fn check(&self) -> Result<()> {
        self.blob.mismatch_since(self.mismatches).map_or(Ok(()), Err)
    }
}
