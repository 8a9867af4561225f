//! Processes that look at a mount at random and know what they have to see (`reader.py`).

use super::image::Built;
use super::mount::{Looking, Mounted};
use super::wait_for;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// A reader has read something by then, however busy the machine is.
const BEGIN: Duration = Duration::from_secs(60);

const PROGRAM: &str = include_str!("reader.py");

/// What is known to be in a mount: paths, and files with the right content.
pub(crate) struct Known {
    files: tempfile::TempDir,
    pairs: Vec<(String, PathBuf)>,
    moving: Vec<(String, Vec<PathBuf>)>,
}

impl Known {
    /// The blobs of these images.
    pub(crate) fn blobs_of(images: &[&Built]) -> Self {
        let files = tempfile::tempdir().expect("making a temporary directory");
        let mut known = Self { files, pairs: Vec::new(), moving: Vec::new() };
        for blob in images.iter().flat_map(|image| image.blobs.values()) {
            known.add(&format!("blobs/{}", blob.digest), &blob.content.to_vec());
        }
        known
    }

    /// One more file.
    pub(crate) fn add(&mut self, below: &str, content: &[u8]) {
        let right = self.files.path().join(self.pairs.len().to_string());
        std::fs::write(&right, content).expect("writing");
        self.pairs.push((below.to_owned(), right));
    }

    /// A file that has one of these contents, now this and now that.
    pub(crate) fn add_moving(&mut self, below: &str, contents: &[&[u8]]) {
        let write = |(number, content): (usize, &&[u8])| {
            let right = self.files.path().join(format!("{}.{number}", self.moving.len()));
            std::fs::write(&right, content).expect("writing");
            right
        };
        let rights = contents.iter().enumerate().map(write).collect();
        self.moving.push((below.to_owned(), rights));
    }
}

/// How readers go about it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner<'a> {
    /// Each does so many things and ends; 0: until it is told to.
    pub(crate) rounds: usize,
    /// Errors that may happen, such as `ENOTCONN`.
    pub(crate) tolerate: &'a [&'a str],
    /// Directories in the mount that are listed now and then.
    pub(crate) wander: &'a [&'a str],
}

/// Some readers. They end when dropped.
pub(crate) struct Readers {
    readers: Vec<Looking>,
    seeds: std::ops::Range<u64>,
    place: tempfile::TempDir,
}

impl Readers {
    /// `server` is killed when a reader does not end in time.
    pub(crate) fn start(
        mount: &Mounted,
        server: Option<u32>,
        known: &Known,
        seeds: std::ops::Range<u64>,
        manner: &Manner<'_>,
    ) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        let at = |name: &str| place.path().join(name);
        let files = known.pairs.iter().map(|(below, right)| json!([mount.path(below), right]));
        let moving = known.moving.iter().map(|(below, rights)| json!([mount.path(below), rights]));
        let wander = manner.wander.iter().map(|below| mount.path(below));
        let plan = json!({
            "files": files.collect::<Vec<_>>(),
            "moving": moving.collect::<Vec<_>>(),
            "stop": at("stop"),
            "begun": at("begun"),
            "rounds": manner.rounds,
            "tolerate": manner.tolerate,
            "wander": wander.collect::<Vec<_>>(),
        });
        std::fs::write(at("plan.json"), plan.to_string()).expect("writing");
        std::fs::write(at("reader.py"), PROGRAM).expect("writing");
        let (program, plan) = (at("reader.py").display().to_string(), at("plan.json"));
        let start = |seed: u64| {
            let args = [program.clone(), seed.to_string(), plan.display().to_string()];
            Looking::start("python3", &args, server)
        };
        Self { readers: seeds.clone().map(start).collect(), seeds, place }
    }

    /// Waits until each of them has read something.
    #[track_caller]
    pub(crate) fn have_begun(&mut self) {
        let place = self.place.path().to_owned();
        for seed in self.seeds.clone() {
            wait_for("a reader", BEGIN, || {
                self.are_running();
                place.join(format!("begun.{seed}")).exists()
            });
        }
    }

    /// Panics with what it has said if one has ended before it was told to.
    #[track_caller]
    pub(crate) fn are_running(&mut self) {
        if let Some(at) = self.readers.iter_mut().position(|reader| !reader.is_running()) {
            self.readers.swap_remove(at).wait().success();
            panic!("a reader has ended");
        }
    }

    /// Tells them to end.
    #[track_caller]
    pub(crate) fn stop(self) -> Seen {
        std::fs::write(self.place.path().join("stop"), "").expect("writing");
        self.finish()
    }

    /// Waits until they have ended, and adds up what they have seen.
    #[track_caller]
    pub(crate) fn finish(self) -> Seen {
        let mut all = Seen::default();
        for reader in self.readers {
            let said = reader.wait_from_now().success().text();
            let said: Value = serde_json::from_str(&said).expect("a reader prints JSON");
            let number = |value: &Value| value.as_u64().expect("a number");
            all.reads += number(&said["reads"]);
            all.bytes += number(&said["bytes"]);
            all.listings += number(&said["listings"]);
            all.moving += number(&said["moving"]);
            let errors = said["errors"].as_object().expect("an object");
            all.errors += errors.values().map(number).sum::<u64>();
        }
        all
    }
}

/// What readers have seen.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) reads: u64,
    pub(crate) bytes: u64,
    pub(crate) listings: u64,
    pub(crate) moving: u64,
    pub(crate) errors: u64,
}
