//! `umoci`, which unpacks images as they are meant to be unpacked.

use super::content::digest;
use super::image::{Built, OCI_CONFIG, OCI_GZIP, OCI_INDEX, OCI_MANIFEST, OCI_TAR};
use super::layers::{Packing, pack};
use super::process::require_program;
use super::text;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `umoci ARGS...`; panics with its output when it fails.
#[track_caller]
pub(crate) fn umoci(args: &[&str]) {
    let output = Command::new(require_program("umoci", "umoci"))
        .args(args)
        .output()
        .expect("starting umoci");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "umoci {args:?}: {}\n{said}", output.status);
}

/// The root file system that umoci unpacks. It is removed when this is dropped.
pub(crate) struct Unpacked {
    place: tempfile::TempDir,
}

impl Unpacked {
    /// Unpacks an image that was built here.
    #[track_caller]
    pub(crate) fn built(image: &Built) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        let layout = place.path().join("layout");
        image.write_oci_layout(&layout, "it");
        Self::unpack(place, &layout, "it")
    }

    /// Unpacks the image of a layout that this manifest is of, in whatever form it is: umoci knows neither
    /// Docker's media types nor zstd, so the same layers are given to it in a form that it knows.
    #[track_caller]
    pub(crate) fn of(layout: &Path, manifest: &Value) -> Self {
        let place = tempfile::tempdir().expect("making a temporary directory");
        let own = place.path().join("layout");
        write_readable(layout, manifest, &own);
        Self::unpack(place, &own, "it")
    }

    #[track_caller]
    fn unpack(place: tempfile::TempDir, layout: &Path, tag: &str) -> Self {
        let image = format!("{}:{tag}", layout.display());
        umoci(&["unpack", "--image", &image, text(&place.path().join("bundle"))]);
        Self { place }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.place.path().join("bundle/rootfs")
    }
}

fn write_readable(layout: &Path, manifest: &Value, own: &Path) {
    let from = layout.join("blobs/sha256");
    let to = own.join("blobs/sha256");
    std::fs::create_dir_all(&to).expect("making a directory");
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let write = |media_type: &str, bytes: &[u8]| {
        let digest = digest(bytes);
        std::fs::write(to.join(hex(&digest)), bytes).expect("writing a blob");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let read = |descriptor: &Value| {
        let name = hex(descriptor["digest"].as_str().expect("a digest"));
        std::fs::read(from.join(name)).expect("reading a blob")
    };
    let layers = manifest["layers"].as_array().expect("layers").iter().map(|layer| {
        let bytes = read(layer);
        let media_type = layer["mediaType"].as_str().expect("a media type");
        if media_type.ends_with("zstd") {
            let plain = zstd::decode_all(bytes.as_slice()).expect("decompressing");
            write(OCI_GZIP, &pack(&plain, Packing::Gzip).bytes)
        } else {
            let is_gzip = media_type.ends_with("gzip");
            write(if is_gzip { OCI_GZIP } else { OCI_TAR }, &bytes)
        }
    });
    let layers: Vec<_> = layers.collect();
    let config = write(OCI_CONFIG, &read(&manifest["config"]));
    let image = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
    });
    let mut root = write(OCI_MANIFEST, image.to_string().as_bytes());
    root["annotations"] = json!({"org.opencontainers.image.ref.name": "it"});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root]});
    std::fs::write(own.join("index.json"), index.to_string()).expect("writing");
    std::fs::write(own.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())
        .expect("writing");
}
