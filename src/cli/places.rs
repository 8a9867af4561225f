//! `imgfs ls` of places that are neither directories of images nor registries.

use std::path::Path;

use imgfs::ops::{self, PlaceImage, TreeSpec};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::LsArgs,
    block_on, inside,
    output::{Output, bytes, count, table},
};

/// Endings of archives, by which a file is told from a part of an image's name.
const ARCHIVES: [&str; 5] = [".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.zstd"];

/// The place that `text` is, if it is one of those that are written with a scheme, or an archive.
pub(crate) fn named(text: &str) -> Result<Option<TreeSpec>, Failure> {
    let is_archive = ARCHIVES.iter().any(|ending| text.ends_with(ending));
    if is_archive && Path::new(text).is_file() {
        return Ok(Some(TreeSpec::Directory(text.into())));
    }
    match text.parse::<TreeSpec>() {
        Ok(place @ TreeSpec::Medium(_)) => Ok(Some(place)),
        Err(error @ ops::TreeSpecError::Incomplete(..)) => Err(Failure::new(error.to_string())),
        _ => Ok(None),
    }
}

/// Lists the images of `place` whose names contain `pattern`.
pub(crate) fn ls(
    args: &LsArgs,
    place: &TreeSpec,
    pattern: Option<&str>,
    output: &Output,
) -> Result<Outcome, Failure> {
    if args.repositories || args.recursive {
        return Err(Failure::new("--repositories and --recursive are not for a place as a whole"));
    }
    let is_from = args.inside.from.is_some();
    let Some(source) = inside::open_source(place, is_from, args.inside.name.as_deref())? else {
        return Err(Failure::new(format!("{place} is none of the places that can be listed")));
    };
    let attachments = args.all || output.json;
    let images = block_on(ops::list_place(&source, pattern, attachments))??;
    for warning in source.warnings() {
        output.warning(&warning);
    }
    let listed: Vec<Value> = images.iter().map(json_of).collect();
    output.event(&json!({"event": "report", "command": "ls", "images": listed}));
    if images.is_empty() {
        output.warning(&match pattern {
            Some(pattern) => format!("no image in {place} matches `{pattern}`"),
            None => format!("no images in {place}"),
        });
        return Ok(Outcome::NothingMatched);
    }
    let heading = ["REFERENCE", "DIGEST", "PLATFORMS", "SIZE", "STATE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(images.iter().map(row));
    output.line(&table(&rows));
    for (digest, error) in images.iter().flat_map(|image| &image.missing) {
        output.warning(&format!("{}: {error}", digest.short()));
    }
    let is_whole = images.iter().all(|image| image.missing.is_empty());
    Ok(if is_whole { Outcome::Done } else { Outcome::SomeFailed })
}

fn row(image: &PlaceImage) -> Vec<String> {
    let platforms = match image.platforms.len() {
        0 => "-".to_owned(),
        _ => image.platforms.join(","),
    };
    let state = match image.missing.len() {
        0 => "complete".to_owned(),
        missing => format!("lacks {}", count(missing, "part")),
    };
    let digest = image.image.manifest.digest.short();
    vec![inside::on_one_line(&image.shown()), digest, platforms, bytes(image.bytes()), state]
}

fn json_of(image: &PlaceImage) -> Value {
    json!({
        "image": image.image.name.as_ref().map(ToString::to_string),
        "label": image.image.label,
        "digest": image.image.manifest.digest.to_string(),
        "media_type": image.image.manifest.media_type,
        "platforms": image.platforms,
        "bytes": image.bytes(),
        "complete": image.missing.is_empty(),
        "missing": image.missing.iter().map(|(digest, _)| digest.to_string()).collect::<Vec<_>>(),
        "attachment": image.image.is_attachment,
    })
}
