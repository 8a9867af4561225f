//! Faults drawn at random, for pulls and for pushes.

use super::State;
use super::fault::Fault;
use crate::support::content::{Content, Random};
use crate::support::http::Request;
use std::collections::HashMap;
use std::time::Duration;

/// Which faults `faults_random` draws from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kinds {
    /// A client that tries again gets there.
    Retryable,
    /// Bytes, lengths and digests are wrong; a client must notice, and may give up. A manifest that is
    /// answered 201 and not stored is left out: nobody can notice that.
    Corrupting,
    /// Both.
    All,
}

/// Requests that are let through after `in_a_row` faults where requests for one blob cannot be told from those
/// for another: as many as a client has under way at a time.
const BREATHER: u32 = 16;

pub(super) struct RandomFaults {
    random: Random,
    per_mille: u32,
    kinds: Kinds,
    in_a_row: u32,
    runs: HashMap<String, Run>,
    pub(super) injected: usize,
}

#[derive(Default)]
struct Run {
    faults: u32,
    /// Requests that are still let through.
    breather: u32,
}

impl RandomFaults {
    pub(super) fn new(seed: u64, per_mille: u32, kinds: Kinds, in_a_row: u32) -> Self {
        let random = Random::new(seed);
        Self { random, per_mille, kinds, in_a_row, runs: HashMap::new(), injected: 0 }
    }
}

/// The fault of a request, as often as not none.
pub(super) fn draw(state: &mut State, request: &Request) -> Option<Fault> {
    let size = size_of(state, request);
    let random = state.random.as_mut()?;
    if !request.path.contains("/blobs/") && !request.path.contains("/manifests/") {
        return None;
    }
    let (object, shared) = object_of(request);
    let run = random.runs.entry(object).or_default();
    if run.breather > 0 {
        run.breather -= 1;
        return None;
    }
    if run.faults >= random.in_a_row || !random.random.chance(random.per_mille) {
        if shared && run.faults >= random.in_a_row {
            run.breather = BREATHER - 1;
        }
        run.faults = 0;
        return None;
    }
    run.faults += 1;
    random.injected += 1;
    let corrupting = match random.kinds {
        Kinds::Retryable => false,
        Kinds::Corrupting => true,
        Kinds::All => random.random.chance(300),
    };
    let random = &mut random.random;
    Some(match (request.is_write(), corrupting) {
        (false, false) => retryable(random, size),
        (false, true) => corrupt(random, size),
        (true, false) => retryable_write(random, request, size),
        (true, true) => corrupt_write(random, request),
    })
}

/// What repeated requests have in common, and whether requests for other things have it in common too.
fn object_of(request: &Request) -> (String, bool) {
    let session = request.path.rsplit_once("/blobs/uploads/");
    match (session, request.query("digest").or(request.query("mount"))) {
        (None, _) if request.is_write() => (format!("write {}", request.path), false),
        (None, _) => (request.path.clone(), false),
        (Some((repository, _)), Some(digest)) => {
            (format!("{} {repository} {digest}", request.method), false)
        }
        // The address of a session is new each time, and says nothing about the blob.
        (Some((repository, _)), None) => (format!("{} {repository}", request.method), true),
    }
}

/// How long the object of a request is, as far as this server knows it.
fn size_of(state: &State, request: &Request) -> u64 {
    if request.is_write() {
        let length = request.header("content-length").and_then(|length| length.parse().ok());
        return length.unwrap_or(5000);
    }
    let name = request.path.rsplit('/').next().unwrap_or_default();
    state.blobs.get(name).map_or(600, Content::len)
}

fn retryable(random: &mut Random, size: u64) -> Fault {
    let at = random.below(size);
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

fn corrupt(random: &mut Random, size: u64) -> Fault {
    let at = random.below(size);
    match random.below(7) {
        0 | 1 => Fault::FlipByte(at),
        2 => Fault::WrongContentLength(-1 - random.below(size.min(100)).cast_signed()),
        3 => Fault::WrongContentDigest,
        4 => Fault::LyingRange,
        5 => Fault::EmptyBody,
        _ => Fault::captive_portal(),
    }
}

fn retryable_write(random: &mut Random, request: &Request, size: u64) -> Fault {
    let at = random.below(size);
    let in_session = request.path.contains("/blobs/uploads/") && request.method != "POST";
    match random.below(14) {
        0 | 1 => Fault::DropBody(at),
        2 | 3 => Fault::ResetBody(at),
        4 => Fault::LostConnection,
        5 | 6 => Fault::LostAnswer,
        7 => Fault::status_with(429, "Retry-After", "0"),
        8 => Fault::status(500),
        9 => Fault::status(502),
        10 => Fault::status_with(503, "Retry-After", "0"),
        11 => Fault::DoneBut(502),
        12 if in_session => Fault::ForgetSession,
        12 if request.query("mount").is_some() => Fault::DeclineMount,
        13 if size > 0 => {
            Fault::Drip { bytes: (size / 4).max(1), interval: Duration::from_millis(2) }
        }
        _ => Fault::RefuseEarly(503),
    }
}

fn corrupt_write(random: &mut Random, request: &Request) -> Fault {
    let kind = random.below(4);
    if request.path.contains("/manifests/") {
        return match kind {
            0 | 1 => Fault::WrongContentDigest,
            2 => Fault::Refusal(400, "MANIFEST_INVALID"),
            _ => Fault::captive_portal(),
        };
    }
    if request.method == "PUT" {
        return match kind {
            0 => Fault::WrongContentDigest,
            1 => Fault::Refusal(400, "DIGEST_INVALID"),
            2 => Fault::Lie,
            _ => Fault::captive_portal(),
        };
    }
    match kind {
        0 if request.query("mount").is_some() => Fault::Lie,
        0 | 1 => Fault::NoLocation,
        2 => Fault::WrongLocation("http://[not an address".to_owned()),
        _ => Fault::captive_portal(),
    }
}
