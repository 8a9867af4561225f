//! `skopeo` as the independent reader and writer.

use super::hostile::{PASSWORD, USER};
use super::process::require_program;
use super::tree;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `skopeo ARGS...`; panics with its output when it fails. Returns stdout.
#[track_caller]
pub(crate) fn skopeo(args: &[&str]) -> Vec<u8> {
    Skopeo::new().run(args)
}

/// Several runs that know of each other: what went where before is asked for as a mount later on. (For root,
/// skopeo keeps that in one place for the whole machine, and so do all other runs.)
pub(crate) struct Skopeo {
    home: tempfile::TempDir,
}

impl Skopeo {
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().expect("making a temporary directory") }
    }

    /// Runs `skopeo ARGS...`; panics with its output when it fails. Returns stdout.
    #[track_caller]
    pub(crate) fn run<A: AsRef<OsStr>>(&self, args: &[A]) -> Vec<u8> {
        let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
        let output = self.try_run(&args);
        assert!(
            output.status.success(),
            "skopeo {args:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// The same for runs that may fail.
    pub(crate) fn try_run<A: AsRef<OsStr>>(&self, args: &[A]) -> Output {
        Command::new(require_program("skopeo", "skopeo"))
            .arg("--insecure-policy")
            .args(args)
            .env_remove("REGISTRY_AUTH_FILE")
            .env_remove("XDG_DATA_HOME")
            .env("HOME", self.home.path())
            .output()
            .expect("starting skopeo")
    }

    /// Copies an image with all its platforms, unchanged.
    #[track_caller]
    pub(crate) fn copy(&self, from: &Place, to: &Place) {
        let mut args: Vec<String> =
            vec!["copy".into(), "--all".into(), "--preserve-digests".into()];
        args.extend(from.options("src-"));
        args.extend(to.options("dest-"));
        args.extend([from.name.clone(), to.name.clone()]);
        self.run(&args);
    }

    /// The raw manifest.
    #[track_caller]
    pub(crate) fn inspect_raw(&self, place: &Place) -> Vec<u8> {
        let mut args: Vec<String> = vec!["inspect".into(), "--raw".into()];
        args.extend(place.options(""));
        args.push(place.name.clone());
        self.run(&args)
    }
}

/// Where skopeo reads or writes, and how it gets in there.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    name: String,
    options: Vec<(&'static str, String)>,
}

impl Place {
    /// An image in a plain registry: `host/repository:tag`.
    pub(crate) fn plain(image: &str) -> Self {
        let options = vec![("tls-verify", "false".to_owned())];
        Self { name: format!("docker://{image}"), options }
    }

    /// An image behind TLS; `ca.crt` is in this directory, and `client.cert` and `client.key` where these are
    /// asked for.
    pub(crate) fn tls(image: &str, certificates: &Path) -> Self {
        let options = vec![("cert-dir", certificates.display().to_string())];
        Self { name: format!("docker://{image}"), options }
    }

    /// An OCI layout on disk.
    pub(crate) fn layout(directory: &Path, tag: &str) -> Self {
        Self { name: format!("oci:{}:{tag}", directory.display()), options: Vec::new() }
    }

    /// With the user and the password that the registries of the tests know.
    pub(crate) fn login(mut self) -> Self {
        self.options.push(("creds", format!("{USER}:{PASSWORD}")));
        self
    }

    fn options<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = String> + 'a {
        self.options.iter().map(move |(name, value)| format!("--{prefix}{name}={value}"))
    }
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
    Skopeo::new().copy(&Place::layout(layout, tag), &Place::plain(image));
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
