//! Sending a blob: in one request where the registry takes it, in chunks where it does not, and
//! from where it stopped after an interruption (distribution specification, "Pushing blobs").

use std::{
    sync::{Arc, Mutex},
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
    begin::{has, probe_mounting, start},
    client::FRESH,
    holders::Holders,
    session::{Answer, Ask, Lane, Payload, Session, content_digest, header},
};
use crate::{
    backend::{BoxStream, Content, Error, Kind, LocalFile, Received, Receiver, Result},
    image::{Descriptor, Hasher, Repository},
};

/// Pieces that wait to be sent.
const QUEUED_PIECES: usize = 1;

/// A registry that has all bytes may take this long for each of so many to hash and store them,
/// in addition to [`RegistryConfig::stall_timeout`](super::config::RegistryConfig::stall_timeout).
const STORING: (u64, Duration) = (16 << 20, Duration::from_secs(1));

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
    /// Whether each request has a new connection, since one that was kept had been closed.
    fresh: bool,
    /// Whether the registry has refused to take the blob in one request.
    refused_whole: bool,
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
            fresh: false,
            refused_whole: false,
        }
    }

    fn error(&self, kind: impl Into<Kind>) -> Error {
        self.session.wire.error(&self.doing, kind)
    }

    fn ask(&self, method: Method, url: Url) -> Ask<'_> {
        let connection = if self.fresh { FRESH } else { 0 };
        let ask = Ask::push(method, url, &self.repository, &self.doing);
        Ask { lane: Lane::Uploads, connection, ..ask }
    }

    /// Where the upload is completed.
    fn final_url(&self) -> Url {
        let mut url = self.location.clone();
        url.query_pairs_mut().append_pair("digest", &self.blob.digest.to_string());
        url
    }

    /// Whether the registry has all bytes, and only has to be told that there are no more.
    fn is_complete(&self) -> bool {
        self.offset > 0 && self.offset == self.blob.size
    }

    /// Sends what is missing.
    async fn send(
        &mut self,
        content: &dyn Content,
        file: Option<&LocalFile>,
    ) -> std::result::Result<(), Failed> {
        if self.is_complete() {
            return self.finish().await;
        }
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
        // The rest of what has been sent in part is a chunk in any case.
        let rest = Some(self.session.receiving.first_chunk()).filter(|_| self.offset > 0);
        let Some(chunk) = self.chunk.or(rest) else {
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
                self.session.wire.location(&answer.url, answer.response.headers(), &self.doing)?;
            self.offset += length;
            self.hasher.clone_from(&pieces.hasher);
        }
        self.finish().await
    }

    /// Completes the upload.
    async fn finish(&self) -> std::result::Result<(), Failed> {
        let answer = self.session.attempt(&self.ask(Method::PUT, self.final_url())).await;
        self.check_stored(&answer.map_err(Failed::at_end)?)
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
                        let patience = self.session.wire.config.stall_timeout.saturating_add(patience);
                        match timeout(patience, request).await {
                            Ok(answer) => answer.map_err(Failed::at_end),
                            Err(_) => Err(Failed::at_end(self.error(Kind::Stalled(patience)))),
                        }
                    }
                    Ok(Pumped::Stalled) => {
                        Err(self.error(Kind::Stalled(self.session.wire.config.stall_timeout)).into())
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
        let stall = self.session.wire.config.stall_timeout;
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
            self.session.wire.stats.add_sent(bytes);
            *moved += bytes as u64;
            content.moved(bytes as u64);
        }
        Ok(Pumped::All)
    }

    /// Finds out what the registry has of the blob, and goes on from there; or begins anew.
    /// Where it has just been refused to go on (`is_stuck`), it does not.
    async fn resume(&mut self, verified: bool, is_stuck: bool) -> Result<()> {
        let had = self.offset;
        let status = self.session.attempt(&self.ask(Method::GET, self.location.clone())).await;
        if let Ok(answer) = status {
            let headers = answer.response.headers();
            let there = header(headers, RANGE.as_str()).and_then(|range| received(&range));
            let there = there.filter(|there| *there <= self.blob.size);
            let there = there.filter(|there| !is_stuck || *there != had);
            let same = self.session.wire.location(&answer.url, headers, &self.doing);
            // What has to be hashed can only go on where its hash is known. All of it is only sent after that
            // has been found to be right.
            let goes_on = |there: &u64| verified || *there == had || *there == self.blob.size;
            if let Some(there) = there.filter(goes_on) {
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

    /// What to do about a failure.
    fn adapt(&mut self, error: &Error) -> Next {
        let smaller = match (error.kind(), self.chunk) {
            (kind, _) if is_too_large(kind) => {
                if !self.session.receiving.shrink(self.chunk, self.blob.size) {
                    return Next::GiveUp;
                }
                self.session.receiving.chunk()
            }
            // Some registries take content by PATCH only. They say so, or find the wrong digest since they
            // have not looked at the body.
            (Kind::Status { status: 400 | 405 | 422 | 501, .. }, None) => {
                self.refused_whole = true;
                Some(self.session.receiving.first_chunk())
            }
            _ => None,
        };
        if smaller.is_some() {
            self.chunk = smaller;
            return Next::Differently;
        }
        match error.kind() {
            // Most likely it had been kept for too long.
            Kind::Interrupted(_) if !self.fresh => {
                self.fresh = true;
                self.divide_if(self.blob.size > self.session.receiving.first_chunk());
                Next::Differently
            }
            // Some way stations break off what takes them too long or is too much for them.
            Kind::Interrupted(_) | Kind::Stalled(_) => {
                self.divide_if(true);
                Next::Again
            }
            // A forgotten upload, or one that has got into disorder.
            Kind::NotFound(_) | Kind::Status { status: 400 | 416, .. } => Next::Again,
            _ if error.is_transient() => Next::Again,
            _ => Next::GiveUp,
        }
    }

    /// Goes on in chunks.
    fn divide_if(&mut self, condition: bool) {
        if condition && self.chunk.is_none() {
            self.chunk = Some(self.session.receiving.first_chunk());
        }
    }
}

/// Whether a registry says that a body is too large. Azure's says so with the status for a wrong range.
fn is_too_large(kind: &Kind) -> bool {
    match kind {
        Kind::Status { status: 413, .. } => true,
        Kind::Status { status: 416, message, .. } => {
            message.to_ascii_lowercase().contains("too large")
        }
        _ => false,
    }
}

/// What follows a failure.
enum Next {
    /// The same once more, after a while.
    Again,
    /// What is missing in another way, at once. That ends by itself.
    Differently,
    /// Nothing: it would fail again.
    GiveUp,
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
        let mut retry = self.session.wire.retry();
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
            let next = self.adapt(&error);
            if self.offset > reached {
                reached = self.offset;
                retry.reset();
            }
            let is_416 = matches!(error.kind(), Kind::Status { status: 416, .. });
            let is_stuck = match self.is_complete() {
                true => !error.is_transient(),
                false => is_416 && !is_too_large(error.kind()),
            };
            match next {
                Next::GiveUp => return Err(error),
                Next::Differently => tracing::info!("{error}; trying it in another way"),
                Next::Again => {
                    let delay = retry.again(error)?;
                    self.session.wire.pause(delay).await;
                }
            }
            let before = self.offset;
            self.resume(verified, is_stuck).await?;
            if self.offset > before {
                content.moved(self.offset - before);
            } else {
                content.retransmitted(before - self.offset);
            }
        }
        if self.refused_whole {
            self.session.receiving.learn_chunks();
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
}
