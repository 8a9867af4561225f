//! A directory below which no symbolic link is followed.
//!
//! Whoever fills an images_dir need not be trusted by whoever mounts it, pulls into it or verifies it:
//! a link in it to `/etc/shadow` must not be shown, and one to `/etc` must not be written through.
//! So everything below the directory is opened by [`ConfinedDir`], with one `openat2(2)` that refuses
//! symbolic links in every component of the path (`RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS`,
//! `RESOLVE_NO_MAGICLINKS`). Where the kernel or a seccomp filter does not allow that call (Linux
//! before 5.6), the path is walked with one `openat(2)` with `O_NOFOLLOW` a component. Both hold
//! also while somebody exchanges directories for links.
//!
//! The path of the directory itself may go through links, and what is mounted below it (`mount
//! --bind`) is entered: only root can do that, and means it.
//!
//! Files are opened with `O_NONBLOCK` and have to be regular, so a named pipe in place of a blob is
//! an error and does not hang whoever opens it.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Component, Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustix::{
    fs::{
        AtFlags, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, linkat, mkdirat, openat, openat2,
        renameat, statat, unlinkat,
    },
    io::{Errno, retry_on_intr},
};

pub use rustix::fs::FileType;

/// Bytes of directory entries that the kernel is asked for at once.
const ENTRIES_BUFFER: usize = 32 << 10;

/// The mode of directories that are created here, whatever the process's mask takes away.
const DIRECTORY_MODE: u32 = 0o755;

/// When what has been written is flushed to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Before anything else is done.
    Now,
    /// When the kernel sees fit. Until then a power cut can take it away, in part or as a whole.
    Later,
}

/// A symbolic link where none is followed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is a symbolic link, and links in this directory are not followed; put what it points at in its place, \
     or mount that there (`mount --bind`)",
    .0.display()
)]
pub struct SymlinkRefused(PathBuf);

impl SymlinkRefused {
    /// The link at `path`.
    pub(super) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Whether this is why `error` has happened.
    pub fn is_cause_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Self>)
    }
}

/// A directory below which no symbolic link is followed. Clones are the same directory.
///
/// Paths are given as they are shown, that is with [`ConfinedDir::path`] in front. One that leads
/// elsewhere, or has `..` in it, is [`io::ErrorKind::InvalidInput`]. An operation that meets a link fails
/// with an error of which [`SymlinkRefused`] is the cause.
///
/// ```
/// use imgfs::backend::{ConfinedDir, SymlinkRefused};
///
/// let temporary = tempfile::tempdir()?;
/// let dir = ConfinedDir::create(&temporary.path().join("images"))?;
/// let (blobs, link) = (dir.path().join("blobs"), dir.path().join("link"));
/// dir.create_dirs(&blobs)?;
/// dir.write(&blobs.join("x"), b"content")?;
/// assert_eq!(dir.read(&blobs.join("x"), 100)?, b"content");
/// assert_eq!(dir.open_dir(&blobs)?.entries()?.len(), 1);
/// dir.rename(&blobs.join("x"), &blobs.join("y"))?;
/// dir.move_file(&blobs.join("y"), &dir.path().join("z"))?;
/// assert!(dir.is_file(&dir.path().join("z")) && !dir.is_file(&blobs.join("y")));
///
/// std::os::unix::fs::symlink("/etc", &link)?;
/// assert!(dir.stat(&link)?.is_symlink());
/// let refused = dir.open_file(&link.join("passwd")).unwrap_err();
/// assert!(SymlinkRefused::is_cause_of(&refused));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ConfinedDir {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// `None` if there is no such directory; then nothing is found in it.
    dir: Option<OwnedFd>,
    /// Whether paths are resolved here, component by component, and not by `openat2`.
    walks: bool,
}

impl ConfinedDir {
    /// Opens the directory `path`. Links in `path` itself are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = retry_on_intr(|| openat(rustix::fs::CWD, path, flags, Mode::empty()))?;
        let walks = !has_openat2(&dir);
        Ok(Self::with(path, Some(dir), walks))
    }

    /// The same after creating `path` and the directories above it, as far as they are missing, with mode
    /// 0755.
    pub fn create(path: &Path) -> io::Result<Self> {
        create_all(path)?;
        Self::open(path)
    }

    /// A directory that does not exist, and will not.
    pub fn absent(path: &Path) -> Self {
        Self::with(path, None, false)
    }

    fn with(path: &Path, dir: Option<OwnedFd>, walks: bool) -> Self {
        Self { inner: Arc::new(Inner { path: path.to_owned(), dir, walks }) }
    }

    /// The directory `path`, which is below this one, as one of its own.
    pub fn subdirectory(&self, path: &Path) -> io::Result<Self> {
        let dir = self.resolve(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self::with(path, Some(dir), self.inner.walks))
    }

    /// Where it is, as it was given.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    // --- looking ---

    /// What is at `path`; of a link, the link.
    pub fn stat(&self, path: &Path) -> io::Result<Metadata> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        File::from(self.resolve(path, flags, Mode::empty())?).metadata()
    }

    /// Whether there is a directory at `path`. What cannot be looked at is none.
    pub fn is_dir(&self, path: &Path) -> bool {
        self.stat(path).is_ok_and(|meta| meta.is_dir())
    }

    /// Whether there is a regular file at `path`. What cannot be looked at is none.
    pub fn is_file(&self, path: &Path) -> bool {
        self.stat(path).is_ok_and(|meta| meta.is_file())
    }

    /// Opens the regular file `path` for reading.
    pub fn open_file(&self, path: &Path) -> io::Result<(File, Metadata)> {
        self.open_regular(path, OFlags::RDONLY)
    }

    /// The first `limit` bytes of the regular file `path`.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let (file, meta) = self.open_file(path)?;
        // At most what the file has, so that a wrong limit costs nothing.
        let mut content = Vec::with_capacity(usize::try_from(meta.len().min(limit)).unwrap_or(0));
        io::Read::read_to_end(&mut io::Read::take(file, limit), &mut content)?;
        Ok(content)
    }

    /// Opens the directory `path` for listing.
    pub fn open_dir(&self, path: &Path) -> io::Result<OpenDir> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map(OpenDir)
    }

    // --- writing ---

    /// Opens the regular file `path` for reading and writing, creating it if need be.
    pub fn open_or_create(&self, path: &Path) -> io::Result<File> {
        self.open_regular(path, OFlags::RDWR | OFlags::CREATE).map(|(file, _)| file)
    }

    /// The same, but what is written is added at its end.
    pub fn append_or_create(&self, path: &Path) -> io::Result<File> {
        self.open_regular(path, OFlags::RDWR | OFlags::CREATE | OFlags::APPEND)
            .map(|(file, _)| file)
    }

    /// The same as [`ConfinedDir::open_or_create`], and makes it empty.
    pub fn create_file(&self, path: &Path) -> io::Result<File> {
        // Not `O_TRUNC`, which would happen before it is known what kind of file it is.
        let (file, meta) = self.open_regular(path, OFlags::RDWR | OFlags::CREATE)?;
        if meta.len() > 0 {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// Creates the file `path`, which must not be there ([`io::ErrorKind::AlreadyExists`]).
    pub fn create_new(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        self.open_regular(path, flags).map(|(file, _)| file)
    }

    /// Opens the regular file `path`, which must be there, for reading and writing.
    pub fn open_to_write(&self, path: &Path) -> io::Result<(File, Metadata)> {
        self.open_regular(path, OFlags::RDWR)
    }

    /// Writes a file in one go, for what needs neither to be durable nor whole at any moment.
    pub fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut self.create_file(path)?, content)
    }

    /// Creates the directory `path` and those between, with mode 0755, and flushes what has changed.
    pub fn create_dirs(&self, path: &Path) -> io::Result<()> {
        self.create_dirs_and(path, Flush::Now)
    }

    /// The same, flushed as `flush` says.
    pub fn create_dirs_and(&self, path: &Path, flush: Flush) -> io::Result<()> {
        match self.resolve(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && path != self.path() => {}
            known => return known.map(drop),
        }
        let Some((above, name)) = path.parent().zip(path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.create_dirs_and(above, flush)?;
        let above = self.open_dir(above)?;
        match mkdirat(&above, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let made = File::from(open_in(above.as_fd(), name, flags, Mode::empty())?);
                if_supported(made.set_permissions(Permissions::from_mode(DIRECTORY_MODE)))?;
                match flush {
                    Flush::Now => if_supported(File::from(above.0).sync_all()),
                    Flush::Later => Ok(()),
                }
            }
            // Another process was faster.
            Err(Errno::EXIST) if self.is_dir(path) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Renames `from` to `to`, replacing what is there.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, old) = self.parent(from)?;
        let (to, new) = self.parent(to)?;
        Ok(renameat(from, old, to, new)?)
    }

    /// Gives the file `from` the name `to`, in another directory most likely, and in place of what has that name.
    /// Another process may see both names for a moment.
    ///
    /// Unlike [`Self::rename`] it never waits for the lock that the kernel takes for a rename between directories, of
    /// which there is one for a file system. An overlay holds that while it copies a directory up, and asks its lower
    /// layers meanwhile: whoever answers for one of these must not wait for it.
    pub fn move_file(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.remove_if_there(to)?;
        match self.hard_link(self, from, to) {
            Ok(()) => self.remove_file(from),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(e),
            // FAT knows no links, and carries no overlay.
            Err(_) => self.rename(from, to),
        }
    }

    /// Makes `to` another name of the file `from` of the directory `of`. Of a link, that is the link.
    pub fn hard_link(&self, of: &Self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, old) = of.parent(from)?;
        let (to, new) = self.parent(to)?;
        Ok(linkat(from, old, to, new, AtFlags::empty())?)
    }

    /// Removes `path`, which is no directory. Of a link, that is the link.
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (above, name) = self.parent(path)?;
        Ok(unlinkat(above, name, AtFlags::empty())?)
    }

    /// Removes the directory `path`, which must be empty.
    pub fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let (above, name) = self.parent(path)?;
        Ok(unlinkat(above, name, AtFlags::REMOVEDIR)?)
    }

    /// The same as [`ConfinedDir::remove_file`]; what is not there is no error.
    pub fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        match self.remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Flushes the directory `path`, so that the names in it survive a power cut.
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if_supported(File::from(self.open_dir(path)?.0).sync_all())
    }

    /// Flushes the regular file `path`.
    pub fn sync_file(&self, path: &Path) -> io::Result<()> {
        if_supported(self.open_file(path)?.0.sync_all())
    }

    // --- resolving ---

    fn open_regular(&self, path: &Path, flags: OFlags) -> io::Result<(File, Metadata)> {
        let mode = match flags.contains(OFlags::CREATE) {
            true => Mode::from_raw_mode(0o666),
            false => Mode::empty(),
        };
        // Without waiting for whoever writes into a named pipe, and without becoming a terminal's owner.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(self.resolve(path, flags, mode)?);
        let meta = file.metadata()?;
        match (meta.is_file(), meta.is_dir()) {
            (true, _) => Ok((file, meta)),
            (_, true) => Err(io::ErrorKind::IsADirectory.into()),
            _ => Err(io::Error::other("it is not a regular file")),
        }
    }

    /// The directory that `path` is in, and its name there.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (above, name) =
            path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.resolve(above, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name))
    }

    fn resolve(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let below = self.below(path)?;
        let dir = self.inner.dir.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let flags = flags | OFlags::CLOEXEC;
        let opened = match self.inner.walks {
            true => walk(dir, below, flags, mode),
            false => retry_on_intr(|| openat2(dir, below, flags, mode, resolve_flags())),
        };
        opened.map_err(|error| match error {
            // The walk asks for directories, and gets this where a link is.
            Errno::LOOP | Errno::NOTDIR => self.first_link(dir, below).unwrap_or(error.into()),
            _ => error.into(),
        })
    }

    /// `path` as seen from here.
    fn below<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        let below = path.strip_prefix(self.path()).map_err(io::Error::other)?;
        if below.as_os_str().is_empty() {
            return Ok(Path::new("."));
        }
        match below.components().all(|part| matches!(part, Component::Normal(_))) {
            true => Ok(below),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The error that names the first link on the way to `below`, if there is one.
    fn first_link(&self, dir: &OwnedFd, below: &Path) -> Option<io::Error> {
        let mut at = dir.try_clone().ok()?;
        let mut path = self.path().to_owned();
        for part in below.components() {
            path.push(part);
            at = open_in(at.as_fd(), part.as_os_str(), OFlags::PATH, Mode::empty()).ok()?;
            if FileType::from_raw_mode(fstat(&at).ok()?.st_mode) == FileType::Symlink {
                return Some(io::Error::other(SymlinkRefused(path)));
            }
        }
        None
    }
}

/// A directory that is open for listing.
#[derive(Debug)]
pub struct OpenDir(OwnedFd);

impl AsFd for OpenDir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: OsString,
    /// What it is: of a link, a link.
    pub kind: FileType,
}

impl OpenDir {
    /// What is in it, in no order, without `.` and `..`. To be asked once.
    pub fn entries(&self) -> io::Result<Vec<DirEntry>> {
        let mut buffer = Vec::with_capacity(ENTRIES_BUFFER);
        let mut listed = RawDir::new(&self.0, buffer.spare_capacity_mut());
        let mut entries = Vec::new();
        while let Some(entry) = listed.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let name = OsStr::from_bytes(name).to_owned();
            let kind = match entry.file_type() {
                // The file system does not tell.
                FileType::Unknown => match self.stat(&name) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                },
                kind => kind,
            };
            entries.push(DirEntry { name, kind });
        }
        Ok(entries)
    }

    /// What the entry `name` is; of a link, the link.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Stat> {
        Ok(statat(&self.0, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Opens `name`, a single component, in `dir`. With `O_PATH`, of a link that is the link.
fn open_in(
    dir: std::os::fd::BorrowedFd<'_>,
    name: &OsStr,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| openat(dir, name, flags, mode))
}

/// What `openat2` does with [`resolve_flags`], for kernels that do not have it.
fn walk(dir: &OwnedFd, below: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let mut parts = below.components().peekable();
    let mut at = None;
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        let (flags, mode) = match is_last {
            true => (flags, mode),
            false => (OFlags::PATH | OFlags::DIRECTORY, Mode::empty()),
        };
        let above = at.as_ref().unwrap_or(dir).as_fd();
        let name = if below == Path::new(".") { OsStr::new(".") } else { part.as_os_str() };
        let opened = open_in(above, name, flags, mode)?;
        if is_last {
            return Ok(opened);
        }
        at = Some(opened);
    }
    Err(Errno::INVAL)
}

fn resolve_flags() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// Whether the kernel has `openat2`, and lets us use it: filters of containers say `EPERM` or `ENOSYS`.
fn has_openat2(dir: &OwnedFd) -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    *HAS.get_or_init(|| openat2(dir, ".", flags, Mode::empty(), resolve_flags()).is_ok())
}

/// What has come of giving a file that was just made a mode or time, or of flushing a directory. Not all file
/// systems can do that (FAT, exFAT and SMB have neither modes nor owners, some servers do not flush
/// directories), and a directory of images can do without.
pub(super) fn if_supported(done: io::Result<()>) -> io::Result<()> {
    let cannot = |error: &io::Error| {
        let errno = Errno::from_io_error(error);
        matches!(errno, Some(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS))
    };
    match done {
        Err(error) if cannot(&error) => Ok(()),
        done => done,
    }
}

/// Creates `dir` and its parents with mode 0755, whatever the process's mask takes away.
fn create_all(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = dir.parent().filter(|path| !path.as_os_str().is_empty());
    above.map_or(Ok(()), create_all)?;
    match fs::create_dir(dir) {
        Ok(()) => {
            if_supported(fs::set_permissions(dir, Permissions::from_mode(DIRECTORY_MODE)))?;
            if_supported(File::open(above.unwrap_or(Path::new(".")))?.sync_all())
        }
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The directory with `openat2`, and without.
    fn both(path: &Path) -> [ConfinedDir; 2] {
        let new = ConfinedDir::open(path).unwrap();
        assert!(!new.inner.walks, "this kernel has openat2");
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = openat(rustix::fs::CWD, path, flags, Mode::empty()).unwrap();
        [new, ConfinedDir::with(path, Some(dir), true)]
    }

    fn refused(error: &io::Error, link: &Path) -> bool {
        SymlinkRefused::is_cause_of(error)
            && error.to_string().starts_with(&format!("{} is a symbolic link", link.display()))
    }

    #[test]
    fn no_link_is_followed() {
        let place = tempfile::tempdir().unwrap();
        let (outside, path) = (place.path().join("outside"), place.path().join("root"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/b/file"), "content").unwrap();
        symlink(outside.join("secret"), path.join("a/link")).unwrap();
        symlink(&outside, path.join("out")).unwrap();
        symlink("a", path.join("inside")).unwrap();
        symlink("/proc/self/root", path.join("magic")).unwrap();
        symlink("nowhere", path.join("dangling")).unwrap();
        // The path of the directory itself may be a link.
        symlink(&path, place.path().join("way")).unwrap();
        let path = place.path().join("way");
        for dir in both(&path) {
            let at = |below: &str| path.join(below);
            assert_eq!(dir.read(&at("a/b/file"), 3).unwrap(), b"con");
            assert_eq!(dir.stat(&at("a/b/file")).unwrap().len(), 7);
            assert!(dir.is_dir(&path) && dir.is_dir(&at("a/b")) && !dir.is_dir(&at("out")));
            for (below, link) in [
                ("a/link", "a/link"),
                ("out/secret", "out"),
                ("inside/b/file", "inside"),
                ("magic/etc/passwd", "magic"),
                ("dangling", "dangling"),
            ] {
                let (below, link) = (at(below), at(link));
                let fails = |what: &str, failed: Option<io::Error>| {
                    let error = failed.unwrap_or_else(|| panic!("{what} {}", below.display()));
                    assert!(refused(&error, &link), "{what} {}: {error}", below.display());
                };
                fails("read", dir.open_file(&below).err());
                fails("create", dir.open_or_create(&below).err());
                fails("append", dir.append_or_create(&below).err());
                fails("empty", dir.create_file(&below).err());
                fails("list", dir.open_dir(&below).err());
                if below == link {
                    assert!(dir.stat(&below).unwrap().is_symlink());
                    let error = dir.create_new(&below).unwrap_err();
                    let is_there = error.kind() == io::ErrorKind::AlreadyExists;
                    assert!(is_there || refused(&error, &link), "{error}");
                } else {
                    fails("stat", dir.stat(&below).err());
                    fails("create", dir.create_new(&below).err());
                    fails("rename", dir.rename(&at("a/b/file"), &below).err());
                    fails("link", dir.hard_link(&dir, &at("a/b/file"), &below).err());
                    fails("remove", dir.remove_file(&below).err());
                }
                fails("make directories", dir.create_dirs(&below.join("x/y")).err());
            }
            assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
            for wrong in [at("../outside/secret"), outside.join("secret"), "a/b/file".into()] {
                assert!(dir.open_file(&wrong).is_err() && dir.stat(&wrong).is_err());
            }
        }
    }

    #[test]
    fn links_are_replaced_and_removed_themselves() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("outside"), "outside").unwrap();
        let path = place.path().join("root");
        fs::create_dir(&path).unwrap();
        for dir in both(&path) {
            let [file, link] = ["file", "link"].map(|name| path.join(name));
            dir.write(&file, b"new").unwrap();
            symlink("../outside", &link).unwrap();
            dir.rename(&file, &link).unwrap();
            assert_eq!(dir.read(&link, 9).unwrap(), b"new");
            dir.remove_file(&link).unwrap();
            symlink("../outside", &link).unwrap();
            dir.remove_if_there(&link).unwrap();
            dir.remove_if_there(&link).unwrap();
            assert_eq!(dir.open_dir(&path).unwrap().entries().unwrap(), []);
            assert_eq!(fs::read(place.path().join("outside")).unwrap(), b"outside");
        }
    }

    #[test]
    fn what_is_no_file_is_an_error_at_once() {
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::from_raw_mode(0o644)).unwrap();
        fs::create_dir(place.path().join("dir")).unwrap();
        for dir in both(place.path()) {
            assert!(dir.open_file(&pipe).is_err() && dir.open_or_create(&pipe).is_err());
            let error = dir.open_file(&place.path().join("dir")).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
            let mut entries = dir.open_dir(place.path()).unwrap().entries().unwrap();
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            let kinds: Vec<_> = entries.iter().map(|entry| entry.kind).collect();
            assert_eq!(kinds, [FileType::Directory, FileType::Fifo]);
        }
    }

    #[test]
    fn directories_are_made_with_one_mode() {
        let place = tempfile::tempdir().unwrap();
        for (number, dir) in both(place.path()).iter().enumerate() {
            let path = place.path().join(number.to_string()).join("b/c");
            dir.create_dirs(&path).unwrap();
            dir.create_dirs(&path).unwrap();
            let mode = dir.stat(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, DIRECTORY_MODE);
            dir.write(&path.join("file"), b"").unwrap();
            assert!(dir.create_dirs(&path.join("file/d")).is_err());
            let below = dir.subdirectory(&path).unwrap();
            assert!(below.is_file(&path.join("file")) && below.stat(place.path()).is_err());
        }
        let absent = ConfinedDir::absent(&place.path().join("no"));
        let error = absent.create_dirs(&place.path().join("no/a")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    /// A directory is exchanged for a link again and again while files in it are read and written.
    #[test]
    fn exchanging_a_directory_for_a_link_leads_nowhere_else() {
        let place = tempfile::tempdir().unwrap();
        let (outside, path) = (place.path().join("outside"), place.path().join("root"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "outside").unwrap();
        fs::create_dir_all(path.join("dir")).unwrap();
        fs::write(path.join("dir/file"), "inside").unwrap();
        symlink(&outside, path.join("link")).unwrap();
        let swap = || {
            let [a, b] = [path.join("dir"), path.join("link")];
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags).unwrap();
        };
        for dir in both(&path) {
            let done = std::sync::atomic::AtomicBool::new(false);
            let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
            let (mut read, mut refusals) = (0, 0);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_done() {
                        swap();
                    }
                });
                while read < 200 || refusals < 200 {
                    match dir.read(&path.join("dir/file"), 99) {
                        Ok(content) => {
                            assert_eq!(content, b"inside");
                            read += 1;
                        }
                        Err(_) => refusals += 1,
                    }
                    let _ = dir.write(&path.join("dir/new"), b"x");
                    let _ = dir.create_dirs(&path.join("dir/made/too"));
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing is written there");
        }
    }
}
