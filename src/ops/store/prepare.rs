//! An image is about to be pulled.

use tokio::time::timeout;

use super::{Known, PREPARE_DEADLINE, Prepared, Result, StoreDaemon, blocking};
use crate::{
    backend::{self, Error, Kind},
    image::{Digest, Reference, View},
    rootfs::Variant,
    store::{LayerEntry, Source, StoredRecord, now, wire::Login},
    util::locked,
};

/// Why an image could not be prepared, or that it is not to be.
enum Stop {
    /// It is pulled in the ordinary way.
    Ordinary(String),
    Failed(String),
}

impl From<backend::Error> for Stop {
    fn from(error: backend::Error) -> Self {
        match error.kind() {
            // It is not an image that can be shown.
            Kind::Unfit(reason) => Self::Ordinary(reason.clone()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<super::Error> for Stop {
    fn from(error: super::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Known {
    fn refuse_withdrawn(&self) -> std::result::Result<(), Stop> {
        match &self.source.withdrawn {
            None => Ok(()),
            Some(reason) => Err(Stop::Ordinary(format!("it has been withdrawn: {reason}"))),
        }
    }
}

impl StoreDaemon {
    /// Prepares `image` for being pulled without its layers, within ten seconds. However many ask for that, it
    /// is done once. An error, and an image that is not served, mean an ordinary pull, and are logged.
    pub(super) async fn prepare(
        &self,
        image: &str,
        login: Login,
    ) -> std::result::Result<Prepared, String> {
        self.prepare_or(image, login, "is pulled in the ordinary way").await
    }

    /// The same, with what is to be logged of an image that is not served.
    async fn prepare_or(
        &self,
        image: &str,
        login: Login,
        otherwise: &str,
    ) -> std::result::Result<Prepared, String> {
        let begun = self.begin(image, login);
        let prepared = match begun {
            Ok(name) => self.prepare_name(&name).await,
            Err(reason) => Err(reason),
        };
        let outcome = match &prepared {
            Ok(Prepared::Lazy(_)) => {
                self.forget_ordinary(image);
                "lazy"
            }
            Ok(Prepared::Ordinary(reason)) => {
                tracing::warn!("{image} {otherwise}: {reason}");
                self.note_ordinary(image, reason);
                "ordinary"
            }
            Err(reason) => {
                tracing::warn!("{image} {otherwise}: {reason}");
                self.note_ordinary(image, reason);
                "failed"
            }
        };
        let outcome = vec![("outcome", outcome.into())];
        self.inner.counts.prepared.get_or_create(&outcome).inc();
        prepared
    }

    /// Reads the name, and takes the credentials.
    fn begin(&self, image: &str, login: Login) -> std::result::Result<Reference, String> {
        let name: Reference = image.parse().map_err(|e| format!("{e}"))?;
        if let Some(credentials) = login.credentials() {
            self.inner.options.given.give(name.repository(), credentials);
        }
        Ok(name)
    }

    async fn prepare_name(&self, name: &Reference) -> std::result::Result<Prepared, String> {
        let flight = self.inner.preparing.run(name.to_string(), || {
            let (daemon, name) = (self.clone(), name.clone());
            async move {
                let done = match timeout(PREPARE_DEADLINE, daemon.record(&name)).await {
                    Ok(done) => done,
                    Err(_) => {
                        let seconds = PREPARE_DEADLINE.as_secs_f32();
                        Err(Stop::Failed(format!("it could not be prepared within {seconds} s")))
                    }
                };
                match done {
                    Ok(digest) => Ok(Prepared::Lazy(digest)),
                    Err(Stop::Ordinary(reason)) => Ok(Prepared::Ordinary(reason)),
                    Err(Stop::Failed(reason)) => Err(reason),
                }
            }
        });
        flight.await.unwrap_or_else(|died| Err(died.to_string()))
    }

    /// Records `name`, lists its layers, and begins to pass through them.
    async fn record(&self, name: &Reference) -> std::result::Result<Digest, Stop> {
        let patterns = &self.inner.options.images;
        if !patterns.is_empty() && !patterns.iter().any(|p| p.matches(name.repository())) {
            return Err(Stop::Ordinary("it is not among --store-images".to_owned()));
        }
        let root = self.resolve(name).await?;
        if let Some(digest) = self.known(&root, name).await? {
            return Ok(digest);
        }
        let variant = self.variant(name, root).await?;
        let digest = variant.manifest().digest();
        if let Some(digest) = self.known(&digest, name).await? {
            return Ok(digest);
        }
        let source = Source {
            reference: name.to_string(),
            repository: name.repository().to_string(),
            root,
            platform: self.inner.options.platform.to_string(),
            recorded: now(),
            added: Vec::new(),
            withdrawn: None,
            forgotten: false,
        };
        let record =
            StoredRecord::new(source, variant.manifest().clone(), variant.config().clone())?;
        let bytes: u64 = record.layers.iter().map(|layer| layer.compressed_size).sum();
        if bytes < self.inner.options.min_bytes {
            let least = self.inner.options.min_bytes;
            return Err(Stop::Ordinary(format!(
                "its layers have {bytes} bytes, which is less than the {least} of --store-min-size"
            )));
        }
        let daemon = self.clone();
        self.to_its_end(async move {
            daemon.keep(record).await?;
            daemon.pass(digest);
            Ok(digest)
        })
        .await
    }

    /// Does what changes the store: to its end, also when nobody waits for it any more.
    async fn to_its_end<T: Send + 'static>(
        &self,
        change: impl Future<Output = std::result::Result<T, Stop>> + Send + 'static,
    ) -> std::result::Result<T, Stop> {
        let done = tokio::spawn(change).await;
        done.map_err(|died| Stop::Failed(died.to_string()))?
    }

    /// What `name` leads to now. What a tag led to a while ago does not count: whoever pulls asks, too.
    async fn resolve(&self, name: &Reference) -> backend::Result<Digest> {
        if let Some(digest) = name.digest() {
            return Ok(digest);
        }
        if let Some(source) = self.inner.catalogue.source()
            && let Some(digest) = source.head(name).await?
        {
            return Ok(digest);
        }
        self.inner.images.resolve(name).await
    }

    /// The image that is recorded for what a name leads to, if it is served. An error if it has been withdrawn.
    async fn known(
        &self,
        root: &Digest,
        name: &Reference,
    ) -> std::result::Result<Option<Digest>, Stop> {
        let platform = self.inner.options.platform.to_string();
        let found = {
            let state = locked(&self.inner.state);
            let is_it = |(digest, known): &(&Digest, &Known)| {
                *digest == root || (known.source.root == *root && known.source.platform == platform)
            };
            let found = state.images.iter().find(is_it);
            found.map(|(digest, known)| (*digest, known.clone()))
        };
        let Some((digest, known)) = found else { return Ok(None) };
        known.refuse_withdrawn()?;
        if known.source.repository != name.repository().to_string()
            && let Some(top) = known.chains.last()
            && let Ok(Some(variant)) = self.inner.images.chain(top).await
        {
            self.inner.images.is_also_in(&variant, name.repository());
        }
        let (daemon, name) = (self.clone(), name.to_string());
        self.to_its_end(async move {
            let _changing = daemon.inner.changing.lock().await;
            let known = locked(&daemon.inner.state).images.get(&digest).cloned();
            let Some(mut known) = known else { return Ok(None) };
            known.refuse_withdrawn()?;
            let was_forgotten = std::mem::take(&mut known.source.forgotten);
            if was_forgotten {
                known.source.reference = name;
            }
            let (dir, mount) = (daemon.inner.dir.clone(), daemon.inner.options.mount.clone());
            let source = known.source.clone();
            // Others may have removed some of its layers.
            let layers: Vec<_> = known.layers.iter().map(LayerEntry::recorded_now).collect();
            blocking(move || {
                dir.add_layers(&mount, &layers)?;
                if was_forgotten { dir.write_source(&digest, &source) } else { Ok(()) }
            })
            .await?;
            if was_forgotten && let Some(kept) = locked(&daemon.inner.state).images.get_mut(&digest)
            {
                kept.source = known.source;
            }
            Ok(Some(digest))
        })
        .await
    }

    /// The image of the wanted platform that `root` is or has.
    async fn variant(
        &self,
        name: &Reference,
        root: Digest,
    ) -> std::result::Result<std::sync::Arc<Variant>, Stop> {
        let images = &self.inner.images;
        let image = images.image(name.repository(), root).await?;
        let wanted = &self.inner.options.platform;
        let unfit = || {
            Stop::Ordinary(match image.manifest().view() {
                View::Image { config, .. } if !config.is_image_config() => {
                    "it is an artifact, and not an image".to_owned()
                }
                _ => format!("it is not for {wanted}"),
            })
        };
        let platform = image.platform_for_containers_image(wanted).ok_or_else(unfit)?.to_owned();
        images.variant(&image, &platform).await?.ok_or_else(unfit)
    }

    /// Writes a record, shows its trees, and lists its layers: in this order, so that what is listed can be
    /// read.
    async fn keep(&self, record: StoredRecord) -> std::result::Result<(), Stop> {
        let _changing = self.inner.changing.lock().await;
        let digest = record.digest();
        let (dir, written) = (self.inner.dir.clone(), record.clone());
        let kept = match blocking(move || dir.write_record(&written)).await {
            Ok(()) => match self.show(&record) {
                Ok(()) => {
                    let (dir, mount) = (self.inner.dir.clone(), self.inner.options.mount.clone());
                    let layers = record.layers.clone();
                    blocking(move || dir.add_layers(&mount, &layers)).await
                }
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error),
        };
        match kept {
            Ok(()) => {
                locked(&self.inner.state).images.insert(digest, Known::new(&record));
                self.count_entries();
                Ok(())
            }
            Err(error) => {
                let (dir, others, own) = (self.inner.dir.clone(), self.served(), record.clone());
                let taken_back = blocking(move || dir.take_back_record(&own, &others)).await;
                match taken_back {
                    Ok(false) => self.inner.images.forget_record(&digest),
                    Ok(true) => {
                        locked(&self.inner.state).images.insert(digest, Known::new(&record));
                        self.count_entries();
                    }
                    Err(left) => {
                        self.inner.images.forget_record(&digest);
                        return Err(Stop::Failed(format!(
                            "{error}; and its record is still there: {left}"
                        )));
                    }
                }
                Err(error.into())
            }
        }
    }

    /// Records `image`, and lists it by its name. An error if it is not served.
    pub(super) async fn add(&self, image: &str) -> std::result::Result<Digest, String> {
        let prepared = self.prepare_or(image, Login::default(), "is not added");
        let digest = match prepared.await? {
            Prepared::Lazy(digest) => digest,
            Prepared::Ordinary(reason) => return Err(format!("{image}: {reason}")),
        };
        let name = image.parse::<Reference>().map_err(|e| e.to_string())?.to_string();
        let added = self.add_name(digest, name).await;
        added.map(|()| digest).map_err(|error| format!("{image}: {error}"))
    }

    async fn add_name(&self, digest: Digest, name: String) -> Result<()> {
        let _changing = self.inner.changing.lock().await;
        let gone = || {
            let doing = format!("adding {name}");
            Error::new("store", doing, Kind::NotFound("it has been removed meanwhile".into()))
        };
        let mut renamed: Vec<(Digest, Source)> = Vec::new();
        let source = {
            let mut state = locked(&self.inner.state);
            for (of, known) in &mut state.images {
                if known.source.added.contains(&name) {
                    known.source.added.retain(|other| *other != name);
                    renamed.push((*of, known.source.clone()));
                }
            }
            let known = state.images.get_mut(&digest).ok_or_else(gone)?;
            known.source.added.push(name.clone());
            known.source.clone()
        };
        let (dir, added) = (self.inner.dir.clone(), name.clone());
        let listed = blocking(move || {
            for (of, source) in renamed.iter().filter(|(of, _)| *of != digest) {
                if dir.record_dir(of).exists() {
                    dir.write_source(of, source)?;
                }
            }
            let Some(record) = dir.record(&digest) else { return Ok(()) };
            dir.write_source(&digest, &source)?;
            dir.add_image(&record, std::slice::from_ref(&added))
        })
        .await;
        if listed.is_err()
            && let Some(known) = locked(&self.inner.state).images.get_mut(&digest)
        {
            known.source.added.retain(|other| *other != name);
        }
        listed
    }
}
