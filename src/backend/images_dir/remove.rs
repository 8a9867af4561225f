//! Removing names. What only they led to stays until `prune`.

use std::{collections::HashSet, io, path::Path};

use async_trait::async_trait;

use super::{
    ImagesDir, Inner, SIDE,
    layout::{self, LAYOUT_MAP, LayoutMap, MANIFESTS},
};
use crate::{
    backend::{Error, Kind, Removal, Remover, Result},
    image::{Digest, Manifest, Reference, Repository, is_attached_to, is_attachment_tag},
};

/// Nested indexes below this depth are not followed.
const MAX_INDEX_DEPTH: usize = 8;

#[async_trait]
impl Remover for ImagesDir {
    async fn removal(&self, name: &Reference) -> Result<Removal> {
        let (dir, name) = (self.clone(), name.clone());
        self.blocking(move |_| dir.find_removal(&name)).await
    }

    async fn remove(&self, removal: &Removal) -> Result<()> {
        let removal = removal.clone();
        self.blocking(move |inner| inner.remove_names(&removal)).await
    }
}

impl ImagesDir {
    fn find_removal(&self, name: &Reference) -> Result<Removal> {
        let inner = &self.inner;
        let repository = name.repository();
        let refuse =
            |reason: String| Error::new(SIDE, format_args!("removing {name}"), Kind::Unfit(reason));
        let removed = match name.tag() {
            Some(tag) => repository.tagged(tag),
            None => name.clone(),
        };
        let manifest = match inner.manifest(&removed) {
            Ok(manifest) => Some(manifest),
            // A tag whose manifest is damaged can be removed, too.
            Err(error) if error.is_not_found() || removed.tag().is_none() => return Err(error),
            Err(_) => None,
        };
        let digest = manifest.as_ref().map(Manifest::digest);
        if let Some(expected) = name.digest()
            && digest != Some(expected)
        {
            let found = digest.map_or("something that is no manifest".into(), |d| d.to_string());
            return Err(refuse(format!("the tag leads to {found}")));
        }
        let inventory = self.inventory()?;
        let others =
            || inventory.images.iter().filter(|image| image.reference.repository() == repository);
        let is_pinned = |digest| inner.records.is_pinned(&repository.pinned(digest));
        if removed.tag().is_none() && !digest.is_some_and(is_pinned) {
            let tags = others().filter(|image| Some(image.digest) == digest);
            let tags: Vec<String> = tags.map(|image| image.reference.to_string()).collect();
            return Err(refuse(match tags.is_empty() {
                true => "nobody has asked for it by its digest; it is part of another image, or `imgfs prune` removes it".into(),
                false => format!("nobody has asked for it by its digest; it is there as {}", tags.join(", ")),
            }));
        }
        // What belongs to the manifests that nothing leads to any more has no use without them.
        let mut names = vec![removed];
        let mut gone: HashSet<Digest> = HashSet::new();
        if let Some(manifest) = &manifest {
            inner.add_reachable(repository, manifest, &mut gone, 0);
        }
        // What an image needs that cannot be read is not known.
        let is_known =
            others().count() > 0 && !inventory.problems.iter().any(|p| p.kind.is_harmful());
        loop {
            let mut kept = HashSet::new();
            let (attachments, images): (Vec<_>, Vec<_>) = others()
                .filter(|image| !names.contains(&image.reference))
                .partition(|image| image.reference.tag().is_some_and(is_attachment_tag));
            for image in images {
                if let Ok(manifest) = inner.manifest(&image.reference) {
                    inner.add_reachable(repository, &manifest, &mut kept, 0);
                }
            }
            let useless = attachments.iter().find(|image| {
                let tag = image.reference.tag().unwrap_or_default();
                let is_of = |digests: &HashSet<Digest>| {
                    digests.iter().any(|subject| is_attached_to(tag, subject))
                };
                is_of(&gone) && !is_of(&kept)
            });
            let Some(useless) = useless.filter(|_| is_known) else { break };
            names.push(useless.reference.clone());
            if let Ok(manifest) = inner.manifest(&useless.reference) {
                inner.add_reachable(repository, &manifest, &mut gone, 0);
            }
        }
        Ok(Removal { digest, names, may_be_more: false })
    }
}

impl Inner {
    /// Adds the digests of `manifest` and of all that it names.
    fn add_reachable(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        found: &mut HashSet<Digest>,
        depth: usize,
    ) {
        if depth > MAX_INDEX_DEPTH || !found.insert(manifest.digest()) {
            return;
        }
        for child in manifest.children() {
            match self.manifest(&repository.pinned(child.digest)) {
                Ok(child) => self.add_reachable(repository, &child, found, depth + 1),
                Err(_) => drop(found.insert(child.digest)),
            }
        }
    }

    fn remove_names(&self, removal: &Removal) -> Result<()> {
        for (number, name) in removal.names.iter().enumerate() {
            let Some(tag) = name.tag() else {
                self.records.unpin(name).map_err(|e| self.records_error(e))?;
                continue;
            };
            let failed = |e| Error::new(SIDE, format_args!("removing {name}"), Kind::Io(e));
            let _lock = self.lock_repository(name.repository()).map_err(failed)?;
            if number == 0 {
                let now = self.manifest(name).ok().as_ref().map(Manifest::digest);
                if now != removal.digest {
                    let reason = "somebody has changed it at this moment; nothing was removed";
                    let doing = format!("removing {name}");
                    return Err(Error::new(SIDE, doing, Kind::Unfit(reason.into())));
                }
            }
            // Docker Hub's may be in several places, of which the next one would be found.
            for dir in self.layout.candidates(self.root.path(), name.repository()) {
                self.remove_tag(&dir.join(MANIFESTS), name.repository(), tag)?;
            }
        }
        Ok(())
    }

    /// Removes a tag of `repository` from a `manifests` directory, where it need not be.
    pub(super) fn remove_tag(&self, dir: &Path, repository: &Repository, tag: &str) -> Result<()> {
        let failed = |e| Error::io(dir, "removing a tag from", e);
        let map = layout::read_layout_map(&self.root, dir).map_err(failed)?;
        let is_map = map.is_some();
        match map {
            Some(LayoutMap::Map(mut map)) => {
                if let Some(digest) = map.remove(tag) {
                    self.put_map(dir, &map).map_err(failed)?;
                    self.note_tag_time(&repository.tagged(tag), &digest, None)?;
                }
            }
            None => {}
            Some(LayoutMap::Broken) => return Err(super::manifests::broken_map(dir)),
        }
        let path = dir.join(&*self.layout.tag_name(tag));
        if is_map && tag == LAYOUT_MAP || !self.root.is_file(&path) {
            return Ok(());
        }
        if super::medium::is_another_spelling(&self.root, &path).map_err(failed)? {
            return Ok(());
        }
        match self.root.remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| self.root.sync_dir(dir)).map_err(failed),
        }
    }
}
