//! `imgfs ls` of places that are neither directories of images nor registries.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use imgfs::ops::{self, Medium, PlaceImage, TreeSpec};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::LsArgs,
    block_on, inside,
    output::{Output, bytes, count, table},
};

/// The place that `text` is, if it is one of those that are written with a scheme, or one that is there: an archive, a
/// layout, or a directory that can be nothing but one, as `./images` is. A word that could be an image's name is a
/// file or a directory only if what is in it says so.
pub(crate) fn named(text: &str) -> Result<Option<TreeSpec>, Failure> {
    let path = Path::new(text);
    let is_path = [".", ".."].contains(&text)
        || ["/", "./", "../"].iter().any(|start| text.starts_with(start));
    if path.is_file() {
        let has_ending = ops::ends_as_archive(path);
        if is_path || has_ending || is_archive(path).unwrap_or(false) {
            return Ok(Some(TreeSpec::Directory(path.to_owned())));
        }
    }
    if !text.is_empty() && path.join("oci-layout").is_file() {
        return Ok(Some(TreeSpec::Medium(Medium::OciLayout { dir: path.to_owned(), name: None })));
    }
    if is_path && path.is_dir() {
        return Ok(Some(TreeSpec::Directory(path.to_owned())));
    }
    if let (true, Err(error)) = (is_path, path.symlink_metadata()) {
        return Err(Failure::new(format!("{text}: {error}")));
    }
    match text.parse::<TreeSpec>() {
        Ok(place @ TreeSpec::Medium(_)) => Ok(Some(place)),
        // Of the others, each could be an image with a tag.
        Err(error @ ops::TreeSpecError::Scheme(_)) if text.starts_with("containers-storage:") => {
            Err(Failure::new(error.to_string()))
        }
        Err(error @ ops::TreeSpecError::Incomplete(..)) => Err(Failure::new(error.to_string())),
        _ => Ok(None),
    }
}

/// Whether the file begins as an archive does: with the header of a tar, or compressed.
fn is_archive(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    let is_tar = start.get(257..262) == Some(b"ustar");
    Ok(is_tar || start.starts_with(b"\x1f\x8b") || start.starts_with(b"\x28\xb5\x2f\xfd"))
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_and_layouts_are_known_by_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = [0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let files: [(&str, &[u8]); 6] = [
            ("backup", &tar),
            ("saved.oci", b"\x1f\x8b\x08"),
            ("x.zst", b"\x28\xb5\x2f\xfd"),
            ("empty.tar", b""),
            ("notes", b"text"),
            ("layout/oci-layout", b"{}"),
        ];
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let shown = |text: &str| named(text).ok().flatten().map(|place| place.to_string());
        for name in ["backup", "saved.oci", "x.zst", "empty.tar", "notes", "layout", ""] {
            let path = dir.path().join(name).display().to_string();
            let scheme = if name == "layout" { "oci:" } else { "" };
            assert_eq!(shown(&path), Some(format!("{scheme}{path}")), "{name}");
        }
        assert_eq!(shown(&dir.path().join("no").display().to_string()), None);
        for (name, is_archive_there) in
            [("backup", true), ("saved.oci", true), ("x.zst", true), ("notes", false)]
        {
            assert_eq!(is_archive(&dir.path().join(name)).unwrap(), is_archive_there, "{name}");
        }
        assert_eq!(shown("nginx"), None);
        // The package's own `src`, and a file in it.
        assert_eq!(shown("src"), None);
        assert_eq!(shown("Cargo.toml"), None);
        assert_eq!(shown("./Cargo.toml").as_deref(), Some("./Cargo.toml"));
    }
}
