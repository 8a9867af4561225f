//! Looking into an image without pulling or unpacking it.

use std::{
    fs::{self, DirBuilder},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::Arc,
};

use super::{Error, Result};
use crate::{
    backend::{
        self, Backend,
        images_dir::ImagesDir,
        registry::{Registry, RegistryConfig},
    },
    cache::{Cache, CacheConfig},
    catalogue::{self, Catalogue},
    image::{Digest, Platform, PlatformError, PlatformFilter, Reference},
    layer::{Attributes, Broken, Kind, Node},
    rootfs::{Files, Images, Sources, Tree},
    transfer::Options,
    util::Budget,
};

/// What is read of a file at a time, in bytes.
const STEP: usize = 1 << 20;

/// What may be kept of blobs while an image is open that has no images_dir, in bytes.
const SCRATCH_BYTES: u64 = 4 << 30;

/// What may be kept in the cache of an images_dir, as by `imgfs mount`.
const CACHE_BYTES: u64 = 10 << 30;

/// The platform of this machine.
pub fn this_machine() -> std::result::Result<Platform, PlatformError> {
    format!("linux/{}", std::env::consts::ARCH).parse()
}

/// Which image to look into.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The image.
    pub image: Reference,
    /// What it is called in errors.
    pub shown: String,
    /// Where it may be, and where indexes and blobs are kept if it exists.
    pub images_dir: PathBuf,
    /// The platform that is wanted. If it is only `preferred`, the single platform of an image is
    /// taken in its place.
    pub platform: Platform,
    /// Whether an image for one other platform will do.
    pub any_single_platform: bool,
    /// Ask no registry.
    pub offline: bool,
}

/// An image that is being looked into.
pub struct OpenImage {
    files: Files,
    scratch: Option<Scratch>,
}

/// A file in an image.
#[derive(Clone, Debug)]
pub struct FileEntry {
    /// Its path below the directory that was listed, as bytes that need not be text.
    pub path: Vec<u8>,
    /// Where it leads, if it is a symbolic link.
    pub target: Option<Vec<u8>>,
    /// Why it cannot be read, if that is so.
    pub broken: Option<Broken>,
    /// Everything else.
    pub attributes: Attributes,
}

/// What is in a directory of an image.
#[derive(Clone, Debug)]
pub struct FileListing {
    /// The files, in the order of their names.
    pub entries: Vec<FileEntry>,
    /// Why these may not be all: a layer is damaged, though it is the one that the manifest means.
    pub damage: Option<backend::Error>,
    /// Entries of its layers that no file system can have, or not as they are, with the reason.
    pub notes: Vec<String>,
}

impl OpenImage {
    /// Opens an image. Has to be called in a runtime, and used there.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use imgfs::{backend::registry::RegistryConfig, ops::{OpenImage, OpenRequest, this_machine}};
    ///
    /// let temporary = tempfile::tempdir()?;
    /// let request = OpenRequest {
    ///     image: "registry.example.com/team/app:v1".parse()?,
    ///     shown: "app:v1".to_owned(),
    ///     images_dir: temporary.path().to_owned(),
    ///     platform: this_machine()?,
    ///     any_single_platform: true,
    ///     offline: true,
    /// };
    /// // It is not there, and no registry is asked.
    /// let error = OpenImage::open(&request, RegistryConfig::default()).await.err().unwrap();
    /// assert!(error.is_of_image(), "{error}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn open(request: &OpenRequest, config: RegistryConfig) -> Result<Self> {
        let patience = config.patience();
        let (dir, cache, scratch) = cache(request)?;
        let remote: Option<Arc<dyn Backend>> = match request.offline {
            true => None,
            false => Some(Arc::new(Registry::new(config))),
        };
        let platforms = match request.any_single_platform {
            true => PlatformFilter::All,
            false => PlatformFilter::Only(vec![request.platform.clone()]),
        };
        // One name is looked up, once.
        let names = catalogue::Settings {
            options: Options { platforms, ..Options::default() },
            tag_ttl: patience,
            absent_ttl: patience,
        };
        // An image that is open for a command is let go with it, and gives all memory back.
        let memory = Budget::unlimited();
        let catalogue = Catalogue::new(dir, remote, names, &memory);
        let verify_first = false;
        let images = Images::new(Sources { catalogue, cache, patience, verify_first, memory });
        let name = &request.image;
        let digest = images.manifest(name).await.map_err(Error::Image)?.digest();
        let opened = images.image(name.repository(), digest).await.map_err(Error::Image)?;
        let only = || {
            let mut all = opened.platforms();
            all.next().filter(|_| all.next().is_none() && request.any_single_platform)
        };
        let image = request.shown.clone();
        let wanted = &request.platform;
        let Some(platform) = opened.platform_for(wanted).or_else(only) else {
            let platforms = opened.platforms().map(str::to_owned).collect();
            return Err(Error::NotForPlatform { image, wanted: wanted.to_string(), platforms });
        };
        let variant = images.variant(&opened, platform).await.map_err(Error::Image)?;
        let platform = platform.to_owned();
        let variant = variant.ok_or(Error::NoVariant { image, platform })?;
        Ok(Self { files: images.files(&variant, None), scratch })
    }

    /// Lists what is at `path`: the entries of a directory, also those further down if `recursive`,
    /// or the file itself. `None` if nothing is there.
    pub async fn list(&self, path: &str, recursive: bool) -> Result<Option<FileListing>> {
        let found = self.files.resolve(path.as_bytes(), true).await.map_err(Error::Image)?;
        let (tree, node) = found.map_err(Error::Path)?;
        let found = match is_directory(&tree, node) {
            // What is in a directory is told by all layers.
            true => {
                let place = tree.rootfs().path(node);
                let tree = self.files.tree().await.map_err(Error::Image)?;
                tree.rootfs().find(&place).map(|node| (tree, node))
            }
            false => Some((tree, node)),
        };
        let Some((tree, node)) = found else { return Ok(None) };
        let mut listing = FileListing { entries: Vec::new(), damage: None, notes: Vec::new() };
        match is_directory(&tree, node) {
            true => {
                list(&tree, node, &mut Vec::new(), recursive, &mut listing.entries);
                listing.damage = tree.damage().cloned();
                listing.notes = notes(&tree);
            }
            false => listing.entries.push(FileEntry::new(&tree, node, tree.rootfs().name(node))),
        }
        Ok(Some(listing))
    }

    /// Reads the file at `path` from its beginning to its end. What has been written is only known
    /// to be right when this returns without an error. [`Error::Doubtful`] if all was written, and a damaged layer
    /// may have had another file in its place.
    pub async fn read(&self, path: &str, into: &mut impl Write) -> Result<()> {
        let found = self.files.resolve(path.as_bytes(), true).await?;
        let (tree, node) = found.map_err(Error::Path)?;
        let Some(file) = tree.open(node)? else {
            let is_directory = is_directory(&tree, node);
            return Err(Error::NotAFile(if is_directory {
                "a directory"
            } else {
                "no regular file"
            }));
        };
        let mut at = 0;
        while at < file.size() {
            let bytes = file.read(at, STEP).await?;
            at += bytes.len() as u64;
            into.write_all(&bytes).map_err(Error::Output)?;
        }
        file.verified().await?;
        into.flush().map_err(Error::Output)?;
        match self.files.damage_above(&file) {
            Some(damage) => Err(Error::Doubtful(damage)),
            None => Ok(()),
        }
    }

    /// Closes the image. What was kept for it alone goes with what is returned, which is to be
    /// dropped when the runtime has ended.
    pub fn close(self) -> Option<Scratch> {
        self.scratch
    }
}

impl FileEntry {
    fn new(tree: &Tree, node: Node, path: &[u8]) -> Self {
        Self {
            path: path.to_owned(),
            target: tree.rootfs().symlink_target(node).map(<[u8]>::to_owned),
            broken: tree.rootfs().broken(node),
            attributes: tree.rootfs().attributes(node),
        }
    }
}

fn is_directory(tree: &Tree, node: Node) -> bool {
    tree.rootfs().attributes(node).kind == Kind::Dir
}

/// What the layers of an image have that is not shown, or not as it stands there. What is wrong with a layer as a
/// whole is not in it.
fn notes(tree: &Tree) -> Vec<String> {
    let notes = tree.notes().filter(|(_, name, _)| !name.is_empty());
    let text = |(layer, name, why): (Digest, &[u8], String)| {
        let name = String::from_utf8_lossy(name);
        format!("layer {layer} has an entry `{name}` that cannot be shown as it is: {why}")
    };
    notes.map(text).collect()
}

fn list(tree: &Tree, dir: Node, path: &mut Vec<u8>, recursive: bool, into: &mut Vec<FileEntry>) {
    for (name, node) in tree.rootfs().entries(dir) {
        let length = path.len();
        path.extend_from_slice(name);
        into.push(FileEntry::new(tree, node, path));
        if recursive && is_directory(tree, node) {
            path.push(b'/');
            list(tree, node, path, recursive, into);
        }
        path.truncate(length);
    }
}

/// The images_dir, and where to keep what is fetched: in its cache, or in a directory that goes with
/// the image if there is no images_dir, or somebody else has its cache open.
fn cache(request: &OpenRequest) -> Result<(ImagesDir, Cache, Option<Scratch>)> {
    let root = &request.images_dir;
    let dir = if root.exists() { ImagesDir::open(root)? } else { ImagesDir::absent(root) };
    if root.exists()
        && let Ok(cache) = Cache::open(CacheConfig::in_images_dir(&dir, CACHE_BYTES))
    {
        return Ok((dir, cache, None));
    }
    let scratch = Scratch::new()?;
    let cache = Cache::open(CacheConfig::new(scratch.0.clone(), SCRATCH_BYTES))?;
    let dir = if root.exists() { dir } else { scratch.images_dir()? };
    Ok((dir, cache, Some(scratch)))
}

/// A directory for what is needed as long as this exists.
pub struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let base = std::env::temp_dir();
        for number in 0..100 {
            let path = base.join(format!("imgfs-{}-{number}", std::process::id()));
            // Nobody else can have made it before, or look into it.
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::Scratch { path, error }),
            }
        }
        let error = io::Error::other("it is full of what imgfs has left");
        Err(Error::Scratch { path: base, error })
    }
}

impl Scratch {
    /// An empty images_dir in it, where what has been found inside images can be kept.
    fn images_dir(&self) -> Result<ImagesDir> {
        let path = self.0.join("images");
        fs::create_dir(&path).map_err(|error| Error::Scratch { path: path.clone(), error })?;
        Ok(ImagesDir::open(&path)?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is a matter for whoever tidies up temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}
