//! Requests to one registry with one set of credentials: authentication, redirects, retries,
//! deadlines and limits. Everything that goes over the wire passes through [`Session::send`].

mod auth;
mod failure;

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use reqwest::{
    Body, Client, Method, Response, StatusCode, Url,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
        RANGE,
    },
    redirect,
};

pub(super) use failure::error_message;
use failure::root_cause;

use super::{
    challenge::{Scheme, Tokens},
    config::{Access, Credentials, RegistryConfig},
    limit::{Limiter, Permit},
    tls,
    upload::Receiving,
};
use crate::{
    backend::{Error, Kind, Result},
    image::Repository,
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

/// How often a connection is tried in a row.
const CONNECT_ATTEMPTS: u32 = 3;

/// How much of an error's body is read.
const MAX_ERROR_BODY: usize = 16 << 10;

/// Counts of what went over the wire, over all sessions of a run.
#[derive(Debug, Default)]
pub struct Stats {
    requests: AtomicU64,
    retries: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    mounted_blobs: AtomicU64,
}

impl Stats {
    /// HTTP requests made, those to token servers and redirect targets included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many of them repeated one that had failed.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Bytes of blobs sent, repetitions included.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Blobs that were mounted from another repository of their registry.
    pub fn mounted_blobs(&self) -> u64 {
        self.mounted_blobs.load(Ordering::Relaxed)
    }

    /// Bytes of blobs received, repetitions included.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_mount(&self) {
        self.mounted_blobs.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// One registry, as seen with one set of credentials.
pub(super) struct Session {
    pub(super) label: String,
    base: Url,
    client: Client,
    /// The one of [`Session::sender`], made when it is needed.
    sender: std::sync::OnceLock<Client>,
    pub(super) config: Arc<RegistryConfig>,
    /// The credentials, as far as they have been looked up.
    credentials: tokio::sync::Mutex<Option<Arc<KnownCredentials>>>,
    registry: String,
    entry: Option<usize>,
    /// The part of the registry for which a credential file has an entry of its own.
    stored_under: Option<String>,
    scheme: Mutex<Option<Scheme>>,
    /// Held by the request that finds out the scheme, so that the others need not fail first.
    probe: tokio::sync::Mutex<()>,
    probe_failed: AtomicBool,
    tokens: Tokens,
    names: Arc<Limiter>,
    blobs: Arc<Limiter>,
    uploads: Arc<Limiter>,
    /// What is known of how it takes content.
    pub(super) receiving: Receiving,
    pub(super) stats: Arc<Stats>,
    /// Whether the registry has the referrers API, once that is known.
    pub(super) referrers_api: std::sync::OnceLock<bool>,
    /// Held by the request that finds that out.
    pub(super) referrers_probe: tokio::sync::Mutex<()>,
}

/// The credentials, and why they could not be had.
pub(super) type KnownCredentials = (Option<Credentials>, Option<String>);

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
    /// Pushing, and pulling from another repository of the registry, if one is named.
    Push(Option<&'a Repository>),
}

impl Scope<'_> {
    /// The scopes of a token, as its server wants to have them written.
    pub(super) fn names(&self, repository: &Repository) -> Vec<String> {
        match self {
            Self::Pull => vec![format!("repository:{}:pull", repository.path())],
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

/// Decides whether to repeat what failed, and when.
pub(super) struct Retry {
    config: Arc<RegistryConfig>,
    delays: ExponentialBackoff,
    pub(super) attempts: u32,
}

impl Retry {
    pub(super) fn new(config: &Arc<RegistryConfig>) -> Self {
        Self { config: config.clone(), delays: Self::delays(config), attempts: 1 }
    }

    fn delays(config: &RegistryConfig) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_factor(2.5)
            .with_max_delay(Duration::from_secs(15))
            .with_max_times(config.retries)
            .with_jitter()
            .build()
    }

    /// There was progress: what comes now is a new trouble.
    pub(super) fn reset(&mut self) {
        self.delays = Self::delays(&self.config);
        self.attempts = 1;
    }

    /// How long to wait before the next attempt, or the error if there is to be none.
    pub(super) fn after(&mut self, error: Error) -> Result<Duration> {
        if !error.is_transient() {
            return Err(error.after(self.attempts));
        }
        self.again(error)
    }

    /// The same for an error after which another attempt makes sense in any case.
    pub(super) fn again(&mut self, error: Error) -> Result<Duration> {
        if let Kind::Status { retry_after: Some(wait), .. } = error.kind()
            && *wait > self.config.max_wait
        {
            let kind = Kind::WaitTooLong(*wait);
            return Err(error.with_kind(kind).after(self.attempts));
        }
        // A host that is not there does not come up within seconds, as an overloaded one does.
        let enough = matches!(error.kind(), Kind::Connect(_)) && self.attempts >= CONNECT_ATTEMPTS;
        let delay = self.delays.next().filter(|_| !enough);
        let Some(delay) = delay else { return Err(error.after(self.attempts)) };
        let delay = match error.kind() {
            Kind::Status { retry_after: Some(wait), .. } => delay.max(*wait),
            _ => delay,
        };
        let (attempt, delay_ms) = (self.attempts, delay.as_millis());
        tracing::info!(attempt, delay_ms, "{error}; repeating it");
        self.attempts += 1;
        Ok(delay)
    }
}

impl Session {
    pub(super) fn new(
        registry: &str,
        client: Client,
        config: Arc<RegistryConfig>,
        entry: Option<usize>,
        stored_under: Option<String>,
        stats: Arc<Stats>,
    ) -> Result<Self> {
        let scheme = if config.access(entry).plain_http { "http" } else { "https" };
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let label = format!("registry {registry}");
        let base = format!("{scheme}://{host}/v2/").parse().map_err(|e| {
            Error::new(&label, "reading its name", Kind::Config(format!("not a host name: {e}")))
        })?;
        Ok(Self {
            label,
            base,
            client,
            sender: std::sync::OnceLock::new(),
            registry: registry.to_owned(),
            entry,
            stored_under,
            credentials: tokio::sync::Mutex::default(),
            scheme: Mutex::new(None),
            probe: tokio::sync::Mutex::new(()),
            probe_failed: AtomicBool::new(false),
            referrers_probe: tokio::sync::Mutex::new(()),
            tokens: Tokens::default(),
            names: Limiter::new(NAME_REQUESTS),
            blobs: Limiter::new(config.concurrency + config.concurrency.div_ceil(2)),
            uploads: Limiter::new(config.concurrency + config.concurrency.div_ceil(2)),
            receiving: Receiving::default(),
            stats,
            referrers_api: match config.without_referrers.iter().any(|r| r == registry) {
                true => false.into(),
                false => std::sync::OnceLock::new(),
            },
            config,
        })
    }

    /// The URL of something in `repository`, such as `manifests/1.25`.
    pub(super) fn url(&self, repository: &Repository, what: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{what}", repository.path()));
        url
    }

    pub(super) fn retry(&self) -> Retry {
        Retry::new(&self.config)
    }

    pub(super) fn error(&self, doing: &str, kind: impl Into<Kind>) -> Error {
        Error::new(&self.label, doing, kind)
    }

    /// A request that is none of a registry's, without retries and redirects.
    pub(super) fn plain_request(&self, method: Method, url: Url) -> reqwest::RequestBuilder {
        self.stats.count_request();
        self.client.request(method, url)
    }

    /// Waits before a repetition.
    pub(super) async fn pause(&self, delay: Duration) {
        self.stats.retries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(delay).await;
    }

    /// Makes a request until it is answered with success, or finally fails.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Answer> {
        self.repeat(|| self.attempt(ask)).await
    }

    /// Does something until it succeeds, or finally fails.
    pub(super) async fn repeat<T, F>(&self, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut retry = self.retry();
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => {
                    let delay = retry.after(error)?;
                    self.pause(delay).await;
                }
            }
        }
    }

    /// One attempt: with authentication and redirects, but without repetition after failure.
    pub(super) async fn attempt(&self, ask: &Ask<'_>) -> Result<Answer> {
        let limiter = match ask.lane {
            Lane::Names => &self.names,
            Lane::Blobs => &self.blobs,
            Lane::Uploads => &self.uploads,
        };
        let permit = limiter.acquire().await;
        let mut url = ask.via.as_ref().unwrap_or(&ask.url).clone();
        let (mut asked_again, mut challenges) = (false, 0);
        for _ in 0..MAX_REDIRECTS {
            let own = same_origin(&url, &self.base);
            let probing = if own { self.probe_if_unknown().await } else { None };
            let authorization = if own { self.authorization(ask).await? } else { None };
            let response = self.request(ask, &url, authorization.clone()).await;
            if response.is_err() && probing.is_some() {
                // Whoever waited for what this would learn need not fail one after another.
                self.probe_failed.store(true, Ordering::Relaxed);
            }
            let response = response?;
            let status = response.status();
            // A query may be a credential, and so may the path at another host.
            let path = own.then(|| url.path());
            let (method, host, status_code) = (&ask.method, url.host_str(), status.as_u16());
            tracing::debug!(%method, host, path, status = status_code, "{}", ask.doing);
            if own && status != StatusCode::UNAUTHORIZED {
                self.learn(Scheme::None);
            }
            match status {
                status if status.is_success() => {
                    limiter.succeeded();
                    return Ok(Answer { response, url, _permit: permit });
                }
                StatusCode::UNAUTHORIZED if own && challenges < MAX_CHALLENGES => {
                    challenges += 1;
                    self.challenged(response, ask, authorization).await?;
                }
                // A signed address that has run out: the registry gives a new one.
                StatusCode::BAD_REQUEST
                | StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::NOT_FOUND
                | StatusCode::GONE
                    if !own && !asked_again =>
                {
                    asked_again = true;
                    url = ask.url.clone();
                }
                StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER
                    if !matches!(ask.method, Method::GET | Method::HEAD) =>
                {
                    let reason = format!("it answers {} with a redirect ({status})", ask.method);
                    return Err(self.error(ask.doing, Kind::Config(reason)));
                }
                status if status.is_redirection() => {
                    url = self.location(&url, response.headers(), ask.doing)?;
                }
                _ => {
                    let error = self.refused(response, ask).await;
                    if let Kind::Status { status: 429 | 503, retry_after, .. } = error.kind() {
                        let pause = retry_after.filter(|wait| *wait <= self.config.max_wait);
                        for limiter in [&self.names, &self.blobs, &self.uploads] {
                            limiter.back_off(pause);
                        }
                    }
                    return Err(error);
                }
            }
            drop(probing);
        }
        Err(self.error(ask.doing, Kind::Config(format!("more than {MAX_REDIRECTS} redirects"))))
    }

    async fn request(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response> {
        let mut request = match &ask.payload {
            Payload::Nothing => self.client.request(ask.method.clone(), url.clone()),
            Payload::Whole(content, media_type) => self
                .client
                .request(ask.method.clone(), url.clone())
                .header(CONTENT_TYPE, media_type)
                .body(content.clone()),
            Payload::Stream(body) => {
                let body = locked(body).take();
                let Some(body) = body else {
                    let reason = "it wants to have the content once more".to_owned();
                    return Err(self.error(ask.doing, Kind::Interrupted(reason)));
                };
                let client = self.sender()?;
                client.request(ask.method.clone(), url.clone()).body(body)
            }
        };
        self.stats.count_request();
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
        request.send().await.map_err(|e| self.failed(ask.doing, e))
    }

    /// The client for sending content. Its requests take as long as they take, and whoever makes
    /// them watches their progress.
    fn sender(&self) -> Result<Client> {
        if let Some(client) = self.sender.get() {
            return Ok(client.clone());
        }
        let made = client(&self.config.access(self.entry), &self.config, Deadline::None)?;
        Ok(self.sender.get_or_init(|| made).clone())
    }

    /// Where `Location` leads from `from`.
    pub(super) fn location(&self, from: &Url, headers: &HeaderMap, doing: &str) -> Result<Url> {
        let refuse = |reason: &str| self.error(doing, Kind::Protocol(reason.to_owned()));
        let target = headers
            .get(LOCATION)
            .and_then(|location| location.to_str().ok())
            .and_then(|location| from.join(location).ok())
            .ok_or_else(|| refuse("it sends no usable Location"))?;
        match (from.scheme(), target.scheme()) {
            (_, "https") | ("http", "http") => Ok(target),
            (_, scheme) if scheme != "http" => {
                Err(refuse(&format!("it leads to `{scheme}:`, which is refused")))
            }
            _ => Err(self.error(
                doing,
                Kind::Config(
                    "the registry leads from HTTPS to plain HTTP, which is refused".into(),
                ),
            )),
        }
    }

    /// The error for an answer that is not a success.
    async fn refused(&self, response: Response, ask: &Ask<'_>) -> Error {
        let status = response.status();
        let retry_after = failure::retry_after(response.headers());
        let (message, incomplete) = match read_limited(response, MAX_ERROR_BODY).await {
            Ok(Some(body)) => (failure::error_message(&body), failure::says_incomplete(&body)),
            _ => (String::new(), false),
        };
        let kind = match status.as_u16() {
            400 | 404 if ask.method == Method::PUT && incomplete => Kind::Incomplete(message),
            401 => Kind::Unauthorized(message),
            403 => Kind::Denied(message),
            404 => Kind::NotFound(message),
            407 => Kind::Config("the proxy on the way wants credentials (HTTP 407)".into()),
            _ => Kind::Status { status: status.as_u16(), message, retry_after },
        };
        self.error(ask.doing, kind)
    }

    /// Turns a failure of the HTTP library into one of ours. Addresses are left out: they may be
    /// signed.
    pub(super) fn failed(&self, doing: &str, error: reqwest::Error) -> Error {
        let error = error.without_url();
        let connecting = error.is_connect();
        let kind = if let Some(reason) = failure::tls_failure(&error) {
            Kind::Tls(reason)
        } else if error.is_timeout() && connecting {
            Kind::Connect(format!("no answer within {:?}", self.config.connect_timeout))
        } else if error.is_timeout() {
            Kind::Stalled(self.config.stall_timeout)
        } else if connecting && failure::is_lost_connection(&error) {
            Kind::Interrupted(format!(
                "it was closed as soon as it was made ({})",
                root_cause(&error)
            ))
        } else if connecting {
            Kind::Connect(root_cause(&error))
        } else if error.is_builder() {
            Kind::Config(root_cause(&error))
        } else {
            Kind::Interrupted(root_cause(&error))
        };
        self.error(doing, kind)
    }
}

/// Whether a client watches over the progress of its requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Deadline {
    /// It gives up when no byte has come for [`RegistryConfig::stall_timeout`].
    Stall,
    /// Its user does.
    None,
}

/// Makes the HTTP client for one way of talking to registries.
pub(super) fn client(
    access: &Access,
    config: &RegistryConfig,
    deadline: Deadline,
) -> Result<Client> {
    tls::choose_provider();
    let wrong =
        |reason: String| Error::new("configuration", "setting up TLS", Kind::Config(reason));
    let read = |path: &std::path::Path| {
        fs::read(path).map_err(|e| wrong(format!("{}: {e}", path.display())))
    };
    let mut builder = Client::builder()
        .user_agent(concat!("imgfs/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(config.connect_timeout)
        .pool_max_idle_per_host(NAME_REQUESTS)
        .http2_adaptive_window(true)
        .tls_danger_accept_invalid_certs(access.skip_tls_verify);
    if deadline == Deadline::Stall {
        builder = builder.read_timeout(config.stall_timeout);
    }
    for (host, address) in &config.resolve {
        builder = builder.resolve(host, *address);
    }
    // Of `*`, which means everything, the library makes only every name.
    let everything =
        |name| std::env::var(name).is_ok_and(|list| list.split(',').any(|h| h.trim() == "*"));
    if everything("NO_PROXY") || everything("no_proxy") {
        builder = builder.no_proxy();
    }
    let client_certificate = match (&access.cert_file, &access.key_file) {
        (Some(cert), Some(key)) => Some((cert, read(cert)?, read(key)?)),
        _ => None,
    };
    if let (Some(path), false) = (&access.ca_file, access.skip_tls_verify) {
        let client = client_certificate.as_ref();
        let client = client.map(|(_, cert, key)| (cert.as_slice(), key.as_slice()));
        let config = tls::config(&read(path)?, client)
            .map_err(|reason| wrong(format!("{}: {reason}", path.display())))?;
        builder = builder.tls_backend_preconfigured(config);
    } else if let Some((path, cert, key)) = client_certificate {
        let identity = reqwest::Identity::from_pem(&[&cert[..], b"\n", &key].concat())
            .map_err(|e| wrong(format!("{}: {}", path.display(), root_cause(&e))))?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|e| wrong(root_cause(&e)))
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// Reads a body of at most `max` bytes; `None` if there is more.
pub(super) async fn read_limited(
    mut response: Response,
    max: usize,
) -> std::result::Result<Option<Vec<u8>>, reqwest::Error> {
    if response.content_length().is_some_and(|length| length > max as u64) {
        return Ok(None);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        assert!(same_origin(&url("https://a.io/x"), &url("https://a.io:443/y?z")));
        for other in ["http://a.io/x", "https://b.a.io/x", "https://a.io:444/x"] {
            assert!(!same_origin(&url(other), &url("https://a.io/")), "{other}");
        }
    }
}
