//! Who reads a blob, and waits for what of it.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::window::Windows;
use crate::backend::Error;

/// A reader that waits for a block.
pub(super) type Waiter = oneshot::Sender<Result<Bytes, Failed>>;

/// Why a block did not come.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub error: Error,
    /// Whether a handle with other repositories has tried.
    pub origin: usize,
}

/// The readers of a blob.
///
/// - For a block somebody waits for, a request is under way, or one is started by the next
///   [`super::Core::pump`]. When a request ends without it, those who wait for it are told.
/// - `last_waiters` wait for the last block of a blob that is not verified; everybody else is in `waiters`.
/// - Whoever waits when all of this is dropped looks again.
#[derive(Default)]
pub(super) struct Readers {
    /// Who gets a block as soon as it comes.
    pub waiters: BTreeMap<u32, Vec<Waiter>>,
    /// Who gets the last block when everything has been verified.
    pub last_waiters: Vec<Waiter>,
    pub windows: Windows,
    pub handles: u32,
    /// How often the last handle has gone, if one has a moment ago and the blob is not closed yet.
    pub closing: Option<u64>,
    /// Handles that have given the file away.
    pub lent: u32,
}

impl Readers {
    /// What it is for a blob of which all that is known is dropped: nobody waits, and all look again.
    pub(super) fn begin_anew(&mut self) -> Self {
        let windows = std::mem::take(&mut self.windows);
        Self { handles: self.handles, lent: self.lent, windows, ..Self::default() }
    }

    /// Those who wait for the last block wait for nothing else any more.
    pub(super) fn release_last(&mut self, last: u32) {
        if !self.last_waiters.is_empty() {
            self.waiters.entry(last).or_default().append(&mut self.last_waiters);
        }
    }

    /// Forgets readers that have gone away.
    pub(super) fn prune(&mut self) {
        self.last_waiters.retain(|waiter| !waiter.is_closed());
        self.waiters.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
    }

    /// Gives a block to those who wait for it.
    pub(super) fn give(&mut self, block: u32, bytes: &Bytes) {
        for waiter in self.waiters.remove(&block).unwrap_or_default() {
            // Who has gone away does not want it.
            let _ = waiter.send(Ok(bytes.clone()));
        }
    }

    /// Tells those who wait for any of `blocks` that they wait in vain, and if `also_last` those who wait for
    /// everything; returns how many.
    pub(super) fn fail(&mut self, blocks: Range<u32>, also_last: bool, failed: &Failed) -> usize {
        let mut told = 0;
        let last = if also_last { std::mem::take(&mut self.last_waiters) } else { Vec::new() };
        let all: Vec<u32> = self.waiters.range(blocks).map(|(block, _)| *block).collect();
        let awaited = all.into_iter().filter_map(|block| self.waiters.remove(&block)).flatten();
        for waiter in last.into_iter().chain(awaited) {
            told += usize::from(waiter.send(Err(failed.clone())).is_ok());
        }
        told
    }
}
