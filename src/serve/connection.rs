//! One connection: who is at its other end, and how long it may keep us waiting.
//!
//! | what | longest |
//! |---|---|
//! | the head of a request, and the first request of a connection | 10 s |
//! | not a byte of an answer is taken | 60 s |
//! | not a byte of a body comes (watched where it is read) | 60 s |
//! | nothing is asked | 120 s |

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    listen::Peer,
    sendfile::{Parts, is_placeholder},
    stream::Stream,
};

/// The longest head of a request, in bytes.
pub(super) const MAX_HEAD: usize = 32 << 10;

/// How long the head of a request may take.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may send or take nothing.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a connection may do nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// How often is looked whether something takes too long.
const LOOK: Duration = Duration::from_secs(1);

/// What is known of a connection.
pub(super) struct Connection {
    pub(super) peer: Peer,
    /// Whom its certificate names.
    pub(super) certificate: Option<String>,
    /// Files that stand for placeholders, if the connection can send them.
    parts: Option<Parts>,
    started: Instant,
    /// It is to end without a clean end.
    broken: AtomicBool,
    /// Whether it speaks HTTP/2, as far as that is known.
    is_http2: AtomicBool,
    /// Requests under way, and those that have begun.
    under_way: AtomicU64,
    begun: AtomicU64,
    /// Those of the ones under way of which a piece of the answer waits to be taken. Over HTTP/2 a client that takes
    /// nothing of an answer does not keep anything from being written: nothing is written until it asks for more.
    offered: AtomicU64,
    /// Milliseconds after the start, 0 for never: when the last request ended, when the head of the next one
    /// began to come, since when nothing can be written, and when a piece was offered the last time.
    ended: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    offered_last: AtomicU64,
}

/// A request is under way as long as this lives.
pub(super) struct UnderWay {
    connection: Arc<Connection>,
    /// Whether a piece of the answer waits to be taken.
    offers: bool,
}

impl Connection {
    pub(super) fn new(peer: Peer, certificate: Option<String>, is_plain: bool) -> Arc<Self> {
        Arc::new(Self {
            peer,
            certificate,
            parts: is_plain.then(Parts::default),
            started: Instant::now(),
            broken: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            under_way: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            offered: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            offered_last: AtomicU64::new(0),
        })
    }

    /// Ends the connection so that nobody takes what has come for all of it. Over HTTP/2 the stream alone ends, which
    /// its error does.
    pub(super) fn break_off(&self) {
        if !self.is_http2.load(Ordering::Relaxed) {
            self.broken.store(true, Ordering::Relaxed);
        }
    }

    /// Where files are noted that are to be sent in place of placeholders, if that can be.
    pub(super) fn parts(&self) -> Option<&Parts> {
        self.parts.as_ref().filter(|_| !self.is_http2.load(Ordering::Relaxed))
    }

    /// Notes that a request has come.
    pub(super) fn begin(self: &Arc<Self>, is_http2: bool) -> UnderWay {
        self.is_http2.store(is_http2, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        UnderWay { connection: self.clone(), offers: false }
    }

    /// Milliseconds since the start, never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Returns when it has kept us waiting for too long.
    pub(super) async fn overdue(&self) -> &'static str {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(why) = self.is_overdue() {
                return why;
            }
        }
    }

    fn is_overdue(&self) -> Option<&'static str> {
        let now = self.now();
        let longer = |since: u64, limit: Duration| {
            since > 0 && Duration::from_millis(now.saturating_sub(since)) > limit
        };
        if longer(self.blocked_since.load(Ordering::Relaxed), STALL_TIMEOUT) {
            return Some("it takes nothing");
        }
        let under_way = self.under_way.load(Ordering::Relaxed);
        if under_way > 0 {
            // As long as anything is done for one of them, it is not the client that is waited for.
            let is_clients = self.offered.load(Ordering::Relaxed) >= under_way;
            let is_stalled = longer(self.offered_last.load(Ordering::Relaxed), STALL_TIMEOUT);
            return (is_clients && is_stalled).then_some("it takes nothing");
        }
        let is_first = self.begun.load(Ordering::Relaxed) == 0;
        let is_http2 = self.is_http2.load(Ordering::Relaxed);
        let head_since = self.head_since.load(Ordering::Relaxed);
        if is_first && longer(1, HEADER_TIMEOUT) {
            return Some("its first request does not come");
        }
        if !is_http2 && longer(head_since, HEADER_TIMEOUT) {
            return Some("the head of a request does not end");
        }
        let last = self.ended.load(Ordering::Relaxed);
        longer(last, IDLE_TIMEOUT).then_some("it asks nothing")
    }
}

impl UnderWay {
    /// Notes that a piece of the answer has been given out (`true`), or that the next one is asked for.
    pub(super) fn offer(&mut self, offers: bool) {
        let connection = &self.connection;
        match (self.offers, offers) {
            (false, true) => drop(connection.offered.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(connection.offered.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
        self.offers = offers;
        if offers {
            connection.offered_last.store(connection.now(), Ordering::Relaxed);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.offer(false);
        self.connection.ended.store(self.connection.now(), Ordering::Relaxed);
        self.connection.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connection as hyper sees it.
pub(super) struct Watched {
    stream: Stream,
    connection: Arc<Connection>,
}

impl Watched {
    pub(super) fn new(stream: Stream, connection: Arc<Connection>) -> Self {
        Self { stream, connection }
    }

    /// Sends what a placeholder of `length` bytes stands for.
    fn poll_send_file(
        &mut self,
        context: &mut Context<'_>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        match (&self.stream, &self.connection.parts) {
            (Stream::Tcp(stream), Some(parts)) => {
                let sent = parts.poll_send(stream, context, length);
                if let Poll::Ready(Err(_)) = sent {
                    self.connection.break_off();
                }
                sent
            }
            _ => Poll::Ready(Err(io::Error::other("this connection sends no files"))),
        }
    }

    /// Notes whether the other side takes what is written.
    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        let blocked = &self.connection.blocked_since;
        match written {
            Poll::Ready(_) => blocked.store(0, Ordering::Relaxed),
            Poll::Pending => {
                let now = self.connection.now();
                // Since the first time.
                let _ = blocked.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.connection.broken.load(Ordering::Relaxed) {
            self.stream.reset_when_dropped();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut own.stream).poll_read(context, buffer);
        let connection = &own.connection;
        if buffer.filled().len() > before && connection.under_way.load(Ordering::Relaxed) == 0 {
            let (since, now) = (&connection.head_since, connection.now());
            let _ = since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let written = match is_placeholder(bytes) {
            true => own.poll_send_file(context, bytes.len()),
            false => Pin::new(&mut own.stream).poll_write(context, bytes),
        };
        own.wrote(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let slices = &slices[slices.iter().take_while(|slice| slice.is_empty()).count()..];
        let plain = slices.iter().take_while(|slice| !is_placeholder(slice)).count();
        let written = match slices.first() {
            Some(first) if plain == 0 => own.poll_send_file(context, first.len()),
            _ => Pin::new(&mut own.stream).poll_write_vectored(context, &slices[..plain]),
        };
        own.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        // A clean end would say that this was all.
        match own.connection.broken.load(Ordering::Relaxed) {
            true => Poll::Ready(Ok(())),
            false => Pin::new(&mut own.stream).poll_shutdown(context),
        }
    }
}
