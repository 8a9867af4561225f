//! What a failure is about, for logs.

use super::{
    Question,
    names::{Form, InsideForm, form, inside},
};
use crate::image::{Digest, Reference};

/// The image and the blob or manifest that a path of a mount belongs to, as far as the path tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The image.
    pub image: Option<Reference>,
    /// The digest of the blob or manifest.
    pub digest: Option<Digest>,
}

impl Subject {
    pub(super) fn of_path(path: &str) -> Self {
        let of_image = |image: Reference| Self { digest: image.digest(), image: Some(image) };
        match form(path) {
            Form::Blob(digest) => Self { image: None, digest: Some(digest) },
            Form::Manifest(image) => of_image(image),
            Form::Inside => match inside(path) {
                InsideForm::Tag(image) | InsideForm::Image(image, ..) => of_image(image),
                InsideForm::Way(_)
                | InsideForm::Chains
                | InsideForm::Chain(..)
                | InsideForm::Nothing => Self::default(),
            },
            Form::Directory | Form::Way | Form::Other | Form::Own => Self::default(),
        }
    }
}

impl Question {
    /// What is looked up.
    pub fn subject(&self) -> Subject {
        Subject::of_path(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_tell_the_image_and_the_digest() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (path, image, has_digest) in [
            (format!("blobs/{digest}"), None, true),
            ("quay.io/a/b/manifests/v1".to_owned(), Some("quay.io/a/b:v1".to_owned()), false),
            (
                format!("quay.io/a/b/manifests/{digest}"),
                Some(format!("quay.io/a/b@{digest}")),
                true,
            ),
            (".imgfs/quay.io/a/b:v1".to_owned(), Some("quay.io/a/b:v1".to_owned()), false),
            (
                format!(".imgfs/quay.io/a/b@{digest}/rootfs"),
                Some(format!("quay.io/a/b@{digest}")),
                true,
            ),
            ("quay.io/a".to_owned(), None, false),
            (".git".to_owned(), None, false),
        ] {
            let subject = Subject::of_path(&path);
            assert_eq!(subject.image.map(|image| image.to_string()), image, "{path}");
            let expected = has_digest.then(|| digest.clone());
            assert_eq!(subject.digest.map(|digest| digest.to_string()), expected, "{path}");
        }
    }
}
