//! `imgfs pull`

use std::{
    fs,
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::Instant,
};

use imgfs::{
    image::{PlatformFilter, Reference},
    transfer::{self, ImageReport, IndexMode, Options, Plan, Policy, Report, Status},
    tree::{
        images_dir::{ImagesDir, Layout},
        registry::Registry,
    },
};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::{IndexArg, LayoutArg, PolicyArg, PullArgs},
    block_on,
    output::{Output, bytes, count},
    progress::{Progress, status_name},
    registries,
};

pub(crate) fn run(args: &PullArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let started = Instant::now();
    let images = images(args)?;
    if images.is_empty() {
        output.warning("no image is named: nothing to do");
        output.event(&json!({"event": "report", "command": "pull", "images": []}));
        return Ok(Outcome::NothingMatched);
    }
    let options = options(args)?;
    let mut config = registries::config(&args.registries, &images, output)?;
    let dir = open(args)?;
    config.without_referrers = dir.registries_without_referrers();
    let concurrency = config.concurrency;
    let known_without = config.without_referrers.clone();
    let registry = Arc::new(Registry::new(config));
    let sink = Arc::new(dir.clone());

    let (report, missing) = block_on(async {
        if args.dry_run {
            let plan = transfer::plan(&registry, &sink, &images, &options).await;
            return (dry_run(&plan, output), Some((plan.missing().count(), plan.missing_bytes())));
        }
        let progress = Progress::new(output.clone(), &dir);
        let copied = transfer::copy(&registry, &sink, &images, &options, concurrency, &progress);
        let report = copied.await;
        progress.finish();
        (report, None)
    })?;
    if !args.dry_run {
        for name in registry.without_referrers() {
            if !known_without.contains(&name) {
                // At worst it is asked once more the next time.
                if let Err(error) = dir.note_without_referrers(&name) {
                    output.warning(&error.to_string());
                }
            }
        }
    }

    tell_images(&report, output);
    let stats = registry.stats();
    let elapsed = started.elapsed();
    let mut summary = json!({
        "event": "report",
        "command": "pull",
        "images": report.images.iter().map(image_json).collect::<Vec<_>>(),
        "fetched_bytes": report.fetched_bytes,
        "fetched_blobs": report.fetched_blobs,
        "reused_blobs": report.reused_blobs,
        "reused_bytes": report.reused_bytes,
        "received_bytes": stats.received_bytes(),
        "requests": stats.requests(),
        "retries": stats.retries(),
        "elapsed_ms": elapsed.as_millis() as u64,
    });
    if let Some((blobs, size)) = missing {
        summary["missing_blobs"] = blobs.into();
        summary["missing_bytes"] = size.into();
    } else {
        let rate = report.fetched_bytes as f64 / elapsed.as_secs_f64().max(0.001);
        let mut line = format!(
            "{}: {} fetched in {}, {} already there",
            count(report.images.len(), "image"),
            bytes(report.fetched_bytes),
            count(report.fetched_blobs, "blob"),
            bytes(report.reused_bytes),
        );
        if report.fetched_bytes > 0 {
            line += &format!("; {:.1?}, {}/s", elapsed, bytes(rate as u64));
        }
        let failed = report.images.iter().filter(|i| matches!(i.status, Status::Failed(_))).count();
        if failed > 0 {
            line = format!("{failed} of {} failed; {line}", count(report.images.len(), "image"));
        }
        output.line(&line);
    }
    output.event(&summary);
    Ok(outcome(&report))
}

/// The images on the command line and in `--file`.
fn images(args: &PullArgs) -> Result<Vec<Reference>, Failure> {
    let mut images = Vec::new();
    for text in &args.images {
        if matches!(text.as_str(), "true" | "false") {
            let message = format!("`{text}` is hardly an image; write --referrers={text}");
            return Err(Failure::new(message));
        }
        images.push(text.parse().map_err(|e| Failure::new(format!("{e}")))?);
    }
    let Some(path) = &args.file else { return Ok(images) };
    let failed = |e: io::Error| Failure::new(format!("--file {}: {e}", path.display()));
    let text = if path == Path::new("-") {
        if args.registries.password_stdin {
            return Err(Failure::new("--file - and --password-stdin both want standard input"));
        }
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(failed)?;
        text
    } else {
        fs::read_to_string(path).map_err(failed)?
    };
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            let parsed = line.parse();
            images.push(parsed.map_err(|e| {
                Failure::new(format!("--file {}, line {}: {e}", path.display(), number + 1))
            })?);
        }
    }
    Ok(images)
}

fn options(args: &PullArgs) -> Result<Options, Failure> {
    let platforms = PlatformFilter::parse(&args.platform)
        .map_err(|e| Failure::new(format!("--platform: {e}")))?;
    Ok(Options {
        platforms,
        policy: match args.policy {
            PolicyArg::Strict => Policy::Strict,
            PolicyArg::Warn => Policy::Warn,
        },
        index: match args.index {
            IndexArg::Rewrite => IndexMode::Rewrite,
            IndexArg::Keep => IndexMode::Keep,
        },
        attachments: args.referrers,
    })
}

/// Opens the directory; a dry run creates none.
fn open(args: &PullArgs) -> Result<ImagesDir, Failure> {
    let root = &args.tree.images_dir;
    let layout = args.layout.map(|layout| match layout {
        LayoutArg::Documented => Layout::Documented,
        LayoutArg::Kubekey => Layout::Kubekey,
        LayoutArg::Kubekey403 => Layout::Kubekey403,
    });
    if args.dry_run && root.exists() {
        return Ok(ImagesDir::open(root)?);
    }
    if args.dry_run {
        return Ok(ImagesDir::absent(root));
    }
    Ok(ImagesDir::create(root, layout)?)
}

fn dry_run(plan: &Plan, output: &Output) -> Report {
    let report = Report {
        images: plan.images.iter().map(|image| image.report.clone()).collect(),
        reused_blobs: plan.blobs.iter().filter(|blob| blob.there).count(),
        reused_bytes: plan.blobs.iter().filter(|b| b.there).map(|b| b.descriptor.size).sum(),
        ..Report::default()
    };
    for (index, image) in plan.images.iter().enumerate() {
        if matches!(image.report.status, Status::Planned) {
            let own = plan.missing().filter(|blob| blob.images.contains(&index));
            let size: u64 = own.map(|blob| blob.descriptor.size).sum();
            let digest = image.report.digest.map(|digest| digest.short()).unwrap_or_default();
            output.line(&format!(
                "{}: {digest}, {} of {} to fetch",
                image.report.reference,
                bytes(size),
                bytes(image.report.bytes)
            ));
        }
    }
    output.line(&format!(
        "{}: {} to fetch in {} (each once), {} already there",
        count(plan.images.len(), "image"),
        bytes(plan.missing_bytes()),
        count(plan.missing().count(), "blob"),
        bytes(report.reused_bytes)
    ));
    report
}

/// What the user must know of single images: failures, skips, warnings, changed digests.
fn tell_images(report: &Report, output: &Output) {
    for image in &report.images {
        let name = &image.reference;
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

fn image_json(image: &ImageReport) -> Value {
    let mut value = json!({
        "image": image.reference.to_string(),
        "status": status_name(&image.status),
        "digest": image.digest.map(|digest| digest.to_string()),
        "platforms": image.platforms,
        "bytes": image.bytes,
        "attached": image.attached,
        "warnings": image.warnings,
    });
    if let Some(original) = image.original_digest {
        value["original_digest"] = original.to_string().into();
    }
    if let Status::Failed(error) = &image.status {
        value["error"] = error.to_string().into();
    }
    value
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
