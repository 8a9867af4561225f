//! A registry as the target of a transfer.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use reqwest::{Method, StatusCode, Url, header::HeaderValue};
use serde_json::{Value, json};

use super::{
    Registry,
    abilities::Mounting,
    holders::Holders,
    manifests::{fetch_manifest, manifest_ask},
    session::{Ask, Payload, Scope, Session, content_digest, header},
    upload::{self, Mounted, Upload},
};
use crate::{
    backend::{Capabilities, Kind, ManifestName, Names, Opened, Result, Sink},
    image::{
        Descriptor, Digest, Manifest, Reference, Repository, View, is_attached_to,
        is_referrers_tag, referrers_tag,
    },
    util::locked,
};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Registries to be written to, with what this run has learned about their content.
pub struct RegistrySink {
    registry: Arc<Registry>,
    /// What names lead to, as far as it has been asked or written.
    names: Mutex<HashMap<Reference, Digest>>,
    holders: Arc<Holders>,
    /// Uploads that were begun to see whether that is allowed.
    begun: Mutex<HashMap<Repository, Url>>,
    /// Referrers that their registries do not list by themselves, by their subjects.
    unlisted: Mutex<HashMap<Reference, Vec<Value>>>,
    /// Held while a list of referrers is changed.
    listing: tokio::sync::Mutex<()>,
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

    async fn session(&self, repository: &Repository) -> Result<Arc<Session>> {
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

    async fn put_named(
        &self,
        repository: &Repository,
        content: &Bytes,
        media_type: &str,
        name: &str,
    ) -> Result<reqwest::Response> {
        let session = self.session(repository).await?;
        let doing = format!("writing manifest {name} to {repository}");
        let url = session.wire.url(repository, &format!("manifests/{name}"));
        let media_type = HeaderValue::from_str(media_type).map_err(|_| {
            session.wire.error(&doing, Kind::Unfit("its media type is no text".into()))
        })?;
        let ask = Ask {
            payload: Payload::Whole(content.clone(), media_type),
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

    /// Adds `referrers` to the tag that lists them where the registry does not (distribution
    /// specification, "Referrers Tag Schema"). Whoever else has added something is kept.
    async fn list_referrers(&self, tag: &Reference, referrers: Vec<Value>) -> Result<()> {
        let _listing = self.listing.lock().await;
        let repository = tag.repository();
        let name = tag.tag().unwrap_or_default();
        let mut all = match self.manifest(tag).await {
            // A registry may take the tag for the digest, and answer with the subject.
            Ok(manifest) if is_attached_to(name, &manifest.digest()) => Vec::new(),
            Ok(manifest) => children_of(&manifest),
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error),
        };
        if !add_missing(&mut all, referrers) {
            return Ok(());
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": all});
        let content = Bytes::from(index.to_string());
        self.put_named(repository, &content, OCI_INDEX, name).await?;
        locked(&self.names).insert(tag.clone(), Digest::sha256(&content));
        Ok(())
    }
}

/// The children of an index as they stand in it.
fn children_of(index: &Manifest) -> Vec<Value> {
    match serde_json::from_slice::<Value>(index.bytes()) {
        Ok(mut document) => match document["manifests"].take() {
            Value::Array(children) => children,
            _ => Vec::new(),
        },
        Err(_) => Vec::new(),
    }
}

/// Adds those of `more` to a list of descriptors that are not in it. Tells whether there were any.
fn add_missing(all: &mut Vec<Value>, more: Vec<Value>) -> bool {
    let digest_of = |descriptor: &Value| descriptor["digest"].as_str().map(str::to_owned);
    let before = all.len();
    let known: HashSet<String> = all.iter().filter_map(digest_of).collect();
    all.extend(more.into_iter().filter(|d| digest_of(d).is_some_and(|d| !known.contains(&d))));
    all.len() > before
}

/// What a list of referrers says of one.
fn listed(referrer: &Manifest) -> Value {
    let document: Value = serde_json::from_slice(referrer.bytes()).unwrap_or_default();
    let kind = match (&document["artifactType"], referrer.view()) {
        (Value::String(kind), _) if !kind.is_empty() => Some(kind.clone()),
        (_, View::Image { config, .. }) => Some(config.media_type.clone()),
        _ => None,
    };
    let mut descriptor = json!({
        "mediaType": referrer.media_type(),
        "digest": referrer.digest().to_string(),
        "size": referrer.bytes().len(),
    });
    if let Some(kind) = kind {
        descriptor["artifactType"] = kind.into();
    }
    if !referrer.annotations().is_empty() {
        descriptor["annotations"] = json!(referrer.annotations());
    }
    descriptor
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
        let there = upload::has(&*self.session(repository).await?, repository, blob).await?;
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
        let location = upload::start(&session, repository).await?;
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
            match upload::mount(&session, repository, blob, from).await? {
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
                upload::cancel(&session, repository, location).await;
            }
            return Ok(Opened::Present);
        }
        let begun = || locked(&self.begun).remove(repository);
        let location = match location.or_else(begun) {
            Some(location) => location,
            None => upload::start(&session, repository).await?,
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
        let response = self.put_named(repository, manifest.bytes(), media_type, &shown).await?;
        locked(&self.names).insert(reference, manifest.digest());
        if let Some(subject) = manifest.subject()
            && header(response.headers(), "oci-subject").is_none()
        {
            let tag = repository.tagged(&referrers_tag(&subject.digest));
            locked(&self.unlisted).entry(tag).or_default().push(listed(manifest));
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
        for (tag, referrers) in unlisted {
            self.list_referrers(&tag, referrers).await?;
        }
        Ok(())
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
                upload::cancel(&session, &repository, location).await;
            }
        }))
        .await;
    }
}
