//! The generations of KubeKey's `images_dir`, and where each keeps what.
//!
//! | generation | written by | tag | manifest by digest | Docker Hub |
//! |---|---|---|---|---|
//! | G0 | KubeKey 4.0.0-alpha.1 to alpha.5 | `<repository>/manifests/<tag>` | beside it | no registry at all |
//! | G1 | KubeKey 4.0.0 to 4.0.3 | `<registry>/<repository>/manifests/<tag>` | beside it | `registry-1.docker.io` |
//! | G2 | KubeKey 4.0.5 and later | key of the map `manifests/layout` | `manifests/<digest>` | `registry-1.docker.io` |
//! | documented | imgfs | as G1 | as G1 | `docker.io` |
//! | portable | imgfs | as G1, under names as [`portable`] has them | as G1, likewise | `docker.io` |
//!
//! A repository may have components called `manifests`, `blobs` or `layout`: a directory
//! `manifests` belongs to the repository above it as far as it holds files, and is a component of
//! longer names as far as it holds directories.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::portable;
use crate::{
    backend::{ConfinedDir, FileType},
    image::{Digest, Repository, is_tag},
};

/// Directory of all blobs.
pub(super) const BLOBS: &str = "blobs";
/// Directory of a repository's manifests.
pub(super) const MANIFESTS: &str = "manifests";
/// The map of tags in G2.
pub(super) const LAYOUT_MAP: &str = "layout";

/// The names under which Docker Hub's repositories have been stored; the first is ours.
const HUB: [&str; 3] = ["docker.io", "registry-1.docker.io", "index.docker.io"];

/// Deeper trees than this are not walked: a repository's name has at most 255 characters.
const MAX_DEPTH: usize = 130;

/// The largest `layout` map that is read, in bytes.
pub(super) const MAX_LAYOUT_MAP: u64 = 16 << 20;

/// How new repositories are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// As KubeKey's documents say.
    #[default]
    Documented,
    /// As KubeKey 4.0.5 and later reads (G2).
    Kubekey,
    /// As KubeKey 4.0.0 to 4.0.3 reads (G1).
    Kubekey403,
    /// As the documented one, under names that every file system takes.
    Portable,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Documented, Self::Kubekey, Self::Kubekey403, Self::Portable];

    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Documented => "documented",
            Self::Kubekey => "kubekey",
            Self::Kubekey403 => "kubekey-4.0.3",
            Self::Portable => "portable",
        }
    }

    /// The directory of a registry, under its documented name.
    fn registry_dir(self, registry: &str) -> &str {
        match (self, registry) {
            (Self::Kubekey | Self::Kubekey403, "docker.io") => "registry-1.docker.io",
            _ => registry,
        }
    }

    /// What `name` is called on the disk: a file or directory that has this name in the directory `above` of
    /// the documented layout, seen from the root.
    pub fn stored_name<'a>(self, above: &str, name: &'a str) -> Cow<'a, str> {
        match self {
            Self::Portable => portable::encode(name, above.is_empty()),
            _ => name.into(),
        }
    }

    /// The name in the documented layout of what is called `stored` on the disk, in the directory that is
    /// `above` in the documented layout. `None` if this layout has no such name.
    pub fn shown_name<'a>(self, above: &str, stored: &'a str) -> Option<Cow<'a, str>> {
        match self {
            Self::Portable => portable::decode(stored, above.is_empty()),
            _ => Some(stored.into()),
        }
    }

    /// Where on the disk, seen from the root, is what has this path in the documented layout.
    pub fn stored_path(self, path: &str) -> Cow<'_, str> {
        if self != Self::Portable {
            return path.into();
        }
        let mut stored = String::with_capacity(path.len() + 8);
        for (number, name) in path.split('/').enumerate() {
            if number > 0 {
                stored.push('/');
            }
            stored.push_str(&portable::encode(name, number == 0));
        }
        stored.into()
    }

    /// What a file is called that is named by `digest`.
    pub fn digest_name(self, digest: &Digest) -> String {
        match self {
            Self::Portable => portable::encode(&digest.to_string(), false).into_owned(),
            _ => digest.to_string(),
        }
    }

    /// The digest that a file is named by.
    pub(crate) fn parse_digest(self, stored: &str) -> Option<Digest> {
        match self {
            Self::Portable => portable::digest(stored),
            _ => stored.parse().ok(),
        }
    }

    /// What the file of a tag is called.
    pub(super) fn tag_name(self, tag: &str) -> Cow<'_, str> {
        self.stored_name(MANIFESTS, tag)
    }

    /// The tag that a file is named by, if that is not the name of a digest.
    pub(super) fn parse_tag(self, stored: &str) -> Option<Cow<'_, str>> {
        self.shown_name(MANIFESTS, stored).filter(|tag| is_tag(tag))
    }

    /// The directory of `repository` where this layout puts it.
    pub(super) fn repository_dir(self, root: &Path, repository: &Repository) -> PathBuf {
        let registry = self.registry_dir(repository.registry());
        root.join(&*self.stored_path(&format!("{registry}/{}", repository.path())))
    }

    /// The directories in which `repository` may be, in the order in which they are asked.
    pub(super) fn candidates(self, root: &Path, repository: &Repository) -> Vec<PathBuf> {
        let (registry, path) = (repository.registry(), repository.path());
        let hosts = if registry == HUB[0] { &HUB[..] } else { &[registry] };
        let in_hosts = hosts.iter().map(|host| format!("{host}/{path}"));
        let alone = (registry == HUB[0]).then(|| path.to_owned()); // G0
        in_hosts.chain(alone).map(|path| root.join(&*self.stored_path(&path))).collect()
    }
}

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|layout| layout.as_str() == text).ok_or_else(|| {
            format!("`{text}` is none of documented, kubekey, kubekey-4.0.3 and portable")
        })
    }
}

/// The repository that a directory below the root stands for; `None` if its name cannot be one.
pub(super) fn repository_at(components: &[String]) -> Option<Repository> {
    let (first, rest) = components.split_first()?;
    let is_registry = first.contains(['.', ':']) || first == "localhost";
    let (registry, path) =
        if is_registry { (first.as_str(), rest.join("/")) } else { (HUB[0], components.join("/")) };
    if path.is_empty() {
        return None;
    }
    let registry = if HUB.contains(&registry) { HUB[0] } else { registry };
    Repository::new(registry, &path).ok()
}

/// Whether the directory `path`, seen from the root, has the manifests of a repository, in any generation.
///
/// ```
/// use imgfs::backend::images_dir::{holds_manifests, leads_to_manifests};
///
/// assert!(holds_manifests("quay.io/team/app/manifests"));
/// assert!(holds_manifests("library/nginx/manifests"), "of Docker Hub, in an old layout");
/// assert!(!holds_manifests("quay.io/team/app"));
/// assert!(leads_to_manifests("quay.io/team"));
/// ```
pub fn holds_manifests(path: &str) -> bool {
    repository_in(path).is_some()
}

/// The repository of which the directory `path`, seen from the root, has the manifests, in any generation.
///
/// ```
/// use imgfs::backend::images_dir::repository_in;
///
/// let of = |path| repository_in(path).map(|repository| repository.to_string());
/// assert_eq!(of("quay.io/team/app/manifests").as_deref(), Some("quay.io/team/app"));
/// assert_eq!(of("calico/cni/manifests").as_deref(), Some("docker.io/calico/cni"));
/// assert_eq!(of("quay.io/team/app"), None);
/// ```
pub fn repository_in(path: &str) -> Option<Repository> {
    let components: Vec<String> = path.split('/').map(str::to_owned).collect();
    let (last, above) = components.split_last()?;
    repository_at(above).filter(|_| last == MANIFESTS)
}

/// Whether a directory `path`, seen from the root, may be on the way to a repository.
pub fn leads_to_manifests(path: &str) -> bool {
    let components: Vec<String> = path.split('/').chain(["x"]).map(str::to_owned).collect();
    repository_at(&components).is_some()
}

/// A map of tags as G2 stores it. `None` if `text` is something else, such as the manifest of a
/// tag called `layout`.
pub(super) fn parse_layout_map(text: &[u8]) -> Option<BTreeMap<String, Digest>> {
    let map: BTreeMap<String, serde_json::Value> = serde_json::from_slice(text).ok()?;
    if map.contains_key("schemaVersion") || map.contains_key("mediaType") {
        return None;
    }
    map.into_iter()
        // KubeKey stores sha512 digests as if they were tags; they are found by file name anyway.
        // And what cannot be a tag is nobody's tag.
        .filter(|(tag, _)| is_tag(tag))
        .map(|(tag, digest)| Some((tag, digest.as_str()?.parse().ok()?)))
        .collect()
}

/// What can still be read of a damaged map: entries that are whole, wherever they stand.
pub(super) fn salvage_layout_map(text: &[u8]) -> BTreeMap<String, Digest> {
    let text = String::from_utf8_lossy(text);
    let entries = text.split(['{', ',', '}', '\n']).filter_map(|entry| {
        let (tag, digest) = entry.trim().split_once("\":")?;
        let tag = tag.strip_prefix('"').filter(|tag| is_tag(tag))?;
        let digest = digest.trim().strip_prefix('"')?.strip_suffix('"')?;
        Some((tag.to_owned(), digest.parse().ok()?))
    });
    entries.collect()
}

/// Writes a map of tags as KubeKey does: two spaces, sorted keys, no newline at the end.
pub(super) fn format_layout_map(map: &BTreeMap<String, Digest>) -> Vec<u8> {
    // A map of strings always has a JSON form.
    serde_json::to_vec_pretty(map).unwrap_or_default()
}

/// Reads the map of tags in a `manifests` directory; `None` where there is none.
pub(super) fn read_layout_map(
    root: &ConfinedDir,
    manifests: &Path,
) -> io::Result<Option<LayoutMap>> {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    match root.read(&manifests.join(LAYOUT_MAP), MAX_LAYOUT_MAP + 1) {
        Ok(text) if text.len() as u64 > MAX_LAYOUT_MAP => Ok(Some(LayoutMap::Broken)),
        Ok(text) => Ok(match parse_layout_map(&text) {
            Some(map) => Some(LayoutMap::Map(map)),
            // A manifest, whole or not, belongs to a tag called `layout`.
            None if looks_like_manifest(&text) => None,
            None => Some(LayoutMap::Broken),
        }),
        // A directory of this name is a component of longer names.
        Err(e) if matches!(e.kind(), NotFound | NotADirectory | IsADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

fn looks_like_manifest(text: &[u8]) -> bool {
    serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(text)
        .is_ok_and(|map| map.contains_key("schemaVersion") || map.contains_key("mediaType"))
}

/// What a file called `manifests/layout` holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LayoutMap {
    /// G2's map from tag to digest.
    Map(BTreeMap<String, Digest>),
    /// It should be a map, and is damaged.
    Broken,
}

/// A `manifests` directory with what is in it.
#[derive(Debug)]
pub(super) struct RepositoryDir {
    pub repository: Repository,
    pub manifests: PathBuf,
    /// Files that are named like tags.
    pub tags: Vec<String>,
    /// Files that are named by digests.
    pub digests: Vec<Digest>,
    /// G2's map.
    pub map: Option<LayoutMap>,
    /// Symbolic links that are named like tags, digests or the map.
    pub links: Vec<String>,
}

/// All that a tree names, and what in it is never read.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub repositories: Vec<RepositoryDir>,
    /// Files that are none of ours.
    pub stray: Vec<PathBuf>,
    /// Symbolic links that may lead to anything.
    pub links: Vec<PathBuf>,
}

/// Walks the tree at `root`, in the order of names. Symbolic links are listed and not followed.
pub(super) fn walk(root: &ConfinedDir, layout: Layout) -> io::Result<Walk> {
    let mut found = Walk::default();
    walk_into(root, layout, root.path(), &mut Vec::new(), &mut found)?;
    found.repositories.sort_by(|a, b| a.manifests.cmp(&b.manifests));
    Ok(found)
}

/// Walks the directory `dir`, which is `components` in the documented layout.
fn walk_into(
    root: &ConfinedDir,
    layout: Layout,
    dir: &Path,
    components: &mut Vec<String>,
    found: &mut Walk,
) -> io::Result<()> {
    let holds_manifests = components.last().is_some_and(|name| name == MANIFESTS);
    let owner =
        if holds_manifests { repository_at(&components[..components.len() - 1]) } else { None };
    let above = if components.is_empty() { "" } else { "/" };
    let (mut files, mut links) = (Vec::new(), Vec::new());
    for entry in root.open_dir(dir)?.entries()? {
        let path = dir.join(&entry.name);
        let Ok(name) = entry.name.into_string() else {
            found.stray.push(path);
            continue;
        };
        match entry.kind {
            FileType::RegularFile => files.push(name),
            FileType::Symlink => links.push(name),
            // Blobs are not names.
            FileType::Directory if components.is_empty() && name == BLOBS => {}
            FileType::Directory if components.len() < MAX_DEPTH => {
                let Some(shown) = layout.shown_name(above, &name) else {
                    found.stray.push(path);
                    continue;
                };
                components.push(shown.into_owned());
                walk_into(root, layout, &path, components, found)?;
                components.pop();
            }
            _ => found.stray.push(path),
        }
    }
    let Some(repository) = owner else {
        found.stray.extend(files.into_iter().map(|name| dir.join(name)));
        found.links.extend(links.into_iter().map(|name| dir.join(name)));
        return Ok(());
    };
    let shown = |name: &String| match layout.parse_digest(name) {
        Some(digest) => Some(digest.to_string()),
        None => layout.parse_tag(name).map(Cow::into_owned),
    };
    let (links, others) = links.into_iter().partition::<Vec<_>, _>(|name| shown(name).is_some());
    found.links.extend(others.into_iter().map(|name| dir.join(name)));
    if files.is_empty() && links.is_empty() {
        return Ok(());
    }
    let mut links: Vec<String> = links.iter().filter_map(shown).collect();
    let has_map = files.iter().any(|name| name == LAYOUT_MAP);
    let map = if has_map { read_layout_map(root, dir)? } else { None };
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    for name in files {
        if name == LAYOUT_MAP && map.is_some() {
            continue;
        }
        match (layout.parse_digest(&name), layout.parse_tag(&name)) {
            (Some(digest), _) => digests.push(digest),
            (None, Some(tag)) => tags.push(tag.into_owned()),
            (None, None) => found.stray.push(dir.join(name)),
        }
    }
    tags.sort_unstable();
    digests.sort_unstable();
    links.sort_unstable();
    found.repositories.push(RepositoryDir {
        repository,
        manifests: dir.to_owned(),
        tags,
        digests,
        map,
        links,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn all_generations_in_one_tree() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::sha256(b"x");
        let map = format!(
            "{{\n  \"v1\": \"{digest}\",\n  \"sha512:{}\": \"{digest}\"\n}}",
            "0".repeat(128)
        );
        for (path, text) in [
            ("blobs/sha256:abc", ""),
            ("docker.io/library/nginx/manifests/1.25", ""),
            (&format!("docker.io/library/nginx/manifests/{digest}"), ""),
            ("registry-1.docker.io/library/redis/manifests/7", ""),
            ("calico/cni/manifests/v3", ""),
            ("quay.io/g2/app/manifests/layout", &map),
            ("quay.io/g2/app/manifests/.tmp", ""),
            ("quay.io/a/manifests/tag", ""),
            ("quay.io/a/manifests/b/manifests/tag", ""),
            ("quay.io/a/manifests/layout/manifests/layout", r#"{"schemaVersion":2}"#),
            ("quay.io/a/blobs/manifests/layout", "{broken"),
            ("localhost:5000/x/manifests/t", ""),
            ("README", ""),
            ("quay.io/Upper/manifests/t", ""),
        ] {
            put(dir.path(), path, text);
        }
        let root = ConfinedDir::open(dir.path()).unwrap();
        let found = walk(&root, Layout::Documented).unwrap();
        let names: Vec<String> = found
            .repositories
            .iter()
            .map(|r| format!("{} {:?} {}", r.repository, r.tags, r.digests.len()))
            .collect();
        assert_eq!(
            names,
            [
                r#"docker.io/calico/cni ["v3"] 0"#,
                r#"docker.io/library/nginx ["1.25"] 1"#,
                r#"localhost:5000/x ["t"] 0"#,
                r#"quay.io/a/blobs [] 0"#,
                r#"quay.io/a ["tag"] 0"#,
                r#"quay.io/a/manifests/b ["tag"] 0"#,
                r#"quay.io/a/manifests/layout ["layout"] 0"#,
                r#"quay.io/g2/app [] 0"#,
                r#"docker.io/library/redis ["7"] 0"#,
            ]
        );
        let map_of = |path: &str| {
            found.repositories.iter().find(|r| r.repository.path() == path).unwrap().map.as_ref()
        };
        assert_eq!(map_of("g2/app"), Some(&LayoutMap::Map([("v1".to_owned(), digest)].into())));
        assert_eq!(map_of("a/blobs"), Some(&LayoutMap::Broken));
        let mut stray: Vec<_> = found
            .stray
            .iter()
            .map(|p| p.strip_prefix(dir.path()).unwrap().display().to_string())
            .collect();
        stray.sort();
        assert_eq!(stray, ["README", "quay.io/Upper/manifests/t", "quay.io/g2/app/manifests/.tmp"]);
    }

    #[test]
    fn the_map_has_kubekeys_form() {
        let digest = Digest::sha256(b"x");
        let map: BTreeMap<_, _> = [("b".to_owned(), digest), ("a".to_owned(), digest)].into();
        let text = format!("{{\n  \"a\": \"{digest}\",\n  \"b\": \"{digest}\"\n}}");
        assert_eq!(format_layout_map(&map), text.as_bytes());
        assert_eq!(parse_layout_map(text.as_bytes()), Some(map));
        for bad in
            ["", "[]", "{\"a\":1}", "{\"a\":\"sha256:../x\"}", "{\"a\"", "{\"schemaVersion\":2}"]
        {
            assert_eq!(parse_layout_map(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn tags_and_what_is_none() {
        for tag in ["v1", "1.2-3_x", "_", "layout", &"a".repeat(128)] {
            assert!(is_tag(tag), "{tag}");
        }
        for name in ["", ".", "..", ".x", "-x", "a/b", "a:b", "é", &"a".repeat(129)] {
            assert!(!is_tag(name), "{name}");
        }
    }
}
