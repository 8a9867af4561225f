//! What it costs to look inside an image: against curl, against skopeo and umoci, and against overlayfs.

mod cold;
mod first;
mod memory;
mod overlay;
mod random;
mod scan;
mod start;
mod walk;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::layout::{Blob, Layout};
use crate::measure::{Job, Usage};
use crate::mount::Daemon;
use crate::places::Place;
use crate::{Bench, Result};

/// Layers that are larger than this are not like those of most images.
const ORDINARY: u64 = 512 << 20;

/// The image that is looked into.
struct Subject {
    /// `repository:tag`
    image: String,
    /// Its layers, the lowest first, as numbers of the layout's blobs.
    layers: Vec<usize>,
}

impl Bench {
    /// Of the images with one manifest and nothing but ordinary gzip layers, the one with the largest
    /// top layer.
    fn subject(&self) -> Result<Subject> {
        let mut largest: Option<(u64, Subject)> = None;
        for image in self.layout.images() {
            let Some(layers) = self.layout.layers_of(image)? else { continue };
            let ordinary = layers.iter().all(|layer| {
                layer.media_type.ends_with("gzip") && self.layout.blobs[layer.blob].size <= ORDINARY
            });
            let top =
                layers.last().filter(|_| ordinary).map(|top| self.layout.blobs[top.blob].size);
            if top > largest.as_ref().map(|(size, _)| *size) {
                let layers = layers.into_iter().map(|layer| layer.blob).collect();
                largest = top.map(|top| (top, Subject { image: image.clone(), layers }));
            }
        }
        Ok(largest.ok_or("no image has ordinary gzip layers only")?.1)
    }

    /// A mount of nothing but the subject's root file system. It is there when all layers are indexed.
    fn mounted_image(&self, images_dir: &Path, subject: &Subject) -> Result<Daemon> {
        self.mounted(images_dir, ["--image".to_owned(), self.reference(subject)])
    }

    /// Whether what a part is held against can be had; says so if not.
    fn can_unpack(&self, part: &str) -> bool {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            eprintln!("bench: {part} unpacks and mounts as root only: not measured");
        }
        is_root
    }

    /// The subject's name, with the registry's.
    fn reference(&self, subject: &Subject) -> String {
        format!("{}/{}", self.registry.host(), subject.image)
    }

    /// The directory of the subject in a mount of everything.
    fn inside(&self, daemon: &Daemon, subject: &Subject) -> PathBuf {
        daemon.mountpoint.join(".imgfs").join(self.reference(subject))
    }

    /// A number in the subject's `status.json`.
    fn status(&self, daemon: &Daemon, subject: &Subject, name: &str) -> Result<u64> {
        let status = fs::read(self.inside(daemon, subject).join("status.json"))?;
        let status: Value = serde_json::from_slice(&status)?;
        Ok(status[name].as_u64().ok_or_else(|| format!("status.json has no {name}"))?)
    }

    /// Unpacks the subject into `bundle/rootfs` in `place`.
    fn unpack(&self, place: &Place, subject: &Subject) -> Result<Usage> {
        const UNPACK: &str = r#"skopeo --insecure-policy copy --quiet --src-tls-verify=false "docker://$1" oci:layout:it && umoci unpack --image layout:it bundle"#;
        Job::new("sh")
            .args(["-c", UNPACK, "sh", &self.reference(subject)])
            .within(&place.path)
            .run()
    }
}

impl Subject {
    /// Bytes of its layers as the registry has them.
    fn bytes(&self, layout: &Layout) -> u64 {
        self.layers.iter().map(|layer| layout.blobs[*layer].size).sum()
    }

    fn top<'a>(&self, layout: &'a Layout) -> Result<&'a Blob> {
        Ok(&layout.blobs[*self.layers.last().ok_or("an image without layers")?])
    }
}

/// Forgets what has been fetched and decompressed, but not what has been found out of layers.
fn drop_cache(images_dir: &Path) -> Result<()> {
    Ok(fs::remove_dir_all(images_dir.join("blobs/.imgfs/cache"))?)
}

/// `tar` of a whole tree through a pipe, because GNU tar does not read what goes to `/dev/null`.
fn tar(tree: &Path) -> Job {
    const TAR: &str = r#"set -o pipefail; tar -C "$1" -cf - . | cat"#;
    Job::new("bash").args(["-c", TAR, "bash"]).arg(tree)
}
