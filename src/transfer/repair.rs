//! Fetching again what is broken in an images_dir, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    IndexMode, Options,
    execute::execute,
    plan::{BlobPlan, BlobTarget, Plan, plan},
    report::{Observer, Status},
};
use crate::{
    backend::{
        Backend, Error, ManifestName, Names, Result, Sink,
        images_dir::{ImagesDir, Problem, Subject},
    },
    image::{Digest, PlatformFilter, Reference, Repository},
};

/// A repaired manifest may show that blobs are missing, whose repair may show more.
const ROUNDS: usize = 5;

/// Repairs `problems` of `dir` from `source`. Returns the problems again, those that are no more
/// marked as repaired and those that came up on the way added; and the errors that were met.
pub async fn repair(
    source: &Arc<dyn Backend>,
    dir: &ImagesDir,
    problems: Vec<Problem>,
    concurrency: usize,
    observer: &Arc<dyn Observer>,
) -> Result<(Vec<Problem>, Vec<Error>)> {
    let sink: Arc<dyn Sink> = Arc::new(dir.clone());
    let mut all = problems;
    let mut errors = Vec::new();
    let mut tried: HashSet<String> = HashSet::new();
    for _ in 0..ROUNDS {
        let fresh: Vec<Problem> = all
            .iter()
            .filter(|p| {
                p.kind.is_harmful() && !p.repaired && tried.insert(p.path.clone() + p.kind.as_str())
            })
            .cloned()
            .collect();
        if fresh.is_empty() {
            break;
        }
        let mut blobs = Plan::default();
        for problem in &fresh {
            let repaired = match &problem.subject {
                Some(Subject::Blob(image, descriptor)) => {
                    dir.distrust(descriptor.digest)?;
                    blobs.blobs.push(BlobPlan {
                        descriptor: descriptor.as_ref().clone(),
                        sources: vec![image.repository().clone()],
                        targets: vec![BlobTarget {
                            repository: image.repository().clone(),
                            images: Vec::new(),
                            there: false,
                        }],
                        content: None,
                        mountable: BTreeSet::new(),
                    });
                    Ok(())
                }
                Some(Subject::Manifest { repository, digest, tag }) => {
                    match (fetch_manifest(source, &sink, repository, *digest).await, tag) {
                        // What a platform filter has made is in no registry.
                        (Err(error), Some(tag)) if error.is_not_found() => {
                            let tagged = repository.tagged(tag);
                            pull_tag(source, &sink, dir, &tagged, concurrency, observer).await
                        }
                        (fetched, _) => fetched,
                    }
                }
                Some(Subject::Tag(reference)) => {
                    pull_tag(source, &sink, dir, reference, concurrency, observer).await
                }
                Some(Subject::Map(repository)) => rebuild_map(source, dir, repository).await,
                None => Ok(()),
            };
            errors.extend(repaired.err());
        }
        let report = execute(source, &sink, blobs, concurrency, observer).await;
        errors.extend(report.failed_blobs);
        let now = dir.clone();
        let left = tokio::task::spawn_blocking(move || now.verify(false, &|_| {}))
            .await
            .map_err(|e| Error::new("images_dir", "verifying", std::io::Error::other(e)))??;
        for problem in &mut all {
            problem.repaired = problem.kind.is_harmful()
                && !left.problems.iter().any(|p| p.path == problem.path && p.kind.is_harmful());
        }
        for problem in left.problems {
            if !all.iter().any(|known| known.path == problem.path) {
                all.push(problem);
            }
        }
    }
    Ok((all, errors))
}

async fn fetch_manifest(
    source: &Arc<dyn Backend>,
    sink: &Arc<dyn Sink>,
    repository: &Repository,
    digest: Digest,
) -> Result<()> {
    let manifest = source.manifest(&repository.pinned(digest)).await?;
    sink.put(repository, &manifest, &ManifestName::Digest).await
}

/// Pulls a tag whose manifest is lost; of an index, the platforms that the tree still has.
async fn pull_tag(
    source: &Arc<dyn Backend>,
    sink: &Arc<dyn Sink>,
    dir: &ImagesDir,
    reference: &Reference,
    concurrency: usize,
    observer: &Arc<dyn Observer>,
) -> Result<()> {
    let manifest = source.manifest(reference).await?;
    let repository = reference.repository();
    let mut there = Vec::new();
    for child in manifest.children() {
        if dir.manifest(&repository.pinned(child.digest)).await.is_ok() {
            there.extend(child.platform.clone().filter(|p| !p.is_unknown()));
        }
    }
    let sparse = dir.sparse(&manifest.digest());
    let platforms = if let Some(platforms) = &sparse {
        PlatformFilter::parse(&[platforms]).unwrap_or_default()
    } else if there.is_empty() || there.len() == manifest.children().len() {
        PlatformFilter::All
    } else {
        PlatformFilter::Only(there)
    };
    let index = if sparse.is_some() { IndexMode::Keep } else { IndexMode::Rewrite };
    let options = Options { platforms, index, ..Options::default() };
    let plan = plan(source, sink, &[reference.clone().into()], &options).await;
    let report = execute(source, sink, plan, concurrency, observer).await;
    match report.images.into_iter().map(|image| image.status).next() {
        Some(Status::Failed(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Finds the tags of the manifests that a repository has, where its own map of them is damaged.
async fn rebuild_map(
    source: &Arc<dyn Backend>,
    dir: &ImagesDir,
    repository: &Repository,
) -> Result<()> {
    let here = dir.manifests_by_origin(repository);
    let mut map = BTreeMap::new();
    for tag in source.tags(repository).await?.names {
        let digest = source.head(&repository.tagged(&tag)).await?;
        if let Some(digest) = digest.and_then(|digest| here.get(&digest)) {
            map.insert(tag, *digest);
        }
    }
    dir.mend_map(repository, map).await
}
