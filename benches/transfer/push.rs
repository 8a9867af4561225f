//! Pushing into an empty registry, and copying from registry to registry: against curl's uploads.

use std::path::Path;

use crate::measure::{Job, Usage};
use crate::places::Place;
use crate::registry::Registry;
use crate::report::{Report, Twice};
use crate::rows::Row;
use crate::{Bench, Result};

/// Keeps the names below the registry.
const DEST: &str =
    "{{ .module.image.reference.repository }}:{{ .module.image.reference.reference }}";

/// What imgfs did twice, and what it asked the registry that it read from.
struct Transferred {
    at_target: Twice,
    at_source: Twice,
}

impl Bench {
    /// `imgfs push` from a directory, against uploads by curl.
    pub(crate) fn push(&mut self, report: &mut Report) -> Result<()> {
        let source = self.workshop.path().join("source");
        self.imgfs_pull(&source, &self.registry.host()).run()?;
        let dirs = self.workshop.path().join("skopeo");
        let mut contenders = vec![Row::PushCurl2, Row::PushCurl4, Row::Push];
        if self.options.peers {
            self.skopeo_directories(&dirs)?;
            contenders.push(Row::PushSkopeo);
        }
        let layout_blobs = self.layout.path.join("blobs");
        let place = self.workshop.quietest();
        for round in 0..self.options.rounds {
            contenders.rotate_left(1);
            for row in &contenders {
                self.progress(round, place.name, row.name());
                match row {
                    Row::PushCurl2 | Row::PushCurl4 => {
                        let target = self.empty_target(&place, &[&layout_blobs])?;
                        let parallel = if *row == Row::PushCurl2 { 2 } else { 4 };
                        let usage = self.curl_upload(&target, parallel)?;
                        report.add_requests(*row, place.name, usage, target.requests()?);
                    }
                    Row::Push => {
                        let target = self.empty_target(&place, &[&source])?;
                        let push = Job::new(&self.imgfs)
                            .args(["push", "--plain-http", "--quiet", "--images-dir"])
                            .arg(&source)
                            .args(["--dest", &format!("{}/{DEST}", target.host())]);
                        let pushed = self.twice(&push, &target)?;
                        report.add_twice(*row, Row::PushAgain, place.name, &pushed.at_target);
                    }
                    _ => {
                        let target = self.empty_target(&place, &[&dirs])?;
                        const EACH: &str = r#"host=$1; shift; n=0; for i; do n=$((n + 1)); skopeo --insecure-policy copy --quiet --all --dest-tls-verify=false "dir:$n" "docker://$host/$i" || exit; done"#;
                        let usage = Job::new("sh")
                            .args(["-c", EACH, "sh", &target.host()])
                            .args(self.layout.images())
                            .within(&dirs)
                            .run()?;
                        report.add_requests(*row, place.name, usage, target.requests()?);
                    }
                }
            }
        }
        place.clear()
    }

    /// `imgfs copy` from registry to registry, against each half of it alone.
    pub(crate) fn copy(&mut self, report: &mut Report) -> Result<()> {
        let mut contenders = vec![Row::CopyRead, Row::CopyCurl2, Row::CopyCurl4, Row::Copy];
        if self.options.peers {
            contenders.push(Row::CopySkopeo);
        }
        let layout_blobs = self.layout.path.join("blobs");
        let stored = self.registry.storage().to_owned();
        let host = self.registry.host();
        let place = self.workshop.quietest();
        for round in 0..self.options.rounds {
            contenders.rotate_left(1);
            for row in &contenders {
                self.progress(round, place.name, row.name());
                match row {
                    Row::CopyRead => {
                        self.ready(&place, &[&stored])?;
                        report.add(*row, place.name, self.curl_to_nowhere(&host)?);
                    }
                    Row::CopyCurl2 | Row::CopyCurl4 => {
                        let target = self.empty_target(&place, &[&layout_blobs])?;
                        let parallel = if *row == Row::CopyCurl2 { 2 } else { 4 };
                        let usage = self.curl_upload(&target, parallel)?;
                        report.add_requests(*row, place.name, usage, target.requests()?);
                    }
                    Row::Copy => {
                        let target = self.empty_target(&place, &[&stored])?;
                        let copy = Job::new(&self.imgfs)
                            .args(["copy", "--plain-http", "--quiet"])
                            .args(["--from", &format!("registry://{host}")])
                            .args(["--to", &format!("registry://{}", target.host())])
                            .args(self.layout.images());
                        let copied = self.twice(&copy, &target)?;
                        report.add_twice(*row, Row::CopyAgain, place.name, &copied.at_target);
                        report.add_source(*row, Row::CopyAgain, place.name, &copied.at_source);
                    }
                    _ => {
                        let target = self.empty_target(&place, &[&stored])?;
                        const EACH: &str = r#"from=$1 to=$2; shift 2; for i; do skopeo --insecure-policy copy --quiet --all --src-tls-verify=false --dest-tls-verify=false "docker://$from/$i" "docker://$to/$i" || exit; done"#;
                        let usage = Job::new("sh")
                            .args(["-c", EACH, "sh", &host, &target.host()])
                            .args(self.layout.images())
                            .run()?;
                        report.add_requests(*row, place.name, usage, target.requests()?);
                    }
                }
            }
        }
        place.clear()
    }

    /// A registry with nothing in it, on a port that nobody has ever heard of.
    pub(crate) fn empty_target(&self, place: &Place, warm: &[&Path]) -> Result<Registry> {
        self.ready(place, warm)?;
        let registry = Registry::empty(&place.path.join("registry"))?;
        Ok(registry)
    }

    /// Runs a job into the target twice, and checks what came there.
    fn twice(&self, job: &Job, target: &Registry) -> Result<Transferred> {
        let requests = || -> Result<_> { Ok((target.requests()?, self.registry.requests()?)) };
        let start = requests()?;
        let first = job.run()?;
        let between = requests()?;
        self.layout.check_stored(target.storage())?;
        let second = job.run()?;
        let end = requests()?;
        let at_target = Twice {
            first,
            first_requests: between.0.since(&start.0),
            second,
            second_requests: end.0.since(&between.0),
        };
        let at_source = Twice {
            first_requests: between.1.since(&start.1),
            second_requests: end.1.since(&between.1),
            ..at_target.clone()
        };
        Ok(Transferred { at_target, at_source })
    }

    /// The reading half: each unique blob once, thrown away.
    fn curl_to_nowhere(&self, host: &str) -> Result<Usage> {
        let config = self.workshop.path().join("curl.conf");
        let mut text = self.layout.curl_config(host);
        for blob in &self.layout.blobs {
            text = text.replace(&format!("output = {}", blob.digest), "output = /dev/null");
        }
        std::fs::write(&config, text)?;
        Job::new("curl")
            .args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*"])
            .args(["--parallel", "--parallel-max", "8", "--config"])
            .arg(&config)
            .run()
    }

    /// The images where every skopeo can push them from. (1.9 cannot read a Docker manifest in an OCI layout.)
    fn skopeo_directories(&self, directory: &Path) -> Result<()> {
        const EACH: &str = r#"n=0; for i; do n=$((n + 1)); skopeo --insecure-policy copy --quiet --all --src-tls-verify=false "docker://$i" "dir:$n" || exit; done"#;
        std::fs::create_dir(directory)?;
        Job::new("sh")
            .args(["-c", EACH, "sh"])
            .args(self.layout.images_at(&self.registry.host()))
            .within(directory)
            .run()?;
        Ok(())
    }
}
