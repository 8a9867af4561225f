//! Which requests a rule is about.

use super::fault::Fault;
use crate::support::http::Request;

#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    Nth(u64),
    Every(u64),
    First(u64),
    From(u64),
}

/// Which requests a rule is about.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    method: Option<&'static str>,
    path_contains: String,
    ranged: Option<bool>,
    mount: Option<bool>,
    by_tag: Option<bool>,
    /// With content.
    filled: bool,
    reuse: bool,
    about: Option<String>,
    when: When,
}

impl Match {
    pub(crate) fn any() -> Self {
        Self {
            method: None,
            path_contains: String::new(),
            ranged: None,
            mount: None,
            by_tag: None,
            filled: false,
            reuse: false,
            about: None,
            when: When::Always,
        }
    }

    /// GET of blobs.
    pub(crate) fn blobs() -> Self {
        Self::get("/blobs/")
    }

    /// GET or HEAD of manifests.
    pub(crate) fn manifests() -> Self {
        Self::any().path("/manifests/")
    }

    pub(crate) fn get(path_contains: &str) -> Self {
        Self::any().method("GET").path(path_contains)
    }

    /// POST that begins an upload; mounts are not meant.
    pub(crate) fn uploads() -> Self {
        let all = Self::any().method("POST").path("/blobs/uploads/");
        Self { mount: Some(false), ..all }
    }

    /// POST that asks for a blob of another repository.
    pub(crate) fn mount() -> Self {
        Self { mount: Some(true), ..Self::uploads() }
    }

    pub(crate) fn patch_blob() -> Self {
        Self::any().method("PATCH").path("/blobs/uploads/")
    }

    /// PUT that ends an upload, with or without bytes.
    pub(crate) fn put_blob() -> Self {
        Self::any().method("PUT").path("/blobs/uploads/")
    }

    /// GET that asks how far an upload has come.
    pub(crate) fn upload_status() -> Self {
        Self::get("/blobs/uploads/")
    }

    /// DELETE of an upload.
    pub(crate) fn cancel() -> Self {
        Self::any().method("DELETE").path("/blobs/uploads/")
    }

    /// HEAD of a blob.
    pub(crate) fn blob_exists() -> Self {
        Self::any().method("HEAD").path("/blobs/")
    }

    pub(crate) fn put_manifest() -> Self {
        Self::any().method("PUT").path("/manifests/")
    }

    /// PUT of a manifest under a tag.
    pub(crate) fn put_tag() -> Self {
        Self { by_tag: Some(true), ..Self::put_manifest() }
    }

    pub(crate) fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    pub(crate) fn path(mut self, contains: &str) -> Self {
        contains.clone_into(&mut self.path_contains);
        self
    }

    /// Only requests about this digest: at the end of the path, or in `digest=` or `mount=`.
    pub(crate) fn about(mut self, digest: &str) -> Self {
        self.about = Some(digest.to_owned());
        self
    }

    /// Only requests that bring content.
    pub(crate) fn filled(mut self) -> Self {
        self.filled = true;
        self
    }

    /// Only requests on a connection that has had one before.
    pub(crate) fn reuse(mut self) -> Self {
        self.reuse = true;
        self
    }

    /// Only requests with a range (true) or without one (false).
    pub(crate) fn ranged(mut self, ranged: bool) -> Self {
        self.ranged = Some(ranged);
        self
    }

    /// The n-th matching request, from 1.
    pub(crate) fn nth(mut self, n: u64) -> Self {
        self.when = When::Nth(n);
        self
    }

    pub(crate) fn every(mut self, n: u64) -> Self {
        self.when = When::Every(n);
        self
    }

    pub(crate) fn first(mut self, n: u64) -> Self {
        self.when = When::First(n);
        self
    }

    /// The n-th and all later ones.
    pub(crate) fn from(mut self, n: u64) -> Self {
        self.when = When::From(n);
        self
    }

    pub(super) fn matches(&self, request: &Request) -> bool {
        let last = request.path.rsplit('/').next().unwrap_or_default();
        let is_about = |digest: &str| {
            let named = [Some(last), request.query("digest"), request.query("mount")];
            named.contains(&Some(digest))
        };
        self.method.is_none_or(|method| method == request.method)
            && request.path.contains(&self.path_contains)
            && self.ranged.is_none_or(|ranged| ranged == request.header("range").is_some())
            && self.mount.is_none_or(|mount| mount == request.query("mount").is_some())
            && self.by_tag.is_none_or(|by_tag| by_tag != last.contains(':'))
            && !(self.filled && request.header("content-length").is_none_or(|length| length == "0"))
            && (!self.reuse || request.is_reuse)
            && self.about.as_deref().is_none_or(is_about)
    }

    fn fires(&self, count: u64) -> bool {
        match self.when {
            When::Always => true,
            When::Nth(n) => count == n,
            When::Every(n) => count.is_multiple_of(n),
            When::First(n) => count <= n,
            When::From(n) => count >= n,
        }
    }
}

/// What happens to which requests.
pub(super) struct Rule {
    matches: Match,
    fault: Fault,
    /// Matching requests so far.
    count: u64,
}

impl Rule {
    pub(super) fn new(matches: Match, fault: Fault) -> Self {
        Self { matches, fault, count: 0 }
    }

    /// Counts a request, and gives what this rule does to it.
    pub(super) fn consider(&mut self, request: &Request) -> Option<&Fault> {
        if !self.matches.matches(request) {
            return None;
        }
        self.count += 1;
        self.matches.fires(self.count).then_some(&self.fault)
    }
}
