//! One registry as HTTP sees it: where it is, how it is reached, how long it may keep silent, and
//! what is to be made of its failures. Knows nothing of authentication.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    Client, Method, RequestBuilder, Response, Url,
    header::{HeaderMap, LOCATION},
};

use super::{
    address::{self, Refused, Zone},
    client::{Clients, FRESH},
    config::{Access, RegistryConfig},
    encoding::{self, Encoding},
    failure::{self, root_cause},
    retry::Retry,
    stall::{self, Stalled},
    stats::Stats,
};
use crate::{
    backend::{Error, Kind, Result},
    image::Repository,
};

/// How much of an error's body is read. Pages of way stations have pictures in them.
const MAX_ERROR_BODY: usize = 256 << 10;

/// How often something is repeated that can be done without.
const BRIEF_RETRIES: usize = 2;

/// One registry.
pub(super) struct Wire {
    /// Its name in references.
    registry: String,
    /// Its name in messages.
    label: String,
    /// The root of its API.
    base: Url,
    access: Access,
    clients: Arc<Clients>,
    pub(super) config: Arc<RegistryConfig>,
    pub(super) stats: Arc<Stats>,
}

impl Wire {
    /// The registry that references call `registry`, reached as `access` says.
    pub(super) fn new(
        registry: &str,
        access: Access,
        clients: Arc<Clients>,
        config: Arc<RegistryConfig>,
        stats: Arc<Stats>,
    ) -> Result<Self> {
        let scheme = if access.plain_http { "http" } else { "https" };
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let label = format!("registry {registry}");
        let base = format!("{scheme}://{host}/v2/").parse().map_err(|e| {
            Error::new(&label, "reading its name", Kind::Config(format!("not a host name: {e}")))
        })?;
        Ok(Self { registry: registry.to_owned(), label, base, access, clients, config, stats })
    }

    /// Whether it is reached by HTTPS.
    pub(super) fn is_https(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// The URL of something in `repository`, such as `manifests/1.25`.
    pub(super) fn url(&self, repository: &Repository, what: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{what}", repository.path()));
        url
    }

    /// The root of its API.
    pub(super) fn root(&self) -> Url {
        self.base.clone()
    }

    /// Whether `url` is the registry's own: only there are its credentials sent.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        same_origin(url, &self.base)
    }

    pub(super) fn error(&self, doing: &str, kind: impl Into<Kind>) -> Error {
        Error::new(&self.label, doing, kind)
    }

    /// Where connections for `url` may lead.
    fn limit(&self, url: &Url) -> Zone {
        if url.host_str() == self.base.host_str() {
            return self.config.limit_of_registry(&self.registry);
        }
        let host = url.host_str().unwrap_or_default();
        self.config.limit_of_other(host, url.port(), self.zone())
    }

    /// Where the registry itself is, as far as that is known.
    fn zone(&self) -> Zone {
        let host = self.base.host_str().unwrap_or_default();
        let given = || {
            let mut given = self.config.resolve.iter();
            Some(given.find(|(name, _)| name == host)?.1.ip())
        };
        match address::literal(&self.base).or_else(given) {
            Some(address) => Zone::of(address),
            None => self.clients.zones().of_host(host),
        }
    }

    /// A request to be sent with [`Wire::send`] or [`Wire::send_body`].
    pub(super) async fn request(
        &self,
        method: Method,
        url: &Url,
        doing: &str,
    ) -> Result<RequestBuilder> {
        self.request_over(0, method, url, doing).await
    }

    /// The same over another connection than requests usually have. See [`Clients::get`].
    pub(super) async fn request_over(
        &self,
        connection: usize,
        method: Method,
        url: &Url,
        doing: &str,
    ) -> Result<RequestBuilder> {
        let client = self.client(connection, url, doing).await?;
        Ok(client.request(method, url.clone()))
    }

    async fn client(&self, connection: usize, url: &Url, doing: &str) -> Result<Client> {
        let limit = self.limit(url);
        address::check_literal(url, limit).map_err(|refused| self.refused(doing, &refused))?;
        self.clients.get(url, &self.access, limit, connection).await
    }

    /// Sends a request, and waits for the head of the response as long as a registry may keep silent.
    ///
    /// What kept a connection open may have closed it in the meantime, which only comes out when it is used:
    /// then the request is made once more on a new one, at once. A request that is repeated after a failure
    /// does no harm in any case.
    pub(super) async fn send(&self, request: RequestBuilder, doing: &str) -> Result<Response> {
        let (client, request) = request.build_split();
        let request = request.map_err(|error| self.failed(doing, error))?;
        let again = request.try_clone();
        let limit = self.config.stall_timeout;
        self.stats.count_request();
        let answer = match (stall::within(limit, client.execute(request)).await, again) {
            (Ok(Err(error)), Some(again)) if failure::is_closed_connection(&error) => {
                tracing::debug!("{doing}: {}; on a new connection", root_cause(&error));
                let client = self.client(FRESH, again.url(), doing).await?;
                self.stats.count_request();
                stall::within(limit, client.execute(again)).await
            }
            (answer, _) => answer,
        };
        self.received(answer, doing)
    }

    /// Sends a request whose body takes as long as it takes. Whoever makes it watches its progress.
    pub(super) async fn send_body(&self, request: RequestBuilder, doing: &str) -> Result<Response> {
        self.stats.count_request();
        self.received(Ok(request.send().await), doing)
    }

    /// The next piece of a response's body, with the same limit to silence.
    pub(super) async fn chunk(
        &self,
        response: &mut Response,
        doing: &str,
    ) -> Result<Option<Bytes>> {
        let chunk = stall::within(self.config.stall_timeout, response.chunk()).await;
        self.received(chunk, doing)
    }

    /// The body of a response, decoded, of at most `max` bytes; `None` if there is more.
    pub(super) async fn body(
        &self,
        mut response: Response,
        max: usize,
        doing: &str,
    ) -> Result<Option<Vec<u8>>> {
        if response.content_length().is_some_and(|length| length > max as u64) {
            return Ok(None);
        }
        let encoding = Encoding::of(response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response, doing).await? {
            if body.len() + chunk.len() > max {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        encoding::decode(&encoding, body, max).map_err(|e| self.error(doing, Kind::Protocol(e)))
    }

    /// What the body of an error says, in one line; empty if it says nothing or cannot be read.
    pub(super) async fn reason(&self, response: Response, doing: &str) -> (String, Vec<u8>) {
        let body = self.body(response, MAX_ERROR_BODY, doing).await.ok().flatten();
        let body = body.unwrap_or_default();
        (failure::error_message(&body), body)
    }

    fn received<T>(
        &self,
        received: std::result::Result<reqwest::Result<T>, Stalled>,
        doing: &str,
    ) -> Result<T> {
        match received {
            Ok(received) => received.map_err(|error| self.failed(doing, error)),
            Err(Stalled(limit)) => Err(self.error(doing, Kind::Stalled(limit))),
        }
    }

    /// Turns a failure of the HTTP library into one of ours. Addresses are left out: they may be
    /// signed.
    fn failed(&self, doing: &str, error: reqwest::Error) -> Error {
        let error = error.without_url();
        if let Some(refused) = failure::find::<Refused>(&error) {
            return self.refused(doing, refused);
        }
        let connecting = error.is_connect();
        let kind = if let Some(reason) = failure::tls_failure(&error) {
            Kind::Tls(reason)
        } else if error.is_timeout() && connecting {
            Kind::Connect(format!("no answer within {:?}", self.config.connect_timeout))
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

    fn refused(&self, doing: &str, refused: &Refused) -> Error {
        self.error(doing, Kind::ForbiddenAddress(refused.to_string()))
    }

    /// Where `Location` leads from `from`, which is never from HTTPS to plain HTTP.
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

    pub(super) fn retry(&self) -> Retry {
        Retry::new(&self.config, self.config.retries)
    }

    /// Waits before a repetition.
    pub(super) async fn pause(&self, delay: Duration) {
        self.stats.count_retry();
        tokio::time::sleep(delay).await;
    }

    /// Does something until it succeeds, or finally fails.
    pub(super) async fn repeat<T, F>(&self, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.repeat_while(self.retry(), attempt).await
    }

    /// The same for something that can be done without.
    pub(super) async fn repeat_briefly<T, F>(&self, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let retry = Retry::new(&self.config, self.config.retries.min(BRIEF_RETRIES));
        self.repeat_while(retry, attempt).await
    }

    async fn repeat_while<T, F>(&self, mut retry: Retry, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
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
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
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
