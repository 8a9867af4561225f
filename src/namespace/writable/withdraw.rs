//! Removing tags at registries.
//!
//! A registry removes a manifest by its digest, and with it all tags that lead to it. Nobody can be asked here
//! whether that is wanted, so a tag is only removed if it is the only one.

use super::place::{ManifestPlace, Place};
use crate::{
    backend::{Kind, Removal},
    image::Reference,
    namespace::{Refusal, Upstream, ViewError},
};

type Result<T> = std::result::Result<T, ViewError>;

/// Removes a tag at its registry, where it need not be.
pub(super) async fn withdraw(upstream: &dyn Upstream, tag: &Reference) -> Result<()> {
    let Some(removal) = removal(upstream, tag).await? else { return Ok(()) };
    match upstream.delete(&removal).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(match error.kind() {
            Kind::Unfit(_) => ViewError::Refused(Refusal::NotPermitted, error.to_string()),
            _ => ViewError::Tree(error),
        }),
    }
}

/// Refuses to move a tag to where it would be removed with its old name, before anything has been copied.
pub(super) async fn check_move(
    upstream: &dyn Upstream,
    was: &ManifestPlace,
    to: &Place,
) -> Result<()> {
    let Some(removal) = removal(upstream, &was.reference()).await? else { return Ok(()) };
    let (Place::Manifest(to), Some(old)) = (to, removal.names.first()) else { return Ok(()) };
    let new = upstream.target(&to.reference()).map_err(ViewError::Tree)?;
    if new.repository() != old.repository() {
        return Ok(());
    }
    let reason = format!(
        "{old} is not renamed to {new}: a registry removes manifests by their digests, so that both names would go; \
         copy it (cp), and keep both"
    );
    Err(ViewError::Refused(Refusal::NotPermitted, reason))
}

/// What goes with a tag at its registry, which is the tag alone; `None` if it is not there.
async fn removal(upstream: &dyn Upstream, tag: &Reference) -> Result<Option<Removal>> {
    let removal = match upstream.removal(tag).await {
        Ok(removal) => removal,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => {
            return Err(match error.kind() {
                Kind::Unfit(_) => ViewError::Refused(Refusal::Busy, error.to_string()),
                _ => ViewError::Tree(error),
            });
        }
    };
    let Some((name, others)) = removal.names.split_first() else { return Ok(None) };
    if others.is_empty() && !removal.may_be_more {
        return Ok(Some(removal));
    }
    let mut others: Vec<String> = others.iter().map(ToString::to_string).collect();
    if removal.may_be_more {
        others.push("tags of which the registry does not tell".to_owned());
    }
    let reason = format!(
        "{name} is not removed: a registry removes a manifest with all its tags, here also {}; if that is what you \
         want: imgfs rm --yes registry://{name}",
        others.join(", ")
    );
    Err(ViewError::Refused(Refusal::Busy, reason))
}
