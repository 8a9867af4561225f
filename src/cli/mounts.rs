//! `imgfs umount` and `imgfs mounts`, and what the system says of mounts.

use std::{
    ffi::OsString,
    fs,
    future::pending,
    io::{self, Read},
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
    process::Command,
    sync::Arc,
};

use imgfs::fuse::{CACHE_DIR_XATTR, SUBTYPE};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::statfs,
    io::Errno,
};
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Failure, Outcome,
    args::{MountsArgs, UmountArgs},
    output::{Output, bytes, table},
};

/// Read-ahead of the kernel, in KiB, where we may set it: with the usual 128, a single reader of a
/// remote blob waits for one small request after another.
const READ_AHEAD_KIB: u32 = 1024;

/// The most that is read of what a mount tells of pending files, in bytes.
const MAX_STATUS: u64 = 64 << 20;

/// Symbolic links that the name of a mount point may lead through.
const MAX_LINKS: usize = 40;

/// A mount, as the kernel lists it.
pub(super) struct Mounted {
    /// Its number, and that of the mount that its mount point is in.
    id: u64,
    parent: u64,
    pub(super) mountpoint: PathBuf,
    /// What kind of a file system it is, such as `fuse.imgfs`.
    kind: String,
    /// Of imgfs, the images_dir.
    source: PathBuf,
    /// Who has mounted it.
    uid: Option<u32>,
    /// The number of the device that it is, as `MAJOR:MINOR`.
    device: String,
    /// Whether it can be written to.
    is_writable: bool,
}

impl Mounted {
    /// Whether it is one of imgfs.
    pub(super) fn is_own(&self) -> bool {
        self.kind.strip_prefix("fuse.") == Some(SUBTYPE)
    }

    /// Where its cache is. If nobody answers, it is where it is by default.
    fn cache_dir(&self) -> PathBuf {
        let mut path = vec![0; 4096];
        match rustix::fs::getxattr(&self.mountpoint, CACHE_DIR_XATTR, &mut path[..]) {
            Ok(length) => {
                path.truncate(length);
                OsString::from_vec(path).into()
            }
            Err(_) => self.source.join("blobs/.imgfs/cache"),
        }
    }
}

/// Where the kernel lists mounts.
const LIST: &str = "/proc/self/mountinfo";

/// All mounts, as the kernel lists them. Their names are bytes that need not be text.
fn all() -> Result<Vec<Mounted>, Failure> {
    let list = fs::read(LIST).map_err(|e| Failure::new(format!("{LIST}: {e}")))?;
    Ok(list.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// What is mounted at a path of which [`real_path`] is itself: of several mounts the one on top, which is seen.
pub(super) fn mounted_at(mountpoint: &Path) -> Result<Option<Mounted>, Failure> {
    let mut there = all()?;
    there.retain(|mount| mount.mountpoint == mountpoint);
    let is_covered = |mount: &Mounted| there.iter().any(|other| other.parent == mount.id);
    let top = there.iter().rposition(|mount| !is_covered(mount));
    Ok(top.map(|at| there.swap_remove(at)))
}

/// Waits until what is mounted at `mountpoint` now is not there any more. Its process may go on then: containers that
/// run keep the file system, but nobody else finds it.
pub(super) async fn until_gone(mountpoint: PathBuf) {
    let (gone, is_gone) = oneshot::channel();
    let watch = move || {
        // What cannot be watched stays as it is.
        if wait_until_gone(&mountpoint).is_ok() {
            // Nobody has to wait for it.
            let _ = gone.send(());
        }
    };
    // It ends with the process.
    let thread = std::thread::Builder::new().name("mounts".to_owned()).spawn(watch);
    if thread.is_err() || is_gone.await.is_err() {
        pending::<()>().await;
    }
}

fn wait_until_gone(mountpoint: &Path) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::new(format!("{LIST}: {e}"));
    let list = fs::File::open(LIST).map_err(failed)?;
    let device = mounted_at(mountpoint)?.map(|mounted| mounted.device);
    while device.is_some() && mounted_at(mountpoint)?.map(|mounted| mounted.device) == device {
        // The kernel says that the list has changed as it says that a socket has urgent data.
        match poll(&mut [PollFd::new(&list, PollFlags::PRI)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    Ok(())
}

/// What has to be said of a mount point whose process has ended, if it has. The kernel keeps attributes for a while,
/// and asks the process for those of the whole file system each time.
pub(super) fn is_left(mountpoint: &Path) -> Option<io::Error> {
    statfs(mountpoint).err().filter(|e| *e == Errno::NOTCONN).map(io::Error::from)
}

/// A line of `/proc/self/mountinfo` (proc(5)).
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let device = String::from_utf8_lossy(fields.next()?).into_owned();
    let mountpoint = unescaped(fields.nth(1)?).into();
    // Between options and the kind there may be any number of fields.
    fields.find(|field| *field == b"-")?;
    let kind = unescaped(fields.next()?).to_string_lossy().into_owned();
    let source = unescaped(fields.next()?).into();
    let options = fields.next().unwrap_or_default().split(|byte| *byte == b',');
    let is_writable = options.clone().any(|option| option == b"rw");
    let mut options = options;
    let uid = options.find_map(|option| {
        std::str::from_utf8(option.strip_prefix(b"user_id=")?).ok()?.parse().ok()
    });
    Some(Mounted { id, parent, mountpoint, kind, source, uid, device, is_writable })
}

/// Spaces and the like stand there as `\040`.
fn unescaped(text: &[u8]) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\');
        let code = digits.and_then(|digits| {
            let is_octal = digits.iter().all(|digit| matches!(digit, b'0'..=b'7'));
            let digits = std::str::from_utf8(digits).ok().filter(|_| is_octal)?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes)
}

/// A path on one line: what could move the cursor stands as the kernel writes it, `\012`.
pub(super) fn shown(path: &Path) -> String {
    path.to_string_lossy()
        .chars()
        .map(|c| match c {
            c if c.is_ascii_control() || c == '\\' => format!("\\{:03o}", u32::from(c)),
            c => c.to_string(),
        })
        .collect()
}

/// The name without symbolic links of a mount point, as the kernel lists it. What is mounted there is not looked
/// at: nobody need answer for it any more.
pub(super) fn real_path(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..MAX_LINKS {
        // A slash or a dot at the end is not part of the name.
        let (Some(above), Some(Component::Normal(name))) =
            (path.parent(), path.components().next_back())
        else {
            return path.canonicalize();
        };
        let real = above.canonicalize()?.join(name);
        match fs::read_link(&real) {
            Ok(target) => path = real.with_file_name("").join(target),
            Err(_) => return Ok(real),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

pub(crate) fn umount(args: &UmountArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let named = shown(&args.mountpoint);
    let mountpoint =
        real_path(&args.mountpoint).map_err(|e| Failure::new(format!("{named}: {e}")))?;
    let list = "`imgfs mounts` lists where it is";
    let is_writable = match mounted_at(&mountpoint)? {
        Some(mount) if mount.is_own() => mount.is_writable,
        Some(mount) => {
            let message = format!("{named}: {} is mounted there, and not imgfs", mount.kind);
            return Err(Failure::new(message).hint(list));
        }
        None => {
            return Err(Failure::new(format!("{named}: imgfs is not mounted there")).hint(list));
        }
    };
    let pending = if is_writable { Pending::of(&mountpoint) } else { Pending(Vec::new()) };
    unmount(&mountpoint, args.lazy)?;
    output.line(&format!("{} is unmounted", shown(&mountpoint)));
    for line in pending.lines() {
        output.warning(&line);
    }
    match args.strict && !pending.0.is_empty() {
        true => Ok(Outcome::SomeFailed),
        false => Ok(Outcome::Done),
    }
}

/// What has been written into a mount and is not published.
struct Pending(Vec<serde_json::Value>);

impl Pending {
    /// As the mount tells it, if it tells anything.
    fn of(mountpoint: &Path) -> Self {
        let text = fs::File::open(mountpoint.join(".imgfs/pending.json")).and_then(|file| {
            let mut text = Vec::new();
            file.take(MAX_STATUS).read_to_end(&mut text).map(|_| text)
        });
        let status: Option<serde_json::Value> =
            text.ok().and_then(|text| serde_json::from_slice(&text).ok());
        let pending = status.and_then(|status| status["pending"].as_array().cloned());
        Self(pending.unwrap_or_default())
    }

    /// One line for each.
    fn lines(&self) -> Vec<String> {
        let line = |file: &serde_json::Value| {
            let text = |key: &str| file[key].as_str().unwrap_or_default().to_owned();
            let missing = |kind: &str| {
                let of_kind = file["missing"][kind].as_array().into_iter().flatten();
                of_kind.filter_map(serde_json::Value::as_str).map(str::to_owned).collect::<Vec<_>>()
            };
            let (manifests, blobs) = (missing("manifests"), missing("blobs"));
            let missing: Vec<String> = [("manifest", manifests), ("blob", blobs)]
                .into_iter()
                .filter(|(_, digests)| !digests.is_empty())
                .map(|(kind, digests)| match digests.as_slice() {
                    [one] => format!("the {kind} {one}"),
                    many => format!("{} {kind}s, such as {}", many.len(), many[0]),
                })
                .collect();
            let state = match text("state").as_str() {
                "waiting" => format!("waits for {}", missing.join(" and ")),
                "publishing" if file["error"].is_string() => {
                    format!("is tried again to be published: {}", text("error"))
                }
                "publishing" => "is about to be published".to_owned(),
                "refused" => format!("was refused: {}", text("error")),
                "writing" => "is being written".to_owned(),
                "empty" => "is empty".to_owned(),
                _ => "is not published".to_owned(),
            };
            let name = shown(Path::new(&text("name")));
            format!("{name} {state}")
        };
        self.0.iter().map(line).collect()
    }
}

/// Unmounts; if `lazy`, whoever uses it keeps what is open.
pub(super) fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    use rustix::mount::{UnmountFlags, unmount};
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    let error = match unmount(mountpoint, flags) {
        Ok(()) => return Ok(()),
        Err(error) => io::Error::from(error),
    };
    let shown = shown(mountpoint);
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
    let mut mounts = all()?;
    mounts.retain(Mounted::is_own);
    let mut waiting = Vec::new();
    let mut rows = vec![["MOUNTPOINT", "IMAGES", "USER", "CACHE"].map(str::to_owned).to_vec()];
    for mount in &mounts {
        let cache = allocated(&mount.cache_dir());
        let pending =
            if mount.is_writable { Pending::of(&mount.mountpoint) } else { Pending(Vec::new()) };
        let mut event = json!({
            "mountpoint": mount.mountpoint.to_string_lossy(),
            "images_dir": mount.source.to_string_lossy(),
            "uid": mount.uid,
            "cache_bytes": cache,
        });
        if mount.is_writable {
            event["pending"] = pending.0.clone().into();
        }
        output.event(&event);
        let of_mount = pending.lines().into_iter();
        waiting.extend(of_mount.map(|line| format!("{}: {line}", shown(&mount.mountpoint))));
        rows.push(vec![
            shown(&mount.mountpoint),
            shown(&mount.source),
            mount.uid.map(|uid| uid.to_string()).unwrap_or_default(),
            bytes(cache),
        ]);
    }
    if mounts.is_empty() {
        output.line("imgfs is mounted nowhere");
    } else {
        output.line(&table(&rows));
    }
    for line in waiting {
        output.line(&line);
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
    if let Ok(Some(mount)) = mounted_at(mountpoint) {
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
        let line = br"97 26 0:53 / /mnt/a\040b ro,nosuid,nodev shared:1 - fuse.imgfs /var/lib/images ro,user_id=0,group_id=0";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.parent, mount.is_own()), (97, 26, true));
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b"));
        assert_eq!((mount.source.as_path(), mount.uid), (Path::new("/var/lib/images"), Some(0)));
        assert_eq!(mount.device, "0:53");
        for other in ["fuse", "fuse.sshfs", "ext4", "imgfs"] {
            let line = String::from_utf8_lossy(line).replace("fuse.imgfs", other);
            assert!(!parse(line.as_bytes()).unwrap().is_own());
        }
        assert!(parse(b"").is_none());
        // Neither text nor anything at all as the source.
        let line = b"1 2 0:3 / /mnt/\xff\\011\\012\\134\\043 rw - tmpfs  rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.mountpoint.as_os_str().as_encoded_bytes(), b"/mnt/\xff\t\n\\#");
        assert_eq!(mount.source, Path::new(""));
        assert_eq!(shown(&mount.mountpoint), "/mnt/\u{fffd}\\011\\012\\134#");
        assert_eq!(unescaped(br"a\134b\9\777\18"), OsString::from(r"a\b\9\777\18"));
    }

    #[test]
    fn mount_points_have_many_names() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("run/mnt")).unwrap();
        fs::create_dir(root.join("var")).unwrap();
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, root.join(at)).unwrap();
        link("../run", "var/run");
        link("run/mnt", "link");
        link("link", "chain");
        link("round", "round");
        let expected = root.join("run/mnt");
        for name in [
            "run/mnt",
            "run/mnt/",
            "run//mnt/.",
            "var/run/mnt",
            "var/run/../run/mnt",
            "run/mnt/../mnt",
            "run/mnt/x/..",
            "link",
            "link/",
            "link/.",
            "chain",
        ] {
            fs::create_dir_all(root.join("run/mnt/x")).unwrap();
            assert_eq!(real_path(&root.join(name)).unwrap(), expected, "{name}");
        }
        assert!(real_path(&root.join("round")).is_err());
        assert!(real_path(&root.join("missing/mnt")).is_err());
        assert_eq!(real_path(Path::new("/")).unwrap(), Path::new("/"));
    }
}
