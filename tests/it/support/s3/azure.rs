//! What Azure Blob Storage does in another way than S3: blocks that are put together at the end, and its lists.

use super::{State, etag};
use crate::support::http::{After, Connection, Request};
use std::fmt::Write as _;
use std::io;

pub(super) fn answer(
    state: &mut State,
    key: &str,
    request: &Request,
    connection: &mut Connection<'_>,
) -> io::Result<After> {
    match (request.method.as_str(), request.query("comp")) {
        ("GET", Some("list")) => list(state, request, connection),
        ("GET" | "HEAD", None) => super::get(state, key, request, connection),
        ("PUT", Some("block")) => block(state, key, request, connection),
        ("PUT", Some("blocklist")) => commit(state, key, request, connection),
        ("PUT", None) if request.header("x-ms-blob-type") == Some("BlockBlob") => {
            super::put(state, key, request, connection)
        }
        ("DELETE", None) => {
            state.objects.remove(key);
            connection.respond(202, &[], b"")
        }
        _ => connection.respond(400, &[], b"<Error><Code>UnsupportedQueryParameter</Code></Error>"),
    }
}

/// Blocks belong to the blob, and not to who has sent them. They go when a list of blocks makes the blob of others.
fn block(
    state: &mut State,
    key: &str,
    request: &Request,
    connection: &mut Connection<'_>,
) -> io::Result<After> {
    let id = request.query("blockid").unwrap_or_default().to_owned();
    let blocks = state.blocks.entry(key.to_owned()).or_default();
    blocks.retain(|(other, _)| *other != id);
    blocks.push((id, request.body.clone()));
    connection.respond(201, &[], b"")
}

fn commit(
    state: &mut State,
    key: &str,
    request: &Request,
    connection: &mut Connection<'_>,
) -> io::Result<After> {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let named = body.split("<Uncommitted>").skip(1).filter_map(|rest| rest.split('<').next());
    let blocks = state.blocks.get(key).map(Vec::as_slice).unwrap_or_default();
    let found: Option<Vec<&Vec<u8>>> = named
        .map(|name| blocks.iter().find(|(id, _)| id == name).map(|(_, content)| content))
        .collect();
    let Some(content) = found else {
        return connection.respond(400, &[], b"<Error><Code>InvalidBlockList</Code></Error>");
    };
    let content: Vec<u8> = content.into_iter().flatten().copied().collect();
    state.blocks.remove(key);
    let tag = state.next_tag();
    state.objects.insert(key.to_owned(), (content, tag));
    let modified = httpdate::fmt_http_date(state.modified(key));
    connection.respond(201, &[("ETag", &etag(tag)), ("Last-Modified", &modified)], b"")
}

fn list(state: &State, request: &Request, connection: &mut Connection<'_>) -> io::Result<After> {
    let (objects, common) = state.below(request);
    let mut body = "<EnumerationResults><Blobs>".to_owned();
    for (key, size, tag) in objects {
        let _ = write!(
            body,
            "<Blob><Name>{key}</Name><Properties><Last-Modified>{}</Last-Modified><Etag>{}</Etag><Content-Length>{size}</Content-Length><Content-Type>application/octet-stream</Content-Type></Properties></Blob>",
            httpdate::fmt_http_date(state.modified(key)),
            etag(tag).replace('"', "&quot;"),
        );
    }
    for dir in common {
        let _ = write!(body, "<BlobPrefix><Name>{dir}</Name></BlobPrefix>");
    }
    body += "</Blobs><NextMarker/></EnumerationResults>";
    connection.respond(200, &[("Content-Type", "application/xml")], body.as_bytes())
}
