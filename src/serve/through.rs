//! Pulling through: what is not here is fetched from its registry when somebody asks for it, once for all who ask.
//!
//! Where a tag leads is for the [`Catalogue`] to find out, as for a mount; blobs come through the [`Cache`] of
//! mounts. What is special here is that it is remembered beyond the end of the process ([`store`]), so that what has
//! come through once is served without its registry: a tag that came through is never owned, and what is owned is
//! never asked for.

mod keep;
mod store;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lru::LruCache;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    counts::count_upstream,
    reply::{Problem, Result},
    upstream::Upstream,
};
use crate::{
    backend::{
        self, Attachments, Backend, Blobs, ConfinedDir, Error, Kind, Names, images_dir::ImagesDir,
    },
    cache::{Cache, CachedBlob},
    catalogue::{self, Catalogue},
    image::{Descriptor, Digest, Manifest, Reference, Repository, listed_json, referrers_tag},
    transfer::Options,
    util::{Budget, Counters, Flight, SingleFlight, locked},
};

use store::{Record, Store, TagRecord};

/// That something is not there, or cannot be asked for, holds for so long.
const NEGATIVE_HOLDS: Duration = Duration::from_secs(10);

/// How long a manifest is waited for of which there is no other copy.
const MANIFEST_PATIENCE: Duration = Duration::from_secs(60);

/// Names whose failure is remembered, and blobs of which is remembered when their size was asked for.
const KEPT_ANSWERS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// How what has come through is kept up to date.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freshness {
    /// After this time it is found out again where a tag leads.
    pub(super) tag_ttl: Duration,
    /// For how long a tag is served that cannot be asked for; `None` for ever.
    pub(super) max_stale: Option<Duration>,
    /// How long an upstream is waited for when there is an older copy, or may be.
    pub(super) wait: Duration,
}

/// Why an answer may be out of date.
#[derive(Clone, Debug)]
pub(super) struct Stale {
    /// How long ago it was known to be right.
    pub(super) age: Duration,
    /// In a few words.
    pub(super) reason: &'static str,
}

/// Where a tag leads.
pub(super) struct FoundTag {
    pub(super) digest: Digest,
    pub(super) stale: Option<Stale>,
}

/// What is pulled through.
pub(super) struct Through {
    local: String,
    upstream: Arc<Upstream>,
    store: Store,
    catalogue: Catalogue,
    cache: Cache,
    cache_dir: PathBuf,
    freshness: Freshness,
    manifests: SingleFlight<Reference, backend::Result<Manifest>>,
    lists: SingleFlight<Repository, backend::Result<Vec<String>>>,
    sizes: SingleFlight<(Repository, Digest), backend::Result<u64>>,
    /// When an upstream has said how large a blob is.
    sized: Mutex<LruCache<(Repository, Digest), Instant>>,
    failed: Mutex<LruCache<Reference, Instant>>,
    counters: Counters,
    keeper: Option<Arc<keep::Keeper>>,
}

/// What pulling through is made of.
pub(super) struct Sources {
    /// What this registry calls itself: that is nowhere else.
    pub(super) local: String,
    pub(super) upstream: Upstream,
    pub(super) cache: Cache,
    /// Where that is.
    pub(super) cache_dir: PathBuf,
    pub(super) freshness: Freshness,
    pub(super) counters: Counters,
    /// The directory of images of which what comes through becomes a part, if it does.
    pub(super) keep: Option<ImagesDir>,
}

impl Through {
    /// What has come through is remembered in `path`, which is in `root`.
    pub(super) fn open(sources: Sources, root: ConfinedDir, path: &Path) -> backend::Result<Self> {
        let Sources { local, upstream, cache, cache_dir, freshness, counters, keep } = sources;
        let store = Store::open(root, path)?;
        let upstream = Arc::new(upstream);
        let source: Arc<dyn Backend> = upstream.clone();
        let settings = catalogue::Settings {
            options: Options::default(),
            // For how long an answer holds is written down here, and must not hold twice.
            tag_ttl: Duration::ZERO,
            absent_ttl: NEGATIVE_HOLDS,
        };
        // What is in the tree has been looked at before anybody comes here.
        let nothing = ImagesDir::absent(&cache_dir);
        let catalogue = Catalogue::new(nothing, Some(source), settings, &Budget::unlimited());
        let keeper = keep.map(|dir| keep::Keeper::new(dir, cache_dir.clone(), store.clone()));
        Ok(Self {
            local,
            upstream,
            store,
            catalogue,
            cache,
            cache_dir,
            freshness,
            manifests: SingleFlight::default(),
            lists: SingleFlight::default(),
            sizes: SingleFlight::default(),
            sized: Mutex::new(LruCache::new(KEPT_ANSWERS)),
            failed: Mutex::new(LruCache::new(KEPT_ANSWERS)),
            counters,
            keeper,
        })
    }

    /// What an upstream has answered, or that it has not within `patience`.
    async fn waited<T: Clone>(
        &self,
        patience: Duration,
        repository: &Repository,
        doing: impl Fn() -> String,
        flight: Flight<backend::Result<T>>,
    ) -> Result<backend::Result<T>> {
        match timeout(patience, flight).await {
            Ok(answered) => answered.map_err(Problem::unavailable),
            Err(_) => {
                let side = self.upstream.side(repository);
                Ok(Err(Error::new(side, doing(), Kind::Stalled(patience))))
            }
        }
    }

    /// Where its cache is.
    pub(super) fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    /// Whether `repository` is pulled through.
    pub(super) fn serves(&self, repository: &Repository) -> bool {
        repository.registry() != self.local && self.upstream.has(repository)
    }

    /// Whether `tag` came through, and so is not owned.
    pub(super) fn is_recorded(&self, repository: &Repository, tag: &str) -> bool {
        self.store.read(repository, |record| record.tags.contains_key(tag))
    }

    /// From now on `tag` is owned, or not there at all.
    pub(super) fn forget_tag(&self, repository: &Repository, tag: &str) {
        if self.is_recorded(repository, tag) {
            self.store.change(repository, |record| drop(record.tags.remove(tag)));
        }
    }

    /// The repositories of which something has come through.
    pub(super) fn repositories(&self) -> Vec<Repository> {
        let mut all = self.store.repositories();
        all.retain(|repository| self.serves(repository));
        all
    }

    // --- tags ---

    /// Where `tag` leads.
    pub(super) async fn tag(&self, repository: &Repository, tag: &str) -> Result<FoundTag> {
        let name = repository.tagged(tag);
        let known = self.store.read(repository, |record| record.tags.get(tag).cloned());
        if let Some(known) = &known
            && known.age() < self.freshness.tag_ttl
        {
            return Ok(FoundTag { digest: known.digest, stale: None });
        }
        if self.upstream.is_offline() {
            let stale = known.and_then(|known| self.stale(&known, "it is not asked for: offline"));
            return stale.ok_or_else(|| Problem::manifest_unknown(&name));
        }
        let failed = locked(&self.failed).get(&name).copied();
        if failed.is_some_and(|at| at.elapsed() < NEGATIVE_HOLDS)
            && let Some(known) = &known
            && let Some(found) = self.stale(known, "its registry could not be asked just now")
        {
            return Ok(found);
        }
        let asked = timeout(self.freshness.wait, self.catalogue.lead(&name)).await;
        let error = match asked {
            Ok(Ok(resolved)) => {
                locked(&self.failed).pop(&name);
                self.note_tag(&name, &resolved);
                return Ok(FoundTag { digest: resolved.digest, stale: None });
            }
            Ok(Err(error)) => error,
            Err(_) => {
                let doing = format!("looking up {name}");
                let kind = Kind::Stalled(self.freshness.wait);
                Error::new(self.upstream.side(repository), doing, kind)
            }
        };
        count_upstream(&self.counters, "tag", false);
        if error.is_not_found() {
            return Err(Problem::manifest_unknown(&name));
        }
        let is_refusal = matches!(error.kind(), Kind::Unauthorized(_) | Kind::Denied(_));
        if !is_refusal {
            locked(&self.failed).put(name, Instant::now());
            let stale = known.and_then(|k| self.stale(&k, "its registry does not answer"));
            if let Some(found) = stale {
                tracing::warn!("{error}; an older copy is served");
                return Ok(found);
            }
        }
        Err(Problem::upstream(&error))
    }

    fn note_tag(&self, name: &Reference, resolved: &catalogue::Resolved) {
        let repository = name.repository();
        count_upstream(&self.counters, "tag", true);
        if let Some(manifest) = &resolved.manifest {
            self.store.put_manifest(repository, manifest);
        }
        if let Some(tag) = name.tag() {
            let record = TagRecord::now(resolved.digest, repository.registry());
            self.store.change(repository, |all| drop(all.tags.insert(tag.to_owned(), record)));
        }
    }

    /// What is known of a tag, if that may still be served.
    fn stale(&self, known: &TagRecord, reason: &'static str) -> Option<FoundTag> {
        let age = known.age();
        let may = self.freshness.max_stale.is_none_or(|max| age <= max);
        may.then_some(FoundTag { digest: known.digest, stale: Some(Stale { age, reason }) })
    }

    // --- manifests ---

    /// The manifest `digest` of `repository`.
    pub(super) async fn manifest(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Manifest> {
        let is_known = self.store.read(repository, |record| record.manifests.contains(&digest));
        if is_known && let Some(manifest) = self.store.manifest(&digest) {
            self.note_use(repository, &manifest);
            return Ok(manifest);
        }
        let name = repository.pinned(digest);
        if self.upstream.is_offline() {
            return Err(Problem::manifest_unknown(name));
        }
        let flight = self.manifests.run(name.clone(), || {
            let (upstream, store, name) = (self.upstream.clone(), self.store.clone(), name.clone());
            async move {
                let manifest = upstream.manifest(&name).await?;
                store.put_manifest(name.repository(), &manifest);
                Ok(manifest)
            }
        });
        let doing = || format!("fetching {name}");
        let fetched = self.waited(MANIFEST_PATIENCE, repository, doing, flight).await?;
        count_upstream(&self.counters, "manifest", fetched.is_ok());
        let manifest = fetched.map_err(|error| match error.is_not_found() {
            true => Problem::manifest_unknown(&name),
            false => Problem::upstream(&error),
        })?;
        self.note_use(repository, &manifest);
        Ok(manifest)
    }

    // --- blobs ---

    /// The size of a blob that is known to belong to `repository`.
    pub(super) fn known_blob(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        self.store.read(repository, |record| record.blobs.get(digest).copied())
    }

    /// The size of a blob of `repository`, of which no manifest here says it. What its registry says is believed for a
    /// while, and from then on if it was right.
    pub(super) async fn blob_size(&self, repository: &Repository, digest: Digest) -> Result<u64> {
        let stated = self.store.read(repository, |record| record.stated.get(&digest).copied());
        let key = (repository.clone(), digest);
        let is_fresh =
            locked(&self.sized).get(&key).is_some_and(|at| at.elapsed() < NEGATIVE_HOLDS);
        if let Some(size) = stated
            && (is_fresh || self.is_whole(repository, &Descriptor::new("", digest, size)))
        {
            return Ok(size);
        }
        if self.upstream.is_offline() {
            return Err(Problem::blob_unknown(digest));
        }
        let flight = self.sizes.run(key.clone(), || {
            let (upstream, store) = (self.upstream.clone(), self.store.clone());
            let repository = repository.clone();
            async move {
                let size = upstream.blob_size(&repository, digest).await?;
                store.change(&repository, |record| {
                    record.stated.insert(digest, size);
                });
                Ok(size)
            }
        });
        let doing = || format!("looking up blob {digest}");
        let asked = self.waited(MANIFEST_PATIENCE, repository, doing, flight).await?;
        count_upstream(&self.counters, "blob", asked.is_ok());
        if asked.is_ok() {
            locked(&self.sized).put(key, Instant::now());
        }
        asked.map_err(|error| match error.is_not_found() {
            true => Problem::blob_unknown(digest),
            false => Problem::upstream(&error),
        })
    }

    /// Whether the cache has all of a blob.
    fn is_whole(&self, repository: &Repository, blob: &Descriptor) -> bool {
        let source: Arc<dyn Blobs> = self.upstream.clone();
        self.cache.blob(source, vec![repository.clone()], blob).is_complete()
    }

    /// A blob of `repository`, through the cache.
    pub(super) fn blob(&self, repository: &Repository, blob: &Descriptor) -> Result<CachedBlob> {
        let source: Arc<dyn Blobs> = self.upstream.clone();
        let cached = self.cache.blob(source, vec![repository.clone()], blob);
        match self.upstream.is_offline() && !cached.is_complete() {
            true => Err(Problem::blob_unknown(blob.digest)),
            false => Ok(cached.for_all()),
        }
    }

    // --- lists ---

    /// The tags of `repository`: what its registry says, or said the last time.
    pub(super) async fn tags(&self, repository: &Repository) -> Result<Vec<String>> {
        let known = |record: &Record| {
            let all = record.tags.keys().chain(&record.listed);
            (all.cloned().collect::<Vec<_>>(), !record.listed.is_empty() || !record.tags.is_empty())
        };
        if self.upstream.is_offline() {
            let (tags, is_known) = self.store.read(repository, known);
            return match is_known {
                true => Ok(tags),
                false => Err(Problem::name_unknown(&repository.to_string())),
            };
        }
        let flight = self.lists.run(repository.clone(), || {
            let (upstream, repository) = (self.upstream.clone(), repository.clone());
            async move { upstream.tags(&repository).await.map(|tags| tags.names) }
        });
        let doing = || format!("listing the tags of {repository}");
        let listed = self.waited(self.freshness.wait, repository, doing, flight).await?;
        count_upstream(&self.counters, "tags", listed.is_ok());
        match listed {
            Ok(names) => {
                let names: std::collections::BTreeSet<String> = names.into_iter().collect();
                if self.store.read(repository, |record| record.listed != names) {
                    let listed = names.clone();
                    self.store.change(repository, |record| record.listed = listed);
                }
                Ok(names.into_iter().collect())
            }
            Err(error) => {
                let (tags, is_known) = self.store.read(repository, known);
                match (error.is_not_found(), is_known) {
                    (true, _) => Err(Problem::name_unknown(&repository.to_string())),
                    (false, true) => {
                        tracing::warn!("{error}; an older list is served");
                        Ok(tags)
                    }
                    (false, false) => Err(Problem::upstream(&error)),
                }
            }
        }
    }

    /// What refers to `subject`: what its registry says, or said the last time.
    pub(super) async fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> BTreeMap<Digest, Value> {
        let known = || {
            let list =
                self.store.read(repository, |record| record.referrers.get(&subject).cloned());
            by_digest(list.unwrap_or_default())
        };
        if self.upstream.is_offline() {
            return known();
        }
        let asked = timeout(self.freshness.wait, self.ask_referrers(repository, subject)).await;
        let list = match asked {
            Ok(Ok(list)) => list,
            Ok(Err(error)) => {
                tracing::warn!("{error}; an older list is served");
                return known();
            }
            Err(_) => {
                let side = self.upstream.side(repository);
                tracing::warn!(
                    "{side}: listing the referrers of {subject}: no answer; an older list is served"
                );
                return known();
            }
        };
        let listed = list.clone();
        if self.store.read(repository, |record| record.referrers.get(&subject) != Some(&listed)) {
            self.store.change(repository, |record| drop(record.referrers.insert(subject, listed)));
        }
        by_digest(list)
    }

    async fn ask_referrers(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> backend::Result<Vec<Value>> {
        if let Some(list) = self.upstream.referrers(repository, subject).await? {
            return Ok(list.iter().map(listed_json).collect());
        }
        let fallback = repository.tagged(&referrers_tag(&subject));
        match self.upstream.manifest(&fallback).await {
            Ok(manifest) => Ok(manifest.children().iter().map(listed_json).collect()),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    // --- keeping ---

    /// Notes that somebody has asked for a manifest, of which the blobs may follow.
    fn note_use(&self, repository: &Repository, manifest: &Manifest) {
        if let Some(keeper) = &self.keeper {
            keeper.note(repository, manifest);
        }
    }
}

fn by_digest(list: Vec<Value>) -> BTreeMap<Digest, Value> {
    let digest = |value: &Value| value["digest"].as_str()?.parse().ok();
    list.into_iter().filter_map(|value| Some((digest(&value)?, value))).collect()
}
