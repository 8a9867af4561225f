//! Which packages two images have, by what their package managers have noted.
//!
//! | file | whose |
//! |---|---|
//! | `/var/lib/dpkg/status`, and those in `/var/lib/dpkg/status.d/` | dpkg's; the latter in distroless images |
//! | `/lib/apk/db/installed`, `/usr/lib/apk/db/installed` | apk's |
//! | `rpmdb.sqlite`, `Packages.db`, `Packages` in `/var/lib/rpm` or `/usr/lib/sysimage/rpm` | rpm's (`rpm.rs`) |

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use serde::Serialize;

use super::{
    Change, Side,
    content::{Sameness, known_sameness},
    rpm,
};
use crate::{
    backend::{self, Kind as ErrorKind},
    layer::{Kind, Node},
    ops::{Error, NamedImage, OpenImage, Opener, Result},
    rootfs::{PathError, Tree},
};

/// The largest database that is read, in bytes: that of a desktop with everything has a tenth.
const MAX_DATABASE: u64 = 128 << 20;

/// What is read of a file at a time, in bytes.
const STEP: usize = 1 << 20;

const DPKG: &str = "/var/lib/dpkg/status";
const DPKG_PARTS: &str = "/var/lib/dpkg/status.d";
const APK: [&str; 2] = ["/lib/apk/db/installed", "/usr/lib/apk/db/installed"];
const RPM_PLACES: [&str; 2] = ["/var/lib/rpm", "/usr/lib/sysimage/rpm"];
const RPM_NAMES: [&str; 3] = ["rpmdb.sqlite", "Packages.db", "Packages"];

/// How the packages of two images differ.
#[derive(Clone, Debug, Serialize)]
pub struct PackageDiff {
    /// The old image.
    pub a: Side,
    /// The new image.
    pub b: Side,
    /// What differs, by package manager, name and architecture.
    pub packages: Vec<PackageChange>,
}

/// A package that one of the images has, or both in other versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    /// `dpkg`, `apk` or `rpm`.
    pub manager: &'static str,
    /// Its name.
    pub name: String,
    /// What it runs on; empty if nothing says it.
    pub architecture: String,
    /// How it differs.
    pub change: Change,
    /// Its versions in the old image.
    pub before: Vec<String>,
    /// Its versions in the new image.
    pub after: Vec<String>,
}

impl PackageDiff {
    /// Whether both images have the same packages.
    pub fn is_same(&self) -> bool {
        self.packages.is_empty()
    }
}

/// Manager, name and architecture, and the versions.
type Packages = BTreeMap<(&'static str, String, String), BTreeSet<String>>;

/// Compares which packages two images have. Databases that are known to be the same are not read. It is an
/// error if neither image has one, or if one cannot be read.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # use imgfs::{
/// #     backend::{ManifestName, Sink, images_dir::{ImagesDir, Linking}, registry::RegistryConfig},
/// #     image::{Digest, Manifest, Repository},
/// # };
/// use imgfs::ops::{OpenOptions, Opener, package_diff, this_machine};
///
/// let temporary = tempfile::tempdir()?;
/// # let dir = ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// # let digest = Digest::sha256(b"{}");
/// # std::fs::write(temporary.path().join(format!("blobs/{digest}")), b"{}")?;
/// # let manifest = format!(
/// #     r#"{{"schemaVersion": 2, "config": {{"digest": "{digest}", "size": 2}}, "layers": []}}"#
/// # );
/// # let manifest = Manifest::parse(manifest.into_bytes().into(), None)?;
/// # let repository = Repository::new("registry.example.com", "team/app")?;
/// # dir.put(&repository, &manifest, &ManifestName::Tag("v1".to_owned())).await?;
/// // There is an image `registry.example.com/team/app:v1`, with nothing in it.
/// let options = OpenOptions {
///     images_dir: temporary.path().to_owned(),
///     index_cache: None,
///     platform: this_machine()?,
///     any_single_platform: true,
///     offline: true,
/// };
/// let opener = Opener::new(options, RegistryConfig::default())?;
/// let image = "registry.example.com/team/app:v1".parse()?;
/// let error = package_diff(&opener, &image, &image).await.unwrap_err();
/// assert!(error.to_string().contains("dpkg"), "{error}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub async fn package_diff(opener: &Opener, a: &NamedImage, b: &NamedImage) -> Result<PackageDiff> {
    let (a, b) = (opener.open(a).await?, opener.open(b).await?);
    let (old, new) = (Side::without_layers(&a), Side::without_layers(&b));
    let (in_a, in_b) = futures_util::try_join!(databases(&a), databases(&b))?;
    if in_a.is_empty() && in_b.is_empty() {
        let (a, b) = (a.shown, b.shown);
        return Err(Error::NoPackages(if a == b { a } else { format!("{a} and {b}") }));
    }
    let (mut before, mut after) = (Packages::new(), Packages::new());
    let paths: BTreeSet<&String> = in_a.keys().chain(in_b.keys()).collect();
    for path in paths {
        let (one, other) = (in_a.get(path), in_b.get(path));
        if let (Some(one), Some(other)) = (one, other)
            && known_sameness(&one.tree, one.node, &other.tree, other.node) == Sameness::Same
        {
            continue;
        }
        for (database, image, packages) in [(one, &a, &mut before), (other, &b, &mut after)] {
            if let Some(database) = database {
                database.read(path, image, packages).await?;
            }
        }
    }
    Ok(PackageDiff { a: old, b: new, packages: changes(&before, &after) })
}

fn changes(before: &Packages, after: &Packages) -> Vec<PackageChange> {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changes = keys.into_iter().filter_map(|key| {
        let (one, other) = (before.get(key), after.get(key));
        let change = match (one, other) {
            (Some(one), Some(other)) if one == other => return None,
            (Some(_), Some(_)) => Change::Changed,
            (Some(_), None) => Change::Removed,
            (None, _) => Change::Added,
        };
        let versions = |of: Option<&BTreeSet<String>>| of.into_iter().flatten().cloned().collect();
        let (manager, name, architecture) = key.clone();
        let (before, after) = (versions(one), versions(other));
        Some(PackageChange { manager, name, architecture, change, before, after })
    });
    changes.collect()
}

/// A file in which a package manager has noted what is installed.
struct Database {
    manager: Manager,
    tree: Arc<Tree>,
    node: Node,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manager {
    Dpkg,
    Apk,
    Rpm,
}

/// The databases of an image, by path. Layers are looked into from the top down, as far as it takes.
async fn databases(image: &OpenImage) -> Result<BTreeMap<String, Database>> {
    let rpm = RPM_PLACES.iter().flat_map(|place| {
        RPM_NAMES.iter().map(move |name| (Manager::Rpm, format!("{place}/{name}")))
    });
    let apk = APK.iter().map(|path| (Manager::Apk, (*path).to_owned()));
    let places = rpm.chain(apk).chain([(Manager::Dpkg, DPKG.to_owned())]);
    let mut found = BTreeMap::new();
    let mut seen: Vec<(Vec<u8>, Manager)> = Vec::new();
    for (manager, path) in places {
        let Some((tree, node)) = find(image, &path).await? else { continue };
        // With /lib as a link to usr/lib, both names lead to the same.
        let place = (tree.rootfs().path(node), manager);
        if tree.rootfs().attributes(node).kind == Kind::File && !seen.contains(&place) {
            seen.push(place);
            found.insert(path, Database { manager, tree, node });
        }
    }
    if let Some((of, node)) = find(image, DPKG_PARTS).await? {
        let place = of.rootfs().path(node);
        let tree = image.whole_tree().await?;
        let parts = tree.rootfs().find(&place).map(|dir| tree.rootfs().entries(dir));
        for (name, node) in parts.into_iter().flatten() {
            let name = String::from_utf8_lossy(name);
            let is_part = tree.rootfs().attributes(node).kind == Kind::File;
            if is_part && !name.ends_with(".md5sums") {
                let (manager, tree) = (Manager::Dpkg, tree.clone());
                found.insert(format!("{DPKG_PARTS}/{name}"), Database { manager, tree, node });
            }
        }
    }
    Ok(found)
}

async fn find(image: &OpenImage, path: &str) -> Result<Option<(Arc<Tree>, Node)>> {
    match image.files.resolve(path.as_bytes(), true).await.map_err(Error::Image)? {
        Ok(found) => Ok(Some(found)),
        Err(PathError::Missing | PathError::NotADirectory) => Ok(None),
        Err(error) => Err(Error::Path(error)),
    }
}

impl Database {
    async fn read(&self, path: &str, image: &OpenImage, into: &mut Packages) -> Result<()> {
        match self.manager {
            Manager::Dpkg => dpkg(&self.bytes(path).await?, into),
            Manager::Apk => apk(&self.bytes(path).await?, into),
            Manager::Rpm => {
                let damaged = |reason: String| {
                    let (image, path) = (image.shown.clone(), path.to_owned());
                    Error::RpmDatabase { image, path, reason }
                };
                if has_unmerged_changes(path, image).await? {
                    return Err(damaged(format!("the newest changes are still in {path}-wal")));
                }
                let found = rpm::packages(&self.bytes(path).await?);
                for package in found.map_err(|damage| damaged(damage.to_string()))? {
                    let rpm::Package { name, version, architecture } = package;
                    into.entry(("rpm", name, architecture)).or_default().insert(version);
                }
            }
        }
        Ok(())
    }

    async fn bytes(&self, path: &str) -> Result<Bytes> {
        let failed = |reason: String| {
            backend::Error::new("image", format!("reading {path}"), ErrorKind::Unfit(reason))
        };
        let file = self.tree.open(self.node).map_err(Error::Image)?;
        let Some(file) = file else { return Ok(Bytes::new()) };
        if file.size() > MAX_DATABASE {
            let reason = format!("it has {} bytes; at most {MAX_DATABASE} are read", file.size());
            return Err(Error::Image(failed(reason)));
        }
        let mut all = BytesMut::new();
        while (all.len() as u64) < file.size() {
            let bytes = file.read(all.len() as u64, STEP).await.map_err(Error::Image)?;
            all.extend_from_slice(&bytes);
        }
        file.verified().await.map_err(Error::Image)?;
        Ok(all.freeze())
    }
}

/// Whether SQLite has changes in its write-ahead log that are not in the database itself, as a build that was
/// stopped in the middle leaves them.
async fn has_unmerged_changes(path: &str, image: &OpenImage) -> Result<bool> {
    let log = find(image, &format!("{path}-wal")).await?;
    Ok(log.is_some_and(|(tree, node)| tree.rootfs().attributes(node).size > 0))
}

/// Reads paragraphs of fields (Debian policy, chapter 5). What is not installed does not count, though dpkg
/// may remember it for its configuration.
fn dpkg(text: &[u8], into: &mut Packages) {
    let text = String::from_utf8_lossy(text);
    let mut fields: BTreeMap<String, &str> = BTreeMap::new();
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            let field = |name: &str| fields.get(name).copied().unwrap_or_default().to_owned();
            // In distroless images there is no status: what is noted is there.
            let status = field("status");
            let is_installed = status.is_empty() || status.ends_with(" installed");
            let (name, version) = (field("package"), field("version"));
            if is_installed && !name.is_empty() {
                let key = ("dpkg", name, field("architecture"));
                into.entry(key).or_default().insert(version);
            }
            fields.clear();
        } else if !line.starts_with([' ', '\t'])
            && let Some((name, value)) = line.split_once(':')
        {
            fields.insert(name.to_ascii_lowercase(), value.trim());
        }
    }
}

/// Reads records of lines with a letter and a value.
fn apk(text: &[u8], into: &mut Packages) {
    let text = String::from_utf8_lossy(text);
    let (mut name, mut version, mut architecture) = ("", "", "");
    for line in text.lines().chain([""]) {
        match line.split_once(':') {
            Some(("P", value)) => name = value,
            Some(("V", value)) => version = value,
            Some(("A", value)) => architecture = value,
            _ if line.trim().is_empty() => {
                if !name.is_empty() {
                    let key = ("apk", name.to_owned(), architecture.to_owned());
                    into.entry(key).or_default().insert(version.to_owned());
                }
                (name, version, architecture) = ("", "", "");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(packages: &Packages) -> Vec<String> {
        let lines = packages.iter().map(|((manager, name, architecture), versions)| {
            let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
            format!("{manager} {name} {architecture} {}", versions.join(","))
        });
        lines.collect()
    }

    #[test]
    fn what_dpkg_has_noted() {
        let text =
            b"Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2.0-1\n\
            Description: first\n Package: no field\n\n\
            Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\n\
            package: b\nVersion: 3\nArchitecture: all\n\nVersion: of nothing\n\n\
            Package: half\nStatus: install ok half-installed\nVersion: 1";
        let mut packages = Packages::new();
        dpkg(text, &mut packages);
        assert_eq!(listed(&packages), ["dpkg a amd64 1:2.0-1", "dpkg b all 3"]);
    }

    #[test]
    fn what_apk_has_noted() {
        let text = b"C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\nR:x\n\nP:busybox\nV:1\nA:x86_64";
        let mut packages = Packages::new();
        apk(text, &mut packages);
        assert_eq!(listed(&packages), ["apk busybox x86_64 1", "apk musl x86_64 1.2.5-r0"]);
    }

    #[test]
    fn versions_that_are_not_the_same() {
        let packages = |all: &[(&str, &[&str])]| -> Packages {
            let all = all.iter().map(|(name, versions)| {
                let versions = versions.iter().map(|version| (*version).to_owned()).collect();
                (("dpkg", (*name).to_owned(), String::new()), versions)
            });
            all.collect()
        };
        let before = packages(&[("a", &["1"]), ("b", &["1", "2"]), ("c", &["1"])]);
        let after = packages(&[("b", &["2"]), ("c", &["1"]), ("d", &["1"])]);
        let found = changes(&before, &after);
        let found: Vec<_> = found.iter().map(|c| (c.name.as_str(), c.change)).collect();
        assert_eq!(found, [("a", Change::Removed), ("b", Change::Changed), ("d", Change::Added)]);
    }
}
