//! Looking whether others have brought what manifests wait for.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use super::{Writable, pending::Stage, pushed};
use crate::util::locked;

/// How often it is looked whether another process has brought what manifests wait for.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Whoever asks what is pending waits no longer than this until it has been looked at.
const MAX_LOOK: Duration = Duration::from_secs(5);

/// When nothing is pending for so long, the tree is not said to be being filled any more.
const IDLE: Duration = Duration::from_secs(30);

/// When it is looked whether others have brought what manifests wait for.
#[derive(Default)]
pub(super) struct Looking {
    /// Told by whoever does not want to wait for the next time.
    wanted: Arc<Notify>,
    /// How often it was begun, and which of these has ended last.
    begun: AtomicU64,
    ended: watch::Sender<u64>,
}

impl Writable {
    /// Looks now and then whether others have brought what manifests wait for: at first what has come since an earlier
    /// mount has kept them.
    pub(super) async fn keep_looking(this: Weak<Self>) {
        loop {
            let wanted = {
                let Some(this) = this.upgrade() else { return };
                let wanted = this.looking.wanted.clone();
                let number = this.looking.begun.fetch_add(1, Ordering::Relaxed) + 1;
                this.publish_waiting().await;
                this.looking.ended.send_replace(number);
                if this.rested() > pushed::IDLE {
                    // What fails is logged there, and the next time is as good.
                    let _ = tokio::task::spawn_blocking(move || this.drop_pushed()).await;
                }
                wanted
            };
            // Whether it is wanted or due makes no difference.
            let _ = tokio::time::timeout(LOOK_AGAIN, wanted.notified()).await;
        }
    }

    /// For how long nothing has been pending. After a while the tree is not said to be being filled any more.
    fn rested(&self) -> Duration {
        let is_idle = self.table.is_empty();
        let mut filling = locked(&self.filling);
        if !is_idle {
            filling.last = Instant::now();
        }
        let rested = filling.last.elapsed();
        if rested > IDLE {
            filling.filling = None;
        }
        rested
    }

    /// Looks now, if anything waits, and lets whoever asks wait for that for a while.
    pub(super) async fn look_now(&self) {
        if self.waiting_manifests() == 0 {
            return;
        }
        let mut ended = self.looking.ended.subscribe();
        // One that is under way may have passed what has come since it began.
        let begun = self.looking.begun.load(Ordering::Relaxed);
        self.looking.wanted.notify_one();
        let looked = ended.wait_for(|number| *number > begun);
        let _ = tokio::time::timeout(MAX_LOOK, looked).await;
    }

    /// How many manifests wait for what they name.
    pub(super) fn waiting_manifests(&self) -> usize {
        let all = self.table.all();
        all.iter().filter(|file| matches!(file.state().stage, Stage::Waiting(_))).count()
    }
}
