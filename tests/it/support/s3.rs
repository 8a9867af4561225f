//! An imitation of S3 inside the test process: objects in memory, requests that are counted, and faults on demand.
//!
//! It has what imgfs uses: objects with ranges and conditions, lists, and uploads in parts. Signatures are looked at
//! only as far as they have to be there.

use super::http::{After, Connection, Request, Server};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const BUCKET: &str = "bucket";

/// What goes wrong with the next request of a kind.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// The method, and a part of the path or query.
    pub(crate) method: &'static str,
    pub(crate) part: &'static str,
    /// The status of the answer; 0 to break off without one.
    pub(crate) status: u16,
    /// The code in its body.
    pub(crate) code: &'static str,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Vec<u8>, u64)>,
    uploads: BTreeMap<String, (String, BTreeMap<u32, Vec<u8>>)>,
    log: Vec<(String, String)>,
    faults: VecDeque<Fault>,
    ignores_conditions: bool,
    next: u64,
}

/// A store with one bucket.
pub(crate) struct S3 {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl S3 {
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let server = Server::start({
            let state = state.clone();
            move |request, connection| answer(&state, request, connection)
        });
        Self { server, state }
    }

    /// One that takes `If-Match` and `If-None-Match` for nothing.
    pub(crate) fn without_conditions() -> Self {
        let store = Self::start();
        store.state().ignores_conditions = true;
        store
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned")
    }

    /// What the environment of a process is to have that uses it.
    pub(crate) fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.server.address())),
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }

    /// `s3://bucket/prefix`
    pub(crate) fn place(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    pub(crate) fn keys(&self) -> BTreeSet<String> {
        self.state().objects.keys().cloned().collect()
    }

    pub(crate) fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.state().objects.get(key).map(|(bytes, _)| bytes.clone())
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let mut state = self.state();
        state.next += 1;
        let tag = state.next;
        state.objects.insert(key.to_owned(), (bytes.to_vec(), tag));
    }

    pub(crate) fn remove(&self, key: &str) {
        self.state().objects.remove(key);
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    pub(crate) fn faults_left(&self) -> usize {
        self.state().faults.len()
    }

    /// Uploads in parts that have neither been completed nor aborted.
    pub(crate) fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// Fails no more.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    /// What a store does that is killed: it has lost uploads that were not complete.
    pub(crate) fn lose_uploads(&self) {
        self.state().uploads.clear();
    }

    /// Forgets which requests there were.
    pub(crate) fn clear_log(&self) {
        self.server.settle();
        self.state().log.clear();
    }

    /// How many requests there were with this method and this text in their path or query.
    pub(crate) fn requests(&self, method: &str, part: &str) -> usize {
        self.server.settle();
        self.seen(method, part)
    }

    /// The same, of those that have come so far, while others come.
    pub(crate) fn seen(&self, method: &str, part: &str) -> usize {
        self.state().log.iter().filter(|(m, target)| m == method && target.contains(part)).count()
    }

    /// All requests, for messages.
    pub(crate) fn log(&self) -> String {
        let state = self.state();
        state.log.iter().fold(String::new(), |mut text, (method, target)| {
            let _ = writeln!(text, "{method} {target}");
            text
        })
    }
}

fn answer(
    state: &Mutex<State>,
    request: &Request,
    connection: &mut Connection<'_>,
) -> io::Result<After> {
    let mut state = state.lock().expect("never poisoned");
    let query: Vec<String> =
        request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let target = format!("{}?{}", request.path, query.join("&"));
    state.log.push((request.method.clone(), target.clone()));
    let is_it = |fault: &Fault| fault.method == request.method && target.contains(fault.part);
    if let Some(at) = state.faults.iter().position(is_it) {
        let fault = state.faults.remove(at).expect("it is there");
        if fault.status == 0 {
            return Ok(After::Reset);
        }
        let body = format!("<Error><Code>{}</Code><Message>a fault</Message></Error>", fault.code);
        // The answer to HEAD has no body.
        let body = if request.method == "HEAD" { "" } else { &body };
        return connection.respond(fault.status, &[], body.as_bytes());
    }
    if request.header("authorization").is_none() {
        return connection.respond(403, &[], b"<Error><Code>AccessDenied</Code></Error>");
    }
    let path = request.path.trim_start_matches('/');
    let Some(key) = path.strip_prefix(BUCKET).map(|rest| rest.trim_start_matches('/').to_owned())
    else {
        return connection.respond(404, &[], b"<Error><Code>NoSuchBucket</Code></Error>");
    };
    match (request.method.as_str(), request.query("uploadId")) {
        ("GET", _) if key.is_empty() => list(&state, request, connection),
        ("GET" | "HEAD", _) => get(&state, &key, request, connection),
        ("POST", None) => begin(&mut state, &key, connection),
        ("PUT", Some(upload)) => part(&mut state, upload, request, connection),
        ("POST", Some(upload)) => complete(&mut state, upload, request, connection),
        ("DELETE", Some(upload)) => {
            state.uploads.remove(upload);
            connection.respond(204, &[], b"")
        }
        ("DELETE", None) => {
            state.objects.remove(&key);
            connection.respond(204, &[], b"")
        }
        ("PUT", None) => put(&mut state, &key, request, connection),
        _ => connection.respond(405, &[], b""),
    }
}

fn etag(number: u64) -> String {
    format!("\"{number:032x}\"")
}

fn get(
    state: &State,
    key: &str,
    request: &Request,
    connection: &mut Connection<'_>,
) -> io::Result<After> {
    let Some((bytes, tag)) = state.objects.get(key) else {
        let body =
            if request.method == "HEAD" { "" } else { "<Error><Code>NoSuchKey</Code></Error>" };
        return connection.respond(404, &[], body.as_bytes());
    };
    let mut headers = vec![
        ("ETag".to_owned(), etag(*tag)),
        ("Last-Modified".to_owned(), "Thu, 01 Jan 2026 00:00:00 GMT".to_owned()),
        ("Accept-Ranges".to_owned(), "bytes".to_owned()),
    ];
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes="));
    let (status, part) = match range.and_then(|range| range.split_once('-')) {
        Some((from, to)) => {
            let from: usize = from.parse().unwrap_or(0);
            let to = to.parse().map_or(bytes.len(), |to: usize| (to + 1).min(bytes.len()));
            headers.push((
                "Content-Range".to_owned(),
                format!("bytes {from}-{}/{}", to - 1, bytes.len()),
            ));
            (206, &bytes[from..to])
        }
        None => (200, &bytes[..]),
    };
    headers.push(("Content-Length".to_owned(), part.len().to_string()));
    connection.head(status, &headers)?;
    if request.method == "GET" {
        connection.write(part)?;
    }
    Ok(After::KeepAlive)
}

fn put(
    state: &mut State,
    key: &str,
    request: &Request,
    connection: &mut Connection<'_>,
) -> io::Result<After> {
    let known = state.objects.get(key).map(|(_, tag)| etag(*tag));
    let is_refused = request.header("if-none-match").is_some_and(|_| known.is_some())
        || request.header("if-match").is_some_and(|wanted| known.as_deref() != Some(wanted));
    if is_refused && !state.ignores_conditions {
        return connection.respond(412, &[], b"<Error><Code>PreconditionFailed</Code></Error>");
    }
    state.next += 1;
    let tag = state.next;
    state.objects.insert(key.to_owned(), (request.body.clone(), tag));
    connection.respond(200, &[("ETag", &etag(tag))], b"")
}

fn begin(state: &mut State, key: &str, connection: &mut Connection<'_>) -> io::Result<After> {
    state.next += 1;
    let upload = format!("upload-{}", state.next);
    state.uploads.insert(upload.clone(), (key.to_owned(), BTreeMap::new()));
    let body = format!(
        "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{key}</Key><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
    );
    connection.respond(200, &[], body.as_bytes())
}

fn part(
    state: &mut State,
    upload: &str,
    request: &Request,
    connection: &mut Connection<'_>,
) -> io::Result<After> {
    let number = request.query("partNumber").and_then(|number| number.parse().ok()).unwrap_or(0);
    let Some((_, parts)) = state.uploads.get_mut(upload) else {
        return connection.respond(404, &[], b"<Error><Code>NoSuchUpload</Code></Error>");
    };
    parts.insert(number, request.body.clone());
    connection.respond(200, &[("ETag", &etag(u64::from(number)))], b"")
}

fn complete(
    state: &mut State,
    upload: &str,
    request: &Request,
    connection: &mut Connection<'_>,
) -> io::Result<After> {
    let Some((key, parts)) = state.uploads.remove(upload) else {
        return connection.respond(404, &[], b"<Error><Code>NoSuchUpload</Code></Error>");
    };
    let named = String::from_utf8_lossy(&request.body).matches("<PartNumber>").count();
    let last = parts.len();
    let is_short = parts.values().take(last.saturating_sub(1)).any(|part| part.len() < 5 << 20);
    if named != last || is_short {
        return connection.respond(400, &[], b"<Error><Code>EntityTooSmall</Code></Error>");
    }
    state.next += 1;
    let tag = state.next;
    state.objects.insert(key.clone(), (parts.into_values().flatten().collect(), tag));
    let body = format!(
        "<CompleteMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{key}</Key><ETag>{}</ETag></CompleteMultipartUploadResult>",
        etag(tag).replace('"', "&quot;")
    );
    connection.respond(200, &[], body.as_bytes())
}

fn list(state: &State, request: &Request, connection: &mut Connection<'_>) -> io::Result<After> {
    let prefix = request.query("prefix").unwrap_or_default();
    let delimiter = request.query("delimiter").filter(|d| !d.is_empty());
    let mut body =
        format!("<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>");
    let mut common = BTreeSet::new();
    for (key, (bytes, tag)) in state.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
        let below = delimiter
            .and_then(|d| key[prefix.len()..].find(d).map(|at| prefix.len() + at + d.len()));
        if let Some(end) = below {
            common.insert(key[..end].to_owned());
            continue;
        }
        let _ = write!(
            body,
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
            etag(*tag).replace('"', "&quot;"),
            bytes.len()
        );
    }
    for dir in common {
        let _ = write!(body, "<CommonPrefixes><Prefix>{dir}</Prefix></CommonPrefixes>");
    }
    body += "</ListBucketResult>";
    connection.respond(200, &[("Content-Type", "application/xml")], body.as_bytes())
}
