//! Pull, push and copy: from a [`Request`] to a transfer.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Error, Images, IndexedLayers, Medium, Request, Result, Source, TreeSpec,
    index_layers::{Indexing, LayerIndexing},
    medium::{Target, check_apart, ends_as_archive, open_target as open_medium},
    open::this_machine,
};
use crate::{
    backend::{
        self, Backend, Kind, Names, Packer, Shard, Sharded, Sink, Unwritten,
        images_dir::{ImagesDir, Layout, Linking, Problem, SyncMode},
        registry::{Registry, RegistryConfig, RegistrySink, Stats},
    },
    image::{Platform, PlatformFilter, Reference, Repository, is_attachment_tag},
    transfer::{self as engine, Plan, Report, Route, Status},
    util::disturbs,
};

/// How a request is carried out.
#[derive(Clone, Copy, Debug, Default)]
pub struct TransferOptions {
    /// Of a directory that is created.
    pub layout: Option<Layout>,
    /// How blobs come from one directory into another.
    pub linking: Linking,
    /// When what is written to a directory is flushed to the disk.
    pub sync: SyncMode,
    /// Create the projects that are missing in a Harbor.
    pub create_projects: bool,
    /// The part of the blobs that is this process's, if several fill the same target.
    pub shard: Option<Shard>,
    /// Nobody else writes to the object store that is the target.
    pub single_writer: bool,
    /// Find out what would be done, and do nothing.
    pub dry_run: bool,
    /// Make the indexes of layers that come into a directory, and of those that are there already.
    pub index_layers: bool,
}

/// A project of a Harbor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// The registry's host, with its port if there is one.
    pub registry: String,
    /// Its name.
    pub name: String,
}

/// Is told what happens. Called from several threads; must not block.
pub trait Observer: engine::Observer {
    /// All images are named and copying begins, into `target` if that is a directory.
    fn started(&self, target: Option<&ImagesDir>) {
        let _ = target;
    }

    /// Everything has been written, and the disk is waited for, if that is wanted.
    fn finishing(&self) {}

    /// A project has been created.
    fn project_created(&self, project: &Project) {
        let _ = project;
    }

    /// A project could not be created. The images in it will most likely fail.
    fn project_failed(&self, error: &backend::Error) {
        let _ = error;
    }
}

impl Observer for () {}

/// What went over the network in a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of bodies that were sent.
    pub sent_bytes: u64,
    /// Bytes of bodies that were received.
    pub received_bytes: u64,
    /// Requests, repeated ones included.
    pub requests: u64,
    /// Repeated requests.
    pub retries: u64,
}

/// Why there was nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NothingToDo {
    /// No image matches the pattern.
    NoMatch,
    /// No image was named.
    NoneNamed,
    /// The source has no image.
    EmptySource,
}

/// How a transfer went.
#[derive(Debug, Default)]
pub struct TransferReport {
    /// What became of each image.
    pub report: Report,
    /// What would be done, of a dry run.
    pub plan: Option<Plan>,
    /// Why there was nothing to do, if there was nothing.
    pub nothing: Option<NothingToDo>,
    /// What went over the network.
    pub traffic: Traffic,
    /// How long it took, from when all images had been named.
    pub elapsed: Duration,
    /// What of the source may be images that were asked for, and was left out: symbolic links, which are not
    /// followed, and tags that cannot be read.
    pub left_out: Vec<Problem>,
    /// Why the disk has not taken all that was written, if it was waited for.
    pub unflushed: Option<backend::Error>,
    /// What could not be noted for later runs, which will ask once more.
    pub warnings: Vec<backend::Error>,
    /// What the source lists and cannot be copied, since it has no name that a reference could have.
    pub unnameable: Vec<backend::Error>,
    /// What became of the indexes of layers, if they were to be made.
    pub indexed: Option<IndexedLayers>,
    /// What the user should know of the source as a whole.
    pub notices: Vec<String>,
}

/// How the whole of a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything that was wanted is at the target, or would be.
    Done,
    /// Some images could not be copied, or not with all that belongs to them.
    SomeFailed,
    /// Nothing was wanted.
    Nothing,
}

impl TransferReport {
    /// How the whole ended.
    pub fn ending(&self) -> Ending {
        let mut statuses = self.report.images.iter().map(|image| &image.status);
        let is_failed = |status: &Status| matches!(status, Status::Failed(_));
        let is_incomplete = self.report.images.iter().any(|image| !image.losses.is_empty())
            || !self.left_out.is_empty()
            || !self.unnameable.is_empty()
            || self.indexed.as_ref().is_some_and(|indexed| !indexed.failed.is_empty())
            || self.unflushed.is_some();
        if is_incomplete || statuses.clone().any(is_failed) {
            Ending::SomeFailed
        } else if statuses.all(|status| matches!(status, Status::Skipped)) {
            Ending::Nothing
        } else {
            Ending::Done
        }
    }
}

/// A transfer whose names and directories have been checked as far as that is possible without
/// asking a registry.
pub struct Transfer<'a> {
    request: &'a Request,
    options: TransferOptions,
    from: Option<ImagesDir>,
    to: Option<ImagesDir>,
    /// `None` if a registry has to be asked which images there are.
    routes: Option<Vec<Route>>,
    left_out: Vec<Problem>,
    notices: Vec<String>,
}

/// Copies the images that `request` asks for. Registries are reached as `config` says.
///
/// Images that cannot be copied are in the report; an error means that nothing could be done.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::sync::Arc;
/// use imgfs::{
///     backend::{ManifestName, Sink, images_dir::{ImagesDir, Linking}, registry::RegistryConfig},
///     image::{Manifest, Repository},
///     ops::{Images, Observer, Request, TransferOptions, TreeSpec, transfer},
/// };
///
/// let temporary = tempfile::tempdir()?;
/// let [from, to] = ["from", "to"].map(|name| temporary.path().join(name));
/// // An image for no platform at all is the smallest one.
/// let dir = ImagesDir::create(&from, None, Linking::Auto)?;
/// let index = br#"{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}"#;
/// let manifest = Manifest::parse(index.to_vec().into(), None)?;
/// let repository = Repository::new("registry.example.com", "team/app")?;
/// dir.put(&repository, &manifest, &ManifestName::Tag("v1".to_owned())).await?;
///
/// let all = Request::new(TreeSpec::Directory(from), TreeSpec::Directory(to), Images::All);
/// let observer: Arc<dyn Observer> = Arc::new(());
/// let options = TransferOptions::default();
/// let report = transfer(&all, options, RegistryConfig::default(), &observer).await?;
/// assert_eq!(report.report.images[0].route.to.to_string(), "registry.example.com/team/app:v1");
/// assert_eq!(report.report.images[0].digest, Some(manifest.digest()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub async fn transfer(
    request: &Request,
    options: TransferOptions,
    config: RegistryConfig,
    observer: &Arc<dyn Observer>,
) -> Result<TransferReport> {
    Transfer::prepare(request, options)?.run(config, observer).await
}

impl<'a> Transfer<'a> {
    /// Checks the names and opens the directories that `request` is about.
    pub fn prepare(request: &'a Request, options: TransferOptions) -> Result<Self> {
        // Names first: what is wrong with them is known before anything else is touched.
        let listed = request.listed()?;
        let early = listed.as_deref().map(|images| request.routes(images)).transpose()?;
        let from = match &request.from {
            TreeSpec::Directory(path) if !path.is_file() => Some(ImagesDir::open(path)?),
            TreeSpec::Directory(_) | TreeSpec::Registry { .. } | TreeSpec::Medium(_) => None,
        };
        check_apart(request)?;
        if let TreeSpec::Directory(path) = &request.to
            && ends_as_archive(path)
            && !path.exists()
        {
            let place = path.display().to_string();
            let reason = format!(
                "an archive is written as oci-archive:{place} (or docker-archive:), and a directory of that name as {place}/"
            );
            return Err(Error::NotThere { place, reason });
        }
        // A directory that does not exist is created when there is something to put into it.
        let to = match &request.to {
            TreeSpec::Directory(path) if options.dry_run || path.exists() => {
                Some(open_target(path, request, options)?)
            }
            TreeSpec::Directory(_) | TreeSpec::Registry { .. } | TreeSpec::Medium(_) => None,
        };
        let found = match (&listed, &from) {
            (None, Some(dir)) => Some(images_of(dir, request)?),
            _ => None,
        };
        let local = found.as_ref().map(|found| request.routes(&found.images)).transpose()?;
        let Found { left_out, notices, .. } = found.unwrap_or_default();
        Ok(Self { request, options, from, to, routes: early.or(local), left_out, notices })
    }

    /// The registries that will be asked, as far as they are known by now.
    pub fn registries(&self) -> Vec<String> {
        let routes = self.routes.as_deref().unwrap_or_default();
        let mut names = BTreeSet::new();
        for (spec, side) in [
            (&self.request.from, routes.iter().map(|route| &route.from).collect::<Vec<_>>()),
            (&self.request.to, routes.iter().map(|route| &route.to).collect()),
        ] {
            if let TreeSpec::Registry { prefix } = spec {
                let host = prefix.split('/').next().filter(|host| !host.is_empty());
                names.extend(host.map(str::to_owned));
                names.extend(side.iter().map(|image| image.repository().registry().to_owned()));
            }
        }
        names.into_iter().collect()
    }

    /// Copies the images. Registries are reached as `config` says, and before that as the request
    /// itself does.
    pub async fn run(
        mut self,
        mut config: RegistryConfig,
        observer: &Arc<dyn Observer>,
    ) -> Result<TransferReport> {
        let (request, options) = (self.request, self.options);
        config.entries.splice(0..0, request.auths.iter().cloned());
        config.defaults.skip_tls_verify |= request.skip_tls_verify.unwrap_or(false);
        Registry::check(&config)?;
        config.without_referrers =
            self.to.as_ref().map(ImagesDir::registries_without_referrers).unwrap_or_default();
        let (known_without, concurrency) = (config.without_referrers.clone(), config.concurrency);
        let registry = Arc::new(Registry::new(config));
        let (mut unnameable, mut notices) = (Vec::new(), std::mem::take(&mut self.notices));
        let medium = match request.from.medium() {
            Some(medium) => Some(Source::open(&medium, request.name.as_ref()).await?),
            None => None,
        };
        let routes = match (self.routes.take(), &medium) {
            (Some(routes), _) => routes,
            (None, Some(source)) => {
                let images = source.names().await?;
                let images: Vec<Reference> =
                    images.into_iter().filter(|image| request.matches(image, None)).collect();
                request.routes(&images)?
            }
            (None, None) => {
                let (images, others) = tags_of(&registry, request).await?;
                unnameable = others;
                request.routes(&images)?
            }
        };
        notices.extend(medium.iter().flat_map(Source::warnings));
        if routes.is_empty() {
            let nothing = match (&request.images, &request.pattern) {
                (_, Some(_)) => NothingToDo::NoMatch,
                (Images::Listed(_), None) => NothingToDo::NoneNamed,
                (Images::All, None) => NothingToDo::EmptySource,
            };
            let left_out = self.left_out;
            return Ok(TransferReport {
                nothing: Some(nothing),
                left_out,
                notices,
                ..TransferReport::default()
            });
        }
        if let (TreeSpec::Directory(path), None) = (&request.to, &self.to) {
            self.to = Some(open_target(path, request, options)?);
        }
        let target: Option<Medium> = match &self.to {
            Some(_) => None,
            None => request.to.medium(),
        };
        let to_registry = self.to.is_none() && target.is_none();
        if options.create_projects && to_registry && !options.dry_run {
            create_projects(&registry, &routes, observer).await?;
        }
        let started = Instant::now();
        let source: Arc<dyn Backend> = match (self.from, &medium) {
            (Some(dir), _) => Arc::new(dir),
            (None, Some(source)) => source.backend(),
            (None, None) => registry.clone(),
        };
        // For media that hold one platform: found out before anything there is replaced.
        let is_packed = target.as_ref().is_some_and(Medium::is_packed);
        let platform = is_packed.then(|| packed_platform(&request.options)).transpose()?;
        let target = match (&self.to, &target) {
            (Some(dir), _) => Target::Sink(Arc::new(dir.clone())),
            (None, Some(medium)) => open_medium(medium, &routes, options)?,
            (None, None) => Target::Sink(Arc::new(RegistrySink::new(registry.clone()))),
        };
        let (sink, packer): (Arc<dyn Sink>, _) = match target {
            Target::Sink(sink) => match options.shard.filter(|_| !options.dry_run) {
                Some(shard) => (Arc::new(Sharded::new(sink, shard)), None),
                None => (sink, None),
            },
            Target::Packer(packer) => {
                (Arc::new(Unwritten::new(request.to.to_string())), Some(packer))
            }
        };
        let indexing = match &self.to {
            Some(dir) if options.index_layers && !options.dry_run => Some(LayerIndexing::new(dir)),
            _ => None,
        };
        let (report, plan) = if options.dry_run {
            let plan = engine::plan(&source, &sink, &routes, &request.options).await;
            (report_of(&plan), Some(plan))
        } else if let (Some(mut packer), Some(platform)) = (packer, platform) {
            observer.started(None);
            let moves: Arc<dyn engine::Observer> = observer.clone();
            let plan =
                engine::plan(&source, &sink, &routes, &packed_options(request, &*packer)).await;
            (engine::pack(&source, plan, &mut *packer, &platform, &moves).await, None)
        } else {
            observer.started(self.to.as_ref());
            let moves: Arc<dyn engine::Observer> = match &indexing {
                Some(layers) => {
                    Arc::new(Indexing { observer: observer.clone(), layers: layers.clone() })
                }
                None => observer.clone(),
            };
            let copied =
                engine::copy(&source, &sink, &routes, &request.options, concurrency, &moves);
            (copied.await, None)
        };
        let indexed = match indexing {
            Some(indexing) => Some(indexing.finish(&report).await),
            None => None,
        };
        let mut unflushed = None;
        if let (Some(dir), false) = (&self.to, options.dry_run) {
            observer.finishing();
            unflushed = dir.finish().await.err();
        }
        let elapsed = started.elapsed();
        let mut warnings = Vec::new();
        if let (Some(dir), false) = (&self.to, options.dry_run) {
            for name in registry.without_referrers() {
                if !known_without.contains(&name) {
                    warnings.extend(dir.note_without_referrers(&name).err());
                }
            }
        }
        let traffic = Traffic::of(registry.stats());
        let left_out = self.left_out;
        Ok(TransferReport {
            report,
            plan,
            nothing: None,
            traffic,
            elapsed,
            left_out,
            unflushed,
            warnings,
            unnameable,
            indexed,
            notices,
        })
    }
}

/// The platform of what can have one only: the first one that is wanted, or that of this machine.
fn packed_platform(options: &engine::Options) -> Result<Platform> {
    match &options.platforms {
        PlatformFilter::Only(platforms) if !platforms.is_empty() => Ok(platforms[0].clone()),
        _ => this_machine().map_err(|e| Error::Platform(e.to_string())),
    }
}

/// The options of a request for a target that may have no place for signatures and the like.
fn packed_options(request: &Request, packer: &dyn Packer) -> engine::Options {
    let options = request.options.clone();
    engine::Options { attachments: options.attachments && packer.keeps_attachments(), ..options }
}

impl Traffic {
    fn of(stats: &Stats) -> Self {
        Self {
            sent_bytes: stats.sent_bytes(),
            received_bytes: stats.received_bytes(),
            requests: stats.requests(),
            retries: stats.retries(),
        }
    }
}

/// The report of a dry run.
fn report_of(plan: &Plan) -> Report {
    let there = |blob: &&engine::BlobPlan| blob.moves() == 0;
    Report {
        images: plan.images.iter().map(|image| image.report.clone()).collect(),
        reused_blobs: plan.blobs.iter().filter(there).count(),
        reused_bytes: plan.blobs.iter().filter(there).map(|b| b.descriptor.size).sum(),
        ..Report::default()
    }
}

/// Opens the directory to be filled; a dry run creates none.
fn open_target(root: &Path, request: &Request, options: TransferOptions) -> Result<ImagesDir> {
    if let TreeSpec::Directory(from) = &request.from
        && let (Ok(from), Ok(to)) = (from.canonicalize(), root.canonicalize())
        && from == to
        && request.dest.is_none()
    {
        return Err(Error::SameDirectory(root.to_owned()));
    }
    Ok(match (options.dry_run, root.exists()) {
        (true, true) => ImagesDir::open(root)?,
        (true, false) => ImagesDir::absent(root),
        _ => ImagesDir::create_synced(root, options.layout, options.linking, options.sync)?,
    })
}

/// What of a directory is wanted.
#[derive(Default)]
struct Found {
    images: Vec<Reference>,
    /// What may be more images.
    left_out: Vec<Problem>,
    notices: Vec<String>,
}

/// The images of a directory that match: those with a tag, and those that somebody asked for by
/// digest. What is attached to them goes with them.
fn images_of(dir: &ImagesDir, request: &Request) -> Result<Found> {
    let inventory = dir.inventory()?;
    let tagged: BTreeSet<(&Repository, _)> = inventory
        .images
        .iter()
        .filter(|image| image.reference.tag().is_some())
        .map(|image| (image.reference.repository(), image.digest))
        .collect();
    let wanted = inventory.images.iter().filter(|image| {
        let (name, is_pin) = (&image.reference, image.reference.tag().is_none());
        let is_double = is_pin && tagged.contains(&(name.repository(), image.digest));
        !image.is_attachment && !is_double && request.matches(name, None)
    });
    let images = wanted.map(|image| image.reference.clone()).collect();
    let matches = |name: &String| {
        name.parse().map_or(true, |image: Reference| {
            !image.tag().is_some_and(is_attachment_tag) && request.matches(&image, None)
        })
    };
    // Of some it is not known which images they are.
    let may_match =
        |problem: &&Problem| problem.images.is_empty() || problem.images.iter().any(matches);
    let left_out = inventory.hidden().filter(may_match).cloned().collect();
    let notices = match &request.pattern {
        None => inventory.notices().collect(),
        Some(_) => Vec::new(),
    };
    Ok(Found { images, left_out, notices })
}

/// The images in the repository that the request has as its source,
/// and what else it lists, which cannot be copied.
async fn tags_of(
    registry: &Registry,
    request: &Request,
) -> Result<(Vec<Reference>, Vec<backend::Error>)> {
    let TreeSpec::Registry { prefix } = &request.from else { return Ok((Vec::new(), Vec::new())) };
    let Some((host, path)) = prefix.split_once('/') else {
        return Err(Error::Unlistable(request.from.clone()));
    };
    let repository = Repository::new(host, path)?;
    let (tags, others) = registry.all_tags(&repository).await?;
    let images = tags.iter().filter(|tag| !is_attachment_tag(tag));
    let images = images.map(|tag| repository.tagged(tag));
    let images = images.filter(|image| request.matches(image, None)).collect();
    let unnameable = others.iter().map(|name| {
        let name: String = name.chars().filter(|c| !disturbs(*c)).take(100).collect();
        let reason = format!("`{name}`, which it lists, is no tag; it is left out");
        backend::Error::new(registry.side(&repository), "listing tags", Kind::Unfit(reason))
    });
    Ok((images, unnameable.collect()))
}

async fn create_projects(
    registry: &Arc<Registry>,
    routes: &[Route],
    observer: &Arc<dyn Observer>,
) -> Result<()> {
    let project = |repository: &Repository| {
        let name = repository.path().split('/').next().unwrap_or_default();
        Project { registry: repository.registry().to_owned(), name: name.to_owned() }
    };
    let mut seen: Vec<Project> = Vec::new();
    for route in routes {
        let repository = route.to.repository();
        let project = project(repository);
        if seen.contains(&project) {
            continue;
        }
        match registry.ensure_project(repository).await {
            Ok(true) => observer.project_created(&project),
            Ok(false) => {}
            // It is no Harbor, and the option makes no sense.
            Err(error) if matches!(error.kind(), Kind::Config(_)) => return Err(error.into()),
            // It fails its own images, and no others.
            Err(error) => observer.project_failed(&error),
        }
        seen.push(project);
    }
    Ok(())
}
