//! Registries (OCI distribution specification 1.1, and Docker's before it) as an image tree.
//!
//! Requests are our own, over `reqwest`: `oci-client`, whose grammar of references is used in
//! [`crate::image`], reads bodies without a bound, hides `Content-Type` and blob sizes, and
//! neither repeats, resumes nor waits. See `ARCHITECTURE.md`.

mod abilities;
mod address;
mod auth;
mod auths;
mod blob;
mod challenge;
mod client;
mod config;
mod credentials;
mod failure;
mod harbor;
mod holders;
mod limit;
mod logins;
mod manifests;
mod pattern;
mod remove;
mod retry;
mod session;
mod sink;
mod stall;
mod stats;
mod tls;
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
use reqwest::{Method, header::LINK};

pub use auths::{Auths, AuthsError, EntryKeys};
pub(crate) use auths::{describe as describe_yaml_error, flag};
pub use blob::BlobStream;
pub use config::{Access, Credentials, Entry, Reach, RegistryConfig, Requester};
pub use credentials::default_files as default_credential_files;
pub use logins::{
    LoginError, Place, docker_config_file, erase_login, is_what_is_found, store_login,
};
pub use pattern::{PatternError, RegistryPattern};
pub use sink::RegistrySink;
pub use stats::Stats;

use auth::Auth;
use client::Clients;
use manifests::{fetch_manifest, manifest_ask};
use session::{Ask, Scope, Session, content_digest, header};
use wire::Wire;

use super::{Attachments, Blobs, BoxStream, Capabilities, Error, Kind, Names, Result, Tags};
use crate::image::{
    Descriptor, Digest, MAX_MANIFEST_BYTES, Manifest, Reference, Repository, is_tag,
};

use crate::util::locked;

/// Tags asked for in one request. More than that is another kind of repository, in which names
/// are better looked up one by one.
const TAGS_PAGE: usize = 1000;

/// How much of a list of tags is read.
const MAX_TAGS_BODY: usize = 4 << 20;

/// Pages of tags that are read when all are wanted.
const MAX_TAGS_PAGES: usize = 1000;

/// Pages of referrers that are read for one subject.
const MAX_REFERRER_PAGES: usize = 20;

/// Sessions that are kept: one for each registry and set of credentials. A program that looks up one
/// name after another in a mount makes a new registry of each; one that was dropped costs a request
/// to find out how to authenticate.
const KEPT_SESSIONS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Repositories whose session is remembered. Each costs a few hundred bytes, and one that was
/// forgotten costs reading the credential files.
const KEPT_REPOSITORIES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// All registries, each reached as the configuration says.
pub struct Registry {
    config: Arc<RegistryConfig>,
    sessions: Mutex<LruCache<SessionKey, Arc<Session>>>,
    /// Which session each repository has.
    repositories: Mutex<LruCache<Repository, Arc<Session>>>,
    clients: Arc<Clients>,
    stats: Arc<Stats>,
}

/// Host, the entry of the configuration, and the part of it with stored credentials of its own.
type SessionKey = (String, Option<usize>, Option<String>);

impl Registry {
    /// Nothing is asked of any registry yet.
    pub fn new(config: RegistryConfig) -> Self {
        let config = Arc::new(config);
        Self {
            sessions: Mutex::new(LruCache::new(KEPT_SESSIONS)),
            repositories: Mutex::new(LruCache::new(KEPT_REPOSITORIES)),
            clients: Arc::new(Clients::new(config.clone())),
            stats: Arc::default(),
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
        let lacking = sessions.iter().filter(|(_, s)| s.referrers_api.known() == Some(false));
        let lacking: BTreeSet<&str> =
            lacking.map(|((registry, ..), _)| registry.as_str()).collect();
        lacking.into_iter().map(str::to_owned).collect()
    }

    /// All tags of `repository`, however many there are. [`Attachments::tags`] is for looking only.
    pub async fn all_tags(&self, repository: &Repository) -> Result<Vec<String>> {
        let session = self.session(repository).await?;
        let doing = format!("listing the tags of {repository}");
        let mut url = tags_url(&session, repository);
        let mut tags = Vec::new();
        for _ in 0..MAX_TAGS_PAGES {
            let (page, next) = tags_page(&session, repository, &url, &doing).await?;
            let Some(page) = page else {
                let reason = "what it sends is no list of tags".to_owned();
                return Err(session.wire.error(&doing, Kind::Config(reason)));
            };
            let got = page.len();
            tags.extend(page.into_iter().filter(|tag| is_tag(tag)));
            match next.and_then(|next| url.join(&next).ok()) {
                // Elsewhere there are no credentials for it, and an empty page leads nowhere.
                Some(next) if next.origin() == url.origin() && next != url && got > 0 => url = next,
                _ => {
                    tags.sort_unstable();
                    tags.dedup();
                    return Ok(tags);
                }
            }
        }
        let reason = format!("it has more than {MAX_TAGS_PAGES} pages of them");
        Err(session.wire.error(&doing, Kind::Config(reason)))
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
        if let Some(session) = locked(&self.repositories).get(repository) {
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
        let session = self.open_session(repository.registry(), entry, part)?;
        locked(&self.repositories).put(repository.clone(), session.clone());
        Ok(session)
    }

    fn open_session(
        &self,
        registry: &str,
        entry: Option<usize>,
        part: Option<String>,
    ) -> Result<Arc<Session>> {
        let key = (registry.to_owned(), entry, part);
        let mut sessions = locked(&self.sessions);
        let session = sessions.try_get_or_insert(key.clone(), || {
            let config = &self.config;
            let (clients, stats) = (self.clients.clone(), self.stats.clone());
            let access = config.access(entry);
            let wire = Wire::new(registry, access, clients, config.clone(), stats)?;
            let session = Session::new(wire, Auth::new(config.clone(), registry, entry, key.2));
            if config.without_referrers.iter().any(|name| name == registry) {
                session.referrers_api.learn(false);
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
        let doing = format!("looking up {reference}");
        let ask = manifest_ask(&session, Method::HEAD, reference, &doing);
        match session.send(&ask).await {
            Ok(answer) => Ok(content_digest(answer.response.headers())),
            // Without HEAD, there still is GET.
            Err(error) if matches!(error.kind(), Kind::Status { status: 405 | 501, .. }) => {
                Ok(None)
            }
            Err(error) => Err(error),
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
        if session.referrers_api.known() == Some(false) {
            return Ok(None);
        }
        let found = referrers(&session, repository, subject).await?;
        let known = match &found {
            Found::Listed(_) => Some(true),
            Found::NoApi => Some(false),
            Found::Refused => None,
        };
        if let Some(known) = known {
            session.referrers_api.learn(known);
        }
        drop(guard);
        match found {
            Found::Listed(list) => Ok(Some(list)),
            Found::NoApi | Found::Refused => Ok(None),
        }
    }

    async fn tags(&self, repository: &Repository) -> Result<Tags> {
        let session = self.session(repository).await?;
        let doing = format!("listing the tags of {repository}");
        let url = tags_url(&session, repository);
        let (names, next) = tags_page(&session, repository, &url, &doing).await?;
        Ok(match names {
            Some(names) => Tags { names, complete: next.is_none() },
            None => Tags::default(),
        })
    }
}

/// Where a list of tags begins.
fn tags_url(session: &Session, repository: &Repository) -> reqwest::Url {
    let mut url = session.wire.url(repository, "tags/list");
    url.query_pairs_mut().append_pair("n", &TAGS_PAGE.to_string());
    url
}

/// One page of a list of tags, if it is one; and where the next is, if there is any.
async fn tags_page(
    session: &Session,
    repository: &Repository,
    url: &reqwest::Url,
    doing: &str,
) -> Result<(Option<Vec<String>>, Option<String>)> {
    #[derive(serde::Deserialize)]
    struct List {
        #[serde(default)]
        tags: Option<Vec<String>>,
    }
    let answer = session.send(&Ask::new(Method::GET, url.clone(), repository, doing)).await?;
    let link = header(answer.response.headers(), LINK.as_str());
    let next = link.map(|link| next_page(&link).unwrap_or_default());
    let body = session.wire.body(answer.response, MAX_TAGS_BODY, doing).await?;
    let list = body.and_then(|body| serde_json::from_slice::<List>(&body).ok());
    Ok((list.map(|list| list.tags.unwrap_or_default()), next))
}

/// What asking for referrers has found.
enum Found {
    /// The list, which may be empty.
    Listed(Vec<Descriptor>),
    /// The registry does not have the API.
    NoApi,
    /// It does not say for this repository.
    Refused,
}

/// Asks the referrers API.
async fn referrers(session: &Session, repository: &Repository, subject: Digest) -> Result<Found> {
    let doing = format!("listing the referrers of {subject} in {repository}");
    let mut url = session.wire.url(repository, &format!("referrers/{subject}"));
    let mut found = Vec::new();
    for _ in 0..MAX_REFERRER_PAGES {
        let answer =
            match session.send(&Ask::new(Method::GET, url.clone(), repository, &doing)).await {
                Ok(answer) => answer,
                Err(error) => match error.kind() {
                    // The specification says 404; some say others to what they do not know.
                    Kind::NotFound(_) | Kind::Status { status: 400 | 405 | 406 | 501, .. } => {
                        return Ok(Found::NoApi);
                    }
                    // Some check for another right on what they take for an unknown repository.
                    Kind::Unauthorized(_) | Kind::Denied(_) => return Ok(Found::Refused),
                    _ => return Err(error),
                },
            };
        let next =
            header(answer.response.headers(), LINK.as_str()).and_then(|link| next_page(&link));
        let body = session
            .wire
            .body(answer.response, MAX_MANIFEST_BYTES, &doing)
            .await?
            .ok_or_else(|| session.wire.error(&doing, crate::image::ManifestError::TooLarge))?;
        // What is not an index comes from a registry that answers everything with a page.
        let Ok(index) = Manifest::parse(body.into(), None) else { return Ok(Found::Refused) };
        found.extend_from_slice(index.children());
        match next.and_then(|next| url.join(&next).ok()) {
            // Elsewhere there are no credentials for it, and nothing to trust either.
            Some(next) if next.origin() == url.origin() => url = next,
            _ => return Ok(Found::Listed(found)),
        }
    }
    let reason = format!("it has more than {MAX_REFERRER_PAGES} pages of them");
    Err(session.wire.error(&doing, Kind::Config(reason)))
}

/// The target of a `Link` header with `rel="next"` (RFC 8288, as far as registries use it).
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|value| {
        let (target, params) = value.trim().strip_prefix('<')?.split_once('>')?;
        params.contains("next").then(|| target.to_owned())
    })
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
        match stream.start().await {
            Err(error) if error.is_not_found() && !blob.urls.is_empty() => {
                // Foreign layers: the registry does not have them, their makers do.
                for url in &blob.urls {
                    let Some(url) =
                        url.parse().ok().filter(|u: &reqwest::Url| u.scheme() == "https")
                    else {
                        continue;
                    };
                    let stream = BlobStream::new(session.clone(), repository, blob, range.clone());
                    if let Ok(stream) = stream.at(url, blob.digest).start().await {
                        return Ok(Box::new(stream));
                    }
                }
                Err(error)
            }
            other => Ok(Box::new(other?)),
        }
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
        if let Ok(text) = std::str::from_utf8(text) {
            let _ = super::challenge::Scheme::parse([text]);
            let _ = super::next_page(text);
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

    #[test]
    fn link_headers() {
        assert_eq!(
            next_page(r#"</v2/a/tags/list?n=2&last=b>; rel="next""#).unwrap(),
            "/v2/a/tags/list?n=2&last=b"
        );
        assert_eq!(next_page("<a>; rel=prev, <b>; rel=next").as_deref(), Some("b"));
        for none in ["", "a", "<a", "<a>; rel=prev"] {
            assert_eq!(next_page(none), None);
        }
    }
}
