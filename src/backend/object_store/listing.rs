//! Which images a bucket has: its keys are listed but for those of blobs, and each tag is read.

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::ObjectTree;
use crate::{
    backend::{ListedImage, Lister, Listing, Names, Result, collection::MAX_IMAGES},
    image::{Descriptor, Reference, Repository, is_attachment_tag, is_tag},
};

/// Tags that are read at the same time.
const AT_ONCE: usize = 16;

#[async_trait]
impl Lister for ObjectTree {
    async fn images(&self) -> Result<Listing> {
        let (names, mut warnings) = self.names().await?;
        let read = names.into_iter().map(|name| async move {
            let manifest = self.manifest(&name).await;
            (name, manifest)
        });
        let read: Vec<_> = stream::iter(read).buffered(AT_ONCE).collect().await;
        let mut images = Vec::new();
        for (name, manifest) in read {
            match manifest {
                Ok(manifest) => images.push(ListedImage {
                    is_attachment: name.tag().is_some_and(is_attachment_tag),
                    label: None,
                    other_label: None,
                    manifest: Descriptor::new(
                        manifest.media_type(),
                        manifest.digest(),
                        manifest.bytes().len() as u64,
                    ),
                    name: Some(name),
                }),
                Err(error) => warnings.push(error.to_string()),
            }
        }
        Ok(Listing { images, warnings })
    }
}

impl ObjectTree {
    /// All tags below the prefix, and what else the user should know.
    pub(super) async fn names(&self) -> Result<(Vec<Reference>, Vec<String>)> {
        let inner = &self.inner;
        let failed = |e| inner.error("listing images", &e);
        let prefix = Some(&inner.prefix).filter(|prefix| prefix.parts().next().is_some());
        let top = inner.store.list_with_delimiter(prefix).await.map_err(failed)?;
        let blobs = inner.key("blobs");
        let depth = inner.prefix.parts().count();
        let (mut names, mut warnings) = (Vec::new(), Vec::new());
        for dir in top.common_prefixes.into_iter().filter(|dir| *dir != blobs) {
            let mut objects = inner.store.list(Some(&dir));
            while let Some(object) = objects.try_next().await.map_err(failed)? {
                let parts: Vec<String> = object
                    .location
                    .parts()
                    .skip(depth)
                    .map(|part| part.as_ref().to_owned())
                    .collect();
                names.extend(name_of(&parts));
                if names.len() > MAX_IMAGES {
                    warnings.push(format!(
                        "{}: only {MAX_IMAGES} of its images are listed",
                        inner.side
                    ));
                    return Ok((names, warnings));
                }
            }
        }
        Ok((names, warnings))
    }
}

/// The tag that a key is, below the prefix: `registry/repository/manifests/tag`.
fn name_of(parts: &[String]) -> Option<Reference> {
    let [registry, path @ .., manifests, tag] = parts else { return None };
    if manifests != "manifests" || !is_tag(tag) {
        return None;
    }
    Repository::new(registry, &path.join("/")).ok().map(|repository| repository.tagged(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_names_of_images_or_something_else() {
        for (key, expected) in [
            ("quay.io/x/y/manifests/v1", Some("quay.io/x/y:v1")),
            ("docker.io/library/nginx/manifests/1.25", Some("docker.io/library/nginx:1.25")),
            ("quay.io/x/manifests/manifests/v1", Some("quay.io/x/manifests:v1")),
            ("quay.io/manifests/v1", None),
            ("quay.io/x/y/v1", None),
            ("quay.io/x/y/manifests/sha256:0", None),
            ("v1", None),
        ] {
            let parts: Vec<String> = key.split('/').map(str::to_owned).collect();
            let name = name_of(&parts).map(|name| name.to_string());
            assert_eq!(name.as_deref(), expected, "{key}");
        }
    }
}
