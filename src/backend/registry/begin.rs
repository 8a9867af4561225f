//! Whether a blob has to be sent at all, and where: looking for it, mounting it, beginning an upload.

use reqwest::{
    Method, StatusCode, Url,
    header::{CONTENT_LENGTH, HeaderValue},
};

use super::{
    abilities::Mounting,
    blob::content_range,
    encoding::Encoding,
    session::{Answer, Ask, Elsewhere, Scope, Session, header},
};
use crate::{
    backend::{Kind, Result},
    image::{Descriptor, Repository},
};

/// Begins an upload.
pub(super) async fn start(session: &Session, repository: &Repository) -> Result<Url> {
    let doing = format!("beginning an upload to {repository}");
    let url = session.wire.url(repository, "blobs/uploads/");
    let ask = Ask::push(Method::POST, url, repository, &doing);
    let answer = session.send(&ask).await?;
    begun(session, &answer, &doing)
}

/// Where an upload goes on that has begun, and how.
fn begun(session: &Session, answer: &Answer, doing: &str) -> Result<Url> {
    let headers = answer.response.headers();
    if let Some(bytes) = header(headers, "oci-chunk-min-length").and_then(|n| n.parse().ok()) {
        session.receiving.require_chunk(bytes);
    }
    session.wire.location(&answer.url, headers, doing)
}

/// Ends an upload that is not needed. Registries also do that by themselves after a while.
pub(super) async fn cancel(session: &Session, repository: &Repository, location: Url) {
    let doing = format!("cancelling an upload to {repository}");
    let ask = Ask::push(Method::DELETE, location, repository, &doing);
    let _ = session.attempt(&ask).await;
}

/// Whether `repository` has `blob`.
pub(super) async fn has(
    session: &Session,
    repository: &Repository,
    blob: &Descriptor,
) -> Result<bool> {
    let doing = format!("looking for blob {} in {repository}", blob.digest);
    let url = session.wire.url(repository, &format!("blobs/{}", blob.digest));
    let elsewhere = Elsewhere::GiveUp;
    let head = Ask::push(Method::HEAD, url.clone(), repository, &doing);
    match session.attempt(&Ask { elsewhere, ..head }).await {
        Ok(answer) => {
            let headers = answer.response.headers();
            let length = header(headers, CONTENT_LENGTH.as_str());
            let is_plain = Encoding::of(headers) == Encoding::Plain;
            return Ok(length.is_none_or(|length| !is_plain || length == blob.size.to_string()));
        }
        Err(error) if error.is_not_found() && !error.is_elsewhere() => return Ok(false),
        // A registry without HEAD, or one that leads to an address that is good for GET only.
        Err(_) => {}
    }
    let get = Ask::push(Method::GET, url, repository, &doing);
    let range = HeaderValue::from_static("bytes=0-0");
    let range = Some(range).filter(|_| blob.size > 0);
    match session.send(&Ask { elsewhere, range, ..get }).await {
        Ok(answer) => {
            let headers = answer.response.headers();
            let size = match content_range(headers) {
                Some((_, total)) => total,
                None => answer.response.content_length(),
            };
            let is_plain = Encoding::of(headers) == Encoding::Plain;
            Ok(size.is_none_or(|size| !is_plain || size == blob.size))
        }
        // If that is not known, it is sent, at worst once more.
        Err(error) if error.is_not_found() || error.is_elsewhere() => Ok(false),
        Err(error) => match error.kind() {
            Kind::Status { status: 400 | 405 | 406 | 416 | 501, .. } => Ok(false),
            _ => Err(error),
        },
    }
}

/// What asking for a mount has brought.
pub(super) enum Mounted {
    /// The blob is in the repository.
    Yes,
    /// It is to be sent to this place.
    No(Url),
    /// The registry does not mount.
    Refused,
}

/// Asks to mount `blob` from the repository `from` of the same registry. That only is a short cut: whatever
/// the registry answers but success, the blob can still be sent.
pub(super) async fn mount(
    session: &Session,
    repository: &Repository,
    blob: &Descriptor,
    from: &Repository,
) -> Mounted {
    let doing = format!("mounting blob {} from {from} into {repository}", blob.digest);
    let mut url = session.wire.url(repository, "blobs/uploads/");
    url.query_pairs_mut()
        .append_pair("mount", &blob.digest.to_string())
        .append_pair("from", from.path());
    let scope = Scope::Push(Some(from));
    let ask = Ask { scope, ..Ask::new(Method::POST, url, repository, &doing) };
    let mounted = match session.wire.repeat_briefly(|| session.attempt(&ask)).await {
        Ok(answer) if answer.response.status() == StatusCode::CREATED => return Mounted::Yes,
        Ok(answer) => begun(session, &answer, &doing).map(Mounted::No),
        Err(error) => Err(error),
    };
    mounted.unwrap_or_else(|error| {
        tracing::info!("{error}; sending it");
        Mounted::Refused
    })
}

/// Finds out with a blob that has just been sent whether mounting can be relied on.
pub(super) async fn probe_mounting(session: &Session, repository: &Repository, blob: &Descriptor) {
    let known = match mount(session, repository, blob, repository).await {
        Mounted::Yes => Mounting::Works,
        Mounted::No(location) => {
            cancel(session, repository, location).await;
            Mounting::Refused
        }
        Mounted::Refused => Mounting::Refused,
    };
    session.receiving.learn_mounting(known);
}
