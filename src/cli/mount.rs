//! `imgfs mount`

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use imgfs::{
    backend::registry::{Reach, RegistryPattern, Requester},
    fuse::{self, MountOptions, Unmounter},
    image::{Platform, PlatformFilter, Reference, Repository},
    namespace::{Keeping, Settings},
    ops::{self, NamespaceRequest, Profiles, Source, Through, TreeSpec, Write},
    template::Template,
    transfer::Options,
    util::Budget,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    Failure, Outcome,
    args::{MountArgs, ProfilesArg, WriteArg},
    block_on,
    daemon::{self, Ready},
    declared, inside, mount_store, mounts,
    output::Output,
    pull::options,
    registries, runtime,
};

/// How long a mount that is in use may take to end before it is taken away from its users.
pub(super) const GRACE: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &MountArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let serves = args.foreground || args.detached;
    if serves {
        daemon::keep_one_heap()?;
    }
    let reach = reach(args)?;
    let root = match args.tree.place()? {
        TreeSpec::Directory(dir) => absolute(&dir)?,
        _ => {
            return Err(Failure::new(
                "--images-dir is a directory here, in which the mount keeps what it fetches",
            )
            .hint("give the place of the images with --from"));
        }
    };
    let mountpoint = check_mountpoint(args, &root, output)?;
    if !serves {
        return daemon::detach();
    }
    // Before this process goes elsewhere: the place may be a relative path.
    let source = source(args, output)?;
    let ready = if args.detached { daemon::enter()? } else { Ready::foreground() };
    let mut images = declared::images(args, output)?;
    if let (Some(source), None) = (&source, &args.image) {
        images.extend(block_on(source.names())??);
    }
    let only: Option<Reference> = match &args.image {
        Some(text) => Some(text.parse().map_err(|e| Failure::new(format!("--image: {e}")))?),
        None => None,
    };
    let named: Vec<&Repository> = images.iter().chain(&only).map(Reference::repository).collect();
    let names: Vec<String> = match &source {
        Some(_) => Vec::new(),
        None => named.iter().map(|name| name.registry().to_owned()).collect(),
    };
    let mut config = registries::config(&args.access, &names, output)?;
    config.reach = reach;
    config.reach.named = named.iter().map(|name| RegistryPattern::of(name)).collect();
    if let Some(only) = &only
        && args.registries.is_empty()
    {
        // Nothing else is shown, so nobody can ask for anything else.
        config.reach.registries = vec![RegistryPattern::of(only.repository())];
    }
    if let Some(other) = named.iter().find(|name| !config.may_ask(name)) {
        return Err(Failure::new(format!("{other} is not among --registries"))
            .hint(format!("add it: --registries {other}")));
    }
    let deadline = config.patience();
    let options = options(&args.selection)?;
    let request = NamespaceRequest {
        images_dir: root.clone(),
        images,
        only,
        settings: Settings {
            platform: shown_platform(&options)?,
            options,
            tag_ttl: args.tag_ttl,
            patience: deadline,
            verify_first: args.verify_first,
            budget: Budget::of_process(args.memory),
            profiles: profiles(args),
            trusted_indexes: args.trust_indexes.clone(),
        },
        offline: args.offline,
        cache_dir: args.cache_dir.as_deref().map(absolute).transpose()?,
        cache_bytes: args.cache_size,
        write: write(args)?,
    };
    let given = config.given.clone();
    let is_writable = request.write.is_some();
    let runtime = runtime()?;
    let entered = runtime.enter();
    let shown = ops::namespace_of(&request, config, source.as_ref());
    let shown = runtime.block_on(shown).map_err(|error| {
        let is_image = matches!(error, ops::Error::Only(_));
        let failure = Failure::from(error);
        let message = format!("--image: {}", failure.message);
        if is_image { Failure { message, ..failure } } else { failure }
    })?;
    let platform = &request.settings.platform;
    let mut served =
        mount_store::open(&args.store, &mountpoint, platform, given, &shown.reading, &runtime)?;
    let options = MountOptions {
        metrics: served.metrics.clone(),
        owner: owner(args),
        inside_owner: (args.uid, args.gid),
        umask: args.write.umask,
        allow_other: allow_other(args),
        deadline,
        passthrough: !args.no_passthrough,
        // As in fstab, so that mount(8) knows what is mounted already.
        source: root.display().to_string(),
        cache_dir: shown.cache_dir,
        threads: args.threads.get(),
        other: args.options.iter().filter(|option| *option != ALLOW_OTHER).cloned().collect(),
    };
    // From here on a signal must not end the process while it leaves the mount.
    let signals = signals().map_err(|e| Failure::new(format!("cannot watch for signals: {e}")))?;
    let (view, reading) = (shown.view, shown.reading);
    let mut mount = fuse::mount(view.clone(), &mountpoint, options, runtime.handle().clone())
        .map_err(|e| cannot_mount(&mountpoint, &e))?;
    runtime.spawn(end_on_signal(signals, mount.unmounter(), mountpoint.clone()));
    mounts::raise_read_ahead(&mountpoint);
    served.listen(&args.store, &mountpoint, &runtime)?;
    if args.foreground {
        let (root, mountpoint) = (mounts::shown(&root), mounts::shown(&mountpoint));
        output.line(&format!("{root} is mounted at {mountpoint}"));
    }
    ready.tell()?;
    mount.serve().map_err(|e| Failure::new(format!("{}: {e}", mountpoint.display())))?;
    reading.finish();
    if let Some(writing) = view.writing() {
        runtime.block_on(writing.look_again());
    }
    drop(entered);
    runtime.shutdown_timeout(GRACE);
    let waiting = view.writing().map_or(0, |writing| {
        writing.end();
        writing.waiting()
    });
    match args.write.strict && is_writable && waiting > 0 {
        true => Ok(Outcome::SomeFailed),
        false => Ok(Outcome::Done),
    }
}

/// How the mount is to be written to.
fn write(args: &MountArgs) -> Result<Option<Write>, Failure> {
    let write = &args.write;
    let has = |wanted: WriteArg| write.write.contains(&wanted);
    if write.write.is_empty() {
        return Ok(None);
    }
    let wrong = |message: &str| Err(Failure::new(message));
    if args.image.is_some() {
        return wrong("--write is about a directory of images, and --image shows one image only");
    }
    if let Some(from) = &args.from {
        let message = format!("--write is about a directory of images, and {from} is only read");
        return Err(Failure::new(message).hint(
            "copy into it: imgfs copy --from DIR --to PLACE; or mount a directory: --images-dir DIR",
        ));
    }
    match (has(WriteArg::Local), has(WriteArg::Through), has(WriteArg::Delete)) {
        (true, true, _) => return wrong("--write is either local or through"),
        (true, _, true) | (false, false, true) => {
            return wrong("--write delete is about registries: --write through,delete");
        }
        (true, false, false) => {
            return match (&write.dest, write.no_keep) {
                (None, false) => Ok(Some(Write::Local)),
                _ => wrong("--dest and --no-keep are about registries: --write through"),
            };
        }
        _ => {}
    }
    if args.offline {
        return wrong("--write through needs registries, and --offline asks none");
    }
    let parse = |text: &String| {
        Template::parse(text, None).map_err(|e| Failure::new(format!("--dest: {e}")))
    };
    let dest = write.dest.as_ref().map(parse).transpose()?;
    let mut through = Through::new(dest, args.vars.load()?);
    through.attachments = options(&args.selection)?.attachments;
    through.deletes = has(WriteArg::Delete);
    through.keeping = if write.no_keep { Keeping::Drop } else { Keeping::Keep };
    Ok(Some(Write::Through(Arc::new(through))))
}

fn profiles(args: &MountArgs) -> Profiles {
    match args.profiles {
        ProfilesArg::Off => Profiles::Off,
        ProfilesArg::Local => Profiles::Local,
        ProfilesArg::Find => Profiles::Find,
    }
}

/// What `--from` says.
fn source(args: &MountArgs, output: &Output) -> Result<Option<Source>, Failure> {
    let Some(text) = &args.from else { return Ok(None) };
    let place = text.parse().map_err(|e| Failure::new(format!("--from: {e}")))?;
    let source = inside::open_source(&place, true, args.name.as_deref())?;
    for warning in source.iter().flat_map(Source::warnings) {
        output.warning(&warning);
    }
    Ok(source)
}

/// The option of mount(8) that means `--allow-other`.
const ALLOW_OTHER: &str = "allow_other";

fn allow_other(args: &MountArgs) -> bool {
    args.allow_other || args.options.iter().any(|option| option == ALLOW_OTHER)
}

/// Which registries the mount may ask. Whoever lets others look at it has to say that: they use his
/// credentials, and can make this process connect to any registry by a lookup.
fn reach(args: &MountArgs) -> Result<Reach, Failure> {
    let everybody = allow_other(args);
    let asks = !args.offline && args.from.is_none();
    let is_open = args.registries.is_empty() && args.image.is_none() && asks;
    if everybody && is_open {
        let message = "with --allow-other, say which registries other users may have asked, with your credentials";
        return Err(Failure::new(message)
            .hint("--registries quay.io,docker.io/library (or '*' for all); in fstab registries=quay.io+docker.io/library"));
    }
    let mut reach = Reach {
        requester: if everybody { Requester::Everybody } else { Requester::Programs },
        ..Reach::default()
    };
    if !args.registries.is_empty() {
        reach.registries.clone_from(&args.registries);
    }
    Ok(reach)
}

/// The platform that is shown where only one can be: the first one that was asked for, or that of
/// this machine.
pub(super) fn shown_platform(options: &Options) -> Result<Platform, Failure> {
    if let PlatformFilter::Only(wanted) = &options.platforms
        && let Some(first) = wanted.first()
    {
        return Ok(first.clone());
    }
    ops::this_machine().map_err(|e| {
        Failure::new(format!("linux/{}: {e}; give --platform", std::env::consts::ARCH))
    })
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
}

fn owner(args: &MountArgs) -> (u32, u32) {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    (args.uid.unwrap_or_else(|| uid.as_raw()), args.gid.unwrap_or_else(|| gid.as_raw()))
}

/// Finds out what is wrong with the mount point before anything is started. One that a killed
/// process has left is freed.
fn check_mountpoint(args: &MountArgs, root: &Path, output: &Output) -> Result<PathBuf, Failure> {
    let mountpoint = absolute(&args.mountpoint)?;
    let shown = mounts::shown(&mountpoint);
    if !args.detached {
        free_mountpoint(&mountpoint, output)?;
    }
    match fs::metadata(&mountpoint) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::new(format!("{shown} does not exist"))
                .hint(format!("create it: mkdir -p {shown}")));
        }
        Err(e) => return Err(Failure::new(format!("{shown}: {e}"))),
        Ok(meta) if !meta.is_dir() => {
            return Err(Failure::new(format!("{shown} is not a directory")));
        }
        Ok(_) => {}
    }
    // As the kernel is going to list it.
    let mountpoint =
        mountpoint.canonicalize().map_err(|e| Failure::new(format!("{shown}: {e}")))?;
    if mounts::mounted_at(&mountpoint)?.is_some_and(|mount| mount.is_own()) {
        return Err(Failure::new(format!("{shown}: imgfs is mounted there already"))
            .hint(format!("imgfs umount {shown}")));
    }
    let mut found = fs::read_dir(&mountpoint).map_err(|e| Failure::new(format!("{shown}: {e}")))?;
    if found.next().is_some() {
        return Err(
            Failure::new(format!("{shown} is not empty")).hint("mount it at an empty directory")
        );
    }
    let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    if mountpoint.starts_with(&root) {
        let message = format!("{shown} is in {}, which is what is shown there", root.display());
        return Err(Failure::new(message));
    }
    if let Some(cache) = &args.cache_dir {
        check_cache_dir(&absolute(cache)?, &root, &mountpoint)?;
    }
    Ok(mountpoint)
}

/// Takes away what killed processes of imgfs have left at a mount point.
pub(super) fn free_mountpoint(mountpoint: &Path, output: &Output) -> Result<(), Failure> {
    let shown = mounts::shown(mountpoint);
    // Each time it is what the one before has covered.
    while let Some(e) = mounts::is_left(mountpoint) {
        let failed = |e: io::Error| Failure::new(format!("{shown}: {e}"));
        let real = mounts::real_path(mountpoint).map_err(failed)?;
        if !mounts::mounted_at(&real)?.is_some_and(|mount| mount.is_own()) {
            return Err(failed(e).hint("another file system has been left there: umount it"));
        }
        output.warning(&format!("{shown}: a killed imgfs has left its mount; it is removed"));
        mounts::unmount(&real, true)?;
    }
    Ok(())
}

/// A cache that is shown by its own mount would be read by whoever reads everything.
fn check_cache_dir(cache: &Path, root: &Path, mountpoint: &Path) -> Result<(), Failure> {
    let own = root.join("blobs/.imgfs");
    let shown = [root, mountpoint].into_iter().find(|shown| cache.starts_with(shown));
    match shown.filter(|_| !cache.starts_with(own)) {
        Some(shown) => Err(Failure::new(format!(
            "--cache-dir {} is in {}, which is what is shown",
            cache.display(),
            shown.display()
        ))
        .hint("without --cache-dir, it is kept in the directory, where nobody sees it")),
        None => Ok(()),
    }
}

pub(super) fn cannot_mount(mountpoint: &Path, error: &io::Error) -> Failure {
    let message = format!("{}: cannot mount: {error}", mountpoint.display());
    let is_root = rustix::process::geteuid().is_root();
    if !Path::new("/dev/fuse").exists() {
        Failure::new(format!("{message}: there is no /dev/fuse"))
            .hint("load the kernel's module: modprobe fuse")
    } else if error.kind() == io::ErrorKind::PermissionDenied && !is_root {
        Failure::new(message)
            .hint("/dev/fuse must be readable and writable for you, and fusermount3 be installed")
    } else if error.kind() == io::ErrorKind::NotFound && !is_root {
        Failure::new(message).hint("install fusermount3 (Debian's package fuse3)")
    } else {
        Failure::new(message)
    }
}

/// What tells a process to end.
pub(super) fn signals() -> io::Result<[Signal; 2]> {
    Ok([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?])
}

/// Ends the mount when the process is told to end. Whoever still uses it keeps what is open, and
/// nobody else sees it any more; the second time, the process ends at once.
pub(super) async fn end_on_signal(
    signals: [Signal; 2],
    mut unmounter: Unmounter,
    mountpoint: PathBuf,
) {
    let [mut term, mut interrupt] = signals;
    let mut told = 0;
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        told += 1;
        if told > 1 {
            std::process::exit(1);
        }
        if unmounter.unmount().is_err() {
            // It is in use, or not ours to unmount any more.
            let _ = mounts::unmount(&mountpoint, true);
        }
    }
}
