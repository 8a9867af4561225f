//! Directories of images to be written through mounts, and what mounts tell of that.

use super::cli::Imgfs;
use super::image::{Artifact, Built, Image, Index};
use super::mount::Mounted;
use super::tree;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The host of all images here.
pub(crate) const HOST: &str = "source.example";

/// A few images of different kinds, with their names.
pub(crate) fn zoo() -> Vec<(&'static str, Built)> {
    let files: &[(&str, &[u8])] = &[("etc/motd", b"hello"), ("bin/sh", b"#!")];
    let image = Image::new().layer_gzip_tar(files).layer(7, 3_000_000);
    let arm = image.clone().platform("linux/arm64").layer_gzip_tar(&[("arm", b"64")]).build();
    vec![
        ("team/app:1", Index::new().child(&image.build()).child(&arm).attest().build()),
        ("team/docker:2", image.clone().docker().build()),
        ("team/empty:1", Image::new().empty_layer().zero_byte_layer().build()),
        (
            "deep/er/nested:1",
            Index::new().child(&Index::new().child(&image.build()).build()).build(),
        ),
        (
            "charts/helm:0.1.0",
            Artifact::with_config("application/vnd.cncf.helm.config.v1+json", b"{\"name\":\"x\"}")
                .blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"a chart")
                .build(),
        ),
    ]
}

/// A directory of images as imgfs writes it, with its own state.
pub(crate) fn directory(images: &[(&'static str, Built)]) -> Imgfs {
    let kubekeys = tempfile::tempdir().expect("making a temporary directory");
    for (name, image) in images {
        let (repository, tag) = name.rsplit_once(':').expect("a tag");
        tree::kubekey_g1(kubekeys.path(), HOST, repository, tag, image);
    }
    let imgfs = Imgfs::scratch();
    let (from, to) = (kubekeys.path().as_os_str(), imgfs.images_dir().as_os_str());
    imgfs.copy(&["--from".as_ref(), from, "--to".as_ref(), to, "--all".as_ref()]).success();
    imgfs
}

/// An image with one layer, and its files: paths below the root and contents, blobs first.
pub(crate) fn files_of(image: &Built, repository: &str, tag: &str) -> Vec<(String, Vec<u8>)> {
    let blobs = image.blobs.values();
    let mut files: Vec<_> =
        blobs.map(|blob| (format!("blobs/{}", blob.digest), blob.content.to_vec())).collect();
    let (root, children) = image.manifests.split_last().expect("a graph has a root");
    let dir = format!("{HOST}/{repository}/manifests");
    for child in children {
        files.push((format!("{dir}/{}", child.digest), child.bytes.clone()));
    }
    files.push((format!("{dir}/{tag}"), root.bytes.clone()));
    files
}

/// A file with this content, to copy from.
pub(crate) fn file(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).expect("writing");
    path
}

/// A mount that is written to, and asks no registry.
pub(crate) fn local(images_dir: &Path) -> Mounted {
    Mounted::start(images_dir, &["--write", "local", "--offline"])
}

/// What it tells to be pending: names and states.
#[track_caller]
pub(crate) fn pending(mount: &Mounted) -> Vec<(String, String)> {
    let status = status(mount);
    let files = status["pending"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    files.map(|file| (text(&file["name"]), text(&file["state"]))).collect()
}

/// All that it tells of that.
#[track_caller]
pub(crate) fn status(mount: &Mounted) -> Value {
    let text = mount.cat(".imgfs/pending.json").success().text();
    serde_json::from_str(&text).expect("it is JSON")
}

/// Runs a program in Python that works in the mount point, with further arguments in `sys.argv`.
pub(crate) fn python(mount: &Mounted, program: &str, args: &[&str]) -> super::mount::Done {
    begin_python(mount, program, args).wait()
}

/// The same without waiting for it. Its first argument is the mount point, where it is.
pub(crate) fn begin_python(mount: &Mounted, program: &str, args: &[&str]) -> super::mount::Looking {
    let at = mount.path("");
    let prelude = "import os, sys, errno, mmap, hashlib, ctypes\nos.chdir(sys.argv[1])\n";
    let program = format!("{prelude}{program}");
    let all: Vec<&str> = ["-c", &program, &at].into_iter().chain(args.iter().copied()).collect();
    mount.begin("python3", &all)
}
