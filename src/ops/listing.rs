//! What a registry has: its repositories and their tags.

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::{Error, Result, TreeSpec};
use crate::{
    backend::registry::{Registry, RegistryConfig},
    image::{Repository, is_attachment_tag},
};

/// Repositories whose tags are asked for at the same time.
const AT_A_TIME: usize = 8;

/// What of a registry is listed.
#[derive(Clone, Debug, Default)]
pub struct RegistryListRequest {
    /// A registry, `host[:port]`; a repository in it, whose tags are listed; or what the names of
    /// repositories begin with, up to a `/`.
    pub prefix: String,
    /// Do not ask for the tags of repositories, which takes a request for each of them.
    pub repositories_only: bool,
    /// Tags of signatures and the like, too.
    pub attachments: bool,
}

/// Repositories of a registry.
#[derive(Clone, Debug, Serialize)]
pub struct RegistryListing {
    /// What was listed, as in [`RegistryListRequest::prefix`].
    pub registry: String,
    /// The repositories, by name.
    pub repositories: Vec<RepositoryListing>,
    /// What the registry lists besides, under names that no reference can have.
    pub unnameable: Vec<String>,
}

/// A repository of a registry.
#[derive(Clone, Debug, Serialize)]
pub struct RepositoryListing {
    /// Its name, with the registry.
    pub repository: String,
    /// Its tags, by name; none if they were not asked for.
    pub tags: Vec<String>,
    /// Why its tags could not be listed, or what it lists that is no tag.
    pub error: Option<String>,
}

impl RegistryListing {
    /// Whether something of it could not be listed.
    pub fn is_incomplete(&self) -> bool {
        !self.unnameable.is_empty() || self.repositories.iter().any(|one| one.error.is_some())
    }
}

/// Lists the repositories of a registry and their tags, all pages of both.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use imgfs::{backend::registry::RegistryConfig, ops::{RegistryListRequest, list_registry}};
///
/// // Which of all registries?
/// let request = RegistryListRequest::default();
/// let error = list_registry(&request, RegistryConfig::default()).await.unwrap_err();
/// assert!(error.hint().unwrap().contains("registry://HOST"), "{error}");
/// # });
/// ```
pub async fn list_registry(
    request: &RegistryListRequest,
    config: RegistryConfig,
) -> Result<RegistryListing> {
    let prefix = &request.prefix;
    let (host, path) = match prefix.split_once('/') {
        Some((host, path)) => (host, Some(path)),
        None => (prefix.as_str(), None),
    };
    if host.is_empty() {
        return Err(Error::Unlistable(TreeSpec::Registry { prefix: String::new() }));
    }
    let registry = Registry::new(config);
    // Without a path, any repository stands for the registry.
    let inside = Repository::new(host, path.unwrap_or("any"))?;
    if path.is_none() {
        return below(&registry, &inside, request).await;
    }
    let own = tags(&registry, &inside, request).await;
    let is_no_repository = match &own {
        Ok((tags, others)) => tags.is_empty() && others.is_empty(),
        Err(error) => error.is_not_found(),
    };
    // It may be what other names begin with.
    if is_no_repository
        && let Ok(found) = below(&registry, &inside, request).await
        && found.repositories.iter().any(|one| one.repository != inside.to_string())
    {
        return Ok(found);
    }
    // What is not there is said to be so, whether or not there is a list of the rest.
    let tags = own.map_err(Error::Image)?;
    Ok(listing(prefix, vec![RepositoryListing::new(&inside, Ok(tags))]))
}

/// The repositories whose names begin with what is asked for.
async fn below(
    registry: &Registry,
    inside: &Repository,
    request: &RegistryListRequest,
) -> Result<RegistryListing> {
    let found = registry.repositories(inside).await.map_err(Error::Image)?;
    let start = request.prefix.split_once('/').map(|(_, path)| format!("{path}/"));
    let starts = |path: &str| start.as_deref().is_none_or(|start| path.starts_with(start));
    let named = found.named.into_iter().filter(|repository| starts(repository.path()));
    let each = named.map(|repository| async move {
        let tags = match request.repositories_only {
            true => Ok(Default::default()),
            false => match tags(registry, &repository, request).await {
                // All of its tags have been deleted.
                Err(error) if error.is_not_found() => Ok(Default::default()),
                done => done,
            },
        };
        RepositoryListing::new(&repository, tags)
    });
    let repositories = stream::iter(each).buffered(AT_A_TIME).collect().await;
    let unnameable = found.unnameable.into_iter().filter(|path| starts(path)).collect();
    Ok(RegistryListing { unnameable, ..listing(&request.prefix, repositories) })
}

/// The tags of a repository, and what else it lists.
type Tags = (Vec<String>, Vec<String>);

async fn tags(
    registry: &Registry,
    repository: &Repository,
    request: &RegistryListRequest,
) -> crate::backend::Result<Tags> {
    let (mut tags, others) = registry.all_tags(repository).await?;
    tags.retain(|tag| request.attachments || !is_attachment_tag(tag));
    Ok((tags, others))
}

fn listing(prefix: &str, repositories: Vec<RepositoryListing>) -> RegistryListing {
    RegistryListing { registry: prefix.to_owned(), repositories, unnameable: Vec::new() }
}

impl RepositoryListing {
    fn new(repository: &Repository, tags: crate::backend::Result<Tags>) -> Self {
        let (tags, error) = match tags {
            Ok((tags, others)) => {
                let shown = || others.iter().take(3).map(|name| name.escape_debug().to_string());
                let error = || {
                    let shown = shown().collect::<Vec<_>>().join(", ");
                    format!("{repository} lists what is no tag and is left out: {shown}")
                };
                (tags, (!others.is_empty()).then(error))
            }
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        Self { repository: repository.to_string(), tags, error }
    }
}
