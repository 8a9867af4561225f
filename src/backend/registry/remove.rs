//! Removing manifests from a registry (distribution specification, "Content Management").
//!
//! A manifest is removed by its digest: many registries do not remove a tag alone, and some that do remove the
//! manifest with it. So all tags that lead to it go, which whoever removes it is to know before.

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use reqwest::Method;

use super::{
    Registry,
    session::{Ask, Scope},
};
use crate::{
    backend::{Error, Kind, Names, Removal, Remover, Result},
    image::{Manifest, Reference, is_attachment_tag},
};

/// Tags that are looked at to find those that lead to a manifest.
const MAX_TAGS: usize = 500;

/// Tags that are looked at at the same time.
const AT_ONCE: usize = 8;

#[async_trait]
impl Remover for Registry {
    async fn removal(&self, name: &Reference) -> Result<Removal> {
        let repository = name.repository();
        let own = match name.tag() {
            Some(tag) => repository.tagged(tag),
            None => name.clone(),
        };
        let manifest = self.manifest(&own).await?;
        let digest = manifest.digest();
        let refuse = |reason: String| {
            Error::new(self.side(repository), format_args!("removing {name}"), Kind::Unfit(reason))
        };
        if name.digest().is_some_and(|expected| expected != digest) {
            return Err(refuse(format!("the tag leads to {digest}")));
        }
        let mut names: Vec<Reference> =
            name.tag().map(|tag| repository.tagged(tag)).into_iter().collect();
        // Without a list of tags, it is not known what else goes.
        let tags = self.all_tags(repository).await.map(|(tags, _)| tags);
        let mut may_be_more = tags.as_ref().map_or(true, |tags| tags.len() > MAX_TAGS);
        let tags = tags.unwrap_or_default().into_iter().take(MAX_TAGS);
        let tags = tags.filter(|tag| Some(tag.as_str()) != name.tag() && !is_attachment_tag(tag));
        let tags: Vec<Reference> = tags.map(|tag| repository.tagged(&tag)).collect();
        let mut looked = stream::iter(tags)
            .map(|tag| async move {
                let manifest = self.manifest(&tag).await;
                (tag, manifest)
            })
            .buffered(AT_ONCE);
        while let Some((tag, manifest)) = looked.next().await {
            let has_child = |manifest: &Manifest| {
                manifest.children().iter().any(|child| child.digest == digest)
            };
            match manifest {
                Ok(manifest) if manifest.digest() == digest => names.push(tag),
                Ok(manifest) if has_child(&manifest) => {
                    return Err(refuse(format!(
                        "the index {tag} needs its manifest {digest}, and would not be whole without it"
                    )));
                }
                Ok(_) => {}
                // It has gone since it was listed.
                Err(error) if error.is_not_found() => {}
                Err(_) => may_be_more = true,
            }
        }
        if names.is_empty() {
            names.push(repository.pinned(digest));
        }
        Ok(Removal { digest: Some(digest), names, may_be_more })
    }

    async fn remove(&self, removal: &Removal) -> Result<()> {
        let (Some(name), Some(digest)) = (removal.names.first(), removal.digest) else {
            return Ok(());
        };
        let repository = name.repository();
        let session = self.session(repository).await?;
        let doing = format!("removing manifest {digest} from {repository}");
        let url = session.wire.url(repository, &format!("manifests/{digest}"));
        let ask = Ask { scope: Scope::Delete, ..Ask::new(Method::DELETE, url, repository, &doing) };
        match session.send(&ask).await {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                Kind::Status { status: 405 | 501, message, .. }
                | Kind::Status { status: 400, message, .. } => {
                    let said =
                        if message.is_empty() { String::new() } else { format!(" ({message})") };
                    let reason = format!(
                        "it does not let manifests be removed{said}; whoever runs it has to allow it (REGISTRY_STORAGE_DELETE_ENABLED of docker-registry), or removes it there"
                    );
                    Err(session.wire.error(&doing, Kind::Unfit(reason)))
                }
                _ => Err(error),
            },
        }
    }
}
