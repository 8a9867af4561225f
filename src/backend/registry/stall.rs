//! The deadline of whatever comes from the network. It counts the time in which somebody waits for
//! the network, and no other: neither that between two requests for more, in which what has come is
//! written to a slow disk, nor that in which this process did not get to run.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// A timer that is noticed this much later than it was due, as a part of its whole time, was held up
/// by this process: blocked threads, or a task that was busy with something else.
const LATE: u32 = 4;

/// Nothing has come for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stalled(pub(crate) Duration);

/// Waits for `work` for at most `limit` in which nothing comes.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Stalled> {
    let mut work = pin!(work);
    let mut timer = pin!(sleep_until(Instant::now() + limit));
    poll_fn(|context| {
        // First what there is, however late: reqwest's own deadline looks at the time first.
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(Ok(done));
        }
        while timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            if now.saturating_duration_since(timer.deadline()) < limit / LATE {
                return Poll::Ready(Err(Stalled(limit)));
            }
            // The network has not had its time: whoever should have looked was held up.
            timer.as_mut().reset(now + limit);
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::future::pending;

    const LIMIT: Duration = Duration::from_secs(30);

    fn paused() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap()
    }

    #[test]
    fn nothing_for_too_long_is_noticed_in_time() {
        paused().block_on(async {
            let start = Instant::now();
            assert_eq!(within(LIMIT, pending::<()>()).await, Err(Stalled(LIMIT)));
            assert!(start.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", start.elapsed());
        });
    }

    #[test]
    fn what_has_come_counts_however_late_it_is_looked_at() {
        paused().block_on(async {
            let (send, receive) = tokio::sync::oneshot::channel();
            let mut waiting = pin!(within(LIMIT, receive));
            assert!(poll!(&mut waiting).is_pending());
            send.send(7).unwrap();
            tokio::time::advance(Duration::from_secs(600)).await;
            assert_eq!(waiting.await, Ok(Ok(7)));
        });
    }

    #[test]
    fn time_in_which_nobody_waits_does_not_count() {
        paused().block_on(async {
            let (send, receive) = tokio::sync::oneshot::channel();
            let mut waiting = pin!(within(LIMIT, receive));
            assert!(poll!(&mut waiting).is_pending());
            // Whoever waits is busy for ten minutes; the network then gets its time.
            tokio::time::advance(Duration::from_secs(600)).await;
            assert!(poll!(&mut waiting).is_pending());
            tokio::time::advance(LIMIT - Duration::from_secs(1)).await;
            assert!(poll!(&mut waiting).is_pending());
            send.send(7).unwrap();
            assert_eq!(waiting.await, Ok(Ok(7)));
            // And no more than that.
            let mut waiting = pin!(within(LIMIT, pending::<()>()));
            assert!(poll!(&mut waiting).is_pending());
            tokio::time::advance(Duration::from_secs(600)).await;
            assert!(poll!(&mut waiting).is_pending());
            assert_eq!(waiting.await, Err(Stalled(LIMIT)));
        });
    }
}
