//! Arguments of the commands that look into images.

use clap::Args as ClapArgs;

use super::{InsideArgs, LookArgs, TreeArgs, ending, exit_status};

/// List the images in a directory or a registry, or the files in an image
///
/// `imgfs ls` lists the images of a directory, with what they lack. `imgfs ls registry://HOST` lists the
/// repositories of a registry with their tags, `imgfs ls registry://HOST/REPOSITORY` the tags of one.
/// `imgfs ls IMAGE` and `imgfs ls IMAGE:/PATH` list what is inside an image, wherever it is, without
/// pulling it. `imgfs ls PLACE` lists the images of an archive, a layout or another directory. A name without tag and
/// digest chooses among the images of the directory, if that exists.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs ls                                    the images of the directory `images`",
    "imgfs ls calico                             those with calico in their names",
    "imgfs ls nginx:1.25                         what is in the root of an image",
    "imgfs ls -R nginx:1.25:/etc                 what is below /etc",
    "imgfs ls registry://hub.example.com         the repositories and tags of a registry",
    "imgfs ls registry://quay.io/calico/cni      the tags of a repository",
    "imgfs ls ./backup.tar                       the images in an archive",
))]
pub(crate) struct LsArgs {
    /// Only images whose name contains this; an image, maybe with a path in it; a registry; or another place
    #[arg(value_name = "PATTERN|IMAGE[:/PATH]|PLACE|registry://HOST[/REPOSITORY]")]
    pub(crate) pattern: Option<String>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Show tags of signatures and the like, too
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// List what is in directories within directories, too
    #[arg(long, short = 'R')]
    pub(crate) recursive: bool,
    /// Of a registry, list the names of the repositories only, not their tags
    #[arg(long)]
    pub(crate) repositories: bool,
    #[command(flatten)]
    pub(crate) inside: InsideArgs,
}

/// Print a file that is inside an image
///
/// The image need not be pulled: of each layer that nobody has looked into before, from the top down
/// to the one that has the file, an index is made once; from then on only the parts are fetched
/// that are read. Indexes are kept in the directory of images, or else in ~/.cache/imgfs.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs cat nginx:1.25 /etc/nginx/nginx.conf",
    "imgfs cat --platform linux/arm64 debian:12 /etc/os-release /etc/debian_version",
))]
pub(crate) struct CatArgs {
    /// The image, such as nginx:1.25
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Paths in it, such as /etc/os-release
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<String>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    #[command(flatten)]
    pub(crate) inside: InsideArgs,
}

/// Show what an image is: its platforms, configuration, layers and history
///
/// Only the index, the manifest and the configuration are fetched. Without --platform, the image for this
/// machine's platform is shown if an index has one.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs inspect nginx:1.25",
    "imgfs inspect --platform linux/arm64 nginx:1.25",
    "imgfs inspect --raw nginx:1.25                         the index or manifest, byte by byte",
    "imgfs inspect --raw --platform linux/arm64 nginx:1.25  the manifest of a platform",
    "imgfs inspect --raw --config nginx:1.25                the configuration",
    "imgfs inspect --json nginx:1.25 | jq .config.config.Env",
))]
pub(crate) struct InspectArgs {
    /// The image, such as nginx:1.25
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Print the exact bytes of the index or manifest; with --platform, those of the platform's manifest
    #[arg(long, conflicts_with = "json")]
    pub(crate) raw: bool,
    /// With --raw, print the exact bytes of the configuration instead
    #[arg(long, requires = "raw")]
    pub(crate) config: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) inside: InsideArgs,
}

/// Print the digest that an image's name leads to
///
/// That is the digest of the index, or of the manifest if there is no index; with --platform, that of the
/// platform's manifest. A registry that tells digests is asked for nothing else.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs digest nginx:1.25",
    "imgfs digest --platform linux/arm64 nginx:1.25",
    "imgfs pull nginx@$(imgfs digest nginx:1.25)",
))]
pub(crate) struct DigestArgs {
    /// The image, such as nginx:1.25
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) look: LookArgs,
}

/// Show which files differ between two images, without pulling them
///
/// A line for each file that was added (A), deleted (D) or changed (C) from the first image to the second,
/// with its size, the layer that it comes from in each, and what has changed: content, mode, owner, target
/// of a symbolic link, names (hard links), device, extended attributes. Times of modification only count
/// with --times. Layers that nobody has looked into before are read once; content is only compared where
/// it is not in the same place of the same layer.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    "\
Exit status:
  0  the images have the same files
  1  they differ
  2  trouble: usage is wrong, or something could not be compared",
    "imgfs diff nginx:1.25 nginx:1.26",
    "imgfs diff nginx:1.25 nginx:1.26 /etc           only what is in /etc",
    "imgfs diff --stat nginx:1.25 nginx:1.26         how much, layer by layer",
    "imgfs diff --packages debian:12.5 debian:12.6   packages and their versions",
))]
pub(crate) struct DiffArgs {
    /// The old image
    #[arg(value_name = "IMAGE_A")]
    pub(crate) a: String,
    /// The new image
    #[arg(value_name = "IMAGE_B")]
    pub(crate) b: String,
    /// The file or directory to compare
    #[arg(value_name = "PATH", default_value = "/")]
    pub(crate) path: String,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Count what differs, layer by layer, instead of listing it
    #[arg(long)]
    pub(crate) stat: bool,
    /// Compare the packages that dpkg, apk or rpm has installed
    #[arg(long, conflicts_with_all = ["path", "stat", "times"])]
    pub(crate) packages: bool,
    /// Take another time of modification for a difference
    #[arg(long)]
    pub(crate) times: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) inside: InsideArgs,
}

/// Show what each layer of images takes, what of that cannot be seen, and what images share
///
/// COMPRESSED is the size of the layer in the registry, UNPACKED that of the content of its files, HIDDEN what
/// of that later layers remove or overwrite: it is fetched and stored for nothing. Layers that nobody has
/// looked into before are read once.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs du nginx:1.25",
    "imgfs du --top 0 nginx:1.25 nginx:1.26          what they share, without lists of files",
))]
pub(crate) struct DuArgs {
    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// How many files of each image to list that are hidden or overwritten, the largest first
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=20))]
    pub(crate) top: u8,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) inside: InsideArgs,
}
