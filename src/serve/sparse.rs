//! Indexes that lack children on purpose, and how that is remembered.

use std::collections::HashSet;

use super::{route::Target, tree::Tree};
use crate::{
    backend::Result,
    image::{Digest, Manifest, Platform, PlatformFilter, Repository, choose},
};

/// What a sparse index is remembered by whose children cannot be told by their platforms: no platform is called so, and
/// thus nothing counts as missing.
const NO_PLATFORM: &str = "none/none";

/// The platforms for which the children of `index` are wanted, if those `here` are all that are wanted.
pub(super) fn wanted_platforms(index: &Manifest, here: &HashSet<Digest>) -> String {
    let children = index.children();
    let present = children.iter().filter(|child| here.contains(&child.digest));
    let platforms = present.filter_map(|child| child.platform.as_ref());
    let mut platforms: Vec<String> =
        platforms.filter(|platform| !platform.is_unknown()).map(Platform::to_string).collect();
    platforms.sort();
    platforms.dedup();
    if platforms.is_empty() {
        return NO_PLATFORM.to_owned();
    }
    let text = platforms.join(",");
    let Ok(filter) = PlatformFilter::parse(&[&text]) else { return NO_PLATFORM.to_owned() };
    let (chosen, _) = choose(children, &filter);
    // Attestations go with what they attest, and need not have been brought.
    let mut chosen = chosen.iter().filter(|(_, is_open)| !is_open);
    match chosen.all(|&(at, _)| here.contains(&children[at].digest)) {
        true => text,
        false => NO_PLATFORM.to_owned(),
    }
}

/// The platforms for which the children of an index of `repository` are wanted, if those are all that are there.
pub(super) async fn present_platforms(
    tree: &dyn Tree,
    repository: &Repository,
    index: &Manifest,
) -> Result<String> {
    let mut here = HashSet::new();
    for child in index.children() {
        if tree.find(repository, &Target::Digest(child.digest)).await?.is_some() {
            here.insert(child.digest);
        }
    }
    Ok(wanted_platforms(index, &here))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_is_what_is_wanted() {
        let digests = ["amd64", "arm64", "attestation"].map(|text| Digest::sha256(text.as_bytes()));
        let [amd64, arm64, attestation] = digests;
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {"digest": amd64.to_string(), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
                {"digest": arm64.to_string(), "size": 1, "platform": {"os": "linux", "architecture": "arm64"}},
                {"digest": attestation.to_string(), "size": 1,
                 "platform": {"os": "unknown", "architecture": "unknown"},
                 "annotations": {"vnd.docker.reference.type": "attestation-manifest",
                                 "vnd.docker.reference.digest": amd64.to_string()}},
            ],
        });
        let index = Manifest::parse(index.to_string().into(), None).unwrap();
        let wanted = |here: &[Digest]| wanted_platforms(&index, &here.iter().copied().collect());
        assert_eq!(wanted(&[arm64]), "linux/arm64");
        assert_eq!(wanted(&[amd64, attestation]), "linux/amd64");
        assert_eq!(wanted(&[amd64]), NO_PLATFORM);
        assert_eq!(wanted(&[]), NO_PLATFORM);
    }
}
