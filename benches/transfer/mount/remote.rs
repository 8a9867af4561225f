//! What is fetched while it is read.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::timed;
use crate::layout::Blob;
use crate::link::{Link, LinkProxy, Sharing};
use crate::measure::Job;
use crate::places::Place;
use crate::report::Report;
use crate::tally::{Goal, Tally};
use crate::{Bench, Result};

/// Blobs that are read at once.
const PARALLEL: usize = 16;

/// While the registry hangs, what is local answers in less than this.
const LOCAL_ANSWER: Duration = Duration::from_millis(5);

/// Memory with 64 readers, and when they are done, in MiB.
const RSS_BUSY: u64 = 96;
const RSS_IDLE: u64 = 48;

impl Bench {
    /// One large blob, and 16 at once, against curl writing the same into files.
    pub(crate) fn cold_reads(&mut self, report: &mut Report) -> Result<()> {
        let large = &self.layout.blobs[..1];
        // The largest one would be all that is measured.
        let several = &self.layout.blobs[1..=PARALLEL.min(self.layout.blobs.len() - 1)];
        let place = self.workshop.places().swap_remove(0);
        for (blobs, what) in [(large, "One cold blob"), (several, "16 cold blobs at once")] {
            let megabytes = blobs.iter().map(|blob| blob.size).sum::<u64>() / 1_000_000;
            let mut tally = Tally::new(format!("{what} ({megabytes} MB), {}", place.name));
            for round in 0..self.options.rounds {
                self.progress(round, place.name, what);
                let host = self.registry.host();
                self.ready(&place, &[self.registry.storage()])?;
                tally.add("`curl -Z` to files", None, self.curl_blobs(&place, &host, blobs)?);
                self.ready(&place, &[self.registry.storage()])?;
                let taken = self.read_blobs(&place, &host, blobs)?;
                tally.add("**mount**, `cat`, kept and verified", Some(Goal::Speed(0.8)), taken);
            }
            report.tally(tally);
        }
        place.clear()
    }

    /// One reader over a link with a round-trip time and a rate; and 4 KiB from the middle.
    pub(crate) fn reads_over_link(&mut self, report: &mut Report) -> Result<()> {
        let rtt = Duration::from_millis(self.options.rtt_ms);
        let bytes_per_second = self.options.mbit * 125_000;
        let link = Link { rtt, bytes_per_second, sharing: Sharing::All };
        let place = self.workshop.quietest();
        let blobs = &self.layout.blobs[..1];
        let (ms, mbit) = (self.options.rtt_ms, self.options.mbit);
        let mut tally =
            Tally::new(format!("One cold blob over a link of {ms} ms and {mbit} Mbit/s"));
        let mut small = Tally::new("4 KiB from the middle of it, in round trips");
        for round in 0..self.options.rounds {
            self.progress(round, "link", "one reader");
            let proxy = LinkProxy::start(&self.registry.host(), link)?;
            self.ready(&place, &[self.registry.storage()])?;
            tally.add("what the link needs", None, link.time_for(blobs[0].size));
            let taken = self.read_blobs(&place, &proxy.host(), blobs)?;
            tally.add("**mount**, `cat`", Some(Goal::Speed(0.85)), taken);
            let proxy = LinkProxy::start(&self.registry.host(), link)?;
            place.clear()?;
            let daemon = self.mounted_cold(&place.images_dir(), &proxy.host())?;
            let file = fs::File::open(daemon.blob(&blobs[0].digest))?;
            let taken = timed(|| Ok(file.read_exact_at(&mut [0; 4096], blobs[0].size / 2)?))?;
            small.add("one round trip", None, rtt);
            small.add("**mount**", Some(Goal::Time(5.0)), taken);
        }
        report.tally(tally);
        report.tally(small);
        place.clear()
    }

    /// `cp -a` of the mount against a pull of the same.
    pub(crate) fn copy_out(&mut self, report: &mut Report) -> Result<()> {
        let place = self.workshop.places().swap_remove(0);
        let host = self.registry.host();
        let mut tally = Tally::new("All images, cold");
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "cp -a");
            self.ready(&place, &[self.registry.storage()])?;
            let pull = self.imgfs_pull(&place.images_dir(), &host).run()?;
            tally.add("`imgfs pull`", None, pull.wall);
            self.ready(&place, &[self.registry.storage()])?;
            let daemon = self.mounted_cold(&place.images_dir(), &host)?;
            let copy = place.path.join("copy");
            let job = Job::new("cp").arg("-a").arg(daemon.mountpoint.join(".")).arg(&copy);
            tally.add("**`cp -a MOUNT/. DIR`**", Some(Goal::Time(1.8)), job.run()?.wall);
            self.layout.check_sizes(&copy.join("blobs"))?;
        }
        report.tally(tally);
        place.clear()
    }

    /// `stat` and reads of what is local, while readers of something remote hang.
    pub(crate) fn hanging_registry(&mut self, report: &mut Report) -> Result<()> {
        let place = self.workshop.quietest();
        place.clear()?;
        let host = self.registry.host();
        let daemon = self.mounted_cold(&place.images_dir(), &host)?;
        let local = daemon.blob(&self.layout.blobs[self.layout.blobs.len() - 1].digest);
        fs::read(&local)?;
        let hanging: Vec<PathBuf> =
            self.layout.blobs[..8].iter().map(|blob| daemon.blob(&blob.digest)).collect();
        self.registry.pause(true)?;
        let readers: Vec<_> = hanging
            .into_iter()
            .map(|path| {
                std::thread::spawn(move || fs::File::open(path)?.read_at(&mut [0; 4096], 0))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        let mut tally = Tally::new("While 8 readers wait for a registry that hangs");
        tally.add("what is allowed", None, LOCAL_ANSWER);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            let taken = timed(|| {
                fs::metadata(daemon.mountpoint.join("blobs")).map(drop).map_err(Into::into)
            })?;
            tally.add("`stat`", Some(Goal::Time(1.0)), taken);
            let taken = timed(|| fs::read(&local).map(drop).map_err(Into::into))?;
            tally.add("reading a small blob", Some(Goal::Time(1.0)), taken);
            std::thread::sleep(Duration::from_millis(10));
        }
        self.registry.pause(false)?;
        for reader in readers {
            // Late, but read.
            reader.join().map_err(|_| "a reader has panicked")??;
        }
        report.tally(tally);
        drop(daemon);
        place.clear()
    }

    /// The memory of a mount with 64 readers, and when they are done; and what it does when nobody reads.
    pub(crate) fn many_readers(&mut self, report: &mut Report) -> Result<()> {
        let place = self.workshop.places().swap_remove(0);
        self.ready(&place, &[])?;
        let daemon = self.mounted_cold(&place.images_dir(), &self.registry.host())?;
        let blobs = self.layout.blobs.iter().cycle().take(64);
        let readers: Vec<_> = blobs
            .enumerate()
            .map(|(number, blob)| {
                let (path, size) = (daemon.blob(&blob.digest), blob.size);
                std::thread::spawn(move || -> std::io::Result<()> {
                    let file = fs::File::open(path)?;
                    let mut buffer = vec![0; 256 << 10];
                    // From different places on, and round.
                    let mut at = size / 64 * number as u64;
                    let mut left = size.min(100 << 20);
                    while left > 0 {
                        let n = file.read_at(&mut buffer, at)? as u64;
                        at = if n == 0 { 0 } else { at + n };
                        left = left.saturating_sub(n.max(1));
                    }
                    Ok(())
                })
            })
            .collect();
        for reader in readers {
            reader.join().map_err(|_| "a reader has panicked")??;
        }
        let (_, most) = daemon.rss_kib()?;
        std::thread::sleep(Duration::from_secs(2));
        let (after, _) = daemon.rss_kib()?;
        let (ticks, requests) = (daemon.cpu_ticks()?, self.registry.requests()?.all);
        std::thread::sleep(Duration::from_secs(5));
        let idle_ms = (daemon.cpu_ticks()? - ticks) * 10;
        let idle_requests = self.registry.requests()?.all - requests;
        report.bound("64 readers: peak RSS, MiB", most >> 10, RSS_BUSY);
        report.bound("2 s after them: RSS, MiB", after >> 10, RSS_IDLE);
        report.bound("5 s unused: processor time, ms", idle_ms, 0);
        report.bound("5 s unused: requests", idle_requests, 0);
        drop(daemon);
        place.clear()
    }

    /// Fetches blobs into files of `place`.
    pub(crate) fn curl_blobs(&self, place: &Place, host: &str, blobs: &[Blob]) -> Result<Duration> {
        let mut curl = Job::new("curl")
            .args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*"])
            .args(["--parallel", "--parallel-max", &PARALLEL.to_string()])
            .within(&place.path);
        for Blob { digest, repository, .. } in blobs {
            curl = curl.arg(format!("http://{host}/v2/{repository}/blobs/{digest}"));
            curl = curl.args(["-o", digest]);
        }
        Ok(curl.run()?.wall)
    }

    /// Reads blobs through a new mount, one process for each.
    pub(crate) fn read_blobs(&self, place: &Place, host: &str, blobs: &[Blob]) -> Result<Duration> {
        let daemon = self.mounted_cold(&place.images_dir(), host)?;
        let usage = Job::new("xargs")
            .args(["--max-args=1", &format!("--max-procs={PARALLEL}"), "--arg-file"])
            .arg(self.list_of(blobs)?)
            .arg("cat")
            .within(&daemon.mountpoint.join("blobs"))
            .run()?;
        Ok(usage.wall)
    }

    fn list_of(&self, blobs: &[Blob]) -> Result<PathBuf> {
        let path = self.workshop.path().join("blobs.list");
        fs::write(&path, blobs.iter().map(|b| b.digest.clone() + "\n").collect::<String>())?;
        Ok(path)
    }
}
