//! Carrying out a transfer between two trees: progress, report and exit status are the same in
//! all directions.

use std::{sync::Arc, time::Instant};

use imgfs::{
    backend::{
        Backend, Sink,
        images_dir::ImagesDir,
        registry::{Registry, RegistrySink, Stats},
    },
    transfer::{self, ImageReport, Observer, Options, Plan, Report, Route, Status},
};
use serde_json::{Value, json};

use super::{
    Failure, Outcome, block_on,
    output::{Output, bytes, count},
    progress::Progress,
};

/// One side of a transfer.
pub(crate) enum Tree {
    Directory(ImagesDir),
    Registries(Arc<Registry>),
}

impl Tree {
    /// It as what is read from.
    fn source(&self) -> Arc<dyn Backend> {
        match self {
            Self::Directory(dir) => Arc::new(dir.clone()),
            Self::Registries(registry) => registry.clone(),
        }
    }

    /// It as what is written to.
    fn sink(&self) -> Arc<dyn Sink> {
        match self {
            Self::Directory(dir) => Arc::new(dir.clone()),
            Self::Registries(registry) => Arc::new(RegistrySink::new(registry.clone())),
        }
    }
}

/// What users call a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Pull,
    Push,
    Copy,
}

impl Verb {
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Copy => "copy",
        }
    }

    /// What has happened to an image.
    pub(crate) fn done(self) -> &'static str {
        match self {
            Self::Pull => "pulled",
            Self::Push => "pushed",
            Self::Copy => "copied",
        }
    }

    /// What happens to bytes: `... to fetch`, `... fetched`.
    fn moving(self) -> (&'static str, &'static str) {
        match self {
            Self::Pull => ("fetch", "fetched"),
            Self::Push => ("send", "sent"),
            Self::Copy => ("copy", "copied"),
        }
    }
}

/// A transfer to be carried out.
pub(crate) struct Job<'a> {
    pub(crate) verb: Verb,
    /// The task that it is a part of.
    pub(crate) task: Option<&'a str>,
    pub(crate) from: &'a Tree,
    pub(crate) to: &'a Tree,
    pub(crate) routes: &'a [Route],
    pub(crate) options: &'a Options,
    pub(crate) concurrency: usize,
    /// Say what would be done, and do nothing.
    pub(crate) dry_run: bool,
    pub(crate) output: &'a Arc<Output>,
}

impl Job<'_> {
    /// Does it, and tells how it went.
    pub(crate) fn run(&self) -> Result<Outcome, Failure> {
        let started = Instant::now();
        let (report, plan) = block_on(self.between(&self.from.source(), &self.to.sink()))?;
        self.tell_images(&report);
        let elapsed = started.elapsed();
        if plan.is_none() {
            self.tell_total(&report, elapsed);
        }
        let (moved_blobs, moved_bytes) = match self.verb {
            Verb::Pull => ("fetched_blobs", "fetched_bytes"),
            Verb::Push | Verb::Copy => ("moved_blobs", "moved_bytes"),
        };
        let images: Vec<Value> = report.images.iter().map(|image| self.image_json(image)).collect();
        let mut summary = json!({
            "event": report_event(self.task),
            "command": self.verb.command(),
            "images": images,
            moved_bytes: report.moved_bytes,
            moved_blobs: report.moved_blobs,
            "reused_bytes": report.reused_bytes,
            "reused_blobs": report.reused_blobs,
        });
        if let Some(task) = self.task {
            summary["task"] = task.into();
        }
        if self.verb != Verb::Pull {
            summary["mounted_blobs"] = report.mounted_blobs.into();
            summary["linked_blobs"] = report.linked_blobs.into();
            summary["sent_bytes"] = self.sum(Stats::sent_bytes).into();
        }
        summary["received_bytes"] = self.sum(Stats::received_bytes).into();
        summary["requests"] = self.sum(Stats::requests).into();
        summary["retries"] = self.sum(Stats::retries).into();
        summary["elapsed_ms"] = (elapsed.as_millis() as u64).into();
        if let Some((blobs, size)) = plan {
            summary["missing_blobs"] = blobs.into();
            summary["missing_bytes"] = size.into();
        }
        self.output.event(&summary);
        Ok(outcome(&report))
    }

    async fn between(
        &self,
        from: &Arc<dyn Backend>,
        to: &Arc<dyn Sink>,
    ) -> (Report, Option<(usize, u64)>) {
        if self.dry_run {
            let plan = transfer::plan(from, to, self.routes, self.options).await;
            return (self.tell_plan(&plan), Some((plan.missing().count(), plan.missing_bytes())));
        }
        let target = match self.to {
            Tree::Directory(dir) => Some(dir),
            Tree::Registries(_) => None,
        };
        let progress = Progress::new(self.output.clone(), target, self.verb);
        let observer: Arc<dyn Observer> = progress.clone();
        let copied =
            transfer::copy(from, to, self.routes, self.options, self.concurrency, &observer);
        let report = copied.await;
        progress.finish();
        (report, None)
    }

    /// Sums up what went over the wire on both sides; one registry may be both.
    fn sum(&self, of: fn(&Stats) -> u64) -> u64 {
        match (self.from, self.to) {
            (Tree::Registries(from), Tree::Registries(to)) if !Arc::ptr_eq(from, to) => {
                of(from.stats()) + of(to.stats())
            }
            (Tree::Registries(one), _) | (_, Tree::Registries(one)) => of(one.stats()),
            _ => 0,
        }
    }

    fn tell_plan(&self, plan: &Plan) -> Report {
        let there = |blob: &&transfer::BlobPlan| blob.moves() == 0;
        let report = Report {
            images: plan.images.iter().map(|image| image.report.clone()).collect(),
            reused_blobs: plan.blobs.iter().filter(there).count(),
            reused_bytes: plan.blobs.iter().filter(there).map(|b| b.descriptor.size).sum(),
            ..Report::default()
        };
        let (verb, _) = self.verb.moving();
        for (index, image) in plan.images.iter().enumerate() {
            if matches!(image.report.status, Status::Planned) {
                let own = plan.missing().filter(|blob| blob.images().any(|image| image == index));
                let size: u64 = own.map(|blob| blob.descriptor.size).sum();
                let digest = image.report.digest.map(|digest| digest.short()).unwrap_or_default();
                self.output.line(&format!(
                    "{}: {digest}, {} of {} to {verb}",
                    shown(&image.report.route),
                    bytes(size),
                    bytes(image.report.bytes)
                ));
            }
        }
        self.output.line(&format!(
            "{}: {} to {verb} in {} (each once), {} already there",
            count(plan.images.len(), "image"),
            bytes(plan.missing_bytes()),
            count(plan.missing().count(), "blob"),
            bytes(report.reused_bytes)
        ));
        report
    }

    /// What the user must know of single images: failures, skips, warnings, changed digests.
    fn tell_images(&self, report: &Report) {
        let output = self.output;
        for image in &report.images {
            let name = shown(&image.route);
            for warning in &image.warnings {
                output.warning(&format!("{name}: {warning}"));
            }
            match &image.status {
                Status::Failed(error) => output.error(&format!("{name}: {error}"), error.hint()),
                Status::Skipped => output.warning(&format!("{name}: skipped")),
                _ => {}
            }
            if let (Some(original), Some(digest)) = (image.original_digest, image.digest) {
                output.line(&format!(
                    "{name}: the platform filter has made a new index: {} is now {}",
                    original.short(),
                    digest.short()
                ));
            }
        }
    }

    fn tell_total(&self, report: &Report, elapsed: std::time::Duration) {
        let (_, moved) = self.verb.moving();
        let copied = report.moved_blobs - report.linked_blobs;
        let is_unchanged = |image: &&ImageReport| matches!(image.status, Status::Unchanged);
        let mut images = count(report.images.len(), "image");
        match report.images.iter().filter(is_unchanged).count() {
            0 => {}
            unchanged => images += &format!(" ({unchanged} up to date)"),
        }
        let mut line = format!(
            "{images}: {} {moved} in {}",
            bytes(report.moved_bytes),
            count(copied, "blob"),
        );
        if report.linked_blobs > 0 {
            line += &format!(", {} linked", count(report.linked_blobs, "blob"));
        }
        if report.mounted_blobs > 0 {
            line += &format!(", {} mounted", count(report.mounted_blobs, "blob"));
        }
        line += &format!(", {} already there", bytes(report.reused_bytes));
        if report.moved_bytes > 0 {
            let rate = report.moved_bytes as f64 / elapsed.as_secs_f64().max(0.001);
            line += &format!("; {:.1?}, {}/s", elapsed, bytes(rate as u64));
        }
        let failed = report.images.iter().filter(|i| matches!(i.status, Status::Failed(_))).count();
        if failed > 0 {
            line = format!("{failed} of {} failed; {line}", count(report.images.len(), "image"));
        }
        self.output.line(&line);
    }

    fn image_json(&self, image: &ImageReport) -> Value {
        let mut value = json!({
            "image": image.route.from.to_string(),
            "status": status_name(self.verb, &image.status),
            "digest": image.digest.map(|digest| digest.to_string()),
            "platforms": image.platforms,
            "bytes": image.bytes,
            "attached": image.attached,
            "warnings": image.warnings,
        });
        if self.verb != Verb::Pull {
            value["target"] = image.route.to.to_string().into();
        }
        if let Some(original) = image.original_digest {
            value["original_digest"] = original.to_string().into();
        }
        if let Status::Failed(error) = &image.status {
            value["error"] = error.to_string().into();
        }
        value
    }
}

/// What the last event of a transfer is called: the report, unless it is one of many tasks.
pub(crate) fn report_event(task: Option<&str>) -> &'static str {
    if task.is_some() { "transfer" } else { "report" }
}

/// `from`, or `from -> to` where the name changes.
pub(crate) fn shown(route: &Route) -> String {
    if route.from == route.to {
        route.from.to_string()
    } else {
        format!("{} -> {}", route.from, route.to)
    }
}

/// A status as JSON has it.
pub(crate) fn status_name(verb: Verb, status: &Status) -> &'static str {
    match status {
        Status::Planned => "planned",
        Status::Copied => verb.done(),
        Status::Unchanged => "unchanged",
        Status::Skipped => "skipped",
        Status::Failed(_) => "failed",
    }
}

fn outcome(report: &Report) -> Outcome {
    let is = |wanted: fn(&Status) -> bool| move |image: &ImageReport| wanted(&image.status);
    if report.images.iter().any(is(|status| matches!(status, Status::Failed(_)))) {
        Outcome::SomeFailed
    } else if report.images.iter().all(is(|status| matches!(status, Status::Skipped))) {
        Outcome::NothingMatched
    } else {
        Outcome::Done
    }
}
