//! How registries are reached: the one canonical form of every setting. Files and flags are read
//! into it elsewhere.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use super::session;
use crate::{backend::Result, image::Repository};

/// Settings for all registries of a run.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// What holds where no entry says otherwise.
    pub defaults: Access,
    /// Settings and credentials for parts of the name space.
    pub entries: Vec<Entry>,
    /// The file from which entries have come, to be read again when credentials are refused.
    pub auths_file: Option<PathBuf>,
    /// Docker's and podman's credential files, first match wins. See
    /// [`super::credentials::default_files`].
    pub credential_files: Vec<PathBuf>,
    /// Simultaneous blob downloads from one registry; halved while it says 429 or 503.
    pub concurrency: usize,
    /// Longest time to establish a connection.
    pub connect_timeout: Duration,
    /// Longest time without a single byte.
    pub stall_timeout: Duration,
    /// Longest `Retry-After` that is obeyed.
    pub max_wait: Duration,
    /// How often a request is repeated after a transient failure without progress.
    pub retries: usize,
    /// Registries that are known to lack the referrers API.
    pub without_referrers: Vec<String>,
    /// Hosts with the addresses at which they are to be reached, whatever their names resolve to.
    /// Port 0 is the usual one.
    pub resolve: Vec<(String, SocketAddr)>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            defaults: Access::default(),
            entries: Vec::new(),
            auths_file: None,
            credential_files: Vec::new(),
            concurrency: 8,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            max_wait: Duration::from_secs(300),
            retries: 5,
            without_referrers: Vec::new(),
            resolve: Vec::new(),
        }
    }
}

/// How to talk to a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// HTTP instead of HTTPS.
    pub plain_http: bool,
    /// Accept any certificate.
    pub skip_tls_verify: bool,
    /// PEM file with authorities to trust in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with a client certificate; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the key of `cert_file`.
    pub key_file: Option<PathBuf>,
}

/// Settings for one registry, or for a part of it.
#[derive(Clone, Default)]
pub struct Entry {
    /// `host[:port][/path]` in normal form, Docker Hub as `docker.io`.
    pub prefix: String,
    /// Credentials, if the entry has any.
    pub credentials: Option<Credentials>,
    /// Overrides [`Access::plain_http`].
    pub plain_http: Option<bool>,
    /// Overrides [`Access::skip_tls_verify`].
    pub skip_tls_verify: Option<bool>,
    /// Overrides [`Access::ca_file`].
    pub ca_file: Option<PathBuf>,
    /// Overrides [`Access::cert_file`].
    pub cert_file: Option<PathBuf>,
    /// Overrides [`Access::key_file`].
    pub key_file: Option<PathBuf>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// What a user proves who he is with. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User name and password, or access token in the password's place.
    Basic {
        /// The user name.
        username: String,
        /// The secret.
        password: String,
    },
    /// An OAuth2 refresh token, as `docker login` stores for some registries.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Credentials::Basic(..)",
            Self::IdentityToken(_) => "Credentials::IdentityToken(..)",
        })
    }
}

impl RegistryConfig {
    /// How long somebody who waits for something that cannot be interrupted, such as a file system,
    /// waits before giving up: as long as connecting and stalling twice may take.
    pub fn patience(&self) -> Duration {
        self.stall_timeout * 2 + self.connect_timeout
    }

    /// Reads all certificate files, so that a wrong one is known before anything is done.
    pub fn check(&self) -> Result<()> {
        let entries = (0..self.entries.len()).map(Some);
        for access in entries.chain([None]).map(|entry| self.access(entry)) {
            if access.ca_file.is_some() || access.cert_file.is_some() {
                session::client(&access, self, session::Deadline::Stall)?;
            }
        }
        Ok(())
    }

    /// The entry that governs `repository`: the longest prefix of `host[:port][/path]`. An entry
    /// without a port is good for every port of its host, but less so than one that names it.
    pub(crate) fn entry_for(&self, repository: &Repository) -> Option<usize> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| Some((match_length(&entry.prefix, repository)?, index)))
            // Of equals the first one counts, as the first line of a file does.
            .max_by_key(|&(length, index)| (length, std::cmp::Reverse(index)))
            .map(|(_, index)| index)
    }

    /// How to talk to the registry of `entry`, with the defaults filled in.
    pub(crate) fn access(&self, entry: Option<usize>) -> Access {
        let defaults = &self.defaults;
        let Some(entry) = entry.and_then(|index| self.entries.get(index)) else {
            return defaults.clone();
        };
        Access {
            plain_http: entry.plain_http.unwrap_or(defaults.plain_http),
            skip_tls_verify: entry.skip_tls_verify.unwrap_or(defaults.skip_tls_verify),
            ca_file: entry.ca_file.clone().or_else(|| defaults.ca_file.clone()),
            cert_file: entry.cert_file.clone().or_else(|| defaults.cert_file.clone()),
            key_file: entry.key_file.clone().or_else(|| defaults.key_file.clone()),
        }
    }
}

fn match_length(prefix: &str, repository: &Repository) -> Option<usize> {
    let (host, path) = prefix.split_once('/').unwrap_or((prefix, ""));
    let registry = repository.registry();
    let same_host = host == registry
        || host.strip_suffix(":443") == Some(registry)
        || registry.strip_suffix(":443") == Some(host)
        || without_port(registry) == host;
    let rest = repository.path().strip_prefix(path)?;
    let whole_components = path.is_empty() || rest.is_empty() || rest.starts_with('/');
    (same_host && whole_components).then_some(prefix.len())
}

/// `host:5000` -> `host`, also for an IPv6 address in brackets.
pub(crate) fn without_port(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    }
}

/// Brings what people write for a registry (`https://index.docker.io/v1/`, `Quay.io/`) into the
/// form of [`Entry::prefix`].
pub(crate) fn normalise_prefix(text: &str) -> String {
    let text = text.trim();
    let text =
        text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let text = text.trim_end_matches('/');
    let (host, path) = text.split_once('/').unwrap_or((text, ""));
    let host = match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    };
    // `/v1/` and `/v2/` are API roots in Docker's configuration, not repositories.
    match path {
        "" | "v1" | "v2" => host,
        path => format!("{host}/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        let prefixes = [
            "docker.io",
            "quay.io",
            "quay.io/team",
            "quay.io/team/app",
            "host",
            "host:5000",
            "a.io:443",
            "quay.io",
        ];
        let config = RegistryConfig {
            entries: prefixes
                .map(|prefix| Entry { prefix: prefix.into(), ..Entry::default() })
                .to_vec(),
            ..RegistryConfig::default()
        };
        for (image, expected) in [
            ("nginx", Some("docker.io")),
            ("quay.io/x", Some("quay.io")),
            ("quay.io/team", Some("quay.io/team")),
            ("quay.io/team/app", Some("quay.io/team/app")),
            ("quay.io/team/apple", Some("quay.io/team")),
            ("quay.io/teams/app", Some("quay.io")),
            ("host:5000/x", Some("host:5000")),
            ("host:6000/x", Some("host")),
            ("a.io/x", Some("a.io:443")),
            ("ghcr.io/x", None),
            ("uay.io/x", None),
        ] {
            let reference: crate::image::Reference = image.parse().unwrap();
            let found = config.entry_for(reference.repository());
            assert_eq!(found.map(|i| prefixes[i]), expected, "{image}");
            assert_ne!(found, Some(7), "of equals the first counts");
        }
    }

    #[test]
    fn prefixes_are_normalised() {
        for (text, normal) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("Quay.IO/", "quay.io"),
            ("http://host:5000", "host:5000"),
            ("quay.io/team/", "quay.io/team"),
            ("registry-1.docker.io", "docker.io"),
        ] {
            assert_eq!(normalise_prefix(text), normal);
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let basic = Credentials::Basic { username: "u".into(), password: "hunter2".into() };
        let entry = Entry { credentials: Some(basic.clone()), ..Entry::default() };
        assert!(!format!("{basic:?}{entry:?}").contains("hunter2"));
    }
}
