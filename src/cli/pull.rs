//! `imgfs pull`

use std::{
    fs,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use imgfs::{
    image::{PlatformFilter, Reference},
    transfer::{IndexMode, Options, Policy, Route},
    tree::{
        images_dir::{ImagesDir, Layout, Linking},
        registry::Registry,
    },
};
use serde_json::json;

use super::{
    Failure, Outcome,
    args::{IndexArg, LayoutArg, PolicyArg, PullArgs},
    output::Output,
    registries,
    transfer::{Job, Tree, Verb},
};

pub(crate) fn run(args: &PullArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
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
    let routes: Vec<Route> = images.into_iter().map(Route::from).collect();
    let job = Job {
        verb: Verb::Pull,
        from: &Tree::Registries(registry.clone()),
        to: &Tree::Directory(dir.clone()),
        routes: &routes,
        options: &options,
        concurrency,
        dry_run: args.dry_run,
        output,
    };
    let outcome = job.run()?;
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
    Ok(outcome)
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
    Ok(ImagesDir::create(root, layout, Linking::Auto)?)
}
