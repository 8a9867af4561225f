//! The ten calls of a snapshotter.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use super::{
    filter::{self, Filter},
    lazy::{Known, Lazy},
    messages::{
        CleanupRequest, CommitRequest, Empty, Info, InfoResponse, KeyRequest, Kind as KindNumber,
        ListRequest, Mount, MountsResponse, PrepareRequest, Timestamp, UpdateRequest,
        UsageResponse,
    },
    state::{Kind, Snapshot, State, StateError, now},
};
use crate::{
    backend::{Error, Result, registry::GivenCredentials},
    image::Digest,
    rootfs::Images,
    store::StoreDir,
    util::{Counters, Gauge, Metrics, locked},
};
use tonic::Status;

/// Whether overlayfs has indexes, which layers of ours do not need.
const OVERLAY_INDEX: &str = "/sys/module/overlay/parameters/index";

/// Where a snapshotter is.
#[derive(Clone, Debug)]
pub struct SnapshotterOptions {
    /// What it keeps on the disk.
    pub root: PathBuf,
    /// The mount that shows layers.
    pub mount: PathBuf,
    /// Where credentials go that come with images.
    pub given: GivenCredentials,
}

/// A snapshotter. Clones are the same.
#[derive(Clone)]
pub struct Snapshotter {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub options: SnapshotterOptions,
    pub state: Mutex<State>,
    pub images: Images,
    /// Where images are recorded whose layers are shown.
    pub records: StoreDir,
    pub lazy: Mutex<HashMap<Digest, Arc<Known>>>,
    pub preparing: Lazy,
    has_overlay_index: bool,
    counts: Counts,
}

struct Counts {
    prepared: Counters,
    snapshots: Gauge,
}

impl From<StateError> for Status {
    fn from(error: StateError) -> Self {
        let text = error.to_string();
        match error {
            StateError::NotFound(_) => Self::not_found(text),
            StateError::Exists(_) => Self::already_exists(text),
            StateError::Unfit(_) => Self::failed_precondition(text),
            StateError::Io { .. } => Self::internal(text),
        }
    }
}

/// Does what waits for the disk, on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let died = |e| Error::new("snapshotter", doing, std::io::Error::other(e));
    tokio::task::spawn_blocking(work).await.map_err(died)?
}

type Answer<T> = std::result::Result<T, Status>;

impl Snapshotter {
    /// Opens what is in the directory of `options`, and takes up the images that are recorded there. Asks no
    /// registry. Has to be called in a runtime, and used there.
    pub async fn open(
        options: SnapshotterOptions,
        images: &Images,
        metrics: &Metrics,
    ) -> Result<Self> {
        let root = options.root.clone();
        let opened = blocking("opening it", move || {
            let failed = |e: StateError| {
                Error::new("snapshotter", "opening it", std::io::Error::other(e.to_string()))
            };
            Ok((State::open(&root).map_err(failed)?, StoreDir::only_records(&root)?))
        });
        let (state, records) = opened.await?;
        let inner = Inner {
            options,
            state: Mutex::new(state),
            images: images.clone(),
            records,
            lazy: Mutex::default(),
            preparing: Lazy::default(),
            has_overlay_index: std::path::Path::new(OVERLAY_INDEX).exists(),
            counts: Counts {
                prepared: metrics.counters(
                    "imgfs_snapshotter_layers",
                    "Layers that containerd was about to fetch, by what became of them",
                ),
                snapshots: metrics.gauge("imgfs_snapshotter_snapshots", "Snapshots that exist"),
            },
        };
        let snapshotter = Self { inner: Arc::new(inner) };
        snapshotter.take_up().await?;
        snapshotter.count();
        tokio::spawn(snapshotter.clone().withdraw_what_is_wrong());
        Ok(snapshotter)
    }

    fn count(&self) {
        let count = locked(&self.inner.state).all().count();
        self.inner.counts.snapshots.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Does what changes the state, on a thread that may wait for the disk.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut State) -> std::result::Result<T, StateError> + Send + 'static,
    ) -> Answer<T> {
        let inner = self.inner.clone();
        let changed = tokio::task::spawn_blocking(move || change(&mut locked(&inner.state))).await;
        self.count();
        Ok(changed.map_err(|e| Status::internal(e.to_string()))??)
    }

    pub(super) async fn prepare(
        &self,
        request: PrepareRequest,
        kind: Kind,
    ) -> Answer<MountsResponse> {
        if kind == Kind::Active
            && let Some(outcome) = self.prepare_lazily(&request).await
        {
            let is_lazy = matches!(outcome, Ok(()));
            let outcome_label = vec![("outcome", if is_lazy { "lazy" } else { "fetched" }.into())];
            self.inner.counts.prepared.get_or_create(&outcome_label).inc();
            match outcome {
                Ok(()) => {
                    let what = format!("the layer of snapshot {} is shown by imgfs", request.key);
                    return Err(Status::already_exists(what));
                }
                Err(reason) => {
                    let key = &request.key;
                    tracing::warn!("containerd fetches the layer of snapshot {key}: {reason}");
                }
            }
        }
        let PrepareRequest { key, parent, labels, .. } = request;
        let made = key.clone();
        self.change(move |state| {
            let number = state.number();
            state.add(Snapshot {
                parent: some(parent),
                kind,
                labels: labels.into_iter().collect(),
                ..Snapshot::new(&key, number)
            })
        })
        .await?;
        self.mounts_of(&made)
    }

    /// Adds the committed snapshot of a layer that is shown, unless there is one.
    pub(super) async fn add_lazy(
        &self,
        snapshot: Snapshot,
        target: String,
        label: &'static str,
    ) -> Answer<()> {
        self.change(move |state| {
            let is_it = |other: &Snapshot| {
                other.kind == Kind::Committed
                    && other.parent == snapshot.parent
                    && other.labels.get(label) == Some(&target)
            };
            if state.all().any(is_it) {
                return Ok(());
            }
            let number = state.number();
            state.add(Snapshot { number, ..snapshot })
        })
        .await
    }

    pub(super) fn mounts(&self, request: &KeyRequest) -> Answer<MountsResponse> {
        self.mounts_of(&request.key)
    }

    /// How a snapshot is mounted.
    fn mounts_of(&self, key: &str) -> Answer<MountsResponse> {
        let state = locked(&self.inner.state);
        let snapshot = state.get(key)?;
        if snapshot.kind == Kind::Committed {
            return Err(Status::failed_precondition(format!("snapshot {key} is committed")));
        }
        let mut lowers = Vec::new();
        let mut next = snapshot.parent.clone();
        while let Some(name) = &next {
            let parent = state.get(name)?;
            if let Some(chain) = &parent.chain {
                // It has all that is below it.
                let tree = self.inner.options.mount.join(".imgfs/.trees").join(chain.to_string());
                lowers.push(tree.display().to_string());
                break;
            }
            lowers.push(state.files(parent.number).display().to_string());
            next.clone_from(&parent.parent);
        }
        let is_view = snapshot.kind == Kind::View;
        let own = state.files(snapshot.number).display().to_string();
        let bind = |source: String, access: &str| Mount {
            r#type: "bind".to_owned(),
            source,
            target: String::new(),
            options: vec![access.to_owned(), "rbind".to_owned()],
        };
        let mount = match (lowers.len(), is_view) {
            (0, false) => bind(own, "rw"),
            (0, true) => bind(own, "ro"),
            (1, true) => bind(lowers.remove(0), "ro"),
            _ => {
                let mut options = Vec::new();
                if self.inner.has_overlay_index {
                    options.push("index=off".to_owned());
                }
                if !is_view {
                    let work = state.work(snapshot.number);
                    options.push(format!("workdir={}", work.display()));
                    options.push(format!("upperdir={own}"));
                }
                options.push(format!("lowerdir={}", lowers.join(":")));
                let (source, target) = ("overlay".to_owned(), String::new());
                Mount { r#type: "overlay".to_owned(), source, target, options }
            }
        };
        Ok(MountsResponse { mounts: vec![mount] })
    }

    pub(super) async fn commit(&self, request: CommitRequest) -> Answer<Empty> {
        let CommitRequest { name, key, labels, parent, .. } = request;
        let labels: BTreeMap<String, String> = labels.into_iter().collect();
        self.change(move |state| state.commit(&key, &name, labels, some(parent).as_deref()))
            .await?;
        Ok(Empty {})
    }

    pub(super) async fn remove(&self, request: KeyRequest) -> Answer<Empty> {
        self.change(move |state| state.remove(&request.key)).await?;
        Ok(Empty {})
    }

    pub(super) fn stat(&self, request: &KeyRequest) -> Answer<InfoResponse> {
        let state = locked(&self.inner.state);
        Ok(InfoResponse { info: Some(info(state.get(&request.key)?)) })
    }

    pub(super) async fn update(&self, request: UpdateRequest) -> Answer<InfoResponse> {
        let wanted =
            request.info.ok_or_else(|| Status::invalid_argument("no snapshot is named"))?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        for path in &paths {
            if path != "labels" && !path.starts_with("labels.") {
                return Err(Status::invalid_argument(format!("{path} cannot be changed")));
            }
        }
        let changed = self.change(move |state| {
            state.relabel(&wanted.name, |labels| {
                if paths.is_empty() || paths.iter().any(|path| path == "labels") {
                    *labels = wanted.labels.into_iter().collect();
                    return;
                }
                for label in paths.iter().filter_map(|path| path.strip_prefix("labels.")) {
                    match wanted.labels.get(label) {
                        Some(value) => labels.insert(label.to_owned(), value.clone()),
                        None => labels.remove(label),
                    };
                }
            })
        });
        Ok(InfoResponse { info: Some(info(&changed.await?)) })
    }

    pub(super) fn list(&self, request: &ListRequest) -> Answer<Vec<Info>> {
        let filters = request.filters.iter().map(|filter| Filter::parse(filter));
        let filters = filters.collect::<std::result::Result<Vec<_>, _>>();
        let filters = filters.map_err(Status::invalid_argument)?;
        let state = locked(&self.inner.state);
        let mut found: Vec<&Snapshot> =
            state.all().filter(|snapshot| filter::any(&filters, snapshot)).collect();
        found.sort_by_key(|snapshot| snapshot.number);
        Ok(found.into_iter().map(info).collect())
    }

    pub(super) async fn usage(&self, request: KeyRequest) -> Answer<UsageResponse> {
        let dir = {
            let state = locked(&self.inner.state);
            let snapshot = state.get(&request.key)?;
            if snapshot.chain.is_some() {
                // What is cached of it is bounded, and shared.
                return Ok(UsageResponse::default());
            }
            state.files(snapshot.number)
        };
        let used = tokio::task::spawn_blocking(move || State::usage(&dir)).await;
        let used = used.map_err(std::io::Error::other).and_then(|used| used);
        let (size, inodes) = used.map_err(|e| Status::internal(e.to_string()))?;
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Ok(UsageResponse { size: number(size), inodes: number(inodes) })
    }

    pub(super) async fn cleanup(&self, _: CleanupRequest) -> Answer<Empty> {
        self.change(|state| state.cleanup()).await?;
        self.forget_unused().await;
        Ok(Empty {})
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn info(snapshot: &Snapshot) -> Info {
    let kind = match snapshot.kind {
        Kind::View => KindNumber::View,
        Kind::Active => KindNumber::Active,
        Kind::Committed => KindNumber::Committed,
    };
    let time = |(seconds, nanos)| Some(Timestamp { seconds, nanos });
    Info {
        name: snapshot.name.clone(),
        parent: snapshot.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: time(snapshot.created),
        updated_at: time(snapshot.updated),
        labels: snapshot.labels.clone().into_iter().collect(),
    }
}

/// A snapshot of a layer that is shown.
pub(super) fn lazy_snapshot(
    name: &str,
    parent: String,
    labels: HashMap<String, String>,
) -> Snapshot {
    let now = now();
    Snapshot {
        parent: some(parent),
        kind: Kind::Committed,
        created: now,
        updated: now,
        labels: labels.into_iter().collect(),
        ..Snapshot::new(name, 0)
    }
}
