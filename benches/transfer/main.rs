//! What a transfer, or a mount, costs: imgfs against the cheapest client there can be, on the same bytes, in the same
//! minutes.
//!
//! `scripts/bench` makes the images and runs this. It starts Debian's `docker-registry` with them and then
//! goes round and round: `curl` moving the same unique blobs and verifying nothing, `imgfs` into an empty
//! directory or registry, SHA-256 of the same bytes by `openssl`. Neighbours in time share the machine's
//! mood, so the medians' ratios mean something where the seconds do not. Output: Markdown tables, then the
//! targets.

mod directory;
mod layout;
mod link;
mod measure;
mod media;
mod mount;
mod places;
mod pull;
mod push;
mod registry;
mod report;
mod rootfs;
mod rows;
mod slow;
mod tally;
mod targets;
mod upload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use layout::Layout;
use places::{Place, Workshop};
use registry::Registry;
use report::Report;

/// Errors end the run with their text; nothing here is recovered from.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(
    bin_name = "scripts/bench",
    about = "Measures imgfs pull, push, copy, verify and mount against curl, cp and openssl"
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
    /// An imgfs of before, to be measured beside it where something is slow
    #[arg(long, value_name = "FILE")]
    older: Option<PathBuf>,
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
    /// Pull to a disk that writes 250 MB/s, with each --sync
    SlowDisk,
    /// The largest blob where each connection gets 40 MB/s, pulled and through a mount
    SlowConnections,
    /// verify --full
    Verify,
    /// Push into an empty registry, and again
    Push,
    /// Copy from registry to registry, and again
    Copy,
    /// Copy from directory to directory
    Dir,
    /// OCI layouts, archives and an object store
    Media,
    /// Reads of a local blob through a mount
    MountLocal,
    /// find over a mount of 100,000 files
    MountFind,
    /// Reads of cold blobs through a mount
    MountCold,
    /// The same over the slow link
    MountLink,
    /// cp -a of a cold mount
    MountCopy,
    /// What is local while the registry hangs
    MountHang,
    /// Memory with 64 readers
    MountMemory,
    /// cp -a into a mount, against cp -a into a directory and verify
    MountWrite,
    /// cp -a into a mount that pushes, against push
    MountPush,
    /// The first file that is read of the inside of an image
    RootfsFirst,
    /// find and tar of the inside of an image that has been looked into
    RootfsWalk,
    /// tar of the inside of an image that nobody has looked into
    RootfsScan,
    /// Reads of 4 KiB of a large file inside an image
    RootfsRandom,
    /// 500 small files that are read one after the other, with and without a profile
    RootfsStart,
    /// 4 KiB at random, small files at random and tar of an image of which only the index is there
    RootfsCold,
    /// Memory after find inside images with a million files
    RootfsMemory,
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
        // From directory to directory there are two of them on one file system.
        let copies = if [Part::Dir, Part::Media, Part::MountCopy]
            .iter()
            .any(|part| wants(&options, *part))
        {
            2
        } else {
            1
        };
        let workshop = Workshop::open(options.work.as_deref(), layout.bytes() * copies)?;
        let registry = Registry::start(&seeded, &layout, workshop.path())?;
        Ok(Some(Self { options, imgfs, layout, registry, workshop }))
    }

    fn run(mut self) -> Result<ExitCode> {
        let mut report =
            Report::new(&self.layout, self.options.rounds, self.workshop.can_drop_caches());
        for (part, measure) in [
            (Part::Loopback, Self::loopback as fn(&mut Self, &mut Report) -> Result<()>),
            (Part::Link, Self::link),
            (Part::SlowDisk, Self::slow_disk),
            (Part::SlowConnections, Self::slow_connections),
            (Part::Verify, Self::verify),
            (Part::Push, Self::push),
            (Part::Copy, Self::copy),
            (Part::Dir, Self::directories),
            (Part::Media, Self::media),
            (Part::MountLocal, Self::local_reads),
            (Part::MountFind, Self::many_entries),
            (Part::MountCold, Self::cold_reads),
            (Part::MountLink, Self::reads_over_link),
            (Part::MountCopy, Self::copy_out),
            (Part::MountHang, Self::hanging_registry),
            (Part::MountMemory, Self::many_readers),
            (Part::MountWrite, Self::copy_in),
            (Part::MountPush, Self::push_by_copy),
            (Part::RootfsFirst, Self::first_reads_inside),
            (Part::RootfsWalk, Self::walks_inside),
            (Part::RootfsScan, Self::scans_inside),
            (Part::RootfsRandom, Self::random_reads_inside),
            (Part::RootfsStart, Self::starts_inside),
            (Part::RootfsCold, Self::cold_reads_inside),
            (Part::RootfsMemory, Self::many_files_inside),
        ] {
            if wants(&self.options, part) {
                measure(&mut self, &mut report)?;
            }
        }
        let missed = report.print();
        Ok(if self.options.strict && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn progress(&self, round: u32, place: &str, what: &str) {
        let (round, what) = (round + 1, what.replace(['*', '`'], ""));
        eprintln!("bench: round {round} of {}: {place}: {what}", self.options.rounds);
    }

    /// Empties the place and the caches, so that nobody profits from, or pays for, the one before. What is
    /// `warm` is in the page cache then: its disk is not what is measured.
    fn ready(&self, place: &Place, warm: &[&Path]) -> Result<()> {
        place.clear()?;
        self.workshop.settle()?;
        if self.workshop.can_drop_caches() {
            for path in warm {
                places::read_all(path, &mut vec![0; 1 << 20])?;
            }
        }
        Ok(())
    }
}

fn wants(options: &Options, part: Part) -> bool {
    options.only.is_empty() || options.only.contains(&part)
}
