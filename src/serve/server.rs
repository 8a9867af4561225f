//! Putting a server together, and running it until it is told to end.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    access::{Access, AccessSettings},
    connection::{Connection, HEADER_TIMEOUT, MAX_HEAD, Watched},
    counts::Counts,
    listen::{Address, Inherited, Listener, Peer},
    log::AccessLog,
    names::Names,
    reload::Reloading,
    service::handle,
    state::{Abilities, Foundation, Shared},
    stream::Stream,
    through::{Freshness, Sources, Through},
    tls::{self, TlsFiles},
    tree::{Tree, bucket::Bucket, directory::Directory},
    upstream::{Upstream, UpstreamSpec},
};
use crate::{
    backend::{
        self, ConfinedDir,
        images_dir::{ImagesDir, Linking},
        object_store::{ObjectTree, Provider, UPLOADS_AT_ONCE, Use, Writers},
        registry::RegistryConfig,
    },
    cache::{Cache, CacheConfig},
    util::{Budget, Metrics},
};

/// How long answers that are under way may take when the server is told to end.
const GRACE: Duration = Duration::from_secs(30);

/// How often is looked for uploads that nobody goes on with.
const SWEEP: Duration = Duration::from_secs(600);

/// Uploads into files that receive something at the same time.
const FILE_UPLOADS_AT_ONCE: usize = 64;

/// Requests that one HTTP/2 connection may have under way.
const STREAMS: u32 = 128;

/// What HTTP/2 clients may send before they are told to go on, in bytes, for a request and for a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// What HTTP/2 sends in one frame, and keeps of an answer that is not taken, in bytes.
const FRAME: u32 = 64 << 10;
const SEND_BUFFER: usize = 512 << 10;

/// How a server is to be.
#[derive(Clone)]
pub struct Settings {
    /// What is served.
    pub images: Images,
    /// Where to listen.
    pub listen: Vec<Address>,
    /// Take no pushes.
    pub read_only: bool,
    /// Let manifests, tags and blobs be deleted.
    pub allow_delete: bool,
    /// Take manifests of which children or blobs are missing.
    pub sparse: bool,
    /// Registries that are pulled through.
    pub upstreams: Vec<UpstreamSpec>,
    /// How they are reached.
    pub registries: RegistryConfig,
    /// The registry of names that are not here and name none.
    pub default_registry: Option<String>,
    /// The registry of names that name none.
    pub local_name: String,
    /// After this time it is found out again where a tag of an upstream leads.
    pub tag_ttl: Duration,
    /// For how long a tag is served whose upstream cannot be asked; `None` for ever.
    pub max_stale: Option<Duration>,
    /// How long an upstream is waited for when there is an older copy.
    pub upstream_wait: Duration,
    /// Ask no upstream.
    pub offline: bool,
    /// Make what comes through a part of the tree.
    pub keep: bool,
    /// Where the cache is, if not in the tree.
    pub cache_dir: Option<PathBuf>,
    /// What the cache may take of the disk, in bytes.
    pub cache_bytes: u64,
    /// What the memory of the cache is counted in.
    pub budget: Budget,
    /// For how long an upload may rest, and a blob belong to a repository without being named there.
    pub upload_ttl: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// How often what nothing needs is removed.
    pub prune_every: Option<Duration>,
    /// Certificates, if TLS is spoken.
    pub tls: Option<TlsFiles>,
    /// Who may do what.
    pub access: AccessSettings,
    /// Let passwords travel without TLS.
    pub insecure_auth: bool,
    /// Where requests are logged.
    pub access_log: Option<PathBuf>,
}

/// Where the images are that a server serves.
#[derive(Clone, Debug)]
pub enum Images {
    /// In a directory; it is created if it does not exist, unless it is only read.
    Directory(PathBuf),
    /// In a part of a bucket.
    Bucket {
        /// Whose protocol it speaks.
        provider: Provider,
        /// Its name.
        bucket: String,
        /// What all keys begin with.
        prefix: String,
        /// Send clients to the store for blobs.
        redirect: bool,
    },
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The settings make no sense, or are not safe.
    #[error("{0}")]
    Settings(String),
    /// The tree or the cache cannot be used.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// An address cannot be listened at.
    #[error("cannot listen at {address}: {error}")]
    Listen {
        /// The address.
        address: Address,
        /// Why.
        error: io::Error,
    },
}

/// A server that listens, and answers as soon as it is run.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    tls: Option<Arc<Reloading<rustls::ServerConfig>>>,
    max_connections: usize,
    /// The directory that is pruned from time to time, and how often.
    pruning: Option<(ImagesDir, Duration)>,
    read_only: bool,
}

impl Server {
    /// Opens the tree and the sockets: those that the service manager has handed over, or else those of the
    /// settings. Nothing is asked of any upstream. Has to be called in a runtime.
    pub async fn start(settings: Settings, metrics: &Metrics) -> Result<Self, StartError> {
        let mut listeners = Inherited::take().map_err(|e| StartError::Settings(e.to_string()))?;
        let addresses = match listeners.is_empty() {
            true => settings.listen.clone(),
            false => listeners.iter().filter_map(|listener| listener.address().ok()).collect(),
        };
        check(&settings, &addresses)?;
        let bad = StartError::Settings;
        let names = Names::new(&settings.local_name, settings.default_registry.as_deref());
        let names = names.map_err(|e| bad(e.to_string()))?;
        let access = Access::new(&settings.access).map_err(bad)?;
        let without_certificate =
            settings.access.htpasswd.is_some() || settings.access.anonymous_pull;
        let tls = settings.tls.as_ref().map(|files| tls::config(files, without_certificate));
        let tls = tls.transpose().map_err(bad)?.map(Arc::new);
        let log = settings.access_log.as_deref().map(|path| {
            AccessLog::open(path).map_err(|e| bad(format!("--access-log {}: {e}", path.display())))
        });
        let counts = Counts::new(metrics);
        let Opened { tree, through, dir } = open(&settings, &counts, metrics).await?;
        let prune_every = settings.prune_every.filter(|_| !settings.read_only);
        let shared = Shared::new(Foundation {
            tree,
            names,
            abilities: Abilities {
                read_only: settings.read_only,
                delete: settings.allow_delete,
                sparse: settings.sparse,
            },
            through,
            access,
            counts,
            log: log.transpose()?,
            uploads_at_once: match settings.images {
                Images::Directory(_) => FILE_UPLOADS_AT_ONCE,
                Images::Bucket { .. } => UPLOADS_AT_ONCE,
            },
        });
        if listeners.is_empty() {
            for address in &settings.listen {
                let bound = address.bind().await;
                let failed = |error| StartError::Listen { address: address.clone(), error };
                listeners.push(bound.map_err(failed)?);
            }
        }
        Ok(Self {
            shared,
            listeners,
            tls,
            max_connections: settings.max_connections,
            pruning: dir.zip(prune_every),
            read_only: settings.read_only,
        })
    }

    /// Where it listens, with the ports that were taken.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().filter_map(|listener| listener.address().ok()).collect()
    }

    /// Answers until `stop` is done. Answers that are under way then are given to their ends, for up to 30 s.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(self.max_connections));
        let (stopping, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        for listener in self.listeners {
            let accepting = Accepting {
                shared: self.shared.clone(),
                tls: self.tls.clone(),
                places: places.clone(),
                stopped: stopped.clone(),
            };
            tasks.push(tokio::spawn(accepting.run(listener)));
        }
        if !self.read_only {
            tasks.push(tokio::spawn(sweep(self.shared.clone())));
        }
        if let Some((dir, interval)) = self.pruning {
            tasks.push(tokio::spawn(prune(dir, interval)));
        }
        stop.await;
        for task in &tasks {
            task.abort();
        }
        // Nobody is left to receive it if there are no connections.
        let _ = stopping.send(true);
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        if timeout(GRACE, places.acquire_many(all)).await.is_err() {
            tracing::warn!(
                "answers that were under way after {} s are broken off",
                GRACE.as_secs()
            );
        }
    }
}

/// Refuses what would let strangers write, or read passwords.
fn check(settings: &Settings, addresses: &[Address]) -> Result<(), StartError> {
    let open = addresses.iter().find(|address| !address.is_loopback());
    let has_users = settings.access.htpasswd.is_some() || settings.access.certificates;
    let refuse = |message: String| Err(StartError::Settings(message));
    if settings.access.certificates && settings.tls.is_none() {
        return refuse("--client-ca needs --tls-cert and --tls-key".into());
    }
    if let Some(address) = open {
        if !settings.read_only && !has_users {
            return refuse(format!(
                "whoever can reach {address} could push there; give --htpasswd or --client-ca, or --read-only"
            ));
        }
        if settings.access.htpasswd.is_some() && settings.tls.is_none() && !settings.insecure_auth {
            return refuse(format!(
                "passwords would travel in the clear to {address}; give --tls-cert and --tls-key, or \
                 --insecure-auth if something in front of the server speaks TLS"
            ));
        }
    }
    if addresses.is_empty() {
        return refuse("there is no address to listen at".into());
    }
    if let Images::Bucket { .. } = settings.images {
        check_bucket(settings).map_err(StartError::Settings)?;
    }
    if settings.upstreams.is_empty() && settings.keep {
        return refuse("--keep needs --upstream".into());
    }
    if settings.keep && settings.read_only {
        return refuse("--keep writes to the directory, and --read-only does not".into());
    }
    Ok(())
}

/// Refuses what can only be done with a directory.
fn check_bucket(settings: &Settings) -> Result<(), String> {
    if settings.keep {
        return Err("--keep is for a directory of images: over a bucket, what comes through stays in the cache".into());
    }
    if settings.prune_every.is_some() {
        return Err(
            "--prune-every is for a directory of images: nothing is pruned in a bucket".into()
        );
    }
    if !settings.upstreams.is_empty() && settings.cache_dir.is_none() {
        return Err(
            "--upstream over a bucket needs --cache-dir, a directory for what comes through".into(),
        );
    }
    Ok(())
}

/// What is served, and what comes through.
struct Opened {
    tree: Arc<dyn Tree>,
    through: Option<Through>,
    /// The directory, if it is one.
    dir: Option<ImagesDir>,
}

async fn open(
    settings: &Settings,
    counts: &Counts,
    metrics: &Metrics,
) -> Result<Opened, StartError> {
    match &settings.images {
        Images::Directory(root) => {
            // Its lock is not kept, so that `prune` can run.
            if !settings.read_only {
                drop(ImagesDir::create(root, None, Linking::Auto)?);
            }
            let dir = ImagesDir::open(root)?;
            let through = open_through(settings, Some(&dir), counts, metrics)?;
            let cache_dir = match &through {
                Some(through) => through.cache_dir().to_owned(),
                None => dir.cache_dir(),
            };
            let tree = Directory::new(dir.clone(), cache_dir, settings.upload_ttl);
            Ok(Opened { tree: Arc::new(tree), through, dir: Some(dir) })
        }
        Images::Bucket { provider, bucket, prefix, redirect } => {
            let store = ObjectTree::open(*provider, bucket, prefix, Writers::Many, Use::Server)?;
            let (ttl, is_written) = (settings.upload_ttl, !settings.read_only);
            let tree = Bucket::open(store, ttl, is_written, *redirect).await?;
            let through = open_through(settings, None, counts, metrics)?;
            Ok(Opened { tree: Arc::new(tree), through, dir: None })
        }
    }
}

/// Opens what comes through: its cache is in the directory that is served, if it is one, or in `--cache-dir`.
fn open_through(
    settings: &Settings,
    dir: Option<&ImagesDir>,
    counts: &Counts,
    metrics: &Metrics,
) -> Result<Option<Through>, StartError> {
    if settings.upstreams.is_empty() {
        return Ok(None);
    }
    let (given, bytes) = (settings.cache_dir.as_deref(), settings.cache_bytes);
    let adapt = |config: CacheConfig| config.within_memory(&settings.budget);
    let (cache_dir, cache) = match dir {
        Some(dir) => Cache::open_free(dir, given, bytes, adapt),
        None => {
            let path = settings.cache_dir.clone().unwrap_or_default();
            (path.clone(), Cache::open(adapt(CacheConfig::new(path, bytes))))
        }
    };
    let cache = cache?;
    let around = dir.filter(|dir| cache_dir.starts_with(dir.root()));
    if settings.keep && around.is_none() {
        let message = "--keep moves what came through out of the cache: --cache-dir has to be in the directory";
        return Err(StartError::Settings(message.into()));
    }
    watch_cache(metrics, &cache);
    let (root, path) = match around {
        Some(dir) => (dir.dir().clone(), dir.root().join("blobs/.imgfs/serve/through")),
        None => {
            let failed = |e| backend::Error::io(&cache_dir, "opening", e);
            (ConfinedDir::open(&cache_dir).map_err(failed)?, cache_dir.join("through"))
        }
    };
    let mut config = settings.registries.clone();
    config.max_wait = config.max_wait.min(settings.upstream_wait);
    let upstream = Upstream::new(&settings.upstreams, config, &settings.budget, settings.offline);
    if let Some(stats) = upstream.stats() {
        let received = stats.clone();
        metrics.watch_counter(
            "imgfs_serve_upstream_requests_total",
            "Requests to upstreams",
            move || stats.requests(),
        );
        metrics.watch_counter(
            "imgfs_serve_upstream_received_bytes_total",
            "Bytes of blobs that upstreams have sent",
            move || received.received_bytes(),
        );
    }
    let sources = Sources {
        local: settings.local_name.clone(),
        upstream,
        cache,
        cache_dir,
        freshness: Freshness {
            tag_ttl: settings.tag_ttl,
            max_stale: settings.max_stale,
            wait: settings.upstream_wait,
        },
        counters: counts.upstream.clone(),
        keep: around.filter(|_| settings.keep).cloned(),
    };
    Ok(Some(Through::open(sources, root, &path)?))
}

fn watch_cache(metrics: &Metrics, cache: &Cache) {
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let (held, limit) = (cache.clone(), cache.clone());
    metrics.watch_gauge(
        "imgfs_cache_held_bytes",
        "Bytes of the disk that the cache takes",
        move || bytes(held.stats().held_bytes),
    );
    metrics.watch_gauge(
        "imgfs_cache_limit_bytes",
        "Bytes of the disk that it may take",
        move || bytes(limit.stats().limit_bytes),
    );
    let (fetched, reads, hits) = (cache.clone(), cache.clone(), cache.clone());
    metrics.watch_counter(
        "imgfs_cache_fetched_bytes_total",
        "Bytes that were fetched",
        move || fetched.stats().fetched_bytes,
    );
    metrics.watch_counter("imgfs_cache_reads_total", "Reads through the cache", move || {
        reads.stats().reads
    });
    metrics.watch_counter(
        "imgfs_cache_hits_total",
        "Reads for which nothing was fetched",
        move || hits.stats().hits,
    );
}

/// Removes uploads that nobody goes on with.
async fn sweep(shared: Arc<Shared>) {
    loop {
        shared.sweep().await;
        tokio::time::sleep(SWEEP).await;
    }
}

/// Removes what nothing needs, from time to time.
async fn prune(dir: ImagesDir, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let dir = dir.clone();
        let pruned = tokio::task::spawn_blocking(move || dir.prune_patiently(false)).await;
        match pruned {
            Ok(Ok(pruned)) => {
                let (files, bytes) = (pruned.removed.len(), pruned.bytes());
                tracing::info!(files, bytes, "what nothing needs has been removed");
            }
            Ok(Err(error)) => tracing::warn!("{error}"),
            Err(error) => tracing::error!("pruning: {error}"),
        }
    }
}

/// Takes connections of one listener.
struct Accepting {
    shared: Arc<Shared>,
    tls: Option<Arc<Reloading<rustls::ServerConfig>>>,
    places: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

impl Accepting {
    async fn run(self, listener: Listener) {
        loop {
            // Those for whom there is no place wait in the kernel.
            let Ok(place) = self.places.clone().acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("accepting a connection: {error}");
                    // Too many open files, for one: it may pass.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (shared, tls, stopped) =
                (self.shared.clone(), self.tls.clone(), self.stopped.clone());
            tokio::spawn(async move {
                shared.counts.connections.inc();
                let ended = serve(&shared, tls, stream, peer, stopped, place).await;
                if let Err(error) = ended {
                    tracing::debug!(%peer, "{error}");
                }
                shared.counts.connections.dec();
            });
        }
    }
}

async fn serve(
    shared: &Arc<Shared>,
    tls: Option<Arc<Reloading<rustls::ServerConfig>>>,
    stream: Stream,
    peer: Peer,
    mut stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (stream, certificate) = match (stream, tls) {
        (Stream::Tcp(stream), Some(tls)) => {
            let acceptor = TlsAcceptor::from(tls.get());
            let stream = timeout(HEADER_TIMEOUT, acceptor.accept(stream)).await??;
            let (_, session) = stream.get_ref();
            let first = session.peer_certificates().and_then(|all| all.first());
            let name = first.and_then(|certificate| tls::common_name(certificate));
            (Stream::Tls(Box::new(stream)), name)
        }
        (stream, _) => (stream, None),
    };
    let is_plain = matches!(stream, Stream::Tcp(_));
    let connection = Connection::new(peer, certificate, is_plain);
    let io = TokioIo::new(Watched::new(stream, connection.clone()));
    let service = {
        let (shared, connection) = (shared.clone(), connection.clone());
        service_fn(move |request| handle(shared.clone(), connection.clone(), request))
    };
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        // What is overdue is seen in `Connection`, which knows more.
        .header_read_timeout(None)
        .half_close(false)
        .max_buf_size(MAX_HEAD);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD as u32)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buf_size(SEND_BUFFER);
    let serving = http.serve_connection(io, service);
    tokio::pin!(serving);
    let overdue = connection.overdue();
    tokio::pin!(overdue);
    let mut is_ending = false;
    loop {
        tokio::select! {
            served = serving.as_mut() => return served,
            why = &mut overdue => {
                shared.counts.overdue.inc();
                tracing::debug!(%peer, "a connection is ended: {why}");
                return Ok(());
            }
            _ = stopped.changed(), if !is_ending => {
                is_ending = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests;
