//! All commands and options. The manual pages and completions are made of this, too.

mod look;
mod names;
mod serve;
mod shared;
mod snapshotter;
mod store;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    sync::OnceLock,
    time::Duration,
};

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};

use imgfs::{
    backend::{
        Shard,
        registry::{Access, PatternError, RegistryPattern},
    },
    ops::TreeSpec,
    template::Dialect,
};
use tracing::level_filters::LevelFilter;

use super::{Failure, log::LogArgs, vars::VarsArgs};

pub(crate) use look::{CatArgs, DiffArgs, DigestArgs, DuArgs, InspectArgs, LsArgs};
pub(crate) use names::{LoginArgs, LogoutArgs, RmArgs, TagArgs};
pub(crate) use serve::{AnonymousArg, ClientArg, ServeArgs};
pub(crate) use shared::{
    IndexArgs, IndexCommand, IndexLsArgs, IndexPullArgs, IndexPushArgs, IndexRmArgs, ProfileArgs,
    ProfileCommand, ProfileExportArgs, ProfileImportArgs, ProfileLsArgs, ProfilePullArgs,
    ProfilePushArgs, ProfileRmArgs, ProfileShowArgs,
};
pub(crate) use snapshotter::{SnapshotterArgs, SnapshotterCommand};
pub(crate) use store::{
    GraphrootArgs, MountStoreArgs, StoreArgs, StoreCommand, StoreHelperArgs, StorePlaceArgs,
};

/// The exit statuses of most commands.
macro_rules! exit_status {
    () => {
        "\
Exit status:
  0  all done
  1  some images failed, or problems were found
  2  usage or configuration is wrong; nothing was done
  3  nothing matched: there was nothing to do"
    };
}

/// The end of the help of a command: the exit statuses, and examples, a line each.
macro_rules! ending {
    ($status:expr, $($example:literal),+ $(,)?) => {
        concat!($status, "\n\nExamples:", $("\n  ", $example),+)
    };
}

use {ending, exit_status};

const EXIT_STATUS: &str = exit_status!();

/// The directory of images, if none is given.
pub(crate) const DEFAULT_IMAGES_DIR: &str = "images";

const RUN_EXAMPLES: &str = "\
Examples:
  imgfs run tasks.yaml --set tag=v3.4.1
  imgfs run tasks.yaml --dry-run
  imgfs run playbooks/push.yaml --skip-other-modules --tags push --vars config.yaml";

/// Container images as a file tree.
///
/// Moves images between registries and a directory in KubeKey's layout, verified and resumable.
#[derive(Parser)]
#[command(name = "imgfs", version, after_help = EXIT_STATUS, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Pull(PullArgs),
    Push(PushArgs),
    Copy(CopyArgs),
    Run(RunArgs),
    Mount(Box<MountArgs>),
    Serve(Box<ServeArgs>),
    Umount(UmountArgs),
    Mounts(MountsArgs),
    Ls(Box<LsArgs>),
    Cat(Box<CatArgs>),
    Inspect(Box<InspectArgs>),
    Digest(Box<DigestArgs>),
    Diff(Box<DiffArgs>),
    Du(Box<DuArgs>),
    Index(Box<IndexArgs>),
    Profile(Box<ProfileArgs>),
    Verify(VerifyArgs),
    Prune(PruneArgs),
    Rm(RmArgs),
    Tag(TagArgs),
    Login(LoginArgs),
    Logout(LogoutArgs),
    Store(StoreArgs),
    Snapshotter(Box<SnapshotterArgs>),
    #[command(hide = true)]
    StoreHelper(StoreHelperArgs),
    Render(RenderArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// The directory; it is created if it does not exist
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

impl Command {
    /// What is logged if no level is asked for. Other commands report on standard error what fails.
    pub(crate) fn log_level(&self) -> LevelFilter {
        match self {
            Self::Mount(_) | Self::Serve(_) | Self::Snapshotter(_) => LevelFilter::WARN,
            _ => LevelFilter::OFF,
        }
    }

    /// The output options of the command, or the defaults where it has none.
    pub(crate) fn output(&self) -> OutputArgs {
        match self {
            Self::Pull(args) => args.output,
            Self::Push(args) => args.output,
            Self::Copy(args) => args.output,
            Self::Run(args) => args.output,
            Self::Mount(_) | Self::Serve(_) | Self::Umount(_) | Self::Cat(_) => {
                OutputArgs::default()
            }
            Self::Store(args) => match &args.command {
                StoreCommand::Add { output, .. }
                | StoreCommand::Rm { output, .. }
                | StoreCommand::Prune { output, .. } => *output,
                StoreCommand::Ls { json, .. } => OutputArgs { json: *json, quiet: false },
                StoreCommand::Setup { .. } => OutputArgs::default(),
            },
            Self::StoreHelper(_) | Self::Snapshotter(_) => OutputArgs::default(),
            Self::Mounts(args) => OutputArgs { json: args.json, quiet: false },
            Self::Ls(args) => OutputArgs { json: args.json, quiet: false },
            Self::Inspect(args) => OutputArgs { json: args.json, quiet: false },
            Self::Digest(args) => OutputArgs { json: args.look.json, quiet: false },
            Self::Diff(args) => OutputArgs { json: args.json, quiet: false },
            Self::Du(args) => OutputArgs { json: args.json, quiet: false },
            Self::Index(args) => OutputArgs { json: args.command.is_json(), quiet: false },
            Self::Profile(args) => OutputArgs { json: args.command.is_json(), quiet: false },
            Self::Verify(args) => args.output,
            Self::Prune(args) => args.output,
            Self::Rm(args) => args.output,
            Self::Tag(args) => args.output,
            Self::Login(args) => args.output,
            Self::Logout(args) => args.output,
            Self::Render(_) | Self::Completions { .. } | Self::Man { .. } => OutputArgs::default(),
        }
    }
}

#[derive(ClapArgs)]
pub(crate) struct TreeArgs {
    /// Directory of the images; or another place that has them, such as oci:DIR or an archive
    #[arg(
        long,
        value_name = "DIR|PLACE",
        env = "IMGFS_IMAGES_DIR",
        default_value = DEFAULT_IMAGES_DIR,
        value_hint = ValueHint::DirPath
    )]
    images_dir: PathBuf,
}

impl TreeArgs {
    /// The directory that it means, for `command`, which is for nothing else.
    pub(crate) fn directory(&self, command: &str) -> Result<PathBuf, Failure> {
        match self.place()? {
            TreeSpec::Directory(path) => Ok(path),
            place => Err(Failure::new(format!(
                "{place}: `imgfs {command}` is for a directory of images"
            ))),
        }
    }

    /// What it means: a directory of images, or one of the other places that have images.
    pub(crate) fn place(&self) -> Result<TreeSpec, Failure> {
        match self.images_dir.to_str() {
            Some(text) => text.parse().map_err(|e| Failure::new(format!("--images-dir: {e}"))),
            // Whatever it is, it is no scheme.
            None => Ok(TreeSpec::Directory(self.images_dir.clone())),
        }
    }
}

#[derive(ClapArgs, Clone, Copy, Default)]
pub(crate) struct OutputArgs {
    /// Print one JSON object a line on standard output; the last one is the report
    #[arg(long)]
    pub(crate) json: bool,
    /// Print errors and warnings only
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// How to reach registries.
#[derive(ClapArgs)]
#[command(next_help_heading = "Registries")]
pub(crate) struct RegistryArgs {
    /// Credentials and settings for registries: KubeKey's `auths` as YAML or JSON, or a Docker
    /// config.json
    ///
    /// Keys of an entry: repo (or registry), username, password, identity_token, plain_http,
    /// skip_tls_verify (or insecure), ca_file, cert_file, key_file. The longest matching
    /// `host[:port][/path]` counts. Where none matches, $REGISTRY_AUTH_FILE,
    /// ~/.docker/config.json, $XDG_RUNTIME_DIR/containers/auth.json (or
    /// /run/containers/UID/auth.json) and ~/.config/containers/auth.json are asked, with their
    /// credential helpers.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) auths: Option<PathBuf>,
    /// User name for the registry; all images must be in the same one
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    pub(crate) username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    /// What has been read there.
    #[arg(skip)]
    pub(crate) password: OnceLock<String>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// Blobs to move from one registry at the same time; halved while it says that this is too much
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) concurrency: u16,
    /// Connections over which one large blob may come; more than one are used where their sum is faster
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) connections_per_blob: u16,
    /// Longest wait that a registry may ask for before the image fails
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub(crate) max_wait: Duration,
    /// Longest time to establish a connection
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) connect_timeout: Duration,
    /// Longest time without a single byte before a request is repeated
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) stall_timeout: Duration,
}

// How connections to registries are made.
#[derive(ClapArgs)]
pub(crate) struct AccessArgs {
    /// Accept any certificate
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Use HTTP instead of HTTPS
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// PEM file with authorities to trust besides the system's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ca_file: Option<PathBuf>,
    /// Reach a host at this address, whatever its name resolves to; may be repeated
    #[arg(long, value_name = "HOST=ADDRESS[:PORT]", value_parser = resolution)]
    pub(crate) resolve: Vec<(String, SocketAddr)>,
}

impl AccessArgs {
    /// What holds where no entry of `--auths` says otherwise.
    pub(crate) fn settings(&self) -> Access {
        Access {
            plain_http: self.plain_http,
            skip_tls_verify: self.insecure,
            ca_file: self.ca_file.clone(),
            ..Access::default()
        }
    }
}

/// `HOST=ADDRESS[:PORT]`
fn resolution(text: &str) -> Result<(String, SocketAddr), String> {
    let (host, address) = text.split_once('=').ok_or("write it as HOST=ADDRESS[:PORT]")?;
    let socket = match address.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, 0),
        Err(_) => address.parse().map_err(|_| format!("`{address}` is no IP address"))?,
    };
    let host = match host.to_ascii_lowercase().as_str() {
        "" => return Err("the host is missing".into()),
        "docker.io" | "index.docker.io" => "registry-1.docker.io".to_owned(),
        host => host.to_owned(),
    };
    Ok((host, socket))
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("it must be more than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as in 90s, 5m or 1h30m")),
    }
}

/// Pull images from registries into a directory
///
/// Every byte is verified. What is there is not fetched again, what was interrupted goes on where
/// it stopped, and a blob that several images share is fetched once. Several runs may fill one
/// directory at the same time.
#[derive(ClapArgs)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct PullArgs {
    /// Images, such as nginx:1.25, quay.io/a/b or host:5000/a/b@sha256:...
    #[arg(value_name = "IMAGE", required_unless_present = "file")]
    pub(crate) images: Vec<String>,
    /// Read more images from a file, one a line; `#` starts a comment, `-` is standard input
    #[arg(long, value_name = "LIST", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    /// Make the indexes of the layers, too, of the bytes that pass, so that a mount of the directory shows what is
    /// inside the images at once
    ///
    /// Of layers that are there already, those without an index are read once. The transfer waits for the indexes:
    /// a processor takes about as long for a layer as `gzip -dc`.
    #[arg(long)]
    pub(crate) index_layers: bool,
    /// Layout of a new directory
    #[arg(long, value_enum)]
    pub(crate) layout: Option<LayoutArg>,
    #[command(flatten)]
    pub(crate) sync: SyncArgs,
    #[command(flatten)]
    pub(crate) sharing: SharingArgs,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

/// When a directory that is filled is flushed to the disk.
#[derive(ClapArgs)]
pub(crate) struct SyncArgs {
    /// Wait for the disk: never, once at the end, or for each file [default: none]
    ///
    /// With `none` the kernel writes to the disk when it sees fit, within about half a minute. After a
    /// power cut, or if a disk is pulled out without unmounting it, what was not on the disk is found
    /// to be damaged or missing by the next run, which fetches it again; nothing that is damaged is
    /// ever taken for whole. Run `umount` or `sync` before a disk is pulled out, or use `end`.
    #[arg(long, value_enum, value_name = "WHEN")]
    pub(crate) sync: Option<SyncArg>,
}

// Whether others write to the same place.
#[derive(ClapArgs)]
pub(crate) struct SharingArgs {
    /// As worker K of N that run this very command at the same time with the same target: fetch the blobs
    /// whose digests fall to it, and wait for the others to bring theirs
    #[arg(long, value_name = "K/N")]
    pub(crate) shard: Option<Shard>,
    /// Nobody else writes to the object store meanwhile: for one that does not write on conditions
    #[arg(long, conflicts_with = "shard")]
    pub(crate) single_writer: bool,
}

/// What of the images is wanted.
#[derive(ClapArgs)]
pub(crate) struct SelectionArgs {
    /// Platforms that are wanted, such as linux/amd64, arm64 or linux/arm/v7; all if not given
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,
    /// What to do where an image lacks a platform: fail, or warn and take the others
    #[arg(long, value_enum, default_value_t = PolicyArg::Strict)]
    pub(crate) policy: PolicyArg,
    #[command(flatten)]
    pub(crate) extent: ExtentArgs,
}

/// How much of what belongs to an image is taken.
#[derive(ClapArgs)]
pub(crate) struct ExtentArgs {
    /// What to do with an index of which only some platforms are wanted: write a new one with just
    /// those, or keep it with its digest, which only a directory can hold
    #[arg(long, value_enum, default_value_t = IndexArg::Rewrite)]
    pub(crate) index: IndexArg,
    /// Take signatures, attestations and other referrers with the images
    #[arg(
        long,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub(crate) referrers: bool,
}

/// Push images from a directory to registries
///
/// The directory may be of any generation of KubeKey. All targets are named and asked before the
/// first byte is sent. Blobs that a repository has are not sent; one that several repositories of
/// a registry need is sent once, and mounted from the first into the others.
#[derive(ClapArgs)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct PushArgs {
    /// Images of the directory; all if none is given
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Repository of images that their place does not name in full, with a :TAG for a single one
    #[arg(long, value_name = "REPOSITORY[:TAG]")]
    pub(crate) name: Option<String>,
    /// Only images whose name, such as docker.io/library/nginx:1.25, matches this regular
    /// expression anywhere
    #[arg(long, value_name = "REGEX")]
    pub(crate) src_pattern: Option<String>,
    /// Name at the target, as a template: variables are .module.image.reference.registry,
    /// .repository, .reference, .tag and .digest
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) dest: String,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    /// Create the projects that are missing, if the target is a Harbor
    #[arg(long)]
    pub(crate) create_projects: bool,
    /// Say what would be sent where, and send nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) naming: NamingArgs,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

/// Copy images from any place to any other
///
/// A place is a directory of images; registry://HOST[:PORT][/PATH]; an OCI image layout, oci:DIR[:NAME]; an
/// archive, oci-archive:FILE or docker-archive:FILE, with - for standard input or output; skopeo's dir:DIR;
/// docker-daemon:[NAME]; or an object store, s3://BUCKET[/PREFIX], gs:// or az://. What is below the one
/// comes below the other. From registry to registry everything streams through memory, and what one
/// registry has on both sides is mounted. Between directories, blobs share their place on the disk where
/// the file system can do that.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs copy --from images --to registry://hub.example.com/mirror --all",
    "imgfs copy --from images --to oci-archive:images.tar --all",
    "imgfs copy --from images.tar --to images --all            what `docker save` wrote, too",
    "imgfs copy --from oci:layout:v1 --to images --name quay.io/team/app",
    "imgfs copy --from images --to oci-archive:- --all | ssh host imgfs copy --from oci-archive:- --to images --all",
))]
pub(crate) struct CopyArgs {
    /// Images: in full, or below the registry that --from names
    #[arg(value_name = "IMAGE", conflicts_with = "all")]
    pub(crate) images: Vec<String>,
    /// Where the images are: a directory, registry://HOST[:PORT][/PATH], or another place
    #[arg(long, value_name = "PLACE", value_hint = ValueHint::AnyPath)]
    pub(crate) from: String,
    /// Where they are to be: a directory, registry://HOST[:PORT][/PATH], or another place
    #[arg(long, value_name = "PLACE", value_hint = ValueHint::AnyPath)]
    pub(crate) to: String,
    /// All images of a directory or another place, or all tags of the repository registry://HOST/PATH
    #[arg(long, conflicts_with = "file")]
    pub(crate) all: bool,
    /// Repository of images that --from does not name in full, with a :TAG for a single one
    #[arg(long, value_name = "REPOSITORY[:TAG]")]
    pub(crate) name: Option<String>,
    /// Read more images from a file, one a line; `#` starts a comment, `-` is standard input
    #[arg(long, value_name = "LIST", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Only images whose name, such as docker.io/library/nginx:1.25, matches this regular
    /// expression anywhere
    #[arg(long, value_name = "REGEX")]
    pub(crate) pattern: Option<String>,
    /// Name at the target, as a template; without it, images keep their names below the tree
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) dest: Option<String>,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    /// Layout of a new directory
    #[arg(long, value_enum)]
    pub(crate) layout: Option<LayoutArg>,
    /// Make the indexes of the layers, too, of the bytes that pass, if --to is a directory: a mount of it shows
    /// what is inside the images at once
    ///
    /// Of layers that are there already, those without an index are read once. The transfer waits for the indexes:
    /// a processor takes about as long for a layer as `gzip -dc`.
    #[arg(long)]
    pub(crate) index_layers: bool,
    #[command(flatten)]
    pub(crate) sync: SyncArgs,
    /// From directory to directory: share blobs by reflinks or hard links, or copy and hash them
    #[arg(long, value_enum, default_value_t = LinkArg::Auto)]
    pub(crate) link: LinkArg,
    /// Create the projects that are missing, if the target is a Harbor
    #[arg(long)]
    pub(crate) create_projects: bool,
    #[command(flatten)]
    pub(crate) sharing: SharingArgs,
    /// Say what would be copied, and copy nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) naming: NamingArgs,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

/// Carry out KubeKey's tasks: pull, push and copy as YAML
///
/// The file is a list of tasks with KubeKey's `image` module in any of its forms, a play that has
/// them, or a single task. The whole file is read and evaluated before anything is moved. A task
/// that fails ends the run, if it does not say `ignore_errors`.
#[derive(ClapArgs)]
#[command(after_help = format!("{RUN_EXAMPLES}\n\n{EXIT_STATUS}"))]
pub(crate) struct RunArgs {
    /// The tasks; `-` is standard input
    #[arg(value_name = "TASKS", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Language of the templates of tasks that do not say it; Tera for those with {%, Go if not
    #[arg(long, value_enum, value_name = "DIALECT")]
    pub(crate) template: Option<DialectArg>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Only tasks with one of these tags
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    pub(crate) tags: Vec<String>,
    /// No tasks with one of these tags
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    pub(crate) skip_tags: Vec<String>,
    /// Take a playbook of KubeKey's: follow its roles and included files, and skip the tasks of
    /// other modules than `image`
    ///
    /// The files are looked for beside the playbook as KubeKey does: roles/NAME/tasks/main.yaml with
    /// defaults, vars and meta, include_tasks, import_tasks, vars_files and import_playbook. None
    /// may be outside of the playbook's directory, or the one above if that is called `playbooks`.
    /// Each task that is skipped is told. A task of `image` that needs a variable which a skipped
    /// task would set is an error; --set and --vars give such variables.
    #[arg(long)]
    pub(crate) skip_other_modules: bool,
    #[command(flatten)]
    pub(crate) extent: ExtentArgs,
    /// Layout of a new directory
    #[arg(long, value_enum)]
    pub(crate) layout: Option<LayoutArg>,
    #[command(flatten)]
    pub(crate) sync: SyncArgs,
    /// Create the projects that are missing, if a target is a Harbor
    #[arg(long)]
    pub(crate) create_projects: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) vars: VarsArgs,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

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

fn umask(text: &str) -> Result<u16, String> {
    let mask = u16::from_str_radix(text, 8).ok().filter(|mask| *mask <= 0o777);
    mask.ok_or_else(|| "write it as in 022 or 007".into())
}

fn pattern(text: &str) -> Result<RegistryPattern, PatternError> {
    text.parse()
}

/// `10G`, `500M`, `64KiB` or a plain number of bytes; K, M, G and T are powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_uppercase();
    let shift = match unit.trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("write it as in 10G, 500M or 1048576".into()),
    };
    let number: u64 = number.parse().map_err(|_| "write it as in 10G or 500M".to_owned())?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or("it is out of range".into())
}

/// The same, or 0.
fn size_or_zero(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { size(text) }
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

/// How names at the target are made.
#[derive(ClapArgs)]
pub(crate) struct NamingArgs {
    /// Language of the template: Go's, or Tera, which is also taken where the text has `{%`
    #[arg(long, value_enum)]
    pub(crate) template: Option<DialectArg>,
    #[command(flatten)]
    pub(crate) vars: VarsArgs,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum DialectArg {
    /// Go's text/template with the functions of sprig
    Go,
    /// Tera
    Tera,
}

impl From<DialectArg> for Dialect {
    fn from(dialect: DialectArg) -> Self {
        match dialect {
            DialectArg::Go => Self::Go,
            DialectArg::Tera => Self::Tera,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfilesArg {
    Off,
    Local,
    Find,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LinkArg {
    Auto,
    Never,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum SyncArg {
    /// Never
    None,
    /// Once, before the program ends
    End,
    /// For each file before it gets its name
    Each,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PolicyArg {
    Strict,
    Warn,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum IndexArg {
    Rewrite,
    Keep,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LayoutArg {
    /// As KubeKey's documents say (the default)
    Documented,
    /// As KubeKey 4.0.5 and later reads it
    Kubekey,
    /// As KubeKey 4.0.0 to 4.0.3 reads it
    #[value(name = "kubekey-4.0.3")]
    Kubekey403,
    /// For file systems that take no colons in names, such as FAT, exFAT and NTFS
    Portable,
}

/// Where an image is looked for, how it is looked into, and how what is found is told.
#[derive(ClapArgs)]
pub(crate) struct LookArgs {
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) inside: InsideArgs,
}

/// How to look into an image.
#[derive(ClapArgs)]
pub(crate) struct InsideArgs {
    /// Look into the image for this platform, such as linux/arm64; by default for this machine's
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Take what is local, and ask no registry
    #[arg(long)]
    pub(crate) offline: bool,
    /// Look into the images of this place, such as oci:DIR or an archive, and no others
    #[arg(long, value_name = "PLACE", value_hint = ValueHint::AnyPath)]
    pub(crate) from: Option<String>,
    /// Repository of images that the place does not name in full, with a :TAG for a single one
    #[arg(long, value_name = "REPOSITORY[:TAG]")]
    pub(crate) name: Option<String>,
    /// Bytes that indexes of layers, manifests and configurations may take in $XDG_CACHE_HOME/imgfs
    /// (~/.cache/imgfs), as in 1G or 500M; 0 keeps none
    ///
    /// They are kept there for images that are in no directory of images; those that are in one are kept
    /// in it. With them, the next look at the same image costs a request. What has not been used for 30
    /// days is removed. The directory is not used if others can write to it.
    #[arg(
        long,
        value_name = "SIZE",
        env = "IMGFS_INDEX_CACHE_SIZE",
        default_value = "1G",
        value_parser = size_or_zero
    )]
    pub(crate) index_cache_size: u64,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

/// Check that a directory of images is whole, and repair it
///
/// Names, manifests and sizes are always checked. Blobs are hashed that have changed since they
/// were hashed the last time; with --full, all of them.
#[derive(ClapArgs)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct VerifyArgs {
    /// Another place that has images, such as oci:DIR or an archive, of which all is read
    #[arg(value_name = "PLACE", value_hint = ValueHint::AnyPath)]
    pub(crate) place: Option<String>,
    /// Repository of images that the place does not name in full
    #[arg(long, value_name = "REPOSITORY[:TAG]")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Fetch again what is broken or missing
    #[arg(long)]
    pub(crate) repair: bool,
    /// Hash every byte, also of files that have not changed
    #[arg(long)]
    pub(crate) full: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

/// Remove what no image needs: blobs, manifests, and interrupted downloads older than a day
///
/// Refuses while another process fills the directory.
#[derive(ClapArgs)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Print what a template gives
///
/// Templates are Go's, with the functions of sprig, as in KubeKey: {{ .module.image.reference.tag }}.
/// A text with {% is Tera's. This is what names of targets are made with; try them here.
#[derive(ClapArgs)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct RenderArgs {
    /// The template; `-` reads it from standard input
    #[arg(value_name = "TEMPLATE", allow_hyphen_values = true)]
    pub(crate) text: String,
    /// Language of the template; Tera if it has {%, Go if not
    #[arg(long, value_enum, value_name = "LANGUAGE")]
    pub(crate) template: Option<DialectArg>,
    /// Set the variables of an image, .module.image.reference and .module.image.src.reference
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Fail where a variable is missing, instead of printing <no value>
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) vars: VarsArgs,
}
