//! A view that can be written to, as the kernel sees it.

use std::{
    ffi::OsStr,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    super::{
        ABSENT, Attributes, Caller, Entry, Found, Handle, Listing, Namespace, Question, Space,
        Subject, ViewError, Writing, Xattrs, below, inodes::Kind, listing::Content, names,
    },
    Result, STATUS, Writable,
};
use crate::{backend, util::locked};

#[async_trait]
impl Namespace for Writable {
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found> {
        self.lookup_for(parent, name, Caller { thread: 0 })
    }

    async fn find_out(&self, question: &Question) -> Result<Found> {
        let path = &question.path;
        match self.view.find_out(question).await {
            Ok(Found::Entry(entry)) => Ok(Found::Entry(self.seen(entry))),
            // Whatever keeps it from being found, it can be created.
            Err(error) if !question.ends_by_itself() => {
                use backend::Kind::{Connect, Interrupted, Stalled, Tls, WaitTooLong};
                if let ViewError::Tree(error) = &error
                    && matches!(
                        error.kind(),
                        Connect(_) | Interrupted(_) | Stalled(_) | Tls(_) | WaitTooLong { .. }
                    )
                {
                    let registry = Self::registry(path).to_owned();
                    locked(&self.unreachable).insert(registry, Instant::now());
                }
                tracing::info!("{path}: it is taken not to be there: {error}");
                Ok(Found::Absent(ABSENT))
            }
            found => found,
        }
    }

    fn forget(&self, ino: u64, times: u64) {
        self.view.forget(ino, times);
        if self.table.inode(ino).is_some() {
            self.forget_unknown(ino);
        }
    }

    fn attributes_now(&self, ino: u64) -> Result<Option<Entry>> {
        if let Some(file) = self.table.inode(ino) {
            return Ok(Some(self.entry(&file)));
        }
        if ino == self.status_ino {
            return Ok(Some(self.status_entry()));
        }
        if let Ok(Some(path)) = self.view.path_of_directory(ino)
            && let Some(mtime) = self.table.directory(&path)
        {
            let attributes = Attributes::directory(ino, mtime.unwrap_or((1, 0)));
            return Ok(Some(Entry { attributes, ttl: Duration::ZERO }));
        }
        let entry = self.view.attributes_now(ino).map_err(|error| self.gone(ino, error))?;
        Ok(entry.map(|entry| self.seen(entry)))
    }

    async fn attributes(&self, ino: u64) -> Result<Entry> {
        self.view.attributes(ino).await.map(|entry| self.seen(entry))
    }

    fn link_target_now(&self, ino: u64) -> Result<Option<Bytes>> {
        self.view.link_target_now(ino)
    }

    async fn link_target(&self, ino: u64) -> Result<Bytes> {
        self.view.link_target(ino).await
    }

    fn xattrs_now(&self, ino: u64) -> Result<Option<Xattrs>> {
        match self.table.inode(ino).is_some() || ino == self.status_ino {
            true => Ok(Some(Xattrs::new())),
            false => self.view.xattrs_now(ino),
        }
    }

    async fn xattrs(&self, ino: u64) -> Result<Xattrs> {
        self.view.xattrs(ino).await
    }

    fn open_now(&self, ino: u64) -> Result<Option<Handle>> {
        if let Some(file) = self.table.inode(ino) {
            return self.open_pending(&file).map(Some);
        }
        if ino == self.status_ino {
            return Ok(match self.waiting_manifests() {
                0 => Some(Handle::Fresh(self.status())),
                _ => None,
            });
        }
        self.note_origin(ino);
        self.view.open_now(ino).map_err(|error| self.gone(ino, error))
    }

    async fn open(&self, ino: u64) -> Result<Handle> {
        if ino == self.status_ino {
            self.look_now().await;
            return Ok(Handle::Fresh(self.status()));
        }
        self.view.open(ino).await
    }

    fn is_in_memory(&self, ino: u64) -> bool {
        self.view.is_in_memory(ino)
    }

    fn is_as_listed(&self, ino: u64) -> bool {
        // What is written changes what is listed in ways that the view knows nothing of.
        self.view.is_in_memory(ino) && self.view.is_as_listed(ino)
    }

    fn list_now(&self, ino: u64) -> Result<Option<Listing>> {
        if let Some(path) = self.view.path_of_directory(ino)?
            && self.table.directory(&path).is_some()
        {
            return Ok(Some(self.listing_of(ino, &path)));
        }
        Ok(self.view.list_now(ino)?.map(|listing| self.complete_listing(listing)))
    }

    async fn list(&self, ino: u64) -> Result<Listing> {
        self.view.list(ino).await.map(|listing| self.complete_listing(listing))
    }

    fn listed(&self, listing: &Listing, at: usize) -> Result<Option<Entry>> {
        if let Content::Names(names) = &listing.content
            && let Some((name, _)) = names.entries.get(at)
        {
            let path = below(&names.path, name);
            if path == names::inside_path(STATUS) {
                let entry = self.status_entry();
                self.view.inodes().tell_known(entry.attributes.ino, &path, Kind::Pending);
                return Ok(Some(entry));
            }
            if let Some(file) = self.table.named(&path)
                && !file.state().replaces
            {
                return Ok(Some(self.tell(&file)));
            }
            if let Some(mtime) = self.table.directory(&path) {
                return Ok(Some(self.tell_directory(&path, mtime)));
            }
        }
        Ok(self.view.listed(listing, at)?.map(|entry| self.seen(entry)))
    }

    fn number_of(&self, listing: &Listing, at: usize) -> u64 {
        if let Content::Names(names) = &listing.content
            && let Some((name, _)) = names.entries.get(at)
            && let Some(file) = self.table.named(&below(&names.path, name))
        {
            return file.ino;
        }
        self.view.number_of(listing, at)
    }

    fn space(&self) -> Space {
        self.view.space()
    }

    fn is_fixed(&self) -> bool {
        false
    }

    fn opens_every_file(&self) -> bool {
        false
    }

    fn subject(&self, ino: u64) -> Subject {
        match self.table.inode(ino) {
            Some(file) => {
                let path = file.state().path.clone();
                path.map(|path| Subject::of_path(&path)).unwrap_or_default()
            }
            None => self.view.subject(ino),
        }
    }

    fn subject_of_name(&self, parent: u64, name: &OsStr) -> Subject {
        self.view.subject_of_name(parent, name)
    }

    fn writing(&self) -> Option<&dyn Writing> {
        Some(self)
    }
}
