//! Arguments of the commands that carry to other machines what has been found out of images.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueHint};

use super::{InsideArgs, LookArgs, TreeArgs, ending, exit_status};

/// What images read when they start, and carrying that to other machines
///
/// A mount records which parts of an image are read, from the first file until a pause, and fetches them ahead the
/// next time. That is the profile of the image; each platform has its own. It is kept beside the indexes in the
/// directory of images. It changes nothing of what is read, and says nothing but digests and ranges.
#[derive(ClapArgs)]
pub(crate) struct ProfileArgs {
    #[command(subcommand)]
    pub(crate) command: ProfileCommand,
}

#[derive(Subcommand)]
pub(crate) enum ProfileCommand {
    Ls(ProfileLsArgs),
    Show(ProfileShowArgs),
    Export(ProfileExportArgs),
    Import(ProfileImportArgs),
    Push(ProfilePushArgs),
    Pull(ProfilePullArgs),
    Rm(ProfileRmArgs),
}

impl ProfileCommand {
    /// Whether JSON is printed.
    pub(crate) fn is_json(&self) -> bool {
        match self {
            Self::Ls(args) => args.json,
            Self::Show(args) => args.look.json,
            Self::Export(_) => false,
            Self::Import(args) => args.json,
            Self::Push(args) => args.look.json,
            Self::Pull(args) => args.look.json,
            Self::Rm(args) => args.look.json,
        }
    }
}

/// List the profiles that are kept here
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs profile ls",
    "imgfs profile ls --images-dir /var/lib/images --json",
))]
pub(crate) struct ProfileLsArgs {
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what an image reads when it starts, in order
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs profile show nginx:1.25",
    "imgfs profile show sha256:5870e2a2bebf...    by the digest of the platform's manifest",
))]
pub(crate) struct ProfileShowArgs {
    /// The image, or the digest of the manifest of one platform
    #[arg(value_name = "IMAGE|DIGEST")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}

/// Write the profile of an image into a file
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs profile export nginx:1.25 --output nginx.profile",
    "imgfs profile export nginx:1.25 | ssh node2 imgfs profile import --images-dir /var/lib/images -",
))]
pub(crate) struct ProfileExportArgs {
    /// The image, or the digest of the manifest of one platform
    #[arg(value_name = "IMAGE|DIGEST")]
    pub(crate) image: String,
    /// The file; standard output if none is given
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    #[command(flatten)]
    pub(crate) inside: InsideArgs,
}

/// Take a profile from a file, in place of the one that its image has here
///
/// It says itself which image it is of. A wrong one costs a mount at most 512 MiB, and changes nothing of what is
/// read.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs profile import nginx.profile",
    "imgfs profile import - < nginx.profile",
))]
pub(crate) struct ProfileImportArgs {
    /// The file; `-` is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Attach the profile of an image to it
///
/// In the image's registry it becomes a referrer (OCI 1.1) of the manifest of the platform, which a mount with
/// --profiles finds by itself, and which a pull brings along.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs profile push hub.example.com/team/app:v1",
    "imgfs profile push --local hub.example.com/team/app:v1    to the image in the directory",
))]
pub(crate) struct ProfilePushArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Attach it to the image in the directory of images, with which it is pushed later
    #[arg(long)]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}

/// Take the newest profile that is attached to an image, in place of the one that it has here
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs profile pull hub.example.com/team/app:v1",
    "imgfs profile pull --platform linux/arm64 hub.example.com/team/app:v1",
))]
pub(crate) struct ProfilePullArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}

/// Remove the profile of an image that is kept here
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs profile rm nginx:1.25",
))]
pub(crate) struct ProfileRmArgs {
    /// The image, or the digest of the manifest of one platform
    #[arg(value_name = "IMAGE|DIGEST")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}

/// Indexes of layers, and sharing them with other machines
///
/// To show what is inside an image, imgfs passes over each layer once, and keeps an index of it. `imgfs index push`
/// attaches the indexes to the image, so that a mount with --trust-indexes needs no pass.
#[derive(ClapArgs)]
pub(crate) struct IndexArgs {
    #[command(subcommand)]
    pub(crate) command: IndexCommand,
}

#[derive(Subcommand)]
pub(crate) enum IndexCommand {
    Ls(IndexLsArgs),
    Push(IndexPushArgs),
    Pull(IndexPullArgs),
    Rm(IndexRmArgs),
}

impl IndexCommand {
    /// Whether JSON is printed.
    pub(crate) fn is_json(&self) -> bool {
        match self {
            Self::Ls(args) => args.look.json,
            Self::Push(args) => args.look.json,
            Self::Pull(args) => args.look.json,
            Self::Rm(args) => args.look.json,
        }
    }
}

/// List the indexes that are kept here, or those of the layers of an image
///
/// MADE BY says who says what the layer has: `pass` this machine, which has read all of it; `author` a table of
/// contents of the image's author; `attached` somebody who has attached the index to an image.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs index ls",
    "imgfs index ls nginx:1.25              of each layer, and whether one is attached to the image",
    "imgfs index ls --offline nginx:1.25    without asking the registry for that",
))]
pub(crate) struct IndexLsArgs {
    /// The image; all indexes if none is given
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}

/// Attach the indexes of an image's layers to it
///
/// Those that are missing are made first, which takes a pass over the layer. Only indexes that this machine has made
/// are attached. In the image's registry they become a referrer (OCI 1.1) of the manifest of the platform.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs index push hub.example.com/team/app:v1",
    "imgfs index push --local hub.example.com/team/app:v1    to the image in the directory",
))]
pub(crate) struct IndexPushArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Attach them to the image in the directory of images, with which they are pushed later
    #[arg(long)]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}

/// Fetch the indexes that are attached to an image
///
/// They are checked as far as that can be done without the layers, and kept for this image. Whether they are true
/// nobody has checked: a mount uses them only if --trust-indexes names the image's repository. A mount that does so
/// fetches them by itself; this command is for mounts that are to be offline.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs index pull hub.example.com/team/app:v1",
    "imgfs mount --offline --trust-indexes hub.example.com/team /mnt/images",
))]
pub(crate) struct IndexPullArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}

/// Remove the indexes of an image's layers that are kept here
///
/// They are made anew when somebody looks into the image. What is attached to the image in its registry stays:
/// `imgfs rm registry://REPOSITORY@DIGEST` removes that.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs index rm nginx:1.25",
    "imgfs index rm --attached nginx:1.25    only those that others have made and attached to it",
))]
pub(crate) struct IndexRmArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Only those that were attached to the image
    #[arg(long)]
    pub(crate) attached: bool,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}
