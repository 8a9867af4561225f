//! Uploads of blobs: in one request, in two, in pieces, and by mounting what is here already.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE},
};
use tokio::time::timeout;

use super::{
    access::Action,
    connection::STALL_TIMEOUT,
    incoming::RequestBody,
    names::Named,
    range,
    reply::{Problem, Reply, Result, empty, header, set},
    service::{Call, location},
    state::upload_unknown,
    tree::Upload,
};
use crate::{
    backend::{self, ByteStream, Error, Kind, images_dir::is_upload_name, object_store::WholeBlob},
    image::{Digest, Repository},
    util::Counter,
};

/// What comes from a client, in errors.
const CLIENT: &str = "client";

/// `POST`: begins an upload; with `digest=` it is ended as well, and with `mount=` perhaps not needed.
pub(super) async fn begin(call: &Call, named: &Named, body: RequestBody) -> Result<Reply> {
    let shared = &call.shared;
    let repository = &named.repository;
    shared.check(&call.user, Action::Push, repository)?;
    call.check_writable("")?;
    let parse = |text: &str| text.parse::<Digest>();
    let invalid = |e| Problem::bad_request("DIGEST_INVALID", e);
    if let Some(digest) = call.query.get("mount") {
        let digest = parse(digest).map_err(invalid)?;
        if mount(call, repository, digest).await? {
            return Ok(created(named, &digest));
        }
    }
    let digest = call.query.get("digest").map(parse).transpose().map_err(invalid)?;
    let name = new_name()?;
    let upload = shared.tree.begin_upload(repository, &name).await;
    let upload = upload.map_err(|e| Problem::local(&e))?;
    match digest {
        Some(digest) if call.query.get("mount").is_none() => {
            let whole = WholeBlob { digest, size: call.length() };
            let upload = match receive(call, upload, body, None, Some(whole)).await {
                Ok(upload) => upload,
                Err(problem) => {
                    // Nobody knows its name.
                    remove(call, repository, &name).await;
                    return Err(problem);
                }
            };
            finish(call, named, upload, digest).await
        }
        _ => {
            upload.rest().await;
            let mut reply = empty(StatusCode::ACCEPTED);
            describe(&mut reply, named, &name, 0);
            Ok(reply)
        }
    }
}

/// `GET`: how much has come.
pub(super) async fn status(call: &Call, named: &Named, session: &str) -> Result<Reply> {
    let repository = &named.repository;
    call.shared.check(&call.user, Action::Push, repository)?;
    let size = size(call, repository, session)?;
    let mut reply = empty(StatusCode::NO_CONTENT);
    describe(&mut reply, named, session, size);
    reply.headers_mut().remove(CONTENT_LENGTH);
    Ok(reply)
}

/// `PATCH`: the next piece.
pub(super) async fn patch(
    call: &Call,
    named: &Named,
    session: &str,
    body: RequestBody,
) -> Result<Reply> {
    let repository = &named.repository;
    call.shared.check(&call.user, Action::Push, repository)?;
    call.check_writable("GET")?;
    let upload = resume(call, named, session, body, None).await?;
    let size = upload.size();
    upload.rest().await;
    let mut reply = empty(StatusCode::ACCEPTED);
    describe(&mut reply, named, session, size);
    Ok(reply)
}

/// `PUT`: the last piece, which may be empty, and the digest of everything.
pub(super) async fn put(
    call: &Call,
    named: &Named,
    session: &str,
    body: RequestBody,
) -> Result<Reply> {
    let repository = &named.repository;
    call.shared.check(&call.user, Action::Push, repository)?;
    call.check_writable("GET")?;
    let digest = call
        .query
        .get("digest")
        .ok_or_else(|| Problem::bad_request("DIGEST_INVALID", "the digest is missing (digest=)"))?;
    let digest: Digest = digest.parse().map_err(|e| Problem::bad_request("DIGEST_INVALID", e))?;
    let upload = resume(call, named, session, body, Some(digest)).await?;
    finish(call, named, upload, digest).await
}

/// `DELETE`: nobody goes on with it.
pub(super) async fn cancel(call: &Call, named: &Named, session: &str) -> Result<Reply> {
    let repository = &named.repository;
    call.shared.check(&call.user, Action::Push, repository)?;
    call.check_writable("GET")?;
    let upload = take(call, repository, session).await?;
    upload.remove().await.map_err(|e| Problem::local(&e))?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Adds the body of a request to the upload `session`, which goes on where it is. It is the last request if it says the
/// `digest` of everything.
async fn resume(
    call: &Call,
    named: &Named,
    session: &str,
    body: RequestBody,
    digest: Option<Digest>,
) -> Result<Box<dyn Upload>> {
    let upload = take(call, &named.repository, session).await?;
    match check_range(call, named, session, upload.size()) {
        Ok(limit) => {
            let rest = limit.or(call.length());
            let size = rest.map(|rest| upload.size().saturating_add(rest));
            let whole = digest.map(|digest| WholeBlob { digest, size });
            receive(call, upload, body, limit, whole).await
        }
        Err(problem) => {
            upload.rest().await;
            Err(problem)
        }
    }
}

async fn take(call: &Call, repository: &Repository, session: &str) -> Result<Box<dyn Upload>> {
    match is_upload_name(session) {
        true => call.shared.resume_upload(repository, session).await,
        false => Err(upload_unknown()),
    }
}

async fn remove(call: &Call, repository: &Repository, session: &str) {
    if let Ok(upload) = take(call, repository, session).await {
        // What stays is removed when it is old.
        let _ = upload.remove().await;
    }
}

fn size(call: &Call, repository: &Repository, session: &str) -> Result<u64> {
    let is_name = is_upload_name(session);
    let size = is_name.then(|| call.shared.tree.upload_bytes(repository, session)).flatten();
    size.ok_or_else(upload_unknown)
}

/// How many bytes the request may bring, by its `Content-Range`, which has to begin where the upload ends.
fn check_range(call: &Call, named: &Named, session: &str, size: u64) -> Result<Option<u64>> {
    let Some(text) = call.header(CONTENT_RANGE) else { return Ok(None) };
    let unsatisfiable = |message: String| {
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        Problem::new(status, "BLOB_UPLOAD_INVALID", message)
            .header(LOCATION, &location(named, &format!("blobs/uploads/{session}")))
            .header(RANGE, &come(size))
            .header(header::UPLOAD_UUID, session)
    };
    let Some(Range { start, end }) = range::chunk(text) else {
        return Err(unsatisfiable("Content-Range is written `first-last`".to_owned()));
    };
    if start != size {
        return Err(unsatisfiable(format!("{size} bytes have come, and this begins at {start}")));
    }
    let length = end - start;
    match call.length().filter(|stated| *stated != length) {
        Some(stated) => Err(Problem::bad_request(
            "SIZE_INVALID",
            format_args!("Content-Range says {length} bytes, and Content-Length {stated}"),
        )),
        None => Ok(Some(length)),
    }
}

/// Adds the body of a request to an upload. What came before an error stays.
async fn receive(
    call: &Call,
    upload: Box<dyn Upload>,
    body: RequestBody,
    limit: Option<u64>,
    whole: Option<WholeBlob>,
) -> Result<Box<dyn Upload>> {
    if call.length() == Some(0) && limit.is_none() {
        return Ok(upload);
    }
    let permit = timeout(STALL_TIMEOUT, call.shared.uploads.acquire()).await;
    let Ok(Ok(_permit)) = permit else {
        return Err(Problem::unavailable("too many uploads are under way"));
    };
    let before = upload.size();
    let stream = Sent { body, counter: call.shared.counts.received.clone() };
    match upload.append(Box::new(stream), limit, whole).await {
        Ok(upload) => match limit.filter(|limit| before + limit != upload.size()) {
            None => Ok(upload),
            Some(limit) => Err(Problem::bad_request(
                "SIZE_INVALID",
                format_args!(
                    "Content-Range says {limit} bytes, and {} came",
                    upload.size() - before
                ),
            )),
        },
        Err(error) => Err(match error.kind() {
            Kind::Size { .. } => {
                Problem::bad_request("SIZE_INVALID", "more came than Content-Range says")
            }
            Kind::Interrupted(_) => Problem::bad_request("BLOB_UPLOAD_INVALID", error),
            Kind::Stalled(_) => {
                Problem::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", error)
            }
            _ => Problem::local(&error),
        }),
    }
}

/// Publishes an upload.
async fn finish(
    call: &Call,
    named: &Named,
    upload: Box<dyn Upload>,
    digest: Digest,
) -> Result<Reply> {
    let _hold = call.shared.hold().await?;
    upload.publish(&digest).await.map_err(|error| match error.kind() {
        Kind::Digest { found, .. } => Problem::bad_request(
            "DIGEST_INVALID",
            format_args!("the digest of what has come is {found}, not {digest}"),
        ),
        _ => Problem::local(&error),
    })?;
    Ok(created(named, &digest))
}

/// Brings a blob that is here already into the repository, if the user may pull it from where it is. Whether it was.
async fn mount(call: &Call, repository: &Repository, digest: Digest) -> Result<bool> {
    let shared = &call.shared;
    let from = call.query.get("from").filter(|from| !from.is_empty());
    let _hold = shared.hold().await?;
    let size = match from {
        Some(from) => {
            let Ok(named) = shared.names.parse(from, call.query.namespace()) else {
                return Ok(false);
            };
            let source = shared.to_read(&call.user, &named).await?;
            if !shared.allows(&call.user, Action::Pull, &source) {
                return Ok(false);
            }
            shared.known_blob(&source, &digest).await?
        }
        None => find_anywhere(call, repository, &digest).await?,
    };
    let Some(size) = size else { return Ok(false) };
    let adopted = shared.tree.adopt(repository, &digest, size).await;
    adopted.map_err(|e| Problem::local(&e))
}

/// The size of a blob, if it is in a repository that the user may pull from. Of those that nobody has asked for lately
/// it is not found out: a client that gets no mount brings the blob.
async fn find_anywhere(
    call: &Call,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<u64>> {
    let shared = &call.shared;
    let failed = |e| Problem::local(&e);
    let Some(bytes) = shared.tree.blob_bytes(digest).await.map_err(failed)? else {
        return Ok(None);
    };
    if shared.access.all_may_pull() || shared.known_blob(repository, digest).await?.is_some() {
        return Ok(Some(bytes));
    }
    for other in shared.tree.holders(digest).await.map_err(failed)? {
        if shared.allows(&call.user, Action::Pull, &other)
            && shared.known_blob(&other, digest).await? == Some(bytes)
        {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// The answer that a blob is here.
fn created(named: &Named, digest: &Digest) -> Reply {
    let mut reply = empty(StatusCode::CREATED);
    set(&mut reply, LOCATION, location(named, &format!("blobs/{digest}")));
    set(&mut reply, header::CONTENT_DIGEST, digest);
    set(&mut reply, CONTENT_LENGTH, 0);
    reply
}

/// Says where an upload goes on, and how far it is.
fn describe(reply: &mut Reply, named: &Named, session: &str, size: u64) {
    set(reply, LOCATION, location(named, &format!("blobs/uploads/{session}")));
    set(reply, RANGE, come(size));
    set(reply, header::UPLOAD_UUID, session);
    set(reply, CONTENT_LENGTH, 0);
}

/// Which bytes have come, both ends inclusive; nothing and one byte look the same, as everywhere.
fn come(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

/// A name that nobody can guess: a UUID of version 4 (RFC 9562), as the distribution specification wants it ("Pushing a
/// blob monolithically").
fn new_name() -> Result<String> {
    let mut bytes = [0; 16];
    let read = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    match read {
        Ok(16) => {
            bytes[6] = bytes[6] & 0x0f | 0x40;
            bytes[8] = bytes[8] & 0x3f | 0x80;
            let parts = [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex::encode(&bytes[part]));
            Ok(parts.join("-"))
        }
        _ => Err(Problem::unavailable("there is no randomness")),
    }
}

/// The body of a request.
struct Sent {
    body: RequestBody,
    counter: Counter,
}

#[async_trait]
impl ByteStream for Sent {
    async fn next(&mut self) -> backend::Result<Option<Bytes>> {
        let error = |kind| Error::new(CLIENT, "receiving an upload", kind);
        loop {
            match timeout(STALL_TIMEOUT, self.body.frame()).await {
                Err(_) => return Err(error(Kind::Stalled(STALL_TIMEOUT))),
                Ok(None) => return Ok(None),
                Ok(Some(Err(e))) => return Err(error(Kind::Interrupted(e.to_string()))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.counter.inc_by(data.len() as u64);
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}
