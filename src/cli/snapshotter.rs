//! `imgfs snapshotter`

use std::{fs, sync::Arc};

use imgfs::{
    backend::{
        images_dir::ImagesDir,
        registry::{Reach, RegistryPattern, Requester},
    },
    fuse::{self, MountOptions},
    namespace::Settings,
    ops::{self, NamespaceRequest, Profiles},
    snapshotter::{Snapshotter, SnapshotterOptions, serve, setup},
    store::Claim,
    transfer::Options,
    util::{Budget, Metrics},
};

use super::{
    Failure, Outcome,
    args::{SnapshotterArgs, SnapshotterCommand},
    daemon::{self, Ready},
    mount::{GRACE, absolute, cannot_mount, end_on_signal, free_mountpoint, signals},
    mounts,
    output::Output,
    registries, runtime,
};

pub(crate) fn run(args: &SnapshotterArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    if let Some(SnapshotterCommand::Setup { runtime, address, root }) = &args.command {
        let root = absolute(root)?;
        output.line(setup((*runtime).into(), address, &root).trim_end());
        return Ok(Outcome::Done);
    }
    daemon::keep_one_heap()?;
    let root = absolute(&args.root)?;
    let mountpoint = match &args.mountpoint {
        Some(given) => absolute(given)?,
        None => root.join("mount"),
    };
    if mountpoint.to_string_lossy().contains(':') {
        let shown = mounts::shown(&mountpoint);
        return Err(Failure::new(format!(
            "there must be no colon in the path of the mount, {shown}"
        )));
    }
    free_mountpoint(&mountpoint, output)?;
    let images_dir = root.join("images");
    for dir in [&mountpoint, &images_dir] {
        let made = fs::create_dir_all(dir);
        made.map_err(|e| Failure::new(format!("{}: {e}", mounts::shown(dir))))?;
    }
    let holder = format!("the snapshotter at {}", mounts::shown(&args.address));
    let claim = Claim::take(&root.join("lock"), &holder).map_err(|error| {
        Failure::new(format!("{}: {error}", mounts::shown(&root)))
            .hint("each snapshotter has a directory of its own: --root DIR")
    })?;
    let mountpoint = mountpoint
        .canonicalize()
        .map_err(|e| Failure::new(format!("{}: {e}", mounts::shown(&mountpoint))))?;
    if mounts::mounted_at(&mountpoint)?.is_some_and(|mount| mount.is_own()) {
        let shown = mounts::shown(&mountpoint);
        return Err(Failure::new(format!("{shown}: imgfs is mounted there already"))
            .hint(format!("imgfs umount {shown}")));
    }
    let mut config = registries::config(&args.access, &[], output)?;
    // containerd names the images, for whoever may start containers here.
    config.reach = Reach {
        registries: vec![RegistryPattern::every()],
        requester: Requester::Programs,
        ..Reach::default()
    };
    let (given, deadline) = (config.given.clone(), config.patience());
    let request = NamespaceRequest {
        images_dir: images_dir.clone(),
        images: Vec::new(),
        only: None,
        settings: Settings {
            platform: ops::this_machine().map_err(|e| Failure::new(e.to_string()))?,
            options: Options::default(),
            tag_ttl: args.tag_ttl,
            patience: deadline,
            verify_first: args.verify_first,
            budget: Budget::of_process(args.memory),
            profiles: Profiles::Local,
            trusted_indexes: Vec::new(),
        },
        offline: false,
        cache_dir: None,
        cache_bytes: args.cache_size,
        write: None,
    };
    let runtime = runtime()?;
    let entered = runtime.enter();
    let shown = runtime.block_on(ops::namespace(&request, config))?;
    let metrics = Metrics::default();
    if args.metrics.is_some() {
        shown.reading.count(&metrics);
    }
    let endpoint = runtime.block_on(daemon::show_metrics(args.metrics.as_ref(), &metrics))?;
    // What processes have left that went on for running containers. The directory is the snapshotter's own.
    let of_others = images_dir.clone();
    runtime.spawn_blocking(move || {
        let pruned = ImagesDir::open(&of_others).and_then(|dir| dir.prune_caches(false));
        if let Err(error) = pruned {
            tracing::warn!("{error}");
        }
    });
    let images = shown.reading.images().ok_or_else(|| Failure::new("there is no cache"))?;
    let options = SnapshotterOptions { root: root.clone(), mount: mountpoint.clone(), given };
    let snapshotter = runtime.block_on(Snapshotter::open(options, images, &metrics))?;
    let options = MountOptions {
        owner: (0, 0),
        inside_owner: (None, None),
        umask: 0o022,
        allow_other: true,
        deadline,
        passthrough: true,
        source: images_dir.display().to_string(),
        cache_dir: shown.cache_dir,
        threads: 1,
        metrics: endpoint.is_some().then(|| metrics.clone()),
        // A layer may be the whole of what a container sees.
        other: vec!["suid".to_owned(), "dev".to_owned()],
    };
    let signals = signals().map_err(|e| Failure::new(format!("cannot watch for signals: {e}")))?;
    let mut mount = fuse::mount(shown.view, &mountpoint, options, runtime.handle().clone())
        .map_err(|e| cannot_mount(&mountpoint, &e))?;
    runtime.spawn(end_on_signal(signals, mount.unmounter(), mountpoint.clone()));
    mounts::raise_read_ahead(&mountpoint);
    let listener = daemon::listener("--address", &args.address)?;
    let image_service = args.image_service.clone();
    let mounted = mountpoint.clone();
    runtime.spawn(async move {
        // The next process may have it as soon as this one answers no longer.
        let _claim = claim;
        tokio::select! {
            served = serve(snapshotter, listener, image_service.as_deref()) => {
                if let Err(error) = served {
                    tracing::error!("the socket is answered no longer: {error}");
                }
            }
            // It is left to the next process, though running containers may keep this one.
            () = mounts::until_gone(mounted) => {}
        }
    });
    output.line(&format!("listening at {}", mounts::shown(&args.address)));
    Ready::foreground().tell()?;
    mount.serve().map_err(|e| Failure::new(format!("{}: {e}", mounts::shown(&mountpoint))))?;
    shown.reading.finish();
    drop(endpoint);
    drop(entered);
    runtime.shutdown_timeout(GRACE);
    Ok(Outcome::Done)
}
