//! How registries are reached: the one canonical form of every setting. Files and flags are read
//! into it elsewhere.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    address::Zone,
    given::GivenCredentials,
    pattern::{RegistryPattern, split_port, without_port},
};
use crate::image::Repository;

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
    /// Connections over which one blob comes at most, where one is slower than all of them.
    pub connections_per_blob: usize,
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
    /// Which registries may be asked, and at which addresses they may be.
    pub reach: Reach,
    /// Credentials that come while registries are asked.
    pub given: GivenCredentials,
}

/// Which registries may be asked, on whose behalf. See `docs/security.md`.
#[derive(Clone, Debug)]
pub struct Reach {
    /// What may be asked for at all: the rest does not exist.
    pub registries: Vec<RegistryPattern>,
    /// What the user has named in other words than by `registries`, such as an image. Like what
    /// `registries` names, this may be at any address.
    pub named: Vec<RegistryPattern>,
    /// On whose behalf registries are asked.
    pub requester: Requester,
}

/// Who says which registries are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requester {
    /// The user, who has named each of them.
    User,
    /// The user's programs, by the paths that they look up in a mount.
    Programs,
    /// Everybody on this machine, by such paths.
    Everybody,
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            registries: vec![RegistryPattern::every()],
            named: Vec::new(),
            requester: Requester::User,
        }
    }
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            defaults: Access::default(),
            entries: Vec::new(),
            auths_file: None,
            credential_files: Vec::new(),
            concurrency: 8,
            connections_per_blob: 8,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            max_wait: Duration::from_secs(300),
            retries: 5,
            without_referrers: Vec::new(),
            resolve: Vec::new(),
            reach: Reach::default(),
            given: GivenCredentials::default(),
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
    /// A token that the registry itself takes, without a token server (`registrytoken`).
    RegistryToken(String),
}

impl Credentials {
    /// Whether they are nobody's, as those of a credential helper that knows none.
    pub(super) fn are_empty(&self) -> bool {
        match self {
            Self::Basic { username, password } => username.is_empty() && password.is_empty(),
            Self::IdentityToken(token) | Self::RegistryToken(token) => token.is_empty(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Credentials::Basic(..)",
            Self::IdentityToken(_) => "Credentials::IdentityToken(..)",
            Self::RegistryToken(_) => "Credentials::RegistryToken(..)",
        })
    }
}

impl RegistryConfig {
    /// How long somebody who waits for something that cannot be interrupted, such as a file system,
    /// waits before giving up: as long as connecting and stalling twice may take.
    pub fn patience(&self) -> Duration {
        self.stall_timeout * 2 + self.connect_timeout
    }

    /// Whether `repository` may be asked for.
    pub fn may_ask(&self, repository: &Repository) -> bool {
        self.reach.registries.iter().any(|pattern| pattern.matches(repository))
    }

    /// Whether the user has named this host, and not just every one: such a host may be at any
    /// address.
    fn is_named(&self, host: &str, port: Option<u16>) -> bool {
        let patterns = self.reach.registries.iter().chain(&self.reach.named);
        let in_entry = |entry: &Entry| {
            let (own, own_port) = split_port(entry.prefix.split('/').next().unwrap_or_default());
            own == host && own_port.is_none_or(|own| own == port.unwrap_or(443))
        };
        patterns.into_iter().any(|pattern| pattern.names_host(host, port))
            || self.entries.iter().any(in_entry)
            || self.resolve.iter().any(|(own, _)| own == host)
    }

    /// Where a registry may be that is called `registry`.
    pub(crate) fn limit_of_registry(&self, registry: &str) -> Zone {
        let (host, port) = split_port(registry);
        match self.reach.requester {
            _ if self.is_named(host, port) => Zone::Special,
            Requester::User => Zone::Special,
            Requester::Programs => Zone::Loopback,
            // Services on this machine often trust whoever can connect to them.
            Requester::Everybody => Zone::Private,
        }
    }

    /// Where another host may be to which a registry in the zone `from` leads: a token server or
    /// the target of a redirect.
    pub(crate) fn limit_of_other(&self, host: &str, port: Option<u16>, from: Zone) -> Zone {
        match (self.reach.requester, from) {
            _ if self.is_named(host, port) => Zone::Special,
            (_, Zone::Public) => Zone::Private,
            (Requester::Everybody, from) => from.clamp(Zone::Private, Zone::Loopback),
            // Whoever runs a registry of his own has its other parts next to it.
            _ => Zone::Loopback,
        }
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
    fn where_connections_may_lead() {
        use Requester::{Everybody, Programs, User};
        use Zone::{Loopback, Private, Public, Special};
        let config = |requester, registries: &[&str]| RegistryConfig {
            reach: Reach {
                registries: registries.iter().map(|text| text.parse().unwrap()).collect(),
                named: vec!["named.io".parse().unwrap()],
                requester,
            },
            entries: vec![Entry { prefix: "entry.io:5000/team".into(), ..Entry::default() }],
            resolve: vec![("resolved.io".into(), "127.0.0.1:5000".parse().unwrap())],
            ..RegistryConfig::default()
        };
        for (requester, of_registry, of_other) in [
            (User, Special, [Private, Loopback, Loopback, Loopback]),
            (Programs, Loopback, [Private, Loopback, Loopback, Loopback]),
            (Everybody, Private, [Private, Private, Loopback, Loopback]),
        ] {
            let config = config(requester, &["*", "listed.io/team"]);
            assert_eq!(config.limit_of_registry("a.io"), of_registry, "{requester:?}");
            for (from, limit) in [Public, Private, Loopback, Special].into_iter().zip(of_other) {
                assert_eq!(
                    config.limit_of_other("a.io", None, from),
                    limit,
                    "{requester:?} {from}"
                );
            }
            for (host, port) in [
                ("listed.io", None),
                ("named.io", Some(443)),
                ("entry.io", Some(5000)),
                ("resolved.io", Some(80)),
            ] {
                assert_eq!(config.limit_of_other(host, port, Public), Special, "{host}");
                let registry = port.map_or(host.to_owned(), |port| format!("{host}:{port}"));
                assert_eq!(config.limit_of_registry(&registry), Special, "{registry}");
            }
            assert_eq!(config.limit_of_other("entry.io", None, Public), Private);
            assert_eq!(config.limit_of_other("listed.io", Some(81), Public), Private);
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
