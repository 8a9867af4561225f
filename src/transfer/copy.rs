//! Planning and executing together: what has been planned starts, and does not wait for a registry
//! that takes its time with the names of other images.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{
    Options, Route,
    attach::TagLists,
    execute::execute,
    plan::{Draft, ImagePlan, Plan, planning, unique},
    report::{ImageReport, Observer, Report, Status},
};
use crate::{
    backend::{Backend, Error, Sink},
    image::Repository,
};

/// How long planned images wait for others. Most runs are planned by then, and have one plan in
/// which all their blobs are in order.
const PATIENCE: Duration = Duration::from_secs(2);

/// Repositories that are checked at the same time.
const CHECKS_AT_ONCE: usize = 24;

/// Copies `images` from `source` to `sink`, up to `concurrency` blobs between two registries at a
/// time, and tells `observer` about it.
///
/// Before the first byte goes to a registry, all images are planned, and all repositories that
/// would be written to are asked whether they can be.
pub async fn copy(
    source: &Arc<dyn Backend>,
    sink: &Arc<dyn Sink>,
    images: &[Route],
    options: &Options,
    concurrency: usize,
    observer: &Arc<dyn Observer>,
) -> Report {
    let images = unique(images);
    let lists = TagLists::default();
    let mut planned = planning(source, sink, &lists, &images, options);
    let mut planning_is_over = false;
    let mut draft = Draft::default();
    let mut running = FuturesUnordered::new();
    let mut patience = ticks(PATIENCE);
    let mut reports: Vec<Option<ImageReport>> = vec![None; images.len()];
    let mut total = Report::default();
    while !planning_is_over || !running.is_empty() {
        let start = tokio::select! {
            next = planned.next(), if !planning_is_over => match next {
                Some((place, image)) => {
                    draft.add(sink.as_ref(), place, image);
                    false
                }
                None => {
                    planning_is_over = true;
                    true
                }
            },
            _ = patience.tick(), if !planning_is_over && !sink.capabilities().has_round_trips => true,
            Some(done) = running.next(), if !running.is_empty() => {
                let (places, report): (Vec<usize>, Report) = done;
                total.take(&places, report, &mut reports);
                false
            }
        };
        if start && !draft.is_empty() {
            let draft = std::mem::take(&mut draft);
            running.push(async move {
                let (places, mut plan) = draft.finish(sink).await;
                check_targets(sink, &mut plan).await;
                (places, execute(source, sink, plan, concurrency, observer).await)
            });
        }
    }
    sink.close().await;
    total.images = reports.into_iter().flatten().collect();
    total
}

/// Fails the images whose repositories cannot be written to.
async fn check_targets(sink: &Arc<dyn Sink>, plan: &mut Plan) {
    let writes = |image: &ImagePlan| {
        let is_open = matches!(image.report.status, Status::Planned);
        is_open && image.manifests.iter().any(|manifest| !manifest.names.is_empty())
    };
    let mut repositories: BTreeMap<Repository, Option<Error>> = BTreeMap::new();
    for image in plan.images.iter().filter(|image| writes(image)) {
        repositories.insert(image.report.route.to.repository().clone(), None);
    }
    let asked = repositories.keys().cloned().map(|repository| async move {
        let error = sink.prepare(&repository).await.err();
        (repository, error)
    });
    let checked: Vec<_> = stream::iter(asked).buffer_unordered(CHECKS_AT_ONCE).collect().await;
    repositories.extend(checked);
    for image in &mut plan.images {
        let error = repositories.get(image.report.route.to.repository()).cloned().flatten();
        if let Some(error) = error.filter(|_| writes(image)) {
            image.report.status = Status::Failed(error);
        }
    }
}

/// Ticks of which the first comes after `period`.
fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.reset();
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl Report {
    /// Adds up the report of a part; `places` say where its images belong.
    fn take(&mut self, places: &[usize], part: Self, images: &mut [Option<ImageReport>]) {
        for (&place, image) in places.iter().zip(part.images) {
            images[place] = Some(image);
        }
        self.moved_blobs += part.moved_blobs;
        self.moved_bytes += part.moved_bytes;
        self.linked_blobs += part.linked_blobs;
        self.mounted_blobs += part.mounted_blobs;
        self.reused_blobs += part.reused_blobs;
        self.reused_bytes += part.reused_bytes;
        self.failed_blobs.extend(part.failed_blobs);
    }
}
