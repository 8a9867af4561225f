//! Tags that tools make of a digest to attach something to the manifest that has it.

use super::Digest;

/// The tag that lists what refers to `subject` where a registry does not list that itself
/// (distribution specification, "Referrers Tag Schema"). Cosign's tags begin with it, too.
pub fn referrers_tag(subject: &Digest) -> String {
    subject.to_string().replacen(':', "-", 1)
}

/// The digest to whose manifest a tag attaches something: cosign's tags, and [`referrers_tag`].
pub fn attached_to(tag: &str) -> Option<Digest> {
    let name = tag.split('.').next().unwrap_or_default();
    let (algorithm, hex) = name.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Whether a tag is one that tools attach to another manifest: cosign's `sha256-<hex>.sig`, and
/// [`referrers_tag`].
pub fn is_attachment_tag(tag: &str) -> bool {
    attached_to(tag).is_some()
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
        assert!(is_attachment_tag(&signature) && !is_referrers_tag(&signature));
        for tag in ["1.0", "sha256-abc", "sha256", "latest-1", ""] {
            assert!(!is_attachment_tag(tag) && !is_referrers_tag(tag), "{tag}");
        }
    }
}
