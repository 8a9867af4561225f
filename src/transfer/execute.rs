//! Carrying out a plan.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::{
    blobs::{Traffic, move_blob},
    plan::{BlobPlan, ImagePlan, Plan},
    report::{Event, Observer, Report, Status},
};
use crate::{
    image::{Platform, View},
    tree::{Blobs, Error, Kind, Opened, Receiver, Result, Sink},
};

/// Blobs up to this size, in bytes, are bound by round trips and not by bandwidth. They have
/// places of their own, so that the end of a run is not a queue of configurations.
const SMALL_BLOB: u64 = 128 << 10;

/// How often to look whether another process is done with a blob.
const BUSY_POLL: Duration = Duration::from_millis(100);

/// What a blob's task has to say.
enum Outcome {
    /// It was there after all.
    Reused,
    /// It has been moved, this many bytes of it in this run.
    Fetched(u64),
}

/// Copies what `plan` says from `source` to `sink`, up to `concurrency` blobs from one registry at
/// a time, and tells `observer` about it.
pub async fn execute<S, D, O>(
    source: &Arc<S>,
    sink: &Arc<D>,
    plan: Plan,
    concurrency: usize,
    observer: &Arc<O>,
) -> Report
where
    S: Blobs,
    D: Sink,
    O: Observer,
{
    let mut run = Run::new(&plan);
    observer.event(Event::Planned {
        images: run.images.iter().filter(|image| image.is_open()).count(),
        blobs: plan.missing().count(),
        bytes: plan.missing_bytes(),
    });
    let Plan { images, blobs } = plan;
    let images: Vec<Arc<ImagePlan>> = images.into_iter().map(Arc::new).collect();
    let mut report = Report {
        images: images.iter().map(|image| image.report.clone()).collect(),
        ..Report::default()
    };
    for image in report.images.iter().filter(|image| !matches!(image.status, Status::Planned)) {
        observer.event(Event::ImageDone(image));
    }
    let places = Places::new(concurrency);
    let shared = Arc::new(Shared::default());
    let mut moving = JoinSet::new();
    let mut publishing = JoinSet::new();
    let blobs: Vec<Arc<BlobPlan>> = blobs.into_iter().map(Arc::new).collect();
    for (index, blob) in blobs.iter().enumerate() {
        if blob.there {
            report.reused_blobs += 1;
            report.reused_bytes += blob.descriptor.size;
            continue;
        }
        let place = places.of(blob);
        let (source, sink, blob) = (source.clone(), sink.clone(), blob.clone());
        let (observer, shared) = (observer.clone(), shared.clone());
        moving.spawn(async move {
            let size = blob.descriptor.size;
            let moved = receive(&source, &sink, &blob, &place, &shared, &observer).await;
            let ok = moved.is_ok();
            observer.event(Event::BlobDone { digest: blob.descriptor.digest, size, ok });
            (index, moved)
        });
    }
    let publish = |index: usize, publishing: &mut JoinSet<(usize, Result<Published>)>| {
        let (image, sink) = (images[index].clone(), sink.clone());
        publishing.spawn(async move { (index, publish_image(&sink, &image).await) });
    };
    for index in run.ready() {
        publish(index, &mut publishing);
    }
    loop {
        tokio::select! {
            Some(done) = moving.join_next() => match done {
                Ok((blob, Ok(outcome))) => {
                    let size = blobs[blob].descriptor.size;
                    match outcome {
                        Outcome::Reused => {
                            report.reused_blobs += 1;
                            report.reused_bytes += size;
                        }
                        Outcome::Fetched(bytes) => {
                            report.fetched_blobs += 1;
                            report.fetched_bytes += bytes;
                            report.reused_bytes += size - bytes;
                            run.touch(&blobs[blob].images);
                        }
                    }
                    for index in run.blob_came(&blobs[blob].images) {
                        publish(index, &mut publishing);
                    }
                }
                Ok((blob, Err(error))) => {
                    if blobs[blob].images.is_empty() {
                        report.failed_blobs.push(error.clone());
                    }
                    for index in run.blob_failed(&blobs[blob].images) {
                        report.images[index].status = Status::Failed(error.clone());
                        observer.event(Event::ImageDone(&report.images[index]));
                    }
                }
                Err(panic) => run.broken = Some(panic.to_string()),
            },
            Some(done) = publishing.join_next() => match done {
                Ok((index, result)) => {
                    run.images[index].state = State::Done;
                    let touched = run.images[index].touched;
                    report.images[index].status = match result {
                        Ok(published) => {
                            report.images[index].platforms.extend(published.platform);
                            match published.changed || touched {
                                true => Status::Copied,
                                false => Status::Unchanged,
                            }
                        }
                        Err(error) => Status::Failed(error),
                    };
                    observer.event(Event::ImageDone(&report.images[index]));
                }
                Err(panic) => run.broken = Some(panic.to_string()),
            },
            else => break,
        }
    }
    run.close(&mut report);
    report
}

/// What a single image runs on, as its configuration says, which is at the target now.
async fn known_platform<D: Sink>(sink: &D, image: &ImagePlan) -> Option<String> {
    if !image.report.platforms.is_empty() {
        return None;
    }
    let root = image.manifests.last()?;
    let View::Image { config, .. } = root.manifest.view() else { return None };
    let text = sink.content(&root.repository, config).await.ok()??;
    Platform::of_config(&text).map(|platform| platform.to_string())
}

/// How an image was published.
struct Published {
    /// Whether there was anything to do.
    changed: bool,
    /// What it runs on, if only its configuration says that.
    platform: Option<String>,
}

/// Publishes an image whose blobs are all there.
async fn publish_image<D: Sink>(sink: &Arc<D>, image: &ImagePlan) -> Result<Published> {
    // Before the tag: whoever finds the index must know what of it is wanted.
    for (index, platforms) in &image.sparse {
        sink.keep_sparse(*index, platforms).await?;
    }
    let mut changed = false;
    for planned in &image.manifests {
        for name in &planned.names {
            sink.put(&planned.repository, &planned.manifest, name).await?;
            changed = true;
        }
    }
    Ok(Published { changed, platform: known_platform(sink.as_ref(), image).await })
}

/// Brings one blob to the target.
async fn receive<S: Blobs, D: Sink, O: Observer>(
    source: &Arc<S>,
    sink: &Arc<D>,
    blob: &BlobPlan,
    place: &Arc<Semaphore>,
    shared: &Shared,
    observer: &Arc<O>,
) -> Result<Outcome> {
    let digest = blob.descriptor.digest;
    let Some(repository) = blob.sources.first() else {
        let doing = format!("fetching blob {digest}");
        return Err(Error::new("planning", doing, Kind::NotFound("no repository has it".into())));
    };
    let mut damaged_once = false;
    let mut waiting = false;
    let mut held = Some(take(place).await);
    loop {
        shared.full.check()?;
        let receiver = match sink.open(repository, &blob.descriptor).await? {
            Opened::Present => return Ok(Outcome::Reused),
            Opened::Busy => {
                if !waiting {
                    observer.event(Event::Waiting { digest });
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
            held = Some(take(place).await);
        }
        let (size, offset) = (blob.descriptor.size, receiver.offset());
        observer.event(Event::BlobStarted { digest, size, offset });
        match move_blob(source.as_ref(), blob, receiver, &shared.traffic, observer).await {
            Ok(moved) => return Ok(Outcome::Fetched(moved.fetched)),
            // What an earlier run has left may be worthless after a power cut, and a proxy may
            // damage something once; twice is no accident.
            Err(error) if matches!(error.kind(), Kind::Digest { .. }) && !damaged_once => {
                damaged_once = true;
                observer.event(Event::BlobRestarted { digest, bytes: size });
            }
            Err(error) => {
                shared.full.note(&error);
                return Err(error);
            }
        }
    }
}

async fn take(place: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // The semaphore is never closed.
    place.clone().acquire_owned().await.ok()
}

/// Places for blobs under way, for each registry: they are taken in the order of the plan.
struct Places {
    concurrency: usize,
    places: Mutex<HashMap<(String, bool), Arc<Semaphore>>>,
}

impl Places {
    fn new(concurrency: usize) -> Self {
        Self { concurrency: concurrency.max(1), places: Mutex::default() }
    }

    fn of(&self, blob: &BlobPlan) -> Arc<Semaphore> {
        let registry = blob.sources.first().map(|r| r.registry().to_owned()).unwrap_or_default();
        let small = blob.descriptor.size <= SMALL_BLOB;
        let number = if small { self.concurrency.div_ceil(2) } else { self.concurrency };
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry((registry, small));
        place.or_insert_with(|| Arc::new(Semaphore::new(number))).clone()
    }
}

/// What the tasks of a run have in common.
#[derive(Default)]
struct Shared {
    full: DiskFull,
    traffic: Traffic,
}

/// Remembers that the disk is full, so that what has not begun does not begin.
#[derive(Default)]
struct DiskFull(Mutex<Option<Error>>);

impl DiskFull {
    fn note(&self, error: &Error) {
        if error.is_no_space() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        }
    }

    fn check(&self) -> Result<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
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
        for index in plan.missing().flat_map(|blob| &blob.images) {
            images[*index].pending += 1;
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
