//! What a well-behaved registry answers.

use super::access::{refuse, token};
use super::fault::Fault;
use super::intake::{Intake, Stop};
use super::{Inner, State, manifests, uploads};
use crate::support::content::{self, Content, digest};
use crate::support::http::Request;
use crate::support::image::OCI_INDEX;
use serde_json::{Value, json};

/// Longest body of a request that is not about manifests and blobs.
const MAX_FORM: usize = 1 << 20;

/// What would be sent if nothing went wrong.
pub(crate) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Content,
    /// First byte of the body to send, and how many.
    pub(super) start: u64,
    pub(super) length: u64,
}

impl Answer {
    pub(crate) fn new(status: u16, media_type: &str, bytes: impl Into<Content>) -> Self {
        let body = bytes.into();
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), media_type.to_owned())],
            start: 0,
            length: body.len(),
            body,
        }
    }

    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let body = json!({"errors": [{"code": code, "message": message}]});
        Self::new(status, "application/json", body.to_string().into_bytes())
    }

    pub(crate) fn json(body: &Value) -> Self {
        Self::json_with(200, body)
    }

    pub(crate) fn json_with(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", body.to_string().into_bytes())
    }

    /// No body, and no type of one.
    pub(crate) fn empty(status: u16) -> Self {
        let mut answer = Self::new(status, "", Vec::new());
        answer.headers.clear();
        answer
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn set(&mut self, name: &str, value: Option<String>) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        if let Some(value) = value {
            self.headers.push((name.to_owned(), value));
        }
    }
}

pub(super) fn route(
    inner: &Inner,
    request: &Request,
    fault: Option<&Fault>,
    intake: &mut Intake<'_, '_>,
) -> Result<Answer, Stop> {
    let own;
    let request = if request.path.starts_with("/v2/") {
        request
    } else {
        own = request.with_body(intake.hold(MAX_FORM)?);
        &own
    };
    if let Some(answer) = inner.front.get().and_then(|front| front.answer(request)) {
        return Ok(answer);
    }
    if matches!(request.path.as_str(), "/token" | "/service/token") {
        return Ok(token(inner, request));
    }
    let mut state = inner.state();
    let session = uploads::session_path(&request.path);
    if let Some(origin) = state.uploads_of.clone()
        && let Some(path) = session.filter(|(_, id)| !id.is_empty())
    {
        // The far side of an upload: the address itself is the permission.
        drop(state);
        return uploads::route(&origin, request, path, fault, intake);
    }
    // The far side of a redirect: storage, not a registry; here, too, the address is the permission.
    if let Some(signed) = &mut state.signed {
        let uses = request.query("signature").and_then(|sig| signed.get_mut(sig));
        let Some(left) = uses.filter(|left| **left > 0) else {
            return Ok(Answer::error(403, "DENIED", "the address has expired"));
        };
        *left -= 1;
    } else if let Some(refusal) = refuse(&mut state, request) {
        return Ok(refusal);
    }
    if let Some(path) = session {
        drop(state);
        return uploads::route(inner, request, path, fault, intake);
    }
    if request.method == "PUT"
        && let Some(path) =
            request.path.strip_prefix("/v2/").unwrap_or_default().rsplit_once("/manifests/")
    {
        drop(state);
        return manifests::put(inner, request, path, fault, intake);
    }
    Ok(read(&mut state, request, fault))
}

fn read(state: &mut State, request: &Request, fault: Option<&Fault>) -> Answer {
    let Some(rest) = request.path.strip_prefix("/v2/") else {
        return Answer::error(404, "NAME_UNKNOWN", "no such path");
    };
    if rest.is_empty() {
        return Answer::json(&json!({}));
    }
    if request.is_write() {
        return Answer::error(405, "UNSUPPORTED", "the operation is unsupported");
    }
    if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
        return manifest(state, repository, reference);
    }
    if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
        return blob(state, request, repository, digest, fault);
    }
    if let Some(repository) = rest.strip_suffix("/tags/list") {
        return tags(state, request, repository);
    }
    if let Some((repository, digest)) = rest.rsplit_once("/referrers/") {
        return referrers(state, request, repository, digest);
    }
    Answer::error(404, "NAME_UNKNOWN", "no such path")
}

pub(super) fn manifest(state: &State, repository: &str, reference: &str) -> Answer {
    let Some(all) = state.manifests.get(repository) else {
        return Answer::error(404, "NAME_UNKNOWN", "repository name not known to registry");
    };
    match all.get(reference) {
        Some((media_type, bytes)) => {
            let answer = Answer::new(200, media_type, Content::Held(bytes.clone()))
                .with("Docker-Content-Digest", digest(bytes));
            match state.versions {
                true => answer.with("ETag", format!("\"{}\"", digest(bytes))),
                false => answer,
            }
        }
        None => Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
    }
}

pub(super) fn blob(
    state: &mut State,
    request: &Request,
    repository: &str,
    digest: &str,
    fault: Option<&Fault>,
) -> Answer {
    let known = state.signed.is_some() || state.has_blob(repository, digest);
    let Some(content) = state.blobs.get(digest).filter(|_| known).cloned() else {
        return Answer::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    if request.method == "GET" && !content.is_kept() {
        return Answer::error(501, "UNSUPPORTED", "the bytes of this blob were not kept");
    }
    if request.method == "GET"
        && let Some(redirects) = &state.redirects
    {
        let signature = content::digest(format!("{digest} {}", state.log.len()).as_bytes());
        let signature = signature.trim_start_matches("sha256:").to_owned();
        let location = format!("{}{}?signature={signature}", redirects.base, request.path);
        let mut target = redirects.target.state();
        let signed = target.signed.get_or_insert_default();
        signed.insert(signature, redirects.uses);
        return Answer::new(307, "text/plain", Vec::new()).with("Location", location);
    }
    let size = content.len();
    let mut answer = Answer::new(200, "application/octet-stream", content)
        .with("Docker-Content-Digest", digest)
        .with("Accept-Ranges", "bytes");
    let range = request.header("range").filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    if let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) {
        let (first, last) = range.split_once('-').unwrap_or((range, ""));
        let first: u64 = first.parse().unwrap_or(u64::MAX);
        let last = last.parse().unwrap_or(u64::MAX).min(size.saturating_sub(1));
        if first > last || first >= size {
            return Answer::error(416, "RANGE_INVALID", "range not satisfiable")
                .with("Content-Range", format!("bytes */{size}"));
        }
        answer.status = 206;
        answer.start = first;
        answer.length = last - first + 1;
        set_content_range(&mut answer);
    }
    answer
}

pub(super) fn tags(state: &State, request: &Request, repository: &str) -> Answer {
    let Some(all) = state.manifests.get(repository) else {
        return Answer::error(404, "NAME_UNKNOWN", "repository name not known to registry");
    };
    let asked: Option<usize> = request.query("n").and_then(|n| n.parse().ok());
    let limit = asked.into_iter().chain(state.page_limit).min().unwrap_or(usize::MAX);
    let last = request.query("last").unwrap_or_default();
    let rest: Vec<&String> =
        all.keys().filter(|name| !name.contains(':') && name.as_str() > last).collect();
    let page: Vec<&String> = rest.iter().take(limit).copied().collect();
    let answer = Answer::json(&json!({"name": repository, "tags": page}));
    match page.last() {
        Some(end) if page.len() < rest.len() => {
            let link = format!("</v2/{repository}/tags/list?last={end}&n={limit}>; rel=\"next\"");
            answer.with("Link", link)
        }
        _ => answer,
    }
}

pub(super) fn referrers(
    state: &State,
    request: &Request,
    repository: &str,
    subject: &str,
) -> Answer {
    if !state.referrers_api {
        return Answer::error(404, "NAME_UNKNOWN", "no such path");
    }
    let wanted = request.query("artifactType");
    let mut list = Vec::new();
    for (name, (media_type, bytes)) in state.manifests.get(repository).into_iter().flatten() {
        let Ok(manifest) = serde_json::from_slice::<Value>(bytes) else {
            continue;
        };
        // Each manifest is known by its digest, and by tags besides.
        if !name.contains(':') || manifest["subject"]["digest"] != subject {
            continue;
        }
        let kind = match &manifest["artifactType"] {
            Value::Null => manifest["config"]["mediaType"].clone(),
            kind => kind.clone(),
        };
        if wanted.is_some_and(|wanted| kind != wanted) {
            continue;
        }
        let mut descriptor = json!({
            "mediaType": media_type, "digest": name, "size": bytes.len(), "artifactType": kind,
        });
        if !manifest["annotations"].is_null() {
            descriptor["annotations"] = manifest["annotations"].clone();
        }
        list.push(descriptor);
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list});
    let mut answer = Answer::new(200, OCI_INDEX, index.to_string().into_bytes());
    if wanted.is_some() {
        answer = answer.with("OCI-Filters-Applied", "artifactType");
    }
    answer
}

pub(super) fn set_content_range(answer: &mut Answer) {
    let last = answer.start + answer.length - 1;
    let value = format!("bytes {}-{last}/{}", answer.start, answer.body.len());
    answer.set("Content-Range", Some(value));
}
