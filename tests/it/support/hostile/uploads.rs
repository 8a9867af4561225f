//! Taking blobs: upload sessions and mounts, as the OCI distribution specification 1.1 has them.
//!
//! Where the specification leaves a choice, this server takes the one that is harder for clients, within what
//! real registries do: addresses of sessions carry a state in their query that changes with each answer, and
//! an upload without the latest state is refused (docker-registry does that too).

use super::answer::Answer;
use super::fault::Fault;
use super::intake::{Intake, Stop};
use super::{Inner, State};
use crate::support::content::{Content, digest};
use crate::support::http::Request;
use sha2::{Digest as _, Sha256};
use std::time::{Duration, Instant};

/// Blobs up to this size stay in memory. Of larger ones only digest and size are kept: GET of them is answered
/// 501, HEAD and everything else as usual.
const KEPT_BLOB_BYTES: u64 = 8 << 20;

/// Where the addresses of upload sessions point.
#[derive(Debug, Clone, Default)]
pub(crate) enum Locations {
    /// `/v2/...`
    #[default]
    Relative,
    /// At the host of the request.
    Absolute,
    /// At another server: scheme and authority.
    At(String),
}

/// An upload that has begun.
pub(super) struct Session {
    repository: String,
    hasher: Sha256,
    /// `None` when there were too many to keep.
    bytes: Option<Vec<u8>>,
    size: u64,
    /// How many states were given out; the latest is the good one.
    states: u32,
    /// A chunk was shorter than what the registry asked for, so it must have been the last one.
    short: bool,
}

impl Session {
    fn new(repository: &str) -> Self {
        Self {
            repository: repository.to_owned(),
            hasher: Sha256::new(),
            bytes: Some(Vec::new()),
            size: 0,
            states: 0,
            short: false,
        }
    }

    /// Takes a body. What came before it broke off stays, but for a body that no proxy let through.
    fn take(&mut self, intake: &mut Intake<'_, '_>) -> Result<(), Stop> {
        let before = (self.hasher.clone(), self.size);
        let mut buffer = [0; 64 * 1024];
        loop {
            match intake.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.absorb(&buffer[..count]),
                Err(Stop::TooLarge) => {
                    (self.hasher, self.size) = before;
                    if let Some(bytes) = &mut self.bytes {
                        bytes.truncate(usize::try_from(self.size).expect("kept in memory"));
                    }
                    return Err(Stop::TooLarge);
                }
                Err(stop) => return Err(stop),
            }
        }
    }

    fn absorb(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        if self.size > KEPT_BLOB_BYTES {
            self.bytes = None;
        } else if let Some(kept) = &mut self.bytes {
            kept.extend_from_slice(bytes);
        }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.hasher.clone().finalize()))
    }

    fn into_content(self) -> Content {
        match self.bytes {
            Some(bytes) => bytes.into(),
            None => Content::Unkept { size: self.size },
        }
    }

    /// The `Range` of an answer.
    fn range(&self) -> String {
        format!("0-{}", self.size.saturating_sub(1))
    }

    fn state(id: &str, number: u32) -> String {
        format!("{}.{number}=", &digest(id.as_bytes())[7..19])
    }
}

/// Repository and, behind `/blobs/uploads/`, the session.
pub(super) fn session_path(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("/v2/")?.rsplit_once("/blobs/uploads/")
}

pub(super) fn route(
    inner: &Inner,
    request: &Request,
    (repository, id): (&str, &str),
    fault: Option<&Fault>,
    intake: &mut Intake<'_, '_>,
) -> Result<Answer, Stop> {
    if matches!(fault, Some(Fault::ForgetSession)) {
        inner.state().sessions.remove(id);
    }
    match (request.method.as_str(), id) {
        ("POST", "") => begin(inner, request, repository, fault, intake),
        (_, "") => Ok(Answer::error(405, "UNSUPPORTED", "the operation is unsupported")),
        ("PATCH" | "PUT", _) => extend(inner, request, repository, id, fault, intake),
        ("GET" | "HEAD", _) => Ok(with_session(inner, request, repository, id, |session| {
            Answer::empty(204).with("Range", session.range())
        })),
        ("DELETE", _) => {
            let answer = with_session(inner, request, repository, id, |_| Answer::empty(204));
            if answer.status == 204 {
                inner.state().sessions.remove(id);
            }
            Ok(answer)
        }
        _ => Ok(Answer::error(405, "UNSUPPORTED", "the operation is unsupported")),
    }
}

fn begin(
    inner: &Inner,
    request: &Request,
    repository: &str,
    fault: Option<&Fault>,
    intake: &mut Intake<'_, '_>,
) -> Result<Answer, Stop> {
    if !is_repository(repository) {
        return Ok(Answer::error(400, "NAME_INVALID", "invalid repository name"));
    }
    if let Some(wanted) = request.query("mount") {
        if !is_digest(wanted) {
            return Ok(Answer::error(400, "DIGEST_INVALID", "invalid digest"));
        }
        let mut state = inner.state();
        let source = request.query("from").unwrap_or_default();
        let lie = matches!(fault, Some(Fault::Lie));
        let declined = matches!(fault, Some(Fault::DeclineMount)) || state.declines_mounts;
        if lie || (!declined && state.has_blob(source, wanted)) {
            if !lie {
                state.members.entry(repository.to_owned()).or_default().insert(wanted.to_owned());
            }
            return Ok(created_blob(repository, wanted));
        }
    }
    let mut session = Session::new(repository);
    if let Some(wanted) = request.query("digest")
        && inner.state().single_post
    {
        session.take(intake)?;
        return Ok(finish(&mut inner.state(), session, wanted, fault));
    }
    // A registry that does not take a blob in one POST throws the bytes away and begins an upload.
    intake.drain()?;
    let mut state = inner.state();
    state.begun += 1;
    let hex = &digest(format!("upload {}", state.begun).as_bytes())[7..];
    let id = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]].join("-");
    let mut answer = accepted(&mut session, &state, request, repository, &id);
    if let Some(shortest) = state.shortest_chunk {
        answer = answer.with("OCI-Chunk-Min-Length", shortest.to_string());
    }
    state.sessions.insert(id, Some(session));
    Ok(answer)
}

/// PATCH, and PUT that may bring bytes too.
fn extend(
    inner: &Inner,
    request: &Request,
    repository: &str,
    id: &str,
    fault: Option<&Fault>,
    intake: &mut Intake<'_, '_>,
) -> Result<Answer, Stop> {
    let mut session = match check_out(inner, repository, id) {
        Ok(session) => session,
        Err(refusal) => return Ok(refusal),
    };
    let check_in = |session: Session| {
        // Cancelled or forgotten meanwhile.
        if let Some(place) = inner.state().sessions.get_mut(id) {
            *place = Some(session);
        }
    };
    let wanted = request.query("digest").unwrap_or_default();
    let refusal = if request.query("_state") != Some(&Session::state(id, session.states)) {
        let message = "the address is not the one of the last answer";
        Some(Answer::error(400, "BLOB_UPLOAD_INVALID", message))
    } else if request.method == "PUT" && !is_digest(wanted) {
        Some(Answer::error(400, "DIGEST_INVALID", "invalid digest"))
    } else {
        check_range(&session, request)
    };
    if let Some(refusal) = refusal {
        check_in(session);
        return Ok(refusal);
    }
    if let Err(stop) = session.take(intake) {
        check_in(session);
        return Err(stop);
    }
    if let Some((first, last)) = content_range(request)
        && last - first + 1 != intake.received()
    {
        inner.state().sessions.remove(id);
        return Ok(Answer::error(400, "SIZE_INVALID", "Content-Range is not about these bytes"));
    }
    if request.method == "PUT" {
        let mut state = inner.state();
        state.sessions.remove(id);
        return Ok(finish(&mut state, session, wanted, fault));
    }
    let state = inner.state();
    session.short = state.shortest_chunk.is_some_and(|shortest| intake.received() < shortest);
    let answer = accepted(&mut session, &state, request, repository, id);
    drop(state);
    let answer = answer.with("Range", session.range());
    check_in(session);
    Ok(answer)
}

/// The session, out of its place so that nothing is locked while bytes come.
fn check_out(inner: &Inner, repository: &str, id: &str) -> Result<Session, Answer> {
    // Another request that has broken off may not have been noticed yet.
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match inner.state().sessions.get_mut(id) {
            Some(Some(session)) if session.repository != repository => return Err(unknown()),
            Some(place) => {
                if let Some(session) = place.take() {
                    return Ok(session);
                }
            }
            None => return Err(unknown()),
        }
        if Instant::now() > deadline {
            return Err(Answer::error(400, "BLOB_UPLOAD_INVALID", "another request is under way"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An answer about a session that stays as it is. Any of its addresses will do.
fn with_session(
    inner: &Inner,
    request: &Request,
    repository: &str,
    id: &str,
    answer: impl FnOnce(&Session) -> Answer,
) -> Answer {
    let mut session = match check_out(inner, repository, id) {
        Ok(session) => session,
        Err(refusal) => return refusal,
    };
    let mut state = inner.state();
    let mut answer = answer(&session);
    answer.headers.extend(accepted(&mut session, &state, request, repository, id).headers);
    if let Some(place) = state.sessions.get_mut(id) {
        *place = Some(session);
    }
    answer
}

fn unknown() -> Answer {
    Answer::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
}

/// 416 unless the bytes go on where the upload is; a body without a range always does.
fn check_range(session: &Session, request: &Request) -> Option<Answer> {
    if session.short && request.method == "PATCH" {
        return Some(Answer::error(400, "SIZE_INVALID", "the chunk before was too short"));
    }
    request.header("content-range")?;
    let Some((first, last)) = content_range(request) else {
        return Some(Answer::error(400, "BLOB_UPLOAD_INVALID", "Content-Range is no range"));
    };
    if first != session.size {
        let refusal = Answer::error(416, "RANGE_INVALID", "out of order");
        return Some(refusal.with("Range", session.range()));
    }
    let announced = request.header("content-length")?;
    (announced.parse() != Ok(last - first + 1))
        .then(|| Answer::error(400, "SIZE_INVALID", "Content-Range and Content-Length differ"))
}

/// `<first>-<last>`, without a unit: what the specification prescribes for uploads.
fn content_range(request: &Request) -> Option<(u64, u64)> {
    let (first, last) = request.header("content-range")?.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// 202 with the next address of a session.
fn accepted(
    session: &mut Session,
    state: &State,
    request: &Request,
    repository: &str,
    id: &str,
) -> Answer {
    session.states += 1;
    let token = Session::state(id, session.states).replace('=', "%3D");
    let base = match &state.locations {
        Locations::Relative => String::new(),
        Locations::Absolute => format!("http://{}", request.header("host").unwrap_or_default()),
        Locations::At(base) => base.clone(),
    };
    let mut answer = Answer::empty(202)
        .with("Location", format!("{base}/v2/{repository}/blobs/uploads/{id}?_state={token}"))
        .with("Docker-Upload-UUID", id);
    if request.method == "POST" {
        answer = answer.with("Range", "0-0");
    }
    answer
}

/// Ends an upload: 201 and the blob is there, or 400 and the session is gone.
fn finish(state: &mut State, session: Session, wanted: &str, fault: Option<&Fault>) -> Answer {
    if session.digest() != wanted {
        let message = "provided digest did not match uploaded content";
        return Answer::error(400, "DIGEST_INVALID", message);
    }
    let repository = session.repository.clone();
    if !matches!(fault, Some(Fault::Lie)) {
        state.uploaded.push((repository.clone(), wanted.to_owned()));
        state.add_blob(&repository, wanted, session.into_content());
    }
    created_blob(&repository, wanted)
}

fn created_blob(repository: &str, digest: &str) -> Answer {
    Answer::empty(201)
        .with("Location", format!("/v2/{repository}/blobs/{digest}"))
        .with("Docker-Content-Digest", digest)
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Components of lower-case letters and digits, with `.`, `_`, `-` between them.
pub(super) fn is_repository(name: &str) -> bool {
    name.len() <= 255
        && name.split('/').all(|part| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            part.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
                && part.bytes().next().is_some_and(plain)
                && part.bytes().last().is_some_and(plain)
        })
}
