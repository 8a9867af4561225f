//! What is attached to a manifest: tags that tools make of its digest, and lists of what refers to it.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Algorithm, Descriptor, Digest, Manifest, MediaType, View};

/// The longest reference in a [`referrers_tag`], in characters: that of a digest by SHA-512 is cut off there.
const MAX_REFERENCE: usize = 64;

/// The tag that lists what refers to `subject` where a registry does not list that itself
/// (distribution specification, "Referrers Tag Schema"). Cosign's tags begin with it, too.
pub fn referrers_tag(subject: &Digest) -> String {
    let hex = subject.to_hex();
    let reference = hex.get(..MAX_REFERENCE).unwrap_or(&hex);
    format!("{}-{reference}", subject.algorithm().as_str())
}

/// Whether a tag is one that tools attach to another manifest: cosign's `sha256-<hex>.sig`, and
/// [`referrers_tag`].
pub fn is_attachment_tag(tag: &str) -> bool {
    let Some((algorithm, hex)) = stem(tag).split_once('-') else { return false };
    let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    let known = [Algorithm::Sha256, Algorithm::Sha512];
    let is_known = known.iter().any(|known| known.as_str() == algorithm);
    is_known && hex.len() == MAX_REFERENCE && hex.bytes().all(is_hex)
}

/// Whether a tag is one that tools attach to `subject`. A registry that takes such a tag for the digest itself
/// (GitLab's) answers with the subject, which is not attached to itself.
pub fn is_attached_to(tag: &str, subject: &Digest) -> bool {
    stem(tag) == referrers_tag(subject)
}

/// What a list of referrers says of one (distribution specification, "Listing Referrers").
///
/// ```
/// use imgfs::image::{Manifest, listed_referrer};
///
/// let text = format!(
///     r#"{{"schemaVersion": 2, "layers": [], "annotations": {{"a": "b"}}, "config": {{
///         "mediaType": "application/x", "size": 2, "digest": "sha256:{}"}}}}"#,
///     "0".repeat(64)
/// );
/// let listed = listed_referrer(&Manifest::parse(text.into(), None)?);
/// assert_eq!(listed.artifact_type.as_deref(), Some("application/x"));
/// assert_eq!(listed.annotations["a"], "b");
/// # Ok::<(), imgfs::image::ManifestError>(())
/// ```
pub fn listed_referrer(referrer: &Manifest) -> Descriptor {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Said {
        artifact_type: Option<String>,
    }
    // It has been parsed as a manifest, so at worst nothing else can be read of it.
    let said: Said = serde_json::from_slice(referrer.bytes()).unwrap_or_default();
    let of_config = match referrer.view() {
        View::Image { config, .. } => Some(config.media_type.clone()),
        View::Index { .. } => None,
    };
    let size = referrer.bytes().len() as u64;
    let mut listed = Descriptor::new(referrer.media_type(), referrer.digest(), size);
    listed.artifact_type = said.artifact_type.filter(|kind| !kind.is_empty()).or(of_config);
    listed.artifact_type = listed.artifact_type.filter(|kind| !kind.is_empty());
    listed.annotations = referrer.annotations().clone();
    listed
}

/// A descriptor as it stands in a list of referrers.
pub fn listed_json(descriptor: &Descriptor) -> Value {
    let mut json = json!({
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest.to_string(),
        "size": descriptor.size,
    });
    if let Some(kind) = &descriptor.artifact_type {
        json["artifactType"] = kind.as_str().into();
    }
    if !descriptor.annotations.is_empty() {
        json["annotations"] = json!(descriptor.annotations);
    }
    json
}

/// The index that lists `descriptors`, each of them as JSON.
pub fn referrers_index<T: AsRef<str>>(descriptors: impl IntoIterator<Item = T>) -> Bytes {
    let kind = MediaType::OciIndex.as_str();
    let mut text = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":["#);
    for (number, descriptor) in descriptors.into_iter().enumerate() {
        text.push_str(if number > 0 { "," } else { "" });
        text.push_str(descriptor.as_ref());
    }
    text.push_str("]}");
    text.into()
}

fn stem(tag: &str) -> &str {
    tag.split_once('.').map_or(tag, |(stem, _)| stem)
}

/// Whether a tag is a [`referrers_tag`].
pub fn is_referrers_tag(tag: &str) -> bool {
    !tag.contains('.') && is_attachment_tag(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_attachments() {
        let list = referrers_tag(&Digest::sha256(b""));
        assert!(list.starts_with("sha256-e3b0c442") && is_referrers_tag(&list));
        let signature = format!("{list}.sig");
        assert!(is_attached_to(&signature, &Digest::sha256(b"")));
        assert!(!is_attached_to(&signature, &Digest::sha256(b"another")));
        assert!(is_attachment_tag(&signature) && !is_referrers_tag(&signature));
        // As many characters as a tag may have are more than those of this digest.
        let long = referrers_tag(&Digest::of(Algorithm::Sha512, b""));
        assert!(long.starts_with("sha512-cf83e135") && long.len() == 71 && is_referrers_tag(&long));
        for tag in ["1.0", "sha256-abc", "sha256", "latest-1", ""] {
            assert!(!is_attachment_tag(tag) && !is_referrers_tag(tag), "{tag}");
        }
    }
}
