//! Places that hold images besides directories of images and registries, and how they are written.
//!
//! ```text
//! oci:DIR[:NAME]               an OCI image layout
//! oci-archive:FILE[:NAME]      a tar archive of one; `-` is standard input or output
//! docker-archive:FILE[:NAME]   what `docker save` writes; `-` likewise
//! dir:DIR                      a directory of skopeo's `dir:` transport, which holds one image
//! docker-daemon:[NAME]         the images of a Docker daemon
//! s3://BUCKET[/PREFIX]         an object store; gs:// and az:// likewise
//! ```

use std::{fmt, path::PathBuf};

pub use crate::backend::{archive::PackFormat as ArchiveFormat, object_store::Provider as Store};

use super::TreeSpecError;

/// A place that is neither a directory of images nor a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Medium {
    /// An OCI image layout.
    OciLayout {
        /// Its directory.
        dir: PathBuf,
        /// The one image of it that is meant, as its annotations name it.
        name: Option<String>,
    },
    /// A tar archive, in one of two formats.
    Archive {
        /// How it is written. What is read tells by itself.
        format: ArchiveFormat,
        /// Its file; `-` is standard input or standard output.
        file: PathBuf,
        /// The one image of it that is meant, as it is named there.
        name: Option<String>,
    },
    /// A directory of skopeo's `dir:` transport.
    SkopeoDir(PathBuf),
    /// A Docker daemon.
    DockerDaemon {
        /// The one image of it that is meant.
        name: Option<String>,
    },
    /// A part of a bucket of an object store.
    ObjectStore {
        /// Whose protocol it speaks.
        store: Store,
        /// The bucket, or Azure's container.
        bucket: String,
        /// What all keys begin with, without `/` at its ends; may be empty.
        prefix: String,
    },
}

/// What places can be, as errors list it.
pub(super) const KNOWN: &str = "oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], dir:DIR, \
    docker-daemon:[NAME], s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX], az://CONTAINER[/PREFIX], \
    registry://HOST[:PORT][/PATH] (or oci://), local://PATH, and the path of a directory or an archive";

impl Medium {
    /// Whether it is written anew as a whole, from its beginning to its end.
    pub fn is_packed(&self) -> bool {
        matches!(self, Self::Archive { .. } | Self::SkopeoDir(_) | Self::DockerDaemon { .. })
    }

    /// The place `scheme:rest`; `None` if the scheme is none of these.
    pub(super) fn parse(scheme: &str, rest: &str) -> Option<Result<Self, TreeSpecError>> {
        let with_path = |usage: &str, make: &dyn Fn(PathBuf, Option<String>) -> Self| {
            let (path, name) = match rest.split_once(':') {
                Some((path, name)) => (path, Some(name)),
                None => (rest, None),
            };
            match path.is_empty() || name.is_some_and(str::is_empty) {
                true => {
                    Err(TreeSpecError::Incomplete(format!("{scheme}:{rest}"), usage.to_owned()))
                }
                false => Ok(make(path.into(), name.map(str::to_owned))),
            }
        };
        let archive = |format| {
            let usage = format!("{scheme}:FILE[:NAME]");
            with_path(&usage, &|file, name| Self::Archive { format, file, name })
        };
        Some(match scheme {
            "oci" => with_path("oci:DIR[:NAME]", &|dir, name| Self::OciLayout { dir, name }),
            "oci-archive" => archive(ArchiveFormat::Oci),
            "docker-archive" => archive(ArchiveFormat::Docker),
            "dir" if rest.is_empty() => {
                Err(TreeSpecError::Incomplete("dir:".to_owned(), "dir:DIR".to_owned()))
            }
            // It has no names, so all of it is the path, as for skopeo.
            "dir" => Ok(Self::SkopeoDir(rest.into())),
            "docker-daemon" => {
                let name = Some(rest.to_owned()).filter(|name| !name.is_empty());
                Ok(Self::DockerDaemon { name })
            }
            _ => return None,
        })
    }

    /// The place `scheme://rest`; `None` if the scheme is not that of an object store.
    pub(super) fn parse_url(scheme: &str, rest: &str) -> Option<Result<Self, TreeSpecError>> {
        let store = [Store::S3, Store::Gcs, Store::Azure];
        let store = store.into_iter().find(|store| store.scheme() == scheme)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let is_bucket = !bucket.is_empty()
            && bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let is_prefix = prefix.is_empty()
            || prefix.split('/').all(|part| {
                !matches!(part, "" | "." | "..")
                    && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._=+@,:".contains(&b))
            });
        let text = format!("{scheme}://{rest}");
        Some(match (is_bucket, is_prefix) {
            (true, true) => Ok(Self::ObjectStore {
                store,
                bucket: bucket.to_owned(),
                prefix: prefix.to_owned(),
            }),
            // A password may stand before an `@`.
            (false, _) if bucket.contains('@') => Err(TreeSpecError::Credentials),
            _ => Err(TreeSpecError::Incomplete(text, format!("{scheme}://BUCKET[/PREFIX]"))),
        })
    }

    /// The one image that it names, as the medium calls it.
    pub fn image(&self) -> Option<&str> {
        match self {
            Self::OciLayout { name, .. }
            | Self::Archive { name, .. }
            | Self::DockerDaemon { name } => name.as_deref(),
            Self::SkopeoDir(_) | Self::ObjectStore { .. } => None,
        }
    }

    /// Whether nothing can be in it but one image, so that it need not be said which.
    pub fn holds_one_image(&self) -> bool {
        self.image().is_some() || matches!(self, Self::SkopeoDir(_))
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OciLayout { dir, .. } => write!(f, "oci:{}", dir.display())?,
            Self::Archive { format: ArchiveFormat::Oci, file, .. } => {
                write!(f, "oci-archive:{}", file.display())?;
            }
            Self::Archive { format: ArchiveFormat::Docker, file, .. } => {
                write!(f, "docker-archive:{}", file.display())?;
            }
            Self::SkopeoDir(dir) => write!(f, "dir:{}", dir.display())?,
            Self::DockerDaemon { name } => {
                return write!(f, "docker-daemon:{}", name.as_deref().unwrap_or_default());
            }
            Self::ObjectStore { store, bucket, prefix } => {
                write!(f, "{}://{bucket}", store.scheme())?;
                if !prefix.is_empty() {
                    write!(f, "/{prefix}")?;
                }
            }
        }
        match self.image() {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}
