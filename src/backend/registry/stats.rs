//! Counts of what went over the wire.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of what went over the wire, over all registries of a run.
#[derive(Debug, Default)]
pub struct Stats {
    requests: AtomicU64,
    retries: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    mounted_blobs: AtomicU64,
}

impl Stats {
    /// HTTP requests made, those to token servers and redirect targets included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many of them repeated one that had failed.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Bytes of blobs sent, repetitions included.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Blobs that were mounted from another repository of their registry.
    pub fn mounted_blobs(&self) -> u64 {
        self.mounted_blobs.load(Ordering::Relaxed)
    }

    /// Bytes of blobs received, repetitions included.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_mount(&self) {
        self.mounted_blobs.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
