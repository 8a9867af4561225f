//! What can go wrong with a request and its response.

use super::answer::{Answer, set_content_range};
use crate::support::content::{Content, digest};
use crate::support::http::Request;
use std::time::Duration;

/// What goes wrong with one request. Where nothing else is said, counts are in bytes of the response's body.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Promise the whole body, send this many bytes of it, close.
    TruncateAt(u64),
    /// Send this many bytes, then reset the connection.
    ResetAfter(u64),
    /// Send this many bytes, then nothing more.
    HangAfter(u64),
    /// Do nothing and send nothing at all, not even a status line. What is sent here is read.
    HangBefore,
    /// Close without having done anything and without a response.
    LostConnection,
    /// Do what is asked for, then close without a response.
    LostAnswer,
    /// Do what is asked for, then say nothing.
    HangAnswer,
    /// This many bytes, a pause, and so on; of the request's body where something is uploaded.
    Drip {
        bytes: u64,
        interval: Duration,
    },
    /// One bit of the byte at this place (modulo the length) is wrong.
    FlipByte(u64),
    /// The header is off by so much; the body is the right one.
    WrongContentLength(i64),
    /// The body comes chunked, with no length announced.
    Chunked,
    /// An error with these headers and an OCI error body. What should be written is read and not written.
    Status(u16, Vec<(String, String)>),
    /// The same with an OCI error code of one's own.
    Refusal(u16, &'static str),
    /// An error before the request's body is read, as proxies answer; then the connection is closed.
    RefuseEarly(u16),
    /// An error although what was asked for has been done.
    DoneBut(u16),
    /// Take this many bytes of the request's body, then close. What was taken stays in the upload session.
    DropBody(u64),
    /// The same with a reset.
    ResetBody(u64),
    /// Take this many bytes of the request's body, then neither read nor say anything.
    StallBody(u64),
    /// 413 when the request's body is longer than this; else nothing is wrong. As nginx's
    /// `client_max_body_size`: a length that is announced is refused before the body is read.
    TooLarge(u64),
    /// The same with 416, as Azure's load balancers have it.
    TooLargeRange(u64),
    /// 201 for a blob or a manifest that is not stored, for a mount that is not made.
    Lie,
    /// 404: the upload session is gone.
    ForgetSession,
    /// The mount is not made, and an upload is begun instead.
    DeclineMount,
    /// No token is good any more, this request's included.
    RevokeTokens,
    NoLocation,
    /// `Location` says this.
    WrongLocation(String),
    /// 200 and the whole blob, whatever range was asked for.
    IgnoreRange,
    /// 206 with a range that starts elsewhere, and a Content-Range that says so.
    WrongRange,
    /// 206 with bytes from elsewhere under the Content-Range that was asked for.
    LyingRange,
    /// 307 to the same path of another server.
    RedirectTo(String),
    NoContentDigest,
    WrongContentDigest,
    NoContentType,
    /// A manifest of this size. Chunked: without announcing it.
    HugeManifest {
        bytes: u64,
        chunked: bool,
    },
    /// 200 with these bytes instead of what was asked for.
    DifferentBody {
        media_type: String,
        bytes: Vec<u8>,
    },
    EmptyBody,
}

impl Fault {
    pub(crate) fn status(status: u16) -> Self {
        Self::Status(status, Vec::new())
    }

    pub(crate) fn status_with(status: u16, name: &str, value: &str) -> Self {
        Self::Status(status, vec![(name.to_owned(), value.to_owned())])
    }

    /// Whether nothing is done that was asked for.
    pub(super) fn refuses(&self) -> bool {
        matches!(
            self,
            Self::Status(..) | Self::Refusal(..) | Self::RedirectTo(_) | Self::DifferentBody { .. }
        )
    }

    /// What a login page of a network answers to everything.
    pub(crate) fn captive_portal() -> Self {
        Self::DifferentBody {
            media_type: "text/html".to_owned(),
            bytes: b"<html><body>Please log in</body></html>".to_vec(),
        }
    }
}

/// How the body is to be sent.
#[derive(Default)]
pub(super) struct Sending {
    pub(super) announced: Option<u64>,
    pub(super) chunked: bool,
    pub(super) stop_after: Option<u64>,
    pub(super) then: Option<Then>,
    pub(super) drip: Option<(u64, Duration)>,
    pub(super) flip: Option<u64>,
}

#[derive(Clone, Copy)]
pub(super) enum Then {
    Close,
    Reset,
    Hang,
}

pub(super) fn apply(
    fault: Option<Fault>,
    answer: &mut Answer,
    request: &Request,
    pace: Option<(u64, Duration)>,
) -> Sending {
    let mut sending = Sending { drip: pace, ..Sending::default() };
    let Some(fault) = fault else {
        return sending;
    };
    let mut cut = |at: u64, then: Then| {
        sending.stop_after = Some(at);
        sending.then = Some(then);
    };
    match fault {
        Fault::TruncateAt(at) => cut(at, Then::Close),
        Fault::ResetAfter(at) => cut(at, Then::Reset),
        Fault::HangAfter(at) => cut(at, Then::Hang),
        Fault::Drip { bytes, interval } => sending.drip = Some((bytes, interval)),
        Fault::FlipByte(at) => sending.flip = Some(at),
        Fault::WrongContentLength(delta) => {
            sending.announced = Some(answer.length.saturating_add_signed(delta));
            sending.then = Some(Then::Close);
        }
        Fault::Chunked => sending.chunked = true,
        Fault::Status(status, headers) => {
            *answer = refusal(status);
            answer.headers.extend(headers);
        }
        Fault::Refusal(status, code) => {
            *answer = Answer::error(status, code, "injected by a test");
        }
        Fault::RefuseEarly(status) | Fault::DoneBut(status) => *answer = refusal(status),
        Fault::NoLocation => answer.set("Location", None),
        Fault::WrongLocation(location) => answer.set("Location", Some(location)),
        Fault::WrongRange if answer.status == 206 => {
            let shift = (answer.start / 2).max(1).min(answer.start);
            answer.start -= shift;
            answer.length += shift;
            set_content_range(answer);
        }
        Fault::LyingRange if answer.status == 206 => {
            // Other bytes, as many as promised, under the headers of the right ones.
            answer.start = answer.start.saturating_sub((answer.start / 2).max(1));
        }
        Fault::RedirectTo(base) => {
            let location = format!("{base}{}", request.target);
            *answer = Answer::new(307, "text/plain", Vec::new()).with("Location", location);
        }
        Fault::NoContentDigest => answer.set("Docker-Content-Digest", None),
        Fault::WrongContentDigest => {
            answer.set("Docker-Content-Digest", Some(digest(b"something else")));
        }
        Fault::NoContentType => answer.set("Content-Type", None),
        Fault::HugeManifest { bytes, chunked } => {
            let seed = 1;
            answer.body = Content::Generated { seed, size: bytes };
            answer.length = bytes;
            answer.set("Docker-Content-Digest", None);
            sending.chunked = chunked;
        }
        Fault::DifferentBody { media_type, bytes } => {
            let digest =
                answer.headers.iter().find(|(name, _)| name == "Docker-Content-Digest").cloned();
            *answer = Answer::new(200, &media_type, bytes);
            answer.headers.extend(digest);
        }
        Fault::EmptyBody => {
            answer.body = Vec::new().into();
            (answer.start, answer.length) = (0, 0);
            if answer.status == 206 {
                answer.status = 200;
                answer.set("Content-Range", None);
            }
        }
        // Handled before, or about ranges while no range was asked for.
        Fault::LostConnection
        | Fault::LostAnswer
        | Fault::HangAnswer
        | Fault::HangBefore
        | Fault::DropBody(_)
        | Fault::ResetBody(_)
        | Fault::StallBody(_)
        | Fault::TooLarge(_)
        | Fault::TooLargeRange(_)
        | Fault::Lie
        | Fault::ForgetSession
        | Fault::DeclineMount
        | Fault::RevokeTokens
        | Fault::IgnoreRange
        | Fault::WrongRange
        | Fault::LyingRange => {}
    }
    sending
}

fn refusal(status: u16) -> Answer {
    let code = match status {
        401 => "UNAUTHORIZED",
        403 => "DENIED",
        404 => "MANIFEST_UNKNOWN",
        405 => "UNSUPPORTED",
        429 => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    Answer::error(status, code, "injected by a test")
}
