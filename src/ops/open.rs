//! Looking into images without pulling or unpacking them.

use std::{
    fs::{self, DirBuilder},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use super::{AttachTo, Error, Result, Source};
use crate::{
    backend::{
        self, Backend, Sink,
        images_dir::{ImagesDir, Linking},
        registry::{Registry, RegistryConfig, RegistrySink},
    },
    cache::{Cache, CacheConfig},
    catalogue::{self, Catalogue},
    image::{Digest, Manifest, Platform, PlatformError, PlatformFilter, Reference, ReferenceError},
    layer::{Attributes, Broken, Kind, Node},
    rootfs::{Files, Image, Images, IndexCache, Profiles, Sources, Tree, Variant},
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

/// How images are looked into.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Where images may be, and where indexes and blobs are kept if it exists.
    pub images_dir: PathBuf,
    /// Where indexes of layers, manifests and configurations are kept if `images_dir` does not exist;
    /// `None` if they are not to be kept longer than the images are open.
    pub index_cache: Option<IndexCache>,
    /// The platform that is wanted.
    pub platform: Platform,
    /// Whether an image for one other platform, and no more, will do.
    pub any_single_platform: bool,
    /// Ask no registry.
    pub offline: bool,
}

/// An image as somebody has named it.
#[derive(Clone, Debug)]
pub struct NamedImage {
    /// The image.
    pub reference: Reference,
    /// What it is called in reports and errors.
    pub shown: String,
}

impl FromStr for NamedImage {
    type Err = ReferenceError;

    fn from_str(text: &str) -> std::result::Result<Self, ReferenceError> {
        Ok(Self { reference: text.parse()?, shown: text.to_owned() })
    }
}

/// Opens images to look into them. What several of them have in common is fetched once.
pub struct Opener {
    images: Images,
    catalogue: Catalogue,
    /// `None` if none is to be asked.
    registry: Option<Arc<Registry>>,
    options: OpenOptions,
    scratch: Option<Scratch>,
}

/// An image that is being looked into.
pub struct OpenImage {
    pub(super) shown: String,
    pub(super) image: Arc<Image>,
    /// The platform, as in `linux/arm64/v8`.
    pub(super) platform: String,
    pub(super) variant: Arc<Variant>,
    pub(super) files: Files,
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

impl Opener {
    /// Prepares to open images. Nothing is asked of any registry yet. Has to be called in a runtime,
    /// and used there.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use imgfs::{backend::registry::RegistryConfig, ops::{OpenOptions, Opener, this_machine}};
    ///
    /// let temporary = tempfile::tempdir()?;
    /// let options = OpenOptions {
    ///     images_dir: temporary.path().to_owned(),
    ///     index_cache: None,
    ///     platform: this_machine()?,
    ///     any_single_platform: true,
    ///     offline: true,
    /// };
    /// let opener = Opener::new(options, RegistryConfig::default())?;
    /// // It is not there, and no registry is asked.
    /// let error = opener.open(&"registry.example.com/team/app:v1".parse()?).await.err().unwrap();
    /// assert!(error.is_of_image(), "{error}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn new(options: OpenOptions, config: RegistryConfig) -> Result<Self> {
        let (patience, connections) = (config.patience(), config.connections_per_blob);
        let registry = (!options.offline).then(|| Arc::new(Registry::new(config)));
        let remote = registry.clone().map(|registry| registry as Arc<dyn Backend>);
        let opener = Self::with(options, remote, patience, connections)?;
        Ok(Self { registry, ..opener })
    }

    /// Prepares to open images of `source`, and no others.
    pub fn of_source(options: OpenOptions, source: &Source, patience: Duration) -> Result<Self> {
        // None of the images is in a directory of images.
        let options = OpenOptions { images_dir: PathBuf::new(), ..options };
        Self::with(options, Some(source.backend()), patience, 1)
    }

    fn with(
        options: OpenOptions,
        remote: Option<Arc<dyn Backend>>,
        patience: Duration,
        connections: usize,
    ) -> Result<Self> {
        let Place { dir, cache, index_cache, scratch } = place(&options, connections)?;
        let platforms = match options.any_single_platform {
            true => PlatformFilter::All,
            false => PlatformFilter::Only(vec![options.platform.clone()]),
        };
        // Each name is looked up once.
        let names = catalogue::Settings {
            options: Options { platforms, ..Options::default() },
            tag_ttl: patience,
            absent_ttl: patience,
        };
        // Images that are open for a command are let go with it, and give all memory back.
        let memory = Budget::unlimited();
        let catalogue = Catalogue::new(dir, remote, names, &memory);
        let images = Images::new(Sources {
            catalogue: catalogue.clone(),
            cache,
            patience,
            verify_first: false,
            memory,
            index_cache,
            profiles: Profiles::Off,
            trusted_indexes: Vec::new(),
        });
        Ok(Self { images, catalogue, registry: None, options, scratch })
    }

    /// Opens an image for the platform that is wanted.
    pub async fn open(&self, name: &NamedImage) -> Result<OpenImage> {
        let image = self.image(name).await?;
        let platform = self.platform_of(&image, name)?;
        let variant = self.images.variant(&image, &platform).await.map_err(Error::Image)?;
        let (shown, written) = (name.shown.clone(), image.written(&platform).into_owned());
        let Some(variant) = variant else {
            return Err(Error::NoVariant { image: shown, platform });
        };
        let files = self.images.files(&variant, None);
        Ok(OpenImage { shown, image, platform: written, variant, files })
    }

    /// What `name` leads to, whatever it is for.
    pub(super) async fn image(&self, name: &NamedImage) -> Result<Arc<Image>> {
        let reference = &name.reference;
        let digest = self.images.manifest(reference).await.map_err(Error::Image)?.digest();
        self.images.image(reference.repository(), digest).await.map_err(Error::Image)
    }

    /// The manifest that `name` leads to, of which nothing else is fetched.
    pub(super) async fn manifest(&self, name: &NamedImage) -> Result<Manifest> {
        self.images.manifest(&name.reference).await.map_err(Error::Image)
    }

    /// The name of the platform of `image` that is wanted.
    pub(super) fn platform_of(&self, image: &Image, name: &NamedImage) -> Result<String> {
        let only = || {
            let mut all = image.platforms();
            all.next().filter(|_| all.next().is_none() && self.options.any_single_platform)
        };
        let wanted = &self.options.platform;
        match image.platform_for(wanted).or_else(only) {
            Some(platform) => Ok(platform.to_owned()),
            None => Err(Error::NotForPlatform {
                image: name.shown.clone(),
                wanted: wanted.to_string(),
                platforms: image.platforms().map(|name| image.written(name).into()).collect(),
            }),
        }
    }

    /// What the layers of `opened` from `first` on make, as if there was nothing below them. An error if
    /// that may not be all.
    pub(super) async fn upper_tree(&self, opened: &OpenImage, first: usize) -> Result<Arc<Tree>> {
        let tree = self.images.upper_tree(&opened.variant, first).await.map_err(Error::Image)?;
        opened.whole(tree)
    }

    /// The images that it opens.
    pub(super) fn images(&self) -> &Images {
        &self.images
    }

    /// Where something can be attached to images.
    pub(super) fn place_of(&self, to: AttachTo) -> Result<Arc<dyn Backend>> {
        match to {
            AttachTo::Registry => Ok(self.registry()?),
            AttachTo::Directory => Ok(Arc::new(self.catalogue.dir().clone())),
        }
    }

    /// The same, to write to it.
    pub(super) fn sink_of(&self, to: AttachTo) -> Result<Arc<dyn Sink>> {
        match to {
            AttachTo::Registry => Ok(Arc::new(RegistrySink::new(self.registry()?))),
            AttachTo::Directory => {
                let root = self.catalogue.dir().root();
                Ok(Arc::new(ImagesDir::create(root, None, Linking::Auto)?))
            }
        }
    }

    fn registry(&self) -> Result<Arc<Registry>> {
        let offline =
            || backend::Error::new("registry", "attaching to an image", backend::Kind::Offline);
        Ok(self.registry.clone().ok_or_else(offline)?)
    }

    /// What names lead to.
    pub(super) fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Ends the use of it. What was kept for it alone goes with what is returned, which is to be
    /// dropped when the runtime has ended.
    pub fn close(self) -> Option<Scratch> {
        self.scratch
    }
}

impl OpenImage {
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

    /// All of its files. An error if they may not be all.
    pub(super) async fn whole_tree(&self) -> Result<Arc<Tree>> {
        self.whole(self.files.tree().await.map_err(Error::Image)?)
    }

    fn whole(&self, tree: Arc<Tree>) -> Result<Arc<Tree>> {
        match tree.damage() {
            None => Ok(tree),
            Some(damage) => {
                Err(Error::Incomplete { image: self.shown.clone(), damage: damage.clone() })
            }
        }
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

/// What a file is, in one word.
pub fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File | Kind::Link => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        Kind::Char => "char",
        Kind::Block => "block",
        Kind::Fifo => "fifo",
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

/// Where images are, and where what is found out of them is kept.
struct Place {
    dir: ImagesDir,
    cache: Cache,
    index_cache: Option<IndexCache>,
    scratch: Option<Scratch>,
}

/// The images_dir, and where to keep what is fetched: in its cache, or in a directory that goes with
/// the images if there is no images_dir, or somebody else has its cache open. What is found out of them
/// is kept longer than that, if there is a place for it.
fn place(options: &OpenOptions, connections_per_blob: usize) -> Result<Place> {
    let root = &options.images_dir;
    let dir = if root.exists() { ImagesDir::open(root)? } else { ImagesDir::absent(root) };
    if root.exists()
        && let Ok(cache) = Cache::open(CacheConfig {
            connections_per_blob,
            ..CacheConfig::in_images_dir(&dir, CACHE_BYTES)
        })
    {
        return Ok(Place { dir, cache, index_cache: None, scratch: None });
    }
    let scratch = Scratch::new()?;
    let of_cache = CacheConfig::new(scratch.0.clone(), SCRATCH_BYTES);
    let cache = Cache::open(CacheConfig { connections_per_blob, ..of_cache })?;
    let (dir, index_cache) = match (root.exists(), &options.index_cache) {
        (true, _) => (dir, None),
        (false, Some(index_cache)) => (dir, Some(index_cache.clone())),
        (false, None) => (scratch.images_dir()?, None),
    };
    Ok(Place { dir, cache, index_cache, scratch: Some(scratch) })
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
