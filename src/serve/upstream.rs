//! The registries that are pulled through: which names may be asked for, and where they are asked.

use std::{collections::BTreeMap, ops::Range, str::FromStr, sync::Arc};

use async_trait::async_trait;

use crate::{
    backend::{
        Attachments, Blobs, BoxStream, Capabilities, Error, Kind, Names, Result, Tags,
        registry::{Entry, Reach, Registry, RegistryConfig, RegistryPattern, Requester},
    },
    image::{Descriptor, Digest, Manifest, Reference, Repository},
    util::Budget,
};

/// A registry to pull through: `quay.io`, `docker.io=https://mirror.example.com/hub`, or `all`.
///
/// ```
/// use imgfs::serve::UpstreamSpec;
///
/// assert!("docker.io".parse::<UpstreamSpec>().is_ok());
/// assert!("docker.io=http://127.0.0.1:5000/hub".parse::<UpstreamSpec>().is_ok());
/// assert!("all".parse::<UpstreamSpec>().is_ok());
/// assert!("docker.io=ftp://x.y".parse::<UpstreamSpec>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSpec {
    pattern: RegistryPattern,
    /// The registry that the names are of, if they are those of one.
    registry: Option<String>,
    place: Option<Place>,
}

/// Where the names of a registry are asked for instead.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// The registry there.
    registry: String,
    /// What its names begin with, empty or with a `/` at the end.
    prefix: String,
    plain_http: bool,
}

impl FromStr for UpstreamSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "all" || text == "*" {
            return Ok(Self { pattern: RegistryPattern::every(), registry: None, place: None });
        }
        let (name, url) = match text.split_once('=') {
            Some((name, url)) => (name, Some(url)),
            None => (text, None),
        };
        let pattern: RegistryPattern = name.parse().map_err(|e| format!("{e}"))?;
        let any = Repository::new(name, "any/any").ok();
        let registry = any.map(|any| any.registry().to_owned());
        let registry = registry.filter(|registry| registry != "docker.io" || is_hub(name));
        if url.is_some() && registry.is_none() {
            return Err(format!("`{name}` is not the name of one registry, so it has no URL"));
        }
        Ok(Self { pattern, registry, place: url.map(parse_url).transpose()? })
    }
}

fn is_hub(name: &str) -> bool {
    ["docker.io", "index.docker.io", "registry-1.docker.io"].contains(&name)
}

fn parse_url(url: &str) -> std::result::Result<Place, String> {
    let wrong = |why: &str| format!("`{url}` is no URL of a registry: {why}");
    let (plain_http, rest) = match url.split_once("://") {
        Some(("http", rest)) => (true, rest),
        Some(("https", rest)) => (false, rest),
        Some((scheme, _)) => return Err(wrong(&format!("`{scheme}:` is neither http nor https"))),
        None => (false, url),
    };
    let (host, path) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest, ""));
    let host = host.trim_end_matches('/');
    let path =
        path.strip_prefix("v2").filter(|p| p.is_empty() || p.starts_with('/')).unwrap_or(path);
    let path = path.trim_matches('/');
    // A name without a dot needs a port to be told from a component of a path.
    let host = match host.contains(['.', ':']) || host == "localhost" {
        true => host.to_owned(),
        false => format!("{host}:{}", if plain_http { 80 } else { 443 }),
    };
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let any = Repository::new(&host, &format!("{prefix}any/any"));
    let any = any.map_err(|e| wrong(e.reason()))?;
    Ok(Place { registry: any.registry().to_owned(), prefix, plain_http })
}

/// The registries that are pulled through, as one source.
pub(super) struct Upstream {
    patterns: Vec<RegistryPattern>,
    places: BTreeMap<String, Place>,
    /// `None` if nobody is to be asked.
    registry: Option<Registry>,
}

impl Upstream {
    /// The registries `specs`, reached as `config` says, in a process whose memory is counted in `budget`.
    pub(super) fn new(
        specs: &[UpstreamSpec],
        mut config: RegistryConfig,
        budget: &Budget,
        offline: bool,
    ) -> Self {
        let mut places = BTreeMap::new();
        for spec in specs {
            if let (Some(registry), Some(place)) = (&spec.registry, &spec.place) {
                places.insert(registry.clone(), place.clone());
            }
        }
        for place in places.values() {
            let known = config.entries.iter_mut().find(|entry| entry.prefix == place.registry);
            match known {
                Some(entry) => entry.plain_http = entry.plain_http.or(Some(place.plain_http)),
                None => config.entries.push(Entry {
                    prefix: place.registry.clone(),
                    plain_http: Some(place.plain_http),
                    ..Entry::default()
                }),
            }
        }
        let patterns: Vec<RegistryPattern> =
            specs.iter().map(|spec| spec.pattern.clone()).collect();
        let named = places.values().filter_map(|place| place.registry.parse().ok());
        let mut registries = patterns.clone();
        registries.extend(named);
        // Whoever can reach this server chooses what is asked for.
        config.reach = Reach { registries, named: Vec::new(), requester: Requester::Everybody };
        let registry = (!offline).then(|| Registry::within_memory(config, budget));
        Self { patterns, places, registry }
    }

    /// Whether `repository` may be asked for.
    pub(super) fn has(&self, repository: &Repository) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(repository))
    }

    /// Whether nobody is to be asked.
    pub(super) fn is_offline(&self) -> bool {
        self.registry.is_none()
    }

    /// Requests that were made.
    pub(super) fn stats(&self) -> Option<Arc<crate::backend::registry::Stats>> {
        self.registry.as_ref().map(|registry| registry.stats().clone())
    }

    /// The size of a blob in bytes, as its registry states it.
    pub(super) async fn blob_size(&self, repository: &Repository, blob: Digest) -> Result<u64> {
        let (registry, repository) = self.ask(repository)?;
        registry.blob_size(&repository, blob).await
    }

    fn ask(&self, repository: &Repository) -> Result<(&Registry, Repository)> {
        let fail = |kind| {
            let doing = format!("looking up {repository}");
            Error::new(format!("registry {}", repository.registry()), doing, kind)
        };
        let registry = self.registry.as_ref().ok_or_else(|| fail(Kind::Offline))?;
        let Some(place) = self.places.get(repository.registry()) else {
            return Ok((registry, repository.clone()));
        };
        let path = format!("{}{}", place.prefix, repository.path());
        let there = Repository::new(&place.registry, &path);
        Ok((registry, there.map_err(|e| fail(Kind::Config(e.to_string())))?))
    }
}

/// The same name in another repository.
fn renamed(reference: &Reference, repository: &Repository) -> Reference {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => repository.pinned(digest),
        (None, tag) => repository.tagged(tag.unwrap_or("latest")),
    }
}

#[async_trait]
impl Names for Upstream {
    fn capabilities(&self) -> Capabilities {
        Capabilities::REGISTRY
    }

    fn side(&self, repository: &Repository) -> String {
        format!("registry {}", repository.registry())
    }

    async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        let (registry, repository) = self.ask(reference.repository())?;
        registry.head(&renamed(reference, &repository)).await
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        let (registry, repository) = self.ask(reference.repository())?;
        registry.manifest(&renamed(reference, &repository)).await
    }
}

#[async_trait]
impl Attachments for Upstream {
    async fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Option<Vec<Descriptor>>> {
        let (registry, repository) = self.ask(repository)?;
        registry.referrers(&repository, subject).await
    }

    async fn tags(&self, repository: &Repository) -> Result<Tags> {
        let (registry, repository) = self.ask(repository)?;
        let (names, _) = registry.all_tags(&repository).await?;
        Ok(Tags { names, complete: true })
    }
}

#[async_trait]
impl Blobs for Upstream {
    async fn read(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        let (registry, repository) = self.ask(repository)?;
        registry.read(&repository, blob, range).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> UpstreamSpec {
        text.parse().unwrap()
    }

    #[test]
    fn names_and_where_they_are_asked_for() {
        let specs = [
            spec("quay.io"),
            spec("docker.io=http://127.0.0.1:5000/hub/"),
            spec("ghcr.io=https://mirror"),
            spec("*.example.com"),
        ];
        let upstream =
            Upstream::new(&specs, RegistryConfig::default(), &Budget::unlimited(), false);
        let there = |registry: &str, path: &str| {
            let repository = Repository::new(registry, path).unwrap();
            let (_, there) = upstream.ask(&repository).unwrap();
            (upstream.has(&repository), there.to_string())
        };
        assert_eq!(there("quay.io", "a/b"), (true, "quay.io/a/b".into()));
        assert_eq!(there("docker.io", "nginx"), (true, "127.0.0.1:5000/hub/library/nginx".into()));
        assert_eq!(there("ghcr.io", "a"), (true, "mirror:443/a".into()));
        assert!(there("x.example.com", "a").0 && !there("gcr.io", "a").0);
        let offline = Upstream::new(&specs, RegistryConfig::default(), &Budget::unlimited(), true);
        let repository = Repository::new("quay.io", "a").unwrap();
        assert!(offline.is_offline() && offline.ask(&repository).is_err());
    }

    #[test]
    fn what_is_no_upstream() {
        for text in [
            "",
            "a b",
            "docker.io=",
            "docker.io=ftp://x.y",
            "*.io=http://x.y",
            "docker.io=http://x.y/../z",
        ] {
            assert!(text.parse::<UpstreamSpec>().is_err(), "{text}");
        }
        assert_eq!(spec("all").pattern, RegistryPattern::every());
    }
}
