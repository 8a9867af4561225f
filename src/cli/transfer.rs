//! Reporting a transfer: text, JSON and exit status are the same in all directions.

use std::sync::Arc;

use imgfs::{
    ops::{Ending, IndexedLayers, NothingToDo, TransferReport},
    transfer::{ImageReport, Plan, Report, Status},
};
use serde_json::{Value, json};

use super::{
    output::{Output, bytes, count},
    words::{Verb, report_event, shown, status_name},
};

/// Who reports a transfer.
pub(crate) struct Teller<'a> {
    pub(crate) verb: Verb,
    /// The task that it is a part of.
    pub(crate) task: Option<&'a str>,
    pub(crate) output: &'a Arc<Output>,
}

impl Teller<'_> {
    /// Reports how it went.
    pub(crate) fn tell(&self, transfer: &TransferReport) -> Ending {
        for notice in &transfer.notices {
            self.output.warning(notice);
        }
        for problem in &transfer.left_out {
            self.output.warning(&format!("left out: {}: {}", problem.path, problem.found));
        }
        if let Some(nothing) = transfer.nothing {
            self.tell_nothing(nothing);
            return if transfer.left_out.is_empty() { Ending::Nothing } else { transfer.ending() };
        }
        let report = &transfer.report;
        if let Some(plan) = &transfer.plan {
            self.tell_plan(plan, report);
        }
        self.tell_images(report);
        if transfer.plan.is_none() {
            self.tell_total(report, transfer.left_out.len(), transfer.elapsed);
        }
        if let Some(indexed) = &transfer.indexed {
            self.tell_indexed(indexed);
        }
        self.output.event(&self.json(transfer));
        if let Some(error) = &transfer.unflushed {
            self.output.error(&error.to_string(), error.hint());
        }
        for warning in transfer.warnings.iter().chain(&transfer.unnameable) {
            self.output.warning(&warning.to_string());
        }
        transfer.ending()
    }

    fn tell_nothing(&self, nothing: NothingToDo) {
        self.output.warning(match nothing {
            NothingToDo::NoMatch => "no image matches the pattern: nothing to do",
            NothingToDo::NoneNamed => "no image is named: nothing to do",
            NothingToDo::EmptySource => "there is no image in the source: nothing to do",
        });
        let (event, command) = (report_event(self.task), self.verb.command());
        self.output.event(&json!({"event": event, "command": command, "images": []}));
    }

    fn json(&self, transfer: &TransferReport) -> Value {
        let (report, traffic) = (&transfer.report, &transfer.traffic);
        let (moved_blobs, moved_bytes) = match self.verb {
            Verb::Pull => ("fetched_blobs", "fetched_bytes"),
            Verb::Push | Verb::Copy | Verb::Tag => ("moved_blobs", "moved_bytes"),
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
            summary["sent_bytes"] = traffic.sent_bytes.into();
        }
        summary["received_bytes"] = traffic.received_bytes.into();
        summary["requests"] = traffic.requests.into();
        summary["retries"] = traffic.retries.into();
        summary["elapsed_ms"] = (transfer.elapsed.as_millis() as u64).into();
        let left_out = &transfer.left_out;
        if !left_out.is_empty() {
            summary["left_out"] = left_out.iter().map(|problem| problem.path.as_str()).collect();
        }
        if let Some(indexed) = &transfer.indexed {
            let failed: Vec<String> = indexed.failed.iter().map(ToString::to_string).collect();
            summary["indexed_layers"] = json!({
                "passed": indexed.passed,
                "read": indexed.read,
                "known": indexed.known,
                "failed": failed,
            });
        }
        if let Some(plan) = &transfer.plan {
            summary["missing_blobs"] = plan.missing().count().into();
            summary["missing_bytes"] = plan.missing_bytes().into();
        }
        summary
    }

    fn tell_plan(&self, plan: &Plan, report: &Report) {
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
    }

    /// What the user must know of single images: failures, skips, warnings, changed digests.
    fn tell_images(&self, report: &Report) {
        let output = self.output;
        for image in &report.images {
            let name = shown(&image.route);
            for warning in image.warnings.iter().chain(&image.losses) {
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

    fn tell_total(&self, report: &Report, left_out: usize, elapsed: std::time::Duration) {
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
        let is_incomplete = |image: &&ImageReport| {
            !image.losses.is_empty() && !matches!(image.status, Status::Failed(_))
        };
        let incomplete = report.images.iter().filter(is_incomplete).count();
        let troubles = [(failed, "failed"), (incomplete, "incomplete")];
        for (number, trouble) in troubles.into_iter().rev().filter(|(number, _)| *number > 0) {
            line = format!("{number} of {} {trouble}; {line}", count(report.images.len(), "image"));
        }
        if left_out > 0 {
            line += &format!("; {left_out} left out");
        }
        self.output.line(&line);
    }

    fn tell_indexed(&self, indexed: &IndexedLayers) {
        let made = indexed.passed + indexed.read;
        let mut line = format!("{} indexed", count(made, "layer"));
        if indexed.read > 0 {
            line += &format!(", {} of them from the disk", indexed.read);
        }
        line += &format!("; {} had been before", indexed.known);
        self.output.line(&line);
        for error in &indexed.failed {
            self.output.error(&error.to_string(), error.hint());
        }
    }

    fn image_json(&self, image: &ImageReport) -> Value {
        let mut value = json!({
            "image": image.route.from.to_string(),
            "status": status_name(self.verb, &image.status),
            "digest": image.digest.map(|digest| digest.to_string()),
            "platforms": image.platforms,
            "bytes": image.bytes,
            "attached": image.attached,
            "warnings": image.warnings.iter().chain(&image.losses).collect::<Vec<_>>(),
            "losses": image.losses,
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
