//! Moving one blob: from a socket, through a bounded queue, to a thread that hashes and writes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    plan::BlobPlan,
    report::{Event, Observer},
};
use crate::{
    image::Descriptor,
    tree::{Blobs, ByteStream, Error, Kind, Receiver, Result},
};

/// Bytes of one blob that may wait between the socket and the disk. It bounds the memory, and what
/// a killed process has received in vain.
const QUEUE_BYTES: usize = 512 << 10;

/// A piece of a blob, and its share of the queue.
type Piece = (Bytes, Option<OwnedSemaphorePermit>);

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
    observer: &Arc<O>,
) -> Result<Moved> {
    let offset = receiver.offset();
    let receiver = match &blob.content {
        Some(content) => {
            let rest = content.slice((offset.min(content.len() as u64)) as usize..);
            store(receiver, blob, observer, Whole(Some(rest))).await?
        }
        None => {
            let stream = open(source, blob, offset).await?;
            store(receiver, blob, observer, stream).await?
        }
    };
    let size = blob.descriptor.size;
    blocking(&blob.descriptor, move || receiver.commit()).await?;
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

/// Passes all of `stream` to `receiver`, which works on a thread of its own.
async fn store<T: ByteStream, R: Receiver, O: Observer>(
    mut receiver: R,
    blob: &BlobPlan,
    observer: &Arc<O>,
    mut stream: T,
) -> Result<R> {
    let (queue, mut pieces) = mpsc::channel::<Piece>(64);
    let room = Arc::new(Semaphore::new(QUEUE_BYTES));
    let worker = {
        let (observer, digest) = (observer.clone(), blob.descriptor.digest);
        blocking(&blob.descriptor, move || {
            while let Some((piece, share)) = pieces.blocking_recv() {
                receiver.write(&piece)?;
                drop(share);
                observer.event(Event::BlobProgress { digest, bytes: piece.len() as u64 });
            }
            Ok(receiver)
        })
    };
    let feed = async move {
        while let Some(piece) = stream.next().await? {
            // A piece that is larger than the queue takes all of it.
            let share = piece.len().min(QUEUE_BYTES) as u32;
            // The semaphore is never closed.
            let share = room.clone().acquire_many_owned(share).await.ok();
            if queue.send((piece, share)).await.is_err() {
                break; // The worker has failed, and says why.
            }
        }
        Ok(())
    };
    let (fed, stored): (Result<()>, Result<R>) = futures_util::future::join(feed, worker).await;
    let receiver = stored?;
    fed?;
    Ok(receiver)
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
