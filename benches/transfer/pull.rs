//! Pulling and verifying: against curl, openssl and cat.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::link::{Link, LinkProxy, Sharing};
use crate::measure::{Job, Usage};
use crate::places::Place;
use crate::report::{Report, Twice};
use crate::rows::Row;
use crate::{Bench, Result};

impl Bench {
    /// curl, imgfs and openssl on the same bytes, into every place.
    pub(crate) fn loopback(&mut self, report: &mut Report) -> Result<()> {
        let host = self.registry.host();
        for round in 0..self.options.rounds {
            for place in self.workshop.places() {
                let mut contenders = vec![Contender::Curl, Contender::Imgfs];
                if self.options.peers {
                    contenders.push(Contender::Skopeo);
                }
                // Another one is first each time: whoever follows a big writer pays for it.
                let shift = round as usize % contenders.len();
                contenders.rotate_left(shift);
                for contender in contenders {
                    self.progress(round, place.name, contender.name());
                    match contender {
                        Contender::Curl => {
                            let usage = self.curl(&place, &host)?;
                            report.add(Row::Curl, place.name, usage);
                            if place.on_disk {
                                // As `--sync end` does. Neither curl nor imgfs without it waits for the disk.
                                let start = Instant::now();
                                place.sync()?;
                                report.add(
                                    Row::CurlSynced,
                                    place.name,
                                    usage.longer_by(start.elapsed()),
                                );
                            }
                        }
                        Contender::Imgfs => {
                            let pulled = self.pull_twice(&place, &host)?;
                            report.add_twice(Row::Imgfs, Row::ImgfsAgain, place.name, &pulled);
                            report.add(Row::Hash, place.name, self.hash(&place.images_dir(), 2)?);
                        }
                        Contender::Skopeo => {
                            report.add(Row::Skopeo, place.name, self.skopeo(&place, &host)?);
                        }
                    }
                }
                place.clear()?;
            }
        }
        Ok(())
    }

    /// The same over a link with a round-trip time and a rate.
    pub(crate) fn link(&mut self, report: &mut Report) -> Result<()> {
        let link = Link {
            rtt: Duration::from_millis(self.options.rtt_ms),
            bytes_per_second: self.options.mbit * 125_000,
            sharing: Sharing::All,
        };
        report.link(link);
        let place = self.workshop.quietest();
        for round in 0..self.options.rounds {
            // A new proxy for each: nobody inherits warm connections or the other's processor time.
            self.progress(round, "link", "curl");
            let proxy = LinkProxy::start(&self.registry.host(), link)?;
            report.add(Row::LinkCurl, place.name, self.curl(&place, &proxy.host())?);
            drop(proxy);
            self.progress(round, "link", "imgfs");
            let proxy = LinkProxy::start(&self.registry.host(), link)?;
            let pulled = self.pull_twice(&place, &proxy.host())?;
            report.link_cpu(proxy.cpu()?);
            report.add_twice(Row::LinkImgfs, Row::LinkImgfsAgain, place.name, &pulled);
        }
        place.clear()
    }

    /// `verify --full` against openssl on all cores, and from the disk against `cat`, all with a cold cache.
    pub(crate) fn verify(&mut self, report: &mut Report) -> Result<()> {
        let cores = std::thread::available_parallelism()?.get();
        for place in self.workshop.places() {
            place.clear()?;
            self.imgfs_pull(&place.images_dir(), &self.registry.host()).run()?;
            let tree = place.images_dir();
            for round in 0..self.options.rounds {
                self.progress(round, place.name, "verify");
                if place.on_disk {
                    self.workshop.settle()?;
                    report.add(
                        Row::Cat,
                        place.name,
                        Job::new("sh")
                            .args(["-c", "cat blobs/sha*:* >/dev/null"])
                            .within(&tree)
                            .run()?,
                    );
                }
                self.workshop.settle()?;
                report.add(Row::HashAllCores, place.name, self.hash(&tree, cores)?);
                self.workshop.settle()?;
                let verify =
                    Job::new(&self.imgfs).args(["verify", "--full", "--images-dir"]).arg(&tree);
                report.add(Row::Verify, place.name, verify.run()?);
            }
            place.clear()?;
        }
        Ok(())
    }

    pub(crate) fn curl(&self, place: &Place, host: &str) -> Result<Usage> {
        let config = self.workshop.path().join("curl.conf");
        std::fs::write(&config, self.layout.curl_config(host))?;
        self.ready(place, &[self.registry.storage()])?;
        let curl = Job::new("curl")
            .args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*"])
            .args(["--parallel", "--parallel-max", "8", "--config"])
            .arg(&config)
            .within(&place.path);
        let usage = curl.run()?;
        self.layout.check_sizes(&place.path)?;
        Ok(usage)
    }

    pub(crate) fn imgfs_pull(&self, images_dir: &Path, host: &str) -> Job {
        self.imgfs_pull_with(&self.imgfs, images_dir, host)
    }

    pub(crate) fn imgfs_pull_with(&self, imgfs: &Path, images_dir: &Path, host: &str) -> Job {
        Job::new(imgfs)
            .args(["pull", "--plain-http", "--quiet", "--images-dir"])
            .arg(images_dir)
            .args(self.layout.images_at(host))
    }

    fn pull_twice(&self, place: &Place, host: &str) -> Result<Twice> {
        self.ready(place, &[self.registry.storage()])?;
        let start = self.registry.requests()?;
        let first = self.imgfs_pull(&place.images_dir(), host).run()?;
        let between = self.registry.requests()?;
        self.layout.check_sizes(&place.images_dir().join("blobs"))?;
        let second = self.imgfs_pull(&place.images_dir(), host).run()?;
        let end = self.registry.requests()?;
        Ok(Twice {
            first,
            first_requests: between.since(&start),
            second,
            second_requests: end.since(&between),
        })
    }

    /// Hashes the tree's blobs with `processes` of openssl, and checks what was pulled by the way.
    fn hash(&self, images_dir: &Path, processes: usize) -> Result<Usage> {
        let list = self.workshop.path().join("hash.list");
        std::fs::write(&list, self.layout.balanced_lists(processes))?;
        let output = self.workshop.path().join("hash.out");
        let usage = Job::new("xargs")
            .arg("--arg-file")
            .arg(&list)
            .args([
                "--max-procs",
                &processes.to_string(),
                "--max-lines=1",
                "openssl",
                "dgst",
                "-sha256",
                "-r",
            ])
            .within(&images_dir.join("blobs"))
            .output_to(&output)
            .run()?;
        self.layout.check_digests(&std::fs::read_to_string(&output)?)?;
        Ok(usage)
    }

    fn skopeo(&self, place: &Place, host: &str) -> Result<Usage> {
        const EACH: &str = r#"n=0; for i; do n=$((n + 1)); skopeo --insecure-policy copy --quiet --all --src-tls-verify=false "docker://$i" "oci:layout:i$n" || exit; done"#;
        self.ready(place, &[self.registry.storage()])?;
        Job::new("sh")
            .args(["-c", EACH, "sh"])
            .args(self.layout.images_at(host))
            .within(&place.path)
            .run()
    }
}

#[derive(Clone, Copy)]
enum Contender {
    Curl,
    Imgfs,
    Skopeo,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Imgfs => "imgfs",
            Self::Skopeo => "skopeo",
        }
    }
}
