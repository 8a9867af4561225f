//! What a pull costs: imgfs against the cheapest client there can be, on the same bytes, in the same minutes.
//!
//! `scripts/bench` makes the images and runs this. It starts Debian's `docker-registry` with them and then
//! goes round and round: `curl` fetching the same unique blobs and verifying nothing, `imgfs pull` into an
//! empty directory, SHA-256 of the same bytes by `openssl`. Neighbours in time share the machine's mood, so
//! the medians' ratios mean something where the seconds do not. Output: Markdown tables, then the targets.

mod layout;
mod link;
mod measure;
mod places;
mod registry;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use layout::Layout;
use link::{Link, LinkProxy};
use measure::{Job, Usage};
use places::{Place, Workshop};
use registry::Registry;
use report::{Pulled, Report, Row};

/// Errors end the run with their text; nothing here is recovered from.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(
    bin_name = "scripts/bench",
    about = "Measures imgfs pull and verify against curl and openssl"
)]
struct Options {
    /// OCI layout with the images (scripts/make-images makes one)
    #[arg(long, value_name = "DIR")]
    layout: Option<PathBuf>,
    /// Where the registry's storage with these images is kept [default: LAYOUT.registry]
    #[arg(long, value_name = "DIR")]
    seeded: Option<PathBuf>,
    /// Scratch directory, on the disk to be measured; removed at the end [default: in the temporary directory]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Rounds; every contender runs once in each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Also skopeo, image by image
    #[arg(long)]
    peers: bool,
    /// Round-trip time of the slow link
    #[arg(long, value_name = "MS", default_value_t = 20)]
    rtt_ms: u64,
    /// Rate of the slow link
    #[arg(long, value_name = "MBIT", default_value_t = 1000)]
    mbit: u64,
    /// The imgfs to measure [default: the one built with this benchmark]
    #[arg(long, value_name = "FILE")]
    imgfs: Option<PathBuf>,
    /// Exit with 1 if a target is missed
    #[arg(long)]
    strict: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Pull over loopback, first and second run
    Loopback,
    /// The same over the slow link
    Link,
    /// verify --full
    Verify,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.get(1).map(String::as_str) {
        Some(link::SUBCOMMAND) => link::serve_forever(&arguments[2..]).map(|()| ExitCode::SUCCESS),
        _ => Bench::prepare(Options::parse()).and_then(|bench| match bench {
            Some(bench) => bench.run(),
            None => Ok(ExitCode::SUCCESS),
        }),
    };
    outcome.unwrap_or_else(|e| {
        eprintln!("bench: {e}");
        ExitCode::FAILURE
    })
}

/// Everything that the rounds need.
struct Bench {
    options: Options,
    imgfs: PathBuf,
    layout: Layout,
    registry: Registry,
    workshop: Workshop,
}

impl Bench {
    fn prepare(options: Options) -> Result<Option<Self>> {
        let Some(layout) = options.layout.as_deref() else {
            // `cargo test --all-targets` and `cargo bench` run this too, and mean no measurement of minutes.
            eprintln!(
                "bench: no --layout, nothing measured; scripts/bench makes the images and runs this"
            );
            return Ok(None);
        };
        let layout = Layout::read(layout)?;
        let imgfs = match (&options.imgfs, option_env!("CARGO_BIN_EXE_imgfs")) {
            (Some(path), _) => {
                path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?
            }
            (None, Some(path)) => path.into(),
            (None, None) => return Err("built without imgfs beside it: say --imgfs FILE".into()),
        };
        let seeded = options.seeded.clone().unwrap_or_else(|| {
            let mut name = layout.path.clone().into_os_string();
            name.push(".registry");
            name.into()
        });
        let workshop = Workshop::open(options.work.as_deref(), layout.bytes())?;
        let registry = Registry::start(&seeded, &layout, workshop.path())?;
        Ok(Some(Self { options, imgfs, layout, registry, workshop }))
    }

    fn run(mut self) -> Result<ExitCode> {
        let wanted = |part| self.options.only.is_empty() || self.options.only.contains(&part);
        let (loopback, link, verify) =
            (wanted(Part::Loopback), wanted(Part::Link), wanted(Part::Verify));
        let mut report =
            Report::new(&self.layout, self.options.rounds, self.workshop.can_drop_caches());
        if loopback {
            self.loopback(&mut report)?;
        }
        if link {
            self.link(&mut report)?;
        }
        if verify {
            self.verify(&mut report)?;
        }
        let missed = report.print();
        Ok(if self.options.strict && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// curl, imgfs and openssl on the same bytes, into every place.
    fn loopback(&mut self, report: &mut Report) -> Result<()> {
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
                                // imgfs makes sure that what it publishes survives a power cut; curl does not.
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
                            report.add_pulls(Row::Imgfs, Row::ImgfsAgain, place.name, &pulled);
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
    fn link(&mut self, report: &mut Report) -> Result<()> {
        let link = Link {
            rtt: Duration::from_millis(self.options.rtt_ms),
            bytes_per_second: self.options.mbit * 125_000,
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
            report.add_pulls(Row::LinkImgfs, Row::LinkImgfsAgain, place.name, &pulled);
        }
        place.clear()
    }

    /// `verify --full` against openssl on all cores, and from the disk against `cat`, all with a cold cache.
    fn verify(&mut self, report: &mut Report) -> Result<()> {
        let cores = std::thread::available_parallelism()?.get();
        for place in self.workshop.places() {
            place.clear()?;
            self.imgfs_pull(&place, &self.registry.host()).run()?;
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

    fn progress(&self, round: u32, place: &str, what: &str) {
        eprintln!("bench: round {} of {}: {place}: {what}", round + 1, self.options.rounds);
    }

    /// Empties the place and the caches, so that nobody profits from, or pays for, the one before.
    fn ready(&self, place: &Place) -> Result<()> {
        place.clear()?;
        self.workshop.settle()?;
        self.registry.warm_up(self.workshop.can_drop_caches())
    }

    fn curl(&self, place: &Place, host: &str) -> Result<Usage> {
        let config = self.workshop.path().join("curl.conf");
        std::fs::write(&config, self.layout.curl_config(host))?;
        self.ready(place)?;
        let curl = Job::new("curl")
            .args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*"])
            .args(["--parallel", "--parallel-max", "8", "--config"])
            .arg(&config)
            .within(&place.path);
        let usage = curl.run()?;
        self.layout.check_sizes(&place.path)?;
        Ok(usage)
    }

    fn imgfs_pull(&self, place: &Place, host: &str) -> Job {
        Job::new(&self.imgfs)
            .args(["pull", "--plain-http", "--quiet", "--images-dir"])
            .arg(place.images_dir())
            .args(self.layout.images_at(host))
    }

    fn pull_twice(&self, place: &Place, host: &str) -> Result<Pulled> {
        self.ready(place)?;
        let start = self.registry.requests()?;
        let first = self.imgfs_pull(place, host).run()?;
        let between = self.registry.requests()?;
        self.layout.check_sizes(&place.images_dir().join("blobs"))?;
        let second = self.imgfs_pull(place, host).run()?;
        let end = self.registry.requests()?;
        Ok(Pulled {
            first,
            first_requests: between.since(start),
            second,
            second_requests: end.since(between),
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
        self.ready(place)?;
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
