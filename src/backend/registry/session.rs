//! Requests to one registry with one set of credentials: authentication, redirects, limits and
//! retries. Everything that goes over the wire passes through [`Session::send`] or
//! [`Session::attempt`].

use std::sync::{Arc, Mutex, atomic::AtomicBool};

use reqwest::{
    Body, Method, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE},
};

use bytes::Bytes;

use super::{
    abilities::{Heads, Receiving, ReferrersApi},
    auth::{self, Auth, Need},
    challenge::{self, Scheme},
    failure,
    guests::Guests,
    limit::{Limiter, Permit},
    parallel::{Ahead, Division},
    wire::Wire,
};
use crate::{
    backend::{Error, Kind, Result},
    image::{Digest, Repository},
    util::locked,
};

/// Simultaneous requests for names. They are small, and a run of many images is bound by their
/// round trips.
const NAME_REQUESTS: usize = 24;

/// Times that a request is made once more because a registry says 401. A new token may be used up
/// again by others before it is used here.
const MAX_CHALLENGES: u32 = 3;

/// More redirects than this are a loop.
const MAX_REDIRECTS: usize = 8;

/// One registry, as seen with one set of credentials.
pub(super) struct Session {
    pub(super) wire: Wire,
    pub(super) auth: Auth,
    /// Tokens for other hosts to which it leads.
    guests: Guests,
    /// What is known of how it takes content.
    pub(super) receiving: Receiving,
    pub(super) referrers_api: ReferrersApi,
    pub(super) heads: Heads,
    /// How a large blob is divided among connections.
    pub(super) division: Division,
    /// Whether it has answered a request for a blob over HTTP/2, with which one connection carries all requests.
    pub(super) multiplexes: AtomicBool,
    /// The memory for what is fetched ahead of its readers.
    pub(super) ahead: Arc<Ahead>,
    names: Arc<Limiter>,
    pub(super) blobs: Arc<Limiter>,
    uploads: Arc<Limiter>,
}

/// Which of the registry's limits a request counts against.
#[derive(Clone, Copy)]
pub(super) enum Lane {
    Names,
    Blobs,
    Uploads,
}

/// What a request is allowed to do, which is what a token is asked for.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    Pull,
    /// Nothing of any repository: for finding out who may come in at all.
    Nothing,
    /// Pulling, and removing manifests.
    Delete,
    /// Pushing, and pulling from another repository of the registry, if one is named.
    Push(Option<&'a Repository>),
    /// Listing the repositories of the registry.
    Catalog,
}

impl Scope<'_> {
    /// The scopes of a token, as its server wants to have them written.
    pub(super) fn names(&self, repository: &Repository) -> Vec<String> {
        match self {
            Self::Catalog => vec!["registry:catalog:*".to_owned()],
            Self::Pull => vec![format!("repository:{}:pull", repository.path())],
            Self::Nothing => Vec::new(),
            Self::Delete => vec![format!("repository:{}:pull,delete", repository.path())],
            Self::Push(other) => {
                let own = format!("repository:{}:pull,push", repository.path());
                let other = other.filter(|other| *other != repository);
                let other = other.map(|other| format!("repository:{}:pull", other.path()));
                std::iter::once(own).chain(other).collect()
            }
        }
    }
}

/// What a request carries.
pub(super) enum Payload {
    Nothing,
    /// Content with its media type; it can be sent again.
    Whole(Bytes, HeaderValue),
    /// Content that can be sent once.
    Stream(Mutex<Option<Body>>),
}

/// What to do when a request fails at another host, to which the registry has led.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// As at the registry itself: what is there is needed.
    Insist,
    /// It is left at that. The other host speaks for itself, and can be done without.
    GiveUp,
}

/// A request to be made.
pub(super) struct Ask<'a> {
    pub method: Method,
    /// Where the registry itself has it.
    pub url: Url,
    /// Where a redirect led the last time, to be tried first.
    pub via: Option<Url>,
    pub repository: &'a Repository,
    pub scope: Scope<'a>,
    pub accept: Option<&'static str>,
    /// `Range`, if not everything is wanted.
    pub range: Option<HeaderValue>,
    pub payload: Payload,
    /// Further headers.
    pub headers: HeaderMap,
    pub lane: Lane,
    pub elsewhere: Elsewhere,
    /// Which connection it goes over, where one would carry all. See [`super::client::Clients::get`].
    pub connection: usize,
    /// For error messages: `fetching manifest 1.25`.
    pub doing: &'a str,
}

impl<'a> Ask<'a> {
    /// A request without anything special about it.
    pub(super) fn new(
        method: Method,
        url: Url,
        repository: &'a Repository,
        doing: &'a str,
    ) -> Self {
        Self {
            method,
            url,
            via: None,
            repository,
            scope: Scope::Pull,
            accept: None,
            range: None,
            payload: Payload::Nothing,
            headers: HeaderMap::new(),
            lane: Lane::Names,
            elsewhere: Elsewhere::Insist,
            connection: 0,
            doing,
        }
    }

    /// One of somebody who writes to the repository.
    pub(super) fn push(
        method: Method,
        url: Url,
        repository: &'a Repository,
        doing: &'a str,
    ) -> Self {
        Self { scope: Scope::Push(None), ..Self::new(method, url, repository, doing) }
    }
}

/// An answer with a good status. The request counts as being under way until this is dropped.
pub(super) struct Answer {
    pub response: Response,
    /// Where it came from after redirects.
    pub url: Url,
    _permit: Permit,
}

impl Session {
    pub(super) fn new(wire: Wire, auth: Auth, ahead: Arc<Ahead>) -> Self {
        let transfers = wire.config.concurrency + wire.config.concurrency.div_ceil(2);
        Self {
            names: Limiter::new(NAME_REQUESTS),
            blobs: Limiter::new(transfers),
            uploads: Limiter::new(transfers),
            division: Division::USUAL,
            multiplexes: AtomicBool::new(false),
            ahead,
            receiving: Receiving::default(),
            referrers_api: ReferrersApi::default(),
            heads: Heads::default(),
            guests: Guests::new(),
            wire,
            auth,
        }
    }

    /// Makes a request until it is answered with success, or finally fails.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Answer> {
        self.wire.repeat(|| self.attempt(ask)).await
    }

    /// One attempt: with authentication and redirects, but without repetition after failure. What fails
    /// at another host does so with an error that says where ([`Error::is_elsewhere`]).
    pub(super) async fn attempt(&self, ask: &Ask<'_>) -> Result<Answer> {
        let limiter = match ask.lane {
            Lane::Names => &self.names,
            Lane::Blobs => &self.blobs,
            Lane::Uploads => &self.uploads,
        };
        let permit = limiter.acquire().await;
        let scopes = ask.scope.names(ask.repository);
        let need = Need { scopes: &scopes, doing: ask.doing };
        let mut url = ask.via.as_ref().unwrap_or(&ask.url).clone();
        let (mut asked_again, mut challenges) = (false, 0);
        for _ in 0..MAX_REDIRECTS {
            let own = self.wire.is_own(&url);
            let probing = if own { self.auth.probe_if_unknown(&self.wire).await } else { None };
            let authorization = match own {
                true => self.auth.authorization(&self.wire, &need).await?,
                false => self.guests.authorization(&url, &need),
            };
            let response = self.request(ask, &url, authorization.clone()).await;
            if response.is_err() && probing.is_some() {
                self.auth.probe_has_failed();
            }
            let response = response.map_err(|error| self.placed(error, &url, ask))?;
            let status = response.status();
            // A query may be a credential, and so may the path at another host.
            let path = own.then(|| url.path());
            let (method, host, status_code) = (&ask.method, url.host_str(), status.as_u16());
            tracing::debug!(%method, host, path, status = status_code, "{}", ask.doing);
            if own && status != StatusCode::UNAUTHORIZED {
                self.auth.learn(Scheme::None);
            }
            let may_challenge = status == StatusCode::UNAUTHORIZED && challenges < MAX_CHALLENGES;
            let is_guest = may_challenge && !own && {
                let sent = authorization.as_ref();
                let admitted =
                    self.guests.challenged(&self.wire, &url, &response, &need, sent).await;
                admitted.map_err(|error| self.placed(error, &url, ask))?
            };
            match status {
                status if status.is_success() => {
                    limiter.succeeded();
                    return Ok(Answer { response, url, _permit: permit });
                }
                // A token that everybody gets there, for the next attempt.
                _ if is_guest => challenges += 1,
                StatusCode::UNAUTHORIZED if own && may_challenge => {
                    challenges += 1;
                    let challenged =
                        self.auth.challenged(&self.wire, response, &need, authorization).await?;
                    if let Some(refusal) = challenged {
                        return Err(self.refused(refusal, ask).await);
                    }
                }
                // A signed address that has run out: the registry gives a new one.
                StatusCode::BAD_REQUEST
                | StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::NOT_FOUND
                | StatusCode::GONE
                    if !own && !asked_again && ask.elsewhere == Elsewhere::Insist =>
                {
                    asked_again = true;
                    url = ask.url.clone();
                }
                StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER
                    if !matches!(ask.method, Method::GET | Method::HEAD) =>
                {
                    let reason = format!("it answers {} with a redirect ({status})", ask.method);
                    return Err(self.wire.error(ask.doing, Kind::Config(reason)));
                }
                status if status.is_redirection() => {
                    let target = self.wire.location(&url, response.headers(), ask.doing);
                    url = target.map_err(|error| self.placed(error, &url, ask))?;
                }
                _ => {
                    let error = self.refused(response, ask).await;
                    // Another host's business is none of the registry's.
                    if let Kind::Status { status: 429 | 503, retry_after, .. } = error.kind()
                        && own
                    {
                        let pause = retry_after.filter(|wait| *wait <= self.wire.config.max_wait);
                        for limiter in [&self.names, &self.blobs, &self.uploads] {
                            limiter.back_off(pause);
                        }
                    }
                    return Err(self.placed(error, &url, ask));
                }
            }
            drop(probing);
        }
        Err(self
            .wire
            .error(ask.doing, Kind::Config(format!("more than {MAX_REDIRECTS} redirects"))))
    }

    /// An error of a request to `url`, with the host if that is not the registry's.
    fn placed(&self, error: Error, url: &Url, ask: &Ask<'_>) -> Error {
        if self.wire.is_own(url) {
            return error;
        }
        let error = error.at(url.host_str().unwrap_or_default());
        match ask.elsewhere {
            Elsewhere::Insist => error,
            Elsewhere::GiveUp => error.after(1),
        }
    }

    async fn request(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response> {
        let (wire, doing) = (&self.wire, ask.doing);
        let mut request = wire.request_over(ask.connection, ask.method.clone(), url, doing).await?;
        request = request.headers(ask.headers.clone());
        if matches!(ask.method, Method::POST | Method::PUT)
            && matches!(ask.payload, Payload::Nothing)
        {
            request = request.header(CONTENT_LENGTH, 0);
        }
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(range) = &ask.range {
            request = request.header(RANGE, range);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        match &ask.payload {
            Payload::Nothing => wire.send(request, doing).await,
            Payload::Whole(content, media_type) => {
                let request = request.header(CONTENT_TYPE, media_type).body(content.clone());
                wire.send(request, doing).await
            }
            Payload::Stream(body) => {
                let Some(body) = locked(body).take() else {
                    let reason = "it wants to have the content once more".to_owned();
                    return Err(wire.error(doing, Kind::Interrupted(reason)));
                };
                wire.send_body(request.body(body), doing).await
            }
        }
    }

    /// The error for an answer that is not a success.
    async fn refused(&self, response: Response, ask: &Ask<'_>) -> Error {
        let status = response.status();
        let retry_after = failure::retry_after(response.headers());
        let complaint = challenge::complaint(auth::offered(response.headers()));
        let (message, body) = self.wire.reason(response, ask.doing).await;
        let kind = match status.as_u16() {
            400 | 404 if ask.method == Method::PUT && failure::says_incomplete(&body) => {
                Kind::Incomplete(message)
            }
            401 => Kind::Unauthorized(failure::joined([&message, &complaint])),
            403 => Kind::Denied(message),
            404 => Kind::NotFound(message),
            407 => Kind::Config("the proxy on the way wants credentials (HTTP 407)".into()),
            _ => Kind::Status { status: status.as_u16(), message, retry_after },
        };
        self.wire.error(ask.doing, kind)
    }
}

/// A header that is text.
pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// The digest that a registry says its content has.
pub(super) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    header(headers, "docker-content-digest")?.parse().ok()
}
