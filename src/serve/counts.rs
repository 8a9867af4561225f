//! What a server counts.

use std::time::Duration;

use crate::util::{Counter, Counters, Gauge, Histograms, Metrics};

/// The counters of a server.
pub(super) struct Counts {
    pub(super) requests: Counters,
    pub(super) seconds: Histograms,
    pub(super) sent: Counter,
    pub(super) received: Counter,
    pub(super) connections: Gauge,
    pub(super) overdue: Counter,
    pub(super) stale: Counter,
    pub(super) upstream: Counters,
}

impl Counts {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            requests: metrics.counters(
                "imgfs_serve_requests_total",
                "Requests by method, what they are about, and status",
            ),
            seconds: metrics.seconds(
                "imgfs_serve_request_seconds",
                "Time from a request to the end of its answer, by method and what it is about",
            ),
            sent: metrics.counter("imgfs_serve_sent_bytes_total", "Bytes of blobs that were sent"),
            received: metrics
                .counter("imgfs_serve_received_bytes_total", "Bytes of uploads that have come"),
            connections: metrics.gauge("imgfs_serve_connections", "Connections that are open"),
            overdue: metrics.counter(
                "imgfs_serve_overdue_connections_total",
                "Connections that were ended because they kept the server waiting",
            ),
            stale: metrics.counter(
                "imgfs_serve_stale_answers_total",
                "Answers that may be out of date, since an upstream could not be asked",
            ),
            upstream: metrics.counters(
                "imgfs_serve_upstream_total",
                "What upstreams were asked for, by what that was and how it ended",
            ),
        }
    }

    pub(super) fn count_request(&self, method: &'static str, about: &'static str, status: u16) {
        let labels = vec![
            ("method", method.into()),
            ("about", about.into()),
            ("status", status.to_string().into()),
        ];
        self.requests.get_or_create(&labels).inc();
    }

    pub(super) fn count_seconds(&self, method: &'static str, about: &'static str, time: Duration) {
        let labels = vec![("method", method.into()), ("about", about.into())];
        self.seconds.get_or_create(&labels).observe(time.as_secs_f64());
    }
}

/// Counts what an upstream was asked for.
pub(super) fn count_upstream(counters: &Counters, what: &'static str, succeeded: bool) {
    let result = if succeeded { "success" } else { "failure" };
    counters.get_or_create(&vec![("asked", what.into()), ("result", result.into())]).inc();
}
