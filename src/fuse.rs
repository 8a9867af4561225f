//! The adapter between the kernel and a [`Namespace`]: requests in, replies out, and nothing else. All
//! of `fuser` stays in here.
//!
//! What can be answered without waiting is answered on the thread that got the request, since
//! passing it on costs more than most answers. What has to wait for a registry, or for a file to be
//! hashed, becomes a task that has the reply; so one slow blob delays nobody else. Every such wait
//! has a deadline: the kernel lets nobody interrupt it.

mod answers;
mod counts;
mod errno;
mod files;
mod requests;
mod writing;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{runtime, sync::Semaphore};
use tracing::Span;

use answers::Shared;
use counts::Counts;
use files::Files;
use requests::Adapter;

use crate::{namespace::Namespace, util::Metrics};

/// Block size of `statfs`, in bytes.
const BLOCK: u64 = 4096;

/// Changes that wait for the disk at a time: half of the threads of the programs that mount something.
const WAITING: usize = 64;

/// What kind of a FUSE file system it is: the list of mounts has `fuse.imgfs`.
pub const SUBTYPE: &str = "imgfs";

/// How a view is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Who is shown as the owner of everything: user and group.
    pub owner: (u32, u32),
    /// Who is shown as the owner of what is inside images, if not those that they say.
    pub inside_owner: (Option<u32>, Option<u32>),
    /// What of the permissions is taken away of files and directories that can be written.
    pub umask: u16,
    /// Whether other users may look at it.
    pub allow_other: bool,
    /// After this time a request that waits for a registry fails.
    pub deadline: Duration,
    /// Let the kernel read local files itself, where it can do that.
    pub passthrough: bool,
    /// What stands as the source of the mount in the list of mounts.
    pub source: String,
    /// Where its cache is, for whoever asks for [`CACHE_DIR_XATTR`].
    pub cache_dir: PathBuf,
    /// Threads that take requests from the kernel, 1 at least, and 2 where something can be written: all but one of
    /// them may write to the disk. Whatever else waits is done elsewhere, so on few processors that is the fastest.
    pub threads: usize,
    /// Where requests and failures are counted, if they are.
    pub metrics: Option<Metrics>,
    /// Further options, as in `mount -o`.
    pub other: Vec<String>,
}

/// The extended attribute of the root of a mount that says where its cache is. It is not listed, so
/// that no copy has it.
pub const CACHE_DIR_XATTR: &str = "user.imgfs.cache_dir";

/// A mount that serves nobody yet.
pub struct Mount {
    // First, so that nobody waits for it when the session is dropped without having served.
    ended: Receiver<()>,
    session: Session<Adapter>,
    span: Span,
}

/// Ends a mount.
pub struct Unmounter(SessionUnmounter);

impl Unmounter {
    /// Unmounts. `EBUSY` while somebody uses it.
    pub fn unmount(&mut self) -> io::Result<()> {
        self.0.unmount()
    }
}

/// Mounts `view` at the directory `mountpoint`. Waits of requests happen on `runtime`.
///
/// Each failure that a program is told of is an event of `tracing` at the level `WARN`, within a span
/// that names the mount point, with the image and the digest that it is about.
pub fn mount(
    view: Arc<dyn Namespace>,
    mountpoint: &Path,
    options: MountOptions,
    runtime: runtime::Handle,
) -> io::Result<Mount> {
    let is_writable = view.writing().is_some();
    let mut config = Config::default();
    config.mount_options = vec![
        if is_writable { MountOption::RW } else { MountOption::RO },
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName(options.source.clone()),
        // `Subtype` would be for helpers only; the kernel knows it, too.
        MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
    ];
    // What an image says of devices and of set-uid is to be seen, and not to be obeyed unless
    // somebody asks for that.
    let has = |name: &str| options.other.iter().any(|option| option == name);
    config.mount_options.push(if has("dev") { MountOption::Dev } else { MountOption::NoDev });
    config.mount_options.push(if has("suid") { MountOption::Suid } else { MountOption::NoSuid });
    let other = options
        .other
        .iter()
        .filter(|o| !["dev", "suid", "nodev", "nosuid"].contains(&o.as_str()))
        .cloned();
    config.mount_options.extend(other.map(MountOption::CUSTOM));
    if options.allow_other {
        config.acl = SessionACL::All;
    }
    let threads = if is_writable { options.threads.max(2) } else { options.threads };
    if threads > 1 {
        config.n_threads = Some(threads);
        config.clone_fd = true;
    }
    let span = tracing::error_span!("mount", mountpoint = %mountpoint.display());
    let counts = Counts::new(&options.metrics.clone().unwrap_or_default());
    let (files, of_shared) = (Files::new(), span.clone());
    let writers = Semaphore::new(threads.saturating_sub(1));
    let waiting = Arc::new(Semaphore::new(WAITING));
    let shared =
        Shared { view, files, options, counts, span: of_shared, is_writable, writers, waiting };
    let shared = Arc::new(shared);
    let (ends, ended) = mpsc::channel();
    let adapter = Adapter { shared, runtime, ends };
    Ok(Mount { ended, session: Session::new(adapter, mountpoint, &config)?, span })
}

impl Mount {
    /// What ends the mount while [`Mount::serve`] runs.
    pub fn unmounter(&mut self) -> Unmounter {
        Unmounter(self.session.unmount_callable())
    }

    /// Serves the kernel until the mount ends. After that the process should end soon: one of its threads waits
    /// for that.
    pub fn serve(self) -> io::Result<()> {
        let Self { ended, mut session, span } = self;
        span.in_scope(|| tracing::info!("mounted"));
        // Once somebody has unmounted it, fuser 0.18 unmounts once more what is there then, which may be anybody's.
        // It never comes to that: see `Adapter::destroy`.
        let mut unmounter = session.unmount_callable();
        let device = session.as_fd().try_clone_to_owned()?;
        let name = "fuse".to_owned();
        drop(thread::Builder::new().name(name).spawn(move || session.run())?);
        let _ = ended.recv();
        let ended = match is_connected(&device)? {
            false => Ok(()),
            // It would be left without anybody who answers.
            true => unmounter.unmount().and(Err(io::Error::other("the mount has ended early"))),
        };
        span.in_scope(|| tracing::info!("unmounted"));
        ended
    }
}

/// Whether what an open `/dev/fuse` serves is still mounted.
fn is_connected(device: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(device, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default()))?;
    Ok(!polled[0].revents().contains(PollFlags::ERR))
}
