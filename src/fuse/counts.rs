//! What the kernel asks, how long the answers take that have to be waited for, and what fails.

use std::time::Instant;

use fuser::Errno;

use crate::util::{Counter, Counters, Histogram, Metrics};

/// Kinds of requests of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Lookup,
    Forget,
    Getattr,
    Readlink,
    Open,
    Read,
    Opendir,
    Readdir,
    Statfs,
    Getxattr,
    Listxattr,
    Create,
    Write,
    Setattr,
    Mkdir,
    Rmdir,
    Unlink,
    Rename,
    Link,
    Fsync,
    Fallocate,
    CopyFileRange,
}

impl Asked {
    const ALL: [Self; 22] = [
        Self::Lookup,
        Self::Forget,
        Self::Getattr,
        Self::Readlink,
        Self::Open,
        Self::Read,
        Self::Opendir,
        Self::Readdir,
        Self::Statfs,
        Self::Getxattr,
        Self::Listxattr,
        Self::Create,
        Self::Write,
        Self::Setattr,
        Self::Mkdir,
        Self::Rmdir,
        Self::Unlink,
        Self::Rename,
        Self::Link,
        Self::Fsync,
        Self::Fallocate,
        Self::CopyFileRange,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Forget => "forget",
            Self::Getattr => "getattr",
            Self::Readlink => "readlink",
            Self::Open => "open",
            Self::Read => "read",
            Self::Opendir => "opendir",
            Self::Readdir => "readdir",
            Self::Statfs => "statfs",
            Self::Getxattr => "getxattr",
            Self::Listxattr => "listxattr",
            Self::Create => "create",
            Self::Write => "write",
            Self::Setattr => "setattr",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::Unlink => "unlink",
            Self::Rename => "rename",
            Self::Link => "link",
            Self::Fsync => "fsync",
            Self::Fallocate => "fallocate",
            Self::CopyFileRange => "copy_file_range",
        }
    }
}

/// Failures that a program can be told of, by their names.
const ERRORS: [(Errno, &str); 8] = [
    (Errno::EIO, "EIO"),
    (Errno::ETIMEDOUT, "ETIMEDOUT"),
    (Errno::EACCES, "EACCES"),
    (Errno::ENOENT, "ENOENT"),
    (Errno::ESTALE, "ESTALE"),
    (Errno::EHOSTUNREACH, "EHOSTUNREACH"),
    (Errno::ENOMEM, "ENOMEM"),
    (Errno::EISDIR, "EISDIR"),
];

/// What is counted of a mount.
pub(super) struct Counts {
    /// In the order of [`Asked`].
    asked: Vec<Counter>,
    waits: Vec<Histogram>,
    read_bytes: Counter,
    errors: Counters,
}

/// An answer that somebody waits for.
pub(super) struct Wait<'a> {
    histogram: Option<&'a Histogram>,
    since: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(histogram) = self.histogram {
            histogram.observe(self.since.elapsed().as_secs_f64());
        }
    }
}

impl Counts {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let asked = metrics.counters("imgfs_fuse_requests", "Requests of the kernel by their kind");
        let waits = metrics.seconds(
            "imgfs_fuse_wait_seconds",
            "Time that programs have waited for answers which were not at hand, by the kind of request",
        );
        let label = |kind: Asked| vec![("kind", kind.name().into())];
        Self {
            asked: Asked::ALL.map(|kind| asked.get_or_create(&label(kind)).clone()).into(),
            waits: Asked::ALL.map(|kind| waits.get_or_create(&label(kind)).clone()).into(),
            read_bytes: metrics.counter(
                "imgfs_fuse_read_bytes",
                "Bytes that programs have been given by this process",
            ),
            errors: metrics.counters("imgfs_fuse_errors", "Requests that failed, by the error"),
        }
    }

    /// Counts a request.
    pub(super) fn asked(&self, kind: Asked) {
        if let Some(counter) = self.asked.get(kind as usize) {
            counter.inc();
        }
    }

    /// Counts how long somebody waits until what is returned is dropped.
    pub(super) fn waits(&self, kind: Asked) -> Wait<'_> {
        Wait { histogram: self.waits.get(kind as usize), since: Instant::now() }
    }

    /// Counts bytes that a program has been given.
    pub(super) fn read(&self, bytes: usize) {
        self.read_bytes.inc_by(bytes as u64);
    }

    /// Counts a failure.
    pub(super) fn failed(&self, errno: Errno) {
        let name = ERRORS.iter().find(|(known, _)| known.code() == errno.code());
        let name = name.map_or("other", |(_, name)| name);
        self.errors.get_or_create(&vec![("error", name.into())]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_by_its_kind() {
        let metrics = Metrics::default();
        let counts = Counts::new(&metrics);
        for (number, kind) in Asked::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number, "{kind:?}");
            counts.asked(kind);
        }
        counts.asked(Asked::Read);
        counts.read(7);
        counts.failed(Errno::EIO);
        counts.failed(Errno::EPERM);
        drop(counts.waits(Asked::Open));
        let text = metrics.text();
        for line in [
            "imgfs_fuse_requests_total{kind=\"read\"} 2",
            "imgfs_fuse_requests_total{kind=\"listxattr\"} 1",
            "imgfs_fuse_read_bytes_total 7",
            "imgfs_fuse_errors_total{error=\"EIO\"} 1",
            "imgfs_fuse_errors_total{error=\"other\"} 1",
            "imgfs_fuse_wait_seconds_count{kind=\"open\"} 1",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in:\n{text}");
        }
    }
}
