//! Bodies of answers: texts, and parts of blobs that are read as they are sent.
//!
//! A file that is in memory is sent without reading it where the connection can do that ([`sendfile`]), or else read
//! without another thread; on one of the blocking pool where that would wait for the disk. What is not known to be right is hashed before its last block goes out. An error ends the
//! connection so that nobody can take what has come for all of it.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{Mutex, OwnedSemaphorePermit};

use super::{connection::Connection, sendfile, service::Finish};
use crate::{
    backend::{Error, Result, images_dir::cached::BLOCK_BYTES, object_store::BlobReader},
    cache::ConsistentBlob,
    util::{Counter, Died, Flight, read_cached, read_part},
};

/// What is read of a file at a time, in bytes: with less, reading and writing take more calls; with more, 64
/// clients take more memory than they should.
const PIECE: u64 = 256 << 10;

/// The body of an answer.
pub(super) struct Body {
    form: Form,
    /// What is to be done at its end.
    finish: Option<Finish>,
}

enum Form {
    Empty,
    Full(Bytes),
    Parts(Box<Parts>),
}

/// Something that is sent one after the other.
pub(super) enum Segment {
    /// A text between parts.
    Text(Bytes),
    /// These bytes of the blob.
    Part(Range<u64>),
}

/// Where the bytes of a blob come from.
pub(super) enum Source {
    /// A file of the tree, and what finds out whether it is right, if that is not known.
    File(Arc<File>, Option<Flight<Result<()>>>),
    /// An object of a store.
    Object(Arc<Mutex<BlobReader>>),
    /// The cache, through which they come from an upstream.
    Cached(ConsistentBlob),
}

/// Parts of a blob on their way to a client.
struct Parts {
    source: Source,
    segments: VecDeque<Segment>,
    /// Bytes that have not been given out.
    left: u64,
    pending: Option<BoxFuture<'static, io::Result<Bytes>>>,
    connection: Arc<Connection>,
    sent: Counter,
    /// A permit to go on without the client, for who reads all of a blob through the cache.
    whole: Option<OwnedSemaphorePermit>,
}

impl Body {
    fn of(form: Form) -> Self {
        Self { form, finish: None }
    }

    /// Does `finish` when it has been sent, or given up.
    pub(super) fn finishing(mut self, finish: Finish) -> Self {
        self.finish = Some(finish);
        self
    }

    pub(super) fn empty() -> Self {
        Self::of(Form::Empty)
    }

    pub(super) fn full(bytes: Bytes) -> Self {
        Self::of(Form::Full(bytes))
    }

    /// The `segments` of a blob. `sent` counts what is given out.
    pub(super) fn parts(
        source: Source,
        segments: Vec<Segment>,
        connection: Arc<Connection>,
        sent: Counter,
    ) -> Self {
        let left = segments.iter().map(Segment::length).sum();
        Self::of(Form::Parts(Box::new(Parts {
            source,
            segments: segments.into(),
            left,
            pending: None,
            connection,
            sent,
            whole: None,
        })))
    }

    /// Reads a blob from the cache to its end, also if the client leaves.
    pub(super) fn reading_on(mut self, permit: Option<OwnedSemaphorePermit>) -> Self {
        if let Form::Parts(parts) = &mut self.form {
            parts.whole = permit;
        }
        self
    }

    /// Waits until the first bytes can be given out, so that an answer is not begun that cannot be.
    pub(super) async fn primed(mut self) -> Result<Self> {
        if let Form::Parts(parts) = &mut self.form
            && let Some(blob) = parts.first()
        {
            let (blob, at) = blob;
            blob.read(at, 1).await?;
        }
        Ok(self)
    }

    /// The bytes that are left of it.
    pub(super) fn length(&self) -> u64 {
        match &self.form {
            Form::Empty => 0,
            Form::Full(bytes) => bytes.len() as u64,
            Form::Parts(parts) => parts.left,
        }
    }
}

impl Segment {
    fn length(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Part(part) => part.end.saturating_sub(part.start),
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(finish) = &mut self.finish {
            finish.taken();
        }
        let bytes = match &mut self.form {
            Form::Empty => return Poll::Ready(None),
            Form::Full(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Form::Full(bytes) => Ok(std::mem::take(bytes)),
            Form::Parts(parts) => match ready!(parts.poll(context)) {
                None => return Poll::Ready(None),
                Some(bytes) => bytes,
            },
        };
        if let (Ok(bytes), Some(finish)) = (&bytes, &mut self.finish) {
            finish.sent(bytes.len());
        }
        Poll::Ready(Some(bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.length() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length())
    }
}

impl Parts {
    /// Where reading begins, if that is in the cache.
    fn first(&self) -> Option<(ConsistentBlob, u64)> {
        let Source::Cached(blob) = &self.source else { return None };
        let starts = self.segments.iter().find_map(|segment| match segment {
            Segment::Part(part) if !part.is_empty() => Some(part.start),
            _ => None,
        });
        Some((blob.clone(), starts?))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(pending) = &mut self.pending {
                let read = ready!(pending.poll_unpin(context));
                self.pending = None;
                return Poll::Ready(Some(self.given(read)));
            }
            match self.segments.front_mut() {
                None => return Poll::Ready(None),
                Some(Segment::Text(text)) => {
                    let text = std::mem::take(text);
                    self.segments.pop_front();
                    self.left -= text.len() as u64;
                    return Poll::Ready(Some(Ok(text)));
                }
                Some(Segment::Part(part)) if part.is_empty() => {
                    self.segments.pop_front();
                }
                Some(Segment::Part(part)) => {
                    let part = part.clone();
                    if let Some(read) = self.read(part) {
                        return Poll::Ready(Some(self.given(read)));
                    }
                }
            }
        }
    }

    /// Reads what comes next of `part`, now if it is in memory; otherwise `pending` does.
    fn read(&mut self, part: Range<u64>) -> Option<io::Result<Bytes>> {
        match &self.source {
            Source::File(file, doubt) => {
                let end = part.end.min(part.start + PIECE);
                // The last block of an answer is given out when all of the blob has been found to be right, also
                // where the answer is a part of it.
                let safe = match doubt {
                    Some(_) => part.start + self.left.saturating_sub(BLOCK_BYTES),
                    None => u64::MAX,
                };
                if part.start >= safe
                    && let Some(doubt) = doubt.clone()
                {
                    let file = file.clone();
                    self.pending = Some(Box::pin(async move {
                        doubt.await.map_err(died)?.map_err(failed)?;
                        read_on_pool(file, part.start..end).await
                    }));
                    return None;
                }
                if let Some(parts) = self.connection.parts() {
                    let end = part.end.min(part.start + sendfile::MAX_PART).min(safe);
                    if let Some(placeholder) = parts.placeholder(file, &(part.start..end)) {
                        return Some(Ok(placeholder));
                    }
                }
                let end = end.min(safe);
                // At most a piece.
                let length = (end - part.start) as usize;
                if let Some(read) = read_cached(file, part.start, length) {
                    return Some(read);
                }
                self.pending = Some(Box::pin(read_on_pool(file.clone(), part.start..end)));
                None
            }
            Source::Object(reader) => {
                let reader = reader.clone();
                self.pending = Some(Box::pin(async move {
                    // Nobody else has it; a piece is not asked for before the last one has come.
                    let mut reader = reader.lock().await;
                    reader.read(part, PIECE as usize).await.map_err(failed)
                }));
                None
            }
            Source::Cached(blob) => {
                let length = (part.end - part.start).min(PIECE) as usize;
                if let Some(read) = blob.try_read(part.start, length) {
                    return Some(read.map_err(failed));
                }
                // One block: whoever waits gets what comes as soon as it comes.
                let block_end = (part.start / BLOCK_BYTES + 1) * BLOCK_BYTES;
                let blob = blob.clone();
                let length = (part.end.min(block_end) - part.start) as usize;
                let read = async move { blob.read(part.start, length).await.map_err(failed) };
                self.pending = Some(Box::pin(read));
                None
            }
        }
    }

    /// Counts what has been read of the first segment.
    fn given(&mut self, read: io::Result<Bytes>) -> io::Result<Bytes> {
        let Some(Segment::Part(part)) = self.segments.front_mut() else {
            return Err(io::Error::other("nothing is left to be sent"));
        };
        let read = match read {
            Ok(bytes) if bytes.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        match read {
            Ok(bytes) => {
                part.start += bytes.len() as u64;
                self.left -= bytes.len() as u64;
                self.sent.inc_by(bytes.len() as u64);
                if self.left == 0 {
                    self.whole = None;
                }
                Ok(bytes)
            }
            Err(error) => {
                tracing::warn!("sending a blob: {error}");
                self.connection.break_off();
                self.whole = None;
                Err(error)
            }
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let Some(permit) = self.whole.take() else { return };
        let (Source::Cached(blob), Some(Segment::Part(rest))) =
            (&self.source, self.segments.front())
        else {
            return;
        };
        let (blob, mut rest) = (blob.blob().clone(), rest.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            while rest.start < rest.end {
                let length = (rest.end - rest.start).min(PIECE) as usize;
                match blob.read(rest.start, length).await {
                    Ok(bytes) if !bytes.is_empty() => rest.start += bytes.len() as u64,
                    Ok(_) => break,
                    Err(error) => {
                        tracing::info!("fetching the rest of a blob: {error}");
                        break;
                    }
                }
            }
            drop(permit);
        });
    }
}

async fn read_on_pool(file: Arc<File>, range: Range<u64>) -> io::Result<Bytes> {
    // At most a piece.
    let length = (range.end - range.start) as usize;
    let work = move || read_part(&file, range.start, length);
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn died(died: Died) -> io::Error {
    io::Error::other(died)
}

fn failed(error: Error) -> io::Error {
    io::Error::other(error)
}
