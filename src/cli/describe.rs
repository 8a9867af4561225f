//! `imgfs inspect` and `imgfs digest`

use std::io::{self, Write};

use imgfs::ops::{self, Inspection, Selected};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::{DigestArgs, InspectArgs},
    inside::{look, on_one_line},
    output::{Output, bytes, table},
};

/// Characters of a step of the history that are shown.
const SHOWN_STEP: usize = 100;

pub(crate) fn inspect(args: &InspectArgs, output: &Output) -> Result<Outcome, Failure> {
    let is_required = args.inside.platform.is_some() || args.config;
    let looked = look(&[&args.image], &args.tree, &args.inside, output, async |opener, images| {
        ops::inspect(opener, &images[0], is_required).await
    });
    let found = looked??;
    if args.raw {
        return raw(args, &found);
    }
    output.report("inspect", &found);
    output.line(&describe(&found));
    Ok(Outcome::Done)
}

/// Prints bytes as they are.
fn raw(args: &InspectArgs, found: &Inspection) -> Result<Outcome, Failure> {
    let bytes = match &found.selected {
        Some(selected) if args.config => &selected.raw_config,
        Some(selected) if args.inside.platform.is_some() => &selected.raw_manifest,
        _ => &found.raw,
    };
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("standard output: {e}")).of_image())
        }
        _ => Ok(Outcome::Done),
    }
}

fn describe(found: &Inspection) -> String {
    let mut rows = vec![
        line("Image", &found.image),
        line("Name", &found.name),
        line("Type", &format!("{} ({})", found.media_type, bytes(found.bytes))),
    ];
    let mut parts = Vec::new();
    if !found.children.is_empty() {
        let mut children = vec![heading(&["  PLATFORM", "DIGEST", "SIZE", "TYPE"])];
        children.extend(found.children.iter().map(|child| {
            let platform = child.platform.as_deref().unwrap_or("-");
            let kind = child.artifact_type.as_ref().unwrap_or(&child.media_type);
            let digest = child.digest.to_string();
            vec![cell(&format!("  {platform}")), digest, bytes(child.bytes), cell(kind)]
        }));
        parts.push(format!("Platforms:\n{}", table(&children)));
    }
    match &found.selected {
        Some(selected) => {
            rows.extend(settings(selected));
            parts.extend(layers(selected));
        }
        None => parts.push("None of these is for this machine; give --platform.".to_owned()),
    }
    parts.insert(0, table(&rows));
    parts.join("\n")
}

/// What the configuration says, as far as it says anything.
fn settings(selected: &Selected) -> Vec<Vec<String>> {
    let mut rows = vec![
        line("Platform", &selected.platform),
        line("Manifest", &selected.manifest_digest.to_string()),
        line("Config", &selected.config_digest.to_string()),
    ];
    let none = Value::Null;
    let document = selected.config.as_ref().unwrap_or(&none);
    let run = document.get("config").unwrap_or(&none);
    for (name, value) in [
        ("Created", document.get("created")),
        ("Author", document.get("author")),
        ("User", run.get("User")),
        ("Directory", run.get("WorkingDir")),
        ("Entrypoint", run.get("Entrypoint")),
        ("Command", run.get("Cmd")),
        ("Stop signal", run.get("StopSignal")),
        ("Shell", run.get("Shell")),
        ("Ports", run.get("ExposedPorts")),
        ("Volumes", run.get("Volumes")),
    ] {
        match value {
            Some(Value::String(text)) if !text.is_empty() => rows.push(line(name, text)),
            // As it would be written in a Dockerfile.
            Some(Value::Array(words)) if !words.is_empty() => {
                rows.push(line(name, &json!(words).to_string()));
            }
            Some(Value::Object(names)) if !names.is_empty() => {
                let names: Vec<&str> = names.keys().map(String::as_str).collect();
                rows.push(line(name, &names.join(", ")));
            }
            _ => {}
        }
    }
    if let Some(Value::Array(all)) = run.get("Env") {
        rows.extend(all.iter().filter_map(Value::as_str).map(|text| line("Environment", text)));
    }
    if let Some(Value::Object(all)) = run.get("Labels") {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        rows.extend(
            all.iter().map(|(name, value)| line("Label", &format!("{name}={}", text(value)))),
        );
    }
    if let Some(Value::Object(all)) = selected.manifest.get("annotations") {
        let all = all.iter().filter_map(|(name, value)| Some((name, value.as_str()?)));
        rows.extend(all.map(|(name, value)| line("Annotation", &format!("{name}={value}"))));
    }
    rows
}

/// The layers and, where there is one, the history.
fn layers(selected: &Selected) -> Vec<String> {
    let sum = bytes(selected.layer_bytes);
    let has_steps = selected.history.iter().any(|step| step.layer.is_some());
    let mut rows =
        vec![heading(&["  LAYER", "DIGEST", "SIZE", if has_steps { "" } else { "TYPE" }])];
    rows.extend(selected.layers.iter().map(|layer| {
        let kind = if has_steps { String::new() } else { cell(&layer.media_type) };
        vec![format!("  {}", layer.number), layer.digest.to_string(), bytes(layer.bytes), kind]
    }));
    let mut parts = vec![format!("Layers: {} with {sum}\n{}", selected.layers.len(), table(&rows))];
    if selected.history.is_empty() {
        return parts;
    }
    let mut rows = vec![heading(&["  LAYER", "CREATED", "CREATED BY"])];
    rows.extend(selected.history.iter().map(|step| {
        let layer = step.layer.map_or("-".to_owned(), |layer| layer.to_string());
        let created = step.created.as_deref().unwrap_or("-");
        // A comment that stands alone is all that is known.
        let by = step.created_by.as_ref().or(step.comment.as_ref());
        let by = by.map_or("-".to_owned(), |by| step_line(by, SHOWN_STEP));
        vec![format!("  {layer}"), cell(created), by]
    }));
    parts.push(format!("History:\n{}", table(&rows)));
    parts
}

/// A step of the history on one line, cut off where it is longer than `most` characters.
pub(crate) fn step_line(text: &str, most: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // What Docker's classic builder puts before everything.
    let text = text.strip_prefix("/bin/sh -c #(nop) ").unwrap_or(&text);
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn line(name: &str, value: &str) -> Vec<String> {
    vec![format!("{name}:"), cell(value)]
}

fn cell(text: &str) -> String {
    on_one_line(text)
}

pub(crate) fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(crate) fn digest(args: &DigestArgs, output: &Output) -> Result<Outcome, Failure> {
    let is_required = args.look.inside.platform.is_some();
    let looked =
        look(&[&args.image], &args.look.tree, &args.look.inside, output, async |opener, images| {
            ops::digest(opener, &images[0], is_required).await
        });
    let digest = looked??.to_string();
    output.report("digest", &json!({"image": args.image, "digest": digest}));
    output.line(&digest);
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_on_one_line() {
        for (text, expected) in [
            ("/bin/sh -c #(nop) ADD file:1 in / ", "ADD file:1 in /"),
            ("RUN a \t&&\n  b", "RUN a && b"),
            ("0123456789abc", "0123456789..."),
            ("\u{e9}\u{e9}", "\u{e9}\u{e9}"),
        ] {
            let most = if text.starts_with('0') { 10 } else { 100 };
            assert_eq!(step_line(text, most), expected);
        }
    }
}
