//! Counts of what a process does, for Prometheus and what reads its text format.
//!
//! One [`Metrics`] is made by whoever starts the process (or a test) and handed to all that count: nothing here is
//! global, so that several servers and mounts in one process have their own. Names follow Prometheus: they begin
//! with `imgfs_`, have their unit at the end (`_seconds`, `_bytes`), and counters get `_total` when they are written.

use std::{
    borrow::Cow,
    fmt::{self, Debug, Formatter},
    sync::{Arc, Mutex},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, prometheus_text},
    metrics::{counter::ConstCounter, family::Family, gauge::ConstGauge},
    registry::Registry,
};

use super::locked;

pub use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

/// What tells the members of a family apart: names with values, in the order in which they are written. The values
/// must be few; nothing that strangers choose may be one.
pub type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// Counters of one name, by their labels.
pub type Counters = Family<Labels, Counter>;

/// Gauges of one name, by their labels.
pub type Gauges = Family<Labels, Gauge>;

/// Histograms of one name, by their labels.
pub type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// The media type of [`Metrics::text`].
pub const METRICS_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Upper bounds of the buckets of times, in seconds: from half a millisecond to a minute.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// All that a process counts. Clones are the same.
///
/// ```
/// use imgfs::util::Metrics;
///
/// let metrics = Metrics::default();
/// let requests = metrics.counters("imgfs_requests", "Requests by their answer");
/// requests.get_or_create(&vec![("code", "200".into())]).inc();
/// metrics.watch_gauge("imgfs_held_bytes", "Bytes that are held", || 7);
/// let text = metrics.text();
/// assert!(text.contains("imgfs_requests_total{code=\"200\"} 1\n"), "{text}");
/// assert!(text.contains("imgfs_held_bytes 7\n"), "{text}");
/// ```
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A counter. `help` is a sentence without a full stop.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        locked(&self.registry).register(stem(name), help, counter.clone());
        counter
    }

    /// Counters that are told apart by labels.
    pub fn counters(&self, name: &str, help: &str) -> Counters {
        let counters = Counters::default();
        locked(&self.registry).register(stem(name), help, counters.clone());
        counters
    }

    /// A value that goes up and down.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        locked(&self.registry).register(name, help, gauge.clone());
        gauge
    }

    /// Such values, told apart by labels.
    pub fn gauges(&self, name: &str, help: &str) -> Gauges {
        let gauges = Gauges::default();
        locked(&self.registry).register(name, help, gauges.clone());
        gauges
    }

    /// Times in seconds, told apart by labels.
    pub fn seconds(&self, name: &str, help: &str) -> Histograms {
        let histograms = Histograms::new_with_constructor(|| Histogram::new(SECONDS));
        locked(&self.registry).register(name, help, histograms.clone());
        histograms
    }

    /// A counter that somebody else keeps: it is asked for its value when the text is made, and must not wait.
    pub fn watch_counter(
        &self,
        name: &str,
        help: &str,
        value: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.watch(stem(name), help, move |encoder, name, help| {
            let counter = ConstCounter::new(value());
            let encoder = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(encoder)
        });
    }

    /// The same for a value that goes up and down.
    pub fn watch_gauge(
        &self,
        name: &str,
        help: &str,
        value: impl Fn() -> i64 + Send + Sync + 'static,
    ) {
        self.watch(name, help, move |encoder, name, help| {
            let gauge = ConstGauge::new(value());
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)
        });
    }

    /// All of it in the text format of Prometheus (version 0.0.4), to be sent as [`METRICS_TYPE`].
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = prometheus_text::encode(&mut text, &locked(&self.registry));
        text
    }

    fn watch(
        &self,
        name: &str,
        help: &str,
        encode: impl Fn(&mut DescriptorEncoder<'_>, &str, &str) -> fmt::Result + Send + Sync + 'static,
    ) {
        let watched =
            Watched { name: name.to_owned(), help: format!("{help}."), encode: Box::new(encode) };
        locked(&self.registry).register_collector(Box::new(watched));
    }
}

impl Debug for Metrics {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// The name of a counter without the ending that is added when it is written.
fn stem(name: &str) -> &str {
    name.strip_suffix("_total").unwrap_or(name)
}

type Encode = dyn Fn(&mut DescriptorEncoder<'_>, &str, &str) -> fmt::Result + Send + Sync;

/// A value that is asked for when the text is made.
struct Watched {
    name: String,
    help: String,
    encode: Box<Encode>,
}

impl Debug for Watched {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Collector for Watched {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.encode)(&mut encoder, &self.name, &self.help)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_written_as_prometheus_reads_it() {
        let metrics = Metrics::default();
        metrics.counter("imgfs_a_total", "First").inc_by(3);
        metrics.gauge("imgfs_b", "Second").set(-2);
        metrics.gauges("imgfs_b2", "Second").get_or_create(&vec![("x", "y".into())]).set(2);
        let times = metrics.seconds("imgfs_c_seconds", "Third");
        times.get_or_create(&vec![("verb", "GET".into())]).observe(0.002);
        metrics.watch_counter("imgfs_d_total", "Fourth", || 4);
        let text = metrics.text();
        for line in [
            "# HELP imgfs_a_total First.",
            "# TYPE imgfs_a_total counter",
            "imgfs_a_total 3",
            "imgfs_b -2",
            "imgfs_b2{x=\"y\"} 2",
            "imgfs_c_seconds_bucket{verb=\"GET\",le=\"0.001\"} 0",
            "imgfs_c_seconds_bucket{verb=\"GET\",le=\"0.0025\"} 1",
            "imgfs_c_seconds_count{verb=\"GET\"} 1",
            "# TYPE imgfs_d_total counter",
            "imgfs_d_total 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn several_in_one_process_do_not_meet() {
        let (one, other) = (Metrics::default(), Metrics::default());
        one.counter("imgfs_a", "First").inc();
        assert!(one.text().contains("imgfs_a_total 1"));
        assert_eq!(other.text(), "");
    }
}
