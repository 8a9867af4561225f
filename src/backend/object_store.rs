//! An object store as an image tree: S3, Google Cloud Storage, Azure Blob Storage, and what speaks like them.
//!
//! The keys are the paths of an images_dir ([`super::images_dir`]), below a prefix:
//!
//! ```text
//! <registry>/<repository>/manifests/<tag>             the manifest or index that the tag names
//! <registry>/<repository>/manifests/<algorithm>:<hex> the same by digest
//! <registry>/<repository>/manifests/<algorithm>-<hex> the referrers of a manifest, as a tag
//! blobs/<algorithm>:<hex>                             configurations and layers
//! blobs/.imgfs/probe                                  an object to find out what the store can do
//! blobs/.imgfs/serve/                                 notes and uploads of servers ([`serving`], [`uploads`])
//! ```
//!
//! Any number of processes may write at once, and none knows of the others. A blob's key appears only when all of
//! it has come with the right digest; a tag is written on the condition that nobody has changed it since it was
//! read, so that no list of referrers loses an entry. A store that knows no such conditions is written only if
//! somebody says that there is one writer.

mod blobs;
mod error;
mod listing;
mod names;
mod parts;
mod reader;
mod serving;
mod uploads;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::BytesMut;
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
    aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, path::Path,
    signer::Signer,
};
use tokio::sync::{OnceCell, Semaphore};

pub use reader::BlobReader;
pub use serving::{FoundManifest, ManifestObject, RepositoryObjects};
pub use uploads::{ObjectUpload, Uploads, WholeBlob};

use super::{Error, Kind, Result, registry::tls};
use crate::{
    image::{Digest, Reference, Repository},
    util::locked,
};

/// Whose store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// S3, of Amazon and many others.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl Provider {
    /// What stands before `://`.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

/// How many writers there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writers {
    /// Any number: the store has to write on conditions.
    #[default]
    Many,
    /// This process alone, as its user says.
    One,
}

/// Who uses a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A run of a command: what it has once seen to be there, it takes to be there until it ends; and it has time when
    /// the store fails.
    Run,
    /// A server, whose clients repeat what fails. It remembers nothing of what others may change meanwhile, and receives
    /// up to [`UPLOADS_AT_ONCE`] blobs from clients of which each may be slow.
    Server,
}

/// Blobs that a server receives at the same time.
pub const UPLOADS_AT_ONCE: usize = 24;

/// Buffers of [`parts::PART_BYTES`] that uploads may take together. In a server each has one besides, so that no slow
/// client keeps others from sending.
const BUFFERS: usize = 5;

/// Longest time without a single byte before a request is repeated.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request is repeated while the store fails or asks to slow down.
const RETRY_TIMEOUT: Duration = Duration::from_secs(120);

/// How often.
const MAX_RETRIES: usize = 8;

/// The same in a server, where a client waits for the answer.
const SERVER_RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const SERVER_RETRIES: usize = 3;

/// Tags that others change at the same moment are read and written again this often.
const MAX_CONFLICTS: usize = 20;

/// A part of a bucket. Clones are the same.
#[derive(Clone)]
pub struct ObjectTree {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    /// Makes URLs with which others may read.
    signer: Option<Arc<dyn Signer>>,
    prefix: Path,
    side: String,
    writers: Writers,
    /// Whether it has been found out that the store writes on conditions.
    conditions: OnceCell<()>,
    buffers: Arc<Semaphore>,
    /// Those that have been used, and will be again.
    spare: Mutex<Vec<BytesMut>>,
    /// What names have been seen to lead to, or been made to; `None` if that is not remembered.
    seen: Option<Mutex<HashMap<Path, Digest>>>,
}

impl ObjectTree {
    /// The part of `bucket` whose keys begin with `prefix`. Nothing is asked yet. Credentials, region and endpoint
    /// come from the environment, as the provider's own tools know it.
    pub fn open(
        provider: Provider,
        bucket: &str,
        prefix: &str,
        writers: Writers,
        using: Use,
    ) -> Result<Self> {
        let side = format!("{}://{bucket}", provider.scheme());
        let wrong = |e: object_store::Error| match error::kind(&e) {
            kind @ Kind::Config(_) => Error::new(&side, "opening it", kind),
            _ => Error::new(&side, "opening it", Kind::Config(error::text(&e))),
        };
        tls::choose_provider();
        let (max_retries, retry_timeout) = match using {
            Use::Run => (MAX_RETRIES, RETRY_TIMEOUT),
            Use::Server => (SERVER_RETRIES, SERVER_RETRY_TIMEOUT),
        };
        let retry = RetryConfig { max_retries, retry_timeout, ..RetryConfig::default() };
        let options = |allow_http| {
            ClientOptions::new()
                .with_connect_timeout(CONNECT_TIMEOUT)
                .with_read_timeout(READ_TIMEOUT)
                // A large blob takes as long as it takes.
                .with_timeout_disabled()
                .with_allow_http(allow_http)
        };
        let is_http = |name: &str| {
            std::env::var(name).is_ok_and(|url| url.trim_start().starts_with("http://"))
        };
        let (store, signer): (Arc<dyn ObjectStore>, Arc<dyn Signer>) = match provider {
            Provider::S3 => {
                let allow_http = is_http("AWS_ENDPOINT")
                    || is_http("AWS_ENDPOINT_URL")
                    || is_http("AWS_ENDPOINT_URL_S3");
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    // Every store that speaks S3 removes one object at a time, and not every one many.
                    .with_disable_bulk_delete(true)
                    .with_retry(retry)
                    .with_client_options(options(allow_http));
                if let Ok(url) = std::env::var("AWS_ENDPOINT_URL_S3") {
                    builder = builder.with_endpoint(url);
                }
                let store = Arc::new(builder.build().map_err(wrong)?);
                (store.clone(), store)
            }
            Provider::Gcs => {
                let builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_retry(retry)
                    .with_client_options(options(is_http("GOOGLE_BASE_URL")));
                let store = Arc::new(builder.build().map_err(wrong)?);
                (store.clone(), store)
            }
            Provider::Azure => {
                let builder = MicrosoftAzureBuilder::from_env()
                    .with_container_name(bucket)
                    .with_retry(retry)
                    .with_client_options(options(
                        is_http("AZURE_STORAGE_ENDPOINT") || is_http("AZURE_ENDPOINT"),
                    ));
                let store = Arc::new(builder.build().map_err(wrong)?);
                (store.clone(), store)
            }
        };
        Ok(Self::with(store, Some(signer), prefix, side, writers, using))
    }

    /// One that is gone with the process.
    #[cfg(test)]
    pub(super) fn in_memory(prefix: &str) -> Self {
        let store = Arc::new(object_store::memory::InMemory::new());
        Self::with(store, None, prefix, "store in memory".to_owned(), Writers::Many, Use::Run)
    }

    fn with(
        store: Arc<dyn ObjectStore>,
        signer: Option<Arc<dyn Signer>>,
        prefix: &str,
        side: String,
        writers: Writers,
        using: Use,
    ) -> Self {
        let buffers = match using {
            Use::Run => BUFFERS,
            Use::Server => BUFFERS + UPLOADS_AT_ONCE,
        };
        let inner = Inner {
            store,
            signer,
            prefix: Path::from(prefix),
            side,
            writers,
            conditions: OnceCell::new(),
            buffers: Arc::new(Semaphore::new(buffers)),
            spare: Mutex::default(),
            seen: (using == Use::Run).then(Mutex::default),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl Inner {
    fn error(&self, doing: impl std::fmt::Display, error: &object_store::Error) -> Error {
        Error::new(&self.side, doing, error::kind(error))
    }

    /// Whether `key` is known to lead to `digest`.
    fn has_seen(&self, key: &Path, digest: &Digest) -> bool {
        self.seen.as_ref().is_some_and(|seen| locked(seen).get(key) == Some(digest))
    }

    /// Remembers that `key` leads to `digest`, where anything is remembered.
    fn note_seen(&self, key: Path, digest: Digest) {
        if let Some(seen) = &self.seen {
            locked(seen).insert(key, digest);
        }
    }

    /// The key of a path of an images_dir.
    fn key(&self, path: &str) -> Path {
        let parts = path.split('/').map(object_store::path::PathPart::from);
        self.prefix.parts().chain(parts).collect()
    }

    fn blob_key(&self, digest: &Digest) -> Path {
        self.key(&format!("blobs/{digest}"))
    }

    /// Where a worker leaves word that it could not bring a blob.
    fn given_up_key(&self, digest: &Digest) -> Path {
        self.key(&format!("blobs/.imgfs/given-up/{digest}"))
    }

    fn manifest_key(&self, repository: &Repository, name: &str) -> Path {
        self.key(&format!("{repository}/manifests/{name}"))
    }

    fn name_key(&self, reference: &Reference) -> Path {
        match (reference.digest(), reference.tag()) {
            (Some(digest), _) => self.manifest_key(reference.repository(), &digest.to_string()),
            (None, tag) => self.manifest_key(reference.repository(), tag.unwrap_or("latest")),
        }
    }

    /// Makes sure that the store writes on conditions, or that nobody else writes: once a run, with one request
    /// where it has been found out before.
    async fn check_conditions(&self) -> Result<()> {
        if self.writers == Writers::One {
            return Ok(());
        }
        let checked = self.conditions.get_or_try_init(|| async {
            let key = self.key("blobs/.imgfs/probe");
            for attempt in 0..2 {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                match self.store.put_opts(&key, PutPayload::from_static(b"imgfs\n"), options).await {
                    // Now it is there, and must not be written once more.
                    Ok(_) if attempt == 0 => {}
                    Err(
                        object_store::Error::AlreadyExists { .. }
                        | object_store::Error::Precondition { .. },
                    ) => return Ok(()),
                    Ok(_)
                    | Err(
                        object_store::Error::NotImplemented { .. }
                        | object_store::Error::NotSupported { .. },
                    ) => break,
                    Err(error) => return Err(self.error("finding out what the store can do", &error)),
                }
            }
            let reason = "the store does not write on conditions (If-None-Match), so several writers could take tags \
                 from each other; with --single-writer it is written by this process, and must be by no other";
            Err(Error::new(&self.side, "finding out what the store can do", Kind::Config(reason.to_owned())))
        });
        checked.await.copied()
    }

    async fn get(&self, key: &Path, limit: u64) -> object_store::Result<(bytes::Bytes, Version)> {
        let found = self.store.get(key).await?;
        if found.meta.size > limit {
            return Err(object_store::Error::Generic {
                store: "object store",
                source: format!(
                    "the object has {} bytes, and at most {limit} are read",
                    found.meta.size
                )
                .into(),
            });
        }
        let version =
            Version { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        Ok((found.bytes().await?, version))
    }
}

/// Which version of an object has been read.
type Version = object_store::UpdateVersion;
