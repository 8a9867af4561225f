//! Registries (OCI distribution specification 1.1, and Docker's before it) as an image tree.
//!
//! Requests are our own, over `reqwest`: `oci-client`, whose grammar of references is used in
//! [`crate::image`], reads bodies without a bound, hides `Content-Type` and blob sizes, and
//! neither repeats, resumes nor waits. See `ARCHITECTURE.md`.

mod abilities;
mod address;
mod auth;
mod auths;
mod begin;
mod blob;
mod catalog;
mod challenge;
mod client;
mod config;
mod credentials;
mod encoding;
mod failure;
mod fallback;
mod given;
mod guests;
mod harbor;
mod holders;
mod limit;
mod lists;
mod logins;
mod manifests;
mod pages;
mod parallel;
mod pattern;
mod remove;
mod retry;
mod scopes;
mod session;
mod sink;
mod stall;
mod stats;
pub(super) mod tls;
mod token_server;
mod upload;
mod wire;

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    ops::Range,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use lru::LruCache;
use reqwest::Method;

pub use auths::{Auths, AuthsError, EntryKeys};
pub(crate) use auths::{describe as describe_yaml_error, flag};
pub use blob::BlobStream;
pub use catalog::Repositories;
pub use config::{Access, Credentials, Entry, Reach, RegistryConfig, Requester};
pub use credentials::default_files as default_credential_files;
pub(in crate::backend) use failure::root_cause;
pub use given::GivenCredentials;
pub use logins::{
    LoginError, Place, docker_config_file, erase_login, is_what_is_found, store_login,
};
pub use pattern::{PatternError, RegistryPattern};
pub use sink::RegistrySink;
pub(super) use stall::within;
pub use stats::Stats;

use abilities::Referrers;
use auth::Auth;
use client::Clients;
use lists::Found;
use manifests::{fetch_manifest, manifest_ask};
use parallel::{Ahead, ParallelStream};
use session::{Ask, Scope, Session, content_digest};
use wire::Wire;

use super::{Attachments, Blobs, BoxStream, Capabilities, Error, Kind, Names, Result, Tags};
use crate::image::{Descriptor, Digest, Manifest, Reference, Repository, is_tag};

use crate::util::{Budget, locked};

/// Sessions that are kept: one for each registry and set of credentials. A program that looks up one
/// name after another in a mount makes a new registry of each; one that was dropped costs a request
/// to find out how to authenticate.
const KEPT_SESSIONS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Repositories whose session is remembered. Each costs a few hundred bytes, and one that was
/// forgotten costs reading the credential files.
const KEPT_REPOSITORIES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// More addresses of a foreign layer than these are not asked.
const MAX_URLS: usize = 16;

/// All registries, each reached as the configuration says.
pub struct Registry {
    config: Arc<RegistryConfig>,
    sessions: Mutex<LruCache<SessionKey, Arc<Session>>>,
    /// Which session each repository has.
    repositories: Mutex<LruCache<Repository, Arc<Session>>>,
    clients: Arc<Clients>,
    stats: Arc<Stats>,
    /// The memory for what is fetched ahead of its readers.
    ahead: Arc<Ahead>,
}

/// Host, the entry of the configuration, the part of it with stored credentials of its own, and the repository
/// for which some have been given.
type SessionKey = (String, Option<usize>, Option<String>, Option<Repository>);

impl Registry {
    /// Nothing is asked of any registry yet.
    ///
    /// ```
    /// use imgfs::{backend::registry::{Registry, RegistryConfig}, image::Repository};
    ///
    /// let config = RegistryConfig::default();
    /// Registry::check(&config)?;
    /// assert!(config.may_ask(&Repository::new("quay.io", "team/app")?));
    /// let registry = Registry::new(config);
    /// assert_eq!((registry.stats().requests(), registry.stats().received_bytes()), (0, 0));
    /// assert!(registry.without_referrers().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(config: RegistryConfig) -> Self {
        Self::within_memory(config, &Budget::unlimited())
    }

    /// The same for a process whose memory is counted in `budget`.
    pub fn within_memory(config: RegistryConfig, budget: &Budget) -> Self {
        let config = Arc::new(config);
        Self {
            sessions: Mutex::new(LruCache::new(KEPT_SESSIONS)),
            repositories: Mutex::new(LruCache::new(KEPT_REPOSITORIES)),
            clients: Arc::new(Clients::new(config.clone())),
            stats: Arc::default(),
            ahead: Arc::new(Ahead::within(budget)),
            config,
        }
    }

    /// Reads all certificate files that `config` names, so that a wrong one is known before anything
    /// is done.
    pub fn check(config: &RegistryConfig) -> Result<()> {
        client::check(config)
    }

    /// Counts of what went over the wire.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Registries that this run has found to lack the referrers API.
    pub fn without_referrers(&self) -> Vec<String> {
        let sessions = locked(&self.sessions);
        let lacks = |session: &Session| session.referrers_api.known() == Some(Referrers::Unknown);
        let lacking = sessions.iter().filter(|(_, session)| lacks(session));
        let lacking: BTreeSet<&str> =
            lacking.map(|((registry, ..), _)| registry.as_str()).collect();
        lacking.into_iter().map(str::to_owned).collect()
    }

    /// All tags of `repository`, in order, however many there are; an error if not all of them can be
    /// had. What is in the list and is no tag comes second: nobody can ask for that.
    /// [`Attachments::tags`] is for looking only.
    pub async fn all_tags(&self, repository: &Repository) -> Result<(Vec<String>, Vec<String>)> {
        let session = self.session(repository).await?;
        let tags = lists::all_tags(&session, repository).await?;
        Ok(tags.into_iter().partition(|tag| is_tag(tag)))
    }

    /// The size in bytes of the blob `digest` of `repository`, as the registry states it. [`Kind::NotFound`] if it is
    /// not there.
    pub async fn blob_size(&self, repository: &Repository, digest: Digest) -> Result<u64> {
        let session = self.session(repository).await?;
        blob::size(&session, repository, digest).await
    }

    /// Asks `registry` whether it takes the credentials that the configuration has for it. [`Kind::Unauthorized`]
    /// if it does not; `false` if it asked for none, so that nobody knows whether they are right.
    pub async fn check_login(&self, registry: &str) -> Result<bool> {
        let doing = "checking the user name and password".to_owned();
        // A session is that of a repository; of it, only where it is counts here.
        let any = Repository::new(registry, "any/any");
        let any = any.map_err(|e| {
            Error::new(format!("registry {registry}"), &doing, Kind::Config(e.to_string()))
        })?;
        let session = self.session(&any).await?;
        let url = session.wire.root();
        let ask = Ask { scope: Scope::Nothing, ..Ask::new(Method::GET, url, &any, &doing) };
        session.send(&ask).await?;
        Ok(session.auth.asks_for_credentials())
    }

    async fn session(&self, repository: &Repository) -> Result<Arc<Session>> {
        if !self.config.may_ask(repository) {
            // To whoever asks, it does not exist.
            let reason = "it is not among the registries that may be asked (--registries)";
            let doing = format!("looking up {repository}");
            return Err(Error::new(side(repository), doing, Kind::NotFound(reason.into())));
        }
        let is_given = self.config.given.get(repository).is_some();
        if let Some(session) = locked(&self.repositories).get(repository)
            && session.auth.is_of_given() == is_given
        {
            return Ok(session.clone());
        }
        let entry = self.config.entry_for(repository);
        let has_own = entry
            .and_then(|index| self.config.entries.get(index))
            .is_some_and(|entry| entry.credentials.is_some());
        let part = match has_own {
            true => None,
            false => credentials::stored_part(&self.config.credential_files, repository).await,
        };
        let given = is_given.then(|| repository.clone());
        let session = self.open_session(repository.registry(), entry, part, given)?;
        locked(&self.repositories).put(repository.clone(), session.clone());
        Ok(session)
    }

    fn open_session(
        &self,
        registry: &str,
        entry: Option<usize>,
        part: Option<String>,
        given: Option<Repository>,
    ) -> Result<Arc<Session>> {
        let key = (registry.to_owned(), entry, part, given);
        let mut sessions = locked(&self.sessions);
        let session = sessions.try_get_or_insert(key.clone(), || {
            let config = &self.config;
            let (clients, stats) = (self.clients.clone(), self.stats.clone());
            let access = config.access(entry);
            let wire = Wire::new(registry, access, clients, config.clone(), stats)?;
            let auth = Auth::new(config.clone(), registry, entry, key.2, key.3);
            let session = Session::new(wire, auth, self.ahead.clone());
            if config.without_referrers.iter().any(|name| name == registry) {
                session.referrers_api.learn(Referrers::Unknown);
            }
            Ok(Arc::new(session))
        });
        session.cloned()
    }
}

#[async_trait]
impl Names for Registry {
    fn capabilities(&self) -> Capabilities {
        Capabilities::REGISTRY
    }

    fn side(&self, repository: &Repository) -> String {
        side(repository)
    }

    async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        if let Some(digest) = reference.digest() {
            return Ok(Some(digest));
        }
        let session = self.session(reference.repository()).await?;
        if !session.heads.make_sense() {
            return Ok(None);
        }
        let doing = format!("looking up {reference}");
        let ask = manifest_ask(&session, Method::HEAD, reference, &doing);
        match session.attempt(&ask).await {
            Ok(answer) => Ok(content_digest(answer.response.headers())),
            // What a registry says to HEAD need not be what it says to GET, which also says why.
            Err(error) => {
                let manifest = fetch_manifest(&session, reference, Scope::Pull).await?;
                session.heads.learn_from(&error);
                Ok(Some(manifest.digest()))
            }
        }
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        let session = self.session(reference.repository()).await?;
        fetch_manifest(&session, reference, Scope::Pull).await
    }
}

#[async_trait]
impl Attachments for Registry {
    async fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Option<Vec<Descriptor>>> {
        let session = self.session(repository).await?;
        // The first caller finds out whether there is the API; the others wait for that.
        let guard = session.referrers_api.probe().await;
        if matches!(session.referrers_api.known(), Some(Referrers::Unknown | Referrers::Elsewhere))
        {
            return Ok(None);
        }
        let found = lists::referrers(&session, repository, subject).await?;
        match found {
            Found::Listed(_) => session.referrers_api.learn(Referrers::Listed),
            Found::NoApi => session.referrers_api.learn(Referrers::Unknown),
            Found::Elsewhere => session.referrers_api.learn(Referrers::Elsewhere),
            Found::Refused => {}
        }
        drop(guard);
        match found {
            Found::Listed(list) => Ok(Some(list)),
            Found::NoApi | Found::Elsewhere | Found::Refused => Ok(None),
        }
    }

    async fn tags(&self, repository: &Repository) -> Result<Tags> {
        lists::tags(&*self.session(repository).await?, repository).await
    }
}

#[async_trait]
impl Blobs for Registry {
    async fn read(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        let session = self.session(repository).await?;
        let stream = BlobStream::new(session.clone(), repository, blob, range.clone());
        match stream.apart().start().await {
            Err(error) if error.is_not_found() && !blob.urls.is_empty() => {
                read_elsewhere(&session, repository, blob, range, &error).await
            }
            other => Ok(in_parallel(other?)),
        }
    }
}

/// Reads a foreign layer: the registry, whose answer was `missing`, does not have it, but its makers do.
async fn read_elsewhere(
    session: &Arc<Session>,
    repository: &Repository,
    blob: &Descriptor,
    range: Range<u64>,
    missing: &Error,
) -> Result<BoxStream> {
    let mut reasons = Vec::new();
    for text in blob.urls.iter().take(MAX_URLS) {
        let url: reqwest::Url = match text.parse() {
            Ok(url) => url,
            Err(error) => {
                reasons.push(format!("one of its urls is none: {error}"));
                continue;
            }
        };
        let host = url.host_str().unwrap_or_default().to_owned();
        match url.scheme() {
            "https" => {}
            // As with redirects: what is asked for by HTTPS does not come by HTTP.
            "http" if !session.wire.is_https() => {}
            scheme => {
                let why = format!("{host} is not asked: its url is one of `{scheme}:`");
                reasons.push(match scheme {
                    "http" => why + ", which is for registries by plain HTTP (--plain-http)",
                    _ => why,
                });
                continue;
            }
        }
        let stream = BlobStream::new(session.clone(), repository, blob, range.clone());
        match stream.at(url, blob.digest).start().await {
            Ok(stream) => return Ok(in_parallel(stream)),
            Err(error) => {
                tracing::warn!("{error}");
                reasons.push(format!("{host}: {}", error.kind()));
            }
        }
    }
    let more = blob.urls.len().saturating_sub(MAX_URLS);
    if more > 0 {
        reasons.push(format!("{more} more are not asked"));
    }
    let answer = match missing.kind() {
        Kind::NotFound(message) => message.as_str(),
        _ => "",
    };
    let start = if answer.is_empty() { String::new() } else { format!("{answer}; ") };
    let reasons = reasons.join("; ");
    Err(missing.with_kind(Kind::NotFound(format!("{start}nor from its urls: {reasons}"))))
}

/// Lets a blob come over several connections, if it is so large that this may be faster.
fn in_parallel(stream: BlobStream) -> BoxStream {
    let session = stream.session().clone();
    let (division, connections) = (session.division, session.wire.config.connections_per_blob);
    match ParallelStream::serves(&stream, division, connections) {
        true => {
            let ahead = session.ahead.clone();
            Box::new(ParallelStream::new(stream, division, connections, ahead))
        }
        false => Box::new(stream),
    }
}

/// What errors call the registry of `repository`.
fn side(repository: &Repository) -> String {
    format!("registry {}", repository.registry())
}

/// Entry points of the fuzz targets to parsers that nobody else may call.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Feeds `text` to everything that reads headers and answers of strangers.
    pub fn headers(text: &[u8]) {
        let _ = super::challenge::parse_token(text);
        let _ = super::failure::error_message(text);
        super::pages::fuzz(text);
        if let Ok(text) = std::str::from_utf8(text) {
            let _ = super::challenge::Scheme::parse([text]);
        }
        if let Ok(value) = reqwest::header::HeaderValue::from_bytes(text) {
            let _ = super::blob::content_range(
                &[(reqwest::header::CONTENT_RANGE, value)].into_iter().collect(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn registries_that_nobody_asks_any_more_are_let_go() {
        let registry = Registry::new(RegistryConfig::default());
        let open = async |name: String| {
            let name: Reference = name.parse().unwrap();
            registry.session(name.repository()).await.unwrap();
        };
        for number in 0..KEPT_SESSIONS.get() * 3 {
            open(format!("host{number}.io/a")).await;
        }
        for number in 0..KEPT_REPOSITORIES.get() * 2 {
            open(format!("host.io/a{number}")).await;
        }
        assert_eq!(locked(&registry.repositories).len(), KEPT_REPOSITORIES.get());
        let sessions = locked(&registry.sessions).len();
        assert_eq!(sessions, KEPT_SESSIONS.get());
    }
}
