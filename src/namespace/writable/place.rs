//! What can be written under a path, by its form alone.

use crate::{
    backend::images_dir::repository_in,
    image::{Digest, Reference, Repository, is_tag},
    namespace::names::{self, BLOBS},
};

/// The directory of the state of another images_dir, as a copy of that brings it.
const FOREIGN_STATE: &str = "blobs/.imgfs/";

/// What in it cannot be found out again.
pub(super) const FOREIGN_RECORDS: &str = "blobs/.imgfs/records";

/// What that is called on its way.
const RECORDS_ON_THEIR_WAY: &str = "blobs/.imgfs/.records.";

/// What a file is written as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A blob.
    Blob(Digest),
    /// A manifest.
    Manifest(ManifestPlace),
    /// A name that begins with a dot, or something in a directory of such a name: never published.
    Dot,
    /// Something of the state of another images_dir, of which nobody needs the content.
    Foreign,
    /// The records of another images_dir, also on their way.
    Records,
}

/// Where a manifest is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ManifestPlace {
    /// The directory, below the root.
    pub dir: Box<str>,
    /// The repository that it belongs to.
    pub repository: Repository,
    /// What it is named by.
    pub name: Name,
}

/// The name of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// A tag, or in some layouts the map of tags.
    Tag(String),
    /// The digest.
    Digest(Digest),
}

impl ManifestPlace {
    /// The name of the image.
    pub(super) fn reference(&self) -> Reference {
        match &self.name {
            Name::Tag(tag) => self.repository.tagged(tag),
            Name::Digest(digest) => self.repository.pinned(*digest),
        }
    }

    pub(super) fn is_tag(&self) -> bool {
        matches!(self.name, Name::Tag(_))
    }
}

impl Place {
    /// The tag that is the file `path`, if it is one.
    pub(super) fn of_tag(path: &str) -> Option<ManifestPlace> {
        match Self::of(path)? {
            Self::Manifest(place) if place.is_tag() => Some(place),
            _ => None,
        }
    }

    /// What can be written as the file `path`; `None` if nothing can.
    pub(super) fn of(path: &str) -> Option<Self> {
        if is_below_dot(path) {
            return Some(match path {
                FOREIGN_RECORDS => Self::Records,
                _ if path.starts_with(RECORDS_ON_THEIR_WAY) => Self::Records,
                _ if path.starts_with(FOREIGN_STATE) => Self::Foreign,
                _ => Self::Dot,
            });
        }
        let (dir, name) = path.rsplit_once('/')?;
        if dir == BLOBS {
            return name.parse().ok().map(Self::Blob);
        }
        let repository = repository_in(dir)?;
        let name = match name.parse() {
            Ok(digest) => Name::Digest(digest),
            Err(_) if is_tag(name) => Name::Tag(name.to_owned()),
            Err(_) => return None,
        };
        Some(Self::Manifest(ManifestPlace { dir: dir.into(), repository, name }))
    }
}

/// Whether a directory of this path can be made.
pub(super) fn can_be_directory(path: &str) -> bool {
    is_below_dot(path) || names::is_directory_of_images(path) && !names::is_own(path)
}

/// Whether `path` is, or is below, a name that begins with a dot in `blobs` or a directory of manifests.
pub(super) fn is_below_dot(path: &str) -> bool {
    let mut at = 0;
    while let Some(slash) = path[at..].find("/.") {
        let above = &path[..at + slash];
        if above == BLOBS || repository_in(above).is_some() {
            return true;
        }
        at += slash + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_written_where() {
        let digest = Digest::sha256(b"x");
        let manifest = |dir: &str, name: Name| {
            let repository = repository_in(dir).unwrap();
            Some(Place::Manifest(ManifestPlace { dir: dir.into(), repository, name }))
        };
        let tag = |name: &str| Name::Tag(name.to_owned());
        for (path, expected) in [
            (format!("blobs/{digest}"), Some(Place::Blob(digest))),
            ("quay.io/a/manifests/v1".into(), manifest("quay.io/a/manifests", tag("v1"))),
            (
                format!("quay.io/a/manifests/{digest}"),
                manifest("quay.io/a/manifests", Name::Digest(digest)),
            ),
            ("calico/cni/manifests/v3".into(), manifest("calico/cni/manifests", tag("v3"))),
            ("blobs/.sha256:abc.XyZ".into(), Some(Place::Dot)),
            ("blobs/.partial/sha256:abc".into(), Some(Place::Dot)),
            ("quay.io/a/manifests/.v1.swp".into(), Some(Place::Dot)),
            ("blobs/.imgfs/layout".into(), Some(Place::Foreign)),
            ("blobs/.imgfs/partial/x".into(), Some(Place::Foreign)),
            ("blobs/.imgfs/records".into(), Some(Place::Records)),
            ("blobs/.imgfs/.records.XyZ".into(), Some(Place::Records)),
            ("blobs/x".into(), None),
            ("blobs/sha256:abc".into(), None),
            ("README".into(), None),
            (".swp".into(), None),
            ("quay.io/.swp".into(), None),
            ("quay.io/a/v1".into(), None),
            ("quay.io/a/manifests/-x".into(), None),
            ("quay.io/A/manifests/v1".into(), None),
            (".imgfs/x".into(), None),
        ] {
            assert_eq!(Place::of(&path), expected, "{path}");
        }
        for path in ["quay.io", "quay.io/a/manifests", "calico", "blobs/.imgfs", "blobs/.imgfs/x"] {
            assert!(can_be_directory(path), "{path}");
        }
        for path in ["README", ".git", "blobs/x", ".imgfs", ".imgfs/x", "quay.io/.git"] {
            assert!(!can_be_directory(path), "{path}");
        }
    }
}
