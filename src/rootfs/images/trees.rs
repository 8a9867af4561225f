//! The trees of an image: its layers, merged or by themselves.

use std::{io, sync::Arc};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture, try_join_all},
};

use super::{
    super::{
        Files, SIDE,
        follow::follow,
        image::Variant,
        index_store::Indexed,
        key::LayerKey,
        layer::{Claims, Layer},
        recorded::WrongLayer,
        scan::Scan,
        starts::{Start, Ways},
        stream::{scanned_stream, stream},
        tree::{Origin, Tree},
    },
    Images, Layers,
};
use crate::{
    backend::{Error, Kind, Result},
    image::{Platform, Reference},
    layer::{ProfiledStream, Rootfs, StreamKind},
};

impl Images {
    /// The layers of a platform, the lowest first, as they are known where the indexes that are attached to it are
    /// trusted.
    pub(in crate::rootfs) fn layers_with_attached(&self, variant: &Variant) -> Vec<Arc<Layer>> {
        let numbers = 0..variant.layer_count();
        let of = |number| self.layer_with(variant, number, Some(variant.name()));
        numbers.filter_map(of).collect()
    }

    /// The layers of a platform, the lowest first.
    pub(in crate::rootfs) fn layers(&self, variant: &Variant) -> Vec<Arc<Layer>> {
        let numbers = 0..variant.layer_count();
        numbers.filter_map(|number| self.layer(variant, number)).collect()
    }

    pub(in crate::rootfs) fn layer(&self, variant: &Variant, number: usize) -> Option<Arc<Layer>> {
        self.layer_with(variant, number, self.trusted_attachments(variant))
    }

    /// A layer, and where indexes of it may be attached that are trusted.
    fn layer_with(
        &self,
        variant: &Variant,
        number: usize,
        attached: Option<Reference>,
    ) -> Option<Arc<Layer>> {
        let blob = variant.layers().get(number)?;
        let diff_id = variant.diff_ids().get(number).copied();
        let soci_index = variant.soci_index().cloned();
        let key = LayerKey::new(blob, soci_index.as_ref(), attached.as_ref());
        let claims = Claims { soci_index, attached };
        let new = || Layer::new(self.inner.store.clone(), key, blob.clone(), diff_id, claims);
        let layer = self.inner.layers.share(key, new);
        layer.at.is_in(variant.repository());
        Some(layer)
    }

    /// The name of the manifest of a platform, if the indexes that are attached to it are trusted.
    fn trusted_attachments(&self, variant: &Variant) -> Option<Reference> {
        // A chain is shown for every image that has it, and must not depend on what is attached to one of them.
        let is_trusted =
            !variant.is_chain() && self.inner.store.sources.trusts(variant.repository());
        is_trusted.then(|| variant.name())
    }

    /// The start of a platform of an image, which may be over.
    fn start(&self, variant: &Arc<Variant>) -> Option<Arc<Start>> {
        let store = &self.inner.store;
        let platform = variant.platform().map(Platform::to_string);
        let repository = variant.repository().to_string();
        let ways = || {
            let (to_find, to_follow) = (Arc::downgrade(&self.inner), Arc::downgrade(&self.inner));
            let (of, to) = (variant.clone(), variant.clone());
            Ways {
                find: Box::new(move |start| {
                    let Some(inner) = to_find.upgrade() else { return };
                    let Some(runtime) = inner.store.starts.runtime().cloned() else { return };
                    runtime.spawn(async move {
                        let finds = inner.store.starts.finds();
                        if let Some(profile) = (Self { inner }).profile(&of, finds).await {
                            start.offer(profile);
                        }
                    });
                }),
                follow: Box::new(move |profile| {
                    let Some(inner) = to_follow.upgrade() else { return };
                    let Some(runtime) = inner.store.starts.runtime().cloned() else { return };
                    runtime.spawn(async move {
                        let bytes = follow(&Self { inner }, &to, &profile).await;
                        let image = to.name();
                        tracing::info!(%image, bytes, "has fetched what its profile has");
                    });
                }),
            }
        };
        let image = variant.manifest().digest();
        store.starts.of(image, platform, repository, &store.index_store, ways)
    }

    /// The files of a platform, or of its layer with this number, from 0 for the lowest. Nothing is
    /// fetched yet.
    pub fn files(&self, variant: &Arc<Variant>, layer: Option<usize>) -> Files {
        Files::new(self.clone(), variant.clone(), layer, self.layers(variant))
    }

    /// The tree of a platform or of one of its layers, if it has been made and not been let go.
    pub(in crate::rootfs) fn known_tree(
        &self,
        variant: &Variant,
        layer: Option<usize>,
    ) -> Option<Arc<Tree>> {
        self.inner.trees.get(&(variant.key(), layer))
    }

    /// The tree of a platform or of one of its layers, which is made once for all who want it.
    pub(in crate::rootfs) fn tree(
        &self,
        variant: &Arc<Variant>,
        layer: Option<usize>,
    ) -> BoxFuture<'static, Result<Arc<Tree>>> {
        if let Some(tree) = self.known_tree(variant, layer) {
            return future::ready(Ok(tree)).boxed();
        }
        let key = (variant.key(), layer);
        let (images, of) = (self.clone(), variant.clone());
        let make = || async move {
            if let Some(tree) = images.known_tree(&of, layer) {
                return Ok(tree);
            }
            let layers = match layer {
                None => Layers::From(0),
                Some(number) => Layers::Alone(number),
            };
            let tree = images.inner.store.with_memory(|| images.merge(&of, layers)).await?;
            images.inner.trees.insert(key, &tree);
            Ok(tree)
        };
        let flight = self.inner.merging.run(key, make);
        let doing = merging(variant);
        async move {
            let died = |died| Err(Error::new(SIDE, doing, io::Error::other(died)));
            flight.await.unwrap_or_else(died)
        }
        .boxed()
    }

    /// What the layers of a platform from `first` on make, as if there was nothing below them.
    pub async fn upper_tree(&self, variant: &Arc<Variant>, first: usize) -> Result<Arc<Tree>> {
        self.inner.store.with_memory(|| self.merge(variant, Layers::From(first))).await
    }

    async fn merge(&self, variant: &Arc<Variant>, layers: Layers) -> Result<Arc<Tree>> {
        let (numbers, is_alone) = match layers {
            Layers::From(first) => (first.min(variant.layer_count())..variant.layer_count(), false),
            Layers::Alone(number) => (number..number + 1, true),
        };
        let layers: Vec<_> =
            numbers.clone().filter_map(|number| self.layer(variant, number)).collect();
        // From the top down: what is asked for first is most often there.
        let mut indexes: Vec<_> = layers.iter().rev().map(Layer::index).collect();
        indexes.reverse();
        let indexes = try_join_all(indexes).await?;
        let mut origins = Vec::new();
        for ((number, of), index) in numbers.zip(&layers).zip(&indexes) {
            origins.push(self.origin(variant, number, of, index)?);
        }
        let failed = |kind: Kind| Error::new(SIDE, merging(variant), kind);
        let bytes = Rootfs::merging_bytes(indexes.iter().map(|index| &****index));
        let memory = &self.inner.store.sources.memory;
        let memory = memory.reserve(bytes).map_err(|e| failed(e.into()))?;
        let mut indexes: Vec<_> = indexes.iter().map(|index| (**index).clone()).collect();
        let make = move || {
            let rootfs = match (is_alone, indexes.pop()) {
                (true, Some(index)) => Rootfs::raw(index),
                (_, last) => Rootfs::new(indexes.into_iter().chain(last).collect()),
            };
            (rootfs, memory)
        };
        let (rootfs, mut memory) =
            self.inner.store.compute(make).await.map_err(|e| failed(e.into()))?;
        let rootfs = rootfs.map_err(|e| failed(Kind::Unfit(e.to_string())))?;
        memory.resize(rootfs.memory_bytes()).map_err(|e| failed(e.into()))?;
        Ok(Tree::new(rootfs, origins, memory, self.start(variant)))
    }

    /// What a tree has to know of a layer, which has to be the one that the configuration means.
    pub(in crate::rootfs) fn origin(
        &self,
        variant: &Variant,
        number: usize,
        layer: &Arc<Layer>,
        index: &Arc<Indexed>,
    ) -> Result<Origin> {
        if let Some(note) = index.wrong() {
            let reason = note.kind.to_string();
            self.inner.store.note_wrong(WrongLayer {
                layer: index.blob(),
                diff_id: None,
                reason: reason.clone(),
            });
            return Err(layer.error(Kind::Layer(reason)));
        }
        if let (Some(found), Some(expected)) = (index.diff_id(), variant.diff_ids().get(number))
            && found != *expected
        {
            let reason = format!(
                "decompressed it has the digest {found}; the image's configuration says {expected}"
            );
            let error = layer.error(Kind::Layer(reason.clone()));
            self.inner.store.note(&error);
            let wrong = WrongLayer { layer: index.blob(), diff_id: Some(*expected), reason };
            self.inner.store.note_wrong(wrong);
            return Err(error);
        }
        let (of, index) = (layer.clone(), index.clone());
        Ok(Origin {
            is_told: !variant.is_chain(),
            number,
            digest: index.blob(),
            stream: profiled(&index),
            created_by: variant.created_by(number).map(str::to_owned),
            open: Box::new(move || stream(&of, &index)),
        })
    }

    /// What has been seen of a layer in a scan, if somebody has looked before.
    pub(in crate::rootfs) fn known_scanned(
        &self,
        variant: &Variant,
        number: usize,
        scan: &Scan,
    ) -> Option<Arc<Tree>> {
        self.inner.scanned.get(&((variant.key(), Some(number)), scan.number))
    }

    /// What has been scanned of a layer, with the file `path`, if that has been. Copies the table.
    pub(in crate::rootfs) fn scanned_tree(
        &self,
        variant: &Arc<Variant>,
        number: usize,
        layer: &Arc<Layer>,
        scan: &Arc<Scan>,
        path: &[u8],
    ) -> Option<Arc<Tree>> {
        if self.inner.store.sources.verify_first {
            return None;
        }
        let (index, memory) = scan.index_with(path)?;
        let index = Indexed::unstored(index, memory);
        let budget = &self.inner.store.sources.memory;
        // Where there is no room for it, the end of the scan has to be waited for.
        let mut memory = budget.reserve(Rootfs::merging_bytes([&***index])).ok()?;
        let rootfs = Rootfs::raw((**index).clone()).ok()?;
        memory.resize(rootfs.memory_bytes()).ok()?;
        let (of, scan_of, scanned) = (layer.clone(), scan.clone(), index.clone());
        let origin = Origin {
            is_told: !variant.is_chain(),
            number,
            digest: index.blob(),
            // How long it is nobody knows yet.
            stream: ProfiledStream { bytes: ProfiledStream::UNKNOWN, ..profiled(&index) },
            created_by: variant.created_by(number).map(str::to_owned),
            open: Box::new(move || Ok(scanned_stream(&of, &scanned, &scan_of))),
        };
        let tree = Tree::new(rootfs, vec![origin], memory, self.start(variant));
        let key = ((variant.key(), Some(number)), scan.number);
        self.inner.scanned.insert(key, &tree);
        Some(tree)
    }
}

/// How profiles name the stream of a layer.
fn profiled(index: &Indexed) -> ProfiledStream {
    let kind = StreamKind::of(index.origin());
    ProfiledStream { layer: index.blob(), kind, bytes: index.stream_bytes() }
}

fn merging(variant: &Variant) -> String {
    format!("merging the layers of {}", variant.manifest().digest())
}
