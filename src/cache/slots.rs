//! Places for requests: so many run at once, and those that somebody waits for come first.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::oneshot;

use crate::util::locked;

/// Hands out a bounded number of [`Slot`]s.
pub(super) struct Slots(Mutex<Queues>);

struct Queues {
    free: usize,
    /// Those that somebody waits for.
    urgent: VecDeque<Waiting>,
    idle: VecDeque<Waiting>,
}

struct Waiting {
    id: u64,
    gets: oneshot::Sender<Slot>,
}

/// The right to make a request, until it is dropped.
pub(super) struct Slot(Arc<Slots>);

impl Slots {
    pub(super) fn new(slots: usize) -> Arc<Self> {
        let queues = Queues { free: slots.max(1), urgent: VecDeque::new(), idle: VecDeque::new() };
        Arc::new(Self(Mutex::new(queues)))
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        locked(&self.0)
    }

    /// Waits for a slot. `id` is for [`Slots::promote`].
    pub(super) async fn acquire(self: &Arc<Self>, id: u64, urgent: bool) -> Slot {
        let given = {
            let mut queues = self.queues();
            if queues.free > 0 {
                queues.free -= 1;
                return Slot(self.clone());
            }
            let (gets, given) = oneshot::channel();
            let queue = if urgent { &mut queues.urgent } else { &mut queues.idle };
            queue.push_back(Waiting { id, gets });
            given
        };
        match given.await {
            Ok(slot) => slot,
            // Nobody drops the other end while it waits; a request too many does no harm.
            Err(_) => Slot(self.clone()),
        }
    }

    /// From now on somebody waits for what `id` is to fetch.
    pub(super) fn promote(&self, id: u64) {
        let mut queues = self.queues();
        if let Some(at) = queues.idle.iter().position(|waiting| waiting.id == id)
            && let Some(waiting) = queues.idle.remove(at)
        {
            queues.urgent.push_back(waiting);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let next = {
            let mut queues = self.0.queues();
            let next = queues.urgent.pop_front().or_else(|| queues.idle.pop_front());
            if next.is_none() {
                queues.free += 1;
            }
            next
        };
        if let Some(next) = next {
            // Who has gone away meanwhile drops it, and so passes it on.
            drop(next.gets.send(Slot(self.0.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn those_that_somebody_waits_for_come_first() {
        let slots = Slots::new(1);
        let held = slots.acquire(0, false).await;
        let mut waiting: Vec<_> = [(1, false), (2, false), (3, true)]
            .map(|(id, urgent)| Box::pin(slots.acquire(id, urgent)))
            .into();
        assert!(waiting.iter_mut().all(|w| w.as_mut().now_or_never().is_none()));
        slots.promote(2);
        drop(held);
        let third = waiting.pop().unwrap().now_or_never().expect("was urgent from the start");
        let mut second = waiting.pop().unwrap();
        assert!(second.as_mut().now_or_never().is_none());
        drop(waiting);
        drop(third);
        drop(second.now_or_never().expect("was promoted"));
        assert!(slots.acquire(4, false).now_or_never().is_some(), "the one that left took none");
    }
}
