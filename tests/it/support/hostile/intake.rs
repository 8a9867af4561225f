//! The bodies of requests on their way in, and what becomes of them there.

use super::Inner;
use super::fault::Fault;
use crate::support::http::Connection;
use std::time::Duration;

/// Why a request is not answered as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Close,
    Reset,
    Hang,
    /// The body is longer than a proxy lets through.
    TooLarge,
}

/// Reads the body of one request, and counts it in the log.
pub(super) struct Intake<'a, 'c> {
    inner: &'a Inner,
    id: usize,
    connection: &'a mut Connection<'c>,
    received: u64,
    /// After so many bytes it is over.
    cut: Option<(u64, Stop)>,
    /// No more than so many bytes are let through.
    limit: u64,
    pace: Option<(u64, Duration)>,
}

impl<'a, 'c> Intake<'a, 'c> {
    pub(super) fn new(
        inner: &'a Inner,
        id: usize,
        connection: &'a mut Connection<'c>,
        fault: Option<&Fault>,
        pace: Option<(u64, Duration)>,
    ) -> Self {
        let cut = match fault {
            Some(Fault::DropBody(after)) => Some((*after, Stop::Close)),
            Some(Fault::ResetBody(after)) => Some((*after, Stop::Reset)),
            Some(Fault::StallBody(after)) => Some((*after, Stop::Hang)),
            _ => None,
        };
        let limit = match fault {
            Some(Fault::TooLarge(limit) | Fault::TooLargeRange(limit)) => *limit,
            _ => u64::MAX,
        };
        let pace = match fault {
            Some(Fault::Drip { bytes, interval }) => Some((*bytes, *interval)),
            _ => pace,
        };
        Self { inner, id, connection, received: 0, cut, limit, pace }
    }

    /// How much of the body has come.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The next bytes; none at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Stop> {
        let mut want = buffer.len();
        let mut at_most = |limit: u64| want = usize::try_from(limit).map_or(want, |l| want.min(l));
        if let Some((after, stop)) = self.cut {
            if self.received >= after {
                return Err(stop);
            }
            at_most(after - self.received);
        }
        if let Some((bytes, _)) = self.pace {
            at_most(bytes.max(1));
        }
        let count = self.connection.read_body(&mut buffer[..want]).map_err(|_| Stop::Close)?;
        self.received += count as u64;
        self.inner.state().log[self.id].received = self.received;
        if count == 0 {
            // A body that is shorter than where it should have been cut is not let through either.
            return self.cut.map_or(Ok(0), |(_, stop)| Err(stop));
        }
        if self.received > self.limit {
            return Err(Stop::TooLarge);
        }
        if let Some((_, interval)) = self.pace
            && !self.connection.sleep(interval)
        {
            return Err(Stop::Close);
        }
        Ok(count)
    }

    /// Reads what is left, for nobody.
    pub(super) fn drain(&mut self) -> Result<(), Stop> {
        let mut buffer = [0; 64 * 1024];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The whole body, unless it is longer than `limit` bytes.
    pub(super) fn hold(&mut self, limit: usize) -> Result<Vec<u8>, Stop> {
        let mut held = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(held),
                count => held.extend_from_slice(&buffer[..count]),
            }
            if held.len() > limit {
                return Err(Stop::TooLarge);
            }
        }
    }

    /// Whether something is to happen while the body is read.
    pub(super) fn will_be_cut(&self) -> bool {
        self.cut.is_some()
    }
}
