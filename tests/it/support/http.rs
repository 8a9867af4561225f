//! A small HTTP/1.1 server on threads: keep-alive, one thread for each connection, everything ends on drop.
//!
//! It exists because a hostile registry must do what no proper server lets one do: send half a body and reset
//! the connection, promise a length and break the promise, fall silent. A handler therefore writes to the
//! connection itself and says what is to become of it afterwards.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MAX_HEAD: usize = 64 * 1024;
const MAX_BODY: usize = 64 * 1024 * 1024;
/// As much of a body that nobody wanted is read so that the connection can be used again; as Go's server does.
const MAX_SKIPPED: u64 = 256 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// As it stood in the request line (a proxy sees a whole URL here).
    pub(crate) target: String,
    /// Without the query, percent-decoded.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    /// Empty where the handler takes the body from the connection.
    pub(crate) body: Vec<u8>,
    /// Counts connections from 1, so that tests can see reuse.
    pub(crate) connection: u64,
    /// Whether its connection has had a request before.
    pub(crate) is_reuse: bool,
}

impl Request {
    /// The first header of this name, in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Whether this asks for something to be changed.
    pub(crate) fn is_write(&self) -> bool {
        self.method != "GET" && self.method != "HEAD"
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn queries(&self, name: &str) -> Vec<&str> {
        self.query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn with_body(&self, body: Vec<u8>) -> Self {
        Self { body, ..self.clone() }
    }

    /// A held body as `application/x-www-form-urlencoded` pairs.
    pub(crate) fn form(&self) -> HashMap<String, String> {
        url::form_urlencoded::parse(&self.body).into_owned().collect()
    }
}

/// What becomes of a connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    KeepAlive,
    Close,
    /// RST instead of FIN: the peer sees "connection reset", and bytes on the way are lost.
    Reset,
}

/// The server's end of a connection, as a handler sees it.
pub(crate) struct Connection<'a> {
    stream: &'a TcpStream,
    shared: &'a Shared,
    body: Body<'a>,
}

impl Connection<'_> {
    /// The next bytes of the request's body; none at its end. An error when the peer breaks off before.
    pub(crate) fn read_body(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.body.read(self.stream, buffer)
    }

    pub(crate) fn body_has_ended(&self) -> bool {
        self.body.ended
    }

    /// Throws away what is left of a body, unless that is much or the peer waits to be asked for it. Where
    /// something is left after this, the response must say `Connection: close`.
    pub(crate) fn skip_body(&mut self) -> bool {
        if self.body.asks_first || self.body.announced().is_some_and(|left| left > MAX_SKIPPED) {
            return self.body.ended;
        }
        let mut buffer = [0; 16 * 1024];
        let mut skipped = 0;
        while !self.body.ended && skipped <= MAX_SKIPPED {
            match self.read_body(&mut buffer) {
                Ok(count) => skipped += count as u64,
                Err(_) => break,
            }
        }
        self.body.ended
    }

    /// Ends the connection. What is written afterwards fails.
    pub(crate) fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Status line and headers; the caller gives `Content-Length` or `Transfer-Encoding` itself.
    pub(crate) fn head(&mut self, status: u16, headers: &[(String, String)]) -> io::Result<()> {
        let mut text = format!("HTTP/1.1 {status} {}\r\n", reason(status));
        for (name, value) in headers {
            text += name;
            text += ": ";
            text += value;
            text += "\r\n";
        }
        text.push_str("\r\n");
        self.write(text.as_bytes())
    }

    /// A whole small response.
    pub(crate) fn respond(
        &mut self,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<After> {
        let mut all: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        all.push(("Content-Length".to_owned(), body.len().to_string()));
        self.head(status, &all)?;
        self.write(body)?;
        Ok(After::KeepAlive)
    }

    /// Waits, but not longer than the server lives. False when the server is ending.
    pub(crate) fn sleep(&self, duration: Duration) -> bool {
        let deadline = Instant::now() + duration;
        let mut stopping = self.shared.wake.0.lock().expect("never poisoned");
        while !*stopping {
            let now = Instant::now();
            if now >= deadline {
                return true;
            }
            stopping = self
                .shared
                .wake
                .1
                .wait_timeout(stopping, deadline - now)
                .expect("never poisoned")
                .0;
        }
        false
    }

    /// Says nothing and reads nothing until the peer gives up or the server ends.
    pub(crate) fn hang(&self) {
        // Nothing is going to be recorded any more, so `settle` need not wait.
        self.shared.active.fetch_sub(1, Ordering::SeqCst);
        let _ = self.stream.set_nonblocking(true);
        let mut byte = [0];
        loop {
            match self.stream.peek(&mut byte) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => break,
                _ => {}
            }
            if !self.sleep(Duration::from_millis(20)) {
                break;
            }
        }
        let _ = self.stream.set_nonblocking(false);
        self.shared.active.fetch_add(1, Ordering::SeqCst);
    }
}

/// Where in a request's body its reader is.
struct Body<'a> {
    /// Read from the socket and not consumed yet; behind the body begins the next request.
    buffer: &'a mut Vec<u8>,
    framing: Framing,
    ended: bool,
    /// The peer sends the body when it has been told to (`Expect: 100-continue`).
    asks_first: bool,
}

#[derive(Clone, Copy)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// So many bytes are left of this chunk. The first chunk has no line end before its size.
    Chunked { left: u64, first: bool },
}

impl<'a> Body<'a> {
    fn new(request: &Request, buffer: &'a mut Vec<u8>) -> io::Result<Self> {
        let has = |name: &str, value: &str| {
            request.header(name).is_some_and(|text| text.eq_ignore_ascii_case(value))
        };
        let framing = if has("transfer-encoding", "chunked") {
            Framing::Chunked { left: 0, first: true }
        } else {
            let length = request.header("content-length").unwrap_or("0");
            Framing::Length(length.parse().map_err(|_| invalid("content-length"))?)
        };
        let ended = matches!(framing, Framing::Length(0));
        Ok(Self { buffer, framing, ended, asks_first: !ended && has("expect", "100-continue") })
    }

    /// How much is left, when the peer has said so.
    fn announced(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Chunked { .. } => None,
        }
    }

    fn read(&mut self, mut stream: &TcpStream, out: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.asks_first) {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if let Framing::Chunked { left: 0, first } = self.framing
            && !self.ended
        {
            if !first {
                self.line(stream)?;
            }
            let line = self.line(stream)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| invalid("chunk size"))?;
            self.framing = Framing::Chunked { left: size, first: false };
            if size == 0 {
                // Trailers, if any, end with an empty line.
                while !self.line(stream)?.is_empty() {}
                self.ended = true;
            }
        }
        let (Framing::Length(left) | Framing::Chunked { left, .. }) = self.framing;
        let want = usize::try_from(left).map_or(out.len(), |left| left.min(out.len()));
        if self.ended || want == 0 {
            return Ok(0);
        }
        let count = if self.buffer.is_empty() {
            stream.read(&mut out[..want])?
        } else {
            let count = want.min(self.buffer.len());
            out[..count].copy_from_slice(&self.buffer[..count]);
            self.buffer.drain(..count);
            count
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let left = left - count as u64;
        match &mut self.framing {
            Framing::Length(all) => {
                *all = left;
                self.ended = left == 0;
            }
            Framing::Chunked { left: chunk, .. } => *chunk = left,
        }
        Ok(count)
    }

    /// The next line, without its end.
    fn line(&mut self, mut stream: &TcpStream) -> io::Result<String> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(invalid("line too long"));
            }
            match stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Who reads the bodies of requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bodies {
    /// The server; they are in `Request::body`.
    Held,
    /// The handler, with `Connection::read_body`.
    Streamed,
}

type Handler = dyn Fn(&Request, &mut Connection<'_>) -> io::Result<After> + Send + Sync;

struct Shared {
    stop: AtomicBool,
    wake: (Mutex<bool>, Condvar),
    /// Kept only to shut them down when the server ends: a second handle keeps a socket from being reset.
    streams: Mutex<HashMap<u64, TcpStream>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    connections: AtomicU64,
    /// Requests being handled now.
    active: AtomicUsize,
}

pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a free port of 127.0.0.1. Requests come with their bodies.
    pub(crate) fn start<H>(handler: H) -> Self
    where
        H: Fn(&Request, &mut Connection<'_>) -> io::Result<After> + Send + Sync + 'static,
    {
        Self::listen(Bodies::Held, handler)
    }

    /// The same for a handler that reads bodies itself, as they come.
    pub(crate) fn streaming<H>(handler: H) -> Self
    where
        H: Fn(&Request, &mut Connection<'_>) -> io::Result<After> + Send + Sync + 'static,
    {
        Self::listen(Bodies::Streamed, handler)
    }

    fn listen<H>(bodies: Bodies, handler: H) -> Self
    where
        H: Fn(&Request, &mut Connection<'_>) -> io::Result<After> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binding a port of 127.0.0.1");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            wake: (Mutex::new(false), Condvar::new()),
            streams: Mutex::new(HashMap::new()),
            threads: Mutex::new(Vec::new()),
            connections: AtomicU64::new(0),
            active: AtomicUsize::new(0),
        });
        let handler: Arc<Handler> = Arc::new(handler);
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared, bodies, &handler)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until no request is being handled, so that what was recorded is complete.
    pub(crate) fn settle(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.shared.active.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Ok(mut stopping) = self.shared.wake.0.lock() {
            *stopping = true;
        }
        self.shared.wake.1.notify_all();
        // The acceptor sits in accept(2): a connection wakes it.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        if let Ok(streams) = self.shared.streams.lock() {
            for stream in streams.values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        let threads = self.shared.threads.lock().map(|mut all| std::mem::take(&mut *all));
        for thread in threads.unwrap_or_default() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, bodies: Bodies, handler: &Arc<Handler>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let Ok(second) = stream.try_clone() else {
            continue;
        };
        shared.streams.lock().expect("never poisoned").insert(number, second);
        let thread = std::thread::spawn({
            let (shared, handler) = (shared.clone(), handler.clone());
            move || serve(&stream, number, &shared, bodies, &*handler)
        });
        let mut threads = shared.threads.lock().expect("never poisoned");
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
    }
}

fn serve(stream: &TcpStream, number: u64, shared: &Shared, bodies: Bodies, handler: &Handler) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::new();
    let mut after = After::KeepAlive;
    let mut unread = false;
    let mut is_reuse = false;
    while after == After::KeepAlive && !unread && !shared.stop.load(Ordering::SeqCst) {
        let Ok(Some(mut request)) = read_request(stream, &mut buffer, number) else {
            after = After::Close;
            break;
        };
        request.is_reuse = std::mem::replace(&mut is_reuse, true);
        let Ok(body) = Body::new(&request, &mut buffer) else {
            after = After::Close;
            break;
        };
        let mut connection = Connection { stream, shared, body };
        if bodies == Bodies::Held && hold_body(&mut request, &mut connection).is_err() {
            after = After::Close;
            break;
        }
        shared.active.fetch_add(1, Ordering::SeqCst);
        after = handler(&request, &mut connection).unwrap_or(After::Close);
        unread = !connection.body.ended;
        shared.active.fetch_sub(1, Ordering::SeqCst);
    }
    if unread && after == After::KeepAlive {
        linger(stream);
    }
    shared.streams.lock().expect("never poisoned").remove(&number);
    if after == After::Reset {
        let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    } else {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Closing with bytes unread resets the connection, and then the peer may never see the response. So: say that
/// nothing more comes, and go on reading for a while.
fn linger(mut stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut buffer = [0; 64 * 1024];
    while Instant::now() < deadline && matches!(stream.read(&mut buffer), Ok(1..)) {}
}

fn hold_body(request: &mut Request, connection: &mut Connection<'_>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match connection.read_body(&mut buffer)? {
            0 => return Ok(()),
            count => request.body.extend_from_slice(&buffer[..count]),
        }
        if request.body.len() > MAX_BODY {
            return Err(invalid("request body too long"));
        }
    }
}

/// The head of the next request of a connection; `None` when the peer has closed it.
fn read_request(
    mut stream: &TcpStream,
    buffer: &mut Vec<u8>,
    connection: u64,
) -> io::Result<Option<Request>> {
    let mut chunk = [0; 16 * 1024];
    let (request, head_len) = loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(buffer) {
            Ok(httparse::Status::Complete(length)) => break (owned(&parsed, connection), length),
            Ok(httparse::Status::Partial) if buffer.len() > MAX_HEAD => {
                return Err(invalid("request head too long"));
            }
            Ok(httparse::Status::Partial) => {}
            Err(error) => return Err(invalid(&error.to_string())),
        }
        match stream.read(&mut chunk)? {
            0 => return Ok(None),
            count => buffer.extend_from_slice(&chunk[..count]),
        }
    };
    buffer.drain(..head_len);
    Ok(Some(request))
}

fn owned(parsed: &httparse::Request<'_, '_>, connection: u64) -> Request {
    let target = parsed.path.unwrap_or_default().to_owned();
    // A proxy is asked for a whole URL; the path of it is what the rest of the code looks at.
    let relative = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => &target,
    };
    let (path, query) = relative.split_once('?').unwrap_or((relative, ""));
    Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: percent_decode(path),
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        headers: parsed
            .headers
            .iter()
            .map(|header| {
                let value = String::from_utf8_lossy(header.value).into_owned();
                (header.name.to_owned(), value)
            })
            .collect(),
        target,
        body: Vec::new(),
        connection,
        is_reuse: false,
    }
}

/// Clients may write the colon of a digest as `%3A`.
fn percent_decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%')
            .then(|| path.get(at + 1..at + 3))
            .flatten()
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Status",
    }
}
