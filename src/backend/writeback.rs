//! Has the kernel begin to write files to the disk while they are still being received.
//!
//! What is not flushed would otherwise wait in memory, for half a minute or until there is much of it, while the
//! disk has nothing to do; and a power cut would take all of it. Nobody waits for this: it is begun on a thread of
//! its own, where a disk with full queues holds up nobody, and what the thread has no time for is left to the
//! kernel.

use std::{
    fs::File,
    sync::{
        Arc, OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use rustix::fs::{Advice, fadvise};

/// How much of a file is begun at a time, in bytes: the thread cannot be ended while the disk takes it in, and
/// with it the process.
pub(super) const STEP: u64 = 8 << 20;

/// Steps that may wait for the thread. Each holds a file open.
const QUEUED_STEPS: usize = 32;

struct Step {
    file: Arc<File>,
    offset: u64,
}

/// Begins to write files to the disk. The thread ends with this.
#[derive(Default)]
pub(super) struct Writeback(OnceLock<Option<SyncSender<Step>>>);

impl Writeback {
    /// Begins to write the [`STEP`] bytes at `offset` of `file`, which must not have been begun before.
    pub(super) fn begin(&self, file: &Arc<File>, offset: u64) {
        if let Some(steps) = self.0.get_or_init(start) {
            // With a full queue, the kernel does it in its own time.
            let _ = steps.try_send(Step { file: file.clone(), offset });
        }
    }
}

/// Starts the thread; `None` if there cannot be one more.
fn start() -> Option<SyncSender<Step>> {
    let (steps, begun) = sync_channel::<Step>(QUEUED_STEPS);
    let work = move || {
        for Step { file, offset } in begun {
            // "Not needed any more" makes the kernel begin to write what is not on the disk, and forget what is.
            // Of a range that is on its way to the disk for the first time, nothing is forgotten.
            let _ = fadvise(&*file, offset, std::num::NonZeroU64::new(STEP), Advice::DontNeed);
        }
    };
    thread::Builder::new().name("writeback".into()).spawn(work).ok()?;
    Some(steps)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn nothing_is_waited_for_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content = vec![7; 3 * STEP as usize];
        let mut file = File::create(&path).unwrap();
        file.write_all(&content).unwrap();
        let writeback = Writeback::default();
        let file = Arc::new(File::open(&path).unwrap());
        for step in 0..200 {
            writeback.begin(&file, step % 3 * STEP);
        }
        assert!(std::fs::read(&path).unwrap() == content);
    }
}
