//! A client of the distribution API that does what it is told, step by step, and never more: it tests the
//! registries of the tests.

use super::content::digest;
use super::hostile::{PASSWORD, USER, basic};
use super::image::{Blob, Receiver};
use serde_json::Value;
use std::time::Duration;

/// One response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// Empty where there is no such header.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The code of the first error of an OCI error body.
    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Requests to one plain registry.
pub(crate) struct Client {
    base: String,
    authorization: Option<String>,
    agent: ureq::Agent,
}

impl Client {
    /// `host` is `127.0.0.1:PORT`.
    pub(crate) fn new(host: &str) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(10)))
            .build()
            .into();
        Self { base: format!("http://{host}"), authorization: None, agent }
    }

    /// Gives up after so long.
    pub(crate) fn impatient(host: &str, timeout: Duration) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(timeout))
            .build()
            .into();
        Self { agent, ..Self::new(host) }
    }

    pub(crate) fn authorization(mut self, value: String) -> Self {
        self.authorization = Some(value);
        self
    }

    /// With the user and the password that the registries of the tests know.
    pub(crate) fn login(self) -> Self {
        self.authorization(basic(USER, PASSWORD))
    }

    /// One request; `None` when there is no response. `target` is a path or a whole address.
    pub(crate) fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<Reply> {
        let url = match target.strip_prefix('/') {
            Some(_) => format!("{}{target}", self.base),
            None => target.to_owned(),
        };
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(value) = &self.authorization {
            request = request.header("Authorization", value);
        }
        let result = if matches!(method, "POST" | "PUT" | "PATCH") {
            self.agent.run(request.body(body.to_vec()).expect("a good request"))
        } else {
            self.agent.run(request.body(()).expect("a good request"))
        };
        let (head, mut body) = result.ok()?.into_parts();
        let body = body.read_to_vec().ok()?;
        Some(Reply { status: head.status.as_u16(), headers: head.headers, body })
    }

    /// The same where a response is expected.
    #[track_caller]
    pub(crate) fn ask(&self, method: &str, target: &str, body: &[u8]) -> Reply {
        self.send(method, target, &[], body)
            .unwrap_or_else(|| panic!("no response to {method} {target}"))
    }

    pub(crate) fn head(&self, target: &str) -> Reply {
        self.ask("HEAD", target, b"")
    }

    pub(crate) fn get(&self, target: &str) -> Reply {
        self.ask("GET", target, b"")
    }

    /// Begins an upload; gives its address.
    #[track_caller]
    pub(crate) fn begin(&self, repository: &str) -> String {
        let reply = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), b"");
        assert_eq!(reply.status, 202, "{reply:?}");
        reply.header("location").to_owned()
    }

    /// PUT of all bytes to the address of an upload.
    pub(crate) fn put(&self, location: &str, bytes: &[u8]) -> Option<Reply> {
        self.put_as(location, &digest(bytes), bytes)
    }

    /// The same under a digest of one's own.
    pub(crate) fn put_as(&self, location: &str, digest: &str, bytes: &[u8]) -> Option<Reply> {
        self.send("PUT", &with_digest(location, digest), &[], bytes)
    }

    /// PATCH with the bytes that begin at `first`.
    pub(crate) fn patch(&self, location: &str, first: usize, bytes: &[u8]) -> Option<Reply> {
        let range = format!("{first}-{}", first + bytes.len() - 1);
        self.send("PATCH", location, &[("Content-Range", &range)], bytes)
    }

    /// POST and PUT.
    #[track_caller]
    pub(crate) fn upload(&self, repository: &str, bytes: &[u8]) -> Reply {
        let location = self.begin(repository);
        self.put(&location, bytes).expect("a response")
    }

    pub(crate) fn mount(&self, repository: &str, digest: &str, from: &str) -> Option<Reply> {
        let query = format!("mount={digest}&from={from}");
        self.send("POST", &format!("/v2/{repository}/blobs/uploads/?{query}"), &[], b"")
    }

    pub(crate) fn manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Option<Reply> {
        let target = format!("/v2/{repository}/manifests/{reference}");
        self.send("PUT", &target, &[("Content-Type", media_type)], bytes)
    }
}

/// The address of an upload with `digest=` in its query.
pub(crate) fn with_digest(location: &str, digest: &str) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}digest={digest}")
}

/// Pushes as a client does, over the wire; panics when something is refused.
impl Receiver for Client {
    fn put_blob(&self, repository: &str, blob: &Blob) {
        let reply = self.upload(repository, &blob.content.to_vec());
        assert_eq!(reply.status, 201, "{reply:?}");
    }

    fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) {
        let reply = self.manifest(repository, reference, media_type, bytes).expect("a response");
        assert_eq!(reply.status, 201, "{reply:?}");
    }
}
