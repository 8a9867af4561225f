//! Planning: what each image consists of, and what of that is missing at the target.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt, future, stream};

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

/// More than this attached to one image is refused.
const MAX_ATTACHMENTS: usize = 1000;

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
    /// The names it is to have.
    pub names: Vec<ManifestName>,
    /// Whether the target has it already.
    pub there: bool,
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
    let mut seen = HashSet::new();
    let unique: Vec<&Reference> = images.iter().filter(|image| seen.insert(*image)).collect();
    let lists = TagLists::default();
    let planned = stream::iter(unique)
        .map(|image| plan_image(source, sink, &lists, image, options))
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;

    let mut plan = Plan::default();
    let mut blobs: HashMap<Digest, BlobPlan> = HashMap::new();
    for (index, (mut image, graph, repository)) in planned.into_iter().enumerate() {
        match merge_blobs(&mut blobs, index, &graph, &repository) {
            Ok(()) => {}
            Err(error) => image.report.status = Status::Failed(error),
        }
        plan.images.push(image);
    }
    plan.blobs = blobs.into_values().collect();
    plan.blobs
        .sort_by_key(|blob| (std::cmp::Reverse(blob.descriptor.size), blob.descriptor.digest));
    find_present(sink, &mut plan).await;
    plan
}

/// Adds the blobs of an image to those of the run.
fn merge_blobs(
    blobs: &mut HashMap<Digest, BlobPlan>,
    image: usize,
    graph: &Graph,
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
    for (digest, descriptor) in &graph.blobs {
        let blob = blobs.entry(*digest).or_insert_with(|| BlobPlan {
            descriptor: descriptor.clone(),
            sources: Vec::new(),
            images: Vec::new(),
            there: false,
            content: None,
        });
        if !blob.sources.contains(repository) {
            blob.sources.push(repository.clone());
        }
        blob.images.push(image);
        blob.content = blob.content.take().or_else(|| graph.contents.get(digest).cloned());
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
) -> (ImagePlan, Graph, Repository)
where
    S: Names + Blobs + Attachments,
    D: Sink,
{
    let repository = image.repository().clone();
    let planner = Planner { source, sink, lists, image, options };
    let mut report = ImageReport::new(image, Status::Planned);
    match planner.plan(&mut report).await {
        Ok(Some((graph, manifests))) => {
            let plan = ImagePlan { manifests, sparse: graph.sparse.clone(), report };
            (plan, graph, repository)
        }
        failed_or_skipped => {
            report.status = match failed_or_skipped {
                Err(error) => Status::Failed(error),
                _ => Status::Skipped,
            };
            let plan = ImagePlan { manifests: Vec::new(), sparse: Vec::new(), report };
            (plan, Graph::default(), repository)
        }
    }
}

/// A manifest that a name led to, and whether the target has it under that name.
struct Root {
    manifest: Manifest,
    there: bool,
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
        let original = original_digest(&root.manifest);
        let graph =
            self.explorer(self.options).explore(root.manifest, root.there, self.image).await?;
        let Some(mut graph) = graph else {
            report.warnings.push("nothing of it is for the platforms that were asked for".into());
            return Ok(None);
        };
        let Some((root, _)) = graph.manifests.last() else { return Ok(None) };
        let root_digest = root.digest();
        report.digest = Some(root_digest);
        report.original_digest = Some(original).filter(|digest| *digest != root_digest);
        report.platforms = std::mem::take(&mut graph.platforms);
        report.warnings.append(&mut graph.warnings);
        let mut names: Vec<ManifestName> = Vec::new();
        names.extend(self.image.digest().map(|_| ManifestName::Pinned));
        names.extend(self.image.tag().map(|tag| ManifestName::Tag(tag.to_owned())));

        let mut manifests = planned(repository, &graph, names);
        if self.options.attachments {
            let subjects = subjects(&graph, original);
            match self.attachments(subjects, &mut graph, report).await {
                // Before the root, so that an image has its signatures from the start.
                Ok(attached) => drop(manifests.splice(0..0, attached)),
                Err(error) => {
                    report.warnings.push(format!("what is attached to it is not known: {error}"));
                }
            }
        }
        let of_manifests = manifests.iter().map(|m| m.manifest.bytes().len() as u64).sum::<u64>();
        report.bytes = of_manifests + graph.blobs.values().map(|blob| blob.size).sum::<u64>();
        Ok(Some((graph, manifests)))
    }

    fn explorer<'b>(&'b self, options: &'b Options) -> Explorer<'b, S, D> {
        Explorer {
            source: self.source,
            sink: self.sink,
            repository: self.image.repository(),
            target: self.image.repository(),
            options,
        }
    }

    /// Resolves a name, with as little traffic as possible: where the target has the name, its
    /// digest is asked for first, and the manifest only if it is another one.
    async fn root(&self, name: &Reference) -> Result<Root> {
        let repository = name.repository();
        let by_tag = name.tag().map(|tag| repository.tagged(tag));
        let local = match &by_tag {
            Some(tagged) => self.sink.manifest(tagged).await.ok(),
            None => self.sink.manifest(name).await.ok(),
        };
        let Some(local) = local else {
            let manifest = self.source.manifest(name).await?;
            return Ok(Root { manifest, there: false });
        };
        let Some(digest) = self.source.head(name).await? else {
            let manifest = self.source.manifest(name).await?;
            let there = manifest.digest() == local.digest();
            return Ok(Root { manifest, there });
        };
        let wanted = self.options.platforms.to_string();
        let is_filtered = local.annotations().get(FilteredIndex::PLATFORMS) == Some(&wanted)
            && self.options.index == IndexMode::Rewrite
            && original_digest(&local) == digest;
        if local.digest() == digest || is_filtered {
            // A name with tag and digest is to be found by both.
            let there = match (name.tag(), name.digest()) {
                (Some(_), Some(digest)) => {
                    self.sink.manifest(&repository.pinned(digest)).await.is_ok()
                }
                _ => true,
            };
            return Ok(Root { manifest: local, there });
        }
        let pinned = repository.pinned(digest);
        let manifest = match self.sink.manifest(&pinned).await {
            Ok(manifest) => manifest,
            Err(_) => self.source.manifest(&pinned).await?,
        };
        Ok(Root { manifest, there: false })
    }

    /// Finds and explores all that is attached to `subjects`, and what is attached to that.
    async fn attachments(
        &self,
        mut subjects: Vec<Digest>,
        graph: &mut Graph,
        report: &mut ImageReport,
    ) -> Result<Vec<PlannedManifest>> {
        let repository = self.image.repository();
        let whole = Options { platforms: PlatformFilter::All, ..self.options.clone() };
        let explorer = self.explorer(&whole);
        let mut known: HashSet<Digest> = subjects.iter().copied().collect();
        let mut planned_manifests = Vec::new();
        for _ in 0..MAX_ATTACHMENT_DEPTH {
            let found =
                attach::find(self.source.as_ref(), self.lists, repository, &subjects).await?;
            let mut names: Vec<(Reference, Vec<ManifestName>)> = Vec::new();
            for digest in found.digests.into_iter().filter(|digest| known.insert(*digest)) {
                names.push((repository.pinned(digest), vec![ManifestName::Digest]));
            }
            for tag in found.tags {
                // A fallback tag moves with every referrer, so it is looked up like any tag.
                names.push((repository.tagged(&tag), vec![ManifestName::Tag(tag)]));
            }
            subjects = Vec::new();
            for (name, names) in names {
                let root = self.root(&name).await?;
                let attached = explorer.explore(root.manifest, root.there, &name).await?;
                let Some(attached) = attached else { continue };
                for (manifest, _) in &attached.manifests {
                    if known.insert(manifest.digest()) || name.digest() == Some(manifest.digest()) {
                        subjects.push(manifest.digest());
                    }
                }
                report.attached.push(match name.tag() {
                    Some(tag) => tag.to_owned(),
                    None => name.digest().map(|d| d.to_string()).unwrap_or_default(),
                });
                planned_manifests.extend(planned(repository, &attached, names));
                graph.add(Graph { platforms: Vec::new(), manifests: Vec::new(), ..attached });
            }
            if report.attached.len() > MAX_ATTACHMENTS {
                let message = format!("more than {MAX_ATTACHMENTS} things are attached to it");
                return Err(Error::new("planning", self.image, Kind::Unfit(message)));
            }
            if subjects.is_empty() {
                break;
            }
        }
        Ok(planned_manifests)
    }
}

/// The manifests of a graph in their order, the root under its names, the others by digest.
fn planned(
    repository: &Repository,
    graph: &Graph,
    root_names: Vec<ManifestName>,
) -> Vec<PlannedManifest> {
    let mut planned: Vec<PlannedManifest> = graph
        .manifests
        .iter()
        .map(|(manifest, there)| PlannedManifest {
            manifest: manifest.clone(),
            repository: repository.clone(),
            names: vec![ManifestName::Digest],
            there: *there,
        })
        .collect();
    if let Some(root) = planned.last_mut() {
        root.names = root_names;
    }
    planned
}

/// The manifests to which something may be attached: the root, as it is at the source, and what
/// it consists of.
fn subjects(graph: &Graph, original: Digest) -> Vec<Digest> {
    let mut subjects = vec![original];
    for (manifest, _) in &graph.manifests {
        let is_attestation =
            manifest.blobs().any(|blob| blob.media_type.starts_with("application/vnd.in-toto"));
        if !is_attestation && !manifest.annotations().contains_key(FilteredIndex::ORIGINAL) {
            subjects.push(manifest.digest());
        }
    }
    let mut seen = HashSet::new();
    subjects.retain(|digest| seen.insert(*digest));
    subjects
}

/// The digest that a manifest had before a platform filter made it, which most often is its own.
fn original_digest(manifest: &Manifest) -> Digest {
    let noted = manifest.annotations().get(FilteredIndex::ORIGINAL);
    noted.and_then(|text| text.parse().ok()).unwrap_or_else(|| manifest.digest())
}
