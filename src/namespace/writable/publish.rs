//! Publishing what has been written: blobs as soon as they are whole, manifests once all that they name is here.

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Writable,
    pending::{Pending, Stage},
    place::{FOREIGN_RECORDS, ManifestPlace, Name, Place},
    staged::Staged,
    store::StoredFile,
};
use crate::{
    backend::{
        self, Backend, Kind, ManifestName, Names, Sink,
        images_dir::{ImagesDir, WrittenTags, is_portable_name_of, published_time},
    },
    image::{Algorithm, Digest, MAX_MANIFEST_BYTES, Manifest, Reference},
    namespace::{Handle, Keeping, Refusal, Upstream, ViewError},
    transfer::{self, Options, Route, Status},
    util::locked,
};

type Result<T> = std::result::Result<T, ViewError>;

/// What lacks nothing and could not be published is tried again after so long.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Children of children below this depth are not looked for in other repositories.
const MAX_DEPTH: usize = 8;

/// Who is told that something could not be published.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Whoever has written what completed it.
    Writer,
    /// Nobody: it is tried again, if it may go well then.
    Nobody,
}

/// What is written as a manifest.
#[derive(Debug)]
pub(super) enum Document {
    /// A manifest or an index.
    Manifest(Box<Manifest>),
    /// A map of tags, as KubeKey writes it.
    Map(Bytes, WrittenTags),
}

/// A whole manifest that waits for what it names.
pub(super) struct Waiting {
    pub document: Document,
    /// What it lacks, as far as that has been found out.
    pub missing: Mutex<Vec<Missing>>,
    /// Keeps it for the time after this mount.
    kept: Mutex<Option<StoredFile>>,
    /// Why it could not be published although it lacks nothing, and when that was tried.
    failed: Mutex<Option<(Instant, String)>>,
    /// How often the file had been changed when it was read.
    changes: u64,
}

impl Waiting {
    fn new(document: Document, kept: Option<StoredFile>, changes: u64) -> Self {
        let kept = Mutex::new(kept);
        Self { document, missing: Mutex::default(), failed: Mutex::default(), kept, changes }
    }

    /// Why it is not published although it lacks nothing.
    pub(super) fn failure(&self) -> Option<String> {
        locked(&self.failed).as_ref().map(|(_, reason)| reason.clone())
    }

    /// Whether it was tried so short a time ago that it would fail once more.
    fn has_just_failed(&self) -> bool {
        locked(&self.failed).as_ref().is_some_and(|(when, _)| when.elapsed() < TRY_AGAIN)
    }
}

/// Something that a manifest names and that is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub digest: Digest,
    pub is_manifest: bool,
}

impl Document {
    /// Reads what has been written at `place`.
    fn parse(place: &ManifestPlace, bytes: &Bytes) -> std::result::Result<Self, String> {
        let algorithm = match &place.name {
            Name::Digest(digest) => digest.algorithm(),
            Name::Tag(tag) => {
                if tag == "layout"
                    && let Some(tags) = ImagesDir::parse_map(bytes)
                {
                    return Ok(Self::Map(bytes.clone(), tags));
                }
                Algorithm::Sha256
            }
        };
        let manifest = Manifest::parse_as(algorithm, bytes.clone(), None);
        let manifest = manifest.map_err(|error| error.to_string())?;
        match &place.name {
            Name::Digest(expected) if *expected != manifest.digest() => {
                Err(format!("its content is {}, and not {expected}", manifest.digest()))
            }
            // No tag of that name leads there: it would be a list of what refers to the manifest.
            Name::Tag(tag) if is_portable_name_of(tag, &manifest.digest()) => {
                Err(super::PORTABLE.to_owned())
            }
            _ => Ok(Self::Manifest(Box::new(manifest))),
        }
    }

    /// Whether it names `digest`.
    pub(super) fn names(&self, digest: &Digest) -> bool {
        match self {
            Self::Manifest(manifest) => {
                let mut children = manifest.children().iter();
                manifest.blobs().any(|blob| blob.digest == *digest)
                    || children.any(|child| child.digest == *digest)
            }
            Self::Map(_, tags) => tags.values().any(|named| named == digest),
        }
    }

    pub(super) fn digest(&self) -> Option<Digest> {
        match self {
            Self::Manifest(manifest) => Some(manifest.digest()),
            Self::Map(..) => None,
        }
    }
}

/// What has failed of the disk, or else as it is.
pub(super) fn failed(error: &backend::Error) -> ViewError {
    if let Kind::Io(cause) = error.kind()
        && let Some(code) = cause.raw_os_error()
    {
        let (doing, error) = (error.operation(), io::Error::from_raw_os_error(code));
        return ViewError::Disk { doing, error };
    }
    ViewError::Tree(error.clone())
}

/// Whether an error says that a file is not there.
pub(super) fn is_absent(error: &backend::Error) -> bool {
    matches!(error.kind(), Kind::Io(e) if e.kind() == io::ErrorKind::NotFound)
}

/// An error of the file that is being written at `path`.
pub(super) fn disk(path: &str, doing: &str, error: io::Error) -> ViewError {
    ViewError::Disk { doing: format!("{doing} {path}"), error }
}

/// Does what may wait for the disk on a thread on which nobody else waits.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(died) => Err(disk("", "working", io::Error::other(died))),
    }
}

impl Writable {
    /// Judges what has been written, which nobody writes to now, and publishes it if it is whole and right.
    pub(super) async fn complete(&self, file: &Arc<Pending>) -> Result<()> {
        self.judge(file).await?;
        if let Some(path) = &file.state().path {
            self.refused.forget(path);
        }
        Ok(())
    }

    async fn judge(&self, file: &Arc<Pending>) -> Result<()> {
        let (place, path, changes) = {
            let mut state = file.state();
            state.is_dirty = false;
            (state.place.clone(), state.path.clone().unwrap_or_default(), state.changes)
        };
        match place {
            Place::Dot | Place::Foreign => Ok(()),
            Place::Records if *path != *FOREIGN_RECORDS => Ok(()),
            Place::Records => {
                let (file, dir) = (file.clone(), self.dir().clone());
                blocking(move || {
                    let records = file.take_records().map_err(|e| disk(&path, "reading", e))?;
                    let records = records.unwrap_or_default();
                    dir.take_records(&records).map_err(|e| failed(&e))
                })
                .await
            }
            Place::Blob(digest) => {
                self.publish_blob(file, &path, digest).await?;
                self.arrived(vec![digest], Told::Writer).await
            }
            Place::Manifest(place) => {
                let file_to_read = file.clone();
                let read = path.clone();
                let bytes = blocking(move || {
                    let bytes = file_to_read.read_all(MAX_MANIFEST_BYTES as u64);
                    bytes.map_err(|e| disk(&read, "reading", e))
                });
                let document = Document::parse(&place, &bytes.await?).map_err(|reason| {
                    ViewError::Refused(Refusal::Content, format!("{path}: {reason}"))
                })?;
                let waiting = Waiting::new(document, None, changes);
                file.state().stage = Stage::Waiting(Arc::new(waiting));
                self.publish_manifest(file, true).await
            }
        }
    }

    async fn publish_blob(&self, file: &Arc<Pending>, path: &str, digest: Digest) -> Result<()> {
        let _publishing = file.publishing.lock().await;
        if file.state().place != Place::Blob(digest) {
            // It has been removed or renamed.
            return Ok(());
        }
        let _staying = self.pushed().stay().await;
        let (to_publish, path, dir) = (file.clone(), path.to_owned(), self.dir().clone());
        let time = blocking(move || {
            let _unchanging = to_publish.unchanging();
            let found = to_publish.digest(digest.algorithm());
            let found = found.map_err(|e| disk(&path, "reading", e))?;
            if found != digest {
                let reason = format!("{path}: its content is {found}, and not {digest}");
                return Err(ViewError::Refused(Refusal::Content, reason));
            }
            let (content, stored) =
                to_publish.stored().map_err(|e| disk(&path, "publishing", e))?;
            let time = to_publish.state().mtime;
            dir.publish_written(&stored, &content, digest, time).map_err(|e| failed(&e))?;
            let content = content.try_clone().map_err(|e| disk(&path, "publishing", e))?;
            let later = to_publish.published(Handle::File(content), time, published_time(None));
            Ok((path, later))
        });
        let (path, later) = time.await?;
        self.pushed().wrote(&digest);
        if let Some(later) = later {
            self.set_time(&path, later)?;
        }
        self.retire(file);
        Ok(())
    }

    /// Publishes the manifests that have waited for what has been `brought`, and those that have waited for them. The first error
    /// is that of the call that has brought it; those manifests are not kept then.
    async fn arrived(&self, mut brought: Vec<Digest>, told: Told) -> Result<()> {
        let mut ended = Ok(());
        while let Some(digest) = brought.pop() {
            for file in self.table().all() {
                let waiting = match &file.state().stage {
                    Stage::Waiting(waiting) => waiting.clone(),
                    _ => continue,
                };
                if !waiting.document.names(&digest) {
                    continue;
                }
                match self.publish_one(&file, false).await {
                    Ok(true) => brought.extend(waiting.document.digest()),
                    Ok(false) => {}
                    Err(error) if told == Told::Nobody => {
                        self.not_published(&file, &waiting, &error);
                    }
                    Err(error) => {
                        self.refuse(&file, &error);
                        if ended.is_ok() {
                            ended = Err(error);
                        } else {
                            self.log(&error);
                        }
                    }
                }
            }
        }
        ended
    }

    /// Publishes a manifest that waits, if it lacks nothing any more, and then what has waited for it.
    async fn publish_manifest(&self, file: &Arc<Pending>, is_new: bool) -> Result<()> {
        let waiting = match &file.state().stage {
            Stage::Waiting(waiting) => waiting.clone(),
            _ => return Ok(()),
        };
        if !self.publish_one(file, is_new).await? {
            return Ok(());
        }
        let Document::Manifest(manifest) = &waiting.document else { return Ok(()) };
        // Children may have come with it from other repositories.
        let children = manifest.children().iter().filter(|_| is_new).map(|child| child.digest);
        let told = if is_new { Told::Writer } else { Told::Nobody };
        self.arrived(children.chain([manifest.digest()]).collect(), told).await
    }

    /// Publishes a manifest that waits, if it lacks nothing any more. Whether it has been published. What is `new`
    /// is looked for elsewhere, too, and kept for later if it has to wait.
    async fn publish_one(&self, file: &Arc<Pending>, is_new: bool) -> Result<bool> {
        let _publishing = file.publishing.lock().await;
        let _staying = self.pushed().stay().await;
        let (waiting, place, path, time) = {
            let state = file.state();
            match (&state.stage, &state.place, &state.path) {
                (Stage::Waiting(waiting), Place::Manifest(place), Some(path)) => {
                    (waiting.clone(), place.clone(), path.clone(), state.mtime)
                }
                _ => return Ok(false),
            }
        };
        let mut missing = self.missing(&waiting, &place, is_new).await?;
        if is_new
            && !missing.is_empty()
            && let Document::Manifest(manifest) = &waiting.document
            && self.bring(manifest, &place).await?
        {
            missing = self.missing(&waiting, &place, false).await?;
        }
        let is_whole = missing.is_empty();
        *locked(&waiting.missing) = missing;
        if !is_whole {
            if is_new {
                self.pushed().tell_dropped(&path, &locked(&waiting.missing));
                self.keep(&waiting, &path, time)?;
            }
            return Ok(false);
        }
        let keeping = self.push(&waiting.document, &place).await?;
        let later = self.put(file, &waiting, &place, time, keeping).await?;
        if let (Keeping::Keep, Some(digest)) = (keeping, waiting.document.digest()) {
            self.pushed().wrote(&digest);
        }
        if let Some(later) = later {
            self.set_time(&path, later)?;
        }
        self.retire(file);
        if keeping == Keeping::Drop
            && let Document::Manifest(manifest) = &waiting.document
        {
            self.pushed().note(self.dir(), manifest, &place);
        }
        Ok(true)
    }

    /// Keeps a manifest for the time after this mount.
    fn keep(&self, waiting: &Waiting, path: &str, time: Option<(i64, u32)>) -> Result<()> {
        let content = match &waiting.document {
            Document::Manifest(manifest) => manifest.bytes(),
            Document::Map(text, _) => text,
        };
        let kept = self.store().keep(path, time, content);
        *locked(&waiting.kept) = Some(kept.map_err(|e| disk(path, "keeping", e))?);
        Ok(())
    }

    /// Keeps it with the time that it has now.
    pub(super) fn keep_anew(&self, file: &Pending) -> Result<()> {
        let (waiting, path, time) = {
            let state = file.state();
            match (&state.stage, &state.path) {
                (Stage::Waiting(waiting), Some(path)) => {
                    (waiting.clone(), path.clone(), state.mtime)
                }
                _ => return Ok(()),
            }
        };
        self.keep(&waiting, &path, time)
    }

    /// Takes up a manifest that an earlier mount has kept.
    pub(super) fn take_up(
        &self,
        place: &ManifestPlace,
        bytes: &Bytes,
        kept: StoredFile,
    ) -> Option<Arc<Waiting>> {
        let document = Document::parse(place, bytes).ok()?;
        Some(Arc::new(Waiting::new(document, Some(kept), 0)))
    }

    /// Publishes all that waits and lacks nothing any more. Nobody waits for that: what fails and may go well later goes
    /// on to wait.
    pub(super) async fn publish_waiting(&self) {
        for file in self.table().all() {
            let waiting = match &file.state().stage {
                Stage::Waiting(waiting) if !waiting.has_just_failed() => waiting.clone(),
                _ => continue,
            };
            if let Err(error) = self.publish_manifest(&file, false).await {
                self.not_published(&file, &waiting, &error);
            }
        }
    }

    /// A manifest that has waited could not be published, and there is nobody to be told.
    fn not_published(&self, file: &Arc<Pending>, waiting: &Waiting, error: &ViewError) {
        self.log(error);
        match error {
            ViewError::Refused(..) => self.refuse(file, error),
            _ => *locked(&waiting.failed) = Some((Instant::now(), error.to_string())),
        }
    }

    /// What a manifest lacks. In the repository of what is `new`, manifests are added that other repositories here
    /// have.
    async fn missing(
        &self,
        waiting: &Arc<Waiting>,
        place: &ManifestPlace,
        is_new: bool,
    ) -> Result<Vec<Missing>> {
        let (dir, waiting, place) = (self.dir().clone(), waiting.clone(), place.clone());
        blocking(move || match &waiting.document {
            Document::Manifest(manifest) => lacks(&dir, manifest, &place, is_new, 0),
            Document::Map(_, tags) => {
                let lacks = tags.values().filter(|d| !dir.has_manifest(&place.repository, **d));
                let lacks = lacks.map(|digest| Missing { digest: *digest, is_manifest: true });
                Ok(lacks.collect())
            }
        })
        .await
    }

    /// Copies what a manifest needs from the repository in which it was read through this mount.
    async fn bring(&self, manifest: &Manifest, place: &ManifestPlace) -> Result<bool> {
        let digest = manifest.digest();
        let Some(source) = self.catalogue().source().cloned() else { return Ok(false) };
        let Some(origin) = self.origin(&digest) else { return Ok(false) };
        let dir = self.dir().clone();
        let was_here = dir.has_manifest(&place.repository, digest);
        let to = place.repository.pinned(digest);
        let route = Route { from: origin.pinned(digest), to };
        let sink: Arc<dyn Sink> = Arc::new(dir.clone());
        let observer: Arc<dyn transfer::Observer> = Arc::new(());
        let (routes, options, at_once) = ([route], Options::default(), super::BLOBS_AT_ONCE);
        let report = transfer::copy(&source, &sink, &routes, &options, at_once, &observer).await;
        if let Some(Status::Failed(error)) = report.images.first().map(|image| &image.status) {
            return Err(failed(error));
        }
        if !was_here {
            // It was needed by this name to bring all of it, and is not by now.
            let (place, dir) = (place.clone(), dir);
            if place.is_tag() {
                blocking(move || {
                    let removed = dir.remove_manifest_in(&place.dir, &place.repository, digest);
                    removed.map_err(|e| failed(&e))
                })
                .await?;
            }
        }
        Ok(true)
    }

    /// Pushes a whole manifest, or all that a map names, to where it goes. What becomes of it here then.
    async fn push(&self, document: &Document, place: &ManifestPlace) -> Result<Keeping> {
        let Some(upstream) = self.upstream() else { return Ok(Keeping::Keep) };
        match document {
            Document::Manifest(manifest) => {
                let is_tag = place.is_tag();
                if !is_tag && !upstream.takes_digests() {
                    return Ok(Keeping::Keep);
                }
                self.push_as(upstream, &place.reference(), (**manifest).clone()).await?;
                Ok(if is_tag { upstream.keeping() } else { Keeping::Keep })
            }
            Document::Map(_, tags) => {
                for (tag, digest) in tags {
                    let manifest = self.dir().manifest(&place.repository.pinned(*digest)).await;
                    let manifest = manifest.map_err(|e| failed(&e))?;
                    self.push_as(upstream, &place.repository.tagged(tag), manifest).await?;
                }
                Ok(Keeping::Keep)
            }
        }
    }

    async fn push_as(
        &self,
        upstream: &Arc<dyn Upstream>,
        image: &Reference,
        manifest: Manifest,
    ) -> Result<()> {
        let staged = Staged::new(self.dir().clone(), image.clone(), manifest);
        let source: Arc<dyn Backend> = Arc::new(staged);
        upstream.push(source, image).await.map_err(|error| refused(&error))
    }

    /// Stores a manifest in the images_dir, unless it is not to be kept. A time that somebody has set meanwhile is
    /// returned.
    async fn put(
        &self,
        file: &Arc<Pending>,
        waiting: &Arc<Waiting>,
        place: &ManifestPlace,
        time: Option<(i64, u32)>,
        keeping: Keeping,
    ) -> Result<Option<(i64, u32)>> {
        let (dir, file, waiting, place) =
            (self.dir().clone(), file.clone(), waiting.clone(), place.clone());
        blocking(move || {
            let (bytes, usual) = match &waiting.document {
                Document::Manifest(manifest) => {
                    let (name, usual) = match &place.name {
                        Name::Tag(tag) => {
                            let time = published_time(Some(&manifest.digest()));
                            (ManifestName::Tag(tag.clone()), time)
                        }
                        Name::Digest(_) => (ManifestName::Digest, published_time(None)),
                    };
                    if keeping == Keeping::Keep {
                        let put = dir.put_in(&place.dir, &place.repository, manifest, &name, time);
                        put.map_err(|e| failed(&e))?;
                    }
                    (manifest.bytes().clone(), usual)
                }
                Document::Map(text, tags) => {
                    let put = dir.put_map_in(&place.dir, &place.repository, text, tags, time);
                    put.map_err(|e| failed(&e))?;
                    (text.clone(), published_time(Some(&Digest::sha256(text))))
                }
            };
            let _unchanging = file.unchanging();
            // Who has begun to change it since it was read goes on with what it has.
            let is_unchanged = file.state().changes == waiting.changes;
            Ok(is_unchanged.then(|| file.published(Handle::Content(bytes), time, usual)).flatten())
        })
        .await
    }
}

/// What `manifest` lacks; those of its children are added to its repository that other ones here have, if
/// `everywhere`.
fn lacks(
    dir: &ImagesDir,
    manifest: &Manifest,
    place: &ManifestPlace,
    everywhere: bool,
    depth: usize,
) -> Result<Vec<Missing>> {
    let mut missing = Vec::new();
    for blob in manifest.blobs() {
        if !dir.has_verified(blob).map_err(|e| failed(&e))? {
            missing.push(Missing { digest: blob.digest, is_manifest: false });
        }
    }
    for child in dir.wanted_children(manifest) {
        let lacking = Missing { digest: child.digest, is_manifest: true };
        if dir.has_manifest(&place.repository, child.digest)
            || dir.manifest_in(&place.dir, &child.digest).is_some()
        {
            continue;
        }
        let elsewhere =
            (everywhere && depth < MAX_DEPTH).then(|| dir.manifest_anywhere(&child.digest));
        let Some(found) = elsewhere.flatten() else {
            missing.push(lacking);
            continue;
        };
        if !lacks(dir, &found, place, everywhere, depth + 1)?.is_empty() {
            missing.push(lacking);
            continue;
        }
        let name = ManifestName::Digest;
        let put = dir.put_in(&place.dir, &place.repository, &found, &name, None);
        put.map_err(|e| failed(&e))?;
    }
    Ok(missing)
}

/// What a push that has failed is to whoever has written.
fn refused(error: &backend::Error) -> ViewError {
    match error.kind() {
        Kind::Unauthorized(reason) | Kind::Denied(reason)
            if reason.contains("project") && reason.contains("not found") =>
        {
            ViewError::Refused(Refusal::NoProject, error.to_string())
        }
        Kind::Unauthorized(_) | Kind::Denied(_) => {
            ViewError::Refused(Refusal::Denied, error.to_string())
        }
        Kind::NotFound(_) => ViewError::Refused(Refusal::NoProject, error.to_string()),
        _ => ViewError::Tree(error.clone()),
    }
}
