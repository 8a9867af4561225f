//! Registries (OCI distribution specification 1.1, and Docker's before it) as an image tree.
//!
//! Requests are our own, over `reqwest`: `oci-client`, whose grammar of references is used in
//! [`crate::image`], reads bodies without a bound, hides `Content-Type` and blob sizes, and
//! neither repeats, resumes nor waits. See `ARCHITECTURE.md`.

mod auths;
mod blob;
mod challenge;
mod config;
mod credentials;
mod harbor;
mod limit;
mod session;
mod sink;
mod tls;
mod upload;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use reqwest::{
    Client, Method, Response,
    header::{CONTENT_TYPE, HeaderMap, LINK},
};

pub use auths::{Auths, AuthsError, EntryKeys};
pub(crate) use auths::{describe as describe_yaml_error, flag};
pub use blob::BlobStream;
pub use config::{Access, Credentials, Entry, RegistryConfig};
pub use credentials::default_files as default_credential_files;
pub use session::Stats;
pub use sink::RegistrySink;

use session::{Ask, Scope, Session};

use super::{Attachments, Blobs, BoxStream, Capabilities, Kind, Names, Result, Tags};
use crate::image::{
    ACCEPT_MANIFESTS, Algorithm, Descriptor, Digest, MAX_MANIFEST_BYTES, Manifest, Reference,
    Repository, is_tag,
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

/// All registries, each reached as the configuration says.
pub struct Registry {
    config: Arc<RegistryConfig>,
    sessions: Mutex<HashMap<SessionKey, Arc<Session>>>,
    /// Which session each repository has.
    repositories: Mutex<HashMap<Repository, Arc<Session>>>,
    clients: Mutex<HashMap<Access, Client>>,
    stats: Arc<Stats>,
}

/// Host, the entry of the configuration, and the part of it with stored credentials of its own.
type SessionKey = (String, Option<usize>, Option<String>);

impl Registry {
    /// Nothing is asked of any registry yet.
    pub fn new(config: RegistryConfig) -> Self {
        Self {
            config: Arc::new(config),
            sessions: Mutex::default(),
            repositories: Mutex::default(),
            clients: Mutex::default(),
            stats: Arc::default(),
        }
    }

    /// Counts of what went over the wire.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Registries that this run has found to lack the referrers API.
    pub fn without_referrers(&self) -> Vec<String> {
        let sessions = locked(&self.sessions);
        let lacking = sessions.iter().filter(|(_, s)| s.referrers_api.get() == Some(&false));
        lacking.map(|((registry, ..), _)| registry.clone()).collect()
    }

    /// All tags of `repository`, however many there are. [`Attachments::tags`] is for looking only.
    pub async fn all_tags(&self, repository: &Repository) -> Result<Vec<String>> {
        let session = self.session(repository)?;
        let doing = format!("listing the tags of {repository}");
        let mut url = tags_url(&session, repository);
        let mut tags = Vec::new();
        for _ in 0..MAX_TAGS_PAGES {
            let (page, next) = tags_page(&session, repository, &url, &doing).await?;
            let Some(page) = page else {
                let reason = "what it sends is no list of tags".to_owned();
                return Err(session.error(&doing, Kind::Config(reason)));
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
        Err(session.error(&doing, Kind::Config(reason)))
    }

    fn session(&self, repository: &Repository) -> Result<Arc<Session>> {
        let mut repositories = locked(&self.repositories);
        if let Some(session) = repositories.get(repository) {
            return Ok(session.clone());
        }
        let session = self.open_session(repository)?;
        repositories.insert(repository.clone(), session.clone());
        Ok(session)
    }

    fn open_session(&self, repository: &Repository) -> Result<Arc<Session>> {
        let entry = self.config.entry_for(repository);
        let has_own = entry
            .and_then(|index| self.config.entries.get(index))
            .is_some_and(|entry| entry.credentials.is_some());
        let part = if has_own {
            None
        } else {
            credentials::stored_part(&self.config.credential_files, repository)
        };
        let key = (repository.registry().to_owned(), entry, part);
        let mut sessions = locked(&self.sessions);
        if let Some(session) = sessions.get(&key) {
            return Ok(session.clone());
        }
        let session = Arc::new(Session::new(
            repository.registry(),
            self.client(&self.config.access(entry))?,
            self.config.clone(),
            entry,
            key.2.clone(),
            self.stats.clone(),
        )?);
        sessions.insert(key, session.clone());
        Ok(session)
    }

    fn client(&self, access: &Access) -> Result<Client> {
        let mut clients = locked(&self.clients);
        if let Some(client) = clients.get(access) {
            return Ok(client.clone());
        }
        let client = session::client(access, &self.config, session::Deadline::Stall)?;
        clients.insert(access.clone(), client.clone());
        Ok(client)
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
        let session = self.session(reference.repository())?;
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
        let session = self.session(reference.repository())?;
        fetch_manifest(&session, reference, Scope::Pull).await
    }
}

async fn fetch_manifest(
    session: &Session,
    reference: &Reference,
    scope: Scope<'_>,
) -> Result<Manifest> {
    let doing = format!("fetching manifest {reference}");
    let ask = Ask { scope, ..manifest_ask(session, Method::GET, reference, &doing) };
    let attempt = || async {
        let answer = session.attempt(&ask).await?;
        read_manifest(session, answer.response, reference, &doing).await
    };
    session.repeat(attempt).await
}

fn manifest_ask<'a>(
    session: &Session,
    method: Method,
    reference: &'a Reference,
    doing: &'a str,
) -> Ask<'a> {
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    let url = session.url(reference.repository(), &format!("manifests/{name}"));
    Ask { accept: Some(ACCEPT_MANIFESTS), ..Ask::new(method, url, reference.repository(), doing) }
}

async fn read_manifest(
    session: &Session,
    response: Response,
    reference: &Reference,
    doing: &str,
) -> Result<Manifest> {
    let content_type = header(response.headers(), CONTENT_TYPE.as_str());
    let stated = content_digest(response.headers());
    let body = session::read_limited(response, MAX_MANIFEST_BYTES)
        .await
        .map_err(|e| session.failed(doing, e))?
        .ok_or_else(|| session.error(doing, crate::image::ManifestError::TooLarge))?;
    // The header only counts where the reference itself does not say what is to come.
    let expected = reference.digest().or(stated);
    let algorithm = expected.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    if let Some(expected) = expected {
        let found = Digest::of(algorithm, &body);
        if found != expected {
            return Err(session.error(doing, Kind::Digest { expected, found }));
        }
    }
    Manifest::parse_as(algorithm, body.into(), content_type.as_deref()).map_err(|error| {
        match content_type.filter(|t| t.starts_with("text/html")) {
            Some(_) => {
                let reason = "it sent a page in HTML, not a manifest; is there a proxy or a login page on the way?";
                session.error(doing, Kind::Config(reason.into()))
            }
            None => session.error(doing, error),
        }
    })
}

#[async_trait]
impl Attachments for Registry {
    async fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Option<Vec<Descriptor>>> {
        let session = self.session(repository)?;
        let mut guard = None;
        if session.referrers_api.get().is_none() {
            // The first caller finds out whether there is the API; the others wait for that.
            guard = Some(session.referrers_probe.lock().await);
        }
        if session.referrers_api.get() == Some(&false) {
            return Ok(None);
        }
        if session.referrers_api.get().is_some() {
            guard = None;
        }
        let found = referrers(&session, repository, subject).await?;
        let known = match &found {
            Found::Listed(_) => Some(true),
            Found::NoApi => Some(false),
            Found::Refused => None,
        };
        if let Some(known) = known {
            // If it was known already, it is known the same.
            let _ = session.referrers_api.set(known);
        }
        drop(guard);
        match found {
            Found::Listed(list) => Ok(Some(list)),
            Found::NoApi | Found::Refused => Ok(None),
        }
    }

    async fn tags(&self, repository: &Repository) -> Result<Tags> {
        let session = self.session(repository)?;
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
    let mut url = session.url(repository, "tags/list");
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
    let body = session::read_limited(answer.response, MAX_TAGS_BODY)
        .await
        .map_err(|e| session.failed(doing, e))?;
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
    let mut url = session.url(repository, &format!("referrers/{subject}"));
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
        let body = session::read_limited(answer.response, MAX_MANIFEST_BYTES)
            .await
            .map_err(|e| session.failed(&doing, e))?
            .ok_or_else(|| session.error(&doing, crate::image::ManifestError::TooLarge))?;
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
    Err(session.error(&doing, Kind::Config(reason)))
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
        let session = self.session(repository)?;
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

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    header(headers, "docker-content-digest")?.parse().ok()
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
