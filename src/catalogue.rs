//! The catalogue: what names lead to, and which repositories have the content of that.
//!
//! Every front end asks here, so what a mount shows, what is inside its images and what else is served
//! cannot disagree about a name. The rules are the same for all:
//!
//! - What is local goes before what a registry says.
//! - What a registry has said of a tag holds for the time that a tag may be kept (`tag_ttl`). Then one
//!   `HEAD` finds out whether it still holds; the manifest is fetched only if it does not.
//! - That a name is not there holds for `absent_ttl`.
//! - Whoever asks while the same question is under way waits for its answer. The question goes on when
//!   those who asked have given up.
//!
//! A name can be looked up in two ways. [`Catalogue::resolve`] finds out which manifest it leads to, which
//! takes a request or two. [`Catalogue::look_up`] finds out what a pull would have to write for it, by the
//! same plan as a pull's ([`crate::transfer`]), and lists that. Both share what is known of a tag.
//!
//! What has been looked up counts against a [`Budget`]: what was used least recently is forgotten when
//! others need the room, and is found again when somebody asks for its name.

mod known;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

pub use known::{HeldBlobs, KnownBlob};
use known::{Known, Listed, TagState};

use crate::{
    backend::{Backend, Error, Kind, Names, Result, Sink, images_dir::ImagesDir},
    image::{Descriptor, Digest, Manifest, Reference, Repository},
    transfer::{self, Options, Route, Status},
    util::{Budget, Kept, SingleFlight, locked},
};

const SIDE: &str = "catalogue";

/// How names are looked up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which platforms of an image count, and so on, as for a pull.
    pub options: Options,
    /// After this time a tag is looked up again.
    pub tag_ttl: Duration,
    /// For this time a name that was not there is not looked up again. Zero where whoever asks remembers
    /// that already, as the kernel does.
    pub absent_ttl: Duration,
}

/// What a name leads to.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The digest of the manifest.
    pub digest: Digest,
    /// The manifest, if finding out the digest has brought it.
    pub manifest: Option<Manifest>,
}

/// A manifest that a pull would write.
#[derive(Clone, Debug)]
pub struct KnownManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// Whether it is time to find out whether the name still leads there.
    pub is_stale: bool,
}

/// What names lead to. Clones are the same.
#[derive(Clone)]
pub struct Catalogue {
    inner: Arc<Inner>,
}

struct Inner {
    dir: ImagesDir,
    /// `None` if the network is not to be used.
    source: Option<Arc<dyn Backend>>,
    settings: Settings,
    budget: Budget,
    known: Mutex<Known>,
    /// What has been looked up and may be forgotten, by its name and where that led: the kernel may still
    /// have what a tag led to before it was moved.
    listed: Kept<(Reference, Option<Digest>), Listed>,
    lookups: SingleFlight<Reference, Result<()>>,
    resolutions: SingleFlight<Reference, Result<Resolved>>,
    leads: SingleFlight<Reference, Result<Resolved>>,
}

impl Catalogue {
    /// A catalogue of what is in `dir` and of what `source` has, if that is not to be offline.
    pub fn new(
        dir: ImagesDir,
        source: Option<Arc<dyn Backend>>,
        settings: Settings,
        budget: &Budget,
    ) -> Self {
        let inner = Inner {
            dir,
            source,
            settings,
            budget: budget.clone(),
            known: Mutex::default(),
            listed: Kept::new(budget),
            lookups: SingleFlight::default(),
            resolutions: SingleFlight::default(),
            leads: SingleFlight::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What is local.
    pub fn dir(&self) -> &ImagesDir {
        &self.inner.dir
    }

    /// Where the rest comes from; `None` if the network is not to be used.
    pub fn source(&self) -> Option<&Arc<dyn Backend>> {
        self.inner.source.as_ref()
    }

    // --- what is known without asking anybody ---

    /// Changes whenever something else is listed.
    pub fn generation(&self) -> u64 {
        locked(&self.inner.known).generation()
    }

    /// The repositories of which something is listed, below the registry or path `above` (all of them if
    /// that is empty): the next component of each name, once, and whether a repository is called so.
    pub fn below(&self, above: &str) -> Vec<(String, bool)> {
        locked(&self.inner.known).below(above)
    }

    /// The tags and digests that are listed in the repository `name` (`quay.io/team/app`).
    pub fn names(&self, name: &str) -> Vec<String> {
        locked(&self.inner.known).names(name)
    }

    /// A blob that a pull would fetch.
    pub fn blob(&self, digest: &Digest) -> Option<KnownBlob> {
        locked(&self.inner.known).blob(digest).cloned()
    }

    /// The size of a blob that a pull would fetch, in bytes.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        locked(&self.inner.known).blob(digest).map(|blob| blob.descriptor.size)
    }

    /// The digests of all blobs that a pull would fetch.
    pub fn blobs(&self) -> Vec<Digest> {
        locked(&self.inner.known).blobs().map(|blob| blob.descriptor.digest).collect()
    }

    /// The size of all of them together, in bytes.
    pub fn blob_bytes(&self) -> u64 {
        locked(&self.inner.known).blobs().map(|blob| blob.descriptor.size).sum()
    }

    /// The manifest that a pull would write under `name`.
    pub fn manifest(&self, name: &Reference) -> Option<KnownManifest> {
        let (found, planned) = {
            let mut known = locked(&self.inner.known);
            (known.manifest(name), known.planned(name))
        };
        if found.is_some() {
            // A use of it, which keeps it from being forgotten.
            drop(self.inner.listed.get(&(name.clone(), planned)));
        }
        found
    }

    /// The manifest with this digest in `repository`, as a pull would write it.
    pub fn manifest_by_digest(&self, repository: &Repository, digest: &Digest) -> Option<Manifest> {
        locked(&self.inner.known).manifest_by_digest(repository, digest).cloned()
    }

    /// Where `tag` leads, as long as that holds.
    pub fn resolved(&self, tag: &Reference) -> Option<Digest> {
        match locked(&self.inner.known).tag(tag)? {
            TagState { digest: Some(digest), is_stale: false } => Some(digest),
            _ => None,
        }
    }

    /// Where `tag` led when that was found out last, though that may not hold any more.
    pub fn last_resolved(&self, tag: &Reference) -> Option<Digest> {
        locked(&self.inner.known).tag(tag)?.digest
    }

    /// Lists `image` although it has not been looked up yet.
    pub fn declare(&self, image: &Reference) {
        locked(&self.inner.known).declare(image);
    }

    /// Lists blobs that `repository` has, as long as the result exists: they can be opened without looking up
    /// an image that has them. [`Kind::Memory`] if there is no room for that.
    pub fn hold_blobs(&self, repository: &Repository, blobs: &[Descriptor]) -> Result<HeldBlobs> {
        let memory = self.inner.budget.reserve(Known::bytes_of_blobs(blobs.len()));
        let doing = format_args!("listing blobs of {repository}");
        let memory = memory.map_err(|e| Error::new(SIDE, doing, e))?;
        let weak = Arc::downgrade(&self.inner);
        Ok(locked(&self.inner.known).hold_blobs(repository, blobs, weak, memory))
    }

    // --- what has to be found out ---

    /// Finds out what a pull of `name` would have to write, and lists it. [`Kind::NotFound`] if there is
    /// no such image; [`Kind::Offline`] if it is not local and the network is not to be used.
    pub async fn look_up(&self, name: &Reference) -> Result<()> {
        let Some(source) = &self.inner.source else {
            // Nothing of it is local: that is all that is known.
            return match self.find_local(name).await? {
                true => Ok(()),
                false => Err(self.error(name, Kind::Offline)),
            };
        };
        // What is local goes before what a registry says.
        let is_here = self.inner.dir.mapped_tag(name).is_some();
        if !is_here {
            self.check_absence(name)?;
        }
        let flight = self.inner.lookups.run(name.clone(), || {
            let (catalogue, source, name) = (self.clone(), source.clone(), name.clone());
            async move {
                if is_here && catalogue.find_local(&name).await? {
                    return Ok(());
                }
                let Err(error) = catalogue.look_up_at(&source, &name).await else { return Ok(()) };
                // What is local goes before what a registry says, or cannot say.
                if catalogue.find_local(&name).await? {
                    return Ok(());
                }
                catalogue.note_absence(&name, Some(&error));
                Err(error)
            }
        });
        flight.await.unwrap_or_else(|died| Err(self.error(name, io::Error::other(died))))
    }

    async fn look_up_at(&self, source: &Arc<dyn Backend>, name: &Reference) -> Result<()> {
        let ttl = self.inner.settings.tag_ttl;
        let planned = locked(&self.inner.known).planned(name);
        if let Some(planned) = planned
            && source.head(name).await? == Some(planned)
        {
            locked(&self.inner.known).set_tag(name, Some(planned), ttl);
            return Ok(());
        }
        let sink: Arc<dyn Sink> = Arc::new(self.inner.dir.clone());
        let routes = [Route::from(name.clone())];
        let plan = transfer::plan(source, &sink, &routes, &self.inner.settings.options).await;
        let mut resolved = None;
        if let Some(planned) = plan.images.first() {
            match &planned.report.status {
                Status::Failed(error) => return Err(error.clone()),
                Status::Skipped => {
                    let reason = "nothing of it is for the platforms that were asked for";
                    return Err(self.error(name, Kind::NotFound(reason.into())));
                }
                _ => resolved = planned.report.original_digest.or(planned.report.digest),
            }
        }
        let memory = self.inner.budget.reserve(Known::bytes_of(&plan));
        let memory = memory.map_err(|e| self.error(name, e))?;
        let listed = {
            let mut known = locked(&self.inner.known);
            if name.digest().is_none() {
                known.set_tag(name, resolved, ttl);
            }
            known.add(&plan, resolved, ttl, Arc::downgrade(&self.inner), memory)
        };
        self.inner.listed.insert((name.clone(), resolved), &Arc::new(listed));
        if self.manifest(name).is_none() {
            // A pull would have nothing to write.
            self.find_local(name).await?;
        }
        Ok(())
    }

    /// Takes up an image that is in the directory under another path than the one that is shown: those of
    /// KubeKey 4.0.5 have layouts of their own. Whether there is one.
    async fn find_local(&self, name: &Reference) -> Result<bool> {
        let Ok(manifest) = self.inner.dir.manifest(name).await else { return Ok(false) };
        let memory = self.inner.budget.reserve(known::bytes_of_manifest(&manifest));
        let memory = memory.map_err(|e| self.error(name, e))?;
        let digest = Some(manifest.digest());
        let listed = {
            let mut known = locked(&self.inner.known);
            if name.digest().is_none() {
                known.set_tag(name, digest, self.inner.settings.tag_ttl);
            }
            known.add_manifest(name, &manifest, Arc::downgrade(&self.inner), memory)
        };
        self.inner.listed.insert((name.clone(), digest), &Arc::new(listed));
        Ok(true)
    }

    /// Finds out which manifest `name` leads to. [`Kind::NotFound`] if there is no such image;
    /// [`Kind::Offline`] if it is not local and the network is not to be used.
    pub async fn resolve(&self, name: &Reference) -> Result<Resolved> {
        if let Some(digest) = name.digest()
            && let Some(manifest) = self.manifest_by_digest(name.repository(), &digest)
        {
            return Ok(Resolved { digest, manifest: Some(manifest) });
        }
        let flight = self.inner.resolutions.run(name.clone(), || {
            let (catalogue, name) = (self.clone(), name.clone());
            async move {
                let resolved = catalogue.resolve_now(&name).await;
                catalogue.note_absence(&name, resolved.as_ref().err());
                resolved
            }
        });
        flight.await.unwrap_or_else(|died| Err(self.error(name, io::Error::other(died))))
    }

    async fn resolve_now(&self, name: &Reference) -> Result<Resolved> {
        let resolved = match (self.inner.dir.manifest(name).await, &self.inner.source) {
            (Ok(manifest), _) => Resolved::from(manifest),
            (Err(_), Some(source)) => match self.resolved(name) {
                // It holds for as long as it was said to, and no longer for having been asked for.
                Some(digest) => return Ok(Resolved { digest, manifest: None }),
                None => self.resolve_at(source, name).await?,
            },
            (Err(error), None) if error.is_not_found() => {
                return Err(error.with_kind(Kind::Offline));
            }
            (Err(error), None) => return Err(error),
        };
        if name.digest().is_none() {
            let ttl = self.inner.settings.tag_ttl;
            locked(&self.inner.known).set_tag(name, Some(resolved.digest), ttl);
        }
        Ok(resolved)
    }

    async fn resolve_at(&self, source: &Arc<dyn Backend>, name: &Reference) -> Result<Resolved> {
        self.check_absence(name)?;
        if name.digest().is_none()
            && let Some(last) = self.last_resolved(name)
            && source.head(name).await? == Some(last)
        {
            return Ok(Resolved { digest: last, manifest: None });
        }
        Ok(source.manifest(name).await?.into())
    }

    /// Where `tag` leads at the source, whatever is local: for those who keep an older answer themselves and want to
    /// know whether it still holds. What the source has said holds as long as it does for [`Catalogue::resolve`];
    /// then one `HEAD` is made for all who ask. The manifest is fetched only where the source tells no digests.
    pub async fn lead(&self, tag: &Reference) -> Result<Resolved> {
        if let Some(digest) = self.resolved(tag) {
            return Ok(Resolved { digest, manifest: None });
        }
        self.check_absence(tag)?;
        let Some(source) = &self.inner.source else {
            return Err(self.error(tag, Kind::Offline));
        };
        let flight = self.inner.leads.run(tag.clone(), || {
            let (catalogue, source, tag) = (self.clone(), source.clone(), tag.clone());
            async move {
                let resolved = match source.head(&tag).await {
                    Ok(Some(digest)) => Ok(Resolved { digest, manifest: None }),
                    Ok(None) => source.manifest(&tag).await.map(Resolved::from),
                    Err(error) => Err(error),
                };
                match &resolved {
                    Ok(resolved) => {
                        let ttl = catalogue.inner.settings.tag_ttl;
                        locked(&catalogue.inner.known).set_tag(&tag, Some(resolved.digest), ttl);
                    }
                    Err(error) => catalogue.note_absence(&tag, Some(error)),
                }
                resolved
            }
        });
        flight.await.unwrap_or_else(|died| Err(self.error(tag, io::Error::other(died))))
    }

    /// Fails if `name` has been found not to be there just now.
    fn check_absence(&self, name: &Reference) -> Result<()> {
        match locked(&self.inner.known).is_absent(name) {
            true => Err(self.error(name, Kind::NotFound(String::new()))),
            false => Ok(()),
        }
    }

    fn note_absence(&self, name: &Reference, error: Option<&Error>) {
        if error.is_some_and(Error::is_not_found) {
            locked(&self.inner.known).set_tag(name, None, self.inner.settings.absent_ttl);
        }
    }

    fn error(&self, name: &Reference, kind: impl Into<Kind>) -> Error {
        Error::new(SIDE, format_args!("looking up {name}"), kind)
    }
}

impl From<Manifest> for Resolved {
    fn from(manifest: Manifest) -> Self {
        Self { digest: manifest.digest(), manifest: Some(manifest) }
    }
}
