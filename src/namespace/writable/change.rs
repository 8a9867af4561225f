//! Attributes, and names that come, go and change.

use std::{ffi::OsStr, sync::Arc};

use tokio::sync::OwnedMutexGuard;

use super::{
    ELSEWHERE, Writable, invalid,
    pending::{Pending, Stage},
    place::{ManifestPlace, Name, Place},
    publish::{blocking, disk, failed, is_absent},
    withdraw::{check_move, withdraw},
};
use crate::{
    backend::images_dir::published_time,
    image::{Digest, MAX_MANIFEST_BYTES},
    namespace::{
        Changes, Entry, Found, Handle, Namespace, PendingHandle, Refusal, ViewError, Writing,
        inodes::Kind, names,
    },
    util::locked,
};

type Result<T> = std::result::Result<T, ViewError>;

fn refused(refusal: Refusal, reason: String) -> ViewError {
    ViewError::Refused(refusal, reason)
}

impl Writable {
    // --- attributes ---

    pub(super) fn change_attributes(&self, ino: u64, changes: Changes) -> Result<Entry> {
        if let Some(file) = self.table().inode(ino) {
            return self.change_pending(&file, changes);
        }
        let node = self.view.inodes().node(ino)?;
        let path = &node.path;
        let entry = self.attributes_now(ino)?.ok_or(ViewError::Stale)?;
        let is_directory = entry.attributes.kind == crate::layer::Kind::Dir;
        if self.view.path_of_directory(ino)?.is_none() || names::is_own(path) && !is_directory {
            return Err(refused(Refusal::ReadOnly, format!("{path}: it is read-only")));
        }
        if let Some(size) = changes.size
            && size != entry.attributes.size
        {
            let reason = format!("{path}: what has been published is not cut or made longer");
            return Err(refused(Refusal::NotPermitted, reason));
        }
        let Some(mtime) = changes.mtime else { return Ok(entry) };
        // Whoever sets a time by the name means what was written last under it, also as long as that waits.
        let latest =
            self.table().named(path).filter(|file| !is_directory && file.state().is_written);
        if let Some(file) = latest {
            self.change_pending(&file, Changes { size: None, mtime: Some(mtime) })?;
            return Ok(entry);
        }
        if is_directory {
            if !self.table().set_directory_time(path, mtime) {
                if !path.is_empty() {
                    self.begin()?;
                    self.dir().create_dir(path).map_err(|e| failed(&e))?;
                }
                self.dir().set_time(path, mtime).map_err(|e| failed(&e))?;
                self.table().note_time(path, mtime);
            }
        } else if matches!(node.kind, Kind::Local | Kind::LocalTag | Kind::Manifest(_)) {
            self.set_time(path, mtime)?;
        }
        let mut changed = entry;
        changed.attributes.mtime = mtime;
        Ok(changed)
    }

    fn change_pending(&self, file: &Arc<Pending>, changes: Changes) -> Result<Entry> {
        let path = file.state().path.clone().unwrap_or_default();
        if let Some(size) = changes.size
            && (size != file.size() || !file.state().is_written)
        {
            file.set_len(size).map_err(|e| disk(&path, "truncating", e))?;
        }
        if let Some(mtime) = changes.mtime {
            let is_published = {
                let mut state = file.state();
                state.mtime = Some(mtime);
                matches!(state.stage, Stage::Published) && state.path.is_some()
            };
            if is_published {
                self.set_time(&path, mtime)?;
            }
            self.keep_anew(file)?;
        }
        Ok(self.entry(file))
    }

    /// Sets the time of a file that has been published.
    pub(super) fn set_time(&self, path: &str, mtime: (i64, u32)) -> Result<()> {
        let set = match Place::of(path) {
            Some(Place::Blob(digest)) => self.dir().set_blob_time(digest, mtime),
            Some(Place::Manifest(place)) if place.is_tag() => {
                self.dir().set_tag_time(&place.dir, &place.reference(), mtime)
            }
            Some(Place::Manifest(_)) => self.dir().set_time(path, mtime),
            _ => Ok(()),
        };
        match set {
            // It is not a file here: it was shown from somewhere else, or is not kept.
            Err(error) if is_absent(&error) => Ok(()),
            set => set.map_err(|e| failed(&e)),
        }
    }

    // --- removing ---

    /// What the view has under a name without asking anybody. The kernel is not told of it.
    pub(super) fn peek(&self, parent: u64, name: &OsStr, path: &str) -> Result<Option<Entry>> {
        if super::place::is_below_dot(path) {
            return Ok(None);
        }
        Ok(match self.lookup_in_view(parent, name, path)? {
            Found::Entry(entry) => {
                self.view.forget(entry.attributes.ino, 1);
                Some(entry)
            }
            _ => None,
        })
    }

    pub(super) fn remove_empty(&self, parent: u64, name: &OsStr) -> Result<()> {
        let path = self.path_to_change(parent, name)?;
        let not_empty = || refused(Refusal::NotEmpty, path.clone());
        if !self.table().names_in(&path).is_empty() {
            return Err(not_empty());
        }
        if self.table().remove_directory(&path) {
            return Ok(());
        }
        if !super::place::can_be_directory(&path) {
            return Err(refused(Refusal::NotPermitted, format!("{path}: it cannot be removed")));
        }
        let Found::Entry(entry) = self.view.lookup(parent, name)? else {
            return Err(ViewError::Wrong(std::io::ErrorKind::NotFound));
        };
        let ino = entry.attributes.ino;
        let listed = self.list_now(ino);
        self.view.forget(ino, 1);
        if listed?.is_none_or(|listing| !listing.is_empty()) {
            return Err(not_empty());
        }
        self.table().touch_above(&path);
        // The tree's own state is there, too, and stays.
        if path != names::BLOBS {
            self.dir().remove_dir(&path).map_err(|e| failed(&e))?;
        }
        self.table().hide(&path);
        Ok(())
    }

    /// Gives a directory the time again that has been set of it, after something in it has been published.
    pub(super) fn restore_time(&self, path: &str) {
        if let Some(time) = self.table().noted_time(path)
            && let Err(error) = self.dir().set_time(path, time)
        {
            self.log(&failed(&error));
        }
    }

    /// The file that is pending under a name. Nobody publishes it as long as the guard is held.
    async fn settled(&self, path: &str) -> Option<(Arc<Pending>, OwnedMutexGuard<()>)> {
        loop {
            let file = self.table().named(path)?;
            let unpublished = file.publishing.clone().lock_owned().await;
            let named = self.table().named(path);
            if named.is_some_and(|named| Arc::ptr_eq(&named, &file)) {
                return Some((file, unpublished));
            }
        }
    }

    pub(super) async fn remove_file(&self, path: &str) -> Result<()> {
        self.table().touch_above(path);
        self.refused.forget(path);
        if let Some((file, _unpublished)) = self.settled(path).await {
            // Others may have brought it meanwhile.
            let is_published = file.state().replaces || self.dir().has_file(path);
            self.table().unname(path, &file);
            file.remove();
            if !is_published {
                return Ok(());
            }
        }
        let Some(place) = Place::of(path) else {
            return Err(refused(Refusal::ReadOnly, format!("{path}: it is read-only")));
        };
        self.begin()?;
        match &place {
            Place::Manifest(place) => match &place.name {
                Name::Tag(tag) => self.remove_tag(place, tag).await?,
                Name::Digest(digest) => self.remove_manifest(place, *digest).await?,
            },
            Place::Blob(digest) => self.remove_blob(*digest).await?,
            Place::Dot | Place::Foreign | Place::Records => {
                return Err(ViewError::Wrong(std::io::ErrorKind::NotFound));
            }
        }
        self.table().hide(path);
        Ok(())
    }

    async fn remove_tag(&self, place: &ManifestPlace, tag: &str) -> Result<()> {
        let image = place.reference();
        if let Some(upstream) = self.upstream() {
            if !upstream.deletes() {
                let reason = format!(
                    "{image}: a tag is removed at its registry only by a mount with --write through,delete"
                );
                return Err(refused(Refusal::NotPermitted, reason));
            }
            withdraw(&**upstream, &image).await?;
        }
        let (dir, place, tag) = (self.dir().clone(), place.clone(), tag.to_owned());
        blocking(move || {
            let removed = dir.remove_tag_in(&place.dir, &place.repository, &tag);
            removed.map_err(|e| failed(&e))
        })
        .await
    }

    /// Whether a manifest that waits names `digest`: then its path.
    fn waiting_namer(&self, digest: &Digest) -> Option<Box<str>> {
        self.table().all().into_iter().find_map(|file| {
            let state = file.state();
            match &state.stage {
                Stage::Waiting(waiting) if waiting.document.names(digest) => state.path.clone(),
                _ => None,
            }
        })
    }

    fn busy(what: &Digest, namer: &str) -> ViewError {
        refused(Refusal::Busy, format!("{what}: {namer} names it"))
    }

    /// Refuses to take a manifest from where something names it.
    async fn check_unnamed(&self, place: &ManifestPlace, digest: Digest) -> Result<()> {
        if let Some(namer) = self.waiting_namer(&digest) {
            return Err(Self::busy(&digest, &namer));
        }
        let (dir, at) = (self.dir().clone(), place.dir.clone());
        blocking(move || {
            let namer = dir.namer_of_manifest(&at, &digest).map_err(|e| failed(&e))?;
            namer.map_or(Ok(()), |namer| Err(Self::busy(&digest, &namer)))
        })
        .await
    }

    /// Removes a manifest by its digest, unless something here names it.
    pub(super) async fn remove_manifest(
        &self,
        place: &ManifestPlace,
        digest: Digest,
    ) -> Result<()> {
        self.check_unnamed(place, digest).await?;
        let (dir, place) = (self.dir().clone(), place.clone());
        blocking(move || {
            let removed = dir.remove_manifest_in(&place.dir, &place.repository, digest);
            removed.map_err(|e| failed(&e))
        })
        .await
    }

    /// Removes a blob, unless something here names it, or another process fills the tree.
    pub(super) async fn remove_blob(&self, digest: Digest) -> Result<()> {
        if let Some(namer) = self.waiting_namer(&digest) {
            return Err(Self::busy(&digest, &namer));
        }
        let dir = self.dir().clone();
        // Whoever fills the tree may be about to name it.
        locked(&self.filling).filling = None;
        let removed = blocking(move || {
            let Some(_alone) = dir.fill_alone().map_err(|e| failed(&e))? else {
                let reason =
                    format!("{digest}: another process fills the directory, and may need it");
                return Err(refused(Refusal::Busy, reason));
            };
            let namer = dir.namer_of_blob(&digest).map_err(|e| failed(&e))?;
            match namer {
                Some(namer) => Err(Self::busy(&digest, &namer)),
                None => dir.remove_blob(digest).map_err(|e| failed(&e)),
            }
        });
        let removed = removed.await;
        self.begin()?;
        removed
    }

    // --- renaming and linking ---

    pub(super) async fn rename_file(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        replace: bool,
    ) -> Result<()> {
        let old = self.path_to_change(from.0, from.1)?;
        let new = self.path_to_change(to.0, to.1)?;
        if old == new {
            return Ok(());
        }
        let pending = self.settled(&old).await;
        let there = self.peek(from.0, from.1, &old)?;
        let is_directory = |entry: &Entry| entry.attributes.kind == crate::layer::Kind::Dir;
        if self.table().directory(&old).is_some()
            || pending.is_none() && there.as_ref().is_some_and(is_directory)
        {
            return Err(refused(Refusal::OtherDevice, old));
        }
        let place = Place::of(&new).ok_or_else(|| invalid(&new))?;
        self.begin()?;
        self.table().touch_above(&old);
        self.table().touch_above(&new);
        let target = self.peek(to.0, to.1, &new)?;
        if !replace && (target.is_some() || self.table().named(&new).is_some()) {
            return Err(refused(Refusal::Exists, new));
        }
        if target.as_ref().is_some_and(is_directory) {
            return Err(ViewError::Wrong(std::io::ErrorKind::IsADirectory));
        }
        let is_new = |file: &Pending| !file.state().replaces || there.is_none();
        if let Some(pending) = pending.filter(|(file, _)| is_new(file)) {
            return self.rename_pending(pending, &old, &new, place, target.is_some()).await;
        }
        let Some(there) = there else {
            return Err(ViewError::Wrong(std::io::ErrorKind::NotFound));
        };
        let Some(Place::Manifest(was)) = Place::of(&old) else {
            let reason = format!("{old}: a blob that has been published has no other name");
            return Err(refused(Refusal::NotPermitted, reason));
        };
        if matches!(was.name, Name::Digest(_)) {
            let reason = format!("{old}: it has the name of its digest; it can be copied");
            return Err(refused(Refusal::NotPermitted, reason));
        }
        if let (Name::Tag(_), Some(upstream)) = (&was.name, self.upstream()) {
            if !upstream.deletes() {
                let reason = format!(
                    "{old}: a tag is removed at its registry only by a mount with --write through,delete; \
                     it can be copied"
                );
                return Err(refused(Refusal::NotPermitted, reason));
            }
            check_move(&**upstream, &was, &place).await?;
        }
        self.copy_published(&there, from, &new, place, target.is_some()).await?;
        self.remove_file(&old).await?;
        // The kernel has what it knew under the old name under the new one now, and opens that.
        self.view.inodes().moved(there.attributes.ino, &new);
        Ok(())
    }

    async fn rename_pending(
        &self,
        (file, unpublished): (Arc<Pending>, OwnedMutexGuard<()>),
        old: &str,
        new: &str,
        place: Place,
        replaces: bool,
    ) -> Result<()> {
        // What it replaces is not published any more.
        let _unpublished = self.settled(new).await.map(|(_, unpublished)| unpublished);
        let file = &file;
        let (was, was_replacing, was_at, is_being_written, is_written) = {
            let mut state = file.state();
            let was = std::mem::replace(&mut state.place, place);
            let was_replacing = std::mem::replace(&mut state.replaces, replaces);
            let was_at = std::mem::replace(&mut state.stage, Stage::Writing);
            let is_being_written = state.is_being_written();
            state.path = Some(new.into());
            // What was judged under its old name, or was nothing to judge, is judged under this one.
            state.is_dirty = state.is_written;
            (was, was_replacing, was_at, is_being_written, state.is_written)
        };
        self.table().unname(old, file);
        let replaced = self.table().name(new, file);
        drop(unpublished);
        let is_whole = is_written || self.is_to_be_judged(file, &file.state());
        if !is_being_written
            && is_whole
            && let Err(error) = self.complete(file).await
        {
            // It is where it was, and so is what it was to replace.
            let is_published = matches!(file.state().stage, Stage::Published);
            if !is_published {
                self.table().unname(new, file);
                let mut state = file.state();
                state.place = was;
                state.replaces = was_replacing;
                state.path = Some(old.into());
                state.stage = was_at;
                drop(state);
                self.table().name(old, file);
                if let Some(replaced) = replaced {
                    self.table().name(new, &replaced);
                }
            }
            return Err(error);
        }
        if let Some(replaced) = replaced {
            replaced.remove();
            self.forget_unknown(replaced.ino);
        }
        Ok(())
    }

    /// Writes the content of a manifest that has been published, or is at a registry, under another name.
    async fn copy_published(
        &self,
        there: &Entry,
        from: (u64, &OsStr),
        new: &str,
        place: Place,
        replaces: bool,
    ) -> Result<()> {
        // The kernel is told of it as long as it is read.
        let Found::Entry(told) = self.view.lookup(from.0, from.1)? else {
            return Err(ViewError::Stale);
        };
        let opened = self.open_told(told.attributes.ino).await;
        self.view.forget(told.attributes.ino, 1);
        self.write_copy(opened?, there.attributes.mtime, new, place, replaces).await.map(drop)
    }

    async fn open_told(&self, ino: u64) -> Result<Handle> {
        match self.open_now(ino)? {
            Some(handle) => Ok(handle),
            None => self.open(ino).await,
        }
    }

    /// Writes the content of `source` under the name `new`.
    async fn write_copy(
        &self,
        source: Handle,
        mtime: (i64, u32),
        new: &str,
        place: Place,
        replaces: bool,
    ) -> Result<Arc<Pending>> {
        let size = source.size().map_err(|e| failed(&e))?;
        let base = match place {
            Place::Manifest(_) if size > MAX_MANIFEST_BYTES as u64 => {
                return Err(refused(Refusal::TooLarge, format!("{new}: it is no manifest")));
            }
            Place::Manifest(_) => {
                let length = usize::try_from(size).unwrap_or(0);
                let bytes = source.read(0, length).await.map_err(|e| failed(&e))?;
                (Handle::Content(bytes), size, mtime)
            }
            _ => (source, size, mtime),
        };
        let is_dot = place == Place::Dot;
        let is_changing = is_dot && matches!(base.0, Handle::Pending(_));
        let file = self.pending_of(new, place, base);
        if is_changing {
            // What is written to the one later is not to be seen in the other.
            let (to_copy, path) = (file.clone(), new.to_owned());
            let copied = move || to_copy.stored().map(drop).map_err(|e| disk(&path, "copying", e));
            blocking(copied).await?;
        }
        {
            let mut state = file.state();
            state.replaces = replaces;
            state.is_written = true;
            state.is_dirty = true;
            // A name takes along the time that has been set of it, and not that of a digest's name.
            let is_own = ![ELSEWHERE, published_time(None)].contains(&mtime);
            state.mtime = is_own.then_some(mtime);
        }
        let replaced = self.table().name(new, &file);
        if !is_dot && let Err(error) = self.complete(&file).await {
            self.reject(&file);
            if let Some(replaced) = replaced {
                self.table().name(new, &replaced);
            }
            return Err(error);
        }
        if let Some(replaced) = replaced {
            replaced.remove();
            self.forget_unknown(replaced.ino);
        }
        Ok(file)
    }

    pub(super) async fn link_file(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Entry> {
        let new = self.path_to_change(parent, name)?;
        let place = Place::of(&new).ok_or_else(|| invalid(&new))?;
        self.begin()?;
        self.table().touch_above(&new);
        let target = self.peek(parent, name, &new)?;
        if target.is_some() || self.table().named(&new).is_some() {
            return Err(refused(Refusal::Exists, new));
        }
        let (source, mtime, old) = match self.table().inode(ino) {
            Some(file) => {
                let (mtime, old) = (file.look().mtime, file.state().path.clone());
                if file.state().is_being_written() && place != Place::Dot {
                    let reason = format!("{}: it is being written", old.unwrap_or_default());
                    return Err(refused(Refusal::Busy, reason));
                }
                (Handle::Pending(PendingHandle::new(&file, false)), mtime, old)
            }
            None => {
                let entry = self.attributes_now(ino)?.ok_or(ViewError::Stale)?;
                let path = self.view.inodes().path_of(ino)?;
                (self.open_told(ino).await?, entry.attributes.mtime, Some(path))
            }
        };
        let is_blob = |path: &str| matches!(Place::of(path), Some(Place::Blob(_)));
        if old.as_deref().is_some_and(is_blob) {
            let reason = format!("{new}: a blob that has been published has no other name");
            return Err(refused(Refusal::NotPermitted, reason));
        }
        let file = self.write_copy(source, mtime, &new, place, false).await?;
        match self.lookup_for(parent, name, crate::namespace::Caller { thread: 0 })? {
            Found::Entry(entry) => Ok(entry),
            _ => Ok(self.tell(&file)),
        }
    }
}
