//! Collects the samples; prints the tables and which targets were reached.
#![allow(clippy::cast_precision_loss)] // figures for people, of three digits

use std::collections::BTreeMap;
use std::time::Duration;

use crate::layout::Layout;
use crate::link::Link;
use crate::measure::{Usage, median};
use crate::registry::Requests;
use crate::rows::Row;
use crate::tally::{Tally, Target};

/// What one first run and the run after it took.
#[derive(Clone)]
pub(crate) struct Twice {
    pub(crate) first: Usage,
    pub(crate) first_requests: Requests,
    pub(crate) second: Usage,
    pub(crate) second_requests: Requests,
}

pub(crate) type Key = (&'static str, Row);

pub(crate) struct Report {
    title: String,
    pub(crate) names: u64,
    pub(crate) bytes: u64,
    pub(crate) samples: BTreeMap<Key, Vec<Usage>>,
    /// At the registry; of two, at the target.
    requests: BTreeMap<Key, Vec<Requests>>,
    /// Of two registries, at the source.
    source_requests: BTreeMap<Key, Vec<Requests>>,
    /// Files that have a second name in the source.
    shared: BTreeMap<Key, u64>,
    blobs: u64,
    pub(crate) link: Option<Link>,
    link_cpu: Vec<Duration>,
    tallies: Vec<Tally>,
    bounds: Vec<Target>,
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
            source_requests: BTreeMap::new(),
            shared: BTreeMap::new(),
            blobs: layout.blob_count() as u64,
            link: None,
            link_cpu: Vec::new(),
            tallies: Vec::new(),
            bounds: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, row: Row, place: &'static str, usage: Usage) {
        self.samples.entry((place, row)).or_default().push(usage);
    }

    pub(crate) fn add_requests(
        &mut self,
        row: Row,
        place: &'static str,
        usage: Usage,
        requests: Requests,
    ) {
        self.add(row, place, usage);
        self.requests.entry((place, row)).or_default().push(requests);
    }

    pub(crate) fn add_twice(
        &mut self,
        first: Row,
        second: Row,
        place: &'static str,
        twice: &Twice,
    ) {
        self.add_requests(first, place, twice.first, twice.first_requests.clone());
        self.add_requests(second, place, twice.second, twice.second_requests.clone());
    }

    /// What the same runs asked the registry for that they read from.
    pub(crate) fn add_source(
        &mut self,
        first: Row,
        second: Row,
        place: &'static str,
        twice: &Twice,
    ) {
        for (row, requests) in [(first, &twice.first_requests), (second, &twice.second_requests)] {
            self.source_requests.entry((place, row)).or_default().push(requests.clone());
        }
    }

    /// The fewest of all rounds.
    pub(crate) fn shared(&mut self, row: Row, place: &'static str, files: u64) {
        let fewest = self.shared.entry((place, row)).or_insert(files);
        *fewest = files.min(*fewest);
    }

    pub(crate) fn link(&mut self, link: Link) {
        self.link = Some(link);
    }

    pub(crate) fn link_cpu(&mut self, cpu: Duration) {
        self.link_cpu.push(cpu);
    }

    pub(crate) fn tally(&mut self, tally: Tally) {
        self.tallies.push(tally);
    }

    /// Something that was counted, and the most that it may be.
    pub(crate) fn bound(&mut self, what: &str, found: u64, most: u64) {
        self.bounds.push((found <= most, format!("{what}: {found} (at most {most})")));
    }

    /// Prints everything to standard output; returns how many targets were missed.
    pub(crate) fn print(&self) -> usize {
        println!("{}", self.title);
        self.print_first(
            "Into an empty directory, loopback",
            &[Row::Curl, Row::CurlSynced, Row::Imgfs, Row::Hash, Row::Skopeo],
            |place| self.wall(place, Row::Curl),
        );
        self.print_second("Second run, loopback", Row::ImgfsAgain);
        if let Some(link) = self.link {
            let (rtt, mbit) = (link.rtt.as_millis(), link.bytes_per_second / 125_000);
            let title = format!(
                "Over a link of {rtt} ms and {mbit} Mbit/s, which needs {:.2} s for the bytes",
                link.time_for(self.bytes).as_secs_f64()
            );
            self.print_first(&title, &[Row::LinkCurl, Row::LinkImgfs], |place| {
                self.wall(place, Row::LinkCurl)
            });
            self.print_second("Second run over this link", Row::LinkImgfsAgain);
            let spent = median(self.link_cpu.iter().copied());
            println!(
                "\nThe proxy that stands in for the link used {:.2} s of processor time a run.",
                spent.unwrap_or_default().as_secs_f64()
            );
        }
        self.print_first(
            "Verifying (from the disk: with a cold cache)",
            &[Row::Cat, Row::HashAllCores, Row::Verify],
            |place| self.wall(place, Row::HashAllCores),
        );
        self.print_first(
            "Push into an empty registry, loopback (ratio to the faster upload)",
            &[Row::PushCurl2, Row::PushCurl4, Row::Push, Row::PushSkopeo],
            |place| self.least(place, &[Row::PushCurl2, Row::PushCurl4]),
        );
        self.print_second("Second push, loopback", Row::PushAgain);
        self.print_first(
            "From registry to empty registry, loopback (ratio to the slower half; requests at the target)",
            &[Row::CopyRead, Row::CopyCurl2, Row::CopyCurl4, Row::Copy, Row::CopySkopeo],
            |place| self.slower_half(place),
        );
        self.print_second("Second copy, loopback", Row::CopyAgain);
        self.print_wire();
        self.print_first(
            "From directory to directory on one file system (from the disk: with a cold cache)",
            &[Row::DirLink, Row::DirCp, Row::DirCpSynced, Row::DirCopy],
            |place| self.wall(place, Row::DirCp),
        );
        self.print_shared();
        self.tallies.iter().for_each(Tally::print);
        let mut targets = self.targets();
        targets.extend(self.tallies.iter().flat_map(Tally::targets));
        targets.extend(self.bounds.iter().cloned());
        println!("\nTargets:\n");
        for (reached, text) in &targets {
            println!("- {} {text}", if *reached { "OK  " } else { "MISS" });
        }
        targets.iter().filter(|(reached, _)| !reached).count()
    }

    fn print_first(
        &self,
        title: &str,
        rows: &[Row],
        reference: impl Fn(&'static str) -> Option<Duration>,
    ) {
        let mut places: Vec<&'static str> = self
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
            let reference = reference(place);
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
                    "| {place} | {} | {} ({} to {}) | {} | {:.2} | {:.1} | {} |",
                    row.name(),
                    seconds(wall),
                    seconds(least),
                    seconds(most),
                    reference.map_or_else(String::new, |r| format!("{:.2}", ratio(wall, r))),
                    self.cpu(place, *row).unwrap_or_default().as_secs_f64(),
                    mib(self.peak_rss_kib(place, *row)),
                    self.requests_cell((place, *row)),
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
                self.requests_cell((place, *row)),
            );
        }
    }

    /// What the same bytes cost on the wire, at the registry that gets them.
    fn print_wire(&self) {
        let rows = [
            (&[Row::PushCurl4, Row::CopyCurl4][..], "upload, `curl`"),
            (&[Row::Push], "**`imgfs push`**"),
            (&[Row::PushSkopeo], "`skopeo`, from `dir:`"),
            (&[Row::Copy], "**`imgfs copy`**"),
            (&[Row::CopySkopeo], "`skopeo`, from a registry"),
        ];
        let found = rows.iter().filter_map(|(rows, name)| {
            let of_row = self.requests.iter().filter(|((_, row), _)| rows.contains(row));
            Some((name, of_row.flat_map(|(_, all)| all).max_by_key(|requests| requests.all)?))
        });
        let found: Vec<_> = found.collect();
        if found.is_empty() {
            return;
        }
        println!("\nRequests at an empty registry, by its access log (the round with the most):\n");
        println!(
            "| what | all | HEAD of blobs | mounts asked | mounts won | PATCH and PUT of blobs | PUT of manifests |"
        );
        println!("|---|---|---|---|---|---|---|");
        for (name, r) in found {
            println!(
                "| {name} | {} | {} | {} | {} | {} | {} |",
                r.all, r.blob_heads, r.mounts_asked, r.mounts_won, r.uploads, r.manifests_put
            );
        }
    }

    fn print_shared(&self) {
        for ((place, row), shared) in &self.shared {
            if *row == Row::DirLink {
                let of = self.blobs;
                println!(
                    "\nOn {place}, {shared} of {of} blobs were hard links (reflinks are not counted)."
                );
            }
        }
    }

    fn requests_cell(&self, key: Key) -> String {
        let all = |of: &BTreeMap<Key, Vec<Requests>>| {
            of.get(&key).and_then(|requests| median(requests.iter().map(|r| r.all)))
        };
        match (all(&self.requests), all(&self.source_requests)) {
            (None, _) => String::new(),
            (Some(target), None) => target.to_string(),
            (Some(target), Some(source)) => format!("{target}, {source} at the source"),
        }
    }

    /// The most requests of all rounds, at the target and at the source.
    pub(crate) fn most_requests(&self, key: Key) -> impl Iterator<Item = u64> {
        let all = [&self.requests, &self.source_requests].into_iter();
        all.filter_map(move |of| of.get(&key)?.iter().map(|r| r.all).max())
    }

    /// How often blobs were asked for in runs that had nothing to do; `None` if there were no such runs.
    pub(crate) fn blob_requests(&self, rows: &[Row]) -> Option<u64> {
        let all = [&self.requests, &self.source_requests].into_iter().flatten();
        let found = all.filter(|((_, row), _)| rows.contains(row)).flat_map(|(_, of)| of);
        found.map(|r| r.blobs).reduce(|a, b| a + b)
    }

    pub(crate) fn least(&self, place: &'static str, rows: &[Row]) -> Option<Duration> {
        rows.iter().filter_map(|row| self.wall(place, *row)).min()
    }

    /// What a copy cannot be faster than.
    pub(crate) fn slower_half(&self, place: &'static str) -> Option<Duration> {
        let write = self.least(place, &[Row::CopyCurl2, Row::CopyCurl4])?;
        Some(write.max(self.wall(place, Row::CopyRead)?))
    }

    pub(crate) fn wall(&self, place: &'static str, row: Row) -> Option<Duration> {
        median(self.samples.get(&(place, row))?.iter().map(|s| s.wall))
    }

    pub(crate) fn cpu(&self, place: &'static str, row: Row) -> Option<Duration> {
        median(self.samples.get(&(place, row))?.iter().map(|s| s.cpu))
    }

    /// The most of all rounds: a bound is not kept on average.
    pub(crate) fn peak_rss_kib(&self, place: &'static str, row: Row) -> u64 {
        self.samples
            .get(&(place, row))
            .into_iter()
            .flatten()
            .map(|s| s.peak_rss_kib)
            .max()
            .unwrap_or(0)
    }
}

/// With three digits or so.
fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.1 { format!("{seconds:.3}") } else { format!("{seconds:.2}") }
}

pub(crate) fn rounded_ms(duration: Duration) -> u128 {
    (duration.as_micros() + 500) / 1000
}

pub(crate) fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

pub(crate) fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
