//! A registry inside the test process that serves what it was given, takes what is pushed, records every
//! request, and misbehaves where it is told to.
//!
//! ```ignore
//! let hostile = Hostile::start();
//! image.push_to(&hostile, "team/app", "1.0");
//! hostile.on(Match::blobs().nth(1)).fault(Fault::TruncateAt(1000));
//! hostile.on(Match::put_blob().nth(2)).fault(Fault::DropBody(1000));
//! hostile.assert_complete();
//! ```
//!
//! Rules are tried in the order in which they were made; the first that fires decides. Each rule counts the
//! requests that match it, whether or not it fires.

mod access;
mod answer;
mod fault;
mod holdings;
mod intake;
mod log;
mod manifests;
mod matching;
mod random;
mod uploads;

pub(crate) use access::{Access, Bearer, PASSWORD, USER, basic};
pub(crate) use answer::Answer;
pub(crate) use fault::Fault;
pub(crate) use holdings::Checks;
pub(crate) use log::Served;
pub(crate) use matching::Match;
pub(crate) use random::Kinds;
pub(crate) use uploads::Locations;

use super::content::{Content, digest};
use super::http::{After, Connection, Request, Server};
use super::image::{Blob, Receiver};
use access::Token;
use answer::route;
use fault::{Sending, Then, apply};
use intake::{Intake, Stop};
use matching::Rule;
use random::RandomFaults;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use uploads::Session;

/// What stands in front of a registry: an API of its own, rules of its own.
pub(crate) trait Front: Send + Sync {
    /// An answer of its own, before the registry is asked. Requests under `/v2/` come without their bodies.
    fn answer(&self, request: &Request) -> Option<Answer>;

    /// Whether a token for this repository may be good for anything.
    fn grants(&self, repository: &str) -> bool;
}

/// Blob requests are redirected to another server under addresses that stop working.
struct Redirects {
    target: Arc<Inner>,
    base: String,
    /// How many requests each address is good for.
    uses: u32,
}

/// Media type and bytes.
type Stored = (String, Arc<[u8]>);

#[derive(Default)]
struct State {
    /// The contents of all repositories.
    blobs: HashMap<String, Content>,
    /// By repository, the blobs that can be had there.
    members: BTreeMap<String, BTreeSet<String>>,
    /// By repository, then by tag or digest.
    manifests: BTreeMap<String, BTreeMap<String, Stored>>,
    rules: Vec<Rule>,
    random: Option<RandomFaults>,
    log: Vec<Served>,
    access: Option<Access>,
    tokens: HashMap<String, Token>,
    issued: u64,
    page_limit: Option<usize>,
    referrers_api: bool,
    /// Manifests have an `ETag`, and `If-Match` is obeyed.
    versions: bool,
    pace: Option<(u64, Duration)>,
    redirects: Option<Redirects>,
    /// Signatures of redirect addresses and what is left of their uses; when set, others are refused.
    signed: Option<HashMap<String, u32>>,
    /// Uploads under way; `None` while a request is about one.
    sessions: HashMap<String, Option<Session>>,
    begun: u64,
    /// Repository and digest of each upload that came to its end.
    uploaded: Vec<(String, String)>,
    /// What tokens were asked for.
    scopes: Vec<String>,
    violations: Vec<String>,
    checks: Checks,
    locations: Locations,
    single_post: bool,
    declines_mounts: bool,
    shortest_chunk: Option<u64>,
    /// The registry whose uploads come here.
    uploads_of: Option<Arc<Inner>>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    front: OnceLock<Box<dyn Front>>,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in one handler must not hide the test's own message behind a poisoned lock.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub(crate) struct Hostile {
    // The server goes first: its threads use the rest.
    server: Server,
    inner: Arc<Inner>,
}

/// `hostile.on(..)`, waiting for `.fault(..)`.
pub(crate) struct On<'a> {
    hostile: &'a Hostile,
    matches: Match,
}

impl On<'_> {
    pub(crate) fn fault(self, fault: Fault) {
        self.hostile.inner.state().rules.push(Rule::new(self.matches, fault));
    }
}

impl Hostile {
    pub(crate) fn start() -> Self {
        let inner = Arc::new(Inner::default());
        let server = Server::streaming({
            let inner = inner.clone();
            move |request, connection| handle(&inner, request, connection)
        });
        Self { server, inner }
    }

    pub(crate) fn with_front(front: impl Front + 'static) -> Self {
        let hostile = Self::start();
        let _ = hostile.inner.front.set(Box::new(front));
        hostile
    }

    pub(crate) fn with_access(access: Access) -> Self {
        let hostile = Self::start();
        hostile.set_access(access);
        hostile
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn host(&self) -> String {
        self.server.address().to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    pub(crate) fn on(&self, matches: Match) -> On<'_> {
        On { hostile: self, matches }
    }

    /// Forgets rules and random faults.
    pub(crate) fn behave(&self) {
        let mut state = self.inner.state();
        state.rules.clear();
        state.random = None;
    }

    /// From now on `per_mille` of the requests for manifests and blobs fail in ways drawn from `kinds`, never
    /// more than `in_a_row` times one after the other for one object, so that a patient client gets there. For
    /// POST and PATCH of uploads, which do not say what they bring, that is so for the repository, and then
    /// enough of them are let through that each client that was refused gets its turn.
    pub(crate) fn faults_random(&self, seed: u64, per_mille: u32, kinds: Kinds, in_a_row: u32) {
        let random = RandomFaults::new(seed, per_mille, kinds, in_a_row);
        self.inner.state().random = Some(random);
    }

    /// How many random faults were injected since `faults_random`.
    pub(crate) fn injected(&self) -> usize {
        self.inner.state().random.as_ref().map_or(0, |random| random.injected)
    }

    pub(crate) fn set_access(&self, access: Access) {
        self.inner.state().access = Some(access);
    }

    /// Makes all tokens invalid, as a server does that was restarted.
    pub(crate) fn revoke_tokens(&self) {
        self.inner.state().tokens.clear();
    }

    pub(crate) fn set_referrers_api(&self, on: bool) {
        self.inner.state().referrers_api = on;
    }

    /// Manifests come with an `ETag`, and are written over with the right `If-Match` only, if there is one.
    pub(crate) fn set_versions(&self, on: bool) {
        self.inner.state().versions = on;
    }

    /// No page of a tag list is longer than this.
    pub(crate) fn set_page_limit(&self, limit: usize) {
        self.inner.state().page_limit = Some(limit);
    }

    /// Blobs are sent and taken in pieces of `bytes` with a pause after each.
    pub(crate) fn set_pace(&self, bytes: u64, interval: Duration) {
        self.inner.state().pace = Some((bytes, interval));
    }

    pub(crate) fn no_pace(&self) {
        self.inner.state().pace = None;
    }

    /// Answers blob requests with a redirect to `target` under an address that is good for `uses` requests.
    /// The target serves this registry's blobs.
    pub(crate) fn redirect_blobs_to(&self, target: &Self, uses: u32) {
        target.adopt_blobs(self);
        target.inner.state().signed.get_or_insert_default();
        self.inner.state().redirects =
            Some(Redirects { target: target.inner.clone(), base: target.url(), uses });
    }

    /// Takes over the blobs of another one (contents are shared, not copied).
    pub(crate) fn adopt_blobs(&self, other: &Self) {
        let (blobs, members) = {
            let other = other.inner.state();
            (other.blobs.clone(), other.members.clone())
        };
        let mut state = self.inner.state();
        state.blobs.extend(blobs);
        for (repository, digests) in members {
            state.members.entry(repository).or_default().extend(digests);
        }
    }

    /// Where the addresses of upload sessions point; relative when nothing is said.
    pub(crate) fn set_locations(&self, locations: Locations) {
        self.inner.state().locations = locations;
    }

    /// Uploads are begun here and go on at `target`, which knows by the address that they may.
    pub(crate) fn send_uploads_to(&self, target: &Self) {
        target.inner.state().uploads_of = Some(self.inner.clone());
        self.set_locations(Locations::At(target.url()));
    }

    /// Takes a blob in one POST with `digest=`. When not (as at first), such a POST begins an upload.
    pub(crate) fn set_single_post(&self, on: bool) {
        self.inner.state().single_post = on;
    }

    /// Never mounts, as registries do that do not know how.
    pub(crate) fn decline_mounts(&self) {
        self.inner.state().declines_mounts = true;
    }

    /// Chunks but the last must not be shorter; the registry says so in `OCI-Chunk-Min-Length`.
    pub(crate) fn set_shortest_chunk(&self, bytes: u64) {
        self.inner.state().shortest_chunk = Some(bytes);
    }

    /// What must be there before a manifest is accepted; everything when nothing is said.
    pub(crate) fn set_checks(&self, checks: Checks) {
        self.inner.state().checks = checks;
    }

    pub(crate) fn remove_blob(&self, digest: &str) {
        self.inner.state().blobs.remove(digest);
    }

    pub(crate) fn remove_manifest(&self, repository: &str, reference: &str) {
        if let Some(all) = self.inner.state().manifests.get_mut(repository) {
            all.remove(reference);
        }
    }
}

impl Receiver for Hostile {
    fn put_blob(&self, repository: &str, blob: &Blob) {
        let mut state = self.inner.state();
        // A test may want other bytes under a name than the name says, and say so twice.
        state.blobs.remove(&blob.digest);
        state.add_blob(repository, &blob.digest, blob.content.clone());
    }

    fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) {
        let entry = (media_type.to_owned(), Arc::from(bytes));
        let mut state = self.inner.state();
        let all = state.manifests.entry(repository.to_owned()).or_default();
        all.insert(digest(bytes), entry.clone());
        all.insert(reference.to_owned(), entry);
    }
}

fn handle(inner: &Inner, request: &Request, connection: &mut Connection<'_>) -> io::Result<After> {
    let (id, fault, pace) = {
        let mut state = inner.state();
        let id = state.log.len();
        let fault = choose_fault(&mut state, request);
        let header = |name: &str| request.header(name).map(str::to_owned);
        state.log.push(Served {
            method: request.method.clone(),
            path: request.path.clone(),
            target: request.target.clone(),
            query: request.query.clone(),
            repository: access::repository_of(&request.path).map(str::to_owned),
            range: header("range"),
            content_range: header("content-range"),
            content_type: header("content-type"),
            content_length: header("content-length").and_then(|length| length.parse().ok()),
            host: header("host"),
            accept: header("accept"),
            user_agent: header("user-agent"),
            authorization: header("authorization"),
            if_match: header("if-match"),
            status: 0,
            received: 0,
            sent: 0,
            connection: request.connection,
            at: Instant::now(),
            fault: fault.as_ref().map(|fault| format!("{fault:?}")),
        });
        let pace = state.pace.filter(|_| request.path.contains("/blobs/"));
        (id, fault, pace)
    };
    let mut intake = Intake::new(inner, id, connection, fault.as_ref(), pace);
    let mut answer = match process(inner, request, fault.as_ref(), &mut intake) {
        Ok(_) if matches!(fault, Some(Fault::LostAnswer)) => return Ok(After::Close),
        Ok(_) if matches!(fault, Some(Fault::HangAnswer)) => {
            connection.hang();
            return Ok(After::Close);
        }
        Ok(answer) => answer,
        Err(Stop::Close) => return Ok(After::Close),
        Err(Stop::Reset) => return Ok(After::Reset),
        Err(Stop::Hang) => {
            connection.hang();
            return Ok(After::Close);
        }
        Err(Stop::TooLarge) if matches!(fault, Some(Fault::TooLargeRange(_))) => {
            let message = "the request body is too large and exceeds the maximum permissible limit";
            Answer::error(416, "UNKNOWN", message)
        }
        Err(Stop::TooLarge) => Answer::error(413, "SIZE_INVALID", "the body is too large"),
    };
    let early =
        matches!(fault, Some(Fault::RefuseEarly(_) | Fault::TooLarge(_) | Fault::TooLargeRange(_)));
    let unread = if early { !connection.body_has_ended() } else { !connection.skip_body() };
    let sending = apply(fault, &mut answer, request, pace);
    if unread {
        answer = answer.with("Connection", "close");
    }
    send(inner, id, request, connection, &answer, &sending)
}

/// The answer, or what happens instead of one.
fn process(
    inner: &Inner,
    request: &Request,
    fault: Option<&Fault>,
    intake: &mut Intake<'_, '_>,
) -> Result<Answer, Stop> {
    match fault {
        Some(Fault::LostConnection) => return Err(Stop::Close),
        Some(Fault::HangBefore) => {
            intake.drain()?;
            return Err(Stop::Hang);
        }
        Some(Fault::RefuseEarly(_)) => return Ok(Answer::empty(200)),
        Some(Fault::TooLarge(limit) | Fault::TooLargeRange(limit)) => {
            let announced = request.header("content-length").and_then(|text| text.parse().ok());
            if announced.is_some_and(|length: u64| length > *limit) {
                return Err(Stop::TooLarge);
            }
        }
        Some(Fault::RevokeTokens) => inner.state().tokens.clear(),
        // A refusal is written over this answer later on. Reads are answered first, as they do no harm.
        Some(fault) if fault.refuses() && request.is_write() => {
            intake.drain()?;
            return Ok(Answer::empty(200));
        }
        _ => {}
    }
    if intake.will_be_cut() && !matches!(request.method.as_str(), "PATCH" | "PUT") {
        intake.drain()?;
    }
    let answer = route(inner, request, fault, intake)?;
    if intake.will_be_cut() {
        intake.drain()?;
    }
    Ok(answer)
}

fn choose_fault(state: &mut State, request: &Request) -> Option<Fault> {
    let mut chosen = None;
    for rule in &mut state.rules {
        if let Some(fault) = rule.consider(request)
            && chosen.is_none()
        {
            chosen = Some(fault.clone());
        }
    }
    chosen.or_else(|| random::draw(state, request))
}

fn send(
    inner: &Inner,
    id: usize,
    request: &Request,
    connection: &mut Connection<'_>,
    answer: &Answer,
    sending: &Sending,
) -> io::Result<After> {
    let mut headers = answer.headers.clone();
    if sending.chunked {
        headers.push(("Transfer-Encoding".to_owned(), "chunked".to_owned()));
    } else if answer.status != 204 {
        let length = sending.announced.unwrap_or(answer.length);
        headers.push(("Content-Length".to_owned(), length.to_string()));
    }
    inner.state().log[id].status = answer.status;
    connection.head(answer.status, &headers)?;
    if request.method == "HEAD" {
        return Ok(After::KeepAlive);
    }
    let end = sending.stop_after.map_or(answer.length, |stop| stop.min(answer.length));
    let piece = sending.drip.map_or(64 * 1024, |(bytes, _)| bytes.max(1));
    let mut buffer = vec![0; usize::try_from(piece.min(1 << 20)).expect("at most 1 MiB")];
    let mut sent = 0;
    while sent < end {
        let want = usize::try_from(end - sent).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = answer.body.read_at(answer.start + sent, &mut buffer[..want]);
        if count == 0 {
            break;
        }
        if let Some(flip) = sending.flip {
            let flip = flip % answer.length;
            if (sent..sent + count as u64).contains(&flip) {
                buffer[usize::try_from(flip - sent).expect("inside the buffer")] ^= 0x01;
            }
        }
        if sending.chunked {
            connection.write(format!("{count:x}\r\n").as_bytes())?;
        }
        connection.write(&buffer[..count])?;
        if sending.chunked {
            connection.write(b"\r\n")?;
        }
        sent += count as u64;
        inner.state().log[id].sent = sent;
        if let Some((_, interval)) = sending.drip
            && !connection.sleep(interval)
        {
            return Ok(After::Close);
        }
    }
    match sending.then {
        Some(Then::Reset) => {
            // What was sent shall arrive before the reset throws the rest away.
            connection.sleep(Duration::from_millis(5));
            return Ok(After::Reset);
        }
        Some(Then::Hang) => {
            connection.hang();
            return Ok(After::Close);
        }
        Some(Then::Close) => return Ok(After::Close),
        None => {}
    }
    if sending.chunked {
        connection.write(b"0\r\n\r\n")?;
    }
    Ok(After::KeepAlive)
}
