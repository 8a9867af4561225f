//! Start-up profiles: looking at them, carrying them to other machines, and attaching them to images.

use bytes::Bytes;

use super::{Error, OpenImage, Opener, Result, artifact::Artifact};
use crate::{
    backend::{self, Kind},
    image::{Descriptor, Digest},
    layer::{PROFILE_ARTIFACT_TYPE, PROFILE_MEDIA_TYPE, Profile},
};

/// Where something is attached to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachTo {
    /// In the image's registry.
    Registry,
    /// In the directory of images, from where it goes on with the image.
    Directory,
}

/// What has been done to attach something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachReport {
    /// The manifest that it is attached to.
    pub subject: Digest,
    /// The manifest of the artifact; `None` if the same has been attached before.
    pub artifact: Option<Digest>,
    /// Bytes of its blobs.
    pub bytes: u64,
    /// How many there are.
    pub blobs: usize,
}

impl Opener {
    /// All profiles that are kept here.
    pub async fn profiles(&self) -> Result<Vec<Profile>> {
        Ok(self.images().profiles().await?)
    }

    /// The profile of the image with the manifest `image`, which is that of one platform.
    pub async fn profile(&self, image: Digest) -> Result<Option<Profile>> {
        Ok(self.images().stored_profile(image).await?)
    }

    /// Keeps the profile that is written in `bytes`, in place of the one that its image has.
    pub async fn import_profile(&self, bytes: &[u8]) -> Result<Profile> {
        let unfit = |e: crate::layer::ProfileError| {
            backend::Error::new("profile", "importing", Kind::Unfit(e.to_string()))
        };
        let profile = Profile::parse(bytes).map_err(unfit)?.for_others();
        self.images().keep_profile(profile.clone()).await?;
        Ok(profile)
    }

    /// Removes the profile of the image with the manifest `image`. Whether there was one.
    pub async fn remove_profile(&self, image: Digest) -> Result<bool> {
        Ok(self.images().remove_profile(image).await?)
    }

    /// Attaches the profile of an image to it. `None` if there is none.
    pub async fn push_profile(
        &self,
        image: &OpenImage,
        to: AttachTo,
    ) -> Result<Option<AttachReport>> {
        let Some(profile) = self.profile(image.manifest()).await? else { return Ok(None) };
        let content = Bytes::from(profile.for_others().to_bytes());
        let size = content.len() as u64;
        let blob = Descriptor::new(PROFILE_MEDIA_TYPE, Digest::sha256(&content), size);
        self.attach(image, to, PROFILE_ARTIFACT_TYPE, vec![(blob, content)]).await.map(Some)
    }

    /// Takes the newest profile that is attached to an image, in place of the one that is kept here. `None` if there
    /// is none.
    pub async fn pull_profile(&self, image: &OpenImage) -> Result<Option<Profile>> {
        let found = self.images().attached_profile(&image.variant).await.map_err(Error::Image)?;
        let Some(profile) = found else { return Ok(None) };
        let repository = image.variant.name().repository().to_string();
        self.images().keep_profile(profile.clone().seen_in(repository)).await?;
        Ok(Some(profile))
    }

    /// Attaches an artifact with these blobs to an image, unless that has been done.
    pub(super) async fn attach(
        &self,
        image: &OpenImage,
        to: AttachTo,
        kind: &str,
        blobs: Vec<(Descriptor, Bytes)>,
    ) -> Result<AttachReport> {
        let name = image.variant.name();
        let subject = image.variant.manifest();
        let bytes = blobs.iter().map(|(blob, _)| blob.size).sum();
        let mut report =
            AttachReport { subject: subject.digest(), artifact: None, bytes, blobs: blobs.len() };
        let digests: Vec<Digest> = blobs.iter().map(|(blob, _)| blob.digest).collect();
        let place = self.place_of(to)?;
        let there = self.images().attached_blobs(&*place, &name).await.map_err(Error::Image)?;
        if digests.iter().all(|digest| there.contains(digest)) {
            return Ok(report);
        }
        let artifact = Artifact { repository: name.repository(), subject, kind, blobs };
        let sink = self.sink_of(to)?;
        report.artifact = Some(artifact.attach(&*sink).await.map_err(Error::Image)?);
        Ok(report)
    }
}

impl OpenImage {
    /// The digest of the manifest of the platform.
    pub fn manifest(&self) -> Digest {
        self.variant.manifest().digest()
    }

    /// The platform, as in `linux/arm64/v8`.
    pub fn platform(&self) -> &str {
        &self.platform
    }
}
