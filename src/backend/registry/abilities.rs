//! What a run has learned of a registry: how it takes content, and what it knows of referrers.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
};

use tokio::sync::{Mutex, MutexGuard};

use crate::backend::{Error, Kind};

/// The first size of a chunk, in bytes, where a blob cannot be sent whole.
const FIRST_CHUNK: u64 = 32 << 20;

/// Chunks are halved as long as the registry says that they are too large, down to this.
const LEAST_CHUNK: u64 = 256 << 10;

/// Uploads after which it is worth a request to find out whether the registry mounts.
const UPLOADS_BEFORE_PROBE: u64 = 3;

/// What is known of how a registry takes content.
#[derive(Default)]
pub(super) struct Receiving {
    mounting: AtomicU8,
    /// Bytes of a chunk; 0 where blobs are sent whole.
    chunk: AtomicU64,
    /// The registry wants no shorter chunks, but for the last of a blob.
    least_chunk: AtomicU64,
    uploads: AtomicU64,
}

/// Whether a registry mounts blobs from one of its repositories into another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mounting {
    Unknown = 0,
    /// It does, and a blob can also be mounted from the repository itself: then asking for a mount
    /// finds out whether the blob is there, and begins its upload if it is not.
    Works = 1,
    /// It does not, or not so that one could rely on it.
    Refused = 2,
}

impl Receiving {
    pub(super) fn mounting(&self) -> Mounting {
        match self.mounting.load(Ordering::Relaxed) {
            0 => Mounting::Unknown,
            1 => Mounting::Works,
            _ => Mounting::Refused,
        }
    }

    pub(super) fn set_mounting(&self, known: Mounting) {
        self.mounting.store(known as u8, Ordering::Relaxed);
    }

    /// What a mount has shown; it takes nothing back.
    pub(super) fn learn_mounting(&self, known: Mounting) {
        let (unknown, known) = (Mounting::Unknown as u8, known as u8);
        let _ =
            self.mounting.compare_exchange(unknown, known, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Counts an upload; whether now is the time to find out about mounting.
    pub(super) fn is_time_to_probe(&self) -> bool {
        self.mounting() == Mounting::Unknown
            && self.uploads.fetch_add(1, Ordering::Relaxed) + 1 == UPLOADS_BEFORE_PROBE
    }

    /// A whole blob of `size` bytes, or chunks of it, are too large. False if smaller ones make no
    /// sense.
    pub(super) fn shrink(&self, refused: Option<u64>, size: u64) -> bool {
        let mut smaller = match refused {
            None => self.first_chunk(),
            Some(chunk) if chunk / 2 >= self.least_chunk() => chunk / 2,
            Some(_) => return false,
        };
        // What is no smaller than all of it has just been refused.
        while smaller >= size && smaller / 2 >= self.least_chunk() {
            smaller /= 2;
        }
        let now = self.chunk.load(Ordering::Relaxed);
        // Another upload may have learned more.
        if now == 0 || now > smaller {
            self.chunk.store(smaller, Ordering::Relaxed);
        }
        true
    }

    /// The registry has refused a whole blob of any size, and taken it in chunks.
    pub(super) fn learn_chunks(&self) {
        let (whole, first) = (0, self.first_chunk());
        let _ = self.chunk.compare_exchange(whole, first, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) fn chunk(&self) -> Option<u64> {
        let chunk = Some(self.chunk.load(Ordering::Relaxed)).filter(|chunk| *chunk > 0);
        chunk.map(|chunk| chunk.max(self.least_chunk()))
    }

    pub(super) fn first_chunk(&self) -> u64 {
        FIRST_CHUNK.max(self.least_chunk())
    }

    fn least_chunk(&self) -> u64 {
        LEAST_CHUNK.max(self.least_chunk.load(Ordering::Relaxed))
    }

    /// The registry wants no chunks shorter than `bytes`.
    pub(super) fn require_chunk(&self, bytes: u64) {
        self.least_chunk.fetch_max(bytes, Ordering::Relaxed);
    }
}

/// Whether a registry answers `HEAD` for manifests as it answers `GET`.
#[derive(Default)]
pub(super) struct Heads {
    are_wrong: AtomicBool,
}

impl Heads {
    /// Whether it makes sense to ask.
    pub(super) fn make_sense(&self) -> bool {
        !self.are_wrong.load(Ordering::Relaxed)
    }

    /// A `HEAD` has failed with `error` where a `GET` has then found something. An answer of that kind
    /// will be given again.
    pub(super) fn learn_from(&self, error: &Error) {
        if !error.is_transient() || matches!(error.kind(), Kind::Status { status: 500, .. }) {
            self.are_wrong.store(true, Ordering::Relaxed);
        }
    }
}

/// How a registry answers the question for referrers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Referrers {
    /// It has the API.
    Listed,
    /// It does not have the API.
    Unknown,
    /// It leads to another host that does not answer, such as a web page for people.
    Elsewhere,
}

/// Whether a registry has the referrers API.
#[derive(Default)]
pub(super) struct ReferrersApi {
    known: OnceLock<Referrers>,
    /// Held by the request that finds it out.
    probe: Mutex<()>,
}

impl ReferrersApi {
    /// What is known without a request.
    pub(super) fn known(&self) -> Option<Referrers> {
        self.known.get().copied()
    }

    /// Waits for the request that finds it out. The guard is for whoever has to make that request.
    pub(super) async fn probe(&self) -> Option<MutexGuard<'_, ()>> {
        if self.known().is_some() {
            return None;
        }
        let guard = self.probe.lock().await;
        self.known().is_none().then_some(guard)
    }

    /// Notes what a request has shown. What was known before stands.
    pub(super) fn learn(&self, answer: Referrers) {
        let _ = self.known.set(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_shrink_until_it_makes_no_sense() {
        let receiving = Receiving::default();
        assert_eq!(receiving.chunk(), None);
        let mut steps = 0;
        while receiving.shrink(receiving.chunk(), u64::MAX) {
            steps += 1;
        }
        assert_eq!((steps, receiving.chunk()), (8, Some(LEAST_CHUNK)));
        assert!(
            receiving.shrink(None, u64::MAX),
            "a blob that was begun whole learns what others have"
        );
        assert_eq!(receiving.chunk(), Some(LEAST_CHUNK));

        let receiving = Receiving::default();
        assert!(receiving.shrink(None, 3 << 20));
        assert_eq!(receiving.chunk(), Some(2 << 20), "less than what was refused");
        receiving.require_chunk(4 << 20);
        assert_eq!(receiving.chunk(), Some(4 << 20));
        assert!(!receiving.shrink(receiving.chunk(), u64::MAX));
    }
}
