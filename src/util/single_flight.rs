//! Work that several callers need at the same time and that is done once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::task::JoinError;

use super::locked;

/// The work ended without an outcome: it panicked, or its runtime was shut down.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the work that several requests were waiting for has ended without an outcome: {0}")]
pub(crate) struct Died(Arc<JoinError>);

/// The outcome of work that is under way, for everybody who waits for it. Dropping it does not end the
/// work.
pub(crate) type Flight<T> = Shared<BoxFuture<'static, Result<T, Died>>>;

/// Work by key, each at most once at a time. Clones are the same.
///
/// Whoever asks first starts the work, in a task of its own; whoever asks while it is under way gets the
/// same outcome. The work goes on when everybody has stopped waiting. When it ends, in whatever way, its
/// key is free again before anybody gets the outcome: who asks after that starts anew. Nothing is kept
/// here; work whose outcome is kept elsewhere looks there first.
pub(crate) struct SingleFlight<K, T> {
    flights: Arc<Mutex<HashMap<K, Flight<T>>>>,
}

impl<K, T> Clone for SingleFlight<K, T> {
    fn clone(&self) -> Self {
        Self { flights: self.flights.clone() }
    }
}

impl<K, T> Default for SingleFlight<K, T> {
    fn default() -> Self {
        Self { flights: Arc::default() }
    }
}

impl<K, T> SingleFlight<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The work for `key` that is under way, or that `work` begins now. Has to be called in a runtime.
    pub(crate) fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> Flight<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut flights = locked(&self.flights);
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let landing = Landing { flights: self.flights.clone(), key: key.clone() };
        let work = work();
        let task = tokio::spawn(async move {
            // Dropped with the work, also if that panics or is never polled.
            let _landing = landing;
            work.await
        });
        let flight = async move { task.await.map_err(|error| Died(Arc::new(error))) };
        let flight = flight.boxed().shared();
        flights.insert(key, flight.clone());
        flight
    }

    /// How much work is under way.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        locked(&self.flights).len()
    }
}

/// Frees the key of work that ends.
struct Landing<K: Eq + Hash, T> {
    flights: Arc<Mutex<HashMap<K, Flight<T>>>>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        let landed = locked(&self.flights).remove(&self.key);
        // Not while the lock is held: it may be the last one that knows the outcome.
        drop(landed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn concurrent_callers_share_one_run() {
        let flights = SingleFlight::<&str, usize>::default();
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let start = || {
            let (runs, gate) = (runs.clone(), gate.clone());
            move || async move {
                gate.notified().await;
                runs.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let all: Vec<_> = (0..10).map(|_| flights.run("a", start())).collect();
        let other = flights.run("b", || async { 7 });
        assert_eq!(other.await.unwrap(), 7);
        gate.notify_one();
        for flight in all {
            assert_eq!(flight.await.unwrap(), 1);
        }
        assert_eq!((runs.load(Ordering::SeqCst), flights.len()), (1, 0));
        gate.notify_one();
        assert_eq!(flights.run("a", start()).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn an_error_is_the_outcome_of_all_and_the_next_one_tries_again() {
        let flights = SingleFlight::<u8, Result<u8, &str>>::default();
        let first = flights.run(1, || async { Err("no") });
        let second = flights.run(1, || async { Ok(1) });
        assert_eq!(first.await.unwrap(), Err("no"));
        assert_eq!(second.await.unwrap(), Err("no"));
        assert_eq!(flights.run(1, || async { Ok(2) }).await.unwrap(), Ok(2));
    }

    #[tokio::test]
    async fn a_panic_is_told_to_all_and_leaves_nothing() {
        let flights = SingleFlight::<u8, u8>::default();
        let first = flights.run(1, || async { panic!("broken") });
        let second = flights.run(1, || async { 2 });
        for flight in [first, second] {
            let died = flight.await.unwrap_err();
            assert!(died.to_string().contains("broken"), "{died}");
        }
        assert_eq!(flights.len(), 0);
        assert_eq!(flights.run(1, || async { 3 }).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn the_work_goes_on_when_those_who_started_it_give_up() {
        let flights = SingleFlight::<u8, u8>::default();
        let (gate, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (wait, tell) = (gate.clone(), done.clone());
        let work = || async move {
            wait.notified().await;
            tell.notify_one();
            4
        };
        drop(flights.run(1, work));
        assert_eq!(flights.len(), 1);
        let follower = flights.run(1, || async { 5 });
        gate.notify_one();
        done.notified().await;
        assert_eq!(follower.await.unwrap(), 4);
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn the_end_of_a_runtime_is_told_and_leaves_nothing() {
        let flights = SingleFlight::<u8, u8>::default();
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let first = runtime();
        let flight = {
            let _inside = first.enter();
            flights.run(1, std::future::pending)
        };
        drop(first);
        let second = runtime();
        second.block_on(async {
            assert!(flight.await.is_err());
            assert_eq!(flights.run(1, || async { 6 }).await.unwrap(), 6);
        });
    }
}
