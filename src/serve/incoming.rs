//! The body of a request, and what becomes of the part of it that nobody has read.
//!
//! A client of HTTP/1.1 that is still sending when the connection ends does not read the answer (RFC 9112, section
//! 9.6). So what an early answer leaves is read and forgotten before the answer is sent; if it is too much for that,
//! the answer says that the connection ends.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyStream, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{sync::oneshot, time::timeout};

/// What is read of a body that nobody wants, in bytes, and for how long.
const MAX_SKIPPED: usize = 64 << 20;
const SKIPPING_TIMEOUT: Duration = Duration::from_secs(30);

/// The body of a request. What is left of it when it is dropped goes to its [`Unread`].
pub(super) struct RequestBody {
    body: Option<Incoming>,
    /// The client has been told to send it, if it waits for that.
    is_asked_for: bool,
    rest: Option<oneshot::Sender<Rest>>,
}

enum Rest {
    Nothing,
    Unread {
        body: Incoming,
        is_asked_for: bool,
    },
    /// It has not come to its end.
    Broken,
}

/// Where what is left of a body comes to; `None` if there was none.
pub(super) struct Unread(Option<oneshot::Receiver<Rest>>);

impl RequestBody {
    pub(super) fn new(body: Incoming) -> (Self, Unread) {
        if body.is_end_stream() {
            return (Self { body: Some(body), is_asked_for: false, rest: None }, Unread(None));
        }
        let (rest, comes) = oneshot::channel();
        let body = Self { body: Some(body), is_asked_for: false, rest: Some(rest) };
        (body, Unread(Some(comes)))
    }

    fn end(&mut self, rest: Rest) {
        if let Some(sender) = self.rest.take() {
            // With nobody to receive it, the request has been given up.
            let _ = sender.send(rest);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let own = self.get_mut();
        let Some(body) = &mut own.body else { return Poll::Ready(None) };
        own.is_asked_for = true;
        let frame = Pin::new(body).poll_frame(context);
        match &frame {
            Poll::Ready(None) => own.end(Rest::Nothing),
            Poll::Ready(Some(Err(_))) => own.end(Rest::Broken),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            let is_asked_for = self.is_asked_for;
            self.end(match body.is_end_stream() {
                true => Rest::Nothing,
                false => Rest::Unread { body, is_asked_for },
            });
        }
    }
}

impl Unread {
    /// Reads and forgets what is left of the body; `false` if it has not come to its end, so that no other request can
    /// come after it. `waits` says that the client sends nothing before it is told to.
    pub(super) async fn skip(self, waits: bool) -> bool {
        let Some(mut rest) = self.0 else { return true };
        match rest.try_recv() {
            Ok(Rest::Nothing) => true,
            Ok(Rest::Unread { is_asked_for: false, .. }) if waits => false,
            Ok(Rest::Unread { body, .. }) => {
                timeout(SKIPPING_TIMEOUT, read_to_end(body)).await.unwrap_or(false)
            }
            // Whoever has it still reads it.
            Ok(Rest::Broken) | Err(_) => false,
        }
    }
}

/// Whether it came to its end.
async fn read_to_end(body: Incoming) -> bool {
    use futures_util::StreamExt as _;
    let mut body = BodyStream::new(Limited::new(body, MAX_SKIPPED));
    loop {
        match body.next().await {
            None => return true,
            Some(Ok(_)) => {}
            Some(Err(_)) => return false,
        }
    }
}
