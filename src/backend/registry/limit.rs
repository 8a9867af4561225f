//! How much is asked of one registry at a time.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::util::locked;

/// Successes that it takes to raise a lowered limit by one.
const SUCCESSES_TO_GROW: usize = 16;

/// Refusals that come within this time of the first are answers to the same burst.
const SAME_REFUSAL: Duration = Duration::from_secs(1);

/// A limit on simultaneous requests that adapts: halved when the registry says that it is too
/// much, raised again by one after a while of success. Waiters are served in the order they came.
pub(crate) struct Limiter {
    permits: Arc<Semaphore>,
    max: usize,
    state: Mutex<State>,
}

struct State {
    limit: usize,
    /// Permits to be destroyed when they come back, because the limit fell below what is in use.
    debt: usize,
    successes: usize,
    lowered: Option<Instant>,
    not_before: Option<Instant>,
}

/// Leave to make one request, until dropped.
pub(crate) struct Permit {
    limiter: Arc<Limiter>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Limiter {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let max = max.max(1);
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(max)),
            max,
            state: Mutex::new(State {
                limit: max,
                debt: 0,
                successes: 0,
                lowered: None,
                not_before: None,
            }),
        })
    }

    /// Waits for a turn, and for the end of a pause that the registry asked for.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Permit {
        // The semaphore is never closed, so there always is a permit in the end.
        let permit = self.permits.clone().acquire_owned().await.ok();
        loop {
            let until = self.state().not_before;
            match until.and_then(|at| at.checked_duration_since(Instant::now())) {
                Some(wait) if !wait.is_zero() => tokio::time::sleep(wait).await,
                _ => break,
            }
        }
        Permit { limiter: self.clone(), permit }
    }

    /// Whether one more request would neither wait nor be more than the registry can take.
    pub(crate) fn has_room(&self) -> bool {
        self.state().limit == self.max && self.permits.available_permits() > 0
    }

    /// The registry answered 429 or 503: do half as much, and nothing before `pause` is over.
    pub(crate) fn back_off(&self, pause: Option<Duration>) {
        let mut state = self.state();
        // All that was under way is refused together, which is one refusal.
        let same = state.lowered.is_some_and(|at| at.elapsed() < SAME_REFUSAL);
        if !same {
            let lower = (state.limit / 2).max(1);
            state.debt += state.limit - lower;
            state.limit = lower;
            state.successes = 0;
            state.lowered = Some(Instant::now());
            tracing::info!(requests = lower, "the registry asks for less at a time");
        }
        if let Some(pause) = pause {
            let until = Instant::now() + pause;
            state.not_before = Some(state.not_before.map_or(until, |at| at.max(until)));
        }
    }

    /// A request went well.
    pub(crate) fn succeeded(&self) {
        let mut state = self.state();
        if state.limit == self.max {
            return;
        }
        state.successes += 1;
        if state.successes >= SUCCESSES_TO_GROW {
            state.successes = 0;
            state.limit += 1;
            if state.debt > 0 {
                state.debt -= 1;
            } else {
                self.permits.add_permits(1);
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change of the state is complete in itself, so a poisoned lock is still good.
        locked(&self.state)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limiter.state();
        if let Some(permit) = self.permit.take()
            && state.debt > 0
        {
            state.debt -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn halves_and_recovers() {
        let limiter = Limiter::new(8);
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(limiter.acquire().await);
        }
        for _ in 0..8 {
            limiter.back_off(None);
        }
        held.clear();
        assert_eq!(limiter.permits.available_permits(), 4, "a burst of refusals counts once");
        for _ in 0..SUCCESSES_TO_GROW * 20 {
            limiter.succeeded();
        }
        assert_eq!(limiter.permits.available_permits(), 8);
        for _ in 0..10 {
            limiter.state().lowered = None;
            limiter.back_off(None);
        }
        assert_eq!(limiter.state().limit, 1);
        drop(limiter.acquire().await);
    }

    #[tokio::test]
    async fn a_pause_holds_everybody() {
        let limiter = Limiter::new(2);
        limiter.back_off(Some(Duration::from_secs(3600)));
        let waiting = limiter.acquire();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }
}
