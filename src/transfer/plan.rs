//! Planning: what each image consists of, and what of that is missing at the target.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};

use super::{
    IndexMode, Options,
    attach::{self, TagLists},
    graph::{Explorer, Graph},
    report::{ImageReport, Status},
};
use crate::{
    image::{Descriptor, Digest, FilteredIndex, Manifest, PlatformFilter, Reference, Repository},
    tree::{Attachments, Blobs, Error, Kind, ManifestName, Names, Result, Sink},
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
}

/// A blob that images need.
#[derive(Debug)]
pub struct BlobPlan {
    /// What it is.
    pub descriptor: Descriptor,
    /// Repositories of the source that have it.
    pub sources: Vec<Repository>,
    /// Images that need it, by their place in [`Plan::images`].
    pub images: Vec<usize>,
    /// Whether the target has it.
    pub there: bool,
    /// Its content, if planning had to read it.
    pub content: Option<Bytes>,
}

impl Plan {
    /// The blobs that are missing at the target.
    pub fn missing(&self) -> impl Iterator<Item = &BlobPlan> {
        self.blobs.iter().filter(|blob| !blob.there)
    }

    /// Bytes of the blobs that are missing.
    pub fn missing_bytes(&self) -> u64 {
        self.missing().map(|blob| blob.descriptor.size).sum()
    }
}

/// Plans to copy `images` from `source` to the same names at `sink`.
///
/// An image that cannot be planned has the error in its report; the others are not affected.
pub async fn plan<S, D>(
    source: &Arc<S>,
    sink: &Arc<D>,
    images: &[Reference],
    options: &Options,
) -> Plan
where
    S: Names + Blobs + Attachments,
    D: Sink,
{
    let images = unique(images);
    let lists = TagLists::default();
    let mut planned = planning(source, sink, &lists, &images, options);
    let mut draft = Draft::default();
    while let Some((place, image)) = planned.next().await {
        draft.add(place, image);
    }
    draft.finish(sink).await.1
}

/// The images in their order, each once.
pub(super) fn unique(images: &[Reference]) -> Vec<Reference> {
    let mut seen = HashSet::new();
    images.iter().filter(|image| seen.insert(*image)).cloned().collect()
}

/// Plans images side by side. They come as they are done, each with its place in `images`.
pub(super) fn planning<'a, S, D>(
    source: &'a Arc<S>,
    sink: &'a Arc<D>,
    lists: &'a TagLists,
    images: &'a [Reference],
    options: &'a Options,
) -> impl Stream<Item = (usize, PlannedImage)> + Unpin + 'a
where
    S: Names + Blobs + Attachments,
    D: Sink,
{
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
    pub(super) fn add(&mut self, place: usize, planned: PlannedImage) {
        let PlannedImage { mut image, graph } = planned;
        let repository = image.report.reference.repository().clone();
        if let Err(error) = merge_blobs(&mut self.blobs, place, graph, &repository) {
            image.report.status = Status::Failed(error);
        }
        self.images.insert(place, image);
    }

    /// The plan, and the places of its images in what was asked for.
    pub(super) async fn finish<D: Sink>(self, sink: &Arc<D>) -> (Vec<usize>, Plan) {
        let places: Vec<usize> = self.images.keys().copied().collect();
        let index_of: HashMap<usize, usize> =
            places.iter().enumerate().map(|(i, p)| (*p, i)).collect();
        let mut blobs: Vec<BlobPlan> = self.blobs.into_values().collect();
        for blob in &mut blobs {
            blob.images.sort_unstable();
            // In the order of the images, however fast each was planned.
            for place in &blob.images {
                let repository = self.images[place].report.reference.repository();
                if !blob.sources.contains(repository) {
                    blob.sources.push(repository.clone());
                }
            }
            blob.images =
                blob.images.iter().filter_map(|place| index_of.get(place).copied()).collect();
        }
        blobs.sort_by_key(|blob| (Reverse(blob.descriptor.size), blob.descriptor.digest));
        let mut plan = Plan { images: self.images.into_values().collect(), blobs };
        find_present(sink, &mut plan).await;
        (places, plan)
    }
}

/// Adds the blobs of an image to those of the run.
fn merge_blobs(
    blobs: &mut HashMap<Digest, BlobPlan>,
    image: usize,
    mut graph: Graph,
    repository: &Repository,
) -> Result<()> {
    for (digest, descriptor) in &graph.blobs {
        let known = blobs.get(digest).map(|blob| blob.descriptor.size);
        if let Some(size) = known.filter(|size| *size != descriptor.size) {
            let message =
                format!("it states {} bytes for {digest}, another image {size}", descriptor.size);
            return Err(Error::new("planning", repository, Kind::Unfit(message)));
        }
    }
    for (digest, descriptor) in graph.blobs {
        let blob = blobs.entry(digest).or_insert_with(|| BlobPlan {
            descriptor,
            sources: Vec::new(),
            images: Vec::new(),
            there: false,
            content: None,
        });
        blob.images.push(image);
        blob.content = blob.content.take().or_else(|| graph.contents.remove(&digest));
    }
    Ok(())
}

/// Asks the target which of the blobs it has. Those of which it cannot say are taken for missing,
/// and its trouble shows when they are to be stored.
async fn find_present<D: Sink>(sink: &Arc<D>, plan: &mut Plan) {
    let asked = plan.blobs.iter().map(|blob| {
        let repository = blob.sources.first().cloned();
        let descriptor = blob.descriptor.clone();
        async move {
            match repository {
                Some(repository) => sink.has(&repository, &descriptor).await.unwrap_or(false),
                None => false,
            }
        }
    });
    let there: Vec<bool> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    for (blob, there) in plan.blobs.iter_mut().zip(there) {
        blob.there = there;
    }
}

async fn plan_image<S, D>(
    source: &Arc<S>,
    sink: &Arc<D>,
    lists: &TagLists,
    image: &Reference,
    options: &Options,
) -> PlannedImage
where
    S: Names + Blobs + Attachments,
    D: Sink,
{
    let planner = Planner { source, sink, lists, image, options };
    let mut report = ImageReport::new(image, Status::Planned);
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
    /// The manifest, or what this very platform filter has made of it before.
    manifest: Manifest,
    /// Its digest at the source.
    original: Digest,
    /// What the target has under this name.
    before: Option<Manifest>,
}

struct Planner<'a, S, D> {
    source: &'a Arc<S>,
    sink: &'a Arc<D>,
    lists: &'a TagLists,
    image: &'a Reference,
    options: &'a Options,
}

impl<S: Names + Blobs + Attachments, D: Sink> Planner<'_, S, D> {
    async fn plan(
        &self,
        report: &mut ImageReport,
    ) -> Result<Option<(Graph, Vec<PlannedManifest>)>> {
        let repository = self.image.repository();
        let root = if self.options.attachments {
            // The tags will be needed whatever the root turns out to be.
            let tags = self.lists.prefetch(self.source.as_ref(), repository);
            future::join(self.root(self.image), tags).await.0?
        } else {
            self.root(self.image).await?
        };
        let Root { manifest, original, before } = root;
        let graph = self.explorer(self.options).explore(manifest, self.image).await?;
        let Some(mut graph) = graph else {
            report.warnings.push("nothing of it is for the platforms that were asked for".into());
            return Ok(None);
        };
        let Some(root) = graph.manifests.last() else { return Ok(None) };
        let root_digest = root.digest();
        report.digest = Some(root_digest);
        report.original_digest = Some(original).filter(|digest| *digest != root_digest);
        report.platforms = std::mem::take(&mut graph.platforms);
        report.warnings.append(&mut graph.warnings);
        report.warnings.extend(lost_platforms(before.as_ref(), original, &report.platforms));
        if self.image.digest().is_some_and(|pinned| pinned != root_digest) {
            report.warnings.push(format!(
                "it is pinned, but the platform filter has made {root_digest} of it; `--index keep` keeps its digest"
            ));
        }
        let mut names: Vec<ManifestName> = Vec::new();
        names.extend(self.image.digest().map(|_| ManifestName::Pinned));
        names.extend(self.image.tag().map(|tag| ManifestName::Tag(tag.to_owned())));

        let mut manifests = self.planned(&graph, names).await;
        if self.options.attachments {
            let subjects = subjects(&graph, original);
            // Before the root, so that an image has its signatures from the start.
            let attached = self.attachments(subjects, &mut graph, report).await;
            manifests.splice(0..0, attached);
        }
        let of_manifests = manifests.iter().map(|m| m.manifest.bytes().len() as u64).sum::<u64>();
        report.bytes = of_manifests + graph.blobs.values().map(|blob| blob.size).sum::<u64>();
        Ok(Some((graph, manifests)))
    }

    fn explorer<'b>(&'b self, options: &'b Options) -> Explorer<'b, S, D> {
        let repository = self.image.repository();
        Explorer { source: self.source, sink: self.sink, repository, options }
    }

    /// The manifests of a graph in their order, the root under its names, the others by digest.
    async fn planned(&self, graph: &Graph, root_names: Vec<ManifestName>) -> Vec<PlannedManifest> {
        let repository = self.image.repository();
        let last = graph.manifests.len().saturating_sub(1);
        let mut root_names = Some(root_names);
        let mut planned = Vec::with_capacity(graph.manifests.len());
        for (at, manifest) in graph.manifests.iter().enumerate() {
            let names = root_names.take_if(|_| at == last).unwrap_or(vec![ManifestName::Digest]);
            let mut missing = Vec::new();
            for name in names {
                if !self.sink.leads_to(repository, &name, manifest.digest()).await {
                    missing.push(name);
                }
            }
            let (manifest, repository) = (manifest.clone(), repository.clone());
            planned.push(PlannedManifest { manifest, repository, names: missing });
        }
        planned
    }

    /// Resolves a name, with as little traffic as possible: where the target has the name, its
    /// digest is asked for first, and the manifest only if it is another one.
    async fn root(&self, name: &Reference) -> Result<Root> {
        let repository = name.repository();
        let asked = match name.tag() {
            Some(tag) => repository.tagged(tag),
            None => name.clone(),
        };
        let Ok(before) = self.sink.manifest(&asked).await else {
            let manifest = self.source.manifest(name).await?;
            return Ok(Root { original: manifest.digest(), manifest, before: None });
        };
        let Some(digest) = self.source.head(name).await? else {
            let manifest = self.source.manifest(name).await?;
            return Ok(Root { original: manifest.digest(), manifest, before: Some(before) });
        };
        let wanted = self.options.platforms.to_string();
        let is_made = before.annotations().get(FilteredIndex::PLATFORMS) == Some(&wanted)
            && self.options.index == IndexMode::Rewrite
            && before.annotations().get(FilteredIndex::ORIGINAL) == Some(&digest.to_string());
        let manifest = if before.digest() == digest || is_made {
            before.clone()
        } else {
            let pinned = repository.pinned(digest);
            match self.sink.manifest(&pinned).await {
                Ok(manifest) => manifest,
                Err(_) => self.source.manifest(&pinned).await?,
            }
        };
        Ok(Root { manifest, original: digest, before: Some(before) })
    }

    /// Finds and explores all that is attached to `subjects`, and what is attached to that. What
    /// cannot be had is told in the report, and spares the rest.
    async fn attachments(
        &self,
        mut subjects: Vec<Digest>,
        graph: &mut Graph,
        report: &mut ImageReport,
    ) -> Vec<PlannedManifest> {
        let repository = self.image.repository();
        let mut known: HashSet<Digest> = subjects.iter().copied().collect();
        let mut known_tags = HashSet::new();
        let mut manifests = Vec::new();
        for depth in 0.. {
            let found = attach::find(self.source.as_ref(), self.lists, repository, &subjects).await;
            report.warnings.extend(found.troubles);
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
                report.warnings.push(format!(
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
                    Ok(attached) => {
                        for manifest in &attached.manifests {
                            if known.insert(manifest.digest())
                                || name.digest() == Some(manifest.digest())
                            {
                                subjects.push(manifest.digest());
                            }
                        }
                        manifests.extend(self.planned(&attached, vec![kind]).await);
                        graph.add(Graph {
                            platforms: Vec::new(),
                            manifests: Vec::new(),
                            ..attached
                        });
                        report.attached.push(shown);
                    }
                    Err(error) => {
                        report.warnings.push(format!(
                            "{shown}, which is attached to it, is left out: {error}"
                        ));
                    }
                }
            }
            if subjects.is_empty() {
                break;
            }
        }
        manifests
    }

    async fn attachment(&self, name: &Reference) -> Result<Graph> {
        let whole = Options { platforms: PlatformFilter::All, ..self.options.clone() };
        let root = self.root(name).await?;
        let graph = self.explorer(&whole).explore(root.manifest, name).await?;
        Ok(graph.unwrap_or_default())
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

/// The manifests to which something may be attached: the root, as it is at the source, and what
/// it consists of.
fn subjects(graph: &Graph, original: Digest) -> Vec<Digest> {
    let mut subjects = vec![original];
    for manifest in &graph.manifests {
        let is_attestation =
            manifest.blobs().any(|blob| blob.media_type.starts_with("application/vnd.in-toto"));
        if !is_attestation {
            subjects.push(manifest.digest());
        }
    }
    let mut seen = HashSet::new();
    subjects.retain(|digest| seen.insert(*digest));
    subjects
}
