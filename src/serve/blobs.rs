//! Blobs: whole, in parts, and removed.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use hyper::{
    StatusCode,
    header::{
        ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_NONE_MATCH,
        IF_RANGE, LOCATION, RANGE,
    },
};
use serde_json::json;
use tokio::sync::Mutex;

use super::{
    access::Action,
    body::{Body, Segment, Source},
    names::Named,
    range::Wanted,
    reply::{Problem, Reply, Result, empty, set},
    service::{Call, etag_matches, set_digest},
    state::FoundBlob,
    tree::BlobPlace,
};
use crate::{cache::ConsistentBlob, image::Digest};

/// What a blob is called, since nobody says what it is.
const BLOB_TYPE: &str = "application/octet-stream";

/// `GET` and `HEAD` of a blob.
pub(super) async fn get(call: &Call, named: &Named, digest: Digest) -> Result<Reply> {
    let repository = call.shared.to_read(&call.user, named).await?;
    call.shared.check(&call.user, Action::Pull, &repository)?;
    let size = match call.shared.blob_bytes(&repository, digest).await {
        // Whoever pushes asks that first, and may mean a repository of ours that is not there yet.
        Err(problem)
            if call.is_head()
                && problem.is_upstream_away()
                && named.fallback.as_ref() == Some(&repository)
                && call.check_writable("").is_ok()
                && call.shared.allows(&call.user, Action::Push, &named.repository) =>
        {
            return Err(Problem::blob_unknown(digest));
        }
        size => size?,
    };
    let is_known =
        call.header(IF_NONE_MATCH).is_some_and(|header| etag_matches(header, Some(&digest)));
    // A condition that does not hold asks for everything.
    let condition = call.header(IF_RANGE).is_none_or(|header| etag_matches(header, Some(&digest)));
    let wanted = match call.header(RANGE).filter(|_| condition) {
        Some(header) => Wanted::parse(header, size),
        None => Wanted::All,
    };
    let parts = match &wanted {
        _ if call.is_head() || is_known => Vec::new(),
        Wanted::All => std::iter::once(0..size).collect(),
        Wanted::Parts(parts) => parts.clone(),
        Wanted::Nothing => Vec::new(),
    };
    let found = call.shared.blob(&repository, digest, size, &parts).await?;
    let source = match found {
        FoundBlob::Tree(BlobPlace::Elsewhere(url)) => return Ok(elsewhere(&url, &digest)),
        FoundBlob::Tree(BlobPlace::File(file, doubt)) => Source::File(file, doubt),
        FoundBlob::Tree(BlobPlace::Object(reader)) => Source::Object(Arc::new(Mutex::new(*reader))),
        FoundBlob::Cache(blob) => Source::Cached(ConsistentBlob::new(blob)),
    };
    if is_known {
        let mut reply = empty(StatusCode::NOT_MODIFIED);
        set_digest(&mut reply, &digest);
        return Ok(reply);
    }
    let blob = Blob { digest, size, source };
    let mut reply = match wanted {
        Wanted::Nothing => {
            let message = format!("the blob has {size} bytes");
            return Err(Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message)
                .header(CONTENT_RANGE, &format!("bytes */{size}")));
        }
        _ if call.is_head() => {
            let mut reply = empty(StatusCode::OK);
            set(&mut reply, CONTENT_LENGTH, size);
            set(&mut reply, CONTENT_TYPE, BLOB_TYPE);
            reply
        }
        Wanted::All => whole(call, blob).await?,
        Wanted::Parts(parts) => match &parts[..] {
            [part] => one_part(call, blob, part.clone()).await?,
            _ => several_parts(call, blob, &parts).await?,
        },
    };
    set(&mut reply, ACCEPT_RANGES, "bytes");
    set_digest(&mut reply, &digest);
    Ok(reply)
}

/// Sends the client to where the blob is. The URL holds for this blob and a while, and is nobody else's matter.
fn elsewhere(url: &str, digest: &Digest) -> Reply {
    let mut reply = empty(StatusCode::TEMPORARY_REDIRECT);
    set(&mut reply, LOCATION, url);
    set(&mut reply, CACHE_CONTROL, "no-store");
    set(&mut reply, CONTENT_LENGTH, 0);
    set_digest(&mut reply, digest);
    reply
}

/// A blob that is to be sent.
struct Blob {
    digest: Digest,
    size: u64,
    source: Source,
}

async fn whole(call: &Call, blob: Blob) -> Result<Reply> {
    let size = blob.size;
    let is_cached = matches!(blob.source, Source::Cached(_));
    let mut body = body(call, blob, vec![Segment::Part(0..size)]);
    if is_cached {
        // With too many of them, it ends when the client leaves.
        body = body.reading_on(call.shared.ends.clone().try_acquire_owned().ok());
    }
    let mut reply = Reply::new(primed(body).await?);
    set(&mut reply, CONTENT_LENGTH, size);
    set(&mut reply, CONTENT_TYPE, BLOB_TYPE);
    Ok(reply)
}

async fn one_part(call: &Call, blob: Blob, part: Range<u64>) -> Result<Reply> {
    let size = blob.size;
    let body = body(call, blob, vec![Segment::Part(part.clone())]);
    let mut reply = Reply::new(primed(body).await?);
    *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
    set(&mut reply, CONTENT_LENGTH, part.end - part.start);
    set(&mut reply, CONTENT_RANGE, content_range(&part, size));
    set(&mut reply, CONTENT_TYPE, BLOB_TYPE);
    Ok(reply)
}

/// Several parts as `multipart/byteranges` (RFC 9110, section 14.6).
async fn several_parts(call: &Call, blob: Blob, parts: &[Range<u64>]) -> Result<Reply> {
    let size = blob.size;
    // Whoever knows the digest has no reason to have it in the content.
    let boundary = format!("imgfs-{}", &blob.digest.to_hex()[..40]);
    let mut segments = Vec::with_capacity(2 * parts.len() + 1);
    for (number, part) in parts.iter().enumerate() {
        let before = if number == 0 { "" } else { "\r\n" };
        let range = content_range(part, size);
        let head = format!(
            "{before}--{boundary}\r\nContent-Type: {BLOB_TYPE}\r\nContent-Range: {range}\r\n\r\n"
        );
        segments.push(Segment::Text(head.into()));
        segments.push(Segment::Part(part.clone()));
    }
    segments.push(Segment::Text(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    let body = body(call, blob, segments);
    let length = body.length();
    let mut reply = Reply::new(primed(body).await?);
    *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
    set(&mut reply, CONTENT_LENGTH, length);
    set(&mut reply, CONTENT_TYPE, format_args!("multipart/byteranges; boundary={boundary}"));
    Ok(reply)
}

/// Waits for the first bytes of what comes from an upstream.
async fn primed(body: Body) -> Result<Body> {
    body.primed().await.map_err(|error| Problem::upstream(&error))
}

fn content_range(part: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", part.start, part.end - 1)
}

fn body(call: &Call, blob: Blob, segments: Vec<Segment>) -> Body {
    let sent = call.shared.counts.sent.clone();
    Body::parts(blob.source, segments, Arc::clone(&call.connection), sent)
}

/// `DELETE` of a blob: it leaves this repository, and the tree when nothing there needs it (`imgfs prune`).
pub(super) async fn delete(call: &Call, named: &Named, digest: Digest) -> Result<Reply> {
    let shared = &call.shared;
    let repository = &named.repository;
    shared.check(&call.user, Action::Delete, repository)?;
    call.check_deletable("GET, HEAD")?;
    let failed = |e| Problem::local(&e);
    let users = shared.tree.users(repository, &digest).await.map_err(failed)?;
    let users: Vec<String> = users.iter().map(|entry| entry.digest.to_string()).collect();
    if !users.is_empty() {
        let message = format!("it is needed here by {}", users.join(", "));
        return Err(
            Problem::method_not_allowed("GET, HEAD", message).detail(json!({ "needed_by": users }))
        );
    }
    if !shared.tree.release(repository, &digest).await.map_err(failed)? {
        return Err(Problem::blob_unknown(digest));
    }
    let mut reply = empty(StatusCode::ACCEPTED);
    set(&mut reply, CONTENT_LENGTH, 0);
    Ok(reply)
}
