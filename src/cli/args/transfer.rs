//! What moves images: `pull`, `push`, `copy` and `run`.

use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs, ValueEnum, ValueHint};
use imgfs::{backend::Shard, template::Dialect};

use super::{
    super::vars::VarsArgs, EXIT_STATUS, LayoutArg, OutputArgs, RegistryArgs, TreeArgs, ending,
    exit_status,
};

const RUN_EXAMPLES: &str = "\
Examples:
  imgfs run tasks.yaml --set tag=v3.4.1
  imgfs run tasks.yaml --dry-run
  imgfs run playbooks/push.yaml --skip-other-modules --tags push --vars config.yaml";

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
    /// Read more images from a file, one a line; `#` starts a comment, `-` is standard input
    #[arg(long, value_name = "LIST", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
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
    /// Ask the registry for each blob and manifest, too, of images that it has by their names, and send what it has lost
    #[arg(long)]
    pub(crate) recheck: bool,
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
    /// Ask the registry for each blob and manifest, too, of images that it has by their names, and send what it has lost
    #[arg(long)]
    pub(crate) recheck: bool,
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
