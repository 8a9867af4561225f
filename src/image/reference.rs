//! Image references as people write them, and their one normal form.
//!
//! The grammar is that of `distribution/reference`, which Docker, containerd and the others share;
//! around it stand the leniencies that KubeKey's documents use: `index.docker.io` and
//! `registry-1.docker.io` are `docker.io`, `name:sha256:<hex>` is `name@sha256:<hex>`, `name:` is
//! `name:latest`. `oci_client::Reference` has the same grammar as one regular expression, whose
//! compilation takes 18 MiB and 15 ms at every start; it serves as the oracle in the tests.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use super::Digest;

/// A repository: a registry and a path in it, both as they stand in a reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    registry: String,
    path: String,
}

impl Repository {
    /// Checks and normalises the two parts; the registry must be given.
    pub fn new(registry: &str, path: &str) -> Result<Self, ReferenceError> {
        format!("{registry}/{path}").parse::<Reference>().and_then(|reference| {
            let same = reference.repository.path == path
                || reference.repository.path.strip_prefix("library/") == Some(path);
            if same { Ok(reference.repository) } else { Err(ReferenceError::form(path)) }
        })
    }

    /// The registry's name, with its port if it has one. Docker Hub is `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path below the registry, such as `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What it is called in the name of a file or in a key: the SHA-256 of its name, as 64 hexadecimal digits.
    pub(crate) fn hashed_name(&self) -> String {
        Digest::sha256(self.to_string().as_bytes()).to_hex()
    }

    /// A reference to `tag` in this repository.
    pub fn tagged(&self, tag: &str) -> Reference {
        Reference { repository: self.clone(), tag: Some(tag.to_owned()), digest: None }
    }

    /// A reference to `digest` in this repository.
    pub fn pinned(&self, digest: Digest) -> Reference {
        Reference { repository: self.clone(), tag: None, digest: Some(digest) }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)
    }
}

/// A reference in normal form: always with a registry, and with a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    repository: Repository,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: String,
}

impl ReferenceError {
    fn new(text: &str, reason: impl Into<String>) -> Self {
        Self { text: text.chars().take(300).collect(), reason: reason.into() }
    }

    fn form(text: &str) -> Self {
        Self::new(text, FORM)
    }

    /// What is wrong, without the text.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl Reference {
    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The tag, if one was given. A reference with neither tag nor digest got `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ReferenceError::new(text, "it is empty"));
        }
        if text.len() > 4096 {
            return Err(ReferenceError::new(text, "it is longer than 4096 bytes"));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(ReferenceError::new(text, format!("leave out the `{scheme}://`")));
        }
        let plain = lenient(text);
        let (name, digest) = match plain.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (plain.as_str(), None),
        };
        let digest = digest
            .map(str::parse::<Digest>)
            .transpose()
            .map_err(|e| ReferenceError::new(text, e.to_string()))?;
        // A colon in the last component starts the tag; one further left belongs to a port.
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].split_once(':') {
            Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
            None => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::form(text));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if is_registry_like(first) => (first, rest),
            _ => (HUB, name),
        };
        check_registry(registry).map_err(|reason| ReferenceError::new(text, reason))?;
        check_path(path).map_err(|reason| ReferenceError::new(text, reason))?;
        let registry = match registry.to_ascii_lowercase() {
            alias if alias == "index.docker.io" || alias == "registry-1.docker.io" => {
                HUB.to_owned()
            }
            registry => registry,
        };
        let path = match path {
            path if registry == HUB && !path.contains('/') => format!("library/{path}"),
            path => path.to_owned(),
        };
        if path.len() > MAX_PATH {
            let reason = format!("its repository is longer than {MAX_PATH} characters");
            return Err(ReferenceError::new(text, reason));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { repository: Repository { registry, path }, tag, digest })
    }
}

/// Docker Hub, which is meant where no registry is named.
const HUB: &str = "docker.io";

/// The longest repository, in characters: what Docker and containerd take.
const MAX_PATH: usize = 255;

const FORM: &str = "expected [registry[:port]/]repository[:tag][@digest]";

/// Rewrites the two lenient forms, `name:sha256:<hex>` and `name:`.
fn lenient(text: &str) -> String {
    for algorithm in ["sha256", "sha512"] {
        let mark = format!(":{algorithm}:");
        if let Some(at) = text.rfind(&mark) {
            return format!("{}@{}", &text[..at], &text[at + 1..]);
        }
    }
    text.strip_suffix(':').unwrap_or(text).to_owned()
}

/// Whether the first component of a name is a registry and not a part of Docker Hub.
fn is_registry_like(component: &str) -> bool {
    component.contains(['.', ':']) || component.eq_ignore_ascii_case("localhost")
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Whether `tag` can be one (distribution specification, "Pulling manifests").
pub fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').unwrap_or((rest, "?"));
            if address.parse::<Ipv6Addr>().is_err() || !(port.is_empty() || port.starts_with(':')) {
                return Err(format!("`{registry}` is not an IPv6 address in brackets"));
            }
            (None, port.strip_prefix(':'))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    if port.is_some_and(|port| {
        port.parse::<u16>().is_err() || !port.bytes().all(|b| b.is_ascii_digit())
    }) {
        return Err(format!("`{registry}` has no valid port"));
    }
    let is_label = |label: &str| {
        label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host {
        Some(host) if !host.split('.').all(is_label) || host.len() > 253 => Err(FORM.to_owned()),
        _ => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), String> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a repository is written in lower case".to_owned());
    }
    match path.split('/').all(is_path_component) {
        true => Ok(()),
        false => Err(FORM.to_owned()),
    }
}

/// Letters and digits, in groups that are separated by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_group = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges = [component.bytes().next(), component.bytes().next_back()];
    edges.iter().all(|edge| edge.is_some_and(is_group))
        && component.split(|c: char| c.is_ascii() && is_group(c as u8)).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn as_people_write_them() {
        let table = [
            ("nginx", "docker.io/library/nginx:latest"),
            (" nginx\n", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("nginx:", "docker.io/library/nginx:latest"),
            ("project/x", "docker.io/project/x:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx:1", "docker.io/library/nginx:1"),
            ("registry-1.docker.io/library/nginx:1", "docker.io/library/nginx:1"),
            ("registry-1.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("host:5000/x/y:tag", "host:5000/x/y:tag"),
            ("host:5000/x", "host:5000/x:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("LOCALHOST:5000/x", "localhost:5000/x:latest"),
            ("Quay.IO/a/b:V1", "quay.io/a/b:V1"),
            ("10.0.0.1:80/a", "10.0.0.1:80/a:latest"),
            ("[::1]:5000/a/b:c", "[::1]:5000/a/b:c"),
            ("[fe80::1]/a", "[fe80::1]/a:latest"),
            ("quay.io/a/manifests/blobs:layout", "quay.io/a/manifests/blobs:layout"),
        ];
        for (text, normal) in table {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), normal, "{text}");
        }
    }

    #[test]
    fn with_digests() {
        let pinned = format!("docker.io/library/x@sha256:{HEX}");
        let both = format!("docker.io/library/x:1@sha256:{HEX}");
        for (text, normal) in [
            (format!("x@sha256:{HEX}"), &pinned),
            (format!("x:sha256:{HEX}"), &pinned),
            (format!("x:1@sha256:{HEX}"), &both),
            (format!("x:1:sha256:{HEX}"), &both),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(&reference.to_string(), normal);
            assert_eq!(reference.digest(), Some(Digest::sha256(b"")));
        }
    }

    #[test]
    fn what_is_refused() {
        let md5 = "x@md5:d41d8cd98f00b204e9800998ecf8427e";
        let long = "a/".repeat(200) + "a";
        for (text, reason) in [
            ("", "empty"),
            ("Nginx", "lower case"),
            ("docker.io/Library/nginx", "lower case"),
            ("a b", "expected [registry"),
            ("../x", "expected [registry"),
            ("a/../b", "expected [registry"),
            ("a//b", "expected [registry"),
            ("/a", "expected [registry"),
            ("a:b:c", "expected [registry"),
            ("x@sha256:abc", "not a digest"),
            ("x@", "not a digest"),
            ("a.b:99999/x", "port"),
            ("a.b:+1/x", "port"),
            ("-a.b/x", "expected [registry"),
            ("a..b/x", "expected [registry"),
            ("a/b-", "expected [registry"),
            ("a/b..c", "expected [registry"),
            ("a/b___c", "expected [registry"),
            ("a/.b", "expected [registry"),
            ("x:.tag", "expected [registry"),
            ("x:é", "expected [registry"),
            (md5, "`md5` is not supported"),
            ("docker://nginx", "leave out the `docker://`"),
            ("[::zz]/a", "IPv6"),
            (&long, "255"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: proptest::test_runner::RngSeed::Fixed(20_260_101),
            failure_persistence: None,
            cases: 2000,
            ..ProptestConfig::default()
        })]

        /// The grammar is the one that everybody has, wherever that has no gaps: `oci_client` knows
        /// no IPv6, takes letters beyond ASCII in tags, and any hexadecimal digest.
        #[test]
        fn agrees_with_oci_client(text in "([a-zA-Z0-9.:_/@-]|sha256:){1,12}") {
            let theirs = oci_client::Reference::try_from(text.as_str());
            let ours = text.parse::<Reference>();
            if let (Ok(theirs), Ok(ours)) = (&theirs, &ours) {
                prop_assert_eq!(theirs.registry().to_ascii_lowercase(), ours.repository().registry());
                prop_assert_eq!(theirs.repository(), ours.repository().path());
                prop_assert_eq!(theirs.tag(), ours.tag());
            } else if !text.ends_with(':') && !text.contains(":sha256:") {
                // Theirs lets capitals pass in what looked like a registry and is none.
                let capitals = theirs.as_ref().is_ok_and(|t| t.repository().contains(char::is_uppercase));
                let strict = capitals || text.contains("localhost") || ours.as_ref().is_err_and(|e| e.to_string().contains("port"));
                prop_assert!(theirs.is_err() == ours.is_err() || strict, "{} {:?} {:?}", text, theirs, ours);
            }
        }

        #[test]
        fn parse_display_parse(
            registry in "([a-z0-9]{1,5}\\.){1,3}[a-z]{2,3}(:[1-9][0-9]{1,3})?|localhost|\\[::[0-9a-f]{1,4}\\](:80)?",
            path in "[a-z0-9]{1,4}((\\.|_|__|-{1,3}|/)[a-z0-9]{1,4}){0,4}",
            tag in proptest::option::of("[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}"),
            content in proptest::option::of(".{0,8}"),
        ) {
            let mut text = format!("{registry}/{path}");
            text += &tag.map(|tag| format!(":{tag}")).unwrap_or_default();
            text += &content.map(|c| format!("@{}", Digest::sha256(c.as_bytes()))).unwrap_or_default();
            let reference: Reference = text.parse().unwrap();
            let shown = reference.to_string();
            prop_assert_eq!(&shown.parse::<Reference>().unwrap(), &reference);
            prop_assert!(shown.starts_with(&text), "{} {}", shown, text);
        }

        #[test]
        fn nothing_becomes_a_path_out_of_the_tree(text in "\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let name = reference.to_string();
                prop_assert!(!name.split(['/', ':', '@']).any(|part| part == ".." || part == "." || part.is_empty() && !name.contains('[')));
            }
        }
    }

    #[test]
    fn regression_the_length_counts_with_the_library() {
        // 250 characters, with `library/` before them 258.
        assert!("3".repeat(250).parse::<Reference>().is_err());
        assert!(format!("quay.io/{}", "3".repeat(250)).parse::<Reference>().is_ok());
    }

    #[test]
    fn repositories_from_directories() {
        assert_eq!(Repository::new("quay.io", "a/b").unwrap().to_string(), "quay.io/a/b");
        assert_eq!(Repository::new("docker.io", "a").unwrap().path(), "library/a");
        assert!(Repository::new("quay.io", "a:b").is_err());
        assert!(Repository::new("quay.io", "").is_err());
        assert!(Repository::new("a", "b").is_err(), "`a` is no registry");
    }
}
