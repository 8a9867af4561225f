//! All commands and options. The manual pages and completions are made of this, too.

mod access;
mod look;
mod mount;
mod names;
mod serve;
mod shared;
mod snapshotter;
mod store;
mod transfer;
mod values;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};

use imgfs::ops::TreeSpec;
use tracing::level_filters::LevelFilter;

use super::{Failure, log::LogArgs, vars::VarsArgs};

pub(crate) use access::{AccessArgs, RegistryArgs};
pub(crate) use look::{CatArgs, DiffArgs, DigestArgs, DuArgs, InspectArgs, LsArgs};
pub(crate) use mount::{MountArgs, MountsArgs, ProfilesArg, UmountArgs, WriteArg};
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
pub(crate) use transfer::{
    CopyArgs, DialectArg, ExtentArgs, IndexArg, LinkArg, NamingArgs, PolicyArg, PullArgs, PushArgs,
    RunArgs, SelectionArgs, SyncArg,
};
use values::size_or_zero;

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
