//! Moving one blob: from a socket to a hash and a file.
//!
//! While there are fewer blobs under way than processors, receiving, hashing and writing are done
//! by three threads, so that a single large blob moves as fast as the slowest of the three, which
//! is the hash. With more blobs than processors there is nothing to be won by that: then each piece
//! is hashed and written where it arrived, while it is in that processor's cache, and the switches
//! between threads (a tenth of all the work, measured on two processors) are saved.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    plan::BlobPlan,
    report::{Event, Observer},
};
use crate::{
    image::{Descriptor, Hasher},
    tree::{Blobs, ByteStream, Error, Kind, Receiver, Result},
};

/// Pieces go from thread to thread in parcels of about this many bytes.
const PARCEL_BYTES: usize = 192 << 10;

/// Parcels that may wait for a thread. With the ones in work they are what a blob holds in memory,
/// and what a killed process has received in vain: about 1 MiB.
const QUEUED_PARCELS: usize = 2;

/// Counts the blobs that are under way.
pub(super) struct Traffic {
    blobs: AtomicUsize,
    /// Asked once: the answer takes reading files, and is wanted for every piece.
    processors: usize,
}

impl Default for Traffic {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self { blobs: AtomicUsize::new(0), processors }
    }
}

/// A blob is under way as long as this lives.
struct Underway<'a>(&'a Traffic);

impl Traffic {
    fn enter(&self) -> Underway<'_> {
        self.blobs.fetch_add(1, Ordering::Relaxed);
        Underway(self)
    }

    /// Whether every processor has a blob of its own to work on.
    fn is_dense(&self) -> bool {
        self.blobs.load(Ordering::Relaxed) > self.processors
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.0.blobs.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a blob came to the target.
pub(super) struct Moved {
    /// Bytes that had to be moved.
    pub fetched: u64,
}

/// Moves `blob` into `receiver`, and publishes it there.
pub(super) async fn move_blob<S: Blobs, R: Receiver, O: Observer>(
    source: &S,
    blob: &BlobPlan,
    receiver: R,
    traffic: &Traffic,
    observer: &Arc<O>,
) -> Result<Moved> {
    let _underway = traffic.enter();
    let offset = receiver.offset();
    let mut target = Target { hasher: receiver.hasher(), receiver };
    target = match &blob.content {
        Some(content) => {
            let rest = content.slice((offset.min(content.len() as u64)) as usize..);
            store(target, blob, traffic, observer, Whole(Some(rest))).await?
        }
        None => {
            let stream = open(source, blob, offset).await?;
            store(target, blob, traffic, observer, stream).await?
        }
    };
    let size = blob.descriptor.size;
    blocking(&blob.descriptor, move || target.receiver.commit(target.hasher.finish())).await?;
    Ok(Moved { fetched: size.saturating_sub(offset) })
}

/// Opens the blob in the first repository that gives it.
async fn open<S: Blobs>(source: &S, blob: &BlobPlan, offset: u64) -> Result<S::Stream> {
    let mut failure = None;
    for repository in &blob.sources {
        match source.read(repository, &blob.descriptor, offset).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let elsewhere = matches!(
                    error.kind(),
                    Kind::NotFound(_) | Kind::Denied(_) | Kind::Unauthorized(_)
                );
                let first = failure.get_or_insert(error);
                if !elsewhere {
                    return Err(first.clone());
                }
            }
        }
    }
    Err(failure.unwrap_or_else(|| {
        let doing = format!("fetching blob {}", blob.descriptor.digest);
        Error::new("planning", doing, Kind::NotFound("no repository has it".into()))
    }))
}

/// Where the bytes of a blob go.
struct Target<R> {
    hasher: Hasher,
    receiver: R,
}

/// Passes all of `stream` to `target`. What came before an error is kept.
async fn store<T: ByteStream, R: Receiver, O: Observer>(
    mut target: Target<R>,
    blob: &BlobPlan,
    traffic: &Traffic,
    observer: &Arc<O>,
    mut stream: T,
) -> Result<Target<R>> {
    let digest = blob.descriptor.digest;
    loop {
        while traffic.is_dense() {
            let Some(piece) = stream.next().await? else { return Ok(target) };
            target.hasher.update(&piece);
            target.receiver.write(&piece)?;
            observer.event(Event::BlobProgress { digest, bytes: piece.len() as u64 });
        }
        let end;
        (target, end) = store_in_parallel(target, blob, traffic, observer, &mut stream).await?;
        match end {
            Some(Ok(())) => return Ok(target),
            Some(Err(error)) => return Err(error),
            None => {} // It has become dense.
        }
    }
}

/// The same with a thread for the hash and one for the file, as long as processors are free for
/// them. Second, how the stream has ended, if it has.
async fn store_in_parallel<T: ByteStream, R: Receiver, O: Observer>(
    target: Target<R>,
    blob: &BlobPlan,
    traffic: &Traffic,
    observer: &Arc<O>,
    stream: &mut T,
) -> Result<(Target<R>, Option<Result<()>>)> {
    let digest = blob.descriptor.digest;
    let Target { mut hasher, mut receiver } = target;
    let (to_hash, mut hashing) = mpsc::channel::<Vec<Bytes>>(QUEUED_PARCELS);
    let (to_file, mut writing) = mpsc::channel::<Vec<Bytes>>(QUEUED_PARCELS);
    let hashed = blocking(&blob.descriptor, move || {
        while let Some(parcel) = hashing.blocking_recv() {
            parcel.iter().for_each(|piece| hasher.update(piece));
        }
        Ok(hasher)
    });
    let observer = observer.clone();
    let written = blocking(&blob.descriptor, move || {
        while let Some(parcel) = writing.blocking_recv() {
            for piece in &parcel {
                receiver.write(piece)?;
                observer.event(Event::BlobProgress { digest, bytes: piece.len() as u64 });
            }
        }
        Ok(receiver)
    });
    let fed = async move {
        loop {
            let (parcel, end) = collect(stream).await;
            // A thread that has gone away says itself why.
            let gone =
                to_hash.send(parcel.clone()).await.is_err() || to_file.send(parcel).await.is_err();
            if end.is_some() || gone || traffic.is_dense() {
                return end;
            }
        }
    };
    let (end, hasher, receiver) = futures_util::future::join3(fed, hashed, written).await;
    Ok((Target { hasher: hasher?, receiver: receiver? }, end))
}

/// Collects a parcel; second, how the stream has ended, if it has.
async fn collect<T: ByteStream>(stream: &mut T) -> (Vec<Bytes>, Option<Result<()>>) {
    let (mut parcel, mut bytes) = (Vec::new(), 0);
    while bytes < PARCEL_BYTES {
        match stream.next().await {
            Ok(Some(piece)) => {
                bytes += piece.len();
                parcel.push(piece);
            }
            Ok(None) => return (parcel, Some(Ok(()))),
            Err(error) => return (parcel, Some(Err(error))),
        }
    }
    (parcel, None)
}

/// Content that is at hand.
struct Whole(Option<Bytes>);

impl ByteStream for Whole {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.take())
    }
}

/// Runs blocking work on a thread of its own.
async fn blocking<T: Send + 'static>(
    blob: &Descriptor,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => {
            let doing = format!("storing blob {}", blob.digest);
            Err(Error::new("images_dir", doing, std::io::Error::other(panic)))
        }
    }
}
