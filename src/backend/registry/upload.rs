//! Sending a blob: in one request where the registry takes it, in chunks where it does not, and
//! from where it stopped after an interruption (distribution specification, "Pushing blobs").

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use reqwest::{
    Body, Method, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE},
};
use tokio::{sync::mpsc, time::timeout};

use super::{
    content_digest, header,
    session::{Answer, Ask, Lane, Payload, Scope, Session},
    sink::Holders,
};
use crate::{
    backend::{BoxStream, Content, Error, Kind, Received, Receiver, Result, images_dir::BlobFile},
    image::{Descriptor, Hasher, Repository},
};

/// The first size of a chunk, in bytes, where a blob cannot be sent whole.
const FIRST_CHUNK: u64 = 32 << 20;

/// Chunks are halved as long as the registry says that they are too large, down to this.
const LEAST_CHUNK: u64 = 256 << 10;

/// Pieces that wait to be sent.
const QUEUED_PIECES: usize = 1;

/// A registry that has all bytes may take this long for each of so many to hash and store them,
/// in addition to [`RegistryConfig::stall_timeout`](super::RegistryConfig::stall_timeout).
const STORING: (u64, Duration) = (16 << 20, Duration::from_secs(1));

/// Uploads after which it is worth a request to find out whether the registry mounts.
const UPLOADS_BEFORE_PROBE: u64 = 3;

/// What is known of how a registry takes content.
#[derive(Default)]
pub(in crate::backend) struct Receiving {
    mounting: AtomicU8,
    /// Bytes of a chunk; 0 where blobs are sent whole.
    chunk: AtomicU64,
    /// The registry wants no shorter chunks, but for the last of a blob.
    least_chunk: AtomicU64,
    uploads: AtomicU64,
}

/// Whether a registry mounts blobs from one of its repositories into another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mounting {
    Unknown = 0,
    /// It does, and a blob can also be mounted from the repository itself: then asking for a mount
    /// finds out whether the blob is there, and begins its upload if it is not.
    Works = 1,
    /// It does not, or not so that one could rely on it.
    Refused = 2,
}

impl Receiving {
    pub(super) fn mounting(&self) -> Mounting {
        match self.mounting.load(Ordering::Relaxed) {
            0 => Mounting::Unknown,
            1 => Mounting::Works,
            _ => Mounting::Refused,
        }
    }

    pub(super) fn set_mounting(&self, known: Mounting) {
        self.mounting.store(known as u8, Ordering::Relaxed);
    }

    /// What a mount has shown; it takes nothing back.
    pub(super) fn learn_mounting(&self, known: Mounting) {
        let (unknown, known) = (Mounting::Unknown as u8, known as u8);
        let _ =
            self.mounting.compare_exchange(unknown, known, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Counts an upload; whether now is the time to find out about mounting.
    fn is_time_to_probe(&self) -> bool {
        self.mounting() == Mounting::Unknown
            && self.uploads.fetch_add(1, Ordering::Relaxed) + 1 == UPLOADS_BEFORE_PROBE
    }

    /// A whole blob of `size` bytes, or chunks of it, are too large. False if smaller ones make no
    /// sense.
    fn shrink(&self, refused: Option<u64>, size: u64) -> bool {
        let mut smaller = match refused {
            None => self.first_chunk(),
            Some(chunk) if chunk / 2 >= self.least_chunk() => chunk / 2,
            Some(_) => return false,
        };
        // What is no smaller than all of it has just been refused.
        while smaller >= size && smaller / 2 >= self.least_chunk() {
            smaller /= 2;
        }
        let now = self.chunk.load(Ordering::Relaxed);
        // Another upload may have learned more.
        if now == 0 || now > smaller {
            self.chunk.store(smaller, Ordering::Relaxed);
        }
        true
    }

    fn chunk(&self) -> Option<u64> {
        let chunk = Some(self.chunk.load(Ordering::Relaxed)).filter(|chunk| *chunk > 0);
        chunk.map(|chunk| chunk.max(self.least_chunk()))
    }

    fn first_chunk(&self) -> u64 {
        FIRST_CHUNK.max(self.least_chunk())
    }

    fn least_chunk(&self) -> u64 {
        LEAST_CHUNK.max(self.least_chunk.load(Ordering::Relaxed))
    }
}

/// An upload that has begun.
pub(super) struct Upload {
    session: Arc<Session>,
    holders: Arc<Holders>,
    repository: Repository,
    blob: Descriptor,
    doing: String,
    /// Where the next bytes go.
    location: Url,
    /// Bytes that the registry has.
    offset: u64,
    /// The hash of those, if they have to be hashed.
    hasher: Option<Hasher>,
    /// Bytes of a chunk, if it is sent in chunks.
    chunk: Option<u64>,
}

impl Upload {
    pub(super) fn new(
        session: Arc<Session>,
        holders: Arc<Holders>,
        repository: &Repository,
        blob: &Descriptor,
        location: Url,
    ) -> Self {
        Self {
            chunk: session.receiving.chunk(),
            doing: format!("sending blob {} to {repository}", blob.digest),
            session,
            holders,
            repository: repository.clone(),
            blob: blob.clone(),
            location,
            offset: 0,
            hasher: None,
        }
    }

    fn error(&self, kind: impl Into<Kind>) -> Error {
        self.session.error(&self.doing, kind)
    }

    fn ask(&self, method: Method, url: Url) -> Ask<'_> {
        Ask { lane: Lane::Uploads, ..Ask::push(method, url, &self.repository, &self.doing) }
    }

    /// Where the upload is completed.
    fn final_url(&self) -> Url {
        let mut url = self.location.clone();
        url.query_pairs_mut().append_pair("digest", &self.blob.digest.to_string());
        url
    }

    /// Sends what is missing.
    async fn send(
        &mut self,
        content: &dyn Content,
        file: Option<&BlobFile>,
    ) -> std::result::Result<(), Failed> {
        match file {
            Some(file) => {
                let stream = file.read(self.offset..self.blob.size);
                self.send_from(content, Box::new(stream)).await
            }
            None => {
                let stream = content.read(self.offset).await.map_err(Failed::at_source)?;
                self.send_from(content, stream).await
            }
        }
    }

    async fn send_from(
        &mut self,
        content: &dyn Content,
        stream: BoxStream,
    ) -> std::result::Result<(), Failed> {
        let mut pieces = Pieces { stream, rest: Bytes::new(), hasher: self.hasher.clone() };
        let size = self.blob.size;
        let Some(chunk) = self.chunk else {
            let mut ask = self.ask(Method::PUT, self.final_url());
            ask.headers = content_headers(size, None);
            let answer = self.pass(ask, &mut pieces, size, content).await?;
            return self.check_stored(&answer);
        };
        while self.offset < size {
            let length = chunk.min(size - self.offset);
            let range = format!("{}-{}", self.offset, self.offset + length - 1);
            let mut ask = self.ask(Method::PATCH, self.location.clone());
            ask.headers = content_headers(length, Some(&range));
            let answer = self.pass(ask, &mut pieces, length, content).await?;
            self.location =
                self.session.location(&answer.url, answer.response.headers(), &self.doing)?;
            self.offset += length;
            self.hasher.clone_from(&pieces.hasher);
        }
        let answer = self
            .session
            .attempt(&self.ask(Method::PUT, self.final_url()))
            .await
            .map_err(Failed::at_end)?;
        self.check_stored(&answer)
    }

    fn check_stored(&self, answer: &Answer) -> std::result::Result<(), Failed> {
        let (expected, found) = (self.blob.digest, content_digest(answer.response.headers()));
        match found.filter(|found| found.algorithm() == expected.algorithm()) {
            Some(found) if found != expected => {
                Err(self.error(Kind::Digest { expected, found }).into())
            }
            _ => Ok(()),
        }
    }

    /// Makes the request `ask` with the next `length` bytes.
    async fn pass(
        &self,
        ask: Ask<'_>,
        pieces: &mut Pieces,
        length: u64,
        content: &dyn Content,
    ) -> std::result::Result<Answer, Failed> {
        let (to_body, from_pump) = mpsc::channel::<Bytes>(QUEUED_PIECES);
        let body = stream::unfold(from_pump, |mut pieces| async {
            pieces.recv().await.map(|piece| (Ok::<_, std::io::Error>(piece), pieces))
        });
        let body = Payload::Stream(Mutex::new(Some(Body::wrap_stream(body))));
        let ask = Ask { payload: body, ..ask };
        let mut moved = 0;
        let result = {
            let request = self.session.attempt(&ask);
            let pump = self.pump(pieces, length, to_body, content, &mut moved);
            tokio::pin!(request, pump);
            tokio::select! {
                biased;
                pumped = &mut pump => match pumped {
                    Ok(Pumped::All) => {
                        let (bytes, each) = STORING;
                        let patience = each * u32::try_from(length / bytes).unwrap_or(u32::MAX);
                        let patience = self.session.config.stall_timeout.saturating_add(patience);
                        match timeout(patience, request).await {
                            Ok(answer) => answer.map_err(Failed::at_end),
                            Err(_) => Err(Failed::at_end(self.error(Kind::Stalled(patience)))),
                        }
                    }
                    Ok(Pumped::Stalled) => {
                        Err(self.error(Kind::Stalled(self.session.config.stall_timeout)).into())
                    }
                    // The request has come to its end before the content, and says why.
                    Ok(Pumped::Refused) => match request.await {
                        Err(error) => Err(error.into()),
                        Ok(_) => Err(self.too_early().into()),
                    },
                    Err(error) => Err(Failed::at_source(error)),
                },
                answer = &mut request => match answer {
                    Err(error) => Err(error.into()),
                    Ok(_) => Err(self.too_early().into()),
                },
            }
        };
        if result.is_err() {
            content.retransmitted(moved);
        }
        result
    }

    fn too_early(&self) -> Error {
        self.error(Kind::Protocol("it took the blob before all of it had been sent".into()))
    }

    /// What came from the source is not what it should be.
    fn unlike(&self, content: &dyn Content, kind: Kind) -> Error {
        Error::new(content.side(), format_args!("fetching blob {}", self.blob.digest), kind)
    }

    /// Passes `length` bytes on. The end of a blob that has to be verified is held back until it
    /// has been, so that a wrong one is never complete.
    async fn pump(
        &self,
        pieces: &mut Pieces,
        length: u64,
        to_body: mpsc::Sender<Bytes>,
        content: &dyn Content,
        moved: &mut u64,
    ) -> Result<Pumped> {
        let stall = self.session.config.stall_timeout;
        let mut left = length;
        while left > 0 {
            let Some(piece) = pieces.next(left).await? else {
                let (expected, found) = (self.blob.size, self.blob.size - left);
                return Err(self.unlike(content, Kind::Size { expected, found }));
            };
            left -= piece.len() as u64;
            if let Some(hasher) = &mut pieces.hasher {
                hasher.update(&piece);
                let is_end = left == 0 && (self.offset + length == self.blob.size);
                if is_end {
                    let (expected, found) = (self.blob.digest, hasher.clone().finish());
                    if found != expected {
                        return Err(self.unlike(content, Kind::Digest { expected, found }));
                    }
                }
            }
            let bytes = piece.len();
            match timeout(stall, to_body.send(piece)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(Pumped::Refused),
                Err(_) => return Ok(Pumped::Stalled),
            }
            self.session.stats.add_sent(bytes);
            *moved += bytes as u64;
            content.moved(bytes as u64);
        }
        Ok(Pumped::All)
    }

    /// Finds out what the registry has of the blob, and goes on from there; or begins anew.
    /// That it is `out_of_order` where it says it is will not be heard again.
    async fn resume(&mut self, verified: bool, out_of_order: bool) -> Result<()> {
        let had = self.offset;
        let status = self.session.attempt(&self.ask(Method::GET, self.location.clone())).await;
        if let Ok(answer) = status {
            let headers = answer.response.headers();
            let there = header(headers, RANGE.as_str()).and_then(|range| received(&range));
            let there = there.filter(|there| *there < self.blob.size);
            let there = there.filter(|there| !out_of_order || *there != had);
            let same = self.session.location(&answer.url, headers, &self.doing);
            // What has to be hashed can only go on where its hash is known.
            if let Some(there) = there.filter(|there| verified || *there == had) {
                self.location = same.unwrap_or_else(|_| self.location.clone());
                self.offset = there;
                return Ok(());
            }
        }
        self.location = start(&self.session, &self.repository).await?;
        self.offset = 0;
        self.hasher = self.hasher.as_ref().map(|_| Hasher::new(self.blob.digest.algorithm()));
        Ok(())
    }

    /// What to do about a failure; the error if there is nothing to be done.
    fn adapt(&mut self, error: &Error) -> bool {
        match error.kind() {
            Kind::Status { status: 413, .. } => {
                let smaller = self.session.receiving.shrink(self.chunk, self.blob.size);
                self.chunk = self.session.receiving.chunk();
                smaller
            }
            // Some way stations break off what takes them too long or is too much for them.
            Kind::Interrupted(_) | Kind::Stalled(_) if self.chunk.is_none() => {
                self.chunk = Some(self.session.receiving.first_chunk());
                true
            }
            // A forgotten upload, or one that has got into disorder.
            Kind::NotFound(_) | Kind::Status { status: 400 | 416, .. } => true,
            _ => error.is_transient(),
        }
    }
}

#[async_trait]
impl Receiver for Upload {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn receive(mut self: Box<Self>, content: Arc<dyn Content>) -> Result<Received> {
        let file = content.file().await?;
        let verified = file.is_some();
        self.hasher = (!verified).then(|| Hasher::new(self.blob.digest.algorithm()));
        let mut retry = self.session.retry();
        let mut reached = 0;
        while let Err(failed) = self.send(content.as_ref(), file.as_ref()).await {
            let Failed { error, at } = failed;
            if at == At::Source {
                return Err(error);
            }
            // The answer may have been lost, and nothing but that.
            if at == At::End && error.is_transient() {
                let there = has(&self.session, &self.repository, &self.blob).await;
                if there.is_ok_and(|there| there) {
                    break;
                }
            }
            if !self.adapt(&error) {
                return Err(error);
            }
            if self.offset > reached {
                reached = self.offset;
                retry.reset();
            }
            let is_too_large = matches!(error.kind(), Kind::Status { status: 413, .. });
            let out_of_order = matches!(error.kind(), Kind::Status { status: 416, .. });
            // Smaller chunks are no repetition, and end by themselves.
            if !is_too_large {
                let delay = retry.again(error)?;
                self.session.pause(delay).await;
            }
            let before = self.offset;
            self.resume(verified, out_of_order).await?;
            if self.offset > before {
                content.moved(self.offset - before);
            } else {
                content.retransmitted(before - self.offset);
            }
        }
        self.holders.note(&self.repository, self.blob.digest);
        if self.session.receiving.is_time_to_probe() {
            probe_mounting(&self.session, &self.repository, &self.blob).await;
        }
        Ok(Received { bytes: self.blob.size, linked: false })
    }
}

/// How passing content on ended.
enum Pumped {
    All,
    /// The request does not want more.
    Refused,
    /// The request takes nothing any more.
    Stalled,
}

/// An attempt that failed.
struct Failed {
    error: Error,
    at: At,
}

/// Where an attempt failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the content could be sent: another attempt would fare no better.
    Source,
    /// While it was sent.
    Sending,
    /// After that, so that maybe only the answer is missing.
    End,
}

impl Failed {
    fn at_source(error: Error) -> Self {
        Self { error, at: At::Source }
    }

    fn at_end(error: Error) -> Self {
        Self { error, at: At::End }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, at: At::Sending }
    }
}

/// A stream that is cut where a chunk ends.
struct Pieces {
    stream: BoxStream,
    rest: Bytes,
    /// Of all that has been passed on, if it has to be hashed.
    hasher: Option<Hasher>,
}

impl Pieces {
    /// The next piece, of at most `limit` bytes.
    async fn next(&mut self, limit: u64) -> Result<Option<Bytes>> {
        while self.rest.is_empty() {
            match self.stream.next().await? {
                Some(piece) => self.rest = piece,
                None => return Ok(None),
            }
        }
        let length = usize::try_from(limit).unwrap_or(usize::MAX).min(self.rest.len());
        Ok(Some(self.rest.split_to(length)))
    }
}

fn content_headers(length: u64, range: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, length.into());
    if let Some(range) = range.and_then(|range| HeaderValue::from_str(range).ok()) {
        headers.insert(CONTENT_RANGE, range);
    }
    headers
}

/// The number of bytes that `Range: 0-1023` says have been received. `0-0` is what registries say
/// that have received none.
fn received(range: &str) -> Option<u64> {
    let range = range.trim();
    let (from, to) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    let to: u64 = to.parse().ok()?;
    (from == "0").then(|| if to == 0 { 0 } else { to.saturating_add(1) })
}

/// Begins an upload.
pub(super) async fn start(session: &Session, repository: &Repository) -> Result<Url> {
    let doing = format!("beginning an upload to {repository}");
    let url = session.url(repository, "blobs/uploads/");
    let ask = Ask::push(Method::POST, url, repository, &doing);
    let answer = session.send(&ask).await?;
    begun(session, &answer, &doing)
}

/// Where an upload goes on that has begun, and how.
fn begun(session: &Session, answer: &Answer, doing: &str) -> Result<Url> {
    let headers = answer.response.headers();
    if let Some(bytes) = header(headers, "oci-chunk-min-length").and_then(|n| n.parse().ok()) {
        session.receiving.least_chunk.fetch_max(bytes, Ordering::Relaxed);
    }
    session.location(&answer.url, headers, doing)
}

/// Ends an upload that is not needed. Registries also do that by themselves after a while.
pub(super) async fn cancel(session: &Session, repository: &Repository, location: Url) {
    let doing = format!("cancelling an upload to {repository}");
    let ask = Ask::push(Method::DELETE, location, repository, &doing);
    let _ = session.attempt(&ask).await;
}

/// Whether `repository` has `blob`.
pub(super) async fn has(
    session: &Session,
    repository: &Repository,
    blob: &Descriptor,
) -> Result<bool> {
    let doing = format!("looking for blob {} in {repository}", blob.digest);
    let url = session.url(repository, &format!("blobs/{}", blob.digest));
    let ask = Ask::push(Method::HEAD, url, repository, &doing);
    match session.send(&ask).await {
        Ok(answer) => {
            let length = header(answer.response.headers(), CONTENT_LENGTH.as_str());
            Ok(length.is_none_or(|length| length == blob.size.to_string()))
        }
        Err(error) if error.is_not_found() => Ok(false),
        // Without HEAD it is sent at worst once more.
        Err(error) if matches!(error.kind(), Kind::Status { status: 405 | 501, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What asking for a mount has brought.
pub(super) enum Mounted {
    /// The blob is in the repository.
    Yes,
    /// It is to be sent to this place.
    No(Url),
    /// The registry does not mount.
    Refused,
}

/// Asks to mount `blob` from the repository `from` of the same registry.
pub(super) async fn mount(
    session: &Session,
    repository: &Repository,
    blob: &Descriptor,
    from: &Repository,
) -> Result<Mounted> {
    let doing = format!("mounting blob {} from {from} into {repository}", blob.digest);
    let mut url = session.url(repository, "blobs/uploads/");
    url.query_pairs_mut()
        .append_pair("mount", &blob.digest.to_string())
        .append_pair("from", from.path());
    let scope = Scope::Push(Some(from));
    let ask = Ask { scope, ..Ask::new(Method::POST, url, repository, &doing) };
    match session.send(&ask).await {
        Ok(answer) if answer.response.status() == reqwest::StatusCode::CREATED => Ok(Mounted::Yes),
        Ok(answer) => begun(session, &answer, &doing).map(Mounted::No),
        Err(error) => match error.kind() {
            Kind::Unauthorized(_)
            | Kind::Denied(_)
            | Kind::NotFound(_)
            | Kind::Status { status: 400 | 405 | 501, .. } => Ok(Mounted::Refused),
            _ => Err(error),
        },
    }
}

/// Finds out with a blob that has just been sent whether mounting can be relied on.
async fn probe_mounting(session: &Session, repository: &Repository, blob: &Descriptor) {
    let known = match mount(session, repository, blob, repository).await {
        Ok(Mounted::Yes) => Mounting::Works,
        Ok(Mounted::No(location)) => {
            cancel(session, repository, location).await;
            Mounting::Refused
        }
        Ok(Mounted::Refused) | Err(_) => Mounting::Refused,
    };
    session.receiving.learn_mounting(known);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_been_received() {
        for (range, bytes) in [
            ("0-1023", Some(1024)),
            ("bytes=0-9", Some(10)),
            ("0-0", Some(0)),
            ("5-9", None),
            ("0-", None),
            ("", None),
            ("0-99999999999999999999", None),
        ] {
            assert_eq!(received(range), bytes, "{range}");
        }
    }

    #[test]
    fn chunks_shrink_until_it_makes_no_sense() {
        let receiving = Receiving::default();
        assert_eq!(receiving.chunk(), None);
        let mut steps = 0;
        while receiving.shrink(receiving.chunk(), u64::MAX) {
            steps += 1;
        }
        assert_eq!((steps, receiving.chunk()), (8, Some(LEAST_CHUNK)));
        assert!(
            receiving.shrink(None, u64::MAX),
            "a blob that was begun whole learns what others have"
        );
        assert_eq!(receiving.chunk(), Some(LEAST_CHUNK));

        let receiving = Receiving::default();
        assert!(receiving.shrink(None, 3 << 20));
        assert_eq!(receiving.chunk(), Some(2 << 20), "less than what was refused");
        receiving.least_chunk.store(4 << 20, Ordering::Relaxed);
        assert_eq!(receiving.chunk(), Some(4 << 20));
        assert!(!receiving.shrink(receiving.chunk(), u64::MAX));
    }
}
