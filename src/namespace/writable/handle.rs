//! Pending files that are open.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::task;

use super::pending::{Pending, State};
use crate::namespace::Handle;

/// An open file that is being written, or has been.
pub struct PendingHandle {
    pub(super) file: Arc<Pending>,
    pub(super) writes: bool,
    /// Whether it is one of the file's active writers. Changed while the file's state is locked.
    is_active: AtomicBool,
}

impl PendingHandle {
    pub(super) fn new(file: &Arc<Pending>, writes: bool) -> Self {
        let mut state = file.state();
        state.opens += 1;
        state.writers += usize::from(writes);
        state.active += usize::from(writes);
        drop(state);
        Self { file: file.clone(), writes, is_active: AtomicBool::new(writes) }
    }

    /// Notes whether more is to come by it.
    pub(super) fn set_active(&self, state: &mut State, is_active: bool) {
        if self.is_active.swap(is_active, Ordering::Relaxed) != is_active {
            state.active =
                if is_active { state.active + 1 } else { state.active.saturating_sub(1) };
        }
    }

    /// Reads up to `length` bytes.
    pub(in crate::namespace) async fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let file = self.file.clone();
        let read = task::spawn_blocking(move || file.read_at(offset, length));
        read.await.map_err(io::Error::other)?
    }

    pub(in crate::namespace) fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_data(offset)
    }

    pub(in crate::namespace) fn next_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_hole(offset)
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// Writes all of `bytes`. Like all that follow it may wait, and is to be called in a runtime.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.begin()?;
        self.file.write(offset, bytes)
    }

    /// As fallocate(2), with its `mode`.
    pub fn allocate(&self, mode: u32, offset: u64, length: u64) -> io::Result<()> {
        self.begin()?;
        self.file.allocate(mode, offset, length)
    }

    /// Copies from another file without moving the bytes through this process. How many have been copied; an
    /// error where the system cannot do that.
    pub fn copy_from(
        &self,
        from: &Handle,
        offset_in: u64,
        offset: u64,
        length: u64,
    ) -> io::Result<u64> {
        self.begin()?;
        let source = match from {
            Handle::Pending(from) => from.file.own_file(),
            _ => match from.local_file() {
                Some(file) => Some(Arc::new(file.try_clone()?)),
                None => None,
            },
        };
        let source = source.ok_or(Errno::OPNOTSUPP)?;
        self.file.copy_from(&source, offset_in, offset, length)
    }

    /// Flushes what has been written to the disk, if it has not been published. Whether that is so.
    pub fn sync(&self) -> io::Result<bool> {
        self.file.sync()
    }

    /// To be called before each change.
    fn begin(&self) -> io::Result<()> {
        if !self.writes {
            return Err(Errno::BADF.into());
        }
        self.set_active(&mut self.file.state(), true);
        Ok(())
    }
}

impl Drop for PendingHandle {
    fn drop(&mut self) {
        let mut state = self.file.state();
        state.opens = state.opens.saturating_sub(1);
        drop(state);
        self.file.discard();
    }
}
