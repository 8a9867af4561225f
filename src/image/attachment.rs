//! Tags that tools make of a digest to attach something to the manifest that has it.

use super::{Algorithm, Digest};

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
