//! Opening an images_dir: whether a directory is one, which layout it has, and creating what is missing.

use std::{fs::File, io, path::Path, sync::Arc};

use super::{
    ImagesDir, Inner, LOCKS, Layout, Linking, MAX_LAYOUT_NAME, PARTIAL, SCRATCH, SIDE, STATE,
    layout::{self, BLOBS},
    medium, other_tools, portable, publish,
    records::Records,
    source::ReferrersCache,
    store::Traffic,
};
use crate::{
    backend::{ConfinedDir, Error, FileType, Kind, Result},
    image::Digest,
};

/// The file that says which layout a tree has.
const LAYOUT: &str = "layout";

impl ImagesDir {
    /// Opens the tree at `root` for reading. It must exist. A directory of another tool is refused.
    pub fn open(root: &Path) -> Result<Self> {
        let dir = ConfinedDir::open(root).map_err(|e| no_directory(root, "opening", e))?;
        let layout = find_layout(&dir, BlobNames::of(&dir)?)?.unwrap_or_default();
        Self::with(dir, layout, Linking::default(), None)
    }

    /// Opens the tree at `root` to be filled, creating what is missing. `layout` is for a new
    /// tree; one that has something in it keeps its own, and another one is refused. So is a directory of
    /// another tool, and a layout whose names the file system does not take.
    pub fn create(root: &Path, layout: Option<Layout>, linking: Linking) -> Result<Self> {
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
            publish::publish(&dir, &state.join(SCRATCH), &remembered, text.as_bytes(), time)
                .map_err(failed)?;
        }
        let filling = dir.open_or_create(&state.join(LOCKS).join("tree")).map_err(failed)?;
        // Waits while `prune` is at work, which does not take long.
        filling.lock_shared().map_err(failed)?;
        Self::with(dir, chosen, linking, Some(filling))
    }

    /// A tree at `root` that does not exist: for finding out what would have to be done.
    pub fn absent(root: &Path) -> Self {
        let root = ConfinedDir::absent(root);
        let records = Records::absent(root.clone());
        Self::new(root, Layout::default(), records, Linking::default(), None)
    }

    fn with(
        root: ConfinedDir,
        layout: Layout,
        linking: Linking,
        filling: Option<File>,
    ) -> Result<Self> {
        let path = root.path().join(BLOBS).join(STATE).join("records");
        let knows_again = medium::knows_files_again(&root, layout);
        let records = Records::open(root.clone(), path.clone(), knows_again);
        let records = records.map_err(|e| Error::io(&path, "reading", e))?;
        Ok(Self::new(root, layout, records, linking, filling))
    }

    pub(super) fn new(
        root: ConfinedDir,
        layout: Layout,
        records: Records,
        linking: Linking,
        filling: Option<File>,
    ) -> Self {
        let inner = Inner {
            root,
            layout,
            records,
            linking,
            traffic: Traffic::default(),
            referrers: ReferrersCache::default(),
            _filling: filling,
            by_algorithm: false,
        };
        Self { inner: Arc::new(inner) }
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
