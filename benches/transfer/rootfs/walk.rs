//! Everything in an image that has been looked into before.

use std::path::Path;
use std::time::Duration;

use super::overlay::Overlay;
use super::tar;
use crate::measure::Job;
use crate::mount::timed;
use crate::report::Report;
use crate::tally::{Goal, Tally};
use crate::{Bench, Result};

impl Bench {
    /// `find` with the index there, and `tar` with the data there, against an overlay of the same.
    pub(crate) fn walks_inside(&mut self, report: &mut Report) -> Result<()> {
        if !self.can_unpack("rootfs-walk") {
            return Ok(());
        }
        let subject = self.subject()?;
        let place = self.workshop.places().swap_remove(0);
        place.clear()?;
        let images_dir = place.images_dir();
        self.unpack(&place, &subject)?;
        let unpacked = place.path.join("bundle/rootfs");
        let entries = count(&unpacked)?;
        // Data as well as indexes.
        let daemon = self.mounted_image(&images_dir, &subject)?;
        tar(&daemon.mountpoint).run()?;
        drop(daemon);

        let title = format!("`find ROOTFS | wc -l`, {entries} entries of {}", subject.image);
        let mut find_first = Tally::new(format!("{title}, first, nothing in the page cache"));
        let mut find_again = Tally::new("`find` again");
        let mut tar_cold = Tally::new("`tar -cf - ROOTFS | cat`, nothing in the page cache");
        let mut tar_hot = Tally::new("`tar` again");
        for round in 0..self.options.rounds {
            for contender in [Contender::Overlay, Contender::Inside, Contender::Alone] {
                self.progress(round, place.name, contender.name());
                let mut walk = |tree: &Path| -> Result<Duration> {
                    let (name, goals) = (contender.name(), contender.goals());
                    let first = find(tree, entries)?;
                    find_first.add(name, goals[0], first);
                    find_again.add(name, goals[1], find(tree, entries)?);
                    Ok(first)
                };
                self.workshop.settle()?;
                match contender {
                    Contender::Overlay => {
                        walk(&Overlay::mount(&place, &unpacked)?.mountpoint)?;
                    }
                    Contender::Inside => {
                        let daemon = self.mounted(&images_dir, [""; 0])?;
                        walk(&self.inside(&daemon, &subject).join("rootfs/."))?;
                    }
                    Contender::Alone => {
                        // It reads the indexes before it is there, and not when somebody looks.
                        let mut daemon = None;
                        let mounting = timed(|| {
                            daemon = Some(self.mounted_image(&images_dir, &subject)?);
                            Ok(())
                        })?;
                        let first = walk(&daemon.ok_or("there is no mount")?.mountpoint)?;
                        find_first.add("the same and mounting it", None, mounting + first);
                    }
                }
                let mut read = |tree: &Path| -> Result<()> {
                    let (name, goals) = (contender.name(), contender.goals());
                    tar_cold.add(name, goals[2], tar(tree).run()?.wall);
                    tar_hot.add(name, goals[3], tar(tree).run()?.wall);
                    Ok(())
                };
                self.workshop.settle()?;
                match contender {
                    Contender::Overlay => {
                        read(&Overlay::mount(&place, &unpacked)?.mountpoint)?;
                    }
                    Contender::Inside => {
                        let daemon = self.mounted(&images_dir, [""; 0])?;
                        read(&self.inside(&daemon, &subject).join("rootfs/."))?;
                    }
                    Contender::Alone => {
                        read(&self.mounted_image(&images_dir, &subject)?.mountpoint)?;
                    }
                }
            }
        }
        for tally in [find_first, find_again, tar_cold, tar_hot] {
            report.tally(tally);
        }
        place.clear()
    }
}

/// Who shows the files.
#[derive(Clone, Copy)]
enum Contender {
    Overlay,
    Inside,
    Alone,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlayfs",
            Self::Inside => "**mount**, `.imgfs`",
            Self::Alone => "**`mount --image`**",
        }
    }

    /// For `find` and again, and for `tar` and again.
    fn goals(self) -> [Option<Goal>; 4] {
        match self {
            Self::Overlay => [None; 4],
            Self::Inside | Self::Alone => [3.5, 1.2, 1.5, 1.5].map(|most| Some(Goal::Time(most))),
        }
    }
}

/// Walks a tree, which must have so many entries.
fn find(tree: &Path, entries: usize) -> Result<Duration> {
    const FIND: &str = r#"test "$(find "$1" | wc -l)" = "$2""#;
    let job = Job::new("sh").args(["-c", FIND, "sh"]).arg(tree).arg(entries.to_string());
    Ok(job.run().map_err(|e| format!("{}: not {entries} entries: {e}", tree.display()))?.wall)
}

/// Entries in and below a directory, with itself.
fn count(directory: &Path) -> Result<usize> {
    let mut entries = 1;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        entries += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(entries)
}
