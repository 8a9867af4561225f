//! `imgfs ls`, `imgfs verify` and `imgfs prune`

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use imgfs::{
    backend::{
        Backend,
        images_dir::{
            ImageEntry, ImagesDir, Inventory, Linking, Problem, ProblemKind, Subject, Verified,
        },
        registry::Registry,
    },
    image::Reference,
    transfer::{self, Observer},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::{LsArgs, PruneArgs, VerifyArgs},
    block_on, inside,
    output::{Output, bytes, count, table},
    progress::Progress,
    registries,
    transfer::Verb,
};

/// Files that nobody needs are listed up to this number.
const SHOWN_STRAYS: usize = 20;

pub(crate) fn ls(args: &LsArgs, output: &Output) -> Result<Outcome, Failure> {
    if let Some(place) = args.pattern.as_deref().and_then(inside::split) {
        return inside::ls(args, place, output);
    }
    if args.recursive || args.inside.offline || args.inside.platform.is_some() {
        let message = "--recursive, --platform and --offline are for IMAGE:/PATH";
        return Err(Failure::new(message).hint("for instance: imgfs ls nginx:1.25:/etc"));
    }
    let dir = ImagesDir::open(&args.tree.images_dir)?;
    let inventory = dir.inventory()?;
    for problem in inventory.problems.iter().filter(|problem| problem.kind.is_harmful()) {
        output.warning(&describe(problem));
    }
    let shown: Vec<&ImageEntry> = inventory
        .images
        .iter()
        .filter(|image| args.all || output.json || !image.is_attachment)
        .filter(|image| {
            let name = image.reference.to_string();
            args.pattern.as_ref().is_none_or(|pattern| name.contains(pattern.as_str()))
        })
        .collect();
    let unreadable: Vec<&String> = inventory
        .problems
        .iter()
        .filter(|problem| match &problem.subject {
            Some(Subject::Tag(_)) => true,
            Some(Subject::Manifest { tag, .. }) => tag.is_some(),
            _ => false,
        })
        .flat_map(|problem| &problem.images)
        .filter(|name| args.pattern.as_ref().is_none_or(|p| name.contains(p.as_str())))
        .collect();
    let mut images: Vec<Value> = shown.iter().map(|image| image_json(image, &inventory)).collect();
    images.extend(unreadable.iter().map(|name| {
        json!({"image": name, "digest": null, "platforms": [], "complete": false, "missing": []})
    }));
    output.event(&json!({"event": "report", "command": "ls", "images": images}));
    if shown.is_empty() && unreadable.is_empty() {
        let what = match &args.pattern {
            Some(pattern) => format!("no image in {} matches `{pattern}`", dir.root().display()),
            None => format!("no images in {}", dir.root().display()),
        };
        output.warning(&what);
        return Ok(Outcome::NothingMatched);
    }
    let heading = ["REFERENCE", "DIGEST", "PLATFORMS", "SIZE", "SHARED", "STATE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(shown.iter().map(|image| row(image, &inventory)));
    rows.extend(unreadable.iter().map(|name| {
        vec![(*name).clone(), "-".into(), "-".into(), "-".into(), "-".into(), "unreadable".into()]
    }));
    output.line(&table(&rows));
    let incomplete = !unreadable.is_empty() || shown.iter().any(|image| !image.missing.is_empty());
    Ok(if incomplete { Outcome::SomeFailed } else { Outcome::Done })
}

fn row(image: &ImageEntry, inventory: &Inventory) -> Vec<String> {
    let lacking: u64 = image.missing.iter().map(|missing| missing.bytes).sum();
    let state = match image.missing.len() {
        0 => "complete".to_owned(),
        _ => {
            let manifests = image.missing.iter().filter(|missing| missing.is_manifest).count();
            let blobs = image.missing.len() - manifests;
            let mut what = Vec::new();
            what.extend((blobs > 0).then(|| count(blobs, "blob")));
            what.extend((manifests > 0).then(|| count(manifests, "manifest")));
            format!("lacks {} ({})", what.join(" and "), bytes(lacking))
        }
    };
    let platforms = match image.platforms.len() {
        0 => "-".to_owned(),
        _ => image.platforms.join(","),
    };
    vec![
        image.reference.to_string(),
        image.digest.short(),
        platforms,
        bytes(image.bytes()),
        bytes(inventory.shared_bytes(image)),
        state,
    ]
}

fn image_json(image: &ImageEntry, inventory: &Inventory) -> Value {
    json!({
        "image": image.reference.to_string(),
        "digest": image.digest.to_string(),
        "media_type": image.media_type,
        "platforms": image.platforms,
        "bytes": image.bytes(),
        "shared_bytes": inventory.shared_bytes(image),
        "complete": image.missing.is_empty(),
        "missing": image.missing.iter().map(|m| m.digest.to_string()).collect::<Vec<_>>(),
        "attachment": image.is_attachment,
    })
}

pub(crate) fn verify(args: &VerifyArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let started = Instant::now();
    let root = &args.tree.images_dir;
    let dir = ImagesDir::open(root)?;
    let mut verified = hash(&dir, args.full, output)?;
    if verified.images == 0
        && verified.checked_blobs == 0
        && verified.problems.iter().all(|p| !p.kind.is_harmful())
    {
        output.warning(&format!("no images in {}", dir.root().display()));
        output.event(&json!({"event": "report", "command": "verify", "problems": [], "images": 0}));
        return Ok(Outcome::NothingMatched);
    }
    if args.repair && verified.problems.iter().any(|problem| problem.kind.is_harmful()) {
        verified.problems = repair(args, verified.problems, output)?;
        verified.images = dir.inventory()?.images.len();
    }
    let (problems, strays): (Vec<&Problem>, Vec<&Problem>) =
        verified.problems.iter().partition(|problem| problem.kind.is_harmful());
    for problem in &problems {
        match problem.repaired {
            true => output.line(&format!("repaired: {}", describe(problem))),
            false => output.error(&describe(problem), None),
        }
    }
    for stray in strays.iter().take(SHOWN_STRAYS) {
        output.line(&format!("stray: {}: no image needs this file", stray.path));
    }
    if strays.len() > SHOWN_STRAYS {
        output.line(&format!("stray: and {} more", count(strays.len() - SHOWN_STRAYS, "file")));
    }
    let left = problems.iter().filter(|problem| !problem.repaired).count();
    if left > 0 && !args.repair {
        output.error(
            &format!("{} found", count(left, "problem")),
            Some("`imgfs verify --repair` fetches again what is broken"),
        );
    }
    output.line(&format!(
        "{}, {} with {}: {}; {} hashed in {:.1?}",
        count(verified.images, "image"),
        count(verified.checked_blobs, "blob"),
        bytes(verified.checked_bytes),
        if left == 0 { "all whole".to_owned() } else { count(left, "problem") },
        bytes(verified.hashed_bytes),
        started.elapsed(),
    ));
    output.event(&json!({
        "event": "report",
        "command": "verify",
        "problems": verified.problems.iter().map(problem_json).collect::<Vec<_>>(),
        "images": verified.images,
        "checked_blobs": verified.checked_blobs,
        "checked_bytes": verified.checked_bytes,
        "hashed_bytes": verified.hashed_bytes,
        "elapsed_ms": started.elapsed().as_millis() as u64,
    }));
    Ok(if left == 0 { Outcome::Done } else { Outcome::SomeFailed })
}

/// Verifies with a bar that counts what is hashed.
fn hash(dir: &ImagesDir, full: bool, output: &Output) -> Result<Verified, Failure> {
    let done = AtomicU64::new(0);
    let bar = match output.is_interactive() {
        true => output.bars.add(ProgressBar::new_spinner()),
        false => ProgressBar::hidden(),
    };
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} hashed {decimal_bytes} at {decimal_bytes_per_sec}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    let verified = dir.verify(full, &|step| {
        bar.set_position(done.fetch_add(step, Ordering::Relaxed) + step);
    });
    bar.finish_and_clear();
    Ok(verified?)
}

/// Fetches again what is broken.
fn repair(
    args: &VerifyArgs,
    problems: Vec<Problem>,
    output: &Arc<Output>,
) -> Result<Vec<Problem>, Failure> {
    let dir = ImagesDir::create(&args.tree.images_dir, None, Linking::Auto)?;
    let images = problems.iter().flat_map(|problem| &problem.images);
    let images = images.filter_map(|image| image.parse::<Reference>().ok());
    let names: BTreeSet<String> =
        images.map(|image| image.repository().registry().to_owned()).collect();
    let names: Vec<String> = names.into_iter().collect();
    let config = registries::config(&args.registries, &names, output)?;
    let concurrency = config.concurrency;
    let registry: Arc<dyn Backend> = Arc::new(Registry::new(config));
    let progress = Progress::new(output.clone(), Some(&dir), Verb::Pull);
    let observer: Arc<dyn Observer> = progress.clone();
    let repaired = block_on(transfer::repair(&registry, &dir, problems, concurrency, &observer))?;
    progress.finish();
    let (problems, errors) = repaired?;
    for error in errors {
        output.error(&error.to_string(), error.hint());
    }
    Ok(problems)
}

fn describe(problem: &Problem) -> String {
    let users = match problem.images.len() {
        0 => String::new(),
        1..=3 => format!(" (needed by {})", problem.images.join(", ")),
        n => format!(" (needed by {} and {} others)", problem.images[0], n - 1),
    };
    let kind = match problem.kind {
        ProblemKind::DanglingTag => "a tag that leads nowhere",
        other => other.as_str(),
    };
    format!(
        "{}: {kind}: expected {}, found {}{users}",
        problem.path, problem.expected, problem.found
    )
}

fn problem_json(problem: &Problem) -> Value {
    json!({
        "path": problem.path,
        "kind": problem.kind.as_str(),
        "expected": problem.expected,
        "found": problem.found,
        "images": problem.images,
        "repaired": problem.repaired,
    })
}

pub(crate) fn prune(args: &PruneArgs, output: &Output) -> Result<Outcome, Failure> {
    let dir = ImagesDir::open(&args.tree.images_dir)?;
    if !dir.has_blobs() {
        output.warning(&format!("no images in {}", dir.root().display()));
        output.event(
            &json!({"event": "report", "command": "prune", "removed": [], "removed_bytes": 0}),
        );
        return Ok(Outcome::NothingMatched);
    }
    let pruned = dir.prune(args.dry_run)?;
    let verb = if args.dry_run { "would remove" } else { "removed" };
    for removed in &pruned.removed {
        output.line(&format!("{verb} {} ({})", removed.path, bytes(removed.bytes)));
    }
    let files = count(pruned.removed.len(), "file");
    output.line(&format!("{verb} {files} with {}", bytes(pruned.bytes())));
    let removed = pruned.removed.iter().map(|r| json!({"path": r.path, "bytes": r.bytes}));
    output.event(&json!({
        "event": "report",
        "command": "prune",
        "dry_run": args.dry_run,
        "removed": removed.collect::<Vec<_>>(),
        "removed_bytes": pruned.bytes(),
    }));
    Ok(Outcome::Done)
}
