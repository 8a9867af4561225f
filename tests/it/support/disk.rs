//! Small disks, and how much of a disk is in use.

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A small file system in memory; gone when dropped.
pub(crate) struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where mounting is not allowed.
    pub(crate) fn mount(mib: u32) -> Option<Self> {
        let directory = tempfile::tempdir().expect("making a temporary directory");
        let disk = Self { directory };
        let options = options(mib);
        let options = Some(options.as_c_str());
        let flags = MountFlags::empty();
        rustix::mount::mount("imgfs-test", disk.path(), "tmpfs", flags, options).ok()?;
        Some(disk)
    }

    pub(crate) fn grow(&self, mib: u32) {
        rustix::mount::mount_remount(self.path(), MountFlags::empty(), options(mib).as_c_str())
            .expect("making the disk larger");
    }

    pub(crate) fn make_read_only(&self) {
        // A program that another test is just starting has this process's open files for a moment, too.
        let start = Instant::now();
        let remount = || rustix::mount::mount_remount(self.path(), MountFlags::RDONLY, c"");
        while let Err(error) = remount() {
            let may_pass = error == Errno::BUSY && start.elapsed() < Duration::from_secs(20);
            assert!(may_pass, "making the disk read-only: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Bytes in use, those of files without a name included.
    pub(crate) fn used(&self) -> u64 {
        used(self.path())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn options(mib: u32) -> CString {
    CString::new(format!("size={mib}m,mode=755")).expect("no NUL in it")
}

/// Bytes in use of the file system that has this path.
pub(crate) fn used(path: &Path) -> u64 {
    let space = rustix::fs::statvfs(path).expect("asking for the space of a disk");
    (space.f_blocks - space.f_bfree) * space.f_frsize
}

/// Bytes of the disk that all files below `directory` take. What moves while this looks is not counted twice.
pub(crate) fn used_below(directory: &Path) -> u64 {
    fn look(directory: &Path, files: &mut BTreeMap<u64, u64>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            files.insert(meta.ino(), meta.blocks() * 512);
            if meta.is_dir() {
                look(&entry.path(), files);
            }
        }
    }
    let mut files = BTreeMap::new();
    look(directory, &mut files);
    files.values().sum()
}

/// Samples a number in a thread of its own, and keeps the largest.
pub(crate) struct Watch {
    most: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(sample: impl Fn() -> u64 + Send + 'static) -> Self {
        let (most, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (most, ended) = (most.clone(), ended.clone());
            move || {
                while !ended.load(Ordering::SeqCst) {
                    most.fetch_max(sample(), Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
        });
        Self { most, ended, thread: Some(thread) }
    }

    /// Ends it; the largest number that was seen.
    pub(crate) fn most(mut self) -> u64 {
        self.end();
        self.most.load(Ordering::SeqCst)
    }

    fn end(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

/// A disk with ext4 whose plug can be pulled: what has not reached it by then is gone. Unmounted when dropped.
pub(crate) struct PullableDisk {
    directory: tempfile::TempDir,
    /// How often the plug has been pulled.
    pulls: u32,
}

impl PullableDisk {
    pub(crate) fn make(mib: u64) -> Self {
        let directory = tempfile::tempdir().expect("making a temporary directory");
        let disk = Self { directory, pulls: 0 };
        std::fs::create_dir(disk.path()).expect("making a mount point");
        let image = std::fs::File::create(disk.image()).expect("making an image of a disk");
        image.set_len(mib << 20).expect("making it large enough");
        let image = disk.image();
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_os_str()]);
        disk.mount();
        disk
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("mounted")
    }

    fn image(&self) -> std::path::PathBuf {
        self.directory.path().join(format!("disk-{}", self.pulls))
    }

    fn mount(&self) {
        let (image, path) = (self.image(), self.path());
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), path.as_os_str()]);
    }

    /// Pulls the plug, and puts it in again: what is on the disk now is all that there will be.
    pub(crate) fn pull_plug(&mut self) {
        self.pull_plug_and(|| ());
    }

    /// The same while somebody uses the disk, whom `end` ends: nothing that they do since counts.
    pub(crate) fn pull_plug_and(&mut self, end: impl FnOnce()) {
        let before = self.image();
        self.pulls += 1;
        let after = self.image();
        run("cp", &["--sparse=always".as_ref(), before.as_os_str(), after.as_os_str()]);
        end();
        self.unmount();
        self.mount();
    }

    /// Unmounts it in good order, and mounts it again.
    pub(crate) fn remount(&self) {
        self.unmount();
        self.mount();
    }

    fn unmount(&self) {
        // Another test that is just starting a program has this process's open files for a moment, too.
        let start = Instant::now();
        while let Err(error) = rustix::mount::unmount(self.path(), UnmountFlags::empty()) {
            let may_pass = error == Errno::BUSY && start.elapsed() < Duration::from_secs(20);
            assert!(may_pass, "unmounting a disk: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whoever writes to the disk waits until what is returned is dropped.
    pub(crate) fn freeze(&self) -> Frozen {
        run("fsfreeze", &["-f".as_ref(), self.path().as_os_str()]);
        Frozen(self.path())
    }

    /// Has the file system write down which files there are, and not what is in them: the journal is flushed by
    /// whoever flushes any file.
    pub(crate) fn flush_names(&self) {
        // In a directory of its own, beside what is looked at.
        let file = std::fs::File::create(self.path().join("other")).expect("making a file");
        file.sync_all().expect("flushing a file");
    }
}

impl Drop for PullableDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// A disk that lets nobody write.
pub(crate) struct Frozen(std::path::PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        run("fsfreeze", &["-u".as_ref(), self.0.as_os_str()]);
    }
}

fn run(program: &str, args: &[&std::ffi::OsStr]) {
    let output = std::process::Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}
