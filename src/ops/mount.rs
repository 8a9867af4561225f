//! Putting together what a mount shows.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{
    Error, Result, Source,
    through::{Registries, Through},
};
use crate::{
    backend::{
        Backend,
        images_dir::{ImagesDir, Linking},
        registry::{Registry, RegistryConfig},
    },
    cache::{Cache, CacheConfig},
    image::Reference,
    namespace::{Namespace, Settings, View, Writable},
};

/// What a mount is to show.
pub struct NamespaceRequest {
    /// The images_dir, which is created if it does not exist.
    pub images_dir: PathBuf,
    /// Images that are listed from the start.
    pub images: Vec<Reference>,
    /// Show the root file system of this image, and nothing else.
    pub only: Option<Reference>,
    /// How it behaves.
    pub settings: Settings,
    /// Show what is local, and ask no registry.
    pub offline: bool,
    /// Where the cache is, if not in the images_dir, where each mount has one of its own.
    pub cache_dir: Option<PathBuf>,
    /// What the cache may take of the disk, in bytes.
    pub cache_bytes: u64,
    /// Whether it can be written to.
    pub write: Option<Write>,
}

/// How a mount can be written to.
pub enum Write {
    /// What is written becomes part of the images_dir.
    Local,
    /// And of registries.
    Through(Arc<Through>),
}

/// What a mount shows.
pub struct Shown {
    /// The files and directories, to be given to `fuse::mount`.
    pub view: Arc<dyn Namespace>,
    /// What of that can be read, without what is being written.
    pub reading: Arc<View>,
    /// Where its cache is.
    pub cache_dir: PathBuf,
}

/// Puts together what a mount shows, and looks up the images that are to be listed. Has to be called
/// in a runtime; what waits for registries later waits there.
///
/// An image that cannot be looked up now is logged, and looked up again when somebody opens it.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use imgfs::{
///     backend::registry::RegistryConfig,
///     namespace::{Namespace, ROOT, Settings},
///     ops::{NamespaceRequest, Profiles, namespace, this_machine},
///     transfer::Options,
///     util::Budget,
/// };
/// use std::{ffi::OsStr, time::Duration};
///
/// let temporary = tempfile::tempdir()?;
/// let request = NamespaceRequest {
///     images_dir: temporary.path().join("images"),
///     images: Vec::new(),
///     only: None,
///     settings: Settings {
///         options: Options::default(),
///         tag_ttl: Duration::from_secs(60),
///         platform: this_machine()?,
///         patience: Duration::from_secs(60),
///         verify_first: false,
///         budget: Budget::unlimited(),
///         profiles: Profiles::Off,
///         trusted_indexes: Vec::new(),
///     },
///     offline: true,
///     cache_dir: None,
///     cache_bytes: 1 << 30,
///     write: None,
/// };
/// let shown = namespace(&request, RegistryConfig::default()).await?;
/// assert!(shown.view.lookup(ROOT, OsStr::new("blobs")).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub async fn namespace(request: &NamespaceRequest, config: RegistryConfig) -> Result<Shown> {
    namespace_of(request, config, None).await
}

/// The same with what `source` has instead of what registries have.
pub async fn namespace_of(
    request: &NamespaceRequest,
    config: RegistryConfig,
    source: Option<&Source>,
) -> Result<Shown> {
    let root = &request.images_dir;
    if !root.exists() || request.write.is_some() {
        ImagesDir::create(root, None, Linking::Auto)?;
    }
    let dir = match request.write {
        Some(_) => ImagesDir::open_unflushed(root)?,
        None => ImagesDir::open(root)?,
    };
    let connections_per_blob = config.connections_per_blob;
    let (cache_dir, cache) =
        Cache::open_free(&dir, request.cache_dir.as_deref(), request.cache_bytes, |of_cache| {
            CacheConfig { connections_per_blob, ..of_cache }.within_memory(&request.settings.budget)
        });
    let patience = config.patience();
    let of_upstream = config.clone();
    let source: Arc<dyn Backend> = match source {
        Some(source) => source.backend(),
        None => Arc::new(Registry::within_memory(config, &request.settings.budget)),
    };
    let (source, cache) = match (request.offline, cache) {
        (true, Ok(cache)) => (None, Some(cache)),
        (true, Err(error)) => {
            tracing::warn!("images cannot be looked into: {error}");
            (None, None)
        }
        (false, cache) => (Some(source), Some(cache?)),
    };
    let view = View::new(dir, source, cache, &request.settings);
    if let Some(image) = &request.only {
        view.show_only(image).await.map_err(Error::Only)?;
    }
    for image in &request.images {
        view.declare(image);
    }
    if !request.offline {
        look_up(&view, &request.images, patience).await;
    }
    let reading = view.clone();
    let view: Arc<dyn Namespace> = match &request.write {
        None => view,
        Some(Write::Local) => Writable::new(view, None)?,
        Some(Write::Through(through)) => {
            let upstream = Arc::new(Registries::new(through.clone(), of_upstream)?);
            Writable::new(view, Some(upstream))?
        }
    };
    Ok(Shown { view, reading, cache_dir })
}

/// Looks up images, so that what belongs to them is listed from the start.
async fn look_up(view: &Arc<View>, images: &[Reference], deadline: Duration) {
    join_all(images.iter().map(|image| async move {
        match tokio::time::timeout(deadline, view.resolve(image)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%image, "{image}: {error}"),
            Err(_) => {
                tracing::warn!(%image, "{image}: no answer within {} s", deadline.as_secs());
            }
        }
    }))
    .await;
}
