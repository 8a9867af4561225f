//! What other tools keep images in, so that it is named for what it is when it is given as a directory of imgfs,
//! and never written to.
//!
//! Only what no directory of imgfs or KubeKey can have is a sign of another tool. Nothing is read but names, and
//! the beginnings of a few files.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::layout::BLOBS;
use crate::backend::{ConfinedDir, FileType};

/// Bytes of a file that are looked at: two headers of a tar archive.
const HEAD_BYTES: u64 = 1024;

/// The largest `manifest.json` that is looked at, in bytes.
const MAX_JSON: u64 = 4 << 20;

/// Directories that are looked into for layouts of their own.
const MAX_LOOKED_INTO: usize = 64;

/// How archives are called.
const ARCHIVES: [&str; 8] =
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tar.lz4", ".oci"];

/// How images come out of it.
#[derive(Clone, Copy)]
enum WayOut {
    /// They are read where they are, as a place with this scheme.
    Read(&'static str),
    /// Loaded into an engine, and pushed from there.
    Push(&'static str),
    /// A registry is to be started that serves it.
    Serve,
    /// Its images come from elsewhere.
    Elsewhere(&'static str),
}

/// What the directory is, if it is another tool's, and how its images get into one of imgfs.
pub(super) fn recognise(root: &ConfinedDir) -> Option<String> {
    let place = Place { root, path: root.path().to_owned() };
    let (what, way_out) = place.kind().or_else(|| place.kind_of_children())?;
    Some(format!("it is {what}, not a directory of images of imgfs; {}", way_out.text(root.path())))
}

/// What a file is that was given where a directory is wanted.
pub(super) fn describe_file(path: &Path) -> String {
    let mut head = Vec::new();
    // What cannot be read is a file all the same.
    let _ = File::open(path).map(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|h| h.starts_with(magic));
    let (what, transport) = if at(257, b"ustar") {
        let name = head.split(|b| *b == 0).next().unwrap_or_default();
        match name {
            b"oci-layout" | b"index.json" | b"blobs/" => {
                ("an archive of an OCI image layout", "oci-archive")
            }
            _ => ("a tar archive, as `docker save` makes it", "docker-archive"),
        }
    } else if at(0, b"\x1f\x8b")
        || at(0, b"\x28\xb5\x2f\xfd")
        || at(0, b"\xfd7zXZ")
        || at(0, b"BZh")
    {
        ("a compressed archive", "docker-archive")
    } else {
        return "it is a file, not a directory".to_owned();
    };
    format!("it is {what}, not a directory of images; {}", WayOut::Read(transport).text(path))
}

impl WayOut {
    fn text(self, path: &Path) -> String {
        let path = path.display();
        let pull = "pull from there with `imgfs pull`";
        match self {
            Self::Read(scheme) => {
                format!("{scheme}:{path} reads it as it is; say that, or give another directory")
            }
            Self::Push(tool) => {
                format!(
                    "push its images to a registry with `{tool}` and {pull}, or give another directory"
                )
            }
            Self::Serve => format!(
                "start a registry that serves it and {pull} (or `imgfs copy --from registry://HOST --to DIR`), or give another directory"
            ),
            Self::Elsewhere(advice) => advice.to_owned(),
        }
    }
}

/// A directory that is looked at.
struct Place<'a> {
    root: &'a ConfinedDir,
    path: PathBuf,
}

impl Place<'_> {
    fn at(&self, below: &str) -> PathBuf {
        self.path.join(below)
    }

    fn has_dir(&self, below: &str) -> bool {
        self.root.is_dir(&self.at(below))
    }

    fn has_file(&self, below: &str) -> bool {
        self.root.is_file(&self.at(below))
    }

    /// What is in it: names, and whether they are directories.
    fn entries(&self) -> Vec<(String, bool)> {
        let entries = self.root.open_dir(&self.path).and_then(|dir| dir.entries());
        let entries = entries.unwrap_or_default().into_iter();
        let named = entries.filter_map(|entry| {
            Some((entry.name.into_string().ok()?, entry.kind == FileType::Directory))
        });
        named.collect()
    }

    fn begins_with(&self, file: &str, magic: &[u8]) -> bool {
        self.root.read(&self.at(file), magic.len() as u64).is_ok_and(|head| head == magic)
    }

    fn json(&self, file: &str) -> Option<serde_json::Value> {
        let text = self.root.read(&self.at(file), MAX_JSON).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// What this directory is.
    fn kind(&self) -> Option<(&'static str, WayOut)> {
        use WayOut::{Elsewhere, Push, Read, Serve};
        let entries = self.entries();
        let has_dir =
            |test: &dyn Fn(&str) -> bool| entries.iter().any(|(name, dir)| *dir && test(name));
        if has_dir(&|name| name.starts_with("io.containerd.")) {
            return Some(("the root directory of containerd", Push("ctr images push")));
        }
        let kinds = ["overlay", "vfs", "btrfs", "zfs", "aufs"];
        if kinds.iter().any(|kind| self.has_dir(&format!("{kind}-images"))) {
            return Some((
                "the containers-storage of podman, CRI-O and buildah",
                Push("podman push"),
            ));
        }
        if kinds
            .iter()
            .chain(&["overlay2"])
            .any(|kind| self.has_dir(&format!("image/{kind}/imagedb")))
        {
            return Some(("the data directory of Docker", Push("docker push")));
        }
        let storages =
            ["docker/registry/v2", "registry/v2", "v2/repositories", "registry/docker/registry/v2"];
        let is_v2 =
            self.has_dir("repositories") && self.has_dir(BLOBS) && !self.has_file("oci-layout");
        if is_v2 || storages.iter().any(|storage| self.has_dir(storage)) {
            return Some(("the storage of a registry (docker-registry, Harbor)", Serve));
        }
        let has_hashes = self.has_dir("blobs/sha256") || self.has_dir("blobs/sha512");
        if has_hashes && self.has_dir("ingest") {
            return Some(("the content store of containerd", Push("ctr images push")));
        }
        if self.has_dir("content/blobs/sha256") {
            return Some(("the content store of BuildKit or containerd", Push("ctr images push")));
        }
        if self.has_file("oci-layout") || has_hashes {
            return Some(("an OCI image layout (of skopeo, crane, KubeKey 3)", Read("oci")));
        }
        if self.begins_with("version", b"Directory Transport Version") {
            return Some(("a directory of skopeo's `dir:` transport", Read("dir")));
        }
        let is_hash = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let has_hash = |is_dir| entries.iter().any(|(name, dir)| *dir == is_dir && is_hash(name));
        match self.json("manifest.json") {
            Some(serde_json::Value::Array(_)) => {
                return Some((
                    "an unpacked archive of `docker save`",
                    Elsewhere("pack it again with tar, and give that as docker-archive:FILE"),
                ));
            }
            Some(manifest) if has_hash(false) || manifest.get("schemaVersion").is_some() => {
                return Some(("a directory of skopeo's `dir:` transport", Read("dir")));
            }
            _ => {}
        }
        if self.has_file("repositories") && has_hash(true) {
            return Some((
                "an unpacked archive of `docker save`",
                Elsewhere(
                    "pack it again with tar, `docker load` it, and push its images to a registry",
                ),
            ));
        }
        if self.has_file("config.json") && self.has_dir("rootfs") {
            return Some((
                "a bundle of an OCI runtime, that is an unpacked image",
                Elsewhere("pull the image that it was made of"),
            ));
        }
        let is_archive = |name: &str| ARCHIVES.iter().any(|ending| name.ends_with(ending));
        let has_archive = entries.iter().any(|(name, dir)| !dir && is_archive(name));
        if has_archive && entries.iter().all(|(_, dir)| !dir) {
            return Some((
                "a directory of archives",
                Elsewhere(
                    "load them into a registry (`skopeo copy docker-archive:FILE docker://REGISTRY/NAME`) and pull from there with `imgfs pull`, or give another directory",
                ),
            ));
        }
        None
    }

    /// What it is by what is in its directories.
    fn kind_of_children(&self) -> Option<(&'static str, WayOut)> {
        let images = self.below("images");
        let has_images = self.has_dir("images/blobs") && !self.has_dir(BLOBS);
        if has_images && images.kind().is_none() {
            return Some((
                "the parent of a directory of images, which is `images` in it",
                WayOut::Elsewhere("give that one"),
            ));
        }
        let dirs = self.entries().into_iter().filter(|(name, dir)| *dir && name != BLOBS);
        let mut dirs: Vec<String> = dirs.map(|(name, _)| name).take(MAX_LOOKED_INTO).collect();
        dirs.sort_unstable();
        let is_layout = |below: &str| self.has_file(&format!("{below}/oci-layout"));
        let holds_layout = dirs.iter().any(|name| {
            let below = self.below(name).entries().into_iter().filter(|(_, dir)| *dir);
            is_layout(name)
                || below
                    .take(MAX_LOOKED_INTO)
                    .any(|(second, _)| is_layout(&format!("{name}/{second}")))
        });
        holds_layout.then_some((
            "a directory of OCI image layouts, such as the storage of zot",
            WayOut::Serve,
        ))
    }

    fn below(&self, name: &str) -> Place<'_> {
        Place { root: self.root, path: self.at(name) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::backend::images_dir::{ImagesDir, Linking};

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn directories_of_other_tools_are_named_and_left_alone() {
        let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let config = format!("{hash}.json");
        let json = format!("{hash}/json");
        let layer = format!("{hash}/layer.tar");
        let blob = format!("blobs/sha256/{hash}");
        let content = format!("io.containerd.content.v1.content/{blob}");
        let in_content = format!("content/{blob}");
        let link = "docker/registry/v2/repositories/a/_manifests/tags/1/current/link";
        for (files, name) in [
            (&[("oci-layout", "{}"), ("index.json", "{}"), (&blob, "")][..], "OCI image layout"),
            (&[("index.json", "{}"), (&blob, "")], "OCI image layout"),
            (&[(&*blob, "")], "OCI image layout"),
            (&[(&*blob, ""), ("ingest/x/data", "")], "content store of containerd"),
            (&[(&*content, "")], "root directory of containerd"),
            (&[(&*in_content, "")], "BuildKit"),
            (
                &[
                    ("version", "Directory Transport Version: 1.1\n"),
                    (hash, ""),
                    ("manifest.json", "{}"),
                ],
                "`dir:`",
            ),
            (&[(hash, ""), ("manifest.json", r#"{"schemaVersion": 2}"#)], "`dir:`"),
            (&[(&*config, "{}"), ("manifest.json", "[]")], "`docker save`"),
            (&[("repositories", "{}"), (&json, "{}"), (&layer, "")], "`docker save`"),
            (&[("overlay-images/images.json", "[]"), ("storage.lock", "")], "podman"),
            (&[("vfs-images/images.json", "[]")], "podman"),
            (&[("image/overlay2/imagedb/content/x", ""), ("containers/x", "")], "Docker"),
            (&[(link, "")], "storage of a registry"),
            (&[(&link["docker/".len()..], "")], "storage of a registry"),
            (&[("repositories/a/_layers/x", ""), (&blob, "")], "storage of a registry"),
            (&[("app/oci-layout", "{}"), ("app/index.json", "{}")], "zot"),
            (&[("team/app/oci-layout", "{}")], "zot"),
            (&[("a.tar", ""), ("images.txt", "")], "archives"),
            (&[("config.json", "{}"), ("rootfs/etc/passwd", "")], "OCI runtime"),
            (&[("images/blobs/sha256:x", ""), ("artifact.yaml", "")], "`images`"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("dir");
            for (path, text) in files {
                put(&root, path, text);
            }
            let count = || walk(&root).len();
            let before = count();
            for error in
                [ImagesDir::open(&root).err(), ImagesDir::create(&root, None, Linking::Auto).err()]
            {
                let error = error.unwrap_or_else(|| panic!("{files:?}")).to_string();
                assert!(
                    error.contains(name) && error.contains("not a directory of images"),
                    "{files:?}: {error}"
                );
            }
            assert_eq!(count(), before, "nothing has been written");
        }
    }

    fn walk(dir: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap().flatten() {
            found.push(entry.path());
            if entry.path().is_dir() {
                found.extend(walk(&entry.path()));
            }
        }
        found
    }

    #[test]
    fn what_is_ours_stays_ours() {
        for files in [
            &[][..],
            &[("README", ""), ("notes/a.tar", "")],
            &[("quay.io/a/manifests/v1", "{}"), ("blobs/x", "")],
            &[("library/nginx/manifests/1", "{}")],
            &[("images/app/manifests/1", "{}")],
        ] {
            let dir = tempfile::tempdir().unwrap();
            for (path, text) in files {
                put(dir.path(), path, text);
            }
            assert!(ImagesDir::open(dir.path()).is_ok(), "{files:?}");
            assert!(ImagesDir::create(dir.path(), None, Linking::Auto).is_ok(), "{files:?}");
            // From now on it is known to be one, whatever else comes into it.
            put(dir.path(), "manifest.json", "[]");
            assert!(ImagesDir::open(dir.path()).is_ok(), "{files:?}");
        }
    }

    #[test]
    fn files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut tar = vec![0; 512];
        tar[..10].copy_from_slice(b"oci-layout");
        tar[257..262].copy_from_slice(b"ustar");
        let mut save = tar.clone();
        save[..10].copy_from_slice(b"manifest.j");
        for (content, name) in [
            (&tar[..], "archive of an OCI image layout"),
            (&save, "`docker save`"),
            (b"\x1f\x8b\x08", "compressed archive"),
            (b"hello", "not a directory"),
            (b"", "not a directory"),
        ] {
            fs::write(&path, content).unwrap();
            let open = ImagesDir::open(&path).err().unwrap().to_string();
            let create = ImagesDir::create(&path, None, Linking::Auto).err().unwrap().to_string();
            for error in [open, create] {
                assert!(error.contains(name) && error.contains("not a directory"), "{error}");
            }
            assert_eq!(fs::read(&path).unwrap(), content);
        }
    }
}
