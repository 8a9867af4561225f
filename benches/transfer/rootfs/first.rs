//! The first file that is read of an image.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use flate2::bufread::MultiGzDecoder;

use super::{Subject, drop_cache};
use crate::measure::Job;
use crate::report::Report;
use crate::tally::Tally;
use crate::{Bench, Result};

/// Small files have so many bytes at most.
const SMALL: u64 = 16 << 10;

/// What the first read of an image that has been looked into before may take.
const REQUESTS: u64 = 3;
const KIB: u64 = 2560;

impl Bench {
    /// `cat` of a small file of the top layer: of a cold image, and of one that has been looked into.
    pub(crate) fn first_reads_inside(&mut self, report: &mut Report) -> Result<()> {
        let subject = self.subject()?;
        let files = self.small_files(&subject)?;
        let top = subject.top(&self.layout)?;
        let place = self.workshop.places().swap_remove(0);
        let host = self.registry.host();
        let images_dir = place.images_dir();

        let megabytes = top.size / 1_000_000;
        let mut cold = Tally::new(format!(
            "The first `cat` of a small file in the top layer ({megabytes} MB) of {}, nothing there",
            subject.image
        ));
        let mut indexed = Tally::new("The first `cat` in it with the index there, and no data");
        let (mut most_requests, mut most_bytes) = (0, 0);
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "first reads");
            self.ready(&place, &[self.registry.storage()])?;
            let curl = self.curl_blobs(&place, &host, std::slice::from_ref(top))?;
            cold.add("`curl` of the layer to a file", None, curl);
            let first_and_last = [&files[0], &files[files.len() - 1]];
            for (file, which) in first_and_last.into_iter().zip(["first", "last"]) {
                self.ready(&place, &[self.registry.storage()])?;
                let daemon = self.mounted(&images_dir, [""; 0])?;
                let path = self.inside(&daemon, &subject).join("rootfs").join(file);
                let taken = Job::new("cat").arg(path).run()?.wall;
                cold.add(&format!("**mount**, the {which} one in the layer"), None, taken);
            }
            // All of it is passed and indexed before this is there.
            drop(self.mounted_image(&images_dir, &subject)?);
            drop_cache(&images_dir)?;
            self.workshop.settle()?;
            indexed.add("`curl` of the layer to a file", None, curl);
            let daemon = self.mounted(&images_dir, [""; 0])?;
            let file = self.inside(&daemon, &subject).join("rootfs").join(&files[files.len() / 2]);
            let before = self.registry.requests()?.all;
            indexed.add("**mount**", None, Job::new("cat").arg(&file).run()?.wall);
            most_requests = most_requests.max(self.registry.requests()?.all - before);
            most_bytes = most_bytes.max(self.status(&daemon, &subject, "fetched_bytes")?);
            indexed.add("**mount**, again", None, Job::new("cat").arg(&file).run()?.wall);
        }
        report.tally(cold);
        report.tally(indexed);
        report.bound("first `cat` with the index there: requests", most_requests, REQUESTS);
        report.bound("first `cat` with the index there: KiB", most_bytes.div_ceil(1024), KIB);
        place.clear()
    }

    /// The small files in the subject's top layer, in its order.
    pub(super) fn small_files(&self, subject: &Subject) -> Result<Vec<PathBuf>> {
        let layer = File::open(self.layout.file_of(&subject.top(&self.layout)?.digest))?;
        let mut layer = tar::Archive::new(MultiGzDecoder::new(BufReader::new(layer)));
        let mut files = Vec::new();
        for entry in layer.entries()? {
            let entry = entry?;
            let path = entry.path()?.into_owned();
            let whiteout =
                path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".wh."));
            if entry.header().entry_type().is_file()
                && (1..=SMALL).contains(&entry.size())
                && !whiteout
            {
                files.push(path);
            }
        }
        if files.is_empty() {
            return Err(format!("{} has no small file in its top layer", subject.image).into());
        }
        Ok(files)
    }
}
