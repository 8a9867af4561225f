//! What was measured against what was wanted.
#![allow(clippy::cast_precision_loss)] // figures for people, of three digits

use std::time::Duration;

use crate::report::{Key, Report, mib, ratio, rounded_ms};
use crate::rows::Row;
use crate::tally::Target;

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
/// Wall clock of a push, in those of the better of curl's uploads.
const PUSH_PER_CURL: f64 = 1.2;
/// Wall clock of a copy, in those of its slower half.
const COPY_PER_HALF: f64 = 1.25;
/// For a name, at each of the registries that are asked whether all is there.
const REQUESTS_PER_PUSHED_NAME: u64 = 1;
/// From directory to directory on one file system.
const DIRECTORY: Duration = Duration::from_millis(100);

impl Report {
    /// What was measured against what was wanted.
    pub(crate) fn targets(&self) -> Vec<Target> {
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
                Row::Push => {
                    if let Some(curl) = self.least(place, &[Row::PushCurl2, Row::PushCurl4]) {
                        let r = ratio(wall, curl);
                        targets.push((r <= PUSH_PER_CURL, format!("push: {r:.2} x the faster of curl's uploads (at most {PUSH_PER_CURL})")));
                    }
                    self.push_rss(&mut targets, place, row, "push");
                }
                Row::Copy => {
                    if let Some(half) = self.slower_half(place) {
                        let r = ratio(wall, half);
                        targets.push((
                            r <= COPY_PER_HALF,
                            format!(
                                "copy: {r:.2} x its slower half alone (at most {COPY_PER_HALF})"
                            ),
                        ));
                    }
                    self.push_rss(&mut targets, place, row, "copy");
                }
                Row::PushAgain => self.push_requests(
                    &mut targets,
                    "second push",
                    (place, row),
                    &[REQUESTS_PER_PUSHED_NAME],
                ),
                Row::CopyAgain => self.push_requests(
                    &mut targets,
                    "second copy",
                    (place, row),
                    &[REQUESTS_PER_PUSHED_NAME, REQUESTS_PER_NAME],
                ),
                Row::DirLink => {
                    targets.push((
                        wall <= DIRECTORY,
                        format!(
                            "from directory to directory, {place}: {} ms (at most {})",
                            rounded_ms(wall),
                            DIRECTORY.as_millis()
                        ),
                    ));
                    self.push_rss(&mut targets, place, row, "from directory to directory");
                }
                Row::DirCopy => {
                    self.push_rss(
                        &mut targets,
                        place,
                        row,
                        "from directory to directory, --link never",
                    );
                }
                _ => {}
            }
        }
        const SECOND_RUNS: [Row; 4] =
            [Row::ImgfsAgain, Row::LinkImgfsAgain, Row::PushAgain, Row::CopyAgain];
        if let Some(requests) = self.blob_requests(&SECOND_RUNS) {
            targets.push((
                requests == 0,
                format!("second runs asked for blobs {requests} times (never)"),
            ));
        }
        targets
    }

    fn push_cpu(&self, targets: &mut Vec<Target>, place: &'static str) {
        let cpu = |row| self.cpu(place, row).map(|cpu| cpu.as_secs_f64());
        if let (Some(imgfs), Some(curl), Some(hash)) =
            (cpu(Row::Imgfs), cpu(Row::Curl), cpu(Row::Hash))
        {
            let allowed = curl + hash;
            targets.push((imgfs <= allowed, format!("pull, {place}: {imgfs:.2} s of CPU (at most curl's and the hash's, {curl:.2} + {hash:.2} = {allowed:.2})")));
        }
    }

    fn push_rss(&self, targets: &mut Vec<Target>, place: &'static str, row: Row, what: &str) {
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

    fn push_second(&self, targets: &mut Vec<Target>, what: &str, key: Key, at_most: Duration) {
        let wall = self.wall(key.0, key.1).unwrap_or_default();
        targets.push((
            wall <= at_most,
            format!("{what}: {} ms (at most {})", rounded_ms(wall), at_most.as_millis()),
        ));
        self.push_requests(targets, what, key, &[REQUESTS_PER_NAME]);
    }

    /// Against so many for a name at the target, and at the source if there are two registries.
    fn push_requests(&self, targets: &mut Vec<Target>, what: &str, key: Key, per_name: &[u64]) {
        let sides = ["", " at the source"];
        for ((requests, per_name), side) in self.most_requests(key).zip(per_name).zip(sides) {
            let allowed = per_name * self.names;
            targets.push((
                requests <= allowed,
                format!("{what}: {requests} requests{side} (at most {allowed})"),
            ));
        }
    }
}
