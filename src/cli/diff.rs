//! `imgfs diff`

use imgfs::ops::{
    self, Aspect, Change, DiffReport, DiffRequest, FileChange, FileState, LayerTally, PackageDiff,
    Tally,
};

use super::{
    Failure, Outcome,
    args::DiffArgs,
    describe::{heading, step_line},
    inside::{look, on_one_line},
    output::{Output, bytes, table},
};

/// Characters of a step of the history that are shown.
const SHOWN_STEP: usize = 60;

/// As of diff(1): status 0 is given for no difference, 1 for differences, 2 for everything else.
pub(crate) fn run(args: &DiffArgs, output: &Output) -> Result<Outcome, Failure> {
    let is_same = if args.packages { packages(args, output) } else { files(args, output) };
    match is_same {
        Ok(true) => Ok(Outcome::Done),
        Ok(false) => Ok(Outcome::SomeFailed),
        Err(failure) => Err(failure.trouble()),
    }
}

fn files(args: &DiffArgs, output: &Output) -> Result<bool, Failure> {
    let images = [args.a.as_str(), &args.b];
    let looked = look(&images, &args.tree, &args.inside, output, async |opener, images| {
        let (a, b) = (images[0].clone(), images[1].clone());
        let request = DiffRequest { a, b, path: args.path.clone(), times: args.times };
        ops::diff(opener, &request).await
    });
    let report = match looked? {
        Err(ops::Error::Path(error)) => {
            let message = format!("{} and {}: {}: {error}", args.a, args.b, args.path);
            return Err(Failure::new(message));
        }
        done => done?,
    };
    output.report("diff", &report);
    if !report.is_same() {
        output.line(&if args.stat { stat(&report) } else { list(&report) });
        output.line(&summary(&report.total));
    }
    Ok(report.is_same())
}

fn list(report: &DiffReport) -> String {
    let mut rows = vec![heading(&["", "SIZE", "LAYER", "PATH"])];
    rows.extend(report.changes.iter().map(row));
    table(&rows)
}

fn row(change: &FileChange) -> Vec<String> {
    let (a, b) = (change.a.as_ref(), change.b.as_ref());
    let size = |state: &FileState| match state.kind {
        "file" => bytes(state.size),
        _ => "-".to_owned(),
    };
    let mut path = change.path.clone();
    if let (Some(target), Change::Added | Change::Removed) =
        (b.or(a).and_then(|state| state.target.as_ref()), change.change)
    {
        path = format!("{path} -> {target}");
    }
    if !change.aspects.is_empty() {
        let aspects = change.aspects.iter().map(|aspect| detail(*aspect, a, b));
        path = format!("{path} ({})", aspects.collect::<Vec<_>>().join(", "));
    }
    vec![
        letter(change.change).to_owned(),
        both(a.map(size), b.map(size)),
        // The same number need not be the same layer.
        match (a, b) {
            (Some(a), Some(b)) => format!("{} -> {}", a.layer, b.layer),
            (a, b) => b.or(a).map_or(String::new(), |state| state.layer.to_string()),
        },
        on_one_line(&path),
    ]
}

/// The letters of `docker diff`.
fn letter(change: Change) -> &'static str {
    match change {
        Change::Added => "A",
        Change::Removed => "D",
        Change::Changed => "C",
    }
}

/// What is in both is written once.
fn both(a: Option<String>, b: Option<String>) -> String {
    match (a, b) {
        (Some(a), Some(b)) if a != b => format!("{a} -> {b}"),
        (a, b) => b.or(a).unwrap_or_default(),
    }
}

fn detail(aspect: Aspect, a: Option<&FileState>, b: Option<&FileState>) -> String {
    let (Some(a), Some(b)) = (a, b) else { return String::new() };
    let from_to = |name: &str, a: &dyn ToString, b: &dyn ToString| {
        format!("{name} {} -> {}", a.to_string(), b.to_string())
    };
    let owner = |of: &FileState| format!("{}:{}", of.uid, of.gid);
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let device = |of: &FileState| of.device.map_or("-".to_owned(), |(a, b)| format!("{a}, {b}"));
    match aspect {
        Aspect::Type => from_to("type", &a.kind, &b.kind),
        Aspect::Content => "content".to_owned(),
        Aspect::Mode => from_to("mode", &a.mode, &b.mode),
        Aspect::Owner => from_to("owner", &owner(a), &owner(b)),
        Aspect::Target => from_to("target", &text(&a.target), &text(&b.target)),
        Aspect::Links if a.links != b.links => from_to("links", &a.links, &b.links),
        Aspect::Links => "links".to_owned(),
        Aspect::Device => from_to("device", &device(a), &device(b)),
        Aspect::Xattrs => {
            let names = a.xattrs.keys().chain(b.xattrs.keys());
            let mut names: Vec<&str> = names
                .filter(|name| a.xattrs.get(*name) != b.xattrs.get(*name))
                .map(String::as_str)
                .collect();
            names.sort_unstable();
            names.dedup();
            format!("xattrs {}", names.join(" "))
        }
        Aspect::Mtime => "mtime".to_owned(),
    }
}

/// How much differs, layer by layer.
fn stat(report: &DiffReport) -> String {
    let mut rows =
        vec![heading(&["", "LAYER", "DIGEST", "ADDED", "DELETED", "CHANGED", "CREATED BY"])];
    for (name, side) in [("A", &report.a), ("B", &report.b)] {
        rows.extend(side.layers.iter().map(|layer| stat_row(name, layer)));
    }
    table(&rows)
}

fn stat_row(side: &str, layer: &LayerTally) -> Vec<String> {
    let Tally { added, added_bytes, removed, removed_bytes, changed } = layer.tally;
    let count = |number: u64, text: String| if number == 0 { "-".to_owned() } else { text };
    vec![
        side.to_owned(),
        layer.number.to_string(),
        layer.digest.short(),
        count(added, format!("{added} ({})", bytes(added_bytes))),
        count(removed, format!("{removed} ({})", bytes(removed_bytes))),
        count(changed, changed.to_string()),
        layer.created_by.as_ref().map_or("-".to_owned(), |by| step_line(by, SHOWN_STEP)),
    ]
}

fn summary(total: &Tally) -> String {
    let Tally { added, added_bytes, removed, removed_bytes, changed } = *total;
    let (added_bytes, removed_bytes) = (bytes(added_bytes), bytes(removed_bytes));
    format!("{added} added ({added_bytes}), {removed} deleted ({removed_bytes}), {changed} changed")
}

fn packages(args: &DiffArgs, output: &Output) -> Result<bool, Failure> {
    let images = [args.a.as_str(), &args.b];
    let looked = look(&images, &args.tree, &args.inside, output, async |opener, images| {
        ops::package_diff(opener, &images[0], &images[1]).await
    });
    let report = looked??;
    output.report("diff", &report);
    if !report.is_same() {
        output.line(&package_table(&report));
    }
    Ok(report.is_same())
}

fn package_table(report: &PackageDiff) -> String {
    let mut rows = vec![heading(&["", "PACKAGE", "VERSION IN A", "VERSION IN B"])];
    rows.extend(report.packages.iter().map(|package| {
        let name = match package.architecture.as_str() {
            "" => package.name.clone(),
            architecture => format!("{}:{architecture}", package.name),
        };
        let versions = |all: &[String]| match all {
            [] => "-".to_owned(),
            all => on_one_line(&all.join(", ")),
        };
        let letter = letter(package.change).to_owned();
        vec![letter, on_one_line(&name), versions(&package.before), versions(&package.after)]
    }));
    table(&rows)
}
