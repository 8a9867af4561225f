//! When a request that has failed is made once more.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::config::RegistryConfig;
use crate::backend::{Error, Kind, Result};

/// How often a connection is tried in a row.
const CONNECT_ATTEMPTS: u32 = 3;

/// Decides whether to repeat what failed, and when.
pub(super) struct Retry {
    max_wait: Duration,
    max_retries: usize,
    delays: ExponentialBackoff,
    attempts: u32,
}

impl Retry {
    /// Up to `max_retries` in a row without progress.
    pub(super) fn new(config: &RegistryConfig, max_retries: usize) -> Self {
        let max_wait = config.max_wait;
        Self { max_wait, max_retries, delays: delays(max_retries), attempts: 1 }
    }

    /// There was progress: the next failure is the first one again.
    pub(super) fn reset(&mut self) {
        self.delays = delays(self.max_retries);
        self.attempts = 1;
    }

    /// How long to wait before the next attempt, or the error if there is to be none.
    pub(super) fn after(&mut self, error: Error) -> Result<Duration> {
        if !error.is_transient() {
            return Err(error.after(self.attempts));
        }
        self.again(error)
    }

    /// The same for an error after which another attempt makes sense in any case.
    pub(super) fn again(&mut self, error: Error) -> Result<Duration> {
        if let Kind::Status { retry_after: Some(wait), message, .. } = error.kind()
            && *wait > self.max_wait
        {
            let kind = Kind::WaitTooLong { wait: *wait, message: message.clone() };
            return Err(error.with_kind(kind).after(self.attempts));
        }
        // A host that is not there does not come up within seconds, as an overloaded one does.
        let enough = matches!(error.kind(), Kind::Connect(_)) && self.attempts >= CONNECT_ATTEMPTS;
        let delay = self.delays.next().filter(|_| !enough);
        let Some(delay) = delay else { return Err(error.after(self.attempts)) };
        let delay = match error.kind() {
            Kind::Status { retry_after: Some(wait), .. } => delay.max(*wait),
            _ => delay,
        };
        let (attempt, delay_ms) = (self.attempts, delay.as_millis());
        tracing::info!(attempt, delay_ms, "{error}; repeating it");
        self.attempts += 1;
        Ok(delay)
    }
}

fn delays(max_retries: usize) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_factor(2.5)
        .with_max_delay(Duration::from_secs(15))
        .with_max_times(max_retries)
        .with_jitter()
        .build()
}
