//! Imitations of S3, Google Cloud Storage and Azure Blob Storage inside the test process: objects in memory, requests
//! that are counted, and faults on demand.
//!
//! They have what imgfs uses: objects with ranges and conditions, lists, and uploads in parts. Signatures are looked at
//! only as far as they have to be there. Google's store speaks as S3 does but for the conditions.

mod azure;

use super::http::{After, Connection, Request, Server};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

const BUCKET: &str = "bucket";

/// What is asked for is done, and nobody is told.
pub(crate) const LOST: u16 = 1;

/// Half of what is asked for is sent, and then the connection breaks.
pub(crate) const BROKEN: u16 = 2;

/// How old something is that is old.
const LONG_AGO: Duration = Duration::from_secs(30 * 86_400);

/// What goes wrong with the next request of a kind.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// The method, and a part of the path or query.
    pub(crate) method: &'static str,
    pub(crate) part: &'static str,
    /// The status of the answer; 0 to break off without one; [`LOST`] to do it and then to break off.
    pub(crate) status: u16,
    /// The code in its body.
    pub(crate) code: &'static str,
}

/// Whose store it is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Dialect {
    #[default]
    S3,
    Gcs,
    Azure,
}

impl Dialect {
    pub(crate) const ALL: [Self; 3] = [Self::S3, Self::Gcs, Self::Azure];
}

#[derive(Default)]
struct State {
    dialect: Dialect,
    objects: BTreeMap<String, (Vec<u8>, u64)>,
    uploads: BTreeMap<String, (String, BTreeMap<u32, Vec<u8>>)>,
    /// Azure's: what has come of a key.
    blocks: BTreeMap<String, Vec<(String, Vec<u8>)>>,
    log: Vec<(String, String)>,
    faults: VecDeque<Fault>,
    /// Keys that were written long ago.
    old: BTreeSet<String>,
    /// Whether these credentials may only read.
    is_read_only: bool,
    ignores_conditions: bool,
    next: u64,
}

impl State {
    /// When a key was written: just now, or long ago.
    fn modified(&self, key: &str) -> SystemTime {
        let age = if self.old.contains(key) { LONG_AGO } else { Duration::ZERO };
        SystemTime::now() - age
    }

    fn next_tag(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The objects below the prefix that is asked for with their sizes and tags, and what they have in common up to a
    /// delimiter.
    fn below(&self, request: &Request) -> (Vec<(&str, usize, u64)>, BTreeSet<&str>) {
        let prefix = request.query("prefix").unwrap_or_default();
        let delimiter = request.query("delimiter").filter(|d| !d.is_empty());
        let (mut objects, mut common) = (Vec::new(), BTreeSet::new());
        for (key, (bytes, tag)) in self.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let below = delimiter
                .and_then(|d| key[prefix.len()..].find(d).map(|at| prefix.len() + at + d.len()));
            match below {
                Some(end) => drop(common.insert(&key[..end])),
                None => objects.push((key.as_str(), bytes.len(), *tag)),
            }
        }
        (objects, common)
    }
}

/// A store with one bucket.
pub(crate) struct S3 {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl S3 {
    pub(crate) fn start() -> Self {
        Self::like(Dialect::S3)
    }

    pub(crate) fn like(dialect: Dialect) -> Self {
        let state = Arc::new(Mutex::new(State { dialect, ..State::default() }));
        let server = Server::start({
            let state = state.clone();
            move |request, connection| answer(&state, request, connection)
        });
        Self { server, state }
    }

    /// Takes conditions for nothing from now on.
    pub(crate) fn ignore_conditions(&self) {
        self.state().ignores_conditions = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned")
    }

    /// What the environment of a process is to have that uses it.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let url = format!("http://{}", self.server.address());
        let text = str::to_owned;
        match self.dialect() {
            Dialect::S3 => vec![
                ("AWS_ENDPOINT", url),
                ("AWS_ACCESS_KEY_ID", text("key")),
                ("AWS_SECRET_ACCESS_KEY", text("secret")),
                ("AWS_REGION", text("us-east-1")),
            ],
            Dialect::Gcs => {
                let key = r#"{"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": true}"#;
                vec![("GOOGLE_BASE_URL", url), ("GOOGLE_SERVICE_ACCOUNT_KEY", text(key))]
            }
            Dialect::Azure => vec![
                ("AZURE_STORAGE_ENDPOINT", url),
                ("AZURE_STORAGE_ACCOUNT_NAME", text("account")),
                ("AZURE_STORAGE_ACCOUNT_KEY", text("c2VjcmV0")),
            ],
        }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.state().dialect
    }

    /// `s3://bucket/prefix` and the like.
    pub(crate) fn place(&self, prefix: &str) -> String {
        let scheme = match self.dialect() {
            Dialect::S3 => "s3",
            Dialect::Gcs => "gs",
            Dialect::Azure => "az",
        };
        format!("{scheme}://{BUCKET}/{prefix}")
    }

    /// What the requests have in their queries that send a part of an object.
    pub(crate) fn of_parts(&self) -> &'static str {
        match self.dialect() {
            Dialect::S3 | Dialect::Gcs => "partNumber=",
            Dialect::Azure => "comp=block&",
        }
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
        let state = self.state();
        state.uploads.len() + state.blocks.len()
    }

    /// Fails no more.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    /// What a store does that is killed: it has lost uploads that were not complete.
    pub(crate) fn lose_uploads(&self) {
        let mut state = self.state();
        state.uploads.clear();
        state.blocks.clear();
    }

    /// From now on nothing may be written.
    pub(crate) fn make_read_only(&self) {
        self.state().is_read_only = true;
    }

    /// What was written to these keys was written long ago.
    pub(crate) fn make_old(&self, keys: impl IntoIterator<Item = String>) {
        self.state().old.extend(keys);
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

    /// How many there were at all.
    pub(crate) fn all_requests(&self) -> usize {
        self.requests("", "")
    }

    /// The same, of those that have come so far, while others come.
    pub(crate) fn seen(&self, method: &str, part: &str) -> usize {
        self.state()
            .log
            .iter()
            .filter(|(m, target)| m.starts_with(method) && target.contains(part))
            .count()
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
        match fault.status {
            0 => return Ok(After::Reset),
            BROKEN => {
                let path = request.path.trim_start_matches('/');
                let key = path.strip_prefix(BUCKET).unwrap_or_default().trim_start_matches('/');
                let bytes = state.objects.get(key).map_or(&[][..], |(bytes, _)| bytes);
                let length = bytes.len().to_string();
                // Without a tag nobody can ask for the rest and know that it is of the same object.
                let headers = [("Content-Length".to_owned(), length)];
                connection.head(200, &headers)?;
                connection.write(&bytes[..bytes.len() / 2])?;
                return Ok(After::Reset);
            }
            LOST => {
                connection.hang_up();
                return act(&mut state, request, connection);
            }
            _ => {}
        }
        let body = format!("<Error><Code>{}</Code><Message>a fault</Message></Error>", fault.code);
        // The answer to HEAD has no body.
        let body = if request.method == "HEAD" { "" } else { &body };
        return connection.respond(fault.status, &[], body.as_bytes());
    }
    act(&mut state, request, connection)
}

/// Does what is asked for.
fn act(state: &mut State, request: &Request, connection: &mut Connection<'_>) -> io::Result<After> {
    // Without a key there is nothing that clients of Google's store could send.
    let is_signed =
        request.header("authorization").is_some() || request.query("X-Amz-Signature").is_some();
    if !is_signed && state.dialect != Dialect::Gcs || state.is_read_only && request.is_write() {
        return connection.respond(403, &[], b"<Error><Code>AccessDenied</Code></Error>");
    }
    let path = request.path.trim_start_matches('/');
    let Some(key) = path.strip_prefix(BUCKET).map(|rest| rest.trim_start_matches('/').to_owned())
    else {
        return connection.respond(404, &[], b"<Error><Code>NoSuchBucket</Code></Error>");
    };
    if state.dialect == Dialect::Azure {
        return azure::answer(state, &key, request, connection);
    }
    match (request.method.as_str(), request.query("uploadId")) {
        ("GET", _) if key.is_empty() => list(state, request, connection),
        ("GET" | "HEAD", _) => get(state, &key, request, connection),
        ("POST", None) => begin(state, &key, connection),
        ("PUT", Some(upload)) => part(state, upload, request, connection),
        ("POST", Some(upload)) => complete(state, upload, request, connection),
        ("DELETE", Some(upload)) => {
            state.uploads.remove(upload);
            connection.respond(204, &[], b"")
        }
        ("DELETE", None) => {
            state.objects.remove(&key);
            connection.respond(204, &[], b"")
        }
        ("PUT", None) => match request.header("x-amz-copy-source") {
            Some(from) => copy(state, from, &key, connection),
            None => put(state, &key, request, connection),
        },
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
    if request.header("if-none-match").is_some_and(|known| known == etag(*tag)) {
        return connection.respond(304, &[("ETag", &etag(*tag))], b"");
    }
    let mut headers = vec![
        ("ETag".to_owned(), etag(*tag)),
        ("Last-Modified".to_owned(), httpdate::fmt_http_date(state.modified(key))),
        ("Accept-Ranges".to_owned(), "bytes".to_owned()),
        ("x-goog-generation".to_owned(), tag.to_string()),
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
    let known = state.objects.get(key).map(|(_, tag)| *tag);
    let has_tag = |wanted: &str| known.map(etag).as_deref() == Some(wanted);
    let is_there = request.header("if-none-match").is_some_and(|_| known.is_some());
    let has_changed = match state.dialect {
        // No generation is 0.
        Dialect::Gcs => request
            .header("x-goog-if-generation-match")
            .is_some_and(|wanted| known.unwrap_or(0).to_string() != wanted),
        _ => request.header("if-match").is_some_and(|wanted| !has_tag(wanted)),
    };
    if (is_there || has_changed) && !state.ignores_conditions {
        let (status, code) = match state.dialect {
            Dialect::Azure if is_there => (409, "BlobAlreadyExists"),
            _ => (412, "PreconditionFailed"),
        };
        let body = format!("<Error><Code>{code}</Code></Error>");
        return connection.respond(status, &[], body.as_bytes());
    }
    let tag = state.next_tag();
    state.objects.insert(key.to_owned(), (request.body.clone(), tag));
    let status = if state.dialect == Dialect::Azure { 201 } else { 200 };
    let generation = tag.to_string();
    connection.respond(status, &[("ETag", &etag(tag)), ("x-goog-generation", &generation)], b"")
}

fn copy(
    state: &mut State,
    from: &str,
    key: &str,
    connection: &mut Connection<'_>,
) -> io::Result<After> {
    let from = percent_encoding::percent_decode_str(from).decode_utf8_lossy().into_owned();
    let from = from.trim_start_matches('/').strip_prefix(BUCKET).unwrap_or_default();
    let Some((bytes, _)) = state.objects.get(from.trim_start_matches('/')).cloned() else {
        return connection.respond(404, &[], b"<Error><Code>NoSuchKey</Code></Error>");
    };
    let tag = state.next_tag();
    state.objects.insert(key.to_owned(), (bytes, tag));
    let body = format!(
        "<CopyObjectResult><ETag>{}</ETag></CopyObjectResult>",
        etag(tag).replace('"', "&quot;")
    );
    connection.respond(200, &[], body.as_bytes())
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
    let (objects, common) = state.below(request);
    let mut body =
        format!("<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>");
    for (key, size, tag) in objects {
        let _ = write!(
            body,
            "<Contents><Key>{key}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{size}</Size></Contents>",
            chrono::DateTime::<chrono::Utc>::from(state.modified(key)).to_rfc3339(),
            etag(tag).replace('"', "&quot;"),
        );
    }
    for dir in common {
        let _ = write!(body, "<CommonPrefixes><Prefix>{dir}</Prefix></CommonPrefixes>");
    }
    body += "</ListBucketResult>";
    connection.respond(200, &[("Content-Type", "application/xml")], body.as_bytes())
}
