//! Layers that containerd need not fetch.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    sync::{Arc, Mutex, Once},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use lru::LruCache;
use tokio::time::timeout;

use super::{
    Snapshotter,
    messages::PrepareRequest,
    service::{blocking, lazy_snapshot},
};
use crate::{
    backend::{Error, Kind, Result},
    image::{ChainId, Digest, Reference, Repository, oci_chain_ids},
    rootfs::WrongLayer,
    store::{LayerEntry, Source, StoredRecord, now},
    util::{SingleFlight, locked},
};

/// The chain ID (OCI image specification) of the layer that a snapshot is for.
pub(super) const REF: &str = "containerd.io/snapshot.ref";
const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";

/// How long manifest and configuration of an image may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// For so long an image that could not be recorded is not tried again: containerd asks for each of its layers.
const REFUSED_FOR: Duration = Duration::from_secs(60);
const MAX_REFUSED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// An image whose layers are shown.
pub(super) struct Known {
    chains: Vec<ChainId>,
    /// The same by their names in the OCI image specification.
    oci_chains: Vec<Digest>,
    layers: Vec<LayerEntry>,
    withdrawn: Mutex<Option<String>>,
}

impl Known {
    fn new(record: &StoredRecord) -> Self {
        let diff_ids: Vec<Digest> = record.layers.iter().map(|layer| layer.diff_digest).collect();
        Self {
            chains: record.chains.clone(),
            oci_chains: oci_chain_ids(&diff_ids),
            layers: record.layers.clone(),
            withdrawn: Mutex::new(record.source.withdrawn.clone()),
        }
    }
}

/// Images that are being recorded, and those that could not be.
pub(super) struct Lazy {
    flights: SingleFlight<Digest, std::result::Result<Arc<Known>, String>>,
    refused: Mutex<LruCache<Digest, (Instant, String)>>,
    /// Whether somebody has been told that containerd does not say which images it is about to fetch.
    silence: Once,
}

impl Default for Lazy {
    fn default() -> Self {
        Self {
            flights: SingleFlight::default(),
            refused: Mutex::new(LruCache::new(MAX_REFUSED)),
            silence: Once::new(),
        }
    }
}

impl Lazy {
    /// containerd is about to fetch a layer, and says nothing of the image. It does so for all layers if it is not
    /// configured as it has to be, and nothing else would tell.
    fn note_silence(&self) {
        self.silence.call_once(|| {
            tracing::warn!(
                "containerd fetches all layers of an image, since it does not say which image they are of: it lacks \
                 a part of what `imgfs snapshotter setup` prints, or reads it as the configuration of another version"
            );
        });
    }
}

impl Snapshotter {
    /// Takes up the images that have been recorded before.
    pub(super) async fn take_up(&self) -> Result<()> {
        let records = self.inner.records.clone();
        let (whole, _) = blocking("reading records", move || records.take_records()).await?;
        for record in whole {
            let digest = record.digest();
            if record.is_lazy()
                && let Err(error) = self.show(&record)
            {
                tracing::warn!(%digest, "{}: {error}", record.source.reference);
                continue;
            }
            locked(&self.inner.lazy).insert(digest, Arc::new(Known::new(&record)));
        }
        Ok(())
    }

    fn show(&self, record: &StoredRecord) -> Result<()> {
        self.inner.images.record(&self.inner.records.to_show(record)).map(drop)
    }

    /// Prepares the snapshot of a layer that need not be fetched. `None` if the request is not for a layer of an
    /// image; an error says why it has to be fetched.
    pub(super) async fn prepare_lazily(
        &self,
        request: &PrepareRequest,
    ) -> Option<std::result::Result<(), String>> {
        let label = |name: &str| request.labels.get(name).filter(|value| !value.is_empty());
        let target = label(REF)?;
        let (Some(image), Some(manifest), Some(layer)) =
            (label(IMAGE), label(MANIFEST), label(LAYER))
        else {
            self.inner.preparing.note_silence();
            return None;
        };
        Some(self.prepare_layer(request, target, [image, manifest, layer]).await)
    }

    async fn prepare_layer(
        &self,
        request: &PrepareRequest,
        target: &str,
        [image, manifest, layer]: [&String; 3],
    ) -> std::result::Result<(), String> {
        let name: Reference = image.parse().map_err(|e| format!("{e}"))?;
        let manifest: Digest = manifest.parse().map_err(|e| format!("{e}"))?;
        let (target, layer): (Digest, Digest) = (
            target.parse().map_err(|e| format!("{e}"))?,
            layer.parse().map_err(|e| format!("{e}"))?,
        );
        let known = self.known(name.repository(), image, manifest).await?;
        if let Some(reason) = &*locked(&known.withdrawn) {
            return Err(format!("{image} has been withdrawn: {reason}"));
        }
        let number = known.oci_chains.iter().position(|chain| *chain == target);
        let number = number.filter(|number| {
            known.layers.get(*number).is_some_and(|of| of.compressed_diff_digest == layer)
        });
        let number = number.ok_or_else(|| format!("{image} has no such layer"))?;
        let name = format!("{} {target}", request.key);
        let mut snapshot = lazy_snapshot(&name, request.parent.clone(), request.labels.clone());
        snapshot.chain = known.chains.get(number).copied();
        snapshot.manifest = Some(manifest.to_hex());
        self.add_lazy(snapshot, target.to_string(), REF)
            .await
            .map_err(|status| status.message().to_owned())
    }

    /// An image, recorded now if need be.
    async fn known(
        &self,
        repository: &Repository,
        image: &str,
        manifest: Digest,
    ) -> std::result::Result<Arc<Known>, String> {
        if let Some(known) = locked(&self.inner.lazy).get(&manifest) {
            return Ok(known.clone());
        }
        if let Some((since, reason)) = locked(&self.inner.preparing.refused).get(&manifest)
            && since.elapsed() < REFUSED_FOR
        {
            return Err(reason.clone());
        }
        let flight = self.inner.preparing.flights.run(manifest, || {
            let (of, repository, image) = (self.clone(), repository.clone(), image.to_owned());
            async move {
                let recorded = match timeout(PATIENCE, of.record(&repository, &image, manifest))
                    .await
                {
                    Ok(recorded) => recorded.map_err(|error| error.to_string()),
                    Err(_) => Err(format!("{image}: no answer within {} s", PATIENCE.as_secs())),
                };
                if let Err(reason) = &recorded {
                    let refused = (Instant::now(), reason.clone());
                    locked(&of.inner.preparing.refused).put(manifest, refused);
                }
                recorded
            }
        });
        flight.await.unwrap_or_else(|died| Err(died.to_string()))
    }

    async fn record(
        &self,
        repository: &Repository,
        image: &str,
        manifest: Digest,
    ) -> Result<Arc<Known>> {
        let images = &self.inner.images;
        let opened = images.image(repository, manifest).await?;
        let unfit = || {
            let reason = "it is an index, and not an image".to_owned();
            Error::new("snapshotter", format_args!("recording {image}"), Kind::Unfit(reason))
        };
        let platform = opened.platforms().next().map(str::to_owned).ok_or_else(unfit)?;
        let variant = images.variant(&opened, &platform).await?.ok_or_else(unfit)?;
        if variant.manifest().digest() != manifest {
            return Err(unfit());
        }
        let source = Source {
            reference: image.to_owned(),
            repository: repository.to_string(),
            root: manifest,
            platform: opened.written(&platform).into_owned(),
            recorded: now(),
            added: Vec::new(),
            withdrawn: None,
            forgotten: false,
        };
        let record =
            StoredRecord::new(source, variant.manifest().clone(), variant.config().clone())?;
        let (records, written) = (self.inner.records.clone(), record.clone());
        blocking("writing a record", move || records.write_record(&written)).await?;
        self.show(&record)?;
        let known = Arc::new(Known::new(&record));
        locked(&self.inner.lazy).insert(manifest, known.clone());
        self.pass(image, &known);
        Ok(known)
    }

    /// Passes through all layers of an image, all at the same time.
    fn pass(&self, image: &str, known: &Arc<Known>) {
        let (of, image, known) = (self.clone(), image.to_owned(), known.clone());
        tokio::spawn(async move {
            let Some(top) = known.chains.last() else { return };
            let images = &of.inner.images;
            let Ok(Some(variant)) = images.chain(top).await else { return };
            let passes = (0..known.layers.len()).map(|number| images.index_layer(&variant, number));
            for error in join_all(passes).await.into_iter().filter_map(Result::err) {
                tracing::warn!(%image, "{image}: {error}");
            }
        });
    }

    /// Withdraws images, whenever a layer has been found not to be what it should be: new snapshots of them are
    /// ordinary ones.
    pub(super) async fn withdraw_what_is_wrong(self) {
        loop {
            for wrong in self.inner.images.wrong_layers() {
                self.withdraw(&wrong).await;
            }
            self.inner.images.wrong_layer_found().await;
        }
    }

    async fn withdraw(&self, wrong: &WrongLayer) {
        let has_it = |known: &Known| known.layers.iter().any(|layer| layer.is_meant_by(wrong));
        let bad: HashMap<Digest, Arc<Known>> = {
            let lazy = locked(&self.inner.lazy);
            let bad = lazy.iter().filter(|(_, known)| has_it(known));
            bad.map(|(digest, known)| (*digest, known.clone())).collect()
        };
        for (digest, known) in bad {
            if locked(&known.withdrawn).replace(wrong.reason.clone()).is_some() {
                continue;
            }
            tracing::warn!(%digest, "image {digest} is withdrawn: {}", wrong.reason);
            let (records, reason) = (self.inner.records.clone(), wrong.reason.clone());
            let written = blocking("writing a record", move || {
                let Some(record) = records.record(&digest) else { return Ok(()) };
                let source = Source { withdrawn: Some(reason), ..record.source };
                records.write_source(&digest, &source)
            });
            if let Err(error) = written.await {
                tracing::warn!(%digest, "{error}");
            }
        }
    }

    /// Forgets images of which no snapshot shows a layer.
    pub(super) async fn forget_unused(&self) {
        let used: HashSet<String> = {
            let state = locked(&self.inner.state);
            state.all().filter_map(|snapshot| snapshot.manifest.clone()).collect()
        };
        let unused: Vec<Digest> = {
            let lazy = locked(&self.inner.lazy);
            lazy.keys().filter(|digest| !used.contains(&digest.to_hex())).copied().collect()
        };
        for digest in unused {
            locked(&self.inner.lazy).remove(&digest);
            self.inner.images.forget_record(&digest);
            let records = self.inner.records.clone();
            let removed = blocking("removing a record", move || records.remove_record(&digest));
            if let Err(error) = removed.await {
                tracing::warn!(%digest, "{error}");
            }
        }
    }
}
