//! `imgfs umount` and `imgfs mounts`, and what the system says of mounts.

use std::{
    fs, io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use imgfs::fuse::{CACHE_DIR_XATTR, SUBTYPE};
use serde_json::json;

use super::{
    Failure, Outcome,
    args::{MountsArgs, UmountArgs},
    output::{Output, bytes, table},
};

/// Read-ahead of the kernel, in KiB, where we may set it: with the usual 128, a single reader of a
/// remote blob waits for one small request after another.
const READ_AHEAD_KIB: u32 = 1024;

/// A mount of imgfs.
pub(super) struct Mounted {
    pub(super) mountpoint: PathBuf,
    /// The images_dir.
    source: PathBuf,
    /// Who has mounted it.
    uid: Option<u32>,
    /// The number of the device that it is, as `MAJOR:MINOR`.
    device: String,
}

impl Mounted {
    /// Where its cache is. If nobody answers, it is where it is by default.
    fn cache_dir(&self) -> PathBuf {
        let mut path = vec![0; 4096];
        match rustix::fs::getxattr(&self.mountpoint, CACHE_DIR_XATTR, &mut path[..]) {
            Ok(length) => {
                path.truncate(length);
                std::ffi::OsString::from_vec(path).into()
            }
            Err(_) => self.source.join("blobs/.imgfs/cache"),
        }
    }
}

/// All mounts of imgfs, as the kernel lists them.
pub(super) fn all() -> Result<Vec<Mounted>, Failure> {
    const LIST: &str = "/proc/self/mountinfo";
    let text = fs::read_to_string(LIST).map_err(|e| Failure::new(format!("{LIST}: {e}")))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// A line of `/proc/self/mountinfo` (proc(5)), if it is about imgfs.
fn parse(line: &str) -> Option<Mounted> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut after = file_system.split(' ');
    if after.next()?.strip_prefix("fuse.") != Some(SUBTYPE) {
        return None;
    }
    let source = unescaped(after.next()?);
    let uid = after.next()?.split(',').find_map(|o| o.strip_prefix("user_id=")?.parse().ok());
    let mut fields = mount.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    let mountpoint = unescaped(fields.nth(1)?);
    Some(Mounted { mountpoint, source, uid, device })
}

/// Spaces and the like stand there as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|d| first == b'\\' && d.iter().all(u8::is_ascii_digit));
        let code = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

pub(crate) fn umount(args: &UmountArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let failed = |e| Failure::new(format!("{}: {e}", args.mountpoint.display()));
    let mountpoint = std::path::absolute(&args.mountpoint).map_err(failed)?;
    if !all()?.iter().any(|mount| mount.mountpoint == mountpoint) {
        let message = format!("{}: imgfs is not mounted there", mountpoint.display());
        return Err(Failure::new(message).hint("`imgfs mounts` lists where it is"));
    }
    unmount(&mountpoint, args.lazy)?;
    output.line(&format!("{} is unmounted", mountpoint.display()));
    Ok(Outcome::Done)
}

/// Unmounts; if `lazy`, whoever uses it keeps what is open.
pub(super) fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    use rustix::mount::{UnmountFlags, unmount};
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    let error = match unmount(mountpoint, flags) {
        Ok(()) => return Ok(()),
        Err(error) => io::Error::from(error),
    };
    let shown = mountpoint.display();
    if error.kind() == io::ErrorKind::PermissionDenied {
        // Whoever is not root has a helper for it.
        let mut helper = Command::new("fusermount3");
        helper.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
        return match helper.output() {
            Ok(done) if done.status.success() => Ok(()),
            Ok(done) => {
                let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
                Err(Failure::new(format!("{shown}: {said}")))
            }
            Err(e) => Err(Failure::new(format!("{shown}: fusermount3: {e}"))
                .hint("install fusermount3 (Debian's package fuse3)")),
        };
    }
    let failure = Failure::new(format!("{shown}: {error}"));
    Err(match error.kind() {
        io::ErrorKind::ResourceBusy => failure.hint(
            "somebody uses it (`fuser -vm` says who); with --lazy it goes as soon as nobody does",
        ),
        _ => failure,
    })
}

pub(crate) fn list(_: &MountsArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let mounts = all()?;
    let mut rows = vec![["MOUNTPOINT", "IMAGES", "USER", "CACHE"].map(str::to_owned).to_vec()];
    for mount in &mounts {
        let cache = allocated(&mount.cache_dir());
        output.event(&json!({
            "mountpoint": mount.mountpoint,
            "images_dir": mount.source,
            "uid": mount.uid,
            "cache_bytes": cache,
        }));
        rows.push(vec![
            mount.mountpoint.display().to_string(),
            mount.source.display().to_string(),
            mount.uid.map(|uid| uid.to_string()).unwrap_or_default(),
            bytes(cache),
        ]);
    }
    if mounts.is_empty() {
        output.line("imgfs is mounted nowhere");
    } else {
        output.line(&table(&rows));
    }
    Ok(Outcome::Done)
}

/// Bytes on the disk of all files below `dir`.
fn allocated(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        Some(if meta.is_dir() { allocated(&entry.path()) } else { meta.blocks() * 512 })
    });
    sizes.sum()
}

/// Lets the kernel read further ahead, if we may. What waits for a registry waits less often then.
pub(super) fn raise_read_ahead(mountpoint: &Path) {
    let mounts = all().unwrap_or_default();
    if let Some(mount) = mounts.iter().find(|mount| mount.mountpoint == mountpoint) {
        let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
        // Not allowed to all; it only is slower then.
        let _ = fs::write(setting, READ_AHEAD_KIB.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let line = r"97 26 0:53 / /mnt/a\040b ro,nosuid,nodev - fuse.imgfs /var/lib/images ro,user_id=0,group_id=0";
        let mount = parse(line).unwrap();
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b"));
        assert_eq!((mount.source.as_path(), mount.uid), (Path::new("/var/lib/images"), Some(0)));
        assert_eq!(mount.device, "0:53");
        for other in ["fuse", "fuse.sshfs", "ext4", "imgfs"] {
            assert!(parse(&line.replace("fuse.imgfs", other)).is_none());
        }
        assert!(parse("").is_none());
        assert_eq!(unescaped(r"a\134b\9"), Path::new(r"a\b\9"));
    }
}
