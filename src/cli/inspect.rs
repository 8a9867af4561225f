//! `imgfs ls`, `imgfs verify` and `imgfs prune`

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use imgfs::{
    backend::images_dir::{
        ImageEntry, ImagesDir, Inventory, Linking, Problem, ProblemKind, Verified,
    },
    ops::{self, ListRequest, RegistryListRequest, Source, TreeSpec, TreeSpecError},
    transfer::Observer,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::{DEFAULT_IMAGES_DIR, LsArgs, PruneArgs, VerifyArgs},
    block_on, inside,
    output::{Output, bytes, count, table},
    places,
    progress::Progress,
    registries,
    words::Verb,
};

/// Files that nobody needs are listed up to this number.
const SHOWN_STRAYS: usize = 20;

pub(crate) fn ls(args: &LsArgs, output: &Output) -> Result<Outcome, Failure> {
    let place = place(args)?;
    if let Place::Medium(medium, pattern) = &place {
        return places::ls(args, medium, *pattern, output);
    }
    let is_registry = matches!(place, Place::Registry(_));
    if is_registry && is_for_images(args) {
        return Err(Failure::new("--recursive, --platform and --offline are not for registries"));
    }
    if args.repositories && !is_registry {
        return Err(Failure::new("--repositories is for registry://HOST"));
    }
    match place {
        Place::Inside(image, path) => inside::ls(args, (image, path), output),
        Place::Registry(prefix) => registry(args, prefix, output),
        Place::Named(dir) => directory(args, &dir, None, output),
        Place::Directory | Place::Medium(..) => {
            directory(args, &args.tree.directory("ls")?, args.pattern.clone(), output)
        }
    }
}

/// Lists the images in the directory of images `root` whose names contain `pattern`.
fn directory(
    args: &LsArgs,
    root: &Path,
    pattern: Option<String>,
    output: &Output,
) -> Result<Outcome, Failure> {
    let request = ListRequest { pattern, attachments: args.all || output.json };
    let listing = ops::list(root, &request).map_err(|error| match root.exists() {
        true => Failure::from(error),
        false => Failure::from(error).hint(
            "`imgfs pull` fills a directory of images; `imgfs ls IMAGE` and `imgfs ls registry://HOST` need none",
        ),
    })?;
    let inventory = &listing.inventory;
    for problem in inventory.problems.iter().filter(|problem| problem.kind.is_harmful()) {
        output.warning(&describe(problem));
    }
    for notice in inventory.notices().filter(|_| request.pattern.is_none()) {
        output.warning(&notice);
    }
    let (shown, unreadable) = (&listing.images, &listing.unreadable);
    let mut images: Vec<Value> = shown.iter().map(|image| image_json(image, inventory)).collect();
    images.extend(unreadable.iter().map(|name| {
        json!({"image": name, "digest": null, "platforms": [], "complete": false, "missing": []})
    }));
    output.event(&json!({"event": "report", "command": "ls", "images": images}));
    if listing.is_empty() {
        let what = match &request.pattern {
            Some(pattern) => format!("no image in {} matches `{pattern}`", root.display()),
            None => format!("no images in {}", root.display()),
        };
        output.warning(&what);
        return Ok(Outcome::NothingMatched);
    }
    let heading = ["REFERENCE", "DIGEST", "PLATFORMS", "SIZE", "SHARED", "STATE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(shown.iter().map(|image| row(image, inventory)));
    rows.extend(unreadable.iter().map(|name| {
        vec![name.clone(), "-".into(), "-".into(), "-".into(), "-".into(), "unreadable".into()]
    }));
    output.line(&table(&rows));
    Ok(if listing.is_incomplete() { Outcome::SomeFailed } else { Outcome::Done })
}

/// What is to be listed.
enum Place<'a> {
    /// An image, and a path in it.
    Inside(&'a str, &'a str),
    /// What is in registries below this prefix.
    Registry(String),
    /// Images of another place, whose names have this in them.
    Medium(TreeSpec, Option<&'a str>),
    /// Images of this directory.
    Named(PathBuf),
    /// Images of the directory of the options.
    Directory,
}

/// Whether there are options that have to do with the files in images only.
fn is_for_images(args: &LsArgs) -> bool {
    args.recursive || args.inside.offline || args.inside.platform.is_some()
}

fn place(args: &LsArgs) -> Result<Place<'_>, Failure> {
    let given = match &args.inside.from {
        Some(text) => text.parse().map_err(|e| Failure::new(format!("--from: {e}")))?,
        None => args.tree.place()?,
    };
    let is_medium = given.medium().is_some() || args.inside.from.is_some();
    let listed = args.pattern.as_deref().filter(|_| args.inside.from.is_none());
    let no_image = || {
        let message = "--recursive, --platform and --offline are for IMAGE[:/PATH]";
        Failure::new(message).hint("for instance: imgfs ls nginx:1.25:/etc")
    };
    match listed.map(places::named).transpose()?.flatten() {
        Some(TreeSpec::Directory(_)) if is_for_images(args) => return Err(no_image()),
        Some(TreeSpec::Directory(dir)) if dir.is_dir() => return Ok(Place::Named(dir)),
        Some(place) => return Ok(Place::Medium(place, None)),
        None => {}
    }
    let Some(text) = args.pattern.as_deref() else {
        if is_medium && !is_for_images(args) {
            return Ok(Place::Medium(given, None));
        }
        return if is_for_images(args) { Err(no_image()) } else { Ok(Place::Directory) };
    };
    let name = ops::bare_name(text);
    if text.contains("://") {
        let is_local = text.starts_with("local://");
        match text.parse() {
            Ok(TreeSpec::Registry { prefix }) => return Ok(Place::Registry(prefix)),
            Ok(TreeSpec::Directory(_)) if is_local && is_for_images(args) => return Err(no_image()),
            Ok(TreeSpec::Directory(dir)) if is_local => return Ok(Place::Named(dir)),
            // With a tag or a path in it; or no scheme at all.
            Err(TreeSpecError::Image(_)) | Ok(TreeSpec::Directory(_) | TreeSpec::Medium(_)) => {}
            Err(error) => return Err(Failure::new(error.to_string())),
        }
    }
    if let Some((image, path)) = inside::split(name) {
        return Ok(Place::Inside(image, path));
    }
    if is_medium && !is_for_images(args) && !inside::is_image(name) {
        return Ok(Place::Medium(given, Some(name)));
    }
    let has_no_dir = match args.tree.place()? {
        TreeSpec::Directory(dir) => dir == Path::new(DEFAULT_IMAGES_DIR) && !dir.exists(),
        _ => false,
    };
    Ok(match is_for_images(args) || inside::is_image(name) || has_no_dir {
        true => Place::Inside(name, "/"),
        false => Place::Directory,
    })
}

/// `imgfs ls registry://HOST[/REPOSITORY]`
fn registry(args: &LsArgs, prefix: String, output: &Output) -> Result<Outcome, Failure> {
    let host = prefix.split('/').next().unwrap_or_default().to_owned();
    let config = registries::config(&args.inside.registries, &[host], output)?;
    let request =
        RegistryListRequest { prefix, repositories_only: args.repositories, attachments: args.all };
    let listing = block_on(ops::list_registry(&request, config))??;
    output.report("ls", &listing);
    for one in &listing.repositories {
        if !one.tags.is_empty() {
            let names = one.tags.iter().map(|tag| format!("{}:{tag}", one.repository));
            output.line(&names.collect::<Vec<_>>().join("\n"));
        } else if one.error.is_none() {
            output.line(&one.repository);
        }
        if let Some(error) = &one.error {
            output.error(error, None);
        }
    }
    for name in &listing.unnameable {
        output.error(&format!("{}: `{name}` is no name of a repository", listing.registry), None);
    }
    if listing.repositories.is_empty() && listing.unnameable.is_empty() {
        output.warning(&format!("{} has no repositories", listing.registry));
        return Ok(Outcome::NothingMatched);
    }
    if let [one] = &listing.repositories[..]
        && one.repository == listing.registry
        && one.tags.is_empty()
        && one.error.is_none()
    {
        output.warning(&format!("{} has no tags", one.repository));
        return Ok(Outcome::NothingMatched);
    }
    Ok(if listing.is_incomplete() { Outcome::SomeFailed } else { Outcome::Done })
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
    let place = match &args.place {
        Some(text) => text.parse().map_err(|e| Failure::new(format!("{e}")))?,
        None => args.tree.place()?,
    };
    let medium = inside::open_source(&place, false, args.name.as_deref())?;
    if matches!(place, TreeSpec::Registry { .. }) {
        return Err(Failure::new(format!(
            "{place}: a registry cannot be verified; what is pulled from it is"
        )));
    }
    if let (Some(_), true) = (&medium, args.repair) {
        return Err(Failure::new(format!("{place}: only a directory of images can be repaired"))
            .hint("copy the image there once more"));
    }
    let root = match &place {
        TreeSpec::Directory(path) => path.as_path(),
        _ => Path::new(""),
    };
    let mut verified = hash(root, medium.as_ref(), args.full, output)?;
    if verified.images == 0
        && verified.checked_blobs == 0
        && verified.problems.iter().all(|p| !p.kind.is_harmful())
    {
        output.warning(&format!("no images in {place}"));
        output.event(&json!({"event": "report", "command": "verify", "problems": [], "images": 0}));
        return Ok(Outcome::NothingMatched);
    }
    if args.repair && verified.problems.iter().any(|problem| problem.kind.is_harmful()) {
        verified = repair(args, root, verified, output)?;
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
        let hint = "`imgfs verify --repair` fetches again what is broken";
        let hint = medium.is_none().then_some(hint);
        output.error(&format!("{} found", count(left, "problem")), hint);
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
    Ok(match (left, verified.images) {
        (0, 0) => {
            output.warning(&format!("no images in {place}"));
            Outcome::NothingMatched
        }
        (0, _) => Outcome::Done,
        _ => Outcome::SomeFailed,
    })
}

/// Verifies with a bar that counts what is hashed.
fn hash(
    root: &Path,
    medium: Option<&Source>,
    full: bool,
    output: &Output,
) -> Result<Verified, Failure> {
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
    let hashed = |step| bar.set_position(done.fetch_add(step, Ordering::Relaxed) + step);
    let verified = match medium {
        Some(source) => block_on(ops::verify_place(source, &hashed))?,
        None => ops::verify(root, full, &hashed),
    };
    bar.finish_and_clear();
    Ok(verified?)
}

/// Fetches again what is broken.
fn repair(
    args: &VerifyArgs,
    root: &Path,
    verified: Verified,
    output: &Arc<Output>,
) -> Result<Verified, Failure> {
    let names = ops::registries_of(&verified.problems);
    let config = registries::config(&args.registries, &names, output)?;
    let progress = Progress::new(output.clone(), Verb::Pull);
    progress.begin(Some(&ImagesDir::create(root, None, Linking::Auto)?));
    let observer: Arc<dyn Observer> = progress.clone();
    let repaired = block_on(ops::repair(root, verified, config, &observer))?;
    progress.finish();
    let (verified, errors) = repaired?;
    for error in errors {
        output.error(&error.to_string(), error.hint());
    }
    Ok(verified)
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
    let root = args.tree.directory("prune")?;
    let Some(pruned) = ops::prune(&root, args.dry_run)? else {
        output.warning(&format!("no images in {}", root.display()));
        output.event(
            &json!({"event": "report", "command": "prune", "removed": [], "removed_bytes": 0}),
        );
        return Ok(Outcome::NothingMatched);
    };
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
