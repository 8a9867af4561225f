//! What a path below the root of a mount can be, by its form alone. Nothing here asks anybody: most
//! of what a shell or a desktop looks for (`.git`, `autorun.inf`) is known not to exist by this.

use crate::{
    backend::images_dir::leads_to_manifests,
    image::{ChainId, Digest, Reference, Repository, is_tag},
};

/// The directory of all blobs.
pub(super) const BLOBS: &str = "blobs";

/// The directory of the manifests of a repository.
pub(super) const MANIFESTS: &str = "manifests";

/// Names that imgfs keeps to itself: its state in an images_dir, and its part of a mount.
const OWN: &str = ".imgfs";

/// The directory of merged chains of layers. No registry can be called so, and there is no colon in it: in the
/// options of overlayfs one ends a path.
const CHAINS: &str = ".trees";

/// Endings of files that desktops and tools look for at the root of everything that is mounted. None
/// is a top-level domain; a registry that is called so all the same is found with its port.
const FILE_ENDINGS: [&str; 17] = [
    "bak", "conf", "db", "exe", "inf", "ini", "json", "lnk", "lock", "log", "swp", "tmp", "toml",
    "txt", "xml", "yaml", "yml",
];

/// What a path can be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A directory that exists in any mount.
    Directory,
    /// A directory on the way to repositories that may exist.
    Way,
    /// A blob.
    Blob(Digest),
    /// The manifest that this reference names.
    Manifest(Reference),
    /// What is in a directory, but is nothing that a registry can have.
    Other,
    /// Hidden, whatever is there.
    Own,
    /// Inside images; what it can be there is told by [`inside`].
    Inside,
}

/// What a path below `.imgfs` can be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum InsideForm<'a> {
    /// A directory on the way to images, which has this path in the rest of the mount.
    Way(&'a str),
    /// An image by its tag: a link to the image.
    Tag(Reference),
    /// An image, and what in it.
    Image(Reference, Digest, &'a str),
    /// The directory of merged chains of layers.
    Chains,
    /// A merged chain of layers, and what in it.
    Chain(ChainId, &'a str),
    /// Nothing.
    Nothing,
}

/// Whether `path` (without a leading slash, empty for the root) is kept to ourselves.
pub(super) fn is_own(path: &str) -> bool {
    let rest = path.strip_prefix("blobs/").unwrap_or(path);
    rest == OWN || rest.strip_prefix(OWN).is_some_and(|below| below.starts_with('/'))
}

/// Whether a name at the root is that of a file rather than of a registry.
fn is_file_name(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    FILE_ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// What `path` (without a leading slash, empty for the root) can be.
pub(super) fn form(path: &str) -> Form {
    if path.is_empty() || path == BLOBS {
        return Form::Directory;
    }
    if is_own(path) {
        return if path.starts_with(OWN) { Form::Inside } else { Form::Own };
    }
    if let Some(name) = path.strip_prefix("blobs/") {
        return name.parse().map_or(Form::Other, Form::Blob);
    }
    let components: Vec<&str> = path.split('/').collect();
    let registry = components[0];
    // Just as in references: anything else at the root is no registry.
    if !registry.contains(['.', ':']) && registry != "localhost" || is_file_name(registry) {
        return Form::Other;
    }
    let repository = |parts: &[&str]| Repository::new(registry, &parts.join("/")).ok();
    if let [_, above @ .., MANIFESTS, name] = &components[..]
        && let Some(repository) = Some(above).filter(|a| !a.is_empty()).and_then(repository)
    {
        if let Ok(digest) = name.parse::<Digest>() {
            return Form::Manifest(repository.pinned(digest));
        }
        if is_tag(name) {
            return Form::Manifest(repository.tagged(name));
        }
        return Form::Other;
    }
    let parts = if components.len() > 1 { &components[1..] } else { &["x"][..] };
    if repository(parts).is_some() { Form::Way } else { Form::Other }
}

/// Whether `name` in the directory `dir` of an images_dir, which holds manifests or does not, is that of a
/// blob, a manifest or a map of tags. Other files there may be from anybody, and are not shown.
pub(super) fn is_file_of_images(dir: &str, holds_manifests: bool, name: &str) -> bool {
    let is_digest = || name.parse::<Digest>().is_ok();
    if dir == BLOBS { is_digest() } else { holds_manifests && (is_tag(name) || is_digest()) }
}

/// Whether the directory `path` of an images_dir may have such files, or directories with such files.
pub(super) fn is_directory_of_images(path: &str) -> bool {
    path.is_empty() || path == BLOBS || !path.starts_with("blobs/") && leads_to_manifests(path)
}

/// The path `rest` below `.imgfs`, or that itself.
pub(super) fn inside_path(rest: &str) -> String {
    if rest.is_empty() { OWN.to_owned() } else { format!("{OWN}/{rest}") }
}

/// What `path`, which is [`Form::Inside`], can be.
pub(super) fn inside(path: &str) -> InsideForm<'_> {
    let rest = path.strip_prefix(OWN).map_or("", |rest| rest.trim_start_matches('/'));
    if let Some(below) = rest.strip_prefix(CHAINS)
        && (below.is_empty() || below.starts_with('/'))
    {
        let below = below.trim_start_matches('/');
        let (name, rest) = below.split_once('/').unwrap_or((below, ""));
        return match name.parse() {
            _ if name.is_empty() => InsideForm::Chains,
            Ok(chain) => InsideForm::Chain(chain, rest),
            Err(_) => InsideForm::Nothing,
        };
    }
    let mut end = 0;
    for (number, component) in rest.split('/').enumerate() {
        end += component.len() + usize::from(number > 0);
        // The first one is a registry, perhaps with its port.
        if number == 0 || !component.contains([':', '@']) {
            continue;
        }
        let (name, below) = (&rest[..end], rest[end..].trim_start_matches('/'));
        let reference = name.parse::<Reference>().ok().filter(|_| !name.ends_with(':'));
        let Some(reference) = reference else { return InsideForm::Nothing };
        return match (reference.digest(), reference.tag()) {
            (Some(digest), None) => InsideForm::Image(reference, digest, below),
            (None, Some(_)) if below.is_empty() => InsideForm::Tag(reference),
            _ => InsideForm::Nothing,
        };
    }
    let is_way = rest.is_empty() || form(rest) == Form::Way;
    // Those of the rest of the mount.
    let is_other = rest.split('/').any(|component| component == MANIFESTS);
    if is_way && !is_other { InsideForm::Way(rest) } else { InsideForm::Nothing }
}

/// The path of a merged chain of layers, below `.imgfs`.
pub(super) fn chain_path(chain: &ChainId) -> String {
    format!("{CHAINS}/{chain}")
}

/// The repository of which `path` is the directory of manifests.
pub(super) fn repository_of(path: &str) -> Option<&str> {
    path.strip_suffix(MANIFESTS)?.strip_suffix('/').filter(|repository| repository.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_paths_inside_images() {
        let digest = Digest::sha256(b"x");
        let image = format!("quay.io/a/b@{digest}");
        let reference: Reference = image.parse().unwrap();
        let chain = digest.to_hex().parse().unwrap();
        for (path, expected) in [
            ("", InsideForm::Way("")),
            ("/host:5000", InsideForm::Way("host:5000")),
            ("/quay.io/a", InsideForm::Way("quay.io/a")),
            ("/quay.io/a/manifests", InsideForm::Nothing),
            ("/quay.io/a:v1", InsideForm::Tag("quay.io/a:v1".parse().unwrap())),
            ("/host:5000/a:v1", InsideForm::Tag("host:5000/a:v1".parse().unwrap())),
            ("/quay.io/a:v1/x", InsideForm::Nothing),
            ("/quay.io/a:", InsideForm::Nothing),
            ("/.trees", InsideForm::Chains),
            ("/.trees/diff1", InsideForm::Nothing),
            (&format!("/.trees/{}", digest.to_hex()), InsideForm::Chain(chain, "")),
            (&format!("/.trees/{}/a/b", digest.to_hex()), InsideForm::Chain(chain, "a/b")),
            (&format!("/{image}"), InsideForm::Image(reference.clone(), digest, "")),
            (
                &format!("/{image}/linux-amd64/layers/0"),
                InsideForm::Image(reference, digest, "linux-amd64/layers/0"),
            ),
            (&format!("/quay.io/a:v1@{digest}"), InsideForm::Nothing),
            ("/.git", InsideForm::Nothing),
            ("/blobs", InsideForm::Nothing),
        ] {
            assert_eq!(inside(&format!("{OWN}{path}")), expected, "{path}");
        }
    }

    #[test]
    fn what_of_an_images_dir_is_shown() {
        use crate::backend::images_dir::holds_manifests;
        let digest = Digest::sha256(b"x").to_string();
        let file = |dir, name| is_file_of_images(dir, holds_manifests(dir), name);
        for (dir, name, shown) in [
            ("blobs", &*digest, true),
            ("blobs", "x", false),
            ("quay.io/a/manifests", "v1", true),
            ("quay.io/a/manifests", "layout", true),
            ("quay.io/a/manifests", &digest, true),
            ("calico/cni/manifests", "v1", true),
            ("registry-1.docker.io/library/redis/manifests", "7", true),
            ("quay.io/a/manifests", ".v1.swp", false),
            ("quay.io/a", "v1", false),
            ("quay.io/manifests", "v1", false),
            ("quay.io/A/manifests", "v1", false),
            ("", "README", false),
            ("", &digest, false),
        ] {
            assert_eq!(file(dir, name), shown, "{dir} {name}");
        }
        for path in ["", "blobs", "quay.io", "quay.io/a/manifests", "calico", "localhost:5000/a"] {
            assert!(is_directory_of_images(path), "{path}");
        }
        for path in ["blobs/x", "lost+found", ".git", "quay.io/A", "quay.io/a/manifests/-x"] {
            assert!(!is_directory_of_images(path), "{path}");
        }
    }

    #[test]
    fn forms_of_paths() {
        let digest = Digest::sha256(b"x");
        let reference = |text: &str| Form::Manifest(text.parse().unwrap());
        for (path, expected) in [
            ("", Form::Directory),
            ("blobs", Form::Directory),
            ("blobs/.imgfs", Form::Own),
            ("blobs/.imgfs/cache", Form::Own),
            (".imgfs", Form::Inside),
            (".imgfs/docker.io", Form::Inside),
            (".imgfsx", Form::Other),
            ("blobs/x", Form::Other),
            (&format!("blobs/{digest}"), Form::Blob(digest)),
            ("docker.io", Form::Way),
            ("localhost", Form::Way),
            ("host:5000/x", Form::Way),
            ("quay.io/a/b/manifests", Form::Way),
            ("quay.io/a/b/manifests/v1", reference("quay.io/a/b:v1")),
            (&format!("quay.io/a/manifests/{digest}"), reference(&format!("quay.io/a@{digest}"))),
            ("docker.io/nginx/manifests/1", reference("nginx:1")),
            ("quay.io/manifests/v1", Form::Way),
            ("quay.io/a/manifests/.swp", Form::Other),
            ("quay.io/a/manifests/v1/x", Form::Way),
            (".git", Form::Other),
            ("autorun.inf", Form::Other),
            ("Thumbs.DB", Form::Other),
            ("thumbs.db:5000", Form::Way),
            ("info", Form::Other),
            ("Trash", Form::Other),
            ("quay.io/.git", Form::Other),
            ("quay.io/UPPER", Form::Other),
            ("images", Form::Other),
        ] {
            assert_eq!(form(path), expected, "{path}");
        }
    }
}
