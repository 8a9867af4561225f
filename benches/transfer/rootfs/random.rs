//! Small reads of a large file.

use std::fs;
use std::path::{Path, PathBuf};

use crate::measure::Job;
use crate::mount::{Pattern, fio};
use crate::places::read_all;
use crate::report::Report;
use crate::tally::{Goal, Tally};
use crate::{Bench, Result};

/// Bytes that are read, unless the file has fewer.
const MOST: u64 = 64 << 20;

impl Bench {
    /// Reads of 4 KiB: of the same bytes inside the image, and as a blob that the mount reads from a
    /// file, both in the page cache of the disk.
    pub(crate) fn random_reads_inside(&mut self, report: &mut Report) -> Result<()> {
        let subject = self.subject()?;
        let place = self.workshop.places().swap_remove(0);
        place.clear()?;
        let images_dir = place.images_dir();
        let daemon = self.mounted_image(&images_dir, &subject)?;
        let root = daemon.mountpoint.clone();
        let (size, large) = largest(&root)?.ok_or("an image without files")?;
        // From now on all of it is in the cache; and its like is a blob in a tree of its own.
        let blobs = place.path.join("native/blobs");
        fs::create_dir_all(&blobs)?;
        let native = blobs.join("copy");
        fs::copy(&large, &native)?;
        let large = large.strip_prefix(&root)?.to_owned();
        drop(daemon);
        let hash = place.path.join("hash");
        Job::new("sha256sum").arg(&native).output_to(&hash).run()?;
        let digest = format!("sha256:{}", fs::read_to_string(&hash)?.get(..64).unwrap_or_default());
        let native = {
            let path = blobs.join(&digest);
            fs::rename(native, &path)?;
            path
        };

        let pattern = Pattern::Random(size.min(MOST));
        let mut tally = Tally::new(format!(
            "{} MiB in random reads of 4 KiB of /{} ({} MB), on one processor",
            size.min(MOST) >> 20,
            large.display(),
            size / 1_000_000
        ));
        let warm = |directory: &Path| -> Result<()> {
            self.workshop.settle()?;
            read_all(directory, &mut vec![0; 1 << 20])
        };
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "random reads");
            let native_dir = place.path.join("native");
            warm(&native_dir)?;
            let daemon = self.mounted(&native_dir, ["--offline", "--no-passthrough"])?;
            daemon.pin()?;
            tally.add("a blob, no passthrough", None, fio(&daemon.blob(&digest), pattern)?);
            drop(daemon);
            tally.add("the file itself", None, fio(&native, pattern)?);
            warm(&images_dir)?;
            let goal = Some(Goal::Speed(0.5));
            let daemon = self.mounted(&images_dir, [""; 0])?;
            daemon.pin()?;
            let path = self.inside(&daemon, &subject).join("rootfs").join(&large);
            tally.add("**mount**, `.imgfs`", goal, fio(&path, pattern)?);
            drop(daemon);
            let daemon = self.mounted_image(&images_dir, &subject)?;
            daemon.pin()?;
            let path = daemon.mountpoint.join(&large);
            tally.add("**`mount --image`**", goal, fio(&path, pattern)?);
        }
        report.tally(tally);
        place.clear()
    }
}

/// The largest regular file in a directory, and its size.
fn largest(directory: &Path) -> Result<Option<(u64, PathBuf)>> {
    let mut found = None;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let candidate = if kind.is_dir() {
            largest(&entry.path())?
        } else if kind.is_file() {
            Some((entry.metadata()?.len(), entry.path()))
        } else {
            None
        };
        found = found.max(candidate);
    }
    Ok(found)
}
