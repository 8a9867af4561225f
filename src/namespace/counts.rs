//! What a mount counts of its cache, its memory and its images.

use super::View;
use crate::{cache::CacheStats, util::Metrics};

impl View {
    /// Shows what is counted in `metrics`.
    pub fn count(&self, metrics: &Metrics) {
        let Some(images) = self.images().cloned() else { return };
        type Of = fn(&CacheStats) -> u64;
        let counters: [(&str, &str, Of); 6] = [
            ("imgfs_cache_requests", "Requests to registries for parts of blobs", |s| s.requests),
            ("imgfs_cache_fetched_bytes", "Bytes of blobs that registries have sent", |s| {
                s.fetched_bytes
            }),
            ("imgfs_cache_reads", "Reads that have been answered", |s| s.reads),
            ("imgfs_cache_hits", "Reads for which nothing had to be fetched", |s| s.hits),
            ("imgfs_cache_evicted_bytes", "Bytes that had to make room", |s| s.evicted_bytes),
            (
                "imgfs_cache_errors",
                "Requests that failed, blobs that were not what they should be, and refusals of the disk",
                |s| s.errors,
            ),
        ];
        for (name, help, of) in counters {
            let images = images.clone();
            metrics.watch_counter(name, help, move || of(&images.cache_stats()));
        }
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let of = images.clone();
        metrics.watch_gauge("imgfs_cache_held_bytes", "Bytes of the disk in use", move || {
            gauge(of.cache_stats().held_bytes)
        });
        let of = images.clone();
        metrics.watch_gauge(
            "imgfs_memory_used_bytes",
            "Counted bytes of memory in use",
            move || gauge(of.memory_stats().used_bytes),
        );
        let of = images.clone();
        metrics.watch_counter(
            "imgfs_layers_indexed",
            "Passes that have indexed a layer",
            move || of.work().passes,
        );
        let of = images.clone();
        metrics.watch_counter(
            "imgfs_layer_passes_failed",
            "Passes through a layer that failed",
            move || of.work().failed_passes,
        );
        metrics.watch_counter(
            "imgfs_inflated_bytes",
            "Bytes that have been decompressed",
            move || images.work().inflated_bytes,
        );
    }
}
