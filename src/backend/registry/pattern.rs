//! Patterns for registries, as `--registries` takes them.
//!
//! ```text
//! PATTERN = "*" | [ "*." ] HOST [ ":" PORT | ":*" ] [ "/" PATH ]
//! ```
//!
//! - `*` is every registry.
//! - `quay.io` is that registry at its usual port, `host:5000` at that port, `host:*` at any port.
//! - `*.example.com` is every host below `example.com`, but not `example.com` itself.
//! - `docker.io/library` is the repositories below that path; a path is compared by whole components.
//!
//! Docker Hub's other names (`index.docker.io`, `registry-1.docker.io`) mean `docker.io`.

use std::{fmt, str::FromStr};

use crate::image::Repository;

/// Which registries, and which repositories in them, are meant. See the module.
///
/// ```
/// use imgfs::{backend::registry::RegistryPattern, image::Repository};
///
/// let repository = Repository::new("quay.io", "team/app")?;
/// for (pattern, matches) in [("quay.io", true), ("quay.io/team", true), ("quay.io/te", false), ("*", true)] {
///     let parsed: RegistryPattern = pattern.parse()?;
///     assert_eq!(parsed.matches(&repository), matches, "{pattern}");
/// }
/// assert!(RegistryPattern::every().is_every());
/// assert!(RegistryPattern::of(&repository).matches(&repository));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryPattern(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Every,
    Hosts {
        /// Whether hosts below `host` are meant, and not `host` itself.
        below: bool,
        /// In lower case, without a port.
        host: String,
        port: Port,
        /// Empty, or the first components of a repository's path.
        path: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// The one that is meant where none is written.
    Usual,
    Is(u16),
    Any,
}

/// Why a text is not a [`RegistryPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a pattern for registries: {reason}")]
pub struct PatternError {
    text: String,
    reason: String,
}

impl RegistryPattern {
    /// Every registry.
    pub const fn every() -> Self {
        Self(Form::Every)
    }

    /// Just `repository`, and what is below it.
    pub fn of(repository: &Repository) -> Self {
        let (host, port) = split_port(repository.registry());
        Self(Form::Hosts {
            below: false,
            host: host.to_owned(),
            port: port.map_or(Port::Usual, Port::Is),
            path: repository.path().to_owned(),
        })
    }

    /// Whether this is `*`, which means every registry and names none.
    pub fn is_every(&self) -> bool {
        self.0 == Form::Every
    }

    /// Whether `repository` is meant.
    pub fn matches(&self, repository: &Repository) -> bool {
        let Form::Hosts { path, .. } = &self.0 else { return true };
        let (host, port) = split_port(repository.registry());
        let rest = repository.path().strip_prefix(path.as_str());
        let whole = rest.is_some_and(|r| path.is_empty() || r.is_empty() || r.starts_with('/'));
        whole && self.names_host(host, port)
    }

    /// Whether this names a host, with the port if it is not the usual one. `*` names none.
    pub(crate) fn names_host(&self, host: &str, port: Option<u16>) -> bool {
        let Form::Hosts { below, host: own, port: own_port, .. } = &self.0 else { return false };
        let same_host = match below {
            true => host
                .len()
                .checked_sub(own.len() + 1)
                .is_some_and(|at| at > 0 && host.as_bytes()[at] == b'.' && host.ends_with(own)),
            false => host == own,
        };
        let same_port = match own_port {
            Port::Any => true,
            Port::Usual => matches!(port, None | Some(443)),
            Port::Is(own) => port.unwrap_or(443) == *own,
        };
        same_host && same_port
    }
}

/// `host:5000` -> `host`, also for an IPv6 address in brackets.
pub(crate) fn without_port(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    }
}

/// `host:5000` -> `("host", Some(5000))`, also for an IPv6 address in brackets.
pub(crate) fn split_port(registry: &str) -> (&str, Option<u16>) {
    let host = without_port(registry);
    (host, registry[host.len()..].strip_prefix(':').and_then(|port| port.parse().ok()))
}

impl FromStr for RegistryPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        parse(text.trim()).map(Self).map_err(|reason| {
            let text = text.chars().take(300).collect();
            PatternError { text, reason }
        })
    }
}

fn parse(text: &str) -> Result<Form, String> {
    if text == "*" {
        return Ok(Form::Every);
    }
    if text.is_empty() {
        return Err("it is empty; `*` means every registry".into());
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!("leave out the `{scheme}://`"));
    }
    let (registry, path) = match text.split_once('/') {
        Some((registry, path)) => (registry, path.trim_end_matches('/')),
        None => (text, ""),
    };
    if path.contains(['@', ':']) {
        return Err("a pattern ends with a repository, without tag and digest".into());
    }
    let (below, registry) = match registry.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, registry),
    };
    let (registry, any_port) = match registry.strip_suffix(":*") {
        Some(rest) => (rest, true),
        None => (registry, false),
    };
    if registry.contains('*') || path.contains('*') {
        return Err("`*` stands alone, before the first `.` of a host, or in a port's place".into());
    }
    // The grammar of references decides what a registry is. A host without a dot is one only if it
    // has a port.
    let checked = if any_port { format!("{registry}:1") } else { registry.to_owned() };
    let path_or_sample = if path.is_empty() { "a/b" } else { path };
    let sample = format!("{checked}/{path_or_sample}").parse::<crate::image::Reference>();
    let sample = sample.map_err(|error| error.reason().to_owned())?;
    let known = sample.repository();
    if !known.path().ends_with(path_or_sample) || known.path().len() > path_or_sample.len() + 8 {
        return Err("expected HOST[:PORT][/PATH], where a host without a dot has a port".into());
    }
    let (host, port) = split_port(known.registry());
    if known.registry() == "docker.io" && !is_hub(&checked) {
        return Err(format!(
            "`{registry}` is not a registry: write docker.io/{registry}, or a port behind the host"
        ));
    }
    if below && (host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok()) {
        return Err("there are no hosts below an address".into());
    }
    Ok(Form::Hosts {
        below,
        host: host.to_owned(),
        port: match (any_port, port) {
            (true, _) => Port::Any,
            (false, Some(port)) => Port::Is(port),
            (false, None) => Port::Usual,
        },
        path: path.to_owned(),
    })
}

/// Whether `registry` is one of the names of Docker Hub.
fn is_hub(registry: &str) -> bool {
    ["docker.io", "index.docker.io", "registry-1.docker.io"]
        .iter()
        .any(|name| registry.eq_ignore_ascii_case(name))
}

impl fmt::Display for RegistryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Form::Hosts { below, host, port, path } = &self.0 else { return f.write_str("*") };
        if *below {
            f.write_str("*.")?;
        }
        f.write_str(host)?;
        match port {
            Port::Usual => {}
            Port::Is(port) => write!(f, ":{port}")?,
            Port::Any => f.write_str(":*")?,
        }
        match path.as_str() {
            "" => Ok(()),
            path => write!(f, "/{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Reference;

    fn matches(pattern: &str, image: &str) -> bool {
        let image: Reference = image.parse().unwrap();
        pattern.parse::<RegistryPattern>().unwrap().matches(image.repository())
    }

    #[test]
    fn what_patterns_match() {
        for (pattern, yes, no) in [
            ("*", &["nginx", "a.io/x", "127.0.0.1:5000/x"][..], &[][..]),
            (
                "quay.io",
                &["quay.io/x", "quay.io/a/b:1", "QUAY.io/x", "quay.io:443/x"],
                &["quay.io:5000/x", "a.quay.io/x", "quay.io.evil.io/x", "uquay.io/x", "nginx"],
            ),
            ("Quay.IO/", &["quay.io/x"], &["ghcr.io/x"]),
            ("host:5000", &["host:5000/x"], &["host:5001/x", "host.io/x"]),
            ("quay.io:443", &["quay.io/x"], &["quay.io:5000/x"]),
            ("localhost", &["localhost/x"], &["localhost:5000/x"]),
            ("localhost:*", &["localhost/x", "localhost:5000/x"], &["a.localhost:5000/x"]),
            (
                "*.example.com",
                &["a.example.com/x", "a.b.example.com/x"],
                &["example.com/x", "aexample.com/x", "a.example.com:5000/x", "a.example.org/x"],
            ),
            ("*.example.com:*", &["a.example.com:5000/x"], &["example.com:5000/x"]),
            ("docker.io", &["nginx", "bitnami/redis"], &["quay.io/nginx"]),
            ("index.docker.io", &["nginx"], &["quay.io/nginx"]),
            ("docker.io/library", &["nginx"], &["bitnami/redis", "libraryx/y"]),
            ("registry-1.docker.io/bitnami/", &["bitnami/redis"], &["nginx"]),
            (
                "quay.io/team/app",
                &["quay.io/team/app", "quay.io/team/app/x"],
                &["quay.io/team/apple"],
            ),
            ("[::1]:5000", &["[::1]:5000/x"], &["[::2]:5000/x", "[::1]:5001/x"]),
        ] {
            for image in yes {
                assert!(matches(pattern, image), "{pattern} {image}");
            }
            for image in no {
                assert!(!matches(pattern, image), "{pattern} {image}");
            }
        }
        let app: Reference = "host:5000/team/app:1".parse().unwrap();
        let only = RegistryPattern::of(app.repository());
        assert!(only.matches(app.repository()));
        assert_eq!(only.to_string(), "host:5000/team/app");
        let other: Reference = "host:5000/team/other".parse().unwrap();
        assert!(!only.matches(other.repository()));
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        for (text, reason) in [
            ("", "empty"),
            (" ", "empty"),
            ("https://quay.io", "leave out the `https://`"),
            ("quay.*", "`*` stands"),
            ("a*.io", "`*` stands"),
            ("*.*.io", "`*` stands"),
            ("quay.io/*", "`*` stands"),
            ("**", "`*` stands"),
            ("host", "docker.io/host"),
            ("library/nginx", "docker.io/library"),
            ("quay.io/a:1", "without tag"),
            ("quay.io/a@sha256:00", "without tag"),
            ("quay.io/UP", "lower case"),
            ("quay.io:99999", "valid port"),
            ("quay.io:", "port"),
            ("*.1.2.3.4", "below an address"),
            ("a_b.io", "expected"),
            ("/x", "expected"),
        ] {
            let error = text.parse::<RegistryPattern>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn patterns_are_shown_as_they_can_be_written() {
        for text in ["*", "quay.io", "*.a.io:*", "h:5000/a/b", "docker.io/library", "[::1]:5000"] {
            let pattern: RegistryPattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), text);
        }
    }
}
