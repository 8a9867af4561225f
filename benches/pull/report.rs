//! Collects the samples; prints the tables and which targets were reached.
#![allow(clippy::cast_precision_loss)] // figures for people, of three digits

use std::collections::BTreeMap;
use std::time::Duration;

use crate::layout::Layout;
use crate::link::Link;
use crate::measure::Usage;
use crate::registry::Requests;

// The targets. Reasons and peers' figures stand with the project's issues; here is what is held against them.
/// Wall clock of a pull, in those of curl without verification.
const PULL_PER_CURL: f64 = 1.25;
const PEAK_RSS_KIB: u64 = 32 << 10;
/// For an image and for a tag of something attached to one, in a second run.
const REQUESTS_PER_NAME: u64 = 2;
const SECOND_RUN: Duration = Duration::from_millis(40);
/// The second run over a link with 20 ms of round-trip time.
const SECOND_RUN_LINK: Duration = Duration::from_millis(120);
/// Wall clock of a pull, in what the link itself needs for the bytes.
const PULL_PER_LINK: f64 = 1.1;
/// "At the speed of" the disk or of SHA-256, with this much for noise.
const VERIFY_PER_FLOOR: f64 = 1.1;

/// A contender in one part of the benchmark: a row of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    Curl,
    CurlSynced,
    Imgfs,
    Hash,
    Skopeo,
    ImgfsAgain,
    LinkCurl,
    LinkImgfs,
    LinkImgfsAgain,
    Cat,
    HashAllCores,
    Verify,
}

impl Row {
    fn name(self) -> &'static str {
        match self {
            Self::Curl | Self::LinkCurl => "`curl -Z --parallel-max 8`, no verification",
            Self::CurlSynced => "the same, then `syncfs`",
            Self::Imgfs | Self::LinkImgfs => "**`imgfs pull`**",
            Self::Hash => "SHA-256 of the bytes, `openssl`, 2 processes",
            Self::Skopeo => "`skopeo copy`, image by image",
            Self::ImgfsAgain | Self::LinkImgfsAgain => "**`imgfs pull`** again",
            Self::Cat => "`cat` to `/dev/null`",
            Self::HashAllCores => "SHA-256, `openssl`, a process for each core",
            Self::Verify => "**`imgfs verify --full`**",
        }
    }
}

/// What one first run and the run after it took.
pub(crate) struct Pulled {
    pub(crate) first: Usage,
    pub(crate) first_requests: Requests,
    pub(crate) second: Usage,
    pub(crate) second_requests: Requests,
}

type Key = (&'static str, Row);

pub(crate) struct Report {
    title: String,
    names: u64,
    bytes: u64,
    samples: BTreeMap<Key, Vec<Usage>>,
    requests: BTreeMap<Key, Vec<u64>>,
    second_run_blob_requests: Option<u64>,
    link: Option<Link>,
    link_cpu: Vec<Duration>,
}

impl Report {
    pub(crate) fn new(layout: &Layout, rounds: u32, caches_dropped: bool) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cache =
            if caches_dropped { "page cache emptied before each" } else { "page cache as it was" };
        Self {
            title: format!(
                "{} images, {} unique blobs, {:.2} GB; {rounds} rounds in turns, medians (least to most); {cores} cores; {cache}.",
                layout.image_count(),
                layout.blob_count(),
                layout.bytes() as f64 / 1e9,
            ),
            names: layout.name_count() as u64,
            bytes: layout.bytes(),
            samples: BTreeMap::new(),
            requests: BTreeMap::new(),
            second_run_blob_requests: None,
            link: None,
            link_cpu: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, row: Row, place: &'static str, usage: Usage) {
        self.samples.entry((place, row)).or_default().push(usage);
    }

    pub(crate) fn add_pulls(
        &mut self,
        first: Row,
        second: Row,
        place: &'static str,
        pulled: &Pulled,
    ) {
        self.add(first, place, pulled.first);
        self.add(second, place, pulled.second);
        self.requests.entry((place, first)).or_default().push(pulled.first_requests.all);
        self.requests.entry((place, second)).or_default().push(pulled.second_requests.all);
        *self.second_run_blob_requests.get_or_insert(0) += pulled.second_requests.blobs;
    }

    pub(crate) fn link(&mut self, link: Link) {
        self.link = Some(link);
    }

    pub(crate) fn link_cpu(&mut self, cpu: Duration) {
        self.link_cpu.push(cpu);
    }

    /// Prints everything to standard output; returns how many targets were missed.
    pub(crate) fn print(&self) -> usize {
        println!("{}", self.title);
        self.print_pulls(
            "Into an empty directory, loopback",
            &[Row::Curl, Row::CurlSynced, Row::Imgfs, Row::Hash, Row::Skopeo],
            Row::Curl,
        );
        self.print_second("Second run, loopback", Row::ImgfsAgain);
        if let Some(link) = self.link {
            let (rtt, mbit) = (link.rtt.as_millis(), link.bytes_per_second / 125_000);
            let title = format!(
                "Over a link of {rtt} ms and {mbit} Mbit/s, which needs {:.2} s for the bytes",
                link.time_for(self.bytes).as_secs_f64()
            );
            self.print_pulls(&title, &[Row::LinkCurl, Row::LinkImgfs], Row::LinkCurl);
            self.print_second("Second run over this link", Row::LinkImgfsAgain);
            let spent = median(self.link_cpu.iter().copied());
            println!(
                "\nThe proxy that stands in for the link used {:.2} s of processor time a run.",
                spent.unwrap_or_default().as_secs_f64()
            );
        }
        self.print_pulls(
            "Verifying (from the disk: with a cold cache)",
            &[Row::Cat, Row::HashAllCores, Row::Verify],
            Row::HashAllCores,
        );
        let targets = self.targets();
        println!("\nTargets:\n");
        for (reached, text) in &targets {
            println!("- {} {text}", if *reached { "OK  " } else { "MISS" });
        }
        targets.iter().filter(|(reached, _)| !reached).count()
    }

    fn print_pulls(&self, title: &str, rows: &[Row], reference: Row) {
        let mut places: Vec<&str> = self
            .samples
            .keys()
            .filter(|(_, row)| rows.contains(row))
            .map(|(place, _)| *place)
            .collect();
        places.dedup();
        if places.is_empty() {
            return;
        }
        println!("\n{title}:\n");
        println!("| on | what | wall s | ratio | CPU s | peak RSS MiB | requests |");
        println!("|---|---|---|---|---|---|---|");
        for place in places {
            let reference = self.wall(place, reference);
            for row in rows {
                let Some(samples) = self.samples.get(&(place, *row)) else {
                    continue;
                };
                let wall = samples.iter().map(|s| s.wall);
                let (least, most) = (
                    wall.clone().min().unwrap_or_default(),
                    wall.clone().max().unwrap_or_default(),
                );
                let wall = median(wall).unwrap_or_default();
                println!(
                    "| {place} | {} | {:.2} ({:.2} to {:.2}) | {} | {:.2} | {:.1} | {} |",
                    row.name(),
                    wall.as_secs_f64(),
                    least.as_secs_f64(),
                    most.as_secs_f64(),
                    reference.map_or_else(String::new, |r| format!("{:.2}", ratio(wall, r))),
                    self.cpu(place, *row).unwrap_or_default().as_secs_f64(),
                    mib(self.peak_rss_kib(place, *row)),
                    self.requests
                        .get(&(place, *row))
                        .and_then(|r| median(r.iter().copied()))
                        .map_or_else(String::new, |n| n.to_string()),
                );
            }
        }
    }

    fn print_second(&self, title: &str, row: Row) {
        let found: Vec<_> = self.samples.iter().filter(|((_, r), _)| *r == row).collect();
        if found.is_empty() {
            return;
        }
        println!("\n{title}:\n");
        println!("| on | what | wall ms | CPU s | peak RSS MiB | requests |");
        println!("|---|---|---|---|---|---|");
        for ((place, row), samples) in found {
            let wall = samples.iter().map(|s| rounded_ms(s.wall));
            println!(
                "| {place} | {} | {} ({} to {}) | {:.2} | {:.1} | {} |",
                row.name(),
                median(wall.clone()).unwrap_or_default(),
                wall.clone().min().unwrap_or_default(),
                wall.max().unwrap_or_default(),
                self.cpu(place, *row).unwrap_or_default().as_secs_f64(),
                mib(self.peak_rss_kib(place, *row)),
                self.requests
                    .get(&(*place, *row))
                    .and_then(|r| median(r.iter().copied()))
                    .map_or_else(String::new, |n| n.to_string()),
            );
        }
    }

    /// What was measured against what was wanted.
    fn targets(&self) -> Vec<(bool, String)> {
        let mut targets = Vec::new();
        let keys: Vec<Key> = self.samples.keys().copied().collect();
        for (place, row) in keys {
            let Some(wall) = self.wall(place, row) else {
                continue;
            };
            match row {
                Row::Imgfs => {
                    if let Some(curl) = self.wall(place, Row::Curl) {
                        let r = ratio(wall, curl);
                        targets.push((
                            r <= PULL_PER_CURL,
                            format!("pull, {place}: {r:.2} x curl (at most {PULL_PER_CURL})"),
                        ));
                    }
                    self.push_cpu(&mut targets, place);
                    self.push_rss(&mut targets, place, row, "pull");
                }
                Row::LinkImgfs => {
                    if let Some(link) = self.link {
                        let r = ratio(wall, link.time_for(self.bytes));
                        targets.push((r <= PULL_PER_LINK, format!("pull over the link: {r:.2} x what the link needs (at most {PULL_PER_LINK})")));
                    }
                    self.push_rss(&mut targets, place, row, "pull over the link");
                }
                Row::ImgfsAgain => self.push_second(
                    &mut targets,
                    &format!("second run, {place}"),
                    (place, row),
                    SECOND_RUN,
                ),
                Row::LinkImgfsAgain => self.push_second(
                    &mut targets,
                    "second run over the link",
                    (place, row),
                    SECOND_RUN_LINK,
                ),
                Row::Verify => {
                    // Not faster than the disk, nor than the hash: the slower of the two is the floor.
                    let floors = [Row::Cat, Row::HashAllCores];
                    if let Some(floor) = floors.iter().filter_map(|r| self.wall(place, *r)).max() {
                        let r = ratio(wall, floor);
                        targets.push((r <= VERIFY_PER_FLOOR, format!("verify --full, {place}: {r:.2} x the disk or SHA-256 on all cores (at most {VERIFY_PER_FLOOR})")));
                    }
                    self.push_rss(&mut targets, place, row, "verify");
                }
                _ => {}
            }
        }
        if let Some(requests) = self.second_run_blob_requests {
            targets.push((
                requests == 0,
                format!("second runs asked for blobs {requests} times (never)"),
            ));
        }
        targets
    }

    fn push_cpu(&self, targets: &mut Vec<(bool, String)>, place: &'static str) {
        let cpu = |row| self.cpu(place, row).map(|cpu| cpu.as_secs_f64());
        if let (Some(imgfs), Some(curl), Some(hash)) =
            (cpu(Row::Imgfs), cpu(Row::Curl), cpu(Row::Hash))
        {
            let allowed = curl + hash;
            targets.push((imgfs <= allowed, format!("pull, {place}: {imgfs:.2} s of CPU (at most curl's and the hash's, {curl:.2} + {hash:.2} = {allowed:.2})")));
        }
    }

    fn push_rss(
        &self,
        targets: &mut Vec<(bool, String)>,
        place: &'static str,
        row: Row,
        what: &str,
    ) {
        let rss = self.peak_rss_kib(place, row);
        targets.push((
            rss <= PEAK_RSS_KIB,
            format!(
                "{what}, {place}: peak RSS {:.1} MiB (at most {})",
                mib(rss),
                PEAK_RSS_KIB >> 10
            ),
        ));
    }

    fn push_second(
        &self,
        targets: &mut Vec<(bool, String)>,
        what: &str,
        key: Key,
        at_most: Duration,
    ) {
        let wall = self.wall(key.0, key.1).unwrap_or_default();
        targets.push((
            wall <= at_most,
            format!("{what}: {} ms (at most {})", rounded_ms(wall), at_most.as_millis()),
        ));
        if let Some(requests) = self.requests.get(&key).and_then(|r| r.iter().max()) {
            let allowed = REQUESTS_PER_NAME * self.names;
            targets.push((
                *requests <= allowed,
                format!("{what}: {requests} requests (at most {allowed})"),
            ));
        }
    }

    fn wall(&self, place: &'static str, row: Row) -> Option<Duration> {
        median(self.samples.get(&(place, row))?.iter().map(|s| s.wall))
    }

    fn cpu(&self, place: &'static str, row: Row) -> Option<Duration> {
        median(self.samples.get(&(place, row))?.iter().map(|s| s.cpu))
    }

    /// The most of all rounds: a bound is not kept on average.
    fn peak_rss_kib(&self, place: &'static str, row: Row) -> u64 {
        self.samples
            .get(&(place, row))
            .into_iter()
            .flatten()
            .map(|s| s.peak_rss_kib)
            .max()
            .unwrap_or(0)
    }
}

fn median<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    let middle = values.len() / 2;
    values.into_iter().nth(middle)
}

fn rounded_ms(duration: Duration) -> u128 {
    (duration.as_micros() + 500) / 1000
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
