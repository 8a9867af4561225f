//! A registry inside the test process that serves what it was given, records every request, and misbehaves
//! where it is told to.
//!
//! ```ignore
//! let hostile = Hostile::start();
//! image.push_to(&hostile, "team/app", "1.0");
//! hostile.on(Match::blobs().nth(1)).fault(Fault::TruncateAt(1000));
//! ```
//!
//! Rules are tried in the order in which they were made; the first that fires decides. Each rule counts the
//! requests that match it, whether or not it fires.

mod access;
mod answer;
mod fault;

pub(crate) use access::{Access, Bearer, PASSWORD, USER, basic};
pub(crate) use fault::{Fault, Kinds, Match};

use super::content::{Content, Random, digest};
use super::http::{After, Connection, Request, Server};
use super::image::{Blob, Receiver};
use access::Token;
use answer::{Answer, route};
use fault::{RandomFaults, Rule, Sending, Then, apply, draw};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// One recorded request.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The request line's target, query and all.
    pub(crate) target: String,
    pub(crate) range: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) accept: Option<String>,
    pub(crate) user_agent: Option<String>,
    /// The whole header, so that a test can look for what must not be there.
    pub(crate) authorization: Option<String>,
    /// 0 when nothing was answered.
    pub(crate) status: u16,
    /// Bytes of the body that went into the socket.
    pub(crate) sent: u64,
    pub(crate) connection: u64,
    pub(crate) at: Instant,
    /// The name of the fault that was injected here.
    pub(crate) fault: Option<String>,
}

impl Served {
    pub(crate) fn is_blob_get(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }

    /// The digest at the end of the path.
    pub(crate) fn digest(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Where the requested range starts; 0 without one.
    pub(crate) fn range_start(&self) -> u64 {
        self.range
            .as_deref()
            .and_then(|range| range.strip_prefix("bytes="))
            .and_then(|range| range.split('-').next())
            .and_then(|start| start.parse().ok())
            .unwrap_or(0)
    }

    pub(crate) fn auth_scheme(&self) -> Option<&str> {
        self.authorization.as_deref()?.split(' ').next()
    }
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
    blobs: HashMap<String, Content>,
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
    pace: Option<(u64, Duration)>,
    redirects: Option<Redirects>,
    /// Signatures of redirect addresses and what is left of their uses; when set, others are refused.
    signed: Option<HashMap<String, u32>>,
}

struct Inner {
    state: Mutex<State>,
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
        self.hostile.inner.state().rules.push(Rule { matches: self.matches, fault, count: 0 });
    }
}

impl Hostile {
    pub(crate) fn start() -> Self {
        let inner = Arc::new(Inner { state: Mutex::default() });
        let server = Server::start({
            let inner = inner.clone();
            move |request, connection| handle(&inner, request, connection)
        });
        Self { server, inner }
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
    /// more than `in_a_row` times one after the other for one path, so that a patient client gets there.
    pub(crate) fn faults_random(&self, seed: u64, per_mille: u32, kinds: Kinds, in_a_row: u32) {
        self.inner.state().random = Some(RandomFaults {
            random: Random::new(seed),
            per_mille,
            kinds,
            in_a_row,
            runs: HashMap::new(),
            injected: 0,
        });
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

    /// No page of a tag list is longer than this.
    pub(crate) fn set_page_limit(&self, limit: usize) {
        self.inner.state().page_limit = Some(limit);
    }

    /// Blobs are sent in pieces of `bytes` with a pause after each.
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
        let blobs = other.inner.state().blobs.clone();
        self.inner.state().blobs.extend(blobs);
    }

    pub(crate) fn remove_blob(&self, digest: &str) {
        self.inner.state().blobs.remove(digest);
    }

    pub(crate) fn remove_manifest(&self, repository: &str, reference: &str) {
        if let Some(all) = self.inner.state().manifests.get_mut(repository) {
            all.remove(reference);
        }
    }

    /// Every request so far. Waits until none is being handled.
    pub(crate) fn log(&self) -> Vec<Served> {
        self.server.settle();
        self.inner.state().log.clone()
    }

    pub(crate) fn clear_log(&self) {
        self.server.settle();
        self.inner.state().log.clear();
    }

    /// GETs of blobs that were answered with bytes.
    pub(crate) fn blob_gets(&self) -> Vec<Served> {
        let mut log = self.log();
        log.retain(|served| served.is_blob_get() && matches!(served.status, 200 | 206));
        log
    }

    /// The same without waiting for those that are being served.
    pub(crate) fn blob_gets_now(&self) -> Vec<Served> {
        let mut log = self.inner.state().log.clone();
        log.retain(|served| served.is_blob_get() && matches!(served.status, 200 | 206));
        log
    }

    /// How many bytes of each blob were sent.
    pub(crate) fn blob_bytes_sent(&self) -> BTreeMap<String, u64> {
        let mut sent = BTreeMap::new();
        for served in self.blob_gets() {
            *sent.entry(served.digest().to_owned()).or_default() += served.sent;
        }
        sent
    }

    pub(crate) fn token_requests(&self) -> usize {
        let log = self.log();
        log.iter().filter(|served| served.path == "/token").count()
    }

    pub(crate) fn connections(&self) -> u64 {
        self.server.connections()
    }
}

impl Receiver for Hostile {
    fn put_blob(&self, _repository: &str, blob: &Blob) {
        let mut state = self.inner.state();
        state.blobs.insert(blob.digest.clone(), blob.content.clone());
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
        state.log.push(Served {
            method: request.method.clone(),
            path: request.path.clone(),
            target: request.target.clone(),
            range: request.header("range").map(str::to_owned),
            host: request.header("host").map(str::to_owned),
            accept: request.header("accept").map(str::to_owned),
            user_agent: request.header("user-agent").map(str::to_owned),
            authorization: request.header("authorization").map(str::to_owned),
            status: 0,
            sent: 0,
            connection: request.connection,
            at: Instant::now(),
            fault: fault.as_ref().map(|fault| format!("{fault:?}")),
        });
        let pace = state.pace.filter(|_| request.path.contains("/blobs/"));
        (id, fault, pace)
    };
    match &fault {
        Some(Fault::LostConnection) => return Ok(After::Close),
        Some(Fault::HangBefore) => {
            connection.hang();
            return Ok(After::Close);
        }
        _ => {}
    }
    let mut answer = route(inner, request, fault.as_ref());
    let sending = apply(fault, &mut answer, request, pace);
    send(inner, id, request, connection, &answer, &sending)
}

fn choose_fault(state: &mut State, request: &Request) -> Option<Fault> {
    let mut chosen = None;
    for rule in &mut state.rules {
        if rule.matches.matches(request) {
            rule.count += 1;
            if chosen.is_none() && rule.matches.fires(rule.count) {
                chosen = Some(rule.fault.clone());
            }
        }
    }
    if chosen.is_some() {
        return chosen;
    }
    let size = size_of(state, request);
    let random = state.random.as_mut()?;
    if !request.path.contains("/blobs/") && !request.path.contains("/manifests/") {
        return None;
    }
    let run = random.runs.entry(request.path.clone()).or_default();
    if *run >= random.in_a_row || !random.random.chance(random.per_mille) {
        *run = 0;
        return None;
    }
    *run += 1;
    random.injected += 1;
    Some(draw(&mut random.random, random.kinds, size))
}

/// How long the object of a request is, as far as this server knows it.
fn size_of(state: &State, request: &Request) -> u64 {
    let name = request.path.rsplit('/').next().unwrap_or_default();
    state.blobs.get(name).map_or(600, Content::len)
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
    } else {
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
