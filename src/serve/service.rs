//! From a request to an answer: who asks, what for, and which function knows.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::Instant,
};

use hyper::{
    HeaderMap, Method, Request, StatusCode, Version,
    body::Incoming,
    header::{CONTENT_LENGTH, HeaderValue},
    http::request::Parts as Head,
};
use serde_json::json;

use super::{
    access::User,
    blobs,
    connection::{Connection, UnderWay},
    incoming::RequestBody,
    lists,
    log::Line,
    manifests,
    names::Named,
    reply::{Problem, Reply, Result, header, json_reply, set},
    route::{Query, Route, RouteError},
    state::Shared,
    uploads,
};

/// One request, without its body.
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<Connection>,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) query: Query,
    pub(super) user: User,
}

impl Call {
    /// What `name` means in this request.
    pub(super) fn named(&self, name: &str) -> Result<Named> {
        let named = self.shared.names.parse(name, self.query.namespace());
        named.map_err(|e| Problem::bad_request("NAME_INVALID", e))
    }

    /// A header, if it is text.
    pub(super) fn header(&self, name: impl hyper::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The length of the body, if it is stated.
    pub(super) fn length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.parse().ok()
    }

    /// Whether the answer has no body.
    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Fails unless the tree may be written to. `allowed` are the methods that remain where it may not.
    pub(super) fn check_writable(&self, allowed: &str) -> Result<()> {
        match self.shared.abilities.read_only {
            true => Err(Problem::method_not_allowed(allowed, "this registry is read-only")),
            false => Ok(()),
        }
    }

    /// Fails unless content may be deleted. `allowed` are the methods that remain where it may not.
    pub(super) fn check_deletable(&self, allowed: &str) -> Result<()> {
        self.check_writable("GET, HEAD")?;
        match self.shared.abilities.delete {
            true => Ok(()),
            false => Err(Problem::method_not_allowed(
                allowed,
                "nothing is deleted here; the server would have to be started with --allow-delete",
            )),
        }
    }
}

/// Answers a request.
pub(super) async fn handle(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> std::result::Result<Reply, Infallible> {
    let is_http2 = request.version() == Version::HTTP_2;
    let under_way = connection.begin(is_http2);
    let (head, body) = request.into_parts();
    let is_http10 = head.version == Version::HTTP_10;
    let mut finish = Finish::new(shared.clone(), &connection, &head, under_way);
    let query = Query::parse(head.uri.query());
    let namespace = query.namespace().map(str::to_owned);
    let is_head = head.method == Method::HEAD;
    let waits = head.headers.contains_key(hyper::header::EXPECT);
    let (body, unread) = RequestBody::new(body);
    let answered = answer(shared, connection, (head, query), body, &mut finish).await;
    let mut reply = answered.unwrap_or_else(Problem::into_reply);
    let headers = reply.headers_mut();
    if !is_http2 && !unread.skip(waits).await {
        headers.insert(hyper::header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(header::API_VERSION, HeaderValue::from_static("registry/2.0"));
    if let Some(namespace) = namespace.and_then(|ns| HeaderValue::from_str(&ns).ok()) {
        headers.insert(header::OCI_NAMESPACE, namespace);
    }
    if is_http10 {
        headers.insert(hyper::header::CONNECTION, HeaderValue::from_static("close"));
    }
    finish.status = reply.status().as_u16();
    let reply = reply.map(|body| if is_head { super::body::Body::empty() } else { body });
    Ok(reply.map(|body| body.finishing(finish)))
}

async fn answer(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    (head, query): (Head, Query),
    body: RequestBody,
    finish: &mut Finish,
) -> Result<Reply> {
    let route = Route::parse(head.uri.path());
    finish.about = route.as_ref().map_or("other", about);
    match &route {
        Ok(Route::Health) => return Ok(json_reply(StatusCode::OK, &json!({ "status": "ok" }))),
        Ok(Route::Ready) => return ready(&shared).await,
        _ => {}
    }
    let certificate = connection.certificate.as_deref();
    let user = shared.access.user(&head.headers, certificate).await?;
    finish.user = user.shown().to_owned();
    let call = Call { query, shared, connection, method: head.method, headers: head.headers, user };
    let route = route.map_err(|error| route_problem(&call, error))?;
    dispatch(&call, route, body).await
}

fn route_problem(call: &Call, error: RouteError) -> Problem {
    match error {
        // Nobody but those who may come in learns more.
        _ if call.shared.access.keeps_out(&call.user) => {
            call.shared.access.unauthorized("log in first")
        }
        RouteError::Unknown => {
            Problem::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "there is nothing at this path")
        }
        RouteError::Digest(reason) => Problem::bad_request("DIGEST_INVALID", reason),
        RouteError::Reference(text) if matches!(call.method, Method::GET | Method::HEAD) => {
            Problem::manifest_unknown(text)
        }
        RouteError::Reference(text) => {
            Problem::bad_request("MANIFEST_INVALID", format_args!("`{text}` is no tag"))
        }
    }
}

async fn dispatch(call: &Call, route: Route, body: RequestBody) -> Result<Reply> {
    let method = call.method.clone();
    let is_read = matches!(method, Method::GET | Method::HEAD);
    match route {
        Route::Base if is_read => base(call),
        Route::Base => Err(not_allowed(call, "GET, HEAD")),
        Route::Catalog if is_read => lists::catalog(call).await,
        Route::Catalog => Err(not_allowed(call, "GET, HEAD")),
        Route::Tags(name) if is_read => lists::tags(call, &call.named(&name)?).await,
        Route::Tags(_) => Err(not_allowed(call, "GET, HEAD")),
        Route::Referrers(name, subject) if is_read => {
            lists::referrers(call, &call.named(&name)?, subject).await
        }
        Route::Referrers(..) => Err(not_allowed(call, "GET, HEAD")),
        Route::Manifest(name, target) => {
            let named = call.named(&name)?;
            match method {
                Method::GET | Method::HEAD => manifests::get(call, &named, &target).await,
                Method::PUT => manifests::put(call, &named, target, body).await,
                Method::DELETE => manifests::delete(call, &named, &target).await,
                _ => Err(not_allowed(call, "GET, HEAD, PUT, DELETE")),
            }
        }
        Route::Blob(name, digest) => {
            let named = call.named(&name)?;
            match method {
                Method::GET | Method::HEAD => blobs::get(call, &named, digest).await,
                Method::DELETE => blobs::delete(call, &named, digest).await,
                _ => Err(not_allowed(call, "GET, HEAD, DELETE")),
            }
        }
        Route::Uploads(name) => match method {
            Method::POST => uploads::begin(call, &call.named(&name)?, body).await,
            _ => Err(not_allowed(call, "POST")),
        },
        Route::Upload(name, session) => {
            let named = call.named(&name)?;
            match method {
                Method::GET | Method::HEAD => uploads::status(call, &named, &session).await,
                Method::PATCH => uploads::patch(call, &named, &session, body).await,
                Method::PUT => uploads::put(call, &named, &session, body).await,
                Method::DELETE => uploads::cancel(call, &named, &session).await,
                _ => Err(not_allowed(call, "GET, PATCH, PUT, DELETE")),
            }
        }
        Route::Health | Route::Ready => Err(not_allowed(call, "GET, HEAD")),
    }
}

/// `/v2/`: that this is a registry, to who may come in.
fn base(call: &Call) -> Result<Reply> {
    match call.shared.access.asks(&call.user) {
        // Also where everybody may pull: a client that is not asked now never says who it is.
        true => Err(call.shared.access.unauthorized("log in first")),
        false => Ok(json_reply(StatusCode::OK, &json!({}))),
    }
}

/// Whether the tree can be read, and written to where that is meant to be. Nobody is asked for it.
async fn ready(shared: &Shared) -> Result<Reply> {
    match shared.tree.check_ready(!shared.abilities.read_only).await {
        Ok(()) => Ok(json_reply(StatusCode::OK, &json!({ "status": "ready" }))),
        Err(reason) => Err(Problem::unavailable(reason)),
    }
}

fn not_allowed(call: &Call, allowed: &str) -> Problem {
    if call.shared.access.keeps_out(&call.user) {
        return call.shared.access.unauthorized("log in first");
    }
    let message = format!("{} is not allowed here", call.method);
    Problem::method_not_allowed(allowed, message)
}

/// What a path is about, in a word.
fn about(route: &Route) -> &'static str {
    match route {
        Route::Base => "base",
        Route::Catalog => "catalog",
        Route::Tags(_) => "tags",
        Route::Manifest(..) => "manifest",
        Route::Blob(..) => "blob",
        Route::Uploads(_) | Route::Upload(..) => "upload",
        Route::Referrers(..) => "referrers",
        Route::Health | Route::Ready => "health",
    }
}

/// What is done when an answer has been sent, or given up.
pub(super) struct Finish {
    shared: Arc<Shared>,
    peer: String,
    method: Method,
    path: String,
    about: &'static str,
    user: String,
    status: u16,
    bytes: u64,
    since: Instant,
    under_way: UnderWay,
}

impl Finish {
    fn new(
        shared: Arc<Shared>,
        connection: &Arc<Connection>,
        head: &Head,
        under_way: UnderWay,
    ) -> Self {
        let is_logged = shared.log.is_some();
        let text = |text: &dyn Fn() -> String| if is_logged { text() } else { String::new() };
        Self {
            peer: text(&|| connection.peer.to_string()),
            path: text(&|| head.uri.path().to_owned()),
            method: head.method.clone(),
            about: "other",
            user: String::new(),
            status: 0,
            bytes: 0,
            since: Instant::now(),
            under_way,
            shared,
        }
    }

    /// Counts what was sent, and notes that it waits to be taken.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.under_way.offer(true);
    }

    /// Notes that more is asked for.
    pub(super) fn taken(&mut self) {
        self.under_way.offer(false);
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let time = self.since.elapsed();
        let method = method_name(&self.method);
        self.shared.counts.count_request(method, self.about, self.status);
        self.shared.counts.count_seconds(method, self.about, time);
        if let Some(log) = &self.shared.log {
            log.write(&Line {
                peer: std::mem::take(&mut self.peer),
                user: &self.user,
                method: self.method.as_str(),
                path: &self.path,
                status: self.status,
                bytes: self.bytes,
                time,
            });
        }
    }
}

/// The name of a method that is known; strangers do not choose labels.
fn method_name(method: &Method) -> &'static str {
    static NAMES: OnceLock<[(Method, &str); 6]> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        [
            (Method::GET, "GET"),
            (Method::HEAD, "HEAD"),
            (Method::PUT, "PUT"),
            (Method::POST, "POST"),
            (Method::PATCH, "PATCH"),
            (Method::DELETE, "DELETE"),
        ]
    });
    names.iter().find(|(own, _)| own == method).map_or("other", |(_, name)| name)
}

/// The path of something in a repository, for `Location`: as the client has named it, and without a host, since
/// nobody knows better than the client which port that has.
pub(super) fn location(named: &Named, rest: &str) -> String {
    let path = format!("/v2/{}/{rest}", named.asked);
    match &named.namespace {
        None => path,
        Some(namespace) => {
            let encoded = namespace.replace(':', "%3A");
            format!("{path}?ns={encoded}")
        }
    }
}

/// Sets the headers of content that has a digest.
pub(super) fn set_digest(reply: &mut Reply, digest: &crate::image::Digest) {
    set(reply, header::CONTENT_DIGEST, digest);
    set(reply, hyper::header::ETAG, format_args!("\"{digest}\""));
}

/// Whether one of the tags of entities in `header` is that of `digest`; `*` is every one.
pub(super) fn etag_matches(header: &str, digest: Option<&crate::image::Digest>) -> bool {
    let Some(digest) = digest else { return false };
    header.split(',').map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag.trim_matches('"') == digest.to_string()
    })
}
