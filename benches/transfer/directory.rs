//! Copying from directory to directory on one file system: linked, and byte for byte against `cp -a`.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use crate::measure::Job;
use crate::places::Place;
use crate::report::Report;
use crate::rows::Row;
use crate::{Bench, Result};

impl Bench {
    pub(crate) fn directories(&mut self, report: &mut Report) -> Result<()> {
        let mut contenders = vec![Row::DirLink, Row::DirCp, Row::DirCopy];
        for place in self.workshop.places() {
            place.clear()?;
            let source = place.images_dir();
            self.imgfs_pull(&source, &self.registry.host()).run()?;
            let others = Place { path: place.path.join("others"), ..place.clone() };
            std::fs::create_dir(&others.path)?;
            let target = others.images_dir();
            for round in 0..self.options.rounds {
                contenders.rotate_left(1);
                for row in &contenders {
                    self.progress(round, place.name, row.name());
                    // A link more or less to a file, as the last round made and removed, makes imgfs doubt it:
                    // what is measured is a source that is known to be whole.
                    others.clear()?;
                    Job::new(&self.imgfs)
                        .args(["verify", "--quiet", "--images-dir"])
                        .arg(&source)
                        .run()?;
                    self.ready(&others, &[])?;
                    let job = match row {
                        Row::DirCp => Job::new("cp").arg("-a").arg(&source).arg(&target),
                        _ => Job::new(&self.imgfs)
                            .args(["copy", "--all", "--quiet", "--from"])
                            .arg(&source)
                            .arg("--to")
                            .arg(&target)
                            .args(["--link", if *row == Row::DirLink { "auto" } else { "never" }]),
                    };
                    let usage = job.run()?;
                    report.add(*row, place.name, usage);
                    self.layout.check_sizes(&target.join("blobs"))?;
                    let shared = shared(&source.join("blobs"), &target.join("blobs"))?;
                    report.shared(*row, place.name, shared);
                    if *row == Row::DirCp && place.on_disk {
                        // As with curl: imgfs makes sure that it survives a power cut.
                        let start = Instant::now();
                        place.sync()?;
                        let synced = usage.longer_by(start.elapsed());
                        report.add(Row::DirCpSynced, place.name, synced);
                    }
                }
            }
            place.clear()?;
        }
        Ok(())
    }
}

/// How many files of `b` are files of `a` under a second name. (Reflinks are not seen.)
fn shared(a: &Path, b: &Path) -> Result<u64> {
    let inodes = |path: &Path| -> Result<BTreeSet<u64>> {
        let mut inodes = BTreeSet::new();
        for entry in std::fs::read_dir(path)? {
            let metadata = entry?.metadata()?;
            if metadata.is_file() {
                inodes.insert(metadata.ino());
            }
        }
        Ok(inodes)
    };
    Ok(inodes(a)?.intersection(&inodes(b)?).count() as u64)
}
