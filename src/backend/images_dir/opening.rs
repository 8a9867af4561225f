//! Opening an images_dir: whether a directory is one, which layout it has, and creating what is missing.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use super::{
    ImagesDir, Inner, LOCKS, Layout, Linking, MAX_LAYOUT_NAME, PARTIAL, SCRATCH, SIDE, STATE,
    SyncMode,
    durability::Epoch,
    layout::{self, BLOBS},
    medium, other_tools, portable, publish,
    records::Records,
    source::ReferrersCache,
    store::Traffic,
};
use crate::{
    backend::{ConfinedDir, Error, FileType, Flush, Kind, Result, writeback::Writeback},
    image::Digest,
};

/// The file that says which layout a tree has.
const LAYOUT: &str = "layout";

impl ImagesDir {
    /// Opens the tree at `root` for reading. It must exist. A directory of another tool is refused.
    pub fn open(root: &Path) -> Result<Self> {
        Self::opened(root, |_| SyncMode::Each)
    }

    /// The same, to be written to by programs that flush what they write themselves, if that is to be: nothing is
    /// flushed here before it gets its name, where the kernel tells how long what is in memory may be believed.
    pub fn open_unflushed(root: &Path) -> Result<Self> {
        // Nobody says when everything has been written.
        Self::opened(root, |epoch| if epoch.is_some() { SyncMode::None } else { SyncMode::Each })
    }

    fn opened(root: &Path, sync: impl FnOnce(Option<&Epoch>) -> SyncMode) -> Result<Self> {
        let dir = ConfinedDir::open(root).map_err(|e| no_directory(root, "opening", e))?;
        let layout = find_layout(&dir, BlobNames::of(&dir)?)?.unwrap_or_default();
        let epoch = Epoch::now(&dir, &dir.path().join(BLOBS).join(STATE));
        Self::in_epoch(dir, layout, Linking::default(), sync(epoch.as_ref()), None, epoch)
    }

    /// Opens the tree at `root` to be filled, creating what is missing. `layout` is for a new
    /// tree; one that has something in it keeps its own, and another one is refused. So is a directory of
    /// another tool, and a layout whose names the file system does not take. Every file is flushed before it gets
    /// its name.
    pub fn create(root: &Path, layout: Option<Layout>, linking: Linking) -> Result<Self> {
        Self::create_synced(root, layout, linking, SyncMode::Each)
    }

    /// The same, but files are flushed as `sync` says. [`ImagesDir::finish`] is to be called when all are there.
    ///
    /// On file systems of other machines (NFS, SMB and the like) that is [`SyncMode::Each`] in any case, and
    /// [`SyncMode::End`] at least where the kernel does not tell one mount from another (before Linux 6.8).
    pub fn create_synced(
        root: &Path,
        layout: Option<Layout>,
        linking: Linking,
        sync: SyncMode,
    ) -> Result<Self> {
        let failed = |e| Error::io(root, "creating", e);
        let refuse = |reason: String| {
            Error::new(SIDE, format_args!("opening {}", root.display()), Kind::Config(reason))
        };
        let dir = ConfinedDir::create(root).map_err(|e| no_directory(root, "creating", e))?;
        let blobs = BlobNames::of(&dir)?;
        let existing = find_layout(&dir, blobs)?;
        let state = root.join(BLOBS).join(STATE);
        let remembered = state.join(LAYOUT);
        let is_there = |path: &Path| dir.stat(path).is_ok();
        let chosen = match (existing, layout) {
            // Without images of Docker Hub these two look the same.
            (Some(Layout::Documented), Some(Layout::Kubekey403))
                if !is_there(&root.join("docker.io")) && !is_there(&remembered) =>
            {
                Layout::Kubekey403
            }
            // Whoever has not got further than this has nothing to lose.
            (Some(existing), Some(wanted))
                if existing != wanted && blobs == BlobNames::default() && is_bare(&dir)? =>
            {
                wanted
            }
            (Some(existing), Some(wanted)) if existing != wanted => {
                return Err(refuse(format!(
                    "this tree has the layout `{}`; --layout {} is for a new tree",
                    existing.as_str(),
                    wanted.as_str()
                )));
            }
            (existing, wanted) => existing.or(wanted).unwrap_or_default(),
        };
        // A tree that has such names is on a file system that takes them.
        if chosen != Layout::Portable
            && !blobs.with_colons
            && !medium::takes_colons(&dir).map_err(failed)?
        {
            return Err(refuse(format!(
                "this file system{} takes no colons in names, and the layout `{}` needs them (`sha256:...`); \
                 --layout portable makes a directory without them, which all commands read",
                medium::describe(&dir),
                chosen.as_str(),
            )));
        }
        for name in [PARTIAL, SCRATCH, LOCKS] {
            dir.create_dirs(&state.join(name)).map_err(failed)?;
        }
        if existing != Some(chosen) || !is_there(&remembered) {
            let text = format!("{}\n", chosen.as_str());
            let time = publish::Time::Immutable;
            let scratch = state.join(SCRATCH);
            publish::publish(&dir, &scratch, &remembered, text.as_bytes(), time, Flush::Now)
                .map_err(failed)?;
        }
        let filling = dir.open_or_create(&state.join(LOCKS).join("tree")).map_err(failed)?;
        // Waits while `prune` is at work, which does not take long.
        filling.lock_shared().map_err(failed)?;
        let created = Self::with(dir, chosen, linking, sync, Some(filling))?;
        created.inner.settle_old();
        Ok(created)
    }

    /// A tree at `root` that does not exist: for finding out what would have to be done.
    pub fn absent(root: &Path) -> Self {
        let root = ConfinedDir::absent(root);
        let inner = Inner {
            records: Records::absent(root.clone()),
            root,
            layout: Layout::default(),
            linking: Linking::default(),
            sync: SyncMode::Each,
            knows_again: true,
            writeback: None,
            traffic: Traffic::default(),
            referrers: ReferrersCache::default(),
            last_map: Mutex::default(),
            filling: None,
            by_algorithm: false,
        };
        Self { inner: Arc::new(inner) }
    }

    fn with(
        root: ConfinedDir,
        layout: Layout,
        linking: Linking,
        sync: SyncMode,
        filling: Option<File>,
    ) -> Result<Self> {
        let epoch = Epoch::now(&root, &root.path().join(BLOBS).join(STATE));
        Self::in_epoch(root, layout, linking, sync, filling, epoch)
    }

    /// The same; what is in memory since `epoch` is believed.
    pub(super) fn in_epoch(
        root: ConfinedDir,
        layout: Layout,
        linking: Linking,
        sync: SyncMode,
        filling: Option<File>,
        epoch: Option<Epoch>,
    ) -> Result<Self> {
        let knows_again = medium::knows_files_again(&root, layout);
        let sync = match sync {
            _ if medium::is_remote(&root) => SyncMode::Each,
            SyncMode::None if knows_again && epoch.is_none() => SyncMode::End,
            sync => sync,
        };
        let path = root.path().join(BLOBS).join(STATE).join("records");
        let records = Records::open(root.clone(), path.clone(), knows_again, epoch, sync.flush());
        let records = records.map_err(|e| Error::io(&path, "reading", e))?;
        let begins = sync.flush() == Flush::Later && !medium::is_in_memory(&root);
        let inner = Inner {
            root,
            layout,
            records,
            linking,
            sync,
            knows_again,
            writeback: begins.then(Writeback::default),
            traffic: Traffic::default(),
            referrers: ReferrersCache::default(),
            last_map: Mutex::default(),
            filling,
            by_algorithm: false,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The same, with its blobs in a directory for each algorithm. To be called before anybody else has it.
    pub(super) fn by_algorithm(mut self) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.by_algorithm = true;
        }
        self
    }
}

/// The error for what cannot be opened as a directory. A file is named for what it is.
fn no_directory(root: &Path, doing: &str, error: io::Error) -> Error {
    match root.is_file() {
        true => Error::new(
            SIDE,
            format_args!("{doing} {}", root.display()),
            Kind::Config(other_tools::describe_file(root)),
        ),
        false => Error::io(root, doing, error),
    }
}

/// The layout of the tree at `root`, which has such `blobs`: the one that is remembered, or else what its
/// files show. `None` for an empty tree.
fn find_layout(root: &ConfinedDir, blobs: BlobNames) -> Result<Option<Layout>> {
    let refuse = |path: &Path, reason: String| {
        Error::new(SIDE, format_args!("reading {}", path.display()), Kind::Config(reason))
    };
    let remembered = root.path().join(BLOBS).join(STATE).join(LAYOUT);
    let layout = match root.read(&remembered, MAX_LAYOUT_NAME) {
        Ok(text) => {
            let parsed = String::from_utf8_lossy(&text).trim().parse::<Layout>();
            Some(parsed.map_err(|reason| refuse(&remembered, reason))?)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io(&remembered, "reading", e)),
    };
    let is_portable = layout.map_or(blobs.portable, |layout| layout == Layout::Portable);
    if (is_portable && blobs.with_colons) || (!is_portable && blobs.portable) {
        let reason = "it has blobs of the layout `portable` (sha256-...) and of another one (sha256:...), as if \
                      two directories had been copied into one; imgfs keeps one layout in a directory: take the \
                      files of one of them out, and bring their images back with `imgfs copy`";
        return Err(refuse(root.path(), reason.into()));
    }
    if layout.is_some() {
        return Ok(layout);
    }
    if is_portable {
        return Ok(Some(Layout::Portable));
    }
    if !blobs.with_colons
        && let Some(found) = other_tools::recognise(root)
    {
        return Err(refuse(root.path(), found));
    }
    let walk = layout::walk(root, Layout::Documented);
    let walk = walk.map_err(|e| Error::io(root.path(), "reading", e))?;
    let is_g2 = walk.repositories.iter().any(|r| r.map.is_some());
    let is_kubekey = root.is_dir(&root.path().join("registry-1.docker.io"));
    Ok(match (walk.repositories.is_empty(), is_g2, is_kubekey) {
        (true, ..) => None,
        (_, true, _) => Some(Layout::Kubekey),
        (_, _, true) => Some(Layout::Kubekey403),
        _ => Some(Layout::Documented),
    })
}

/// Whether a tree names no image, whatever its layout.
fn is_bare(root: &ConfinedDir) -> Result<bool> {
    let walk = layout::walk(root, Layout::Documented);
    Ok(walk.map_err(|e| Error::io(root.path(), "reading", e))?.repositories.is_empty())
}

/// Which names digests have among the blobs.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct BlobNames {
    /// `sha256:...`
    with_colons: bool,
    /// `sha256-...`
    portable: bool,
}

impl BlobNames {
    fn of(root: &ConfinedDir) -> Result<Self> {
        let path = root.path().join(BLOBS);
        let failed = |e| Error::io(&path, "reading", e);
        let dir = match root.open_dir(&path) {
            Ok(dir) => dir,
            // What must not be listed can be read by name all the same.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                return Ok(Self::default());
            }
            Err(e) => return Err(failed(e)),
        };
        let mut found = Self::default();
        for entry in dir.entries().map_err(failed)? {
            let Some(name) = entry.name.to_str().filter(|_| entry.kind != FileType::Directory)
            else {
                continue;
            };
            found.with_colons |= name.parse::<Digest>().is_ok();
            found.portable |= portable::digest(name).is_some();
        }
        Ok(found)
    }
}
