//! One of several workers that fill the same target and know nothing of each other: each brings the blobs whose
//! digests are its own, and waits for the others to bring theirs.
//!
//! A worker that cannot bring a blob leaves word of that at the target, where there is a place for it; the others then
//! try to bring it themselves, one after the other, and come to the same end with the reason. They do the same with
//! what they wait for when nothing has come from others for [`PATIENCE`], as if its worker had ended.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Capabilities, Content, ManifestName, Names, Opened, Received, Receiver, Result, Sink};
use crate::{
    image::{Descriptor, Digest, Manifest, Reference, Repository},
    util::locked,
};

/// How often it is looked whether another worker has brought a blob, at first and later on.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LONGEST_LOOK: Duration = Duration::from_secs(10);

/// When no blob of another worker has come for so long, that worker is taken to have ended, and its blobs are brought
/// here.
const PATIENCE: Duration = Duration::from_secs(900);

/// By so much the workers that bring the blob of another one wait for each other, and at most so often.
const APART: Duration = Duration::from_secs(2);
const MOST_APART: u32 = 150;

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
        Self::owner(digest, self.count) == u64::from(self.number - 1)
    }

    /// Which of `count` workers is to bring a blob, from 0 on.
    fn owner(digest: &Digest, count: u16) -> u64 {
        let mut head = [0; 8];
        head.copy_from_slice(&digest.as_bytes()[..8]);
        u64::from_be_bytes(head) % u64::from(count)
    }

    /// How many workers come between the one whose a blob is and this one.
    fn behind(self, digest: &Digest) -> u32 {
        let (own, count) = (u64::from(self.number - 1), u64::from(self.count));
        let behind = (own + count - Self::owner(digest, self.count)) % count;
        u32::try_from(behind.saturating_sub(1)).unwrap_or(0)
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
    /// Since when it has been known that its worker could not bring it.
    given_up: Option<Instant>,
    /// Whether it is brought here.
    is_taken: bool,
}

/// A target of which this worker fills a part.
pub struct Sharded {
    sink: Arc<dyn Sink>,
    shard: Shard,
    patience: Duration,
    looks: Mutex<HashMap<Digest, Look>>,
    /// When a blob of another worker came last.
    last_came: Mutex<Instant>,
    /// Blobs of which there is word that somebody could not bring them.
    given_up: Arc<Mutex<HashSet<Digest>>>,
}

impl Sharded {
    /// The part `shard` of what `sink` is to get.
    pub fn new(sink: Arc<dyn Sink>, shard: Shard) -> Self {
        Self::with_patience(sink, shard, PATIENCE)
    }

    fn with_patience(sink: Arc<dyn Sink>, shard: Shard, patience: Duration) -> Self {
        let last_came = Mutex::new(Instant::now());
        let (looks, given_up) = (Mutex::default(), Arc::default());
        Self { sink, shard, patience, looks, last_came, given_up }
    }

    /// Whether this worker brings a blob: its own ones, and those of others that have failed.
    fn brings(&self, digest: &Digest) -> bool {
        self.shard.owns(digest) || locked(&self.looks).get(digest).is_some_and(|look| look.is_taken)
    }

    /// Whether it is time to look for a blob of another worker.
    fn is_due(&self, digest: &Digest) -> bool {
        let (mut looks, now) = (locked(&self.looks), Instant::now());
        let look = looks.entry(*digest).or_insert_with(|| Look {
            first: now,
            next: now,
            pause: FIRST_LOOK,
            given_up: None,
            is_taken: false,
        });
        if now < look.next {
            return false;
        }
        look.next = now + look.pause;
        look.pause = (look.pause * 2).min(LONGEST_LOOK);
        true
    }

    /// Whether this worker is to bring a blob of another one, which has not come, by now.
    fn takes(&self, digest: &Digest, is_given_up: bool) -> bool {
        let (mut looks, now) = (locked(&self.looks), Instant::now());
        let Some(look) = looks.get_mut(digest) else { return false };
        let apart = APART * self.shard.behind(digest).min(MOST_APART);
        let since = (*locked(&self.last_came)).max(look.first);
        let (since, patience) = match is_given_up {
            true => (*look.given_up.get_or_insert(now), Duration::ZERO),
            false => (since, self.patience),
        };
        look.is_taken = now.duration_since(since) >= patience + apart;
        if look.is_taken {
            let why = match is_given_up {
                true => "another worker could not fetch it".to_owned(),
                false => {
                    format!("nothing has come from its worker for {} s", patience.as_secs())
                }
            };
            tracing::warn!(%digest, "{digest}: {why}; it is fetched here");
        }
        look.is_taken
    }
}

/// Receives a blob, and leaves word if that fails.
struct Telling {
    inner: Box<dyn Receiver>,
    sink: Arc<dyn Sink>,
    digest: Digest,
    given_up: Arc<Mutex<HashSet<Digest>>>,
}

#[async_trait]
impl Receiver for Telling {
    fn offset(&self) -> u64 {
        self.inner.offset()
    }

    async fn receive(self: Box<Self>, content: Arc<dyn Content>) -> Result<Received> {
        let Self { inner, sink, digest, given_up } = *self;
        let received = inner.receive(content).await;
        let is_news = match &received {
            Ok(_) => locked(&given_up).remove(&digest),
            Err(_) => locked(&given_up).insert(digest),
        };
        if is_news {
            sink.give_up(digest, received.is_err()).await;
        }
        received
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
        let digest = blob.digest;
        if !self.brings(&digest) {
            if !self.is_due(&digest) {
                return Ok(Opened::Awaited);
            }
            if self.sink.has(repository, blob).await? {
                *locked(&self.last_came) = Instant::now();
                return Ok(Opened::Present);
            }
            let is_given_up = self.sink.is_given_up(digest).await;
            if is_given_up {
                locked(&self.given_up).insert(digest);
            }
            if !self.takes(&digest, is_given_up) {
                return Ok(Opened::Awaited);
            }
        }
        let opened = self.sink.open(repository, blob, origins).await;
        if opened.is_err() {
            self.sink.give_up(digest, true).await;
        }
        Ok(match opened? {
            Opened::Receive(inner) => {
                let (sink, given_up) = (self.sink.clone(), self.given_up.clone());
                Opened::Receive(Box::new(Telling { inner, sink, digest, given_up }))
            }
            opened => opened,
        })
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

    async fn give_up(&self, blob: Digest, is_given_up: bool) {
        self.sink.give_up(blob, is_given_up).await;
    }

    async fn is_given_up(&self, blob: Digest) -> bool {
        self.sink.is_given_up(blob).await
    }

    async fn close(&self) {
        self.sink.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{
        BoxStream, Error, Kind, LocalFile,
        images_dir::{ImagesDir, Linking},
        object_store::ObjectTree,
    };

    /// A source that has nothing.
    struct Nothing;

    #[async_trait]
    impl Content for Nothing {
        async fn read(&self, _: u64) -> Result<BoxStream> {
            Err(Error::new(self.side(), "reading", Kind::NotFound(String::new())))
        }

        async fn file(&self) -> Result<Option<LocalFile>> {
            Ok(None)
        }

        fn side(&self) -> String {
            "nothing".to_owned()
        }

        fn moved(&self, _: u64) {}

        fn retransmitted(&self, _: u64) {}
    }

    /// A blob of the first of two workers.
    fn blob() -> Descriptor {
        let first: Shard = "1/2".parse().unwrap();
        let mut digests = (0..100_u8).map(|byte| Digest::sha256(&[byte]));
        Descriptor::new("x/y", digests.find(|digest| first.owns(digest)).unwrap(), 1)
    }

    #[tokio::test]
    async fn what_a_worker_cannot_bring_the_others_try_for_themselves() {
        let place = tempfile::tempdir().unwrap();
        let dir = ImagesDir::create(place.path(), None, Linking::Auto).unwrap();
        let sinks: [Arc<dyn Sink>; 2] =
            [Arc::new(dir), Arc::new(ObjectTree::in_memory("some/prefix"))];
        let repository = Repository::new("quay.io", "team/app").unwrap();
        let blob = blob();
        for sink in sinks {
            let worker = |text: &str| Sharded::new(sink.clone(), text.parse().unwrap());
            let (first, second) = (worker("1/2"), worker("2/2"));
            let opened = second.open(&repository, &blob, &[]).await.unwrap();
            assert!(matches!(opened, Opened::Awaited));
            let Opened::Receive(receiver) = first.open(&repository, &blob, &[]).await.unwrap()
            else {
                panic!("it is its own");
            };
            receiver.receive(Arc::new(Nothing)).await.unwrap_err();
            assert!(sink.is_given_up(blob.digest).await);
            // It has looked a moment ago.
            locked(&second.looks).get_mut(&blob.digest).unwrap().next = Instant::now();
            let opened = second.open(&repository, &blob, &[]).await.unwrap();
            assert!(matches!(opened, Opened::Receive(_)));
            sink.give_up(blob.digest, false).await;
            assert!(!sink.is_given_up(blob.digest).await);
        }
    }

    #[tokio::test]
    async fn the_blobs_of_a_worker_that_has_ended_are_brought_by_others() {
        let sink: Arc<dyn Sink> = Arc::new(ObjectTree::in_memory(""));
        let repository = Repository::new("quay.io", "team/app").unwrap();
        let second = Sharded::with_patience(sink, "2/2".parse().unwrap(), Duration::ZERO);
        let opened = second.open(&repository, &blob(), &[]).await.unwrap();
        assert!(matches!(opened, Opened::Receive(_)));
    }

    #[test]
    fn workers_do_not_all_try_at_once() {
        let digest = blob().digest;
        let all = (1..=7).map(|number| Shard { number, count: 7 });
        let mut behind: Vec<u32> =
            all.filter(|shard| !shard.owns(&digest)).map(|shard| shard.behind(&digest)).collect();
        behind.sort_unstable();
        assert_eq!(behind, [0, 1, 2, 3, 4, 5]);
    }
}
