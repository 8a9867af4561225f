//! Storing what arrives: from a stream to a hash and a file.
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

use super::receive::PartialBlob;
use crate::{
    backend::{BoxStream, Content, Error, Result},
    image::Hasher,
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

/// Where the bytes of a blob go.
pub(super) struct Target {
    pub hasher: Hasher,
    pub partial: PartialBlob,
}

/// Passes all of `stream` to `target`. What came before an error is kept.
pub(super) async fn store(
    mut target: Target,
    traffic: &Traffic,
    content: &Arc<dyn Content>,
    mut stream: BoxStream,
) -> Result<Target> {
    let _underway = traffic.enter();
    loop {
        while traffic.is_dense() {
            let Some(piece) = stream.next().await? else { return Ok(target) };
            target.hasher.update(&piece);
            target.partial.write(&piece)?;
            content.moved(piece.len() as u64);
        }
        let end;
        (target, end) = store_in_parallel(target, traffic, content, &mut stream).await?;
        match end {
            Some(Ok(())) => return Ok(target),
            Some(Err(error)) => return Err(error),
            None => {} // It has become dense.
        }
    }
}

/// The same with a thread for the hash and one for the file, as long as processors are free for
/// them. Second, how the stream has ended, if it has.
async fn store_in_parallel(
    target: Target,
    traffic: &Traffic,
    content: &Arc<dyn Content>,
    stream: &mut BoxStream,
) -> Result<(Target, Option<Result<()>>)> {
    let Target { mut hasher, mut partial } = target;
    let (to_hash, mut hashing) = mpsc::channel::<Vec<Bytes>>(QUEUED_PARCELS);
    let (to_file, mut writing) = mpsc::channel::<Vec<Bytes>>(QUEUED_PARCELS);
    let hashed = blocking(move || {
        while let Some(parcel) = hashing.blocking_recv() {
            parcel.iter().for_each(|piece| hasher.update(piece));
        }
        Ok(hasher)
    });
    let content = content.clone();
    let written = blocking(move || {
        while let Some(parcel) = writing.blocking_recv() {
            for piece in &parcel {
                partial.write(piece)?;
                content.moved(piece.len() as u64);
            }
        }
        Ok(partial)
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
    let (end, hasher, partial) = futures_util::future::join3(fed, hashed, written).await;
    Ok((Target { hasher: hasher?, partial: partial? }, end))
}

/// Collects a parcel; second, how the stream has ended, if it has.
async fn collect(stream: &mut BoxStream) -> (Vec<Bytes>, Option<Result<()>>) {
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

/// Runs blocking work on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::new(super::SIDE, "working", std::io::Error::other(panic))),
    }
}
