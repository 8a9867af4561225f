//! Very many files in several images.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::measure::Job;
use crate::report::Report;
use crate::{Bench, Result};

const IMAGES: usize = 10;
const DIRECTORIES: usize = 1000;
const FILES: usize = 100;

/// With the directories that the layer leaves out, and the root.
const ENTRIES: usize = DIRECTORIES * (FILES + 1) + 4;

/// Asks for the size of everything, and checks how much there is.
const LIST: &str = r#"test "$(find "$1" -printf '%s\n' | wc -l)" = "$2""#;

/// Memory when all of them have been listed, in MiB.
const RSS: u64 = 128;

/// Where the images are said to come from.
const REPOSITORY: &str = "registry.example/project/many";

impl Bench {
    /// `find` in 10 images of 100,000 files each, all local and none of them looked into before.
    pub(crate) fn many_files_inside(&mut self, report: &mut Report) -> Result<()> {
        let place = self.workshop.places().swap_remove(0);
        place.clear()?;
        let images_dir = place.images_dir();
        for number in 0..IMAGES {
            make_image(&images_dir, number)?;
        }
        let (mut after, mut peak) = (0, 0);
        // Passing through the layers leaves other memory behind than reading their indexes does.
        for what in ["first", "again"] {
            self.progress(0, place.name, &format!("many files, {what}"));
            self.workshop.settle()?;
            let daemon = self.mounted(&images_dir, ["--offline"])?;
            for number in 0..IMAGES {
                let rootfs = format!(".imgfs/{REPOSITORY}:{number}/rootfs/.");
                let list = Job::new("sh").args(["-c", LIST, "sh"]);
                list.arg(daemon.mountpoint.join(rootfs)).arg(ENTRIES.to_string()).run()?;
            }
            let (now, most) = daemon.rss_kib()?;
            eprintln!("bench: many files, {what}: {} MiB, at most {} MiB", now >> 10, most >> 10);
            (after, peak) = (now.max(after), most.max(peak));
        }
        let files = IMAGES * DIRECTORIES * FILES;
        report.bound(&format!("{files} files listed: RSS, MiB"), after >> 10, RSS);
        report.bound(&format!("{files} files listed: peak RSS, MiB"), peak >> 10, RSS);
        place.clear()
    }
}

/// Puts an image of one plain layer into a directory, as a pull would.
fn make_image(images_dir: &Path, number: usize) -> Result<()> {
    let blobs = images_dir.join("blobs");
    fs::create_dir_all(&blobs)?;
    let mut layer = tar::Builder::new(Vec::new());
    for directory in 0..DIRECTORIES {
        let directory = format!("srv/app-{number}/lib/package-{directory}");
        append(&mut layer, &format!("{directory}/"), tar::EntryType::Directory)?;
        for file in 0..FILES {
            append(&mut layer, &format!("{directory}/module_{file}.py"), tar::EntryType::Regular)?;
        }
    }
    let layer = layer.into_inner()?;
    let diff_id = digest_of(&layer);
    fs::write(blobs.join(&diff_id), &layer)?;

    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config = serde_json::to_vec(&config)?;
    let config_digest = digest_of(&config);
    fs::write(blobs.join(&config_digest), &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest,
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": diff_id,
            "size": layer.len(),
        }],
    });
    let manifests = images_dir.join(REPOSITORY).join("manifests");
    fs::create_dir_all(&manifests)?;
    let manifest = serde_json::to_vec(&manifest)?;
    fs::write(manifests.join(digest_of(&manifest)), &manifest)?;
    Ok(fs::write(manifests.join(number.to_string()), manifest)?)
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, kind: tar::EntryType) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    Ok(tar.append_data(&mut header, path, std::io::empty())?)
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
