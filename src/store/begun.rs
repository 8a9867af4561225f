//! What recordings have begun in a store and not brought to its end.
//!
//! containers/storage takes whatever directory has the name of a layer for that layer, though no list names it: an
//! ordinary pull would unpack into it. So a recording that fails takes back what it has written, and what one that
//! was killed has left goes at the next start. Nothing is removed that imgfs cannot have written.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{ImageEntry, LayerEntry, StoreDir, StoredRecord, dirs::link};
use crate::{
    backend::{Error, Kind, Result},
    image::ChainId,
};

/// The files and symbolic links in the directory of a layer.
const FILES: [&str; 3] = ["link", "additionallayer", "diff"];

/// Its directories.
const DIRS: [&str; 4] = ["als", "empty", "merged", "work"];

/// The files and symbolic links in `als`.
const ALS_FILES: [&str; 2] = ["info", "blob"];

/// What podman writes into `als` when it reads a layer as a whole.
const USE_FILE: &str = "use";

/// What stands behind the name of a file that is being written.
const NEW: &str = ".new";

impl StoreDir {
    /// Where somebody else has unpacked a layer into the store, if that is so.
    pub(crate) fn unpacked_by_others(&self, chain: &ChainId) -> Result<Option<PathBuf>> {
        let diff = self.layer_dir(chain).join("diff");
        match fs::symlink_metadata(&diff) {
            Ok(meta) if meta.is_dir() => Ok(Some(diff)),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error("reading", &diff, e)),
            _ => Ok(None),
        }
    }

    /// Something in the directory of a layer that imgfs has not put there.
    fn others_in_layer(&self, chain: &ChainId) -> Result<Option<PathBuf>> {
        let dir = self.layer_dir(chain);
        let failed = |e| self.error("reading", &dir, e);
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(failed)?,
        };
        let tree = Path::new(".imgfs/.trees").join(chain.to_string());
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_str().unwrap_or_default();
            let kind = entry.file_type().map_err(failed)?;
            let is_own = match name.strip_suffix(NEW).unwrap_or(name) {
                "diff" => fs::read_link(&path).is_ok_and(|target| target.ends_with(&tree)),
                name if FILES.contains(&name) => kind.is_file(),
                name if DIRS.contains(&name) => kind.is_dir(),
                _ => false,
            };
            if !is_own {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// An error if somebody else has unpacked one of these layers into the store.
    pub(super) fn refuse_layers_of_others(&self, layers: &[&LayerEntry]) -> Result<()> {
        for layer in layers {
            if let Some(path) = self.unpacked_by_others(&layer.id)? {
                return Err(self.layer_of_others(&path));
            }
        }
        Ok(())
    }

    /// Why a layer cannot be recorded that somebody else has unpacked at `path`.
    pub(crate) fn layer_of_others(&self, path: &Path) -> Error {
        let side = format_args!("store {}", self.root().display());
        let reason = "it is not imgfs's: podman has unpacked this layer into the store; remove the images that have \
                      it (podman rmi), and pull them again";
        Error::new(side, format_args!("writing {}", path.display()), Kind::Config(reason.into()))
    }

    /// Takes back what has been begun of layers that were to be listed. Returns why they are not.
    pub(super) fn take_back(&self, new: &[&LayerEntry], error: Error) -> Error {
        let taken_back = self.unlist(new).and_then(|listed| {
            let left = new.iter().filter(|layer| !listed.contains(&layer.id));
            first_error(left.map(|layer| self.remove_begun_layer(&layer.id)))
        });
        match taken_back {
            Ok(()) => error,
            Err(left) => with_remains(&error, &left),
        }
    }

    /// Removes the record of an image whose layers have not come to be listed. Whether it stays, since they are listed
    /// nevertheless, and none of the `others` shows them.
    pub(crate) fn take_back_record(
        &self,
        record: &StoredRecord,
        others: &HashSet<ChainId>,
    ) -> Result<bool> {
        let is_own =
            |layer: &LayerEntry| record.chains.contains(&layer.id) && !others.contains(&layer.id);
        if self.layers()?.iter().any(is_own) {
            return Ok(true);
        }
        self.remove_record(&record.digest()).map(|()| false)
    }

    /// Sees to it that these layers are not listed. Returns those that are all the same.
    fn unlist(&self, new: &[&LayerEntry]) -> Result<HashSet<ChainId>> {
        let is_new = |layer: &LayerEntry| new.iter().any(|other| other.id == layer.id);
        let listed: HashSet<ChainId> =
            self.layers()?.iter().filter(|layer| is_new(layer)).map(|layer| layer.id).collect();
        if listed.is_empty() {
            return Ok(listed);
        }
        // It was written, but whoever has it open could not be told, or the disk was not reached.
        let change = |all: &mut Vec<LayerEntry>| all.retain(|layer| !is_new(layer));
        self.list().change(change).map(|()| HashSet::new())
    }

    /// Removes what imgfs has written of a layer, and nothing else.
    pub(super) fn remove_begun_layer(&self, chain: &ChainId) -> Result<()> {
        let dir = self.layer_dir(chain);
        let als = dir.join("als");
        let files = FILES.iter().map(|name| dir.join(name));
        let files = files.chain(ALS_FILES.iter().map(|name| als.join(name)));
        for file in files.chain([als.join(USE_FILE), self.link_path(chain)]) {
            let mut new = file.clone().into_os_string();
            new.push(NEW);
            self.remove(&file, |path| fs::remove_file(path))?;
            self.remove(Path::new(&new), |path| fs::remove_file(path))?;
        }
        // Not with what is in them: it is not ours.
        for name in DIRS {
            self.remove(&dir.join(name), |path| fs::remove_dir(path))?;
        }
        self.remove(&dir, |path| fs::remove_dir(path))
    }

    /// Removes the directories of layers and images that no list names, as far as imgfs has made them, but for
    /// layers that are needed nevertheless. Only to be called while nothing is recorded. Returns what has gone, or
    /// would if it were not only to be told (`is_dry`).
    pub fn remove_begun(
        &self,
        is_needed: impl Fn(&ChainId) -> bool,
        is_dry: bool,
    ) -> Result<Vec<PathBuf>> {
        let listed: HashSet<ChainId> = self.layers()?.iter().map(|layer| layer.id).collect();
        let is_left = |chain: &ChainId| !listed.contains(chain) && !is_needed(chain);
        let mut left: HashSet<ChainId> = HashSet::new();
        for name in self.names_in("overlay")? {
            if let Ok(chain) = name.parse()
                && is_left(&chain)
                && self.others_in_layer(&chain)?.is_none()
            {
                left.insert(chain);
            }
        }
        for name in self.names_in("overlay/l")? {
            // `../<chain>/diff`
            let target = fs::read_link(self.root.join("overlay/l").join(&name));
            let chain = target.ok().and_then(|target| {
                let above = target.parent()?.file_name()?.to_str()?;
                above.parse::<ChainId>().ok()
            });
            if let Some(chain) = chain
                && name.strip_suffix(NEW).unwrap_or(&name) == link(&chain)
                && is_left(&chain)
                && !self.layer_dir(&chain).exists()
            {
                left.insert(chain);
            }
        }
        let images: HashSet<String> = self.images()?.into_iter().map(|image| image.id).collect();
        let is_id = |name: &String| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let mut left_images = self.names_in("overlay-images")?;
        left_images.retain(|name| is_id(name) && !images.contains(name));

        let mut left: Vec<ChainId> = left.into_iter().collect();
        left.sort();
        if !is_dry {
            first_error(left.iter().map(|chain| self.remove_begun_layer(chain)))?;
            first_error(left_images.iter().map(|id| self.remove_image_dir(id)))?;
        }
        let images = left_images.iter().map(|id| self.root.join("overlay-images").join(id));
        Ok(left.iter().map(|chain| self.layer_dir(chain)).chain(images).collect())
    }

    /// What is in a directory of the store, as far as its names are text.
    fn names_in(&self, below: &str) -> Result<Vec<String>> {
        let dir = self.root.join(below);
        let failed = |e| self.error("reading", &dir, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// Removes the directory of an image that has not come to be listed. Returns why it is not.
    pub(super) fn take_back_image(&self, id: &str, error: Error) -> Error {
        let is_listed = |images: Vec<ImageEntry>| images.iter().any(|image| image.id == id);
        let taken_back = self.images().map(is_listed).and_then(|is_listed| match is_listed {
            true => Ok(()),
            false => self.remove_image_dir(id),
        });
        match taken_back {
            Ok(()) => error,
            Err(left) => with_remains(&error, &left),
        }
    }
}

/// Does all of it, and returns the first error.
fn first_error(all: impl Iterator<Item = Result<()>>) -> Result<()> {
    let mut errors: Vec<Error> = all.filter_map(Result::err).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.swap_remove(0)) }
}

/// An error after which not even that could be removed which had been begun.
fn with_remains(error: &Error, left: &Error) -> Error {
    let text = format!("{}; and what was begun is still there: {left}", error.kind());
    error.with_kind(match error.kind() {
        Kind::Io(e) => io::Error::new(e.kind(), text).into(),
        _ => Kind::Config(text),
    })
}

#[cfg(test)]
mod tests {
    use super::super::records::tests::record;
    use super::*;

    fn store() -> (tempfile::TempDir, StoreDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    fn names(store: &StoreDir, below: &str) -> Vec<String> {
        let mut names = store.names_in(below).unwrap();
        names.sort();
        names
    }

    #[test]
    fn layers_that_have_not_come_to_be_listed_leave_nothing() {
        let (_dir, store) = store();
        let (one, other) = (record("a", &["base", "a"]), record("b", &["base", "b"]));
        let mount = Path::new("/mnt");
        store.add_layers(mount, &one.layers).unwrap();
        let before = (names(&store, "overlay"), names(&store, "overlay/l"));
        // The list cannot be replaced.
        let new = store.root().join("overlay-layers/layers.json.new");
        fs::create_dir(&new).unwrap();
        let error = store.add_layers(mount, &other.layers).unwrap_err();
        assert!(error.to_string().contains("layers.json"), "{error}");
        assert_eq!((names(&store, "overlay"), names(&store, "overlay/l")), before);
        // The last directory cannot be written.
        fs::remove_dir(&new).unwrap();
        let als = store.layer_dir(&other.chains[1]).join("als/info.new");
        fs::create_dir_all(&als).unwrap();
        let error = store.add_layers(mount, &other.layers).unwrap_err().to_string();
        // What cannot have been imgfs's is not removed, and told.
        assert!(error.contains("still there") && error.contains("info.new"), "{error}");
        assert!(als.exists());
        fs::remove_dir(&als).unwrap();
        store.add_layers(mount, &other.layers).unwrap();
        assert_eq!(store.layers().unwrap().len(), 3);
    }

    #[test]
    fn what_no_list_names_goes_unless_it_is_somebody_elses() {
        let (_dir, store) = store();
        let [listed, whole, half, theirs, gone] =
            ["listed", "whole", "half", "theirs", "gone"].map(|name| record(name, &[name]));
        let mount = Path::new("/mnt");
        for record in [&listed, &whole, &half, &gone] {
            store.add_layers(mount, &record.layers).unwrap();
        }
        store.add_image(&listed, &["quay.io/team/listed:1".to_owned()]).unwrap();
        let is_listed = |layer: &LayerEntry| layer.id == listed.chains[0];
        store.list().change(|all: &mut Vec<LayerEntry>| all.retain(is_listed)).unwrap();
        store.write_image(&whole, &[]).unwrap();
        let dir = |record: &StoredRecord| store.layer_dir(&record.chains[0]);
        fs::remove_dir_all(dir(&half).join("als")).unwrap();
        fs::remove_file(dir(&half).join("diff")).unwrap();
        fs::write(dir(&half).join("link.new"), "x").unwrap();
        fs::remove_dir_all(dir(&gone)).unwrap();
        // As podman unpacks a layer.
        fs::create_dir_all(dir(&theirs).join("diff/etc")).unwrap();
        fs::write(dir(&theirs).join("link"), "x").unwrap();
        fs::create_dir(store.root().join("overlay/other")).unwrap();

        assert_eq!(store.remove_begun(|_| false, true).unwrap().len(), 4);
        assert!(dir(&whole).exists(), "it was only asked");
        let needed = store.remove_begun(|chain| *chain == whole.chains[0], true).unwrap();
        assert_eq!(needed.len(), 3);
        assert_eq!(store.remove_begun(|_| false, false).unwrap().len(), 4);
        let mut expected = [&listed, &theirs].map(|record| record.chains[0].to_string()).to_vec();
        expected.extend(["l".to_owned(), "other".to_owned()]);
        expected.sort();
        assert_eq!(names(&store, "overlay"), expected);
        assert_eq!(names(&store, "overlay/l"), [link(&listed.chains[0])]);
        assert_eq!(store.images().unwrap().len(), 1);
        let images = names(&store, "overlay-images");
        assert_eq!(images.len(), 3, "one, the list and its lock: {images:?}");

        let error = store.add_layers(mount, &theirs.layers).unwrap_err().to_string();
        assert!(error.contains("podman rmi"), "{error}");
        assert_eq!(fs::read(dir(&theirs).join("link")).unwrap(), b"x");
    }
}
