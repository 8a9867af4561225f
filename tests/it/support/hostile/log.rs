//! What was asked of a hostile registry.

use super::Hostile;
use std::collections::BTreeMap;
use std::time::Instant;

/// One recorded request.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The request line's target, query and all.
    pub(crate) target: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) repository: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) content_range: Option<String>,
    pub(crate) content_type: Option<String>,
    /// What the client announced; nothing when the body came in chunks.
    pub(crate) content_length: Option<u64>,
    pub(crate) host: Option<String>,
    pub(crate) accept: Option<String>,
    pub(crate) user_agent: Option<String>,
    /// The whole header, so that a test can look for what must not be there.
    pub(crate) authorization: Option<String>,
    pub(crate) if_match: Option<String>,
    /// 0 when nothing was answered.
    pub(crate) status: u16,
    /// Bytes of the request's body that were taken before the answer.
    pub(crate) received: u64,
    /// Bytes of the body that went into the socket.
    pub(crate) sent: u64,
    pub(crate) connection: u64,
    pub(crate) at: Instant,
    /// The name of the fault that was injected here.
    pub(crate) fault: Option<String>,
}

impl Served {
    pub(crate) fn is_blob_get(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }

    /// POST, PATCH or PUT of a blob.
    pub(crate) fn is_upload(&self) -> bool {
        matches!(self.method.as_str(), "POST" | "PATCH" | "PUT")
            && self.path.contains("/blobs/uploads/")
    }

    pub(crate) fn is_mount(&self) -> bool {
        self.method == "POST" && self.query("mount").is_some()
    }

    pub(crate) fn is_manifest_put(&self) -> bool {
        self.method == "PUT" && self.path.contains("/manifests/")
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The digest at the end of the path.
    pub(crate) fn digest(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Where the requested range starts; 0 without one.
    pub(crate) fn range_start(&self) -> u64 {
        self.range
            .as_deref()
            .and_then(|range| range.strip_prefix("bytes="))
            .and_then(|range| range.split('-').next())
            .and_then(|start| start.parse().ok())
            .unwrap_or(0)
    }

    pub(crate) fn auth_scheme(&self) -> Option<&str> {
        self.authorization.as_deref()?.split(' ').next()
    }
}

impl Hostile {
    /// Every request so far. Waits until none is being handled.
    pub(crate) fn log(&self) -> Vec<Served> {
        self.server.settle();
        self.inner.state().log.clone()
    }

    pub(crate) fn clear_log(&self) {
        self.server.settle();
        let mut state = self.inner.state();
        state.log.clear();
        state.uploaded.clear();
        state.scopes.clear();
    }

    /// The recorded requests that a test asks about.
    fn those(&self, wanted: impl Fn(&Served) -> bool) -> Vec<Served> {
        let mut log = self.log();
        log.retain(wanted);
        log
    }

    pub(crate) fn requests(&self) -> usize {
        self.log().len()
    }

    /// How many requests of this method had this in their path.
    pub(crate) fn count(&self, method: &str, path_contains: &str) -> usize {
        self.those(|served| served.method == method && served.path.contains(path_contains)).len()
    }

    /// GETs of blobs that were answered with bytes.
    pub(crate) fn blob_gets(&self) -> Vec<Served> {
        self.those(|served| served.is_blob_get() && matches!(served.status, 200 | 206))
    }

    /// The same without waiting for those that are being served.
    pub(crate) fn blob_gets_now(&self) -> Vec<Served> {
        let mut log = self.inner.state().log.clone();
        log.retain(|served| served.is_blob_get() && matches!(served.status, 200 | 206));
        log
    }

    /// How many bytes of each blob were sent.
    pub(crate) fn blob_bytes_sent(&self) -> BTreeMap<String, u64> {
        let mut sent = BTreeMap::new();
        for served in self.blob_gets() {
            *sent.entry(served.digest().to_owned()).or_default() += served.sent;
        }
        sent
    }

    /// Bytes of blobs that were taken, those of uploads that failed included.
    pub(crate) fn uploaded_bytes(&self) -> u64 {
        self.those(Served::is_upload).iter().map(|served| served.received).sum()
    }

    /// The same without waiting for uploads that are under way.
    pub(crate) fn uploaded_bytes_now(&self) -> u64 {
        let state = self.inner.state();
        state.log.iter().filter(|served| served.is_upload()).map(|served| served.received).sum()
    }

    /// How often a blob was uploaded whole, to any repository, whether or not the client came to know.
    pub(crate) fn blob_puts(&self, digest: &str) -> usize {
        self.server.settle();
        let state = self.inner.state();
        state.uploaded.iter().filter(|(_, known)| known == digest).count()
    }

    pub(crate) fn mounts_asked(&self) -> usize {
        self.those(Served::is_mount).len()
    }

    /// Mounts that were answered 201; a lie counts as one.
    pub(crate) fn mounts_won(&self) -> usize {
        self.those(|served| served.is_mount() && served.status == 201).len()
    }

    /// PUTs of manifests in the order in which they came.
    pub(crate) fn manifest_puts(&self) -> Vec<Served> {
        self.those(Served::is_manifest_put)
    }

    /// Requests that are meant to change something.
    pub(crate) fn writes(&self) -> Vec<Served> {
        self.those(|served| !matches!(served.method.as_str(), "GET" | "HEAD"))
    }

    pub(crate) fn token_requests(&self) -> usize {
        self.those(|served| served.method != "HEAD" && served.path.ends_with("/token")).len()
    }

    /// The scopes for which tokens were asked, in the order of the requests, as `repository:a/b:pull,push`.
    pub(crate) fn scopes_asked(&self) -> Vec<String> {
        self.server.settle();
        self.inner.state().scopes.clone()
    }

    pub(crate) fn connections(&self) -> u64 {
        self.server.connections()
    }
}
