//! All commands and options. The manual pages and completions are made of this, too.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};

use super::vars::VarsArgs;

const EXIT_STATUS: &str = "\
Exit status:
  0  all done
  1  some images failed, or problems were found
  2  usage or configuration is wrong; nothing was done
  3  nothing matched: there was nothing to do";

/// Container images as a file tree.
///
/// Moves images between registries and a directory in KubeKey's layout, verified and resumable.
#[derive(Parser)]
#[command(name = "imgfs", version, after_help = EXIT_STATUS, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Pull(PullArgs),
    Run(RunArgs),
    Ls(LsArgs),
    Verify(VerifyArgs),
    Prune(PruneArgs),
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
    /// The output options of the command, or the defaults where it has none.
    pub(crate) fn output(&self) -> OutputArgs {
        match self {
            Self::Pull(args) => args.output,
            Self::Run(args) => args.output,
            Self::Ls(args) => OutputArgs { json: args.json, quiet: false },
            Self::Verify(args) => args.output,
            Self::Prune(args) => args.output,
            Self::Render(_) | Self::Completions { .. } | Self::Man { .. } => OutputArgs::default(),
        }
    }
}

#[derive(ClapArgs)]
pub(crate) struct TreeArgs {
    /// Directory of the images
    #[arg(
        long,
        value_name = "DIR",
        env = "IMGFS_IMAGES_DIR",
        default_value = "images",
        value_hint = ValueHint::DirPath
    )]
    pub(crate) images_dir: PathBuf,
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
    /// ~/.docker/config.json and $XDG_RUNTIME_DIR/containers/auth.json are asked, with their
    /// credential helpers.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) auths: Option<PathBuf>,
    /// User name for the registry; all images must be in the same one
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    pub(crate) username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    /// Accept any certificate
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Use HTTP instead of HTTPS
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// PEM file with authorities to trust besides the system's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ca_file: Option<PathBuf>,
    /// Blobs to move from one registry at the same time; halved while it says that this is too much
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) concurrency: u16,
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
    /// Platforms to pull, such as linux/amd64, arm64 or linux/arm/v7; all if not given
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,
    /// What to do where an image lacks a platform: fail, or warn and pull the others
    #[arg(long, value_enum, default_value_t = PolicyArg::Strict)]
    pub(crate) policy: PolicyArg,
    /// What to do with an index of which only some platforms are pulled: write a new one with just
    /// those, or keep it with its digest
    #[arg(long, value_enum, default_value_t = IndexArg::Rewrite)]
    pub(crate) index: IndexArg,
    /// Pull signatures, attestations and other referrers with the images
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
    /// Layout of a new directory
    #[arg(long, value_enum)]
    pub(crate) layout: Option<LayoutArg>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

/// Carry out KubeKey's tasks: pull, push and copy as YAML
///
/// The file is a list of tasks with KubeKey's `image` module in any of its forms, a play that has
/// them, or a single task. The whole file is read and evaluated before anything is moved. A task
/// that fails ends the run, if it does not say `ignore_errors`.
#[derive(ClapArgs)]
#[command(after_help = EXIT_STATUS)]
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
    /// What to do with an index of which only some platforms are wanted: write a new one with just
    /// those, or keep it with its digest
    #[arg(long, value_enum, default_value_t = IndexArg::Rewrite)]
    pub(crate) index: IndexArg,
    /// Copy signatures, attestations and other referrers with the images
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
    /// Layout of a new directory
    #[arg(long, value_enum)]
    pub(crate) layout: Option<LayoutArg>,
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
}

/// List the images in a directory, with what they lack
#[derive(ClapArgs)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct LsArgs {
    /// Only images whose name contains this
    #[arg(value_name = "PATTERN")]
    pub(crate) pattern: Option<String>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Show tags of signatures and the like, too
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check that a directory of images is whole, and repair it
///
/// Names, manifests and sizes are always checked. Blobs are hashed that have changed since they
/// were hashed the last time; with --full, all of them.
#[derive(ClapArgs)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct VerifyArgs {
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
    #[command(flatten)]
    pub(crate) vars: VarsArgs,
    /// Set the variables of an image, .module.image.reference and .module.image.src.reference
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Fail where a variable is missing, instead of printing <no value>
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum DialectArg {
    Go,
    Tera,
}
