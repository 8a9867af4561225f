//! What a failure is about, for logs.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use super::{
    Question, View, below,
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
    fn of_path(path: &str) -> Self {
        let of_image = |image: Reference| Self { digest: image.digest(), image: Some(image) };
        match form(path) {
            Form::Blob(digest) => Self { image: None, digest: Some(digest) },
            Form::Manifest(image) => of_image(image),
            Form::Inside => match inside(path) {
                InsideForm::Tag(image) | InsideForm::Image(image, ..) => of_image(image),
                InsideForm::Way(_) | InsideForm::Nothing => Self::default(),
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

impl View {
    /// What the inode `ino` belongs to.
    pub fn subject(&self, ino: u64) -> Subject {
        let path = self.image_path(ino).or_else(|| self.path_of(ino).ok().map(String::from));
        path.map(|path| Subject::of_path(&path)).unwrap_or_default()
    }

    /// What `name` in the directory `parent` belongs to.
    pub fn subject_of_name(&self, parent: u64, name: &OsStr) -> Subject {
        let name = String::from_utf8_lossy(name.as_bytes());
        match self.image_path(parent) {
            Some(path) => Subject::of_path(&path),
            None => match self.path_of(parent) {
                Ok(path) => Subject::of_path(&below(&path, &name)),
                Err(_) => Subject::default(),
            },
        }
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
