//! Fetching manifests.

use reqwest::{
    Method, Response,
    header::{CONTENT_TYPE, ETAG, HeaderValue},
};

use super::session::{Ask, Scope, Session, content_digest, header};
use crate::{
    backend::{Kind, Result},
    image::{
        ACCEPT_MANIFESTS, Algorithm, Digest, MAX_MANIFEST_BYTES, Manifest, ManifestError,
        MediaType, Reference,
    },
};

/// Fetches what `reference` leads to.
pub(super) async fn fetch_manifest(
    session: &Session,
    reference: &Reference,
    scope: Scope<'_>,
) -> Result<Manifest> {
    Ok(fetch_versioned(session, reference, scope).await?.0)
}

/// The same with what the registry can tell this version of it by (`ETag`), if it says so in a way that is
/// good for `If-Match`.
pub(super) async fn fetch_versioned(
    session: &Session,
    reference: &Reference,
    scope: Scope<'_>,
) -> Result<(Manifest, Option<HeaderValue>)> {
    let doing = format!("fetching manifest {reference}");
    let ask = Ask { scope, ..manifest_ask(session, Method::GET, reference, &doing) };
    let attempt = || async {
        let answer = session.attempt(&ask).await?;
        let version = answer.response.headers().get(ETAG).cloned();
        // A weak one never matches (RFC 9110, section 13.1.1), and another host's is not the registry's.
        let version = version.filter(|version| {
            version.as_bytes().starts_with(b"\"") && session.wire.is_own(&answer.url)
        });
        let manifest = read_manifest(session, answer.response, reference, &doing).await?;
        Ok((manifest, version))
    };
    session.wire.repeat(attempt).await
}

/// A request for what `reference` leads to.
pub(super) fn manifest_ask<'a>(
    session: &Session,
    method: Method,
    reference: &'a Reference,
    doing: &'a str,
) -> Ask<'a> {
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    let url = session.wire.url(reference.repository(), &format!("manifests/{name}"));
    Ask { accept: Some(ACCEPT_MANIFESTS), ..Ask::new(method, url, reference.repository(), doing) }
}

async fn read_manifest(
    session: &Session,
    response: Response,
    reference: &Reference,
    doing: &str,
) -> Result<Manifest> {
    let content_type = header(response.headers(), CONTENT_TYPE.as_str());
    if content_type.as_deref().is_some_and(MediaType::is_schema1) {
        // Its digest is of a part of it.
        return Err(session.wire.error(doing, ManifestError::Schema1));
    }
    let stated = content_digest(response.headers());
    let body = session
        .wire
        .body(response, MAX_MANIFEST_BYTES, doing)
        .await?
        .ok_or_else(|| session.wire.error(doing, ManifestError::TooLarge))?;
    // The header only counts where the reference itself does not say what is to come.
    let expected = reference.digest().or(stated);
    let algorithm = expected.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    if let Some(expected) = expected {
        let found = Digest::of(algorithm, &body);
        if found != expected {
            return Err(session.wire.error(doing, Kind::Digest { expected, found }));
        }
    }
    Manifest::parse_as(algorithm, body.into(), content_type.as_deref()).map_err(|error| {
        match content_type.filter(|t| t.starts_with("text/html")) {
            Some(_) => {
                let reason = "it sent a page in HTML, not a manifest; is there a proxy or a login page on the way?";
                session.wire.error(doing, Kind::Config(reason.into()))
            }
            None => session.wire.error(doing, error),
        }
    })
}
