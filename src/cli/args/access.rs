//! How registries are reached.

use std::{net::SocketAddr, path::PathBuf, sync::OnceLock, time::Duration};

use clap::{Args as ClapArgs, ValueHint};
use imgfs::backend::registry::Access;

use super::values::{duration, resolution};

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
