//! A blob of a plan, as the target sees it: read from the first repository that gives it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    plan::BlobPlan,
    report::{Event, Observer, Passing},
};
use crate::backend::{Backend, BoxStream, ByteStream, Content, Error, Kind, LocalFile, Result};
use crate::util::locked;

/// A blob at its source.
pub(super) struct SourceBlob {
    pub source: Arc<dyn Backend>,
    pub blob: Arc<BlobPlan>,
    pub observer: Arc<dyn Observer>,
    /// Why the source does not give it.
    failure: Arc<Mutex<Option<Error>>>,
    /// Bytes that have been moved, and not in vain.
    moved: AtomicU64,
}

impl SourceBlob {
    pub(super) fn new(
        source: &Arc<dyn Backend>,
        blob: &Arc<BlobPlan>,
        observer: &Arc<dyn Observer>,
    ) -> Self {
        let (source, blob, observer) = (source.clone(), blob.clone(), observer.clone());
        Self { source, blob, observer, failure: Arc::default(), moved: AtomicU64::new(0) }
    }

    /// Bytes that count as moved.
    pub(super) fn moved_bytes(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Whether it was the source that has failed, so that no other target will do better.
    pub(super) fn has_failed(&self) -> bool {
        locked(&self.failure).is_some()
    }

    fn failed(&self, error: Error) -> Error {
        note(&self.failure, &error);
        error
    }

    async fn open(&self, offset: u64) -> Result<BoxStream> {
        let mut failure = None;
        for repository in &self.blob.sources {
            let blob = &self.blob.descriptor;
            match self.source.read(repository, blob, offset..blob.size).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    let elsewhere = error.is_refusal();
                    let first = failure.get_or_insert(error);
                    if !elsewhere {
                        return Err(first.clone());
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            let doing = format!("fetching blob {}", self.blob.descriptor.digest);
            Error::new("planning", doing, Kind::NotFound("no repository has it".into()))
        }))
    }
}

#[async_trait]
impl Content for SourceBlob {
    async fn read(&self, offset: u64) -> Result<BoxStream> {
        if let Some(content) = &self.blob.content {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
            return Ok(Box::new(Piecewise::Whole(Some(content.slice(from..)))));
        }
        match self.open(offset).await {
            Ok(stream) => {
                // What came before is known to nobody else.
                let passing = match offset {
                    0 => self.observer.passes(&self.blob.descriptor),
                    _ => None,
                };
                let failure = self.failure.clone();
                Ok(Box::new(Piecewise::Stream { stream, failure, passing, at: offset }))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn file(&self) -> Result<Option<LocalFile>> {
        let Some(repository) = self.blob.sources.first() else { return Ok(None) };
        let file = self.source.file(repository, &self.blob.descriptor).await;
        file.map_err(|error| self.failed(error))
    }

    fn side(&self) -> String {
        match self.blob.sources.first() {
            Some(repository) => self.source.side(repository),
            None => "the source".to_owned(),
        }
    }

    fn moved(&self, bytes: u64) {
        let digest = self.blob.descriptor.digest;
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        self.observer.event(Event::BlobProgress { digest, bytes });
    }

    fn retransmitted(&self, bytes: u64) {
        let digest = self.blob.descriptor.digest;
        self.moved.fetch_sub(bytes, Ordering::Relaxed);
        self.observer.event(Event::BlobSetBack { digest, bytes });
    }
}

fn note(failure: &Mutex<Option<Error>>, error: &Error) {
    *locked(failure) = Some(error.clone());
}

/// Content that is at hand, or comes from the source.
enum Piecewise {
    Whole(Option<Bytes>),
    Stream {
        stream: BoxStream,
        failure: Arc<Mutex<Option<Error>>>,
        passing: Option<Box<dyn Passing>>,
        /// Where in the blob the next piece begins.
        at: u64,
    },
}

#[async_trait]
impl ByteStream for Piecewise {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Whole(content) => Ok(content.take()),
            Self::Stream { stream, failure, passing, at } => {
                let piece = stream.next().await.inspect_err(|error| note(failure, error))?;
                if let (Some(piece), Some(passing)) = (&piece, passing) {
                    passing.pass(*at, piece).await;
                    *at += piece.len() as u64;
                }
                Ok(piece)
            }
        }
    }
}
