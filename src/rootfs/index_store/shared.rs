//! What is made on one machine and used on others: indexes that were attached to images, and profiles.

use std::io::{self, Read};

use super::{IndexStore, Indexed, LAYERS, LayerKey, PROFILES, note_use};
use crate::{
    image::Digest,
    layer::{LayerIndex, Origin, Profile},
    util::OutOfMemory,
};

/// An index that is stored, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredIndex {
    /// The digest of the layer.
    pub layer: Digest,
    /// Bytes of the layer.
    pub layer_bytes: u64,
    /// Bytes of its decompressed stream.
    pub stream_bytes: u64,
    /// Entries of its archive.
    pub entries: u64,
    /// Bytes of the index on the disk.
    pub index_bytes: u64,
    /// Who says what it has.
    pub made_by: MadeBy,
}

/// Who has made a stored index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadeBy {
    /// This machine, in a pass over the layer.
    Pass,
    /// The author of the image, as a table of contents.
    Author,
    /// Somebody who has attached it to the image.
    Attached,
}

impl IndexStore {
    /// Keeps an index that was attached to the image that `layer` stands for. It has been found to be one of
    /// this layer.
    pub(in crate::rootfs) fn put_attached(
        &self,
        layer: &LayerKey,
        stored: &[u8],
    ) -> io::Result<()> {
        self.put(LAYERS, &self.index_name(layer), stored).map(drop)
    }

    /// All of the stored form of an index, with its windows.
    pub(in crate::rootfs) fn stored_form(&self, layer: &LayerKey) -> io::Result<Vec<u8>> {
        let (mut file, meta) = self.root.open_file(&self.index_path(layer))?;
        let mut stored = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0).min(1 << 30));
        file.read_to_end(&mut stored)?;
        note_use(&file);
        Ok(stored)
    }

    /// Removes the index of a layer, whatever it is. Whether there was one.
    pub(in crate::rootfs) fn remove_index(&self, layer: &LayerKey) -> io::Result<bool> {
        match self.root.remove_file(&self.index_path(layer)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// All indexes that can be read.
    pub(in crate::rootfs) fn indexes(&self) -> Vec<StoredIndex> {
        let mut found: Vec<StoredIndex> =
            self.names(LAYERS).iter().filter_map(|name| self.stored_index(name)).collect();
        found.sort_by_key(|index| (index.layer, index.made_by != MadeBy::Pass));
        found
    }

    fn stored_index(&self, name: &str) -> Option<StoredIndex> {
        let path = self.dir.join(LAYERS).join(name);
        let (file, meta) = self.root.open_file(&path).ok()?;
        let mut stored = Vec::new();
        // The windows, which are most of it, are not needed.
        let mut head = vec![0; crate::layer::StoredHead::BYTES];
        (&file).read_exact(&mut head).ok()?;
        let table = crate::layer::StoredHead::parse(&head).ok()?.table_bytes();
        stored.append(&mut head);
        (&file).take(table - stored.len() as u64).read_to_end(&mut stored).ok()?;
        let index = LayerIndex::from_table(&stored).ok()?;
        let (layer, toc) = match name.split_once('.') {
            Some((layer, _)) => (layer, true),
            None => (name, false),
        };
        let made_by = match (index.origin(), toc) {
            (Origin::Pass, false) => MadeBy::Pass,
            (Origin::Pass, true) => MadeBy::Attached,
            _ => MadeBy::Author,
        };
        (self.layout.parse_digest(layer) == Some(index.blob())).then(|| StoredIndex {
            layer: index.blob(),
            layer_bytes: index.blob_bytes(),
            stream_bytes: index.stream_bytes(),
            entries: index.table().entries().count() as u64,
            index_bytes: meta.len(),
            made_by,
        })
    }

    /// The profile of the image with this manifest, if it is here.
    pub(in crate::rootfs) fn profile(&self, image: &Digest) -> Option<Profile> {
        let path = self.dir.join(PROFILES).join(self.layout.digest_name(image));
        let (file, _) = self.root.open_file(&path).ok()?;
        let mut bytes = Vec::new();
        (&file).take(Profile::MAX_BYTES + 1).read_to_end(&mut bytes).ok()?;
        note_use(&file);
        Profile::parse(&bytes).ok().filter(|profile| profile.image() == *image)
    }

    /// Keeps a profile in place of the one that the image has.
    pub(in crate::rootfs) fn put_profile(&self, profile: &Profile) -> io::Result<()> {
        let name = self.layout.digest_name(&profile.image());
        self.put(PROFILES, &name, &profile.to_bytes()).map(drop)
    }

    /// Removes the profile of an image. Whether there was one.
    pub(in crate::rootfs) fn remove_profile(&self, image: &Digest) -> io::Result<bool> {
        let path = self.dir.join(PROFILES).join(self.layout.digest_name(image));
        match self.root.remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// All profiles, by the digests of their images.
    pub(in crate::rootfs) fn profiles(&self) -> Vec<Profile> {
        let names = self.names(PROFILES);
        let digests = names.iter().filter_map(|name| self.layout.parse_digest(name));
        let mut found: Vec<Profile> = digests.filter_map(|image| self.profile(&image)).collect();
        found.sort_by_key(Profile::image);
        found
    }

    /// What index there is of a layer, by what is to be used first. Reads only as much as has to be.
    pub(in crate::rootfs) fn best_index(
        &self,
        layer: &LayerKey,
    ) -> Result<Option<Indexed>, OutOfMemory> {
        match self.index(&layer.without_toc())? {
            None if layer.toc.is_some() => self.index(layer),
            found => Ok(found),
        }
    }

    /// The names of files in one of its directories that are text and not temporary.
    fn names(&self, kind: &str) -> Vec<String> {
        let entries = self.root.open_dir(&self.dir.join(kind)).and_then(|dir| dir.entries());
        let names = entries.unwrap_or_default().into_iter();
        let names = names.filter_map(|entry| entry.name.into_string().ok());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}
