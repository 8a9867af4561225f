//! Everything in an image that nobody has looked into.

use super::tar;
use crate::mount::timed;
use crate::report::Report;
use crate::tally::{Goal, Tally};
use crate::{Bench, Result};

/// What may be fetched for all files, in % of the layers' bytes.
const FETCHED_PERCENT: u64 = 105;

impl Bench {
    /// `tar` of a cold image, against copying, unpacking and reading it.
    pub(crate) fn scans_inside(&mut self, report: &mut Report) -> Result<()> {
        if !self.can_unpack("rootfs-scan") {
            return Ok(());
        }
        let subject = self.subject()?;
        let place = self.workshop.places().swap_remove(0);
        let bytes = subject.bytes(&self.layout);
        let mut tally = Tally::new(format!(
            "`tar -cf - ROOTFS | cat` of {} ({} MB), cold",
            subject.image,
            bytes / 1_000_000
        ));
        let mut most_fetched = 0;
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "skopeo, umoci, tar");
            self.ready(&place, &[self.registry.storage()])?;
            let unpacked = self.unpack(&place, &subject)?;
            let all = unpacked.then(tar(&place.path.join("bundle/rootfs")).run()?);
            tally.add("`skopeo copy`, `umoci unpack`, `tar` of that", None, all.wall);
            self.progress(round, place.name, "mount");
            self.ready(&place, &[self.registry.storage()])?;
            let mut daemon = None;
            let taken = timed(|| {
                let mounted = daemon.insert(self.mounted(&place.images_dir(), [""; 0])?);
                tar(&self.inside(mounted, &subject).join("rootfs/.")).run().map(drop)
            })?;
            tally.add("**mount, `tar` of `.imgfs`**", Some(Goal::Time(1.0)), taken);
            let daemon = daemon.ok_or("there is no mount")?;
            most_fetched = most_fetched.max(self.status(&daemon, &subject, "fetched_bytes")?);
        }
        report.tally(tally);
        let percent = (most_fetched * 100).div_ceil(bytes);
        report.bound("tar of a cold image: fetched, % of its layers", percent, FETCHED_PERCENT);
        place.clear()
    }
}
