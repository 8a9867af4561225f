//! Manifests, configurations and other small things that are named by digests.

use bytes::{Bytes, BytesMut};

use super::{SIDE, Store, shelf::MAX_DOCUMENT};
use crate::{
    backend::{Blobs, BoxStream, Error, Kind, Result},
    catalogue::Resolved,
    image::{Descriptor, Digest, Manifest, Reference, Repository},
};

impl Store {
    /// The manifest that `name` leads to: what is local goes before what a registry says.
    pub(super) async fn manifest(&self, name: &Reference) -> Result<Manifest> {
        if let Some(digest) = name.digest()
            && let Some(bytes) = self.shelf.document(&digest)
            && let Ok(manifest) = Manifest::parse_as(digest.algorithm(), bytes, None)
        {
            return Ok(manifest);
        }
        let Resolved { digest, manifest } = self.resolve(name).await?;
        match manifest {
            Some(manifest) => Ok(manifest),
            // It is known where the tag leads, and what is there need not be known.
            None => Box::pin(self.manifest(&name.repository().pinned(digest))).await,
        }
    }

    /// What `name` leads to.
    pub(super) async fn resolve(&self, name: &Reference) -> Result<Resolved> {
        let resolved = self.sources.catalogue.resolve(name).await?;
        if let Some(manifest) = &resolved.manifest {
            self.shelf.put_document(&resolved.digest, manifest.bytes());
        }
        Ok(resolved)
    }

    /// A small blob, checked.
    pub(super) async fn document(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> Result<Bytes> {
        let failed = |kind: Kind| Error::new(SIDE, format_args!("reading {}", blob.digest), kind);
        if let Some(bytes) = self.shelf.document(&blob.digest) {
            return Ok(bytes);
        }
        if blob.size > MAX_DOCUMENT {
            let reason = format!("it has {} bytes; at most {MAX_DOCUMENT} are read", blob.size);
            return Err(failed(Kind::Unfit(reason)));
        }
        let local = match self.sources.dir().read(repository, blob, 0..blob.size).await {
            Ok(mut stream) => collect(&mut stream, blob).await,
            Err(error) => Err(error),
        };
        let bytes = match (local, self.sources.remote()) {
            (Ok(bytes), _) => bytes,
            (Err(_), Some(remote)) if blob.size > 0 => {
                let mut stream = remote.read(repository, blob, 0..blob.size).await?;
                collect(&mut stream, blob).await?
            }
            (Err(error), None) if error.is_not_found() => return Err(failed(Kind::Offline)),
            (Err(error), _) => return Err(error),
        };
        self.shelf.put_document(&blob.digest, &bytes);
        Ok(bytes)
    }
}

async fn collect(stream: &mut BoxStream, blob: &Descriptor) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    let failed = |kind: Kind| Error::new(SIDE, format_args!("reading {}", blob.digest), kind);
    while let Some(piece) = stream.next().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > blob.size {
            break;
        }
    }
    if bytes.len() as u64 != blob.size {
        return Err(failed(Kind::Size { expected: blob.size, found: bytes.len() as u64 }));
    }
    let found = Digest::of(blob.digest.algorithm(), &bytes);
    if found != blob.digest {
        return Err(failed(Kind::Digest { expected: blob.digest, found }));
    }
    Ok(bytes.freeze())
}
