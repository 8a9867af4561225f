//! Where the cache's work runs: requests in the runtime, and what waits for the disk or computes for
//! long on threads that may block.
//!
//! Tests can run all of it under a scheduler of their own, one task at a time; then it is the
//! scheduler that decides at each [`point`] which one goes on. See `tests/interleavings.rs`.

use std::{future::Future, time::Duration};

use tokio::{runtime::Handle, sync::oneshot};

/// Runs tasks.
pub(super) enum Tasks {
    /// In a runtime.
    Runtime(Handle),
    /// In the order that the scheduler of a test decides on. They begin a little later, since they
    /// are given while the state is locked, where nobody else must come in between.
    #[cfg(test)]
    Scheduled(tokio::sync::mpsc::UnboundedSender<Begin>),
}

/// Begins a task under the scheduler of a test.
#[cfg(test)]
pub(super) type Begin = Box<dyn FnOnce() + Send>;

impl Tasks {
    /// Runs `task` to its end.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Runtime(runtime) => drop(runtime.spawn(task)),
            #[cfg(test)]
            Self::Scheduled(begins) => {
                let begin = || drop(shuttle::future::spawn(task));
                let _ = begins.send(Box::new(begin));
            }
        }
    }

    /// Runs `work`, from now on, on a thread that may block. What it returns comes through the
    /// channel, which is closed if it panics or the runtime ends.
    pub(super) fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (gives, comes) = oneshot::channel();
        let work = move || {
            // Nobody has to wait for it.
            let _ = gives.send(work());
        };
        match self {
            Self::Runtime(runtime) => drop(runtime.spawn_blocking(work)),
            #[cfg(test)]
            Self::Scheduled(begins) => {
                let begin = || drop(shuttle::thread::spawn(work));
                let _ = begins.send(Box::new(begin));
            }
        }
        comes
    }

    /// Waits for so long.
    pub(super) fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + use<> {
        #[cfg(test)]
        let is_scheduled = matches!(self, Self::Scheduled(_));
        async move {
            #[cfg(test)]
            if is_scheduled {
                // However long it is, others may come to their ends meanwhile, or not.
                for _ in 0..50 {
                    shuttle::future::yield_now().await;
                }
                return;
            }
            tokio::time::sleep(duration).await;
        }
    }
}

/// A place at which other tasks may do something: before the state is locked, and before anything
/// is read from the disk or written there. Here the scheduler of a test may switch to another task.
#[cfg(test)]
pub(super) fn point() {
    if shuttle::current::try_get_current_task().is_some() && !std::thread::panicking() {
        shuttle::sync::atomic::AtomicBool::new(false).load(std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(not(test))]
pub(super) fn point() {}
