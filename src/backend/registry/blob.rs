//! Reading a blob: one ranged request after another, until all its bytes have come.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Method, StatusCode, Url, Version,
    header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue},
};

use async_trait::async_trait;

use super::{
    encoding::{Encoding, Gunzip},
    retry::Retry,
    session::{Answer, Ask, Lane, Session},
};
use crate::{
    backend::{ByteStream, Error, Kind, Result},
    image::{Descriptor, Digest, Repository},
};

/// The least that an answer may have of the range that was asked for, in bytes: with less, a blob would take as many
/// requests as somebody likes.
const MIN_SLICE: u64 = 64 << 10;

/// Progress that makes a broken connection a new trouble and not the old one again.
const PROGRESS: u64 = 256 << 10;

/// Parts of a blob that begin this far from each other have connections of their own, in bytes.
const APART: u64 = 4 << 20;

/// The rest of a blob from some offset. A connection that breaks or stalls is replaced by a new
/// request for what is missing; where the registry does not know ranges, the part that is already
/// there is read again and thrown away.
pub struct BlobStream {
    session: Arc<Session>,
    repository: Repository,
    url: Url,
    /// Where the registry's redirect led.
    redirected: Option<Url>,
    doing: String,
    /// See [`Ask::connection`].
    connection: usize,
    /// Next byte that the caller gets.
    offset: u64,
    /// The end of what is wanted.
    end: u64,
    /// Of the whole blob.
    size: u64,
    answer: Option<Answer>,
    /// Decodes the answer, if it has been encoded on its way.
    gunzip: Option<Gunzip>,
    /// Bytes of the answer to throw away before `offset` is reached.
    skip: u64,
    /// Where the answer ends.
    answer_end: u64,
    ranges_work: bool,
    retry: Retry,
    /// Where the last trouble was.
    trouble_at: u64,
}

impl BlobStream {
    pub(super) fn new(
        session: Arc<Session>,
        repository: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Self {
        let end = range.end.min(blob.size);
        let offset = range.start.min(end);
        Self {
            url: session.wire.url(repository, &format!("blobs/{}", blob.digest)),
            redirected: None,
            doing: format!("fetching blob {} of {repository}", blob.digest),
            retry: session.wire.retry(),
            session,
            repository: repository.clone(),
            connection: 0,
            offset,
            end,
            size: blob.size,
            answer: None,
            gunzip: None,
            skip: 0,
            answer_end: end,
            ranges_work: true,
            trouble_at: offset,
        }
    }

    /// The same over one of several connections, if it is a large part of a blob of which other parts may be under
    /// way, and one connection would carry all of them.
    pub(super) fn apart(mut self) -> Self {
        let is_part = self.offset > 0 && self.end - self.offset >= APART / 2;
        if is_part && self.session.multiplexes.load(Ordering::Relaxed) {
            let connections = self.session.wire.config.connections_per_blob.max(1) as u64;
            // Less than the number of connections.
            self.connection = (self.offset / APART % connections) as usize;
        }
        self
    }

    /// The digest in the address, for foreign layers that live elsewhere.
    pub(super) fn at(mut self, url: Url, digest: Digest) -> Self {
        self.doing = format!("fetching blob {digest} from {}", url.host_str().unwrap_or_default());
        self.url = url;
        self
    }

    /// Makes the first request, so that what is not there is known at once.
    pub(super) async fn start(mut self) -> Result<Self> {
        while self.offset < self.end && self.answer.is_none() {
            if let Err(error) = self.open().await {
                self.mend(error).await?;
            }
        }
        Ok(self)
    }

    /// Another stream of the same blob, from where the registry's redirect has led this one. Over
    /// HTTP/2 it has the given connection, as with that protocol one would carry both.
    pub(super) fn fork(&self, range: Range<u64>, connection: usize) -> Self {
        let answer = self.answer.as_ref();
        let shares = answer.is_some_and(|answer| answer.response.version() == Version::HTTP_2);
        Self {
            session: self.session.clone(),
            repository: self.repository.clone(),
            url: self.url.clone(),
            redirected: self.redirected.clone(),
            doing: self.doing.clone(),
            connection: if shares { connection } else { 0 },
            offset: range.start,
            end: range.end,
            size: self.size,
            answer: None,
            gunzip: None,
            skip: 0,
            answer_end: range.end,
            ranges_work: self.ranges_work,
            retry: self.session.wire.retry(),
            trouble_at: range.start,
        }
    }

    /// What has not been read.
    pub(super) fn rest(&self) -> Range<u64> {
        self.offset..self.end
    }

    /// Leaves the bytes from `end` on to somebody else.
    pub(super) fn end_at(&mut self, end: u64) {
        self.end = self.end.min(end.max(self.offset));
    }

    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    fn error(&self, kind: Kind) -> Error {
        self.session.wire.error(&self.doing, kind)
    }

    /// The range that is to be asked for; `None` asks for everything.
    fn range(&self) -> Option<HeaderValue> {
        let last = if self.end < self.size { (self.end - 1).to_string() } else { String::new() };
        let whole = self.offset == 0 && last.is_empty();
        let range = format!("bytes={}-{last}", self.offset);
        HeaderValue::from_str(&range).ok().filter(|_| self.ranges_work && !whole)
    }

    /// Asks for the bytes from `offset` on.
    async fn open(&mut self) -> Result<()> {
        let range = self.range();
        let from = if range.is_some() { self.offset } else { 0 };
        let asked_for_part = range.is_some();
        let ask = Ask {
            via: self.redirected.clone(),
            range,
            lane: Lane::Blobs,
            connection: self.connection,
            ..Ask::new(Method::GET, self.url.clone(), &self.repository, &self.doing)
        };
        let answer = match self.session.attempt(&ask).await {
            Err(error) if from > 0 && matches!(error.kind(), Kind::Status { status: 416, .. }) => {
                self.ranges_work = false;
                let reason = format!("asked for bytes from {from} on, it says there are none");
                return Err(self.error(Kind::Protocol(reason)));
            }
            other => other?,
        };
        if answer.response.version() == Version::HTTP_2 {
            self.session.multiplexes.store(true, Ordering::Relaxed);
        }
        let mut end = self.size;
        let encoding = Encoding::of(answer.response.headers());
        self.gunzip = None;
        let start = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                end = self.end;
                let range = content_range(answer.response.headers());
                let of_content = range.is_some_and(|(_, total)| total == Some(self.size));
                if encoding != Encoding::Plain && !of_content {
                    self.ranges_work = false;
                    let reason = "it sends a part of something that has been compressed on its way";
                    return Err(self.error(Kind::Protocol(reason.into())));
                }
                match range {
                    Some((start, total)) if start == from => {
                        if let Some(total) = total.filter(|total| *total != self.size) {
                            return Err(
                                self.error(Kind::Size { expected: self.size, found: total })
                            );
                        }
                        start
                    }
                    _ => {
                        self.ranges_work = false;
                        let reason =
                            format!("asked for bytes from {from} on, it sent another range");
                        return Err(self.error(Kind::Protocol(reason)));
                    }
                }
            }
            StatusCode::OK => {
                self.ranges_work &= !asked_for_part;
                0
            }
            status => {
                let reason = format!("it answered {status} to a request for content");
                return Err(self.error(Kind::Protocol(reason)));
            }
        };
        let expected = end - start;
        let length = answer.response.content_length();
        // Content of the right length is the content, whatever it is called: objects that are gzip by
        // themselves are often kept as such.
        let is_encoded = encoding != Encoding::Plain && length != Some(expected);
        if is_encoded {
            // Parts would be parts of what is encoded.
            self.ranges_work = false;
            match encoding {
                Encoding::Other(name) => {
                    return Err(self.error(Kind::Unfit(Encoding::refusal(&name))));
                }
                _ => self.gunzip = Some(Gunzip::new()),
            }
        } else if let Some(length) = length.filter(|l| *l != expected) {
            let found = start + length;
            // It may answer with less than was asked for (RFC 9110, 15.3.7); the rest is asked for after that.
            let is_slice = answer.response.status() == StatusCode::PARTIAL_CONTENT
                && (MIN_SLICE..expected).contains(&length);
            if !is_slice {
                return Err(self.error(Kind::Size { expected: end, found }));
            }
            end = found;
        }
        self.answer_end = end;
        self.skip = self.offset - start;
        self.redirected = (answer.url != self.url).then(|| answer.url.clone());
        self.answer = Some(answer);
        Ok(())
    }

    /// Waits before the next attempt, or gives up.
    async fn mend(&mut self, error: Error) -> Result<()> {
        self.answer = None;
        // The next attempt asks the registry itself where to go.
        self.redirected = None;
        if self.offset >= self.trouble_at + PROGRESS {
            self.retry.reset();
        }
        self.trouble_at = self.offset;
        let delay: Duration = self.retry.after(error)?;
        self.session.wire.pause(delay).await;
        Ok(())
    }

    /// The next bytes of the answer at hand, decoded; none at its end.
    async fn decoded(&mut self) -> Result<Option<Bytes>> {
        let wire = &self.session.wire;
        loop {
            let damaged = |reason| wire.error(&self.doing, Kind::Protocol(reason));
            if let Some(piece) =
                self.gunzip.as_mut().map(Gunzip::next).transpose().map_err(damaged)?
                && let Some(piece) = piece
            {
                return Ok(Some(piece));
            }
            let Some(answer) = &mut self.answer else { return Ok(None) };
            let chunk = wire.chunk(&mut answer.response, &self.doing).await?;
            if let Some(chunk) = &chunk {
                wire.stats.add_received(chunk.len());
            }
            match (chunk, &mut self.gunzip) {
                (chunk, None) => return Ok(chunk),
                (Some(chunk), Some(gunzip)) => gunzip.feed(chunk),
                (None, Some(gunzip)) => {
                    let last = gunzip.finish().map_err(damaged)?;
                    return Ok(Some(last).filter(|last| !last.is_empty()));
                }
            }
        }
    }

    /// The next piece of the answer at hand, with what was asked for only.
    async fn piece(&mut self) -> Result<Bytes> {
        let Some(chunk) = self.decoded().await? else {
            if self.offset == self.answer_end && self.skip == 0 {
                // It was a slice of what was asked for.
                self.answer = None;
                return Ok(Bytes::new());
            }
            let reason = format!("it ended after {} of {} bytes", self.offset, self.size);
            return Err(self.error(Kind::Interrupted(reason)));
        };
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        // `skipped` is at most the chunk's length.
        let chunk = chunk.slice(skipped as usize..);
        let found = self.offset + chunk.len() as u64;
        if found > self.answer_end {
            return Err(self.error(Kind::Size { expected: self.answer_end, found }));
        }
        // Of everything, which is what came, only so much is wanted.
        let wanted = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        Ok(chunk.slice(..chunk.len().min(wanted)))
    }
}

#[async_trait]
impl ByteStream for BlobStream {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.offset < self.end {
            let step = match self.answer {
                None => self.open().await.map(|()| Bytes::new()),
                Some(_) => self.piece().await,
            };
            match step {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => {
                    self.offset += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Err(error) => self.mend(error).await?,
            }
        }
        self.answer = None;
        Ok(None)
    }

    fn ignores_ranges(&self) -> bool {
        !self.ranges_work
    }
}

/// The size of a blob in bytes, as the registry states it.
///
/// Where `HEAD` does not tell, as with addresses that are signed for `GET` alone, the first byte is asked for.
pub(super) async fn size(
    session: &Session,
    repository: &Repository,
    digest: Digest,
) -> Result<u64> {
    let doing = format!("looking up blob {digest} of {repository}");
    let url = session.wire.url(repository, &format!("blobs/{digest}"));
    let ask = |method, range| {
        let lane = Lane::Names;
        Ask { range, lane, ..Ask::new(method, url.clone(), repository, &doing) }
    };
    match session.send(&ask(Method::HEAD, None)).await {
        Ok(answer) => {
            let length = answer.response.headers().get(CONTENT_LENGTH);
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            // Some say that there is no body, which is true of every answer to this.
            if let Some(length) = length.filter(|length| digest.may_have(*length)) {
                return Ok(length);
            }
        }
        Err(error) if !error.is_elsewhere() => return Err(error),
        Err(_) => {}
    }
    let first = HeaderValue::from_static("bytes=0-0");
    let answer = session.send(&ask(Method::GET, Some(first))).await?;
    let headers = answer.response.headers();
    let of_range = content_range(headers).and_then(|(_, total)| total);
    let is_whole = answer.response.status() == StatusCode::OK;
    let size = of_range.or_else(|| answer.response.content_length().filter(|_| is_whole));
    let reason = "it does not say how large the blob is";
    size.filter(|size| digest.may_have(*size))
        .ok_or_else(|| session.wire.error(&doing, Kind::Protocol(reason.into())))
}

/// `bytes 5-9/10` -> `(5, Some(10))`
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((start.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(parse("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse("bytes 0-0/*"), Some((0, None)));
        for bad in ["", "bytes */10", "bytes 5/10", "items 5-9/10", "bytes -1-9/10", "bytes 5-9/x"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
