//! A program that opens 500 small files when it starts, one after the other.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::drop_cache;
use crate::measure::Job;
use crate::mount::timed;
use crate::report::Report;
use crate::tally::Tally;
use crate::{Bench, Result};

/// Files that are read.
const FILES: usize = 500;

/// What one file may take when the image starts the second time, in microseconds.
const SECOND_US: u64 = 300;

/// What one may take of a cold image with its index there and a profile, in microseconds.
const PROFILE_US: u64 = 1500;

impl Bench {
    /// `cat` of 500 small files of the top layer at random, with the index there and no data: without a profile,
    /// with one, and on another machine that has both.
    pub(crate) fn starts_inside(&mut self, report: &mut Report) -> Result<()> {
        let subject = self.subject()?;
        let mut files = self.small_files(&subject)?;
        // At random, and in each run the same.
        files.sort_by_key(|file| Sha256::digest(file.as_os_str().as_encoded_bytes()).to_vec());
        files.truncate(FILES);
        let place = self.workshop.places().swap_remove(0);
        let other = place.path.join("other");
        let images_dir = place.images_dir();
        let megabytes = subject.top(&self.layout)?.size / 1_000_000;
        let count = files.len();
        let mut tally = Tally::new(format!(
            "`cat` of {count} small files at random in the top layer ({megabytes} MB) of {}, its index there and no data",
            subject.image
        ));
        let (mut least_profile, mut least_second) = (u64::MAX, u64::MAX);
        let (mut requests_without, mut requests_with) = (0, 0);
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "starts");
            self.ready(&place, &[self.registry.storage()])?;
            drop(self.mounted_image(&images_dir, &subject)?);
            let start = |dir: &Path, options: &[&str]| -> Result<(u64, u64)> {
                self.workshop.settle()?;
                let daemon = self.mounted(dir, options.iter().copied())?;
                // Its manifests are looked up, and its index is read.
                let root = self.inside(&daemon, &subject).join("rootfs");
                Job::new("ls").arg(root.join(".")).output_to(&place.path.join("listed")).run()?;
                let before = self.registry.requests()?.all;
                let taken = timed(|| cat(&root, &files, &place.path))?;
                let asked = self.registry.requests()?.all - before;
                Ok((taken.as_micros() as u64, asked))
            };
            drop_cache(&images_dir)?;
            let (without, asked) = start(&images_dir, &["--profiles=off"])?;
            requests_without = asked.max(requests_without);
            tally.add("without a profile", None, std::time::Duration::from_micros(without));
            // It is recorded.
            start(&images_dir, &["--profiles=local"])?;
            drop_cache(&images_dir)?;
            let (with, asked) = start(&images_dir, &["--profiles=local"])?;
            requests_with = asked.max(requests_with);
            least_profile = least_profile.min(with);
            tally.add("**with the profile**", None, std::time::Duration::from_micros(with));
            let (second, _) = start(&images_dir, &["--profiles=local"])?;
            least_second = least_second.min(second);
            tally.add("**the same once more**", None, std::time::Duration::from_micros(second));
            // Another machine.
            let found = other.join("blobs/.imgfs");
            fs::create_dir_all(&found)?;
            let inside = images_dir.join("blobs/.imgfs/inside");
            Job::new("cp").arg("-a").arg(&inside).arg(&found).run()?;
            let (there, _) = start(&other, &["--profiles=local"])?;
            let there = std::time::Duration::from_micros(there);
            tally.add("**another machine that has index and profile**", None, there);
            fs::remove_dir_all(&other)?;
        }
        report.tally(tally);
        let each = |all: u64| all / count.max(1) as u64;
        report.bound("a file of 500 at random with a profile: µs", each(least_profile), PROFILE_US);
        report.bound("a file of 500 at random, second start: µs", each(least_second), SECOND_US);
        report.bound("requests for 500 files with a profile", requests_with, requests_without);
        place.clear()
    }
}

/// Reads files one after the other.
fn cat(root: &Path, files: &[PathBuf], scratch: &Path) -> Result<()> {
    let list = scratch.join("list");
    let names: Vec<String> =
        files.iter().map(|file| root.join(file).display().to_string()).collect();
    fs::write(&list, names.join("\0"))?;
    Job::new("xargs")
        .args(["-0", "-a"])
        .arg(&list)
        .arg("cat")
        .output_to(&scratch.join("read"))
        .run()?;
    Ok(())
}
