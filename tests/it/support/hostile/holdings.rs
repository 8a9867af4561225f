//! What a hostile registry holds, and whether it is whole.

use super::{Hostile, State};
use crate::support::content::{Content, digest};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What must be in a repository before a manifest that refers to it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Checks {
    /// Blobs and child manifests, as docker-registry demands.
    #[default]
    All,
    /// Blobs; children of an index may be missing, as where only some platforms were mirrored.
    Blobs,
    /// Nothing. What should have been refused is recorded as a violation.
    Nothing,
}

/// Something that a manifest refers to.
pub(super) struct Part {
    pub(super) digest: String,
    pub(super) size: Option<u64>,
    pub(super) is_manifest: bool,
}

/// Config and layers of a manifest, children of an index. Layers that come from elsewhere are left out.
pub(super) fn parts_of(manifest: &Value) -> Vec<Part> {
    let part = |descriptor: &Value, is_manifest: bool| Part {
        digest: descriptor["digest"].as_str().unwrap_or_default().to_owned(),
        size: descriptor["size"].as_u64(),
        is_manifest,
    };
    let list = |key: &str| manifest[key].as_array().into_iter().flatten();
    let from_elsewhere = |descriptor: &Value| {
        let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
        media_type.contains("nondistributable") || media_type.contains("foreign")
    };
    let config = Some(&manifest["config"]).filter(|config| config.is_object());
    // A cache of BuildKit is an index of blobs.
    let is_manifest = |descriptor: &Value| {
        let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
        !media_type.contains(".layer.") && !media_type.contains(".cacheconfig.")
    };
    list("manifests")
        .map(|descriptor| part(descriptor, is_manifest(descriptor)))
        .chain(config.map(|descriptor| part(descriptor, false)))
        .chain(
            list("layers")
                .filter(|layer| !from_elsewhere(layer))
                .map(|descriptor| part(descriptor, false)),
        )
        .collect()
}

impl State {
    pub(super) fn has_blob(&self, repository: &str, digest: &str) -> bool {
        self.blobs.contains_key(digest)
            && self.members.get(repository).is_some_and(|members| members.contains(digest))
    }

    pub(super) fn add_blob(&mut self, repository: &str, digest: &str, content: Content) {
        let known = self.blobs.entry(digest.to_owned()).or_insert_with(|| content.clone());
        if !known.is_kept() {
            *known = content;
        }
        self.members.entry(repository.to_owned()).or_default().insert(digest.to_owned());
    }

    /// What a manifest refers to and its repository does not have.
    pub(super) fn missing(&self, repository: &str, manifest: &Value) -> Vec<Part> {
        let mut parts = parts_of(manifest);
        parts.retain(|part| {
            if part.is_manifest {
                let all = self.manifests.get(repository);
                !all.is_some_and(|all| all.contains_key(&part.digest))
            } else {
                !self.has_blob(repository, &part.digest)
            }
        });
        parts
    }

    fn size_of(&self, repository: &str, part: &Part) -> Option<u64> {
        if part.is_manifest {
            let (_, bytes) = self.manifests.get(repository)?.get(&part.digest)?;
            Some(bytes.len() as u64)
        } else {
            self.blobs.get(&part.digest).map(Content::len)
        }
    }
}

impl Hostile {
    /// Repositories that have a manifest or a blob.
    pub(crate) fn repositories(&self) -> BTreeSet<String> {
        let state = self.inner.state();
        let with_blobs = state.members.iter().filter(|(_, members)| !members.is_empty());
        let with_manifests = state.manifests.iter().filter(|(_, manifests)| !manifests.is_empty());
        with_blobs
            .map(|(name, _)| name.clone())
            .chain(with_manifests.map(|(name, _)| name.clone()))
            .collect()
    }

    /// The tags of a repository and the digests that they point at.
    pub(crate) fn tags(&self, repository: &str) -> BTreeMap<String, String> {
        let state = self.inner.state();
        let all = state.manifests.get(repository).into_iter().flatten();
        all.filter(|(name, _)| !name.contains(':'))
            .map(|(name, (_, bytes))| (name.clone(), digest(bytes)))
            .collect()
    }

    /// The bytes of a manifest; `reference` is a tag or a digest.
    pub(crate) fn manifest(&self, repository: &str, reference: &str) -> Option<Vec<u8>> {
        let state = self.inner.state();
        let (_, bytes) = state.manifests.get(repository)?.get(reference)?;
        Some(bytes.to_vec())
    }

    /// The `Content-Type` with which a manifest came.
    pub(crate) fn manifest_type(&self, repository: &str, reference: &str) -> Option<String> {
        let state = self.inner.state();
        let (media_type, _) = state.manifests.get(repository)?.get(reference)?;
        Some(media_type.clone())
    }

    /// A blob, if it is in this repository and not only in another one.
    pub(crate) fn blob(&self, repository: &str, digest: &str) -> Option<Content> {
        let state = self.inner.state();
        state.has_blob(repository, digest).then(|| state.blobs[digest].clone())
    }

    /// Uploads that were begun and neither ended nor cancelled.
    pub(crate) fn open_uploads(&self) -> usize {
        self.server.settle();
        self.inner.state().sessions.len()
    }

    /// Manifests that were accepted although parts of them were missing at that time.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.inner.state().violations.clone()
    }

    /// What is not whole, one line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.server.settle();
        let state = self.inner.state();
        let mut problems = Vec::new();
        for (repository, manifests) in &state.manifests {
            for (name, (_, bytes)) in manifests {
                let shown = format!("{repository} {name}");
                let actual = digest(bytes);
                if name.contains(':') && *name != actual {
                    problems.push(format!("{shown}: the bytes have the digest {actual}"));
                }
                if !manifests.contains_key(&actual) {
                    problems.push(format!("{shown}: {actual} is not there under its digest"));
                }
                let Ok(manifest) = serde_json::from_slice::<Value>(bytes) else {
                    problems.push(format!("{shown}: not JSON"));
                    continue;
                };
                let mut missing = state.missing(repository, &manifest);
                missing.retain(|part| !(part.is_manifest && state.checks == Checks::Blobs));
                problems.extend(missing.iter().map(|part| {
                    let what = if part.is_manifest { "manifest" } else { "blob" };
                    format!("{shown}: {what} {} is not in the repository", part.digest)
                }));
                for part in parts_of(&manifest) {
                    let actual = state.size_of(repository, &part);
                    if actual.is_some() && actual != part.size {
                        problems.push(format!(
                            "{shown}: {} has {actual:?} bytes and not {:?}",
                            part.digest, part.size
                        ));
                    }
                }
            }
        }
        // What is not kept was hashed when it came.
        for (name, content) in state.blobs.iter().filter(|(_, content)| content.is_kept()) {
            let actual = content.digest();
            if *name != actual {
                problems.push(format!("blob {name}: the bytes have the digest {actual}"));
            }
        }
        problems
    }

    /// Panics unless every manifest, and so every tag, leads to a whole graph in its own repository, all bytes
    /// hash to their digests, and nothing else has ever been accepted.
    #[track_caller]
    pub(crate) fn assert_complete(&self) {
        let problems = [self.violations(), self.problems()].concat();
        assert!(problems.is_empty(), "the registry is not whole:\n{}", problems.join("\n"));
    }
}
