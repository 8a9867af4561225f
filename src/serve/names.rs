//! Which repository a name means. The rules, in this order:
//!
//! 1. `ns=HOST[:PORT]` names the registry.
//! 2. A first component with a dot does, or `localhost`; `host__5000` is `host:5000`.
//! 3. Otherwise it is a repository of this registry itself (`--local-name`); where that does not exist and
//!    something is read, the name is one of the default registry (`--default-registry`).
//!
//! Docker Hub's other names are `docker.io`, and a single component there is below `library/`; nowhere else.

use crate::image::Repository;

/// The longest name, in bytes.
const MAX_NAME: usize = 255;

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// The name as the client has written it.
    pub asked: String,
    /// The value of `ns=`, as it was written.
    pub namespace: Option<String>,
    /// The repository. What is written is written here.
    pub repository: Repository,
    /// Where to look if that does not exist.
    pub fallback: Option<Repository>,
}

/// Why a name means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no name of a repository: {reason}")]
pub(super) struct NameError {
    name: String,
    reason: String,
}

/// How names are understood.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// What this registry calls itself.
    local: String,
    /// Where names are looked for that are not here.
    default: Option<String>,
}

impl Names {
    /// Fails if `local` or `default` is no name of a registry.
    pub(super) fn new(local: &str, default: Option<&str>) -> Result<Self, NameError> {
        for registry in std::iter::once(local).chain(default) {
            repository(registry, "any/any")?;
        }
        Ok(Self { local: local.to_owned(), default: default.map(str::to_owned) })
    }

    /// What `name` means, with the value of `ns=` if there is one.
    pub(super) fn parse(&self, name: &str, namespace: Option<&str>) -> Result<Named, NameError> {
        if name.len() > MAX_NAME {
            return Err(NameError::new(name, "it is longer than 255 characters"));
        }
        let named = |repository, fallback| Named {
            asked: name.to_owned(),
            namespace: namespace.map(str::to_owned),
            repository,
            fallback,
        };
        if let Some(registry) = namespace {
            return Ok(named(repository(registry, name)?, None));
        }
        if let Some((first, rest)) = name.split_once('/')
            && let Some(registry) = registry_of(first)
        {
            return Ok(named(repository(&registry, rest)?, None));
        }
        let local = repository(&self.local, name)?;
        let fallback = self.default.as_deref().filter(|default| *default != self.local);
        let fallback = fallback.and_then(|default| repository(default, name).ok());
        Ok(named(local, fallback))
    }

    /// How a client that says no `ns=` calls `repository`.
    pub(super) fn shown(&self, repository: &Repository) -> String {
        match repository.registry() == self.local {
            true => repository.path().to_owned(),
            false => {
                let registry = repository.registry().replacen(':', "__", 1);
                format!("{registry}/{}", repository.path())
            }
        }
    }
}

impl NameError {
    fn new(name: &str, reason: &str) -> Self {
        Self { name: name.chars().take(300).collect(), reason: reason.to_owned() }
    }
}

/// The registry that a first component names.
fn registry_of(component: &str) -> Option<String> {
    if component.contains('.') || component == "localhost" {
        return Some(match component.rsplit_once("__") {
            Some((host, port)) if is_port(port) => format!("{host}:{port}"),
            _ => component.to_owned(),
        });
    }
    let (host, port) = component.rsplit_once("__")?;
    is_port(port).then(|| format!("{host}:{port}"))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// The repository `path` of `registry`, which must be one that can be told from a component of a path.
fn repository(registry: &str, path: &str) -> Result<Repository, NameError> {
    let is_registry = registry.contains(['.', ':']) || registry.eq_ignore_ascii_case("localhost");
    if !is_registry || registry.contains('/') {
        let reason = format!("`{registry}` is no registry; it needs a dot or a port");
        return Err(NameError::new(path, &reason));
    }
    Repository::new(registry, path).map_err(|e| NameError::new(path, e.reason()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("registry.local", Some("docker.io")).unwrap()
    }

    #[test]
    fn one_rule_each() {
        for (name, namespace, repository, fallback) in [
            ("app", Some("quay.io"), "quay.io/app", None),
            ("nginx", Some("docker.io"), "docker.io/library/nginx", None),
            ("nginx", Some("registry-1.docker.io"), "docker.io/library/nginx", None),
            ("a/b", Some("host:5000"), "host:5000/a/b", None),
            ("quay.io/a", Some("ghcr.io"), "ghcr.io/quay.io/a", None),
            ("quay.io/a/b", None, "quay.io/a/b", None),
            ("docker.io/nginx", None, "docker.io/library/nginx", None),
            ("index.docker.io/x/y", None, "docker.io/x/y", None),
            ("localhost/x", None, "localhost/x", None),
            ("host__5000/a/b", None, "host:5000/a/b", None),
            ("a.b__80/c", None, "a.b:80/c", None),
            ("localhost__5000/c", None, "localhost:5000/c", None),
            ("team/app", None, "registry.local/team/app", Some("docker.io/team/app")),
            ("pause", None, "registry.local/pause", Some("docker.io/library/pause")),
            ("a__b/c", None, "registry.local/a__b/c", Some("docker.io/a__b/c")),
            ("a.b", None, "registry.local/a.b", Some("docker.io/library/a.b")),
            ("registry.local/app", None, "registry.local/app", None),
        ] {
            let named = names().parse(name, namespace).unwrap();
            assert_eq!(named.repository.to_string(), repository, "{name} {namespace:?}");
            assert_eq!(named.fallback.map(|f| f.to_string()).as_deref(), fallback, "{name}");
        }
    }

    #[test]
    fn what_is_no_name() {
        let long = format!("a/{}", "b".repeat(255));
        for (name, namespace) in [
            ("", None),
            ("Upper", None),
            ("a/../b", None),
            ("..", None),
            ("a//b", None),
            ("/a", None),
            ("a/", None),
            ("a\\b", None),
            ("a b", None),
            ("-a", None),
            (long.as_str(), None),
            ("a", Some("host")),
            ("a", Some("")),
            ("a", Some("../x")),
            ("a", Some("a.b/c")),
            ("a.b/Upper", None),
            ("host__5000/..", None),
        ] {
            assert!(names().parse(name, namespace).is_err(), "{name} {namespace:?}");
        }
        assert!(names().parse(&"a".repeat(255), None).is_ok());
        assert!(Names::new("local", None).is_err() && Names::new("a.b", Some("x")).is_err());
    }

    #[test]
    fn names_lead_back() {
        for name in ["team/app", "quay.io/a", "host__5000/a/b", "docker.io/library/nginx"] {
            let named = names().parse(name, None).unwrap();
            assert_eq!(names().shown(&named.repository), name);
        }
    }
}
