//! Planning: what each image consists of, and what of that is missing at the target.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};

use super::{
    IndexMode, Options, Route,
    attach::{self, TagLists},
    graph::{Explorer, Graph},
    report::{ImageReport, Status},
};
use crate::{
    backend::{Backend, Error, Kind, ManifestName, Result, Sink},
    image::{
        Descriptor, Digest, FilteredIndex, Manifest, PlatformFilter, Reference, Repository,
        is_attached_to, is_referrers_tag,
    },
};

/// Images that are planned at the same time.
const AT_ONCE: usize = 64;

/// Referrers of referrers are followed this far.
const MAX_ATTACHMENT_DEPTH: usize = 4;

/// More than this attached to one image is left out.
const MAX_ATTACHMENTS: usize = 1000;

/// Attachments of one image that are looked at at the same time.
const ATTACHMENTS_AT_ONCE: usize = 8;

/// What a transfer will do.
#[derive(Debug, Default)]
pub struct Plan {
    /// The images, in the order in which they were asked for, each once.
    pub images: Vec<ImagePlan>,
    /// The blobs of all images, each once, the largest first.
    pub blobs: Vec<BlobPlan>,
}

/// What will be done for one image.
#[derive(Debug)]
pub struct ImagePlan {
    /// What is known so far; its status is [`Status::Planned`] if there is anything to be done.
    pub report: ImageReport,
    /// What to publish, in this order, after the blobs have come.
    pub manifests: Vec<PlannedManifest>,
    /// Indexes of which only some children are wanted, with the platforms.
    pub sparse: Vec<(Digest, String)>,
}

/// A manifest to be published.
#[derive(Debug)]
pub struct PlannedManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// The repository at the target.
    pub repository: Repository,
    /// The names under which the target lacks it; most often none in a second run.
    pub names: Vec<ManifestName>,
    /// The name of what is attached to the image, if it is a part of that.
    pub attached: Option<String>,
}

/// A blob that images need.
#[derive(Debug)]
pub struct BlobPlan {
    /// What it is.
    pub descriptor: Descriptor,
    /// Repositories of the source that have it.
    pub sources: Vec<Repository>,
    /// Where it is needed. It is moved to the first of them, and from there to the others.
    pub targets: Vec<BlobTarget>,
    /// Its content, if planning had to read it.
    pub content: Option<Bytes>,
    /// Registries in which some repository has it, so that it can be mounted from there.
    pub mountable: BTreeSet<String>,
}

/// A place where a blob is needed: a repository, or all of an images_dir.
#[derive(Debug)]
pub struct BlobTarget {
    /// The repository, or one of those of an images_dir.
    pub repository: Repository,
    /// Images that need it there, by their place in [`Plan::images`].
    pub images: Vec<usize>,
    /// Whether it is known to be there.
    pub there: bool,
}

impl BlobPlan {
    /// How often it has to be moved: once to each registry in which no repository has it.
    pub fn moves(&self) -> usize {
        let has = |registry: &str| {
            self.mountable.contains(registry)
                || self.targets.iter().any(|t| t.there && t.repository.registry() == registry)
        };
        let registries: BTreeSet<&str> =
            self.targets.iter().map(|target| target.repository.registry()).collect();
        registries.into_iter().filter(|registry| !has(registry)).count()
    }

    /// The images that need it.
    pub fn images(&self) -> impl Iterator<Item = usize> {
        self.targets.iter().flat_map(|target| &target.images).copied()
    }
}

impl Plan {
    /// The blobs that are to be moved.
    pub fn missing(&self) -> impl Iterator<Item = &BlobPlan> {
        self.blobs.iter().filter(|blob| blob.moves() > 0)
    }

    /// Bytes that are to be moved.
    pub fn missing_bytes(&self) -> u64 {
        self.missing().map(|blob| blob.descriptor.size * blob.moves() as u64).sum()
    }
}

/// Plans to copy `images` from `source` to `sink`, without doing anything of it.
///
/// An image that cannot be planned has the error in its report; the others are not affected.
pub async fn plan(
    source: &Arc<dyn Backend>,
    sink: &Arc<dyn Sink>,
    images: &[Route],
    options: &Options,
) -> Plan {
    let images = unique(images);
    let lists = TagLists::default();
    let mut planned = planning(source, sink, &lists, &images, options);
    let mut draft = Draft::default();
    while let Some((place, image)) = planned.next().await {
        draft.add(sink.as_ref(), place, image);
    }
    let mut plan = draft.finish(sink).await.1;
    if sink.capabilities().has_round_trips {
        find_present(sink, &mut plan).await;
        // Source and sink may be one registry.
        let may_mount =
            source.capabilities().can_mount_blobs && sink.capabilities().can_mount_blobs;
        for blob in plan.blobs.iter_mut().filter(|_| may_mount) {
            let registries = blob.sources.iter().map(|source| source.registry().to_owned());
            blob.mountable = registries.collect();
        }
    }
    plan
}

/// The images in their order, each once.
pub(super) fn unique(images: &[Route]) -> Vec<Route> {
    let mut seen = HashSet::new();
    images.iter().filter(|image| seen.insert(*image)).cloned().collect()
}

/// Plans images side by side. They come as they are done, each with its place in `images`.
pub(super) fn planning<'a>(
    source: &'a Arc<dyn Backend>,
    sink: &'a Arc<dyn Sink>,
    lists: &'a TagLists,
    images: &'a [Route],
    options: &'a Options,
) -> impl Stream<Item = (usize, PlannedImage)> + Unpin + 'a {
    let planned = stream::iter(images.iter().enumerate())
        .map(move |(place, image)| async move {
            (place, plan_image(source, sink, lists, image, options).await)
        })
        .buffer_unordered(AT_ONCE);
    Box::pin(planned)
}

/// An image that has been planned, and is not yet part of a plan.
pub(super) struct PlannedImage {
    image: ImagePlan,
    graph: Graph,
}

/// A plan in the making.
#[derive(Default)]
pub(super) struct Draft {
    images: BTreeMap<usize, ImagePlan>,
    blobs: HashMap<Digest, BlobPlan>,
}

impl Draft {
    pub(super) fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Adds the image that was asked for in this place.
    pub(super) fn add(&mut self, sink: &dyn Sink, place: usize, planned: PlannedImage) {
        let PlannedImage { mut image, graph } = planned;
        let target = image.report.route.to.repository().clone();
        if let Err(error) = self.merge_blobs(sink, place, graph, &target) {
            image.report.status = Status::Failed(error);
        }
        self.images.insert(place, image);
    }

    /// Adds the blobs of an image to those of the run.
    fn merge_blobs(
        &mut self,
        sink: &dyn Sink,
        image: usize,
        mut graph: Graph,
        repository: &Repository,
    ) -> Result<()> {
        for (digest, descriptor) in &graph.blobs {
            let known = self.blobs.get(digest).map(|blob| blob.descriptor.size);
            if let Some(size) = known.filter(|size| *size != descriptor.size) {
                let stated = descriptor.size;
                let message =
                    format!("it states {stated} bytes for {digest}, another image {size}");
                return Err(Error::new("planning", repository, Kind::Unfit(message)));
            }
        }
        for (digest, descriptor) in graph.blobs {
            let blob = self.blobs.entry(digest).or_insert_with(|| BlobPlan {
                descriptor,
                sources: Vec::new(),
                targets: Vec::new(),
                content: None,
                mountable: BTreeSet::new(),
            });
            // Where blobs are shared, all of it is one place.
            let same = |t: &&mut BlobTarget| {
                !sink.capabilities().has_blobs_per_repository || t.repository == *repository
            };
            match blob.targets.iter_mut().find(same) {
                Some(target) => target.images.push(image),
                None => blob.targets.push(BlobTarget {
                    repository: repository.clone(),
                    images: vec![image],
                    there: false,
                }),
            }
            blob.content = blob.content.take().or_else(|| graph.contents.remove(&digest));
        }
        Ok(())
    }

    /// The plan, and the places of its images in what was asked for.
    pub(super) async fn finish(self, sink: &Arc<dyn Sink>) -> (Vec<usize>, Plan) {
        let places: Vec<usize> = self.images.keys().copied().collect();
        let index_of: HashMap<usize, usize> =
            places.iter().enumerate().map(|(i, p)| (*p, i)).collect();
        let mut blobs: Vec<BlobPlan> = self.blobs.into_values().collect();
        for blob in &mut blobs {
            for target in &mut blob.targets {
                target.images.sort_unstable();
            }
            // In the order of the images, however fast each was planned.
            blob.targets.sort_by_key(|target| target.images.first().copied());
            let mut all: Vec<usize> = blob.images().collect();
            all.sort_unstable();
            for place in all {
                let repository = self.images[&place].report.route.from.repository();
                if !blob.sources.contains(repository) {
                    blob.sources.push(repository.clone());
                }
            }
            for image in blob.targets.iter_mut().flat_map(|target| &mut target.images) {
                *image = index_of.get(image).copied().unwrap_or_default();
            }
        }
        blobs.sort_by_key(|blob| (Reverse(blob.descriptor.size), blob.descriptor.digest));
        let mut plan = Plan { images: self.images.into_values().collect(), blobs };
        // A registry tells when the blob's turn has come, with the same request that begins it.
        if !sink.capabilities().has_round_trips {
            find_present(sink, &mut plan).await;
        }
        (places, plan)
    }
}

/// Asks the target which of the blobs it has. Those of which it cannot say are taken for missing,
/// and its trouble shows when they are to be stored.
async fn find_present(sink: &Arc<dyn Sink>, plan: &mut Plan) {
    let asked = plan.blobs.iter().flat_map(|blob| {
        blob.targets.iter().map(|target| {
            let (repository, descriptor) = (target.repository.clone(), blob.descriptor.clone());
            async move { sink.has(&repository, &descriptor).await.unwrap_or(false) }
        })
    });
    let asked: Vec<_> = asked.collect();
    let there: Vec<bool> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let targets = plan.blobs.iter_mut().flat_map(|blob| &mut blob.targets);
    for (target, there) in targets.zip(there) {
        target.there = there;
    }
}

async fn plan_image(
    source: &Arc<dyn Backend>,
    sink: &Arc<dyn Sink>,
    lists: &TagLists,
    route: &Route,
    options: &Options,
) -> PlannedImage {
    let planner = Planner { source, sink, lists, route, options };
    let mut report = ImageReport::new(route, Status::Planned);
    let (graph, manifests) = match planner.plan(&mut report).await {
        Ok(Some(planned)) => planned,
        failed_or_skipped => {
            report.status = failed_or_skipped.err().map_or(Status::Skipped, Status::Failed);
            (Graph::default(), Vec::new())
        }
    };
    PlannedImage { image: ImagePlan { manifests, sparse: graph.sparse.clone(), report }, graph }
}

/// What a name leads to.
struct Root {
    /// The manifest, or what this very platform filter has made of it before. `None` where it has
    /// not been read, since the target has it with all its parts.
    manifest: Option<Manifest>,
    /// Its digest at the source.
    original: Digest,
    /// What the target has under this name, if it has been read.
    before: Option<Manifest>,
    /// Its digest.
    seen: Option<Digest>,
}

/// What the target has under a name.
enum Seen {
    Nothing,
    Digest(Digest),
    Manifest(Box<Manifest>),
}

/// What a name of something attached leads to.
enum Attachment {
    /// To the very manifest that it should be attached to. Some registries take the tag for the digest.
    Subject,
    /// To something of which the target is known to have all.
    Present,
    /// To something of which the target may lack a part.
    Lacking(Graph),
}

struct Planner<'a> {
    source: &'a Arc<dyn Backend>,
    sink: &'a Arc<dyn Sink>,
    lists: &'a TagLists,
    route: &'a Route,
    options: &'a Options,
}

impl Planner<'_> {
    async fn plan(
        &self,
        report: &mut ImageReport,
    ) -> Result<Option<(Graph, Vec<PlannedManifest>)>> {
        let (from, to) = (&self.route.from, &self.route.to);
        let repository = from.repository();
        let root = if self.options.attachments {
            // The tags will be needed whatever the root turns out to be.
            let tags = self.lists.prefetch(self.source.as_ref(), repository);
            future::join(self.root(from, to, self.options), tags).await.0?
        } else {
            self.root(from, to, self.options).await?
        };
        let Root { manifest, original, before, .. } = root;
        let (mut graph, mut manifests) = (Graph::default(), Vec::new());
        if let Some(manifest) = manifest {
            let explored = self.explorer(self.options).explore(manifest, from).await?;
            let Some(explored) = explored else {
                let warning = "nothing of it is for the platforms that were asked for";
                report.warnings.push(warning.into());
                return Ok(None);
            };
            graph = explored;
            let Some(root) = graph.manifests.last() else { return Ok(None) };
            let root_digest = root.digest();
            report.digest = Some(root_digest);
            report.original_digest = Some(original).filter(|digest| *digest != root_digest);
            report.platforms = std::mem::take(&mut graph.platforms);
            report.warnings.append(&mut graph.warnings);
            report.warnings.extend(lost_platforms(before.as_ref(), original, &report.platforms));
            if from.digest().is_some_and(|pinned| pinned != root_digest) {
                report.warnings.push(format!(
                    "it is pinned, but the platform filter has made {root_digest} of it; `--index keep` keeps its digest"
                ));
            }
            let mut names: Vec<ManifestName> = Vec::new();
            names.extend(to.digest().map(|_| ManifestName::Pinned));
            names.extend(to.tag().map(|tag| ManifestName::Tag(tag.to_owned())));
            manifests = self.planned(&graph, names).await;
            self.check_blobs(&mut graph, &manifests).await?;
        } else {
            report.digest = Some(before.as_ref().map_or(original, Manifest::digest));
            report.original_digest = Some(original).filter(|d| Some(*d) != report.digest);
        }
        if self.options.attachments {
            let subjects = subjects(&graph, report.digest, original);
            // Before the root, so that an image has its signatures from the start.
            let attached = self.attachments(subjects, &mut graph, report).await;
            manifests.splice(0..0, attached);
        }
        let of_manifests = manifests.iter().map(|m| m.manifest.bytes().len() as u64).sum::<u64>();
        let of_blobs = graph.blobs.values().map(|blob| blob.size).sum::<u64>();
        report.bytes = of_manifests + of_blobs + graph.there;
        Ok(Some((graph, manifests)))
    }

    fn explorer<'b>(&'b self, options: &'b Options) -> Explorer<'b> {
        let (from, to) = (self.route.from.repository(), self.route.to.repository());
        Explorer { source: self.source, sink: self.sink, from, to, options }
    }

    /// The manifests of a graph in their order, the root under its names, the others by digest.
    async fn planned(&self, graph: &Graph, root_names: Vec<ManifestName>) -> Vec<PlannedManifest> {
        let repository = self.route.to.repository();
        let last = graph.manifests.len().saturating_sub(1);
        let mut root_names = Some(root_names);
        let mut planned = Vec::with_capacity(graph.manifests.len());
        // Where the root is in a registry, all of it is.
        let recheck = self.options.recheck;
        let mut root_is_there = self.sink.capabilities().requires_whole_images && !recheck;
        for (at, manifest) in graph.manifests.iter().enumerate().rev() {
            let names = root_names.take_if(|_| at == last).unwrap_or(vec![ManifestName::Digest]);
            let mut missing = Vec::new();
            for name in names {
                let is_part = at != last && root_is_there;
                let digest = manifest.digest();
                if recheck || !is_part && !self.sink.resolves_to(repository, &name, digest).await {
                    missing.push(name);
                }
            }
            root_is_there &= missing.is_empty();
            let (manifest, repository) = (manifest.clone(), repository.clone());
            planned.push(PlannedManifest { manifest, repository, names: missing, attached: None });
        }
        planned.reverse();
        planned
    }

    /// Drops the blobs that need not be looked at, since a registry has all of the image; the
    /// others must be at the source, as far as that is known.
    async fn check_blobs(&self, graph: &mut Graph, manifests: &[PlannedManifest]) -> Result<()> {
        let is_there = manifests.iter().all(|manifest| manifest.names.is_empty());
        if self.sink.capabilities().requires_whole_images && is_there {
            let dropped = std::mem::take(&mut graph.blobs);
            graph.there += dropped.values().map(|blob| blob.size).sum::<u64>();
        }
        let from = self.route.from.repository();
        for manifest in &graph.manifests {
            self.source.gives(from, manifest).await?;
        }
        if self.source.capabilities().has_round_trips || !self.sink.capabilities().has_round_trips {
            return Ok(());
        }
        for blob in graph.blobs.values() {
            self.source.check(from, blob).await?;
        }
        Ok(())
    }

    /// What the target has under `name`.
    async fn seen(&self, name: &Reference, options: &Options) -> Result<Seen> {
        if !self.sink.capabilities().has_round_trips {
            // Whatever is wrong with it there, the source has a good one.
            return Ok(self
                .sink
                .manifest(name)
                .await
                .map_or(Seen::Nothing, |m| Seen::Manifest(m.into())));
        }
        // What a platform filter has made tells of what, but only if it is read.
        let may_be_made =
            options.platforms != PlatformFilter::All && options.index == IndexMode::Rewrite;
        let seen = match may_be_made {
            true => self.sink.manifest(name).await.map(|m| Seen::Manifest(m.into())),
            false => self.sink.head(name).await.map(|d| d.map_or(Seen::Nothing, Seen::Digest)),
        };
        match seen {
            Err(error) if error.is_not_found() => Ok(Seen::Nothing),
            seen => seen,
        }
    }

    /// Resolves a name, with as little traffic as possible: where the target has the name, its
    /// digest is asked for first, and the manifest only if it is another one.
    async fn root(&self, from: &Reference, to: &Reference, options: &Options) -> Result<Root> {
        let asked = match to.tag() {
            Some(tag) => to.repository().tagged(tag),
            None => to.clone(),
        };
        let (seen, before) = match self.seen(&asked, options).await? {
            Seen::Nothing => {
                let manifest = self.source.manifest(from).await?;
                return Ok(Root {
                    original: manifest.digest(),
                    manifest: Some(manifest),
                    before: None,
                    seen: None,
                });
            }
            Seen::Digest(digest) => (digest, None),
            Seen::Manifest(manifest) => (manifest.digest(), Some(*manifest)),
        };
        let mut read = None;
        let told = match self.source.capabilities().has_round_trips {
            true => self.source.head(from).await?,
            // Where asking is free, the manifest is asked for.
            false => None,
        };
        let digest = match told {
            Some(digest) => digest,
            None => read.insert(self.source.manifest(from).await?).digest(),
        };
        let wanted = options.platforms.to_string();
        let is_made = before.as_ref().is_some_and(|before| {
            before.annotations().get(FilteredIndex::PLATFORMS) == Some(&wanted)
                && options.index == IndexMode::Rewrite
                && before.annotations().get(FilteredIndex::ORIGINAL) == Some(&digest.to_string())
        });
        let is_whole = seen == digest && options.platforms == PlatformFilter::All;
        let need_not_be_read = self.sink.capabilities().requires_whole_images
            && self.source.capabilities().has_round_trips
            && !options.recheck;
        if (is_whole || is_made) && need_not_be_read {
            return Ok(Root { manifest: None, original: digest, before, seen: Some(seen) });
        }
        let manifest = match &before {
            Some(before) if seen == digest || is_made => before.clone(),
            _ => {
                let here = match (read, self.sink.capabilities().has_round_trips) {
                    (Some(manifest), _) => Some(manifest),
                    (None, true) => None,
                    (None, false) => self.sink.manifest(&to.repository().pinned(digest)).await.ok(),
                };
                match here {
                    Some(manifest) => manifest,
                    None => self.source.manifest(&from.repository().pinned(digest)).await?,
                }
            }
        };
        Ok(Root { manifest: Some(manifest), original: digest, before, seen: Some(seen) })
    }

    /// Finds and explores all that is attached to `subjects`, and what is attached to that. What
    /// cannot be had is told in the report, and spares the rest.
    async fn attachments(
        &self,
        mut subjects: Vec<Digest>,
        graph: &mut Graph,
        report: &mut ImageReport,
    ) -> Vec<PlannedManifest> {
        let repository = self.route.from.repository();
        let mut known: HashSet<Digest> = subjects.iter().copied().collect();
        let mut known_tags = HashSet::new();
        let mut manifests = Vec::new();
        for depth in 0.. {
            let found = attach::find(self.source.as_ref(), self.lists, repository, &subjects).await;
            report.losses.extend(found.troubles);
            let mut names: Vec<(Reference, ManifestName)> = Vec::new();
            for digest in found.digests.into_iter().filter(|digest| known.insert(*digest)) {
                names.push((repository.pinned(digest), ManifestName::Digest));
            }
            for tag in found.tags.into_iter().filter(|tag| known_tags.insert(tag.clone())) {
                // A fallback tag moves with every referrer, so it is looked up like any tag.
                names.push((repository.tagged(&tag), ManifestName::Tag(tag)));
            }
            let room = MAX_ATTACHMENTS.saturating_sub(report.attached.len());
            if names.len() > room || (depth == MAX_ATTACHMENT_DEPTH && !names.is_empty()) {
                names.truncate(if depth == MAX_ATTACHMENT_DEPTH { 0 } else { room });
                report.losses.push(format!(
                    "more is attached to it than is carried ({MAX_ATTACHMENTS} manifests, {MAX_ATTACHMENT_DEPTH} levels)"
                ));
            }
            let explored = names.into_iter().map(|(name, kind)| async {
                let explored = self.attachment(&name).await;
                (name, kind, explored)
            });
            let explored: Vec<_> =
                stream::iter(explored).buffered(ATTACHMENTS_AT_ONCE).collect().await;
            subjects = Vec::new();
            for (name, kind, explored) in explored {
                let shown = match &kind {
                    ManifestName::Tag(tag) => tag.clone(),
                    _ => name.digest().map(|digest| digest.to_string()).unwrap_or_default(),
                };
                match explored {
                    Ok(Attachment::Subject) => {}
                    Ok(Attachment::Present) => report.attached.push(shown),
                    Ok(Attachment::Lacking(mut attached)) => {
                        for manifest in &attached.manifests {
                            if known.insert(manifest.digest())
                                || name.digest() == Some(manifest.digest())
                            {
                                subjects.push(manifest.digest());
                            }
                        }
                        let mut planned = self.planned(&attached, vec![kind]).await;
                        if let Err(error) = self.check_blobs(&mut attached, &planned).await {
                            report.losses.push(left_out(&shown, &error));
                            continue;
                        }
                        for part in &mut planned {
                            part.attached = Some(shown.clone());
                        }
                        manifests.extend(planned);
                        graph.add(Graph {
                            platforms: Vec::new(),
                            manifests: Vec::new(),
                            ..attached
                        });
                        report.attached.push(shown);
                    }
                    Err(error) => report.losses.push(left_out(&shown, &error)),
                }
            }
            if subjects.is_empty() {
                break;
            }
        }
        manifests
    }

    /// Explores something that is attached.
    async fn attachment(&self, name: &Reference) -> Result<Attachment> {
        let whole = Options { platforms: PlatformFilter::All, ..self.options.clone() };
        let repository = self.route.to.repository();
        let to = match (name.digest(), name.tag()) {
            (Some(digest), _) => repository.pinned(digest),
            (None, tag) => repository.tagged(tag.unwrap_or("latest")),
        };
        let root = self.root(name, &to, &whole).await?;
        if name.tag().is_some_and(|tag| is_attached_to(tag, &root.original)) {
            return Ok(Attachment::Subject);
        }
        let Some(manifest) = root.manifest else { return Ok(Attachment::Present) };
        let is_another = root.seen.is_some_and(|seen| seen != manifest.digest());
        let is_list = name.tag().is_some_and(is_referrers_tag);
        if is_another && self.sink.capabilities().has_round_trips && is_list {
            // Others may have added something to the list of referrers that is at the target.
            let there = self.sink.manifest(&to).await?;
            let listed =
                |child: &Descriptor| there.children().iter().any(|c| c.digest == child.digest);
            if manifest.children().iter().all(listed) {
                return Ok(Attachment::Present);
            }
        }
        let graph = self.explorer(&whole).explore(manifest, name).await?;
        Ok(Attachment::Lacking(graph.unwrap_or_default()))
    }
}

/// What the user should know if the same index has been pulled for other platforms before.
fn lost_platforms(before: Option<&Manifest>, original: Digest, now: &[String]) -> Option<String> {
    let before = before?;
    let made_of = before.annotations().get(FilteredIndex::ORIGINAL);
    let same = before.digest() == original || made_of == Some(&original.to_string());
    let had = before.children().iter().filter_map(|child| child.platform.as_ref());
    let mut lost: Vec<String> = had.filter(|p| !p.is_unknown()).map(ToString::to_string).collect();
    lost.retain(|platform| !now.contains(platform));
    lost.dedup();
    (same && !lost.is_empty())
        .then(|| format!("it no longer has {}, which it had", lost.join(", ")))
}

pub(super) fn left_out(name: &str, error: &Error) -> String {
    format!("{name}, which is attached to it, is left out: {error}")
}

/// The manifests to which something may be attached: the root, as it is at the source and as it
/// was before a platform filter made it, and what it consists of.
fn subjects(graph: &Graph, root: Option<Digest>, original: Digest) -> Vec<Digest> {
    let mut subjects = vec![original];
    subjects.extend(root);
    for manifest in &graph.manifests {
        let is_attestation =
            manifest.blobs().any(|blob| blob.media_type.starts_with("application/vnd.in-toto"));
        if !is_attestation {
            subjects.push(manifest.digest());
        }
        let made_of = manifest.annotations().get(FilteredIndex::ORIGINAL);
        subjects.extend(made_of.and_then(|digest| digest.parse::<Digest>().ok()));
    }
    let mut seen = HashSet::new();
    subjects.retain(|digest| seen.insert(*digest));
    subjects
}
