//! Indexes of layers: looking at them, and attaching them to images so that other machines need not make them.

use super::{
    Error, OpenImage, Opener, Result,
    profiles::{AttachReport, AttachTo},
};
use crate::{
    backend,
    image::{Descriptor, Digest},
    rootfs::{
        INDEX_ARTIFACT_TYPE, INDEX_LAYER, INDEX_MEDIA_TYPE, LayerState, PulledIndex, StoredIndex,
    },
};

/// What became of the indexes of an image that were to be attached to it.
#[derive(Debug)]
pub struct PushedIndexes {
    /// What has been attached; `None` if there was nothing.
    pub attached: Option<AttachReport>,
    /// Why some layers have no index to attach, by their digests.
    pub failed: Vec<(Digest, backend::Error)>,
}

impl Opener {
    /// All indexes that are kept here.
    pub async fn indexes(&self) -> Result<Vec<StoredIndex>> {
        Ok(self.images().indexes().await?)
    }

    /// What is known of the indexes of an image's layers, the lowest first. What is attached to it is only looked at
    /// if `looks`.
    pub async fn layer_states(&self, image: &OpenImage, looks: bool) -> Result<Vec<LayerState>> {
        self.images().layer_states(&image.variant, looks).await.map_err(Error::Image)
    }

    /// Attaches the indexes of an image's layers to it; makes those first that are not there.
    pub async fn push_indexes(&self, image: &OpenImage, to: AttachTo) -> Result<PushedIndexes> {
        let (mut blobs, mut failed) = (Vec::new(), Vec::new());
        for (layer, index) in self.images().own_indexes(&image.variant).await {
            match index {
                Ok(content) => {
                    let (digest, size) = (Digest::sha256(&content), content.len() as u64);
                    let mut blob = Descriptor::new(INDEX_MEDIA_TYPE, digest, size);
                    blob.annotations.insert(INDEX_LAYER.to_owned(), layer.digest.to_string());
                    // An image may have the same layer twice.
                    if blobs.iter().all(|(known, _): &(Descriptor, _)| known.digest != digest) {
                        blobs.push((blob, content));
                    }
                }
                Err(error) => failed.push((layer.digest, error)),
            }
        }
        let attached = match blobs.is_empty() {
            true => None,
            false => Some(self.attach(image, to, INDEX_ARTIFACT_TYPE, blobs).await?),
        };
        Ok(PushedIndexes { attached, failed })
    }

    /// Fetches the indexes that are attached to an image and keeps those that are fit for its layers. Whether they
    /// are true nobody has checked.
    pub async fn pull_indexes(&self, image: &OpenImage) -> Result<Vec<PulledIndex>> {
        self.images().pull_indexes(&image.variant).await.map_err(Error::Image)
    }

    /// Removes the indexes of an image's layers that are kept here; only those that were attached to the image if
    /// `only_attached`. How many.
    pub async fn remove_indexes(&self, image: &OpenImage, only_attached: bool) -> Result<usize> {
        Ok(self.images().remove_indexes(&image.variant, only_attached).await?)
    }
}
