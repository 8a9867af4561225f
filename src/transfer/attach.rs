//! What is attached to an image: OCI 1.1 referrers (by the API, or by the fallback tag
//! `sha256-<hex>`), and cosign's tags `sha256-<hex>.sig`, `.att` and `.sbom`.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt, future::join, stream};

use crate::{
    backend::{Backend, Error, Result, Tags},
    image::{Digest, Reference, Repository, referrers_tag},
    util::locked,
};

/// Subjects whose referrers are asked for at the same time.
const SUBJECTS_AT_ONCE: usize = 8;

/// Names that are looked up one by one for one image, in a repository with more tags than are listed.
const MAX_LOOKUPS: usize = 400;

/// What tools put behind the name that they make of a digest.
const SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];

/// Lists of tags, one for each repository, however many images it has.
#[derive(Default)]
pub(super) struct TagLists(Mutex<HashMap<Repository, Arc<tokio::sync::OnceCell<Tags>>>>);

impl TagLists {
    async fn get(&self, source: &dyn Backend, repository: &Repository) -> Result<Tags> {
        let cell = {
            let mut lists = locked(&self.0);
            lists.entry(repository.clone()).or_default().clone()
        };
        cell.get_or_try_init(|| source.tags(repository)).await.cloned()
    }

    /// Asks for the tags of `repository` early, so that they are there when they are needed.
    pub(super) async fn prefetch(&self, source: &dyn Backend, repository: &Repository) {
        // If it fails, whoever needs the list asks again, and tells.
        let _ = self.get(source, repository).await;
    }
}

/// Names of manifests that are attached to some others.
#[derive(Debug, Default)]
pub(super) struct Attached {
    pub digests: Vec<Digest>,
    pub tags: Vec<String>,
    /// Why there may be more than was found.
    pub troubles: Vec<String>,
}

/// Finds what is attached to `subjects` in `repository`.
pub(super) async fn find(
    source: &dyn Backend,
    lists: &TagLists,
    repository: &Repository,
    subjects: &[Digest],
) -> Attached {
    let mut attached = Attached::default();
    let Some((&first, rest)) = subjects.split_first() else { return attached };
    // Side by side: for an image that has not changed, these are the round trips that count.
    let (referrers, tags) =
        join(source.referrers(repository, first), lists.get(source, repository)).await;
    let mut trouble = |error: Error| {
        attached.troubles.push(format!("what is attached to it is not wholly known: {error}"));
    };
    let tags = tags.unwrap_or_else(|error| {
        // Whoever may only pull still finds each tag by its name.
        if !error.is_refusal() {
            trouble(error);
        }
        Tags::default()
    });
    let referrers = referrers.unwrap_or_else(|error| {
        trouble(error);
        None
    });
    // Where the list does not come from the registry itself, a tag has it.
    let mut untold: HashSet<Digest> = HashSet::new();
    let mut found = Vec::new();
    let rest = match referrers {
        Some(listed) => {
            found.extend(listed);
            rest
        }
        None => {
            untold.insert(first);
            // A registry that does not tell of one does not tell of the others either.
            if source.capabilities().has_round_trips {
                untold.extend(rest);
                &[]
            } else {
                rest
            }
        }
    };
    let more = rest
        .iter()
        .copied()
        .map(|subject| async move { (subject, source.referrers(repository, subject).await) });
    let more: Vec<_> = stream::iter(more).buffered(SUBJECTS_AT_ONCE).collect().await;
    for (subject, referrers) in more {
        match referrers {
            Ok(Some(referrers)) => found.extend(referrers),
            Ok(None) => {
                untold.insert(subject);
            }
            Err(error) => trouble(error),
        }
    }
    let mut seen = HashSet::new();
    let digests = found.iter().map(|descriptor| descriptor.digest);
    attached.digests = digests.filter(|digest| seen.insert(*digest)).collect();
    let there: HashSet<&str> = tags.names.iter().map(String::as_str).collect();
    let names = subjects.iter().flat_map(|s| tag_names(s).map(move |name| (*s, name)));
    let names = names.filter(|(s, name)| untold.contains(s) || name.contains('.'));
    let (listed, unlisted): (Vec<_>, Vec<_>) =
        names.partition(|(_, name)| there.contains(name.as_str()));
    attached.tags = listed.into_iter().map(|(_, name)| name).collect();
    if tags.complete {
        return attached;
    }
    // Too many tags to list.
    if unlisted.len() > MAX_LOOKUPS {
        attached.troubles.push(format!(
            "what is attached to it is not wholly known: it has {} parts, and its repository more tags than are listed",
            subjects.len()
        ));
    }
    let looked = unlisted.into_iter().take(MAX_LOOKUPS).map(|(subject, name)| async move {
        let exists = is_attached(source, &repository.tagged(&name), subject).await;
        (name, exists)
    });
    let looked: Vec<_> = stream::iter(looked).buffered(SUBJECTS_AT_ONCE).collect().await;
    for (name, exists) in looked {
        match exists {
            Ok(true) => attached.tags.push(name),
            Ok(false) => {}
            Err(error) => {
                attached.troubles.push(format!("whether it has {name} is not known: {error}"));
            }
        }
    }
    attached
}

/// Whether something other than `subject` itself is there under the name `tag`.
async fn is_attached(source: &dyn Backend, tag: &Reference, subject: Digest) -> Result<bool> {
    let found = match source.head(tag).await {
        Ok(None) => source.manifest(tag).await.map(|manifest| Some(manifest.digest())),
        found => found,
    };
    match found {
        Ok(found) => Ok(found != Some(subject)),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// `sha256-<hex>` and the names made of it.
fn tag_names(subject: &Digest) -> impl Iterator<Item = String> + use<> {
    let base = referrers_tag(subject);
    let suffixed = SUFFIXES.map(|suffix| format!("{base}{suffix}"));
    std::iter::once(base).chain(suffixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_attachments() {
        let names: Vec<String> = tag_names(&Digest::sha256(b"")).collect();
        assert_eq!(names.len(), 4);
        assert!(names[0].starts_with("sha256-e3b0c442") && names[1].ends_with("b855.sig"));
        assert!(names.iter().all(|name| crate::image::is_attachment_tag(name)));
    }
}
