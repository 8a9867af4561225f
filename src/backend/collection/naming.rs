//! What images are called that come from a medium which need not name them in full.

use std::str::FromStr;

use crate::image::{Digest, Reference, ReferenceError, Repository, is_tag};

/// The annotation of an index's entry that has the full name of the image, as containerd and BuildKit write it.
pub(in crate::backend) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The annotation of an index's entry that has the full name of what is attached to an image, such as a signature: by
/// the other ones containerd takes it for an image, and cannot unpack it.
pub(in crate::backend) const ATTACHMENT_NAME: &str = "io.imgfs.attachment.name";

/// The annotation of an index's entry that has a name or a tag (OCI image specification, `annotations.md`).
pub(in crate::backend) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where images are that their medium does not name in full.
///
/// ```
/// use imgfs::backend::NameBelow;
///
/// let below: NameBelow = "quay.io/team/app".parse()?;
/// assert_eq!((below.repository().to_string(), below.tag()), ("quay.io/team/app".into(), None));
/// let below: NameBelow = "quay.io/team/app:v1".parse()?;
/// assert_eq!(below.tag(), Some("v1"));
/// assert!("quay.io/team/app@sha256:0".parse::<NameBelow>().is_err());
/// # Ok::<(), imgfs::backend::NameBelowError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameBelow {
    repository: Repository,
    tag: Option<String>,
}

/// Why a text does not say where images are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameBelowError {
    /// It is no name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// It has a digest.
    #[error("`{0}`: expected REPOSITORY or REPOSITORY:TAG, without a digest")]
    Digest(String),
}

impl NameBelow {
    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The tag, if one was given: for a single image, which then has no other.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

impl FromStr for NameBelow {
    type Err = NameBelowError;

    fn from_str(text: &str) -> Result<Self, NameBelowError> {
        let reference: Reference = text.parse()?;
        if reference.digest().is_some() {
            return Err(NameBelowError::Digest(text.trim().chars().take(300).collect()));
        }
        let last = text.trim().rsplit('/').next().unwrap_or_default();
        let tag = reference.tag().filter(|_| last.contains(':')).map(str::to_owned);
        Ok(Self { repository: reference.repository().clone(), tag })
    }
}

/// What a medium calls an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::backend) struct Labels {
    /// A name that is meant to be a full one.
    pub(in crate::backend) full: Option<String>,
    /// A name, a tag, or anything else.
    pub(in crate::backend) short: Option<String>,
}

impl Labels {
    /// What to call it before people: what tells most.
    pub(in crate::backend) fn shown(&self) -> Option<String> {
        self.full.as_ref().or(self.short.as_ref()).cloned()
    }

    /// Whether `text` means this image: as it is written in the medium, or another spelling of its name.
    pub(in crate::backend) fn is(&self, text: &str) -> bool {
        let labels = [&self.full, &self.short].into_iter().flatten();
        labels.clone().any(|label| label == text)
            || text.parse::<Reference>().is_ok_and(|wanted| {
                labels.filter_map(|label| full_name(label)).any(|name| name == wanted)
            })
    }

    /// `name`, which several images have, with the short name as its tag, if that can be one.
    pub(in crate::backend) fn with_tag(&self, name: Reference) -> Reference {
        match self.short.as_deref().filter(|short| is_tag(short)) {
            Some(tag) => name.repository().tagged(tag),
            None => name,
        }
    }

    /// Its name: the full one, then the other one if it is full, then the other one as a tag in `below`, and
    /// if there is no such thing its digest there.
    pub(in crate::backend) fn name(
        &self,
        below: Option<&NameBelow>,
        digest: Digest,
    ) -> Option<Reference> {
        let full = self.full.as_deref().and_then(|text| text.parse().ok());
        let named = full.or_else(|| self.short.as_deref().and_then(full_name));
        if named.is_some() {
            return named;
        }
        let below = below?;
        let tag = below.tag().or(self.short.as_deref().filter(|text| is_tag(text)));
        Some(match tag {
            Some(tag) => below.repository().tagged(tag),
            None => below.repository().pinned(digest),
        })
    }
}

/// The name that a text is; `None` if it can be a tag, which says nothing of the repository.
fn full_name(text: &str) -> Option<Reference> {
    if is_tag(text) { None } else { text.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(full: Option<&str>, short: Option<&str>) -> Labels {
        Labels { full: full.map(str::to_owned), short: short.map(str::to_owned) }
    }

    #[test]
    fn the_fullest_name_counts() {
        let digest = Digest::sha256(b"x");
        let by_digest = format!("quay.io/a/b@{digest}");
        for (full, short, below, expected) in [
            (Some("quay.io/x/y:1"), Some("2"), None, Some("quay.io/x/y:1")),
            (Some("nginx:1"), None, None, Some("docker.io/library/nginx:1")),
            (Some("not a name"), Some("quay.io/x/y:2"), None, Some("quay.io/x/y:2")),
            (None, Some("quay.io/x/y"), None, Some("quay.io/x/y:latest")),
            (None, Some("nginx:1.25"), None, Some("docker.io/library/nginx:1.25")),
            (None, Some("v1"), None, None),
            (None, Some("v1"), Some("quay.io/a/b"), Some("quay.io/a/b:v1")),
            (None, Some("v1"), Some("quay.io/a/b:v2"), Some("quay.io/a/b:v2")),
            (None, Some("no tag!"), Some("quay.io/a/b"), Some(by_digest.as_str())),
            (None, None, None, None),
            (None, None, Some("quay.io/a/b"), Some(by_digest.as_str())),
            (Some("quay.io/x/y:1"), None, Some("quay.io/a/b"), Some("quay.io/x/y:1")),
        ] {
            let below = below.map(|text| text.parse::<NameBelow>().unwrap());
            let name = labels(full, short).name(below.as_ref(), digest);
            assert_eq!(
                name.map(|name| name.to_string()).as_deref(),
                expected,
                "{full:?} {short:?}"
            );
        }
    }

    #[test]
    fn an_image_is_meant_by_any_spelling_of_its_name() {
        let image = labels(Some("docker.io/library/nginx:1"), Some("1"));
        for text in ["docker.io/library/nginx:1", "nginx:1", "1"] {
            assert!(image.is(text), "{text}");
        }
        for text in ["nginx", "2", "quay.io/library/nginx:1"] {
            assert!(!image.is(text), "{text}");
        }
    }
}
