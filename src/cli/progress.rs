//! Progress of a transfer: bars on a terminal, JSON events, or nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use imgfs::{
    backend::{self, images_dir::ImagesDir},
    image::Digest,
    ops::{self, Project},
    transfer::{Event, Observer, Status},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::{
    output::{Output, bytes, count},
    words::{Verb, shown, status_name},
};

/// Smaller blobs are over before anybody could read their line.
const SHOWN_BLOB: u64 = 4 << 20;

/// Lines of blobs that are shown at a time.
const SHOWN_BLOBS: usize = 8;

/// Shows what an [`Observer`] is told.
pub(crate) struct Progress {
    output: Arc<Output>,
    /// The directory that is filled.
    dir: OnceLock<ImagesDir>,
    verb: Verb,
    total: ProgressBar,
    interactive: bool,
    blobs: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Progress {
    pub(crate) fn new(output: Arc<Output>, verb: Verb) -> Arc<Self> {
        let interactive = output.is_interactive();
        let total = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let (dir, blobs) = (OnceLock::new(), Mutex::default());
        Arc::new(Self { output, dir, verb, total, interactive, blobs })
    }

    /// Shows that images are looked up, to be copied into `dir` if that is a directory.
    pub(crate) fn begin(&self, dir: Option<&ImagesDir>) {
        if let Some(dir) = dir {
            // There is one only.
            let _ = self.dir.set(dir.clone());
        }
        if self.interactive {
            self.output.bars.add(self.total.clone());
            self.total.set_style(style("{spinner} looking up the images"));
            self.total.enable_steady_tick(Duration::from_millis(250));
        } else {
            self.output.bars.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Takes the bars away.
    pub(crate) fn finish(&self) {
        self.total.finish_and_clear();
        for (_, bar) in self.blobs().drain() {
            bar.finish_and_clear();
        }
    }

    fn blobs(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, ProgressBar>> {
        // At worst a bar is missing.
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn started(&self, digest: Digest, size: u64, offset: u64) {
        self.total.inc(offset);
        let mut blobs = self.blobs();
        if self.interactive && size >= SHOWN_BLOB && blobs.len() < SHOWN_BLOBS {
            let bar = self.output.bars.insert_before(&self.total, ProgressBar::new(size));
            bar.set_style(style("  {prefix} {wide_bar:.dim} {decimal_bytes:>10}/{decimal_total_bytes:<10} {decimal_bytes_per_sec:>12}"));
            bar.set_prefix(digest.short());
            bar.set_position(offset);
            blobs.insert(digest, bar);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .map(|style| style.progress_chars("=> "))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl ops::Observer for Progress {
    fn started(&self, target: Option<&ImagesDir>) {
        self.begin(target);
    }

    fn finishing(&self) {
        if self.interactive {
            self.total.set_style(style("{spinner} waiting for the disk"));
        }
    }

    fn project_created(&self, project: &Project) {
        let Project { registry, name } = project;
        self.output.line(&format!("{registry}: project {name} created"));
        self.output.event(&json!({"event": "project", "registry": registry, "project": name}));
    }

    fn project_failed(&self, error: &backend::Error) {
        self.output.error(&error.to_string(), error.hint());
    }
}

impl Observer for Progress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Planned { images, blobs, bytes: size } => {
                self.output.event(
                    &json!({"event": "planned", "images": images, "blobs": blobs, "bytes": size}),
                );
                if let Some(dir) = self.dir.get()
                    && let Some(free) = dir.free_bytes().filter(|&free| free < size)
                {
                    self.output.warning(&format!(
                        "{} are to be fetched, but only {} are free in {}",
                        bytes(size),
                        bytes(free),
                        dir.root().display()
                    ));
                }
                if self.interactive && blobs > 0 {
                    self.total.inc_length(size);
                    self.total.set_style(style("{msg} {wide_bar} {decimal_bytes:>10}/{decimal_total_bytes:<10} {decimal_bytes_per_sec:>12} {eta:>4}"));
                    self.total.set_message(count(blobs, "blob"));
                }
            }
            Event::BlobStarted { digest, size, offset } => self.started(digest, size, offset),
            Event::BlobProgress { digest, bytes } => {
                self.total.inc(bytes);
                if let Some(bar) = self.blobs().get(&digest) {
                    bar.inc(bytes);
                }
            }
            Event::BlobSetBack { digest, bytes } => {
                self.total.dec(bytes);
                if let Some(bar) = self.blobs().get(&digest) {
                    bar.dec(bytes);
                }
            }
            Event::BlobFound { size } => self.total.inc(size),
            Event::BlobRestarted { digest, bytes: size } => {
                self.total.dec(size);
                if let Some(bar) = self.blobs().remove(&digest) {
                    bar.finish_and_clear();
                }
                self.output.warning(&format!(
                    "what came of {digest} was damaged; it is fetched once more"
                ));
            }
            Event::BlobDone { digest, size, ok } => {
                if let Some(bar) = self.blobs().remove(&digest) {
                    bar.finish_and_clear();
                }
                let digest = digest.to_string();
                self.output
                    .event(&json!({"event": "blob", "digest": digest, "bytes": size, "ok": ok}));
            }
            Event::Waiting { digest } => {
                self.output.event(&json!({"event": "waiting", "digest": digest.to_string()}));
                self.output.line(&format!(
                    "{}: it is being fetched already; waiting for that",
                    digest.short()
                ));
            }
            Event::Awaiting { digest } => {
                self.output.event(&json!({"event": "waiting", "digest": digest.to_string()}));
                self.output.line(&format!(
                    "{}: another worker is to fetch it; waiting for that",
                    digest.short()
                ));
            }
            Event::ImageDone(image) => {
                let digest = image.digest.map(|digest| digest.to_string());
                let name = shown(&image.route);
                let status = status_name(self.verb, &image.status);
                let mut event = json!({"event": "image", "image": image.route.from.to_string(), "status": status, "digest": digest});
                if image.route.from != image.route.to {
                    event["target"] = image.route.to.to_string().into();
                }
                self.output.event(&event);
                match &image.status {
                    Status::Copied => {
                        self.output.line(&format!(
                            "{name}: {}, {}",
                            self.verb.done(),
                            bytes(image.bytes)
                        ));
                    }
                    Status::Unchanged => self.output.line(&format!("{name}: up to date")),
                    _ => {}
                }
            }
        }
    }
}
