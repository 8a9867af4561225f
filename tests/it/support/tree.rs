//! An `images_dir`, judged and written without any code of imgfs.

use super::content::{digest, digest_of_reader};
use super::image::{Blob, Built, DOCKER_LIST, OCI_INDEX, Receiver};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Whether an index may list children that are not there (`--index keep` with a platform filter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Indexes {
    Whole,
    Sparse,
}

/// Panics with a list of everything that is wrong in a tree: blobs and digest-named manifests that are not
/// what their names say, tags that do not parse or refer to what is not there, and files that belong nowhere.
#[track_caller]
pub(crate) fn assert_tree_sound(images_dir: &Path) {
    assert_sound(images_dir, Indexes::Whole);
}

/// The same for a tree with sparse indexes.
#[track_caller]
pub(crate) fn assert_sparse_tree_sound(images_dir: &Path) {
    assert_sound(images_dir, Indexes::Sparse);
}

#[track_caller]
fn assert_sound(images_dir: &Path, indexes: Indexes) {
    let problems = problems(images_dir, indexes);
    assert!(problems.is_empty(), "{} is not sound:\n{}", images_dir.display(), problems.join("\n"));
}

/// What is wrong in a tree, one line each.
pub(crate) fn problems(images_dir: &Path, indexes: Indexes) -> Vec<String> {
    let mut problems = Vec::new();
    let blobs = images_dir.join("blobs");
    for path in files_under(&blobs) {
        if path.starts_with(blobs.join(".imgfs")) {
            continue;
        }
        let name = file_name(&path);
        if path.parent() != Some(&blobs) || !is_digest(&name) {
            problems.push(format!("{}: stray", path.display()));
        } else if digest_of_file(&path) != name {
            problems.push(format!("{}: content has another digest", path.display()));
        }
    }
    for path in files_under(images_dir) {
        if path.starts_with(&blobs) {
            continue;
        }
        let shown = path.display();
        let directory = path.parent().unwrap_or(images_dir);
        if directory.file_name() != Some("manifests".as_ref()) {
            problems.push(format!("{shown}: stray"));
            continue;
        }
        let bytes = fs::read(&path).expect("reading a manifest");
        let name = file_name(&path);
        if is_digest(&name) && digest(&bytes) != name {
            problems.push(format!("{shown}: content has another digest"));
        }
        match serde_json::from_slice::<Value>(&bytes) {
            Err(error) => problems.push(format!("{shown}: {error}")),
            Ok(map) if name == "layout" && map["schemaVersion"].is_null() => {
                for target in map.as_object().into_iter().flatten().map(|(_, target)| target) {
                    if !directory.join(target.as_str().unwrap_or("?")).is_file() {
                        problems.push(format!("{shown}: {target} is not there"));
                    }
                }
            }
            Ok(manifest) => {
                for missing in missing(images_dir, directory, &manifest, indexes) {
                    problems.push(format!("{shown}: {missing} is not there or has another size"));
                }
            }
        }
    }
    problems
}

/// What a manifest refers to and the tree does not have in the size it should have.
fn missing(images_dir: &Path, manifests: &Path, manifest: &Value, indexes: Indexes) -> Vec<String> {
    let mut missing = Vec::new();
    let mut look = |descriptor: &Value, directory: &Path| {
        let name = descriptor["digest"].as_str().unwrap_or("?");
        let size = fs::metadata(directory.join(name)).map(|metadata| metadata.len()).ok();
        if size.is_none() || size != descriptor["size"].as_u64() {
            missing.push(name.to_owned());
        }
    };
    if let Some(children) = manifest["manifests"].as_array() {
        for child in children {
            let name = child["digest"].as_str().unwrap_or("?");
            let media_type = child["mediaType"].as_str().unwrap_or_default();
            if media_type.contains(".layer.") || media_type.contains(".cacheconfig.") {
                look(child, &images_dir.join("blobs"));
                continue;
            }
            if indexes == Indexes::Whole || manifests.join(name).exists() {
                look(child, manifests);
            }
        }
        return missing;
    }
    let blobs = images_dir.join("blobs");
    look(&manifest["config"], &blobs);
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let media_type = layer["mediaType"].as_str().unwrap_or_default();
        // Layers that may not be distributed come from elsewhere.
        if !media_type.contains("nondistributable") && !media_type.contains("foreign") {
            look(layer, &blobs);
        }
    }
    missing
}

/// Every digest that the tags and the digest-named manifests of a tree refer to.
pub(crate) fn referenced_blobs(images_dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in files_under(images_dir) {
        if path.starts_with(images_dir.join("blobs")) {
            continue;
        }
        let bytes = fs::read(&path).expect("reading a manifest");
        let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        for descriptor in layers.iter().chain([&manifest["config"]]) {
            found.extend(descriptor["digest"].as_str().map(str::to_owned));
        }
    }
    found
}

/// The published blobs.
pub(crate) fn blobs(images_dir: &Path) -> BTreeSet<String> {
    let directory = images_dir.join("blobs");
    let entries = fs::read_dir(&directory).into_iter().flatten();
    entries
        .map(|entry| file_name(&entry.expect("reading a directory").path()))
        .filter(|name| is_digest(name))
        .collect()
}

/// Panics unless every published file and directory has the mode and the time that the format prescribes.
#[track_caller]
pub(crate) fn assert_modes_and_times(images_dir: &Path) {
    let mut wrong = Vec::new();
    let state = images_dir.join("blobs/.imgfs");
    for path in everything_under(images_dir) {
        if path.starts_with(&state) {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).expect("looking at a file");
        let mode = metadata.permissions().mode() & 0o7777;
        let expected = if metadata.is_dir() { 0o755 } else { 0o644 };
        if mode != expected {
            wrong.push(format!("{}: mode {mode:o}", path.display()));
        }
        if metadata.is_file() && is_digest(&file_name(&path)) {
            let time = (metadata.mtime(), metadata.mtime_nsec());
            if time != (1, 0) {
                wrong.push(format!("{}: mtime {time:?}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a file looks like from outside. Directories have no digest, and their times are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, i64),
    pub(crate) digest: String,
}

/// The whole tree without imgfs's own state, by relative path.
pub(crate) fn snapshot(images_dir: &Path) -> BTreeMap<String, Look> {
    let state = images_dir.join("blobs/.imgfs");
    let mut looks = BTreeMap::new();
    for path in everything_under(images_dir) {
        if path.starts_with(&state) {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).expect("looking at a file");
        let directory = metadata.is_dir();
        let relative = path.strip_prefix(images_dir).expect("inside");
        looks.insert(
            relative.to_string_lossy().into_owned(),
            Look {
                size: if directory { 0 } else { metadata.len() },
                mode: metadata.permissions().mode() & 0o7777,
                mtime: if directory { (0, 0) } else { (metadata.mtime(), metadata.mtime_nsec()) },
                digest: if directory { String::new() } else { digest_of_file(&path) },
            },
        );
    }
    looks
}

/// Pushes an image out of a tree in the documented layout, so that other programs can read what imgfs wrote.
pub(crate) fn push_from_tree(
    images_dir: &Path,
    image: &str,
    reference: &str,
    receiver: &dyn Receiver,
    repository: &str,
    tag: &str,
) {
    let manifests = images_dir.join(image).join("manifests");
    push_manifest(images_dir, &manifests, reference, receiver, repository, tag);
}

fn push_manifest(
    images_dir: &Path,
    manifests: &Path,
    name: &str,
    receiver: &dyn Receiver,
    repository: &str,
    reference: &str,
) {
    let path = manifests.join(name);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let manifest: Value = serde_json::from_slice(&bytes).expect("a manifest is JSON");
    let is_index = manifest["manifests"].is_array();
    let fallback = if is_index { OCI_INDEX } else { super::image::OCI_MANIFEST };
    let media_type = manifest["mediaType"].as_str().unwrap_or(fallback);
    if is_index {
        for child in manifest["manifests"].as_array().into_iter().flatten() {
            let digest = child["digest"].as_str().expect("a descriptor has a digest");
            push_manifest(images_dir, manifests, digest, receiver, repository, digest);
        }
    } else {
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        for descriptor in std::iter::once(&manifest["config"]).chain(&layers) {
            let digest = descriptor["digest"].as_str().expect("a descriptor has a digest");
            let bytes = fs::read(images_dir.join("blobs").join(digest)).expect("reading a blob");
            let blob = Blob {
                digest: digest.to_owned(),
                media_type: String::new(),
                content: bytes.into(),
            };
            receiver.put_blob(repository, &blob);
        }
    }
    receiver.put_manifest(repository, reference, media_type, &bytes);
}

/// A tree as `KubeKey` v4.0.0-alpha.1 to alpha.5 leaves it: no directory for the registry.
pub(crate) fn kubekey_g0(images_dir: &Path, repository: &str, tag: &str, image: &Built) {
    g1_files(images_dir, repository, tag, image);
}

/// A tree as `KubeKey` v4.0.0-alpha.6 to v4.0.3 leaves it. `host` is `registry-1.docker.io` for Docker Hub.
pub(crate) fn kubekey_g1(
    images_dir: &Path,
    host: &str,
    repository: &str,
    tag: &str,
    image: &Built,
) {
    g1_files(images_dir, &format!("{host}/{repository}"), tag, image);
}

fn g1_files(images_dir: &Path, directory: &str, tag: &str, image: &Built) {
    let manifests = images_dir.join(directory).join("manifests");
    // os.ModePerm under the usual umask: files are executable in these trees.
    write_blobs(images_dir, image, 0o755);
    let (root, children) = image.manifests.split_last().expect("a graph has a root");
    for child in children {
        write_file(&manifests.join(&child.digest), &child.bytes, 0o755);
    }
    write_file(&manifests.join(tag), &root.bytes, 0o755);
}

/// A tree as `KubeKey` v4.0.4-rc.1 and later leave it: tags are in a map called `layout`.
pub(crate) fn kubekey_g2(
    images_dir: &Path,
    host: &str,
    repository: &str,
    tag: &str,
    image: &Built,
) {
    let manifests = images_dir.join(host).join(repository).join("manifests");
    write_blobs(images_dir, image, 0o644);
    for manifest in &image.manifests {
        write_file(&manifests.join(&manifest.digest), &manifest.bytes, 0o644);
    }
    set_layout(&manifests, tag, image.digest());
}

/// Adds an entry to a G2 map, as Go's `json.MarshalIndent(map, "", "  ")` writes it.
pub(crate) fn set_layout(manifests: &Path, tag: &str, target: &str) {
    let path = manifests.join("layout");
    let mut map: BTreeMap<String, String> = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .and_then(|value| value.as_object().cloned())
        .into_iter()
        .flatten()
        .map(|(tag, target)| (tag, target.as_str().unwrap_or_default().to_owned()))
        .collect();
    map.insert(tag.to_owned(), target.to_owned());
    let lines: Vec<String> =
        map.iter().map(|(tag, target)| format!("  \"{tag}\": \"{target}\"")).collect();
    let text = format!("{{\n{}\n}}", lines.join(",\n"));
    write_file(&path, text.as_bytes(), 0o644);
}

/// The map of a G2 repository.
pub(crate) fn layout(manifests: &Path) -> BTreeMap<String, String> {
    let bytes = fs::read(manifests.join("layout")).expect("reading a layout map");
    let map: Value = serde_json::from_slice(&bytes).expect("a layout map is JSON");
    map.as_object()
        .expect("a layout map is an object")
        .iter()
        .map(|(tag, target)| (tag.clone(), target.as_str().unwrap_or_default().to_owned()))
        .collect()
}

fn write_blobs(images_dir: &Path, image: &Built, mode: u32) {
    for blob in image.blobs.values() {
        let path = images_dir.join("blobs").join(&blob.digest);
        write_file(&path, &blob.content.to_vec(), mode);
    }
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) {
    let directory = path.parent().expect("inside a tree");
    fs::create_dir_all(directory).expect("making a directory");
    fs::write(path, bytes).expect("writing");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("setting a mode");
}

/// Cuts a file down to `length` bytes, as a killed `KubeKey` leaves it.
pub(crate) fn truncate(path: &Path, length: u64) {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.set_len(length).expect("truncating");
}

/// Inverts one byte of a file and leaves size and time as they were.
pub(crate) fn flip_byte_quietly(path: &Path, at: usize) {
    let time = fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = fs::read(path).expect("reading");
    bytes[at] ^= 0xff;
    fs::write(path, bytes).expect("writing");
    let file = fs::OpenOptions::new().write(true).open(path).expect("opening");
    file.set_modified(time).expect("setting the time");
}

/// What damage is called, how it is done to a file, and what has to be said of it.
pub(crate) type Damage = (&'static str, fn(&Path), &'static str);

/// The ways in which a blob in a directory is damaged.
pub(crate) const DAMAGES: [Damage; 3] = [
    ("cut short", |path| truncate(path, 100), "size mismatch"),
    ("wrong bytes", |path| flip_byte_quietly(path, 50), "digest mismatch"),
    ("missing", |path| fs::remove_file(path).expect("removing"), "not found"),
];

pub(crate) fn digest_of_file(path: &Path) -> String {
    let mut file =
        fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    digest_of_reader(&mut file).expect("reading")
}

/// The length of what a killed run left of a download; 0 when nothing.
pub(crate) fn partial_len(images_dir: &Path, digest: &str) -> u64 {
    let path = images_dir.join("blobs/.imgfs/partial").join(digest);
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Whether a manifest is an index.
pub(crate) fn is_index(media_type: &str) -> bool {
    media_type == OCI_INDEX || media_type == DOCKER_LIST
}

fn is_digest(name: &str) -> bool {
    name.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Files and whatever else is not a directory, sorted.
fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut all = everything_under(directory);
    all.retain(|path| !path.is_dir());
    all
}

/// All entries below a directory, sorted; none when it does not exist.
pub(crate) fn everything_under(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("reading a directory").path();
            if path.is_dir() && !path.is_symlink() {
                waiting.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}
