//! What is recorded: taking it up at the start, the passes through its layers, and withdrawing what is wrong.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::json;

use super::{Known, MAX_ORDINARY, Result, StoreDaemon, blocking};
use crate::{
    backend,
    image::{ChainId, Digest, Reference},
    rootfs::WrongLayer,
    store::{LayerEntry, Needed, PruneReport, RemoveReport, StoredRecord, needed_by},
    util::locked,
};

/// How often is looked whether layers have been indexed by whoever has read them.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

impl StoreDaemon {
    /// Takes up what has been recorded before.
    pub(super) async fn take_up(&self) -> Result<()> {
        let _changing = self.inner.changing.lock().await;
        let dir = self.inner.dir.clone();
        let (records, has_damaged, listed) = blocking(move || {
            let (records, has_damaged) = dir.take_records()?;
            Ok((records, has_damaged, dir.layers()?))
        })
        .await?;
        let sized = listed.iter().filter(|layer| layer.diff_size != layer.compressed_size);
        let sized: HashSet<ChainId> = sized.map(|layer| layer.id).collect();
        let (mut layers, mut images) = (Vec::<LayerEntry>::new(), HashMap::new());
        for record in &records {
            let digest = record.digest();
            let mut known = Known::new(record);
            for (passed, chain) in known.passed.iter_mut().zip(&record.chains) {
                // Its size is known, so it has been passed through before.
                *passed = sized.contains(chain);
            }
            if record.is_lazy() {
                match self.show_unless_in_the_way(record).await {
                    Ok(()) => layers.extend(record.layers.iter().cloned()),
                    Err(error) => {
                        tracing::warn!(%digest, "{}: {error}", record.source.reference);
                        known.last_error = Some(error.to_string());
                    }
                }
            }
            images.insert(digest, known);
        }
        locked(&self.inner.state).images = images;
        let (dir, mount) = (self.inner.dir.clone(), self.inner.options.mount.clone());
        let served: HashSet<ChainId> = layers.iter().map(|layer| layer.id).collect();
        blocking(move || {
            let listed: HashSet<ChainId> = listed.iter().map(|layer| layer.id).collect();
            if !listed.is_empty() {
                // What has been pruned stays so; an empty list may have been a damaged one.
                layers.retain(|layer| listed.contains(&layer.id));
            }
            dir.add_layers(&mount, &layers)?;
            if has_damaged {
                // What nobody can show any more must not keep an ordinary pull from bringing it.
                dir.remove_layers(|layer| served.contains(&layer.id))?;
            }
            // Nor must what a process that was killed has begun. The images can be shown all the same.
            if let Err(error) = dir.remove_begun(|_| false, false) {
                tracing::warn!("{error}");
            }
            Ok(())
        })
        .await?;
        self.count_entries();
        Ok(())
    }

    /// Shows the trees of an image that is recorded, unless somebody else has one of its layers in the store.
    async fn show_unless_in_the_way(&self, record: &StoredRecord) -> Result<()> {
        let (dir, chains) = (self.inner.dir.clone(), record.chains.clone());
        blocking(move || {
            for chain in &chains {
                if let Some(path) = dir.unpacked_by_others(chain)? {
                    return Err(dir.layer_of_others(&path));
                }
            }
            Ok(())
        })
        .await?;
        Ok(self.show(record)?)
    }

    /// Shows the trees of an image that is recorded.
    pub(super) fn show(&self, record: &StoredRecord) -> backend::Result<()> {
        self.inner.images.record(&self.inner.dir.to_show(record))?;
        let note = json!({ "state": "lazy" });
        self.inner.images.set_store_note(record.manifest.digest(), note);
        Ok(())
    }

    pub(super) fn count_entries(&self) {
        let count = locked(&self.inner.state).images.len();
        self.inner.counts.entries.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Remembers that an image is pulled in the ordinary way.
    pub(super) fn note_ordinary(&self, image: &str, reason: &str) {
        let ordinary = &mut locked(&self.inner.state).ordinary;
        ordinary.retain(|(other, _)| other != image);
        if ordinary.len() >= MAX_ORDINARY {
            ordinary.remove(0);
        }
        ordinary.push((image.to_owned(), reason.to_owned()));
    }

    /// Forgets that an image was pulled in the ordinary way before. Whether it was.
    pub(super) fn forget_ordinary(&self, image: &str) -> bool {
        let name = image.parse::<Reference>().ok();
        let is_it = |other: &str| {
            other == image || (name.is_some() && other.parse::<Reference>().ok() == name)
        };
        let ordinary = &mut locked(&self.inner.state).ordinary;
        let before = ordinary.len();
        ordinary.retain(|(other, _)| !is_it(other));
        ordinary.len() < before
    }

    // --- passes ---

    /// Passes through all layers of an image, all at the same time.
    pub(super) fn pass(&self, manifest: Digest) {
        let daemon = self.clone();
        tokio::spawn(async move {
            let known = locked(&daemon.inner.state).images.get(&manifest).cloned();
            let Some(known) = known else { return };
            let Some(top) = known.chains.last() else { return };
            let variant = match daemon.inner.images.chain(top).await {
                Ok(Some(variant)) => variant,
                Ok(None) => return,
                Err(error) => return daemon.note_error(&manifest, &known, &error),
            };
            let passes = (0..known.layers.len()).map(|number| {
                let (daemon, variant, known) = (&daemon, &variant, &known);
                async move {
                    let passed = daemon.inner.images.index_layer(variant, number).await;
                    let outcome = if passed.is_ok() { "done" } else { "failed" };
                    let outcome = vec![("outcome", outcome.into())];
                    daemon.inner.counts.passes.get_or_create(&outcome).inc();
                    match passed {
                        Ok(bytes) => {
                            daemon.note_passed(&manifest, number);
                            Some((known.chains[number], bytes))
                        }
                        Err(error) => {
                            daemon.note_error(&manifest, known, &error);
                            None
                        }
                    }
                }
            });
            let sizes: Vec<(ChainId, u64)> = join_all(passes).await.into_iter().flatten().collect();
            daemon.set_sizes(sizes).await;
        });
    }

    fn note_passed(&self, manifest: &Digest, number: usize) {
        if let Some(known) = locked(&self.inner.state).images.get_mut(manifest)
            && let Some(passed) = known.passed.get_mut(number)
        {
            *passed = true;
        }
    }

    fn note_error(&self, manifest: &Digest, known: &Known, error: &backend::Error) {
        let image = &known.source.reference;
        tracing::warn!(%image, digest = %manifest, "{image}: {error}");
        if let Some(known) = locked(&self.inner.state).images.get_mut(manifest) {
            known.last_error = Some(error.to_string());
        }
    }

    async fn set_sizes(&self, sizes: Vec<(ChainId, u64)>) {
        let _changing = self.inner.changing.lock().await;
        let dir = self.inner.dir.clone();
        if let Err(error) = blocking(move || dir.set_sizes(&sizes)).await {
            tracing::warn!("{error}");
        }
    }

    /// Notes, now and then, what has been indexed by others than our passes.
    pub(super) async fn correct_sizes(self) {
        loop {
            let unpassed: Vec<(Digest, Known)> = {
                let state = locked(&self.inner.state);
                let is_open = |known: &Known| known.is_lazy() && known.passed.contains(&false);
                let open = state.images.iter().filter(|(_, known)| is_open(known));
                open.map(|(digest, known)| (*digest, known.clone())).collect()
            };
            let mut sizes = Vec::new();
            for (digest, known) in unpassed {
                let Some(top) = known.chains.last() else { continue };
                let Ok(Some(variant)) = self.inner.images.chain(top).await else { continue };
                for number in (0..known.layers.len()).filter(|number| !known.passed[*number]) {
                    let (images, of) = (self.inner.images.clone(), variant.clone());
                    let is_indexed =
                        tokio::task::spawn_blocking(move || images.is_layer_indexed(&of, number));
                    if is_indexed.await.unwrap_or(false)
                        && let Ok(bytes) = self.inner.images.index_layer(&variant, number).await
                    {
                        self.note_passed(&digest, number);
                        sizes.push((known.chains[number], bytes));
                    }
                }
            }
            if !sizes.is_empty() {
                self.set_sizes(sizes).await;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    // --- what is not what it should be ---

    /// Withdraws images, whenever a layer has been found not to be what it should be.
    pub(super) async fn withdraw_what_is_wrong(self) {
        loop {
            for wrong in self.inner.images.wrong_layers() {
                if let Err(error) = self.withdraw(&wrong).await {
                    tracing::warn!("{error}");
                }
            }
            self.inner.images.wrong_layer_found().await;
        }
    }

    async fn withdraw(&self, wrong: &WrongLayer) -> Result<()> {
        let _changing = self.inner.changing.lock().await;
        let has_it = |known: &Known| known.layers.iter().any(|layer| layer.is_meant_by(wrong));
        let withdrawn: Vec<(Digest, Known)> = {
            let mut state = locked(&self.inner.state);
            let bad = state.images.iter_mut().filter(|(_, known)| known.is_lazy() && has_it(known));
            let bad = bad.map(|(digest, known)| {
                known.source.withdrawn = Some(wrong.reason.clone());
                (*digest, known.clone())
            });
            bad.collect()
        };
        for (digest, known) in &withdrawn {
            let image = &known.source.reference;
            tracing::warn!(%image, %digest, "{image} is withdrawn: {}", wrong.reason);
            self.inner.images.forget_record(digest);
            let note = json!({ "state": "ordinary", "reason": wrong.reason });
            self.inner.images.set_store_note(*digest, note);
        }
        let (dir, served) = (self.inner.dir.clone(), self.served());
        blocking(move || {
            for (digest, known) in &withdrawn {
                dir.write_source(digest, &known.source)?;
            }
            let gone: HashSet<ChainId> =
                withdrawn.iter().flat_map(|(_, known)| known.chains.iter().copied()).collect();
            dir.remove_layers(|layer| !gone.contains(&layer.id) || served.contains(&layer.id))?;
            Ok(())
        })
        .await
    }

    /// The chains of images that are served.
    pub(super) fn served(&self) -> HashSet<ChainId> {
        let state = locked(&self.inner.state);
        let lazy = state.images.values().filter(|known| known.is_lazy());
        lazy.flat_map(|known| known.chains.iter().copied()).collect()
    }

    // --- removing ---

    /// Removes what nobody needs. See [`crate::store::StoreDir::prune`].
    pub(super) async fn prune(
        &self,
        graphroots: Vec<PathBuf>,
        is_dry: bool,
    ) -> Result<PruneReport> {
        let _changing = self.inner.changing.lock().await;
        let dir = self.inner.dir.clone();
        let report = blocking(move || dir.prune(&graphroots, is_dry)).await?;
        if !is_dry {
            self.forget(&report.removed.records);
        }
        Ok(report)
    }

    /// Forgets images of which nothing is recorded any more.
    pub(super) fn forget(&self, manifests: &[Digest]) {
        for digest in manifests {
            self.inner.images.forget_record(digest);
            locked(&self.inner.state).images.remove(digest);
        }
        self.count_entries();
    }

    /// Removes images by their names or digests, but for those that something in `graphroots` needs.
    pub(super) async fn remove(
        &self,
        images: Vec<String>,
        graphroots: Vec<PathBuf>,
    ) -> Result<RemoveReport> {
        let _changing = self.inner.changing.lock().await;
        let (dir, wanted) = (self.inner.dir.clone(), images.clone());
        let mut report = blocking(move || {
            let mut needed = Needed::default();
            for root in &graphroots {
                needed.add(needed_by(root)?);
            }
            dir.forget_images(&wanted, &needed)
        })
        .await?;
        self.forget(&report.gone);
        for (digest, source) in &report.changed {
            if let Some(known) = locked(&self.inner.state).images.get_mut(digest) {
                known.source = source.clone();
            }
        }
        for image in
            images.iter().filter(|image| !report.in_use.iter().any(|of| of.image == **image))
        {
            if self.forget_ordinary(image) && report.missing.contains(image) {
                report.missing.retain(|missing| missing != image);
                report.names.push(image.clone());
            }
        }
        Ok(report)
    }
}
