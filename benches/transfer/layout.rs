//! The images as an OCI layout: their names, and each unique blob once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;

/// A config or layer, and one repository where it can be had.
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) repository: String,
}

/// A layer of an image.
pub(crate) struct Layer {
    /// Which of the layout's blobs it is.
    pub(crate) blob: usize,
    pub(crate) media_type: String,
}

pub(crate) struct Layout {
    pub(crate) path: PathBuf,
    /// `repository:tag` of the images proper; what is attached to them (`sha256-...` tags) comes along by itself.
    images: Vec<String>,
    /// How many tags of attachments there are.
    attached: usize,
    /// Largest first, which is what serves a parallel client best.
    pub(crate) blobs: Vec<Blob>,
    /// What else of the blobs is where: repository and digest.
    pub(crate) elsewhere: BTreeSet<(String, String)>,
    /// Children before their parents: none of them refers to a later list.
    pub(crate) manifests: Vec<BTreeSet<Manifest>>,
}

/// A manifest or index, and where it belongs.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manifest {
    pub(crate) repository: String,
    /// Its tag, or its digest.
    pub(crate) reference: String,
    pub(crate) digest: String,
    pub(crate) media_type: String,
}

/// What is found on the way through the layout.
#[derive(Default)]
struct Found {
    blobs: BTreeMap<String, Blob>,
    elsewhere: BTreeSet<(String, String)>,
    manifests: Vec<BTreeSet<Manifest>>,
}

impl Layout {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let index = parse(&path.join("index.json"))?;
        let mut images = Vec::new();
        let mut attached = 0;
        let mut found = Found::default();
        for entry in list(&index, "manifests") {
            let annotations = entry.get("annotations").and_then(Value::as_object);
            let annotations = annotations.ok_or("index.json has an entry without annotations")?;
            let name = annotations
                .get("org.opencontainers.image.ref.name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let repository = annotations
                .iter()
                .find(|(key, _)| key.rsplit('.').next() == Some("repo"))
                .and_then(|(_, v)| v.as_str());
            let (of_name, tag) = name.rsplit_once(':').unwrap_or_default();
            if !tag.is_empty() && !tag.starts_with("sha256-") {
                images.push(name.to_owned());
            } else if !tag.is_empty() {
                attached += 1;
            }
            let tag = Some(tag).filter(|tag| !tag.is_empty());
            found.collect(path, entry, repository.unwrap_or(of_name), tag)?;
        }
        let Found { blobs, elsewhere, manifests } = found;
        let mut blobs: Vec<Blob> = blobs.into_values().collect();
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
        Ok(Self { path: path.to_owned(), images, attached, blobs, elsewhere, manifests })
    }

    pub(crate) fn image_count(&self) -> usize {
        self.images.len()
    }

    /// Names that a second run has to look up: images, and tags of what is attached to them.
    pub(crate) fn name_count(&self) -> usize {
        self.images.len() + self.attached
    }

    pub(crate) fn blob_count(&self) -> usize {
        self.blobs.len()
    }

    /// Bytes of the unique blobs.
    pub(crate) fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    pub(crate) fn images_at(&self, host: &str) -> impl Iterator<Item = String> {
        self.images.iter().map(move |image| format!("{host}/{image}"))
    }

    /// The images' names without a registry.
    pub(crate) fn images(&self) -> &[String] {
        &self.images
    }

    /// The layers of an image with a manifest of its own, the lowest first; `None` if it has an index.
    pub(crate) fn layers_of(&self, image: &str) -> Result<Option<Vec<Layer>>> {
        let named = self.manifests.iter().flatten().find(|manifest| {
            image.rsplit_once(':') == Some((&manifest.repository, &manifest.reference))
        });
        let named = named.ok_or_else(|| format!("{image} is not in the layout"))?;
        let manifest = parse(&self.file_of(&named.digest))?;
        if manifest.get("layers").is_none() {
            return Ok(None);
        }
        let layers = list(&manifest, "layers").map(|layer| {
            let digest = text(layer, "digest")?;
            let blob = self.blobs.iter().position(|blob| blob.digest == digest);
            let blob = blob.ok_or_else(|| format!("{digest} is not in the layout"))?;
            Ok(Layer { blob, media_type: text(layer, "mediaType")?.to_owned() })
        });
        layers.collect::<Result<_>>().map(Some)
    }

    pub(crate) fn file_of(&self, digest: &str) -> PathBuf {
        self.path.join("blobs").join(digest.replacen(':', "/", 1))
    }

    /// A curl configuration that fetches every blob into the working directory.
    pub(crate) fn curl_config(&self, host: &str) -> String {
        let mut config = String::new();
        for Blob { digest, repository, .. } in &self.blobs {
            let _ = writeln!(
                config,
                "url = http://{host}/v2/{repository}/blobs/{digest}\noutput = {digest}"
            );
        }
        config
    }

    /// The blobs' names in `parts` lines of about the same number of bytes.
    pub(crate) fn balanced_lists(&self, parts: usize) -> String {
        let mut lists = vec![(0, String::new()); parts];
        for blob in &self.blobs {
            if let Some((bytes, list)) = lists.iter_mut().min_by_key(|(bytes, _)| *bytes) {
                *bytes += blob.size;
                list.push_str(&blob.digest);
                list.push(' ');
            }
        }
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        // xargs takes a blank at the end of a line for its continuation.
        lists.fold(String::new(), |all, (_, list)| all + list.trim_end() + "\n")
    }

    /// Says which blob is missing from `directory` or has another size than it should.
    pub(crate) fn check_sizes(&self, directory: &Path) -> Result<()> {
        for Blob { digest, size, .. } in &self.blobs {
            let path = directory.join(digest);
            let found =
                std::fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.len();
            if found != *size {
                return Err(format!("{}: {found} bytes, expected {size}", path.display()).into());
            }
        }
        Ok(())
    }

    /// Says what is missing from a registry's storage: blobs, or names.
    pub(crate) fn check_stored(&self, storage: &Path) -> Result<()> {
        let root = storage.join("docker/registry/v2");
        for Blob { digest, size, .. } in &self.blobs {
            let hex = digest.trim_start_matches("sha256:");
            let path = root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data");
            let found = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            if found != *size {
                return Err(
                    format!("{digest} has {found} bytes in the registry and not {size}").into()
                );
            }
        }
        for Manifest { repository, reference, digest, .. } in self.manifests.iter().flatten() {
            let of = root.join("repositories").join(repository).join("_manifests");
            let link = match reference.split_once(':') {
                Some((algorithm, hex)) => {
                    of.join("revisions").join(algorithm).join(hex).join("link")
                }
                None => of.join("tags").join(reference).join("current/link"),
            };
            if std::fs::read_to_string(&link).ok().as_ref() != Some(digest) {
                return Err(
                    format!("the registry has no {repository} {reference} with {digest}").into()
                );
            }
        }
        Ok(())
    }

    /// Checks the output of `openssl dgst -sha256 -r` in a blobs directory: every name is its file's digest.
    pub(crate) fn check_digests(&self, output: &str) -> Result<()> {
        let right =
            |line: &&str| line.split_once(" *sha256:").is_some_and(|(found, name)| found == name);
        if let Some(wrong) = output.lines().find(|line| !right(line)) {
            return Err(
                format!("a blob does not have the digest that it is named after: {wrong}").into()
            );
        }
        match output.lines().count() {
            n if n == self.blobs.len() => Ok(()),
            n => Err(format!("openssl hashed {n} blobs of {}", self.blobs.len()).into()),
        }
    }
}

impl Found {
    /// Adds what `descriptor` refers to, all the way down; says how deep that is.
    fn collect(
        &mut self,
        layout: &Path,
        descriptor: &Value,
        repository: &str,
        tag: Option<&str>,
    ) -> Result<usize> {
        let digest = text(descriptor, "digest")?;
        let manifest = parse(&layout.join("blobs").join(digest.replacen(':', "/", 1)))?;
        let mut depth = 0;
        for child in list(&manifest, "manifests") {
            depth = depth.max(1 + self.collect(layout, child, repository, None)?);
        }
        for blob in manifest.get("config").into_iter().chain(list(&manifest, "layers")) {
            let size = blob
                .get("size")
                .and_then(Value::as_u64)
                .ok_or_else(|| format!("{digest}: a descriptor without size"))?;
            let digest = text(blob, "digest")?.to_owned();
            let first = self.blobs.entry(digest.clone()).or_insert_with(|| Blob {
                digest: digest.clone(),
                size,
                repository: repository.to_owned(),
            });
            if first.repository != repository {
                self.elsewhere.insert((repository.to_owned(), digest));
            }
        }
        if self.manifests.len() <= depth {
            self.manifests.resize_with(depth + 1, BTreeSet::new);
        }
        self.manifests[depth].insert(Manifest {
            repository: repository.to_owned(),
            reference: tag.unwrap_or(digest).to_owned(),
            digest: digest.to_owned(),
            media_type: text(descriptor, "mediaType")?.to_owned(),
        });
        Ok(depth)
    }
}

fn parse(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()))?)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    Ok(value
        .get(key)
        .and_then(Value::as_str)
        .ok_or_else(|| format!("a descriptor without {key}"))?)
}
