//! What is slow: a disk that takes only so much, and a registry that gives each connection only so much.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::link::{Link, LinkProxy, Sharing};
use crate::measure::Job;
use crate::mount::timed;
use crate::places::{Place, Workshop};
use crate::report::Report;
use crate::tally::{Goal, Tally};
use crate::{Bench, Result};

/// What the slow disk writes, in bytes a second.
const DISK_RATE: u64 = 250_000_000;

/// What each connection to the slow registry gets, in bytes a second.
const CONNECTION_RATE: u64 = 40_000_000;

/// `--sync` with these.
const MODES: [&str; 3] = ["none", "end", "each"];

impl Bench {
    /// Pulls to a disk that writes 250 MB/s.
    pub(crate) fn slow_disk(&mut self, report: &mut Report) -> Result<()> {
        let Some(disk) = SlowDisk::make(&self.workshop, self.layout.bytes())? else {
            return Ok(());
        };
        let place = Place { name: "slow disk", path: disk.path().to_owned(), on_disk: true };
        let host = self.registry.host();
        let mut tally =
            Tally::new(format!("Pull to a disk that writes {} MB/s", DISK_RATE / 1_000_000));
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "curl");
            let curl = self.curl(&place, &host)?;
            tally.add("`curl -Z --parallel-max 8`, no verification", None, curl.wall);
            let flushed = timed(|| place.sync())?;
            tally.add("the same, then `syncfs`", None, curl.wall + flushed);
            for mode in MODES {
                self.progress(round, place.name, mode);
                self.ready(&place, &[self.registry.storage()])?;
                let pull = self.imgfs_pull(&place.images_dir(), &host).args(["--sync", mode]);
                let pull = pull.run()?;
                let goal = (mode == "none").then_some(Goal::Time(1.25));
                tally.add(&format!("**`imgfs pull --sync {mode}`**"), goal, pull.wall);
                let flushed = timed(|| place.sync())?;
                if mode == "none" {
                    tally.add("`--sync none`, then `syncfs`", None, pull.wall + flushed);
                }
                self.layout.check_sizes(&place.images_dir().join("blobs"))?;
            }
            if let Some(older) = &self.options.older {
                self.progress(round, place.name, "the older imgfs");
                self.ready(&place, &[self.registry.storage()])?;
                let pull = self.imgfs_pull_with(older, &place.images_dir(), &host).run()?;
                tally.add("the older `imgfs pull`", None, pull.wall);
            }
        }
        report.tally(tally);
        place.clear()
    }

    /// The largest blob, where each connection is slow: with one connection, and through a mount; and the image
    /// that it is in, pulled.
    pub(crate) fn slow_connections(&mut self, report: &mut Report) -> Result<()> {
        let link = Link {
            rtt: Duration::from_millis(self.options.rtt_ms),
            bytes_per_second: CONNECTION_RATE,
            sharing: Sharing::Each,
        };
        let place = self.workshop.quietest();
        let has_largest = |image: &&String| {
            let layers = self.layout.layers_of(image).ok().flatten().unwrap_or_default();
            layers.iter().any(|layer| layer.blob == 0)
        };
        let image = self.layout.images().iter().find(has_largest).cloned();
        let title = format!(
            "The largest blob, {} MB, where each connection gets {} MB/s and {} ms",
            self.layout.blobs[0].size / 1_000_000,
            CONNECTION_RATE / 1_000_000,
            self.options.rtt_ms,
        );
        let mut tally = Tally::new(title);
        for round in 0..self.options.rounds {
            self.progress(round, "slow connections", "curl");
            let proxy = LinkProxy::start(&self.registry.host(), link)?;
            self.ready(&place, &[self.registry.storage()])?;
            let curl = self.curl_blobs(&place, &proxy.host(), &self.layout.blobs[..1])?;
            tally.add("`curl`, one connection", None, curl);
            if let Some(image) = &image {
                for (program, name, goal) in self.programs() {
                    self.progress(round, "slow connections", name);
                    let proxy = LinkProxy::start(&self.registry.host(), link)?;
                    self.ready(&place, &[self.registry.storage()])?;
                    let pull = Job::new(program)
                        .args(["pull", "--plain-http", "--quiet", "--images-dir"])
                        .arg(place.images_dir())
                        .arg(format!("{}/{image}", proxy.host()));
                    let name = format!("{name} pull` of the image that it is in");
                    tally.add(&name, goal, pull.run()?.wall);
                }
            }
            for (program, name, goal) in self.programs() {
                self.progress(round, "slow connections, mount", name);
                let proxy = LinkProxy::start(&self.registry.host(), link)?;
                self.ready(&place, &[self.registry.storage()])?;
                let used = std::mem::replace(&mut self.imgfs, program);
                let taken = self.read_blobs(&place, &proxy.host(), &self.layout.blobs[..1]);
                self.imgfs = used;
                tally.add(&format!("{name} mount`, `cat`"), goal, taken?);
            }
        }
        report.tally(tally);
        place.clear()
    }

    /// The programs to measure, what they are called, and what is wanted of them.
    fn programs(&self) -> Vec<(PathBuf, &'static str, Option<Goal>)> {
        let own = (self.imgfs.clone(), "`imgfs", Some(Goal::Speed(4.0)));
        let older = self.options.older.clone().map(|path| (path, "the older `imgfs", None));
        [own].into_iter().chain(older).collect()
    }
}

/// A file system on a loop device that writes only so much, in memory if there is enough. The kernel's control
/// groups slow it down, since the device mapper is in few kernels.
struct SlowDisk {
    image: PathBuf,
    mountpoint: PathBuf,
    device: Option<String>,
    limit: Option<Limit>,
}

/// Where the rate is set, and what is written there to take it back.
struct Limit {
    file: PathBuf,
    none: String,
    /// Of control groups of version 2, the one that was made for this; and where its processes were before.
    group: Option<(PathBuf, PathBuf)>,
}

impl SlowDisk {
    /// `None`, after saying why, where that cannot be made.
    fn make(workshop: &Workshop, bytes: u64) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("bench: a slow disk takes root: left out");
            return Ok(None);
        }
        let directory = workshop.quietest().path;
        let directory = directory.parent().map_or_else(|| directory.clone(), Path::to_owned);
        let has_memory = workshop.memory_for(bytes + bytes / 4 + (512 << 20))?;
        let image = match has_memory {
            true => PathBuf::from(format!("/dev/shm/imgfs-bench-{}.disk", std::process::id())),
            false => directory.join("slow.disk"),
        };
        let mut disk =
            Self { image, mountpoint: directory.join("slow"), device: None, limit: None };
        fs::File::create(&disk.image)?.set_len(bytes + bytes / 4 + (512 << 20))?;
        fs::create_dir_all(&disk.mountpoint)?;
        let device = output(Command::new("losetup").args(["--find", "--show"]).arg(&disk.image))?;
        disk.device = Some(device.clone());
        output(
            Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0"]).arg(&device),
        )?;
        output(Command::new("mount").arg(&device).arg(&disk.mountpoint))?;
        let number = output(
            Command::new("lsblk").args(["--noheadings", "--output", "MAJ:MIN"]).arg(&device),
        )?;
        match Limit::set(&number) {
            Ok(limit) => disk.limit = Some(limit),
            Err(error) => {
                eprintln!("bench: the disk cannot be made slow ({error}): left out");
                return Ok(None);
            }
        }
        Ok(Some(disk))
    }

    fn path(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.limit.take();
        if let Some(device) = &self.device {
            let start = Instant::now();
            while output(Command::new("umount").arg(&self.mountpoint)).is_err()
                && start.elapsed() < Duration::from_secs(10)
            {
                std::thread::sleep(Duration::from_millis(100));
            }
            let _ = output(Command::new("losetup").arg("--detach").arg(device));
        }
        let _ = fs::remove_dir(&self.mountpoint);
        let _ = fs::remove_file(&self.image);
    }
}

impl Limit {
    /// Slows down what is written to the device with this number.
    fn set(number: &str) -> Result<Self> {
        // With version 1, what the kernel writes back counts as that of the uppermost group.
        let file = PathBuf::from("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device");
        if file.exists() {
            fs::write(&file, format!("{number} {DISK_RATE}"))?;
            return Ok(Self { file, none: format!("{number} 0"), group: None });
        }
        // With version 2, as that of whoever has written it.
        let root = Path::new("/sys/fs/cgroup");
        fs::write(root.join("cgroup.subtree_control"), "+io +memory")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let before = root.join(own).join("cgroup.procs");
        let group = root.join(format!("imgfs-bench-{}", std::process::id()));
        fs::create_dir(&group)?;
        let file = group.join("io.max");
        let limit =
            Self { file, none: format!("{number} wbps=max"), group: Some((group.clone(), before)) };
        fs::write(&limit.file, format!("{number} wbps={DISK_RATE}"))?;
        fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(limit)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = fs::write(&self.file, &self.none);
        if let Some((group, before)) = &self.group {
            let _ = fs::write(before, std::process::id().to_string());
            let _ = fs::remove_dir(group);
        }
    }
}

/// Runs a command that must succeed; the first word that it says.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}
