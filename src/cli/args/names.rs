//! Arguments of the commands that change what images are called, and that keep credentials.

use clap::Args as ClapArgs;

use super::{AccessArgs, OutputArgs, RegistryArgs, TreeArgs};

const RM_EXAMPLES: &str = "\
Examples:
  imgfs rm quay.io/team/app:v1                          the tag; its content stays until `imgfs prune`
  imgfs rm --prune nginx:1.24 nginx:1.25                and what no other image needs
  imgfs rm --dry-run registry://quay.io/team/app:v1     what would go from the registry
  imgfs rm --yes registry://quay.io/team/app:v1

Exit status:
  0  all removed
  1  some images are not there, or could not be removed
  2  usage or configuration is wrong, or --yes is missing; nothing was removed";

/// Remove images from a directory, or with registry:// from a registry
///
/// Of a directory, the names go: the tag, or the digest that somebody asked for, and the signatures that are of no
/// use without the image. No other image changes. A registry removes manifests only by their digests, so all tags
/// go that lead to the same one; they are named, and --yes is asked for.
#[derive(ClapArgs)]
#[command(after_help = RM_EXAMPLES)]
pub(crate) struct RmArgs {
    /// Images, such as quay.io/a/b:1, or registry://quay.io/a/b:1 in the registry itself
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Remove from the directory what no image needs any more, too, as `imgfs prune` does
    #[arg(long)]
    pub(crate) prune: bool,
    /// Remove from registries, where it cannot be undone
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

const TAG_EXAMPLES: &str = "\
Examples:
  imgfs tag nginx:1.25 registry.example.com/mirror/nginx:stable
  imgfs tag --yes registry://quay.io/team/app:v1 registry://quay.io/team/app:latest

Exit status:
  0  done
  1  the source is not there, or not whole
  2  usage or configuration is wrong, or --yes is missing; nothing was done";

/// Give an image another name in the same directory, or with registry:// in the same registry
///
/// The manifest stays what it is. A directory stores no content twice; a registry mounts what the other repository
/// lacks. A tag that is there already is moved.
#[derive(ClapArgs)]
#[command(after_help = TAG_EXAMPLES)]
pub(crate) struct TagArgs {
    /// The image, such as nginx:1.25, or registry://HOST[:PORT]/REPOSITORY:TAG in a registry
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// Its new name, written likewise
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Change the registry
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

const LOGIN_EXAMPLES: &str = "\
Examples:
  imgfs login quay.io                                   asks for user name and password
  imgfs login --username robot --password-stdin registry.example.com:5000 < FILE
  imgfs login docker.io                                 Docker Hub

Exit status:
  0  stored
  1  the registry or the credential helper refuses; nothing was stored
  2  usage or configuration is wrong; nothing was done";

/// Store a user name and password for a registry, where docker stores them
///
/// They are checked at the registry first. Then they go into the credential helper that docker's config.json
/// names (credsStore, credHelpers), or into that file itself, which is in $DOCKER_CONFIG or ~/.docker. All
/// commands find them there, and so do docker, podman and others.
#[derive(ClapArgs)]
#[command(after_help = LOGIN_EXAMPLES)]
pub(crate) struct LoginArgs {
    /// The registry, HOST[:PORT]
    #[arg(value_name = "HOST")]
    pub(crate) registry: String,
    /// User name; asked for if it is not given
    #[arg(long, short, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Read the password from standard input, and do not ask for it
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    /// Store them without asking the registry whether they are right
    #[arg(long)]
    pub(crate) no_check: bool,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const LOGOUT_EXAMPLES: &str = "\
Examples:
  imgfs logout quay.io

Exit status:
  0  removed
  1  the file or the credential helper refuses
  2  usage or configuration is wrong; nothing was done
  3  nothing was stored for it";

/// Remove what is stored for a registry in docker's config.json or its credential helper
#[derive(ClapArgs)]
#[command(after_help = LOGOUT_EXAMPLES)]
pub(crate) struct LogoutArgs {
    /// The registry, HOST[:PORT]
    #[arg(value_name = "HOST")]
    pub(crate) registry: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
