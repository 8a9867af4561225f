//! Arguments of what serves container runtimes: `imgfs mount --store`, `imgfs store`.

use std::{num::NonZeroU64, path::PathBuf};

use clap::{Args as ClapArgs, Subcommand, ValueHint};
use imgfs::{
    backend::registry::RegistryPattern,
    serve::Address,
    store::{DEFAULT_DIR, DEFAULT_SOCKET},
};

use super::{
    OutputArgs,
    values::{pattern, size},
};

/// The option of a mount that makes it the one of a store.
#[derive(ClapArgs)]
#[command(next_help_heading = "Store for podman, CRI-O and buildah")]
pub(crate) struct MountStoreArgs {
    /// Serve this additional image store: podman and others find layers of images in it that they need not
    /// pull; see `imgfs store setup`
    ///
    /// The directory is created if it does not exist. It must not be in the mount.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "image")]
    pub(crate) store: Option<PathBuf>,
    /// The socket on which imgfs-store-helper and `imgfs store` ask
    #[arg(
        long,
        value_name = "PATH",
        env = "IMGFS_STORE_SOCKET",
        default_value = DEFAULT_SOCKET,
        value_hint = ValueHint::FilePath
    )]
    pub(crate) store_socket: PathBuf,
    /// Serve images of these registries and repositories only, as in quay.io or docker.io/library; all others are
    /// pulled in the ordinary way; may be repeated
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = pattern, requires = "store")]
    pub(crate) store_images: Vec<RegistryPattern>,
    /// Serve images with at least this much in layers, as in 20M; others are pulled in the ordinary way
    #[arg(long, value_name = "SIZE", value_parser = least, requires = "store")]
    pub(crate) store_min_size: Option<NonZeroU64>,
    /// Answer GET /metrics at this address with what is counted, for Prometheus: HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", help_heading = "Logging")]
    pub(crate) metrics: Option<Address>,
}

fn least(text: &str) -> Result<NonZeroU64, String> {
    size(text).and_then(|bytes| NonZeroU64::new(bytes).ok_or_else(|| "it is nothing".to_owned()))
}

const STORE_EXAMPLES: &str = "\
Examples:
  imgfs store setup                            what to add to storage.conf and registries.conf
  imgfs mount --store /var/lib/imgfs/store --images-dir /var/lib/imgfs/images /run/imgfs/mnt
  imgfs store add docker.io/library/nginx:1.25
  imgfs store ls
  imgfs store prune --dry-run

Exit status:
  0  all done
  1  some images failed, or are not there, or are in use
  2  usage or configuration is wrong, or nothing answers; nothing was done";

/// Look after a store from which podman, CRI-O and buildah start containers without pulling layers
///
/// The store is a directory in the format of containers/storage, an additional image store. A mount serves it
/// (`imgfs mount --store DIR`): the layers that are listed in it are shown by the mount, and read from their
/// registry as they are used.
#[derive(ClapArgs)]
#[command(after_help = STORE_EXAMPLES)]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    pub(crate) command: StoreCommand,
}

/// Which store is meant.
#[derive(ClapArgs)]
pub(crate) struct StorePlaceArgs {
    /// The directory of the store
    #[arg(long, value_name = "DIR", env = "IMGFS_STORE", default_value = DEFAULT_DIR, value_hint = ValueHint::DirPath)]
    pub(crate) store: PathBuf,
    /// The socket of the mount that serves it
    #[arg(
        long,
        value_name = "PATH",
        env = "IMGFS_STORE_SOCKET",
        default_value = DEFAULT_SOCKET,
        value_hint = ValueHint::FilePath
    )]
    pub(crate) store_socket: PathBuf,
}

/// Which stores of podman and others are read.
#[derive(ClapArgs)]
pub(crate) struct GraphrootArgs {
    /// A store of podman, CRI-O or buildah that may need layers, besides the one that storage.conf names; may be
    /// repeated
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) graphroot: Vec<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum StoreCommand {
    /// List images in the store, so that they are there without a pull
    ///
    /// Their manifests and configurations are fetched. They stay until they are removed.
    #[command(
        after_help = "Examples:\n  imgfs store add docker.io/library/nginx:1.25 quay.io/team/app:v1"
    )]
    Add {
        /// Images, such as nginx:1.25
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
        #[command(flatten)]
        place: StorePlaceArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List what is recorded: whether it is lazy or was pulled in the ordinary way and why, what is indexed, what
    /// was fetched, and what went wrong last
    #[command(after_help = "Examples:\n  imgfs store ls\n  imgfs store ls --json")]
    Ls {
        #[command(flatten)]
        place: StorePlaceArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove images from the store, by name or digest
    ///
    /// An image stays if an image or a container of podman needs its uppermost layer; lower layers stay where needed.
    #[command(after_help = "Examples:\n  imgfs store rm docker.io/library/nginx:1.25")]
    Rm {
        /// Images, such as nginx:1.25, or digests of manifests
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
        #[command(flatten)]
        place: StorePlaceArgs,
        #[command(flatten)]
        graphroots: GraphrootArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove layers that no image or container needs, and that are older than a day
    ///
    /// What was added stays. A graphroot that cannot be read stops it: what is not known may be needed.
    #[command(
        after_help = "Examples:\n  imgfs store prune --dry-run\n  imgfs store prune --graphroot /var/lib/containers/storage"
    )]
    Prune {
        #[command(flatten)]
        place: StorePlaceArgs,
        #[command(flatten)]
        graphroots: GraphrootArgs,
        /// Say what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print what to add to the configuration of podman, CRI-O and buildah; nothing is changed
    #[command(
        after_help = "Examples:\n  imgfs store setup\n  imgfs store setup --store /srv/store"
    )]
    Setup {
        #[command(flatten)]
        place: StorePlaceArgs,
        /// Where imgfs-store-helper is, a link to imgfs
        #[arg(long, value_name = "PATH", default_value = "/usr/libexec/imgfs-store-helper", value_hint = ValueHint::FilePath)]
        helper: PathBuf,
    },
}

/// Prepare the images on standard input, as containers/image asks for that
#[derive(ClapArgs)]
pub(crate) struct StoreHelperArgs {
    /// The socket of the mount that serves the store
    #[arg(long, value_name = "PATH", env = "IMGFS_STORE_SOCKET", default_value = DEFAULT_SOCKET)]
    pub(crate) store_socket: PathBuf,
}
