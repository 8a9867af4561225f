//! Manifests, configurations and other small things that are named by digests.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{
    SIDE, Store,
    index_store::{IndexStore, MAX_DOCUMENT},
};
use crate::{
    backend::{Blobs, BoxStream, Error, Kind, Result},
    catalogue::Resolved,
    image::{Descriptor, Digest, Manifest, Reference, Repository},
};

impl Store {
    /// The manifest that `name` leads to: what is local goes before what a registry says.
    pub(super) async fn manifest(&self, name: &Reference) -> Result<Manifest> {
        if let Some(digest) = name.digest()
            && let Some(bytes) = self.stored(digest).await?
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
            self.keep_document(resolved.digest, manifest.bytes().clone()).await?;
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
        if let Some(bytes) = self.stored(blob.digest).await? {
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
        self.keep_document(blob.digest, bytes.clone()).await?;
        Ok(bytes)
    }

    /// What the index store has of this digest.
    async fn stored(&self, digest: Digest) -> Result<Option<Bytes>> {
        self.with_store(digest, move |store| store.document(&digest)).await
    }

    async fn keep_document(&self, digest: Digest, bytes: Bytes) -> Result<()> {
        self.with_store(digest, move |store| store.put_document(&digest, &bytes)).await
    }

    async fn with_store<T: Send + 'static>(
        &self,
        digest: Digest,
        work: impl FnOnce(&IndexStore) -> T + Send + 'static,
    ) -> Result<T> {
        let store: Arc<IndexStore> = self.index_store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        let failed = |e| Error::new(SIDE, format_args!("reading {digest}"), io::Error::other(e));
        done.map_err(failed)
    }
}

/// All of a blob, which has the right size and digest.
pub(super) async fn collect(stream: &mut BoxStream, blob: &Descriptor) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    let failed = |kind: Kind| Error::new(SIDE, format_args!("reading {}", blob.digest), kind);
    while let Some(piece) = stream.next().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > blob.size {
            break;
        }
    }
    let found = bytes.len() as u64;
    if found != blob.size {
        return Err(failed(Kind::Size { expected: blob.size, found }));
    }
    let (bytes, algorithm) = (bytes.freeze(), blob.digest.algorithm());
    let of = bytes.clone();
    let hash = tokio::task::spawn_blocking(move || Digest::of(algorithm, &of));
    let found = hash.await.map_err(|e| failed(io::Error::other(e).into()))?;
    match found == blob.digest {
        true => Ok(bytes),
        false => Err(failed(Kind::Digest { expected: blob.digest, found })),
    }
}
