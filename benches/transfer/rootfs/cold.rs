//! Reading little and reading everything of an image of which nothing is there but its index.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Subject, drop_cache, tar};
use crate::measure::median;
use crate::mount::Daemon;
use crate::places::Place;
use crate::report::Report;
use crate::tally::{Goal, Tally};
use crate::{Bench, Result};

/// Reads of 4 KiB at random places.
const READS: usize = 400;
const READ_BYTES: u64 = 4096;

/// Small files that are opened and read, and the bytes that they have at most.
const FILES: usize = 500;
const SMALL: u64 = 64 << 10;

/// What the random reads may leave in memory, in MiB.
const RSS_MIB: u64 = 96;

/// A file of the image, and its size.
type Known = (PathBuf, u64);

impl Bench {
    /// 4 KiB at random places, small files at random, and `tar` of everything, each from an empty cache with
    /// the index there. With `--before`, that binary is measured in turns with this one.
    pub(crate) fn cold_reads_inside(&mut self, report: &mut Report) -> Result<()> {
        let subject = self.subject()?;
        let place = self.workshop.places().swap_remove(0);
        let now = self.imgfs.clone();
        let mut binaries = Vec::new();
        if let Some(before) = &self.options.older {
            binaries.push(("before", before.canonicalize()?));
        }
        binaries.push(("**mount**", now.clone()));
        let of = format!("of {}, the index there and nothing else", subject.image);
        let mut random = Tally::new(format!("4 KiB at random places {of}: the median of {READS}"));
        let mut files = Tally::new(format!("{FILES} small files at random {of}: for each"));
        let mut all = Tally::new(format!("`tar -cf - ROOTFS | cat` {of}"));
        let mut most_rss = 0;
        for round in 0..self.options.rounds {
            for (number, (name, binary)) in binaries.iter().enumerate() {
                self.progress(round, place.name, name);
                self.imgfs.clone_from(binary);
                let goal = |goal| (number > 0).then_some(goal);
                self.ready(&place, &[self.registry.storage()])?;
                // All of it is indexed before this is there.
                let known = known(&self.mounted_image(&place.images_dir(), &subject)?.mountpoint)?;
                let daemon = self.cold(&place, &subject)?;
                random.add(name, goal(Goal::Time(0.25)), reads(&daemon, &known, round)?);
                if *binary == now {
                    most_rss = most_rss.max(daemon.rss_kib()?.0);
                }
                drop(daemon);
                let daemon = self.cold(&place, &subject)?;
                files.add(name, goal(Goal::Time(0.17)), small_files(&daemon, &known, round)?);
                drop(daemon);
                let daemon = self.cold(&place, &subject)?;
                let taken = tar(&daemon.mountpoint).run()?.wall;
                all.add(name, goal(Goal::Time(0.67)), taken);
            }
        }
        self.imgfs = now;
        report.tally(random);
        report.tally(files);
        report.tally(all);
        let most_rss = most_rss.div_ceil(1024);
        report.bound("memory after reads of 4 KiB at random places, MiB", most_rss, RSS_MIB);
        place.clear()
    }

    /// A mount of the subject, with nothing in its cache.
    fn cold(&self, place: &Place, subject: &Subject) -> Result<Daemon> {
        let images_dir = place.images_dir();
        drop_cache(&images_dir)?;
        self.workshop.settle()?;
        self.mounted_image(&images_dir, subject)
    }
}

/// The files of a tree that are not empty, in an order that is always the same.
fn known(root: &Path) -> Result<Vec<Known>> {
    let (mut found, mut directories) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path().strip_prefix(root)?.to_owned();
                found.push((path, entry.metadata()?.len()));
            }
        }
    }
    found.retain(|(_, size)| *size > 0);
    found.sort();
    if found.is_empty() { Err("an image without files".into()) } else { Ok(found) }
}

/// Numbers that are the same in each run (xorshift64).
struct Random(u64);

impl Random {
    fn of_round(round: u32) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ u64::from(round + 1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// The median time of a read at a random place: each byte of the image is as likely as any other.
fn reads(daemon: &Daemon, known: &[Known], round: u32) -> Result<Duration> {
    let mut random = Random::of_round(round);
    let ends = known.iter().scan(0, |end, (_, size)| {
        *end += size;
        Some(*end)
    });
    let ends: Vec<u64> = ends.collect();
    let total = ends.last().copied().unwrap_or(0);
    let mut times = Vec::with_capacity(READS);
    let mut bytes = vec![0; READ_BYTES as usize];
    for _ in 0..READS {
        let (path, size) = &known[{
            let place = random.below(total);
            ends.partition_point(|end| *end <= place)
        }];
        let offset = random.below(*size) / READ_BYTES * READ_BYTES;
        let file = File::open(daemon.mountpoint.join(path))?;
        let begin = Instant::now();
        file.read_at(&mut bytes, offset)?;
        times.push(begin.elapsed());
    }
    Ok(median(times.into_iter()).ok_or("no reads")?)
}

/// The time for each of a number of small files, one after the other, from opening it to its end.
fn small_files(daemon: &Daemon, known: &[Known], round: u32) -> Result<Duration> {
    let small: Vec<&Known> = known.iter().filter(|(_, size)| *size <= SMALL).collect();
    let mut random = Random::of_round(round);
    let mut bytes = Vec::new();
    let begin = Instant::now();
    for _ in 0..FILES {
        let at = random.below(small.len() as u64) as usize;
        let (path, _) = small.get(at).ok_or("an image without small files")?;
        bytes.clear();
        File::open(daemon.mountpoint.join(path))?.read_to_end(&mut bytes)?;
    }
    Ok(begin.elapsed() / FILES as u32)
}
