//! What is local: one large file by `fio`, and very many entries by `find`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fio::{Pattern, fio};
use crate::measure::Job;
use crate::report::Report;
use crate::tally::{Goal, Tally};
use crate::{Bench, Result};

/// Entries of the tree that `find` walks: tags in repositories.
const REPOSITORIES: usize = 100;
const TAGS: usize = 1000;

impl Bench {
    /// The largest blob, whole in a directory: the file itself, and through the mount.
    pub(crate) fn local_reads(&mut self, report: &mut Report) -> Result<()> {
        let place = self.workshop.places().swap_remove(0);
        place.clear()?;
        self.imgfs_pull(&place.images_dir(), &self.registry.host()).run()?;
        let digest = &self.layout.blobs[0].digest;
        let native = place.images_dir().join("blobs").join(digest);
        for block in ["1M", "128k"] {
            let mut cold = Tally::new(format!("A local blob, blocks of {block}, from the disk"));
            let mut hot = Tally::new(format!("A local blob, blocks of {block}, read before"));
            for round in 0..self.options.rounds {
                self.progress(round, place.name, &format!("local reads of {block}"));
                let mut measure = |name: &str, path: &Path, goals: [Option<Goal>; 2]| {
                    self.workshop.settle()?;
                    cold.add(name, goals[0], fio(path, Pattern::Sequential(block))?);
                    hot.add(name, goals[1], fio(path, Pattern::Sequential(block))?);
                    Ok::<_, Box<dyn std::error::Error>>(())
                };
                measure("the file itself", &native, [None, None])?;
                let daemon = self.mounted(&place.images_dir(), ["--offline"])?;
                let goal = Some(Goal::Speed(0.95));
                measure("**mount**, passthrough", &daemon.blob(digest), [goal, goal])?;
                drop(daemon);
                let daemon =
                    self.mounted(&place.images_dir(), ["--offline", "--no-passthrough"])?;
                let goals = [Some(Goal::Speed(0.65)), None];
                measure("**mount**, no passthrough", &daemon.blob(digest), goals)?;
            }
            report.tally(cold);
            report.tally(hot);
        }
        place.clear()
    }

    /// `find` over 100,000 files.
    pub(crate) fn many_entries(&mut self, report: &mut Report) -> Result<()> {
        let place = self.workshop.places().swap_remove(0);
        place.clear()?;
        let tree = place.images_dir();
        let small = self.layout.images_at(&self.registry.host()).next().ok_or("no image")?;
        Job::new(&self.imgfs)
            .args(["pull", "--plain-http", "--quiet", "--images-dir"])
            .arg(&tree)
            .arg(&small)
            .run()?;
        let tags = tags_of(&tree, &small);
        let tag = fs::read_dir(&tags)?.next().ok_or("no tag")??.path();
        for repository in 0..REPOSITORIES {
            let directory =
                tree.join(format!("registry.example/project/app-{repository}/manifests"));
            fs::create_dir_all(&directory)?;
            for number in 0..TAGS {
                fs::copy(&tag, directory.join(format!("1.{number}")))?;
            }
        }
        let mut first = Tally::new("`find -type f -printf '%s %p\\n'` over 100,000 files, first");
        let mut again = Tally::new("the same, again");
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "find");
            self.workshop.settle()?;
            let daemon = self.mounted(&tree, ["--offline"])?;
            // Both from a warm disk: what is compared is the way, and the daemon reads the same directories.
            find(&tree)?;
            first.add("ext4", None, find(&tree)?);
            again.add("ext4", None, find(&tree)?);
            first.add("**mount**", Some(Goal::Time(3.5)), find(&daemon.mountpoint)?);
            again.add("**mount**", Some(Goal::Time(1.2)), find(&daemon.mountpoint)?);
        }
        report.tally(first);
        report.tally(again);
        place.clear()
    }
}

/// Where the tags of an image are.
fn tags_of(tree: &Path, image: &str) -> PathBuf {
    let repository = image.rsplit_once(':').map_or(image, |(repository, _)| repository);
    tree.join(repository).join("manifests")
}

fn find(directory: &Path) -> Result<Duration> {
    let job = Job::new("find").arg(directory).args(["-type", "f", "-printf", "%s %p\\n"]);
    Ok(job.run()?.wall)
}
