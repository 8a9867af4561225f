//! What a pull, a push, a copy or a task asks for, in its one canonical form.

use std::{fmt, path::PathBuf, str::FromStr};

use super::place::{KNOWN, Medium};
use crate::{
    backend::{NameBelow, registry},
    image::Repository,
    template::{self, Template},
    transfer,
};

/// One transfer: what to copy from where to where under which names.
pub struct Request {
    /// The tree that has the images.
    pub from: TreeSpec,
    /// The tree that gets them.
    pub to: TreeSpec,
    /// Which of them.
    pub images: Images,
    /// The repository, maybe with a tag, of images that their place does not name in full.
    pub name: Option<NameBelow>,
    /// Only images whose name, as a person writes it (`docker.io/library/nginx:1.25`), matches.
    pub pattern: Option<regex::Regex>,
    /// Renders the name at the source of each image, if it is not the image's own. What it gives
    /// is brought into form by [`bare_name`].
    pub source: Option<Template>,
    /// Renders the name at the target of each image, if it is not the image's own. What it gives
    /// is brought into form by [`bare_name`].
    pub dest: Option<Template>,
    /// Platforms, policy and so on.
    pub options: transfer::Options,
    /// Variables of the templates.
    pub vars: template::Value,
    /// Credentials and settings of registries that the request itself brings; they go before those
    /// of the command line.
    pub auths: Vec<registry::Entry>,
    /// The request's default, which an entry overrides.
    pub skip_tls_verify: Option<bool>,
}

impl Request {
    /// One in which everything else is as by default.
    pub fn new(from: TreeSpec, to: TreeSpec, images: Images) -> Self {
        Self {
            from,
            to,
            images,
            name: None,
            pattern: None,
            source: None,
            dest: None,
            options: transfer::Options::default(),
            vars: template::Value::default(),
            auths: Vec::new(),
            skip_tls_verify: None,
        }
    }
}

impl fmt::Debug for Request {
    /// Without the variables, among which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("from", &self.from)
            .field("to", &self.to)
            .field("images", &self.images)
            .field("name", &self.name)
            .field("pattern", &self.pattern)
            .field("source", &self.source)
            .field("dest", &self.dest)
            .field("options", &self.options)
            .field("auths", &self.auths)
            .field("skip_tls_verify", &self.skip_tls_verify)
            .finish_non_exhaustive()
    }
}

/// A tree of images, as it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeSpec {
    /// KubeKey's `images_dir` at this path.
    Directory(PathBuf),
    /// Registries.
    Registry {
        /// Below this prefix, `host[:port][/path]` in normal form; or all registries when empty.
        prefix: String,
    },
    /// Something else that holds images.
    Medium(Medium),
}

impl Default for TreeSpec {
    /// The directory that the process is in.
    fn default() -> Self {
        Self::Directory(PathBuf::from("."))
    }
}

/// Which images of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Images {
    /// These, as they were written.
    Listed(Vec<String>),
    /// Every tagged image of the tree.
    All,
}

/// Why a text does not name a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeSpecError {
    /// There is no text.
    #[error("a tree is a directory or registry://HOST[:PORT][/PATH], and this is empty")]
    Empty,
    /// There is no path behind `local://`.
    #[error("`local://` needs the path of a directory")]
    NoPath,
    /// It starts with a scheme, given with the colon behind it, that means nothing here.
    #[error("`{0}` is no tree of images{reason}; known are {KNOWN}", reason = scheme_reason(.0))]
    Scheme(String),
    /// The scheme is known, and what is behind it is not what it takes.
    #[error("`{0}`: expected {1}")]
    Incomplete(String, String),
    /// It has a user name in front of the host. It is not shown, for a password may be with it.
    #[error("credentials do not belong in the name of a registry; give them as `auths`")]
    Credentials,
    /// It has a query or a fragment.
    #[error("`{0}`: a registry has no `?` and no `#` in its name")]
    Query(String),
    /// It names one image and not a tree.
    #[error("`{0}` names an image, not a tree of them; leave out its tag or digest")]
    Image(String),
    /// It is no name of a registry, or of a part of one.
    #[error("`{text}` is not the name of a registry: {reason}")]
    Registry {
        /// As it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
}

impl FromStr for TreeSpec {
    type Err = TreeSpecError;

    /// Reads `registry://HOST[:PORT][/PATH]` or KubeKey's `oci://...`, where nothing behind the
    /// scheme means all registries; `local://PATH`; the places that [`Medium`] has; everything without a
    /// scheme is a path. A path with a colon in its first component needs a `./` before it.
    fn from_str(text: &str) -> Result<Self, TreeSpecError> {
        let text = text.trim();
        match split_scheme(text) {
            Some(("oci", rest)) if rest.starts_with('/') && rest != "/" => {
                Err(TreeSpecError::Registry {
                    text: rest.to_owned(),
                    reason: format!("an OCI image layout is written with one colon, oci:{rest}"),
                })
            }
            Some(("registry" | "oci", rest)) => registry_prefix(rest),
            Some(("local", "")) => Err(TreeSpecError::NoPath),
            // Everything behind it is the path, as it is.
            Some(("local", path)) => Ok(Self::Directory(path.into())),
            Some((scheme, rest)) => match Medium::parse_url(scheme, rest) {
                Some(medium) => Ok(Self::Medium(medium?)),
                None => Err(TreeSpecError::Scheme(format!("{scheme}://"))),
            },
            None if text.is_empty() => Err(TreeSpecError::Empty),
            None => match split_word(text) {
                None => Ok(Self::Directory(text.into())),
                Some((scheme, rest)) => match Medium::parse(scheme, rest) {
                    Some(medium) => Ok(Self::Medium(medium?)),
                    None => Err(TreeSpecError::Scheme(format!("{scheme}:"))),
                },
            },
        }
    }
}

/// What there is to say of a scheme that means nothing here.
fn scheme_reason(scheme: &str) -> &'static str {
    match scheme.trim_end_matches(['/', ':']) {
        "containers-storage" => {
            " (it keeps no compressed layers, so digests would change; `podman push` takes images out of it, \
             to oci:DIR or to a registry)"
        }
        "docker" | "http" | "https" => " (a registry is registry://HOST[:PORT][/PATH])",
        _ if scheme.ends_with("://") => "",
        _ => {
            " (a path with a colon in it needs a `./` before it; into an image look `imgfs ls` and `imgfs inspect`)"
        }
    }
}

impl fmt::Display for TreeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Registry { prefix } => write!(f, "registry://{prefix}"),
            Self::Medium(medium) => medium.fmt(f),
        }
    }
}

/// `word:rest`, where the word stands before the first `/`.
fn split_word(text: &str) -> Option<(&str, &str)> {
    let (word, rest) = text.split_once(':')?;
    let is_word = word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b));
    is_word.then_some((word, rest))
}

/// `oci://rest`. What stands before `://` is a scheme if it is a word; a path may contain `://`.
pub(crate) fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let is_word = !scheme.is_empty()
        && scheme.len() <= 32
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    is_word.then_some((scheme, rest))
}

/// The name in what `src` or `dest` of an image gives: KubeKey's newer form has `oci://` before it,
/// and both have white space around it where they are written over several lines.
pub fn bare_name(rendered: &str) -> &str {
    let name = rendered.trim();
    match split_scheme(name) {
        Some(("oci" | "registry", rest)) => rest,
        _ => name,
    }
}

fn registry_prefix(text: &str) -> Result<TreeSpec, TreeSpecError> {
    let name = text.strip_suffix('/').unwrap_or(text);
    if name.is_empty() {
        return Ok(TreeSpec::Registry { prefix: String::new() });
    }
    let (host, path) = match name.split_once('/') {
        Some((host, path)) => (host, Some(path)),
        None => (name, None),
    };
    if host.contains('@') {
        return Err(TreeSpecError::Credentials);
    }
    if name.contains(['?', '#']) {
        return Err(TreeSpecError::Query(text.to_owned()));
    }
    if path.is_some_and(|path| path.contains([':', '@'])) {
        return Err(TreeSpecError::Image(text.to_owned()));
    }
    let refuse =
        |reason: &str| TreeSpecError::Registry { text: text.to_owned(), reason: reason.into() };
    if !host.contains(['.', ':']) && !host.eq_ignore_ascii_case("localhost") {
        return Err(refuse("the host has no dot and no port, and is not localhost"));
    }
    // Any repository will do to have the host and the path checked.
    let repository = Repository::new(host, &format!("{}/x", path.unwrap_or("x")))
        .map_err(|error| refuse(error.reason()))?;
    let prefix = match path {
        None => repository.registry().to_owned(),
        Some(path) => format!("{}/{path}", repository.registry()),
    };
    Ok(TreeSpec::Registry { prefix })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{ArchiveFormat, Store};

    #[test]
    fn trees_are_read() {
        let registry = |prefix: &str| TreeSpec::Registry { prefix: prefix.into() };
        let directory = |path: &str| TreeSpec::Directory(path.into());
        for (text, tree) in [
            ("images", directory("images")),
            ("/tmp/images/", directory("/tmp/images/")),
            (" ./a b \n", directory("./a b")),
            ("registry.example.com", directory("registry.example.com")),
            ("local:///tmp/images/", directory("/tmp/images/")),
            ("local://images", directory("images")),
            ("local://a?b#c@d", directory("a?b#c@d")),
            ("a/x://y", directory("a/x://y")),
            ("./a:b", directory("./a:b")),
            ("/a:b/c", directory("/a:b/c")),
            (".a:b", directory(".a:b")),
            ("registry://hub.example.com", registry("hub.example.com")),
            ("registry://Hub.Example.com:5000/", registry("hub.example.com:5000")),
            ("oci://hub.example.com/team/a", registry("hub.example.com/team/a")),
            ("oci://localhost/a", registry("localhost/a")),
            ("oci://[::1]:5000", registry("[::1]:5000")),
            ("oci://index.docker.io/team", registry("docker.io/team")),
            ("oci://registry-1.docker.io", registry("docker.io")),
            ("oci://", registry("")),
            ("registry:///", registry("")),
        ] {
            assert_eq!(text.parse::<TreeSpec>().as_ref(), Ok(&tree), "{text}");
            assert_eq!(tree.to_string().parse::<TreeSpec>(), Ok(tree));
        }
    }

    #[test]
    fn other_media_are_read() {
        let layout = |dir: &str, name: Option<&str>| Medium::OciLayout {
            dir: dir.into(),
            name: name.map(str::to_owned),
        };
        let archive = |format, file: &str, name: Option<&str>| Medium::Archive {
            format,
            file: file.into(),
            name: name.map(str::to_owned),
        };
        let store = |store, bucket: &str, prefix: &str| Medium::ObjectStore {
            store,
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        for (text, medium) in [
            ("oci:a/b", layout("a/b", None)),
            ("oci:/a:v1", layout("/a", Some("v1"))),
            ("oci:a:quay.io/x/y:v1", layout("a", Some("quay.io/x/y:v1"))),
            ("oci-archive:a.tar", archive(ArchiveFormat::Oci, "a.tar", None)),
            ("oci-archive:-", archive(ArchiveFormat::Oci, "-", None)),
            ("docker-archive:a.tar:x:1", archive(ArchiveFormat::Docker, "a.tar", Some("x:1"))),
            ("dir:/a:b", Medium::SkopeoDir("/a:b".into())),
            ("docker-daemon:", Medium::DockerDaemon { name: None }),
            ("docker-daemon:x:1", Medium::DockerDaemon { name: Some("x:1".into()) }),
            ("s3://bucket", store(Store::S3, "bucket", "")),
            ("s3://bucket/", store(Store::S3, "bucket", "")),
            ("gs://my.bucket/a/b/", store(Store::Gcs, "my.bucket", "a/b")),
            ("az://container/x", store(Store::Azure, "container", "x")),
        ] {
            let tree = text.parse::<TreeSpec>().unwrap();
            assert_eq!(tree, TreeSpec::Medium(medium), "{text}");
            assert_eq!(tree.to_string().parse::<TreeSpec>(), Ok(tree));
        }
    }

    #[test]
    fn an_unknown_scheme_is_told_what_is_known() {
        for text in ["oci-archiv:a.tar", "docker://x", "ftp://x/y", "quay.io:443/x", "sif:x.sif"] {
            let error = text.parse::<TreeSpec>().unwrap_err().to_string();
            for known in [
                "oci:DIR",
                "oci-archive:",
                "docker-archive:",
                "dir:",
                "docker-daemon:",
                "s3://",
                "gs://",
                "az://",
            ] {
                assert!(error.contains(known), "{text}: {error}");
            }
        }
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        for (text, part) in [
            ("images:old", "needs a `./` before it"),
            ("containers-storage:x", "digests would change"),
            ("oci:", "expected oci:DIR[:NAME]"),
            ("oci:a:", "expected oci:DIR[:NAME]"),
            ("oci:///srv/a", "oci:/srv/a"),
            ("oci-archive:", "expected oci-archive:FILE[:NAME]"),
            ("dir:", "expected dir:DIR"),
            ("s3://", "expected s3://BUCKET[/PREFIX]"),
            ("s3://b/../c", "expected s3://BUCKET[/PREFIX]"),
            ("s3://key:hunter2@b/c", "credentials do not belong"),
            ("", "this is empty"),
            (" \n", "this is empty"),
            ("local://", "needs the path"),
            ("https://hub.example.com", "`https://` is no tree of images"),
            ("docker://x", "`docker://` is no tree"),
            ("oci://user:hunter2@hub.example.com", "credentials do not belong"),
            ("oci://user@hub.example.com/x", "credentials do not belong"),
            ("oci://hub.example.com/x?y=1", "no `?`"),
            ("oci://hub.example.com#x", "no `?`"),
            ("oci://hub.example.com:99999", "no valid port"),
            ("oci://hub.example.com:/x", "no valid port"),
            ("oci://hub.example.com:x", "no valid port"),
            ("oci://hub", "no dot and no port"),
            ("oci://hub.example.com//x", "not the name of a registry"),
            ("oci:///x", "not the name of a registry"),
            ("oci://hub.example.com/../x", "not the name of a registry"),
            ("oci://hub.example.com/Team", "lower case"),
            ("oci://hub.example.com/a:1", "names an image"),
            ("oci://hub.example.com/a@sha256:0", "names an image"),
            ("oci://hub..example.com", "not the name of a registry"),
        ] {
            let error = text.parse::<TreeSpec>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn names_are_freed_of_what_stands_around_them() {
        for text in ["a.io/x:1", " a.io/x:1\n", "\n  oci://a.io/x:1\n", "registry://a.io/x:1"] {
            assert_eq!(bare_name(text), "a.io/x:1");
        }
        assert_eq!(bare_name("local://x"), "local://x");
    }
}
