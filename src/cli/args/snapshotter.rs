//! Arguments of `imgfs snapshotter`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum, ValueHint};
use imgfs::{
    serve::Address,
    snapshotter::{DEFAULT_ROOT, DEFAULT_SOCKET, Runtime},
};

use super::{
    RegistryArgs,
    values::{duration, size},
};

const SNAPSHOTTER_EXAMPLES: &str = "\
Examples:
  imgfs snapshotter setup                       what to add to the configuration of containerd 2.x
  imgfs snapshotter setup --for containerd-1
  imgfs snapshotter --auths /etc/imgfs/auths.yaml
  imgfs snapshotter --image-service /run/containerd/containerd.sock

Exit status:
  0  it was ended by a signal
  2  usage or configuration is wrong; nothing was done";

/// Let containerd start containers without pulling layers: serve a snapshotter as a proxy plugin
///
/// Images stay as they are, with any layers that are gzip, zstd or not compressed. What a container reads comes
/// from the registry when it is read. Stays in the foreground.
#[derive(ClapArgs)]
#[command(after_help = SNAPSHOTTER_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct SnapshotterArgs {
    #[command(subcommand)]
    pub(crate) command: Option<SnapshotterCommand>,
    /// The directory for snapshots, for what is known of images, and for the cache
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT, value_hint = ValueHint::DirPath)]
    pub(crate) root: PathBuf,
    /// The socket on which containerd asks
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_hint = ValueHint::FilePath)]
    pub(crate) address: PathBuf,
    /// Where the layers are shown; by default `mount` in the directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) mountpoint: Option<PathBuf>,
    /// Pass Kubernetes' image service on to this socket of containerd, and keep the credentials that come with
    /// images in memory
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) image_service: Option<PathBuf>,
    /// Bytes that the cache may take, as in 10G or 500M
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = size)]
    pub(crate) cache_size: u64,
    /// Memory that the process may take, as in 512M; what is known of images is let go and read again
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    pub(crate) memory: u64,
    /// Show nothing that is inside a layer before all of the layer has been verified
    #[arg(long)]
    pub(crate) verify_first: bool,
    /// After this time a tag is looked up again
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration, hide = true)]
    pub(crate) tag_ttl: std::time::Duration,
    /// Answer GET /metrics at this address with what is counted, for Prometheus: HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", help_heading = "Logging")]
    pub(crate) metrics: Option<Address>,
    #[command(flatten)]
    pub(crate) access: RegistryArgs,
}

#[derive(Subcommand)]
pub(crate) enum SnapshotterCommand {
    /// Print what to add to the configuration of containerd; nothing is changed
    #[command(
        after_help = "Examples:\n  imgfs snapshotter setup\n  imgfs snapshotter setup --for containerd-1\n  imgfs snapshotter setup --for k3s"
    )]
    Setup {
        /// What runs the containers
        #[arg(long = "for", value_enum, value_name = "RUNTIME", default_value_t = RuntimeArg::Containerd2)]
        runtime: RuntimeArg,
        /// The socket of the snapshotter
        #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_hint = ValueHint::FilePath)]
        address: PathBuf,
        /// The directory of the snapshotter
        #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT, value_hint = ValueHint::DirPath)]
        root: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum RuntimeArg {
    /// containerd 1.x
    #[value(name = "containerd-1")]
    Containerd1,
    /// containerd 2.x
    #[value(name = "containerd-2")]
    Containerd2,
    /// k3s and RKE2
    K3s,
    /// Docker with the image store of containerd
    Docker,
}

impl From<RuntimeArg> for Runtime {
    fn from(runtime: RuntimeArg) -> Self {
        match runtime {
            RuntimeArg::Containerd1 => Self::Containerd1,
            RuntimeArg::Containerd2 => Self::Containerd2,
            RuntimeArg::K3s => Self::K3s,
            RuntimeArg::Docker => Self::Docker,
        }
    }
}
