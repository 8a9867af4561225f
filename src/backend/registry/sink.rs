//! A registry as the target of a transfer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use reqwest::{
    Method, StatusCode, Url,
    header::{HeaderMap, HeaderValue, IF_MATCH},
};
use serde_json::Value;

use super::{
    Registry,
    abilities::Mounting,
    begin::{self, Mounted},
    fallback::{add_missing, children_of},
    holders::Holders,
    manifests::{fetch_manifest, manifest_ask},
    session::{Ask, Payload, Scope, Session, content_digest, header},
    upload::Upload,
};
use crate::{
    backend::{Capabilities, Kind, ManifestName, Names, Opened, Result, Sink},
    image::{
        Descriptor, Digest, Manifest, Reference, Repository, is_referrers_tag, listed_json,
        listed_referrer, referrers_tag,
    },
    util::locked,
};

/// Registries to be written to, with what this run has learned about their content.
pub struct RegistrySink {
    registry: Arc<Registry>,
    /// What names lead to, as far as it has been asked or written.
    pub(super) names: Mutex<HashMap<Reference, Digest>>,
    holders: Arc<Holders>,
    /// Uploads that were begun to see whether that is allowed.
    begun: Mutex<HashMap<Repository, Url>>,
    /// Referrers that their registries do not list by themselves, by their subjects.
    unlisted: Mutex<HashMap<Reference, Vec<Value>>>,
    /// Held from reading a list of referrers to writing it.
    pub(super) listing: tokio::sync::Mutex<()>,
}

impl RegistrySink {
    /// All registries that `registry` reaches.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            names: Mutex::default(),
            holders: Arc::default(),
            begun: Mutex::default(),
            unlisted: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
        }
    }

    pub(super) async fn session(&self, repository: &Repository) -> Result<Arc<Session>> {
        self.registry.session(repository).await
    }

    /// An upload to `location`.
    fn upload(
        &self,
        session: Arc<Session>,
        repository: &Repository,
        blob: &Descriptor,
        location: Url,
    ) -> Opened {
        let holders = self.holders.clone();
        let upload = Upload::new(session, holders, repository, blob, location);
        Opened::Receive(Box::new(upload))
    }

    /// Writes a manifest; with a `version`, only in the place of that one (its `ETag`), if the registry
    /// knows about such conditions.
    pub(super) async fn put_named(
        &self,
        repository: &Repository,
        content: &Bytes,
        media_type: &str,
        name: &str,
        version: Option<&HeaderValue>,
    ) -> Result<reqwest::Response> {
        let session = self.session(repository).await?;
        let doing = format!("writing manifest {name} to {repository}");
        let url = session.wire.url(repository, &format!("manifests/{name}"));
        let media_type = HeaderValue::from_str(media_type).map_err(|_| {
            session.wire.error(&doing, Kind::Unfit("its media type is no text".into()))
        })?;
        let condition = version.map(|version| (IF_MATCH, version.clone()));
        let ask = Ask {
            payload: Payload::Whole(content.clone(), media_type),
            headers: HeaderMap::from_iter(condition),
            ..Ask::push(Method::PUT, url, repository, &doing)
        };
        let answer = session.send(&ask).await?;
        let found = content_digest(answer.response.headers());
        let status = answer.response.status();
        if status != StatusCode::CREATED && found.is_none() {
            // The login page of a network also answers everything with success.
            let reason = format!("it answers {status}, which does not say that it has stored it");
            return Err(session.wire.error(&doing, Kind::Protocol(reason)));
        }
        let expected = found.map(|found| Digest::of(found.algorithm(), content));
        match (expected, found) {
            (Some(expected), Some(found)) if expected != found => {
                Err(session.wire.error(&doing, Kind::Digest { expected, found }).after(1))
            }
            _ => Ok(answer.response),
        }
    }
}

#[async_trait]
impl Names for RegistrySink {
    fn capabilities(&self) -> Capabilities {
        Capabilities::REGISTRY
    }

    fn side(&self, repository: &Repository) -> String {
        super::side(repository)
    }

    async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        let session = self.session(reference.repository()).await?;
        let doing = format!("looking up {reference}");
        let ask = Ask {
            scope: Scope::Push(None),
            ..manifest_ask(&session, Method::HEAD, reference, &doing)
        };
        let (mut found, mut refused) = (None, None);
        if session.heads.make_sense() {
            match session.attempt(&ask).await {
                Ok(answer) => found = content_digest(answer.response.headers()),
                // Whether that is so matters only where something would be lost: what is thought to be
                // missing is sent.
                Err(error)
                    if error.is_not_found()
                        && !error.is_elsewhere()
                        && !reference.tag().is_some_and(is_referrers_tag) =>
                {
                    return Err(error);
                }
                // What a registry says to HEAD need not be what it says to GET, which also says why.
                Err(error) => refused = Some(error),
            }
        }
        let found = match found {
            Some(found) => found,
            None => self.manifest(reference).await?.digest(),
        };
        if let Some(error) = refused {
            session.heads.learn_from(&error);
        }
        locked(&self.names).insert(reference.clone(), found);
        Ok(Some(found))
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        let session = self.session(reference.repository()).await?;
        let manifest = fetch_manifest(&session, reference, Scope::Push(None)).await?;
        locked(&self.names).insert(reference.clone(), manifest.digest());
        Ok(manifest)
    }
}

#[async_trait]
impl Sink for RegistrySink {
    async fn has(&self, repository: &Repository, blob: &Descriptor) -> Result<bool> {
        if self.holders.find(repository, blob.digest).0 {
            return Ok(true);
        }
        let there = begin::has(&*self.session(repository).await?, repository, blob).await?;
        if there {
            self.holders.note(repository, blob.digest);
        }
        Ok(there)
    }

    async fn content(&self, _: &Repository, _: &Descriptor) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn prepare(&self, repository: &Repository) -> Result<()> {
        let session = self.session(repository).await?;
        let location = begin::start(&session, repository).await?;
        locked(&self.begun).insert(repository.clone(), location);
        Ok(())
    }

    async fn open(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        origins: &[Repository],
    ) -> Result<Opened> {
        let session = self.session(repository).await?;
        let (here, elsewhere) = self.holders.find(repository, blob.digest);
        if here {
            return Ok(Opened::Present);
        }
        let same_registry = |origin: &&Repository| origin.registry() == repository.registry();
        let elsewhere = elsewhere.or_else(|| origins.iter().find(same_registry).cloned());
        let mounting = session.receiving.mounting();
        let from = match (mounting, &elsewhere) {
            (Mounting::Refused, _) | (Mounting::Unknown, None) => None,
            (Mounting::Works, None) => Some(repository),
            (_, Some(elsewhere)) => Some(elsewhere),
        };
        let mut location = None;
        if let Some(from) = from {
            match begin::mount(&session, repository, blob, from).await {
                Mounted::Yes if from == repository => {
                    self.holders.note(repository, blob.digest);
                    return Ok(Opened::Present);
                }
                Mounted::Yes => {
                    session.receiving.learn_mounting(Mounting::Works);
                    session.wire.stats.count_mount();
                    self.holders.note(repository, blob.digest);
                    return Ok(Opened::Mounted);
                }
                Mounted::No(upload) if from == repository => {
                    return Ok(self.upload(session, repository, blob, upload));
                }
                Mounted::No(upload) => location = Some(upload),
                Mounted::Refused => session.receiving.learn_mounting(Mounting::Refused),
            }
        }
        // What has not been mounted may be here all the same.
        if self.has(repository, blob).await? {
            if let Some(location) = location {
                begin::cancel(&session, repository, location).await;
            }
            return Ok(Opened::Present);
        }
        let begun = || locked(&self.begun).remove(repository);
        let location = match location.or_else(begun) {
            Some(location) => location,
            None => begin::start(&session, repository).await?,
        };
        Ok(self.upload(session, repository, blob, location))
    }

    async fn resolves_to(
        &self,
        repository: &Repository,
        name: &ManifestName,
        digest: Digest,
    ) -> bool {
        let name = match name {
            ManifestName::Tag(tag) => repository.tagged(tag),
            ManifestName::Digest | ManifestName::Pinned => repository.pinned(digest),
        };
        locked(&self.names).get(&name) == Some(&digest)
    }

    async fn put(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        name: &ManifestName,
    ) -> Result<()> {
        let reference = match name {
            ManifestName::Tag(tag) => repository.tagged(tag),
            ManifestName::Digest | ManifestName::Pinned => repository.pinned(manifest.digest()),
        };
        if let ManifestName::Tag(tag) = name
            && is_referrers_tag(tag)
        {
            let mut children = children_of(manifest);
            let waiting = locked(&self.unlisted).remove(&reference).unwrap_or_default();
            let has_more = add_missing(&mut children, waiting);
            // Others may have attached something there as well.
            if has_more || locked(&self.names).contains_key(&reference) {
                return self.list_referrers(&reference, children).await;
            }
        }
        let shown = match name {
            ManifestName::Tag(tag) => tag.clone(),
            ManifestName::Digest | ManifestName::Pinned => manifest.digest().to_string(),
        };
        let media_type = manifest.media_type();
        let response =
            self.put_named(repository, manifest.bytes(), media_type, &shown, None).await?;
        locked(&self.names).insert(reference, manifest.digest());
        if let Some(subject) = manifest.subject()
            && header(response.headers(), "oci-subject").is_none()
        {
            let tag = repository.tagged(&referrers_tag(&subject.digest));
            locked(&self.unlisted)
                .entry(tag)
                .or_default()
                .push(listed_json(&listed_referrer(manifest)));
        }
        Ok(())
    }

    async fn settle(&self, repository: &Repository) -> Result<()> {
        let unlisted: Vec<(Reference, Vec<Value>)> = {
            let mut all = locked(&self.unlisted);
            let own: Vec<Reference> =
                all.keys().filter(|tag| tag.repository() == repository).cloned().collect();
            own.into_iter().filter_map(|tag| all.remove_entry(&tag)).collect()
        };
        let mut settled = Ok(());
        for (tag, referrers) in unlisted {
            settled = settled.and(self.list_referrers(&tag, referrers).await);
        }
        settled
    }

    async fn forget_known(&self, repository: &Repository) {
        self.holders.forget(repository);
        if let Ok(session) = self.session(repository).await {
            session.receiving.set_mounting(Mounting::Refused);
        }
    }

    async fn close(&self) {
        let begun = std::mem::take(&mut *locked(&self.begun));
        join_all(begun.into_iter().map(|(repository, location)| async move {
            if let Ok(session) = self.session(&repository).await {
                begin::cancel(&session, &repository, location).await;
            }
        }))
        .await;
    }
}
