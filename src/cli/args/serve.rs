//! The arguments of `imgfs serve`.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, ValueEnum, ValueHint};

use imgfs::serve::{Address, UpstreamSpec};

use super::{
    RegistryArgs, TreeArgs, ending, exit_status,
    values::{duration, size},
};

/// Serve the image tree as a registry
///
/// What is in the directory, or in the bucket of an object store, can be pulled at once, with docker, podman, containerd, skopeo and the like; nothing is
/// copied first. What is pushed lies there as a pull would have put it. With --upstream, what is not there is
/// fetched from its registry when somebody asks for it, once for all who ask, and kept in a cache; starting needs no
/// upstream.
///
/// A name means: with ns=HOST, a repository of that registry; with a dot in its first component (quay.io/a/b, or
/// host__5000/a for host:5000), likewise; otherwise one of this registry itself, and if that does not exist, one of
/// --default-registry.
#[derive(ClapArgs)]
#[command(after_help = ending!(
    exit_status!(),
    "imgfs serve",
    "imgfs serve --images-dir /media/disk/images --read-only --listen :5000",
    "imgfs serve --upstream docker.io --upstream quay.io=https://mirror.example.com",
    "imgfs serve --listen :5000 --tls-cert c.pem --tls-key k.pem --htpasswd users --anonymous pull",
    "imgfs serve --images-dir s3://images/mirror --redirect --listen :5000 --tls-cert c.pem --tls-key k.pem --htpasswd users",
    "imgfs serve --print-config containerd --url http://127.0.0.1:5000",
))]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Where to listen: 127.0.0.1:5000, [::1]:5000, :5000 for all addresses, or unix:PATH; may be repeated
    ///
    /// Port 0 is a free one, which is printed. Sockets that systemd passes are taken instead.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    pub(crate) listen: Vec<Address>,
    /// Take no pushes, and write nothing to the directory
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Let tags, manifests and blobs be deleted
    #[arg(long)]
    pub(crate) allow_delete: bool,
    /// Send clients to the object store for blobs, with URLs that hold for 15 minutes
    ///
    /// For s3://, gs:// and az://, whose clients then have to reach the store. Manifests, and what is asked for in several
    /// parts at once, are sent by this server all the same.
    #[arg(long)]
    pub(crate) redirect: bool,
    /// Take indexes of which not all children are here, and images that lack their configuration or layers
    #[arg(long)]
    pub(crate) sparse: bool,
    /// Fetch what is not here from this registry, if it is of that; `all` for every registry; may be repeated
    ///
    /// With a URL, that place is asked for the images of HOST. Credentials are looked for as by `imgfs pull`; those of
    /// clients are never sent there.
    #[arg(long, value_name = "HOST[=URL]")]
    pub(crate) upstream: Vec<UpstreamSpec>,
    /// The registry of names without one that are not here; empty for none
    #[arg(long, value_name = "HOST", default_value = "docker.io")]
    pub(crate) default_registry: String,
    /// What this registry calls itself: names without a registry are below this in the directory
    #[arg(long, value_name = "HOST", default_value = "registry.local")]
    pub(crate) local_name: String,
    /// After this time it is found out again where a tag of an upstream leads
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration_or_zero)]
    pub(crate) tag_ttl: Duration,
    /// For how long a tag is served whose upstream does not answer: a time, or `forever`
    #[arg(long, value_name = "DURATION", default_value = "forever", value_parser = patience)]
    pub(crate) max_stale: Patience,
    /// How long an upstream is waited for before an older copy is served
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) upstream_wait: Duration,
    /// Ask no upstream: serve what is here
    #[arg(long)]
    pub(crate) offline: bool,
    /// Make what comes through a part of the directory, as a pull would
    #[arg(long)]
    pub(crate) keep: bool,
    /// Directory of the cache; by default in the directory of images. Over a bucket it has to be given
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Bytes that the cache may take, as in 10G or 500M
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = size)]
    pub(crate) cache_size: u64,
    /// PEM file with the certificate, followed by those between it and an authority
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_key", help_heading = ACCESS)]
    pub(crate) tls_cert: Option<PathBuf>,
    /// PEM file with its key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_cert", help_heading = ACCESS)]
    pub(crate) tls_key: Option<PathBuf>,
    /// PEM file with authorities whose certificates prove who clients are, by their common names
    ///
    /// Without --htpasswd and --anonymous pull, a client without such a certificate gets no connection.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = ACCESS)]
    pub(crate) client_ca: Option<PathBuf>,
    /// File with users and passwords, hashed with bcrypt (htpasswd -B)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = ACCESS)]
    pub(crate) htpasswd: Option<PathBuf>,
    /// What those may do who do not say who they are, where there are users
    #[arg(long, value_enum, default_value_t = AnonymousArg::None, help_heading = ACCESS)]
    pub(crate) anonymous: AnonymousArg,
    /// File with rules, one a line: a pattern of names, users, and what they may do
    ///
    /// For example `team-a/** alice,bob pull,push`. `*` is anything within a component of a name, `**` anything; for a
    /// user, `*` is everybody who is logged in, and `anonymous` everybody else. What several rules allow adds up.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = ACCESS)]
    pub(crate) access: Option<PathBuf>,
    /// Let passwords travel without TLS, because something in front of this server speaks it
    #[arg(long, help_heading = ACCESS)]
    pub(crate) insecure_auth: bool,
    /// How long an upload may rest, and a blob be here that no manifest names
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub(crate) upload_ttl: Duration,
    /// Connections at once; others wait
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_connections: u32,
    /// Memory that the server may take for its cache, as in 512M
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = size)]
    pub(crate) memory: u64,
    /// Remove what nothing needs this often, as `imgfs prune` does
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) prune_every: Option<Duration>,
    /// Show counts for Prometheus at http://ADDRESS/metrics, or at unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<Address>,
    /// Log requests into this file, a JSON object a line; `-` is standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) access_log: Option<PathBuf>,
    /// Print what a client has to be configured with to use this server as its mirror, and do nothing else
    #[arg(long, value_name = "CLIENT", value_enum)]
    pub(crate) print_config: Option<ClientArg>,
    /// Where clients reach this server, for --print-config
    #[arg(long, value_name = "URL", requires = "print_config")]
    pub(crate) url: Option<String>,
    #[command(flatten)]
    pub(crate) registries: RegistryArgs,
}

/// The heading of the options about who may do what.
const ACCESS: &str = "Access";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AnonymousArg {
    /// Nothing
    None,
    /// Pull
    Pull,
}

/// Programs that can use the server as a mirror.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClientArg {
    Containerd,
    Podman,
    Docker,
}

/// A time that may be endless.
#[derive(Clone, Copy)]
pub(crate) struct Patience(pub(crate) Option<Duration>);

fn patience(text: &str) -> Result<Patience, String> {
    match text {
        "forever" => Ok(Patience(None)),
        text => duration_or_zero(text).map(|time| Patience(Some(time))),
    }
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "0" | "0s" => Ok(Duration::ZERO),
        text => duration(text),
    }
}
