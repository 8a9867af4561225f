//! `mount`, `umount` and `mounts`.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, ValueEnum, ValueHint};
use imgfs::backend::registry::RegistryPattern;

use super::{
    super::vars::VarsArgs,
    EXIT_STATUS, MountStoreArgs, RegistryArgs, SelectionArgs, TreeArgs, ending, exit_status,
    values::{duration, pattern, size, umask},
};

/// Show the image tree as a file system, lazily
///
/// What is in the directory is there, and so is every image that a registry has, as soon as it is
/// looked up by its name: MOUNTPOINT/quay.io/x/y/manifests/v1. Bytes come when they are read. A copy
/// of the mount is a directory of images as a pull would have made it. Goes into the background
/// when the mount is ready.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs mount /mnt/images",
    "imgfs mount --images-dir /srv/images --offline --write local /mnt/images",
    "imgfs mount --write through --dest 'hub.example.com/{{ .module.image.reference.repository }}:{{ .module.image.reference.tag }}' /mnt/images",
    "imgfs mount --image nginx:1.25 /mnt/nginx",
))]
pub(crate) struct MountArgs {
    /// An empty directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) mountpoint: PathBuf,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// List this image, or those in a file with one a line, or those that a file of tasks (.yaml)
    /// pulls; may be repeated
    #[arg(long, value_name = "FILE|IMAGE")]
    pub(crate) manifests: Vec<String>,
    #[command(flatten)]
    pub(crate) vars: VarsArgs,
    /// Show the root file system of this image, and nothing else
    #[arg(long, value_name = "IMAGE", conflicts_with = "manifests")]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    /// Show the images of this place, such as oci:DIR or an archive, and ask no registry
    #[arg(long, value_name = "PLACE", value_hint = ValueHint::AnyPath, conflicts_with = "registries")]
    pub(crate) from: Option<String>,
    /// Repository of images that --from does not name in full, with a :TAG for a single one
    #[arg(long, value_name = "REPOSITORY[:TAG]", requires = "from")]
    pub(crate) name: Option<String>,
    /// Show what is local, and ask no registry
    #[arg(long)]
    pub(crate) offline: bool,
    /// Show nothing that is inside a layer before all of the layer has been verified
    ///
    /// Otherwise files can be read while their layer is looked into for the first time, as soon as
    /// they have passed, when nobody knows yet whether it is the right layer.
    #[arg(long)]
    pub(crate) verify_first: bool,
    /// What is done with start-up profiles: record what images read when they start and fetch it ahead the next
    /// time (local), do so and look for profiles that are attached to images (find), or nothing (off)
    ///
    /// What an image reads from the first file that is read until a pause of 5 s is kept beside the indexes. The
    /// next mount fetches it as soon as something is read that is in it. `--profiles` alone means find, which
    /// costs each image two requests more, once. A profile changes nothing of what is read; see `imgfs profile`.
    #[arg(
        long,
        value_enum,
        value_name = "WHICH",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = ProfilesArg::Local,
        default_missing_value = "find"
    )]
    pub(crate) profiles: ProfilesArg,
    /// Use the indexes of layers that are attached to images in these repositories, instead of passing over each
    /// layer once: quay.io/team, host:5000, or *; may be repeated
    ///
    /// Nothing in an image vouches for such an index: whoever can push to the repository decides what the image
    /// seems to contain, for this mount and this image only. Without this option they are not looked for.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = pattern)]
    pub(crate) trust_indexes: Vec<RegistryPattern>,
    /// Directory of the cache; by default in the directory of images, where each mount has its own
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Bytes that the cache may take, as in 10G or 500M
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = size)]
    pub(crate) cache_size: u64,
    /// Memory that the mount may take, as in 512M; what is known of images is let go and read again
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    pub(crate) memory: u64,
    /// Threads that take requests from the kernel; more than one pays only on machines with many processors
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) threads: NonZeroUsize,
    /// After this time a tag is looked up again
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    pub(crate) tag_ttl: Duration,
    /// Show all files as this user's, by number; by default yours
    #[arg(long, value_name = "UID")]
    pub(crate) uid: Option<u32>,
    /// Show all files as this group's, by number; by default yours
    #[arg(long, value_name = "GID")]
    pub(crate) gid: Option<u32>,
    /// Let other users look at it; needs --registries (or --image, or --offline), since they can
    /// then read whatever your credentials open there
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Ask these registries only: quay.io, host:5000, host:*, *.example.com, docker.io/library, or *
    /// for all; may be repeated
    ///
    /// What is not among them does not exist. A host without a port is meant at its usual port; a
    /// path means the repositories below it. A host at a link-local or otherwise special address is
    /// only connected to if it is named here; with --allow-other, so is one on this machine.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = pattern)]
    pub(crate) registries: Vec<RegistryPattern>,
    /// Read local files in this process, and do not let the kernel do that by itself
    #[arg(long)]
    pub(crate) no_passthrough: bool,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
    /// Stay in the foreground
    #[arg(long, short)]
    pub(crate) foreground: bool,
    /// Options of mount(8), as in fstab
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub(crate) options: Vec<String>,
    /// Set by the process that goes into the background
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
    #[command(flatten)]
    pub(crate) store: MountStoreArgs,
    #[command(flatten)]
    pub(crate) access: RegistryArgs,
}

/// Options of `imgfs mount` that are about writing.
#[derive(ClapArgs)]
pub(crate) struct WriteArgs {
    /// Let files be written: `local`, into the directory of images; `through`, and pushed to the registry that
    /// their path names; `through,delete`, and tags that are removed are removed there, too
    ///
    /// What is written is verified, and becomes part of the directory as if it had been pulled: blobs
    /// when they are closed, manifests once all that they name is there. Whoever may write uses your
    /// credentials.
    #[arg(long, value_name = "WHERE", value_enum, value_delimiter = ',')]
    pub(crate) write: Vec<WriteArg>,
    /// With --write through: name at the registry, as a template; variables are as those of `imgfs push`
    #[arg(long, value_name = "TEMPLATE", requires = "write")]
    pub(crate) dest: Option<String>,
    /// With --write through: do not keep in the directory what only the push needed
    #[arg(long, requires = "write")]
    pub(crate) no_keep: bool,
    /// With --write: permissions that files and directories do not get, in octal
    #[arg(long, value_name = "MASK", default_value = "022", value_parser = umask)]
    pub(crate) umask: u16,
    /// With --write: end with status 1 if manifests still wait for what they name
    #[arg(long, requires = "write")]
    pub(crate) strict: bool,
}

/// Where what is written through a mount goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WriteArg {
    /// Into the directory of images
    Local,
    /// Through to registries as well
    Through,
    /// Tags are removed there, too
    Delete,
}

/// End a mount
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs umount /mnt/images",
    "imgfs umount --strict /mnt/images",
))]
pub(crate) struct UmountArgs {
    /// Where it is mounted
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) mountpoint: PathBuf,
    /// Also while somebody uses it, who keeps what is open
    #[arg(long, short)]
    pub(crate) lazy: bool,
    /// End with status 1 if something that was written waits for what it names
    ///
    /// It is said in any case, and unmounted in any case: what waits is kept, and goes on waiting when
    /// the directory is mounted to be written to again.
    #[arg(long)]
    pub(crate) strict: bool,
}

/// List what is mounted where, with the use of the cache
#[derive(ClapArgs)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct MountsArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfilesArg {
    Off,
    Local,
    Find,
}
