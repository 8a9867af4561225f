//! Requests to one registry with one set of credentials: authentication, redirects, retries,
//! deadlines and limits. Everything that goes over the wire passes through [`Session::send`].

use std::{
    error::Error as StdError,
    fs, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{
        ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
        WWW_AUTHENTICATE,
    },
    redirect,
};

use super::{
    challenge::{self, Scheme, Tokens},
    config::{Access, Credentials, RegistryConfig},
    credentials,
    limit::{Limiter, Permit},
};
use crate::{
    image::Repository,
    tree::{Error, Kind, Result},
};

/// Simultaneous requests for names. They are small, and a run of many images is bound by their
/// round trips.
const NAME_REQUESTS: usize = 24;

/// More redirects than this are a loop.
const MAX_REDIRECTS: usize = 8;

/// How often a connection is tried in a row.
const CONNECT_ATTEMPTS: u32 = 3;

/// How much of an error's body is read.
const MAX_ERROR_BODY: usize = 16 << 10;

/// How much of a token server's answer is read. Tokens with many scopes reach tens of kilobytes.
const MAX_TOKEN_BODY: usize = 1 << 20;

/// Counts of what went over the wire, over all sessions of a run.
#[derive(Debug, Default)]
pub struct Stats {
    requests: AtomicU64,
    retries: AtomicU64,
    received_bytes: AtomicU64,
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

    /// Bytes of blobs received, repetitions included.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
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
    config: Arc<RegistryConfig>,
    /// The credentials, or why they could not be had.
    credentials: tokio::sync::OnceCell<(Option<Credentials>, Option<String>)>,
    registry: String,
    entry: Option<usize>,
    /// The part of the registry for which a credential file has an entry of its own.
    stored_under: Option<String>,
    scheme: Mutex<Option<Scheme>>,
    /// Held by the request that finds out the scheme, so that the others need not fail first.
    probe: tokio::sync::Mutex<()>,
    tokens: Tokens,
    names: Arc<Limiter>,
    blobs: Arc<Limiter>,
    pub(super) stats: Arc<Stats>,
    /// Whether the registry has the referrers API, once that is known.
    pub(super) referrers_api: tokio::sync::OnceCell<bool>,
}

/// Which of the registry's limits a request counts against.
#[derive(Clone, Copy)]
pub(super) enum Lane {
    Names,
    Blobs,
}

/// A request to be made.
pub(super) struct Ask<'a> {
    pub method: Method,
    /// Where the registry itself has it.
    pub url: Url,
    /// Where a redirect led the last time, to be tried first.
    pub via: Option<Url>,
    pub repository: &'a Repository,
    pub accept: Option<&'static str>,
    /// First byte wanted; 0 asks for everything, without a `Range`.
    pub from: u64,
    pub lane: Lane,
    /// For error messages: `fetching manifest 1.25`.
    pub doing: &'a str,
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
        // A host that is not there does not come up within seconds, as an overloaded one does.
        let enough = matches!(error.kind(), Kind::Connect(_)) && self.attempts >= CONNECT_ATTEMPTS;
        let delay = self.delays.next().filter(|_| !enough);
        let Some(delay) = delay else { return Err(error.after(self.attempts)) };
        self.attempts += 1;
        match error.kind() {
            Kind::Status { retry_after: Some(wait), .. } => Ok(delay.max(*wait)),
            _ => Ok(delay),
        }
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
            registry: registry.to_owned(),
            entry,
            stored_under,
            credentials: tokio::sync::OnceCell::new(),
            scheme: Mutex::new(None),
            probe: tokio::sync::Mutex::new(()),
            tokens: Tokens::default(),
            names: Limiter::new(NAME_REQUESTS),
            blobs: Limiter::new(config.concurrency + config.concurrency.div_ceil(2)),
            stats,
            referrers_api: match config.without_referrers.iter().any(|r| r == registry) {
                true => tokio::sync::OnceCell::new_with(Some(false)),
                false => tokio::sync::OnceCell::new(),
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

    /// Waits before a repetition.
    pub(super) async fn pause(&self, delay: Duration) {
        self.stats.retries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(delay).await;
    }

    /// Makes a request until it is answered with success, or finally fails.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Answer> {
        let mut retry = self.retry();
        loop {
            match self.attempt(ask).await {
                Ok(answer) => return Ok(answer),
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
        };
        let permit = limiter.acquire().await;
        let mut url = ask.via.as_ref().unwrap_or(&ask.url).clone();
        let mut asked_again = false;
        for _ in 0..MAX_REDIRECTS {
            let own = same_origin(&url, &self.base);
            let probing = if own { self.probe_if_unknown().await } else { None };
            let authorization =
                if own { self.authorization(ask.repository, ask.doing).await? } else { None };
            let response = self.request(ask, &url, authorization.clone()).await?;
            let status = response.status();
            if own && status != StatusCode::UNAUTHORIZED {
                self.learn(Scheme::None);
            }
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                    limiter.succeeded();
                    return Ok(Answer { response, url, _permit: permit });
                }
                StatusCode::UNAUTHORIZED if own && !asked_again => {
                    asked_again = true;
                    self.challenged(&response, ask, authorization).await?;
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
                status if status.is_redirection() => url = self.follow(&url, &response, ask)?,
                _ => {
                    let error = self.refused(response, ask).await;
                    if let Kind::Status { status: 429 | 503, retry_after, .. } = error.kind() {
                        limiter.back_off(*retry_after);
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
        self.stats.requests.fetch_add(1, Ordering::Relaxed);
        let mut request = self.client.request(ask.method.clone(), url.clone());
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if ask.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.from));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|e| self.failed(ask.doing, e))
    }

    fn follow(&self, from: &Url, response: &Response, ask: &Ask<'_>) -> Result<Url> {
        let refuse = |reason: &str| self.error(ask.doing, Kind::Protocol(reason.to_owned()));
        let target = response
            .headers()
            .get(LOCATION)
            .and_then(|location| location.to_str().ok())
            .and_then(|location| from.join(location).ok())
            .ok_or_else(|| refuse("a redirect without a usable Location"))?;
        match (from.scheme(), target.scheme()) {
            (_, "https") | ("http", "http") => Ok(target),
            _ => Err(self.error(
                ask.doing,
                Kind::Config(
                    "the registry redirects from HTTPS to plain HTTP, which is refused".into(),
                ),
            )),
        }
    }

    /// The error for an answer that is not a success.
    async fn refused(&self, response: Response, ask: &Ask<'_>) -> Error {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let message = match read_limited(response, MAX_ERROR_BODY).await {
            Ok(Some(body)) => error_message(&body),
            _ => String::new(),
        };
        let kind = match status.as_u16() {
            401 => Kind::Unauthorized(message),
            403 => Kind::Denied(message),
            404 => Kind::NotFound(message),
            _ => match retry_after {
                Some(wait) if wait > self.config.max_wait => Kind::WaitTooLong(wait),
                _ => Kind::Status { status: status.as_u16(), message, retry_after },
            },
        };
        self.error(ask.doing, kind)
    }

    /// Turns a failure of the HTTP library into one of ours. Addresses are left out: they may be
    /// signed.
    pub(super) fn failed(&self, doing: &str, error: reqwest::Error) -> Error {
        let error = error.without_url();
        let connecting = error.is_connect();
        let kind = if let Some(reason) = tls_failure(&error) {
            Kind::Tls(reason)
        } else if error.is_timeout() && connecting {
            Kind::Connect(format!("no answer within {:?}", self.config.connect_timeout))
        } else if error.is_timeout() {
            Kind::Stalled(self.config.stall_timeout)
        } else if connecting {
            Kind::Connect(root_cause(&error))
        } else if error.is_builder() {
            Kind::Config(root_cause(&error))
        } else {
            Kind::Interrupted(root_cause(&error))
        };
        self.error(doing, kind)
    }

    // --- authentication ---

    fn scheme(&self) -> Option<Scheme> {
        self.scheme.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what the registry asks for; `Scheme::None` is only noted where nothing is known, as
    /// some registries let some requests pass without credentials.
    fn learn(&self, scheme: Scheme) {
        let mut known = self.scheme.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() || scheme != Scheme::None {
            *known = Some(scheme);
        }
    }

    /// Lets one request go ahead while nothing is known of the registry, and the others wait for
    /// what it learns. Without credentials and over plain HTTP there most likely is nothing to
    /// learn, and nobody waits.
    async fn probe_if_unknown(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.scheme().is_some()
            || (self.base.scheme() == "http" && self.credentials().await.0.is_none())
        {
            return None;
        }
        let guard = self.probe.lock().await;
        self.scheme().is_none().then_some(guard)
    }

    async fn credentials(&self) -> &(Option<Credentials>, Option<String>) {
        self.credentials
            .get_or_init(|| async {
                let entry = self.entry.and_then(|index| self.config.entries.get(index));
                if let Some(found) = entry.and_then(|entry| entry.credentials.clone()) {
                    return (Some(found), None);
                }
                let config = self.config.clone();
                let (registry, part) = (self.registry.clone(), self.stored_under.clone());
                // Credential helpers are programs that may ask the user for a key.
                let looked_up = tokio::task::spawn_blocking(move || {
                    credentials::lookup(&config.credential_files, &registry, part.as_deref())
                });
                match looked_up.await {
                    Ok(Ok(found)) => (found, None),
                    Ok(Err(reason)) => (None, Some(reason)),
                    Err(panic) => (None, Some(panic.to_string())),
                }
            })
            .await
    }

    /// What to send in `Authorization`, fetching a token first if one is needed.
    async fn authorization(
        &self,
        repository: &Repository,
        doing: &str,
    ) -> Result<Option<HeaderValue>> {
        match self.scheme() {
            None | Some(Scheme::None) => Ok(None),
            Some(Scheme::Basic) => {
                Ok(self.credentials().await.0.as_ref().and_then(challenge::basic))
            }
            Some(Scheme::Bearer { realm, service }) => {
                let scope = format!("repository:{}:pull", repository.path());
                let slot = self.tokens.slot(&scope);
                let mut slot = slot.lock().await;
                if let Some(token) = slot.as_ref().filter(|token| token.is_fresh()) {
                    return Ok(Some(token.header.clone()));
                }
                let mut retry = self.retry();
                let token = loop {
                    let fetched = self.fetch_token(&realm, service.as_deref(), &scope, doing);
                    match fetched.await {
                        Ok(token) => break token,
                        Err(error) => {
                            let delay = retry.after(error)?;
                            self.pause(delay).await;
                        }
                    }
                };
                let header = token.header.clone();
                *slot = Some(token);
                Ok(Some(header))
            }
        }
    }

    async fn fetch_token(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: &str,
        doing: &str,
    ) -> Result<challenge::Token> {
        let (credentials, _) = self.credentials().await;
        if credentials.is_some() && self.base.scheme() == "https" && realm.scheme() != "https" {
            return Err(self.error(
                doing,
                Kind::Config(
                    "its token server is reached by plain HTTP; credentials are not sent there"
                        .into(),
                ),
            ));
        }
        let mut form: Vec<(&str, &str)> = vec![("scope", scope)];
        form.extend(service.map(|service| ("service", service)));
        let request = match credentials {
            Some(Credentials::IdentityToken(token)) => {
                form.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token.as_str()),
                    ("client_id", "imgfs"),
                ]);
                self.client.post(realm.clone()).form(&form)
            }
            Some(basic @ Credentials::Basic { username, .. }) => {
                form.push(("account", username));
                let request = self.client.get(realm.clone()).query(&form);
                match challenge::basic(basic) {
                    Some(header) => request.header(AUTHORIZATION, header),
                    None => request,
                }
            }
            None => self.client.get(realm.clone()).query(&form),
        };
        self.stats.requests.fetch_add(1, Ordering::Relaxed);
        let response = request.send().await.map_err(|e| self.failed(doing, e))?;
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let body = read_limited(response, MAX_TOKEN_BODY)
            .await
            .map_err(|e| self.failed(doing, e))?
            .unwrap_or_default();
        let server = realm.host_str().unwrap_or_default();
        match status.as_u16() {
            200 => challenge::parse_token(&body).map_err(|e| self.error(doing, Kind::Protocol(e))),
            400 | 401 | 403 => Err(self.error(
                doing,
                Kind::Unauthorized(format!(
                    "the token server {server} refuses: {}",
                    error_message(&body)
                )),
            )),
            status => {
                let message = format!("from the token server {server}");
                Err(self.error(doing, Kind::Status { status, message, retry_after }))
            }
        }
    }

    /// A 401: learns what is asked for, and drops the token that was refused. An error if there
    /// is nothing else to try.
    async fn challenged(
        &self,
        response: &Response,
        ask: &Ask<'_>,
        sent: Option<HeaderValue>,
    ) -> Result<()> {
        let offered = response.headers().get_all(WWW_AUTHENTICATE);
        let scheme = Scheme::parse(offered.iter().filter_map(|value| value.to_str().ok()));
        let refused = |reason: String| self.error(ask.doing, Kind::Unauthorized(reason));
        let Some(scheme) = scheme else {
            return Err(refused("it asks for an authentication that imgfs does not know".into()));
        };
        let (credentials, trouble) = self.credentials().await;
        if scheme == Scheme::Basic {
            match (credentials, sent) {
                (_, Some(_)) => return Err(refused("the user name or password is wrong".into())),
                (Some(Credentials::Basic { .. }), None) => {}
                (Some(Credentials::IdentityToken(_)), None) => {
                    return Err(refused(
                        "it wants a user name and password, and there is only an identity token"
                            .into(),
                    ));
                }
                (None, None) => {
                    let reason = trouble
                        .clone()
                        .unwrap_or_else(|| "it wants a user name and password".into());
                    return Err(refused(reason));
                }
            }
        } else if let Some(sent) = sent {
            let slot = self.tokens.slot(&format!("repository:{}:pull", ask.repository.path()));
            let mut slot = slot.lock().await;
            // Unless somebody has fetched a new one in the meantime.
            if slot.as_ref().is_some_and(|token| token.header == sent) {
                *slot = None;
            }
        }
        self.learn(scheme);
        Ok(())
    }
}

/// Makes the HTTP client for one way of talking to registries.
pub(super) fn client(access: &Access, config: &RegistryConfig) -> Result<Client> {
    // Fails if the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let wrong =
        |reason: String| Error::new("configuration", "setting up TLS", Kind::Config(reason));
    let read = |path: &std::path::Path| {
        fs::read(path).map_err(|e| wrong(format!("{}: {e}", path.display())))
    };
    let mut builder = Client::builder()
        .user_agent(concat!("imgfs/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(config.connect_timeout)
        .read_timeout(config.stall_timeout)
        .pool_max_idle_per_host(NAME_REQUESTS)
        .http2_adaptive_window(true)
        .tls_danger_accept_invalid_certs(access.skip_tls_verify);
    if let Some(path) = &access.ca_file {
        let authorities = reqwest::Certificate::from_pem_bundle(&read(path)?)
            .map_err(|e| wrong(format!("{}: {}", path.display(), root_cause(&e))))?;
        if authorities.is_empty() {
            return Err(wrong(format!("{}: no certificate in it", path.display())));
        }
        builder = builder.tls_certs_merge(authorities);
    }
    if let (Some(cert), Some(key)) = (&access.cert_file, &access.key_file) {
        let mut pem = read(cert)?;
        pem.push(b'\n');
        pem.extend(read(key)?);
        let identity = reqwest::Identity::from_pem(&pem)
            .map_err(|e| wrong(format!("{}: {}", cert.display(), root_cause(&e))))?;
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

/// `Retry-After` in either of its forms (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// What an error body says (distribution specification, "Error Codes"), in one printable line.
fn error_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Envelope {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) => {
            let items = envelope.errors.iter().take(3).map(|item| match item.message.as_str() {
                "" => item.code.clone(),
                message => message.to_owned(),
            });
            items.collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::new(),
    };
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The innermost cause, which is the one that says something.
pub(super) fn root_cause(error: &dyn StdError) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// If TLS is what failed: why, in the user's words.
fn tls_failure(error: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(match tls {
            rustls::Error::InvalidMessage(_) => {
                "the other side does not speak TLS; is it plain HTTP?".to_owned()
            }
            other => other.to_string(),
        });
    }
    // What an `io::Error` carries is not its source, but stands in its place.
    let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    carried.and_then(|inner| tls_failure(inner)).or_else(|| tls_failure(error.source()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(parse("7"), Some(Duration::from_secs(7)));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(parse(&soon).is_some_and(|wait| (55..=60).contains(&wait.as_secs())));
        assert_eq!(parse("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        for bad in ["", "-1", "soon", "99999999999999999999"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn error_bodies() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}},{"code":"X"}]}"#;
        assert_eq!(error_message(body), "manifest unknown; X");
        for other in [&b""[..], b"<html>", b"{}", b"[1]", b"\xff"] {
            assert_eq!(error_message(other), "");
        }
        let nasty = br#"{"errors":[{"message":"a\u001b[31mb"}]}"#;
        assert_eq!(error_message(nasty), "a[31mb");
    }

    #[test]
    fn origins() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        assert!(same_origin(&url("https://a.io/x"), &url("https://a.io:443/y?z")));
        for other in ["http://a.io/x", "https://b.a.io/x", "https://a.io:444/x"] {
            assert!(!same_origin(&url(other), &url("https://a.io/")), "{other}");
        }
    }
}
