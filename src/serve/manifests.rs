//! Manifests: given out byte for byte as they are stored, and taken when all is there that they name.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyStream, LengthLimitError, Limited};
use hyper::{
    StatusCode,
    header::{AGE, CONTENT_LENGTH, CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH, LOCATION, WARNING},
};
use serde_json::json;
use tokio::time::timeout;

use super::{
    access::Action,
    connection::STALL_TIMEOUT,
    incoming::RequestBody,
    names::Named,
    reply::{Problem, Reply, Result, empty, full, header, set},
    route::Target,
    service::{Call, etag_matches, location, set_digest},
    sparse::present_platforms,
    state::{FoundManifest, ManifestPlace},
    tree::{Condition, Put, Taken},
};
use crate::image::{
    Algorithm, Descriptor, Digest, MAX_MANIFEST_BYTES, Manifest, MediaType, Repository, is_tag,
};

/// How long all of a manifest may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);

/// Of how many things that a manifest names is asked at the same time whether they are there.
const ASKED_AT_ONCE: usize = 16;

/// Tags that one request may set.
const MAX_TAGS: usize = 64;

/// `GET` and `HEAD` of a manifest.
pub(super) async fn get(call: &Call, named: &Named, target: &Target) -> Result<Reply> {
    let repository = call.shared.to_read(&call.user, named).await?;
    call.shared.check(&call.user, Action::Pull, &repository)?;
    let found = call.shared.manifest(&repository, target).await?;
    let is_known = call.header(IF_NONE_MATCH).is_some_and(|h| etag_matches(h, Some(&found.digest)));
    let mut reply = match (is_known, call.is_head()) {
        (true, _) => empty(StatusCode::NOT_MODIFIED),
        (false, true) => {
            let mut reply = empty(StatusCode::OK);
            set(&mut reply, CONTENT_TYPE, &found.media_type);
            set(&mut reply, CONTENT_LENGTH, found.size);
            reply
        }
        (false, false) => {
            full(StatusCode::OK, &found.media_type, bytes(call, &repository, &found).await?)
        }
    };
    set_digest(&mut reply, &found.digest);
    if let Some(stale) = &found.stale {
        call.shared.counts.stale.inc();
        set(&mut reply, AGE, stale.age.as_secs());
        // "With a warn-code of 299, a warn-agent of -" (distribution specification, "Warnings").
        set(&mut reply, WARNING, format_args!("299 - \"{}\"", stale.reason));
    }
    Ok(reply)
}

async fn bytes(call: &Call, repository: &Repository, found: &FoundManifest) -> Result<Bytes> {
    match &found.place {
        ManifestPlace::Memory(manifest) => Ok(manifest.bytes().clone()),
        ManifestPlace::Tree => match call.shared.tree.manifest(repository, &found.digest).await {
            Ok(bytes) => Ok(bytes),
            Err(error) => {
                // It has gone, or been damaged, since it was indexed.
                tracing::warn!("{error}");
                Err(Problem::manifest_unknown(found.digest))
            }
        },
    }
}

/// `PUT` of a manifest.
pub(super) async fn put(
    call: &Call,
    named: &Named,
    target: Target,
    body: RequestBody,
) -> Result<Reply> {
    let shared = &call.shared;
    let repository = &named.repository;
    shared.check(&call.user, Action::Push, repository)?;
    call.check_writable("GET, HEAD")?;
    let tags = wanted_tags(call, &target)?;
    let expected = wanted_digest(call, &target)?;
    let bytes = read(call, body).await?;
    let manifest = parse(call, bytes, expected)?;
    let digest = manifest.digest();

    let _hold = shared.hold().await?;
    let lacking = check_parts(call, repository, &manifest).await?;
    let failed = |e| Problem::local(&e);
    let sparse = match lacking.children {
        true => {
            let platforms = present_platforms(&*shared.tree, repository, &manifest).await;
            Some(platforms.map_err(failed)?)
        }
        false => None,
    };
    let how = Put {
        tags,
        by_digest: matches!(target, Target::Digest(_)),
        condition: Condition {
            matches: call.header(IF_MATCH).map(str::to_owned),
            none_matches: call.header(IF_NONE_MATCH).map(str::to_owned),
        },
        lacking: lacking.blobs,
        sparse,
    };
    match shared.tree.put(repository, &manifest, &how).await.map_err(failed)? {
        Taken::Yes => {}
        Taken::No(there) => return Err(condition_fails(there)),
    }
    let tags = how.tags;
    if let Some(through) = &shared.through {
        for tag in &tags {
            through.forget_tag(repository, tag);
        }
    }

    let mut reply = empty(StatusCode::CREATED);
    set(&mut reply, LOCATION, location(named, &format!("manifests/{digest}")));
    set(&mut reply, header::CONTENT_DIGEST, digest);
    set(&mut reply, CONTENT_LENGTH, 0);
    if let Some(subject) = manifest.subject() {
        set(&mut reply, header::OCI_SUBJECT, subject.digest);
    }
    if call.query.get("tag").is_some() {
        set(&mut reply, header::OCI_TAG, tags.join(", "));
    }
    Ok(reply)
}

/// The tags that are to lead to the manifest.
fn wanted_tags(call: &Call, target: &Target) -> Result<Vec<String>> {
    let mut tags: Vec<String> = match target {
        Target::Tag(tag) => vec![tag.clone()],
        Target::Digest(_) => Vec::new(),
    };
    for tag in call.query.all("tag") {
        if !is_tag(tag) {
            let message = format!("`{tag}` is no tag");
            return Err(Problem::bad_request("MANIFEST_INVALID", message));
        }
        if !tags.iter().any(|own| own == tag) {
            tags.push(tag.to_owned());
        }
    }
    match tags.len() {
        count if count > MAX_TAGS => {
            let message = format!("{count} tags are more than {MAX_TAGS}");
            Err(Problem::new(StatusCode::URI_TOO_LONG, "MANIFEST_INVALID", message))
        }
        _ => Ok(tags),
    }
}

/// The digest that the manifest must have.
fn wanted_digest(call: &Call, target: &Target) -> Result<Option<Digest>> {
    let stated = call.query.get("digest").map(str::parse::<Digest>).transpose();
    let stated = stated.map_err(|e| Problem::bad_request("DIGEST_INVALID", e))?;
    match (target, stated) {
        (Target::Digest(digest), Some(stated)) if *digest != stated => {
            Err(Problem::bad_request("DIGEST_INVALID", "two different digests are stated"))
        }
        (Target::Digest(digest), _) => Ok(Some(*digest)),
        (Target::Tag(_), stated) => Ok(stated),
    }
}

/// Reads the body, of at most 4 MiB.
async fn read(call: &Call, body: RequestBody) -> Result<Bytes> {
    let slow = |_| {
        let status = StatusCode::REQUEST_TIMEOUT;
        Err(Problem::new(status, "MANIFEST_INVALID", "it has not come to its end in five minutes"))
    };
    timeout(BODY_TIMEOUT, read_all(call, body)).await.unwrap_or_else(slow)
}

async fn read_all(call: &Call, body: RequestBody) -> Result<Bytes> {
    let too_large = || {
        let message = format!("a manifest has at most {MAX_MANIFEST_BYTES} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", message)
    };
    if call.length().is_some_and(|length| length > MAX_MANIFEST_BYTES as u64) {
        return Err(too_large());
    }
    let broken = || Problem::bad_request("MANIFEST_INVALID", "it has not come to its end");
    let mut body = BodyStream::new(Limited::new(body, MAX_MANIFEST_BYTES));
    let mut bytes = Vec::new();
    loop {
        match timeout(STALL_TIMEOUT, body.next()).await {
            Err(_) => {
                let status = StatusCode::REQUEST_TIMEOUT;
                return Err(Problem::new(
                    status,
                    "MANIFEST_INVALID",
                    "nothing has come for a minute",
                ));
            }
            Ok(None) => return Ok(bytes.into()),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    bytes.extend_from_slice(&data);
                }
            }
            Ok(Some(Err(error))) if error.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Some(Err(_))) => return Err(broken()),
        }
    }
}

fn parse(call: &Call, bytes: Bytes, expected: Option<Digest>) -> Result<Manifest> {
    let invalid = |message: String| Problem::bad_request("MANIFEST_INVALID", message);
    let algorithm = expected.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    if let Some(expected) = expected {
        let found = Digest::of(algorithm, &bytes);
        if found != expected {
            let message = format!("its digest is {found}, not {expected}");
            return Err(Problem::bad_request("DIGEST_INVALID", message));
        }
    }
    let content_type = call
        .header(CONTENT_TYPE)
        .map(|header| header.split(';').next().unwrap_or_default().trim().to_owned());
    let content_type = content_type.filter(|text| !text.is_empty());
    let manifest = Manifest::parse_as(algorithm, bytes, content_type.as_deref())
        .map_err(|e| invalid(e.to_string()))?;
    let Some(content_type) = content_type else { return Ok(manifest) };
    let said = manifest.media_type();
    // What it does not say itself has been taken from the header, if that is a type of manifests.
    let agrees = said == content_type
        || (MediaType::parse(&content_type).is_none() && !declares_type(&manifest));
    match agrees {
        true => Ok(manifest),
        false => {
            Err(invalid(format!("its mediaType is {said}, and its Content-Type {content_type}")))
        }
    }
}

fn declares_type(manifest: &Manifest) -> bool {
    let json: Option<serde_json::Value> = serde_json::from_slice(manifest.bytes()).ok();
    json.is_some_and(|json| json["mediaType"].as_str().is_some_and(|text| !text.is_empty()))
}

/// The name leads to something else than the client's condition says.
fn condition_fails(there: Option<Digest>) -> Problem {
    let leads =
        there.map_or("it is not there".to_owned(), |digest| format!("it leads to {digest}"));
    let message = format!("the condition fails: {leads}");
    Problem::new(StatusCode::PRECONDITION_FAILED, "MANIFEST_INVALID", message)
}

/// What a manifest names, and is taken without.
#[derive(Default)]
struct Lacking {
    /// Whether children of an index are.
    children: bool,
    /// The blobs that are not in the repository.
    blobs: Vec<Digest>,
}

/// Fails unless everything is there that the manifest names, but for what it may lack.
async fn check_parts(call: &Call, repository: &Repository, manifest: &Manifest) -> Result<Lacking> {
    let shared = &call.shared;
    let sparse = shared.abilities.sparse;
    let mut missing = Vec::new();
    let mut lacking = Lacking::default();
    let blobs = stream::iter(manifest.blobs().cloned()).map(|blob| async move {
        let bytes = shared.tree.present_bytes(repository, &blob.digest).await;
        bytes.map(|bytes| (blob, bytes)).map_err(|e| Problem::local(&e))
    });
    let mut blobs = blobs.buffered(ASKED_AT_ONCE);
    while let Some((blob, bytes)) = blobs.try_next().await? {
        if bytes == Some(blob.size) {
            continue;
        }
        // Whoever has it in another size has not been told the truth.
        match is_elsewhere(&blob) || sparse {
            true if bytes.is_none() => lacking.blobs.push(blob.digest),
            true if is_elsewhere(&blob) => {}
            _ => missing.push(blob.digest),
        }
    }
    let children = manifest.children().iter().map(|child| child.digest);
    let children = stream::iter(children.collect::<Vec<_>>()).map(|child| async move {
        let found = shared.find(repository, &Target::Digest(child)).await?;
        Ok::<_, Problem>((child, found.is_some()))
    });
    let mut children = children.buffered(ASKED_AT_ONCE);
    while let Some((child, is_here)) = children.try_next().await? {
        match sparse {
            _ if is_here => {}
            true => lacking.children = true,
            false => missing.push(child),
        }
    }
    if missing.is_empty() {
        return Ok(lacking);
    }
    missing.sort_unstable();
    missing.dedup();
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let message = format!("it names what is not in this repository: {}", missing.join(", "));
    Err(Problem::new(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", message)
        .detail(json!({ "digests": missing })))
}

/// Whether a layer need not be here: its makers have it.
fn is_elsewhere(blob: &Descriptor) -> bool {
    let kind = &blob.media_type;
    !blob.urls.is_empty() || kind.contains(".nondistributable.") || kind.contains(".foreign.")
}

/// `DELETE` of a tag, or of a manifest with its tags.
pub(super) async fn delete(call: &Call, named: &Named, target: &Target) -> Result<Reply> {
    let shared = &call.shared;
    let repository = &named.repository;
    shared.check(&call.user, Action::Delete, repository)?;
    call.check_deletable("GET, HEAD, PUT")?;
    let _hold = shared.hold().await?;
    let failed = |e| Problem::local(&e);
    let Some(entry) = shared.find(repository, target).await? else {
        return Err(match target {
            Target::Tag(tag) => Problem::manifest_unknown(repository.tagged(tag)),
            Target::Digest(digest) => Problem::manifest_unknown(repository.pinned(*digest)),
        });
    };
    let tags = match target {
        Target::Tag(tag) => {
            shared.tree.remove_tag(repository, tag).await.map_err(failed)?;
            vec![tag.clone()]
        }
        Target::Digest(_) => {
            shared.tree.remove_manifest(repository, &entry).await.map_err(failed)?
        }
    };
    if let Some(through) = &shared.through {
        for tag in &tags {
            through.forget_tag(repository, tag);
        }
    }
    let mut reply = empty(StatusCode::ACCEPTED);
    set(&mut reply, CONTENT_LENGTH, 0);
    Ok(reply)
}
