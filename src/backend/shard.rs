//! One of several workers that fill the same target and know nothing of each other: each brings the blobs whose
//! digests are its own, and waits for the others to bring theirs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Capabilities, Error, Kind, ManifestName, Names, Opened, Result, Sink};
use crate::{
    image::{Descriptor, Digest, Manifest, Reference, Repository},
    util::locked,
};

/// How often it is looked whether another worker has brought a blob, at first and later on.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LONGEST_LOOK: Duration = Duration::from_secs(10);

/// How long another worker may take for a blob after this one has come to it.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// Which of several workers this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    number: u16,
    count: u16,
}

/// Why a text does not say which worker this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected K/N, with K from 1 to N and N at most 1000, as in 2/4")]
pub struct ShardError;

impl Shard {
    /// Whether a blob is this worker's to bring.
    pub fn owns(self, digest: &Digest) -> bool {
        let mut head = [0; 8];
        head.copy_from_slice(&digest.as_bytes()[..8]);
        u64::from_be_bytes(head) % u64::from(self.count) == u64::from(self.number - 1)
    }
}

impl std::str::FromStr for Shard {
    type Err = ShardError;

    /// ```
    /// use imgfs::{backend::Shard, image::Digest};
    ///
    /// let shards = ["1/3", "2/3", "3/3"].map(|text| text.parse::<Shard>().unwrap());
    /// let digest = Digest::sha256(b"content");
    /// assert_eq!(shards.iter().filter(|shard| shard.owns(&digest)).count(), 1);
    /// assert!("0/3".parse::<Shard>().is_err() && "4/3".parse::<Shard>().is_err());
    /// ```
    fn from_str(text: &str) -> std::result::Result<Self, ShardError> {
        let (number, count) = text.split_once('/').ok_or(ShardError)?;
        let [number, count] = [number, count].map(str::parse::<u16>);
        let (number, count) = (number.map_err(|_| ShardError)?, count.map_err(|_| ShardError)?);
        match (1..=count).contains(&number) && count <= 1000 {
            true => Ok(Self { number, count }),
            false => Err(ShardError),
        }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

/// When a blob of another worker was looked for.
struct Look {
    first: Instant,
    next: Instant,
    pause: Duration,
}

/// A target of which this worker fills a part.
pub struct Sharded {
    sink: Arc<dyn Sink>,
    shard: Shard,
    looks: Mutex<HashMap<Digest, Look>>,
}

impl Sharded {
    /// The part `shard` of what `sink` is to get.
    pub fn new(sink: Arc<dyn Sink>, shard: Shard) -> Self {
        Self { sink, shard, looks: Mutex::default() }
    }

    /// Whether it is time to look for a blob of another worker.
    fn is_due(&self, repository: &Repository, blob: &Descriptor) -> Result<bool> {
        let (mut looks, now) = (locked(&self.looks), Instant::now());
        let new = || Look { first: now, next: now, pause: FIRST_LOOK };
        let look = looks.entry(blob.digest).or_insert_with(new);
        if now.duration_since(look.first) > PATIENCE {
            let reason = format!(
                "no other worker has brought it within {} h; are all {} of them running?",
                PATIENCE.as_secs() / 3600,
                self.shard.count
            );
            let doing = format!("waiting for blob {}", blob.digest);
            return Err(Error::new(self.side(repository), doing, Kind::NotFound(reason)));
        }
        if now < look.next {
            return Ok(false);
        }
        look.next = now + look.pause;
        look.pause = (look.pause * 2).min(LONGEST_LOOK);
        Ok(true)
    }
}

#[async_trait]
impl Names for Sharded {
    fn capabilities(&self) -> Capabilities {
        self.sink.capabilities()
    }

    fn side(&self, repository: &Repository) -> String {
        self.sink.side(repository)
    }

    async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        self.sink.head(reference).await
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        self.sink.manifest(reference).await
    }

    fn sparse(&self, digest: &Digest) -> Option<String> {
        self.sink.sparse(digest)
    }
}

#[async_trait]
impl Sink for Sharded {
    async fn has(&self, repository: &Repository, blob: &Descriptor) -> Result<bool> {
        self.sink.has(repository, blob).await
    }

    async fn content(&self, repository: &Repository, blob: &Descriptor) -> Result<Option<Bytes>> {
        self.sink.content(repository, blob).await
    }

    async fn prepare(&self, repository: &Repository) -> Result<()> {
        self.sink.prepare(repository).await
    }

    async fn open(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        origins: &[Repository],
    ) -> Result<Opened> {
        if self.shard.owns(&blob.digest) {
            return self.sink.open(repository, blob, origins).await;
        }
        let is_there = self.is_due(repository, blob)? && self.sink.has(repository, blob).await?;
        Ok(if is_there { Opened::Present } else { Opened::Busy })
    }

    async fn resolves_to(
        &self,
        repository: &Repository,
        name: &ManifestName,
        digest: Digest,
    ) -> bool {
        self.sink.resolves_to(repository, name, digest).await
    }

    async fn put(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> Result<()> {
        self.sink.put(repository, manifest, name).await
    }

    async fn keep_sparse(&self, index: Digest, platforms: &str) -> Result<()> {
        self.sink.keep_sparse(index, platforms).await
    }

    async fn settle(&self, repository: &Repository) -> Result<()> {
        self.sink.settle(repository).await
    }

    async fn forget_known(&self, repository: &Repository) {
        self.sink.forget_known(repository).await;
    }

    async fn close(&self) {
        self.sink.close().await;
    }
}
