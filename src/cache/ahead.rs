//! Fetching what somebody is expected to read.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    CachedBlob, Core,
    plan::Plan,
    readers::Failed,
    requests::Origin,
    state::{Blob, Key, State},
    stored::Place,
};
use crate::backend::Result;

type Comes = oneshot::Receiver<std::result::Result<Bytes, Failed>>;

impl CachedBlob {
    /// Has the bytes `range` fetched, as far as they are not here, and waits until they have come or can be
    /// expected to. Nothing more is fetched than the blocks that they are in, whoever waits for a read goes
    /// first, and what is here already costs nothing.
    ///
    /// What has come is kept like anything else that was read: it may be gone again when it is wanted.
    pub async fn fetch_ahead(&self, range: Range<u64>) -> Result<()> {
        let Some(range) = self.part(&range)? else { return Ok(()) };
        let coming = {
            let (core, key, origin) = self.place();
            core.plan_ahead(&mut core.lock(), key, &range, origin)
        };
        for comes in coming {
            // Where no answer comes the request has been stopped; then it is left to whoever reads.
            if let Ok(Err(failed)) = comes.await {
                return Err(failed.error);
            }
        }
        Ok(())
    }

    /// Whether all of the bytes `range` are here, so that reading them takes no request.
    pub fn has(&self, range: Range<u64>) -> bool {
        let Ok(Some(range)) = self.part(&range) else { return true };
        let (core, key, _) = self.place();
        let mut state = core.lock();
        let State { blobs, memory, .. } = &mut *state;
        let Some(blob) = blobs.get(key) else { return false };
        is_whole(blob) || Blob::blocks_of(&range).all(|block| blob.has(block, memory))
    }

    /// What of `range` there is.
    fn part(&self, range: &Range<u64>) -> Result<Option<Range<u64>>> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        self.range(range.start, length)
    }
}

impl Core {
    /// Starts the requests for what is missing of `range`. The last block of each is awaited.
    fn plan_ahead(
        self: &Arc<Self>,
        state: &mut State,
        key: &Key,
        range: &Range<u64>,
        origin: &Arc<dyn Origin>,
    ) -> Vec<Comes> {
        let max = self.max_blocks(state);
        let State { blobs, memory, .. } = state;
        let Some(blob) = blobs.get_mut(key).filter(|blob| !is_whole(blob)) else {
            return Vec::new();
        };
        blob.requests.origin = Some(origin.clone());
        let blocks = Blob::blocks_of(range);
        let (mut plans, mut coming) = (Vec::new(), Vec::new());
        let mut await_block = |blob: &mut Blob, block| {
            let (gets, comes) = oneshot::channel();
            blob.readers.waiters.entry(block).or_default().push(gets);
            coming.push(comes);
        };
        let mut at = blocks.start;
        while let Some(start) = blob.first_missing(at..blocks.end, memory) {
            let limit = blocks.end.min(start.saturating_add(max));
            let end = blob.missing_run(start, limit, memory);
            plans.push(Plan::ahead(start..end));
            await_block(blob, end - 1);
            at = end;
        }
        // What somebody else has asked for.
        let last = blocks.end - 1;
        if at <= last && !blob.has(last, memory) {
            await_block(blob, last);
        }
        self.launch(state, key, plans);
        coming
    }
}

/// Whether all of it is here, or nothing of it can be.
fn is_whole(blob: &Blob) -> bool {
    matches!(blob.disk.place, Place::Whole(_) | Place::OtherSize(_))
}
