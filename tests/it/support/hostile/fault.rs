//! What can go wrong with a response, and when.

use super::answer::{Answer, set_content_range};
use crate::support::content::{Content, Random, digest};
use crate::support::http::Request;
use std::collections::HashMap;
use std::time::Duration;

/// What goes wrong with one response. Counts are in bytes of the response body.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Promise the whole body, send this many bytes of it, close.
    TruncateAt(u64),
    /// Send this many bytes, then reset the connection.
    ResetAfter(u64),
    /// Send this many bytes, then nothing more.
    HangAfter(u64),
    /// Send nothing at all, not even a status line.
    HangBefore,
    /// Close without a response.
    LostConnection,
    /// This many bytes, a pause, and so on.
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
    /// An error with these headers and an OCI error body.
    Status(u16, Vec<(String, String)>),
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

    /// What a login page of a network answers to everything.
    pub(crate) fn captive_portal() -> Self {
        Self::DifferentBody {
            media_type: "text/html".to_owned(),
            bytes: b"<html><body>Please log in</body></html>".to_vec(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum When {
    Always,
    Nth(u64),
    Every(u64),
    First(u64),
    From(u64),
}

/// Which requests a rule is about.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    method: Option<&'static str>,
    path_contains: String,
    ranged: Option<bool>,
    when: When,
}

impl Match {
    pub(crate) fn any() -> Self {
        Self { method: None, path_contains: String::new(), ranged: None, when: When::Always }
    }

    /// GET of blobs.
    pub(crate) fn blobs() -> Self {
        Self::get("/blobs/")
    }

    /// GET or HEAD of manifests.
    pub(crate) fn manifests() -> Self {
        Self::any().path("/manifests/")
    }

    pub(crate) fn get(path_contains: &str) -> Self {
        Self::any().method("GET").path(path_contains)
    }

    pub(crate) fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    pub(crate) fn path(mut self, contains: &str) -> Self {
        contains.clone_into(&mut self.path_contains);
        self
    }

    /// Only requests with a range (true) or without one (false).
    pub(crate) fn ranged(mut self, ranged: bool) -> Self {
        self.ranged = Some(ranged);
        self
    }

    /// The n-th matching request, from 1.
    pub(crate) fn nth(mut self, n: u64) -> Self {
        self.when = When::Nth(n);
        self
    }

    pub(crate) fn every(mut self, n: u64) -> Self {
        self.when = When::Every(n);
        self
    }

    pub(crate) fn first(mut self, n: u64) -> Self {
        self.when = When::First(n);
        self
    }

    /// The n-th and all later ones.
    pub(crate) fn from(mut self, n: u64) -> Self {
        self.when = When::From(n);
        self
    }

    pub(super) fn matches(&self, request: &Request) -> bool {
        self.method.is_none_or(|method| method == request.method)
            && request.path.contains(&self.path_contains)
            && self.ranged.is_none_or(|ranged| ranged == request.header("range").is_some())
    }

    pub(super) fn fires(&self, count: u64) -> bool {
        match self.when {
            When::Always => true,
            When::Nth(n) => count == n,
            When::Every(n) => count.is_multiple_of(n),
            When::First(n) => count <= n,
            When::From(n) => count >= n,
        }
    }
}

/// Which faults `faults_random` draws from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kinds {
    /// A client that tries again gets there.
    Retryable,
    /// Bytes, lengths and digests are wrong; a client must notice, and may give up.
    Corrupting,
    /// Both.
    All,
}

pub(super) struct RandomFaults {
    pub(super) random: Random,
    pub(super) per_mille: u32,
    pub(super) kinds: Kinds,
    pub(super) in_a_row: u32,
    pub(super) runs: HashMap<String, u32>,
    pub(super) injected: usize,
}

pub(super) struct Rule {
    pub(super) matches: Match,
    pub(super) fault: Fault,
    pub(super) count: u64,
}

pub(super) fn draw(random: &mut Random, kinds: Kinds, size: u64) -> Fault {
    let corrupting = match kinds {
        Kinds::Retryable => false,
        Kinds::Corrupting => true,
        Kinds::All => random.chance(300),
    };
    let at = random.below(size);
    if corrupting {
        return match random.below(7) {
            0 | 1 => Fault::FlipByte(at),
            2 => Fault::WrongContentLength(-1 - random.below(size.min(100)).cast_signed()),
            3 => Fault::WrongContentDigest,
            4 => Fault::LyingRange,
            5 => Fault::EmptyBody,
            _ => Fault::captive_portal(),
        };
    }
    match random.below(12) {
        0 | 1 => Fault::TruncateAt(at),
        2 | 3 => Fault::ResetAfter(at),
        4 => Fault::LostConnection,
        5 => Fault::status_with(429, "Retry-After", "0"),
        6 => Fault::status(500),
        7 => Fault::status(502),
        8 => Fault::status_with(503, "Retry-After", "0"),
        9 => Fault::IgnoreRange,
        10 => Fault::Drip { bytes: (size / 4).max(1), interval: Duration::from_millis(2) },
        _ => Fault::WrongContentLength(1 + random.below(100).cast_signed()),
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
            let code = match status {
                401 => "UNAUTHORIZED",
                403 => "DENIED",
                404 => "MANIFEST_UNKNOWN",
                429 => "TOOMANYREQUESTS",
                _ => "UNKNOWN",
            };
            *answer = Answer::error(status, code, "injected by a test");
            answer.headers.extend(headers);
        }
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
        | Fault::HangBefore
        | Fault::IgnoreRange
        | Fault::WrongRange
        | Fault::LyingRange => {}
    }
    sending
}
