//! `skopeo` as the independent reader and writer.

use super::process::require_program;
use super::tree;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Runs `skopeo ARGS...`; panics with its output when it fails. Returns stdout.
#[track_caller]
pub(crate) fn skopeo(args: &[&str]) -> Vec<u8> {
    let program = require_program("skopeo", "skopeo");
    let home = tempfile::tempdir().expect("making a temporary directory");
    let output = Command::new(program)
        .arg("--insecure-policy")
        .args(args)
        .env_remove("REGISTRY_AUTH_FILE")
        .env("HOME", home.path())
        .output()
        .expect("starting skopeo");
    assert!(
        output.status.success(),
        "skopeo {args:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// The raw manifest under a reference of a plain registry.
pub(crate) fn raw_manifest(image: &str) -> Vec<u8> {
    let image = format!("docker://{image}");
    skopeo(&["inspect", "--raw", "--tls-verify=false", &image])
}

/// Copies an image with all its platforms out of a plain registry, unchanged. Gives the digest of each file.
pub(crate) fn fetch(image: &str) -> BTreeMap<String, String> {
    let directory = tempfile::tempdir().expect("making a temporary directory");
    let target = format!("dir:{}", directory.path().display());
    let image = format!("docker://{image}");
    skopeo(&["copy", "--all", "--preserve-digests", "--src-tls-verify=false", &image, &target]);
    files(directory.path())
}

/// Copies an OCI layout into a plain registry.
pub(crate) fn push_oci_layout(layout: &Path, tag: &str, image: &str) {
    let source = format!("oci:{}:{tag}", layout.display());
    let image = format!("docker://{image}");
    skopeo(&["copy", "--all", "--preserve-digests", "--dest-tls-verify=false", &source, &image]);
}

fn files(directory: &Path) -> BTreeMap<String, String> {
    tree::everything_under(directory)
        .into_iter()
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.strip_prefix(directory).expect("inside").display().to_string();
            let digest = tree::digest_of_file(&path);
            (name, digest)
        })
        .collect()
}
