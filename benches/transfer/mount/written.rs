//! What is written into a mount: an import by `cp`, and a push by `cp`.

use std::fs;

use super::timed;
use crate::measure::Job;
use crate::report::Report;
use crate::tally::{Goal, Tally};
use crate::{Bench, Result};

/// Keeps the names below the registry.
const DEST: &str = "{{ .module.image.reference.repository }}:{{ .module.image.reference.tag }}";

impl Bench {
    /// `cp -a` of all images into a mount, against `cp -a` into a directory and a verification of that.
    pub(crate) fn copy_in(&mut self, report: &mut Report) -> Result<()> {
        let source = self.workshop.path().join("written");
        self.imgfs_pull(&source, &self.registry.host()).run()?;
        let place = self.workshop.places().swap_remove(0);
        let mut tally = Tally::new(format!("All images, written, {}", place.name));
        let mut memory = 0;
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "cp -a into a mount");
            self.ready(&place, &[&source])?;
            let plain = place.images_dir();
            let copied = timed(|| {
                Job::new("cp").arg("-a").arg(&source).arg(&plain).run()?;
                fs::remove_dir_all(plain.join("blobs/.imgfs"))?;
                let verify = ["verify", "--full", "--quiet", "--images-dir"];
                Job::new(&self.imgfs).args(verify).arg(&plain).run()?;
                Ok(())
            });
            tally.add("`cp -a` to a directory, then `imgfs verify`", None, copied?);
            self.ready(&place, &[&source])?;
            let target = place.images_dir();
            let daemon = self.mounted(&target, ["--offline", "--write", "local"])?;
            let cp = Job::new("cp").arg("-a").arg(source.join(".")).arg(&daemon.mountpoint);
            let written = timed(|| cp.run().map(drop))?;
            tally.add("**`cp -a DIR/. MOUNT`**", Some(Goal::Time(1.3)), written);
            let again = Job::new("rsync").arg("-a").arg(source.join("")).arg(&daemon.mountpoint);
            tally.add("**`rsync -a DIR/ MOUNT`** after it", None, again.run()?.wall);
            memory = memory.max(daemon.rss_kib()?.1);
            self.layout.check_sizes(&target.join("blobs"))?;
        }
        eprintln!("bench: the mount had {} MiB at most", memory / 1024);
        report.tally(tally);
        fs::remove_dir_all(&source)?;
        place.clear()
    }

    /// `cp -a` of all images into a mount that pushes them, against `imgfs push`.
    pub(crate) fn push_by_copy(&mut self, report: &mut Report) -> Result<()> {
        let source = self.workshop.path().join("written");
        self.imgfs_pull(&source, &self.registry.host()).run()?;
        let place = self.workshop.quietest();
        // The registry fills the tmpfs.
        let disk = self.workshop.places().swap_remove(0);
        let mut tally = Tally::new(format!("All images, pushed, {}", place.name));
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "push and cp -a");
            let target = self.empty_target(&place, &[&source])?;
            let dest = format!("{}/{DEST}", target.host());
            let push = Job::new(&self.imgfs)
                .args(["push", "--plain-http", "--quiet", "--images-dir"])
                .arg(&source)
                .args(["--dest", &dest]);
            tally.add("`imgfs push`", None, push.run()?.wall);
            drop(target);
            // What `cp` cannot go below: it writes all blobs before it writes the first manifest, and the end of each
            // image waits for its push.
            let target = self.empty_target(&place, &[&source])?;
            disk.clear()?;
            let in_turn = timed(|| {
                Job::new("cp").arg("-a").arg(&source).arg(disk.images_dir()).run()?;
                let host = self.registry.host();
                for (image, name) in self.layout.images_at(&host).zip(self.layout.images()) {
                    let dest = format!("{}/{name}", target.host());
                    let push = ["push", "--plain-http", "--quiet", "--dest", &dest, "--images-dir"];
                    Job::new(&self.imgfs).args(push).arg(&source).arg(image).run()?;
                }
                Ok(())
            });
            let name = "`cp -a` to a directory, then `imgfs push` of one image after the other";
            tally.add(name, None, in_turn?);
            drop(target);
            let target = self.empty_target(&place, &[&source])?;
            let dest = format!("{}/{DEST}", target.host());
            disk.clear()?;
            let written = disk.images_dir();
            let through = ["--write", "through", "--registries", &target.host(), "--dest", &dest];
            let daemon = self.mounted(&written, through)?;
            let cp = Job::new("cp").arg("-a").arg(source.join(".")).arg(&daemon.mountpoint);
            let copied = timed(|| cp.run().map(drop))?;
            tally.add("**`cp -a DIR/. MOUNT`**, `--write through`", Some(Goal::Time(1.2)), copied);
            drop(daemon);
            self.layout.check_stored(target.storage())?;
        }
        report.tally(tally);
        fs::remove_dir_all(&source)?;
        disk.clear()?;
        place.clear()
    }
}
