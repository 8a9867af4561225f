//! Planning and executing together: what has been planned starts, and does not wait for a registry
//! that takes its time with the names of other images.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{
    Options,
    attach::TagLists,
    execute::execute,
    plan::{Draft, planning, unique},
    report::{ImageReport, Observer, Report},
};
use crate::{
    image::Reference,
    tree::{Attachments, Blobs, Names, Sink},
};

/// How long planned images wait for others. Most runs are planned by then, and have one plan in
/// which all their blobs are in order.
const PATIENCE: Duration = Duration::from_secs(2);

/// Copies `images` from `source` to the same names at `sink`, up to `concurrency` blobs from one
/// registry at a time, and tells `observer` about it.
pub async fn copy<S, D, O>(
    source: &Arc<S>,
    sink: &Arc<D>,
    images: &[Reference],
    options: &Options,
    concurrency: usize,
    observer: &Arc<O>,
) -> Report
where
    S: Names + Blobs + Attachments,
    D: Sink,
    O: Observer,
{
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
                    draft.add(place, image);
                    false
                }
                None => {
                    planning_is_over = true;
                    true
                }
            },
            _ = patience.tick(), if !planning_is_over => true,
            Some(done) = running.next(), if !running.is_empty() => {
                let (places, report): (Vec<usize>, Report) = done;
                total.take(&places, report, &mut reports);
                false
            }
        };
        if start && !draft.is_empty() {
            let draft = std::mem::take(&mut draft);
            running.push(async move {
                let (places, plan) = draft.finish(sink).await;
                (places, execute(source, sink, plan, concurrency, observer).await)
            });
        }
    }
    total.images = reports.into_iter().flatten().collect();
    total
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
        self.fetched_blobs += part.fetched_blobs;
        self.fetched_bytes += part.fetched_bytes;
        self.reused_blobs += part.reused_blobs;
        self.reused_bytes += part.reused_bytes;
        self.failed_blobs.extend(part.failed_blobs);
    }
}
