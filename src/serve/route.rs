//! What a request is about: the path and the query, parsed by hand, since names have slashes in them.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::image::{Digest, DigestError, is_tag};

/// What a path means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/tags/list`
    Tags(String),
    /// `/v2/<name>/manifests/<reference>`
    Manifest(String, Target),
    /// `/v2/<name>/blobs/<digest>`
    Blob(String, Digest),
    /// `/v2/<name>/blobs/uploads/`
    Uploads(String),
    /// `/v2/<name>/blobs/uploads/<session>`
    Upload(String, String),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(String, Digest),
    /// `/healthz`
    Health,
    /// `/readyz`
    Ready,
}

/// What is asked for in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Tag(String),
    Digest(Digest),
}

/// Why a path means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RouteError {
    /// It is none of the paths of this API.
    Unknown,
    /// What stands for a tag or a digest is a wrong digest.
    Digest(String),
    /// The same, and is neither.
    Reference(String),
}

impl Route {
    /// What `path` means, which is percent-encoded.
    pub(super) fn parse(path: &str) -> Result<Self, RouteError> {
        match path {
            "/healthz" => return Ok(Self::Health),
            "/readyz" => return Ok(Self::Ready),
            "/v2" | "/v2/" => return Ok(Self::Base),
            "/v2/_catalog" => return Ok(Self::Catalog),
            _ => {}
        }
        let path = percent_decode_str(path).decode_utf8().map_err(|_| RouteError::Unknown)?;
        let path = path.strip_prefix("/v2/").ok_or(RouteError::Unknown)?;
        if path.contains('\0') {
            return Err(RouteError::Unknown);
        }
        // From the end: a name may have components of any of these words.
        let (rest, last) = path.rsplit_once('/').ok_or(RouteError::Unknown)?;
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            return Ok(match last {
                "" => Self::Uploads(name.to_owned()),
                session => Self::Upload(name.to_owned(), session.to_owned()),
            });
        }
        let (name, word) = rest.rsplit_once('/').ok_or(RouteError::Unknown)?;
        let name = name.to_owned();
        match (word, last) {
            ("tags", "list") => Ok(Self::Tags(name)),
            ("blobs", "uploads") => Ok(Self::Uploads(name)),
            ("blobs", digest) => Ok(Self::Blob(name, parse_digest(digest)?)),
            ("referrers", digest) => Ok(Self::Referrers(name, parse_digest(digest)?)),
            ("manifests", reference) => Ok(Self::Manifest(name, Target::parse(reference)?)),
            _ => Err(RouteError::Unknown),
        }
    }
}

impl Target {
    fn parse(text: &str) -> Result<Self, RouteError> {
        match text.contains(':') {
            true => parse_digest(text).map(Self::Digest),
            false if is_tag(text) => Ok(Self::Tag(text.to_owned())),
            false => Err(RouteError::Reference(text.chars().take(200).collect())),
        }
    }
}

fn parse_digest(text: &str) -> Result<Digest, RouteError> {
    text.parse().map_err(|e: DigestError| RouteError::Digest(e.to_string()))
}

/// The parameters of a query, decoded, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

/// More parameters than this are not read: no request has them.
const MAX_PARAMETERS: usize = 64;

impl Query {
    /// What cannot be decoded is left as it is.
    pub(super) fn parse(query: Option<&str>) -> Self {
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            let decoded = percent_decode_str(&text).decode_utf8().map(Cow::into_owned);
            decoded.unwrap_or(text)
        };
        let parameters = query.unwrap_or_default().split('&').filter(|text| !text.is_empty());
        let parameters = parameters.take(MAX_PARAMETERS).map(|text| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (decode(name), decode(value))
        });
        Self(parameters.collect())
    }

    /// The first value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The registry that is meant (`ns`), if the request says that.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.get("ns").filter(|namespace| !namespace.is_empty())
    }

    /// All of its values.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let digest = Digest::sha256(b"x");
        let encoded = digest.to_string().replace(':', "%3A");
        let name = || "a/b".to_owned();
        for (path, route) in [
            ("/v2/".to_owned(), Route::Base),
            ("/v2".to_owned(), Route::Base),
            ("/v2/_catalog".to_owned(), Route::Catalog),
            ("/healthz".to_owned(), Route::Health),
            ("/v2/a/b/tags/list".to_owned(), Route::Tags(name())),
            ("/v2/a/b/manifests/v1".to_owned(), Route::Manifest(name(), Target::Tag("v1".into()))),
            (
                format!("/v2/a/b/manifests/{digest}"),
                Route::Manifest(name(), Target::Digest(digest)),
            ),
            (format!("/v2/a/b/blobs/{encoded}"), Route::Blob(name(), digest)),
            (format!("/v2/a%2Fb/referrers/{digest}"), Route::Referrers(name(), digest)),
            ("/v2/a/b/blobs/uploads/".to_owned(), Route::Uploads(name())),
            ("/v2/a/b/blobs/uploads".to_owned(), Route::Uploads(name())),
            ("/v2/a/b/blobs/uploads/xyz".to_owned(), Route::Upload(name(), "xyz".into())),
            ("/v2/x/manifests/tags/list".to_owned(), Route::Tags("x/manifests".into())),
            (
                "/v2/x/tags/manifests/list".to_owned(),
                Route::Manifest("x/tags".into(), Target::Tag("list".into())),
            ),
            (
                "/v2/x/blobs/uploads/blobs/uploads/".to_owned(),
                Route::Uploads("x/blobs/uploads".into()),
            ),
        ] {
            assert_eq!(Route::parse(&path), Ok(route), "{path}");
        }
    }

    #[test]
    fn what_is_no_path() {
        for path in [
            "/",
            "/v1/",
            "/v2/a",
            "/v2/a/b",
            "/v2/a/other/b",
            "",
            "/v2/%ff/manifests/x",
            "/v2/a%00/tags/list",
        ] {
            assert_eq!(Route::parse(path), Err(RouteError::Unknown), "{path}");
        }
        for path in
            ["/v2/a/blobs/sha256:abc", "/v2/a/manifests/sha256:baddigeststring", "/v2/a/blobs/x"]
        {
            assert!(matches!(Route::parse(path), Err(RouteError::Digest(_))), "{path}");
        }
        for path in ["/v2/a/manifests/.x", "/v2/a/manifests/"] {
            assert!(matches!(Route::parse(path), Err(RouteError::Reference(_))), "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse(Some("ns=host%3A5000&tag=a&tag=b&n&x=a+b%2"));
        assert_eq!(query.get("ns"), Some("host:5000"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            (query.get("n"), query.get("x"), query.get("y")),
            (Some(""), Some("a b%2"), None)
        );
        assert_eq!(Query::parse(None), Query::default());
    }
}
