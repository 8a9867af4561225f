//! What a mount does for container runtimes: `--store`, and `--metrics` for whoever watches it.

use std::{
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use imgfs::{
    backend::registry::GivenCredentials,
    image::Platform,
    namespace::View,
    ops::{StoreDaemon, StoreOptions},
    serve::MetricsEndpoint,
    util::Metrics,
};
use tokio::runtime::Runtime;

use super::{Failure, args::MountStoreArgs, daemon, mounts};

/// What is served besides the mount itself, as long as this exists.
pub(super) struct Served {
    /// What is counted, if anybody wants to know.
    pub(super) metrics: Option<Metrics>,
    _endpoint: Option<MetricsEndpoint>,
    store: Option<StoreDaemon>,
}

/// Takes up the store of a mount at `mountpoint`, whose platform is `platform`.
pub(super) fn open(
    args: &MountStoreArgs,
    mountpoint: &Path,
    platform: &Platform,
    given: GivenCredentials,
    view: &View,
    runtime: &Runtime,
) -> Result<Served, Failure> {
    let metrics = Metrics::default();
    if args.metrics.is_some() {
        view.count(&metrics);
    }
    let endpoint = runtime.block_on(daemon::show_metrics(args.metrics.as_ref(), &metrics))?;
    let store = match &args.store {
        Some(dir) => {
            let options = StoreOptions {
                dir: outside(dir, mountpoint)?,
                mount: mountpoint.to_owned(),
                images: args.store_images.clone(),
                min_bytes: args.store_min_size.map_or(0, NonZeroU64::get),
                platform: platform.clone(),
                given,
            };
            Some(runtime.block_on(StoreDaemon::open(options, view, &metrics))?)
        }
        None => None,
    };
    let metrics = endpoint.is_some().then_some(metrics);
    Ok(Served { metrics, _endpoint: endpoint, store })
}

/// The directory of the store as an absolute path, which is not in the mount: it has to be there when nothing runs.
fn outside(dir: &Path, mountpoint: &Path) -> Result<PathBuf, Failure> {
    let dir = std::path::absolute(dir)
        .map_err(|e| Failure::new(format!("--store {}: {e}", dir.display())))?;
    let shown = mounts::shown(&dir);
    if dir.starts_with(mountpoint) || mountpoint.starts_with(&dir) {
        return Err(Failure::new(format!("--store {shown} and the mount are in one another"))
            .hint("programs read the store also when nothing is mounted: put it elsewhere"));
    }
    if mountpoint.to_string_lossy().contains(':') {
        let mountpoint = mounts::shown(mountpoint);
        return Err(Failure::new(format!(
            "with --store, there must be no colon in the path of the mount, {mountpoint}"
        )));
    }
    Ok(dir)
}

impl Served {
    /// Answers on the socket of the store from now on: on that which whoever has started the process has opened, or
    /// else on the one that `args` name. Store and socket are left to the next process once nothing is mounted at
    /// `mountpoint` any more, though running containers may keep this one.
    pub(super) fn listen(
        &mut self,
        args: &MountStoreArgs,
        mountpoint: &Path,
        runtime: &Runtime,
    ) -> Result<(), Failure> {
        let Some(store) = self.store.take() else { return Ok(()) };
        let (socket, mountpoint) = (&args.store_socket, mountpoint.to_owned());
        let listen = store.listen(daemon::listener("--store-socket", socket)?);
        runtime.spawn(async move {
            tokio::select! {
                () = listen => {}
                () = mounts::until_gone(mountpoint) => {}
            }
        });
        Ok(())
    }
}
