//! Carrying out a plan.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::{
    content::SourceBlob,
    plan::{BlobPlan, BlobTarget, ImagePlan, Plan},
    publish::{Attempt, Published, publish},
    report::{Event, Observer, Report, Status},
};
use crate::{
    backend::{Backend, Error, Kind, Opened, Received, Result, Sink},
    util::locked,
};

/// Blobs up to this size, in bytes, are bound by round trips and not by bandwidth. They have
/// places of their own, so that the end of a run is not a queue of configurations.
const SMALL_BLOB: u64 = 128 << 10;

/// How often to look whether another process is done with a blob.
const BUSY_POLL: Duration = Duration::from_millis(100);

/// What a blob's task has to say.
#[derive(Clone, Copy)]
enum Outcome {
    /// It was there after all.
    Reused,
    /// Another repository of the registry had it.
    Mounted,
    /// It has been moved.
    Moved(Received),
}

/// Copies what `plan` says from `source` to `sink`, up to `concurrency` blobs between two
/// registries at a time, and tells `observer` about it.
pub async fn execute(
    source: &Arc<dyn Backend>,
    sink: &Arc<dyn Sink>,
    plan: Plan,
    concurrency: usize,
    observer: &Arc<dyn Observer>,
) -> Report {
    let run = Run::new(&plan);
    observer.event(Event::Planned {
        images: run.images.iter().filter(|image| image.is_open()).count(),
        blobs: plan.missing().count(),
        bytes: plan.missing_bytes(),
    });
    let Plan { images, blobs } = plan;
    let report = Report {
        images: images.iter().map(|image| image.report.clone()).collect(),
        ..Report::default()
    };
    for image in report.images.iter().filter(|image| !matches!(image.status, Status::Planned)) {
        observer.event(Event::ImageDone(image));
    }
    let mut execution = Execution {
        mover: Arc::new(Mover {
            source: source.clone(),
            sink: sink.clone(),
            observer: observer.clone(),
            places: Places::new(
                concurrency,
                source.capabilities().has_round_trips,
                sink.capabilities().has_round_trips,
            ),
            full: DiskFull::default(),
            blobs: blobs.into_iter().map(Arc::new).collect(),
        }),
        images: images.into_iter().map(Arc::new).collect(),
        run,
        report,
        moving: JoinSet::new(),
        publishing: JoinSet::new(),
    };
    execution.start();
    execution.finish().await
}

/// A blob on its way to one of its targets, both by their places in the plan.
#[derive(Clone, Copy)]
struct Leg {
    blob: usize,
    target: usize,
    /// The other targets wait for this one, to mount the blob from there.
    leads: bool,
}

/// An execution under way.
struct Execution {
    mover: Arc<Mover>,
    images: Vec<Arc<ImagePlan>>,
    run: Run,
    report: Report,
    moving: JoinSet<(Leg, std::result::Result<Outcome, Lost>)>,
    publishing: JoinSet<(usize, Result<Published>)>,
}

impl Execution {
    fn start(&mut self) {
        for index in 0..self.mover.blobs.len() {
            let blob = self.mover.blobs[index].clone();
            if blob.targets.iter().any(|target| target.there) {
                self.report.reused_blobs += 1;
                self.report.reused_bytes += blob.descriptor.size;
            }
            self.begin(index, 0);
        }
        for image in self.run.ready() {
            self.publish(image);
        }
    }

    /// Moves a blob to the first of its targets, from `target` on, that still needs it. The others
    /// wait, since it can be mounted from there.
    fn begin(&mut self, blob: usize, from: usize) {
        let targets = &self.mover.blobs[blob].targets;
        let next = (from..targets.len()).find(|&target| self.needs(&targets[target]));
        if let Some(target) = next {
            self.move_to(Leg { blob, target, leads: true });
        }
    }

    fn needs(&self, target: &BlobTarget) -> bool {
        let nobodys = target.images.is_empty();
        let open = target.images.iter().any(|&image| self.run.images[image].is_open());
        !target.there && (nobodys || open)
    }

    fn move_to(&mut self, leg: Leg) {
        let mover = self.mover.clone();
        self.moving.spawn(async move { (leg, mover.bring(leg).await) });
    }

    fn publish(&mut self, image: usize) {
        let (mover, plan) = (self.mover.clone(), self.images[image].clone());
        self.publishing.spawn(async move { (image, mover.publish(image, &plan).await) });
    }

    async fn finish(mut self) -> Report {
        loop {
            tokio::select! {
                Some(done) = self.moving.join_next() => match done {
                    Ok((leg, moved)) => self.moved(leg, moved),
                    Err(panic) => self.run.broken = Some(panic.to_string()),
                },
                Some(done) = self.publishing.join_next() => match done {
                    Ok((image, published)) => self.published(image, published),
                    Err(panic) => self.run.broken = Some(panic.to_string()),
                },
                else => break,
            }
        }
        self.run.close(&mut self.report);
        self.report
    }

    fn moved(&mut self, leg: Leg, moved: std::result::Result<Outcome, Lost>) {
        let blob = self.mover.blobs[leg.blob].clone();
        let target = &blob.targets[leg.target];
        match moved {
            Ok(outcome) => {
                self.count(&blob, outcome, leg);
                for image in self.run.blob_came(&target.images) {
                    self.publish(image);
                }
                for target in leg.target + 1..blob.targets.len() {
                    if leg.leads && self.needs(&blob.targets[target]) {
                        self.move_to(Leg { target, leads: false, ..leg });
                    }
                }
            }
            Err(Lost { error, source_failed }) => {
                // The others would fare no better with a source that fails.
                let lost = if leg.leads && source_failed {
                    blob.images().collect()
                } else {
                    target.images.clone()
                };
                if lost.is_empty() {
                    self.report.failed_blobs.push(error.clone());
                }
                for image in self.run.blob_failed(&lost) {
                    self.report.images[image].status = Status::Failed(error.clone());
                    self.mover.observer.event(Event::ImageDone(&self.report.images[image]));
                }
                if leg.leads && !source_failed {
                    self.begin(leg.blob, leg.target + 1);
                }
            }
        }
    }

    fn count(&mut self, blob: &BlobPlan, outcome: Outcome, leg: Leg) {
        let (size, target) = (blob.descriptor.size, &blob.targets[leg.target]);
        match outcome {
            Outcome::Reused if !leg.leads => {}
            Outcome::Reused => {
                self.report.reused_blobs += 1;
                self.report.reused_bytes += size;
            }
            Outcome::Mounted => {
                self.report.mounted_blobs += 1;
                self.run.touch(&target.images);
            }
            Outcome::Moved(Received { bytes, linked }) => {
                self.report.moved_blobs += 1;
                self.report.linked_blobs += usize::from(linked);
                self.report.moved_bytes += bytes;
                if !linked {
                    self.report.reused_bytes += size.saturating_sub(bytes);
                }
                self.run.touch(&target.images);
            }
        }
    }

    fn published(&mut self, image: usize, published: Result<Published>) {
        self.run.images[image].state = State::Done;
        let report = &mut self.report.images[image];
        report.status = match published {
            Ok(published) => {
                report.platforms.extend(published.platform);
                report.attached.retain(|name| !published.left_out.contains(name));
                report.losses.extend(published.losses);
                match published.changed || self.run.images[image].touched {
                    true => Status::Copied,
                    false => Status::Unchanged,
                }
            }
            Err(error) => Status::Failed(error),
        };
        self.mover.observer.event(Event::ImageDone(report));
    }
}

/// Why a blob did not come to a target.
struct Lost {
    error: Error,
    /// It failed because of the source.
    source_failed: bool,
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self { error, source_failed: false }
    }
}

/// What the tasks of an execution have in common.
struct Mover {
    source: Arc<dyn Backend>,
    sink: Arc<dyn Sink>,
    observer: Arc<dyn Observer>,
    places: Places,
    full: DiskFull,
    blobs: Vec<Arc<BlobPlan>>,
}

impl Mover {
    /// Brings a blob to one of its targets, and tells about it.
    async fn bring(&self, leg: Leg) -> std::result::Result<Outcome, Lost> {
        let blob = &self.blobs[leg.blob];
        let outcome = self.receive(blob, &blob.targets[leg.target]).await;
        let (digest, size) = (blob.descriptor.digest, blob.descriptor.size);
        if matches!(outcome, Ok(Outcome::Reused)) {
            self.observer.event(Event::BlobFound { size });
        }
        self.observer.event(Event::BlobDone { digest, size, ok: outcome.is_ok() });
        outcome
    }

    /// Brings one blob to one target.
    async fn receive(
        &self,
        blob: &Arc<BlobPlan>,
        target: &BlobTarget,
    ) -> std::result::Result<Outcome, Lost> {
        let digest = blob.descriptor.digest;
        let place = self.places.of(blob, target);
        let mut damaged_once = false;
        let mut waiting = false;
        let mut held = Some(take(&place).await);
        loop {
            self.full.check()?;
            let opened = self.sink.open(&target.repository, &blob.descriptor, &blob.sources);
            let receiver = match opened.await? {
                Opened::Present => return Ok(Outcome::Reused),
                Opened::Mounted => return Ok(Outcome::Mounted),
                opened @ (Opened::Busy | Opened::Awaited) => {
                    if !waiting {
                        self.observer.event(match opened {
                            Opened::Awaited => Event::Awaiting { digest },
                            _ => Event::Waiting { digest },
                        });
                        waiting = true;
                    }
                    // Somebody else's download must not keep us from our own.
                    held = None;
                    tokio::time::sleep(BUSY_POLL).await;
                    continue;
                }
                Opened::Receive(receiver) => receiver,
            };
            if held.is_none() {
                held = Some(take(&place).await);
            }
            let (size, offset) = (blob.descriptor.size, receiver.offset());
            self.observer.event(Event::BlobStarted { digest, size, offset });
            let content = Arc::new(SourceBlob::new(&self.source, blob, &self.observer));
            match receiver.receive(content.clone()).await {
                Ok(received) => return Ok(Outcome::Moved(received)),
                // What an earlier run has left may be worthless after a power cut, and a proxy may
                // damage something once; twice is no accident.
                Err(error)
                    if matches!(error.kind(), Kind::Digest { .. })
                        && !damaged_once
                        && !content.has_failed() =>
                {
                    damaged_once = true;
                    let bytes = offset + content.moved_bytes();
                    self.observer.event(Event::BlobRestarted { digest, bytes });
                }
                Err(error) => {
                    self.full.note(&error);
                    return Err(Lost { error, source_failed: content.has_failed() });
                }
            }
        }
    }

    /// Publishes an image whose blobs are all there.
    async fn publish(&self, index: usize, image: &ImagePlan) -> Result<Published> {
        match publish(self.sink.as_ref(), image, Attempt::First).await {
            // Some registries have said that they have a blob, or have mounted it, and have not.
            Err(error) if error.is_incomplete() => {
                let repository = image.report.route.to.repository();
                self.sink.forget_known(repository).await;
                for blob in &self.blobs {
                    let needs = |target: &&BlobTarget| target.images.contains(&index);
                    if let Some(target) = blob.targets.iter().find(needs) {
                        self.receive(blob, target).await.map_err(|lost| lost.error)?;
                    }
                }
                publish(self.sink.as_ref(), image, Attempt::Last).await
            }
            published => published,
        }
    }
}

async fn take(place: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // The semaphore is never closed.
    place.clone().acquire_owned().await.ok()
}

/// Places for blobs under way, for each pair of registries: they are taken in the order of the
/// plan.
struct Places {
    concurrency: usize,
    /// Whether the source is of registries; names in a directory are only names.
    source_is_remote: bool,
    places: Mutex<HashMap<(String, String, bool), Arc<Semaphore>>>,
}

impl Places {
    fn new(concurrency: usize, source_is_remote: bool, sink_is_remote: bool) -> Self {
        // From registry to registry a blob holds buffers of two connections.
        let concurrency = match source_is_remote && sink_is_remote {
            true => (concurrency * 3 / 4).max(1),
            false => concurrency.max(1),
        };
        Self { concurrency, source_is_remote, places: Mutex::default() }
    }

    fn of(&self, blob: &BlobPlan, target: &BlobTarget) -> Arc<Semaphore> {
        let source = blob.sources.first().filter(|_| self.source_is_remote);
        let source = source.map(|r| r.registry().to_owned()).unwrap_or_default();
        let target = target.repository.registry().to_owned();
        let small = blob.descriptor.size <= SMALL_BLOB;
        let number = if small { self.concurrency.div_ceil(2) } else { self.concurrency };
        let mut places = locked(&self.places);
        let place = places.entry((source, target, small));
        place.or_insert_with(|| Arc::new(Semaphore::new(number))).clone()
    }
}

/// Remembers that the disk is full, so that what has not begun does not begin.
#[derive(Default)]
struct DiskFull(Mutex<Option<Error>>);

impl DiskFull {
    fn note(&self, error: &Error) {
        if error.is_no_space() {
            *locked(&self.0) = Some(error.clone());
        }
    }

    fn check(&self) -> Result<()> {
        match &*locked(&self.0) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

/// Where each image stands.
struct Run {
    images: Vec<Progress>,
    /// A task has panicked.
    broken: Option<String>,
}

struct Progress {
    state: State,
    /// Blobs that have not come yet.
    pending: usize,
    /// Whether a blob of it has been moved.
    touched: bool,
}

#[derive(PartialEq, Eq)]
enum State {
    Waiting,
    Publishing,
    Done,
}

impl Progress {
    fn is_open(&self) -> bool {
        self.state == State::Waiting
    }
}

impl Run {
    fn new(plan: &Plan) -> Self {
        let mut images: Vec<Progress> = plan
            .images
            .iter()
            .map(|image| Progress {
                state: match image.report.status {
                    Status::Planned => State::Waiting,
                    _ => State::Done,
                },
                pending: 0,
                touched: false,
            })
            .collect();
        let targets = plan.blobs.iter().flat_map(|blob| &blob.targets);
        for &image in targets.filter(|target| !target.there).flat_map(|target| &target.images) {
            images[image].pending += 1;
        }
        Self { images, broken: None }
    }

    /// Images that have all their blobs; they are returned once.
    fn ready(&mut self) -> Vec<usize> {
        let complete = |image: &Progress| image.is_open() && image.pending == 0;
        let ready: Vec<usize> =
            (0..self.images.len()).filter(|&i| complete(&self.images[i])).collect();
        for &index in &ready {
            self.images[index].state = State::Publishing;
        }
        ready
    }

    fn touch(&mut self, images: &[usize]) {
        for &index in images {
            self.images[index].touched = true;
        }
    }

    fn blob_came(&mut self, images: &[usize]) -> Vec<usize> {
        let mut ready = Vec::new();
        for &index in images {
            let image = &mut self.images[index];
            image.pending -= 1;
            if image.is_open() && image.pending == 0 {
                image.state = State::Publishing;
                ready.push(index);
            }
        }
        ready
    }

    /// Images that fail for the lack of a blob, each the first time.
    fn blob_failed(&mut self, images: &[usize]) -> Vec<usize> {
        let mut failed = Vec::new();
        for &index in images {
            if self.images[index].is_open() {
                self.images[index].state = State::Done;
                failed.push(index);
            }
        }
        failed
    }

    /// Whatever is still open now has lost its task to a bug.
    fn close(self, report: &mut Report) {
        let reason = self.broken.unwrap_or_else(|| "its task ended without a result".to_owned());
        for (image, progress) in report.images.iter_mut().zip(&self.images) {
            if progress.state != State::Done {
                let error = std::io::Error::other(reason.clone());
                image.status = Status::Failed(Error::new("transfer", "copying", error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pending: &[usize]) -> Run {
        let images = pending.iter().map(|&pending| Progress {
            state: State::Waiting,
            pending,
            touched: false,
        });
        Run { images: images.collect(), broken: None }
    }

    #[test]
    fn an_image_is_published_with_its_last_blob() {
        let mut run = run(&[0, 2, 1]);
        assert_eq!(run.ready(), [0]);
        assert_eq!(run.ready(), [] as [usize; 0]);
        assert_eq!(run.blob_came(&[1, 2]), [2]);
        assert_eq!(run.blob_came(&[1]), [1]);
    }

    #[test]
    fn a_failure_is_told_once_and_spares_the_others() {
        let mut run = run(&[2, 1]);
        assert_eq!(run.blob_failed(&[0]), [0]);
        assert_eq!(run.blob_failed(&[0]), [] as [usize; 0]);
        assert_eq!(run.blob_came(&[1]), [1]);
    }
}
