//! Credentials that somebody gives while registries are asked, for a repository: a container runtime that pulls
//! an image has them, and nobody else.

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
};

use lru::LruCache;

use super::Credentials;
use crate::{image::Repository, util::locked};

/// Repositories for which credentials are kept. Those that were used least recently are forgotten.
const MAX_GIVEN: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Credentials by repository, in memory only. The newest of a repository count. Clones are the same.
///
/// ```
/// use imgfs::{backend::registry::{Credentials, GivenCredentials}, image::Repository};
///
/// let given = GivenCredentials::default();
/// let repository = Repository::new("quay.io", "team/app")?;
/// assert!(given.get(&repository).is_none());
/// given.give(&repository, Credentials::IdentityToken("secret".into()));
/// assert!(given.get(&repository).is_some());
/// assert!(!format!("{given:?}").contains("secret"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct GivenCredentials(Arc<Mutex<LruCache<Repository, Credentials>>>);

impl Default for GivenCredentials {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(MAX_GIVEN))))
    }
}

impl fmt::Debug for GivenCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GivenCredentials(..)")
    }
}

impl GivenCredentials {
    /// From now on these are the credentials for `repository`. If they are refused, those of the configuration
    /// are tried.
    pub fn give(&self, repository: &Repository, credentials: Credentials) {
        locked(&self.0).put(repository.clone(), credentials);
    }

    /// The newest that have been given for `repository`.
    pub fn get(&self, repository: &Repository) -> Option<Credentials> {
        locked(&self.0).get(repository).cloned()
    }
}
