//! Attaching something to an image: as a referrer of the manifest of one platform (OCI 1.1).

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;

use crate::{
    backend::{
        BoxStream, ByteStream, Content, Error, Kind, LocalFile, ManifestName, Opened, Result, Sink,
    },
    image::{Descriptor, Digest, Manifest, Repository},
};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The configuration of an artifact that has none (OCI image specification, "Guidance for an Empty Descriptor").
const EMPTY_MEDIA_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";

/// How often a blob is looked at that another process is receiving.
const BUSY_POLL: std::time::Duration = std::time::Duration::from_millis(100);
const BUSY_ATTEMPTS: usize = 600;

/// An artifact with these blobs, which refers to `subject`.
pub(super) struct Artifact<'a> {
    pub repository: &'a Repository,
    pub subject: &'a Manifest,
    pub kind: &'a str,
    pub blobs: Vec<(Descriptor, Bytes)>,
}

impl Artifact<'_> {
    /// Its manifest, which says that it was made now.
    fn manifest(&self) -> Result<Manifest> {
        let created = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let layers = self.blobs.iter().map(|(blob, _)| {
            let mut layer = json!({
                "mediaType": blob.media_type,
                "digest": blob.digest.to_string(),
                "size": blob.size,
            });
            if !blob.annotations.is_empty() {
                layer["annotations"] = json!(blob.annotations);
            }
            layer
        });
        let document = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": self.kind,
            "config": {
                "mediaType": EMPTY_MEDIA_TYPE,
                "digest": Digest::sha256(EMPTY).to_string(),
                "size": EMPTY.len(),
                "data": "e30=",
            },
            "layers": layers.collect::<Vec<_>>(),
            "subject": {
                "mediaType": self.subject.media_type(),
                "digest": self.subject.digest().to_string(),
                "size": self.subject.bytes().len(),
            },
            "annotations": {"org.opencontainers.image.created": created},
        });
        let failed = |e: crate::image::ManifestError| {
            Error::new("artifact", "making a manifest", Kind::Unfit(e.to_string()))
        };
        Manifest::parse(document.to_string().into(), Some(OCI_MANIFEST)).map_err(failed)
    }

    /// Brings it to `sink`: the blobs, then the manifest. The digest of that.
    pub(super) async fn attach(&self, sink: &dyn Sink) -> Result<Digest> {
        let done = self.bring(sink).await;
        sink.close().await;
        done
    }

    async fn bring(&self, sink: &dyn Sink) -> Result<Digest> {
        let manifest = self.manifest()?;
        sink.prepare(self.repository).await?;
        let empty = Descriptor::new(EMPTY_MEDIA_TYPE, Digest::sha256(EMPTY), EMPTY.len() as u64);
        put(sink, self.repository, &empty, Bytes::from_static(EMPTY)).await?;
        for (blob, content) in &self.blobs {
            put(sink, self.repository, blob, content.clone()).await?;
        }
        sink.put(self.repository, &manifest, &ManifestName::Digest).await?;
        sink.settle(self.repository).await?;
        Ok(manifest.digest())
    }
}

async fn put(
    sink: &dyn Sink,
    repository: &Repository,
    blob: &Descriptor,
    content: Bytes,
) -> Result<()> {
    for _ in 0..BUSY_ATTEMPTS {
        match sink.open(repository, blob, &[]).await? {
            Opened::Present | Opened::Mounted => return Ok(()),
            Opened::Busy | Opened::Awaited => tokio::time::sleep(BUSY_POLL).await,
            Opened::Receive(receiver) => {
                receiver.receive(Arc::new(AtHand(content))).await?;
                return Ok(());
            }
        }
    }
    let reason = "another process has been receiving it for a minute".to_owned();
    let doing = format!("storing blob {}", blob.digest);
    Err(Error::new(sink.side(repository), doing, Kind::Interrupted(reason)))
}

/// Content that is in memory.
struct AtHand(Bytes);

#[async_trait]
impl Content for AtHand {
    async fn read(&self, offset: u64) -> Result<BoxStream> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        Ok(Box::new(Once(Some(self.0.slice(from..)).filter(|rest| !rest.is_empty()))))
    }

    async fn file(&self) -> Result<Option<LocalFile>> {
        Ok(None)
    }

    fn side(&self) -> String {
        "this process".to_owned()
    }

    fn moved(&self, _: u64) {}

    fn retransmitted(&self, _: u64) {}
}

/// One piece.
struct Once(Option<Bytes>);

#[async_trait]
impl ByteStream for Once {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.take())
    }
}
