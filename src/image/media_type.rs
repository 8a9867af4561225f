//! Media types of manifests (OCI image specification, `media-types.md`; Docker image manifest
//! version 2, schema 2).

use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};

/// The kinds of manifest that imgfs reads. Everything else that has a digest is a blob to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// `application/vnd.oci.image.manifest.v1+json`
    OciManifest,
    /// `application/vnd.oci.image.index.v1+json`
    OciIndex,
    /// `application/vnd.docker.distribution.manifest.v2+json`
    DockerManifest,
    /// `application/vnd.docker.distribution.manifest.list.v2+json`
    DockerList,
}

/// What to send in `Accept` when asking for a manifest: all that [`MediaType`] knows.
pub const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

impl MediaType {
    /// The kind that `text` names; parameters behind a `;` do not count.
    pub fn parse(text: &str) -> Option<Self> {
        let essence = text.split(';').next().unwrap_or_default().trim();
        [Self::OciManifest, Self::OciIndex, Self::DockerManifest, Self::DockerList]
            .into_iter()
            .find(|known| essence.eq_ignore_ascii_case(known.as_str()))
    }

    /// The registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OciManifest => OCI_IMAGE_MEDIA_TYPE,
            Self::OciIndex => OCI_IMAGE_INDEX_MEDIA_TYPE,
            Self::DockerManifest => IMAGE_MANIFEST_MEDIA_TYPE,
            Self::DockerList => IMAGE_MANIFEST_LIST_MEDIA_TYPE,
        }
    }

    /// Whether it lists other manifests.
    pub fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }

    /// Whether what an index names with this type is a blob: a layer, or what BuildKit says of the layers of its cache
    /// (`type=registry` without `image-manifest`). Everything else that an index names is a manifest.
    pub(crate) fn is_of_blob(text: &str) -> bool {
        [
            "application/vnd.oci.image.layer.",
            "application/vnd.docker.image.rootfs.",
            "application/vnd.buildkit.cacheconfig.",
        ]
        .iter()
        .any(|start| text.starts_with(start))
    }

    /// Whether it is one of the retired schema 1 types.
    pub(crate) fn is_schema1(text: &str) -> bool {
        text.starts_with("application/vnd.docker.distribution.manifest.v1+")
    }
}

impl std::fmt::Display for MediaType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
