//! The directories of layers and images in a store.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::BASE32;
use serde_json::json;

use super::{ImageEntry, LayerEntry, StoreDir, StoredRecord, entries, now};
use crate::{
    backend::{Error, Kind, Result},
    image::{ChainId, Digest, View},
};

/// Characters of the short name of a layer.
const LINK_CHARACTERS: usize = 26;

/// The short name of a layer, which files of containers have for it: 26 characters A-Z and 2-7, always the same
/// for a chain.
pub(super) fn link(chain: &ChainId) -> String {
    let hash = Digest::sha256(format!("imgfs{chain}").as_bytes());
    let mut text = BASE32.encode(hash.as_bytes());
    text.truncate(LINK_CHARACTERS);
    text
}

/// The name of the file of an image that is called `key`, as containers/storage makes it.
fn big_data_name(key: &str) -> String {
    let is_plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'.';
    match key.bytes().all(is_plain) {
        true => key.to_owned(),
        false => format!("={}", STANDARD.encode(key)),
    }
}

impl StoreDir {
    pub(super) fn layer_dir(&self, chain: &ChainId) -> PathBuf {
        self.root.join("overlay").join(chain.to_string())
    }

    pub(super) fn link_path(&self, chain: &ChainId) -> PathBuf {
        self.root.join("overlay/l").join(link(chain))
    }

    /// Writes the directory of a layer, as far as it is not there as it should be, and flushes it: if something was
    /// written, or if it `is_new`, so that nobody knows whether an earlier run has flushed it. Whether it was.
    pub(super) fn write_layer(
        &self,
        mount: &Path,
        layer: &LayerEntry,
        is_new: bool,
    ) -> Result<bool> {
        let dir = self.layer_dir(&layer.id);
        let als = dir.join("als");
        let mut is_changed = is_new;
        for name in ["als", "empty", "merged", "work"] {
            is_changed |= !dir.join(name).exists();
            self.create_dirs(&dir.join(name))?;
        }
        let tree = mount.join(".imgfs/.trees").join(layer.id.to_string());
        let blob = mount.join("blobs").join(layer.compressed_diff_digest.to_string());
        is_changed |= self.write_once(&dir.join("link"), link(&layer.id).as_bytes())?;
        let path_of_als = als.as_os_str().as_encoded_bytes();
        is_changed |= self.write_once(&dir.join("additionallayer"), path_of_als)?;
        if !als.join("info").exists() {
            self.write_info(layer)?;
            is_changed = true;
        }
        is_changed |= self.link_to(&als.join("blob"), &blob)?;
        is_changed |= self.link_to(&dir.join("diff"), &tree)?;
        let short = Path::new("..").join(layer.id.to_string()).join("diff");
        is_changed |= self.link_to(&self.link_path(&layer.id), &short)?;
        if is_changed {
            self.sync_dir(&als)?;
            self.sync_dir(&dir)?;
        }
        Ok(is_changed)
    }

    /// Flushes the directories that have those of layers, and their short names.
    pub(super) fn sync_layers(&self) -> Result<()> {
        self.sync_dir(&self.root.join("overlay/l"))?;
        self.sync_dir(&self.root.join("overlay"))
    }

    /// Writes what is said of a layer to those who ask for its blob.
    pub(super) fn write_info(&self, layer: &LayerEntry) -> Result<()> {
        let info = json!({
            "compressed-diff-digest": layer.compressed_diff_digest,
            "compressed-size": layer.compressed_size,
            "diff-digest": layer.diff_digest,
            "diff-size": layer.diff_size,
            "compression": layer.compression,
        });
        let path = self.layer_dir(&layer.id).join("als/info");
        self.write_whole(&path, info.to_string().as_bytes())
    }

    /// Whether it had to be written.
    fn write_once(&self, path: &Path, content: &[u8]) -> Result<bool> {
        match fs::read(path) {
            Ok(found) if found == content => Ok(false),
            _ => self.write_whole(path, content).map(|()| true),
        }
    }

    /// Makes `path` a symbolic link to `target`, in one step where it leads elsewhere. Whether it had to be made.
    fn link_to(&self, path: &Path, target: &Path) -> Result<bool> {
        if fs::read_link(path).is_ok_and(|found| found == target) {
            return Ok(false);
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        let _ = fs::remove_file(&new);
        let linked = symlink(target, &new).and_then(|()| fs::rename(&new, path));
        linked.map(|()| true).map_err(|e| match e.kind() {
            // Somebody has unpacked the layer here.
            io::ErrorKind::IsADirectory => self.layer_of_others(path),
            _ => self.error("linking", path, e),
        })
    }

    /// Removes the directory of a layer that is not listed any more.
    pub(super) fn remove_layer_dir(&self, chain: &ChainId) -> Result<()> {
        self.remove(&self.link_path(chain), |path| fs::remove_file(path))?;
        self.remove(&self.layer_dir(chain), |path| fs::remove_dir_all(path))
    }

    /// Removes the directory of an image that is not listed any more.
    pub(super) fn remove_image_dir(&self, id: &str) -> Result<()> {
        // What somebody else has written into the list must lead nowhere else.
        if id.len() != 64 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(());
        }
        let dir = self.root.join("overlay-images").join(id);
        self.remove(&dir, |path| fs::remove_dir_all(path))
    }

    pub(super) fn remove(
        &self,
        path: &Path,
        remove: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<()> {
        match remove(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error("removing", path, e)),
            _ => Ok(()),
        }
    }

    /// Writes the directory of the image of a record, and returns its entry.
    pub(super) fn write_image(
        &self,
        record: &StoredRecord,
        names: &[String],
    ) -> Result<ImageEntry> {
        let manifest = &record.manifest;
        let unfit = |reason: &str| {
            let side = format_args!("store {}", self.root.display());
            let doing = format_args!("adding {}", manifest.digest());
            Error::new(side, doing, Kind::Unfit(reason.to_owned()))
        };
        let View::Image { config, .. } = manifest.view() else {
            return Err(unfit("it is no image"));
        };
        let top = record.chains.last().ok_or_else(|| unfit("it has no layers"))?;
        let id = config.digest.to_hex();
        let dir = self.root.join("overlay-images").join(&id);
        self.create_dirs(&dir)?;
        let by_digest = format!("manifest-{}", manifest.digest());
        let files = [
            ("manifest".to_owned(), manifest.bytes(), manifest.digest()),
            (by_digest, manifest.bytes(), manifest.digest()),
            (config.digest.to_string(), &record.config, config.digest),
        ];
        for (key, content, _) in &files {
            self.write_once(&dir.join(big_data_name(key)), content)?;
        }
        self.sync_dir(&dir)?;
        let sizes = files.iter().map(|(key, content, _)| (key.clone(), content.len() as u64));
        let digests = files.iter().map(|(key, _, digest)| (key.clone(), *digest));
        Ok(ImageEntry {
            id,
            digest: manifest.digest(),
            names: names.to_vec(),
            layer: *top,
            metadata: "{}".to_owned(),
            big_data_names: files.iter().map(|(key, ..)| key.clone()).collect(),
            big_data_sizes: sizes.collect(),
            big_data_digests: digests.collect(),
            created: entries::time(now()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_stable() {
        let chain: ChainId = "0".repeat(64).parse().unwrap();
        let name = link(&chain);
        assert!(
            name.len() == 26 && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
        );
        // Containers that exist have this one in their files.
        assert_eq!(name, "GG6TSYRXEZXNB4QPWZ6ERM6QWW");
    }

    #[test]
    fn files_of_images_are_named_as_others_name_them() {
        assert_eq!(big_data_name("manifest"), "manifest");
        assert_eq!(big_data_name("sha256:ab"), "=c2hhMjU2OmFi");
        assert_eq!(big_data_name("manifest-sha256:ab"), "=bWFuaWZlc3Qtc2hhMjU2OmFi");
    }
}
