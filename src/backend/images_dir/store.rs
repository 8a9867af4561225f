//! Storing what arrives: from a stream to a hash and a file.
//!
//! While there are fewer blobs under way than processors, receiving, hashing and writing are done
//! by three threads, so that a single large blob moves as fast as the slowest of the three, which
//! is the hash. With more blobs than processors there is nothing to be won by that: then what has been
//! received is hashed and written by one thread, while the other blobs keep the processors busy, and most
//! of the switches between threads (a tenth of all the work, measured on two processors) are saved.
//!
//! Nothing is hashed or written on a thread of the runtime, where a slow disk would hold up everybody.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    backend::{BoxStream, Content, Error, Result},
    image::Hasher,
};

/// Pieces go from thread to thread in batches of about this many bytes.
const BATCH_BYTES: usize = 192 << 10;

/// Batches that may wait for a thread. With the ones in work they are what a blob holds in memory,
/// and what a killed process has received in vain: about 1 MiB.
const QUEUED_BATCHES: usize = 2;

/// The size of a batch where one thread hashes and writes it: enough that starting that takes no time that
/// matters, and no more memory than the queues take.
const DENSE_BATCH_BYTES: usize = 512 << 10;

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
pub(super) struct Underway<'a>(&'a Traffic);

impl Traffic {
    pub(super) fn enter(&self) -> Underway<'_> {
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

/// Takes the bytes of a blob one after another.
pub(super) trait Writer: Send + 'static {
    /// Takes the next bytes. It may block.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
}

/// Where the bytes of a blob go.
pub(super) struct Target<W> {
    pub hasher: Hasher,
    pub writer: W,
}

impl<W: Writer> Target<W> {
    fn take(&mut self, batch: &[Bytes], content: &dyn Content) -> Result<()> {
        for piece in batch {
            self.hasher.update(piece);
            self.writer.write(piece)?;
            content.moved(piece.len() as u64);
        }
        Ok(())
    }
}

/// Passes all of `stream` to `target`. What came before an error is kept.
pub(super) async fn store<W: Writer>(
    mut target: Target<W>,
    traffic: &Traffic,
    content: &Arc<dyn Content>,
    mut stream: BoxStream,
) -> Result<Target<W>> {
    let _underway = traffic.enter();
    loop {
        let end;
        (target, end) = match traffic.is_dense() {
            true => {
                let (batch, end) = collect(&mut stream, DENSE_BATCH_BYTES).await;
                let content = content.clone();
                let taken = blocking(move || {
                    target.take(&batch, &*content)?;
                    Ok(target)
                });
                (taken.await?, end)
            }
            false => store_in_parallel(target, traffic, content, &mut stream).await?,
        };
        match end {
            Some(Ok(())) => return Ok(target),
            Some(Err(error)) => return Err(error),
            None => {} // There is more, or it has become dense.
        }
    }
}

/// The same with a thread for the hash and one for the file, as long as processors are free for
/// them. Second, how the stream has ended, if it has.
async fn store_in_parallel<W: Writer>(
    target: Target<W>,
    traffic: &Traffic,
    content: &Arc<dyn Content>,
    stream: &mut BoxStream,
) -> Result<(Target<W>, Option<Result<()>>)> {
    let Target { mut hasher, mut writer } = target;
    let (to_hash, mut hashing) = mpsc::channel::<Vec<Bytes>>(QUEUED_BATCHES);
    let (to_file, mut writing) = mpsc::channel::<Vec<Bytes>>(QUEUED_BATCHES);
    let hashed = blocking(move || {
        while let Some(batch) = hashing.blocking_recv() {
            batch.iter().for_each(|piece| hasher.update(piece));
        }
        Ok(hasher)
    });
    let content = content.clone();
    let written = blocking(move || {
        while let Some(batch) = writing.blocking_recv() {
            for piece in &batch {
                writer.write(piece)?;
                content.moved(piece.len() as u64);
            }
        }
        Ok(writer)
    });
    let fed = async move {
        loop {
            let (batch, end) = collect(stream, BATCH_BYTES).await;
            // A thread that has gone away says itself why.
            let gone =
                to_hash.send(batch.clone()).await.is_err() || to_file.send(batch).await.is_err();
            if end.is_some() || gone || traffic.is_dense() {
                return end;
            }
        }
    };
    let (end, hasher, writer) = futures_util::future::join3(fed, hashed, written).await;
    Ok((Target { hasher: hasher?, writer: writer? }, end))
}

/// Collects a batch of about `bytes`; second, how the stream has ended, if it has.
async fn collect(stream: &mut BoxStream, bytes: usize) -> (Vec<Bytes>, Option<Result<()>>) {
    let (mut batch, mut collected) = (Vec::new(), 0);
    while collected < bytes {
        match stream.next().await {
            Ok(Some(piece)) => {
                collected += piece.len();
                batch.push(piece);
            }
            Ok(None) => return (batch, Some(Ok(()))),
            Err(error) => return (batch, Some(Err(error))),
        }
    }
    (batch, None)
}

/// Runs blocking work on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::new(super::SIDE, "working", std::io::Error::other(panic))),
    }
}
