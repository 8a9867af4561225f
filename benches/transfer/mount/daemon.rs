//! A running `imgfs mount`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Bench, Result};

/// The processor on which readers and daemons share their time, where that matters.
pub(super) const PROCESSOR: &str = "0";

/// A mount; it ends with this value.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) mountpoint: PathBuf,
}

impl Bench {
    /// Mounts `images_dir`, with these options too. The mount point is made beside it.
    pub(crate) fn mounted(
        &self,
        images_dir: &Path,
        options: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Daemon> {
        let mountpoint = self.workshop.path().join("mnt");
        fs::create_dir_all(&mountpoint)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(&self.imgfs)
            .args(["mount", "--foreground", "--plain-http", "--images-dir"])
            .arg(images_dir)
            .args(options)
            .arg(&mountpoint)
            .env("HOME", "/nonexistent")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut daemon = Daemon { child, mountpoint };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !daemon.is_mounted()? {
            if Instant::now() > deadline || daemon.child.try_wait()?.is_some() {
                return Err("imgfs mount does not start".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Mounts an empty directory, with all images of the registry at `host` declared.
    pub(super) fn mounted_cold(&self, images_dir: &Path, host: &str) -> Result<Daemon> {
        let images =
            self.layout.images_at(host).flat_map(|image| ["--manifests".to_owned(), image]);
        self.mounted(images_dir, images.collect::<Vec<_>>())
    }
}

impl Daemon {
    fn is_mounted(&self) -> Result<bool> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        Ok(mounts.lines().any(|line| line.split(' ').nth(1) == self.mountpoint.to_str()))
    }

    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        self.mountpoint.join("blobs").join(digest)
    }

    /// Keeps it to the processor that [`super::Pattern::Random`] is read on. To be woken on another one takes
    /// two to four times as long, in a virtual machine above all, and which it is, is chance.
    pub(crate) fn pin(&self) -> Result<()> {
        let id = self.child.id().to_string();
        let status = Command::new("taskset")
            .args(["--all-tasks", "--cpu-list", "--pid", PROCESSOR, &id])
            .stdout(Stdio::null())
            .status()?;
        if status.success() { Ok(()) } else { Err(format!("taskset: {status}").into()) }
    }

    /// What it has in memory, and the most that it had, in KiB.
    pub(crate) fn rss_kib(&self) -> Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.ok_or_else(|| format!("/proc/PID/status has no {name}"))
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Processor time used so far, in the kernel's ticks of 10 ms.
    pub(super) fn cpu_ticks(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = stat.rsplit_once(')').ok_or("/proc/PID/stat has no name")?.1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.mountpoint).status();
        for _ in 0..200 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
